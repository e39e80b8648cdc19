"""What was rightly found, wrongly found and missed: the sums that all shares are made of."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Self

__all__ = ["Counts"]


@dataclass(frozen=True)
class Counts:
    """What was rightly found, wrongly found and missed, as counts or as areas.

    Two of them can be added, which pools images; ``sum(scores, start)`` needs a zero of the same class as `start`.

    A share is 1 if there was nothing to find and nothing was found, and 0 if only one of the two is empty: finding
    nothing where something is earns no precision, and finding something where nothing is earns no recall.

    Attributes
    ----------
    true_positive
        Found and true; 0 or more, as the next two.
    false_positive
        Found, not true.
    false_negative
        True, not found.
    """

    true_positive: float
    false_positive: float
    false_negative: float

    def __add__(self, other: Self) -> Self:
        """Pool two results."""
        return type(self)(*(getattr(self, field.name) + getattr(other, field.name) for field in fields(self)))

    @property
    def precision(self) -> float:
        """Share of what was found that is true: TP / (TP + FP)."""
        return self._share(self.true_positive, self.true_positive + self.false_positive)

    @property
    def recall(self) -> float:
        """Share of what is true that was found: TP / (TP + FN)."""
        return self._share(self.true_positive, self.true_positive + self.false_negative)

    @property
    def f1(self) -> float:
        """Harmonic mean of precision and recall, 2 TP / (2 TP + FP + FN); of areas, this is Dice's coefficient."""
        twice = 2 * self.true_positive
        return self._share(twice, twice + self.false_positive + self.false_negative)

    @property
    def empty(self) -> bool:
        """Whether there was nothing to find and nothing was found."""
        return self.true_positive + self.false_positive + self.false_negative == 0

    def _share(self, part: float, whole: float) -> float:
        if self.empty:
            return 1.0
        return float(part / whole) if whole else 0.0
