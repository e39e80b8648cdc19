"""Training: the loss falls, figures are those worked out by hand, and nonsense stops it."""

from __future__ import annotations

import csv
import math
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from train_cases import SETTINGS, SPEC, Patches, network, run

from pyhisto.bundle.files import ModelClass
from pyhisto.config import from_mapping
from pyhisto.errors import ConfigError, SlideError, TrainingError
from pyhisto.losses import LossSettings
from pyhisto.train import TrainSettings, train
from pyhisto.train.curves import smooth


def weights(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


class Fixed(Patches):
    """Windows that are given; what is red is not blue."""

    def __init__(self, rgb: np.ndarray[Any, Any], labels: np.ndarray[Any, Any]) -> None:
        super().__init__(len(labels))
        self.rgb = rgb.astype(np.uint8)
        self.labels = labels.astype(np.uint8)

    def __getitem__(self, index: int) -> tuple[np.ndarray[Any, Any], ...]:
        return self.rgb[index], self.labels[index]


class Threshold(nn.Module):
    """Class c where channel c is the brightest; one useless parameter, for the optimiser."""

    def __init__(self) -> None:
        super().__init__()
        self.nothing = nn.Parameter(torch.zeros(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 10 * x + self.nothing * 0


def test_loss_falls_and_the_network_learns(tmp_path: Path) -> None:
    model = network()
    result = run(model, Patches(), tmp_path, replace(SETTINGS, steps=40, validate_every=20))
    assert len(result.losses) == 40
    assert np.mean(result.losses[-5:]) < 0.4 * np.mean(result.losses[:3])
    assert [row.step for row in result.validation] == [0, 20, 40]
    assert result.validation[-1].mean_dice > 0.95 > result.validation[0].mean_dice
    assert result.validation[-1].loss < 0.4 * result.validation[0].loss
    assert not model.training
    assert not result.stopped_early


def test_files(tmp_path: Path) -> None:
    result = run(network(), Patches(), tmp_path / "new" / "folder")
    folder = tmp_path / "new" / "folder"
    assert sorted(path.name for path in folder.iterdir()) == ["best.pt", "checkpoint.pt", "curve.csv", "curve.png"]
    with (folder / "curve.csv").open(newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["step", "loss", "validation_loss", "mean_dice", "dice tumour"]
    assert [int(row[0]) for row in rows[1:]] == list(range(13))
    assert [float(row[1]) for row in rows[2:]] == result.losses
    assert [row[1:] for row in rows[1:] if row[2]] == [
        ["" if v.step == 0 else str(result.losses[v.step - 1]), *map(str, (v.loss, v.mean_dice, v.dice["tumour"]))]
        for v in result.validation
    ]
    png = (folder / "curve.png").read_bytes()
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    assert int.from_bytes(png[16:20]) == 1100  # width


def test_without_validation_the_last_weights_are_kept(tmp_path: Path) -> None:
    model, patches = network(), Patches()
    result = train(model, patches, SPEC, SETTINGS, tmp_path)  # type: ignore[arg-type]
    assert result.validation == []
    assert result.best_step == 12
    state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert same(weights(model), state["model"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint.pt", "curve.csv", "curve.png"]
    assert (tmp_path / "curve.csv").read_text().splitlines()[:2] == ["step,loss", f"1,{result.losses[0]}"]


def test_what_the_progress_raises_ends_a_training_that_goes_on_later(tmp_path: Path) -> None:
    steps: list[tuple[int, int]] = []

    def stop(stage: str, done: int, total: int) -> None:
        steps.append((done, total))
        if len(steps) == 5:
            raise InterruptedError

    settings = replace(SETTINGS, checkpoint_every=2)
    with pytest.raises(InterruptedError):
        train(network(), Patches(), SPEC, settings, tmp_path, progress=stop)  # type: ignore[arg-type]
    result = train(network(), Patches(), SPEC, settings, tmp_path, progress=stop)  # type: ignore[arg-type]
    assert steps == [(n, 12) for n in (1, 2, 3, 4, 5, *range(5, 13))]  # the checkpoint was made after the fourth
    assert len(result.losses) == 12


def test_dice_is_of_the_pixels_of_all_windows_together(tmp_path: Path) -> None:
    """Worked out by hand, on 4 x 4 px; the truth never has class 3, which is predicted once."""
    colours = np.array([(0, 0, 0), (200, 0, 0), (0, 200, 0), (0, 0, 200)])
    truth, found = np.zeros((2, 3, 4, 4), int)
    truth[0, 0], found[0, 0, :2] = 1, 1  # 4 px of class 1, of which 2 are found
    truth[1, :2], found[1, :2] = 1, 1  # 8 px, all found
    found[1, 2, 0] = 1  # and one too many
    truth[2, 0, :3], found[2, 0, 0], found[2, 0, 1] = 2, 2, 3  # 3 px of class 2, of which one is found
    truth[2, 3], found[2, 3] = 255, 2  # not labelled

    class Colours(Threshold):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.cat([torch.full_like(x[:, :1], 1.0), 10 * x], dim=1) + self.nothing * 0

    names = ("background", "one", "two", "three")
    spec = replace(
        SPEC, classes=tuple(map(ModelClass, names)), channel_mean=(0.0, 0.0, 0.0), channel_std=(1.0, 1.0, 1.0)
    )
    windows: Any = Fixed(colours[found], truth)
    settings = replace(SETTINGS, steps=1, batch_size=2, validate_every=1)
    data: Any = Fixed(colours[truth * (truth < 4)], truth)
    data.length = 2
    row = train(Colours(), data, spec, settings, tmp_path, validation=windows).validation[0]
    assert row.dice == {"one": pytest.approx(2 * 10 / (12 + 11)), "two": pytest.approx(2 * 1 / (3 + 1))}
    assert row.mean_dice == pytest.approx((20 / 23 + 0.5) / 2)


def test_validation_loss_weighs_batches_by_their_labelled_pixels(tmp_path: Path) -> None:
    """Cross-entropy by hand: a pixel with logits (0, 10 v) costs ln(1 + exp(∓ 10 v))."""

    class Red(Threshold):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.cat([x[:, :1] * 0, x[:, :1]], dim=1) + self.nothing * 0

    rgb, labels = np.zeros((3, 2, 2, 3), int), np.full((3, 2, 2), 255)
    rgb[0, ..., 0], labels[0] = 255, 1  # 4 pixels with logits 0, 1, all right
    labels[1, 0, 0] = 0  # one with logits 0, 0
    rgb[2, ..., 0], labels[2, 0, 0] = 255, 0  # one with logits 0, 1, wrong
    spec = replace(SPEC, channel_mean=(0.0, 0.0, 0.0), channel_std=(1.0, 1.0, 1.0))
    settings = replace(SETTINGS, steps=1, batch_size=1, validate_every=1, loss=LossSettings("cross-entropy"))
    windows: Any = Fixed(rgb, labels)
    row = train(Red(), windows, spec, settings, tmp_path, validation=windows).validation[0]
    costs = [4 * math.log(1 + math.exp(-1)), math.log(2), math.log(1 + math.exp(1))]
    assert row.loss == pytest.approx(sum(costs) / 6, rel=1e-6)


def test_regions(tmp_path: Path) -> None:
    """Sigmoid outputs: region 0 is classes 1 and 2, region 1 inside it class 2 alone."""

    class Regions(Threshold):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 20 * x[:, :2] - 10 + self.nothing * 0

    colours = np.array([(0, 0, 0), (255, 0, 0), (255, 255, 0)])
    labels = np.array([[[0, 1], [2, 2]]])
    spec = replace(
        SPEC,
        classes=tuple(map(ModelClass, ("background", "outer", "inner"))),
        regions=((1, 2), (2,)),
        channel_mean=(0.0, 0.0, 0.0),
        channel_std=(1.0, 1.0, 1.0),
    )
    data: Any = Fixed(colours[labels], labels)
    settings = replace(SETTINGS, steps=1, batch_size=1)
    row = train(Regions(), data, spec, settings, tmp_path, validation=data).validation[0]
    assert row.dice == {"outer": 1.0, "inner": 1.0}


def test_no_class_to_validate_on_is_said_before_the_first_step(tmp_path: Path) -> None:
    windows: Any = Fixed(np.zeros((2, 32, 32, 3)), np.zeros((2, 32, 32)))
    patches: Any = Patches()
    with pytest.raises(TrainingError, match=r"no validation window has .*; expected annotations of tumour"):
        train(network(), patches, SPEC, SETTINGS, tmp_path, validation=windows)
    assert list(tmp_path.iterdir()) == []
    windows.length = 0
    with pytest.raises(TrainingError, match="no validation window"):
        train(network(), patches, SPEC, SETTINGS, tmp_path, validation=windows)


def test_training_stops_when_validation_gets_no_better(tmp_path: Path) -> None:
    """The validation windows have the classes swapped, so that what is learnt makes them worse."""
    model, patches = network(), Patches()
    windows: Any = Patches(8, inverted=True)
    settings = replace(SETTINGS, steps=200, validate_every=10, patience=3)
    given: Any = patches
    result = train(model, given, SPEC, settings, tmp_path, validation=windows)
    figures = [row.mean_dice for row in result.validation]
    best = int(np.argmax(figures))
    assert result.stopped_early
    assert len(figures) == best + 4
    assert len(result.losses) == (best + 3) * 10
    assert result.best_step == best * 10
    saved = torch.load(tmp_path / "best.pt", weights_only=True)
    assert saved["step"] == best * 10
    assert same(weights(model), saved["model"])
    again = train(model, given, SPEC, replace(settings, steps=1), tmp_path / "b", validation=windows)
    assert again.validation[0].mean_dice == figures[best]  # the model has the best weights, not the last ones


@pytest.mark.parametrize("steps", [1, 5, 10])
def test_any_number_of_steps(tmp_path: Path, steps: int) -> None:
    assert len(run(network(), Patches(), tmp_path, replace(SETTINGS, steps=steps)).losses) == steps


def test_weights_decay_but_biases_and_norms_do_not(tmp_path: Path) -> None:
    """Nothing is labelled, so that only the decay moves a weight: by 1 - rate * decay, the rate at first peak / 25."""
    model = network()
    before = weights(model)
    data: Any = Fixed(np.zeros((4, 32, 32, 3)), np.full((4, 32, 32), 255))
    settings = replace(SETTINGS, steps=1, learning_rate=0.5, weight_decay=2.0)
    result = train(model, data, SPEC, settings, tmp_path)
    assert result.losses == [0.0]
    after = weights(model)
    for name in ("0.weight", "4.weight"):
        torch.testing.assert_close(after[name], before[name] * (1 - 0.5 / 25 * 2.0))
    for name in ("1.weight", "1.bias", "4.bias"):
        assert torch.equal(after[name], before[name])


def test_frozen_parameters_stay(tmp_path: Path) -> None:
    model = network()
    before = weights(model)
    model[0].requires_grad_(False)  # type: ignore[index,operator]
    run(model, Patches(), tmp_path, replace(SETTINGS, steps=2, validate_every=1))
    assert torch.equal(model.state_dict()["0.weight"], before["0.weight"])
    assert not torch.equal(model.state_dict()["4.weight"], before["4.weight"])


@pytest.mark.parametrize("kept", [False, True])
def test_statistics_of_normalisation_may_be_kept(tmp_path: Path, kept: bool) -> None:
    """Also after a validation, which puts the network into evaluation and back."""
    model = network()
    before = weights(model)
    run(model, Patches(), tmp_path, replace(SETTINGS, steps=3, validate_every=1, keep_statistics=kept))
    after = model.state_dict()
    assert torch.equal(after["1.running_mean"], before["1.running_mean"]) == kept
    assert torch.equal(after["1.running_var"], before["1.running_var"]) == kept
    assert not torch.equal(after["1.weight"], before["1.weight"])


def test_pixel_weights_of_the_data_set_reach_the_loss(tmp_path: Path) -> None:
    """Stroma has weight 5 and tumour 1, which are the same as class weights of the cross-entropy."""
    entropy = LossSettings("cross-entropy")
    by_pixel, by_class = network(), network()
    patches: Any = Patches(weighted=True)
    one = train(by_pixel, patches, SPEC, replace(SETTINGS, loss=entropy), tmp_path / "a")
    patches = Patches()
    other_loss = replace(entropy, class_weights=(5.0, 1.0))
    other = train(by_class, patches, SPEC, replace(SETTINGS, loss=other_loss), tmp_path / "b")
    np.testing.assert_allclose(one.losses, other.losses, rtol=1e-4)


def test_loss_that_is_no_number_stops_it(tmp_path: Path) -> None:
    model = network()
    with torch.no_grad():
        model[4].bias.fill_(float("nan"))  # type: ignore[index,union-attr,operator]
    patches: Any = Patches()
    with pytest.raises(TrainingError, match="loss became nan at step 1; lower learning_rate"):
        train(model, patches, SPEC, SETTINGS, tmp_path)
    assert list(tmp_path.iterdir()) == []


class Unsteady(nn.Module):
    """After some forward passes, the root of zero, whose slope is infinite: the loss is finite, its gradient not."""

    def __init__(self, good: int) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 2, 1)
        self.good = good

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.layer(x)
        self.good -= 1
        return y if self.good >= 0 else y + torch.sqrt(y * 0)


def test_gradient_that_is_no_number_leaves_the_last_checkpoint(tmp_path: Path) -> None:
    torch.manual_seed(0)
    patches: Any = Patches()
    with pytest.raises(TrainingError, match="gradient became nan at step 8"):
        train(Unsteady(7), patches, SPEC, SETTINGS, tmp_path)
    state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert len(state["losses"]) == 5
    assert all(bool(value.isfinite().all()) for value in state["model"].values())


def test_too_few_patches_or_weights_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="47 patches for 12 steps of 4"):
        run(network(), Patches(47), tmp_path / "new")
    with pytest.raises(ConfigError, match="3 class weights for 2 classes"):
        run(network(), Patches(), tmp_path / "new", replace(SETTINGS, loss=LossSettings(class_weights=(1.0, 1.0, 1.0))))
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("name", "value"),
    [("steps", 0), ("batch_size", 0), ("learning_rate", 0.0), ("clip_norm", -1.0), ("patience", -1), ("seed", -1)],
)
def test_settings_out_of_range(name: str, value: float) -> None:
    with pytest.raises(ConfigError, match=f"{name} = {value}; expected"):
        from_mapping(TrainSettings, {name: value}, "study")


def test_settings_need_no_torch() -> None:
    code = "import sys; from pyhisto.train import TrainSettings; TrainSettings(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=120).returncode == 0


def test_precision_that_the_device_is_slow_at_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("pyhisto.train.loop.fast_bfloat16", lambda device: False)
    for precision in ("bfloat16", "float16"):
        with pytest.raises(ConfigError, match=f"precision '{precision}' on the device 'cpu'"):
            run(network(), Patches(), tmp_path / "new", replace(SETTINGS, precision=precision))  # type: ignore[arg-type]
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(("fast", "dtype"), [(True, torch.bfloat16), (False, torch.float32)])
def test_automatic_precision(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, fast: bool, dtype: torch.dtype) -> None:
    monkeypatch.setattr("pyhisto.train.loop.fast_bfloat16", lambda device: fast)
    model, seen = network(), set()
    model[4].register_forward_hook(lambda module, given, out: seen.add(out.dtype))  # type: ignore[index,operator]
    result = run(model, Patches(), tmp_path, replace(SETTINGS, steps=30, validate_every=30, precision="auto"))
    assert seen == {dtype}
    assert result.losses[-1] < 0.5 * result.losses[0]
    assert all(value.dtype != torch.bfloat16 for value in model.state_dict().values())


def test_half_precision_leaves_out_steps_that_overflow(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The first scale of the gradients, 65536, is too large for a loss of this size; it halves until it fits."""
    monkeypatch.setattr("pyhisto.train.loop._precision", lambda wanted, device: "float16")

    class Steep(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = network()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y: torch.Tensor = self.layers(x * 100)
            return y * 100

    patches: Any = Patches()
    train(Steep(), patches, SPEC, replace(SETTINGS, learning_rate=1e-3), tmp_path)
    state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    left_out = round(math.log2(65536 / state["scaler"]["scale"]))
    assert 0 < left_out < 12
    assert state["schedule"]["_step_count"] == 1 + 12 - left_out
    assert state["optimizer"]["state"][0]["step"] == 12 - left_out


class Slow(Patches):
    def __getitem__(self, index: int) -> tuple[np.ndarray[Any, Any], ...]:
        time.sleep(0.05)
        return super().__getitem__(index)


def test_waiting_for_patches_is_measured_and_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    patches: Any = Slow()
    result = train(nn.Conv2d(3, 2, 1), patches, SPEC, replace(SETTINGS, steps=5), tmp_path)
    assert 0.3 < result.data_wait_share < 1
    told = capsys.readouterr()
    assert f"the loop waited for patches {result.data_wait_share:.0%} of the time" in told.err
    assert told.out == ""


def test_what_is_read_beside_the_loop_is_not_waited_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    class Busy(nn.Conv2d):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            time.sleep(0.4)
            return super().forward(x)

    patches: Any = Slow()
    result = train(Busy(3, 2, 1), patches, SPEC, replace(SETTINGS, steps=5, workers=1), tmp_path)
    assert result.data_wait_share < 0.2
    assert "waited" not in capsys.readouterr().err


class Unreadable(Patches):
    def __getitem__(self, index: int) -> tuple[np.ndarray[Any, Any], ...]:
        raise SlideError("a.svs: cannot be read", remedy="copy it again")


@pytest.mark.parametrize("workers", [0, 1])
def test_an_error_of_a_reader_is_one_line(tmp_path: Path, workers: int) -> None:
    with pytest.raises(SlideError, match=r"^a\.svs: cannot be read; copy it again$"):
        run(network(), Unreadable(), tmp_path, replace(SETTINGS, workers=workers))


def test_smooth() -> None:
    np.testing.assert_allclose(smooth(np.array([4.0, 2.0, 3.0, 7.0]), 2), [4, 3, 2.5, 5])
    np.testing.assert_allclose(smooth(np.array([4.0, 2.0]), 1), [4, 2])
    assert smooth(np.array([]), 3).shape == (0,)
