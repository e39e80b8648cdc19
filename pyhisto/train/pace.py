"""How long a training step takes on this machine."""

from __future__ import annotations

import time

import torch
from torch.optim import AdamW

from pyhisto.device import fast_bfloat16
from pyhisto.losses import LossSettings, build_loss
from pyhisto.models import build_model

__all__ = ["time_step"]

TIMED_STEPS = 2
PROBE_BATCH = 2
"""Patches in a timed step on a CPU, where time goes with the number of patches."""


def time_step(
    architecture: str,
    *,
    decoder_channels: tuple[int, ...],
    size: int,
    batch_size: int,
    classes: int,
    device: str = "cpu",
) -> float:
    """Time real training steps of a network on random patches, after one that warms up.

    Parameters
    ----------
    architecture, decoder_channels
        The network.
    size, batch_size
        Side of a patch in px, and patches in a step.
    classes
        Number of classes, background included.
    device
        ``"cpu"``, ``"cuda"`` or ``"mps"``.

    Returns
    -------
    float
        Seconds for a step of `batch_size` patches, the faster of two; reading patches is not in it.
    """
    state = torch.get_rng_state()
    batch = min(batch_size, PROBE_BATCH) if device == "cpu" else batch_size
    model = build_model(architecture, out_channels=classes, decoder_channels=decoder_channels)
    model = model.to(device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    criterion = build_loss(LossSettings(), classes=classes).to(device)
    optimizer = AdamW(model.parameters())
    x = torch.randn((batch, 3, size, size), device=device).contiguous(memory_format=torch.channels_last)
    labels = torch.randint(0, classes, (batch, size, size), device=device)
    taken = []
    for _ in range(1 + TIMED_STEPS):
        begin = time.perf_counter()
        with torch.autocast(device, torch.bfloat16, enabled=fast_bfloat16(device)):
            logits = model(x)
        optimizer.zero_grad(set_to_none=True)
        loss = criterion(logits.float(), labels)
        loss.backward()
        optimizer.step()
        loss.item()  # waits for the device
        taken.append(time.perf_counter() - begin)
    torch.set_rng_state(state)
    return min(taken[1:]) * batch_size / batch
