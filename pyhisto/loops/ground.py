"""The loops over the ground around nuclei and over their cores; see :mod:`pyhisto.nuclei.labelling`."""

from __future__ import annotations

import math
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from pyhisto.loops.compiled import compiled

__all__ = ["BLOCK_PX", "block_sums", "core_means"]

FloatImage: TypeAlias = npt.NDArray[np.float32]
Links: TypeAlias = npt.NDArray[np.int32]
Places: TypeAlias = npt.NDArray[np.int32]
"""Pixels as indices of the flat image, in raster order."""

Table: TypeAlias = npt.NDArray[np.float64]

BLOCK_PX = 4
"""Side of the blocks over which the ground around nuclei is averaged, px."""


@compiled
def block_sums(image: FloatImage, weight: npt.NDArray[np.uint8], start: tuple[int, int]) -> FloatImage:
    """Return weighted sum and number of the pixels in blocks, float32 (2, rows, columns); a weight of 255 counts once.

    The first block begins `start`, (row, column), px above and left of the image.
    """
    height, width = image.shape
    top, left = start
    rows, columns = (height + top + BLOCK_PX - 1) // BLOCK_PX, (width + left + BLOCK_PX - 1) // BLOCK_PX
    out = np.zeros((2, rows, columns), dtype=np.float32)
    far, count = np.zeros(columns * BLOCK_PX, dtype=np.float32), np.zeros(columns * BLOCK_PX, dtype=np.float32)
    scale = np.float32(1 / 255)
    for y in range(height):
        values, own, here, number = image[y], weight[y], far[left : left + width], count[left : left + width]
        for x in range(width):
            number[x] = own[x] * scale
        for x in range(width):
            here[x] = values[x] * number[x]
        _add_blocks(out[0, (y + top) // BLOCK_PX], far)
        _add_blocks(out[1, (y + top) // BLOCK_PX], count)
    return out


@compiled
def _add_blocks(sums: FloatImage, row: FloatImage) -> None:
    """Add the pixels of a row to the sums of their blocks, from left to right: four, as many as a block is wide."""
    for i in range(len(sums)):
        first = BLOCK_PX * i
        sums[i] = sums[i] + row[first] + row[first + 1] + row[first + 2] + row[first + 3]


@compiled
def core_means(
    dark: FloatImage,
    offset: tuple[int, int],
    ground: FloatImage,
    start: tuple[int, int],
    links: Links,
    core: Places,
    positions: Table,
    radius: float,
) -> Table:
    """Return the mean darkness and the mean ground of the core of each label, float64 (n, 2); NaN for none.

    A core is a disk of a radius, px, around a position, (row, column), of which pixels at its rim count in part. Of
    all places, those within half a pixel more are looked at. The links, see :mod:`pyhisto.loops.basins`, have their
    corner at `offset`, (row, column), of the darkness. The ground has a value a block, and is sampled between their
    centres.
    """
    wide, own, n = links.shape[1], links.ravel(), len(positions)
    top, left = start
    rows, columns = ground.shape
    at, beside = np.empty(wide, dtype=np.int64), np.empty(wide)
    for x in range(wide):
        at[x], beside[x] = _between(x + offset[1] + left, columns)
    sums, count = np.zeros((n, 2)), np.zeros(n)
    y, end = -1, 0
    for p in core:
        while p >= end:
            y, end = y + 1, end + wide
            r, fv = _between(y + offset[0] + top, rows)
            values, upper, lower = dark[y + offset[0]], ground[r], ground[min(r + 1, rows - 1)]
        label, x = -2 - own[p], p - end + wide
        if label >= n:  # no label reaches it
            continue
        down, along = y + offset[0] - positions[label, 0], x + offset[1] - positions[label, 1]
        weight = min(radius + 0.5 - math.sqrt(down * down + along * along), 1.0)
        if weight <= 0:
            continue
        c, fu = at[x], beside[x]
        right = min(c + 1, columns - 1)
        above = upper[c] * (1 - fu) + upper[right] * fu
        below = lower[c] * (1 - fu) + lower[right] * fu
        sums[label, 0] += weight * values[x + offset[1]]
        sums[label, 1] += weight * (above * (1 - fv) + below * fv)
        count[label] += weight
    for i in range(n):
        sums[i, 0] /= count[i]
        sums[i, 1] /= count[i]
    return sums


@compiled
def _between(i: int, blocks: int) -> tuple[int, float]:
    """Return the block whose centre lies before that of a pixel, and how far beyond it the pixel is, in blocks."""
    place = min(max((i + 0.5) / BLOCK_PX - 0.5, 0.0), blocks - 1.0)
    first = min(int(place), max(blocks - 2, 0))
    return first, place - first
