"""The slides of a loop: images that show the same of one file in several projects are one slide."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import geopandas as gpd
import numpy as np
import shapely

from pyhisto.errors import PyhistoError, SlideError
from pyhisto.objects import make_objects
from pyhisto.slide import Slide
from qupath_ext.active.memory import RoundMemory
from qupath_ext.errors import ProjectError
from qupath_ext.frames import image_area, to_slide_frame
from qupath_ext.native.builderframe import Affine
from qupath_ext.study import LabelStudy
from qupath_ext.workflows.regions import FIELD_UM2, IGNORE_CLASS, cut_to
from qupath_ext.workflows.trainingdata import DONE, REGION, REJECTED, Source

if TYPE_CHECKING:
    from qupath_ext.active.loop import Loop

__all__ = ["LeftOut", "LoopSlide", "loop_slides", "shown_slide", "unless_read"]

LABELS = LabelStudy()
LABELLED = (DONE, LABELS.training, LABELS.validation)
"""Classes of areas in which everything is labelled already."""


class LeftOut:
    """The images that a step goes on without, each said in a line.

    Parameters
    ----------
    loop
        The loop.
    say
        Called with the lines.

    Attributes
    ----------
    records
        What is kept of each, as JSON types: ``project`` (its number), ``entry_id``, ``image`` and ``why``.
    """

    def __init__(self, loop: Loop, say: Callable[[str], None]) -> None:
        self._loop = loop
        self._say = say
        self.records: list[dict[str, Any]] = []

    def add(self, source: Source, error: PyhistoError) -> None:
        """Say that an image is left out, and why."""
        self._say(f"  {source.title} is left out: {error}")
        self.records.append(
            {
                "project": self._loop.number_of(source.project),
                "entry_id": source.entry.id,
                "image": source.entry.name,
                "why": str(error),
            }
        )

    def has(self, source: Source) -> bool:
        """Return whether an image is left out."""
        place = (self._loop.number_of(source.project), source.entry.id)
        return any((one["project"], one["entry_id"]) == place for one in self.records)

    def nothing_left(self, what: str) -> ProjectError:
        """Return the error that no image is left, with why the first one is left out."""
        first = self.records[0]
        found = f"none of {len(self.records)} images {what} can be read, such as {first['image']}: {first['why']}"
        return ProjectError(found)


@contextmanager
def unless_read(left_out: LeftOut | None, *sources: Source) -> Iterator[None]:
    """Go on without some images if their slide or their objects cannot be read inside a ``with`` block."""
    try:
        yield
    except (SlideError, ProjectError) as error:
        if left_out is None:
            raise
        for source in sources:
            left_out.add(source, error)


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

    @property
    def memory(self) -> RoundMemory:
        """What was measured on it in earlier rounds."""
        return RoundMemory(self.first.project.path.parent)

    def tissue(self, slide: Slide) -> list[Any]:
        """Return polygons of the tissue that the image shows, level-0 px; all of it if it is but a field."""
        shown = image_area(self.first.entry, slide)
        if shown.area * slide.mpp[0] * slide.mpp[1] <= FIELD_UM2:
            return [shown]
        found = cut_to(self.memory.tissue(slide), shown)
        return list(shapely.get_parts(found.geometry.to_numpy()))

    def unshown(self, slide: Slide) -> list[Any]:
        """Return polygons of what the image does not show of its slide, level-0 px; most images show all."""
        whole = shapely.box(0, 0, *slide.dimensions)
        return _parts([whole.difference(image_area(self.first.entry, slide))])

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
    return _parts(shapely.make_valid(areas.geometry.to_numpy()))


def _parts(shapes: Any) -> list[Any]:
    """Return the polygons of some shapes, which may be collections."""
    return [part for part in shapely.get_parts(shapely.get_parts(shapes)) if part.geom_type == "Polygon"]


def loop_slides(loop: Loop, left_out: LeftOut | None = None) -> list[LoopSlide]:
    """Return the slides of the training part, in the order of the projects and their images.

    Parameters
    ----------
    loop
        The loop.
    left_out
        Takes those that are missing.

    Raises
    ------
    ProjectError
        If a slide is missing, and nothing takes it.
    """
    found: dict[str, list[Source]] = {}
    for source in loop.sources("train"):
        with unless_read(left_out, source):
            others = found.setdefault(shown_slide(source), [])
            if all(other.project is not source.project for other in others):
                others.append(source)
    return [LoopSlide(key, tuple(own)) for key, own in found.items()]


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
