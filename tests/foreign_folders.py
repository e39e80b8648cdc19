"""Model folders of others, written in exactly their layouts, with networks whose output follows from the colours."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

TRANSFORM = [
    {"name": "Resize", "arguments": {"size": 16}},
    {"name": "ToTensor"},
    {"name": "Normalize", "arguments": {"mean": [0.5, 0.25, 0.0], "std": [0.5, 0.25, 1.0]}},
]


class ChannelMeans(nn.Module):
    """Gives the mean of the first `n` input channels as logits."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.n = n

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean(dim=(2, 3))[:, : self.n]


class Colours(nn.Module):
    """Gives four times the first `n` input channels as logits of every pixel."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.n = n

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 4 * x[:, : self.n]


class HoverColours(nn.Module):
    """A HoVer-Net that reads its branches off the colours: blue is glass, red and green are the distances.

    Of 64 px it gives the middle 40. The type is 1 where blue is 0, and 2 where it is 0.2.
    """

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        x = x[:, :, 12:52, 12:52]
        nucleus = 10 * (0.5 - x[:, 2:3])
        second = 20 * (x[:, 2:3] - 0.1) * (x[:, 2:3] < 0.5)
        return {
            "nucleus_prediction": torch.cat([-nucleus, nucleus], dim=1),
            "horizontal_vertical": 2 * x[:, :2] - 1,
            "type_prediction": torch.cat([-nucleus, nucleus * 0.1 - second, nucleus * 0.1 + second], dim=1),
        }


def save_torchscript(network: nn.Module, path: Path) -> None:
    """Write a network as TorchScript."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.save(torch.jit.script(network.eval()), str(path))


def wsinfer_config(classes: Sequence[str] = ("Tumor", "Other"), **changes: Any) -> dict[str, Any]:
    """Return a configuration of WSInfer's version 1.0: patches of 16 px at 1 µm/px."""
    config = {
        "spec_version": "1.0",
        "architecture": "resnet34",
        "num_classes": len(classes),
        "class_names": list(classes),
        "patch_size_pixels": 16,
        "spacing_um_px": 1.0,
        "transform": TRANSFORM,
    }
    return config | changes


def write_wsinfer(folder: Path, network: nn.Module | None = None, **config: Any) -> Path:
    """Write a WSInfer model folder."""
    folder.mkdir(parents=True)
    described = wsinfer_config(**config)
    (folder / "config.json").write_text(json.dumps(described))
    save_torchscript(network or ChannelMeans(described["num_classes"]), folder / "torchscript_model.pt")
    return folder


def monai_metadata(
    channels: Mapping[str, str], *, format: str = "segmentation", shape: Sequence[Any] = (32, 32), inputs: int = 3
) -> dict[str, Any]:
    """Return a bundle's metadata with one RGB image in and one output."""
    return {
        "schema": "https://example.org/meta_schema.json",
        "version": "0.1.0",
        "monai_version": "1.4.0",
        "pytorch_version": "2.4.0",
        "numpy_version": "1.24.4",
        "task": "a test",
        "network_data_format": {
            "inputs": {
                "image": {
                    "type": "image",
                    "format": "RGB",
                    "num_channels": inputs,
                    "spatial_shape": list(shape),
                    "dtype": "float32",
                    "value_range": [0, 255],
                    "is_patch_data": True,
                    "channel_def": {"0": "R", "1": "G", "2": "B"},
                }
            },
            "outputs": {
                "pred": {
                    "type": "probabilities",
                    "format": format,
                    "num_channels": len(channels),
                    "spatial_shape": list(shape),
                    "dtype": "float32",
                    "channel_def": dict(channels),
                }
            },
        },
    }


SCALE = {"_target_": "ScaleIntensityRanged", "keys": "image", "a_min": 0.0, "a_max": 255.0, "b_min": -1.0, "b_max": 1.0}


def monai_config(network: Any, *, activation: Mapping[str, Any], scale: Mapping[str, Any] = SCALE) -> dict[str, Any]:
    """Return a bundle's configuration of inference, with expressions where the zoo's have them."""
    return {
        "imports": ["$import glob", "$import os"],
        "bundle_root": ".",
        "out": 3,
        "sizes": {"in": 3, "list": [7, 3]},
        "device": "$torch.device('cuda:0' if torch.cuda.is_available() else 'cpu')",
        "network_def": network,
        "network": "$@network_def.to(@device)",
        "preprocessing": {
            "_target_": "Compose",
            "transforms": [
                {"_target_": "LoadImaged", "keys": "image", "reader": "$monai.data.PILReader"},
                {"_target_": "EnsureChannelFirstd", "keys": "image"},
                {"_target_": "CastToTyped", "keys": "image", "dtype": "float32"},
                scale,
            ],
        },
        "inferer": {"_target_": "SimpleInferer"},
        "postprocessing": {
            "_target_": "Compose",
            "transforms": [
                {"_target_": "EnsureTyped", "keys": "pred"},
                activation,
                {"_target_": "SaveImaged", "keys": "pred", "output_dir": "$os.path.join(@bundle_root, 'eval')"},
            ],
        },
    }


SOFTMAX = {"_target_": "Activationsd", "keys": "pred", "softmax": True}
SIGMOID = {"_target_": "Activationsd", "keys": "pred", "sigmoid": True}
UNET = {
    "_target_": "UNet",
    "spatial_dims": 2,
    "in_channels": "@sizes::in",
    "out_channels": "@out",
    "channels": [4, 8],
    "strides": [2],
}


def write_monai(
    folder: Path,
    metadata: Mapping[str, Any],
    config: Mapping[str, Any],
    *,
    weights: nn.Module | None = None,
    script: nn.Module | None = None,
) -> Path:
    """Write a MONAI bundle in the model zoo's layout."""
    (folder / "configs").mkdir(parents=True)
    (folder / "models").mkdir()
    (folder / "configs" / "metadata.json").write_text(json.dumps(metadata))
    (folder / "configs" / "inference.json").write_text(json.dumps(config))
    if weights is not None:
        torch.save(weights.state_dict(), folder / "models" / "model.pt")
    if script is not None:
        save_torchscript(script, folder / "models" / "model.ts")
    return folder


def write_hover(folder: Path, *, network: nn.Module | None = None, size: int = 64, **inferer: Any) -> Path:
    """Write a bundle like the zoo's nuclei model; its metadata is as wrong about the types as there."""
    metadata = monai_metadata({"0": "background", "1": "nuclei"}, shape=(str(size), str(size)))
    outputs = {
        "nucleus_prediction": {"format": "segmentation", "num_channels": 3, "channel_def": {"0": "background"}},
        "horizontal_vertical": {"format": "regression", "num_channels": 2, "channel_def": {"0": "h", "1": "v"}},
        "type_prediction": {
            "format": "classification",
            "num_channels": 2,
            "channel_def": {"0": "background", "1": "type of nucleus for each pixel"},
        },
    }
    metadata["network_data_format"]["outputs"] = outputs
    definition = {"_target_": "HoVerNet", "mode": "@hovernet_mode", "in_channels": 3, "out_classes": 5}
    config = monai_config(definition, activation=SOFTMAX, scale={**SCALE, "b_min": 0.0, "clip": True})
    config |= {"hovernet_mode": "fast", "patch_size": size}
    config["inferer"] = {
        "_target_": "SlidingWindowHoVerNetInferer",
        "roi_size": "@patch_size",
        "overlap": "$1.0 - float(@out_size) / float(@patch_size)",
        **inferer,
    }
    config["postprocessing"]["transforms"] = [
        {"_target_": "FlattenSubKeysd", "keys": "pred", "sub_keys": "$@sub_keys", "delete_keys": True},
        {
            "_target_": "HoVerNetInstanceMapPostProcessingd",
            "sobel_kernel_size": 5,
            "marker_threshold": 0.4,
            "marker_radius": 2,
        },
        {"_target_": "HoVerNetNuclearTypePostProcessingd"},
    ]
    script = None if network is not None else HoverColours()
    return write_monai(folder, metadata, config, weights=network, script=script)


DISKS = ((40, 45, 10, 1), (58, 47, 9, 2), (100, 30, 12, 2), (30, 100, 8, 1), (128, 128, 11, 1), (141, 150, 10, 2))
"""Centre x, y, radius and type of nuclei; the first two and the last two touch."""


def painted(width: int = 200, height: int = 180) -> np.ndarray[Any, Any]:
    """Return RGB pixels in which a HoVer-Net can read: red and green the distances, blue the type, 255 for glass."""
    rgb = np.full((height, width, 3), (128, 128, 255), dtype=np.uint8)
    y, x = np.mgrid[:height, :width] + 0.5
    nearest = np.argmin([np.hypot(x - cx, y - cy) / r for cx, cy, r, _ in DISKS], axis=0)
    for number, (cx, cy, r, kind) in enumerate(DISKS):
        inside = (np.hypot(x - cx, y - cy) <= r) & (nearest == number)
        for channel, distance in enumerate((x - cx, y - cy)):
            rgb[..., channel][inside] = np.round(127.5 + 127.5 * distance / r)[inside]
        rgb[..., 2][inside] = 0 if kind == 1 else 51
    return rgb
