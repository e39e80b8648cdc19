"""The image operations of the classical nucleus detector: blur, Laplacian, and two watersheds.

All functions take and return arrays of shape (H, W), rows first, and know nothing about microns or stains. Where
QuPath and ImageJ define an operation in their own way (kernel radius, edge handling, order of growth), that
definition is followed, so that the same image gives the same nuclei.
"""

from __future__ import annotations

import math
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from scipy import ndimage
from skimage.morphology import local_maxima
from skimage.segmentation import watershed

from pyhisto.loops.reconstruction import reconstructed

__all__ = [
    "disk",
    "distance_split",
    "fill_outlines",
    "gaussian_blur",
    "intensity_basins",
    "laplacian",
    "opening_background",
    "split_seeds",
]

FloatImage: TypeAlias = npt.NDArray[np.float32]
Mask: TypeAlias = npt.NDArray[np.bool_]

_ONES3 = np.ones((3, 3), dtype=bool)
_SQRT2 = math.sqrt(2.0)
_KERNEL_ACCURACY = 2e-4
_MIN_PEAK = 0.001
_SPLIT_TOLERANCE = 0.5
# ImageJ scales the distance map to 8 bits, which adds (greatest distance - 1) / 506 before rounding. A constant for
# the greatest distance of 16 px (8 µm at 0.5 µm/px) makes the result independent of what else is in the image.
_LEVEL_SHIFT = (16.0 - 1.0) / 506.0
# Growth directions as bit numbers of the 3x3 neighbourhood (0 = north, clockwise): diagonals first.
_GROWTH_ORDER = (7, 3, 1, 5, 0, 4, 2, 6)
_NEIGHBOURS = ((-1, 0), (-1, 1), (0, 1), (1, 1), (1, 0), (1, -1), (0, -1), (-1, -1))


def gaussian_blur(image: FloatImage, sigma_px: float) -> FloatImage:
    """Blur with ImageJ's Gaussian kernel: cut where it falls below 2e-4, ends bent to zero, edge pixels repeated.

    Parameters
    ----------
    image
        float32 of shape (H, W).
    sigma_px
        Standard deviation in pixels; 0 or less returns a copy.
    """
    if sigma_px <= 0:
        return image.copy()
    kernel = _gaussian_kernel(sigma_px)
    blurred = ndimage.correlate1d(image, kernel, axis=1, mode="nearest", output=np.float32)
    return ndimage.correlate1d(blurred, kernel, axis=0, mode="nearest", output=np.float32)


def _gaussian_kernel(sigma_px: float) -> npt.NDArray[np.float64]:
    radius = math.ceil(sigma_px * math.sqrt(-2 * math.log(_KERNEL_ACCURACY))) + 1
    half = np.exp(-0.5 * (np.arange(radius) / sigma_px) ** 2)
    if radius > 3:
        # the tail becomes a parabola that touches zero at the radius; it starts where the slopes agree best
        slopes = np.sqrt(half) / (radius - np.arange(radius))
        start = radius - 1
        while start > radius // 2 and slopes[start - 1] < slopes[start]:
            start -= 1
        slope = slopes[start]
        tail = np.arange(start + 1, radius)
        half[tail] = (radius - tail) ** 2 * slope**2
    full = np.concatenate([half[:0:-1], half])
    return np.asarray(full / full.sum())


def laplacian(image: FloatImage) -> FloatImage:
    """Return the negative 4-neighbour Laplacian: 4 times the centre minus its neighbours; bright blobs are positive."""
    kernel = np.array([[0, -1, 0], [-1, 4, -1], [0, -1, 0]], dtype=np.float32)
    return ndimage.correlate(image, kernel, mode="nearest", output=np.float32)


def opening_background(
    image: FloatImage, radius_px: float, *, max_background: float, by_reconstruction: bool
) -> tuple[FloatImage, Mask]:
    """Estimate a slowly varying background by a morphological opening.

    Parameters
    ----------
    image
        float32 of shape (H, W).
    radius_px
        Radius of the disk in pixels; larger than a nucleus.
    max_background
        Where the eroded image exceeds this, the area around it is reported as too dark to hold nuclei; 0 or less
        turns this off.
    by_reconstruction
        Opening by reconstruction (Vincent 1993) rather than a plain opening.

    Returns
    -------
    background, excluded
        float32 and bool of shape (H, W).
    """
    eroded = _rank_disk(image, radius_px, np.minimum)
    excluded = np.zeros(image.shape, dtype=bool)
    if max_background > 0 and (dark := eroded > max_background).any():
        excluded = _rank_disk(dark.astype(np.uint8), 2 * radius_px, np.maximum) > 0
        eroded[excluded] = -np.inf
    if by_reconstruction:
        seed = np.where(np.isneginf(eroded), image.min(), eroded)
        background = reconstructed(seed, image)
    else:
        background = _rank_disk(eroded, radius_px, np.maximum)
        background[np.isneginf(background)] = 0
    return background, excluded


def _rank_disk(image: npt.NDArray[Any], radius_px: float, rank: np.ufunc) -> npt.NDArray[Any]:
    """Minimum or maximum over a disk: that along x for every row of the disk, combined along y.

    What a row of the disk covers is covered by two runs of a power of two, too.
    """
    height, width = image.shape
    rows = disk(radius_px).sum(axis=1)
    reach = len(rows) // 2
    along_x = np.pad(image, reach, mode="edge")
    run = 1
    out = image.copy()
    for length in np.unique(rows):
        while 2 * run <= length:
            along_x = rank(along_x[:, :-run], along_x[:, run:])
            run *= 2
        first, last = reach - length // 2, reach + length // 2 + 1 - run
        row = rank(along_x[:, first : first + width], along_x[:, last : last + width])
        for dy in np.flatnonzero(rows == length):
            rank(out, row[dy : dy + height], out=out)
    return out


def disk(radius_px: float) -> Mask:
    """Return ImageJ's disk for rank filters: bool, of odd width; slightly larger than the circle of that radius."""
    for low, high in ((1.5, 1.75), (2.5, 2.85)):
        if low <= radius_px < high:
            radius_px = high
    limit = int(radius_px**2) + 1
    reach = math.isqrt(limit)
    y, x = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    return np.asarray(x**2 + y**2 <= limit)


def intensity_basins(image: FloatImage) -> Mask:
    """Divide the positive part of an image into one region for each local maximum.

    Every local maximum above 0.001 floods downwards over its 4-neighbours; a pixel where two floods meet belongs to
    neither. Pixels of the outermost row and column are no maxima.

    Returns
    -------
    numpy.ndarray
        bool (H, W); the 4-connected regions are the basins.
    """
    peaks = local_maxima(image, connectivity=2) & (image >= _MIN_PEAK)
    peaks[[0, -1], :] = False
    peaks[:, [0, -1]] = False
    markers, _ = ndimage.label(peaks)
    basins = watershed(-image, markers, connectivity=1, mask=image > 0, watershed_line=True)
    return np.asarray(basins > 0)


def fill_outlines(mask: Mask) -> tuple[npt.NDArray[np.int32], int]:
    """Fill the holes of every 4-connected region and number the regions in raster order.

    Returns
    -------
    labels, n
        int32 (H, W), 0 is background; and the number of regions.
    """
    ground, n = ndimage.label(~mask, structure=_ONES3)
    is_outside = np.zeros(n + 1, dtype=bool)
    for edge in (ground[0], ground[-1], ground[:, 0], ground[:, -1]):
        is_outside[edge] = True
    is_outside[0] = False
    labels, n = ndimage.label(~is_outside[ground])
    return labels.astype(np.int32, copy=False), int(n)


def split_seeds(distance: FloatImage) -> Mask:
    """Return the summits of a distance map, each with its surroundings no more than 0.5 px lower.

    A maximum counts only if it rises more than 0.5 px above the saddle to a higher one. Heights are those of the
    sampled ridge, estimated from opposite neighbours, since the true ridge may run between pixel centres.

    Parameters
    ----------
    distance
        Euclidean distance to the background, float32 (H, W), 0 in the background.
    """
    height = _ridge_height(distance)
    floor = np.where(distance > 0, np.maximum(height - _SPLIT_TOLERANCE, 0), 0)
    lowered = reconstructed(floor, np.where(distance > 0, height, 0))
    return np.asarray(local_maxima(lowered, connectivity=2) & (distance > 0))


def _ridge_height(distance: FloatImage) -> FloatImage:
    d = np.pad(distance, 1)
    rows, cols = distance.shape

    def shifted(dy: int, dx: int) -> FloatImage:
        return d[1 + dy : 1 + dy + rows, 1 + dx : 1 + dx + cols]

    height = distance + 0.5 * _SQRT2
    on_ridge = np.zeros(distance.shape, dtype=bool)
    for dy, dx in _NEIGHBOURS[:4]:
        ahead, behind = shifted(dy, dx), shifted(-dy, -dx)
        top = (distance >= ahead) & (distance >= behind)
        on_ridge |= top
        step = 1.0 if dy == 0 or dx == 0 else _SQRT2
        height = np.minimum(height, np.where(top, (ahead + behind) / 2, np.minimum(ahead, behind)) + step)
    border = np.ones(distance.shape, dtype=bool)
    border[1:-1, 1:-1] = False
    return np.where(on_ridge & ~border & (distance > 0), height, distance).astype(np.float32)


def distance_split(mask: Mask) -> Mask:
    """Cut touching roundish objects apart at their waists.

    The Euclidean distance map, rounded to whole pixels, is grown from its summits level by level, downwards; growth
    into a pixel is forbidden where it would join two objects (the pixel's neighbourhood holds two separate parts).
    This is the binary watershed known from ImageJ.

    Parameters
    ----------
    mask
        bool (H, W); True is object. The image border is no background.

    Returns
    -------
    numpy.ndarray
        bool (H, W); `mask` without the cutting lines.
    """
    if not mask.any():
        return mask.copy()
    distance = ndimage.distance_transform_edt(mask).astype(np.float32)
    seeds = split_seeds(distance)
    level = np.floor(distance + 0.5 + _LEVEL_SHIFT).clip(0, 254).astype(np.uint8)
    # side summits sink to the saddle that joins them to a seed
    level = reconstructed(np.where(seeds, level, 0), level)
    level[seeds] = 255
    grown = _grow_by_level(level)
    return grown & mask


def _growth_table() -> npt.NDArray[np.uint8]:
    # bit i of table[neighbourhood]: growth in direction i is allowed
    table = np.zeros(256, dtype=np.uint8)
    for item in range(256):
        around = [bool(item >> i & 1) for i in range(8)]
        allowed = sum(1 << i for i in range(8) if around[(i + 4) % 8])
        thick = list(around)
        for i in range(0, 8, 2):  # a set side counts as a set corner on both ends
            if around[i]:
                thick[(i + 1) % 8] = thick[(i + 7) % 8] = True
        parts = sum(thick[i] != thick[(i + 1) % 8] for i in range(8))
        table[item] = allowed if parts < 4 else 0
    return table


_GROWTH_TABLE = _growth_table()


def _grow_by_level(level: npt.NDArray[np.uint8]) -> Mask:
    """Grow the pixels of value 255 over the lower levels, from high to low, without joining objects."""
    rows, cols = level.shape
    width = cols + 2
    done = np.zeros((rows + 2, width), dtype=bool)
    done[1:-1, 1:-1] = level == 255
    flat_done = done.ravel()
    padded = np.pad(level, 1)
    flat_level = padded.ravel()
    rim = ndimage.binary_dilation(level == 0, structure=_ONES3, border_value=1)
    flat_rim = np.pad(rim, 1).ravel()
    offsets = np.array([dy * width + dx for dy, dx in _NEIGHBOURS])
    weights = (1 << np.arange(8)).astype(np.uint8)
    waiting = np.empty(0, dtype=np.intp)
    top = int(flat_level[flat_level < 255].max(initial=0))
    order = np.argsort(flat_level, kind="stable")
    starts = np.searchsorted(flat_level[order], np.arange(257))
    for value in range(top, 0, -1):
        points = np.concatenate([order[starts[value] : starts[value + 1]], waiting])
        points = _grow_one_level(points, flat_done, offsets, weights)
        waiting = points[flat_rim[points]]
    return done[1:-1, 1:-1]


def _grow_one_level(
    points: npt.NDArray[np.intp], done: Mask, offsets: npt.NDArray[np.intp], weights: npt.NDArray[np.uint8]
) -> npt.NDArray[np.intp]:
    idle = 0
    turn = 0
    while len(points) and idle < 8:
        bit = np.uint8(1 << _GROWTH_ORDER[turn % 8])
        around = (done[points[:, None] + offsets] * weights).sum(axis=1, dtype=np.uint8)
        grows = (_GROWTH_TABLE[around] & bit) != 0
        done[points[grows]] = True
        idle = 0 if grows.any() else idle + 1
        points = points[~grows]
        turn += 1
    return points
