"""The drawings of an evaluation are to scale."""

from __future__ import annotations

import re

import numpy as np
import pytest

from pyhisto.metrics import Reliability, bland_altman
from qupath_ext.report.plots import bland_altman_svg, dots_svg, reliability_svg, scatter_svg


def dots(svg: str) -> list[tuple[float, float]]:
    found = re.findall(r'<circle class="dot" cx="([\d.-]+)" cy="([\d.-]+)"', svg)
    return [(float(x), float(y)) for x, y in found]


def test_scatter() -> None:
    svg = scatter_svg([0.0, 20.0], [10.0, 20.0], ["a", "b<"])
    # Both axes run from 0 to 20: x from 64 to 400, y from 352 to 16.
    assert dots(svg) == [(64.0, 184.0), (400.0, 16.0)]
    assert "b&lt;" in svg
    assert "b<" not in svg


def test_bland_altman() -> None:
    reference, measured = [10.0, 20.0], [12.0, 18.0]
    svg = bland_altman_svg(reference, measured, ["a", "b"], bland_altman(measured, reference))
    (x0, y0), (x1, y1) = dots(svg)
    assert x0 < x1
    assert y0 + y1 == pytest.approx(2 * (16 + 352) / 2, abs=0.2)  # +2 and -2, the same distance from 0 in the middle
    assert "bias" in svg
    assert "+1.96 SD" in svg


def test_patients_best_first_with_mean_interval_and_chance() -> None:
    svg = dots_svg(
        "F1", {"low": [("x", 0.2)], "high": [("y", 0.8), ("z", 1.0)]}, value=0.55, low=0.4, high=0.7, chance=0.1
    )
    # x from 190 (0) to 720 (1): 530 px.
    assert [x for x, _ in dots(svg)] == [614.0, 720.0, 296.0]
    assert svg.index(">high<") < svg.index(">low<")
    assert '<rect class="range" x="402.0"' in svg
    assert 'class="chance" x1="243.0"' in svg
    assert dots_svg("F1", {}, value=0.5) == ""


def test_reliability_leaves_empty_bins_out() -> None:
    curve = Reliability(np.array([0, 4]), np.array([0.0, 3.0]), np.array([0.0, 2.0]))
    assert dots(reliability_svg(curve)) == [(64 + 336 * 0.75, 352 - 336 * 0.5)]
