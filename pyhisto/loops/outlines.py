"""The loops behind :mod:`pyhisto.contours` and the shapes of :mod:`pyhisto.measurements`, outline by outline."""

from __future__ import annotations

import math
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from pyhisto.loops.compiled import compiled

__all__ = ["calipers", "lengths_and_areas", "moments", "simplify", "smooth", "trace"]

FloatArray: TypeAlias = npt.NDArray[np.float64]
IntArray: TypeAlias = npt.NDArray[np.int64]

_DEGENERATE = 1e-300
_SLACK = 1e-9
_NEVER = math.inf


@compiled
def trace(padded: npt.NDArray[np.int32], n: int) -> tuple[FloatArray, IntArray]:
    """Trace labels 1 to n of a label image with a border of zeros; see :func:`pyhisto.contours.trace_labels`."""
    flat, width = padded.ravel(), padded.shape[1]
    ahead = np.array([1, width, -1, -width])  # right, down, left, up
    best_start = np.zeros(n + 1, dtype=np.int64)
    best_length = np.zeros(n + 1, dtype=np.int64)
    corners = np.empty((96 * n + 96, 2), dtype=np.int32)
    while not _walk_all(flat, ahead, corners, best_start, best_length):
        corners = np.empty((2 * len(corners), 2), dtype=np.int32)
    offsets = np.zeros(n + 1, dtype=np.int64)
    for label in range(1, n + 1):
        offsets[label] = offsets[label - 1] + best_length[label]
    xy = np.empty((offsets[n], 2))
    for label in range(1, n + 1):
        begin, count = best_start[label], best_length[label]
        loop = corners[begin : begin + count]
        i = _wand_start(loop)
        for at in range(offsets[label - 1], offsets[label]):
            xy[at, 0], xy[at, 1] = loop[i, 0], loop[i, 1]
            i = i + 1 if i + 1 < count else 0
    return xy, offsets


@compiled
def _walk_all(
    flat: npt.NDArray[np.int32],
    ahead: IntArray,
    corners: npt.NDArray[np.int32],
    best_start: IntArray,
    best_length: IntArray,
) -> bool:
    """Write all loops to `corners`, and where the longest of each label begins; False without enough room."""
    width = ahead[1]
    walked = np.zeros(len(flat), dtype=np.bool_)  # the upper side of the pixel
    best_length[:] = 0
    end = 0
    for p in range(width, len(flat) - width):
        label = flat[p]
        if label > 0 and flat[p - width] != label and not walked[p]:
            begin = end
            end = _walk(flat, ahead, p, walked, corners, begin)
            if end < 0:
                return False
            if end - begin > best_length[label]:
                best_start[label], best_length[label] = begin, end - begin
    return True


@compiled
def _walk(
    flat: npt.NDArray[np.int32],
    ahead: IntArray,
    start: int,
    walked: npt.NDArray[np.bool_],
    corners: npt.NDArray[np.int32],
    end: int,
) -> int:
    """Walk clockwise around a region from the upper side of a pixel; write the first corner of each side.

    Returns where the writing ended, or -1 where there is not enough room.
    """
    label, pixel, side = flat[start], start, 0
    x, y = start % ahead[1] - 1, start // ahead[1] - 1
    while end < len(corners):
        corners[end, 0], corners[end, 1] = x, y
        end += 1
        if side == 0:
            walked[pixel] = True
            x += 1
        elif side == 1:
            y += 1
        elif side == 2:
            x -= 1
        else:
            y -= 1
        front = pixel + ahead[side]
        diagonal = front + ahead[(side + 3) & 3]
        if flat[front] != label:
            side = (side + 1) & 3
        elif flat[diagonal] != label:
            pixel = front
        else:
            pixel = diagonal
            side = (side + 3) & 3
        if pixel == start and side == 0:
            return end
    return -1


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
        point, left = _drop_points(ring, area, height, before, after, altitude)
        for _ in range(left):
            out[end, 0], out[end, 1] = ring[point, 0], ring[point, 1]
            end += 1
            point = after[point]
        ends[k + 1] = end
    return out[:end].copy(), ends


@compiled
def _drop_points(
    ring: FloatArray, area: FloatArray, height: FloatArray, before: IntArray, after: IntArray, altitude: float
) -> tuple[int, int]:
    """Link the points of a ring that matter, `before` and `after` each; return the first and how many they are."""
    left = len(ring)
    least = max(left // 100, 3)
    for i in range(left):
        before[i] = i - 1 if i > 0 else left - 1
        after[i] = i + 1 if i + 1 < left else 0
    for i in range(left):
        area[i], height[i] = _triangle(ring[before[i]], ring[i], ring[after[i]])
    first = 0
    while left > least:
        smallest = point = first
        for _ in range(left - 1):
            point = after[point]
            if area[point] < area[smallest]:
                smallest = point
        if height[smallest] > altitude:
            break
        left -= 1
        i, j = before[smallest], after[smallest]
        after[i], before[j] = j, i
        first = j if smallest == first else first
        area[i], height[i] = _triangle(ring[before[i]], ring[i], ring[j])
        area[j], height[j] = _triangle(ring[i], ring[j], ring[after[j]])
    return first, left


@compiled
def _triangle(p: FloatArray, q: FloatArray, r: FloatArray) -> tuple[float, float]:
    """Return area and height over p - r of a triangle."""
    dx, dy = r[0] - p[0], r[1] - p[1]
    area = abs((q[0] - p[0]) * dy - dx * (q[1] - p[1])) / 2
    base = math.sqrt(dx * dx + dy * dy)
    return area, 2 * area / base if base > 0 else 0.0


@compiled
def lengths_and_areas(xy: FloatArray, offsets: IntArray) -> tuple[FloatArray, FloatArray]:
    """Return the length of each outline and the area inside (shoelace formula)."""
    n = len(offsets) - 1
    length, area = np.zeros(n), np.zeros(n)
    for k in range(n):
        previous = offsets[k + 1] - 1
        for i in range(offsets[k], offsets[k + 1]):
            x0, y0, x1, y1 = xy[previous, 0], xy[previous, 1], xy[i, 0], xy[i, 1]
            length[k] += math.sqrt((x1 - x0) ** 2 + (y1 - y0) ** 2)
            # relative to the first point, so that far from the origin no digits are lost
            ox, oy = xy[offsets[k], 0], xy[offsets[k], 1]
            area[k] += (x0 - ox) * (y1 - oy) - (x1 - ox) * (y0 - oy)
            previous = i
        area[k] = abs(area[k]) / 2
    return length, area


@compiled
def moments(xy: FloatArray, offsets: IntArray) -> FloatArray:
    """Return number, variance in x, variance in y and covariance of the pixels inside each outline, float64 (n, 4).

    By the crossings of its edges with the rows of pixel centres: what lies left of an edge that runs up counts, what
    lies left of one that runs down is taken off. A pixel counts as a square, which adds 1/12 to both variances.
    """
    n = len(offsets) - 1
    out = np.full((n, 4), np.nan)
    for k in range(n):
        ring = xy[offsets[k] : offsets[k + 1]]
        if len(ring) == 0:
            continue
        # relative to a pixel of the outline, so that sums of squares stay exact
        left, top = math.floor(ring[0, 0]), math.floor(ring[0, 1])
        count = sum_x = sum_y = sum_xx = sum_yy = sum_xy = 0.0
        x0, y0 = ring[-1, 0], ring[-1, 1]
        for i in range(len(ring)):
            x1, y1 = ring[i, 0], ring[i, 1]
            sign = 1.0 if y1 > y0 else -1.0
            for row in range(math.floor(min(y0, y1) + 0.5), math.floor(max(y0, y1) + 0.5)):
                a = math.floor(x0 + (row + 0.5 - y0) * (x1 - x0) / (y1 - y0) + 0.5) - left
                y, run, along = float(row - top), sign * a, sign * a * (a - 1) / 2
                count += run
                sum_x += along
                sum_xx += along * (2 * a - 1) / 3
                sum_y += run * y
                sum_yy += run * y * y
                sum_xy += along * y
            x0, y0 = x1, y1
        if count != 0:
            x, y = sum_x / count, sum_y / count
            out[k, 0] = abs(count)
            out[k, 1] = sum_xx / count - x * x + 1 / 12
            out[k, 2] = sum_yy / count - y * y + 1 / 12
            out[k, 3] = sum_xy / count - x * y
    return out


@compiled
def calipers(xy: FloatArray, offsets: IntArray) -> FloatArray:
    """Return the greatest and the least Feret diameter of each outline, float64 (n, 2); NaN for less than 3 points."""
    n = len(offsets) - 1
    out = np.full((n, 2), np.nan)
    hull = np.empty((2 * _longest(offsets) + 2, 2))
    for k in range(n):
        if offsets[k + 1] - offsets[k] < 3:
            continue
        corners = _convex_hull(xy[offsets[k] : offsets[k + 1]], hull)
        out[k, 0], out[k, 1] = _diameters(hull[:corners])
    return out


@compiled
def _diameters(hull: FloatArray) -> tuple[float, float]:
    """Return the greatest and the least Feret diameter of a convex polygon by rotating calipers (Shamos 1978)."""
    corners = len(hull)
    longest, narrowest = 0.0, math.inf
    opposite = 0
    for i in range(corners):
        after = i + 1 if i + 1 < corners else 0
        x, y = hull[i, 0], hull[i, 1]
        dx, dy = hull[after, 0] - x, hull[after, 1] - y
        across = 0.0
        for _ in range(corners):  # on to the corner that is farthest from the side
            ox, oy = hull[opposite, 0] - x, hull[opposite, 1] - y
            distance = abs(dx * oy - dy * ox)
            if distance < across:
                break
            across = distance
            longest = max(longest, ox * ox + oy * oy, (ox - dx) ** 2 + (oy - dy) ** 2)
            opposite = opposite + 1 if opposite + 1 < corners else 0
        opposite = opposite - 1 if opposite > 0 else corners - 1
        length = math.sqrt(dx * dx + dy * dy)
        if length > 0:
            narrowest = min(narrowest, across / length)
    return math.sqrt(longest), narrowest if narrowest < math.inf else np.nan


@compiled
def _convex_hull(points: FloatArray, hull: FloatArray) -> int:
    """Write the corners of the convex hull (Andrew 1979); return their number."""
    order = _by_x_then_y(points)
    size = 0
    for i in order:
        while size >= 2 and _turns_right(hull[size - 2], hull[size - 1], points[i]):
            size -= 1
        hull[size, 0], hull[size, 1] = points[i, 0], points[i, 1]
        size += 1
    lower = size
    for back in range(len(order) - 2, -1, -1):
        i = order[back]
        while size > lower and _turns_right(hull[size - 2], hull[size - 1], points[i]):
            size -= 1
        hull[size, 0], hull[size, 1] = points[i, 0], points[i, 1]
        size += 1
    return size - 1  # the first point stands at the end once more


@compiled
def _by_x_then_y(points: FloatArray) -> npt.NDArray[Any]:
    order = np.arange(len(points))
    for i in range(1, len(order)):
        mine, at = order[i], i
        while at > 0 and (
            points[order[at - 1], 0] > points[mine, 0]
            or (points[order[at - 1], 0] == points[mine, 0] and points[order[at - 1], 1] > points[mine, 1])
        ):
            order[at] = order[at - 1]
            at -= 1
        order[at] = mine
    return order


@compiled
def _turns_right(a: FloatArray, b: FloatArray, p: FloatArray) -> bool:
    return bool((b[0] - a[0]) * (p[1] - a[1]) - (b[1] - a[1]) * (p[0] - a[0]) <= 0)
