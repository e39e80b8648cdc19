"""Ellipses: QuPath has them, GeoJSON and shapely do not; here they are polygons of 100 vertices."""

from __future__ import annotations

from typing import Any

import numpy as np
import shapely

from qupath_ext.native.roi import ELLIPSE_POINTS, ellipse

__all__ = ["are_ellipses"]


def are_ellipses(geometries: np.ndarray[Any, np.dtype[np.object_]]) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Return which geometries are what :func:`qupath_ext.native.roi.ellipse` makes, shape (n,).

    >>> are_ellipses(np.array([ellipse(0, 0, 4, 3), shapely.Point(2, 2).buffer(2, 25)])).tolist()
    [True, False]
    """
    out = (shapely.get_type_id(geometries) == 3) & (shapely.get_num_coordinates(geometries) == ELLIPSE_POINTS + 1)
    for at in np.flatnonzero(out).tolist():
        shape: Any = geometries[at]
        whole = shapely.get_coordinates(ellipse(*shape.bounds))
        out[at] = np.allclose(shapely.get_coordinates(shape), whole, rtol=1e-9, atol=1e-6)
    return np.asarray(out)
