"""What is wrong with a project, and what to do about it; nothing is changed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import shapely

from pyhisto.errors import MissingPixelSizeError, PyhistoError
from qupath_ext.errors import FormatError, ProjectError
from qupath_ext.frames import image_area, open_slide

if TYPE_CHECKING:
    import geopandas as gpd

    from qupath_ext.entry import ImageEntry
    from qupath_ext.project import Project

__all__ = ["Finding", "check_project"]

SAME_MPP = 0.01
"""Relative difference of two pixel sizes that is taken for rounding."""
MAX_NAMED = 3


@dataclass(frozen=True)
class Finding:
    """One thing that was found.

    Attributes
    ----------
    severity
        ``"error"``: this program or QuPath cannot work with it; ``"warning"``: worth a look.
    image
        Name of the image; None if it is about the project.
    what
        What was found, in one line.
    remedy
        What to do.
    """

    severity: Literal["error", "warning"]
    image: str | None
    what: str
    remedy: str


def _error(image: str | None, what: str, remedy: str) -> Finding:
    return Finding("error", image, what, remedy)


def _warning(image: str | None, what: str, remedy: str) -> Finding:
    return Finding("warning", image, what, remedy)


def check_project(
    project: Project, *, slides: bool = True, progress: Callable[[int, int], None] | None = None
) -> Iterator[Finding]:
    """Look for missing slides, wrong sizes, damaged files and objects that QuPath would refuse.

    Parameters
    ----------
    project
        The project.
    slides
        Also open the slides.
    progress
        Called with the number of images done and in all.

    Yields
    ------
    Finding
        Nothing for a sound project.
    """
    yield from _project_files(project)
    entries = project.entries
    for number, entry in enumerate(entries):
        yield from _data(entry)
        if slides:
            yield from _slide(entry)
        if progress is not None:
            progress(number + 1, len(entries))


# ---------------------------------------------------------------------- the project's own files
def _project_files(project: Project) -> Iterator[Finding]:
    try:
        project.classes  # noqa: B018 - reading them is the check
    except FormatError as error:
        yield _error(None, str(error), "restore it, or delete it: QuPath makes a new one")
    folder = project.path.parent
    ids = [entry.id for entry in project.entries]
    for id_, n in Counter(ids).items():
        if n > 1:
            yield _error(None, f"{n} images have the id {id_}", "remove all but one of them in QuPath")
    for name, n in Counter(entry.name for entry in project.entries).items():
        if n > 1:
            yield _warning(None, f"{n} images are called {name!r}", "name them by id on the command line")
    data = folder / "data"
    for place in sorted(data.iterdir() if data.is_dir() else ()):
        if place.is_dir() and place.name.isdigit() and place.name not in ids:
            yield _warning(
                None,
                f"{place} belongs to no image of the project",
                "QuPath leaves such folders when an image is removed; keep it for its annotations, or delete it",
            )
    for path in sorted(data.glob("*/.*qupath-ext-tmp")):
        yield _warning(None, f"{path} is left from a write that was interrupted", "the next write removes it")
    for path in sorted(data.glob("*/data.qpdata.bkp")):
        yield _warning(None, f"{path}: QuPath was stopped while saving", "open the image in QuPath and look at it")


# ---------------------------------------------------------------------- objects
def _data(entry: ImageEntry) -> Iterator[Finding]:
    try:
        objects = entry.read_objects()
        image_type = entry.image_type
    except (ProjectError, PyhistoError) as error:
        yield _error(entry.name, str(error), "restore it from a backup; QuPath would show the image as empty")
        return
    if image_type == "UNSET":
        yield _warning(entry.name, "has no image type", "set it in QuPath (Image tab), or with a command")
    yield from _objects(entry, objects)


def _objects(entry: ImageEntry, objects: gpd.GeoDataFrame) -> Iterator[Finding]:
    twice = objects.index[objects.index.duplicated()].unique().tolist()
    if twice:
        yield _error(entry.name, f"object ids that occur twice: {_named(twice)}", "delete one of each in QuPath")
    geometry = objects.geometry.to_numpy()
    missing = shapely.is_missing(geometry)
    if missing.any():
        ids = objects.index[missing].tolist()
        yield _warning(entry.name, f"objects without ROI: {_named(ids)}", "delete them in QuPath")
    invalid = ~missing & ~shapely.is_valid(geometry)
    if invalid.any():
        ids = objects.index[invalid].tolist()
        reason = shapely.is_valid_reason(geometry[invalid][0])
        what = f"invalid outlines, which QuPath 0.6 and newer may refuse: {_named(ids)} ({reason})"
        yield _warning(entry.name, what, "redraw them, or simplify them in QuPath")
    metadata = entry.server_builder.get("metadata") or {}
    if metadata.get("width") and metadata.get("height"):
        image = shapely.box(0, 0, metadata["width"], metadata["height"])
        outside = ~missing & ~shapely.is_empty(geometry) & ~shapely.intersects(geometry, image)
        if outside.any():
            ids = objects.index[outside].tolist()
            what = f"objects outside of the image: {_named(ids)}"
            yield _warning(entry.name, what, "they may have been made on another image or another scale")


def _named(ids: list[str]) -> str:
    more = f" and {len(ids) - MAX_NAMED} more" if len(ids) > MAX_NAMED else ""
    return ", ".join(str(id_) for id_ in ids[:MAX_NAMED]) + more


# ---------------------------------------------------------------------- slides
def _slide(entry: ImageEntry) -> Iterator[Finding]:
    try:
        path = entry.slide_path
    except FormatError as error:
        yield _warning(entry.name, str(error), "QuPath shows it, this program does not work on it")
        return
    except ProjectError as error:
        yield _error(entry.name, str(error), "find it with: qupath-ext project relocate")
        return
    try:
        with open_slide(entry) as slide:
            image_area(entry, slide)
            shown = entry.mpp
            own = None
            slide.mpp_override = None
            with suppress(MissingPixelSizeError):
                own = slide.mpp
    except PyhistoError as error:
        yield _error(entry.name, str(error), f"look at {path}")
        return
    if shown is None and own is None:
        yield _error(entry.name, "has no pixel size", "set it in QuPath (Image tab), or give --mpp to commands")
    elif shown is not None and own is not None and not _alike(shown, own):
        what = f"{shown[0]:g} x {shown[1]:g} µm/px in the project, {own[0]:g} x {own[1]:g} in the slide"
        yield _warning(entry.name, what, "the project's counts; correct it in QuPath if it is wrong")


def _alike(shown: tuple[float, float], own: tuple[float, float]) -> bool:
    """Return whether two pixel sizes are the same but for rounding, and for a turn of the image."""
    pairs = zip(sorted(shown), sorted(own), strict=True)
    return all(abs(a / b - 1) <= SAME_MPP for a, b in pairs)
