"""What is an edit by a person, and what is only a file that QuPath saved again."""

from __future__ import annotations

from typing import Any

import geopandas as gpd
import numpy as np
import pytest
import shapely

from pyhisto.objects import empty_objects, make_objects
from qupath_ext.runs.compare import CHANGES, compare, same_geometry

RING = [(1000.3, 2000.7), (1020.1, 2001.2), (1019.6, 2018.9), (1003.4, 2016.1)]
HOLED = shapely.Polygon(
    [(0, 0), (50, 0), (50, 40), (0, 40)], [[(10, 10), (20, 10), (20, 20)], [(30, 10), (40, 10), (40, 20)]]
)


def one(geometry: Any, *, id_: str = "a", **columns: Any) -> gpd.GeoDataFrame:
    columns = {"classification": "Tumor", "name": "core", "locked": True, **columns}
    return make_objects([geometry], object_type="annotation", ids=[id_], **columns)


def float32(geometry: Any) -> Any:
    return shapely.transform(geometry, lambda xy: xy.astype(np.float32).astype(np.float64))


def changes(written: gpd.GeoDataFrame, present: gpd.GeoDataFrame) -> dict[str, list[str]]:
    """Return what compare says of each object, as names."""
    found = compare(written, present)
    return {str(i): [name for name in found.columns if found.at[i, name]] for i in found.index}


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
    assert changes(one(shapely.Polygon(RING)), one(geometry)) == {"a": []}


def test_holes_in_another_order_are_no_change() -> None:
    other = shapely.Polygon(HOLED.exterior, HOLED.interiors[::-1])
    assert changes(one(HOLED), one(other)) == {"a": []}


@pytest.mark.parametrize(
    ("present", "change"),
    [
        pytest.param(one(shapely.affinity.translate(shapely.Polygon(RING), 1, 0)), "reshaped", id="moved by 1 px"),
        pytest.param(one(shapely.Polygon([(1001.3, 2000.7), *RING[1:]])), "reshaped", id="one vertex moved by 1 px"),
        pytest.param(one(shapely.Polygon(RING[:3])), "reshaped", id="one vertex less"),
        pytest.param(one(shapely.Polygon(RING), name="mine"), "renamed", id="renamed"),
        pytest.param(one(shapely.Polygon(RING), name=None), "renamed", id="name taken away"),
        pytest.param(one(shapely.Polygon(RING), classification="Stroma"), "reclassified", id="reclassified"),
        pytest.param(one(shapely.Polygon(RING), classification=None), "reclassified", id="class taken away"),
        pytest.param(one(shapely.Polygon(RING), locked=False), "relocked", id="unlocked"),
        pytest.param(one(shapely.Polygon(RING), parent_id="b"), "reparented", id="put under another"),
    ],
)
def test_what_a_person_does_is_a_change(present: gpd.GeoDataFrame, change: str) -> None:
    assert changes(one(shapely.Polygon(RING)), present) == {"a": [change]}


def test_a_filled_hole_is_a_change() -> None:
    assert changes(one(HOLED), one(shapely.Polygon(HOLED.exterior, HOLED.interiors[:1]))) == {"a": ["reshaped"]}


def test_a_moved_nucleus_is_a_change() -> None:
    def cell(nucleus: Any) -> gpd.GeoDataFrame:
        return make_objects([shapely.box(0, 0, 20, 20)], object_type="cell", nucleus=[nucleus], ids=["a"])

    assert changes(cell(shapely.box(5, 5, 9, 9)), cell(shapely.box(5, 5, 9, 9.04))) == {"a": []}
    assert changes(cell(shapely.box(5, 5, 9, 9)), cell(shapely.box(5, 5, 9, 9.5))) == {"a": ["reshaped"]}
    assert changes(cell(shapely.box(5, 5, 9, 9)), cell(None)) == {"a": ["reshaped"]}
    assert changes(cell(None), cell(None)) == {"a": []}


def test_several_changes_are_all_named() -> None:
    present = one(shapely.Polygon(RING[:3]), classification="Stroma", locked=False)
    assert changes(one(shapely.Polygon(RING)), present) == {"a": ["reshaped", "reclassified", "relocked"]}


def test_the_child_of_a_deleted_parent_was_not_moved_by_a_person() -> None:
    written = make_objects([HOLED, shapely.box(1, 1, 3, 3)], object_type="annotation", ids=["p", "c"])
    written["parent_id"] = [None, "p"]
    left = written.loc[["c"]].assign(parent_id=None)
    assert changes(written, left) == {"p": ["deleted"], "c": []}
    moved = written.assign(parent_id=[None, None])
    assert changes(written, moved) == {"p": [], "c": ["reparented"]}


def test_unclassified_and_unnamed_stays_untouched() -> None:
    bare = one(HOLED, name=None, classification=None)
    assert changes(bare, bare.copy()) == {"a": []}


def test_only_what_was_written_is_looked_at() -> None:
    written = make_objects([HOLED, HOLED], object_type="annotation", ids=["gone", "a"], classification="Tumor")
    present = make_objects([HOLED, HOLED], object_type="annotation", ids=["by hand", "a"], classification="Tumor")
    assert changes(written, present) == {"gone": ["deleted"], "a": []}
    assert changes(written, empty_objects()) == {"gone": ["deleted"], "a": ["deleted"]}
    assert changes(empty_objects(), present) == {}


def test_thousands_at_once_are_told_apart_one_by_one() -> None:
    rng = np.random.default_rng(5)
    corners = rng.uniform(0, 50_000, (4000, 2))
    boxes = shapely.box(*corners.T, *(corners + rng.uniform(5, 40, (4000, 2))).T)
    kind = rng.integers(0, 3, 4000)  # 0: as saved again, 1: turned round, 2: moved
    turned = shapely.polygons([np.roll(shapely.get_coordinates(b)[:-1], 1, axis=0)[::-1] for b in boxes])
    shifted = shapely.transform(boxes, lambda xy: xy + np.array([0.2, 0.0]))
    saved = shapely.transform(boxes, lambda xy: np.round(xy.astype(np.float32), 2).astype(np.float64))
    now = np.select([kind == 0, kind == 1], [saved, turned], shifted)
    assert (same_geometry(boxes, now) == (kind != 2)).all()


def test_names_of_changes_are_the_columns() -> None:
    assert list(compare(one(HOLED), one(HOLED)).columns) == ["deleted", *CHANGES]
