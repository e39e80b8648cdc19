"""Colours of path classes where the project does not say: QuPath's own, else one that follows from the name."""

from __future__ import annotations

import colorsys
import hashlib

__all__ = ["STANDARD_COLORS", "class_color"]

STANDARD_COLORS = {
    "Tumor": (200, 0, 0),
    "Stroma": (150, 200, 150),
    "Immune cells": (160, 90, 160),
    "Necrosis": (50, 50, 50),
    "Other": (255, 200, 0),
    "Region*": (0, 0, 180),
    "Ignore*": (180, 180, 180),
    "Positive": (200, 50, 50),
    "Negative": (90, 90, 180),
}
"""Red, green and blue; a derived class without an entry of its own takes that of its last part."""


def class_color(name: str) -> int:
    """Return the colour of a class, signed packed ARGB; always the same for the same name.

    >>> class_color("Tumor"), class_color("Stroma: Positive")
    (-3670016, -3657166)
    """
    last = name.rpartition(": ")[2]
    rgb = STANDARD_COLORS.get(name) or STANDARD_COLORS.get(last)
    if rgb is None:
        hue, value = hashlib.sha256(name.encode()).digest()[:2]
        parts = colorsys.hsv_to_rgb(hue / 256, 0.65, 0.6 + value / 640)
        rgb = (round(parts[0] * 255), round(parts[1] * 255), round(parts[2] * 255))
    red, green, blue = rgb
    return (0xFF << 24 | red << 16 | green << 8 | blue) - (1 << 32)
