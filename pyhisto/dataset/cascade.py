"""Patches for both stages of a coarse-to-fine model: with one label each, and with heat beside their colours."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pyhisto.dataset.images import IGNORED, TrainingImage
from pyhisto.dataset.patches import Item, PatchDataset
from pyhisto.dataset.validation import ValidationDataset
from pyhisto.errors import ConfigError
from pyhisto.heatmap import HIDDEN_HEAT, HeatedSlide, Heatmap
from pyhisto.slide import Slide

__all__ = [
    "DetectorPatches",
    "DetectorWindows",
    "HeatedImage",
    "PatchRule",
    "RefinerPatches",
    "RefinerWindows",
    "heat_classes",
]

TRIES = 4
"""Places that are tried for a patch until its label is clear."""


@dataclass(frozen=True)
class PatchRule:
    """Which class a patch is of, by the share of it that each class covers; shares are of what is labelled.

    Attributes
    ----------
    least
        Share that a class covers at least in a patch of it.
    most
        Share that all classes together cover at most in a patch of the background. What lies between, at borders, is
        of no class and not learnt from.
    labelled
        Share of the patch that is labelled at least.

    Raises
    ------
    ConfigError
        If they are no shares, or a patch could be of two kinds.
    """

    least: float = 0.25
    most: float = 0.02
    labelled: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.most < self.least <= 1:
            raise ConfigError(f"shares {self.most:g} and {self.least:g} of a patch", expected="0 <= most < least <= 1")
        if not 0 < self.labelled <= 1:
            raise ConfigError(f"labelled = {self.labelled:g}", expected="a share above 0")

    def label(self, labels: npt.NDArray[np.uint8], classes: int) -> int:
        """Return the class of a patch from the labels of its pixels, uint8 (H, W); :data:`IGNORED` for none."""
        counts = np.bincount(labels.ravel(), minlength=256)
        known = int(counts[:classes].sum())
        if known < self.labelled * labels.size:
            return IGNORED
        front = counts[1:classes]
        if front.max() >= self.least * known:
            return 1 + int(front.argmax())
        return 0 if front.sum() <= self.most * known else IGNORED


class DetectorPatches(PatchDataset):
    """Patches with one label each; where the first place gives none, others are tried, so that batches stay full.

    Parameters
    ----------
    rule
        Which class a patch is of.
    length, **options
        As in :class:`pyhisto.dataset.PatchDataset`.
    """

    def __init__(self, *arguments: Any, rule: PatchRule, length: int, **options: Any) -> None:
        super().__init__(*arguments, length=length * TRIES, **options)
        self.rule = rule

    def describe(self) -> dict[str, Any]:
        """Return all that decides which patches come, as JSON types."""
        return {**super().describe(), "rule": repr(self.rule)}

    def __len__(self) -> int:
        """Return the number of patches."""
        return self.length // TRIES

    def __getitem__(self, index: int) -> Item:
        """Return RGB uint8 (size, size, 3) and its label, uint8 (1, 1)."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        classes = self.task.class_count()
        for place in range(TRIES):
            rgb, labels, *_ = super().__getitem__(index * TRIES + place)
            label = self.rule.label(labels, classes)
            if label != IGNORED:
                break
        return rgb, np.full((1, 1), label, dtype=np.uint8)


class DetectorWindows(ValidationDataset):
    """Patches to validate on, with one label each."""

    def __init__(self, *arguments: Any, rule: PatchRule, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.rule = rule

    def describe(self) -> dict[str, Any]:
        """Return all that decides the windows, as JSON types."""
        return {**super().describe(), "rule": repr(self.rule)}

    def __getitem__(self, index: int) -> Item:
        """Return RGB uint8 (size, size, 3) and its label, uint8 (1, 1)."""
        rgb, labels, *_ = super().__getitem__(index)
        return rgb, np.full((1, 1), self.rule.label(labels, self.task.class_count()), dtype=np.uint8)


@dataclass(frozen=True)
class HeatedImage(TrainingImage):
    """A slide with annotations whose pixels have the heat of each class beside red, green and blue.

    Attributes
    ----------
    heat
        Its heatmap.
    """

    heat: Heatmap | None = None

    def open(self) -> Slide:
        """Open the slide; raises what :class:`pyhisto.slide.Slide` raises."""
        if self.heat is None:
            raise ConfigError(f"{self.title} has no heatmap")
        return HeatedSlide(super().open(), self.heat, classes=len(self.heat.values))


class RefinerPatches(PatchDataset):
    """Patches with heat, which is hidden in a share of them, so that the network learns to do without.

    Parameters
    ----------
    images
        Of the training part, with their heatmaps.
    hidden
        Share of the patches whose heat is hidden, from 0 to 1.
    **options
        As in :class:`pyhisto.dataset.PatchDataset`.
    """

    def __init__(self, images: Sequence[HeatedImage], *arguments: Any, hidden: float, **options: Any) -> None:
        super().__init__(images, *arguments, **options)
        self.hidden = hidden
        self._heat = _checksums(images)

    def describe(self) -> dict[str, Any]:
        """Return all that decides which patches come, as JSON types; heatmaps by their checksum."""
        return {**super().describe(), "hidden": self.hidden, "heat": self._heat}

    def __getitem__(self, index: int) -> Item:
        """Return uint8 (size, size, 3 + classes) and labels uint8 (size, size)."""
        item = super().__getitem__(index)
        if np.random.default_rng((self.seed, index, 1)).random() < self.hidden:
            item[0][..., 3:] = HIDDEN_HEAT
        return item


class RefinerWindows(ValidationDataset):
    """Windows with heat to validate on; :class:`pyhisto.dataset.ValidationDataset` of heated images."""

    def __init__(self, images: Sequence[HeatedImage], *arguments: Any, **options: Any) -> None:
        super().__init__(images, *arguments, **options)
        self._heat = _checksums(images)

    def describe(self) -> dict[str, Any]:
        """Return all that decides the windows, as JSON types; heatmaps by their checksum."""
        return {**super().describe(), "heat": self._heat}


def _checksums(images: Sequence[HeatedImage]) -> list[str | None]:
    return [None if image.heat is None else image.heat.checksum() for image in images]


def heat_classes(heat: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Return the most probable class of each pixel, uint8 (H, W), from its heat, uint8 (H, W, classes - 1)."""
    background = 255 - np.minimum(heat.sum(axis=2, dtype=np.int32, keepdims=True), 255)
    best = np.concatenate([background, heat], axis=2).argmax(axis=2)
    return np.asarray(best, dtype=np.uint8)
