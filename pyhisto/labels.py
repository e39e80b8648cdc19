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
import skimage.draw
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
        for polygon in shapely.get_parts(geometry):
            if shapely.get_type_id(polygon) == 3:
                mask[_inside(polygon, shape, origin, scale)] = value
    return mask


def _inside(
    polygon: Any, shape: tuple[int, int], origin: tuple[float, float], scale: tuple[float, float]
) -> npt.NDArray[np.bool_]:
    inside = np.zeros(shape, dtype=bool)
    for number, ring in enumerate((polygon.exterior, *polygon.interiors)):
        xy = (shapely.get_coordinates(ring) - origin) / scale - 0.5
        rows, columns = skimage.draw.polygon(xy[:, 1], xy[:, 0], shape)
        inside[rows, columns] = number == 0
    return inside


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
