"""Between polygons and label masks, both ways.

A mask pixel (row, column) covers the square from (column, row) to (column + 1, row + 1) of mask coordinates, so that
its centre is at + 0.5; a pixel belongs to a polygon if its centre lies inside.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
import shapely
import skimage.measure

__all__ = ["clean_polygon", "mask_to_polygons", "rasterise"]


def rasterise(
    geometries: Iterable[Any],
    values: Iterable[int],
    shape: tuple[int, int],
    *,
    origin: tuple[float, float] = (0.0, 0.0),
    scale: tuple[float, float] = (1.0, 1.0),
    background: int = 0,
) -> npt.NDArray[np.int32]:
    """Draw polygons into a label mask; the later one wins where they overlap, holes stay open.

    Parameters
    ----------
    geometries
        Polygons or MultiPolygons, level-0 px.
    values
        The label of each.
    shape
        (height, width) of the mask.
    origin
        Level-0 px of the mask's top left corner, (x, y).
    scale
        Level-0 pixels to one mask pixel, (x, y).
    background
        The label where nothing is drawn.

    Returns
    -------
    numpy.ndarray
        int32, shape (height, width).

    Examples
    --------
    >>> rasterise([shapely.box(1, 0, 3, 1)], [7], (2, 4)).tolist()
    [[0, 7, 7, 0], [0, 0, 0, 0]]
    """
    mask = np.full(shape, background, dtype=np.int32)
    window = shapely.box(
        origin[0] - scale[0], origin[1] - scale[1], origin[0] + (shape[1] + 1) * scale[0],
        origin[1] + (shape[0] + 1) * scale[1],
    )  # fmt: skip
    for geometry, value in zip(geometries, values, strict=True):
        if not geometry.intersects(window):
            continue
        if shapely.get_dimensions(geometry) == 2:
            mask[_inside(geometry, shape, origin, scale)] = value
    return mask


def _inside(
    geometry: Any, shape: tuple[int, int], origin: tuple[float, float], scale: tuple[float, float]
) -> npt.NDArray[np.bool_]:
    """Return the pixels whose centre lies inside, by parity along each row (even-odd scanline filling).

    The cost grows with the number of edges plus the number of pixels, not with their product.
    """
    height, width = shape
    rings = shapely.get_rings(shapely.get_parts(geometry))
    xy, ring = shapely.get_coordinates(rings, return_index=True)
    xy = (xy - origin) / scale - 0.5  # pixel centres at whole numbers
    same = ring[1:] == ring[:-1]
    x0, y0 = xy[:-1][same].T
    x1, y1 = xy[1:][same].T
    first = np.ceil(np.minimum(y0, y1)).clip(0, height).astype(np.intp)  # rows with min(y) <= row < max(y)
    after = np.ceil(np.maximum(y0, y1)).clip(0, height).astype(np.intp)
    count = after - first
    edge = np.repeat(np.arange(len(count)), count)
    row = np.arange(len(edge)) - np.repeat(np.cumsum(count) - count, count) + first[edge]
    x = x0[edge] + (row - y0[edge]) * (x1[edge] - x0[edge]) / (y1[edge] - y0[edge])
    column = np.ceil(x).clip(0, width).astype(np.intp)
    crossings = np.bincount(row * (width + 1) + column, minlength=height * (width + 1))
    parity = np.cumsum(crossings.reshape(height, width + 1)[:, :width], axis=1)
    return np.asarray(parity % 2 == 1)


def mask_to_polygons(
    mask: npt.NDArray[np.bool_],
    *,
    origin: tuple[float, float] = (0.0, 0.0),
    scale: tuple[float, float] = (1.0, 1.0),
    min_area: float = 0.0,
    min_hole_area: float = 0.0,
    tolerance: float = 0.0,
) -> list[Any]:
    """Turn the connected parts of a mask into valid polygons with holes.

    Outlines run half-way between pixel centres in and out (marching squares, Lorensen & Cline 1987).

    Parameters
    ----------
    mask
        bool, shape (height, width).
    origin, scale
        As in :func:`rasterise`: level-0 px of the corner, and level-0 pixels to one mask pixel.
    min_area, min_hole_area
        Smaller polygons are dropped, smaller holes filled; mask pixels squared.
    tolerance
        Douglas-Peucker simplification in mask pixels; topology is kept.

    Returns
    -------
    list of shapely.Polygon
        In level-0 px, largest first.

    Examples
    --------
    >>> mask = np.zeros((6, 6), bool)
    >>> mask[1:5, 1:5] = True
    >>> [round(p.area, 2) for p in mask_to_polygons(mask)]
    [15.5]
    """
    padded = np.pad(mask.astype(np.float32), 1)
    rings = [ring[:, ::-1] - 0.5 for ring in skimage.measure.find_contours(padded, 0.5, fully_connected="low")]
    if not rings:
        return []
    area = shapely.build_area(shapely.geometrycollections([shapely.linearrings(ring) for ring in rings]))
    polygons = []
    # A filled hole swallows the islands in it.
    filled = shapely.union_all([_without_small_holes(part, min_hole_area) for part in shapely.get_parts(area)])
    for part in shapely.get_parts(filled):
        for polygon in clean_polygon(part.simplify(tolerance) if tolerance > 0 else part):
            if polygon.area >= min_area:
                polygons.append(polygon)
    polygons.sort(key=lambda polygon: -polygon.area)
    return [shapely.transform(polygon, lambda xy: xy * np.asarray(scale) + np.asarray(origin)) for polygon in polygons]


def clean_polygon(geometry: Any) -> list[Any]:
    """Return the valid, non-empty polygons of a geometry (repaired where it crosses itself).

    >>> [p.area for p in clean_polygon(shapely.from_wkt("POLYGON ((0 0, 2 2, 2 0, 0 2, 0 0))"))]
    [1.0, 1.0]
    """
    valid = geometry if geometry.is_valid else shapely.make_valid(geometry)
    parts = shapely.get_parts(shapely.get_parts(valid))
    return [part for part in parts if shapely.get_type_id(part) == 3 and part.area > 0]


def _without_small_holes(polygon: Any, min_hole_area: float) -> Any:
    holes = [ring for ring in polygon.interiors if shapely.Polygon(ring).area >= max(min_hole_area, 1e-9)]
    return shapely.Polygon(polygon.exterior, holes)
