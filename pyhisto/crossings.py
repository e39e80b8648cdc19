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
        self._upright, self._level = _Sides(), _Sides()

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
        self._level.add((y0 + row + 1) * self._width + column, level[row, column], level[row + 1, column])
        self._last = y0 + len(level) - 1, level[-1:].copy()

    def forget(self, row: int) -> None:
        """Forget what lies above a row."""
        for sides in (self._upright, self._level):
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
        count = np.abs(steps).sum(axis=1).astype(np.int64)
        begin = np.concatenate([[0], np.cumsum(count)])
        run = np.repeat(np.arange(len(count)), count)
        along = np.arange(begin[-1]) - begin[run] + 0.5
        points = corners[run] + np.sign(steps)[run] * along[:, None]
        upright = steps[run, 0] == 0
        place = np.floor(points).astype(np.int64) @ np.array([1, self._width])
        points[upright, 0] += self._upright.shifts(place[upright])
        points[~upright, 1] += self._level.shifts(place[~upright])
        return points, begin[offsets]


class _Sides:
    """Sides in one direction, by their places in raster order, and how far from their middle they are crossed."""

    def __init__(self) -> None:
        self._places, self._shifts = np.empty(0, dtype=np.int64), np.empty(0, dtype=np.float32)
        self._new: list[tuple[IntArray, npt.NDArray[np.float32]]] = []

    def add(self, places: IntArray, before: npt.NDArray[Any], after: npt.NDArray[Any]) -> None:
        """Take further sides, and the levels before and after each."""
        shifts = np.clip(before / (before - after) - 0.5, -MOST, MOST).astype(np.float32)
        self._new.append((places, shifts))

    def shifts(self, places: IntArray) -> npt.NDArray[np.float32]:
        """Return how far some sides are crossed from their middle; 0 for those that are not."""
        self._join()
        if not len(self._places):
            return np.zeros(len(places), dtype=np.float32)
        found = np.minimum(np.searchsorted(self._places, places), len(self._places) - 1)
        return np.where(self._places[found] == places, self._shifts[found], np.float32(0))

    def forget(self, place: int) -> None:
        """Forget what lies before a place."""
        self._join()
        first = np.searchsorted(self._places, place)
        self._places, self._shifts = self._places[first:].copy(), self._shifts[first:].copy()

    def _join(self) -> None:
        if self._new:
            parts = [(self._places, self._shifts), *self._new]
            self._places, self._shifts = (np.concatenate(part) for part in zip(*parts, strict=True))
            self._new = []
