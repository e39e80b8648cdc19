"""Encoders for MONAI's ``FlexibleUNet`` that take ImageNet weights in 2-D.

MONAI's own ``ResNetEncoder`` follows MedicalNet (shortcuts without weights in ResNet-34), so that the weights everybody
has for ResNet-34 do not fit it; and it has no DenseNet encoder. Both are registered here.
"""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any, ClassVar

import torch
from monai.networks.blocks import BaseEncoder
from monai.networks.nets import DenseNet121
from monai.networks.nets.flexible_unet import FLEXUNET_BACKBONE
from monai.networks.nets.resnet import ResNet, ResNetBlock
from torch import nn

from pyhisto.errors import ConfigError

__all__ = ["DenseNet121Encoder", "ResNet34Encoder", "load_encoder_weights"]

RESNET34_URL = "https://download.pytorch.org/models/resnet34-b627a593.pth"


class _Encoder(BaseEncoder):  # type: ignore[misc]
    """What ``FlexibleUNet`` asks of an encoder, answered from two class attributes."""

    NAME: ClassVar[str]
    CHANNELS: ClassVar[tuple[int, ...]]

    @classmethod
    def get_encoder_parameters(cls) -> list[dict[str, Any]]:
        """Return the constructor arguments of the encoder."""
        return [{"spatial_dims": 2, "in_channels": 3, "pretrained": False}]

    @classmethod
    def num_channels_per_output(cls) -> list[tuple[int, ...]]:
        """Return the channels of the features."""
        return [cls.CHANNELS]

    @classmethod
    def num_outputs(cls) -> list[int]:
        """Return the number of features."""
        return [len(cls.CHANNELS)]

    @classmethod
    def get_encoder_names(cls) -> list[str]:
        """Return the name under which ``FlexibleUNet`` finds the encoder."""
        return [cls.NAME]


class DenseNet121Encoder(DenseNet121, _Encoder):  # type: ignore[misc]
    """DenseNet-121 (Huang 2017) that returns its five resolutions.

    The taps are the stem after its ReLU and each dense block; after a transition's norm and ReLU, where the channels
    of a block are first used, so that the skip carries what the next block sees.
    """

    NAME = "densenet121"
    CHANNELS = (64, 256, 512, 1024, 1024)

    def __init__(self, spatial_dims: int = 2, in_channels: int = 3, pretrained: bool = False, **options: Any) -> None:
        super().__init__(spatial_dims=spatial_dims, in_channels=in_channels, out_channels=1, **options)
        del self.class_layers
        if pretrained:
            load_encoder_weights(self, "imagenet")

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Map images (B, C, H, W) to features with 64, 256, 512, 1024, 1024 channels at strides 2, 4, 8, 16, 32."""
        layers = self.features
        x = layers.relu0(layers.norm0(layers.conv0(x)))  # (B, 64, H/2, W/2)
        features = [x]
        x = layers.pool0(x)
        for number in (1, 2, 3):
            x = getattr(layers, f"denseblock{number}")(x)
            transition = getattr(layers, f"transition{number}")
            x = transition.relu(transition.norm(x))  # (B, 256 / 512 / 1024, H/4 .. H/16)
            features.append(x)
            x = transition.pool(transition.conv(x))
        x = torch.relu(layers.norm5(layers.denseblock4(x)))  # (B, 1024, H/32, W/32)
        features.append(x)
        return features


class ResNet34Encoder(ResNet, _Encoder):  # type: ignore[misc]
    """ResNet-34 (He 2016) with projection shortcuts, layer by layer the network that ImageNet weights exist for."""

    NAME = "resnet34-imagenet"  # MONAI keeps "resnet34" for its own
    CHANNELS = (64, 64, 128, 256, 512)

    def __init__(self, spatial_dims: int = 2, in_channels: int = 3, pretrained: bool = False, **options: Any) -> None:
        super().__init__(
            ResNetBlock,
            [3, 4, 6, 3],
            [64, 128, 256, 512],
            spatial_dims=spatial_dims,
            n_input_channels=in_channels,
            conv1_t_size=7,
            conv1_t_stride=2,
            shortcut_type="B",
            bias_downsample=False,
            feed_forward=False,
            **options,
        )
        del self.avgpool  # of the classifier
        if pretrained:
            load_encoder_weights(self, "imagenet")

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Map images (B, C, H, W) to features with 64, 64, 128, 256, 512 channels at strides 2, 4, 8, 16, 32."""
        x = self.act(self.bn1(self.conv1(x)))  # (B, 64, H/2, W/2)
        features = [x]
        x = self.maxpool(x)
        for layer in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = layer(x)
            features.append(x)
        return features


def load_encoder_weights(encoder: nn.Module, source: str | Path) -> bool:
    """Fill an encoder with weights.

    Parameters
    ----------
    encoder
        A :class:`DenseNet121Encoder`, a :class:`ResNet34Encoder` or any other encoder of ``FlexibleUNet``.
    source
        ``"random"`` leaves it as it is; ``"imagenet"`` downloads (MONAI's own download for DenseNet-121, torch hub's
        for ResNet-34, none for others); anything else is a file with a state dict, named as torchvision or MONAI name
        the layers.

    Returns
    -------
    bool
        Whether weights were loaded. Without a network ``"imagenet"`` warns and leaves random weights.

    Raises
    ------
    ConfigError
        If the file does not exist, is no state dict, or does not hold every layer of the encoder, or ImageNet weights
        are asked for an encoder that has none.
    """
    if source == "random":
        return False
    if source == "imagenet":
        if not isinstance(encoder, DenseNet121Encoder | ResNet34Encoder):
            name = type(encoder).__name__.removesuffix("Encoder")
            raise ConfigError(f"no ImageNet weights for {name}", expected="'random' or a file")
        state = _download(encoder)
        if state is None:
            return False
        origin = "ImageNet weights"
    else:
        state, origin = _read_state(Path(source)), str(source)
    state = {_own_name(name): value for name, value in state.items()}
    wanted = encoder.state_dict()
    fitting = {name: value for name, value in state.items() if name in wanted and wanted[name].shape == value.shape}
    missing = [name for name in wanted if name not in fitting and not name.endswith("num_batches_tracked")]
    if missing:
        raise ConfigError(
            f"{origin}: no fitting weights for layer {missing[0]} ({len(missing)} of {len(wanted)} missing)",
            expected=f"weights of {type(encoder).__name__.removesuffix('Encoder')} as torchvision or MONAI name them",
        )
    encoder.load_state_dict(fitting, strict=False)
    return True


def _download(encoder: nn.Module) -> dict[str, torch.Tensor] | None:
    try:
        if isinstance(encoder, DenseNet121Encoder):
            return dict(DenseNet121(2, 3, 1, pretrained=True).state_dict())
        return dict(torch.hub.load_state_dict_from_url(RESNET34_URL, check_hash=True, weights_only=True))
    except (OSError, RuntimeError) as error:
        warnings.warn(
            f"ImageNet weights could not be downloaded ({error}); the encoder starts from random weights. "
            "Give a local file with --encoder-weights.",
            stacklevel=3,
        )
        return None


def _read_state(path: Path) -> dict[str, torch.Tensor]:
    if not path.is_file():
        raise ConfigError(f"encoder weights {path} do not exist", expected="a file, 'imagenet' or 'random'")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, ValueError, KeyError, OSError, _unpickling_error()) as error:
        raise ConfigError(f"encoder weights {path} cannot be read ({type(error).__name__})") from error
    if isinstance(state, dict) and isinstance(state.get("state_dict"), dict):
        state = state["state_dict"]
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise ConfigError(f"encoder weights {path} hold no state dict", expected="layer names with tensors")
    return state


def _unpickling_error() -> type[Exception]:
    from pickle import UnpicklingError

    return UnpicklingError


def _own_name(name: str) -> str:
    """Translate a layer name of torchvision or KimiaNet (or with an ``encoder.`` prefix) into MONAI's."""
    name = re.sub(r"^(module\.|encoder\.|backbone\.)+", "", name)
    name = re.sub(r"^model\.0\.", "features.", name)
    return re.sub(r"(denselayer\d+)\.(norm|relu|conv)\.?([12])\.", r"\1.layers.\2\3.", name)


def register() -> None:
    """Make both encoders known to ``FlexibleUNet``."""
    for encoder in (DenseNet121Encoder, ResNet34Encoder):
        if encoder.NAME not in FLEXUNET_BACKBONE.register_dict:
            FLEXUNET_BACKBONE.register_class(encoder)


register()
