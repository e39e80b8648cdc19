"""The demonstration in miniature, end to end: slides, project, annotations, training, score, report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shapely
from click.testing import CliRunner, Result

from pyhisto.bundle.files import read_spec
from pyhisto.metrics import Index
from pyhisto.objects import concat_objects, make_objects
from qupath_ext.cli import main
from qupath_ext.project import open_project
from qupath_ext.workflows.demo import score_result
from qupath_ext.workflows.ki67 import ImageResult

MINIATURE = """
seed = 0
[slides]
training = 1
width = 640
height = 640
[annotations]
rectangles = 2
rectangle_um = 120.0
[tumour]
kind = "tissue"
classes = ["Tumor"]
model = { architecture = "unet-densenet121", decoder_channels = [16, 16, 8, 8, 8], tile_size = 64, overlap = 8 }
training = { steps = 6, batch_size = 2, learning_rate = 1e-2, workers = 0 }
postprocessing = { threshold = 0.2, sigma_um = 4.0, min_area_um2 = 200.0, min_hole_area_um2 = 50.0, simplify_um = 1.0 }
[cells]
kind = "cells"
classes = ["Tumor: Positive", "Tumor: Negative"]
model = { architecture = "unet-resnet34", decoder_channels = [16, 16, 8, 8, 8], tile_size = 64, overlap = 8 }
training = { steps = 6, batch_size = 2, learning_rate = 1e-2, workers = 0 }
postprocessing = { threshold = 0.2, sigma_um = 1.0, min_distance_um = 3.0, reach_um = 7.0, core_um = 1.5 }
"""


def run(folder: Path, study: str = MINIATURE, *options: str) -> Result:
    path = folder.with_name(f"{folder.name}.toml")
    path.write_text(study, "utf-8")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("pyhisto.bundle.files.fast_bfloat16", lambda device: False)
        patched.setattr("pyhisto.train.loop.fast_bfloat16", lambda device: False)
        return CliRunner().invoke(main, ["demo", str(folder), "--study", str(path), *options])


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    folder = tmp_path_factory.mktemp("demo") / "ki67-demo"
    result = run(folder)
    assert result.exit_code == 0, result.output
    return folder, result


def modified(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def test_everything_is_there(finished: tuple[Path, Result]) -> None:
    folder, result = finished
    for line in ("Ki-67 index", "95 % interval", "truth", "detection F1", "tumour Dice", "open in QuPath"):
        assert line in result.stdout
    assert (folder / "overlay.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert "Ki-67 demonstration" in (folder / "report.html").read_text("utf-8")
    summary = json.loads((folder / "summary.json").read_text("utf-8"))
    assert set(summary["truth"]) == {"ki67_percent", "tumour_dice", "positive_f1", "negative_f1"}
    kinds = [read_spec(folder / "models" / name)[0].kind for name in ("tumour", "cells")]
    assert kinds == ["tissue_segmentation", "cell_detection"]


def test_the_project_holds_annotations_for_training_and_the_result(finished: tuple[Path, Result]) -> None:
    folder, _ = finished
    project = open_project(folder / "project")
    assert [entry.name for entry in project.entries] == ["training-1.tif", "held-out.tif"]
    drawn = project.entries[0].read_objects()
    assert set(drawn["object_type"]) == {"annotation"}
    assert {"Tumor", "Training"} <= set(drawn["classification"].dropna())
    summary = json.loads((folder / "summary.json").read_text("utf-8"))
    held_out = project.entries[1].read_objects()
    assert (held_out["object_type"] == "cell").sum() == summary["cells"]
    assert (held_out["object_type"] == "annotation").sum() == summary["annotations"]
    assert all(entry.image_type == "BRIGHTFIELD_H_DAB" for entry in project.entries)


def test_a_second_call_trains_nothing_again(finished: tuple[Path, Result]) -> None:
    folder, first = finished
    kept = {part: modified(folder / part) for part in ("models", "slides")}
    result = run(folder)
    assert result.exit_code == 0, result.output
    assert "train the" not in result.stderr
    assert {part: modified(folder / part) for part in ("models", "slides")} == kept
    assert result.stdout.splitlines()[:3] == first.stdout.splitlines()[:3]
    cells = open_project(folder / "project").entries[1].read_objects().query("object_type == 'cell'")
    assert len(cells) == json.loads((folder / "summary.json").read_text("utf-8"))["cells"]


@pytest.mark.parametrize("options", [["--seed", "1"], []])
def test_other_settings_in_the_same_folder_are_refused(finished: tuple[Path, Result], options: list[str]) -> None:
    folder, _ = finished
    before = modified(folder)
    study = MINIATURE if options else MINIATURE.replace("rectangles = 2", "rectangles = 3")
    result = run(folder, study, *options)
    assert result.exit_code == 2
    assert result.stderr.startswith("qupath-ext: ")
    assert len(result.stderr.splitlines()) == 1
    assert "other settings" in result.stderr
    assert modified(folder) == before


def test_a_folder_with_something_else_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "thesis.txt").write_text("work of years", "utf-8")
    result = run(folder)
    assert result.exit_code == 2
    assert result.stderr.splitlines() == [f"qupath-ext: {folder} holds something already; choose a new or empty folder"]
    assert [path.name for path in folder.iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize(
    ("study", "message"),
    [
        (MINIATURE.replace("rectangles", "rectangels"), "unknown key 'rectangels'"),
        (MINIATURE.replace("width = 640", "width = 64"), "width = 64 px"),
        (MINIATURE.replace("unet-resnet34", "unet-resnet35"), "unet-resnet35"),
    ],
)
def test_a_study_that_cannot_work_leaves_nothing(tmp_path: Path, study: str, message: str) -> None:
    folder = tmp_path / "demo"
    result = run(folder, study)
    assert result.exit_code == 2
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert not folder.exists()


def test_the_score_counts_by_hand() -> None:
    """Three true nuclei (2 negative), two found where they are: one right, one with the wrong class."""

    def squares(places: list[tuple[float, float]]) -> list[Any]:
        return [shapely.box(x - 4, y - 4, x + 4, y + 4) for x, y in places]

    places = [(20.0, 20.0), (60.0, 20.0), (20.0, 60.0)]
    nuclei = make_objects(
        squares(places),
        object_type="detection",
        classification=["Tumor: Positive", "Tumor: Negative", "Tumor: Negative"],
    )
    tumour = make_objects([shapely.box(0, 0, 80, 80)], object_type="annotation", classification="Tumor")
    found = make_objects(
        squares(places[:2]),
        object_type="cell",
        nucleus=squares(places[:2]),
        classification=["Tumor: Positive", "Tumor: Positive"],
    )
    half = make_objects([shapely.box(0, 0, 40, 80)], object_type="annotation", classification="Tumor")
    index = Index(2, 2, 100.0, np.nan, np.nan, "")
    objects = concat_objects([half, found])
    result = ImageResult(name="s", entry_id="1", objects=objects, index=index, region_area_mm2=1.0, settings={})
    score = score_result(result, tumour, nuclei, 0.5)
    assert score.index_percent == pytest.approx(100 / 3)
    assert score.tumour_dice == pytest.approx(2 * 0.5 / 1.5)
    assert score.positive.f1 == pytest.approx(2 / 3)  # 1 right, 1 too many
    assert score.negative.f1 == 0.0
