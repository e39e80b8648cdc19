"""Colours of path classes where the project does not say: QuPath's own, else one that follows from the name."""

from __future__ import annotations

import colorsys
import hashlib

from pyhisto.classes import CLASS_COLORS

__all__ = ["class_color"]


def class_color(name: str) -> int:
    """Return the colour of a class, signed packed ARGB; always the same for the same name.

    >>> class_color("Tumor"), class_color("Stroma: Positive")
    (-3670016, -3657166)
    """
    rgb = CLASS_COLORS.get(name) or CLASS_COLORS.get(name.rpartition(": ")[2])
    if rgb is None:
        hue, value = hashlib.sha256(name.encode()).digest()[:2]
        parts = colorsys.hsv_to_rgb(hue / 256, 0.65, 0.6 + value / 640)
        rgb = (round(parts[0] * 255), round(parts[1] * 255), round(parts[2] * 255))
    red, green, blue = rgb
    return (0xFF << 24 | red << 16 | green << 8 | blue) - (1 << 32)
