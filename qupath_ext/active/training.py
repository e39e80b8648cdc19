"""The training of a round: goes on from the last round's model, on a split that stays, and says what the round added.

The patients to validate and to test on are those that the loop was started with, in all rounds, so that the figures of
its rounds can be compared; a patient who came later is for training. What a person corrected weighs more in the loss
than what was confirmed. A round that has no object of any class, or nothing but such objects, trains no model.
"""

from __future__ import annotations

import dataclasses
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from pyhisto.bundle.files import Bundle, load_bundle
from pyhisto.dataset import CellTask, Split, TissueTask, TrainingImage, write_split
from pyhisto.device import check_device
from pyhisto.errors import ConfigError
from qupath_ext.active.cost import answered
from qupath_ext.active.loop import TRAINING, Loop, Round
from qupath_ext.active.measuring import count_images, figures
from qupath_ext.active.slides import LeftOut, unless_read
from qupath_ext.active.truth import amended, truth_changes
from qupath_ext.errors import ProjectError
from qupath_ext.runs.record import write_json
from qupath_ext.study import TrainStudy, load_train_study
from qupath_ext.workflows.finetuning import seen_as_before
from qupath_ext.workflows.lanes import Progress
from qupath_ext.workflows.planning import Wanted, study_text
from qupath_ext.workflows.training import MODEL_KINDS
from qupath_ext.workflows.trainingdata import Source, patient_of, training_images
from qupath_ext.workflows.trainrun import SPLIT, STUDY, TrainRun, run_training

__all__ = ["TrainOptions", "round_images", "train_round"]

MODEL, WORK = "model", "training"
"""Folders of a round: its bundle, and what its training keeps until it is done."""

Say = Callable[[str], None]


@dataclass(frozen=True)
class TrainOptions:
    """How a round is trained.

    Attributes
    ----------
    device
        ``"cpu"``, ``"cuda"`` or ``"mps"``.
    minutes
        Time for the training, where it is planned.
    study
        Study file (TOML) instead of a plan: network, patch size, steps and all else. Kind, classes and patients are
        those of the loop, and network and patch size those of the model that the round goes on from.
    """

    device: str = "cpu"
    minutes: float = 20.0
    study: Path | None = None


def train_round(
    loop: Loop, number: int, options: TrainOptions, say: Say, progress: Progress | None = None
) -> dict[str, Any]:
    """Train the model of a round, measure it, and keep both in the folder of the round.

    A round that has its record is not trained again; one that was interrupted goes on.

    Parameters
    ----------
    loop
        The loop.
    number
        The round, from 1; it was collected.
    options
        How.
    say
        Called with lines about what happens.
    progress
        As in :func:`pyhisto.train.train`.

    Returns
    -------
    dict
        What stands in ``rounds/NN/training.json``: ``model`` (``path``, as seen from the folder of the round, and
        ``sha256``; None where there was nothing to learn from), ``classes`` (those that were learnt), ``added`` by
        this round (see :func:`qupath_ext.active.cost.answered`), ``figures`` (``validation`` and ``test``; see
        :func:`qupath_ext.active.measuring.figures`), ``left_out`` (images that could not be read; see
        :attr:`qupath_ext.active.slides.LeftOut.records`), and ``seconds``.

    Raises
    ------
    ProjectError
        If the round was not collected, or no image to train on can be read.
    TrainingError
        If the split leaks, or the training diverges.
    ConfigError
        If the study or the device cannot be used.
    """
    one = loop.round(number)
    known = one.training
    if known is not None:
        return known
    if "collected" not in one.record:
        raise ProjectError(
            f"round {number} of the loop {loop.name!r} was not collected", remedy="qupath-ext active collect first"
        )
    check_device(options.device)
    began = time.perf_counter()
    study = _study(loop, options)
    task = _task(loop, study)
    left_out = LeftOut(loop, say)
    images = round_images(loop, number, study, left_out)
    if left_out.records and not any(image.part == "train" for _, image in images):
        raise left_out.nothing_left("to train on")
    classes = _learnable([image for _, image in images if image.part == "train"], task)
    record: dict[str, Any] = {"model": None, "classes": list(classes), "added": answered(one), "figures": {}}
    record["left_out"] = left_out.records
    if classes:
        bundle = _trained(loop, one, [source for source, _ in images], classes, study, options, say, progress)
        record["model"] = {"path": MODEL, "sha256": bundle.sha256}
        record["figures"] = _measured(images, bundle, task, say)
    else:
        say(f"round {number}: no object of {', '.join(task.classes)} beside background yet, so nothing is trained")
    record["seconds"] = round(time.perf_counter() - began, 1)
    shutil.rmtree(one.folder / WORK, ignore_errors=True)
    write_json(one.folder / TRAINING, record)
    return record


def _study(loop: Loop, options: TrainOptions) -> TrainStudy | None:
    """Return the study that was given, with the patients of the loop; None to plan one."""
    if options.study is None:
        return None
    study = load_train_study(options.study)
    if study.kind != loop.settings.target:
        raise ConfigError(f"{options.study} is a study of {study.kind}", expected=f"one of {loop.settings.target}")
    return dataclasses.replace(study, patient_key=loop.settings.patient_key, classes=loop.settings.classes)


def _task(loop: Loop, study: TrainStudy | None) -> CellTask | TissueTask:
    """Return what the loop learns."""
    if study is not None:
        return study.task()
    return (CellTask if loop.settings.target == "cells" else TissueTask)(loop.settings.classes)


def round_images(
    loop: Loop, number: int, study: TrainStudy | None = None, left_out: LeftOut | None = None
) -> list[tuple[Source, TrainingImage]]:
    """Return the images of a loop with all that is true of them after a round, each in its part of the split.

    Parameters
    ----------
    loop
        The loop.
    number
        The round: what later ones found out does not count.
    study
        Says what objects mean; as usual if None.
    left_out
        Takes the images that cannot be read.

    Raises
    ------
    ProjectError, SlideError
        If an image cannot be read, and nothing takes it.
    """
    labels = None if study is None else study.labels
    out = []
    for source in loop.sources():
        with unless_read(left_out, source):
            (image,) = training_images([source], labels, patient_key=loop.settings.patient_key)
            out.append((source, dataclasses.replace(_amended(loop, number, source, image), part=loop.part_of(source))))
    return out


def _amended(loop: Loop, number: int, source: Source, image: TrainingImage) -> TrainingImage:
    """Return an image with what the loop knows of it beside its annotations: weights, and what is not to be learnt."""
    return amended(image, source, truth_changes(loop, source, until=number))


def _learnable(images: Sequence[TrainingImage], task: CellTask | TissueTask) -> tuple[str, ...]:
    """Return the classes that some image shows; none where there is nothing to tell them from."""
    *names, background = task.class_names()
    there: set[str] = set()
    for image in images:
        there |= {name for name, places in task.places(image).items() if len(places.points) or len(places.polygons)}
    return tuple(name for name in names if name in there) if background in there else ()


def _trained(
    loop: Loop,
    one: Round,
    sources: Sequence[Source],
    classes: tuple[str, ...],
    study: TrainStudy | None,
    options: TrainOptions,
    say: Say,
    progress: Progress | None,
) -> Bundle:
    """Train the bundle of a round, unless it is there already."""
    folder, work = one.folder / MODEL, one.folder / WORK
    if not folder.is_dir():
        work.mkdir(exist_ok=True)
        new = {patient_of(source.entry, loop.settings.patient_key) for source in sources} - set(loop.split.patients)
        split = Split({**loop.split.patients, **dict.fromkeys(new, "train")}, loop.split.seed, loop.split.fractions)
        write_split(work / SPLIT, split, overwrite=True)
        if study is not None:
            (work / STUDY).write_text(study_text(dataclasses.replace(study, classes=classes)), "utf-8")
        wanted = Wanted(loop.settings.target, classes, name=loop.name, patient_key=loop.settings.patient_key)
        run = TrainRun(
            sources,
            folder,
            work,
            split=work / SPLIT,
            init=_start(loop, one.number),
            device=options.device,
            wanted=wanted,
            minutes=options.minutes,
            amend=partial(_amended, loop, one.number),
            remember=True,
        )
        run_training(run, say, progress)
    return load_bundle(folder, device=options.device, engine="torch")


def _start(loop: Loop, number: int) -> Bundle | None:
    """Return the model that a round goes on from: the last one's, or that which the loop began with; None for none."""
    path = loop.model(before=number) or loop.settings.init
    return load_bundle(path, kind=MODEL_KINDS[loop.settings.target], engine="torch") if path else None


def _measured(
    images: Sequence[tuple[Source, TrainingImage]], bundle: Bundle, task: CellTask | TissueTask, say: Say
) -> dict[str, Any]:
    """Return the figures of a model on the patients to validate and to test on."""
    out = {}
    for part in ("validation", "test"):
        held = [
            (source, dataclasses.replace(image, part="validation")) for source, image in images if image.part == part
        ]
        seen = seen_as_before(
            [source for source, _ in held], [image for _, image in held], bundle.spec, _unsaid, remember=True
        )
        found = out[part] = figures(count_images(seen, bundle, task), task)
        if found is None:
            say(f"{part}: nothing is labelled on its {len(held)} images, so there are no figures")
            continue
        interval = "" if found["low"] is None else f" ({found['low']:.3f} to {found['high']:.3f})"
        say(f"{part}: {found['metric']} {found['value']:.3f}{interval} of {found['patients']} patients")
    return out


def _unsaid(line: str) -> None:
    del line
