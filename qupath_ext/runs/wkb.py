"""Polygons in WKB compared with geometries without making geometries of them: the quick way for millions of cells."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import shapely

from qupath_ext.native.scanner import gather_bytes

__all__ = ["same_simple_polygons"]

HEADER = np.dtype([("order", "u1"), ("type", "<u4"), ("rings", "<u4"), ("points", "<u4")])
"""How the WKB of a polygon begins (OGC 06-103r4, section 8.2.3)."""
LITTLE_ENDIAN, POLYGON = 1, 3

Objects = np.ndarray[Any, np.dtype[np.object_]]
Bools = np.ndarray[Any, np.dtype[np.bool_]]


def same_simple_polygons(wkb: pa.BinaryArray, geometries: Objects, tolerance: float) -> Bools:
    """Return which geometries are polygons of one ring with the same vertices in the same order as their WKB.

    Parameters
    ----------
    wkb
        n geometries as WKB; null where there is none.
    geometries
        n geometries, None where there is none.
    tolerance
        Largest distance between two vertices in x and in y.

    Returns
    -------
    numpy.ndarray
        bool (n,). False for what is anything else than such a polygon: it remains to be compared.
    """
    same: Bools = np.zeros(len(wkb), dtype=bool)
    _, offsets_buffer, data_buffer = wkb.buffers()
    data = np.frombuffer(data_buffer, dtype=np.uint8)
    width = np.int64 if pa.types.is_large_binary(wkb.type) else np.int32
    ends = np.frombuffer(offsets_buffer, dtype=width)[wkb.offset : wkb.offset + len(wkb) + 1].astype(np.int64)
    starts, sizes = ends[:-1], np.diff(ends)
    rows = np.flatnonzero((sizes >= HEADER.itemsize) & wkb.is_valid().to_numpy(zero_copy_only=False))
    header = np.ascontiguousarray(gather_bytes(data, starts[rows], HEADER.itemsize)).view(HEADER).reshape(-1)
    points = header["points"].astype(np.int64)
    simple = (header["order"] == LITTLE_ENDIAN) & (header["type"] == POLYGON) & (header["rings"] == 1)
    simple &= sizes[rows] == HEADER.itemsize + 16 * points
    simple &= _is_simple(geometries[rows]) & (shapely.get_num_coordinates(geometries[rows]) == points)
    rows, points = rows[simple], points[simple]
    for n in np.unique(points).tolist():
        chosen = rows[points == n]
        raw = np.ascontiguousarray(gather_bytes(data, starts[chosen] + HEADER.itemsize, 16 * n))
        apart = raw.view("<f8").reshape(len(chosen), 2 * n)
        apart -= shapely.get_coordinates(geometries[chosen]).reshape(len(chosen), 2 * n)
        same[chosen] = (np.abs(apart, out=apart) <= tolerance).all(axis=1)
    return same


def _is_simple(geometries: Objects) -> Bools:
    """Whether geometries are polygons without holes."""
    simple: Bools = (shapely.get_type_id(geometries) == POLYGON) & (shapely.get_num_interior_rings(geometries) == 0)
    return simple
