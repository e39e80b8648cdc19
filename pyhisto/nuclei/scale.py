"""How large the nuclei of a slide are, whatever its declared pixel size says.

Nuclei are segmented at several assumed sizes, half an octave apart. A fragment of chromatin or a heap of nuclei is seen
at one assumed size only, and of another diameter at the next; a nucleus is found again with the same diameter at all
sizes near its own. Each object votes for its diameter, and the diameter with the most votes wins: the stability over
scales that Lindeberg (1998) and maximally stable regions (Matas 2002) choose by. Nothing in it knows a µm, so that an
image that is enlarged gives a diameter enlarged as much.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image
from scipy import ndimage

from pyhisto.contours import smooth_contours, trace_labels
from pyhisto.measurements import measure_shapes
from pyhisto.nuclei.watershed import distance_split, fill_outlines, gaussian_blur, intensity_basins, laplacian
from pyhisto.stain import StainVectors, deconvolve

__all__ = ["NucleusSize", "nuclear_density", "nucleus_size", "observe_nuclei"]

Rgb: TypeAlias = npt.NDArray[np.uint8]
FloatArray: TypeAlias = npt.NDArray[np.float64]

ASSUMED_PX = tuple(11 * 2 ** (step / 2) for step in range(6))
"""Diameters in px of the tiles at which nuclei are looked for: 11 to 62."""

RANGE_PX = (14.5, 60.0)
"""Diameters outside are not believed: votes that gather at either end belong to texture without a size of its own."""

LEAST_NUCLEI = 30
"""Fewer objects than these give no size."""

_CANONICAL_PX = 12.0  # what an assumed diameter is brought to
_SIGMA_PX = _CANONICAL_PX / 5
_LEAST_AREA_PX = 0.15 * _CANONICAL_PX**2
_LEAST_ROUND = 0.6
_CONSISTENT = (0.85, 1.5)  # diameter over the assumed one: what is not between was not seen as one nucleus
_BANDWIDTH = 0.2  # of a vote, natural logarithm of the diameter
_NEAR = 0.35  # what belongs to the peak, the same
_GREATEST_OD = 2.5


@dataclass(frozen=True)
class NucleusSize:
    """The nuclei of some tiles.

    Attributes
    ----------
    diameter_um
        Median diameter of the nuclei, of circles of their area, µm at the declared pixel size; NaN if there are too
        few, or what was found has no size of its own.
    nuclei
        How many nuclei it rests on.
    """

    diameter_um: float
    nuclei: int


def observe_nuclei(tiles: Sequence[Rgb], *, pixel_size_um: float, stains: StainVectors) -> FloatArray:
    """Segment tiles at all assumed sizes.

    Parameters
    ----------
    tiles
        RGB uint8 (H, W, 3) each, at `pixel_size_um`.
    pixel_size_um
        Declared pixel size of the tiles, µm.
    stains
        Stain vectors and white; what is stained by another stain than eosin is looked at.

    Returns
    -------
    numpy.ndarray
        float64 (n, 3), one row an object: diameter in µm, assumed diameter in µm at which it was found, and its vote.
        Those of several slides at the same pixel size may be concatenated.
    """
    found = []
    for tile in tiles:
        density = nuclear_density(tile, stains)
        for assumed in ASSUMED_PX:
            diameter, roundness = _objects(density, _CANONICAL_PX / assumed)
            diameter *= assumed / _CANONICAL_PX * pixel_size_um
            assumed_um = np.full_like(diameter, assumed * pixel_size_um)
            found.append(np.stack([diameter, assumed_um, diameter**1.5 * roundness**2], axis=1))
    return np.concatenate(found) if found else np.empty((0, 3))


def nuclear_density(rgb: Rgb, stains: StainVectors) -> npt.NDArray[np.float32]:
    """Return the OD of all stains that stain nuclei, float32 (H, W): all that are named but eosin."""
    amounts = deconvolve(rgb, stains)
    wanted = [i for i, name in enumerate(stains.names) if name.lower() != "eosin" and i < 2]
    return np.asarray(np.clip(amounts[..., wanted], 0, None).sum(axis=-1).clip(0, _GREATEST_OD), dtype=np.float32)


def _objects(density: npt.NDArray[np.float32], factor: float) -> tuple[FloatArray, FloatArray]:
    """Segment an image enlarged by a factor; return diameter in px there, and roundness, of each object."""
    height, width = (round(side * factor) for side in density.shape)
    if min(height, width) < 2 * _CANONICAL_PX:
        return np.empty(0), np.empty(0)
    method = Image.Resampling.BOX if factor < 1 else Image.Resampling.BICUBIC
    image = np.asarray(Image.fromarray(density).resize((width, height), method))
    labels, n = _segment(image)
    area = np.bincount(labels.ravel(), minlength=n + 1)[1:]
    circularity = measure_shapes(smooth_contours(trace_labels(labels, n)), 1.0)["Circularity"]
    roundness = np.clip((np.nan_to_num(circularity) - _LEAST_ROUND) / (1 - _LEAST_ROUND), 0, 1)
    cut = np.zeros(n + 1, dtype=bool)
    cut[np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]])] = True
    diameter = 2 * np.sqrt(area / math.pi)
    keep = ~cut[1:] & (roundness > 0) & (diameter > _CONSISTENT[0] * _CANONICAL_PX)
    keep &= diameter < _CONSISTENT[1] * _CANONICAL_PX
    return diameter[keep], roundness[keep]


def _segment(image: npt.NDArray[np.float32]) -> tuple[npt.NDArray[np.int32], int]:
    """Return the dark objects of about the canonical size, as the classical detector finds them."""
    curvature = laplacian(gaussian_blur(image, _SIGMA_PX))
    labels, n = fill_outlines(intensity_basins(curvature))
    area = np.bincount(labels.ravel(), minlength=n + 1)
    means = np.bincount(labels.ravel(), image.ravel().astype(np.float64), n + 1) / np.maximum(area, 1)
    large = area >= _LEAST_AREA_PX
    large[0] = False
    if not large.any():
        return np.zeros_like(labels), 0
    threshold = (float(np.median(image[curvature <= 0])) + float(np.median(means[large]))) / 2
    dark = means > threshold
    dark[0] = False
    found = ndimage.maximum_filter(dark[labels], size=3) & (curvature > 0)
    filled, _ = fill_outlines(found)
    return fill_outlines(distance_split(filled > 0))


def nucleus_size(observed: FloatArray, *, pixel_size_um: float) -> NucleusSize:
    """Return the diameter with the most votes.

    Parameters
    ----------
    observed
        From :func:`observe_nuclei`.
    pixel_size_um
        Declared pixel size of the tiles, µm.
    """
    if len(observed) == 0:
        return NucleusSize(math.nan, 0)
    diameter, assumed, vote = observed.T
    place = np.log(diameter)
    grid = np.arange(place.min(), place.max() + 0.02, 0.02)
    votes = np.array([(vote * np.exp(-0.5 * ((place - g) / _BANDWIDTH) ** 2)).sum() for g in grid])
    near = np.abs(place - grid[votes.argmax()]) < _NEAR
    order = np.argsort(diameter[near])
    running = np.cumsum(vote[near][order])
    median = float(diameter[near][order][np.searchsorted(running, running[-1] / 2)])
    nuclei = int(np.unique(assumed[near], return_counts=True)[1].max())  # at one assumed size: each nucleus once
    believed = nuclei >= LEAST_NUCLEI and RANGE_PX[0] <= median / pixel_size_um <= RANGE_PX[1]
    return NucleusSize(median if believed else math.nan, nuclei)
