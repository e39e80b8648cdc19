"""The page of a loop: its learning curve, its rounds, and pictures of regions before and after a person's work."""

from __future__ import annotations

import datetime
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import geopandas as gpd
import numpy as np
import shapely

from pyhisto.classes import Color
from pyhisto.errors import PyhistoError
from pyhisto.objects import concat_objects, load_objects
from pyhisto.overlay import overlay_png
from qupath_ext.active.corrections import KINDS
from qupath_ext.active.curve import MIN_GAIN
from qupath_ext.active.status import ADVICE, Axis, Learnt, Status, expectation, loop_status
from qupath_ext.active.write import COLORS
from qupath_ext.frames import open_slide, to_slide_frame
from qupath_ext.report.parts import DISCLAIMER, decimal, document, figure, pairs, table, text, write_page
from qupath_ext.report.plots import Measured, learning_svg

if TYPE_CHECKING:
    from qupath_ext.active.loop import Loop, Round

__all__ = ["write_status_page"]

MOST_PICTURES = 12
"""Regions that are shown, newest round first."""

PICTURE_PX = 460
RIM = 0.08
"""What is shown around a region, of its size."""

CURVE_POINTS = 60


@dataclass(frozen=True)
class _Shown:
    """A region as it was proposed and as it is now: what to call it, what became of it, PNG files' bytes."""

    name: str
    words: str
    before: bytes
    after: bytes


def write_status_page(loop: Loop, path: Path) -> None:
    """Write a self-contained HTML page about a loop, all or nothing.

    Parameters
    ----------
    loop
        The loop.
    path
        The HTML file; its folder must exist.

    Raises
    ------
    FormatError
        If a record is damaged.
    ProjectError
        If the file cannot be written.
    """
    status = loop_status(loop)
    settings = loop.settings
    shown, notes = _pictures(loop)
    when = datetime.datetime.now().astimezone().strftime("%Y-%m-%d %H:%M")
    header = (
        f"<header><h1>Active learning: {text(loop.name)}</h1>"
        f'<p class="meta">{text(settings.target)}: {text(", ".join(settings.classes))}</p>'
        f'<p class="meta">{when} <span class="badge">{DISCLAIMER}</span></p></header>'
    )
    about = {
        "strategy": settings.strategy,
        "regions": f"{settings.shape}, {settings.region_um:g} µm",
        "budget of a round": f"{settings.budget_mm2:g} mm²",
        "weight of corrections": f"{settings.correction_weight:g}",
        "patients": ", ".join(f"{len(loop.split.of_part(part))} {part}" for part in ("train", "validation", "test")),
        "projects": ", ".join(path.parent.name for path in loop.paths),
    }
    sections = [
        _headline(status),
        _curves(status),
        _rounds(status),
        _regions(shown, notes),
        f'<section class="made">{pairs("How it was made", "What", "Which", about)}{_method()}</section>',
    ]
    write_page(path, document(f"Active learning: {loop.name}", header, sections))


def _headline(status: Status) -> str:
    """Return the last figure, the advice, and what the next round takes."""
    facts = {
        "rounds with a model": str(len(status.learnt)),
        "next round": f"{status.next_mm2:.3g} mm², about {status.next_minutes:.0f} min",
    }
    number = '<span class="none">no figure yet</span>'
    if status.learnt:
        facts["looked at so far"] = f"{status.learnt[-1].mm2:.3g} mm²"
        minutes = status.learnt[-1].minutes
        facts["time so far"] = "not known" if minutes is None else f"{minutes:g} min"
    if status.judged:
        found = status.judged[-1].record["figures"]["validation"]
        interval = "" if found["low"] is None else f"95 % interval {found['low']:.3f} to {found['high']:.3f}, "
        number = (
            f'<span class="label">{found["metric"]} on the patients to validate on</span>'
            f'<span class="number">{found["value"]:.3f}</span>'
            f'<span class="interval-words">{interval}{found["patients"]} patients</span>'
        )
    rows = "".join(f"<div><dt>{text(name)}</dt><dd>{text(value)}</dd></div>" for name, value in facts.items())
    return (
        f'<section class="summary"><div class="headline">{number}</div>'
        f'<p class="lead">Advice: {text(ADVICE[status.advice])}.</p><dl class="facts">{rows}</dl></section>'
    )


def _curves(status: Status) -> str:
    """Return the learning curve over each way to count what was spent."""
    if not status.judged:
        return (
            '<section><h2>Learning curve</h2><p class="method">No round has a figure: nothing is labelled on the '
            "patients to validate on, or no model was trained yet.</p></section>"
        )
    metric = status.judged[-1].record["figures"]["validation"]["metric"]
    drawn = "".join(_curve(axis, status.judged, metric) for axis in status.axes)
    return f'<section><h2>Learning curve</h2><div class="charts">{drawn}</div></section>'


def _curve(axis: Axis, judged: Sequence[Learnt], metric: str) -> str:
    points = [
        Measured(spent, found["value"], _or_nan(found["low"]), _or_nan(found["high"]), f"round {one.number}")
        for one, spent in zip(judged, axis.spent, strict=True)
        if (found := one.figure("validation"))
    ]
    ahead, path = None, []
    caption = "No curve yet."
    if axis.expected is not None:
        expected = axis.expected
        grid = np.linspace(axis.spent[0], axis.after, CURVE_POINTS)
        path = list(zip(grid.tolist(), expected.curve.at(grid)[0].tolist(), strict=True))
        limits = (expected.now + expected.low, expected.now + expected.high)
        ahead = Measured(axis.after, expected.then, *limits, "expected of the next round")
        caption = text(expectation(axis, metric).replace("->", "→"))
    svg = learning_svg(metric, axis.name, points, curve=path, ahead=ahead)
    return f"<figure>{svg}<figcaption><strong>Over {axis.name}.</strong> {caption}</figcaption></figure>"


def _or_nan(value: float | None) -> float:
    return math.nan if value is None else value


def _rounds(status: Status) -> str:
    """Return the table of the rounds."""
    if not status.learnt:
        return ""
    rows = []
    for one in status.learnt:
        added = one.record["added"]
        counts = [str(added["objects"].get(kind, 0)) for kind in KINDS]
        figures = [_cell(one.figure(part)) for part in ("validation", "test")]
        taken = decimal(_or_nan(added["minutes"]), 0)
        rows.append([f"{one.number}", str(added["regions"]), f"{added['area_mm2']:.3g}", taken, *counts, *figures])
    heads = ["round", "regions", "mm²", "minutes", *KINDS, "validation", "test"]
    return f'<section><h2>Rounds</h2><div class="wide">{table(heads, rows)}</div></section>'


def _cell(found: dict[str, Any] | None) -> str:
    """Return a figure for a table, its interval below."""
    if found is None:
        return "–"
    interval = "" if found["low"] is None else f'<span class="small">{found["low"]:.3f} to {found["high"]:.3f}</span>'
    return f"{found['value']:.3f}{interval}"


def _method() -> str:
    return (
        '<p class="method">The patients to validate and to test on were set aside when the loop began and no round '
        "learns from them; the advice rests on the former alone. Intervals are Student's t over patients (jackknife), "
        "and there is none of fewer than three. The curve is y = a − b x<sup>−c</sup> through the rounds; the interval "
        f"of what is expected takes in how far they scatter about it. A round is worth its time from {MIN_GAIN:g} on."
        "</p>"
    )


def _regions(shown: Sequence[_Shown], notes: Sequence[str]) -> str:
    """Return the pictures of regions, before and after."""
    if not shown and not notes:
        return ""
    cases = "".join(
        f'<div class="case"><h3>{text(one.name)}</h3><p class="method">{text(one.words)}</p><div class="pair">'
        f"{figure(one.before, f'{one.name} as it was proposed', 'As proposed')}"
        f"{figure(one.after, f'{one.name} as it is now', 'Now')}</div></div>"
        for one in shown
    )
    said = "".join(f'<p class="method">{text(note)}</p>' for note in notes)
    return f"<section><h2>Regions</h2>{said}{cases}</section>"


def _pictures(loop: Loop) -> tuple[list[_Shown], list[str]]:
    """Return pictures of the newest regions, and sentences about those that are not shown."""
    shown: list[_Shown] = []
    notes = []
    total = 0
    for one in reversed(loop.rounds()):
        if not one.has("proposals") or not one.has("predictions"):
            continue
        proposals = one.table("proposals").sort_values(["rank", "project"])
        total += len(proposals)
        wanted = proposals.head(MOST_PICTURES - len(shown))
        for (project, entry_id), regions in wanted.groupby(["project", "entry_id"], sort=False):
            try:
                shown += _of_image(loop, one, int(project), str(entry_id), regions)
            except PyhistoError as error:
                notes.append(f"No pictures of {regions['image'].iloc[0]}: {error}")
    if total > len(shown):
        notes.insert(0, f"{len(shown)} of {total} regions are shown, those of the newest rounds.")
    return shown, notes


def _of_image(loop: Loop, one: Round, project: int, entry_id: str, regions: gpd.GeoDataFrame) -> Iterator[_Shown]:
    """Yield the regions of one image."""
    owner = loop.projects[project]
    entry = owner.entry(int(entry_id))
    predictions = to_slide_frame(load_objects(one.folder / "predictions.parquet"), entry)
    present = to_slide_frame(entry.read_objects(), entry)
    colors: dict[str, Color] = {
        **{name: _rgb(packed) for name, packed in owner.classes.items() if packed is not None},
        **COLORS,
    }
    with open_slide(entry) as slide:
        for id_, region in regions.iterrows():
            if id_ not in present.index:
                continue
            outline = present.loc[[id_]]
            bounds = _bounds(outline.geometry.iloc[0])
            proposed = concat_objects([predictions[predictions["parent_id"] == id_], outline])
            near = shapely.intersects(present.geometry.to_numpy(), shapely.box(*bounds))
            others = near & (present.index != id_)
            now = concat_objects([present[others], outline])
            before, after = (
                overlay_png(slide, objects, bounds=bounds, max_size=(PICTURE_PX, PICTURE_PX), colors=colors)
                for objects in (proposed, now)
            )
            name = f"Round {one.number} #{region['rank']} on {entry.name}"
            yield _Shown(name, _words(one, str(id_), region), before, after)


def _words(one: Round, id_: str, region: Mapping[str, Any]) -> str:
    """Return in a sentence why a region was proposed and what was done there."""
    words = f"Score {region['score']:.2f}, {region['reason']}, {region['area_mm2']:.3g} mm²"
    answer = one.record.get("collected", {}).get("regions", {}).get(id_)
    if answer is None:
        return f"{words}; not collected yet."
    counts = ", ".join(f"{n} {kind}" for kind, n in (answer.get("counts") or {}).items() if n)
    return f"{words}; {answer['answer']}{': ' + counts if counts else ''}."


def _bounds(outline: Any) -> tuple[float, float, float, float]:
    """Return the bounds of a region with a rim around it."""
    x0, y0, x1, y1 = outline.bounds
    rim = RIM * max(x1 - x0, y1 - y0)
    return x0 - rim, y0 - rim, x1 + rim, y1 + rim


def _rgb(packed: int) -> Color:
    value = packed & 0xFFFFFF
    return value >> 16, value >> 8 & 255, value & 255
