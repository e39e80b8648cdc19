"""Which tiles a network predicts of a slide or an image, in which order, and how they are weighted."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import shapely

from pyhisto.inference.frame import Frame
from pyhisto.inference.grid import Box, Boxes, TileShape
from pyhisto.inference.partition import Tiles, cells_of_mask, cells_of_region, cut_tiles, whole_tiles

__all__ = ["TilePlan", "tiles_of_mask", "tiles_of_region"]

BATCH_WASTE = 1.2
"""How many times the pixels of its tiles a batch may have, whose tiles are brought to one size."""


@dataclass(frozen=True)
class TilePlan:
    """What is predicted, and in which order.

    Attributes
    ----------
    tiles
        What is predicted.
    reads
        The pixels that each window holds, in the order in which windows are made.
    batch_size
        Tiles in one call of the network, at most.
    """

    tiles: Tiles
    reads: tuple[Box, ...]
    batch_size: int

    @cached_property
    def _tree(self) -> shapely.STRtree:
        """The used parts, a little smaller, so that only those that share a pixel meet."""
        return shapely.STRtree(shapely.box(*(self.tiles.parts + np.array([0.25, 0.25, -0.25, -0.25])).T))

    def needed(self, read: Box) -> list[int]:
        """Return the numbers of the tiles that a window is made of, in order."""
        found: list[int] = np.sort(self._tree.query(shapely.box(*read))).tolist()
        return found

    def order(self) -> Iterator[int]:
        """Yield the number of each tile once, those of the first window first."""
        told = np.zeros(len(self.tiles), dtype=np.bool_)
        for read in self.reads:
            for number in self.needed(read):
                if not told[number]:
                    told[number] = True
                    yield number

    @cached_property
    def batches(self) -> list[list[tuple[int, Box]]]:
        """The tiles in the batches and the order in which they are predicted: number, and what the network sees.

        Those of a batch are of one size.
        """
        out: list[list[int]] = []
        pixels = 0
        for number in self.order():
            area = int(np.prod(self._size([number])))
            batch = [*out[-1], number] if out else [number]
            together = len(batch) * int(np.prod(self._size(batch)))
            if len(batch) <= self.batch_size and together <= BATCH_WASTE * (pixels + area):
                out[-1 if out else 0 :] = [batch]
                pixels += area
            else:
                out.append([number])
                pixels = area
        return [[(number, self._grown(number, self._size(batch))) for number in batch] for batch in out]

    def _size(self, numbers: list[int]) -> npt.NDArray[np.int64]:
        """Return width and height in which the network sees all that it sees of some tiles."""
        seen = self.tiles.seen[numbers]
        return np.asarray((seen[:, 2:] - seen[:, :2]).max(axis=0))

    def _grown(self, number: int, size: npt.NDArray[np.int64]) -> Box:
        x, y = self.tiles.seen[number, :2].tolist()
        return x, y, x + int(size[0]), y + int(size[1])

    def part(self, number: int) -> Box:
        """Return what of a tile's prediction is used."""
        x0, y0, x1, y1 = self.tiles.parts[number].tolist()
        return x0, y0, x1, y1

    def core(self, number: int) -> Box:
        """Return what lies in a tile alone."""
        x0, y0, x1, y1 = self.tiles.cores[number].tolist()
        return x0, y0, x1, y1

    def weights(self, number: int, box: Box) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """Return the weights of a tile's rows and columns in a box inside its part; a pixel has their product.

        They rise as a squared sine across the edges of the core over which the part reaches, so that those of two
        neighbours sum to 1.
        """
        part, core = self.part(number), self.core(number)
        across, down = (
            _rise(box[axis], box[axis + 2], part[axis], core[axis])
            * _rise(-box[axis + 2], -box[axis], -part[axis + 2], -core[axis + 2])[::-1]
            for axis in range(2)
        )
        return down, across

    def uses(self) -> npt.NDArray[np.int64]:
        """Return the number of windows that each tile is needed for, int64 (n,)."""
        x0, y0, x1, y1 = np.array(self.reads).T
        tiles = self._tree.query(shapely.box(x0, y0, x1, y1))[1]
        return np.bincount(tiles, minlength=len(self.tiles))

    @property
    def most_pixels(self) -> int:
        """Pixels of the largest part."""
        size = self.tiles.parts[:, 2:] - self.tiles.parts[:, :2]
        return int(size.prod(axis=1).max(initial=0))


def _rise(low: int, high: int, begin: int, edge: int) -> npt.NDArray[np.float64]:
    """Return the weight of the pixels from `low` to `high`, which is 0.5 at an edge and rises from the begin on."""
    ramp = max(1, edge - begin)
    way = (np.arange(low, high) + 0.5 - begin) / (2 * ramp)
    return np.asarray(np.sin(np.pi / 2 * np.clip(way, 0, 1)) ** 2 if edge > begin else np.ones(high - low))


def tiles_of_region(shape: TileShape, region: Any, frame: Frame, margin: int) -> Tiles:
    """Return the tiles for a region: all of it and, if they are cut to measure, the margin around it.

    Parameters
    ----------
    shape, frame
        The tiles, and where they lie.
    region
        shapely Polygon or MultiPolygon, level-0 px.
    margin
        px.
    """
    size = frame.width, frame.height
    if shape.least is not None:
        return cut_tiles(shape, cells_of_region(region, frame, margin), size)
    shapely.prepare(region)
    return whole_tiles(shape, size, lambda boxes: np.asarray(shapely.intersects(region, frame.boxes(boxes))))


def tiles_of_mask(shape: TileShape, mask: npt.NDArray[np.bool_]) -> Tiles:
    """Return the tiles for the pixels of a mask, bool (H, W)."""
    height, width = mask.shape
    if shape.least is not None:
        return cut_tiles(shape, cells_of_mask(mask), (width, height))
    counts = np.zeros((height + 1, width + 1), dtype=np.int64)
    np.cumsum(np.cumsum(mask, axis=0), axis=1, out=counts[1:, 1:])

    def is_wanted(boxes: Boxes) -> npt.NDArray[np.bool_]:
        x0, y0, x1, y1 = boxes.T
        return np.asarray(counts[y1, x1] - counts[y0, x1] - counts[y1, x0] + counts[y0, x0] > 0)

    return whole_tiles(shape, (width, height), is_wanted)
