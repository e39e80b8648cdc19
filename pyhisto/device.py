"""Where networks run, and what the hardware there is good at."""

from __future__ import annotations

import importlib.util
import os
import re
from pathlib import Path

from pyhisto.errors import ConfigError

__all__ = [
    "available_devices",
    "check_device",
    "devices",
    "fast_bfloat16",
    "fast_float16",
    "free_memory",
    "has_openvino",
    "memory_gib",
]

NAMES = re.compile(r"cpu|mps|cuda(:\d+)?")


def available_devices() -> list[tuple[str, str]]:
    """Return the devices of this machine as (name for ``--device``, what it is); several GPUs each with its number."""
    import torch

    out = [("cpu", f"{torch.get_num_threads()} threads")]
    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        out += [("cuda", names[0])] if len(names) == 1 else [(f"cuda:{i}", name) for i, name in enumerate(names)]
    if torch.backends.mps.is_available():
        out.append(("mps", "Apple GPU"))
    return out


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
        ``"cpu"``, ``"cuda"``, ``"cuda:<number>"`` or ``"mps"``.

    Raises
    ------
    ConfigError
        If it is another one, or not available.
    """
    import torch

    kind, _, number = device.partition(":")
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    known = NAMES.fullmatch(device) is not None and there[kind]
    if not known or (number and int(number) >= torch.cuda.device_count()):
        found = ", ".join(name for name, _ in available_devices())
        raise ConfigError(f"device {device!r} is not available", expected=f"one of {found}")


def fast_bfloat16(device: str) -> bool:
    """Return whether a device computes bfloat16 faster than float32."""
    import torch

    if device.startswith("cuda"):
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device == "cpu":
        capabilities = torch.cpu.get_capabilities()
        return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
    return False


def fast_float16(device: str) -> bool:
    """Return whether a device computes float16 faster than float32: NVIDIA's from Volta on, and Apple's."""
    import torch

    if device.startswith("cuda"):
        return torch.cuda.get_device_capability(device) >= (7, 0)
    return device == "mps"


def has_openvino() -> bool:
    """Return whether OpenVINO is installed, which computes networks on CPUs."""
    return importlib.util.find_spec("openvino") is not None


def memory_gib(device: str) -> float:
    """Return the memory of a device in GiB: that of the GPU, else of the machine; 8 where it cannot be known."""
    if device.startswith("cuda"):
        import torch

        return float(torch.cuda.get_device_properties(device).total_memory) / 2**30
    if not hasattr(os, "sysconf"):
        return 8.0
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30


def free_memory(device: str) -> int:
    """Return the bytes that are free on a device: on a GPU by its driver, else what the machine can give.

    Where the operating system does not say it, half of the memory is taken to be free.
    """
    if device.startswith("cuda"):
        import torch

        return int(torch.cuda.mem_get_info(device)[0])
    told = Path("/proc/meminfo")
    if device == "cpu" and told.is_file():
        found = re.search(r"^MemAvailable:\s+(\d+) kB", told.read_text("ascii"), re.MULTILINE)
        if found is not None:
            return int(found[1]) * 1024
    return int(memory_gib(device) * 2**29)
