"""Training on slide labels, and judging predictions of them."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from pyhisto.bundle.files import write_json
from pyhisto.errors import ConfigError
from pyhisto.features.bags import list_bags
from pyhisto.mil.bundle import SlideBundle, SlideSpec, save_slide_bundle
from pyhisto.mil.crossval import CrossValidated, FoldPlan, cross_validate
from pyhisto.mil.data import LabelledBags, label_bags
from pyhisto.mil.labels import LabelTable, Task, label_table, read_labels
from pyhisto.mil.metrics import FIGURES
from pyhisto.mil.predictions import judge, prediction_table, read_predictions, with_labels, write_predictions
from pyhisto.mil.settings import FitSettings
from pyhisto.mil.train import Epoch, Fitted
from qupath_ext.project import Project

__all__ = [
    "LabelSource",
    "SlideTraining",
    "TrainedSlides",
    "described_figures",
    "judge_predictions",
    "predict_bags",
    "train_slides",
]

Say = Callable[[str], None]


@dataclass(frozen=True)
class LabelSource:
    """Where labels of slides come from: one of a table and a project.

    Attributes
    ----------
    table
        CSV file; see :func:`pyhisto.mil.labels.read_labels`.
    project
        The metadata of its images are the labels.
    patient_key
        Metadata that name the patient.
    wanted
        As in :func:`pyhisto.mil.labels.label_table`.
    """

    table: Path | None = None
    project: Project | None = None
    patient_key: str = "Patient"
    wanted: tuple[str, ...] = ()

    def read(self) -> LabelTable:
        """Read them.

        Raises
        ------
        ConfigError
            If there is not one source, no label of a project is named, or the labels are refused.
        """
        if (self.table is None) == (self.project is None):
            raise ConfigError("labels from a table and a project, or from none", expected="--labels or --project")
        if self.table is not None:
            return read_labels(self.table, self.wanted)
        entries = [] if self.project is None else self.project.entries
        if not self.wanted:
            known = sorted({name for entry in entries for name in entry.metadata})
            raise ConfigError(
                "no label named",
                expected=f"--label with metadata of the images ({', '.join(known) or 'there are none'})",
            )
        metadata = [{name: value.strip() for name, value in entry.metadata.items()} for entry in entries]
        patients = [values.get(self.patient_key, "") for values in metadata]
        return label_table([entry.name for entry in entries], patients, metadata, self.wanted)


@dataclass(frozen=True)
class SlideTraining:
    """What is to be trained.

    Attributes
    ----------
    features
        Folder of feature files.
    labels
        Their labels.
    output
        Folder for the model and all that belongs to it.
    plan, settings
        How the slides are divided, and how each network is trained.
    external_features, external_labels
        Folder and table of slides that no network sees; both or none.
    device
        Where networks run.
    """

    features: Path
    labels: LabelSource
    output: Path
    plan: FoldPlan = field(default_factory=FoldPlan)
    settings: FitSettings = field(default_factory=FitSettings)
    external_features: Path | None = None
    external_labels: Path | None = None
    device: str = "cpu"


@dataclass(frozen=True)
class TrainedSlides:
    """What came of a training.

    Attributes
    ----------
    bundle
        The model, one member a fold.
    figures
        As :func:`pyhisto.mil.predictions.judge` gives them.
    notes
        What deserves a look.
    """

    bundle: SlideBundle
    figures: list[dict[str, Any]]
    notes: tuple[str, ...]


def train_slides(wanted: SlideTraining, *, say: Say | None = None) -> TrainedSlides:
    """Cross-validate, and write ``model/``, ``predictions.csv``, ``metrics.json`` and the checkpoints.

    What was killed goes on when it is called again with the same.

    Raises
    ------
    ConfigError
        If there is a model already, or the features, labels or folds are refused; nothing was written then.
    TrainingError
        If a fold lacks a class, or the loss is no finite number.
    """
    if (wanted.output / "model").exists():
        raise ConfigError(f"{wanted.output / 'model'} exists already", remedy="choose another --output or remove it")
    bags, notes = label_bags(list_bags(wanted.features), wanted.labels.read())
    external = _external(wanted, bags.tasks, notes)
    divided = list(wanted.plan.parts(bags))

    def tell(repeat: int, fold: int, row: Epoch) -> None:
        if say is not None:
            judged = "" if row.validation is None else f", validation {row.validation:.4f}"
            say(f"repeat {repeat}, fold {fold}, epoch {row.number}: loss {row.loss:.4f}{judged}")

    found = cross_validate(
        bags,
        wanted.plan,
        wanted.settings,
        folder=wanted.output,
        external=external,
        device=wanted.device,
        report=tell,
    )
    for (repeat, fold, _, _), one in zip(divided, found.fitted, strict=True):
        _write_curve(wanted.output / f"repeat-{repeat}" / f"fold-{fold}" / "curve.csv", one)
    write_predictions(wanted.output / "predictions.csv", found.predictions)
    figures = judge(found.predictions, seed=wanted.plan.seed)
    write_json(wanted.output / "metrics.json", {"figures": figures, "notes": notes})
    bundle = _save(wanted, bags, found, figures)
    return TrainedSlides(bundle, figures, tuple(notes))


def predict_bags(features: Path, bundle: SlideBundle) -> pd.DataFrame:
    """Return what a model says of all feature files of a folder, as a table of predictions.

    Raises
    ------
    ConfigError
        If there is no feature file.
    BundleError
        If a file is of another encoder, or empty.
    """
    bags = list_bags(features)
    for bag in bags:
        bundle.check(bag)
    said = [bundle.predict(bag.features) for bag in bags]
    tasks = bundle.spec.tasks
    values = [np.stack([one[number].probabilities for one in said]) for number in range(len(tasks))]
    return prediction_table(tasks, [bag.name for bag in bags], [bag.patient or bag.name for bag in bags], values)


def judge_predictions(predictions: Path, labels: LabelSource | None, *, seed: int = 0) -> list[dict[str, Any]]:
    """Return the figures of a table of predictions, with the true classes in it or those of another source.

    Raises
    ------
    ConfigError
        If the table or the labels are refused, or no slide has a true class.
    """
    table = read_predictions(predictions)
    if labels is not None:
        table = with_labels(table, labels.read())
    figures = judge(table, seed=seed)
    if not figures:
        raise ConfigError(f"{predictions} has no true classes", remedy="give them with --labels or --project")
    return figures


def described_figures(figures: Sequence[dict[str, Any]]) -> list[str]:
    """Return a line about each figure."""
    lines = []
    for row in figures:
        lines.append(f"{row['set']}, {row['task']}: {row['slides']} slides of {row['patients']} patients")
        for name in FIGURES:
            value = row[name]
            known = [one for one in value["by_fold"] if one is not None]
            folds = f"; mean of {len(known)} folds {sum(known) / len(known):.3f}" if len(known) > 1 else ""
            lines.append(f"  {name:<17} {_number(value['value'])} ({_range(value)}{folds})")
    return lines


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _range(value: dict[str, Any]) -> str:
    if value["low"] is None:
        return str(value["method"])
    return f"{value['low']:.3f} to {value['high']:.3f}"


def _external(wanted: SlideTraining, tasks: Sequence[Task], notes: list[str]) -> LabelledBags | None:
    if wanted.external_features is None and wanted.external_labels is None:
        return None
    if wanted.external_features is None or wanted.external_labels is None:
        raise ConfigError("external features or labels alone", expected="--external and --external-labels")
    same = [f"{task.name}={','.join(task.classes)}" for task in tasks]
    bags, more = label_bags(list_bags(wanted.external_features), read_labels(wanted.external_labels, same))
    notes += [f"external: {note}" for note in more]
    return bags


def _write_curve(path: Path, fitted: Fitted) -> None:
    rows = [{**asdict(row), "best": row.number == fitted.best} for row in fitted.epochs]
    pd.DataFrame(rows).to_csv(path, index=False)


def _save(
    wanted: SlideTraining, bags: LabelledBags, found: CrossValidated, figures: list[dict[str, Any]]
) -> SlideBundle:
    settings, first = wanted.settings, bags.bags[0]
    spec = SlideSpec(
        tasks=bags.tasks,
        head=settings.head,
        options=settings.options,
        in_features=first.width,
        encoder=first.encoder,
        encoder_sha256=first.encoder_sha256,
        scaled=settings.scaled,
        members=len(found.members),
    )
    training = {
        "slides": len(bags.bags),
        "patients": len(set(bags.patients)),
        "settings": json.loads(json.dumps(asdict(settings))),
        "folds": asdict(wanted.plan),
        "figures": described_figures(figures),
    }
    names = ", ".join(task.name for task in bags.tasks)
    return save_slide_bundle(
        wanted.output / "model",
        found.members,
        spec,
        golden=first.features,
        description=f"Predicts {names} of whole slides from bags of tile features.",
        training=training,
    )
