"""Areas of one image against reference areas: overlap, confusion, and the distance of their borders."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import geopandas as gpd
import numpy as np
import shapely

from pyhisto.labels import clean_polygon
from pyhisto.metrics import polygon_confusion, polygon_hausdorff_um
from qupath_ext.workflows.evaluation.areas import class_names, is_marker
from qupath_ext.workflows.evaluation.settings import UNCLASSIFIED, EvaluationSettings

__all__ = ["Tissue", "TissueComparison", "compare_tissue", "to_tissue"]

Objects = np.ndarray[Any, np.dtype[np.object_]]

MOST_BORDER_POINTS = 500_000
"""Borders are walked in steps of 1 µm, in longer ones where that would be more points than this."""


@dataclass(frozen=True)
class Tissue:
    """The areas of one side, in the order in which a later one lies on those before.

    Attributes
    ----------
    shapes
        Polygons in µm of the frame that QuPath shows, object (n,).
    classes
        Class names, object (n,).
    """

    shapes: Objects
    classes: Objects

    def of(self, names: Sequence[str], area: Any) -> Any:
        """Return what areas of some classes cover of an area."""
        chosen = self.shapes[np.isin(self.classes, list(names))]
        return shapely.intersection(shapely.union_all(chosen), area)


def to_tissue(
    objects: gpd.GeoDataFrame,
    settings: EvaluationSettings,
    *,
    mpp: tuple[float, float],
    mapping: Mapping[str, str] | None = None,
) -> Tissue:
    """Return the annotated areas among some objects.

    What has no class, that of a region or one that ends in ``*`` is none. If ``settings.classes`` are given, the
    classes derived from one of them (``"Tumor: x"``) belong to it, and others are background that hides what is below.

    Parameters
    ----------
    objects
        Path-object table, px of the frame that QuPath shows.
    settings
        See :class:`.settings.EvaluationSettings`.
    mpp
        µm to a pixel, (x, y).
    mapping
        Class to the class that it counts as.
    """
    names = class_names(objects, mapping)
    shapes = objects.geometry.to_numpy()
    chosen = (objects["object_type"] == "annotation").to_numpy() & (shapely.get_dimensions(shapes) == 2)
    chosen &= ~is_marker(names, settings) & (names != UNCLASSIFIED) & ~shapely.is_empty(shapes)
    parts = [clean_polygon(shape) for shape in shapely.transform(shapes[chosen], lambda px: px * mpp)]
    number = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
    polygons = np.empty(len(number), dtype=object)
    polygons[:] = [polygon for part in parts for polygon in part]
    return Tissue(polygons, np.array([_base(name, settings.classes) for name in names[chosen]], dtype=object)[number])


def _base(name: str, classes: Sequence[str]) -> str:
    """Return the class of a list that a class belongs to; an empty name if none, the class itself without a list."""
    if not classes:
        return name
    return next((base for base in classes if name == base or name.startswith(f"{base}: ")), "")


@dataclass(frozen=True)
class TissueComparison:
    """What was measured on one image.

    Attributes
    ----------
    sums
        Class to the sums of :data:`.figures.TISSUE_METRICS`.
    confusion
        (true class, found class) to µm²; None is the background.
    """

    sums: dict[str, dict[str, float]]
    confusion: dict[tuple[str | None, str | None], float]


def compare_tissue(found: Tissue, truth: Tissue, *, area: Any) -> TissueComparison:
    """Measure the overlap of each class in an area, and how far borders are apart where both sides have the class.

    Parameters
    ----------
    found, truth
        Both sides.
    area
        The compared area, µm.
    """
    classes = sorted({*found.classes, *truth.classes} - {""})
    number = {"": 0, **{name: place for place, name in enumerate(classes, start=1)}}
    numbers = [[number[name] for name in side.classes] for side in (found, truth)]
    table = polygon_confusion(found.shapes, numbers[0], truth.shapes, numbers[1], classes=len(classes) + 1, area=area)
    sums = {}
    for place, name in enumerate(classes, start=1):
        sums[name] = {
            "common_um2": float(table[place, place]),
            "found_um2": float(table[:, place].sum()),
            "true_um2": float(table[place].sum()),
        }
        if sums[name]["found_um2"] > 0 and sums[name]["true_um2"] > 0:
            sums[name] |= _distances(found.of([name], area), truth.of([name], area))
    labels = [None, *classes]
    cells = {(labels[i], labels[j]): float(table[i, j]) for i, j in zip(*np.nonzero(table), strict=True)}
    return TissueComparison(sums, cells)


def _distances(found: Any, truth: Any) -> dict[str, float]:
    """Return the Hausdorff distances of two areas in µm, and that they were measured once."""
    step = max(1.0, (found.length + truth.length) / MOST_BORDER_POINTS)
    of = {"hausdorff_um": 100.0, "hausdorff95_um": 95.0}
    both = {
        name: polygon_hausdorff_um(found, truth, mpp=(1.0, 1.0), percentile=percentile, step_um=step)
        for name, percentile in of.items()
    }
    return {**both, "hausdorff_n": 1.0}
