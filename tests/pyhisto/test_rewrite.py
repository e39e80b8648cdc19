"""Networks written otherwise: fewer layers or multiplications, the same output."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from monai.networks.nets.basic_unet import UpCat
from monai.networks.nets.resnet import ResNetBlock, resnet18
from network_cases import image, network
from torch import nn

from pyhisto.bundle.rewrite import (
    JoinedStage,
    WinogradConvolution,
    fold_batch_norms,
    has_winograd,
    join_upsampling,
    planar,
    use_winograd,
    winograd_share,
)

needs_nnpack = pytest.mark.skipif(
    not torch.backends.nnpack.is_available(),  # type: ignore[no-untyped-call]
    reason="needs torch with NNPACK",
)


def norms(model: nn.Module) -> int:
    return sum(isinstance(module, nn.BatchNorm2d) for module in model.modules())


@pytest.mark.parametrize(
    ("name", "left"),
    [
        ("unet-resnet34", 0),
        ("attention-unet", 0),
        # those before the activations of 58 dense layers and 3 transitions, and the last one follow no convolution
        ("unet-densenet121", 58 + 3 + 1),
        ("unet:efficientnet-b0", 1),  # that of the classifier, through which nothing goes
    ],
)
def test_folding_changes_nothing_but_the_number_of_layers(name: str, left: int) -> None:
    model = network(name)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    folded = fold_batch_norms(model, image(1, 3, 64, 64))
    assert norms(folded) <= left
    assert norms(folded) < norms(model) / 2
    x = image(2, 3, 96, 64)
    with torch.inference_mode():
        expected, found = model(x), folded(x)
    assert float(expected.std()) > 1e-3
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[key], before[key]) for key in before)


class Bypass(nn.Module):
    """What a convolution gives is used before and after its batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 2, 1), nn.BatchNorm2d(2)
        nn.init.constant_(self.norm.weight, 3.0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        plain = self.conv(x)
        out: torch.Tensor = self.norm(plain) + plain
        return out


class Shared(nn.Module):
    """One batch norm after two convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.norm = nn.Conv2d(3, 2, 1), nn.Conv2d(3, 2, 1), nn.BatchNorm2d(2)
        nn.init.constant_(self.norm.weight, 3.0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.norm(self.a(x)) * self.norm(self.b(x))
        return out


@pytest.mark.parametrize("kind", [Bypass, Shared])
def test_what_cannot_be_folded_stays(kind: type[nn.Module]) -> None:
    torch.manual_seed(0)
    model = kind().eval()
    x = image(1, 3, 4, 4)
    folded = fold_batch_norms(model, x)
    assert norms(folded) == 1
    with torch.inference_mode():
        assert torch.equal(folded(x), model(x))


def stage(kind: type[UpCat] = UpCat, interpolation: str = "nearest") -> UpCat:
    """Doubles an image of one channel and adds up nine neighbours with the weights 1 to 9, row by row; then nothing."""
    out = kind(2, 1, 0, 1, "relu", "batch", False, 0.0, "nontrainable", "default", interpolation, None, halves=False)
    out.convs.conv_0.conv.weight.data = torch.arange(1.0, 10.0).view(1, 1, 3, 3)
    out.convs.conv_1 = nn.Identity()
    return out.eval()


def test_doubling_and_convolving_in_one_by_hand() -> None:
    joined = JoinedStage(stage())
    # one pixel becomes four, and zeros lie around: the first sees weights 5, 6, 8, 9; the second 4, 5, 7, 8; ...
    found = joined.up(torch.ones(1, 1, 1, 1))
    assert found.tolist() == [[[[28.0, 24.0], [16.0, 12.0]]]]


@pytest.mark.parametrize("name", ["unet-resnet34", "unet-densenet121", "unet:efficientnet-b0"])
@pytest.mark.parametrize("fold", [False, True])
def test_joined_upsampling_changes_nothing_up_to_the_edge(name: str, fold: bool) -> None:
    model = network(name)
    if fold:
        model = fold_batch_norms(model, image(1, 3, 64, 64))
    joined = join_upsampling(model, image(1, 3, 64, 64))
    assert sum(isinstance(module, JoinedStage) for module in joined.modules()) == 5
    assert not any(isinstance(module, nn.Upsample) for module in joined.modules())
    assert sum(isinstance(module, UpCat) for module in model.modules()) == 5
    x = image(2, 3, 96, 64)
    with torch.inference_mode():
        torch.testing.assert_close(joined(x), model(x), rtol=0, atol=1e-5)


class Shifted(UpCat):  # type: ignore[misc]
    """Adds something of its own."""

    def forward(self, x: torch.Tensor, x_e: torch.Tensor | None = None) -> torch.Tensor:
        out: torch.Tensor = super().forward(x, x_e) + 1
        return out


@pytest.mark.parametrize("kind", [stage(Shifted), stage(interpolation="linear")])
def test_what_is_not_the_same_is_not_joined(kind: UpCat) -> None:
    class Decoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stage = kind

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.stage(x, None)  # type: ignore[no-any-return]

    model, x = Decoder().eval(), image(1, 1, 4, 4)
    joined = join_upsampling(model, x)
    assert not any(isinstance(module, JoinedStage) for module in joined.modules())
    with torch.inference_mode():
        assert torch.equal(joined(x), model(x))


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The shapes of what NNPACK convolves."""
    shapes: list[tuple[int, ...]] = []
    convolve = torch._nnpack_spatial_convolution

    def spy(x: torch.Tensor, *rest: Any) -> torch.Tensor:
        shapes.append(tuple(x.shape))
        return convolve(x, *rest)

    monkeypatch.setattr(torch, "_nnpack_spatial_convolution", spy)
    return shapes


@needs_nnpack
@pytest.mark.parametrize("bias", [False, True])
def test_winograd_gives_what_a_convolution_gives(bias: bool, sent: list[tuple[int, ...]]) -> None:
    torch.manual_seed(0)
    direct = nn.Conv2d(64, 96, 3, padding=1, bias=bias).eval()
    fast = WinogradConvolution(direct).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    for shape in ((1, 64, 16, 39), (1, 64, 25, 28), (2, 64, 40, 33)):
        x = image(*shape).to(memory_format=torch.channels_last)
        with torch.inference_mode():
            torch.testing.assert_close(fast(x), direct(x), rtol=0, atol=1e-4)
    assert sent == [(1, 64, 25, 28), (1, 64, 40, 33), (1, 64, 40, 33)]  # 16 x 39 px are too few


@needs_nnpack
def test_the_convolutions_that_winograd_computes() -> None:
    model = nn.Sequential(
        nn.Conv2d(64, 256, 3, padding=1),
        nn.Conv2d(256, 64, 3, padding=1, bias=False),
        nn.Conv2d(64, 63, 3, padding=1),
        nn.Conv2d(63, 64, 3, padding=1),
        nn.Conv2d(64, 513, 3, padding=1),
        nn.Conv2d(513, 64, 1),
        nn.Conv2d(64, 64, 3, padding=1, stride=2),
        nn.Conv2d(64, 64, 3, padding=2, dilation=2),
        nn.Conv2d(64, 64, 3),
        nn.Conv2d(64, 64, 3, padding=1, groups=2),
        nn.Conv2d(64, 64, 3, padding=1, padding_mode="reflect"),
    ).eval()
    x = image(1, 64, 64, 64)
    with torch.inference_mode():
        expected = model(x)
        use_winograd(model)
        torch.testing.assert_close(model(x), expected, rtol=0, atol=1e-5)
    assert [isinstance(module, WinogradConvolution) for module in model] == [True, True] + [False] * 9


@pytest.mark.parametrize("shape", [(1, 64, 70, 50), (2, 3, 5, 7), (1, 1, 4, 4), (2, 8, 1, 1)])
@pytest.mark.parametrize("order", [torch.channels_last, torch.contiguous_format])
def test_planar_maps_hold_the_same_numbers(shape: tuple[int, ...], order: torch.memory_format) -> None:
    x = image(*shape).to(memory_format=order)
    found = planar(x)
    assert found.is_contiguous()
    assert torch.equal(found, x)
    every_second = x[:, :, ::2]
    assert torch.equal(planar(every_second), every_second)


@needs_nnpack
def test_maps_between_the_convolutions_of_winograd_keep_one_order() -> None:
    model = resnet18(spatial_dims=2, n_input_channels=3, feed_forward=False).eval()
    x = image(1, 3, 256, 256).to(memory_format=torch.channels_last)
    added: list[tuple[bool, bool]] = []
    with torch.inference_mode():
        expected = model(x)
        use_winograd(model)
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        for block in (module for module in model.modules() if isinstance(module, ResNetBlock)):
            if isinstance(block.conv2, WinogradConvolution):
                block.register_forward_hook(lambda _, x, y: added.append((x[0].is_contiguous(), y.is_contiguous())))
        torch.testing.assert_close(model(x), expected, rtol=0, atol=1e-4)
    assert added[:6] == [(True, True)] * 6  # the last two have maps of 16 x 16 px


def test_the_share_of_winograd_by_hand() -> None:
    model = nn.Sequential(nn.Conv2d(3, 64, 1), nn.Conv2d(64, 64, 3, padding=1), nn.Conv2d(64, 64, 3, 2, padding=1))
    # a pixel takes 3 * 64, 9 * 64 * 64, and a quarter of that
    assert winograd_share(model, image(1, 3, 8, 8)) == pytest.approx(36864 / (192 + 36864 + 9216))
    assert winograd_share(nn.ReLU(), image(1, 3, 8, 8)) == 0


@pytest.mark.parametrize(
    ("nnpack", "capability", "expected"),
    [(True, "AVX2", True), (True, "AVX512", False), (True, "NO AVX", False), (False, "AVX2", False)],
)
def test_where_winograd_is_faster(
    monkeypatch: pytest.MonkeyPatch, nnpack: bool, capability: str, expected: bool
) -> None:
    monkeypatch.setattr("torch.backends.nnpack.is_available", lambda: nnpack)
    monkeypatch.setattr("torch.backends.cpu.get_cpu_capability", lambda: capability)
    assert has_winograd() is expected
