"""Whether probabilities mean what they say: reliability, expected calibration error, Brier score."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pyhisto.errors import ConfigError

__all__ = ["Reliability", "brier_score", "expected_calibration_error", "reliability"]


@dataclass(frozen=True, eq=False)
class Reliability:
    """Reliability curve: B bins of equal width over [0, 1]; two with the same bins can be added, which pools images.

    Attributes
    ----------
    counts
        int64 (B,): predictions in each bin.
    probability_sums
        float64 (B,): sum of their probabilities.
    outcome_sums
        float64 (B,): how many of them came true.
    """

    counts: npt.NDArray[np.int64]
    probability_sums: npt.NDArray[np.float64]
    outcome_sums: npt.NDArray[np.float64]

    def __add__(self, other: Reliability) -> Reliability:
        """Pool two curves.

        Raises
        ------
        ConfigError
            If the bins differ.
        """
        if len(self.counts) != len(other.counts):
            raise ConfigError(f"curves of {len(self.counts)} and {len(other.counts)} bins", expected="the same bins")
        return Reliability(
            self.counts + other.counts,
            self.probability_sums + other.probability_sums,
            self.outcome_sums + other.outcome_sums,
        )

    @property
    def edges(self) -> npt.NDArray[np.float64]:
        """Borders of the bins, float64 (B + 1,)."""
        return np.linspace(0.0, 1.0, len(self.counts) + 1)

    @property
    def probability(self) -> npt.NDArray[np.float64]:
        """Mean probability in each bin, float64 (B,); NaN where it is empty."""
        return _per_bin(self.probability_sums, self.counts)

    @property
    def frequency(self) -> npt.NDArray[np.float64]:
        """Share that came true in each bin, float64 (B,); NaN where it is empty."""
        return _per_bin(self.outcome_sums, self.counts)


def reliability(
    probability: npt.NDArray[np.floating[Any]], outcome: npt.NDArray[Any], *, bins: int = 15
) -> Reliability:
    """Return the reliability curve of probabilities (Guo et al. 2017, arXiv:1706.04599, section 2).

    Of a binary task, `probability` is that of the positive class and `outcome` whether it is that one; of several
    classes, `probability` is that of the class that was chosen and `outcome` whether the choice was right.

    Parameters
    ----------
    probability
        float (n,), in [0, 1].
    outcome
        bool (n,), or 0 and 1.
    bins
        Number of bins M; bin m is ((m - 1) / M, m / M], and 0 belongs to the first.

    Raises
    ------
    ConfigError
        If the shapes differ, a probability is outside [0, 1] or NaN, an outcome is not 0 or 1, or there is no bin.
    """
    probability, outcome = _checked(probability, outcome)
    if bins < 1:
        raise ConfigError(f"{bins} bins", expected="1 or more")
    number = np.searchsorted(np.linspace(0.0, 1.0, bins + 1)[1:-1], probability, side="left")
    return Reliability(
        np.bincount(number, minlength=bins),
        np.bincount(number, weights=probability, minlength=bins).astype(np.float64),
        np.bincount(number, weights=outcome, minlength=bins).astype(np.float64),
    )


def expected_calibration_error(curve: Reliability) -> float:
    """Return the expected calibration error (Guo et al. 2017, eq. 5): Σ_m |B_m| / n · |frequency_m - probability_m|.

    NaN without predictions.
    """
    total = curve.counts.sum()
    return float(np.abs(curve.outcome_sums - curve.probability_sums).sum() / total) if total else float("nan")


def brier_score(probability: npt.NDArray[np.floating[Any]], outcome: npt.NDArray[Any]) -> float:
    """Return the Brier score of a binary task: the mean of (probability - outcome)², 0 is best (Brier 1950).

    Parameters and errors as in :func:`reliability`. NaN without predictions. (Brier's own sum over both classes is
    twice this.)
    """
    probability, outcome = _checked(probability, outcome)
    return float(np.mean((probability - outcome) ** 2)) if len(outcome) else float("nan")


def _per_bin(sums: npt.NDArray[np.float64], counts: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    mean = np.full(len(counts), np.nan)
    np.divide(sums, counts, out=mean, where=counts > 0)
    return mean


def _checked(
    probability: npt.NDArray[np.floating[Any]], outcome: npt.NDArray[Any]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    if probability.ndim != 1 or probability.shape != outcome.shape:
        raise ConfigError(
            f"probabilities of shape {probability.shape} and outcomes of shape {outcome.shape}", expected="(n,) both"
        )
    if not ((probability >= 0) & (probability <= 1)).all():
        raise ConfigError("probabilities outside [0, 1] or NaN", expected="numbers from 0 to 1")
    if not np.isin(outcome, (0, 1)).all():
        raise ConfigError("outcomes other than 0 and 1", expected="whether each came true")
    return probability.astype(np.float64), outcome.astype(np.float64)
