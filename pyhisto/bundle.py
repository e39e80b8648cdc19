"""A trained model on disk: a MONAI bundle folder that says all that inference needs.

::

    <bundle>/configs/metadata.json   MONAI's keys, and under "pyhisto" a ModelSpec and the weights' sha256
    <bundle>/configs/inference.json  the network, so that MONAI's own tools can build it
    <bundle>/models/model.pt         state dict, loaded with weights_only=True
    <bundle>/models/golden.npz       a tile and the probabilities the model gave for it when it was saved
    <bundle>/docs/README.md          model card
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
import uuid
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from pyhisto.device import check_device, fast_bfloat16
from pyhisto.errors import BundleError

if TYPE_CHECKING:
    from torch import nn

__all__ = [
    "KINDS",
    "Bundle",
    "ModelClass",
    "ModelSpec",
    "load_bundle",
    "normalise",
    "read_spec",
    "save_bundle",
]

KINDS = ("tumour_segmentation", "cell_detection")
"""What a model does; a command refuses a bundle of another kind."""

GOLDEN_TOLERANCE = 0.01
"""Largest difference of a probability on the golden tile between saving and loading, in float32."""

REDUCED_TOLERANCE = 0.05
"""Largest mean difference of a probability on the golden tile that bfloat16 may make."""


@dataclass(frozen=True)
class ModelClass:
    """One output channel.

    Attributes
    ----------
    name
        What the channel stands for, such as ``"positive nucleus"``.
    classification
        QuPath class of the objects made from it, or None where it makes none.
    color
        RGB, 0 to 255, or None.
    """

    name: str
    classification: str | None = None
    color: tuple[int, int, int] | None = None


@dataclass(frozen=True)
class ModelSpec:
    """Everything that inference needs to know about a model.

    Attributes
    ----------
    kind
        One of :data:`KINDS`.
    architecture
        Name in :data:`pyhisto.models.MODELS`.
    decoder_channels
        Channels of the decoder stages.
    mpp
        Pixel size of the tiles in µm.
    tile_size, overlap
        Tile side and the margin on each side that is predicted but not used, pixels at `mpp`.
    channel_mean, channel_std
        Of RGB scaled to 0..1; the input is (rgb / 255 - mean) / std.
    classes
        The output channels in order; channel 0 is background.
    postprocessing
        Numbers that turn probabilities into objects, by name.
    """

    kind: str
    architecture: str
    classes: tuple[ModelClass, ...]
    mpp: float = 0.5
    tile_size: int = 256
    overlap: int = 32
    decoder_channels: tuple[int, ...] = (256, 128, 64, 32, 16)
    channel_mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    channel_std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    postprocessing: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> ModelSpec:
        """Build from JSON.

        Raises
        ------
        BundleError
            If a key is unknown or missing, or the kind is not one of :data:`KINDS`.
        """
        known = {f.name for f in dataclasses.fields(cls)}
        unknown = sorted(set(data) - known)
        if unknown:
            raise BundleError(f"model description with unknown key {unknown[0]!r}", expected=", ".join(sorted(known)))
        try:
            classes = tuple(ModelClass(**{**c, "color": _rgb(c.get("color"))}) for c in data["classes"])
            listed: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in data.items()}
            listed["classes"] = classes
            spec = cls(**listed)
        except (KeyError, TypeError) as error:
            raise BundleError(f"model description is incomplete ({error})") from error
        if spec.kind not in KINDS:
            raise BundleError(f"model of the kind {spec.kind!r}", expected=f"one of {', '.join(KINDS)}")
        return spec

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON types."""
        return dataclasses.asdict(self)


def _rgb(color: Any) -> tuple[int, int, int] | None:
    return None if color is None else (int(color[0]), int(color[1]), int(color[2]))


class Bundle:
    """A loaded model with its description; made by :func:`load_bundle`.

    Attributes
    ----------
    path, spec, sha256
        The folder, its description and the checksum of its weights.
    precision
        ``"bfloat16"`` where the device computes it fast and the golden tile agrees, else ``"float32"``.
    device
        Where the network runs: ``"cpu"``, ``"cuda"`` or ``"mps"``.
    """

    def __init__(self, path: Path, spec: ModelSpec, sha256: str, model: nn.Module, device: str) -> None:
        self.path = path
        self.spec = spec
        self.sha256 = sha256
        self.device = device
        self.precision = "float32"
        import torch

        self._model = model.to(device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]

    def predict(self, tiles: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Return the class probabilities of tiles.

        Parameters
        ----------
        tiles
            RGB uint8, shape (n, height, width, 3), at ``spec.mpp`` µm/px.

        Returns
        -------
        numpy.ndarray
            float32, shape (n, classes, height, width); sums to 1 over the classes.
        """
        import torch

        x = normalise(tiles, self.spec).to(self.device, memory_format=torch.channels_last)
        reduced = self.precision == "bfloat16"
        with torch.inference_mode(), torch.autocast(self.device, torch.bfloat16, enabled=reduced):
            logits = self._model(x)  # (n, classes, height, width)
        return np.asarray(torch.softmax(logits.float(), dim=1).cpu().numpy())


def normalise(tiles: npt.NDArray[np.uint8], spec: ModelSpec) -> Any:
    """Return tiles, uint8 (n, height, width, 3), as the model's input: float32 tensor (n, 3, height, width)."""
    import torch

    x = torch.from_numpy(np.ascontiguousarray(tiles)).permute(0, 3, 1, 2).float().div_(255)
    mean = torch.tensor(spec.channel_mean).view(1, 3, 1, 1)
    std = torch.tensor(spec.channel_std).view(1, 3, 1, 1)
    return (x - mean) / std


def save_bundle(
    folder: str | Path,
    model: nn.Module,
    spec: ModelSpec,
    *,
    golden_tile: npt.NDArray[np.uint8],
    description: str,
    training: Mapping[str, Any] | None = None,
) -> Bundle:
    """Write a model as a bundle; the folder appears whole or not at all.

    Parameters
    ----------
    folder
        Must not exist, or be an empty folder.
    model
        The trained network.
    spec
        Its description.
    golden_tile
        RGB uint8, shape (tile_size, tile_size, 3); kept with the model's output as a self-check.
    description
        One or two sentences for the model card.
    training
        What it was trained on and how, as JSON types, for the model card and the metadata.

    Raises
    ------
    BundleError
        If the folder holds something already.
    """
    import torch

    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise BundleError(f"{folder} exists already", remedy="choose another folder or remove it")
    folder.parent.mkdir(parents=True, exist_ok=True)
    work = folder.parent / f".{folder.name}-{uuid.uuid4().hex[:8]}.tmp"
    work.mkdir()
    try:
        for name in ("configs", "models", "docs"):
            (work / name).mkdir()
        weights = work / "models" / "model.pt"
        torch.save({name: value.detach().cpu() for name, value in model.state_dict().items()}, weights)
        sha256 = _sha256(weights)
        bundle = Bundle(folder, spec, sha256, model, "cpu")
        probabilities = bundle.predict(golden_tile[np.newaxis])[0]
        np.savez_compressed(
            work / "models" / "golden.npz", tile=golden_tile, probabilities=probabilities.astype(np.float16)
        )
        metadata = _metadata(spec, sha256, description, training or {})
        _write_json(work / "configs" / "metadata.json", metadata)
        _write_json(work / "configs" / "inference.json", _inference_config(spec))
        (work / "docs" / "README.md").write_text(_model_card(spec, sha256, description, training or {}), "utf-8")
        if folder.exists():
            folder.rmdir()
        work.replace(folder)
    except BaseException:
        shutil.rmtree(work, ignore_errors=True)
        raise
    return bundle


def read_spec(folder: str | Path) -> tuple[ModelSpec, str]:
    """Return the description and the weights' sha256 of a bundle, without loading torch.

    Raises
    ------
    BundleError
        If the folder is no bundle of this project.
    """
    folder = Path(folder)
    path = folder / "configs" / "metadata.json"
    if not path.is_file():
        raise BundleError(
            f"{folder} is no model bundle", expected="a folder with configs/metadata.json and models/model.pt"
        )
    try:
        metadata = json.loads(path.read_text("utf-8"))
        own = metadata["pyhisto"]
        return ModelSpec.from_dict(own["model"]), str(own["weights_sha256"])
    except (ValueError, KeyError, TypeError) as error:
        raise BundleError(f"{path} does not describe a model of this project ({error!r})") from error


def load_bundle(folder: str | Path, *, kind: str | None = None, device: str = "cpu") -> Bundle:
    """Load a bundle and check it against its own golden tile.

    Parameters
    ----------
    folder
        The bundle.
    kind
        Refuse a model of another kind.
    device
        ``"cpu"``, ``"cuda"`` or ``"mps"``.

    Raises
    ------
    BundleError
        If files are missing or damaged, the weights do not have the recorded sha256 or do not fit, the kind differs,
        or the golden tile gives another output than when the model was saved.
    ConfigError
        If this machine does not have the device.
    """
    import pickle

    from pyhisto.models import build_model

    folder = Path(folder)
    spec, sha256 = read_spec(folder)
    if kind is not None and spec.kind != kind:
        raise BundleError(f"{folder} is a model for {spec.kind}", expected=f"one for {kind}")
    check_device(device)
    weights = folder / "models" / "model.pt"
    if not weights.is_file():
        raise BundleError(f"{weights} is missing", remedy="copy the bundle again")
    if _sha256(weights) != sha256:
        raise BundleError(
            f"{weights} is damaged or exchanged", expected=f"sha256 {sha256[:12]}…", remedy="copy the bundle again"
        )
    import torch

    model = build_model(spec.architecture, out_channels=len(spec.classes), decoder_channels=spec.decoder_channels)
    try:
        model.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    except (RuntimeError, pickle.UnpicklingError, EOFError, TypeError, AttributeError) as error:
        reason = str(error).splitlines()[0]
        raise BundleError(f"{weights} does not fit the network {spec.architecture} ({reason})") from error
    bundle = Bundle(folder, spec, sha256, model, device)
    _check_golden(bundle)
    return bundle


def _check_golden(bundle: Bundle) -> None:
    """Compare the output on the golden tile with the stored one; use bfloat16 where it is fast and agrees."""
    path = bundle.path / "models" / "golden.npz"
    try:
        with path.open("rb") as file, np.load(file) as golden:
            tile, expected = golden["tile"], golden["probabilities"].astype(np.float32)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise BundleError(f"{path} is missing or damaged ({error})", remedy="copy the bundle again") from error
    found = bundle.predict(tile[np.newaxis])[0]
    if found.shape != expected.shape or not float(np.abs(found - expected).max()) <= GOLDEN_TOLERANCE:
        raise BundleError(
            f"{bundle.path} gives another output on its golden tile than when it was saved",
            remedy="install the versions that its model card names, or train it again",
        )
    if fast_bfloat16(bundle.device):
        bundle.precision = "bfloat16"
        reduced = bundle.predict(tile[np.newaxis])[0]
        if not float(np.abs(reduced - expected).mean()) <= REDUCED_TOLERANCE:
            bundle.precision = "float32"


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write_json(path: Path, data: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(data, indent=2, ensure_ascii=False) + "\n", "utf-8")


def _metadata(spec: ModelSpec, sha256: str, description: str, training: Mapping[str, Any]) -> dict[str, Any]:
    """Return MONAI's metadata with this project's keys under "pyhisto"."""
    n, size = len(spec.classes), spec.tile_size
    image = {"type": "image", "format": "RGB", "modality": "brightfield histology", "num_channels": 3}
    output = {"type": "probabilities", "format": "segmentation", "num_channels": n, "spatial_shape": [size, size]}
    return {
        "schema": "https://github.com/Project-MONAI/MONAI-extra-test-data/releases/download/0.8.1/meta_schema_20240725.json",
        "version": "1.0.0",
        "changelog": {"1.0.0": "trained"},
        "monai_version": version("monai"),
        "pytorch_version": version("torch"),
        "numpy_version": version("numpy"),
        "required_packages_version": {"qupath-ext": version("qupath-ext")},
        "name": spec.kind,
        "task": spec.kind.replace("_", " "),
        "description": description,
        "authors": "see docs/README.md",
        "copyright": "see docs/README.md",
        "network_data_format": {
            "inputs": {
                "image": {
                    **image,
                    "spatial_shape": [size, size],
                    "dtype": "float32",
                    "value_range": [0, 1],
                    "is_patch_data": True,
                    "channel_def": {"0": "red", "1": "green", "2": "blue"},
                }
            },
            "outputs": {
                "pred": {
                    **output,
                    "dtype": "float32",
                    "value_range": [0, 1],
                    "is_patch_data": True,
                    "channel_def": {str(i): c.name for i, c in enumerate(spec.classes)},
                }
            },
        },
        "pyhisto": {"model": spec.to_dict(), "weights_sha256": sha256, "training": dict(training)},
    }


def _inference_config(spec: ModelSpec) -> dict[str, Any]:
    return {
        "network_def": {
            "_target_": "pyhisto.models.build_model",
            "name": spec.architecture,
            "out_channels": len(spec.classes),
            "decoder_channels": list(spec.decoder_channels),
        }
    }


def _model_card(spec: ModelSpec, sha256: str, description: str, training: Mapping[str, Any]) -> str:
    lines = [
        f"# {spec.kind.replace('_', ' ').capitalize()} ({spec.architecture})",
        "",
        description,
        "",
        "## Input",
        f"RGB tiles of {spec.tile_size} x {spec.tile_size} px at {spec.mpp} µm/px; (rgb / 255 - "
        f"{list(spec.channel_mean)}) / {list(spec.channel_std)}.",
        "",
        "## Output",
        *(f"{i}. {c.name}" + (f" → QuPath class `{c.classification}`" if c.classification else "")
          for i, c in enumerate(spec.classes)),
        "",
        "## Training",
        *(f"- {name}: {value}" for name, value in training.items()),
        "",
        "## Limits",
        "Research use only; not a medical device. Judge it on your own slides before you rely on it.",
        "",
        f"Weights sha256: `{sha256}` · MONAI {version('monai')} · torch {version('torch')}",
        "",
    ]  # fmt: skip
    return "\n".join(lines)
