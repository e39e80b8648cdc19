"""What a training has seen so far: losses, validations, and the weights of the best one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ["History", "Validation"]


@dataclass(frozen=True)
class Validation:
    """Figures over all validation windows.

    Attributes
    ----------
    step
        Steps done before; 0 for the untrained network.
    loss
        Mean loss of the batches of windows, each weighted by its labelled pixels.
    mean_dice
        Mean of `dice`; the larger, the better. Early stopping and the choice of the best weights go by it.
    dice
        Dice of each foreground class by its name, from the pixels of all windows together; a class that no window has
        is left out.
    """

    step: int
    loss: float
    mean_dice: float
    dice: Mapping[str, float]


@dataclass
class History:
    """Losses of the steps, the validations, and the weights at the best of them.

    Attributes
    ----------
    losses
        Of each step.
    validations
        In the order of their steps.
    best_weights
        State dict, on the CPU, of the first validation with the largest mean Dice; None before any.
    """

    losses: list[float] = field(default_factory=list)
    validations: list[Validation] = field(default_factory=list)
    best_weights: dict[str, Any] | None = None

    @property
    def best(self) -> Validation | None:
        """The first validation with the largest mean Dice; None before any."""
        return max(self.validations, key=lambda row: row.mean_dice, default=None)

    @property
    def best_step(self) -> int:
        """Steps that led to the best weights: all of them, if nothing was validated."""
        return len(self.losses) if self.best is None else self.best.step

    def add(self, row: Validation, weights: Mapping[str, Any]) -> bool:
        """Add a validation; keep a copy of the weights and return True if it is the best."""
        self.validations.append(row)
        better = self.best is row
        if better:
            self.best_weights = {name: value.detach().cpu().clone() for name, value in weights.items()}
        return better

    def is_over(self, steps: int, patience: int) -> bool:
        """Return whether all steps are done, or the last `patience` (more than 0) validations were no better."""
        since_best = sum(row.step > self.best_step for row in self.validations)
        return len(self.losses) >= steps or 0 < patience <= since_best
