"""The field of a slide that is worth a closer look."""

from __future__ import annotations

from typing import Any

import geopandas as gpd
import numpy as np
import numpy.typing as npt
import pandas as pd
import shapely

from pyhisto.errors import ConfigError

__all__ = ["POSITIVE_CLASSES", "densest_field", "nucleus_or_geometry"]

Bounds = tuple[float, float, float, float]

POSITIVE_CLASSES = ("Positive", "1+", "2+", "3+")
"""Last parts of QuPath's intensity classes that count as positive."""


def densest_field(objects: gpd.GeoDataFrame, size_um: float, mpp: float | tuple[float, float]) -> Bounds | None:
    """Return the square field with the most positive and negative cells that holds both.

    Parameters
    ----------
    objects
        Path-object table, level-0 px. Detections and cells count if the last part of their class is ``Positive``,
        ``Negative``, ``1+``, ``2+`` or ``3+``; all of them count if none has such a class.
    size_um
        Side of the field, µm.
    mpp
        Pixel size of level 0, µm: one number or (x, y).

    Returns
    -------
    tuple of float or None
        (x0, y0, x1, y1), level-0 px, x1 - x0 = size_um / mpp. It is found to an eighth of its side, lies within the
        extent of the cells where that is larger, and is centred on them where it is smaller. Where no field holds both
        classes, the one with the most cells. None without cells.

    Raises
    ------
    ConfigError
        If a size is not positive.
    """
    pixel = np.broadcast_to(np.asarray(mpp, dtype=np.float64), (2,))
    if not (size_um > 0 and (pixel > 0).all() and np.isfinite([size_um, *pixel]).all()):
        raise ConfigError(f"field of {size_um} µm at {mpp} µm/px", expected="positive sizes")
    sides = size_um / pixel
    cells = objects[objects["object_type"].isin(["detection", "cell"])]
    points = shapely.get_coordinates(shapely.centroid(nucleus_or_geometry(cells)))
    last = cells["classification"].astype(object).map(lambda name: str(name).rpartition(": ")[2]).to_numpy()
    positive, negative = np.isin(last, POSITIVE_CLASSES), last == "Negative"
    if (positive | negative).any():
        counted = positive | negative
        points, positive = points[counted], positive[counted]
    if len(points) == 0:
        return None
    step = sides / 8
    low, extent = points.min(axis=0), np.ptp(points, axis=0)
    places = np.ceil(np.maximum(extent - sides, 0) / step).astype(int) + 1
    bins = np.floor((points - low) / step).astype(int)
    both = np.array([_window_counts(bins[positive], places), _window_counts(bins[~positive], places)])
    total = both.sum(axis=0) * np.where(both.min(axis=0) > 0, len(points) + 1, 1)
    best = np.array(np.unravel_index(np.argmax(total), total.shape))
    x0, y0 = np.where(extent < sides, low + (extent - sides) / 2, low + np.minimum(best * step, extent - sides))
    return float(x0), float(y0), float(x0 + sides[0]), float(y0 + sides[1])


def _window_counts(bins: npt.NDArray[np.int_], places: npt.NDArray[np.int_]) -> npt.NDArray[np.int_]:
    """Count points in windows of 8 x 8 bins that begin at bin (0..places - 1): int, shape `places`."""
    grid = np.zeros(places + 8, dtype=np.int64)
    np.add.at(grid, tuple(np.minimum(bins, places + 6).T + 1), 1)
    sums = grid.cumsum(axis=0).cumsum(axis=1)
    result: npt.NDArray[np.int_] = sums[8:, 8:] - sums[:-8, 8:] - sums[8:, :-8] + sums[:-8, :-8]
    return result


def nucleus_or_geometry(objects: gpd.GeoDataFrame) -> npt.NDArray[Any]:
    """Return the nuclei, and the geometry of objects that have none."""
    nucleus, geometry = objects["nucleus"].to_numpy(dtype=object), objects["geometry"].to_numpy()
    result: npt.NDArray[Any] = np.where(pd.isna(nucleus), geometry, nucleus)
    return result
