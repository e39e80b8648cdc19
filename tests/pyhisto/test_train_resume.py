"""A training that was killed goes on as if it had not been, to the last bit; one of other settings starts anew."""

from __future__ import annotations

import random
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from train_cases import SETTINGS, SPEC, Dying, Patches, network, outcome, run, start

from pyhisto.train import TrainResult, TrainSettings, train

STUDY = replace(SETTINGS, patience=5)


class Killed(Exception):
    pass


class Interrupted(Dying):
    def die(self) -> None:
        raise Killed


class Noisy(nn.Module):
    """Draws from the generators of torch, numpy and Python at every step."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = network(dropout=0.25)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.layers(x)
        if self.training:
            y = y * (1 + 0.1 * np.random.normal() + 0.1 * random.random())  # noqa: NPY002
        return y


def weights(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def same_result(a: TrainResult, b: TrainResult) -> bool:
    """Compare everything but the time that was waited."""
    return replace(a, data_wait_share=0.0) == replace(b, data_wait_share=0.0)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[TrainResult, dict[str, torch.Tensor], dict[str, Any]]:
    """Result, weights and last checkpoint of a training that nothing stopped."""
    folder = tmp_path_factory.mktemp("whole")
    torch.manual_seed(0)
    model = Noisy()
    result = run(model, Patches(), folder, STUDY)
    return result, weights(model), torch.load(folder / "checkpoint.pt", weights_only=True)


@pytest.mark.parametrize("steps_done", [0, 4, 5, 8, 11])
def test_killed_and_resumed_is_the_same_training(whole: Any, tmp_path: Path, steps_done: int) -> None:
    patches = Interrupted()
    patches.last = steps_done * STUDY.batch_size
    with pytest.raises(Killed):
        run(Noisy(), patches, tmp_path, STUDY)
    patches.last = 10**9
    model = Noisy()
    again = run(model, patches, tmp_path, STUDY)
    result, trained, state = whole
    assert same_result(again, result)
    assert same(weights(model), trained)
    resumed = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert same(resumed["model"], state["model"])
    assert same(resumed["best_weights"], state["best_weights"])
    assert resumed["validations"] == state["validations"]
    assert resumed["schedule"] == state["schedule"]
    assert torch.equal(resumed["random"][0]["torch"], state["random"][0]["torch"])
    assert resumed["random"][0]["python"] == state["random"][0]["python"]
    assert torch.equal(resumed["random"][0]["numpy"][1], state["random"][0]["numpy"][1])


def test_early_stopping_counts_on_after_a_kill(tmp_path: Path) -> None:
    """The windows have the classes swapped: the figure only falls, and the third validation after the best stops it."""
    settings = replace(SETTINGS, steps=200, validate_every=10, checkpoint_every=7, patience=3)
    windows: Any = Patches(8, inverted=True)
    one, other = network(), network()
    patches: Any = Interrupted()
    result = train(one, patches, SPEC, settings, tmp_path / "whole", validation=windows)
    assert result.stopped_early
    patches.last = (len(result.losses) - 12) * 4  # after the first validation that was no better
    with pytest.raises(Killed):
        train(network(), patches, SPEC, settings, tmp_path / "cut", validation=windows)
    patches.last = 10**9
    assert same_result(train(other, patches, SPEC, settings, tmp_path / "cut", validation=windows), result)
    assert same(weights(one), weights(other))
    patches.last = 0  # a stopped training is over
    assert same_result(train(network(), patches, SPEC, settings, tmp_path / "cut", validation=windows), result)


def test_the_scale_of_half_precision_gradients_is_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("pyhisto.train.loop._precision", lambda wanted, device: "float16")
    scaler = torch.amp.GradScaler
    monkeypatch.setattr("torch.amp.GradScaler", lambda kind, enabled: scaler(kind, growth_interval=3, enabled=enabled))
    one, other = network(), network()
    result = run(one, Patches(), tmp_path / "whole", STUDY)
    patches = Interrupted()
    patches.last = 9 * 4
    with pytest.raises(Killed):
        run(network(), patches, tmp_path / "cut", STUDY)
    patches.last = 10**9
    assert same_result(run(other, patches, tmp_path / "cut", STUDY), result)
    assert same(weights(one), weights(other))
    states = [torch.load(tmp_path / name / "checkpoint.pt", weights_only=True) for name in ("whole", "cut")]
    assert states[0]["scaler"] == states[1]["scaler"]
    assert states[0]["scaler"]["scale"] != 65536.0


def test_sigkill_at_any_moment(tmp_path: Path) -> None:
    """Killed in a step, while the best weights and while the checkpoint are written; then left to finish."""
    killed = [-signal.SIGKILL]
    noisy, every = ("--dropout", "0.25"), ("--dropout", "0.25", "--set", "checkpoint_every=2")
    assert start(tmp_path / "whole", *noisy) == [0]
    assert start(tmp_path / "cut", "--die-at-step", "4", *noisy) == killed
    assert not (tmp_path / "cut" / "checkpoint.pt").exists()
    assert start(tmp_path / "cut", "--die-at-step", "7", *every) == killed
    assert start(tmp_path / "cut", "--die-writing", "best", *every) == killed
    assert start(tmp_path / "cut", "--die-writing", "checkpoint", *every) == killed
    assert len(torch.load(tmp_path / "cut" / "checkpoint.pt", weights_only=True)["losses"]) == 6
    assert start(tmp_path / "cut", *every) == [0]
    one, other = outcome(tmp_path / "whole"), outcome(tmp_path / "cut")
    assert same(one["model"], other["model"])
    assert one["losses"] == other["losses"]
    assert one["dice"] == other["dice"]
    assert {path.suffix for path in (tmp_path / "cut").iterdir()} == {".pt", ".csv", ".png"}


def test_a_finished_training_is_not_repeated(tmp_path: Path) -> None:
    model, other = network(), network()
    result = run(model, Patches(), tmp_path)
    patches = Interrupted()
    patches.last = 0
    assert same_result(run(other, patches, tmp_path), result)
    assert same(weights(other), weights(model))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ("settings", "settings"),
        ("loss", "settings"),
        ("spec", "model description"),
        ("patches", "patches"),
        ("windows", "validation windows"),
        ("no windows", "validation windows"),
        ("weights", "initial weights"),
    ],
)
def test_a_checkpoint_of_another_training_is_left_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], change: str, named: str
) -> None:
    short = replace(SETTINGS, steps=6)
    run(network(), Patches(), tmp_path / "a", short)
    settings: TrainSettings = {
        "settings": replace(short, learning_rate=0.01),
        "loss": replace(short, loss=replace(short.loss, class_weights=(1.0, 2.0))),
    }.get(change, short)
    spec = replace(SPEC, channel_mean=(0.0, 0.0, 0.0)) if change == "spec" else SPEC
    patches: Any = Patches(seed=4 if change == "patches" else 3)
    windows: Any = None if change == "no windows" else Patches(10, seed=6 if change == "windows" else 5)
    continued, fresh = (network(seed=int(change == "weights")) for _ in range(2))
    train(continued, patches, spec, settings, tmp_path / "a", validation=windows)
    assert f"checkpoint.pt is of other {named}; training starts anew" in capsys.readouterr().err
    train(fresh, patches, spec, settings, tmp_path / "b", validation=windows)
    assert same(weights(continued), weights(fresh))
    assert (tmp_path / "a" / "best.pt").exists() == (windows is not None)


def test_workers_and_how_often_it_is_saved_do_not_matter(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, other, third = network(), network(), network()
    run(one, Patches(), tmp_path / "a")
    run(other, Patches(), tmp_path / "b", replace(SETTINGS, checkpoint_every=100, workers=2))
    assert same(weights(one), weights(other))
    patches = Interrupted()
    patches.last = 0
    run(third, patches, tmp_path / "b", replace(SETTINGS, checkpoint_every=3))
    assert same(weights(one), weights(third))
    assert "anew" not in capsys.readouterr().err


@pytest.mark.parametrize("content", [b"", b"not a checkpoint"])
def test_a_damaged_checkpoint_starts_anew(tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes) -> None:
    (tmp_path / "checkpoint.pt").write_bytes(content)
    assert len(run(network(), Patches(), tmp_path, replace(SETTINGS, steps=2)).losses) == 2
    assert "cannot be read" in capsys.readouterr().err
