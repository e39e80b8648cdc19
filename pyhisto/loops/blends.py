"""The loops that blend tiles into windows, and that average windows into coarse maps; see :mod:`pyhisto.inference`."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from pyhisto.loops.compiled import compiled

__all__ = ["add_tile", "divide", "mean_cells"]

Mask: TypeAlias = npt.NDArray[np.bool_]
Planes: TypeAlias = npt.NDArray[np.float32]
Rgb: TypeAlias = npt.NDArray[np.uint8]
Table: TypeAlias = npt.NDArray[np.float64]


@compiled
def add_tile(
    own: Planes, colours: Rgb, weights: tuple[Table, Table], core: tuple[int, int, int, int], into: tuple[Planes, Rgb]
) -> None:
    """Add a part of a tile to the same part of a window.

    Parameters
    ----------
    own, colours
        Of the part: float32 (planes, H, W) and uint8 (H, W, 3).
    weights
        Of its rows and of its columns, float64 (H,) and (W,); a pixel has their product.
    core
        x0, y0, x1, y1 of what lies in this tile alone; its colours replace those that are there.
    into
        Weighted sums, float32 (planes + 1, H, W), the last plane the weights; and uint8 (H, W, 3), which takes the
        colours of the first tile that comes, too.
    """
    sums, rgb = into
    down, across = weights
    x0, y0, x1, y1 = core
    planes, height, width = own.shape
    for y in range(height):
        total, row, mine = sums[planes, y], rgb[y], colours[y]
        begin, end = (x0, x1) if y0 <= y < y1 else (0, 0)
        for x in range(width):
            if begin <= x < end or total[x] == 0:
                row[x, 0], row[x, 1], row[x, 2] = mine[x, 0], mine[x, 1], mine[x, 2]
        for k in range(planes):
            out, value = sums[k, y], own[k, y]
            for x in range(width):
                out[x] += value[x] * np.float32(down[y] * across[x])
        for x in range(width):
            total[x] += np.float32(down[y] * across[x])


@compiled
def divide(sums: Planes) -> None:
    """Divide weighted sums, float32 (planes + 1, H, W), by the last plane; where that is 0, the first becomes 1."""
    planes, height, width = sums.shape
    for y in range(height):
        total = sums[planes - 1, y]
        for k in range(planes - 1):
            out, bare = sums[k, y], np.float32(1 if k == 0 else 0)
            for x in range(width):
                out[x] = out[x] / total[x] if total[x] > 0 else bare


@compiled
def mean_cells(probability: Planes, wanted: Mask, factor: int, out: npt.NDArray[np.uint8]) -> None:
    """Write the mean of squares of pixels, of which those that are not wanted count as 0.

    Parameters
    ----------
    probability, wanted
        float32 (n, H, W), 0 to 1; and bool (H, W).
    factor
        Side of the squares, px; where the last ones reach beyond the image, that counts as 0.
    out
        uint8 (rows, n, columns), 255 for 1.
    """
    planes, height, width = probability.shape
    full = np.float32(255) / np.float32(factor * factor)
    for row in range(out.shape[0]):
        top, bottom = row * factor, min(height, (row + 1) * factor)
        for k in range(planes):
            for column in range(out.shape[2]):
                total = np.float32(0)
                for y in range(top, bottom):
                    for x in range(column * factor, min(width, (column + 1) * factor)):
                        if wanted[y, x]:
                            total += probability[k, y, x]
                out[row, k, column] = np.uint8(np.rint(total * full))
