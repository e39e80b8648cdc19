"""Instances against true instances: aggregated Jaccard index and panoptic quality, from one sparse overlap table."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import shapely

from pyhisto.errors import ConfigError
from pyhisto.metrics.counts import Counts
from pyhisto.metrics.matching import one_to_one

__all__ = [
    "Overlaps",
    "PanopticQuality",
    "aggregated_jaccard",
    "aji",
    "match_instances",
    "multiclass_panoptic_quality",
    "overlaps_of_labels",
    "overlaps_of_polygons",
    "panoptic_by_class",
    "panoptic_quality",
]


@dataclass(frozen=True, eq=False)
class Overlaps:
    """Which instances overlap which true ones, and by how much: n found, m true, k pairs that overlap.

    Attributes
    ----------
    found_ids, true_ids
        int64 (n,) and (m,): label in the map, or position in the sequence of polygons.
    found_areas, true_areas
        float64 (n,) and (m,), px² of the label map or square units of the polygons' frame; all positive.
    pairs
        int64 (k, 2): indices into the found and into the true instances, sorted.
    intersections
        float64 (k,), positive, unit of the areas.
    """

    found_ids: npt.NDArray[np.int64]
    true_ids: npt.NDArray[np.int64]
    found_areas: npt.NDArray[np.float64]
    true_areas: npt.NDArray[np.float64]
    pairs: npt.NDArray[np.int64]
    intersections: npt.NDArray[np.float64]

    @property
    def unions(self) -> npt.NDArray[np.float64]:
        """Area of the union of each pair, float64 (k,)."""
        return self.found_areas[self.pairs[:, 0]] + self.true_areas[self.pairs[:, 1]] - self.intersections

    @property
    def iou(self) -> npt.NDArray[np.float64]:
        """Intersection over union of each pair, float64 (k,), in (0, 1]."""
        return self.intersections / self.unions

    def select(self, found: npt.NDArray[np.bool_], true: npt.NDArray[np.bool_]) -> Overlaps:
        """Return the table of some of the instances, bool (n,) and (m,)."""
        kept = found[self.pairs[:, 0]] & true[self.pairs[:, 1]]
        place = [np.cumsum(found) - 1, np.cumsum(true) - 1]
        pairs = np.column_stack([place[side][self.pairs[kept, side]] for side in (0, 1)])
        return Overlaps(
            self.found_ids[found],
            self.true_ids[true],
            self.found_areas[found],
            self.true_areas[true],
            pairs,
            self.intersections[kept],
        )


def overlaps_of_labels(
    found: npt.NDArray[np.integer[Any]],
    truth: npt.NDArray[np.integer[Any]],
    *,
    ignored: npt.NDArray[np.bool_] | None = None,
) -> Overlaps:
    """Return the overlap table of two label maps.

    Parameters
    ----------
    found, truth
        Integer maps of one shape; 0 is background, each other number one instance (it need not be connected).
    ignored
        bool, same shape: pixels that do not count. Instances that lie wholly in them do not occur.

    Raises
    ------
    ConfigError
        If the shapes differ or a label is negative.
    """
    if found.shape != truth.shape or (ignored is not None and ignored.shape != truth.shape):
        raise ConfigError(f"label maps of shape {found.shape} and {truth.shape}", expected="one shape")
    a, b = found.ravel(), truth.ravel()
    if ignored is not None:
        a, b = a[~ignored.ravel()], b[~ignored.ravel()]
    if a.size and min(a.min(), b.min()) < 0:
        raise ConfigError(f"a label of {min(a.min(), b.min())}", expected="0 for background, above 0 for instances")
    found_ids, found_areas = np.unique(a[a > 0], return_counts=True)
    true_ids, true_areas = np.unique(b[b > 0], return_counts=True)
    both = (a > 0) & (b > 0)
    key = np.searchsorted(found_ids, a[both]) * max(len(true_ids), 1) + np.searchsorted(true_ids, b[both])
    pair, area = np.unique(key, return_counts=True)
    pairs = np.column_stack(np.divmod(pair, max(len(true_ids), 1)))
    return Overlaps(
        found_ids.astype(np.int64),
        true_ids.astype(np.int64),
        found_areas.astype(np.float64),
        true_areas.astype(np.float64),
        pairs.astype(np.int64),
        area.astype(np.float64),
    )


def overlaps_of_polygons(found: Sequence[Any] | npt.NDArray[Any], truth: Sequence[Any] | npt.NDArray[Any]) -> Overlaps:
    """Return the overlap table of two sets of polygons, with exact areas.

    Polygons of one set may overlap each other; each then counts with its whole area.

    Parameters
    ----------
    found, truth
        shapely Polygons or MultiPolygons in one frame, n and m of them.

    Raises
    ------
    ConfigError
        If a polygon is missing, invalid or without area.
    """
    polygons = [_polygons(found), _polygons(truth)]
    pairs = shapely.STRtree(polygons[1]).query(polygons[0], predicate="intersects").T
    area = shapely.area(shapely.intersection(polygons[0][pairs[:, 0]], polygons[1][pairs[:, 1]]))
    kept = np.flatnonzero(area > 0)
    kept = kept[np.lexsort((pairs[kept, 1], pairs[kept, 0]))]
    return Overlaps(
        np.arange(len(polygons[0]), dtype=np.int64),
        np.arange(len(polygons[1]), dtype=np.int64),
        shapely.area(polygons[0]),
        shapely.area(polygons[1]),
        pairs[kept].astype(np.int64),
        area[kept],
    )


def aji(overlaps: Overlaps) -> float:
    """Return the aggregated Jaccard index (Kumar et al. 2017, doi:10.1109/TMI.2017.2677499, algorithm 1).

    Each true instance G_i is joined with the found one of the largest IoU, S_j(i) (the first of equals; one instance
    may serve several)::

        AJI = Σ_i |G_i ∩ S_j(i)| / (Σ_i |G_i ∪ S_j(i)| + Σ_{k joined with none} |S_k|)

    A true instance that nothing overlaps adds its own area to the denominator. 1 if both sides are empty, 0 if one is.
    """
    intersection, union = aggregated_jaccard(overlaps)
    return 1.0 if union == 0 else intersection / union


def aggregated_jaccard(overlaps: Overlaps) -> tuple[float, float]:
    """Return numerator and denominator of :func:`aji`, whose sums over images pool them; (0, 0) if all is empty."""
    found, true = overlaps.pairs.T
    order = np.lexsort((found, -overlaps.iou, true))
    _, first = np.unique(true[order], return_index=True)
    best = order[first]
    joined_true = np.zeros(len(overlaps.true_ids), dtype=bool)
    joined_found = np.zeros(len(overlaps.found_ids), dtype=bool)
    joined_true[true[best]], joined_found[found[best]] = True, True
    left = overlaps.true_areas[~joined_true].sum() + overlaps.found_areas[~joined_found].sum()
    return float(overlaps.intersections[best].sum()), float(overlaps.unions[best].sum() + left)


@dataclass(frozen=True)
class PanopticQuality(Counts):
    """Counts of matched instances and their summed IoU; two can be added, which pools images.

    Kirillov et al. 2019 (doi:10.1109/CVPR.2019.00963), for nuclei Graham et al. 2019
    (doi:10.1016/j.media.2019.101563)::

        PQ = DQ · SQ,   DQ = TP / (TP + FP / 2 + FN / 2),   SQ = Σ_{matched pairs} IoU / TP

    All three are 1 if both sides are empty and 0 if one is; SQ is 0 if nothing is matched.

    Attributes
    ----------
    iou_sum
        Sum of the IoU of the matched pairs.
    """

    iou_sum: float

    @property
    def dq(self) -> float:
        """Detection quality (recognition quality of Kirillov et al.), the F1 of instances."""
        return self.f1

    @property
    def sq(self) -> float:
        """Segmentation quality: mean IoU of the matched pairs."""
        return self._share(self.iou_sum, self.true_positive)

    @property
    def pq(self) -> float:
        """Panoptic quality, DQ · SQ."""
        return self.dq * self.sq


def match_instances(overlaps: Overlaps, threshold: float = 0.5) -> npt.NDArray[np.int64]:
    """Return which pairs of the table match, int64 (matches,): IoU above the threshold, one to one.

    Above 0.5 at most one instance can match where those of one side do not overlap each other (Kirillov et al. 2019).
    Where they do, and below 0.5, it is as many pairs as possible, then those of the largest summed IoU.

    Raises
    ------
    ConfigError
        If the threshold is outside [0, 1).
    """
    if not 0 <= threshold < 1:
        raise ConfigError(f"an IoU threshold of {threshold}", expected="0 or more, below 1")
    above = np.flatnonzero(overlaps.iou > threshold)
    found, true = overlaps.pairs[above].T
    return above[one_to_one(found, true, 1.0 - overlaps.iou[above])]


def panoptic_quality(overlaps: Overlaps, threshold: float = 0.5) -> PanopticQuality:
    """Return the panoptic quality of a table regardless of classes; see :func:`match_instances` for the threshold."""
    matched = match_instances(overlaps, threshold)
    n = len(matched)
    missed, spurious = len(overlaps.true_ids) - n, len(overlaps.found_ids) - n
    return PanopticQuality(n, spurious, missed, float(overlaps.iou[matched].sum()))


def panoptic_by_class(
    overlaps: Overlaps,
    found_classes: Sequence[str] | npt.NDArray[Any],
    true_classes: Sequence[str] | npt.NDArray[Any],
    *,
    classes: Sequence[str],
    threshold: float = 0.5,
) -> tuple[PanopticQuality, ...]:
    """Return the panoptic quality of each class: its instances alone, matched among themselves.

    Parameters
    ----------
    overlaps
        Table of all instances.
    found_classes, true_classes
        Class of each instance, in the order of `found_ids` and `true_ids`.
    classes
        Classes in the order of the result; instances of others are left out.
    threshold
        As in :func:`match_instances`.

    Raises
    ------
    ConfigError
        If there is not one class for each instance, or as :func:`match_instances`.
    """
    found, true = np.asarray(found_classes, dtype=object), np.asarray(true_classes, dtype=object)
    if found.shape != overlaps.found_ids.shape or true.shape != overlaps.true_ids.shape:
        raise ConfigError(
            f"{len(found)} and {len(true)} classes",
            expected=f"one for each of {len(overlaps.found_ids)} found and {len(overlaps.true_ids)} true instances",
        )
    return tuple(panoptic_quality(overlaps.select(found == name, true == name), threshold) for name in classes)


def multiclass_panoptic_quality(scores: Iterable[PanopticQuality]) -> float:
    """Return the mean PQ of the classes; with counts pooled over all images it is mPQ+ (Graham et al. 2021, CoNIC).

    Classes that occur on neither side are left out of the mean; 1 if none occurs.
    """
    present = [score.pq for score in scores if not score.empty]
    return float(np.mean(present)) if present else 1.0


def _polygons(geometries: Sequence[Any] | npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return the polygons as an array; refuse what has no area to compare."""
    polygons = np.asarray(geometries, dtype=object).ravel()
    bad = ~np.isin(shapely.get_type_id(polygons), (3, 6)) | ~shapely.is_valid(polygons) | ~(shapely.area(polygons) > 0)
    if bad.any():
        raise ConfigError(
            f"{bad.sum()} of {len(polygons)} polygons are missing, invalid or without area",
            expected="valid polygons",
            remedy="repair them with shapely.make_valid or leave them out",
        )
    return polygons
