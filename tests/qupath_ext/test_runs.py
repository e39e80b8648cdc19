"""What a run wrote, what is still untouched, and what an interruption leaves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pytest
import shapely

from pyhisto.objects import empty_objects, load_objects, make_objects
from qupath_ext.errors import FormatError
from qupath_ext.project import Project, create_project
from qupath_ext.runs import Run, earlier_objects, list_runs, start_run, untouched

RING = [(1000.3, 2000.7), (1020.1, 2001.2), (1019.6, 2018.9), (1003.4, 2016.1)]
HOLED = shapely.Polygon(
    [(0, 0), (50, 0), (50, 40), (0, 40)], [[(10, 10), (20, 10), (20, 20)], [(30, 10), (40, 10), (40, 20)]]
)


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return create_project(tmp_path / "project")


def one(geometry: Any, *, id_: str = "a", **columns: Any) -> gpd.GeoDataFrame:
    columns = {"classification": "Tumor", "name": "core", "locked": True, **columns}
    return make_objects([geometry], object_type="annotation", ids=[id_], **columns)


def float32(geometry: Any) -> Any:
    return shapely.transform(geometry, lambda xy: xy.astype(np.float32).astype(np.float64))


def start(project: Project, config: dict[str, Any] | None = None, analysis: str = "ki67") -> Run:
    return start_run(project, analysis, config or {"threshold": 0.1}, {"cells": "0" * 64})


@pytest.mark.parametrize(
    "geometry",
    [
        pytest.param(float32(shapely.Polygon(RING)), id="rounded to float32"),
        pytest.param(shapely.Polygon(RING[2:] + RING[:2]), id="starts at another vertex"),
        pytest.param(shapely.Polygon(RING[::-1]), id="turns the other way"),
        pytest.param(shapely.MultiPolygon([shapely.Polygon(RING)]), id="stored as an area of one part"),
        pytest.param(
            shapely.Polygon([*RING[:1], (1010.2, 2000.95), *RING[1:]]), id="with a vertex more on a straight side"
        ),
    ],
)
def test_what_saving_does_to_a_shape_is_no_change(geometry: Any) -> None:
    assert untouched(one(shapely.Polygon(RING)), one(geometry)) == ["a"]


def test_holes_in_another_order_are_no_change() -> None:
    other = shapely.Polygon(HOLED.exterior, HOLED.interiors[::-1])
    assert untouched(one(HOLED), one(other)) == ["a"]


@pytest.mark.parametrize(
    "present",
    [
        pytest.param(one(shapely.affinity.translate(shapely.Polygon(RING), 1, 0)), id="moved by 1 px"),
        pytest.param(one(shapely.Polygon([(1001.3, 2000.7), *RING[1:]])), id="one vertex moved by 1 px"),
        pytest.param(one(shapely.Polygon(RING[:3])), id="one vertex less"),
        pytest.param(one(shapely.Polygon(RING), name="mine"), id="renamed"),
        pytest.param(one(shapely.Polygon(RING), name=None), id="name taken away"),
        pytest.param(one(shapely.Polygon(RING), classification="Stroma"), id="reclassified"),
        pytest.param(one(shapely.Polygon(RING), classification=None), id="class taken away"),
        pytest.param(one(shapely.Polygon(RING), locked=False), id="unlocked"),
    ],
)
def test_what_a_person_does_is_a_change(present: gpd.GeoDataFrame) -> None:
    assert untouched(one(shapely.Polygon(RING)), present) == []


def test_a_filled_hole_is_a_change() -> None:
    assert untouched(one(HOLED), one(shapely.Polygon(HOLED.exterior, HOLED.interiors[:1]))) == []


def test_unclassified_and_unnamed_stays_untouched() -> None:
    bare = one(HOLED, name=None, classification=None)
    assert untouched(bare, bare.copy()) == ["a"]


def test_only_objects_that_are_there_are_named() -> None:
    written = gpd.GeoDataFrame(
        make_objects(
            [HOLED, HOLED],
            object_type="annotation",
            ids=["gone", "a"],
            classification="Tumor",
            name="core",
            locked=True,
        )
    )
    present = make_objects([HOLED, HOLED], object_type="annotation", ids=["by hand", "a"], classification="Tumor")
    present["name"], present["locked"] = "core", True
    assert untouched(written, present) == ["a"]
    assert untouched(written, empty_objects()) == []


def test_a_finished_run_is_not_gone_on_with(project: Project) -> None:
    run = start(project)
    assert start(project).id == run.id
    run.finish()
    assert start(project).id != run.id


@pytest.mark.parametrize("other", [{"threshold": 0.2}, {"threshold": 0.1, "region": "tissue"}])
def test_other_settings_are_another_run(project: Project, other: dict[str, Any]) -> None:
    assert start(project).id != start(project, other).id


def test_other_weights_are_another_run(project: Project) -> None:
    assert start(project).id != start_run(project, "ki67", {"threshold": 0.1}, {"cells": "1" * 64}).id


def test_the_record_says_with_what_it_was_made(project: Project) -> None:
    run = start(project)
    run.fail_image("3", "ki67", "slide x does not exist")
    run.finish()
    record = json.loads((run.folder / "run.json").read_text("utf-8"))
    assert record["config"] == {"threshold": 0.1}
    assert record["models"] == {"cells": "0" * 64}
    assert record["status"] == "done"
    assert record["images"]["3"] == {"status": "failed", "stage": "ki67", "error": "slide x does not exist"}
    assert {"python", "torch", "qupath-ext"} <= set(record["versions"])
    assert not run.is_done("3")


def test_objects_of_an_interrupted_attempt_stay_known_until_the_image_is_finished(project: Project) -> None:
    run = start(project)
    run.plan("1", one(HOLED, id_="first"))
    run = start(project)
    run.plan("1", one(HOLED, id_="second"))
    known = earlier_objects(project, "ki67", "1")
    assert known is not None
    assert set(known.index) == {"first", "second"}
    run.finish_image("1", {})
    known = earlier_objects(project, "ki67", "1")
    assert known is not None
    assert list(known.index) == ["second"]
    assert list(load_objects(run.objects_file("1")).index) == ["second"]


def test_earlier_objects_are_those_of_the_image_and_the_analysis(project: Project) -> None:
    run = start(project)
    run.plan("1", one(HOLED, id_="a", name="old"))
    run.plan("11", one(HOLED, id_="of image 11"))
    run.finish()
    other = start(project, analysis="tumour")
    other.plan("1", one(HOLED, id_="of another analysis"))
    later = start(project, {"threshold": 0.3})
    later.plan("1", one(HOLED, id_="a", name="new"))
    found = earlier_objects(project, "ki67", "1")
    assert found is not None
    assert dict(found["name"]) == {"a": "new"}
    assert earlier_objects(project, "ki67", "2") is None


def test_a_damaged_record_is_named(project: Project) -> None:
    run = start(project)
    (run.folder / "run.json").write_text("{", "utf-8")
    with pytest.raises(FormatError, match=r"run\.json is damaged"):
        list(list_runs(project))
