"""U-Net's weight map, by hand and against distances that shapely measures."""

from __future__ import annotations

import numpy as np
import pytest
import shapely

from pyhisto.dataset import BoundaryWeights
from pyhisto.errors import ConfigError
from pyhisto.labels import rasterise


def test_the_gap_between_two_nuclei_gains_by_its_width() -> None:
    instances = np.zeros((30, 40), dtype=np.int32)
    instances[5:25, 4:14], instances[5:25, 18:30] = 7, 3  # 4 px apart
    weights = BoundaryWeights(w0=10, sigma_um=2.5).weigh(instances, 0.5)
    assert weights.dtype == np.float32
    # across the gap d1 + d2 is its width: 4 px are 2 µm
    np.testing.assert_allclose(weights[15, 14:18], 1 + 10 * np.exp(-(2.0**2) / (2 * 2.5**2)), rtol=1e-6)
    # left of both, 1 px from the one and 15 px from the other: 0.5 and 14.5 px to their borders, 7.5 µm together
    np.testing.assert_allclose(weights[15, 3], 1 + 10 * np.exp(-(7.5**2) / (2 * 2.5**2)), rtol=1e-6)
    assert weights[15, 2] == 1  # 8.5 µm: more than three sigma
    assert (weights[instances > 0] == 1).all()


@pytest.mark.parametrize("numbers", [[], [1]])
def test_without_a_second_nucleus_nothing_gains(numbers: list[int]) -> None:
    instances = np.zeros((20, 20), dtype=np.int32)
    for number in numbers:
        instances[5:10, 5:10] = number
    assert (BoundaryWeights().weigh(instances, 0.5) == 1).all()
    assert (BoundaryWeights().weigh(np.full((9, 9), 4, dtype=np.int32), 0.5) == 1).all()


def test_any_nuclei_against_shapely() -> None:
    """Distances between pixel centres less half a pixel, of the two nearest of many nuclei."""
    rng = np.random.default_rng(5)
    circles = shapely.buffer(shapely.points(rng.uniform(0, 60, (25, 2))), rng.uniform(2, 5, 25))
    instances = rasterise(circles, range(1, 26), (60, 60))
    centres = {
        n: shapely.MultiPoint(np.argwhere(instances == n)[:, ::-1]) for n in range(1, 26) if (instances == n).any()
    }
    pixels = np.argwhere(instances == 0)
    distance = np.sort([shapely.distance(c, shapely.points(pixels[:, ::-1])) - 0.5 for c in centres.values()], axis=0)
    gap = distance[:2].sum(axis=0)
    expected = np.where(gap <= 3 * 3, 1 + 5 * np.exp(-(gap**2) / (2 * 3**2)), 1)
    found = BoundaryWeights(w0=5, sigma_um=3).weigh(instances, 1.0)
    np.testing.assert_allclose(found[tuple(pixels.T)], expected, rtol=1e-5)
    # cut out with the margin, a part of it is the same
    margin = BoundaryWeights(w0=5, sigma_um=3).margin(1.0)
    assert margin == 10
    part = BoundaryWeights(w0=5, sigma_um=3).weigh(instances[10:50, 10:50], 1.0)
    np.testing.assert_allclose(part[margin:-margin, margin:-margin], found[20:40, 20:40], rtol=1e-6)


@pytest.mark.parametrize(("w0", "sigma_um", "message"), [(-1.0, 2.5, "w0 -1"), (1.0, 0.0, "sigma_um 0")])
def test_settings_that_mean_nothing_are_refused(w0: float, sigma_um: float, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        BoundaryWeights(w0=w0, sigma_um=sigma_um)
