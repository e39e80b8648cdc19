"""Models of others through the command line, into a QuPath project."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pytest
import shapely
from click.testing import CliRunner, Result
from foreign_folders import (
    DISKS,
    SIGMOID,
    ChannelMeans,
    Colours,
    monai_config,
    monai_metadata,
    painted,
    write_hover,
    write_monai,
    write_wsinfer,
)

from pyhisto.objects import make_objects
from pyhisto.slide import Slide
from pyhisto.synth import SynthSettings, make_slide
from qupath_ext.cli import main
from qupath_ext.project import Project, create_project, open_project
from qupath_ext.runs.record import list_runs

AREA = shapely.box(64, 64, 320, 256)


@pytest.fixture(scope="session")
def slide_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("foreign") / "slide.tif"
    make_slide(path, SynthSettings(width=512, height=512, seed=3))
    return path


@pytest.fixture
def project(tmp_path: Path, slide_path: Path) -> Project:
    project = create_project(tmp_path / "project")
    area = make_objects([AREA], object_type="annotation", classification="Hot spot")
    project.add_image(slide_path).write_objects(add=area)
    return project


def run(project: Project, model: Path, *options: str) -> Result:
    arguments = ["annotate", str(project.path.parent), "--json", "--model", str(model), *options]
    return CliRunner().invoke(main, arguments)


def objects_of(project: Project) -> gpd.GeoDataFrame:
    return open_project(project.path).entries[0].read_objects()


def test_wsinfer_tiles_in_a_project(tmp_path: Path, project: Project, slide_path: Path) -> None:
    model = write_wsinfer(tmp_path / "tumor-vgg")
    result = run(project, model, "--region", "Hot spot")
    assert result.exit_code == 0, result.output
    (image,) = json.loads(result.stdout)["images"]
    tiles = objects_of(project).query("object_type == 'tile'")
    assert len(tiles) == 8 * 6 == sum(image["objects"].values())
    assert {g.bounds[:2] for g in tiles.geometry} == {(x, y) for x in range(64, 320, 32) for y in range(64, 256, 32)}
    np.testing.assert_allclose(tiles["Tumor"] + tiles["Other"], 1, atol=1e-6)
    tumor = tiles["classification"].astype(str) == "Tumor"
    np.testing.assert_array_equal(tumor, tiles["Tumor"] > 0.5)
    with Slide(slide_path) as slide:  # mean red and green after (rgb / 255 - mean) / std
        means = [slide.read_region(*g.bounds[:2], 32, 32)[..., :2].mean(axis=(0, 1)) / 255 for g in tiles.geometry]
    logits = (np.array(means) - (0.5, 0.25)) / (0.5, 0.25)
    np.testing.assert_allclose(tiles["Tumor"], 1 / (1 + np.exp(logits[:, 1] - logits[:, 0])), atol=0.01)
    assert any("foreign model" in note for note in image["notes"])
    (found,) = list_runs(project)
    record = json.loads((found.folder / "run.json").read_text("utf-8"))
    weights = hashlib.sha256((model / "torchscript_model.pt").read_bytes()).hexdigest()
    assert record["models"]["tile_classification"]["name"] == "tumor-vgg"
    assert record["models"]["tile_classification"]["sha256"] == weights
    assert (record["config"]["model"]["mpp"], record["config"]["model"]["tile_size"]) == (1.0, 16)
    again = run(project, model, "--region", "Hot spot")
    assert json.loads(again.stdout)["images"][0]["replaced"] == 48
    assert len(objects_of(project)) == 49


def test_a_monai_segmentation_in_a_project(tmp_path: Path, project: Project) -> None:
    metadata = monai_metadata({"0": "Stroma"}, shape=(64, 64))
    model = write_monai(tmp_path / "everything", metadata, monai_config({}, activation=SIGMOID), script=Colours(1))
    refused = run(project, model)
    assert refused.exit_code == 2
    assert "--model-mpp" in refused.output
    assert len(objects_of(project)) == 1
    result = run(project, model, "--region", "Hot spot", "--model-mpp", "1.0")
    assert result.exit_code == 0, result.output
    stroma = objects_of(project).query("classification == 'Stroma'")
    assert set(stroma["object_type"]) == {"annotation"}
    # Red is above one half nearly everywhere on a stained slide, which is where the sigmoid is
    assert stroma.geometry.area.sum() == pytest.approx(AREA.area, rel=0.2)


def test_a_monai_classification_in_a_project(tmp_path: Path, project: Project) -> None:
    metadata = monai_metadata({"0": "metastasis"}, format="classification", shape=(64, 64))
    model = write_monai(tmp_path / "nodes", metadata, monai_config({}, activation=SIGMOID), script=ChannelMeans(1))
    result = run(project, model, "--region", "image", "--model-mpp", "0.5")
    assert result.exit_code == 0, result.output
    tiles = objects_of(project).query("object_type == 'tile'")
    assert len(tiles) == 64
    assert {g.area for g in tiles.geometry} == {64.0**2}


def test_a_hovernet_in_a_project(tmp_path: Path, write_tiff: Any) -> None:
    project = create_project(tmp_path / "project")
    project.add_image(write_tiff(tmp_path / "slide.tif", [painted()], mpp=(0.5, 0.5)))
    model = write_hover(tmp_path / "nuclei")
    options = ("--region", "image", "--model-mpp", "0.5", "--model-classes", "Tumor, Immune cells")
    result = run(project, model, *options)
    assert result.exit_code == 0, result.output
    cells = objects_of(project)
    assert set(cells["object_type"]) == {"cell"}
    assert len(cells) == len(DISKS)
    for x, y, _, kind in DISKS:
        (cell,) = cells[shapely.contains_xy(cells["nucleus"].to_numpy(), x, y)].itertuples()
        assert cell.classification == ("Tumor", "Immune cells")[kind - 1]
    assert (cells["Nucleus: Area"] > 10).all()


def test_a_model_that_cannot_be_read_changes_nothing(tmp_path: Path, project: Project) -> None:
    model = write_wsinfer(tmp_path / "model")
    (model / "config.json").write_text("{")
    before = {path: path.read_bytes() for path in project.path.parent.rglob("*") if path.is_file()}
    result = run(project, model)
    assert result.exit_code == 2
    assert "config.json" in result.output
    assert "Traceback" not in result.output
    assert {path: path.read_bytes() for path in project.path.parent.rglob("*") if path.is_file()} == before
