"""The path-object table: annotations, detections, cells, tiles and TMA cores as one GeoDataFrame.

The table is what every stage hands to the next. Its index is the object id (a UUID string); its fixed columns are
listed in :data:`COLUMNS`; every other column is a float measurement under the name that QuPath shows. Coordinates
are level-0 pixels (x right, y down, float64).
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pandas as pd
import shapely

from pyhisto.errors import ObjectTableError

__all__ = [
    "COLUMNS",
    "OBJECT_TYPES",
    "OPTIONAL_COLUMNS",
    "concat_objects",
    "empty_objects",
    "load_objects",
    "make_objects",
    "measurement_names",
    "new_ids",
    "save_objects",
    "validate_objects",
]

OBJECT_TYPES = ("annotation", "detection", "cell", "tile", "tma_core")
"""The values of the column ``object_type``, in QuPath's terms."""

COLUMNS = (
    "object_type",
    "geometry",
    "nucleus",
    "classification",
    "name",
    "locked",
    "color",
    "parent_id",
    "plane",
    "metadata",
)
"""The fixed columns. ``color`` is a signed 32-bit packed ARGB or missing, ``parent_id`` the id of the parent or
missing for the top level, ``plane`` a tuple (c, z, t) or missing for QuPath's default (-1, 0, 0), ``metadata`` a
dict of strings or missing. QuPath may have objects without a ROI or with an empty one: their ``geometry`` is missing or
empty. Such objects can be read, saved and loaded, but not be written into a project."""

OPTIONAL_COLUMNS = ("class_probability", "missing")
"""Columns that are only there if an object needs them: ``class_probability``, float, NaN where there is none;
``missing``, bool, whether a TMA core is missing (False for everything else)."""


_HYPHENS = (8, 13, 18, 23)
"""Where they stand among the 36 characters of a UUID."""


def new_ids(n: int) -> list[str]:
    """Return `n` random version-4 UUID strings.

    >>> len(set(new_ids(3)))
    3
    """
    several = np.frombuffer(os.urandom(16 * n), dtype=np.uint8).reshape(n, 16).copy()
    # version 4 and variant 1 (RFC 9562), as uuid.uuid4 sets them one by one
    several[:, 6] = several[:, 6] & 0x0F | 0x40
    several[:, 8] = several[:, 8] & 0x3F | 0x80
    digits = np.frombuffer(several.tobytes().hex().encode("ascii"), dtype=np.uint8).reshape(n, 32)
    text = np.full((n, 36), ord("-"), dtype=np.uint8)
    text[:, np.delete(np.arange(36), _HYPHENS)] = digits
    together = text.tobytes().decode("ascii")
    return [together[at : at + 36] for at in range(0, 36 * n, 36)]


def make_objects(
    geometry: Sequence[Any] | np.ndarray[Any, Any],
    *,
    object_type: str | Sequence[str],
    nucleus: Sequence[Any] | np.ndarray[Any, Any] | None = None,
    classification: str | Sequence[str | None] | None = None,
    measurements: Mapping[str, Any] | pd.DataFrame | None = None,
    ids: Sequence[str] | None = None,
    allow_missing: bool = False,
    **columns: Any,
) -> gpd.GeoDataFrame:
    """Build a table of path objects.

    Parameters
    ----------
    geometry
        n shapely geometries, level-0 pixels.
    object_type
        One of :data:`OBJECT_TYPES`, for all objects or one for each.
    nucleus
        n geometries or None; only for cells.
    classification
        Full class name, such as ``"Tumor: Positive"``, for all objects or one for each; None is unclassified.
    measurements
        Name to n numbers (or one number for all); or a table of float64, whose memory is taken over as it is.
    ids
        n distinct UUID strings; random ones by default.
    allow_missing
        Whether geometries may be missing or empty, as those of objects that were read may be.
    **columns
        ``name``, ``locked``, ``color``, ``parent_id``, ``plane``, ``metadata``, ``class_probability``, ``missing``: one
        value for all or one for each.

    Returns
    -------
    geopandas.GeoDataFrame
        The table, one row an object, in the order given.

    Raises
    ------
    ObjectTableError
        If a column is unknown, a length differs, an id occurs twice, a type is not known or a geometry is missing.

    Examples
    --------
    >>> table = make_objects([shapely.box(0, 0, 4, 3)], object_type="annotation", classification="Tumor")
    >>> float(table.geometry.area.iloc[0]), table["classification"].iloc[0]
    (12.0, 'Tumor')
    """
    n = len(geometry)
    allowed = (*COLUMNS, *OPTIONAL_COLUMNS)
    unknown = sorted(set(columns) - set(allowed))
    if unknown:
        raise ObjectTableError(f"unknown object column {unknown[0]!r}", expected=f"one of {', '.join(allowed)}")

    def column(values: Any, what: str) -> Any:
        one_for_all = (str, bool, int, float, dict) + ((tuple,) if what == "plane" else ())
        if values is None or isinstance(values, one_for_all):
            return _repeat(values, n)
        if len(values) != n:
            raise ObjectTableError(f"{len(values)} values of {what} for {n} objects", expected="one for each object")
        return _as_objects(values)

    data: dict[str, Any] = {
        "object_type": _types(object_type if isinstance(object_type, str) else column(object_type, "object_type"), n),
        "geometry": _as_objects(geometry),
        "nucleus": column(nucleus, "nucleus"),
        "classification": pd.Categorical(column(classification, "classification")),
        "name": column(columns.get("name"), "name"),
        "locked": np.asarray(column(columns.get("locked", False), "locked"), dtype=bool),
        "color": pd.array(column(columns.get("color"), "color"), dtype="Int64"),
        "parent_id": column(columns.get("parent_id"), "parent_id"),
        "plane": column(columns.get("plane"), "plane"),
        "metadata": column(columns.get("metadata"), "metadata"),
    }
    if columns.get("class_probability") is not None:
        data["class_probability"] = np.broadcast_to(np.asarray(columns["class_probability"], dtype=np.float64), n)
    if columns.get("missing") is not None:
        data["missing"] = np.asarray(column(columns["missing"], "missing"), dtype=bool)
    measurements = {} if measurements is None else measurements
    measured = {str(name): _measurement(str(name), values, n) for name, values in measurements.items()}
    index = pd.Index(list(ids) if ids is not None else new_ids(n), name="id", dtype=object)
    if len(index) != n:
        raise ObjectTableError(f"{len(index)} ids for {n} objects", expected="one for each object")
    text = {key: pd.Series(data[key], dtype=object, index=index) for key in ("nucleus", "name", "parent_id")}
    if isinstance(measurements, pd.DataFrame):  # one array, which need not be put together from its columns
        frame = gpd.GeoDataFrame({**data, **text}, geometry="geometry", index=index)
        frame = pd.concat([frame, measurements.astype(np.float64).set_axis(index)], axis=1)
    else:
        frame = gpd.GeoDataFrame({**data, **measured, **text}, geometry="geometry", index=index)
    validate_objects(frame)
    shapes = frame["geometry"].to_numpy()
    bad = shapely.is_missing(shapes) | shapely.is_empty(shapes)
    if bad.any() and not allow_missing:
        raise ObjectTableError(f"object {index[bad][0]} has no geometry", expected="a geometry that is not empty")
    return frame


def _types(names: Any, n: int) -> pd.Categorical[Any]:
    """Return the type of each of n objects, of one for all or of n."""
    different = {names} if isinstance(names, str) else {str(name) for name in names}
    unknown = sorted(different - set(OBJECT_TYPES))
    if unknown:
        raise ObjectTableError(f"object type {unknown[0]!r}", expected=f"one of {', '.join(OBJECT_TYPES)}")
    if isinstance(names, str):
        code = np.full(n, OBJECT_TYPES.index(names), dtype=np.int8)
        return pd.Categorical.from_codes(code, dtype=pd.CategoricalDtype(list(OBJECT_TYPES)))
    return pd.Categorical(names, categories=OBJECT_TYPES)


def _measurement(name: str, values: Any, n: int) -> np.ndarray[Any, Any]:
    """Return one float for each object; a single number stands for all."""
    if name in COLUMNS or name in OPTIONAL_COLUMNS:
        raise ObjectTableError(f"measurement {name!r} has the name of a fixed column", expected="another name")
    numbers = np.asarray(values, dtype=np.float64)
    if numbers.ndim and numbers.shape != (n,):
        raise ObjectTableError(f"{numbers.size} values of {name!r} for {n} objects", expected="one for each object")
    return np.broadcast_to(numbers, (n,))


def _repeat(value: Any, n: int) -> np.ndarray[Any, Any]:
    out = np.empty(n, dtype=object)
    out.fill(value)
    return out


def _as_objects(values: Any) -> np.ndarray[Any, Any]:
    if isinstance(values, np.ndarray) and values.dtype == object and values.ndim == 1:
        return values
    out = np.empty(len(values), dtype=object)
    out[:] = list(values)
    return out


def empty_objects() -> gpd.GeoDataFrame:
    """Return a table without objects.

    >>> len(empty_objects())
    0
    """
    return make_objects([], object_type="annotation")


def concat_objects(tables: Sequence[gpd.GeoDataFrame]) -> gpd.GeoDataFrame:
    """Stack tables; measurements and optional columns that one of them lacks become NaN, or False, there.

    Raises
    ------
    ObjectTableError
        If an id occurs twice.

    Examples
    --------
    >>> box = make_objects([shapely.box(0, 0, 1, 1)], object_type="tile", measurements={"a": 1})
    >>> len(concat_objects([box, empty_objects()]))
    1
    """
    filled = [table for table in tables if len(table)]
    if not filled:
        return empty_objects()
    optional = [name for name in OPTIONAL_COLUMNS if any(name in table for table in filled)]
    names: dict[str, None] = {}
    for table in filled:
        names.update(dict.fromkeys(measurement_names(table)))
    classes = sorted({c for table in filled for c in table["classification"].dropna().unique()})
    aligned = []
    for table in filled:
        copy = table.reindex(columns=[*COLUMNS, *optional, *names])
        if "missing" in optional and "missing" not in table:
            copy["missing"] = False
        copy["classification"] = pd.Categorical(table["classification"].astype(object), categories=classes)
        aligned.append(copy)
    frame = gpd.GeoDataFrame(pd.concat(aligned), geometry="geometry")
    validate_objects(frame)
    return frame


def measurement_names(objects: gpd.GeoDataFrame) -> list[str]:
    """Return the names of the measurement columns, in their order.

    >>> measurement_names(make_objects([], object_type="cell", measurements={"Nucleus: Area": []}))
    ['Nucleus: Area']
    """
    return [name for name in objects.columns if name not in COLUMNS and name not in OPTIONAL_COLUMNS]


def validate_objects(objects: gpd.GeoDataFrame) -> None:
    """Check that a table keeps the rules of this module.

    Raises
    ------
    ObjectTableError
        If a fixed column is missing, an id occurs twice, a type is unknown, a nucleus belongs to something else than a
        cell, ``missing`` is not bool, or a measurement or class probability is not numeric.
    """
    missing = [name for name in COLUMNS if name not in objects.columns]
    if missing:
        raise ObjectTableError(f"object table without column {missing[0]!r}", expected=", ".join(COLUMNS))
    if not objects.index.is_unique:
        twice = objects.index[objects.index.duplicated()][0]
        raise ObjectTableError(f"object id {twice} occurs twice", expected="unique ids")
    if objects["object_type"].isna().any():
        bad = objects.index[objects["object_type"].isna()][0]
        raise ObjectTableError(f"object {bad} has no known type", expected=f"one of {', '.join(OBJECT_TYPES)}")
    stray = objects["nucleus"].notna() & (objects["object_type"] != "cell")
    if stray.any():
        raise ObjectTableError(f"object {objects.index[stray][0]} has a nucleus", expected="nuclei on cells only")
    if "missing" in objects and not pd.api.types.is_bool_dtype(objects["missing"]):
        raise ObjectTableError(f"column 'missing' of type {objects['missing'].dtype}", expected="True or False")
    if "class_probability" in objects and not pd.api.types.is_numeric_dtype(objects["class_probability"]):
        raise ObjectTableError("class_probability is not numeric", expected="numbers")
    for name in measurement_names(objects):
        if not pd.api.types.is_numeric_dtype(objects[name]):
            raise ObjectTableError(f"measurement {name!r} is not numeric", expected="numbers; text goes into metadata")


def save_objects(path: Path, objects: gpd.GeoDataFrame) -> None:
    """Write a table as GeoParquet, all or nothing; metadata and planes become JSON text.

    Both ``geometry`` and ``nucleus`` are geometry columns that geopandas, DuckDB and R read.
    """
    table = objects.copy()
    table["nucleus"] = gpd.GeoSeries(objects["nucleus"].to_numpy(), index=objects.index)
    for column in ("metadata", "plane"):
        text = [None if value is None else json.dumps(value, ensure_ascii=False) for value in objects[column]]
        table[column] = pd.Series(text, index=objects.index, dtype=object)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        table.to_parquet(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def load_objects(path: Path) -> gpd.GeoDataFrame:
    """Read a table that :func:`save_objects` wrote.

    Raises
    ------
    ObjectTableError
        If the file is no such table.
    """
    try:
        table = gpd.read_parquet(path)
    except (OSError, ValueError) as error:
        raise ObjectTableError(f"{path} is no table of path objects ({error})") from error
    missing = [name for name in COLUMNS if name not in table.columns]
    if missing:
        raise ObjectTableError(f"{path} has no column {missing[0]!r}", expected=", ".join(COLUMNS))

    def restored(column: str, decode: Any = None) -> list[Any]:
        values = [None if pd.isna(value) else value for value in table[column]]
        return [None if value is None else decode(value) for value in values] if decode else values

    return make_objects(
        table.geometry.to_numpy(),
        object_type=table["object_type"].astype(str).tolist(),
        nucleus=[None if geometry is None else geometry for geometry in table["nucleus"]],
        classification=restored("classification"),
        measurements={name: table[name].to_numpy() for name in measurement_names(table)},
        ids=table.index.tolist(),
        name=restored("name"),
        locked=table["locked"].tolist(),
        color=restored("color"),
        parent_id=restored("parent_id"),
        plane=restored("plane", lambda text: tuple(json.loads(text))),
        metadata=restored("metadata", json.loads),
        allow_missing=True,
        **{name: table[name].to_numpy() for name in OPTIONAL_COLUMNS if name in table},
    )
