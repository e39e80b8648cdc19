"""The loops over label images behind :mod:`pyhisto.nuclei` and the growth of cells in :mod:`pyhisto.measurements`."""

from __future__ import annotations

import math
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from pyhisto.loops.compiled import compiled
from pyhisto.loops.scratch import Scratch

__all__ = ["expanded", "marked", "renumbered"]

Labels: TypeAlias = npt.NDArray[Any]
Distances: TypeAlias = npt.NDArray[Any]
Places: TypeAlias = npt.NDArray[np.int64]

_UP, _LEFT, _RIGHT, _DOWN = 1, 2, 4, 8
"""Bits of a grown pixel that waits: which neighbours take it away, should they stay themselves."""

_STAYS, _CUT = 0, 16
"""Of a pixel that waits no longer: of its label; between two labels."""


def expanded(labels: Labels, radius: float, scratch: Scratch) -> Labels:
    """Let labels, uint16 or int32, grow by less than `radius` px, each to the nearest; where two meet a line stays.

    The line runs over the pixels that are farther from their label than the neighbour is from the other, so that it is
    where two floods that rise with the distance would meet.
    """
    limit = math.ceil(radius * radius)  # whole numbers below it are less than the square
    grown, distance = _nearest(labels, math.ceil(radius), limit, scratch)
    _part(grown, distance, limit, scratch)
    return grown


def _nearest(labels: Labels, reach: int, limit: int, scratch: Scratch) -> tuple[Labels, Distances]:
    """Return the nearest labelled pixel's label and squared distance, px², uint16 or uint32, both (H, W).

    First along the columns, then along the rows (Saito and Toriwaki 1994). Exact up to `reach`; beyond it the distance
    is more than its square. The label is 0 where the squared distance is not below a limit.
    """
    # squared distance and sideways step in one number: the least is the nearest, leftmost pixel
    bits = (2 * reach).bit_length()
    small = 2 * (reach + 1) ** 2 << bits < 1 << 16
    steps = scratch.array("steps", labels.shape, np.uint16 if small else np.uint32)
    owner = scratch.array("owner", labels.shape, labels.dtype)
    rows = np.arange(len(labels))
    _nearest_above(labels, steps, owner, rows, reach + 1)
    _nearest_of_all(labels, steps, owner, rows[::-1].copy(), reach, bits, limit)
    return owner, steps


@compiled
def _nearest_above(labels: Labels, steps: Distances, owner: Labels, rows: Places, far: int) -> None:
    """Write how far above the nearest labelled pixel of a column is, at most `far`, and its label.

    The numbers of the rows are read from `rows`: LLVM vectorises no row if it sees that rows are counted down, or that
    one reads what was written to the last.
    """
    width = labels.shape[1]
    number = steps.dtype.type
    most, one, none = number(far), number(1), number(0)
    for x in range(width):
        owner[0, x] = labels[0, x]
        steps[0, x] = most if labels[0, x] == 0 else none
    for y in rows[1:]:
        last = rows[y - 1]
        here, above, own, mine, its = steps[y], steps[last], labels[y], owner[y], owner[last]
        for x in range(width):
            step = above[x]
            step = number(step + one) if step < most else most
            here[x] = step if own[x] == 0 else none
        for x in range(width):
            label, nearest = own[x], its[x]
            mine[x] = nearest if label == 0 else label


@compiled
def _nearest_of_all(
    labels: Labels, steps: Distances, owner: Labels, upwards: Places, reach: int, bits: int, limit: int
) -> None:
    """Make of the nearest pixels above, their steps and labels, the nearest ones of all: squared distances and labels.

    The rows are taken in the order `upwards`, from the last to the first.
    """
    width = labels.shape[1]
    number = steps.dtype.type
    under, best, column = steps[0].copy(), steps[0].copy(), np.empty(width + 2 * reach, dtype=steps.dtype)
    below, last = np.zeros(width, dtype=labels.dtype), np.zeros(width, dtype=labels.dtype)
    vertical, nearest = np.zeros(width + 2 * reach, dtype=labels.dtype), np.empty(width, dtype=labels.dtype)
    under[:] = number(reach + 1)
    column[:] = number((reach + 1) ** 2 << bits)
    squares, owners = column[reach : reach + width], vertical[reach : reach + width]
    mask, shift, least, nobody = number((1 << bits) - 1), number(bits), number(limit), labels.dtype.type(0)
    for y in upwards:
        here, mine = steps[y], owner[y]
        below, last = last, below
        _look_below(labels[y], under, number(reach + 1), last, below)
        for x in range(width):
            a, b = below[x], mine[x]
            owners[x] = a if under[x] < here[x] else b
        for x in range(width):
            a, b = under[x], here[x]
            step = a if a < b else b
            squares[x] = number((step * step) << bits)
        _look_aside(column, best, reach, bits)
        for x in range(width):
            here[x] = number(best[x] >> shift)
            best[x] = number(best[x] & mask)
        for x in range(width):
            nearest[x] = vertical[x + np.int64(best[x])]
        for x in range(width):
            label = nearest[x]
            mine[x] = label if here[x] < least else nobody


@compiled
def _look_below(own: Labels, steps: Distances, most: int, last: Labels, label: Labels) -> None:
    """Make of the steps from the row below down to the nearest label, and of that label, those of a row.

    What is chosen is never written to where it was read: that would take ten times as long.
    """
    number = steps.dtype.type
    one, none = number(1), number(0)
    for x in range(len(own)):
        step, mine = steps[x], own[x]
        step = number(step + one) if step < most else most
        steps[x] = step if mine == 0 else none
    for x in range(len(own)):
        mine, its = own[x], last[x]
        label[x] = its if mine == 0 else mine


@compiled
def _look_aside(column: Distances, best: Distances, reach: int, bits: int) -> None:
    """Write the least squared distance of the pixels of a row, and from how far left it comes plus `reach`.

    Both in one number, the distance in the upper bits; `column` has the squared distances along the columns there, and
    `reach` more on each side.
    """
    number = best.dtype.type
    width = len(best)
    middle, own = number(reach), column[reach : reach + width]
    for x in range(width):
        best[x] = number(own[x] + middle)
    for away in range(1, reach + 1):
        left, right = column[reach - away : reach - away + width], column[reach + away : reach + away + width]
        less, more = number((away * away << bits) + reach - away), number((away * away << bits) + reach + away)
        for x in range(width):
            a, b = number(left[x] + less), number(right[x] + more)
            nearer = a if a < b else b
            best[x] = nearer if nearer < best[x] else best[x]


def _part(grown: Labels, distance: Distances, limit: int, scratch: Scratch) -> None:
    """Put lines of 0 between labels that grew until they met, by less than the limit of the squared distance."""
    state = scratch.array("state", grown.shape, np.uint8)
    _note_rivals(grown, distance, limit, state)
    waiting = marked(state.ravel(), scratch.array("waiting", (grown.size,), np.int32))
    _decide(state.ravel(), waiting, grown.shape[1])
    _cut(grown.ravel(), state.ravel(), waiting)


@compiled
def _cut(labels: Labels, state: npt.NDArray[np.uint8], waiting: Labels) -> None:
    """Make the pixels that waited, and do not stay, no one's."""
    for p in waiting:
        labels[p] = labels[p] if state[p] == _STAYS else 0


@compiled
def _note_rivals(grown: Labels, distance: Distances, limit: int, state: npt.NDArray[np.uint8]) -> None:
    """Write which neighbours of a grown pixel have another label and come before it.

    What is nearer to its label comes first, then what comes first in raster order.
    """
    height, width = grown.shape
    # a row with a border of pixels that are no one's
    row, its = np.zeros(width + 2, dtype=grown.dtype), np.empty(width + 2, dtype=distance.dtype)
    its[0] = its[-1] = limit
    own, far = row[1:-1], its[1:-1]
    for y in range(height):
        label, square = grown[y], distance[y]
        for x in range(width):
            own[x], far[x] = label[x], square[x]
        state[y] = 0
        above, below = max(y - 1, 0), min(y + 1, height - 1)
        _note(state[y], own, far, limit, grown[above], distance[above], _UP, grown[below], distance[below], _DOWN)
        _note(state[y], own, far, limit, row[:-2], its[:-2], _LEFT, row[2:], its[2:], _RIGHT)


@compiled
def _note(  # noqa: PLR0913 - a pixel and the two neighbours
    state: npt.NDArray[np.uint8],
    own: Labels,
    far: Distances,
    limit: int,
    former: Labels,
    its: Distances,
    bit: int,
    latter: Labels,
    others: Distances,
    its_bit: int,
) -> None:
    """Write the bit of a neighbour that is of another label and comes first; the latter only if it is nearer.

    What is not nearer than the limit is of no label, and comes before nothing that is.
    """
    number = far.dtype.type
    one, most = number(1), number(limit - 1)
    first, second, none = np.uint8(bit), np.uint8(its_bit), np.uint8(0)
    for x in range(len(own)):
        grown = number(far[x] - one) < most  # not 0, and less than the limit
        a = grown & (own[x] != former[x]) & (its[x] <= far[x])
        b = grown & (own[x] != latter[x]) & (others[x] < far[x])
        state[x] |= (first if a else none) | (second if b else none)


@compiled
def marked(state: npt.NDArray[np.uint8], found: Labels) -> Labels:
    """Return which pixels of a flat image are not 0, int32 (n,): the first ones of `found`, room for all."""
    whole = len(state) // 8 * 8
    eights = state[:whole].view(np.uint64)
    n = 0
    for eight in range(len(eights)):
        if eights[eight] != 0:
            for p in range(8 * eight, 8 * eight + 8):
                found[n] = p
                n += state[p] != 0
    for p in range(whole, len(state)):
        if state[p] != 0:
            found[n] = p
            n += 1
    return found[:n]


@compiled
def _decide(state: npt.NDArray[np.uint8], waiting: Labels, wide: int) -> None:
    """Cut every waiting pixel one of whose rivals stays; a pixel waits until those are decided."""
    stack = np.empty(len(waiting) + 1, dtype=np.int64)
    for start in waiting:
        stack[0], depth = start, 1 if _STAYS < state[start] < _CUT else 0
        while depth > 0:
            p = stack[depth - 1]
            rivals, found = state[p], _STAYS
            for bit, step in ((_UP, -wide), (_LEFT, -1), (_RIGHT, 1), (_DOWN, wide)):
                if rivals & bit:
                    its = state[p + step]
                    if its == _STAYS:
                        found = _CUT
                        break
                    if its < _CUT:
                        found, stack[depth] = rivals, p + step
            if found == rivals:
                depth += 1
            else:
                state[p] = found
                depth -= 1


@compiled
def renumbered(labels: Labels, number: Labels, out: Labels) -> None:
    """Write ``number[labels]``, (H, W)."""
    for y in range(labels.shape[0]):
        for x in range(labels.shape[1]):
            out[y, x] = number[labels[y, x]]
