"""The loop that cuts an area into the tiles that a network predicts soonest; see :mod:`pyhisto.inference.partition`."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from pyhisto.loops.compiled import compiled

__all__ = ["cheapest_cuts"]

Cells: TypeAlias = npt.NDArray[np.uint8]
Edges: TypeAlias = npt.NDArray[np.int64]

_LEAF, _EMPTY = 0, -(1 << 15)
"""What stands where an area is not cut, and where nothing is in it; else the row, or minus the column, of the cut."""


@compiled
def cheapest_cuts(
    occupied: Cells,
    rows: Edges,
    columns: Edges,
    cell: int,
    reach: tuple[int, int],
    sides: tuple[int, int, int],
    cost: tuple[float, float],
) -> Edges:
    """Return the tiles of the guillotine partition of an area that costs least, by dynamic programming.

    A tile is the bounds of the occupied cells in a rectangle of blocks, and what the network sees around them: far
    where an occupied cell goes on beyond, near where there is none.

    Parameters
    ----------
    occupied
        uint8 (H, W), not 0 where something is wanted.
    rows, columns
        int64 (n + 1,), (m + 1,): where blocks begin and end, cells; cuts lie on these.
    cell
        Side of a cell, px.
    reach
        How far the network sees near and far, px.
    sides
        Of what the network sees of a tile: least side, most pixels, and what all ends are multiples of, px.
    cost
        What a tile costs beside its pixels: as a share of them, and at most, px.

    Returns
    -------
    numpy.ndarray
        int64 (k, 8): (x0, y0, x1, y1) of the cells, and whether others go on at the left, top, right and bottom.
    """
    n, m = len(rows) - 1, len(columns) - 1
    top, left = rows[0], columns[0]
    across, down = _counts(occupied, rows, columns)
    bounds = np.empty((n, n + 1, m, m + 1, 4), dtype=np.int32)
    best = np.empty((n, n + 1, m, m + 1), dtype=np.float64)
    cut = np.empty((n, n + 1, m, m + 1), dtype=np.int16)
    for high in range(1, n + 1):
        for y0 in range(n - high + 1):
            y1 = y0 + high
            for wide in range(1, m + 1):
                for x0 in range(m - wide + 1):
                    x1 = x0 + wide
                    own = bounds[y0, y1, x0, x1]
                    if high > 1:
                        _join(bounds[y0, y1 - 1, x0, x1], bounds[y1 - 1, y1, x0, x1], own)
                    elif wide > 1:
                        _join(bounds[y0, y1, x0, x1 - 1], bounds[y0, y1, x1 - 1, x1], own)
                    else:
                        _block(occupied, rows[y0], rows[y1], columns[x0], columns[x1], own)
                    if own[2] <= own[0]:
                        best[y0, y1, x0, x1], cut[y0, y1, x0, x1] = 0.0, _EMPTY
                        continue
                    flags = _goes_on(own, across, down, (left, top))
                    best[y0, y1, x0, x1] = _cost_of_tile(own, flags, cell, reach, sides, cost)
                    cut[y0, y1, x0, x1] = _best_cut(best, y0, y1, x0, x1)
    return _tiles(cut, bounds, across, down, (left, top))


@compiled
def _best_cut(best: npt.NDArray[np.float64], y0: int, y1: int, x0: int, x1: int) -> int:
    """Return the best cut of an area and write down what is left to pay; of equals that nearest to the middle."""
    least, place = best[y0, y1, x0, x1], _LEAF
    for y in range(y0 + 1, y1):
        both = best[y0, y, x0, x1] + best[y, y1, x0, x1]
        if both < least or (both == least and place > 0 and 2 * y <= y0 + y1):
            least, place = both, y
    for x in range(x0 + 1, x1):
        both = best[y0, y1, x0, x] + best[y0, y1, x, x1]
        if both < least or (both == least and place < 0 and 2 * x <= x0 + x1):
            least, place = both, -x
    best[y0, y1, x0, x1] = least
    return place


@compiled
def _counts(occupied: Cells, rows: Edges, columns: Edges) -> tuple[Edges, Edges]:
    """Return the occupied cells left of and above each cell of an area with a border of one cell."""
    height, width = rows[-1] - rows[0], columns[-1] - columns[0]
    across = np.zeros((height + 2, width + 3), dtype=np.int64)
    down = np.zeros((height + 3, width + 2), dtype=np.int64)
    for y in range(height + 2):
        for x in range(width + 2):
            row, column = rows[0] + y - 1, columns[0] + x - 1
            inside = 0 <= row < occupied.shape[0] and 0 <= column < occupied.shape[1]
            here = 1 if inside and occupied[row, column] != 0 else 0
            across[y, x + 1] = across[y, x] + here
            down[y + 1, x] = down[y, x] + here
    return across, down


@compiled
def _block(occupied: Cells, y0: int, y1: int, x0: int, x1: int, out: npt.NDArray[np.int32]) -> None:
    """Write the bounds of the occupied cells of a block, turned inside out if there is none."""
    out[0], out[1], out[2], out[3] = x1, y1, x0, y0
    for y in range(y0, y1):
        for x in range(x0, x1):
            if occupied[y, x] != 0:
                out[0], out[1] = min(out[0], x), min(out[1], y)
                out[2], out[3] = max(out[2], x + 1), max(out[3], y + 1)


@compiled
def _join(one: npt.NDArray[np.int32], other: npt.NDArray[np.int32], out: npt.NDArray[np.int32]) -> None:
    """Write the bounds of two boxes, of which one may be turned inside out."""
    none, nothing = one[2] <= one[0], other[2] <= other[0]
    for i in range(2):
        out[i] = other[i] if none or (other[i] < one[i] and not nothing) else one[i]
        out[2 + i] = other[2 + i] if none or (other[2 + i] > one[2 + i] and not nothing) else one[2 + i]


@compiled
def _goes_on(
    own: npt.NDArray[np.int32], across: Edges, down: Edges, corner: tuple[int, int]
) -> tuple[bool, bool, bool, bool]:
    """Return whether an occupied cell lies beside a box at the left, top, right and bottom."""
    x0, y0, x1, y1 = own[0] - corner[0] + 1, own[1] - corner[1] + 1, own[2] - corner[0] + 1, own[3] - corner[1] + 1
    return (
        down[y1, x0 - 1] > down[y0, x0 - 1],
        across[y0 - 1, x1] > across[y0 - 1, x0],
        down[y1, x1] > down[y0, x1],
        across[y1, x1] > across[y1, x0],
    )


@compiled
def _cost_of_tile(
    own: npt.NDArray[np.int32],
    goes_on: tuple[bool, bool, bool, bool],
    cell: int,
    reach: tuple[int, int],
    sides: tuple[int, int, int],
    cost: tuple[float, float],
) -> float:
    """Return what a tile costs, infinite if it is too large."""
    near, far = reach
    least, most, step = sides
    left, top, right, bottom = goes_on
    wide = _seen(own[0] * cell, own[2] * cell, far if left else near, far if right else near, step)
    high = _seen(own[1] * cell, own[3] * cell, far if top else near, far if bottom else near, step)
    pixels = float(max(wide, least) * max(high, least))
    if pixels > most:
        return np.inf
    return pixels + min(cost[0] * pixels, cost[1])


@compiled
def _seen(low: int, high: int, before: int, after: int, step: int) -> int:
    return -((-high - after) // step) * step - (low - before) // step * step


@compiled
def _tiles(
    cut: npt.NDArray[np.int16], bounds: npt.NDArray[np.int32], across: Edges, down: Edges, corner: tuple[int, int]
) -> Edges:
    """Return the tiles that cuts leave."""
    n, m = cut.shape[0], cut.shape[2]
    out = np.empty((n * m, 8), dtype=np.int64)
    waiting = np.empty((n * m + 1, 4), dtype=np.int64)
    waiting[0, 0], waiting[0, 1], waiting[0, 2], waiting[0, 3] = 0, n, 0, m
    count, k = 1, 0
    while count > 0:
        count -= 1
        y0, y1, x0, x1 = waiting[count, 0], waiting[count, 1], waiting[count, 2], waiting[count, 3]
        place = cut[y0, y1, x0, x1]
        if place == _EMPTY:
            continue
        if place == _LEAF:
            own = bounds[y0, y1, x0, x1]
            flags = _goes_on(own, across, down, corner)
            for i in range(4):
                out[k, i], out[k, 4 + i] = own[i], flags[i]
            k += 1
        elif place > 0:
            _wait(waiting, count, y0, place, x0, x1)
            _wait(waiting, count + 1, place, y1, x0, x1)
            count += 2
        else:
            _wait(waiting, count, y0, y1, x0, -place)
            _wait(waiting, count + 1, y0, y1, -place, x1)
            count += 2
    return out[:k].copy()


@compiled
def _wait(waiting: Edges, at: int, y0: int, y1: int, x0: int, x1: int) -> None:
    waiting[at, 0], waiting[at, 1], waiting[at, 2], waiting[at, 3] = y0, y1, x0, x1
