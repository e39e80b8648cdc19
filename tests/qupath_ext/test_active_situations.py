"""What persons and disks do to a loop that nobody planned for: it says so, and goes on or can be gone on with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shapely
from active_projects import CELLS, Region, answer, begin, drawn, first_round, hush, make_project, nuclei
from click.testing import CliRunner
from frame_cases import cropped, rotated

from pyhisto.dataset import CellTask, Split
from qupath_ext.active.collect import collect_round
from qupath_ext.active.loop import Loop, LoopSettings, find_loop, start_loop
from qupath_ext.active.propose import ProposeOptions, propose_round
from qupath_ext.active.status import status_lines
from qupath_ext.active.training import round_images
from qupath_ext.cli import main
from qupath_ext.errors import ProjectError
from qupath_ext.project import Project, open_project

X, Y, WIDTH, HEIGHT = 100, 80, 500, 400


@pytest.fixture
def loop(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Loop:
    """A loop whose first round is in the images."""
    return first_round("cells", tmp_path, tmp_path_factory, monkeypatch)


def collected(loop: Loop) -> tuple[dict[str, Any], list[str]]:
    said: list[str] = []
    one = collect_round(find_loop(loop.paths[0]), said.append)
    return one.record["collected"], said


# ---------------------------------------------------------------------- images
def turn(project: Project) -> None:
    """Let the image show a part of its slide, turned by 90°: (x, y) of the slide is at (Y + HEIGHT - y, x - X)."""
    content = json.loads(project.path.read_text("utf-8"))
    (image,) = content["images"]
    image["serverBuilder"] = rotated(90, cropped(X, Y, WIDTH, HEIGHT, image["serverBuilder"]))
    project.path.write_text(json.dumps(content), "utf-8")


def distance_to_nuclei(points: np.ndarray[Any, Any]) -> float:
    """Return how far the farthest of some points of the slide is from a nucleus, px."""
    return float(np.hypot(*(points[:, None] - nuclei()[None]).T).min(axis=0).max())


def test_an_image_that_is_turned_and_cropped(tmp_path: Path) -> None:
    """What is proposed lies in the image, on nuclei; left as it is, all is confirmed and learnt at its place."""
    project = make_project(tmp_path / "one", "A")
    turn(project)
    loop = begin(open_project(project.path, backend="native"), budget_mm2=0.02)
    proposals = propose_round(loop, ProposeOptions(), hush).table("proposals")
    assert len(proposals) > 0
    assert shapely.covers(shapely.box(0, 0, HEIGHT, WIDTH), proposals.geometry.to_numpy()).all()
    answer(find_loop(project.path), 1)
    record, _ = collected(loop)
    assert {kind for kind, n in record["totals"].items() if n} == {"confirmed"}
    ((_, image),) = round_images(find_loop(project.path), 1)
    centres, _ = CellTask(CELLS).nuclei(image, "train")
    assert len(centres) == record["totals"]["confirmed"]
    assert distance_to_nuclei(centres) < 3
    entry = find_loop(project.path).sources()[0].entry
    x, y = np.concatenate([shapely.get_coordinates(s) for s in marks(entry.read_objects())]).T
    assert distance_to_nuclei(np.column_stack([y + X, Y + HEIGHT - x])) < 3


def marks(objects: Any) -> list[Any]:
    return list(objects.geometry[objects["classification"].isin(CELLS)])


# ---------------------------------------------------------------------- regions and classes
def test_a_region_of_another_class_is_open_and_named(loop: Loop) -> None:
    first, second = Region(loop), Region(loop, 2)
    first.answer("Tumor")
    second.answer()
    record, said = collected(loop)
    assert record["regions"][first.id]["answer"] == "open"
    (line,) = [line for line in said if "'Tumor'" in line]
    assert line == "  round 1 #1: its class is 'Tumor', so it is open; set it to Done*, Rejected* or Region*"


def test_a_region_without_a_class_is_open_and_named(loop: Loop) -> None:
    Region(loop).answer(None)  # type: ignore[arg-type]
    Region(loop, 2).answer("Rejected*")
    _, said = collected(loop)
    assert any("round 1 #1: it has no class, so it is open" in line for line in said)


def test_a_round_of_which_nothing_is_left_says_the_way_out(loop: Loop) -> None:
    for rank in (1, 2):
        region = Region(loop, rank)
        region.change(remove=[region.id])
    with pytest.raises(ProjectError, match=r"all 2 regions were deleted.*qupath-ext active rollback .* 0"):
        collected(loop)


def test_classes_that_the_loop_does_not_learn_are_named(loop: Loop) -> None:
    """Positive cells were renamed in one of two regions that are done, and something else was drawn there."""
    first, second = Region(loop), Region(loop, 2)
    first.change(classification={first.of(CELLS[0]): "Tumour: Positive"})
    first.change(add=drawn(first.at((50, 50)), "Mitosis"))
    second.change(add=drawn(second.at((50, 50)), "Ignore*"))
    first.answer()
    second.answer()
    record, said = collected(loop)
    assert record["totals"]["deleted"] == 3
    (line,) = [line for line in said if "not learnt" in line]
    assert line == "  classes that the loop does not learn: 'Mitosis', 'Tumour: Positive'; what has them is not learnt"


def test_all_classes_known_nothing_is_said(loop: Loop) -> None:
    Region(loop).answer()
    _, said = collected(loop)
    assert not any("not learnt" in line or "so it is open" in line for line in said)


# ---------------------------------------------------------------------- projects and patients
def test_a_project_of_the_loop_that_was_moved_is_named_with_the_way_out(tmp_path: Path) -> None:
    first, second = make_project(tmp_path / "one", "AB"), make_project(tmp_path / "two", "CD")
    loop = begin(first, second)
    (tmp_path / "two").rename(tmp_path / "three")
    with pytest.raises(ProjectError, match=r"two.*project.qpproj of the loop 'first'.*projects.*loop\.json"):
        find_loop(first.path).sources()
    record = json.loads((loop.folder / "loop.json").read_text("utf-8"))
    record["projects"][1] = record["projects"][1].replace("/two/", "/three/")
    (loop.folder / "loop.json").write_text(json.dumps(record), "utf-8")
    assert len(find_loop(first.path).sources()) == 4


def test_a_loop_without_patients_to_validate_on_says_so(tmp_path: Path) -> None:
    project = make_project(tmp_path / "one", "A")
    words = ["active", "start", str(project.path), "--target", "tissue", "--class", "Tumor"]
    result = CliRunner().invoke(main, words)
    assert result.exit_code == 0, result.output
    why = "no patient to validate on: there will be no figures, no learning curve and no advice"
    assert why in result.output
    assert why in status_lines(find_loop(project.path))
    other = make_project(tmp_path / "two", "AB")
    split = Split({"A": "train", "B": "validation"})
    judged = start_loop([other], "first", LoopSettings("tissue", ("Tumor",)), split=split)
    assert why not in status_lines(judged)


# ---------------------------------------------------------------------- disks
def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    loop = begin(make_project(tmp_path / "one", "AB"))
    (loop.folder / "rounds").write_text("in the way")
    with pytest.raises(ProjectError, match=r"rounds.* cannot be made"):
        propose_round(loop, ProposeOptions(), hush)
    (loop.folder / "lock").mkdir()
    with pytest.raises(ProjectError, match="lock cannot be written"), loop.held():
        pass
