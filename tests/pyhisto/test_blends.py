"""The loops that blend and average, with numbers worked out by hand."""

from __future__ import annotations

import numpy as np

from pyhisto.loops.blends import add_tile, divide, mean_cells


def test_two_tiles_side_by_side() -> None:
    """Of four columns the left tile has three, the right one three; they share the two in the middle."""
    sums, rgb = np.zeros((3, 1, 5), dtype=np.float32), np.full((1, 5, 3), 255, dtype=np.uint8)
    left, right = np.zeros((2, 1, 3), dtype=np.float32), np.zeros((2, 1, 3), dtype=np.float32)
    left[0], left[1], right[0], right[1] = 1, 0, 0.25, 0.75
    blue, red = np.full((1, 3, 3), (0, 0, 200), dtype=np.uint8), np.full((1, 3, 3), (200, 0, 0), dtype=np.uint8)
    row = np.array([1.0])
    add_tile(left, blue, (row, np.array([1.0, 0.75, 0.25])), (0, 0, 2, 1), (sums[:, :, :3], rgb[:, :3]))
    assert rgb[0].tolist() == [[0, 0, 200]] * 3 + [[255] * 3] * 2
    add_tile(right, red, (row, np.array([0.25, 0.75, 1.0])), (1, 0, 3, 1), (sums[:, :, 1:4], rgb[:, 1:4]))
    assert rgb[0].tolist() == [[0, 0, 200]] * 2 + [[200, 0, 0]] * 2 + [[255] * 3]
    divide(sums)
    # 0.75 x 1 + 0.25 x 0.25 = 0.8125, and 0.25 x 1 + 0.75 x 0.25 = 0.4375; where there is none, all is background
    np.testing.assert_allclose(sums[0, 0], [1, 0.8125, 0.4375, 0.25, 1])
    np.testing.assert_allclose(sums[1, 0], [0, 0.1875, 0.5625, 0.75, 0])


def test_rows_have_weights_too_and_only_the_core_takes_the_colours() -> None:
    sums, rgb = np.zeros((2, 2, 1), dtype=np.float32), np.zeros((2, 1, 3), dtype=np.uint8)
    ones, one = np.ones((1, 2, 1), dtype=np.float32), np.array([1.0])
    add_tile(ones, np.full((2, 1, 3), 7, dtype=np.uint8), (np.array([1.0, 0.5]), one), (0, 0, 1, 1), (sums, rgb))
    add_tile(0 * ones, np.full((2, 1, 3), 9, dtype=np.uint8), (np.array([0.0, 0.5]), one), (0, 1, 1, 2), (sums, rgb))
    assert rgb[:, 0, 0].tolist() == [7, 9]
    divide(sums)
    assert sums[0, :, 0].tolist() == [1, 0.5]


def test_means_of_cells() -> None:
    """A cell of two by two whose sum is 1.5, one of which half is not wanted, and the rests at the edges."""
    probability = np.array([[[0.25, 0.75, 1, 1, 1], [0.5, 0, 1, 1, 1], [1, 1, 0, 0, 0.5]]], dtype=np.float32)
    wanted = np.ones((3, 5), dtype=bool)
    wanted[0, 2:4] = False
    out = np.empty((2, 1, 3), dtype=np.uint8)
    mean_cells(probability, wanted, 2, out)
    # 255 x 1.5 / 4 = 95.6, 255 x 2 / 4 = 127.5 (to the even number), 255 x 0.5 / 4 = 31.9
    assert out[:, 0].tolist() == [[96, 128, 128], [128, 0, 32]]
