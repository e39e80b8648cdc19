"""A hierarchy -> the path-object table."""

from __future__ import annotations

import uuid
from collections.abc import Iterable
from typing import Any

import geopandas as gpd
import numpy as np
import pandas as pd

from pyhisto.objects import OBJECT_TYPES
from qupath_ext.errors import FormatError
from qupath_ext.native.pathobjects import PathObjectView, walk
from qupath_ext.native.roi import DEFAULT_PLANE, read_plane, read_roi
from qupath_ext.native.runtable import RunColumns, read_run
from qupath_ext.native.scanner import ScannedRun
from qupath_ext.native.tokens import JObject

__all__ = ["derived_id", "read_table"]

NAMESPACE = uuid.UUID("6f4b7f0a-2f39-5a3e-9d2c-3a0f6f2b8c11")


def derived_id(digest: str, number: int) -> str:
    """Return the id of object `number` (in reading order) of a file without ids: always the same for the same file."""
    return str(uuid.uuid5(NAMESPACE, f"{digest}:{number}"))


def read_table(root: JObject, digest: str) -> gpd.GeoDataFrame:
    """Read all objects below the root.

    Parameters
    ----------
    root
        The root object's token.
    digest
        SHA-256 of the file, for the ids of objects that have none (files of QuPath 0.2 and 0.3).

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
    pieces: list[_Piece] = []
    ids: dict[int, str] = {}
    number = 0
    loose = _Piece()
    for item, parent in walk(root):
        parent_id = None if parent is None else ids[id(parent)]
        if isinstance(item, PathObjectView):
            object_id = item.id or derived_id(digest, number)
            ids[id(item.token)] = object_id
            loose.add(item, object_id, parent_id)
            number += 1
            continue
        if not isinstance(item, ScannedRun):
            raise FormatError("objects that were not read from a file")
        if len(loose.ids):
            pieces.append(loose)
            loose = _Piece()
        columns = read_run(item)
        for at in np.flatnonzero(columns.ids == None).tolist():  # noqa: E711
            columns.ids[at] = derived_id(digest, number + at)
        pieces.append(_Piece.of(columns, parent_id))
        number += len(item)
    pieces.append(loose)
    return _frame(pieces)


class _Piece:
    """Some objects in a row, as columns."""

    def __init__(self) -> None:
        self.ids: Any = []
        self.kinds: Any = []
        self.geometry: Any = []
        self.nucleus: Any = []
        self.classification: Any = []
        self.name: Any = []
        self.locked: Any = []
        self.color: Any = []
        self.parent: Any = []
        self.plane: Any = []
        self.metadata: Any = []
        self.measurements: dict[str, Any] = {}

    def add(self, view: PathObjectView, object_id: str, parent_id: str | None) -> None:
        """Append one object."""
        roi = view.roi_token
        plane = None if roi is None else read_plane(roi)
        at = len(self.ids)
        self.ids.append(object_id)
        self.kinds.append(view.kind)
        self.geometry.append(None if roi is None else read_roi(roi))
        self.nucleus.append(None if view.nucleus_token is None else read_roi(view.nucleus_token))
        self.classification.append(view.classification)
        self.name.append(view.name)
        self.locked.append(view.locked)
        self.color.append(view.color)
        self.parent.append(parent_id)
        self.plane.append(None if plane == DEFAULT_PLANE else plane)
        self.metadata.append(view.metadata)
        for name, value in view.measurements.items():
            self.measurements.setdefault(name, []).append((at, value))

    @classmethod
    def of(cls, columns: RunColumns, parent_id: str | None) -> _Piece:
        """Make a piece from a run."""
        out = cls()
        nothing = np.full(len(columns.ids), None, dtype=object)
        out.ids, out.kinds = columns.ids, columns.kinds
        out.geometry, out.nucleus = columns.geometry, columns.nucleus
        out.classification, out.locked, out.plane = columns.classification, columns.locked, columns.plane
        out.name, out.color, out.metadata = nothing, nothing, nothing
        out.parent = np.full(len(columns.ids), parent_id, dtype=object)
        out.measurements = dict(columns.measurements)
        return out

    def measurement(self, name: str) -> np.ndarray[Any, np.dtype[np.float64]]:
        """One measurement of all objects, NaN where missing."""
        values = self.measurements.get(name)
        if isinstance(values, np.ndarray):
            return values
        out = np.full(len(self.ids), np.nan)
        for at, value in values or ():
            out[at] = value
        return out


def _frame(pieces: list[_Piece]) -> gpd.GeoDataFrame:
    def column(name: str) -> np.ndarray[Any, np.dtype[np.object_]]:
        return np.concatenate([_objects(getattr(piece, name)) for piece in pieces])

    names: dict[str, None] = {}
    for piece in pieces:
        names.update(dict.fromkeys(piece.measurements))
    index = pd.Index(column("ids"), name="id", dtype=object)
    color = column("color")
    has_color = np.array([value is not None for value in color], dtype=bool)
    data: dict[str, Any] = {
        "object_type": pd.Categorical(column("kinds"), categories=OBJECT_TYPES),
        "geometry": column("geometry"),
        "nucleus": pd.Series(column("nucleus"), dtype=object, index=index),
        "classification": pd.Categorical(column("classification")),
        "name": pd.Series(column("name"), dtype=object, index=index),
        "locked": column("locked").astype(bool),
        "color": pd.arrays.IntegerArray(np.where(has_color, color, 0).astype(np.int64), ~has_color),
        "parent_id": pd.Series(column("parent"), dtype=object, index=index),
        "plane": pd.Series(column("plane"), dtype=object, index=index),
        "metadata": pd.Series(column("metadata"), dtype=object, index=index),
    }
    for name in names:
        data[name] = np.concatenate([piece.measurement(name) for piece in pieces])
    return gpd.GeoDataFrame(data, geometry="geometry", index=index)


def _objects(values: Iterable[Any]) -> np.ndarray[Any, np.dtype[np.object_]]:
    if isinstance(values, np.ndarray):
        return values.astype(object, copy=False)
    items = list(values)
    out = np.empty(len(items), dtype=object)
    out[:] = items
    return out
