"""What a person answers to proposals: what is read of it, what is truth then, and what two persons disagree on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import shapely
from active_projects import CELLS, Region, drawn, first_round, hush, trained, two_persons

from pyhisto.objects import concat_objects, make_objects
from qupath_ext.active.collect import collect_round
from qupath_ext.active.loop import Loop, find_loop
from qupath_ext.active.propose import ProposeOptions, propose_round
from qupath_ext.active.truth import truth_changes
from qupath_ext.errors import ProjectError

POSITIVE, NEGATIVE = CELLS


@pytest.fixture(params=["cells"])
def loop(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> Loop:
    """A loop whose first round is in the images."""
    return first_round(request.param, tmp_path, tmp_path_factory, monkeypatch)


def reopened(loop: Loop) -> Loop:
    return find_loop(loop.paths[0])


def collect(loop: Loop, **options: Any) -> Any:
    return collect_round(reopened(loop), hush, **options)


# ---------------------------------------------------------------------- truth
def test_what_is_proposed_is_not_truth_until_the_region_is_done(loop: Loop) -> None:
    region = Region(loop)
    assert len(region.truth()) == 0
    region.answer()
    assert sorted(region.truth()["classification"]) == ["Training", NEGATIVE, POSITIVE]
    assert sorted(region.truth(training="Here")["classification"]) == ["Here", NEGATIVE, POSITIVE]


def test_what_a_person_changed_in_an_open_region_waits(loop: Loop) -> None:
    """A point that was moved makes all points of its class the person's; the others of them nobody looked at yet."""
    region = Region(loop)
    region.change(geometry={region.of(POSITIVE): region.at((21, 20), (40, 20), (60, 20))})
    assert len(region.truth()) == 0
    region.answer()
    assert len(region.truth()) == 3


def test_points_that_went_into_an_open_region_wait_while_others_of_the_object_count(loop: Loop) -> None:
    """In QuPath the points tool adds to the selected object, wherever the new points are."""
    region = Region(loop)
    beyond = (region.x + 500, region.y + 20)
    points = shapely.MultiPoint([*region.at((20, 20)).geoms, beyond])
    region.change(geometry={region.of(POSITIVE): points})
    region.answer()
    truth = region.truth()
    found = shapely.get_coordinates(truth.geometry[truth["classification"] == POSITIVE].to_numpy())
    assert found.tolist() == [[region.x + 20, region.y + 20]]


@pytest.mark.parametrize("loop", ["tissue"], indirect=True)
def test_what_only_touches_a_done_region_waits(loop: Loop) -> None:
    """Regions may touch each other: what a person changed in the one that is open is not of the other."""
    region = Region(loop)
    first, second = region.inside.index
    right = region.row.geometry.bounds[2]
    region.change(geometry={first: shapely.box(right - 0.4, region.y, right + 60, region.y + 60)})
    region.answer()
    assert set(region.truth().index) == {region.id, second}
    region.change(geometry={first: shapely.box(right - 20, region.y, right + 60, region.y + 60)})
    assert set(region.truth().index) == {region.id, first, second}


def test_a_rejected_region_hides_what_it_covers(loop: Loop) -> None:
    region = Region(loop)
    region.answer("Rejected*")
    assert region.truth()["classification"].tolist() == ["Rejected*"]


def test_what_a_person_drew_elsewhere_is_truth_as_ever(loop: Loop) -> None:
    region = Region(loop)
    region.change(add=drawn(shapely.Point(5, 5), POSITIVE))
    assert region.truth()["classification"].tolist() == [POSITIVE]


def test_detections_in_a_done_region_count_only_where_the_study_says_so(loop: Loop) -> None:
    region = Region(loop)
    cell = make_objects([region.at((80, 80)).buffer(4)], object_type="detection", classification=POSITIVE)
    region.change(add=cell)
    region.answer()
    assert "detection" not in set(region.truth()["object_type"])
    assert "detection" in set(region.truth(detections=True)["object_type"])


# ---------------------------------------------------------------------- collecting
def test_every_kind_of_correction_is_collected_with_its_weight(loop: Loop) -> None:
    region = Region(loop)
    region.change(
        geometry={
            region.of(POSITIVE): region.at((20, 20), (44, 23), (20, 60)),  # (60, 20) deleted, (40, 20) moved 2.5 µm
            region.of(NEGATIVE): region.at((40, 60)),  # (20, 60) went to the other class
        },
        add=drawn(region.at((90, 90)), NEGATIVE),
    )
    region.answer()
    Region(loop, 2).answer("Rejected*")
    one = collect(loop)
    assert one.state == "collected"
    rows = one.table("corrections")
    assert set(rows["region"]) == {region.id}
    said = {
        (p.x - region.x, p.y - region.y): (kind, weight)
        for p, kind, weight in zip(rows.geometry, rows["kind"], rows["weight"], strict=True)
    }
    assert said == {
        (20, 20): ("confirmed", 1.0),
        (40, 60): ("confirmed", 1.0),
        (44, 23): ("moved", 3.0),
        (20, 60): ("reclassified", 3.0),
        (60, 20): ("deleted", 3.0),
        (90, 90): ("added", 3.0),
    }
    collected = one.record["collected"]
    assert collected["totals"] == {"confirmed": 2, "moved": 1, "reclassified": 1, "deleted": 1, "added": 1}
    assert {found["answer"] for found in collected["regions"].values()} == {"done", "rejected"}
    weights = truth_changes(reopened(loop), region.source).weights
    assert len(weights) == 4
    heavy = shapely.union_all([area for area, _ in weights])
    assert all(heavy.contains(shapely.Point(region.x + x, region.y + y)) for x, y in [(44, 23), (60, 20), (90, 90)])
    assert not heavy.contains(shapely.Point(region.x + 40, region.y + 60 + 17))  # 8 µm are 16 px


@pytest.mark.parametrize("loop", ["tissue"], indirect=True)
def test_changed_tissue_weighs_more_where_it_changed(loop: Loop) -> None:
    region = Region(loop)
    first = next(id_ for id_, shape in region.inside.geometry.items() if shape.bounds[0] == region.x)
    wider = shapely.box(region.x, region.y, region.x + 80, region.y + 60)
    region.change(geometry={first: wider}, add=drawn(shapely.box(0, 0, 5, 5), "Tumor"))
    region.answer()
    one = collect(loop)
    rows = one.table("corrections").set_index("kind")
    assert rows.geometry["moved"].equals(shapely.box(region.x + 60, region.y, region.x + 80, region.y + 60))
    assert rows.geometry["confirmed"].area == pytest.approx(3600)
    assert one.record["collected"]["totals"]["added"] == 0, "it lies outside of the region"
    ((area, weight),) = truth_changes(reopened(loop), region.source).weights
    assert (area.area, weight) == (pytest.approx(1200), 3.0)
    assert sorted(region.truth()["classification"]) == ["Training", "Tumor", "Tumor", "Tumor"]


def test_collecting_again_gives_the_same_and_takes_in_what_came_since(loop: Loop) -> None:
    Region(loop).answer()
    first = collect(loop, minutes=4.0)
    assert {one["answer"] for one in first.record["collected"]["regions"].values()} == {"done", "open"}
    before = (first.folder / "corrections.parquet").read_bytes()
    assert (collect(loop).folder / "corrections.parquet").read_bytes() == before
    Region(loop, 2).answer()
    again = collect(loop)
    assert again.record["collected"]["totals"]["confirmed"] == 10
    assert again.record["collected"]["minutes"] == 4.0


def test_a_region_that_was_left_open_is_collected_by_a_later_round(loop: Loop) -> None:
    Region(loop).answer()
    collect(loop)
    trained(loop, 1)
    propose_round(reopened(loop), ProposeOptions(), hush)
    Region(loop, 2).answer()
    second = collect(loop)
    regions = second.record["collected"]["regions"]
    assert Region(loop).id not in regions
    assert (regions[Region(loop, 2).id]["round"], regions[Region(loop, 2).id]["answer"]) == (1, "done")
    assert second.record["collected"]["totals"]["confirmed"] == 5


def test_a_region_that_a_person_deleted_is_noted(loop: Loop) -> None:
    region = Region(loop)
    region.change(remove=[region.id])
    Region(loop, 2).answer()
    regions = collect(loop).record["collected"]["regions"]
    assert regions[region.id]["answer"] == "gone"


def test_nothing_is_collected_where_nothing_is_done(loop: Loop) -> None:
    with pytest.raises(ProjectError, match="none of 2 regions is done"):
        collect(loop)
    assert loop.round(1).state == "proposed"


# ---------------------------------------------------------------------- two persons
@pytest.fixture
def both(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Loop:
    """A loop over the projects of Anna and Berta, who have the same slides."""
    return reopened(two_persons(tmp_path, monkeypatch))


def test_two_persons_are_compared_and_neither_is_learnt_from(both: Loop) -> None:
    """Anna leaves all 5; Berta deletes one and calls one negative: 4 of 5 and 4 cells match."""
    anna, berta = Region(both, project=0), Region(both, project=1)
    berta.change(
        geometry={
            berta.of(POSITIVE): berta.at((20, 20)),
            berta.of(NEGATIVE): berta.at((20, 60), (40, 60), (40, 20)),
        }
    )
    anna.answer()
    berta.answer()
    one = collect(both)
    (dispute,) = one.record["collected"]["disagreements"]
    assert dispute["chosen"] is None
    assert [person["who"] for person in dispute["people"]] == ["project", "berta"]
    assert dispute["f1"]["all"] == pytest.approx(8 / 9, abs=1e-4)
    # positive: 1 of 3 and 1; negative: 2 of 2 and 3
    assert dispute["f1"][POSITIVE] == pytest.approx(2 / 4)
    assert dispute["f1"][NEGATIVE] == pytest.approx(4 / 5)
    # of 4 pairs 3 agree; by chance (2 x 1 + 2 x 3) / 16 = 0.5
    assert dispute["kappa"] == pytest.approx(0.5)
    assert sum(one.record["collected"]["totals"].values()) == 0
    for region in (anna, berta):
        changes = truth_changes(reopened(both), region.source)
        assert [shape.equals(region.row.geometry) for shape in changes.hidden] == [True]
        assert changes.weights == ()


def test_the_one_who_is_chosen_counts(both: Loop) -> None:
    anna, berta = Region(both, project=0), Region(both, project=1)
    berta.change(geometry={berta.of(POSITIVE): berta.at((20, 20), (40, 20))})
    anna.answer()
    berta.answer()
    one = collect(both, prefer="berta")
    assert one.record["collected"]["totals"]["deleted"] == 1
    assert len(truth_changes(reopened(both), anna.source).hidden) == 1
    changes = truth_changes(reopened(both), berta.source)
    assert (len(changes.hidden), len(changes.weights)) == (0, 1)
    with pytest.raises(ProjectError, match="nobody called 'carla'"):
        collect(both, prefer="carla")


def test_two_persons_in_one_image_are_told_apart_by_metadata(loop: Loop) -> None:
    """Berta went through the region as well: hers has her name, as have her points."""
    region = Region(loop)
    region.change(metadata={region.id: {"annotator": "anna"}})
    name = {"annotator": "berta"}
    hers = drawn(region.row.geometry, "Done*", metadata=name)
    points = drawn(region.at((20, 20), (40, 20), (60, 20), (80, 20)), POSITIVE, metadata=name)
    region.change(add=concat_objects([hers, points]))
    region.answer()
    one = collect(loop)
    (dispute,) = one.record["collected"]["disagreements"]
    assert [person["who"] for person in dispute["people"]] == ["anna", "berta"]
    assert dispute["f1"]["all"] == pytest.approx(6 / 9, abs=1e-4)  # 3 of 5 and 4
    assert len(truth_changes(reopened(loop), region.source).hidden) == 2
    collect(loop, prefer="berta")
    changes = truth_changes(reopened(loop), region.source)
    assert changes.hidden == ()
    assert set(changes.without) == {region.id, *region.inside.index}
    collect(loop, prefer="anna")
    assert set(truth_changes(reopened(loop), region.source).without) == {*hers.index, *points.index}


def test_agreement_of_areas_by_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Anna: 2 x 3600 px²; Berta: one of them; of 192 x 192 px. Dice 2 x 3600 / (7200 + 3600)."""
    loop = two_persons(tmp_path, monkeypatch, target="tissue")
    anna, berta = Region(loop, project=0), Region(loop, project=1)
    berta.change(remove=[berta.inside.index[0]])
    anna.answer()
    berta.answer()
    (dispute,) = collect(loop).record["collected"]["disagreements"]
    assert dispute["dice"]["Tumor"] == pytest.approx(2 / 3, abs=1e-4)
    whole = 192.0**2
    a, b = 7200 / whole, 3600 / whole
    chance = a * b + (1 - a) * (1 - b)
    assert dispute["kappa"] == pytest.approx((1 - 3600 / whole - chance) / (1 - chance), abs=1e-4)


def test_projects_are_not_needed_twice(both: Loop) -> None:
    """Only one of the two answered: there is nothing to disagree on."""
    Region(both, project=1).answer()
    one = collect(both)
    assert one.record["collected"]["disagreements"] == []
    assert one.record["collected"]["totals"]["confirmed"] == 5
