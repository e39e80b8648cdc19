"""Networks and images that tests of engines share."""

from __future__ import annotations

import torch
from torch import nn

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


def image(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))
