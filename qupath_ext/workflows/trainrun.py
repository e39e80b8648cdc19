"""A training as a user starts it: from projects, a study and a split to a bundle; killed, it goes on."""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from pyhisto.bundle.files import Bundle
from pyhisto.dataset import Split, TrainingImage, check_leakage, read_split, write_split
from pyhisto.dataset.images import labelled_objects
from pyhisto.device import check_device
from pyhisto.errors import BundleError, ConfigError, TrainingError
from pyhisto.plan import Kind, Network
from pyhisto.train.distributed import is_first
from qupath_ext.study import POSTPROCESSING, LabelStudy, TrainStudy, load_train_study
from qupath_ext.workflows.finetuning import clear_parts, cross_validate, seen_as_before
from qupath_ext.workflows.lanes import Progress
from qupath_ext.workflows.planning import Planned, Wanted, machine, plan_study
from qupath_ext.workflows.splitting import described, split_by_training
from qupath_ext.workflows.training import TrainedBundle, train_bundle
from qupath_ext.workflows.trainingdata import Source, training_images

__all__ = ["TrainRun", "plan_run", "run_training"]

STUDY, SPLIT, LOG = "study.toml", "split.json", "train.log"
"""Files of the work folder beside checkpoints and curves."""

FINE_TUNE_BATCH = 8

Say = Callable[[str], None]


@dataclass(frozen=True)
class TrainRun:
    """What a training is made of.

    Attributes
    ----------
    sources
        The images.
    output
        Folder of the bundle.
    work
        Folder for checkpoints, split and log; None for ``<output>.training``, which is removed in the end.
    study
        Study file; None to plan one (see `wanted` and `minutes`).
    split
        Split file; None for the one in the work folder, which is made there if need be.
    init
        Model to go on from.
    device
        ``"cpu"``, ``"cuda"`` or ``"mps"``.
    wanted, minutes
        What is decided before a plan is made, and the time for the training.
    amend
        Changes what the annotations of an image say; None leaves it as it is.
    remember
        Keep what is measured on slides in their projects, for the next training.
    """

    sources: Sequence[Source]
    output: Path
    work: Path | None = None
    study: Path | None = None
    split: Path | None = None
    init: Bundle | None = None
    device: str = "cpu"
    wanted: Wanted = field(default_factory=Wanted)
    minutes: float = 20.0
    amend: Callable[[Source, TrainingImage], TrainingImage] | None = None
    remember: bool = False

    @property
    def folder(self) -> Path:
        """The work folder."""
        return self.work or self.output.with_name(f"{self.output.name}.training")


class _Log:
    """Says lines, and adds them to a file once its folder is there."""

    def __init__(self, path: Path, say: Say) -> None:
        self._path = path
        self._say = say
        self._waiting: list[str] = []

    def __call__(self, line: str) -> None:
        if not is_first():
            return
        self._say(line)
        self._waiting.append(line)
        if self._path.parent.is_dir():
            with self._path.open("a", encoding="utf-8") as file:
                file.writelines(f"{waiting}\n" for waiting in self._waiting)
            self._waiting.clear()


def plan_run(run: TrainRun, say: Say) -> Planned:
    """Plan a training from the annotations of all patients but those to test on.

    Parameters
    ----------
    run
        What the training is made of.
    say
        Called with lines about what is probably not meant.

    Raises
    ------
    TrainingError
        If the annotations do not suffice.
    ConfigError
        If the device is not there or the split does not fit.
    """
    check_device(run.device)
    wanted = run.wanted if run.init is None else _as_before(run.wanted, run.init)
    _, images = _images(run, wanted.labels, wanted.patient_key, say)
    if run.split is not None:
        images = _divided(images, read_split(run.split))
    seen = [image for image in images if image.part != "test"]
    if not seen:
        raise TrainingError("all patients of the split are to test on", expected="some to train on")
    return plan_study(seen, machine(run.device, run.minutes), wanted)


def run_training(run: TrainRun, say: Say, progress: Progress | None = None) -> TrainedBundle:
    """Train a model and save it as a bundle, or go on with a training that was interrupted.

    Nothing is written before all that can be checked was.

    Parameters
    ----------
    run
        What the training is made of.
    say
        Called with lines about what happens.
    progress
        As in :func:`pyhisto.train.train`.

    Raises
    ------
    BundleError
        If the output folder holds something already, or the model to go on from does not fit.
    ConfigError
        If the study, the split or the device cannot be used.
    TrainingError
        If the split lacks a patient or leaks, the annotations do not suffice, or the training diverges.
    """
    if run.output.exists() and (not run.output.is_dir() or any(run.output.iterdir())):
        raise BundleError(f"{run.output} exists already", remedy="choose another folder or remove it")
    check_device(run.device)
    log = _Log(run.folder / LOG, say)
    study, text = _study(run, log)
    own = run.folder / SPLIT
    source = run.split or (own if own.is_file() else None)
    sources, images = _images(run, study.labels, study.patient_key, log)
    patients = [image.patient for image in images]
    split = read_split(source) if source else split_by_training(patients, study.validation, study.training.seed)
    images = _divided(images, split)
    log(f"split: {source}" if source else f"split: made, and kept in {own}")
    for line in described(split, patients):
        log(f"  {line}")
    if not split.of_part("test"):
        log("  no patient to test on; qupath-ext split sets some aside before the training")

    check = None
    if run.init is not None:
        images = seen_as_before(sources, images, run.init.spec, log, remember=run.remember)
        check = partial(cross_validate, images, study, run.init, run.folder, device=run.device, say=log)

    def begin() -> None:
        (run.folder / STUDY).write_text(text, "utf-8")
        if source is None:
            write_split(own, split)
        elif source != own:
            shutil.copyfile(source, own)

    trained = train_bundle(
        images,
        study,
        folder=run.output,
        work=run.folder,
        about={"projects": sorted({source.project.path.parent.name for source in run.sources})},
        device=run.device,
        init=run.init,
        begin=begin,
        check=check if study.cross_validation else None,
        say=log,
        progress=progress,
    )
    if is_first():
        clear_parts(run.folder)
        if run.work is None:
            shutil.rmtree(run.folder)
    return trained


def _study(run: TrainRun, say: Say) -> tuple[TrainStudy, str]:
    """Return the study and its text: as given, as planned before the training was interrupted, or planned now."""
    kept = run.folder / STUDY
    path = run.study or (kept if kept.is_file() else None)
    if path is not None:
        say(f"study: {path}")
        return load_train_study(path), path.read_text("utf-8")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError("several processes without a study", remedy="plan one first: qupath-ext train --plan")
    planned = plan_run(run, say)
    say("study: planned from the annotations")
    for decision in planned.decisions:
        say(f"  {decision.reason}")
    return planned.study, planned.text()


def _images(run: TrainRun, labels: LabelStudy, patient_key: str, say: Say) -> tuple[list[Source], list[TrainingImage]]:
    """Return the images that have annotations, as they stand in their projects and as slides."""
    images = training_images(run.sources, labels, patient_key=patient_key, say=say)
    if run.amend is not None:
        images = [run.amend(source, image) for source, image in zip(run.sources, images, strict=True)]
    labelled = [pair for pair in zip(run.sources, images, strict=True) if len(labelled_objects(pair[1]).name)]
    if not labelled:
        raise TrainingError(
            f"no annotation with a class on {len(images)} images",
            remedy="annotate some in QuPath, give each a class, and save",
        )
    if len(labelled) < len(images):
        say(f"{len(images) - len(labelled)} images without annotations are left out")
    return [source for source, _ in labelled], [image for _, image in labelled]


def _divided(images: Sequence[TrainingImage], split: Split) -> list[TrainingImage]:
    """Return the images with their parts; refuse patients that the split does not know, and leaks."""
    unknown = {image.patient for image in images} - set(split.patients)
    if unknown:
        raise TrainingError(
            f"{len(unknown)} patients are in no part of the split, such as {min(unknown)!r}",
            expected=f"its {len(split.patients)} patients",
            remedy="add them with qupath-ext split --extend, or see patient_key in the study",
        )
    divided = [dataclasses.replace(image, part=split.part_of(image.patient)) for image in images]
    check_leakage(divided)
    return divided


def _as_before(wanted: Wanted, init: Bundle) -> Wanted:
    """Return what is wanted, with what a model has where nothing else was said: kind, classes, pixel size, network.

    Its post-processing comes along, but for the DAB cut: that was calibrated to the votes of the old weights.
    """
    spec = init.spec
    cells = spec.kind == "cell_detection"
    known = spec.cell_classes if cells else tuple(c.classification for c in spec.classes[1:])
    kind: Kind = wanted.kind or ("cells" if cells else "tissue")
    return dataclasses.replace(
        wanted,
        kind=kind,
        classes=wanted.classes or tuple(name for name in known if name),
        mpp=spec.mpp,
        network=Network(spec.architecture, spec.decoder_channels, spec.tile_size, FINE_TUNE_BATCH),
        postprocessing={k: v for k, v in spec.postprocessing.items() if k in POSTPROCESSING[kind]},
    )
