"""Where networks run, and what the hardware there is good at."""

from __future__ import annotations

import importlib.util
import os
import re
from pathlib import Path

from pyhisto.errors import ConfigError

__all__ = [
    "UNNUMBERED",
    "available_devices",
    "check_device",
    "devices",
    "fast_bfloat16",
    "fast_float16",
    "free_memory",
    "has_openvino",
    "memory_gib",
]

NAMES = re.compile(r"([a-z]+)(?::(\d+))?")
UNNUMBERED = ("cpu", "mps")
"""Kinds of devices of which a machine has one."""


def _kind_of(device: str) -> str:
    """Return the kind of a device: ``"cuda"`` of ``"cuda:1"``."""
    return device.partition(":")[0]


def available_devices() -> list[tuple[str, str]]:
    """Return the devices of this machine as (name for ``--device``, what it is); several GPUs each with its number.

    Beside the CPU these are those of torch's accelerator: NVIDIA's and AMD's GPUs (``cuda``), Intel's (``xpu``),
    Apple's (``mps``).
    """
    import torch

    out = [("cpu", f"{torch.get_num_threads()} threads")]
    accelerator = _accelerator()
    if accelerator == "mps":
        out.append(("mps", "Apple GPU"))
    elif accelerator is not None:
        module = torch.get_device_module(accelerator)
        names = [str(module.get_device_name(i)) for i in range(module.device_count())]
        single = len(names) == 1
        out += [(accelerator if single else f"{accelerator}:{i}", name) for i, name in enumerate(names)]
    return out


def _accelerator() -> str | None:
    """Return the kind of GPU that torch works with on this machine."""
    import torch

    found = torch.accelerator.current_accelerator(check_available=True)
    return None if found is None else found.type


def devices(text: str) -> list[str]:
    """Return the devices of a comma list such as ``"cuda:0,cuda:1"``, each of which this machine has.

    Raises
    ------
    ConfigError
        If one is unknown or not available, or none is named.

    Examples
    --------
    >>> devices("cpu")
    ['cpu']
    """
    names = [name.strip() for name in text.split(",")]
    for name in names:
        check_device(name)
    return names


def check_device(device: str) -> None:
    """Refuse a device that this machine does not have.

    Parameters
    ----------
    device
        ``"cpu"`` or the kind of the machine's GPUs (``"cuda"``, ``"xpu"``, ``"mps"``), ``"cuda:<number>"`` for one of
        several.

    Raises
    ------
    ConfigError
        If it is another one, or not available.
    """
    import torch

    named = NAMES.fullmatch(device)
    kind, number = named.groups() if named else (None, None)
    known = kind is not None and kind in ("cpu", _accelerator()) and not (number and kind in UNNUMBERED)
    if not known or (number and int(number) >= torch.get_device_module(kind).device_count()):
        found = ", ".join(name for name, _ in available_devices())
        raise ConfigError(f"device {device!r} is not available", expected=f"one of {found}")


def fast_bfloat16(device: str) -> bool:
    """Return whether a device is known to compute bfloat16 faster than float32."""
    import torch

    if device.startswith("cuda"):
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device == "cpu":
        capabilities = torch.cpu.get_capabilities()
        return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
    return False


def fast_float16(device: str) -> bool:
    """Return whether a device is known to compute float16 faster than float32: NVIDIA's from Volta on, and Apple's."""
    import torch

    if device.startswith("cuda"):
        return torch.cuda.get_device_capability(device) >= (7, 0)
    return device == "mps"


def has_openvino() -> bool:
    """Return whether OpenVINO is installed, which computes networks on CPUs."""
    return importlib.util.find_spec("openvino") is not None


def memory_gib(device: str) -> float:
    """Return the memory of a device in GiB: that of the GPU, else of the machine; 8 where it cannot be known."""
    if _kind_of(device) not in UNNUMBERED:
        return _gpu_memory(device)[1] / 2**30
    if not hasattr(os, "sysconf"):
        return 8.0
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30


def _gpu_memory(device: str) -> tuple[int, int]:
    """Return the bytes of a GPU's memory, (free, all), by its driver."""
    import torch

    free, total = torch.get_device_module(device).mem_get_info(device)
    return int(free), int(total)


def free_memory(device: str) -> int:
    """Return the bytes that are free on a device: on a GPU by its driver, else what the machine can give.

    Where the operating system does not say it, half of the memory is taken to be free.
    """
    if _kind_of(device) not in UNNUMBERED:
        return _gpu_memory(device)[0]
    told = Path("/proc/meminfo")
    if device == "cpu" and told.is_file():
        found = re.search(r"^MemAvailable:\s+(\d+) kB", told.read_text("ascii"), re.MULTILINE)
        if found is not None:
            return int(found[1]) * 1024
    return int(memory_gib(device) * 2**29)
