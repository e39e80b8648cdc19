"""WSInfer model folders: ``config.json`` (spec version 1.0) and ``torchscript_model.pt``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pyhisto.bundle.foreign.literals import read_json
from pyhisto.bundle.foreign.models import TileModel
from pyhisto.bundle.foreign.networks import file_sha256, load_torchscript
from pyhisto.bundle.foreign.pixels import wsinfer_pixels
from pyhisto.bundle.spec import ModelClass, ModelSpec
from pyhisto.errors import BundleError

__all__ = ["CONFIG", "WEIGHTS", "read_wsinfer"]

CONFIG, WEIGHTS = "config.json", "torchscript_model.pt"

KEYS: Mapping[str, type | tuple[type, ...]] = {
    "spec_version": str,
    "architecture": str,
    "num_classes": int,
    "class_names": list,
    "patch_size_pixels": int,
    "spacing_um_px": (int, float),
    "transform": list,
}
"""What a configuration must hold."""


def read_wsinfer(folder: Path, *, device: str) -> TileModel:
    """Load a WSInfer model.

    Its output is a softmax over the classes, or a sigmoid where there is only one, as in WSInfer.

    Parameters
    ----------
    folder
        Holds the two files.
    device
        Where the network runs.

    Raises
    ------
    BundleError
        If a file is missing or damaged, or the configuration is not one of version 1.0.
    """
    config = _checked(read_json(folder / CONFIG), folder / CONFIG)
    weights = folder / WEIGHTS
    if not weights.is_file():
        raise BundleError(f"{weights} is missing", remedy="copy the TorchScript file of the model into the folder")
    names, patch = config["class_names"], config["patch_size_pixels"]
    pixels = wsinfer_pixels(config["transform"], patch)
    spec = ModelSpec(
        "tile_classification",
        f"WSInfer {config['architecture']}",
        tuple(ModelClass(name, name) for name in names),
        mpp=float(config["spacing_um_px"]),
        tile_size=patch,
        overlap=0,
    )
    return TileModel(
        folder,
        spec,
        file_sha256(weights),
        load_torchscript(weights),
        device,
        pixels=pixels,
        activation="softmax" if len(names) > 1 else "sigmoid",
        input_size=max(pixels.sizes[0]),
    )


def _checked(config: dict[str, Any], path: Path) -> dict[str, Any]:
    """Return a configuration that has what it must have."""
    for key, kind in KEYS.items():
        if not isinstance(config.get(key), kind) or isinstance(config[key], bool):
            raise BundleError(f"{path}: {key} = {config.get(key)!r}", expected="as in WSInfer's configuration 1.0")
    if config["spec_version"] != "1.0":
        raise BundleError(f"{path}: spec_version {config['spec_version']!r}", expected="'1.0'")
    names = config["class_names"]
    if len(names) != config["num_classes"] or not names or len(set(names)) != len(names):
        raise BundleError(f"{path}: class_names {names}", expected=f"{config['num_classes']} different names")
    if config["patch_size_pixels"] < 1 or config["spacing_um_px"] <= 0:
        raise BundleError(
            f"{path}: patch of {config['patch_size_pixels']} px at {config['spacing_um_px']} µm/px", expected="above 0"
        )
    return config
