"""The slides of a loop: what it goes on without, and what it does not look at twice."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from active_projects import CELLS, answer, hush, make_project, slide_file, stand_in, trained
from fake_models import FakeTumour

from pyhisto.dataset import Split
from pyhisto.errors import SlideError
from pyhisto.objects import empty_objects
from pyhisto.slide import Slide
from qupath_ext.active import memory
from qupath_ext.active.collect import collect_round
from qupath_ext.active.loop import Loop, LoopSettings, find_loop, start_loop
from qupath_ext.active.models import LoopModel
from qupath_ext.active.page import write_status_page
from qupath_ext.active.predict import Looker
from qupath_ext.active.propose import ProposeOptions, propose_round
from qupath_ext.active.rollback import rollback
from qupath_ext.active.status import status_lines
from qupath_ext.active.training import TrainOptions, train_round
from qupath_ext.errors import ProjectError
from qupath_ext.project import Project
from qupath_ext.runs.record import list_runs
from qupath_ext.workflows import slidememory

ABC = Split({"A": "train", "B": "train", "C": "train"})


def loop_of(project: Project, split: Split = ABC, **settings: Any) -> Loop:
    given: dict[str, Any] = {"target": "cells", "classes": CELLS, "region_um": 96.0, "budget_mm2": 0.03, **settings}
    return start_loop([project], "first", LoopSettings(**given), split=split)


def propose(loop: Loop, say: Any = hush) -> Any:
    return propose_round(find_loop(loop.paths[0]), ProposeOptions(), say)


# ---------------------------------------------------------------------- slides that cannot be read
def lose(project: Project, path: Path) -> None:
    path.rename(path.with_suffix(".elsewhere"))


def damage(project: Project, path: Path) -> None:
    path.write_bytes(b"no slide at all")


def damage_data(project: Project, path: Path) -> None:
    entry = next(entry for entry in project.entries if entry.name == path.name)
    entry.write_objects(add=empty_objects())
    (project.path.parent / "data" / entry.id / "data.qpdata").write_bytes(b"no objects at all")


@pytest.mark.parametrize(("harm", "why"), [(lose, "B.tif"), (damage, "B.tif"), (damage_data, "data.qpdata")])
def test_the_loop_goes_on_without_an_image_that_cannot_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, harm: Any, why: str
) -> None:
    stand_in(monkeypatch)
    project = make_project(tmp_path / "one", "ABC")
    loop = loop_of(project)
    harm(project, tmp_path / "one" / "B.tif")
    said: list[str] = []
    one = propose(loop, said.append)
    assert set(one.table("proposals")["image"]) <= {"A.tif", "C.tif"}
    (line,) = [line for line in said if "left out" in line]
    assert "project/B.tif is left out: " in line
    assert why in line
    assert "\n" not in line
    (kept,) = find_loop(project.path).round(1).record["proposed"]["left_out"]
    assert (kept["project"], kept["entry_id"], kept["image"]) == (0, "2", "B.tif")
    assert kept["why"] in line


def test_a_slide_that_fails_only_when_its_regions_are_filled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its share of the budget goes to the others: 3 regions of 96 µm all the same."""
    stand_in(monkeypatch)

    def found(looker: Looker, entry: Any, *args: Any) -> None:
        if entry.name == "C.tif":
            raise SlideError("C.tif cannot be read at (8, 9)")

    monkeypatch.setattr(Looker, "found", found)
    said: list[str] = []
    one = propose(loop_of(make_project(tmp_path / "one", "ABC")), said.append)
    assert "C.tif" not in set(one.table("proposals")["image"])
    assert sorted(one.table("proposals")["rank"]) == [1, 2, 3]
    assert sum("cannot be read at (8, 9)" in line for line in said) == 1


def test_a_slide_that_fails_while_a_model_looks_at_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model: Any = FakeTumour()
    monkeypatch.setattr("qupath_ext.active.propose.current_models", lambda *args, **named: [LoopModel(model, True)])
    maps = Looker.maps

    def failing(looker: Looker, entry: Any, *args: Any, **named: Any) -> Any:
        if entry.name == "A.tif":
            raise SlideError("A.tif cannot be read at (8, 9)")
        return maps(looker, entry, *args, **named)

    monkeypatch.setattr(Looker, "maps", failing)
    project = make_project(tmp_path / "one", "AB")
    settings = {"target": "tissue", "classes": ("Tumor",), "strategy": "entropy+rarity"}
    one = propose(loop_of(project, Split({"A": "train", "B": "train"}), **settings))
    assert set(one.table("proposals")["image"]) == {"B.tif"}
    assert [image["image"] for image in one.record["chosen"]["left_out"]] == ["A.tif"]


def test_without_any_slide_nothing_is_proposed_until_they_are_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in(monkeypatch)
    project = make_project(tmp_path / "one", "AB")
    loop = loop_of(project)
    for name in "AB":
        lose(project, tmp_path / "one" / f"{name}.tif")
    with pytest.raises(ProjectError, match=r"none of 2 images .* can be read, such as A.tif: .*A.tif does not exist"):
        propose(loop)
    assert list(list_runs(project)) == []
    for name in "AB":
        (tmp_path / "one" / f"{name}.elsewhere").rename(tmp_path / "one" / f"{name}.tif")
    assert propose(loop).number == 1


STUDY = (
    'kind = "cells"\nclasses = ["Tumor: Positive", "Tumor: Negative"]\n[model]\nmpp = 1.0\ntile_size = 64\noverlap = 8'
)


def test_a_round_is_collected_and_trained_without_a_slide_that_went_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in(monkeypatch)
    project = make_project(tmp_path / "one", "ABC")
    loop = loop_of(project, Split({"A": "train", "B": "train", "C": "validation"}))
    propose(loop)
    answer(find_loop(project.path), 1)
    for name in "BC":
        lose(project, tmp_path / "one" / f"{name}.tif")
    one = collect_round(find_loop(project.path), hush)
    assert {region["answer"] for region in one.record["collected"]["regions"].values()} == {"done"}
    (tmp_path / "study.toml").write_text(STUDY)
    options = TrainOptions(study=tmp_path / "study.toml")
    asked: list[list[str]] = []

    def stopped(run: Any, *args: Any) -> None:
        asked.append([source.entry.name for source in run.sources])
        raise KeyboardInterrupt

    monkeypatch.setattr("qupath_ext.active.training.run_training", stopped)
    said: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        train_round(find_loop(project.path), 1, options, said.append)
    assert asked == [["A.tif"]]
    assert [line.split(" is left out")[0].strip() for line in said if "left out" in line] == [
        "project/B.tif",
        "project/C.tif",
    ]
    lose(project, tmp_path / "one" / "A.tif")
    with pytest.raises(ProjectError, match="none of 3 images to train on can be read"):
        train_round(find_loop(project.path), 1, options, hush)
    assert find_loop(project.path).round(1).state == "collected"
    assert status_lines(find_loop(project.path))[-1] == "advice: go on"
    write_status_page(find_loop(project.path), tmp_path / "page.html")
    assert "No pictures of A.tif" in (tmp_path / "page.html").read_text("utf-8")


def test_a_training_says_in_its_record_what_it_went_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is found in the region that is done, so there is nothing to learn from, on the image that is left."""
    stand_in(monkeypatch)
    monkeypatch.setattr("qupath_ext.active.propose.editable", lambda *args: empty_objects())
    project = make_project(tmp_path / "one", "AB")
    loop = loop_of(project)
    propose(loop)
    answer(find_loop(project.path), 1)
    collect_round(find_loop(project.path), hush)
    lose(project, tmp_path / "one" / "B.tif")
    train_round(find_loop(project.path), 1, TrainOptions(), hush)
    record = json.loads((find_loop(project.path).round(1).folder / "training.json").read_text("utf-8"))
    assert [image["image"] for image in record["left_out"]] == ["B.tif"]


def test_regions_of_an_image_that_cannot_be_read_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch)
    project = make_project(tmp_path / "one", "AB")
    propose(loop_of(project, Split({"A": "train", "B": "train"}), strategy="random"))
    proposals = find_loop(project.path).round(1).table("proposals")
    assert set(proposals["image"]) == {"A.tif", "B.tif"}
    answer(find_loop(project.path), 1)
    data = project.path.parent / "data" / "2" / "data.qpdata"
    whole = data.read_bytes()
    data.write_bytes(b"no objects at all")
    said: list[str] = []
    one = collect_round(find_loop(project.path), said.append)
    assert set(one.record["collected"]["regions"]) == set(proposals.index[proposals["image"] == "A.tif"])
    assert [image["image"] for image in one.record["collected"]["left_out"]] == ["B.tif"]
    assert sum("project/B.tif is left out: " in line for line in said) == 1
    data.write_bytes(whole)
    one = collect_round(find_loop(project.path), hush)
    assert set(one.record["collected"]["regions"]) == set(proposals.index)
    assert one.record["collected"]["left_out"] == []


def test_regions_of_an_image_that_was_taken_out_of_its_project_are_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loop goes on, and back."""
    stand_in(monkeypatch)
    project = make_project(tmp_path / "one", "AB")
    propose(loop_of(project, Split({"A": "train", "B": "train"}), strategy="random"))
    answer(find_loop(project.path), 1)
    record = json.loads(project.path.read_text("utf-8"))
    record["images"] = [image for image in record["images"] if image["imageName"] != "B.tif"]
    project.path.write_text(json.dumps(record), "utf-8")
    proposals = find_loop(project.path).round(1).table("proposals")
    one = collect_round(find_loop(project.path), hush)
    verdicts = {id_: region["answer"] for id_, region in one.record["collected"]["regions"].items()}
    assert verdicts == {id_: "gone" if name == "B.tif" else "done" for id_, name in proposals["image"].items()}
    trained(find_loop(project.path), 1)
    assert set(propose(find_loop(project.path)).table("proposals")["image"]) == {"A.tif"}
    rollback(find_loop(project.path), 0, hush)
    assert find_loop(project.path).latest is None


# ---------------------------------------------------------------------- slides that were looked at before
MEASURED = ("survey_slide", "auto_settings", "detect_tissue", "overview_quality")


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """What is measured of which slide from now on."""
    seen: list[tuple[str, str]] = []

    def counting(name: str, measure: Any) -> Any:
        def counted(subject: Any, *args: Any, **named: Any) -> Any:
            seen.append((name, subject.path.name if isinstance(subject, Slide) else "an overview"))
            return measure(subject, *args, **named)

        return counted

    for name in MEASURED:
        module = slidememory if hasattr(slidememory, name) else memory
        monkeypatch.setattr(module, name, counting(name, getattr(module, name)))
    return seen


def settle(project: Project, number: int) -> None:
    """End a round without a model: the next one begins as cold."""
    answer(find_loop(project.path), number, "Rejected*")
    collect_round(find_loop(project.path), hush)
    trained(find_loop(project.path), number)


def test_a_later_round_does_not_measure_the_slides_again(tmp_path: Path, measured: list[tuple[str, str]]) -> None:
    """What is proposed, and found there, is the same as by one that measures all anew; a changed slide is measured."""
    project = make_project(tmp_path / "one", "AB")
    propose(loop_of(project, Split({"A": "train", "B": "train"}), strategy="random", budget_mm2=0.05))
    assert {name for name, _ in measured} == set(MEASURED)
    settle(project, 1)
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    measured.clear()
    again = propose(find_loop(project.path))
    assert measured == []
    forgetful = tmp_path / "two" / "project" / "project.qpproj"
    shutil.rmtree(forgetful.parent / "qupath_ext" / "slides")
    anew = propose(find_loop(forgetful))
    assert {name for name, _ in measured} == set(MEASURED)
    assert sorted(again.table("proposals").geometry.to_wkb()) == sorted(anew.table("proposals").geometry.to_wkb())
    assert sorted(again.table("predictions").geometry.to_wkb()) == sorted(anew.table("predictions").geometry.to_wkb())
    settle(project, 2)
    measured.clear()
    (tmp_path / "one" / "B.tif").write_bytes(slide_file(5))
    propose(find_loop(project.path))
    looked = [one for one in measured if one[0] != "auto_settings"]  # images as small as these are judged together
    assert sorted(looked) == [
        ("detect_tissue", "B.tif"),
        ("overview_quality", "an overview"),
        ("survey_slide", "B.tif"),
    ]


@pytest.mark.parametrize("damage", ["!!!", "AAAA", 3])
def test_what_is_kept_of_a_slide_and_damaged_is_measured_again(
    tmp_path: Path, measured: list[tuple[str, str]], damage: Any
) -> None:
    (tmp_path / "A.tif").write_bytes(slide_file(0))
    with Slide(tmp_path / "A.tif") as slide:
        whole = memory.RoundMemory(tmp_path).tissue(slide)
        (path,) = (tmp_path / "qupath_ext" / "slides").glob("*.json")
        content = json.loads(path.read_text("utf-8"))
        content["kept"][0]["found"]["polygons"] = [damage]
        path.write_text(json.dumps(content), "utf-8")
        again = memory.RoundMemory(tmp_path).tissue(slide)
        kept = memory.RoundMemory(tmp_path).tissue(slide)
    assert [name for name, _ in measured] == ["detect_tissue"] * 2
    assert list(whole.geometry.to_wkb()) == list(again.geometry.to_wkb()) == list(kept.geometry.to_wkb())
    assert set(kept["classification"]) == {"Tissue"}
