"""The loops of greyscale reconstruction; see :mod:`pyhisto.nuclei.watershed`."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from pyhisto.loops.compiled import compiled

__all__ = ["reconstructed"]

Image: TypeAlias = npt.NDArray[Any]
Places: TypeAlias = npt.NDArray[np.int64]


@compiled
def reconstructed(seed: Image, mask: Image) -> Image:
    """Dilate an image under another until nothing changes any more, over 8-neighbours.

    The hybrid algorithm of Vincent (1993), IEEE Transactions on Image Processing 2:176: a scan down, a scan up, and a
    queue of the pixels that can still raise a neighbour.

    Parameters
    ----------
    seed
        Shape (H, W), nowhere above `mask`, and of its type.
    mask
        What it grows under, shape (H, W), without NaN.
    """
    height, width = mask.shape
    stride = width + 2
    out = np.full((height + 2, stride), seed.min())  # a frame that neither raises nor can be raised
    above = out.copy()
    out[1:-1, 1:-1] = seed
    above[1:-1, 1:-1] = mask
    level, limit = out.ravel(), above.ravel()
    waiting = np.empty(len(level), dtype=np.int64)
    n = 0
    for y in range(1, height + 1):
        for x in range(1, width + 1):
            _raise(level, limit, y * stride + x, stride, 1)
    for y in range(height, 0, -1):
        for x in range(width, 0, -1):
            place = y * stride + x
            _raise(level, limit, place, -stride, -1)
            if _raises(level, limit, place, stride, 1):
                waiting[n] = place
                n += 1
    _flow(level, limit, waiting, n, stride)
    return out[1:-1, 1:-1].copy()


@compiled
def _raise(level: Image, limit: Image, place: int, down: int, right: int) -> None:
    """Raise a pixel to the highest of those that were scanned before it, as far as it may."""
    above = place - down
    around = max(max(level[above - 1], level[above]), max(level[above + 1], level[place - right]))
    level[place] = min(max(level[place], around), limit[place])


@compiled
def _raises(level: Image, limit: Image, place: int, down: int, right: int) -> bool:
    """Return whether a pixel can raise one of those that were scanned before it on the way back."""
    value = level[place]
    found = bool(level[place + right] < min(value, limit[place + right]))
    for below in range(place + down - 1, place + down + 2):
        found |= level[below] < min(value, limit[below])
    return found


@compiled
def _flow(level: Image, limit: Image, waiting: Places, n: int, stride: int) -> None:
    """Let `n` waiting pixels raise those around them, and these others, in a ring that no pixel is in twice."""
    waits = np.zeros(len(level), dtype=np.bool_)
    waits[waiting[:n]] = True
    around = (-stride - 1, -stride, -stride + 1, -1, 1, stride - 1, stride, stride + 1)
    begin = 0
    while n:
        place = waiting[begin]
        begin = (begin + 1) % len(waiting)
        n -= 1
        waits[place] = False
        for step in around:
            value = min(level[place], limit[place + step])
            if level[place + step] < value:
                level[place + step] = value
                if not waits[place + step]:
                    waiting[(begin + n) % len(waiting)] = place + step
                    waits[place + step] = True
                    n += 1
