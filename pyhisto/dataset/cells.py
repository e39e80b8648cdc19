"""Nuclei by class, from points and from outlines."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import shapely

from pyhisto.dataset.areas import BOTTOM, MIDDLE, annotated_areas
from pyhisto.dataset.images import HIDDEN, IGNORED, Part, TrainingImage, Window, is_of, labelled_objects
from pyhisto.dataset.shapes import Shapes
from pyhisto.dataset.tasks import BACKGROUND, Places, check_classes
from pyhisto.errors import ConfigError, TrainingError

__all__ = ["CellTask"]

LARGEST_NUCLEUS_UM2 = 2500.0
"""Area that no nucleus has (diameter 56 µm): an outline beyond it is that of a region."""

LEAST_HALF_BAND_PX = 0.75
"""So that one pixel at the border of a nucleus is membrane, however coarse the patch."""


@dataclass(frozen=True)
class CellTask:
    """Nuclei by class, with a membrane band each that keeps touching ones apart.

    A point becomes a disc (the nucleus) inside a ring (its membrane); a pixel in reach of several points goes to the
    nearest. An outline becomes a nucleus with a band at its border, half inside and half outside; where outlines
    overlap the later one wins, and the band follows the border that is left. The band parts nuclei that touch, in the
    manner of border classes in nucleus segmentation (Chen 2016). A point in an outline stands for the same nucleus and
    is left out.

    Attributes
    ----------
    classes
        Classes of the nuclei, matched exactly: point annotations, and outlines: polygon annotations, detections, and
        the nuclei of cells (cells without one by their own outline).
    nucleus_radius_um
        Radius of the disc at a point.
    membrane_um
        Width of ring and band. In a nucleus so small that the band would fill it, the inner half ends half-way to its
        centre.
    tumour
        Class of areas whose inside is not labelled by them, nor by those of derived classes; areas of other classes
        hold no nucleus of `classes`.
    training, validation
        Classes of areas inside which every nucleus is marked.

    Raises
    ------
    ConfigError
        If there is no class, one occurs twice or labels nothing, or a length is not above 0.
    """

    classes: tuple[str, ...] = ("Tumor: Positive", "Tumor: Negative")
    nucleus_radius_um: float = 2.5
    membrane_um: float = 2.0
    tumour: str = "Tumor"
    training: str = "Training"
    validation: str = "Validation"

    def __post_init__(self) -> None:
        check_classes(self.classes, (self.training, self.validation))
        for name, value in (("nucleus_radius_um", self.nucleus_radius_um), ("membrane_um", self.membrane_um)):
            if not 0 < value < math.inf:
                raise ConfigError(f"{name} {value:g}", expected="more than 0")

    def class_count(self) -> int:
        """Return 1 + 2 for each class: background, then nucleus and membrane of each."""
        return 1 + 2 * len(self.classes)

    def class_names(self) -> tuple[str, ...]:
        """Return the classes, then ``background``."""
        return (*self.classes, BACKGROUND)

    def area_value(self, name: str) -> tuple[int, int] | None:
        """Return 0 where all nuclei are marked or none is there, :data:`IGNORED` for tumour, None for outlines."""
        if name in self.classes:
            return None
        if name in {self.training, self.validation}:
            return 0, MIDDLE
        return (IGNORED if is_of(name, self.tumour) else 0), BOTTOM

    def label(
        self, image: TrainingImage, window: Window, mpp: float, *, part: Part = "train", hidden: int = IGNORED
    ) -> npt.NDArray[np.uint8]:
        """Return 0 background, 1 + 2 k nucleus and 2 + 2 k membrane of class k; see :meth:`Task.label`.

        Raises
        ------
        TrainingError
            If an outline is far too large for a nucleus.
        """
        mask = annotated_areas(image, self, part).draw(window)
        nuclei = self._nuclei(image)
        drawn = np.zeros_like(mask)
        pixel, point, distance = nuclei.nearest_point(window, (self.nucleus_radius_um + self.membrane_um) / mpp)
        drawn.flat[pixel] = 1 + 2 * nuclei.point_class[point] + (distance > self.nucleus_radius_um / mpp)
        _draw_outlines(drawn, nuclei, window, max(self.membrane_um / 2 / mpp, LEAST_HALF_BAND_PX))
        np.copyto(mask, drawn, where=(drawn > 0) & (mask != HIDDEN))
        np.putmask(mask, mask == HIDDEN, hidden)
        return mask

    def instances(self, image: TrainingImage, window: Window, mpp: float) -> npt.NDArray[np.int32]:
        """Return which pixel belongs to which nucleus: the disc of a point, the whole of an outline.

        Parameters
        ----------
        image
            The slide.
        window
            Its patch has pixels of `mpp` µm.

        Returns
        -------
        numpy.ndarray
            int32 (size, size): 0 for none, else a number that a nucleus has in every window. Areas change nothing,
            hidden ones neither.

        Raises
        ------
        TrainingError
            If an outline is far too large for a nucleus.
        """
        nuclei = self._nuclei(image)
        place, numbers = nuclei.outlines.number(window)
        found = np.append(0, numbers + 1).astype(np.int32)[place]
        radius = self.nucleus_radius_um / mpp
        pixel, point, distance = nuclei.nearest_point(window, radius + 1)
        free = (found.flat[pixel] == 0) & (distance <= radius)
        found.flat[pixel[free]] = len(nuclei.outlines) + 1 + point[free]
        return found

    def nuclei(self, image: TrainingImage, part: Part) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.uint8]]:
        """Return the labelled nuclei of an image that count for a part.

        Returns
        -------
        centre : numpy.ndarray
            float64 (n, 2), level-0 px: points, then middles of the outlines' bounding boxes.
        number : numpy.ndarray
            uint8 (n,), which of :attr:`classes` each is.
        """
        nuclei = self._nuclei(image)
        x0, y0, x1, y1 = nuclei.outlines.bounds.T
        centre = np.concatenate([nuclei.points, np.column_stack([x0 + x1, y0 + y1]) / 2])
        number = np.concatenate([nuclei.point_class, nuclei.outlines.values])
        seen = ~annotated_areas(image, self, part).hides(centre)
        return centre[seen], number[seen]

    def places(self, image: TrainingImage) -> dict[str, Places]:
        """Return the nuclei of each class that are not hidden, and the areas without any; see :meth:`Task.places`."""
        centre, number = self.nuclei(image, "train")
        shapes, values = annotated_areas(image, self, "train").visible()
        radius = self.nucleus_radius_um + self.membrane_um
        found = {name: Places(centre[number == k], shapes[:0], radius) for k, name in enumerate(self.classes)}
        return {**found, BACKGROUND: Places(centre[:0], shapes[values == 0])}

    def _nuclei(self, image: TrainingImage) -> _Nuclei:
        return image.cached(("nuclei", self.classes), lambda: _collect(image, self.classes))


@dataclass(frozen=True)
class _Nuclei:
    """The labelled nuclei of an image: points (n, 2) sorted by x with their class, and outlines with their radius."""

    points: npt.NDArray[np.float64]
    point_class: npt.NDArray[np.uint8]
    outlines: Shapes
    radius: npt.NDArray[np.float32]
    """Of the circle with the area of each outline, level-0 px, as if pixels were square."""

    def nearest_point(
        self, window: Window, reach: float
    ) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp], npt.NDArray[np.float64]]:
        """Return the pixels of a window that are within `reach` px of a point, flat; its nearest point; the distance.

        A pixel occurs more than once only where two points are equally near; the last of them counts.
        """
        left, right = window.x - reach * window.scale[0], window.x + (window.size + reach) * window.scale[0]
        low, high = np.searchsorted(self.points[:, 0], (left, right))
        local = (self.points[low:high] - (window.x, window.y)) / window.scale - 0.5  # pixel centres at whole numbers
        inside = np.flatnonzero((local[:, 1] > -reach - 1) & (local[:, 1] < window.size + reach))
        local = local[inside]
        steps = np.arange(-math.ceil(reach), math.ceil(reach) + 1)
        middle = np.rint(local).astype(np.intp)
        column, row = middle[:, :1] + steps, middle[:, 1:] + steps  # (points, steps)
        distances = np.hypot((row - local[:, 1:])[:, :, None], (column - local[:, :1])[:, None, :])
        near = (distances < reach) & ((row >= 0) & (row < window.size))[:, :, None]
        near &= ((column >= 0) & (column < window.size))[:, None, :]
        point, i, j = np.nonzero(near)
        pixel, distance = row[point, i] * window.size + column[point, j], distances[near]
        shortest = np.full(window.size**2, np.inf)
        np.minimum.at(shortest, pixel, distance)
        won = distance == shortest[pixel]
        return pixel[won], low + inside[point[won]], distance[won]


def _collect(image: TrainingImage, classes: tuple[str, ...]) -> _Nuclei:
    """Return the nuclei of some classes; points that lie in an outline stand for it and are left out."""
    objects = labelled_objects(image)
    numbers = {name: k for k, name in enumerate(classes)}
    objects = objects[np.array([name in numbers for name in objects.name], dtype=bool)]
    number = np.array([numbers[name] for name in objects.name], dtype=np.uint8)
    dimension = shapely.get_dimensions(objects.geometry)
    dotted = (objects.kind == "annotation") & (dimension == 0)
    points, owner = shapely.get_coordinates(objects.geometry[dotted], return_index=True)
    point_class = number[dotted][owner]
    outlined = np.isin(objects.kind.astype(str), ("annotation", "detection", "cell")) & (dimension == 2)
    geometry = objects.geometry[outlined]
    with_nucleus = np.array([nucleus is not None and not nucleus.is_empty for nucleus in objects.nucleus[outlined]])
    geometry = np.where(with_nucleus, objects.nucleus[outlined], geometry) if len(geometry) else geometry
    area = shapely.area(geometry)
    if len(geometry):
        mpp = image.pixel_size()
        largest = int(np.argmax(area))
        if area[largest] * mpp[0] * mpp[1] > LARGEST_NUCLEUS_UM2:
            raise TrainingError(
                f"{image.title}: an outline of the class {classes[number[outlined][largest]]!r} covers "
                f"{area[largest] * mpp[0] * mpp[1]:.0f} µm²",
                expected=f"outlines of single nuclei, at most {LARGEST_NUCLEUS_UM2:.0f} µm²",
                remedy="give areas another class, such as Tumor",
            )
        covered = shapely.STRtree(geometry).query(shapely.points(points), predicate="intersects")[0]
        points, point_class = np.delete(points, covered, axis=0), np.delete(point_class, covered)
    order = np.argsort(points[:, 0], kind="stable")
    radius = np.sqrt(area / np.pi).astype(np.float32)
    outlines = Shapes(geometry, number[outlined], dtype=np.float32)
    return _Nuclei(points[order], point_class[order], outlines, radius)


def _draw_outlines(drawn: npt.NDArray[np.uint8], nuclei: _Nuclei, window: Window, half: float) -> None:
    """Draw the outlines that touch a window over the points: nucleus, and band of `half` px to either side."""
    margin = math.ceil(half) + 1
    place, found = nuclei.outlines.number(window.padded(margin))
    if len(found) == 0:
        return
    class_of = np.append(0, nuclei.outlines.values[found] + 1).astype(np.uint8)  # 0 for none
    steps = _steps(half + 0.5)
    border, around = _nearness(place, class_of[place], steps)
    radius = nuclei.radius[found] / math.sqrt(window.scale[0] * window.scale[1])
    far = np.searchsorted([length for _, _, length in steps], np.minimum(half, radius / 2) + 0.5)
    least = np.append(0, len(steps) - far + 1).astype(np.uint8)  # nearness from which on a pixel is membrane
    cut = slice(margin, -margin)
    place, border, around = place[cut, cut], border[cut, cut], around[cut, cut]
    nucleus = 2 * class_of - 1  # of the places; 255 for none
    inside = nucleus[place] + (border >= least[place])
    np.copyto(drawn, 2 * around, where=(place == 0) & (around > 0) & (drawn % 2 == 0))  # a point's disc stays whole
    np.copyto(drawn, inside, where=place > 0)


def _steps(reach: float) -> list[tuple[int, int, float]]:
    """Return the steps (down, right) that are shorter than `reach` px, one of each opposite pair, nearest first."""
    most = math.ceil(reach)
    steps = [(y, x, math.hypot(y, x)) for y in range(most + 1) for x in range(-most, most + 1) if y > 0 or x > 0]
    return sorted((step for step in steps if step[2] < reach), key=lambda step: step[2])


def _nearness(
    place: npt.NDArray[np.uint16], class_of: npt.NDArray[np.uint8], steps: list[tuple[int, int, float]]
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    """Compare a map with itself, shifted by each step; wrong in a margin as wide as the longest.

    Parameters
    ----------
    place, class_of
        Which nucleus each pixel belongs to, and its class; 0 for none. (size, size).
    steps
        Fewer than 255, nearest first.

    Returns
    -------
    border : numpy.ndarray
        uint8 (size, size): how near another nucleus, or none, is: the number of steps for the first of them, 1 for the
        last, 0 beyond.
    around : numpy.ndarray
        uint8 (size, size): the class of the nearest pixel that has one, 0 if there is none within the steps.
    """
    size = place.shape[1]
    flat, border = place.reshape(-1), np.zeros(place.size, dtype=np.uint8)
    ranked, classed = np.zeros(place.size, dtype=np.uint16), class_of.reshape(-1).astype(np.uint16)
    occupied = (classed > 0).astype(np.uint16) << 8
    for nearness, (down, right, _) in enumerate(reversed(steps), start=1):
        step = down * size + right
        here, there = slice(None, -step), slice(step, None)
        differs = (flat[here] != flat[there]).view(np.uint8) * np.uint8(nearness)
        for one, two in ((here, there), (there, here)):
            np.maximum(border[one], differs, out=border[one])
            np.maximum(ranked[one], occupied[two] * np.uint16(nearness) + classed[two], out=ranked[one])
    return border.reshape(place.shape), (ranked & 255).astype(np.uint8).reshape(place.shape)
