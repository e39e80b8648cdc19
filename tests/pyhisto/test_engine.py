"""Networks computed faster: the same output, whatever computes it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from pyhisto.bundle.engine import (
    OpenVinoEngine,
    TorchEngine,
    fold_batch_norms,
    is_local,
    make_engine,
    out_of_memory,
    throughput_batch,
)
from pyhisto.models import build_model

NARROW = (16, 16, 8, 8, 8)


def network(name: str) -> nn.Module:
    """A narrow network whose batch norms are as far from doing nothing as trained ones."""
    torch.manual_seed(3)
    model = build_model(name, out_channels=3, decoder_channels=NARROW).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for value, low, high in (
                (module.running_mean, -0.3, 0.3),
                (module.running_var, 0.5, 2.0),
                (module.weight, 0.5, 1.5),
                (module.bias, -0.2, 0.2),
            ):
                assert value is not None
                nn.init.uniform_(value, low, high)
    return model


def norms(model: nn.Module) -> int:
    return sum(isinstance(module, nn.BatchNorm2d) for module in model.modules())


def image(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


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


def test_reduced_precision_takes_and_gives_float32() -> None:
    model = network("unet-resnet34")
    x = image(1, 3, 64, 64)
    with torch.inference_mode():
        expected = model(x)
    engine = make_engine("torch", model, x, "cpu", "bfloat16")
    found = engine(x)
    assert (engine.name, engine.precision, found.dtype) == ("torch", "bfloat16", torch.float32)
    assert 0 < float((found - expected).abs().max()) < 0.1 * float(expected.abs().max())
    assert next(model.parameters()).dtype == torch.float32


def test_openvino_gives_the_same_for_any_size_and_number() -> None:
    pytest.importorskip("openvino", reason="needs the package openvino")
    model = fold_batch_norms(network("attention-unet"), image(1, 3, 64, 64))
    engine = OpenVinoEngine(model, image(1, 3, 64, 64))
    plain = TorchEngine(model, "cpu")
    for shape in ((1, 3, 64, 64), (3, 3, 96, 64), (1, 3, 128, 160)):
        torch.testing.assert_close(engine(image(*shape)), plain(image(*shape)), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "local"),
    [
        ("unet-resnet34", True),
        ("unet-densenet121", True),
        ("attention-unet", False),  # instance norms on the way up
        ("unet:efficientnet-b0", False),  # squeeze and excitation
    ],
)
def test_networks_that_see_the_whole_tile(name: str, local: bool) -> None:
    """A change far away, 160 px from the left edge, reaches the left edge or not; as the function says."""
    model = network(name)
    assert is_local(model) is local
    x = image(1, 3, 32, 320)
    changed = x.clone()
    changed[..., 310:] += 5
    with torch.inference_mode():
        reached = float((model(x) - model(changed))[..., 0].abs().max()) > 0
    assert reached or local


@pytest.mark.parametrize(
    ("times", "most", "expected"),
    [
        ({1: 1.0, 2: 1.0, 4: 1.0, 8: 2.0}, 64, 4),  # 8 tiles take twice as long as 4
        ({1: 1.0, 2: 1.98}, 64, 1),  # 1 % faster a tile is not worth it
        ({1: 1.0, 2: 1.0, 4: 1.0}, 2, 2),  # no more fit
        ({1: 1.0, 2: 1.0}, 64, 2),  # 4 do not fit, as it turns out
    ],
)
def test_the_batch_that_tiles_are_cheapest_in(times: dict[int, float], most: int, expected: int) -> None:
    def seconds(count: int) -> float:
        if count not in times:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return times[count]

    assert throughput_batch(seconds, most) == expected


def test_other_errors_are_no_lack_of_memory() -> None:
    def seconds(count: int) -> float:
        if count == 2:
            raise RuntimeError("illegal instruction")
        return 1.0

    with pytest.raises(RuntimeError, match="illegal"):
        throughput_batch(seconds, 8)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("x"), True),
        (RuntimeError("MPS backend out of memory (MPS allocated: 8 GB)"), True),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate"), True),
        (MemoryError(), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_errors_of_memory(error: Any, expected: bool) -> None:
    assert out_of_memory(error) is expected
