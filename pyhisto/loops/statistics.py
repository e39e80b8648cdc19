"""The loops over labels and images behind the intensities of :mod:`pyhisto.measurements`."""

from __future__ import annotations

import math
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from pyhisto.loops.compiled import compiled

__all__ = ["cell_statistics", "coloured_statistics", "statistics"]

Table: TypeAlias = npt.NDArray[np.float64]


@compiled
def statistics(labels: npt.NDArray[Any], images: npt.NDArray[Any], n: int) -> Table:
    """Return mean, sum, standard deviation (n - 1), max, min and range of the pixels of labels 1 to n in k images.

    float64 (k, n, 6); NaN for labels without pixels, and for the deviation of a single one.
    """
    sums = _no_sums(n, len(images))
    _add_pixels(sums, labels, labels, images)
    out = np.empty((len(images), n, 6))
    for k in range(len(images)):
        for i in range(n):
            _describe(sums[i, 0, k], out[k, i])
    return out


@compiled
def cell_statistics(nuclei: npt.NDArray[Any], cells: npt.NDArray[Any], images: npt.NDArray[Any], n: int) -> Table:
    """Return what :func:`statistics` gives for nuclei, for whole cells and for what of a cell is no nucleus.

    float64 (k, 3, n, 6). A nucleus must have the label of its cell.
    """
    sums = _no_sums(n, len(images))
    _add_pixels(sums, nuclei, cells, images)
    return _described(sums)


@compiled
def coloured_statistics(
    nuclei: npt.NDArray[Any], cells: npt.NDArray[Any], rgb: npt.NDArray[np.uint8], tables: Table, n: int
) -> Table:
    """Return what :func:`cell_statistics` gives for images that never exist as a whole.

    Each is a sum of a value for red, green and blue, uint8 (H, W, 3), by tables float64 (k, 3, 256), as float32.
    """
    height, width = cells.shape
    sums = _no_sums(n, len(tables))
    rows = np.empty((len(tables), width), dtype=np.float32)
    changes, ends = np.empty(width, dtype=np.uint8), np.empty(width, dtype=np.int32)
    for y in range(height if width else 0):
        colours = rgb[y]
        for k in range(len(tables)):
            row, red, green, blue = rows[k], tables[k, 0], tables[k, 1], tables[k, 2]
            for x in range(width):
                row[x] = red[colours[x, 0]] + green[colours[x, 1]] + blue[colours[x, 2]]
        runs = _run_ends(nuclei, cells, y, changes, ends)
        _add_row(sums, nuclei, cells, rows, y, ends[:runs])
    return _described(sums)


@compiled
def _described(sums: Table) -> Table:
    """Return the statistics of nuclei, cells and cytoplasm, float64 (k, 3, n, 6); spoils the sums."""
    n, images = sums.shape[0], sums.shape[2]
    out = np.empty((images, 3, n, 6))
    for k in range(images):
        for i in range(n):
            nucleus, cytoplasm = sums[i, 0, k], sums[i, 1, k]
            _describe(nucleus, out[k, 0, i])
            _describe(cytoplasm, out[k, 2, i])
            _merge(nucleus, cytoplasm)
            _describe(nucleus, out[k, 1, i])
    return out


@compiled
def _no_sums(n: int, images: int) -> Table:
    """Return sums over the pixels of n nuclei and of the rest of their cells, float64 (n, 2, k, 6).

    Number, first value, sum and squares of differences to it (so that the variance loses no digits), max and min.
    """
    sums = np.zeros((n, 2, images, 6))
    sums[..., 4], sums[..., 5] = -math.inf, math.inf
    return sums


@compiled
def _add_pixels(sums: Table, nuclei: npt.NDArray[Any], cells: npt.NDArray[Any], images: npt.NDArray[Any]) -> None:
    """Add all pixels to the sums of their part of their cell, row by row."""
    height, width = cells.shape
    rows = np.empty((len(images), width), dtype=images.dtype)
    changes, ends = np.empty(width, dtype=np.uint8), np.empty(width, dtype=np.int32)
    for y in range(height if width else 0):
        rows[:] = images[:, y]
        runs = _run_ends(nuclei, cells, y, changes, ends)
        _add_row(sums, nuclei, cells, rows, y, ends[:runs])


@compiled
def _add_row(
    sums: Table,
    nuclei: npt.NDArray[Any],
    cells: npt.NDArray[Any],
    rows: npt.NDArray[Any],
    y: int,
    ends: npt.NDArray[np.int32],
) -> None:
    """Add the pixels of a row, which has values in k images, (k, W)."""
    last = len(rows) - 1
    for k in range(0, last + 1, 2):
        _add_runs(sums, nuclei, cells, rows, (y, k, min(k + 1, last)), ends)


@compiled
def _run_ends(
    nuclei: npt.NDArray[Any],
    cells: npt.NDArray[Any],
    y: int,
    changes: npt.NDArray[np.uint8],
    ends: npt.NDArray[np.int32],
) -> int:
    """Write the columns where runs of one part of one cell end in a row; return their number."""
    width = cells.shape[1]
    for x in range(1, width):
        changes[x] = (cells[y, x] != cells[y, x - 1]) | (nuclei[y, x] != nuclei[y, x - 1])
    runs = 0
    for x in range(1, width):
        ends[runs] = x
        runs += changes[x]
    ends[runs] = width
    return runs + 1


@compiled
def _add_runs(
    sums: Table,
    nuclei: npt.NDArray[Any],
    cells: npt.NDArray[Any],
    rows: npt.NDArray[Any],
    place: tuple[int, int, int],
    ends: npt.NDArray[np.int32],
) -> None:
    """Add the runs of a row of two images, or of one that is given twice: `place` is row, image and image.

    Two at once, as no addition waits for the last one of the other image; and no view of an array for a run, as it
    would take longer to make than to add.
    """
    y, k, k2 = place
    begin = 0
    for end in ends:
        i, part = cells[y, begin] - 1, 0 if nuclei[y, begin] > 0 else 1
        if 0 <= i < len(sums):
            count = sums[i, part, k, 0]
            if count == 0:
                sums[i, part, k, 1], sums[i, part, k2, 1] = rows[k, begin], rows[k2, begin]
            first, total, squares, high, low = _taken(sums, i, part, k)
            first2, total2, squares2, high2, low2 = _taken(sums, i, part, k2)
            for x in range(begin, end):
                value, value2 = rows[k, x], rows[k2, x]
                total += value - first
                total2 += value2 - first2
                squares += (value - first) * (value - first)
                squares2 += (value2 - first2) * (value2 - first2)
                high = value if value > high else high
                high2 = value2 if value2 > high2 else high2
                low = value if value < low else low
                low2 = value2 if value2 < low2 else low2
            count += end - begin
            _put(sums, i, part, k, (count, first, total, squares, high, low))
            _put(sums, i, part, k2, (count, first2, total2, squares2, high2, low2))
        begin = end


@compiled
def _taken(sums: Table, i: int, part: int, k: int) -> tuple[float, float, float, float, float]:
    at = sums[i, part, k]
    return at[1], at[2], at[3], at[4], at[5]


@compiled
def _put(sums: Table, i: int, part: int, k: int, values: tuple[float, float, float, float, float, float]) -> None:
    for j in range(6):
        sums[i, part, k, j] = values[j]


@compiled
def _merge(sums: Table, more: Table) -> None:
    """Add the pixels of others."""
    if sums[0] == 0:
        sums[1] = more[1]
    shift = more[1] - sums[1]
    sums[3] += more[3] + 2 * shift * more[2] + more[0] * shift * shift
    sums[2] += more[2] + more[0] * shift
    sums[0] += more[0]
    sums[4] = max(sums[4], more[4])
    sums[5] = min(sums[5], more[5])


@compiled
def _describe(sums: Table, out: Table) -> None:
    """Write mean, sum, standard deviation, max, min and range."""
    count, first, total = sums[0], sums[1], sums[2]
    for i in range(6):
        out[i] = math.nan
    if count > 0:
        out[0] = first + total / count
        out[1] = first * count + total
        if count > 1:
            out[2] = math.sqrt(max(sums[3] - total * total / count, 0.0) / (count - 1))
        out[3], out[4], out[5] = sums[4], sums[5], sums[4] - sums[5]
