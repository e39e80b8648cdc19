"""Instances: worked out by hand, the published algorithm step by step, MONAI and scikit-image."""

from __future__ import annotations

import numpy as np
import pytest
import shapely
import skimage.metrics
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from monai.metrics.panoptic_quality import compute_panoptic_quality

from pyhisto.errors import ConfigError
from pyhisto.metrics import (
    PanopticQuality,
    aggregated_jaccard,
    aji,
    match_instances,
    multiclass_panoptic_quality,
    overlaps_of_labels,
    overlaps_of_polygons,
    panoptic_by_class,
    panoptic_quality,
)

some = settings(max_examples=60, deadline=None)

TRUTH = np.array([[1, 1, 1, 1, 0, 0, 2, 2, 0, 0]])
FOUND = np.array([[0, 7, 7, 7, 7, 0, 0, 5, 5, 3]])

maps = hnp.arrays(np.int32, (6, 7), elements=st.integers(0, 4))


def test_table_by_hand() -> None:
    table = overlaps_of_labels(FOUND, TRUTH)
    assert table.found_ids.tolist() == [3, 5, 7]
    assert table.found_areas.tolist() == [1, 2, 4]
    assert table.true_ids.tolist() == [1, 2]
    assert table.true_areas.tolist() == [4, 2]
    assert table.pairs.tolist() == [[1, 1], [2, 0]]
    assert table.intersections.tolist() == [1, 3]
    assert table.iou.tolist() == pytest.approx([1 / 3, 3 / 5])


def test_figures_by_hand() -> None:
    table = overlaps_of_labels(FOUND, TRUTH)
    assert aggregated_jaccard(table) == (4.0, 9.0)  # 3 of 5 and 1 of 3, and 1 px of the third instance
    assert aji(table) == pytest.approx(4 / 9)
    score = panoptic_quality(table)
    assert score == PanopticQuality(1, 2, 1, pytest.approx(0.6))
    assert (score.dq, score.sq, score.pq) == (pytest.approx(0.4), pytest.approx(0.6), pytest.approx(0.24))
    assert panoptic_quality(table, threshold=0.3).true_positive == 2


def test_one_instance_may_serve_two_true_ones_in_aji() -> None:
    table = overlaps_of_labels(np.array([[1, 1, 1, 1]]), np.array([[1, 1, 2, 2]]))
    assert aggregated_jaccard(table) == (4.0, 8.0)


def test_half_is_not_enough_for_panoptic_quality() -> None:
    table = overlaps_of_labels(np.array([[1, 0]]), np.array([[1, 1]]))
    assert panoptic_quality(table) == PanopticQuality(0, 1, 1, 0.0)
    assert panoptic_quality(table).sq == 0.0


def test_nothing_on_one_side_or_on_both() -> None:
    none, some = np.zeros((3, 3), dtype=int), np.eye(3, dtype=int)
    nothing = overlaps_of_labels(none, none)
    assert aji(nothing) == 1.0
    score = panoptic_quality(nothing)
    assert (score.pq, score.dq, score.sq) == (1.0, 1.0, 1.0)
    for table in (overlaps_of_labels(some, none), overlaps_of_labels(none, some)):
        assert aji(table) == 0.0
        score = panoptic_quality(table)
        assert (score.pq, score.dq, score.sq) == (0.0, 0.0, 0.0)
    assert aji(overlaps_of_polygons([], [])) == 1.0
    assert aji(overlaps_of_polygons([], [shapely.box(0, 0, 1, 1)])) == 0.0
    assert panoptic_quality(overlaps_of_polygons([shapely.box(0, 0, 1, 1)], [])).pq == 0.0


def test_ignored_pixels_do_not_count() -> None:
    table = overlaps_of_labels(FOUND, TRUTH, ignored=np.array([[1, 0, 0, 0, 1, 0, 0, 0, 0, 1]], dtype=bool))
    assert table.found_ids.tolist() == [5, 7]
    assert aggregated_jaccard(table) == (4.0, 6.0)


def kumar(found: np.ndarray, truth: np.ndarray) -> float:
    """Algorithm 1 of Kumar et al. 2017, line by line."""
    c, u, used = 0, 0, set()
    for i in set(truth[truth > 0].tolist()):
        best, chosen = 0.0, None
        for j in sorted(set(found[found > 0].tolist())):
            iou = ((truth == i) & (found == j)).sum() / ((truth == i) | (found == j)).sum()
            if iou > best:
                best, chosen = iou, j
        if chosen is None:
            u += (truth == i).sum()
        else:
            c += ((truth == i) & (found == chosen)).sum()
            u += ((truth == i) | (found == chosen)).sum()
            used.add(chosen)
    u += sum((found == j).sum() for j in set(found[found > 0].tolist()) - used)
    return c / u if u else 1.0


@some
@given(maps, maps)
def test_aji_is_the_published_algorithm(found: np.ndarray, truth: np.ndarray) -> None:
    figure = aji(overlaps_of_labels(found, truth))
    assert figure == pytest.approx(kumar(found, truth))
    assert 0 <= figure <= 1


@some
@given(maps, maps)
def test_table_is_that_of_scikit_image(found: np.ndarray, truth: np.ndarray) -> None:
    table = overlaps_of_labels(found, truth)
    dense = np.zeros((5, 5))
    dense[table.true_ids[table.pairs[:, 1]], table.found_ids[table.pairs[:, 0]]] = table.intersections
    expected = np.zeros((5, 5))
    counts = skimage.metrics.contingency_table(truth, found).toarray()
    expected[: counts.shape[0], : counts.shape[1]] = counts
    np.testing.assert_array_equal(dense[1:, 1:], expected[1:, 1:])


@pytest.mark.parametrize("seed", range(4))
def test_panoptic_quality_is_that_of_monai(seed: int) -> None:
    rng = np.random.default_rng(seed)
    truth = np.kron(np.arange(1, 26).reshape(5, 5) * (rng.random((5, 5)) < 0.8), np.ones((8, 8), dtype=int))
    found = np.roll(truth, rng.integers(0, 2, 2), axis=(0, 1)) * (rng.random(truth.shape) < 0.9)
    expected = compute_panoptic_quality(torch.tensor(found), torch.tensor(truth), output_confusion_matrix=True)
    score = panoptic_quality(overlaps_of_labels(found, truth))
    assert [score.true_positive, score.false_positive, score.false_negative] == expected[:3].tolist()
    assert score.iou_sum == pytest.approx(expected[3].item(), rel=1e-5)
    assert score.true_positive > 0


@some
@given(maps, maps)
def test_exchanging_the_sides_changes_no_panoptic_quality(found: np.ndarray, truth: np.ndarray) -> None:
    one, other = (panoptic_quality(overlaps_of_labels(*pair)) for pair in ((found, truth), (truth, found)))
    assert (one.pq, one.sq, one.dq) == pytest.approx((other.pq, other.sq, other.dq))
    assert 0 <= one.pq <= min(one.sq, one.dq) <= 1


def test_every_map_agrees_with_itself() -> None:
    table = overlaps_of_labels(TRUTH, TRUTH)
    assert (aji(table), panoptic_quality(table).pq) == (1.0, 1.0)


def test_polygons_by_hand() -> None:
    truth = [shapely.box(0, 0, 4, 1), shapely.box(6, 0, 8, 1)]
    found = [shapely.box(1, 0, 5, 1), shapely.box(7, 0, 9, 1), shapely.box(9, 0, 10, 1)]
    table = overlaps_of_polygons(found, truth)
    assert table.pairs.tolist() == [[0, 0], [1, 1]]  # the third only touches
    assert aji(table) == pytest.approx(4 / 9)
    assert panoptic_quality(table).pq == pytest.approx(0.24)


def test_nuclei_that_overlap_one_another_match_one_to_one() -> None:
    truth = [shapely.box(0, 0, 10, 10), shapely.box(0, 8, 10, 18)]
    found = [shapely.box(0, 0, 10, 9), shapely.box(0, 0, 10, 10), shapely.box(0, 0, 10, 7)]
    table = overlaps_of_polygons(found, truth)
    matched = match_instances(table)
    assert table.pairs[matched].tolist() == [[1, 0]]
    assert panoptic_quality(table) == PanopticQuality(1, 2, 1, 1.0)


def test_holes_and_parts_count_exactly() -> None:
    ring = shapely.box(0, 0, 4, 4).difference(shapely.box(1, 1, 3, 3))
    parts = shapely.MultiPolygon([shapely.box(0, 0, 1, 4), shapely.box(10, 0, 11, 4)])
    table = overlaps_of_polygons([ring], [parts])
    assert (table.intersections.tolist(), table.iou.tolist()) == ([4.0], [pytest.approx(4 / 16)])


def test_polygons_and_labels_give_one_table() -> None:
    rng = np.random.default_rng(5)
    labels = np.zeros((2, 60, 60), dtype=int)
    polygons: list[list[shapely.Polygon]] = [[], []]
    for side in (0, 1):
        for number in range(25):
            x, y = (number % 5 * 12 + rng.integers(0, 4), number // 5 * 12 + rng.integers(0, 4))
            w, h = rng.integers(3, 9, 2)
            labels[side, y : y + h, x : x + w] = number + 1
            polygons[side].append(shapely.box(x, y, x + w, y + h))
    a, b = overlaps_of_labels(*labels), overlaps_of_polygons(*polygons)
    assert a.pairs.tolist() == b.pairs.tolist()
    np.testing.assert_allclose(a.intersections, b.intersections)
    np.testing.assert_allclose(a.found_areas, b.found_areas)
    assert panoptic_quality(a).pq == pytest.approx(panoptic_quality(b).pq)


def test_classes_are_matched_among_themselves_and_pooled() -> None:
    table = overlaps_of_labels(np.array([[1, 1, 0, 2, 2]]), np.array([[1, 1, 0, 2, 2]]))
    a, b, c = panoptic_by_class(table, ["a", "b"], ["a", "a"], classes=["a", "b", "c"])
    assert a == PanopticQuality(1, 0, 1, 1.0)
    assert b == PanopticQuality(0, 1, 0, 0.0)
    assert c.empty
    assert multiclass_panoptic_quality([a, b, c]) == pytest.approx((2 / 3 + 0) / 2)  # c occurs nowhere
    assert multiclass_panoptic_quality([c]) == 1.0
    pooled = a + PanopticQuality(3, 1, 0, 2.4)
    assert pooled == PanopticQuality(4, 1, 1, pytest.approx(3.4))
    assert pooled.pq == pytest.approx(3.4 / 5)


def test_what_cannot_be_compared() -> None:
    bow = shapely.Polygon([(0, 0), (2, 2), (2, 0), (0, 2)])
    with pytest.raises(ConfigError, match="3 of 4 polygons are missing, invalid or without area"):
        overlaps_of_polygons([bow, None, shapely.Point(1, 1), shapely.box(0, 0, 1, 1)], [])
    with pytest.raises(ConfigError, match="one shape"):
        overlaps_of_labels(TRUTH, TRUTH.T)
    with pytest.raises(ConfigError, match="label of -1"):
        overlaps_of_labels(-TRUTH // 2, TRUTH)
    with pytest.raises(ConfigError, match="threshold"):
        panoptic_quality(overlaps_of_labels(TRUTH, TRUTH), threshold=1.0)
    with pytest.raises(ConfigError, match="one for each of 2 found"):
        panoptic_by_class(overlaps_of_labels(TRUTH, TRUTH), ["a"], ["a", "b"], classes=["a", "b"])
