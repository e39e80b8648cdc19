"""The rule that gives tiles of labelled slides proxy labels, and its fifteen settings.

Lerousseau et al. 2020, "Weakly supervised multiple instance learning histopathological tumor segmentation" (MICCAI,
arXiv:2004.05024).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pyhisto.errors import ConfigError

__all__ = ["FIFTEEN_PAIRS", "LEFT_OUT", "ProxyRule", "weighted_auroc"]

LEFT_OUT = -1
"""In place of a proxy label: the instance does not count in this step."""

DIGITS = 9
"""Places to which share * instances is rounded before it is cut, so that 0.29 * 100 is 29 and not 28."""


@dataclass(frozen=True)
class ProxyRule:
    """Which instances of a bag count as what.

    Of a positive bag the `alpha` share with the highest scores gets label 1, the `beta` share with the lowest label 0,
    and the rest is left out; of a negative bag all instances get 0. A share of n instances is floor(share * n), as in
    the authors' code, but that at least one instance of a positive bag gets 1: that of a bag of one, too. Where scores
    are equal, the instance that comes first in the bag is taken for the higher one.

    Attributes
    ----------
    alpha
        Least share of a positive slide that is assumed to be positive; above 0.
    beta
        Least share of it that is assumed to be negative; 0 or more.

    Raises
    ------
    ConfigError
        If a share is out of range, or both together are more than 1.
    """

    alpha: float
    beta: float

    def __post_init__(self) -> None:
        if not (0 < self.alpha <= 1 and 0 <= self.beta < 1 and round(self.alpha + self.beta, DIGITS) <= 1):
            raise ConfigError(
                f"alpha {self.alpha:g} with beta {self.beta:g}",
                expected="alpha above 0, beta 0 or more, together at most 1",
            )

    def counts(self, instances: int) -> tuple[int, int]:
        """Return how many instances of a positive bag get 1, and how many 0.

        >>> ProxyRule(0.2, 0.4).counts(11)
        (2, 4)
        >>> ProxyRule(0.2, 0.4).counts(1)
        (1, 0)
        """
        top = max(1, math.floor(round(self.alpha * instances, DIGITS)))
        return top, min(math.floor(round(self.beta * instances, DIGITS)), instances - top)

    def labels(self, scores: npt.NDArray[np.floating[Any]], *, positive: bool) -> npt.NDArray[np.int8]:
        """Return the proxy label of each instance of a bag.

        Parameters
        ----------
        scores
            float (n,), n at least 1: probabilities, or anything that orders the instances as these do.
        positive
            The label of the bag.

        Returns
        -------
        numpy.ndarray
            int8 (n,): 1, 0 or :data:`LEFT_OUT`.
        """
        if not positive:
            return np.zeros(len(scores), dtype=np.int8)
        top, bottom = self.counts(len(scores))
        order = np.argsort(-scores, kind="stable")
        out = np.full(len(scores), LEFT_OUT, dtype=np.int8)
        out[order[:top]] = 1
        out[order[len(order) - bottom :]] = 0
        return out

    def slide_probability(self, probabilities: npt.NDArray[np.floating[Any]]) -> float:
        """Return the mean probability, 0 to 1, of the `alpha` share of instances, (n,), with the highest ones."""
        top, _ = self.counts(len(probabilities))
        return float(np.sort(probabilities)[len(probabilities) - top :].mean(dtype=np.float64))


FIFTEEN_PAIRS = tuple(ProxyRule(alpha / 5, beta / 5) for alpha in range(1, 6) for beta in range(5) if alpha + beta <= 5)
"""All pairs in steps of 0.2 with alpha above 0 and alpha + beta at most 1.

The paper compares fifteen pairs with alpha + beta at most 1, of which (0.2, 0.2) was the best. Their values were not at
hand; this is the grid of one step that has fifteen pairs and holds the best one.
"""


def weighted_auroc(
    scores: npt.NDArray[np.floating[Any]],
    positive: npt.NDArray[np.floating[Any]],
    negative: npt.NDArray[np.floating[Any]],
) -> float:
    """Return the area under the ROC curve of things that are partly positive and partly negative.

    It is the chance that a randomly drawn positive unit has a higher score than a negative one, where ties count half
    (Hanley & McNeil 1982).

    Parameters
    ----------
    scores
        float (n,).
    positive, negative
        How much of each is positive and negative, such as areas, or 1 and 0; float (n,).

    Returns
    -------
    float
        0 to 1; NaN if nothing is positive or nothing negative.

    Examples
    --------
    >>> weighted_auroc(np.array([0.9, 0.2]), np.array([3.0, 1.0]), np.array([1.0, 3.0]))
    0.75
    """
    _, group = np.unique(scores, return_inverse=True)
    ups, downs = np.bincount(group, positive), np.bincount(group, negative)
    whole = ups.sum() * downs.sum()
    below = downs.cumsum() - downs / 2
    return float((ups * below).sum() / whole) if whole > 0 else float("nan")
