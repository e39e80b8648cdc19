"""How many minutes a person needs for a region, learnt from the rounds that were timed."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.optimize

from pyhisto.errors import ConfigError

if TYPE_CHECKING:
    from qupath_ext.active.loop import Loop, Round, Target

__all__ = ["DEFAULTS", "CostModel", "Reviewed", "answered", "fit_cost", "loop_cost", "minutes_between"]

PAUSE_MIN = 15.0
"""A longer time between two regions was a pause."""

DATA_ERROR, DEFAULT_ERROR = 0.25, 1.0
"""Relative standard errors of minutes that were measured, and of the terms of the default."""


@dataclass(frozen=True)
class Reviewed:
    """Regions that a person went through, such as those of a round.

    Attributes
    ----------
    regions
        How many.
    area_mm2
        Their area together, mm².
    corrections
        How many objects the person moved, reclassified, deleted or added there.
    minutes
        How long it took; None if nobody said.
    """

    regions: int
    area_mm2: float
    corrections: int
    minutes: float | None


@dataclass(frozen=True)
class CostModel:
    """Minutes of a region: ``per_region + (per_mm2 + per_correction * corrections_per_mm2) * area``.

    Attributes
    ----------
    per_region, per_mm2, per_correction
        Minutes to find a region and to mark it, to look at a mm² of it, and to correct an object.
    corrections_per_mm2
        How many corrections are to be expected.
    timed
        How many rounds with known minutes this rests on; 0 for the default alone.
    """

    per_region: float
    per_mm2: float
    per_correction: float
    corrections_per_mm2: float
    timed: int = 0

    def minutes(self, area_mm2: float) -> float:
        """Return the minutes that a region of so many mm² is expected to take."""
        return self.per_region + area_mm2 * (self.per_mm2 + self.per_correction * self.corrections_per_mm2)


DEFAULTS: dict[Target, CostModel] = {
    "cells": CostModel(per_region=0.5, per_mm2=15.0, per_correction=0.05, corrections_per_mm2=200.0),
    "tissue": CostModel(per_region=0.5, per_mm2=1.0, per_correction=0.5, corrections_per_mm2=4.0),
}
"""Guesses that stand until a round was timed: half a minute for a region; a mm² has 3000 cells, ten of which are looked
at in 3 s, and 3 s for each that is wrong; an outline of tissue takes half a minute."""


def fit_cost(reviewed: Sequence[Reviewed], target: Target) -> CostModel:
    """Return the cost model that earlier rounds tell.

    Least squares with terms that are not negative (Lawson & Hanson 1974, chapter 23), of relative errors. The default
    counts as one observation of each term with an error of :data:`DEFAULT_ERROR`, beside minutes with one of
    :data:`DATA_ERROR`, so that one round does not have to tell three numbers (Tikhonov regularisation).

    Parameters
    ----------
    reviewed
        Earlier rounds; those without minutes still tell how many corrections there are.
    target
        What is corrected; decides the default.

    Raises
    ------
    ConfigError
        If minutes are not above 0.
    """
    default = DEFAULTS[target]
    timed = [(one, one.minutes) for one in reviewed if one.minutes is not None]
    for _, minutes in timed:
        if not 0 < minutes < float("inf"):
            raise ConfigError(f"a round that took {minutes:g} minutes", expected="more than 0")
    prior = np.array([default.per_region, default.per_mm2, default.per_correction])
    amounts = np.array([[one.regions, one.area_mm2, one.corrections] for one, _ in timed]).reshape(-1, 3)
    measured = amounts / np.array([minutes for _, minutes in timed]).reshape(-1, 1) / DATA_ERROR
    rows = np.concatenate([measured, np.diag(1 / prior) / DEFAULT_ERROR])
    wanted = np.concatenate([np.full(len(timed), 1 / DATA_ERROR), np.full(3, 1 / DEFAULT_ERROR)])
    per_region, per_mm2, per_correction = scipy.optimize.nnls(rows, wanted)[0].tolist()
    area = sum(one.area_mm2 for one in reviewed)
    density = sum(one.corrections for one in reviewed) / area if area > 0 else default.corrections_per_mm2
    return CostModel(per_region, per_mm2, per_correction, density, len(timed))


def minutes_between(marks: Sequence[str]) -> float | None:
    """Return how long some regions took by when each was marked; None if that does not say.

    The time from one mark to the next is that of a region, unless it is more than :data:`PAUSE_MIN`. The first region,
    and those after a pause, count as the mean of the others.

    Parameters
    ----------
    marks
        ISO 8601.

    Examples
    --------
    >>> minutes_between(["2026-01-01T10:00:00Z", "2026-01-01T10:03:00Z", "2026-01-01T12:00:00Z"])
    9.0
    """
    times = np.array(sorted(datetime.datetime.fromisoformat(mark).timestamp() for mark in marks))
    gaps = np.diff(times) / 60
    gaps = gaps[gaps <= PAUSE_MIN]
    return round(len(times) * float(gaps.mean()), 2) if gaps.any() else None


def answered(one: Round) -> dict[str, Any]:
    """Return what a collected round added to what is known.

    Returns
    -------
    dict
        ``regions`` that are done, their ``area_mm2``, the ``minutes`` that they took (as the person said, else by when
        they were marked, else None), and ``objects``, number by kind of correction.
    """
    collected = one.record["collected"]
    regions = list(collected["regions"].values())
    done = [region for region in regions if region["answer"] == "done"]
    marks = [region["marked"] for region in regions if region.get("marked")]
    return {
        "regions": len(done),
        "area_mm2": round(sum(region["area_mm2"] for region in done), 6),
        "minutes": minutes_between(marks) if collected["minutes"] is None else collected["minutes"],
        "objects": dict(collected["totals"]),
    }


def loop_cost(loop: Loop) -> CostModel:
    """Return the cost model of a loop, from the rounds that were collected.

    Raises
    ------
    FormatError
        If the record of a round is damaged.
    """
    reviewed = []
    for one in loop.rounds():
        if "collected" in one.record:
            added = answered(one)
            corrections = sum(count for kind, count in added["objects"].items() if kind != "confirmed")
            reviewed.append(Reviewed(added["regions"], added["area_mm2"], corrections, added["minutes"]))
    return fit_cost([one for one in reviewed if one.regions], loop.settings.target)
