"""What is known of one image: shapes and their classes."""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import shapely

from qupath_ext.errors import FormatError

__all__ = ["Frame", "Shapes", "Truth", "TruthSource", "areas_of", "clip_truth"]

Shapes = npt.NDArray[Any]
"""Shapely geometries, object (n,)."""


@dataclass(frozen=True)
class Frame:
    """Where an image lies in its file.

    Attributes
    ----------
    size
        (width, height) of the file, px.
    crop
        (x, y, width, height) of the part that is the image; None if all of it is.
    """

    size: tuple[int, int]
    crop: tuple[int, int, int, int] | None = None

    @property
    def shown(self) -> tuple[int, int]:
        """(width, height) of the image, px."""
        return self.size if self.crop is None else self.crop[2:]

    def cut(self, mask: npt.NDArray[Any], path: Path) -> npt.NDArray[Any]:
        """Return the pixels of a mask that belong to the image; the mask is as large as the file or as the image.

        Raises
        ------
        FormatError
            If it has another size.
        """
        size = (mask.shape[1], mask.shape[0])
        if size == self.shown:
            return mask
        if self.crop is not None and size == self.size:
            x, y, width, height = self.crop
            return mask[y : y + height, x : x + width]
        raise FormatError(
            f"{path.name} has {size[0]} x {size[1]} px",
            expected=f"those of its image, {self.shown[0]} x {self.shown[1]}",
        )


@dataclass(frozen=True)
class Truth:
    """The labelled objects of an image.

    Attributes
    ----------
    shapes
        Polygons, MultiPolygons or Points, px of the image; object (n,).
    classes
        Class of each.
    left_out
        How many objects were passed over, since their class is left out or they have no area.
    """

    shapes: Shapes
    classes: list[str]
    left_out: int = 0

    @classmethod
    def of(cls, shapes: Shapes, classes: list[str | None]) -> Truth:
        """Return the truth of those shapes that have a class and are not empty."""
        kept = np.fromiter((name is not None for name in classes), dtype=bool, count=len(classes))
        kept &= ~(shapely.is_missing(shapes) | shapely.is_empty(shapes))
        names = [name for name, keep in zip(classes, kept.tolist(), strict=True) if keep and name is not None]
        return cls(shapes[kept], names, int((~kept).sum()))


class TruthSource(Protocol):
    """A layout with its files."""

    @property
    def keys(self) -> Set[str]:
        """Names of the images that have labels."""

    def read(self, key: str, frame: Frame) -> Truth:
        """Read the labels of an image.

        Raises
        ------
        FormatError
            If they cannot be read, or do not fit the image.
        """


def clip_truth(shapes: Shapes, classes: list[str | None], frame: Frame, where: str) -> Truth:
    """Return shapes in px of a file as the truth of the image; outlines end at its border.

    Raises
    ------
    FormatError
        If a point lies outside the file.
    """
    bounds = shapely.bounds(shapes).reshape(-1, 4)
    points = shapely.get_dimensions(shapes) == 0
    width, height = frame.size
    stray = points & ((bounds < 0) | (bounds > [width, height, width, height])).any(axis=1)
    if stray.any():
        x, y = bounds[stray][0, :2]
        raise FormatError(f"{where}: point ({x:g}, {y:g})", expected=f"points inside the image, {width} x {height} px")
    x0, y0, w, h = frame.crop or (0, 0, width, height)
    inside = shapes.copy()
    window = shapely.box(x0, y0, x0 + w, y0 + h)
    for at in np.flatnonzero(~(shapely.covered_by(shapes, window) | shapely.is_missing(shapes))).tolist():
        inside[at] = None if points[at] else areas_of(shapely.intersection(shapes[at], window))
    moved = shapely.transform(inside, lambda xy: xy - (x0, y0))
    return Truth.of(np.asarray(moved, dtype=object), classes)


def areas_of(geometry: Any) -> Any:
    """Return the Polygon or MultiPolygon of what has an area in a geometry; None if nothing has.

    >>> areas_of(shapely.from_wkt("GEOMETRYCOLLECTION (POLYGON ((0 0, 1 0, 0 1, 0 0)), POINT (5 5))")).area
    0.5
    """
    parts = shapely.get_parts(shapely.get_parts(geometry))
    parts = parts[shapely.area(parts) > 0]
    return None if not len(parts) else parts[0] if len(parts) == 1 else shapely.MultiPolygon(parts.tolist())
