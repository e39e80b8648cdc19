"""A path-object table -> tokens: what is to be added to a hierarchy, checked."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import geopandas as gpd
import numpy as np
import pandas as pd

from pyhisto.objects import measurement_names, validate_objects
from qupath_ext.errors import ProjectError
from qupath_ext.native.bulk import OTHER, BulkColumns, NewRun, roi_kinds
from qupath_ext.native.catalog import Factory
from qupath_ext.native.pathobjects import NewObject, make_object
from qupath_ext.native.roi import DEFAULT_PLANE, check_geometries, unwrap
from qupath_ext.native.tokens import JObject, Run

__all__ = ["Additions", "build_additions"]

BULK_KINDS = ("cell", "detection", "tile")
MIN_BULK = 8
UUID_DASHES = (8, 13, 18, 23)
Objects = np.ndarray[Any, np.dtype[np.object_]]


@dataclass
class Additions:
    """New tokens by the id of their parent (None: top level).

    Attributes
    ----------
    children
        Tokens to append to each parent, in order.
    tokens
        Those that other new objects may have as parent, by id.
    ids
        All new ids.
    counts
        Number of new objects by type.
    """

    children: dict[str | None, list[JObject | Run]] = field(default_factory=dict)
    tokens: dict[str, JObject] = field(default_factory=dict)
    ids: Objects = field(default_factory=lambda: np.empty(0, dtype=object))
    counts: Counter[str] = field(default_factory=Counter)


def build_additions(table: gpd.GeoDataFrame, factory: Factory) -> Additions:
    """Check a table of new objects and make their tokens.

    Detections, cells and tiles without name, colour and metadata are made in bulk; they follow the other objects of
    the same parent. Their measurements are stored as float32, those of annotations as doubles without the missing
    ones.

    Raises
    ------
    ObjectTableError
        If the table breaks its own rules.
    ProjectError
        If an object cannot be stored: its geometry is empty or invalid, its id no UUID, its type ``tma_core``, its
        metadata not text, or new objects are each other's parents.
    """
    validate_objects(table)
    columns = _Columns(table)
    out = Additions(ids=columns.ids, counts=Counter(columns.kinds.tolist()))
    bulk = columns.bulk_rows()
    for row in np.flatnonzero(~bulk).tolist():
        token = make_object(columns.new_object(row), factory)
        out.tokens[columns.ids[row]] = token
        out.children.setdefault(columns.parents[row], []).append(token)
    for parent, rows in _groups(columns.parents, np.flatnonzero(bulk)):
        for kind in BULK_KINDS:
            chosen = rows[columns.kinds[rows] == kind]
            tokens = out.children.setdefault(parent, []) if len(chosen) else []
            if len(chosen) >= MIN_BULK:
                tokens.append(NewRun(columns.bulk(kind, chosen), factory))
            else:
                tokens += [make_object(columns.new_object(row), factory) for row in chosen.tolist()]
    _refuse_circles(columns)
    return out


def _groups(parents: Objects, rows: np.ndarray[Any, Any]) -> list[tuple[str | None, np.ndarray[Any, Any]]]:
    codes, unique = pd.factorize(parents[rows], use_na_sentinel=True)
    order = np.argsort(codes, kind="stable")
    bounds = np.searchsorted(codes[order], np.arange(-1, len(unique) + 1))
    names: list[str | None] = [None, *unique.tolist()]
    return [(name, rows[order[a:b]]) for name, a, b in zip(names, bounds[:-1], bounds[1:], strict=True) if b > a]


def _refuse_circles(columns: _Columns) -> None:
    parent_of = {i: p for i, p in zip(columns.ids.tolist(), columns.parents.tolist(), strict=True) if p is not None}
    done: set[str] = set()
    for start in parent_of:
        chain: list[str] = []
        seen: set[str] = set()
        at = start
        while at in parent_of and at not in done:
            if at in seen:
                raise ProjectError(f"object {at} is its own parent, by way of others", expected="a tree")
            seen.add(at)
            chain.append(at)
            at = parent_of[at]
        done.update(chain)


class _Columns:
    """The columns of a table as numpy arrays, checked."""

    def __init__(self, table: gpd.GeoDataFrame) -> None:
        self.ids: Objects = table.index.to_numpy(dtype=object)
        _check_ids(self.ids)
        self.kinds: Objects = table["object_type"].to_numpy(dtype=object)
        self._refuse(self.kinds == "tma_core", "is a TMA core", "annotations, detections, cells or tiles")
        self.geometry: Objects = unwrap(table["geometry"].to_numpy(dtype=object))
        self.nucleus: Objects = _missing_as_none(table["nucleus"])
        self._check_geometry()
        classification = pd.Categorical(table["classification"])
        self.codes = np.asarray(classification.codes, dtype=np.int64)
        self.classes = tuple(str(name) for name in classification.categories)
        self.name: Objects = _missing_as_none(table["name"])
        self.locked = table["locked"].to_numpy(dtype=bool)
        self.color: Objects = _missing_as_none(table["color"])
        self.parents: Objects = _missing_as_none(table["parent_id"])
        self.metadata: Objects = _missing_as_none(table["metadata"])
        self.planes = self._planes(_missing_as_none(table["plane"]))
        self._check_metadata()
        names = measurement_names(table)
        self.measurements = {name: table[name].to_numpy(dtype=np.float64, na_value=np.nan) for name in names}
        self.names = {kind: self._present(kind) for kind in BULK_KINDS}

    def _refuse(self, bad: Any, found: str, expected: str) -> None:
        if np.any(bad):
            raise ProjectError(f"object {self.ids[int(np.flatnonzero(bad)[0])]} {found}", expected=expected)

    def _check_geometry(self) -> None:
        cells = self.kinds == "cell"
        check_geometries(self.geometry[~cells], self.ids[~cells], areas=False, what="geometry")
        check_geometries(self.geometry[cells], self.ids[cells], areas=True, what="geometry")
        nucleated = np.array([value is not None for value in self.nucleus], dtype=bool)
        self.nucleus = unwrap(self.nucleus)
        check_geometries(self.nucleus[nucleated], self.ids[nucleated], areas=True, what="nucleus")

    def _check_metadata(self) -> None:
        for row, entries in enumerate(self.metadata.tolist()):
            if entries is None:
                continue
            texts = isinstance(entries, dict) and all(isinstance(x, str) for item in entries.items() for x in item)
            self._refuse(np.arange(len(self.ids)) == row if not texts else False, "has other metadata", "a dict of str")
            if "Object ID" in entries:
                raise ProjectError(f"object {self.ids[row]} has the metadata key 'Object ID'", expected="another key")

    def _planes(self, values: Objects) -> np.ndarray[Any, np.dtype[np.int64]]:
        out = np.empty((len(values), 3), dtype=np.int64)
        out[:] = DEFAULT_PLANE
        for row, plane in enumerate(values.tolist()):
            if plane is not None:
                if len(plane) != 3:
                    raise ProjectError(f"plane {plane} of object {self.ids[row]}", expected="(c, z, t)")
                out[row] = plane
        return out

    def _present(self, kind: str) -> tuple[str, ...]:
        rows = self.kinds == kind
        return tuple(name for name, values in self.measurements.items() if not np.isnan(values[rows]).all())

    def bulk_rows(self) -> np.ndarray[Any, np.dtype[np.bool_]]:
        """Which objects are plain enough to be written in bulk, shape (n,)."""
        out: np.ndarray[Any, np.dtype[np.bool_]] = np.isin(self.kinds.astype("U"), BULK_KINDS)
        for column in (self.name, self.color, self.metadata):
            out &= np.array([value is None for value in column], dtype=bool)
        out &= (roi_kinds(self.geometry) != OTHER) & (roi_kinds(self.nucleus) != OTHER)
        parents = {parent for parent in self.parents.tolist() if parent is not None}
        out &= ~np.fromiter((i in parents for i in self.ids.tolist()), dtype=bool, count=len(self.ids))
        return out

    def bulk(self, kind: str, rows: Any) -> BulkColumns:
        """Return some objects of one type, for bulk writing."""
        with np.errstate(over="ignore"):
            values = [self.measurements[name][rows].astype(np.float32) for name in self.names[kind]]
        return BulkColumns(
            kind=kind,
            ids=self.ids[rows].astype("S36"),
            geometry=self.geometry[rows],
            nucleus=self.nucleus[rows],
            codes=self.codes[rows],
            classes=self.classes,
            locked=self.locked[rows],
            planes=self.planes[rows],
            names=self.names[kind],
            values=values,
        )

    def new_object(self, row: int) -> NewObject:
        """One object, to be written token by token."""
        kind, code, color = self.kinds[row], int(self.codes[row]), self.color[row]
        c, z, t = self.planes[row].tolist()
        names = self.names.get(kind, tuple(self.measurements))
        values = {name: float(self.measurements[name][row]) for name in names}
        if kind == "annotation":
            values = {name: value for name, value in values.items() if not np.isnan(value)}
        return NewObject(
            id=self.ids[row],
            kind=kind,
            geometry=self.geometry[row],
            nucleus=self.nucleus[row],
            classification=self.classes[code] if code >= 0 else None,
            name=self.name[row],
            locked=bool(self.locked[row]),
            color=None if color is None else int(color),
            plane=(c, z, t),
            metadata=self.metadata[row] or {},
            measurements=values,
        )


def _missing_as_none(column: pd.Series[Any]) -> Objects:
    out: Objects = column.astype(object).to_numpy()
    missing = column.isna().to_numpy(dtype=bool)
    if missing.any():
        out = out.copy()
        out[missing] = None
    return out


def _check_ids(ids: Objects) -> None:
    """Refuse ids that are not lower-case UUIDs of 36 characters."""
    for at, value in enumerate(ids.tolist()):
        if not isinstance(value, str) or len(value) != 36 or not value.isascii():
            raise ProjectError(f"object id {ids[at]!r}", expected="a UUID of 36 characters")
    letters = np.ascontiguousarray(ids.astype("S36")).view(np.uint8).reshape(-1, 36)
    dashes = np.zeros(36, dtype=bool)
    dashes[list(UUID_DASHES)] = True
    digit = ((letters >= ord("0")) & (letters <= ord("9"))) | ((letters >= ord("a")) & (letters <= ord("f")))
    good = np.where(dashes, letters == ord("-"), digit).all(axis=1)
    if not good.all():
        raise ProjectError(f"object id {ids[np.flatnonzero(~good)[0]]!r}", expected="a lower-case UUID")
