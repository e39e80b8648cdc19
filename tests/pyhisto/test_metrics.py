"""Scores worked out by hand, and intervals against published numbers."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.optimize
import shapely

from pyhisto.errors import ConfigError
from pyhisto.metrics import DetectionScore, dice, ki67_index, match_points, score_detections

NOTHING = np.empty((0, 2))


def test_dice_by_hand() -> None:
    a, b = shapely.box(0, 0, 4, 1), shapely.box(3, 0, 5, 1)
    assert dice(a, b) == pytest.approx(2 * 1 / (4 + 2))
    assert dice(a, a) == 1.0
    assert dice(a, shapely.box(9, 9, 10, 10)) == 0.0
    assert dice(shapely.Polygon(), shapely.Polygon()) == 1.0
    assert dice(a, shapely.Polygon()) == 0.0


def test_scores_by_hand() -> None:
    score = DetectionScore(true_positive=6, false_positive=2, false_negative=4)
    assert score.precision == 0.75
    assert score.recall == 0.6
    assert score.f1 == pytest.approx(2 * 0.75 * 0.6 / (0.75 + 0.6))


def test_nothing_to_find() -> None:
    assert DetectionScore(0, 0, 0).f1 == 1.0
    assert score_detections(NOTHING, NOTHING, 1.0) == DetectionScore(0, 0, 0)
    assert score_detections(np.zeros((3, 2)), NOTHING, 1.0) == DetectionScore(0, 3, 0)
    assert score_detections(NOTHING, np.zeros((3, 2)), 1.0) == DetectionScore(0, 0, 3)
    assert DetectionScore(0, 3, 0).precision == 0.0
    assert match_points(np.zeros((2, 2)), np.full((2, 2), 9.0), 1.0).shape == (0, 2)


def test_greedy_matching_would_lose_a_pair() -> None:
    # found 1 is nearest to truth 0 (0.9), but found 0 reaches nothing else: the best pairs are (0, 0) and (1, 1).
    found = np.array([[0.0, 0.0], [1.9, 0.0]])
    truth = np.array([[1.0, 0.0], [3.0, 0.0]])
    assert sorted(match_points(found, truth, 1.5).tolist()) == [[0, 0], [1, 1]]


def test_shortest_among_equally_many_pairs() -> None:
    found = np.array([[0.0, 0.0], [4.0, 0.0]])
    truth = np.array([[3.5, 0.0], [0.5, 0.0]])
    assert sorted(match_points(found, truth, 10.0).tolist()) == [[0, 1], [1, 0]]


def test_two_detections_of_one_nucleus_count_once() -> None:
    assert score_detections(np.array([[0.0, 0.0], [0.1, 0.0]]), np.array([[0.0, 0.0]]), 1.0) == DetectionScore(1, 1, 0)


def test_points_on_one_another_and_at_the_radius() -> None:
    assert match_points(np.zeros((1, 2)), np.zeros((1, 2)), 1.0).tolist() == [[0, 0]]
    assert match_points(np.zeros((1, 2)), np.array([[0.0, 2.0]]), 2.0).tolist() == [[0, 0]]
    assert match_points(np.zeros((1, 2)), np.array([[0.0, 2.0]]), 1.99).tolist() == []


def test_matching_equals_one_big_assignment() -> None:
    rng = np.random.default_rng(4)
    found, truth, radius = rng.uniform(0, 60, (150, 2)), rng.uniform(0, 60, (130, 2)), 4.0
    distance = np.linalg.norm(found[:, None] - truth[None], axis=2)
    cost = np.where(distance <= radius, distance, 1e4)
    a, b = scipy.optimize.linear_sum_assignment(cost)
    best = distance[a, b][distance[a, b] <= radius]
    pairs = match_points(found, truth, radius)
    own = distance[pairs[:, 0], pairs[:, 1]]
    assert len(pairs) == len(best)
    assert own.max() <= radius
    assert own.sum() == pytest.approx(best.sum())
    assert len(set(pairs[:, 0])) == len(set(pairs[:, 1])) == len(pairs)


def in_one_field(positive: int, total: int) -> tuple[np.ndarray, np.ndarray]:
    return np.full((total, 2), 5.0), np.arange(total) < positive


@pytest.mark.parametrize(
    ("positive", "total", "low", "high"),
    [
        # Newcombe, Statistics in Medicine 17 (1998), table I, method 3
        (81, 263, 25.53, 36.62),
        (15, 148, 6.24, 16.05),
        (0, 20, 0.00, 16.11),
        (1, 29, 0.61, 17.18),
        (10, 100, 5.52, 17.44),
        (29, 29, 88.30, 100.0),
    ],
)
def test_wilson_against_published_numbers(positive: int, total: int, low: float, high: float) -> None:
    index = ki67_index(*in_one_field(positive, total), block=10.0)
    assert index.method == "Wilson score interval"
    assert (index.positive, index.total) == (positive, total)
    assert index.percent == pytest.approx(100 * positive / total)
    assert (round(index.low, 2), round(index.high, 2)) == (low, high)


def fields(positives: list[int], each: int) -> tuple[np.ndarray, np.ndarray]:
    """Fields of 100 in a row, `each` cells in every one of them, the first ones positive."""
    points = [(100 * i + 1.0 + j, 50.0) for i in range(len(positives)) for j in range(each)]
    flags = [j < positive for positive in positives for j in range(each)]
    return np.array(points), np.array(flags)


def test_bootstrap_knows_that_neighbours_are_alike() -> None:
    clustered = ki67_index(*fields([20, 0] * 10, each=20), block=100.0)
    mixed = ki67_index(*fields([10] * 20, each=20), block=100.0)
    assert clustered.method == "bootstrap over 20 fields"
    assert clustered.percent == mixed.percent == 50.0
    assert mixed.low == mixed.high == 50.0  # every field says the same
    # Positive fields among 20 fair draws: P(X <= 5) = 0.0207, P(X <= 6) = 0.0577, so the 2.5 % point is 6 of 20, or 5
    # by the luck of 2000 draws; single cells as independent draws would give 45.1 % to 54.9 %.
    assert clustered.low in {25.0, 30.0}
    assert clustered.high in {70.0, 75.0}


def test_bootstrap_is_reproducible() -> None:
    points, positive = fields([0, 3, 7, 1, 9, 2, 0, 4, 6, 5, 8], each=10)
    first = ki67_index(points, positive, block=100.0, seed=1)
    assert ki67_index(points, positive, block=100.0, seed=1) == first
    assert ki67_index(points, positive, block=100.0, seed=2) != first
    assert first.low < first.percent < first.high


def test_ten_fields_are_enough_and_nine_are_not() -> None:
    assert ki67_index(*fields([1] * 9, each=2), block=100.0).method.startswith("Wilson")
    assert ki67_index(*fields([1] * 10, each=2), block=100.0).method.startswith("bootstrap")


@pytest.mark.parametrize("share", [0, 2])
def test_no_certainty_from_fields_that_are_all_alike_at_the_limit(share: int) -> None:
    # Twelve fields without a positive cell say "below some percent", not "exactly 0".
    index = ki67_index(*fields([share] * 12, each=2), block=100.0)
    assert index.method == "Wilson score interval"
    assert index.high - index.low > 10


def test_negative_coordinates_make_their_own_fields() -> None:
    points = np.array([[-1.0, 5.0], [1.0, 5.0]] * 5 + [[15.0 + 10 * i, 5.0] for i in range(8)])
    index = ki67_index(points, np.arange(len(points)) % 2 == 0, block=10.0)
    assert index.method == "bootstrap over 10 fields"


def test_no_cells() -> None:
    index = ki67_index(NOTHING, np.empty(0, dtype=bool), block=10.0)
    assert (index.positive, index.total, index.method) == (0, 0, "no cells")
    assert np.isnan([index.percent, index.low, index.high]).all()


@pytest.mark.parametrize("block", [0.0, -3.0])
def test_a_field_needs_a_size(block: float) -> None:
    with pytest.raises(ConfigError, match="positive size"):
        ki67_index(np.zeros((1, 2)), np.array([True]), block=block)
