"""``qupath-ext active`` as a person types it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from active_projects import CELLS, make_project, person, stand_in, trained
from click.testing import CliRunner, Result

from qupath_ext.active.loop import find_loop
from qupath_ext.cli import main

CLASSES = [word for name in CELLS for word in ("--class", name)]


def run(*words: Any) -> Result:
    return CliRunner().invoke(main, ["active", *map(str, words)])


def start(path: Path, *words: Any) -> Result:
    options = ("--region-um", "96", "--budget-mm2", "0.02", *words)
    return run("start", path, "--target", "cells", *CLASSES, *options)


def test_a_round_from_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch)
    project = make_project(tmp_path / "one").path
    begun = start(project)
    assert begun.exit_code == 0, begun.output
    assert "train      2 patients, 2 images: A, D" in begun.output
    proposed = run("propose", project)
    assert proposed.exit_code == 0, proposed.output
    assert "round 1: 2 regions, 0.018 mm², by diversity" in proposed.output
    early = run("collect", project)
    assert early.exit_code == 2
    assert "none of 2 regions is done" in early.output
    loop = find_loop(project)
    for id_, row in loop.round(1).table("proposals").iterrows():
        person(loop.projects[0], row["entry_id"], classification={id_: "Done*"})
    collected = run("collect", project, "--minutes", "7")
    assert collected.exit_code == 0, collected.output
    assert "regions 2 done, 0 rejected, 0 open, 0 gone" in collected.output
    assert "10 confirmed, 0 moved" in collected.output
    assert find_loop(project).round(1).record["collected"]["minutes"] == 7.0
    refused = run("propose", project)
    assert refused.exit_code == 2
    assert "is not trained" in refused.output
    trained(loop, 1)
    stepped = run("step", project)
    assert stepped.exit_code == 0, stepped.output
    assert "round 2: 2 regions" in stepped.output
    back = run("rollback", project, "1")
    assert back.exit_code == 0, back.output
    assert find_loop(project).latest.number == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--strategy", "luck"), "strategy 'luck'"),
        (("--init", "nowhere"), "nowhere"),
        (("--split", "nowhere.json"), "nowhere.json"),
        (("--name", "a/b"), "loop 'a/b'"),
        (("--patient-key", "Patient", "--validation", "0.9", "--test", "0.9"), "fractions"),
    ],
)
def test_a_loop_that_cannot_be_begun_is_one_line(tmp_path: Path, words: tuple[str, ...], message: str) -> None:
    project = make_project(tmp_path / "one", "AB").path
    result = start(project, *words)
    assert result.exit_code == 2
    assert message in result.output
    assert not list(project.parent.glob("qupath_ext/active/*"))


def test_two_budgets_are_refused(tmp_path: Path) -> None:
    project = make_project(tmp_path / "one", "AB").path
    start(project)
    result = run("propose", project, "--budget-mm2", "1", "--budget-minutes", "1")
    assert result.exit_code == 2
    assert "Give either" in result.output
