"""From class probabilities to labelled nuclei, in one image or in one window of a slide."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from pyhisto.loops import nuclei as loops
from pyhisto.loops.basins import claim, ways_down
from pyhisto.loops.blurs import blur, blur_colours, blur_nuclei
from pyhisto.loops.ground import BLOCK_PX, block_sums, core_means
from pyhisto.loops.regions import marked
from pyhisto.loops.scratch import Scratch
from pyhisto.stain import StainVectors, od_tables

__all__ = [
    "Nuclei",
    "edge_darkness",
    "find_peaks",
    "influence_px",
    "label_nuclei",
    "label_peaks",
    "nucleus_probability",
]

FloatImage: TypeAlias = npt.NDArray[np.float32]
Mask: TypeAlias = npt.NDArray[np.bool_]

_BLUR_REACH = 4.0
"""Where blurs are cut off, in standard deviations."""

_EDGE_SIGMA_PX = 0.7
_GROUND_SIGMA_PX = 16.0
_GROUND_REACH = 3.0

_LEAST_CONTRAST = 1e-4
"""What counts as no difference between two optical densities."""

_LEVELS = 1 << 16
"""Steps of the nucleus probability in which basins are flooded."""

_COMPACTNESS_PER_UM = 0.02
"""How much a µm from the nearest peak counts in the watershed, against a nucleus probability from 0 to 1."""

_PIXEL = math.sqrt(0.5)
"""How far the middle of a pixel can be from a place inside it, px: no nucleus is without pixels."""

_INNER = (slice(1, -1), slice(1, -1))
"""An image without its border."""


@dataclass(frozen=True)
class Nuclei:
    """Labelled nuclei, and what says where between two pixels each of them ends.

    Attributes
    ----------
    labels
        int32 (H, W), 1 to n.
    corner
        (row, column) of the labels in the other images.
    darkness
        See :func:`edge_darkness`; a nucleus ends where it falls to that of the edge.
    compact
        float32; where it is least, touching nuclei meet.
    peaks
        Row and column between pixels, and darkness of the edge, float64 (n, 3).
    radii
        How far a nucleus reaches at least and at most from its peak, px.
    """

    labels: npt.NDArray[Any]
    corner: tuple[int, int]
    darkness: FloatImage
    compact: FloatImage
    peaks: npt.NDArray[np.float64]
    radii: tuple[float, float]


def label_nuclei(
    probability: FloatImage,
    darkness: FloatImage,
    pixel_size_um: float,
    postprocessing: Any,
    mask: Mask | None = None,
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float64]]:
    """Turn class probabilities into labelled nuclei.

    The nuclei classes give the positions: peaks of their blurred sum. The territory of a nucleus is its watershed basin
    (Meyer 1991) within ``reach_um``. As in compact watersheds (Neubert and Protzel 2014) the distance from the nearest
    peak counts, too: where two nuclei merge in a plateau, the least change of a probability would move their border
    else. The outline runs where the stain falls half-way from the core to the ground around the nucleus, because points
    teach a network where nuclei are, but not how large. Its class is the one with the greatest sum of probabilities,
    nucleus and membrane, over its pixels.

    Parameters
    ----------
    probability
        float32, shape (1 + 2k, H, W): background, then nucleus and membrane of each of the k cell classes.
    darkness
        Sum of the optical densities, float32 (H, W).
    pixel_size_um
        µm/px of both.
    postprocessing
        Mapping with ``threshold`` (least blurred nucleus probability of a peak), ``sigma_um`` (blur),
        ``min_distance_um`` (between peaks), ``reach_um`` (radius of the largest nucleus), ``core_um`` (radius that
        always belongs to the nucleus).
    mask
        bool (H, W); a nucleus counts if its peak lies inside.

    Returns
    -------
    labels : numpy.ndarray
        int32 (H, W); 0 is background, nuclei are 1 to n, each without holes.
    votes : numpy.ndarray
        float64 (n, k), the share of each class in a nucleus; rows sum to 1.
    """
    nucleus = nucleus_probability(probability, pixel_size_um, postprocessing)
    peaks = find_peaks(nucleus, pixel_size_um, postprocessing, mask)
    smooth = np.empty_like(nucleus)
    blur(np.ascontiguousarray(darkness), _gaussian(_EDGE_SIGMA_PX, _BLUR_REACH), smooth)
    labels = np.ascontiguousarray(label_peaks(nucleus, peaks, smooth, pixel_size_um, postprocessing).labels)
    return labels, loops.votes(probability, labels, len(peaks))


def nucleus_probability(
    probability: FloatImage, pixel_size_um: float, postprocessing: Any, *, scratch: Scratch | None = None
) -> FloatImage:
    """Return the blurred sum of the nucleus classes, float32 (H, W), whose peaks are compared with the threshold."""
    weights = _gaussian(postprocessing["sigma_um"] / pixel_size_um, _BLUR_REACH)
    out = (scratch or Scratch()).array("nucleus", probability.shape[1:], np.float32)
    blur_nuclei(np.ascontiguousarray(probability), weights, out)
    return out


def edge_darkness(rgb: npt.NDArray[np.uint8], stains: StainVectors, *, scratch: Scratch | None = None) -> FloatImage:
    """Return the sum of the optical densities, blurred, in which :func:`label_peaks` finds outlines; float32 (H, W)."""
    out = (scratch or Scratch()).array("darkness", rgb.shape[:2], np.float32)
    blur_colours(rgb, od_tables(stains.background), _gaussian(_EDGE_SIGMA_PX, _BLUR_REACH), out)
    return out


def find_peaks(
    nucleus: FloatImage, pixel_size_um: float, postprocessing: Any, mask: Mask | None = None
) -> npt.NDArray[np.int64]:
    """Return (row, column) of the nuclei in an image of :func:`nucleus_probability`, int64 (n, 2), in raster order."""
    distance = max(1, round(postprocessing["min_distance_um"] / pixel_size_um))
    if loops.is_even(nucleus):
        return np.zeros((0, 2), dtype=np.int64)
    peaks = loops.find_peaks(nucleus, distance, float(np.float32(postprocessing["threshold"])))
    return peaks if mask is None else peaks[mask[peaks[:, 0], peaks[:, 1]]]


def label_peaks(
    nucleus: FloatImage,
    peaks: npt.NDArray[np.int64],
    smooth: FloatImage,
    pixel_size_um: float,
    postprocessing: Any,
    *,
    corner: tuple[int, int] = (0, 0),
    part: tuple[slice, slice] = (slice(None), slice(None)),
    scratch: Scratch | None = None,
) -> Nuclei:
    """Give each peak its nucleus; see :func:`label_nuclei`.

    Parameters
    ----------
    nucleus, peaks
        As :func:`nucleus_probability` and :func:`find_peaks` return them.
    smooth
        As :func:`edge_darkness` returns it.
    pixel_size_um, postprocessing
        As in :func:`label_nuclei`.
    corner
        (row, column) of the image in the frame of the slide, px: what is averaged over blocks keeps to that frame.
    part
        Rows and columns of the image that are labelled; the peaks of the rest only say what is no ground.
    scratch
        Memory for the work and for what is returned, which is good until the next call; new memory by default.

    Returns
    -------
    Nuclei
        Peak i has the label i + 1.
    """
    scratch = scratch or Scratch()
    shape, n = nucleus.shape, len(peaks)
    reach, core_radius = (max(postprocessing[name] / pixel_size_um, _PIXEL) for name in ("reach_um", "core_um"))
    positions = loops.vertices(nucleus, peaks)
    within, beyond = scratch.array("within", shape, np.bool_), scratch.array("beyond", shape, np.uint8)
    compact = scratch.array("compact", shape, np.float32)
    loops.compacted(nucleus, positions, reach, _COMPACTNESS_PER_UM * pixel_size_um, within, compact, beyond)
    start = (corner[0] % BLOCK_PX, corner[1] % BLOCK_PX)
    ground = _ground(smooth, beyond, start)
    (top, bottom, _), (left, right, _) = (along.indices(length) for along, length in zip(part, shape, strict=True))
    inside = (peaks >= (top, left)).all(axis=1) & (peaks < (bottom, right)).all(axis=1)
    local = peaks[inside] - (top, left)
    # from here on images have a border of one pixel, so that no pixel of the part lacks a neighbour
    offset, bordered = (top - 1, left - 1), (bottom - top + 2, right - left + 2)
    links = scratch.array("links", bordered, np.int32)
    ways_down(compact, within, (top, left), _LEVELS, links)
    links[_INNER][local[:, 0], local[:, 1]] = -2 - np.flatnonzero(inside)  # peak i has the label i + 1
    core, radius = scratch.array("core", bordered, np.bool_), min(core_radius, reach)
    loops.disks(positions[inside] - offset, radius + 0.5, core)  # with the rim, which counts in part
    core[[0, -1]], core[:, [0, -1]] = False, False
    room, more = (scratch.array(name, (core.size,), np.int32) for name in ("places", "unclear"))
    places = marked(core.ravel().view(np.uint8), room)
    claim(links, places, compact, offset, _LEVELS, more)
    middles = core_means(smooth, offset, ground, start, links, places, positions, radius)
    edge = middles.mean(axis=1) + _LEAST_CONTRAST
    loops.disks(positions[inside] - offset, radius, core)
    core[[0, -1]], core[:, [0, -1]] = False, False
    # a pixel can only be of a nucleus if it is darker than the edge of one
    places = loops.chosen(core, within, smooth, offset, float(np.nanmin(edge, initial=np.inf)), room)
    claim(links, places, compact, offset, _LEVELS, more)
    labels = scratch.array("labels", bordered, np.int32)
    nuclei = np.column_stack((positions, edge))
    loops.stained_part(links, core, places, smooth, offset, nuclei, reach, labels)
    loops.open_labels(labels, core, scratch.array("inner", bordered, np.bool_))
    loops.make_whole(labels, core, n)
    return Nuclei(labels[_INNER], (top, left), smooth, compact, nuclei, (radius, reach))


def _ground(smooth: FloatImage, beyond: npt.NDArray[np.uint8], start: tuple[int, int]) -> FloatImage:
    """Return the blurred darkness of what is near no nucleus, float32, a value a block; 0 far from all of that.

    Pixels count by how much of them is `beyond` the reach of nuclei, from 0 to 255. The darkness is averaged over
    blocks before it is blurred; the first one begins `start`, (row, column), px above and left of the image.
    """
    sums = block_sums(smooth, beyond, start)
    weights = _gaussian(_GROUND_SIGMA_PX / BLOCK_PX, _GROUND_REACH)
    blurred = np.empty_like(sums)
    for image, out in zip(sums, blurred, strict=True):
        blur(image, weights, out)
    total, count = blurred
    return np.asarray(total / np.maximum(count, np.float32(1e-3 * BLOCK_PX**2)))


def influence_px(pixel_size_um: float, postprocessing: Any) -> int:
    """Return how far from the peak of a nucleus anything can change its outline, px."""
    reach, core, distance = (
        math.ceil(postprocessing[name] / pixel_size_um) for name in ("reach_um", "core_um", "min_distance_um")
    )
    ground = math.ceil(_GROUND_REACH * _GROUND_SIGMA_PX) + 2 * BLOCK_PX
    blurs = math.ceil(_BLUR_REACH * (postprocessing["sigma_um"] / pixel_size_um + _EDGE_SIGMA_PX))
    return int(core + ground + reach + distance + blurs)


def _gaussian(sigma_px: float, reach: float) -> FloatImage:
    """Return a Gaussian kernel from its centre outwards, float32 (r + 1,); both halves sum to 1."""
    if sigma_px <= 0:
        return np.ones(1, dtype=np.float32)
    half = np.exp(-0.5 * (np.arange(int(reach * sigma_px + 0.5) + 1) / sigma_px) ** 2)
    return np.asarray(half / (2 * half.sum() - half[0]), dtype=np.float32)
