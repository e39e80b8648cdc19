"""The loops over pixels that turn class probabilities into nuclei; see :mod:`pyhisto.nuclei.labelling`."""

from __future__ import annotations

import math
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from pyhisto.loops.compiled import compiled

__all__ = [
    "chosen",
    "compacted",
    "disks",
    "find_peaks",
    "is_even",
    "make_whole",
    "open_labels",
    "separate",
    "stained_part",
    "vertices",
    "votes",
]

FloatImage: TypeAlias = npt.NDArray[np.float32]
Labels: TypeAlias = npt.NDArray[np.int32]
Mask: TypeAlias = npt.NDArray[np.bool_]
Places: TypeAlias = npt.NDArray[np.int32]
"""Pixels as indices of the flat image, in raster order."""

Table: TypeAlias = npt.NDArray[np.float64]

_GROUND, _PART, _CORE, _AROUND, _WALL = 0, 1, 2, 3, 4
"""Pixels of the window of one label: other, of the label, of a part with core, connected to the outside, its rim."""


@compiled
def separate(rgb: npt.NDArray[np.uint8], tables: Table, out: FloatImage) -> None:
    """Write sums of a value for red, green and blue, float32 (k, H, W), by tables float64 (k, 3, 256)."""
    height, width = rgb.shape[:2]
    for k in range(len(tables)):
        table = tables[k]
        for y in range(height):
            for x in range(width):
                out[k, y, x] = table[0, rgb[y, x, 0]] + table[1, rgb[y, x, 1]] + table[2, rgb[y, x, 2]]


@compiled
def is_even(image: FloatImage) -> bool:
    """Return whether all pixels are equal, or there are none."""
    values = image.ravel()
    i = 1
    while i < len(values) and values[i] == values[0]:
        i += 1
    return i >= len(values)


@compiled
def find_peaks(image: FloatImage, distance: int, threshold: float) -> npt.NDArray[np.int64]:
    """Return (row, column) of the pixels above a threshold that nothing within `distance` (rows, columns) exceeds.

    int64 (n, 2) in raster order. Of equals nearer to each other than `distance` the first one is taken.
    """
    height, width = image.shape
    found = np.empty((height * width // 4 + 4, 2), dtype=np.int64)
    high = np.zeros((width + 7) // 8 * 8, dtype=np.bool_)
    eights = high.view(np.uint64)
    least = np.float32(threshold)
    n = 0
    for y in range(height):
        row, above, below = image[y], image[max(y - 1, 0)], image[min(y + 1, height - 1)]
        for x in range(width):  # few pixels are as high as those above and below
            high[x] = (row[x] > least) & (row[x] >= above[x]) & (row[x] >= below[x])
        for eight in range(len(eights)):
            if eights[eight] != 0:
                for x in range(8 * eight, min(8 * eight + 8, width)):
                    if high[x] and _is_highest(image, y, x, distance) and n < len(found):
                        n = _with_lone(found, n, y, x, distance)
    return found[:n].copy()


@compiled
def _with_lone(found: npt.NDArray[np.int64], n: int, y: int, x: int, distance: int) -> int:
    """Write a peak down if none before it is near; return how many there are."""
    back = n - 1
    while back >= 0 and y - found[back, 0] < distance:
        if abs(found[back, 1] - x) < distance:
            return n
        back -= 1
    found[n, 0], found[n, 1] = y, x
    return n + 1


@compiled
def _is_highest(image: FloatImage, y: int, x: int, distance: int) -> bool:
    height, width = image.shape
    value = image[y, x]
    for reach in (1, distance):  # most pixels fail at a neighbour
        for row in range(max(0, y - reach), min(height, y + reach + 1)):
            for column in range(max(0, x - reach), min(width, x + reach + 1)):
                if image[row, column] > value:
                    return False
    return True


@compiled
def vertices(image: FloatImage, peaks: npt.NDArray[np.int64]) -> Table:
    """Return where between pixels peaks are highest, (row, column), float64 (n, 2).

    Along each axis that is the vertex of the parabola through a peak and its two neighbours; at the edge of the image
    the peak itself. Multiples of 1 / 1024 px, so that distances do not depend on where the image was cut.
    """
    height, width = image.shape
    out = np.empty((len(peaks), 2))
    for i in range(len(peaks)):
        y, x = peaks[i]
        out[i, 0], out[i, 1] = y, x
        if 0 < y < height - 1:
            out[i, 0] += _vertex(image[y - 1, x], image[y, x], image[y + 1, x])
        if 0 < x < width - 1:
            out[i, 1] += _vertex(image[y, x - 1], image[y, x], image[y, x + 1])
    return out


@compiled
def _vertex(before: float, middle: float, after: float) -> float:
    """Return where between -0.5 and 0.5 three values, the middle one the greatest, are highest."""
    bend = float(before) - 2 * float(middle) + float(after)
    return 0.0 if bend >= 0 else round(512 * (float(before) - float(after)) / bend) / 1024


@compiled
def disks(positions: Table, radius: float, out: Mask) -> None:
    """Write which pixels are no farther than `radius` px from a position (row, column)."""
    height, width = out.shape
    out[:] = False
    for i in range(len(positions)):
        y, x = positions[i]
        for row in range(max(0, math.ceil(y - radius)), min(height, math.floor(y + radius) + 1)):
            along, line = math.sqrt(max(0.0, radius * radius - (row - y) * (row - y))), out[row]
            line[max(0, math.ceil(x - along)) : max(0, min(width, math.floor(x + along) + 1))] = True


@compiled
def compacted(
    image: FloatImage,
    positions: Table,
    radius: float,
    slope: float,
    within: Mask,
    out: FloatImage,
    beyond: npt.NDArray[np.uint8],
) -> None:
    """Write an image of values up to 1 that falls by `slope` more for each px from the nearest position.

    Parameters
    ----------
    image
        float32 (H, W).
    positions
        (row, column), float64 (n, 2), multiples of a power of two, so that no distance depends on the frame.
    radius, slope
        px, and 1 / px.
    within
        Of the shape of the image; becomes which pixels are no farther than `radius` from a position.
    out
        The same; becomes the image there, 0 elsewhere. It is from 0 to 1 where the values are.
    beyond
        The same; becomes how much of a pixel is farther, from 0 to 255.
    """
    height, width = image.shape
    far, reach = np.float32(np.inf), radius + 0.5
    out[:] = far
    for i in range(len(positions)):
        y, x = positions[i]
        for row in range(max(0, math.ceil(y - reach)), min(height, math.floor(y + reach) + 1)):
            square, line = (row - y) * (row - y), out[row]
            along = math.sqrt(max(0.0, reach * reach - square))
            for column in range(max(0, math.ceil(x - along)), min(width, math.floor(x + along) + 1)):
                distance = np.float32(square + (column - x) * (column - x))
                line[column] = distance if distance < line[column] else line[column]
    none, one, steep = np.float32(0), np.float32(1), np.float32(slope)
    scale, end, share = np.float32(1 / (1 + slope * radius)), np.float32(radius), np.float32(255)
    for y in range(height):
        values, line, inside, free = image[y], out[y], within[y], beyond[y]
        for x in range(width):
            distance = np.sqrt(line[x])
            inside[x] = distance <= end
            line[x] = one - (one - values[x] + steep * distance) * scale if inside[x] else none
            rest = (distance - end) * share + np.float32(127.5)
            free[x] = np.uint8(min(max(rest, none), share))


@compiled
def chosen(core: Mask, where: Mask, dark: FloatImage, offset: tuple[int, int], least: float, found: Places) -> Places:
    """Return the pixels that are in a core, or anywhere they may be and no paler than a value, in raster order.

    The cores, bool (H, W), whose border is none, have their corner at `offset`, (row, column), of the other two.
    `found` is room for all pixels, the first of which are returned.
    """
    height, width = core.shape
    top, left = offset
    here = np.zeros((width + 7) // 8 * 8, dtype=np.bool_)
    eights = here.view(np.uint64)
    level = np.float32(least)
    n = 0
    for y in range(1, height - 1):
        begin, end = left + 1, left + width - 1
        values, inside = dark[top + y][begin:end], where[top + y][begin:end]
        inner, taken = core[y][1:-1], here[1 : width - 1]
        for x in range(width - 2):
            taken[x] = inner[x] | (inside[x] & (values[x] >= level))
        for eight in range(len(eights)):
            if eights[eight] != 0:
                for x in range(8 * eight, min(8 * eight + 8, width)):
                    found[n] = y * width + x
                    n += here[x]
    return found[:n]


@compiled
def stained_part(
    links: Labels,
    core: Mask,
    places: Places,
    dark: FloatImage,
    offset: tuple[int, int],
    nuclei: Table,
    reach: float,
    out: Labels,
) -> None:
    """Write the labels of those of some places that are in a core or darker than the edge of theirs, 0 elsewhere.

    `nuclei` has row, column and darkness of the edge of each label, float64 (n, 3); none has pixels farther from there
    than `reach` px. The links, see :mod:`pyhisto.loops.basins`, have their corner at `offset`, (row, column), of the
    darkness and the nuclei.
    """
    wide, n, square = links.shape[1], len(nuclei), reach * reach
    out[:] = 0
    own, inner, mine = links.ravel(), core.ravel(), out.ravel()
    y, begin = offset[0], 0
    for p in places:
        while p >= begin + wide:
            y, begin = y + 1, begin + wide
        label, x = -2 - own[p], p - begin + offset[1]
        if label < n:  # else no label reaches it
            down, along = y - nuclei[label, 0], x - nuclei[label, 1]
            near = down * down + along * along <= square
            mine[p] = label + 1 if near & (inner[p] | (dark[y, x] > nuclei[label, 2])) else 0


@compiled
def open_labels(labels: Labels, core: Mask, inner: Mask) -> None:
    """Open each label for itself with a 3 x 3 cross; cores stay. The border of the image is 0, and does not erode.

    `inner` is room for what the erosion leaves.
    """
    height, width = labels.shape
    _erode(labels, inner)
    lost = np.zeros((width + 7) // 8 * 8, dtype=np.bool_)
    eights, gone = lost.view(np.uint64), lost[1 : width - 1]
    for y in range(1, height - 1):
        row, own, middle = labels[y], labels[y][1:-1], core[y][1:-1]
        up, down, here = inner[y - 1][1:-1], inner[y + 1][1:-1], inner[y][1:-1]
        left, right = inner[y][:-2], inner[y][2:]
        for x in range(width - 2):
            gone[x] = not (middle[x] | here[x] | up[x] | down[x] | left[x] | right[x])
        for x in range(width - 2):
            gone[x] &= own[x] != 0
        for eight in range(len(eights)):
            if eights[eight] != 0:  # few pixels go
                for x in range(8 * eight, min(8 * eight + 8, width)):
                    row[x] = 0 if lost[x] else row[x]


@compiled
def _erode(labels: Labels, out: Mask) -> None:
    """Write which labelled pixels have four neighbours of the same label, or of the border."""
    height, width = labels.shape
    alike = np.ones(width, dtype=np.bool_)
    out[:] = False
    for y in range(1, height - 1):
        own, here = labels[y][1:-1], out[y][1:-1]
        up, down = labels[max(y - 1, 1)][1:-1], labels[min(y + 1, height - 2)][1:-1]
        behind, same = own[1:], alike[1:-2]
        for x in range(width - 3):
            same[x] = own[x] == behind[x]
        for x in range(width - 2):
            here[x] = (own[x] != 0) & (up[x] == own[x]) & (down[x] == own[x])
        left, right = alike[:-2], alike[1:-1]
        for x in range(width - 2):
            here[x] &= left[x] & right[x]


@compiled
def make_whole(labels: Labels, core: Mask, n: int) -> None:
    """Keep of each label the 4-connected parts that hold some of its core, and fill their holes.

    A hole belongs to the lowest of the labels around it.
    """
    boxes, plain = _boxes(labels, core, n)
    window = np.empty(0, dtype=np.uint8)
    for label in range(1, n + 1):
        top, left, bottom, right = boxes[label]
        if plain[label] or bottom < top:
            continue
        wide = right - left + 5
        size = wide * (bottom - top + 5)
        if len(window) < size:
            window, stack = np.empty(2 * size, dtype=np.uint8), np.empty(2 * size, dtype=np.int64)
        _draw(window, labels, core, boxes[label], label)
        _connect(window, stack, wide, size, _PART, _CORE)
        window[wide + 1] = _AROUND
        _connect(window, stack, wide, size, _GROUND, _AROUND)
        for y in range(top, bottom + 1):
            for x in range(left, right + 1):
                inside = window[(y - top + 2) * wide + x - left + 2] != _AROUND
                if inside and (labels[y, x] == 0 or labels[y, x] > label):
                    labels[y, x] = label
                elif not inside and labels[y, x] == label:
                    labels[y, x] = 0


@compiled
def _boxes(labels: Labels, core: Mask, n: int) -> tuple[npt.NDArray[np.int64], Mask]:
    """Return the boxes of labels 1 to n, and which are connected, without holes and with a core at first sight.

    int64 (n + 1, 4): top, left, bottom and right; bottom above top where there is none. bool (n + 1,): a label has one
    run of pixels in each row, beside the one above.
    """
    box = np.empty((n + 1, 4), dtype=np.int64)
    for label in range(n + 1):
        box[label, 0], box[label, 1], box[label, 2], box[label, 3] = labels.shape[0], labels.shape[1], -1, -1
    plain, cored = np.ones(n + 1, dtype=np.bool_), np.zeros(n + 1, dtype=np.bool_)
    last = np.zeros((n + 1, 2), dtype=np.int64)
    ends = np.empty(labels.shape[1], dtype=np.int32)
    for y in range(labels.shape[0]):
        row, middle = labels[y], core[y]
        begin = 0
        for end in ends[: _run_ends(row, ends)]:
            label = row[begin]
            if label != 0:
                mine, above = box[label], last[label]
                if mine[2] < 0:
                    mine[0] = y
                elif mine[2] != y - 1 or above[0] >= end or above[1] <= begin:
                    plain[label] = False
                mine[1], mine[2], mine[3] = min(mine[1], begin), y, max(mine[3], end - 1)
                above[0], above[1] = begin, end
                at = begin
                while not cored[label] and at < end:
                    cored[label] = middle[at]
                    at += 1
            begin = end
    return box, plain & cored


@compiled
def _run_ends(row: Labels, ends: Places) -> int:
    """Write behind which pixels of a row runs of the same label end; return how many there are."""
    n = 0
    for x in range(1, len(row)):
        ends[n] = x
        n += row[x] != row[x - 1]
    ends[n] = len(row)
    return n + 1


@compiled
def _draw(window: npt.NDArray[np.uint8], labels: Labels, core: Mask, box: npt.NDArray[np.int64], label: int) -> None:
    """Draw one label into a window with a ring of ground and a ring of wall around its box."""
    top, left, bottom, right = box
    wide = right - left + 5
    tall = bottom - top + 5
    for row in range(tall):
        for column in range(wide):
            rim = row == 0 or row == tall - 1 or column == 0 or column == wide - 1
            window[row * wide + column] = _WALL if rim else _GROUND
    for y in range(top, bottom + 1):
        at = (y - top + 2) * wide - left + 2
        for x in range(left, right + 1):
            if labels[y, x] == label:
                window[at + x] = _CORE if core[y, x] else _PART


@compiled
def _connect(
    window: npt.NDArray[np.uint8], stack: npt.NDArray[np.int64], wide: int, size: int, old: int, new: int
) -> None:
    """Make `new` of the `old` pixels that are 4-connected to new ones; what is connected to nothing becomes ground."""
    depth = 0
    for p in range(size):
        if window[p] == new:
            stack[depth] = p
            depth += 1
    while depth > 0:
        depth -= 1
        p = stack[depth]
        for q in (p - wide, p - 1, p + 1, p + wide):
            if window[q] == old:
                window[q] = new
                stack[depth] = q
                depth += 1
    if old == _PART:
        for p in range(size):
            if window[p] == old:
                window[p] = _GROUND


@compiled
def votes(probability: FloatImage, labels: Labels, n: int) -> Table:
    """Return the share of each class in each nucleus, float64 (n, classes), by its summed probabilities."""
    classes = len(probability) // 2
    out = np.zeros((n, classes))
    ends = np.empty(labels.shape[1], dtype=np.int32)
    for y in range(labels.shape[0] if labels.size else 0):
        row = labels[y]
        runs = _run_ends(row, ends)
        for k in range(classes):
            nucleus, membrane = probability[1 + 2 * k, y], probability[2 + 2 * k, y]
            begin = 0
            for end in ends[:runs]:
                label = row[begin]
                if 0 < label <= n:
                    total = 0.0
                    for at in range(begin, end):
                        total += nucleus[at] + membrane[at]
                    out[label - 1, k] += total
                begin = end
    for i in range(n):
        total = out[i].sum()
        if total > 0:
            out[i] /= total
        else:
            out[i] = 1 / classes
    return out
