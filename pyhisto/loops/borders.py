"""The loops that find where between pixels nuclei and cells end; see :mod:`pyhisto.nuclei.borders`.

Outlines come traced along the edges of pixels, clockwise on screen, and each side between two corners separates a pixel
of the region, on its right hand, from one outside. What is returned is a place for each side, so that the least change
of an image moves an outline as little, even where a pixel comes or goes. Places are relative to the first corner of
their outline: no digit depends on where it lies.
"""

from __future__ import annotations

import math
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from pyhisto.loops.compiled import compiled

__all__ = ["grown_borders", "stain_borders"]

FloatArray: TypeAlias = npt.NDArray[np.float64]
FloatImage: TypeAlias = npt.NDArray[np.float32]
IntArray: TypeAlias = npt.NDArray[np.int64]
Labels: TypeAlias = npt.NDArray[Any]
Steps: TypeAlias = npt.NDArray[np.int32]

_OD_PER_PX = 0.1
"""What a pixel of distance counts as, where an outline changes over from the stain to a greatest or least distance."""

_STEPS = 1 << 15
"""Into how many steps the greatest distance is divided at most: the sum of two squares fits into 31 bits."""

_GAP_PX = 0.5
"""How far cells that meet stay from the line between them."""

_MOST_PX = 1.5
"""How far a side of a pixel can be from where a cell ends."""

_RIVALS = 32
"""How many neighbours of a cell are looked at."""

_LEAST_TURN = 0.2
"""What the directions away from two nuclei must differ by to say where the line between them is."""


@compiled
def stain_borders(
    xy: FloatArray,
    offsets: IntArray,
    labels: Labels,
    offset: tuple[int, int],
    dark: FloatImage,
    compact: FloatImage,
    nuclei: FloatArray,
    radii: tuple[float, float],
) -> tuple[FloatArray, FloatArray]:
    """Return where nuclei end between the pixels of their sides.

    Parameters
    ----------
    xy, offsets
        Traced outlines of labels 1 to n.
    labels
        The image they were traced in.
    offset
        (row, column) of that image in the following ones.
    dark
        A nucleus ends where the darkness falls to that of its edge, after an opening by a 3 x 3 cross.
    compact
        It ends where this is least between it and another.
    nuclei
        (row, column, darkness of the edge), float64 (n, 3), in the frame of the darkness.
    radii
        How far a nucleus reaches at least and at most from there, px.

    Returns
    -------
    tuple
        (x, y) relative to the first corner of the outline, float64 (N, 2), and those corners, float64 (n, 2).
    """
    n = len(offsets) - 1
    out, first = np.empty_like(xy), np.zeros((n, 2))
    room = np.empty(0, dtype=np.float32)
    for k in range(n):
        begin, end = offsets[k], offsets[k + 1]
        if begin == end:
            continue
        first[k, 0], first[k, 1] = xy[begin, 0], xy[begin, 1]
        top, left, height, width = _window(xy[begin:end])
        size = 3 * height * width
        if len(room) < size:
            room = np.empty(2 * size, dtype=np.float32)
        levels = room[:size].reshape((3, height, width))
        _draw_levels(labels, k + 1, (top, left), offset, dark, nuclei[k], radii, levels[:2])
        _open(levels[0], levels[1], levels[2])
        level = levels[0]
        for i in range(begin, end):
            x, y, along, down = _side(xy[begin:end], i - begin)
            inner = max(level[y - top, x - left], 0.0)
            outer = min(level[y - top - along, x - left + down], 0.0)
            t = inner / (inner - outer) if inner > outer else 0.5
            over, beside = y + offset[0] - along, x + offset[1] + down
            if 0 <= over < compact.shape[0] and 0 <= beside < compact.shape[1]:
                t = min(t, _least_between(compact, y + offset[0], x + offset[1], (-along, down)))
            else:
                t = 0.5
            out[i, 0] = x - first[k, 0] + 0.5 + t * down
            out[i, 1] = y - first[k, 1] + 0.5 - t * along
    return out, first


@compiled
def _side(ring: FloatArray, i: int) -> tuple[int, int, int, int]:
    """Return the pixel (x, y) inside a side of a traced ring, and the direction (x, y) of the side.

    The pixel beyond it is (x + down, y - along).
    """
    after = i + 1 if i + 1 < len(ring) else 0
    along, down = int(ring[after, 0] - ring[i, 0]), int(ring[after, 1] - ring[i, 1])
    x, y = math.floor(ring[i, 0] + (along - down) / 2), math.floor(ring[i, 1] + (along + down) / 2)
    return x, y, along, down


@compiled
def _box(ring: FloatArray) -> tuple[float, float, float, float]:
    """Return left, top, right and bottom of a ring."""
    left, top, right, bottom = ring[0, 0], ring[0, 1], ring[0, 0], ring[0, 1]
    for i in range(1, len(ring)):
        left, right = min(left, ring[i, 0]), max(right, ring[i, 0])
        top, bottom = min(top, ring[i, 1]), max(bottom, ring[i, 1])
    return left, top, right, bottom


@compiled
def _window(ring: FloatArray) -> tuple[int, int, int, int]:
    """Return top, left, height and width of the pixels that say how the sides of a ring are placed."""
    left, top, right, bottom = _box(ring)
    more = 3  # the pixel beyond a side, and what an opening looks at around that
    return int(top) - more, int(left) - more, int(bottom - top) + 2 * more, int(right - left) + 2 * more


@compiled
def _draw_levels(
    labels: Labels,
    label: int,
    corner: tuple[int, int],
    offset: tuple[int, int],
    dark: FloatImage,
    nucleus: FloatArray,
    radii: tuple[float, float],
    levels: FloatImage,
) -> None:
    """Write how much darker than the edge of a nucleus the pixels of a window are, and how much by their core alone.

    Distances count as darkness: inside the core as more than there is, beyond the greatest as less. What has the label
    is not paler than the edge, what has another one not darker. Beyond the images pixels are as the nearest in them.
    """
    height, width = levels.shape[1:]
    scale, least, most = np.float32(_OD_PER_PX), np.float32(radii[0]), np.float32(radii[1])
    none, edge = np.float32(0), np.float32(nucleus[2])
    last, farthest = labels.shape[1] - 1, dark.shape[1] - 1
    for row in range(height):
        values, core = levels[0, row], levels[1, row]
        y, left = corner[0] + row, corner[1]
        own, seen = labels[min(max(y, 0), labels.shape[0] - 1)], dark[min(max(y + offset[0], 0), dark.shape[0] - 1)]
        down, begin = np.float32(y + offset[0] - nucleus[0]), left + offset[1] - nucleus[1]
        for x in range(width):
            along = np.float32(begin + x)
            core[x] = np.sqrt(down * down + along * along)
        for x in range(width):
            values[x] = min(seen[min(max(left + offset[1] + x, 0), farthest)] - edge, scale * (most - core[x]))
        for x in range(width):
            core[x] = scale * (least - core[x])
            value = max(values[x], core[x])
            its = own[min(max(left + x, 0), last)]
            values[x] = max(value, none) if its == label else value if its == 0 else min(value, none)


@compiled
def _open(level: FloatImage, core: FloatImage, eroded: FloatImage) -> None:
    """Open an image by a 3 x 3 cross but for its rim, and put it no lower than its core; `eroded` is room for it."""
    height, width = level.shape
    for y in range(1, height - 1):
        up, own, down, out = level[y - 1], level[y], level[y + 1], eroded[y]
        for x in range(1, width - 1):
            out[x] = min(min(min(up[x], down[x]), min(own[x - 1], own[x + 1])), own[x])
    for y in range(2, height - 2):
        up, own, down, out, least = eroded[y - 1], eroded[y], eroded[y + 1], level[y], core[y]
        for x in range(2, width - 2):
            most = max(max(max(up[x], down[x]), max(own[x - 1], own[x + 1])), own[x])
            out[x] = max(most, least[x])


@compiled
def _least_between(image: FloatImage, y: int, x: int, step: tuple[int, int]) -> float:
    """Return where from a pixel, 0, to its neighbour, 1, the parabola through the lower one has its least value."""
    before, after = (y - step[0], x - step[1]), (y + 2 * step[0], x + 2 * step[1])
    own, other = float(image[y, x]), float(image[y + step[0], x + step[1]])
    if own <= other:
        if not (0 <= before[0] < image.shape[0] and 0 <= before[1] < image.shape[1]):
            return 0.5
        return max(_lowest(float(image[before]), own, other), 0.0)
    if not (0 <= after[0] < image.shape[0] and 0 <= after[1] < image.shape[1]):
        return 0.5
    return min(1 + _lowest(own, other, float(image[after])), 1.0)


@compiled
def _lowest(before: float, middle: float, after: float) -> float:
    """Return where between -0.5 and 0.5 the parabola through three values is lowest, the side of the lowest if none."""
    bend = before - 2 * middle + after
    if bend <= 0:
        return 0.5 if after < before else -0.5
    return min(max((before - after) / (2 * bend), -0.5), 0.5)


@compiled
def grown_borders(
    xy: FloatArray,
    offsets: IntArray,
    cells: Labels,
    nuclei: Labels,
    places: FloatArray,
    ends: IntArray,
    corners: FloatArray,
    radii: tuple[float, float],
) -> tuple[FloatArray, FloatArray]:
    """Return where cells end that grew from nuclei until they met.

    Each side is moved along the way from the nearest place of its nucleus to where a cell has grown far enough, or to
    half a pixel from where another nucleus is as near.

    Parameters
    ----------
    xy, offsets
        Traced outlines of cells 1 to n.
    cells, nuclei
        Labels of both, (H, W).
    places, ends, corners
        Outlines of at least n nuclei, and of all that have a cell beside those, relative to their corners.
    radii
        How far a nucleus reaches at most from its position, and how far it grows, px.

    Returns
    -------
    tuple
        As :func:`stain_borders` returns it.
    """
    n, radius = len(offsets) - 1, radii[1]
    out, first = np.empty_like(xy), np.zeros((n, 2))
    scale = 2.0 ** math.floor(math.log2(_STEPS / (2 * (radii[0] + radius) + 8)))
    xs, ys = _in_steps(places, scale)
    disks = _disks_around(places, ends, corners)
    core, (high, wide) = nuclei.ravel(), cells.shape
    rivals = np.empty(_RIVALS, dtype=np.int64)
    for k in range(n):
        begin, end = offsets[k], offsets[k + 1]
        several = _labels_around(cells, xy[begin:end], k + 1, rivals)
        for i in range(begin, end):
            column, row, along, down = _side(xy[begin:end], i - begin)
            x, y = xy[i, 0] + along / 2, xy[i, 1] + down / 2
            out[i, 0], out[i, 1] = x - xy[begin, 0], y - xy[begin, 1]
            if not (0 <= row - along < high and 0 <= column + down < wide):
                continue  # the image ends here
            to_x, to_y = x - corners[k, 0], y - corners[k, 1]
            j = _nearest(xs, ys, ends[k], ends[k + 1], np.int32(to_x * scale), np.int32(to_y * scale))
            to_x, to_y = places[j, 0] - to_x, places[j, 1] - to_y
            if core[row * wide + column] != k + 1:
                own = max(math.sqrt(to_x * to_x + to_y * to_y), 1e-9)
                away_x, away_y = -to_x / own, -to_y / own
                most, to_x, to_y = radius - own, away_x, away_y
                for its in rivals[:several]:
                    its_x, its_y = x - disks[its, 0], y - disks[its, 1]
                    least = 2 * (most + _GAP_PX) + own + disks[its, 2]
                    if least > 0 and its_x * its_x + its_y * its_y < least * least:  # else it has more room
                        its_x, its_y = x - corners[its, 0], y - corners[its, 1]
                        j = _nearest(xs, ys, ends[its], ends[its + 1], np.int32(its_x * scale), np.int32(its_y * scale))
                        room, turn_x, turn_y = _room(own, away_x, away_y, its_x - places[j, 0], its_y - places[j, 1])
                        if room < most:
                            most, to_x, to_y = room, turn_x, turn_y
                most = min(max(most, -_MOST_PX), _MOST_PX)
                to_x, to_y = most * to_x, most * to_y
            out[i, 0] += to_x
            out[i, 1] += to_y
        if end > begin:
            first[k, 0], first[k, 1] = xy[begin, 0], xy[begin, 1]
    return out, first


@compiled
def _disks_around(places: FloatArray, ends: IntArray, corners: FloatArray) -> FloatArray:
    """Return a disk around each outline: x, y and radius, float64 (n, 3)."""
    out = np.zeros((len(ends) - 1, 3))
    for k in range(len(out)):
        ring = places[ends[k] : ends[k + 1]]
        if len(ring) == 0:
            continue
        left, top, right, bottom = _box(ring)
        x, y, square = (left + right) / 2, (top + bottom) / 2, 0.0
        for i in range(len(ring)):
            square = max(square, (ring[i, 0] - x) ** 2 + (ring[i, 1] - y) ** 2)
        out[k, 0], out[k, 1], out[k, 2] = corners[k, 0] + x, corners[k, 1] + y, math.sqrt(square)
    return out


@compiled
def _in_steps(places: FloatArray, scale: float) -> tuple[Steps, Steps]:
    """Return x and y of places as whole numbers, int32 (N,) each."""
    xs, ys = np.empty(len(places), dtype=np.int32), np.empty(len(places), dtype=np.int32)
    for i in range(len(places)):
        xs[i], ys[i] = round(places[i, 0] * scale), round(places[i, 1] * scale)
    return xs, ys


@compiled
def _room(own: float, away_x: float, away_y: float, its_x: float, its_y: float) -> tuple[float, float, float]:
    """Return how far a place is from where a cell ends that meets another, and the direction (x, y) there.

    The place is `own` px away from the nucleus, in a direction, and (`its_x`, `its_y`) from the other one.
    """
    its = max(math.sqrt(its_x * its_x + its_y * its_y), 1e-9)
    turn_x, turn_y = away_x - its_x / its, away_y - its_y / its
    turn = max(math.sqrt(turn_x * turn_x + turn_y * turn_y), _LEAST_TURN)
    return (its - own) / turn - _GAP_PX, turn_x / turn, turn_y / turn


@compiled
def _labels_around(labels: Labels, ring: FloatArray, own: int, found: IntArray) -> int:
    """Write which outlines lie at most a pixel beyond the sides of a ring, but its own; return how many there are."""
    high, wide = labels.shape
    n, last = 0, 0
    for i in range(len(ring)):
        column, row, along, down = _side(ring, i)
        for beyond in (1, 2):
            over, beside = row - beyond * along, column + beyond * down
            inside = 0 <= over < high and 0 <= beside < wide
            label = int(labels[over, beside]) if inside else 0
            if label not in (0, own, last):
                last, new = label, n < len(found)
                for known in range(n):
                    new &= found[known] != label - 1
                if new:
                    found[n] = label - 1
                    n += 1
    return n


@compiled
def _nearest(xs: Steps, ys: Steps, begin: int, end: int, along: np.int32, down: np.int32) -> int:
    """Return which of the places from `begin` to before `end` is nearest to one, the last of several."""
    own_xs, own_ys = xs[begin:end], ys[begin:end]
    least, last = np.int32(0x7FFFFFFF), np.int32(0)
    for i in range(len(own_xs)):
        least = min(least, _square(np.int32(own_xs[i] - along), np.int32(own_ys[i] - down)))
    for i in range(len(own_xs)):  # no branch, so that several are looked at together
        found = _square(np.int32(own_xs[i] - along), np.int32(own_ys[i] - down)) == least
        last = max(last, np.int32(i) if found else np.int32(0))
    return int(begin + last)


@compiled
def _square(x: np.int32, y: np.int32) -> np.int32:
    return np.int32(np.int32(x * x) + np.int32(y * y))
