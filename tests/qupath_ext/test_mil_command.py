"""``qupath-ext mil``: trained on a table, predicted into a QuPath project, and taken back."""

from __future__ import annotations

import csv
import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from pyhisto.features.bags import list_bags, write_bag
from pyhisto.mil.bundle import load_slide_bundle
from pyhisto.mil.predictions import read_predictions
from pyhisto.models.mil import HEADS
from pyhisto.slide import Slide
from qupath_ext.cli import main
from qupath_ext.project import Project, create_project, open_project
from qupath_ext.runs.record import list_runs

SIDE = 32
CORNERS = np.array([(x, y) for y in (0, 32, 64) for x in (0, 32, 64, 96)])
ENCODER = {"encoder": "colours", "encoder_sha256": "ab" * 32, "patch_size": SIDE}


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["mil", *map(str, arguments)])


def features(seed: int, *, positive: bool) -> np.ndarray[Any, Any]:
    """Return 12 tiles, of which the sixth is far off in a positive slide."""
    bag = np.random.default_rng(seed).normal(size=(12, 4)).astype(np.float32)
    bag[5, 0] += 8.0 * positive
    return bag


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Features, labels and a model for ``signature``, high or low."""
    folder = tmp_path_factory.mktemp("mil")
    (folder / "features").mkdir()
    rows = [["slide", "patient", "signature"]]
    for number in range(18):
        name, positive = f"t{number:02}", bool(number % 2)
        write_bag(folder / "features" / f"{name}.h5", features(number, positive=positive), CORNERS, ENCODER)
        rows.append([f"{name}.svs", f"P{number // 2}" if number < 4 else f"Q{number}", "high" if positive else "low"])
    with (folder / "labels.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    result = train(folder, "out")
    assert result.exit_code == 0, result.output
    return folder


def train(folder: Path, output: str, *options: object) -> Result:
    return run(*training(folder, folder / output), *options)


def training(folder: Path, output: Path) -> tuple[object, ...]:
    common = ("--labels", folder / "labels.csv", "--label", "signature=low,high", "--output", output)
    quick = ("--head", "abmil", "--set", "hidden=0", "--set", "attention=8", "--folds", 3, "--epochs", 25)
    return ("train", folder / "features", *common, *quick, "--learning-rate", 0.02)


@pytest.fixture
def project(tmp_path: Path, gradient_slide: Path) -> Project:
    project = create_project(tmp_path / "project")
    project.add_image(gradient_slide, name="slide one", metadata={"Patient": "X", "MIL signature: low": "mine"})
    return project


@pytest.fixture
def slides(tmp_path: Path) -> Path:
    folder = tmp_path / "slides"
    folder.mkdir()
    write_bag(folder / "a.h5", features(99, positive=True), CORNERS, {**ENCODER, "name": "slide one"})
    return folder


def test_training_leaves_a_model_and_its_figures(trained: Path) -> None:
    table = read_predictions(trained / "out" / "predictions.csv")
    assert sorted(table["slide"]) == [f"t{n:02}" for n in range(18)]
    np.testing.assert_allclose(table["p signature=low"] + table["p signature=high"], 1, atol=1e-5)
    fold = dict(zip(table["slide"], table["fold"], strict=True))
    assert fold["t00"] == fold["t01"]  # of one patient
    metrics = json.loads((trained / "out" / "metrics.json").read_text("utf-8"))
    (figures,) = metrics["figures"]
    assert (figures["set"], figures["slides"], figures["patients"]) == ("out-of-fold", 18, 16)
    assert len(figures["AUROC"]["by_fold"]) == 3
    bundle = load_slide_bundle(trained / "out" / "model")
    assert (bundle.spec.members, bundle.spec.encoder) == (3, "colours")
    curve = (trained / "out" / "repeat-0" / "fold-0" / "curve.csv").read_text("utf-8").splitlines()
    assert curve[0] == "number,loss,validation,best"
    again = train(trained, "out")
    assert again.exit_code == 2
    assert "exists already" in again.output


def test_a_training_that_was_killed_goes_on_to_the_same_model(trained: Path, tmp_path: Path) -> None:
    # 30 epochs are in the second fold: 25 at most are in the first, and 16 at least
    arguments = ("pyhisto.mil.train", "train_epoch", 30, "mil", *training(trained, tmp_path / "out"))
    program = Path(__file__).with_name("killed_command.py")
    killed = subprocess.run([sys.executable, program, *map(str, arguments)], check=False, capture_output=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    assert not (tmp_path / "out" / "model").exists()
    resumed = run(*training(trained, tmp_path / "out"))
    assert resumed.exit_code == 0, resumed.output
    assert "fold 0" not in resumed.output  # was trained before
    assert "fold 1, epoch 1:" not in resumed.output
    assert "fold 2, epoch 1:" in resumed.output
    for name in ("predictions.csv", "metrics.json", "repeat-0/fold-1/curve.csv", "model/models/model.pt"):
        again, once = ((folder / name).read_bytes() for folder in (tmp_path / "out", trained / "out"))
        assert again == once, name


OF_HEADS = {
    "transmil": ("hidden=16",),
    "prompt-mil": (
        *("prompt.weights=random", "prompt.head=clam-sb", "prompt.tile_px=4", "prompt.patch_px=2", "prompt.width=8"),
        *("prompt.layers=1", "prompt.heads=2", "prompt.length=2", "hidden=4", "prompt.mean=[0, 0, 0.5]"),
    ),
}


@pytest.mark.parametrize("head", sorted(HEADS))
def test_every_head_by_the_command(tmp_path: Path, head: str) -> None:
    """Two bags of tiles of 4 px, as wide as the head with an encoder of its own wants them."""
    (tmp_path / "bags").mkdir()
    for name, seed in (("no", 0), ("yes", 1)):
        tiles = np.random.default_rng(seed).integers(0, 256, (5, 48)).astype(np.float32)
        write_bag(tmp_path / "bags" / f"{name}.h5", tiles, attributes=ENCODER)
    (tmp_path / "labels.csv").write_text("slide,label\nno,no\nyes,yes\n")
    sets = [word for text in OF_HEADS.get(head, ()) for word in ("--set", text)]
    scaling = "--unscaled" if head == "prompt-mil" else "--scaled"
    common = ("--labels", tmp_path / "labels.csv", "--output", tmp_path / "out", "--head", head, scaling, *sets)
    result = run("train", tmp_path / "bags", *common, "--folds", 1, "--validation", 0, "--epochs", 2)
    assert result.exit_code == 0, result.output
    bundle = load_slide_bundle(tmp_path / "out" / "model")
    assert bundle.spec.head == head
    if head == "prompt-mil":
        prompt = bundle.spec.options.prompt
        assert (prompt.head, prompt.width, prompt.length, prompt.mean) == ("clam-sb", 8, 2, (0, 0, 0.5))
    done = run("predict", tmp_path / "bags", "--model", bundle.path, "--output", tmp_path / "p.csv")
    assert done.exit_code == 0, done.output
    table = read_predictions(tmp_path / "p.csv")
    (said,) = bundle.predict(list_bags(tmp_path / "bags")[1].features)
    assert said.attention.sum() == pytest.approx(1, abs=1e-5)
    np.testing.assert_allclose(table[["p label=no", "p label=yes"]].to_numpy()[1], said.probabilities, atol=1e-5)


def test_evaluating_predictions(trained: Path, tmp_path: Path) -> None:
    result = run("evaluate", trained / "out" / "predictions.csv")
    assert result.exit_code == 0, result.output
    assert "out-of-fold, signature: 18 slides of 16 patients" in result.output
    output = tmp_path / "p.csv"
    done = run("predict", trained / "features", "--model", trained / "out" / "model", "--output", output)
    assert done.exit_code == 0, done.output
    unknown = run("evaluate", output)
    assert unknown.exit_code == 2
    assert "no true classes" in unknown.output
    labels = trained / "labels.csv"  # whose names end in .svs
    alone = run("evaluate", output, "--label", "signature")
    assert "--label without labels" in alone.output
    judged = run("evaluate", output, "--labels", labels, "--label", "signature=low,high", "--json")
    assert judged.exit_code == 0, judged.output
    (figures,) = json.loads(judged.stdout)["figures"]
    assert figures["set"] == "predicted"
    assert figures["AUROC"]["value"] > 0.9  # the slides that it was trained on


def test_attention_in_a_project_and_undone(trained: Path, project: Project, slides: Path) -> None:
    folder = project.path.parent
    arguments = ("predict", slides, "--model", trained / "out" / "model", "--project", folder, "--top", 3)
    dry = run(*arguments, "--dry-run")
    assert dry.exit_code == 0, dry.output
    assert len(open_project(folder).entries[0].read_objects()) == 0
    assert not list(list_runs(project))
    result = run(*arguments, "--json")
    assert result.exit_code == 0, result.output
    entry = open_project(folder).entries[0]
    objects = entry.read_objects()
    tiles = objects[objects["object_type"] == "tile"]
    assert sorted(g.bounds for g in tiles.geometry) == sorted((x, y, x + 32, y + 32) for x, y in CORNERS.tolist())
    assert tiles["MIL: attention"].sum() == pytest.approx(1, abs=1e-5)
    assert sorted(tiles["MIL: attention rank"]) == list(range(1, 13))
    assert {"MIL: score low", "MIL: score high"} <= set(tiles.columns)
    by_rank = tiles.sort_values("MIL: attention rank")
    assert by_rank["MIL: attention"].is_monotonic_decreasing
    assert by_rank.geometry.iloc[0].bounds == (32, 32, 64, 64)  # the sixth tile, which is far off
    annotations = objects[objects["object_type"] == "annotation"].sort_values("name")
    assert annotations["name"].tolist() == ["MIL: rank 1", "MIL: rank 2", "MIL: rank 3"]
    assert [g.bounds for g in annotations.geometry] == [g.bounds for g in by_rank.geometry.iloc[:3]]
    said = json.loads(result.stdout)["images"][0]["probabilities"]["signature"]
    assert said["high"] > 0.5
    assert entry.metadata["MIL signature: high"] == f"{said['high']:.4f}"
    (written,) = list_runs(project)
    assert written.record["models"]["slide_classification"]["name"] == "model"
    page = (written.folder / "slides" / f"{entry.id}.html").read_text("utf-8")
    assert "slide one" in page
    assert page.count("<figure>") == 4
    assert f"1: {100 * by_rank['MIL: attention'].iloc[0]:.2g} %" in page
    assert (written.folder / "slides" / f"{entry.id}-1.png").read_bytes()[1:4] == b"PNG"
    undone = CliRunner().invoke(main, ["runs", "undo", str(folder), "latest"])
    assert undone.exit_code == 0, undone.output
    entry = open_project(folder).entries[0]
    assert len(entry.read_objects()) == 0
    assert entry.metadata == {"Patient": "X", "MIL signature: low": "mine"}


def test_nothing_is_written_if_the_project_is_none(trained: Path, slides: Path, tmp_path: Path) -> None:
    arguments = ("predict", slides, "--model", trained / "out" / "model", "--output", tmp_path / "p.csv")
    for more, words in ((("--project", tmp_path / "none"), "none"), (("--image", "x"), "--image without --project")):
        result = run(*arguments, *more)
        assert result.exit_code == 2
        assert words in result.output
    assert "(not written)" in run(*arguments, "--dry-run").output
    assert not (tmp_path / "p.csv").exists()


def test_files_of_others_count_from_the_corner_of_the_file(
    trained: Path, project: Project, slides: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Slide, "origin", (8, 12))  # as of a slide that is cropped to its bounds
    folder = project.path.parent
    arguments = ("predict", slides, "--model", trained / "out" / "model", "--project", folder, "--top", 0)
    for said, corner in (({}, (24, 20)), ({"origin": (8, 12)}, (32, 32))):
        write_bag(slides / "a.h5", features(9, positive=True), CORNERS, {**ENCODER, "name": "slide one", **said})
        assert run(*arguments).exit_code == 0
        tiles = open_project(folder).entries[0].read_objects()
        boxes = {tuple(shape.bounds) for shape in tiles.geometry}
        assert (*corner, corner[0] + SIDE, corner[1] + SIDE) in boxes


def test_a_second_run_replaces_the_first(trained: Path, project: Project, slides: Path) -> None:
    folder = project.path.parent
    arguments = ("predict", slides, "--model", trained / "out" / "model", "--project", folder)
    assert run(*arguments, "--top", 2).exit_code == 0
    again = run(*arguments, "--top", 4, "--json")
    assert json.loads(again.stdout)["images"][0]["replaced"] == 14
    assert len(open_project(folder).entries[0].read_objects()) == 16
    first, second = list_runs(project)
    before = {"Patient": "X", "MIL signature: low": "mine"}
    # Undone from below: what the first had written comes back neither as objects nor as metadata
    for one in (first, second):
        assert CliRunner().invoke(main, ["runs", "undo", str(folder), one.id]).exit_code == 0
    entry = open_project(folder).entries[0]
    assert len(entry.read_objects()) == 0
    assert entry.metadata == before


def test_what_a_person_changed_in_the_metadata_stays(trained: Path, project: Project, slides: Path) -> None:
    folder = project.path.parent
    assert run("predict", slides, "--model", trained / "out" / "model", "--project", folder).exit_code == 0
    open_project(folder).entries[0].update(metadata={"MIL signature: high": "checked"})
    assert CliRunner().invoke(main, ["runs", "undo", str(folder), "latest"]).exit_code == 0
    metadata = open_project(folder).entries[0].metadata
    assert metadata == {"Patient": "X", "MIL signature: low": "mine", "MIL signature: high": "checked"}


def test_features_of_another_encoder_change_nothing(trained: Path, project: Project, slides: Path) -> None:
    write_bag(slides / "a.h5", features(1, positive=False), CORNERS, {**ENCODER, "encoder": "x", "name": "slide one"})
    folder = project.path.parent
    result = run("predict", slides, "--model", trained / "out" / "model", "--project", folder)
    assert result.exit_code == 1
    assert "4 features of x" in result.output
    entry = open_project(folder).entries[0]
    assert len(entry.read_objects()) == 0
    assert entry.metadata == {"Patient": "X", "MIL signature: low": "mine"}


def test_labels_from_the_metadata_of_a_project(trained: Path, tmp_path: Path, gradient_slide: Path) -> None:
    project = create_project(tmp_path / "labelled")
    for number in range(6):
        metadata = {"Patient": f"P{number}", "sig": "high" if number % 2 else "low", "grade": str(number // 2)}
        project.add_image(gradient_slide, name=f"t{number:02}", metadata=metadata)
    common = ("train", trained / "features", "--project", project.path.parent, "--output", tmp_path / "out")
    quick = ("--head", "mean", "--folds", 2, "--validation", 0, "--epochs", 2)
    lacking = run(*common, *quick)
    assert lacking.exit_code == 2
    assert "grade, sig" in lacking.output
    result = run(*common, *quick, "--label", "sig", "--label", "grade=0+1,2", "--json")
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert [(row["task"], row["slides"]) for row in document["figures"]] == [("sig", 6), ("grade", 6)]
    table = read_predictions(tmp_path / "out" / "predictions.csv")
    assert set(table["patient"]) == {f"P{n}" for n in range(6)}
    assert set(table["label grade"]) == {"0+1", "2"}


def test_an_external_set(trained: Path, tmp_path: Path) -> None:
    (tmp_path / "external").mkdir()
    for number in range(6):
        path = tmp_path / "external" / f"e{number}.h5"
        write_bag(path, features(50 + number, positive=bool(number % 2)), CORNERS, ENCODER)
    labels = tmp_path / "external.csv"
    labels.write_text("slide,signature\n" + "".join(f"e{n},{'high' if n % 2 else 'low'}\n" for n in range(6)))
    output = tmp_path / "out"
    result = train(
        trained, str(output), "--external", tmp_path / "external", "--external-labels", labels, "--epochs", 3
    )
    assert result.exit_code == 0, result.output
    assert "external, signature: 6 slides of 6 patients" in result.output
    table = read_predictions(output / "predictions.csv")
    assert (table["set"] == "external").sum() == 6


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--head", "none"), "unknown head"),
        (("--set", "hidden=wide"), "hidden is 'wide'; expected a value of the type int"),
        (("--set", "hidden"), "--set hidden; expected NAME=VALUE"),
        (("--set", "prompt.width=wide"), "width is 'wide'; expected a value of the type int"),
        (("--set", "prompt=1", "--set", "prompt.width=4"), "beside a value for prompt"),
        (("--set", "width=3"), "unknown key 'width'"),
        (("--learning-rate", "2"), "learning rate of 2.0"),
        (("--external-labels", "x.csv"), "external features or labels alone"),
        (("--project", "x"), "no QuPath project"),
    ],
)
def test_bad_options_write_nothing(trained: Path, tmp_path: Path, options: tuple[str, ...], words: str) -> None:
    result = train(trained, str(tmp_path / "out"), *options)
    assert result.exit_code == 2
    assert words in result.output
    assert not (tmp_path / "out").exists()
