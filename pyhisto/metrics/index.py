"""The Ki-67 index with its interval."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pyhisto.errors import ConfigError

__all__ = ["Index", "ki67_index"]

Z_95 = 1.959963984540054


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
