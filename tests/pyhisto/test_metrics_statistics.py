"""Calibration, intervals and agreement: worked out by hand, published figures, scikit-learn, scipy and MONAI."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats
import sklearn.calibration
import sklearn.metrics
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from monai.metrics.calibration import calibration_binning

from pyhisto.errors import ConfigError
from pyhisto.metrics import (
    agreement,
    bland_altman,
    bootstrap_interval,
    brier_score,
    expected_calibration_error,
    icc_2_1,
    jackknife_interval,
    lin_concordance,
    mean_absolute_error,
    mean_interval,
    pearson,
    ratio_interval,
    reliability,
    spearman,
)

some = settings(max_examples=60, deadline=None)

NO_NUMBERS = np.empty(0)


# Calibration


def test_calibration_by_hand() -> None:
    probability, outcome = np.array([0.1, 0.1, 0.9, 0.9]), np.array([0, 1, 1, 1])
    curve = reliability(probability, outcome, bins=2)
    assert curve.counts.tolist() == [2, 2]
    np.testing.assert_allclose(curve.probability, [0.1, 0.9])
    assert curve.frequency.tolist() == [0.5, 1.0]
    assert curve.edges.tolist() == [0.0, 0.5, 1.0]
    assert expected_calibration_error(curve) == pytest.approx(0.5 * 0.4 + 0.5 * 0.1)
    assert brier_score(probability, outcome) == pytest.approx((0.01 + 0.81 + 0.01 + 0.01) / 4)


def test_bins_hold_their_upper_border() -> None:
    curve = reliability(np.array([0.0, 0.5, 1.0]), np.array([0, 1, 1]), bins=4)
    assert curve.counts.tolist() == [1, 1, 0, 1]
    assert np.isnan(curve.frequency[2])


def test_calibration_is_that_of_scikit_learn_and_monai() -> None:
    rng = np.random.default_rng(0)
    probability = rng.beta(1, 4, 500)
    outcome = rng.random(500) < probability**1.5
    curve = reliability(probability, outcome, bins=10)
    full = curve.counts > 0
    frequency, mean = sklearn.calibration.calibration_curve(outcome, probability, n_bins=10)
    np.testing.assert_allclose(curve.frequency[full], frequency)
    np.testing.assert_allclose(curve.probability[full], mean)
    assert brier_score(probability, outcome) == pytest.approx(sklearn.metrics.brier_score_loss(outcome, probability))
    p, f, n = (
        part[0, 0].numpy()
        for part in calibration_binning(
            torch.tensor(probability)[None, None], torch.tensor(outcome)[None, None], num_bins=10, right=True
        )
    )
    expected = np.nansum(np.abs(p - f) * n) / n.sum()
    assert expected_calibration_error(curve) == pytest.approx(expected, abs=1e-5)


def test_curves_of_images_add_up() -> None:
    rng = np.random.default_rng(1)
    probability, outcome = rng.random(60), rng.integers(0, 2, 60)
    halves = [reliability(probability[part], outcome[part]) for part in (slice(0, 25), slice(25, 60))]
    pooled, whole = halves[0] + halves[1], reliability(probability, outcome)
    np.testing.assert_allclose(pooled.frequency, whole.frequency)
    assert expected_calibration_error(pooled) == pytest.approx(expected_calibration_error(whole))
    with pytest.raises(ConfigError, match="15 and 3 bins"):
        _ = whole + reliability(probability, outcome, bins=3)


def test_calibration_of_nothing() -> None:
    assert math.isnan(expected_calibration_error(reliability(NO_NUMBERS, NO_NUMBERS)))
    assert math.isnan(brier_score(NO_NUMBERS, NO_NUMBERS))


@pytest.mark.parametrize(
    ("probability", "outcome", "bins"),
    [([1.1], [1], 5), ([np.nan], [1], 5), ([0.5], [2], 5), ([0.5, 0.5], [1], 5), ([0.5], [1], 0)],
)
def test_what_is_no_probability(probability: list[float], outcome: list[int], bins: int) -> None:
    with pytest.raises(ConfigError):
        reliability(np.array(probability), np.array(outcome), bins=bins)


# Intervals


def test_two_patients_by_hand() -> None:
    # Both draws the same patient in one of four cases each: the 2.5 % and 97.5 % points are the two patients.
    interval = mean_interval([0.0, 1.0, 1.0, 1.0], ["a", "b", "b", "b"])
    assert (interval.value, interval.low, interval.high) == (0.5, 0.0, 1.0)
    assert (interval.patients, interval.method) == (2, "bootstrap over 2 patients")
    pooled = ratio_interval([0, 1, 1, 1], [1, 1, 1, 1], ["a", "b", "b", "b"])
    assert (pooled.value, pooled.low, pooled.high) == (0.75, 0.0, 1.0)


def test_ratio_is_that_of_summed_counts() -> None:
    # F1 of all counts together: 2 TP over 2 TP + FP + FN
    interval = ratio_interval([18, 0], [20, 10], ["a", "b"])
    assert interval.value == pytest.approx(18 / 30)
    assert (interval.low, interval.high) == (0.0, 0.9)


def test_mean_is_that_of_scipy() -> None:
    values = np.random.default_rng(0).gamma(2.0, size=30)
    expected = scipy.stats.bootstrap(
        (values,), np.mean, n_resamples=20_000, method="percentile", rng=np.random.default_rng(1)
    ).confidence_interval
    interval = mean_interval(values, range(30), resamples=20_000)
    assert interval.value == pytest.approx(values.mean())
    assert (interval.low, interval.high) == pytest.approx((expected.low, expected.high), abs=0.02)


def test_more_images_of_a_patient_make_no_narrower_interval() -> None:
    values = np.random.default_rng(3).random(12)
    one = mean_interval(values, range(12))
    many = mean_interval(np.repeat(values, 5), np.repeat(np.arange(12), 5))
    wrong = mean_interval(np.repeat(values, 5), range(60))
    assert (many.low, many.high) == pytest.approx((one.low, one.high))
    assert wrong.high - wrong.low < 0.6 * (one.high - one.low)


def test_nineteen_in_twenty_intervals_hold_the_truth() -> None:
    rng = np.random.default_rng(6)
    hits = 0
    for study in range(300):
        images = rng.normal(size=(40, 1)) + 0.3 * rng.normal(size=(40, 4))
        interval = mean_interval(images.ravel(), np.repeat(np.arange(40), 4), seed=study, resamples=500)
        hits += interval.low <= 0.0 <= interval.high
    assert 0.91 <= hits / 300 <= 0.98


def test_intervals_are_reproducible_whatever_the_order_of_images() -> None:
    rng = np.random.default_rng(4)
    values, patients = rng.random(40), rng.integers(0, 9, 40)
    order = rng.permutation(40)
    first = mean_interval(values, patients)
    again = mean_interval(values[order], patients[order])
    assert (first.low, first.high) == pytest.approx((again.low, again.high))
    assert mean_interval(values, patients, seed=1).low != first.low


def test_any_figure_of_sums() -> None:
    sums = np.array([[1.0, 4.0], [3.0, 4.0]])
    interval = bootstrap_interval(sums, ["a", "b"], lambda s: np.sqrt(s[:, 0] / s[:, 1]))
    assert interval.value == pytest.approx(math.sqrt(0.5))
    assert (interval.low, interval.high) == pytest.approx((0.5, math.sqrt(0.75)))


def test_draws_without_data_are_left_out_and_said() -> None:
    interval = ratio_interval([0, 1, 2], [0, 2, 2], ["a", "b", "c"])
    assert interval.value == 0.75
    # three times patient a: 1 of 27 draws
    said = int(interval.method.split(", ")[1].split(" of 2000 draws undefined")[0])
    assert said == pytest.approx(2000 / 27, rel=0.3)
    assert 0.5 <= interval.low < interval.high <= 1.0


def test_no_interval_from_one_patient_or_none() -> None:
    one = mean_interval([0.5, 0.7], ["a", "a"])
    assert (one.value, one.patients, one.method) == (pytest.approx(0.6), 1, "no interval from one patient")
    assert math.isnan(one.low)
    assert math.isnan(one.high)
    for none in (mean_interval([], []), ratio_interval([], [], [])):
        assert math.isnan(none.value)
        assert (none.patients, none.method) == (0, "no patients")
    nowhere = ratio_interval([0, 0], [0, 0], ["a", "b"])
    assert np.isnan([nowhere.value, nowhere.low, nowhere.high]).all()
    assert "2000 of 2000 draws undefined" in nowhere.method


def test_figures_that_are_missing_are_refused() -> None:
    for value in (np.nan, np.inf):
        with pytest.raises(ConfigError, match="1 of 2 images have no finite figure"):
            mean_interval([0.5, value], ["a", "b"])
        with pytest.raises(ConfigError, match="1 of 2 images have no finite figure"):
            ratio_interval([0.5, value], [1, 1], ["a", "b"])
    with pytest.raises(ConfigError, match="1 patients for"):
        mean_interval([0.5, 0.6], ["a"])
    with pytest.raises(ConfigError, match="1 patients for"):
        ratio_interval([0.5, 0.6], [1, 1], ["a"])


@some
@given(hnp.arrays(np.float64, 8, elements=st.floats(0, 1)), st.lists(st.integers(0, 3), min_size=8, max_size=8))
def test_an_interval_stays_within_the_patients(values: np.ndarray, patients: list[int]) -> None:
    interval = mean_interval(values, patients, resamples=200)
    if interval.patients > 1:
        assert values.min() - 1e-12 <= interval.low <= interval.high <= values.max() + 1e-12


# Agreement

# Peak expiratory flow of 17 people by two meters: Bland & Altman, Lancet 1986, table 1, first measurements
WRIGHT = [494, 395, 516, 434, 476, 557, 413, 442, 650, 433, 417, 656, 267, 478, 178, 423, 427]
MINI = [512, 430, 520, 428, 500, 600, 364, 380, 658, 445, 432, 626, 260, 477, 259, 350, 451]

# Six people and four judges: Shrout & Fleiss 1979, table 2
JUDGES = [[9, 2, 5, 8], [6, 1, 3, 2], [8, 4, 6, 8], [7, 1, 2, 6], [10, 5, 6, 9], [6, 2, 4, 7]]


def test_bland_altman_is_the_published_example() -> None:
    result = bland_altman(WRIGHT, MINI)
    assert result.pairs == 17
    assert (round(result.bias, 1), round(result.sd, 1)) == (-2.1, 38.8)
    assert [round(limit, 1) for limit in result.bias_interval] == [-22.0, 17.8]
    assert (result.lower, result.upper) == pytest.approx((-2.1 - 1.96 * 38.8, -2.1 + 1.96 * 38.8), abs=0.1)


def test_bland_altman_by_hand() -> None:
    # differences 1, 2, 3; t of 2 degrees of freedom 4.302653; √(1 / 3) = 0.577350; √(1 / 3 + 1.96² / 4) = 1.137409
    result = bland_altman([2.0, 4.0, 6.0], [1.0, 2.0, 3.0])
    assert (result.bias, result.sd) == (2.0, 1.0)
    assert (result.lower, result.upper) == pytest.approx((0.040036, 3.959964), abs=1e-6)
    assert result.bias_interval == pytest.approx((2 - 2.484138, 2 + 2.484138), abs=1e-5)
    half = 4.302653 * 1.137409
    assert result.lower_interval == pytest.approx((0.040036 - half, 0.040036 + half), abs=1e-5)
    assert result.upper_interval == pytest.approx((3.959964 - half, 3.959964 + half), abs=1e-5)


def test_intraclass_correlation_is_the_published_example() -> None:
    assert round(icc_2_1(np.array(JUDGES)), 2) == 0.29


def test_concordance_by_hand() -> None:
    # variances and covariance 2 / 3, means one apart: 2 (2 / 3) / (4 / 3 + 1)
    assert lin_concordance([1, 2, 3], [2, 3, 4]) == pytest.approx(4 / 7)
    assert lin_concordance([1, 2, 3], [1, 2, 3]) == 1.0
    assert lin_concordance([1, 2, 3], [3, 2, 1]) == -1.0


def test_correlations_are_those_of_scipy() -> None:
    rng = np.random.default_rng(2)
    x = rng.integers(0, 12, 40).astype(float)  # with ties
    y = x + rng.normal(0, 4, 40)
    assert pearson(x, y) == pytest.approx(scipy.stats.pearsonr(x, y).statistic)
    assert spearman(x, y) == pytest.approx(scipy.stats.spearmanr(x, y).statistic)
    assert mean_absolute_error(x, y) == pytest.approx(sklearn.metrics.mean_absolute_error(x, y))


def test_all_figures_at_once() -> None:
    result = agreement(WRIGHT, MINI)
    assert result.bland_altman == bland_altman(WRIGHT, MINI)
    assert result.pearson == pearson(WRIGHT, MINI)
    assert result.spearman == spearman(WRIGHT, MINI)
    assert result.lin_concordance == lin_concordance(WRIGHT, MINI)
    assert result.icc_2_1 == icc_2_1(np.column_stack([WRIGHT, MINI]))
    assert result.mean_absolute_error == mean_absolute_error(WRIGHT, MINI)


numbers = hnp.arrays(np.float64, 6, elements=st.integers(0, 100))


@some
@given(numbers, numbers)
def test_bounds_and_symmetry(x: np.ndarray, y: np.ndarray) -> None:
    one, other = agreement(x, y), agreement(y, x)
    assert one.bland_altman.bias == pytest.approx(-other.bland_altman.bias)
    assert one.bland_altman.lower == pytest.approx(-other.bland_altman.upper)
    assert one.lin_concordance == pytest.approx(other.lin_concordance, nan_ok=True)
    assert one.icc_2_1 == pytest.approx(other.icc_2_1, nan_ok=True)
    assert one.mean_absolute_error == other.mean_absolute_error
    if not math.isnan(one.pearson):
        assert abs(one.lin_concordance) <= abs(one.pearson) + 1e-9 <= 1 + 2e-9
    assert abs(one.bland_altman.bias) <= one.mean_absolute_error + 1e-9


def test_too_few_pairs_and_no_spread() -> None:
    none, one = agreement([], []), agreement([3.0], [1.0])
    assert (none.bland_altman.pairs, one.bland_altman.pairs) == (0, 1)
    assert one.bland_altman.bias == one.mean_absolute_error == 2.0
    assert np.isnan([none.bland_altman.bias, none.mean_absolute_error, one.bland_altman.sd]).all()
    for result in (none, one):
        assert np.isnan([result.pearson, result.spearman, result.lin_concordance, result.icc_2_1]).all()
    assert math.isnan(pearson([1, 1], [1, 2]))
    assert math.isnan(lin_concordance([2, 2], [2, 2]))
    assert math.isnan(icc_2_1(np.full((3, 2), 5.0)))
    assert lin_concordance([1, 1], [2, 2]) == 0.0


def test_pairs_that_are_missing_are_refused() -> None:
    with pytest.raises(ConfigError, match="1 of 3 pairs hold NaN"):
        agreement([1.0, np.nan, 3.0], [1.0, 2.0, 3.0])
    with pytest.raises(ConfigError, match="both"):
        agreement([1.0, 2.0], [1.0])
    with pytest.raises(ConfigError, match="subjects"):
        icc_2_1(np.array([1.0, 2.0]))


# ---------------------------------------------------------------------- few patients
def mean_of(sums: np.ndarray) -> np.ndarray:
    return sums[:, 0] / sums[:, 1]


def test_the_jackknife_of_a_mean_is_the_interval_of_student() -> None:
    """0.6, 0.7 and 0.8: s = 0.1, 0.1 / sqrt(3) = 0.0577350, Student's t of 2 is 4.302653: 0.7 +- 0.248414."""
    found = jackknife_interval(np.array([[0.6, 1], [0.7, 1], [0.8, 1]]), "ABC", mean_of)
    assert (found.value, found.low, found.high) == pytest.approx((0.7, 0.451586, 0.948414), abs=1e-6)
    twice = jackknife_interval(np.array([[0.2, 0.5], [0.4, 0.5], [0.7, 1], [0.8, 1]]), "AABC", mean_of)
    assert (twice.low, twice.high, twice.patients) == pytest.approx((found.low, found.high, 3))


def test_the_jackknife_says_why_there_is_no_interval() -> None:
    sums = np.array([[0.6, 1], [0.7, 1], [0.8, 1]])
    two = jackknife_interval(sums[:2], "AB", mean_of)
    assert two.value == pytest.approx(0.65)
    assert np.isnan([two.low, two.high]).all()
    assert two.method == "no interval from fewer than 3 patients"
    with np.errstate(invalid="ignore"):
        one = jackknife_interval(np.array([[0.6, 1], [0, 0], [0, 0]]), "ABC", mean_of)
    assert np.isnan(one.low)
    assert "without one of 3 patients" in one.method
    assert jackknife_interval(np.empty((0, 2)), [], mean_of).method == "no patients"
    with pytest.raises(ConfigError, match="2 patients"):
        jackknife_interval(sums, "AB", mean_of)
    with pytest.raises(ConfigError, match="no finite figure"):
        jackknife_interval(sums * np.nan, "ABC", mean_of)


def test_the_jackknife_holds_the_truth_where_the_bootstrap_does_not() -> None:
    """Means of three normal figures: 95 % by Student, and for the bootstrap far fewer."""
    rng = np.random.default_rng(0)
    held = np.zeros(2)
    for values in rng.normal(0, 1, (300, 3)):
        sums = np.column_stack([values, np.ones(3)])
        for number, found in enumerate(
            [jackknife_interval(sums, "ABC", mean_of), bootstrap_interval(sums, "ABC", mean_of, resamples=200)]
        ):
            held[number] += found.low <= 0 <= found.high
    assert held[0] / 300 == pytest.approx(0.95, abs=0.03)
    assert held[1] / 300 < 0.85
