"""Which candidates of all slides are proposed within a budget."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import shapely
from scipy.spatial.distance import cdist

from pyhisto.active.regions import Candidate
from pyhisto.active.strategy import Strategy
from pyhisto.errors import ConfigError

__all__ = ["Proposal", "k_center", "select"]

POOL = 3.0
"""Diversity chooses among the best-scored candidates that cost this many budgets together."""

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Proposal(Candidate):
    """A candidate that was chosen.

    Attributes
    ----------
    rank
        1 is the first that should be looked at.
    cost
        What it takes of the budget.
    reason
        By what it was chosen, ``entropy+diversity``.
    """

    rank: int = field(kw_only=True)
    cost: float = field(kw_only=True)
    reason: str = field(kw_only=True)


def select(
    candidates: Sequence[Candidate],
    *,
    budget: float,
    cost: Callable[[float], float] | None = None,
    strategy: Strategy | None = None,
    labelled: Floats | None = None,
) -> list[Proposal]:
    """Choose regions of any number of slides within one budget.

    By score alone, the best come first. With diversity, of the best that cost three budgets together those are taken
    that lie furthest from each other and from what is labelled (core-set, Sener and Savarese 2018; on what is
    uncertain, as in Yang et al. 2017, suggestive annotation). Without a score all are a pool (cold start). What costs
    more than is left is passed over.

    Parameters
    ----------
    candidates
        Of all slides; the features all of one length, or all empty without diversity.
    budget
        In the unit of the costs: mm², or minutes.
    cost
        What a region of an area in mm² costs; its area in mm² if None.
    strategy
        Score and diversity; how the scores came about does not matter here.
    labelled
        Features of what is labelled already, float32 (n, d).

    Returns
    -------
    list of Proposal
        In order of rank; empty where nothing fits.

    Raises
    ------
    ConfigError
        If the budget or a cost is not above 0, or features differ in length.
    """
    strategy = strategy or Strategy()
    if not budget > 0:
        raise ConfigError(f"a budget of {budget:g}", expected="above 0")
    costs = np.array([c.area_mm2 if cost is None else cost(c.area_mm2) for c in candidates])
    if not (costs > 0).all():
        raise ConfigError(f"a region that costs {costs.min():g}", expected="above 0")
    if strategy.score is None:
        order = np.arange(len(candidates))
    else:
        order = np.argsort([-c.score for c in candidates], kind="stable")
    if strategy.diversity and len(order):
        pool = order
        if strategy.score is not None:
            pool = order[: np.searchsorted(np.cumsum(costs[order]), POOL * budget) + 1]
        features = _standardised([c.features for c in candidates], labelled)
        known = features[len(candidates) :]
        first = 0 if strategy.score is not None else None
        ranked: Iterable[int] = (int(pool[i]) for i in k_center(features[pool], known, first=first))
    else:
        ranked = order.tolist()
    chosen = _affordable(candidates, costs, ranked, budget)
    return [
        Proposal(
            **{name: getattr(candidates[i], name) for name in Candidate.__dataclass_fields__},
            rank=rank,
            cost=float(costs[i]),
            reason=strategy.name,
        )
        for rank, i in enumerate(chosen, start=1)
    ]


def _affordable(
    candidates: Sequence[Candidate], costs: npt.NDArray[np.float64], ranked: Iterable[int], budget: float
) -> list[int]:
    """Return those that fit into the budget, in order, but none that overlaps one before it."""
    left = budget * (1 + 1e-9)
    chosen: list[int] = []
    of_slide: dict[str, list[Any]] = {}
    for i in ranked:
        if left < costs.min():
            break
        own = of_slide.setdefault(candidates[i].slide, [])
        if costs[i] > left or shapely.relate_pattern(candidates[i].polygon, own, "T********").any():
            continue
        chosen.append(i)
        own.append(candidates[i].polygon)
        left -= costs[i]
    return chosen


def _standardised(features: Sequence[Floats], labelled: Floats | None) -> npt.NDArray[np.float64]:
    """Return all features with mean 0 and standard deviation 1 over the candidates, those of the labelled last."""
    lengths = {len(row) for row in features} | (
        {labelled.shape[1]} if labelled is not None and len(labelled) else set()
    )
    if len(lengths) != 1 or lengths == {0}:
        raise ConfigError(f"features of {sorted(lengths)} numbers", expected="one length above 0, for diversity")
    own = np.asarray(features, dtype=np.float64)
    rows = own if labelled is None or not len(labelled) else np.concatenate([own, labelled])
    spread = own.std(axis=0)
    return np.asarray((rows - own.mean(axis=0)) / np.where(spread > 0, spread, 1))


def k_center(
    features: Floats | npt.NDArray[np.float64],
    known: Floats | npt.NDArray[np.float64] | None = None,
    *,
    first: int | None = None,
) -> Iterator[int]:
    """Yield all points in an order in which each is the furthest from those before it (Gonzalez 1985).

    The greatest distance of a point to the nearest of the first k is at most twice what the best k would leave; this
    is the greedy core-set of Sener and Savarese (2018, algorithm 1).

    Parameters
    ----------
    features
        (n, d), n > 0.
    known
        Points that stand before all of them, (m, d).
    first
        Which one to begin with where none is known; None begins with the one nearest to the mean.
    """
    if known is not None and len(known):
        distance = cdist(features, known).min(axis=1)
        following = int(np.argmax(distance))
    else:
        distance = np.full(len(features), np.inf)
        nearest = int(np.argmin(cdist(features, features.mean(axis=0, keepdims=True))))
        following = nearest if first is None else first
    for _ in range(len(features)):
        yield following
        distance = np.minimum(distance, cdist(features, features[[following]])[:, 0])
        distance[following] = -1
        following = int(np.argmax(distance))
