"""Networks computed faster: the same output, whatever computes it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from network_cases import image, network

from pyhisto.bundle.engine import (
    OpenVinoEngine,
    TorchEngine,
    is_local,
    make_engine,
    out_of_memory,
    throughput_batch,
)
from pyhisto.bundle.rewrite import JoinedStage, WinogradConvolution, fold_batch_norms


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


@pytest.mark.parametrize("name", ["unet-resnet34", "unet-densenet121"])
def test_outputs_of_reduced_precision_are_not_rounded_to_it(name: str) -> None:
    model, x = network(name), image(1, 3, 128, 128)
    engine = make_engine("torch", model, x, "cpu", "bfloat16")
    found = engine(x)
    assert float((found != found.bfloat16()).float().mean()) > 0.9
    again = TorchEngine(engine.network, "cpu", "bfloat16")  # as for the networks of a coarse-to-fine model
    torch.testing.assert_close(again(x), found, rtol=0, atol=0)
    with torch.inference_mode():
        torch.testing.assert_close(TorchEngine(engine.network, "cpu", "float32")(x), model(x), rtol=0, atol=0.02)


@pytest.mark.parametrize("winograd", [False, True])
def test_float32_on_a_cpu_takes_fewer_multiplications(monkeypatch: pytest.MonkeyPatch, winograd: bool) -> None:
    if winograd and not torch.backends.nnpack.is_available():  # type: ignore[no-untyped-call]
        pytest.skip("needs torch with NNPACK")
    monkeypatch.setattr("pyhisto.bundle.engine.has_winograd", lambda: winograd)
    model, x = network("unet-resnet34"), image(2, 3, 128, 128)
    engine = make_engine("torch", model, x, "cpu", "float32")
    kinds = {type(module) for module in engine.network.modules()}
    assert JoinedStage in kinds
    assert (WinogradConvolution in kinds) is winograd
    assert not {JoinedStage, WinogradConvolution} & {type(module) for module in model.modules()}
    with torch.inference_mode():
        torch.testing.assert_close(engine(x), model(x), rtol=0, atol=2e-5)


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
        ("unet:resnet10", True),  # has the head of a classifier, and does not use it
    ],
)
def test_networks_that_see_the_whole_tile(name: str, local: bool) -> None:
    """A change far away, 160 px from the left edge, reaches the left edge or not; as the function says."""
    model = network(name)
    assert is_local(model, image(1, 3, 64, 64)) is local
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
