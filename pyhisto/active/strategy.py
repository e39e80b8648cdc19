"""What a round of active learning goes by: which score, weighted by rare classes or not, with diversity or not."""

from __future__ import annotations

from dataclasses import dataclass

from pyhisto.errors import ConfigError

__all__ = ["SCORES", "Strategy", "parse_strategy"]

SCORES = ("entropy", "margin", "bald", "flips", "random")
"""Scores of regions; all but ``random`` need maps of a model."""


@dataclass(frozen=True)
class Strategy:
    """How regions are chosen.

    Attributes
    ----------
    score
        One of :data:`SCORES`; None goes by diversity alone, for which no model is needed.
    rarity
        What a model takes for a rare class weighs more.
    diversity
        Regions that look like each other, or like what is labelled already, are not chosen twice.

    Raises
    ------
    ConfigError
        If there is no such score, rarity stands without one, or nothing is left to go by.
    """

    score: str | None = "entropy"
    rarity: bool = False
    diversity: bool = True

    def __post_init__(self) -> None:
        if self.score is not None and self.score not in SCORES:
            raise ConfigError(f"score {self.score!r}", expected=f"one of {', '.join(SCORES)}")
        if self.rarity and not self.informed:
            raise ConfigError(f"rarity with {self.score or 'diversity alone'}", expected="a score of what a model says")
        if self.score is None and not self.diversity:
            raise ConfigError("a strategy without score and diversity", expected="at least one of the two")

    @property
    def informed(self) -> bool:
        """Whether maps of a model are needed."""
        return self.score not in (None, "random")

    @property
    def name(self) -> str:
        """What :func:`parse_strategy` reads: ``entropy+rarity+diversity``."""
        parts = [self.score or "", "rarity" if self.rarity else "", "diversity" if self.diversity else ""]
        return "+".join(part for part in parts if part)


def parse_strategy(text: str) -> Strategy:
    """Return the strategy of a name such as ``entropy``, ``bald+rarity+diversity``, ``diversity`` or ``random``.

    Raises
    ------
    ConfigError
        If a part is unknown or stands twice.

    Examples
    --------
    >>> parse_strategy("diversity+entropy").name
    'entropy+diversity'
    """
    parts = [part.strip() for part in text.split("+")]
    scores = [part for part in parts if part in SCORES]
    unknown = [part for part in parts if part not in (*SCORES, "rarity", "diversity")]
    if unknown or len(set(parts)) < len(parts) or len(scores) > 1:
        raise ConfigError(
            f"strategy {text!r}", expected=f"one of {', '.join(SCORES)}, with +rarity, +diversity; or diversity alone"
        )
    return Strategy(scores[0] if scores else None, rarity="rarity" in parts, diversity="diversity" in parts)
