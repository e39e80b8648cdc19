"""Networks by name, and the weights that everybody has for their encoders."""

from __future__ import annotations

import pickle
from copy import deepcopy
from pathlib import Path
from typing import Any
from urllib.error import URLError

import pytest
import torch

from pyhisto.errors import ConfigError
from pyhisto.models import MODELS, build_model, check_tile_size
from pyhisto.models.encoders import DenseNet121Encoder, ResNet34Encoder, load_encoder_weights

SMALL = (16, 16, 8, 8, 8)


def tensors(shapes: dict[str, tuple[int, ...]]) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {name: torch.rand(shape, generator=generator) for name, shape in shapes.items()}


def norm(name: str, channels: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.{part}": (channels,) for part in ("weight", "bias", "running_mean", "running_var")}


def torchvision_resnet34() -> dict[str, torch.Tensor]:
    """Return random weights under the names and shapes of torchvision's ``resnet34``, written down from its paper."""
    shapes: dict[str, tuple[int, ...]] = {"conv1.weight": (64, 3, 7, 7), **norm("bn1", 64)}
    wide = 64
    for layer, (blocks, channels) in enumerate([(3, 64), (4, 128), (6, 256), (3, 512)], start=1):
        for block in range(blocks):
            name = f"layer{layer}.{block}"
            shapes[f"{name}.conv1.weight"] = (channels, wide, 3, 3)
            shapes[f"{name}.conv2.weight"] = (channels, channels, 3, 3)
            shapes |= norm(f"{name}.bn1", channels) | norm(f"{name}.bn2", channels)
            if wide != channels:
                shapes[f"{name}.downsample.0.weight"] = (channels, wide, 1, 1)
                shapes |= norm(f"{name}.downsample.1", channels)
            wide = channels
    return tensors(shapes | {"fc.weight": (1000, 512), "fc.bias": (1000,)})


def torchvision_densenet121(dot: str = "") -> dict[str, torch.Tensor]:
    """Return random weights named as torchvision's ``densenet121``; the files on its server say ``norm.1``."""
    shapes: dict[str, tuple[int, ...]] = {"features.conv0.weight": (64, 3, 7, 7), **norm("features.norm0", 64)}
    wide = 64
    for block, layers in enumerate([6, 12, 24, 16], start=1):
        for layer in range(1, layers + 1):
            name = f"features.denseblock{block}.denselayer{layer}"
            shapes |= norm(f"{name}.norm{dot}1", wide) | norm(f"{name}.norm{dot}2", 128)
            shapes[f"{name}.conv{dot}1.weight"] = (128, wide, 1, 1)
            shapes[f"{name}.conv{dot}2.weight"] = (32, 128, 3, 3)
            wide += 32
        if block < 4:
            shapes |= norm(f"features.transition{block}.norm", wide)
            shapes[f"features.transition{block}.conv.weight"] = (wide // 2, wide, 1, 1)
            wide //= 2
    shapes |= norm("features.norm5", wide)
    return tensors(shapes | {"classifier.weight": (1000, 1024), "classifier.bias": (1000,)})


@pytest.mark.parametrize("name", [*sorted(MODELS), "unet:efficientnet-b0", "unet:resnet18"])
def test_output_has_the_size_of_the_input(name: str) -> None:
    model = build_model(name, out_channels=5, decoder_channels=SMALL).eval()
    with torch.inference_mode():
        assert model(torch.zeros(2, 3, 64, 96)).shape == (2, 5, 64, 96)


@pytest.mark.parametrize("encoder_class", [DenseNet121Encoder, ResNet34Encoder])
def test_features_are_what_the_decoder_is_told(encoder_class: Any) -> None:
    encoder = encoder_class().eval()
    with torch.inference_mode():
        features = encoder(torch.zeros(1, 3, 64, 96))
    assert tuple(f.shape[1] for f in features) == encoder_class.num_channels_per_output()[0]
    assert [tuple(f.shape[2:]) for f in features] == [(64 // s, 96 // s) for s in (2, 4, 8, 16, 32)]
    assert encoder_class.num_outputs() == [len(features)]


def test_densenet_loads_torchvision_weights_completely(tmp_path: Path) -> None:
    for dot in ("", "."):
        state = torchvision_densenet121(dot)
        torch.save(state, tmp_path / "w.pth")
        encoder = DenseNet121Encoder()
        assert load_encoder_weights(encoder, tmp_path / "w.pth") is True
        own = {name: value for name, value in encoder.state_dict().items() if "num_batches" not in name}
        assert len(own) == len(state) - 2  # all but the classifier
        layer = "features.denseblock3.denselayer24"
        assert torch.equal(own[f"{layer}.layers.conv2.weight"], state[f"{layer}.conv{dot}2.weight"])
        assert torch.equal(own[f"{layer}.layers.norm1.running_var"], state[f"{layer}.norm{dot}1.running_var"])
        same = [n for n in own if n in state]
        assert {"features.conv0.weight", "features.norm5.bias", "features.transition2.conv.weight"} <= set(same)
        assert all(torch.equal(own[n], state[n]) for n in same)


@pytest.mark.parametrize("prefix", ["", "module.", "encoder.", "module.backbone."])
def test_resnet_loads_torchvision_weights_completely(tmp_path: Path, prefix: str) -> None:
    state = torchvision_resnet34()
    torch.save({"state_dict": {prefix + name: value for name, value in state.items()}}, tmp_path / "w.pth")
    encoder = ResNet34Encoder()
    assert load_encoder_weights(encoder, str(tmp_path / "w.pth")) is True
    own = {name: value for name, value in encoder.state_dict().items() if "num_batches" not in name}
    assert set(own) == set(state) - {"fc.weight", "fc.bias"}
    assert all(torch.equal(value, state[name]) for name, value in own.items())


def test_resnet_computes_what_torchvision_computes() -> None:
    """The first block by hand, from the weights alone: a network with the right names may still compute otherwise."""
    import torch.nn.functional as F

    state = torchvision_resnet34()
    encoder = ResNet34Encoder().eval()
    encoder.load_state_dict(state, strict=False)
    x = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(1))

    def bn(y: torch.Tensor, name: str) -> torch.Tensor:
        mean, var = state[f"{name}.running_mean"], state[f"{name}.running_var"]
        return F.batch_norm(y, mean, var, state[f"{name}.weight"], state[f"{name}.bias"])

    with torch.inference_mode():
        features = encoder(x)
        stem = F.relu(bn(F.conv2d(x, state["conv1.weight"], stride=2, padding=3), "bn1"))
        y = F.max_pool2d(stem, 3, stride=2, padding=1)
        for block in range(3):
            name = f"layer1.{block}"
            z = F.relu(bn(F.conv2d(y, state[f"{name}.conv1.weight"], padding=1), f"{name}.bn1"))
            y = F.relu(bn(F.conv2d(z, state[f"{name}.conv2.weight"], padding=1), f"{name}.bn2") + y)
        name = "layer2.0"
        z = F.relu(bn(F.conv2d(y, state[f"{name}.conv1.weight"], stride=2, padding=1), f"{name}.bn1"))
        z = bn(F.conv2d(z, state[f"{name}.conv2.weight"], padding=1), f"{name}.bn2")
        shortcut = bn(F.conv2d(y, state[f"{name}.downsample.0.weight"], stride=2), f"{name}.downsample.1")
        first_of_two = F.relu(z + shortcut)
        found = encoder.layer2[0](features[1])
    torch.testing.assert_close(features[0], stem)
    torch.testing.assert_close(features[1], y)
    torch.testing.assert_close(found, first_of_two)


def test_weights_reach_the_encoder_of_the_unet(tmp_path: Path) -> None:
    state = torchvision_resnet34()
    torch.save(state, tmp_path / "w.pth")
    model = build_model("unet-resnet34", out_channels=2, decoder_channels=SMALL, encoder_weights=tmp_path / "w.pth")
    assert torch.equal(model.encoder.state_dict()["layer4.2.conv2.weight"], state["layer4.2.conv2.weight"])  # type: ignore[union-attr]


def test_missing_or_other_layers_are_refused(tmp_path: Path) -> None:
    state = torchvision_resnet34()
    del state["layer3.5.bn2.running_mean"]
    torch.save(state, tmp_path / "w.pth")
    before = ResNet34Encoder()
    with pytest.raises(ConfigError, match=r"layer3\.5\.bn2\.running_mean \(1 of "):
        load_encoder_weights(before, tmp_path / "w.pth")
    torch.save(torchvision_densenet121(), tmp_path / "other.pth")
    with pytest.raises(ConfigError, match="weights of ResNet34"):
        load_encoder_weights(ResNet34Encoder(), tmp_path / "other.pth")


def test_weights_of_another_shape_are_refused(tmp_path: Path) -> None:
    state = torchvision_resnet34() | {"conv1.weight": torch.zeros(64, 1, 7, 7)}
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(ConfigError, match=r"conv1\.weight"):
        load_encoder_weights(ResNet34Encoder(), tmp_path / "w.pth")


def test_files_that_hold_no_weights(tmp_path: Path) -> None:
    encoder = torch.nn.Linear(1, 1)
    with pytest.raises(ConfigError, match="do not exist"):
        load_encoder_weights(encoder, tmp_path / "none.pth")
    (tmp_path / "text.pth").write_text("hello")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_encoder_weights(encoder, tmp_path / "text.pth")
    (tmp_path / "empty.pth").write_bytes(b"")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_encoder_weights(encoder, tmp_path / "empty.pth")
    for content in ([1, 2], {"epoch": 3}):
        torch.save(content, tmp_path / "list.pth")
        with pytest.raises(ConfigError, match="no state dict"):
            load_encoder_weights(encoder, tmp_path / "list.pth")


@pytest.mark.parametrize("encoder_class", [DenseNet121Encoder, ResNet34Encoder])
def test_without_a_network_imagenet_warns_and_goes_on(monkeypatch: pytest.MonkeyPatch, encoder_class: Any) -> None:
    def offline(*_: Any, **__: Any) -> Any:
        raise URLError("no route to host")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", offline)
    monkeypatch.setattr("monai.networks.nets.densenet.load_state_dict_from_url", offline)
    encoder = encoder_class()
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    with pytest.warns(UserWarning, match="random weights") as caught:
        assert load_encoder_weights(encoder, "imagenet") is False
    assert len(caught) == 1
    assert all(torch.equal(value, before[name]) for name, value in encoder.state_dict().items())


def test_random_leaves_the_encoder_alone() -> None:
    encoder = torch.nn.Linear(2, 2)
    before = encoder.weight.clone()
    assert load_encoder_weights(encoder, "random") is False
    assert torch.equal(encoder.weight, before)


def test_attention_unet_has_as_many_stages_as_it_is_told() -> None:
    model = build_model("attention-unet", out_channels=2, decoder_channels=(32, 16, 8))
    assert next(tuple(layer.shape[:2]) for layer in model.parameters() if layer.shape[2:] == (3, 3)) == (8, 3)
    gates = [layer for layer in model.modules() if type(layer).__name__ == "AttentionBlock"]
    assert len(gates) == 2  # one at each skip connection
    with torch.inference_mode():
        assert model.eval()(torch.zeros(1, 3, 36, 20)).shape == (1, 2, 36, 20)  # two halvings: multiples of 4


def test_attention_unet_learns_with_one_image_in_the_batch() -> None:
    model = build_model("attention-unet", out_channels=2, decoder_channels=(32, 16, 8, 8)).train()
    model(torch.rand(1, 3, 32, 32)).sum().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())


def test_a_backbone_takes_weights_from_a_file_and_not_from_imagenet(tmp_path: Path) -> None:
    first = build_model("unet:resnet10", out_channels=2, decoder_channels=SMALL)
    torch.save(first.encoder.state_dict(), tmp_path / "w.pth")  # type: ignore[union-attr]
    second = build_model("unet:resnet10", out_channels=3, decoder_channels=SMALL, encoder_weights=tmp_path / "w.pth")
    found, wanted = second.encoder.state_dict(), first.encoder.state_dict()  # type: ignore[union-attr]
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    with pytest.raises(ConfigError, match="no ImageNet weights for ResNet; expected 'random' or a file"):
        build_model("unet:resnet10", out_channels=2, decoder_channels=SMALL, encoder_weights="imagenet")


@pytest.mark.parametrize(
    ("name", "size", "message"),
    [
        ("unet-resnet34", 250, "a side of 250 px for unet-resnet34; expected a multiple of 32; choose 224 or 256"),
        ("unet:efficientnet-b0", 16, "expected a multiple of 32; choose 32 or 64"),
        ("attention-unet", 40, "a side of 40 px for attention-unet; expected a multiple of 16; choose 32 or 48"),
    ],
)
def test_tiles_that_cannot_be_halved(name: str, size: int, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_tile_size(name, size)
    model = build_model(name, out_channels=2, decoder_channels=SMALL)
    with pytest.raises(ConfigError, match=message):
        model(torch.zeros(1, 3, 64, size))


def test_tiles_that_can_be_halved() -> None:
    check_tile_size("unet-densenet121", 96)
    check_tile_size("attention-unet", 48)
    check_tile_size("attention-unet", 40, decoder_channels=(32, 16, 8, 8))


def test_a_model_with_its_check_can_be_copied_and_pickled() -> None:
    model = build_model("attention-unet", out_channels=2, decoder_channels=(8, 4))
    for copy in (deepcopy(model), pickle.loads(pickle.dumps(model))):  # noqa: S301
        with pytest.raises(ConfigError, match="a side of 5 px"):
            copy(torch.zeros(1, 3, 5, 4))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        (
            "unet-vgg",
            {"out_channels": 2},
            "unknown model 'unet-vgg'; expected one of attention-unet, unet-densenet121, unet-resnet34, "
            "or unet:<backbone>",
        ),
        (
            "unet:vgg",
            {"out_channels": 2},
            r"unknown backbone 'vgg'; expected one of efficientnet-b0, .*resnet10, .*resnet200, densenet121, ",
        ),
        ("attention-unet", {}, "cannot be built"),
        ("attention-unet", {"out_channels": 2, "decoder_channels": (8,)}, "two stages or more"),
        ("attention-unet", {"out_channels": 2, "encoder_weights": "imagenet"}, "'imagenet' with attention-unet"),
        ("unet-resnet34", {}, "cannot be built"),
        ("unet-resnet34", {"out_channels": 2, "depth": 3}, "cannot be built"),
        ("unet-resnet34", {"out_channels": 2, "decoder_channels": (8, 8)}, "expected five stages"),
        ("unet-resnet34", {"out_channels": 2, "decoder_channels": (8, 8, 8, 8, 8, 8)}, "expected five stages"),
    ],
)
def test_what_cannot_be_built(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_model(name, **options)
