"""Settings taken from the slide itself, for scanners and stainings that no default fits.

Every number follows a rule that scales with the strength of the staining, so that the same tissue from two scanners
gets settings that find the same cells; every rule that cannot be followed leaves a note.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import shapely
from skimage.filters import threshold_otsu

from pyhisto.errors import ConfigError
from pyhisto.measurements import measure_intensities
from pyhisto.nuclei.segment import basin_means, detect_nuclei
from pyhisto.nuclei.settings import CellDetectionSettings
from pyhisto.slide import Slide
from pyhisto.stain import H_DAB, StainVectors, estimate_background, estimate_stains, optical_density_sum
from pyhisto.tissue import detect_pen

__all__ = ["AutoSettings", "auto_settings", "auto_settings_from_tiles", "derive_dab_threshold", "sample_tiles"]

Rgb: TypeAlias = npt.NDArray[np.uint8]
FloatArray: TypeAlias = npt.NDArray[np.float64]

N_TILES = 16
TILE_SIZE_PX = 512
_LEAST_THRESHOLD = 0.1
_LEAST_NUCLEI = 50
_LEAST_DAB_STEP = 0.15
_TISSUE_OD = 0.15
_LEAST_COVER = 0.05


@dataclass(frozen=True)
class AutoSettings:
    """Settings derived from a slide.

    Attributes
    ----------
    settings, stains
        What to pass to :func:`pyhisto.nuclei.detect_cells`.
    notes
        What could not be derived, and what was taken instead; empty if all went well.
    measured
        The numbers behind the settings, for the run record.
    """

    settings: CellDetectionSettings
    stains: StainVectors
    notes: tuple[str, ...] = ()
    measured: dict[str, float] = field(default_factory=dict)


def auto_settings(
    slide: Slide,
    *,
    base: CellDetectionSettings | None = None,
    reference: StainVectors = H_DAB,
    stains: StainVectors | None = None,
    region: Any | None = None,
) -> AutoSettings:
    """Derive stains, detection threshold and DAB threshold from a slide.

    Up to 16 tiles of 512 px, spread evenly over the tissue, are looked at. The rules are those of
    :func:`auto_settings_from_tiles`.

    Parameters
    ----------
    slide
        An open slide with a pixel size.
    base
        Settings that are not derived; QuPath's defaults if None.
    reference
        The stains that are expected.
    stains
        Those to use; estimated if None.
    region
        Polygon or MultiPolygon, level-0 px, to sample from; the whole slide by default.

    Returns
    -------
    AutoSettings
        The settings and how they came about.

    Raises
    ------
    MissingPixelSizeError
        If the slide's pixel size is not known.
    SlideError
        If its pixels cannot be decoded.
    """
    base = base or CellDetectionSettings()
    pixel = max(base.requested_pixel_size_um, sum(slide.mpp) / 2)
    thumbnail = slide.thumbnail()
    tiles = sample_tiles(slide, pixel, region=region)
    return auto_settings_from_tiles(
        tiles, pixel_size_um=pixel, thumbnail=thumbnail, base=base, reference=reference, stains=stains
    )


def sample_tiles(slide: Slide, pixel_um: float, *, region: Any | None = None, most: int = N_TILES) -> list[Rgb]:
    """Return tiles spread evenly over the tissue, without ink of a pen as long as there are others.

    Parameters
    ----------
    slide
        An open slide with a pixel size.
    pixel_um
        Pixel size of the tiles, µm.
    region
        Polygon or MultiPolygon, level-0 px, to sample from; the whole slide by default.
    most
        Greatest number of tiles.

    Returns
    -------
    list of numpy.ndarray
        RGB uint8, 512 px a side, or as large as the slide is where that is less.
    """
    width, height = (
        min(TILE_SIZE_PX, max(1, round(side * mpp / pixel_um)))
        for side, mpp in zip(slide.dimensions, slide.mpp, strict=True)
    )
    return [
        slide.read_region(x, y, width, height, mpp=pixel_um)
        for x, y in _sample_positions(slide, slide.thumbnail(), pixel_um, region, most)
    ]


def _sample_positions(
    slide: Slide, thumbnail: Rgb, pixel_um: float, region: Any | None, most: int
) -> list[tuple[float, float]]:
    """Return the top left corners (level-0 px) of tiles spread evenly, where the tissue fills them best."""
    white = estimate_background(thumbnail).background
    tissue = optical_density_sum(thumbnail, white) > _TISSUE_OD
    width, height = slide.dimensions
    step = TILE_SIZE_PX * pixel_um / slide.mpp[0], TILE_SIZE_PX * pixel_um / slide.mpp[1]
    lefts = np.linspace(0, max(0, width - step[0]), math.ceil(width / step[0]))
    tops = np.linspace(0, max(0, height - step[1]), math.ceil(height / step[1]))
    corners = np.stack(np.meshgrid(lefts, tops), axis=-1).reshape(-1, 2)
    if region is not None:
        boxes = shapely.box(corners[:, 0], corners[:, 1], corners[:, 0] + step[0], corners[:, 1] + step[1])
        corners = corners[shapely.intersects(region, boxes)]
        if not len(corners):
            x0, y0, x1, y1 = region.bounds
            corners = np.array([((x0 + x1 - step[0]) / 2, (y0 + y1 - step[1]) / 2)])
    cover = _shares(tissue, corners, step, slide.dimensions)
    clean = _shares(detect_pen(slide), corners, step, slide.dimensions) == 0
    if (cover[clean] > _LEAST_COVER).any():
        cover[~clean] = 0
    covered = cover > _LEAST_COVER
    least = float(np.median(cover[covered])) if covered.any() else 0.0
    candidates = np.flatnonzero(cover >= least)
    chosen = candidates[np.linspace(0, len(candidates) - 1, min(most, len(candidates))).round().astype(int)]
    return [(float(x), float(y)) for x, y in corners[chosen]]


def _shares(
    mask: npt.NDArray[np.bool_], corners: FloatArray, step: tuple[float, float], size: tuple[int, int]
) -> FloatArray:
    """Return the share of a mask, which covers a slide of `size` px, in tiles of `step` px at `corners`."""
    scale = np.array([mask.shape[1] / size[0], mask.shape[0] / size[1]])
    starts = (corners * scale).astype(int)
    stops = np.maximum(starts + 1, ((corners + step) * scale).astype(int))
    parts = [mask[y0:y1, x0:x1] for (x0, y0), (x1, y1) in zip(starts, stops, strict=True)]
    return np.array([part.mean() if part.size else 0.0 for part in parts])


def auto_settings_from_tiles(
    tiles: Sequence[Rgb],
    *,
    pixel_size_um: float,
    thumbnail: Rgb | None = None,
    base: CellDetectionSettings | None = None,
    reference: StainVectors = H_DAB,
    stains: StainVectors | None = None,
) -> AutoSettings:
    """Derive settings from sample tiles of tissue.

    Parameters
    ----------
    tiles
        RGB uint8 (H, W, 3) each, at `pixel_size_um`.
    pixel_size_um
        Pixel size of the tiles, µm.
    thumbnail
        RGB uint8 overview to take the white of the glass from; the tiles themselves by default.
    base
        Settings that are not derived.
    reference
        The stains that are expected.
    stains
        Those to use; estimated if None.

    Returns
    -------
    AutoSettings
        The settings and how they came about.

    Raises
    ------
    ConfigError
        If there are no tiles.

    Notes
    -----
    *White* is the median of the brightest colourless pixels. *Stains* are estimated from the tiles, a stain that does
    not show keeping its reference vector. *Detection* is on the sum of optical densities if there is DAB, without
    background subtraction. *Threshold*: half way from the tissue between nuclei (median over pixels of the
    Laplacian's negative side) to a typical basin (median of the basin means), at least 0.1. *DAB threshold*: see
    :func:`derive_dab_threshold`.
    """
    if not tiles:
        raise ConfigError("no sample tiles", expected="at least one")
    base = base or CellDetectionSettings()
    notes: list[str] = []
    sample = np.concatenate([tile.reshape(-1, 1, 3) for tile in tiles])
    measured: dict[str, float] = {}
    if stains is None:
        stains, measured = _estimated_stains(sample, sample if thumbnail is None else thumbnail, reference, notes)
    has_dab = stains.index("DAB") is not None
    settings = replace(
        base,
        detection_image="Optical density sum" if has_dab else base.detection_image,
        background_radius_um=0.0,
        requested_pixel_size_um=pixel_size_um,
    )
    settings, found = _with_threshold(tiles, settings, stains, pixel_size_um, notes)
    measured |= found
    if has_dab:
        means = np.concatenate([_dab_means(tile, settings, stains, pixel_size_um) for tile in tiles])
        cut, reason = derive_dab_threshold(means, default=base.dab_threshold)
        if reason:
            notes.append(reason)
        settings = replace(settings, dab_threshold=cut)
        measured |= {"nuclei sampled": float(len(means)), "dab threshold": cut}
    return AutoSettings(settings, stains, tuple(notes), measured)


def _estimated_stains(
    sample: Rgb, thumbnail: Rgb, reference: StainVectors, notes: list[str]
) -> tuple[StainVectors, dict[str, float]]:
    """Return stains and white of a slide with the numbers behind them; add to the notes what could not be derived."""
    glass = estimate_background(thumbnail)
    if glass.reason:
        notes.append(glass.reason)
    estimate = estimate_stains(sample, reference=reference, background=glass.background)
    if estimate.reason:
        notes.append(estimate.reason)
    white = dict(zip(("white red", "white green", "white blue"), glass.background, strict=True))
    names = zip(estimate.stains.names, estimate.angles_deg, strict=True)
    return estimate.stains, white | {f"{name} angle to default (deg)": angle for name, angle in names}


def _with_threshold(
    tiles: Sequence[Rgb],
    settings: CellDetectionSettings,
    stains: StainVectors,
    pixel_size_um: float,
    notes: list[str],
) -> tuple[CellDetectionSettings, dict[str, float]]:
    found = [basin_means(t, pixel_size_um=pixel_size_um, settings=settings, stains=stains) for t in tiles]
    least_px = settings.min_area_um2 / pixel_size_um**2
    means = np.concatenate([basins.means[basins.areas_px >= least_px] for basins in found])
    between = float(np.median([basins.between for basins in found]))
    if len(means) < _LEAST_NUCLEI:
        notes.append(f"only {len(means)} dark spots in the sample; detection threshold {settings.threshold:g} kept")
        return settings, {"between nuclei": between}
    typical = float(np.median(means))
    threshold = (between + typical) / 2
    if threshold < _LEAST_THRESHOLD:
        notes.append(f"tissue hardly stained (threshold would be {threshold:.2f}); {_LEAST_THRESHOLD:g} taken")
        threshold = _LEAST_THRESHOLD
    measured = {"between nuclei": between, "typical basin": typical, "threshold": threshold}
    return replace(settings, threshold=threshold), measured


def _dab_means(tile: Rgb, settings: CellDetectionSettings, stains: StainVectors, pixel_size_um: float) -> FloatArray:
    nuclei = detect_nuclei(tile, pixel_size_um=pixel_size_um, settings=settings, stains=stains)
    name = f"{stains.names[stains.index('DAB') or 0]} OD"
    dab = {name: nuclei.channels[name]}
    return measure_intensities(nuclei.labels, dab, len(nuclei.contours), statistics=("mean",))[f"{name} mean"]


def derive_dab_threshold(means: FloatArray, *, default: float = 0.2) -> tuple[float, str]:
    """Find the cut between negative and positive nuclei in their DAB densities (Otsu 1979).

    Otsu's cut is taken only if there really are two populations: their means differ by at least 0.15 OD, and either
    the cut explains at least 75 % of the variance (a single normal population reaches 64 %), or the upper mean lies
    at least 6 robust standard deviations of the lower population above the lower mean (rare positive cells).

    Parameters
    ----------
    means
        Mean DAB OD of each nucleus, float (n,).
    default
        What to return otherwise.

    Returns
    -------
    threshold, reason
        The cut; and an empty string, or why it is the default.

    Examples
    --------
    >>> threshold, reason = derive_dab_threshold(np.r_[np.zeros(90), np.full(30, 0.8)])
    >>> bool(0 < threshold < 0.8), reason
    (True, '')
    """
    means = means[np.isfinite(means)]
    if len(means) < _LEAST_NUCLEI:
        return default, f"only {len(means)} nuclei in the sample; DAB threshold {default:g} taken"
    if np.ptp(means) < _LEAST_DAB_STEP:
        return default, f"all nuclei have about the same DAB density; DAB threshold {default:g} taken"
    cut = float(threshold_otsu(means))
    low, high = means[means <= cut], means[means > cut]
    step = float(high.mean() - low.mean())
    share = len(high) / len(means)
    explained = share * (1 - share) * step**2 / float(means.var())
    spread = 1.4826 * float(np.median(np.abs(low - np.median(low))))
    if step >= _LEAST_DAB_STEP and (explained >= 0.75 or step >= 6 * spread):
        # half way, which is the same cut for a densely and a thinly populated gap
        return float((low.mean() + high.mean()) / 2), ""
    return default, f"nuclei do not fall into a negative and a positive group; DAB threshold {default:g} taken"
