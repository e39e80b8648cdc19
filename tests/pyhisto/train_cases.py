"""Tiny trainings, for the tests and as a program that is killed or started by torchrun."""

from __future__ import annotations

import argparse
import multiprocessing
import os
import signal
import socket
import sys
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch._dynamo  # the first optimiser would import it
from torch import nn

import pyhisto.losses.masked  # noqa: F401 - MONAI takes seconds
from pyhisto.bundle.files import ModelClass, ModelSpec
from pyhisto.train import TrainResult, TrainSettings, train

SPEC = ModelSpec(
    kind="tissue_segmentation",
    architecture="unet-resnet34",
    classes=(ModelClass("background"), ModelClass("tumour", "Tumor")),
    mpp=1.0,
    tile_size=32,
    overlap=4,
)
SETTINGS = TrainSettings(
    steps=12,
    batch_size=4,
    learning_rate=0.02,
    workers=0,
    checkpoint_every=5,
    validate_every=3,
    precision="float32",  # in which a training on one machine is compared with another one on any machine
)


class Patches:
    """Brown tumour (class 1) on the right of blue stroma, 32 px, noisy; four rows are not labelled."""

    def __init__(self, length: int = 1000, seed: int = 3, *, inverted: bool = False, weighted: bool = False) -> None:
        self.length = length
        self.seed = seed
        self.inverted = inverted
        self.weighted = weighted

    def describe(self) -> dict[str, Any]:
        return {"seed": self.seed, "inverted": self.inverted}

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> tuple[np.ndarray[Any, Any], ...]:
        rng = np.random.default_rng((self.seed, index))
        tumour = np.arange(32) >= rng.integers(4, 28, (32, 1))
        rgb = np.where(tumour[..., None], (170, 120, 80), (90, 90, 170)) + rng.integers(-20, 20, (32, 32, 3))
        labels = (tumour != self.inverted).astype(np.uint8)
        labels[:4] = 255
        if self.weighted:
            return rgb.astype(np.uint8), labels, np.where(tumour, 1.0, 5.0).astype(np.float32)
        return rgb.astype(np.uint8), labels


class Dying(Patches):
    """Patches whose reader does something drastic when a patch is asked for."""

    last = 10**9

    def __getitem__(self, index: int) -> tuple[np.ndarray[Any, Any], ...]:
        if index >= self.last:
            self.die()
        return super().__getitem__(index)

    def die(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


def network(seed: int = 0, *, dropout: float = 0.0) -> nn.Module:
    """Two convolutions with batch normalisation between; the first has no bias, which that would cancel."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(dropout), nn.Conv2d(8, 2, 1)
    )


def die_while_writing(name: str) -> None:
    """Make this process kill itself when half of a file of this name, without its ending, is on the disk."""
    save = torch.save

    def half(state: Any, file: Any) -> None:
        if Path(file.name).stem == name:
            file.write(b"half")
            file.flush()
            os.kill(os.getpid(), signal.SIGKILL)
        save(state, file)

    torch.save = half


def main(arguments: Sequence[str], environment: Mapping[str, str]) -> None:
    warnings.simplefilter("error")
    os.environ.update(environment)
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--die-at-step", type=int, default=10**6)
    parser.add_argument("--die-writing", default="")
    parser.add_argument("--dropout", type=float, default=0.0)
    parser.add_argument("--set", nargs="*", default=[])
    given = parser.parse_args(arguments)
    changes = {name: int(value) for name, value in (pair.split("=") for pair in given.set)}
    settings = replace(SETTINGS, **changes)  # type: ignore[arg-type]
    patches = Dying()
    patches.last = given.die_at_step * settings.batch_size
    if given.die_writing:
        die_while_writing(given.die_writing)
    model = network(dropout=given.dropout)
    result = run(model, patches, given.folder, settings)
    rank = os.environ.get("RANK", "0")
    out = {"model": model.state_dict(), "losses": result.losses, "dice": [row.mean_dice for row in result.validation]}
    torch.save(out, given.folder.with_name(f"{given.folder.name}-{rank}.pt"))


def start(folder: Path, *options: str, ranks: int = 1) -> list[int | None]:
    """Train in processes of their own, which torchrun's variables tell what they are; return their exit codes."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["train_cases"])
    with pytest.MonkeyPatch.context() as patched:  # what is imported here once, all processes have
        patched.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=os.pathsep)
        forkserver.ensure_running()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    joint = {"WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    processes = [
        context.Process(target=main, args=([str(folder), *options], {"RANK": str(rank), **joint}))
        for rank in range(ranks)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=120)
    return [process.exitcode for process in processes]


def outcome(folder: Path, rank: int = 0) -> dict[str, Any]:
    """Return the weights, losses and mean Dice that a process ended with."""
    loaded: dict[str, Any] = torch.load(folder.with_name(f"{folder.name}-{rank}.pt"), weights_only=True)
    return loaded


def run(model: nn.Module, patches: Patches, folder: Path, settings: TrainSettings = SETTINGS) -> TrainResult:
    """Train with validation windows of another seed."""
    windows: Any = Patches(10, seed=5)
    given: Any = patches
    return train(model, given, SPEC, settings, folder, validation=windows)


if __name__ == "__main__":
    main(sys.argv[1:], {})
