"""Heatmaps: a few bytes a patch over a slide, and a slide that shows one as further channels beside its colours."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from pyhisto.slide import Slide

__all__ = ["HEAT_MEAN", "HEAT_STD", "HIDDEN_HEAT", "HeatedSlide", "Heatmap"]

HIDDEN_HEAT = 128
"""Heat where no patch was looked at: as likely as not."""

HEAT_MEAN, HEAT_STD = HIDDEN_HEAT / 255, 0.25
"""How heat, 0 to 1, is normalised for a network: what is hidden becomes 0."""


@dataclass(frozen=True)
class Heatmap:
    """The probabilities of some classes in each patch of a grid.

    Attributes
    ----------
    origin
        Top left corner of the first patch, level-0 px (x, y).
    step
        Width and height of a patch, level-0 px.
    values
        uint8 (classes, rows, columns), 255 is certain; 0 where no patch was looked at.
    """

    origin: tuple[float, float]
    step: tuple[float, float]
    values: npt.NDArray[np.uint8]

    def sample(
        self, x: float, y: float, width: int, height: int, downsample: tuple[float, float]
    ) -> npt.NDArray[np.uint8]:
        """Return the heat in a rectangle, linear between the centres of patches and 0 outside of all.

        Parameters
        ----------
        x, y
            Top left corner, level-0 px.
        width, height
            Of the result, px.
        downsample
            Level-0 pixels to one pixel of the result (x, y).

        Returns
        -------
        numpy.ndarray
            uint8 (height, width, classes).
        """
        down = (y + (np.arange(height) + 0.5) * downsample[1] - self.origin[1]) / self.step[1] - 0.5
        across = (x + (np.arange(width) + 0.5) * downsample[0] - self.origin[0]) / self.step[0] - 0.5
        top, left = int(np.floor(down[0])), int(np.floor(across[0]))
        bottom, right = int(np.floor(down[-1])) + 2, int(np.floor(across[-1])) + 2
        near = self._around(top, left, bottom, right)
        rows, columns = _linear(down - top, bottom - top), _linear(across - left, right - left)
        heat = np.einsum("yr,krc,xc->yxk", rows, near, columns, optimize=True)
        return np.asarray(np.rint(heat), dtype=np.uint8)

    def checksum(self) -> str:
        """Return a SHA-256 of frame and values."""
        found = hashlib.sha256(repr((self.origin, self.step, self.values.shape)).encode())
        found.update(np.ascontiguousarray(self.values).tobytes())
        return found.hexdigest()

    def save(self, path: Path, identity: str) -> None:
        """Write it, whole or not at all, under what decides its values."""
        temporary = path.with_suffix(".tmp")
        with temporary.open("wb") as file:
            np.savez(file, frame=np.array([*self.origin, *self.step]), values=self.values, identity=np.array(identity))
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)

    @classmethod
    def load(cls, path: Path, identity: str) -> Self | None:
        """Read what :meth:`save` wrote; None if there is no such file, or it is of another identity."""
        if not path.is_file():
            return None
        with np.load(path) as stored:
            if str(stored["identity"]) != identity:
                return None
            frame = stored["frame"].tolist()
            return cls((frame[0], frame[1]), (frame[2], frame[3]), stored["values"])

    def _around(self, top: int, left: int, bottom: int, right: int) -> npt.NDArray[np.float32]:
        """Return the values of a rectangle of patches, float32 (classes, rows, columns), 0 outside of all."""
        classes, rows, columns = self.values.shape
        out = np.zeros((classes, bottom - top, right - left), dtype=np.float32)
        y0, y1, x0, x1 = max(top, 0), min(bottom, rows), max(left, 0), min(right, columns)
        if y1 > y0 and x1 > x0:
            out[:, y0 - top : y1 - top, x0 - left : x1 - left] = self.values[:, y0:y1, x0:x1]
        return out


def _linear(places: npt.NDArray[np.floating[Any]], length: int) -> npt.NDArray[np.float32]:
    """Return the weights (n, length) of whole places for n places between them."""
    before = np.floor(places).astype(int)
    share = places - before
    out = np.zeros((len(places), length), dtype=np.float32)
    number = np.arange(len(places))
    out[number, before] = 1 - share
    out[number, before + 1] = share
    return out


class HeatedSlide(Slide):
    """A slide with channels beside red, green and blue: the heat of each class.

    Parameters
    ----------
    slide
        An open slide; this one reads through it, and closes it.
    heat
        Its heatmap; None hides the heat of all `classes`.
    classes
        Number of classes of the heat.
    """

    def __init__(self, slide: Slide, heat: Heatmap | None, *, classes: int) -> None:
        self.__dict__.update(slide.__dict__)
        self._colours = slide
        self._heat = heat
        self._classes = classes

    def read_downsampled(
        self, x: float, y: float, width: int, height: int, downsample: tuple[float, float]
    ) -> npt.NDArray[np.uint8]:
        """Read a rectangle: uint8 (height, width, 3 + classes); see :meth:`pyhisto.slide.Slide.read_region`."""
        rgb = self._colours.read_downsampled(x, y, width, height, downsample)
        if self._heat is None:
            heat: npt.NDArray[Any] = np.full((height, width, self._classes), HIDDEN_HEAT, dtype=np.uint8)
        else:
            heat = self._heat.sample(x, y, width, height, downsample)
        return np.concatenate([rgb, heat], axis=2)
