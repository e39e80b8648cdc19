"""WSInfer model folders: their transforms number by number, tiles over a slide, and what is refused."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shapely
import torch
from foreign_folders import TRANSFORM, ChannelMeans, write_wsinfer
from PIL import Image

from pyhisto.bundle.anymodel import load_model
from pyhisto.bundle.foreign.models import TileModel
from pyhisto.bundle.foreign.pixels import wsinfer_pixels
from pyhisto.errors import BundleError, ConfigError
from pyhisto.inference.settings import InferenceSettings
from pyhisto.inference.tileclasses import predict_tile_classes
from pyhisto.slide import Slide

BICUBIC = {"name": "Resize", "arguments": {"size": 16, "interpolation": "bicubic"}}
GREY = {"name": "Normalize", "arguments": {"mean": [0.5], "std": [0.5]}}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> TileModel:
    found = load_model(write_wsinfer(tmp_path_factory.mktemp("models") / "tumor-vgg"))
    assert isinstance(found, TileModel)
    return found


def test_resize_and_normalise_as_worked_out_by_hand() -> None:
    # Halving 4 px with a triangle filter 4 px wide: the first new pixel, centred on 1.0, takes 3/4, 3/4 and 1/4 of the
    # pixels centred on 0.5, 1.5 and 2.5: (3/4 * 0 + 3/4 * 70 + 1/4 * 140) / (7/4) = 50.
    row = np.array([0, 70, 140, 210], dtype=np.uint8)
    rgb = np.repeat(np.repeat(row[None, :, None], 4, axis=0), 3, axis=2)
    steps = [{"name": "Resize", "arguments": {"size": 2}}, *TRANSFORM[1:]]
    planes = wsinfer_pixels(steps, 4)(rgb)
    assert planes.shape == (3, 2, 2)
    assert planes.dtype == np.float32
    assert planes[0, 0].tolist() == pytest.approx([(50 / 255 - 0.5) / 0.5, (160 / 255 - 0.5) / 0.5], abs=1e-6)
    assert planes[1, 0].tolist() == pytest.approx([(50 / 255 - 0.25) / 0.25, (160 / 255 - 0.25) / 0.25], abs=1e-6)


def test_transforms_are_bit_for_bit_those_of_torch_on_pillow_images() -> None:
    rgb = np.random.default_rng(5).integers(0, 256, (35, 35, 3), dtype=np.uint8)
    image = Image.fromarray(rgb).resize((16, 16), Image.Resampling.BILINEAR)
    tensor = torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1).float().div(255)
    for channel, (mean, std) in enumerate(((0.5, 0.5), (0.25, 0.25), (0.0, 1.0))):
        tensor[channel].sub_(mean).div_(std)
    np.testing.assert_array_equal(wsinfer_pixels(TRANSFORM, 35)(rgb), tensor.numpy())


def test_tiles_with_their_probabilities_and_classes(gradient_slide: Path, model: TileModel) -> None:
    # 16 px at 1 µm/px are 32 px of the slide; red is 2 x and green 2 y, so that the tile from (x, y) has the means
    # 2 x + 31 and 2 y + 31 of both on the second level, which the network sees at its own size.
    seen: list[tuple[int, int]] = []
    with Slide(gradient_slide) as slide:
        found = predict_tile_classes(
            slide, model, shapely.box(0, 0, 128, 96), progress=lambda done, total: seen.append((done, total))
        )
    assert len(found) == 12
    assert seen == [(12, 12)]
    assert set(found["object_type"]) == {"tile"}
    for (_, tile), (x, y) in zip(found.iterrows(), [(x, y) for y in (0, 32, 64) for x in (0, 32, 64, 96)], strict=True):
        assert tile["geometry"].bounds == (x, y, x + 32, y + 32)
        red, green = ((2 * x + 31) / 255 - 0.5) / 0.5, ((2 * y + 31) / 255 - 0.25) / 0.25
        expected = 1 / (1 + math.exp(green - red))
        assert tile["Tumor"] == pytest.approx(expected, abs=1e-5)
        assert tile["Other"] == pytest.approx(1 - expected, abs=1e-5)
        assert tile["classification"] == ("Tumor" if expected > 0.5 else "Other")
    assert model.spec.kind == "tile_classification"
    assert model.sha256 == hashlib.sha256((model.path / "torchscript_model.pt").read_bytes()).hexdigest()


def test_pixels_are_those_that_wsinfer_reads_at_level_0(
    tmp_path: Path, write_tiff: Any, monkeypatch: pytest.MonkeyPatch, model: TileModel
) -> None:
    pixels = np.random.default_rng(2).integers(0, 256, (96, 128, 3), dtype=np.uint8)
    path = write_tiff(tmp_path / "slide.tif", [pixels], mpp=(0.48, 0.48))
    seen: list[Any] = []
    monkeypatch.setattr(model, "classify", lambda planes: seen.append(planes) or np.zeros((len(planes), 2), np.float32))
    with Slide(path) as slide:
        found = predict_tile_classes(slide, model, shapely.box(3.4, 5.2, 70, 38))
    side = round(16 * 1.0 / 0.48)  # WSInfer's size of a patch on the slide
    corners = [(3 + i * side, 5) for i in range(3)]
    assert [tuple(g.bounds[:2]) for g in found.geometry] == corners
    for (x, y), planes in zip(corners, seen[0], strict=True):
        patch = Image.fromarray(pixels[y : y + side, x : x + side])
        np.testing.assert_array_equal(planes, wsinfer_pixels(TRANSFORM, 16)(np.asarray(patch)))


def test_only_tiles_that_touch_the_region_are_read(gradient_slide: Path, model: TileModel) -> None:
    region = shapely.union(shapely.box(0, 0, 20, 20), shapely.box(100, 70, 110, 96))
    reads: list[tuple[float, float]] = []

    class Recording(Slide):
        def read_downsampled(self, x: float, y: float, *rest: Any) -> Any:
            reads.append((x, y))
            return super().read_downsampled(x, y, *rest)

    with Recording(gradient_slide) as slide:
        found = predict_tile_classes(slide, model, region)
    assert sorted(reads) == [(0, 0), (96, 64)]
    assert len(found) == 2


def test_threads_and_batches_change_nothing(gradient_slide: Path, model: TileModel) -> None:
    region = shapely.box(0, 0, 128, 96)
    with Slide(gradient_slide) as slide:
        one = predict_tile_classes(slide, model, region, settings=InferenceSettings(readers=1, batch_size=32))
        many = predict_tile_classes(slide, model, region, settings=InferenceSettings(readers=4, batch_size=5))
        nothing = predict_tile_classes(slide, model, shapely.Polygon())
    assert [g.bounds for g in one.geometry] == [g.bounds for g in many.geometry]
    np.testing.assert_allclose(one["Tumor"], many["Tumor"], atol=1e-7)
    assert len(nothing) == 0


def test_a_single_class_is_a_sigmoid_and_needs_half(tmp_path: Path, gradient_slide: Path) -> None:
    alone = load_model(write_wsinfer(tmp_path / "one", ChannelMeans(1), classes=("Tumor",)))
    assert isinstance(alone, TileModel)
    with Slide(gradient_slide) as slide:
        found = predict_tile_classes(slide, alone, shapely.box(0, 0, 128, 32))
    expected = [1 / (1 + math.exp(-((2 * x + 31) / 255 - 0.5) / 0.5)) for x in (0, 32, 64, 96)]
    assert found["Tumor"].tolist() == pytest.approx(expected, abs=1e-5)
    assert found["classification"].notna().tolist() == [p >= 0.5 for p in expected] == [False, False, True, True]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"spec_version": "2.0"}, "spec_version"),
        ({"num_classes": 3}, "class_names"),
        ({"class_names": ["A", "A"]}, "class_names"),
        ({"patch_size_pixels": 0}, "0 px"),
        ({"spacing_um_px": None}, "spacing_um_px"),
        ({"transform": [{"name": "ToTensor"}, {"name": "Resize", "arguments": {"size": 16}}]}, "Resize"),
        ({"transform": [{"name": "ToTensor"}, {"name": "CenterCrop", "arguments": {"size": 16}}]}, "CenterCrop"),
        ({"transform": [BICUBIC, *TRANSFORM[1:]]}, "bicubic"),
        ({"transform": [*TRANSFORM[:2], GREY]}, "Normalize"),
        ({"transform": []}, "none"),
    ],
)
def test_a_configuration_that_is_not_wsinfers_is_refused(tmp_path: Path, changes: Any, said: str) -> None:
    folder = write_wsinfer(tmp_path / "model", **({"network": ChannelMeans(2)} | changes))
    with pytest.raises(BundleError, match=said):
        load_model(folder)


def test_files_that_are_missing_or_damaged(tmp_path: Path) -> None:
    folder = write_wsinfer(tmp_path / "model")
    (folder / "torchscript_model.pt").write_bytes(b"no script")
    with pytest.raises(BundleError, match="no TorchScript"):
        load_model(folder)
    (folder / "torchscript_model.pt").unlink()
    with pytest.raises(BundleError, match="missing"):
        load_model(folder)
    (folder / "config.json").write_text("[1]")
    with pytest.raises(BundleError, match="JSON object"):
        load_model(folder)
    (folder / "config.json").unlink()
    with pytest.raises(BundleError, match="no model folder"):
        load_model(folder)


def test_a_network_that_gives_something_else_is_refused(tmp_path: Path, gradient_slide: Path) -> None:
    folder = write_wsinfer(tmp_path / "model", ChannelMeans(3))
    wrong = load_model(folder)
    assert isinstance(wrong, TileModel)
    with Slide(gradient_slide) as slide, pytest.raises(BundleError, match="2 numbers a tile"):
        predict_tile_classes(slide, wrong, shapely.box(0, 0, 32, 32))


def test_options_that_do_not_apply(tmp_path: Path, model: TileModel) -> None:
    with pytest.raises(ConfigError, match="--model-mpp"):
        load_model(model.path, mpp=0.5)
    with pytest.raises(BundleError, match="golden"):
        load_model(model.path, precision="bfloat16")
    with pytest.raises(BundleError, match="golden"):
        load_model(model.path, engine="openvino")
    assert "no golden tile" in model.notes[-1]
    assert json.loads((model.path / "config.json").read_text())["num_classes"] == 2
