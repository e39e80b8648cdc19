"""Where networks run, and what the hardware there is good at."""

from __future__ import annotations

import os

from pyhisto.errors import ConfigError

__all__ = ["available_devices", "check_device", "fast_bfloat16", "memory_gib"]


def available_devices() -> list[tuple[str, str]]:
    """Return the devices of this machine as (name for ``--device``, what it is)."""
    import torch

    out = [("cpu", f"{torch.get_num_threads()} threads")]
    if torch.cuda.is_available():
        out.append(("cuda", ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))))
    if torch.backends.mps.is_available():
        out.append(("mps", "Apple GPU"))
    return out


def check_device(device: str) -> None:
    """Refuse a device that this machine does not have.

    Parameters
    ----------
    device
        ``"cpu"``, ``"cuda"`` or ``"mps"``.

    Raises
    ------
    ConfigError
        If it is another one, or not available.
    """
    import torch

    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not there.get(device, False):
        found = ", ".join(name for name in there if there[name])
        raise ConfigError(f"device {device!r} is not available", expected=f"one of {found}")


def fast_bfloat16(device: str) -> bool:
    """Return whether a device computes bfloat16 faster than float32."""
    import torch

    if device == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device == "cpu":
        capabilities = torch.cpu.get_capabilities()
        return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
    return False


def memory_gib(device: str) -> float:
    """Return the memory of a device in GiB: that of the GPU, else of the machine; 8 where it cannot be known."""
    if device == "cuda":
        import torch

        return float(torch.cuda.get_device_properties(0).total_memory) / 2**30
    if not hasattr(os, "sysconf"):
        return 8.0
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
