"""Training a network on slide labels: one visible loop, early stopping, going on where it was killed."""

from __future__ import annotations

import dataclasses
import os
import pickle
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pyhisto.errors import TrainingError
from pyhisto.mil.data import BagReader, LabelledBags
from pyhisto.mil.labels import UNKNOWN
from pyhisto.mil.model import SlideModel, build_slide_model
from pyhisto.mil.settings import FitSettings
from pyhisto.train.checkpoint import fingerprint

__all__ = ["Epoch", "Fitted", "class_weights", "fit", "probabilities", "train_epoch"]

CHECKPOINT = "checkpoint.pt"
CHECKPOINT_S = 20.0
"""Least time between checkpoints: epochs over small bags take milliseconds."""

Report = Callable[["Epoch"], None]


@dataclass(frozen=True)
class Epoch:
    """Figures of one pass over the training bags.

    Attributes
    ----------
    number
        From 1.
    loss
        Mean over the bags as they were met.
    validation
        Mean loss of the validation bags afterwards; None without any.
    """

    number: int
    loss: float
    validation: float | None


@dataclass
class Fitted:
    """A training as far as it went.

    Attributes
    ----------
    model
        With the weights of the best epoch: that with the least validation loss, or the last without validation.
    epochs
        What was seen.
    best
        Number of the best epoch.
    """

    model: SlideModel
    epochs: list[Epoch] = field(default_factory=list)
    best: int = 0


@dataclass
class _State:
    """What a checkpoint holds besides model and optimiser."""

    epochs: list[Epoch] = field(default_factory=list)
    best: int = 0
    best_weights: dict[str, Tensor] = field(default_factory=dict)

    def is_over(self, settings: FitSettings) -> bool:
        done = len(self.epochs)
        return done >= settings.epochs or 0 < settings.patience <= done - self.best

    def add(self, row: Epoch, weights: Mapping[str, Tensor]) -> None:
        before = self.epochs[self.best - 1].validation if self.best else None
        self.epochs.append(row)
        if row.validation is None or before is None or row.validation < before:
            self.best = row.number
            self.best_weights = {name: value.detach().cpu().clone() for name, value in weights.items()}


def fit(
    training: LabelledBags,
    validation: LabelledBags | None,
    settings: FitSettings,
    *,
    folder: Path | None = None,
    device: str = "cpu",
    report: Report | None = None,
) -> Fitted:
    """Train a network on bags, and keep the weights of the best epoch.

    Everything that is drawn follows from the seed and the number of the epoch, so that a training that was killed and
    goes on from its checkpoint gives the same weights as one that was not.

    Parameters
    ----------
    training
        Bags to learn from.
    validation
        Bags by whose loss training stops; None to do all epochs.
    settings
        See :class:`FitSettings`.
    folder
        Where the checkpoint lies; made if it is not there. A checkpoint of another training is not used.
    device
        Where the network runs.
    report
        Called after each epoch.

    Raises
    ------
    TrainingError
        If a label has not two classes in the training bags, or the loss is no finite number.
    ConfigError
        If the head does not exist, or a feature file cannot be read.
    """
    _check_classes(training)
    share = len(training.bags) / (len(training.bags) + (0 if validation is None else len(validation.bags)))
    reader = _reader(training, settings, share)
    with torch.random.fork_rng():
        torch.manual_seed(settings.seed)
        model = build_slide_model(
            settings.head,
            training.bags[0].width,
            [len(task.classes) for task in training.tasks],
            scaled=settings.scaled,
            **asdict(settings.options),
        ).to(device)
        optimizer = torch.optim.Adam(
            [p for p in model.parameters() if p.requires_grad],
            lr=settings.learning_rate,
            weight_decay=settings.weight_decay,
            fused=True,
        )
        identity = _identity(training, validation, settings)
        path = None if folder is None else folder / CHECKPOINT
        state = _resumed(path, identity, model, optimizer, device)
        if state is None:
            state = _State()
            if settings.scaled:
                model.set_scale(*_scale(reader, len(training.bags)))
        weights = [None if w is None else w.to(device) for w in class_weights(training, settings.class_weights)]
        judge = None if validation is None else _reader(validation, settings, 1 - share)
        saved = time.monotonic()
        begun = len(state.epochs)
        while not state.is_over(settings):
            number = len(state.epochs) + 1
            torch.manual_seed((settings.seed << 20) + number)
            order = torch.randperm(len(training.bags)).tolist()
            loss = train_epoch(model, optimizer, reader, training.labels, order, weights, settings, device)
            judged = None
            if judge is not None and validation is not None:
                judged = _validation_loss(model, judge, validation.labels, weights, device)
            state.add(Epoch(number, loss, judged), model.state_dict())
            if report is not None:
                report(state.epochs[-1])
            if path is not None and time.monotonic() - saved > CHECKPOINT_S:
                _save(path, identity, model, optimizer, state)
                saved = time.monotonic()
    if path is not None and len(state.epochs) > begun:
        _save(path, identity, model, optimizer, state)
    model.load_state_dict(state.best_weights)
    return Fitted(model.eval(), state.epochs, state.best)


def train_epoch(
    model: SlideModel,
    optimizer: torch.optim.Optimizer,
    reader: BagReader,
    labels: npt.NDArray[np.int64],
    order: Sequence[int],
    weights: Sequence[Tensor | None],
    settings: FitSettings,
    device: str,
) -> float:
    """Go once over bags in some order; return the mean of the losses of the steps, weighted by their bags.

    Raises
    ------
    TrainingError
        If a loss is no finite number.
    """
    model.train()
    size = settings.batch_size
    groups = [order[at : at + size] for at in range(0, len(order), size)]
    losses, counts = [], []
    for batch in reader.batches(groups, settings.instances):
        truth = torch.from_numpy(labels[list(batch.numbers)]).to(device)
        optimizer.zero_grad()
        loss = model.loss(batch.instances.to(device), batch.offsets, truth, weights)
        if loss is None:
            continue
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(loss.detach())
        counts.append(len(batch.numbers))
    mean = float((torch.stack(losses).cpu() * torch.tensor(counts)).sum() / sum(counts))
    if not np.isfinite(mean):
        raise TrainingError(f"the loss became {mean}", remedy="lower the learning rate, or scale the features")
    return mean


def class_weights(bags: LabelledBags, how: str) -> list[Tensor | None]:
    """Return the weight of each class of each label, float32 (classes,), with a mean of 1 over the bags; or None."""
    if how == "none":
        return [None] * len(bags.tasks)
    out: list[Tensor | None] = []
    for number, task in enumerate(bags.tasks):
        mine = bags.labels[:, number]
        counts = np.bincount(mine[mine != UNKNOWN], minlength=len(task.classes))
        present = np.count_nonzero(counts)
        weights = np.divide(counts.sum(), present * counts, out=np.zeros(len(counts)), where=counts > 0)
        out.append(torch.from_numpy(weights.astype(np.float32)))
    return out


def probabilities(
    model: SlideModel, bags: LabelledBags, settings: FitSettings, *, device: str = "cpu"
) -> list[npt.NDArray[np.float32]]:
    """Return the probability of each class of each label, one float32 (bags, classes) a label."""
    model.eval()
    out: list[list[npt.NDArray[np.float32]]] = [[] for _ in bags.tasks]
    with torch.inference_mode():
        for batch in _reader(bags, settings, 0).batches([[i] for i in range(len(bags.bags))]):
            for rows, output in zip(out, model(batch.instances.to(device)), strict=True):
                rows.append(output.logits.softmax(dim=1).cpu().numpy()[0])
    return [np.stack(rows) for rows in out]


def _validation_loss(
    model: SlideModel,
    reader: BagReader,
    labels: npt.NDArray[np.int64],
    weights: Sequence[Tensor | None],
    device: str,
) -> float:
    """Return the mean cross-entropy of the bags, weighted by their class, summed over the labels."""
    model.eval()
    total, count = np.zeros(labels.shape[1]), np.zeros(labels.shape[1])
    with torch.inference_mode():
        for batch in reader.batches([[i] for i in range(len(labels))]):
            (number,) = batch.numbers
            for task, output in enumerate(model(batch.instances.to(device))):
                truth = int(labels[number, task])
                if truth != UNKNOWN:
                    own = weights[task]
                    weight = 1.0 if own is None else float(own[truth])
                    total[task] -= weight * float(output.logits.log_softmax(dim=1)[0, truth])
                    count[task] += weight
    return float(np.divide(total, count, out=np.zeros(len(count)), where=count > 0).sum())


def _scale(reader: BagReader, count: int) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation of each feature over all instances, summed up bag by bag in float64."""
    total, squares, n = torch.zeros(()), torch.zeros(()), 0
    shift: Tensor | None = None
    for batch in reader.batches([[i] for i in range(count)]):
        values = batch.instances.double()
        if shift is None:
            shift = values.mean(dim=0)  # near the mean of all, so that the squares do not swallow the variance
        values = values - shift
        total = total + values.sum(dim=0)
        squares = squares + values.square().sum(dim=0)
        n += len(values)
    mean = total / n
    variance = (squares / n - mean.square()).clamp(min=0)
    offset = torch.zeros(()) if shift is None else shift
    return (mean + offset).float(), variance.sqrt().float()


def _reader(bags: LabelledBags, settings: FitSettings, share: float) -> BagReader:
    """Return a reader that keeps a share of the features that may be kept."""
    return BagReader(bags.bags, memory=int(share * (settings.memory_mb << 20)), threads=settings.threads)


def _check_classes(bags: LabelledBags) -> None:
    for number, task in enumerate(bags.tasks):
        mine = bags.labels[:, number]
        found = sorted({task.classes[value] for value in mine[mine != UNKNOWN].tolist()})
        if len(found) < 2:
            raise TrainingError(
                f"label {task.name!r}: the {len(mine)} training slides have {', '.join(found) or 'no class'}",
                expected="two classes or more",
                remedy="use fewer folds, or more slides",
            )


def _identity(training: LabelledBags, validation: LabelledBags | None, settings: FitSettings) -> dict[str, str]:
    """Return hashes of what decides the weights."""
    decisive = dataclasses.replace(settings, memory_mb=0, threads=1)
    return fingerprint(
        {
            "settings": decisive,
            "training": _described(training),
            "validation": None if validation is None else _described(validation),
        }
    )


def _described(bags: LabelledBags) -> list[Any]:
    files = [[bag.name, bag.instances, bag.width, bag.path.stat().st_size] for bag in bags.bags]
    return [[asdict(task) for task in bags.tasks], files, bags.labels.tolist()]


def _save(
    path: Path, identity: Mapping[str, str], model: SlideModel, optimizer: torch.optim.Optimizer, state: _State
) -> None:
    """Write a checkpoint under another name first, down to the disk, and then put it in place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    with temporary.open("wb") as file:
        torch.save(
            {
                "identity": dict(identity),
                "model": model.state_dict(),
                "optimizer": optimizer.state_dict(),
                "epochs": [asdict(row) for row in state.epochs],
                "best": state.best,
                "best_weights": state.best_weights,
            },
            file,
        )
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def _resumed(
    path: Path | None,
    identity: Mapping[str, str],
    model: SlideModel,
    optimizer: torch.optim.Optimizer,
    device: str,
) -> _State | None:
    """Set everything to the checkpoint of the same training; None without one."""
    if path is None or not path.is_file():
        return None
    try:
        found = torch.load(path, map_location=device, weights_only=True)
    except (RuntimeError, EOFError, OSError, pickle.UnpicklingError):  # cut off by a full disk: begin anew
        return None
    if found.get("identity") != identity:
        return None
    model.load_state_dict(found["model"])
    optimizer.load_state_dict(found["optimizer"])
    return _State([Epoch(**row) for row in found["epochs"]], found["best"], found["best_weights"])
