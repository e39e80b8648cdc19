"""Networks by name. Importing this package loads no torch; :func:`build_model` does.

How to add one: write a builder function in a module beside this file and enter it into :data:`MODELS`.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pyhisto.errors import ConfigError

if TYPE_CHECKING:
    from torch import nn

__all__ = ["BACKBONE_PREFIX", "DECODER_CHANNELS", "MODELS", "build_model", "check_tile_size", "tile_divisor"]

MODELS = {
    "attention-unet": "pyhisto.models.attention:build_attention_unet",
    "unet-densenet121": "pyhisto.models.unet:build_unet_densenet121",
    "unet-resnet34": "pyhisto.models.unet:build_unet_resnet34",
}
"""Name of a network to ``module:function`` that builds it."""

BACKBONE_PREFIX = "unet:"
"""Begins the name of a U-Net on any other encoder of MONAI's ``FlexibleUNet``, such as ``unet:efficientnet-b0``."""

DECODER_CHANNELS = (256, 128, 64, 32, 16)
"""Channels of the decoder stages, coarse to fine, where nothing else is said."""


def build_model(name: str, **options: Any) -> nn.Module:
    """Build a network by its name.

    Parameters
    ----------
    name
        One of :data:`MODELS`, or :data:`BACKBONE_PREFIX` and a backbone of MONAI's ``FlexibleUNet``.
    **options
        Keyword arguments of the builder function.

    Returns
    -------
    torch.nn.Module
        Maps images (B, 3, H, W) to logits (B, out_channels, H, W); raises ConfigError on an input whose sides do not
        pass :func:`check_tile_size`.

    Raises
    ------
    ConfigError
        If there is no such network or backbone, or the builder does not take an option or its value.
    """
    if name.startswith(BACKBONE_PREFIX):
        module, function = "pyhisto.models.unet", "build_unet"
        options = {"backbone": name.removeprefix(BACKBONE_PREFIX), **options}
    elif name in MODELS:
        module, function = MODELS[name].split(":")
    else:
        raise ConfigError(
            f"unknown model {name!r}", expected=f"one of {', '.join(sorted(MODELS))}, or {BACKBONE_PREFIX}<backbone>"
        )
    build = getattr(importlib.import_module(module), function)
    try:
        model: nn.Module = build(**options)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"model {name!r} cannot be built with {options}: {error}") from error
    divisor = tile_divisor(name, options.get("decoder_channels", DECODER_CHANNELS))
    model.register_forward_pre_hook(functools.partial(_check_input, name, divisor))
    return model


def check_tile_size(name: str, size: int, decoder_channels: Sequence[int] = DECODER_CHANNELS) -> None:
    """Refuse tiles that a network cannot halve and double again to the same size; needs no torch.

    Parameters
    ----------
    name
        As for :func:`build_model`.
    size
        Side of the tiles, px.
    decoder_channels
        Of the network; their number decides how often ``attention-unet`` halves its input. U-Nets halve it five times.

    Raises
    ------
    ConfigError
        If the side is not divisible.
    """
    _check_sides(name, tile_divisor(name, decoder_channels), (size,))


def tile_divisor(name: str, decoder_channels: Sequence[int] = DECODER_CHANNELS) -> int:
    """Return what the sides of a network's input are multiples of, px; needs no torch.

    Parameters
    ----------
    name, decoder_channels
        As for :func:`check_tile_size`.
    """
    halvings = len(decoder_channels) - 1 if name == "attention-unet" else 5
    return 1 << halvings


def _check_input(name: str, divisor: int, model: nn.Module, inputs: tuple[Any, ...]) -> None:
    """Check the sides of a network's input (B, 3, H, W); a forward pre-hook."""
    del model
    _check_sides(name, divisor, inputs[0].shape[2:])


def _check_sides(name: str, divisor: int, sides: Sequence[int]) -> None:
    for side in sides:
        if side < divisor or side % divisor:
            lower = max(divisor, side // divisor * divisor)
            raise ConfigError(
                f"tiles with a side of {side} px for {name}",
                expected=f"a multiple of {divisor}",
                remedy=f"choose {lower} or {lower + divisor}",
            )
