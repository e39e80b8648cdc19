"""A coarse-to-fine network in the manner of H2G-Net (Pedersen 2022): patches are detected, then the heatmap is refined.

The detector classifies square patches at high magnification. The refiner is a U-Net that sees the slide at low
magnification and, as further channels, the probability of each class but background that the detector gave the patch.
Where nothing was detected yet, these channels are 0.5, which the refiner meets in a share of its training patches, so
that it can propose places on its own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from monai.networks.nets.flexible_unet import FLEXUNET_BACKBONE
from torch import nn

from pyhisto.errors import ConfigError
from pyhisto.heatmap import HEAT_MEAN, HEAT_STD
from pyhisto.models import build_model, encoders

__all__ = [
    "Cascade",
    "PatchClassifier",
    "build_cascade",
    "build_detector",
    "build_refiner",
    "golden_side",
]


class PatchClassifier(nn.Module):
    """Classifies the square patches of an image, each by itself.

    Parameters
    ----------
    features
        Maps patches (N, 3, patch, patch) to features (N, width, h, w), or to a list whose last member these are.
    width, out_channels, patch
        Channels of the features, number of classes, side of a patch in px.
    """

    def __init__(self, features: nn.Module, *, width: int, out_channels: int, patch: int) -> None:
        super().__init__()
        self.features = features
        self.head = nn.Linear(width, out_channels)
        self.patch = patch

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map images (B, 3, H, W) to logits (B, out_channels, H / patch, W / patch)."""
        batch, channels, height, width = x.shape
        side = self.patch
        if height % side or width % side:
            raise ConfigError(f"an image of {width} x {height} px", expected=f"a multiple of the patches of {side} px")
        rows, columns = height // side, width // side
        x = x.reshape(batch, channels, rows, side, columns, side).permute(0, 2, 4, 1, 3, 5)
        found = self.features(x.reshape(-1, channels, side, side))  # (B rows columns, width, h, w)
        found = found if isinstance(found, torch.Tensor) else found[-1]
        logits: torch.Tensor = self.head(found.mean(dim=(2, 3)))
        return logits.reshape(batch, rows, columns, -1).permute(0, 3, 1, 2)


class Cascade(nn.Module):
    """Both networks, from high magnification to the segmentation at low magnification.

    Parameters
    ----------
    detector, refiner
        The networks.
    ratio
        Pixels at high magnification along a side of one at low magnification.
    """

    def __init__(self, detector: nn.Module, refiner: nn.Module, *, ratio: int) -> None:
        super().__init__()
        self.detector = detector
        self.refiner = refiner
        self.ratio = ratio

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map normalised images (B, 3, H, W) to logits (B, classes or regions, H / ratio, W / ratio)."""
        heat = torch.softmax(self.detector(x).float(), dim=1)[:, 1:]  # (B, classes - 1, rows, columns)
        low = F.avg_pool2d(x, self.ratio)
        heat = F.interpolate(heat, size=low.shape[2:], mode="bilinear", align_corners=False)
        logits: torch.Tensor = self.refiner(torch.cat([low, (heat - HEAT_MEAN) / HEAT_STD], dim=1))
        return logits


def build_detector(
    name: str,
    *,
    out_channels: int,
    patch: int,
    channels: Sequence[int] = (),
    encoder_weights: str | Path = "random",
) -> PatchClassifier:
    """Build the network that classifies patches.

    Parameters
    ----------
    name
        ``"cnn"``: a convolution of stride 2 for each of `channels`; else an encoder of MONAI's ``FlexibleUNet`` or of
        :mod:`pyhisto.models.encoders`, such as ``"efficientnet-b0"`` or ``"resnet34-imagenet"``. The mean of its
        coarsest features goes through one linear layer.
    out_channels
        Number of classes, background included.
    patch
        Side of a patch, px.
    channels
        Of the layers of ``"cnn"``.
    encoder_weights
        As in :func:`pyhisto.models.encoders.load_encoder_weights`.

    Raises
    ------
    ConfigError
        If there is no such encoder, the patch is too small for it, or the weights do not fit.
    """
    strides = len(channels) if name == "cnn" else 5
    if patch < 2**strides:
        raise ConfigError(f"patches of {patch} px for the detector {name}", expected=f"{2**strides} px or more")
    if name == "cnn":
        if not channels:
            raise ConfigError("the detector cnn without channels", expected="those of each layer")
        if encoder_weights != "random":
            raise ConfigError(f"encoder_weights {str(encoder_weights)!r} with the detector cnn", expected="'random'")
        steps = [_step(before, after) for before, after in zip((3, *channels), channels, strict=False)]
        return PatchClassifier(nn.Sequential(*steps), width=channels[-1], out_channels=out_channels, patch=patch)
    encoders.register()
    known = FLEXUNET_BACKBONE.register_dict
    if name not in known:
        raise ConfigError(f"unknown detector {name!r}", expected=f"one of cnn, {', '.join(known)}")
    kind = known[name]
    place = kind["type"].get_encoder_names().index(name)
    plain = {"spatial_dims": 2, "in_channels": 3, "pretrained": False}
    encoder = kind["type"](**{**kind["type"].get_encoder_parameters()[place], **plain})
    encoders.load_encoder_weights(encoder, encoder_weights)
    width = kind["type"].num_channels_per_output()[place][-1]
    return PatchClassifier(encoder, width=width, out_channels=out_channels, patch=patch)


def _step(before: int, after: int) -> nn.Sequential:
    convolution = nn.Conv2d(before, after, 3, stride=2, padding=1, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(after), nn.ReLU())


def build_refiner(name: str, *, heat_channels: int, **options: Any) -> nn.Module:
    """Build a network of :func:`pyhisto.models.build_model` that sees `heat_channels` more channels than RGB.

    What its first convolution does with red, green and blue stays as it is.

    Returns
    -------
    torch.nn.Module
        Maps (B, 3 + heat_channels, H, W) to logits (B, out_channels, H, W).
    """
    network = build_model(name, **options)
    for owner in network.modules():
        for key, layer in owner.named_children():
            if isinstance(layer, nn.Conv2d) and layer.in_channels == 3:
                setattr(owner, key, _widened(layer, heat_channels))
                return network
    raise ConfigError(f"the network {name} has no convolution of three channels", expected="another architecture")


def _widened(layer: nn.Conv2d, more: int) -> nn.Conv2d:
    wide = type(layer)(
        layer.in_channels + more,
        layer.out_channels,
        layer.kernel_size,  # type: ignore[arg-type]
        stride=layer.stride,  # type: ignore[arg-type]
        padding=layer.padding,  # type: ignore[arg-type]
        bias=layer.bias is not None,
    )
    with torch.no_grad():
        wide.weight[:, : layer.in_channels] = layer.weight
        if layer.bias is not None and wide.bias is not None:
            wide.bias.copy_(layer.bias)
    return wide


def build_cascade(
    *,
    detector: Mapping[str, Any],
    refiner: Mapping[str, Any],
    ratio: int,
) -> Cascade:
    """Build both networks.

    Parameters
    ----------
    detector, refiner
        Arguments of :func:`build_detector` and of :func:`build_refiner`.
    ratio
        As in :class:`Cascade`.
    """
    return Cascade(build_detector(**detector), build_refiner(**refiner), ratio=ratio)


def golden_side(patch: int, ratio: int, divisor: int) -> int:
    """Return the least side of an image, px at high magnification, with two patches and two strides of the refiner.

    >>> golden_side(96, 4, 32)
    768
    """
    return 2 * math.lcm(patch, ratio * divisor)
