"""The page that a comparison leaves behind: how good a prediction is, with the worst cases as pictures."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from pyhisto.metrics import Agreement, Reliability, expected_calibration_error
from qupath_ext.report.parts import DISCLAIMER, count, decimal, document, figure, pairs, table, text, write_page
from qupath_ext.report.plots import bland_altman_svg, dots_svg, reliability_svg, scatter_svg

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Case", "EvaluationReport", "IndexAgreement", "write_evaluation"]

Confusion = Mapping[tuple[str | None, str | None], float]

MEAN = "mean of patients"

IN_PERCENT = ("index of the prediction", "index of the reference", "index error")
IN_UM = ("Hausdorff 95 %", "Hausdorff")

EXPLAINED = {
    "F1": "harmonic mean of precision and recall",
    "precision": "share of the found cells that are right",
    "recall": "share of the reference cells that were found",
    "AJI": "aggregated Jaccard index of the outlines",
    "PQ": "panoptic quality, DQ × SQ",
    "DQ": "F1 of the outlines that overlap by more than half (IoU above 0.5)",
    "SQ": "mean IoU of those",
    "Dice": "twice the common area over the sum of both areas",
    "IoU": "common area over the area of both together",
    "Hausdorff 95 %": "distance within which 95 % of either border lie from the other",
    "Hausdorff": "largest distance of a point of one border from the other",
}


@dataclass(frozen=True)
class Case:
    """A place where prediction and reference differ.

    Attributes
    ----------
    name, words
        The image, and what is wrong there.
    marked_png, plain_png
        PNG files' bytes: with both sides drawn, and the same field without.
    """

    name: str
    words: str
    marked_png: bytes
    plain_png: bytes


@dataclass(frozen=True)
class IndexAgreement:
    """The index of both sides on each image that has one on both, percent."""

    names: Sequence[str]
    reference: Sequence[float]
    measured: Sequence[float]
    agreement: Agreement


@dataclass(frozen=True)
class EvaluationReport:
    """What the page says.

    Attributes
    ----------
    title, created, project
        Heading, date and time, and the project's path.
    sentence
        What was compared, in one sentence.
    key
        The figure that comes first: class and metric.
    facts
        Name to value of other numbers worth a look, in words.
    figures
        The tidy table of all figures (level, statistic, image, patient, class, metric, value, low, high, n, chance).
    confusion, confusion_unit
        (reference class, predicted class) to a number, None for what the other side lacks; its unit.
    index, curve
        Agreement of the index, and reliability of the class probabilities, where there are any.
    cases, legend
        The worst cases, and what the signs in their pictures mean: (kind of sign, words).
    notes
        Sentences about what was not compared.
    method
        Sentences on how the figures were made.
    settings, software
        Name to value.
    """

    title: str
    created: str
    project: str
    sentence: str
    key: tuple[str, str]
    facts: Mapping[str, str]
    figures: pd.DataFrame
    confusion: Confusion
    confusion_unit: str
    index: IndexAgreement | None
    curve: Reliability | None
    cases: Sequence[Case]
    legend: Sequence[tuple[str, str]]
    notes: Sequence[str]
    method: Sequence[str]
    settings: Mapping[str, str]
    software: Mapping[str, str] = field(default_factory=dict)


def write_evaluation(path: Path, report: EvaluationReport) -> None:
    """Write the page, all or nothing.

    Parameters
    ----------
    path
        The HTML file; its folder must exist.
    report
        What to say.

    Raises
    ------
    ConfigError
        If a picture cannot be read.
    ProjectError
        If the file cannot be written.
    """
    sections = [
        _key(report),
        _by_class(report.figures),
        _dots(report),
        _index(report.index),
        _confusion(report),
        _reliability(report.curve),
        _cases(report),
        _images(report.figures),
        _how(report),
    ]
    header = (
        f"<header><h1>{text(report.title)}</h1>"
        f'<p class="meta">{text(report.created)} <span class="badge">{DISCLAIMER}</span></p>'
        f'<p class="meta">Project: <code>{text(report.project)}</code></p></header>'
    )
    write_page(path, document(report.title, header, sections))


def _over_all(figures: pd.DataFrame, class_name: str, metric: str, statistic: str = MEAN) -> pd.Series | None:
    rows = figures[
        (figures["level"] == "all")
        & (figures["class"] == class_name)
        & (figures["metric"] == metric)
        & (figures["statistic"] == statistic)
    ]
    return rows.iloc[0] if len(rows) else None


def _key(report: EvaluationReport) -> str:
    class_name, metric = report.key
    row = _over_all(report.figures, class_name, metric)
    parts = [f'<section class="slide"><p class="lead">{text(report.sentence)}</p>']
    parts += [f'<p class="warning">{text(words)}</p>' for words in report.notes]
    if row is None:
        parts.append('<p class="headline"><span class="none">Neither side has anything to compare</span></p>')
    else:
        interval = _interval(row)
        words = f"95 % interval {interval}" if interval != "–" else "no interval from one patient"
        chance = f" By chance it would be {_value(metric, row['chance'])}." if math.isfinite(row["chance"]) else ""
        parts.append(
            f'<p class="headline"><span class="label">{text(metric)}, {text(class_name)}</span> '
            f'<span class="number">{_value(metric, row["value"])}</span> '
            f'<span class="interval-words">{words}</span></p>'
            f'<p class="method">Mean of the patients; {text(EXPLAINED.get(metric, ""))}. '
            f"1 is perfect, 0 is nothing right.{chance}</p>"
        )
    facts = "".join(f"<div><dt>{text(name)}</dt><dd>{text(words)}</dd></div>" for name, words in report.facts.items())
    return "".join(parts) + f'<dl class="facts">{facts}</dl></section>'


def _by_class(figures: pd.DataFrame) -> str:
    """Return the figures of each class: mean of the patients with interval, chance, and the pooled figure."""
    whole = figures[figures["level"] == "all"]
    metrics = [name for name in EXPLAINED if name in set(whole["metric"])]
    if not metrics:
        return ""
    heads = ["Class", *(_head(name) for name in metrics)]
    rows = []
    for class_name in dict.fromkeys(whole["class"]):
        cells = []
        for metric in metrics:
            row, pooled = (_over_all(figures, class_name, metric, kind) for kind in (MEAN, "pooled"))
            if row is None:
                cells.append("–")
                continue
            small = [_interval(row)] if _interval(row) != "–" else []
            small += [f"pooled {_value(metric, pooled['value'])}"] if pooled is not None else []
            small += [f"chance {_value(metric, row['chance'])}"] if math.isfinite(row["chance"]) else []
            cells.append(f'{_value(metric, row["value"])}<span class="small">{"<br>".join(small)}</span>')
        rows.append([text(class_name), *cells])
    words = "; ".join(f"{name}: {EXPLAINED[name]}" for name in metrics)
    return (
        f'<section class="together"><h2>By class</h2>{table(heads, rows)}'
        '<p class="method">Large: mean of the patients. Small: its 95 % interval, the figure of everything taken '
        f"together (pooled), and what chance gives. {text(words)}.</p></section>"
    )


def _dots(report: EvaluationReport) -> str:
    class_name, metric = report.key
    row = _over_all(report.figures, class_name, metric)
    mine = report.figures[
        (report.figures["level"] == "image")
        & (report.figures["class"] == class_name)
        & (report.figures["metric"] == metric)
    ]
    by_patient: dict[str, list[tuple[str, float]]] = {}
    for image, patient, value in zip(mine["image"], mine["patient"], mine["value"], strict=True):
        by_patient.setdefault(str(patient), []).append((str(image), float(value)))
    if row is None:
        return ""
    svg = dots_svg(
        f"{metric}, {class_name}",
        by_patient,
        value=row["value"],
        low=row["low"],
        high=row["high"],
        chance=row["chance"],
    )
    return (
        f'<section class="together"><h2>Each patient</h2><figure>{svg}<figcaption>Each dot is an image, each row a '
        "patient, best first. Line: mean of the patients, band: its 95 % interval.</figcaption></figure></section>"
    )


def _index(index: IndexAgreement | None) -> str:
    if index is None:
        return ""
    found = index.agreement
    limits = found.bland_altman
    rows = [
        ["Bias (prediction − reference)", _points(limits.bias), _limits(limits.bias_interval)],
        ["Lower limit of agreement", _points(limits.lower), _limits(limits.lower_interval)],
        ["Upper limit of agreement", _points(limits.upper), _limits(limits.upper_interval)],
        ["Mean absolute error", _points(found.mean_absolute_error, sign=False), "–"],
        ["Correlation (Pearson)", decimal(found.pearson, 3), "–"],
        ["Rank correlation (Spearman)", decimal(found.spearman, 3), "–"],
        ["Concordance (Lin)", decimal(found.lin_concordance, 3), "–"],
        ["ICC(2,1)", decimal(found.icc_2_1, 3), "–"],
    ]
    plots = [
        (scatter_svg(index.reference, index.measured, index.names), "On the line both sides agree."),
        (
            bland_altman_svg(index.reference, index.measured, index.names, limits),
            "Bland-Altman: 95 % of the differences are expected between the two dashed lines.",
        ),
    ]
    figures = "".join(f"<figure>{svg}<figcaption>{words}</figcaption></figure>" for svg, words in plots)
    caption = f"{len(index.names)} images with cells that are positive or negative on both sides; percentage points"
    return (
        '<section class="together"><h2>Ki-67 index: share of positive cells</h2>'
        f'<div class="charts">{figures}</div>'
        f"{table(['', 'Value', '95 % interval'], rows, caption=caption)}</section>"
    )


def _confusion(report: EvaluationReport) -> str:
    """Return the table of reference against predicted classes; each row with its share."""
    if not report.confusion:
        return ""
    classes = sorted({name for pair in report.confusion for name in pair if name is not None})
    columns: list[str | None] = [*classes, None]
    missing = ("missed", "in excess") if not report.confusion_unit else ("background", "background")
    rows = []
    for true in columns:
        values = [report.confusion.get((true, found), 0.0) for found in columns]
        total = sum(values)
        cells = []
        for found, value in zip(columns, values, strict=True):
            if true is None and found is None and not report.confusion_unit:
                cells.append("")
                continue
            share = value / total if total else 0.0
            kind = "hit" if true == found else "miss"
            number = count(value) if not report.confusion_unit else decimal(value, 3)
            cells.append(
                f'<span class="cell {kind}" style="--share:{share:.3f}">{number}'
                f'<span class="small">{100 * share:.0f} %</span></span>'
            )
        rows.append([text(true) if true is not None else missing[1], *cells])
    heads = ["Reference ↓ &nbsp; prediction →", *(text(name) for name in classes), missing[0]]
    unit = f" ({text(report.confusion_unit)})" if report.confusion_unit else ""
    words = "Cells are paired whatever their class." if not report.confusion_unit else "All images together."
    return (
        f'<section class="together confusion"><h2>What is taken for what{unit}</h2>{table(heads, rows)}'
        f'<p class="method">{words} Percent of the row. On the diagonal both sides agree.</p></section>'
    )


def _reliability(curve: Reliability | None) -> str:
    if curve is None:
        return ""
    error = expected_calibration_error(curve)
    return (
        '<section class="together"><h2>Do the class probabilities mean what they say?</h2>'
        f'<div class="charts"><figure>{reliability_svg(curve)}<figcaption>Of the cells with a probability of 0.8, 80 % '
        "should be right: on the line they are. Below it the prediction is too sure of itself. "
        f"Expected calibration error {error:.3f}, {count(float(curve.counts.sum()))} cells.</figcaption></figure></div>"
        "</section>"
    )


def _cases(report: EvaluationReport) -> str:
    if not report.cases:
        return ""
    signs = "".join(
        f'<li><span class="sign {kind}" aria-hidden="true"></span>{text(words)}</li>' for kind, words in report.legend
    )
    parts = []
    for case in report.cases:
        marked = figure(case.marked_png, f"{case.name}, both sides drawn: {case.words}", "Both sides.")
        plain = figure(case.plain_png, f"The same field of {case.name} without marks", "The same field without marks.")
        parts.append(
            f'<div class="case"><h3>{text(case.name)}</h3><p class="method">{text(case.words)}</p>'
            f'<div class="pair">{marked}{plain}</div></div>'
        )
    return (
        '<section><h2>The worst cases</h2><p class="method">Fields with the most differences, from the images with '
        f'many and a large share of them.</p><ul class="legend">{signs}</ul>{"".join(parts)}</section>'
    )


def _images(figures: pd.DataFrame) -> str:
    """Return the figures of each image, all classes together where there is such a figure."""
    mine = figures[figures["level"] == "image"]
    if len(mine) == 0:
        return ""
    first = mine["class"].iloc[0]
    mine = mine[mine["class"] == first]
    metrics = list(dict.fromkeys(mine["metric"]))
    wide = mine.pivot_table(index=["entry_id", "image", "patient"], columns="metric", values="value", sort=False)
    rows = [
        [text(image), text(patient), *(_value(metric, row.get(metric, math.nan)) for metric in metrics)]
        for (_, image, patient), row in wide.iterrows()
    ]
    heads = ["Image", "Patient", *(_head(name) for name in metrics)]
    return (
        f"<section><h2>Each image</h2><details{' open' if len(rows) <= 12 else ''}><summary>{len(rows)} images, "
        f'{text(first)}; other classes are in figures.csv</summary><div class="wide">{table(heads, rows)}</div>'
        "</details></section>"
    )


def _how(report: EvaluationReport) -> str:
    sentences = "".join(f"<li>{text(words)}</li>" for words in report.method)
    settings = pairs("Settings", "Setting", "Value", report.settings)
    software = pairs("Software", "Name", "Version", report.software)
    return (
        f'<section class="made"><h2>How it was measured</h2><ul>{sentences}</ul>'
        f'<div class="columns">{settings}{software}</div></section>'
    )


def _head(metric: str) -> str:
    unit = "%" if metric in IN_PERCENT else "µm" if metric in IN_UM else ""
    return text(f"{metric[0].upper()}{metric[1:]}{', ' + unit if unit else ''}")


def _value(metric: str, value: float) -> str:
    return decimal(float(value), 1 if metric in IN_PERCENT or metric in IN_UM else 3)


def _interval(row: pd.Series) -> str:
    if not (math.isfinite(row["low"]) and math.isfinite(row["high"])):
        return "–"
    return f"{_value(row['metric'], row['low'])} to {_value(row['metric'], row['high'])}"


def _points(value: float, *, sign: bool = True) -> str:
    return "–" if math.isnan(value) else f"{value:{'+' if sign else ''}.1f}".replace("-", "−")


def _limits(interval: tuple[float, float]) -> str:
    return "–" if math.isnan(interval[0]) else f"{_points(interval[0])} to {_points(interval[1])}"
