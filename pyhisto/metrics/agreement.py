"""Agreement of two measurements of the same things, such as the Ki-67 index of a method and of a pathologist."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.special

from pyhisto.errors import ConfigError

__all__ = [
    "Agreement",
    "BlandAltman",
    "agreement",
    "bland_altman",
    "icc_2_1",
    "lin_concordance",
    "mean_absolute_error",
    "pearson",
    "spearman",
]

Z_95 = 1.959963984540054

Numbers = npt.NDArray[Any] | list[float] | tuple[float, ...]


@dataclass(frozen=True)
class BlandAltman:
    """Bias and limits of agreement, unit of the measurements, each with its 95 % interval (low, high).

    Attributes
    ----------
    pairs
        How many.
    bias
        Mean of measured - reference.
    sd
        Standard deviation of the differences, n - 1.
    lower, upper
        Limits of agreement, bias -+ 1.96 sd.
    bias_interval, lower_interval, upper_interval
        95 % intervals.
    """

    pairs: int
    bias: float
    sd: float
    lower: float
    upper: float
    bias_interval: tuple[float, float]
    lower_interval: tuple[float, float]
    upper_interval: tuple[float, float]


@dataclass(frozen=True)
class Agreement:
    """All figures of agreement of two measurements; see the function of each name."""

    bland_altman: BlandAltman
    pearson: float
    spearman: float
    lin_concordance: float
    icc_2_1: float
    mean_absolute_error: float


def agreement(measured: Numbers, reference: Numbers) -> Agreement:
    """Return all figures of agreement of pairs of measurements.

    Parameters
    ----------
    measured, reference
        (n,) each, one unit, finite: pair i is of the same slide or patient. What a figure is with too few pairs or
        without spread stands with its own function.

    Raises
    ------
    ConfigError
        If the lengths differ or a number is NaN or infinite: leave the pair out and say so.
    """
    return Agreement(
        bland_altman(measured, reference),
        pearson(measured, reference),
        spearman(measured, reference),
        lin_concordance(measured, reference),
        icc_2_1(np.column_stack(_pairs(measured, reference))),
        mean_absolute_error(measured, reference),
    )


def bland_altman(measured: Numbers, reference: Numbers) -> BlandAltman:
    """Return bias and limits of agreement (Bland & Altman 1999, doi:10.1177/096228029900800204).

    With differences d of n pairs, mean d̄ and standard deviation s, the limits are d̄ ± 1.96 s; standard errors are
    s / √n of the bias and s √(1 / n + 1.96² / (2 (n - 1))) of a limit (section 2.1), intervals by Student's t with
    n - 1 degrees of freedom. NaN without pairs; only the bias with one pair. Errors as in :func:`agreement`.
    """
    x, y = _pairs(measured, reference)
    n = len(x)
    nan = float("nan")
    if n < 2:
        bias = float(x[0] - y[0]) if n else nan
        return BlandAltman(n, bias, nan, nan, nan, (nan, nan), (nan, nan), (nan, nan))
    bias, sd = float(np.mean(x - y)), float(np.std(x - y, ddof=1))
    t = float(scipy.special.stdtrit(n - 1, 0.975))
    of_bias, of_limit = t * sd / np.sqrt(n), t * sd * np.sqrt(1 / n + Z_95**2 / (2 * (n - 1)))
    lower, upper = bias - Z_95 * sd, bias + Z_95 * sd
    return BlandAltman(
        n, bias, sd, lower, upper, _around(bias, of_bias), _around(lower, of_limit), _around(upper, of_limit)
    )


def pearson(measured: Numbers, reference: Numbers) -> float:
    """Return Pearson's correlation coefficient; NaN below two pairs or if one side is constant.

    Errors as in :func:`agreement`.
    """
    x, y = _pairs(measured, reference)
    if len(x) < 2 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return float("nan")
    return float(np.clip(np.corrcoef(x, y)[0, 1], -1.0, 1.0))


def spearman(measured: Numbers, reference: Numbers) -> float:
    """Return Spearman's rank correlation, Pearson's of the ranks (ties share their mean rank); NaN as there."""
    from scipy.stats import rankdata

    x, y = _pairs(measured, reference)
    return pearson(rankdata(x), rankdata(y))


def lin_concordance(measured: Numbers, reference: Numbers) -> float:
    """Return Lin's concordance correlation coefficient (Lin 1989, doi:10.2307/2532051).

    2 s_xy / (s_x² + s_y² + (x̄ - ȳ)²) with variances over n. NaN below two pairs or if all numbers are one and the same.
    Errors as in :func:`agreement`.
    """
    x, y = _pairs(measured, reference)
    if len(x) < 2:
        return float("nan")
    spread = np.var(x) + np.var(y) + (np.mean(x) - np.mean(y)) ** 2
    if spread == 0:
        return float("nan")
    return float(2 * np.mean((x - np.mean(x)) * (y - np.mean(y))) / spread)


def icc_2_1(ratings: npt.NDArray[Any]) -> float:
    """Return the intraclass correlation ICC(2,1): absolute agreement, two-way random, single rating.

    With mean squares between subjects (BMS), between raters (JMS) and of the residual (EMS), of n subjects and k
    raters (Shrout & Fleiss 1979, doi:10.1037/0033-2909.86.2.420)::

        ICC(2,1) = (BMS - EMS) / (BMS + (k - 1) EMS + k (JMS - EMS) / n)

    Parameters
    ----------
    ratings
        (n subjects, k raters), finite. NaN below two subjects or raters, or if all numbers are one and the same.

    Raises
    ------
    ConfigError
        If it is no table or a number is NaN or infinite.
    """
    table = np.asarray(ratings, dtype=np.float64)
    if table.ndim != 2 or not np.isfinite(table).all():
        raise ConfigError(f"ratings of shape {table.shape}", expected="finite numbers, (subjects, raters)")
    n, k = table.shape
    if n < 2 or k < 2 or np.ptp(table) == 0:
        return float("nan")
    subjects, raters = table.mean(axis=1, keepdims=True), table.mean(axis=0, keepdims=True)
    bms = k * np.sum((subjects - table.mean()) ** 2) / (n - 1)
    jms = n * np.sum((raters - table.mean()) ** 2) / (k - 1)
    ems = np.sum((table - subjects - raters + table.mean()) ** 2) / ((n - 1) * (k - 1))
    return float((bms - ems) / (bms + (k - 1) * ems + k * (jms - ems) / n))


def mean_absolute_error(measured: Numbers, reference: Numbers) -> float:
    """Return the mean of |measured - reference|, for indices the index error; NaN without pairs.

    Errors as in :func:`agreement`.
    """
    x, y = _pairs(measured, reference)
    return float(np.mean(np.abs(x - y))) if len(x) else float("nan")


def _around(value: float, half: float) -> tuple[float, float]:
    return float(value - half), float(value + half)


def _pairs(measured: Numbers, reference: Numbers) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    x, y = np.asarray(measured, dtype=np.float64), np.asarray(reference, dtype=np.float64)
    if x.ndim != 1 or x.shape != y.shape:
        raise ConfigError(f"measurements of shape {x.shape} and {y.shape}", expected="(n,) both")
    bad = ~(np.isfinite(x) & np.isfinite(y))
    if bad.any():
        raise ConfigError(
            f"{bad.sum()} of {len(x)} pairs hold NaN or infinity",
            expected="finite numbers",
            remedy="leave these pairs out and say so",
        )
    return x, y
