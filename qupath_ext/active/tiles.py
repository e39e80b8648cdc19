"""The tiles of slides by an encoder, from feature files that are there already."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from pyhisto.features.bags import Bag, list_bags
from qupath_ext.errors import ProjectError
from qupath_ext.workflows.milpredict import bags_of_entries

if TYPE_CHECKING:
    from pyhisto.slide import Slide
    from qupath_ext.active.slides import LoopSlide

__all__ = ["Tiles", "slide_bags", "tiles_of"]

Tiles = tuple[npt.NDArray[np.float64], npt.NDArray[np.float32]]
"""Centres of tiles, level-0 px (n, 2), and their features (n, d)."""


def slide_bags(folder: Path, slides: Sequence[LoopSlide]) -> dict[str, Bag]:
    """Return the feature file of each slide, by its key.

    Raises
    ------
    ConfigError
        If the folder has no feature file, or two belong to one image.
    ProjectError
        If a slide has none, or the files are not of one encoder.
    """
    bags = list_bags(folder)
    found: dict[str, Bag] = {}
    for slide in slides:
        entry = slide.first.entry
        found[slide.key] = bags_of_entries([entry], bags)[entry.id]
    widths = {(bag.width, bag.encoder_sha256) for bag in found.values()}
    if len(widths) > 1:
        raise ProjectError(
            f"{folder} has features of {len(widths)} encoders", remedy="extract those of all slides with one of them"
        )
    return found


def tiles_of(bag: Bag, slide: Slide) -> Tiles:
    """Return the tiles of an open slide.

    Raises
    ------
    ProjectError
        If the file does not say where the tiles lie, or how large they are.
    """
    corners = bag.corners(slide.origin)
    if corners is None or bag.patch_size is None:
        raise ProjectError(
            f"{bag.path} does not say where its tiles lie", expected="their corners and size, level-0 px"
        )
    return corners + np.array([bag.patch_size, bag.patch_height or bag.patch_size]) / 2, bag.features
