"""Two persons who went through the same region: how far they agree, and whose answer counts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import geopandas as gpd
import numpy as np
import numpy.typing as npt
import shapely

from pyhisto.metrics import compare_detections
from qupath_ext.active.answers import Answer, annotator_of
from qupath_ext.active.corrections import Points, points_inside
from qupath_ext.errors import ProjectError
from qupath_ext.frames import to_slide_frame

if TYPE_CHECKING:
    from qupath_ext.active.loop import Loop, LoopSettings

__all__ = ["chosen_answer", "cohen_kappa", "decided", "disagreements", "disputes_of", "latest", "own_annotations"]


def disagreements(loop: Loop, answers: Sequence[Answer], prefer: str) -> list[dict[str, Any]]:
    """Compare those who went through the same region, and say whose answer counts.

    Parameters
    ----------
    loop
        The loop.
    answers
        Of all regions.
    prefer
        The folder of a project or an annotator who is chosen; nobody if empty.

    Returns
    -------
    list of dict
        One for each region that several went through: ``round``, ``rank``, ``slide``, ``chosen`` (id of a region, or
        null), ``people`` (of each ``who``, ``region``, ``project``, ``entry_id``, and ``objects``: ids of what is by
        this one where several went through one image, else empty), and of the first and the second ``dice`` by class
        and ``kappa`` of the areas, or ``f1`` of all cells and by class and ``kappa`` of the classes of those that both
        marked.

    Raises
    ------
    ProjectError
        If nobody of that name went through such a region.
    """
    groups: dict[tuple[int, int, str], list[Answer]] = {}
    for answer in answers:
        if answer.answer == "done":
            groups.setdefault((answer.round, answer.rank, answer.slide), []).append(answer)
    several = [group for group in groups.values() if len(group) > 1]
    chosen = [chosen_answer(loop, group, prefer) for group in several]
    if prefer and several and not any(chosen):
        known = sorted({who for group in several for answer in group for who in _names(loop, answer)})
        raise ProjectError(f"nobody called {prefer!r} in {len(several)} regions", expected=f"one of {', '.join(known)}")
    return [
        {
            "round": group[0].round,
            "rank": group[0].rank,
            "slide": group[0].slide,
            "chosen": None if one is None else one.region,
            "people": [_person(loop, answer, group) for answer in group],
            **_compared(loop.settings, group),
        }
        for group, one in zip(several, chosen, strict=True)
    ]


def decided(loop: Loop, before: int, prefer: str) -> list[dict[str, Any]]:
    """Return what rounds below `before` left undecided, and is decided by the one who is preferred now."""
    out = []
    for dispute in latest(d for one in loop.rounds() if one.number < before for d in disputes_of(one.record)):
        fitting = [p for p in dispute["people"] if prefer and prefer in _called(p["who"], loop.paths[p["project"]])]
        if dispute["chosen"] is None and len(fitting) == 1:
            out.append({**dispute, "chosen": fitting[0]["region"]})
    return out


def disputes_of(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the disagreements that ``round.json`` holds; none before the round is collected."""
    return list(record.get("collected", {}).get("disagreements", ()))


def latest(disputes: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the last that was said of each region, of disagreements from the oldest on."""
    out: list[dict[str, Any]] = []
    for dispute in disputes:
        regions = {person["region"] for person in dispute["people"]}
        out = [one for one in out if regions.isdisjoint(person["region"] for person in one["people"])]
        out.append(dispute)
    return out


def _person(loop: Loop, answer: Answer, group: Sequence[Answer]) -> dict[str, Any]:
    """Return what is kept of one who went through a region."""
    alone = sum(other.image is answer.image for other in group) == 1
    return {
        "who": _names(loop, answer)[0],
        "region": answer.region,
        "project": answer.image.number,
        "entry_id": answer.image.source.entry.id,
        "objects": [] if alone else [str(id_) for id_ in own_annotations(answer, group).index],
    }


def chosen_answer(loop: Loop, group: Sequence[Answer], prefer: str) -> Answer | None:
    """Return the answer of the one who is preferred; None if that is nobody or not plain."""
    fitting = [answer for answer in group if prefer and prefer in _names(loop, answer)]
    return fitting[0] if len(fitting) == 1 else None


def _names(loop: Loop, answer: Answer) -> list[str]:
    """Return what one who went through a region may be called."""
    return _called(answer.annotator, loop.paths[answer.image.number])


def _called(annotator: str, project: Path) -> list[str]:
    own = [annotator] if annotator else []
    return [*own, project.parent.name, str(project.parent), str(project)]


def own_annotations(answer: Answer, group: Sequence[Answer]) -> gpd.GeoDataFrame:
    """Return the annotations of an image that are by the one who went through a region.

    Where several did so in one image, they are told apart by the metadata ``annotator`` of the objects or by the region
    that they belong to; what says neither is by the one of the region that was proposed, the first.
    """
    annotations = answer.image.annotations
    here = [other for other in group if other.image is answer.image]
    if len(here) == 1:
        return annotations
    of = {other.annotator: other.region for other in here if other.annotator}
    regions = {other.region for other in here}
    first = here[0].region

    def owner(metadata: Any, parent: Any) -> str:
        return of.get(annotator_of(metadata)) or (str(parent) if parent in regions else first)

    owners = [owner(*row) for row in zip(annotations["metadata"], annotations["parent_id"], strict=True)]
    return annotations[np.array([one == answer.region for one in owners]) & ~annotations.index.isin(regions)]


def _compared(settings: LoopSettings, group: Sequence[Answer]) -> dict[str, Any]:
    """Return the agreement of the first two of a region, in slide pixels of the first."""
    tables = [to_slide_frame(own_annotations(a, group), a.image.source.entry) for a in group[:2]]
    region = _slide_polygon(group[0])
    mpp = group[0].image.mpp
    if settings.target == "cells":
        a, b = (points_inside(table, region, settings.classes) for table in tables)
        return _points_compared(a, b, settings, mpp)
    return _areas_compared(tables, region, settings.classes)


def _slide_polygon(answer: Answer) -> Any:
    frame = answer.image.annotations.loc[[answer.region]]
    return to_slide_frame(frame, answer.image.source.entry).geometry.iloc[0]


def _points_compared(a: Points, b: Points, settings: LoopSettings, mpp: npt.NDArray[np.float64]) -> dict[str, Any]:
    found = compare_detections(
        a.xy * mpp, a.name, b.xy * mpp, b.name, classes=settings.classes, radius=settings.match_um
    )
    by_class = {name: _number(score.f1) for name, score in zip(settings.classes, found.by_class, strict=True)}
    return {
        "f1": {"all": _number(found.overall.f1), **by_class},
        "kappa": _number(cohen_kappa(found.confusion[:-1, :-1])),
    }


def _areas_compared(tables: Sequence[gpd.GeoDataFrame], region: Any, classes: tuple[str, ...]) -> dict[str, Any]:
    parts = [_partition(table, region, classes) for table in tables]
    confusion = np.array([[one.intersection(other).area for other in parts[1]] for one in parts[0]])
    sums = confusion.sum(axis=0) + confusion.sum(axis=1)
    with np.errstate(invalid="ignore"):
        dice = 2 * np.diag(confusion) / sums
    return {
        "dice": {name: _number(value) for name, value in zip(classes, dice[1:], strict=True)},
        "kappa": _number(cohen_kappa(confusion)),
    }


def _partition(annotations: gpd.GeoDataFrame, region: Any, classes: tuple[str, ...]) -> list[Any]:
    """Return what of a region is of no class, and of each class; where two overlap, the later class counts."""
    left = region
    out = []
    for name in reversed(classes):
        own = annotations[annotations["classification"] == name].geometry.to_numpy()
        area = shapely.union_all(shapely.make_valid(own[shapely.get_dimensions(own) == 2]))
        out.append(left.intersection(area))
        left = left.difference(area)
    return [left, *reversed(out)]


def cohen_kappa(confusion: npt.NDArray[np.float64]) -> float:
    """Return the agreement beyond chance of two who put the same things into classes (Cohen 1960).

    Parameters
    ----------
    confusion
        How much the one put into the class of the row and the other into that of the column, float (C, C).

    Returns
    -------
    float
        1 for full agreement, 0 for what chance gives; NaN where there is nothing, or but one class.

    Examples
    --------
    >>> round(cohen_kappa(np.array([[20.0, 5.0], [10.0, 15.0]])), 3)
    0.4
    """
    total = confusion.sum()
    if total == 0:
        return float("nan")
    observed = np.trace(confusion) / total
    expected = float(confusion.sum(axis=0) @ confusion.sum(axis=1)) / total**2
    return float("nan") if expected == 1 else float((observed - expected) / (1 - expected))


def _number(value: float) -> float | None:
    return None if np.isnan(value) else round(float(value), 4)
