"""Which tiles a network predicts of a slide or an image, how much of each, and in which order."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import shapely

from pyhisto.inference.frame import Frame
from pyhisto.inference.grid import Box, Boxes, NetworkGrid, Places, time_of

__all__ = ["TilePlan", "cheapest_plan", "wanted_of_mask", "wanted_parts"]

MANY = 1000
"""Tiles from which on it takes longer to look for a better size than that is worth."""


@dataclass(frozen=True)
class TilePlan:
    """What is predicted, and in which order.

    Attributes
    ----------
    grid
        The tiles.
    places
        int64 (n, 2): row and column of those that are predicted.
    seen, parts
        int64 (n, 4): what the network sees of each at least, and what of its prediction is used.
    reads
        The pixels that each window holds, in the order in which windows are made.
    batch_size
        Tiles in one call of the network.
    """

    grid: NetworkGrid
    places: Places
    seen: Boxes
    parts: Boxes
    reads: tuple[Box, ...]
    batch_size: int

    @cached_property
    def number(self) -> npt.NDArray[np.int64]:
        """Number of each tile, int64, shape of the grid; -1 for those that are not predicted."""
        out = np.full(self.grid.shape, -1, dtype=np.int64)
        out[self.places[:, 0], self.places[:, 1]] = np.arange(len(self.places))
        return out

    def needed(self, read: Box) -> list[int]:
        """Return the numbers of the tiles that a window is made of, row by row."""
        numbers = self.number[self.grid.using(read)]
        found: list[int] = numbers[numbers >= 0].tolist()
        return found

    def order(self) -> Iterator[int]:
        """Yield the number of each tile once, those of the first window first."""
        told = np.zeros(len(self.places), dtype=np.bool_)
        for read in self.reads:
            for number in self.needed(read):
                if not told[number]:
                    told[number] = True
                    yield number

    def batches(self) -> Iterator[list[tuple[int, Box]]]:
        """Yield the tiles in the batches and the order in which they are predicted: number, and what the network sees.

        Those of a batch are of one size.
        """
        numbers = self.order()
        while batch := list(itertools.islice(numbers, self.batch_size)):
            boxes: list[Any] = self.grid.alike(self.places[batch], self.seen[batch]).tolist()
            yield [(number, tuple(box)) for number, box in zip(batch, boxes, strict=True)]

    def part(self, number: int) -> Box:
        """Return what of a tile's prediction is used."""
        x0, y0, x1, y1 = self.parts[number].tolist()
        return x0, y0, x1, y1

    def uses(self) -> npt.NDArray[np.int32]:
        """Return the number of windows that each tile is needed for, int32 (n,)."""
        out = np.zeros(self.grid.shape, dtype=np.int32)
        for read in self.reads:
            out[self.grid.using(read)] += 1
        return np.asarray(out[self.places[:, 0], self.places[:, 1]])


def cheapest_plan(
    choices: Iterable[tuple[NetworkGrid, Places, Boxes]], reads: Sequence[Box], batch_size: int
) -> TilePlan:
    """Return the plan whose tiles are predicted soonest.

    Parameters
    ----------
    choices
        Grids, those of the largest tiles first, with the tiles that are to be predicted, and what is wanted of each, as
        :func:`wanted_parts` gives them. Where there are many, smaller tiles are only tried as long as they take less.
    reads, batch_size
        See :class:`TilePlan`.
    """
    least, best = math.inf, None
    for grid, places, wanted in choices:
        seen, parts = grid.cropped(places, wanted)
        time = _time(seen, batch_size)
        if time < least:
            least, best = time, TilePlan(grid, places, seen, parts, tuple(reads), batch_size)
        elif len(places) > MANY:
            break
    if best is None:
        raise ValueError("no grid")
    return best


def _time(seen: Boxes, batch_size: int) -> float:
    """Return how long a network takes for tiles of which it sees some boxes (n, 4)."""
    size = np.zeros((-(-len(seen) // batch_size) * batch_size, 2), dtype=np.int64)
    size[: len(seen)] = seen[:, 2:] - seen[:, :2]
    width, height = size.reshape(-1, batch_size, 2).max(axis=1).T
    return time_of(np.repeat(width * height, batch_size)[: len(seen)])


def wanted_parts(grid: NetworkGrid, frame: Frame, region: Any, margin: int) -> tuple[Places, Boxes]:
    """Return the tiles whose core touches a region, and the boxes of what is wanted of them.

    Parameters
    ----------
    grid, frame
        The tiles, and where they lie.
    region
        shapely Polygon or MultiPolygon, level-0 px.
    margin
        How far around the region is wanted, too, as far as the used part of the tile goes, px; at least the ramp.

    Returns
    -------
    places, wanted
        int64 (n, 2), row and column; int64 (n, 4), px.
    """
    margin = max(margin, grid.ramp)
    rows, columns = grid.shape
    shapely.prepare(region)
    found: list[tuple[Places, Boxes]] = []
    for row in range(rows):
        places = np.column_stack([np.full(columns, row), np.arange(columns)])
        cores = _boxes(grid, places, 0)
        places = places[shapely.intersects(region, frame.boxes(_meet(cores, (0, 0, grid.width, grid.height))))]
        boxes = _usable(grid, places)
        beyond = _grown(boxes, margin)
        cut = np.flatnonzero(~shapely.contains_properly(region, frame.boxes(beyond)))
        if len(cut):
            x0, y0, x1, y1 = frame.bounds(beyond[cut]).T
            band = shapely.clip_by_rect(region, x0.min(), y0[0], x1.max(), y1[0])  # few points a tile are left
            clipped = [shapely.clip_by_rect(band, *box) for box in zip(x0, y0, x1, y1, strict=True)]
            boxes[cut] = _meet(_grown(frame.covered(shapely.bounds(clipped)), margin), boxes[cut])
        some = (boxes[:, 2:] > boxes[:, :2]).all(axis=1)
        found.append((places[some], boxes[some]))
    return np.concatenate([places for places, _ in found]), np.concatenate([boxes for _, boxes in found])


def wanted_of_mask(grid: NetworkGrid, mask: npt.NDArray[np.bool_]) -> tuple[Places, Boxes]:
    """Return what :func:`wanted_parts` gives for the pixels of a mask, bool (H, W), with no margin but the ramp."""
    rows, columns = np.nonzero(mask)
    touched = np.zeros(grid.shape, dtype=np.bool_)
    touched[rows // grid.core, columns // grid.core] = True
    places = np.argwhere(touched)
    boxes = _usable(grid, places)
    near_by = _meet(_grown(boxes, grid.ramp), (0, 0, grid.width, grid.height))
    for number, (x0, y0, x1, y1) in enumerate(near_by.tolist()):
        near = mask[y0:y1, x0:x1]
        across, down = (np.flatnonzero(near.any(axis=axis)) for axis in range(2))
        bounds = np.array([[x0 + across[0], y0 + down[0], x0 + across[-1] + 1, y0 + down[-1] + 1]])
        boxes[number] = _meet(_grown(bounds, grid.ramp), boxes[number])[0]
    return places, boxes


def _usable(grid: NetworkGrid, places: Places) -> Boxes:
    """Return the used parts of tiles, int64 (n, 4), no farther beyond the area than blending needs."""
    around = (-grid.ramp, -grid.ramp, grid.width + grid.ramp, grid.height + grid.ramp)
    return _meet(_boxes(grid, places, grid.ramp), around)


def _boxes(grid: NetworkGrid, places: Places, rim: int) -> Boxes:
    """Return the cores of tiles with a rim, int64 (n, 4)."""
    corner = places[:, ::-1] * grid.core
    return np.hstack([corner - rim, corner + grid.core + rim])


def _grown(boxes: Boxes, by: int) -> Boxes:
    return np.asarray(boxes + np.array([-by, -by, by, by]))


def _meet(boxes: Boxes, others: Any) -> Boxes:
    """Return what boxes have in common with others, int64 (n, 4)."""
    others = np.broadcast_to(others, boxes.shape)
    low, high = np.maximum(boxes[:, :2], others[:, :2]), np.minimum(boxes[:, 2:], others[:, 2:])
    return np.hstack([low, high])
