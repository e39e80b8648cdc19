"""Weak segmentation: classifiers of tiles from labels of slides, one for each pair of alpha and beta."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import shapely

from pyhisto.bundle.files import write_json
from pyhisto.device import check_device
from pyhisto.errors import ConfigError
from pyhisto.features.bags import Bag
from pyhisto.mil.data import LabelledBags, label_bags
from pyhisto.mil.folds import validation_part
from pyhisto.mil.labels import UNKNOWN
from pyhisto.mil.predictions import prediction_table, write_predictions
from pyhisto.mil.weak.bundle import WeakBundle, load_weak_bundle, save_weak_bundle, weak_spec
from pyhisto.mil.weak.rule import ProxyRule, weighted_auroc
from pyhisto.mil.weak.settings import WeakSettings
from pyhisto.mil.weak.train import WeakFit, fit_weak, training_identity
from pyhisto.mil.weak.tumourmap import JudgedTiles, judge_tiles, score_tiles, tile_boxes
from qupath_ext.frames import open_slide, to_slide_frame
from qupath_ext.project import ImageEntry, Project
from qupath_ext.runs.ownership import sort_out
from qupath_ext.runs.record import list_runs
from qupath_ext.workflows.images import Progress
from qupath_ext.workflows.mil import LabelSource
from qupath_ext.workflows.milpredict import bags_of_entries
from qupath_ext.workflows.trainingdata import IMPORTS
from qupath_ext.workflows.weaktable import draw_pairs, write_pairs

__all__ = ["Truth", "WeakTraining", "train_pairs"]

THRESHOLD = 0.5
"""Probability from which tiles count as found in the table of pairs."""


@dataclass(frozen=True)
class Truth:
    """True areas, by which tiles are judged.

    Attributes
    ----------
    project
        Its annotations are the areas, but for those that a run wrote and nobody touched.
    classification
        Their class. An image of a negative slide needs none; one of a positive slide without any is not judged.
    """

    project: Project
    classification: str


@dataclass(frozen=True)
class WeakTraining:
    """What is to be trained.

    Attributes
    ----------
    bags
        Feature files, or tiles of slides.
    labels
        Their labels: one, with two classes, of which the second is what is looked for.
    output
        Folder for all that comes of it.
    rules
        Pairs of alpha and beta.
    settings
        How each network is trained.
    validation, test
        Share of the patients by which training stops, and of those that the table is made of; 0 for none. Without test
        slides the table is made of the validation slides, and without these of the training slides.
    truth
        True areas, if there are any.
    device
        Where networks run.
    """

    bags: Sequence[Bag]
    labels: LabelSource
    output: Path
    rules: Sequence[ProxyRule]
    settings: WeakSettings = field(default_factory=WeakSettings)
    validation: float = 0.2
    test: float = 0.2
    truth: Truth | None = None
    device: str = "cpu"


@dataclass(frozen=True)
class _Parts:
    """Slides for training, stopping and judging, and what is true of the last; notes on all of them."""

    training: LabelledBags
    validation: LabelledBags | None
    judged: LabelledBags
    kind: str
    truth: dict[str, tuple[npt.NDArray[np.object_], Any]]
    notes: tuple[str, ...]


def train_pairs(
    wanted: WeakTraining, *, say: Callable[[str], None], progress: Progress | None = None
) -> Iterator[dict[str, Any]]:
    """Train a classifier for each pair, and write ``alpha-<a>-beta-<b>/`` with its model, curve and predictions.

    ``pairs.csv`` is written anew after each pair, ``pairs.png`` after the last. A pair that is there already is not
    trained again, and one that was killed goes on.

    Parameters
    ----------
    wanted
        See :class:`WeakTraining`.
    say
        Called with notes.
    progress
        Called with the pair, the number of epochs done and the most.

    Yields
    ------
    dict
        A row of the table: ``alpha``, ``beta``, ``epochs``, ``best_epoch``, ``judged_on``, ``slides``, ``slide_auroc``,
        ``pixel_auc``, ``recall``, ``precision``, ``dice``; figures that cannot be computed are None.

    Raises
    ------
    ConfigError
        If labels, shares, network or device are refused, or a pair is there of another training; nothing was written
        then.
    TrainingError
        If training or validation slides are all of one class, or the loss is no finite number.
    """
    check_device(wanted.device)
    parts = _divide(wanted)
    for note in parts.notes:
        say(note)
    identities = {rule: _identity(parts, rule, wanted) for rule in wanted.rules}
    finished = {rule: _finished(_folder(wanted.output, rule), identities[rule]) for rule in wanted.rules}
    rows = []
    for rule in wanted.rules:
        row = finished[rule]
        if row is None:
            row = _train(wanted, parts, rule, identities[rule], progress)
        rows.append(row)
        write_pairs(wanted.output, rows)
        yield row
    draw_pairs(wanted.output, rows)


def _divide(wanted: WeakTraining) -> _Parts:
    """Deal out the slides by patient."""
    bags, notes = label_bags(wanted.bags, wanted.labels.read())
    if len(bags.tasks) != 1 or len(bags.tasks[0].classes) != 2:
        told = "; ".join(f"{task.name!r} with {', '.join(task.classes)}" for task in bags.tasks)
        raise ConfigError(told, expected="one label with two classes", remedy="name them: --label NAME=no,yes")
    bags = bags.take(bags.labels[:, 0] != UNKNOWN)
    seed = wanted.settings.seed
    test = validation_part(bags.patients, bags.labels, wanted.test, seed)
    rest = bags.take(~test)
    stop = validation_part(rest.patients, rest.labels, wanted.validation, seed + 7919)
    training = rest.take(~stop)
    validation = rest.take(stop) if stop.any() else None
    judged, kind = (bags.take(test), "test") if test.any() else (validation, "validation")
    if judged is None:
        judged, kind = training, "training"
    truth: dict[str, tuple[npt.NDArray[np.object_], Any]] = {}
    if wanted.truth is not None:
        truth = _true_areas(judged, wanted.truth)
        notes.append(f"true areas of {len(truth)} of {len(judged.bags)} {kind} slides")
    return _Parts(training, validation, judged, kind, truth, tuple(notes))


def _true_areas(bags: LabelledBags, truth: Truth) -> dict[str, tuple[npt.NDArray[np.object_], Any]]:
    """Return tiles and true area, level-0 px, of each bag that has one, by name."""
    entries = truth.project.entries
    of_entry = bags_of_entries(entries, bags.bags)
    runs = [run for run in list_runs(truth.project) if run.analysis != IMPORTS]
    label = {bag.name: int(value) for bag, value in zip(bags.bags, bags.labels[:, 0], strict=True)}
    out = {}
    for entry in entries:
        bag = of_entry.get(entry.id)
        if bag is None:
            continue
        present = entry.read_objects()
        untouched, _ = sort_out(truth.project, entry.id, present, runs)
        drawn = to_slide_frame(present.drop(index=untouched), entry)
        mine = (drawn["object_type"] == "annotation") & (drawn["classification"] == truth.classification)
        shapes = drawn.geometry.to_numpy()[mine.to_numpy()]
        if len(shapes) or label[bag.name] == 0:
            out[bag.name] = (tile_boxes(bag, _origin(bag, entry)), shapely.union_all(shapely.make_valid(shapes)))
    return out


def _origin(bag: Bag, entry: ImageEntry) -> tuple[int, int]:
    """Return where the slide's frame begins in its file, level-0 px, if the bag does not know it."""
    if "origin" in bag.attributes:
        return 0, 0
    with open_slide(entry) as slide:
        return slide.origin


def _train(
    wanted: WeakTraining, parts: _Parts, rule: ProxyRule, identity: str, progress: Progress | None
) -> dict[str, Any]:
    """Train a pair, judge it, and write all that belongs to it; the record comes last and vouches for the rest."""
    folder = _folder(wanted.output, rule)
    settings = wanted.settings
    show = progress or _show_nothing
    fit = fit_weak(
        parts.training,
        parts.validation,
        rule,
        settings,
        folder=folder,
        device=wanted.device,
        report=lambda row: show(folder.name, row.number, settings.epochs),
    )
    pd.DataFrame([{**asdict(row), "best": row.number == fit.best} for row in fit.epochs]).to_csv(
        folder / "curve.csv", index=False
    )
    bundle = _bundle(folder / "model", wanted, parts, rule, fit)
    found = [bundle.predict(bag) for bag in parts.judged.bags]
    row = {
        "alpha": rule.alpha,
        "beta": rule.beta,
        "epochs": len(fit.epochs),
        "best_epoch": fit.best,
        **_figures(parts, rule, found),
    }
    slides = [rule.slide_probability(one) for one in found]
    _write_slides(folder / "predictions.csv", parts, slides)
    write_json(folder / "pair.json", {"identity": identity, "row": row})
    return row


def _bundle(path: Path, wanted: WeakTraining, parts: _Parts, rule: ProxyRule, fit: WeakFit) -> WeakBundle:
    """Save the network, in place of one that was saved before the pair was interrupted."""
    if path.exists():
        shutil.rmtree(path)
    bags = parts.training
    first = bags.bags[0]
    training = {
        "slides": len(bags.bags),
        "patients": len(set(bags.patients)),
        "epoch": fit.best,
        "settings": json.loads(json.dumps(asdict(wanted.settings))),
    }
    spec = weak_spec(first, bags.tasks[0], wanted.settings.network, rule)
    golden = first.rows(np.arange(min(first.instances, 16)))
    save_weak_bundle(path, fit.network, spec, golden=golden, training=training)
    return load_weak_bundle(path, device=wanted.device)


def _figures(parts: _Parts, rule: ProxyRule, found: Sequence[npt.NDArray[np.float32]]) -> dict[str, Any]:
    positive = parts.judged.labels[:, 0].astype(np.float64)
    slides = np.array([rule.slide_probability(one) for one in found])
    out: dict[str, Any] = {
        "judged_on": parts.kind,
        "slides": len(found),
        "slide_auroc": _known(weighted_auroc(slides, positive, 1 - positive)),
    }
    judged: list[JudgedTiles] = [
        judge_tiles(parts.truth[bag.name][0], said, parts.truth[bag.name][1])
        for bag, said in zip(parts.judged.bags, found, strict=True)
        if bag.name in parts.truth
    ]
    if not judged:
        return out | dict.fromkeys(("pixel_auc", "recall", "precision", "dice"))
    score = score_tiles(judged, THRESHOLD)
    area = {"recall": score.area.recall, "precision": score.area.precision, "dice": score.area.dice}
    return out | {"pixel_auc": _known(score.auc), **area}


def _known(value: float) -> float | None:
    return None if np.isnan(value) else value


def _write_slides(path: Path, parts: _Parts, slides: Sequence[float]) -> None:
    """Write the probabilities of the judged slides, as ``qupath-ext mil evaluate`` reads them."""
    yes = np.array(slides)
    bags = parts.judged
    table = prediction_table(
        bags.tasks,
        [bag.name for bag in bags.bags],
        bags.patients,
        [np.stack([1 - yes, yes], axis=1)],
        labels=bags.labels,
        kind=parts.kind,
    )
    write_predictions(path, table)


def _folder(output: Path, rule: ProxyRule) -> Path:
    return output / f"alpha-{rule.alpha:g}-beta-{rule.beta:g}"


def _identity(parts: _Parts, rule: ProxyRule, wanted: WeakTraining) -> str:
    """Return a hash of all that decides a pair's row."""
    judged = [parts.kind, [bag.name for bag in parts.judged.bags], sorted(parts.truth)]
    areas = [parts.truth[name][1].wkb_hex for name in sorted(parts.truth)]
    trained = training_identity(parts.training, parts.validation, rule, wanted.settings)
    return hashlib.sha256(json.dumps([trained, judged, areas]).encode()).hexdigest()


def _finished(folder: Path, identity: str) -> dict[str, Any] | None:
    """Return the row of a pair that is there already, if it is of this training.

    Raises
    ------
    ConfigError
        If there is a model of another training.
    """
    path = folder / "pair.json"
    if not path.is_file():
        if (folder / "model").exists() and not (folder / "checkpoint.pt").is_file():
            raise ConfigError(f"{folder / 'model'} exists already", remedy="choose another --output or remove it")
        return None
    try:
        found = json.loads(path.read_text("utf-8"))
        same, row = found["identity"] == identity, dict(found["row"])
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path} is damaged ({error})", remedy="remove its folder") from error
    if not same:
        raise ConfigError(
            f"{folder} is of a training on other slides or with other settings",
            remedy="choose another --output, or remove it",
        )
    return row


def _show_nothing(stage: str, done: int, total: int) -> None:
    del stage, done, total
