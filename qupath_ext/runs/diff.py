"""What has become of what a run wrote, and what a person added since."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import geopandas as gpd
import numpy as np
import pandas as pd

from qupath_ext.present import PresentObjects, as_present
from qupath_ext.runs.compare import CHANGES, Ints, compare, values_or_none
from qupath_ext.runs.ownership import is_unsaved, read_ids, read_written
from qupath_ext.runs.record import Run, list_runs

if TYPE_CHECKING:
    from qupath_ext.entry import ImageEntry
    from qupath_ext.project import Project

__all__ = ["STATUSES", "ImageDiff", "diff_image", "diff_run"]

STATUSES = ("untouched", "changed", "deleted", "replaced", "undone", "not written", "not saved in QuPath")
"""What an object of a run can be: as it was written; changed by a person; deleted by a person; replaced by a later run;
taken back by undo; planned by a run that was interrupted before it wrote; or handed to QuPath, which holds nothing of
that run: it was never saved."""

OBJECT_COLUMNS = ("status", "changes", "object_type", "before", "now")


@dataclass(frozen=True)
class ImageDiff:
    """What happened to the objects of a run in one image.

    Attributes
    ----------
    entry_id, name
        The image.
    objects
        Indexed by id, one row for each object that the run wrote: ``status`` (one of :data:`STATUSES`), ``changes``
        (those of :data:`qupath_ext.runs.compare.CHANGES` that apply, joined by commas), ``object_type``, ``before`` and
        ``now`` (classifications).
    added
        What a person added since, as a path-object table.
    changed
        The changed objects as they are now, as a path-object table.
    """

    entry_id: str
    name: str
    objects: pd.DataFrame
    added: gpd.GeoDataFrame
    changed: gpd.GeoDataFrame

    def counts(self) -> dict[str, int]:
        """Return the number of objects by status, by kind of change, and of those added."""
        status = self.objects["status"].value_counts()
        out = {name: int(status.get(name, 0)) for name in STATUSES}
        changes = self.objects["changes"].value_counts()
        out |= {name: int(changes[[name in what.split(", ") for what in changes.index]].sum()) for name in CHANGES}
        return {**out, "added": len(self.added)}


def diff_run(project: Project, run: Run, entries: Sequence[ImageEntry] | None = None) -> Iterator[ImageDiff]:
    """Compare what a run wrote with what the images hold now.

    Parameters
    ----------
    project, run
        The run and its project.
    entries
        Those of the run's images that are wanted; all by default.

    Yields
    ------
    ImageDiff
        For each image of the run that is still in the project.

    Raises
    ------
    FormatError
        If a file of a run or an image is damaged.
    """
    ids = set(run.entry_ids())
    for entry in project.entries if entries is None else entries:
        if entry.id in ids:
            yield diff_image(project, run, entry, entry.read_present())


def diff_image(project: Project, run: Run, entry: ImageEntry, present: gpd.GeoDataFrame | PresentObjects) -> ImageDiff:
    """Compare what a run wrote to one image with what it holds, `present`; see :func:`diff_run`."""
    present = as_present(present)
    ids = present.table.index
    image = run.images.get(entry.id, {})
    gone = "undone" if "undone" in image else "deleted" if image.get("status") == "done" else "not written"
    if gone == "deleted" and is_unsaved(run, entry.id, ids):
        gone = "not saved in QuPath"
    replaced = _replaced_later(project, run, entry.id)
    pieces = []
    at = np.empty(0, dtype=np.intp)
    known = np.zeros(len(ids), dtype=bool)
    for path in run.objects_files(entry.id):
        for written in read_written(path):
            at = _places(ids, written.index, after=at)
            known[at[at >= 0]] = True
            pieces.append(_statuses(written, present, at, gone, replaced))
    objects = pd.concat(pieces) if pieces else pd.DataFrame(columns=OBJECT_COLUMNS, dtype=object)  # nothing was found
    objects = objects[~objects.index.duplicated(keep="last")]
    changed = present.take(ids.get_indexer(objects.index[objects["status"] == "changed"]))
    return ImageDiff(entry.id, entry.name, objects, _added(project, run, entry.id, present, known), changed)


def _places(ids: pd.Index[str], wanted: pd.Index[str], *, after: Ints) -> Ints:
    """Return the numbers of some ids, -1 where there is none; most often they follow each other, and those before."""
    all_ids, some = ids.to_numpy(), wanted.to_numpy()
    start = int(after[-1]) + 1 if len(after) else 0
    if not len(after) and len(ids) and len(some):
        start = int(np.argmax(all_ids == some[0]))
    following = all_ids[start : start + len(some)]
    if len(following) == len(some) and (following == some).all():
        return np.arange(start, start + len(some))
    return ids.get_indexer(wanted)


def _statuses(written: pd.DataFrame, present: PresentObjects, at: Ints, gone: str, replaced: set[str]) -> pd.DataFrame:
    """Return the rows of :attr:`ImageDiff.objects` for some of the objects of a run."""
    found = compare(written, present, at)
    is_changed = found[list(CHANGES)].to_numpy().any(axis=1)
    deleted = found["deleted"].to_numpy(dtype=bool)
    status = np.full(len(written), "untouched", dtype=object)
    status[is_changed] = "changed"
    status[deleted] = gone
    if replaced:
        status[deleted & written.index.isin(replaced)] = "replaced"
    now = pd.Series(present.table["classification"].array.take(at, allow_fill=True), written.index)
    before = values_or_none(written["classification"])
    columns = (
        status,
        _joined(found[list(CHANGES)]),
        written["object_type"].astype(object),
        before,
        values_or_none(now),
    )
    return pd.DataFrame(dict(zip(OBJECT_COLUMNS, columns, strict=True)), index=written.index)


def _joined(changes: pd.DataFrame) -> np.ndarray[Any, np.dtype[np.object_]]:
    """Return the names of the true columns of each row, joined; object (n,)."""
    out = np.full(len(changes), "", dtype=object)
    for row in np.flatnonzero(changes.to_numpy().any(axis=1)).tolist():
        out[row] = ", ".join(name for name in changes.columns if changes[name].iat[row])
    return out


def _replaced_later(project: Project, run: Run, entry_id: str) -> set[str]:
    out: set[str] = set()
    for other in list_runs(project):
        if other.id > run.id:
            out.update(read_ids(other.replaced_file(entry_id)))
    return out


def _added(
    project: Project, run: Run, entry_id: str, present: PresentObjects, known: np.ndarray[Any, np.dtype[np.bool_]]
) -> gpd.GeoDataFrame:
    """Return what is in the image and not `known`, was not there when the run wrote to it, and no run wrote.

    What QuPath handed to a run need not have been all detections: after such a run only annotations are said to be new.
    """
    if run.images.get(entry_id, {}).get("saved_by"):
        known |= (present.table["object_type"] != "annotation").to_numpy()
    if known.all():
        return present.take(np.flatnonzero(~known))
    others = (other for other in list_runs(project) if other.id != run.id)
    written = (path for other in others for path in other.objects_files(entry_id))
    for path in (run.before_file(entry_id), *written):
        at = present.table.index.get_indexer(read_ids(path))
        known[at[at >= 0]] = True
    return present.take(np.flatnonzero(~known))
