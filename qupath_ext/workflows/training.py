"""From the annotations in QuPath projects to a model bundle."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from pyhisto.bundle import Bundle, ModelClass, ModelSpec, save_bundle
from pyhisto.dataset import CellTask, PatchDataset, Task, TrainingImage, TumourTask
from pyhisto.models import build_model
from pyhisto.train import train
from qupath_ext.frames import slide_mpp, to_slide_frame
from qupath_ext.project import ImageEntry
from qupath_ext.study import ModelStudy

__all__ = ["cell_spec", "train_bundle", "training_images", "tumour_spec"]


def training_images(entries: Iterable[ImageEntry]) -> list[TrainingImage]:
    """Return the slides of a project's images with their objects, level-0 px of the slide.

    Raises
    ------
    ProjectError
        If a slide is missing or the data of an image cannot be read.
    """
    return [
        TrainingImage(
            path=entry.slide_path,
            objects=to_slide_frame(entry.read_objects(), entry),
            mpp=slide_mpp(entry),
            crop_to_bounds=entry.crop_to_bounds,
            series=entry.slide_series,
        )
        for entry in entries
    ]


def tumour_spec(study: ModelStudy, task: TumourTask) -> ModelSpec:
    """Return the description of a model that segments tumour."""
    classes = (ModelClass("background"), ModelClass("tumour", task.tumour, (200, 0, 0)))
    return _spec("tumour_segmentation", study, classes)


def cell_spec(study: ModelStudy, task: CellTask) -> ModelSpec:
    """Return the description of a model that finds positive and negative nuclei."""
    classes = (
        ModelClass("background"),
        ModelClass("positive nucleus", task.positive, (200, 50, 50)),
        ModelClass("membrane of a positive nucleus"),
        ModelClass("negative nucleus", task.negative, (90, 90, 180)),
        ModelClass("membrane of a negative nucleus"),
    )
    return _spec("cell_detection", study, classes)


def _spec(kind: str, study: ModelStudy, classes: tuple[ModelClass, ...]) -> ModelSpec:
    return ModelSpec(
        kind=kind,
        architecture=study.architecture,
        classes=classes,
        mpp=study.mpp,
        tile_size=study.tile_size,
        overlap=study.overlap,
        decoder_channels=study.decoder_channels,
        postprocessing=dict(study.postprocessing),
    )


def train_bundle(
    images: Sequence[TrainingImage],
    task: Task,
    spec: ModelSpec,
    study: ModelStudy,
    *,
    folder: Path,
    work: Path,
    about: Mapping[str, Any],
) -> tuple[Bundle, list[float]]:
    """Train a model from annotated slides and save it as a bundle.

    Parameters
    ----------
    images
        Annotated slides.
    task, spec, study
        What is learnt, the model's description, and how it is trained.
    folder
        Where the bundle goes; must not exist.
    work
        Folder for checkpoints and the learning curve; a killed training goes on from there.
    about
        For the model card: where the annotations came from.

    Returns
    -------
    bundle : Bundle
        The trained model.
    losses : list of float
        The loss of each step.

    Raises
    ------
    TrainingError
        If the annotations do not suffice or the training diverges.
    BundleError
        If the folder holds something already.
    """
    settings = study.training
    torch.manual_seed(settings.seed)
    model = build_model(
        spec.architecture,
        out_channels=len(spec.classes),
        decoder_channels=spec.decoder_channels,
        encoder_weights=study.encoder_weights,
    )
    dataset = PatchDataset(
        images,
        task,
        mpp=spec.mpp,
        size=spec.tile_size,
        length=settings.steps * settings.batch_size,
        seed=settings.seed,
        augmentation=study.augmentation,
    )
    losses = train(model, dataset, spec, settings, work)
    golden_tile, _ = PatchDataset(images, task, mpp=spec.mpp, size=spec.tile_size, length=1, seed=settings.seed)[0]
    described = {
        "slides": len(images),
        "patches": settings.steps * settings.batch_size,
        "seed": settings.seed,
        "encoder weights": study.encoder_weights,
        "final loss": round(losses[-1], 4),
        **about,
    }
    bundle = save_bundle(
        folder,
        model,
        spec,
        golden_tile=golden_tile,
        description=f"{spec.architecture} for {spec.kind.replace('_', ' ')}, trained from QuPath annotations.",
        training=described,
    )
    return bundle, losses
