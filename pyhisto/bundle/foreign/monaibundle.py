"""MONAI bundles for 2-D RGB in the model zoo's layout.

``configs/metadata.json`` says what goes in and comes out (``network_data_format``), ``configs/inference.json`` which
network, preprocessing and post-processing it is, ``models/model.pt`` holds its weights and ``models/model.ts``, where
there is one, the whole as TorchScript. The configuration is read as data: references are followed, expressions are not
evaluated; a network that needs them runs from its TorchScript.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pyhisto.bundle.foreign.literals import Config, literal, read_json
from pyhisto.bundle.foreign.models import Activation, ForeignBundle, HoverModel, TileModel, run_network
from pyhisto.bundle.foreign.networks import build_network, file_sha256, load_torchscript, load_weights
from pyhisto.bundle.foreign.pixels import MonaiPixels, monai_pixels
from pyhisto.bundle.spec import ModelClass, ModelSpec
from pyhisto.errors import BundleError

if TYPE_CHECKING:
    from torch import nn

__all__ = ["METADATA", "read_monai"]

METADATA = "configs/metadata.json"

HOVER_BRANCHES = {"nucleus_prediction", "horizontal_vertical", "type_prediction"}

TISSUE_NUMBERS = {
    "threshold": 0.5,
    "sigma_um": 0.0,
    "min_area_um2": 500.0,
    "min_hole_area_um2": 500.0,
    "simplify_um": 1.0,
}
"""How the output of a segmentation network becomes annotations."""

HOVER_NUMBERS = {"min_object_size": 10.0, "sobel_kernel_size": 5.0, "marker_threshold": 0.4, "marker_radius": 2.0}
"""Defaults of MONAI's ``HoVerNetInstanceMapPostProcessing``, lengths in px."""

DEFAULT_TILE = 512
"""Side of a tile, px, where a bundle leaves it open."""

BACKGROUND = ("background", "bg", "back ground")


def read_monai(
    folder: Path, *, device: str, mpp: float, class_names: Sequence[str] = ()
) -> ForeignBundle | TileModel | HoverModel:
    """Load a MONAI bundle.

    Parameters
    ----------
    folder
        The bundle.
    device
        Where the network runs.
    mpp
        µm/px of the network's input.
    class_names
        Names of the output channels in place of ``channel_def``.

    Returns
    -------
    ForeignBundle, TileModel or HoverModel
        By what the metadata say of the outputs.

    Raises
    ------
    BundleError
        If the bundle is not for 2-D RGB, needs an expression of its configuration to be executed, or does something
        that is not reproduced here.
    """
    image, outputs = _formats(read_json(folder / METADATA), folder)
    path = folder / "configs" / "inference.json"
    if not path.is_file():
        raise BundleError(f"{path} is missing", expected="the configuration of inference as JSON")
    config = read_json(path)
    network, weights = _network(config, folder)
    size = _tile_size(config, image)
    pixels = monai_pixels(_preprocessing(config))
    common = (folder, file_sha256(weights), device)
    if {"nucleus_prediction", "horizontal_vertical"} <= set(outputs):
        return _hover(config, network, pixels, size, mpp, outputs, class_names, common)
    if len(outputs) != 1:
        raise BundleError(
            f"{folder}: network with the outputs {', '.join(outputs) or 'none'}",
            expected=f"one output, or those of a HoVer-Net: {', '.join(sorted(HOVER_BRANCHES))}",
        )
    (output,) = outputs.values()
    names = _channel_names(output, class_names, folder)
    activation = _activation(config, folder)
    if "segmentation" in str(output.get("format")):
        return _segmentation(network, pixels, size, mpp, names, activation, common)
    if "class" not in str(output.get("format")):
        raise BundleError(
            f"{folder}: output of the format {output.get('format')!r}", expected="segmentation or classification"
        )
    spec = ModelSpec(
        "tile_classification",
        _architecture(network),
        tuple(ModelClass(name, name) for name in names),
        mpp=mpp,
        tile_size=size,
        overlap=0,
    )
    root, sha256, device = common
    pixels = dataclasses.replace(pixels, size=size)
    return TileModel(root, spec, sha256, network, device, pixels=pixels, activation=activation, input_size=size)


def _formats(metadata: Mapping[str, Any], folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the descriptions of the one RGB image that goes in, and of the outputs by name."""
    try:
        inputs = dict(metadata["network_data_format"]["inputs"])
        outputs = {str(name): dict(value) for name, value in metadata["network_data_format"]["outputs"].items()}
        images = {str(name): dict(value) for name, value in inputs.items()}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise BundleError(f"{folder / METADATA} has no network_data_format with inputs and outputs") from error
    if len(images) != 1:
        raise BundleError(f"{folder}: network with the inputs {', '.join(images)}", expected="one RGB image")
    (image,) = images.values()
    shape = image.get("spatial_shape", [])
    if image.get("num_channels") != 3 or len(shape) != 2:
        raise BundleError(
            f"{folder}: input with {image.get('num_channels')} channels and {len(shape)} dimensions",
            expected="3 channels (RGB) and 2 dimensions",
        )
    return image, outputs


def _network(config: Config, folder: Path) -> tuple[nn.Module, Path]:
    """Return the network with its weights, and the file that holds them: plain weights before TorchScript."""
    weights, script = folder / "models" / "model.pt", folder / "models" / "model.ts"
    if not weights.is_file() and not script.is_file():
        raise BundleError(f"{folder} holds no weights", expected="models/model.pt or models/model.ts")
    try:
        return _from_weights(config, weights), weights
    except BundleError:
        if not script.is_file():
            raise
    return load_torchscript(script), script


def _from_weights(config: Config, weights: Path) -> nn.Module:
    if not weights.is_file():
        raise BundleError(f"{weights} is missing")
    definition = config.get("network_def", config.get("network"))
    if not isinstance(definition, Mapping):
        raise BundleError("inference.json has no network_def")
    network = build_network(literal(config, definition, where="network_def"))
    load_weights(network, weights)
    return network.eval()


def _steps(config: Config, entry: str) -> list[Mapping[str, Any]]:
    """Return the transforms of ``preprocessing`` or ``postprocessing`` as they stand in the configuration."""
    chain: Any = config.get(entry)
    if isinstance(chain, str):
        chain = literal(config, chain, where=entry)
    if isinstance(chain, Mapping) and str(chain.get("_target_", "")).rpartition(".")[2] == "Compose":
        chain = chain.get("transforms", [])
        if isinstance(chain, str):
            chain = literal(config, chain, where=entry)
    if not isinstance(chain, list) or not all(isinstance(step, Mapping) for step in chain):
        raise BundleError(f"inference.json has no {entry}", expected="Compose with a list of transforms")
    return [step for step in chain if str(step.get("_disabled_", False)).lower() != "true"]


def _name(step: Mapping[str, Any]) -> str:
    """Return the name of a transform without module and without the mark of dictionary transforms."""
    name = str(step.get("_target_", "")).rpartition(".")[2]
    return name.removesuffix("Dict").removesuffix("d").removesuffix("D")


def _arguments(config: Config, step: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of a transform as plain values, without the keys it works on."""
    own = {k: v for k, v in step.items() if not k.startswith("_") and k not in ("keys", "allow_missing_keys")}
    return dict(literal(config, own, where=_name(step)))


def _preprocessing(config: Config) -> list[tuple[str, dict[str, Any]]]:
    steps = _steps(config, "preprocessing")
    return [(_name(step), _arguments(config, step) if "Intensity" in _name(step) else {}) for step in steps]


BEFORE_ACTIVATION = frozenset({"EnsureType", "ToTensor", "ToNumpy", "Invert", "FromMetaTensor", "CastToType"})
"""Transforms of an output that change no value."""


def _activation(config: Config, folder: Path) -> Activation:
    """Return what makes probabilities of the output."""
    for step in _steps(config, "postprocessing"):
        name = _name(step)
        if name in BEFORE_ACTIVATION:
            continue
        arguments = _arguments(config, step) if name in ("Activations", "AsDiscrete") else {}
        if arguments.get("softmax") or arguments.get("argmax"):
            return "softmax"
        if arguments.get("sigmoid"):
            return "sigmoid"
        break
    raise BundleError(
        f"{folder}: postprocessing does not begin with Activationsd (softmax or sigmoid) or AsDiscreted (argmax)",
        expected="one of these, so that it is known what the output means",
    )


def _tile_size(config: Config, image: Mapping[str, Any]) -> int:
    """Return the side of a tile: the window of a sliding inferer, else the shape of the input, else 512 px."""
    inferer = config.get("inferer")
    shape: Any = inferer.get("roi_size") if isinstance(inferer, Mapping) else None
    shape = image["spatial_shape"] if shape is None else literal(config, shape, where="roi_size")
    sides = shape if isinstance(shape, list) else [shape]
    numbers = [int(side) for side in sides if str(side).isdecimal() and int(side) > 0]
    return min(numbers) if len(numbers) == len(sides) else DEFAULT_TILE


def _channel_names(output: Mapping[str, Any], class_names: Sequence[str], folder: Path) -> list[str]:
    """Return the names of the channels of an output, in order."""
    channels = output.get("channel_def")
    count = output.get("num_channels")
    if class_names:
        names = list(class_names)
    elif isinstance(channels, Mapping) and all(str(key).isdecimal() for key in channels):
        names = [str(channels[key]) for key in sorted(channels, key=int)]
    else:
        names = []
    if len(names) != count or len(set(names)) != len(names):
        raise BundleError(
            f"{folder}: {len(names)} names for {count} output channels",
            expected="one a channel, each another",
            remedy="give them with --model-classes",
        )
    return names


def _segmentation(
    network: nn.Module,
    pixels: MonaiPixels,
    size: int,
    mpp: float,
    names: list[str],
    activation: Activation,
    common: tuple[Path, str, str],
) -> ForeignBundle:
    path, sha256, device = common
    background = len(names) > 1 and names[0].lower() in BACKGROUND
    tissues = names[1:] if background else names
    classes = (ModelClass("background"), *(ModelClass(name, name) for name in tissues))
    spec = ModelSpec(
        "tissue_segmentation",
        _architecture(network),
        classes,
        mpp=mpp,
        tile_size=size,
        overlap=size // 8,
        postprocessing=TISSUE_NUMBERS,
    )
    model = ForeignBundle(
        path, spec, sha256, network, device, pixels=pixels, activation=activation, background=background
    )
    if pixels.by_tile:
        model.notes += ("the model scales the colours of each tile by its own contents: neighbours may differ",)
    model.predict(np.full((1, size, size, 3), 200, dtype=np.uint8))
    return model


def _hover(
    config: Config,
    network: nn.Module,
    pixels: MonaiPixels,
    size: int,
    mpp: float,
    outputs: Mapping[str, Any],
    class_names: Sequence[str],
    common: tuple[Path, str, str],
) -> HoverModel:
    """Return a HoVer-Net; how many types it tells apart and what it gives of a tile is seen by trying."""
    path, sha256, device = common
    trial = run_network(network.to(device), pixels(np.full((size, size, 3), 200, dtype=np.uint8))[None], device)
    if not isinstance(trial, dict) or not {"nucleus_prediction", "horizontal_vertical"} <= set(trial) <= HOVER_BRANCHES:
        raise BundleError(f"{path}: the network does not give the branches of a HoVer-Net")
    types = trial["type_prediction"].shape[1] if "type_prediction" in trial else 0
    named = outputs.get("type_prediction", {}).get("channel_def", {})
    notes: tuple[str, ...] = ()
    if class_names:
        names = list(class_names)
    elif types and len(named) == types:
        names = [str(named[key]) for key in sorted(named, key=int)][1:]
    else:
        names = [f"Type {number}" for number in range(1, types)]
        notes = ("the model does not name its types of nuclei: name them with --model-classes",) if types else ()
    if len(names) != max(0, types - 1):
        raise BundleError(
            f"{path}: {len(names)} names for {max(0, types - 1)} types of nuclei",
            expected="one a type, without background",
            remedy="give them with --model-classes",
        )
    classes = (ModelClass("background"), *(ModelClass(name, name) for name in names))
    spec = ModelSpec(
        "nucleus_segmentation",
        _architecture(network),
        classes if types else (ModelClass("background"), ModelClass("nucleus")),
        mpp=mpp,
        tile_size=size,
        overlap=(size - int(trial["nucleus_prediction"].shape[-1])) // 2,
        postprocessing=_hover_numbers(config, path),
    )
    model = HoverModel(
        path, spec, sha256, network, device, pixels=pixels, output_size=size - 2 * spec.overlap, typed=types > 0
    )
    model.notes += notes
    return model


def _hover_numbers(config: Config, path: Path) -> dict[str, float]:
    """Return the numbers of MONAI's post-processing of a HoVer-Net."""
    for step in _steps(config, "postprocessing"):
        if _name(step) == "HoVerNetInstanceMapPostProcessing":
            own = {key: value for key, value in _arguments(config, step).items() if not key.endswith("key")}
            unknown = sorted(set(own) - set(HOVER_NUMBERS))
            if unknown:
                raise BundleError(
                    f"{path}: post-processing with {unknown[0]}", expected=", ".join(sorted(HOVER_NUMBERS))
                )
            return HOVER_NUMBERS | {key: float(value) for key, value in own.items()}
    raise BundleError(f"{path}: postprocessing without HoVerNetInstanceMapPostProcessingd")


def _architecture(network: nn.Module) -> str:
    """Return the name of the network's class, as MONAI calls it."""
    return f"MONAI {getattr(network, 'original_name', type(network).__name__)}"
