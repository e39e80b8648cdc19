"""The sides of a comparison: what a run wrote, what people drew, what is there, another project, or GeoJSON files."""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from pyhisto.objects import load_objects
from qupath_ext.errors import ProjectError
from qupath_ext.exchange.geojson import ENDINGS, read_geojson
from qupath_ext.project import open_project
from qupath_ext.runs.ownership import sort_out
from qupath_ext.runs.record import Run, find_run, list_runs
from qupath_ext.workflows.trainingdata import IMPORTS

if TYPE_CHECKING:
    import geopandas as gpd

    from qupath_ext.entry import ImageEntry
    from qupath_ext.project import Project

__all__ = ["FORMS", "Image", "Source", "parse_source"]

FORMS = "run:ID, run:latest, annotations, objects, project:PATH or geojson:FOLDER"
"""How a source is written."""


class Image:
    """One image of the project, its objects read once and only when they are asked for."""

    def __init__(self, project: Project, entry: ImageEntry) -> None:
        self.project = project
        self.entry = entry

    @cached_property
    def objects(self) -> gpd.GeoDataFrame:
        """All objects that lie in the image."""
        return self.entry.read_objects()


class Source(ABC):
    """Where the objects of one side come from.

    Attributes
    ----------
    key
        What two equal sources have in common.
    words
        The source in words, for people.
    says_nothing
        Whether an image without objects was labelled as empty; otherwise nobody has labelled it.
    """

    key: str
    words: str
    says_nothing: bool = False

    @abstractmethod
    def read(self, image: Image) -> gpd.GeoDataFrame | None:
        """Return the path-object table of an image in the frame that QuPath shows; None if the source lacks it.

        Raises
        ------
        ProjectError
            If the source has it, and it cannot be read or is of another size.
        """


class _RunSource(Source):
    says_nothing = True

    def __init__(self, run: Run) -> None:
        self.run = run
        self.key = f"run:{run.id}"
        self.words = f"what the run {run.id} ({run.analysis}) wrote"

    def read(self, image: Image) -> gpd.GeoDataFrame | None:
        path = self.run.objects_file(image.entry.id)
        done = self.run.images.get(image.entry.id, {}).get("status") == "done"
        return load_objects(path) if done and path.is_file() else None


class _Annotations(Source):
    key = "annotations"
    words = "what people drew, corrected or imported"

    def read(self, image: Image) -> gpd.GeoDataFrame:
        analyses = [run for run in list_runs(image.project) if run.analysis != IMPORTS]
        untouched, _ = sort_out(image.project, image.entry.id, image.objects, analyses)
        return image.objects.drop(index=untouched)


class _Objects(Source):
    key = "objects"
    words = "all objects that lie in the images now"

    def read(self, image: Image) -> gpd.GeoDataFrame:
        return image.objects


class _OtherProject(Source):
    def __init__(self, project: Project) -> None:
        self.project = project
        self.key = f"project:{project.path.resolve()}"
        self.words = f"all objects of the images with the same names in {project.path}"

    def read(self, image: Image) -> gpd.GeoDataFrame | None:
        found = [entry for entry in self.project.entries if entry.name == image.entry.name]
        if len(found) > 1:
            raise ProjectError(
                f"{len(found)} images of {self.project.path} are called {image.entry.name!r}",
                expected="one",
                remedy="rename them in QuPath",
            )
        if not found:
            return None
        here, there = image.entry.size(), found[0].size()
        if here != there:
            raise ProjectError(
                f"{image.entry.name!r} is {there[0]} x {there[1]} px in {self.project.path}",
                expected=f"{here[0]} x {here[1]} px, as in {image.project.path}",
            )
        return found[0].read_objects()


class _GeoJson(Source):
    says_nothing = True

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.key = f"geojson:{folder.resolve()}"
        self.words = f"the GeoJSON files in {folder}"
        self.files = {path.name: path for path in folder.iterdir() if path.is_file()}

    def read(self, image: Image) -> gpd.GeoDataFrame | None:
        stems = dict.fromkeys([image.entry.id, image.entry.name, Path(image.entry.name).stem])
        found = [self.files[stem + end] for stem in stems for end in ENDINGS if stem + end in self.files]
        if len(found) > 1:
            names = " and ".join(path.name for path in found[:2])
            raise ProjectError(f"{self.folder} has {names} for {image.entry.name!r}", expected="one file an image")
        return read_geojson(found[0]) if found else None


def parse_source(text: str, project: Project, *, backend: str = "auto") -> Source:
    """Return the source that an option names; see :data:`FORMS`.

    Parameters
    ----------
    text
        As the user wrote it.
    project
        The project whose images are compared.
    backend
        What opens another project.

    Raises
    ------
    ProjectError
        If it is no source, or the run, project or folder is not there.
    """
    kind, _, rest = text.partition(":")
    if text == "annotations":
        return _Annotations()
    if text == "objects":
        return _Objects()
    if kind == "run" and rest:
        return _RunSource(find_run(project, rest))
    if kind == "project" and rest:
        return _OtherProject(open_project(rest, backend=backend))
    if kind == "geojson" and rest:
        if not Path(rest).is_dir():
            raise ProjectError(f"{rest} is no folder", expected="a folder with <image id or name>.geojson")
        return _GeoJson(Path(rest))
    raise ProjectError(f"source {text!r}", expected=FORMS)
