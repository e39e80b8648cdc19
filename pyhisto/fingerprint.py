"""What a training is planned from: the fingerprint of the annotations, and the machine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["ClassFacts", "Facts", "Kind", "Machine"]

Kind = Literal["cells", "tissue"]


@dataclass(frozen=True)
class ClassFacts:
    """One class to learn: its number of objects, and the area of its polygons in mm²."""

    name: str
    objects: int
    area_mm2: float


@dataclass(frozen=True)
class Facts:
    """The fingerprint of the annotations.

    Attributes
    ----------
    kind, classes
        What is to be learnt.
    slides, patients
        Numbers of them in training and validation.
    slide_mpp
        Pixel size of the coarsest slide, µm.
    labelled_mm2, slide_mm2
        Area that annotations label, and that of all slides.
    size_um, large_um
        Median and 99th percentile of the diameter of polygons of the classes (of a disc of the same area). Where there
        are only points, the median as the nuclei measure on the slides, and no percentile; None if that failed too.
    spacing_um
        Median distance from a cell to the next; None with fewer than 2.
    white_spread
        Standard deviation of the slides' white points in optical density, mean of the channels.
    areas_vary
        Largest by smallest labelled area of a slide.
    validation_areas
        Number of areas set aside for validation by annotation.
    """

    kind: Kind
    classes: tuple[ClassFacts, ...]
    slides: int
    patients: int
    slide_mpp: float
    labelled_mm2: float
    slide_mm2: float
    size_um: float | None = None
    large_um: float | None = None
    spacing_um: float | None = None
    white_spread: float = 0.0
    areas_vary: float = 1.0
    validation_areas: int = 0

    @property
    def objects(self) -> int:
        """Objects of all classes."""
        return sum(c.objects for c in self.classes)


@dataclass(frozen=True)
class Machine:
    """What the training runs on: device, CPU cores, its memory in GiB, and the minutes there are."""

    device: str
    cores: int
    memory_gib: float
    minutes: float
