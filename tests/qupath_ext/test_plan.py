"""``qupath-ext train --plan``: what it reads from projects, and the study that it writes."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shapely
from click.testing import CliRunner, Result
from training_projects import make_project, write_slide

from pyhisto.config import from_mapping
from pyhisto.objects import make_objects
from pyhisto.plan import Facts, Machine, Network
from qupath_ext.cli import main
from qupath_ext.project import create_project, open_project
from qupath_ext.study import TrainStudy, load_train_study
from qupath_ext.workflows.planning import Wanted, plan_study, study_text
from qupath_ext.workflows.trainingdata import Source, training_images


def command(*words: Any) -> Result:
    return CliRunner().invoke(main, ["train", *map(str, words)])


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine on which a step takes 10 ms, whatever the network, and reading nothing."""

    def step(architecture: str, **options: Any) -> float:
        return 0.01

    monkeypatch.setattr("pyhisto.train.pace.time_step", step)
    monkeypatch.setattr("qupath_ext.workflows.planning._reading_time", lambda patches: 0.0)


def facts_of(folder: Path, wanted: Wanted, **options: Any) -> Facts:
    project = make_project(folder / "p", **options)
    fresh = open_project(project.path)
    images = training_images([Source(fresh, entry) for entry in fresh.entries], patient_key="Patient")
    return plan_study(images, Machine("cpu", 2, 8.0, 10.0), wanted, lambda network, classes: 0.01).facts


def test_the_facts_of_points(tmp_path: Path) -> None:
    """Three slides with 8 + 8 points 30 px = 15 µm apart, inside 140 x 140 px of 0.25 µm² each."""
    facts = facts_of(tmp_path, Wanted())
    assert (facts.kind, facts.slides, facts.patients, facts.slide_mpp) == ("cells", 3, 3, 0.5)
    assert {c.name: (c.objects, c.area_mm2) for c in facts.classes} == {
        "Tumor: Positive": (24, 0.0),
        "Tumor: Negative": (24, 0.0),
    }
    assert facts.labelled_mm2 == pytest.approx(3 * 140**2 * 0.25e-6)
    assert facts.slide_mm2 == pytest.approx(3 * 160**2 * 0.25e-6)
    assert facts.size_um == pytest.approx(8.0, rel=0.15)  # as the nuclei measure on the slides
    assert facts.large_um is None
    assert facts.spacing_um == pytest.approx(15.0)
    assert facts.white_spread < 0.01


def test_the_facts_of_outlines(tmp_path: Path) -> None:
    """Discs of 4 µm radius, drawn as polygons of 64 corners."""
    facts = facts_of(tmp_path, Wanted(classes=("Tumor: Positive",)), outlines=True)
    assert [c.objects for c in facts.classes] == [24]
    assert facts.classes[0].area_mm2 == pytest.approx(24 * np.pi * 16e-6, rel=0.01)
    assert facts.size_um == pytest.approx(8.0, rel=0.01)
    assert facts.large_um == pytest.approx(8.0, rel=0.01)


def test_the_study_that_is_written_is_taken(tmp_path: Path, quick: None) -> None:
    project = make_project(tmp_path / "p")
    path = tmp_path / "study.toml"
    result = command("--plan", project.path, "-o", path, "--minutes", "1")
    assert result.exit_code == 0, result.output
    assert "24 Tumor: Positive, 24 Tumor: Negative on 3 slides of 3 patients" in result.stdout
    assert sum(line.startswith("· ") for line in result.stdout.splitlines()) == 9
    study = load_train_study(path)
    assert (study.kind, study.classes) == ("cells", ("Tumor: Positive", "Tumor: Negative"))
    assert study.name == "study"
    assert (study.model.architecture, study.model.tile_size, study.model.mpp) == ("unet-resnet34", 256, 0.5)
    assert study.training.steps == 60  # 48 nuclei are worth no more
    assert study.validation == 0.333
    text = path.read_text("utf-8")
    assert re.search(r"# 0\.5 µm/px: the median nucleus is [789]\.\d µm, 1[5-9] px across\nmpp = 0\.5\n", text)
    written = tomllib.loads(text)
    assert {"model", "labels", "sampling", "augmentation", "training", "postprocessing"} <= set(written)
    assert set(written["training"]["loss"]) == {"name", "class_weights", "batch_dice", "focal_gamma"}


def test_a_file_that_is_there_stays(tmp_path: Path, quick: None) -> None:
    project = make_project(tmp_path / "p", ("A",))
    path = tmp_path / "study.toml"
    path.write_text("mine", "utf-8")
    result = command("--plan", project.path, "-o", path)
    assert result.exit_code == 2
    assert result.stderr.splitlines()[-1].startswith("qupath-ext: ")
    assert "study.toml exists already" in result.stderr.splitlines()[-1]
    assert path.read_text("utf-8") == "mine"


def test_patients_to_test_on_are_not_looked_at(tmp_path: Path, quick: None) -> None:
    project = make_project(tmp_path / "p")
    split = tmp_path / "split.json"
    words = ["split", str(project.path), "-o", str(split), "--patient-key", "Patient", "--test", "0.3"]
    assert CliRunner().invoke(main, words).exit_code == 0
    result = command("--plan", project.path, "-o", tmp_path / "study.toml", "--split", split)
    assert result.exit_code == 0, result.output
    assert "16 Tumor: Positive, 16 Tumor: Negative on 2 slides of 2 patients" in result.stdout


def test_tissue_is_planned_from_large_areas(tmp_path: Path, quick: None) -> None:
    """Tumour of 70 x 140 px = 35 x 70 µm; what is derived from it counts as well."""
    folder = tmp_path / "t"
    folder.mkdir()
    project = create_project(folder / "project")
    shapes = [shapely.box(0, 0, 70, 140), shapely.box(80, 0, 150, 140), shapely.box(0, 141, 160, 160)]
    drawn = make_objects(shapes, object_type="annotation", classification=["Tumor", "Tumor: Positive", "Stroma"])
    project.add_image(write_slide(folder / "s.tif", 5)).write_objects(add=drawn)
    path = tmp_path / "study.toml"
    result = command("--plan", project.path, "-o", path, "--class", "Tumor", "--task", "tissue")
    assert result.exit_code == 0, result.output
    study = load_train_study(path)
    assert (study.kind, study.classes, study.model.mpp, study.validation) == ("tissue", ("Tumor",), 0.5, 0.0)
    assert "2 Tumor on 1 slides of 1 patients" in result.stdout


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ("--class", "Necrosis"),
            "no annotation of the class 'Necrosis'; expected one of Tumor: Positive, Tumor: Negative",
        ),
        (("--task", "tissue"), "no annotation of tissue"),
        (("--image", "nothing.tif"), "no image 'nothing.tif'"),
        (("--work", "somewhere"), "--work is for a training"),
    ],
)
def test_bad_input_writes_nothing(tmp_path: Path, quick: None, words: tuple[str, ...], message: str) -> None:
    project = make_project(tmp_path / "p", ("A",))
    result = command("--plan", project.path, "-o", tmp_path / "study.toml", *words)
    assert result.exit_code == 2
    assert message in result.stderr.splitlines()[-1]
    assert [path.name for path in tmp_path.iterdir()] == ["p"]


def test_a_project_without_annotations_is_an_error(tmp_path: Path, quick: None) -> None:
    project = create_project(tmp_path / "project")
    project.add_image(write_slide(tmp_path / "s.tif", 1))
    result = command("--plan", project.path, "-o", tmp_path / "study.toml")
    assert result.exit_code == 2
    assert "no annotation with a class" in result.stderr


def test_a_training_without_a_study_plans_one_and_keeps_it(
    tmp_path: Path, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pyhisto.plan.NETWORKS", (Network("attention-unet", (16, 8), 64, 2),))
    monkeypatch.setattr("pyhisto.plan.FEWEST_STEPS", 4)
    monkeypatch.setattr("pyhisto.plan.MOST_STEPS", 4)
    project = make_project(tmp_path / "p", ("A", "B"))
    result = command(project.path, "-o", tmp_path / "m", "--minutes", "1")
    assert result.exit_code == 0, result.output
    assert "study: planned from the annotations" in result.stderr
    kept = load_train_study(tmp_path / "m" / "docs" / "study.toml")
    assert (kept.model.architecture, kept.training.steps, kept.name) == ("attention-unet", 4, "m")


@pytest.mark.parametrize("kind", ["cells", "tissue"])
def test_every_study_survives_being_written(kind: Any) -> None:
    data = {
        "kind": kind,
        "classes": ['Tumor: "x"', "Größe"],
        "sampling": {"class_weights": {"Tumor: x": 2.0, "background": 0.5}},
        "training": {"loss": {"name": "boundary-cross-entropy" if kind == "cells" else "focal"}, "weight_decay": 1e-5},
        "model": {"regions": [["a", "b"], ["a"]]},
        **({"boundary": {"w0": 3.0}} if kind == "cells" else {}),
    }
    study = from_mapping(TrainStudy, data, "test")
    again = from_mapping(TrainStudy, tomllib.loads(study_text(study)), "test")
    assert {**vars(again), "postprocessing": {}} == vars(study)
    assert again.postprocessing == study.postprocessing_numbers()


def test_the_timed_step_is_a_real_one() -> None:
    from pyhisto.train.pace import time_step

    taken = time_step("attention-unet", decoder_channels=(8, 4), size=32, batch_size=4, classes=3)
    assert 0 < taken < 30
