"""The loops that smooth, simplify and place outlines, one by one; see :mod:`pyhisto.contours`."""

from __future__ import annotations

import math
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from pyhisto.loops.compiled import compiled

__all__ = ["closed", "placed", "rounded", "simplify", "smooth"]

FloatArray: TypeAlias = npt.NDArray[np.float64]
IntArray: TypeAlias = npt.NDArray[np.int64]

_DEGENERATE = 1e-300
_SLACK = 1e-9
_INSIDE = 1 - 1e-6
"""Of the square of a radius: what is certainly inside a circle."""
_NEVER = math.inf
_GRID = 64
"""Steps of a pixel to which outlines are rounded, so that no rounding error says which points stay."""
_BLOCK = 16
"""Points of an outline that are looked at together for the one that matters least."""
_MORE = 40
"""How many more points smoothing can set than there were."""


@compiled
def _longest(offsets: IntArray) -> int:
    """Return the greatest number of points of an outline."""
    most = 0
    for k in range(len(offsets) - 1):
        most = max(most, offsets[k + 1] - offsets[k])
    return most


@compiled
def smooth(xy: FloatArray, offsets: IntArray) -> tuple[FloatArray, IntArray]:
    """Round off traced outlines; see :func:`pyhisto.contours.smooth_contours`."""
    n = len(offsets) - 1
    out = np.empty((len(xy) + _MORE * n, 2))
    ends = np.zeros(n + 1, dtype=np.int64)
    mean = np.empty((_longest(offsets) // 2 + 1, 2))
    end = 0
    for k in range(n):
        if offsets[k + 1] > offsets[k]:
            end = _round_off(xy[offsets[k] : offsets[k + 1]], mean, out, end)
        ends[k + 1] = end
    return out[:end].copy(), ends


@compiled
def _round_off(ring: FloatArray, mean: FloatArray, out: FloatArray, end: int) -> int:
    """Write the smoothed points of a ring; `mean` is room for half of its points and one."""
    points = _every_second_mean(ring, mean)
    return _equal_chords(mean[:points], min(2.0, points * 0.1), out, end)


@compiled
def rounded(xy: FloatArray, offsets: IntArray, every: int) -> tuple[FloatArray, IntArray]:
    """Round off outlines of any points; see :func:`pyhisto.contours.round_contours`."""
    n = len(offsets) - 1
    way, ends, most = np.empty(len(xy)), np.zeros(n + 1, dtype=np.int64), 0
    for k in range(n):
        count = math.ceil(_ways(xy[offsets[k] : offsets[k + 1]], way[offsets[k] : offsets[k + 1]]))
        ends[k + 1], most = ends[k] + (count + every - 1) // every, max(most, count)
    out, room = np.empty((ends[n], 2)), np.empty((most, 2))
    for k in range(n):
        along = way[offsets[k] : offsets[k + 1]]
        ring = room[: math.ceil(along[-1]) if len(along) > 0 else 0]
        _spread(xy[offsets[k] : offsets[k + 1]], along, ring)
        _average(ring)
        _average(ring)
        for i in range(ends[k + 1] - ends[k]):
            for axis in range(2):
                out[ends[k] + i, axis] = round(ring[every * i, axis] * _GRID) / _GRID
    return out, ends


@compiled
def _ways(ring: FloatArray, way: FloatArray) -> float:
    """Write how far along a ring the point after each point is; return its length."""
    count, total = len(ring), 0.0
    for i in range(count):
        after = i + 1 if i + 1 < count else 0
        total += math.sqrt((ring[after, 0] - ring[i, 0]) ** 2 + (ring[after, 1] - ring[i, 1]) ** 2)
        way[i] = total
    return total


@compiled
def _spread(ring: FloatArray, way: FloatArray, out: FloatArray) -> None:
    """Write points at equal distances along a ring, the first one where its own first one is."""
    count = len(ring)
    step = way[-1] / len(out) if len(out) > 0 else 0.0
    segment, begin = 0, 0.0
    for i in range(len(out)):
        place = i * step
        while way[segment] < place and segment < count - 1:
            begin = way[segment]
            segment += 1
        after = segment + 1 if segment + 1 < count else 0
        t = (place - begin) / max(way[segment] - begin, _DEGENERATE)
        for axis in range(2):
            out[i, axis] = ring[segment, axis] + t * (ring[after, axis] - ring[segment, axis])


@compiled
def _average(ring: FloatArray) -> None:
    """Replace the points of a ring by means of themselves, twice, and their neighbours."""
    for axis in range(2):
        first, before = ring[0, axis], ring[-1, axis]
        for i in range(len(ring)):
            own = ring[i, axis]
            after = ring[i + 1, axis] if i + 1 < len(ring) else first
            ring[i, axis] = (before + 2 * own + after) / 4
            before = own


@compiled
def _length(ring: FloatArray) -> float:
    """Return the length of a ring."""
    total = 0.0
    for i in range(len(ring)):
        after = i + 1 if i + 1 < len(ring) else 0
        total += math.sqrt((ring[after, 0] - ring[i, 0]) ** 2 + (ring[after, 1] - ring[i, 1]) ** 2)
    return total


@compiled
def _every_second_mean(ring: FloatArray, mean: FloatArray) -> int:
    """Write the mean of every second point and its neighbours, with the first point once more at the end."""
    count = len(ring)
    points = 0
    for i in range(0, count + 1, 2):
        # the closing copy of the first point stands between the last point and the first
        before = i - 1 if i > 0 else 0
        at = i if i < count else 0
        after = i + 1 if i + 1 < count else 0
        for axis in range(2):
            mean[points, axis] = (ring[before, axis] + ring[at, axis] + ring[after, axis]) / 3
        points += 1
    return points


@compiled
def _equal_chords(ring: FloatArray, chord: float, out: FloatArray, end: int) -> int:
    """Walk along a ring and set a point wherever the distance to the last one reaches `chord`."""
    count = len(ring)
    x, y = ring[0]
    centre_x, centre_y = x, y
    out[end, 0], out[end, 1] = x, y
    end += 1
    for segment in range(count):
        after = segment + 1 if segment + 1 < count else 0
        to_x, to_y = ring[after, 0], ring[after, 1]
        while True:
            t = _circle_crossing(x, y, to_x, to_y, centre_x, centre_y, chord)
            if t == _NEVER:
                break
            x += t * (to_x - x)
            y += t * (to_y - y)
            centre_x, centre_y = x, y
            out[end, 0], out[end, 1] = x, y
            end += 1
        x, y = to_x, to_y
    return end


@compiled
def _circle_crossing(ax: float, ay: float, bx: float, by: float, cx: float, cy: float, radius: float) -> float:
    """Return the first t in [0, 1] at which a + t (b - a) lies on the circle around c, infinity where it never does."""
    if (bx - cx) ** 2 + (by - cy) ** 2 < _INSIDE * radius * radius:
        return _NEVER  # the way starts inside the circle, and ends there
    dx, dy = bx - ax, by - ay
    length2 = max(dx * dx + dy * dy, _DEGENERATE)
    middle = ((cx - ax) * dx + (cy - ay) * dy) / length2
    off2 = (ax + middle * dx - cx) ** 2 + (ay + middle * dy - cy) ** 2
    if off2 > radius * radius:
        return _NEVER
    half = math.sqrt((radius * radius - off2) / length2)
    # a crossing at the very end of a segment must not be lost to rounding, nor the circle's own start be found again
    for t in (middle - half, middle + half):
        if _SLACK < t <= 1 + _SLACK:
            return min(t, 1.0)
    return _NEVER


@compiled
def simplify(xy: FloatArray, offsets: IntArray, altitude: float) -> tuple[FloatArray, IntArray]:
    """Drop points that hardly matter; see :func:`pyhisto.contours.simplify_contours`."""
    n = len(offsets) - 1
    out = np.empty_like(xy)
    ends = np.zeros(n + 1, dtype=np.int64)
    longest = (_longest(offsets) + _BLOCK - 1) // _BLOCK * _BLOCK
    area, lowest = np.empty(longest), np.empty(longest // _BLOCK, dtype=np.int64)
    before, after = np.empty(longest, dtype=np.int64), np.empty(longest, dtype=np.int64)
    end = 0
    for k in range(n):
        ring = xy[offsets[k] : offsets[k + 1]]
        _drop_points(ring, area, lowest, before, after, altitude)
        for i in range(len(ring)):
            if area[i] < _NEVER:
                out[end, 0], out[end, 1] = ring[i, 0], ring[i, 1]
                end += 1
        ends[k + 1] = end
    return out[:end].copy(), ends


@compiled
def _drop_points(
    ring: FloatArray, area: FloatArray, lowest: IntArray, before: IntArray, after: IntArray, altitude: float
) -> None:
    """Make the area of the points of a ring that do not matter infinite; `lowest` is room for that of each block."""
    count = left = len(ring)
    least = max(left // 100, 3)
    for i in range(count):
        before[i] = i - 1 if i > 0 else count - 1
        after[i] = i + 1 if i + 1 < count else 0
    for i in range(count):
        area[i] = _triangle(ring, before[i], i, after[i])
    blocks = (count + _BLOCK - 1) // _BLOCK
    area[count : blocks * _BLOCK] = _NEVER
    order = area.view(np.int64)  # numbers that are not negative have the order of their bits
    for block in range(blocks):
        lowest[block] = _least(order[block * _BLOCK : (block + 1) * _BLOCK])
    while left > least:
        begin = _first(lowest[:blocks], _least(lowest[:blocks])) * _BLOCK
        point = begin + _first(order[begin : begin + _BLOCK], lowest[begin // _BLOCK])
        i, j = before[point], after[point]
        dx, dy = ring[j, 0] - ring[i, 0], ring[j, 1] - ring[i, 1]
        if 2 * area[point] > altitude * math.sqrt(dx * dx + dy * dy):
            break
        left -= 1
        area[point] = _NEVER
        after[i], before[j] = j, i
        area[i], area[j] = _triangle(ring, before[i], i, j), _triangle(ring, i, j, after[j])
        for block in (point // _BLOCK, i // _BLOCK, j // _BLOCK):
            lowest[block] = _least(order[block * _BLOCK : (block + 1) * _BLOCK])


@compiled
def _least(values: IntArray) -> int:
    """Return the least of some values."""
    least = values[0]
    for i in range(len(values)):
        least = min(least, values[i])
    return int(least)


@compiled
def _first(values: IntArray, value: int) -> int:
    """Return which of some values is the first that equals one of them."""
    i = 0
    while values[i] != value:
        i += 1
    return i


@compiled
def _triangle(ring: FloatArray, i: int, j: int, k: int) -> float:
    """Return the area of the triangle of three points."""
    dx, dy = ring[k, 0] - ring[i, 0], ring[k, 1] - ring[i, 1]
    return float(abs((ring[j, 0] - ring[i, 0]) * dy - dx * (ring[j, 1] - ring[i, 1]))) / 2


@compiled
def placed(xy: FloatArray, offsets: IntArray, scale: FloatArray, origin: FloatArray) -> FloatArray:
    """Return ``xy * scale + origin`` by scale, float64 (2,), and the origin of each outline, float64 (n, 2)."""
    out = np.empty_like(xy)
    for k in range(len(offsets) - 1):
        left, top = origin[k, 0], origin[k, 1]
        for i in range(offsets[k], offsets[k + 1]):
            out[i, 0] = xy[i, 0] * scale[0] + left
            out[i, 1] = xy[i, 1] * scale[1] + top
    return out


@compiled
def closed(xy: FloatArray, offsets: IntArray) -> tuple[FloatArray, IntArray]:
    """Return the outlines with their first point once more at their end, and their offsets."""
    n = len(offsets) - 1
    out, ends = np.empty((len(xy) + n, 2)), np.zeros(n + 1, dtype=np.int64)
    for k in range(n):
        for i in range(offsets[k], offsets[k + 1]):
            out[i + k, 0], out[i + k, 1] = xy[i, 0], xy[i, 1]
        ends[k + 1] = offsets[k + 1] + k + 1
        out[ends[k + 1] - 1, 0], out[ends[k + 1] - 1, 1] = xy[offsets[k], 0], xy[offsets[k], 1]
    return out, ends
