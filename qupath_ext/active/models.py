"""The models that a round goes by: those of earlier rounds, or one from elsewhere."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pyhisto.bundle.files import Bundle
    from qupath_ext.active.loop import Loop, Target

__all__ = ["KINDS", "LoopModel", "current_models"]

KINDS: dict[Target, str] = {"cells": "cell_detection", "tissue": "tissue_segmentation"}
"""The kind of the bundles of each target."""

COMMITTEE = 3
"""Most models that are asked where their disagreement counts: those of the last rounds."""


@dataclass(frozen=True)
class LoopModel:
    """A model, and whether a round of the loop trained it."""

    bundle: Bundle
    trained: bool

    def record(self, folder: Path) -> dict[str, str]:
        """Return what the round in `folder` notes of it."""
        path = os.path.relpath(self.bundle.path, folder)
        return {"name": self.bundle.path.name, "path": path, "sha256": self.bundle.sha256}


def current_models(loop: Loop, before: int, device: str, *, several: bool) -> list[LoopModel]:
    """Return what rounds below `before` trained: the last model first, and up to two more if `several` are asked.

    Without any it is the bundle that the loop began with; nothing if it has none.

    Raises
    ------
    BundleError
        If a bundle is missing or damaged.
    """
    from pyhisto.bundle.files import load_bundle

    def load(path: Path) -> Bundle:
        return load_bundle(path, kind=KINDS[loop.settings.target], device=device)

    known = [path for one in loop.rounds() if one.number < before and (path := one.model) is not None]
    if known:
        return [LoopModel(load(path), True) for path in known[: -COMMITTEE - 1 : -1][: COMMITTEE if several else 1]]
    return [LoopModel(load(Path(loop.settings.init)), False)] if loop.settings.init else []
