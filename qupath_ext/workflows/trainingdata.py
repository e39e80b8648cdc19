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

__all__ = [
    "DONE",
    "IMPORTS",
    "PROPOSALS",
    "REGION",
    "REJECTED",
    "Source",
    "Truth",
    "gather",
    "patient_of",
    "training_images",
    "truth_objects",
]

IMPORTS = "import"
"""The analysis whose objects a person brought in: they are truth as what that person drew."""

PROPOSALS = "active-"
"""How the names of the analyses begin that propose regions with predictions inside, for a person to correct."""

REGION, DONE, REJECTED = "Region*", "Done*", "Rejected*"
"""Classes of a region that was proposed, that a person went through, and that is not to be learnt from."""

SLACK_PX = 1.0
"""How far what was cut to a region may stick out of it, px, for having been rounded."""


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

    A ``Done*`` region is a training area, in which a person looked at everything: annotations inside it count whoever
    wrote them. What was written for regions that are proposed counts nowhere else, changed or not.
    """
    present = source.entry.read_objects()
    runs = [run for run in list_runs(source.project) if run.analysis != IMPORTS]
    untouched, theirs = sort_out(source.project, source.entry.id, present, runs) if runs else ([], [])
    kind = present["object_type"].to_numpy(dtype=object)
    found = np.isin(kind, ["detection", "cell"])
    counts = (kind == "annotation") & ~present.index.isin(untouched)
    counts |= found & present.index.isin(theirs)
    proposing = [run for run in runs if run.analysis.startswith(PROPOSALS)]
    if proposing or (present["classification"] == DONE).any():
        present, counts = _as_answered(present, counts, sort_out(source.project, source.entry.id, present, proposing))
    rows = np.flatnonzero(found & ~counts & present["classification"].notna().to_numpy())
    inside = rows[_inside(present, rows, (labels.training, labels.validation))]
    if labels.detections:
        inside = rows[_inside(present, rows, (labels.training, labels.validation, DONE))]
        counts[inside] = True
    truth = present[counts]
    done = (truth["classification"] == DONE).to_numpy()
    if done.any():
        truth = truth.copy()
        names = truth["classification"].astype(object)
        names[done] = labels.training
        truth["classification"] = names.astype("category")
    return Truth(truth, 0 if labels.detections else len(inside))


def _as_answered(
    present: gpd.GeoDataFrame, counts: npt.NDArray[np.bool_], proposed: tuple[list[str], list[str]]
) -> tuple[gpd.GeoDataFrame, npt.NDArray[np.bool_]]:
    """Let annotations in done regions count, and of what was proposed elsewhere only that it was rejected.

    Parameters
    ----------
    present
        All objects of the image.
    counts
        Which of them are truth by the other rules, bool (n,).
    proposed
        Ids of what runs wrote that propose: untouched, and changed by a person.

    Returns
    -------
    present, counts
        The same; of points that were proposed, only those in done regions are left.
    """
    is_annotation = (present["object_type"] == "annotation").to_numpy()
    flat = is_annotation & (shapely.get_dimensions(present.geometry.to_numpy()) == 2)
    areas = present[flat & (present["classification"] == DONE).to_numpy()]
    done = shapely.union_all(shapely.make_valid(areas.geometry.to_numpy()))
    shapes = present.geometry.to_numpy(copy=True)
    points = is_annotation & (shapely.get_dimensions(shapes) == 0)
    of_proposals = present.index.isin([*proposed[0], *proposed[1]])
    answer = present["classification"].isin([DONE, REJECTED]).to_numpy()
    narrow, wide = shapely.buffer(done, -SLACK_PX), shapely.buffer(done, SLACK_PX)
    reaching = np.where(points, shapely.intersects(done, shapes), shapely.intersects(narrow, shapes))
    inside = is_annotation & np.where(points, shapely.covers(done, shapes), shapely.covers(wide, shapes))
    cut = np.flatnonzero(points & of_proposals & reaching)
    shapes[cut] = shapely.intersection(shapes[cut], done)
    out = present.copy()
    out["geometry"] = shapes
    return out, (counts & (~of_proposals | answer | reaching)) | inside


def _inside(present: gpd.GeoDataFrame, rows: npt.NDArray[np.intp], names: Sequence[str]) -> npt.NDArray[np.bool_]:
    """Return whether the centroids of some objects lie in an annotation of one of the classes; (n,)."""
    areas = present[(present["object_type"] == "annotation") & present["classification"].isin(list(names))]
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
