"""How good a result is: overlap of areas, detections against points, and the Ki-67 index with its interval."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.optimize
import scipy.sparse
import scipy.sparse.csgraph
import scipy.spatial

from pyhisto.errors import ConfigError

__all__ = ["DetectionScore", "Index", "dice", "ki67_index", "match_points", "score_detections"]

Z_95 = 1.959963984540054


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
    total = found.area + truth.area
    return 1.0 if total == 0 else float(2 * found.intersection(truth).area / total)


@dataclass(frozen=True)
class DetectionScore:
    """Counts of a one-to-one match, and what follows from them; 1 where there was nothing to find and nothing found."""

    true_positive: int
    false_positive: int
    false_negative: int

    @property
    def precision(self) -> float:
        """Share of the detections that are right."""
        return _ratio(self.true_positive, self.true_positive + self.false_positive)

    @property
    def recall(self) -> float:
        """Share of the true points that were found."""
        return _ratio(self.true_positive, self.true_positive + self.false_negative)

    @property
    def f1(self) -> float:
        """Harmonic mean of precision and recall."""
        return _ratio(2 * self.true_positive, 2 * self.true_positive + self.false_positive + self.false_negative)


def _ratio(part: int, whole: int) -> float:
    return part / whole if whole else 1.0


def match_points(
    found: npt.NDArray[np.float64], truth: npt.NDArray[np.float64], radius: float
) -> npt.NDArray[np.int64]:
    """Pair points one to one: as many pairs as possible within `radius`, and among those the shortest distances.

    Parameters
    ----------
    found, truth
        Shapes (n, 2) and (m, 2), one frame and unit.
    radius
        Largest distance of a pair, same unit.

    Returns
    -------
    numpy.ndarray
        int64, shape (pairs, 2): indices into `found` and `truth`.

    Notes
    -----
    Optimal assignment (Crouse 2016) within each group of points that are in reach of one another.

    Examples
    --------
    >>> match_points(np.array([[0.0, 0.0], [2.0, 0.0]]), np.array([[1.0, 0.0], [9.0, 9.0]]), 1.5).tolist()
    [[0, 0]]
    """
    if len(found) == 0 or len(truth) == 0:
        return np.empty((0, 2), dtype=np.int64)
    tree = scipy.spatial.cKDTree(truth)
    near = scipy.spatial.cKDTree(found).sparse_distance_matrix(tree, radius, output_type="coo_matrix")
    rows, columns, distances = near.row, near.col, near.data
    if len(rows) == 0:
        return np.empty((0, 2), dtype=np.int64)
    n = len(found)
    graph = scipy.sparse.coo_matrix((np.ones(len(rows)), (rows, columns + n)), shape=(n + len(truth),) * 2)
    _, group = scipy.sparse.csgraph.connected_components(graph, directed=False)
    order = np.argsort(group[rows], kind="stable")
    borders = np.flatnonzero(np.diff(group[rows][order])) + 1
    pairs = [
        _assign(rows[part], columns[part], distances[part], radius) for part in np.split(order, borders) if len(part)
    ]
    return np.concatenate(pairs)


def _assign(
    rows: npt.NDArray[Any], columns: npt.NDArray[Any], distances: npt.NDArray[Any], radius: float
) -> npt.NDArray[np.int64]:
    """Solve one group; a pair out of reach costs more than all pairs in reach together."""
    left, i = np.unique(rows, return_inverse=True)
    right, j = np.unique(columns, return_inverse=True)
    forbidden = (radius + 1.0) * (min(len(left), len(right)) + 1)
    cost = np.full((len(left), len(right)), forbidden)
    cost[i, j] = distances
    a, b = scipy.optimize.linear_sum_assignment(cost)
    kept = cost[a, b] < forbidden
    return np.column_stack([left[a[kept]], right[b[kept]]]).astype(np.int64)


def score_detections(found: npt.NDArray[np.float64], truth: npt.NDArray[np.float64], radius: float) -> DetectionScore:
    """Return how well detections hit true points; see :func:`match_points`."""
    pairs = len(match_points(found, truth, radius))
    return DetectionScore(pairs, len(found) - pairs, len(truth) - pairs)


@dataclass(frozen=True)
class Index:
    """A share of positive cells, in percent, with a 95 % interval.

    Attributes
    ----------
    positive, total
        Counts of cells.
    percent
        100 * positive / total; NaN without cells.
    low, high
        95 % limits in percent.
    method
        How the interval was made, in words.
    """

    positive: int
    total: int
    percent: float
    low: float
    high: float
    method: str


def ki67_index(
    points: npt.NDArray[np.float64],
    positive: npt.NDArray[np.bool_],
    *,
    block: float,
    seed: int = 0,
    resamples: int = 2000,
) -> Index:
    """Return the share of positive cells with an interval that knows that neighbours are alike.

    Whole square fields are drawn with replacement (block bootstrap, Efron & Tibshirani 1993, percentile limits), since
    positive cells lie in clusters and single cells are no independent draws. With fewer than ten fields with cells,
    or where no cell or every cell is positive (drawing again then says nothing), Wilson's score interval (1927) is
    given instead, and said.

    Parameters
    ----------
    points
        Centroids, shape (n, 2).
    positive
        bool, shape (n,).
    block
        Side of a field, unit of `points`.
    seed, resamples
        Of the bootstrap.

    Raises
    ------
    ConfigError
        If the block is not positive.
    """
    if block <= 0:
        raise ConfigError(f"field of {block}", expected="a positive size")
    n, k = len(points), int(positive.sum())
    if n == 0:
        return Index(0, 0, float("nan"), float("nan"), float("nan"), "no cells")
    cells = np.floor(points / block).astype(np.int64)
    _, field = np.unique(cells, axis=0, return_inverse=True)
    totals = np.bincount(field.ravel())
    positives = np.bincount(field.ravel(), weights=positive)
    if len(totals) < 10 or k in {0, n}:
        low, high = _wilson(k, n)
        return Index(k, n, 100 * k / n, low, high, "Wilson score interval")
    draws = np.random.default_rng(seed).integers(len(totals), size=(resamples, len(totals)))
    share = positives[draws].sum(axis=1) / totals[draws].sum(axis=1)
    low, high = (float(100 * limit) for limit in np.quantile(share, [0.025, 0.975]))
    return Index(k, n, 100 * k / n, low, high, f"bootstrap over {len(totals)} fields")


def _wilson(positive: int, total: int) -> tuple[float, float]:
    """Return Wilson's 95 % score interval of a proportion, in percent."""
    share, z = positive / total, Z_95
    centre = (share + z**2 / (2 * total)) / (1 + z**2 / total)
    half = z * np.sqrt(share * (1 - share) / total + z**2 / (4 * total**2)) / (1 + z**2 / total)
    return float(100 * max(0.0, centre - half)), float(100 * min(1.0, centre + half))
