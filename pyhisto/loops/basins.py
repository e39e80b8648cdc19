"""The loops that flood the basins of an image from marks in them; see :mod:`pyhisto.nuclei.labelling`.

What is known of a pixel is one number, its link: the index, in the flat image, of the neighbour to which the steepest
way down leads; or the label, once it is known, as ``-1 - label``.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from pyhisto.loops.compiled import compiled

__all__ = ["claim", "ways_down"]

FloatImage: TypeAlias = npt.NDArray[np.float32]
Links: TypeAlias = npt.NDArray[np.int32]
Mask: TypeAlias = npt.NDArray[np.bool_]
Places: TypeAlias = npt.NDArray[np.int32]
"""Pixels as indices of the flat image."""

_OUTSIDE = -1
"""The link of a pixel that is not to be labelled."""

_UNCLEAR = -(1 << 31)
"""The link of a pixel whose way leads to no label, until the flood reaches it."""


@compiled
def ways_down(image: FloatImage, where: Mask, corner: tuple[int, int], levels: int, out: Links) -> None:
    """Write the links of a part of an image.

    Down is up the values: level 0 is where the image is 1 or more, `levels` - 1 where it is 0 or less.

    Parameters
    ----------
    image
        float32.
    where
        bool, shape of the image: pixels that are looked at.
    corner
        (row, column) of the part.
    levels
        Number of levels.
    out
        int32, with a border of one pixel around the part: the index of the neighbour that is lower than the pixel and
        than the other three; its own index where there is none, -1 outside.
    """
    top, left = corner
    height, wide = out.shape[0] - 2, out.shape[1]
    width = wide - 2
    up, own, down = np.empty(wide, dtype=np.int32), np.empty(wide, dtype=np.int32), np.empty(wide, dtype=np.int32)
    for x in range(wide):
        up[x] = own[x] = down[x] = levels
        out[0, x] = out[height + 1, x] = _OUTSIDE
    for y in range(height + 1):
        up, own, down = own, down, up
        if y < height:
            row = top + y
            _write_levels(image[row][left : left + width], where[row][left : left + width], levels, down[1:-1])
        else:
            for x in range(wide):
                down[x] = levels
        if y > 0:
            way = out[y]
            way[0] = way[-1] = _OUTSIDE
            _write_ways(up[1:-1], own, down[1:-1], levels, y * wide + 1, way[1:-1])


@compiled
def _level(value: float, levels: int) -> np.int32:
    """Return the level of a value."""
    none, most = np.float32(0), np.float32(levels - 1)
    level = (np.float32(1) - value) * most
    level = level if level > none else none
    return np.int32(level if level < most else most)


@compiled
def _write_levels(values: FloatImage, where: Mask, levels: int, out: Links) -> None:
    """Write the levels of a row, `levels` outside."""
    outside = np.int32(levels)
    for x in range(len(out)):
        level = _level(values[x], levels)
        out[x] = level if where[x] else outside


@compiled
def _write_ways(up: Links, own: Links, down: Links, levels: int, begin: int, way: Links) -> None:
    """Write the ways of a row, whose own levels have a border, and whose first pixel has the index `begin`."""
    left, middle, right = own[:-2], own[1:-1], own[2:]
    upwards, leftwards, rightwards, downwards = np.int32(-len(own)), np.int32(-1), np.int32(1), np.int32(len(own))
    none, unknown, outside = np.int32(0), np.int32(levels), np.int32(_OUTSIDE)
    for x in range(len(way)):
        first = upwards if up[x] < left[x] else leftwards
        second = rightwards if right[x] < down[x] else downwards
        a = up[x] if up[x] < left[x] else left[x]
        b = right[x] if right[x] < down[x] else down[x]
        tied = ((up[x] == left[x]) & (a < b)) | ((right[x] == down[x]) & (b < a)) | (a == b)
        lower = (a < middle[x]) | (b < middle[x])
        step = first if a < b else second
        step = step if lower & (not tied) else none
        way[x] = np.int32(begin + x + step) if middle[x] != unknown else outside


def claim(links: Links, wanted: Places, image: FloatImage, offset: tuple[int, int], levels: int, room: Places) -> None:
    """Label the wanted pixels as a flood would that rises from the labels that are there (Meyer 1991).

    Over the 4-neighbours, lowest pixels first. A pixel from which the steepest way down leads to a label has that
    label; only where ways end or fork, the flood itself is followed, in raster order where pixels are equally low.
    What is done does not depend on what is wanted.

    Parameters
    ----------
    links
        As :func:`ways_down` returns them, and labels. Written into; -2**31 is what no label reaches.
    wanted
        Pixels, none outside, in raster order.
    image, levels
        As for :func:`ways_down`.
    offset
        Where in the image, (row, column), the links have their corner.
    room
        Room for all pixels.
    """
    flat, wide = links.ravel(), links.shape[1]
    steps = np.array([-wide, -1, 1, wide])
    unclear = np.sort(_without_way(flat, wanted, steps, room))
    if len(unclear):
        rim = np.unique(_labelled_beside(flat, unclear, steps))
        _flood(flat, rim, len(unclear) + len(rim), steps, image, offset, levels)


@compiled
def _without_way(links: Links, wanted: Places, steps: npt.NDArray[np.int64], unclear: Places) -> Places:
    """Label the wanted pixels whose way leads to a label; mark and return all that a flood could come from."""
    n = 0
    for p in wanted:
        if links[p] >= 0 and not _follow(p, links):
            links[p], unclear[n] = _UNCLEAR, p
            n += 1
    i = 0
    while i < n:
        for step in steps:
            q = unclear[i] + step
            if links[q] >= 0 and not _follow(q, links):
                links[q], unclear[n] = _UNCLEAR, q
                n += 1
        i += 1
    return unclear[:n]


@compiled
def _follow(start: int, links: Links) -> bool:
    """Give the pixels of a way down the label at its end; False if there is none."""
    end, link = start, links[start]
    while link >= 0 and link != end:
        end, link = link, links[link]
    if link >= 0 or link == _UNCLEAR:
        return False
    p = start
    while p != end:
        after = links[p]
        links[p] = link
        p = after
    return True


@compiled
def _labelled_beside(links: Links, free: Places, steps: npt.NDArray[np.int64]) -> Places:
    """Return the labelled pixels beside free ones, some more than once."""
    rim = np.empty(4 * len(free), dtype=np.int32)
    n = 0
    for p in free:
        for step in steps:
            if _UNCLEAR < links[p + step] < _OUTSIDE:
                rim[n] = p + step
                n += 1
    return rim[:n].copy()


@compiled
def _flood(
    links: Links,
    rim: Places,
    most: int,
    steps: npt.NDArray[np.int64],
    image: FloatImage,
    offset: tuple[int, int],
    levels: int,
) -> None:
    """Let the labels of a rim grow over the unclear pixels around it, lowest first, then those that were seen first."""
    wide = steps[-1]
    queue, seen = np.empty(most, dtype=np.int64), np.empty(most, dtype=np.int32)
    waiting = n = 0
    for p in rim:
        seen[n] = p
        waiting = _push(queue, waiting, (_level_at(image, offset, p, wide, levels) << 32) + n)
        n += 1
    while waiting > 0:
        p = seen[queue[0] & 0xFFFFFFFF]
        waiting = _pop(queue, waiting)
        for step in steps:
            q = p + step
            if links[q] == _UNCLEAR:
                links[q], seen[n] = links[p], q
                waiting = _push(queue, waiting, (_level_at(image, offset, q, wide, levels) << 32) + n)
                n += 1


@compiled
def _level_at(image: FloatImage, offset: tuple[int, int], p: int, wide: int, levels: int) -> int:
    """Return the level of a pixel of a part with a border."""
    return int(_level(image[offset[0] + p // wide, offset[1] + p % wide], levels))


@compiled
def _push(heap: npt.NDArray[np.int64], n: int, key: int) -> int:
    """Add a key to a heap of n, the least first; return how many there are."""
    i = n
    while i > 0 and heap[(i - 1) // 2] > key:
        heap[i] = heap[(i - 1) // 2]
        i = (i - 1) // 2
    heap[i] = key
    return n + 1


@compiled
def _pop(heap: npt.NDArray[np.int64], n: int) -> int:
    """Take the least key out of a heap of n; return how many there are."""
    n -= 1
    key, i, child = heap[n], 0, 1
    while child < n:
        if child + 1 < n and heap[child + 1] < heap[child]:
            child += 1
        if heap[child] >= key:
            break
        heap[i] = heap[child]
        i, child = child, 2 * child + 1
    heap[i] = key
    return n
