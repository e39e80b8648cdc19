"""The slides of a loop: images that show the same of one file in several projects are one slide."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import geopandas as gpd
import numpy as np
import shapely

from pyhisto.objects import make_objects
from pyhisto.slide import Slide
from pyhisto.tissue import detect_tissue
from qupath_ext.frames import image_area, to_slide_frame
from qupath_ext.native.builderframe import Affine
from qupath_ext.study import LabelStudy
from qupath_ext.workflows.regions import IGNORE_CLASS, cut_to
from qupath_ext.workflows.trainingdata import DONE, REGION, REJECTED, Source

if TYPE_CHECKING:
    from qupath_ext.active.loop import Loop

__all__ = ["LoopSlide", "loop_slides", "shown_slide"]

LABELS = LabelStudy()
LABELLED = (DONE, LABELS.training, LABELS.validation)
"""Classes of areas in which everything is labelled already."""

FIELD_UM2 = 1e5
"""An image of no more µm² is a field cut out of tissue: what is detected as tissue is at least a fifth of that."""


@dataclass(frozen=True)
class LoopSlide:
    """A slide of the training part.

    Attributes
    ----------
    key
        Equal for images that show the same: name and size of the file, which image of it, and where it is shown.
    sources
        Its images, each in a project of its own.
    """

    key: str
    sources: tuple[Source, ...]

    @property
    def first(self) -> Source:
        """The image that stands for all."""
        return self.sources[0]

    def tissue(self, slide: Slide) -> list[Any]:
        """Return polygons of the tissue that the image shows, level-0 px; all of it if it is but a field."""
        shown = image_area(self.first.entry, slide)
        if shown.area * slide.mpp[0] * slide.mpp[1] <= FIELD_UM2:
            return [shown]
        found = cut_to(detect_tissue(slide), shown)
        return list(shapely.get_parts(found.geometry.to_numpy()))

    def areas(self, loop: Loop, before: int) -> tuple[list[Any], list[Any]]:
        """Return where everything is labelled, and that with all other places where nothing is to be proposed.

        The latter are regions of rounds below `before`, whatever became of them, regions in the images that are of no
        round any more, and areas to ignore; polygons, level-0 px.
        """
        labelled: list[Any] = []
        other: list[Any] = []
        for source in self.sources:
            present = source.entry.read_present()
            for names, found in ((LABELLED, labelled), ((REGION, REJECTED, IGNORE_CLASS), other)):
                own = (present.table["object_type"] == "annotation") & present.table["classification"].isin(names)
                found += _polygons(to_slide_frame(present.take(np.flatnonzero(own)), source.entry))
        for one in loop.rounds():
            if one.number < before and one.has("proposals"):
                proposed = one.table("proposals")
                own = proposed[proposed["slide"] == self.key].drop_duplicates("rank")
                for (project, entry_id), rows in own.groupby(["project", "entry_id"]):
                    entry = loop.projects[int(project)].entry(int(entry_id))
                    regions = make_objects(rows.geometry.to_numpy(), object_type="annotation")
                    other += _polygons(to_slide_frame(regions, entry))
        return labelled, labelled + other


def _polygons(areas: gpd.GeoDataFrame) -> list[Any]:
    """Return the polygons of some areas; outlines drawn by hand may cross themselves."""
    parts = shapely.get_parts(shapely.get_parts(shapely.make_valid(areas.geometry.to_numpy())))
    return [part for part in parts if part.geom_type == "Polygon"]


def loop_slides(loop: Loop) -> list[LoopSlide]:
    """Return the slides of the training part, in the order of the projects and their images.

    Raises
    ------
    ProjectError
        If a slide is missing.
    """
    found: dict[str, list[Source]] = {}
    for source in loop.sources("train"):
        key = shown_slide(source)
        others = found.setdefault(key, [])
        if all(other.project is not source.project for other in others):
            others.append(source)
    return [LoopSlide(key, tuple(sources)) for key, sources in found.items()]


def shown_slide(source: Source) -> str:
    """Return what two images share that show the same of one slide.

    Raises
    ------
    ProjectError
        If the slide is missing.
    """
    entry = source.entry
    path = entry.slide_path
    frame: Affine = entry.slide_frame()
    shown = ",".join(f"{value:g}" for value in (*frame, *entry.size()))
    return f"{path.name}:{path.stat().st_size}:{entry.slide_series}:{shown}"
