"""Ki-67 on one slide: tumour is segmented or taken from the annotations, cells are looked for inside it only."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import geopandas as gpd
import numpy as np
import shapely

from pyhisto.bundle.files import Bundle
from pyhisto.inference import predict_tissue
from pyhisto.maps import Maps
from pyhisto.metrics import Index, ki67_index
from pyhisto.nuclei import CellDetectionSettings, detect_cells
from pyhisto.nuclei.adapt import Adaptation, View, adapt
from pyhisto.nuclei.survey import Survey
from pyhisto.objects import concat_objects, empty_objects
from pyhisto.slide import Slide
from pyhisto.stain import H_DAB, StainVectors
from pyhisto.tissue import detect_tissue
from qupath_ext.workflows.classical import estimated_settings, sized_settings
from qupath_ext.workflows.images import Progress
from qupath_ext.workflows.networks import NucleiLike, network_cells
from qupath_ext.workflows.outcome import ImageOutcome, described_stains
from qupath_ext.workflows.prediction import Prediction, Watch, WatchedImage
from qupath_ext.workflows.regions import (
    RegionSource,
    cells_inside,
    cut_to,
    region_to_search,
    with_parents,
    without_doubles,
    without_ignored,
)
from qupath_ext.workflows.slidememory import SlideMemory
from qupath_ext.workflows.surveys import StainSource

__all__ = ["ImageResult", "Ki67Settings", "analyse_slide", "looks_first", "needs_size"]

FIELD_UM = 250.0
"""Side of the fields that the interval of the index is resampled over."""


@dataclass(frozen=True)
class Ki67Settings:
    """Settings of the analysis.

    Attributes
    ----------
    region
        Where cells are looked for without a tumour model: ``"tumour"`` in annotations of `tumour_class`, ``"tissue"``
        in the tissue, ``"image"`` in the whole image; ``"auto"`` in the first if there are any, else in the second.
    tumour_class
        Class of tumour annotations.
    selected
        Ids of annotations in which cells are looked for, whatever `region` says; not with a tumour model. Thresholds
        are those of the whole slide then, the same for each selection on it.
    stains
        ``"project"`` takes those of the project, ``"default"`` QuPath's default H-DAB, ``"auto"`` those of the project
        if a person adjusted them, else estimates them from the slide.
    automatic
        Derive the thresholds of the classical detector from each slide, where it looks for cells; else `detection` is
        taken as it is.
    detection
        Settings of the classical detector; of the networks only ``cell_expansion_um`` is used.
    view
        How networks see the slides, and who decides what is positive.
    mpp
        Pixel size in µm that overrides the project's and the file's.
    prediction
        How networks run, and what is kept of what they say.
    """

    region: RegionSource = "auto"
    tumour_class: str = "Tumor"
    selected: tuple[str, ...] = ()
    stains: StainSource = "auto"
    automatic: bool = True
    detection: CellDetectionSettings = field(default_factory=CellDetectionSettings)
    view: View = field(default_factory=View)
    mpp: float | None = None
    prediction: Prediction = field(default_factory=Prediction)


@dataclass(frozen=True, kw_only=True)
class ImageResult(ImageOutcome):
    """What was found on an image.

    Attributes
    ----------
    objects
        New path objects, level-0 px of the slide; the cells name their parent annotation.
    index
        The Ki-67 index with its interval.
    seen
        Maps in the frame of the slide, by the model; not kept once they are written.
    """

    objects: gpd.GeoDataFrame
    index: Index
    seen: dict[str, Maps | None] = field(default_factory=dict)

    def summary(self) -> dict[str, Any]:
        """Return the result as JSON types."""
        index = self.index
        density = index.total / self.region_area_mm2 if self.region_area_mm2 else None
        return {
            **super().summary(),
            "cells": index.total,
            "positive": index.positive,
            "negative": index.total - index.positive,
            "ki67_percent": _number(index.percent),
            "interval_95_percent": [_number(index.low), _number(index.high)],
            "interval_method": index.method,
            "cells_per_mm2": None if density is None else round(density, 2),
            "annotations": int((self.objects["object_type"] == "annotation").sum()),
        }


def _number(value: float) -> float | None:
    return None if np.isnan(value) else round(float(value), 4)


def analyse_slide(  # noqa: PLR0913 - all of it is what is known about one image
    slide: Slide,
    settings: Ki67Settings,
    *,
    area: shapely.Polygon | None = None,
    stains: StainVectors | None = None,
    drawn: gpd.GeoDataFrame | None = None,
    kept: gpd.GeoDataFrame | None = None,
    tumour: Bundle | None = None,
    cells: Bundle | None = None,
    survey: Survey | None = None,
    nuclei_like: NucleiLike | None = None,
    memory: SlideMemory | None = None,
    progress: Progress | None = None,
) -> ImageResult:
    """Find tumour and cells on a slide; nothing is written.

    Parameters
    ----------
    slide
        An open slide with a pixel size.
    settings
        See :class:`Ki67Settings`.
    area
        What of the slide the image shows, level-0 px: nothing is looked for or found outside; all of it by default.
    stains
        Stain vectors and white; estimated from the slide if None.
    drawn
        Path-object table of what is annotated already, level-0 px.
    kept
        Objects of earlier runs that a person changed, level-0 px: a cell among them stands for what is found there,
        and counts.
    survey
        What the slide shows, with others like it; for networks, which look at this slide alone if None.
    nuclei_like
        Returns the mean DAB OD of nuclei of slides like this one, which a DAB cut is derived from besides its own.
    tumour, cells, memory, progress
        As in :func:`annotate_project`.

    Returns
    -------
    ImageResult
        Its objects are level-0 px of the slide.
    """
    begin = time.perf_counter()

    def report(stage: str) -> Callable[[int, int], None]:
        return lambda done, total: progress(stage, done, total) if progress is not None else None

    drawn = empty_objects() if drawn is None else drawn
    area = shapely.box(0, 0, *slide.dimensions) if area is None else area
    memory = memory or SlideMemory()
    if survey is None and looks_first(settings, tumour, cells):
        known = [bundle for bundle in (tumour, cells) if bundle is not None]
        survey = memory.survey(slide, stains=stains, reference=H_DAB, nuclei=needs_size(settings, known, cells))
    watched: dict[str, WatchedImage] = {}
    if tumour is not None:
        new, watched["-tumour"] = _tumour(slide, settings, area, tumour, survey, report("tumour"))
        parents = new
    else:
        new, parents = _areas(slide, settings, drawn, area)
    region = without_ignored(parents, drawn, area)
    outlined = _is_tumour(parents, settings)
    if cells is not None and survey is not None:
        detection = None
        stains = stains or survey.stains.stains
        adaptation = adapt(cells.spec, survey, settings.view)
        watch = Watch(slide, cells, region, adaptation, survey, settings.view, settings.prediction, not outlined)
        found, measured = network_cells(
            slide,
            cells,
            adaptation,
            settings.view,
            stains=stains,
            region=region,
            cell_expansion_um=settings.detection.cell_expansion_um,
            settings=settings.prediction.inference,
            observers=watch.observers,
            nuclei_like=nuclei_like,
            progress=report("cells"),
        )
        watched["-cells"] = watch.conclude(found)
        notes: tuple[str, ...] = ()
    else:
        sized, notes = sized_settings(settings.detection, settings.view, survey)
        sampled = shapely.Polygon() if settings.selected else region  # what is selected gets what suits the slide
        automatic = estimated_settings(slide, sized, settings.automatic, stains, sampled, memory)
        stains = stains or automatic.stains
        detection, measured = automatic.settings, automatic.measured
        notes += automatic.notes if settings.automatic or settings.stains == "auto" else ()
        base_class = settings.tumour_class if outlined else None
        found = empty_objects()
        if not region.is_empty:
            found = detect_cells(
                slide, detection, stains=stains, region=region, base_class=base_class, progress=report("cells")
            )
    corrected = cells_inside(kept, region)
    found = with_parents(without_doubles(cut_to(found, area), corrected), parents)
    described = _described(slide, settings, detection, stains, measured)
    described |= {f"network{part}": one.measured for part, one in watched.items()}
    return ImageResult(
        name=slide.path.name,
        entry_id="",
        objects=concat_objects([new, found]),
        index=_index(concat_objects([found, corrected]), slide),
        region_area_mm2=float(region.area * slide.mpp[0] * slide.mpp[1] / 1e6),
        settings=described,
        notes=tuple(dict.fromkeys([*(note for one in watched.values() for note in one.notes), *notes])),
        seconds=time.perf_counter() - begin,
        seen={part: one.maps for part, one in watched.items()},
    )


def needs_size(settings: Ki67Settings, bundles: Sequence[Bundle], cells: Bundle | None) -> bool:
    """Return whether the size of the nuclei is compared with anything."""
    known = any(bundle.spec.nucleus_diameter_um is not None for bundle in bundles)
    return settings.view.nucleus_size_um == "auto" and (known or (cells is None and settings.automatic))


def looks_first(settings: Ki67Settings, tumour: Bundle | None, cells: Bundle | None) -> bool:
    """Return whether slides are surveyed: for networks, and where the classical detector follows the nuclei."""
    classical = cells is None and settings.automatic and settings.view.nucleus_size_um == "auto"
    return tumour is not None or cells is not None or classical


def _tumour(
    slide: Slide,
    settings: Ki67Settings,
    area: shapely.Polygon,
    tumour: Bundle,
    survey: Survey | None,
    progress: Callable[[int, int], None],
) -> tuple[gpd.GeoDataFrame, WatchedImage]:
    """Return the tumour that a model finds in the tissue, as new annotations, and what was seen of it."""
    tissue = cut_to(detect_tissue(slide), area)
    outline = shapely.union_all(tissue.geometry.to_numpy()) if len(tissue) else shapely.Polygon()
    adaptation = Adaptation() if survey is None else adapt(tumour.spec, survey, settings.view)
    watch = Watch(slide, tumour, outline, adaptation, survey, settings.view, settings.prediction, True)
    found = predict_tissue(
        slide,
        tumour,
        outline,
        lens=adaptation.lens,
        settings=settings.prediction.inference,
        observers=watch.observers,
        progress=progress,
    )
    new = cut_to(found[found["classification"] == settings.tumour_class], area)
    new["locked"] = True
    return new, watch.conclude()


def _areas(
    slide: Slide, settings: Ki67Settings, drawn: gpd.GeoDataFrame, area: shapely.Polygon
) -> tuple[gpd.GeoDataFrame, gpd.GeoDataFrame]:
    """Return (new annotations, annotations that get the cells); the latter may have been drawn by a person."""
    areas = region_to_search(slide, settings.region, drawn, settings.tumour_class, area, settings.selected)
    new = areas[~areas.index.isin(drawn.index)].copy()
    new["locked"] = True
    return new, areas


def _is_tumour(parents: gpd.GeoDataFrame, settings: Ki67Settings) -> bool:
    return bool(len(parents)) and bool((parents["classification"] == settings.tumour_class).all())


def _index(cells: gpd.GeoDataFrame, slide: Slide) -> Index:
    """Return the index of the cells classed positive or negative; fields are squares of :data:`FIELD_UM`."""
    cells = cells[cells["classification"].astype(str).str.endswith(("Positive", "Negative")).to_numpy(dtype=bool)]
    centres = shapely.get_coordinates(shapely.centroid(cells.geometry.to_numpy())) * slide.mpp
    positive = cells["classification"].astype(str).str.endswith("Positive").to_numpy(dtype=bool)
    return ki67_index(centres.reshape(-1, 2), positive, block=FIELD_UM)


def _described(
    slide: Slide,
    settings: Ki67Settings,
    detection: CellDetectionSettings | None,
    stains: StainVectors,
    measured: dict[str, Any],
) -> dict[str, Any]:
    """Return what was used on a slide, as JSON types."""
    described = {"mpp": list(slide.mpp), **described_stains(stains), "region": settings.region}
    if detection is not None:
        described["detection"] = asdict(detection)
    return {**described, "measured": measured}
