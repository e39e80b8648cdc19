"""The drawings of the Ki-67 report, as inline SVG: an interval on its axis, and a training curve."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence

from pyhisto.metrics import Index

__all__ = ["MOST_POINTS", "axis_limit", "curve_svg", "interval_svg", "nice_ticks"]

_AXIS_LIMITS = (10.0, 20.0, 50.0, 100.0)
MOST_POINTS = 120
"""A curve with more steps than this is drawn in groups."""


def axis_limit(percents: Sequence[float]) -> float:
    """Return where an axis from 0 should end, percent, to show all of these values with some room; NaN is ignored.

    >>> axis_limit([3.0, 7.5]), axis_limit([32.0, float("nan")]), axis_limit([])
    (10.0, 50.0, 100.0)
    """
    highest = max((value for value in percents if math.isfinite(value)), default=100.0)
    return next((limit for limit in _AXIS_LIMITS if highest * 1.1 <= limit), 100.0)


def interval_svg(index: Index, *, truth_percent: float | None, limit: float) -> str:
    """Draw an index with its interval on an axis from 0 to `limit` percent, and the truth beside it.

    Parameters
    ----------
    index
        Its percent must not be NaN.
    truth_percent
        The known truth, percent; None or NaN draws none.
    limit
        End of the axis, percent.

    Returns
    -------
    str
        An ``<svg>`` element that says in words what it shows.
    """
    left, right, base = 20.0, 620.0, 64.0

    def x(percent: float) -> float:
        return left + (right - left) * min(max(percent, 0.0), limit) / limit

    known = truth_percent is not None and math.isfinite(truth_percent)
    words = f"Ki-67 index {index.percent:.1f} %, 95 % interval {index.low:.1f} to {index.high:.1f} %"
    words += f", truth {truth_percent:.1f} %" if known else ""
    parts = [
        f'<svg class="interval" viewBox="0 0 640 {96 if known else 88}" role="img" aria-label="{html.escape(words)}">',
        f'<line class="axis" x1="{left}" y1="{base}" x2="{right}" y2="{base}"/>',
    ]
    for step in range(11):
        value, major = limit * step / 10, step % 2 == 0
        parts.append(
            f'<line class="axis" x1="{x(value):.1f}" y1="{base}" x2="{x(value):.1f}" y2="{base + 4 + 2 * major}"/>'
        )
        if major:
            text = f"{value:g}" + (" %" if step == 10 else "")
            parts.append(f'<text class="tick" x="{x(value):.1f}" y="{base + 20}">{text}</text>')
    low, high, middle = x(index.low), x(index.high), x(index.percent)
    parts += [
        f'<rect class="range" x="{low:.1f}" y="38" width="{max(high - low, 1):.1f}" height="12" rx="3"/>',
        f'<line class="end" x1="{low:.1f}" y1="35" x2="{low:.1f}" y2="53"/>',
        f'<line class="end" x1="{high:.1f}" y1="35" x2="{high:.1f}" y2="53"/>',
        f'<circle class="found" cx="{middle:.1f}" cy="44" r="7"/>',
    ]
    if known and truth_percent is not None:
        at = x(truth_percent)
        anchor = "start" if at < 320 else "end"
        beside = at + (12 if at < 320 else -12)
        parts.append(f'<path class="truth" d="M{at:.1f} 10l7 7-7 7-7-7z"/>')
        parts.append(f'<line class="truth" x1="{at:.1f}" y1="24" x2="{at:.1f}" y2="{base}"/>')
        parts.append(
            f'<text class="label" x="{beside:.1f}" y="21" text-anchor="{anchor}">truth {truth_percent:.1f} %</text>'
        )
    return "".join(parts) + "</svg>"


def curve_svg(name: str, values: Sequence[float]) -> str:
    """Draw one number a step; many steps are drawn as the mean of each group, over the band from its least to its most.

    Parameters
    ----------
    name
        What the numbers are.
    values
        At least one number; those that are not finite are left out.

    Returns
    -------
    str
        An ``<svg>`` element, or an empty string if no value is finite.
    """
    group = max(1, math.ceil(len(values) / MOST_POINTS))
    chunks = [(i, [v for v in values[i : i + group] if math.isfinite(v)]) for i in range(0, len(values), group)]
    points = [(i + (len(part) - 1) / 2, min(part), sum(part) / len(part), max(part)) for i, part in chunks if part]
    if not points:
        return ""
    left, right, top, base = 58.0, 500.0, 16.0, 190.0
    ticks = nice_ticks(min(0.0, *(p[1] for p in points)), max(p[3] for p in points))
    last = max(len(values) - 1, 1)

    def at(step: float, value: float) -> str:
        share = (value - ticks[0]) / (ticks[-1] - ticks[0])
        return f"{left + (right - left) * step / last:.1f},{base - (base - top) * share:.1f}"

    words = f"{name}: from {values[0]:.3g} to {values[-1]:.3g} in {len(values)} steps"
    parts = [f'<svg class="curve" viewBox="0 0 520 236" role="img" aria-label="{html.escape(words)}">']
    for tick in ticks:
        _, y = at(0, tick).split(",")
        parts.append(f'<line class="grid" x1="{left}" y1="{y}" x2="{right}" y2="{y}"/>')
        parts.append(f'<text class="value" x="{left - 8}" y="{float(y) + 4:.1f}">{tick:g}</text>')
    if group > 1:
        band = [at(s, high) for s, _, _, high in points] + [at(s, low) for s, low, _, _ in reversed(points)]
        parts.append(f'<polygon class="band" points="{" ".join(band)}"/>')
    line = [at(step, mean) for step, _, mean, _ in points]
    parts.append(f'<polyline class="line" points="{" ".join(line)}"/>')
    if len(line) == 1:
        parts.append('<circle class="found" cx="{}" cy="{}" r="4"/>'.format(*line[0].split(",")))
    for step in sorted({0, (len(values) - 1) // 2, len(values) - 1}):
        position = at(step, ticks[0]).split(",")[0]
        parts.append(f'<text class="tick" x="{position}" y="{base + 18}">{step + 1}</text>')
    parts.append(f'<text class="tick" x="{(left + right) / 2}" y="{base + 38}">training step</text>')
    return "".join(parts) + "</svg>"


def nice_ticks(low: float, high: float) -> list[float]:
    """Return three to seven round numbers that enclose a range.

    >>> nice_ticks(0.0, 1.3)
    [0.0, 0.5, 1.0, 1.5]
    """
    span = high - low or abs(high) or 1.0
    power = 10.0 ** math.floor(math.log10(span / 3))
    step = next(factor * power for factor in (1, 2, 5, 10) if span / (factor * power) <= 5)
    first, last = math.floor(low / step + 1e-9), max(math.ceil(high / step - 1e-9), math.floor(low / step) + 1)
    return [round(i * step, 12) for i in range(first, last + 1)]
