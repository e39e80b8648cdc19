"""The loop: what is proposed, what a person answers, what that means for the training, and the way back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import shapely
from active_projects import CELLS, HEIGHT, MPP, WIDTH, answer, begin, hush, make_project, nuclei, person, trained
from fake_models import FakeTumour
from PIL import Image

from pyhisto.dataset import Split
from pyhisto.errors import ConfigError
from pyhisto.features.bags import write_bag
from pyhisto.objects import empty_objects, make_objects
from qupath_ext.active.collect import collect_round
from qupath_ext.active.loop import Loop, LoopSettings, find_loop, start_loop
from qupath_ext.active.models import LoopModel
from qupath_ext.active.predict import Looker, class_of
from qupath_ext.active.propose import ProposeOptions, propose_round
from qupath_ext.active.rollback import rollback
from qupath_ext.errors import FormatError, ProjectError
from qupath_ext.project import Project, open_project
from qupath_ext.runs.record import list_runs
from qupath_ext.runs.undo import undo_run


@pytest.fixture
def unfilled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Regions stay empty: what is found in them does not matter, and takes time."""
    monkeypatch.setattr(Looker, "found", lambda *args: empty_objects())


def use(monkeypatch: pytest.MonkeyPatch, *models: Any) -> None:
    found = [LoopModel(model, True) for model in models]
    monkeypatch.setattr("qupath_ext.active.propose.current_models", lambda *args, **named: found)


def propose(loop: Loop, **options: Any) -> Any:
    return propose_round(loop, ProposeOptions(**options), hush)


def reopened(loop: Loop) -> Loop:
    """Return a loop as the next command finds it."""
    return find_loop(loop.paths[0], loop.name)


def present(loop: Loop, row: Any) -> Any:
    return open_project(loop.paths[int(row["project"])], backend="native").entry(int(row["entry_id"])).read_objects()


# ---------------------------------------------------------------------- beginning
def test_a_loop_is_kept_in_readable_json(tmp_path: Path) -> None:
    first, second = make_project(tmp_path / "one", "AB"), make_project(tmp_path / "two", "CD")
    loop = begin(first, second, seed=3)
    record = json.loads((first.path.parent / "qupath_ext" / "active" / "first" / "loop.json").read_text("utf-8"))
    assert record["settings"]["classes"] == list(CELLS)
    assert record["projects"] == ["../../../project.qpproj", "../../../../../two/project/project.qpproj"]
    assert set(record["split"]["patients"]) == set("ABCD")
    found = find_loop(first.path)
    assert (found.settings, found.split, found.paths) == (loop.settings, loop.split, loop.paths)


def test_moving_all_projects_together_does_not_lose_the_loop(tmp_path: Path) -> None:
    project = make_project(tmp_path / "old" / "one", "AB")
    begin(project)
    (tmp_path / "old").rename(tmp_path / "new")
    moved = find_loop(tmp_path / "new" / "one" / "project")
    assert moved.paths == (tmp_path / "new" / "one" / "project" / "project.qpproj",)
    assert len(moved.sources()) == 2


def test_what_cannot_be_begun_leaves_nothing_behind(tmp_path: Path) -> None:
    project = make_project(tmp_path / "one", "AB")
    settings = LoopSettings("cells", CELLS)
    with pytest.raises(ConfigError, match="no patient"):
        start_loop([project], "x", settings, split=Split({"A": "test", "B": "validation"}))
    with pytest.raises(ConfigError, match="letters"):
        start_loop([project], "../x", settings)
    assert not list((project.path.parent / "qupath_ext").glob("active"))
    start_loop([project], "x", settings)
    with pytest.raises(ProjectError, match="exists already"):
        start_loop([project], "x", settings)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"strategy": "luck"}, "strategy 'luck'"),
        ({"classes": ()}, "one name or more"),
        ({"classes": ("Done*",)}, "asterisk"),
        ({"region_um": 3.0}, "regions of 3 µm"),
        ({"budget_mm2": 0.0}, "budget of 0"),
        ({"correction_weight": 0.5}, "weight of 0.5"),
        ({"match_um": 0.0}, "within 0 µm"),
        ({"target": "slides"}, "target 'slides'"),
    ],
)
def test_settings_that_make_no_sense_are_refused(bad: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        LoopSettings(**{"target": "cells", "classes": CELLS, **bad})


def test_which_loop_is_said_where_there_are_several(tmp_path: Path) -> None:
    project = make_project(tmp_path / "one", "AB")
    with pytest.raises(ProjectError, match="no loop"):
        find_loop(project.path)
    for name in ("a", "b"):
        start_loop([project], name, LoopSettings("cells", CELLS))
    assert find_loop(project.path, "b").name == "b"
    with pytest.raises(ProjectError, match=r"2 loops.*--loop a"):
        find_loop(project.path)
    with pytest.raises(ProjectError, match=r"no loop 'c'.*a, b"):
        find_loop(project.path, "c")


def test_a_damaged_state_is_named(tmp_path: Path) -> None:
    loop = begin(make_project(tmp_path / "one", "AB"))
    (loop.folder / "loop.json").write_text('{"version": 1}', "utf-8")
    with pytest.raises(FormatError, match=r"loop.json is damaged"):
        find_loop(loop.paths[0])


# ---------------------------------------------------------------------- proposing
def test_cells_without_a_class_are_of_the_first() -> None:
    """As those are that the classical detector finds on H&E; in a table their class is missing, which is NaN."""
    found = pd.Series(["Positive", "Negative", None], dtype="category").astype(object)
    assert [class_of(name, CELLS[::-1]) for name in found] == [*CELLS, CELLS[1]]
    assert class_of("Positive", ("Tumor", "Stroma")) == "Tumor"


def test_a_cold_start_proposes_tissue_with_the_cells_of_the_classical_detector(tmp_path: Path) -> None:
    loop = begin(make_project(tmp_path / "one"))
    one = propose(loop)
    proposals = one.table("proposals")
    assert one.record["proposed"]["strategy"] == "diversity"
    assert set(proposals["rank"]) == {1, 2}
    assert proposals["area_mm2"].to_numpy() == pytest.approx(0.096**2)
    parts = {source.entry.id: loop.part_of(source) for source in loop.sources()}
    assert {parts[id_] for id_ in proposals["entry_id"]} == {"train"}
    for id_, row in proposals.iterrows():
        found = present(loop, row)
        region = found.loc[id_]
        assert (region["name"], region["classification"]) == (f"Round 1 #{row['rank']} 0.00 diversity", "Region*")
        assert region["locked"]
        assert region.geometry.equals(shapely.box(*row.geometry.bounds))
        inside = found[found["parent_id"] == id_]
        assert not inside["locked"].any()
        drawn = shapely.MultiPoint(nuclei())
        wanted = [p for p in drawn.geoms if region.geometry.buffer(-6).contains(p)]
        marked = dict(zip(inside["classification"], inside.geometry, strict=True))
        for number, nucleus in enumerate(drawn.geoms):
            if nucleus in wanted:
                shape = marked[CELLS[number % 2]]
                assert shape.distance(nucleus) * MPP < 1.5, f"no point of its class at {nucleus}"


@pytest.mark.usefixtures("unfilled")
def test_proposals_are_a_run_that_can_be_undone(tmp_path: Path) -> None:
    loop = begin(make_project(tmp_path / "one"))
    propose(loop)
    (run,) = list_runs(loop.projects[0])
    assert (run.analysis, run.status) == ("active-first", "done")
    assert len(list(undo_run(loop.projects[0], run))) == 2
    assert all(len(source.entry.read_objects()) == 0 for source in reopened(loop).sources())


@pytest.mark.usefixtures("unfilled")
def test_proposing_again_changes_nothing(tmp_path: Path) -> None:
    loop = begin(make_project(tmp_path / "one"))
    before = propose(loop)
    again = propose(reopened(loop))
    assert again.number == 1
    assert again.record == before.record
    assert len(list(list_runs(loop.projects[0]))) == 1


@pytest.mark.usefixtures("unfilled")
def test_regions_never_overlap_what_was_proposed_rejected_or_labelled(tmp_path: Path) -> None:
    project = make_project(tmp_path / "one", ["A", "B"])
    loop = start_loop(
        [project],
        "first",
        LoopSettings("cells", CELLS, strategy="random", region_um=64, budget_mm2=0.0125),
        split=Split({"A": "train", "B": "validation"}),
    )
    drawn = shapely.box(0, 0, WIDTH / 2, HEIGHT / 2)
    person(project, "1", add=make_objects([drawn], object_type="annotation", classification="Training"))
    seen = [drawn]
    for number, verdict in enumerate(("Rejected*", "Done*", "Region*"), start=1):
        one = propose(reopened(loop))
        for shape in one.table("proposals").geometry:
            assert all(shape.intersection(other).area == 0 for other in seen)
            seen.append(shape)
        answer(reopened(loop), number, verdict, ranks=(1, 2))
        answer(reopened(loop), number, "Rejected*", ranks=(3,))
        collect_round(reopened(loop), hush)
        trained(loop, number)
    assert len(seen) == 1 + 3 * 3


@pytest.mark.usefixtures("unfilled")
def test_a_budget_that_no_region_fits_leaves_the_projects_alone(tmp_path: Path) -> None:
    loop = begin(make_project(tmp_path / "one", "AB"))
    with pytest.raises(ProjectError, match=r"fits the budget of 0.001 mm²"):
        propose(loop, budget_mm2=0.001)
    assert list(list_runs(loop.projects[0])) == []
    assert propose(reopened(loop)).number == 1


@pytest.mark.usefixtures("unfilled")
def test_a_budget_in_minutes_goes_by_what_a_region_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Cost:
        def minutes(self, area_mm2: float) -> float:
            return 3.0

    monkeypatch.setattr("qupath_ext.active.propose.loop_cost", lambda loop: Cost())
    loop = begin(make_project(tmp_path / "one"))
    one = propose(loop, budget_minutes=10.0)
    assert (one.record["proposed"]["regions"], one.record["proposed"]["unit"]) == (3, "minutes")


def test_a_trained_model_is_asked_where_it_is_uncertain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The model finds tumour as dark as it is: it is least certain at half grey, which one patch of the slide is."""
    use(monkeypatch, FakeTumour())
    project = make_project(tmp_path / "one", ["A", "B"])
    loop = start_loop(
        [project],
        "first",
        LoopSettings("tissue", ("Tumor",), strategy="entropy", region_um=96, budget_mm2=0.01),
        split=Split({"A": "train", "B": "test"}),
    )
    one = propose(loop)
    assert one.record["proposed"]["model"]["sha256"] == "d" * 64
    (row,) = [row for _, row in one.table("proposals").iterrows()]
    assert 0 < row["score"] <= 1
    assert row["reason"] == "entropy"
    assert row.geometry.centroid.x > WIDTH / 2, "the slide darkens to the right"
    assert "Tumor probability" in json.loads(row["parts"])
    assert not (one.folder / "seen").exists()


@pytest.mark.usefixtures("unfilled")
def test_a_slide_in_two_projects_gets_the_same_regions_in_both(tmp_path: Path) -> None:
    first, second = twice(tmp_path)
    loop = begin(first, second)
    proposals = propose(loop).table("proposals")
    for _, both in proposals.groupby("rank"):
        assert sorted(both["project"]) == [0, 1]
        assert len(set(both.geometry.to_wkb())) == 1
    assert proposals.index.is_unique
    assert proposals["area_mm2"].sum() / 2 <= 0.02


def twice(tmp_path: Path) -> tuple[Project, Project]:
    """Return two projects of the same slides, of patients that are all to train on but two."""
    from qupath_ext.project import create_project

    first = make_project(tmp_path / "anna")
    second = create_project(tmp_path / "berta" / "project")
    for entry in first.entries:
        second.add_image(entry.slide_path, metadata=entry.metadata)
    return first, second


def test_disagreement_needs_two_models_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two models that say the same do not disagree; one model is asked how certain it is."""
    project = make_project(tmp_path / "one", ["A", "B"])
    settings = LoopSettings("tissue", ("Tumor",), strategy="bald", region_um=96, budget_mm2=0.01)
    scores = {}
    for name, models in (("alone", [FakeTumour()]), ("alike", [FakeTumour()] * 2)):
        use(monkeypatch, *models)
        loop = start_loop([project], name, settings, split=Split({"A": "train", "B": "test"}))
        said: list[str] = []
        one = propose_round(loop, ProposeOptions(), said.append)
        scores[one.record["proposed"]["strategy"]] = one.table("proposals")["score"].max()
        assert any("cannot disagree" in line for line in said) == (name == "alone")
    assert set(scores) == {"entropy", "bald"}
    assert scores["bald"] == pytest.approx(0, abs=1e-3)


def test_glass_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, FakeTumour())
    project = make_project(tmp_path / "one", ["A"])
    glass = tmp_path / "glass.png"
    Image.new("RGB", (800, 600), (245, 245, 245)).save(glass)
    project.add_image(glass, mpp=MPP, metadata={"Patient": "G"})
    settings = LoopSettings("tissue", ("Tumor",), strategy="entropy+rarity", region_um=96, budget_mm2=0.02)
    loop = start_loop([project], "first", settings, split=Split({"A": "train", "G": "train"}))
    said: list[str] = []
    one = propose_round(loop, ProposeOptions(), said.append)
    assert set(one.table("proposals")["image"]) == {"A.tif"}
    assert any("glass.png: no tissue" in line for line in said)


def test_one_process_at_a_time(tmp_path: Path) -> None:
    loop = begin(make_project(tmp_path / "one", "AB"))
    with loop.held(), pytest.raises(ProjectError, match="worked on by another"), reopened(loop).held():
        pass
    with reopened(loop).held():
        pass


@pytest.mark.usefixtures("unfilled")
def test_features_of_an_encoder_say_what_is_diverse(tmp_path: Path) -> None:
    """To the encoder all tiles are alike but those in the bottom right corner of one slide: one region lies there."""
    project = make_project(tmp_path / "one", ["A", "B"])
    loop = start_loop(
        [project],
        "first",
        LoopSettings("cells", CELLS, region_um=64, budget_mm2=0.0083),
        split=Split({"A": "train", "B": "train"}),
    )
    corners = np.array([(x, y) for x in range(0, WIDTH, 50) for y in range(0, HEIGHT, 50)])
    far = (corners >= (600, 400)).all(axis=1)
    (tmp_path / "bags").mkdir()
    for name in ("A", "B"):
        features = np.ones((len(corners), 4), dtype=np.float32)
        features[far & (name == "B"), 2] = 9
        write_bag(tmp_path / "bags" / f"{name}.h5", features, corners, {"patch_size": 50, "patch_size_level0": 50})
    one = propose(loop, features=tmp_path / "bags")
    proposals = one.table("proposals")
    assert len(proposals) == 2
    there = proposals.geometry.intersects(shapely.box(600, 400, WIDTH, HEIGHT)) & (proposals["image"] == "B.tif")
    assert there.sum() == 1
    (tmp_path / "bags" / "B.h5").unlink()
    rollback(reopened(loop), 0, hush)
    with pytest.raises(ConfigError, match="none of 1 feature files"):
        propose(reopened(loop), features=tmp_path / "bags")
