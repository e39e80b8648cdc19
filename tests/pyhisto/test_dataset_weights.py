"""Areas that weigh more in training."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from dataset_cases import image_of
from shapely import MultiPolygon, box

from pyhisto.dataset import (
    BoundaryWeights,
    CellTask,
    PatchDataset,
    TissueTask,
    TrainingImage,
    ValidationDataset,
    WeightedArea,
)
from pyhisto.errors import ConfigError, TrainingError
from pyhisto.losses import LossSettings, build_loss


@pytest.fixture
def image(tmp_path: Path) -> TrainingImage:
    """A slide of 64 x 64 px of 0.5 µm: tumour on the left, stroma on the right."""
    path = tmp_path / "slide.tif"
    pixels = np.full((64, 64, 3), 180, dtype=np.uint8)
    tifffile.imwrite(path, pixels, tile=(16, 16), photometric="rgb", compression="adobe_deflate")
    return image_of(("Tumor", box(0, 0, 32, 64)), ("Stroma", box(32, 0, 64, 64)), path=path, mpp=(0.5, 0.5))


def patches(*images: TrainingImage, size: int = 64, mpp: float = 0.5) -> PatchDataset:
    return PatchDataset(images, TissueTask(), mpp=mpp, size=size, length=4, seed=0)


def test_pixels_weigh_what_the_area_says_and_all_others_1(image: TrainingImage) -> None:
    """A patch of 64 px can only lie where the whole slide is; at 1 µm/px, half as many pixels are in the area."""
    weighted = replace(image, weights=(WeightedArea(box(10, 20, 30, 40), 3.0),))
    expected = np.ones((64, 64), dtype=np.float32)
    expected[20:40, 10:30] = 3
    rgb, labels, weights = patches(weighted)[0]
    assert weights.dtype == np.float32
    np.testing.assert_array_equal(weights, expected)
    np.testing.assert_array_equal(patches(weighted, size=32, mpp=1.0)[0][2], expected[::2, ::2])
    bare = patches(image)[0]
    assert len(bare) == 2
    np.testing.assert_array_equal(bare[0], rgb)
    np.testing.assert_array_equal(bare[1], labels)


def test_of_two_areas_the_heavier_counts_whatever_their_order(image: TrainingImage) -> None:
    light, heavy = WeightedArea(box(0, 0, 20, 20), 2.0), WeightedArea(MultiPolygon([box(10, 10, 30, 30)]), 5.0)
    for areas in ((light, heavy), (heavy, light)):
        weights = patches(replace(image, weights=areas))[1][2]
        assert (weights[5, 5], weights[15, 15], weights[25, 25], weights[40, 40]) == (2, 5, 5, 1)


def test_every_patch_has_weights_if_one_image_has(image: TrainingImage) -> None:
    """Else patches of both images could not stand in one batch."""
    data = patches(replace(image, patient="A", weights=(WeightedArea(box(0, 0, 64, 64), 4.0),)), image)
    assert {float(item[2].mean()) for item in map(data.__getitem__, range(4))} == {1.0, 4.0}
    again = pickle.loads(pickle.dumps(data))  # noqa: S301 - as it goes to other processes
    np.testing.assert_array_equal(again[3][2], data[3][2])


def test_weights_of_areas_multiply_those_of_gaps(image: TrainingImage) -> None:
    """Nuclei 2 px apart, 1 µm: the gap weighs 1 + 10 exp(-1 / 12.5), and twice that in the area."""
    cells = image_of(
        ("Tumor: Positive", box(10, 10, 26, 40)),
        ("Tumor: Negative", box(28, 10, 44, 40)),
        ("Training", box(0, 0, 64, 64)),
        path=image.path,
        mpp=(0.5, 0.5),
    )
    data = PatchDataset(
        [replace(cells, weights=(WeightedArea(box(0, 0, 64, 25), 2.0),))],
        CellTask(),
        mpp=0.5,
        size=64,
        length=1,
        seed=0,
        boundary=BoundaryWeights(),
    )
    weights = data[0][2]
    gap = 1 + 10 * np.exp(-1 / 12.5)
    assert weights[35, 27] == pytest.approx(gap, rel=1e-5)
    assert weights[15, 27] == pytest.approx(2 * gap, rel=1e-5)
    assert (weights[15, 20], weights[35, 20]) == (2, 1)


def test_the_loss_takes_a_wrong_pixel_as_often_as_it_weighs() -> None:
    """Two pixels, costs ln 4 (wrong, weight 3) and ln 4/3 (right, weight 1): their weighted mean."""
    logits = torch.log(torch.tensor([[[[0.25, 0.25]], [[0.75, 0.75]]]]))
    labels = torch.tensor([[[0, 1]]])
    loss = build_loss(LossSettings("cross-entropy"), classes=2)
    found = loss(logits, labels, torch.tensor([[[3.0, 1.0]]]))
    assert float(found) == pytest.approx((3 * np.log(4) + np.log(4 / 3)) / 4, rel=1e-6)
    with pytest.raises(TrainingError, match="pixel weights with the loss dice"):
        build_loss(LossSettings("dice"), classes=2)(logits, labels, torch.ones(1, 1, 2))


def test_validation_is_not_weighted(image: TrainingImage) -> None:
    held = replace(image, part="validation", weights=(WeightedArea(box(0, 0, 64, 64), 4.0),))
    windows = ValidationDataset([held], TissueTask(), mpp=0.5, size=64, limit=4)
    assert len(windows[0]) == 2


def test_a_training_with_other_weights_is_another_one(image: TrainingImage) -> None:
    area = WeightedArea(box(0, 0, 8, 8), 2.0)
    described = [patches(replace(image, weights=w)).describe() for w in ((), (area,), (replace(area, weight=3.0),))]
    moved = patches(replace(image, weights=(replace(area, geometry=box(0, 0, 8, 9)),))).describe()
    assert len({one["images"] for one in [*described, moved]}) == 4


@pytest.mark.parametrize("weight", [0.0, -1.0, float("inf"), float("nan")])
def test_a_weight_is_above_0(weight: float) -> None:
    with pytest.raises(ConfigError, match="an area of weight"):
        WeightedArea(box(0, 0, 1, 1), weight)
