"""A classifier of tiles on disk, and what it says of the tiles of a slide.

::

    <bundle>/configs/metadata.json   under "pyhisto" a WeakSpec and the weights' sha256
    <bundle>/configs/inference.json  the network, so that MONAI's own tools can build it
    <bundle>/models/model.pt         state dict, loaded with weights_only=True
    <bundle>/models/golden.npz       instances, and the probabilities that the model gave them when it was saved
    <bundle>/docs/README.md          model card
"""

from __future__ import annotations

import json
import pickle
import zipfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from pyhisto.bundle.card import common_metadata
from pyhisto.bundle.files import WEAK_KIND, checked_weights, file_sha256, new_folder, write_json
from pyhisto.config import from_mapping
from pyhisto.device import check_device
from pyhisto.errors import BundleError, ConfigError
from pyhisto.features.bags import Bag
from pyhisto.features.encoders import PIXELS
from pyhisto.mil.labels import Task
from pyhisto.mil.weak.network import InstanceNetwork, build_instance_network
from pyhisto.mil.weak.rule import ProxyRule
from pyhisto.mil.weak.settings import NetworkSettings
from pyhisto.mil.weak.tiles import TileSettings
from pyhisto.mil.weak.train import instance_probabilities

__all__ = ["WeakBundle", "WeakSpec", "load_weak_bundle", "save_weak_bundle", "weak_spec"]

GOLDEN_TOLERANCE = 1e-3
"""Largest difference of a probability of a golden instance between saving and loading."""

GOLDEN_INSTANCES = 16


@dataclass(frozen=True)
class WeakSpec:
    """What a classifier of tiles is.

    Attributes
    ----------
    task
        The label of slides that it was learnt from; of its two classes the second is what is looked for.
    network
        The network; its weights come from no other file.
    rule
        What labelled the tiles.
    in_features
        Numbers of an instance.
    encoder, encoder_sha256
        What makes them; ``"pixels"`` for the tiles themselves.
    tiles
        Which tiles were seen.
    kind
        Always ``"weak_segmentation"``.
    """

    task: Task
    network: NetworkSettings
    rule: ProxyRule
    in_features: int
    encoder: str
    encoder_sha256: str
    tiles: TileSettings | None
    kind: str = WEAK_KIND

    @property
    def target(self) -> str:
        """The class that is looked for."""
        return self.task.classes[1]

    def build(self) -> InstanceNetwork:
        """Return the network with weights that mean nothing yet."""
        return build_instance_network(self.network, self.in_features, self.encoder)


def weak_spec(bag: Bag, task: Task, network: NetworkSettings, rule: ProxyRule) -> WeakSpec:
    """Return the description of a classifier that is trained on bags such as one."""
    own = bag.attributes
    tiles = None
    if bag.encoder == PIXELS:
        tiles = TileSettings(int(own["tile_size_px"]), float(own["mpp"]), float(own["min_tissue"]))
    plain = NetworkSettings(**{**asdict(network), "encoder_weights": "random"})
    return WeakSpec(task, plain, rule, bag.width, bag.encoder, bag.encoder_sha256, tiles)


class WeakBundle:
    """A loaded classifier of tiles.

    Attributes
    ----------
    path, spec, sha256
        The folder, its description and the checksum of its weights.
    device, engine, precision
        Where and in what it is computed.
    """

    engine = "torch"
    precision = "float32"

    def __init__(self, path: Path, spec: WeakSpec, sha256: str, network: InstanceNetwork, device: str) -> None:
        self.path = path
        self.spec = spec
        self.sha256 = sha256
        self.device = device
        self._network = network.to(device).eval()

    def check(self, bag: Bag) -> None:
        """Refuse features of another encoder, and tiles of another size.

        Raises
        ------
        BundleError
            If they are.
        """
        spec = self.spec
        wanted = (spec.encoder, spec.encoder_sha256, spec.in_features)
        if (bag.encoder, bag.encoder_sha256, bag.width) != wanted:
            raise BundleError(
                f"{bag.path} has {bag.width} features of {_encoder(bag.encoder, bag.encoder_sha256)}",
                expected=f"{spec.in_features} of {_encoder(spec.encoder, spec.encoder_sha256)}",
                remedy=f"make features with the encoder that {self.path.name} was trained on",
            )
        if spec.tiles is not None and float(bag.attributes["mpp"]) != spec.tiles.mpp:
            raise BundleError(
                f"{bag.path} has tiles at {bag.attributes['mpp']} µm/px", expected=f"{spec.tiles.mpp:g} µm/px"
            )

    def predict(self, bag: Bag, report: Callable[[int], None] | None = None) -> npt.NDArray[np.float32]:
        """Return the probability of each instance of a bag, float32 (n,); see :func:`instance_probabilities`."""
        return instance_probabilities(self._network, bag, report=report)

    def judge(self, instances: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """Return the probability of instances, float32 or uint8 (n, in_features)."""
        with torch.inference_mode():
            found = self._network(torch.from_numpy(instances).to(self.device)).sigmoid()
        return np.asarray(found.cpu().numpy(), dtype=np.float32)


def save_weak_bundle(
    folder: str | Path,
    network: InstanceNetwork,
    spec: WeakSpec,
    *,
    golden: npt.NDArray[Any],
    training: Mapping[str, Any] | None = None,
) -> WeakBundle:
    """Write a classifier as a bundle; the folder appears whole or not at all.

    Parameters
    ----------
    folder
        Must not exist, or be an empty folder.
    network
        The trained network.
    spec
        Its description.
    golden
        float32 or uint8 (n, in_features): instances that are kept with what the model says of them, up to 16.
    training
        What it was trained on and how, as JSON types.

    Raises
    ------
    BundleError
        If the folder holds something already.
    """
    folder = Path(folder)
    description = f"Finds {spec.target} in tiles, learnt from labels of whole slides ({spec.task.name})."
    with new_folder(folder) as work:
        weights = work / "models" / "model.pt"
        torch.save({name: value.detach().cpu() for name, value in network.state_dict().items()}, weights)
        bundle = WeakBundle(folder, spec, file_sha256(weights), network, "cpu")
        instances = np.ascontiguousarray(golden[:GOLDEN_INSTANCES])
        said: dict[str, Any] = {"instances": instances, "probabilities": bundle.judge(instances)}
        np.savez_compressed(work / "models" / "golden.npz", **said)
        own = {"model": asdict(spec), "weights_sha256": bundle.sha256, "training": dict(training or {})}
        write_json(work / "configs" / "metadata.json", common_metadata(spec.kind, description) | {"pyhisto": own})
        network_def = {
            "_target_": "pyhisto.mil.weak.network.build_instance_network",
            "settings": {"_target_": "pyhisto.mil.weak.settings.NetworkSettings", **asdict(spec.network)},
            "width": spec.in_features,
            "encoder": spec.encoder,
        }
        write_json(work / "configs" / "inference.json", {"network_def": network_def})
        card = _model_card(spec, bundle.sha256, description, training or {})
        (work / "docs" / "README.md").write_text(card, "utf-8")
    return bundle


def load_weak_bundle(folder: str | Path, *, device: str = "cpu") -> WeakBundle:
    """Load a classifier of tiles and check it against its own golden instances.

    Raises
    ------
    BundleError
        If the folder is no such model, files are missing or damaged, the weights do not have the recorded sha256 or do
        not fit, or the golden instances give something else than when the model was saved.
    ConfigError
        If this machine does not have the device.
    """
    folder = Path(folder)
    check_device(device)
    try:
        own = json.loads((folder / "configs" / "metadata.json").read_text("utf-8"))["pyhisto"]
        spec, sha256 = _spec(own["model"], folder), str(own["weights_sha256"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ConfigError) as error:
        raise BundleError(
            f"{folder} is no classifier of tiles ({error})", expected="a folder that 'qupath-ext mil weak train' wrote"
        ) from error
    weights = checked_weights(folder, sha256)
    network = spec.build()
    try:
        network.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    except (RuntimeError, pickle.UnpicklingError, EOFError, TypeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise BundleError(f"{weights} does not fit the network {spec.network.name} ({reason})") from error
    bundle = WeakBundle(folder, spec, sha256, network, device)
    _check_golden(bundle)
    return bundle


def _spec(data: Mapping[str, Any], folder: Path) -> WeakSpec:
    if data.get("kind") != WEAK_KIND:
        raise BundleError(f"{folder} is a model for {data.get('kind')}", expected=f"one for {WEAK_KIND}")
    parts = {
        "task": from_mapping(Task, data["task"], "task"),
        "network": from_mapping(NetworkSettings, data["network"], "network"),
        "rule": from_mapping(ProxyRule, data["rule"], "rule"),
        "tiles": None if data["tiles"] is None else from_mapping(TileSettings, data["tiles"], "tiles"),
    }
    return from_mapping(WeakSpec, {**data, **parts}, str(folder))


def _check_golden(bundle: WeakBundle) -> None:
    path = bundle.path / "models" / "golden.npz"
    try:
        with np.load(path) as golden:
            instances, wanted = golden["instances"], golden["probabilities"]
        found = bundle.judge(instances)
        fits = found.shape == wanted.shape and bool((np.abs(found - wanted) <= GOLDEN_TOLERANCE).all())
    except (OSError, ValueError, KeyError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        raise BundleError(f"{path} is missing or damaged ({error})", remedy="copy the bundle again") from error
    if not fits:
        raise BundleError(
            f"{bundle.path} says something else of its golden tiles than when it was saved",
            remedy="install the versions that its model card names, or train it again",
        )


def _model_card(spec: WeakSpec, sha256: str, description: str, training: Mapping[str, Any]) -> str:
    seen = f"{spec.in_features} features of {_encoder(spec.encoder, spec.encoder_sha256)}"
    if spec.tiles is not None:
        seen = f"RGB tiles of {spec.tiles.tile_size} px at {spec.tiles.mpp:g} µm/px"
    lines = [
        f"# Weak segmentation ({spec.network.name})",
        "",
        description,
        "",
        "## Input",
        f"{seen[0].upper()}{seen[1:]}.",
        "",
        "## Output",
        f"The probability that a tile is {spec.target}.",
        "",
        "## Training",
        f"Proxy labels with alpha {spec.rule.alpha:g} and beta {spec.rule.beta:g} (Lerousseau et al. 2020).",
        *(f"- {name}: {value}" for name, value in training.items()),
        "",
        "## Limits",
        "No tile was ever labelled by a person. Research use only; not a medical device. Judge it on your own slides "
        "before you rely on it.",
        "",
        f"Weights sha256: `{sha256}` · MONAI {version('monai')} · torch {version('torch')}",
        "",
    ]
    return "\n".join(lines)


def _encoder(name: str, sha256: str) -> str:
    return f"{name or 'an unnamed encoder'} ({sha256[:12] or 'no sha256'})"
