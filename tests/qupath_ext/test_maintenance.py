"""What check finds, what relocate repairs, what doctor says."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest
import shapely
from click.testing import CliRunner, Result
from PIL import Image

from pyhisto.objects import make_objects
from qupath_ext.cli import main
from qupath_ext.errors import ProjectError
from qupath_ext.maintenance.check import Finding, check_project
from qupath_ext.maintenance.relocate import find_moves, relocate
from qupath_ext.project import Project, create_project, open_project


def write_slide(path: Path, width: int = 200, height: int = 150) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (width, height), (240, 230, 240)).save(path)
    return path


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """Three images with slides below one folder, 0.5 µm/px."""
    project = create_project(tmp_path / "project", backend="native")
    for name in "abc":
        project.add_image(write_slide(tmp_path / "slides" / f"{name}.tif"), mpp=0.5)
    return project


def findings(project: Project) -> list[Finding]:
    return list(check_project(open_project(project.path, backend="native")))


def only(project: Project) -> Finding:
    (found,) = findings(project)
    return found


def command(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


# ---------------------------------------------------------------------- check
def test_a_sound_project_has_no_findings(project: Project) -> None:
    project.entries[0].write_objects(add=make_objects([shapely.box(1, 1, 9, 9)], object_type="annotation"))
    assert findings(project) == []
    result = command("project", "check", project.path)
    assert (result.exit_code, result.stdout) == (0, "3 images, 0 errors, 0 warnings\n")


def test_a_missing_slide(project: Project, tmp_path: Path) -> None:
    (tmp_path / "slides" / "b.tif").unlink()
    found = only(project)
    assert (found.severity, found.image) == ("error", "b.tif")
    assert "b.tif does not exist" in found.what
    assert "relocate" in found.remedy
    result = command("project", "check", project.path, "--json")
    assert result.exit_code == 1
    assert [f["image"] for f in json.loads(result.stdout)] == ["b.tif"]


def test_a_slide_of_another_size(project: Project, tmp_path: Path) -> None:
    write_slide(tmp_path / "slides" / "b.tif", 200, 151)
    found = only(project)
    assert (found.severity, found.image) == ("error", "b.tif")
    assert "200 x 151" in found.what
    assert "200 x 150" in found.what


def test_no_pixel_size(tmp_path: Path) -> None:
    project = create_project(tmp_path / "project", backend="native")
    project.add_image(write_slide(tmp_path / "a.tif"))
    found = only(project)
    assert (found.severity, found.what) == ("error", "has no pixel size")


def test_another_pixel_size_than_the_slide_has(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    Image.new("RGB", (64, 64)).save(path, resolution=1e4 / 0.25, resolution_unit=3)  # px/cm
    project = create_project(tmp_path / "project", backend="native")
    project.add_image(path, mpp=0.5)
    found = only(project)
    assert found.severity == "warning"
    assert found.what == "0.5 x 0.5 µm/px in the project, 0.25 x 0.25 in the slide"


def test_a_folder_that_belongs_to_no_image(project: Project) -> None:
    project.remove_image(project.entries[1])
    found = only(project)
    assert (found.severity, found.image) == ("warning", None)
    assert found.what.endswith("data/2 belongs to no image of the project")


def test_a_damaged_data_file(project: Project) -> None:
    path = project.path.parent / "data" / "2" / "data.qpdata"
    path.write_bytes(path.read_bytes()[:-40])
    found = only(project)
    assert (found.severity, found.image) == ("error", "b.tif")
    assert "data.qpdata" in found.what


def test_objects_outside_of_the_image(project: Project) -> None:
    boxes = [shapely.box(10, 10, 20, 20), shapely.box(500, 10, 520, 20)]
    table = make_objects(boxes, object_type="annotation")
    project.entries[0].write_objects(add=table)
    found = only(project)
    assert (found.severity, found.image) == ("warning", "a.tif")
    assert found.what == f"objects outside of the image: {table.index[1]}"


def test_an_outline_that_crosses_itself(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    bow_tie = shapely.Polygon([(10, 10), (90, 90), (90, 10), (10, 90)])
    table = make_objects([shapely.box(0, 0, 5, 5)], object_type="annotation")
    entry = project.entries[0]
    monkeypatch.setattr(
        type(entry), "read_objects", lambda self: table.assign(geometry=[bow_tie]).set_geometry("geometry")
    )
    found = [f for f in check_project(project) if f.image == "a.tif"]
    assert len(found) == 1
    assert found[0].what == (
        f"invalid outlines, which QuPath 0.6 and newer may refuse: {table.index[0]} (Self-intersection[50 50])"
    )


def test_what_was_left_by_a_write_that_was_killed(project: Project) -> None:
    (project.path.parent / "data" / "1" / ".data.qpdata.0123456789ab.qupath-ext-tmp").write_bytes(b"half")
    (project.path.parent / "data" / "2" / "data.qpdata.bkp").write_bytes(b"old")
    assert [f.severity for f in findings(project)] == ["warning", "warning"]
    assert "interrupted" in findings(project)[0].what
    assert "QuPath was stopped while saving" in findings(project)[1].what


# ---------------------------------------------------------------------- relocate
def test_moved_slides_are_found_by_name_and_size(project: Project, tmp_path: Path) -> None:
    new = tmp_path / "archive" / "2026"
    new.mkdir(parents=True)
    for name in "ab":
        shutil.move(tmp_path / "slides" / f"{name}.tif", new / f"{name}.tif")
    write_slide(tmp_path / "archive" / "old" / "a.tif", 20, 15)  # same name, another slide
    before = project.path.read_bytes()
    result = command("project", "relocate", project.path, "--search", tmp_path / "archive")
    assert result.exit_code == 0, result.output
    assert "2 of 2 were found; repeat with --apply" in result.stdout
    assert project.path.read_bytes() == before
    result = command("project", "relocate", project.path, "--search", tmp_path / "archive", "--apply")
    assert result.exit_code == 0, result.output
    again = open_project(project.path, backend="native")
    assert [entry.slide_path for entry in again.entries] == [
        new / "a.tif",
        new / "b.tif",
        tmp_path / "slides" / "c.tif",
    ]
    assert findings(project) == []
    result = command("project", "relocate", project.path, "--search", tmp_path)
    assert result.stdout == "all slides are where the project says\n"


def test_a_slide_that_is_nowhere_or_another_one(project: Project, tmp_path: Path) -> None:
    shutil.rmtree(tmp_path / "slides")
    write_slide(tmp_path / "archive" / "a.tif", 200, 151)
    (tmp_path / "archive" / "b.tif").write_bytes(b"no image")
    moves = list(find_moves(project, [tmp_path / "archive"]))
    assert [move.found for move in moves] == [None, None, None]
    assert "is 200 x 151 px, not 200 x 150" in moves[0].why_not
    assert "cannot be opened" in moves[1].why_not
    assert moves[2].why_not == "no file of this name"
    assert relocate(moves) == 0
    result = command("project", "relocate", project.path, "--search", tmp_path / "archive", "--apply")
    assert result.exit_code == 1


def test_two_different_files_that_fit_are_a_doubt(project: Project, tmp_path: Path) -> None:
    source = tmp_path / "slides" / "a.tif"
    for number in range(2):
        place = tmp_path / "archive" / str(number) / "a.tif"
        place.parent.mkdir(parents=True)
        place.write_bytes(source.read_bytes() + b"\0" * number)
    source.unlink()
    (move,) = find_moves(project, [tmp_path / "archive"])
    assert move.found is None
    assert move.why_not.startswith("several different ones")


def test_a_folder_to_search_that_is_none(project: Project, tmp_path: Path) -> None:
    with pytest.raises(ProjectError, match="is no folder"):
        list(find_moves(project, [tmp_path / "nowhere"]))


# ---------------------------------------------------------------------- create, add, info, remove
def test_a_project_from_the_command_line(tmp_path: Path) -> None:
    slides = [write_slide(tmp_path / f"{name}.tif") for name in "ab"]
    folder = tmp_path / "new project"
    result = command("project", "create", folder, *slides, "--mpp", "0.25", "--image-type", "BRIGHTFIELD_H_E")
    assert result.exit_code == 0, result.output
    assert [line.split("  ")[-1] for line in result.stdout.splitlines()] == [
        str(folder / "project.qpproj"),
        "a.tif",
        "b.tif",
    ]
    third = write_slide(tmp_path / "c.tif")
    before = (folder / "project.qpproj").read_bytes()
    result = command("project", "add", folder, third, "--mpp", "0.5", "--dry-run")
    assert (result.exit_code, result.stdout) == (0, "would add c.tif: 200x150 px, 0.5 µm/px\n")
    assert (folder / "project.qpproj").read_bytes() == before
    assert command("project", "create", tmp_path / "other", third, "--dry-run").exit_code == 0
    assert not (tmp_path / "other").exists()
    (tmp_path / "text.tif").write_text("no image")
    result = command("project", "add", folder, tmp_path / "text.tif", third)
    assert result.exit_code == 1
    assert "text.tif: failed:" in result.stderr
    project = open_project(folder, backend="native")
    assert [entry.name for entry in project.entries] == ["a.tif", "b.tif", "c.tif"]
    assert [entry.image_type for entry in project.entries] == ["BRIGHTFIELD_H_E"] * 2 + ["BRIGHTFIELD_H_DAB"]
    assert [entry.mpp for entry in project.entries] == [(0.25, 0.25), (0.25, 0.25), None]


def test_info_lists_what_is_there(project: Project) -> None:
    table = make_objects([shapely.box(1, 1, 9, 9)] * 2, object_type="annotation")
    project.entries[0].write_objects(add=table)
    document = json.loads(command("project", "info", project.path, "--objects", "--json").stdout)
    assert [image["name"] for image in document["images"]] == ["a.tif", "b.tif", "c.tif"]
    assert document["images"][0]["objects"] == {"annotation": 2}
    assert document["images"][1]["objects"] == {}
    assert document["images"][0]["mpp"] == [0.5, 0.5]
    text = command("project", "info", project.path).stdout
    assert "a.tif: BRIGHTFIELD_H_DAB, 200 x 150 px, 0.5 x 0.5 µm/px" in text


def test_an_image_is_taken_out(project: Project) -> None:
    result = command("project", "remove", project.path, "b.tif", "--dry-run")
    assert result.stdout == "would remove b.tif (id 2)\n"
    assert len(open_project(project.path, backend="native").entries) == 3
    result = command("project", "remove", project.path, "b.tif", "--delete-data")
    assert result.exit_code == 0, result.output
    assert [entry.name for entry in open_project(project.path, backend="native").entries] == ["a.tif", "c.tif"]
    assert not (project.path.parent / "data" / "2").exists()


# ---------------------------------------------------------------------- doctor
def test_the_doctor_finds_a_healthy_machine_and_names_what_is_wrong_with_a_project(
    project: Project, tmp_path: Path
) -> None:
    result = command("doctor", "--json")
    assert result.exit_code == 0, result.output
    found = pd.DataFrame(json.loads(result.stdout)).set_index("subject")
    assert {"Python", "torch", "monai", "OpenSlide", "device cpu", "QuPath", "disk"} <= set(found.index)
    assert set(found["state"]) <= {"ok", "note"}
    (tmp_path / "slides" / "b.tif").unlink()
    result = command("doctor", project.path)
    assert result.exit_code == 1
    assert "BAD   b.tif: slide" in result.stdout
    result = command("doctor", tmp_path / "nothing")
    assert result.exit_code == 1
    assert "no QuPath project" in result.stdout


def test_the_doctor_survives_a_broken_library(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> list[tuple[str, str]]:
        raise OSError("libcudart.so: cannot open shared object file")

    monkeypatch.setattr("pyhisto.device.available_devices", broken)
    result = command("doctor")
    assert result.exit_code == 1
    assert "BAD   devices: OSError: libcudart.so" in result.stdout
