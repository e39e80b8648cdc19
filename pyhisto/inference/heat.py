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

    def smooth(self, sigma: float) -> Iterator[tuple[int, npt.NDArray[np.float32]]]:
        """Yield bands of the smoothed maps from the top: first row, and float32 (classes, rows, width), 0 to 1.

        Parameters
        ----------
        sigma
            Of the Gaussian, pixels of the map.
        """
        self._flush()
        reach = int(4 * sigma + 0.5)
        step = max(2 * reach, BAND_PIXELS // self.width, 1)
        for y in range(0, self.height, step):
            below = min(y + step, self.height)
            top, bottom = max(0, y - reach), min(self.height, below + reach)
            band = self._rows(top, bottom)
            smooth = np.stack([ndi.gaussian_filter(channel, sigma)[y - top : below - top] for channel in band])
            yield y, smooth

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
