"""``qupath-ext evaluate`` on tiny projects whose figures were worked out by hand."""

from __future__ import annotations

import io
import json
import math
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pandas as pd
import pytest
import shapely
from click.testing import CliRunner, Result
from PIL import Image

from pyhisto.dataset.splits import Split, write_split
from pyhisto.objects import concat_objects, make_objects
from qupath_ext.cli import main
from qupath_ext.exchange.geojson import write_geojson
from qupath_ext.project import Project, create_project, open_project
from qupath_ext.runs.ownership import read_ownership, write_run
from qupath_ext.runs.record import Run, start_run
from qupath_ext.workflows.evaluation.compare import compare_images
from qupath_ext.workflows.evaluation.pictures import worst_cases
from qupath_ext.workflows.evaluation.settings import EvaluationSettings
from qupath_ext.workflows.evaluation.sources import parse_source
from qupath_ext.workflows.exchange import import_files

WIDTH, HEIGHT = 400, 200


def new_project(folder: Path, images: int = 1, *, mpp: Any = 0.5, patients: Sequence[str] = ()) -> Project:
    folder.mkdir(parents=True, exist_ok=True)
    project = create_project(folder / "project", backend="native")
    for number in range(images):
        path = folder / f"slide{number}.tif"
        Image.new("RGB", (WIDTH, HEIGHT), (235, 225, 235)).save(path)
        metadata = {"Patient": patients[number]} if patients else {}
        project.add_image(path, name=f"slide{number}", mpp=mpp, metadata=metadata)
    return project


def points(places: Sequence[tuple[float, float]], classes: Any = "Negative") -> gpd.GeoDataFrame:
    """Point annotations at places in px."""
    return make_objects([shapely.Point(p) for p in places], object_type="annotation", classification=classes)


def cells(places: Sequence[tuple[float, float]], classes: Any = "Negative", side: float = 8, **more: Any) -> Any:
    """Square cells around places in px."""
    squares = [shapely.box(x - side / 2, y - side / 2, x + side / 2, y + side / 2) for x, y in places]
    return make_objects(squares, object_type="cell", classification=classes, **more)


def area(box: tuple[float, float, float, float], name: str | None) -> gpd.GeoDataFrame:
    return make_objects([shapely.box(*box)], object_type="annotation", classification=name)


def by_run(project: Project, *tables: gpd.GeoDataFrame, analysis: str = "ki67") -> Run:
    """Write a table to each image as a run does."""
    run = start_run(project, analysis, {"n": len(tables)}, {})
    for entry, table in zip(project.entries, tables, strict=False):
        write_run(run, entry, table, read_ownership(project, analysis, entry), replace=())
    run.finish()
    return run


def row(n: int, y: float = 50, x: float = 20, step: float = 30) -> list[tuple[float, float]]:
    return [(x + step * i, y) for i in range(n)]


@pytest.fixture
def evaluate(tmp_path: Path) -> Callable[..., Result]:
    def call(project: Project, *options: str, prediction: str = "run:latest", reference: str = "annotations") -> Result:
        output = tmp_path / "out"
        arguments = [str(project.path), "--prediction", prediction, "--reference", reference, "-o", str(output)]
        return CliRunner().invoke(main, ["evaluate", *arguments, "--backend", "native", *options])

    return call


def figures(tmp_path: Path) -> pd.DataFrame:
    return pd.read_csv(tmp_path / "out" / "figures.csv", keep_default_na=True)


def value(tmp_path: Path, metric: str, class_name: str = "any class", statistic: str = "pooled") -> float:
    table = figures(tmp_path)
    chosen = table[(table["level"] == "all") & (table["metric"] == metric) & (table["class"] == class_name)]
    (found,) = chosen.loc[chosen["statistic"] == statistic, "value"]
    return float(found)


# ---------------------------------------------------------------------- cells
def test_cells_without_a_class_are_judged_regardless_of_class(tmp_path, evaluate):
    project = new_project(tmp_path)
    project.entries[0].write_objects(points(row(10), ["Tumor", "Stroma"] * 5))
    by_run(project, cells(row(8), None))
    result = evaluate(project)
    assert result.exit_code == 0, result.output
    assert set(figures(tmp_path)["class"]) == {"any class"}
    assert value(tmp_path, "recall") == 0.8
    shutil.rmtree(tmp_path / "out")
    assert evaluate(project, "--map", "Unclassified=Tumor").exit_code == 0
    assert value(tmp_path, "recall", "Tumor") == 0.8  # the eight are four of each
    assert value(tmp_path, "precision", "Tumor") == 0.5


def test_ten_true_cells_eight_found_one_false(tmp_path, evaluate):
    project = new_project(tmp_path)
    project.entries[0].write_objects(points(row(10)))
    moved = [(x + 3, y) for x, y in row(8)]  # 1.5 µm off
    by_run(project, cells([*moved, (380, 150)]))
    result = evaluate(project)
    assert result.exit_code == 0, result.output
    assert value(tmp_path, "precision") == pytest.approx(8 / 9, abs=1e-5)
    assert value(tmp_path, "recall") == 0.8
    assert value(tmp_path, "F1") == pytest.approx(16 / 19, abs=1e-5)
    assert "F1              0.842" in result.output
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["figures.csv", "report.html"]


def test_the_other_direction_swaps_precision_and_recall(tmp_path, evaluate):
    project = new_project(tmp_path)
    project.entries[0].write_objects(points(row(10)))
    by_run(project, cells([*row(8), (380, 150)]))
    assert evaluate(project, prediction="annotations", reference="run:latest").exit_code == 0
    assert value(tmp_path, "precision") == 0.8
    assert value(tmp_path, "recall") == pytest.approx(8 / 9, abs=1e-5)


@pytest.mark.parametrize(("radius", "found"), [("1.4", 0.0), ("1.6", 1.0)])
def test_the_radius_is_in_um(tmp_path, evaluate, radius, found):
    project = new_project(tmp_path, mpp=0.5)
    project.entries[0].write_objects(points(row(4)))
    by_run(project, cells([(x + 3, y) for x, y in row(4)]))  # 1.5 µm
    assert evaluate(project, "--radius-um", radius).exit_code == 0
    assert value(tmp_path, "recall") == found


@pytest.mark.parametrize(("shift", "found"), [((0, 3), 0.0), ((3, 0), 1.0)])
def test_pixels_that_are_no_squares(tmp_path, evaluate, shift, found):
    project = new_project(tmp_path, mpp=(0.25, 1.0))  # 3 px are 0.75 µm across and 3 µm down
    project.entries[0].write_objects(points(row(4)))
    by_run(project, cells([(x + shift[0], y + shift[1]) for x, y in row(4)]))
    assert evaluate(project, "--radius-um", "2").exit_code == 0
    assert value(tmp_path, "recall") == found


def test_the_nucleus_counts_not_the_cell(tmp_path, evaluate):
    project = new_project(tmp_path)
    project.entries[0].write_objects(points([(50, 50)]))
    cell = make_objects(
        [shapely.box(46, 40, 100, 60)], nucleus=[shapely.box(46, 46, 54, 54)], object_type="cell",
        classification="Negative",
    )  # fmt: skip
    by_run(project, cell)
    assert evaluate(project).exit_code == 0
    assert value(tmp_path, "F1") == 1.0


def test_classes_confusion_and_index(tmp_path, evaluate):
    project = new_project(tmp_path)
    project.entries[0].write_objects(points(row(10), ["Positive"] * 4 + ["Negative"] * 6))
    by_run(project, cells(row(8), ["Positive"] * 2 + ["Negative"] * 6))
    result = evaluate(project, "--json")
    document = json.loads(result.stdout)
    confusion = {(cell["reference"], cell["prediction"]): cell["value"] for cell in document["confusion"]}
    assert confusion == {
        ("Positive", "Positive"): 2,
        ("Positive", "Negative"): 2,
        ("Negative", "Negative"): 4,
        ("Negative", None): 2,
    }
    assert value(tmp_path, "precision", "Positive") == 1.0
    assert value(tmp_path, "recall", "Positive") == 0.5
    assert value(tmp_path, "precision", "Negative") == pytest.approx(4 / 6, abs=1e-5)
    assert value(tmp_path, "index of the reference") == 40
    assert value(tmp_path, "index of the prediction") == 25
    assert value(tmp_path, "index error") == -15
    assert document["index"]["bias"] == -15


def test_classes_can_be_mapped_and_chosen(tmp_path, evaluate):
    project = new_project(tmp_path)
    truth = [points(row(4), "tumor"), points(row(3, y=100), "stromal"), points(row(2, y=150), "other")]
    project.entries[0].write_objects(concat_objects(truth))
    by_run(project, concat_objects([cells(row(4), "Tumor: Positive"), cells(row(3, y=100), "stromal")]))
    result = evaluate(project, "--map", "Tumor: Positive=tumor", "--class", "tumor", "--class", "stromal")
    assert result.exit_code == 0, result.output
    assert value(tmp_path, "F1") == value(tmp_path, "F1", "tumor") == value(tmp_path, "F1", "stromal") == 1.0
    assert "other" not in set(figures(tmp_path)["class"])


def test_outlines_give_aji_and_panoptic_quality(tmp_path, evaluate):
    project = new_project(tmp_path)
    truth = make_objects(
        [shapely.box(x - 10, 40, x + 10, 60) for x, _ in row(2, x=50, step=100)],
        object_type="annotation",
        classification="Negative",
    )
    project.entries[0].write_objects(truth)
    # The first is shifted by a quarter of its side: intersection 300, union 500 px². The second is missed.
    found = make_objects([shapely.box(45, 40, 65, 60)], object_type="detection", classification="Negative")
    by_run(project, found)
    assert evaluate(project).exit_code == 0
    assert value(tmp_path, "AJI") == pytest.approx(300 / (500 + 400), abs=1e-5)
    assert value(tmp_path, "SQ") == pytest.approx(0.6, abs=1e-5)
    assert value(tmp_path, "DQ") == pytest.approx(2 / 3, abs=1e-5)
    assert value(tmp_path, "PQ") == pytest.approx(0.4, abs=1e-5)


def test_without_outlines_there_is_no_aji(tmp_path, evaluate):
    project = new_project(tmp_path)
    project.entries[0].write_objects(points(row(2)))
    by_run(project, cells(row(2)))
    assert evaluate(project).exit_code == 0
    assert not {"AJI", "PQ"} & set(figures(tmp_path)["metric"])


def test_large_annotations_are_tissue_and_no_cells(tmp_path, evaluate):
    project = new_project(tmp_path)
    project.entries[0].write_objects(concat_objects([points(row(2)), area((0, 0, 300, 150), "Tumor")]))
    by_run(project, cells(row(2)))
    assert evaluate(project).exit_code == 0
    assert value(tmp_path, "F1") == 1.0


def test_chance_is_what_a_shifted_prediction_gives(tmp_path, evaluate):
    # Reference cells everywhere on a grid of 10 µm, radius 8 µm: wherever the prediction is shifted, it hits.
    project = new_project(tmp_path)
    grid = [(x, y) for x in range(10, WIDTH, 20) for y in range(10, HEIGHT, 20)]
    project.entries[0].write_objects(points(grid))
    by_run(project, cells(grid))
    assert evaluate(project, "--radius-um", "8").exit_code == 0
    table = figures(tmp_path)
    chance = table[(table["level"] == "image") & (table["metric"] == "F1") & (table["class"] == "any class")]["chance"]
    assert chance.item() > 0.9


# ---------------------------------------------------------------------- where
def test_only_what_lies_inside_the_region_counts(tmp_path, evaluate):
    project = new_project(tmp_path)
    project.entries[0].write_objects(concat_objects([points(row(4)), area((0, 0, 200, 100), "Training")]))
    by_run(project, cells([*row(4), *row(3, y=150), (300, 50)]))  # four of them outside
    result = evaluate(project)
    assert value(tmp_path, "precision") == 1.0
    assert "inside annotations of the class Training or Validation (0.005 mm²)" in result.output  # 200 x 100 px / 4


def test_another_region_can_be_named(tmp_path, evaluate):
    project = new_project(tmp_path, 2)
    objects = [points(row(4)), area((0, 0, 200, 100), "Training"), area((0, 0, 65, 100), "Hot spot")]
    project.entries[0].write_objects(concat_objects(objects))
    project.entries[1].write_objects(points(row(4)))
    by_run(project, cells(row(1)), cells(row(4)))
    result = evaluate(project, "--region", "Hot spot")
    assert value(tmp_path, "recall") == 0.5  # two of the four lie in it
    assert "slide1: not compared, no annotation of the class Hot spot" in result.output


def test_ignored_areas_and_points_are_left_out_of_both_sides(tmp_path, evaluate):
    project = new_project(tmp_path)
    truth = [points(row(4)), points(row(2, y=150)), area((0, 130, 80, 170), "Ignore*")]
    truth.append(points([(300, 150)], "Ambiguous*"))
    project.entries[0].write_objects(concat_objects(truth))
    by_run(project, cells([*row(3), (20, 150), (302, 150), (350, 150)]))
    assert evaluate(project).exit_code == 0
    assert value(tmp_path, "recall") == 0.75
    assert value(tmp_path, "precision") == 0.75  # three right, one at (350, 150) in excess


def test_an_image_that_nobody_labelled_is_left_out_and_said(tmp_path, evaluate):
    project = new_project(tmp_path, 3)
    project.entries[0].write_objects(points(row(2)))
    by_run(project, cells(row(2)), cells(row(5)))
    result = evaluate(project)
    assert "slide1: not compared, nothing is labelled in it" in result.output
    assert "slide2: not compared, the prediction does not have it" in result.output
    assert value(tmp_path, "precision") == 1.0
    assert "nothing is labelled in it: slide1" in (tmp_path / "out" / "report.html").read_text("utf-8")


def test_a_labelled_region_without_cells_counts_as_empty(tmp_path, evaluate):
    project = new_project(tmp_path, 2)
    project.entries[0].write_objects(area((0, 0, 400, 200), "Training"))
    project.entries[1].write_objects(area((0, 0, 400, 200), "Training"))
    by_run(project, cells(row(3)), area((0, 0, 300, 150), "Tumor"))
    assert evaluate(project).exit_code == 0
    table = figures(tmp_path)
    f1 = table[(table["metric"] == "F1") & (table["class"] == "any class") & (table["level"] == "image")]
    assert f1[["image", "value"]].to_numpy().tolist() == [["slide0", 0.0]]  # slide1 has nothing on either side


# ---------------------------------------------------------------------- sources
def test_annotations_are_what_people_made_or_changed(tmp_path, evaluate):
    project = new_project(tmp_path)
    entry = project.entries[0]
    written = cells(row(6))
    by_run(project, written)
    corrected = written.iloc[:2].copy()
    corrected["classification"] = pd.Categorical(["Positive"] * 2)
    entry.write_objects(corrected, remove=corrected.index.tolist())
    path = tmp_path / "more.geojson"
    write_geojson(path, cells(row(3, y=150)))
    list(import_files(project, [(entry, path)]))
    result = evaluate(project, "--json", prediction="run:ki67")
    assert json.loads(result.stdout)["confusion"] == [
        {"reference": "Negative", "prediction": None, "value": 3},
        {"reference": "Positive", "prediction": "Negative", "value": 2},
        {"reference": None, "prediction": "Negative", "value": 4},
    ]


def test_objects_are_all_that_is_there(tmp_path, evaluate):
    project = new_project(tmp_path)
    written = cells(row(6))
    by_run(project, written)
    project.entries[0].write_objects(remove=written.index[:3].tolist())
    assert evaluate(project, reference="objects").exit_code == 0
    assert value(tmp_path, "precision") == 0.5


def test_another_project_and_geojson(tmp_path, evaluate):
    project, other = new_project(tmp_path), new_project(tmp_path / "other")
    other.entries[0].write_objects(points(row(4)))
    folder = tmp_path / "found"
    folder.mkdir()
    write_geojson(folder / "slide0.geojson", cells(row(3)))
    result = evaluate(project, prediction=f"geojson:{folder}", reference=f"project:{other.path}")
    assert result.exit_code == 0, result.output
    assert value(tmp_path, "recall") == 0.75


def test_a_geojson_file_without_objects_says_that_there_is_nothing(tmp_path, evaluate):
    project = new_project(tmp_path)
    by_run(project, cells(row(2)))
    folder = tmp_path / "truth"
    folder.mkdir()
    write_geojson(folder / "1.geojson", points([]))
    assert evaluate(project, reference=f"geojson:{folder}").exit_code == 0
    assert value(tmp_path, "F1") == 0.0


def test_images_of_another_size_are_refused_and_named(tmp_path, evaluate):
    project, other = new_project(tmp_path, 2), new_project(tmp_path / "other")
    Image.new("RGB", (100, 100)).save(tmp_path / "small.tif")
    other.add_image(tmp_path / "small.tif", name="slide1", mpp=0.5)
    for entry in (*project.entries, *other.entries):
        entry.write_objects(points(row(2)))
    result = evaluate(project, prediction=f"project:{other.path}")
    assert result.exit_code == 1
    assert "slide1: failed: 'slide1' is 100 x 100 px" in result.output
    assert value(tmp_path, "F1") == 1.0


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("nonsense", "source 'nonsense'; expected run:ID"),
        ("run:", "source 'run:'; expected run:ID"),
        ("run:other", "no run 'other'"),
        ("geojson:nowhere", "nowhere is no folder"),
        ("project:nowhere", "nowhere"),
        ("annotations", "both sides are annotations"),
    ],
)
def test_wrong_sources_are_one_line_and_write_nothing(tmp_path, evaluate, source, words):
    project = new_project(tmp_path)
    project.entries[0].write_objects(points(row(2)))
    by_run(project, cells(row(2)))
    result = evaluate(project, prediction=source)
    assert result.exit_code == 2
    assert words in result.output.splitlines()[-1]
    assert not (tmp_path / "out").exists()


def test_an_output_folder_with_something_in_it_is_refused(tmp_path, evaluate):
    project = new_project(tmp_path)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("x")
    result = evaluate(project)
    assert result.exit_code == 2
    assert "expected a new or empty folder" in result.output
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine.txt"]


@pytest.mark.parametrize(
    "options",
    [
        ("--map", "A"),
        ("--map", "A=B", "--map", "A=C"),
        ("--radius-um", "0"),
        ("--part", "test"),
        ("--radius-um", "nan"),
    ],
)
def test_wrong_options_are_refused(tmp_path, evaluate, options):
    project = new_project(tmp_path)
    project.entries[0].write_objects(points(row(2)))
    by_run(project, cells(row(2)))
    assert evaluate(project, *options).exit_code == 2
    assert not (tmp_path / "out").exists()


def test_an_image_without_pixel_size_names_the_option(tmp_path, evaluate):
    project = new_project(tmp_path, mpp=None)
    project.entries[0].write_objects(points(row(2)))
    by_run(project, cells(row(2)))
    result = evaluate(project)
    assert result.exit_code == 2
    assert "give it with --mpp" in result.output
    assert evaluate(project, "--mpp", "0.5").exit_code == 0


def test_nothing_is_written_into_the_project(tmp_path, evaluate):
    project = new_project(tmp_path)
    project.entries[0].write_objects(points(row(2)))
    by_run(project, cells(row(2)))

    def state() -> dict[Path, tuple[int, bytes]]:
        files = [path for path in project.path.parent.rglob("*") if path.is_file()]
        return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in files}

    before = state()
    assert evaluate(project, "--matches").exit_code == 0
    assert state() == before


# ---------------------------------------------------------------------- patients
def test_means_over_images_and_patients_and_pooled(tmp_path, evaluate):
    # Patient A: 4 of 4 and 0 of 2 cells found; patient B: 2 of 4. Nothing in excess.
    project = new_project(tmp_path, 3, patients=("A", "A", "B"))
    for entry, n in zip(project.entries, (4, 2, 4), strict=True):
        entry.write_objects(points(row(n)))
    by_run(project, cells(row(4)), area((0, 0, 300, 150), "Tumor"), cells(row(2)))
    assert evaluate(project).exit_code == 0
    assert value(tmp_path, "recall", statistic="mean of images") == 0.5
    assert value(tmp_path, "recall", statistic="mean of patients") == pytest.approx((4 / 6 + 2 / 4) / 2, abs=1e-5)
    assert value(tmp_path, "recall") == 0.6
    table = figures(tmp_path)
    patients = table[(table["level"] == "patient") & (table["metric"] == "recall") & (table["class"] == "any class")]
    assert dict(zip(patients["patient"], patients["n"], strict=True)) == {"A": 2, "B": 1}
    whole = table[(table["statistic"] == "mean of patients") & (table["metric"] == "recall")].iloc[0]
    # Draws of two patients: A and A, A and B, B and B.
    assert (whole["low"], whole["high"]) == (0.5, pytest.approx(4 / 6, abs=1e-5))


def test_one_patient_has_no_interval(tmp_path, evaluate):
    project = new_project(tmp_path, 2, patients=("A", "A"))
    for entry in project.entries:
        entry.write_objects(points(row(2)))
    by_run(project, cells(row(2)), cells(row(1)))
    assert evaluate(project).exit_code == 0
    assert figures(tmp_path)["low"].isna().all()
    assert "no interval from one patient" in (tmp_path / "out" / "report.html").read_text("utf-8")


def test_a_split_restricts_to_the_patients_of_a_part(tmp_path, evaluate):
    project = new_project(tmp_path, 2, patients=("A", "B"))
    for entry in project.entries:
        entry.write_objects(points(row(2)))
    by_run(project, cells(row(2)), cells(row(1)))
    split = tmp_path / "split.json"
    write_split(split, Split({"A": "train", "B": "test"}))
    result = evaluate(project, "--split", str(split), "--part", "validation")
    assert result.exit_code == 2
    assert "no image of the part 'validation'" in result.output
    assert evaluate(project, "--split", str(split), "--part", "test").exit_code == 0
    assert value(tmp_path, "recall") == 0.5
    assert set(figures(tmp_path)["patient"].dropna()) == {"B"}


# ---------------------------------------------------------------------- tissue
def test_areas_in_um(tmp_path, evaluate):
    project = new_project(tmp_path, mpp=(0.5, 0.25))
    project.entries[0].write_objects(area((0, 0, 200, 100), "Tumor"))
    by_run(project, area((100, 0, 300, 100), "Tumor"))  # moved by 100 px, 50 µm
    assert evaluate(project, "--task", "tissue").exit_code == 0
    assert value(tmp_path, "Dice", "Tumor") == 0.5
    assert value(tmp_path, "IoU", "Tumor") == pytest.approx(1 / 3, abs=1e-5)
    assert value(tmp_path, "Hausdorff", "Tumor", "mean of patients") == pytest.approx(50, abs=0.5)
    far = value(tmp_path, "Hausdorff 95 %", "Tumor", "mean of patients")
    assert 25 < far <= 50


def test_classes_of_tissue_and_its_confusion(tmp_path, evaluate):
    project = new_project(tmp_path)
    project.entries[0].write_objects(
        concat_objects([area((0, 0, 400, 200), "Stroma"), area((0, 0, 100, 200), "Tumor: high grade")])
    )
    by_run(project, concat_objects([area((0, 0, 400, 200), "Stroma"), area((0, 0, 200, 200), "Tumor")]))
    result = evaluate(project, "--task", "tissue", "--class", "Tumor", "--class", "Stroma", "--json")
    confusion = {(c["reference"], c["prediction"]): c["value"] for c in json.loads(result.stdout)["confusion"]}
    # µm²: a quarter of 100 x 200 px is Tumor on both sides, as much is Stroma taken for Tumor.
    assert confusion == {("Tumor", "Tumor"): 5000, ("Stroma", "Tumor"): 5000, ("Stroma", "Stroma"): 10000}
    assert value(tmp_path, "Dice", "Tumor") == pytest.approx(2 * 5000 / 15000, abs=1e-5)


def test_a_class_that_one_side_lacks_is_zero_and_has_no_distance(tmp_path, evaluate):
    project = new_project(tmp_path)
    project.entries[0].write_objects(area((0, 0, 200, 100), "Tumor"))
    by_run(project, area((0, 0, 200, 100), "Stroma"))
    assert evaluate(project, "--task", "tissue").exit_code == 0
    assert value(tmp_path, "Dice", "Tumor") == value(tmp_path, "Dice", "Stroma") == 0.0
    assert "Hausdorff" not in set(figures(tmp_path)["metric"])


# ---------------------------------------------------------------------- page and files
def test_matches_name_each_cell(tmp_path, evaluate):
    project = new_project(tmp_path)
    truth = points(row(3), ["Positive", "Negative", "Negative"])
    project.entries[0].write_objects(truth)
    found = cells([(22, 50), (50, 50), (300, 150)])
    by_run(project, found)
    assert evaluate(project, "--matches").exit_code == 0
    table = pd.read_parquet(tmp_path / "out" / "matches" / "1.parquet").set_index("id")
    assert table["what"].to_dict() == {
        **dict(zip(found.index, ["wrong class", "right", "in excess"], strict=True)),
        **dict(zip(truth.index, ["wrong class", "right", "missed"], strict=True)),
    }
    assert table.loc[found.index[0], "other_id"] == truth.index[0]
    assert table.loc[found.index[0], "distance_um"] == 1.0


def test_the_page_escapes_names_and_shows_the_worst_cases(tmp_path, evaluate):
    evil = '<script>alert("x")</script>'
    project = new_project(tmp_path, patients=(evil,))
    project.entries[0].update(name=evil)
    project.entries[0].write_objects(points(row(4), evil))
    by_run(project, cells(row(2), evil, class_probability=[0.5, 0.9]))
    assert evaluate(project).exit_code == 0
    page = (tmp_path / "out" / "report.html").read_text("utf-8")
    assert "<script" not in page
    assert "default-src 'none'" in page
    assert page.count("<img") == 2
    assert "2 of 4 reference cells missed, 0 found in excess." in page
    assert "Reliability of 2 class probabilities" in page


def test_a_slide_that_is_away_costs_the_picture_only(tmp_path, evaluate):
    project = new_project(tmp_path)
    project.entries[0].write_objects(points(row(4)))
    by_run(project, cells(row(2)))
    (tmp_path / "slide0.tif").unlink()
    assert evaluate(project).exit_code == 0
    page = (tmp_path / "out" / "report.html").read_text("utf-8")
    assert "No picture of slide0" in page
    assert "<img" not in page


def test_both_sides_empty_everywhere(tmp_path, evaluate):
    project = new_project(tmp_path)
    project.entries[0].write_objects(area((0, 0, 400, 200), "Training"))
    by_run(project, area((0, 0, 300, 150), "Tumor"))
    result = evaluate(project, "--json")
    assert json.loads(result.stdout)["figures"] == []
    assert "Neither side has anything to compare" in (tmp_path / "out" / "report.html").read_text("utf-8")


def test_turned_images_are_compared_in_the_frame_that_is_shown(tmp_path, evaluate):
    """Both sides are in one frame, and the picture of it is taken from the right place of the slide."""
    project = new_project(tmp_path)
    pixels = np.full((HEIGHT, WIDTH, 3), 255, dtype=np.uint8)
    pixels[:100, :200] = (200, 0, 0)  # top left is red
    Image.fromarray(pixels).save(tmp_path / "slide0.tif")
    project_file = project.path
    document = json.loads(project_file.read_text("utf-8"))
    builder = document["images"][0]["serverBuilder"]
    turned = {"builderType": "rotated", "builder": builder, "rotation": "ROTATE_180"}
    document["images"][0]["serverBuilder"] = turned
    project_file.write_text(json.dumps(document), "utf-8")
    project = open_project(project_file, backend="native")
    entry = project.entries[0]
    # In the turned image the red quarter is at the bottom right.
    entry.write_objects(concat_objects([points([(300, 150)]), area((200, 100, 400, 200), "Training")]))
    by_run(project, cells([(390, 190)]))
    settings = EvaluationSettings(mpp=0.5)
    sources = [parse_source(text, project) for text in ("run:latest", "annotations")]
    found = compare_images(project, project.entries, sources[0], sources[1], settings)
    (case,), notes = worst_cases(project, found)
    assert notes == []
    plain = np.asarray(Image.open(io.BytesIO(case.plain_png)))
    assert (plain[: plain.shape[0] // 2, : -plain.shape[1] // 20] == (200, 0, 0)).all()
    assert math.isclose(found.areas_mm2[0], 200 * 100 * 0.25 / 1e6)
