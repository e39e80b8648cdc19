"""The frame of maps and overviews: a grid of square pixels over a slide."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import shapely
from shapely import affinity

from pyhisto.labels import rasterise
from pyhisto.maps import Maps
from pyhisto.slide import Slide

__all__ = ["Box", "Grid", "Overview", "read_overview"]

OVERVIEW_UM = 4.0
"""Pixel of an overview, µm."""

MOST_PIXELS = 16_000_000
"""An overview that would have more pixels gets larger ones."""

Box = tuple[int, int, int, int]
"""Rows and columns of a rectangle of grid pixels: top, left, bottom, right; the last two are outside."""


@dataclass(frozen=True)
class Grid:
    """Square pixels over a slide.

    Attributes
    ----------
    origin
        Top left corner, level-0 px (x, y).
    scale
        Level-0 px that a grid pixel is wide and high.
    um
        Side of a grid pixel, µm.
    shape
        Rows and columns.
    """

    origin: tuple[float, float]
    scale: tuple[float, float]
    um: float
    shape: tuple[int, int]

    @classmethod
    def of(cls, maps: Maps) -> Grid:
        """Return the grid of maps."""
        height, width = maps.values.shape[1:]
        return cls(maps.origin, maps.scale, maps.um, (height, width))

    def coarser(self, um: float) -> Grid:
        """Return a grid over the same area with pixels of so many µm, or this one if its own are larger."""
        times = um / self.um
        if times <= 1:
            return self
        shape = (max(1, math.floor(self.shape[0] / times)), max(1, math.floor(self.shape[1] / times)))
        return Grid(self.origin, (self.scale[0] * times, self.scale[1] * times), um, shape)

    def polygon(self, box: Box) -> Any:
        """Return the rectangle of a box as a shapely Polygon, level-0 px."""
        top, left, bottom, right = box
        (x, y), (across, down) = self.origin, self.scale
        return shapely.box(x + left * across, y + top * down, x + right * across, y + bottom * down)

    def box(self, polygon: Any) -> Box:
        """Return the box of the pixels whose centres lie in the bounds of a polygon, cut at the grid's edge."""
        x0, y0, x1, y1 = polygon.bounds
        columns = [math.ceil((x - self.origin[0]) / self.scale[0] - 0.5 - 1e-9) for x in (x0, x1)]
        rows = [math.ceil((y - self.origin[1]) / self.scale[1] - 0.5 - 1e-9) for y in (y0, y1)]
        top, bottom = (min(max(row, 0), self.shape[0]) for row in rows)
        left, right = (min(max(column, 0), self.shape[1]) for column in columns)
        return top, left, bottom, right

    def inside(self, polygons: Iterable[Any]) -> npt.NDArray[np.bool_]:
        """Return which pixels have their centre in any of some polygons, bool of the grid's shape."""
        drawn = list(polygons)
        return rasterise(drawn, [1] * len(drawn), self.shape, origin=self.origin, scale=self.scale) > 0

    def touched(self, polygons: Iterable[Any]) -> npt.NDArray[np.bool_]:
        """Return which pixels any of some polygons covers a part of (exact for upright rectangles)."""
        half = (1 - 1e-6) / 2
        wide = [
            affinity.scale(
                affinity.scale(polygon, 1 / self.scale[0], 1 / self.scale[1], origin=(0, 0)).buffer(
                    half, join_style="mitre"
                ),
                *self.scale,
                origin=(0, 0),
            )
            for polygon in polygons
        ]
        return self.inside(wide)

    def sample(self, values: npt.NDArray[Any], other: Grid, *, outside: Any) -> npt.NDArray[Any]:
        """Return at the centre of each pixel of this grid what stands in another grid there.

        Parameters
        ----------
        values
            Array of the other grid's shape.
        other
            The other grid, over the same slide.
        outside
            The value where the other grid is not.
        """
        indices, there = [], []
        for axis in (1, 0):
            centres = self.origin[axis] + (np.arange(self.shape[1 - axis]) + 0.5) * self.scale[axis]
            index = np.floor((centres - other.origin[axis]) / other.scale[axis]).astype(int)
            there.append((index >= 0) & (index < other.shape[1 - axis]))
            indices.append(index.clip(0, other.shape[1 - axis] - 1))
        out = values[np.ix_(*indices)]
        return np.asarray(np.where(there[0][:, None] & there[1], out, outside))


@dataclass(frozen=True, eq=False)
class Overview:
    """A slide, seen from afar.

    Attributes
    ----------
    rgb
        uint8 (rows, columns, 3).
    grid
        Where it lies.
    """

    rgb: npt.NDArray[np.uint8]
    grid: Grid


def read_overview(slide: Slide, *, um: float = OVERVIEW_UM, most: int = MOST_PIXELS) -> Overview:
    """Read a whole slide at a low resolution.

    Parameters
    ----------
    slide
        The slide.
    um
        Side of a pixel, µm; larger where there would be more than `most` of them.

    Raises
    ------
    MissingPixelSizeError
        If the slide's pixel size is not known.
    """
    width_um, height_um = (side * mpp for side, mpp in zip(slide.dimensions, slide.mpp, strict=True))
    um = max(um, slide.mpp[0], slide.mpp[1], math.sqrt(width_um * height_um / most))
    rows, columns = max(1, math.floor(height_um / um)), max(1, math.floor(width_um / um))
    scale = (um / slide.mpp[0], um / slide.mpp[1])
    rgb = slide.read_downsampled(0, 0, columns, rows, scale)
    return Overview(rgb, Grid((0.0, 0.0), scale, um, (rows, columns)))
