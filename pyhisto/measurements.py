"""Measurements of nuclei and cells under QuPath's names: shape, stain intensity, and the growth of nuclei into cells.

Shapes are measured as QuPath's cell detection measures them: perimeter and calipers on the smoothed outline, area and
eccentricity on the pixels whose centre lies inside it. Intensities are measured on the labelled pixels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pandas as pd
import shapely
from scipy import ndimage
from skimage import segmentation

from pyhisto.contours import Contours, smooth_contours, trace_labels
from pyhisto.errors import ConfigError

__all__ = ["expand_cells", "measure_cells", "measure_intensities", "measure_shapes"]

FloatArray: TypeAlias = npt.NDArray[np.float64]
Labels: TypeAlias = npt.NDArray[np.integer[Any]]

NUCLEUS_STATISTICS = ("mean", "sum", "std dev", "max", "min", "range")
"""What is measured of every stain in the nucleus, in QuPath's order."""

CELL_STATISTICS = ("mean", "std dev", "max", "min")
"""What is measured of every stain in the whole cell and in the cytoplasm."""

_CALIPER_CHUNK = 1024


def measure_cells(
    nuclei: Labels,
    channels: Mapping[str, npt.NDArray[np.floating[Any]]],
    *,
    pixel_size_um: float,
    cells: Labels | None = None,
    nucleus_contours: Contours | None = None,
    cell_contours: Contours | None = None,
) -> pd.DataFrame:
    """Measure nuclei, and cells where there are any, under the names of QuPath's cell detection.

    Parameters
    ----------
    nuclei
        int (H, W); labels 1 to n, 0 is background.
    channels
        Name to image, float (H, W), in the order of the columns: ``{"Hematoxylin OD": ..., "DAB OD": ...}``.
    pixel_size_um
        Size of a pixel of these images, µm.
    cells
        int (H, W); the same labels, grown: see :func:`expand_cells`. Without them only nuclei are measured.
    nucleus_contours, cell_contours
        Smoothed outlines in pixels, in the order of the labels; made from the labels by default.

    Returns
    -------
    pandas.DataFrame
        One row for each label 1 to n, in order. ``Nucleus: Area`` (µm²), ``Perimeter`` (µm), ``Circularity``,
        ``Max caliper``, ``Min caliper`` (µm), ``Eccentricity``, then for each channel mean, sum, std dev, max, min and
        range; with `cells` the same shapes under ``Cell: ``, mean, std dev, max and min under ``Cell: `` and
        ``Cytoplasm: ``, and ``Nucleus/Cell area ratio``. NaN where there is nothing to measure, such as the cytoplasm
        of a nucleus without room to grow.

    Raises
    ------
    ConfigError
        If the images differ in shape.
    """
    n = int(nuclei.max(initial=0)) if nucleus_contours is None else len(nucleus_contours)
    _check_shapes(nuclei, channels, cells)
    if nucleus_contours is None:
        nucleus_contours = smooth_contours(trace_labels(nuclei, n))
    shapes = measure_shapes(nucleus_contours, pixel_size_um)
    columns = {f"Nucleus: {name}": values for name, values in shapes.items()}
    columns |= measure_intensities(nuclei, channels, n, prefix="Nucleus: ", statistics=NUCLEUS_STATISTICS)
    if cells is not None:
        if cell_contours is None:
            cell_contours = smooth_contours(trace_labels(cells, n))
        cell_shapes = measure_shapes(cell_contours, pixel_size_um)
        columns |= {f"Cell: {name}": values for name, values in cell_shapes.items()}
        cytoplasm = np.where(nuclei > 0, 0, cells)
        columns |= measure_intensities(cells, channels, n, prefix="Cell: ", statistics=CELL_STATISTICS)
        columns |= measure_intensities(cytoplasm, channels, n, prefix="Cytoplasm: ", statistics=CELL_STATISTICS)
        outer = cell_contours.areas()
        ratio = np.divide(nucleus_contours.areas(), outer, out=np.full(n, np.nan), where=outer > 0)
        columns["Nucleus/Cell area ratio"] = np.minimum(ratio, 1.0)
    return pd.DataFrame(columns, index=pd.RangeIndex(1, n + 1, name="label"))


def _check_shapes(nuclei: Labels, channels: Mapping[str, npt.NDArray[np.floating[Any]]], cells: Labels | None) -> None:
    others = dict(channels) if cells is None else {**channels, "cells": cells}
    for name, image in others.items():
        if image.shape != nuclei.shape:
            raise ConfigError(f"image {name!r} of shape {image.shape}", expected=f"that of the labels, {nuclei.shape}")


def measure_intensities(
    labels: Labels,
    channels: Mapping[str, npt.NDArray[np.floating[Any]]],
    n: int,
    *,
    prefix: str = "",
    statistics: Sequence[str] = NUCLEUS_STATISTICS,
) -> dict[str, FloatArray]:
    """Measure the pixels of every label in every channel.

    Parameters
    ----------
    labels
        int (H, W); 1 to n.
    channels
        Name to image, float (H, W).
    n
        Number of labels.
    prefix
        Put before every name: ``"Nucleus: "``.
    statistics
        Any of mean, sum, std dev (of a sample: n - 1), max, min, range.

    Returns
    -------
    dict
        ``"<prefix><channel> <statistic>"`` to float64 (n,); NaN for labels without pixels.
    """
    where = np.flatnonzero(labels)
    owner = labels.ravel()[where]
    order = np.argsort(owner, kind="stable")
    where, owner = where[order], owner[order]
    count = np.bincount(owner, minlength=n + 1)[1 : n + 1]
    filled = count > 0
    starts = (np.cumsum(count) - count)[filled]
    out: dict[str, FloatArray] = {}
    for name, image in channels.items():
        values = image.ravel()[where].astype(np.float64)
        found = {key: np.full(n, np.nan) for key in NUCLEUS_STATISTICS}
        if len(starts):
            total = np.add.reduceat(values, starts)
            mean = total / count[filled]
            deviation = values - np.repeat(mean, count[filled])
            squares = np.add.reduceat(deviation**2, starts)
            many = count[filled] > 1
            spread = np.full(len(starts), np.nan)
            spread[many] = np.sqrt(squares[many] / (count[filled][many] - 1))
            high, low = np.maximum.reduceat(values, starts), np.minimum.reduceat(values, starts)
            for key, result in zip(NUCLEUS_STATISTICS, (mean, total, spread, high, low, high - low), strict=True):
                found[key][filled] = result
        out |= {f"{prefix}{name} {key}": found[key] for key in statistics}
    return out


def measure_shapes(contours: Contours, pixel_size_um: float) -> dict[str, FloatArray]:
    """Measure outlines.

    Parameters
    ----------
    contours
        n outlines, in pixels.
    pixel_size_um
        Size of a pixel, µm.

    Returns
    -------
    dict
        ``Area`` (µm², of the pixels with their centre inside), ``Perimeter`` (µm), ``Circularity`` (4 pi area /
        perimeter², at most 1), ``Max caliper``, ``Min caliper`` (µm; Feret diameters), ``Eccentricity`` (of the
        ellipse with the same second moments as those pixels): float64 (n,) each, NaN where an outline has no pixel.
    """
    count, variance_x, variance_y, covariance = _pixel_moments(contours)
    area = count * pixel_size_um**2
    perimeter = contours.perimeters() * pixel_size_um
    with np.errstate(divide="ignore", invalid="ignore"):
        circularity = np.minimum(4 * math.pi * area / perimeter**2, 1.0)
        middle = (variance_x + variance_y) / 2
        swing = np.sqrt(((variance_x - variance_y) / 2) ** 2 + covariance**2)
        eccentricity = np.sqrt(np.clip(2 * swing / (middle + swing), 0, 1))
    longest, narrowest = _calipers(contours)
    return {
        "Area": area,
        "Perimeter": perimeter,
        "Circularity": circularity,
        "Max caliper": longest * pixel_size_um,
        "Min caliper": narrowest * pixel_size_um,
        "Eccentricity": eccentricity,
    }


def _pixel_moments(contours: Contours) -> tuple[FloatArray, FloatArray, FloatArray, FloatArray]:
    """Return number, variance in x, variance in y and covariance of the pixels inside each outline, by scanlines.

    A pixel counts as a square, which adds 1/12 to both variances.
    """
    n = len(contours)
    owner, row, crossing = _scanline_crossings(contours)
    order = np.lexsort((crossing, row, owner))
    owner, row = owner[order][::2], row[order][::2].astype(np.float64)
    edge = np.floor(crossing[order] + 0.5)
    # work relative to a point of each outline, so that sums of squares stay exact
    origin = np.zeros((n, 2))
    filled = contours.counts > 0
    origin[filled] = np.floor(contours.xy[contours.offsets[:-1][filled]])
    left, right = edge[::2] - origin[owner, 0], edge[1::2] - origin[owner, 0]
    row = row - origin[owner, 1]
    run = right - left
    sum_x = (right + left - 1) * run / 2
    sum_xx = (right * (right - 1) * (2 * right - 1) - left * (left - 1) * (2 * left - 1)) / 6

    def total(weights: FloatArray) -> FloatArray:
        return np.bincount(owner, weights, n).astype(np.float64)

    count = total(run)
    safe = np.where(count > 0, count, np.nan)
    mean_x, mean_y = total(sum_x) / safe, total(run * row) / safe
    variance_x = total(sum_xx) / safe - mean_x**2 + 1 / 12
    variance_y = total(run * row**2) / safe - mean_y**2 + 1 / 12
    covariance = total(sum_x * row) / safe - mean_x * mean_y
    return safe, variance_x, variance_y, covariance


def _scanline_crossings(contours: Contours) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp], FloatArray]:
    """Return (outline, row, x) of every crossing of an outline with the horizontal line through a row of centres."""
    start, end = contours.xy, contours.xy[contours.following()]
    first = np.floor(np.minimum(start[:, 1], end[:, 1]) + 0.5).astype(np.intp)
    last = np.floor(np.maximum(start[:, 1], end[:, 1]) + 0.5).astype(np.intp)
    rows = last - first
    edge = np.repeat(np.arange(len(start)), rows)
    row = np.arange(len(edge)) - np.repeat(np.cumsum(rows) - rows, rows) + first[edge]
    a, b = start[edge], end[edge]
    x = a[:, 0] + (row + 0.5 - a[:, 1]) * (b[:, 0] - a[:, 0]) / (b[:, 1] - a[:, 1])
    return contours.owner[edge], row, x


def _calipers(contours: Contours) -> tuple[FloatArray, FloatArray]:
    """Return the greatest and the least Feret diameter of each outline, px."""
    longest = np.full(len(contours), np.nan)
    narrowest = np.full(len(contours), np.nan)
    groups = np.flatnonzero(contours.counts >= 3)
    for at in range(0, len(groups), _CALIPER_CHUNK):
        chunk = groups[at : at + _CALIPER_CHUNK]
        hull, valid = _padded_hulls(contours, chunk)
        between = hull[:, :, None, :] - hull[:, None, :, :]
        longest[chunk] = np.sqrt((between**2).sum(axis=-1).max(axis=(1, 2)))
        edge = np.roll(hull, -1, axis=1) - hull
        length = np.linalg.norm(edge, axis=2)
        across = np.abs(edge[:, :, None, 0] * between[..., 1] - edge[:, :, None, 1] * between[..., 0]).max(axis=2)
        real = (length > 0) & valid
        width = np.divide(across, length, out=np.full_like(across, np.inf), where=real)
        narrowest[chunk] = width.min(axis=1)
    narrowest[~np.isfinite(narrowest)] = np.nan
    return longest, narrowest


def _padded_hulls(contours: Contours, chunk: npt.NDArray[np.intp]) -> tuple[FloatArray, npt.NDArray[np.bool_]]:
    """Return convex hulls as one array (m, k, 2), filled up with each hull's first point."""
    lines = [contours.xy[contours.offsets[i] : contours.offsets[i + 1]] for i in chunk]
    points = shapely.multipoints(
        np.concatenate(lines), indices=np.repeat(np.arange(len(lines)), [len(p) for p in lines])
    )
    xy, owner = shapely.get_coordinates(shapely.convex_hull(points), return_index=True)
    counts = np.bincount(owner, minlength=len(chunk))
    local = np.arange(len(xy)) - np.repeat(np.cumsum(counts) - counts, counts)
    hull = np.repeat(xy[np.cumsum(counts) - counts][:, None, :], counts.max(), axis=1)
    hull[owner, local] = xy
    return hull, np.arange(counts.max()) < counts[:, None]


def expand_cells(nuclei: Labels, radius_px: float) -> npt.NDArray[np.int32]:
    """Grow nuclei into cells that do not overlap.

    Every label grows into the background by less than `radius_px`, nearest pixels first; pixels where two cells meet
    stay background, as in QuPath's cell expansion.

    Parameters
    ----------
    nuclei
        int (H, W); 0 is background.
    radius_px
        Greatest distance of growth, pixels; 0 or less returns the nuclei.

    Returns
    -------
    numpy.ndarray
        int32 (H, W), the labels of `nuclei`.
    """
    labels = nuclei.astype(np.int32)
    if radius_px <= 0 or not labels.any():
        return labels
    distance = ndimage.distance_transform_edt(labels == 0)
    grown = segmentation.watershed(
        distance, labels, connectivity=1, mask=(distance < radius_px) | (labels > 0), watershed_line=True
    )
    # touching nuclei must not lose their common border to a line
    return np.where(labels > 0, labels, grown).astype(np.int32)
