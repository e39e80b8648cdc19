"""Random changes of patches: what each may do to pixels, labels and weights, and that chance comes from one place."""

from __future__ import annotations

import hashlib
import math
import subprocess
import sys
from dataclasses import fields
from typing import Any

import numpy as np
import pytest
import scipy.ndimage as ndi

from pyhisto.dataset import IGNORED
from pyhisto.dataset.augment import Augmentation, augment, read_size
from pyhisto.errors import ConfigError
from pyhisto.stain import H_DAB, H_E, StainVectors

Pixels = np.ndarray[Any, Any]
NOTHING = {field.name: 0.0 for field in fields(Augmentation)}


def only(**changes: float) -> Augmentation:
    return Augmentation(**{**NOTHING, **changes})


def changed(rgb: Pixels, settings: Augmentation, seed: int, **options: Any) -> Pixels:
    """Return the pixels of an augmented patch whose labels do not matter."""
    labels = np.zeros(rgb.shape[:2], dtype=np.uint8)
    return augment(rgb, labels, None, settings, np.random.default_rng(seed), len(rgb), **options)[0]


def stained(vector: Any, density: float, white: Any = (255, 255, 255), size: int = 8) -> Pixels:
    """Return a patch whose upper half has an optical density of one stain and whose lower half is white."""
    rgb = np.empty((size, size, 3), dtype=np.uint8)
    rgb[:] = white
    rgb[: size // 2] = np.round(np.asarray(white) * 10 ** -(density * np.asarray(vector)))
    return rgb


def density_of(rgb: Pixels, white: Any = (255, 255, 255)) -> Pixels:
    """Return the optical density of the darkest pixel."""
    pixels = rgb.reshape(-1, 3)
    density: Pixels = -np.log10(pixels[pixels.sum(axis=1).argmin()] / np.asarray(white))
    return density


def discs(side: int, *places: tuple[int, int], radius: int = 6) -> tuple[Pixels, Pixels]:
    """Return dark discs on light ground and their labels 1, 2, ..., at (row, column)."""
    rgb = np.full((side, side, 3), 240, dtype=np.uint8)
    labels = np.zeros((side, side), dtype=np.uint8)
    rows, columns = np.mgrid[:side, :side]
    for number, (row, column) in enumerate(places, start=1):
        inside = np.hypot(rows - row, columns - column) <= radius
        rgb[inside], labels[inside] = (70, 60, 120), number
    return rgb, labels


# geometry


def test_without_changes_a_patch_only_turns_and_mirrors() -> None:
    rgb = np.random.default_rng(0).integers(1, 256, (9, 9, 3), dtype=np.uint8)
    labels = np.arange(81, dtype=np.uint8).reshape(9, 9)
    before = rgb.copy(), labels.copy()
    seen = set()
    for seed in range(60):
        weights = labels.astype(np.float32) * 2
        turned, flat, importance = augment(rgb, labels, weights, only(), np.random.default_rng(seed), 9)
        seen.add(flat.tobytes())
        assert np.abs(turned.astype(int) - rgb[flat // 9, flat % 9]).max() <= 1
        np.testing.assert_array_equal(importance, flat * np.float32(2))
    assert len(seen) == 8
    np.testing.assert_array_equal(rgb, before[0])
    np.testing.assert_array_equal(labels, before[1])


def test_shapes_and_types() -> None:
    settings = Augmentation(elastic=2)
    side = read_size(32, settings)
    for seed in range(4):
        rgb, labels, weights = augment(
            np.full((side, side, 3), 200, dtype=np.uint8),
            np.zeros((side, side), dtype=np.uint8),
            np.ones((side, side), dtype=np.float32),
            settings,
            np.random.default_rng(seed),
            32,
        )
        assert (rgb.shape, rgb.dtype, labels.shape, labels.dtype) == ((32, 32, 3), np.uint8, (32, 32), np.uint8)
        assert weights is not None
        assert (weights.shape, weights.dtype) == ((32, 32), np.float32)
        assert all(array.flags.c_contiguous and array.flags.writeable for array in (rgb, labels, weights))


def test_how_much_is_read() -> None:
    assert read_size(256, None) == read_size(256, only()) == 256
    assert read_size(256, only(scale=0.5, blur_px=3)) == 256  # the scale changes µm/px, not the pixels that are read
    assert read_size(256, only(rotation=45)) == 364  # 256 * 1.41421 = 362.04, even
    assert read_size(256, only(rotation=180)) == 364
    assert read_size(256, only(rotation=30)) == 350  # 256 * (0.86603 + 0.5) = 349.7
    assert read_size(255, only(rotation=45)) == 361  # 360.6, odd
    assert read_size(256, only(elastic=4)) == 256 + 2 * 3 * 4


@pytest.mark.parametrize("size", [32, 33])
def test_rotation_shows_nothing_from_outside_of_what_is_read(size: int) -> None:
    settings = only(rotation=45)
    side = read_size(size, settings)
    rgb, labels = np.full((side, side, 3), 200, dtype=np.uint8), np.full((side, side), 3, dtype=np.uint8)
    weights = np.full((side, side), 1.5, dtype=np.float32)
    for seed in range(30):
        _, mask, importance = augment(rgb, labels, weights, settings, np.random.default_rng(seed), size)
        assert (mask == 3).all()
        assert (importance == 1.5).all()


def test_what_lies_outside_is_ignored() -> None:
    rgb, labels = np.full((40, 40, 3), 200, dtype=np.uint8), np.full((40, 40), 3, dtype=np.uint8)
    weights = np.full((40, 40), 1.5, dtype=np.float32)
    outside = 0
    for seed in range(20):
        image, mask, importance = augment(rgb, labels, weights, only(rotation=45), np.random.default_rng(seed), 40)
        assert importance is not None
        assert set(np.unique(mask)) <= {3, IGNORED}
        np.testing.assert_array_equal(mask == IGNORED, importance == 0)
        assert np.abs(image.astype(int) - 200).max() <= 1  # not black, which would be tissue of infinite density
        outside += mask[0, 0] == IGNORED
    assert outside > 5


def test_image_labels_and_weights_rotate_together_by_any_angle() -> None:
    settings, size = only(rotation=45), 96
    side = read_size(size, settings)
    middle = side // 2
    rgb, labels = discs(side, (middle, middle + 30), (middle - 20, middle - 10))
    angles = []
    for seed in range(40):
        rng = np.random.default_rng(seed)
        image, mask, weights = augment(rgb, labels, labels * np.float32(0.5), settings, rng, size)
        dark = image.mean(axis=2) < 160
        assert (dark != (mask > 0)).mean() < 0.004
        assert set(np.unique(mask)) == {0, 1, 2}
        np.testing.assert_array_equal(weights, mask * np.float32(0.5))
        first, second = (np.array(ndi.center_of_mass(mask == i)) for i in (1, 2))
        assert np.hypot(*(first - second)) == pytest.approx(math.hypot(20, 40), abs=0.5)  # not scaled
        row, column = first - (size - 1) / 2
        angles.append(math.degrees(math.atan2(row, column)) % 90)
    off = np.minimum(np.array(angles), 90 - np.array(angles))
    assert 8 <= (off < 1.5).sum() <= 32  # about half turn by quarters alone
    assert off.max() > 35


def test_rotation_keeps_within_its_angle() -> None:
    settings, size = only(rotation=10), 96
    side = read_size(size, settings)
    rgb, labels = discs(side, (side // 2, side // 2 + 40))
    off = []
    for seed in range(40):
        mask = augment(rgb, labels, None, settings, np.random.default_rng(seed), size)[1]
        row, column = np.array(ndi.center_of_mass(mask == 1)) - (size - 1) / 2
        angle = math.degrees(math.atan2(row, column)) % 90
        off.append(min(angle, 90 - angle))
    assert 6 < max(off) < 11.5


def test_elastic_deformation_moves_image_and_labels_together() -> None:
    settings, size = only(elastic=4), 128
    side = read_size(size, settings)
    places = [(row, column) for row in range(30, 130, 25) for column in range(30, 130, 25)]
    rgb, labels = discs(side, *places, radius=5)
    moved = []
    for seed in range(12):
        image, mask, _ = augment(rgb, labels, None, settings, np.random.default_rng(seed), size)
        assert ((image.mean(axis=2) < 160) != (mask > 0))[mask != IGNORED].mean() < 0.01
        numbers = [i for i in range(1, len(places) + 1) if 60 < (mask == i).sum() < 110]
        centres = np.array([ndi.center_of_mass(mask == i) for i in numbers])
        true = np.array([places[i - 1] for i in numbers])
        distances = np.hypot(*(centres[:, None] - centres[None]).transpose(2, 0, 1))
        moved.append(np.abs(distances - np.hypot(*(true[:, None] - true[None]).transpose(2, 0, 1))).max())
    assert min(moved) < 0.8  # half are not deformed
    assert 2 < max(moved) < 25


# colour


def test_stain_changes_the_amount_of_hematoxylin_alone() -> None:
    rgb = stained(H_DAB.vectors[0], 0.5)
    gains = []
    for seed in range(30):
        image = changed(rgb, only(stain=0.25), seed)
        assert (image.reshape(-1, 3) == 255).all(axis=1).sum() == 32  # white stays white
        ratio = density_of(image) / (0.5 * np.array(H_DAB.vectors[0]))
        assert np.ptp(ratio) < 0.03
        gains.append(ratio.mean())
    assert 0.74 < min(gains) < 0.85
    assert 1.15 < max(gains) < 1.26


@pytest.mark.parametrize(("vector", "name"), [(H_DAB.vectors[1], "DAB"), (H_E.vectors[1], "eosin")])
def test_the_standard_vectors_are_those_of_the_stain_that_is_there(vector: Any, name: str) -> None:
    rgb = stained(vector, 0.6)
    for seed in range(10):
        ratio = density_of(changed(rgb, only(stain=0.3), seed)) / (0.6 * np.array(vector))
        assert np.ptp(ratio) < 0.05, name  # one factor for all channels: no other stain gained or lost


def test_hue_gives_each_stain_another_colour() -> None:
    rgb = stained(H_DAB.vectors[0], 0.5)
    images = [changed(rgb, only(hue=0.25), seed) for seed in range(40)]
    assert all((image.reshape(-1, 3) == 255).all(axis=1).sum() == 32 for image in images)
    spread = np.array([density_of(image) / (0.5 * np.array(H_DAB.vectors[0])) for image in images])
    assert 0.75 - 0.03 < spread.min() < 0.8
    assert 1.2 < spread.max() < 1.25 + 0.03
    assert np.abs(np.corrcoef(spread.T) - np.eye(3)).max() < 0.5  # each channel by itself


OWN = StainVectors(("Hematoxylin", "DAB"), ((0.45, 0.75, 0.48), (0.20, 0.42, 0.88)), (235.0, 228.0, 240.0))


def test_stains_given_with_the_slide_are_changed_and_its_white_stays() -> None:
    rgb = stained(OWN.vectors[0], 0.5, OWN.background)
    gains = []
    for seed in range(20):
        image = changed(rgb, only(stain=0.3, macenko=1), seed, stains=OWN)
        assert (image.reshape(-1, 3) == OWN.background).all(axis=1).sum() == 32
        ratio = density_of(image, OWN.background) / (0.5 * np.array(OWN.vectors[0]))
        assert np.ptp(ratio) < 0.04
        gains.append(ratio.mean())
    assert min(gains) < 0.8
    assert max(gains) > 1.2
    standard = [density_of(changed(rgb, only(stain=0.3), seed, stains=OWN), OWN.background) for seed in range(20)]
    assert max(np.ptp(density / (0.5 * np.array(OWN.vectors[0]))) for density in standard) > 0.06


def test_stains_are_estimated_from_the_patch() -> None:
    rng = np.random.default_rng(0)
    amount = np.where(rng.random((64, 64, 1)) < 0.5, [1.0, 0.0], [0.0, 1.0]) * rng.uniform(0.3, 0.9, (64, 64, 1))
    rgb = np.round(255 * 10 ** -(amount @ np.array(OWN.vectors))).astype(np.uint8)
    turned = []
    for macenko in (1.0, 0.0):
        angles = []
        for seed in range(12):
            density = -np.log10(changed(rgb, only(stain=0.3, macenko=macenko), seed).reshape(-1, 3) / 255)
            unit = density / np.linalg.norm(density, axis=1, keepdims=True)
            cosine = (unit @ np.array(OWN.vectors).T).max(axis=1)
            angles.append(math.degrees(math.acos(cosine.min())))
        turned.append(max(angles))
    assert turned[0] < 1.0  # more or less of each of its own stains, and nothing else
    assert turned[1] > 2.0


def test_a_patch_without_stain_can_be_changed() -> None:
    glass = np.full((64, 64, 3), 244, dtype=np.uint8)
    for seed in range(10):
        image = changed(glass, Augmentation(rotation=0, noise=0), seed)
        assert image.min() > 200
    black = np.zeros((64, 64, 3), dtype=np.uint8)
    assert all(changed(black, Augmentation(rotation=0, noise=0), seed).max() < 60 for seed in range(10))


def test_stains_too_alike_to_tell_apart_are_not_changed_apart() -> None:
    near = StainVectors(("a", "b"), ((0.65, 0.70, 0.29), (0.60, 0.72, 0.35)))
    rgb = stained((0.3, 0.6, 0.74), 0.6)
    for seed in range(10):
        np.testing.assert_array_equal(
            changed(rgb, only(stain=0.3, macenko=1), seed, stains=near), changed(rgb, only(stain=0.3), seed)
        )


def test_gamma_changes_all_densities_by_one_factor() -> None:
    rgb = stained((0.4, 0.8, 0.45), 0.5)
    before = density_of(rgb)
    ratios = np.array([density_of(changed(rgb, only(gamma=0.25), seed)) / before for seed in range(40)])
    assert np.ptp(ratios, axis=1).max() < 0.03
    assert 0.79 < ratios.min() < 0.87
    assert 1.15 < ratios.max() < 1.27


def test_stain_shift_colours_the_glass() -> None:
    shifted = [changed(np.full((4, 4, 3), 200, dtype=np.uint8), only(stain_shift=0.05), seed) for seed in range(30)]
    change = np.array([-np.log10(image[0, 0] / 200) for image in shifted])
    assert change.min() < -0.02
    assert 0.02 < change.max() < 0.05 * (0.70 + 0.80) + 0.002  # both stains at most, in the channel they absorb most


def test_brightness_moves_the_white_point() -> None:
    white = (
        np.array([changed(np.full((4, 4, 3), 200, np.uint8), only(brightness=0.1), s)[0, 0] for s in range(60)]) / 200
    )
    assert 0.9 * 0.95 <= white.min() < 0.93
    assert 1.07 < white.max() <= 1.1 * 1.05 + 0.003
    assert np.ptp(white, axis=1).max() > 0.04  # the channels differ, by up to half of it on each side
    assert np.ptp(white, axis=1).max() < 1.1 * 0.1 + 0.005


def test_contrast_keeps_the_mean() -> None:
    rgb = np.full((4, 4, 3), 100, dtype=np.uint8)
    rgb[:2] = 200
    spread = []
    for seed in range(30):
        image = changed(rgb, only(contrast=0.2), seed)
        assert image.mean() == pytest.approx(150, abs=0.6)
        spread.append(np.ptp(image))
    assert 79 <= min(spread) < 90
    assert 110 < max(spread) <= 121


def test_blur_spreads_an_edge_and_keeps_the_rest() -> None:
    rgb = np.full((32, 32, 3), 60, dtype=np.uint8)
    rgb[:, 16:] = 220
    steepest = []
    for seed in range(30):
        image = changed(rgb, only(blur_px=2), seed).astype(int)
        assert image.min() >= 59
        assert image.max() <= 221
        steepest.append(max(np.abs(np.diff(image, axis=axis)).max() for axis in (0, 1)))
    assert max(steepest) > 150
    assert min(steepest) == pytest.approx(160 * math.erf(0.5 / (1.95 * math.sqrt(2))), abs=4)  # of a sigma near 2


def test_noise_has_its_deviation() -> None:
    rgb = np.full((64, 64, 3), 128, dtype=np.uint8)
    deviations = np.array([changed(rgb, only(noise=8), seed).std() for seed in range(40)])
    assert 8 <= (deviations == 0).sum() <= 32  # about half have none
    assert 6.5 < deviations.max() < 8.3


def test_blue_stays_blue_and_brown_brown() -> None:
    """With the defaults, typical negative and positive nuclei keep their colour, darker than the ground."""
    rgb = np.full((96, 96, 3), (232, 228, 230), dtype=np.uint8)
    labels = np.zeros((96, 96), dtype=np.uint8)
    rgb[20:60, 15:40], labels[20:60, 15:40] = (118, 134, 178), 1
    rgb[30:70, 55:80], labels[30:70, 55:80] = (124, 84, 52), 2
    rng = np.random.default_rng(1)
    rgb = np.clip(rgb + rng.normal(0, 4, rgb.shape), 0, 255).astype(np.uint8)
    for seed in range(150):
        image, mask, _ = augment(rgb, labels, None, Augmentation(), np.random.default_rng(seed), 96)
        ground, negative, positive = (image[mask == value].mean(axis=0) for value in (0, 1, 2))
        assert negative[2] - negative[0] > 15, seed
        assert positive[0] - positive[2] > 15, seed
        assert positive.mean() < negative.mean() < ground.mean() - 15, seed


# chance


def augmented_hash(seed: int) -> str:
    rgb = np.random.default_rng(0).integers(60, 256, (96, 96, 3), dtype=np.uint8)
    labels = (rgb[..., 0] > 150).astype(np.uint8)
    digest = hashlib.sha256()
    for number in range(3):
        rng = np.random.default_rng((seed, number))
        image, mask, weights = augment(rgb, labels, labels * np.float32(2), Augmentation(elastic=3), rng, 48)
        assert weights is not None
        for array in (image, mask, weights):
            digest.update(array.tobytes())
    return digest.hexdigest()


def test_the_same_state_gives_the_same_patch_in_any_process() -> None:
    import torch

    first = augmented_hash(5)
    np.random.seed(1)  # noqa: NPY002
    torch.manual_seed(1)
    state = np.random.get_state()[1].copy()  # type: ignore[index,union-attr]  # noqa: NPY002
    torch_state = torch.get_rng_state()
    assert augmented_hash(5) == first
    np.testing.assert_array_equal(np.random.get_state()[1], state)  # type: ignore[index,arg-type]  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert augmented_hash(6) != first
    code = (
        "import importlib.util as u; s = u.spec_from_file_location('t', "
        f"{__file__!r}); m = u.module_from_spec(s); s.loader.exec_module(m); print(m.augmented_hash(5))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.strip() == first


# what is refused, and what is not loaded


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scale": -0.1}, "augmentation with scale = -0.1; expected a number from 0"),
        ({"stain": 1.0}, "stain = 1.0; expected a number from 0 to below 1"),
        ({"macenko": 1.5}, "macenko = 1.5; expected a number from 0 to 1"),
        ({"rotation": 270.0}, "rotation = 270.0; expected a number from 0 to 180"),
        ({"noise": math.nan}, "noise = nan"),
        ({"blur_px": math.inf}, "blur_px = inf"),
    ],
)
def test_settings_out_of_range(change: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Augmentation(**change)


def test_a_patch_smaller_than_wanted_is_refused() -> None:
    rgb, labels = np.zeros((30, 40, 3), dtype=np.uint8), np.zeros((30, 40), dtype=np.uint8)
    with pytest.raises(ConfigError, match="a patch of 40 x 30 px; expected at least 32 x 32 px"):
        augment(rgb, labels, None, only(), np.random.default_rng(0), 32)


def test_importing_the_data_set_loads_neither_torch_nor_monai() -> None:
    code = "import sys, pyhisto.dataset; assert not {'torch', 'monai'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
