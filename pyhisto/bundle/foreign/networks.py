"""The networks of foreign models: built by name with plain values, or TorchScript, which is code."""

from __future__ import annotations

import hashlib
import pickle
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyhisto.errors import BundleError

if TYPE_CHECKING:
    from torch import nn

__all__ = ["NETWORKS", "build_network", "file_sha256", "load_torchscript", "load_weights"]

NETWORKS = frozenset(
    {
        *("AttentionUnet", "BasicUNet", "BasicUNetPlusPlus", "BasicUnet", "DynUNet", "FlexibleUNet", "HighResNet"),
        *("HoVerNet", "Hovernet", "HoVernet", "SegResNet", "SegResNetDS", "SwinUNETR", "UNet", "UNETR", "Unet", "VNet"),
        *("DenseNet", "DenseNet121", "DenseNet169", "DenseNet201", "DenseNet264", "Densenet121", "densenet121"),
        *("EfficientNetBN", "SENet154", "SEResNet50", "SEResNet101", "SEResNet152", "SEResNext50", "ViT"),
        *("resnet10", "resnet18", "resnet34", "resnet50", "resnet101", "resnet152"),
    }
)
"""The networks of ``monai.networks.nets`` that a bundle may name, with ``TorchVisionFCModel`` on ResNets."""

RESNETS = {
    "resnet18": ("basic", (2, 2, 2, 2)),
    "resnet34": ("basic", (3, 4, 6, 3)),
    "resnet50": ("bottleneck", (3, 4, 6, 3)),
}
"""Blocks and layers of torchvision's ResNets."""

STATE_KEYS = ("model", "state_dict", "network", "net")
"""Under which key a checkpoint may hold the weights."""


def build_network(definition: Mapping[str, Any]) -> nn.Module:
    """Return the network that a bundle's ``network_def`` names, without weights.

    Parameters
    ----------
    definition
        Plain values: ``_target_`` and arguments. What would download weights is switched off.

    Raises
    ------
    BundleError
        If the network is not one of :data:`NETWORKS`, or cannot be built with these arguments.
    """
    from monai.networks import nets

    target = str(definition.get("_target_"))
    module, _, name = target.rpartition(".")
    options = {key: value for key, value in definition.items() if not key.startswith("_")}
    if module not in ("", "monai.networks.nets") or name not in {*NETWORKS, "TorchVisionFCModel"}:
        raise BundleError(
            f"network {target!r}",
            expected="a 2-D network of monai.networks.nets",
            remedy="export it with `python -m monai.bundle ckpt_export` to models/model.ts",
        )
    if name == "TorchVisionFCModel":
        return _torchvision_resnet(options)
    if "pretrained_url" in options:
        options["pretrained_url"] = None
    if options.get("pretrained"):
        options["pretrained"] = False
    try:
        network: nn.Module = getattr(nets, name)(**options)
    except (TypeError, ValueError, AttributeError, RuntimeError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise BundleError(f"network {name} cannot be built with {options} ({reason})") from error
    return network


def _torchvision_resnet(options: Mapping[str, Any]) -> nn.Module:
    """Return MONAI's ``TorchVisionFCModel`` on a ResNet, with the same names of weights, without torchvision.

    torchvision's ResNets (He 2016, "Deep residual learning for image recognition") are MONAI's with a stride of 2 in
    the first layer and shortcuts without bias.
    """
    from collections import OrderedDict

    from monai.networks.nets.resnet import ResNet, get_inplanes
    from torch import nn

    known = {"model_name", "num_classes", "use_conv", "pool", "bias", "pretrained", "weights", "dim", "in_channels"}
    name = str(options.get("model_name", "resnet18"))
    pool = options.get("pool", ("avg", {"kernel_size": 7, "stride": 1}))
    if name not in RESNETS or set(options) - known or options.get("dim", 2) != 2 or not pool or pool[0] != "avg":
        raise BundleError(
            f"network TorchVisionFCModel with {dict(options)}",
            expected=f"one of {', '.join(RESNETS)} with average pooling",
            remedy="export it with `python -m monai.bundle ckpt_export` to models/model.ts",
        )
    block, layers = RESNETS[name]
    inner = ResNet(
        block, list(layers), get_inplanes(), 2, 3, conv1_t_stride=2, bias_downsample=False, feed_forward=False
    )
    parts = (inner.conv1, inner.bn1, inner.act, inner.maxpool, inner.layer1, inner.layer2, inner.layer3, inner.layer4)
    width = 512 if block == "basic" else 2048
    classes, bias = int(options.get("num_classes", 1)), bool(options.get("bias", True))
    steps: list[tuple[str, nn.Module]] = [("features", nn.Sequential(*parts)), ("pool", nn.AvgPool2d(**pool[1]))]
    if options.get("use_conv", False):
        steps.append(("fc", nn.Conv2d(width, classes, 1, bias=bias)))
    else:
        steps += [("flat", nn.Flatten()), ("fc", nn.Linear(width, classes, bias=bias))]

    class TorchVisionFCModel(nn.Sequential):
        """Bears the name that the network goes by."""

    return TorchVisionFCModel(OrderedDict(steps))


def load_weights(network: nn.Module, path: Path) -> None:
    """Fill a network with the weights of a file, which is read as plain tensors only.

    Raises
    ------
    BundleError
        If the file holds anything but tensors, or they do not fit.
    """
    import torch

    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        for key in STATE_KEYS:
            if isinstance(state, Mapping) and isinstance(state.get(key), Mapping):
                state = state[key]
        network.load_state_dict(state)
    except (RuntimeError, pickle.UnpicklingError, EOFError, TypeError, AttributeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise BundleError(
            f"{path} does not fit its network ({reason})",
            expected="a state dict of the network in inference.json",
        ) from error


def load_torchscript(path: Path) -> nn.Module:
    """Load a TorchScript file. It is code: what it holds runs when the network does.

    Raises
    ------
    BundleError
        If it is no TorchScript.
    """
    import torch

    try:
        with warnings.catch_warnings():  # the format is what others ship, whatever torch recommends now
            warnings.simplefilter("ignore", DeprecationWarning)
            network: nn.Module = torch.jit.load(str(path), map_location="cpu")  # type: ignore[no-untyped-call]
    except (RuntimeError, ValueError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise BundleError(f"{path} is no TorchScript that can be loaded ({reason})") from error
    return network.eval()


def file_sha256(path: Path) -> str:
    """Return the sha256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
