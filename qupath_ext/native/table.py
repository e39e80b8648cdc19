"""A hierarchy -> the path-object table."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import geopandas as gpd
import numpy as np
import pandas as pd

from pyhisto.objects import COLUMNS, OBJECT_TYPES, OPTIONAL_COLUMNS
from qupath_ext.errors import FormatError
from qupath_ext.native.collector import paused_collector
from qupath_ext.native.pathobjects import PathObjectView, walk
from qupath_ext.native.roi import DEFAULT_PLANE, read_plane, read_rois
from qupath_ext.native.runtable import ObjectColumns, Objects, id_keys, read_run
from qupath_ext.native.scanner import ScannedRun
from qupath_ext.native.tokens import JObject

__all__ = ["as_frame", "derived_id", "read_columns", "read_table"]

NAMESPACE = uuid.UUID("6f4b7f0a-2f39-5a3e-9d2c-3a0f6f2b8c11")


def derived_id(digest: str, number: int) -> str:
    """Return the id of object `number` (in reading order) of a file without ids: always the same for the same file."""
    return str(uuid.uuid5(NAMESPACE, f"{digest}:{number}"))


def read_table(root: JObject, digest: Callable[[], str]) -> gpd.GeoDataFrame:
    """Read all objects below the root.

    Parameters
    ----------
    root
        The root object's token.
    digest
        Returns the SHA-256 of the file; asked for the ids of objects that have none (files of QuPath 0.2 and 0.3).

    Returns
    -------
    geopandas.GeoDataFrame
        The path-object table, parents before children, otherwise in the file's order. Coordinates are pixels of the
        frame that QuPath shows. The geometry of an object without ROI is missing.

    Raises
    ------
    FormatError
        If the hierarchy has parts that are not known.
    """
    with paused_collector():
        return _read_table(root, digest)


def _read_table(root: JObject, digest: Callable[[], str]) -> gpd.GeoDataFrame:
    columns, _ = read_columns(root, digest)
    table = as_frame(columns)
    shapes = {
        "geometry": gpd.array.GeometryArray(columns.geometry),
        "nucleus": pd.Series(columns.nucleus, dtype=object, index=table.index),
    }
    data = {"object_type": table.pop("object_type"), **shapes, **table}
    return gpd.GeoDataFrame(data, geometry="geometry", index=table.index, copy=False)


def read_columns(
    root: JObject, digest: Callable[[], str], *, shapes: bool = True
) -> tuple[ObjectColumns, ScannedRun | None]:
    """Read all objects below the root into columns; see :func:`read_table`.

    Without `shapes` the objects of runs get no geometries: they can be taken from the records of the run that is
    returned (:func:`qupath_ext.native.runtable.read_rois_at`).
    """
    ids: dict[int, str] = {}
    number = 0
    loose, runs = _Loose(), _Runs()
    for item, parent in walk(root):
        parent_id = None if parent is None else ids[id(parent)]
        if isinstance(item, PathObjectView):
            object_id = item.id or derived_id(digest(), number)
            ids[id(item.token)] = object_id
            loose.add(item, number, object_id, parent_id)
            number += 1
        elif isinstance(item, ScannedRun):
            runs.add(item, number, parent_id)
            number += len(item)
        else:
            raise FormatError("objects that were not read from a file")
    out = ObjectColumns.empty(number)
    joined = ScannedRun.joined(runs.runs) if runs.runs else None
    if joined is not None and not loose.is_first(runs):
        runs.fill(out, joined, digest, shapes=shapes)
    loose.fill(out)
    if joined is not None and loose.is_first(runs):
        runs.fill(out, joined, digest, shapes=shapes)
    _refuse_reserved(out.measurements)
    return out, joined


class _Loose:
    """Objects that are tokens of their own."""

    def __init__(self) -> None:
        self.numbers: list[int] = []
        self.rows: list[tuple[Any, ...]] = []
        self.measurements: dict[str, list[tuple[int, float]]] = {}

    def is_first(self, runs: _Runs) -> bool:
        """Return whether one of these objects comes before those in runs."""
        return bool(self.numbers) and (not runs.first or self.numbers[0] < runs.first[0])

    def add(self, view: PathObjectView, number: int, object_id: str, parent_id: str | None) -> None:
        """Append one object."""
        roi, nucleus = view.roi_token, view.nucleus_token
        plane = None if roi is None else read_plane(roi)
        for name, value in view.measurements.items():
            self.measurements.setdefault(name, []).append((number, value))
        color = view.color
        self.numbers.append(number)
        self.rows.append(
            (
                object_id,
                view.kind,
                roi,
                nucleus,
                view.classification,
                view.name,
                view.locked,
                view.probability,
                view.missing,
                color or 0,
                color is not None,
                parent_id,
                None if plane == DEFAULT_PLANE else plane,
                view.metadata,
            )
        )

    def fill(self, out: ObjectColumns) -> None:
        """Put the objects into their rows of the columns."""
        if not self.rows:
            return
        at, n = np.array(self.numbers), len(self.rows)
        columns = [_objects(values, n) for values in zip(*self.rows, strict=True)]
        out.ids[at], out.keys[at], out.kinds[at] = columns[0], id_keys(columns[0].tolist()), columns[1]
        out.geometry[at], out.nucleus[at] = read_rois(columns[2].tolist()), read_rois(columns[3].tolist())
        out.classification[at], out.name[at] = columns[4], columns[5]
        out.locked[at], out.probability[at] = columns[6].astype(bool), columns[7].astype(np.float64)
        out.missing[at] = columns[8].astype(bool)
        out.color[at], out.has_color[at] = columns[9].astype(np.int64), columns[10].astype(bool)
        out.parent[at], out.plane[at], out.metadata[at] = columns[11:]
        for name, found in self.measurements.items():
            places, values = zip(*found, strict=True)
            out.measurement(name)[list(places)] = values


class _Runs:
    """Objects in runs."""

    def __init__(self) -> None:
        self.runs: list[ScannedRun] = []
        self.first: list[int] = []
        self.parents: list[str | None] = []

    def add(self, run: ScannedRun, number: int, parent_id: str | None) -> None:
        """Append the objects of a run."""
        self.runs.append(run)
        self.first.append(number)
        self.parents.append(parent_id)

    def fill(self, out: ObjectColumns, joined: ScannedRun, digest: Callable[[], str], *, shapes: bool) -> None:
        """Put the objects into their rows of the columns; `joined` are all runs as one."""
        lengths = np.array([len(run) for run in self.runs])
        n = int(lengths.sum())
        numbers = np.arange(n) + np.repeat(np.array(self.first) - (np.cumsum(lengths) - lengths), lengths)
        read_run(joined, out, numbers, shapes=shapes)
        for number in numbers[~joined.has_id[joined.rows]].tolist():
            out.ids[number] = derived_id(digest(), number)
            out.keys[number] = id_keys([out.ids[number]])[0]
        if any(parent is not None for parent in self.parents):
            out.parent[numbers] = np.repeat(_objects(self.parents, len(self.parents)), lengths)


def as_frame(columns: ObjectColumns) -> pd.DataFrame:
    """Return all of the path-object table but the columns ``geometry`` and ``nucleus``.

    Raises
    ------
    FormatError
        If two objects have the same id.
    """
    index = pd.Index(columns.ids, name="id", dtype=object)
    keys = np.sort(columns.keys)
    if (keys[1:] == keys[:-1]).any() and not index.is_unique:
        raise FormatError(
            f"two objects with the id {index[index.duplicated()][0]}",
            expected="an id of its own for each",
            remedy="choose 'Refresh object IDs (duplicates only)' in QuPath and save",
        )
    kinds = _categorical(columns.kinds, OBJECT_TYPES)
    data: dict[str, Any] = {
        "object_type": kinds,
        "classification": _categorical(columns.classification),
        "name": pd.Series(columns.name, dtype=object, index=index),
        "locked": columns.locked,
        "color": pd.arrays.IntegerArray(columns.color, ~columns.has_color),
        "parent_id": pd.Series(columns.parent, dtype=object, index=index),
        "plane": pd.Series(columns.plane, dtype=object, index=index),
        "metadata": pd.Series(columns.metadata, dtype=object, index=index),
    }
    if not np.isnan(columns.probability).all():
        data["class_probability"] = columns.probability
    if (kinds.codes == OBJECT_TYPES.index("tma_core")).any():
        data["missing"] = columns.missing
    return pd.DataFrame({**data, **columns.measurements}, index=index, copy=False)


def _categorical(values: Objects, categories: Sequence[str] | None = None) -> pd.Categorical[str]:
    """Return a column of few different texts; the categories are sorted if none are given."""
    codes, found = pd.factorize(values)
    ordered: pd.Index[str] = pd.Index(sorted(found.tolist()) if categories is None else categories)
    places = np.append(ordered.get_indexer(pd.Index(found, dtype=object)), -1)
    out: pd.Categorical[str] = pd.Categorical.from_codes(places[codes], categories=ordered)
    return out


def _refuse_reserved(names: Iterable[str]) -> None:
    for name in names:
        if name in COLUMNS or name in OPTIONAL_COLUMNS:
            raise FormatError(
                f"measurement called {name!r}, like a column of the object table", remedy="rename it in QuPath"
            )


def _objects(values: Iterable[Any], n: int) -> Objects:
    out = np.empty(n, dtype=object)
    out[:] = list(values)
    return out
