"""Measurement tables as QuPath shows and exports them, with the values that QuPath computes live.

Names, order and formulas are those of QuPath 0.6 and 0.7, or of 0.5: Bankhead et al., QuPath (Scientific Reports 2017);
H-score: McCarty et al. 1985; Allred score: Harvey et al. 1999. Numbers are written in full, where QuPath rounds them to
four decimals; what QuPath does not know of an object is empty (text) or NaN (numbers).
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pandas as pd
import shapely

from pyhisto.errors import ObjectTableError
from pyhisto.objects import measurement_names
from qupath_ext.errors import FormatError
from qupath_ext.exchange.ellipses import are_ellipses
from qupath_ext.exchange.live_counts import ClassCounts, live_columns
from qupath_ext.native.roi import DEFAULT_PLANE

__all__ = ["LAYOUTS", "ROWS", "image_summary", "measurement_table", "write_measurements"]

ROWS = ("annotation", "detection", "cell", "tile", "tma_core", "image")
"""What can be a row of a table; ``"detection"`` has cells and tiles too, as in QuPath."""
LAYOUTS = {
    "0.6": ("properties", "position", "shape", "counts", "metadata", "measurements"),
    "0.5": ("properties", "position", "metadata", "measurements", "counts", "shape"),
}
"""The order of the columns in QuPath 0.6 and newer, and in 0.5."""
NAMES_0_5 = {"TMA Core": "TMA core", "Missing core": "Missing", "Z-slice": "Z index", "Timepoint": "Time index"}
TYPES = {"annotation": "Annotation", "detection": "Detection", "cell": "Cell", "tile": "Tile", "tma_core": "TMA core"}
DETECTIONS = ("detection", "cell", "tile")
ROOT = "Root object (Image)"
SEPARATORS = {".csv": ",", ".tsv": "\t", ".txt": "\t"}
Columns = dict[str, Any]
Mpp = tuple[float, float]


def measurement_table(
    objects: gpd.GeoDataFrame, rows: str, *, image: str, mpp: Mpp | None = None, layout: str = "0.6"
) -> pd.DataFrame:
    """Return the measurement table of one image.

    Parameters
    ----------
    objects
        All objects of the image, as a path-object table: live values need the others too.
    rows
        One of :data:`ROWS`.
    image
        The name of the image, for the first column.
    mpp
        Pixel size (x, y) in µm. Without one lengths are in px and the names say so, as in QuPath.
    layout
        One of :data:`LAYOUTS`.

    Returns
    -------
    pandas.DataFrame
        One row for each object, in the order of the table; one for the whole image if `rows` is ``"image"``.

    Raises
    ------
    ObjectTableError
        If `rows` or `layout` is not known.
    """
    if rows not in ROWS or layout not in LAYOUTS:
        known = ", ".join(ROWS if rows not in ROWS else LAYOUTS)
        raise ObjectTableError(f"{rows if rows not in ROWS else layout!r} of a table", expected=f"one of {known}")
    counts = ClassCounts(objects)
    if rows == "image":
        groups = _image_groups(counts, mpp)
        chosen = None
        n = 1
    else:
        kinds = DETECTIONS if rows == "detection" else (rows,)
        chosen = np.flatnonzero(objects["object_type"].isin(kinds))
        groups = _object_groups(objects, chosen, counts, rows, mpp)
        n = len(chosen)
    columns: Columns = {"Image": [image] * n}
    for group in LAYOUTS[layout]:
        for name, values in groups.get(group, {}).items():
            columns.setdefault(NAMES_0_5.get(name, name) if layout == "0.5" else name, values)
    return _frame(columns)


def _frame(columns: Columns) -> pd.DataFrame:
    """Make a table of arrays, which are numbers, and lists, which are text or None."""
    made = {name: pd.Series(v, dtype=object) if isinstance(v, list) else pd.Series(v) for name, v in columns.items()}
    return pd.DataFrame(made)


def _image_groups(counts: ClassCounts, mpp: Mpp | None) -> dict[str, Columns]:
    return {
        "properties": {"Object type": [ROOT], "Name": [None]},
        "counts": live_columns(counts.of_all(), counts.classes, areas=None, mpp=mpp),
    }


def _object_groups(
    objects: gpd.GeoDataFrame, chosen: Any, counts: ClassCounts, rows: str, mpp: Mpp | None
) -> dict[str, Columns]:
    table = objects.iloc[chosen]
    shapes = np.asarray(table["geometry"], dtype=object)
    groups = {
        "properties": _properties(objects, chosen, rows),
        "position": _position(table, shapes, rows, mpp),
        "metadata": _metadata(table),
        "measurements": {
            name: table[name].to_numpy() for name in measurement_names(table) if table[name].notna().any()
        },
    }
    if rows in ("annotation", "tma_core"):
        areas = _areas(shapes, (1, 1) if mpp is None else mpp)
        if rows == "tma_core":
            areas = _areas_of_only_annotations(objects, chosen, mpp)
        groups["counts"] = live_columns(counts.inside(chosen), counts.classes, areas=areas, mpp=mpp)
    if rows == "annotation":
        groups["shape"] = _shape(shapes, mpp)
    return groups


# ---------------------------------------------------------------------- what an object is and where
def _properties(objects: gpd.GeoDataFrame, chosen: Any, rows: str) -> Columns:
    table = objects.iloc[chosen]
    kinds = table["object_type"].astype(str)
    names = table["name"].where(table["name"].notna(), None)
    out: Columns = {
        "Object ID": table.index.to_list(),
        "Object type": kinds.map(TYPES).to_list(),
        "Name": names.to_list(),
    }
    if rows != "tma_core":
        shown = _DisplayedNames(objects)
        out["Classification"] = _text(table["classification"])
        if (objects["object_type"] == "tma_core").any():
            out["TMA Core"] = [shown.core(row) for row in chosen.tolist()]
        out["Parent"] = [shown.parent(row) for row in chosen.tolist()]
    else:
        missing = table["missing"] if "missing" in table else pd.Series(False, index=table.index)
        out["Missing core"] = ["true" if value else "false" for value in missing]
    return out


def _text(values: Any) -> list[str | None]:
    return [value if isinstance(value, str) else None for value in values.astype(object)]


class _DisplayedNames:
    """How QuPath calls objects: by name, or else by type and class; what lies in a TMA core has the core's in front."""

    def __init__(self, objects: gpd.GeoDataFrame) -> None:
        self._names = _text(objects["name"])
        self._kinds = objects["object_type"].astype(str).to_list()
        self._classes = _text(objects["classification"])
        rows = {object_id: row for row, object_id in enumerate(objects.index)}
        self._parents = [rows.get(parent) for parent in objects["parent_id"]]

    def parent(self, row: int) -> str:
        """Return the name of the parent."""
        above = self._parents[row]
        return ROOT if above is None else self._shown(above)

    def core(self, row: int) -> str | None:
        """Return the name of the TMA core in which an object lies."""
        at: int | None = row
        while at is not None and self._kinds[at] != "tma_core":
            at = self._parents[at]
        return None if at is None else self._shown(at)

    def _shown(self, row: int) -> str:
        name, kind = self._names[row], TYPES[self._kinds[row]]
        if name is None:
            name = kind if self._classes[row] is None else f"{kind} ({self._classes[row]})"
        above = self._parents[row]
        inside_core = above is not None and self._kinds[above] == "tma_core"
        return f"{self._shown(above)} - {name}" if inside_core and above is not None else name


def _position(table: gpd.GeoDataFrame, shapes: Any, rows: str, mpp: Mpp | None) -> Columns:
    out: Columns = {}
    if rows != "tma_core":
        out["ROI"] = _roi_names(shapes)
    unit = "px" if mpp is None else "µm"
    xy = shapely.get_coordinates(shapely.centroid(shapes))
    scaled = np.full((len(shapes), 2), np.nan)
    scaled[~shapely.is_missing(shapes) & ~shapely.is_empty(shapes)] = xy * ((1, 1) if mpp is None else mpp)
    out[f"Centroid X {unit}"], out[f"Centroid Y {unit}"] = scaled.T
    planes = np.array([DEFAULT_PLANE if plane is None else plane for plane in table["plane"]]).reshape(-1, 3)
    for name, axis in (("Z-slice", 1), ("Timepoint", 2)):
        if (planes[:, axis] > 0).any():
            out[name] = planes[:, axis]
    return out


def _roi_names(shapes: Any) -> list[str | None]:
    kinds = shapely.get_type_id(shapes)
    names = np.full(len(shapes), None, dtype=object)
    names[(kinds == 0) | (kinds == 4)] = "Points"
    names[kinds == 1] = np.where(shapely.get_num_coordinates(shapes[kinds == 1]) == 2, "Line", "Polyline")
    names[(kinds == 5) | (kinds == 6) | (kinds == 3)] = "Geometry"
    simple = (kinds == 3) & (shapely.get_num_interior_rings(shapes) == 0)
    names[simple] = "Polygon"
    four = np.flatnonzero(simple & (shapely.get_num_coordinates(shapes) == 5))
    names[four[shapely.area(shapes[four]) == shapely.area(shapely.envelope(shapes[four]))]] = "Rectangle"
    names[are_ellipses(shapes)] = "Ellipse"
    return list(names)


def _metadata(table: gpd.GeoDataFrame) -> Columns:
    """Return the metadata; keys that begin with an underscore are hidden, as in QuPath."""
    keys = dict.fromkeys(key for entry in table["metadata"] if entry for key in entry if not key.startswith("_"))
    return {key: [(entry or {}).get(key) for entry in table["metadata"]] for key in keys}


# ---------------------------------------------------------------------- areas and lengths
def _shape(shapes: Any, mpp: Mpp | None) -> Columns:
    """Return number of points, area, perimeter and length, as far as there are such annotations."""
    dimension = shapely.get_dimensions(shapes)
    unit = "px" if mpp is None else "µm"
    scale = (1.0, 1.0) if mpp is None else mpp
    length = _lengths(shapes, scale)
    out: Columns = {}
    for name, of, values in (
        ("Num points", 0, shapely.get_num_coordinates(shapes)),
        (f"Area {unit}^2", 2, _areas(shapes, scale)),
        (f"Perimeter {unit}", 2, length),
        (f"Length {unit}", 1, length),
    ):
        if (dimension == of).any():
            out[name] = np.where(dimension == of, values, np.nan)
    return out


def _areas(shapes: Any, scale: Mpp) -> Any:
    areas = np.where(shapely.get_dimensions(shapes) == 2, shapely.area(shapes) * scale[0] * scale[1], np.nan)
    a, b = _half_axes(shapes, scale)
    return np.where(np.isnan(a), areas, np.pi * a * b)


def _lengths(shapes: Any, scale: Mpp) -> Any:
    lengths = shapely.length(shapely.transform(shapes, lambda xy: xy * scale))
    a, b = _half_axes(shapes, scale)
    with np.errstate(invalid="ignore"):
        h = ((a - b) / (a + b)) ** 2  # Ramanujan's second approximation
        around = np.pi * (a + b) * (1 + 3 * h / (10 + np.sqrt(4 - 3 * h)))
    return np.where(np.isnan(a), lengths, around)


def _half_axes(shapes: Any, scale: Mpp) -> tuple[Any, Any]:
    """Return the half axes of ellipses; NaN for everything else."""
    x0, y0, x1, y1 = shapely.bounds(shapes).T
    is_ellipse = are_ellipses(shapes)
    return tuple(np.where(is_ellipse, side / 2, np.nan) for side in ((x1 - x0) * scale[0], (y1 - y0) * scale[1]))  # type: ignore[return-value]


def _areas_of_only_annotations(objects: gpd.GeoDataFrame, cores: Any, mpp: Mpp | None) -> Any:
    """Return for each TMA core the area of the one annotation in it; NaN if there are more children or none."""
    children = objects["parent_id"].groupby(objects["parent_id"]).groups
    out = np.full(len(cores), np.nan)
    for at, core in enumerate(objects.index[cores]):
        inside = children.get(core, ())
        if len(inside) == 1 and objects.at[inside[0], "object_type"] == "annotation":
            out[at] = _areas(np.array([objects.at[inside[0], "geometry"]]), (1, 1) if mpp is None else mpp)[0]
    return out


# ---------------------------------------------------------------------- one row for an image
def image_summary(objects: gpd.GeoDataFrame, *, image: str, mpp: Mpp | None = None) -> pd.DataFrame:
    """Return one row with what an image holds.

    The columns are ``Image``; numbers of annotations, detections and cells; the live values of the whole image (counts
    by class, Positive %, H-score, ...); and for each class of annotations the area that they cover together, such as
    ``Area µm^2: Tumor``, where overlaps of the same class count once.

    Parameters
    ----------
    objects
        All objects of the image.
    image
        The name of the image.
    mpp
        Pixel size (x, y) in µm; areas are in px^2 without one.
    """
    counts = ClassCounts(objects)
    kinds = objects["object_type"].astype(str)
    columns: Columns = {"Image": [image], "Num Annotations": np.array([(kinds == "annotation").sum()])}
    columns.update(live_columns(counts.of_all(), counts.classes, areas=None, mpp=mpp))
    columns.setdefault("Num Detections", np.array([0]))
    unit = "px" if mpp is None else "µm"
    scale = (1.0, 1.0) if mpp is None else mpp
    shapes = np.asarray(objects["geometry"], dtype=object)
    areas = objects[(kinds == "annotation").to_numpy() & (shapely.get_dimensions(shapes) == 2)]
    names = areas["classification"].astype(object).where(areas["classification"].notna(), "Unclassified")
    for name in sorted(names.unique()):
        covered = shapely.union_all(np.asarray(areas["geometry"][names == name], dtype=object))
        columns[f"Area {unit}^2: {name}"] = np.array([covered.area * scale[0] * scale[1]])
    return _frame(columns)


def write_measurements(path: str | Path, tables: Sequence[pd.DataFrame]) -> None:
    """Write tables of one or more images as one file, all or nothing.

    Columns that only some of them have stand where they were met first, and are empty in the rows of the others.

    Parameters
    ----------
    path
        File ending in ``.csv`` (commas), ``.tsv`` or ``.txt`` (tabs); UTF-8.
    tables
        Tables from :func:`measurement_table` or :func:`image_summary`.

    Raises
    ------
    FormatError
        If the ending is not known.
    """
    path = Path(path)
    separator = SEPARATORS.get(path.suffix.lower())
    if separator is None:
        raise FormatError(f"file name {path.name!r}", expected=f"an ending among {', '.join(SEPARATORS)}")
    header = list(dict.fromkeys(name for table in tables for name in table.columns))
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with temporary.open("w", encoding="utf-8", newline="") as file:
            csv.writer(file, delimiter=separator, lineterminator="\n").writerow(header)
            for table in tables:
                _as_text(table).reindex(columns=header, fill_value="").to_csv(
                    file, sep=separator, header=False, index=False, lineterminator="\n"
                )
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _as_text(table: pd.DataFrame) -> pd.DataFrame:
    """Return the table with NaN written out in columns of numbers."""
    columns = {}
    for name, values in table.items():
        is_number = pd.api.types.is_numeric_dtype(values)
        columns[name] = values.astype(object).where(values.notna(), "NaN" if is_number else "")
    return pd.DataFrame(columns)
