"""U-Nets (Ronneberger 2015) on MONAI's ``FlexibleUNet``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from monai.networks.nets import FlexibleUNet
from monai.networks.nets.flexible_unet import FLEXUNET_BACKBONE
from torch import nn

from pyhisto.errors import ConfigError
from pyhisto.models import DECODER_CHANNELS, encoders

__all__ = ["build_unet", "build_unet_densenet121", "build_unet_resnet34"]


def build_unet(
    *,
    backbone: str,
    out_channels: int,
    decoder_channels: Sequence[int] = DECODER_CHANNELS,
    encoder_weights: str | Path = "random",
) -> nn.Module:
    """U-Net on any encoder that MONAI's ``FlexibleUNet`` knows.

    Parameters
    ----------
    backbone
        ``"efficientnet-b0"`` to ``"efficientnet-b8"`` (Tan 2019), MONAI's ``"resnet10"`` to ``"resnet200"``, or one of
        the encoders of :mod:`pyhisto.models.encoders`.
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

    Raises
    ------
    ConfigError
        If there is no such backbone, there are not five decoder stages, or the weights do not fit.
    """
    encoders.register()
    if backbone not in FLEXUNET_BACKBONE.register_dict:
        raise ConfigError(
            f"unknown backbone {backbone!r}", expected=f"one of {', '.join(FLEXUNET_BACKBONE.register_dict)}"
        )
    if len(decoder_channels) != 5:
        raise ConfigError(f"decoder_channels {tuple(decoder_channels)}", expected="five stages")
    model: nn.Module = FlexibleUNet(
        in_channels=3, out_channels=out_channels, backbone=backbone, decoder_channels=tuple(decoder_channels)
    )
    encoders.load_encoder_weights(model.encoder, encoder_weights)  # type: ignore[arg-type]
    return model


def build_unet_densenet121(
    *,
    out_channels: int,
    decoder_channels: Sequence[int] = DECODER_CHANNELS,
    encoder_weights: str | Path = "random",
) -> nn.Module:
    """U-Net with a DenseNet-121 encoder (Huang 2017); parameters as in :func:`build_unet`."""
    return build_unet(
        backbone="densenet121",
        out_channels=out_channels,
        decoder_channels=decoder_channels,
        encoder_weights=encoder_weights,
    )


def build_unet_resnet34(
    *,
    out_channels: int,
    decoder_channels: Sequence[int] = DECODER_CHANNELS,
    encoder_weights: str | Path = "random",
) -> nn.Module:
    """U-Net with a ResNet-34 encoder (He 2016) that takes ImageNet weights; parameters as in :func:`build_unet`."""
    return build_unet(
        backbone="resnet34-imagenet",
        out_channels=out_channels,
        decoder_channels=decoder_channels,
        encoder_weights=encoder_weights,
    )
