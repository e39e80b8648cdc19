"""``qupath-ext train``: from annotated projects to a bundle, by the commands that a person has."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import shapely
import tifffile
import torch
from click.testing import CliRunner, Result
from training_projects import PLACES, STUDY, annotations, make_project, write_slide

from pyhisto.bundle.files import load_bundle, read_spec
from pyhisto.objects import concat_objects, make_objects
from pyhisto.train import TrainResult
from pyhisto.train.history import Validation
from qupath_ext.cli import main
from qupath_ext.project import Project, create_project, open_project
from qupath_ext.runs.ownership import read_ownership, write_run
from qupath_ext.runs.record import start_run
from qupath_ext.study import LabelStudy, load_train_study
from qupath_ext.workflows import finetuning
from qupath_ext.workflows.trainingdata import Source, training_images, truth_objects


def train(*words: Any) -> Result:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("pyhisto.bundle.files.fast_bfloat16", lambda device: False)
        patched.setattr("pyhisto.train.loop.fast_bfloat16", lambda device: False)
        return CliRunner().invoke(main, ["train", *map(str, words)])


def write_study(folder: Path, text: str = STUDY) -> Path:
    path = folder / "my-study.toml"
    path.write_text(text, "utf-8")
    return path


def weights(bundle: Path) -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = torch.load(bundle / "models" / "model.pt", weights_only=True)
    return state


def losses(bundle: Path) -> list[float]:
    with (bundle / "docs" / "curve.csv").open(newline="") as file:
        return [float(row["loss"]) for row in csv.DictReader(file) if row["loss"]]


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_project(tmp_path_factory.mktemp("train") / "lab").path.parent


@pytest.fixture(scope="module")
def trained(project: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    folder = tmp_path_factory.mktemp("trained")
    bundle = folder / "cells"
    result = train(project, "--study", write_study(folder), "-o", bundle)
    assert result.exit_code == 0, result.output
    return bundle, result


def test_a_bundle_with_its_papers(trained: tuple[Path, Result]) -> None:
    bundle, result = trained
    spec = load_bundle(bundle, kind="cell_detection").spec
    assert [c.classification for c in spec.classes] == [None, "Tumor: Positive", None, "Tumor: Negative", None]
    assert (spec.mpp, spec.tile_size, spec.architecture) == (0.5, 64, "attention-unet")
    assert names(bundle / "docs") == {"README.md", "study.toml", "split.json", "train.log", "curve.csv", "curve.png"}
    split = json.loads((bundle / "docs" / "split.json").read_text("utf-8"))["patients"]
    assert {part: len(who) for part, who in split.items()} == {"train": 2, "validation": 1, "test": 0}
    assert sorted(chain(*split.values())) == ["A", "B", "C"]
    card = (bundle / "docs" / "README.md").read_text("utf-8")
    assert "mean Dice" in card
    assert "'validation': ['" + split["validation"][0] in card
    rows = (bundle / "docs" / "curve.csv").read_text("utf-8").splitlines()
    assert len(rows) == 1 + 1 + 6  # heading, untrained network, steps
    assert "validation Dice" in result.stdout
    assert "no patient to test on" in result.stderr


def test_what_a_training_leaves(trained: tuple[Path, Result]) -> None:
    """The work folder is gone, as its papers are in the bundle; only the study is beside it."""
    bundle, _ = trained
    assert names(bundle.parent) == {"cells", "my-study.toml"}


def test_the_training_slides_are_described(trained: tuple[Path, Result]) -> None:
    bundle, _ = trained
    spec, _ = read_spec(bundle)
    assert spec.stains is not None
    assert spec.stains.stains.background == pytest.approx((238, 233, 241), abs=8)


def test_several_projects_with_a_split_of_their_own(project: Path, tmp_path: Path) -> None:
    second = make_project(tmp_path / "second", ("D", "A"), outlines=True).path
    split = tmp_path / "split.json"
    fixed = {"train": ["A", "B"], "validation": ["C"], "test": ["D"]}
    fractions = {"train": 0.5, "validation": 0.25, "test": 0.25}
    split.write_text(json.dumps({"version": 1, "seed": 0, "fractions": fractions, "patients": fixed}), "utf-8")
    result = train(project, second, "--study", write_study(tmp_path), "--split", split, "-o", tmp_path / "m")
    assert result.exit_code == 0, result.output
    assert "3 images to train on; patients: 2 train, 1 validation, 1 test" in result.stderr
    assert json.loads((tmp_path / "m" / "docs" / "split.json").read_text("utf-8"))["patients"] == fixed
    assert json.loads(split.read_text("utf-8"))["patients"] == fixed


def test_a_killed_training_goes_on_and_gives_the_same_model(
    project: Path, trained: tuple[Path, Result], tmp_path: Path
) -> None:
    bundle, _ = trained
    words = ["train", str(project), "--study", str(write_study(tmp_path)), "-o", str(tmp_path / "cells")]
    slow = (
        "import pyhisto.train.checkpoint as c, pyhisto.train.loop as loop, time\n"
        "loop.fast_bfloat16 = lambda device: False\n"  # as this process has it
        "save = c.Checkpoints.save\n"
        "def then_wait(*args, **options):\n    save(*args, **options)\n    time.sleep(60)\n"
        "c.Checkpoints.save = then_wait\n"
        f"from qupath_ext.cli import main\nmain({words!r})\n"
    )
    log = tmp_path / "stderr.txt"
    with log.open("w") as file:
        process = subprocess.Popen([sys.executable, "-c", slow], stderr=file)
    work = tmp_path / "cells.training"
    try:
        deadline = time.monotonic() + 120
        while not (work / "checkpoint.pt").is_file():
            assert process.poll() is None, log.read_text("utf-8")
            assert time.monotonic() < deadline
            time.sleep(0.1)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert not (tmp_path / "cells").exists()
    kept = (work / "split.json").read_bytes()
    result = train(*words[1:])
    assert result.exit_code == 0, result.output
    assert f"split: {work / 'split.json'}" in result.stderr
    assert (tmp_path / "cells" / "docs" / "split.json").read_bytes() == kept
    assert "2/6" in result.stderr  # began after the step of the checkpoint
    expected, found = weights(bundle), weights(tmp_path / "cells")
    assert all(torch.allclose(expected[name], found[name], atol=1e-5) for name in expected)


def test_ctrl_c_ends_with_130(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*args: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("qupath_ext.workflows.training.train", interrupted)
    result = train(project, "--study", write_study(tmp_path), "-o", tmp_path / "m")
    assert result.exit_code == 130
    assert result.stderr.splitlines()[-1] == "qupath-ext: interrupted; run the same command again to go on"


@pytest.mark.parametrize(
    ("change", "words", "message"),
    [
        (("steps", "stepps"), (), "unknown key 'stepps'"),
        (("Tumor: Negative", "Tumour: Negative"), (), "no annotation of Tumour: Negative"),
        (('"cells"', '"cell"'), (), "kind is 'cell'; expected one of 'cells', 'tissue'"),
        (("tile_size = 64", "tile_size = 63"), (), "63 px"),
        (("steps = 6", "steps = 0"), (), "steps = 0"),
        (("[model]", "regions = 1\n[model]"), (), "unknown key 'regions'"),
        (("overlap = 8", 'overlap = 8\nregions = [["Stroma"]]'), (), "regions: 'Stroma'"),
        (("[training]", "[boundary]\n[training]"), (), "boundary-cross-entropy"),
        (("[training]", "[augmentation]\nstain = 2.0\n[training]"), (), "stain = 2.0"),
        (("[training]", "[postprocessing]\ntreshold = 1.0\n[training]"), (), "unknown key 'treshold'"),
        (("", ""), ("--split", "nowhere.json"), "nowhere.json cannot be read"),
        (("", ""), ("--init", "nowhere"), "nowhere is no model bundle"),
        (("", ""), ("--image", "none.tif"), "no image 'none.tif'"),
        (("", ""), ("--minutes", "5"), "either --study or --minutes"),
        (("", ""), ("--plan",), "either --study or --plan"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(
    project: Path, tmp_path: Path, change: tuple[str, str], words: tuple[str, ...], message: str
) -> None:
    study = write_study(tmp_path, STUDY.replace(*change, 1))
    result = train(project, "--study", study, "-o", tmp_path / "m", *words)
    assert result.exit_code == 2, result.output
    assert message in result.stderr.splitlines()[-1]
    assert names(tmp_path) == {"my-study.toml"}


def test_an_output_that_is_there_is_left_alone(project: Path, tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "thesis.txt").write_text("work of years", "utf-8")
    result = train(project, "--study", write_study(tmp_path), "-o", tmp_path / "m")
    assert result.exit_code == 2
    assert "m exists already" in result.stderr
    assert names(tmp_path / "m") == {"thesis.txt"}


def test_a_slide_in_two_parts_is_an_error(tmp_path: Path) -> None:
    """The same file under two patients of two parts: what one learns from, the other would be judged on."""
    folder = tmp_path / "leak"
    folder.mkdir()
    project = create_project(folder / "project")
    slide = write_slide(folder / "a.tif", 1)
    copy = shutil.copy(slide, folder / "b.tif")
    for patient, path in (("A", slide), ("B", copy)):
        project.add_image(path, metadata={"Patient": patient}).write_objects(add=annotations())
    result = train(project.path, "--study", write_study(tmp_path), "-o", tmp_path / "m")
    assert result.exit_code == 2
    assert "is in the parts" in result.stderr
    assert names(tmp_path) == {"leak", "my-study.toml"}


def test_a_patient_that_the_split_lacks_is_an_error(project: Path, tmp_path: Path) -> None:
    split = tmp_path / "split.json"
    fractions = {"train": 0.5, "validation": 0.25, "test": 0.25}
    content = {
        "version": 1,
        "seed": 0,
        "fractions": fractions,
        "patients": {"train": ["A"], "validation": ["B"], "test": []},
    }
    split.write_text(json.dumps(content), "utf-8")
    result = train(project, "--study", write_study(tmp_path), "--split", split, "-o", tmp_path / "m")
    assert result.exit_code == 2
    assert "1 patients are in no part of the split, such as 'C'" in result.stderr
    assert "--extend" in result.stderr


def test_going_on_from_a_bundle_keeps_its_weights(project: Path, trained: tuple[Path, Result], tmp_path: Path) -> None:
    """Classes the other way round: channels find their weights again; a step at a rate of almost 0 moves little."""
    bundle, _ = trained
    study = STUDY.replace('"Tumor: Positive", "Tumor: Negative"', '"Tumor: Negative", "Tumor: Positive"')
    study = study.replace("steps = 6", "steps = 1").replace("1e-2", "1e-9").replace("tile_size = 64", "tile_size = 96")
    result = train(project, "--study", write_study(tmp_path, study), "--init", bundle, "-o", tmp_path / "m")
    assert result.exit_code == 0, result.output
    assert "all output channels" in result.stderr
    assert "its pre-processing is kept: 0.5 µm/px, tiles of 64 px" in result.stderr
    spec, _ = read_spec(tmp_path / "m")
    assert (spec.tile_size, spec.init["name"]) == (64, "cells")
    before, after = weights(bundle), weights(tmp_path / "m")
    (head,) = (name for name in before if name.endswith("weight") and before[name].shape[0] == 5)
    np.testing.assert_allclose(after[head][[0, 3, 4, 1, 2]], before[head], atol=1e-5)
    body = next(name for name in before if name.endswith("weight") and before[name].ndim == 4 and name != head)
    np.testing.assert_allclose(after[body], before[body], atol=1e-5)


def test_a_plan_to_go_on_keeps_the_post_processing_and_sets_nobody_aside(
    project: Path, trained: tuple[Path, Result], tmp_path: Path
) -> None:
    """Three patients; the study of the model says nothing of the distance of peaks, which is 3 µm then."""
    result = train("--plan", project, "--init", trained[0], "-o", tmp_path / "study.toml")
    assert result.exit_code == 0, result.output
    study = load_train_study(tmp_path / "study.toml")
    assert (study.validation, study.cross_validation, study.training.keep_statistics) == (0.0, 2, True)
    assert study.postprocessing == read_spec(trained[0])[0].postprocessing
    assert study.postprocessing["min_distance_um"] == 3.0


GOING_ON = STUDY.replace("steps = 6", "steps = 1").replace("1e-2", "1e-9").replace("kind =", "validation = 0\nkind =")


def test_going_on_sees_slides_as_annotate_shows_them(trained: tuple[Path, Result], tmp_path: Path) -> None:
    """Slides of 2.5 times the optical density: the model still sees the strengths of its own training slides."""
    project = make_project(tmp_path / "strong").path.parent
    for path in (tmp_path / "strong").glob("*.tif"):
        density = -np.log10(tifffile.imread(path).clip(1, 250) / 250)
        tifffile.imwrite(
            path,
            np.rint(250 * 10 ** (-2.5 * density)).astype(np.uint8),
            tile=(16, 16),
            photometric="rgb",
            compression="adobe_deflate",
            resolution=(20000, 20000),
            resolutionunit="CENTIMETER",
        )
    result = train(project, "--study", write_study(tmp_path, GOING_ON), "--init", trained[0], "-o", tmp_path / "m")
    assert result.exit_code == 0, result.output
    assert "3 of 3 slides in the stain colours of its training slides" in result.stderr
    old, new = read_spec(trained[0])[0], read_spec(tmp_path / "m")[0]
    assert old.stains is not None
    assert (new.nucleus_diameter_um, new.stains) == (old.nucleus_diameter_um, old.stains)
    seen = [np.load(bundle / "models" / "golden.npz")["tile"] for bundle in (trained[0], tmp_path / "m")]
    dark = [np.percentile(-np.log10(tile.clip(1) / 255.0).sum(axis=-1), 95) for tile in seen]
    assert dark[1] == pytest.approx(dark[0], rel=0.2)


@pytest.mark.parametrize("best", [0, 6])
def test_weights_that_stayed_as_they_were_are_said(
    project: Path, trained: tuple[Path, Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, best: int
) -> None:
    rows = [Validation(0, 1.0, 0.5, {}), Validation(6, 1.0, 0.4 + best / 10, {})]
    done = TrainResult([1.0], rows, best, stopped_early=False, data_wait_share=0.0)
    monkeypatch.setattr("qupath_ext.workflows.training.train", lambda *words, **options: done)
    result = train(project, "--study", write_study(tmp_path), "--init", trained[0], "-o", tmp_path / "m")
    assert result.exit_code == 0, result.output
    assert ("the weights stay as they were" in result.stderr) == (best == 0)


CROSS_VALIDATED = GOING_ON.replace("validation = 0", "validation = 0\ncross_validation = 2", 1).replace(
    "[training]", "[training]\nkeep_statistics = true"
)


def test_a_training_that_brings_nothing_says_so(project: Path, trained: tuple[Path, Result], tmp_path: Path) -> None:
    """A rate of 1e-9 leaves each model as it was."""
    words = ("--study", write_study(tmp_path, CROSS_VALIDATED), "--init", trained[0], "-o", tmp_path / "m")
    result = train(project, *words, "--work", tmp_path / "work")
    assert result.exit_code == 0, result.output
    (line,) = (line for line in result.stderr.splitlines() if line.startswith("cross-validated"))
    figures = re.findall(r"(\d\.\d\d), then (\d\.\d\d)", line)
    assert len(figures) == 2
    assert all(before == after for before, after in figures)
    assert "worse than the model it goes on from, or no better" in result.stderr
    assert "F1 any class, after" in (tmp_path / "m" / "docs" / "README.md").read_text("utf-8")
    assert not [name for name in names(tmp_path / "work") if name.startswith("cross-validation")]


def test_the_result_is_the_mean_with_what_it_started_from(
    project: Path, trained: tuple[Path, Result], tmp_path: Path
) -> None:
    """A share of 0.25: a quarter of the start and three quarters of what the same training gives without."""
    study = GOING_ON.replace("1e-9", "1e-2")
    for name, share in (("after", 0.0), ("mean", 0.25)):
        path = write_study(tmp_path, f"start_share = {share}\n{study}")
        result = train(project, "--study", path, "--init", trained[0], "-o", tmp_path / name)
        assert result.exit_code == 0, result.output
    start, after, mean = (weights(bundle) for bundle in (trained[0], tmp_path / "after", tmp_path / "mean"))
    floats = [name for name, value in start.items() if value.is_floating_point()]
    assert any(not torch.equal(start[name], after[name]) for name in floats)
    for name in floats:
        torch.testing.assert_close(mean[name], 0.25 * start[name] + 0.75 * after[name], rtol=1e-5, atol=1e-6)


def test_a_cross_validated_training_that_was_stopped_goes_on(
    project: Path, trained: tuple[Path, Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped after the first of the two trainings that judge: it is not done again, and all comes out the same."""
    study = write_study(tmp_path, CROSS_VALIDATED.replace("1e-9", "1e-2"))
    words = [project, "--study", study, "--init", trained[0]]
    assert train(*words, "-o", tmp_path / "straight", "--work", tmp_path / "w1").exit_code == 0
    real, calls = finetuning.train, []

    def stopped(*arguments: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*arguments, **options)

    with monkeypatch.context() as patched:
        patched.setattr(finetuning, "train", stopped)
        assert train(*words, "-o", tmp_path / "m", "--work", tmp_path / "w2").exit_code != 0
    assert "cross-validation-0" in names(tmp_path / "w2")
    assert not (tmp_path / "m").exists()
    result = train(*words, "-o", tmp_path / "m", "--work", tmp_path / "w2")
    assert result.exit_code == 0, result.output
    for name, value in weights(tmp_path / "straight").items():
        torch.testing.assert_close(weights(tmp_path / "m")[name], value, rtol=0, atol=0)


def test_cross_validation_needs_every_class_in_every_part_and_a_model(
    trained: tuple[Path, Result], tmp_path: Path
) -> None:
    project = make_project(tmp_path / "uneven", ("A", "B"))
    (entry, *_) = project.entries
    objects = entry.read_objects()
    (positive,) = objects.index[objects["classification"] == "Tumor: Positive"]
    entry.write_objects(remove=[positive])
    study = write_study(tmp_path, CROSS_VALIDATED)
    result = train(project.path, "--study", study, "-o", tmp_path / "m")
    assert result.exit_code == 2
    assert "cross_validation without a model to go on from" in result.stderr
    result = train(project.path, "--study", study, "--init", trained[0], "-o", tmp_path / "m")
    assert result.exit_code == 0, result.output
    assert "not cross-validated: no annotation of Tumor: Positive" in result.stderr


def test_going_on_with_another_class_renews_its_channels_only(
    project: Path, trained: tuple[Path, Result], tmp_path: Path
) -> None:
    bundle, _ = trained
    study = STUDY.replace('"Tumor: Positive", "Tumor: Negative"', '"Tumor: Negative"')
    study = study.replace("steps = 6", "steps = 1").replace("1e-2", "1e-9")
    result = train(project, "--study", write_study(tmp_path, study), "--init", bundle, "-o", tmp_path / "m")
    assert result.exit_code == 0, result.output
    before, after = weights(bundle), weights(tmp_path / "m")
    (head,) = (name for name in before if name.endswith("weight") and before[name].shape[0] == 5)
    np.testing.assert_allclose(after[head], before[head][[0, 3, 4]], atol=1e-5)


def test_regions_and_boundaries_are_reached_from_the_study(project: Path, tmp_path: Path) -> None:
    regions = """regions = [
    ["Tumor: Positive", "Tumor: Positive membrane", "Tumor: Negative", "Tumor: Negative membrane"],
    ["Tumor: Positive", "Tumor: Negative", "Tumor: Negative membrane"],
    ["Tumor: Negative", "Tumor: Negative membrane"], ["Tumor: Negative"]]"""
    study = STUDY.replace("overlap = 8", f"overlap = 8\n{regions}").replace("steps = 6", "steps = 2")
    result = train(project, "--study", write_study(tmp_path, study), "-o", tmp_path / "regions")
    assert result.exit_code == 0, result.output
    assert read_spec(tmp_path / "regions")[0].regions == ((1, 2, 3, 4), (1, 3, 4), (3, 4), (3,))
    study = (
        STUDY.replace("steps = 6", "steps = 2") + '[training.loss]\nname = "boundary-cross-entropy"\n[boundary]\nw0 = 5'
    )
    result = train(project, "--study", write_study(tmp_path, study), "-o", tmp_path / "boundary")
    assert result.exit_code == 0, result.output


@pytest.mark.slow  # the loop itself is tested with two processes in test_train_distributed.py
def test_two_processes_train_one_model(project: Path, trained: tuple[Path, Result], tmp_path: Path) -> None:
    words = ["train", project, "--study", write_study(tmp_path), "-o", tmp_path / "cells"]
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "qupath_ext"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *launcher, *map(str, words)], capture_output=True, text=True, timeout=300, env=environment
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("bundle  ") == 1
    np.testing.assert_allclose(losses(tmp_path / "cells"), losses(trained[0]), rtol=1e-2)


# ------------------------------------------------------------------ what counts as truth


@pytest.fixture
def found_by_a_run(tmp_path: Path) -> Project:
    """One slide with a Training area, where an analysis found a cell at each place; a person turned the first one."""
    folder = tmp_path / "runs"
    folder.mkdir()
    project = create_project(folder / "project")
    entry = project.add_image(write_slide(folder / "s.tif", 3))
    entry.write_objects(
        add=make_objects([shapely.box(0, 0, 75, 160)], object_type="annotation", classification="Training")
    )
    cells = make_objects(
        [shapely.Point(place).buffer(9) for place in PLACES],
        object_type="cell",
        nucleus=[shapely.Point(place).buffer(7) for place in PLACES],
        classification="Tumor: Negative",
    )
    area = make_objects([shapely.box(0, 0, 160, 160)], object_type="annotation", classification="Tumor")
    run = start_run(project, "ki67", {}, {})
    try:
        write_run(
            run, entry, concat_objects([area, cells]), read_ownership(project, "ki67", entry), replace=(), result={}
        )
        run.finish()
    finally:
        run.release()
    fresh = open_project(project.path)
    (entry,) = fresh.entries
    with entry.edit() as change:
        change.update(pd.DataFrame({"classification": ["Tumor: Positive"]}, index=cells.index[:1]))
    return open_project(project.path)


def classes(project: Project, labels: LabelStudy) -> list[tuple[str, str]]:
    truth = truth_objects(Source(project, project.entries[0]), labels).objects
    return sorted(zip(truth["object_type"], truth["classification"], strict=True))


def test_what_a_person_corrected_is_truth_but_not_what_a_run_found(found_by_a_run: Project) -> None:
    assert classes(found_by_a_run, LabelStudy()) == [("annotation", "Training"), ("cell", "Tumor: Positive")]


def test_cells_that_nobody_checked_are_named(found_by_a_run: Project) -> None:
    said: list[str] = []
    training_images([Source(found_by_a_run, found_by_a_run.entries[0])], say=said.append)
    assert said[0].startswith("7 cells that nobody corrected lie in training areas")
    training_images([Source(found_by_a_run, found_by_a_run.entries[0])], LabelStudy(detections=True), say=said.append)
    assert len(said) == 1


def test_cells_inside_a_training_area_are_truth_if_asked_for(found_by_a_run: Project) -> None:
    """Of 16 cells 8 have their centre at x = 30 or 60 and lie in the area; one of them is the corrected one."""
    expected = [("annotation", "Training"), *[("cell", "Tumor: Negative")] * 7, ("cell", "Tumor: Positive")]
    assert classes(found_by_a_run, LabelStudy(detections=True)) == expected


def test_images_carry_patient_and_white(project: Path) -> None:
    opened = open_project(project)
    images = training_images([Source(opened, entry) for entry in opened.entries], patient_key="Patient")
    assert [image.patient for image in images] == ["A", "B", "C"]
    assert images[0].white == pytest.approx((238, 233, 241), abs=8)
    assert images[0].name == "project/lab-0.tif"


def test_images_without_annotations_are_no_patients(tmp_path: Path) -> None:
    """Of two patients one has annotations: it is trained on, and nothing is left to validate on."""
    project = make_project(tmp_path / "p", ("A",))
    project.add_image(write_slide(tmp_path / "p" / "bare.tif", 9), metadata={"Patient": "B"})
    study = STUDY.replace("steps = 6", "steps = 3")
    result = train(project.path, "--study", write_study(tmp_path, study), "-o", tmp_path / "m")
    assert result.exit_code == 0, result.output
    assert "1 images without annotations are left out" in result.stderr
    assert "patients: 1 train; no validation: the last weights are kept" in result.stderr
