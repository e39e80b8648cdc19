"""Cells of one image against reference cells: points within a radius, outlines by their overlap, and the index."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import geopandas as gpd
import numpy as np
import pandas as pd
import shapely

from pyhisto.labels import clean_polygon
from pyhisto.metrics import (
    DetectionComparison,
    aggregated_jaccard,
    chance_detections,
    compare_detections,
    match_points,
    overlaps_of_polygons,
    panoptic_by_class,
    panoptic_quality,
)
from pyhisto.overlay.field import POSITIVE_CLASSES, nucleus_or_geometry
from qupath_ext.workflows.evaluation.areas import class_names, is_marker
from qupath_ext.workflows.evaluation.figures import ANY
from qupath_ext.workflows.evaluation.settings import EvaluationSettings

__all__ = [
    "EXCESS",
    "MISSED",
    "RIGHT",
    "WRONG_CLASS",
    "CellComparison",
    "Cells",
    "compare_cells",
    "match_cells",
    "to_cells",
]

RIGHT, WRONG_CLASS, EXCESS, MISSED = "right", "wrong class", "in excess", "missed"
"""What can be said of a cell of either side."""

SHIFTS, SHIFTED_CELLS = (2, 8), 20_000
"""How often the prediction is shifted to see what chance gives, and how many cells need no more than the least."""

Floats = np.ndarray[Any, np.dtype[np.float64]]
Objects = np.ndarray[Any, np.dtype[np.object_]]


@dataclass(frozen=True)
class Cells:
    """The cells of one side in the compared area, n of them.

    Attributes
    ----------
    ids
        Object ids, object (n,); the points of one annotation share theirs.
    um
        Centroids of the nuclei, or points, float64 (n, 2), µm in the frame that QuPath shows.
    classes
        Class names, object (n,).
    outlines
        Nuclei, or what outline there is, in µm; None where there is only a point, object (n,).
    probability
        Class probabilities, float64 (n,); NaN where there is none.
    """

    ids: Objects
    um: Floats
    classes: Objects
    outlines: Objects
    probability: Floats

    def __len__(self) -> int:
        return len(self.um)

    @property
    def outlined(self) -> bool:
        """Whether all cells have an outline."""
        return not shapely.is_missing(self.outlines).any()


def to_cells(
    objects: gpd.GeoDataFrame,
    settings: EvaluationSettings,
    *,
    area: Any,
    mpp: tuple[float, float],
    mapping: Mapping[str, str] | None = None,
) -> Cells:
    """Return the cells among some objects whose centroid lies in an area.

    Cells are detections, cells, point annotations (each point is one), and annotations with an outline of at most
    ``settings.largest_cell_um2``. What has a class of a region or one that ends in ``*`` is none.

    Parameters
    ----------
    objects
        Path-object table, px of the frame that QuPath shows.
    settings
        See :class:`.settings.EvaluationSettings`.
    area
        Polygons, µm.
    mpp
        µm to a pixel, (x, y).
    mapping
        Class to the class that it counts as.
    """
    names = class_names(objects, mapping)
    shapes = nucleus_or_geometry(objects)
    dimensions = shapely.get_dimensions(shapes)
    kind = objects["object_type"].astype(str).to_numpy()
    small = (dimensions == 2) & (shapely.area(shapes) * mpp[0] * mpp[1] <= settings.largest_cell_um2)
    chosen = np.isin(kind, ("detection", "cell")) & np.isin(dimensions, (0, 2))
    chosen |= (kind == "annotation") & (small | (dimensions == 0))
    chosen &= ~is_marker(names, settings) & ~shapely.is_empty(shapes)
    if settings.classes:
        chosen &= np.isin(names, settings.classes)
    rows = np.flatnonzero(chosen)
    is_point = dimensions[rows] == 0
    xy, source = shapely.get_coordinates(shapes[rows[is_point]], return_index=True)
    centroids = shapely.get_coordinates(shapely.centroid(shapes[rows[~is_point]]))
    um = np.concatenate([centroids, xy]) * mpp
    row = np.concatenate([rows[~is_point], rows[is_point][source]])
    shapely.prepare(area)
    inside = shapely.intersects_xy(area, *um.T)
    um, row = um[inside], row[inside]
    outlines = np.where(dimensions[row] == 2, shapes[row], None)
    probability = objects["class_probability"].to_numpy(float) if "class_probability" in objects else None
    return Cells(
        objects.index.to_numpy(dtype=object)[row],
        um,
        names[row],
        _valid(shapely.transform(outlines, lambda px: px * mpp)),
        np.full(len(row), np.nan) if probability is None else probability[row],
    )


def _valid(outlines: Objects) -> Objects:
    """Return outlines with those repaired that cross themselves; None where nothing of one is left."""
    for i in np.flatnonzero(~shapely.is_valid(outlines) & ~shapely.is_missing(outlines)):
        parts = clean_polygon(outlines[i])
        outlines[i] = shapely.union_all(parts) if parts else None
    return outlines


@dataclass(frozen=True)
class CellComparison:
    """What was counted on one image.

    Attributes
    ----------
    sums
        Class, or :data:`.figures.ANY`, to the sums of :data:`.figures.CELL_METRICS`.
    confusion
        (true class, found class) to cells; None for a cell that the other side lacks.
    probability, right
        Of each found cell with a class probability: the probability, and whether it is a true cell of its class.
    """

    sums: dict[str, dict[str, float]]
    confusion: dict[tuple[str | None, str | None], int]
    probability: Floats
    right: np.ndarray[Any, np.dtype[np.bool_]]


def compare_cells(found: Cells, truth: Cells, *, area: Any, radius_um: float) -> CellComparison:
    """Count what was rightly found, found in excess and missed.

    Parameters
    ----------
    found, truth
        Both sides.
    area
        The compared area, µm; has an area.
    radius_um
        Cells further apart are not the same.
    """
    classes = sorted({*found.classes, *truth.classes})
    points = (found.um, found.classes, truth.um, truth.classes)
    result = compare_detections(*points, classes=classes, radius=radius_um)
    shifts = int(np.clip(SHIFTED_CELLS // max(len(found), 1), *SHIFTS))
    chance = chance_detections(*points, classes=classes, radius=radius_um, area=area, shifts=shifts)
    sums = {ANY: _counts(result.overall, chance.overall) | _index_sums(found, "found") | _index_sums(truth, "true")}
    for name, score, luck in zip(classes, result.by_class, chance.by_class, strict=True):
        sums[name] = _counts(score, luck)
    if found.outlined and truth.outlined and len(found) + len(truth):
        for name, more in _instance_sums(found, truth, classes).items():
            sums[name] |= more
    known = ~np.isnan(found.probability)
    marks = match_cells(found, truth, radius_um) if known.any() else None
    right = np.zeros(0, dtype=bool) if marks is None else (marks["what"][: len(found)] == RIGHT).to_numpy()[known]
    return CellComparison(sums, _confusion(result), found.probability[known], right)


def _counts(score: Any, chance: Any) -> dict[str, float]:
    return {
        "tp": score.true_positive,
        "fp": score.false_positive,
        "fn": score.false_negative,
        "chance_tp": chance.true_positive,
        "chance_fp": chance.false_positive,
        "chance_fn": chance.false_negative,
    }


def _index_sums(cells: Cells, side: str) -> dict[str, float]:
    last = np.array([str(name).rpartition(": ")[2] for name in cells.classes], dtype=object)
    positive = int(np.isin(last, POSITIVE_CLASSES).sum())
    return {f"{side}_positive": positive, f"{side}_counted": positive + int((last == "Negative").sum())}


def _instance_sums(found: Cells, truth: Cells, classes: list[str]) -> dict[str, dict[str, float]]:
    """Return the sums of AJI and panoptic quality, regardless of class and of each class."""
    overlaps = overlaps_of_polygons(found.outlines, truth.outlines)
    quality = {ANY: panoptic_quality(overlaps)}
    by_class = panoptic_by_class(overlaps, found.classes, truth.classes, classes=classes)
    quality |= dict(zip(classes, by_class, strict=True))
    out = {}
    for name, score in quality.items():
        own = overlaps if name == ANY else overlaps.select(found.classes == name, truth.classes == name)
        common, union = aggregated_jaccard(own)
        out[name] = {
            "aji_common": common,
            "aji_union": union,
            "pq_tp": score.true_positive,
            "pq_fp": score.false_positive,
            "pq_fn": score.false_negative,
            "pq_iou": score.iou_sum,
        }
    return out


def _confusion(result: DetectionComparison) -> dict[tuple[str | None, str | None], int]:
    names = [*result.classes, None]
    rows, columns = np.nonzero(result.confusion)
    return {(names[i], names[j]): int(result.confusion[i, j]) for i, j in zip(rows, columns, strict=True)}


def match_cells(found: Cells, truth: Cells, radius_um: float) -> pd.DataFrame:
    """Say of each cell of both sides what became of it, those that were found first.

    Returns
    -------
    pandas.DataFrame
        ``side`` (``found`` or ``true``), ``id``, ``class``, ``x_um``, ``y_um``, ``what`` (:data:`RIGHT`,
        :data:`WRONG_CLASS`, :data:`EXCESS` or :data:`MISSED`), ``other_id`` and ``distance_um`` of the cell of the
        other side, matched regardless of class.
    """
    pairs = match_points(found.um, truth.um, radius_um)
    same = found.classes[pairs[:, 0]] == truth.classes[pairs[:, 1]]
    apart = np.hypot(*(found.um[pairs[:, 0]] - truth.um[pairs[:, 1]]).T)
    tables = []
    for cells, other, here, there, side in (
        (found, truth, pairs[:, 0], pairs[:, 1], "found"),
        (truth, found, pairs[:, 1], pairs[:, 0], "true"),
    ):
        what = np.full(len(cells), EXCESS if side == "found" else MISSED, dtype=object)
        what[here] = np.where(same, RIGHT, WRONG_CLASS)
        other_id, distance = np.full(len(cells), None, dtype=object), np.full(len(cells), np.nan)
        other_id[here], distance[here] = other.ids[there], apart
        tables.append(
            pd.DataFrame(
                {
                    "side": side,
                    "id": cells.ids,
                    "class": cells.classes,
                    "x_um": cells.um[:, 0],
                    "y_um": cells.um[:, 1],
                    "what": what,
                    "other_id": other_id,
                    "distance_um": distance,
                }
            )
        )
    return pd.concat(tables, ignore_index=True)
