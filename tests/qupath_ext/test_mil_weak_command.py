"""``qupath-ext mil weak``: from labels of slides to areas in a QuPath project, and back."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import shapely
from click.testing import CliRunner, Result
from scipy.stats import spearmanr

import qupath_ext.workflows.weak as weak_module
from pyhisto.features.bags import write_bag
from pyhisto.mil.predictions import read_predictions
from pyhisto.mil.weak.bundle import load_weak_bundle
from pyhisto.mil.weak.train import fit_weak
from pyhisto.objects import make_objects
from pyhisto.synth import SynthSettings, make_slide
from qupath_ext.cli import main
from qupath_ext.project import Project, create_project, open_project
from qupath_ext.runs.record import list_runs

SIDE = 16
CORNERS = np.array([(x, y) for y in range(0, 64, SIDE) for x in range(0, 96, SIDE)])
POSITIVE = [0, 1, 6, 7, 14]
"""A square of four tiles at the top left, and one that stands alone."""
ENCODER = {"encoder": "colours", "encoder_sha256": "ab" * 32, "patch_size": SIDE}
QUICK = ("--hidden", 0, "--epochs", 30, "--patience", 0, "--learning-rate", 0.1)


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["mil", "weak", *map(str, arguments)])


def features(seed: int, *, positive: bool) -> np.ndarray[Any, Any]:
    """Return 24 tiles, of which five are far off in a positive slide."""
    bag = np.random.default_rng(seed).normal(size=(24, 4)).astype(np.float32)
    bag[POSITIVE, 0] += 8.0 * positive
    return bag


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Features, labels and a model for ``tumour``, yes or no."""
    folder = tmp_path_factory.mktemp("weak")
    (folder / "features").mkdir()
    rows = [["slide", "patient", "tumour"]]
    for number in range(20):
        name, positive = f"t{number:02}", bool(number % 2)
        write_bag(folder / "features" / f"{name}.h5", features(number, positive=positive), CORNERS, ENCODER)
        rows.append([name, f"P{number}", "yes" if positive else "no"])
    with (folder / "labels.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    result = train(folder, "out")
    assert result.exit_code == 0, result.output
    return folder


def train(folder: Path, output: str, *options: object) -> Result:
    common = ("--labels", folder / "labels.csv", "--label", "tumour=no,yes", "--output", folder / output)
    return run("train", folder / "features", *common, *QUICK, *options)


def pairs(output: Path) -> list[dict[str, str]]:
    with (output / "pairs.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def project(tmp_path: Path, gradient_slide: Path) -> Project:
    project = create_project(tmp_path / "project")
    entry = project.add_image(gradient_slide, name="slide one", metadata={"Patient": "X"})
    mine = make_objects([shapely.box(0, 0, 9, 9)], object_type="annotation", classification="Tumor", name="mine")
    entry.write_objects(add=mine)
    return project


@pytest.fixture
def slides(tmp_path: Path) -> Path:
    folder = tmp_path / "slides"
    folder.mkdir()
    write_bag(folder / "a.h5", features(99, positive=True), CORNERS, {**ENCODER, "name": "slide one"})
    return folder


def model(trained: Path) -> Path:
    return trained / "out" / "alpha-0.2-beta-0.2" / "model"


def test_training_leaves_a_model_and_its_figures(trained: Path) -> None:
    bundle = load_weak_bundle(model(trained))
    assert (bundle.spec.target, bundle.spec.encoder, bundle.spec.rule.alpha) == ("yes", "colours", 0.2)
    (row,) = pairs(trained / "out")
    assert (row["alpha"], row["beta"], row["judged_on"], row["slides"]) == ("0.2000", "0.2000", "test", "4")
    assert float(row["slide_auroc"]) == 1.0
    assert row["pixel_auc"] == ""
    assert (trained / "out" / "pairs.png").read_bytes()[1:4] == b"PNG"
    table = read_predictions(model(trained).parent / "predictions.csv")
    assert len(table) == 4
    assert set(table["label tumour"]) == {"no", "yes"}
    said = table.set_index("label tumour")["p tumour=yes"]
    assert said["yes"].min() > said["no"].max()
    curve = (model(trained).parent / "curve.csv").read_text("utf-8").splitlines()
    assert curve[0] == "number,loss,validation,auroc,best"
    assert len(curve) == 31
    judged = CliRunner().invoke(main, ["mil", "evaluate", str(model(trained).parent / "predictions.csv")])
    assert "test, tumour: 4 slides of 4 patients" in judged.output


def test_pairs_that_are_there_are_not_trained_again(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = model(trained).stat().st_mtime_ns
    monkeypatch.setattr(weak_module, "fit_weak", lambda *_, **__: pytest.fail("trained again"))
    again = train(trained, "out", "--json")
    assert again.exit_code == 0, again.output
    assert json.loads(again.stdout)["pairs"][0]["slide_auroc"] == 1.0
    assert model(trained).stat().st_mtime_ns == before
    other = train(trained, "out", "--seed", 1)
    assert other.exit_code == 2
    assert "is of a training on other slides or with other settings" in other.output


def test_all_pairs_go_on_where_they_were_killed(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = ("--all-pairs", "--epochs", 2)
    done: list[Any] = []

    def killed_in_the_third(*arguments: Any, **named: Any) -> Any:
        done.append(arguments[2])
        if len(done) == 3:
            raise KeyboardInterrupt
        return fit_weak(*arguments, **named)

    monkeypatch.setattr(weak_module, "fit_weak", killed_in_the_third)
    assert train(trained, "all", *options).exit_code != 0
    assert len((trained / "all" / "pairs.csv").read_text("utf-8").splitlines()) == 3
    result = train(trained, "all", *options)
    assert result.exit_code == 0, result.output
    assert len(done) == 16  # the two that were there are not done again, the third is
    rows = pairs(trained / "all")
    assert len({(row["alpha"], row["beta"]) for row in rows}) == 15
    assert all(float(row["alpha"]) + float(row["beta"]) <= 1.0001 for row in rows)


def test_areas_in_a_project_and_undone(trained: Path, project: Project, slides: Path) -> None:
    folder = project.path.parent
    arguments = ("predict", folder, "--model", model(trained), "--features", slides, "--class", "Tumor", "--tiles")
    dry = run(*arguments, "--dry-run")
    assert dry.exit_code == 0, dry.output
    assert len(open_project(folder).entries[0].read_objects()) == 1
    result = run(*arguments, "--json")
    assert result.exit_code == 0, result.output
    (image,) = json.loads(result.stdout)["images"]
    assert (image["tiles"], image["areas"], image["share"]) == (24, 2, pytest.approx(5 / 24))
    entry = open_project(folder).entries[0]
    objects = entry.read_objects()
    areas = objects[(objects["object_type"] == "annotation") & (objects["name"] != "mine")]
    assert set(areas["classification"]) == {"Tumor"}
    assert areas["locked"].all()
    assert sorted(area.bounds for area in areas.geometry) == [(0, 0, 32, 32), (32, 32, 48, 48)]
    assert sorted(area.area for area in areas.geometry) == [256, 1024]
    assert (areas["MIL: score yes"] > 0.5).all()
    tiles = objects[objects["object_type"] == "tile"]
    assert len(tiles) == 24
    assert (tiles["MIL: score yes"] > 0.5).sum() == 5
    large = areas[areas.geometry.area == 1024]["MIL: score yes"].item()
    inside = shapely.covers(shapely.box(0, 0, 32, 32), tiles.geometry.to_numpy())
    assert large == pytest.approx(tiles["MIL: score yes"][inside].mean(), abs=1e-6)
    assert entry.metadata["MIL tumour: yes"] == f"{image['probability']:.4f}"
    (written,) = list_runs(project)
    assert written.record["models"]["weak_segmentation"]["name"] == "model"
    undone = CliRunner().invoke(main, ["runs", "undo", str(folder), "latest"])
    assert undone.exit_code == 0, undone.output
    entry = open_project(folder).entries[0]
    assert entry.read_objects()["name"].tolist() == ["mine"]
    assert entry.metadata == {"Patient": "X"}


def test_small_areas_are_left_out(trained: Path, project: Project, slides: Path) -> None:
    arguments = ("predict", project.path.parent, "--model", model(trained), "--features", slides, "--mpp", 0.5)
    for least, areas in ((64.0, 2), (65.0, 1)):  # a tile of 16 px is 8 µm wide
        result = run(*arguments, "--min-area-um2", least, "--dry-run", "--json")
        assert result.exit_code == 0, result.output
        assert json.loads(result.stdout)["images"][0]["areas"] == areas


def test_a_second_run_replaces_what_nobody_touched(trained: Path, project: Project, slides: Path) -> None:
    folder = project.path.parent
    arguments = ("predict", folder, "--model", model(trained), "--features", slides)
    assert run(*arguments).exit_code == 0
    entry = open_project(folder).entries[0]
    objects = entry.read_objects()
    small = objects.index[(objects["classification"] == "yes") & (objects.geometry.area == 256)]
    with entry.edit() as change:
        change.update(pd.DataFrame({"name": ["checked"]}, index=small))
    again = run(*arguments, "--json")
    assert again.exit_code == 0, again.output
    (image,) = json.loads(again.stdout)["images"]
    assert (image["replaced"], image["kept"]) == (1, 1)
    names = open_project(folder).entries[0].read_objects()["name"]
    assert names.notna().sum() == 2  # mine and checked


def test_true_areas_of_a_project(trained: Path, tmp_path: Path, gradient_slide: Path) -> None:
    project = create_project(tmp_path / "truth")
    for number in range(20):
        entry = project.add_image(gradient_slide, name=f"t{number:02}")
        if number % 2:
            boxes = [shapely.box(0, 0, 32, 32), shapely.box(32, 32, 48, 48)]
            entry.write_objects(add=make_objects(boxes, object_type="annotation", classification="Tumor"))
    arguments = ("truth", "--project", project.path.parent, "--truth", "Tumor", "--json")
    result = train(trained, *arguments)
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert "true areas of 4 of 4 test slides" in document["notes"]
    (row,) = document["pairs"]
    assert row["pixel_auc"] > 0.99
    assert row["recall"] == 1.0
    assert row["precision"] > 0.8
    options = ("--model", model(trained), "--features", trained / "features", "--class", "Tumor", "--threshold", 0.01)
    assert run("predict", project.path.parent, *options).exit_code == 0
    again = train(trained, *arguments)  # what was predicted is not what is true: the pair is still the same
    assert again.exit_code == 0, again.output
    assert json.loads(again.stdout)["pairs"] == [row]


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project of small synthetic slides, every second with tumour, their label and the truth."""
    folder = tmp_path_factory.mktemp("drawn")
    project = create_project(folder / "project")
    for number in range(10):
        path = folder / f"s{number}.tif"
        fraction = 0.4 if number % 2 else 0.0
        settings = SynthSettings(512, 512, seed=number, tumour_fraction=fraction, pen_mark=False)
        # eight slides to learn from show too few laboratories
        truth = make_slide(path, replace(settings, stain_variation=0.0, scanner_variation=0.0))
        label = "yes" if number % 2 else "no"
        entry = project.add_image(path, metadata={"Patient": f"P{number}", "tumour": label})
        entry.write_objects(add=truth.tumour)
    return project.path.parent


def train_on_slides(drawn: Path, output: Path, *options: object) -> list[dict[str, Any]]:
    tiles = ("--tile-size", 16, "--tile-mpp", 1.0, "--network", "cnn", "--batch-size", 3)
    shares = ("--validation", 0, "--test", 0.2, "--truth", "Tumor")
    quick = ("--epochs", 30, "--learning-rate", 0.003)
    arguments = ("train", drawn, "--label", "tumour=no,yes", "--output", output, *tiles, *shares, *quick)
    result = run(*arguments, *options, "--json")
    assert result.exit_code == 0, result.output
    rows: list[dict[str, Any]] = json.loads(result.stdout)["pairs"]
    return rows


def test_straight_from_slides(drawn: Path, tmp_path: Path) -> None:
    (row,) = train_on_slides(drawn, tmp_path / "out")
    assert row["pixel_auc"] >= 0.9
    folder = tmp_path / "out" / "alpha-0.2-beta-0.2" / "model"
    assert load_weak_bundle(folder).spec.tiles is not None
    done = run("predict", drawn, "--model", folder, "--image", "s1.tif", "--class", "Found", "--json")
    assert done.exit_code == 0, done.output
    entry = next(entry for entry in open_project(drawn).entries if entry.name == "s1.tif")
    objects = entry.read_objects()
    found = shapely.union_all(objects[objects["classification"] == "Found"].geometry.to_numpy())
    truth = shapely.union_all(objects[objects["classification"] == "Tumor"].geometry.to_numpy())
    assert found.intersection(truth).area > 0.6 * found.area > 0
    assert CliRunner().invoke(main, ["runs", "undo", str(drawn), "latest"]).exit_code == 0


@pytest.mark.slow
def test_recall_grows_and_precision_falls_with_alpha(drawn: Path, tmp_path: Path) -> None:
    rows = pd.DataFrame(train_on_slides(drawn, tmp_path / "out", "--all-pairs"))
    assert len(rows) == 15
    good = rows[(rows["alpha"] == 0.2) & (rows["beta"] == 0.2)]
    assert good["pixel_auc"].item() >= 0.9
    means = rows.groupby("alpha")[["recall", "precision"]].mean()
    assert means["recall"].iloc[-1] > means["recall"].iloc[0] + 0.2
    assert means["precision"].iloc[-1] < means["precision"].iloc[0] - 0.2
    assert spearmanr(rows["alpha"], rows["recall"]).statistic > 0.7
    assert spearmanr(rows["alpha"], rows["precision"]).statistic < -0.7
    # and the other way round with beta, where alpha is the same
    least = rows[rows["alpha"] == rows["alpha"].min()]
    assert spearmanr(least["beta"], least["recall"]).statistic < 0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--alpha", "0.8", "--beta", "0.4"), "alpha 0.8 with beta 0.4; expected"),
        (("--network", "cnn"), "the network cnn for features of colours; expected mlp"),
        (("--label", "tumour=no,yes", "--label", "slide"), "label"),
        (("--test", "0.9"), "a share of 0.9 of the patients"),
        (("--learning-rate", "2"), "learning rate of 2.0"),
        (("--truth", "Tumor"), "--truth without a project"),
        (("--device", "cuda:9"), "'cuda:9' is not available"),
    ],
)
def test_bad_options_write_nothing(trained: Path, tmp_path: Path, options: tuple[str, ...], words: str) -> None:
    result = train(trained, str(tmp_path / "out"), *options)
    assert result.exit_code == 2
    assert words in result.output
    assert len(result.output.strip().splitlines()) <= 2
    assert not (tmp_path / "out").exists()


def test_bad_predictions_change_nothing(trained: Path, project: Project, slides: Path, tmp_path: Path) -> None:
    folder = project.path.parent
    before = (folder / "data").stat().st_mtime_ns
    for options, words in (
        (("--model", model(trained)), "judges features of colours; expected --features"),
        (("--model", model(trained), "--features", slides, "--threshold", 0), "threshold 0; expected above 0"),
        (("--model", trained, "--features", slides), "no classifier of tiles"),
    ):
        result = run("predict", folder, *options)
        assert result.exit_code == 2
        assert words in result.output
    write_bag(slides / "a.h5", features(1, positive=False), CORNERS, {**ENCODER, "encoder": "x", "name": "slide one"})
    other = run("predict", folder, "--model", model(trained), "--features", slides)
    assert other.exit_code == 1
    assert "4 features of x" in other.output
    assert (folder / "data").stat().st_mtime_ns == before
    assert open_project(folder).entries[0].metadata == {"Patient": "X"}
