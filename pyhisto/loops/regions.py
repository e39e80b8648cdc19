"""The loops over label images behind :mod:`pyhisto.measurements` and :mod:`pyhisto.nuclei`: statistics, growth."""

from __future__ import annotations

import math
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from pyhisto.loops.compiled import compiled

__all__ = ["cell_statistics", "claim", "expanded", "nearest_label", "renumbered", "statistics", "ways_down"]

Labels: TypeAlias = npt.NDArray[np.int32]
Distances: TypeAlias = npt.NDArray[Any]
Table: TypeAlias = npt.NDArray[np.float64]


@compiled
def statistics(labels: npt.NDArray[Any], image: npt.NDArray[Any], n: int) -> Table:
    """Return mean, sum, standard deviation (n - 1), max, min and range of the pixels of labels 1 to n.

    float64 (n, 6); NaN for labels without pixels, and for the deviation of a single one.
    """
    sums = _no_pixels(n)
    for y in range(labels.shape[0]):
        row, values = labels[y], image[y]
        x = 0
        while x < len(row):
            end = x + 1
            if row[x] > 0:
                while end < len(row) and row[end] == row[x]:
                    end += 1
                _add(sums[row[x] - 1], values[x:end])
            x = end
    out = np.empty((n, 6))
    for i in range(n):
        _describe(sums[i], out[i])
    return out


@compiled
def cell_statistics(nuclei: npt.NDArray[Any], cells: npt.NDArray[Any], image: npt.NDArray[Any], n: int) -> Table:
    """Return what :func:`statistics` gives for nuclei, for whole cells and for what of a cell is no nucleus.

    float64 (3, n, 6). A nucleus must have the label of its cell.
    """
    nucleus, cytoplasm = _no_pixels(n), _no_pixels(n)
    for y in range(cells.shape[0]):
        row, inner, values = cells[y], nuclei[y], image[y]
        x = 0
        while x < len(row):
            end = x + 1
            if row[x] > 0:
                inside = inner[x] > 0
                while end < len(row) and row[end] == row[x] and (inner[end] > 0) == inside:
                    end += 1
                _add(nucleus[row[x] - 1] if inside else cytoplasm[row[x] - 1], values[x:end])
            x = end
    out = np.empty((3, n, 6))
    for i in range(n):
        _describe(nucleus[i], out[0, i])
        _describe(cytoplasm[i], out[2, i])
        _merge(nucleus[i], cytoplasm[i])
        _describe(nucleus[i], out[1, i])
    return out


@compiled
def _no_pixels(n: int) -> Table:
    """Return sums of nothing, float64 (n, 6): number, first value, sum and squares of differences to it, max, min."""
    sums = np.zeros((n, 6))
    for i in range(n):
        sums[i, 4], sums[i, 5] = -math.inf, math.inf
    return sums


@compiled
def _add(sums: Table, values: npt.NDArray[Any]) -> None:
    """Add a run of pixels."""
    if sums[0] == 0:
        sums[1] = values[0]
    # relative to the first pixel, so that the variance loses no digits
    first, total, squares, high, low = sums[1], sums[2], sums[3], sums[4], sums[5]
    for value in values:
        difference = value - first
        total += difference
        squares += difference * difference
        high = max(high, float(value))
        low = min(low, float(value))
    sums[0] += len(values)
    sums[2], sums[3], sums[4], sums[5] = total, squares, high, low


@compiled
def _merge(sums: Table, more: Table) -> None:
    """Add the pixels of others."""
    if sums[0] == 0:
        sums[1] = more[1]
    shift = more[1] - sums[1]
    sums[3] += more[3] + 2 * shift * more[2] + more[0] * shift * shift
    sums[2] += more[2] + more[0] * shift
    sums[0] += more[0]
    sums[4] = max(sums[4], more[4])
    sums[5] = min(sums[5], more[5])


@compiled
def _describe(sums: Table, out: Table) -> None:
    """Write mean, sum, standard deviation, max, min and range."""
    count, first, total = sums[0], sums[1], sums[2]
    for i in range(6):
        out[i] = math.nan
    if count > 0:
        out[0] = first + total / count
        out[1] = first * count + total
        if count > 1:
            out[2] = math.sqrt(max(sums[3] - total * total / count, 0.0) / (count - 1))
        out[3], out[4], out[5] = sums[4], sums[5], sums[4] - sums[5]


def nearest_label(labels: Labels, reach: int) -> tuple[Labels, Distances]:
    """Return the nearest labelled pixel's label, int32 (H, W), and squared distance, px², uint16 or uint32 (H, W).

    First along the columns, then along the rows (Saito and Toriwaki 1994). Exact up to `reach`; beyond it the distance
    is more than its square, and the label any or none.
    """
    # squared distance and sideways step in one number: the least is the nearest, leftmost pixel
    bits = (2 * reach).bit_length()
    small = 2 * (reach + 1) ** 2 << bits < 1 << 16
    steps = np.empty(labels.shape, dtype=np.uint16 if small else np.uint32)
    owner = _nearest_in_column(labels, steps, reach + 1)
    return _nearest_in_row(steps, owner, reach, bits), steps


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
def _nearest_in_row(steps: Distances, owner: Labels, reach: int, bits: int) -> Labels:
    """Return the label of the nearest pixel; make squared distances of the steps along the columns."""
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
            mine[x] = its[x + (key & mask) - reach]
    return out


def expanded(labels: Labels, radius: float) -> Labels:
    """Let labels grow by less than `radius` px, each pixel to the nearest; where two meet a line of 0 stays.

    The line runs over the pixels that are farther from their label than the neighbour is from the other, so that it is
    where two floods that rise with the distance would meet.
    """
    nearest, distance = nearest_label(labels, math.ceil(radius))
    return _parted(nearest, distance, math.ceil(radius * radius))  # whole numbers below it are less than the square


@compiled
def _parted(nearest: Labels, distance: Distances, limit: int) -> Labels:
    """Return the labels of the pixels whose squared distance is below `limit`, with lines of 0 between them."""
    height, width = nearest.shape
    wide = width + 2
    grown = np.zeros((height + 2, wide), dtype=np.int32)
    for y in range(height):
        row, here, mine = grown[y + 1, 1:-1], distance[y], nearest[y]
        for x in range(width):
            row[x] = mine[x] if here[x] < limit else 0
    flat = grown.ravel()
    order = _borders(grown, distance, limit)
    for p in order:
        flat[p] = -flat[p]  # not decided yet
    for p in order:
        own = -flat[p]
        for q in (p - wide, p - 1, p + 1, p + wide):
            if flat[q] > 0 and flat[q] != own:
                own = 0
                break
        flat[p] = own
    return grown[1:-1, 1:-1].copy()


@compiled
def _borders(grown: Labels, distance: Distances, limit: int) -> Labels:
    """Return the grown pixels beside another label, by their distance and then in raster order."""
    wide = grown.shape[1]
    found = np.empty(grown.size, dtype=np.int32)
    count = np.zeros(limit + 1, dtype=np.int64)
    beside = np.empty(distance.shape[1], dtype=np.bool_)
    n = 0
    for y in range(distance.shape[0]):
        own, up, down = grown[y + 1, 1:-1], grown[y, 1:-1], grown[y + 2, 1:-1]
        left, right, far = grown[y + 1, :-2], grown[y + 1, 2:], distance[y]
        for x in range(len(own)):
            other = ((up[x] != own[x]) & (up[x] != 0)) | ((down[x] != own[x]) & (down[x] != 0))
            other |= ((left[x] != own[x]) & (left[x] != 0)) | ((right[x] != own[x]) & (right[x] != 0))
            beside[x] = other & (own[x] != 0) & (far[x] > 0)
        for x in range(len(own)):
            if beside[x]:
                found[n] = (y + 1) * wide + x + 1
                n += 1
                count[int(far[x]) + 1] += 1
    place = _running(count)
    order = np.empty(n, dtype=np.int32)
    for p in found[:n]:
        far = int(distance[p // wide - 1, p % wide - 1])
        order[place[far]] = p
        place[far] += 1
    return order


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
    for p in range(steps[4], len(low) - steps[4]):
        if wanted[p] and label[p] == 0 and low[p] >= 0:
            n = _follow(p, way, label, steps, unclear, n)
    i = 0
    while i < n:
        for step in steps:
            q = unclear[i] + step
            if low[q] >= 0 and label[q] == 0:
                n = _follow(q, way, label, steps, unclear, n)
        i += 1
    return unclear[:n].copy()


@compiled
def _follow(
    start: int, way: npt.NDArray[np.int8], label: Labels, steps: npt.NDArray[np.int64], unclear: Labels, n: int
) -> int:
    """Give the pixels of a way down the label at its end; without one list them and mark them by -1."""
    p = start
    while label[p] == 0 and way[p] > 0:
        p += steps[way[p]]
    found = label[p] if label[p] != 0 else -1
    end, p = p, start
    while True:
        if label[p] == 0:
            label[p] = found
            if found < 0:
                unclear[n] = p
                n += 1
        if p == end:
            return n
        p += steps[way[p]]


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
