"""Is an object still what was written, or did a person change it? A save by QuPath in between is no change.

QuPath stores vertices as float32, and from 0.6 on rounds geometries to 0.01 px; rings may start at another vertex, turn
the other way, or gain a vertex on a straight side.
"""

from __future__ import annotations

from typing import Any

import geopandas as gpd
import numpy as np
import pandas as pd
import pyarrow as pa
import shapely

from qupath_ext.present import PresentObjects, ShapeColumn, as_present
from qupath_ext.runs.wkb import same_simple_polygons

__all__ = ["CHANGES", "SAME_PX", "compare", "same_geometry", "values_or_none"]

SAME_PX = 0.05
"""Distance in px that an outline may move when QuPath rounds and stores it again."""

CHANGES = ("reshaped", "reclassified", "renamed", "relocked", "reparented", "converted")
"""What can have been done to an object that is still there: its geometry (moved or reshaped), class, name, lock,
parent, or object type is not what was written."""

Bools = np.ndarray[Any, np.dtype[np.bool_]]
Ints = np.ndarray[Any, np.dtype[np.intp]]
Objects = np.ndarray[Any, np.dtype[np.object_]]


def compare(written: pd.DataFrame, present: gpd.GeoDataFrame | PresentObjects, at: Ints | None = None) -> pd.DataFrame:
    """Say for each written object what has become of it.

    Parameters
    ----------
    written
        What was written to an image: a path-object table, at least with the columns ``object_type``, ``geometry``,
        ``nucleus``, ``classification``, ``name``, ``locked`` and ``parent_id``.
    present
        What the image holds now; same frame.
    at
        Number of the row of each written object in `present`, -1 where it is gone; looked up by default.

    Returns
    -------
    pandas.DataFrame
        Indexed like `written`, with a bool column ``deleted`` and one for each of :data:`CHANGES`. An object whose
        parent was deleted has another parent of necessity; that is not counted as a change of this object.
    """
    present = as_present(present)
    table = present.table
    out = pd.DataFrame(False, index=written.index, columns=["deleted", *CHANGES])
    at = table.index.get_indexer(written.index) if at is None else at
    there = at >= 0
    out["deleted"] = ~there
    old, rows = (written, at) if there.all() else (written[there], at[there])
    if len(old) == 0:
        return out
    same = _same(old["geometry"], present, "geometry", rows) & _same(old["nucleus"], present, "nucleus", rows)
    out.loc[there, "reshaped"] = ~same
    for column, change in (("classification", "reclassified"), ("name", "renamed"), ("object_type", "converted")):
        out.loc[there, change] = values_or_none(old[column]) != values_or_none(table[column].iloc[rows])
    out.loc[there, "relocked"] = old["locked"].to_numpy(dtype=bool) != table["locked"].to_numpy(dtype=bool)[rows]
    parent = values_or_none(old["parent_id"])
    moved = parent != values_or_none(table["parent_id"].iloc[rows])
    for row in np.flatnonzero(moved).tolist():
        moved[row] = parent[row] is None or parent[row] in table.index
    out.loc[there, "reparented"] = moved
    return out


def values_or_none(column: pd.Series[Any]) -> Objects:
    """Return a column with None where a value is missing, object (n,)."""
    if isinstance(column.dtype, pd.CategoricalDtype):
        names = np.array([*column.cat.categories, None], dtype=object)
        coded: Objects = names[column.cat.codes.to_numpy()]
        return coded
    out: Objects = column.to_numpy(dtype=object)
    missing = column.isna().to_numpy(dtype=bool)
    if missing.any():
        out = out.copy()
        out[missing] = None
    return out


def _same(written: pd.Series[Any], present: PresentObjects, column: ShapeColumn, rows: Ints) -> Bools:
    """Return whether the geometries of a column, which may be WKB, are those of some rows of what there is."""
    if not isinstance(written.dtype, pd.ArrowDtype):
        return same_geometry(values_or_none(written), present.shapes(column, rows))
    wkb = pa.array(written.array)
    wkb = wkb.combine_chunks() if isinstance(wkb, pa.ChunkedArray) else wkb
    null = wkb.is_null().to_numpy(zero_copy_only=False)
    same: Bools = null & ~present.has_shape(column, rows)
    if null.all():
        return same
    same |= same_simple_polygons(wkb, present.rings(column, rows), SAME_PX)
    rest = np.flatnonzero(~same & ~null)
    if len(rest):
        shapes = shapely.from_wkb(wkb.take(pa.array(rest)).to_numpy(zero_copy_only=False))
        same[rest] = same_geometry(shapes, present.shapes(column, rows[rest]))
    return same


def same_geometry(a: Objects, b: Objects, tolerance: float = SAME_PX) -> Bools:
    """Return whether geometries are the same but for what storing them does; shape (n,).

    Parameters
    ----------
    a, b
        n geometries each, None where there is none; px.
    tolerance
        Largest distance between their outlines, px.
    """
    same: Bools = shapely.is_missing(a) & shapely.is_missing(b)
    open_: Bools = ~(shapely.is_missing(a) | shapely.is_missing(b))
    rows = np.flatnonzero(open_)
    rows = _settle(same, rows, _vertex_by_vertex(a[rows], b[rows], tolerance))
    normal = shapely.equals_exact(a[rows], b[rows], tolerance=tolerance, normalize=True)
    rows = _settle(same, rows, normal)
    far = np.maximum(shapely.hausdorff_distance(a[rows], b[rows]), shapely.hausdorff_distance(b[rows], a[rows]))
    _settle(same, rows, far <= tolerance)
    return same


def _settle(same: Bools, rows: Any, found: Bools) -> Any:
    """Note those rows that were found to be the same, and return the others."""
    same[rows[found]] = True
    return rows[~found]


def _vertex_by_vertex(a: Objects, b: Objects, tolerance: float) -> Bools:
    """Return whether geometries have the same vertices in the same order; the quick way out for most."""
    count = shapely.get_num_coordinates(a)
    alike: Bools = (count == shapely.get_num_coordinates(b)) & (shapely.get_type_id(a) == shapely.get_type_id(b))
    alike &= shapely.get_num_interior_rings(a) == shapely.get_num_interior_rings(b)
    alike &= shapely.get_num_geometries(a) == shapely.get_num_geometries(b)
    rows = np.flatnonzero(alike & (count > 0))
    if len(rows) == 0:
        return alike
    apart = shapely.get_coordinates(a[rows])
    apart -= shapely.get_coordinates(b[rows])
    np.abs(apart, out=apart)
    starts = np.concatenate([[0], np.cumsum(count[rows])[:-1]])
    alike[rows] = (np.maximum.reduceat(apart, starts, axis=0) <= tolerance).all(axis=1)
    return alike
