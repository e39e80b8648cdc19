"""What stands in a bundle beside the weights: MONAI's metadata, the network's configuration, and the model card."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

from pyhisto.bundle.spec import ModelSpec
from pyhisto.stain import StainReference

__all__ = ["common_metadata", "inference_config", "metadata", "model_card"]


def common_metadata(kind: str, description: str) -> dict[str, Any]:
    """Return what MONAI's metadata say of a model of any kind: name, task, versions, where authors are named."""
    return {
        "version": "1.0.0",
        "changelog": {"1.0.0": "trained"},
        "monai_version": version("monai"),
        "pytorch_version": version("torch"),
        "numpy_version": version("numpy"),
        "required_packages_version": {"qupath-ext": version("qupath-ext")},
        "name": kind,
        "task": kind.replace("_", " "),
        "description": description,
        "authors": "see docs/README.md",
        "copyright": "see docs/README.md",
    }


def metadata(spec: ModelSpec, sha256: str, description: str, training: Mapping[str, Any]) -> dict[str, Any]:
    """Return MONAI's metadata with this project's keys under "pyhisto"."""
    n, size = len(spec.classes), spec.tile_size
    image = {"type": "image", "format": "RGB", "modality": "brightfield histology", "num_channels": 3}
    output = {"type": "probabilities", "format": "segmentation", "num_channels": n, "spatial_shape": [size, size]}
    return {
        "schema": "https://github.com/Project-MONAI/MONAI-extra-test-data/releases/download/0.8.1/meta_schema_20240725.json",
        **common_metadata(spec.kind, description),
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


def inference_config(spec: ModelSpec) -> dict[str, Any]:
    """Return MONAI's description of the network, from which its own tools build it."""
    network = {
        "name": spec.architecture,
        "out_channels": spec.out_channels,
        "decoder_channels": list(spec.decoder_channels),
    }
    if spec.cascade is None:
        return {"network_def": {"_target_": "pyhisto.models.build_model", **network}}
    detector = {
        "name": spec.cascade.detector,
        "out_channels": len(spec.classes),
        "patch": spec.cascade.patch_size,
        "channels": list(spec.cascade.channels),
    }
    return {
        "network_def": {
            "_target_": "pyhisto.models.cascade.build_cascade",
            "detector": detector,
            "refiner": {**network, "heat_channels": len(spec.classes) - 1},
            "ratio": spec.ratio,
        }
    }


def model_card(spec: ModelSpec, sha256: str, description: str, training: Mapping[str, Any]) -> str:
    """Return the model card as Markdown."""
    lines = [
        f"# {spec.kind.replace('_', ' ').capitalize()} ({spec.architecture})",
        "",
        description,
        "",
        "## Input",
        f"RGB tiles of {spec.tile_size} x {spec.tile_size} px at {spec.mpp} µm/px; (rgb / 255 - "
        f"{list(spec.channel_mean)}) / {list(spec.channel_std)}.",
        *_first_stage(spec),
        "",
        "## Output",
        *(f"{i}. {c.name}" + (f" → QuPath class `{c.classification}`" if c.classification else "")
          for i, c in enumerate(spec.classes)),
        "",
        f"Sigmoid channels for the regions {[list(region) for region in spec.regions]} of these classes."
        if spec.regions
        else "Softmax over these classes.",
        "",
        "## Slides like those it was trained on",
        f"Median nucleus {spec.nucleus_diameter_um:.1f} µm." if spec.nucleus_diameter_um else "Nuclei not measured.",
        f"Stains {_text(spec.stains)}." if spec.stains else "Stains not measured.",
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


def _first_stage(spec: ModelSpec) -> list[str]:
    """Return what a coarse-to-fine model sees besides."""
    cascade = spec.cascade
    if cascade is None:
        return []
    where = "everywhere"
    if cascade.propose:
        where = f"where the second network, without that probability, gives a class {cascade.proposal_threshold:g}"
        where += f" or more, and {cascade.proposal_margin_um:g} µm around"
    return [
        f"With it goes the probability of each class but background in patches of {cascade.patch_size} px at "
        f"{cascade.mpp} µm/px, from a first network ({cascade.detector}) that is run {where}."
    ]


def _text(reference: StainReference) -> str:
    rows = zip(reference.stains.names, reference.stains.vectors, reference.p99, strict=True)
    vectors = [f"{name} {', '.join(f'{v:.3f}' for v in vector)} up to OD {high:.2f}" for name, vector, high in rows]
    white = ", ".join(f"{value:.0f}" for value in reference.stains.background)
    return f"{'; '.join(vectors)}; white {white}"
