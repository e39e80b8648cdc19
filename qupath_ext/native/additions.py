"""A path-object table -> tokens: what is to be added to a hierarchy, checked."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import geopandas as gpd
import numpy as np
import pandas as pd
import shapely

from pyhisto.objects import measurement_names, validate_objects
from qupath_ext.errors import ProjectError
from qupath_ext.native.bulk import OTHER, BulkColumns, NewRun, roi_kinds
from qupath_ext.native.catalog import Factory
from qupath_ext.native.collector import paused_collector
from qupath_ext.native.columncheck import Objects, check_colors, check_metadata, check_names, missing_as_none
from qupath_ext.native.pathobjects import GENERAL_LISTS, NewObject, make_object
from qupath_ext.native.records import NewAnnotations
from qupath_ext.native.roi import DEFAULT_PLANE, check_geometries, unwrap
from qupath_ext.native.tokens import JObject, Run

__all__ = ["Additions", "build_additions"]

BULK_KINDS = ("cell", "detection", "tile")
UUID_DASHES = (8, 13, 18, 23)


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


@paused_collector()
def build_additions(table: gpd.GeoDataFrame, factory: Factory, cores: frozenset[str] = frozenset()) -> Additions:
    """Check a table of new objects and make their tokens.

    Detections, cells and tiles without name, colour and metadata are made in bulk; they follow the other objects of
    the same parent. Their measurements are stored as float32, those of annotations and cores as doubles without missing
    ones. `cores` are the ids of the TMA grid that is set in the same change.

    Raises
    ------
    ObjectTableError
        If the table breaks its own rules.
    ProjectError
        If an object cannot be stored: its geometry is missing, empty or invalid, its id no UUID, its metadata not
        text, it is a TMA core that the grid does not have, or new objects are each other's parents.
    """
    validate_objects(table)
    columns = _Columns(table, cores)
    out = Additions(ids=columns.ids, counts=Counter(columns.kinds.tolist()))
    bulk = columns.bulk_rows()
    loose = np.flatnonzero(~bulk)
    for new, parent, plain in zip(
        columns.new_objects(loose),
        columns.parents[loose].tolist(),
        columns.plain_annotations()[loose].tolist(),
        strict=True,
    ):
        children = out.children.setdefault(parent, [])
        if plain:
            last = children[-1] if children else None
            if not isinstance(last, NewAnnotations):
                last = NewAnnotations(factory)
                children.append(last)
            last.append(new)
        else:
            out.tokens[new.id] = make_object(new, factory)
            children.append(out.tokens[new.id])
    groups = _groups(columns.parents, np.flatnonzero(bulk), {name: at for at, name in enumerate(out.tokens)})
    for kind in BULK_KINDS:
        chosen = [(parent, rows[columns.kinds[rows] == kind]) for parent, rows in groups]
        run = NewRun(columns.bulk(kind, np.concatenate([rows for _, rows in chosen])), factory) if chosen else None
        start = 0
        for parent, rows in chosen:
            if run is not None and len(rows):
                out.children.setdefault(parent, []).append(run.part(range(start, start + len(rows))))
                start += len(rows)
    _refuse_circles(columns)
    return out


def _groups(
    parents: Objects, rows: np.ndarray[Any, Any], new: Mapping[str, int]
) -> list[tuple[str | None, np.ndarray[Any, Any]]]:
    """Return some rows by parent; those of new parents in the order in which these will be written."""
    codes, unique = pd.factorize(parents[rows], use_na_sentinel=True)
    order = np.argsort(codes, kind="stable")
    bounds = np.searchsorted(codes[order], np.arange(-1, len(unique) + 1))
    names: list[str | None] = [None, *unique.tolist()]
    out = [(name, rows[order[a:b]]) for name, a, b in zip(names, bounds[:-1], bounds[1:], strict=True) if b > a]
    return sorted(out, key=lambda group: -1 if group[0] is None else new.get(group[0], -1))


def _refuse_circles(columns: _Columns) -> None:
    new = set(columns.ids[columns.are_parents].tolist())
    if not new:
        return
    rows = np.flatnonzero(columns.are_parents)  # each object of a circle is the parent of another
    parent_of = {i: p for i, p in zip(columns.ids[rows], columns.parents[rows], strict=True) if p in new}
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

    def __init__(self, table: gpd.GeoDataFrame, cores: frozenset[str]) -> None:
        self.ids: Objects = table.index.to_numpy(dtype=object)
        self.raw_ids = _check_ids(self.ids)
        self.kinds: Objects = table["object_type"].to_numpy(dtype=object)
        is_core = self.kinds == "tma_core"
        stray = is_core & ~self._are_in(cores)
        self._refuse(stray, "is a TMA core", "cores of a TMA grid that is set in the same change")
        self.geometry: Objects = unwrap(table["geometry"].to_numpy(dtype=object))
        self.nucleus: Objects = missing_as_none(table["nucleus"])
        self._check_geometry()
        classification = pd.Categorical(table["classification"])
        self.codes = np.asarray(classification.codes, dtype=np.int64)
        self.classes = tuple(str(name) for name in classification.categories)
        self.name: Objects = missing_as_none(table["name"])
        self.locked = table["locked"].to_numpy(dtype=bool)
        self.color: Objects = missing_as_none(table["color"])
        self.parents: Objects = missing_as_none(table["parent_id"])
        self.are_parents = self._are_in(pd.unique(self.parents).tolist())
        self.metadata: Objects = missing_as_none(table["metadata"])
        self.planes = self._planes(missing_as_none(table["plane"]))
        self._refuse(is_core & (self.parents != None), "is a TMA core with a parent", "cores at the top level")  # noqa: E711
        check_names(self.name, self.ids, "name")
        check_colors(self.color, self.ids)
        check_metadata(self.metadata, self.ids)
        self.probability = _floats(table, "class_probability")
        self.is_missing = (
            table["missing"].to_numpy(dtype=bool) if "missing" in table else np.zeros(len(table), dtype=bool)
        )
        self._refuse(self.is_missing & ~is_core, "is missing and no TMA core", "missing TMA cores only")
        names = measurement_names(table)
        self.measurements = {name: table[name].to_numpy(dtype=np.float64, na_value=np.nan) for name in names}
        self.names = {kind: self._present(kind) for kind in BULK_KINDS}

    def _are_in(self, ids: Iterable[str | None]) -> np.ndarray[Any, np.dtype[np.bool_]]:
        """Which objects are among some, shape (n,)."""
        few = set(ids)
        return np.fromiter(map(few.__contains__, self.ids.tolist()), dtype=bool, count=len(self.ids))

    def _refuse(self, bad: Any, found: str, expected: str) -> None:
        if np.any(bad):
            raise ProjectError(f"object {self.ids[int(np.flatnonzero(bad)[0])]} {found}", expected=expected)

    def _check_geometry(self) -> None:
        cells = self.kinds == "cell"
        areas = cells | (self.kinds == "tma_core")
        check_geometries(self.geometry[~areas], self.ids[~areas], areas=False, what="geometry")
        check_geometries(self.geometry[areas], self.ids[areas], areas=True, what="geometry")
        nucleated = ~shapely.is_missing(self.nucleus)
        self.nucleus = unwrap(self.nucleus)
        check_geometries(self.nucleus[nucleated], self.ids[nucleated], areas=True, what="nucleus")

    def _planes(self, values: Objects) -> np.ndarray[Any, np.dtype[np.int64]]:
        out = np.empty((len(values), 3), dtype=np.int64)
        out[:] = DEFAULT_PLANE
        for row in np.flatnonzero(pd.notna(values)).tolist():
            if len(values[row]) != 3:
                raise ProjectError(f"plane {values[row]} of object {self.ids[row]}", expected="(c, z, t)")
            out[row] = values[row]
        return out

    def _present(self, kind: str) -> tuple[str, ...]:
        rows = self.kinds == kind
        return tuple(name for name, values in self.measurements.items() if not np.isnan(values[rows]).all())

    def bulk_rows(self) -> np.ndarray[Any, np.dtype[np.bool_]]:
        """Which objects are plain enough to be written in bulk, shape (n,)."""
        out: np.ndarray[Any, np.dtype[np.bool_]] = pd.Series(self.kinds).isin(BULK_KINDS).to_numpy(copy=True)
        for column in (self.name, self.color, self.metadata):
            out &= pd.isna(column)
        out &= (roi_kinds(self.geometry) != OTHER) & (roi_kinds(self.nucleus) != OTHER)
        return out & ~self.are_parents

    def plain_annotations(self) -> np.ndarray[Any, np.dtype[np.bool_]]:
        """Which objects are annotations that :class:`NewAnnotations` can hold, shape (n,)."""
        out: np.ndarray[Any, np.dtype[np.bool_]] = (self.kinds == "annotation") & ~self.are_parents
        out &= pd.isna(self.color) & pd.isna(self.metadata)
        return out & np.isin(shapely.get_type_id(self.geometry), (3, 6))

    def bulk(self, kind: str, rows: Any) -> BulkColumns:
        """Return some objects of one type, for bulk writing."""
        with np.errstate(over="ignore"):
            values = [self.measurements[name][rows].astype(np.float32) for name in self.names[kind]]
        return BulkColumns(
            kind=kind,
            ids=self.raw_ids[rows],
            geometry=self.geometry[rows],
            nucleus=self.nucleus[rows],
            codes=self.codes[rows],
            classes=self.classes,
            locked=self.locked[rows],
            probability=self.probability[rows],
            planes=self.planes[rows],
            names=self.names[kind],
            values=values,
        )

    def new_objects(self, rows: Any) -> list[NewObject]:
        """Return some objects one by one."""
        values = {name: column[rows].tolist() for name, column in self.measurements.items()}
        out = []
        columns = (
            *(self.ids, self.kinds, self.geometry, self.nucleus, self.codes, self.name, self.locked),
            *(self.is_missing, self.color, self.probability, self.planes, self.metadata),
        )
        for at, (
            i,
            kind,
            geometry,
            nucleus,
            code,
            name,
            locked,
            missing,
            color,
            probability,
            plane,
            metadata,
        ) in enumerate(zip(*(column[rows].tolist() for column in columns), strict=True)):
            measured = {name: values[name][at] for name in self.names.get(kind, values)}
            if kind in GENERAL_LISTS:
                measured = {name: value for name, value in measured.items() if value == value}  # not NaN
            new = NewObject(
                id=i,
                kind=kind,
                geometry=geometry,
                nucleus=nucleus,
                classification=self.classes[code] if code >= 0 else None,
                name=name,
                locked=locked,
                missing=missing,
                probability=probability,
                color=None if color is None else int(color),
                plane=tuple(plane),
                metadata=metadata or {},
                measurements=measured,
            )
            out.append(new)
        return out


def _floats(table: gpd.GeoDataFrame, name: str) -> np.ndarray[Any, np.dtype[np.float64]]:
    if name not in table:
        return np.full(len(table), np.nan)
    values: np.ndarray[Any, np.dtype[np.float64]] = table[name].to_numpy(dtype=np.float64, na_value=np.nan)
    return values


def _check_ids(ids: Objects) -> np.ndarray[Any, np.dtype[np.bytes_]]:
    """Refuse ids that are not lower-case UUIDs of 36 characters; return them as ``S36``."""
    values = ids.tolist()
    if not (set(map(type, values)) <= {str} and set(map(len, values)) <= {36} and "".join(values).isascii()):
        bad = next(i for i in values if not (isinstance(i, str) and len(i) == 36 and i.isascii()))
        raise ProjectError(f"object id {bad!r}", expected="a UUID of 36 characters")
    letters = np.frombuffer("".join(values).encode("ascii"), dtype=np.uint8).reshape(-1, 36)
    dashes = np.zeros(36, dtype=bool)
    dashes[list(UUID_DASHES)] = True
    digits = np.isin(np.arange(128), list(b"0123456789abcdef"))
    good = np.where(dashes, letters == ord("-"), digits[letters]).all(axis=1)
    if not good.all():
        raise ProjectError(f"object id {ids[np.flatnonzero(~good)[0]]!r}", expected="a lower-case UUID")
    return letters.view("S36").reshape(-1)
