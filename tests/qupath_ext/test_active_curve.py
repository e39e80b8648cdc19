"""What a loop costs, what it brings, and when it is enough: numbers worked out by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from pyhisto.dataset import TissueTask
from pyhisto.errors import ConfigError
from qupath_ext.active.cost import DEFAULTS, Reviewed, fit_cost, minutes_between
from qupath_ext.active.curve import Expected, advise, expect, fit_power_law, mean_score
from qupath_ext.active.measuring import Counted, figure, figures


def test_before_anything_was_timed_the_default_stands() -> None:
    """Cells: 0.5 for the region, and on 0.1 mm² 1.5 for looking and 20 corrections at 0.05: 3 minutes."""
    model = fit_cost([], "cells")
    assert model == DEFAULTS["cells"]
    assert model.minutes(0.1) == pytest.approx(3.0)
    untimed = fit_cost([Reviewed(4, 2.0, 10, None)], "cells")
    assert (untimed.timed, untimed.corrections_per_mm2) == (0, 5.0)
    assert untimed.per_mm2 == pytest.approx(15.0)


def test_a_round_is_weighed_against_the_default() -> None:
    """Only regions, no area: of a / 0.5 = 1 +- 1 and 4 a / 8 = 1 +- 0.25, a = (2 + 16 / 2) / (4 + 16 / 4) = 1.25."""
    model = fit_cost([Reviewed(4, 0.0, 0, 8.0)], "tissue")
    assert model.per_region == pytest.approx(1.25)
    assert (model.per_mm2, model.per_correction) == (pytest.approx(1.0), pytest.approx(0.5))
    assert model.timed == 1


def test_many_rounds_say_what_they_cost() -> None:
    """Rounds that took 0.2 a region + 6 a mm² + 0.1 a correction; the default says 0.5, 15 and 0.05."""
    rng = np.random.default_rng(0)
    rounds = []
    for _ in range(200):
        regions, area, corrections = int(rng.integers(1, 30)), float(rng.uniform(0.1, 2)), int(rng.integers(0, 200))
        rounds.append(Reviewed(regions, area, corrections, 0.2 * regions + 6 * area + 0.1 * corrections))
    model = fit_cost(rounds, "cells")
    assert model.per_region == pytest.approx(0.2, rel=0.05)
    assert model.per_mm2 == pytest.approx(6, rel=0.05)
    assert model.per_correction == pytest.approx(0.1, rel=0.05)


def test_no_term_is_negative() -> None:
    """Rounds with more corrections that took less time would want a correction to save minutes."""
    model = fit_cost([Reviewed(1, 1.0, n, 20.0 - n / 10) for n in (0, 50, 100, 150)], "cells")
    assert min(model.per_region, model.per_mm2, model.per_correction) == 0


@pytest.mark.parametrize("minutes", [0.0, -3.0, float("nan"), float("inf")])
def test_minutes_are_above_0(minutes: float) -> None:
    with pytest.raises(ConfigError, match="minutes"):
        fit_cost([Reviewed(1, 1.0, 1, minutes)], "cells")


def test_minutes_from_when_regions_were_marked() -> None:
    """Gaps of 2, 4 and 6 minutes, and one of 2 hours: five regions of 4 minutes. Marks at once are no work."""
    marks = [f"2026-01-01T{time}Z" for time in ("10:02:00", "10:00:00", "10:06:00", "10:12:00", "12:12:00")]
    assert minutes_between(marks) == 20.0
    assert minutes_between(marks[:1]) is None
    assert minutes_between([]) is None
    assert minutes_between([marks[0], marks[4]]) is None
    assert minutes_between([marks[0]] * 3) is None


def test_the_curve_that_was_drawn_is_found() -> None:
    """0.9 - 0.1 (x / 4)^-1 at 1, 2, 4: 0.5, 0.7, 0.8; at 8 it is 0.85."""
    curve = fit_power_law(np.array([1.0, 2.0, 4.0]), np.array([[0.5, 0.7, 0.8], [0.6, 0.6, 0.6]]))
    assert curve.at(8.0) == pytest.approx([0.85, 0.6], abs=2e-3)
    assert curve.at(np.array([1.0, 4.0]))[0] == pytest.approx([0.5, 0.8], abs=2e-3)
    assert curve.b[1] == 0


def test_a_curve_neither_falls_nor_passes_1() -> None:
    x = np.array([1.0, 2.0, 3.0, 4.0])
    falling, steep = np.array([0.9, 0.8, 0.7, 0.6]), np.array([0.2, 0.5, 0.8, 0.99])
    curve = fit_power_law(x, np.stack([falling, steep]))
    assert curve.at(100.0)[0] == pytest.approx(falling.mean())
    assert curve.at(1e9)[1] <= 1
    assert (curve.a <= 1).all()


def test_three_rounds_are_needed() -> None:
    with pytest.raises(ConfigError, match="2 points"):
        fit_power_law(np.array([1.0, 2.0]), np.array([[0.5, 0.6]]))
    with pytest.raises(ConfigError, match="after something spent"):
        fit_power_law(np.array([0.0, 1.0, 2.0]), np.array([[0.5, 0.6, 0.7]]))


def sums(dice: list[list[float]]) -> Any:
    """Return counts (rounds, images, 1 class, 3) that give each image a Dice in each round: 100 true, 100 found."""
    return np.array([[[[100 * value, 100, 100]] for value in row] for row in dice])


def test_what_the_next_round_should_bring() -> None:
    """Three patients with the same curve through four rounds: 0.85 after 8, 0.875 after 16; nothing scatters."""
    alike = sums([[value] * 3 for value in (0.5, 0.7, 0.8, 0.85)])
    found = expect([1, 2, 4, 8], alike, "ABC", 16)
    assert (found.now, found.then, found.gain) == pytest.approx((0.85, 0.875, 0.025), abs=2e-3)
    assert (found.low, found.high) == pytest.approx((0.025, 0.025), abs=2e-3)


@pytest.mark.parametrize(
    ("rounds", "patients", "why"),
    [(4, "AB", "fewer than 3 patients"), (3, "ABC", "before 4 rounds"), (4, "AAB", "fewer than 3 patients")],
)
def test_what_says_too_little_has_no_interval(rounds: int, patients: str, why: str) -> None:
    scores = [[value] * len(patients) for value in (0.5, 0.7, 0.8, 0.85)][:rounds]
    found = expect([1, 2, 4, 8][:rounds], sums(scores), patients, 16)
    assert np.isnan([found.low, found.high]).all()
    assert why in found.method
    assert advise(found) == "go on"
    level = expect([1, 2, 4, 8], sums([[0.8] * 2] * 4), "AB", 16)
    assert (level.gain, advise(level)) == (0, "little to gain")


def test_patients_who_differ_make_the_interval_wide() -> None:
    """All curves are 0.9 - b / x, so the gain is b times 1/8 - 1/16: of b 0.2, 0.4 and 0.6 it is 0.0125, 0.025, 0.0375.

    The jackknife of a mean is s / sqrt(3) = 0.0125 / 1.7321 = 0.0072169, and Student's t of 2 is 4.30265.
    """
    spent = np.array([1.0, 2.0, 4.0, 8.0])
    found = expect(spent, sums([[0.9 - b / x for b in (0.2, 0.4, 0.6)] for x in spent]), "ABC", 16)
    assert found.gain == pytest.approx(0.025, abs=5e-4)
    assert found.high == pytest.approx(0.025 + 0.031052, abs=1e-3)
    assert found.low == 0, "a curve never falls"
    assert "3 patients" in found.method


def test_scatter_about_the_curve_counts() -> None:
    """Three patients alike, but rounds that no curve goes through; twice the scatter, twice the width."""
    wide = []
    for jump in (0.02, 0.04):
        scores = [[value] * 3 for value in (0.5, 0.6 + jump, 0.65 - jump, 0.68 + jump, 0.7 - jump)]
        wide.append(expect([1, 2, 4, 8, 16], sums(scores), "ABC", 32))
    assert wide[0].high - wide[0].gain > 0.01
    assert wide[1].high > wide[0].high


def test_the_limits_hold_what_a_curve_can_do() -> None:
    found = expect([1, 2, 3, 4], sums([[0.9, 0.5, 0.2], [0.95, 0.9, 0.1], [0.99, 0.6, 0.9], [0.99, 1, 0.9]]), "ABC", 8)
    assert found.low >= 0
    assert found.now + found.high <= 1


def test_when_to_stop() -> None:
    def gain(value: float, high: float) -> Expected:
        curve = fit_power_law(np.arange(1.0, 4), np.full((1, 3), 0.8))
        return Expected(0.8, 0.8 + value, value, 0.0, high, curve, "by hand")

    assert advise(None) == "go on"
    assert advise(gain(0.02, 0.05)) == "go on"
    assert advise(gain(0.004, 0.03)) == "little to gain"
    assert advise(gain(0.004, 0.009)) == "stop"
    assert advise(gain(0.004, float("nan"))) == "little to gain"
    assert advise(gain(0.004, 0.03), least=0.05) == "stop"


def test_a_class_that_nobody_has_counts_in_no_mean() -> None:
    """2 * 30 / (50 + 40) = 2/3; 2 * 5 / (5 + 15) = 1/2."""
    counts = np.array([[[30, 50, 40], [5, 5, 15]], [[30, 50, 40], [0, 0, 0]], [[0, 0, 0], [0, 0, 0]]], dtype=float)
    assert mean_score(counts) == pytest.approx([(2 / 3 + 1 / 2) / 2, 2 / 3, np.nan], nan_ok=True)


def test_figures_of_images_taken_together() -> None:
    """Of 3 + 1 right, 4 + 4 found and 4 + 2 true: 2 * 4 / 14; two patients say nothing of others."""
    counted = [Counted("1", "A", {"Tumor": (3, 4, 4)}), Counted("2", "B", {"Tumor": (1, 4, 2)})]
    found = figures(counted, TissueTask(("Tumor",)))
    assert found is not None
    assert (found["metric"], found["value"], found["patients"]) == ("Dice", 0.57143, 2)
    assert (found["low"], found["high"]) == (None, None)
    assert found["method"] == "no interval from fewer than 3 patients"
    assert found["images"][1] == {"image": "2", "patient": "B", "by_class": {"Tumor": [1, 4, 2]}}
    assert figures([], TissueTask(("Tumor",))) is None
    alone = figures(counted[:1], TissueTask(("Tumor",)))
    assert alone is not None
    assert (alone["value"], alone["low"]) == (0.75, None)


def test_the_interval_of_figures_by_hand() -> None:
    """2 * 240 / 600 = 0.8; without A, B, C: 2 * 170 / 400 = 0.85, 2 * 155 / 400 = 0.775, 2 * 155 / 400 = 0.775.

    Their squared deviations from 0.8 are 0.0025 and twice 0.000625, so that the error is sqrt(2 / 3 * 0.00375) = 0.05,
    and Student's t of 2 is 4.30265: 0.8 +- 0.215133.
    """
    right = {"A": 70, "B": 85, "C": 85}
    counted = [Counted(name, name, {"Tumor": (n, 100, 100)}) for name, n in right.items()]
    found = figure(counted, ["Tumor"])
    assert (found.value, found.low) == (pytest.approx(0.8), pytest.approx(0.584867, abs=1e-6))
    assert found.high == 1, "no Dice is more"
    assert found.method == "jackknife over 3 patients, Student's t"
