"""From what is wanted of an area to the tiles that are predicted of it; pure functions on numbers and masks."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import shapely
from scipy.ndimage import maximum_filter

from pyhisto.inference.frame import Frame
from pyhisto.inference.grid import Boxes, TileShape
from pyhisto.labels import paint, polygon_rings
from pyhisto.loops.cuts import cheapest_cuts

__all__ = ["Tiles", "cells_of_mask", "cells_of_region", "cut_tiles", "whole_tiles"]

CELL_PX = 8
"""Side of the cells in which it is known what is wanted, px."""

RIM_PX = 24
"""How far the network sees beyond what is wanted of a tile where no other tile goes on."""

BLOCKS, LEAST_BLOCK, TOGETHER = 8, 4, 3
"""Into how many blocks a side of a tile of the largest side may be cut, but none is smaller than so many cells; and for
how many such tiles along a side all cuts are looked at together."""

MANY_TILES = 500
"""With more tiles, they are cut into half as many blocks: that takes a thirtieth of the time."""

TILE_COST, TILE_COST_PX = 0.6, 280**2
"""What a tile takes beside the time for its pixels, as a share of that time, but no more than for so many pixels:
the convolutions that are fast on large maps prepare their weights for each tile, and small maps do without them."""

Cells: TypeAlias = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Tiles:
    """Tiles of an area, row by row.

    Attributes
    ----------
    cores, parts, seen
        int64 (n, 4): (x0, y0, x1, y1) of what lies in one tile alone, of what is used of its prediction, and of what
        the network sees, px. Parts and what is seen may reach beyond the area.
    """

    cores: Boxes
    parts: Boxes
    seen: Boxes

    def __post_init__(self) -> None:
        order = np.lexsort((self.cores[:, 0], self.cores[:, 1]))
        for name in ("cores", "parts", "seen"):
            object.__setattr__(self, name, getattr(self, name)[order])

    def __len__(self) -> int:
        return len(self.cores)


def cells_of_mask(mask: npt.NDArray[np.bool_]) -> Cells:
    """Return in which cells a mask, bool (H, W), has a pixel; uint8 (rows, columns), 1 or 0."""
    height, width = (math.ceil(length / CELL_PX) * CELL_PX for length in mask.shape)
    padded = np.zeros((height, width), dtype=np.uint8)
    padded[: mask.shape[0], : mask.shape[1]] = mask
    return np.asarray(padded.reshape(height // CELL_PX, CELL_PX, width // CELL_PX, CELL_PX).max(axis=(1, 3)))


def cells_of_region(region: Any, frame: Frame, margin: int) -> Cells:
    """Return the cells of a frame that a region touches, and those that touch one `margin` px from these.

    Parameters
    ----------
    region
        shapely Polygon or MultiPolygon, level-0 px.
    frame
        Where the cells begin.
    margin
        px.

    Returns
    -------
    numpy.ndarray
        uint8 (rows, columns), 1 or 0.
    """
    shape = math.ceil(frame.height / CELL_PX), math.ceil(frame.width / CELL_PX)
    corner, step = np.array([frame.left, frame.top]), CELL_PX * np.array(frame.downsample)
    parts = shapely.get_parts(region)
    out = np.zeros(shape, dtype=np.uint8)
    rings, owner = polygon_rings(parts)
    paint(out, (rings - corner) / step, owner, np.ones(len(parts), dtype=np.uint8))
    xy, ring = shapely.get_coordinates(shapely.get_rings(shapely.segmentize(parts, step.min() / 2)), return_index=True)
    places = np.floor((xy - corner) / step).astype(np.int64)
    before, after = places[:-1][ring[1:] == ring[:-1]], places[1:][ring[1:] == ring[:-1]]
    # from a point to the next it is half a cell at most: an outline that crosses a corner meets one of two cells there
    for x, y in ((places[:, 0], places[:, 1]), (before[:, 0], after[:, 1]), (after[:, 0], before[:, 1])):
        here = (x >= 0) & (y >= 0) & (x < shape[1]) & (y < shape[0])
        out[y[here], x[here]] = 1
    return np.asarray(maximum_filter(out, 2 * math.ceil(margin / CELL_PX) + 1, mode="constant")) if margin else out


def whole_tiles(shape: TileShape, size: tuple[int, int], is_wanted: Callable[[Boxes], npt.NDArray[np.bool_]]) -> Tiles:
    """Return the tiles of a grid, whose cores lie at multiples of their size, of which something is wanted.

    Parameters
    ----------
    shape
        The tiles.
    size
        (width, height) of the area, px.
    is_wanted
        Says it of boxes inside the area, int64 (n, 4).
    """
    x, y = (np.arange(0, length, shape.core) for length in size)
    corner = np.stack(np.meshgrid(x, y), axis=-1).reshape(-1, 2)
    corner = corner[is_wanted(np.hstack([corner, np.minimum(corner + shape.core, size)]))]
    cores, outwards = np.hstack([corner, corner + shape.core]), np.array([-1, -1, 1, 1])
    return Tiles(cores, cores + shape.ramp * outwards, cores + shape.overlap * outwards)


def cut_tiles(shape: TileShape, wanted: Cells, size: tuple[int, int]) -> Tiles:
    """Return tiles that are cut to measure, so that a network predicts what is wanted of an area soonest.

    Of all guillotine partitions along some lines, the cheapest: each tile is the bounds of what is wanted in its
    rectangle, and the network sees all of the overlap around it where a neighbour goes on, and a rim elsewhere.

    Parameters
    ----------
    shape
        The tiles.
    wanted
        As :func:`cells_of_mask` returns it.
    size
        (width, height) of the area, px.
    """
    least = shape.tile_size if shape.least is None else shape.least
    reach, sides = (min(RIM_PX, shape.overlap - shape.ramp), shape.overlap), (least, shape.tile_size**2, shape.stride)
    units = [math.ceil(length * CELL_PX / shape.room) for length in wanted.shape]
    blocks = BLOCKS if math.prod(units) <= MANY_TILES else BLOCKS // 2
    rows, columns = (_lines(length, unit, blocks) for length, unit in zip(wanted.shape, units, strict=True))
    found = [
        cheapest_cuts(wanted, down, across, CELL_PX, reach, sides, (TILE_COST, float(TILE_COST_PX)))
        for down, across in itertools.product(rows, columns)
    ]
    tiles = np.concatenate(found)
    cores, goes_on = tiles[:, :4] * CELL_PX, tiles[:, 4:] > 0
    cores[:, 2:] = np.minimum(cores[:, 2:], size)
    sign = np.array([-1, -1, 1, 1])
    low, high = np.hsplit(tiles[:, :4] * CELL_PX + sign * np.where(goes_on, shape.overlap, reach[0]), 2)
    low, high = low // shape.stride * shape.stride, -(-high // shape.stride) * shape.stride
    high = np.maximum(high, low + -(-least // shape.stride) * shape.stride)
    return Tiles(cores, cores + sign * np.where(goes_on, shape.ramp, 0), np.hstack([low, high]))


def _lines(cells: int, tiles: int, blocks: int) -> list[npt.NDArray[np.int64]]:
    """Return the lines along which an area may be cut, int64, for some tiles at a time.

    Parameters
    ----------
    cells, tiles
        Length of its side, and how many tiles of the largest side it takes at least.
    blocks
        Into how many a tile may be cut.
    """
    ends = np.linspace(0, cells, tiles + 1).round().astype(np.int64)
    bounds = itertools.pairwise([*ends[:-1:TOGETHER].tolist(), cells])
    parts = [(low, high, max(1, min(TOGETHER * blocks, (high - low) // LEAST_BLOCK))) for low, high in bounds]
    return [np.linspace(low, high, number + 1).round().astype(np.int64) for low, high, number in parts]
