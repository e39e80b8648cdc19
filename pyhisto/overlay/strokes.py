"""Antialiased strokes and dots on an RGB array.

Each pixel takes the colour by its centre's exact distance to the stroke, so a stroke keeps its place to a fraction of a
pixel. Pixel (column, row) covers [column, column + 1) x [row, row + 1).
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

__all__ = ["stroke"]

Floats = npt.NDArray[np.float64]

_PIECE_PX = 3.0
_CHUNK = 1 << 16


def stroke(
    canvas: npt.NDArray[np.float32],
    segments: Floats,
    color: tuple[int, int, int],
    radius: float,
    *,
    opacity: float = 1.0,
) -> None:
    """Blend round-ended strokes of one colour into a picture, in place; where they cross, they count once.

    Parameters
    ----------
    canvas
        RGB float32, shape (H, W, 3), 0 to 255.
    segments
        Shape (n, 2 ends, 2), x and y in picture px; two equal ends make a dot.
    color
        RGB, 0 to 255.
    radius
        Half the width of the stroke, px.
    opacity
        0 to 1.
    """
    height, width = canvas.shape[:2]
    pieces = _in_reach(_split(_in_reach(segments, width, height, radius)), width, height, radius)
    if len(pieces) == 0:
        return
    alpha = np.zeros(height * width, dtype=np.float32)
    for begin in range(0, len(pieces), _CHUNK):
        _cover(alpha, pieces[begin : begin + _CHUNK], radius, width, height)
    touched = np.flatnonzero(alpha)
    share = (opacity * alpha[touched])[:, None]
    pixels = canvas.reshape(-1, 3)
    pixels[touched] += share * (np.asarray(color, dtype=np.float32) - pixels[touched])


def _in_reach(segments: Floats, width: int, height: int, radius: float) -> Floats:
    rim = radius + 1
    low, high = segments.min(axis=1), segments.max(axis=1)
    kept: Floats = segments[((high > -rim) & (low < np.array([width, height]) + rim)).all(axis=1)]
    return kept


def _split(segments: Floats) -> Floats:
    """Cut segments into equal pieces of at most :data:`_PIECE_PX`."""
    delta = segments[:, 1] - segments[:, 0]
    count = np.maximum(1, np.ceil(np.hypot(delta[:, 0], delta[:, 1]) / _PIECE_PX)).astype(np.int64)
    owner = np.repeat(np.arange(len(segments)), count)
    place = (np.arange(len(owner)) - np.repeat(count.cumsum() - count, count))[:, None]
    step = (delta / count[:, None])[owner]
    begin = segments[owner, 0] + place * step
    pieces: Floats = np.stack([begin, begin + step], axis=1)
    return pieces


def _cover(alpha: npt.NDArray[np.float32], pieces: Floats, radius: float, width: int, height: int) -> None:
    """Raise `alpha` (flat, H * W) to the coverage by short pieces: 1 inside, falling to 0 over one pixel."""
    reach = radius + 0.5
    corner = np.floor(pieces.min(axis=1) - reach)
    side = math.ceil(_PIECE_PX * (pieces[:, 0] != pieces[:, 1]).any() + 2 * reach) + 1
    offset = np.arange(side)
    start = (pieces[:, 0] - corner - 0.5).astype(np.float32)
    delta = (pieces[:, 1] - pieces[:, 0]).astype(np.float32)
    px = offset.astype(np.float32)[None, None, :] - start[:, 0, None, None]
    py = offset.astype(np.float32)[None, :, None] - start[:, 1, None, None]
    dx, dy = delta[:, 0, None, None], delta[:, 1, None, None]
    along = ((px * dx + py * dy) / np.maximum(dx * dx + dy * dy, 1e-9)).clip(0, 1)
    coverage = (reach - np.hypot(px - along * dx, py - along * dy)).clip(0, 1)
    column = (corner[:, 0].astype(np.int64)[:, None, None] + offset[None, None, :]) + np.zeros_like(coverage, np.int64)
    row = (corner[:, 1].astype(np.int64)[:, None, None] + offset[None, :, None]) + np.zeros_like(coverage, np.int64)
    seen = (coverage > 0) & (column >= 0) & (column < width) & (row >= 0) & (row < height)
    np.maximum.at(alpha, row[seen] * width + column[seen], coverage[seen])
