"""Tile grids: which tiles at which µm/px cover a region. Pure functions on numbers; no pixels are read here."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import shapely

from pyhisto.errors import ConfigError

__all__ = ["Tile", "TileGrid"]


@dataclass(frozen=True)
class Tile:
    """One tile of a grid.

    Attributes
    ----------
    column, row
        Position in the grid.
    x, y
        Top left corner of the tile that is read, level-0 px (overlap included; may lie outside the slide).
    core
        (x0, y0, x1, y1) of the part that belongs to this tile alone, level-0 px. The cores of a grid cover it without
        gap or overlap.
    """

    column: int
    row: int
    x: float
    y: float
    core: tuple[float, float, float, float]


@dataclass(frozen=True)
class TileGrid:
    """Square tiles of one size at one resolution over a rectangle of a slide.

    Parameters
    ----------
    bounds
        (x0, y0, x1, y1) of the rectangle to cover, level-0 px.
    slide_mpp
        Pixel size of the slide at level 0 in µm, (x, y).
    mpp
        Pixel size of the tiles in µm.
    tile_size
        Width and height of a tile in pixels at `mpp`.
    overlap
        Margin on each side of a tile, in pixels at `mpp`, that the neighbours see too.

    Raises
    ------
    ConfigError
        If the overlap leaves no core, or a size is not positive.

    Examples
    --------
    >>> grid = TileGrid((0, 0, 1000, 500), slide_mpp=(0.25, 0.25), mpp=0.5, tile_size=256, overlap=32)
    >>> grid.shape, grid.core_size
    ((2, 3), 192)
    """

    bounds: tuple[float, float, float, float]
    slide_mpp: tuple[float, float]
    mpp: float
    tile_size: int = 256
    overlap: int = 0

    def __post_init__(self) -> None:
        if self.mpp <= 0 or self.tile_size < 1 or min(self.slide_mpp) <= 0:
            raise ConfigError(
                f"tile of {self.tile_size} px at {self.mpp} µm/px", expected="a positive size and resolution"
            )
        if not 0 <= 2 * self.overlap < self.tile_size:
            raise ConfigError(
                f"overlap of {self.overlap} px in tiles of {self.tile_size} px",
                expected=f"0 to {(self.tile_size - 1) // 2}",
            )

    @property
    def core_size(self) -> int:
        """Width and height of a tile without its overlap, pixels at `mpp`."""
        return self.tile_size - 2 * self.overlap

    @property
    def downsample(self) -> tuple[float, float]:
        """Level-0 pixels to one tile pixel, (x, y)."""
        return self.mpp / self.slide_mpp[0], self.mpp / self.slide_mpp[1]

    @property
    def shape(self) -> tuple[int, int]:
        """Number of rows and columns."""
        x0, y0, x1, y1 = self.bounds
        across, down = self.downsample
        columns = max(1, math.ceil((x1 - x0) / (self.core_size * across) - 1e-9))
        rows = max(1, math.ceil((y1 - y0) / (self.core_size * down) - 1e-9))
        return rows, columns

    def tile(self, row: int, column: int) -> Tile:
        """Return the tile at a grid position."""
        across, down = self.downsample
        side = self.core_size
        left, right = self.bounds[0] + column * side * across, self.bounds[0] + (column + 1) * side * across
        top, bottom = self.bounds[1] + row * side * down, self.bounds[1] + (row + 1) * side * down
        core = (left, top, right, bottom)
        return Tile(column, row, left - self.overlap * across, top - self.overlap * down, core)

    def tiles(self, region: Any | None = None) -> Iterator[Tile]:
        """Yield the tiles row by row; with a shapely region, those whose core touches it.

        Parameters
        ----------
        region
            Polygon or MultiPolygon in level-0 px.
        """
        rows, columns = self.shape
        if region is None:
            yield from (self.tile(row, column) for row in range(rows) for column in range(columns))
            return
        shapely.prepare(region)
        across, down = self.downsample
        x = self.bounds[0] + np.arange(columns + 1) * self.core_size * across
        y = self.bounds[1] + np.arange(rows + 1) * self.core_size * down
        for row in range(rows):
            cores = shapely.box(x[:-1], y[row], x[1:], y[row + 1])
            for column in np.flatnonzero(shapely.intersects(region, cores)).tolist():
                yield self.tile(row, column)
