"""A plain training on projects of a loop: regions that two persons went through count as they do in the loop."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from active_projects import (
    CELLS,
    Region,
    answer,
    drawn,
    first_round,
    hush,
    trained,
    two_persons,
)
from click.testing import CliRunner
from live_jobs import make_job

from pyhisto.dataset import CellTask, TrainingImage
from pyhisto.objects import concat_objects
from qupath_ext.active.collect import collect_round
from qupath_ext.active.loop import Loop, find_loop
from qupath_ext.active.propose import ProposeOptions, propose_round
from qupath_ext.active.rollback import rollback
from qupath_ext.active.training import round_images
from qupath_ext.cli import main
from qupath_ext.errors import ProjectError
from qupath_ext.live.tasks import run_job
from qupath_ext.project import open_project


@pytest.fixture
def both(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Loop:
    """Anna and Berta went through the same region of 5 cells in their projects; Berta took one away."""
    loop = two_persons(tmp_path, monkeypatch)
    anna, berta = Region(loop, project=0), Region(loop, project=1)
    berta.change(geometry={berta.of(CELLS[0]): berta.at((20, 20), (40, 20))})
    anna.answer()
    berta.answer()
    return find_loop(loop.paths[0])


def cells(monkeypatch: pytest.MonkeyPatch, *projects: Path) -> tuple[dict[str, int], str]:
    """Return how many cells a plain training learns from, by the folder of their project, and what it says."""
    seen: list[TrainingImage] = []

    def planned(images: list[TrainingImage], *args: Any) -> None:
        seen.extend(images)
        raise KeyboardInterrupt

    monkeypatch.setattr("qupath_ext.workflows.trainrun.plan_study", planned)
    words = [*map(str, projects), "--plan", "--output", str(projects[0].parent / "study.toml"), "--task", "cells"]
    result = CliRunner().invoke(main, ["train", *words])
    assert seen, result.output
    found = {image.name.split("/")[0]: len(CellTask(CELLS).nuclei(image, "train")[0]) for image in seen}
    return found, result.output


def test_nobody_counts_before_one_is_chosen(both: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the answers are collected, after it, and when the round was taken back."""
    line = "several went through 1 regions; 1 of them are left out"
    for step in (lambda: None, lambda: collect_round(both, hush), lambda: rollback(find_loop(both.paths[0]), 0, hush)):
        step()
        found, said = cells(monkeypatch, *both.paths)
        assert sum(found.values()) == 0
        assert said.count(line) == 1
    assert sum(cells(monkeypatch, both.paths[0])[0].values()) == 0


def test_the_one_who_is_chosen_counts(both: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    collect_round(both, hush, prefer="berta")
    found, said = cells(monkeypatch, *both.paths)
    assert found == {"project": 0, "berta": 4}
    assert "0 of them are left out" in said
    collect_round(find_loop(both.paths[0]), hush, prefer=str(both.paths[0].parent))
    assert cells(monkeypatch, *both.paths)[0] == {"project": 5, "berta": 0}


def test_two_persons_in_one_image(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = first_round("cells", tmp_path, tmp_path_factory, monkeypatch)
    region = Region(loop)
    region.change(metadata={region.id: {"annotator": "anna"}})
    name = {"annotator": "berta"}
    hers = drawn(region.row.geometry, "Done*", metadata=name)
    points = drawn(region.at((20, 20), (80, 20)), CELLS[0], metadata=name)
    region.change(add=concat_objects([hers, points]))
    region.answer()
    assert sum(cells(monkeypatch, loop.paths[0])[0].values()) == 0
    collect_round(loop, hush, prefer="berta")
    assert sum(cells(monkeypatch, loop.paths[0])[0].values()) == 2


def test_without_disputes_nothing_is_said(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = first_round("cells", tmp_path, tmp_path_factory, monkeypatch)
    Region(loop).answer()
    found, said = cells(monkeypatch, loop.paths[0])
    assert sum(found.values()) == 5
    assert "several" not in said


# ---------------------------------------------------------------------- who answers late, and who is chosen late
def next_round(loop: Loop) -> Loop:
    """Train a round without a model, and propose the next one."""
    trained(loop, find_loop(loop.paths[0]).latest.number)  # type: ignore[union-attr]
    propose_round(find_loop(loop.paths[0]), ProposeOptions(), hush)
    return find_loop(loop.paths[0])


def learnt(loop: Loop, number: int) -> dict[str, int]:
    """Return how many cells a round learns from, by the folder of their project."""
    images = round_images(find_loop(loop.paths[0]), number)
    return {s.project.path.parent.name: len(CellTask(CELLS).nuclei(i, "train")[0]) for s, i in images if len(i.objects)}


def test_who_answers_in_a_later_round_is_compared_as_well(both: Loop) -> None:
    """Anna answered the first round; Berta goes through the same region when the second one is there."""
    berta = Region(both, project=1)
    berta.answer("Region*")
    assert collect_round(both, hush).record["collected"]["disagreements"] == []
    assert learnt(both, 1) == {"project": 5}
    later = next_round(both)
    berta.answer()
    one = collect_round(later, hush)
    (dispute,) = one.record["collected"]["disagreements"]
    assert (dispute["round"], [person["who"] for person in dispute["people"]]) == (1, ["project", "berta"])
    assert sum(learnt(both, 2).values()) == 0
    assert learnt(both, 1)["project"] == 5
    collect_round(find_loop(both.paths[0]), hush, prefer="berta")
    assert learnt(both, 2) == {"project": 0, "berta": 4}


def test_one_can_be_chosen_in_a_later_round(both: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    collect_round(both, hush)
    later = next_round(both)
    answer(later, 2)
    said: list[str] = []
    one = collect_round(find_loop(both.paths[0]), said.append, prefer="berta")
    assert {(d["round"], d["chosen"] is None) for d in one.record["collected"]["disagreements"]} == {
        (1, False),
        (2, False),
    }
    assert sum("round 1 #1" in line and "berta counts" in line for line in said) == 1
    assert learnt(both, 2) == {"project": 0, "berta": 4 + 5}
    assert cells(monkeypatch, *both.paths)[0] == {"project": 0, "berta": 4 + 5}


def test_a_round_that_was_taken_back_is_not_forgotten_for_a_new_one(
    both: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The region of the new round has the same number and lies elsewhere; both persons go through it, too."""
    collect_round(both, hush)
    rollback(find_loop(both.paths[0]), 0, hush)
    propose_round(find_loop(both.paths[0]), ProposeOptions(), hush)
    answer(find_loop(both.paths[0]), 1)
    found, said = cells(monkeypatch, *both.paths)
    assert sum(found.values()) == 0
    assert "several went through 2 regions; 2 of them" in said


def test_a_training_from_qupath_keeps_to_it_as_well(
    both: Loop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[TrainingImage] = []

    def planned(images: list[TrainingImage], *args: Any) -> None:
        seen.extend(images)
        raise ProjectError("as far as this")

    monkeypatch.setattr("qupath_ext.workflows.trainrun.plan_study", planned)
    project = open_project(both.paths[0], backend="native")
    folder = make_job(tmp_path / "job", project, project.entries[0], "train", options={"task": "cells"})
    said: list[str] = []
    answered = run_job(folder, say=said.append)
    assert "as far as this" in answered.message
    assert [len(CellTask(CELLS).nuclei(image, "train")[0]) for image in seen] == [0]
    assert any("several went through 1 regions" in line for line in said)
