"""Between polygons and label masks, both ways.

A mask pixel (row, column) covers the square from (column, row) to (column + 1, row + 1) of mask coordinates, so that
its centre is at + 0.5; a pixel belongs to a polygon if its centre lies inside.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import shapely

from pyhisto.crossings import Crossings
from pyhisto.errors import ConfigError
from pyhisto.polygons import Outline, Rings, ring_polygons, trace_rings
from pyhisto.sides import find_sides

__all__ = [
    "DrawnPolygons",
    "PolygonSettings",
    "clean_polygon",
    "draw_polygons",
    "in_order",
    "label_map_to_polygons",
    "mask_to_polygons",
    "paint",
    "polygon_rings",
    "rasterise",
    "shown_rings",
]

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


@dataclass(frozen=True)
class PolygonSettings:
    """How the regions of a mask become polygons.

    Attributes
    ----------
    origin, scale
        As in :func:`rasterise`: level-0 px of the mask's corner, and level-0 pixels to one mask pixel, (x, y).
    min_area, min_hole_area
        Smaller polygons are dropped, smaller holes filled, with what lies in them; mask pixels squared.
    tolerance
        How far an outline may move when points are left out, mask pixels (Douglas & Peucker 1973, in the form that
        keeps topology); 0 leaves the shape as it is.
    outline
        ``"halfway"``: half-way between pixel centres in and out (marching squares, Lorensen & Cline 1987), which
        takes an eighth of a pixel off every corner. ``"pixels"``: along the edges of the pixels, so that areas are
        numbers of pixels; with a tolerance only up to that.
    """

    origin: tuple[float, float] = (0.0, 0.0)
    scale: tuple[float, float] = (1.0, 1.0)
    min_area: float = 0.0
    min_hole_area: float = 0.0
    tolerance: float = 0.0
    outline: Outline = "halfway"

    def __post_init__(self) -> None:
        if self.outline not in ("halfway", "pixels"):
            raise ConfigError(f"outline {self.outline!r}", expected="halfway or pixels")


def mask_to_polygons(
    mask: npt.NDArray[np.bool_],
    *,
    origin: tuple[float, float] = (0.0, 0.0),
    scale: tuple[float, float] = (1.0, 1.0),
    min_area: float = 0.0,
    min_hole_area: float = 0.0,
    tolerance: float = 0.0,
    outline: Outline = "halfway",
) -> list[Any]:
    """Turn the 4-connected parts of a mask into valid polygons with holes.

    Parameters
    ----------
    mask
        bool, shape (height, width).
    origin, scale, min_area, min_hole_area, tolerance, outline
        See :class:`PolygonSettings`.

    Returns
    -------
    list of shapely.Polygon
        In level-0 px, largest first; of equal ones the topmost, then the leftmost first.

    Raises
    ------
    ConfigError
        If there is no such outline.

    Examples
    --------
    >>> mask = np.zeros((6, 6), bool)
    >>> mask[1:5, 1:5] = True
    >>> [round(p.area, 2) for p in mask_to_polygons(mask)]
    [15.5]
    >>> [round(p.area, 2) for p in mask_to_polygons(mask, outline="pixels")]
    [16.0]
    """
    settings = PolygonSettings(origin, scale, min_area, min_hole_area, tolerance, outline)
    return label_map_to_polygons(np.asarray(mask, dtype=np.bool_), settings)[0]


def label_map_to_polygons(
    labels: npt.NDArray[np.integer[Any] | np.bool_], settings: PolygonSettings | None = None, *, join: bool = False
) -> tuple[list[Any], npt.NDArray[np.int64]]:
    """Turn the 4-connected parts of every label of a label map into valid polygons with holes, all at once.

    Each label is taken by itself: holes are filled whatever lies in them, and simplified neighbours may overlap or
    part by up to the tolerance.

    Parameters
    ----------
    labels
        int, shape (height, width); 0 is background.
    settings
        Half-way outlines of everything by default.
    join
        Give one geometry for each label: a MultiPolygon where it has several parts.

    Returns
    -------
    polygons : list of shapely.Polygon or shapely.MultiPolygon
        In level-0 px, by label, and of one label as :func:`mask_to_polygons` orders them.
    label : numpy.ndarray
        int64, the label of each.

    Raises
    ------
    ValueError
        If a label is negative.

    Examples
    --------
    >>> polygons, label = label_map_to_polygons(np.array([[7, 7, 0, 3]]), PolygonSettings(outline="pixels"))
    >>> label.tolist(), [polygon.area for polygon in polygons]
    ([3, 7], [1.0, 2.0])
    """
    settings = settings or PolygonSettings()
    rings = trace_rings(find_sides(labels), settings.outline)
    found = in_order(draw_polygons(rings, *shown_rings(rings, settings), settings), settings)
    polygons, label = found.polygons, found.label
    if join:
        label, first, count = np.unique(label, return_index=True, return_counts=True)
        joined = polygons[first]
        for at in np.flatnonzero(count > 1).tolist():
            joined[at] = shapely.multipolygons(polygons[first[at] : first[at] + count[at]])
        polygons = joined
    return list(polygons), label


class DrawnPolygons(NamedTuple):
    """Polygons (n,), the label of each, and the mean of a map over each."""

    polygons: npt.NDArray[Any]
    label: npt.NDArray[np.int64]
    mean: npt.NDArray[np.float64]


def draw_polygons(
    rings: Rings,
    shown: npt.NDArray[np.bool_],
    outer: npt.NDArray[np.int64],
    settings: PolygonSettings,
    crossings: Crossings | None = None,
) -> DrawnPolygons:
    """Return polygons, mask pixels, of some rings: holes, and the `outer` ring of each; bool and int64 (k,)."""
    kept = np.flatnonzero(shown)
    polygons, shell = ring_polygons(rings, outer, kept, settings.outline, crossings, settings.tolerance)
    total, count = (np.bincount(outer[kept], of[kept], len(rings))[shell] for of in (rings.integrals(), rings.areas()))
    label, mean = rings.labels[shell], total / count
    if settings.tolerance > 0:
        sound = shapely.is_valid(polygons) & (shapely.area(polygons) > 0)
        repaired = [clean_polygon(polygon) for polygon in polygons[~sound]]
        more = np.array([part for parts in repaired for part in parts], dtype=object)
        parts = [len(parts) for parts in repaired]
        label, mean = (np.concatenate([of[sound], np.repeat(of[~sound], parts)]) for of in (label, mean))
        polygons = np.concatenate([polygons[sound], more])
    large = shapely.area(polygons) >= settings.min_area
    return DrawnPolygons(polygons[large], label[large], mean[large])


def shown_rings(rings: Rings, settings: PolygonSettings) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.int64]]:
    """Return which rings are neither holes that are filled nor in such holes, and the outer ring of each."""
    area = np.abs(rings.areas()) - (0.5 if settings.outline == "halfway" else 0.0)
    shown = ~(rings.hole & (area < settings.min_hole_area))
    outer, container = rings.nesting(containers=not shown.all())
    inside = np.flatnonzero(container >= 0)
    while True:
        hidden = shown[inside] & ~(shown[container[inside]] & shown[outer[container[inside]]])
        if not hidden.any():
            return shown & shown[outer], outer
        shown[inside[hidden]] = False


def in_order(found: DrawnPolygons, settings: PolygonSettings) -> DrawnPolygons:
    """Return the polygons by label, largest first, in level-0 px."""
    x0, y0 = shapely.bounds(found.polygons).reshape(-1, 4).T[:2]
    order = np.lexsort((x0, y0, -shapely.area(found.polygons), found.label))
    scale, origin = np.asarray(settings.scale), settings.origin
    placed = shapely.transform(found.polygons[order], lambda xy: xy * scale + origin)
    return DrawnPolygons(placed, found.label[order], found.mean[order])


def clean_polygon(geometry: Any) -> list[Any]:
    """Return the valid, non-empty polygons of a geometry (repaired where it crosses itself).

    >>> [p.area for p in clean_polygon(shapely.from_wkt("POLYGON ((0 0, 2 2, 2 0, 0 2, 0 0))"))]
    [1.0, 1.0]
    """
    valid = geometry if geometry.is_valid else shapely.make_valid(geometry)
    parts = shapely.get_parts(shapely.get_parts(valid))
    return [part for part in parts if shapely.get_type_id(part) == 3 and part.area > 0]
