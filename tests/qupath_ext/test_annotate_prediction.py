"""What is kept of what a model says beside the objects: findings of the sanity gate, and maps; and ``--strict``."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tifffile
from click.testing import CliRunner, Result
from fake_models import FakeCells, FakeNothing, FakeTissue, FakeTumour

from pyhisto.maps import Maps, read_maps
from qupath_ext.cli import main
from qupath_ext.project import Project, create_project, open_project
from qupath_ext.runs.record import Run, list_runs

WriteTiff = Callable[..., Path]
WIDTH, HEIGHT = 500, 400
"""Of the slide, px of 1 µm: white, with a brown chequer of 4 px (mean 60 and 120) at 100 <= x < 300, 48 <= y < 248."""


@pytest.fixture
def slide_path(tmp_path: Path, write_tiff: WriteTiff) -> Path:
    rgb = np.full((HEIGHT, WIDTH, 3), 245, dtype=np.uint8)
    y, x = np.mgrid[48:248, 100:300]
    rgb[48:248, 100:300] = np.where(((x // 4 + y // 4) % 2)[..., None], (90, 40, 50), (150, 90, 120))
    return write_tiff(tmp_path / "slide.tif", [rgb], mpp=(1.0, 1.0))


@pytest.fixture
def project(tmp_path: Path, slide_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    fakes = {"cells": FakeCells(), "tissue": FakeTissue(), "tumour": FakeTumour(), "nothing": FakeNothing()}
    for loader in ("pyhisto.bundle.anymodel.load_model", "pyhisto.bundle.files.load_bundle"):
        monkeypatch.setattr(loader, lambda path, **options: fakes[Path(path).name])
    project = create_project(tmp_path / "project")
    project.add_image(slide_path)
    return project


def run(project: Project, *options: str) -> Result:
    command = ["annotate", str(project.path.parent), "--json", "--region", "image", *options]
    return CliRunner().invoke(main, command)


def last_run(project: Project) -> Run:
    return list(list_runs(project))[-1]


def files_outside_runs(project: Project) -> dict[Path, bytes]:
    folder = project.path.parent
    return {
        path: path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and "runs" not in path.relative_to(folder).parts
    }


# ---------------------------------------------------------------------------------------------------- sanity
def test_a_network_that_says_the_same_everywhere_gets_a_note(project: Project) -> None:
    result = run(project, "--model", "tissue")
    assert result.exit_code == 0, result.output
    (image,) = json.loads(result.stdout)["images"]
    (note,) = [note for note in image["notes"] if note.startswith("constant output: ")]
    assert image["objects"] == {"Stroma": 1}
    recorded = last_run(project).images["1"]["result"]
    assert note in recorded["notes"]
    assert list(recorded["settings"]["network"]["findings"]) == ["constant output", "glass predicted"]
    assert recorded["settings"]["network"]["predicted_share"] == {"Tumor": 0.0, "Stroma": 1.0}


def test_strict_writes_nothing_to_such_an_image_and_says_why(project: Project) -> None:
    before = files_outside_runs(project)
    result = run(project, "--model", "tissue", "--strict", "--uncertainty", "--probability-maps", "ome.tif")
    assert result.exit_code == 1
    document = json.loads(result.stdout)
    assert document["images"] == []
    (failed,) = document["failed"]
    assert "constant output: the network says the same of 96% of the tissue" in failed["error"]
    assert files_outside_runs(project) == before
    assert len(open_project(project.path).entries[0].read_objects()) == 0
    record = last_run(project)
    assert record.status == "incomplete"
    assert (record.images["1"]["status"], record.images["1"]["error"]) == ("failed", failed["error"])
    assert sorted(path.name for path in record.folder.iterdir()) in (["lock", "run.json"], ["run.json"])


def test_strict_lets_a_sane_result_pass(project: Project) -> None:
    result = run(project, "--model", "tumour", "--strict")
    assert result.exit_code == 0, result.output
    (image,) = json.loads(result.stdout)["images"]
    assert image["notes"] == []
    assert image["settings"]["network"]["findings"] == {}


def test_strict_in_a_dry_run(project: Project) -> None:
    result = run(project, "--model", "tissue", "--strict", "--dry-run")
    assert result.exit_code == 1
    assert "constant output" in result.stderr
    assert list(list_runs(project)) == []


# ---------------------------------------------------------------------------------------------------- maps
def test_maps_lie_where_the_slide_shows_it(project: Project) -> None:
    result = run(project, "--model", "tumour", "--uncertainty", "--flips", "--map-um", "4")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["images"][0]["maps"] == ["maps/1.npz"]
    record = last_run(project)
    assert record.images["1"]["result"]["maps"] == ["maps/1.npz"]
    assert record.record["config"]["prediction"]["inference"]["flips"] is True
    maps = read_maps(record.folder / "maps" / "1.npz")
    assert maps.layers == ("Tumor probability", "Stroma probability", "Entropy", "Flip variance")
    assert (maps.origin, maps.scale, maps.um) == ((0.0, 0.0), (4.0, 4.0), 4.0)
    tumour = maps.layer("Tumor probability")
    assert tumour.shape == (HEIGHT // 4, WIDTH // 4)
    chequer = np.array([1 - 60 / 255, 1 - 120 / 255])
    expected = np.full(tumour.shape, 1 - 245 / 255)
    rows, columns = np.mgrid[12:62, 25:75]
    expected[12:62, 25:75] = np.where((rows + columns) % 2, *chequer)
    np.testing.assert_allclose(tumour, expected, atol=1e-3)
    p = chequer[1]  # three classes, one of which is never said
    assert maps.layer("Entropy")[12, 25 + 1] == pytest.approx(
        -(p * np.log(p) + (1 - p) * np.log(1 - p)) / np.log(3), abs=1e-3
    )
    np.testing.assert_allclose(maps.layer("Flip variance"), 0.01, atol=1e-4)


def test_ome_tiff_of_the_maps(project: Project) -> None:
    assert run(project, "--model", "tumour", "--probability-maps", "ome.tif").exit_code == 0
    record = last_run(project)
    assert record.images["1"]["result"]["maps"] == ["maps/1.ome.tif"]
    assert [path.name for path in (record.folder / "maps").iterdir()] == ["1.ome.tif"]
    with tifffile.TiffFile(record.folder / "maps" / "1.ome.tif") as tiff:
        values = tiff.asarray()
        pixels = tifffile.xml2dict(tiff.ome_metadata)["OME"]["Image"]["Pixels"]
    assert values.shape == (2, 50, 63)  # 400 x 500 µm in pixels of 8, the last column half beyond the slide
    assert pixels["PhysicalSizeX"] == 8.0
    assert [channel["Name"] for channel in pixels["Channel"]] == ["Tumor probability", "Stroma probability"]
    assert values[0, 6:31, 13:37] == pytest.approx(np.full((25, 24), 1 - 90 / 255), abs=1e-4)


def test_maps_as_tiles_belong_to_the_run(project: Project) -> None:
    first = run(project, "--model", "tumour", "--probability-maps", "tiles")
    assert first.exit_code == 0, first.output
    objects = open_project(project.path).entries[0].read_objects()
    tiles = objects[objects["object_type"] == "tile"]
    assert len(tiles) == 7 * 8  # of 64 µm
    assert tiles.geometry.area.sum() == pytest.approx(WIDTH * HEIGHT)
    inside = tiles[[shape.bounds == (128, 64, 192, 128) for shape in tiles.geometry]]
    assert inside["Tumor probability"].tolist() == pytest.approx([1 - 90 / 255], abs=1e-4)
    assert json.loads(first.stdout)["images"][0]["objects"] == {"Tumor": 1}
    again = run(project, "--model", "tumour", "--probability-maps", "tiles")
    assert json.loads(again.stdout)["images"][0]["replaced"] == 7 * 8 + 1
    undone = CliRunner().invoke(main, ["runs", "undo", str(project.path.parent), "latest"])
    assert undone.exit_code == 0, undone.output
    assert (open_project(project.path).entries[0].read_objects()["object_type"] == "tile").sum() == 7 * 8


def test_undo_leaves_the_maps_of_a_run(project: Project) -> None:
    run(project, "--model", "tumour", "--uncertainty")
    record = last_run(project)
    undone = CliRunner().invoke(main, ["runs", "undo", str(project.path.parent), "latest"])
    assert undone.exit_code == 0, undone.output
    assert len(open_project(project.path).entries[0].read_objects()) == 0
    assert last_run(project).status == "undone"
    assert isinstance(read_maps(record.folder / "maps" / "1.npz"), Maps)


def test_undo_of_a_run_that_found_nothing(project: Project) -> None:
    assert run(project, "--model", "cells", "--region", "Tumor").exit_code == 1  # nobody drew any
    assert run(project, "--model", "nothing").exit_code == 0
    undone = CliRunner().invoke(main, ["runs", "undo", str(project.path.parent), "latest"])
    assert undone.exit_code == 0, undone.output
    assert last_run(project).status == "undone"


def test_no_maps_in_a_dry_run(project: Project) -> None:
    result = run(project, "--model", "tumour", "--uncertainty", "--dry-run")
    assert json.loads(result.stdout)["images"][0]["maps"] == []
    assert list(list_runs(project)) == []


def test_an_image_that_cannot_be_written_leaves_no_maps(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    from qupath_ext.errors import ProjectError

    def fail(*_: object, **__: object) -> None:
        raise ProjectError("the image is open elsewhere")

    monkeypatch.setattr("qupath_ext.workflows.outcome.write_run", fail)
    assert run(project, "--model", "tumour", "--uncertainty").exit_code == 1
    assert list((last_run(project).folder / "maps").iterdir()) == []


@pytest.mark.parametrize(
    "options",
    [
        ["--map-um", "0.1"],
        ["--probability-maps", "png"],
        ["--tile-size", "0"],
        ["--overlap", "-1"],
        ["--precision", "int8"],
    ],
)
def test_options_that_are_refused(project: Project, options: list[str]) -> None:
    assert run(project, "--model", "tumour", *options).exit_code == 2


def test_a_device_that_is_not_there(project: Project) -> None:
    result = run(project, "--model", "tumour", "--device", "cpu,abacus")
    assert result.exit_code == 2
    assert "abacus" in result.stderr


def test_options_stand_in_the_record(project: Project) -> None:
    sizes = ["--tile-size", "96", "--overlap", "12", "--batch-size", "2"]
    options = [*sizes, "--precision", "float32", "--engine", "torch", "--strict"]
    assert run(project, "--model", "tumour", *options).exit_code == 0
    prediction = last_run(project).record["config"]["prediction"]
    inference = prediction["inference"]
    assert (inference["tile_size"], inference["overlap"], inference["batch_size"]) == (96, 12, 2)
    assert (prediction["precision"], prediction["engine"], prediction["strict"]) == ("float32", "torch", True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--overlap", "32"], "overlap of 32 px in tiles of 64 px; expected 0 to 31"),
        (["--tile-size", "90"], "tile_size = 90; expected a multiple of 4"),
    ],
)
@pytest.mark.parametrize(
    "command",
    [["annotate", "--model", "tumour"], ["ki67", "--classical", "--tumour", "tumour"], ["ki67", "--cells", "tumour"]],
)
def test_tiles_that_cannot_be_are_refused_before_anything_is_written(
    project: Project, monkeypatch: pytest.MonkeyPatch, command: list[str], options: list[str], message: str
) -> None:
    monkeypatch.setattr(FakeTumour, "stride", 4)
    folder = project.path.parent
    before = set(folder.rglob("*"))
    result = CliRunner().invoke(main, [command[0], str(folder), *command[1:], *options])
    assert result.exit_code == 2, result.output
    assert message in result.stderr
    assert set(folder.rglob("*")) == before


def test_tiles_that_leave_traces_get_a_note_and_stand_in_the_record(project: Project) -> None:
    result = run(project, "--model", "tumour", "--overlap", "4")
    assert result.exit_code == 0, result.output
    (image,) = json.loads(result.stdout)["images"]
    (note,) = image["notes"]
    assert note.startswith("tumour: tiles of 64 px reach 4 px into each other; with less than 8 px outlines")
    recorded = last_run(project).images["1"]["result"]
    assert recorded["notes"] == [note]
    assert (recorded["settings"]["network"]["tile_px"], recorded["settings"]["network"]["overlap_px"]) == (64, 4)


# ---------------------------------------------------------------------------------------------------- ki67
def test_tiles_that_cannot_be_leave_no_project_of_a_slide(
    project: Project, monkeypatch: pytest.MonkeyPatch, slide_path: Path, tmp_path: Path
) -> None:
    del project  # which puts the models in place
    monkeypatch.setattr(FakeTumour, "stride", 4)
    command = ["ki67", str(slide_path), "--tumour", "tumour", "--cells", "cells", "--tile-size", "90"]
    result = CliRunner().invoke(main, [*command, "--output", str(tmp_path / "new")])
    assert result.exit_code == 2
    assert "tile_size = 90; expected a multiple of 4" in result.stderr
    assert not (tmp_path / "new").exists()


def test_ki67_keeps_maps_of_both_models(project: Project) -> None:
    folder = project.path.parent
    options = ["--tumour", "tumour", "--cells", "cells", "--uncertainty", "--map-um", "4", "--json"]
    result = CliRunner().invoke(main, ["ki67", str(folder), *options])
    assert result.exit_code == 0, result.output
    (image,) = json.loads(result.stdout)["images"]
    assert image["maps"] == ["maps/1-tumour.npz", "maps/1-cells.npz"]
    assert last_run(project).images["1"]["result"]["maps"] == image["maps"]
    tumour, cells = (read_maps(last_run(project).folder / name) for name in image["maps"])
    assert tumour.layers[0] == "Tumor probability"
    assert cells.layers[:2] == ("positive probability", "ring probability")
    assert tumour.values.shape[1:] == cells.values.shape[1:] == (100, 125)
    assert np.isnan(cells.values[0, 0, 0])  # no tissue there, and so no tumour


def test_ki67_says_in_its_report_what_makes_no_sense(project: Project) -> None:
    folder = project.path.parent
    result = CliRunner().invoke(main, ["ki67", str(folder), "--tumour", "tissue", "--cells", "cells"])
    assert result.exit_code == 0, result.output
    assert "note: constant output: " in result.output
    page = (folder / "qupath_ext" / "report.html").read_text("utf-8")
    assert page.count("<strong>Warning:</strong> constant output: ") == 1


def test_strict_on_a_slide_leaves_no_project(project: Project, slide_path: Path, tmp_path: Path) -> None:
    command = ["ki67", str(slide_path), "--tumour", "tissue", "--cells", "cells", "--strict"]
    result = CliRunner().invoke(main, [*command, "--output", str(tmp_path / "new")])
    assert result.exit_code == 1
    assert "constant output: " in result.stderr
    assert not (tmp_path / "new").exists()
