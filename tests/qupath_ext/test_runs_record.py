"""The record of a run, and what makes a command go on with an earlier one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from qupath_ext.errors import FormatError, ProjectError, RunNotFoundError
from qupath_ext.project import Project, create_project
from qupath_ext.runs.record import Run, find_run, list_runs, start_run


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return create_project(tmp_path / "project", backend="native")


@pytest.fixture
def slide(tmp_path: Path) -> Path:
    path = tmp_path / "slide.tif"
    Image.new("RGB", (64, 48), (240, 240, 240)).save(path)
    return path


def start(project: Project, config: dict[str, Any] | None = None, analysis: str = "ki67", sha: str = "0") -> Run:
    models = {"cells": {"name": "bundle", "sha256": sha * 64}}
    run = start_run(project, analysis, config or {"threshold": 0.1}, models)
    run.release()
    return run


def test_a_finished_run_is_not_gone_on_with(project: Project) -> None:
    run = start(project)
    assert start(project).id == run.id
    run.finish()
    assert start(project).id != run.id


@pytest.mark.parametrize("other", [{"threshold": 0.2}, {"threshold": 0.1, "region": "tissue"}])
def test_other_settings_are_another_run(project: Project, other: dict[str, Any]) -> None:
    assert start(project).id != start(project, other).id


def test_other_weights_are_another_run(project: Project) -> None:
    assert start(project).id != start(project, sha="1").id


def test_the_record_says_with_what_it_was_made(project: Project, slide: Path) -> None:
    entry = project.add_image(slide, name="Fall 7")
    run = start(project)
    run.fail_image(entry, "ki67", "slide x does not exist")
    run.finish()
    record = json.loads((run.folder / "run.json").read_text("utf-8"))
    assert record["id"] == run.folder.name
    assert record["config"] == {"threshold": 0.1}
    assert record["models"] == {"cells": {"name": "bundle", "sha256": "0" * 64}}
    assert record["status"] == "incomplete"
    assert record["images"]["1"] == {
        "status": "failed",
        "name": "Fall 7",
        "stage": "ki67",
        "error": "slide x does not exist",
    }
    assert {"python", "torch", "qupath-ext", "geopandas"} <= set(record["versions"])
    assert record["backend"] == "native"
    assert record["device"] == "cpu"
    assert len(record["command"]) >= 1
    assert not run.is_done("1")


def test_a_run_with_a_failed_image_is_gone_on_with(project: Project, slide: Path) -> None:
    entry = project.add_image(slide)
    run = start(project)
    run.fail_image(entry, "ki67", "away")
    run.finish()
    again = start(project)
    assert again.id == run.id
    again.finish_image(entry.id, {"name": entry.name})
    again.finish()
    assert again.status == "done"
    assert start(project).id != run.id


def test_two_processes_do_not_work_on_one_run(project: Project) -> None:
    run = start_run(project, "ki67", {}, {})
    with pytest.raises(ProjectError, match="is being worked on by another process"):
        start_run(project, "ki67", {}, {})
    run.release()
    assert start(project, {}).id != run.id  # other models
    again = start_run(project, "ki67", {"threshold": 0.1}, {"cells": {"name": "b", "sha256": "0" * 64}})
    assert again.id != run.id


def test_a_damaged_record_is_named(project: Project) -> None:
    run = start(project)
    (run.folder / "run.json").write_text("{", "utf-8")
    with pytest.raises(FormatError, match=r"run\.json is damaged"):
        list(list_runs(project))
    (run.folder / "run.json").write_text("[]", "utf-8")
    with pytest.raises(FormatError, match=r"run\.json is damaged"):
        list(list_runs(project))


def test_a_run_is_found_by_its_id_its_beginning_or_a_part(project: Project) -> None:
    with pytest.raises(RunNotFoundError, match="no runs in"):
        find_run(project, "latest")
    first, second = start(project), start(project, {"threshold": 0.2}, analysis="tumour")
    assert find_run(project, "latest").id == second.id
    assert find_run(project, first.id).id == first.id
    assert find_run(project, first.id[:-3]).id == first.id
    assert find_run(project, "-tumour-").id == second.id
    with pytest.raises(RunNotFoundError, match="2 runs match '20'"):
        find_run(project, "20")
    with pytest.raises(RunNotFoundError, match="no run 'x1'"):
        find_run(project, "x1")
