"""The loops behind :mod:`pyhisto.contours`, outline by outline."""

from __future__ import annotations

import math
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from pyhisto.loops.compiled import compiled

__all__ = ["closed", "placed", "simplify", "smooth", "trace"]

FloatArray: TypeAlias = npt.NDArray[np.float64]
IntArray: TypeAlias = npt.NDArray[np.int64]

_DEGENERATE = 1e-300
_SLACK = 1e-9
_INSIDE = 1 - 1e-6
"""Of the square of a radius: what is certainly inside a circle."""
_NEVER = math.inf


@compiled
def trace(labels: npt.NDArray[np.int32], n: int, rim: int) -> tuple[FloatArray, IntArray]:
    """Trace labels 1 to n, none of which is at the edge of the image; see :func:`pyhisto.contours.trace_labels`.

    The image has its corner at (-rim, -rim).
    """
    corners, start, length = _walk_all(labels, n)
    offsets = np.zeros(n + 1, dtype=np.int64)
    for label in range(1, n + 1):
        offsets[label] = offsets[label - 1] + length[label]
    xy = np.empty((offsets[n], 2))
    for label in range(1, n + 1):
        count, at = length[label], offsets[label - 1]
        loop = corners[start[label] : start[label] + count]
        first = _wand_start(loop)
        for i in range(first, count):
            xy[at, 0], xy[at, 1] = loop[i, 0] - rim, loop[i, 1] - rim
            at += 1
        for i in range(first):
            xy[at, 0], xy[at, 1] = loop[i, 0] - rim, loop[i, 1] - rim
            at += 1
    return xy, offsets


@compiled
def _walk_all(labels: npt.NDArray[np.int32], n: int) -> tuple[npt.NDArray[np.int32], IntArray, IntArray]:
    """Return the corners of all loops, int32 (N, 2), and where the longest of each label begins and how long it is."""
    height, width = labels.shape
    flat = labels.ravel()
    start, length = np.zeros(n + 1, dtype=np.int64), np.zeros(n + 1, dtype=np.int64)
    corners = np.empty((_count_sides(labels, n), 2), dtype=np.int32)
    walked = np.zeros(len(flat), dtype=np.bool_)  # the upper side of the pixel
    upper = np.zeros((width + 7) // 8 * 8, dtype=np.bool_)
    eights = upper.view(np.uint64)
    end = 0
    for y in range(1, height - 1):
        row, above = labels[y], labels[y - 1]
        for x in range(width):
            upper[x] = (row[x] != above[x]) & (row[x] > 0) & (row[x] <= n)
        for eight in range(len(eights)):
            if eights[eight] != 0:
                for x in range(8 * eight, min(8 * eight + 8, width)):
                    if upper[x] and not walked[y * width + x]:
                        begin = end
                        end = _walk(flat, width, y * width + x, walked, corners, begin)
                        if end - begin > length[row[x]]:
                            start[row[x]], length[row[x]] = begin, end - begin
    return corners, start, length


@compiled
def _count_sides(labels: npt.NDArray[np.int32], n: int) -> int:
    """Return how many sides of pixels labelled 1 to n lie between two labels; outlines have as many left as right."""
    count = 0
    for y in range(1, len(labels)):
        row, above = labels[y], labels[y - 1]
        for x in range(1, len(row)):
            own = (row[x] > 0) & (row[x] <= n)
            count += own & (row[x] != above[x])
            count += own & (row[x] != row[x - 1])
    return 2 * count


@compiled
def _walk(
    flat: npt.NDArray[np.int32],
    width: int,
    start: int,
    walked: npt.NDArray[np.bool_],
    corners: npt.NDArray[np.int32],
    end: int,
) -> int:
    """Walk clockwise around a region from the upper side of a pixel; write the first corner of each side.

    Returns where the writing ended.
    """
    label, pixel, side = flat[start], start, 0
    x, y = start % width, start // width
    along, down = 1, 0  # the direction of the side: right, down, left, up
    ahead, outwards = 1, -width  # steps in the image along the side, and to what lies beyond it
    while True:
        corners[end, 0], corners[end, 1] = x, y
        end += 1
        walked[pixel] |= side == 0
        x += along
        y += down
        front = pixel + ahead
        diagonal = front + outwards
        # both are read before it is known which one counts: which way it turns cannot be guessed
        outside = flat[front] != label
        straight = flat[diagonal] != label
        pixel = pixel if outside else (front if straight else diagonal)
        if outside:
            side, along, down, ahead, outwards = side + 1, -down, along, -outwards, ahead
        elif not straight:
            side, along, down, ahead, outwards = side - 1, down, -along, outwards, -ahead
        side &= 3
        if pixel == start and side == 0:
            return end


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
    out = np.empty((len(xy) + 40 * n, 2))
    ends = np.zeros(n + 1, dtype=np.int64)
    mean = np.empty((_longest(offsets) // 2 + 1, 2))
    end = 0
    for k in range(n):
        count = offsets[k + 1] - offsets[k]
        if count > 0:
            points = _every_second_mean(xy[offsets[k] : offsets[k + 1]], mean)
            end = _equal_chords(mean[:points], min(2.0, points * 0.1), out, end)
        ends[k + 1] = end
    return out[:end].copy(), ends


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
    segment = 0
    while segment < count:
        to_x, to_y = ring[(segment + 1) % count]
        t = _circle_crossing(x, y, to_x, to_y, centre_x, centre_y, chord)
        if t == _NEVER:
            x, y = to_x, to_y
            segment += 1
        else:
            x += t * (to_x - x)
            y += t * (to_y - y)
            centre_x, centre_y = x, y
            out[end, 0], out[end, 1] = x, y
            end += 1
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
