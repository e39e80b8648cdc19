"""The report of a Ki-67 analysis as one HTML file."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from pyhisto.metrics import DetectionScore
from qupath_ext.report.charts import MOST_POINTS, axis_limit, curve_svg, interval_svg
from qupath_ext.report.content import Ki67Report, SlideReport, TruthReport
from qupath_ext.report.parts import DISCLAIMER, count, decimal, document, figure, pairs, table, text, write_page

__all__ = ["write_report"]


def write_report(path: Path, report: Ki67Report) -> None:
    """Write a report: under a temporary name first, then put in place.

    Parameters
    ----------
    path
        The HTML file; its folder must exist.
    report
        What to say. Pictures of tissue are stored as JPEG where that is smaller than their PNG.

    Raises
    ------
    ConfigError
        If a picture cannot be read.
    ProjectError
        If the file cannot be written; one that was there before stays.
    """
    write_page(path, _page(report))


def _page(report: Ki67Report) -> str:
    limit = axis_limit([value for slide in report.slides for value in _percents(slide)])
    sections = [_slide(slide, number, limit) for number, slide in enumerate(report.slides, start=1)]
    summary = _summary(report.slides) if len(report.slides) != 1 else ""
    return document(report.title, _header(report), [summary, *sections, _how_made(report)])


def _header(report: Ki67Report) -> str:
    return (
        f"<header><h1>{text(report.title)}</h1>"
        f'<p class="meta">{text(report.created)} <span class="badge">{DISCLAIMER}</span></p>'
        f'<p class="meta">Open in QuPath: <code>{text(report.project)}</code></p></header>'
    )


def _summary(slides: Sequence[SlideReport]) -> str:
    if not slides:
        return '<section><p class="headline"><span class="none">No slide was analysed</span></p></section>'
    rows = []
    for number, slide in enumerate(slides, start=1):
        index = slide.index
        cells = [
            f'<a href="#slide-{number}">{text(slide.name)}</a>',
            _percent(index.percent, none="no cells"),
            _range(slide),
        ]
        cells += [count(index.positive), count(index.total), decimal(slide.tumour_area_mm2, 2)]
        if any(one.truth for one in slides):
            cells.append(_percent(slide.truth.index_percent) if slide.truth else "–")
        rows.append(cells)
    heads = ["Slide", "Ki-67 index", "95 % interval", "Positive", "Counted", "Tumour area, mm²"]
    heads += ["Truth"] if any(slide.truth for slide in slides) else []
    return f'<section class="summary"><h2>All {len(slides)} slides</h2>{table(heads, rows)}</section>'


def _slide(slide: SlideReport, number: int, limit: float) -> str:
    parts = [f'<section class="slide" id="slide-{number}"><h2>{text(slide.name)}</h2>']
    parts += [f'<p class="warning"><strong>Warning:</strong> {text(words)}</p>' for words in slide.warnings]
    parts += [_headline(slide, limit), _facts(slide), _figures(slide)]
    if slide.truth is not None:
        parts.append(_quality(slide, slide.truth))
    if slide.notes:
        parts.append("<h3>Notes</h3><ul>" + "".join(f"<li>{text(words)}</li>" for words in slide.notes) + "</ul>")
    details = pairs("Stains", "Stain", "Vector", slide.stains) + pairs("Settings", "Setting", "Value", slide.settings)
    parts.append(f'<div class="columns">{details}</div>' if details else "")
    return "".join(parts) + "</section>"


def _headline(slide: SlideReport, limit: float) -> str:
    index, truth = slide.index, slide.truth
    if math.isnan(index.percent):
        known = "" if truth is None else f"The truth is {_percent(truth.index_percent)}. "
        return (
            '<p class="headline"><span class="label">Ki-67 index</span> <span class="none">No cells found</span></p>'
            f'<p class="method">{known}Without counted tumour cells there is no index.</p>'
        )
    compared = ""
    if truth is not None and math.isfinite(truth.index_percent):
        apart = f"{index.percent - truth.index_percent:+.1f}".replace("-", "−")
        inside = "inside" if index.low <= truth.index_percent <= index.high else "outside"
        compared = (
            f" The truth is {_percent(truth.index_percent)}: the result is {apart} percentage points from it, "
            f"and it lies {inside} the interval."
        )
    return (
        f'<p class="headline"><span class="label">Ki-67 index</span> <span class="number">{_percent(index.percent)}'
        f'</span> <span class="interval-words">95 % interval {_range(slide)}</span></p>'
        f"{interval_svg(index, truth_percent=truth.index_percent if truth else None, limit=limit)}"
        f'<p class="method">Dot: measured index. Bar: 95 % interval ({text(index.method)}).{compared}</p>'
    )


def _facts(slide: SlideReport) -> str:
    index = slide.index
    facts = [
        (f"{_swatch('positive')} Positive tumour cells", count(index.positive)),
        (f"{_swatch('negative')} Negative tumour cells", count(index.total - index.positive)),
        ("Tumour cells counted", count(index.total)),
        ("Tumour area", _with_unit(decimal(slide.tumour_area_mm2, 2), "mm²")),
        ("Cell density", _with_unit(count(slide.cells_per_mm2), "per mm²")),
    ]
    return '<dl class="facts">' + "".join(f"<div><dt>{k}</dt><dd>{v}</dd></div>" for k, v in facts) + "</dl>"


def _figures(slide: SlideReport) -> str:
    index = slide.index
    counts = f"{index.positive} positive and {index.total - index.positive} negative tumour cells"
    legend = (
        f"{_swatch('tumour')} tumour outline, {_swatch('positive')} red: positive nucleus, "
        f"{_swatch('negative')} blue: negative nucleus."
    )
    alt = f"Whole slide {slide.name}: tumour outlined in red, {counts} marked."
    parts = [figure(slide.overview_png, alt, f"<strong>Whole slide.</strong> {legend}")]
    if slide.detail_png is not None:
        alt = f"Enlarged field of slide {slide.name}: nuclei outlined, red where positive, blue where negative."
        caption = f"<strong>One field, enlarged.</strong> Outlines follow the nuclei that were found. {legend}"
        parts.append(figure(slide.detail_png, alt, caption))
    return f'<div class="figures">{"".join(parts)}</div>'


def _quality(slide: SlideReport, truth: TruthReport) -> str:
    heads = ["Class", "Precision", "Recall", "F1", "Right", "Found in excess", "Missed"]
    rows = [
        [f"{_swatch('positive')} Tumor: Positive", *_score(truth.positive)],
        [f"{_swatch('negative')} Tumor: Negative", *_score(truth.negative)],
    ]
    return (
        '<div class="together"><h3>Against the truth</h3>'
        + table(heads, rows, caption=f"Cells of {text(slide.name)}")
        + f'<p class="method">Tumour area: Dice {decimal(truth.tumour_dice, 3)} '
        "(1 is the same area, 0 is no overlap). Precision: share of the found cells that are right. "
        "Recall: share of the true cells that were found. F1: their harmonic mean.</p></div>"
    )


def _score(score: DetectionScore) -> list[str]:
    shares = [decimal(value, 3) for value in (score.precision, score.recall, score.f1)]
    return shares + [count(n) for n in (score.true_positive, score.false_positive, score.false_negative)]


def _how_made(report: Ki67Report) -> str:
    figures = "".join(_curve(name, values) for name, values in report.curves.items())
    models = pairs("Models", "Model", "SHA-256 of the weights, or method", report.models)
    software = pairs("Software", "Name", "Version", report.software)
    return (
        '<section class="made"><h2>How it was made</h2>'
        + (f'<h3>Training</h3><div class="charts">{figures}</div>' if figures else "")
        + f'<div class="columns">{models}{software}</div></section>'
    )


def _curve(name: str, values: Sequence[float]) -> str:
    svg = curve_svg(name, values)
    if not svg:
        return ""
    grouped = "; line: mean of neighbouring steps, band: their lowest to highest" if len(values) > MOST_POINTS else ""
    steps = "step" if len(values) == 1 else "steps"
    caption = f"<strong>{text(name)}</strong> over {count(len(values))} training {steps}{grouped}."
    return f"<figure>{svg}<figcaption>{caption}</figcaption></figure>"


def _swatch(kind: str) -> str:
    return f'<span class="swatch {kind}" aria-hidden="true"></span>'


def _percents(slide: SlideReport) -> list[float]:
    truth = [] if slide.truth is None else [slide.truth.index_percent]
    return [slide.index.percent, slide.index.high, *truth]


def _range(slide: SlideReport) -> str:
    low, high = slide.index.low, slide.index.high
    return "–" if math.isnan(low) or math.isnan(high) else f"{low:.1f} to {high:.1f} %"


def _percent(value: float, *, none: str = "not known") -> str:
    return none if math.isnan(value) else f"{value:.1f} %"


def _with_unit(number: str, unit: str) -> str:
    return number if number == "–" else f"{number} {unit}"
