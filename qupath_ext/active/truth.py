"""What the answers of a loop mean for its training: which areas weigh more, and what is left out."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import geopandas as gpd
import numpy as np
import shapely

from pyhisto.dataset import TrainingImage, WeightedArea
from pyhisto.objects import concat_objects, make_objects
from qupath_ext.active.annotators import disputes_of, latest
from qupath_ext.active.answers import shown_mpp
from qupath_ext.frames import to_slide_frame
from qupath_ext.workflows.regions import IGNORE_CLASS
from qupath_ext.workflows.trainingdata import Source

if TYPE_CHECKING:
    from qupath_ext.active.loop import Loop

__all__ = ["TruthChanges", "amended", "disputed", "truth_changes"]


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
    number, entry_id = loop.number_of(source.project), source.entry.id
    known = [one for one in loop.rounds() if "collected" in one.record and (until is None or one.number <= until)]
    disputes = latest(dispute for one in known for dispute in disputes_of(one.record))
    left_out = {person["region"] for dispute in disputes for person in dispute["people"]}
    left_out -= {dispute["chosen"] for dispute in disputes}
    corrections: list[gpd.GeoDataFrame] = []
    for one in known:
        table = one.table("corrections")
        own = (table["project"] == number) & (table["entry_id"] == entry_id) & (table["weight"] != 1)
        corrections.append(table[own & ~table["region"].isin(left_out)])
    weights = [pair for table in corrections for pair in _weights(table, source, loop.settings.match_um)]
    return dataclasses.replace(disputed(disputes, source, number), weights=tuple(weights))


def disputed(disputes: Sequence[Mapping[str, Any]], source: Source, number: int) -> TruthChanges:
    """Return what it changes in an image that several persons went through the same regions.

    Parameters
    ----------
    disputes
        See :func:`qupath_ext.active.annotators.disagreements`.
    source
        The image.
    number
        Of its project in the loop.
    """
    hidden: list[str] = []
    without: list[str] = []
    for dispute in disputes:
        here = [p for p in dispute["people"] if (p["project"], p["entry_id"]) == (number, source.entry.id)]
        others = [person for person in here if person["region"] != dispute["chosen"]]
        if len(others) < len(here):
            without += [id_ for person in others for id_ in (person["region"], *person["objects"])]
        else:
            hidden += [person["region"] for person in others]
    shapes = source.entry.read_objects().geometry.reindex(hidden).dropna().tolist() if hidden else []
    return TruthChanges((), tuple(shapes), tuple(without))


def amended(image: TrainingImage, source: Source, changes: TruthChanges) -> TrainingImage:
    """Return an image of a training with what is changed of its truth."""
    hidden = make_objects(list(changes.hidden), object_type="annotation", classification=IGNORE_CLASS)
    objects = image.objects.drop(index=[name for name in changes.without if name in image.objects.index])
    areas = make_objects([area for area, _ in changes.weights], object_type="annotation")
    shapes = to_slide_frame(areas, source.entry).geometry
    weights = tuple(WeightedArea(shape, weight) for shape, (_, weight) in zip(shapes, changes.weights, strict=True))
    if len(hidden):
        objects = concat_objects([objects, to_slide_frame(hidden, source.entry)])
    return dataclasses.replace(image, objects=objects, weights=weights)


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
