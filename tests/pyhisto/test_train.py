"""Training: the loss falls, a killed run goes on as if nothing had happened, and nonsense stops it."""

from __future__ import annotations

import csv
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shapely
import torch
from torch import nn

from pyhisto.bundle import ModelClass, ModelSpec
from pyhisto.dataset import Augmentation, PatchDataset, TrainingImage, TumourTask
from pyhisto.errors import TrainingError
from pyhisto.objects import make_objects
from pyhisto.train import TrainSettings, train

SPEC = ModelSpec(
    kind="tumour_segmentation",
    architecture="unet-resnet34",
    classes=(ModelClass("background"), ModelClass("tumour", "Tumor")),
    mpp=1.0,
    tile_size=32,
    overlap=4,
)
SETTINGS = TrainSettings(steps=12, batch_size=4, learning_rate=0.02, workers=0, checkpoint_every=5)


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 2, 1))


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory, write_tiff: Callable[..., Path]) -> TrainingImage:
    """128 x 128 px; the right half is brown tumour, the left half blue stroma."""
    rng = np.random.default_rng(0)
    pixels = np.full((128, 128, 3), (90, 90, 170)) + rng.integers(-20, 20, (128, 128, 3))
    pixels[:, 64:] += (80, 30, -90)
    path = write_tiff(tmp_path_factory.mktemp("train") / "two.tif", [pixels.astype(np.uint8)])
    areas = [shapely.box(64, 0, 128, 128), shapely.box(0, 0, 64, 128)]
    return TrainingImage(path, make_objects(areas, object_type="annotation", classification=["Tumor", "Stroma"]))


def patches(image: TrainingImage, **options: Any) -> PatchDataset:
    given = {"mpp": 1.0, "size": 32, "length": 1000, "seed": 3, "augmentation": Augmentation(), **options}
    return PatchDataset([image], TumourTask(), **given)


def weights(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


class Killed(Exception):
    pass


class KilledAfter(PatchDataset):
    """A data set whose process dies when a patch is asked for."""

    last = 10**9

    def __getitem__(self, index: int) -> Any:
        if index >= self.last:
            raise Killed
        return super().__getitem__(index)


def test_loss_falls_and_the_network_learns(image: TrainingImage, tmp_path: Path) -> None:
    model = network()
    losses = train(model, patches(image), SPEC, replace(SETTINGS, steps=40), tmp_path)
    assert len(losses) == 40
    assert np.mean(losses[-5:]) < 0.4 * np.mean(losses[:3])
    assert not model.training


def test_curve(image: TrainingImage, tmp_path: Path) -> None:
    losses = train(network(), patches(image), SPEC, SETTINGS, tmp_path / "new" / "folder")
    with (tmp_path / "new" / "folder" / "curve.csv").open(newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["step", "loss"]
    assert [int(step) for step, _ in rows[1:]] == list(range(12))
    assert [float(loss) for _, loss in rows[1:]] == losses


@pytest.mark.parametrize("steps_done", [5, 7, 10, 11])
def test_killed_and_resumed_is_the_same_training(image: TrainingImage, tmp_path: Path, steps_done: int) -> None:
    whole = network()
    losses = train(whole, patches(image), SPEC, SETTINGS, tmp_path / "whole")

    data = KilledAfter([image], TumourTask(), mpp=1.0, size=32, length=1000, seed=3, augmentation=Augmentation())
    data.last = steps_done * SETTINGS.batch_size
    with pytest.raises(Killed):
        train(network(), data, SPEC, SETTINGS, tmp_path / "cut")
    data.last = 10**9
    resumed = network(seed=99)  # other weights: all come from the checkpoint
    again = train(resumed, data, SPEC, SETTINGS, tmp_path / "cut")
    assert again == losses
    assert same(weights(resumed), weights(whole))


def test_a_finished_training_is_not_repeated(image: TrainingImage, tmp_path: Path) -> None:
    model = network()
    losses = train(model, patches(image), SPEC, SETTINGS, tmp_path)
    data = KilledAfter([image], TumourTask(), mpp=1.0, size=32, length=1000, seed=3, augmentation=Augmentation())
    data.last = 0
    other = network(seed=5)
    assert train(other, data, SPEC, SETTINGS, tmp_path) == losses
    assert same(weights(other), weights(model))


@pytest.mark.parametrize("change", ["settings", "spec", "data"])
def test_a_checkpoint_of_other_settings_is_left_alone(
    image: TrainingImage, tmp_path: Path, capsys: pytest.CaptureFixture[str], change: str
) -> None:
    train(network(), patches(image), SPEC, SETTINGS, tmp_path / "a")
    settings = replace(SETTINGS, learning_rate=0.01) if change == "settings" else SETTINGS
    spec = replace(SPEC, channel_mean=(0.0, 0.0, 0.0)) if change == "spec" else SPEC
    data = patches(image, seed=4) if change == "data" else patches(image)
    continued, fresh = network(), network()
    train(continued, data, spec, settings, tmp_path / "a")
    assert "other settings or annotations; training starts anew" in capsys.readouterr().out
    train(fresh, data, spec, settings, tmp_path / "b")
    assert same(weights(continued), weights(fresh))


def test_how_often_it_is_saved_does_not_matter(image: TrainingImage, tmp_path: Path) -> None:
    one, other = network(), network()
    train(one, patches(image), SPEC, SETTINGS, tmp_path / "a")
    train(other, patches(image), SPEC, replace(SETTINGS, checkpoint_every=100), tmp_path / "b")
    assert same(weights(one), weights(other))
    assert (tmp_path / "b" / "checkpoint.pt").is_file()
    assert sorted(path.name for path in (tmp_path / "b").iterdir()) == ["checkpoint.pt", "curve.csv"]


@pytest.mark.parametrize("content", [b"", b"not a checkpoint"])
def test_a_damaged_checkpoint_starts_anew(image: TrainingImage, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "checkpoint.pt").write_bytes(content)
    losses = train(network(), patches(image), SPEC, replace(SETTINGS, steps=2), tmp_path)
    assert len(losses) == 2


@pytest.mark.parametrize("steps", [1, 5, 10])
def test_any_number_of_steps(image: TrainingImage, tmp_path: Path, steps: int) -> None:
    assert len(train(network(), patches(image), SPEC, replace(SETTINGS, steps=steps), tmp_path)) == steps


def test_loss_that_is_no_number_stops_it(image: TrainingImage, tmp_path: Path) -> None:
    model = network()
    with torch.no_grad():
        model[3].bias.fill_(float("nan"))  # type: ignore[index,union-attr,operator]
    with pytest.raises(TrainingError, match="loss became nan at step 0; lower learning_rate"):
        train(model, patches(image), SPEC, SETTINGS, tmp_path)
    assert not (tmp_path / "checkpoint.pt").exists()


def test_class_weights_change_what_is_learnt(image: TrainingImage, tmp_path: Path) -> None:
    plain, weighted = network(), network()
    train(plain, patches(image), SPEC, SETTINGS, tmp_path / "a")
    train(weighted, patches(image), SPEC, replace(SETTINGS, class_weights=(1.0, 5.0)), tmp_path / "b")
    assert not same(weights(plain), weights(weighted))


def test_too_few_patches_or_weights_are_refused(image: TrainingImage, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="47 patches for 12 steps of 4"):
        train(network(), patches(image, length=47), SPEC, SETTINGS, tmp_path)
    with pytest.raises(TrainingError, match="3 class weights for 2 classes"):
        train(network(), patches(image), SPEC, replace(SETTINGS, class_weights=(1.0, 1.0, 1.0)), tmp_path)


def test_a_process_beside_the_loop_changes_nothing(image: TrainingImage, tmp_path: Path) -> None:
    one, other = network(), network()
    train(one, patches(image), SPEC, replace(SETTINGS, steps=3), tmp_path / "a")
    train(other, patches(image), SPEC, replace(SETTINGS, steps=3, workers=1), tmp_path / "b")
    assert same(weights(one), weights(other))
