"""U-Nets (Ronneberger 2015) with ImageNet encoders, built on MONAI's ``FlexibleUNet``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from monai.networks.nets import FlexibleUNet
from torch import nn

from pyhisto.models import encoders

__all__ = ["build_unet_densenet121", "build_unet_resnet34"]

DECODER_CHANNELS = (256, 128, 64, 32, 16)


def build_unet_densenet121(
    *,
    out_channels: int,
    decoder_channels: Sequence[int] = DECODER_CHANNELS,
    encoder_weights: str | Path = "random",
) -> nn.Module:
    """U-Net with a DenseNet-121 encoder (Huang 2017).

    Parameters
    ----------
    out_channels
        Number of classes.
    decoder_channels
        Channels of the five decoder stages, coarse to fine.
    encoder_weights
        ``"random"``, ``"imagenet"`` or a file; see :func:`pyhisto.models.encoders.load_encoder_weights`.

    Returns
    -------
    torch.nn.Module
        Maps images (B, 3, H, W), normalised float, to logits (B, out_channels, H, W).
    """
    return _build("densenet121", out_channels, decoder_channels, encoder_weights)


def build_unet_resnet34(
    *,
    out_channels: int,
    decoder_channels: Sequence[int] = DECODER_CHANNELS,
    encoder_weights: str | Path = "random",
) -> nn.Module:
    """U-Net with a ResNet-34 encoder (He 2016); parameters as in :func:`build_unet_densenet121`."""
    return _build("resnet34-imagenet", out_channels, decoder_channels, encoder_weights)


def _build(backbone: str, out_channels: int, decoder_channels: Sequence[int], encoder_weights: str | Path) -> nn.Module:
    encoders.register()
    model: nn.Module = FlexibleUNet(
        in_channels=3, out_channels=out_channels, backbone=backbone, decoder_channels=tuple(decoder_channels)
    )
    encoders.load_encoder_weights(model.encoder, encoder_weights)  # type: ignore[arg-type]
    return model
