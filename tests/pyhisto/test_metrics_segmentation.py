"""Areas: worked out by hand, and against scikit-learn, scipy, shapely and pixels."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.ndimage
import scipy.spatial.distance
import shapely
import sklearn.metrics
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from pyhisto.errors import ConfigError
from pyhisto.metrics import (
    AreaScore,
    area_scores,
    confusion_matrix,
    hausdorff_um,
    polygon_confusion,
    polygon_hausdorff_um,
    polygon_score,
)

some = settings(max_examples=50, deadline=None)

maps = hnp.arrays(np.uint8, (5, 6), elements=st.integers(0, 2))


def test_confusion_by_hand() -> None:
    found = np.array([[0, 1, 1], [2, 2, 0]], dtype=np.uint8)
    truth = np.array([[0, 1, 2], [2, 255, 1]], dtype=np.uint8)
    confusion = confusion_matrix(found, truth, 3)
    assert confusion.tolist() == [[1, 0, 0], [1, 1, 0], [0, 1, 1]]
    _, one, two = area_scores(confusion)
    assert (one.dice, one.iou, one.precision, one.recall) == (0.5, pytest.approx(1 / 3), 0.5, 0.5)
    assert (two.dice, two.iou, two.precision, two.recall) == (pytest.approx(2 / 3), 0.5, 1.0, 0.5)


def test_scores_are_those_of_scikit_learn() -> None:
    rng = np.random.default_rng(1)
    found, truth = rng.integers(0, 4, (2, 50, 60))
    hidden = rng.random((50, 60)) < 0.3
    confusion = confusion_matrix(found, np.where(hidden, 9, truth), 4, ignored=9)
    y_true, y_pred = truth[~hidden], found[~hidden]
    np.testing.assert_array_equal(confusion, sklearn.metrics.confusion_matrix(y_true, y_pred))
    precision, recall, f1, _ = sklearn.metrics.precision_recall_fscore_support(y_true, y_pred)
    scores = area_scores(confusion)
    np.testing.assert_allclose([s.precision for s in scores], precision)
    np.testing.assert_allclose([s.recall for s in scores], recall)
    np.testing.assert_allclose([s.dice for s in scores], f1)
    np.testing.assert_allclose([s.iou for s in scores], sklearn.metrics.jaccard_score(y_true, y_pred, average=None))


def test_classes_that_do_not_occur() -> None:
    zero = np.zeros((2, 2), dtype=np.uint8)
    both, found_only, missed = area_scores(confusion_matrix(zero, zero, 2)), zero + 1, zero + 1
    assert [both[1].dice, both[1].iou, both[1].precision, both[1].recall] == [1.0] * 4
    spurious = area_scores(confusion_matrix(found_only, zero, 2))[1]
    assert [spurious.dice, spurious.iou, spurious.precision, spurious.recall] == [0.0] * 4
    lost = area_scores(confusion_matrix(zero, missed, 2))[1]
    assert [lost.dice, lost.iou, lost.precision, lost.recall] == [0.0] * 4
    assert confusion_matrix(zero, np.full((2, 2), 255), 2).tolist() == [[0, 0], [0, 0]]


def test_pooling_adds_pixels() -> None:
    pooled = AreaScore(9, 1, 0) + AreaScore(0, 0, 10)
    assert pooled == AreaScore(9, 1, 10)
    assert pooled.dice == pytest.approx(18 / 29)
    assert type(pooled) is AreaScore


@some
@given(maps, maps)
def test_exchanging_the_sides_exchanges_precision_and_recall(found: np.ndarray, truth: np.ndarray) -> None:
    for one, other in zip(
        area_scores(confusion_matrix(found, truth, 3)), area_scores(confusion_matrix(truth, found, 3)), strict=True
    ):
        assert (one.precision, one.recall, one.dice, one.iou) == (other.recall, other.precision, other.dice, other.iou)
        assert 0 <= one.iou <= one.dice <= 1
        assert one.dice == pytest.approx(2 * one.iou / (1 + one.iou))


@pytest.mark.parametrize(
    ("found", "truth", "message"),
    [
        (np.zeros((2, 2), int), np.zeros((2, 3), int), "one shape"),
        (np.full((2, 2), 3), np.zeros((2, 2), int), "0 to 2"),
        (np.zeros((2, 2), int), np.full((2, 2), -1), "0 to 2"),
    ],
)
def test_label_maps_that_cannot_be_compared(found: np.ndarray, truth: np.ndarray, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        confusion_matrix(found, truth, 3)


def at(*places: tuple[int, int]) -> np.ndarray:
    mask = np.zeros((24, 40), dtype=bool)
    mask[tuple(np.transpose(places))] = True
    return mask


def test_distance_of_two_pixels_that_are_not_square() -> None:
    # 4 columns of 0.5 µm and 3 rows of 0.25 µm apart: √(2² + 0.75²)
    assert hausdorff_um(at((2, 3)), at((5, 7)), mpp=(0.5, 0.25)) == pytest.approx(math.hypot(2.0, 0.75))


def test_one_stray_pixel_in_22_moves_the_maximum_and_not_the_95th_percentile() -> None:
    line = [(3, x) for x in range(5, 26)]
    found, truth = at(*line, (13, 10)), at(*line)
    assert hausdorff_um(found, truth, mpp=(1.0, 1.0)) == 10.0
    assert hausdorff_um(found, truth, mpp=(1.0, 1.0), percentile=95) == 0.0


def border(mask: np.ndarray) -> np.ndarray:
    padded = np.pad(mask, 1)
    return np.argwhere(padded & ~scipy.ndimage.binary_erosion(padded))


def test_hausdorff_is_that_of_scipy() -> None:
    noise = scipy.ndimage.gaussian_filter(np.random.default_rng(3).random((2, 60, 80)), (0, 3, 3))
    found, truth = noise > 0.52
    a, b = border(found) * (0.5, 0.25), border(truth) * (0.5, 0.25)
    both = [scipy.spatial.distance.directed_hausdorff(*pair)[0] for pair in ((a, b), (b, a))]
    assert hausdorff_um(found, truth, mpp=(0.25, 0.5)) == pytest.approx(max(both))
    nearest = scipy.spatial.distance.cdist(a, b)
    percentiles = [np.percentile(nearest.min(axis=axis), 95) for axis in (0, 1)]
    assert hausdorff_um(found, truth, mpp=(0.25, 0.5), percentile=95) == pytest.approx(max(percentiles))


def test_distances_of_empty_masks() -> None:
    some, none = at((2, 2)), at()[:24] & False
    assert hausdorff_um(none, none, mpp=(1.0, 1.0)) == 0.0
    assert hausdorff_um(some, none, mpp=(1.0, 1.0)) == hausdorff_um(none, some, mpp=(1.0, 1.0)) == math.inf


def test_ignored_pixels_have_no_border() -> None:
    found, truth = at((3, 3), (3, 30)), at((3, 3))
    assert hausdorff_um(found, truth, mpp=(1.0, 1.0)) == 27.0
    assert hausdorff_um(found, truth, mpp=(1.0, 1.0), ignored=at((3, 30))) == 0.0


@pytest.mark.parametrize(("mpp", "percentile"), [((0.0, 1.0), 95), ((1.0, 1.0), 0), ((1.0, 1.0), 101)])
def test_distances_need_a_pixel_size_and_a_percentile(mpp: tuple[float, float], percentile: float) -> None:
    with pytest.raises(ConfigError):
        hausdorff_um(at((1, 1)), at((1, 2)), mpp=mpp, percentile=percentile)
    with pytest.raises(ConfigError):
        polygon_hausdorff_um(shapely.box(0, 0, 1, 1), shapely.box(0, 0, 1, 1), mpp=mpp, percentile=percentile)


def test_polygon_score_by_hand() -> None:
    hole = shapely.box(0, 0, 4, 4).difference(shapely.box(1, 1, 3, 3))  # 12
    score = polygon_score(hole, shapely.box(0, 0, 4, 2))  # 8, of which 2 lie in the hole
    assert score == AreaScore(6.0, 6.0, 2.0)
    cut = polygon_score(hole, shapely.box(0, 0, 4, 2), area=shapely.box(0, 0, 1, 9))
    assert cut == AreaScore(2.0, 2.0, 0.0)


def test_polygon_confusion_by_hand() -> None:
    # found: class 1 loses 2 x 5 to the later class 2; truth: class 2 sticks out of the area by 2 x 10
    confusion = polygon_confusion(
        [shapely.box(0, 0, 6, 10), shapely.box(4, 0, 8, 5)],
        [1, 2],
        [shapely.box(0, 0, 5, 10), shapely.box(5, 0, 12, 10)],
        [1, 2],
        classes=3,
        area=shapely.box(0, 0, 10, 10),
    )
    np.testing.assert_allclose(confusion, [[0, 0, 0], [0, 45, 5], [30, 5, 15]], atol=1e-9)


def test_nothing_annotated_is_background() -> None:
    area = shapely.box(0, 0, 3, 4)
    assert polygon_confusion([], [], [], [], classes=2, area=area).tolist() == [[12.0, 0.0], [0.0, 0.0]]
    one = polygon_confusion([], [], [shapely.box(0, 0, 1, 4)], [1], classes=2, area=area)
    assert one.tolist() == [[8.0, 0.0], [4.0, 0.0]]
    nowhere = polygon_confusion([area], [1], [area], [1], classes=2, area=shapely.Polygon())
    assert nowhere.tolist() == [[0.0, 0.0], [0.0, 0.0]]


boxes = st.lists(
    st.tuples(st.integers(0, 9), st.integers(0, 9), st.integers(1, 6), st.integers(1, 6), st.integers(0, 2)), max_size=6
)


@some
@given(boxes, boxes)
def test_polygons_say_what_pixels_say_where_pixels_are_exact(
    found: list[tuple[int, ...]], truth: list[tuple[int, ...]]
) -> None:
    drawn = np.zeros((2, 12, 12), dtype=np.uint8)
    for side, shapes in enumerate((found, truth)):
        for x, y, w, h, number in shapes:
            drawn[side, y : y + h, x : x + w] = number
    polygons = [[shapely.box(x, y, x + w, y + h) for x, y, w, h, _ in shapes] for shapes in (found, truth)]
    numbers = [[number for *_, number in shapes] for shapes in (found, truth)]
    confusion = polygon_confusion(
        polygons[0], numbers[0], polygons[1], numbers[1], classes=3, area=shapely.box(0, 0, 12, 12)
    )
    np.testing.assert_allclose(confusion, confusion_matrix(drawn[0], drawn[1], 3), atol=1e-9)


def test_polygons_that_cannot_be_compared() -> None:
    bow = shapely.Polygon([(0, 0), (2, 2), (2, 0), (0, 2)])
    area = shapely.box(0, 0, 9, 9)
    with pytest.raises(ConfigError, match="1 of 2 polygons are missing or invalid"):
        polygon_confusion([area, bow], [1, 1], [], [], classes=2, area=area)
    with pytest.raises(ConfigError, match="0 to 1 for each"):
        polygon_confusion([area], [2], [], [], classes=2, area=area)


def test_polygon_distance_by_hand() -> None:
    found, truth = shapely.box(0, 0, 14, 10), shapely.box(0, 0, 10, 10)
    assert polygon_hausdorff_um(found, truth, mpp=(0.5, 0.5)) == pytest.approx(2.0)
    # Of 48 px of found border 30 lie on the true one, 8 go away evenly up to 4 px, 10 are 4 px away: the 75 % point is
    # at 36, where 30 + 2 d = 36. The other way round, 30 of 40 px lie on the found border.
    figure = polygon_hausdorff_um(found, truth, mpp=(1.0, 1.0), percentile=75, step_um=0.01)
    assert figure == pytest.approx(3.0, abs=0.02)
    # More corners on one side are no more border: here the left side alone has 1000 of them.
    left = [(0, y) for y in np.linspace(10, 0, 1001)]
    cornered = shapely.Polygon([*left, (14, 0), (14, 10)])
    figure = polygon_hausdorff_um(cornered, truth, mpp=(1.0, 1.0), percentile=75, step_um=0.1)
    assert figure == pytest.approx(3.0, abs=0.1)
    assert polygon_hausdorff_um(found, truth, mpp=(1.0, 1.0), percentile=95) == pytest.approx(4.0)
    assert polygon_hausdorff_um(found, truth, mpp=(0.5, 9.0)) == pytest.approx(2.0)


def test_polygon_distance_is_that_of_shapely() -> None:
    found = shapely.Point(0, 0).buffer(50).difference(shapely.Point(10, 5).buffer(12))
    truth = shapely.union_all([shapely.Point(8, 3).buffer(45), shapely.box(90, 0, 100, 30)])
    expected = shapely.hausdorff_distance(found.boundary, truth.boundary, densify=0.001)
    assert polygon_hausdorff_um(found, truth, mpp=(1.0, 1.0), step_um=0.1) == pytest.approx(expected, abs=0.05)


def test_polygon_distance_of_nothing() -> None:
    some, none = shapely.box(0, 0, 1, 1), shapely.Polygon()
    assert polygon_hausdorff_um(none, none, mpp=(1.0, 1.0)) == 0.0
    assert polygon_hausdorff_um(some, none, mpp=(1.0, 1.0)) == math.inf
    with pytest.raises(ConfigError, match="step of 0"):
        polygon_hausdorff_um(some, some, mpp=(1.0, 1.0), step_um=0.0)
