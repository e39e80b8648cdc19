"""The worst cases as pictures: both sides drawn on the slide, with what is wrong marked, and the same field without."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import shapely

from pyhisto.errors import PyhistoError
from pyhisto.objects import make_objects
from pyhisto.overlay import Marks, draw_marks, encode_png
from qupath_ext.frames import open_slide, to_slide_frame
from qupath_ext.report.evaluation import Case
from qupath_ext.workflows.evaluation.cells import EXCESS, MISSED, WRONG_CLASS, Cells, match_cells
from qupath_ext.workflows.evaluation.compare import Evaluation, Sides, read_sides
from qupath_ext.workflows.evaluation.figures import ANY, ImageSums
from qupath_ext.workflows.evaluation.sources import Image
from qupath_ext.workflows.evaluation.tissue import Tissue

if TYPE_CHECKING:
    from qupath_ext.entry import ImageEntry
    from qupath_ext.project import Project

__all__ = ["FIELD_UM", "LEGENDS", "worst_cases"]

FIELD_UM = 120.0
"""Side of the field that is shown of cells, µm."""

PICTURE_PX = 640
TRUTH, FOUND, OTHER = (255, 214, 0), (0, 235, 255), (255, 40, 190)

LEGENDS = {
    "cells": (
        ("truth", "reference"),
        ("found", "prediction"),
        ("missed", "missed: only in the reference"),
        ("excess", "in excess: only in the prediction"),
        ("other", "found, but as another class"),
    ),
    "tissue": (
        ("truth", "outline of the reference"),
        ("found", "outline of the prediction"),
        ("shade-missed", "missed: only in the reference"),
        ("shade-excess", "in excess: only in the prediction"),
    ),
}
"""By task: kind of each sign, and what it means."""

Bounds = tuple[float, float, float, float]


@dataclass(frozen=True)
class _Field:
    """A rectangle, µm, what is wrong in it, and the marks, µm."""

    bounds: Bounds
    words: str
    marks: list[Marks]


def worst_cases(project: Project, evaluation: Evaluation) -> tuple[list[Case], list[str]]:
    """Return pictures of the worst cases, and why some could not be made.

    Images come in the order of errors times their share; each gives its fields with the most errors (cells), or one
    picture (tissue).
    """
    ranked = sorted(evaluation.images, key=_badness, reverse=True)
    wanted = [image for image in ranked if _badness(image) > 0][: evaluation.settings.worst]
    each = -(-evaluation.settings.worst // len(wanted)) if wanted else 0
    cases: list[Case] = []
    notes = []
    for sums in wanted:
        entry = project.entry(int(sums.entry_id))
        try:
            cases += _cases(project, entry, evaluation, min(each, evaluation.settings.worst - len(cases)))
        except PyhistoError as error:
            notes.append(f"No picture of {sums.name}: {error}")
    return cases, notes


def _badness(image: ImageSums) -> float:
    """Return errors times their share, summed over the classes."""
    wrong = right = 0.0
    for name, sums in image.by_class.items():
        if name != ANY and "tp" in sums:
            wrong += sums["fp"] + sums["fn"]
            right += 2 * sums["tp"]
        elif "common_um2" in sums:
            wrong += sums["found_um2"] + sums["true_um2"] - 2 * sums["common_um2"]
            right += 2 * sums["common_um2"]
    return wrong**2 / (wrong + right) if wrong else 0.0


def _cases(project: Project, entry: ImageEntry, evaluation: Evaluation, number: int) -> list[Case]:
    settings = evaluation.settings
    sides = read_sides(Image(project, entry), evaluation.prediction, evaluation.reference, settings)
    if isinstance(sides, str):
        return []
    if isinstance(sides.found, Cells) and isinstance(sides.truth, Cells):
        fields = _cell_fields(sides.found, sides.truth, sides.area.shape, settings.radius_um, number)
    elif isinstance(sides.found, Tissue) and isinstance(sides.truth, Tissue):
        fields = [_tissue_field(sides.found, sides.truth, sides.area.shape)]
    out = []
    with open_slide(entry, settings.mpp if entry.mpp is None else None) as slide:
        for field in fields:
            corners = _in_slide(np.array([shapely.box(*field.bounds)]), entry, sides)[0].bounds
            marks = [Marks(_in_slide(mark.shapes, entry, sides), mark.color, mark.style) for mark in field.marks]
            pictures = [
                encode_png(draw_marks(slide, drawn, bounds=corners, max_size=(PICTURE_PX, PICTURE_PX)))
                for drawn in (marks, [])
            ]
            out.append(Case(entry.name, field.words, *pictures))
    return out


def _in_slide(shapes: Any, entry: ImageEntry, sides: Sides) -> Any:
    """Return shapes in µm of the image's frame as level-0 px of its slide."""
    if len(shapes) == 0:
        return shapes
    pixels = shapely.transform(shapes, lambda um: um / sides.mpp)
    return to_slide_frame(make_objects(pixels, object_type="annotation"), entry).geometry.to_numpy()


# ---------------------------------------------------------------------- cells
def _cell_fields(found: Cells, truth: Cells, area: Any, radius_um: float, number: int) -> list[_Field]:
    """Return the fields with the most errors, none of which counts an error twice."""
    marked = match_cells(found, truth, radius_um)
    shapes = np.concatenate([_shown(found), _shown(truth)])
    at = marked[["x_um", "y_um"]].to_numpy()
    wrong = (marked["what"].isin([EXCESS, MISSED]) | _once(marked)).to_numpy()
    fields: list[_Field] = []
    while wrong.any() and len(fields) < number:
        bounds = _densest(at[wrong], area.bounds)
        inside = np.asarray(((at >= bounds[:2]) & (at <= bounds[2:])).all(axis=1))
        fields.append(
            _Field(bounds, _described(marked.iloc[np.flatnonzero(inside)]), _cell_marks(marked, shapes, inside))
        )
        wrong = wrong & ~inside
    return fields


def _shown(cells: Cells) -> Any:
    points: Any = shapely.points(cells.um)
    return np.where(shapely.is_missing(cells.outlines), points, cells.outlines)


def _once(marked: pd.DataFrame) -> pd.Series[bool]:
    """Say which rows are cells of another class, each pair once."""
    return (marked["what"] == WRONG_CLASS) & (marked["side"] == "true")


def _densest(points: Any, bounds: Bounds) -> Bounds:
    """Return the square field, to half its side, that holds the most points; the whole area where that is small."""
    low, high = np.array(bounds[:2]), np.array(bounds[2:])
    if (high - low).max() <= 1.5 * FIELD_UM:
        return bounds
    bins, n = np.unique(np.floor((points - low) / (FIELD_UM / 2)).astype(np.int64), axis=0, return_counts=True)
    count: dict[tuple[int, int], int] = {}
    for (i, j), k in zip(bins.tolist(), n.tolist(), strict=True):
        for corner in ((i, j), (i - 1, j), (i, j - 1), (i - 1, j - 1)):
            count[corner] = count.get(corner, 0) + k
    corner = max(count, key=lambda key: (count[key], key))
    start = np.clip(low + np.array(corner) * FIELD_UM / 2, low, np.maximum(high - FIELD_UM, low))
    end = np.minimum(start + FIELD_UM, high)
    return float(start[0]), float(start[1]), float(end[0]), float(end[1])


def _described(marked: pd.DataFrame) -> str:
    what = marked["what"].value_counts()
    other = int(_once(marked).sum())
    n = int((marked["side"] == "true").sum())
    words = f"{what.get(MISSED, 0)} of {n} reference cells missed, {what.get(EXCESS, 0)} found in excess"
    return f"{words}, {other} taken for another class." if other else f"{words}."


def _cell_marks(marked: pd.DataFrame, shapes: Any, inside: Any) -> list[Marks]:
    of = {
        "true": (marked["side"] == "true").to_numpy() & inside,
        "found": (marked["side"] == "found").to_numpy() & inside,
        "missed": (marked["what"] == MISSED).to_numpy() & inside,
        "excess": (marked["what"] == EXCESS).to_numpy() & inside,
        "other": _once(marked).to_numpy() & inside,
    }
    return [
        Marks(shapes[of["true"]], TRUTH, "outline"),
        Marks(shapes[of["found"]], FOUND, "outline"),
        Marks(shapes[of["missed"]], TRUTH, "ring"),
        Marks(shapes[of["excess"]], FOUND, "cross"),
        Marks(shapes[of["other"]], OTHER, "square"),
    ]


# ---------------------------------------------------------------------- tissue
def _tissue_field(found: Tissue, truth: Tissue, area: Any) -> _Field:
    """Return what both sides cover, with a margin; where their classes differ is shaded."""
    classes = sorted({*found.classes, *truth.classes} - {""})
    mine = [found.of([name], area) for name in classes]
    theirs = [truth.of([name], area) for name in classes]
    excess = [shapely.difference(a, b) for a, b in zip(mine, theirs, strict=True)]
    missed = [shapely.difference(b, a) for a, b in zip(mine, theirs, strict=True)]
    x0, y0, x1, y1 = shapely.total_bounds(np.array([*mine, *theirs], dtype=object))
    margin = 0.06 * max(x1 - x0, y1 - y0)
    words = "; ".join(
        f"{name}: {m.area / 1e6:.3f} mm² missed, {e.area / 1e6:.3f} mm² in excess of {b.area / 1e6:.3f} mm²"
        for name, m, e, b in zip(classes, missed, excess, theirs, strict=True)
    )
    marks = [
        Marks(_areas(missed), TRUTH, "shade"),
        Marks(_areas(excess), FOUND, "shade"),
        Marks(_areas(theirs), TRUTH, "outline"),
        Marks(_areas(mine), FOUND, "outline"),
    ]
    return _Field((x0 - margin, y0 - margin, x1 + margin, y1 + margin), f"{words}.", marks)


def _areas(shapes: list[Any]) -> Any:
    """Return the polygons of some geometries, object (n,)."""
    parts = shapely.get_parts(shapely.get_parts(np.array(shapes, dtype=object)))
    return parts[shapely.area(parts) > 0]
