"""Coarse maps of class probabilities in a temporary file, so that they cost no memory however large the slide is."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from types import TracebackType
from typing import Self

import numpy as np
import numpy.typing as npt
import scipy.ndimage as ndi

from pyhisto.inference.stream import PredictedWindow
from pyhisto.loops.blends import mean_cells

__all__ = ["HeatMaps", "heat_factor"]

HEAT_UM = 4.0
"""Largest pixel of the maps, µm, unless the model's own are larger."""

MOST_PIXELS = 4
"""Most model pixels along a side of one pixel of the maps."""

BAND_PIXELS = 1 << 19
"""Pixels of a map that are worked on at once."""


def heat_factor(mpp: float) -> int:
    """Return how many pixels of a model at `mpp` µm/px make the side of one pixel of the maps.

    >>> [heat_factor(mpp) for mpp in (0.25, 1.0, 2.0, 4.0, 8.0)]
    [4, 4, 2, 1, 1]
    """
    return min(MOST_PIXELS, max(1, int(HEAT_UM / mpp + 1e-6)))


class HeatMaps:
    """The mean probability of each class but the background inside the region; a context manager.

    Parameters
    ----------
    classes
        Number of maps.
    width, height
        Of the frame, model px.
    factor
        Model pixels along a side of one pixel of the maps.
    """

    def __init__(self, classes: int, width: int, height: int, factor: int) -> None:
        self.width, self.height = -(-width // factor), -(-height // factor)
        self.factor = factor
        self.classes = classes
        self._row_bytes = classes * self.width
        self._file = tempfile.TemporaryFile(prefix="qupath-ext-heat-")  # noqa: SIM115 - closed by close()
        self._file.truncate(self.height * self._row_bytes)
        self._top = 0
        self._band = np.zeros((0, classes, self.width), dtype=np.uint8)

    def add(self, window: PredictedWindow) -> None:
        """Add the own part of a window; its corner is a multiple of the factor, windows come row by row."""
        factor = self.factor
        x, y = window.core[0] // factor, window.core[1] // factor
        probability, wanted = window.probability[(slice(1, None), *window.own)], window.wanted[window.own]
        rows, columns = (-(-length // factor) for length in wanted.shape)
        coarse = np.empty((rows, self.classes, columns), dtype=np.uint8)
        mean_cells(probability, wanted, factor, coarse)
        if y != self._top or not len(self._band):
            self._flush()
            self._top = y
            self._band = np.zeros((rows, self.classes, self.width), dtype=np.uint8)
        self._band[:, :, x : x + columns] = coarse

    def smooth(self, sigma: float, finer: int = 1) -> Iterator[tuple[int, npt.NDArray[np.float32]]]:
        """Yield bands of the smoothed maps from the top: first row, and float32 (classes, rows, width), 0 to 1.

        Parameters
        ----------
        sigma
            Of the Gaussian, pixels of the map.
        finer
            Into how many a pixel is divided along a side; what lies between the centres of pixels is linear.
        """
        self._flush()
        reach = int(4 * sigma + 0.5) + (finer > 1)
        step = max(2 * reach, BAND_PIXELS // (self.width * finer**2), 1)
        for y in range(0, self.height, step):
            below = min(y + step, self.height)
            top, bottom = max(0, y - reach), min(self.height, below + reach)
            band = self._rows(top, bottom)
            smooth = np.stack([ndi.gaussian_filter(channel, sigma) for channel in band])
            if finer == 1:
                yield y, smooth[:, y - top : below - top]
                continue
            beside = np.clip(np.arange(y - 1, below + 1), 0, self.height - 1) - top
            yield y * finer, _between(_between(smooth[:, beside], finer, 1), finer, 2, edge=True)

    def close(self) -> None:
        """Delete the file."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _flush(self) -> None:
        if len(self._band):
            self._file.seek(self._top * self._row_bytes)
            self._file.write(self._band.data)
            self._band = self._band[:0]

    def _rows(self, top: int, bottom: int) -> npt.NDArray[np.float32]:
        """Return rows of the maps, float32 (classes, rows, width), 0 to 1."""
        self._file.seek(top * self._row_bytes)
        raw = np.frombuffer(self._file.read((bottom - top) * self._row_bytes), dtype=np.uint8)
        return raw.reshape(-1, self.classes, self.width).transpose(1, 0, 2).astype(np.float32) / np.float32(255)


def _between(values: npt.NDArray[np.float32], finer: int, axis: int, *, edge: bool = False) -> npt.NDArray[np.float32]:
    """Return the values at the centres of the parts of pixels, which is linear between those of pixels, along an axis.

    The first and the last pixel only say what lies beside the others; with `edge` they are there once more for that.
    """

    def at(begin: int | None, end: int | None, step: int = 1) -> tuple[slice, ...]:
        return (*[slice(None)] * axis, slice(begin, end, step))

    if edge:
        values = np.concatenate([values[at(None, 1)], values, values[at(-1, None)]], axis=axis)
    middle = values[at(1, -1)]
    out = np.empty((*middle.shape[:axis], middle.shape[axis] * finer, *middle.shape[axis + 1 :]), dtype=np.float32)
    for part in range(finer):
        place = np.float32((part + 0.5) / finer - 0.5)
        beside = values[at(None, -2)] if place < 0 else values[at(2, None)]
        out[at(part, None, finer)] = (1 - abs(place)) * middle + abs(place) * beside
    return out
