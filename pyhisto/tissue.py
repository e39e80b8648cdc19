"""Find the tissue on a slide: glass, dust and pen marks stay out."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import geopandas as gpd
import numpy as np
import numpy.typing as npt
import scipy.ndimage as ndi
import shapely
import skimage.filters
from skimage.morphology import remove_small_objects

from pyhisto.labels import clean_polygon, mask_to_polygons
from pyhisto.objects import empty_objects, make_objects
from pyhisto.slide import Slide

__all__ = ["TissueSettings", "detect_pen", "detect_tissue", "glass_white", "pen_mask", "tissue_mask"]


@dataclass(frozen=True)
class TissueSettings:
    """How tissue is found.

    Attributes
    ----------
    mpp
        Resolution of the overview that is looked at, µm/px; coarser on slides above `max_side` px there.
    max_side
        Longest side of the overview in pixels.
    sigma_um
        Gaussian smoothing of the optical density, µm.
    threshold
        Mean optical density that counts as tissue; None takes Otsu's (1979), kept within `threshold_range`.
    threshold_range
        Limits of the automatic threshold.
    min_area_um2, min_hole_area_um2
        Smaller pieces are dropped, smaller holes filled.
    margin_um
        How far the tissue is widened, but never onto ink.
    """

    mpp: float = 8.0
    max_side: int = 4096
    sigma_um: float = 8.0
    threshold: float | None = None
    threshold_range: tuple[float, float] = (0.03, 0.06)
    min_area_um2: float = 20_000.0
    min_hole_area_um2: float = 5_000.0
    margin_um: float = 0.0


def detect_tissue(slide: Slide, settings: TissueSettings | None = None) -> gpd.GeoDataFrame:
    """Return the tissue of a slide as annotations of the class ``Tissue``, level-0 px, largest first.

    Raises
    ------
    MissingPixelSizeError
        If the slide's pixel size is not known.
    """
    settings = settings or TissueSettings()
    width, height = slide.dimensions
    density, mpp = _overview(slide, settings)
    pen = pen_mask(density)
    scale = (mpp / slide.mpp[0], mpp / slide.mpp[1])
    polygons = mask_to_polygons(
        _tissue(density, pen, mpp, settings),
        scale=scale,
        min_area=settings.min_area_um2 / mpp**2,
        min_hole_area=settings.min_hole_area_um2 / mpp**2,
        tolerance=0.5,
    )
    frame = shapely.box(0, 0, width, height)
    if settings.margin_um > 0:
        ink = shapely.union_all(mask_to_polygons(pen, scale=scale))
        wide = shapely.union_all(shapely.buffer(polygons, settings.margin_um / slide.mean_mpp))
        polygons = list(shapely.get_parts(wide.difference(ink)))
    polygons = [part for polygon in polygons for part in clean_polygon(polygon.intersection(frame))]
    if not polygons:
        return empty_objects()
    return make_objects(polygons, object_type="annotation", classification="Tissue")


def detect_pen(slide: Slide, settings: TissueSettings | None = None) -> npt.NDArray[np.bool_]:
    """Return where ink of a pen lies on an overview of the whole slide, bool (height, width); see :func:`pen_mask`.

    Raises
    ------
    MissingPixelSizeError
        If the slide's pixel size is not known.
    """
    return pen_mask(_overview(slide, settings or TissueSettings())[0])


def _overview(slide: Slide, settings: TissueSettings) -> tuple[npt.NDArray[np.float32], float]:
    """Return the optical density of the whole slide, float32 (height, width, 3), and its pixel size, µm."""
    width, height = (side * mpp for side, mpp in zip(slide.dimensions, slide.mpp, strict=True))
    mpp = max(settings.mpp, max(width, height) / settings.max_side)
    return _density(slide.read_region(0, 0, math.ceil(width / mpp), math.ceil(height / mpp), mpp=mpp)), mpp


def tissue_mask(rgb: npt.NDArray[np.uint8], mpp: float, settings: TissueSettings) -> npt.NDArray[np.bool_]:
    """Return which pixels of an overview are tissue.

    The mean optical density against the slide's own glass is smoothed and cut at Otsu's threshold (Otsu 1979).

    Parameters
    ----------
    rgb
        uint8, shape (height, width, 3).
    mpp
        Its resolution, µm/px.
    settings
        See :class:`TissueSettings`.
    """
    density = _density(rgb)
    return _tissue(density, pen_mask(density), mpp, settings)


def _tissue(
    density: npt.NDArray[np.float32], pen: npt.NDArray[np.bool_], mpp: float, settings: TissueSettings
) -> npt.NDArray[np.bool_]:
    red, green, blue = _planes(density)
    mean = ndi.gaussian_filter(np.where(pen, 0.0, (red + green + blue) / 3), settings.sigma_um / mpp)
    threshold = settings.threshold
    if threshold is None:
        otsu = float(skimage.filters.threshold_otsu(mean)) if np.ptp(mean) > 0 else settings.threshold_range[1]
        threshold = float(np.clip(otsu, *settings.threshold_range))
    return _opened((mean > threshold) & ~pen) & ~pen


def _density(rgb: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """Return the optical density against the slide's own glass, float32 (height, width, 3)."""
    levels = np.arange(256, dtype=np.float32).clip(1)
    of_level = np.log10(glass_white(rgb)[:, None] / levels).clip(0)
    return np.stack([of_level[channel][rgb[..., channel]] for channel in range(3)], axis=-1)


def _planes(image: npt.NDArray[Any]) -> tuple[npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[Any]]:
    """Return red, green and blue of an image (height, width, 3), each in one piece."""
    red, green, blue = (np.ascontiguousarray(image[..., channel]) for channel in range(3))
    return red, green, blue


def glass_white(rgb: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """Return the colour of the glass, float32 (3,), 0 to 255: the median of the brightest twentieth of the pixels.

    A slide without glass gives a colour near its lightest tissue; it is never taken below 235.
    """
    red, green, blue = _planes(rgb)
    brightness = red.astype(np.uint16) + green + blue
    darker = np.cumsum(np.bincount(brightness.ravel()))  # pixels up to each brightness
    least = np.searchsorted(darker, math.ceil(0.95 * (brightness.size - 1)), side="right")
    bright = rgb[brightness >= least]
    return np.asarray(np.median(bright, axis=0).clip(235, 255), dtype=np.float32)


def pen_mask(density: npt.NDArray[np.float32]) -> npt.NDArray[np.bool_]:
    """Return where ink of a pen lies: optical densities that no histological stain mixes to.

    Blue ink absorbs hardly any blue and green ink hardly any green, where haematoxylin, eosin and DAB absorb both; red
    ink lets all red pass; black ink is dense and grey over a wide area.

    Parameters
    ----------
    density
        Optical density, float32, shape (height, width, 3), channels red, green, blue.
    """
    red, green, blue = (ndi.gaussian_filter(plane, 1) for plane in _planes(density))
    least, most = np.minimum(np.minimum(red, green), blue), np.maximum(np.maximum(red, green), blue)
    strong = most > 0.25
    blue_ink = strong & (blue < 0.22 * red) & (green > 0.2 * red)
    green_ink = strong & (green < 0.65 * red) & (green < 0.65 * np.maximum(blue, 0.4 * red))
    red_ink = strong & (red < 0.06 * green)
    grey = most - least < 0.3 * ((red + green + blue) / 3)
    ink = _opened(blue_ink | green_ink | red_ink)
    core = _opened(grey & (least > 0.35))
    if core.any():
        core = remove_small_objects(core, max_size=30)
        ink |= ndi.binary_propagation(core, mask=grey & (least > 0.3))
    if ink.any():
        ink = _widened(_widened(remove_small_objects(ink, max_size=30)))
    return np.asarray(ink)


def _opened(mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Erode, then dilate by the four neighbours; nothing is there beyond the border (morphological opening)."""
    inside = np.zeros_like(mask)
    core = mask[1:-1, 1:-1] & mask[:-2, 1:-1] & mask[2:, 1:-1] & mask[1:-1, :-2] & mask[1:-1, 2:]
    inside[1:-1, 1:-1] = core
    return _widened(inside)


def _widened(mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Dilate by the four neighbours."""
    wide = mask.copy()
    wide[1:] |= mask[:-1]
    wide[:-1] |= mask[1:]
    wide[:, 1:] |= mask[:, :-1]
    wide[:, :-1] |= mask[:, 1:]
    return wide
