"""Random fields and how they are carried from one grid to another.

All fields are float32 arrays (rows, columns). Sample (i, j) of a grid with step g lies at x = (j + 0.5) g,
y = (i + 0.5) g, in µm; pixel centres follow the same rule.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage as ndi

__all__ = ["Array", "Float32", "at_points", "resample", "sigmoid", "signed_distance", "smooth_noise"]

Float32 = NDArray[np.float32]
Array = NDArray[Any]


def smooth_noise(
    rng: np.random.Generator, shape: tuple[int, int], sigma: float | tuple[float, float], *, periodic: bool = False
) -> Float32:
    """Return Gaussian noise smoothed with `sigma` samples, mean 0 and standard deviation 1.

    Parameters
    ----------
    rng
        Source of the noise.
    shape
        Rows, columns.
    sigma
        Standard deviation of the filter in samples, for both axes or one for each.
    periodic
        Make the field a tile whose opposite edges fit.

    Returns
    -------
    float32 array of `shape`
    """
    white = rng.standard_normal(shape, dtype=np.float32)
    field = ndi.gaussian_filter(white, sigma, mode="wrap" if periodic else "reflect", truncate=3.0)
    field -= field.mean()
    spread = float(field.std())
    return np.asarray(field / spread if spread > 0 else field, dtype=np.float32)


def signed_distance(mask: NDArray[np.bool_], step_um: float) -> Float32:
    """Return the distance to the border of `mask` in µm, positive inside, smoothed by one sample.

    Parameters
    ----------
    mask
        (rows, columns) bool.
    step_um
        Step of the grid.

    Returns
    -------
    float32 array of the same shape
    """
    inside = np.asarray(ndi.distance_transform_edt(mask), dtype=np.float32)
    outside = np.asarray(ndi.distance_transform_edt(~mask), dtype=np.float32)
    return np.asarray(ndi.gaussian_filter(inside - outside, 1.0) * step_um, dtype=np.float32)


def resample(field: Float32, rows_um: Float32, columns_um: Float32, step_um: float) -> Float32:
    """Interpolate a field linearly at the crossings of given rows and columns.

    Parameters
    ----------
    field
        (n, m) float32 on a grid with step `step_um`.
    rows_um, columns_um
        y of the rows and x of the columns that are wanted, µm.
    step_um
        Step of the field's grid.

    Returns
    -------
    (len(rows_um), len(columns_um)) float32
    """
    low, weight = _neighbours(rows_um / step_um - 0.5, field.shape[0])
    rows = field[low] + (field[low + 1] - field[low]) * weight[:, None]
    low, weight = _neighbours(columns_um / step_um - 0.5, field.shape[1])
    left = np.take(rows, low, axis=1)
    slope = np.take(np.diff(rows, axis=1), low, axis=1)
    slope *= weight
    left += slope
    return left


def _neighbours(position: Float32, size: int) -> tuple[NDArray[np.intp], Float32]:
    clipped = np.clip(position, 0.0, size - 1.0)
    low = np.minimum(clipped.astype(np.intp), size - 2)
    return low, (clipped - low).astype(np.float32)


def at_points(field: Float32, x_um: Array, y_um: Array, step_um: float) -> Float32:
    """Interpolate a field linearly at points given in µm."""
    where = np.stack([y_um / step_um - 0.5, x_um / step_um - 0.5])
    return np.asarray(ndi.map_coordinates(field, where, order=1, mode="nearest"), dtype=np.float32)


def sigmoid(values: Float32) -> Float32:
    """Return 1 / (1 + exp(-values)), safe for large values."""
    out = np.clip(values, -30.0, 30.0)
    np.negative(out, out=out)
    np.exp(out, out=out)
    out += 1.0
    np.reciprocal(out, out=out)
    return np.asarray(out, dtype=np.float32)
