"""What a region looks like, without any label: colours and texture of an overview, or an encoder's features."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.ndimage as ndi
import shapely

from pyhisto.active.grid import Overview
from pyhisto.errors import ConfigError
from pyhisto.stain import StainVectors, deconvolve

__all__ = ["pooled_features", "stain_features"]

TEXTURE_UM = (8.0, 32.0)
"""Scales of the texture, µm."""

Floats = npt.NDArray[np.float32]


def stain_features(overview: Overview, polygon: Any, stains: StainVectors) -> Floats:
    """Return the colours and the texture of a region.

    Of each of the two stains (Ruifrok and Johnston 2001): mean, standard deviation, 10th and 90th percentile of the
    optical density, and how much of it varies over 8 µm and over 32 µm (differences of Gaussians).

    Parameters
    ----------
    overview
        The slide from afar.
    polygon
        Whose bounds are looked at, level-0 px.
    stains
        The two stains.

    Returns
    -------
    numpy.ndarray
        Float32 (12,).

    Raises
    ------
    ConfigError
        If the region does not lie on the overview.
    """
    top, left, bottom, right = overview.grid.box(polygon)
    if bottom <= top or right <= left:
        raise ConfigError(f"region {polygon.bounds}", expected="one on the slide")
    density = deconvolve(overview.rgb[top:bottom, left:right], stains)
    out: list[float] = []
    for channel in (density[..., 0], density[..., 1]):
        out += [float(channel.mean()), float(channel.std()), *np.percentile(channel, [10, 90]).tolist()]
        for um in TEXTURE_UM:
            fine, coarse = (ndi.gaussian_filter(channel, times * um / overview.grid.um) for times in (0.5, 1.0))
            out.append(float((fine - coarse).std()))
    return np.asarray(out, dtype=np.float32)


def pooled_features(
    centres: npt.NDArray[np.floating[Any]], features: npt.NDArray[np.floating[Any]], polygons: Sequence[Any]
) -> Floats:
    """Return the mean of an encoder's features of the tiles in each of some regions.

    Parameters
    ----------
    centres
        Of n tiles, level-0 px (n, 2).
    features
        Of the tiles, (n, d).
    polygons
        The regions, level-0 px.

    Returns
    -------
    numpy.ndarray
        Float32 (regions, d); a region without a tile has those of the nearest one.

    Raises
    ------
    ConfigError
        If there is no tile, or not one row of features for each.
    """
    if len(centres) == 0 or len(centres) != len(features):
        raise ConfigError(f"{len(centres)} tiles with {len(features)} features", expected="as many, at least one")
    points = shapely.points(centres)
    out = np.empty((len(polygons), features.shape[1]), dtype=np.float32)
    for number, polygon in enumerate(polygons):
        inside = shapely.contains_xy(polygon, centres[:, 0], centres[:, 1])
        if not inside.any():
            inside[np.argmin(shapely.distance(points, polygon.centroid))] = True
        out[number] = features[inside].mean(axis=0, dtype=np.float64)
    return out
