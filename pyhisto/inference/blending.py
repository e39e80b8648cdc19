"""From tiles to windows: how long tiles are kept, and how they are blended."""

from __future__ import annotations

import itertools
from collections.abc import Generator, Iterable, Iterator
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from pyhisto.bundle.files import Bundle
from pyhisto.heap import SPARE, heap
from pyhisto.inference.grid import Box
from pyhisto.inference.plan import TilePlan
from pyhisto.inference.tilestore import PredictedTile, TileStore
from pyhisto.loops.blends import add_tile, divide

__all__ = ["GLASS", "blend", "blended_windows", "predicted_tiles"]

GLASS = 255
"""Colour of the pixels that no tile holds."""

FEW_BATCHES = 8
"""Batches that leave hardly any gaps in the memory: filling them takes longer (a fiftieth, of large tiles) than it is
worth."""

Rgb: TypeAlias = npt.NDArray[np.uint8]


def predicted_tiles(
    read: Iterator[tuple[Rgb, Rgb]], bundle: Bundle, plan: TilePlan, *, flips: bool
) -> Iterator[PredictedTile]:
    """Yield each tile as it is read and predicted: planes float32 (n, H, W) and RGB uint8 (H, W, 3).

    Parameters
    ----------
    read
        The tiles: as the slide is, and as the network sees them; both uint8 (H, W, 3 or more), of which the first three
        are red, green and blue; in the order of the plan.
    bundle
        The model.
    plan
        Which of them make a batch.
    flips
        Take the mean over flipped tiles too, and add their variance as the last plane.
    """
    for turn, numbers in enumerate(plan.batches):
        batch = list(itertools.islice(read, len(numbers)))
        if len(batch) < len(numbers):  # stopped
            return
        tiles = np.stack([seen for _, seen in batch])
        heap.settle(SPARE if turn < FEW_BATCHES else 1.0)
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
    arriving = itertools.chain.from_iterable(plan.batches)
    with TileStore(planes, plan.most_pixels) as store:
        for read in plan.reads:
            needed = plan.needed(read)
            while any(number not in store for number in needed):
                tile = next(tiles, None)
                if tile is None:  # stopped
                    return
                own, colours = tile
                number, seen = next(arriving)
                inside, _ = _shared(seen, plan.part(number))
                store.put(number, (own[(slice(None), *inside)], colours[inside]))
            yield blend(plan, read, needed, store, planes)
            for number in needed:
                uses[number] -= 1
                if uses[number] == 0:
                    store.drop(number)
        next(tiles, None)  # there is none: the stage before ends by itself, and nobody waits to learn that it is over


def blend(
    plan: TilePlan, read: Box, numbers: Iterable[int], store: TileStore, planes: int
) -> tuple[npt.NDArray[np.float32], Rgb]:
    """Return the weighted mean of tiles inside a box, whichever other tiles there are.

    Parameters
    ----------
    plan, read
        The tiles and the box (x0, y0, x1, y1), px.
    numbers
        Those that meet it, row by row, so that each pixel is always summed in the same order.
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
    sums = np.zeros((planes + 1, y1 - y0, x1 - x0), dtype=np.float32)
    rgb = np.full((*sums.shape[1:], 3), GLASS, dtype=np.uint8)
    for number in numbers:
        own, colours = store.get(number)
        part = plan.part(number)
        common = _common(read, part)
        here, there = _shared(read, part)
        mine = _common(common, plan.core(number))
        core = (mine[0] - common[0], mine[1] - common[1], mine[2] - common[0], mine[3] - common[1])
        into = sums[(slice(None), *here)], rgb[here]
        add_tile(own[(slice(None), *there)], colours[there], plan.weights(number, common), core, into)
    divide(sums)
    return sums[:planes], rgb


def _common(box: Box, other: Box) -> Box:
    """Return what two boxes have in common, without an extent where that is nothing."""
    x0, y0 = max(box[0], other[0]), max(box[1], other[1])
    return x0, y0, max(x0, min(box[2], other[2])), max(y0, min(box[3], other[3]))


def _shared(box: Box, other: Box) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
    """Return the rows and columns that two boxes share, as the arrays of the one and of the other have them."""
    x0, y0, x1, y1 = _common(box, other)
    here, there = ((slice(y0 - own[1], y1 - own[1]), slice(x0 - own[0], x1 - own[0])) for own in (box, other))
    return here, there
