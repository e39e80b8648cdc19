"""The networks that turn tiles into features, each of which ends with the mean over its deepest stage."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from monai.networks.nets import AttentionUnet, DenseNet121, FlexibleUNet
from monai.networks.nets.resnet import ResNet, ResNetBottleneck
from torch import nn

from pyhisto.bundle.strips import StripUNet
from pyhisto.errors import BundleError
from pyhisto.models.cascade import PatchClassifier

if TYPE_CHECKING:
    from pyhisto.bundle.loaded import Bundle

__all__ = ["DenseNet121Features", "PooledStage", "ResNet50Block3", "bundle_encoder"]


class ResNet50Block3(ResNet):  # type: ignore[misc]
    """ResNet-50 (He 2016) cut after its third block, as CLAM uses it (Lu 2021): 1024 features."""

    def __init__(self) -> None:
        super().__init__(
            ResNetBottleneck,
            [3, 4, 6, 3],
            [64, 128, 256, 512],
            spatial_dims=2,
            n_input_channels=3,
            conv1_t_size=7,
            conv1_t_stride=2,
            shortcut_type="B",
            bias_downsample=False,
            feed_forward=False,
        )
        del self.layer4, self.avgpool

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map images (B, 3, H, W) to features (B, 1024)."""
        x = self.maxpool(self.act(self.bn1(self.conv1(x))))
        x = self.layer3(self.layer2(self.layer1(x)))  # (B, 1024, H/16, W/16)
        return x.mean(dim=(2, 3))


class DenseNet121Features(DenseNet121):  # type: ignore[misc]
    """DenseNet-121 (Huang 2017) without its classifier, as in KimiaNet (Riasatian 2021): 1024 features.

    As there, the mean is taken over the last batch norm without the ReLU that comes before DenseNet's own classifier.
    """

    def __init__(self) -> None:
        super().__init__(spatial_dims=2, in_channels=3, out_channels=1)
        del self.class_layers

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map images (B, 3, H, W) to features (B, 1024)."""
        features: torch.Tensor = self.features(x)  # (B, 1024, H/32, W/32)
        return features.mean(dim=(2, 3))


class PooledStage(nn.Module):
    """The mean over the deepest stage of a network.

    Parameters
    ----------
    stages
        Maps images (B, 3, H, W) to features (B, d, h, w), or to a list whose last member these are.
    """

    def __init__(self, stages: nn.Module) -> None:
        super().__init__()
        self.stages = stages

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map images (B, 3, H, W) to features (B, d)."""
        found = self.stages(x)
        deepest: torch.Tensor = found if isinstance(found, torch.Tensor) else found[-1]
        return deepest.mean(dim=(2, 3))


def bundle_encoder(bundle: Bundle) -> PooledStage:
    """Return the part of a bundle's network that sees, without what it decides.

    Raises
    ------
    BundleError
        If the network is none of this project.
    """
    network = bundle.compute.network
    if isinstance(network, FlexibleUNet | StripUNet):
        return PooledStage(network.encoder)
    if isinstance(network, PatchClassifier):
        return PooledStage(network.features)
    if isinstance(network, AttentionUnet):
        return PooledStage(_downward_path(network))
    raise BundleError(
        f"{bundle.path}: no encoder is known in a {type(network).__name__}",
        expected="a U-Net, an Attention U-Net or a detector of patches",
        remedy="export the encoder as TorchScript",
    )


def _downward_path(network: AttentionUnet) -> nn.Sequential:
    """Return the convolutions of an Attention U-Net from its input down to its bottom."""
    steps: list[nn.Module] = [network.model[0]]
    layer: Any = network.model[1]
    while layer is not None:
        inner: Any = layer.submodule
        block, layer = inner if isinstance(inner, nn.Sequential) else (inner, None)
        steps.append(block)
    return nn.Sequential(*steps)
