"""Measurements of nuclei and cells under QuPath's names: shape, stain intensity, and the growth of nuclei into cells.

Shapes are measured as QuPath's cell detection measures them: perimeter and calipers on the smoothed outline, area and
eccentricity on the pixels whose centre lies inside it. Intensities are measured on the labelled pixels. For a nucleus
of the same pixels all shapes are QuPath's to its float32. What differs from what QuPath's objects say:

* outlines that were read back from QuPath are simplified; it measured them before, so that perimeters come out half a
  per cent shorter and areas a pixel smaller. The ratio of nucleus to cell is the one that it takes from the outlines as
  they are stored.
* intensities differ by grey levels where a slide is resampled, as Java interpolates in its own way (0.05 % of a mean).
* cells end at the nearest nucleus; QuPath's flooding decides otherwise where two are equally near, by a pixel.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pandas as pd

from pyhisto.contours import Contours, smooth_contours, trace_labels
from pyhisto.errors import ConfigError
from pyhisto.loops import regions, shapes
from pyhisto.loops.scratch import Scratch
from pyhisto.loops.statistics import cell_statistics, coloured_statistics
from pyhisto.loops.statistics import statistics as statistics_of

__all__ = ["Colours", "cell_measurements", "expand_cells", "measure_cells", "measure_intensities", "measure_shapes"]

FloatArray: TypeAlias = npt.NDArray[np.float64]
Labels: TypeAlias = npt.NDArray[np.integer[Any]]

NUCLEUS_STATISTICS = ("mean", "sum", "std dev", "max", "min", "range")
"""What is measured of every stain in the nucleus, in QuPath's order."""

CELL_STATISTICS = ("mean", "std dev", "max", "min")
"""What is measured of every stain in the whole cell and in the cytoplasm."""


@dataclass(frozen=True)
class Colours:
    """Colours of which k images are made: a pixel's value is the sum of one for its red, its green and its blue.

    Attributes
    ----------
    rgb
        uint8 (H, W, 3).
    tables
        float64 (k, 3, 256), such as :func:`pyhisto.stain.stain_tables`.
    """

    rgb: npt.NDArray[np.uint8]
    tables: FloatArray


def measure_cells(
    nuclei: Labels,
    channels: Mapping[str, npt.NDArray[np.floating[Any]]],
    *,
    pixel_size_um: float,
    cells: Labels | None = None,
    nucleus_contours: Contours | None = None,
    cell_contours: Contours | None = None,
    drawn: tuple[Contours, Contours] | None = None,
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
    drawn
        Outlines of nuclei and cells as they will be drawn, in any frame: QuPath takes the ratio of the two areas from
        its simplified outlines, all else from those before. The smoothed ones by default.

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
    _check_shapes(nuclei, channels, cells)
    n = int(nuclei.max(initial=0)) if nucleus_contours is None else len(nucleus_contours)
    if nucleus_contours is None:
        nucleus_contours = smooth_contours(trace_labels(nuclei, n))
    if cells is not None and cell_contours is None:
        cell_contours = smooth_contours(trace_labels(cells, n))
    columns = cell_measurements(
        nuclei,
        tuple(channels),
        np.stack(list(channels.values())) if channels else np.empty((0, *nuclei.shape), dtype=np.float32),
        pixel_size_um=pixel_size_um,
        nucleus_contours=nucleus_contours,
        cells=None if cells is None or cell_contours is None else (cells, cell_contours),
        drawn=drawn,
    )
    return pd.DataFrame(columns, index=pd.RangeIndex(1, n + 1, name="label"))


def cell_measurements(
    nuclei: Labels,
    names: Sequence[str],
    images: npt.NDArray[np.floating[Any]] | Colours,
    *,
    pixel_size_um: float,
    nucleus_contours: Contours,
    cells: tuple[Labels, Contours] | None = None,
    drawn: tuple[Contours, Contours] | None = None,
) -> dict[str, FloatArray]:
    """Return the columns of :func:`measure_cells` for the first n labels, float64 (n,) each.

    Parameters
    ----------
    nuclei, pixel_size_um, drawn
        As in :func:`measure_cells`; labels above n are passed over.
    names, images
        Names of the channels, and the images themselves, float (k, H, W), or what they follow from.
    nucleus_contours
        n smoothed outlines in pixels.
    cells
        The cells as labels, and their n smoothed outlines.
    """
    n = len(nucleus_contours)
    columns = {f"Nucleus: {name}": v for name, v in measure_shapes(nucleus_contours, pixel_size_um).items()}
    labels = nuclei if cells is None else cells[0]
    if isinstance(images, Colours):
        found = coloured_statistics(nuclei, labels, images.rgb, images.tables, n)
    else:
        found = cell_statistics(nuclei, labels, images, n)
    columns |= _named(names, found[:, 0], "Nucleus: ", NUCLEUS_STATISTICS)
    if cells is None:
        return columns
    cell_contours = cells[1]
    columns |= {f"Cell: {name}": v for name, v in measure_shapes(cell_contours, pixel_size_um).items()}
    columns |= _named(names, found[:, 1], "Cell: ", CELL_STATISTICS)
    columns |= _named(names, found[:, 2], "Cytoplasm: ", CELL_STATISTICS)
    inner, outer = (contours.areas() for contours in drawn or (nucleus_contours, cell_contours))
    ratio = np.divide(inner, outer, out=np.full(n, np.nan), where=outer > 0)
    columns["Nucleus/Cell area ratio"] = np.minimum(ratio, 1.0)
    return columns


def _named(names: Sequence[str], found: FloatArray, prefix: str, statistics: Sequence[str]) -> dict[str, FloatArray]:
    """Return statistics of every channel, float64 (k, n, 6), under their names."""
    return {
        f"{prefix}{name} {key}": table[:, NUCLEUS_STATISTICS.index(key)]
        for name, table in zip(names, found, strict=True)
        for key in statistics
    }


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
    if not channels:
        return {}
    found = statistics_of(np.ascontiguousarray(labels), np.stack(list(channels.values())), n)
    return _named(tuple(channels), found, prefix, statistics)


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
    count, variance_x, variance_y, covariance = shapes.moments(contours.xy, contours.offsets).T
    area = count * pixel_size_um**2
    perimeter = contours.perimeters() * pixel_size_um
    with np.errstate(divide="ignore", invalid="ignore"):
        circularity = np.minimum(4 * math.pi * area / perimeter**2, 1.0)
        middle = (variance_x + variance_y) / 2
        swing = np.sqrt(((variance_x - variance_y) / 2) ** 2 + covariance**2)
        eccentricity = np.sqrt(np.clip(2 * swing / (middle + swing), 0, 1))
    longest, narrowest = shapes.calipers(contours.xy, contours.offsets).T
    return {
        "Area": area,
        "Perimeter": perimeter,
        "Circularity": circularity,
        "Max caliper": longest * pixel_size_um,
        "Min caliper": narrowest * pixel_size_um,
        "Eccentricity": eccentricity,
    }


def expand_cells(nuclei: Labels, radius_px: float, *, scratch: Scratch | None = None) -> npt.NDArray[Any]:
    """Grow nuclei into cells that do not overlap.

    Every label grows into the background by less than `radius_px`, nearest pixels first; pixels where two cells meet
    stay background, as in QuPath's cell expansion.

    Parameters
    ----------
    nuclei
        int (H, W); 0 is background.
    radius_px
        Greatest distance of growth, pixels; 0 or less returns the nuclei.
    scratch
        Memory for the work and for what is returned, which is good until the next call; new memory by default.

    Returns
    -------
    numpy.ndarray
        (H, W), the labels of `nuclei`; uint16 where these are, else int32.
    """
    number = np.uint16 if nuclei.dtype == np.uint16 else np.int32
    if radius_px <= 0 or not nuclei.any():
        return np.ascontiguousarray(nuclei, dtype=number)
    few = nuclei.dtype == np.uint16 or nuclei.max() < 1 << 16  # half as many bytes take half the time
    narrow = np.ascontiguousarray(nuclei, dtype=np.uint16 if few else np.int32)
    return regions.expanded(narrow, radius_px, scratch or Scratch()).astype(number, copy=False)
