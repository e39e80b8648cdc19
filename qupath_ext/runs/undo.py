"""Taking back what a run wrote, and bringing back what it had replaced."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import geopandas as gpd
import pandas as pd

from pyhisto.objects import concat_objects, empty_objects, load_objects
from qupath_ext.runs.diff import diff_image
from qupath_ext.runs.entrymetadata import take_back_metadata
from qupath_ext.runs.ownership import is_unsaved, read_ids
from qupath_ext.runs.record import Run, list_runs, now

if TYPE_CHECKING:
    from qupath_ext.entry import ImageEntry
    from qupath_ext.project import Project

__all__ = ["ImageUndo", "undo_run"]


@dataclass(frozen=True)
class ImageUndo:
    """What undoing a run did to one image, or would do.

    Attributes
    ----------
    entry_id, name
        The image.
    removed
        Number of the run's objects that were removed.
    kept
        Number of its objects that a person changed and that stay.
    restored
        Number of objects of earlier runs that came back.
    unlocked
        Number of annotations that the run had locked and that hold no detections any more.
    covered_by
        Ids of later runs of the same analysis in this image; what the undone run had replaced comes back when the
        last of them is undone.
    unsaved
        Whether the run was handed to QuPath, and nothing of it is in the image: it was never saved.
    """

    entry_id: str
    name: str
    removed: int
    kept: int
    restored: int
    unlocked: int
    covered_by: tuple[str, ...] = ()
    unsaved: bool = False


def undo_run(
    project: Project,
    run: Run,
    entries: Sequence[ImageEntry] | None = None,
    *,
    keep: Collection[str] = (),
    force: bool = False,
    dry_run: bool = False,
) -> Iterator[ImageUndo]:
    """Remove the untouched objects of a run from its images, and bring back what they had replaced.

    Metadata of the images that the run wrote get the values from before. Each image is written all or nothing; what was
    interrupted can be repeated.

    Parameters
    ----------
    project, run
        The run and its project.
    entries
        Those of the run's images that are wanted; all by default.
    keep
        Ids of objects of the run that stay, touched or not.
    force
        Also remove the run's objects that a person changed.
    dry_run
        Write nothing.

    Yields
    ------
    ImageUndo
        For each image of the run that is still in the project.

    Raises
    ------
    ProjectError
        If another process is at work on the run, or an image cannot be written.
    """
    ids = set(run.entry_ids())
    wanted = [e for e in (project.entries if entries is None else entries) if e.id in ids]
    if not dry_run:
        run.hold()
    try:
        for entry in wanted:
            yield _undo_image(project, run, entry, keep, force=force, dry_run=dry_run)
        if not dry_run and all("undone" in run.images.get(id_, {}) for id_ in ids & {e.id for e in project.entries}):
            run.record["status"] = "undone"
            run.save()
    finally:
        run.release()


def _undo_image(
    project: Project, run: Run, entry: ImageEntry, keep: Collection[str], *, force: bool, dry_run: bool
) -> ImageUndo:
    with entry.edit() as change:
        present = entry.read_objects()
        found = diff_image(project, run, entry, present)
        status = found.objects["status"]
        own = status.isin(["untouched", "changed"] if force else ["untouched"])
        removed = status.index[own & ~status.index.isin(list(keep))]
        covering = _later_runs(project, run, entry.id, present.index)
        restored = empty_objects() if covering else _to_restore(project, run, entry.id, present, removed)
        unlocked = _to_unlock(run, entry.id, present, removed, restored)
        if not dry_run:
            if not covering:
                take_back_metadata(project, run, entry)
            change.remove([str(id_) for id_ in removed])
            change.unlock(unlocked)
            if len(restored):
                change.add(restored)
    done = ImageUndo(
        entry_id=entry.id,
        name=entry.name,
        removed=len(removed),
        kept=0 if force else int((status == "changed").sum()),
        restored=len(restored),
        unlocked=len(unlocked),
        covered_by=tuple(other.id for other in covering),
        unsaved=bool((status == "not saved in QuPath").any()),
    )
    if not dry_run:
        run.images.setdefault(entry.id, {"name": entry.name})["undone"] = {
            "when": now(),
            "force": force,
            **({"saved_by": entry.saved_by} if entry.saved_by else {}),
            **asdict(done),
        }
        run.save()
    return done


def _later_runs(project: Project, run: Run, entry_id: str, present: pd.Index[str]) -> list[Run]:
    """Return the runs of the same analysis that wrote to the image afterwards and are not undone there."""
    return [
        other
        for other in list_runs(project)
        if other.id > run.id
        and other.analysis == run.analysis
        and other.objects_files(entry_id)
        and not _is_undone(other, entry_id, present)
        and not is_unsaved(other, entry_id, present)
    ]


def _is_undone(run: Run, entry_id: str, present: pd.Index[str]) -> bool:
    """Return whether a run was undone in an image, and, if QuPath was to save that, did."""
    undone = run.images.get(entry_id, {}).get("undone")
    if undone is None or not undone.get("saved_by"):
        return undone is not None
    return not any(read_ids(path).isin(present).any() for path in run.objects_files(entry_id))


def _to_restore(
    project: Project, run: Run, entry_id: str, present: gpd.GeoDataFrame, removed: pd.Index[str]
) -> gpd.GeoDataFrame:
    """Return what the run had replaced.

    Objects of an earlier run that was undone underneath this one stay away; what that run had replaced comes instead.
    """
    pieces = [_replaced(run, entry_id)]
    earlier = [other for other in list_runs(project) if other.id < run.id and other.analysis == run.analysis]
    for other in reversed([other for other in earlier if other.objects_files(entry_id)]):
        if not other.images.get(entry_id, {}).get("undone", {}).get("covered_by"):
            break
        own = {id_ for path in other.objects_files(entry_id) for id_ in read_ids(path)}
        pieces = [piece[~piece.index.isin(own)] for piece in pieces]
        pieces.append(_replaced(other, entry_id))
    together = concat_objects([piece for piece in pieces if len(piece)])
    together = together[~together.index.isin(present.index)]
    return _with_parents_that_exist(together, present.index.difference(removed))


def _replaced(run: Run, entry_id: str) -> gpd.GeoDataFrame:
    path = run.replaced_file(entry_id)
    return load_objects(path) if path.is_file() else empty_objects()


def _with_parents_that_exist(objects: gpd.GeoDataFrame, present: pd.Index[str]) -> gpd.GeoDataFrame:
    """Put objects whose parent is gone to the top level."""
    known = objects.index.union(present)
    out = objects.copy()
    out["parent_id"] = out["parent_id"].where(out["parent_id"].isin(known), None)
    return out


def _to_unlock(
    run: Run, entry_id: str, present: gpd.GeoDataFrame, removed: pd.Index[str], restored: gpd.GeoDataFrame
) -> list[str]:
    """Return the annotations that the run locked, are locked still, and will hold no detections."""
    locked = [i for i in run.images.get(entry_id, {}).get("locked_parents", []) if i in present.index]
    staying = present.drop(index=removed)
    is_detection = ~staying["object_type"].isin(["annotation", "tma_core"])
    parents = set(staying.loc[is_detection, "parent_id"].dropna()) | set(restored["parent_id"].dropna())
    return [i for i in locked if i not in parents and i not in removed and bool(present.at[i, "locked"])]
