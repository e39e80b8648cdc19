"""How a network is trained."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from pyhisto.errors import ConfigError
from pyhisto.losses.settings import LossSettings

__all__ = ["TrainSettings"]

AT_LEAST = {
    **{"steps": 1, "batch_size": 1, "checkpoint_every": 1, "validate_every": 1},
    **{"weight_decay": 0, "seed": 0, "workers": 0, "patience": 0},
}


@dataclass(frozen=True)
class TrainSettings:
    """How a network is trained.

    Attributes
    ----------
    steps, batch_size
        Number of optimiser steps at most, and patches in each, over all processes together.
    learning_rate, weight_decay
        Peak of the one-cycle schedule (Smith 2018) and decay of AdamW (Loshchilov 2019), which biases and the scales of
        normalisation layers are spared.
    clip_norm
        Largest norm of the gradient.
    seed
        Of weights and patches.
    workers
        Processes that read patches beside the loop (of each process, if there are several).
    checkpoint_every
        Steps between checkpoints; a killed training goes on from the last one.
    validate_every
        Steps between validations.
    patience
        Validations in a row without a better figure after which the training stops; 0 for never.
    precision
        What the network computes in: ``"float32"``; ``"bfloat16"`` where the device is fast at it; ``"float16"`` with
        scaled gradients on CUDA; ``"auto"`` for the fastest of them. Weights and loss are float32 in all cases.
    keep_statistics
        Leave the means and variances of normalisation layers as they are, those of the weights to go on from: a few
        images do not give better ones.
    loss
        See :class:`pyhisto.losses.settings.LossSettings`.

    Raises
    ------
    ConfigError
        If a number is out of range.
    """

    steps: int = 150
    batch_size: int = 8
    learning_rate: float = 2e-3
    weight_decay: float = 1e-4
    clip_norm: float = 1.0
    seed: int = 0
    workers: int = 1
    checkpoint_every: int = 25
    validate_every: int = 50
    patience: int = 0
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    keep_statistics: bool = False
    loss: LossSettings = field(default_factory=LossSettings)

    def __post_init__(self) -> None:
        for name, least in AT_LEAST.items():
            if not getattr(self, name) >= least:
                raise ConfigError(f"{name} = {getattr(self, name)}", expected=f"at least {least}")
        for name in ("learning_rate", "clip_norm"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name} = {getattr(self, name)}", expected="more than 0")
