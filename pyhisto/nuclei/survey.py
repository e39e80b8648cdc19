"""A look at a slide before a network sees it: how large its nuclei are, and how it is stained."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import shapely

from pyhisto.nuclei.auto import sample_tiles
from pyhisto.nuclei.scale import NucleusSize, nucleus_size, observe_nuclei
from pyhisto.slide import Slide
from pyhisto.stain import H_DAB, H_E, StainReference, StainVectors, deconvolve, estimate_background, estimate_stains

if TYPE_CHECKING:
    from pyhisto.dataset import TrainingImage

__all__ = ["Survey", "expected_stains", "pool_surveys", "survey_slide", "training_references"]

PIXEL_UM = 0.3
"""Pixel size of the tiles that are looked at, µm; a coarser slide is enlarged."""

COARSEST_UM = 2.0
"""Pixel size of a slide up to which nuclei can be seen, µm: one of 8 µm has four pixels across."""

AGREEING_RATIO = 1.25
"""Upper by lower quartile of what slides measure, up to which it is believed."""

MOST_TILES = 6
MOST_TRAINING_SLIDES = 24
_STAINED_OD = 0.15


@dataclass(frozen=True)
class Survey:
    """What sample tiles of a slide, or of several, show.

    Attributes
    ----------
    stains
        Stain vectors, white, and how strong the stains are.
    observed
        Objects of :func:`pyhisto.nuclei.scale.observe_nuclei`.
    sizes
        Median nucleus diameter of each of several slides, µm; without those that show too few nuclei.
    """

    stains: StainReference
    observed: npt.NDArray[np.float64]
    sizes: tuple[float, ...] = ()

    @property
    def size(self) -> NucleusSize:
        """Size of the nuclei, µm at the declared pixel size."""
        return nucleus_size(self.observed, pixel_size_um=PIXEL_UM)

    @property
    def agrees(self) -> bool:
        """Whether the slides have nuclei of one size: the middle half lies within :data:`AGREEING_RATIO`.

        Fewer than three slides cannot disagree.
        """
        if len(self.sizes) < 3:
            return True
        low, high = np.quantile(self.sizes, [0.25, 0.75])
        return bool(high <= AGREEING_RATIO * low)


def survey_slide(
    slide: Slide,
    *,
    stains: StainVectors | None = None,
    reference: StainVectors | None = None,
    region: Any | None = None,
    most: int = MOST_TILES,
    nuclei: bool = True,
) -> Survey:
    """Look at sample tiles of a slide.

    Parameters
    ----------
    slide
        An open slide with a pixel size.
    stains
        Its stains; estimated if None.
    reference
        The stains that are expected; haematoxylin with DAB or eosin, whichever fits better, if None.
    region
        Polygon or MultiPolygon, level-0 px, to sample from; the whole slide by default.
    most
        Greatest number of tiles.
    nuclei
        Look for nuclei as well, which takes some seconds; else their size is unknown, as it is on slides with pixels of
        more than :data:`COARSEST_UM`.

    Raises
    ------
    MissingPixelSizeError
        If the slide's pixel size is not known.
    SlideError
        If its pixels cannot be decoded.
    """
    tiles = sample_tiles(slide, PIXEL_UM, region=region, most=most)
    sample = np.concatenate([tile.reshape(-1, 1, 3) for tile in tiles])
    if stains is None:
        white = estimate_background(slide.thumbnail()).background
        known = None if reference is None else estimate_stains(sample, reference=reference, background=white).stains
        stains = known or likely_stains(sample, white)
    amounts = np.clip(deconvolve(sample, stains)[:, 0, :2].astype(np.float64), 0, None)
    stained = amounts[amounts.sum(axis=-1) > _STAINED_OD]
    high = np.percentile(stained if len(stained) else amounts, 99, axis=0)
    strength = StainReference(stains, (float(high[0]), float(high[1])))
    shown = nuclei and slide.mean_mpp <= COARSEST_UM
    return Survey(strength, observe_nuclei(tiles if shown else [], pixel_size_um=PIXEL_UM, stains=stains))


def likely_stains(sample: npt.NDArray[np.uint8], white: tuple[float, float, float]) -> StainVectors:
    """Return the stains of pixels, RGB uint8 (H, W, 3): haematoxylin with DAB or eosin, whichever is nearer."""
    estimates = [estimate_stains(sample, reference=reference, background=white) for reference in (H_DAB, H_E)]
    return min(estimates, key=lambda e: float(np.nan_to_num(e.angles_deg[1], nan=90.0))).stains


def pool_surveys(surveys: Sequence[Survey]) -> Survey:
    """Return what several slides show together: all their objects, and the mean of their stains where these show.

    Stains of other names than those of the first slide are left out.
    """
    names = surveys[0].stains.stains.names
    same = [survey.stains for survey in surveys if survey.stains.stains.names == names]
    shown = [any(reference.shown[stain] for reference in same) for stain in range(2)]
    showing = [[one for one in same if one.shown[stain] or not shown[stain]] for stain in range(2)] + [same]
    means = [np.mean([one.stains.vectors for one in own], axis=0) for own in showing]
    vectors = [means[stain][stain] for stain in range(len(names))]
    white = np.mean([reference.stains.background for reference in same], axis=0)
    stains = StainVectors(names, tuple((v[0], v[1], v[2]) for v in vectors), (white[0], white[1], white[2]))
    high = [float(np.median([one.p99[stain] for one in showing[stain]])) for stain in range(2)]
    observed = np.concatenate([survey.observed for survey in surveys])
    sizes = [survey.size.diameter_um for survey in surveys]
    known = tuple(size for size in sizes if not np.isnan(size))
    return Survey(StainReference(stains, (high[0], high[1])), observed, known)


def expected_stains(classes: Iterable[str | None]) -> StainVectors | None:
    """Return haematoxylin and DAB if some class is one of positive or negative cells; else None: anything."""
    return H_DAB if any(str(name).endswith(("Positive", "Negative")) for name in classes) else None


def training_references(images: Sequence[TrainingImage]) -> tuple[float | None, StainReference | None]:
    """Measure training slides for a model's description.

    Parameters
    ----------
    images
        Slides with annotations; at most 24 of them, spread evenly, are looked at, where something is annotated.

    Returns
    -------
    diameter : float or None
        Median nucleus diameter in µm at the declared pixel size, for ``ModelSpec.nucleus_diameter_um``; None if there
        are too few nuclei, or the slides do not agree (:attr:`Survey.agrees`).
    stains : StainReference or None
        For ``ModelSpec.stains``; None without images.
    """
    if not images:
        return None, None
    chosen = np.linspace(0, len(images) - 1, min(MOST_TRAINING_SLIDES, len(images))).round().astype(int)
    surveys = []
    for image in (images[int(i)] for i in chosen):
        with Slide(image.path, mpp=image.mpp, crop_to_bounds=image.crop_to_bounds, series=image.series) as slide:
            bounds = shapely.total_bounds(image.objects.geometry.to_numpy()) if len(image.objects) else None
            region = None if bounds is None or not np.isfinite(bounds).all() else shapely.box(*bounds)
            most = max(1, MOST_TRAINING_SLIDES // len(chosen))
            surveys.append(
                survey_slide(
                    slide,
                    stains=image.stains,
                    reference=expected_stains(image.objects["classification"].dropna()),
                    region=region,
                    most=most,
                )
            )
    pooled = pool_surveys(surveys)
    size = pooled.size
    known = pooled.agrees and not np.isnan(size.diameter_um)
    return (round(size.diameter_um, 3) if known else None), pooled.stains
