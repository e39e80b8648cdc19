"""Putting the regions of a round into the images of its projects, as ordinary runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import geopandas as gpd

from pyhisto.objects import concat_objects, load_objects, make_objects
from qupath_ext.project import pack_rgb
from qupath_ext.runs.ownership import read_ownership, write_run
from qupath_ext.runs.record import Run, list_runs, start_run
from qupath_ext.workflows.trainingdata import DONE, REGION, REJECTED

if TYPE_CHECKING:
    from qupath_ext.active.loop import Loop, Round
    from qupath_ext.entry import ImageEntry
    from qupath_ext.project import Project

__all__ = ["region_name", "write_round"]

COLORS = {REGION: (0, 0, 180), DONE: (0, 140, 60), REJECTED: (120, 120, 120)}
"""Red, green and blue of the classes of regions."""


def region_name(number: int, rank: int, score: float, reason: str) -> str:
    """Return what a region is called in QuPath.

    >>> region_name(2, 3, 0.714, "entropy+diversity")
    'Round 2 #3 0.71 entropy+diversity'
    """
    return f"Round {number} #{rank} {score:.2f} {reason}"


def write_round(loop: Loop, one: Round) -> list[str | None]:
    """Write the proposals of a round and the predictions inside them; what is written already is left as it is.

    Returns
    -------
    list of str or None
        The id of the run of each project of the loop; None for those without a proposal.

    Raises
    ------
    ProjectError
        If an image cannot be written.
    """
    proposals = one.table("proposals")
    predictions = load_objects(one.folder / "predictions.parquet")
    runs: list[str | None] = []
    for number, project in enumerate(loop.projects):
        own = proposals[proposals["project"] == number]
        runs.append(None if own.empty else _write_project(loop, one, project, own, predictions))
    return runs


def _write_project(
    loop: Loop, one: Round, project: Project, proposals: gpd.GeoDataFrame, predictions: gpd.GeoDataFrame
) -> str:
    """Write the proposals of one project; return the id of the run."""
    model = one.record["chosen"]["model"]
    config = {"loop": loop.name, "round": one.number, "regions": sorted(map(str, proposals.index))}
    for earlier in list_runs(project):
        if earlier.analysis == loop.analysis and earlier.record["config"] == config and earlier.status == "done":
            return earlier.id
    run = start_run(project, loop.analysis, config, {} if model is None else {loop.settings.target: model})
    try:
        project.add_classes({name: pack_rgb(*color) for name, color in COLORS.items()})
        for entry_id, own in proposals.groupby("entry_id", sort=False):
            if not run.is_done(str(entry_id)):
                _write_image(loop, one, run, project.entry(int(entry_id)), own, predictions)
        run.finish()
    finally:
        run.release()
    return run.id


def _write_image(
    loop: Loop, one: Round, run: Run, entry: ImageEntry, proposals: gpd.GeoDataFrame, predictions: gpd.GeoDataFrame
) -> None:
    """Write the proposals of one image."""
    regions = make_objects(
        proposals.geometry.to_numpy(),
        object_type="annotation",
        classification=REGION,
        ids=[str(id_) for id_ in proposals.index],
        name=[
            region_name(one.number, int(row.rank), float(row.score), str(row.reason))
            for row in proposals[["rank", "score", "reason"]].itertuples(index=False)
        ],
        locked=True,
        metadata={"Loop": loop.name, "Round": str(one.number)},
    )
    inside = predictions[predictions["parent_id"].isin(proposals.index)]
    objects = concat_objects([regions, inside])
    ownership = read_ownership(loop.projects[int(proposals["project"].iloc[0])], loop.analysis, entry)
    result = {"regions": len(regions), "area_mm2": round(float(proposals["area_mm2"].sum()), 6)}
    if objects.index.isin(ownership.present.index).any():  # killed after the image was written, before it was noted
        run.finish_image(entry.id, {"name": entry.name, "locked_parents": [], "result": result})
        return
    write_run(run, entry, objects, ownership, replace=(), result=result)
