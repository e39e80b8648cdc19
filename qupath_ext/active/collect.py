"""Reading what a person did in the regions of a round.

``round.json`` says under ``collected``: ``when``, ``minutes`` (given by the person, or null), ``prefer`` (who was
chosen, or empty), ``regions`` (by id: ``round``, ``rank``, ``project``, ``entry_id``, ``answer`` (``done``,
``rejected``, ``open`` or ``gone``), ``annotator``, ``marked`` (when), ``area_mm2``, ``counts`` by kind of correction),
``totals`` (counts over the regions that are done and count), ``disagreements`` (see
:func:`qupath_ext.active.annotators.disagreements`), ``left_out`` (images that could not be read; see
:attr:`qupath_ext.active.slides.LeftOut.records`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import geopandas as gpd
import pandas as pd
import shapely

from pyhisto.objects import load_objects
from qupath_ext.active.annotators import decided, disagreements, latest, own_annotations
from qupath_ext.active.answers import Answer, read_answers, removed_regions, settled_regions
from qupath_ext.active.corrections import KINDS, area_corrections, point_corrections, points_inside
from qupath_ext.active.files import write_table
from qupath_ext.active.slides import LABELS, LeftOut
from qupath_ext.errors import ProjectError
from qupath_ext.runs.diff import ImageDiff, diff_image
from qupath_ext.runs.record import find_run

if TYPE_CHECKING:
    from qupath_ext.active.loop import Loop, Round

__all__ = ["CORRECTION_COLUMNS", "KINDS", "collect_round"]

CORRECTION_COLUMNS = ("geometry", "region", "project", "entry_id", "kind", "before", "now", "weight")
"""Columns of ``corrections.parquet``, a row for each object (cells: each point) of the regions that are done: where it
is now (where it was, if deleted; of tissue, the area that changed), px of the image as QuPath shows it; id of the
region, number of the project, id of the image; one of :data:`KINDS`; classes; and what it weighs in the training."""

AREAS = (LABELS.training, LABELS.validation)
"""Classes of areas to learn from, which are no classes of tissue or cells."""

Say = Callable[[str], None]


def collect_round(loop: Loop, say: Say, *, minutes: float | None = None, prefer: str = "") -> Round:
    """Read what was made of the regions that are open, and keep it in ``corrections.parquet`` and ``round.json``.

    Regions that a person marked ``Done*`` or ``Rejected*`` are read; open ones stay for later: it may be called again
    until the round is trained, and takes in what earlier rounds left open.

    Parameters
    ----------
    loop
        The loop.
    say
        Called with lines about what was found.
    minutes
        How long it took a person; kept for the cost model. What an earlier call was given stays if it is None.
    prefer
        Whose answer counts where two persons went through the same region: the folder of a project, or an
        ``annotator``; what an earlier call was given stays if it is empty. It also decides on regions that earlier
        rounds left undecided.

    Raises
    ------
    ProjectError
        If nothing was proposed, no region is done or rejected, or nobody is called `prefer`.
    """
    one = loop.latest
    if one is None or one.state in ("begun", "trained"):
        raise ProjectError(
            f"no round of the loop {loop.name!r} waits to be collected", remedy="qupath-ext active propose begins one"
        )
    unread = LeftOut(loop, say)
    everyone = read_answers(loop, one.number, unread)
    settled = settled_regions(loop, one.number)
    answers = [answer for answer in everyone if answer.region not in settled]
    regions = removed_regions(loop, one.number)
    _check_any(loop, one, answers, len(regions))
    earlier = one.record.get("collected", {})
    prefer = prefer or earlier.get("prefer", "")
    disputed = latest([*decided(loop, one.number, prefer), *disagreements(loop, everyone, prefer)])
    written = {
        number: load_objects(loop.round(number).folder / "predictions.parquet")
        for number in {answer.round for answer in answers}
    }
    tables = {
        answer.region: _corrections(loop, answer, everyone, written[answer.round])
        for answer in answers
        if answer.answer == "done"
    }
    left_out = {person["region"] for dispute in disputed for person in dispute["people"]}
    left_out -= {dispute["chosen"] for dispute in disputed}
    counts = {id_: table["kind"].value_counts() for id_, table in tables.items()}
    regions |= {answer.region: _described(answer, counts.get(answer.region)) for answer in answers}
    counting = [table for id_, table in tables.items() if id_ not in left_out]
    totals = {kind: int(sum((table["kind"] == kind).sum() for table in counting)) for kind in KINDS}
    write_table(one.folder / "corrections.parquet", _together(list(tables.values())))
    one.save(
        collected={
            "minutes": earlier.get("minutes") if minutes is None else minutes,
            "prefer": prefer,
            "regions": regions,
            "totals": totals,
            "disagreements": disputed,
            "left_out": unread.records,
        }
    )
    _report(one, regions, totals, disputed, say)
    _report_classes(loop, answers, say)
    return one


def _check_any(loop: Loop, one: Round, answers: Sequence[Answer], removed: int) -> None:
    """Refuse a round of which nothing is done."""
    verdicts = [answer.answer for answer in answers]
    if "done" in verdicts or "rejected" in verdicts:
        return
    number = len(verdicts) + removed
    if "open" not in verdicts and number:
        raise ProjectError(
            f"all {number} regions were deleted",
            remedy=f"take the round back with qupath-ext active rollback {loop.paths[0].parent} {one.number - 1}",
        )
    misnamed = sum(bool(answer.misnamed) for answer in answers)
    raise ProjectError(
        f"none of {number} regions is done" + (f", {misnamed} are of another class" if misnamed else ""),
        expected="regions whose class a person set to Done* or Rejected*",
        remedy="correct some in QuPath, set their class, and save",
    )


def _corrections(
    loop: Loop, answer: Answer, answers: Sequence[Answer], predictions: gpd.GeoDataFrame
) -> gpd.GeoDataFrame:
    """Return the rows of ``corrections.parquet`` of a region that is done."""
    settings = loop.settings
    group = [other for other in answers if (other.round, other.rank, other.slide) == _place(answer)]
    own = own_annotations(answer, group)
    proposed = next(other.region for other in group if other.image is answer.image)
    written = predictions[predictions["parent_id"] == proposed]
    if settings.target == "cells":
        before, now = (points_inside(table, answer.polygon, settings.classes) for table in (written, own))
        table = point_corrections(before, now, answer.image.mpp, settings.match_um)
    else:
        diff = _diff(loop.round(answer.round), answer)
        there = own[own.index.isin(written.index) | own.index.isin(diff.added.index)]
        table = area_corrections(written, there, answer.polygon, settings.classes, answer.image.mpp)
    table["region"], table["project"], table["entry_id"] = (
        answer.region,
        answer.image.number,
        answer.image.source.entry.id,
    )
    table["weight"] = [1.0 if kind == "confirmed" else settings.correction_weight for kind in table["kind"]]
    return table[list(CORRECTION_COLUMNS)]


def _place(answer: Answer) -> tuple[int, int, str]:
    return answer.round, answer.rank, answer.slide


def _diff(one: Round, answer: Answer) -> ImageDiff:
    """Return what became of what a round wrote to the image of a region."""
    image = answer.image
    run = find_run(image.source.project, one.record["proposed"]["runs"][image.number])
    return diff_image(image.source.project, run, image.source.entry, image.present)


def _together(tables: list[gpd.GeoDataFrame]) -> gpd.GeoDataFrame:
    if not tables:
        return gpd.GeoDataFrame({name: [] for name in CORRECTION_COLUMNS}, geometry="geometry")
    return gpd.GeoDataFrame(pd.concat(tables, ignore_index=True), geometry="geometry")


def _described(answer: Answer, counts: pd.Series[Any] | None) -> dict[str, Any]:
    """Return what ``round.json`` says of a region."""
    return {
        "round": answer.round,
        "rank": answer.rank,
        "project": answer.image.number,
        "entry_id": answer.image.source.entry.id,
        "answer": answer.answer,
        "annotator": answer.annotator,
        "marked": answer.marked,
        "area_mm2": round(answer.area_mm2, 6),
        "counts": {} if counts is None else {kind: int(counts.get(kind, 0)) for kind in KINDS},
    }


def _report(
    one: Round, regions: dict[str, Any], totals: dict[str, int], disputed: Sequence[dict[str, Any]], say: Say
) -> None:
    verdicts = [region["answer"] for region in regions.values()]
    counted = ", ".join(f"{verdicts.count(name)} {name}" for name in ("done", "rejected", "open", "gone"))
    say(f"round {one.number}: regions {counted}")
    say(f"  {', '.join(f'{n} {kind}' for kind, n in totals.items())}")
    for dispute in disputed:
        what, agreed = ("Dice", dispute["dice"]) if "dice" in dispute else ("F1", dispute["f1"])
        figures = ", ".join(f"{name} {value}" for name, value in agreed.items())
        who = {person["region"]: person["who"] for person in dispute["people"]}
        chosen = dispute["chosen"]
        outcome = "left out of the training; choose with --prefer" if chosen is None else f"{who[chosen]} counts"
        say(
            f"  round {dispute['round']} #{dispute['rank']}: {' and '.join(who.values())}: {what} {figures}, "
            f"kappa {dispute['kappa']}; {outcome}"
        )


def _report_classes(loop: Loop, answers: Sequence[Answer], say: Say) -> None:
    """Say which classes do not mean what a person may think: those of open regions, and of objects in done ones."""
    unknown: set[str] = set()
    for answer in answers:
        if answer.misnamed:
            place = f"round {answer.round} #{answer.rank}"
            say(f"  {place}: {answer.misnamed}, so it is open; set it to Done*, Rejected* or Region*")
        elif answer.answer == "done":
            annotations = answer.image.annotations
            inside = annotations[shapely.intersects(annotations.geometry.to_numpy(), answer.polygon)]
            names = set(inside["classification"].dropna()) - set(loop.settings.classes)
            unknown |= {name for name in names if not name.endswith("*") and name not in AREAS}
    if unknown:
        named = ", ".join(repr(name) for name in sorted(unknown))
        say(f"  classes that the loop does not learn: {named}; what has them is not learnt")
