"""Ki-67: the share of positive tumour cells, from a slide to a QuPath project.

Tumour is segmented (or taken from the annotations), cells are looked for inside it only, and tumour annotations and
cells go into the project under the promises of :mod:`qupath_ext.runs`.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import geopandas as gpd
import numpy as np
import shapely

from pyhisto.bundle import Bundle
from pyhisto.classes import CLASS_COLORS
from pyhisto.errors import PyhistoError
from pyhisto.inference import Lens, predict_tissue
from pyhisto.metrics import Index, ki67_index
from pyhisto.nuclei import CellDetectionSettings, detect_cells
from pyhisto.nuclei.adapt import Adaptation, View, adapt
from pyhisto.nuclei.survey import Survey, survey_slide
from pyhisto.objects import concat_objects, empty_objects, load_objects
from pyhisto.slide import Slide
from pyhisto.stain import H_DAB, StainVectors
from pyhisto.tissue import detect_tissue
from qupath_ext.frames import image_area, open_slide, to_entry_frame, to_slide_frame
from qupath_ext.project import ImageEntry, Project, pack_rgb
from qupath_ext.runs.ownership import read_ownership, write_run
from qupath_ext.runs.record import Run
from qupath_ext.workflows.classical import estimated_settings, sized_settings
from qupath_ext.workflows.images import Progress, run_images
from qupath_ext.workflows.networks import NucleiLike, network_cells
from qupath_ext.workflows.regions import (
    RegionSource,
    cells_inside,
    cut_to,
    region_to_search,
    with_parents,
    without_doubles,
    without_ignored,
)
from qupath_ext.workflows.surveys import StainSource, Surveys, entry_stains

__all__ = ["CLASSES", "ImageResult", "Ki67Settings", "analyse_slide", "annotate_project"]

ANALYSIS = "ki67"

CLASSES = {
    name: pack_rgb(*CLASS_COLORS[name])
    for name in ("Tumor", "Tumor: Positive", "Tumor: Negative", "Positive", "Negative", "Tissue")
}
"""Classes that this analysis uses, with QuPath's colours."""

H_AND_E = "the project calls this image H&E, where DAB means nothing; set the image type in QuPath if it is wrong"
"""Note on an image of that type."""

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
    stains
        ``"project"`` takes those of the project, ``"default"`` QuPath's default H-DAB, ``"auto"`` those of the project
        if a person adjusted them, else estimates them from the slide.
    automatic
        Derive the thresholds of the classical detector from each slide; else `detection` is taken as it is.
    detection
        Settings of the classical detector; of the networks only ``cell_expansion_um`` is used.
    view
        How networks see the slides, and who decides what is positive.
    mpp
        Pixel size in µm that overrides the project's and the file's.
    """

    region: RegionSource = "auto"
    tumour_class: str = "Tumor"
    stains: StainSource = "auto"
    automatic: bool = True
    detection: CellDetectionSettings = field(default_factory=CellDetectionSettings)
    view: View = field(default_factory=View)
    mpp: float | None = None


@dataclass(frozen=True)
class ImageResult:
    """What was found on an image.

    Attributes
    ----------
    name, entry_id
        Of the image.
    objects
        New path objects, level-0 px of the slide; the cells name their parent annotation.
    index
        The Ki-67 index with its interval.
    region_area_mm2
        Area that was searched for cells.
    settings, notes
        What was derived from the slide, and what deserves a look.
    seconds
        Time taken.
    kept, replaced
        Objects of earlier runs that a person changed and that stay; objects that were replaced.
    """

    name: str
    entry_id: str
    objects: gpd.GeoDataFrame
    index: Index
    region_area_mm2: float
    settings: dict[str, Any]
    notes: tuple[str, ...]
    seconds: float
    kept: int = 0
    replaced: int = 0

    def summary(self) -> dict[str, Any]:
        """Return the result as JSON types."""
        index = self.index
        density = index.total / self.region_area_mm2 if self.region_area_mm2 else None
        return {
            "image": self.name,
            "entry_id": self.entry_id,
            "cells": index.total,
            "positive": index.positive,
            "negative": index.total - index.positive,
            "ki67_percent": _number(index.percent),
            "interval_95_percent": [_number(index.low), _number(index.high)],
            "interval_method": index.method,
            "region_area_mm2": round(self.region_area_mm2, 6),
            "cells_per_mm2": None if density is None else round(density, 2),
            "annotations": int((self.objects["object_type"] == "annotation").sum()),
            "kept_by_person": self.kept,
            "replaced": self.replaced,
            "settings": self.settings,
            "notes": list(self.notes),
            "seconds": round(self.seconds, 2),
        }


def _number(value: float) -> float | None:
    return None if np.isnan(value) else round(float(value), 4)


def annotate_project(
    project: Project,
    entries: Sequence[ImageEntry],
    settings: Ki67Settings,
    *,
    tumour: Bundle | None = None,
    cells: Bundle | None = None,
    dry_run: bool = False,
    progress: Progress | None = None,
) -> Iterator[ImageResult | tuple[ImageEntry, PyhistoError]]:
    """Analyse images of a project one after the other, and write each result before the next begins.

    Parameters
    ----------
    project, entries
        The project and those of its images that are wanted.
    settings
        See :class:`Ki67Settings`.
    tumour
        Model of the kind ``tissue_segmentation``, of which `settings.tumour_class` is taken; without one
        `settings.region` says where to look.
    cells
        Model of the kind ``cell_detection``; without one the classical detector is used.
    dry_run
        Write nothing.
    progress
        Called with the stage, the number of windows done and the number in all.

    Yields
    ------
    ImageResult or (ImageEntry, PyhistoError)
        The result of each image, or why it has none. What an interrupted run of the same settings finished is not done
        again; its result is the recorded one.
    """
    bundles = [bundle for bundle in (tumour, cells) if bundle is not None]
    surveys = Surveys(
        entries, settings.stains, settings.mpp, reference=H_DAB, nuclei=_needs_size(settings, bundles, cells)
    )

    def analyse(entry: ImageEntry, run: Run | None) -> ImageResult:
        return _annotate(project, entry, settings, tumour, cells, surveys, run, progress)

    yield from run_images(
        project, entries, ANALYSIS, asdict(settings), bundles, analyse=analyse, recorded=_recorded, dry_run=dry_run
    )


def _annotate(
    project: Project,
    entry: ImageEntry,
    settings: Ki67Settings,
    tumour: Bundle | None,
    cells: Bundle | None,
    surveys: Surveys,
    run: Run | None,
    progress: Progress | None,
) -> ImageResult:
    """Analyse one image and write the result, replacing what earlier runs wrote and nobody changed."""
    ownership = read_ownership(project, ANALYSIS, entry)
    present = ownership.present
    replaceable = _to_replace(present.loc[list(ownership.untouched)], settings, tumour)
    drawn = to_slide_frame(present.drop(index=replaceable), entry)
    kept = drawn.loc[list(ownership.theirs)]
    with open_slide(entry, settings.mpp) as slide:
        stains = entry_stains(entry, settings.stains)
        survey = surveys.of(entry, slide, stains) if _looks_first(settings, tumour, cells) else None
        result = analyse_slide(
            slide,
            settings,
            area=image_area(entry, slide),
            stains=stains,
            drawn=drawn,
            kept=kept,
            tumour=tumour,
            cells=cells,
            survey=survey,
            nuclei_like=lambda bundle, lens: surveys.nuclei_like(entry, bundle, lens),
            progress=progress,
        )
    objects = to_entry_frame(result.objects, entry)
    notes = (*((H_AND_E,) if entry.image_type == "BRIGHTFIELD_H_E" else ()), *result.notes)
    result = dataclasses.replace(
        result, name=entry.name, entry_id=entry.id, kept=len(kept), replaced=len(replaceable), notes=notes
    )
    if run is None:
        return result
    project.add_classes({name: CLASSES.get(name) for name in objects["classification"].dropna().unique()})
    parents = set(objects["parent_id"].dropna()) - set(objects.index)
    write_run(run, entry, objects, ownership, replace=replaceable, lock=sorted(parents), result=result.summary())
    return result


def _to_replace(same: gpd.GeoDataFrame, settings: Ki67Settings, tumour: Bundle | None) -> list[str]:
    """Return which untouched objects of earlier runs go: all, or all but tumour that this run looks inside."""
    if tumour is not None or settings.region not in ("auto", "tumour"):
        return [str(id_) for id_ in same.index]
    is_tumour = (same["object_type"] == "annotation") & (same["classification"] == settings.tumour_class)
    return [str(id_) for id_ in same.index[~is_tumour]]


def _recorded(entry: ImageEntry, run: Run) -> ImageResult:
    """Return the result of an image that this run finished before it was interrupted."""
    record = run.images[entry.id]["result"]
    low, high = (np.nan if value is None else value for value in record["interval_95_percent"])
    percent = np.nan if record["ki67_percent"] is None else record["ki67_percent"]
    return ImageResult(
        name=entry.name,
        entry_id=entry.id,
        objects=to_slide_frame(load_objects(run.objects_file(entry.id)), entry),
        index=Index(record["positive"], record["cells"], percent, low, high, record["interval_method"]),
        region_area_mm2=record["region_area_mm2"],
        settings=record["settings"],
        notes=tuple(record["notes"]),
        seconds=record["seconds"],
        kept=record["kept_by_person"],
        replaced=record["replaced"],
    )


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
    tumour, cells, progress
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
    if survey is None and _looks_first(settings, tumour, cells):
        known = [bundle for bundle in (tumour, cells) if bundle is not None]
        survey = survey_slide(slide, stains=stains, reference=H_DAB, nuclei=_needs_size(settings, known, cells))
    tissue_view = _adapted(tumour, survey, settings)
    new, parents = _parents(slide, settings, drawn, area, tumour, tissue_view.lens, report("tumour"))
    region = without_ignored(parents, drawn, area)
    adaptation = _adapted(cells, survey, settings)
    measured: dict[str, Any] = {}
    detection = settings.detection
    notes: tuple[str, ...] = tuple(dict.fromkeys(tissue_view.notes + adaptation.notes))
    if cells is not None and survey is not None:
        stains = stains or survey.stains.stains
        found, measured = network_cells(
            slide,
            cells,
            adaptation,
            settings.view,
            stains=stains,
            region=region,
            cell_expansion_um=settings.detection.cell_expansion_um,
            nuclei_like=nuclei_like,
            progress=report("cells"),
        )
    else:
        sized, size_notes = sized_settings(settings.detection, settings.view, survey)
        notes += size_notes
        automatic = estimated_settings(slide, sized, settings.automatic, stains, region)
        stains = stains or automatic.stains
        detection = automatic.settings
        measured = automatic.measured
        notes += automatic.notes if settings.automatic or settings.stains == "auto" else ()
        base_class = settings.tumour_class if _is_tumour(parents, settings) else None
        found = empty_objects()
        if not region.is_empty:
            found = detect_cells(
                slide, detection, stains=stains, region=region, base_class=base_class, progress=report("cells")
            )
    corrected = cells_inside(kept, region)
    found = with_parents(without_doubles(cut_to(found, area), corrected), parents)
    return ImageResult(
        name=slide.path.name,
        entry_id="",
        objects=concat_objects([new, found]),
        index=_index(concat_objects([found, corrected]), slide),
        region_area_mm2=float(region.area * slide.mpp[0] * slide.mpp[1] / 1e6),
        settings=_described(slide, settings, None if cells is not None else detection, stains, measured),
        notes=notes,
        seconds=time.perf_counter() - begin,
    )


def _adapted(bundle: Bundle | None, survey: Survey | None, settings: Ki67Settings) -> Adaptation:
    return Adaptation() if bundle is None or survey is None else adapt(bundle.spec, survey, settings.view)


def _needs_size(settings: Ki67Settings, bundles: Sequence[Bundle], cells: Bundle | None) -> bool:
    """Return whether the size of the nuclei is compared with anything."""
    known = any(bundle.spec.nucleus_diameter_um is not None for bundle in bundles)
    return settings.view.nucleus_size_um == "auto" and (known or (cells is None and settings.automatic))


def _looks_first(settings: Ki67Settings, tumour: Bundle | None, cells: Bundle | None) -> bool:
    """Return whether slides are surveyed: for networks, and where the classical detector follows the nuclei."""
    classical = cells is None and settings.automatic and settings.view.nucleus_size_um == "auto"
    return tumour is not None or cells is not None or classical


def _parents(
    slide: Slide,
    settings: Ki67Settings,
    drawn: gpd.GeoDataFrame,
    area: shapely.Polygon,
    tumour: Bundle | None,
    lens: Lens,
    progress: Callable[[int, int], None],
) -> tuple[gpd.GeoDataFrame, gpd.GeoDataFrame]:
    """Return (new annotations, annotations that get the cells); the latter may have been drawn by a person."""
    if tumour is not None:
        tissue = cut_to(detect_tissue(slide), area)
        outline = shapely.union_all(tissue.geometry.to_numpy()) if len(tissue) else shapely.Polygon()
        found = predict_tissue(slide, tumour, outline, lens=lens, progress=progress)
        new = cut_to(found[found["classification"] == settings.tumour_class], area)
        new["locked"] = True
        return new, new
    areas = region_to_search(slide, settings.region, drawn, settings.tumour_class, area)
    existing = areas.index.isin(drawn.index)
    new = areas[~existing].copy()
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
    described: dict[str, Any] = {
        "mpp": list(slide.mpp),
        "stains": {name: list(vector) for name, vector in zip(stains.names, stains.vectors, strict=True)},
        "background": list(stains.background),
        "region": settings.region,
    }
    if detection is not None:
        described["detection"] = asdict(detection)
    return {**described, "measured": measured}
