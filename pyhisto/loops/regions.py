"""The loops over label images behind :mod:`pyhisto.nuclei` and the growth of cells in :mod:`pyhisto.measurements`."""

from __future__ import annotations

import math
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from pyhisto.loops.compiled import compiled

__all__ = ["claim", "expanded", "renumbered", "ways_down"]

Labels: TypeAlias = npt.NDArray[np.int32]
Distances: TypeAlias = npt.NDArray[Any]
Places: TypeAlias = npt.NDArray[np.int64]

_UP, _LEFT, _RIGHT, _DOWN = 1, 2, 4, 8
"""Bits of a grown pixel that waits: which neighbours take it away, should they stay themselves."""

_STAYS, _CUT = 0, 16
"""Of a pixel that waits no longer: of its label; between two labels."""


def expanded(labels: Labels, radius: float) -> Labels:
    """Let labels grow by less than `radius` px, each pixel to the nearest; where two meet a line of 0 stays.

    The line runs over the pixels that are farther from their label than the neighbour is from the other, so that it is
    where two floods that rise with the distance would meet.
    """
    # whole numbers below it are less than the square
    grown, distance = _nearest(labels, math.ceil(radius), math.ceil(radius * radius))
    _part(grown, distance)
    return grown


def _nearest(labels: Labels, reach: int, limit: int) -> tuple[Labels, Distances]:
    """Return the nearest labelled pixel's label, int32 (H, W), and squared distance, px², uint16 or uint32 (H, W).

    First along the columns, then along the rows (Saito and Toriwaki 1994). Exact up to `reach`; beyond it the distance
    is more than its square. The label is 0 where the squared distance is not below a limit.
    """
    # squared distance and sideways step in one number: the least is the nearest, leftmost pixel
    bits = (2 * reach).bit_length()
    small = 2 * (reach + 1) ** 2 << bits < 1 << 16
    steps = np.empty(labels.shape, dtype=np.uint16 if small else np.uint32)
    owner = _nearest_in_column(labels, steps, reach + 1, int(np.iinfo(steps.dtype).max) // 2 + 1)
    return _nearest_in_row(steps, owner, reach, bits, limit), steps


@compiled
def _nearest_in_column(labels: Labels, steps: Distances, far: int, flag: int) -> Labels:
    """Write how far above or below the nearest labelled pixel is, at most `far`; return its label.

    What is nearer below has the bit `flag`. Values are read before they are chosen from, else nothing is vectorised.
    """
    height, width = labels.shape
    number = steps.dtype.type
    most, one, below_it, all_else = number(far), number(1), number(flag), number(flag - 1)
    owner = np.empty((height, width), dtype=np.int32)
    for x in range(width):
        owner[0, x] = labels[0, x]
        steps[0, x] = most if labels[0, x] == 0 else number(0)
    for y in range(1, height):
        here, above, own, mine, its = steps[y], steps[y - 1], labels[y], owner[y], owner[y - 1]
        for x in range(width):
            step = above[x]
            step = number(step + one) if step < most else most
            here[x] = step if own[x] == 0 else number(0)
        for x in range(width):
            label, nearest = own[x], its[x]
            mine[x] = nearest if label == 0 else label
    for y in range(height - 2, -1, -1):
        here, below, mine, its = steps[y], steps[y + 1], owner[y], owner[y + 1]
        for x in range(width):
            step, known = number(number(below[x] & all_else) + one), here[x]
            here[x] = number(step | below_it) if step < known else known
        for x in range(width):
            label, nearest = mine[x], its[x]
            mine[x] = nearest if here[x] >= below_it else label
    return owner


@compiled
def _nearest_in_row(steps: Distances, owner: Labels, reach: int, bits: int, limit: int) -> Labels:
    """Return the label of the nearest pixel, 0 from a limit on; make squared distances of the steps in the columns."""
    height, width = steps.shape
    number = steps.dtype.type
    mask, shift, no_flag = number((1 << bits) - 1), number(bits), number((1 << (8 * steps.itemsize - 1)) - 1)
    column = np.empty(width + 2 * reach, dtype=steps.dtype)
    for x in range(len(column)):
        column[x] = number((reach + 1) ** 2 << bits)
    best = np.empty(width, dtype=steps.dtype)
    out = np.empty((height, width), dtype=np.int32)
    for y in range(height):
        here, mine, its, middle = steps[y], out[y], owner[y], column[reach : reach + width]
        for x in range(width):
            step = number(here[x] & no_flag)
            middle[x] = number((step * step) << bits)
            best[x] = number(middle[x] + number(reach))
        for away in range(1, reach + 1):
            before, behind = column[reach - away : reach - away + width], column[reach + away : reach + away + width]
            less, more = number((away * away << bits) + reach - away), number((away * away << bits) + reach + away)
            for x in range(width):
                a, b = number(before[x] + less), number(behind[x] + more)
                nearer = a if a < b else b
                best[x] = nearer if nearer < best[x] else best[x]
        for x in range(width):
            here[x] = number(best[x] >> shift)
            best[x] = number(best[x] & mask)
        for x in range(width):
            mine[x] = its[x + np.int64(best[x]) - reach]
        for x in range(width):
            label = mine[x]
            mine[x] = label if here[x] < limit else 0
    return out


@compiled
def _part(grown: Labels, distance: Distances) -> None:
    """Put lines of 0 between labels that grew until they met."""
    state = np.empty(grown.size, dtype=np.uint8)
    waiting = _rivals(grown, distance, state)
    _decide(state, waiting, grown.shape[1])
    flat = grown.ravel()
    for p in waiting:
        flat[p] = flat[p] if state[p] == _STAYS else 0


@compiled
def _rivals(grown: Labels, distance: Distances, state: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint32]:
    """Write which neighbours of a grown pixel have another label and come before it; return those that have any.

    What is nearer to its label comes first, then what comes first in raster order.
    """
    height, width = grown.shape
    found = np.empty(grown.size, dtype=np.uint32)
    bits = np.zeros((width + 7) // 8 * 8, dtype=np.uint8)
    eights = bits.view(np.uint64)
    n = 0
    for y in range(height):
        own, far, above, below = grown[y], distance[y], max(y - 1, 0), min(y + 1, height - 1)
        bits[:] = 0
        _note(bits[:width], own, far, grown[above], distance[above], 0, _UP)
        _note(bits[:width], own, far, grown[below], distance[below], 1, _DOWN)
        _note(bits[1:width], own[1:], far[1:], own[:-1], far[:-1], 0, _LEFT)
        _note(bits[: width - 1], own[:-1], far[:-1], own[1:], far[1:], 1, _RIGHT)
        for x in range(width):
            state[y * width + x] = bits[x]
        for eight in range(len(eights)):
            if eights[eight] != 0:
                for x in range(8 * eight, 8 * eight + 8):
                    found[n] = y * width + x
                    n += bits[x] != 0
    return found[:n].copy()


@compiled
def _note(
    bits: npt.NDArray[np.uint8], own: Labels, far: Distances, other: Labels, others: Distances, by: int, bit: int
) -> None:
    """Write a bit where the other pixel has another label, and its distance is less by `by` at least."""
    number = far.dtype.type
    more, none = number(by), number(0)
    for x in range(len(own)):
        grown = (own[x] != 0) & (far[x] > none)
        rival = (other[x] != 0) & (own[x] != other[x]) & (number(others[x] + more) <= far[x])
        bits[x] |= np.uint8(bit) if grown & rival else np.uint8(0)


@compiled
def _decide(state: npt.NDArray[np.uint8], waiting: npt.NDArray[np.uint32], wide: int) -> None:
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
def ways_down(low: Labels) -> npt.NDArray[np.int8]:
    """Return which neighbour is lower than the pixel and than the other three: 1 up, 2 left, 3 right, 4 down, 0 none.

    int8, shape of `low`, whose outermost pixels are outside, as are negative ones.
    """
    height, width = low.shape
    out = np.zeros((height, width), dtype=np.int8)
    most = np.uint32(2**32 - 1)  # what -1 looks like without a sign: outside is never lower
    unsigned = low.view(np.uint32)
    for y in range(1, height - 1):
        own, up, down = unsigned[y, 1:-1], unsigned[y - 1, 1:-1], unsigned[y + 1, 1:-1]
        left, right, way = unsigned[y, :-2], unsigned[y, 2:], out[y, 1:-1]
        for x in range(width - 2):
            first = np.int8(1) if up[x] < left[x] else np.int8(2)
            second = np.int8(3) if right[x] < down[x] else np.int8(4)
            a = up[x] if up[x] < left[x] else left[x]
            b = right[x] if right[x] < down[x] else down[x]
            tied = ((up[x] == left[x]) & (a < b)) | ((right[x] == down[x]) & (b < a)) | (a == b)
            lower = (a < own[x]) | (b < own[x])
            found = first if a < b else second
            way[x] = found if lower & (not tied) & (own[x] != most) else np.int8(0)
    return out


@compiled
def _running(count: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return the running sum."""
    out = np.empty(len(count), dtype=np.int64)
    total = 0
    for i in range(len(count)):
        total += count[i]
        out[i] = total
    return out


def claim(low: Labels, way: npt.NDArray[np.int8], label: Labels, wanted: Places, levels: int) -> None:
    """Label the wanted pixels as a flood would that rises from the labels that are there (Meyer 1991).

    Over the 4-neighbours, lowest pixels first. A pixel from which the steepest way down leads to a label has that
    label; only where ways end or fork, the flood itself is followed, in raster order where pixels are equally low.
    What is done does not depend on what is wanted.

    Parameters
    ----------
    low
        Levels 0 to `levels` - 1, int32 (H, W); negative outside, as the outermost pixels are.
    way
        As :func:`ways_down` returns it.
    label
        int32 (H, W); 0 where it is not known yet. Written into; -1 is what no label reaches.
    wanted
        Indices into the flat image, int64 (n,), in raster order.
    levels
        Number of levels.
    """
    wide = low.shape[1]
    steps = np.array([0, -wide, -1, 1, wide])
    levels_at, ways, known = low.ravel(), way.ravel(), label.ravel()
    unclear = np.sort(_without_way(levels_at, ways, known, wanted, steps))
    if len(unclear):
        rim = np.unique(_labelled_beside(known, unclear, steps))
        _flood(levels_at, known, unclear, rim, steps, levels)


@compiled
def _without_way(
    low: Labels, way: npt.NDArray[np.int8], label: Labels, wanted: Places, steps: npt.NDArray[np.int64]
) -> Labels:
    """Label the wanted pixels whose way leads to a label; mark by -1 and return all that a flood could come from."""
    unclear = np.empty(len(low), dtype=np.int32)
    n = 0
    for p in wanted:
        if label[p] == 0 and low[p] >= 0 and not _follow(p, way, label, steps):
            n = _list_way(p, way, label, steps, unclear, n)
    i = 0
    while i < n:
        for step in steps:
            q = unclear[i] + step
            if low[q] >= 0 and label[q] == 0 and not _follow(q, way, label, steps):
                n = _list_way(q, way, label, steps, unclear, n)
        i += 1
    return unclear[:n].copy()


@compiled
def _follow(start: int, way: npt.NDArray[np.int8], label: Labels, steps: npt.NDArray[np.int64]) -> bool:
    """Give the pixels of a way down the label at its end; False if there is none."""
    end = start
    while label[end] == 0 and way[end] > 0:
        end += steps[way[end]]
    found = label[end]
    if found <= 0:
        return False
    p = start
    while p != end:
        label[p] = found
        p += steps[way[p]]
    return True


@compiled
def _list_way(
    start: int, way: npt.NDArray[np.int8], label: Labels, steps: npt.NDArray[np.int64], unclear: Labels, n: int
) -> int:
    """List the pixels of a way down that ends without a label, and mark them by -1."""
    p = start
    while label[p] == 0:
        label[p] = -1
        unclear[n] = p
        n += 1
        if way[p] > 0:
            p += steps[way[p]]
    return n


@compiled
def _flood(low: Labels, label: Labels, free: Labels, rim: Labels, steps: npt.NDArray[np.int64], levels: int) -> None:
    """Let the labels of a rim grow over the free pixels around it, which are marked by -1, lowest first."""
    count = np.zeros(levels + 1, dtype=np.int64)
    for p in free:
        count[low[p] + 1] += 1
    for p in rim:
        count[low[p] + 1] += 1
    head, tail = _running(count), _running(count)
    queue = np.empty(len(free) + len(rim), dtype=np.int32)
    for p in rim:
        queue[tail[low[p]]] = p
        tail[low[p]] += 1
    now = 0
    while now < levels:
        if head[now] == tail[now]:
            now += 1
            continue
        p = queue[head[now]]
        head[now] += 1
        for step in steps:
            q = p + step
            if label[q] == -1:
                label[q] = label[p]
                queue[tail[low[q]]] = q
                tail[low[q]] += 1
                now = min(now, low[q])


@compiled
def _labelled_beside(label: Labels, free: Labels, steps: npt.NDArray[np.int64]) -> Labels:
    """Return the labelled pixels beside free ones, some more than once."""
    rim = np.empty(4 * len(free), dtype=np.int32)
    n = 0
    for p in free:
        for step in steps:
            if label[p + step] > 0:
                rim[n] = p + step
                n += 1
    return rim[:n].copy()


@compiled
def renumbered(labels: Labels, number: Labels) -> Labels:
    """Return ``number[labels]``, int32 (H, W)."""
    out = np.empty(labels.shape, dtype=np.int32)
    for y in range(labels.shape[0]):
        for x in range(labels.shape[1]):
            out[y, x] = number[labels[y, x]]
    return out
