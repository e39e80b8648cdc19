"""Ki-67: the share of positive tumour cells, over the images of a QuPath project.

What :mod:`qupath_ext.workflows.ki67slide` finds goes into the project under the promises of :mod:`qupath_ext.runs`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import asdict

import geopandas as gpd
import numpy as np

from pyhisto.bundle.files import Bundle
from pyhisto.classes import CLASS_COLORS
from pyhisto.errors import PyhistoError
from pyhisto.metrics import Index
from pyhisto.objects import load_objects
from pyhisto.stain import H_DAB
from qupath_ext.frames import image_area, open_slide, to_entry_frame, to_slide_frame
from qupath_ext.project import ImageEntry, Project, pack_rgb
from qupath_ext.runs.ownership import read_ownership
from qupath_ext.runs.record import Run
from qupath_ext.workflows.images import Lane, Pending, Progress, run_images
from qupath_ext.workflows.ki67slide import ImageResult, Ki67Settings, analyse_slide, looks_first, needs_size
from qupath_ext.workflows.outcome import ImageOutcome, ImageWriter
from qupath_ext.workflows.prediction import check_tiles, image_maps
from qupath_ext.workflows.regions import inside_selected
from qupath_ext.workflows.slidememory import SlideMemory
from qupath_ext.workflows.surveys import Surveys, entry_stains

__all__ = ["CLASSES", "ImageResult", "Ki67Settings", "analyse_slide", "annotate_project"]

ANALYSIS = "ki67"

CLASSES = {
    name: pack_rgb(*CLASS_COLORS[name])
    for name in ("Tumor", "Tumor: Positive", "Tumor: Negative", "Positive", "Negative", "Tissue")
}
"""Classes that this analysis uses, with QuPath's colours."""

H_AND_E = "the project calls this image H&E, where DAB means nothing; set the image type in QuPath if it is wrong"
"""Note on an image of that type."""


def annotate_project(  # noqa: PLR0913 - models, and how to go about it
    project: Project,
    entries: Sequence[ImageEntry],
    settings: Ki67Settings,
    *,
    tumour: Bundle | None = None,
    cells: Bundle | None = None,
    others: Sequence[tuple[Bundle | None, Bundle | None]] = (),
    dry_run: bool = False,
    memory: SlideMemory | None = None,
    progress: Progress | None = None,
) -> Iterator[ImageResult | tuple[ImageEntry, PyhistoError]]:
    """Analyse images of a project; each result is written as soon as it is there.

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
    others
        The same two models on further devices, which share the images.
    dry_run
        Write nothing.
    memory
        Knows slides that were looked at before; each is looked at anew if None.
    progress
        Called with the stage, the number of windows done and the number in all.

    Yields
    ------
    ImageResult or (ImageEntry, PyhistoError)
        The result of each image, or why it has none. What an interrupted run of the same settings finished is not done
        again; its result is the recorded one.

    Raises
    ------
    ConfigError
        If a model cannot have the tiles of the settings.
    """
    bundles = [bundle for bundle in (tumour, cells) if bundle is not None]
    check_tiles(bundles, settings.prediction)
    surveys = Surveys(
        entries,
        settings.stains,
        settings.mpp,
        reference=H_DAB,
        nuclei=needs_size(settings, bundles, cells),
        memory=memory,
    )

    def lane(tumour: Bundle | None, cells: Bundle | None) -> Lane[ImageResult]:
        def analyse(entry: ImageEntry, run: Run | None, progress: Progress) -> Pending[ImageResult]:
            return _annotate(project, entry, settings, tumour, cells, surveys, run, progress)

        return Lane([bundle for bundle in (tumour, cells) if bundle is not None], analyse)

    yield from run_images(
        project,
        entries,
        ANALYSIS,
        asdict(settings),
        [lane(*models) for models in ((tumour, cells), *others)],
        recorded=_recorded,
        dry_run=dry_run,
        progress=progress,
    )


def _annotate(
    project: Project,
    entry: ImageEntry,
    settings: Ki67Settings,
    tumour: Bundle | None,
    cells: Bundle | None,
    surveys: Surveys,
    run: Run | None,
    progress: Progress,
) -> Pending[ImageResult]:
    """Analyse one image; what earlier runs wrote and nobody changed is to be replaced."""
    ownership = read_ownership(project, ANALYSIS, entry)
    present = ownership.present
    replaceable = _to_replace(present, ownership.untouched, settings, tumour)
    drawn = to_slide_frame(present.drop(index=replaceable), entry)
    kept = drawn.loc[list(ownership.theirs)]
    with open_slide(entry, settings.mpp) as slide:
        stains = entry_stains(entry, settings.stains)
        survey = surveys.of(entry, slide, stains) if looks_first(settings, tumour, cells) else None
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
            memory=surveys.memory,
            progress=progress,
        )
        maps = image_maps(entry, slide.mpp, result.seen, settings.prediction)
    objects = to_entry_frame(result.objects, entry)
    result = dataclasses.replace(
        result,
        name=entry.name,
        entry_id=entry.id,
        kept=len(kept),
        replaced=len(replaceable),
        notes=(*((H_AND_E,) if entry.image_type == "BRIGHTFIELD_H_E" else ()), *result.notes),
        maps=tuple(maps.files) if run is not None else (),
        seen={},
    )
    writer = ImageWriter(
        project=project,
        entry=entry,
        objects=objects,
        ownership=ownership,
        replace=replaceable,
        colors={name: CLASSES.get(name) for name in objects["classification"].dropna().unique()},
        maps=maps,
        result=result,
    )
    return Pending(result, writer)


def _to_replace(
    present: gpd.GeoDataFrame, untouched: Sequence[str], settings: Ki67Settings, tumour: Bundle | None
) -> list[str]:
    """Return which untouched objects of earlier runs go: all, or all but tumour that this run looks inside.

    Where annotations are selected, only the cells in them make way.
    """
    same = present.loc[list(untouched)]
    if tumour is None and settings.selected:
        return inside_selected(same, present, settings.selected, annotations=False)
    if tumour is not None or settings.region not in ("auto", "tumour"):
        return [str(id_) for id_ in same.index]
    is_tumour = (same["object_type"] == "annotation") & (same["classification"] == settings.tumour_class)
    return [str(id_) for id_ in same.index[~is_tumour]]


def _recorded(entry: ImageEntry, run: Run) -> ImageResult:
    """Return the result of an image that this run finished before it was interrupted."""
    record = run.images[entry.id]["result"]
    low, high = (np.nan if value is None else value for value in record["interval_95_percent"])
    percent = np.nan if record["ki67_percent"] is None else record["ki67_percent"]
    objects = load_objects(run.objects_file(entry.id))
    return ImageResult(
        **ImageOutcome.recorded(entry, run),
        objects=to_slide_frame(objects[objects["object_type"] != "tile"], entry),
        index=Index(record["positive"], record["cells"], percent, low, high, record["interval_method"]),
    )
