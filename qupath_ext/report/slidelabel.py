"""The page that a prediction for one slide leaves behind: what the model says of it, and where it looked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from qupath_ext.report.parts import DISCLAIMER, decimal, document, figure, pairs, table, text, write_page

__all__ = ["LabelView", "SlideLabelReport", "TopTile", "write_slide_page"]


@dataclass(frozen=True)
class TopTile:
    """A tile that got much of the attention.

    Attributes
    ----------
    rank
        From 1, which got the most.
    attention
        Its share of the attention, 0 to 1.
    png
        PNG file's bytes.
    """

    rank: int
    attention: float
    png: bytes


@dataclass(frozen=True)
class LabelView:
    """What a model says of one label.

    Attributes
    ----------
    task
        The label.
    probabilities
        Class to probability, 0 to 1.
    heatmap_png
        PNG file's bytes: the slide in the colours of the attention.
    top
        The tiles with the most attention, first the most.
    """

    task: str
    probabilities: Mapping[str, float]
    heatmap_png: bytes
    top: Sequence[TopTile]


@dataclass(frozen=True)
class SlideLabelReport:
    """A page about one slide.

    Attributes
    ----------
    slide
        Its name.
    created
        Date and time, in words.
    labels
        What the model says.
    tiles
        How many tiles it saw.
    made_by
        Names and values: the model, the features, the project.
    """

    slide: str
    created: str
    labels: Sequence[LabelView]
    tiles: int
    made_by: Mapping[str, str]


def write_slide_page(path: Path, report: SlideLabelReport) -> None:
    """Write the page: under a temporary name first, then put in place.

    Raises
    ------
    ConfigError
        If a picture cannot be read.
    ProjectError
        If the file cannot be written; one that was there before stays.
    """
    header = (
        f"<header><h1>{text(report.slide)}</h1>"
        f'<p class="meta">Slide labels, {text(report.created)} <span class="badge">{DISCLAIMER}</span></p></header>'
    )
    sections = [_label(report, view) for view in report.labels]
    made = f'<section class="made">{pairs("How it was made", "What", "Which", report.made_by)}</section>'
    write_page(path, document(report.slide, header, [*sections, made]))


def _label(report: SlideLabelReport, view: LabelView) -> str:
    rows = [[text(name), decimal(value, 3)] for name, value in view.probabilities.items()]
    alt = f"Slide {report.slide}: tiles coloured by the attention for {view.task}."
    caption = (
        '<strong>Attention.</strong> <span class="scale">least<i></i>most</span> Tiles in the order of their '
        "attention. It says where the model looked, not what it saw there."
    )
    top = "".join(
        figure(tile.png, f"Tile of rank {tile.rank}", f"{tile.rank}: {_percent(tile.attention)}") for tile in view.top
    )
    return (
        f'<section class="slide"><h2>{text(view.task)}</h2>'
        + table(["Class", "Probability"], rows)
        + f'<div class="figures">{figure(view.heatmap_png, alt, caption)}</div>'
        + f"<h3>The {len(view.top)} of {report.tiles} tiles with the most attention, and their share of it</h3>"
        + f'<div class="tiles">{top}</div></section>'
    )


def _percent(share: float) -> str:
    """Return a share with two digits that count."""
    return f"{100 * share:.2g} %" if share >= 1e-5 else "less than 0.001 %"
