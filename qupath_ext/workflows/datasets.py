"""Public data sets -> QuPath projects: images with their truth as annotations inside a training rectangle."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import shapely

from pyhisto.errors import PyhistoError
from pyhisto.objects import make_objects
from pyhisto.slide import Slide
from qupath_ext.errors import ProjectError
from qupath_ext.exchange.layouts.arrays import read_labels
from qupath_ext.exchange.layouts.names import key_of
from qupath_ext.exchange.layouts.outlines import connected_parts, label_outlines
from qupath_ext.exchange.layouts.truth import Frame, Truth, TruthSource
from qupath_ext.project import Project
from qupath_ext.runs.ownership import read_ids, read_ownership, write_run
from qupath_ext.runs.record import Run, list_runs, start_run

if TYPE_CHECKING:
    import geopandas as gpd

    from qupath_ext.entry import ImageEntry

__all__ = ["DatasetSettings", "ImportedImage", "check_names", "import_dataset", "match", "read_truth"]

ANALYSIS = "import"
IMAGES = "images"
"""Folder of a project for images that were cut."""


@dataclass(frozen=True)
class DatasetSettings:
    """How the images of a data set become those of a project.

    Attributes
    ----------
    dataset
        Name of the data set; entry metadata "Dataset".
    part
        What the images are for; entry metadata "Part": train, validation or test. Empty: not said.
    patient_pattern
        Regular expression whose first group, searched for in an image's name without ending, is the patient; entry
        metadata "Patient". Empty: not said.
    points
        Turn outlines into points: centres of mass, or a point inside where that lies outside.
    region_class
        Class of the rectangle over the whole image, which says that all in it is labelled. Empty: no rectangle.
    regions
        Mask of each image by name, of which the pixels above 0 are labelled, where not the whole image is.
    image_type
        QuPath's image type.
    mpp
        Pixel size in µm, where the images do not say it.
    crop
        (x, y, width, height) of the part that is the image. It is cut out and stored as PNG in the project: a reader at
        its border must not see what lies beside it in the file.
    """

    dataset: str = ""
    part: str = ""
    patient_pattern: str = ""
    points: bool = False
    region_class: str = "Training"
    regions: Mapping[str, Path] = field(default_factory=dict)
    image_type: str = "BRIGHTFIELD_H_E"
    mpp: float | None = None
    crop: tuple[int, int, int, int] | None = None

    def metadata(self, path: Path) -> dict[str, str]:
        """Return the entry metadata of an image.

        Raises
        ------
        ProjectError
            If its name does not have the pattern.
        """
        patient = key_of(path.name, self.patient_pattern, "--patient-pattern") if self.patient_pattern else ""
        values = {"Patient": patient, "Part": self.part, "Dataset": self.dataset}
        return {name: value for name, value in values.items() if value}


@dataclass(frozen=True)
class ImportedImage:
    """What became of one image.

    Attributes
    ----------
    name
        Its name.
    status
        ``"imported"``, ``"there"`` if an earlier import wrote it, or ``"failed"``.
    classes
        Number of labelled objects by class.
    left_out
        How many labels were left out.
    error
        Why it failed.
    """

    name: str
    status: str
    classes: Mapping[str, int]
    left_out: int = 0
    error: str = ""


# ---------------------------------------------------------------------- before anything is written
def match(images: Mapping[str, Path], source: TruthSource, *, one_file: bool, allow_empty: bool) -> int:
    """Check that images and labels belong together.

    Parameters
    ----------
    images
        The images by name.
    source
        The labels.
    one_file
        The labels of all images are in one file, which may have more of them.
    allow_empty
        An image without labels is one without objects.

    Returns
    -------
    int
        Number of images in the labels that are not among the images.

    Raises
    ------
    ProjectError
        If an image has no labels, or labels have no image.
    """
    without = sorted(images.keys() - source.keys)
    stray = sorted(source.keys - images.keys())
    if len(without) == len(images) or (stray and not one_file):
        raise ProjectError(
            f"{len(images)} images and {len(source.keys)} labelled images of which {len(source.keys) - len(stray)} are "
            f"among them; the first without a partner is {(stray or without)[0]!r}",
            expected="the same names",
            remedy="narrow the globs, or give --match",
        )
    if without and not allow_empty:
        raise ProjectError(
            f"{len(without)} images have no labels, the first is {without[0]!r}",
            expected="labels of each image",
            remedy="narrow --images, or give --allow-empty if they have no objects",
        )
    return len(stray)


def check_names(project: Project | None, images: Mapping[str, Path], settings: DatasetSettings) -> None:
    """Check what must hold for all images before the first one is written.

    Raises
    ------
    ProjectError
        If two images, or one and another one of the project, have the same name, a pattern does not fit, or regions are
        given and not for all.
    MissingPixelSizeError
        If the first image has no pixel size and none is given.
    """
    lacking = sorted(images.keys() - settings.regions.keys()) if settings.regions else []
    if lacking:
        raise ProjectError(
            f"{len(lacking)} images have no regions, the first is {lacking[0]!r}", expected="all or none"
        )
    entries = {} if project is None else {entry.name: entry for entry in project.entries}
    names: dict[str, Path] = {}
    for path in images.values():
        settings.metadata(path)
        name = _name(path, settings)
        other = names.get(name)
        if project is not None and name in entries:
            stored = entries[name].stored_slide_path
            other = stored if stored != _stored(project, path, settings) else other
        if other is not None:
            raise ProjectError(
                f"images {other} and {path} are both called {name}",
                expected="different names in one project",
                remedy="import them into projects of their own",
            )
        names[name] = path
    with Slide(next(iter(images.values())), mpp=settings.mpp) as slide:
        _ = slide.mpp


def _name(path: Path, settings: DatasetSettings) -> str:
    return path.name if settings.crop is None else f"{path.stem}.png"


def _stored(project: Project, path: Path, settings: DatasetSettings) -> Path:
    """Return the file that an image of a project opens."""
    return path.absolute() if settings.crop is None else project.path.parent / IMAGES / _name(path, settings)


# ---------------------------------------------------------------------- one image after the other
def import_dataset(
    project: Project,
    images: Mapping[str, Path],
    source: TruthSource,
    settings: DatasetSettings,
    config: Mapping[str, Any],
) -> Iterator[ImportedImage]:
    """Add images with their truth to a project; all belong to one run of the analysis ``import``.

    Images that an earlier import wrote, and nobody undid, stay as they are; one that fails does not stop the others.

    Parameters
    ----------
    project
        The project.
    images
        The images by name, as :func:`match` and :func:`check_names` found them right.
    source
        Their labels.
    settings
        How they are imported.
    config
        What the record of the run says of the data set, as JSON types.

    Yields
    ------
    ImportedImage
        For each image.
    """
    there = {entry.stored_slide_path: entry for entry in project.entries}
    earlier = [run for run in list_runs(project) if run.analysis == ANALYSIS and "layout" in run.record["config"]]
    run: Run | None = None
    try:
        for key, path in images.items():
            name = _name(path, settings)
            entry = there.get(_stored(project, path, settings))
            if entry is not None and any(run_.is_done(entry.id) for run_ in earlier):
                yield ImportedImage(name, "there", {})
                continue
            try:
                truth, regions = read_truth(key, path, source, settings)
                entry = entry or _added(project, path, settings)
                run = run or start_run(project, ANALYSIS, config, {})
                attempts = {id_ for run_ in earlier for file in run_.objects_files(entry.id) for id_ in read_ids(file)}
                objects = _as_annotations(truth, regions, settings)
                counts = _write(project, run, entry, objects, attempts, truth)
            except PyhistoError as error:
                yield ImportedImage(name, "failed", {}, error=str(error))
            else:
                yield ImportedImage(name, "imported", counts, truth.left_out)
        if run is not None:
            run.finish()
    finally:
        if run is not None:
            run.release()


def read_truth(key: str, path: Path, source: TruthSource, settings: DatasetSettings) -> tuple[Truth, list[Any]]:
    """Read the labels of an image, and the polygons inside which all is labelled, px of the image.

    Raises
    ------
    PyhistoError
        If the image or the labels cannot be read, or do not fit together.
    """
    with Slide(path, mpp=settings.mpp) as slide:
        frame = Frame(slide.dimensions, settings.crop)
    if settings.crop is not None:
        x, y, width, height = settings.crop
        if min(x, y) < 0 or min(width, height) < 1 or x + width > frame.size[0] or y + height > frame.size[1]:
            raise ProjectError(
                f"crop {x},{y},{width},{height} of {path.name}",
                expected=f"a part of {frame.size[0]} x {frame.size[1]} px",
            )
    truth = source.read(key, frame) if key in source.keys else Truth(np.empty(0, dtype=object), [])
    return truth, _regions(key, frame, settings)


def _regions(key: str, frame: Frame, settings: DatasetSettings) -> list[Any]:
    if not settings.region_class:
        return []
    if not settings.regions:
        return [shapely.box(0, 0, *frame.shown)]
    path = settings.regions[key]
    parts, _ = connected_parts((frame.cut(read_labels(path), path) > 0).astype(np.uint8))
    polygons: list[Any] = label_outlines(parts)[1].tolist()
    return polygons


def _added(project: Project, path: Path, settings: DatasetSettings) -> ImageEntry:
    """Add an image to a project, cut first if it is to be."""
    stored = _stored(project, path, settings)
    if settings.crop is not None:
        _cut(path, stored, settings.crop)
    return project.add_image(stored, image_type=settings.image_type, mpp=settings.mpp, metadata=settings.metadata(path))


def _cut(path: Path, target: Path, crop: tuple[int, int, int, int]) -> None:
    from PIL import Image

    with Slide(path) as slide:
        pixels = slide.read_region(*crop)
    target.parent.mkdir(exist_ok=True)
    temporary = target.with_name(f".{target.name}.tmp")
    try:
        Image.fromarray(pixels).save(temporary, format="PNG")
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def _write(
    project: Project, run: Run, entry: ImageEntry, objects: gpd.GeoDataFrame, attempts: Set[str], truth: Truth
) -> dict[str, int]:
    """Write the truth of an image in place of what interrupted attempts wrote; return the number of labels by class."""
    counts = {name: truth.classes.count(name) for name in dict.fromkeys(truth.classes)}
    ownership = read_ownership(project, ANALYSIS, entry)
    replace = [id_ for id_ in ownership.untouched if id_ in attempts]
    project.add_classes(dict.fromkeys(objects["classification"].dropna().unique()))
    result = {"labels": counts, "left_out": truth.left_out}
    write_run(run, entry, objects, ownership, replace=replace, result=result)
    return counts


def _as_annotations(truth: Truth, regions: list[Any], settings: DatasetSettings) -> gpd.GeoDataFrame:
    """Return the regions and the labels: outlines as they are, points together, one annotation a class."""
    shapes, classes = truth.shapes, np.array(truth.classes, dtype=object)
    if settings.points:
        shapes = _centres(shapes)
    is_point = shapely.get_dimensions(shapes) == 0
    point_classes = list(dict.fromkeys(classes[is_point].tolist()))
    points = [shapely.MultiPoint(shapes[is_point & (classes == name)].tolist()) for name in point_classes]
    geometry = [*regions, *shapes[~is_point].tolist(), *points]
    names = [*[settings.region_class] * len(regions), *classes[~is_point].tolist(), *point_classes]
    return make_objects(
        geometry,
        object_type="annotation",
        classification=names,
        locked=[at < len(regions) for at in range(len(geometry))],
    )


def _centres(shapes: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    centres = shapely.centroid(shapes)
    outside = ~shapely.covers(shapes, centres)
    centres[outside] = shapely.point_on_surface(shapes[outside])
    return np.asarray(centres, dtype=object)
