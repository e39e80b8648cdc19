"""What the projects of a training hold: which objects are truth, whose slide it is, and in which part it stands."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import geopandas as gpd
import numpy as np
import numpy.typing as npt
import shapely

from pyhisto.dataset import TrainingImage
from pyhisto.stain import estimate_background
from qupath_ext.errors import ProjectError
from qupath_ext.frames import open_slide, slide_mpp, to_slide_frame
from qupath_ext.project import ImageEntry, Project
from qupath_ext.runs.ownership import sort_out
from qupath_ext.runs.record import list_runs
from qupath_ext.study import LabelStudy
from qupath_ext.workflows.surveys import entry_stains

__all__ = ["IMPORTS", "Source", "Truth", "gather", "patient_of", "training_images", "truth_objects"]

IMPORTS = "import"
"""The analysis whose objects a person brought in: they are truth as what that person drew."""


@dataclass(frozen=True)
class Source:
    """An image and its project."""

    project: Project
    entry: ImageEntry

    @property
    def title(self) -> str:
        """Name of the image, with that of the project's folder, for messages."""
        return f"{self.project.path.parent.name}/{self.entry.name}"


def gather(projects: Sequence[Project], images: Sequence[str] = ()) -> list[Source]:
    """Return the images of projects, or those that were named by name or id, each in any of the projects.

    Raises
    ------
    ProjectError
        If there is no image, or no project has one of that name.
    """
    sources = [Source(project, entry) for project in projects for entry in project.entries]
    for name in images:
        if not any(name in (s.entry.name, s.entry.id) for s in sources):
            known = ", ".join(repr(s.entry.name) for s in sources[:5]) or "no images"
            raise ProjectError(f"no image {name!r} in {len(projects)} projects", expected=f"one of {known}")
    wanted = [s for s in sources if not images or s.entry.name in images or s.entry.id in images]
    if not wanted:
        raise ProjectError("no images in the projects", remedy="add annotated slides in QuPath")
    return wanted


def patient_of(entry: ImageEntry, key: str) -> str:
    """Return the patient that the metadata of an image names under a key, or else the name of its slide file."""
    return entry.metadata.get(key, "").strip() or entry.stored_slide_path.name


@dataclass(frozen=True)
class Truth:
    """The objects of an image that say what is true, QuPath's frame; how many cells in its areas nobody checked."""

    objects: gpd.GeoDataFrame
    unchecked: int


def truth_objects(source: Source, labels: LabelStudy) -> Truth:
    """Return the objects of an image that say what is true.

    Annotations count, but those that an analysis wrote and nobody changed. Detections and cells count if a person
    corrected what an analysis wrote; with ``labels.detections`` also those inside a training or validation area, which
    are background there without it, and counted as unchecked.
    """
    present = source.entry.read_objects()
    runs = [run for run in list_runs(source.project) if run.analysis != IMPORTS]
    untouched, theirs = sort_out(source.project, source.entry.id, present, runs) if runs else ([], [])
    kind = present["object_type"].to_numpy(dtype=object)
    found = np.isin(kind, ["detection", "cell"])
    counts = (kind == "annotation") & ~present.index.isin(untouched)
    counts |= found & present.index.isin(theirs)
    rows = np.flatnonzero(found & ~counts & present["classification"].notna().to_numpy())
    inside = rows[_inside(present, rows, (labels.training, labels.validation))]
    if labels.detections:
        counts[inside] = True
    return Truth(present[counts], 0 if labels.detections else len(inside))


def _inside(present: gpd.GeoDataFrame, rows: npt.NDArray[np.intp], names: tuple[str, str]) -> npt.NDArray[np.bool_]:
    """Return whether the centroids of some objects lie in an annotation of one of the classes; (n,)."""
    areas = present[(present["object_type"] == "annotation") & present["classification"].isin(names)]
    if len(areas) == 0:
        return np.zeros(len(rows), dtype=bool)
    area = shapely.union_all(areas.geometry.to_numpy())
    shapely.prepare(area)
    return np.asarray(shapely.covers(area, shapely.centroid(present.geometry.to_numpy()[rows])))


def training_images(
    sources: Iterable[Source],
    labels: LabelStudy | None = None,
    *,
    patient_key: str = "",
    say: Callable[[str], None] | None = None,
) -> list[TrainingImage]:
    """Return the slides of images with the objects that are truth, level-0 px of the slide; all to train on.

    Parameters
    ----------
    sources
        The images.
    labels
        What the objects say.
    patient_key
        Entry metadata that names the patient; see :func:`patient_of`.
    say
        Called with a line about what is probably not meant.

    Raises
    ------
    ProjectError
        If a slide is missing or the data of an image cannot be read.
    SlideError
        If a slide cannot be opened.
    """
    out = []
    unchecked = 0
    for source in sources:
        entry = source.entry
        truth = truth_objects(source, labels or LabelStudy())
        unchecked += truth.unchecked
        with open_slide(entry) as slide:
            white = estimate_background(slide.thumbnail()).background
        adjusted = entry_stains(entry, "auto")
        image = TrainingImage(
            path=entry.slide_path,
            objects=to_slide_frame(truth.objects, entry),
            mpp=slide_mpp(entry),
            crop_to_bounds=entry.crop_to_bounds,
            series=entry.slide_series,
            name=source.title,
            patient=patient_of(entry, patient_key),
            white=white if adjusted is None else adjusted.background,
            stains=adjusted,
        )
        out.append(image)
    if unchecked and say is not None:
        say(
            f"{unchecked} cells that nobody corrected lie in training areas and count as background there; "
            "if they were checked, set detections = true in [labels]"
        )
    return out
