"""From tiles to windows: in which order tiles are predicted, how long they are kept, how they are blended."""

from __future__ import annotations

import itertools
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from pyhisto.bundle.files import Bundle
from pyhisto.inference.grid import Box, NetworkGrid
from pyhisto.inference.tilestore import PredictedTile, TileStore

__all__ = ["GLASS", "TilePlan", "blend", "blended_windows", "predicted_tiles"]

GLASS = 255
"""Colour of the pixels that no tile holds."""

Rgb: TypeAlias = npt.NDArray[np.uint8]
_Place: TypeAlias = tuple[int, int]


@dataclass(frozen=True)
class TilePlan:
    """What is predicted, and in which order.

    Attributes
    ----------
    grid
        The tiles.
    touched
        bool, shape of the grid: the tiles that are predicted.
    reads
        The pixels that each window holds, in the order in which windows are made.
    """

    grid: NetworkGrid
    touched: npt.NDArray[np.bool_]
    reads: tuple[Box, ...]

    def needed(self, read: Box) -> list[_Place]:
        """Return row and column of the tiles that a window is made of, row by row."""
        rows, columns = self.grid.using(read)
        row, column = np.nonzero(self.touched[rows, columns])
        return list(zip((row + rows.start).tolist(), (column + columns.start).tolist(), strict=True))

    def order(self) -> Iterator[_Place]:
        """Yield each tile once, those of the first window first."""
        told = np.zeros_like(self.touched)
        for read in self.reads:
            for place in self.needed(read):
                if not told[place]:
                    told[place] = True
                    yield place

    def uses(self) -> npt.NDArray[np.int32]:
        """Return the number of windows that each tile is needed for, int32, shape of the grid."""
        out = np.zeros(self.touched.shape, dtype=np.int32)
        for read in self.reads:
            out[self.grid.using(read)] += 1
        return out


def predicted_tiles(
    read: Iterator[tuple[Rgb, Rgb]], bundle: Bundle, *, batch_size: int, flips: bool
) -> Iterator[PredictedTile]:
    """Yield each tile as it is read and predicted: planes float32 (n, size, size) and RGB uint8 (size, size, 3).

    Parameters
    ----------
    read
        The tiles: as the slide is, and as the network sees them; both uint8 (size, size, 3 or
        more), of which the first three are red, green and blue.
    bundle
        The model.
    batch_size
        Tiles in one call of the network.
    flips
        Take the mean over flipped tiles too, and add their variance as the last plane.
    """
    while batch := list(itertools.islice(read, batch_size)):
        tiles = np.stack([seen for _, seen in batch])
        if flips:
            mean, variance = bundle.predict_flips(tiles)
            planes = np.concatenate([mean, variance[:, np.newaxis]], axis=1)
        else:
            planes = bundle.predict(tiles)
        for (rgb, _), own in zip(batch, planes, strict=True):
            yield own, rgb[..., :3]


def blended_windows(
    tiles: Iterator[PredictedTile], plan: TilePlan, planes: int
) -> Generator[tuple[npt.NDArray[np.float32], Rgb], None, None]:
    """Yield planes and colours of each window of a plan as :func:`blend` gives them; keeps what later ones need."""
    uses = plan.uses()
    arriving = plan.order()
    outer = plan.grid.overlap - plan.grid.ramp
    inner = slice(outer, plan.grid.tile_size - outer)
    with TileStore(planes, plan.grid.core + 2 * plan.grid.ramp) as store:
        for read in plan.reads:
            needed = plan.needed(read)
            while any(place not in store for place in needed):
                tile = next(tiles, None)
                if tile is None:  # stopped
                    return
                own, colours = tile
                store.put(next(arriving), (own[:, inner, inner].astype(np.float32, "C"), colours[inner, inner].copy()))
            yield blend(plan.grid, read, needed, store, planes)
            for place in needed:
                uses[place] -= 1
                if uses[place] == 0:
                    store.drop(place)


def blend(
    grid: NetworkGrid, read: Box, places: Iterable[_Place], store: TileStore, planes: int
) -> tuple[npt.NDArray[np.float32], Rgb]:
    """Return the weighted mean of tiles inside a box, whichever other tiles there are.

    Parameters
    ----------
    grid, read
        The tiles and the box (x0, y0, x1, y1), px.
    places
        Row and column of the tiles that meet it, row by row, so that each pixel is always summed in the same order.
    store
        Holds those tiles.
    planes
        How many planes they have.

    Returns
    -------
    planes : numpy.ndarray
        float32 (planes, H, W); where no tile is, 1 in the first and 0 in the others.
    rgb : numpy.ndarray
        uint8 (H, W, 3), from the tile in whose core a pixel lies; white where no tile is.
    """
    x0, y0, x1, y1 = read
    out = np.zeros((planes, y1 - y0, x1 - x0), dtype=np.float32)
    total = np.zeros(out.shape[1:], dtype=np.float32)
    rgb = np.full((*total.shape, 3), GLASS, dtype=np.uint8)
    for place in places:
        own, colours = store.get(place)
        used = grid.used(*place)
        here, there = _shared(read, used)
        np.copyto(rgb[here], colours[there], where=(total[here] == 0)[..., np.newaxis])
        weight = grid.weights[there]
        out[(slice(None), *here)] += own[(slice(None), *there)] * weight
        total[here] += weight
        ramp = grid.ramp
        core = (used[0] + ramp, used[1] + ramp, used[2] - ramp, used[3] - ramp)
        here, inside = _shared(read, core)
        rgb[here] = colours[ramp:, ramp:][inside]
    covered = total > 0
    np.divide(out, total, out=out, where=covered)
    out[0][~covered] = 1
    return out, rgb


def _shared(box: Box, other: Box) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
    """Return the rows and columns that two boxes share, as the arrays of the one and of the other have them."""
    x0, y0 = max(box[0], other[0]), max(box[1], other[1])
    x1, y1 = max(x0, min(box[2], other[2])), max(y0, min(box[3], other[3]))
    here, there = ((slice(y0 - own[1], y1 - own[1]), slice(x0 - own[0], x1 - own[0])) for own in (box, other))
    return here, there
