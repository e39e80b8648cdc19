"""The loops behind :mod:`pyhisto.contours`, outline by outline."""

from __future__ import annotations

import math
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from pyhisto.loops.compiled import compiled

__all__ = ["closed", "placed", "simplify", "smooth", "trace", "trace_smoothly"]

FloatArray: TypeAlias = npt.NDArray[np.float64]
IntArray: TypeAlias = npt.NDArray[np.int64]

_DEGENERATE = 1e-300
_SLACK = 1e-9
_INSIDE = 1 - 1e-6
"""Of the square of a radius: what is certainly inside a circle."""
_NEVER = math.inf
_MORE = 40
"""How many more points smoothing can set than there were."""


@compiled
def trace(labels: npt.NDArray[Any], n: int) -> tuple[FloatArray, IntArray]:
    """Trace labels 1 to n; see :func:`pyhisto.contours.trace_labels`."""
    runs, offsets = _runs(labels, n)
    mask, corners = _room_for_largest(runs, offsets)
    out = np.empty((4 * len(runs), 2))
    ends = np.zeros(n + 1, dtype=np.int64)
    end = 0
    for k in range(n):
        loop = _outline(runs[offsets[k] : offsets[k + 1]], mask, corners)
        out = _with_room(out, end, len(loop))
        _write_from(_wand_start(loop), loop, 0, 0, out[end:])
        end += len(loop)
        ends[k + 1] = end
    return out[:end], ends


@compiled
def trace_smoothly(labels: npt.NDArray[Any], n: int) -> tuple[FloatArray, IntArray, FloatArray]:
    """Trace labels 1 to n and round them off, each relative to its first point, which is returned as well."""
    runs, offsets = _runs(labels, n)
    mask, corners = _room_for_largest(runs, offsets)
    ring, mean = np.empty((len(corners), 2)), np.empty((len(corners) // 2 + 1, 2))
    out, first = np.empty((4 * len(runs), 2)), np.zeros((n, 2))
    ends = np.zeros(n + 1, dtype=np.int64)
    end = 0
    for k in range(n):
        loop = _outline(runs[offsets[k] : offsets[k + 1]], mask, corners)
        if len(loop) > 0:
            start = _wand_start(loop)
            left, top = loop[start, 0], loop[start, 1]
            first[k, 0], first[k, 1] = left, top
            _write_from(start, loop, left, top, ring)
            out = _with_room(out, end, len(loop) + _MORE)
            end = _round_off(ring[: len(loop)], mean, out, end)
        ends[k + 1] = end
    return out[:end], ends, first


@compiled
def _runs(labels: npt.NDArray[Any], n: int) -> tuple[npt.NDArray[np.int32], IntArray]:
    """Return the runs of labels 1 to n along the rows: row, first column, column after the last, int32 (N, 3).

    Those of label k stand from offsets[k - 1] to offsets[k], row by row.
    """
    found, offsets = _runs_by_row(labels, n)
    for k in range(n):
        offsets[k + 2] += offsets[k + 1]
    runs = np.empty((len(found), 3), dtype=np.int32)
    for i in range(len(found)):
        at = offsets[found[i, 0]]
        runs[at, 0], runs[at, 1], runs[at, 2] = found[i, 1], found[i, 2], found[i, 3]
        offsets[found[i, 0]] += 1
    return runs, offsets[: n + 1]


@compiled
def _runs_by_row(labels: npt.NDArray[Any], n: int) -> tuple[npt.NDArray[np.int32], IntArray]:
    """Return label, row, first column and column after the last of runs, int32 (N, 4), and how many each label has.

    The number of label k stands at k + 1.
    """
    height, width = labels.shape
    found, count = np.empty((4 * width + 8 * height, 4), dtype=np.int32), 0
    several = np.zeros(n + 2, dtype=np.int64)
    changes, ends = np.empty(width, dtype=np.uint8), np.empty(width, dtype=np.int32)
    for y in range(height if width else 0):
        row = labels[y]
        for x in range(1, width):
            changes[x] = row[x] != row[x - 1]
        last = 0
        for x in range(1, width):
            ends[last] = x
            last += changes[x]
        ends[last] = width
        if count + width > len(found):
            larger = np.empty((2 * (count + width), 4), dtype=np.int32)
            larger[:count] = found[:count]
            found = larger
        begin = 0
        for end in ends[: last + 1]:
            label = row[begin]
            if 0 < label <= n:
                found[count, 0], found[count, 1], found[count, 2], found[count, 3] = label, y, begin, end
                several[label + 1] += 1
                count += 1
            begin = end
    return found[:count], several


@compiled
def _box(runs: npt.NDArray[np.int32]) -> tuple[int, int, int, int]:
    """Return the first row and column of runs and those after the last."""
    if len(runs) == 0:
        return 0, 0, 0, 0
    left, right = runs[0, 1], runs[0, 2]
    for i in range(1, len(runs)):
        left, right = min(left, runs[i, 1]), max(right, runs[i, 2])
    return runs[0, 0], left, runs[-1, 0] + 1, right


@compiled
def _room_for_largest(
    runs: npt.NDArray[np.int32], offsets: IntArray
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int32]]:
    """Return room for the mask of any of the labels, and for the corners of all outlines in it."""
    pixels = sides = 0
    for k in range(len(offsets) - 1):
        top, left, bottom, right = _box(runs[offsets[k] : offsets[k + 1]])
        height, width = bottom - top, right - left
        pixels = max(pixels, (height + 2) * (width + 2))
        sides = max(sides, 2 * height * width + height + width)
    return np.empty(pixels, dtype=np.uint8), np.empty((sides, 2), dtype=np.int32)


@compiled
def _with_room(out: FloatArray, end: int, more: int) -> FloatArray:
    """Return an array that holds what stands in `out` up to `end`, with room for more points."""
    if end + more <= len(out):
        return out
    larger = np.empty((2 * (end + more), 2))
    larger[:end] = out[:end]
    return larger


@compiled
def _outline(
    runs: npt.NDArray[np.int32], mask: npt.NDArray[np.uint8], corners: npt.NDArray[np.int32]
) -> npt.NDArray[np.int32]:
    """Return the corners of the longest loop around the pixels of some runs, int32 (N, 2), clockwise."""
    if _one_a_row(runs):
        return corners[: _around(runs, corners)]
    top, left, bottom, right = _box(runs)
    width = right - left + 2
    size = (bottom - top + 2) * width
    mask[:size] = 0
    for i in range(len(runs)):
        at = (runs[i, 0] - top + 1) * width + 1 - left
        mask[at + runs[i, 1] : at + runs[i, 2]] = 1
    begin, longest, end = 0, 0, 0
    for pixel in range(width, size):
        if mask[pixel] == 1 and mask[pixel - width] == 0:  # an upper side that was not walked
            stop = _walk(mask, width, pixel, left - 1, top - 1, corners, end)
            if stop - end > longest:
                begin, longest = end, stop - end
            end = stop
    return corners[begin : begin + longest]


@compiled
def _one_a_row(runs: npt.NDArray[np.int32]) -> bool:
    """Return whether there is one run in each row, and each touches the next: most regions are like this."""
    for i in range(1, len(runs)):
        if runs[i, 0] != runs[i - 1, 0] + 1 or runs[i, 1] >= runs[i - 1, 2] or runs[i, 2] <= runs[i - 1, 1]:
            return False
    return len(runs) > 0


@compiled
def _around(runs: npt.NDArray[np.int32], corners: npt.NDArray[np.int32]) -> int:
    """Write the corners of a region with one run in each row, clockwise; return their number."""
    last = len(runs) - 1
    end = _across(runs[0, 0], runs[0, 1], runs[0, 2], corners, 0)
    for i in range(last + 1):
        corners[end, 0], corners[end, 1] = runs[i, 2], runs[i, 0]
        end = _across(runs[i, 0] + 1, runs[i, 2], runs[i + 1, 2] if i < last else runs[i, 1], corners, end + 1)
    for i in range(last, -1, -1):
        corners[end, 0], corners[end, 1] = runs[i, 1], runs[i, 0] + 1
        end = _across(runs[i, 0], runs[i, 1], runs[i - 1, 1] if i > 0 else runs[i, 1], corners, end + 1)
    return end


@compiled
def _across(y: int, begin: int, stop: int, corners: npt.NDArray[np.int32], end: int) -> int:
    """Write the corners from one column to another but the last; return where the writing ended."""
    step = 1 if begin < stop else -1
    while begin != stop:
        corners[end, 0], corners[end, 1] = begin, y
        begin += step
        end += 1
    return end


@compiled
def _walk(
    mask: npt.NDArray[np.uint8],
    width: int,
    start: int,
    left: int,
    top: int,
    corners: npt.NDArray[np.int32],
    end: int,
) -> int:
    """Walk clockwise around a region from the upper side of a pixel; write the first corner of each side.

    What was walked of the upper sides is marked in the mask. Returns where the writing ended.
    """
    pixel, side = start, 0
    x, y = left + start % width, top + start // width
    along, down = 1, 0  # the direction of the side: right, down, left, up
    ahead, outwards = 1, -width  # steps in the image along the side, and to what lies beyond it
    while True:
        corners[end, 0], corners[end, 1] = x, y
        end += 1
        mask[pixel] |= (side == 0) << 1
        x += along
        y += down
        front = pixel + ahead
        diagonal = front + outwards
        # both are read before it is known which one counts: which way it turns cannot be guessed
        outside = mask[front] == 0
        straight = mask[diagonal] == 0
        pixel = pixel if outside else (front if straight else diagonal)
        if outside:
            side, along, down, ahead, outwards = side + 1, -down, along, -outwards, ahead
        elif not straight:
            side, along, down, ahead, outwards = side - 1, down, -along, outwards, -ahead
        side &= 3
        if pixel == start and side == 0:
            return end


@compiled
def _write_from(start: int, loop: npt.NDArray[np.int32], left: int, top: int, out: FloatArray) -> None:
    """Write the corners of a loop, from one of them on, relative to a point."""
    count = len(loop)
    for i in range(start, count):
        out[i - start, 0], out[i - start, 1] = loop[i, 0] - left, loop[i, 1] - top
    for i in range(start):
        out[i + count - start, 0], out[i + count - start, 1] = loop[i, 0] - left, loop[i, 1] - top


@compiled
def _wand_start(loop: npt.NDArray[np.int32]) -> int:
    """Return where ImageJ's wand starts a loop: at the first corner after its first downward side."""
    count = len(loop)
    down = False
    for i in range(count):
        after = i + 1 if i + 1 < count else 0
        before = i - 1 if i > 0 else count - 1
        along = loop[after, 0] - loop[i, 0]
        if down and along != loop[i, 0] - loop[before, 0]:
            return i
        down = down or loop[after, 1] > loop[i, 1]
    return 0


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
    longest = _longest(offsets)
    area, height = np.empty(longest), np.empty(longest)
    before, after = np.empty(longest, dtype=np.int64), np.empty(longest, dtype=np.int64)
    end = 0
    for k in range(n):
        ring = xy[offsets[k] : offsets[k + 1]]
        _drop_points(ring, area, height, before, after, altitude)
        for i in range(len(ring)):
            if area[i] < _NEVER:
                out[end, 0], out[end, 1] = ring[i, 0], ring[i, 1]
                end += 1
        ends[k + 1] = end
    return out[:end].copy(), ends


@compiled
def _drop_points(
    ring: FloatArray, area: FloatArray, height: FloatArray, before: IntArray, after: IntArray, altitude: float
) -> None:
    """Make the area of the points of a ring that do not matter infinite."""
    count = left = len(ring)
    least = max(left // 100, 3)
    for i in range(count):
        before[i] = i - 1 if i > 0 else count - 1
        after[i] = i + 1 if i + 1 < count else 0
    for i in range(count):
        area[i], height[i] = _triangle(ring[before[i]], ring[i], ring[after[i]])
    while left > least:
        point, smallest = 0, area[0]
        for i in range(1, count):
            if area[i] < smallest:
                point, smallest = i, area[i]
        if height[point] > altitude:
            break
        left -= 1
        area[point] = _NEVER
        i, j = before[point], after[point]
        after[i], before[j] = j, i
        area[i], height[i] = _triangle(ring[before[i]], ring[i], ring[j])
        area[j], height[j] = _triangle(ring[i], ring[j], ring[after[j]])


@compiled
def _triangle(p: FloatArray, q: FloatArray, r: FloatArray) -> tuple[float, float]:
    """Return area and height over p - r of a triangle."""
    dx, dy = r[0] - p[0], r[1] - p[1]
    area = abs((q[0] - p[0]) * dy - dx * (q[1] - p[1])) / 2
    base = math.sqrt(dx * dx + dy * dy)
    return area, 2 * area / base if base > 0 else 0.0


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
