"""The command ki67 on a slide: project, summary, options."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shapely
from click.testing import CliRunner, Result
from PIL import Image

from pyhisto.nuclei import CellDetectionSettings
from pyhisto.synth import SynthSettings, make_slide
from qupath_ext.cli import main
from qupath_ext.project import create_project, open_project

QUICK = ("--no-auto", "--stains", "default")


@pytest.fixture(scope="module")
def slide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("cli") / "case 1.ome.tif"
    make_slide(path, SynthSettings(width=640, height=640, seed=5))
    return path


@pytest.fixture(autouse=True)
def inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    monkeypatch.chdir(tmp_path)
    if "becomes_a_project" in request.node.name:
        return
    picture = io.BytesIO()
    Image.new("RGB", (8, 8)).save(picture, "PNG")
    monkeypatch.setattr("qupath_ext.workflows.reporting.overlay_png", lambda *args, **options: picture.getvalue())


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["ki67", *(str(argument) for argument in arguments)])


def summary_of(*arguments: object) -> dict[str, Any]:
    result = run(*arguments, "--classical", "--json")
    assert result.exit_code == 0, result.output
    document: dict[str, Any] = json.loads(result.stdout)
    assert document["failed"] == []
    return document


def test_a_slide_becomes_a_project(slide: Path, tmp_path: Path) -> None:
    document = summary_of(slide)
    (image,) = document["images"]
    project = open_project(tmp_path / "case 1.ome-ki67")
    assert document["project"] == str(project.path)
    (entry,) = project.entries
    assert (entry.name, entry.image_type, entry.slide_path) == (slide.name, "BRIGHTFIELD_H_DAB", slide)
    objects = entry.read_objects()
    cells = objects[objects["object_type"] == "cell"]
    counts = cells["classification"].astype(str).value_counts()
    assert image["cells"] == len(cells) > 50
    assert image["positive"] == sum(n for name, n in counts.items() if name.endswith("Positive"))
    assert image["negative"] == sum(n for name, n in counts.items() if name.endswith("Negative"))
    assert image["positive"] + image["negative"] == image["cells"]
    assert image["ki67_percent"] == pytest.approx(100 * image["positive"] / image["cells"], abs=1e-4)
    low, high = image["interval_95_percent"]
    assert 0 <= low < image["ki67_percent"] < high <= 100
    areas = objects[objects["object_type"] == "annotation"]
    assert len(areas) == image["annotations"] > 0
    assert areas["locked"].all()
    assert set(areas["classification"]) == {"Tissue"}
    assert set(cells["parent_id"]) <= set(areas.index)
    area_mm2 = shapely.area(areas.geometry.to_numpy()).sum() * 0.25e-6
    assert image["region_area_mm2"] == pytest.approx(area_mm2, rel=1e-3)
    assert {"Nucleus: Area", "Nucleus: DAB OD mean", "Cell: Area"} <= set(objects.columns)
    names = set(project.classes)
    assert {"Positive", "Negative", "Tissue"} <= names or {"Tumor: Positive", "Tumor: Negative"} <= names
    assert (project.path.parent / "qupath_ext" / "report.html").is_file()
    (record,) = (project.path.parent / "qupath_ext" / "runs").glob("*/run.json")
    saved = json.loads(record.read_text("utf-8"))
    assert saved["status"] == "done"
    assert saved["images"]["1"]["result"]["cells"] == image["cells"]


def test_output_may_be_an_empty_folder_anywhere(slide: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for folder in ("empty", "new/deep/er"):
        document = summary_of(slide, "--output", folder, *QUICK)
        assert document["project"] == str(tmp_path / folder / "project.qpproj")
        assert len(open_project(tmp_path / folder).entries[0].read_objects()) > 50


def test_text_output_names_the_numbers_and_the_project(slide: Path, tmp_path: Path) -> None:
    result = run(slide, "--classical", *QUICK)
    assert result.exit_code == 0
    document = summary_of(tmp_path / "case 1.ome-ki67", *QUICK)
    image = document["images"][0]
    assert f"Ki-67 {image['ki67_percent']:.1f} %" in result.stdout
    assert f"{image['cells']} cells, {image['positive']} positive" in result.stdout
    assert result.stdout.splitlines()[-1] == f"open in QuPath: {document['project']}"
    assert image["replaced"] == image["cells"] + image["annotations"]


def test_dry_run_writes_nothing_at_all(slide: Path, tmp_path: Path) -> None:
    document = summary_of(slide, "--dry-run", *QUICK)
    assert document["project"] is None
    assert document["images"][0]["cells"] > 50
    assert list(tmp_path.iterdir()) == []
    assert list(slide.parent.iterdir()) == [slide]


def test_region(slide: Path) -> None:
    tissue, image = (summary_of(slide, "--dry-run", "--region", r, *QUICK)["images"][0] for r in ("tissue", "image"))
    assert image["region_area_mm2"] == pytest.approx(640 * 640 * 0.25e-6)
    assert 0 < tissue["region_area_mm2"] < image["region_area_mm2"]
    assert 0 < tissue["cells"] <= image["cells"]
    result = run(slide, "--dry-run", "--classical", "--region", "tumour", *QUICK)
    assert result.exit_code == 2
    assert "no annotation of the class 'Tumor'" in result.stderr


def test_pixel_size_of_the_option_counts(slide: Path, tmp_path: Path) -> None:
    image = summary_of(slide, "--mpp", "0.25", "--region", "image", "-o", "fine", *QUICK)["images"][0]
    assert image["settings"]["mpp"] == [0.25, 0.25]
    assert image["region_area_mm2"] == pytest.approx(640 * 640 * 0.0625e-6)
    assert open_project(tmp_path / "fine").entries[0].mpp == (0.25, 0.25)


def test_stains(slide: Path, tmp_path: Path) -> None:
    default = summary_of(slide, "--dry-run", "--stains", "default", "--no-auto")["images"][0]
    assert default["settings"]["background"] == [255.0, 255.0, 255.0]
    estimated = summary_of(slide, "--dry-run")["images"][0]
    assert max(estimated["settings"]["background"]) < 255
    create_project(tmp_path / "p").add_image(slide, image_type="OTHER")
    result = run(tmp_path / "p", "--classical", "--stains", "project")
    assert result.exit_code == 1
    assert "has no stains" in result.stderr


def test_thresholds_of_qupath_switch_the_automatic_off(slide: Path) -> None:
    given = ("--threshold", "0.2", "--dab-threshold", "0.3", "--background-radius-um", "8", "--stains", "default")
    image = summary_of(slide, "--dry-run", *given)["images"][0]
    used, default = image["settings"]["detection"], CellDetectionSettings()
    assert (used["threshold"], used["dab_threshold"], used["background_radius_um"]) == (0.2, 0.3, 8.0)
    assert (used["detection_image"], used["sigma_um"]) == (default.detection_image, default.sigma_um)
    automatic = summary_of(slide, "--dry-run")["images"][0]["settings"]["detection"]
    assert automatic["threshold"] != default.threshold
    assert automatic["dab_threshold"] != default.dab_threshold


def test_no_expansion_gives_cells_or_detections_that_are_counted(slide: Path, tmp_path: Path) -> None:
    image = summary_of(slide, "--cell-expansion-um", "0", "-o", "plain", *QUICK)["images"][0]
    objects = open_project(tmp_path / "plain").entries[0].read_objects()
    assert (objects["object_type"] != "annotation").sum() == image["cells"] > 50


def test_a_slide_without_tissue_gives_no_cells(tmp_path: Path, write_tiff: Any) -> None:
    write_tiff(tmp_path / "blank.tif", [np.full((512, 512, 3), 240, dtype=np.uint8)])
    image = summary_of(tmp_path / "blank.tif")["images"][0]
    assert (image["cells"], image["ki67_percent"]) == (0, None)
    assert image["interval_95_percent"] == [None, None]
    assert open_project(tmp_path / "blank-ki67").entries[0].image_type == "BRIGHTFIELD_H_DAB"
