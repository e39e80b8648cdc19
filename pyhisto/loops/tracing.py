"""The loops that trace outlines of labels along the edges of their pixels; see :mod:`pyhisto.contours`."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from pyhisto.loops.compiled import compiled

__all__ = ["trace"]

FloatArray: TypeAlias = npt.NDArray[np.float64]
IntArray: TypeAlias = npt.NDArray[np.int64]


@compiled
def trace(labels: npt.NDArray[Any], n: int) -> tuple[FloatArray, IntArray]:
    """Trace labels 1 to n; see :func:`pyhisto.contours.trace_labels`."""
    runs, offsets = _runs(labels, n)
    mask, corners = _room_for_largest(runs, offsets)
    out = np.empty((4 * len(runs), 2))
    ends = np.zeros(n + 1, dtype=np.int64)
    end = 0
    for k in range(n):
        loop = _outline(runs[offsets[k] : offsets[k + 1]], mask, corners)
        out = _with_room(out, end, len(loop))
        _write_from(_wand_start(loop), loop, 0, 0, out[end:])
        end += len(loop)
        ends[k + 1] = end
    return out[:end], ends


@compiled
def _runs(labels: npt.NDArray[Any], n: int) -> tuple[npt.NDArray[np.int32], IntArray]:
    """Return the runs of labels 1 to n along the rows: row, first column, column after the last, int32 (N, 3).

    Those of label k stand from offsets[k - 1] to offsets[k], row by row.
    """
    found, offsets = _runs_by_row(labels, n)
    for k in range(n):
        offsets[k + 2] += offsets[k + 1]
    runs = np.empty((len(found), 3), dtype=np.int32)
    for i in range(len(found)):
        at = offsets[found[i, 0]]
        runs[at, 0], runs[at, 1], runs[at, 2] = found[i, 1], found[i, 2], found[i, 3]
        offsets[found[i, 0]] += 1
    return runs, offsets[: n + 1]


@compiled
def _runs_by_row(labels: npt.NDArray[Any], n: int) -> tuple[npt.NDArray[np.int32], IntArray]:
    """Return label, row, first column and column after the last of runs, int32 (N, 4), and how many each label has.

    The number of label k stands at k + 1.
    """
    height, width = labels.shape
    found, count = np.empty((4 * width + 8 * height, 4), dtype=np.int32), 0
    several = np.zeros(n + 2, dtype=np.int64)
    changes, ends = np.empty(width, dtype=np.uint8), np.empty(width, dtype=np.int32)
    for y in range(height if width else 0):
        row = labels[y]
        for x in range(1, width):
            changes[x] = row[x] != row[x - 1]
        last = 0
        for x in range(1, width):
            ends[last] = x
            last += changes[x]
        ends[last] = width
        if count + width > len(found):
            larger = np.empty((2 * (count + width), 4), dtype=np.int32)
            larger[:count] = found[:count]
            found = larger
        begin = 0
        for end in ends[: last + 1]:
            label = row[begin]
            if 0 < label <= n:
                found[count, 0], found[count, 1], found[count, 2], found[count, 3] = label, y, begin, end
                several[label + 1] += 1
                count += 1
            begin = end
    return found[:count], several


@compiled
def _box(runs: npt.NDArray[np.int32]) -> tuple[int, int, int, int]:
    """Return the first row and column of runs and those after the last."""
    if len(runs) == 0:
        return 0, 0, 0, 0
    left, right = runs[0, 1], runs[0, 2]
    for i in range(1, len(runs)):
        left, right = min(left, runs[i, 1]), max(right, runs[i, 2])
    return runs[0, 0], left, runs[-1, 0] + 1, right


@compiled
def _room_for_largest(
    runs: npt.NDArray[np.int32], offsets: IntArray
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int32]]:
    """Return room for the mask of any of the labels, and for the corners of all outlines in it."""
    pixels = sides = 0
    for k in range(len(offsets) - 1):
        top, left, bottom, right = _box(runs[offsets[k] : offsets[k + 1]])
        height, width = bottom - top, right - left
        pixels = max(pixels, (height + 2) * (width + 2))
        sides = max(sides, 2 * height * width + height + width)
    return np.empty(pixels, dtype=np.uint8), np.empty((sides, 2), dtype=np.int32)


@compiled
def _with_room(out: FloatArray, end: int, more: int) -> FloatArray:
    """Return an array that holds what stands in `out` up to `end`, with room for more points."""
    if end + more <= len(out):
        return out
    larger = np.empty((2 * (end + more), 2))
    larger[:end] = out[:end]
    return larger


@compiled
def _outline(
    runs: npt.NDArray[np.int32], mask: npt.NDArray[np.uint8], corners: npt.NDArray[np.int32]
) -> npt.NDArray[np.int32]:
    """Return the corners of the longest loop around the pixels of some runs, int32 (N, 2), clockwise."""
    if _one_a_row(runs):
        return corners[: _around(runs, corners)]
    top, left, bottom, right = _box(runs)
    width = right - left + 2
    size = (bottom - top + 2) * width
    mask[:size] = 0
    for i in range(len(runs)):
        at = (runs[i, 0] - top + 1) * width + 1 - left
        mask[at + runs[i, 1] : at + runs[i, 2]] = 1
    begin, longest, end = 0, 0, 0
    for pixel in range(width, size):
        if mask[pixel] == 1 and mask[pixel - width] == 0:  # an upper side that was not walked
            stop = _walk(mask, width, pixel, left - 1, top - 1, corners, end)
            if stop - end > longest:
                begin, longest = end, stop - end
            end = stop
    return corners[begin : begin + longest]


@compiled
def _one_a_row(runs: npt.NDArray[np.int32]) -> bool:
    """Return whether there is one run in each row, and each touches the next: most regions are like this."""
    for i in range(1, len(runs)):
        if runs[i, 0] != runs[i - 1, 0] + 1 or runs[i, 1] >= runs[i - 1, 2] or runs[i, 2] <= runs[i - 1, 1]:
            return False
    return len(runs) > 0


@compiled
def _around(runs: npt.NDArray[np.int32], corners: npt.NDArray[np.int32]) -> int:
    """Write the corners of a region with one run in each row, clockwise; return their number."""
    last = len(runs) - 1
    end = _across(runs[0, 0], runs[0, 1], runs[0, 2], corners, 0)
    for i in range(last + 1):
        corners[end, 0], corners[end, 1] = runs[i, 2], runs[i, 0]
        end = _across(runs[i, 0] + 1, runs[i, 2], runs[i + 1, 2] if i < last else runs[i, 1], corners, end + 1)
    for i in range(last, -1, -1):
        corners[end, 0], corners[end, 1] = runs[i, 1], runs[i, 0] + 1
        end = _across(runs[i, 0], runs[i, 1], runs[i - 1, 1] if i > 0 else runs[i, 1], corners, end + 1)
    return end


@compiled
def _across(y: int, begin: int, stop: int, corners: npt.NDArray[np.int32], end: int) -> int:
    """Write the corners from one column to another but the last; return where the writing ended."""
    step = 1 if begin < stop else -1
    while begin != stop:
        corners[end, 0], corners[end, 1] = begin, y
        begin += step
        end += 1
    return end


@compiled
def _walk(
    mask: npt.NDArray[np.uint8],
    width: int,
    start: int,
    left: int,
    top: int,
    corners: npt.NDArray[np.int32],
    end: int,
) -> int:
    """Walk clockwise around a region from the upper side of a pixel; write the first corner of each side.

    What was walked of the upper sides is marked in the mask. Returns where the writing ended.
    """
    pixel, side = start, 0
    x, y = left + start % width, top + start // width
    along, down = 1, 0  # the direction of the side: right, down, left, up
    ahead, outwards = 1, -width  # steps in the image along the side, and to what lies beyond it
    while True:
        corners[end, 0], corners[end, 1] = x, y
        end += 1
        mask[pixel] |= (side == 0) << 1
        x += along
        y += down
        front = pixel + ahead
        diagonal = front + outwards
        # both are read before it is known which one counts: which way it turns cannot be guessed
        outside = mask[front] == 0
        straight = mask[diagonal] == 0
        pixel = pixel if outside else (front if straight else diagonal)
        if outside:
            side, along, down, ahead, outwards = side + 1, -down, along, -outwards, ahead
        elif not straight:
            side, along, down, ahead, outwards = side - 1, down, -along, outwards, -ahead
        side &= 3
        if pixel == start and side == 0:
            return end


@compiled
def _write_from(start: int, loop: npt.NDArray[np.int32], left: int, top: int, out: FloatArray) -> None:
    """Write the corners of a loop, from one of them on, relative to a point."""
    count = len(loop)
    for i in range(start, count):
        out[i - start, 0], out[i - start, 1] = loop[i, 0] - left, loop[i, 1] - top
    for i in range(start):
        out[i + count - start, 0], out[i + count - start, 1] = loop[i, 0] - left, loop[i, 1] - top


@compiled
def _wand_start(loop: npt.NDArray[np.int32]) -> int:
    """Return where ImageJ's wand starts a loop: at the first corner after its first downward side."""
    count = len(loop)
    down = False
    for i in range(count):
        after = i + 1 if i + 1 < count else 0
        before = i - 1 if i > 0 else count - 1
        along = loop[after, 0] - loop[i, 0]
        if down and along != loop[i, 0] - loop[before, 0]:
            return i
        down = down or loop[after, 1] > loop[i, 1]
    return 0
