"""Objects of a project out to files that other programs read, and back in as a run that can be undone."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import geopandas as gpd

from pyhisto.objects import concat_objects, load_objects, new_ids, save_objects
from qupath_ext.entry import ImageEntry
from qupath_ext.errors import ProjectError
from qupath_ext.exchange.geojson import read_geojson, write_geojson
from qupath_ext.exchange.masks import MaskConfig, read_mask, write_mask
from qupath_ext.exchange.measurement_table import image_summary, measurement_table, write_measurements
from qupath_ext.project import Project
from qupath_ext.runs.ownership import read_ownership, write_run
from qupath_ext.runs.record import start_run

__all__ = ["FORMATS", "MASKS", "TABLES", "ExportSettings", "Imported", "export_images", "export_table", "import_files"]

ANALYSIS = "import"
MASKS = ("png", "ome.tif")
FORMATS = ("geojson", "geojson.gz", "parquet", *MASKS)
"""Formats with one file for each image; the ending of the files."""
TABLES = ("csv", "tsv")
"""Formats with one file for all images."""


@dataclass(frozen=True)
class ExportSettings:
    """What is taken out of the images.

    Attributes
    ----------
    object_types
        Types of the objects; all if empty.
    classes
        Classes of the objects; all if empty.
    nested
        Write GeoJSON with children inside their parents.
    mask
        How masks are drawn; its types and classes are taken from here.
    overwrite
        Replace files that are there.
    """

    object_types: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()
    nested: bool = False
    mask: MaskConfig | None = None
    overwrite: bool = False

    def chosen(self, objects: gpd.GeoDataFrame) -> gpd.GeoDataFrame:
        """Return those of some objects that are to be written."""
        if self.object_types:
            objects = objects[objects["object_type"].isin(self.object_types)]
        if self.classes:
            objects = objects[objects["classification"].isin(self.classes)]
        return objects


def export_images(
    project: Project, entries: Sequence[ImageEntry], folder: Path, form: str, settings: ExportSettings
) -> Iterator[tuple[ImageEntry, Path, int]]:
    """Write the objects of images, one file each: ``<entry id>.<format>``.

    Parameters
    ----------
    project, entries
        The project and those of its images that are wanted.
    folder
        Where the files go; made if it is not there.
    form
        One of :data:`FORMATS`.
    settings
        What is written.

    Yields
    ------
    tuple
        The image, its file, and the number of objects in it; for a mask those that were to be drawn.

    Raises
    ------
    ProjectError
        If a file is there already, before anything is written.
    """
    paths = [folder / f"{entry.id}.{form}" for entry in entries]
    for path in paths:
        _refuse_existing(path, settings.overwrite)
    folder.mkdir(parents=True, exist_ok=True)
    for entry, path in zip(entries, paths, strict=True):
        objects = settings.chosen(entry.read_objects())
        if form in MASKS:
            write_mask(path, objects, entry.size(), settings.mask, mpp=entry.mpp)
        elif form == "parquet":
            save_objects(path, objects)
        else:
            objects = objects[objects.geometry.notna().to_numpy()]  # QuPath reads no file with an object without ROI
            write_geojson(path, objects, colors=project.classes, nested=settings.nested)
        yield entry, path, len(objects)


def export_table(
    entries: Sequence[ImageEntry],
    path: Path,
    rows: str,
    *,
    overwrite: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> int:
    """Write the measurement table of images as QuPath shows it, with its live values.

    Parameters
    ----------
    entries
        The images.
    path
        File ending in ``.csv`` or ``.tsv``.
    rows
        One of :data:`qupath_ext.exchange.measurement_table.ROWS`, or ``"summary"``: one row for each image, with
        counts and areas by class.
    overwrite
        Replace the file if it is there.
    progress
        Called with the number of images done and in all.

    Returns
    -------
    int
        Number of rows.

    Raises
    ------
    ProjectError
        If the file is there already.
    """
    _refuse_existing(path, overwrite)
    tables = []
    for number, entry in enumerate(entries):
        objects = entry.read_objects()
        if rows == "summary":
            tables.append(image_summary(objects, image=entry.name, mpp=entry.mpp))
        else:
            tables.append(measurement_table(objects, rows, image=entry.name, mpp=entry.mpp))
        if progress is not None:
            progress(number + 1, len(entries))
    path.parent.mkdir(parents=True, exist_ok=True)
    write_measurements(path, tables)
    return sum(len(table) for table in tables)


def _refuse_existing(path: Path, overwrite: bool) -> None:
    if path.exists() and not overwrite:
        raise ProjectError(f"{path} is there already", expected="a new file", remedy="choose another, or --overwrite")


# ---------------------------------------------------------------------- and back
@dataclass(frozen=True)
class Imported:
    """What came to one image: objects, how many of them had a parent that is not there, and TMA cores left out."""

    entry: ImageEntry
    objects: int
    orphans: int
    cores: int


def import_files(
    project: Project,
    files: Sequence[tuple[ImageEntry, Path]],
    *,
    fresh_ids: bool = False,
    fix_invalid: bool = False,
    dry_run: bool = False,
) -> Iterator[Imported]:
    """Add the objects of files to images; all belong to one run of the analysis ``import``, which can be undone.

    Parameters
    ----------
    project
        The project.
    files
        Image and file: GeoJSON, GeoParquet, or a label mask with its description beside it.
    fresh_ids
        Give all objects new ids; otherwise an object whose id is in the image already is refused.
    fix_invalid
        Repair outlines that cross themselves instead of refusing them.
    dry_run
        Read and check everything, and write nothing.

    Yields
    ------
    Imported
        For each image, in the order in which they come first.

    Raises
    ------
    PyhistoError
        If a file cannot be read; checked for all files before the first image is written.
    """
    tables: dict[ImageEntry, list[gpd.GeoDataFrame]] = {}
    for entry, path in files:
        tables.setdefault(entry, []).append(_read(path, fix_invalid))
    ready = {entry: _prepared(entry, parts, fresh_ids) for entry, parts in tables.items()}
    if dry_run:
        yield from (Imported(entry, len(objects), orphans, cores) for entry, (objects, orphans, cores) in ready.items())
        return
    config = {"files": [[entry.id, str(path), _sha256(path)] for entry, path in files], "fresh_ids": fresh_ids}
    run = start_run(project, ANALYSIS, config, {})
    try:
        for entry, (objects, orphans, cores) in ready.items():
            if not run.is_done(entry.id):
                ownership = read_ownership(project, ANALYSIS, entry)
                project.add_classes(_colors(objects))
                write_run(run, entry, objects, ownership, replace=(), lock=_hosts_of_detections(objects))
            yield Imported(entry, len(objects), orphans, cores)
        run.finish()
    finally:
        run.release()


def _read(path: Path, fix_invalid: bool) -> gpd.GeoDataFrame:
    name = path.name.lower()
    if not path.is_file():
        raise ProjectError(f"{path} does not exist", expected="a file to import")
    if name.endswith((".geojson", ".json", ".geojson.gz", ".json.gz", ".zip")):
        return read_geojson(path, fix_invalid=fix_invalid)
    if name.endswith(".parquet"):
        return load_objects(path)
    if name.endswith((".png", ".tif", ".tiff")):
        return read_mask(path)
    raise ProjectError(f"{path.name} is of no known format", expected=".geojson, .parquet, .png or .ome.tif")


def _prepared(
    entry: ImageEntry, parts: Sequence[gpd.GeoDataFrame], fresh_ids: bool
) -> tuple[gpd.GeoDataFrame, int, int]:
    """Return objects that fit into the image, how many had a parent that is nowhere, and how many cores stay out.

    A TMA core is nothing without its grid, which no file has.
    """
    present = set(entry.read_objects().index)
    colors = {name: color for part in parts for name, color in part.attrs.get("class_colors", {}).items()}
    objects = concat_objects(parts) if len(parts) > 1 else parts[0]
    is_core = (objects["object_type"] == "tma_core").to_numpy()
    objects = objects[~is_core].copy()
    if fresh_ids:
        renamed = dict(zip(objects.index, new_ids(len(objects)), strict=True))
        objects.index = objects.index.map(renamed).rename("id")
        objects["parent_id"] = objects["parent_id"].map(lambda id_: renamed.get(id_, id_))
    there = [id_ for id_ in objects.index if id_ in present]
    if there:
        more = f" and {len(there) - 1} more" if len(there) > 1 else ""
        raise ProjectError(
            f"object {there[0]}{more} is in {entry.name!r} already",
            expected="objects that the image does not have",
            remedy="give them new ids with --new-ids, or undo the run that wrote them",
        )
    parent = objects["parent_id"]
    orphan = parent.notna() & ~parent.isin(present) & ~parent.isin(objects.index)
    objects["parent_id"] = parent.where(parent.notna() & ~orphan, None)
    objects.attrs["class_colors"] = colors
    return objects, int(orphan.sum()), int(is_core.sum())


def _hosts_of_detections(objects: gpd.GeoDataFrame) -> list[str]:
    """Return the parents, already in the image, of what is no annotation: QuPath locks such."""
    detections = objects[(objects["object_type"] != "annotation").to_numpy()]
    return sorted(set(detections["parent_id"].dropna()) - set(objects.index))


def _colors(objects: gpd.GeoDataFrame) -> dict[str, int | None]:
    colors: dict[str, Any] = objects.attrs.get("class_colors", {})
    return {str(name): colors.get(name) for name in objects["classification"].dropna().unique()}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
