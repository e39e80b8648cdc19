"""The loops over label images behind :mod:`pyhisto.nuclei` and the growth of cells in :mod:`pyhisto.measurements`."""

from __future__ import annotations

import math
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from pyhisto.loops.compiled import compiled

__all__ = ["claim", "expanded", "nearest_label", "renumbered", "ways_down"]

Labels: TypeAlias = npt.NDArray[np.int32]
Distances: TypeAlias = npt.NDArray[Any]

_OPEN, _STAYS, _CUT = 0, 1, 2
"""Of a grown pixel: not decided yet; of its label; between two labels."""


def nearest_label(labels: Labels, reach: int) -> tuple[Labels, Distances]:
    """Return the nearest labelled pixel's label, int32 (H, W), and squared distance, px², uint16 or uint32 (H, W).

    First along the columns, then along the rows (Saito and Toriwaki 1994). Exact up to `reach`; beyond it the distance
    is more than its square, and the label any or none.
    """
    # squared distance and sideways step in one number: the least is the nearest, leftmost pixel
    return _nearest_below(labels, reach, (2 * reach + 2) ** 2)


def _nearest_below(labels: Labels, reach: int, limit: int) -> tuple[Labels, Distances]:
    """Return what :func:`nearest_label` does, with 0 for the label where the squared distance is not below a limit."""
    bits = (2 * reach).bit_length()
    small = 2 * (reach + 1) ** 2 << bits < 1 << 16
    steps = np.empty(labels.shape, dtype=np.uint16 if small else np.uint32)
    owner = _nearest_in_column(labels, steps, reach + 1)
    return _nearest_in_row(steps, owner, reach, bits, limit), steps


@compiled
def _nearest_in_column(labels: Labels, steps: Distances, far: int) -> Labels:
    """Write how far above or below the nearest labelled pixel is, at most `far`; return its label."""
    height, width = labels.shape
    number = steps.dtype.type
    most, owner = number(far), labels.copy()
    for x in range(width):
        steps[0, x] = number(0) if owner[0, x] != 0 else most
    for y in range(1, height):
        here, above, mine, its = steps[y], steps[y - 1], owner[y], owner[y - 1]
        for x in range(width):
            step = number(above[x] + number(1)) if above[x] < most else most
            here[x] = step if mine[x] == 0 else number(0)
            mine[x] = its[x] if mine[x] == 0 else mine[x]
    for y in range(height - 2, -1, -1):
        here, below, mine, its = steps[y], steps[y + 1], owner[y], owner[y + 1]
        for x in range(width):
            step = number(below[x] + number(1))
            nearer = step < here[x]
            here[x] = step if nearer else here[x]
            mine[x] = its[x] if nearer else mine[x]
    return owner


@compiled
def _nearest_in_row(steps: Distances, owner: Labels, reach: int, bits: int, limit: int) -> Labels:
    """Return the label of the nearest pixel, 0 from a limit on; make squared distances of the steps in the columns."""
    height, width = steps.shape
    number = steps.dtype.type
    mask = (1 << bits) - 1
    column = np.empty(width + 2 * reach, dtype=steps.dtype)
    for x in range(len(column)):
        column[x] = number((reach + 1) ** 2 << bits)
    best = np.empty(width, dtype=steps.dtype)
    out = np.empty((height, width), dtype=np.int32)
    for y in range(height):
        here, mine, its, middle = steps[y], out[y], owner[y], column[reach : reach + width]
        for x in range(width):
            middle[x] = number((here[x] * here[x]) << bits)
            best[x] = number(middle[x] + number(reach))
        for step in range(1, reach + 1):
            before, behind = column[reach - step : reach - step + width], column[reach + step : reach + step + width]
            less, more = number((step * step << bits) + reach - step), number((step * step << bits) + reach + step)
            for x in range(width):
                a, b = number(before[x] + less), number(behind[x] + more)
                nearer = a if a < b else b
                best[x] = nearer if nearer < best[x] else best[x]
        for x in range(width):
            key = np.int64(best[x])
            here[x] = number(key >> bits)
            mine[x] = its[x + (key & mask) - reach] if key >> bits < limit else 0
    return out


def expanded(labels: Labels, radius: float) -> Labels:
    """Let labels grow by less than `radius` px, each pixel to the nearest; where two meet a line of 0 stays.

    The line runs over the pixels that are farther from their label than the neighbour is from the other, so that it is
    where two floods that rise with the distance would meet.
    """
    # whole numbers below it are less than the square
    grown, distance = _nearest_below(labels, math.ceil(radius), math.ceil(radius * radius))
    _part(grown, distance)
    return grown


@compiled
def _part(grown: Labels, distance: Distances) -> None:
    """Put lines of 0 between labels that grew until they met."""
    state = np.full(grown.size, _STAYS, dtype=np.uint8)
    order = _borders(grown, distance, state)
    flat = grown.ravel()
    _decide(flat, distance.ravel(), state, order, grown.shape[1])
    for p in order:
        flat[p] = flat[p] if state[p] == _STAYS else 0


@compiled
def _borders(grown: Labels, distance: Distances, state: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint32]:
    """Return the grown pixels beside another label, in raster order, and mark them as open."""
    height, width = grown.shape
    found = np.empty(grown.size, dtype=np.uint32)
    beside = np.zeros((width + 7) // 8 * 8, dtype=np.bool_)
    eights = beside.view(np.uint64)
    n = 0
    for y in range(height):
        own, far = grown[y], distance[y]
        up, down = grown[max(y - 1, 0)], grown[min(y + 1, height - 1)]
        for x in range(width):
            beside[x] = ((up[x] != own[x]) & (up[x] != 0)) | ((down[x] != own[x]) & (down[x] != 0))
        for x in range(1, width):
            beside[x] |= (own[x - 1] != own[x]) & (own[x - 1] != 0)
        for x in range(width - 1):
            beside[x] |= (own[x + 1] != own[x]) & (own[x + 1] != 0)
        for eight in range(len(eights)):
            if eights[eight] != 0:
                for x in range(8 * eight, min(8 * eight + 8, width)):
                    if beside[x] and own[x] != 0 and far[x] > 0:
                        found[n] = y * width + x
                        state[found[n]] = _OPEN
                        n += 1
    return found[:n].copy()


@compiled
def _decide(
    label: Labels, far: Distances, state: npt.NDArray[np.uint8], open_ones: npt.NDArray[np.uint32], wide: int
) -> None:
    """Cut every open pixel that has a neighbour of another label which comes before it and stays.

    What is nearer comes first, then what comes first in raster order; a pixel waits until those are decided.
    """
    waiting = np.empty(len(open_ones) + 1, dtype=np.int64)
    for start in open_ones:
        waiting[0], depth = start, 1 if state[start] == _OPEN else 0
        while depth > 0:
            p = waiting[depth - 1]
            x = p % wide
            # at the edge of the image a pixel is its own neighbour, which is no rival
            up, left = p - wide if p >= wide else p, p - 1 if x > 0 else p
            right, down = p + 1 if x + 1 < wide else p, p + wide if p + wide < len(label) else p
            found = _STAYS
            for q in (up, left, right, down):
                rival = label[q] != 0 and label[q] != label[p] and (far[q] < far[p] or (far[q] == far[p] and q < p))
                if rival and state[q] == _STAYS:
                    found = _CUT
                    break
                if rival and state[q] == _OPEN:
                    found, waiting[depth] = _OPEN, q
            if found == _OPEN:
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


def claim(low: Labels, way: npt.NDArray[np.int8], label: Labels, wanted: npt.NDArray[np.bool_], levels: int) -> None:
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
        bool (H, W).
    levels
        Number of levels.
    """
    wide = low.shape[1]
    steps = np.array([0, -wide, -1, 1, wide])
    levels_at, known = low.ravel(), label.ravel()
    unclear = np.sort(_without_way(levels_at, way.ravel(), known, wanted.ravel(), steps))
    if len(unclear):
        rim = np.unique(_labelled_beside(known, unclear, steps))
        _flood(levels_at, known, unclear, rim, steps, levels)


@compiled
def _without_way(
    low: Labels,
    way: npt.NDArray[np.int8],
    label: Labels,
    wanted: npt.NDArray[np.bool_],
    steps: npt.NDArray[np.int64],
) -> Labels:
    """Label the wanted pixels whose way leads to a label; mark by -1 and return all that a flood could come from."""
    unclear = np.empty(len(low), dtype=np.int32)
    n = 0
    eights = wanted[: len(wanted) // 8 * 8].view(np.uint64)  # the last pixels are outside
    for eight in range(len(eights)):
        if eights[eight] != 0:
            for p in range(8 * eight, 8 * eight + 8):
                if wanted[p] and label[p] == 0 and low[p] >= 0 and not _follow(p, way, label, steps):
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
