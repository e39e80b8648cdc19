"""How slide labels are learnt."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from pyhisto.errors import ConfigError
from pyhisto.models.mil import HeadSettings

__all__ = ["FitSettings"]


@dataclass(frozen=True)
class FitSettings:
    """Settings of a training on slide labels.

    Attributes
    ----------
    head
        Name as in :func:`pyhisto.models.mil.build_head`.
    options
        Of the head.
    scaled
        Whether features get mean 0 and standard deviation 1 over the instances of the training.
    epochs
        Most passes over the training bags.
    patience
        Stop after so many epochs without a lower validation loss; 0 for never.
    learning_rate, weight_decay
        Of Adam (Kingma & Ba 2015), the decay as an L2 penalty.
    batch_size
        Bags of a step.
    class_weights
        ``"balanced"``: bags / (classes * bags of the class), so that each class counts alike; ``"none"``.
    instances
        Most instances of a bag in a step, drawn anew each time; None for all.
    seed
        Of the first weights, the order of the bags and all else that is drawn.
    memory_mb
        Features kept in memory, MB.
    threads
        That read feature files.

    Raises
    ------
    ConfigError
        If a value is out of range.
    """

    head: str = "abmil"
    options: HeadSettings = field(default_factory=HeadSettings)
    scaled: bool = True
    epochs: int = 100
    patience: int = 15
    learning_rate: float = 2e-4
    weight_decay: float = 1e-5
    batch_size: int = 1
    class_weights: Literal["balanced", "none"] = "balanced"
    instances: int | None = None
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
            ("class weights", self.class_weights, self.class_weights in ("balanced", "none"), "balanced or none"),
            ("instances", self.instances, self.instances is None or self.instances >= 1, "1 or more"),
            ("memory", self.memory_mb, self.memory_mb >= 0, "0 MB or more"),
            ("threads", self.threads, self.threads >= 1, "1 or more"),
        )
        for name, value, good, expected in checks:
            if not good:
                raise ConfigError(f"{name} of {value}", expected=expected)
        if self.head == "prompt-mil" and self.scaled:
            raise ConfigError(
                "prompt-mil with scaled features", expected="pixels as they are", remedy="choose unscaled"
            )
