"""Which loss a training has; importable without torch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

from pyhisto.errors import ConfigError

__all__ = ["LOSSES", "LossName", "LossSettings"]

LossName = Literal[
    "dice-ce", "dice-focal", "dice", "generalised-dice", "cross-entropy", "focal", "boundary-cross-entropy"
]

LOSSES: tuple[str, ...] = get_args(LossName)
"""Names of the losses; their formulas stand in :mod:`pyhisto.losses.masked`."""


@dataclass(frozen=True)
class LossSettings:
    """The loss of a training.

    Attributes
    ----------
    name
        One of :data:`LOSSES`. ``"dice-ce"`` and ``"dice-focal"`` are sums of two; ``"boundary-cross-entropy"`` needs
        the data set to give a weight for each pixel (Ronneberger 2015).
    class_weights
        Weight of each class (of each region, where there are regions) in the cross-entropy and the focal loss; empty
        for all alike. Dice weighs classes alike already and takes none.
    batch_dice
        Whether Dice is taken over all pixels of the batch; else it is the mean over the images.
    focal_gamma
        How much less an easy pixel counts (gamma of Lin 2017); 0 makes it the cross-entropy.

    Raises
    ------
    ConfigError
        If the name is not known, weights are negative, not finite or all 0, or given to a loss that takes none, or
        gamma is neither 0 nor at least 1 (below 1 its slope at a perfect pixel is not finite).
    """

    name: LossName = "dice-ce"
    class_weights: tuple[float, ...] = ()
    batch_dice: bool = True
    focal_gamma: float = 2.0

    def __post_init__(self) -> None:
        if self.name not in LOSSES:
            raise ConfigError(f"unknown loss {self.name!r}", expected=f"one of {', '.join(LOSSES)}")
        if self.class_weights and not (
            all(0 <= weight < math.inf for weight in self.class_weights) and any(self.class_weights)
        ):
            raise ConfigError(f"class_weights {self.class_weights}", expected="numbers from 0, not all 0")
        if self.class_weights and self.name in ("dice", "generalised-dice"):
            raise ConfigError(
                f"class_weights with the loss {self.name!r}",
                expected="none, since it weighs the classes itself",
                remedy="choose dice-ce or dice-focal, or leave the weights out",
            )
        if not (self.focal_gamma == 0 or 1 <= self.focal_gamma < math.inf):
            raise ConfigError(f"focal_gamma {self.focal_gamma}", expected="0, or 1 and more")
