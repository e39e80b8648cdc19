"""The loops that filter an image, row by row, as its rows are made; see :mod:`pyhisto.nuclei.labelling`.

Kernels are symmetric, float32 (r + 1,) from their centre outwards, and act along both axes; edges are mirrored. What is
filtered never exists as a whole: of its rows those are kept that the kernel spans.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from pyhisto.loops.compiled import compiled

__all__ = ["blur", "blur_colours", "blur_nuclei"]

FloatImage: TypeAlias = npt.NDArray[np.float32]
Table: TypeAlias = npt.NDArray[np.float64]


@compiled
def blur(image: FloatImage, weights: FloatImage, out: FloatImage) -> None:
    """Write an image filtered."""
    height, width = image.shape
    rows, line = _room(len(weights), width)
    ready = 0
    for y in range(height):
        while ready < min(height, y + len(weights)):
            rows[ready % len(rows)] = image[ready]
            ready += 1
        _filter(rows, y, height, weights, line, out[y])


@compiled
def blur_nuclei(probability: FloatImage, weights: FloatImage, out: FloatImage) -> None:
    """Write the sum of every second class, from the first after background on, filtered; float32 (1 + 2k, H, W)."""
    height, width = out.shape
    rows, line = _room(len(weights), width)
    ready = 0
    for y in range(height):
        while ready < min(height, y + len(weights)):
            row = rows[ready % len(rows)]
            row[:] = probability[1, ready]
            for k in range(3, len(probability), 2):
                more = probability[k, ready]
                for x in range(width):
                    row[x] += more[x]
            ready += 1
        _filter(rows, y, height, weights, line, out[y])


@compiled
def blur_colours(rgb: npt.NDArray[np.uint8], table: Table, weights: FloatImage, out: FloatImage) -> None:
    """Write the sum of a value for red, green and blue, by a table float64 (3, 256), filtered; uint8 (H, W, 3)."""
    height, width = out.shape
    rows, line = _room(len(weights), width)
    red, green, blue = table[0], table[1], table[2]
    ready = 0
    for y in range(height):
        while ready < min(height, y + len(weights)):
            row, colours = rows[ready % len(rows)], rgb[ready]
            for x in range(width):
                row[x] = red[colours[x, 0]] + green[colours[x, 1]] + blue[colours[x, 2]]
            ready += 1
        _filter(rows, y, height, weights, line, out[y])


@compiled
def _room(reach: int, width: int) -> tuple[FloatImage, FloatImage]:
    """Return room for the rows that a kernel spans, and for a row with what lies beside it."""
    return np.empty((2 * reach - 1, width), dtype=np.float32), np.empty(width + 2 * reach - 2, dtype=np.float32)


@compiled
def _filter(rows: FloatImage, y: int, height: int, weights: FloatImage, line: FloatImage, out: FloatImage) -> None:
    """Write a row of the filtered image; row i of the image is at i modulo the number of rows that are kept."""
    width, reach, kept = len(out), len(weights) - 1, len(rows)
    column, mine = line[reach : reach + width], rows[y % kept]
    for x in range(width):
        column[x] = weights[0] * mine[x]
    for k in range(1, reach + 1):
        above, below = rows[_mirrored(y - k, height) % kept], rows[_mirrored(y + k, height) % kept]
        for x in range(width):
            column[x] += weights[k] * (above[x] + below[x])
    for i in range(reach):
        line[reach - 1 - i] = column[_mirrored(-1 - i, width)]
        line[reach + width + i] = column[_mirrored(width + i, width)]
    for x in range(width):
        out[x] = weights[0] * column[x]
    for k in range(1, reach + 1):
        left, right = line[reach - k : reach - k + width], line[reach + k : reach + k + width]
        for x in range(width):
            out[x] += weights[k] * (left[x] + right[x])


@compiled
def _mirrored(i: int, length: int) -> int:
    """Return the index that a place beyond the edge shows: d c b a | a b c d | d c b a."""
    i %= 2 * length
    return i if i < length else 2 * length - 1 - i
