"""Areas against true areas: confusion, Dice, IoU and distances of borders, from label maps and from polygons."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import shapely

from pyhisto.errors import ConfigError
from pyhisto.metrics.counts import Counts

__all__ = [
    "AreaScore",
    "area_scores",
    "confusion_matrix",
    "dice",
    "hausdorff_um",
    "polygon_confusion",
    "polygon_hausdorff_um",
    "polygon_score",
]


class AreaScore(Counts):
    """Areas rightly found, wrongly found and missed, in pixels or square units of the frame.

    Precision and recall come from :class:`Counts`. Everything is 1 if both areas are empty and 0 if one is.
    """

    @property
    def dice(self) -> float:
        """Dice coefficient (Dice 1945): 2 TP / (2 TP + FP + FN)."""
        return self.f1

    @property
    def iou(self) -> float:
        """Intersection over union (Jaccard 1912): TP / (TP + FP + FN)."""
        return self._share(self.true_positive, self.true_positive + self.false_positive + self.false_negative)


def dice(found: Any, truth: Any) -> float:
    """Return the Dice coefficient of two areas (Dice 1945): 2 |A ∩ B| / (|A| + |B|); 1 if both are empty.

    Parameters
    ----------
    found, truth
        shapely Polygons or MultiPolygons in one frame.

    Examples
    --------
    >>> import shapely
    >>> dice(shapely.box(0, 0, 2, 1), shapely.box(1, 0, 3, 1))
    0.5
    """
    return polygon_score(found, truth).dice


def polygon_score(found: Any, truth: Any, *, area: Any = None) -> AreaScore:
    """Return how two areas overlap, exactly and without pixels.

    Parameters
    ----------
    found, truth
        shapely Polygons or MultiPolygons in one frame; either may be empty.
    area
        Polygon or MultiPolygon to which both are cut; None for everywhere.
    """
    if area is not None:
        found, truth = shapely.intersection(found, area), shapely.intersection(truth, area)
    both = float(shapely.area(shapely.intersection(found, truth)))
    return AreaScore(both, max(0.0, float(found.area) - both), max(0.0, float(truth.area) - both))


def confusion_matrix(
    found: npt.NDArray[np.integer[Any]], truth: npt.NDArray[np.integer[Any]], classes: int, *, ignored: int = 255
) -> npt.NDArray[np.int64]:
    """Count pixels by true and found class.

    Parameters
    ----------
    found, truth
        Integer label maps of one shape, numbers 0 to `classes` - 1.
    classes
        Number of classes with background.
    ignored
        Label in `truth` of pixels that do not count.

    Returns
    -------
    numpy.ndarray
        int64 (classes, classes), rows are true classes, columns found ones; all 0 where no pixel counts. Matrices of
        several images can be added.

    Raises
    ------
    ConfigError
        If the shapes differ or a label is no class.
    """
    if found.shape != truth.shape:
        raise ConfigError(f"label maps of shape {found.shape} and {truth.shape}", expected="one shape")
    counted = truth != ignored
    a, b = found[counted].astype(np.int64), truth[counted].astype(np.int64)
    if a.size and (min(a.min(), b.min()) < 0 or max(a.max(), b.max()) >= classes):
        raise ConfigError(
            f"labels from {min(a.min(), b.min())} to {max(a.max(), b.max())}", expected=f"0 to {classes - 1}"
        )
    return np.bincount(b * classes + a, minlength=classes**2).reshape(classes, classes)


def area_scores(confusion: npt.NDArray[Any]) -> tuple[AreaScore, ...]:
    """Return the score of each class, class against all others, from a confusion matrix of pixels or areas.

    Parameters
    ----------
    confusion
        (C, C), rows are true classes, columns found ones, as :func:`confusion_matrix` and :func:`polygon_confusion`
        give it.
    """
    right = np.diagonal(confusion)
    wrong, missed = confusion.sum(axis=0) - right, confusion.sum(axis=1) - right
    return tuple(AreaScore(*(entry.item() for entry in entries)) for entries in zip(right, wrong, missed, strict=True))


def polygon_confusion(
    found: Sequence[Any] | npt.NDArray[Any],
    found_classes: Sequence[int] | npt.NDArray[np.integer[Any]],
    truth: Sequence[Any] | npt.NDArray[Any],
    true_classes: Sequence[int] | npt.NDArray[np.integer[Any]],
    *,
    classes: int,
    area: Any,
) -> npt.NDArray[np.float64]:
    """Return the confusion matrix of two annotated areas, in exact areas of polygons, without pixels.

    Where polygons of one side overlap, the later one wins, as in label masks.

    Parameters
    ----------
    found, truth
        shapely Polygons or MultiPolygons in one frame.
    found_classes, true_classes
        Class number of each, 0 (background, which cuts a hole into earlier ones) to `classes` - 1.
    classes
        Number of classes with background.
    area
        Polygon or MultiPolygon that is evaluated. What no polygon covers in it is background; what lies outside does
        not count, and parts to be ignored are to be cut out of it.

    Returns
    -------
    numpy.ndarray
        float64 (classes, classes), square units of the frame, rows are true classes, columns found ones; the sum is
        the size of `area`, all 0 if that is empty.

    Raises
    ------
    ConfigError
        If a polygon is missing or invalid, or a class number is out of range.
    """
    a, a_class = _visible(found, found_classes, classes, area)
    b, b_class = _visible(truth, true_classes, classes, area)
    x, y = shapely.STRtree(b).query(a, predicate="intersects")
    confusion = np.zeros((classes, classes))
    np.add.at(confusion, (b_class[y], a_class[x]), shapely.area(shapely.intersection(a[x], b[y])))
    of_found = np.bincount(a_class, weights=shapely.area(a), minlength=classes)
    of_truth = np.bincount(b_class, weights=shapely.area(b), minlength=classes)
    inner = confusion[1:, 1:]
    confusion[1:, 0] = of_truth[1:] - inner.sum(axis=1)
    confusion[0, 1:] = of_found[1:] - inner.sum(axis=0)
    confusion[0, 0] = 0.0
    confusion[0, 0] = float(area.area) - confusion.sum()
    return np.maximum(confusion, 0.0)


def hausdorff_um(
    found: npt.NDArray[np.bool_],
    truth: npt.NDArray[np.bool_],
    *,
    mpp: tuple[float, float],
    percentile: float = 100.0,
    ignored: npt.NDArray[np.bool_] | None = None,
) -> float:
    """Return the Hausdorff distance of the borders of two masks, in µm, as MONAI computes it.

    The larger of the two directed distances; with ``percentile=95`` it is the 95 % Hausdorff distance (Huttenlocher
    et al. 1993; Taha & Hanbury 2015). Border pixels are those of a mask that touch its background; a mask also ends at
    the edge of the image.

    Parameters
    ----------
    found, truth
        bool (H, W).
    mpp
        Size of a pixel in µm, (x, y).
    percentile
        Of the distances from each border pixel to the nearest one of the other border, in (0, 100].
    ignored
        bool (H, W): pixels taken as background in both masks, which then both end there.

    Returns
    -------
    float
        0 if both masks are empty, infinity if one is.

    Raises
    ------
    ConfigError
        If the shapes differ, or the pixel size or the percentile is out of range.
    """
    if found.ndim != 2 or found.shape != truth.shape or (ignored is not None and ignored.shape != truth.shape):
        raise ConfigError(f"masks of shape {found.shape} and {truth.shape}", expected="one shape (H, W)")
    _check_border(mpp, percentile)
    if ignored is not None:
        found, truth = found & ~ignored, truth & ~ignored
    if not found.any() or not truth.any():
        return 0.0 if found.any() == truth.any() else float("inf")
    import torch
    from monai.metrics import compute_hausdorff_distance

    masks = [torch.from_numpy(np.ascontiguousarray(mask[None, None], dtype=np.float32)) for mask in (found, truth)]
    with warnings.catch_warnings():
        # MONAI 1.6 warns of an argument that its own code passes.
        warnings.filterwarnings("ignore", ".*always_return_as_numpy", FutureWarning)
        distance = compute_hausdorff_distance(
            masks[0], masks[1], include_background=True, percentile=percentile, spacing=(mpp[1], mpp[0])
        )
    return float(distance)


def polygon_hausdorff_um(
    found: Any, truth: Any, *, mpp: tuple[float, float], percentile: float = 100.0, step_um: float = 1.0
) -> float:
    """Return the Hausdorff distance of the borders of two areas, in µm, without pixels.

    Points stand on each border in equal steps, holes included; their distance to the other border is exact. The result
    is the larger of the two directed percentiles; the directed distances miss at most half a step.

    Parameters
    ----------
    found, truth
        shapely Polygons or MultiPolygons in one frame, in pixels.
    mpp
        Size of a pixel in µm, (x, y).
    percentile
        In (0, 100]; of border length, so that 95 means that 95 % of the border is no farther than the result.
    step_um
        Largest distance of neighbouring points along a border.

    Returns
    -------
    float
        0 if both areas are empty, infinity if one is.

    Raises
    ------
    ConfigError
        If the pixel size, the percentile or the step is out of range.
    """
    _check_border(mpp, percentile)
    if not step_um > 0:
        raise ConfigError(f"a step of {step_um} µm", expected="a positive number")
    if found.is_empty or truth.is_empty:
        return 0.0 if found.is_empty and truth.is_empty else float("inf")
    a, b = (_segments(geometry, mpp) for geometry in (found, truth))
    return max(_directed(a, b, percentile, step_um), _directed(b, a, percentile, step_um))


def _check_border(mpp: tuple[float, float], percentile: float) -> None:
    if not min(mpp) > 0:
        raise ConfigError(f"a pixel of {mpp[0]} × {mpp[1]} µm", expected="positive sizes")
    if not 0 < percentile <= 100:
        raise ConfigError(f"percentile {percentile}", expected="above 0, at most 100")


def _segments(geometry: Any, mpp: tuple[float, float]) -> npt.NDArray[np.float64]:
    """Return the straight pieces of all rings in µm, (n, 2 ends, xy)."""
    rings = shapely.get_rings(shapely.get_parts(geometry))
    points, ring = shapely.get_coordinates(rings, return_index=True)
    same = ring[:-1] == ring[1:]
    pieces = np.stack([points[:-1][same], points[1:][same]], axis=1) * np.array(mpp)
    long: npt.NDArray[np.float64] = pieces[(pieces[:, 0] != pieces[:, 1]).any(axis=1)]
    return long


def _directed(
    start: npt.NDArray[np.float64], goal: npt.NDArray[np.float64], percentile: float, step_um: float
) -> float:
    """Return the percentile of the distances from points on one border to the other border."""
    length = np.linalg.norm(start[:, 1] - start[:, 0], axis=1)
    parts = np.ceil(length / step_um).astype(np.int64)
    piece = np.repeat(np.arange(len(start)), parts)
    place = (np.arange(len(piece)) - np.repeat(np.cumsum(parts) - parts, parts)) / parts[piece]
    points = start[piece, 0] + place[:, None] * (start[piece, 1] - start[piece, 0])
    lines: npt.NDArray[Any] = np.asarray(shapely.linestrings(goal))
    (index, _), distance = shapely.STRtree(lines).query_nearest(
        shapely.points(points), return_distance=True, all_matches=False
    )
    weight = (length / parts)[piece][index]
    order = np.argsort(distance)
    reached = np.cumsum(weight[order]) / weight.sum()
    last = min(int(np.searchsorted(reached, percentile / 100 - 1e-9)), len(order) - 1)
    return float(distance[order][last])


def _visible(
    geometries: Sequence[Any] | npt.NDArray[Any],
    numbers: Sequence[int] | npt.NDArray[np.integer[Any]],
    classes: int,
    area: Any,
) -> tuple[npt.NDArray[Any], npt.NDArray[np.int64]]:
    """Return what later polygons leave of each inside the area, as polygons without overlaps, with their classes."""
    polygons: npt.NDArray[Any] = np.asarray(geometries, dtype=object).ravel()
    number = np.asarray(numbers, dtype=np.int64).ravel()
    if len(number) != len(polygons) or (len(number) and not 0 <= number.min() <= number.max() < classes):
        raise ConfigError(
            f"{len(number)} class numbers for {len(polygons)} polygons", expected=f"one of 0 to {classes - 1} for each"
        )
    bad = ~np.isin(shapely.get_type_id(polygons), (3, 6)) | ~shapely.is_valid(polygons)
    if bad.any():
        raise ConfigError(
            f"{bad.sum()} of {len(polygons)} polygons are missing or invalid",
            expected="valid polygons",
            remedy="repair them with shapely.make_valid or leave them out",
        )
    visible = polygons.copy()
    earlier, later = shapely.STRtree(polygons).query(polygons, predicate="intersects")
    earlier, later = earlier[later > earlier], later[later > earlier]
    while len(earlier):  # the first cover of each polygon in one call, then the second of each, ...
        hidden, first = np.unique(earlier, return_index=True)
        visible[hidden] = shapely.difference(visible[hidden], polygons[later[first]])
        earlier, later = np.delete(earlier, first), np.delete(later, first)
    shapely.prepare(area)
    cut = ~shapely.contains_properly(area, visible)
    visible[cut] = shapely.intersection(visible[cut], area)
    parts, place = shapely.get_parts(visible, return_index=True)
    areal = shapely.get_type_id(parts) == 3
    return parts[areal], number[place[areal]]
