"""Polygons of masks and label maps: by hand, and against skimage's marching squares and shapely's union of pixels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import shapely
import skimage.measure
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy import ndimage

import pyhisto.bands
from pyhisto.bands import BandPolygons
from pyhisto.errors import ConfigError
from pyhisto.labels import PolygonSettings, label_map_to_polygons, mask_to_polygons, rasterise
from pyhisto.sides import PIXELS_AT_ONCE

PIXELS = PolygonSettings(outline="pixels")
Mask = np.ndarray[Any, Any]


def drawn(*rows: str) -> Mask:
    """A label map from rows of digits, a dot for 0."""
    return np.array([[0 if pixel == "." else int(pixel) for pixel in row] for row in rows])


def noise(seed: int, shape: tuple[int, int] = (23, 31), smooth: float = 0.0, share: float = 0.6) -> Mask:
    values = np.random.default_rng(seed).random(shape)
    values = ndimage.gaussian_filter(values, smooth) if smooth else values
    return values < np.quantile(values, share)


def union_of_pixels(mask: Mask) -> Any:
    rows, columns = np.nonzero(mask)
    return shapely.union_all(shapely.box(columns, rows, columns + 1, rows + 1))


def marching_squares(mask: Mask) -> Any:
    padded = np.pad(mask.astype(float), 1)
    lines = [line[:, ::-1] - 0.5 for line in skimage.measure.find_contours(padded, 0.5, fully_connected="low")]
    return shapely.build_area(shapely.geometrycollections([shapely.linearrings(line) for line in lines]))


def wkb(polygons: Sequence[Any]) -> list[bytes]:
    return [shapely.to_wkb(polygon) for polygon in polygons]


# ---------------------------------------------------------------------- by hand
def test_a_single_pixel() -> None:
    (edge,) = mask_to_polygons(drawn("..", ".1") > 0, outline="pixels")
    assert edge.equals(shapely.box(1, 1, 2, 2))
    assert len(edge.exterior.coords) == 5
    (middle,) = mask_to_polygons(drawn("..", ".1") > 0)
    assert middle.equals(shapely.Polygon([(1.5, 1), (2, 1.5), (1.5, 2), (1, 1.5)]))


def test_only_corners_are_points() -> None:
    (shape,) = mask_to_polygons(drawn("111.", "1111", "1111") > 0, outline="pixels")
    assert set(shape.exterior.coords) == {(0, 0), (3, 0), (3, 1), (4, 1), (4, 3), (0, 3)}
    (slope,) = mask_to_polygons(np.tri(6, dtype=bool))  # a staircase becomes one slope
    assert set(slope.exterior.coords) == {(0, 0.5), (0.5, 0), (6, 5.5), (5.5, 6), (0.5, 6), (0, 5.5)}


def test_ring_in_ring_in_ring() -> None:
    mask = np.zeros((15, 15), dtype=bool)
    for i in range(6):
        mask[1 + i : 14 - i, 1 + i : 14 - i] = i % 2 == 0  # rings of 13, 9 and 5 around holes of 11, 7 and 3
    shapes = mask_to_polygons(mask, outline="pixels")
    assert [shape.area for shape in shapes] == [13**2 - 11**2, 9**2 - 7**2, 5**2 - 3**2]
    assert [[shapely.Polygon(hole).area for hole in shape.interiors] for shape in shapes] == [[121], [49], [9]]
    # the hole of the middle ring goes, and with it the inner ring; the outer hole is larger than the limit
    shapes = mask_to_polygons(mask, outline="pixels", min_hole_area=50)
    assert [shape.area for shape in shapes] == [81, 48]
    assert [len(shape.interiors) for shape in shapes] == [0, 1]
    (whole,) = mask_to_polygons(mask, outline="pixels", min_hole_area=121.5)
    assert whole.area == 169


def test_the_limits_themselves_are_kept() -> None:
    mask = drawn("111.1", "1.1..", "111..") > 0
    assert [shape.area for shape in mask_to_polygons(mask, outline="pixels", min_area=1, min_hole_area=1)] == [8, 1]
    assert [shape.area for shape in mask_to_polygons(mask, outline="pixels", min_area=1.01, min_hole_area=1.01)] == [9]
    # half-way the hole is a diamond of half a pixel, and the ring around it 9 - 0.5 - 0.5
    assert [shape.area for shape in mask_to_polygons(mask, min_hole_area=0.5)] == [8, 0.5]
    assert [shape.area for shape in mask_to_polygons(mask, min_hole_area=0.51)] == [8.5, 0.5]


def test_checkerboard_corners_part_regions() -> None:
    mask = np.indices((4, 4)).sum(axis=0) % 2 == 0
    for outline in ("pixels", "halfway"):
        shapes = mask_to_polygons(mask, outline=outline)
        assert len(shapes) == 8
        assert {shape.area for shape in shapes} == {1.0 if outline == "pixels" else 0.5}
        assert not any(shape.interiors for shape in shapes)


@pytest.mark.parametrize("turns", range(4))
def test_a_region_that_meets_itself_at_a_corner_has_a_hole_there(turns: int) -> None:
    mask = np.rot90(drawn("111", "1.1", "11.") > 0, turns)  # two of its pixels meet at a corner
    (shape,) = mask_to_polygons(mask, outline="pixels")
    assert shape.is_valid
    assert shape.area == 7
    assert [shapely.Polygon(hole).area for hole in shape.interiors] == [1]
    assert shape.exterior.intersects(shape.interiors[0])  # at that corner, which is allowed
    (shape,) = mask_to_polygons(mask)
    assert shape.is_valid
    assert len(shape.interiors) == 0  # half-way the hole is a bay: its mouth lies between the two pixels


def test_two_holes_that_meet_at_a_corner_are_two() -> None:
    mask = drawn("1111", "1.11", "11.1", "1111") > 0
    (shape,) = mask_to_polygons(mask, outline="pixels")
    assert shape.is_valid
    assert [shapely.Polygon(hole).area for hole in shape.interiors] == [1, 1]
    (shape,) = mask_to_polygons(mask)
    assert [shapely.Polygon(hole).area for hole in shape.interiors] == [1.5]  # 2 pixels without 4 corners of 1/8


def test_a_region_that_touches_the_hole_it_lies_in() -> None:
    mask = drawn("11111", "1...1", "1.1.1", "1..11", "11111") > 0
    ring, inner = mask_to_polygons(mask, outline="pixels")
    assert (ring.area, inner.area) == (17, 1)
    assert ring.is_valid
    assert shapely.MultiPolygon([ring, inner]).is_valid


def test_the_border_of_the_image_closes_outlines() -> None:
    (whole,) = mask_to_polygons(np.ones((3, 4), dtype=bool), outline="pixels")
    assert whole.equals(shapely.box(0, 0, 4, 3))
    bay, spot = mask_to_polygons(drawn("1.1", "1.1", "111") > 0, outline="pixels"), drawn("1.1") > 0
    assert len(bay) == 1
    assert len(bay[0].interiors) == 0
    assert [shape.bounds for shape in mask_to_polygons(spot, outline="pixels")] == [(0, 0, 1, 1), (2, 0, 3, 1)]


@pytest.mark.parametrize("shape", [(0, 0), (0, 5), (5, 0), (3, 4)])
def test_nothing_there(shape: tuple[int, int]) -> None:
    assert mask_to_polygons(np.zeros(shape, dtype=bool)) == []
    assert label_map_to_polygons(np.zeros(shape, dtype=np.uint16), join=True)[0] == []
    assert BandPolygons().finish()[0] == []


def test_frame() -> None:
    (shape,) = mask_to_polygons(drawn("...", ".11") > 0, origin=(100, 50), scale=(2, 4), outline="pixels")
    assert shape.bounds == (102, 54, 106, 58)


def test_an_unknown_outline_is_refused() -> None:
    with pytest.raises(ConfigError, match="halfway or pixels"):
        mask_to_polygons(np.ones((2, 2), dtype=bool), outline="fine")  # type: ignore[arg-type]


# ---------------------------------------------------------------------- against other tools
masks = st.builds(
    noise,
    st.integers(0, 10_000),
    smooth=st.sampled_from([0.0, 0.6, 1.5]),
    share=st.sampled_from([0.3, 0.5, 0.7]),
)


@settings(max_examples=40, deadline=None)
@given(mask=masks)
def test_along_pixels_it_is_the_union_of_the_pixels(mask: Mask) -> None:
    shapes = mask_to_polygons(mask, outline="pixels")
    assert shapely.is_valid(shapes).all()
    assert len(shapes) == ndimage.label(mask)[1]
    assert sum(shape.area for shape in shapes) == mask.sum()
    truth = union_of_pixels(mask)
    assert shapely.symmetric_difference(shapely.MultiPolygon(shapes), truth).area == 0
    assert (
        sum(len(shape.interiors) for shape in shapes) == shapely.get_num_interior_rings(shapely.get_parts(truth)).sum()
    )
    np.testing.assert_array_equal(rasterise(shapes, [1] * len(shapes), mask.shape), mask)


@settings(max_examples=40, deadline=None)
@given(mask=masks)
def test_halfway_it_is_marching_squares(mask: Mask) -> None:
    shapes = mask_to_polygons(mask)
    assert shapely.is_valid(shapes).all()
    truth = shapely.get_parts(marching_squares(mask))
    assert len(shapes) == len(truth)
    assert shapely.symmetric_difference(shapely.MultiPolygon(shapes), shapely.MultiPolygon(list(truth))).area < 1e-9
    assert sum(len(shape.interiors) for shape in shapes) == shapely.get_num_interior_rings(truth).sum()
    np.testing.assert_array_equal(rasterise(shapes, [1] * len(shapes), mask.shape), mask)


@settings(max_examples=25, deadline=None)
@given(mask=masks, limit=st.sampled_from([1.5, 4.0, 20.0]))
def test_filled_holes_are_those_of_the_polygons_that_shapely_makes(mask: Mask, limit: float) -> None:
    def filled(shape: Any) -> Any:
        holes = [hole for hole in shape.interiors if shapely.Polygon(hole).area >= limit]
        return shapely.Polygon(shape.exterior, holes)

    truth = shapely.union_all([filled(part) for part in shapely.get_parts(marching_squares(mask))])
    shapes = mask_to_polygons(mask, min_hole_area=limit)
    assert shapely.symmetric_difference(shapely.MultiPolygon(shapes), truth).area < 1e-9
    assert len(shapes) == len(shapely.get_parts(truth))


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10_000), tolerance=st.sampled_from([0.5, 1.0, 3.0]))
@example(seed=115, tolerance=0.5)  # the first point of a ring lies where it is all but straight
def test_simplified_outlines_are_valid_and_within_the_tolerance(seed: int, tolerance: float) -> None:
    mask = noise(seed, (60, 60), 1.5)
    for outline in ("pixels", "halfway"):
        fine = mask_to_polygons(mask, outline=outline)
        coarse = mask_to_polygons(mask, outline=outline, tolerance=tolerance)
        assert shapely.is_valid(coarse).all()
        assert shapely.get_num_coordinates(coarse).sum() < shapely.get_num_coordinates(fine).sum()
        edges = shapely.union_all(shapely.boundary(fine))
        points = shapely.points(shapely.get_coordinates(shapely.segmentize(coarse, 0.5)))
        assert shapely.distance(edges, points).max() <= tolerance + 1e-9


# ---------------------------------------------------------------------- label maps
def test_labels_by_hand() -> None:
    labels = drawn("2211", "2.11", "22.3", "333.")
    shapes, label = label_map_to_polygons(labels, PIXELS)
    assert label.tolist() == [1, 2, 3, 3]
    assert [shape.area for shape in shapes] == [4, 5, 3, 1]
    shapes, label = label_map_to_polygons(labels, PIXELS, join=True)
    assert label.tolist() == [1, 2, 3]
    assert [shape.geom_type for shape in shapes] == ["Polygon", "Polygon", "MultiPolygon"]
    assert shapely.is_valid(shapes).all()


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 10_000), n=st.sampled_from([1, 3, 9, 70_000]), outline=st.sampled_from(["pixels", "halfway"])
)
@example(seed=3, n=2, outline="pixels")
def test_labels_are_as_their_masks(seed: int, n: int, outline: Any) -> None:
    rng = np.random.default_rng(seed)
    labels = np.kron(rng.integers(0, n + 1, (9, 11)), np.ones((2, 3), dtype=int))
    labels[rng.random(labels.shape) < 0.1] = n
    wanted = PolygonSettings((5.0, 6.0), (2.0, 3.0), min_area=2.0, min_hole_area=1.2, outline=outline)
    shapes, label = label_map_to_polygons(labels, wanted)
    for value in np.unique(labels[labels > 0])[:40]:
        alone = mask_to_polygons(
            labels == value, origin=(5, 6), scale=(2, 3), min_area=2.0, min_hole_area=1.2, outline=outline
        )
        assert wkb([shapes[at] for at in np.flatnonzero(label == value)]) == wkb(alone)
    shapes, label = label_map_to_polygons(labels, PolygonSettings(outline=outline))
    np.testing.assert_array_equal(rasterise(shapes, label, labels.shape), labels)


def test_kinds_of_numbers_and_of_memory() -> None:
    labels = drawn("1122", "11.2")
    truth = wkb(label_map_to_polygons(labels)[0])
    for dtype in (np.uint8, np.uint16, np.int32, np.uint32, np.int64):
        assert wkb(label_map_to_polygons(labels.astype(dtype))[0]) == truth
        assert wkb(label_map_to_polygons(np.asfortranarray(labels.astype(dtype)))[0]) == truth
    assert wkb(mask_to_polygons((labels > 0)[:, ::-1])) == wkb(mask_to_polygons((labels > 0)[:, ::-1].copy()))
    with pytest.raises(ValueError, match="negative"):
        label_map_to_polygons(-labels)


# ---------------------------------------------------------------------- bands
def in_bands(mask: Mask, cuts: Sequence[int], wanted: PolygonSettings) -> list[Any]:
    bands = BandPolygons(wanted)
    for top, bottom in zip([0, *cuts], [*cuts, len(mask)], strict=True):
        bands.add(mask[top:bottom], top)
    return bands.finish()[0]


@settings(max_examples=50, deadline=None)
@given(
    mask=masks,
    cuts=st.lists(st.integers(0, 23), max_size=8).map(sorted),
    hole=st.sampled_from([0.0, 3.0, 30.0]),
    outline=st.sampled_from(["pixels", "halfway"]),
    tolerance=st.sampled_from([0.0, 0.7]),
    least=st.sampled_from([1.5, 12.0]),
)
def test_bands_give_what_the_whole_mask_gives(
    mask: Mask, cuts: list[int], hole: float, outline: Any, tolerance: float, least: float
) -> None:
    wanted = PolygonSettings((3.0, 4.0), (2.0, 2.0), least, hole, tolerance, outline)
    whole = label_map_to_polygons(mask, wanted)[0]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pyhisto.bands, "SIDES_AT_ONCE", 0)  # work off every band
        assert wkb(in_bands(mask, cuts, wanted)) == wkb(whole)
    assert wkb(in_bands(mask, cuts, wanted)) == wkb(whole)


def test_bands_cut_through_holes_and_what_lies_in_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pyhisto.bands, "SIDES_AT_ONCE", 0)
    mask = np.ones((20, 20), dtype=bool)
    mask[4:16, 4:16] = False
    mask[6:8, 6:8] = True  # done before the hole around it is closed
    for cut in range(1, 20):
        shapes = in_bands(mask, [cut], PIXELS)
        assert [shape.area for shape in shapes] == [400 - 144, 4]
        (filled,) = in_bands(mask, [cut], PolygonSettings(min_hole_area=145, outline="pixels"))
        assert filled.area == 400


def test_finished_regions_are_not_kept_as_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pyhisto.bands, "SIDES_AT_ONCE", 0)
    bands = BandPolygons(PolygonSettings(min_hole_area=5.0))
    band = np.zeros((10, 1000), dtype=bool)
    band[2:8] = np.arange(1000) % 10 < 6
    for number in range(50):
        bands.add(band, 10 * number)
        assert [len(part.ends) for part in bands._parts] == [0]
    assert len(bands.finish()[0]) == 5000


def test_of_a_region_that_goes_on_only_what_may_be_drawn_is_kept() -> None:
    """Two strips down the whole mask, with holes that are filled, and between them regions too small to be drawn."""
    band = np.zeros((10, 100), dtype=bool)
    band[:, :20] = band[:, 80:] = True
    band[3:5, 4:6] = band[6:8, 12:15] = False  # filled
    band[2:5, 40:43] = True  # too small
    wanted = PolygonSettings(min_area=50.0, min_hole_area=20.0, outline="pixels")
    bands = BandPolygons(wanted)
    for number in range(30):
        bands._enough = 0  # work off every band
        bands.add(band, 10 * number)
        assert [len(part.ends) for part in bands._parts] == [2 * 10 * (number + 1)]
    assert [shape.bounds for shape in bands.finish()[0]] == [(0, 0, 20, 300), (80, 0, 100, 300)]


@settings(max_examples=25, deadline=None)
@given(
    mask=masks,
    cut=st.integers(0, 12),
    hole=st.sampled_from([0.0, 3.0, 30.0]),
    outline=st.sampled_from(["pixels", "halfway"]),
)
def test_means_are_those_of_the_pixels_inside_each_polygon(mask: Mask, cut: int, hole: float, outline: Any) -> None:
    values = np.random.default_rng(0).random(mask.shape)
    y, x = np.mgrid[: mask.shape[0], : mask.shape[1]] + 0.5
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pyhisto.bands, "SIDES_AT_ONCE", 0)
        bands = BandPolygons(PolygonSettings(min_hole_area=hole, outline=outline))
        bands.add(mask[:cut], 0, values[:cut])
        bands.add(mask[cut:], cut, values[cut:])
        polygons, means = bands.finish()
    expected = [values[shapely.contains_xy(polygon, x, y)].mean() for polygon in polygons]
    np.testing.assert_allclose(means, expected, rtol=0, atol=1e-12)


def test_rows_between_bands_are_empty() -> None:
    bands = BandPolygons(PIXELS)
    bands.add(np.ones((2, 3), dtype=bool), 4)
    bands.add(np.ones((1, 3), dtype=bool), 9)
    assert [shape.bounds for shape in bands.finish()[0]] == [(0, 4, 3, 6), (0, 9, 3, 10)]


def test_bands_that_do_not_fit() -> None:
    bands = BandPolygons()
    bands.add(np.ones((2, 3), dtype=bool), 4)
    with pytest.raises(ValueError, match="row 5 after row 5"):
        bands.add(np.ones((2, 3), dtype=bool), 5)
    with pytest.raises(ValueError, match="4 px wide after one of 3 px"):
        bands.add(np.ones((2, 4), dtype=bool), 6)


def test_masks_larger_than_what_is_looked_at_together() -> None:
    mask = np.zeros((PIXELS_AT_ONCE // 1000 + 50, 1000), dtype=bool)
    mask[10:-10, 5:995] = True
    mask[20:-20, 400:600] = False
    (shape,) = mask_to_polygons(mask, outline="pixels")
    assert shape.area == mask.sum()
    assert len(shape.interiors) == 1
    assert shapely.get_num_coordinates(shape) == 10
