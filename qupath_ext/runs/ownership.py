"""Whose objects are they, and writing a run's objects in place of those that are still the program's own."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import geopandas as gpd
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from pyhisto.errors import PyhistoError
from pyhisto.objects import concat_objects, empty_objects, load_objects, save_objects
from qupath_ext.errors import FormatError, ProjectError
from qupath_ext.native.collector import paused_collector
from qupath_ext.runs.compare import compare
from qupath_ext.runs.record import Run, list_runs, now, write_json

if TYPE_CHECKING:
    from qupath_ext.change import ChangeCounts
    from qupath_ext.entry import ImageEntry
    from qupath_ext.project import Project

__all__ = ["Ownership", "is_unsaved", "read_ids", "read_ownership", "read_written", "sort_out", "write_run"]

ROWS_AT_ONCE = 1 << 16
BUFFER = 1 << 20
"""Bytes of a file read at once: a whole column of a million outlines would take hundreds of MiB."""
COMPARED = ["object_type", "geometry", "nucleus", "classification", "name", "locked", "parent_id"]


@dataclass(frozen=True)
class Ownership:
    """Who owns what in an image.

    Attributes
    ----------
    present
        All objects of the image, QuPath's frame.
    untouched
        Ids of objects that earlier runs of the analysis wrote and nobody touched since; a new run may replace them.
    theirs
        Ids of objects that earlier runs wrote and a person changed since; they are in the image, and stay.
    """

    present: gpd.GeoDataFrame
    untouched: tuple[str, ...]
    theirs: tuple[str, ...]


def read_ownership(project: Project, analysis: str, entry: ImageEntry) -> Ownership:
    """Read an image and sort out which of its objects belong to earlier runs of an analysis.

    Where two runs wrote an id, the later one counts. What was found to be a person's once stays theirs.
    """
    present = entry.read_objects()
    runs = [run for run in list_runs(project) if run.analysis == analysis]
    untouched, theirs = sort_out(project, entry.id, present, runs)
    return Ownership(present, tuple(untouched), tuple(theirs))


def sort_out(
    project: Project, entry_id: str, present: gpd.GeoDataFrame, runs: Sequence[Run]
) -> tuple[list[str], list[str]]:
    """Return the ids of what some runs, oldest first, wrote to an image: still untouched, and a person's since.

    `present` is what the image holds now, in QuPath's frame; ids that are not in it are not returned.
    """
    released = _released(project, entry_id)
    unseen = set(present.index)
    untouched: list[str] = []
    theirs: list[str] = []
    for run in reversed(runs):
        for path in reversed(run.objects_files(entry_id)):
            for written in read_written(path, unseen):
                unseen.difference_update(written.index)
                changed = compare(written, present).to_numpy().any(axis=1)
                changed |= np.fromiter((i in released for i in written.index), dtype=bool, count=len(written))
                untouched += written.index[~changed].tolist()
                theirs += written.index[changed].tolist()
    return untouched, theirs


def is_unsaved(run: Run, entry_id: str, present: pd.Index[str]) -> bool:
    """Return whether objects that a run handed to QuPath are nowhere in the image: they were never saved.

    `present` has the ids of all that the image holds.
    """
    if not run.images.get(entry_id, {}).get("saved_by"):
        return False
    written = [read_ids(path) for path in run.objects_files(entry_id)]
    return any(len(ids) for ids in written) and not any(ids.isin(present).any() for ids in written)


def read_ids(path: Path) -> pd.Index[str]:
    """Return the ids of the objects in a file of a run; empty if there is no such file.

    Raises
    ------
    FormatError
        If the file is damaged.
    """
    if not path.is_file():
        return pd.Index([], dtype=object)
    try:
        ids: pd.Index[str] = pd.Index(pq.read_table(path, columns=["id"])["id"].to_pylist(), dtype=object)
    except (OSError, KeyError, pa.ArrowException) as error:
        raise _damaged(path, error) from error
    return ids


def read_written(path: Path, wanted: set[str] | None = None) -> Iterator[pd.DataFrame]:
    """Yield what :func:`qupath_ext.runs.compare.compare` needs of the objects in a file of a run, some at a time.

    Their geometries are WKB in columns of pyarrow's binary type.

    Parameters
    ----------
    path
        The file.
    wanted
        Ids of the objects that are of interest; all by default.

    Raises
    ------
    FormatError
        If the file is damaged.
    """
    if wanted is not None and not wanted.intersection(read_ids(path)):
        return
    try:
        with pq.ParquetFile(path, pre_buffer=False, buffer_size=BUFFER) as file, paused_collector():
            for batch in file.iter_batches(batch_size=ROWS_AT_ONCE, columns=["id", *COMPARED]):
                table = batch.drop_columns(["geometry", "nucleus"]).to_pandas(ignore_metadata=True).set_index("id")
                for column in ("geometry", "nucleus"):  # as WKB: most need not be made geometries to be compared
                    wkb = pd.arrays.ArrowExtensionArray(pa.chunked_array([batch[column]]))
                    table[column] = pd.Series(wkb, table.index)
                yield table if wanted is None else table[table.index.isin(wanted)]
    except (OSError, ValueError, KeyError, pa.ArrowException) as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> FormatError:
    return FormatError(f"{path} is damaged ({error})", remedy="restore its run folder, or remove it")


def _released(project: Project, entry_id: str) -> set[str]:
    out: set[str] = set()
    for run in list_runs(project):
        path = run.theirs_file(entry_id)
        if path.is_file():
            out.update(json.loads(path.read_text("utf-8")))
    return out


def write_run(
    run: Run,
    entry: ImageEntry,
    objects: gpd.GeoDataFrame,
    ownership: Ownership,
    *,
    replace: Sequence[str],
    lock: Sequence[str] = (),
    result: Mapping[str, Any] | None = None,
) -> ChangeCounts:
    """Write the objects of a run to an image, in place of untouched ones, and keep what undo and diff need.

    The plan is on disk before the image is touched, the result is noted afterwards; what is killed in between is found
    again by the next run, since the ids are known.

    Parameters
    ----------
    run, entry
        The run and the image.
    objects
        New path objects, QuPath's frame.
    ownership
        As read before the analysis; the image must not have changed since.
    replace
        Ids of objects to remove, out of ``ownership.untouched``.
    lock
        Ids of annotations to lock, because detections are put into them.
    result
        What the analysis found, as JSON types.

    Raises
    ------
    ProjectError
        If an object to be replaced is not the program's own, or the image cannot be written.
    """
    stray = set(replace) - set(ownership.untouched)
    if stray:
        raise ProjectError(f"object {min(stray)} is not this program's to replace", expected="untouched objects only")
    was_locked = ownership.present["locked"].reindex(list(lock)).fillna(value=False).astype(bool)
    newly_locked = [str(i) for i in was_locked.index[~was_locked.to_numpy()]]
    earlier = run.images.get(entry.id, {}).get("locked_parents", [])
    run.images[entry.id] = {
        "status": "planned",
        "name": entry.name,
        "locked_parents": sorted({*earlier, *newly_locked}),
    }
    try:
        _plan(run, entry.id, objects, ownership, replace)
    except OSError as error:
        raise ProjectError(f"{run.folder} cannot be written: {error.strerror or error}") from error
    with entry.edit() as change:
        change.remove(list(replace))
        change.lock(list(lock))
        if len(objects):
            change.add(objects)
    run.finish_image(entry.id, _image_record(run, entry, objects, ownership, change.counts, result))
    return change.counts


def _plan(run: Run, entry_id: str, objects: gpd.GeoDataFrame, ownership: Ownership, replace: Sequence[str]) -> None:
    """Put on disk what is about to be written and to make way, together with what interrupted attempts planned."""
    mine = {id_ for path in run.objects_files(entry_id) for id_ in read_ids(path)}
    replaced = ownership.present.loc[[i for i in replace if i not in mine]]
    if run.replaced_file(entry_id).is_file():
        attempt = load_objects(run.replaced_file(entry_id))
        replaced = concat_objects([replaced, attempt[~attempt.index.isin(replaced.index)]])
    others = ownership.present.index.difference(list(replace), sort=False)
    for path in (run.replaced_file(entry_id), run.before_file(entry_id), run.theirs_file(entry_id)):
        path.parent.mkdir(exist_ok=True)
    save_objects(run.replaced_file(entry_id), replaced)
    pq.write_table(pa.table({"id": pa.array(others.tolist(), pa.string())}), run.before_file(entry_id))
    write_json(run.theirs_file(entry_id), list(ownership.theirs))
    path = run.objects_file(entry_id)
    if path.is_file():
        path.replace(run.folder / f"{entry_id}.{len(run.objects_files(entry_id)):04d}.parquet")
    save_objects(path, objects if len(objects) else empty_objects())
    run.save()


def _image_record(
    run: Run,
    entry: ImageEntry,
    objects: gpd.GeoDataFrame,
    ownership: Ownership,
    counts: ChangeCounts,
    result: Mapping[str, Any] | None,
) -> dict[str, Any]:
    classes = objects["classification"].astype(object).fillna("Unclassified").value_counts()
    return {
        "name": entry.name,
        "slide": _slide_identity(entry),
        "added": dict(counts.added),
        "classes": {str(name): int(n) for name, n in classes.items()},
        "replaced": counts.removed,
        "kept_by_person": len(ownership.theirs),
        "locked": counts.locked,
        "locked_parents": run.images[entry.id]["locked_parents"],
        **({"saved_by": entry.saved_by} if entry.saved_by else {}),
        "finished": now(),
        "result": dict(result or {}),
    }


def _slide_identity(entry: ImageEntry) -> dict[str, Any]:
    """Return what tells one slide from another without reading its pixels."""
    metadata = entry.server_builder.get("metadata") or {}
    out: dict[str, Any] = {key: metadata.get(key) for key in ("width", "height")}
    out["mpp"] = entry.mpp
    try:
        path = entry.slide_path
        out["path"], out["bytes"] = str(path), path.stat().st_size
    except (PyhistoError, OSError):  # a server, or a file that is away: it has no size
        out["path"] = None
    return out
