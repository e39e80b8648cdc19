"""The colours of classes: those that QuPath gives its own, and those that this program's analyses use."""

from __future__ import annotations

__all__ = ["CLASS_COLORS", "Color"]

Color = tuple[int, int, int]
"""Red, green and blue, 0 to 255."""

CLASS_COLORS: dict[str, Color] = {
    "Tumor": (200, 0, 0),
    "Tumor: Positive": (200, 50, 50),
    "Tumor: Negative": (90, 90, 180),
    "Stroma": (150, 200, 150),
    "Immune cells": (160, 90, 160),
    "Necrosis": (50, 50, 50),
    "Other": (255, 200, 0),
    "Region*": (0, 0, 180),
    "Ignore*": (180, 180, 180),
    "Positive": (200, 50, 50),
    "Negative": (90, 90, 180),
    "Tissue": (128, 128, 128),
}
"""By full name."""
