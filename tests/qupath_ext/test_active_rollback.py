"""The way back to an earlier round, and steps of the loop that are killed between any two writes."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import shapely
from active_projects import (
    CELLS,
    Region,
    answer,
    begin,
    drawn,
    first_round,
    hush,
    make_project,
    person,
    stand_in,
    trained,
)

from qupath_ext.active.collect import collect_round
from qupath_ext.active.loop import Loop, find_loop
from qupath_ext.active.propose import ProposeOptions, propose_round
from qupath_ext.active.rollback import rollback
from qupath_ext.errors import ProjectError
from qupath_ext.runs.record import list_runs

POSITIVE, NEGATIVE = CELLS


@pytest.fixture
def loop(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Loop:
    """A loop whose first round is in the images."""
    return first_round("cells", tmp_path, tmp_path_factory, monkeypatch)


def again(loop: Loop) -> Loop:
    return find_loop(loop.paths[0])


def second_round(loop: Loop) -> Loop:
    """Answer, collect and train the first round, and propose the second one."""
    answer(loop, 1)
    collect_round(again(loop), hush)
    trained(loop, 1)
    propose_round(again(loop), ProposeOptions(), hush)
    return again(loop)


def objects(loop: Loop) -> dict[str, Any]:
    """Return the ids of all objects with their classes, by image."""
    out = {}
    for source in again(loop).sources():
        found = source.entry.read_objects()
        out[source.entry.id] = dict(zip(found.index, found["classification"].astype(object), strict=True))
    return out


def test_the_images_are_as_they_were_at_the_end_of_the_round(loop: Loop) -> None:
    answer(loop, 1)
    before = objects(loop)
    loop = second_round(loop)
    assert objects(loop) != before
    aside = rollback(loop, 1, hush)
    assert objects(loop) == before
    assert again(loop).latest.number == 1
    assert aside is not None
    assert (aside / "02" / "proposals.parquet").is_file()
    assert json.loads((aside / "rollback.json").read_text("utf-8"))["to"] == 1


def test_nothing_that_a_person_did_is_lost(loop: Loop) -> None:
    """In the one region a point is moved and one drawn; the other is done, with predictions that stay as they are."""
    first, second = Region(loop), Region(loop, 2)
    moved, mine = first.of(POSITIVE), drawn(shapely.Point(first.x + 90, first.y + 90), NEGATIVE)
    first.change(geometry={moved: first.at((24, 20), (40, 20), (60, 20))}, add=mine)
    inside = set(second.inside.index)
    second.answer()
    aside = rollback(again(loop), 0, hush)
    assert set(objects(loop)[first.row["entry_id"]]) == {moved, *mine.index}
    assert set(objects(loop)[second.row["entry_id"]]) == {second.id, *inside}
    assert len(second.truth()) == 3, "what is done is truth as before"
    assert len(first.truth()) == 1, "and what a person drew"
    stayed = {one["entry_id"]: one for one in json.loads((aside / "rollback.json").read_text("utf-8"))["stayed"]}
    assert stayed[first.row["entry_id"]]["changed"] == [moved]
    assert stayed[first.row["entry_id"]]["added"] == list(mine.index)
    assert stayed[second.row["entry_id"]]["in_done_regions"] == sorted(inside)


def test_after_going_back_the_loop_goes_on_elsewhere(loop: Loop) -> None:
    done = Region(loop)
    done.answer()
    rollback(again(loop), 0, hush)
    one = propose_round(again(loop), ProposeOptions(), hush)
    assert one.number == 1
    shapes = one.table("proposals")
    here = shapes[shapes["entry_id"] == done.row["entry_id"]].geometry
    assert all(shape.intersection(done.row.geometry).area == 0 for shape in here)


def test_a_round_that_is_not_there_is_refused(loop: Loop) -> None:
    with pytest.raises(ProjectError, match="no round 7"):
        rollback(loop, 7, hush)
    assert rollback(loop, 1, hush) is None
    assert again(loop).latest.state == "proposed"


# ---------------------------------------------------------------------- killed
class Killed(BaseException):
    """What a kill is, as far as one process can tell."""


def killed_at(number: int, act: Callable[[], Any], monkeypatch: pytest.MonkeyPatch) -> bool:
    """Do something, but end before the write with this number; return whether it came to its end."""
    calls = [0]

    def ending(call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            calls[0] += 1
            if calls[0] > number:
                raise Killed
            return call(*args, **kwargs)

        return wrapped

    with monkeypatch.context() as patch:
        for name in ("replace", "rename"):
            patch.setattr(os, name, ending(getattr(os, name)))
        try:
            act()
        except Killed:
            return False
    return True


def each_kill(
    folder: Path,
    act: Callable[[Loop], Any],
    check: Callable[[Loop, Any], None],
    monkeypatch: pytest.MonkeyPatch,
    *,
    some: Sequence[int] = range(200),
) -> int:
    """Kill an act before each of (some of) its writes, each time on a copy of a project; do it again, and check.

    Returns the number of its writes; the last of `some` if it has more.
    """
    for number in some:
        copy = folder.with_name(f"{folder.name}-{number}")
        shutil.copytree(folder, copy)
        finished = killed_at(number, partial(_acted, act, copy), monkeypatch)
        check(find_loop(copy / "project"), _acted(act, copy))
        if finished:
            break
    return number


def _acted(act: Callable[[Loop], Any], folder: Path) -> Any:
    return act(find_loop(folder / "project"))


@pytest.mark.parametrize(
    "some", [pytest.param(range(200), marks=pytest.mark.slow), (2, 5, 8)], ids=["each write", "some writes"]
)
def test_a_proposal_that_is_killed_anywhere_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, some: Sequence[int]
) -> None:
    stand_in(monkeypatch)
    begin(make_project(tmp_path / "base", "ABC"))

    def check(loop: Loop, one: Any) -> None:
        assert (one.number, one.state) == (1, "proposed")
        (run,) = list_runs(loop.projects[0])
        assert run.status == "done"
        proposals = one.table("proposals")
        assert len(proposals) == 2
        for entry_id, own in proposals.groupby("entry_id"):
            found = loop.projects[0].entry(int(entry_id)).read_objects()
            assert sorted(found["classification"]) == sorted(["Region*", NEGATIVE, POSITIVE] * len(own))
            assert set(own.index) <= set(found.index)
        assert not (one.folder / "seen").exists()

    def act(loop: Loop) -> Any:
        return propose_round(loop, ProposeOptions(), hush)

    assert each_kill(tmp_path / "base", act, check, monkeypatch, some=some) >= 8


def test_a_collection_that_is_killed_anywhere_goes_on(
    loop: Loop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer(loop, 1)

    def check(loop: Loop, one: Any) -> None:
        assert loop.latest.state == "collected"
        assert len(one.table("corrections")) == 10

    assert each_kill(tmp_path / "one", lambda loop: collect_round(loop, hush), check, monkeypatch) == 2


def test_a_way_back_that_is_killed_anywhere_goes_on(
    loop: Loop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    region = Region(loop)
    region.answer()
    inside = {region.id, *region.inside.index}
    other = Region(loop, 2)
    person(other.project, other.row["entry_id"], name={other.of(POSITIVE): "mine"})
    mine = other.of(POSITIVE)

    def check(loop: Loop, aside: Any) -> None:
        assert loop.rounds() == []
        found = {id_ for image in objects(loop).values() for id_ in image}
        assert found == {*inside, mine}

    assert each_kill(tmp_path / "one", lambda loop: rollback(loop, 0, hush), check, monkeypatch) >= 5
