"""The drawings of an evaluation, as inline SVG: by patient, scatter, Bland-Altman, reliability, learning curve."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pyhisto.metrics import BlandAltman, Reliability
from qupath_ext.report.charts import nice_ticks

__all__ = ["Measured", "bland_altman_svg", "dots_svg", "learning_svg", "reliability_svg", "scatter_svg"]

NAMED_PATIENTS = 40
"""With more patients than this, the rows are thin and have no names."""

LONGEST_NAME = 26
"""Characters of a name that have room beside a drawing; the middle of longer ones is left out."""


@dataclass(frozen=True)
class _Axes:
    """A rectangle of the drawing in which x and y run between limits; px of the drawing."""

    left: float
    top: float
    right: float
    bottom: float
    x_ticks: Sequence[float]
    y_ticks: Sequence[float]

    def x(self, value: float) -> float:
        low, high = self.x_ticks[0], self.x_ticks[-1]
        return self.left + (self.right - self.left) * (min(max(value, low), high) - low) / (high - low)

    def y(self, value: float) -> float:
        low, high = self.y_ticks[0], self.y_ticks[-1]
        return self.bottom - (self.bottom - self.top) * (min(max(value, low), high) - low) / (high - low)

    def line(self, kind: str, x0: float, y0: float, x1: float, y1: float) -> str:
        """Return a line between two points in values."""
        return (
            f'<line class="{kind}" x1="{self.x(x0):.1f}" y1="{self.y(y0):.1f}" '
            f'x2="{self.x(x1):.1f}" y2="{self.y(y1):.1f}"/>'
        )

    def across(self, kind: str, value: float) -> str:
        return self.line(kind, self.x_ticks[0], value, self.x_ticks[-1], value)

    def dot(self, x: float, y: float, title: str, radius: float = 4.5) -> str:
        return (
            f'<circle class="dot" cx="{self.x(x):.1f}" cy="{self.y(y):.1f}" r="{radius:g}">'
            f"<title>{html.escape(title)}</title></circle>"
        )

    def frame(self, x_name: str, y_name: str) -> list[str]:
        """Return grid, ticks and names of both axes."""
        parts = []
        for tick in self.x_ticks:
            parts.append(self.line("grid", tick, self.y_ticks[0], tick, self.y_ticks[-1]))
            parts.append(f'<text class="tick" x="{self.x(tick):.1f}" y="{self.bottom + 18:.1f}">{_number(tick)}</text>')
        for tick in self.y_ticks:
            parts.append(self.across("grid", tick))
            parts.append(
                f'<text class="value" x="{self.left - 8:.1f}" y="{self.y(tick) + 4:.1f}">{_number(tick)}</text>'
            )
        middle = (self.left + self.right) / 2, (self.top + self.bottom) / 2
        parts.append(f'<text class="tick" x="{middle[0]:.1f}" y="{self.bottom + 38:.1f}">{html.escape(x_name)}</text>')
        parts.append(
            f'<text class="tick" transform="translate({self.left - 42:.1f} {middle[1]:.1f}) rotate(-90)">'
            f"{html.escape(y_name)}</text>"
        )
        return parts


def dots_svg(
    name: str,
    by_patient: Mapping[str, Sequence[tuple[str, float]]],
    *,
    value: float,
    low: float = math.nan,
    high: float = math.nan,
    chance: float = math.nan,
    unit: str = "",
) -> str:
    """Draw a figure of each image as a dot in the row of its patient, with the mean, its interval, and chance.

    Parameters
    ----------
    name, unit
        Of the figure.
    by_patient
        Patient to (image, finite figure) of each of its images.
    value, low, high, chance
        Mean of the patients, its interval, and what chance gives; those that are NaN are not drawn.

    Returns
    -------
    str
        An ``<svg>`` element that says in words what it shows; empty without any figure.
    """
    values = [figure for images in by_patient.values() for _, figure in images]
    if not values:
        return ""
    ordered = sorted(by_patient.items(), key=lambda item: -sum(v for _, v in item[1]) / max(len(item[1]), 1))
    named = len(ordered) <= NAMED_PATIENTS
    row = 24.0 if named else max(4.0, 800 / len(ordered))
    ticks = [0, 0.2, 0.4, 0.6, 0.8, 1.0] if not unit else nice_ticks(min(0.0, *values), max(values))
    axes = _Axes(190 if named else 60, 26, 720, 26 + row * len(ordered), ticks, [0, len(ordered)])
    words = f"{name} of {len(values)} images of {len(ordered)} patients, mean of the patients {value:.3g}{_unit(unit)}"
    height = axes.bottom + 48
    parts = [f'<svg class="plot" viewBox="0 0 740 {height:.0f}" role="img" aria-label="{html.escape(words)}">']
    for tick in ticks:
        parts.append(axes.line("grid", tick, 0, tick, len(ordered)))
        parts.append(f'<text class="tick" x="{axes.x(tick):.1f}" y="{axes.bottom + 18:.1f}">{_number(tick)}</text>')
    if math.isfinite(low) and math.isfinite(high):
        width = max(axes.x(high) - axes.x(low), 1)
        parts.append(
            f'<rect class="range" x="{axes.x(low):.1f}" y="{axes.top:.1f}" width="{width:.1f}" '
            f'height="{axes.bottom - axes.top:.1f}"/>'
        )
    marks = (("mean", value, "mean"), ("chance", chance, "chance"))
    for kind, at, label in marks:
        if math.isfinite(at):
            parts.append(axes.line(kind, at, 0, at, len(ordered)))
            parts.append(f'<text class="tick" x="{axes.x(at):.1f}" y="{axes.top - 8:.1f}">{label}</text>')
    for number, (patient, images) in enumerate(ordered):
        y = len(ordered) - number - 0.5
        if named:
            parts.append(
                f'<text class="value" x="{axes.left - 10:.1f}" y="{axes.y(y) + 4:.1f}">{html.escape(_short(patient))}'
                f"<title>{html.escape(patient)}</title></text>"
            )
            parts.append(axes.across("row", y))
        parts += [axes.dot(v, y, f"{image}: {v:.3f}", 4.5 if named else 2.5) for image, v in images]
    label = f"{name}{', ' + unit if unit else ''}"
    middle = (axes.left + axes.right) / 2
    parts.append(f'<text class="tick" x="{middle:.1f}" y="{axes.bottom + 40:.1f}">{html.escape(label)}</text>')
    return "".join(parts) + "</svg>"


def scatter_svg(reference: Sequence[float], measured: Sequence[float], names: Sequence[str]) -> str:
    """Draw percentages of the prediction over those of the reference, with the line on which both are the same."""
    ticks = nice_ticks(0.0, max(*reference, *measured, 10.0))
    axes = _Axes(64, 16, 400, 352, ticks, ticks)
    words = f"Index of the prediction over that of the reference, {len(names)} images"
    parts = [f'<svg class="plot" viewBox="0 0 470 400" role="img" aria-label="{words}">']
    parts += axes.frame("index of the reference, %", "index of the prediction, %")
    parts.append(axes.line("same", ticks[0], ticks[0], ticks[-1], ticks[-1]))
    for x, y, name in zip(reference, measured, names, strict=True):
        parts.append(axes.dot(x, y, f"{name}: reference {x:.1f} %, prediction {y:.1f} %"))
    return "".join(parts) + "</svg>"


def bland_altman_svg(
    reference: Sequence[float], measured: Sequence[float], names: Sequence[str], limits: BlandAltman
) -> str:
    """Draw the difference of two percentages over their mean, with bias and limits of agreement."""
    means = [(x + y) / 2 for x, y in zip(reference, measured, strict=True)]
    apart = [y - x for x, y in zip(reference, measured, strict=True)]
    lines = [value for value in (limits.lower, limits.bias, limits.upper) if math.isfinite(value)]
    reach = max(abs(value) for value in [*apart, *lines, 5.0])
    axes = _Axes(64, 16, 400, 352, nice_ticks(0.0, max(*means, 10.0)), nice_ticks(-reach, reach))
    words = f"Difference of the two indices over their mean, {len(names)} images, bias {limits.bias:.1f} points"
    parts = [f'<svg class="plot" viewBox="0 0 470 400" role="img" aria-label="{words}">']
    parts += axes.frame("mean of both, %", "prediction - reference, points".replace("-", "−"))
    for kind, value, label in (
        ("limit", limits.upper, "+1.96 SD"),
        ("mean", limits.bias, "bias"),
        ("limit", limits.lower, "−1.96 SD"),
    ):
        if math.isfinite(value):
            parts.append(axes.across(kind, value))
            shown = f"{value:+.1f}".replace("-", "−")
            parts.append(f'<text class="side" x="{axes.right + 5:.1f}" y="{axes.y(value) - 1:.1f}">{label}</text>')
            parts.append(f'<text class="side" x="{axes.right + 5:.1f}" y="{axes.y(value) + 13:.1f}">{shown}</text>')
    for x, y, name in zip(means, apart, names, strict=True):
        parts.append(axes.dot(x, y, f"{name}: {y:+.1f} points"))
    return "".join(parts) + "</svg>"


def reliability_svg(curve: Reliability) -> str:
    """Draw the share of predictions that were right over their probability; the dots grow with the number of cells."""
    ticks = [0, 0.2, 0.4, 0.6, 0.8, 1.0]
    axes = _Axes(64, 16, 400, 352, ticks, ticks)
    total = int(curve.counts.sum())
    parts = [
        f'<svg class="plot" viewBox="0 0 470 400" role="img" aria-label="Reliability of {total} class probabilities">'
    ]
    parts += axes.frame("class probability", "share that was right")
    parts.append(axes.line("same", 0, 0, 1, 1))
    known = [i for i, n in enumerate(curve.counts) if n]
    points = [(float(curve.probability[i]), float(curve.frequency[i]), int(curve.counts[i])) for i in known]
    path = " ".join(f"{axes.x(x):.1f},{axes.y(y):.1f}" for x, y, _ in points)
    parts.append(f'<polyline class="line" points="{path}"/>')
    for x, y, n in points:
        radius = 3 + 7 * math.sqrt(n / total)
        parts.append(axes.dot(x, y, f"{n} cells: probability {x:.2f}, right {y:.2f}", round(radius, 1)))
    return "".join(parts) + "</svg>"


@dataclass(frozen=True)
class Measured:
    """A figure after something was spent, with its interval; NaN limits where there is none, and what it is of."""

    spent: float
    value: float
    low: float
    high: float
    name: str


def learning_svg(
    metric: str,
    unit: str,
    measured: Sequence[Measured],
    *,
    curve: Sequence[tuple[float, float]] = (),
    ahead: Measured | None = None,
) -> str:
    """Draw figures over what was spent, the curve through them, and what is expected next.

    Parameters
    ----------
    metric, unit
        What the figures are, 0 to 1, and in what the spending is counted.
    measured
        At least one.
    curve
        Points (spent, value) of the curve; may be empty.
    ahead
        What is expected after more was spent.

    Returns
    -------
    str
        An ``<svg>`` element that says in words what it shows.
    """
    shown = [*measured, *([] if ahead is None else [ahead])]
    heights = [v for one in shown for v in (one.value, one.low, one.high) if math.isfinite(v)]
    low, high = min(heights), max(heights)
    room = max(0.05, (high - low) / 6)
    y_ticks = nice_ticks(max(0.0, low - room), min(1.0, high + room))
    axes = _Axes(64, 16, 440, 300, nice_ticks(0.0, max(one.spent for one in shown)), y_ticks)
    first, last = measured[0], measured[-1]
    words = f"{metric} from {first.value:.3f} to {last.value:.3f} over {first.spent:.3g} to {last.spent:.3g} {unit}"
    parts = [f'<svg class="plot" viewBox="0 0 470 348" role="img" aria-label="{html.escape(words)}">']
    parts += axes.frame(f"{unit} of a person's work", metric)
    path = " ".join(f"{axes.x(x):.1f},{axes.y(y):.1f}" for x, y in curve if y >= y_ticks[0])
    if path:
        parts.append(f'<polyline class="line" stroke-dasharray="5 4" points="{path}"/>')
    for one in shown:
        if math.isfinite(one.low) and math.isfinite(one.high):
            parts.append(axes.line("same" if one is ahead else "mean", one.spent, one.low, one.spent, one.high))
    parts += [axes.dot(one.spent, one.value, f"{one.name}: {one.value:.3f}") for one in measured]
    if ahead is not None:
        parts.append(
            f'<circle cx="{axes.x(ahead.spent):.1f}" cy="{axes.y(ahead.value):.1f}" r="5" fill="#fff" '
            f'stroke="#8b95a5" stroke-width="2"><title>{html.escape(ahead.name)}: {ahead.value:.3f}</title></circle>'
        )
    return "".join(parts) + "</svg>"


def _number(value: float) -> str:
    return f"{value:g}".replace("-", "−")


def _unit(unit: str) -> str:
    return f" {unit}" if unit else ""


def _short(name: str) -> str:
    if len(name) <= LONGEST_NAME:
        return name
    half = (LONGEST_NAME - 1) // 2
    return f"{name[:half]}…{name[-half:]}"
