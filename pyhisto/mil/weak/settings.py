"""How a classifier of tiles is learnt from labels of slides."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from pyhisto.errors import ConfigError

__all__ = ["MLP", "NetworkSettings", "WeakSettings"]

MLP = "mlp"
"""The network for features; all others see the pixels of tiles."""


@dataclass(frozen=True)
class NetworkSettings:
    """The network that judges an instance.

    Attributes
    ----------
    name
        :data:`MLP` for features; for tiles ``"cnn"`` or an encoder, as in
        :func:`pyhisto.models.cascade.build_detector`.
    hidden, dropout
        Width of the hidden layer of :data:`MLP` (0: none, a linear classifier), and the share of it that is dropped.
    channels
        Of the layers of ``"cnn"``.
    encoder_weights
        As in :func:`pyhisto.models.encoders.load_encoder_weights`; where training begins.

    Raises
    ------
    ConfigError
        If a number is out of range.
    """

    name: str = MLP
    hidden: int = 256
    dropout: float = 0.25
    channels: tuple[int, ...] = (16, 32, 64, 64)
    encoder_weights: str = "random"

    def __post_init__(self) -> None:
        if self.hidden < 0 or not 0 <= self.dropout < 1 or min(self.channels, default=1) < 1:
            raise ConfigError(
                f"hidden {self.hidden}, dropout {self.dropout:g}, channels {self.channels}",
                expected="0 or more, 0 to below 1, and 1 or more",
            )


@dataclass(frozen=True)
class WeakSettings:
    """Settings of a training.

    Attributes
    ----------
    network
        See :class:`NetworkSettings`.
    epochs
        Most passes over the training slides.
    patience
        Stop after so many epochs without better validation slides; 0 for never.
    learning_rate, weight_decay
        Of Adam (Kingma & Ba 2015), the decay as an L2 penalty.
    batch_size
        Slides of a step.
    instances
        Most tiles of a slide in a step, drawn anew each time; the rule is applied to those. The paper draws 150.
    class_weights
        ``"balanced"``: positive and negative slides count alike; ``"none"``.
    seed
        Of the first weights and all else that is drawn.
    memory_mb
        Features or tiles kept in memory, MB.
    threads
        That read ahead.

    Raises
    ------
    ConfigError
        If a value is out of range.
    """

    network: NetworkSettings = field(default_factory=NetworkSettings)
    epochs: int = 100
    patience: int = 20
    learning_rate: float = 1e-3
    weight_decay: float = 1e-4
    batch_size: int = 4
    instances: int = 150
    class_weights: Literal["balanced", "none"] = "balanced"
    seed: int = 0
    memory_mb: int = 1024
    threads: int = 2

    def __post_init__(self) -> None:
        checks = (
            ("epochs", self.epochs, self.epochs >= 1, "1 or more"),
            ("patience", self.patience, self.patience >= 0, "0 or more"),
            ("learning rate", self.learning_rate, 0 < self.learning_rate < 1, "between 0 and 1"),
            ("weight decay", self.weight_decay, 0 <= self.weight_decay < 1, "from 0 to below 1"),
            ("batch size", self.batch_size, self.batch_size >= 1, "1 or more"),
            ("instances", self.instances, self.instances >= 1, "1 or more"),
            ("class weights", self.class_weights, self.class_weights in ("balanced", "none"), "balanced or none"),
            ("memory", self.memory_mb, self.memory_mb >= 0, "0 MB or more"),
            ("threads", self.threads, self.threads >= 1, "1 or more"),
        )
        for name, value, good, expected in checks:
            if not good:
                raise ConfigError(f"{name} of {value}", expected=expected)
