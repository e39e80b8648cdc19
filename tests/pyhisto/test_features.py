"""Encoders give what their papers' networks give; features of a slide are those of its tiles."""

from __future__ import annotations

import hashlib
import json
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shapely
import torch
import torch.nn.functional as F
from foreign_folders import save_torchscript
from torch import nn

from pyhisto.bundle.files import ModelClass, ModelSpec, normalise, save_bundle
from pyhisto.errors import BundleError, ConfigError, SlideError
from pyhisto.features.bags import read_bag
from pyhisto.features.encoders import Encoder, EncoderOptions, EncoderSpec, load_encoder
from pyhisto.features.extract import ExtractSettings, extract_features, tile_corners, tile_side
from pyhisto.features.networks import DenseNet121Features, ResNet50Block3
from pyhisto.inference.lens import Lens
from pyhisto.models import build_model
from pyhisto.slide import Slide

State = dict[str, torch.Tensor]
TILES = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), dtype=np.uint8)


def stirred(network: nn.Module) -> nn.Module:
    """Give batch norms statistics of their own, so that leaving one out shows."""
    generator = torch.Generator().manual_seed(1)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.normal_(0, 0.1, generator=generator)
            module.running_var.uniform_(0.5, 1.5, generator=generator)
    return network


def scaled(tiles: np.ndarray[Any, Any]) -> torch.Tensor:
    """Return tiles as ImageNet networks want them."""
    x = torch.from_numpy(tiles).permute(0, 3, 1, 2) / 255
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    return (x - mean[:, None, None]) / std[:, None, None]


def norm(x: torch.Tensor, state: State, name: str) -> torch.Tensor:
    mean, var = state[f"{name}.running_mean"], state[f"{name}.running_var"]
    return F.batch_norm(x, mean, var, state[f"{name}.weight"], state[f"{name}.bias"], eps=1e-5)


def resnet50_block3(x: torch.Tensor, state: State) -> torch.Tensor:
    """He 2016, with the stride in the 3 x 3 convolution as in torchvision, whose names the weights have."""
    x = F.relu(norm(F.conv2d(x, state["conv1.weight"], stride=2, padding=3), state, "bn1"))
    x = F.max_pool2d(x, 3, 2, 1)
    for stage, blocks in enumerate((3, 4, 6), 1):
        for block in range(blocks):
            name, stride = f"layer{stage}.{block}", 2 if stage > 1 and block == 0 else 1
            y = F.relu(norm(F.conv2d(x, state[f"{name}.conv1.weight"]), state, f"{name}.bn1"))
            y = F.conv2d(y, state[f"{name}.conv2.weight"], stride=stride, padding=1)
            y = F.conv2d(F.relu(norm(y, state, f"{name}.bn2")), state[f"{name}.conv3.weight"])
            if block == 0:
                x = norm(
                    F.conv2d(x, state[f"{name}.downsample.0.weight"], stride=stride), state, f"{name}.downsample.1"
                )
            x = F.relu(norm(y, state, f"{name}.bn3") + x)
    return x.mean(dim=(2, 3))


def densenet121(x: torch.Tensor, state: State, prefix: str) -> torch.Tensor:
    """Huang 2017, without a ReLU at the end, as the layers are named in torchvision."""
    x = F.conv2d(x, state[f"{prefix}conv0.weight"], stride=2, padding=3)
    x = F.max_pool2d(F.relu(norm(x, state, f"{prefix}norm0")), 3, 2, 1)
    for number, layers in enumerate((6, 12, 24, 16), 1):
        for layer in range(1, layers + 1):
            name = f"{prefix}denseblock{number}.denselayer{layer}"
            y = F.conv2d(F.relu(norm(x, state, f"{name}.norm1")), state[f"{name}.conv1.weight"])
            y = F.conv2d(F.relu(norm(y, state, f"{name}.norm2")), state[f"{name}.conv2.weight"], padding=1)
            x = torch.cat([x, y], dim=1)
        if number < 4:
            name = f"{prefix}transition{number}"
            x = F.avg_pool2d(F.conv2d(F.relu(norm(x, state, f"{name}.norm")), state[f"{name}.conv.weight"]), 2)
    return norm(x, state, f"{prefix}norm5").mean(dim=(2, 3))


def test_resnet50_as_clam_cuts_it(tmp_path: Path) -> None:
    network = stirred(ResNet50Block3())
    assert sum(p.numel() for p in network.parameters()) == 25_557_032 - 14_964_736 - 2_049_000  # block 4, classifier
    state = {**network.state_dict(), "layer4.0.conv1.weight": torch.zeros(1), "fc.bias": torch.zeros(1000)}
    torch.save(state, tmp_path / "resnet50.pth")
    wanted = EncoderOptions(str(tmp_path / "resnet50.pth"), tile_size=64)
    encoder = load_encoder("resnet50-block3", wanted)
    assert encoder.spec == EncoderSpec(
        "resnet50-block3", hashlib.sha256((tmp_path / "resnet50.pth").read_bytes()).hexdigest(), 0.5, 64
    )
    found = encoder.encode(TILES)
    assert (found.shape, found.dtype, encoder.width) == ((2, 1024), np.float32, 1024)
    with torch.inference_mode():
        np.testing.assert_allclose(found, resnet50_block3(scaled(TILES), state), rtol=1e-3, atol=1e-4)


def test_densenet121_takes_the_weights_of_kimianet(tmp_path: Path) -> None:
    network = stirred(DenseNet121Features())
    assert sum(p.numel() for p in network.parameters()) == 7_978_856 - 1_025_000  # classifier
    names = {name: name.replace("features.", "module.model.0.").replace("layers.", "") for name in network.state_dict()}
    state = {names[name]: value for name, value in network.state_dict().items()}
    torch.save({**state, "module.fc_4.weight": torch.zeros(30, 1024)}, tmp_path / "kimianet.pth")
    encoder = load_encoder("densenet121", EncoderOptions(str(tmp_path / "kimianet.pth"), tile_size=64))
    with torch.inference_mode():
        expected = densenet121(scaled(TILES), state, "module.model.0.")
    assert expected.min() < 0  # which a ReLU would leave out
    np.testing.assert_allclose(encoder.encode(TILES), expected, rtol=1e-3, atol=1e-4)


def test_random_weights_are_the_same_each_time() -> None:
    torch.manual_seed(5)
    one = load_encoder("resnet50-block3", EncoderOptions("random", tile_size=32))
    two = load_encoder("resnet50-block3", EncoderOptions("random", tile_size=32))
    assert one.spec == two.spec
    np.testing.assert_array_equal(one.encode(TILES[:, :32, :32]), two.encode(TILES[:, :32, :32]))


def test_openvino_gives_the_same_features() -> None:
    pytest.importorskip("openvino", reason="needs the package openvino")
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 5, 3))
    encoder = Encoder(EncoderSpec("small", "", tile_size=64), stirred(network), "cpu")
    before = encoder.encode(TILES)
    assert encoder.compile() == ""
    assert encoder.engine == "openvino"
    np.testing.assert_allclose(encoder.encode(TILES[:1]), before[:1], rtol=1e-4, atol=1e-5)


def test_openvino_that_gives_other_features_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    network = nn.Conv2d(3, 5, 3)
    encoder = Encoder(EncoderSpec("small", "", tile_size=64), network, "cpu")
    before = encoder.encode(TILES)
    monkeypatch.setattr("pyhisto.bundle.engine.make_engine", lambda *args: lambda x: network(x) * 1.001)
    assert encoder.compile() == "small is not computed by openvino: it gives other features"
    assert encoder.engine == "torch"
    np.testing.assert_array_equal(encoder.encode(TILES), before)


@pytest.mark.parametrize(
    ("source", "options", "found"),
    [
        ("resnet50-block3", EncoderOptions(), "without weights; expected --encoder-weights"),
        ("resnet50-block3", EncoderOptions("imagenet"), "a file, or random"),
        ("resnet50-block3", EncoderOptions("missing.pth"), "missing.pth do not exist"),
        ("densenet121", EncoderOptions("random", sha256="00"), "with weights of sha256"),
        ("densenet121", EncoderOptions("random", tile_size=0), "tiles of 0 px"),
        ("resnet51", EncoderOptions(), "encoder 'resnet51'; expected densenet121, resnet50-block3, timm"),
        (".", EncoderOptions("random"), "which has its own"),
    ],
)
def test_encoders_that_are_refused(source: str, options: EncoderOptions, found: str) -> None:
    with pytest.raises(ConfigError, match=found):
        load_encoder(source, options)


def saved_bundle(folder: Path, architecture: str, **extra: Any) -> tuple[nn.Module, ModelSpec]:
    """Save a small network with weights of chance, and return it."""
    classes = (ModelClass("background"), ModelClass("tumour", "Tumor"))
    channels = extra["decoder_channels"]
    spec = ModelSpec("tissue_segmentation", architecture, classes, mpp=2.0, tile_size=64, decoder_channels=channels)
    torch.manual_seed(0)
    model = stirred(build_model(architecture, out_channels=2, decoder_channels=channels)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter *= 2  # an output that varies
    save_bundle(folder, model, spec, golden_tile=TILES, description="Nothing.")
    return model, spec


def test_the_encoder_of_a_unet(tmp_path: Path) -> None:
    model, spec = saved_bundle(tmp_path / "unet", "unet:resnet10", decoder_channels=(8, 8, 8, 8, 8))
    encoder = load_encoder(str(tmp_path / "unet"))
    assert (encoder.spec.name, encoder.spec.mpp, encoder.spec.tile_size) == ("bundle:unet", 2.0, 64)
    assert encoder.spec.sha256 == hashlib.sha256((tmp_path / "unet/models/model.pt").read_bytes()).hexdigest()
    with torch.inference_mode():
        deepest = model.get_submodule("encoder")(normalise(TILES, spec))[-1]
    assert deepest.shape == (2, 512, 2, 2)
    np.testing.assert_allclose(encoder.encode(TILES), deepest.mean(dim=(2, 3)), rtol=1e-3, atol=1e-4)


def test_the_encoder_of_an_attention_unet(tmp_path: Path) -> None:
    model, spec = saved_bundle(tmp_path / "attention", "attention-unet", decoder_channels=(16, 8, 4))
    seen: list[torch.Tensor] = []
    bottom = next(module for name, module in model.named_modules() if name.endswith("submodule.1.submodule"))
    bottom.register_forward_hook(lambda module, inputs, output: seen.append(output))
    with torch.inference_mode():
        model(normalise(TILES, spec))
    assert seen[0].shape == (2, 16, 16, 16)
    encoder = load_encoder(str(tmp_path / "attention"))
    np.testing.assert_allclose(encoder.encode(TILES), seen[0].mean(dim=(2, 3)), rtol=1e-3, atol=1e-4)


class MeanColour(nn.Module):
    """Gives the mean of red, green and blue, 0 to 1, where nothing is scaled."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean(dim=(2, 3))


PLAIN: dict[str, Any] = {"mpp": 0.5, "tile_size": 32, "mean": [0, 0, 0], "std": [1, 1, 1]}


def torchscript(folder: Path, told: dict[str, Any] = PLAIN, network: nn.Module | None = None) -> str:
    """Save a TorchScript file with its description; return its path."""
    save_torchscript(network or MeanColour(), folder / "colour.pt")
    (folder / "colour.json").write_text(json.dumps(told), "utf-8")
    return str(folder / "colour.pt")


def test_torchscript_with_its_description(tmp_path: Path) -> None:
    source = torchscript(tmp_path, {**PLAIN, "name": "mean colour", "mean": [0.5, 0, 0], "std": [1, 1, 2]})
    encoder = load_encoder(source)
    assert encoder.spec.name == "mean colour"
    tile = np.full((1, 32, 32, 3), (51, 102, 204), dtype=np.uint8)  # 0.2, 0.4, 0.8
    np.testing.assert_allclose(encoder.encode(tile), [[-0.3, 0.4, 0.4]], atol=1e-6)


@pytest.mark.parametrize(
    ("told", "found"),
    [
        ({"tile_size": 32}, "'mpp' is missing"),
        ({**PLAIN, "size": 3}, "'size' is unknown"),
        ({**PLAIN, "std": [1, 1, 0]}, "std above 0"),
        ({**PLAIN, "mean": ["red", 0, 0]}, "no number"),
        ({**PLAIN, "tile_size": "large"}, "no number"),
    ],
)
def test_descriptions_that_make_no_sense(tmp_path: Path, told: dict[str, Any], found: str) -> None:
    source = torchscript(tmp_path, told)
    with pytest.raises((BundleError, ConfigError), match=found):
        load_encoder(source)


def test_networks_that_are_no_encoders(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"gives \(1, 32, 32\) for 1 tiles"):
        load_encoder(torchscript(tmp_path, network=nn.Sequential(nn.AvgPool3d((3, 1, 1)), nn.Flatten(1, 2))))
    (tmp_path / "colour.json").unlink()
    with pytest.raises(BundleError, match=r"colour\.json cannot be read"):
        load_encoder(str(tmp_path / "colour.pt"))


def test_features_that_are_no_numbers() -> None:
    class Broken(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 1 / x.mean(dim=(2, 3)).sub(1)

    encoder = Encoder(EncoderSpec("broken", "", 0.5, 8, (0.0,) * 3, (1.0,) * 3), Broken(), "cpu")
    with pytest.raises(BundleError, match="no finite numbers"):
        encoder.encode(np.full((1, 8, 8, 3), 255, dtype=np.uint8))


def test_models_of_timm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real package needs torchvision; what is checked is how it is called, and what of its answer is used."""
    asked: list[dict[str, Any]] = []

    def create_model(name: str, **options: Any) -> nn.Module:
        if name != "tiny":
            raise RuntimeError(f"Unknown model ({name})")
        asked.append(options)
        network = nn.Conv2d(3, 4, 1)
        network.pretrained_cfg = {"input_size": (3, 16, 16), "mean": (0.5,) * 3, "std": (0.5,) * 3}  # type: ignore[assignment]
        return network

    monkeypatch.setitem(sys.modules, "timm", types.SimpleNamespace(create_model=create_model))  # type: ignore[arg-type]
    torch.save({"weight": torch.ones(4, 3, 1, 1), "bias": torch.zeros(4)}, tmp_path / "tiny.pth")
    encoder = load_encoder("timm:tiny", EncoderOptions(str(tmp_path / "tiny.pth")))
    assert asked == [{"pretrained": False, "num_classes": 0}]
    assert (encoder.spec.tile_size, encoder.width) == (16, 4)
    white = np.full((1, 16, 16, 3), 255, dtype=np.uint8)
    np.testing.assert_allclose(encoder.encode(white), [[3, 3, 3, 3]])  # (1 - 0.5) / 0.5 = 1, three times
    with pytest.raises(ConfigError, match="Unknown model"):
        load_encoder("timm:other", EncoderOptions("random"))
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ConfigError, match=r"pip install 'qupath-ext\[timm\]'"):
        load_encoder("timm:tiny", EncoderOptions("random"))


def test_tiles_lie_edge_to_edge_and_hold_enough_of_the_region() -> None:
    box = shapely.box(10.4, 20, 110.4, 70)  # columns begin at 10, 50, 90; rows at 20, 60
    for share, expected in (
        (0.01, [[10, 20], [50, 20], [90, 20], [10, 60], [50, 60], [90, 60]]),
        (0.4, [[10, 20], [50, 20], [90, 20]]),  # 20.4 / 40 of the last column, 10 / 40 of the last row
        (0.52, [[10, 20], [50, 20]]),
        (1.0, [[50, 20]]),
    ):
        assert tile_corners(box, (40, 40), share).tolist() == expected
    triangle = shapely.Polygon([(0, 0), (80, 0), (0, 80)])
    assert tile_corners(triangle, (40, 40), 0.5).tolist() == [[0, 0], [40, 0], [0, 40]]
    assert tile_corners(triangle, (40, 40), 0.51).tolist() == [[0, 0]]
    assert tile_corners(shapely.Polygon(), (40, 40), 0.5).shape == (0, 2)


def gradient_means(corners: np.ndarray[Any, Any], side: int) -> np.ndarray[Any, Any]:
    """Mean colour of tiles of the gradient slide: red = 2 x, green = 2 y, blue = 7."""
    return np.stack([2 * corners[:, 0] + side - 1, 2 * corners[:, 1] + side - 1, np.full(len(corners), 7)], 1) / 255


def test_features_are_those_of_the_tiles(gradient_slide: Path, tmp_path: Path) -> None:
    encoder = load_encoder(torchscript(tmp_path))
    done: list[tuple[int, int]] = []
    with Slide(gradient_slide) as slide:
        bag = extract_features(
            slide,
            encoder,
            shapely.box(0, 0, 128, 96),
            tmp_path / "a.h5",
            settings=ExtractSettings(batch_size=5, readers=2),
            attributes={"name": "gradient"},
            progress=lambda *now: done.append(now),
        )
    corners = np.array([[x, y] for y in (0, 32, 64) for x in (0, 32, 64, 96)])
    assert bag.coords is not None
    np.testing.assert_array_equal(bag.coords, corners)
    np.testing.assert_allclose(bag.features, gradient_means(corners, 32), atol=1e-6)
    assert done == [(5, 12), (10, 12), (12, 12)]
    assert (bag.name, bag.patch_size, bag.encoder, bag.encoder_sha256) == (
        "gradient",
        32,
        "colour",
        encoder.spec.sha256,
    )
    assert {key: bag.attributes[key] for key in ("mpp", "tile_size_px", "patch_level", "slide", "frame")} == {
        "mpp": 0.5,
        "tile_size_px": 32,
        "patch_level": 0,
        "slide": gradient_slide.name,
        "frame": "file",
    }


def test_tiles_of_another_resolution(gradient_slide: Path, tmp_path: Path) -> None:
    encoder = load_encoder(torchscript(tmp_path), EncoderOptions(mpp=1.0))
    with Slide(gradient_slide) as slide:
        bag = extract_features(slide, encoder, shapely.box(0, 0, 128, 64), tmp_path / "a.h5")
    corners = np.array([[0, 0], [64, 0]])
    assert bag.patch_size == 64
    np.testing.assert_allclose(bag.features, gradient_means(corners, 64), atol=0.5 / 255)


def test_tiles_of_a_slide_with_oblong_pixels(stretched_slide: Path) -> None:
    with Slide(stretched_slide) as slide:
        assert tile_side(slide, 16, 1.0) == (32, 64)


def test_a_slide_that_is_cropped_to_its_bounds(
    gradient_slide: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Slide, "origin", (8, 12))
    encoder = load_encoder(torchscript(tmp_path))
    with Slide(gradient_slide) as slide:
        extract_features(slide, encoder, shapely.box(0, 0, 32, 32), tmp_path / "a.h5")
    import h5py

    with h5py.File(tmp_path / "a.h5", "r") as file:
        assert file["coords"][:].tolist() == [[8, 12]]
    bag = read_bag(tmp_path / "a.h5")
    assert bag.coords is not None
    assert bag.coords.tolist() == [[0, 0]]


def test_colours_are_changed_before_tiles_are_encoded(gradient_slide: Path, tmp_path: Path) -> None:
    encoder = load_encoder(torchscript(tmp_path))
    lens = Lens(colours=lambda rgb: 255 - rgb)
    with Slide(gradient_slide) as slide:
        bag = extract_features(slide, encoder, shapely.box(0, 0, 32, 32), tmp_path / "a.h5", lens=lens)
    np.testing.assert_allclose(bag.features, 1 - gradient_means(np.array([[0, 0]]), 32), atol=1e-6)


def test_a_region_without_tiles_leaves_no_file(gradient_slide: Path, tmp_path: Path) -> None:
    encoder = load_encoder(torchscript(tmp_path))
    with Slide(gradient_slide) as slide, pytest.raises(SlideError, match="no tile of 16 µm"):
        extract_features(slide, encoder, shapely.box(0, 0, 8, 8), tmp_path / "a.h5")
    assert not (tmp_path / "a.h5").exists()


@pytest.mark.parametrize("settings", [{"min_tissue": 0}, {"min_tissue": 1.1}, {"batch_size": 0}, {"readers": 0}])
def test_settings_out_of_range(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(settings))):
        ExtractSettings(**settings)
