"""All images of a comparison, one after the other; nothing is written."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from pyhisto.errors import PyhistoError
from pyhisto.metrics import Reliability, reliability
from qupath_ext.errors import ProjectError
from qupath_ext.workflows.evaluation.areas import Area, area_to_compare, image_mpp
from qupath_ext.workflows.evaluation.cells import Cells, compare_cells, match_cells, to_cells
from qupath_ext.workflows.evaluation.figures import ANY, CELL_METRICS, TISSUE_METRICS, ImageSums, figures
from qupath_ext.workflows.evaluation.settings import UNCLASSIFIED, EvaluationSettings
from qupath_ext.workflows.evaluation.sources import Image, Source
from qupath_ext.workflows.evaluation.tissue import Tissue, compare_tissue, to_tissue
from qupath_ext.workflows.trainingdata import patient_of

if TYPE_CHECKING:
    from qupath_ext.entry import ImageEntry
    from qupath_ext.project import Project

__all__ = ["BINS", "Evaluation", "Sides", "compare_images", "read_sides"]

BINS = 10
"""Of the reliability curve."""

Confusion = Counter[tuple[str | None, str | None]]


@dataclass(frozen=True)
class Sides:
    """Both sides of one image, and where they are compared."""

    area: Area
    mpp: tuple[float, float]
    found: Cells | Tissue
    truth: Cells | Tissue


@dataclass
class Evaluation:
    """What a comparison found.

    Attributes
    ----------
    prediction, reference, settings
        What was compared, and how.
    images
        What was counted on each image that was compared.
    areas_mm2
        Size of the compared area of each of them, mm².
    limited
        Number of them in which only annotated regions were compared.
    left_out, failed
        Name of an image and why it was not compared: because it has not both sides, or because something is wrong.
    confusion
        (true class, found class) to cells or µm²; None for what the other side lacks.
    curve
        Reliability of the class probabilities; None if no object has one.
    table
        All figures, see :func:`.figures.figures`.
    """

    prediction: Source
    reference: Source
    settings: EvaluationSettings
    images: list[ImageSums] = field(default_factory=list)
    areas_mm2: list[float] = field(default_factory=list)
    limited: int = 0
    left_out: list[tuple[str, str]] = field(default_factory=list)
    failed: list[tuple[str, str]] = field(default_factory=list)
    confusion: Confusion = field(default_factory=Counter)
    curve: Reliability | None = None
    table: pd.DataFrame = field(default_factory=pd.DataFrame)

    @property
    def patients(self) -> list[str]:
        """The patients, by name."""
        return sorted({image.patient for image in self.images})


def read_sides(image: Image, prediction: Source, reference: Source, settings: EvaluationSettings) -> Sides | str:
    """Read both sides of an image; where it cannot be compared, say why.

    Raises
    ------
    PyhistoError
        If something of the image cannot be read.
    """
    truth = reference.read(image)
    if truth is None:
        return "the reference does not have it"
    found = prediction.read(image)
    if found is None:
        return "the prediction does not have it"
    area = area_to_compare(image, reference, truth, settings)
    if area is None:
        return f"no annotation of the class {settings.region}" if settings.region else "nothing is labelled in it"
    if area.shape.is_empty:
        return "nothing of it is left to compare: all is ignored"
    mpp = image_mpp(image, settings)
    if settings.task == "tissue":
        both = (to_tissue(found, settings, mpp=mpp, mapping=settings.mapping), to_tissue(truth, settings, mpp=mpp))
        return Sides(area, mpp, *both)
    return Sides(
        area,
        mpp,
        to_cells(found, settings, area=area.shape, mpp=mpp, mapping=settings.mapping),
        to_cells(truth, settings, area=area.shape, mpp=mpp),
    )


def compare_images(
    project: Project,
    entries: Sequence[ImageEntry],
    prediction: Source,
    reference: Source,
    settings: EvaluationSettings,
    *,
    progress: Callable[[str, int, int], None] | None = None,
    matched: Callable[[ImageEntry, pd.DataFrame], None] | None = None,
) -> Evaluation:
    """Compare two sources on images of a project.

    Parameters
    ----------
    project, entries
        The project and those of its images that are wanted.
    prediction, reference
        What is judged, and by what.
    settings
        See :class:`.settings.EvaluationSettings`.
    progress
        Called with the stage, the number of images done and the number in all.
    matched
        Called with each image and the table of :func:`.cells.match_cells`.

    Returns
    -------
    Evaluation
        An image that cannot be read is named in ``failed`` and stops nothing.

    Raises
    ------
    ProjectError
        If both sources are the same, or no image can be compared.
    """
    if prediction.key == reference.key:
        raise ProjectError(f"both sides are {reference.key}", expected="two different sources")
    out = Evaluation(prediction, reference, settings)
    for number, entry in enumerate(entries, start=1):
        image = Image(project, entry)
        try:
            sides = read_sides(image, prediction, reference, settings)
            if isinstance(sides, str):
                out.left_out.append((entry.name, sides))
            else:
                _compare(out, entry, sides)
                if matched is not None and isinstance(sides.found, Cells) and isinstance(sides.truth, Cells):
                    matched(entry, match_cells(sides.found, sides.truth, settings.radius_um))
        except PyhistoError as error:
            out.failed.append((entry.name, str(error)))
        if progress is not None:
            progress("images", number, len(entries))
    if not out.images:
        (name, reason), *_ = [*out.failed, *out.left_out, ("the project", "it has no images")]
        raise ProjectError(
            f"none of {len(entries)} images can be compared ({name}: {reason})",
            expected="images that both the prediction and the reference have",
        )
    images = out.images
    if settings.task == "cells" and _only_one_classified(out.confusion):
        images = [replace(image, by_class={ANY: image.by_class[ANY]}) for image in images]
    metrics = TISSUE_METRICS if settings.task == "tissue" else CELL_METRICS
    out.table = figures(images, metrics, resamples=settings.resamples, seed=settings.seed)
    return out


def _only_one_classified(confusion: Confusion) -> bool:
    """Return whether one side has classes and the other has none, so that figures of a class would all be 0."""
    sides = [{pair[side] for pair in confusion} - {None} for side in (0, 1)]
    return {UNCLASSIFIED} in sides and sides[0] != sides[1] and all(sides)


def _compare(out: Evaluation, entry: ImageEntry, sides: Sides) -> None:
    """Count what is on one image, and add it to what was counted."""
    settings = out.settings
    result: Any
    if isinstance(sides.found, Cells) and isinstance(sides.truth, Cells):
        result = compare_cells(sides.found, sides.truth, area=sides.area.shape, radius_um=settings.radius_um)
        if len(result.probability):
            curve = reliability(np.clip(result.probability, 0, 1), result.right, bins=BINS)
            out.curve = curve if out.curve is None else out.curve + curve
    elif isinstance(sides.found, Tissue) and isinstance(sides.truth, Tissue):
        result = compare_tissue(sides.found, sides.truth, area=sides.area.shape)
    out.images.append(ImageSums(entry.name, entry.id, patient_of(entry, settings.patient_key), result.sums))
    out.areas_mm2.append(sides.area.mm2)
    out.limited += sides.area.drawn
    out.confusion.update(result.confusion)
