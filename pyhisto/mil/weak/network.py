"""The network that judges single instances: rows of features, or the pixels of tiles."""

from __future__ import annotations

import math
from typing import cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from pyhisto.errors import ConfigError
from pyhisto.features.encoders import IMAGENET_MEAN, IMAGENET_STD, PIXELS
from pyhisto.mil.weak.settings import MLP, NetworkSettings
from pyhisto.models.cascade import build_detector
from pyhisto.models.mil.base import first_layer

__all__ = ["InstanceNetwork", "build_instance_network", "tile_width"]


class InstanceNetwork(nn.Module):
    """Gives each instance the logit of its being positive.

    Parameters
    ----------
    body
        Maps scaled features (n, width) to (n, 1), or scaled images (n, 3, side, side) to (n, 1, 1, 1).
    width
        Numbers of an instance.
    side
        Of the tiles that instances are, px; None for features.
    """

    shift: Tensor
    scale: Tensor

    def __init__(self, body: nn.Module, width: int, side: int | None) -> None:
        super().__init__()
        self.body = body
        self.side = side
        shape = (width,) if side is None else (3, 1, 1)
        self.register_buffer("shift", torch.zeros(shape))
        self.register_buffer("scale", torch.ones(shape))
        if side is not None:
            self.set_scale(np.array(IMAGENET_MEAN) * 255, np.array(IMAGENET_STD) * 255)

    def set_scale(self, mean: npt.NDArray[np.float64], std: npt.NDArray[np.float64]) -> None:
        """Set what is subtracted and divided by, (width,) or (3,); what never varies is only shifted."""
        factor = np.divide(1.0, std, out=np.ones_like(std), where=std > 0)
        self.scale.copy_(torch.from_numpy(factor).view_as(self.scale))
        self.shift.copy_(torch.from_numpy(-mean * factor).view_as(self.shift))

    def forward(self, instances: Tensor) -> Tensor:
        """Map instances (n, width), float or uint8, to logits (n,); tiles in training are turned and mirrored."""
        x = instances.float()
        if self.side is not None:
            x = x.view(-1, 3, self.side, self.side)
            if self.training:
                way = int(torch.randint(8, ()))
                x = torch.rot90(x.flip(3) if way >= 4 else x, way % 4, (2, 3))
        return cast(Tensor, self.body(x * self.scale + self.shift)).flatten()


def tile_width(side: int) -> int:
    """Return the numbers of a tile of `side` px: RGB, channels first, as the encoder ``pixels`` hands them on."""
    return 3 * side * side


def build_instance_network(settings: NetworkSettings, width: int, encoder: str) -> InstanceNetwork:
    """Build a network with weights drawn from torch's global generator, but for those that are loaded.

    Parameters
    ----------
    settings
        See :class:`pyhisto.mil.weak.settings.NetworkSettings`.
    width
        Numbers of an instance.
    encoder
        What made them; :data:`pyhisto.features.encoders.PIXELS` for tiles.

    Raises
    ------
    ConfigError
        If there is no such network, it is not for such instances, or the weights do not fit.
    """
    if (settings.name == MLP) == (encoder == PIXELS):
        kind = "tiles" if encoder == PIXELS else f"features of {encoder or 'an unnamed encoder'}"
        raise ConfigError(
            f"the network {settings.name} for {kind}",
            expected="cnn or the name of an encoder" if encoder == PIXELS else MLP,
        )
    if settings.name == MLP:
        first, inner = first_layer(width, settings.hidden, settings.dropout)
        return InstanceNetwork(nn.Sequential(first, nn.Linear(inner, 1)), width, None)
    side = math.isqrt(width // 3)
    if tile_width(side) != width:
        raise ConfigError(f"tiles of {width} numbers", expected="3 for each pixel of a square")
    body = build_detector(
        settings.name,
        out_channels=1,
        patch=side,
        channels=settings.channels,
        encoder_weights=settings.encoder_weights,
    )
    return InstanceNetwork(body, width, side)
