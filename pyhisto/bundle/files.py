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
import importlib
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

from pyhisto.bundle.card import inference_config, metadata, model_card
from pyhisto.bundle.loaded import Bundle, class_probabilities, normalise
from pyhisto.bundle.spec import KINDS, ModelClass, ModelSpec
from pyhisto.device import check_device, fast_bfloat16, fast_float16, has_openvino
from pyhisto.errors import BundleError, ConfigError

if TYPE_CHECKING:
    from torch import nn

__all__ = [
    "ENGINES",
    "KINDS",
    "PRECISIONS",
    "SLIDE_KIND",
    "WEAK_KIND",
    "Bundle",
    "ModelClass",
    "ModelSpec",
    "checked_weights",
    "class_probabilities",
    "file_sha256",
    "load_bundle",
    "new_folder",
    "normalise",
    "read_spec",
    "resave_bundle",
    "save_bundle",
    "write_json",
]

SLIDE_KIND = "slide_classification"
"""The kind of bundles that :mod:`pyhisto.mil.bundle` reads."""

WEAK_KIND = "weak_segmentation"
"""The kind of bundles that :mod:`pyhisto.mil.weak.bundle` reads."""

GOLDEN_TOLERANCE = 0.01
"""Largest difference of a probability on the golden tile between saving and loading, in float32."""

GOLDEN_SHARE = 0.2
"""The same as a share of how much the output varies over the tile, where that is less."""

LEAST_SPREAD = 1e-3
"""Least standard deviation of some class probability over a golden tile; one that varies less shows nothing."""

REDUCED_TOLERANCE = 0.02
"""Largest mean difference of a probability on the golden tile that bfloat16 or float16 may make."""

PRECISIONS = ("auto", "float32", "bfloat16", "float16")
ENGINES = ("auto", "torch", "openvino")

WINOGRAD_SHARE = 0.5
"""Share of a network's multiplications that torch must save by Winograd's convolutions to be faster than OpenVINO."""

EXAMPLE_STRIDES = 4
"""Side, in strides, of the part of the golden tile that shows how batch norms follow convolutions."""


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
    with new_folder(folder) as work:
        weights = work / "models" / "model.pt"
        torch.save({name: value.detach().cpu() for name, value in model.state_dict().items()}, weights)
        sha256 = file_sha256(weights)
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
    with new_folder(folder) as work:
        for name in ("model.pt", "golden.npz"):
            shutil.copyfile(bundle.path / "models" / name, work / "models" / name)
        described = {**before["pyhisto"].get("training", {}), **training}
        _describe(work, spec, bundle.sha256, before["description"], described)


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
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
    write_json(folder / "configs" / "metadata.json", metadata(spec, sha256, description, training))
    write_json(folder / "configs" / "inference.json", inference_config(spec))
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
        if own["model"].get("kind") == SLIDE_KIND:
            raise BundleError(f"{folder} judges whole slides", remedy="use it with 'qupath-ext mil predict'")
        if own["model"].get("kind") == WEAK_KIND:
            raise BundleError(f"{folder} judges tiles", remedy="use it with 'qupath-ext mil weak predict'")
        return ModelSpec.from_dict(own["model"]), str(own["weights_sha256"])
    except (ValueError, KeyError, TypeError) as error:
        raise BundleError(f"{path} does not describe a model of this project ({error!r})") from error


def load_bundle(
    folder: str | Path,
    *,
    kind: str | None = None,
    device: str = "cpu",
    precision: str = "auto",
    engine: str = "auto",
) -> Bundle:
    """Load a bundle and check it against its own golden tile.

    It is computed with batch norms folded into convolutions, by OpenVINO on a CPU where that is installed, and in
    reduced precision where the device is fast at it; but in nothing that gives another output on the golden tile than
    float32 in torch.

    Parameters
    ----------
    folder
        The bundle.
    kind
        Refuse a model of another kind.
    device
        ``"cpu"``, ``"cuda"``, ``"cuda:<number>"`` or ``"mps"``.
    precision
        One of :data:`PRECISIONS`; ``"auto"`` takes what the device is fastest in and the golden tile allows.
    engine
        One of :data:`ENGINES`; ``"auto"`` likewise. What it did not take stands in ``Bundle.notes``.

    Raises
    ------
    BundleError
        If files are missing or damaged, the weights do not have the recorded sha256 or do not fit, the kind differs,
        the golden tile gives another output than when the model was saved, or than in float32 with the precision or
        engine that was asked for.
    ConfigError
        If this machine does not have the device, or the device not the precision or engine.
    """
    import pickle

    folder = Path(folder)
    spec, sha256 = read_spec(folder)
    if kind is not None and spec.kind != kind:
        raise BundleError(f"{folder} is a model for {spec.kind}", expected=f"one for {kind}")
    check_device(device)
    ways = _ways(device, engine, precision, one_network=spec.cascade is None, cells=spec.kind == "cell_detection")
    weights = checked_weights(folder, sha256)
    import torch

    model = _build_network(spec)
    try:
        model.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    except (RuntimeError, pickle.UnpicklingError, EOFError, TypeError, AttributeError) as error:
        reason = str(error).splitlines()[0]
        raise BundleError(f"{weights} does not fit the network {spec.architecture} ({reason})") from error
    bundle = Bundle(folder, spec, sha256, model, device)
    _choose(bundle, ways, _checked_golden(bundle))
    return bundle


def _build_network(spec: ModelSpec) -> nn.Module:
    """Build the network as the bundle's configuration describes it."""
    options = inference_config(spec)["network_def"]
    module, _, function = options.pop("_target_").rpartition(".")
    network: nn.Module = getattr(importlib.import_module(module), function)(**options)
    return network


def _checked_golden(bundle: Bundle) -> npt.NDArray[np.uint8]:
    """Compare the output on the golden tile with the stored one; return the tile, (height, width, 3)."""
    path = bundle.path / "models" / "golden.npz"
    try:
        with path.open("rb") as file, np.load(file) as golden:
            tile, expected = golden["tile"], golden["probabilities"].astype(np.float32)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise BundleError(f"{path} is missing or damaged ({error})", remedy="copy the bundle again") from error
    found = bundle.predict(tile[np.newaxis])[0]
    if found.shape != expected.shape or not float(np.abs(found - expected).max()) <= _tolerance(expected):
        raise BundleError(
            f"{bundle.path} gives another output on its golden tile than when it was saved",
            remedy="install the versions that its model card names, or train it again",
        )
    out: npt.NDArray[np.uint8] = tile
    return out


def _tolerance(expected: npt.NDArray[np.float32]) -> float:
    return min(GOLDEN_TOLERANCE, GOLDEN_SHARE * _spread(expected))


def _ways(device: str, engine: str, precision: str, *, one_network: bool, cells: bool) -> list[tuple[str, str]]:
    """Return the engines and precisions that are wanted and possible, the best first.

    That is the fastest; for outlines of cells it is torch, which does not round in bfloat16 what they are made from.
    """
    for value, known in ((engine, ENGINES), (precision, PRECISIONS)):
        if value not in known:
            raise ConfigError(f"{value!r} as engine or precision", expected=f"one of {', '.join(known)}")
    compiled = device == "cpu" and has_openvino() and one_network
    if engine == "openvino" and not compiled:
        raise ConfigError(
            f"engine openvino on the device {device}" + ("" if has_openvino() else " without the package openvino"),
            expected="the device cpu, the package, and a model with one network",
            remedy="pip install 'qupath-ext[openvino]', or leave the engine to be chosen",
        )
    if precision == "float16" and device == "cpu":
        raise ConfigError("precision float16 on the CPU", expected="float32 or bfloat16", remedy="use a GPU")
    precisions = [precision]
    if precision == "auto":
        reduced = {"bfloat16": fast_bfloat16(device), "float16": fast_float16(device)}
        precisions = [*[name for name, fast in reduced.items() if fast][:1], "float32"]
    engines = [engine]
    if engine == "auto":
        engines = ["openvino", "torch"] if compiled else ["torch"]
    ways = [(name, each) for name in engines for each in precisions]
    return sorted(ways, key=lambda way: way != ("torch", "bfloat16")) if cells else ways


def _choose(bundle: Bundle, ways: list[tuple[str, str]], tile: npt.NDArray[np.uint8]) -> None:
    """Let a bundle use the first of some ways to compute it that gives what it gives now on the golden tile."""
    from pyhisto.bundle.engine import make_engine
    from pyhisto.bundle.rewrite import fold_batch_norms, has_winograd, winograd_share

    plain, stride = bundle.compute, bundle.stride
    side = tile.shape[0] if bundle.spec.cascade else min(tile.shape[0], EXAMPLE_STRIDES * stride)
    example = normalise(tile[np.newaxis, :side, :side], bundle.spec).to(bundle.device)
    folded = fold_batch_norms(plain.network, example)
    if bundle.device == "cpu" and has_winograd() and winograd_share(folded, example) > WINOGRAD_SHARE:
        ways = sorted(ways, key=lambda way: way != ("torch", "float32"))
    for engine, precision in ways:
        inputs = [tile[np.newaxis]]
        if engine == "openvino":  # which followed one input through the network: others must come out right, too
            inputs.append(np.stack([tile[:stride, :side], tile[-stride:, :side]]))
        expected = [bundle.predict(each) for each in inputs]
        try:
            bundle.use(make_engine(engine, folded, example, bundle.device, precision))
            fault = _fault([bundle.predict(each) for each in inputs], expected, precision)
        except Exception as error:  # noqa: BLE001 - compilers and drivers fail in ways of their own
            fault = f"it fails ({str(error).splitlines()[0] if str(error) else type(error).__name__})"
        if not fault:
            return
        bundle.use(plain)
        bundle.notes += (f"{bundle.path.name} is not computed in {precision} by {engine}: {fault}",)
    if ("torch", "float32") not in ways:
        raise BundleError(bundle.notes[-1], expected="what float32 in torch gives", remedy="leave the choice to auto")


def _fault(
    found: Sequence[npt.NDArray[np.float32]], expected: Sequence[npt.NDArray[np.float32]], precision: str
) -> str:
    """Return in what some probabilities (n, classes, h, w) differ from the expected ones; empty where they agree."""
    for mine, theirs in zip(found, expected, strict=True):
        difference = np.abs(mine - theirs) if mine.shape == theirs.shape else np.full(1, np.inf)
        mean, most = float(difference.mean()), float(difference.max())
        agrees = most <= _tolerance(theirs[0]) if precision == "float32" else mean <= REDUCED_TOLERANCE
        if not agrees:
            return f"probabilities on the golden tile differ by {most:.2g}, in the mean by {mean:.2g}"
    return ""


def checked_weights(folder: Path, sha256: str) -> Path:
    """Return the file with the weights of a bundle.

    Raises
    ------
    BundleError
        If it is missing, or has another sha256 than the bundle says.
    """
    weights = folder / "models" / "model.pt"
    if not weights.is_file():
        raise BundleError(f"{weights} is missing", remedy="copy the bundle again")
    if file_sha256(weights) != sha256:
        raise BundleError(
            f"{weights} is damaged or exchanged", expected=f"sha256 {sha256[:12]}…", remedy="copy the bundle again"
        )
    return weights


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_json(path: Path, data: Mapping[str, Any]) -> None:
    """Write a JSON file."""
    path.write_text(json.dumps(data, indent=2, ensure_ascii=False) + "\n", "utf-8")
