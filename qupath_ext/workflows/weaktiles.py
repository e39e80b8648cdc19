"""The tiles of the images of a project, as bags whose slides have labels."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from pyhisto.errors import PyhistoError
from pyhisto.mil.weak.tiles import SlideTiles, TileSettings, slide_tiles
from pyhisto.slide import Slide
from qupath_ext.errors import ProjectError
from qupath_ext.frames import open_slide
from qupath_ext.project import ImageEntry
from qupath_ext.workflows.features import tile_region
from qupath_ext.workflows.images import Progress

__all__ = ["project_tiles", "slide_entry_tiles"]


def slide_entry_tiles(
    entry: ImageEntry, settings: TileSettings, *, region: str, mpp: float | None = None, patient: str = ""
) -> SlideTiles:
    """Return the tiles of an image of a project.

    Parameters
    ----------
    entry
        The image.
    settings
        Which tiles.
    region
        As in :class:`qupath_ext.workflows.features.FeatureSettings`.
    mpp
        Pixel size in µm that overrides the project's and the file's.
    patient
        Of the image; empty where it is not known.

    Raises
    ------
    PyhistoError
        If the slide cannot be opened, or no tile lies in the region.
    """
    with open_slide(entry, mpp) as slide:
        where = tile_region(entry, slide, region)
        # the file alone: threads that read tiles do not ask the project
        opened = partial(Slide, slide.path, mpp=slide.mpp, crop_to_bounds=entry.crop_to_bounds, series=slide.series)
    return slide_tiles(opened, where, settings, name=entry.name, patient=patient, entry_id=entry.id)


def project_tiles(
    entries: Sequence[ImageEntry],
    settings: TileSettings,
    *,
    region: str,
    mpp: float | None = None,
    patient_key: str = "Patient",
    progress: Progress | None = None,
) -> tuple[list[SlideTiles], list[str]]:
    """Return the tiles of images of a project, and why some have none.

    Parameters
    ----------
    entries, settings, region, mpp
        As for :func:`slide_entry_tiles`.
    patient_key
        Metadata that name the patient.
    progress
        Called with the stage, the number of images done and the number in all.

    Raises
    ------
    ProjectError
        If no image has tiles.
    """
    found, notes = [], []
    for number, entry in enumerate(entries):
        try:
            patient = entry.metadata.get(patient_key, "").strip()
            found.append(slide_entry_tiles(entry, settings, region=region, mpp=mpp, patient=patient))
        except PyhistoError as error:
            notes.append(f"{entry.name} is left out: {error}")
        if progress is not None:
            progress("tiles of slides", number + 1, len(entries))
    if not found:
        raise ProjectError(notes[0] if notes else "the project has no images", expected="slides with tiles")
    return found, notes
