"""What this program wrote into a project, with which settings, and which of it is still untouched.

::

    <project>/qupath_ext/runs/<run id>/run.json            command, settings, models, versions, results by image
    <project>/qupath_ext/runs/<run id>/<entry id>.parquet  the objects that were written (GeoParquet)

A later run of the same analysis replaces the objects of earlier ones that nobody changed since; those that a person
changed are theirs.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import os
import platform
import uuid
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyhisto.objects import concat_objects, load_objects, save_objects
from qupath_ext.errors import FormatError

if TYPE_CHECKING:
    import geopandas as gpd

    from qupath_ext.project import Project

__all__ = ["Run", "earlier_objects", "list_runs", "start_run", "untouched"]

FOLDER = Path("qupath_ext") / "runs"

SAME_PX = 0.05
"""Distance in px that a vertex may move when QuPath rounds and stores it again (float32, 0.01 px from 0.6 on)."""


class Run:
    """One run of a command over a project; made by :func:`start_run`.

    Attributes
    ----------
    id, folder
        Its name, which sorts by time, and where its record lies.
    record
        What ``run.json`` holds.
    """

    def __init__(self, folder: Path, record: dict[str, Any]) -> None:
        self.folder = folder
        self.id = folder.name
        self.record = record

    def objects_file(self, entry_id: str) -> Path:
        """Return the file with the objects that were written to an image."""
        return self.folder / f"{entry_id}.parquet"

    def objects_files(self, entry_id: str) -> list[Path]:
        """Return all files that may name objects of an image: an interrupted attempt leaves its own beside the last."""
        return sorted(self.folder.glob(f"{entry_id}.*parquet"))

    def is_done(self, entry_id: str) -> bool:
        """Return whether an image was finished by this run."""
        return bool(self.record["images"].get(entry_id, {}).get("status") == "done")

    def plan(self, entry_id: str, objects: gpd.GeoDataFrame) -> None:
        """Keep the objects that are about to be written; they belong to this run from now on.

        What an interrupted attempt planned before stays known until :meth:`finish_image`.
        """
        path = self.objects_file(entry_id)
        if path.is_file():
            path.replace(self.folder / f"{entry_id}.{uuid.uuid4().hex[:8]}.parquet")
        save_objects(path, objects)

    def finish_image(self, entry_id: str, result: Mapping[str, Any]) -> None:
        """Note the result of an image."""
        for path in self.objects_files(entry_id):
            if path != self.objects_file(entry_id):
                path.unlink()
        self.record["images"][entry_id] = {"status": "done", **result}
        self.save()

    def fail_image(self, entry_id: str, stage: str, error: str) -> None:
        """Note that an image failed, where and why."""
        self.record["images"][entry_id] = {"status": "failed", "stage": stage, "error": error}
        self.save()

    def finish(self) -> None:
        """Note that the run has come to its end."""
        self.record["status"] = "done"
        self.record["finished"] = _now()
        self.save()

    def save(self) -> None:
        """Write ``run.json``, all or nothing."""
        path = self.folder / "run.json"
        temporary = path.with_suffix(".tmp")
        text = json.dumps(self.record, indent=2, ensure_ascii=False, default=str)
        try:
            with temporary.open("w", encoding="utf-8") as file:
                file.write(text + "\n")
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


def start_run(project: Project, analysis: str, config: Mapping[str, Any], models: Mapping[str, str]) -> Run:
    """Start a run, or go on with one of the same analysis and settings that was interrupted.

    Parameters
    ----------
    project
        The project.
    analysis
        Name of the analysis, such as ``"ki67"``; only runs of one analysis replace each other's objects.
    config
        All settings, as JSON types.
    models
        Name of each model to the sha256 of its weights.
    """
    fingerprint = _fingerprint(analysis, config, models)
    for run in reversed(list(list_runs(project))):
        if run.record.get("analysis") == analysis:
            if run.record.get("status") == "running" and run.record.get("fingerprint") == fingerprint:
                return run
            break
    now = datetime.datetime.now(datetime.UTC)  # a clock that never turns back, and finer than two runs can follow
    folder = project.path.parent / FOLDER / f"{now:%Y%m%d-%H%M%S-%f}-{analysis}-{uuid.uuid4().hex[:6]}"
    folder.mkdir(parents=True)
    run = Run(
        folder,
        {
            "analysis": analysis,
            "status": "running",
            "started": _now(),
            "config": dict(config),
            "models": dict(models),
            "fingerprint": fingerprint,
            "versions": _versions(),
            "images": {},
        },
    )
    try:
        run.save()
    except OSError:
        folder.rmdir()
        raise
    return run


def list_runs(project: Project) -> Iterator[Run]:
    """Yield the runs of a project, oldest first.

    Raises
    ------
    FormatError
        If a run record is damaged.
    """
    for path in sorted((project.path.parent / FOLDER).glob("*/run.json")):
        try:
            record = json.loads(path.read_text("utf-8"))
        except ValueError as error:
            raise FormatError(
                f"run record {path} is damaged ({error})", remedy="restore or remove its folder"
            ) from error
        yield Run(path.parent, record)


def earlier_objects(project: Project, analysis: str, entry_id: str) -> gpd.GeoDataFrame | None:
    """Return all objects that runs of an analysis ever wrote to an image; None if there are none.

    Where two runs wrote an id, the later one counts.
    """
    tables = [
        load_objects(path)
        for run in list_runs(project)
        if run.record.get("analysis") == analysis
        for path in run.objects_files(entry_id)
    ]
    if not tables:
        return None
    latest: dict[str, int] = {}
    for number, table in enumerate(tables):
        latest.update(dict.fromkeys(table.index, number))
    kept = [table[[latest[id_] == number for id_ in table.index]] for number, table in enumerate(tables) if len(table)]
    return concat_objects(kept)


def untouched(written: gpd.GeoDataFrame, present: gpd.GeoDataFrame) -> list[str]:
    """Return the ids of objects that are still as they were written.

    An object is a person's once its geometry, class, name or lock differs. Vertices may have moved by
    :data:`SAME_PX` and rings may start or turn differently, since QuPath does that when it saves.

    Parameters
    ----------
    written, present
        Path-object tables in one frame: what was written, and what the project holds now.
    """
    import numpy as np
    import shapely

    ids = written.index.intersection(present.index)
    if len(ids) == 0:
        return []
    old, new = written.loc[ids], present.loc[ids]
    same = np.ones(len(ids), dtype=bool)
    for column in ("classification", "name"):
        a = old[column].astype(object).where(old[column].notna(), None).to_numpy()
        b = new[column].astype(object).where(new[column].notna(), None).to_numpy()
        same &= np.array([x == y for x, y in zip(a, b, strict=True)], dtype=bool)
    same &= old["locked"].to_numpy(dtype=bool) == new["locked"].to_numpy(dtype=bool)
    a, b = old.geometry.to_numpy(), new.geometry.to_numpy()
    alike = shapely.equals_exact(a, b, tolerance=SAME_PX, normalize=True)
    for i in np.flatnonzero(same & ~alike):
        alike[i] = _same_shape(a[i], b[i])
    return [str(id_) for id_ in ids[same & alike]]


def _same_shape(a: Any, b: Any) -> bool:
    """Return whether two geometries differ by no more than rounding."""
    import shapely

    return bool(shapely.hausdorff_distance(a, b) <= SAME_PX and shapely.hausdorff_distance(b, a) <= SAME_PX)


def _fingerprint(analysis: str, config: Mapping[str, Any], models: Mapping[str, str]) -> str:
    text = json.dumps([analysis, dict(config), dict(models), version("qupath-ext")], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def _now() -> str:
    return datetime.datetime.now().astimezone().isoformat(timespec="seconds")


def _versions() -> dict[str, str]:
    names = ("qupath-ext", "torch", "monai", "numpy", "shapely", "openslide-python", "tifffile")
    return {"python": platform.python_version(), "platform": platform.platform(), **{n: version(n) for n in names}}
