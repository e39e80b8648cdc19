"""Where a loop stands: the figures of its rounds, what the next one should bring, and when to stop."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from pyhisto.dataset.images import PARTS
from qupath_ext.active.cost import CostModel, loop_cost
from qupath_ext.active.curve import FEWEST, MIN_GAIN, Advice, Expected, advise, expect

if TYPE_CHECKING:
    from qupath_ext.active.loop import Loop

__all__ = ["ADVICE", "UNJUDGED", "Axis", "Learnt", "Status", "expectation", "loop_status", "status_lines"]

UNJUDGED = "no patient to validate on: there will be no figures, no learning curve and no advice"

ADVICE: dict[Advice, str] = {
    "go on": "go on",
    "little to gain": "little to gain, but that is not sure: one more round would tell",
    "stop": "stop: not even the upper limit of the gain is worth a round",
}


@dataclass(frozen=True)
class Learnt:
    """A round that trained a model.

    Attributes
    ----------
    number
        The round.
    mm2, minutes
        What was spent up to its end: area that a person went through, and time; None where a round was not timed.
    record
        See :func:`qupath_ext.active.training.train_round`.
    """

    number: int
    mm2: float
    minutes: float | None
    record: dict[str, Any]

    def figure(self, part: str) -> dict[str, Any] | None:
        """Return the figures of a part of the split; None where there is no number."""
        found: dict[str, Any] | None = self.record["figures"].get(part)
        return found if found and found["value"] is not None else None


@dataclass(frozen=True)
class Axis:
    """One way to count what was spent.

    Attributes
    ----------
    name
        ``"minutes"`` or ``"mm²"``.
    spent
        Up to the end of each round that has a figure.
    after
        Up to the end of the next round.
    expected
        What that one should bring; None before there is a curve.
    """

    name: str
    spent: tuple[float, ...]
    after: float
    expected: Expected | None


@dataclass(frozen=True)
class Status:
    """Where a loop stands.

    Attributes
    ----------
    learnt
        The rounds that trained a model.
    judged
        Those of them that have a figure on the patients to validate on.
    axes
        The learning curve over mm², and before that over minutes where all rounds were timed.
    next_mm2, next_minutes
        What the next round will take.
    cost
        By what the minutes are estimated.
    advice
        Whether to go on.
    """

    learnt: tuple[Learnt, ...]
    judged: tuple[Learnt, ...]
    axes: tuple[Axis, ...]
    next_mm2: float
    next_minutes: float
    cost: CostModel
    advice: Advice


def loop_status(loop: Loop) -> Status:
    """Return where a loop stands.

    The next round is the one that is open, or one of the loop's budget. Whether to go on is decided by the first axis,
    on the patients to validate on: those to test on are for the end.

    Raises
    ------
    FormatError
        If a record is damaged.
    """
    cost = loop_cost(loop)
    learnt = _learnt(loop)
    judged = [one for one in learnt if one.figure("validation")]
    mm2, minutes = _next(loop, cost)
    axes = []
    times = [one.minutes for one in judged if one.minutes is not None]
    if judged and len(times) == len(judged):
        axes.append(_axis("minutes", judged, times, minutes))
    axes.append(_axis("mm²", judged, [one.mm2 for one in judged], mm2))
    return Status(tuple(learnt), tuple(judged), tuple(axes), mm2, minutes, cost, advise(axes[0].expected))


def _learnt(loop: Loop) -> list[Learnt]:
    """Return the rounds that trained a model, oldest first, with what was spent up to their end."""
    out = []
    mm2, minutes = 0.0, 0.0
    timed = True
    for one in loop.rounds():
        record = one.training
        if record is None:
            continue
        mm2 += record["added"]["area_mm2"]
        taken = record["added"]["minutes"]
        timed &= taken is not None
        minutes += taken or 0.0
        if record["model"] is not None:
            out.append(Learnt(one.number, mm2, minutes if timed else None, record))
    return out


def _next(loop: Loop, cost: CostModel) -> tuple[float, float]:
    """Return mm² and minutes of the round that is open, or of one by the loop's budget."""
    latest = loop.latest
    regions = mm2 = 0.0
    if latest is not None and latest.state in ("proposed", "collected"):
        proposed = latest.record["proposed"]
        regions, mm2 = proposed["regions"], proposed["area_mm2"]
    if not regions or not mm2:
        mm2 = loop.settings.budget_mm2
        regions = max(1.0, mm2 / (loop.settings.region_um / 1000) ** 2)
    return mm2, regions * cost.minutes(mm2 / regions)


def _axis(name: str, judged: Sequence[Learnt], spent: Sequence[float], more: float) -> Axis:
    """Return a way to count, with the curve where there are rounds enough."""
    after = (spent[-1] if spent else 0.0) + more
    steps = np.diff([0.0, *spent])
    if len(judged) < FEWEST or not (steps > 0).all():
        return Axis(name, tuple(spent), after, None)
    images = [{image["image"]: image for image in (one.figure("validation") or {})["images"]} for one in judged]
    common = sorted(set.intersection(*(set(own) for own in images)))
    if not common:
        return Axis(name, tuple(spent), after, None)
    sums = np.array([[list(own[image]["by_class"].values()) for image in common] for own in images], dtype=np.float64)
    expected = expect(spent, sums, [images[0][image]["patient"] for image in common], after)
    return Axis(name, tuple(spent), after, expected)


def status_lines(loop: Loop) -> list[str]:
    """Return lines about the rounds of a loop, its curve, and whether to go on.

    Raises
    ------
    FormatError
        If a record is damaged.
    """
    status = loop_status(loop)
    settings = loop.settings
    patients = ", ".join(f"{len(loop.split.of_part(part))} {part}" for part in PARTS)
    rounds = loop.rounds()
    lines = [
        f"loop {loop.name}: {settings.target}, {', '.join(settings.classes)}; {settings.strategy}",
        f"patients: {patients} (frozen); {len(rounds)} rounds"
        + (f", the last one {rounds[-1].state}" if rounds else ""),
    ]
    lines += [_round_line(one) for one in status.learnt]
    timed = f"{status.cost.timed} timed rounds" if status.cost.timed else "a guess until a round was timed"
    lines.append(f"next round: {status.next_mm2:.3g} mm², about {status.next_minutes:.0f} minutes ({timed})")
    lines += [
        expectation(axis, status.judged[0].record["figures"]["validation"]["metric"])
        for axis in status.axes
        if axis.expected is not None
    ]
    if not loop.split.of_part("validation"):
        lines.append(UNJUDGED)
    elif status.learnt and not status.judged:
        lines.append("no figures: nothing is labelled on the patients to validate on; annotate them, each area in full")
    elif all(axis.expected is None for axis in status.axes):
        lines.append(f"no curve yet: it needs {FEWEST} rounds with figures")
    lines.append(f"advice: {ADVICE[status.advice]}")
    return lines


def _round_line(one: Learnt) -> str:
    """Return a line about a round."""
    added = one.record["added"]
    objects = ", ".join(f"{count} {kind}" for kind, count in added["objects"].items() if count) or "no objects"
    took = "" if added["minutes"] is None else f", {added['minutes']:g} min"
    figures = [f"{part} {_figure(found)}" for part in ("validation", "test") if (found := one.figure(part))]
    unread = len(one.record.get("left_out", ()))
    return (
        f"round {one.number}: {added['regions']} regions, {added['area_mm2']:.3g} mm²{took}; {objects}; "
        f"{', '.join(figures) or 'no figures'}"
        + (f"; without {unread} images that could not be read" if unread else "")
    )


def _figure(found: dict[str, Any]) -> str:
    """Return a figure with its interval in words."""
    interval = "" if found["low"] is None else f" ({found['low']:.3f} to {found['high']:.3f})"
    return f"{found['metric']} {found['value']:.3f}{interval}"


def expectation(axis: Axis, metric: str) -> str:
    """Return in a line what the next round should bring, by one way to count; there is a curve."""
    expected = axis.expected
    if expected is None:
        return ""
    interval = expected.method if np.isnan(expected.high) else f"{expected.low:+.3f} to {expected.high:+.3f}"
    return (
        f"expected at {axis.after:.3g} {axis.name}: {metric} {expected.now:.3f} -> {expected.then:.3f}, "
        f"{expected.gain:+.3f} ({interval}); a round is worth it from {MIN_GAIN:+g}"
    )
