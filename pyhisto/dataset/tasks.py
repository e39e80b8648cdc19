"""What is learnt from annotations: label masks for windows of a slide.

What an annotation says (QuPath's habits):

* a polygon of a class says that everything inside is of that class; where polygons overlap, the later one wins;
* a point annotation of a class says that a nucleus of that class has its centre there;
* inside a polygon of the class ``Training`` or ``Validation`` everything counts as labelled: what nobody marked there
  is background;
* what lies in a ``Validation`` polygon of a training slide is held out: never trained on, and used to measure with;
* a class that ends in an asterisk (``Ignore*``, ``Region*``) labels nothing, and hides all that it covers;
* all the rest of the slide is not labelled and does not count.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from pyhisto.dataset.areas import BOTTOM, MIDDLE, AreaRules, annotated_areas
from pyhisto.dataset.images import HIDDEN, IGNORED, Part, TrainingImage, Window, is_of
from pyhisto.errors import ConfigError

__all__ = ["BACKGROUND", "Places", "Task", "TissueTask", "check_classes"]

BACKGROUND = "background"
"""What class 0 is called."""


@dataclass(frozen=True)
class Places:
    """Where one class is on one image, level-0 px.

    Attributes
    ----------
    points
        Centres of nuclei, float64 (n, 2).
    polygons
        shapely Polygons or MultiPolygons, one an annotation (m,).
    point_radius_um
        Radius of what a point stands for.
    """

    points: npt.NDArray[np.float64]
    polygons: npt.NDArray[np.object_]
    point_radius_um: float = 0.0


class Task(AreaRules, Protocol):
    """What is learnt: turns annotations into label masks and says where to look for each class."""

    def class_count(self) -> int:
        """Return the number of output classes, background included."""

    def class_names(self) -> tuple[str, ...]:
        """Return the names that patches are drawn by: the classes to learn, then ``background``."""

    def label(
        self, image: TrainingImage, window: Window, mpp: float, *, part: Part = "train", hidden: int = IGNORED
    ) -> npt.NDArray[np.uint8]:
        """Return the label mask of a window.

        Parameters
        ----------
        image
            The slide.
        window
            Its patch has pixels of `mpp` µm.
        part
            What the labels are for; see :class:`pyhisto.dataset.areas.Areas`.
        hidden
            Value of the pixels that an ``Ignore*`` covers or that are held out.

        Returns
        -------
        numpy.ndarray
            uint8 (size, size): class numbers, :data:`IGNORED` where nothing is labelled.
        """

    def places(self, image: TrainingImage) -> dict[str, Places]:
        """Return, for each of :meth:`class_names`, where on the image to take training patches of it."""


@dataclass(frozen=True)
class TissueTask:
    """Kinds of tissue, from polygons.

    Attributes
    ----------
    classes
        Classes to learn, each with those derived from it; the longest name that fits wins. Polygons of any other class
        are background.
    training, validation
        Classes of polygons inside which everything counts as labelled.

    Raises
    ------
    ConfigError
        If there is no class, one occurs twice, or one ends in an asterisk.
    """

    classes: tuple[str, ...] = ("Tumor",)
    training: str = "Training"
    validation: str = "Validation"

    def __post_init__(self) -> None:
        check_classes(self.classes, (self.training, self.validation))

    def class_count(self) -> int:
        """Return the number of classes, background included."""
        return 1 + len(self.classes)

    def class_names(self) -> tuple[str, ...]:
        """Return the classes, then ``background``."""
        return (*self.classes, BACKGROUND)

    def area_value(self, name: str) -> tuple[int, int] | None:
        """Return 1 + the number of the class, or 0, above the ``Training`` rectangles."""
        if name in {self.training, self.validation}:
            return 0, BOTTOM
        fitting = [own for own in self.classes if is_of(name, own)]
        return (1 + self.classes.index(max(fitting, key=len)) if fitting else 0), MIDDLE

    def label(
        self, image: TrainingImage, window: Window, mpp: float, *, part: Part = "train", hidden: int = IGNORED
    ) -> npt.NDArray[np.uint8]:
        """Return 1 + the number of the class, 0 for other annotated classes; see :meth:`Task.label`."""
        del mpp
        mask = annotated_areas(image, self, part).draw(window)
        np.putmask(mask, mask == HIDDEN, hidden)
        return mask

    def places(self, image: TrainingImage) -> dict[str, Places]:
        """Return the visible parts of the polygons of each class; see :meth:`Task.places`."""
        shapes, values = annotated_areas(image, self, "train").visible()
        numbers = (*range(1, 1 + len(self.classes)), 0)
        none = np.empty((0, 2))
        return {
            name: Places(none, shapes[values == number])
            for name, number in zip(self.class_names(), numbers, strict=True)
        }


def check_classes(classes: tuple[str, ...], reserved: Iterable[str]) -> None:
    """Refuse a list of classes that cannot be learnt.

    Raises
    ------
    ConfigError
        If there is none, one occurs twice, ends in an asterisk, or has a reserved name.
    """
    if not classes:
        raise ConfigError("no class to learn", expected="at least one")
    for name in classes:
        if classes.count(name) > 1:
            raise ConfigError(f"class {name!r} occurs twice", expected="different classes")
        if not name or name.endswith("*") or name in {*reserved, BACKGROUND}:
            raise ConfigError(
                f"class {name!r} cannot be learnt", expected="the class of annotations that label something"
            )
