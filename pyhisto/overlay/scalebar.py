"""A scale bar."""

from __future__ import annotations

import functools
import math
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

__all__ = ["add_scale_bar", "bar_length_um"]

_SMALL_PX, _LARGE_PX = 400.0, 1200.0
"""Sides of pictures between which bar and label have one size; they shrink and grow with others."""


@functools.cache
def _font(size: int) -> Any:
    """Return DejaVu Sans, which comes with matplotlib and, unlike Pillow's own font, has a µ."""
    import matplotlib

    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"), size)


def bar_length_um(longest_um: float) -> float:
    """Return the largest of 1, 2, 5, 10, 20, 50, ... µm that is not longer than asked for.

    >>> bar_length_um(180.0), bar_length_um(4.9)
    (100.0, 2.0)
    """
    power = 10.0 ** math.floor(math.log10(longest_um))
    return float(max(factor * power for factor in (1, 2, 5) if factor * power <= longest_um * (1 + 1e-9)))


def add_scale_bar(rgb: npt.NDArray[np.uint8], um_per_px: float) -> npt.NDArray[np.uint8]:
    """Draw a bar at the bottom right: black on a light box, with its length above.

    Parameters
    ----------
    rgb
        RGB uint8, shape (H, W, 3); at least 80 px wide for the label to fit.
    um_per_px
        Width of a pixel, µm.

    Returns
    -------
    numpy.ndarray
        A new RGB uint8 (H, W, 3). The bar is at most a quarter of the picture long.
    """
    height, width = rgb.shape[:2]
    length_um = bar_length_um(um_per_px * width / 4)
    length = max(1, round(length_um / um_per_px))
    label = f"{length_um / 1000:g} mm" if length_um >= 1000 else f"{length_um:g} µm"
    longest = max(width, height)
    unit = max(1.0, longest / _LARGE_PX) * min(1.0, longest / _SMALL_PX)
    font, pad, thick = _font(max(8, round(min(20 * unit, width / 8)))), max(1, round(8 * unit)), max(2, round(5 * unit))
    left, top, right, bottom = font.getbbox(label)
    box_width, box_height = max(length, right - left) + 2 * pad, bottom - top + thick + 3 * pad
    x0, y0 = width - box_width - pad, height - box_height - pad
    picture = Image.fromarray(rgb).convert("RGBA")
    layer = Image.new("RGBA", picture.size, (255, 255, 255, 0))
    draw = ImageDraw.Draw(layer)
    draw.rounded_rectangle((x0, y0, x0 + box_width - 1, y0 + box_height - 1), pad, fill=(255, 255, 255, 225))
    draw.text((x0 + (box_width - (right - left)) / 2 - left, y0 + pad - top), label, font=font, fill=(0, 0, 0, 255))
    bar_x, bar_y = x0 + (box_width - length) // 2, y0 + box_height - pad - thick
    draw.rectangle((bar_x, bar_y, bar_x + length - 1, bar_y + thick - 1), fill=(0, 0, 0, 255))
    return np.asarray(Image.alpha_composite(picture, layer).convert("RGB"))
