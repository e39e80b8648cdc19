"""Polygons to masks and back, against shapely's own test of the pixel centres."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st

from pyhisto.labels import clean_polygon, mask_to_polygons, rasterise


def by_centres(geometry: Any, shape: tuple[int, int], origin: tuple[float, float], scale: tuple[float, float]) -> Any:
    """What :func:`rasterise` should draw: pixels whose centre shapely finds inside."""
    rows, columns = np.mgrid[0 : shape[0], 0 : shape[1]]
    x = origin[0] + (columns + 0.5) * scale[0]
    y = origin[1] + (rows + 0.5) * scale[1]
    return shapely.contains_xy(geometry, x, y)


def star(seed: int, centre: tuple[float, float], radius: float) -> Any:
    rng = np.random.default_rng(seed)
    angle = np.sort(rng.uniform(0, 2 * np.pi, 12))
    length = radius * rng.uniform(0.4, 1.0, 12)
    outer = np.column_stack([centre[0] + length * np.cos(angle), centre[1] + length * np.sin(angle)])
    hole = np.array(centre) + 0.3 * (outer - centre)
    return shapely.make_valid(shapely.Polygon(outer, [hole]))


@settings(max_examples=40)
@given(
    seed=st.integers(0, 10_000),
    centre=st.tuples(st.floats(-20, 120), st.floats(-20, 120)),
    radius=st.floats(5, 80),
    scale=st.tuples(st.floats(0.7, 3.1), st.floats(0.7, 3.1)),
)
def test_rasterise_asks_pixel_centres(
    seed: int, centre: tuple[float, float], radius: float, scale: tuple[float, float]
) -> None:
    shape, origin = (31, 47), (3.3, -7.1)
    polygon = star(seed, centre, radius)
    expected = by_centres(polygon, shape, origin, scale)
    # centres on the outline may fall to either side
    rows, columns = np.mgrid[0 : shape[0], 0 : shape[1]]
    points = shapely.points(origin[0] + (columns + 0.5) * scale[0], origin[1] + (rows + 0.5) * scale[1])
    clear = shapely.distance(polygon.boundary, points) > 1e-6
    drawn = rasterise([polygon], [3], shape, origin=origin, scale=scale)
    assert drawn.dtype == np.int32
    np.testing.assert_array_equal(drawn[clear], np.where(expected, 3, 0)[clear])


def test_rasterise_axes_and_offset_by_hand() -> None:
    # 3 px wide and 1 px high, at column 1 and row 2 of a mask whose corner is (10, 20) and whose pixels are 2 x 4.
    drawn = rasterise([shapely.box(12, 28, 18, 32)], [9], (4, 5), origin=(10, 20), scale=(2, 4))
    expected = np.zeros((4, 5), dtype=int)
    expected[2, 1:4] = 9
    np.testing.assert_array_equal(drawn, expected)


def test_later_polygon_wins() -> None:
    boxes = [shapely.box(0, 0, 3, 1), shapely.box(2, 0, 5, 1)]
    assert rasterise(boxes, [1, 2], (1, 5)).tolist() == [[1, 1, 2, 2, 2]]
    assert rasterise(boxes[::-1], [2, 1], (1, 5)).tolist() == [[1, 1, 1, 2, 2]]


def test_holes_stay_open_for_what_lies_under() -> None:
    ring = shapely.box(0, 0, 5, 5).difference(shapely.box(1, 1, 4, 4))
    drawn = rasterise([shapely.box(0, 0, 5, 5), ring], [1, 2], (5, 5), background=7)
    assert (drawn == 1).sum() == 9
    assert (drawn == 2).sum() == 16
    assert drawn[2, 2] == 1


def test_background_and_geometries_that_are_no_area() -> None:
    mixed = shapely.GeometryCollection([shapely.Point(1, 1), shapely.box(0, 0, 1, 1)])
    drawn = rasterise([shapely.Point(0.5, 0.5), shapely.LineString([(0, 0), (3, 3)]), mixed], [1, 2, 3], (2, 2))
    assert drawn.tolist() == [[3, 0], [0, 0]]
    assert rasterise([], [], (1, 2), background=255).tolist() == [[255, 255]]


def test_multipolygon_and_outside() -> None:
    both = shapely.MultiPolygon([shapely.box(0, 0, 1, 1), shapely.box(3, 0, 4, 1)])
    assert rasterise([both, shapely.box(50, 50, 60, 60)], [1, 2], (1, 4)).tolist() == [[1, 0, 0, 1]]


@settings(max_examples=30)
@given(seed=st.integers(0, 10_000))
def test_mask_to_polygons_and_back(seed: int) -> None:
    rng = np.random.default_rng(seed)
    mask = rng.random((23, 31)) < 0.6
    origin, scale = (100.0, -40.0), (2.0, 3.0)
    polygons = mask_to_polygons(mask, origin=origin, scale=scale)
    assert all(polygon.is_valid and not polygon.is_empty for polygon in polygons)
    back = rasterise(polygons, [1] * len(polygons), mask.shape, origin=origin, scale=scale)
    np.testing.assert_array_equal(back.astype(bool), mask)
    merged = shapely.union_all(polygons)
    assert merged.area == pytest.approx(sum(polygon.area for polygon in polygons))  # none overlap


def test_mask_to_polygons_by_hand() -> None:
    mask = np.zeros((8, 10), dtype=bool)
    mask[2:6, 3:8] = True  # 5 wide, 4 high
    (polygon,) = mask_to_polygons(mask, origin=(10.0, 20.0), scale=(2.0, 4.0))
    assert polygon.bounds == (16.0, 28.0, 26.0, 44.0)  # 10 + 2 * 3, 20 + 4 * 2, 10 + 2 * 8, 20 + 4 * 6
    assert polygon.area == pytest.approx((5 * 4 - 4 / 8) * 8)  # four corners cut by 1/8 px


def test_parts_at_the_border_are_closed() -> None:
    (polygon,) = mask_to_polygons(np.ones((3, 4), dtype=bool))
    assert polygon.bounds == (0.0, 0.0, 4.0, 3.0)


def test_largest_first_and_small_ones_dropped() -> None:
    mask = np.zeros((20, 20), dtype=bool)
    mask[1:3, 1:3] = True
    mask[5:15, 5:15] = True
    mask[17, 17] = True
    areas = [polygon.area for polygon in mask_to_polygons(mask)]
    assert areas == pytest.approx([99.5, 3.5, 0.5])
    assert [polygon.area for polygon in mask_to_polygons(mask, min_area=3.5)] == pytest.approx([99.5, 3.5])
    assert [polygon.area for polygon in mask_to_polygons(mask, min_area=3.6)] == pytest.approx([99.5])


def test_small_holes_are_filled_and_large_ones_kept() -> None:
    mask = np.ones((20, 30), dtype=bool)
    mask[3, 3] = False
    mask[8:12, 8:12] = False
    (polygon,) = mask_to_polygons(mask, min_hole_area=2.0)
    assert len(polygon.interiors) == 1
    (filled,) = mask_to_polygons(mask, min_hole_area=100.0)
    assert filled.area == pytest.approx(600 - 0.5)
    (open_,) = mask_to_polygons(mask)
    assert len(open_.interiors) == 2


def test_an_island_in_a_filled_hole_is_not_there_twice() -> None:
    mask = np.ones((20, 20), dtype=bool)
    mask[5:15, 5:15] = False
    mask[8:12, 8:12] = True
    polygons = mask_to_polygons(mask, min_hole_area=150.0)
    assert len(polygons) == 1
    assert len(mask_to_polygons(mask)) == 2


def test_diagonal_neighbours_are_two_parts() -> None:
    assert len(mask_to_polygons(np.eye(2, dtype=bool))) == 2


def test_simplify_keeps_the_shape_within_the_tolerance() -> None:
    rows, columns = np.mgrid[0:100, 0:100]
    disc = (rows - 50) ** 2 + (columns - 50) ** 2 < 40**2
    (fine,) = mask_to_polygons(disc)
    (coarse,) = mask_to_polygons(disc, tolerance=0.5)
    assert len(coarse.exterior.coords) < len(fine.exterior.coords) / 2
    assert coarse.hausdorff_distance(fine) <= 0.5 + 1e-9


def test_empty_mask_has_no_polygons() -> None:
    assert mask_to_polygons(np.zeros((4, 4), dtype=bool)) == []


def test_clean_polygon() -> None:
    assert clean_polygon(shapely.Polygon()) == []
    assert clean_polygon(shapely.LineString([(0, 0), (1, 1)])) == []
    bowtie = shapely.Polygon([(0, 0), (2, 2), (2, 0), (0, 2)])
    assert sorted(part.area for part in clean_polygon(bowtie)) == [1.0, 1.0]
    spike = shapely.Polygon([(0, 0), (2, 0), (2, 2), (2, 5), (2, 2), (0, 2)])
    (box,) = clean_polygon(spike)
    assert box.area == 4.0
