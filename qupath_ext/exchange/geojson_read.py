"""Features of GeoJSON, in every form that QuPath has written since 0.2 -> the path-object table."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import chain
from operator import ne
from typing import Any

import geopandas as gpd
import numpy as np

from pyhisto.objects import make_objects
from qupath_ext.errors import FormatError
from qupath_ext.exchange.geojson_shapes import build_shapes
from qupath_ext.exchange.geojson_text import GEOMETRY_TYPES, Block, NotSplitError, split_features, whole_file
from qupath_ext.exchange.geojson_values import (
    Malformed,
    class_and_color,
    color,
    identifier,
    measurement,
    metadata,
    object_type,
    text,
)
from qupath_ext.exchange.measured import PLACE, Measured

__all__ = ["decode"]

Floats = np.ndarray[Any, np.dtype[np.float64]]
Json = dict[str, Any]


def decode(data: bytes, source: str, *, fix_invalid: bool, drop_flat: bool = False) -> gpd.GeoDataFrame:
    """Read GeoJSON; see :func:`qupath_ext.exchange.geojson.read_geojson`."""
    data = data.removeprefix(b"\xef\xbb\xbf")
    with _no_garbage_collection():
        reader = _Reader(source, fix_invalid=fix_invalid, drop_flat=drop_flat)
        try:
            for block in split_features(data):
                reader.read(block)
        except NotSplitError:
            reader = _Reader(source, fix_invalid=fix_invalid, drop_flat=drop_flat)
            reader.read(whole_file(data, source))
        return reader.table()


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Let Python not search for cycles while millions of objects are made, none of which is in one."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


class _Reader:
    """Collects the columns of the table, block by block; within a block column by column."""

    def __init__(self, source: str, *, fix_invalid: bool, drop_flat: bool) -> None:
        self.source = source
        self.fix_invalid = fix_invalid
        self.drop_flat = drop_flat
        self.n_top = 0  # features of the top level so far
        self.places: list[tuple[int | None, int]] = []  # (row of the parent, number among its children)
        self.ids: list[str] = []
        self.shapes: dict[str, list[Any]] = {"geometry": [], "nucleus": []}
        self.columns: dict[str, list[Any]] = {}
        self.class_colors: dict[str, int] = {}
        self.measurements: dict[tuple[str, ...], list[tuple[Any, Floats]]] = {}

    def label(self, row: int) -> str:
        """Return how messages call the feature of a row."""
        parent, number = self.places[row]
        return f"{self.source}, feature {number}" if parent is None else f"{self.label(parent)}, child {number}"

    def _labels(self, first: int, what: str) -> Callable[[int], str]:
        return lambda row: f"{self.label(first + row)}, {what}"

    def read(self, block: Block) -> None:
        """Read features and what is nested in them."""
        first = len(self.places)
        features, properties, kinds = self._flatten(block)
        self.ids += self._each(first, identifier, [feature.get("id") for feature in features])
        parents = [parent for parent, _ in self.places[first:]]
        outlines = [feature.get("geometry") for feature in features]
        nuclei = [
            feature.get("nucleusGeometry") if kind == "cell" else None
            for feature, kind in zip(features, kinds, strict=True)
        ]
        cores = np.flatnonzero([kind == "tma_core" for kind in kinds])
        for name, found, ellipses in (("geometry", outlines, cores), ("nucleus", nuclei, cores[:0])):
            shapes, planes = build_shapes(
                found, block.coordinates, ellipses=ellipses, fix_invalid=self.fix_invalid, drop_flat=self.drop_flat,
                label=self._labels(first, name),
            )  # fmt: skip
            self.shapes[name].append(shapes)
            if name == "geometry":
                self._extend("plane", planes)
        self._extend("object_type", kinds)
        named = self._each(first, text, [item.get("parentId") for item in properties])
        self._extend("parent_id", [n if p is None else self.ids[p] for p, n in zip(parents, named, strict=True)])
        for column, key, convert in (
            ("name", "name", text),
            ("classification", "classification", self._classification),
            ("color", "color", color),
            ("metadata", "metadata", metadata),
        ):
            self._extend(column, self._each(first, convert, [item.get(key) for item in properties]))
        for column, key in (("locked", "isLocked"), ("missing", "isMissing")):
            self._extend(column, [item.get(key) is True for item in properties])
        if block.measured is not None:
            if any("measurements" in item for item in properties if PLACE in item):
                raise NotSplitError  # twice in one object: the last one counts
            self._take(first, [item.get(PLACE) for item in properties], block.measured)
        self._measure(first, [item.get("measurements") for item in properties])

    def _extend(self, column: str, values: list[Any]) -> None:
        self.columns.setdefault(column, []).extend(values)

    def _each(self, first: int, convert: Callable[[Any], Any], values: list[Any]) -> list[Any]:
        """Convert the values of the rows from `first` on; a bad one is reported with its feature."""
        if values.count(None) == len(values) and convert is not identifier:
            return values
        try:
            return [convert(value) for value in values]
        except Malformed:
            for row, value in enumerate(values, start=first):
                try:
                    convert(value)
                except Malformed as malformed:
                    raise malformed.named(self.label(row)) from malformed
            raise

    def _flatten(self, block: Block) -> tuple[list[Json], list[Json], list[str]]:
        """Return features, their properties and types: parents before children, without roots."""
        features: list[Json] = []
        properties: list[Json] = []
        kinds: list[str] = []
        begin = self.n_top + 1
        self.n_top += len(block.features)
        stack: list[tuple[int | None, int, Any]]
        stack = [(None, number, feature) for number, feature in enumerate(block.features, start=begin)]
        stack.reverse()
        while stack:
            place = stack.pop()
            self.places.append(place[:2])
            try:
                feature, inside = _checked(place[2])
                kind = object_type(feature, inside)
                children = inside.get("childObjects") if "childObjects" in inside else inside.get("children")
                if children and not isinstance(children, list):
                    raise Malformed("childObjects that are no array", "an array of features")
            except Malformed as malformed:
                raise malformed.named(self.label(len(self.places) - 1)) from malformed
            parent = None if kind == "root" else len(self.places) - 1
            if children:
                stack.extend([(parent, number, child) for number, child in enumerate(children, start=1)][::-1])
            if kind == "root":
                self.places.pop()
                continue
            features.append(feature)
            properties.append(inside)
            kinds.append(kind)
        return features, properties, kinds

    def _classification(self, value: Any) -> str | None:
        """Return the full name of a class, and remember its colour."""
        if type(value) is dict and len(value) == 2:
            known = value.get("name")
            if type(known) is str and known in self.class_colors:
                return known
        name, packed = class_and_color(value)
        if name is not None and packed is not None:
            self.class_colors.setdefault(name, packed)
        return name

    # ------------------------------------------------------------------ measurements
    def _take(self, first: int, places: list[int | None], measured: Measured) -> None:
        """Take the measurements that were cut out of the text, of the rows from `first` on."""
        rows = [row for row, place in enumerate(places, start=first) if place is not None]
        values = measured.values[[place for place in places if place is not None]]
        self.measurements.setdefault(measured.names, []).append((rows, values))

    def _measure(self, first: int, found: list[Any]) -> None:
        """Take the measurements of the rows from `first` on."""
        rows = [row for row, item in enumerate(found, start=first) if item]
        names, values = self._names_and_values(rows, [item for item in found if item])
        begin = 0
        for end in [*np.flatnonzero(list(map(ne, names[1:], names[:-1]))) + 1, len(rows)] if rows else ():
            matrix = self._matrix(rows[begin:end], values[begin:end], len(names[begin]))
            self.measurements.setdefault(tuple(names[begin]), []).append((rows[begin:end], matrix))
            begin = end

    def _names_and_values(self, rows: list[int], found: list[Any]) -> tuple[list[list[str]], list[list[Any]]]:
        """Return names and values from objects, or from lists of objects with name and value."""
        names: list[list[str]] = []
        values: list[list[Any]] = []
        for row, item in zip(rows, found, strict=True):
            try:
                if isinstance(item, dict):
                    names.append(list(item))
                    values.append(list(item.values()))
                else:
                    names.append([one["name"] for one in item])
                    values.append([one["value"] for one in item])
            except (TypeError, KeyError):
                raise FormatError(
                    f"{self.label(row)}: measurements that are no names with values", expected="numbers with names"
                ) from None
        return names, values

    def _matrix(self, rows: list[int], values: list[list[Any]], n_names: int) -> Floats:
        """Return measurements as numbers, shape (rows, names)."""
        flat = list(chain.from_iterable(values))
        if not set(map(type, flat)) <= {float, int}:
            for row, own in zip(rows, values, strict=True):
                try:
                    own[:] = [measurement(value) for value in own]
                except Malformed as malformed:
                    raise malformed.named(self.label(row)) from malformed
            flat = list(chain.from_iterable(values))
        return np.array(flat, dtype=np.float64).reshape(len(rows), n_names)

    def _measurement_columns(self) -> dict[str, Floats]:
        out: dict[str, Floats] = {}
        for names, blocks in self.measurements.items():
            rows = np.concatenate([block for block, _ in blocks])
            values = np.concatenate([block for _, block in blocks])
            for column, name in enumerate(names):
                if name not in out:
                    out[name] = np.full(len(self.ids), np.nan)
                out[name][rows] = values[:, column]
        return out

    # ------------------------------------------------------------------ columns -> table
    def table(self) -> gpd.GeoDataFrame:
        """Return the path-object table."""
        self._check_ids()
        nothing = np.empty(0, dtype=object)
        columns = {name: values for name, values in self.columns.items() if name != "missing"}
        missing = self.columns.get("missing", [])
        table = make_objects(
            np.concatenate([nothing, *self.shapes["geometry"]]),
            nucleus=np.concatenate([nothing, *self.shapes["nucleus"]]),
            measurements=self._measurement_columns(),
            ids=self.ids,
            allow_missing=True,
            missing=missing if True in missing else None,
            **(columns or {"object_type": []}),
        )
        table.attrs["class_colors"] = self.class_colors
        return table

    def _check_ids(self) -> None:
        if len(set(self.ids)) == len(self.ids):
            return
        seen: dict[str, int] = {}
        for row, object_id in enumerate(self.ids):
            if object_id in seen:
                raise FormatError(
                    f"{self.label(row)}: its id {object_id} is that of feature {self.places[seen[object_id]][1]}",
                    expected="an id of its own for each object",
                    remedy="take one of the two features, or its id, out of the file",
                )
            seen[object_id] = row


def _checked(feature: Any) -> tuple[Json, Json]:
    """Return a feature, or a bare geometry as one, and its properties."""
    if not isinstance(feature, dict):
        raise Malformed(f"a JSON {type(feature).__name__}", "a GeoJSON feature")
    if feature.get("type") != "Feature" and "geometry" not in feature:
        if feature.get("type") not in GEOMETRY_TYPES:
            raise Malformed(f"type {feature.get('type')!r}", "a GeoJSON feature or geometry")
        feature = {"geometry": feature}
    properties = feature.get("properties") or {}
    if not isinstance(properties, dict):
        raise Malformed("properties that are no JSON object", "an object")
    return feature, properties
