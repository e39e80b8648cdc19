"""Polygons of a mask that comes in bands and is never whole in memory: regions are drawn as soon as they are closed."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from pyhisto.crossings import Crossings
from pyhisto.heap import heap
from pyhisto.labels import DrawnPolygons, PolygonSettings, draw_polygons, in_order, shown_rings
from pyhisto.polygons import Rings, trace_rings
from pyhisto.sides import Sides, find_sides, join_sides

__all__ = ["BandPolygons"]

BoolArray: TypeAlias = npt.NDArray[np.bool_]
IntArray: TypeAlias = npt.NDArray[np.int64]

SIDES_AT_ONCE = 1 << 15
"""Sides of pixels from which on bands are worked off."""


class BandPolygons:
    """The polygons of a mask that comes in bands from top to bottom: the same as of the whole mask at once.

    With them comes the mean of a map over each, which is summed up on the way.

    Memory is needed for one band, the polygons that are finished, and the outlines of regions that the next band may
    go on with: without holes and parts that are too small to be drawn, but (with `min_hole_area`) with other regions in
    the same columns that are smaller than that.

    Parameters
    ----------
    settings
        Half-way outlines of everything by default.

    Examples
    --------
    >>> bands = BandPolygons(PolygonSettings(outline="pixels"))
    >>> for row in range(3):
    ...     bands.add(np.ones((1, 4), bool), row)
    >>> polygons, means = bands.finish()
    >>> [polygon.area for polygon in polygons]
    [12.0]
    """

    def __init__(self, settings: PolygonSettings | None = None) -> None:
        self.settings = settings or PolygonSettings()
        self._parts: list[Sides] = []
        self._waiting = 0
        """Sides of pixels in all parts, ends alone."""
        self._next_row = 0
        self._enough = SIDES_AT_ONCE
        self._done: list[DrawnPolygons] = []
        self._crossings: Crossings | None = None

    def add_level(
        self, level: npt.NDArray[np.floating[Any]], y0: int, summed: npt.NDArray[np.floating[Any]] | None = None
    ) -> None:
        """Take the next band of a level, (rows, width), in place of its mask, which is where it is above 0.

        Outlines then run where it passes through 0 between the centres of pixels.

        Raises
        ------
        ValueError
            If outlines are to run along the edges of pixels, or as in :meth:`add`.
        """
        if self.settings.outline != "halfway":
            raise ValueError(f"a level for outlines of the kind {self.settings.outline}")
        self._crossings = self._crossings or Crossings()
        self._crossings.add(level, y0)
        self.add(level > 0, y0, summed)

    def add(self, rows: npt.NDArray[np.bool_], y0: int, summed: npt.NDArray[np.floating[Any]] | None = None) -> None:
        """Take the next band of the mask.

        Parameters
        ----------
        rows
            bool, shape (rows, width).
        y0
            Row of the mask at the band's top. Rows that are passed over are empty.
        summed
            (rows, width): the map whose means are wanted; with all bands or with none.

        Raises
        ------
        ValueError
            If the band is not below the last one, or of another width.
        """
        found = find_sides(rows, y0, summed)
        if y0 < self._next_row:
            raise ValueError(f"a band at row {y0} after row {self._next_row - 1}")
        if self._parts and self._parts[0].width != found.width:
            raise ValueError(f"a band {found.width - 1} px wide after one of {self._parts[0].width - 1} px")
        self._parts.append(found)
        self._waiting += len(found.ends)
        self._next_row = y0 + len(rows)
        if self._waiting > self._enough:
            rings = self._traced()
            shown, outer = shown_rings(rings, self.settings)
            ready, waiting = _sorted(rings, shown, outer, self._next_row, self.settings)
            self._draw(rings, ready, outer)
            left = rings.sides_of(waiting)
            self._parts, self._waiting = [left], len(left.ends)
            if self._crossings is not None:
                self._crossings.forget(int(left.ends[0]) // left.width if len(left.ends) else self._next_row)
            self._enough = SIDES_AT_ONCE + 2 * len(left.ends)

    def _traced(self) -> Rings:
        """Return the outlines of all that is there, which is held by them alone from now on."""
        sides = join_sides(self._parts)
        self._parts = []
        heap.settle(0.0)  # of the parts
        return trace_rings(sides, self.settings.outline)

    def finish(self) -> tuple[list[Any], npt.NDArray[np.float64]]:
        """Return the polygons of all bands, and the mean over the pixels of each.

        Returns
        -------
        polygons : list of shapely.Polygon
            In level-0 px, as :func:`mask_to_polygons` returns them.
        means : numpy.ndarray
            float64 (n,): over the pixels inside the outline before points are left out of it; NaN without a map.
        """
        if self._parts:
            rings = self._traced()
            self._draw(rings, *shown_rings(rings, self.settings))
        if not self._done:
            return [], np.empty(0)
        found = in_order(DrawnPolygons(*map(np.concatenate, zip(*self._done, strict=True))), self.settings)
        return list(found.polygons), found.mean

    def _draw(self, rings: Rings, shown: BoolArray, outer: IntArray) -> None:
        """Draw some rings, few regions at a time: outlines take several times the memory of their sides."""
        heap.settle(0.0)  # of what they were traced with
        walls = np.bincount(outer[rings.ring_of_wall], minlength=len(rings))
        part = (np.cumsum(walls) // max(1, SIDES_AT_ONCE))[outer]
        for number in np.unique(part[shown]).tolist():
            self._done.append(draw_polygons(rings, shown & (part == number), outer, self.settings, self._crossings))


def _sorted(
    rings: Rings, shown: BoolArray, outer: IntArray, next_row: int, settings: PolygonSettings
) -> tuple[BoolArray, BoolArray]:
    """Return which rings of a mask without its rows from `next_row` on are to be drawn now, and which must wait.

    What may change is a region that reaches the last row; and, where small holes are filled, a smaller one that such a
    region spans from left to right, for it may close around it. Of a region that waits, the holes will not change.
    Closed regions that are too small for an annotation are neither drawn nor kept.

    Parameters
    ----------
    rings
        What is there.
    shown, outer
        As :func:`pyhisto.labels.shown_rings` returns them.
    next_row, settings
        The first row that is not there; how regions are drawn.

    Returns
    -------
    ready, waiting
        bool (k,) each.
    """
    going_on = np.zeros(len(rings), dtype=np.bool_)
    going_on[rings.ring_of_wall[rings.bottom == next_row]] = True
    left, top, right, bottom = rings.bounds()
    waiting = going_on.copy()
    if going_on.any():
        open_ones = np.flatnonzero(going_on)
        open_ones = open_ones[np.argsort(left[open_ones])]
        farthest = np.maximum.accumulate(right[open_ones])
        before = np.searchsorted(left[open_ones], left)
        spanned = (before > 0) & (farthest[before - 1] > right)
        waiting |= spanned & (rings.areas() < settings.min_hole_area)
    large = going_on | (
        (right - left) * (bottom - top) >= settings.min_area
    )  # an outline is nowhere outside its bounds
    kept = shown & large[outer]
    return kept & ~waiting[outer], kept & waiting[outer]
