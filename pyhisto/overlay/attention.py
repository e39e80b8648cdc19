"""Where a model for slide labels looks, drawn over the slide."""

from __future__ import annotations

import contextlib

import numpy as np
import numpy.typing as npt
from matplotlib import colormaps
from scipy.stats import rankdata

from pyhisto.errors import MissingPixelSizeError
from pyhisto.overlay.picture import Bounds, fit_view
from pyhisto.overlay.scalebar import add_scale_bar
from pyhisto.slide import Slide

__all__ = ["attention_share", "draw_attention"]

OPACITY = 0.5
"""Of the colours over the slide, which is grey beneath them: the pink of eosin would pass for much attention."""

LUMINANCE = (0.299, 0.587, 0.114)
"""Of red, green and blue (ITU-R BT.601)."""


def attention_share(attention: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
    """Return the rank of each instance by its attention as a share, float64 (n,): 1 for the most, ties share theirs.

    Few tiles get nearly all attention, so that the values themselves would leave all others in one colour.

    >>> attention_share(np.array([0.7, 0.1, 0.2]))
    array([1.        , 0.33333333, 0.66666667])
    """
    return np.asarray(rankdata(attention, method="average") / max(len(attention), 1), dtype=np.float64)


def draw_attention(
    slide: Slide,
    corners: npt.NDArray[np.int64],
    sides: tuple[int, int],
    attention: npt.NDArray[np.floating],
    *,
    bounds: Bounds,
    max_size: tuple[int, int] = (1600, 1600),
) -> npt.NDArray[np.uint8]:
    """Draw tiles in the colours of their attention over a slide: blue for the least, red for the most, by rank.

    Where tiles overlap, the mean of their ranks counts. A scale bar stands in the corner if the slide has a pixel size
    and the picture is at least 80 px wide.

    Parameters
    ----------
    slide
        An open slide.
    corners
        Top left corners (x, y) of the tiles, int (n, 2), level-0 px.
    sides
        Width and height of the tiles, level-0 px.
    attention
        float (n,).
    bounds
        What of the slide to show, level-0 px.
    max_size
        Most width and height of the picture.

    Returns
    -------
    numpy.ndarray
        RGB uint8 (height, width, 3).
    """
    view = fit_view(bounds, max_size)
    rgb = slide.read_downsampled(view.x0, view.y0, view.width, view.height, view.downsample).astype(np.float64)
    total, count = np.zeros((view.height, view.width)), np.zeros((view.height, view.width))
    low = view.to_picture(corners.astype(np.float64))
    high = view.to_picture((corners + sides).astype(np.float64))
    size = np.array([view.width, view.height])
    first = np.floor(low + 0.5).clip(0, size).astype(int)
    last = np.maximum(np.floor(high + 0.5).clip(0, size).astype(int), np.minimum(first + 1, size))
    for (x0, y0), (x1, y1), share in zip(first, last, attention_share(attention), strict=True):
        total[y0:y1, x0:x1] += share
        count[y0:y1, x0:x1] += 1
    covered = count > 0
    colors = colormaps["coolwarm"](total[covered] / count[covered])[:, :3] * 255
    rgb[covered] = (1 - OPACITY) * (rgb[covered] @ LUMINANCE)[:, None] + OPACITY * colors
    drawn = np.floor(rgb + 0.5).clip(0, 255).astype(np.uint8)
    if view.width >= 80:
        with contextlib.suppress(MissingPixelSizeError):
            drawn = add_scale_bar(drawn, slide.mpp[0] * view.downsample[0])
    return drawn
