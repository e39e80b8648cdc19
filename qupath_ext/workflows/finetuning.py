"""Going on from a model: its view of the new slides, and whether that brings anything."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import cast

import numpy as np
import shapely

from pyhisto.bundle.files import Bundle
from pyhisto.bundle.spec import ModelSpec
from pyhisto.dataset import CellTask, TrainingImage, labelled_areas
from pyhisto.dataset.images import Part
from pyhisto.errors import TrainingError
from pyhisto.inference import PLAIN
from pyhisto.metrics import DetectionComparison, compare_detections
from pyhisto.nuclei.adapt import View, adapt
from pyhisto.nuclei.network import predict_cells
from pyhisto.nuclei.survey import expected_stains
from pyhisto.objects import empty_objects
from pyhisto.stain import H_DAB
from pyhisto.train import train
from pyhisto.train.distributed import is_first
from qupath_ext.frames import open_slide
from qupath_ext.study import TrainStudy
from qupath_ext.workflows.regions import labelled_to_search
from qupath_ext.workflows.slidememory import SlideMemory
from qupath_ext.workflows.surveys import Surveys, entry_stains
from qupath_ext.workflows.training import initial_network, model_spec, start_of, training_patches, with_start
from qupath_ext.workflows.trainingdata import Source

__all__ = ["clear_parts", "cross_validate", "judged_cells", "seen_as_before"]

RADIUS_UM = 4.0
"""Farthest that a cell that was found may be from the labelled one, times the size factor of the slide."""

PART = "cross-validation-"
"""Folders of the trainings that judge, by the number of the part they leave out."""

WORSE = (
    "worse than the model it goes on from, or no better, on patients that it did not learn from: keep that model, try "
    "qupath-ext calibrate, or annotate more"
)

Say = Callable[[str], None]


def seen_as_before(
    sources: Sequence[Source],
    images: Sequence[TrainingImage],
    spec: ModelSpec,
    say: Say,
    *,
    remember: bool = False,
) -> list[TrainingImage]:
    """Return images as ``annotate`` would show them to a model, so that its training goes on from what it can do there.

    Parameters
    ----------
    sources, images
        All images that are annotated, as they stand in their projects and as slides; in the same order. Small ones are
        looked at together with others of their project, but for those to test on, which stay as they are.
    spec
        The model.
    say
        Called with lines about what was found.
    remember
        Keep what is measured on the slides in their projects, for the next time.

    Raises
    ------
    SlideError
        If a slide cannot be read.
    """
    if spec.stains is None and spec.nucleus_diameter_um is None:
        say(f"  the model does not say what it was trained on: it sees the {len(images)} slides as they are")
        return list(images)
    surveys = _surveys(sources, images, spec, remember)
    out = []
    notes: dict[str, None] = {}
    for source, image in zip(sources, images, strict=True):
        if image.part == "test":
            out.append(image)
            continue
        with open_slide(source.entry) as slide:
            survey = surveys[source.project.path].of(source.entry, slide, entry_stains(source.entry, "auto"))
        adaptation = adapt(spec, survey, View())
        notes |= dict.fromkeys(adaptation.notes)
        lens = adaptation.lens
        stains = image.stains if lens.colours is None or spec.stains is None else spec.stains.stains
        out.append(dataclasses.replace(image, lens=None if lens == PLAIN else lens, stains=stains))
    seen = [image for image in out if image.part != "test"]
    coloured = sum(image.lens is not None and image.lens.colours is not None for image in seen)
    scaled = sum(image.lens is not None and image.lens.size != 1 for image in seen)
    say(
        f"  seen as annotate shows them: {coloured} of {len(seen)} slides in the stain colours of its training slides, "
        f"{scaled} scaled to a size of nuclei that it knows"
    )
    for note in notes:
        say(f"  {note}")
    return out


def _surveys(
    sources: Sequence[Source], images: Sequence[TrainingImage], spec: ModelSpec, remember: bool
) -> dict[Path, Surveys]:
    """Return what looks at the images of each project, by the project's file."""
    tested = [(s.project.path, s.entry.id) for s, image in zip(sources, images, strict=True) if image.part == "test"]
    projects = {source.project.path: source.project for source in sources}
    return {
        path: Surveys(
            [entry for entry in project.entries if (path, entry.id) not in tested],
            "auto",
            reference=expected_stains(c.classification for c in spec.classes),
            nuclei=spec.nucleus_diameter_um is not None,
            memory=SlideMemory(path.parent) if remember else None,
        )
        for path, project in projects.items()
    }


def cross_validate(
    images: Sequence[TrainingImage],
    study: TrainStudy,
    init: Bundle,
    work: Path,
    *,
    device: str,
    say: Say,
) -> dict[str, float]:
    """Judge a cell model, and what this training makes of it, on patients that it was not trained on.

    The patients are dealt out to ``study.cross_validation`` parts, and each part is judged by a training on the others.
    Cells count where every one is labelled: in the labelled areas of the training part.

    Parameters
    ----------
    images
        Annotated slides, as the model sees them.
    study
        What is learnt and how.
    init
        The model to go on from.
    work
        Gets a folder for each part; a killed training goes on from there.
    device
        ``"cpu"``, ``"cuda"`` or ``"mps"``.
    say
        Called with the result.

    Returns
    -------
    dict
        F1 of all cells whatever their class and mean F1 of the classes, before and after; empty in other processes than
        the first, and where no area is labelled.
    """
    learnt = [image for image in images if image.part == "train"]
    spec, parts = model_spec(study, init.spec), study.cross_validation
    patients = sorted({image.patient or image.title for image in learnt})
    number = [patients.index(image.patient or image.title) % parts for image in learnt]
    try:
        if not any(labelled_areas(image, study.task(), "train") for image in learnt):
            raise TrainingError("no area in which every cell is labelled, such as a Training rectangle")
        patches = [
            training_patches([image for image, own in zip(learnt, number, strict=True) if own != part], study, spec)
            for part in range(parts)
        ]
    except TrainingError as error:
        say(f"not cross-validated: {error}")
        return {}
    task = cast(CellTask, study.task())  # a study cross-validates cells alone
    before: list[DetectionComparison] = []
    after: list[DetectionComparison] = []
    for part, dataset in enumerate(patches):
        network = initial_network(spec, study, init, _unsaid)
        start = start_of(network, spec, study, init)
        train(network, dataset, spec, study.training, work / f"{PART}{part}", device=device)
        with_start(network, start, study.start_share)
        if is_first():
            judged = [image for image, own in zip(learnt, number, strict=True) if own == part]
            before += judged_cells(judged, init, task, "train")
            after += judged_cells(judged, Bundle(work, spec, "", network, device), task, "train")
    if not before:
        return {}
    (any_before, class_before), (any_after, class_after) = _f1(before), _f1(after)
    say(
        f"cross-validated, each of {parts} parts of the patients by a training on the others: "
        f"F1 any class {any_before:.2f}, then {any_after:.2f}; mean of the classes {class_before:.2f}, "
        f"then {class_after:.2f}"
    )
    if any_after + class_after <= any_before + class_before:
        say(WORSE)
    return {
        "F1 any class, before": any_before,
        "F1 any class, after": any_after,
        "mean F1 of the classes, before": class_before,
        "mean F1 of the classes, after": class_after,
    }


def _unsaid(line: str) -> None:
    del line


def clear_parts(work: Path) -> None:
    """Remove what cross-validation needed only to go on."""
    for folder in work.glob(f"{PART}*"):
        shutil.rmtree(folder, ignore_errors=True)


def judged_cells(
    images: Sequence[TrainingImage], model: Bundle, task: CellTask, part: Part
) -> list[DetectionComparison]:
    """Compare the cells that a model finds in the labelled areas of images with those that are labelled there.

    As ``annotate`` does, it looks for none on glass or pen marks.

    Parameters
    ----------
    images
        Annotated slides, as the model sees them; one without a labelled area gives nothing.
    model
        A model for cells of the classes of the task.
    task
        What the objects say.
    part
        What the labels are for; see :func:`pyhisto.dataset.labelled_areas`.
    """
    out = []
    for image in images:
        area = shapely.union_all(labelled_areas(image, task, part))
        if area.is_empty:
            continue
        lens = image.lens or PLAIN
        with image.open() as slide:
            stains = dataclasses.replace(H_DAB, background=image.white or H_DAB.background)  # only the white is used
            region = labelled_to_search(slide, area)
            found = empty_objects()
            if not region.is_empty:
                found = predict_cells(slide, model, stains=stains, region=region, lens=lens, cell_expansion_um=0)
            pixel = np.asarray(slide.mpp)
        centres, number = task.nuclei(image, part)
        counted = shapely.intersects_xy(area, centres[:, 0], centres[:, 1])
        out.append(
            compare_detections(
                shapely.get_coordinates(shapely.centroid(found.geometry.to_numpy())) * pixel,
                found["classification"].astype(str).to_numpy(),
                centres[counted] * pixel,
                np.array(task.classes)[number[counted]],
                classes=task.classes,
                radius=RADIUS_UM * lens.size,
            )
        )
    return out


def _f1(found: Sequence[DetectionComparison]) -> tuple[float, float]:
    """Return F1 of all cells whatever their class, and the mean F1 of the classes, of images together."""
    together = found[0]
    for other in found[1:]:
        together = together + other
    scores = (together.overall.f1, float(np.nanmean([score.f1 for score in together.by_class])))
    return round(scores[0], 4), round(scores[1], 4)
