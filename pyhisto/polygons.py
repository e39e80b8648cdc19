"""Outlines of the regions of a mask or label map: traced along the edges of their pixels, nested, made polygons.

All follows from :class:`pyhisto.sides.Sides`. Regions are 4-connected. Other modules call :mod:`pyhisto.labels`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
import shapely

from pyhisto.crossings import Crossings
from pyhisto.sides import Sides

__all__ = ["Outline", "Rings", "ring_polygons", "trace_rings"]

BoolArray: TypeAlias = npt.NDArray[np.bool_]
FloatArray: TypeAlias = npt.NDArray[np.float64]
IntArray: TypeAlias = npt.NDArray[np.int64]
Outline = Literal["halfway", "pixels"]


@dataclass(frozen=True)
class _Lines:
    """Closed lines of some points each: float64 (n, 2), and where each begins."""

    xy: npt.NDArray[np.float64]
    offsets: IntArray

    def steps(self) -> npt.NDArray[np.float64]:
        """Return the way from each point to the next, (n, 2)."""
        step = np.empty_like(self.xy)
        step[:-1] = self.xy[1:] - self.xy[:-1]
        last = self.offsets[1:] - 1
        step[last] = self.xy[self.offsets[:-1]] - self.xy[last]
        return step

    def picked(self, keep: BoolArray) -> _Lines:
        """Return the lines without some of their points; some are left of each."""
        return _Lines(self.xy.take(np.flatnonzero(keep), axis=0), _offsets(keep)[self.offsets])


@dataclass(frozen=True)
class Rings:
    """Closed outlines, each a walk along walls with its region on the right hand (clockwise on screen for outer ones).

    A wall is a straight run of sides in one column. Walls of starts are walked up, those of ends down; between two
    walls the walk goes along a row of corners.

    Attributes
    ----------
    sides
        What was traced.
    wall_of_side
        int64: the wall of each side, ends first, then starts.
    x, top, bottom, start, label
        (m,): column, first and last row of corners, whether it is one of starts, and label of each wall.
    order, offsets
        Ring i walks along the walls ``order[offsets[i] : offsets[i + 1]]``.
    hole
        bool (k,): whether a ring goes around a hole.
    """

    sides: Sides
    wall_of_side: IntArray
    x: IntArray
    top: IntArray
    bottom: IntArray
    start: BoolArray
    label: IntArray
    order: IntArray
    offsets: IntArray
    hole: BoolArray

    def __len__(self) -> int:
        return len(self.hole)

    @property
    def ring_of_wall(self) -> IntArray:
        """The ring of each wall, int64 (m,)."""
        return _ring_of_wall(self.order, self.offsets)

    @property
    def labels(self) -> IntArray:
        """The label of each ring, int64 (k,)."""
        return self.label[self.order[self.offsets[:-1]]]

    def areas(self) -> IntArray:
        """Return the number of pixels inside each ring, negative for holes, int64 (k,)."""
        area: IntArray = self._around(self.x * (self.bottom - self.top))
        return area

    def integrals(self) -> FloatArray:
        """Return the sum of the map over the pixels inside each ring, negated for holes, float64 (k,); NaN without one.

        As with areas, the sum over a region is that over its boundary of what lies left of it (Green's theorem).
        """
        if self.sides.sums is None:
            return np.full(len(self), np.nan)
        integral: FloatArray = self._around(np.bincount(self.wall_of_side, self.sides.sums, len(self.x)))
        return integral

    def bounds(self) -> tuple[IntArray, IntArray, IntArray, IntArray]:
        """Return left, top, right and bottom of each ring, int64 (k,) each."""
        if not len(self):
            return (self.offsets[:0],) * 4
        x, top, bottom = (of[self.order] for of in (self.x, self.top, self.bottom))
        first = self.offsets[:-1]
        low, high = np.minimum.reduceat, np.maximum.reduceat
        return low(x, first), low(top, first), high(x, first), high(bottom, first)

    def _around(self, left_of_wall: npt.NDArray[Any]) -> Any:
        """Return the sum over the walls of each ring of what lies left of them, ends less starts."""
        if not len(self):
            return left_of_wall[:0]
        return np.add.reduceat((left_of_wall * np.where(self.start, -1, 1))[self.order], self.offsets[:-1])

    def nesting(self, *, containers: bool) -> tuple[IntArray, IntArray]:
        """Return the outer ring of each ring's region and, where asked for, the hole that each region lies in.

        In the row above the topmost corner of a ring, the next side to the left belongs to the same region (of a hole)
        or to the surroundings (of an outer ring), and to a ring that begins higher up.

        Returns
        -------
        outer : numpy.ndarray
            int64 (k,): an outer ring, that of an outer ring itself.
        container : numpy.ndarray
            int64 (k,): for outer rings the hole of the same label they lie in, -1 for none; -1 for holes.
        """
        width, n_ends = self.sides.width, len(self.sides.ends)
        ring_of_wall = self.ring_of_wall
        highest = self._highest_walls()
        place = (self.top[highest] - 1) * width + self.x[highest]
        outer = np.arange(len(self))
        container = np.full(len(self), -1)
        before = np.searchsorted(self.sides.starts, place[self.hole], side="right") - 1
        outer[self.hole] = ring_of_wall[self.wall_of_side[n_ends + before]]
        outer = _last_of_chain(outer)
        if containers:
            shells = np.flatnonzero(~self.hole)
            side = self._end_before(place[shells], self.labels[shells])
            ring = np.where(side >= 0, ring_of_wall[self.wall_of_side[side]], -1)
            sibling = np.arange(len(self))
            beside = (ring >= 0) & ~self.hole[ring]
            sibling[shells[beside]] = ring[beside]
            container[shells] = np.where(beside, -1, ring)
            container[shells] = container[_last_of_chain(sibling)[shells]]
        return outer, container

    def sides_of(self, rings: BoolArray) -> Sides:
        """Return the sides that some rings, bool (k,), are made of."""
        kept = rings[self.ring_of_wall[self.wall_of_side]]
        ends, starts = np.split(kept, [len(self.sides.ends)])
        of = self.sides
        sums = None if of.sums is None else of.sums[kept]
        return Sides(of.width, of.ends[ends], of.starts[starts], of.end_labels[ends], of.start_labels[starts], sums)

    def _highest_walls(self) -> IntArray:
        """Return the wall of each ring with the topmost corner, on the side of the region that starts the ring."""
        if not len(self):
            return self.offsets[:0]
        first = np.repeat(self.start[self.order[self.offsets[:-1]]], np.diff(self.offsets))
        n = len(self.order)
        never = int(self.bottom.max()) + 1
        key = np.where(self.start[self.order] == first, self.top[self.order], never) * n + np.arange(n)
        highest: IntArray = self.order[np.minimum.reduceat(key, self.offsets[:-1]) % n]
        return highest

    def _end_before(self, place: IntArray, label: IntArray) -> IntArray:
        """Return the nearest end of a label at or left of each place in the same row, -1 for none."""
        ends, width = self.sides.ends, self.sides.width
        if not len(ends):
            return np.full(len(place), -1)
        by_label = _stable_order(self.sides.end_labels)
        plane = int(ends[-1]) + 2 * width
        keys = self.sides.end_labels[by_label] * plane + ends[by_label] + width
        at = np.searchsorted(keys, label * plane + place + width, side="right") - 1
        found = by_label[at]
        fits = (at >= 0) & (self.sides.end_labels[found] == label) & (ends[found] // width == place // width)
        return np.where(fits, found, -1)

    def corners(self, rings: IntArray) -> _Lines:
        """Return some rings along the edges of pixels, with a point wherever they turn."""
        counts = np.diff(self.offsets)[rings]
        offsets = _offsets(counts)
        walls = self.order[np.arange(offsets[-1]) + np.repeat(self.offsets[:-1][rings] - offsets[:-1], counts)]
        up = self.start[walls]
        xy = np.empty((len(walls), 2, 2))
        xy[:, :, 0] = self.x[walls, None]
        xy[:, 0, 1] = np.where(up, self.bottom[walls], self.top[walls])
        xy[:, 1, 1] = np.where(up, self.top[walls], self.bottom[walls])
        return _Lines(xy.reshape(-1, 2), 2 * offsets)


def trace_rings(sides: Sides, outline: Outline) -> Rings:
    """Trace the outlines of all 4-connected regions.

    Where a region meets itself at a corner, the outline ``"halfway"`` passes between its two pixels; ``"pixels"`` goes
    through the corner, so that there it is cut into two rings, of which neither touches itself (the rule of the OGC's
    Simple Features, which JTS and thereby QuPath follow).
    """
    wall_of_side, x, top, bottom, start, label = _walls(sides)
    corners = _stable_order(np.stack([top, bottom], axis=1).ravel())  # each row of corners of each label from the left
    order, offsets = _walk(_following(corners, start))
    if outline == "pixels" and len(corners):
        row = np.stack([top, bottom], axis=1).ravel()[corners]
        wall = corners // 2
        ring = _ring_of_wall(order, offsets)[wall]
        same = (row[1::2][:-1] == row[2::2]) & (x[wall[1::2][:-1]] == x[wall[2::2]])
        pinched = 1 + 2 * np.flatnonzero(same & (ring[1::2][:-1] == ring[2::2]))
        if len(pinched):
            corners[pinched], corners[pinched + 1] = corners[pinched + 1], corners[pinched]
            order, offsets = _walk(_following(corners, start))
    hole = ~start[order[offsets[:-1]]]  # the leftmost wall of a ring has a hole to its right or a region
    return Rings(sides, wall_of_side, x, top, bottom, start, label, order, offsets, hole)


def _walls(sides: Sides) -> tuple[IntArray, IntArray, IntArray, IntArray, BoolArray, IntArray]:
    """Join sides that go on straight down; by label, then column, then ends before starts, then row."""
    place = np.concatenate([sides.ends, sides.starts])
    order = _stable_order((place % sides.width).astype(np.int32))
    label = np.concatenate([sides.end_labels, sides.start_labels])
    if len(label) and label.min() < label.max():
        order = order[_stable_order(label[order])]
    start = order >= len(sides.ends)
    place = place[order]
    label = label[order]
    begins = np.ones(len(order), dtype=np.bool_)
    begins[1:] = (np.diff(place) != sides.width) | (label[1:] != label[:-1]) | (start[1:] != start[:-1])
    first = np.flatnonzero(begins)
    top, column = np.divmod(place[first], sides.width)
    del place
    wall_of_side = np.empty_like(order)
    wall_of_side[order] = np.cumsum(begins) - 1
    bottom = top + np.diff(np.append(first, len(order)))
    return wall_of_side, column, top, bottom, start[first], label[first]


def _following(corners: IntArray, start: BoolArray) -> IntArray:
    """Return the wall after each: corners (2 * wall for its top, + 1 for its bottom) are joined two by two."""
    partner = np.empty_like(corners)
    partner[corners[0::2]] = corners[1::2]
    partner[corners[1::2]] = corners[0::2]
    return partner[2 * np.arange(len(start)) + ~start] // 2


def _walk(following: IntArray) -> tuple[IntArray, IntArray]:
    """Return the members of all cycles one after another, each from its least member, and where each cycle begins."""
    from scipy.sparse import csgraph, csr_array

    n = len(following)
    if n == 0:
        return following, np.zeros(1, dtype=np.int64)

    def graph(to: IntArray) -> Any:
        return csr_array((np.ones(n, dtype=np.int8), to.astype(np.int32), np.arange(n + 1, dtype=np.int32)), (n, n))

    count, cycle = csgraph.connected_components(graph(following), connection="weak")
    first = np.empty(count, dtype=np.int64)
    first[cycle[::-1]] = np.arange(n)[::-1]  # the last to be written is the least
    before = np.empty(n, dtype=np.int64)
    before[following] = np.arange(n)
    path = following.copy()
    path[before[first[:-1]]] = first[1:]  # from the end of each cycle on to the next
    order = csgraph.depth_first_order(graph(path), int(first[0]), return_predecessors=False)
    return order.astype(np.int64), _offsets(np.bincount(cycle))


def _ring_of_wall(order: IntArray, offsets: IntArray) -> IntArray:
    ring = np.empty_like(order)
    ring[order] = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    return ring


def _last_of_chain(link: IntArray) -> IntArray:
    """Follow links (a member without one has itself) to their end, by pointer jumping."""
    while True:
        further = link[link]
        if np.array_equal(further, link):
            return link
        link = further


def _offsets(counts: IntArray | BoolArray) -> IntArray:
    return np.concatenate([[0], np.cumsum(counts)])


def _stable_order(values: npt.NDArray[np.integer[Any]]) -> IntArray:
    """Return the stable order of whole numbers from 0 on; sixteen bits at a time, which numpy sorts by radix."""
    order = np.argsort(values.astype(np.uint16), kind="stable")  # the lower bits alone
    high = values >> 16
    while high.any():
        order = order[np.argsort(high.astype(np.uint16)[order], kind="stable")]
        high = high >> 16
    return order


def ring_polygons(
    rings: Rings,
    outer: IntArray,
    drawn: IntArray,
    outline: Outline,
    crossings: Crossings | None = None,
    tolerance: float = 0.0,
) -> tuple[npt.NDArray[Any], IntArray]:
    """Make polygons of traced rings.

    Parameters
    ----------
    rings
        What :func:`trace_rings` returned.
    outer
        As :meth:`Rings.nesting` returns it.
    drawn
        The rings to draw; with each hole its outer ring.
    outline
        What they were traced for.
    crossings
        Where outlines that are half-way pass between pixels; in the middle by default.
    tolerance
        How far an outline may move when points are left out, pixels.

    Returns
    -------
    polygons : numpy.ndarray
        shapely Polygons (n,), pixels; valid but for what a tolerance may do.
    shell : numpy.ndarray
        int64 (n,): the outer ring of each.
    """
    drawn = drawn[np.lexsort((rings.hole[drawn], outer[drawn]))]
    if not len(drawn):
        return np.empty(0, dtype=object), drawn
    lines = rings.corners(drawn)
    if outline == "halfway":
        lines = (
            _halfway(lines)
            if crossings is None
            else _Lines(*crossings.outlines(lines.xy, lines.steps(), lines.offsets))
        )
    shells = np.flatnonzero(~rings.hole[drawn])
    points = np.insert(lines.xy, lines.offsets[1:], lines.xy[lines.offsets[:-1]], axis=0)
    ends, parts = lines.offsets + np.arange(len(lines.offsets)), np.append(shells, len(drawn))
    del lines
    if tolerance > 0:
        points, ends, parts = _simplified(points, ends, parts, tolerance)
    polygons = shapely.from_ragged_array(shapely.GeometryType.POLYGON, points, (ends, parts))
    return polygons, drawn[shells]


def _simplified(
    points: FloatArray, ends: IntArray, parts: IntArray, tolerance: float
) -> tuple[FloatArray, IntArray, IntArray]:
    """Return closed lines with fewer points, none farther than the tolerance from where it was, and their offsets.

    The lines of a polygon together. As lines: of a ring, GEOS drops the first point in a second pass, whose error adds
    to that of the first.
    """
    lines = shapely.from_ragged_array(shapely.GeometryType.MULTILINESTRING, points, (ends, parts))
    lines, polygon = shapely.get_parts(shapely.simplify(lines, tolerance), return_index=True)
    counts = shapely.get_num_coordinates(lines).astype(np.int64)
    return shapely.get_coordinates(lines), _offsets(counts), _offsets(np.bincount(polygon, minlength=len(parts) - 1))


def _halfway(corners: _Lines) -> _Lines:
    """Cut off corners so that outlines run half-way between pixel centres in and out.

    They then go through the middle of every pixel side on the way, which are the points of marching squares (Lorensen
    & Cline 1987) on a mask; those that lie on a straight line are left out.
    """
    step = corners.steps()
    half = 0.5 * np.sign(step)
    points = np.empty((2 * len(step), 2))
    points[0::2] = corners.xy + half
    points[1::2] = corners.xy + step - half
    keep = np.ones(len(points), dtype=np.bool_)
    keep[1::2] = np.abs(step[:, 0] + step[:, 1]) > 1  # else both are the middle of the same side
    middles = _Lines(points, 2 * corners.offsets).picked(keep)
    leaving = middles.steps()
    coming = np.empty_like(leaving)
    coming[1:] = leaving[:-1]
    coming[middles.offsets[:-1]] = leaving[middles.offsets[1:] - 1]
    return middles.picked(coming[:, 0] * leaving[:, 1] != coming[:, 1] * leaving[:, 0])
