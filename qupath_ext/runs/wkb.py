"""Polygons in WKB compared with vertices without making geometries of them: the quick way for millions of cells."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import pyarrow as pa

from qupath_ext.native.gather import gather_bytes

__all__ = ["same_simple_polygons"]

HEADER = np.dtype([("order", "u1"), ("type", "<u4"), ("rings", "<u4"), ("points", "<u4")])
"""How the WKB of a polygon begins (OGC 06-103r4, section 8.2.3)."""
LITTLE_ENDIAN, POLYGON = 1, 3

Ints = np.ndarray[Any, np.dtype[np.intp]]
Floats = np.ndarray[Any, np.dtype[np.float64]]
Bools = np.ndarray[Any, np.dtype[np.bool_]]


def same_simple_polygons(wkb: pa.BinaryArray, rings: Iterable[tuple[Ints, Floats]], tolerance: float) -> Bools:
    """Return which WKB are polygons of one ring with the same vertices in the same order as others.

    Parameters
    ----------
    wkb
        n geometries as WKB; null where there is none.
    rings
        The others: numbers among the n, int (k,), and their vertices, float64 (k, m, 2), the first again at the end.
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
    points = np.full(len(wkb), -1)
    rows = np.flatnonzero((sizes >= HEADER.itemsize) & wkb.is_valid().to_numpy(zero_copy_only=False))
    header = np.ascontiguousarray(gather_bytes(data, starts[rows], HEADER.itemsize)).view(HEADER).reshape(-1)
    simple = (header["order"] == LITTLE_ENDIAN) & (header["type"] == POLYGON) & (header["rings"] == 1)
    simple &= sizes[rows] == HEADER.itemsize + 16 * header["points"].astype(np.int64)
    points[rows[simple]] = header["points"][simple]
    for numbers, vertices in rings:
        n = vertices.shape[1]
        alike = np.flatnonzero(points[numbers] == n)
        chosen = numbers[alike]
        raw = np.ascontiguousarray(gather_bytes(data, starts[chosen] + HEADER.itemsize, 16 * n))
        apart = raw.view("<f8").reshape(len(chosen), 2 * n)
        apart -= (vertices if len(alike) == len(vertices) else vertices[alike]).reshape(len(chosen), 2 * n)
        same[chosen] = (np.abs(apart, out=apart) <= tolerance).all(axis=1)
    return same
