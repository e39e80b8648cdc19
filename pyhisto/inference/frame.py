"""The pixels of a model on a slide."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import shapely

from pyhisto.bundle.files import Bundle
from pyhisto.inference.grid import Boxes
from pyhisto.inference.lens import PLAIN, Lens
from pyhisto.slide import Slide

__all__ = ["Frame", "stream_frame"]


@dataclass(frozen=True)
class Frame:
    """The pixel grid of a model over a rectangle of the slide.

    Attributes
    ----------
    left, top
        Its corner, level-0 px.
    width, height
        Its size, pixels of the grid.
    downsample
        Level-0 pixels to one pixel of the grid, (x, y).
    mpp
        Pixel size of the grid, µm.
    """

    left: float
    top: float
    width: int
    height: int
    downsample: tuple[float, float]
    mpp: float

    def position(self, x: float, y: float) -> tuple[float, float]:
        """Return the level-0 px of a point of the grid."""
        return self.left + x * self.downsample[0], self.top + y * self.downsample[1]

    def bounds(self, boxes: Boxes) -> npt.NDArray[np.float64]:
        """Return boxes of the grid, (n, 4), in level-0 px, float64."""
        corner, step = np.array([self.left, self.top] * 2), np.array(self.downsample * 2)
        return np.asarray(boxes * step + corner)

    def boxes(self, boxes: Boxes) -> npt.NDArray[np.object_]:
        """Return boxes of the grid, (n, 4), as polygons, level-0 px."""
        return np.asarray(shapely.box(*self.bounds(boxes).T))


def stream_frame(slide: Slide, bundle: Bundle, region: Any, *, lens: Lens = PLAIN) -> Frame | None:
    """Return the grid of a model over the bounds of a region, whole pixels inside the slide; None if there is none.

    Raises
    ------
    MissingPixelSizeError
        If the slide's pixel size is not known.
    """
    if region.is_empty:
        return None
    mpp = bundle.spec.mpp * lens.size
    downsample = (mpp / slide.mpp[0], mpp / slide.mpp[1])
    corner, size = [], []
    for axis, full in enumerate(slide.dimensions):
        low, high = max(0, math.floor(region.bounds[axis])), min(full, math.ceil(region.bounds[axis + 2]))
        if high <= low:
            return None
        corner.append(float(low))
        inside = math.floor((full - low) / downsample[axis] + 1e-6)
        size.append(max(1, min(inside, math.ceil((high - low) / downsample[axis] - 1e-6))))
    return Frame(corner[0], corner[1], size[0], size[1], downsample, mpp)
