"""What the answers of a loop mean for its training: which areas weigh more, and what is left out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import geopandas as gpd
import numpy as np
import shapely

from qupath_ext.active.answers import shown_mpp
from qupath_ext.workflows.trainingdata import Source

if TYPE_CHECKING:
    from qupath_ext.active.loop import Loop

__all__ = ["TruthChanges", "truth_changes"]


@dataclass(frozen=True)
class TruthChanges:
    """What a loop changes of the truth of one image, in the frame that QuPath shows.

    Attributes
    ----------
    weights
        (Polygon or MultiPolygon, what a pixel in it weighs); corrections, which weigh more than 1.
    hidden
        Polygons where nothing is to be learnt: several persons went through them, and none was chosen, or one in
        another project.
    without
        Ids of objects that are not truth: those of a person who was not chosen.
    """

    weights: tuple[tuple[Any, float], ...] = ()
    hidden: tuple[Any, ...] = ()
    without: tuple[str, ...] = ()


def truth_changes(loop: Loop, source: Source, *, until: int | None = None) -> TruthChanges:
    """Return what the collected rounds (up to the number `until`) say of an image.

    ``Done*`` regions themselves are truth already in
    :func:`qupath_ext.workflows.trainingdata.truth_objects`, and ``Rejected*`` ones hide what they cover.

    Raises
    ------
    FormatError
        If the state of the loop is damaged.
    """
    place = (loop.number_of(source.project), source.entry.id)
    corrections: list[gpd.GeoDataFrame] = []
    hidden: list[str] = []
    without: list[str] = []
    for one in loop.rounds():
        if "collected" not in one.record or (until is not None and one.number > until):
            continue
        disputes = one.record["collected"]["disagreements"]
        left_out = {person["region"] for dispute in disputes for person in dispute["people"]}
        table = one.table("corrections")
        own = (table["project"] == place[0]) & (table["entry_id"] == place[1]) & (table["weight"] != 1)
        corrections.append(table[own & ~table["region"].isin(left_out - {dispute["chosen"] for dispute in disputes})])
        for dispute in disputes:
            here = [person for person in dispute["people"] if (person["project"], person["entry_id"]) == place]
            others = [person for person in here if person["region"] != dispute["chosen"]]
            if len(others) < len(here):
                without += [id_ for person in others for id_ in (person["region"], *person["objects"])]
            else:
                hidden += [person["region"] for person in others]
    weights = [pair for table in corrections for pair in _weights(table, source, loop.settings.match_um)]
    shapes = source.entry.read_objects().geometry.reindex(hidden).dropna().tolist() if hidden else []
    return TruthChanges(tuple(weights), tuple(shapes), tuple(without))


def _weights(corrections: gpd.GeoDataFrame, source: Source, radius_um: float) -> list[tuple[Any, float]]:
    """Return the areas of corrections with their weights; a point stands for a disc of a radius, µm."""
    if len(corrections) == 0:
        return []
    shapes = corrections.geometry.to_numpy()
    discs = shapely.buffer(shapes, radius_um / float(shown_mpp(source).mean()))
    areas = np.where(shapely.get_dimensions(shapes) == 0, discs, shapes)
    flat = [shapely.union_all([p for p in shapely.get_parts(a) if p.geom_type == "Polygon"]) for a in areas]
    pairs = zip(flat, corrections["weight"].tolist(), strict=True)
    return [(area, float(weight)) for area, weight in pairs if not area.is_empty]
