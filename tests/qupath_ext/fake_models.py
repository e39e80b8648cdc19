"""What takes the place of a trained network: its output follows from the colours by a rule that a reader can check."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import numpy as np

from pyhisto.bundle.spec import ModelClass, ModelSpec
from pyhisto.stain import optical_density_sum

NUMBERS = {"threshold": 0.35, "sigma_um": 1.0, "min_distance_um": 3.0, "reach_um": 7.0, "core_um": 1.5}
TISSUE_NUMBERS = {
    "threshold": 0.5,
    "sigma_um": 0.0,
    "min_area_um2": 100.0,
    "min_hole_area_um2": 100.0,
    "simplify_um": 1.0,
}
CELLS = ("background", "positive", "ring", "negative", "ring 2")
CELL_CLASSES = (None, "Tumor: Positive", None, "Lymphocyte", None)


class FakeModel(ABC):
    """What a loaded bundle has beside its description and its output."""

    device, engine, precision = "cpu", "torch", "float32"
    stride, stream_tile, tiles_at_once = 1, (64, 8), 8
    notes: tuple[str, ...] = ()

    @abstractmethod
    def predict(self, tiles: Any) -> Any:
        """Return the probabilities of tiles, float32 (n, classes, h, w)."""

    def predict_flips(self, tiles: Any) -> Any:
        """Return the output itself and a variance of a hundredth."""
        mean = self.predict(tiles)
        return mean, np.full((len(tiles), *tiles.shape[1:3]), 0.01, dtype=np.float32)


class FakeCells(FakeModel):
    """A cell model: a spot on each dark blob, of the first class where it is brown."""

    path = Path("models/cells")
    sha256 = "c" * 64
    spec = ModelSpec(
        "cell_detection",
        "fake",
        tuple(
            ModelClass(n, c, (1, 2, 3) if c == "Lymphocyte" else None) for n, c in zip(CELLS, CELL_CLASSES, strict=True)
        ),
        tile_size=64,
        overlap=8,
        postprocessing=NUMBERS,
    )

    def predict(self, tiles: Any) -> Any:
        out = np.zeros((len(tiles), 5, *tiles.shape[1:3]), dtype=np.float32)
        for tile, probability in zip(tiles, out, strict=True):
            nucleus = np.clip(optical_density_sum(tile, (240.0, 240.0, 240.0)) - 0.6, 0, 1)
            brown = tile[..., 0].astype(float) > tile[..., 2]
            probability[1], probability[3] = nucleus * brown, nucleus * ~brown
            probability[0] = 1 - nucleus
        return out


class FakeTissue(FakeModel):
    """A tissue model: everything is stroma with 0.9."""

    path = Path("models/tissue")
    sha256 = "t" * 64
    spec = ModelSpec(
        "tissue_segmentation",
        "fake",
        (ModelClass("background"), ModelClass("tumour", "Tumor"), ModelClass("stroma", "Stroma")),
        mpp=1.0,
        tile_size=64,
        overlap=8,
        postprocessing=TISSUE_NUMBERS,
    )

    def predict(self, tiles: Any) -> Any:
        shares = np.array([0.06, 0.04, 0.9], dtype=np.float32)
        return np.broadcast_to(shares[None, :, None, None], (len(tiles), 3, *tiles.shape[1:3])).copy()


class FakeTumour(FakeTissue):
    """A tissue model that looks at the image: the darker, the more tumour, 0 in white and 1 in black."""

    path = Path("models/tumour")
    sha256 = "d" * 64

    def predict(self, tiles: Any) -> Any:
        tumour = 1 - tiles.mean(axis=-1, dtype=np.float32) / 255
        return np.stack([1 - tumour, tumour, np.zeros_like(tumour)], axis=1)


class FakeNothing(FakeTumour):
    """A tissue model that finds tumour nowhere, though it looks at the image."""

    def predict(self, tiles: Any) -> Any:
        out = super().predict(tiles)
        out[:, 1] /= 10
        out[:, 0] = 1 - out[:, 1]
        return out
