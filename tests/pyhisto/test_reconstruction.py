"""Greyscale reconstruction: by hand, and as scikit-image does it."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.ndimage as ndi
from skimage.morphology import reconstruction

from pyhisto.loops.reconstruction import reconstructed


def test_a_seed_fills_its_own_hill_up_to_the_saddle():
    mask = np.array([[0, 5, 7, 5, 2, 6, 9, 6, 0]], dtype=np.uint8)
    seed = np.where(mask == 7, 6, 0).astype(np.uint8)
    np.testing.assert_array_equal(reconstructed(seed, mask), [[0, 5, 6, 5, 2, 2, 2, 2, 0]])


def test_a_seed_follows_a_winding_valley_to_its_end():
    rows = ["#########", "........#", "#########", "#........", "#########", "........#", "#########"]
    mask = np.array([[9 if c == "#" else 0 for c in row] for row in rows], dtype=np.float32)
    for place in ((0, 0), (6, 0), (3, 0)):
        seed = np.zeros_like(mask)
        seed[place] = 4
        np.testing.assert_array_equal(reconstructed(seed, mask), np.minimum(mask, 4))


@pytest.mark.parametrize("dtype", [np.float32, np.uint8])
@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (6, 1), (2, 2), (120, 90)])
def test_the_same_pixels_as_scikit_image(dtype, shape):
    rng = np.random.default_rng(0)
    for smooth in (0, 1, 3):
        mask = (255 * ndi.gaussian_filter(rng.random(shape), smooth)).astype(dtype) - dtype(
            1 if dtype is np.float32 else 0
        )
        seed = np.minimum(mask, (255 * rng.random(shape) ** 40).astype(dtype))
        before = seed.copy(), mask.copy()
        expected = reconstruction(seed, mask, footprint=np.ones((3, 3)))
        found = reconstructed(seed, mask)
        assert found.dtype == dtype
        np.testing.assert_array_equal(found, expected)
        np.testing.assert_array_equal((seed, mask), before)
