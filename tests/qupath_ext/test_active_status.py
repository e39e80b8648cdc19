"""Where a loop stands: text and page, of rounds whose figures are made by hand."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shapely
from active_projects import CELLS, begin, hush, make_project, nuclei, person

from pyhisto.objects import make_objects
from qupath_ext.active.collect import collect_round
from qupath_ext.active.cost import answered, loop_cost
from qupath_ext.active.loop import Loop
from qupath_ext.active.page import write_status_page
from qupath_ext.active.propose import ProposeOptions, propose_round
from qupath_ext.active.status import loop_status, status_lines
from qupath_ext.errors import FormatError
from qupath_ext.runs.record import write_json


@pytest.fixture
def loop(tmp_path: Path) -> Loop:
    return begin(make_project(tmp_path / "first"))


def figure(*scores: float, metric: str = "F1") -> dict[str, Any]:
    """Return the figures of patients with 50 true and 50 found cells each, of which a share is right."""
    return {
        "metric": metric,
        "value": float(np.mean(scores)),
        "low": min(scores) if len(scores) > 1 else None,
        "high": max(scores) if len(scores) > 1 else None,
        "patients": len(scores),
        "method": "by hand",
        "classes": {},
        "images": [
            {"image": f"slide {n}", "patient": f"P{n}", "by_class": {name: [50 * s, 50, 50] for name in CELLS}}
            for n, s in enumerate(scores)
        ],
    }


def trained(loop: Loop, mm2: float, minutes: float | None, *scores: float, test: float = 0.4) -> None:
    """Add a round as collecting and training leave it, with figures of the patients to validate on."""
    one = loop.begin_round()
    regions = {
        f"{one.number}-{n}": {"answer": answer, "area_mm2": mm2, "marked": ""}
        for n, answer in enumerate(["done", "rejected"])
    }
    totals = {"confirmed": 5, "moved": 2, "reclassified": 1, "deleted": 0, "added": 3}
    one.save(
        proposed={"regions": 2, "area_mm2": 2 * mm2},
        collected={"regions": regions, "minutes": minutes, "totals": totals},
    )
    added = {"regions": 1, "area_mm2": mm2, "minutes": minutes, "objects": totals}
    figures = {"validation": figure(*scores) if scores else None, "test": figure(test)}
    model = {"path": "model", "sha256": "0" * 64}
    write_json(
        one.folder / "training.json", {"model": model, "classes": list(CELLS), "added": added, "figures": figures}
    )


def test_a_loop_that_has_just_begun(loop: Loop) -> None:
    """The budget of 0.02 mm² is 2.17 regions of 96 µm: 0.5 + 0.009216 * (15 + 0.05 * 200) = 0.73 minutes each."""
    status = loop_status(loop)
    assert (status.learnt, status.judged, status.advice) == ((), (), "go on")
    assert status.next_minutes == pytest.approx(0.02 / 0.009216 * 0.7304)
    lines = status_lines(loop)
    assert lines[0] == "loop first: cells, Tumor: Positive, Tumor: Negative; entropy+diversity"
    assert lines[1] == "patients: 2 train, 1 validation, 1 test (frozen); 0 rounds"
    assert "a guess until a round was timed" in lines[2]
    assert lines[-2:] == ["no curve yet: it needs 3 rounds with figures", "advice: go on"]


def test_the_curve_and_what_comes_next(loop: Loop) -> None:
    """0.9 - 0.4 / mm² at 1, 2 and 4 mm²; the round that is open has 4 mm² in 8 regions, so 0.85 is expected."""
    for mm2, score in ((1.0, 0.5), (1.0, 0.7), (2.0, 0.8)):
        trained(loop, mm2, 10 * mm2, score, score)
    one = loop.begin_round()
    one.save(proposed={"regions": 8, "area_mm2": 4.0})
    status = loop_status(loop)
    minutes, area = status.axes
    assert (minutes.name, minutes.spent, area.name, area.spent, area.after) == (
        *("minutes", (10.0, 20.0, 40.0)),
        *("mm²", (1.0, 2.0, 4.0), 8.0),
    )
    assert status.next_mm2 == 4.0
    assert status.next_minutes == pytest.approx(8 * loop_cost(loop).minutes(0.5))
    assert minutes.after == pytest.approx(40 + status.next_minutes)
    assert area.expected is not None
    assert area.expected.gain == pytest.approx(0.05, abs=1e-6)
    lines = status_lines(loop)
    assert lines[2] == (
        "round 1: 1 regions, 1 mm², 10 min; 5 confirmed, 2 moved, 1 reclassified, 3 added; "
        "validation F1 0.500 (0.500 to 0.500), test F1 0.400"
    )
    why = "no interval from fewer than 3 patients"
    assert f"expected at 8 mm²: F1 0.800 -> 0.850, +0.050 ({why}); a round is worth it from +0.01" in lines
    assert lines[-1] == "advice: go on"


def test_when_it_is_enough(loop: Loop) -> None:
    """Three patients alike, 0.8 after every round: nothing more is to be expected, and nothing says otherwise."""
    for _ in range(3):
        trained(loop, 1.0, 5.0, 0.8, 0.8, 0.8)
    assert "F1 0.800 -> 0.800, +0.000 (+0.000 to +0.000)" in status_lines(loop)[-2]
    assert status_lines(loop)[-1] == "advice: stop: not even the upper limit of the gain is worth a round"


def test_a_round_that_went_without_an_image_says_so(loop: Loop) -> None:
    trained(loop, 1.0, 5.0, 0.8)
    path = loop.rounds()[0].folder / "training.json"
    left_out = {"project": 0, "entry_id": "1", "image": "A.tif", "why": "it is missing"}
    write_json(path, {**json.loads(path.read_text("utf-8")), "left_out": [left_out]})
    assert status_lines(loop)[2].endswith("test F1 0.400; without 1 images that could not be read")


def test_two_patients_are_too_few_to_stop_by(loop: Loop) -> None:
    for _ in range(5):
        trained(loop, 1.0, 5.0, 0.8, 0.8)
    assert "(no interval from fewer than 3 patients)" in status_lines(loop)[-2]
    assert status_lines(loop)[-1].startswith("advice: little to gain, but that is not sure")


def test_a_round_that_was_not_timed_leaves_the_area(loop: Loop) -> None:
    for minutes, score in ((5.0, 0.5), (None, 0.6), (5.0, 0.65)):
        trained(loop, 1.0, minutes, score)
    assert [axis.name for axis in loop_status(loop).axes] == ["mm²"]
    assert loop_status(loop).cost.timed == 2
    assert loop_status(loop).cost.corrections_per_mm2 == 6.0


def test_images_that_not_all_rounds_have_count_in_no_curve(loop: Loop) -> None:
    """The second patient, who learns nothing, was annotated after the first round: the curve is that of the first."""
    trained(loop, 1.0, None, 0.5)
    trained(loop, 1.0, None, 0.7, 0.1)
    trained(loop, 2.0, None, 0.8, 0.1)
    expected = loop_status(loop).axes[0].expected
    assert expected is not None
    assert expected.now == pytest.approx(0.8, abs=1e-6)


def test_without_labels_to_validate_on(loop: Loop, tmp_path: Path) -> None:
    for _ in range(3):
        trained(loop, 1.0, 5.0)
    assert "no figures: nothing is labelled on the patients to validate on" in status_lines(loop)[-2]
    write_status_page(loop, tmp_path / "page.html")
    assert "no figure yet" in (tmp_path / "page.html").read_text("utf-8")


def test_the_time_that_marks_tell(loop: Loop) -> None:
    """One region marked 3 minutes after the other, and nobody said how long it took: 3 minutes each."""
    propose_round(loop, ProposeOptions(), hush)
    for number, (region, entry_id) in enumerate(loop.round(1).table("proposals")["entry_id"].items()):
        answer = ("done", "rejected")[number]
        marked = {region: {f"qupath-ext: {answer} at": f"2026-01-01T10:0{3 * number}:00Z"}}
        person(loop.projects[0], entry_id, classification={region: f"{answer.title()}*"}, metadata=marked)
    added = answered(collect_round(loop, hush))
    assert (added["regions"], added["minutes"]) == (1, 6.0)
    assert answered(collect_round(loop, hush, minutes=4.0))["minutes"] == 4.0


def test_a_damaged_record_is_named(loop: Loop) -> None:
    trained(loop, 1.0, 5.0, 0.8)
    path = loop.rounds()[0].folder / "training.json"
    path.write_text("{")
    with pytest.raises(FormatError, match=r"training\.json is damaged"):
        status_lines(loop)


def test_the_page(loop: Loop, tmp_path: Path) -> None:
    """A region with a correction, before and after; the page loads nothing from elsewhere."""
    propose_round(loop, ProposeOptions(), hush)
    proposals = loop.round(1).table("proposals").sort_values("rank")
    region, entry_id = proposals.index[0], proposals["entry_id"].iloc[0]
    here = [centre for centre in nuclei() if proposals.geometry[region].contains(shapely.Point(centre))]
    added = make_objects([shapely.MultiPoint(here)], object_type="annotation", classification=CELLS[0])
    person(loop.projects[0], entry_id, add=added, classification={region: "Done*"})
    one = collect_round(loop, hush, minutes=6.0)
    write_json(
        one.folder / "training.json",
        {
            "model": {"path": "model", "sha256": "0" * 64},
            "classes": list(CELLS),
            "added": {"regions": 1, "area_mm2": 0.009, "minutes": 6.0, "objects": one.record["collected"]["totals"]},
            "figures": {"validation": figure(0.5, 0.52), "test": None},
        },
    )
    for minutes, scores in ((8.0, (0.66, 0.71)), (9.0, (0.72, 0.76))):
        trained(loop, 0.01, minutes, *scores)
    page = tmp_path / "page.html"
    write_status_page(loop, page)
    text = page.read_text("utf-8")
    assert text.count("<svg") == 2
    assert text.count('<img src="data:image/') == 2 * len(proposals)
    assert not re.search(r"""(src|href)=["'](?!data:)""", text)
    assert f"Round 1 #1 on {proposals['image'].iloc[0]}" in text
    assert re.search(r"Score [\d.]+, diversity, 0\.00922 mm²; done: \d+ ", text)
    assert "0.740" in text
    assert not list(tmp_path.glob(".page*"))
