"""The loops that say of which shape outlines are, behind :mod:`pyhisto.measurements` and :mod:`pyhisto.contours`."""

from __future__ import annotations

import math
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from pyhisto.loops.compiled import compiled

__all__ = ["areas", "calipers", "lengths", "moments", "run_around"]

FloatArray: TypeAlias = npt.NDArray[np.float64]
IntArray: TypeAlias = npt.NDArray[np.int64]

_CLEARLY = 1e-6
"""Twice an area, px², that is not 0 whatever the rounding."""


@compiled
def lengths(xy: FloatArray, offsets: IntArray) -> FloatArray:
    """Return the length of each outline."""
    n = len(offsets) - 1
    out = np.zeros(n)
    for k in range(n):
        length, previous = 0.0, offsets[k + 1] - 1
        for i in range(offsets[k], offsets[k + 1]):
            dx, dy = xy[i, 0] - xy[previous, 0], xy[i, 1] - xy[previous, 1]
            length += math.sqrt(dx * dx + dy * dy)
            previous = i
        out[k] = length
    return out


@compiled
def areas(xy: FloatArray, offsets: IntArray) -> FloatArray:
    """Return the area inside each outline (shoelace formula)."""
    n = len(offsets) - 1
    out = np.zeros(n)
    for k in range(n):
        # relative to the first point, so that far from the origin no digits are lost
        first = offsets[k]
        twice = x0 = y0 = 0.0
        for i in range(first + 1, offsets[k + 1]):
            x1, y1 = xy[i, 0] - xy[first, 0], xy[i, 1] - xy[first, 1]
            twice += x0 * y1 - x1 * y0
            x0, y0 = x1, y1
        out[k] = abs(twice) / 2
    return out


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
    longest = 0
    for k in range(n):
        longest = max(longest, offsets[k + 1] - offsets[k])
    hull = np.empty((2 * longest + 2, 2))
    for k in range(n):
        ring = xy[offsets[k] : offsets[k + 1]]
        if len(ring) < 3:
            continue
        way = _way_around(ring)
        corners = _convex_hull(ring, hull) if way == 0 else _hull_along(ring, way, hull)
        out[k, 0], out[k, 1] = _diameters(hull[:corners])
    return out


@compiled
def run_around(xy: FloatArray, offsets: IntArray) -> npt.NDArray[np.bool_]:
    """Return which outlines run around a point once, always in the same sense: those cannot cross themselves."""
    n = len(offsets) - 1
    out = np.empty(n, dtype=np.bool_)
    for k in range(n):
        out[k] = _way_around(xy[offsets[k] : offsets[k + 1]]) != 0
    return out


@compiled
def _way_around(ring: FloatArray) -> int:
    """Return 1 (x towards y) or -1 if a ring runs once around the mean of its points and never turns back, else 0."""
    if len(ring) < 3:
        return 0
    x = y = 0.0
    for i in range(len(ring)):
        x += ring[i, 0] - ring[0, 0]
        y += ring[i, 1] - ring[0, 1]
    x, y = ring[0, 0] + x / len(ring), ring[0, 1] + y / len(ring)
    ahead, back, turns = 0, 0, 0
    x0, y0 = ring[-1, 0] - x, ring[-1, 1] - y
    for i in range(len(ring)):
        x1, y1 = ring[i, 0] - x, ring[i, 1] - y
        twice_area = x0 * y1 - x1 * y0
        ahead += twice_area > _CLEARLY
        back += twice_area < -_CLEARLY
        turns += (y0 < 0) & (y1 >= 0)
        x0, y0 = x1, y1
    if turns != 1:
        return 0
    return 1 if ahead == len(ring) else -1 if back == len(ring) else 0


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
        while size >= 2 and _turns_right(hull, size, points[i, 0], points[i, 1]):
            size -= 1
        hull[size, 0], hull[size, 1] = points[i, 0], points[i, 1]
        size += 1
    lower = size
    for back in range(len(order) - 2, -1, -1):
        i = order[back]
        while size > lower and _turns_right(hull, size, points[i, 0], points[i, 1]):
            size -= 1
        hull[size, 0], hull[size, 1] = points[i, 0], points[i, 1]
        size += 1
    return size - 1  # the first point stands at the end once more


@compiled
def _hull_along(ring: FloatArray, way: int, hull: FloatArray) -> int:
    """Write the convex hull of a ring that runs around a point (Graham 1972), whose order needs no sorting."""
    count = len(ring)
    start = 0
    for i in range(1, count):
        if ring[i, 0] < ring[start, 0] or (ring[i, 0] == ring[start, 0] and ring[i, 1] < ring[start, 1]):
            start = i
    size, i = 0, start
    for _ in range(count + 1):
        while size >= 2 and _turns_right(hull, size, ring[i, 0], ring[i, 1]):
            size -= 1
        hull[size, 0], hull[size, 1] = ring[i, 0], ring[i, 1]
        size += 1
        i += way
        i = 0 if i == count else count - 1 if i < 0 else i
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
def _turns_right(hull: FloatArray, size: int, x: float, y: float) -> bool:
    """Return whether the way over the last two corners of a hull to a point turns right or straight on."""
    x0, y0, x1, y1 = hull[size - 2, 0], hull[size - 2, 1], hull[size - 1, 0], hull[size - 1, 1]
    return bool((x1 - x0) * (y - y0) - (y1 - y0) * (x - x0) <= 0)
