"""MONAI bundles: read as MONAI reads them, but with nothing executed."""

from __future__ import annotations

import copy
import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shapely
import torch
from foreign_folders import (
    SCALE,
    SIGMOID,
    SOFTMAX,
    UNET,
    ChannelMeans,
    Colours,
    monai_config,
    monai_metadata,
    write_monai,
)
from monai.bundle import ConfigParser
from monai.networks.nets import UNet
from torch import nn

from pyhisto.bundle.anymodel import load_model
from pyhisto.bundle.files import Bundle
from pyhisto.bundle.foreign.literals import literal
from pyhisto.bundle.foreign.models import TileModel
from pyhisto.bundle.foreign.networks import build_network
from pyhisto.errors import BundleError, ConfigError
from pyhisto.inference.settings import InferenceSettings
from pyhisto.inference.tileclasses import predict_tile_classes
from pyhisto.slide import Slide

NAMES = {"0": "background", "1": "tumor", "2": "stroma"}
ARGMAX = {"_target_": "AsDiscreted", "keys": "pred", "argmax": True, "to_onehot": 3}


def unet() -> nn.Module:
    torch.manual_seed(3)
    return UNet(spatial_dims=2, in_channels=3, out_channels=3, channels=[4, 8], strides=[2])


def tiles(n: int = 2, size: int = 32) -> np.ndarray[Any, Any]:
    return np.random.default_rng(8).integers(0, 256, (n, size, size, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    "scale",
    [
        SCALE,
        {"_target_": "ScaleIntensityd", "keys": "image"},
        {"_target_": "NormalizeIntensityd", "keys": "image", "nonzero": True, "channel_wise": True},
        {"_target_": "NormalizeIntensityd", "keys": "image", "subtrahend": 128.0, "divisor": 64.0},
    ],
    ids=["range", "min-max", "by tile", "fixed"],
)
@pytest.mark.parametrize("activation", [SOFTMAX, ARGMAX], ids=["softmax", "argmax"])
def test_a_segmentation_is_what_monais_own_tools_make_of_the_bundle(
    tmp_path: Path, scale: dict[str, Any], activation: dict[str, Any]
) -> None:
    network, config = unet(), monai_config(UNET, activation=activation, scale=scale)
    folder = write_monai(tmp_path / "bundle", monai_metadata(NAMES), config, weights=network)
    model = load_model(folder, mpp=2.0)
    assert isinstance(model, Bundle)
    parser = ConfigParser(config)
    built = parser.get_parsed_content("network_def")
    built.load_state_dict(torch.load(folder / "models" / "model.pt", weights_only=True))
    expected = []
    for tile in tiles():
        image = {"image": torch.from_numpy(tile.copy()).permute(2, 0, 1).float()}
        for number in (2, 3):  # what comes after loading the file
            image = parser.get_parsed_content(f"preprocessing::transforms::{number}")(image)
        with torch.inference_mode():
            expected.append(torch.softmax(built.eval()(image["image"][None]), dim=1)[0].numpy())
    np.testing.assert_allclose(model.predict(tiles()), np.stack(expected), atol=1e-5)
    assert [c.name for c in model.spec.classes] == ["background", "tumor", "stroma"]
    assert (model.spec.kind, model.spec.mpp, model.spec.tile_size) == ("tissue_segmentation", 2.0, 32)
    assert any("by its own contents" in note for note in model.notes) == (scale["_target_"] != SCALE["_target_"]
                                                                          and "divisor" not in scale)  # fmt: skip


def test_sigmoid_channels_without_background(tmp_path: Path) -> None:
    metadata = monai_metadata({"0": "gland", "1": "tumor"})
    folder = write_monai(tmp_path / "bundle", metadata, monai_config({}, activation=SIGMOID), script=Colours(2))
    model = load_model(folder, mpp=1.0)
    assert isinstance(model, Bundle)
    tile = np.zeros((1, 32, 32, 3), dtype=np.uint8)
    tile[..., 0], tile[..., 1] = 255, 51  # inputs 1 and -0.6, logits 4 and -2.4
    gland, tumor = 1 / (1 + np.exp(-4)), 1 / (1 + np.exp(2.4))
    found = model.predict(tile)[0, :, 5, 5]
    np.testing.assert_allclose(found, [1 - gland, gland, tumor], atol=1e-6)
    assert [c.name for c in model.spec.classes] == ["background", "gland", "tumor"]
    mean, variance = model.predict_flips(tile)
    np.testing.assert_allclose(mean[0, :, 5, 5], found, atol=1e-6)
    np.testing.assert_allclose(variance, 0, atol=1e-10)


def test_a_classification_gives_tiles_of_its_size(tmp_path: Path, gradient_slide: Path) -> None:
    metadata = monai_metadata({"0": "metastasis"}, format="classification", shape=(16, 16))
    folder = write_monai(tmp_path / "bundle", metadata, monai_config({}, activation=SIGMOID), script=ChannelMeans(1))
    model = load_model(folder, mpp=1.0)
    assert isinstance(model, TileModel)
    with Slide(gradient_slide) as slide:
        found = predict_tile_classes(slide, model, shapely.box(0, 0, 128, 32), settings=InferenceSettings(batch_size=3))
    red = np.array([31, 95, 159, 223]) / 127.5 - 1
    np.testing.assert_allclose(found["metastasis"], 1 / (1 + np.exp(-red)), atol=1e-5)
    assert found["classification"].notna().tolist() == [False, False, True, True]


def test_torchvisions_resnet_without_torchvision(tmp_path: Path) -> None:
    definition = {"_target_": "TorchVisionFCModel", "model_name": "resnet18", "num_classes": 1, "use_conv": True,
                  "pretrained": True}  # fmt: skip
    torch.manual_seed(1)
    network = build_network(definition).eval()
    state = network.state_dict()
    # torchvision's resnet18 has 122 tensors, features.0 is its conv1, features.1 its bn1, features.4 to .7 its layers
    assert len(state) == 122
    assert type(network).__name__ == "TorchVisionFCModel"
    shapes = {
        "features.0.weight": (64, 3, 7, 7),
        "features.1.running_var": (64,),
        "features.4.1.bn2.bias": (64,),
        "features.5.0.downsample.0.weight": (128, 64, 1, 1),
        "features.7.0.conv1.weight": (512, 256, 3, 3),
        "features.7.0.downsample.1.num_batches_tracked": (),
        "fc.weight": (1, 512, 1, 1),
    }
    assert {name: tuple(state[name].shape) for name in shapes} == shapes
    x = torch.randn(1, 3, 224, 224)
    with torch.inference_mode():
        np.testing.assert_allclose(network(x).numpy(), resnet18(state, x).numpy(), atol=1e-4)
        assert network(x).shape == (1, 1, 1, 1)


def resnet18(state: dict[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    """The network of He 2016 with 18 layers, as torchvision has it, then MONAI's 1 x 1 convolution."""
    F = nn.functional

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        parts = (state[f"{name}.{part}"] for part in ("running_mean", "running_var", "weight", "bias"))
        return F.batch_norm(x, *parts)

    x = F.max_pool2d(F.relu(norm(F.conv2d(x, state["features.0.weight"], stride=2, padding=3), "features.1")), 3, 2, 1)
    for layer in range(4, 8):
        for block in range(2):
            name, stride = f"features.{layer}.{block}", 2 if layer > 4 and block == 0 else 1
            out = F.relu(norm(F.conv2d(x, state[f"{name}.conv1.weight"], stride=stride, padding=1), f"{name}.bn1"))
            out = norm(F.conv2d(out, state[f"{name}.conv2.weight"], padding=1), f"{name}.bn2")
            if stride == 2:
                x = norm(F.conv2d(x, state[f"{name}.downsample.0.weight"], stride=2), f"{name}.downsample.1")
            x = F.relu(out + x)
    return F.conv2d(F.avg_pool2d(x, 7, 1), state["fc.weight"], state["fc.bias"])


def test_nothing_of_a_configuration_is_executed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_network(*arguments: Any, **options: Any) -> Any:
        raise AssertionError("downloads")

    monkeypatch.setattr(socket.socket, "connect", no_network)
    trap = tmp_path / "executed"
    open_it = f"$open({str(trap)!r}, 'w')"
    config = monai_config({**UNET, "pretrained": True, "act": open_it}, activation=SOFTMAX)
    config |= {"imports": [open_it], "bundle_root": open_it, "device": open_it, "initialize": [open_it]}
    folder = write_monai(tmp_path / "bundle", monai_metadata(NAMES), config, weights=unet())
    with pytest.raises(BundleError, match="expression"):
        load_model(folder, mpp=1.0)
    config["network_def"] = {"_target_": "os.system", "command": f"touch {trap}"}
    folder = write_monai(tmp_path / "target", monai_metadata(NAMES), config, weights=unet())
    with pytest.raises(BundleError, match=r"os\.system"):
        load_model(folder, mpp=1.0)
    config["network_def"] = {**UNET, "pretrained": True}
    folder = write_monai(tmp_path / "odd", monai_metadata(NAMES), config, weights=unet())
    with pytest.raises(BundleError, match="cannot be built"):
        load_model(folder, mpp=1.0)
    config["network_def"] = UNET
    load_model(write_monai(tmp_path / "plain", monai_metadata(NAMES), config, weights=unet()), mpp=1.0)
    assert not trap.exists()


def test_weights_with_code_are_refused_and_torchscript_stands_in(tmp_path: Path) -> None:
    trap = tmp_path / "executed"

    class Evil:
        def __reduce__(self) -> Any:
            return (Path.touch, (trap,))

    config = monai_config(UNET, activation=SOFTMAX)
    folder = write_monai(tmp_path / "bundle", monai_metadata(NAMES), config)
    with pytest.raises(BundleError, match="no weights"):
        load_model(folder, mpp=1.0)
    torch.save({"model": Evil()}, folder / "models" / "model.pt")
    with pytest.raises(BundleError, match="does not fit"):
        load_model(folder, mpp=1.0)
    assert not trap.exists()
    scripted = write_monai(tmp_path / "scripted", monai_metadata(NAMES), config, script=Colours(3))
    (scripted / "models" / "model.pt").write_bytes((folder / "models" / "model.pt").read_bytes())
    model = load_model(scripted, mpp=1.0)
    assert model.spec.architecture == "MONAI Colours"
    assert not trap.exists()


def test_checkpoints_that_hold_the_weights_under_a_key(tmp_path: Path) -> None:
    network = unet()
    folder = write_monai(tmp_path / "bundle", monai_metadata(NAMES), monai_config(UNET, activation=SOFTMAX))
    torch.save({"model": network.state_dict(), "epoch": 3}, folder / "models" / "model.pt")
    assert isinstance(load_model(folder, mpp=1.0), Bundle)


def test_references() -> None:
    config = {"a": "@b", "b": {"c": [1, "@d"]}, "d": "e@f", "loop": "@pool", "pool": ["@loop"], "old": "@b#c#0"}
    assert literal(config, "@a", where="x") == {"c": [1, "e@f"]}
    assert literal(config, "@b::c::0", where="x") == 1
    assert literal(config, "@old", where="x") == 1
    for value, said in (("@none", "not there"), ("@b::c::7", "not there"), ("@loop", "itself"), ("%x#y", "expression")):
        with pytest.raises(BundleError, match=said):
            literal(config, value, where="x")


def changed(metadata: dict[str, Any], *path: str, to: Any) -> dict[str, Any]:
    out = copy.deepcopy(metadata)
    inner = out
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = to
    return out


FORMAT = "network_data_format"
PLAIN = monai_metadata(NAMES)


@pytest.mark.parametrize(
    ("metadata", "said"),
    [
        (monai_metadata(NAMES, inputs=4), "4 channels"),
        (monai_metadata(NAMES, shape=(96, 96, 96)), "3 dimensions"),
        (changed(PLAIN, FORMAT, "outputs", "box", to={}), "outputs pred, box"),
        (changed(PLAIN, FORMAT, "inputs", "label", to={}), "inputs image, label"),
        (changed(PLAIN, FORMAT, to=None), "network_data_format"),
        (changed(PLAIN, FORMAT, "outputs", "pred", "format", to="regression"), "regression"),
        (changed(PLAIN, FORMAT, "outputs", "pred", "channel_def", to={"0": "a"}), "--model-classes"),
    ],
)
def test_bundles_for_something_else_are_refused(tmp_path: Path, metadata: dict[str, Any], said: str) -> None:
    folder = write_monai(tmp_path / "bundle", metadata, monai_config(UNET, activation=SOFTMAX), weights=unet())
    with pytest.raises(BundleError, match=said):
        load_model(folder, mpp=1.0)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"postprocessing": {"_target_": "Compose", "transforms": []}}, "Activationsd"),
        ({"preprocessing": {"_target_": "Compose", "transforms": [{"_target_": "HistogramNormalized"}]}}, "Histogram"),
        ({"preprocessing": "$get()"}, "expression"),
        ({"network_def": {**UNET, "channels": [4, 16], "strides": [2]}}, "does not fit"),
        ({"network_def": "$build()"}, "network_def"),
    ],
)
def test_what_is_not_reproduced_is_refused(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    config = monai_config(UNET, activation=SOFTMAX) | changes
    folder = write_monai(tmp_path / "bundle", PLAIN, config, weights=unet())
    with pytest.raises(BundleError, match=said):
        load_model(folder, mpp=1.0)


def test_the_pixel_size_has_to_be_given(tmp_path: Path) -> None:
    folder = write_monai(tmp_path / "bundle", PLAIN, monai_config(UNET, activation=SOFTMAX), weights=unet())
    with pytest.raises(BundleError, match="--model-mpp"):
        load_model(folder)
    with pytest.raises(ConfigError, match="--model-mpp 0"):
        load_model(folder, mpp=0.0)
    named = load_model(folder, mpp=0.5, class_names=("glass", "Tumor", "Stroma"))
    assert [c.classification for c in named.spec.classes] == [None, "glass", "Tumor", "Stroma"]
