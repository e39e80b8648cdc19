"""Where in an image things are compared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import geopandas as gpd
import numpy as np
import pandas as pd
import shapely

from pyhisto.labels import clean_polygon
from qupath_ext.errors import ProjectError
from qupath_ext.workflows.evaluation.settings import UNCLASSIFIED, EvaluationSettings
from qupath_ext.workflows.evaluation.sources import Image, Source

__all__ = ["REGION_CLASSES", "Area", "area_to_compare", "class_names", "image_mpp", "is_marker"]

Names = np.ndarray[Any, np.dtype[np.object_]]

REGION_CLASSES = ("Training", "Validation")
"""Annotations inside which everything is labelled."""


@dataclass(frozen=True)
class Area:
    """Where an image is compared.

    Attributes
    ----------
    shape
        Polygons, µm of the frame that QuPath shows; may be empty.
    drawn
        Whether a person limited it, rather than the image's border.
    mm2
        Its size, mm².
    """

    shape: Any
    drawn: bool
    mm2: float


def image_mpp(image: Image, settings: EvaluationSettings) -> tuple[float, float]:
    """Return the pixel size (x, y) in µm of the frame that QuPath shows.

    Raises
    ------
    ProjectError
        If the project has none for the image, and the settings neither.
    """
    mpp = image.entry.mpp
    if mpp is None and settings.mpp is not None:
        mpp = (settings.mpp, settings.mpp)
    if mpp is None:
        raise ProjectError(
            f"image {image.entry.name!r} has no pixel size",
            expected="µm per pixel in the project",
            remedy="set it in QuPath, or give it with --mpp",
        )
    return mpp


def class_names(objects: gpd.GeoDataFrame, mapping: Mapping[str, str] | None = None) -> Names:
    """Return the class of each object, or the one that it counts as, object (n,); never missing."""
    column = pd.Categorical(objects["classification"])
    names = [*(str(name) for name in column.categories), UNCLASSIFIED]
    own = mapping or {}
    named: Names = np.array([own.get(name, name) for name in names], dtype=object)[column.codes]
    return named


def is_marker(names: Names, settings: EvaluationSettings) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Say which classes are no result: those of regions, and those that end in ``*``, such as QuPath's ``Ignore*``."""
    hides = np.fromiter((name.endswith("*") for name in names), dtype=bool, count=len(names))
    return np.asarray(hides | np.isin(names, [*REGION_CLASSES, settings.region or ""]))


def area_to_compare(
    image: Image, source: Source, reference: gpd.GeoDataFrame, settings: EvaluationSettings
) -> Area | None:
    """Return where an image is compared; None if the reference has not labelled it.

    The area lies inside the annotations of the region's class that the reference has, or else the image in the project;
    without any it is the whole image. What the reference or the image hides (classes ending in ``*``) is taken out:
    areas as they are, points with a disc of ``settings.radius_um``.

    Parameters
    ----------
    image
        The image.
    source, reference
        The reference and its objects, px of the frame that QuPath shows.
    settings
        See :class:`.settings.EvaluationSettings`.

    Raises
    ------
    ProjectError
        If the image has no pixel size.
    """
    mpp = image_mpp(image, settings)
    wanted = REGION_CLASSES if settings.region is None else (settings.region,)
    drawn = _areas(reference, wanted)
    if len(drawn) == 0:
        drawn = _areas(image.objects, wanted)
    if len(drawn) == 0 and (settings.region is not None or not (len(reference) or source.says_nothing)):
        return None
    shape: Any = shapely.box(0, 0, *image.entry.size())
    if len(drawn):
        shape = shapely.intersection(shape, shapely.union_all(shapely.make_valid(drawn)))
    hidden = np.concatenate([_hidden(table, settings, mpp) for table in (reference, image.objects)])
    if len(hidden):
        shape = shapely.difference(shape, shapely.union_all(hidden))
    um = shapely.union_all(clean_polygon(shapely.transform(shape, lambda px: px * mpp)))
    return Area(um, len(drawn) > 0, float(um.area / 1e6))


def _areas(objects: gpd.GeoDataFrame, classes: Sequence[str]) -> np.ndarray[Any, Any]:
    chosen = (objects["object_type"] == "annotation") & objects["classification"].isin(classes)
    shapes: np.ndarray[Any, Any] = objects.geometry.to_numpy()[chosen.to_numpy()]
    areas: np.ndarray[Any, Any] = shapes[shapely.get_dimensions(shapes) == 2]
    return areas


def _hidden(objects: gpd.GeoDataFrame, settings: EvaluationSettings, mpp: tuple[float, float]) -> np.ndarray[Any, Any]:
    """Return the areas that some objects hide, each valid."""
    names = {name for name in objects["classification"].dropna().unique() if str(name).endswith("*")}
    shapes: np.ndarray[Any, Any] = objects.geometry.to_numpy()[objects["classification"].isin(names).to_numpy()]
    areas = shapes[shapely.get_dimensions(shapes) == 2]
    points = shapely.points(shapely.get_coordinates(shapes[shapely.get_dimensions(shapes) == 0]) * mpp)
    discs = shapely.transform(shapely.buffer(points, settings.radius_um), lambda um: um / mpp)
    return np.concatenate([shapely.make_valid(areas), discs])
