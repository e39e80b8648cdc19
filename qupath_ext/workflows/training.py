"""From annotated slides to a model bundle."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from pyhisto.bundle.files import Bundle, ModelClass, ModelSpec, save_bundle
from pyhisto.bundle.spec import CascadeSpec
from pyhisto.classes import CLASS_COLORS
from pyhisto.dataset import PatchDataset, TrainingImage, ValidationDataset, check_leakage, labelled_areas
from pyhisto.errors import BundleError, ConfigError, TrainingError
from pyhisto.models import build_model
from pyhisto.models.cascade import Cascade
from pyhisto.nuclei.survey import training_references
from pyhisto.stain import StainReference
from pyhisto.train import TrainResult, train
from pyhisto.train.checkpoint import BEST, LAST
from pyhisto.train.distributed import is_first
from qupath_ext.study import TrainStudy
from qupath_ext.workflows.cascade import CURVES, clear_stages, golden_frame, initial_cascade, train_cascade
from qupath_ext.workflows.lanes import Progress

__all__ = [
    "MODEL_KINDS",
    "TrainedBundle",
    "initial_network",
    "model_spec",
    "start_of",
    "train_bundle",
    "training_patches",
    "with_start",
]

MODEL_KINDS = {"cells": "cell_detection", "tissue": "tissue_segmentation"}
"""Kind of a study to that of its model."""

DOCUMENTS = ("study.toml", "split.json", "train.log", "curve.csv", "curve.png", *CURVES)
"""Files of the work folder that the bundle keeps beside its model card."""

GOLDEN_TILES = 8
"""Tiles of which one is kept in the bundle as its self-check."""

Say = Callable[[str], None]


@dataclass(frozen=True)
class TrainedBundle:
    """What a training made: the bundle (None but in the first process), and how it went."""

    bundle: Bundle | None
    result: TrainResult


def model_spec(study: TrainStudy, init: ModelSpec | None = None) -> ModelSpec:
    """Return the description of the model that a study trains.

    Parameters
    ----------
    study
        The study.
    init
        The model to go on from: its network and its pre-processing stand in for the study's.

    Raises
    ------
    ConfigError
        If a region names a class that the model does not have, or the study needs a model to go on from.
    BundleError
        If the model to go on from is of another kind, or the regions do not fit the classes.
    """
    kind = MODEL_KINDS[study.kind]
    classes = [ModelClass("background")]
    for name in study.classes:
        color = CLASS_COLORS.get(name)
        classes.append(ModelClass(name if study.kind == "tissue" else f"{name} nucleus", name, color))
        if study.kind == "cells":
            classes.append(ModelClass(f"{name} membrane"))
    model = study.model
    spec = ModelSpec(
        kind=kind,
        architecture=model.architecture,
        classes=tuple(classes),
        mpp=model.mpp,
        tile_size=model.tile_size,
        overlap=model.overlap,
        decoder_channels=model.decoder_channels,
        regions=_regions(study, classes),
        postprocessing=study.postprocessing_numbers(),
        cascade=_cascade(study),
    )
    for name in ("cross_validation", "start_share"):
        if init is None and getattr(study, name):
            raise ConfigError(f"{name} without a model to go on from", remedy=f"{name} = 0, or --init")
    if init is None:
        return spec
    if init.kind != kind:
        raise BundleError(f"--init is a model for {init.kind}", expected=f"one for {kind}, as in the study")
    kept = ["architecture", "mpp", "tile_size", "overlap", "decoder_channels", "channel_mean", "channel_std"]
    if not spec.regions and [c.classification for c in init.classes] == [c.classification for c in classes]:
        kept.append("regions")
    if (init.cascade is None) != (spec.cascade is None):
        kinds = ("one network", "two stages")
        raise BundleError(
            f"--init has {kinds[init.cascade is not None]}",
            expected=f"{kinds[spec.cascade is not None]}, as in the study",
            remedy="add a table [cascade] to the study, or leave it out",
        )
    if spec.cascade is not None and init.cascade is not None:
        own = {name: getattr(init.cascade, name) for name in ("detector", "channels", "mpp", "patch_size")}
        spec = dataclasses.replace(spec, cascade=dataclasses.replace(spec.cascade, **own))
    return dataclasses.replace(spec, **{name: getattr(init, name) for name in kept})


def _cascade(study: TrainStudy) -> CascadeSpec | None:
    """Return the first stage of a coarse-to-fine model as the study wants it."""
    if study.cascade is None:
        return None
    names = [field.name for field in dataclasses.fields(CascadeSpec)]
    return CascadeSpec(**{name: getattr(study.cascade, name) for name in names})


def _regions(study: TrainStudy, classes: Sequence[ModelClass]) -> tuple[tuple[int, ...], ...]:
    """Return the regions of a study as class numbers."""
    numbers = {c.name: number for number, c in enumerate(classes) if number}
    numbers |= {c.classification: number for number, c in enumerate(classes) if c.classification}
    out = []
    for region in study.model.regions:
        unknown = [name for name in region if name not in numbers]
        if unknown:
            raise ConfigError(f"[model] regions: {unknown[0]!r}", expected=f"one of {', '.join(numbers)}")
        out.append(tuple(numbers[name] for name in region))
    return tuple(out)


def initial_network(spec: ModelSpec, study: TrainStudy, init: Bundle | None, say: Say) -> nn.Module:
    """Build the network that training starts from.

    Parameters
    ----------
    spec
        Description of the model to train.
    study
        For the seed and the encoder's weights.
    init
        The model to go on from; its output channels are found again by what they stand for.
    say
        Called with a line about what was taken over.
    """
    torch.manual_seed(study.training.seed)
    options: dict[str, Any] = {"out_channels": spec.out_channels, "decoder_channels": spec.decoder_channels}
    if init is None:
        return build_model(spec.architecture, encoder_weights=study.model.encoder_weights, **options)
    model = build_model(spec.architecture, **options)
    old: dict[str, torch.Tensor] = torch.load(init.path / "models" / "model.pt", map_location="cpu", weights_only=True)
    state = model.state_dict()
    torch.manual_seed(study.training.seed)
    other = build_model(spec.architecture, **{**options, "out_channels": spec.out_channels + 1}).state_dict()
    heads = [name for name in state if state[name].shape != other[name].shape]
    before = _channels(init.spec)
    pairs = [(new, before.index(key)) for new, key in enumerate(_channels(spec)) if key in before]
    for name in state:
        if name not in heads:
            state[name] = old[name]
            continue
        for new, there in pairs:
            state[name][new] = old[name][there]
    model.load_state_dict(state)
    fresh = spec.out_channels - len(pairs)
    head = "all output channels" if not fresh else f"{len(pairs)} of {spec.out_channels} output channels, the rest new"
    say(f"going on from {init.path.name} ({init.sha256[:12]}): encoder, decoder and {head}")
    say(f"  its pre-processing is kept: {spec.mpp:g} µm/px, tiles of {spec.tile_size} px, overlap {spec.overlap} px")
    return model


def _channels(spec: ModelSpec) -> list[Hashable]:
    """Return what each output channel stands for, however the classes are numbered."""
    keys: list[Hashable] = []
    for number, model_class in enumerate(spec.classes):
        if number == 0:
            keys.append("background")
        elif spec.kind == "cell_detection":
            owner = spec.classes[number if number % 2 else number - 1].classification
            keys.append((owner, "nucleus" if number % 2 else "membrane"))
        else:
            keys.append(model_class.classification or model_class.name)
    return [frozenset(keys[number] for number in region) for region in spec.regions] if spec.regions else keys


def with_start(network: nn.Module, start: nn.Module | None, share: float) -> None:
    """Make the weights of a network the mean of its own and those it started from (Wortsman 2022), in place.

    Parameters
    ----------
    network
        The trained network.
    start
        The same before the first step; None leaves the network as it is.
    share
        Weight of the start in the mean.
    """
    if start is None:
        return
    before = start.state_dict()
    with torch.no_grad():
        for name, value in network.state_dict().items():
            if value.is_floating_point():
                value.lerp_(before[name].to(value.device), share)


def start_of(network: nn.Module, spec: ModelSpec, study: TrainStudy, init: Bundle | None) -> nn.Module | None:
    """Return a copy of a network to take a share of; None for no share, or where some output channels are new."""
    if init is None or not study.start_share or not set(_channels(spec)) <= set(_channels(init.spec)):
        return None
    return copy.deepcopy(network)


def training_patches(learnt: Sequence[TrainingImage], study: TrainStudy, spec: ModelSpec) -> PatchDataset:
    """Return the patches of a training of one network."""
    settings = study.training
    return PatchDataset(
        learnt,
        study.task(),
        mpp=spec.mpp,
        size=spec.tile_size,
        length=settings.steps * settings.batch_size,
        seed=settings.seed,
        augmentation=study.augmentation,
        sampling=study.sampling,
        boundary=study.boundary,
    )


def _references(learnt: Sequence[TrainingImage], init: Bundle | None) -> tuple[float | None, StainReference | None]:
    """Return size of nuclei and stains that the network knows.

    A model to go on from saw the slides in its own, and what it is now will be shown others in the same.
    """
    if init is not None and (init.spec.stains is not None or init.spec.nucleus_diameter_um is not None):
        return init.spec.nucleus_diameter_um, init.spec.stains
    return training_references(learnt)


def train_bundle(  # noqa: PLR0913 - what a training is
    images: Sequence[TrainingImage],
    study: TrainStudy,
    *,
    folder: Path,
    work: Path,
    about: Mapping[str, Any],
    device: str = "cpu",
    init: Bundle | None = None,
    begin: Callable[[], None] | None = None,
    check: Callable[[], Mapping[str, Any]] | None = None,
    say: Say | None = None,
    progress: Progress | None = None,
) -> TrainedBundle:
    """Train a model from annotated slides and save it as a bundle.

    Parameters
    ----------
    images
        Annotated slides, each with its patient and its part; those of the part ``"test"`` are left alone.
    study
        What is learnt and how.
    folder
        Where the bundle goes; must not exist.
    work
        Folder for checkpoints and the learning curve; a killed training goes on from there.
    about
        For the model card: where the annotations came from.
    device
        ``"cpu"``, ``"cuda"`` or ``"mps"``.
    init
        Model to go on from.
    begin
        Called in the first process when all was checked, the work folder is there, and the first step comes next. What
        of :data:`DOCUMENTS` lies in the work folder in the end, the bundle keeps.
    check
        Called in all processes after that; what it returns goes into the model card.
    say
        Called with lines about what happens.
    progress
        As in :func:`pyhisto.train.train`.

    Raises
    ------
    TrainingError
        If a patient stands in two parts, the annotations do not suffice or the training diverges.
    BundleError
        If the folder holds something already.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise BundleError(f"{folder} exists already", remedy="choose another folder or remove it")
    check_leakage(images)
    settings, task = study.training, study.task()
    spec = model_spec(study, None if init is None else init.spec)
    learnt = [image for image in images if image.part == "train"]
    if not learnt:
        raise TrainingError("no image to train on", remedy="put some patients into the part train")
    frame: dict[str, Any] = {"mpp": spec.mpp, "size": spec.tile_size}
    dataset = training_patches(learnt, study, spec)
    judged = [image for image in images if image.part != "test" and labelled_areas(image, task, "validation")]
    windows = (
        ValidationDataset(judged, task, **frame, limit=study.validation_windows, boundary=study.boundary)
        if judged
        else None
    )
    say = say or _say_nothing
    say(_plain_numbers(learnt, images, None if windows is None else len(windows)))
    network = (initial_network if spec.cascade is None else initial_cascade)(spec, study, init, say)
    start = start_of(network, spec, study, init)
    if is_first():
        work.mkdir(parents=True, exist_ok=True)
        if begin is not None:
            begin()
    described = {**about, **(check() if check is not None else {})}
    figures: dict[str, float] = {}
    if isinstance(network, Cascade):
        seen = [image for image in images if image.part != "test"]
        result, figures = train_cascade(network, seen, study, spec, work, device=device, say=say, progress=progress)
    else:
        result = train(network, dataset, spec, settings, work, validation=windows, device=device, progress=progress)
    with_start(network, start, study.start_share)
    for row in result.validation:
        say(f"step {row.step}: validation loss {row.loss:.4f}, Dice {row.mean_dice:.4f} ({_figures(row.dice)})")
    if not is_first():
        return TrainedBundle(None, result)
    if init is not None and result.validation and result.best_step == 0:
        say("no step was better on the validation: the weights stay as they were")
    diameter, stains = _references(learnt, init)
    spec = dataclasses.replace(
        spec,
        nucleus_diameter_um=diameter,
        stains=stains,
        init={} if init is None else {"name": init.path.name, "sha256": init.sha256},
    )
    golden = PatchDataset(
        learnt, task, **golden_frame(spec), length=GOLDEN_TILES, seed=settings.seed, sampling=study.sampling
    )
    bundle = save_bundle(
        folder,
        network.cpu(),
        spec,
        golden_tile=np.stack([golden[number][0] for number in range(GOLDEN_TILES)]),
        description=f"{study.name or spec.architecture}: {spec.architecture} for {spec.kind.replace('_', ' ')}, "
        "trained from QuPath annotations.",
        training={**_described(images, study, init, result, figures), **described},
        documents=[work / name for name in DOCUMENTS if (work / name).is_file()],
    )
    for name in (LAST, BEST):
        (work / name).unlink(missing_ok=True)
    clear_stages(work)
    return TrainedBundle(bundle, result)


def _say_nothing(line: str) -> None:
    del line


def _figures(dice: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.3f}" for name, value in dice.items())


def _plain_numbers(learnt: Sequence[TrainingImage], images: Sequence[TrainingImage], windows: int | None) -> str:
    """Return in one line what is trained and validated on."""
    parts = {part: {i.patient for i in images if i.part == part} for part in ("train", "validation", "test")}
    counts = ", ".join(f"{len(patients)} {part}" for part, patients in parts.items() if patients)
    validation = f"{windows} validation windows" if windows else "no validation: the last weights are kept"
    return f"{len(learnt)} images to train on; patients: {counts}; {validation}"


def _described(
    images: Sequence[TrainingImage],
    study: TrainStudy,
    init: Bundle | None,
    result: TrainResult,
    figures: Mapping[str, float],
) -> dict[str, Any]:
    """Return what was trained on and how it went, for the model card."""
    settings = study.training
    started = study.model.encoder_weights if init is None else f"{init.path.name} (sha256 {init.sha256})"
    out: dict[str, Any] = {
        "slides": sum(image.part == "train" for image in images),
        "patients": {
            part: sorted({image.patient or image.title for image in images if image.part == part})
            for part in ("train", "validation", "test")
        },
        "classes": list(study.classes),
        "started from": started,
        "steps": f"{len(result.losses)} of {settings.steps}, {settings.batch_size} patches each",
        "seed": settings.seed,
        "loss": f"{settings.loss.name}, at the end {np.mean(result.losses[-10:]):.4f}",
    }
    best = next((row for row in result.validation if row.step == result.best_step), None)
    if best is not None:
        out["validation"] = {
            "step": best.step,
            "mean Dice": round(best.mean_dice, 4),
            **{f"Dice {name}": round(value, 4) for name, value in best.dice.items()},
            **figures,
        }
    out["settings"] = dataclasses.asdict(study)
    return out
