"""Networks in reduced precision whose outputs are not rounded to it: encoders in 16 bits, ends of decoders in 32.

What lies beyond the end of a tile reaches far into it, but hardly changes anything there. In 16 bits hardly anything
is enough to round a number otherwise; from one layer to the next this grows, until an outline moves. The last stages of
decoders have few channels, and are hardly faster in 16 bits than in 32.
"""

from __future__ import annotations

import torch
from monai.networks.nets import FlexibleUNet
from torch import nn

from pyhisto.bundle.strips import StripUNet

__all__ = ["reduce_precision"]

CHANNELS = 64
"""The last decoder stages of U-Nets are computed in float32 as far as none of their convolutions sees more channels:
with more, 16 bits are faster."""


def reduce_precision(network: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Convert a network in place to a type of 16 bits, but for the ends of MONAI's U-Nets in it; return it.

    Parameters
    ----------
    network
        In evaluation mode. It takes inputs of that type from now on; outputs of U-Nets are float32.
    dtype
        ``torch.bfloat16`` or ``torch.float16``.
    """
    for unet in list(network.modules()):
        if isinstance(unet, FlexibleUNet | StripUNet):
            blocks = unet.decoder.blocks
            for number in reversed(range(len(blocks))):
                if not _is_narrow(blocks[number]):
                    break
                blocks[number] = _precise(blocks[number])
            unet.segmentation_head = _precise(unet.segmentation_head)
    _convert(network, dtype)
    return network


def _is_narrow(stage: nn.Module) -> bool:
    """Return whether no convolution of a stage sees many channels."""
    convolutions = [module for module in stage.modules() if isinstance(module, nn.Conv2d | nn.ConvTranspose2d)]
    return all(module.in_channels <= CHANNELS for module in convolutions)


def _precise(module: nn.Module) -> Precise:
    return module if isinstance(module, Precise) else Precise(module)


def _convert(module: nn.Module, dtype: torch.dtype) -> None:
    """Convert all of a network that is not to stay in float32."""
    if isinstance(module, Precise):
        return
    for parameter in module.parameters(recurse=False):
        parameter.data = parameter.data.to(dtype)
    for name, buffer in list(module.named_buffers(recurse=False)):
        if buffer.is_floating_point():
            setattr(module, name, buffer.to(dtype))
    for child in module.children():
        _convert(child, dtype)


class Precise(nn.Module):
    """A part of a network in float32, whatever it is given.

    Parameters
    ----------
    module
        Converted in place.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module.float()

    def forward(self, *maps: torch.Tensor | None) -> torch.Tensor:
        """Return what the part makes of some maps, float32."""
        out: torch.Tensor = self.module(*[None if each is None else each.float() for each in maps])
        return out
