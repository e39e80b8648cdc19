"""One visible training loop."""

from __future__ import annotations

import csv
import hashlib
import json
import pickle
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, Subset
from tqdm import tqdm

from pyhisto.bundle import ModelSpec, normalise
from pyhisto.dataset import PatchDataset
from pyhisto.device import fast_bfloat16
from pyhisto.errors import TrainingError
from pyhisto.losses import DiceCrossEntropy

__all__ = ["TrainSettings", "train"]

SHORTEST_CYCLE = 6
"""Fewest steps of the one-cycle schedule; its rise over a fifth of five steps would have no length."""


@dataclass(frozen=True)
class TrainSettings:
    """How a network is trained.

    Attributes
    ----------
    steps, batch_size
        Number of optimiser steps and patches in each.
    learning_rate, weight_decay
        Peak of the one-cycle schedule (Smith 2018) and decay of AdamW (Loshchilov 2019).
    clip_norm
        Largest norm of the gradient.
    class_weights
        Weight of each class in the cross-entropy; empty for all alike.
    seed
        Of weights and patches.
    workers
        Processes that read patches beside the loop.
    checkpoint_every
        Steps between checkpoints; a killed training goes on from the last one.
    """

    steps: int = 150
    batch_size: int = 8
    learning_rate: float = 2e-3
    weight_decay: float = 1e-4
    clip_norm: float = 1.0
    class_weights: tuple[float, ...] = ()
    seed: int = 0
    workers: int = 1
    checkpoint_every: int = 25


def train(
    model: nn.Module,
    dataset: PatchDataset,
    spec: ModelSpec,
    settings: TrainSettings,
    folder: Path,
    *,
    device: str = "cpu",
) -> list[float]:
    """Train a network in place.

    Parameters
    ----------
    model
        Maps (B, 3, H, W) to logits (B, classes, H, W).
    dataset
        At least ``steps * batch_size`` patches.
    spec
        For the pre-processing.
    settings
        See :class:`TrainSettings`.
    folder
        Gets ``checkpoint.pt`` (resumed from, if it is there and was made with the same settings) and ``curve.csv``.
    device
        ``"cpu"``, ``"cuda"`` or ``"mps"``.

    Returns
    -------
    list of float
        The loss of each step.

    Raises
    ------
    TrainingError
        If the loss is not finite, the data set is too short, or there is not one weight for each class.
    """
    _check(dataset, spec, settings)
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint = folder / "checkpoint.pt"
    model = model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    weight = torch.tensor(settings.class_weights) if settings.class_weights else None
    criterion = DiceCrossEntropy(weight).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=settings.learning_rate, total_steps=max(settings.steps, SHORTEST_CYCLE), pct_start=0.2
    )
    fingerprint = _fingerprint(dataset, spec, settings)
    losses = _resume(checkpoint, fingerprint, model, optimizer, schedule)
    reduced = fast_bfloat16(device)

    model.train()
    bar = tqdm(total=settings.steps, initial=len(losses), desc=f"train {spec.kind}", unit="step")
    for tiles, labels in _batches(dataset, settings, first=len(losses)):
        x = normalise(tiles.numpy(), spec).to(device, memory_format=torch.channels_last)  # (B, 3, H, W)
        with torch.autocast(device, torch.bfloat16, enabled=reduced):
            logits = model(x)  # (B, classes, H, W)
        loss = criterion(logits.float(), labels.to(device))
        if not torch.isfinite(loss):
            raise TrainingError(f"loss became {loss.item()} at step {len(losses)}", remedy="lower learning_rate")
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), settings.clip_norm)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
        bar.update()
        bar.set_postfix(loss=f"{np.mean(losses[-10:]):.3f}")
        if len(losses) % settings.checkpoint_every == 0 or len(losses) == settings.steps:
            _save(checkpoint, fingerprint, model, optimizer, schedule, losses)
    bar.close()
    _write_curve(folder / "curve.csv", losses)
    model.eval()
    return losses


def _check(dataset: PatchDataset, spec: ModelSpec, settings: TrainSettings) -> None:
    if len(dataset) < settings.steps * settings.batch_size:
        raise TrainingError(f"{len(dataset)} patches for {settings.steps} steps of {settings.batch_size}")
    if len(settings.class_weights) not in {0, len(spec.classes)}:
        raise TrainingError(f"{len(settings.class_weights)} class weights for {len(spec.classes)} classes")


def _batches(
    dataset: PatchDataset, settings: TrainSettings, *, first: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield the batches of steps `first` .. `steps`: RGB uint8 (B, H, W, 3) and labels uint8 (B, H, W)."""
    wanted = range(first * settings.batch_size, settings.steps * settings.batch_size)
    if len(wanted) == 0:
        return
    loader: DataLoader[Any] = DataLoader(
        Subset(dataset, wanted),  # type: ignore[arg-type]
        batch_size=settings.batch_size,
        num_workers=settings.workers,
        prefetch_factor=4 if settings.workers else None,
    )
    yield from loader


def _fingerprint(dataset: PatchDataset, spec: ModelSpec, settings: TrainSettings) -> str:
    """Return a hash of all that decides what the steps compute (but not of how often they are saved)."""
    own = {key: value for key, value in asdict(settings).items() if key not in {"workers", "checkpoint_every"}}
    description = json.dumps([own, spec.to_dict(), dataset.describe()], sort_keys=True, default=str)
    return hashlib.sha256(description.encode()).hexdigest()


def _resume(checkpoint: Path, fingerprint: str, model: nn.Module, optimizer: Any, schedule: Any) -> list[float]:
    """Load a checkpoint of the same training into the model; return its losses, or none if there is no such one."""
    if not checkpoint.is_file():
        return []
    try:
        state = torch.load(checkpoint, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, OSError, pickle.UnpicklingError) as error:
        tqdm.write(f"checkpoint {checkpoint} cannot be read ({type(error).__name__}); training starts anew")
        return []
    if state.get("fingerprint") != fingerprint:
        tqdm.write(f"checkpoint {checkpoint} is of other settings or annotations; training starts anew")
        return []
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    schedule.load_state_dict(state["schedule"])
    return list(state["losses"])


def _save(
    checkpoint: Path, fingerprint: str, model: nn.Module, optimizer: Any, schedule: Any, losses: list[float]
) -> None:
    temporary = checkpoint.with_suffix(".tmp")
    state = {
        "fingerprint": fingerprint,
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "schedule": schedule.state_dict(),
        "losses": losses,
    }
    torch.save(state, temporary)
    temporary.replace(checkpoint)


def _write_curve(path: Path, losses: list[float]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["step", "loss"])
        writer.writerows(enumerate(losses))
