"""Objects out of a project and back, on the command line."""

from __future__ import annotations

import json
from pathlib import Path

import geopandas as gpd
import numpy as np
import pandas as pd
import pytest
import shapely
import tifffile
from click.testing import CliRunner, Result
from PIL import Image

from pyhisto.objects import concat_objects, make_objects, save_objects
from qupath_ext.cli import main
from qupath_ext.project import Project, create_project, open_project

PARENT, BY_HAND = "10000000-0000-4000-8000-000000000001", "10000000-0000-4000-8000-000000000002"
CELLS = [f"20000000-0000-4000-8000-{number:012d}" for number in range(4)]


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """Two images of 400 x 300 px, 0.5 µm/px; the first with a tumour of 200 x 100 px, 4 cells in it, and a stroma."""
    slide = tmp_path / "slide.tif"
    Image.new("RGB", (400, 300), (240, 230, 240)).save(slide)
    project = create_project(tmp_path / "project", backend="native")
    for name in ("first", "second"):
        project.add_image(slide, name=name, mpp=0.5)
    areas = [shapely.box(0, 0, 200, 100), shapely.box(100, 50, 300, 250)]
    drawn = make_objects(
        areas, object_type="annotation", classification=["Tumor", "Stroma"], ids=[PARENT, BY_HAND], name=["T1", None]
    )
    boxes = [shapely.box(10 + 20 * i, 10, 20 + 20 * i, 20) for i in range(4)]
    cells = make_objects(
        boxes,
        object_type="cell",
        nucleus=[shapely.box(12 + 20 * i, 12, 18 + 20 * i, 18) for i in range(4)],
        classification=["Tumor: Positive", "Tumor: Negative", "Tumor: Negative", "Tumor: Negative"],
        ids=CELLS,
        parent_id=PARENT,
        measurements={"Nucleus: DAB OD mean": [0.5, 0.25, 0.125, 0.0]},
    )
    entry = project.entries[0]
    entry.write_objects(add=drawn)
    entry.write_objects(add=cells, lock=[PARENT])
    project.add_classes(dict.fromkeys(("Tumor", "Stroma", "Tumor: Positive", "Tumor: Negative")))
    return project


def command(*arguments: object) -> Result:
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exit_code in (0, 2), result.output
    return result


def objects(project: Project, image: int) -> gpd.GeoDataFrame:
    return open_project(project.path, backend="native").entries[image].read_objects()


def assert_same(found: gpd.GeoDataFrame, expected: gpd.GeoDataFrame) -> None:
    found = found.loc[expected.index]
    for column in ("object_type", "classification", "name", "locked", "parent_id"):
        a, b = (table[column].astype(object).where(table[column].notna(), None) for table in (found, expected))
        assert a.tolist() == b.tolist(), column
    assert shapely.equals(found.geometry.to_numpy(), expected.geometry.to_numpy()).all()
    np.testing.assert_array_equal(found["Nucleus: DAB OD mean"], expected["Nucleus: DAB OD mean"])


@pytest.mark.parametrize("form", ["geojson", "geojson.gz", "parquet"])
def test_out_and_in_again(project: Project, tmp_path: Path, form: str) -> None:
    out = tmp_path / "out"
    result = command("project", "export", project.path, out, "--format", form, "--image", "first")
    assert result.stdout == f"{out / f'1.{form}'}: 6 objects of first\n"
    result = command("project", "import", project.path, out / f"1.{form}", "--image", "second")
    assert result.stdout == "second: 6 objects\n"
    assert_same(objects(project, 1), objects(project, 0))
    result = command("runs", "undo", project.path)
    assert result.exit_code == 0, result.output
    assert objects(project, 1).empty
    assert len(objects(project, 0)) == 6


def test_objects_that_are_there_are_refused_or_get_new_ids(project: Project, tmp_path: Path) -> None:
    command("project", "export", project.path, tmp_path / "out", "--image", "first")
    file = tmp_path / "out" / "1.geojson"
    before = (project.path.parent / "data" / "1" / "data.qpdata").read_bytes()
    result = command("project", "import", project.path, file)
    assert result.exit_code == 2
    assert "and 5 more is in 'first' already" in result.stderr
    assert "--new-ids" in result.stderr
    assert (project.path.parent / "data" / "1" / "data.qpdata").read_bytes() == before
    assert command("project", "import", project.path, file, "--new-ids", "--dry-run").exit_code == 0
    assert len(objects(project, 0)) == 6
    command("project", "import", project.path, file, "--new-ids")
    found = objects(project, 0)
    assert len(found) == 12
    new = found.drop(index=[PARENT, BY_HAND, *CELLS])
    (tumour,) = new.index[new["classification"] == "Tumor"]
    assert set(new.loc[new["object_type"] == "cell", "parent_id"]) == {tumour}


def test_a_choice_of_types_and_classes(project: Project, tmp_path: Path) -> None:
    options = ("--type", "cell", "--class", "Tumor: Positive", "--image", "first")
    command("project", "export", project.path, tmp_path / "out", *options)
    (feature,) = json.loads((tmp_path / "out" / "1.geojson").read_text("utf-8"))["features"]
    assert feature["id"] == CELLS[0]
    result = command("project", "import", project.path, tmp_path / "out" / "1.geojson", "--image", "second")
    assert result.stdout == "second: 1 objects, 1 at the top level as their parents are not there\n"
    assert objects(project, 1)["parent_id"].tolist() == [None]


def test_the_measurement_table_has_qupaths_live_values(project: Project, tmp_path: Path) -> None:
    path = tmp_path / "annotations.csv"
    result = command("project", "export", project.path, path, "--format", "csv", "--image", "first")
    assert result.stdout == f"{path}: 2 rows\n"
    table = pd.read_csv(path).set_index("Object ID")
    assert table.at[PARENT, "Image"] == "first"
    assert table.at[PARENT, "Classification"] == "Tumor"
    assert table.at[PARENT, "Num Detections"] == 4
    assert table.at[PARENT, "Num Tumor: Positive"] == 1
    assert table.at[PARENT, "Num Tumor: Negative"] == 3
    assert table.at[PARENT, "Tumor: Positive %"] == 25
    assert table.at[PARENT, "Area µm^2"] == 200 * 100 * 0.25
    assert table.at[BY_HAND, "Num Detections"] == 0
    cells = tmp_path / "cells.tsv"
    command("project", "export", project.path, cells, "--format", "tsv", "--rows", "cell")
    assert pd.read_csv(cells, sep="\t")["Nucleus: DAB OD mean"].tolist() == [0.5, 0.25, 0.125, 0.0]
    summary = tmp_path / "summary.csv"
    result = command("project", "export", project.path, summary, "--format", "csv", "--rows", "summary")
    assert result.stdout == f"{summary}: 2 rows\n"
    assert pd.read_csv(summary)["Image"].tolist() == ["first", "second"]


def test_masks_out_and_in_again(project: Project, tmp_path: Path) -> None:
    out = tmp_path / "masks"
    options = ("--image", "first", "--class", "Tumor", "--class", "Stroma", "--mpp", "1")
    for form in ("png", "ome.tif"):
        command("project", "export", project.path, out, "--format", form, *options)
    pixels = np.asarray(Image.open(out / "1.png"))
    assert pixels.shape == (150, 200)
    assert (pixels == 2).sum() == 100 * 100  # stroma, later in the list, wins
    assert (pixels == 1).sum() == 100 * 50 - 50 * 25
    np.testing.assert_array_equal(tifffile.imread(out / "1.ome.tif"), pixels)
    result = command("project", "import", project.path, out / "1.png", "--image", "second")
    assert result.stdout == "second: 2 objects\n"
    found = objects(project, 1)
    stroma = found[found["classification"] == "Stroma"].geometry.iloc[0]
    drawn = shapely.box(100, 50, 300, 250)
    assert stroma.intersection(drawn).area / stroma.union(drawn).area > 0.999


def test_files_that_are_there_are_not_replaced(project: Project, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command("project", "export", project.path, out)
    (out / "2.geojson").write_text("mine")
    (out / "1.geojson").unlink()
    result = command("project", "export", project.path, out)
    assert result.exit_code == 2
    assert "2.geojson is there already" in result.stderr
    assert not (out / "1.geojson").exists()
    assert command("project", "export", project.path, out, "--overwrite").exit_code == 0
    assert (out / "2.geojson").read_text("utf-8") != "mine"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("1.geojson", '{"type": "FeatureCollection", "features": [{"type": "Feature"', "1.geojson"),
        ("1.txt", "hello", "1.txt is of no known format"),
        ("3.geojson", "{}", "no image '3'"),
        ("1.parquet", "no parquet", "is no table of path objects"),
    ],
)
def test_files_that_cannot_be_imported(project: Project, tmp_path: Path, name: str, content: str, message: str) -> None:
    (tmp_path / name).write_text(content, "utf-8")
    before = (project.path.parent / "data" / "1" / "data.qpdata").read_bytes()
    result = command("project", "import", project.path, tmp_path / name)
    assert result.exit_code == 2
    assert message in result.stderr
    assert (project.path.parent / "data" / "1" / "data.qpdata").read_bytes() == before
    assert not (project.path.parent / "qupath_ext" / "runs").exists()


def test_cores_without_their_grid_are_left_out_and_said(project: Project, tmp_path: Path) -> None:
    core = make_objects([shapely.Point(50, 50).buffer(20)], object_type="tma_core", ids=[CELLS[0]])
    inside = make_objects([shapely.box(45, 45, 55, 55)], object_type="annotation", parent_id=CELLS[0])
    save_objects(tmp_path / "2.parquet", concat_objects([core, inside]))
    result = command("project", "import", project.path, tmp_path / "2.parquet")
    assert result.stdout == (
        "second: 1 objects, 1 at the top level as their parents are not there, "
        "1 TMA cores left out as files have no TMA grid\n"
    )
    assert list(objects(project, 1).index) == list(inside.index)
