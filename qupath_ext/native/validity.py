"""Which outlines are valid; most are seen to be without asking GEOS, which takes ten times as long."""

from __future__ import annotations

from typing import Any

import numpy as np
import shapely

__all__ = ["are_valid", "go_round"]

CHUNK = 1 << 12
ROUNDING = 1e-13
"""Some hundred times the rounding of a float64, which is how far a cross product of differences can be off."""
Flags = np.ndarray[Any, np.dtype[np.bool_]]


def are_valid(geometries: np.ndarray[Any, Any]) -> Flags:
    """Return what :func:`shapely.is_valid` returns, shape (n,).

    A ring that goes once around the mean of its vertices, always in the same direction, cannot meet itself. Cells and
    nuclei nearly all have such a ring; only the others are left to GEOS.
    """
    out = np.zeros(len(geometries), dtype=bool)
    plain = (shapely.get_type_id(geometries) == 3) & (shapely.get_num_interior_rings(geometries) == 0)
    rows = np.flatnonzero(plain & (shapely.get_num_coordinates(geometries) > 3))
    for low in range(0, len(rows), CHUNK):
        part = rows[low : low + CHUNK]
        out[part] = go_round(shapely.get_coordinates(geometries[part]), shapely.get_num_coordinates(geometries[part]))
    rest = np.flatnonzero(~out)
    out[rest] = shapely.is_valid(geometries[rest])
    return out


def go_round(points: np.ndarray[Any, Any], sizes: np.ndarray[Any, Any]) -> Flags:
    """Return which of n closed rings are seen to be valid, shape (n,); False where that is not sure.

    Parameters
    ----------
    points
        float64, shape (sum of sizes, 2): the vertices of all rings, the first of a ring also as its last.
    sizes
        int, shape (n,): the number of vertices of each, more than 3.
    """
    starts = np.cumsum(sizes) - sizes
    out = np.zeros(len(sizes), dtype=bool)
    for size in np.unique(sizes).tolist():
        rows = np.flatnonzero(sizes == size)
        rings = points[starts[rows, None] + np.arange(size)] if len(rows) < len(sizes) else points
        x, y = np.ascontiguousarray(rings.reshape(len(rows), size, 2).T)
        out[rows] = _one_turn(x, y)
    return out


def _one_turn(x: np.ndarray[Any, Any], y: np.ndarray[Any, Any]) -> Flags:
    """Whether n closed rings, shapes (m, n), go round once; False where that is not sure."""
    largest = max(np.abs(x).max(), np.abs(y).max())
    with np.errstate(invalid="ignore", over="ignore"):  # infinite coordinates
        x, y = x - x[:-1].mean(axis=0), y - y[:-1].mean(axis=0)
        cross = x[:-1] * y[1:] - x[1:] * y[:-1]
        radius = max(np.abs(x).max(), np.abs(y).max())
        limit = ROUNDING * (largest + radius) * radius
        one_way = (cross.min(axis=0) > limit) | (cross.max(axis=0) < -limit)
        turns = ((y[:-1] < 0) & (y[1:] >= 0)).sum(axis=0)
    out: Flags = one_way & (turns == 1)
    return out
