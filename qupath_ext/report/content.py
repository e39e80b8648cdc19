"""What a report says, before it becomes a page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from pyhisto.metrics import DetectionScore, Index

__all__ = ["Ki67Report", "SlideReport", "TruthReport"]


@dataclass(frozen=True)
class TruthReport:
    """How far a result is from a known truth.

    Attributes
    ----------
    index_percent
        The true Ki-67 index, percent; NaN if the truth has no tumour cell.
    tumour_dice
        Dice coefficient of the tumour area, 0 to 1.
    positive, negative
        How well cells of each class were found.
    """

    index_percent: float
    tumour_dice: float
    positive: DetectionScore
    negative: DetectionScore


@dataclass(frozen=True)
class SlideReport:
    """The result on one slide.

    Attributes
    ----------
    name
        Of the slide, as the project shows it.
    index
        The Ki-67 index with its interval; its percent is NaN where no cell was found.
    tumour_area_mm2
        Area in which cells were counted, mm²; NaN if not known.
    cells_per_mm2
        Counted cells to 1 mm² of that area; NaN if there is no area.
    overview_png, detail_png
        PNG files' bytes: the whole slide, and one field of it where there is one to show.
    stains
        Stain name to its vector, in words.
    settings
        Setting to value, in words.
    notes, warnings
        Sentences; warnings are what the reader must know before using the numbers.
    truth
        Comparison with a known truth, where there is one.
    """

    name: str
    index: Index
    tumour_area_mm2: float
    cells_per_mm2: float
    overview_png: bytes
    detail_png: bytes | None = None
    stains: Mapping[str, str] = field(default_factory=dict)
    settings: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    truth: TruthReport | None = None


@dataclass(frozen=True)
class Ki67Report:
    """A report on one or more slides.

    Attributes
    ----------
    title
        Heading of the page.
    created
        Date and time, in words.
    software
        Name to version.
    models
        Name to the SHA-256 of the weights, or to what stands in their place (``"classical detector, no weights"``).
    project
        Path of the project to open in QuPath.
    curves
        Name to one number a training step, such as the loss; may be empty.
    slides
        One result a slide.
    """

    title: str
    created: str
    software: Mapping[str, str]
    models: Mapping[str, str]
    project: str
    slides: tuple[SlideReport, ...]
    curves: Mapping[str, Sequence[float]] = field(default_factory=dict)
