"""How good a model is on the patients that no round learns from."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import shapely

from pyhisto.bundle.files import Bundle
from pyhisto.dataset import CellTask, TissueTask, TrainingImage
from pyhisto.dataset.areas import annotated_areas
from pyhisto.inference import PLAIN, predict_tissue
from pyhisto.metrics import Interval, jackknife_interval, polygon_confusion
from pyhisto.objects import empty_objects
from qupath_ext.active.curve import mean_score
from qupath_ext.workflows.finetuning import judged_cells
from qupath_ext.workflows.regions import labelled_to_search

__all__ = ["Counted", "count_images", "figure", "figures"]


@dataclass(frozen=True)
class Counted:
    """What a model was right about on one image.

    Attributes
    ----------
    image, patient
        Which one.
    by_class
        Class to what both sides have, what was found and what is true: cells, or µm².
    """

    image: str
    patient: str
    by_class: Mapping[str, tuple[float, float, float]]


def count_images(images: Sequence[TrainingImage], model: Bundle, task: CellTask | TissueTask) -> list[Counted]:
    """Compare what a model finds where images are labelled with what is labelled.

    Tissue is compared in exact areas, as ``qupath-ext annotate`` would draw it: it looks for nothing on glass or pen
    marks. Cells are compared by their centres, one to one.

    Parameters
    ----------
    images
        Annotated slides, as the model sees them; those without a labelled area give nothing.
    model
        A model for the classes of the task.
    task
        What the annotations say.

    Raises
    ------
    SlideError
        If a slide cannot be read.
    """
    out = []
    for image in images:
        whole = dataclasses.replace(image, part="validation")  # everything on it counts
        counts = _cells(whole, model, task) if isinstance(task, CellTask) else _tissue(whole, model, task)
        if counts is not None:
            out.append(Counted(image.title, image.patient or image.title, dict(zip(task.classes, counts, strict=True))))
    return out


def _cells(image: TrainingImage, model: Bundle, task: CellTask) -> list[tuple[float, float, float]] | None:
    compared = judged_cells([image], model, task, "validation")
    if not compared:
        return None
    return [
        (s.true_positive, s.true_positive + s.false_positive, s.true_positive + s.false_negative)
        for s in compared[0].by_class
    ]


def _tissue(image: TrainingImage, model: Bundle, task: TissueTask) -> list[tuple[float, float, float]] | None:
    truth, value = annotated_areas(image, task, "validation").visible()
    area = shapely.union_all(truth)
    if area.is_empty:
        return None
    with image.open() as slide:
        region = labelled_to_search(slide, area)
        lens = image.lens or PLAIN
        found = empty_objects() if region.is_empty else predict_tissue(slide, model, region, lens=lens)
        um2 = math.prod(slide.mpp)
    number = {name: 1 + place for place, name in enumerate(task.classes)}
    table = um2 * polygon_confusion(
        found.geometry.to_numpy(),
        [number[name] for name in found["classification"]],
        truth,
        value,
        classes=1 + len(task.classes),
        area=area,
    )
    return [(float(table[k, k]), float(table[:, k].sum()), float(table[k].sum())) for k in number.values()]


def figure(counted: Sequence[Counted], classes: Sequence[str]) -> Interval:
    """Return the mean Dice (or F1) of some classes over images taken together, with its interval over patients.

    The interval is that of :func:`pyhisto.metrics.jackknife_interval`, cut at 0 and 1.
    """
    sums = np.array([[one.by_class[name] for name in classes] for one in counted], dtype=np.float64)
    shape = (-1, len(classes), 3)
    found = jackknife_interval(
        sums.reshape(len(counted), 3 * len(classes)),
        [one.patient for one in counted],
        lambda drawn: mean_score(drawn.reshape(shape)),
    )
    return dataclasses.replace(found, low=max(found.low, 0.0), high=min(found.high, 1.0))


def figures(counted: Sequence[Counted], task: CellTask | TissueTask) -> dict[str, Any] | None:
    """Return the figures of some images as JSON types; None without images.

    Returns
    -------
    dict
        ``metric`` (``"F1"`` or ``"Dice"``), ``value``, ``low``, ``high`` (mean of the classes; None where there is no
        such number), ``patients``, ``method`` (of the interval), ``classes`` (class to value, low and high) and
        ``images`` (``image``, ``patient``, ``by_class``: what both sides have, what was found, what is true).
    """
    if not counted:
        return None
    mean = figure(counted, task.classes)
    return {
        "metric": "F1" if isinstance(task, CellTask) else "Dice",
        **_numbers(mean),
        "patients": mean.patients,
        "method": mean.method,
        "classes": {name: _numbers(figure(counted, [name])) for name in task.classes},
        "images": [
            {
                "image": one.image,
                "patient": one.patient,
                "by_class": {k: [round(x, 2) for x in v] for k, v in one.by_class.items()},
            }
            for one in counted
        ],
    }


def _numbers(found: Interval) -> dict[str, float | None]:
    numbers = {"value": found.value, "low": found.low, "high": found.high}
    return {name: round(x, 5) if math.isfinite(x) else None for name, x in numbers.items()}
