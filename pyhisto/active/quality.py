"""What of an overview is not worth a pathologist's time: pen, folds, blur."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.ndimage as ndi
from skimage.morphology import remove_small_objects

from pyhisto.active.grid import Grid, Overview
from pyhisto.stain import optical_density
from pyhisto.tissue import glass_white, pen_mask

__all__ = ["Quality", "QualitySettings", "overview_quality"]

COARSE_UM = 8.0
"""Pen and folds are looked for with pixels of at least so many µm."""

ROUNDING = 20 / 36
"""Variance of the Laplacian, whose squares add up to 20, that rounding three colours to whole numbers makes."""

FOLD_UM = 16.0
"""Smoothing of colours before a fold is looked for, µm."""

AROUND_UM = 250.0
"""What lies around a fold: weights of a Gaussian with this standard deviation, µm."""

LEAST_DENSITY = 1e-3
"""Optical density of less is none."""

Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class QualitySettings:
    """What counts as bad.

    Attributes
    ----------
    fold_density
        A fold is at least so many times as dense as the tissue around it, in every colour: it lies double, a pleat
        threefold, and some of that is lost where it is smoothed.
    fold_colour
        The three ratios differ by no more than this factor: more layers of a tissue have its colour.
    min_fold_um2
        Smaller ones are dense nuclei.
    blur_um
        What is smooth over more than this, a standard deviation in µm, is out of focus; None takes 3 overview pixels.
    window_um
        Over which sharpness is judged.
    """

    fold_density: float = 1.75
    fold_colour: float = 1.3
    min_fold_um2: float = 4_000.0
    blur_um: float | None = None
    window_um: float = 128.0


@dataclass(frozen=True, eq=False)
class Quality:
    """Where an overview is bad, and why: bool (rows, columns) each.

    Attributes
    ----------
    pen, fold, blur
        Ink; tissue that lies double; tissue out of focus.
    grid
        Where they lie.
    """

    pen: Bools
    fold: Bools
    blur: Bools
    grid: Grid

    @property
    def bad(self) -> Bools:
        """Where anything is bad."""
        return np.asarray(self.pen | self.fold | self.blur)


def overview_quality(overview: Overview, tissue: Sequence[Any], settings: QualitySettings | None = None) -> Quality:
    """Return where an overview shows pen, folds or blur.

    Folds: the optical density is a multiple of that of the tissue around, the same in every colour, since light passes
    more layers of it (Lambert-Beer); one threshold for a whole slide, as of saturation - intensity in Kothari et al.
    (2013, J Pathol Inform 4:22), misses those in pale tissue. What lies around is the mean without what stands out
    itself. A dense layer of the tissue's own colour is taken for a fold.

    Blur: the variance of the Laplacian (Pech-Pacheco et al. 2000) against that of the grey values; a texture smoothed
    by a Gaussian of s pixels has a ratio of 2 / s**4. An overview shows only blur that is wider than its pixels.

    Parameters
    ----------
    overview
        The slide from afar.
    tissue
        Polygons of its tissue, level-0 px.
    settings
        What counts as bad.

    Returns
    -------
    Quality
        On a grid of at least 8 µm.
    """
    settings = settings or QualitySettings()
    every = max(1, math.ceil(COARSE_UM / overview.grid.um))
    (height, width), (across, down) = overview.grid.shape, overview.grid.scale
    shape = (max(1, height // every), max(1, width // every))
    grid = Grid(overview.grid.origin, (across * every, down * every), overview.grid.um * every, shape)
    coarse = overview.rgb[every // 2 :: every, every // 2 :: every][: shape[0], : shape[1]]
    white = glass_white(coarse)
    density = optical_density(coarse, (float(white[0]), float(white[1]), float(white[2])))
    pen = pen_mask(density)
    sound = grid.inside(tissue) & ~pen
    fold = _folds(density, sound, grid.um, settings)
    return Quality(pen, fold, _blurred(overview, sound, every, settings), grid)


def _folds(density: Floats, tissue: Bools, um: float, settings: QualitySettings) -> Bools:
    smooth = _mean_around(density, tissue, FOLD_UM / um)
    every = max(1, round(AROUND_UM / 8 / um))
    calm, least, most = tissue, np.empty(0), np.empty(0)
    for _ in range(2):
        around = _mean_around(smooth[::every, ::every], calm[::every, ::every], AROUND_UM / (um * every))
        around = around.repeat(every, axis=0).repeat(every, axis=1)[: tissue.shape[0], : tissue.shape[1]]
        ratio = np.maximum(smooth, 0) / np.maximum(around, LEAST_DENSITY)
        least, most = ratio.min(axis=2), ratio.max(axis=2)
        calm = tissue & (least < (1 + settings.fold_density) / 2)
    fold = tissue & (least > settings.fold_density) & (most < settings.fold_colour * least)
    return np.asarray(remove_small_objects(fold, max_size=int(settings.min_fold_um2 / um**2)))


def _mean_around(density: Floats, mask: Bools, sigma: float) -> Floats:
    """Return the mean of densities of a mask around each pixel, weighted by a Gaussian; 0 far from all."""
    weight = ndi.gaussian_filter(mask.astype(np.float32), sigma)
    sums = np.stack([ndi.gaussian_filter(np.where(mask, density[..., c], 0), sigma) for c in range(3)], axis=2)
    return np.asarray(sums / np.maximum(weight, np.float32(1e-6))[..., None])


def _blurred(overview: Overview, tissue: Bools, every: int, settings: QualitySettings) -> Bools:
    """Return what is not sharp, block by block, on the grid of the tissue."""
    um = overview.grid.um
    times = max(1, round(settings.window_um / (um * every)))
    rows, columns = (-(-side // times) for side in tissue.shape)
    grey = overview.rgb.mean(axis=2, dtype=np.float32)
    inner = np.repeat(np.repeat(ndi.binary_erosion(tissue), every, axis=0), every, axis=1)
    inner = np.pad(inner, [(0, max(0, side - there)) for side, there in zip(grey.shape, inner.shape, strict=True)])
    inner = inner[: grey.shape[0], : grey.shape[1]]

    def sums(values: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
        side = times * every
        down = np.add.reduceat(np.where(inner, values, 0), np.arange(0, min(len(values), rows * side), side), axis=0)
        return np.add.reduceat(down, np.arange(0, min(values.shape[1], columns * side), side), axis=1).astype(float)

    pixels = np.maximum(sums(inner.astype(np.float32)), 1)
    variance = sums(grey**2) / pixels - (sums(grey) / pixels) ** 2
    edges = sums(ndi.laplace(grey) ** 2) / pixels - ROUNDING
    sigma = 3 * um if settings.blur_um is None else settings.blur_um
    soft = edges < 2 * (um / sigma) ** 4 * variance
    wide = np.repeat(np.repeat(soft, times, axis=0), times, axis=1)[: tissue.shape[0], : tissue.shape[1]]
    return np.asarray(tissue & wide)
