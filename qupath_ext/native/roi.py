"""ROIs: the proxies that QuPath writes <-> shapely geometries, one at a time.

Rectangles, ellipses and lines are stored as doubles, vertices of polygons, polylines and points as float32, everything
with holes or several parts as big-endian WKB. Coordinates are full-resolution pixels, x right, y down.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any

import numpy as np
import shapely
from shapely.geometry.base import BaseGeometry

from qupath_ext.errors import FormatError, ProjectError
from qupath_ext.native.catalog import Factory
from qupath_ext.native.tokens import Content, JArray, JObject
from qupath_ext.native.validity import are_valid

__all__ = [
    "DEFAULT_PLANE",
    "check_finite",
    "check_geometries",
    "ellipse",
    "is_box",
    "is_roi",
    "make_ellipse",
    "make_roi",
    "read_plane",
    "read_roi",
    "read_rois",
    "to_wkb",
    "unwrap",
]

DEFAULT_PLANE = (-1, 0, 0)
ELLIPSE_POINTS = 100
LARGEST = float(np.finfo(np.float32).max)
ROI = "qupath.lib.roi."
PROXY = "$SerializationProxy"
WKB = ROI + "GeometryROI$WKBSerializationProxy"
SIMPLE = ("RectangleROI", "EllipseROI", "LineROI", "PolygonROI", "PolylineROI", "PointsROI", "AreaROI")
KINDS = {WKB, *(ROI + kind + PROXY for kind in SIMPLE)}
Floats = np.ndarray[Any, np.dtype[np.float64]]


# ---------------------------------------------------------------------- tokens -> geometry
def read_plane(roi: JObject) -> tuple[int, int, int]:
    """Return the plane (c, z, t) of a ROI; c is -1 for all channels."""
    c, z, t = (int.from_bytes(_bytes(roi, name), "big", signed=True) for name in "czt")
    return c, z, t


def is_roi(token: JObject) -> bool:
    """Whether a token is a ROI of a kind that is known."""
    return token.desc.name in KINDS


def read_rois(rois: Sequence[JObject | None]) -> np.ndarray[Any, np.dtype[np.object_]]:
    """Return the geometries of n ROI tokens, shape (n,), None where there is none; see :func:`read_roi`."""
    out = np.full(len(rois), None, dtype=object)
    rows = [row for row, roi in enumerate(rois) if roi is not None and roi.desc.name == WKB]
    out[rows] = _wkb([roi for roi in rois if roi is not None and roi.desc.name == WKB])
    for row, roi in enumerate(rois):
        if roi is not None and roi.desc.name != WKB:
            out[row] = read_roi(roi)
    return out


def read_roi(roi: JObject) -> BaseGeometry:
    """Return the geometry of a ROI token.

    Ellipses become polygons of 100 vertices, as in QuPath; rings with fewer than three vertices become polygons of
    no area.

    Raises
    ------
    FormatError
        If the ROI is of a kind that is not known.
    """
    kind = roi.desc.name.removeprefix(ROI).removesuffix(PROXY)
    match kind:
        case "RectangleROI":
            x, y, x2, y2 = _corners(roi)
            return shapely.Polygon([(x, y), (x2, y), (x2, y2), (x, y2)])
        case "EllipseROI":
            return ellipse(*_corners(roi))
        case "LineROI":
            x, y, x2, y2 = _corners(roi)
            return shapely.LineString([(x, y), (x2, y2)])
        case "PolygonROI":
            return _polygon(_vertices(roi))
        case "PolylineROI":
            points = _vertices(roi)
            return shapely.LineString(points if len(points) != 1 else np.repeat(points, 2, axis=0))
        case "PointsROI":
            points = _vertices(roi)
            return shapely.Point(points[0]) if len(points) == 1 else shapely.MultiPoint(points)
        case "AreaROI":
            return _area(roi)
        case "GeometryROI$WKBSerializationProxy":
            geometry: BaseGeometry = _wkb([roi])[0]
            return geometry
    raise FormatError(f"ROI of class {roi.desc.name}", expected="a kind that QuPath 0.2 to 0.8 writes")


def ellipse(x: float, y: float, x2: float, y2: float) -> shapely.Polygon:
    """Return the ellipse in a box as a polygon of 100 vertices, beginning at the right and going down.

    >>> shape = ellipse(0, 0, 10, 4)
    >>> shape.bounds
    (0.0, 0.0, 10.0, 4.0)
    """
    angle = 2 * np.pi / ELLIPSE_POINTS * np.arange(ELLIPSE_POINTS)
    xs = (x + x2) / 2 + abs(x2 - x) / 2 * np.cos(angle)
    ys = (y + y2) / 2 + abs(y2 - y) / 2 * np.sin(angle)
    return shapely.Polygon(np.column_stack([xs, ys]))


def _bytes(roi: JObject, name: str) -> bytes:
    value = roi.get(name)
    if not isinstance(value, bytes):
        raise FormatError(f"field {name} of {roi.desc.name} is no number")
    return value


def _array(roi: JObject, name: str) -> JArray:
    value = roi.get(name)
    if not isinstance(value, JArray):
        raise FormatError(f"field {name} of {roi.desc.name} is no array")
    return value


def check_finite(coordinates: Floats) -> None:
    """Refuse coordinates, of any shape, that are not finite; no geometry can be made of them."""
    if not np.isfinite(coordinates).all():
        raise FormatError("a ROI whose coordinates are not finite numbers", remedy="delete it in QuPath")


def _corners(roi: JObject) -> tuple[float, float, float, float]:
    raw = [_bytes(roi, name) for name in ("x", "y", "x2", "y2")]
    if any(len(value) != 8 for value in raw):
        raise FormatError(f"corners of {roi.desc.name} that are no doubles")
    x, y, x2, y2 = (struct.unpack(">d", value)[0] for value in raw)
    check_finite(np.array([x, y, x2, y2]))
    return x, y, x2, y2


def _vertices(roi: JObject) -> Floats:
    return _columns(_array(roi, "x"), _array(roi, "y"))


def _columns(x_array: JArray, y_array: JArray) -> Floats:
    if x_array.desc.name != "[F" or y_array.desc.name != "[F":
        raise FormatError("vertices of a ROI that are no float arrays")
    x, y = (np.frombuffer(axis.raw, dtype=">f4") for axis in (x_array, y_array))
    if len(x) != len(y):
        raise FormatError(f"{len(x)} x and {len(y)} y values in a ROI", expected="as many")
    with np.errstate(invalid="ignore"):  # signalling NaN
        points = np.column_stack([x, y]).astype(np.float64)
    check_finite(points)
    return points


def _polygon(points: Floats) -> shapely.Polygon:
    if len(points) == 0:
        return shapely.Polygon()
    if len(points) < 3:
        points = np.concatenate([points, np.repeat(points[-1:], 4 - len(points), axis=0)])
    return shapely.Polygon(points)


def _area(roi: JObject) -> BaseGeometry:
    rings = []
    x_arrays, y_arrays = _array(roi, "x").items, _array(roi, "y").items
    if len(x_arrays) != len(y_arrays):
        raise FormatError(f"{len(x_arrays)} x and {len(y_arrays)} y rings in a ROI", expected="as many")
    for x, y in zip(x_arrays, y_arrays, strict=True):
        if not isinstance(x, JArray) or not isinstance(y, JArray):
            raise FormatError(f"ring of {roi.desc.name} is no array")
        rings.append(_polygon(_columns(x, y)))
    out: BaseGeometry = shapely.Polygon()
    try:
        for ring in rings:  # even-odd rule
            out = out.symmetric_difference(ring)
    except shapely.errors.GEOSException as error:
        raise FormatError(f"an area whose rings do not fit together: {error}") from error
    return out


def _wkb(rois: Sequence[JObject]) -> np.ndarray[Any, np.dtype[np.object_]]:
    raw = np.empty(len(rois), dtype=object)
    raw[:] = [_array(roi, "wkb").raw for roi in rois]
    try:
        with np.errstate(invalid="ignore"):  # signalling NaN
            geometries: np.ndarray[Any, np.dtype[np.object_]] = shapely.from_wkb(raw)
    except shapely.errors.GEOSException as error:
        raise FormatError(f"a geometry that is not WKB: {error}") from error
    if shapely.is_missing(geometries).any():
        raise FormatError("a geometry that is not WKB")
    check_finite(shapely.get_coordinates(geometries))
    return geometries


# ---------------------------------------------------------------------- geometry -> tokens
def unwrap(geometries: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Replace geometry collections of one part by that part; shape (n,)."""
    kinds = shapely.get_type_id(geometries)
    single = (kinds >= 5) & (kinds <= 6) & (shapely.get_num_geometries(geometries) == 1)
    if single.any():
        geometries = geometries.copy()
        geometries[single] = shapely.get_geometry(geometries[single], 0)
    return geometries


def check_geometries(geometries: np.ndarray[Any, Any], ids: np.ndarray[Any, Any], *, areas: bool, what: str) -> None:
    """Refuse geometries that QuPath would refuse or lose.

    Parameters
    ----------
    geometries
        n geometries; None is not allowed.
    ids
        n object ids, for the message.
    areas
        Whether only polygons and multipolygons are allowed.
    what
        What they are, for the message.

    Raises
    ------
    ProjectError
        Names the first object whose geometry is missing, empty, of a wrong kind, not finite or invalid.
    """

    def refuse(bad: Any, found: str, expected: str, remedy: str = "") -> None:
        if bad.any():
            at = int(np.flatnonzero(bad)[0])
            raise ProjectError(f"{what} of object {ids[at]} is {found}", expected=expected, remedy=remedy)

    refuse(shapely.is_missing(geometries) | shapely.is_empty(geometries), "missing or empty", "a geometry")
    kinds = shapely.get_type_id(geometries)
    allowed = np.isin(kinds, (3, 6)) if areas else np.isin(kinds, (0, 1, 3, 4, 5, 6))
    if not allowed.all():
        found = geometries[np.flatnonzero(~allowed)[0]].geom_type
        split = "split it into objects of one kind each, for example with GeoDataFrame.explode"
        remedy = split if found == "GeometryCollection" else ""
        refuse(~allowed, f"a {found}", "a polygon" if areas else "points, lines or polygons", remedy)
    refuse(~(np.abs(shapely.bounds(geometries)) <= LARGEST).all(axis=1), "not finite", "finite coordinates")
    valid = are_valid(geometries)
    if not valid.all():
        reason = shapely.is_valid_reason(geometries[np.flatnonzero(~valid)[0]])
        refuse(~valid, f"invalid ({reason})", "a valid geometry", "repair it, for example with shapely.make_valid")


def is_box(points: Floats) -> bool:
    """Whether a closed ring, shape (m, 2), is an axis-aligned rectangle."""
    if len(points) != 5:
        return False
    (x0, y0), (x1, y1), (x2, y2), (x3, y3) = points[:4].tolist()
    upright: bool = x0 == x1 and y1 == y2 and x2 == x3 and y3 == y0
    level: bool = y0 == y1 and x1 == x2 and y2 == y3 and x3 == x0
    return upright or level


MAX_POLYGON_VERTICES = 100
"""Longer outlines become GeometryROIs. QuPath 0.6 turns a PolygonROI into a geometry by way of ``java.awt.geom.Area``,
which loses parts of some long, valid outlines (seen from 289 vertices on); a GeometryROI keeps its own geometry."""


def make_roi(geometry: BaseGeometry, plane: tuple[int, int, int], factory: Factory) -> JObject:
    """Return the ROI token of a checked geometry: the simplest kind of ROI that holds it.

    Raises
    ------
    ProjectError
        If there is no ROI for this kind of geometry.
    """
    c, z, t = (struct.pack(">i", value) for value in plane)
    points = shapely.get_coordinates(geometry)
    match geometry.geom_type:
        case "Polygon" if _fits_polygon_roi(geometry, len(points)):
            if is_box(points):
                low, high = points.min(axis=0), points.max(axis=0)
                return _corner_roi("RectangleROI", (*low, *high), (c, z, t), factory)
            values: list[bytes | Content] = [c, t, z, None, None, *_axes(points[:-1], factory)]
            return factory.obj(ROI + "PolygonROI" + PROXY, values)
        case "LineString":
            if len(points) == 2:
                return _corner_roi("LineROI", (*points[0], *points[1]), (c, z, t), factory)
            return factory.obj(ROI + "PolylineROI" + PROXY, [c, t, z, *_axes(points, factory)])
        case "Point" | "MultiPoint":
            return factory.obj(ROI + "PointsROI" + PROXY, [c, t, z, None, *_axes(points, factory)])
        case "Polygon" | "MultiPolygon" | "MultiLineString":
            wkb: bytes = to_wkb(geometry)
            array = JArray(factory.desc("[B"), len(wkb), wkb)
            return factory.obj(WKB, [c, t, z, None, array])
    raise ProjectError(f"geometry of kind {geometry.geom_type}", expected="points, lines or polygons")


def to_wkb(geometries: Any) -> Any:
    """Return a geometry, or an array of them, as the big-endian WKB that QuPath writes."""
    return shapely.to_wkb(geometries, byte_order=0, output_dimension=2, include_srid=False)


def make_ellipse(geometry: BaseGeometry, plane: tuple[int, int, int], factory: Factory) -> JObject:
    """Return the token of the ellipse that fills the bounds of a geometry, which is the ROI of a TMA core."""
    c, z, t = (struct.pack(">i", value) for value in plane)
    x, y, x2, y2 = geometry.bounds
    return _corner_roi("EllipseROI", (x, y, x2, y2), (c, z, t), factory)


def _fits_polygon_roi(polygon: BaseGeometry, n_points: int) -> bool:
    return bool(shapely.get_num_interior_rings(polygon) == 0) and n_points - 1 <= MAX_POLYGON_VERTICES


def _corner_roi(
    kind: str, corners: tuple[float, float, float, float], plane: tuple[bytes, bytes, bytes], factory: Factory
) -> JObject:
    x, y, x2, y2 = (struct.pack(">d", value) for value in corners)
    c, z, t = plane
    return factory.obj(ROI + kind + PROXY, [c, t, x, x2, y, y2, z, None])


def _axes(points: Floats, factory: Factory) -> tuple[JArray, JArray]:
    x, y = (factory.floats(points[:, axis].astype(">f4").tobytes()) for axis in (0, 1))
    return x, y
