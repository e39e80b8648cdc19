"""The records of runs: made when a command begins, brought up to date after each image, found again later."""

from __future__ import annotations

import datetime
import functools
import hashlib
import json
import os
import platform
import shutil
import sys
import uuid
from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from qupath_ext.errors import FormatError, ProjectError, RunNotFoundError

if TYPE_CHECKING:
    from qupath_ext.entry import ImageEntry
    from qupath_ext.project import Project

__all__ = ["Run", "find_run", "list_runs", "now", "runs_folder", "start_run", "write_json"]

FOLDER = Path("qupath_ext") / "runs"
RECORD_VERSION = 2
"""Raised when ``run.json`` changes its layout; a run with another one is never gone on with."""
UNFINISHED = ("running", "incomplete")
LIBRARIES = ("qupath-ext", "torch", "monai", "numpy", "shapely", "geopandas", "openslide-python", "tifffile", "paquo")


class Run:
    """One run of a command over a project; made by :func:`start_run`, found by :func:`list_runs`.

    Attributes
    ----------
    id, folder
        Its name, which sorts by time, and where its record lies.
    record
        What ``run.json`` holds. ``record["status"]`` is ``running`` (also after a kill), ``incomplete`` (it came to its
        end, and an image failed), ``done`` or ``undone``; ``record["images"]`` has the results by entry id.
    """

    def __init__(self, folder: Path, record: dict[str, Any]) -> None:
        self.folder = folder
        self.id = folder.name
        self.record = record
        self._lock: FileLock | None = None

    @property
    def analysis(self) -> str:
        """Name of the analysis; only runs of one analysis replace each other's objects."""
        return str(self.record.get("analysis"))

    @property
    def status(self) -> str:
        """``running``, ``incomplete``, ``done`` or ``undone``."""
        return str(self.record.get("status"))

    @property
    def images(self) -> dict[str, Any]:
        """The record of each image by entry id."""
        images: dict[str, Any] = self.record.setdefault("images", {})
        return images

    # ------------------------------------------------------------------ files
    def objects_file(self, entry_id: str) -> Path:
        """Return the file with the objects that were written to an image."""
        return self.folder / f"{entry_id}.parquet"

    def objects_files(self, entry_id: str) -> list[Path]:
        """Return all files that may name objects of an image: an interrupted attempt leaves its own beside the last."""
        return sorted(self.folder.glob(f"{entry_id}.*parquet"))

    def replaced_file(self, entry_id: str) -> Path:
        """Return the file with the objects that made way for those of this run."""
        return self.folder / "replaced" / f"{entry_id}.parquet"

    def before_file(self, entry_id: str) -> Path:
        """Return the file with the ids of all objects that were in the image and stayed."""
        return self.folder / "before" / f"{entry_id}.parquet"

    def theirs_file(self, entry_id: str) -> Path:
        """Return the file with the ids of objects of earlier runs that were a person's by then."""
        return self.folder / "theirs" / f"{entry_id}.json"

    def metadata_file(self, entry_id: str) -> Path:
        """Return the file with the metadata that were written to an image, and what was there before."""
        return self.folder / "metadata" / f"{entry_id}.json"

    def entry_ids(self) -> list[str]:
        """Return the ids of all images that this run wrote to, or was about to."""
        planned = {path.name.split(".")[0] for path in self.folder.glob("*.parquet")}
        return sorted(planned, key=lambda text: (len(text), text))

    # ------------------------------------------------------------------ results
    def is_done(self, entry_id: str) -> bool:
        """Return whether an image was finished by this run, and not undone since."""
        image = self.images.get(entry_id, {})
        return bool(image.get("status") == "done" and "undone" not in image)

    def finish_image(self, entry_id: str, result: Mapping[str, Any]) -> None:
        """Note the result of an image."""
        for path in self.objects_files(entry_id):
            if path != self.objects_file(entry_id):
                path.unlink()
        self.images[entry_id] = {"status": "done", **result}
        self.save()

    def fail_image(self, entry: ImageEntry, stage: str, error: str) -> None:
        """Note that an image failed, where and why."""
        self.images[entry.id] = {"status": "failed", "name": entry.name, "stage": stage, "error": error}
        self.save()

    def finish(self) -> None:
        """Note that the run has come to its end."""
        failed = any(image.get("status") == "failed" for image in self.images.values())
        self.record["status"] = "incomplete" if failed else "done"
        self.record["finished"] = now()
        self.save()
        self.release()

    def discard(self) -> None:
        """Remove the record of a run that came to nothing; one that wrote to an image stays."""
        self.release()
        if not self.images and not self.entry_ids():
            shutil.rmtree(self.folder)

    def save(self) -> None:
        """Write ``run.json``, all or nothing."""
        write_json(self.folder / "run.json", self.record)

    # ------------------------------------------------------------------ one process at a time
    def hold(self) -> None:
        """Keep other processes from going on with this run, until :meth:`release` or the end of the process.

        Raises
        ------
        ProjectError
            If another process is at work on it.
        """
        lock = FileLock(self.folder / "lock")
        try:
            lock.acquire(timeout=0)
        except Timeout as error:
            raise ProjectError(
                f"run {self.id} is being worked on by another process",
                expected="one process for each run",
                remedy="wait for it, or stop it and try again",
            ) from error
        self._lock = lock

    def release(self) -> None:
        """Let other processes go on with this run."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None


def start_run(
    project: Project,
    analysis: str,
    config: Mapping[str, Any],
    models: Mapping[str, Mapping[str, str]],
    *,
    device: str = "cpu",
) -> Run:
    """Start a run, or go on with one of the same analysis and settings that was interrupted or had failures.

    Parameters
    ----------
    project
        The project.
    analysis
        Name of the analysis, such as ``"ki67"``; only runs of one analysis replace each other's objects.
    config
        All settings, as JSON types.
    models
        Kind of each model to its ``name`` and ``sha256``.
    device
        Where networks run.

    Raises
    ------
    ProjectError
        If another process is at work on that run, or the record cannot be written.
    """
    fingerprint = _fingerprint(analysis, config, models, project.scope)
    for run in reversed(list(list_runs(project))):
        if run.analysis == analysis:
            if run.status in UNFINISHED and run.record.get("fingerprint") == fingerprint:
                run.hold()
                run.record["status"] = "running"
                return run
            break
    moment = datetime.datetime.now(datetime.UTC)  # a clock that never turns back, and finer than two runs can follow
    folder = runs_folder(project) / f"{moment:%Y%m%d-%H%M%S-%f}-{analysis}-{uuid.uuid4().hex[:6]}"
    record = {
        "record_version": RECORD_VERSION,
        "id": folder.name,
        "analysis": analysis,
        "status": "running",
        **({"scope": project.scope} if project.scope else {}),
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "started": now(),
        "config": dict(config),
        "models": {kind: dict(model) for kind, model in models.items()},
        "device": device,
        "backend": project.backend_version,
        "versions": _versions(),
        "fingerprint": fingerprint,
        "images": {},
    }
    try:
        folder.mkdir(parents=True)
    except OSError as error:
        raise ProjectError(f"{folder} cannot be made: {error.strerror}", remedy="the project is as it was") from error
    run = Run(folder, record)
    try:
        run.save()
    except ProjectError:
        folder.rmdir()
        raise
    run.hold()
    return run


def runs_folder(project: Project) -> Path:
    """Return the folder of a project's runs; need not exist."""
    return project.path.parent / FOLDER


def list_runs(project: Project) -> Iterator[Run]:
    """Yield the runs of a project, oldest first.

    Raises
    ------
    FormatError
        If a run record is damaged.
    """
    for path in sorted(runs_folder(project).glob("*/run.json")):
        try:
            record = json.loads(path.read_text("utf-8"))
        except ValueError as error:
            raise FormatError(
                f"run record {path} is damaged ({error})", remedy="restore or remove its folder"
            ) from error
        if not isinstance(record, dict) or not isinstance(record.get("images", {}), dict):
            raise FormatError(f"run record {path} is damaged (no record)", remedy="restore or remove its folder")
        yield Run(path.parent, record)


def find_run(project: Project, name: str) -> Run:
    """Return the run with this id, or the only one whose id has this beginning or part; ``latest`` is the last.

    Raises
    ------
    RunNotFoundError
        If there is none, or more than one.
    """
    runs = list(list_runs(project))
    if not runs:
        raise RunNotFoundError(f"no runs in {project.path.parent}", expected="a project that this program wrote to")
    if name == "latest":
        return runs[-1]
    for match in (str.__eq__, str.startswith, str.__contains__):
        found = [run for run in runs if match(run.id, name)]
        if len(found) == 1:
            return found[0]
        if found:
            ids = ", ".join(run.id for run in found[:3])
            raise RunNotFoundError(f"{len(found)} runs match {name!r}", expected="one", remedy=f"say which: {ids}")
    raise RunNotFoundError(f"no run {name!r}", expected=f"'latest' or one of {', '.join(r.id for r in runs[-3:])}")


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file, all or nothing.

    Raises
    ------
    ProjectError
        If it cannot be written.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    text = json.dumps(value, indent=2, ensure_ascii=False, default=str)
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text + "\n")
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise ProjectError(f"{path} cannot be written: {error.strerror or error}") from error


def _fingerprint(analysis: str, config: Mapping[str, Any], models: Mapping[str, Mapping[str, str]], scope: str) -> str:
    hashes = {kind: model["sha256"] for kind, model in models.items()}
    parts = [RECORD_VERSION, analysis, dict(config), hashes, version("qupath-ext"), *([scope] if scope else [])]
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def now() -> str:
    """Return the local time with its offset, ISO 8601."""
    return datetime.datetime.now().astimezone().isoformat(timespec="seconds")


@functools.cache
def _versions() -> dict[str, str]:
    out = {"python": platform.python_version(), "platform": platform.platform()}
    for name in LIBRARIES:
        try:
            out[name] = version(name)
        except PackageNotFoundError:
            continue
    return out
