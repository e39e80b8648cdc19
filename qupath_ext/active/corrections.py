"""What a person did to the predictions inside a region: points matched one to one, areas by where they changed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import geopandas as gpd
import numpy as np
import numpy.typing as npt
import pandas as pd
import shapely

from pyhisto.metrics import match_points

__all__ = ["KINDS", "Points", "area_corrections", "point_corrections", "points_inside"]

KINDS = ("confirmed", "moved", "reclassified", "deleted", "added")
"""What a person can have done to an object inside a region that is done; ``moved`` is also said of changed outlines."""

SAME_UM = 0.1
"""A point that is not farther from where it was written was not moved: QuPath stores float32."""

LEAST_UM2 = 10.0
"""Less of an area than this is no change: borders are rounded when they are stored."""

Floats = npt.NDArray[np.float64]
COLUMNS = ("geometry", "kind", "before", "now")


@dataclass(frozen=True, eq=False)
class Points:
    """Cells: where they are, px float64 (n, 2), and their classes, object (n,)."""

    xy: Floats
    name: npt.NDArray[np.object_]


def points_inside(annotations: gpd.GeoDataFrame, region: Any, classes: tuple[str, ...]) -> Points:
    """Return the cells that annotations mark inside a region: each point, and the middle of each outline."""
    own = annotations[annotations["classification"].isin(classes)]
    shapes = own.geometry.to_numpy()
    single = np.where(shapely.get_dimensions(shapes) == 0, shapes, shapely.centroid(shapes))
    parts, owner = shapely.get_parts(single, return_index=True)
    inside = shapely.intersects(region, parts)
    names = own["classification"].to_numpy(dtype=object)[owner[inside]]
    return Points(shapely.get_coordinates(parts[inside]).reshape(-1, 2), names)


def point_corrections(before: Points, now: Points, mpp: Floats, radius_um: float) -> gpd.GeoDataFrame:
    """Say what became of each point.

    Points that stayed are paired first, of one class before others; the rest one to one within a radius, as many as
    possible with the least distance (:func:`pyhisto.metrics.match_points`), again of one class before others.

    Parameters
    ----------
    before, now
        What was written, and what is there.
    mpp
        µm of a pixel, float64 (2,).
    radius_um
        Farthest that a point may have been moved.

    Returns
    -------
    geopandas.GeoDataFrame
        A row for each point: where it is, or was if it is deleted; ``kind``, ``before`` and ``now``.
    """
    pairs = _pairs(before, now, mpp, radius_um)
    a, b = pairs[:, 0], pairs[:, 1]
    same = before.name[a] == now.name[b]
    stayed = np.hypot(*((before.xy[a] - now.xy[b]) * mpp).T) <= SAME_UM
    gone = np.setdiff1d(np.arange(len(before.xy)), a)
    new = np.setdiff1d(np.arange(len(now.xy)), b)
    kinds = np.where(~same, "reclassified", np.where(stayed, "confirmed", "moved")).tolist()
    columns = {
        "kind": [*kinds, *["deleted"] * len(gone), *["added"] * len(new)],
        "before": [*before.name[a], *before.name[gone], *[None] * len(new)],
        "now": [*now.name[b], *[None] * len(gone), *now.name[new]],
    }
    shapes = shapely.points(np.concatenate([now.xy[b], before.xy[gone], now.xy[new]]))
    return gpd.GeoDataFrame(pd.DataFrame(columns, dtype=object), geometry=shapes)


def _pairs(before: Points, now: Points, mpp: Floats, radius_um: float) -> npt.NDArray[np.int64]:
    """Return which point before is which point now, int64 (pairs, 2)."""
    left, right = np.arange(len(before.xy)), np.arange(len(now.xy))
    found = [np.empty((0, 2), dtype=np.int64)]
    for radius in (SAME_UM, radius_um):
        for names in (*({name} for name in dict.fromkeys(before.name)), set(before.name) | set(now.name)):
            rows = left[[name in names for name in before.name[left]]]
            columns = right[[name in names for name in now.name[right]]]
            pairs = match_points(before.xy[rows] * mpp, now.xy[columns] * mpp, radius)
            found.append(np.column_stack([rows[pairs[:, 0]], columns[pairs[:, 1]]]))
            left, right = np.setdiff1d(left, found[-1][:, 0]), np.setdiff1d(right, found[-1][:, 1])
    return np.concatenate(found)


def area_corrections(
    written: gpd.GeoDataFrame, now: gpd.GeoDataFrame, region: Any, classes: tuple[str, ...], mpp: Floats
) -> gpd.GeoDataFrame:
    """Say what became of each outline inside a region, and where that changed the class of the tissue.

    Parameters
    ----------
    written
        Annotations that were written, as a path-object table.
    now
        Annotations that are there: what is left of them, and what a person added.
    region
        Polygon; nothing counts outside.
    classes
        That are learnt.
    mpp
        µm of a pixel, float64 (2,).

    Returns
    -------
    geopandas.GeoDataFrame
        A row for each outline: of a confirmed one its area, else the part that changed class (of all classes, the
        symmetric difference of before and now); ``kind``, ``before`` and ``now``. An outline that is gone, changed or
        new without any change of class, as one of two halves is, is confirmed, or left out if it is new.
    """
    changed = shapely.union_all(
        [shapely.symmetric_difference(_area(written, name, region), _area(now, name, region)) for name in classes]
    )
    least = LEAST_UM2 / float(np.prod(mpp))
    rows: list[tuple[Any, str, str | None, str | None]] = []
    for id_ in dict.fromkeys([*written.index, *now.index]):
        old, new = _shape(written, id_, region), _shape(now, id_, region)
        before, after = _class(written, id_, classes), _class(now, id_, classes)
        if before is None and (after is None or new.is_empty):
            continue
        other = before != after
        part = shapely.intersection(old.union(new) if other else old.symmetric_difference(new), changed)
        if part.area >= least:
            gone = id_ not in now.index
            kind = "added" if before is None else "deleted" if gone else "reclassified" if other else "moved"
            rows.append((part, kind, before, after))
        elif before is not None:
            rows.append((old, "confirmed", before, after))
    table = pd.DataFrame(rows, columns=list(COLUMNS), dtype=object)
    return gpd.GeoDataFrame(table, geometry=gpd.GeoSeries(table["geometry"]))


def _area(annotations: gpd.GeoDataFrame, name: str, region: Any) -> Any:
    """Return where annotations of a class lie inside a region."""
    own = annotations[annotations["classification"] == name].geometry.to_numpy()
    flat = own[shapely.get_dimensions(own) == 2]
    return shapely.intersection(shapely.union_all(shapely.make_valid(flat)), region)


def _shape(annotations: gpd.GeoDataFrame, id_: str, region: Any) -> Any:
    """Return the part of an annotation inside a region; empty if there is no such annotation."""
    if id_ not in annotations.index:
        return shapely.Polygon()
    return shapely.intersection(shapely.make_valid(annotations.geometry.at[id_]), region)


def _class(annotations: gpd.GeoDataFrame, id_: str, classes: tuple[str, ...]) -> str | None:
    """Return which of the classes an annotation is of; None if of none, or if it is not there."""
    if id_ not in annotations.index:
        return None
    name = annotations.at[id_, "classification"]
    return str(name) if name in classes else None
