"""Networks in strips: smaller maps, the same output."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from monai.networks.nets import FlexibleUNet
from network_cases import image, network
from torch import nn

from pyhisto.bundle.rewrite import join_upsampling
from pyhisto.bundle.strips import STRIP_PX, StripPool, StripUNet, in_strips

EXAMPLE = (1, 3, 64, 64)


def heights(model: nn.Module, x: torch.Tensor) -> tuple[torch.Tensor, list[int]]:
    """Return the output, and the rows of each map that the last decoder stage of a network makes."""
    found: list[int] = []

    def note(module: nn.Module, inputs: Any, output: torch.Tensor) -> None:
        del module, inputs
        found.append(output.shape[2])

    decoder: Any = model.get_submodule("decoder")
    handle = decoder.blocks[-1].register_forward_hook(note)
    with torch.inference_mode():
        out = model(x)
    handle.remove()
    return out, found


@pytest.mark.parametrize("joined", [False, True], ids=["as it is", "joined"])
@pytest.mark.parametrize("name", ["unet-resnet34", "unet-densenet121", "unet:efficientnet-b0", "unet:resnet10"])
def test_strips_change_nothing_but_the_size_of_maps(name: str, joined: bool) -> None:
    model = network(name)
    model = join_upsampling(model, image(*EXAMPLE)) if joined else model
    before = list(model.state_dict())
    made = in_strips(model, image(*EXAMPLE))
    assert isinstance(made, StripUNet)
    assert list(model.state_dict()) == before == list(made.state_dict())
    made.strip_px = 2 * 96 * 12  # three rows of the forty that the last but one stage is given, 12 of the output
    x = image(2, 3, 160, 96)
    expected, whole = heights(model, x)
    found, rows = heights(made, x)
    assert whole == [160]
    # 12 and, as far as they go, 4 more on each side: 13 strips, and one of what is left
    assert rows == [12 + 4] + [12 + 8] * 12 + [4 + 4]
    assert float(expected.std()) > 1e-3
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_small_tiles_are_computed_at_once() -> None:
    made = in_strips(network("unet:resnet10"), image(*EXAMPLE))
    assert isinstance(made, StripUNet)
    assert made.strip_px == STRIP_PX
    _, rows = heights(made, image(1, 3, 128, 128))
    assert rows == [128]


def test_a_decoder_that_sees_farther_stays_as_it_is() -> None:
    model = network("unet:resnet10")
    assert isinstance(model, FlexibleUNet)
    wide = nn.Conv2d(8, 8, 15, padding=7)
    model.decoder.blocks[-1].convs.conv_1.conv = wide
    made = in_strips(model, image(*EXAMPLE))
    assert isinstance(made, FlexibleUNet)
    assert not any(isinstance(module, StripPool) for module in made.modules())
    assert made is not model


@pytest.mark.parametrize("strip_px", [1, 57, 400, 10**6])
@pytest.mark.parametrize(("size", "stride", "padding"), [(3, 2, 1), (2, 2, 0), (3, 1, 1), (5, 3, 2), (2, 3, 0)])
def test_pools_give_the_same_bit_for_bit(size: int, stride: int, padding: int, strip_px: int) -> None:
    pool = nn.MaxPool2d(size, stride, padding)
    strips = StripPool(pool)
    strips.strip_px = strip_px
    for shape in ((2, 3, 31, 19), (1, 2, 32, 24)):
        x = image(*shape) - 3  # below 0: the padding must not win
        assert torch.equal(strips(x), pool(x))


@pytest.mark.parametrize(
    "pool", [nn.MaxPool2d(2, ceil_mode=True), nn.MaxPool2d(3, dilation=2), nn.MaxPool2d((2, 3)), nn.AvgPool2d(2)]
)
def test_other_pools_stay(pool: nn.Module) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), pool).eval()
    made = in_strips(model, image(*EXAMPLE))
    assert not any(isinstance(module, StripPool) for module in made.modules())
    assert type(made.get_submodule("1")) is type(pool)
