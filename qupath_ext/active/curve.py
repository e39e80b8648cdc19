"""The learning curve of a loop: a power law with an interval, what the next round should bring, when to stop."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import scipy.special

from pyhisto.errors import ConfigError
from pyhisto.metrics.intervals import FEWEST_PATIENTS, jackknife_error

__all__ = ["FEWEST", "MIN_GAIN", "Advice", "Expected", "PowerLaw", "advise", "expect", "fit_power_law", "mean_score"]

FEWEST = 3
"""Rounds that a curve of three numbers needs."""

MIN_GAIN = 0.01
"""Gain of Dice or F1 by a round that is worth a person's time."""

RESAMPLES = 1000
EXPONENTS = np.linspace(0.1, 3.0, 59)

Floats = npt.NDArray[np.float64]
Advice = Literal["go on", "little to gain", "stop"]


@dataclass(frozen=True)
class PowerLaw:
    """``y = a - b (x / unit)^-c``, as learning curves are (Hestness 2017; Figueroa 2012); one curve or n of them.

    Attributes
    ----------
    a, b, c
        float64 (n,): what it comes to in the end, at most 1; what is missing at `unit`; how fast that goes. `b` is not
        negative, so that a curve never falls.
    unit
        The x at which `b` is missing.
    """

    a: Floats
    b: Floats
    c: Floats
    unit: float

    def at(self, x: float | Floats) -> Floats:
        """Return y, float64 (n,), or (n, m) for m values of x."""
        x = np.asarray(x, dtype=np.float64)
        a, b, c = (part.reshape(-1, *(1,) * x.ndim) for part in (self.a, self.b, self.c))
        return np.asarray(a - b * (x / self.unit) ** -c)


def fit_power_law(x: Floats, y: Floats) -> PowerLaw:
    """Fit power laws by least squares: a and b exactly, c from a grid of :data:`EXPONENTS`.

    Parameters
    ----------
    x
        float64 (m,), above 0: what was spent.
    y
        float64 (n, m): n curves.

    Raises
    ------
    ConfigError
        If there are fewer than :data:`FEWEST` points, or an x is not above 0.
    """
    if len(x) < FEWEST or not (x > 0).all():
        raise ConfigError(f"a curve through {len(x)} points", expected=f"at least {FEWEST}, all after something spent")
    unit = float(x[-1])
    best = np.full(len(y), np.inf)
    a, b, c = np.zeros((3, len(y)))
    for exponent in EXPONENTS:
        z = (x / unit) ** -exponent
        centred = z - z.mean()
        slope = np.maximum(-(y @ centred) / (centred @ centred), 0.0)
        end = y.mean(axis=1) + slope * z.mean()
        over = end > 1
        slope = np.where(over, np.maximum(((1 - y) @ z) / (z @ z), 0.0), slope)
        end = np.where(over, 1.0, end)
        error = ((end[:, None] - slope[:, None] * z - y) ** 2).sum(axis=1)
        better = error < best - 1e-15
        best[better], a[better], b[better], c[better] = error[better], end[better], slope[better], exponent
    return PowerLaw(a, b, c, unit)


def mean_score(sums: Floats) -> Floats:
    """Return the mean over the classes of ``2 common / (found + true)``: Dice of areas, F1 of cells.

    Parameters
    ----------
    sums
        (..., classes, 3): what both sides have, what was found and what is true. A class of which there is neither
        counts in no mean.

    Returns
    -------
    numpy.ndarray
        float64 (...); NaN where there is no class at all.
    """
    both = sums[..., 1] + sums[..., 2]
    there = both > 0
    score = np.divide(2 * sums[..., 0], both, out=np.zeros_like(both), where=there)
    count = there.sum(axis=-1)
    mean = np.full(count.shape, np.nan)
    np.divide(score.sum(axis=-1), count, out=mean, where=count > 0)
    return mean


@dataclass(frozen=True)
class Expected:
    """What the next round is expected to bring.

    Attributes
    ----------
    now, then
        The curve after the last round and after the next.
    gain, low, high
        The difference, with its 95 % interval; NaN limits where there is no interval, and `method` says why.
    curve
        The curve through the figures.
    method
        How the interval was made, in words.
    """

    now: float
    then: float
    gain: float
    low: float
    high: float
    curve: PowerLaw
    method: str


def expect(x: Sequence[float], sums: Floats, patients: Sequence[str], after: float) -> Expected:
    """Return what spending more is expected to bring.

    Two things make the gain uncertain. That there are few patients: the curve is fitted without each of them in turn,
    in all rounds, since all rounds are judged by the same ones (jackknife; see
    :func:`pyhisto.metrics.jackknife_interval`). And that a round may have gone better or worse than the curve: as much
    as the rounds scatter about it is drawn anew and fitted. The variances add up; Student's t has the degrees of
    freedom of the sum (Satterthwaite 1946, "An approximate distribution of estimates of variance components",
    Biometrics Bulletin 2:110-114). Limits stay in what a curve can do, which never falls and never passes 1.

    Parameters
    ----------
    x
        (rounds,): what was spent up to each round, above 0.
    sums
        float64 (rounds, images, classes, 3), see :func:`mean_score`.
    patients
        Patient of each image.
    after
        What will have been spent after the next round.

    Raises
    ------
    ConfigError
        If there are fewer than :data:`FEWEST` rounds, or nothing was spent before one of them.
    """
    spent = np.asarray(x, dtype=np.float64)
    y = mean_score(sums.sum(axis=1))[None]
    curve = fit_power_law(spent, y)
    now, then = float(curve.at(spent[-1])[0]), float(curve.at(after)[0])
    half, method = _half_width(spent, y, sums, patients, curve, after)
    low, high = max(then - now - half, 0.0), min(then - now + half, 1 - now)
    nan = float("nan")
    return Expected(now, then, then - now, *((nan, nan) if np.isnan(half) else (low, high)), curve, method)


def _half_width(
    spent: Floats, y: Floats, sums: Floats, patients: Sequence[str], curve: PowerLaw, after: float
) -> tuple[float, str]:
    """Return half of the interval of the gain, and how it was made; NaN, and why there is none."""
    names, place = np.unique(list(patients), return_inverse=True)
    n = len(names)
    if n < FEWEST_PATIENTS:
        return float("nan"), f"no interval from fewer than {FEWEST_PATIENTS} patients"
    free = len(spent) - (FEWEST if curve.b[0] > 1e-6 else 1)  # a level line has but one number
    if free < 1:
        return float("nan"), f"no interval before {FEWEST + 1} rounds: a curve has {FEWEST} numbers"
    without = mean_score(np.stack([sums[:, place != one].sum(axis=1) for one in range(n)]))
    if np.isnan(without).any():
        return float("nan"), f"no interval: without one of {n} patients there is no figure"
    scatter = float(np.sqrt(((curve.at(spent) - y) ** 2).sum() / free))
    drawn = curve.at(spent) + np.random.default_rng(0).normal(0, scatter, (RESAMPLES, len(spent)))
    of_patients = jackknife_error(_gains(spent, without, after)) ** 2
    of_rounds = float(_gains(spent, drawn, after).var())
    variance = of_patients + of_rounds
    if variance == 0:
        return 0.0, f"{n} patients and {len(spent)} rounds alike"
    freedom = variance**2 / (of_patients**2 / (n - 1) + of_rounds**2 / free)
    half = float(scipy.special.stdtrit(freedom, 0.975) * np.sqrt(variance))
    return half, f"jackknife over {n} patients and scatter of {len(spent)} rounds, Student's t"


def _gains(spent: Floats, scores: Floats, after: float) -> Floats:
    """Return what curves through scores, float64 (n, rounds), say of the next round, float64 (n,)."""
    curves = fit_power_law(spent, scores)
    return curves.at(after) - curves.at(spent[-1])


def advise(expected: Expected | None, least: float = MIN_GAIN) -> Advice:
    """Return whether another round is worth its time.

    ``"stop"`` if even the upper limit of the expected gain is less than `least`; ``"little to gain"`` if only the
    expected gain is, or there is no limit; else, and before there is a curve, ``"go on"``.
    """
    if expected is None or expected.gain >= least:
        return "go on"
    return "stop" if expected.high < least else "little to gain"
