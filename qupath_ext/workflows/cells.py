"""Cells without a model and without classes, as QuPath's own cell detection finds them, over images of a project."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from pyhisto.errors import PyhistoError
from pyhisto.nuclei import CellDetectionSettings, detect_cells
from pyhisto.nuclei.auto import AutoSettings
from pyhisto.nuclei.settings import for_nucleus_size
from pyhisto.objects import concat_objects, empty_objects
from pyhisto.slide import Slide
from pyhisto.stain import H_DAB, H_E
from qupath_ext.frames import image_area, open_slide, to_entry_frame, to_slide_frame
from qupath_ext.project import ImageEntry, Project
from qupath_ext.runs.ownership import Ownership, read_ownership
from qupath_ext.runs.record import Run
from qupath_ext.workflows.images import Lane, Pending, Progress, run_images
from qupath_ext.workflows.outcome import ImageOutcome, ImageWriter, described_stains
from qupath_ext.workflows.prediction import ImageMaps
from qupath_ext.workflows.regions import (
    RegionSource,
    cut_to,
    inside_selected,
    region_to_search,
    with_parents,
    without_doubles,
    without_ignored,
)
from qupath_ext.workflows.slidememory import SlideMemory
from qupath_ext.workflows.surveys import StainSource, entry_stains

__all__ = ["CellsFound", "CellsSettings", "detect_images"]

ANALYSIS = "cells"


@dataclass(frozen=True)
class CellsSettings:
    """Settings of a detection.

    Attributes
    ----------
    region, region_class, selected
        Where cells are looked for: in the annotations `selected`, else as `region` says, whose ``"tumour"`` is
        annotations of `region_class`.
    detection
        Settings of the detector; the DAB threshold is not used.
    nucleus_size_um
        Diameter of the nuclei that the settings are scaled to; None leaves them as they are.
    stains
        As in :func:`qupath_ext.workflows.surveys.entry_stains`.
    automatic
        Derive the threshold, and the stains if there are none, from each slide; else they are QuPath's default ones.
        Where annotations are selected, they are those of the whole slide.
    """

    region: RegionSource = "auto"
    region_class: str = "Tumor"
    selected: tuple[str, ...] = ()
    detection: CellDetectionSettings = field(default_factory=CellDetectionSettings)
    nucleus_size_um: float | None = None
    stains: StainSource = "auto"
    automatic: bool = False


@dataclass(frozen=True, kw_only=True)
class CellsFound(ImageOutcome):
    """What was found on an image: the number of new cells and annotations."""

    cells: int
    annotations: int

    def summary(self) -> dict[str, Any]:
        """Return the result as JSON types."""
        return {**super().summary(), "cells": self.cells, "annotations": self.annotations}


def detect_images(
    project: Project,
    entries: Sequence[ImageEntry],
    settings: CellsSettings,
    *,
    memory: SlideMemory | None = None,
    progress: Progress | None = None,
) -> Iterator[CellsFound | tuple[ImageEntry, PyhistoError]]:
    """Find the cells of images, and write each result as it comes.

    Cells of earlier runs that nobody touched make way: all of them, or those in the selected annotations.

    Parameters
    ----------
    project, entries
        The project and those of its images that are wanted.
    settings
        See :class:`CellsSettings`.
    memory
        Knows slides that were looked at before; each is looked at anew if None.
    progress
        Called with the stage, the number of tiles done and the number in all.

    Yields
    ------
    CellsFound or (ImageEntry, PyhistoError)
        The result of each image, or why it has none.
    """

    def analyse(entry: ImageEntry, run: Run | None, progress: Progress) -> Pending[CellsFound]:
        del run
        return _detect(project, entry, settings, memory or SlideMemory(), progress)

    yield from run_images(
        project, entries, ANALYSIS, asdict(settings), [Lane([], analyse)], recorded=_recorded, progress=progress
    )


def _detect(
    project: Project, entry: ImageEntry, settings: CellsSettings, memory: SlideMemory, progress: Progress
) -> Pending[CellsFound]:
    """Find the cells of one image."""
    begin = time.perf_counter()
    ownership = read_ownership(project, ANALYSIS, entry)
    replaceable = _to_replace(ownership, settings)
    drawn = to_slide_frame(ownership.present.drop(index=replaceable), entry)
    with open_slide(entry) as slide:
        area = image_area(entry, slide)
        parents = region_to_search(slide, settings.region, drawn, settings.region_class, area, settings.selected)
        new = parents[~parents.index.isin(drawn.index)].copy()
        new["locked"] = True
        region = without_ignored(parents, drawn, area)
        used = _settings(slide, entry, settings, region, memory)
        found = empty_objects()
        if not region.is_empty:
            found = detect_cells(
                slide,
                used.settings,
                stains=used.stains,
                region=region,
                progress=lambda done, total: progress("cells", done, total),
            )
        found["classification"] = None
        theirs = drawn.loc[list(ownership.theirs)]
        corrected = theirs[theirs["object_type"].isin(["cell", "detection"])]
        found = with_parents(without_doubles(cut_to(found, area), corrected), parents)
        size_mm2 = float(region.area * slide.mpp[0] * slide.mpp[1] / 1e6)
        mpp = list(slide.mpp)
    result = CellsFound(
        name=entry.name,
        entry_id=entry.id,
        cells=len(found),
        annotations=len(new),
        region_area_mm2=size_mm2,
        settings={
            "mpp": mpp,
            **described_stains(used.stains),
            "detection": asdict(used.settings),
            "measured": used.measured,
        },
        notes=used.notes,
        seconds=time.perf_counter() - begin,
        kept=len(ownership.theirs),
        replaced=len(replaceable),
    )
    writer = ImageWriter(
        project=project,
        entry=entry,
        objects=to_entry_frame(concat_objects([new, found]), entry),
        ownership=ownership,
        replace=replaceable,
        colors={},
        maps=ImageMaps(),
        result=result,
    )
    return Pending(result, writer)


def _to_replace(ownership: Ownership, settings: CellsSettings) -> list[str]:
    if not settings.selected:
        return list(ownership.untouched)
    mine = ownership.present.loc[list(ownership.untouched)]
    return inside_selected(mine, ownership.present, settings.selected, annotations=False)


def _settings(
    slide: Slide, entry: ImageEntry, settings: CellsSettings, region: Any, memory: SlideMemory
) -> AutoSettings:
    """Return settings and stains for an image."""
    detection = settings.detection
    if settings.nucleus_size_um is not None:
        detection = for_nucleus_size(detection, settings.nucleus_size_um)
    stains = entry_stains(entry, settings.stains)
    default = H_E if entry.image_type == "BRIGHTFIELD_H_E" else H_DAB
    if settings.automatic:
        inside = None if settings.selected or region.is_empty else region
        return memory.settings(slide, base=detection, reference=default, stains=stains, region=inside)
    return AutoSettings(detection, stains or default)


def _recorded(entry: ImageEntry, run: Run) -> CellsFound:
    """Return the result of an image that this run finished before it was interrupted."""
    record = run.images[entry.id]["result"]
    return CellsFound(**ImageOutcome.recorded(entry, run), cells=record["cells"], annotations=record["annotations"])
