"""Detected cells against true points: one-to-one matches, classes, and what chance would give."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.spatial
import shapely

from pyhisto.errors import ConfigError
from pyhisto.metrics.counts import Counts
from pyhisto.metrics.matching import one_to_one

__all__ = [
    "DetectionComparison",
    "DetectionScore",
    "chance_detections",
    "compare_detections",
    "match_points",
    "score_detections",
    "shift_points",
]

PLASTIC = 1.32471795724474602596


class DetectionScore(Counts):
    """Counts of a one-to-one match, with precision, recall and F1; see :class:`Counts` for what is empty.

    The counts are whole numbers, except those of :func:`chance_detections`, which are means.
    """


@dataclass(frozen=True, eq=False)
class DetectionComparison:
    """Detections against true points, regardless of classes and class by class.

    Two of them with the same classes can be added, which pools images.

    Attributes
    ----------
    classes
        Names of the C classes.
    overall
        Regardless of classes.
    by_class
        C scores: points of one class alone, matched among themselves.
    confusion
        float64 (C + 1, C + 1), rows are true classes, columns found classes, of the pairs that are matched regardless
        of class. The last row counts spurious detections, the last column missed points; the corner is 0.
    """

    classes: tuple[str, ...]
    overall: DetectionScore
    by_class: tuple[DetectionScore, ...]
    confusion: npt.NDArray[np.float64]

    def __add__(self, other: DetectionComparison) -> DetectionComparison:
        """Pool two results.

        Raises
        ------
        ConfigError
            If the classes differ.
        """
        if self.classes != other.classes:
            raise ConfigError(
                f"a result with the classes {', '.join(other.classes)}", expected=f"{', '.join(self.classes)}, to pool"
            )
        scores = tuple(a + b for a, b in zip(self.by_class, other.by_class, strict=True))
        return DetectionComparison(self.classes, self.overall + other.overall, scores, self.confusion + other.confusion)


def match_points(
    found: npt.NDArray[np.float64], truth: npt.NDArray[np.float64], radius: float
) -> npt.NDArray[np.int64]:
    """Pair points one to one: as many pairs as possible within `radius`, and among those the least total distance.

    Parameters
    ----------
    found, truth
        Shapes (n, 2) and (m, 2), one frame and unit.
    radius
        Largest distance of a pair, same unit; positive. A pair that far apart counts.

    Returns
    -------
    numpy.ndarray
        int64, shape (pairs, 2): indices into `found` and `truth`; (0, 2) if either is empty.

    Raises
    ------
    ConfigError
        If the radius is not positive, or points are not (n, 2) and finite.

    Notes
    -----
    Optimal assignment (Crouse 2016) within each group of points that are in reach of one another.

    Examples
    --------
    >>> match_points(np.array([[0.0, 0.0], [2.0, 0.0]]), np.array([[1.0, 0.0], [9.0, 9.0]]), 1.5).tolist()
    [[0, 0]]
    """
    if not radius > 0 or not np.isfinite(radius):
        raise ConfigError(f"a radius of {radius}", expected="a positive number")
    _check_points(found)
    _check_points(truth)
    if len(found) == 0 or len(truth) == 0:
        return np.empty((0, 2), dtype=np.int64)
    tree = scipy.spatial.cKDTree(truth)
    near = scipy.spatial.cKDTree(found).sparse_distance_matrix(tree, radius, output_type="coo_matrix")
    chosen = one_to_one(near.row, near.col, near.data)
    return np.column_stack([near.row[chosen], near.col[chosen]]).astype(np.int64)


def score_detections(found: npt.NDArray[np.float64], truth: npt.NDArray[np.float64], radius: float) -> DetectionScore:
    """Return how well detections hit true points; see :func:`match_points`."""
    pairs = len(match_points(found, truth, radius))
    return DetectionScore(pairs, len(found) - pairs, len(truth) - pairs)


def compare_detections(
    found: npt.NDArray[np.float64],
    found_classes: Sequence[str] | npt.NDArray[Any],
    truth: npt.NDArray[np.float64],
    truth_classes: Sequence[str] | npt.NDArray[Any],
    *,
    classes: Sequence[str],
    radius: float,
) -> DetectionComparison:
    """Match detections with true points regardless of class, and once more within each class.

    A detection of the wrong class is therefore spurious in its own class and leaves a point of the other one missed,
    as in the detection scores of each class that are usual in the field; the confusion table shows how often.

    Parameters
    ----------
    found, truth
        Shapes (n, 2) and (m, 2), one frame and unit.
    found_classes, truth_classes
        Class name of each point.
    classes
        Names of the classes, in the order of the result; every point is of one of them.
    radius
        Largest distance of a pair, same unit; positive.

    Raises
    ------
    ConfigError
        If a point is of no class of the list, the names do not fit the points, or as in :func:`match_points`.
    """
    names = tuple(classes)
    found_number = _numbers(found_classes, names, len(found))
    truth_number = _numbers(truth_classes, names, len(truth))
    pairs = match_points(found, truth, radius)
    confusion = np.zeros((len(names) + 1,) * 2)
    np.add.at(confusion, (truth_number[pairs[:, 1]], found_number[pairs[:, 0]]), 1)
    confusion[-1, :-1] = np.bincount(found_number, minlength=len(names)) - confusion[:-1, :-1].sum(axis=0)
    confusion[:-1, -1] = np.bincount(truth_number, minlength=len(names)) - confusion[:-1, :-1].sum(axis=1)
    by_class = tuple(
        score_detections(found[found_number == number], truth[truth_number == number], radius)
        for number in range(len(names))
    )
    overall = DetectionScore(len(pairs), len(found) - len(pairs), len(truth) - len(pairs))
    return DetectionComparison(names, overall, by_class, confusion)


def chance_detections(
    found: npt.NDArray[np.float64],
    found_classes: Sequence[str] | npt.NDArray[Any],
    truth: npt.NDArray[np.float64],
    truth_classes: Sequence[str] | npt.NDArray[Any],
    *,
    classes: Sequence[str],
    radius: float,
    area: Any,
    shifts: int = 8,
) -> DetectionComparison:
    """Return what :func:`compare_detections` gives by chance: for the same detections, shifted within the area.

    The counts are means over the shifts. Since no shift changes how many points there are, precision, recall and F1
    of the mean counts are the means of the precisions, recalls and F1 of the shifts, also after pooling images.

    Parameters
    ----------
    found, found_classes, truth, truth_classes, classes, radius
        As in :func:`compare_detections`.
    area
        Evaluated area, in which all detections lie; see :func:`shift_points`.
    shifts
        How many fixed offsets.

    Raises
    ------
    ConfigError
        As :func:`compare_detections` and :func:`shift_points`, or if `shifts` is below 1.
    """
    if shifts < 1:
        raise ConfigError(f"{shifts} shifts", expected="1 or more")
    results = []
    for k in range(1, shifts + 1):
        moved = shift_points(found, area, k)
        results.append(compare_detections(moved, found_classes, truth, truth_classes, classes=classes, radius=radius))
    total = results[0]
    for result in results[1:]:
        total = total + result
    by_class = tuple(_mean(score, shifts) for score in total.by_class)
    return DetectionComparison(total.classes, _mean(total.overall, shifts), by_class, total.confusion / shifts)


def shift_points(points: npt.NDArray[np.float64], area: Any, number: int) -> npt.NDArray[np.float64]:
    """Shift points cyclically within an area: what leaves on one side comes in on the other.

    Each part of the area is shifted in its own bounding box. A point that lands outside the part is shifted again
    until it is inside: the first return of a shift on a torus, which like the shift itself keeps densities (Kac 1947).

    Parameters
    ----------
    points
        float (n, 2), inside the area or on its border; (0, 2) is returned as it is.
    area
        shapely Polygon or MultiPolygon without overlaps, same frame.
    number
        Which offset, 1 or more: fractions of the width and height of the bounding box from the R2 sequence (Roberts
        2018), (number / p, number / p²) modulo 1 with p = 1.3247... It fills the box evenly, and its first ones stay
        away from no shift at all.

    Returns
    -------
    numpy.ndarray
        float64 (n, 2), inside the area, in the order of `points`.

    Raises
    ------
    ConfigError
        If the area is no valid polygon or has no extent, a point lies outside it, or the number is below 1.
    """
    if shapely.get_type_id(area) not in {3, 6} or not shapely.is_valid(area) or not area.area > 0:
        raise ConfigError("the evaluated area is no valid polygon", expected="a Polygon or MultiPolygon with an area")
    if number < 1:
        raise ConfigError(f"offset number {number}", expected="1 or more")
    _check_points(points)
    fraction = np.array([number / PLASTIC, number / PLASTIC**2]) % 1.0
    moved = np.array(points, dtype=np.float64)
    todo = np.ones(len(moved), dtype=bool)
    for part in shapely.get_parts(area):
        shapely.prepare(part)
        inside = todo & shapely.intersects_xy(part, *moved.T)
        todo &= ~inside
        low, size = np.array(part.bounds[:2]), np.subtract(part.bounds[2:], part.bounds[:2])
        waiting = np.flatnonzero(inside)
        while len(waiting):
            moved[waiting] = low + np.mod((moved[waiting] - low) / size + fraction, 1.0) * size
            waiting = waiting[~shapely.intersects_xy(part, *moved[waiting].T)]
    if todo.any():
        raise ConfigError(
            f"{todo.sum()} of {len(points)} points lie outside the evaluated area", remedy="leave them out of both"
        )
    return moved


def _mean(score: DetectionScore, n: int) -> DetectionScore:
    return DetectionScore(score.true_positive / n, score.false_positive / n, score.false_negative / n)


def _numbers(classes: Sequence[str] | npt.NDArray[Any], names: tuple[str, ...], points: int) -> npt.NDArray[np.int64]:
    """Return the place of each point's class in the list of names."""
    if len(classes) != points:
        raise ConfigError(f"{len(classes)} classes for {points} points", expected="one for each")
    place = {name: number for number, name in enumerate(names)}
    unknown = sorted({str(name) for name in classes if name not in place})
    if unknown:
        raise ConfigError(f"points of {', '.join(unknown)}", expected=f"only the classes {', '.join(names)}")
    return np.array([place[name] for name in classes], dtype=np.int64)


def _check_points(points: npt.NDArray[np.float64]) -> None:
    if points.ndim != 2 or points.shape[1] != 2 or not np.isfinite(points).all():
        raise ConfigError(f"points of shape {points.shape}", expected="(n, 2), all finite")
