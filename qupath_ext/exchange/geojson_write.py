"""The path-object table -> features of QuPath's GeoJSON, as bytes.

Every feature is in the one form that QuPath 0.3 to 0.8 all read rightly: both ``objectType`` and ``object_type``,
measurements as a list without NaN, the classification with name and colour. All coordinates of a chunk of objects are
turned into text at once, and the text is then cut up.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import geopandas as gpd
import numpy as np
import orjson
import pandas as pd
import shapely

from pyhisto.errors import ObjectTableError
from pyhisto.objects import measurement_names
from qupath_ext.exchange.ellipses import are_ellipses
from qupath_ext.native.classcolors import class_color
from qupath_ext.native.roi import DEFAULT_PLANE
from qupath_ext.native.validity import go_round

__all__ = ["encode"]

CHUNK = 5_000
NUMPY = orjson.OPT_SERIALIZE_NUMPY
TYPE_NAMES = {"tma_core": "tmaCore"}
KINDS = {0: "Point", 1: "LineString", 3: "Polygon", 4: "MultiPoint", 5: "MultiLineString", 6: "MultiPolygon"}
Objects = np.ndarray[Any, np.dtype[np.object_]]


def encode(
    objects: gpd.GeoDataFrame, *, colors: Mapping[str, int | None], nested: bool, decimals: int, skip_missing: bool
) -> Iterator[bytes]:
    """Yield a feature collection piece by piece; see :func:`qupath_ext.exchange.geojson.write_geojson`."""
    shapes = np.asarray(objects["geometry"], dtype=object)
    missing = shapely.is_missing(shapes) | shapely.is_empty(shapes)
    if missing.any() and not skip_missing:
        raise ObjectTableError(
            f"object {objects.index[missing][0]} has no geometry",
            expected="a geometry: QuPath refuses a whole file for one object without",
            remedy="leave such objects out with skip_missing",
        )
    objects = objects[~missing]
    yield b'{"type":"FeatureCollection","features":['
    chunks = (
        _open_features(objects.iloc[start : start + CHUNK], colors, decimals, parents=not nested)
        for start in range(0, len(objects), CHUNK)
    )
    if nested:
        yield b",".join(_nest(objects, [feature for chunk in chunks for feature in chunk]))
    else:
        separator = b""
        for features in chunks:
            yield separator
            yield b"}},".join(features)
            separator = b"}},"
        if len(objects):
            yield b"}}"
    yield b"]}"


def _nest(objects: gpd.GeoDataFrame, features: list[bytes]) -> list[bytes]:
    """Put features, open at their end, into their parents; return the closed features of the top level."""
    rows = {object_id: row for row, object_id in enumerate(objects.index)}
    parents = [None if parent is None else rows.get(parent) for parent in objects["parent_id"]]
    children: dict[int | None, list[int]] = {}
    for row, parent in enumerate(parents):
        children.setdefault(parent, []).append(row)
    done: dict[int, bytes] = {}
    order = list(children.get(None, ()))
    for row in order:  # grows while it is walked: parents before children
        order.extend(children.get(row, ()))
    if len(order) != len(features):
        lost = objects.index[min(set(range(len(features))).difference(order))]
        raise ObjectTableError(f"object {lost} is its own ancestor", expected="a hierarchy without loops")
    for row in reversed(order):
        inside = [done.pop(child) for child in children.get(row, ())]
        tail = b',"childObjects":[' + b",".join(inside) + b"]}}" if inside else b"}}"
        done[row] = features[row] + tail
    return [done[row] for row in children.get(None, ())]


def _open_features(
    objects: gpd.GeoDataFrame, colors: Mapping[str, int | None], decimals: int, *, parents: bool
) -> list[bytes]:
    """Return the feature of each object without the two closing braces; with the id of its parent if asked for."""
    ids = objects.index.to_numpy()
    plane = objects["plane"].to_numpy()
    geometry = _geometries(np.asarray(objects["geometry"], dtype=object), ids, plane, decimals, "geometry")
    nucleus = _geometries(np.asarray(objects["nucleus"], dtype=object), ids, plane, decimals, "nucleus")
    properties = _properties(objects, colors)
    if parents:
        above = objects["parent_id"]
        for row, parent in zip(np.flatnonzero(above.notna()).tolist(), above.dropna().tolist(), strict=True):
            properties[row] += b',"parentId":' + orjson.dumps(parent)
    measurements = _measurements(objects)
    return [
        b'{"type":"Feature","id":"%b","geometry":%b%b,"properties":{%b%b'
        % (
            object_id,
            outline,
            b',"nucleusGeometry":' + inner if inner else b"",
            before,
            values,
        )
        for object_id, outline, inner, before, values in zip(
            _strings(ids), geometry, nucleus, properties, measurements, strict=True
        )
    ]


# ---------------------------------------------------------------------- geometries
def _geometries(geometries: Objects, ids: Objects, planes: Objects, decimals: int, what: str) -> list[bytes]:
    """Return the text of each geometry; nothing where it is missing."""
    out = [b""] * len(geometries)
    present = np.flatnonzero(~(shapely.is_missing(geometries) | shapely.is_empty(geometries)))
    if not len(present):
        return out
    shapes, xy = _rounded(geometries[present], ids[present], decimals, what)
    kinds = shapely.get_type_id(shapes)
    counts = shapely.get_num_coordinates(shapes)
    plain = _are_simple(shapes)
    tails = _tails(geometries[present], planes[present])
    text = orjson.dumps(xy, option=NUMPY)
    ends = np.flatnonzero(np.frombuffer(text, dtype=np.uint8) == ord("]"))[:-1] + 1  # behind each vertex
    last = np.cumsum(counts)
    starts = np.concatenate([[1], ends[last[:-1] - 1] + 1]).tolist()
    stops = ends[last - 1].tolist()
    for i, (row, is_plain) in enumerate(zip(present.tolist(), plain.tolist(), strict=True)):
        if is_plain:
            out[row] = b'{"type":"Polygon","coordinates":[[%b]]%b}' % (text[starts[i] : stops[i]], tails[i])
        else:
            coordinates = orjson.dumps(_coordinates(shapes[i]), option=NUMPY)
            out[row] = b'{"type":"%b","coordinates":%b%b}' % (KINDS[int(kinds[i])].encode(), coordinates, tails[i])
    return out


def _tails(geometries: Objects, planes: Objects) -> list[bytes]:
    """Return what follows the coordinates: the mark of an ellipse, and the plane if it is not QuPath's default."""
    out = [b',"isEllipse":true' if is_ellipse else b"" for is_ellipse in are_ellipses(geometries).tolist()]
    for at, plane in enumerate(planes.tolist()):
        if plane is not None and tuple(plane) != DEFAULT_PLANE:
            out[at] += b',"plane":{"c":%d,"z":%d,"t":%d}' % tuple(plane)
    return out


def _are_simple(geometries: Objects) -> Any:
    """Return which geometries are polygons of one ring."""
    return (shapely.get_type_id(geometries) == 3) & (shapely.get_num_interior_rings(geometries) == 0)


def _rounded(geometries: Objects, ids: Objects, decimals: int, what: str) -> tuple[Objects, Any]:
    """Return geometries that are valid as they will stand in the file, and their rounded vertices, shape (m, 2)."""
    _refuse(~np.isin(shapely.get_type_id(geometries), list(KINDS)), ids, what, "of a kind that QuPath does not read",
            "points, lines or polygons")  # fmt: skip
    finite = np.isfinite(shapely.bounds(geometries)).all(axis=1)
    _refuse(~finite, ids, what, "not finite", "finite coordinates")
    xy, owner = shapely.get_coordinates(geometries, return_index=True)
    xy = np.round(xy, decimals)
    simple = _are_simple(geometries)
    doubtful = ~simple
    doubtful[simple] = ~go_round(xy[simple[owner]], shapely.get_num_coordinates(geometries[simple]))
    if not doubtful.any():
        return geometries, xy
    shapes = geometries.copy()
    shapes[doubtful] = shapely.set_coordinates(geometries[doubtful], xy[doubtful[owner]])
    broken = np.flatnonzero(doubtful)[~shapely.is_valid(shapes[doubtful])]
    if not len(broken):
        return shapes, xy
    invalid = broken[~shapely.is_valid(geometries[broken])]
    if len(invalid):
        _refuse(
            np.isin(np.arange(len(ids)), invalid), ids, what,
            f"invalid ({shapely.is_valid_reason(geometries[invalid[0]])})", "a valid geometry",
            "repair it, for example with shapely.make_valid",
        )  # fmt: skip
    # Valid before rounding: snapped to the grid as a whole, so that no edges cross.
    shapes[broken] = shapely.set_precision(geometries[broken], 10.0**-decimals)
    _refuse(shapely.is_empty(shapes), ids, what, "lost by rounding", "a larger one", "write more decimals")
    return shapes, np.round(shapely.get_coordinates(shapes), decimals)


def _refuse(bad: Any, ids: Objects, what: str, found: str, expected: str, remedy: str = "") -> None:
    n = int(np.count_nonzero(bad))
    if n:
        more = f" (and of {n - 1} more)" if n > 1 else ""
        raise ObjectTableError(
            f"the {what} of object {ids[np.argmax(bad)]}{more} is {found}", expected=expected, remedy=remedy
        )


def _coordinates(geometry: Any) -> Any:
    """Return GeoJSON coordinates as nested lists of arrays, shape (m, 2)."""
    match geometry.geom_type:
        case "Point":
            return shapely.get_coordinates(geometry)[0]
        case "Polygon":
            return [shapely.get_coordinates(ring) for ring in shapely.get_rings(geometry)]
        case "MultiLineString" | "MultiPolygon":
            return [_coordinates(part) for part in shapely.get_parts(geometry)]
    return shapely.get_coordinates(geometry)


# ---------------------------------------------------------------------- properties
def _properties(objects: gpd.GeoDataFrame, colors: Mapping[str, int | None]) -> list[bytes]:
    """Return the properties before the measurements, without braces."""
    kinds, classes = (objects[name].astype("category").cat for name in ("object_type", "classification"))
    sort_of = (kinds.codes + 1 + len(kinds.categories) * (classes.codes.astype(np.int64) + 1)) * 2
    sort_of = sort_of + objects["locked"].to_numpy(dtype=bool)
    heads = {}
    for sort, row in zip(*np.unique(sort_of, return_index=True), strict=True):
        kind, name, locked = (objects[column].iloc[row] for column in ("object_type", "classification", "locked"))
        heads[int(sort)] = _head(kind, name if isinstance(name, str) else None, bool(locked), colors)
    out = [heads[sort] for sort in sort_of.tolist()]
    for column, text_of in (("name", _name), ("color", _own_color), ("metadata", _metadata)):
        values = objects[column]
        for row in np.flatnonzero(values.notna()).tolist():
            out[row] += text_of(values.iloc[row])
    missing = objects.get("missing")
    for row in np.flatnonzero(objects["object_type"] == "tma_core").tolist():
        is_missing = missing is not None and pd.notna(missing.iloc[row]) and bool(missing.iloc[row])
        out[row] += b',"isMissing":true' if is_missing else b',"isMissing":false'
    return out


def _name(name: str) -> bytes:
    return b',"name":' + orjson.dumps(name)


def _own_color(color: int) -> bytes:
    return b',"color":' + _rgb(color)


def _metadata(metadata: Mapping[str, str]) -> bytes:
    return b',"metadata":' + orjson.dumps(dict(metadata)) if metadata else b""


def _head(kind: str, class_name: str | None, locked: bool, colors: Mapping[str, int | None]) -> bytes:
    text = b'"objectType":"%b","object_type":"%b"' % (TYPE_NAMES.get(kind, kind).encode(), kind.encode())
    if class_name is not None:
        color = colors.get(class_name)
        color = class_color(class_name) if color is None else color
        text += b',"classification":{"name":%b,"color":%b}' % (orjson.dumps(class_name), _rgb(color))
    return text + (b',"isLocked":true' if locked else b"")


def _strings(values: Objects) -> list[bytes]:
    """Return the JSON text of strings without the quotes."""
    return orjson.dumps(values.tolist())[2:-2].split(b'","')


def _rgb(color: int) -> bytes:
    return b"[%d,%d,%d]" % (color >> 16 & 255, color >> 8 & 255, color & 255)


def _measurements(objects: gpd.GeoDataFrame) -> list[bytes]:
    """Return the measurements of each object, what is NaN left out."""
    names = measurement_names(objects)
    if not names or not len(objects):
        return [b""] * len(objects)
    values = objects[names].to_numpy(dtype=np.float64)
    rows = orjson.dumps(np.ascontiguousarray(values), option=NUMPY)[2:-2].split(b"],[")
    parts = [b'{"name":%b,"value":' % orjson.dumps(name) for name in names]
    template = b',"measurements":[' + b",".join(part.replace(b"%", b"%%") + b"%b}" for part in parts) + b"]"
    complete = np.isfinite(values).all(axis=1).tolist()
    return [
        template % tuple(row.split(b",")) if whole else _some_measurements(parts, row.split(b","), values[at])
        for at, (row, whole) in enumerate(zip(rows, complete, strict=True))
    ]


def _some_measurements(parts: list[bytes], numbers: list[bytes], values: Any) -> bytes:
    infinite = {np.inf: b'"Infinity"', -np.inf: b'"-Infinity"'}
    kept = [
        part + infinite.get(value, number) + b"}"
        for part, number, value in zip(parts, numbers, values.tolist(), strict=True)
        if value == value
    ]
    return b',"measurements":[' + b",".join(kept) + b"]" if kept else b""
