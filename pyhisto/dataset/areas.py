"""Annotated areas: which of them count for which part, how they are drawn, and what they leave labelled."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import shapely

from pyhisto.dataset.images import HIDDEN, IGNORED, Part, TrainingImage, Window, labelled_objects
from pyhisto.dataset.shapes import Shapes

__all__ = ["BOTTOM", "MIDDLE", "AreaRules", "Areas", "annotated_areas", "labelled_areas"]

BOTTOM, MIDDLE, TOP = 0, 1, 2
"""Layers of a label mask, drawn one after the other; in each, the later annotation wins."""


class AreaRules(Protocol):
    """What a task makes of areas; hashable."""

    @property
    def validation(self) -> str:
        """Class of the areas that are held out on training slides."""

    def area_value(self, name: str) -> tuple[int, int] | None:
        """Return the label of an area of this class and the layer it is drawn in; None if it is no area."""


class Areas:
    """The annotated areas of one image for one part.

    Parameters
    ----------
    image
        The slide.
    rules
        Decides the value and the layer of each class.
    part
        What the labels are for. On a slide of the training part, ``"train"`` hides the held-out areas and
        ``"validation"`` all else; on any other slide all areas count for its own part, none for another.
    """

    def __init__(self, image: TrainingImage, rules: AreaRules, part: Part) -> None:
        areas = labelled_objects(image).areas
        hides = image.part == "train" and part == "train"

        def value(name: str) -> tuple[int, int] | None:
            if name.endswith("*") or (hides and name == rules.validation):
                return HIDDEN, TOP
            return rules.area_value(name)

        values = {name: value(name) for name in dict.fromkeys(areas.name)}
        known = {name: found for name, found in values.items() if found is not None}
        areas = areas[np.array([name in known for name in areas.name], dtype=bool)]
        layers = np.array([known[name][1] for name in areas.name], dtype=np.int8)
        order = np.argsort(layers, kind="stable")
        self._geometry = areas.geometry[order]
        self._value = np.array([known[name][0] for name in areas.name], dtype=np.uint8)[order]
        self._shapes = Shapes(self._geometry, self._value)
        self._frame: Shapes | None = None
        framing = (areas.name == rules.validation) & (image.part == "train") & (part == "validation")
        self._framing = areas.geometry[framing]
        if part != image.part:
            self._frame = Shapes(self._framing, np.ones(len(self._framing), dtype=bool))

    def draw(self, window: Window) -> npt.NDArray[np.uint8]:
        """Return uint8 (size, size): the values of the areas, :data:`HIDDEN` or :data:`IGNORED`."""
        mask = np.full((window.size, window.size), IGNORED, dtype=np.uint8)
        self._shapes.draw(mask, window)
        if self._frame is not None:
            counted = np.zeros(mask.shape, dtype=bool)
            self._frame.draw(counted, window)
            mask[~counted] = HIDDEN
        return mask

    def hides(self, points: npt.NDArray[np.float64]) -> npt.NDArray[np.bool_]:
        """Return which of the points (n, 2), level-0 px, lie where nothing counts: bool (n,)."""
        hidden = _covered(points, self._geometry[self._value == HIDDEN])
        return hidden if self._frame is None else hidden | ~_covered(points, self._framing)

    def visible(self) -> tuple[npt.NDArray[np.object_], npt.NDArray[np.uint8]]:
        """Return what is labelled, without what later or hidden areas cover of it.

        Returns
        -------
        geometry : numpy.ndarray
            One Polygon or MultiPolygon an annotation (n,), level-0 px.
        value : numpy.ndarray
            uint8 (n,), the label of each.
        """
        shapes = _valid(self._geometry)
        covers: dict[int, list[int]] = {}
        for under, over in zip(*shapely.STRtree(shapes).query(shapes, predicate="intersects").tolist(), strict=True):
            if over > under:
                covers.setdefault(under, []).append(over)
        labelled = np.flatnonzero(self._value < HIDDEN)
        seen = shapes[labelled]
        for place, number in enumerate(labelled.tolist()):
            if number in covers:
                seen[place] = shapely.difference(seen[place], shapely.union_all(shapes[covers[number]]))
        if self._frame is not None:
            seen = shapely.intersection(seen, shapely.union_all(_valid(self._framing)))
        filled = shapely.area(seen) > 0
        return _polygonal(seen[filled]), self._value[labelled][filled]


def annotated_areas(image: TrainingImage, rules: AreaRules, part: Part) -> Areas:
    """Return the areas of an image for a part, made once."""
    return image.cached(("areas", rules, part), lambda: Areas(image, rules, part))


def labelled_areas(image: TrainingImage, rules: AreaRules, part: Part) -> list[Any]:
    """Return where the annotated areas of an image say what there is, for a part.

    Parameters
    ----------
    image
        The slide.
    rules
        A task.
    part
        See :class:`Areas`: ``"validation"`` gives the ``Validation`` areas of a training slide, and everything that is
        labelled on a slide of the validation part.

    Returns
    -------
    list of shapely.Polygon
        Level-0 px, apart from each other; without what ``Ignore*`` hides, or is of no label (such as tumour without
        its cells).
    """
    shapes, _ = annotated_areas(image, rules, part).visible()
    return [part for part in shapely.get_parts(shapely.union_all(shapes)) if part.area > 0]


def _covered(points: npt.NDArray[np.float64], polygons: npt.NDArray[np.object_]) -> npt.NDArray[np.bool_]:
    covered = np.zeros(len(points), dtype=bool)
    covered[shapely.STRtree(polygons).query(shapely.points(points), predicate="intersects")[0]] = True
    return covered


def _valid(geometry: npt.NDArray[np.object_]) -> npt.NDArray[np.object_]:
    """Return the geometries (n,), those that cross themselves repaired; a copy."""
    out = geometry.copy()
    bad = ~shapely.is_valid(out)
    out[bad] = shapely.make_valid(out[bad])
    return _polygonal(out)


def _polygonal(geometry: npt.NDArray[np.object_]) -> npt.NDArray[np.object_]:
    """Return the geometries (n,) without the lines and points that cutting leaves beside polygons."""
    out = geometry.copy()
    for number in np.flatnonzero(shapely.get_type_id(out) == shapely.GeometryType.GEOMETRYCOLLECTION).tolist():
        parts = shapely.get_parts(shapely.get_parts(out[number]))
        out[number] = shapely.multipolygons(parts[shapely.get_type_id(parts) == shapely.GeometryType.POLYGON])
    return out
