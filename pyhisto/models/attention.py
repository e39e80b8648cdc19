"""Attention U-Net (Oktay 2018), MONAI's."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from monai.networks.nets import AttentionUnet
from torch import nn

from pyhisto.errors import ConfigError
from pyhisto.models import DECODER_CHANNELS

__all__ = ["build_attention_unet"]


def build_attention_unet(
    *,
    out_channels: int,
    decoder_channels: Sequence[int] = DECODER_CHANNELS,
    encoder_weights: str | Path = "random",
) -> nn.Module:
    """U-Net whose skip connections are gated by what the coarser stage has found.

    Parameters
    ----------
    out_channels
        Number of classes.
    decoder_channels
        Channels of the stages, coarse to fine; encoder and decoder have the same. The input is halved once less than
        there are stages.
    encoder_weights
        ``"random"``; nobody has weights for it.

    Returns
    -------
    torch.nn.Module
        Maps images (B, 3, H, W), normalised float, to logits (B, out_channels, H, W).

    Raises
    ------
    ConfigError
        If there are fewer than two stages or other weights are asked for.
    """
    if len(decoder_channels) < 2:
        raise ConfigError(f"decoder_channels {tuple(decoder_channels)}", expected="two stages or more")
    if encoder_weights != "random":
        raise ConfigError(f"encoder_weights {str(encoder_weights)!r} with attention-unet", expected="'random'")
    model: nn.Module = AttentionUnet(
        spatial_dims=2,
        in_channels=3,
        out_channels=out_channels,
        channels=tuple(reversed(decoder_channels)),
        strides=(2,) * (len(decoder_channels) - 1),
    )
    return model
