import math

import numpy as np
import pytest
from skimage import data

from pyhisto.errors import ConfigError
from pyhisto.normalisation import normalise_macenko
from pyhisto.stain import (
    H_DAB,
    H_E,
    StainVectors,
    deconvolve,
    estimate_background,
    estimate_stains,
    optical_density,
    optical_density_sum,
)

# As QuPath 0.5.1 prints its default H&E stains, the residual last.
QUPATH_H_E = [
    [0.6511078297640718, 0.7011930397459234, 0.2904942598947397],
    [0.2158989396452469, 0.8011960486835193, 0.5580972490829657],
    [0.3155105736760095, -0.5981592040221263, 0.736653680193245],
]


def paint(stains: StainVectors, amounts: np.ndarray) -> np.ndarray:
    """Render amounts (..., 2) of two stains: the inverse of deconvolution."""
    od = amounts @ stains.matrix[:2]
    return np.rint(np.asarray(stains.background) * 10.0**-od).clip(0, 255).astype(np.uint8)


def test_default_vectors_are_qupaths() -> None:
    np.testing.assert_allclose(H_E.matrix, QUPATH_H_E, atol=2e-5)
    assert np.round(H_DAB.vectors[1], 5).tolist() == [0.26917, 0.56824, 0.77759]


def test_od_of_single_values_by_hand() -> None:
    rgb = np.array([[[255, 128, 0]]], dtype=np.uint8)
    expected = [0.0, math.log10(255 / 128), math.log10(255)]  # 0 counts as 1
    assert optical_density(rgb)[0, 0] == pytest.approx(expected, abs=1e-6)
    assert optical_density_sum(rgb)[0, 0] == pytest.approx(sum(expected), abs=1e-6)
    # brighter than white is not negative
    assert optical_density(rgb, (200.0, 100.0, 100.0))[0, 0].tolist() == [0.0, 0.0, 2.0]


def test_deconvolution_recovers_what_was_painted() -> None:
    amounts = np.random.default_rng(1).uniform(0, 0.6, (40, 40, 2))
    found = deconvolve(paint(H_DAB, amounts), H_DAB)
    assert found.dtype == np.float32
    assert np.abs(found[..., :2] - amounts).max() < 0.02
    assert np.abs(found[..., 2]).max() < 0.02


def test_deconvolution_measures_against_the_given_white() -> None:
    stains = H_DAB.with_background((220.0, 210.0, 200.0))
    white = np.full((2, 2, 3), (220, 210, 200), dtype=np.uint8)
    assert not deconvolve(white, stains).any()
    assert deconvolve(white, H_DAB).max() > 0.02


def test_stains_are_checked() -> None:
    with pytest.raises(ConfigError, match="parallel"):
        StainVectors(("a", "b"), ((1.0, 1.0, 0.0), (2.0, 2.0, 0.0)))
    with pytest.raises(ConfigError, match="two or three"):
        StainVectors(("a",), ((1.0, 1.0, 0.0),))
    with pytest.raises(ConfigError, match="background"):
        H_E.with_background((0.0, 255.0, 255.0))
    with pytest.raises(ConfigError, match="RGB uint8"):
        deconvolve(np.zeros((4, 4), dtype=np.uint8), H_E)


def test_background_is_the_glass_not_the_tissue_or_the_padding() -> None:
    rgb = np.full((100, 100, 3), 255, dtype=np.uint8)
    rgb[:60] = (236, 232, 238)
    rgb[60:80] = (170, 110, 160)
    found = estimate_background(rgb)
    assert found.background == (236.0, 232.0, 238.0)
    assert found.reason == ""


def test_background_without_glass_says_so() -> None:
    found = estimate_background(np.full((50, 50, 3), (150, 80, 140), dtype=np.uint8))
    assert found.background == (255.0, 255.0, 255.0)
    assert "look like glass" in found.reason


def mixture(stains: StainVectors, dab_share: float) -> np.ndarray:
    rng = np.random.default_rng(3)
    amounts = np.zeros((300, 300, 2))
    blue = rng.random((300, 300)) < 0.4
    brown = rng.random((300, 300)) < dab_share
    amounts[blue, 0] = rng.uniform(0.4, 0.9, blue.sum())
    amounts[brown] = np.stack([np.zeros(brown.sum()), rng.uniform(0.4, 1.0, brown.sum())], axis=1)
    return paint(stains, amounts)


@pytest.mark.parametrize("dab_share", [0.3, 0.004])
def test_stains_are_found_even_where_dab_is_rare(dab_share: float) -> None:
    true = StainVectors(("Hematoxylin", "DAB"), ((0.62, 0.72, 0.32), (0.30, 0.55, 0.75)), (240.0, 240.0, 240.0))
    found = estimate_stains(mixture(true, dab_share), background=(240.0, 240.0, 240.0))
    assert found.reason == ""
    for ours, theirs in zip(found.stains.vectors, true.vectors, strict=True):
        assert math.degrees(math.acos(min(1.0, np.dot(ours, theirs)))) < 2.5
    assert found.stains.background == (240.0, 240.0, 240.0)


def test_a_stain_that_is_not_there_keeps_its_default_and_is_reported() -> None:
    found = estimate_stains(mixture(H_DAB, 0.0))
    assert found.stains.vectors[1] == H_DAB.vectors[1]
    assert "DAB is the default" in found.reason


def test_an_implausible_stain_is_rejected_and_reported() -> None:
    green = StainVectors(("Hematoxylin", "DAB"), ((0.9, 0.1, 0.4), (0.8, 0.2, 0.9)))
    found = estimate_stains(mixture(green, 0.3))
    assert found.stains.vectors == H_DAB.vectors
    assert "Hematoxylin is the default" in found.reason
    assert "DAB is the default" in found.reason


def test_an_empty_image_gives_defaults_with_a_reason() -> None:
    found = estimate_stains(np.full((64, 64, 3), 250, dtype=np.uint8))
    assert found.stains.vectors == H_DAB.vectors
    assert "stained pixels" in found.reason


def test_real_ihc_has_plausible_stains() -> None:
    found = estimate_stains(data.immunohistochemistry(), background=(234.0, 233.0, 232.0))
    assert found.reason == ""
    assert max(found.angles_deg) < 12


def test_normalisation_brings_two_stainings_together() -> None:
    rng = np.random.default_rng(5)
    # at every pixel one stain or the other, as Macenko assumes of the extremes
    amounts = rng.uniform(0.2, 0.6, (64, 64, 2)) * np.eye(2)[rng.integers(0, 2, (64, 64))]
    other = StainVectors(H_E.names, ((0.70, 0.66, 0.27), (0.25, 0.82, 0.51)), (235.0, 230.0, 240.0))
    weak, strong = paint(other, amounts * 0.6), paint(H_E, amounts)
    before = np.abs(weak.astype(int) - strong).mean()
    a = normalise_macenko(weak, source=other)
    b = normalise_macenko(strong, source=H_E)
    assert np.abs(a.astype(int) - b).mean() < 3 < before / 4
    assert a.dtype == np.uint8


def test_normalisation_with_own_strength_changes_nothing() -> None:
    rgb = paint(H_E, np.random.default_rng(6).uniform(0.1, 0.5, (32, 32, 2)))
    same = normalise_macenko(rgb, source=H_E, target_p99=(0.5, 0.5), source_p99=(0.5, 0.5))
    assert np.abs(same.astype(int) - rgb).max() <= 2
