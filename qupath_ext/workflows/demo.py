"""The demonstration: slides, a QuPath project, annotations, training, a Ki-67 score, and how good it is.

::

    <folder>/demo.json           the study and the stages that are finished
    <folder>/slides/             synthetic slides and, as GeoParquet, the truth about them
    <folder>/project/            the QuPath project
    <folder>/models/             the two model bundles
    <folder>/training/           checkpoints and learning curves
    <folder>/report.html, overlay.png, summary.json
"""

from __future__ import annotations

import csv
import dataclasses
import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import shapely

from pyhisto.bundle.files import Bundle, load_bundle
from pyhisto.errors import ConfigError
from pyhisto.metrics import DetectionScore, dice, score_detections
from pyhisto.objects import load_objects, save_objects
from pyhisto.slide import Slide
from pyhisto.stain import H_DAB, estimate_background
from pyhisto.synth import SynthSettings, annotate_like_a_pathologist, make_slide
from qupath_ext.errors import ProjectExistsError
from qupath_ext.frames import to_stains
from qupath_ext.project import Project, create_project, open_project, pack_rgb
from qupath_ext.report import TruthReport
from qupath_ext.study import Study
from qupath_ext.workflows.images import Progress
from qupath_ext.workflows.ki67 import CLASSES, ImageResult, Ki67Settings, annotate_project
from qupath_ext.workflows.reporting import write_ki67_report
from qupath_ext.workflows.training import MODEL_KINDS, train_bundle
from qupath_ext.workflows.trainingdata import Source, training_images

__all__ = ["DemoResult", "Score", "run_demo", "score_result"]

HELD_OUT = "held-out"
MATCH_UM = 4.0
"""Largest distance between a detected and a true nucleus that count as one."""

EXTRA_CLASSES = {"Stroma": (150, 200, 150), "Training": (0, 0, 180), "Ignore*": (180, 180, 180)}

Say = Callable[[str], None]


@dataclass(frozen=True)
class Score:
    """How a result compares with the truth: index in percent, Dice of the tumour, detections of each class."""

    index_percent: float
    tumour_dice: float
    positive: DetectionScore
    negative: DetectionScore

    def summary(self) -> dict[str, Any]:
        """Return it as JSON types."""
        return {
            "ki67_percent": round(self.index_percent, 4),
            "tumour_dice": round(self.tumour_dice, 4),
            "positive_f1": round(self.positive.f1, 4),
            "negative_f1": round(self.negative.f1, 4),
        }


@dataclass(frozen=True)
class DemoResult:
    """What the demonstration made: the result on the held-out slide, its score, and the files to look at."""

    result: ImageResult
    score: Score
    project: Path
    report: Path
    overlay: Path


class _State:
    """The stages that are finished, kept in ``demo.json``; only a folder of the same study goes on."""

    def __init__(self, folder: Path, study: Study) -> None:
        self.path = folder / "demo.json"
        described = json.loads(json.dumps(dataclasses.asdict(study), default=dict))
        self.record: dict[str, Any] = {"study": described, "version": version("qupath-ext"), "stages": []}
        if self.path.is_file():
            found = _read_json(self.path)
            if found.get("study") != described:
                raise ProjectExistsError(
                    f"{folder} holds a demonstration with other settings", remedy="choose another folder or remove it"
                )
            self.record = found
        elif folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise ProjectExistsError(f"{folder} holds something already", remedy="choose a new or empty folder")

    def is_done(self, stage: str) -> bool:
        return stage in self.record["stages"]

    def finish(self, stage: str) -> None:
        self.record["stages"].append(stage)
        self.save()

    def save(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        _write_json(self.path, self.record)


def run_demo(
    folder: Path, study: Study, *, say: Say, progress: Progress | None = None, backend: str = "auto"
) -> DemoResult:
    """Run the demonstration, or go on where an earlier one was interrupted.

    Parameters
    ----------
    folder
        A new or empty folder, or that of an unfinished demonstration with the same study.
    study
        All settings.
    say
        Called with a line about each stage.
    progress
        Called with the stage, the number of windows done and the number in all.
    backend
        What reads and writes the project; as in :func:`qupath_ext.project.open_project`.

    Raises
    ------
    ProjectExistsError
        If the folder holds anything else.
    PyhistoError
        If a stage fails; a later call goes on there.
    """
    _check_study(study)
    state = _State(folder, study)
    state.save()
    _make_slides(folder, study, state, say)
    project = _make_project(folder, study, state, say, backend)
    say(f"project backend: {project.backend_version}")
    tumour, cells, curves = _train_models(folder, study, project, say)
    say("annotate the held-out slide")
    result = _annotate_held_out(project, study, tumour, cells, progress)
    score = score_result(result, *_truth(folder, HELD_OUT), study.slides.mpp)
    report, overlay = _write_report(folder, project, result, score, {"tumour": tumour, "cells": cells}, curves)
    _write_json(folder / "summary.json", {**result.summary(), "truth": score.summary()})
    return DemoResult(result, score, project.path, report, overlay)


def _slide_names(study: Study) -> list[str]:
    return [*(f"training-{number}" for number in range(1, study.slides.training + 1)), HELD_OUT]


def _slide_settings(study: Study) -> dict[str, SynthSettings]:
    size = study.slides
    return {
        name: SynthSettings(width=size.width, height=size.height, mpp=size.mpp, seed=study.seed * 1000 + number)
        for number, name in enumerate(_slide_names(study))
    }


def _check_study(study: Study) -> None:
    """Refuse what cannot work before anything is written."""
    if study.slides.training < 1:
        raise ConfigError(f"{study.slides.training} training slides", expected="1 or more")
    _slide_settings(study)
    if (study.tumour.kind, study.cells.kind) != ("tissue", "cells"):
        kinds = f"[tumour] of the kind {study.tumour.kind!r} and [cells] of {study.cells.kind!r}"
        raise ConfigError(kinds, expected="'tissue' and 'cells'")


def _make_slides(folder: Path, study: Study, state: _State, say: Say) -> None:
    """Draw the slides; the truth about each is written last, so that it vouches for the slide."""
    if state.is_done("slides"):
        return
    slides = folder / "slides"
    slides.mkdir(exist_ok=True)
    for number, (name, settings) in enumerate(_slide_settings(study).items()):
        say(f"draw slide {name}")
        truth = make_slide(slides / f"{name}.tif", settings)
        save_objects(slides / f"{name}.tumour.parquet", truth.tumour)
        save_objects(slides / f"{name}.nuclei.parquet", truth.nuclei)
        rng = np.random.default_rng((study.seed, number))
        if name != HELD_OUT:
            annotations = annotate_like_a_pathologist(truth, rng, study.annotations)
            save_objects(slides / f"{name}.annotations.parquet", annotations)
    state.finish("slides")


def _truth(folder: Path, name: str) -> tuple[gpd.GeoDataFrame, gpd.GeoDataFrame]:
    """Return the true tumour and the true nuclei of a slide."""
    slides = folder / "slides"
    return load_objects(slides / f"{name}.tumour.parquet"), load_objects(slides / f"{name}.nuclei.parquet")


def _make_project(folder: Path, study: Study, state: _State, say: Say, backend: str) -> Project:
    """Make the QuPath project with the annotated training slides and the bare held-out one."""
    place = folder / "project"
    if state.is_done("project"):
        return open_project(place, backend=backend)
    shutil.rmtree(place, ignore_errors=True)
    say("make the QuPath project")
    classes = {**{name: CLASSES[name] for name in ("Tumor", "Tumor: Positive", "Tumor: Negative")}}
    classes |= {name: pack_rgb(*color) for name, color in EXTRA_CLASSES.items()}
    project = create_project(place, classes=classes, backend=backend)
    for name in _slide_names(study):
        path = folder / "slides" / f"{name}.tif"
        with Slide(path) as slide:
            white = estimate_background(slide.thumbnail()).background
        entry = project.add_image(
            path,
            image_type="BRIGHTFIELD_H_DAB",
            stains=to_stains(H_DAB.with_background(white), "H-DAB, white of this slide"),
            metadata={"Set": "held-out" if name == HELD_OUT else "training"},
        )
        if name != HELD_OUT:
            entry.write_objects(add=load_objects(folder / "slides" / f"{name}.annotations.parquet"))
    state.finish("project")
    return open_project(place, backend=backend)


def _train_models(
    folder: Path, study: Study, project: Project, say: Say
) -> tuple[Bundle, Bundle, dict[str, list[float]]]:
    """Train both models from the annotations in the project, unless their bundles are there already."""
    sources = [Source(project, entry) for entry in project.entries if entry.metadata.get("Set") == "training"]
    curves: dict[str, list[float]] = {}
    bundles = []
    for name, part in (("tumour", study.tumour), ("cells", study.cells)):
        place, work = folder / "models" / name, folder / "training" / name
        if not place.is_dir():
            say(f"train the {name} model from the project's annotations")
            seeded = dataclasses.replace(
                part, training=dataclasses.replace(part.training, seed=part.training.seed + study.seed)
            )
            about = {"annotations": f"{len(sources)} synthetic slides, annotated through a QuPath project"}
            train_bundle(training_images(sources, part.labels), seeded, folder=place, work=work, about=about)
        bundles.append(load_bundle(place, kind=MODEL_KINDS[part.kind]))
        curves[name] = _read_curve(work / "curve.csv")
    return bundles[0], bundles[1], curves


def _read_curve(path: Path) -> list[float]:
    """Return the loss of each step; row 0, where there is one, has none."""
    if not path.is_file():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        return [float(row["loss"]) for row in csv.DictReader(file) if row["loss"]]


def _annotate_held_out(
    project: Project, study: Study, tumour: Bundle, cells: Bundle, progress: Progress | None
) -> ImageResult:
    entry = project.entry(f"{HELD_OUT}.tif")
    settings = Ki67Settings(stains="project", detection=study.detection, tumour_class=study.tumour.classes[0])
    (outcome,) = annotate_project(project, [entry], settings, tumour=tumour, cells=cells, progress=progress)
    if isinstance(outcome, ImageResult):
        return outcome
    raise outcome[1]


def score_result(result: ImageResult, tumour: gpd.GeoDataFrame, nuclei: gpd.GeoDataFrame, mpp: float) -> Score:
    """Compare a result with the truth.

    Parameters
    ----------
    result
        Annotations and cells, level-0 px.
    tumour, nuclei
        The truth: tumour annotations and classified nuclei, same frame.
    mpp
        Pixel size in µm; nuclei match within :data:`MATCH_UM`.
    """
    objects = result.objects
    annotations = objects[objects["object_type"] == "annotation"]
    cells = objects[objects["object_type"] == "cell"]
    scores = {}
    for name in ("Positive", "Negative"):
        found = _centres(cells[cells["classification"] == f"Tumor: {name}"], "nucleus")
        true = _centres(nuclei[nuclei["classification"] == f"Tumor: {name}"], "geometry")
        scores[name] = score_detections(found, true, MATCH_UM / mpp)
    counts = nuclei["classification"].value_counts()
    positive, negative = int(counts.get("Tumor: Positive", 0)), int(counts.get("Tumor: Negative", 0))
    return Score(
        index_percent=100 * positive / max(1, positive + negative),
        tumour_dice=dice(_union(annotations), _union(tumour)),
        positive=scores["Positive"],
        negative=scores["Negative"],
    )


def _centres(objects: gpd.GeoDataFrame, column: str) -> np.ndarray[Any, np.dtype[np.float64]]:
    return np.asarray(shapely.get_coordinates(shapely.centroid(objects[column].to_numpy())))


def _union(objects: gpd.GeoDataFrame) -> Any:
    return shapely.union_all(objects.geometry.to_numpy())


def _write_report(
    folder: Path,
    project: Project,
    result: ImageResult,
    score: Score,
    bundles: Mapping[str, Bundle],
    curves: Mapping[str, list[float]],
) -> tuple[Path, Path]:
    truth = TruthReport(score.index_percent, score.tumour_dice, score.positive, score.negative)
    models = {f"{name} ({bundle.spec.architecture})": bundle.sha256 for name, bundle in bundles.items()}
    return write_ki67_report(
        folder, project, [result], title="Ki-67 demonstration", models=models, curves=curves, truth=truth
    )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise ConfigError(f"{path} is damaged ({error})", remedy="remove the folder and start again") from error
    if not isinstance(data, dict):
        raise ConfigError(f"{path} is no record of a demonstration", remedy="choose another folder")
    return data


def _write_json(path: Path, data: Mapping[str, Any]) -> None:
    temporary = path.with_suffix(".tmp")
    try:
        temporary.write_text(json.dumps(data, indent=2, ensure_ascii=False) + "\n", "utf-8")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
