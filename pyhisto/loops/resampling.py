"""The loop that resamples pixels; see :meth:`pyhisto.slide.Slide.read_downsampled`."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from pyhisto.loops.compiled import compiled

__all__ = ["resample"]

Rgb: TypeAlias = npt.NDArray[np.uint8]
Firsts: TypeAlias = npt.NDArray[np.int64]
Weights: TypeAlias = npt.NDArray[np.float32]


@compiled
def resample(pixels: Rgb, rows: tuple[Firsts, Weights], columns: tuple[Firsts, Weights], out: Rgb) -> None:
    """Write weighted means of neighbouring pixels, rounded once, at the end.

    Parameters
    ----------
    pixels
        RGB, (H, W, 3), contiguous.
    rows, columns
        For each row and column of the result the first of the pixels that it is the mean of, (n,), and their weights,
        (n, k), which are not negative and sum to 1.
    out
        RGB, (h, w, 3).
    """
    height, width = out.shape[:2]
    source = pixels.reshape((pixels.shape[0], 3 * pixels.shape[1]))
    line = np.empty(source.shape[1], dtype=np.float32)
    for y in range(height):
        line[:] = 0
        for k in range(rows[1].shape[1]):
            weight, row = rows[1][y, k], rows[0][y] + k
            if weight > 0:  # else there may be no such row
                here = source[row]
                for x in range(len(line)):
                    line[x] += weight * np.float32(here[x])
        for x in range(width):
            red, green, blue = np.float32(0.5), np.float32(0.5), np.float32(0.5)
            for k in range(columns[1].shape[1]):
                weight, at = columns[1][x, k], 3 * (columns[0][x] + k)
                if weight > 0:
                    red += weight * line[at]
                    green += weight * line[at + 1]
                    blue += weight * line[at + 2]
            out[y, x, 0], out[y, x, 1], out[y, x, 2] = np.uint8(red), np.uint8(green), np.uint8(blue)
