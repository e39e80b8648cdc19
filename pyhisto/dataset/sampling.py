"""Where patches are taken: every place that may be their centre, with its probability."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import shapely

from pyhisto.dataset.images import TrainingImage
from pyhisto.dataset.tasks import BACKGROUND, Places, Task
from pyhisto.errors import ConfigError, TrainingError

__all__ = ["Anchors", "Sampling"]

DRAWS = 256
"""Points that are tried inside a polygon's bounding box."""


@dataclass(frozen=True)
class Sampling:
    """How often patches are centred on what.

    Attributes
    ----------
    class_weights
        Relative frequency of classes (``background`` is one); 1 for those that are not named.
    balance
        ``"class"``: a class by its weight, then one of the images that have it, all alike, then a place of it there:
        a nucleus, or a point of its areas. ``"region"``: an annotated area, all alike (the nuclei of an image that lie
        in none together count as one), then a class in it by its weight, then a place. ``"area"``: every labelled µm²
        alike, times the weight of its class.
    foreground
        Share of the patches that are centred on a class to learn whatever the balance says, from 0 to 1.

    Raises
    ------
    ConfigError
        If a weight is negative, the balance unknown, or the foreground not between 0 and 1.
    """

    class_weights: Mapping[str, float] = field(default_factory=dict)
    balance: Literal["class", "region", "area"] = "class"
    foreground: float = 0.0

    def __post_init__(self) -> None:
        for name, weight in self.class_weights.items():
            if not 0 <= weight < float("inf"):
                raise ConfigError(f"weight {weight:g} of {name!r}", expected="0 or more")
        if self.balance not in {"class", "region", "area"}:
            raise ConfigError(f"balance {self.balance!r}", expected="one of class, region, area")
        if not 0 <= self.foreground <= 1:
            raise ConfigError(f"foreground {self.foreground:g}", expected="a share from 0 to 1")


class Anchors:
    """All places where patches may be centred, as arrays with one row a nucleus or area.

    Parameters
    ----------
    images
        Slides of the training part.
    task
        Says where its classes are.
    sampling
        How often each.

    Raises
    ------
    TrainingError
        If a class is on none of the images.
    ConfigError
        If a weight names a class that the task does not have, or nothing is left to draw.

    Attributes
    ----------
    image, number
        intp (n,): which image, and which class of :meth:`Task.class_names`.
    centre
        float64 (n, 2): a nucleus, level-0 px; NaN for an area.
    polygon
        intp (n,): which of `polygons` an area is, -1 for a nucleus.
    probability
        float64 (n,): how often each is drawn, summing to 1.
    """

    def __init__(self, images: Sequence[TrainingImage], task: Task, sampling: Sampling) -> None:
        names = task.class_names()
        unknown = sorted(set(sampling.class_weights) - set(names))
        if unknown:
            raise ConfigError(f"weight for {unknown[0]!r}", expected=f"one of {', '.join(names)}")
        found = [task.places(image) for image in images]
        tables = [_table(i, k, places[name]) for i, places in enumerate(found) for k, name in enumerate(names)]
        counts = np.array([len(table["image"]) for table in tables]).reshape(-1, len(names)).sum(axis=0)
        if not counts.all() or not tables:
            missing = names[int(np.argmin(counts))] if tables else "any class"
            raise TrainingError(
                f"no annotation of {missing} on {len(images)} training images",
                expected=f"annotations of {', '.join(names)}",
                remedy="annotate some in QuPath and save",
            )
        joined = {key: np.concatenate([table[key] for table in tables]) for key in tables[0]}
        self.image, self.number, self.centre = joined["image"], joined["number"], joined["centre"]
        self.polygons: npt.NDArray[np.object_] = np.concatenate([places[n].polygons for places in found for n in names])
        is_polygon = joined["is_polygon"]
        self.polygon = np.where(is_polygon, np.cumsum(is_polygon) - 1, -1)
        weights = np.array([sampling.class_weights.get(name, 1.0) for name in names])
        balance = {"class": self._by_class, "region": self._by_region, "area": self._by_area}[sampling.balance]
        share = balance(weights, joined["area"], images, found)
        self.probability = _normalised(share, "class weights that leave nothing to draw")
        if sampling.foreground:
            front = np.where(self.number == names.index(BACKGROUND), 0.0, self.probability)
            front = _normalised(front, "class weights of 0 for all classes but the background")
            self.probability = sampling.foreground * front + (1 - sampling.foreground) * self.probability
        self._cumulative = np.cumsum(self.probability)

    def draw(self, rng: np.random.Generator) -> tuple[int, npt.NDArray[np.float64], bool]:
        """Draw an image, a point on it (x, y) in level-0 px, and whether it lies in an area (else on a nucleus)."""
        last = len(self._cumulative) - 1
        row = min(int(np.searchsorted(self._cumulative, rng.random() * self._cumulative[-1], side="right")), last)
        if self.polygon[row] < 0:
            return int(self.image[row]), self.centre[row], False
        return int(self.image[row]), _point_inside(self.polygons[self.polygon[row]], rng), True

    def _by_class(
        self, weights: npt.NDArray[np.float64], area: npt.NDArray[np.float64], images: Any, found: Any
    ) -> npt.NDArray[np.float64]:
        del images, found
        amount = np.where(self.polygon < 0, 1.0, area)
        cell = self.image * len(weights) + self.number  # class on an image
        total = np.bincount(cell, amount)
        with_class = np.bincount(np.flatnonzero(total > 0) % len(weights), minlength=len(weights))
        return np.asarray(weights[self.number] / with_class[self.number] * amount / total[cell])

    def _by_region(
        self, weights: npt.NDArray[np.float64], area: npt.NDArray[np.float64], images: Any, found: Any
    ) -> npt.NDArray[np.float64]:
        del found
        region = self._regions(len(images))
        amount = np.where(self.polygon < 0, 1.0, area)
        cell = region * len(weights) + self.number  # class in a region
        total = np.bincount(cell, amount, minlength=(int(region.max()) + 1) * len(weights))
        present = (total > 0).reshape(-1, len(weights)) * weights
        in_region = present.sum(axis=1)
        scale = np.divide(1.0, in_region, out=np.zeros_like(in_region), where=in_region > 0)
        return np.asarray(weights[self.number] * scale[region] * amount / total[cell])

    def _by_area(
        self,
        weights: npt.NDArray[np.float64],
        area: npt.NDArray[np.float64],
        images: Sequence[TrainingImage],
        found: Sequence[Mapping[str, Places]],
    ) -> npt.NDArray[np.float64]:
        pixel = np.array([np.prod(image.pixel_size()) for image in images])
        radius = np.array([places.point_radius_um for places in found[0].values()])
        dot = np.pi * radius[self.number] ** 2
        loose = self._regions(len(images)) < len(images)
        amount = np.where(self.polygon < 0, np.where(loose, dot, 0.0), area * pixel[self.image])
        return np.asarray(weights[self.number] * amount)

    def _regions(self, images: int) -> npt.NDArray[np.intp]:
        """Return the region of each place: `images` + the number of a polygon, or the image for a nucleus in none."""
        region = np.where(self.polygon < 0, self.image, images + self.polygon)
        for image in range(images):
            here = self.image == image
            dots, areas = np.flatnonzero(here & (self.polygon < 0)), np.flatnonzero(here & (self.polygon >= 0))
            shapes = self.polygons[self.polygon[areas]]
            dot, shape = shapely.STRtree(shapes).query(shapely.points(self.centre[dots]), predicate="intersects")
            region[dots[dot]] = images + self.polygon[areas[shape]]
        return region


def _table(image: int, number: int, places: Places) -> dict[str, npt.NDArray[Any]]:
    """Return the rows of one class on one image."""
    dots, shapes = len(places.points), len(places.polygons)
    return {
        "image": np.full(dots + shapes, image, dtype=np.intp),
        "number": np.full(dots + shapes, number, dtype=np.intp),
        "centre": np.concatenate([places.points, np.full((shapes, 2), np.nan)]),
        "is_polygon": np.arange(dots + shapes) >= dots,
        "area": np.concatenate([np.zeros(dots), shapely.area(places.polygons)]),
    }


def _normalised(share: npt.NDArray[np.float64], what: str) -> npt.NDArray[np.float64]:
    total = float(share.sum())
    if total <= 0:
        raise ConfigError(what, expected="a weight above 0 for a class that is annotated")
    return np.asarray(share / total)


def _point_inside(polygon: Any, rng: np.random.Generator) -> npt.NDArray[np.float64]:
    """Draw a point inside a polygon, all places alike; its representative point if all draws miss."""
    x0, y0, x1, y1 = polygon.bounds
    shapely.prepare(polygon)
    points = rng.uniform((x0, y0), (x1, y1), (DRAWS, 2))
    hits = np.flatnonzero(shapely.contains_xy(polygon, points))
    if len(hits):
        return np.asarray(points[hits[0]])
    return np.asarray(shapely.get_coordinates(polygon.representative_point())[0])
