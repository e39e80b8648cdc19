"""Where a level that is known at the centres of pixels passes through 0 between them: points of marching squares."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

__all__ = ["Crossings"]

FloatArray: TypeAlias = npt.NDArray[np.float64]
IntArray: TypeAlias = npt.NDArray[np.int64]

MOST = 0.45
"""How far from the middle of a side an outline goes at most, px: so that none meets another, nor itself."""

POINTS_AT_ONCE = 1 << 15
"""Points that are looked at together."""


class Crossings:
    """The sides of pixels on which a level changes its sign, and where: it is linear from centre to centre.

    Those are the points of marching squares (Lorensen & Cline 1987) on the level, in place of its mask. The level comes
    in bands from top to bottom.

    Examples
    --------
    >>> crossings = Crossings()
    >>> crossings.add(np.array([[3.0, -1.0]]), 0)
    >>> square = np.array([[0.0, 0], [1, 0], [1, 1], [0, 1]])
    >>> crossings.outlines(square, np.roll(square, -1, axis=0) - square, np.array([0, 4]))[0].tolist()
    [[0.5, 0.0], [1.25, 0.5], [0.5, 1.0], [0.0, 0.5]]
    """

    def __init__(self) -> None:
        self._width = 0
        self._last: tuple[int, npt.NDArray[Any]] | None = None
        self._upright, self._flat = _Sides(), _Sides()

    def add(self, level: npt.NDArray[np.floating[Any]], y0: int) -> None:
        """Take the next band, (rows, width), whose top row is `y0`; rows that are passed over have no crossings."""
        self._width = level.shape[1] + 1
        inside = level > 0
        row, column = np.nonzero(inside[:, 1:] != inside[:, :-1])
        place = (y0 + row) * self._width + column + 1
        self._upright.add(place, level[row, column], level[row, column + 1])
        if self._last is not None and self._last[0] == y0 - 1:
            level, y0 = np.concatenate([self._last[1], level]), y0 - 1
            inside = level > 0
        row, column = np.nonzero(inside[1:] != inside[:-1])
        self._flat.add((y0 + row + 1) * self._width + column, level[row, column], level[row + 1, column])
        self._last = y0 + len(level) - 1, level[-1:].copy()

    def forget(self, row: int) -> None:
        """Forget what lies above a row."""
        for sides in (self._upright, self._flat):
            sides.forget(row * self._width)

    def outlines(self, corners: FloatArray, steps: FloatArray, offsets: IntArray) -> tuple[FloatArray, IntArray]:
        """Return outlines along the edges of pixels with a point for each side, there where the level crosses it.

        In the middle of those that it does not cross, at the border of the image.

        Parameters
        ----------
        corners, steps
            The corners, float64 (n, 2), x and y, and the way from each to the next, along the rows or columns.
        offsets
            int64 (k + 1,): where each outline begins.

        Returns
        -------
        tuple
            Points, float64 (m, 2), and where each outline begins.
        """
        begin = np.concatenate([[0], np.cumsum(np.abs(steps).sum(axis=1).astype(np.int64))])
        points = np.empty((begin[-1], 2))
        for low in range(0, len(points), POINTS_AT_ONCE):
            number = np.arange(low, min(low + POINTS_AT_ONCE, len(points)))
            run = np.searchsorted(begin, number, side="right") - 1
            point = corners[run] + np.sign(steps[run]) * (number - begin[run] + 0.5)[:, None]
            upright = steps[run, 0] == 0
            place = np.floor(point).astype(np.int64) @ np.array([1, self._width])
            point[upright, 0] += self._upright.shifts(place[upright])
            point[~upright, 1] += self._flat.shifts(place[~upright])
            points[number] = point
        return points, begin[offsets]


class _Sides:
    """Sides in one direction, by their places in raster order, and how far from their middle they are crossed.

    In as few bytes as do: they may be those of a whole slide. Half precision is a four-thousandth of a pixel here.
    """

    def __init__(self) -> None:
        self._places: npt.NDArray[Any] = np.empty(0, dtype=np.uint8)
        self._shifts = np.empty(0, dtype=np.float16)
        self._new: list[tuple[npt.NDArray[Any], npt.NDArray[np.float16]]] = []

    def add(self, places: IntArray, before: npt.NDArray[Any], after: npt.NDArray[Any]) -> None:
        """Take further sides, and the levels before and after each."""
        shifts = np.clip(before / (before - after) - 0.5, -MOST, MOST).astype(np.float16)
        self._new.append((places.astype(np.min_scalar_type(places.max(initial=0))), shifts))

    def shifts(self, places: IntArray) -> FloatArray:
        """Return how far some sides are crossed from their middle; 0 for those that are not."""
        self._join()
        if not len(self._places):
            return np.zeros(len(places))
        found = np.searchsorted(self._places, places.astype(self._places.dtype))
        found = np.minimum(found, len(self._places) - 1)
        return np.where(self._places[found] == places, self._shifts[found], 0.0)

    def forget(self, place: int) -> None:
        """Forget what lies before a place."""
        self._join()
        kept = self._places >= place
        self._places, self._shifts = self._places[kept], self._shifts[kept]

    def _join(self) -> None:
        if self._new:
            parts = [(self._places, self._shifts), *self._new]
            self._new = []
            self._places, self._shifts = (np.concatenate(part) for part in zip(*parts, strict=True))
