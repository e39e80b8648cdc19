"""Devices by name; the hardware that is not here is made up."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from pyhisto import device
from pyhisto.errors import ConfigError

GpuMaker = Callable[..., None]


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> GpuMaker:
    """Return a function that makes up GPUs with these compute capabilities."""

    def make(*capabilities: tuple[int, int]) -> None:
        def number(name: Any) -> int:
            return int(str(name).partition(":")[2] or 0)

        found = torch.device("cuda") if capabilities else None
        monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available: found)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: len(capabilities))
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda i: f"GPU {i}")
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda name: capabilities[number(name)])

    return make


def test_a_list_of_gpus(gpus: GpuMaker) -> None:
    gpus((9, 0), (9, 0))
    assert device.devices("cuda:0, cuda:1") == ["cuda:0", "cuda:1"]
    assert device.devices("cuda") == ["cuda"]
    assert [name for name, _ in device.available_devices()] == ["cpu", "cuda:0", "cuda:1"]


@pytest.mark.parametrize("name", ["cuda:2", "cuda:x", "cuda:-1", "cuda0", "mps", "tpu", "", "cpu:0", "cpu,"])
def test_a_device_that_is_not_there(gpus: GpuMaker, name: str) -> None:
    gpus((9, 0), (9, 0))
    with pytest.raises(ConfigError, match="is not available; expected one of cpu, cuda:0, cuda:1"):
        device.devices(name)


def test_gpus_of_another_maker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available: torch.device("xpu"))
    monkeypatch.setattr(torch.xpu, "device_count", lambda: 1)
    monkeypatch.setattr(torch.xpu, "get_device_name", lambda i: "Arc")
    monkeypatch.setattr(torch.xpu, "mem_get_info", lambda device: (3 * 2**30, 16 * 2**30))
    assert device.devices("xpu, cpu, xpu:0") == ["xpu", "cpu", "xpu:0"]
    assert device.available_devices()[1:] == [("xpu", "Arc")]
    assert (device.free_memory("xpu:0"), device.memory_gib("xpu")) == (3 * 2**30, 16.0)
    assert not device.fast_bfloat16("xpu")  # which nobody has measured
    assert not device.fast_float16("xpu")
    with pytest.raises(ConfigError, match=r"device 'cuda' is not available; expected one of cpu, xpu$"):
        device.devices("cuda")
    with pytest.raises(ConfigError, match="'xpu:1' is not available"):
        device.devices("xpu:1")


def test_an_apple_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available: torch.device("mps"))
    assert device.devices("mps") == ["mps"]
    assert device.available_devices()[1:] == [("mps", "Apple GPU")]
    assert device.memory_gib("mps") == device.memory_gib("cpu")  # they share it
    with pytest.raises(ConfigError, match="'mps:0' is not available; expected one of cpu, mps"):
        device.devices("mps:0")


def test_without_a_gpu(gpus: GpuMaker) -> None:
    gpus()
    with pytest.raises(ConfigError, match=r"device 'cuda' is not available; expected one of cpu$"):
        device.devices("cpu,cuda")


def test_what_each_gpu_is_fast_at(gpus: GpuMaker) -> None:
    gpus((7, 5), (8, 0), (6, 1))  # Turing has float16 alone, Ampere both, Pascal neither
    assert [device.fast_bfloat16(f"cuda:{i}") for i in range(3)] == [False, True, False]
    assert [device.fast_float16(f"cuda:{i}") for i in range(3)] == [True, True, False]
    assert device.fast_float16("mps")
    assert not device.fast_bfloat16("mps")
    assert not device.fast_float16("cpu")


def test_free_memory_of_the_machine_is_less_than_all_of_it() -> None:
    assert 2**27 < device.free_memory("cpu") < device.memory_gib("cpu") * 2**30
