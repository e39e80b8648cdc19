"""Nuclei in one image: the watershed cell detection that QuPath users know, on arrays.

The image is over-segmented into the basins of its blurred Laplacian; basins darker than the threshold are kept and
merged; touching nuclei are cut at their waists; what is too small or too large goes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from pyhisto.contours import Contours, smooth_contours, trace_labels
from pyhisto.errors import ConfigError
from pyhisto.loops import nuclei as loops
from pyhisto.nuclei.settings import CellDetectionSettings
from pyhisto.nuclei.watershed import (
    disk,
    distance_split,
    fill_outlines,
    gaussian_blur,
    intensity_basins,
    laplacian,
    opening_background,
)
from pyhisto.stain import StainVectors, od_tables, stain_tables

__all__ = [
    "Basins",
    "Nuclei",
    "basin_means",
    "darkness",
    "detect_nuclei",
    "detection_image",
    "stain_channels",
    "stain_images",
]

FloatImage: TypeAlias = npt.NDArray[np.float32]
Mask: TypeAlias = npt.NDArray[np.bool_]

_REFINE_ABOVE_SIGMA_PX = 1.5


@dataclass(frozen=True)
class Nuclei:
    """The nuclei of one image.

    Attributes
    ----------
    labels
        int32 (H, W); 0 is background, nuclei are 1 to n, each one 4-connected and without holes.
    contours
        n outlines in pixels of the image, smoothed if the settings say so.
    channels
        Stain images by the name of their measurements, such as ``"DAB OD"``: float32 (H, W).
    votes
        float64 (n, classes), the share that each class has of a nucleus, where the detector itself classifies; else
        None.
    """

    labels: npt.NDArray[np.int32]
    contours: Contours
    channels: dict[str, FloatImage]
    votes: npt.NDArray[np.float64] | None = None


def stain_channels(rgb: npt.NDArray[np.uint8], stains: StainVectors) -> dict[str, FloatImage]:
    """Return the OD image of every named stain, float32 (H, W), under ``"<stain> OD"``."""
    return {f"{name} OD": image for name, image in zip(stains.names, stain_images(rgb, stains), strict=True)}


def stain_images(rgb: npt.NDArray[np.uint8], stains: StainVectors) -> FloatImage:
    """Return the OD of every named stain, float32 (k, H, W)."""
    return _separated(rgb, stain_tables(stains))


def darkness(rgb: npt.NDArray[np.uint8], stains: StainVectors) -> FloatImage:
    """Return the sum of the three optical densities, float32 (H, W), in which nuclei are dark whatever their stain."""
    (out,) = _separated(rgb, od_tables(stains.background)[np.newaxis])
    return np.asarray(out)


def _separated(rgb: npt.NDArray[np.uint8], tables: npt.NDArray[np.float64]) -> FloatImage:
    out = np.empty((len(tables), *rgb.shape[:2]), dtype=np.float32)
    loops.separate(rgb, tables, out)
    return out


def detection_image(
    rgb: npt.NDArray[np.uint8], channels: dict[str, FloatImage], settings: CellDetectionSettings, stains: StainVectors
) -> FloatImage:
    """Return the image in which nuclei are bright, float32 (H, W), before any filter."""
    if settings.detection_image == "Optical density sum":
        return darkness(rgb, stains)
    index = stains.index("Hematoxylin")
    if index is None:
        raise ConfigError(
            f"stains {', '.join(stains.names)} without Hematoxylin",
            expected="a stain of that name for the detection image 'Hematoxylin OD'",
            remedy="detect on 'Optical density sum'",
        )
    return channels[f"{stains.names[index]} OD"]


def detect_nuclei(
    rgb: npt.NDArray[np.uint8],
    *,
    pixel_size_um: float,
    settings: CellDetectionSettings,
    stains: StainVectors,
    mask: Mask | None = None,
) -> Nuclei:
    """Detect nuclei in an image.

    Parameters
    ----------
    rgb
        uint8 (H, W, 3) at the resolution of the detection.
    pixel_size_um
        Size of its pixels, µm.
    settings
        The detector's settings; pixel size, expansion and classes are not used here.
    stains
        Stain vectors and white.
    mask
        bool (H, W): where nuclei are wanted; they are cut at its edge.

    Returns
    -------
    Nuclei
        In raster order of their topmost pixels.

    Raises
    ------
    ConfigError
        If the image is not RGB uint8, or the settings need a stain that is not there.

    Notes
    -----
    The steps and their order are those of QuPath 0.5's WatershedCellDetection. Agreement is limited by the pixels:
    readers that resample or round differently by one grey level change which faint spots pass the threshold. One
    deliberate difference: the levels of the distance map do not depend on the largest object in the image.
    """
    channels = stain_channels(rgb, stains)
    image = detection_image(rgb, channels, settings, stains)
    work, excluded = _prepare(image, channels, settings, pixel_size_um)
    measured = work if settings.background_radius_um > 0 else image
    sigma_px = settings.sigma_um / pixel_size_um
    curvature = laplacian(gaussian_blur(work, sigma_px))
    found = _dark_basins(curvature, measured, excluded, settings.threshold)
    found = ndimage.maximum_filter(found, size=3, mode="nearest") & (curvature > 0)
    if settings.watershed_post_process:
        labels, _ = fill_outlines(found)
        found = distance_split(labels > 0)
    if mask is not None:
        found &= mask
    if sigma_px > _REFINE_ABOVE_SIGMA_PX:
        # the blur makes thin nuclei too wide by a pixel; a smaller one decides about the outermost pixels
        sharp = laplacian(gaussian_blur(image, 1.0)) > 0
        found = ndimage.minimum_filter(found, size=3, mode="nearest") | (found & sharp)
    labels = _select(found, measured, settings, pixel_size_um)
    contours = trace_labels(labels)
    if settings.smooth_boundaries:
        contours = smooth_contours(contours)
    return Nuclei(labels, contours, channels)


@dataclass(frozen=True)
class Basins:
    """What the detection threshold is applied to.

    Attributes
    ----------
    means
        Mean of every basin in the detection image, float64 (n,).
    areas_px
        Number of its pixels, int (n,).
    between
        Median of the detection image outside the basins: the tissue between nuclei.
    """

    means: npt.NDArray[np.float64]
    areas_px: npt.NDArray[np.intp]
    between: float


def basin_means(
    rgb: npt.NDArray[np.uint8], *, pixel_size_um: float, settings: CellDetectionSettings, stains: StainVectors
) -> Basins:
    """Over-segment an image as :func:`detect_nuclei` does and measure the basins; same parameters."""
    channels = stain_channels(rgb, stains)
    image = detection_image(rgb, channels, settings, stains)
    work, _ = _prepare(image, channels, settings, pixel_size_um)
    measured = work if settings.background_radius_um > 0 else image
    curvature = laplacian(gaussian_blur(work, settings.sigma_um / pixel_size_um))
    labels, n = fill_outlines(intensity_basins(curvature))
    outside = measured[curvature <= 0]
    between = float(np.median(outside)) if outside.size else float("nan")
    return Basins(_means(measured, labels, n)[1:], np.bincount(labels.ravel(), minlength=n + 1)[1:], between)


def _prepare(
    image: FloatImage, channels: dict[str, FloatImage], settings: CellDetectionSettings, pixel_size_um: float
) -> tuple[FloatImage, Mask | None]:
    """Return the image to segment, and where the background is too dark."""
    work = image
    if settings.median_radius_um > 0:
        footprint = disk(settings.median_radius_um / pixel_size_um)
        work = ndimage.median_filter(work, footprint=footprint, mode="nearest")
    if settings.exclude_dab and {"Hematoxylin OD", "DAB OD"} <= channels.keys():
        blue = (channels["Hematoxylin OD"] >= channels["DAB OD"]).astype(np.uint8)
        blue = ndimage.median_filter(blue, footprint=disk(2.5), mode="nearest")
        work = work * ndimage.maximum_filter(blue, footprint=disk(2.5), mode="nearest")
    if settings.background_radius_um <= 0:
        return work, None
    background, excluded = opening_background(
        work,
        settings.background_radius_um / pixel_size_um,
        max_background=settings.max_background,
        by_reconstruction=settings.background_by_reconstruction,
    )
    return work - background, excluded


def _means(image: FloatImage, labels: npt.NDArray[np.int32], n: int) -> npt.NDArray[np.float64]:
    count = np.bincount(labels.ravel(), minlength=n + 1)
    total = np.bincount(labels.ravel(), image.ravel().astype(np.float64), n + 1)
    return np.asarray(total / np.maximum(count, 1))


def _dark_basins(curvature: FloatImage, measured: FloatImage, excluded: Mask | None, threshold: float) -> Mask:
    labels, n = fill_outlines(intensity_basins(curvature))
    keep = _means(measured, labels, n) > threshold
    if excluded is not None and excluded.any():
        keep &= np.bincount(labels.ravel(), excluded.ravel(), n + 1) == 0
    keep[0] = False
    return np.asarray(keep[labels])


def _select(
    found: Mask, measured: FloatImage, settings: CellDetectionSettings, pixel_size_um: float
) -> npt.NDArray[np.int32]:
    """Label the regions, and drop the pale, the small and the large ones."""
    labels, n = fill_outlines(found)
    area = np.bincount(labels.ravel(), minlength=n + 1) * pixel_size_um**2
    keep = np.ones(n + 1, dtype=bool)
    if settings.min_area_um2 > 0:
        keep &= area >= settings.min_area_um2
    if settings.max_area_um2 > 0:
        keep &= area <= settings.max_area_um2
    if settings.min_area_um2 > 0 or settings.max_area_um2 > 0:
        keep &= _means(measured, labels, n) >= settings.threshold
    keep[0] = False
    number: npt.NDArray[Any] = np.cumsum(keep, dtype=np.int32) * keep
    return np.asarray(number[labels], dtype=np.int32)
