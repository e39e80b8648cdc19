"""Any model over a project: its classes, whose objects are replaced, and a slide that fails."""

from __future__ import annotations

import json
from pathlib import Path

import geopandas as gpd
import pandas as pd
import pytest
import shapely
from click.testing import CliRunner, Result
from fake_models import FakeCells, FakeTissue

from pyhisto.objects import make_objects
from pyhisto.synth import SynthSettings, make_slide
from qupath_ext.cli import main
from qupath_ext.project import Project, create_project, open_project
from qupath_ext.runs.record import list_runs


@pytest.fixture(scope="session")
def slide_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("annotate") / "slide.tif"
    make_slide(path, SynthSettings(width=512, height=512, seed=3))
    return path


@pytest.fixture
def models(monkeypatch: pytest.MonkeyPatch) -> None:
    fakes = {"cells": FakeCells(), "tissue": FakeTissue()}
    monkeypatch.setattr("pyhisto.bundle.anymodel.load_model", lambda path, **options: fakes[Path(path).name])


REGION = shapely.box(100, 100, 400, 400)


@pytest.fixture
def project(tmp_path: Path, slide_path: Path, models: None) -> Project:
    project = create_project(tmp_path / "project")
    area = make_objects([REGION], object_type="annotation", classification="Hot spot")
    project.add_image(slide_path).write_objects(add=area)
    return project


def run(project: Project, *options: str) -> Result:
    return CliRunner().invoke(main, ["annotate", str(project.path.parent), "--json", *options])


def objects_of(project: Project) -> gpd.GeoDataFrame:
    return open_project(project.path).entries[0].read_objects()


def test_cells_of_a_model_inside_annotations_of_a_class(project: Project) -> None:
    result = run(project, "--model", "cells", "--region", "Hot spot", "--cell-expansion-um", "3")
    assert result.exit_code == 0, result.output
    (image,) = json.loads(result.stdout)["images"]
    objects = objects_of(project)
    cells = objects[objects["object_type"] == "cell"]
    assert image["objects"] == cells["classification"].astype(str).value_counts().to_dict()
    assert set(cells["classification"]) == {"Tumor: Positive", "Lymphocyte"}
    assert shapely.contains(REGION.buffer(1), shapely.centroid(cells["nucleus"].to_numpy())).all()
    hot = objects[objects["classification"] == "Hot spot"]
    assert set(cells["parent_id"]) == set(hot.index)
    assert bool(hot["locked"].iloc[0])
    assert image["region_area_mm2"] == pytest.approx(300 * 300 * 0.25e-6)
    assert (cells["class_probability"] >= 0.5).all()
    assert "Nucleus: Area" in cells
    colors = open_project(project.path).classes
    assert colors["Lymphocyte"] & 0xFFFFFF == 0x010203


def test_a_second_run_replaces_the_first_and_keeps_what_a_person_changed(project: Project) -> None:
    first = json.loads(run(project, "--model", "cells", "--region", "Hot spot").stdout)["images"][0]
    total = sum(first["objects"].values())
    entry = open_project(project.path).entries[0]
    objects = entry.read_objects()
    mine = str(objects.index[objects["object_type"] == "cell"][3])
    with entry.edit() as change:
        change.update(pd.DataFrame({"classification": pd.Series(["Stroma"], [mine], dtype=object)}))
    second = json.loads(run(project, "--model", "cells", "--region", "Hot spot").stdout)["images"][0]
    assert (second["kept_by_person"], second["replaced"]) == (1, total - 1)
    cells = objects_of(project).query("object_type == 'cell'")
    assert len(cells) == total
    assert cells.loc[mine, "classification"] == "Stroma"


def test_tissue_and_cells_do_not_replace_each_other(project: Project) -> None:
    run(project, "--model", "cells", "--region", "Hot spot")
    cells = set(objects_of(project).query("object_type == 'cell'").index)
    result = run(project, "--model", "tissue", "--region", "image")
    assert json.loads(result.stdout)["images"][0]["objects"] == {"Stroma": 1}
    objects = objects_of(project)
    assert cells <= set(objects.index)
    (stroma,) = objects[objects["classification"] == "Stroma"].geometry
    assert stroma.area == pytest.approx(512 * 512, rel=0.02)
    assert objects.loc[objects["classification"] == "Stroma", "Stroma probability"].iloc[0] == pytest.approx(
        0.9, abs=0.01
    )
    again = json.loads(run(project, "--model", "tissue", "--region", "image").stdout)["images"][0]
    assert again["replaced"] == 1
    assert (objects_of(project)["classification"] == "Stroma").sum() == 1


def test_everywhere_and_in_the_tissue(project: Project) -> None:
    everywhere = json.loads(run(project, "--model", "cells", "--region", "image").stdout)["images"][0]
    assert everywhere["region_area_mm2"] == pytest.approx(512 * 512 * 0.25e-6)
    objects = objects_of(project)
    assert set(objects["object_type"]) == {"annotation", "cell"}
    assert objects.query("object_type == 'cell'")["parent_id"].isna().all()
    assert len(objects.query("object_type == 'annotation'")) == 1  # no annotation for the image itself
    tissue = json.loads(run(project, "--model", "cells").stdout)["images"][0]
    assert tissue["objects"]["Tissue"] >= 1
    assert tissue["replaced"] == sum(everywhere["objects"].values())


def test_dry_run_writes_nothing(project: Project) -> None:
    before = {path: path.read_bytes() for path in project.path.parent.rglob("*") if path.is_file()}
    result = run(project, "--model", "cells", "--dry-run")
    assert result.exit_code == 0, result.output
    assert {path: path.read_bytes() for path in project.path.parent.rglob("*") if path.is_file()} == before


def test_a_failing_slide_does_not_stop_the_others(project: Project, slide_path: Path, tmp_path: Path) -> None:
    lost = tmp_path / "lost.tif"
    lost.write_bytes(slide_path.read_bytes())
    project.add_image(lost)
    lost.unlink()
    result = run(project, "--model", "cells", "--region", "image")
    assert result.exit_code == 1
    document = json.loads(result.stdout)
    assert [image["image"] for image in document["failed"]] == ["lost.tif"]
    assert [image["image"] for image in document["images"]] == ["slide.tif"]
    (record,) = list_runs(project)
    assert record.status == "incomplete"


def test_a_class_that_nobody_drew(project: Project) -> None:
    result = run(project, "--model", "cells", "--region", "Necrosis")
    assert result.exit_code == 1
    assert "no annotation of the class 'Necrosis'" in json.loads(result.stdout)["failed"][0]["error"]


@pytest.mark.parametrize("value", ["big", "0.1"])
def test_a_nucleus_size_that_is_none(project: Project, value: str) -> None:
    result = run(project, "--model", "cells", "--nucleus-size-um", value)
    assert result.exit_code == 2
