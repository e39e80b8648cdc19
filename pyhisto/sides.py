"""The sides of pixels along which labels begin and end, from which :mod:`pyhisto.polygons` traces outlines.

Only the places where a label begins or ends along a row are taken from the pixels; all else follows from them, so that
the cost beyond one pass over the pixels grows with the length of the outlines and not with the area.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

__all__ = ["Sides", "find_sides", "join_sides"]

FloatArray: TypeAlias = npt.NDArray[np.float64]
IntArray: TypeAlias = npt.NDArray[np.int64]

PIXELS_AT_ONCE = 1 << 20
"""Pixels that are looked at together, so that what comes between stays in the processor's cache."""


@dataclass(frozen=True)
class Sides:
    """Where labels end and where they begin along the rows, each from the top left to the bottom right.

    Attributes
    ----------
    width
        Places in a row: one more than there are pixels.
    ends, starts
        int64 (n,) each: ``row * width + column`` of the pixel corner from which a side goes down one pixel.
    end_labels, start_labels
        int64 (n,) each: the label left of an end, right of a start.
    sums
        float64, those of the ends and then those of the starts: the sum of a map over the pixels left of a side in its
        row. None where no map is summed.
    """

    width: int
    ends: IntArray
    starts: IntArray
    end_labels: IntArray
    start_labels: IntArray
    sums: FloatArray | None = None


def find_sides(
    labels: npt.NDArray[Any], first_row: int = 0, summed: npt.NDArray[np.floating[Any]] | None = None
) -> Sides:
    """Return the sides of the labels, bool or int (H, W), whose top row is `first_row`; 0 is background.

    `summed` (H, W) is the map that :attr:`Sides.sums` is of.

    Raises
    ------
    ValueError
        If a label is negative.
    """
    height, columns = labels.shape
    width = columns + 1
    labels = labels.view(np.uint8) if labels.dtype == np.bool_ else labels
    found: list[tuple[IntArray, ...]] = [(np.empty(0, dtype=np.int64),) * 4]
    rows = max(1, PIXELS_AT_ONCE // width)
    line = np.zeros(1 + min(rows, height) * width, dtype=labels.dtype)  # a background pixel before and behind each row
    for top in range(0, height, rows):
        part = labels[top : top + rows]
        pixels = line[: 1 + len(part) * width]
        pixels[1:].reshape(len(part), width)[:, :-1] = part
        place = np.flatnonzero(pixels[1:] != pixels[:-1])
        left, right = pixels[place].astype(np.int64), pixels[place + 1].astype(np.int64)
        place += (first_row + top) * width
        ends, starts = left != 0, right != 0
        found.append((place[ends], place[starts], left[ends], right[starts]))
    sides = Sides(width, *(np.concatenate(part) for part in zip(*found, strict=True)))
    if min(sides.end_labels.min(initial=0), sides.start_labels.min(initial=0)) < 0:
        raise ValueError("negative labels")
    if summed is None:
        return sides
    left_of = np.zeros((height, width))
    np.cumsum(summed, axis=1, out=left_of[:, 1:])
    return replace(sides, sums=left_of.ravel()[np.concatenate([sides.ends, sides.starts]) - first_row * width])


def join_sides(parts: Sequence[Sides]) -> Sides:
    """Return the sides of the parts of one map, each below the one before; at least one."""
    sums = None
    if all(part.sums is not None for part in parts):
        pairs = [np.split(part.sums, [len(part.ends)]) for part in parts if part.sums is not None]
        sums = np.concatenate([own for ends_and_starts in zip(*pairs, strict=True) for own in ends_and_starts])
    return Sides(
        parts[0].width,
        np.concatenate([part.ends for part in parts]),
        np.concatenate([part.starts for part in parts]),
        np.concatenate([part.end_labels for part in parts]),
        np.concatenate([part.start_labels for part in parts]),
        sums,
    )
