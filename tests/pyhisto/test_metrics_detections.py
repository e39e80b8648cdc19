"""Detections by class, and what chance gives: worked out by hand, against brute force and geometry."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.optimize
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from pyhisto.errors import ConfigError
from pyhisto.metrics import (
    DetectionScore,
    chance_detections,
    compare_detections,
    match_points,
    matching,
    score_detections,
    shift_points,
)

some = settings(max_examples=60, deadline=None)

NOTHING = np.empty((0, 2))
CLASSES = ("Positive", "Negative")

# Whole numbers, so that many distances are equal.
points = hnp.arrays(np.float64, st.tuples(st.integers(0, 9), st.just(2)), elements=st.integers(0, 8))


def brute_force(found: np.ndarray, truth: np.ndarray, radius: float) -> tuple[int, float]:
    """Return pairs and distance of one big assignment, in which a pair out of reach costs more than all others."""
    distance = np.linalg.norm(found[:, None] - truth[None], axis=2)
    a, b = scipy.optimize.linear_sum_assignment(np.where(distance <= radius, distance, 1e4))
    best = distance[a, b][distance[a, b] <= radius]
    return len(best), best.sum()


@pytest.mark.parametrize("dense_cells", [200_000, 0], ids=["dense", "sparse"])
@some
@given(found=points, truth=points, radius=st.sampled_from([1.0, 1.5, 2.0, 3.0, 20.0]))
def test_matching_is_the_best_there_is(dense_cells: int, found: np.ndarray, truth: np.ndarray, radius: float) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(matching, "DENSE_CELLS", dense_cells)
        pairs = match_points(found, truth, radius)
    distance = np.linalg.norm(found[pairs[:, 0]] - truth[pairs[:, 1]], axis=1)
    count, total = brute_force(found, truth, radius)
    assert len(pairs) == count == len(set(pairs[:, 0])) == len(set(pairs[:, 1]))
    assert (distance <= radius).all()
    assert distance.sum() == pytest.approx(total)


def test_large_crowd_is_matched_sparsely_and_well() -> None:
    rng = np.random.default_rng(2)
    found, truth = rng.uniform(0, 60, (700, 2)), rng.uniform(0, 60, (650, 2))
    pairs = match_points(found, truth, 6.0)  # all within reach of one another, in steps
    distance = np.linalg.norm(found[pairs[:, 0]] - truth[pairs[:, 1]], axis=1)
    count, total = brute_force(found, truth, 6.0)
    assert (len(pairs), distance.sum()) == (count, pytest.approx(total))


@some
@given(points, points)
def test_exchanging_the_sides_exchanges_precision_and_recall(found: np.ndarray, truth: np.ndarray) -> None:
    one, other = score_detections(found, truth, 1.5), score_detections(truth, found, 1.5)
    assert (one.precision, one.recall, one.f1) == (other.recall, other.precision, other.f1)
    assert min(one.precision, one.recall) - 1e-12 <= one.f1 <= max(one.precision, one.recall) + 1e-12


def test_one_empty_side_earns_nothing() -> None:
    for score in (DetectionScore(0, 3, 0), DetectionScore(0, 0, 3)):
        assert (score.precision, score.recall, score.f1) == (0.0, 0.0, 0.0)
    nothing = DetectionScore(0, 0, 0)
    assert (nothing.precision, nothing.recall, nothing.f1) == (1.0, 1.0, 1.0)


def test_classes_by_hand() -> None:
    truth = np.array([[0.0, 0], [10, 0], [20, 0], [30, 0]])
    true_classes = ["Positive", "Positive", "Negative", "Negative"]
    found = np.array([[1.0, 0], [11, 0], [21, 0], [50, 0]])
    found_classes = ["Positive", "Negative", "Negative", "Positive"]
    result = compare_detections(found, found_classes, truth, true_classes, classes=CLASSES, radius=4.0)
    assert result.overall == DetectionScore(3, 1, 1)
    assert result.by_class == (DetectionScore(1, 1, 1), DetectionScore(1, 1, 1))
    # rows: true Positive, true Negative, spurious; columns: found Positive, found Negative, missed
    assert result.confusion.tolist() == [[1, 1, 0], [0, 1, 1], [1, 0, 0]]
    pooled = result + result
    assert (pooled.overall, pooled.by_class[0]) == (DetectionScore(6, 2, 2), DetectionScore(2, 2, 2))
    assert pooled.confusion.tolist() == [[2, 2, 0], [0, 2, 2], [2, 0, 0]]


def test_within_a_class_the_nearest_of_that_class_is_taken() -> None:
    # A Negative detection stands nearer to the Positive point, which for its own class changes nothing.
    result = compare_detections(
        np.array([[0.9, 0], [0.5, 0]]),
        ["Positive", "Negative"],
        np.zeros((1, 2)),
        ["Positive"],
        classes=CLASSES,
        radius=1.0,
    )
    assert result.by_class == (DetectionScore(1, 0, 0), DetectionScore(0, 1, 0))


@some
@given(points, points)
def test_confusion_adds_up(found: np.ndarray, truth: np.ndarray) -> None:
    a, b = (np.array([CLASSES[int(x + y) % 2] for x, y in side], dtype=object) for side in (found, truth))
    result = compare_detections(found, a, truth, b, classes=CLASSES, radius=1.5)
    assert result.confusion[:-1].sum() == len(truth)
    assert result.confusion[:, :-1].sum() == len(found)
    assert result.confusion[:-1, :-1].sum() == result.overall.true_positive
    assert (result.confusion >= 0).all()
    assert result.confusion[-1, -1] == 0


def test_nothing_found_and_nothing_true() -> None:
    result = compare_detections(NOTHING, [], NOTHING, [], classes=CLASSES, radius=1.0)
    assert result.overall.f1 == result.by_class[1].f1 == 1.0
    assert not result.confusion.any()
    chance = chance_detections(
        NOTHING, [], np.ones((2, 2)), ["Positive"] * 2, classes=CLASSES, radius=1.0, area=shapely.box(0, 0, 9, 9)
    )
    assert chance.overall == DetectionScore(0, 0, 2)


def test_shift_comes_in_on_the_other_side() -> None:
    # p = 1.32471795724: 1 / p = 0.75487766625, 1 / p² = 0.56984029100
    moved = shift_points(np.array([[10.0, 20.0], [60.0, 20.0]]), shapely.box(0, 0, 100, 200), 1)
    np.testing.assert_allclose(moved, [[85.487766625, 133.9680582], [35.487766625, 133.9680582]], rtol=1e-9)
    # 2 / p - 1 = 0.50975533249, 2 / p² - 1 = 0.13968058199
    moved = shift_points(np.array([[1010.0, 520.0]]), shapely.box(1000, 500, 1100, 700), 2)
    np.testing.assert_allclose(moved, [[1060.975533249, 547.936116398]], rtol=1e-9)


def test_shift_stays_in_an_area_of_any_form_and_keeps_densities() -> None:
    parts = [
        shapely.box(0, 0, 60, 20).union(shapely.box(0, 0, 20, 60)),  # an L
        shapely.Point(200, 200).buffer(30).difference(shapely.Point(200, 200).buffer(15)),
    ]
    area = shapely.MultiPolygon(parts)
    x, y = np.meshgrid(np.arange(0.125, 240, 0.25), np.arange(0.125, 240, 0.25))
    grid = np.column_stack([x.ravel(), y.ravel()])
    grid = grid[shapely.intersects_xy(area, *grid.T)]
    for number in (1, 2, 3):
        moved = shift_points(grid, area, number)
        assert shapely.intersects_xy(area, *moved.T).all()
        assert np.linalg.norm(moved - grid, axis=1).min() > 5
        for piece in (shapely.box(0, 0, 20, 20), shapely.box(40, 0, 60, 20), shapely.box(170, 170, 200, 230)):
            before, after = (shapely.intersects_xy(piece, *some.T).sum() for some in (grid, moved))
            assert after == pytest.approx(before, rel=0.02)


def test_chance_is_the_area_that_true_points_cover() -> None:
    # Discs of radius 3 at a lattice of 10 cover π 9 / 100 of the area; few detections hardly get in each other's way.
    x, y = np.meshgrid(np.arange(5.0, 500, 10), np.arange(5.0, 500, 10))
    truth = np.column_stack([x.ravel(), y.ravel()])
    found = truth[::25] + 0.5
    names = ["Positive"] * len(found), ["Positive"] * len(truth)
    real = compare_detections(found, names[0], truth, names[1], classes=CLASSES, radius=3.0)
    assert real.overall.precision == 1.0
    rng = np.random.default_rng(0)
    scattered = rng.uniform(0, 500, (100, 2))
    chance = chance_detections(
        scattered, names[0], truth, names[1], classes=CLASSES, radius=3.0, area=shapely.box(0, 0, 500, 500), shifts=16
    )
    assert chance.overall.precision == pytest.approx(math.pi * 9 / 100, abs=0.03)
    assert chance.by_class[0] == chance.overall
    assert chance.by_class[1] == DetectionScore(0, 0, 0)


def test_chance_is_the_mean_over_the_shifts() -> None:
    rng = np.random.default_rng(8)
    found, truth = rng.uniform(0, 50, (2, 40, 2))
    a, b = (np.array(CLASSES)[rng.integers(0, 2, 40)] for _ in range(2))
    area = shapely.box(0, 0, 50, 50)
    chance = chance_detections(found, a, truth, b, classes=CLASSES, radius=4.0, area=area, shifts=3)
    single = [
        compare_detections(shift_points(found, area, k), a, truth, b, classes=CLASSES, radius=4.0) for k in (1, 2, 3)
    ]
    assert chance.overall.f1 == pytest.approx(np.mean([one.overall.f1 for one in single]))
    assert chance.by_class[0].recall == pytest.approx(np.mean([one.by_class[0].recall for one in single]))
    np.testing.assert_allclose(chance.confusion, np.mean([one.confusion for one in single], axis=0))
    assert chance.overall.true_positive + chance.overall.false_negative == pytest.approx(40)


def test_what_cannot_be_compared() -> None:
    one, area = np.ones((1, 2)), shapely.box(0, 0, 9, 9)
    with pytest.raises(ConfigError, match="points of Stroma"):
        compare_detections(one, ["Stroma"], one, ["Positive"], classes=CLASSES, radius=1.0)
    with pytest.raises(ConfigError, match="2 classes for 1 points"):
        compare_detections(one, ["Positive"] * 2, one, ["Positive"], classes=CLASSES, radius=1.0)
    with pytest.raises(ConfigError, match="to pool"):
        _ = compare_detections(one, ["a"], one, ["a"], classes=["a"], radius=1.0) + compare_detections(
            one, ["b"], one, ["b"], classes=["b"], radius=1.0
        )
    for radius in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ConfigError, match="radius"):
            match_points(one, one, radius)
    for bad in (np.ones(2), np.ones((1, 3)), np.full((1, 2), np.nan)):
        with pytest.raises(ConfigError, match=r"\(n, 2\)"):
            match_points(bad, one, 1.0)
    with pytest.raises(ConfigError, match="1 of 2 points lie outside"):
        shift_points(np.array([[1.0, 1.0], [10.0, 1.0]]), area, 1)
    for nowhere in (shapely.Polygon(), shapely.Point(1, 1), shapely.Polygon([(0, 0), (2, 2), (2, 0), (0, 2)])):
        with pytest.raises(ConfigError, match="no valid polygon"):
            shift_points(one, nowhere, 1)
    with pytest.raises(ConfigError, match="offset number 0"):
        shift_points(one, area, 0)
    with pytest.raises(ConfigError, match="0 shifts"):
        chance_detections(one, ["a"], one, ["a"], classes=["a"], radius=1.0, area=area, shifts=0)
