"""Training a classifier of instances on labels of bags: one visible loop, going on where it was killed."""

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
from torch.nn import functional

from pyhisto.errors import TrainingError
from pyhisto.features.bags import Bag
from pyhisto.features.encoders import PIXELS
from pyhisto.mil.data import LabelledBags
from pyhisto.mil.weak.network import InstanceNetwork, build_instance_network
from pyhisto.mil.weak.reading import Draw, InstanceReader
from pyhisto.mil.weak.rule import LEFT_OUT, ProxyRule, weighted_auroc
from pyhisto.mil.weak.settings import WeakSettings
from pyhisto.train.checkpoint import fingerprint

__all__ = ["WeakEpoch", "WeakFit", "fit_weak", "instance_probabilities", "proxy_loss", "training_identity"]

CHECKPOINT = "checkpoint.pt"
CHECKPOINT_S = 20.0
"""Least time between checkpoints: epochs over few features take milliseconds."""

TILES_AT_ONCE = 64
FEATURES_AT_ONCE = 8192

Report = Callable[["WeakEpoch"], None]


@dataclass(frozen=True)
class WeakEpoch:
    """Figures of one pass over the training slides.

    Attributes
    ----------
    number
        From 1.
    loss
        Mean over the slides as they were met.
    validation, auroc
        Mean loss of the validation slides afterwards, and the area under the ROC curve of their probabilities; None
        without any.
    """

    number: int
    loss: float
    validation: float | None
    auroc: float | None

    def beats(self, other: WeakEpoch | None) -> bool:
        """Return whether this is the better one: by AUROC, of equal ones by the validation loss; the later without."""
        if other is None or self.validation is None or other.validation is None:
            return True
        return (self.auroc or 0.0, -self.validation) > (other.auroc or 0.0, -other.validation)


@dataclass
class WeakFit:
    """A training as far as it went.

    Attributes
    ----------
    network
        With the weights of the best epoch.
    epochs
        What was seen.
    best
        Number of the best epoch.
    """

    network: InstanceNetwork
    epochs: list[WeakEpoch] = field(default_factory=list)
    best: int = 0
    best_weights: dict[str, Tensor] = field(default_factory=dict)

    def is_over(self, settings: WeakSettings) -> bool:
        """Return whether all epochs are done, or the last ones brought nothing."""
        done = len(self.epochs)
        return done >= settings.epochs or 0 < settings.patience <= done - self.best

    def add(self, row: WeakEpoch) -> None:
        """Take in an epoch, and the weights after it if they are the best."""
        before = self.epochs[self.best - 1] if self.best else None
        self.epochs.append(row)
        if row.beats(before):
            self.best = row.number
            self.best_weights = {k: v.detach().cpu().clone() for k, v in self.network.state_dict().items()}


def fit_weak(
    training: LabelledBags,
    validation: LabelledBags | None,
    rule: ProxyRule,
    settings: WeakSettings,
    *,
    folder: Path | None = None,
    device: str = "cpu",
    report: Report | None = None,
) -> WeakFit:
    """Train a network that judges single instances, and keep the weights of the best epoch.

    At each step some instances of some slides are judged, `rule` gives them proxy labels by what the network says now,
    and the mean binary cross-entropy of each slide's labelled instances is made smaller. All that is drawn follows from
    the seed and the number of the epoch, so that a training that was killed gives the same weights as one that was not.

    Parameters
    ----------
    training
        Bags with one label of two classes, of which the second is the positive one; none is unknown.
    validation
        Bags by which training stops: by the AUROC of the slides, and where it stays the same by their loss; None to
        do all epochs.
    rule
        The proxy labels.
    settings
        See :class:`pyhisto.mil.weak.settings.WeakSettings`.
    folder
        Where the checkpoint lies; made if it is not there. A checkpoint of another training is not used.
    device
        Where the network runs.
    report
        Called after each epoch.

    Raises
    ------
    TrainingError
        If training or validation slides are all of one class, or the loss is no finite number.
    ConfigError
        If the network does not exist or does not fit the instances, or a file cannot be read.
    """
    for what, part in (("training", training), ("validation", validation)):
        if part is not None:
            _check_classes(what, part)
    share = len(training.bags) / (len(training.bags) + (0 if validation is None else len(validation.bags)))
    reader = _reader(training, settings, share)
    judge = None if validation is None else _reader(validation, settings, 1 - share)
    identity = training_identity(training, validation, rule, settings)
    path = None if folder is None else folder / CHECKPOINT
    first = training.bags[0]
    with torch.random.fork_rng():
        torch.manual_seed(settings.seed)
        network = build_instance_network(settings.network, first.width, first.encoder).to(device)
        optimizer = torch.optim.Adam(
            network.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay
        )
        fit = WeakFit(network)
        if not _resume(path, identity, fit, optimizer, device) and first.encoder != PIXELS:
            network.set_scale(*_scale(training.bags, reader))
        saved = time.monotonic()
        begun = len(fit.epochs)
        while not fit.is_over(settings):
            number = len(fit.epochs) + 1
            torch.manual_seed((settings.seed << 20) + number)
            draws = _draws(training.bags, settings, number)
            loss = _train_epoch(network, optimizer, reader, training, draws, rule, settings)
            judged, auroc = None, None
            if judge is not None and validation is not None:
                judged, auroc = _validate(network, judge, validation, rule, settings)
            fit.add(WeakEpoch(number, loss, judged, auroc))
            if report is not None:
                report(fit.epochs[-1])
            if path is not None and time.monotonic() - saved > CHECKPOINT_S:
                _save(path, identity, fit, optimizer)
                saved = time.monotonic()
    if path is not None and len(fit.epochs) > begun:
        _save(path, identity, fit, optimizer)
    network.load_state_dict(fit.best_weights)
    network.eval()
    return fit


def proxy_loss(logits: Sequence[Tensor], positive: Sequence[bool], rule: ProxyRule, weights: Sequence[float]) -> Tensor:
    """Return the mean over bags of the mean binary cross-entropy of their labelled instances, times their weight.

    Parameters
    ----------
    logits
        (n,) for each bag.
    positive
        The label of each bag.
    rule
        What labels the instances, by these logits; no gradient goes through that.
    weights
        Of each bag.
    """
    losses = []
    for mine, label, weight in zip(logits, positive, weights, strict=True):
        proxy = torch.from_numpy(rule.labels(mine.detach().cpu().numpy(), positive=label)).to(mine.device)
        known = proxy != LEFT_OUT
        loss = functional.binary_cross_entropy_with_logits(mine[known], proxy[known].float())
        losses.append(weight * loss)
    return torch.stack(losses).mean()


def instance_probabilities(
    network: InstanceNetwork,
    bag: Bag,
    *,
    threads: int = 2,
    report: Callable[[int], None] | None = None,
) -> npt.NDArray[np.float32]:
    """Return the probability of each instance of a bag, float32 (n,); read and judged some at a time.

    Parameters
    ----------
    network
        In evaluation mode.
    bag
        Feature file or tiles.
    threads
        That read ahead.
    report
        Called with the number of instances that are done.
    """
    size = FEATURES_AT_ONCE if network.side is None else TILES_AT_ONCE
    parts = [np.arange(at, min(at + size, bag.instances)) for at in range(0, bag.instances, size)]
    reader = InstanceReader([bag], memory=0, threads=threads)
    out = np.empty(bag.instances, dtype=np.float32)
    done = 0
    with torch.inference_mode():
        for rows in reader.read([(0, part) for part in parts]):
            found = network(torch.from_numpy(rows).to(network.scale.device)).sigmoid()
            out[done : done + len(rows)] = found.cpu().numpy()
            done += len(rows)
            if report is not None:
                report(done)
    return out


def training_identity(
    training: LabelledBags, validation: LabelledBags | None, rule: ProxyRule, settings: WeakSettings
) -> dict[str, str]:
    """Return hashes of what decides the weights."""
    return fingerprint(
        {
            "settings": dataclasses.replace(settings, memory_mb=0, threads=1),
            "rule": rule,
            "training": _described(training),
            "validation": None if validation is None else _described(validation),
        }
    )


def _train_epoch(
    network: InstanceNetwork,
    optimizer: torch.optim.Optimizer,
    reader: InstanceReader,
    bags: LabelledBags,
    draws: Sequence[Draw],
    rule: ProxyRule,
    settings: WeakSettings,
) -> float:
    """Go once over the slides; return the mean of their losses."""
    network.train()
    weights = _slide_weights(bags, settings)
    steps = np.array_split(np.arange(len(draws)), -(-len(draws) // settings.batch_size))  # of nearly equal size
    rows = reader.read(draws)
    total = 0.0
    for step in steps:
        parts = [torch.from_numpy(next(rows)) for _ in step]
        numbers = [draws[place][0] for place in step]
        logits = network(torch.cat(parts).to(network.scale.device)).split([len(part) for part in parts])
        positive = [bool(bags.labels[number, 0]) for number in numbers]
        loss = proxy_loss(logits, positive, rule, weights[numbers].tolist())
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        total += float(loss.detach()) * len(step)
    rows.close()
    mean = total / len(draws)
    if not np.isfinite(mean):
        raise TrainingError(f"the loss became {mean}", remedy="lower the learning rate")
    return mean


def _validate(
    network: InstanceNetwork,
    reader: InstanceReader,
    bags: LabelledBags,
    rule: ProxyRule,
    settings: WeakSettings,
) -> tuple[float, float]:
    """Return the mean loss and the AUROC of some slides, from the same tiles of them each time."""
    network.eval()
    weights = _slide_weights(bags, settings)
    draws = sorted(_draws(bags.bags, settings, 0), key=lambda draw: draw[0])
    losses, said = [], []
    with torch.inference_mode():
        for (number, _), rows in zip(draws, reader.read(draws), strict=True):
            logits = network(torch.from_numpy(rows).to(network.scale.device))
            losses.append(float(proxy_loss([logits], [bool(bags.labels[number, 0])], rule, [weights[number]])))
            said.append(rule.slide_probability(logits.sigmoid().cpu().numpy()))
    positive = bags.labels[:, 0].astype(np.float64)
    return float(np.mean(losses)), weighted_auroc(np.array(said), positive, 1 - positive)


def _draws(bags: Sequence[Bag], settings: WeakSettings, number: int) -> list[Draw]:
    """Return all bags in the order of an epoch, with the instances that are drawn of each."""
    rng = np.random.default_rng((settings.seed, number))
    return [
        (int(place), np.sort(rng.permutation(bags[place].instances)[: settings.instances]))
        for place in rng.permutation(len(bags))
    ]


def _slide_weights(bags: LabelledBags, settings: WeakSettings) -> npt.NDArray[np.float64]:
    """Return the weight of each slide, (n,), with a mean of 1."""
    if settings.class_weights == "none":
        return np.ones(len(bags.bags))
    labels = bags.labels[:, 0]
    return np.asarray(len(labels) / (2 * np.bincount(labels, minlength=2)))[labels]


def _scale(bags: Sequence[Bag], reader: InstanceReader) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return mean and standard deviation of each feature over all instances, (width,) each."""
    count, mean, squares = 0, np.zeros(bags[0].width), np.zeros(bags[0].width)
    for rows in reader.read([(number, np.arange(bag.instances)) for number, bag in enumerate(bags)]):
        own = rows.mean(axis=0, dtype=np.float64)  # pooled by Chan, Golub, LeVeque 1983
        step = own - mean
        squares += ((rows - own) ** 2).sum(axis=0) + step**2 * (count * len(rows) / (count + len(rows)))
        count += len(rows)
        mean += step * (len(rows) / count)
    return mean, np.sqrt(squares / count)


def _reader(bags: LabelledBags, settings: WeakSettings, share: float) -> InstanceReader:
    """Return a reader that keeps a share of what may be kept."""
    return InstanceReader(bags.bags, memory=int(share * (settings.memory_mb << 20)), threads=settings.threads)


def _check_classes(what: str, bags: LabelledBags) -> None:
    classes = bags.tasks[0].classes
    found = sorted(set(bags.labels[:, 0].tolist()))
    if len(found) < 2:
        raise TrainingError(
            f"the {len(bags.bags)} {what} slides are all {', '.join(classes[value] for value in found)!r}",
            expected="both classes",
            remedy="use more slides, or another share for validation and test",
        )


def _described(bags: LabelledBags) -> list[Any]:
    told = [
        [bag.name, bag.instances, bag.width, bag.encoder_sha256, bag.path.stat().st_size, bag.attributes.get("mpp")]
        for bag in bags.bags
    ]
    return [[asdict(task) for task in bags.tasks], [list(map(str, row)) for row in told], bags.labels.tolist()]


def _save(path: Path, identity: Mapping[str, str], fit: WeakFit, optimizer: torch.optim.Optimizer) -> None:
    """Write a checkpoint under another name first, down to the disk, and then put it in place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    state = {
        "identity": dict(identity),
        "network": fit.network.state_dict(),
        "optimizer": optimizer.state_dict(),
        "epochs": [asdict(row) for row in fit.epochs],
        "best": fit.best,
        "best_weights": fit.best_weights,
    }
    with temporary.open("wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def _resume(
    path: Path | None, identity: Mapping[str, str], fit: WeakFit, optimizer: torch.optim.Optimizer, device: str
) -> bool:
    """Set everything to the checkpoint of the same training; return whether there was one."""
    if path is None or not path.is_file():
        return False
    try:
        found = torch.load(path, map_location=device, weights_only=True)
    except (RuntimeError, EOFError, OSError, pickle.UnpicklingError):  # cut off by a full disk: begin anew
        return False
    if found.get("identity") != identity:
        return False
    fit.network.load_state_dict(found["network"])
    optimizer.load_state_dict(found["optimizer"])
    fit.epochs = [WeakEpoch(**row) for row in found["epochs"]]
    fit.best, fit.best_weights = found["best"], found["best_weights"]
    return True
