"""What a person did to predictions inside a region, on numbers worked out by hand."""

from __future__ import annotations

from typing import Any

import geopandas as gpd
import numpy as np
import pytest
import shapely

from pyhisto.objects import concat_objects, make_objects
from qupath_ext.active.annotators import cohen_kappa
from qupath_ext.active.corrections import Points, area_corrections, point_corrections, points_inside

HALF_UM = np.array([0.5, 0.5])
REGION = shapely.box(0, 0, 100, 100)


def points(*rows: tuple[float, float, str]) -> Points:
    xy = np.array([row[:2] for row in rows], dtype=float).reshape(-1, 2)
    return Points(xy, np.array([row[2] for row in rows], dtype=object))


def said(table: gpd.GeoDataFrame) -> set[tuple[Any, ...]]:
    """Return the rows of a table of corrections of points."""
    rows = zip(table.geometry, table["kind"], table["before"], table["now"], strict=True)
    return {(p.x, p.y, kind, before, now) for p, kind, before, now in rows}


# ---------------------------------------------------------------------- points
def test_each_point_is_said_what_became_of_it() -> None:
    before = points((10, 10, "A"), (20, 10, "A"), (30, 10, "B"), (40, 10, "B"))
    now = points((10, 10, "A"), (24, 13, "A"), (30, 10, "A"), (90, 90, "B"))
    assert said(point_corrections(before, now, HALF_UM, 8.0)) == {
        (10, 10, "confirmed", "A", "A"),
        (24, 13, "moved", "A", "A"),  # 5 px, 2.5 µm
        (30, 10, "reclassified", "B", "A"),
        (40, 10, "deleted", "B", None),
        (90, 90, "added", None, "B"),
    }


@pytest.mark.parametrize(("radius", "kinds"), [(2.5, {"moved"}), (2.4, {"deleted", "added"})])
def test_a_point_beyond_the_radius_is_another(radius: float, kinds: set[str]) -> None:
    found = point_corrections(points((20, 10, "A")), points((24, 13, "A")), HALF_UM, radius)
    assert set(found["kind"]) == kinds


def test_the_size_of_a_pixel_counts_in_each_direction() -> None:
    wide = np.array([2.0, 0.1])  # 4 px to the right are 8 µm, 40 px down are 4 µm
    found = point_corrections(points((0, 0, "A"), (50, 0, "A")), points((4, 0, "A"), (50, 40, "A")), wide, 5.0)
    assert sorted(found["kind"]) == ["added", "deleted", "moved"]


def test_points_are_paired_one_to_one() -> None:
    """Both points now are nearest to the same one before: the other takes the one farther away."""
    before, now = points((0, 0, "A"), (10, 0, "A")), points((4, 0, "A"), (-4, 0, "A"))
    found = point_corrections(before, now, HALF_UM, 8.0)
    assert list(found["kind"]) == ["moved", "moved"]


def test_a_point_of_the_same_class_is_the_one_that_was_moved() -> None:
    """A nearer point of another class is new; that one of the same class was moved."""
    before, now = points((0, 0, "A")), points((2, 0, "B"), (6, 0, "A"))
    assert said(point_corrections(before, now, HALF_UM, 8.0)) == {
        (6, 0, "moved", "A", "A"),
        (2, 0, "added", None, "B"),
    }


def test_two_points_put_on_one_place_are_not_lost() -> None:
    found = point_corrections(points((0, 0, "A")), points((0, 0, "A"), (0, 0, "B")), HALF_UM, 8.0)
    assert sorted(found["kind"]) == ["added", "confirmed"]


def test_nothing_becomes_nothing() -> None:
    assert len(point_corrections(points(), points(), HALF_UM, 8.0)) == 0


def test_points_of_all_annotations_inside_count_and_outlines_by_their_middle() -> None:
    many = shapely.MultiPoint([(10, 10), (150, 10)])
    shapes = [many, shapely.Point(20, 20), shapely.box(30, 30, 50, 50), shapely.Point(60, 60)]
    table = make_objects(shapes, object_type="annotation", classification=["A", "B", "A", "Other"])
    found = points_inside(table, REGION, ("A", "B"))
    assert {(*xy, name) for xy, name in zip(found.xy.tolist(), found.name, strict=True)} == {
        (10, 10, "A"),
        (20, 20, "B"),
        (40, 40, "A"),
    }


# ---------------------------------------------------------------------- areas
def area(id_: str, *corners: float, name: str = "Tumor") -> gpd.GeoDataFrame:
    ids = [f"{ord(id_):08x}-0000-4000-8000-000000000000"]
    return make_objects([shapely.box(*corners)], object_type="annotation", classification=name, ids=ids)


def kinds(written: list[gpd.GeoDataFrame], now: list[gpd.GeoDataFrame]) -> list[tuple[str, float]]:
    found = area_corrections(concat_objects(written), concat_objects(now), REGION, ("Tumor", "Stroma"), HALF_UM)
    return [(kind, float(shape.area)) for kind, shape in zip(found["kind"], found.geometry, strict=True)]


def test_areas_that_stay_are_confirmed() -> None:
    assert kinds([area("a", 0, 0, 20, 20)], [area("a", 0, 0, 20, 20)]) == [("confirmed", 400)]


def test_a_changed_outline_counts_where_it_changed() -> None:
    """Taken away: 5 x 20 px on the left; brushed on: 10 x 20 px on the right."""
    assert kinds([area("a", 0, 0, 20, 20)], [area("a", 5, 0, 30, 20)]) == [("moved", 300)]


def test_another_class_counts_everywhere() -> None:
    found = kinds([area("a", 0, 0, 20, 20)], [area("a", 0, 0, 20, 20, name="Stroma")])
    assert found == [("reclassified", 400)]


def test_a_class_that_is_not_learnt_counts_as_well() -> None:
    found = kinds([area("a", 0, 0, 20, 20)], [area("a", 0, 0, 20, 20, name="Fat")])
    assert found == [("reclassified", 400)]


def test_deleted_and_added() -> None:
    found = kinds([area("a", 0, 0, 20, 20)], [area("b", 50, 50, 60, 60)])
    assert found == [("deleted", 400), ("added", 100)]


def test_what_lies_outside_the_region_does_not_count() -> None:
    assert kinds([], [area("b", 90, 90, 200, 200)]) == [("added", 100)]
    assert kinds([], [area("b", 150, 150, 200, 200)]) == []


def test_an_outline_cut_in_two_is_no_change() -> None:
    found = kinds([area("a", 0, 0, 20, 20)], [area("b", 0, 0, 10, 20), area("c", 10, 0, 20, 20)])
    assert found == [("confirmed", 400)]


def test_rounding_is_no_change() -> None:
    """40 px² at 0.5 µm are 10 µm²: less is none."""
    assert kinds([area("a", 0, 0, 20, 20)], [area("a", 0, 0, 21.9, 20)]) == [("confirmed", 400)]
    assert kinds([area("a", 0, 0, 20, 20)], [area("a", 0, 0, 22.1, 20)])[0][0] == "moved"


# ---------------------------------------------------------------------- kappa
def test_kappa_of_a_table_from_a_textbook() -> None:
    """Observed 35 / 50 = 0.7, by chance (25 x 30 + 25 x 20) / 2500 = 0.5: 0.2 / 0.5."""
    assert cohen_kappa(np.array([[20.0, 5.0], [10.0, 15.0]])) == pytest.approx(0.4)
    assert np.isnan(cohen_kappa(np.array([[7.0, 0.0], [0.0, 0.0]])))
    assert np.isnan(cohen_kappa(np.zeros((2, 2))))
