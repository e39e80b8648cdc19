import numpy as np
import pytest
import shapely
from scipy import ndimage

from pyhisto.contours import (
    Contours,
    round_contours,
    select_contours,
    simplify_contours,
    smooth_contours,
    trace_labels,
)


def blobs(seed: int = 0, size: int = 120) -> np.ndarray:
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=(size, size)), 3)
    filled = ndimage.binary_fill_holes(noise > 0.05, structure=np.ones((3, 3)))
    return ndimage.label(filled)[0]


def test_a_rectangle_by_hand() -> None:
    labels = np.zeros((5, 6), dtype=int)
    labels[1:3, 2:5] = 1
    found = trace_labels(labels)
    # clockwise, a point at every pixel corner, from the first corner after the right end of the top row
    assert found.xy.tolist() == [[5, 3], [4, 3], [3, 3], [2, 3], [2, 2], [2, 1], [3, 1], [4, 1], [5, 1], [5, 2]]
    assert found.areas().tolist() == [6.0]
    assert found.perimeters().tolist() == [10.0]


def test_a_dented_region_by_hand() -> None:
    labels = np.array([[1, 0, 1], [1, 1, 1]])
    # from the dent, which the first way down ends at, up into the right arm and once around
    around = [[1, 1], [2, 1], [2, 0], [3, 0], [3, 1], [3, 2], [2, 2], [1, 2], [0, 2], [0, 1], [0, 0], [1, 0]]
    assert trace_labels(labels).xy.tolist() == around


def test_holes_are_passed_over() -> None:
    labels = np.ones((5, 7), dtype=int)
    labels[1:4, 2], labels[2, 4:6] = 0, 2
    found = trace_labels(labels)
    assert found.areas().tolist() == [35, 2]
    assert found.perimeters().tolist() == [24, 6]


@pytest.mark.parametrize(("row", "column"), [(0, 0), (3, 4), (2, 0), (0, 3), (3, 2), (1, 2)])
def test_a_pixel_anywhere_up_to_the_edge_of_the_image(row: int, column: int) -> None:
    labels = np.zeros((4, 5), dtype=np.int32)
    labels[row, column] = 1
    corners = np.array([[1, 1], [0, 1], [0, 0], [1, 0]])  # clockwise, from the lower right one
    np.testing.assert_array_equal(trace_labels(labels).xy, corners + np.array([column, row]))


def test_outlines_enclose_exactly_their_pixels() -> None:
    labels = blobs()
    found = trace_labels(labels)
    assert len(found) == labels.max() > 20
    np.testing.assert_array_equal(found.areas(), np.bincount(labels.ravel())[1:])
    assert shapely.is_valid(simplify_contours(found, 0).polygons()).mean() > 0.9


def test_diagonal_pixels_are_two_regions_and_the_longer_is_traced() -> None:
    labels = np.zeros((6, 6), dtype=int)
    labels[1, 1] = 1
    labels[2:4, 2:4] = 1
    assert trace_labels(labels).areas().tolist() == [4.0]


def test_a_missing_label_has_no_points() -> None:
    labels = np.zeros((4, 4), dtype=int)
    labels[1:3, 1:3] = 3
    found = trace_labels(labels, 4)
    assert found.counts.tolist() == [0, 0, 8, 0]
    assert found.polygons()[0] is None
    assert found.polygons()[2].area == 4
    assert smooth_contours(found).counts[3] == 0


def test_no_labels_at_all() -> None:
    found = trace_labels(np.zeros((4, 4), dtype=int))
    assert len(found) == 0
    assert len(simplify_contours(smooth_contours(found), 1).polygons()) == 0


def test_collinear_points_go_at_altitude_zero() -> None:
    labels = np.zeros((8, 9), dtype=int)
    labels[2:6, 2:7] = 1
    assert simplify_contours(trace_labels(labels), 0).counts.tolist() == [4]


def test_simplifying_keeps_corners_and_drops_the_bump() -> None:
    points = [[0, 0], [10, 0], [20, 0.5], [30, 0], [30, 30], [0, 30]]
    found = simplify_contours(Contours(np.array(points, dtype=float), np.array([0, 6])), 1.0)
    assert found.xy.tolist() == [[0, 0], [30, 0], [30, 30], [0, 30]]


def test_simplifying_leaves_a_triangle() -> None:
    circle = np.stack([np.cos(np.arange(12) * np.pi / 6), np.sin(np.arange(12) * np.pi / 6)], axis=1)
    assert simplify_contours(Contours(circle, np.array([0, 12])), 100.0).counts.tolist() == [3]


def test_each_outline_is_simplified_as_if_alone() -> None:
    smooth = smooth_contours(trace_labels(blobs(2)))
    together = simplify_contours(smooth, 0.5).polygons()
    for i in range(0, len(smooth), 7):
        alone = simplify_contours(select_contours(smooth, np.array([i])), 0.5).polygons()[0]
        assert (together[i] is None and alone is None) or together[i].equals(alone)


def test_smoothing_keeps_the_size_and_sets_chords_of_two_pixels() -> None:
    y, x = np.mgrid[:60, :60]
    labels = ((y - 30) ** 2 + (x - 30) ** 2 < 20**2).astype(int)
    raw = trace_labels(labels)
    smooth = smooth_contours(raw)
    assert smooth.areas()[0] == pytest.approx(raw.areas()[0], rel=0.04)
    assert smooth.perimeters()[0] == pytest.approx(2 * np.pi * 20, rel=0.05)
    step = np.linalg.norm(np.diff(smooth.xy, axis=0), axis=1)
    np.testing.assert_allclose(step, 2.0, atol=1e-6)


def test_a_square_rounded_by_hand() -> None:
    # two averages with the weights 1, 2, 1 are one with 1, 4, 6, 4, 1; points lie 1 px apart, however they came
    square = np.array([[0, 0], [5, 0], [8, 0], [8, 8], [0, 8], [0, 7.5]], dtype=float)
    found = round_contours(Contours(square, np.array([0, 6])))
    assert found.counts.tolist() == [32]
    corner, beside, straight = found.xy[0], found.xy[1], found.xy[4]
    assert corner.tolist() == [6 / 16, 6 / 16]  # (4 + 2) / 16 along each side
    assert beside.tolist() == [1 + 1 / 16, 1 / 16]
    assert straight.tolist() == [4, 0]
    np.testing.assert_array_equal(found.xy[8:16], np.column_stack([8 - found.xy[:8, 1], found.xy[:8, 0]]))
    fewer = round_contours(Contours(square, np.array([0, 6])), every=3)
    np.testing.assert_array_equal(fewer.xy, found.xy[::3])
    assert fewer.counts.tolist() == [11]


def test_rounding_off_hardly_takes_anything_and_does_not_depend_on_where_points_lie() -> None:
    angle = np.sort(np.random.default_rng(0).uniform(0, 2 * np.pi, 400))
    circle = np.column_stack([np.cos(angle), np.sin(angle)]) * 9 + 20
    found = round_contours(Contours(np.vstack([circle, circle]), np.array([0, 400, 800])))
    assert found.counts.tolist() == [57, 57]  # 18 pi px around
    np.testing.assert_array_equal(found.xy[:57], found.xy[57:])
    away = np.hypot(*(found.xy - 20).T)
    np.testing.assert_allclose(away, 9 - 0.5 / 9, atol=0.03)
    assert (found.xy * 64 == (found.xy * 64).round()).all()
    assert round_contours(Contours(np.empty((0, 2)), np.array([0, 0]))).counts.tolist() == [0]


def test_scaling_moves_into_the_frame_of_the_slide() -> None:
    labels = np.zeros((4, 4), dtype=int)
    labels[1:3, 1:3] = 1
    shape = trace_labels(labels).scaled((2.0, 3.0), (100.0, 200.0)).polygons()[0]
    assert shape.bounds == (102.0, 203.0, 106.0, 209.0)


def outlines_of(*rings: list[tuple[float, float]]) -> Contours:
    offsets = np.cumsum([0, *map(len, rings)])
    return Contours(np.array([point for ring in rings for point in ring], dtype=float), offsets)


def test_outlines_that_cross_themselves_are_repaired_and_others_stay_as_they_are() -> None:
    angle = 4 * np.pi / 5 * np.arange(5)
    pentagram = np.c_[np.cos(angle), np.sin(angle)]  # runs around its centre twice, always in one sense
    eight = [(0, 0), (4, 4), (4, 0), (0, 4)]  # its two triangles have 4 px² each
    cup = [(0, 0), (9, 0), (9, 9), (6, 9), (6, 3), (3, 3), (3, 9), (0, 9)]
    square = [(0, 0), (0, 3), (3, 3), (3, 0)]  # the other way round
    polygons = outlines_of([tuple(p) for p in pentagram], eight, cup, square).polygons()
    assert shapely.is_valid(polygons).all()
    assert shapely.area(polygons[1:]).tolist() == [4, 81 - 18, 9]
    assert shapely.equals(polygons[2], shapely.Polygon(cup))
    # what the pentagram encloses at all is less than its hull, a pentagon of radius 1
    assert 0 < shapely.area(polygons[0]) < 2.5 * np.sin(2 * np.pi / 5)


def test_labels_above_the_number_are_passed_over() -> None:
    labels = np.zeros((6, 8), dtype=np.int32)
    labels[1:3, 1:4], labels[1:5, 5:8] = 1, 2
    traced = trace_labels(labels, 1)
    assert traced.counts.tolist() == [10]
    assert traced.areas().tolist() == [6]
