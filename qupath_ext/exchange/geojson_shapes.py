"""GeoJSON geometries -> shapely, all of a block at once; what QuPath would refuse is refused or repaired."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import shapely

from pyhisto.labels import clean_polygon
from qupath_ext.exchange.coordinates import Coordinates
from qupath_ext.exchange.geojson_values import Malformed
from qupath_ext.native.roi import DEFAULT_PLANE, ellipse
from qupath_ext.native.validity import go_round

__all__ = ["Plane", "build_shapes"]

Plane = tuple[int, int, int]
Objects = np.ndarray[Any, np.dtype[np.object_]]
NESTING = {
    "Point": re.compile(rb"p"),
    "MultiPoint": re.compile(rb"\[p+\]"),
    "LineString": re.compile(rb"\[pp+\]"),
    "MultiLineString": re.compile(rb"\[(?:\[pp+\])+\]"),
    "Polygon": re.compile(rb"\[(?:\[p+\])+\]"),
    "MultiPolygon": re.compile(rb"\[(?:\[(?:\[p+\])+\])+\]"),
}
RING = re.compile(rb"p+")


def build_shapes(
    geometries: list[Any],
    coordinates: Coordinates,
    *,
    ellipses: Any,
    fix_invalid: bool,
    drop_flat: bool,
    label: Callable[[int], str],
) -> tuple[Objects, list[Plane | None]]:
    """Return the geometry of each row, None where a row has none, and the planes.

    Parameters
    ----------
    geometries
        The GeoJSON geometries, with an index into `coordinates` in the place of each array of coordinates; None and
        ``{}`` are no geometry.
    coordinates
        The coordinates.
    ellipses
        Rows whose geometry stands for the ellipse in its bounds, besides those that say so themselves.
    fix_invalid
        Repair polygons that are invalid; they are refused otherwise.
    drop_flat
        With `fix_invalid`: polygons without area are no geometry; they are refused otherwise.
    label
        Gives the name of the geometry of a row.

    Returns
    -------
    tuple
        Geometries, object, shape (n,); n planes (c, z, t), None for QuPath's default.

    Raises
    ------
    FormatError
        Names the first feature whose geometry is malformed or invalid.
    """
    out = np.full(len(geometries), None, dtype=object)
    planes: list[Plane | None] = [None] * len(geometries)
    rows = [row for row, geometry in enumerate(geometries) if geometry]
    groups = _by_form(geometries, rows, coordinates, label)
    simple, others = groups["simple"], groups["other"]
    if simple:
        out[simple] = _simple_polygons(coordinates, np.array([geometries[row]["coordinates"] for row in simple]))
        others += [row for row in simple if out[row] is None]
    for row in others:
        try:
            out[row] = _shape(geometries[row], coordinates, fix=fix_invalid, drop_flat=drop_flat)
        except Malformed as malformed:
            raise malformed.named(label(row)) from malformed
    round_rows = set(ellipses.tolist())
    for row in rows:
        if len(geometries[row]) > 2:
            try:
                planes[row] = _plane(geometries[row].get("plane"))
            except Malformed as malformed:
                raise malformed.named(label(row)) from malformed
            if geometries[row].get("isEllipse") is True:
                round_rows.add(row)
    for row in round_rows.intersection(rows):
        if out[row] is not None:
            out[row] = ellipse(*out[row].bounds)
    return out, planes


def _by_form(
    geometries: list[Any], rows: list[int], coordinates: Coordinates, label: Callable[[int], str]
) -> dict[str, list[int]]:
    """Return the rows of polygons of one ring, of empty geometries and of others; refuse what is none of them."""
    groups: dict[str, list[int]] = {"simple": [], "empty": [], "other": []}
    known: dict[tuple[str, bytes], list[int]] = {}
    for row in rows:
        geometry = geometries[row]
        try:
            key = geometry["type"], coordinates.nesting[geometry["coordinates"]]
            known[key].append(row)
        except (KeyError, TypeError):  # the first of its form, or malformed
            try:
                nesting = _nesting(geometry, coordinates)
            except Malformed as malformed:
                raise malformed.named(label(row)) from malformed
            key = geometry["type"], nesting
            one_ring = key[0] == "Polygon" and nesting.count(b"[") == 2
            known[key] = groups["empty" if nesting == b"[]" else "simple" if one_ring else "other"]
            known[key].append(row)
    return groups


def _nesting(geometry: Any, coordinates: Coordinates) -> bytes:
    """Return how the positions of a geometry are nested, as its type asks for."""
    if not isinstance(geometry, dict):
        raise Malformed("no JSON object", "a GeoJSON geometry")
    kind, array = geometry.get("type"), geometry.get("coordinates")
    if not isinstance(kind, str) or kind not in NESTING:
        raise Malformed(f"type {kind!r}", f"one of {', '.join(NESTING)}")
    if type(array) is not int:
        raise Malformed("no array of coordinates", "coordinates")
    nesting = coordinates.nesting[array]
    if nesting != b"[]" and not NESTING[kind].fullmatch(nesting):
        raise Malformed(f"coordinates that are not those of a {kind}", "positions [x, y]")
    return nesting


def _plane(plane: Any) -> Plane | None:
    if plane is None:
        return None
    if isinstance(plane, dict):
        out = tuple(plane.get(axis, default) for axis, default in zip("czt", DEFAULT_PLANE, strict=True))
        if all(type(value) is int for value in out):
            return None if out == DEFAULT_PLANE else (out[0], out[1], out[2])
    raise Malformed(f"the plane {plane!r}", "whole numbers c, z and t")


def _simple_polygons(coordinates: Coordinates, arrays: Any) -> Objects:
    """Return the polygons of one ring that are seen to be valid; None for the others."""
    first, after = coordinates.first[arrays], coordinates.first[arrays + 1]
    xy, sizes = coordinates.xy, after - first
    good = (sizes > 3) & (xy[first] == xy[after - 1]).all(axis=1)
    points = xy[_ranges(first[good], sizes[good])]
    good[good] = seen = go_round(points, sizes[good])
    sizes = sizes[good]
    out = np.full(len(arrays), None, dtype=object)
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    points = points if seen.all() else xy[_ranges(first[good], sizes)]
    out[good] = shapely.from_ragged_array(shapely.GeometryType.POLYGON, points, (offsets, np.arange(len(offsets))))
    return out


def _ranges(first: Any, sizes: Any) -> Any:
    """Return the whole numbers from each `first` on, as many as its size, one run after the other."""
    return np.repeat(first - np.cumsum(sizes) + sizes, sizes) + np.arange(sizes.sum())


def _shape(geometry: dict[str, Any], coordinates: Coordinates, *, fix: bool, drop_flat: bool) -> Any:
    """Return one geometry, valid; None if it is a polygon without area that may be dropped."""
    kind, array = geometry["type"], geometry["coordinates"]
    points = coordinates.xy[coordinates.first[array] : coordinates.first[array + 1]]
    if not np.isfinite(points).all():
        raise Malformed("infinite coordinates", "numbers")
    match kind:
        case "Point":
            return shapely.Point(points[0])
        case "MultiPoint":
            return shapely.MultiPoint(points)
        case "LineString":
            return shapely.LineString(points)
    nesting = coordinates.nesting[array]
    rings = np.split(points, np.cumsum([len(ring) for ring in RING.findall(nesting)])[:-1])
    if kind == "MultiLineString":
        return shapely.MultiLineString(rings)
    # One polygon has as many rings as there are "[" in it, but for its own bracket.
    parts = [nesting] if kind == "Polygon" else [b"[%b" % part for part in nesting[2:-3].split(b"]][")]
    polygons = []
    for part in parts:
        n_rings = part.count(b"[") - 1
        polygons.append(_polygon(rings[:n_rings], fix=fix))
        rings = rings[n_rings:]
    return _valid([polygon for polygon in polygons if polygon is not None], fix=fix, drop_flat=drop_flat)


def _polygon(rings: list[Any], *, fix: bool) -> Any:
    """Return the polygon of an outer ring and holes; None if too little of it is there to be repaired."""
    if fix:
        rings = [ring if (ring[0] == ring[-1]).all() else np.concatenate([ring, ring[:1]]) for ring in rings]
        if len(rings[0]) < 4:
            return None
        return shapely.Polygon(rings[0], [ring for ring in rings[1:] if len(ring) > 3])
    for ring in rings:
        if len(ring) < 4:
            raise _invalid(f"a ring of {len(ring)} positions")
        if (ring[0] != ring[-1]).any():
            raise _invalid("a ring that is not closed")
    return shapely.Polygon(rings[0], rings[1:])


def _valid(polygons: list[Any], *, fix: bool, drop_flat: bool) -> Any:
    shape = polygons[0] if len(polygons) == 1 else shapely.MultiPolygon(polygons)
    if shape.is_valid and not shape.is_empty:
        return shape
    if not fix:
        raise _invalid(shapely.is_valid_reason(shape))
    parts = clean_polygon(shape)
    if not parts and drop_flat:
        return None
    if not parts:
        raise Malformed("a polygon without area", "a valid polygon", "remove the feature: it cannot be repaired")
    return parts[0] if len(parts) == 1 else shapely.MultiPolygon(parts)


def _invalid(why: str) -> Malformed:
    return Malformed(
        f"an invalid polygon ({why})",
        "a valid one",
        "read it with fix_invalid, which keeps the parts that have an area",
    )
