"""What is learnt from annotations: label masks for windows of a slide.

What an annotation says (QuPath's habits):

* a polygon of a class says that everything inside is of that class; where polygons overlap, the later one wins;
* a point annotation of a class says that a nucleus of that class has its centre there;
* inside a polygon of the class ``Training`` everything counts as labelled: what nobody marked there is background;
* a class that ends in an asterisk (``Ignore*``, ``Region*``) labels nothing, and hides all that it covers;
* all the rest of the slide is not labelled and does not count.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import geopandas as gpd
import numpy as np
import numpy.typing as npt
import scipy.spatial
import shapely

from pyhisto.labels import rasterise

__all__ = ["IGNORED", "CellTask", "Task", "TrainingImage", "TumourTask", "Window", "is_area"]

IGNORED = 255
"""Label of pixels that the loss leaves out."""

HIDDEN = 254
"""Label, while points are drawn, of what lies under an ``Ignore*``."""


@dataclass(frozen=True)
class TrainingImage:
    """A slide with annotations.

    Attributes
    ----------
    path
        The slide.
    objects
        Path-object table, level-0 px.
    mpp
        Pixel size that overrides the file's, µm (x, y), or None.
    crop_to_bounds, series
        As in :class:`pyhisto.slide.Slide`.
    """

    path: Path
    objects: gpd.GeoDataFrame
    mpp: tuple[float, float] | None = None
    crop_to_bounds: bool = True
    series: int = 0


@dataclass(frozen=True)
class Window:
    """The rectangle of a patch: top left corner in level-0 px, level-0 pixels to one patch pixel (x, y), side in px."""

    x: float
    y: float
    scale: tuple[float, float]
    size: int

    @property
    def box(self) -> Any:
        """The rectangle as a shapely polygon, level-0 px."""
        return shapely.box(self.x, self.y, self.x + self.size * self.scale[0], self.y + self.size * self.scale[1])


class Task(Protocol):
    """What is learnt: turns annotations into label masks and says where to look for each class."""

    def class_count(self) -> int:
        """Return the number of output classes, background included."""

    def label(self, image: TrainingImage, window: Window, mpp: float) -> npt.NDArray[np.uint8]:
        """Return the label mask of a window: uint8 (size, size), class numbers or :data:`IGNORED`."""

    def anchors(self, image: TrainingImage) -> dict[str, list[Any]]:
        """Return, by name of the class, the geometries (level-0 px) near which patches of it are taken."""


def _annotations(image: TrainingImage) -> gpd.GeoDataFrame:
    objects = image.objects
    return objects[(objects["object_type"] == "annotation") & objects["classification"].notna()]


def _is_of(classification: str, base: str) -> bool:
    """Return whether a class is `base` or derived from it, as ``Tumor: Positive`` is from ``Tumor``."""
    return classification == base or classification.startswith(f"{base}:")


def is_area(geometry: Any) -> bool:
    """Return whether a geometry is a polygon or several."""
    return bool(shapely.get_dimensions(geometry) == 2)


@dataclass(frozen=True)
class TumourTask:
    """Tumour against everything else, from polygons.

    Attributes
    ----------
    tumour
        Class of the tumour polygons, with those derived from it; polygons of any other class are background.
    training
        Class of polygons inside which everything counts as labelled.
    """

    tumour: str = "Tumor"
    training: str = "Training"

    def class_count(self) -> int:
        """Return 2: background and tumour."""
        return 2

    def label(self, image: TrainingImage, window: Window, mpp: float) -> npt.NDArray[np.uint8]:
        """Return 1 for tumour, 0 for other annotated classes, :data:`IGNORED` elsewhere."""
        del mpp
        areas = _annotations(image)
        areas = areas[[is_area(g) for g in areas.geometry]]
        first = areas["classification"] == self.training
        last = areas["classification"].astype(str).str.endswith("*")
        ordered = [*areas[first].iterrows(), *areas[~first & ~last].iterrows(), *areas[last].iterrows()]
        values = [self._value(str(row["classification"])) for _, row in ordered]
        mask = rasterise(
            [row["geometry"] for _, row in ordered],
            values,
            (window.size, window.size),
            origin=(window.x, window.y),
            scale=window.scale,
            background=IGNORED,
        )
        return mask.astype(np.uint8)

    def _value(self, classification: str) -> int:
        if classification.endswith("*"):
            return IGNORED
        return int(_is_of(classification, self.tumour))

    def anchors(self, image: TrainingImage) -> dict[str, list[Any]]:
        """Return the polygons of the tumour and those of all other labelled classes."""
        areas = _annotations(image)
        found: dict[str, list[Any]] = {self.tumour: [], "background": []}
        for classification, geometry in zip(areas["classification"], areas.geometry, strict=True):
            if is_area(geometry) and not str(classification).endswith("*"):
                found[self.tumour if _is_of(str(classification), self.tumour) else "background"].append(geometry)
        return found


@dataclass(frozen=True)
class CellTask:
    """Positive and negative nuclei with their membrane rings, from points.

    Each point becomes a disc (the nucleus) inside a ring (its membrane); a pixel in reach of several points goes to the
    nearest. The ring parts nuclei that touch, in the manner of border classes in nucleus segmentation (Chen 2016).

    Attributes
    ----------
    positive, negative
        Classes of the point annotations.
    nucleus_radius_um, membrane_radius_um
        Radius of the disc and outer radius of the ring.
    tumour
        Class of polygons whose inside is not labelled by them, nor by those of derived classes; polygons of other
        classes hold no tumour cell.
    training
        Class of polygons inside which every tumour cell has its point.
    """

    positive: str = "Tumor: Positive"
    negative: str = "Tumor: Negative"
    nucleus_radius_um: float = 2.5
    membrane_radius_um: float = 4.5
    tumour: str = "Tumor"
    training: str = "Training"

    def class_count(self) -> int:
        """Return 5: background, positive nucleus, its membrane, negative nucleus, its membrane."""
        return 5

    def label(self, image: TrainingImage, window: Window, mpp: float) -> npt.NDArray[np.uint8]:
        """Return 0 background, 1 / 2 positive nucleus / membrane, 3 / 4 negative nucleus / membrane."""
        mask = self._areas(image, window)
        self._draw_points(mask, image, window, mpp)
        mask[mask == HIDDEN] = IGNORED
        return mask

    def _draw_points(self, mask: npt.NDArray[np.uint8], image: TrainingImage, window: Window, mpp: float) -> None:
        """Draw the discs and rings into a mask, but where an ``Ignore*`` hides them."""
        points, positive = self._points(image)
        if len(points) == 0:
            return
        local = (points - (window.x, window.y)) / window.scale  # patch px
        reach = self.membrane_radius_um / mpp
        near = np.all((local > -reach) & (local < window.size + reach), axis=1)
        if not near.any():
            return
        local, positive = local[near], positive[near]
        rows, columns = np.mgrid[0 : window.size, 0 : window.size]
        centres = np.column_stack([columns.ravel() + 0.5, rows.ravel() + 0.5])
        distance, nearest = scipy.spatial.cKDTree(local).query(centres, distance_upper_bound=reach)
        inside = np.isfinite(distance)
        distance, nearest = np.asarray(distance)[inside], np.asarray(nearest)[inside]
        value = np.where(positive[nearest], 1, 3) + (distance > self.nucleus_radius_um / mpp)
        flat = mask.reshape(-1)
        flat[inside] = np.where(flat[inside] == HIDDEN, HIDDEN, value)

    def _areas(self, image: TrainingImage, window: Window) -> npt.NDArray[np.uint8]:
        """Return 0 where an annotation says that there is no cell but the points, else ignored; HIDDEN under ``*``."""
        areas = _annotations(image)
        areas = areas[[is_area(g) for g in areas.geometry]]
        names = [str(name) for name in areas["classification"]]
        order = {self.training: 1}
        values = {
            name: HIDDEN if name.endswith("*") else (IGNORED if _is_of(name, self.tumour) else 0) for name in names
        }
        rank = sorted(range(len(names)), key=lambda i: (names[i].endswith("*"), order.get(names[i], 0)))
        return rasterise(
            [areas.geometry.iloc[i] for i in rank],
            [values[names[i]] for i in rank],
            (window.size, window.size),
            origin=(window.x, window.y),
            scale=window.scale,
            background=IGNORED,
        ).astype(np.uint8)

    def _points(self, image: TrainingImage) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
        """Return the points (n, 2), level-0 px, and whether each is positive."""
        found, positive = [], []
        areas = _annotations(image)
        for classification, geometry in zip(areas["classification"], areas.geometry, strict=True):
            if classification in {self.positive, self.negative} and shapely.get_dimensions(geometry) == 0:
                points = shapely.get_coordinates(geometry)
                found.append(points)
                positive.append(np.full(len(points), classification == self.positive))
        if not found:
            return np.empty((0, 2)), np.empty(0, dtype=bool)
        return np.concatenate(found), np.concatenate(positive)

    def anchors(self, image: TrainingImage) -> dict[str, list[Any]]:
        """Return the points of each class, and the polygons that hold no tumour cell or all of them."""
        points, positive = self._points(image)
        areas = _annotations(image)
        background = [
            geometry
            for name, geometry in zip(areas["classification"], areas.geometry, strict=True)
            if is_area(geometry) and not _is_of(str(name), self.tumour) and not str(name).endswith("*")
        ]
        return {
            self.positive: [shapely.Point(point) for point in points[positive]],
            self.negative: [shapely.Point(point) for point in points[~positive]],
            "background": background,
        }
