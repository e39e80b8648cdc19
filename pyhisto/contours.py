"""Outlines of many labelled regions at once: traced, smoothed, simplified and turned into polygons.

A :class:`Contours` holds n closed outlines as one array of points. Every step works on all outlines together, so that
a tile with ten thousand nuclei costs a few hundred array operations. Points are (x, y) in pixels of the label image,
pixel (row, column) covering the square from (column, row) to (column + 1, row + 1).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import shapely

__all__ = ["Contours", "select_contours", "simplify_contours", "smooth_contours", "trace_labels"]

FloatArray: TypeAlias = npt.NDArray[np.float64]
IntArray: TypeAlias = npt.NDArray[np.intp]

# Sides of a pixel, in the order of a clockwise walk with the region on the right hand: top, right, bottom, left.
_SIDE_START = np.array([[0, 0], [1, 0], [1, 1], [0, 1]])  # x, y of the side's first corner
_AHEAD = np.array([[0, 1], [1, 0], [0, -1], [-1, 0]])  # row, column step to the pixel straight ahead


@dataclass(frozen=True)
class Contours:
    """n closed outlines.

    Attributes
    ----------
    xy
        float64 (N, 2), the points of all outlines; the first point of an outline is not repeated at its end.
    offsets
        int (n + 1,); outline i has the points ``offsets[i]`` to ``offsets[i + 1] - 1``.
    """

    xy: FloatArray
    offsets: IntArray

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def counts(self) -> IntArray:
        """Number of points of each outline, int (n,)."""
        return np.diff(self.offsets)

    @property
    def owner(self) -> IntArray:
        """Index of the outline that each point belongs to, int (N,)."""
        return np.repeat(np.arange(len(self)), self.counts)

    def following(self) -> IntArray:
        """Index of the point that follows each point on its outline, int (N,)."""
        after = np.arange(1, len(self.xy) + 1)
        filled = self.counts > 0
        after[self.offsets[1:][filled] - 1] = self.offsets[:-1][filled]
        return after

    def areas(self) -> FloatArray:
        """Area inside each outline by the shoelace formula, px², float64 (n,)."""
        after = self.following()
        x, y = self.xy.T
        cross = x * y[after] - x[after] * y
        return np.abs(np.bincount(self.owner, cross, len(self))) / 2

    def perimeters(self) -> FloatArray:
        """Length of each outline, px, float64 (n,)."""
        step = np.linalg.norm(self.xy[self.following()] - self.xy, axis=1)
        return np.bincount(self.owner, step, len(self)).astype(np.float64)

    def scaled(self, scale: tuple[float, float], origin: tuple[float, float]) -> Contours:
        """Return the outlines in another frame: ``xy * scale + origin``."""
        return Contours(self.xy * np.asarray(scale) + np.asarray(origin), self.offsets)

    def polygons(self) -> npt.NDArray[Any]:
        """Return shapely polygons, object (n,); outlines that touch themselves are repaired, empty ones None.

        Repair may split an outline; its largest part is kept.
        """
        out = np.full(len(self), None, dtype=object)
        enough = np.flatnonzero(self.counts >= 3)
        if not len(enough):
            return out
        chosen = select_contours(self, enough)
        # rings want their first point again at the end
        closing = np.concatenate([np.arange(len(chosen.xy)), chosen.offsets[:-1]])
        rank = np.concatenate([chosen.owner * 2.0, np.arange(len(chosen)) * 2.0 + 1])
        ring = closing[np.argsort(rank, kind="stable")]
        offsets = chosen.offsets + np.arange(len(chosen) + 1)
        rings = shapely.from_ragged_array(
            shapely.GeometryType.POLYGON, chosen.xy[ring], (offsets, np.arange(len(chosen) + 1))
        )
        broken = np.flatnonzero(~shapely.is_valid(rings))
        for i in broken:
            parts = [p for p in shapely.get_parts(shapely.make_valid(rings[i])) if p.geom_type == "Polygon"]
            rings[i] = max(parts, key=lambda part: part.area) if parts else None
        out[enough] = rings
        return out


def select_contours(contours: Contours, index: IntArray) -> Contours:
    """Return the outlines at `index`, in that order."""
    counts = contours.counts[index]
    offsets = np.concatenate([[0], np.cumsum(counts)])
    source = np.arange(offsets[-1]) + np.repeat(contours.offsets[:-1][index] - offsets[:-1], counts)
    return Contours(contours.xy[source], offsets)


def trace_labels(labels: npt.NDArray[np.integer[Any]], n: int | None = None) -> Contours:
    """Trace the outer outline of every label along the pixel edges.

    Parameters
    ----------
    labels
        int (H, W); 0 is background, regions are 1 to n. Holes are passed over. Of a label in several 4-connected
        parts, the part with the longest outline is traced.
    n
        Number of labels; the maximum by default.

    Returns
    -------
    Contours
        n outlines in the order of the labels, clockwise as seen on screen, a point at every pixel corner (1 px
        apart); an outline without points for a label that does not occur. Each starts where ImageJ's wand starts it:
        at the first corner after the right end of the region's topmost row.
    """
    n = int(labels.max(initial=0)) if n is None else n
    padded = np.pad(labels, 1).astype(np.int64)
    width = padded.shape[1]
    flat = padded.ravel()
    edges, after = _border_edges(flat, width)
    if not len(edges):
        return Contours(np.empty((0, 2)), np.zeros(n + 1, dtype=np.intp))
    leader, position = _order_loops(after)
    loops, loop_index, length = np.unique(leader, return_inverse=True, return_counts=True)
    owner = flat[edges[loops] // 4]
    best = np.full(n + 1, -1, dtype=np.intp)
    by_length = np.lexsort((-loops, length))
    best[owner[by_length]] = by_length  # the longest, and of equals the first, is written last
    keep = best[owner] == np.arange(len(loops))
    kept = np.flatnonzero(keep[loop_index])
    order = kept[np.lexsort((position[kept], owner[loop_index[kept]]))]
    counts = np.zeros(n, dtype=np.intp)
    counts[owner[keep] - 1] = length[keep]
    offsets = np.concatenate([[0], np.cumsum(counts)])
    pixel, side = edges[order] // 4, edges[order] % 4
    corner = np.stack([pixel % width - 1, pixel // width - 1], axis=1) + _SIDE_START[side]
    return _start_like_wand(Contours(corner.astype(np.float64), offsets), side)


def _border_edges(flat: npt.NDArray[np.int64], width: int) -> tuple[IntArray, IntArray]:
    """Return the sides of pixels that border another label (4 * pixel + side), and which follows which."""
    ahead = _AHEAD @ np.array([width, 1])
    left = np.roll(ahead, 1)  # the pixel across a side: left of the walking direction
    inside = np.flatnonzero(flat > 0)
    sides = [inside[flat[inside + left[s]] != flat[inside]] * 4 + s for s in range(4)]
    edges = np.sort(np.concatenate(sides))
    pixel, side = edges // 4, edges % 4
    own = flat[pixel]
    in_front = pixel + ahead[side]
    diagonal = in_front + left[side]
    turn_right = flat[in_front] != own
    straight = ~turn_right & (flat[diagonal] != own)
    target = np.where(turn_right, pixel, np.where(straight, in_front, diagonal)) * 4
    target += np.where(turn_right, (side + 1) % 4, np.where(straight, side, (side + 3) % 4))
    return edges, np.searchsorted(edges, target)


def _order_loops(after: IntArray) -> tuple[IntArray, IntArray]:
    """Return the first member of each edge's loop, and the edge's position in the loop from there (pointer jumping)."""
    n = len(after)
    leader = np.arange(n)
    jump = after.copy()
    while True:
        smaller = np.minimum(leader, leader[jump])
        if np.array_equal(smaller, leader):
            break
        leader = smaller
        jump = jump[jump]
    # cut every loop before its leader and rank by the distance to the cut
    last = leader == np.arange(n)
    last = last[after]
    jump = np.where(last, np.arange(n), after)
    distance = np.where(last, 0, 1)
    while not last[jump].all():
        distance = distance + distance[jump]
        jump = jump[jump]
    distance = np.where(last, 0, distance)
    length = np.bincount(leader, minlength=n)
    return leader, length[leader] - 1 - distance


def _start_like_wand(contours: Contours, side: IntArray) -> Contours:
    """Rotate outlines that start at the top left pixel: first corner after the first downward edge."""
    if not len(contours.xy):
        return contours
    counts, start = contours.counts, contours.offsets[:-1]
    filled = counts > 0
    local = np.arange(len(side)) - np.repeat(start, counts)
    never = len(side) + 1

    def first(where: npt.NDArray[np.bool_]) -> IntArray:
        place = np.where(where, local, never)
        result = np.zeros(len(contours), dtype=np.intp)
        result[filled] = np.minimum.reduceat(place, start[filled])
        return result

    before = np.empty_like(side)
    before[contours.following()] = side
    down = first(side == 1)
    corner = first((side != before) & (local > np.repeat(down, counts)))
    corner = np.where(corner >= never, 0, corner)
    source = np.repeat(start, counts) + (local + np.repeat(corner, counts)) % np.repeat(np.maximum(counts, 1), counts)
    return Contours(contours.xy[source], contours.offsets)


def smooth_contours(contours: Contours) -> Contours:
    """Round off traced outlines as QuPath smooths its cells.

    Every second point is replaced by the mean of itself and its two neighbours, where the outline counts as closed by
    a copy of its first point; then points are set at equal chords of 2 px (less for outlines of fewer than 20 points).
    """
    filled = np.flatnonzero(contours.counts > 0)
    first = contours.offsets[:-1][filled]
    closed_offsets = contours.offsets + np.concatenate([[0], np.cumsum(contours.counts > 0)])
    source = np.insert(np.arange(len(contours.xy)), contours.offsets[1:][filled], first)
    closed = Contours(contours.xy[source], closed_offsets)
    after = closed.following()
    before = np.empty_like(after)
    before[after] = np.arange(len(after))
    mean = (closed.xy[before] + closed.xy + closed.xy[after]) / 3
    owner = closed.owner
    even = (np.arange(len(owner)) - closed_offsets[:-1][owner]) % 2 == 0
    counts = np.bincount(owner[even], minlength=len(contours))
    averaged = Contours(mean[even], np.concatenate([[0], np.cumsum(counts)]))
    return _resample(averaged, np.minimum(2.0, averaged.counts * 0.1))


def _resample(contours: Contours, chord: FloatArray) -> Contours:
    """Walk along every outline and set a point wherever the distance to the last one reaches `chord`."""
    n = len(contours)
    active = np.flatnonzero(contours.counts >= 2)
    start, counts = contours.offsets[:-1], contours.counts
    segment = np.zeros(n, dtype=np.intp)  # number of the segment walked on
    position = np.zeros((n, 2))
    position[active] = contours.xy[start[active]]
    centre = position.copy()
    owners, points = [active], [centre[active].copy()]
    while len(active):
        end = contours.xy[start[active] + (segment[active] + 1) % counts[active]]
        t = _circle_crossing(position[active], end, centre[active], chord[active])
        hit = np.isfinite(t)
        new = active[hit]
        position[new] += t[hit, None] * (end[hit] - position[new])
        centre[new] = position[new]
        owners.append(new)
        points.append(centre[new].copy())
        walked = active[~hit]
        position[walked] = end[~hit]
        segment[walked] += 1
        active = active[segment[active] < counts[active]]
    owner = np.concatenate(owners)
    order = np.argsort(owner, kind="stable")
    offsets = np.concatenate([[0], np.cumsum(np.bincount(owner, minlength=n))])
    return Contours(np.concatenate(points)[order], offsets)


def _circle_crossing(a: FloatArray, b: FloatArray, centre: FloatArray, radius: FloatArray) -> FloatArray:
    """Return the first t in [0, 1] at which a + t (b - a) lies on the circle, NaN where it never does."""
    along = b - a
    length2 = np.maximum((along**2).sum(axis=1), 1e-300)
    middle = ((centre - a) * along).sum(axis=1) / length2
    off2 = ((a + middle[:, None] * along - centre) ** 2).sum(axis=1)
    inside = off2 <= radius**2
    half = np.sqrt(np.where(inside, radius**2 - off2, np.nan) / length2)
    near, far = middle - half, middle + half
    # a crossing at the very end of a segment must not be lost to rounding, nor the circle's own start be found again
    slack = 1e-9
    ends = 1 + slack
    first = np.where((near > slack) & (near <= ends), near, np.where((far > slack) & (far <= ends), far, np.nan))
    return np.minimum(first, 1.0)


def simplify_contours(contours: Contours, altitude: float) -> Contours:
    """Drop points that hardly matter (Visvalingam and Whyatt 1993, with QuPath's stopping rule).

    The point whose triangle with its neighbours is smallest goes first; an outline is finished when the height of
    that triangle exceeds `altitude`, or three points are left.

    Parameters
    ----------
    contours
        Outlines, in pixels of any frame.
    altitude
        Greatest height of a triangle that may be cut off, in the same unit.
    """
    n_points = len(contours.xy)
    after = contours.following()
    before = np.empty_like(after)
    before[after] = np.arange(n_points)
    least = np.maximum(contours.counts // 100, 3)
    left = contours.counts.copy()
    alive = np.ones(n_points, dtype=bool)
    points = np.arange(n_points)
    owner = contours.owner
    area, height = _triangles(contours.xy, before, points, after)
    while len(points):
        smallest = _smallest_of_each(owner[points], area[points])
        picked = points[smallest]
        drop = picked[(height[picked] <= altitude) & (left[owner[picked]] > least[owner[picked]])]
        if not len(drop):
            break
        alive[drop] = False
        left[owner[drop]] -= 1
        after[before[drop]], before[after[drop]] = after[drop], before[drop]
        touched = np.concatenate([before[drop], after[drop]])
        area[touched], height[touched] = _triangles(contours.xy, before, touched, after)
        busy = np.zeros(len(contours), dtype=bool)
        busy[owner[drop]] = True
        points = points[alive[points] & busy[owner[points]]]
    offsets = np.concatenate([[0], np.cumsum(left)])
    return Contours(contours.xy[alive], offsets)


def _triangles(xy: FloatArray, before: IntArray, at: IntArray, after: IntArray) -> tuple[FloatArray, FloatArray]:
    p, q, r = xy[before[at]], xy[at], xy[after[at]]
    area = np.abs((q[:, 0] - p[:, 0]) * (r[:, 1] - p[:, 1]) - (r[:, 0] - p[:, 0]) * (q[:, 1] - p[:, 1])) / 2
    base = np.linalg.norm(r - p, axis=1)
    return area, np.divide(2 * area, base, out=np.zeros_like(area), where=base > 0)


def _smallest_of_each(owner: IntArray, value: FloatArray) -> IntArray:
    """Return the index of the smallest value of each owner; owners come in runs."""
    first = np.flatnonzero(np.concatenate([[True], owner[1:] != owner[:-1]]))
    lowest = np.minimum.reduceat(value, first)
    run = np.cumsum(np.concatenate([[0], owner[1:] != owner[:-1]]))
    matches = np.flatnonzero(value == lowest[run])
    is_first = np.concatenate([[True], run[matches][1:] != run[matches][:-1]])
    return np.asarray(matches[is_first])
