"""What comes of one image, and writing it: the same for every analysis that adds objects to a project."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import geopandas as gpd

from pyhisto.objects import concat_objects
from pyhisto.stain import StainVectors
from qupath_ext.project import ImageEntry, Project
from qupath_ext.runs.ownership import Ownership, write_run
from qupath_ext.runs.record import Run
from qupath_ext.workflows.prediction import ImageMaps

__all__ = ["ImageOutcome", "ImageWriter", "described_stains"]


@dataclass(frozen=True, kw_only=True)
class ImageOutcome:
    """What was found on an image, as far as all analyses have it.

    Attributes
    ----------
    name, entry_id
        Of the image.
    region_area_mm2
        Area that was looked at.
    settings
        What was used and measured, as JSON types.
    notes
        What a person should look at.
    seconds
        Time taken.
    kept, replaced
        Objects of earlier runs that a person changed and that stay; objects that were replaced.
    maps
        Files with maps, as seen from the folder of the run.
    """

    name: str
    entry_id: str
    region_area_mm2: float
    settings: dict[str, Any]
    notes: tuple[str, ...] = ()
    seconds: float = 0.0
    kept: int = 0
    replaced: int = 0
    maps: tuple[str, ...] = ()

    def summary(self) -> dict[str, Any]:
        """Return the result as JSON types."""
        return {
            "image": self.name,
            "entry_id": self.entry_id,
            "region_area_mm2": round(self.region_area_mm2, 6),
            "kept_by_person": self.kept,
            "replaced": self.replaced,
            "settings": self.settings,
            "notes": list(self.notes),
            "maps": list(self.maps),
            "seconds": round(self.seconds, 2),
        }

    @staticmethod
    def recorded(entry: ImageEntry, run: Run) -> dict[str, Any]:
        """Return the fields of the result of an image that a run finished before it was interrupted."""
        record = run.images[entry.id]["result"]
        return {
            "name": entry.name,
            "entry_id": entry.id,
            "region_area_mm2": record["region_area_mm2"],
            "settings": record["settings"],
            "notes": tuple(record["notes"]),
            "seconds": record["seconds"],
            "kept": record["kept_by_person"],
            "replaced": record["replaced"],
            "maps": tuple(record["maps"]),
        }


def described_stains(stains: StainVectors) -> dict[str, Any]:
    """Return stains and white as JSON types, for the settings of a result."""
    vectors = {name: list(vector) for name, vector in zip(stains.names, stains.vectors, strict=True)}
    return {"stains": vectors, "background": list(stains.background)}


@dataclass(frozen=True, kw_only=True)
class ImageWriter:
    """Writes what was found on an image: maps, classes and objects; annotations that get cells are locked.

    Attributes
    ----------
    project, entry
        Where.
    objects
        New path objects, QuPath's frame.
    ownership, replace
        As for :func:`qupath_ext.runs.ownership.write_run`.
    colors
        Packed colours of the classes, for those that the project does not have.
    maps
        What is kept beside the objects.
    result
        For the record of the run.
    """

    project: Project
    entry: ImageEntry
    objects: gpd.GeoDataFrame
    ownership: Ownership
    replace: Sequence[str]
    colors: Mapping[str, int | None]
    maps: ImageMaps
    result: ImageOutcome

    def __call__(self, run: Run) -> None:
        """Write it as part of a run.

        Raises
        ------
        PyhistoError
            If the image or a map cannot be written; the image is as it was then.
        """
        parents = set(self.objects["parent_id"].dropna()) - set(self.objects.index)
        with self.maps.written(run.folder):
            self.project.add_classes(self.colors)
            write_run(
                run,
                self.entry,
                concat_objects([self.objects, self.maps.tiles]),
                self.ownership,
                replace=self.replace,
                lock=sorted(parents),
                result=self.result.summary(),
            )
