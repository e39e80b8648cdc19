"""Coarse-to-fine models: patch labels, heatmaps, both networks, and which patches of a slide are read."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shapely
import torch
from dataset_cases import image_of
from torch import nn

from pyhisto.bundle.files import Bundle, ModelClass, ModelSpec, load_bundle, save_bundle
from pyhisto.bundle.spec import CascadeSpec
from pyhisto.dataset import Augmentation, TissueTask
from pyhisto.dataset.augment import augment
from pyhisto.dataset.cascade import (
    DetectorPatches,
    HeatedImage,
    PatchRule,
    RefinerPatches,
    heat_classes,
)
from pyhisto.errors import BundleError, ConfigError
from pyhisto.heatmap import HIDDEN_HEAT, HeatedSlide, Heatmap
from pyhisto.inference import InferenceSettings, Lens, predict_tissue
from pyhisto.models.cascade import Cascade, PatchClassifier, build_cascade, build_detector, golden_side
from pyhisto.slide import Slide

SPEC = ModelSpec(
    kind="tissue_segmentation",
    architecture="attention-unet",
    classes=(ModelClass("background"), ModelClass("Tumor", "Tumor")),
    mpp=2.0,
    tile_size=32,
    overlap=8,
    decoder_channels=(8, 4),
    postprocessing={"threshold": 0.5, "sigma_um": 0.0, "min_area_um2": 0.0, "min_hole_area_um2": 0.0, "simplify_um": 0},
    cascade=CascadeSpec("cnn", (4, 8), mpp=0.5, patch_size=16, proposal_margin_um=0.0),
)


def network(spec: ModelSpec = SPEC) -> Cascade:
    torch.manual_seed(0)
    stage = spec.cascade
    assert stage is not None
    return build_cascade(
        detector={"name": "cnn", "channels": stage.channels, "patch": stage.patch_size, "out_channels": 2},
        refiner={
            **{"name": spec.architecture, "decoder_channels": spec.decoder_channels, "out_channels": 2},
            "heat_channels": 1,
        },
        ratio=4,
    )


class TestPatchRule:
    @pytest.mark.parametrize(
        ("counts", "expected"),
        [
            ({0: 100}, 0),
            ({0: 98, 1: 2}, 0),  # as much as a patch of the background may have
            ({0: 97, 1: 3}, 255),
            ({0: 76, 1: 24}, 255),
            ({0: 75, 1: 25}, 1),
            ({0: 40, 1: 25, 2: 35}, 2),
            ({0: 75, 1: 13, 2: 12}, 255),  # a quarter in all, but not of one class
            ({255: 50, 1: 50}, 1),
            ({255: 51, 1: 49}, 255),  # less than half of it is labelled
            ({255: 60, 254: 40}, 255),
        ],
    )
    def test_of_100_pixels(self, counts: dict[int, int], expected: int) -> None:
        labels = np.repeat(np.array(list(counts), dtype=np.uint8), list(counts.values())).reshape(10, 10)
        assert PatchRule().label(labels, 3) == expected

    def test_a_patch_is_not_of_two_kinds(self) -> None:
        with pytest.raises(ConfigError, match=r"shares 0\.5 and 0\.25"):
            PatchRule(least=0.25, most=0.5)


class TestHeatmap:
    HEAT = Heatmap((10.0, 20.0), (4.0, 4.0), (np.arange(12, dtype=np.uint8) * 20).reshape(1, 3, 4))

    def test_at_the_centres_of_patches(self) -> None:
        found = self.HEAT.sample(10, 20, 4, 3, (4.0, 4.0))
        assert found.shape == (3, 4, 1)
        np.testing.assert_array_equal(found[..., 0], [[0, 20, 40, 60], [80, 100, 120, 140], [160, 180, 200, 220]])

    def test_halfway_between_them(self) -> None:
        found = self.HEAT.sample(12, 22, 3, 2, (4.0, 4.0))[..., 0]
        np.testing.assert_array_equal(found, [[50, 70, 90], [130, 150, 170]])

    def test_nothing_outside(self) -> None:
        assert not self.HEAT.sample(-100, 0, 5, 5, (4.0, 4.0)).any()
        across = self.HEAT.sample(10, 28, 6, 1, (4.0, 4.0))[0, :, 0]  # two columns beyond the last
        np.testing.assert_array_equal(across, [160, 180, 200, 220, 0, 0])

    def test_saved_for_the_same_weights_only(self, tmp_path: Path) -> None:
        self.HEAT.save(tmp_path / "0.npz", "weights 1")
        found = Heatmap.load(tmp_path / "0.npz", "weights 1")
        assert found is not None
        assert found.checksum() == self.HEAT.checksum()
        assert Heatmap.load(tmp_path / "0.npz", "weights 2") is None
        assert Heatmap.load(tmp_path / "1.npz", "weights 1") is None

    def test_beside_the_colours_of_a_slide(self, gradient_slide: Path) -> None:
        with Slide(gradient_slide) as slide:
            rgb = slide.read_region(10, 20, 4, 3, mpp=2.0)
            both = HeatedSlide(slide, self.HEAT, classes=1).read_region(10, 20, 4, 3, mpp=2.0)
            hidden = HeatedSlide(slide, None, classes=2).read_region(10, 20, 4, 3, mpp=2.0)
        np.testing.assert_array_equal(both[..., :3], rgb)
        np.testing.assert_array_equal(both[..., 3:], self.HEAT.sample(10, 20, 4, 3, (4.0, 4.0)))
        np.testing.assert_array_equal(hidden[..., 3:], np.full((3, 4, 2), 128))

    def test_the_most_probable_class(self) -> None:
        heat = np.array([[[127, 0], [128, 0], [60, 130], [100, 100], [70, 80]]], dtype=np.uint8)
        np.testing.assert_array_equal(heat_classes(heat), [[0, 1, 2, 1, 0]])


class TestNetworks:
    def test_each_patch_by_itself(self) -> None:
        detector = build_detector("cnn", out_channels=3, patch=8, channels=(4, 6)).eval()
        image = torch.rand(2, 3, 16, 24)
        with torch.inference_mode():
            whole = detector(image)
            alone = detector(image[1:, :, 8:16, 16:24])
        assert whole.shape == (2, 3, 2, 3)
        np.testing.assert_allclose(whole[1, :, 1, 2], alone[0, :, 0, 0], atol=1e-6)

    @pytest.mark.parametrize("name", ["resnet18", "efficientnet-b0"])
    def test_encoders_as_detectors(self, name: str) -> None:
        detector = build_detector(name, out_channels=2, patch=32).eval()
        assert detector(torch.zeros(1, 3, 32, 64)).shape == (1, 2, 1, 2)

    def test_the_refiner_sees_the_mean_colour_and_the_heat(self) -> None:
        """A detector that says what is red, and a refiner that gives back what it sees."""

        class Red(nn.Module):
            def forward(self, x: torch.Tensor) -> torch.Tensor:
                return x[:, :1] * 1e4

        class Seen(nn.Module):
            def forward(self, x: torch.Tensor) -> torch.Tensor:
                return x

        detector = PatchClassifier(Red(), width=1, out_channels=2, patch=8)
        with torch.no_grad():
            detector.head.weight.copy_(torch.tensor([[-1.0], [1.0]]))
            detector.head.bias.zero_()
        image = -torch.ones(1, 3, 8, 16)
        image[:, 0, :, 8:] = 1
        seen = Cascade(detector, Seen(), ratio=4)(image)[0].detach().numpy()
        assert seen.shape == (4, 2, 4)
        np.testing.assert_allclose(seen[0], [[-1, -1, 1, 1]] * 2)
        heat = np.array([0.0, 0.25, 0.75, 1.0])  # linear between the centres of the patches
        np.testing.assert_allclose(seen[3], [(heat - 128 / 255) / 0.25] * 2, atol=1e-5)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"name": "cnn", "channels": (), "patch": 8}, "without channels"),
            ({"name": "cnn", "channels": (4, 4, 4, 4), "patch": 8}, "16 px or more"),
            ({"name": "resnet9", "patch": 64}, "unknown detector 'resnet9'"),
            ({"name": "cnn", "channels": (4,), "patch": 8, "encoder_weights": "imagenet"}, "expected 'random'"),
        ],
    )
    def test_refused(self, options: dict[str, Any], message: str) -> None:
        with pytest.raises(ConfigError, match=message):
            build_detector(**options, out_channels=2)

    def test_golden_tile(self) -> None:
        assert golden_side(96, 4, 32) == 768
        assert golden_side(256, 8, 32) == 512


class TestPatches:
    TASK = TissueTask(("Tumor",))

    def test_heat_is_turned_with_the_labels(self) -> None:
        rng = np.random.default_rng(0)
        labels = rng.integers(0, 2, (32, 32)).astype(np.uint8)
        pixels = np.concatenate([rng.integers(0, 255, (32, 32, 3)), 255 * labels[..., np.newaxis]], axis=2)
        for seed in range(8):
            found, turned, _ = augment(
                pixels.astype(np.uint8), labels, None, Augmentation(rotation=0), np.random.default_rng(seed), 32
            )
            assert found.shape == (32, 32, 4)
            np.testing.assert_array_equal(found[..., 3], 255 * turned)

    def test_a_label_each_and_other_places_for_borders(self, gradient_slide: Path) -> None:
        """Tumour on the right half of 128 x 96 px: patches of 16 px across its edge have no label."""
        image = image_of(("Training", shapely.box(0, 0, 128, 96)), ("Tumor", shapely.box(64, 0, 128, 96)))
        image = replace(image, path=gradient_slide)
        patches = DetectorPatches(
            [image], self.TASK, rule=PatchRule(least=1.0, most=0.0), mpp=0.5, size=16, length=60, seed=1
        )
        found = [patches[number] for number in range(60)]
        labels = np.array([label[0, 0] for _, label, *_ in found])
        assert {label.shape for _, label, *_ in found} == {(1, 1)}
        assert (labels == 255).sum() <= 2  # a quarter of all places lies across the edge
        red = np.array([rgb[..., 0].mean() for rgb, *_ in found])  # 2 x: 128 at the edge
        assert (red[labels == 1] > 140).all()
        assert (red[labels == 0] < 116).all()
        with pytest.raises(IndexError):
            patches[60]

    def test_heat_is_hidden_in_a_share(self, gradient_slide: Path) -> None:
        plain = image_of(("Training", shapely.box(0, 0, 128, 96)), ("Tumor", shapely.box(64, 0, 128, 96)))
        heat = Heatmap((0.0, 0.0), (128.0, 96.0), np.full((1, 1, 1), 200, dtype=np.uint8))
        image = HeatedImage(gradient_slide, plain.objects, heat=heat)
        options: dict[str, Any] = {"mpp": 0.5, "size": 8, "length": 200, "seed": 1}
        patches = RefinerPatches([image], self.TASK, hidden=0.25, **options)
        hidden = [bool((patches[number][0][..., 3] == HIDDEN_HEAT).all()) for number in range(200)]
        assert 30 <= sum(hidden) <= 70  # binomial: 50 ± 3 sigma
        open_ = patches[hidden.index(False)][0]
        assert open_.shape == (8, 8, 4)
        assert 0 < open_[..., 3].max() <= 200
        warmer = HeatedImage(gradient_slide, plain.objects, heat=replace(heat, values=heat.values + np.uint8(1)))
        assert RefinerPatches([warmer], self.TASK, hidden=0.25, **options).describe() != patches.describe()


class TestBundle:
    @pytest.fixture
    def saved(self, tmp_path: Path) -> Path:
        tile = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
        tile[:32] //= 4
        save_bundle(tmp_path / "b", network(), SPEC, golden_tile=tile, description="both")
        return tmp_path / "b"

    def test_one_folder_for_both(self, saved: Path) -> None:
        bundle = load_bundle(saved, kind="tissue_segmentation")
        assert bundle.spec == SPEC
        detector, refiner = bundle.stages()
        assert detector.predict(np.zeros((3, 16, 16, 3), dtype=np.uint8)).shape == (3, 2, 1, 1)
        assert refiner.predict(np.zeros((1, 32, 32, 4), dtype=np.uint8)).shape == (1, 2, 32, 32)
        assert "patches of 16 px at 0.5 µm/px" in (saved / "docs" / "README.md").read_text("utf-8")

    @pytest.mark.parametrize("part", ["detector.head.weight", "refiner"])
    def test_the_golden_tile_covers_both(self, saved: Path, part: str) -> None:
        """Weights that were exchanged together with their checksum."""
        import hashlib

        weights = saved / "models" / "model.pt"
        state = torch.load(weights, weights_only=True)
        name = [name for name in state if name.startswith(part) and name.endswith("weight")][-1]
        state[name] = -3 * state[name]
        torch.save(state, weights)
        described = saved / "configs" / "metadata.json"
        text = json.loads(described.read_text("utf-8"))
        text["pyhisto"]["weights_sha256"] = hashlib.sha256(weights.read_bytes()).hexdigest()
        described.write_text(json.dumps(text), "utf-8")
        with pytest.raises(BundleError, match="another output on its golden tile"):
            load_bundle(saved)

    def test_a_model_of_one_network_has_no_stages(self, saved: Path) -> None:
        bundle = load_bundle(saved)
        bundle.spec = replace(SPEC, cascade=None)
        with pytest.raises(BundleError, match="one network"):
            bundle.stages()


class Recorded(Slide):
    """A slide that writes down what is read: (x0, y0, x1, y1), level-0 px, by pixel size in µm."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.reads: dict[float, list[tuple[float, float, float, float]]] = {}

    def read_downsampled(self, x: float, y: float, width: int, height: int, downsample: tuple[float, float]) -> Any:
        box = (x, y, x + width * downsample[0], y + height * downsample[1])
        self.reads.setdefault(downsample[0] * self.mpp[0], []).append(box)
        return super().read_downsampled(x, y, width, height, downsample)


class ByColour(Bundle):
    """A model whose networks know colours: the refiner what is dark, or what is hot; the detector what is red."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__(Path("by-colour"), spec, "", nn.Identity(), "cpu")

    def stages(self) -> tuple[Bundle, Bundle]:
        assert self.spec.cascade is not None
        detector, refiner = self.spec.stages(self.spec.cascade)
        return _Rule(detector, _is_red), _Rule(refiner, _is_hot_or_dark)


class _Rule(Bundle):
    def __init__(self, spec: ModelSpec, rule: Callable[[Any], Any]) -> None:
        super().__init__(Path("rule"), spec, "", nn.Identity(), "cpu")
        self.rule = rule

    def predict(self, tiles: Any) -> Any:
        front = self.rule(tiles.astype(np.float32)).astype(np.float32)
        return np.stack([1 - front, front], axis=1)


def _is_red(tiles: Any) -> Any:
    return (tiles[..., 0] > tiles[..., 2]).mean(axis=(1, 2), keepdims=True)


def _is_hot_or_dark(tiles: Any) -> Any:
    hidden = tiles[..., 3] == HIDDEN_HEAT
    return np.where(hidden, tiles[..., 1] < 150, tiles[..., 3] > 128)


class TestPrediction:
    """256 x 192 px of 0.5 µm: light, with a red square and a blue one; both are dark, one is tumour."""

    RED, BLUE = (32, 32, 80, 96), (160, 64, 208, 144)
    REGION = shapely.box(0, 0, 256, 192)

    @pytest.fixture
    def slide(self, tmp_path: Path, write_tiff: Any) -> Recorded:
        image = np.full((192, 256, 3), 200, dtype=np.uint8)
        for (x0, y0, x1, y1), colour in ((self.RED, (150, 90, 90)), (self.BLUE, (90, 90, 150))):
            image[y0:y1, x0:x1] = colour
        return Recorded(write_tiff(tmp_path / "slide.tif", [image]))

    def spec(self, **changes: Any) -> ModelSpec:
        assert SPEC.cascade is not None
        return replace(SPEC, cascade=replace(SPEC.cascade, **changes))

    def test_what_was_proposed_and_detected_is_tumour(self, slide: Recorded) -> None:
        found = predict_tissue(slide, ByColour(self.spec()), self.REGION)
        assert list(found["classification"]) == ["Tumor"]
        wanted = shapely.box(*self.RED)
        (polygon,) = found.geometry
        assert polygon.intersection(wanted).area / polygon.union(wanted).area > 0.75  # patches of 16, maps of 16 px

    def test_only_proposed_patches_are_read_at_high_magnification(self, slide: Recorded) -> None:
        predict_tissue(slide, ByColour(self.spec()), self.REGION)
        assert sorted(slide.reads) == [0.5, 2.0]
        patches = {(x, y, x + 16, y + 16) for x in range(0, 256, 16) for y in range(0, 192, 16)}
        dark = shapely.union(shapely.box(*self.RED), shapely.box(*self.BLUE))
        expected = {box for box in patches if shapely.box(*box).intersection(dark).area > 0}
        assert set(slide.reads[0.5]) == expected  # 3 x 4 of red, 3 x 5 of blue
        assert len(slide.reads[0.5]) == 27

    def test_the_margin_around_a_proposal(self, slide: Recorded) -> None:
        """8 µm are 16 px: one patch more on each side, and the corners."""
        predict_tissue(slide, ByColour(self.spec(proposal_margin_um=8.0)), self.REGION)
        assert len(slide.reads[0.5]) == 5 * 6 + 5 * 7

    def test_without_a_proposal_the_whole_region_is_read(self, slide: Recorded) -> None:
        predict_tissue(slide, ByColour(self.spec(propose=False)), shapely.box(0, 0, 128, 192))
        assert len(slide.reads[0.5]) == 8 * 12
        assert max(box[2] for box in slide.reads[0.5]) == 128

    def test_patches_that_the_region_does_not_touch_are_not_read(self, slide: Recorded) -> None:
        predict_tissue(slide, ByColour(self.spec(propose=False)), shapely.box(33, 33, 63, 63))
        assert len(slide.reads[0.5]) == 4
        assert min(box[0] for box in slide.reads[0.5]) == 33  # patches begin where the region does

    def test_settings_change_nothing(self, slide: Recorded) -> None:
        bundle = ByColour(self.spec())
        plain = predict_tissue(slide, bundle, self.REGION)
        settings = InferenceSettings(window=64, readers=3, batch_size=1, flips=True)
        seen: list[int] = []
        other = predict_tissue(
            slide, bundle, self.REGION, settings=settings, observers=[lambda window: seen.append(window.rgb.shape[2])]
        )
        assert other.geometry.iloc[0].equals(plain.geometry.iloc[0])
        assert set(seen) == {3}

    def test_a_lens_changes_colours_and_no_heat(self, slide: Recorded) -> None:
        """Red and blue exchanged: the other square is tumour."""
        lens = Lens(colours=lambda rgb: np.ascontiguousarray(rgb[..., ::-1]))
        (polygon,) = predict_tissue(slide, ByColour(self.spec()), self.REGION, lens=lens).geometry
        assert polygon.intersects(shapely.box(*self.BLUE))
        assert not polygon.intersects(shapely.box(*self.RED))

    def test_no_proposal_no_reads_no_tumour(self, slide: Recorded) -> None:
        found = predict_tissue(slide, ByColour(self.spec()), shapely.box(208, 0, 256, 64))
        assert len(found) == 0
        assert sorted(slide.reads) == [2.0]
