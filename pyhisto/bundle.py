"""A trained model on disk: a MONAI bundle folder that says all that inference needs.

::

    <bundle>/configs/metadata.json   MONAI's keys, and under "pyhisto" a ModelSpec and the weights' sha256
    <bundle>/configs/inference.json  the network, so that MONAI's own tools can build it
    <bundle>/models/model.pt         state dict, loaded with weights_only=True
    <bundle>/models/golden.npz       a tile and the probabilities the model gave for it when it was saved
    <bundle>/docs/README.md          model card
"""

from __future__ import annotations

import hashlib
import json
import shutil
import uuid
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from pyhisto.device import check_device, fast_bfloat16
from pyhisto.errors import BundleError
from pyhisto.modelcard import inference_config, metadata, model_card
from pyhisto.spec import KINDS, ModelClass, ModelSpec, region_classes

if TYPE_CHECKING:
    from torch import nn

__all__ = [
    "KINDS",
    "Bundle",
    "ModelClass",
    "ModelSpec",
    "class_probabilities",
    "load_bundle",
    "normalise",
    "read_spec",
    "resave_bundle",
    "save_bundle",
]

GOLDEN_TOLERANCE = 0.01
"""Largest difference of a probability on the golden tile between saving and loading, in float32."""

GOLDEN_SHARE = 0.2
"""The same as a share of how much the output varies over the tile, where that is less."""

LEAST_SPREAD = 1e-3
"""Least standard deviation of some class probability over a golden tile; one that varies less shows nothing."""

REDUCED_TOLERANCE = 0.05
"""Largest mean difference of a probability on the golden tile that bfloat16 may make."""


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
            logits = self._model(x).float()  # (n, classes or regions, height, width)
        return np.asarray(class_probabilities(logits, self.spec).cpu().numpy())


def class_probabilities(logits: Any, spec: ModelSpec) -> Any:
    """Return class probabilities, float tensor (n, classes, h, w), from logits (n, classes or regions, h, w).

    With regions, a pixel is of the class of the last region that it lies in: that of region i has the probability p_i
    times the product of 1 - p_j over all later regions, and background that of lying in none.
    """
    import torch

    if not spec.regions:
        return torch.softmax(logits, dim=1)
    inside = torch.sigmoid(logits)
    out = torch.empty((inside.shape[0], len(spec.classes), *inside.shape[2:]), device=inside.device)
    left = torch.ones_like(inside[:, 0])
    own = region_classes(spec.regions, len(spec.classes))
    for number in range(len(own) - 1, -1, -1):
        out[:, own[number]] = inside[:, number] * left
        left = left * (1 - inside[:, number])
    out[:, 0] = left
    return out


def normalise(tiles: Any, spec: ModelSpec) -> Any:
    """Return tiles as the model's input: float32 tensor (n, 3, height, width), on the device of the tiles.

    Parameters
    ----------
    tiles
        RGB uint8 (n, height, width, 3), as numpy array or tensor.
    spec
        For mean and standard deviation of the channels.
    """
    import torch

    tiles = tiles if isinstance(tiles, torch.Tensor) else torch.from_numpy(np.ascontiguousarray(tiles))
    x = tiles.permute(0, 3, 1, 2).float().div_(255)
    mean = torch.tensor(spec.channel_mean, device=x.device).view(1, 3, 1, 1)
    std = torch.tensor(spec.channel_std, device=x.device).view(1, 3, 1, 1)
    return (x - mean) / std


def save_bundle(
    folder: str | Path,
    model: nn.Module,
    spec: ModelSpec,
    *,
    golden_tile: npt.NDArray[np.uint8],
    description: str,
    training: Mapping[str, Any] | None = None,
    documents: Sequence[Path] = (),
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
        RGB uint8, shape (tile_size, tile_size, 3), or several, (n, tile_size, tile_size, 3): the one over which the
        output varies most is kept with that output as a self-check.
    description
        One or two sentences for the model card.
    training
        What it was trained on and how, as JSON types, for the model card and the metadata.
    documents
        Files to keep beside the model card.

    Raises
    ------
    BundleError
        If the folder holds something already, or the output is the same everywhere on every tile.
    """
    import torch

    folder = Path(folder)
    with _new_folder(folder) as work:
        weights = work / "models" / "model.pt"
        torch.save({name: value.detach().cpu() for name, value in model.state_dict().items()}, weights)
        sha256 = _sha256(weights)
        bundle = Bundle(folder, spec, sha256, model, "cpu")
        tile, probabilities = _golden(bundle, golden_tile)
        np.savez_compressed(work / "models" / "golden.npz", tile=tile, probabilities=probabilities)
        _describe(work, spec, sha256, description, training or {})
        for path in documents:
            shutil.copyfile(path, work / "docs" / path.name)
    return bundle


def resave_bundle(bundle: Bundle, folder: str | Path, spec: ModelSpec, training: Mapping[str, Any]) -> None:
    """Write a bundle with the same weights and golden tile under another description; whole or not at all.

    Parameters
    ----------
    bundle
        The bundle as it is.
    folder
        Must not exist, or be an empty folder.
    spec
        The new description; the network and its input must be the same.
    training
        What is added to what the bundle says about its training.

    Raises
    ------
    BundleError
        If the folder holds something already.
    """
    folder = Path(folder)
    before = json.loads((bundle.path / "configs" / "metadata.json").read_text("utf-8"))
    with _new_folder(folder) as work:
        for name in ("model.pt", "golden.npz"):
            shutil.copyfile(bundle.path / "models" / name, work / "models" / name)
        described = {**before["pyhisto"].get("training", {}), **training}
        _describe(work, spec, bundle.sha256, before["description"], described)


@contextmanager
def _new_folder(folder: Path) -> Iterator[Path]:
    """Yield a folder to fill, which becomes `folder` if nothing goes wrong, and vanishes otherwise."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise BundleError(f"{folder} exists already", remedy="choose another folder or remove it")
    folder.parent.mkdir(parents=True, exist_ok=True)
    work = folder.parent / f".{folder.name}-{uuid.uuid4().hex[:8]}.tmp"
    work.mkdir()
    try:
        for name in ("configs", "models", "docs"):
            (work / name).mkdir()
        yield work
        if folder.exists():
            folder.rmdir()
        work.replace(folder)
    except BaseException:
        shutil.rmtree(work, ignore_errors=True)
        raise


def _describe(folder: Path, spec: ModelSpec, sha256: str, description: str, training: Mapping[str, Any]) -> None:
    """Write the configuration and the model card."""
    _write_json(folder / "configs" / "metadata.json", metadata(spec, sha256, description, training))
    _write_json(folder / "configs" / "inference.json", inference_config(spec))
    (folder / "docs" / "README.md").write_text(model_card(spec, sha256, description, training), "utf-8")


def _golden(bundle: Bundle, tiles: npt.NDArray[np.uint8]) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.float32]]:
    """Return the tile over which the output varies most, and that output."""
    candidates = tiles[np.newaxis] if tiles.ndim == 3 else tiles
    outputs = [bundle.predict(tile[np.newaxis])[0] for tile in candidates]
    best = int(np.argmax([_spread(output) for output in outputs]))
    if not _spread(outputs[best]) >= LEAST_SPREAD:
        raise BundleError(
            f"the model gives nearly the same output everywhere on its {len(candidates)} golden tiles "
            f"(standard deviation {_spread(outputs[best]):.1g})",
            expected=f"{LEAST_SPREAD:g} or more on one of them",
            remedy="train longer, or take a tile that shows its classes",
        )
    return candidates[best], outputs[best]


def _spread(probabilities: npt.NDArray[np.float32]) -> float:
    """Return how much the output varies over a tile: the greatest standard deviation of a class."""
    return float(probabilities.std(axis=(1, 2)).max())


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

    model = build_model(spec.architecture, out_channels=spec.out_channels, decoder_channels=spec.decoder_channels)
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
    tolerance = min(GOLDEN_TOLERANCE, GOLDEN_SHARE * _spread(expected))
    if found.shape != expected.shape or not float(np.abs(found - expected).max()) <= tolerance:
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
