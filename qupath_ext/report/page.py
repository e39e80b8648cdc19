"""The report as one HTML file.

Text from outside (names, notes, settings) is escaped, pictures are part of the file, and a content security policy
forbids the page to load anything.
"""

from __future__ import annotations

import base64
import html
import io
import math
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from pyhisto.errors import ConfigError
from pyhisto.metrics import DetectionScore
from qupath_ext.errors import ProjectError
from qupath_ext.report.charts import MOST_POINTS, axis_limit, curve_svg, interval_svg
from qupath_ext.report.content import Ki67Report, SlideReport, TruthReport

__all__ = ["write_report"]

_JPEG_QUALITY = 90
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
_DISCLAIMER = "Research use only. Not for diagnosis."


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
    page = _page(report)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        temporary.write_text(page, encoding="utf-8", newline="\n")
        temporary.replace(path)
    except OSError as error:
        raise ProjectError(
            f"report {path} cannot be written ({error.strerror})", remedy="check the folder and its free space"
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


def _page(report: Ki67Report) -> str:
    style = Path(__file__).with_name("page.css").read_text(encoding="utf-8")
    limit = axis_limit([value for slide in report.slides for value in _percents(slide)])
    sections = [_slide(slide, number, limit) for number, slide in enumerate(report.slides, start=1)]
    return "\n".join(
        [
            '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{_text(report.title)}</title>\n<style>\n{style}</style>\n</head>\n<body>",
            _header(report),
            "<main>",
            _summary(report.slides) if len(report.slides) != 1 else "",
            *sections,
            _how_made(report),
            f"</main>\n<footer><p><strong>{_DISCLAIMER}</strong></p></footer>\n</body>\n</html>\n",
        ]
    )


def _header(report: Ki67Report) -> str:
    return (
        f"<header><h1>{_text(report.title)}</h1>"
        f'<p class="meta">{_text(report.created)} <span class="badge">{_DISCLAIMER}</span></p>'
        f'<p class="meta">Open in QuPath: <code>{_text(report.project)}</code></p></header>'
    )


def _summary(slides: Sequence[SlideReport]) -> str:
    if not slides:
        return '<section><p class="headline"><span class="none">No slide was analysed</span></p></section>'
    rows = []
    for number, slide in enumerate(slides, start=1):
        index = slide.index
        cells = [
            f'<a href="#slide-{number}">{_text(slide.name)}</a>',
            _percent(index.percent, none="no cells"),
            _range(slide),
        ]
        cells += [_count(index.positive), _count(index.total), _decimal(slide.tumour_area_mm2, 2)]
        if any(one.truth for one in slides):
            cells.append(_percent(slide.truth.index_percent) if slide.truth else "–")
        rows.append(cells)
    heads = ["Slide", "Ki-67 index", "95 % interval", "Positive", "Counted", "Tumour area, mm²"]
    heads += ["Truth"] if any(slide.truth for slide in slides) else []
    return f'<section class="summary"><h2>All {len(slides)} slides</h2>{_table(heads, rows)}</section>'


def _slide(slide: SlideReport, number: int, limit: float) -> str:
    parts = [f'<section class="slide" id="slide-{number}"><h2>{_text(slide.name)}</h2>']
    parts += [f'<p class="warning"><strong>Warning:</strong> {_text(words)}</p>' for words in slide.warnings]
    parts += [_headline(slide, limit), _facts(slide), _figures(slide)]
    if slide.truth is not None:
        parts.append(_quality(slide, slide.truth))
    if slide.notes:
        parts.append("<h3>Notes</h3><ul>" + "".join(f"<li>{_text(words)}</li>" for words in slide.notes) + "</ul>")
    details = _pairs("Stains", "Stain", "Vector", slide.stains) + _pairs("Settings", "Setting", "Value", slide.settings)
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
        f'<p class="method">Dot: measured index. Bar: 95 % interval ({_text(index.method)}).{compared}</p>'
    )


def _facts(slide: SlideReport) -> str:
    index = slide.index
    facts = [
        (f"{_swatch('positive')} Positive tumour cells", _count(index.positive)),
        (f"{_swatch('negative')} Negative tumour cells", _count(index.total - index.positive)),
        ("Tumour cells counted", _count(index.total)),
        ("Tumour area", _with_unit(_decimal(slide.tumour_area_mm2, 2), "mm²")),
        ("Cell density", _with_unit(_count(slide.cells_per_mm2), "per mm²")),
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
    parts = [_figure(slide.overview_png, alt, f"<strong>Whole slide.</strong> {legend}")]
    if slide.detail_png is not None:
        alt = f"Enlarged field of slide {slide.name}: nuclei outlined, red where positive, blue where negative."
        caption = f"<strong>One field, enlarged.</strong> Outlines follow the nuclei that were found. {legend}"
        parts.append(_figure(slide.detail_png, alt, caption))
    return f'<div class="figures">{"".join(parts)}</div>'


def _figure(png: bytes, alt: str, caption: str) -> str:
    uri, width, height = _data_uri(png)
    return (
        f'<figure><img src="{uri}" alt="{_text(alt)}" width="{width}" height="{height}">'
        f"<figcaption>{caption}</figcaption></figure>"
    )


def _data_uri(png: bytes) -> tuple[str, int, int]:
    """Return a picture as a data URI, width and height; photographs become JPEG, which is several times smaller."""
    try:
        image = Image.open(io.BytesIO(png)).convert("RGB")
    except (UnidentifiedImageError, OSError) as error:
        raise ConfigError(f"picture of {len(png)} bytes cannot be read", expected="a PNG file's bytes") from error
    stream = io.BytesIO()
    image.save(stream, format="JPEG", quality=_JPEG_QUALITY, subsampling=0, optimize=True)
    kind, data = min(("png", png), ("jpeg", stream.getvalue()), key=lambda pair: len(pair[1]))
    return f"data:image/{kind};base64,{base64.b64encode(data).decode('ascii')}", image.width, image.height


def _quality(slide: SlideReport, truth: TruthReport) -> str:
    heads = ["Class", "Precision", "Recall", "F1", "Right", "Found in excess", "Missed"]
    rows = [
        [f"{_swatch('positive')} Tumor: Positive", *_score(truth.positive)],
        [f"{_swatch('negative')} Tumor: Negative", *_score(truth.negative)],
    ]
    return (
        '<div class="together"><h3>Against the truth</h3>'
        + _table(heads, rows, caption=f"Cells of {_text(slide.name)}")
        + f'<p class="method">Tumour area: Dice {_decimal(truth.tumour_dice, 3)} '
        "(1 is the same area, 0 is no overlap). Precision: share of the found cells that are right. "
        "Recall: share of the true cells that were found. F1: their harmonic mean.</p></div>"
    )


def _score(score: DetectionScore) -> list[str]:
    shares = [_decimal(value, 3) for value in (score.precision, score.recall, score.f1)]
    return shares + [_count(n) for n in (score.true_positive, score.false_positive, score.false_negative)]


def _how_made(report: Ki67Report) -> str:
    figures = "".join(_curve(name, values) for name, values in report.curves.items())
    models = _pairs("Models", "Model", "SHA-256 of the weights, or method", report.models)
    software = _pairs("Software", "Name", "Version", report.software)
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
    caption = f"<strong>{_text(name)}</strong> over {_count(len(values))} training {steps}{grouped}."
    return f"<figure>{svg}<figcaption>{caption}</figcaption></figure>"


def _pairs(title: str, key: str, value: str, rows: Mapping[str, str]) -> str:
    if not rows:
        return ""
    body = [[_text(name), f'<span class="data">{_text(words)}</span>'] for name, words in rows.items()]
    return f'<div class="together"><h3>{title}</h3>{_table([key, value], body, kind="pairs")}</div>'


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]], *, caption: str = "", kind: str = "numbers") -> str:
    """Return a table whose first column names the row; cells are HTML already."""
    head = "".join(f'<th scope="col">{name}</th>' for name in heads)
    body = "".join(
        f'<tr><th scope="row">{row[0]}</th>' + "".join(f"<td>{cell}</td>" for cell in row[1:]) + "</tr>" for row in rows
    )
    above = f"<caption>{caption}</caption>" if caption else ""
    return f'<table class="{kind}">{above}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'


def _swatch(kind: str) -> str:
    return f'<span class="swatch {kind}" aria-hidden="true"></span>'


def _percents(slide: SlideReport) -> list[float]:
    truth = [] if slide.truth is None else [slide.truth.index_percent]
    return [slide.index.percent, slide.index.high, *truth]


def _text(value: object) -> str:
    return html.escape(str(value), quote=True)


def _range(slide: SlideReport) -> str:
    low, high = slide.index.low, slide.index.high
    return "–" if math.isnan(low) or math.isnan(high) else f"{low:.1f} to {high:.1f} %"


def _percent(value: float, *, none: str = "not known") -> str:
    return none if math.isnan(value) else f"{value:.1f} %"


def _with_unit(number: str, unit: str) -> str:
    return number if number == "–" else f"{number} {unit}"


def _decimal(value: float, digits: int) -> str:
    return "–" if math.isnan(value) else f"{value:.{digits}f}"


def _count(value: float) -> str:
    r"""Return a whole number with narrow spaces between thousands; a dash for NaN.

    >>> _count(12431).replace("\u202f", "_")
    '12_431'
    """
    return "–" if math.isnan(value) else f"{value:,.0f}".replace(",", "\u202f")
