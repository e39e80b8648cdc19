"""Two processes that torchrun starts train as one process does."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from train_cases import SETTINGS, Patches, network, outcome, run, start

from pyhisto.errors import ConfigError, TrainingError
from pyhisto.train.distributed import Team, join_team


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training of two processes."""
    folder = tmp_path_factory.mktemp("joint") / "two"
    assert start(folder, ranks=2) == [0, 0]
    return folder


def assert_alike(losses: list[float], dice: list[float], model: nn.Module, other: dict[str, Any]) -> None:
    torch.testing.assert_close(other["losses"], losses, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(other["dice"], dice, rtol=1e-5, atol=1e-5)
    assert model.state_dict().keys() == other["model"].keys()
    for name, value in model.state_dict().items():
        torch.testing.assert_close(other["model"][name], value, rtol=1e-5, atol=1e-5, msg=name)


def test_two_processes_compute_what_one_does(two: Path, tmp_path: Path) -> None:
    """Batch normalisation and the Dice of the batch both depend on all patches of the joint batch."""
    model = network()
    alone = run(model, Patches(), tmp_path)
    for rank in (0, 1):
        assert_alike(alone.losses, [row.mean_dice for row in alone.validation], model, outcome(two, rank))
    assert sorted(path.name for path in two.iterdir()) == ["best.pt", "checkpoint.pt", "curve.csv", "curve.png"]


def test_killed_and_resumed_is_the_same_training(two: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    codes = start(tmp_path / "cut", "--die-at-step", "7", ranks=2)
    assert -signal.SIGKILL in codes
    assert 0 not in codes
    assert len(torch.load(tmp_path / "cut" / "checkpoint.pt", weights_only=True)["losses"]) == 5
    assert start(tmp_path / "cut", ranks=2) == [0, 0]
    one, other = outcome(two), outcome(tmp_path / "cut")
    assert one["losses"] == other["losses"]
    assert all(torch.equal(one["model"][name], other["model"][name]) for name in one["model"])
    assert run(network(), Patches(), tmp_path / "cut").losses == one["losses"]  # one process takes it as its own
    assert "anew" not in capsys.readouterr().err


def test_torchrun(two: Path, tmp_path: Path) -> None:
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [sys.executable, *launcher, Path(__file__).with_name("train_cases.py"), tmp_path / "run"],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert outcome(tmp_path / "run")["losses"] == outcome(two)["losses"]
    assert done.stderr.count("train tissue_segmentation:   0%") == 1  # one bar, not two


def test_a_batch_that_does_not_divide_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("pyhisto.train.loop.join_team", lambda device: Team(1, 2, torch.device(device)))
    with pytest.raises(TrainingError, match="batch_size = 3 for 2 processes; expected a multiple of 2"):
        run(network(), Patches(), tmp_path / "new", replace(SETTINGS, batch_size=3))
    assert not (tmp_path / "new").exists()


def test_an_apple_gpu_is_not_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="2 processes on the device mps"):
        join_team("mps")
