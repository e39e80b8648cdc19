"""One visible training loop."""

from __future__ import annotations

import dataclasses
import math
import random
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import AdamW
from torch.optim.lr_scheduler import OneCycleLR
from tqdm import tqdm

from pyhisto.bundle.files import ModelSpec, normalise
from pyhisto.device import fast_bfloat16
from pyhisto.errors import ConfigError, TrainingError
from pyhisto.losses import build_loss
from pyhisto.train.batches import Batches, training_batches
from pyhisto.train.checkpoint import Checkpoints, fingerprint, weights_hash
from pyhisto.train.distributed import Team, join_team
from pyhisto.train.history import History, Validation
from pyhisto.train.settings import TrainSettings
from pyhisto.train.validation import Examiner

if TYPE_CHECKING:
    from pyhisto.dataset import PatchDataset, ValidationDataset

__all__ = ["TrainResult", "train"]

SHORTEST_CYCLE = 6
"""Fewest steps of the one-cycle schedule; its rise over a fifth of five steps would have no length."""

DTYPES = {"float32": torch.bfloat16, "bfloat16": torch.bfloat16, "float16": torch.float16}
"""What autocast computes in, by precision; in float32 it is off."""

LONGEST_WAIT = 0.2
"""Share of the time that the loop may wait for patches before it says so."""

Progress: TypeAlias = Callable[[str, int, int], None]
"""Called with the stage, the number of steps done and that in all."""


@dataclass(frozen=True)
class TrainResult:
    """What came of a training.

    Attributes
    ----------
    losses
        Of each step.
    validation
        Figures before the first step, every ``validate_every`` steps and after the last; empty without validation
        windows.
    best_step
        How many steps led to the weights that the model has now.
    stopped_early
        Whether the validation figure stopped improving before all steps were done.
    data_wait_share
        Share of the time that the loop waited for patches, 0 to 1; 0 if no step was left to do.
    """

    losses: list[float]
    validation: list[Validation]
    best_step: int
    stopped_early: bool
    data_wait_share: float


def train(
    model: nn.Module,
    dataset: PatchDataset,
    spec: ModelSpec,
    settings: TrainSettings,
    folder: Path,
    *,
    validation: ValidationDataset | None = None,
    device: str = "cpu",
    progress: Progress | None = None,
) -> TrainResult:
    """Train a network in place, in this process or in those that ``torchrun`` started.

    Parameters
    ----------
    model
        Maps (B, 3, H, W) to logits (B, classes or regions, H, W). Holds the best weights in the end, by the mean Dice
        of the foreground classes on the validation windows; without those, the last ones.
    dataset
        At least ``steps * batch_size`` patches.
    spec
        For the pre-processing, the classes and the regions.
    settings
        See :class:`TrainSettings`.
    folder
        Gets ``checkpoint.pt`` (resumed from, if it is there and was made with the same settings, patches, validation
        windows and initial weights), ``best.pt``, ``curve.csv`` and ``curve.png``.
    validation
        Windows that are not trained on; None for none.
    device
        ``"cpu"``, ``"cuda"`` or ``"mps"``.
    progress
        Called after each step, in the first process, with ``"training"``, the number of steps done and that in all;
        what it raises ends the training, which goes on from its checkpoint the next time.

    Raises
    ------
    TrainingError
        If loss or gradient is not finite, the data set is too short, the joint batch does not divide by the number of
        processes, or no validation window shows a class to learn.
    ConfigError
        If the device cannot compute in the precision, or the loss does not fit the classes.
    """
    team = join_team(device)
    _check(dataset, validation, settings, team)
    precision = _precision(settings.precision, device)
    criterion = build_loss(settings.loss, classes=len(spec.classes), regions=spec.regions).to(team.device)
    identity = {
        "settings": dataclasses.replace(settings, workers=0, checkpoint_every=1),  # these two change no number
        "precision": precision,
        "model description": spec,
        "patches": dataset.describe(),
        "validation windows": validation.describe() if validation is not None else None,
        "initial weights": weights_hash(model),
    }
    _seed(settings.seed + team.rank)  # each rank drops out other units

    model.to(team.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    network = team.parallel(model)
    trained = network.module if isinstance(network, DistributedDataParallel) else network
    optimizer, schedule = _optimizer(trained, settings)
    autocast = torch.autocast(team.device.type, DTYPES[precision], enabled=precision != "float32")
    scaler = torch.amp.GradScaler(team.device.type, enabled=precision == "float16")
    states = {"model": trained, "optimizer": optimizer, "schedule": schedule, "scaler": scaler}
    checkpoints = Checkpoints(folder, fingerprint(identity), states, team)
    history = checkpoints.resume()

    examiner = Examiner(validation, criterion, spec, settings, team, autocast)
    if examiner.is_due(0) and not history.validations:
        history.add(examiner.examine(trained, step=0), trained.state_dict())
    batches = training_batches(dataset, settings, team, history)
    bar = tqdm(desc=f"train {spec.kind}", total=settings.steps, initial=len(history.losses), disable=not team.first)
    _to_train(network, settings)
    for rgb, labels, *weights in batches:
        step = len(history.losses) + 1
        x = normalise(rgb.to(team.device, non_blocking=True), spec).contiguous(memory_format=torch.channels_last)
        with autocast:
            logits = network(x)  # (b, classes or regions, H, W): this rank's slice of the joint batch
        truth = [team.gather(t.to(team.device, non_blocking=True)) for t in (labels, *weights)]
        loss = criterion(team.gather(logits.float()), *truth)
        history.losses.append(_finite("loss", loss, step))

        optimizer.zero_grad(set_to_none=True)
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        norm = nn.utils.clip_grad_norm_(trained.parameters(), settings.clip_norm)
        if not scaler.is_enabled():  # the scaler leaves out a step whose gradient overflows
            _finite("gradient", norm, step)
        _advance(optimizer, schedule, scaler)

        if examiner.is_due(step):
            history.add(examiner.examine(trained, step=step), trained.state_dict())
        over = history.is_over(settings.steps, settings.patience)
        if over or step % settings.checkpoint_every == 0:
            checkpoints.save(history, picture=over or examiner.is_due(step))
        _show(bar, history, settings, progress if team.first else None)
        if over:
            break
    bar.close()

    model.load_state_dict(history.best_weights or trained.state_dict())
    model.eval()
    _say_if_starved(batches, settings, team)
    return TrainResult(
        losses=history.losses,
        validation=history.validations,
        best_step=history.best_step,
        stopped_early=len(history.losses) < settings.steps,
        data_wait_share=batches.wait_share,
    )


def _show(bar: Any, history: History, settings: TrainSettings, progress: Progress | None) -> None:
    """Show that a step is done."""
    bar.set_postfix_str(_summary(history), refresh=False)
    bar.update()
    if progress is not None:
        progress("training", len(history.losses), settings.steps)


def _check(dataset: Any, validation: Any, settings: TrainSettings, team: Team) -> None:
    if len(dataset) < settings.steps * settings.batch_size:
        raise TrainingError(f"{len(dataset)} patches for {settings.steps} steps of {settings.batch_size}")
    if settings.batch_size % team.size:
        raise TrainingError(
            f"batch_size = {settings.batch_size} for {team.size} processes", expected=f"a multiple of {team.size}"
        )
    if validation is not None and len(validation) == 0:
        raise TrainingError("no validation window", remedy="annotate validation slides, or train without validation")


def _precision(wanted: str, device: str) -> str:
    """Return what the network computes in: ``"float32"``, ``"bfloat16"`` or ``"float16"``."""
    fast = fast_bfloat16(device)
    if wanted == "auto":
        return "bfloat16" if fast else "float16" if device == "cuda" else "float32"
    if (wanted == "bfloat16" and not fast) or (wanted == "float16" and device != "cuda"):
        raise ConfigError(f"precision {wanted!r} on the device {device!r}, which is not fast at it", expected="'auto'")
    return wanted


def _to_train(network: nn.Module, settings: TrainSettings) -> None:
    """Put a network into training mode; with ``keep_statistics`` all but its normalisation by running figures."""
    network.train()
    if settings.keep_statistics:
        for layer in network.modules():
            if isinstance(layer, nn.modules.batchnorm._BatchNorm):
                layer.eval()


def _seed(seed: int) -> None:
    """Seed the global generators, from which dropout and the like draw."""
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    torch.manual_seed(seed)


def _optimizer(network: nn.Module, settings: TrainSettings) -> tuple[AdamW, OneCycleLR]:
    """Return AdamW on the parameters to train, and its schedule; only weights of more than one dimension decay."""
    parameters = [p for p in network.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": settings.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    optimizer = AdamW(groups, lr=settings.learning_rate)
    length = max(settings.steps, SHORTEST_CYCLE)
    return optimizer, OneCycleLR(optimizer, max_lr=settings.learning_rate, total_steps=length, pct_start=0.2)


def _advance(optimizer: AdamW, schedule: OneCycleLR, scaler: torch.amp.GradScaler) -> None:
    """Do the optimiser's step and, unless the scaler left that out because a gradient overflowed, the schedule's."""
    scale = scaler.get_scale()
    scaler.step(optimizer)
    scaler.update()
    if scaler.get_scale() >= scale:
        schedule.step()


def _finite(what: str, value: torch.Tensor, step: int) -> float:
    number = value.item()
    if not math.isfinite(number):
        raise TrainingError(f"{what} became {number} at step {step}", remedy="lower learning_rate")
    return number


def _say_if_starved(batches: Batches, settings: TrainSettings, team: Team) -> None:
    if team.first and batches.wait_share > LONGEST_WAIT:
        tqdm.write(
            f"the loop waited for patches {batches.wait_share:.0%} of the time; more workers than {settings.workers} "
            "or a faster disk would shorten the training",
            file=sys.stderr,
        )


def _summary(history: History) -> str:
    """Return mean loss of the last ten steps, and the last and the best mean Dice."""
    text = f"loss={np.mean(history.losses[-10:]):.3f}"
    if history.best is not None:
        text += f", dice={history.validations[-1].mean_dice:.3f}, best={history.best.mean_dice:.3f}"
    return text
