"""A model for slide labels on disk, and what it says of a slide.

::

    <bundle>/configs/metadata.json   under "pyhisto" a SlideSpec and the weights' sha256
    <bundle>/configs/inference.json  the network, so that MONAI's own tools can build a member
    <bundle>/models/model.pt         state dicts of the members, loaded with weights_only=True
    <bundle>/models/golden.npz       instances, and the probabilities and attention the model gave when it was saved
    <bundle>/docs/README.md          model card

A model may have several members, such as one for each fold: what it says is the mean of what they say.
"""

from __future__ import annotations

import json
import pickle
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from pyhisto.bundle.card import common_metadata
from pyhisto.bundle.files import SLIDE_KIND, checked_weights, file_sha256, new_folder, write_json
from pyhisto.config import from_mapping
from pyhisto.device import check_device
from pyhisto.errors import BundleError, ConfigError
from pyhisto.features.bags import Bag
from pyhisto.mil.labels import Task
from pyhisto.mil.model import SlideModel, build_slide_model
from pyhisto.models.mil import HeadSettings

__all__ = ["SlideBundle", "SlidePrediction", "SlideSpec", "load_slide_bundle", "save_slide_bundle"]

Floats = npt.NDArray[np.float32]

GOLDEN_TOLERANCE = 1e-3
"""Largest difference of a probability of the golden bag between saving and loading."""

GOLDEN_INSTANCES = 64


@dataclass(frozen=True)
class SlideSpec:
    """What a model for slide labels is.

    Attributes
    ----------
    tasks
        The labels that it gives.
    head, options
        As for :func:`pyhisto.models.mil.build_head`.
    in_features
        Numbers of an instance.
    encoder, encoder_sha256
        What makes the features; empty where the feature files did not say it.
    scaled
        As for :func:`pyhisto.mil.model.build_slide_model`.
    members
        Networks whose mean it says.
    kind
        Always ``"slide_classification"``.
    """

    tasks: tuple[Task, ...]
    head: str
    options: HeadSettings
    in_features: int
    encoder: str
    encoder_sha256: str
    scaled: bool = True
    members: int = 1
    kind: str = SLIDE_KIND

    def network(self) -> dict[str, Any]:
        """Return MONAI's description of a member."""
        return {
            "_target_": "pyhisto.mil.model.build_slide_model",
            "head": self.head,
            "in_features": self.in_features,
            "classes": [len(task.classes) for task in self.tasks],
            "scaled": self.scaled,
            **asdict(self.options.without_files()),
        }

    def build(self) -> SlideModel:
        """Return a member with weights that mean nothing yet."""
        options = {name: value for name, value in self.network().items() if name != "_target_"}
        return build_slide_model(**options)


@dataclass(frozen=True)
class SlidePrediction:
    """What a model says of one label of a slide.

    Attributes
    ----------
    task
        The label.
    probabilities
        float32 (classes,), with a sum of 1.
    attention
        float32 (instances,), with a sum of 1: of heads with one attention a class that of the most probable class.
    scores
        float32 (instances, classes), what each instance says by itself, on the scale of the head; None where the head
        has none.
    """

    task: Task
    probabilities: Floats
    attention: Floats
    scores: Floats | None


class SlideBundle:
    """A loaded model for slide labels.

    Attributes
    ----------
    path, spec, sha256
        The folder, its description and the checksum of its weights.
    device, engine, precision
        Where and in what it is computed.
    """

    engine = "torch"
    precision = "float32"

    def __init__(self, path: Path, spec: SlideSpec, sha256: str, members: Sequence[SlideModel], device: str) -> None:
        self.path = path
        self.spec = spec
        self.sha256 = sha256
        self.device = device
        self._members = [member.to(device).eval() for member in members]

    def check(self, bag: Bag) -> None:
        """Refuse features of another encoder.

        Raises
        ------
        BundleError
            If it is another one, or the bag is empty.
        """
        spec = self.spec
        wanted = (spec.encoder, spec.encoder_sha256, spec.in_features)
        if (bag.encoder, bag.encoder_sha256, bag.width) != wanted:
            raise BundleError(
                f"{bag.path} has {bag.width} features of {_encoder(bag.encoder, bag.encoder_sha256)}",
                expected=f"{spec.in_features} of {_encoder(spec.encoder, spec.encoder_sha256)}",
                remedy=f"make features with the encoder that {self.path.name} was trained on",
            )
        if bag.instances == 0:
            raise BundleError(f"{bag.path} has no instance", expected="one or more")

    def predict(self, features: Floats) -> list[SlidePrediction]:
        """Return what the model says of a bag, one prediction a label.

        Parameters
        ----------
        features
            float32 (instances, in_features), at least one instance.
        """
        with torch.inference_mode():
            instances = torch.from_numpy(np.ascontiguousarray(features, dtype=np.float32)).to(self.device)
            outputs = [member(instances) for member in self._members]
        return [self._mean(task, [each[number] for each in outputs]) for number, task in enumerate(self.spec.tasks)]

    def _mean(self, task: Task, outputs: Sequence[Any]) -> SlidePrediction:
        probabilities = torch.stack([one.logits.softmax(dim=1)[0] for one in outputs]).mean(dim=0)
        best = int(probabilities.argmax())
        attentions = [one.attention if one.attention.ndim == 1 else one.attention[:, best] for one in outputs]
        scores = None
        if all(one.instance is not None for one in outputs):
            scores = torch.stack([one.instance for one in outputs]).mean(dim=0).cpu().numpy()
        attention = torch.stack(attentions).mean(dim=0)
        return SlidePrediction(task, probabilities.cpu().numpy(), attention.cpu().numpy(), scores)


def save_slide_bundle(
    folder: str | Path,
    members: Sequence[SlideModel],
    spec: SlideSpec,
    *,
    golden: Floats,
    description: str,
    training: Mapping[str, Any] | None = None,
) -> SlideBundle:
    """Write a model as a bundle; the folder appears whole or not at all.

    Parameters
    ----------
    folder
        Must not exist, or be an empty folder.
    members
        The trained networks.
    spec
        Their description.
    golden
        float32 (instances, in_features), of which up to 64 are kept with what the model says of them.
    description
        One or two sentences for the model card.
    training
        What it was trained on and how, as JSON types.

    Raises
    ------
    BundleError
        If the folder holds something already.
    """
    folder = Path(folder)
    with new_folder(folder) as work:
        weights = work / "models" / "model.pt"
        torch.save([{k: v.detach().cpu() for k, v in member.state_dict().items()} for member in members], weights)
        bundle = SlideBundle(folder, spec, file_sha256(weights), members, "cpu")
        instances = np.ascontiguousarray(golden[:GOLDEN_INSTANCES], dtype=np.float32)
        said: dict[str, Any] = {"instances": instances, **_said(bundle, instances)}
        np.savez_compressed(work / "models" / "golden.npz", **said)
        own = {"model": asdict(spec), "weights_sha256": bundle.sha256, "training": dict(training or {})}
        write_json(work / "configs" / "metadata.json", common_metadata(spec.kind, description) | {"pyhisto": own})
        write_json(work / "configs" / "inference.json", {"network_def": spec.network()})
        card = _model_card(spec, bundle.sha256, description, training or {})
        (work / "docs" / "README.md").write_text(card, "utf-8")
    return bundle


def load_slide_bundle(folder: str | Path, *, device: str = "cpu") -> SlideBundle:
    """Load a model for slide labels and check it against its own golden bag.

    Raises
    ------
    BundleError
        If the folder is no such model, files are missing or damaged, the weights do not have the recorded sha256 or do
        not fit, or the golden bag gives something else than when the model was saved.
    ConfigError
        If this machine does not have the device.
    """
    folder = Path(folder)
    check_device(device)
    path = folder / "configs" / "metadata.json"
    try:
        own = json.loads(path.read_text("utf-8"))["pyhisto"]
        spec, sha256 = _spec(own["model"], folder), str(own["weights_sha256"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ConfigError) as error:
        raise BundleError(
            f"{folder} is no model for slide labels ({error})", expected="a folder that 'qupath-ext mil train' wrote"
        ) from error
    weights = checked_weights(folder, sha256)
    members = [spec.build() for _ in range(spec.members)]
    try:
        states = torch.load(weights, map_location="cpu", weights_only=True)
        for member, state in zip(members, states, strict=True):
            member.load_state_dict(state)
    except (RuntimeError, pickle.UnpicklingError, EOFError, TypeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise BundleError(f"{weights} does not fit the head {spec.head} ({reason})") from error
    bundle = SlideBundle(folder, spec, sha256, members, device)
    _check_golden(bundle)
    return bundle


def _spec(data: Mapping[str, Any], folder: Path) -> SlideSpec:
    if data.get("kind") != SLIDE_KIND:
        raise BundleError(f"{folder} is a model for {data.get('kind')}", expected=f"one for {SLIDE_KIND}")
    tasks = tuple(from_mapping(Task, task, "task") for task in data["tasks"])
    rest = {name: value for name, value in data.items() if name != "tasks"}
    return from_mapping(SlideSpec, {**rest, "tasks": tasks}, str(folder))


def _said(bundle: SlideBundle, instances: Floats) -> dict[str, Floats]:
    found = bundle.predict(instances)
    return {
        "probabilities": np.concatenate([one.probabilities for one in found]),
        "attention": np.concatenate([one.attention for one in found]),
    }


def _check_golden(bundle: SlideBundle) -> None:
    path = bundle.path / "models" / "golden.npz"
    try:
        with np.load(path) as golden:
            arrays = dict(golden)
        found = _said(bundle, arrays.pop("instances"))
        fits = found.keys() == arrays.keys() and all(found[name].shape == arrays[name].shape for name in found)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise BundleError(f"{path} is missing or damaged ({error})", remedy="copy the bundle again") from error
    if not fits or not all(np.abs(found[name] - arrays[name]).max() <= GOLDEN_TOLERANCE for name in found):
        raise BundleError(
            f"{bundle.path} says something else of its golden bag than when it was saved",
            remedy="install the versions that its model card names, or train it again",
        )


def _model_card(spec: SlideSpec, sha256: str, description: str, training: Mapping[str, Any]) -> str:
    members = "one network" if spec.members == 1 else f"the mean of {spec.members} networks"
    lines = [
        f"# Slide classification ({spec.head})",
        "",
        description,
        "",
        "## Input",
        f"Bags of tiles with {spec.in_features} features of {_encoder(spec.encoder, spec.encoder_sha256)}.",
        "",
        "## Output",
        f"Softmax over the classes of each label, {members}:",
        *(f"- {task.name}: {', '.join(task.classes)}" for task in spec.tasks),
        "",
        "## Training",
        *(f"- {name}: {value}" for name, value in training.items()),
        "",
        "## Limits",
        "Research use only; not a medical device. Judge it on your own slides before you rely on it.",
        "",
        f"Weights sha256: `{sha256}` · MONAI {version('monai')} · torch {version('torch')}",
        "",
    ]
    return "\n".join(lines)


def _encoder(name: str, sha256: str) -> str:
    return f"{name or 'an unnamed encoder'} ({sha256[:12] or 'no sha256'})"
