"""Training of a coarse-to-fine model: the detector of patches first, then what refines its heatmaps."""

from __future__ import annotations

import dataclasses
import hashlib
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import scipy.ndimage as ndi
import shapely
import torch

from pyhisto.bundle.files import Bundle, ModelSpec
from pyhisto.bundle.spec import CascadeSpec
from pyhisto.dataset import IGNORED, TrainingImage, labelled_areas
from pyhisto.dataset.cascade import (
    DetectorPatches,
    DetectorWindows,
    HeatedImage,
    RefinerPatches,
    RefinerWindows,
    heat_classes,
)
from pyhisto.dataset.describe import describe_images
from pyhisto.errors import BundleError
from pyhisto.heatmap import HIDDEN_HEAT, Heatmap
from pyhisto.inference import PLAIN
from pyhisto.inference.cascade import detect_heat
from pyhisto.models import tile_divisor
from pyhisto.models.cascade import Cascade, build_cascade, golden_side
from pyhisto.slide import Slide
from pyhisto.tissue import TissueSettings, detect_tissue
from pyhisto.train import TrainResult, train
from pyhisto.train.checkpoint import weights_hash
from pyhisto.train.distributed import join_team
from qupath_ext.study import CascadeStudy, TrainStudy
from qupath_ext.workflows.lanes import Progress
from qupath_ext.workflows.regions import TISSUE_MARGIN_UM

__all__ = ["CURVES", "clear_stages", "golden_frame", "initial_cascade", "train_cascade"]

CURVES = ("detector-curve.csv", "detector-curve.png")
"""Learning curve of the first stage, beside that of the second."""

STAGE, HEAT = "detector", "heat"
"""Folders of the work folder: checkpoints of the first stage, and heatmaps."""

WINDOW_PATCHES = 8
"""Patches that the first stage is validated on for each window of the second."""

REACH_TILES = 1.5
"""How far around labelled areas heat is needed, in tiles of the second stage."""

Say = Callable[[str], None]


def initial_cascade(spec: ModelSpec, study: TrainStudy, init: Bundle | None, say: Say) -> Cascade:
    """Build the two networks that training starts from.

    Parameters
    ----------
    spec, study, init, say
        As in :func:`qupath_ext.workflows.training.initial_network`.

    Raises
    ------
    BundleError
        If the model to go on from has one network, or other classes.
    """
    stage, wanted = _both(spec, study)
    torch.manual_seed(study.training.seed)
    network = build_cascade(
        detector={
            "name": stage.detector,
            "channels": stage.channels,
            "patch": stage.patch_size,
            "out_channels": len(spec.classes),
            "encoder_weights": wanted.encoder_weights if init is None else "random",
        },
        refiner={
            "name": spec.architecture,
            "out_channels": spec.out_channels,
            "decoder_channels": spec.decoder_channels,
            "encoder_weights": study.model.encoder_weights if init is None else "random",
            "heat_channels": len(spec.classes) - 1,
        },
        ratio=spec.ratio,
    )
    if init is not None:
        if [c.classification for c in init.spec.classes] != [c.classification for c in spec.classes]:
            raise BundleError(
                f"{init.path.name} has the classes {', '.join(c.name for c in init.spec.classes)}",
                expected="those of the study, in their order, for a coarse-to-fine model",
            )
        weights = init.path / "models" / "model.pt"
        network.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
        say(f"going on from {init.path.name} ({init.sha256[:12]}): both networks")
    return network


@dataclass(frozen=True)
class _Run:
    """What a training of both stages is made of; see :func:`train_cascade`."""

    network: Cascade
    images: Sequence[TrainingImage]
    study: TrainStudy
    spec: ModelSpec
    work: Path
    device: str
    say: Say
    progress: Progress | None = None

    @property
    def stage(self) -> CascadeSpec:
        """The first stage of the model."""
        return _both(self.spec, self.study)[0]

    @property
    def wanted(self) -> CascadeStudy:
        """How the first stage is trained."""
        return _both(self.spec, self.study)[1]

    def judged(self) -> list[int]:
        """Return the numbers of the images with something to validate on."""
        task = self.study.task()
        return [number for number, image in enumerate(self.images) if labelled_areas(image, task, "validation")]


def train_cascade(
    network: Cascade,
    images: Sequence[TrainingImage],
    study: TrainStudy,
    spec: ModelSpec,
    work: Path,
    *,
    device: str,
    say: Say,
    progress: Progress | None = None,
) -> tuple[TrainResult, dict[str, float]]:
    """Train both networks in place, one after the other; killed at any moment, the same call goes on.

    Parameters
    ----------
    network
        Both networks.
    images
        Annotated slides of the parts to train and to validate on.
    study, spec
        What is learnt and how, and the model that comes of it.
    work
        Checkpoints and learning curve of the second stage; those of the first in a folder of it, and the heatmaps.
    device, say, progress
        As in :func:`qupath_ext.workflows.training.train_bundle`.

    Returns
    -------
    result : TrainResult
        Of the second stage; its validation is that of the refined segmentation.
    figures : dict
        For the model card: the Dice of the heatmap alone on the same windows, and what is proposed; empty without
        validation.
    """
    run = _Run(network, images, study, spec, work, device, say, progress)
    detector_spec, refiner_spec = spec.stages(run.stage)
    _train_detector(run, detector_spec)
    heated = _with_heat(run, Bundle(work, detector_spec, "", network.detector, device))
    settings, task = study.training, study.task()
    frame: dict[str, Any] = {"mpp": spec.mpp, "size": spec.tile_size}
    patches = RefinerPatches(
        heated,
        task,
        **frame,
        hidden=run.wanted.hidden,
        length=settings.steps * settings.batch_size,
        seed=settings.seed,
        augmentation=study.augmentation,
        sampling=study.sampling,
    )
    shown = [heated[number] for number in run.judged()]
    windows = RefinerWindows(shown, task, **frame, limit=study.validation_windows) if shown else None
    say("second stage: heatmap and low magnification become a segmentation")
    result = train(
        network.refiner,
        patches,
        refiner_spec,
        settings,
        work,
        validation=windows,
        device=device,
        progress=progress,
    )
    if windows is None or not join_team(device).first:
        return result, {}
    return result, _figures(run, windows, Bundle(work, refiner_spec, "", network.refiner, device))


def golden_frame(spec: ModelSpec) -> dict[str, Any]:
    """Return the pixel size and side of the tiles with which a saved model checks itself."""
    if spec.cascade is None:
        return {"mpp": spec.mpp, "size": spec.tile_size}
    divisor = tile_divisor(spec.architecture, spec.decoder_channels)
    return {"mpp": spec.cascade.mpp, "size": golden_side(spec.cascade.patch_size, spec.ratio, divisor)}


def clear_stages(work: Path) -> None:
    """Remove what is needed only to go on."""
    for name in (STAGE, HEAT):
        shutil.rmtree(work / name, ignore_errors=True)


def _both(spec: ModelSpec, study: TrainStudy) -> tuple[CascadeSpec, CascadeStudy]:
    if spec.cascade is None or study.cascade is None:
        raise BundleError("a model of one network", expected="a coarse-to-fine model")
    return spec.cascade, study.cascade


def _train_detector(run: _Run, spec: ModelSpec) -> None:
    """Train the first stage, and put its learning curve beside that of the second."""
    settings, task, folder = run.wanted.training, run.study.task(), run.work / STAGE
    frame: dict[str, Any] = {"mpp": spec.mpp, "size": spec.tile_size, "rule": run.wanted.rule}
    patches = DetectorPatches(
        run.images,
        task,
        **frame,
        length=settings.steps * settings.batch_size,
        seed=settings.seed,
        augmentation=run.study.augmentation,
        sampling=run.study.sampling,
    )
    judged = [run.images[number] for number in run.judged()]
    limit = run.study.validation_windows * WINDOW_PATCHES
    windows = DetectorWindows(judged, task, **frame, limit=limit) if judged else None
    run.say(f"first stage: patches of {spec.tile_size} px at {spec.mpp:g} µm/px become a heatmap")
    result = train(
        run.network.detector,
        patches,
        spec,
        settings,
        folder,
        validation=windows,
        device=run.device,
        progress=run.progress,
    )
    for row in result.validation:
        run.say(f"first stage, step {row.step}: validation loss {row.loss:.4f}, Dice of patches {row.mean_dice:.4f}")
    if join_team(run.device).first:
        for name in CURVES:
            made = folder / name.removeprefix("detector-")
            if made.is_file():
                shutil.copyfile(made, run.work / name)


def _with_heat(run: _Run, detector: Bundle) -> list[HeatedImage]:
    """Return the images with their heatmaps, which the first process makes and all read."""
    team = join_team(run.device)
    weights = weights_hash(run.network.detector)
    out = []
    for number, image in enumerate(run.images):
        text = repr((weights, detector.spec, describe_images([image]), run.spec.tile_size, run.spec.mpp))
        identity = hashlib.sha256(text.encode()).hexdigest()
        path = run.work / HEAT / f"{number}.npz"
        if team.first and Heatmap.load(path, identity) is None:
            path.parent.mkdir(exist_ok=True)
            with image.open() as slide:
                heat = detect_heat(slide, detector, _around_labels(run, image, slide), lens=image.lens or PLAIN)
            heat.save(path, identity)
        team.share(None)  # waits for the file
        given = {field.name: getattr(image, field.name) for field in dataclasses.fields(TrainingImage) if field.init}
        out.append(HeatedImage(**given, heat=Heatmap.load(path, identity)))
    run.say(f"heatmaps of {len(out)} images")
    return out


def _around_labels(run: _Run, image: TrainingImage, slide: Slide) -> Any:
    """Return the tissue of a slide as far as patches of the second stage show it, level-0 px."""
    task = run.study.task()
    areas = [*labelled_areas(image, task, "train"), *labelled_areas(image, task, "validation")]
    reach = REACH_TILES * run.spec.tile_size * image.seen_mpp(run.spec.mpp) / min(slide.mpp)
    near = shapely.union_all(shapely.buffer(areas, reach, join_style="mitre"))
    tissue = detect_tissue(slide, TissueSettings(margin_um=TISSUE_MARGIN_UM))
    return near.intersection(shapely.union_all(tissue.geometry.to_numpy()))


def _figures(run: _Run, windows: RefinerWindows, refiner: Bundle) -> dict[str, float]:
    """Return the Dice of the heatmap alone, how much is proposed and how much of each class that holds; and say so."""
    stage, names = run.stage, [c.name for c in run.spec.classes]
    side = 2 * round(stage.proposal_margin_um / run.spec.mpp) + 1
    truth, alone, both, read = (np.zeros(len(names)) for _ in range(4))  # pixels by class
    for number in range(len(windows)):
        pixels, labels, *_ = windows[number]
        known = labels != IGNORED
        found = heat_classes(pixels[..., 3:])
        pixels[..., 3:] = HIDDEN_HEAT
        possible = 1 - refiner.predict(pixels[np.newaxis])[0, 0] > stage.proposal_threshold
        proposed = ndi.maximum_filter(possible, side)
        truth += np.bincount(labels[known], minlength=len(names))
        alone += np.bincount(found[known], minlength=len(names))
        both += np.bincount(labels[known & (found == labels)], minlength=len(names))
        read += np.bincount(labels[known & proposed], minlength=len(names))
    there = [number for number in range(1, len(names)) if truth[number]]
    out = {f"Dice {names[n]}, heatmap alone": 2 * both[n] / (truth[n] + alone[n]) for n in there}
    run.say(f"validation: {', '.join(f'{name} {value:.4f}' for name, value in out.items())}")
    if stage.propose:
        shares = {f"share of {names[n]} inside the proposal": read[n] / truth[n] for n in there}
        shares["share of the labelled area inside the proposal"] = read.sum() / truth.sum()
        run.say(f"validation: {', '.join(f'{name} {value:.1%}' for name, value in shares.items())}")
        out |= shares
    return {name: round(float(value), 4) for name, value in out.items()}
