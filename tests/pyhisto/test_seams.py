"""Objects of a small U-Net, however the slide is cut: no tile, overlap or band moves one by more than a pixel."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shapely
import torch
from torch import nn

from pyhisto.bundle.files import ModelClass, ModelSpec
from pyhisto.inference import InferenceSettings, predict_tissue
from pyhisto.nuclei.network import predict_cells
from pyhisto.slide import Slide
from pyhisto.stain import H_DAB
from pyhisto.synth import SynthSettings, make_slide

STRIDE, SEEN, BLENDED = 4, 24, 8
"""The network halves twice. It sees 2 + 4 + 8 + 4 + 2 px around a pixel by its convolutions, 4 by pooling in fours.

The inner 8 px of an overlap are used, so that from 32 px on each pixel that is used has all it sees in its tile; and
tiles begin at multiples of the stride, as sides and overlaps are."""

LEAST = SEEN + BLENDED
WHOLE = InferenceSettings(window=1024, tile_size=352, overlap=LEAST)
CUTS = [
    InferenceSettings(window=1024, tile_size=128, overlap=LEAST),  # smaller tiles
    InferenceSettings(window=96, tile_size=352, overlap=LEAST),  # lower bands
    InferenceSettings(window=130, tile_size=224, overlap=2 * LEAST, batch_size=3),  # more overlap
]
NUMBERS = {"threshold": 0.35, "sigma_um": 1.0, "min_distance_um": 3.0, "reach_um": 7.0, "core_um": 1.5}


def block(channels: int, out: int) -> nn.Sequential:
    layers = [nn.Conv2d(channels, out, 3, padding=1), nn.ReLU(), nn.Conv2d(out, out, 3, padding=1), nn.ReLU()]
    return nn.Sequential(*layers)


class SmallUNet(nn.Module):
    """Two halvings, skip connections, zeros beyond the tile."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.down = nn.ModuleList([block(3, 4), block(4, 6), block(6, 8)])
        self.up = nn.ModuleList([block(8 + 6, 6), block(6 + 4, 4)])
        self.head = nn.Conv2d(4, classes, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        fine = self.down[0](x)
        middle = self.down[1](nn.functional.max_pool2d(fine, 2))
        coarse = self.down[2](nn.functional.max_pool2d(middle, 2))
        middle = self.up[0](torch.cat([nn.functional.interpolate(coarse, scale_factor=2.0), middle], dim=1))
        out: torch.Tensor = self.head(
            self.up[1](torch.cat([nn.functional.interpolate(middle, scale_factor=2.0), fine], 1))
        )
        return out


class UNetBundle:
    """Takes the place of a bundle; learns in some steps from seeded weights that what is dark is of class 1."""

    path = Path("small")
    stride, tiles_at_once, stream_tile, device = STRIDE, 4, (WHOLE.tile_size, WHOLE.overlap), "cpu"

    def __init__(self, spec: ModelSpec, image: Any) -> None:
        self.spec = spec
        torch.manual_seed(0)
        self._model = SmallUNet(len(spec.classes))
        x = torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255
        dark = (x.mean(dim=1) < 0.6).long()
        adam = torch.optim.Adam(self._model.parameters(), 1e-2)
        for _ in range(40):
            adam.zero_grad()
            nn.functional.cross_entropy(self._model(x), dark).backward()
            adam.step()

    def predict(self, tiles: Any) -> Any:
        with torch.inference_mode():
            x = torch.from_numpy(np.ascontiguousarray(tiles)).permute(0, 3, 1, 2).float() / 255
            return self._model(x).softmax(dim=1).numpy()


def bundle_of(kind: str, names: list[tuple[str, str | None]], slide: Slide, numbers: dict[str, float]) -> UNetBundle:
    classes = tuple(ModelClass(name, classification) for name, classification in names)
    spec = ModelSpec(kind, "small", classes, mpp=0.5, tile_size=160, overlap=LEAST, postprocessing=numbers)
    return UNetBundle(spec, slide.read_region(100, 100, 160, 160, mpp=0.5))


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("seams") / "slide.tif"
    make_slide(out, SynthSettings(width=480, height=480, seed=3))
    return out


def assert_same(found: Any, truth: Any) -> None:
    """Each outline has a partner of which no point is farther than a pixel."""
    assert len(found) == len(truth)
    near = shapely.STRtree(shapely.centroid(truth)).nearest(shapely.centroid(found))
    assert len(set(near.tolist())) == len(truth)
    assert shapely.hausdorff_distance(found, truth[near]).max() <= 1


def test_cells(path: Path) -> None:
    names = [("background", None), ("positive", "Positive"), ("ring", None), ("negative", "Negative"), ("ring 2", None)]
    with Slide(path) as slide:
        bundle = bundle_of("cell_detection", names, slide, NUMBERS)
        whole, *cut = (predict_cells(slide, bundle, stains=H_DAB, settings=each) for each in [WHOLE, *CUTS])  # type: ignore[arg-type]
    assert len(whole) > 30
    for table in cut:
        assert_same(table["nucleus"].to_numpy(), whole["nucleus"].to_numpy())
        assert_same(table.geometry.to_numpy(), whole.geometry.to_numpy())


def test_cropped_tiles(path: Path) -> None:
    """What the network sees of a tile is cropped to the region; its cells are as if it had seen the whole tile."""
    names = [("background", None), ("positive", "Positive"), ("ring", None), ("negative", "Negative"), ("ring 2", None)]
    region = shapely.Point(260, 250).buffer(200).difference(shapely.box(0, 200, 300, 330))
    with Slide(path) as slide:
        bundle = bundle_of("cell_detection", names, slide, NUMBERS)
        whole = predict_cells(slide, bundle, stains=H_DAB, region=region, settings=WHOLE)  # type: ignore[arg-type]
        cropped = predict_cells(slide, bundle, stains=H_DAB, region=region)  # type: ignore[arg-type]
    assert len(whole) > 10
    assert_same(cropped["nucleus"].to_numpy(), whole["nucleus"].to_numpy())


def test_tissue(path: Path) -> None:
    numbers = dict.fromkeys(("min_area_um2", "min_hole_area_um2"), 20.0) | {"sigma_um": 2.0, "simplify_um": 0.5}
    with Slide(path) as slide:
        bundle = bundle_of(
            "tissue_segmentation", [("background", None), ("dark", "Tumor")], slide, {**numbers, "threshold": 0.4}
        )
        region = shapely.box(0, 0, *slide.dimensions)
        whole, *cut = (predict_tissue(slide, bundle, region, settings=each) for each in [WHOLE, *CUTS])  # type: ignore[arg-type]
    assert len(whole) > 10
    for table in cut:
        assert_same(table.geometry.to_numpy(), whole.geometry.to_numpy())
