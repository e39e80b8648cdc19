"""Attention drawn over a slide: where, and in which colours."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pyhisto.overlay.attention import attention_share, draw_attention
from pyhisto.slide import Slide

CORNERS = np.array([[0, 0], [16, 0], [0, 16]])
SIZE = (128, 96)
BOUNDS = (0.0, 0.0, 128.0, 96.0)


def test_shares_are_those_of_the_ranks() -> None:
    assert attention_share(np.array([0.2, 0.2, 0.5, 0.1])).tolist() == [0.625, 0.625, 1.0, 0.25]  # (2 + 3) / 2 / 4


def test_tiles_are_coloured_where_they_lie(gradient_slide: Path) -> None:
    with Slide(gradient_slide) as slide:
        drawn = draw_attention(slide, CORNERS, (16, 16), np.array([0.1, 0.7, 0.2]), bounds=BOUNDS, max_size=SIZE)
    # The slide is (2 x, 2 y, 7). At (20, 4): grey 0.299 * 40 + 0.587 * 8 + 0.114 * 7 = 17.45, half of it and half of
    # the colour of the highest share, (180, 4, 38).
    assert drawn[4, 20].tolist() == pytest.approx([98.7, 10.7, 27.7], abs=1)
    red, green, blue = (drawn[:16, :16, channel].mean() for channel in range(3))  # a third: blue
    assert blue > green > red
    np.testing.assert_array_equal(drawn[40, 40], [80, 80, 7])  # no tile lies there
    assert drawn[15, 31].tolist() != [62, 30, 7]
    assert drawn[16, 31].tolist() == [62, 32, 7]
    assert drawn.shape == (96, 128, 3)


def test_overlapping_tiles_share_their_colours(gradient_slide: Path) -> None:
    corners = np.array([[0, 0], [8, 0], [100, 90]])
    with Slide(gradient_slide) as slide:
        drawn = draw_attention(slide, corners, (16, 16), np.array([0.9, 0.0, 0.1]), bounds=BOUNDS, max_size=SIZE)
    # 1 and 1/3 meet in 2/3: as the third tile, which alone has this share, half of (225, 166, 142) or so over grey
    assert drawn[0, 12, 0] > drawn[0, 12, 2] > drawn[0, 4, 2]
    assert drawn[0, 20, 2] > drawn[0, 20, 0]


def test_a_slide_without_a_pixel_size_has_no_scale_bar(write_tiff, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    pixels = np.full((96, 128, 3), 200, np.uint8)
    pictures = []
    for name, mpp in (("with.tif", (0.5, 0.5)), ("without.tif", None)):
        with Slide(write_tiff(tmp_path / name, [pixels], mpp=mpp)) as slide:
            arguments = (slide, CORNERS[:1], (16, 16), np.array([1.0]))
            pictures.append(draw_attention(*arguments, bounds=BOUNDS, max_size=SIZE))
    assert (pictures[0][64:] < 50).any()
    assert (pictures[1][64:] == 200).all()
