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

__all__ = ["clean_polygon", "mask_to_polygons", "paint", "polygon_rings", "rasterise"]

RUNS_AT_ONCE = 1 << 16
LONG_RUN = 40
"""Pixels from which on it is faster to set a run by itself."""


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
    drawn = np.array(list(geometries), dtype=object)
    labels = np.array(list(values), dtype=np.int32)
    if len(drawn) != len(labels):
        raise ValueError(f"{len(labels)} values for {len(drawn)} geometries")
    x0, y0, x1, y1 = shapely.bounds(drawn).reshape(-1, 4).T
    right, bottom = origin[0] + shape[1] * scale[0], origin[1] + shape[0] * scale[1]
    near = (x0 < right) & (x1 > origin[0]) & (y0 < bottom) & (y1 > origin[1])
    xy, owner = polygon_rings(drawn[near])
    paint(mask, (xy - origin) / scale, owner, labels[near])
    return mask


def polygon_rings(
    geometries: npt.NDArray[np.object_],
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.intp]]:
    """Return the outlines of n polygons as :func:`paint` takes them.

    Parameters
    ----------
    geometries
        shapely Polygons, MultiPolygons or collections (n,); what is no area has no outline.

    Returns
    -------
    xy : numpy.ndarray
        float64 (m, 2): the closed rings, outer ones and holes, a row of NaN behind each.
    owner : numpy.ndarray
        intp (m,): whose vertex it is, ascending.
    """
    parts, part_of = shapely.get_parts(geometries, return_index=True)
    parts, inner = shapely.get_parts(parts, return_index=True)
    rings, ring_of = shapely.get_rings(parts, return_index=True)
    xy, vertex_of = shapely.get_coordinates(rings, return_index=True)
    owner = part_of[inner][ring_of]
    ends = np.cumsum(np.bincount(vertex_of, minlength=len(rings)))
    return np.insert(xy, ends, np.nan, axis=0), np.insert(owner[vertex_of], ends, owner)


def paint(
    mask: npt.NDArray[Any],
    xy: npt.NDArray[np.floating[Any]],
    owner: npt.NDArray[np.intp],
    values: npt.NDArray[Any],
) -> None:
    """Draw any number of polygons into a label mask at once; of those that overlap the later one wins.

    Each is filled by parity along the rows of pixel centres (even-odd scanline filling), so that holes stay open. The
    cost grows with the number of edges plus the number of pixels that are filled, not with their product.

    Parameters
    ----------
    mask
        (height, width), contiguous; drawn into.
    xy, owner
        As :func:`polygon_rings` returns them, but in mask pixels.
    values
        The label of each polygon (n,).
    """
    height, width = mask.shape
    y = xy[:, 1] - 0.5  # pixel centres at whole numbers
    low, high = np.minimum(y[:-1], y[1:]), np.maximum(y[:-1], y[1:])
    met = np.flatnonzero((high > 0) & (low <= height - 1))  # NaN meets nothing
    first = np.ceil(low[met]).clip(0, height).astype(np.intp)  # rows with low <= row < high
    count = np.ceil(high[met]).clip(0, height).astype(np.intp) - first
    edge = np.repeat(met, count)
    row = np.arange(len(edge)) - np.repeat(np.cumsum(count) - count - first, count)
    x0, x1, y0, y1 = xy[edge, 0], xy[edge + 1, 0], y[edge], y[edge + 1]
    column = np.ceil(x0 + (row - y0) * (x1 - x0) / (y1 - y0) - 0.5).clip(0, width).astype(np.intp)
    crossing = np.sort((owner[edge] * height + row) * (width + 1) + column).reshape(-1, 2)  # each row enters and leaves
    place, enter = np.divmod(crossing[:, 0], width + 1)
    length = crossing[:, 1] - crossing[:, 0]
    filled = length > 0
    polygon, row = np.divmod(place[filled], height)
    start, length, value = row * width + enter[filled], length[filled], values[polygon]
    for first_run in range(0, len(start), RUNS_AT_ONCE):
        runs = slice(first_run, first_run + RUNS_AT_ONCE)
        _fill(mask.reshape(-1), start[runs], length[runs], value[runs])


def _fill(
    flat: npt.NDArray[Any], start: npt.NDArray[np.intp], length: npt.NDArray[np.intp], value: npt.NDArray[Any]
) -> None:
    """Set runs of pixels, the later over the earlier; long runs one by one, short ones all at once."""
    if length.mean() > LONG_RUN:
        for i, j, one in zip(start.tolist(), (start + length).tolist(), value.tolist(), strict=True):
            flat[i:j] = one
    else:
        after = np.cumsum(length)
        flat[np.arange(after[-1]) + np.repeat(start - after + length, length)] = np.repeat(value, length)


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
