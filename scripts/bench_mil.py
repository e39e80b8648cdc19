"""How long an epoch of gated ABMIL takes: here, in a plain PyTorch loop, and with torchmil under its own trainer.

    python scripts/bench_mil.py [--bags 50] [--instances 2000] [--width 1024] [--epochs 5]

All three take turns in one process, on one core, on the same bags in the same order, with Adam at the same rate; the
seconds are CPU time. The medians of the epochs are told in the end, and of the ratios within an epoch, which other work
on the machine disturbs alike. torchmil is left out where it is not installed (``pip install torchmil``). Its trainer
validates after each epoch, on the training bags where it is given no others; what it takes without that is given
besides. It has one logit and weights of its own, and so another loss curve; the other two have the same.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from types import SimpleNamespace

import numpy as np
import torch
from torch import nn

from pyhisto.features.bags import list_bags, write_bag
from pyhisto.mil.data import BagReader
from pyhisto.mil.model import SlideModel, build_slide_model
from pyhisto.mil.settings import FitSettings
from pyhisto.mil.train import train_epoch

RATE = 1e-4
ATTENTION = 128


@dataclass
class Peer:
    """One way to train: `epoch` goes once over the bags and returns the mean loss."""

    name: str
    epoch: Callable[[], float]


class PlainAbmil(nn.Module):
    """Gated attention as one writes it down from the paper."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.value, self.gate = nn.Linear(width, ATTENTION), nn.Linear(width, ATTENTION)
        self.weight, self.classifier = nn.Linear(ATTENTION, 1), nn.Linear(width, 2)

    def forward(self, instances: torch.Tensor) -> torch.Tensor:
        """Return the logits (1, 2) of one bag (n, width)."""
        scores = self.weight(torch.tanh(self.value(instances)) * torch.sigmoid(self.gate(instances)))
        return self.classifier(torch.softmax(scores, dim=0).T @ instances)


def ours(folder: Path, labels: np.ndarray, model: SlideModel) -> Peer:
    """Return the trainer of this project, with features read from disk once and kept."""
    settings = FitSettings(learning_rate=RATE, weight_decay=0, class_weights="none", scaled=False)
    reader = BagReader(list_bags(folder), memory=1 << 34, threads=1)
    optimizer = torch.optim.Adam(model.parameters(), lr=RATE, fused=True)
    truth, order = labels[:, None], list(range(len(labels)))
    return Peer("this project", lambda: train_epoch(model, optimizer, reader, truth, order, [None], settings, "cpu"))


def plain(bags: list[torch.Tensor], labels: np.ndarray, model: PlainAbmil) -> Peer:
    """Return a loop as one writes it."""
    optimizer = torch.optim.Adam(model.parameters(), lr=RATE)

    def epoch() -> float:
        total = 0.0
        for instances, label in zip(bags, labels.tolist(), strict=True):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(instances), torch.tensor([label]))
            loss.backward()
            optimizer.step()
            total += loss.item()
        return total / len(bags)

    return Peer("plain loop", epoch)


def torchmil(bags: list[torch.Tensor], labels: np.ndarray) -> list[Peer]:
    """Return torchmil's ABMIL under its own trainer; one logit, so that its loss curve is another one."""
    from tensordict import TensorDict
    from torchmil.models import ABMIL
    from torchmil.utils.trainer import Trainer

    def collate(rows: list[TensorDict]) -> TensorDict:
        return rows[0]

    rows = [
        TensorDict({"X": bag[None], "Y": torch.tensor([float(label)])}, batch_size=[1])
        for bag, label in zip(bags, labels.tolist(), strict=True)
    ]
    model = ABMIL(in_shape=(bags[0].shape[1],), att_dim=ATTENTION, gated=True)
    trainer = Trainer(
        model, torch.optim.Adam(model.parameters(), lr=RATE), device="cpu", disable_pbar=True, verbose=False
    )
    loader = torch.utils.data.DataLoader(rows, batch_size=1, collate_fn=collate)
    losses: list[float] = []
    trainer.logger = SimpleNamespace(log=lambda row: losses.extend(v for k, v in row.items() if k == "train/loss"))

    def epoch() -> float:
        trainer.train(1, loader)
        return losses[-1]

    return [
        Peer("torchmil", epoch),
        Peer("torchmil, without validation", lambda: trainer._shared_loop(loader, mode="train")["train/loss"]),
    ]


def copy_weights(source: PlainAbmil, target: SlideModel) -> None:
    """Give the head of this project the weights of the plain network."""
    head = target.heads[0]
    for name in ("value", "gate", "weight", "classifier"):
        getattr(head, name).load_state_dict(getattr(source, name).state_dict())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bags", type=int, default=50)
    parser.add_argument("--instances", type=int, default=2000)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--epochs", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    labels = np.arange(options.bags) % 2
    bags = [torch.from_numpy(rng.normal(size=(options.instances, options.width)).astype(np.float32)) for _ in labels]
    for bag, label in zip(bags, labels, strict=True):
        bag[: options.instances // 20, :8] += float(label)
    first = PlainAbmil(options.width)
    model = build_slide_model("abmil", options.width, [2], scaled=False, hidden=0)
    copy_weights(first, model)
    with tempfile.TemporaryDirectory() as folder:
        for number, bag in enumerate(bags):
            write_bag(Path(folder) / f"{number:05}.h5", bag.numpy())
        peers = [ours(Path(folder), labels, model), plain(bags, labels, first)]
        if find_spec("torchmil") is not None:
            peers += torchmil(bags, labels)
        seconds: dict[str, list[float]] = {peer.name: [] for peer in peers}
        for epoch in range(1, options.epochs + 1):
            for peer in peers:
                begin = time.process_time()
                loss = peer.epoch()
                seconds[peer.name].append(time.process_time() - begin)
                print(f"epoch {epoch}, {peer.name:<28} {seconds[peer.name][-1]:6.2f} s, loss {loss:.6f}", flush=True)
    own = seconds["this project"]
    for name, each in seconds.items():
        ratio = median(one / mine for one, mine in zip(each, own, strict=True))
        print(f"{name:<28} {median(each):6.2f} s an epoch, {ratio:.2f} times as long as this project")


if __name__ == "__main__":
    main()
