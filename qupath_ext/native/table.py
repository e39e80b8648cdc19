"""A hierarchy -> the path-object table."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import geopandas as gpd
import numpy as np
import pandas as pd

from pyhisto.objects import COLUMNS, OBJECT_TYPES, OPTIONAL_COLUMNS
from qupath_ext.errors import FormatError
from qupath_ext.native.collector import paused_collector
from qupath_ext.native.pathobjects import PathObjectView, walk
from qupath_ext.native.roi import DEFAULT_PLANE, read_plane, read_rois
from qupath_ext.native.runtable import Floats, Objects, read_run
from qupath_ext.native.scanner import Ints, ScannedRun
from qupath_ext.native.tokens import JObject

__all__ = ["derived_id", "read_table"]

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
    pieces = [piece for piece in (loose.piece(), runs.piece(digest)) if len(piece.ids)]
    return _frame(pieces or [loose.piece()])


@dataclass
class _Piece:
    """Some objects as columns, each of shape (n,); `numbers` are their places in the table."""

    numbers: Ints
    ids: Objects
    kinds: Objects
    geometry: Objects
    nucleus: Objects
    classification: Objects
    name: Objects
    locked: np.ndarray[Any, np.dtype[np.bool_]]
    probability: Floats
    missing: np.ndarray[Any, np.dtype[np.bool_]]
    color: Any
    parent: Objects
    plane: Objects
    metadata: Objects
    measurements: dict[str, Floats]


class _Loose:
    """Objects that are tokens of their own."""

    def __init__(self) -> None:
        self.rows: list[tuple[Any, ...]] = []
        self.measurements: dict[str, list[tuple[int, float]]] = {}

    def add(self, view: PathObjectView, number: int, object_id: str, parent_id: str | None) -> None:
        """Append one object."""
        roi, nucleus = view.roi_token, view.nucleus_token
        plane = None if roi is None else read_plane(roi)
        for name, value in view.measurements.items():
            self.measurements.setdefault(name, []).append((len(self.rows), value))
        row = (
            number,
            object_id,
            view.kind,
            roi,
            nucleus,
            view.classification,
            view.name,
            view.locked,
            view.probability,
            view.missing,
            view.color,
            parent_id,
            None if plane == DEFAULT_PLANE else plane,
            view.metadata,
        )
        self.rows.append(row)

    def piece(self) -> _Piece:
        """Return the objects as columns."""
        n = len(self.rows)
        columns = [_objects(values, n) for values in (zip(*self.rows, strict=True) if n else [()] * 14)]
        measurements = {}
        for name, found in self.measurements.items():
            rows, values = zip(*found, strict=True)
            measurements[name] = np.full(n, np.nan)
            measurements[name][list(rows)] = values
        no_color = pd.isna(columns[10])
        return _Piece(
            numbers=columns[0].astype(np.int64),
            ids=columns[1],
            kinds=columns[2],
            geometry=read_rois(columns[3].tolist()),
            nucleus=read_rois(columns[4].tolist()),
            classification=columns[5],
            name=columns[6],
            locked=columns[7].astype(bool),
            probability=columns[8].astype(np.float64),
            missing=columns[9].astype(bool),
            color=pd.arrays.IntegerArray(np.where(no_color, 0, columns[10]).astype(np.int64), no_color),
            parent=columns[11],
            plane=columns[12],
            metadata=columns[13],
            measurements=measurements,
        )


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

    def piece(self, digest: Callable[[], str]) -> _Piece:
        """Return the objects as columns."""
        if not self.runs:
            return _Loose().piece()
        lengths = np.array([len(run) for run in self.runs])
        n = int(lengths.sum())
        columns = read_run(ScannedRun.joined(self.runs))
        numbers = np.arange(n) + np.repeat(np.array(self.first) - (np.cumsum(lengths) - lengths), lengths)
        for at in np.flatnonzero(pd.isna(columns.ids)).tolist():
            columns.ids[at] = derived_id(digest(), int(numbers[at]))
        nothing = np.full(n, None, dtype=object)
        return _Piece(
            numbers=numbers,
            ids=columns.ids,
            kinds=columns.kinds,
            geometry=columns.geometry,
            nucleus=columns.nucleus,
            classification=columns.classification,
            name=nothing,
            locked=columns.locked,
            probability=columns.probability,
            missing=np.zeros(n, dtype=bool),
            color=pd.arrays.IntegerArray(np.zeros(n, dtype=np.int64), np.ones(n, dtype=bool)),
            parent=np.repeat(_objects(self.parents, len(self.parents)), lengths),
            plane=columns.plane,
            metadata=nothing,
            measurements=columns.measurements,
        )


def _frame(pieces: list[_Piece]) -> gpd.GeoDataFrame:
    numbers = np.concatenate([piece.numbers for piece in pieces])
    order = None if (numbers[1:] > numbers[:-1]).all() else np.argsort(numbers)

    def column(name: str) -> Any:
        return in_order([getattr(piece, name) for piece in pieces])

    def in_order(parts: list[Any]) -> Any:
        joined = parts[0] if len(parts) == 1 else np.concatenate(parts)
        return joined if order is None else joined[order]

    names: dict[str, None] = {}
    for piece in sorted(pieces, key=lambda piece: int(piece.numbers[0]) if len(piece.numbers) else 0):
        names.update(dict.fromkeys(piece.measurements))
    _refuse_reserved(names)
    index = pd.Index(column("ids"), name="id", dtype=object)
    if not index.is_unique:
        raise FormatError(
            f"two objects with the id {index[index.duplicated()][0]}",
            expected="an id of its own for each",
            remedy="choose 'Refresh object IDs (duplicates only)' in QuPath and save",
        )
    colors = [piece.color for piece in pieces]
    color = colors[0] if len(colors) == 1 else type(colors[0])._concat_same_type(colors)
    kinds = _categorical(column("kinds"), OBJECT_TYPES)
    data: dict[str, Any] = {
        "object_type": kinds,
        "geometry": gpd.array.GeometryArray(column("geometry")),
        "nucleus": pd.Series(column("nucleus"), dtype=object, index=index),
        "classification": _categorical(column("classification")),
        "name": pd.Series(column("name"), dtype=object, index=index),
        "locked": column("locked"),
        "color": color if order is None else color[order],
        "parent_id": pd.Series(column("parent"), dtype=object, index=index),
        "plane": pd.Series(column("plane"), dtype=object, index=index),
        "metadata": pd.Series(column("metadata"), dtype=object, index=index),
    }
    probability = column("probability")
    if not np.isnan(probability).all():
        data["class_probability"] = probability
    if (kinds.codes == OBJECT_TYPES.index("tma_core")).any():
        data["missing"] = column("missing")
    for name in names:
        data[name] = in_order([piece.measurements.get(name, np.full(len(piece.ids), np.nan)) for piece in pieces])
    return gpd.GeoDataFrame(data, geometry="geometry", index=index)


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
