"""The folder that an evaluation leaves behind: ``report.html`` and ``figures.csv``."""

from __future__ import annotations

import datetime
import math
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pyhisto.metrics import agreement
from qupath_ext.errors import ProjectExistsError
from qupath_ext.report.evaluation import EvaluationReport, IndexAgreement, write_evaluation
from qupath_ext.workflows.evaluation.areas import REGION_CLASSES
from qupath_ext.workflows.evaluation.compare import Evaluation
from qupath_ext.workflows.evaluation.figures import ANY
from qupath_ext.workflows.evaluation.pictures import LEGENDS, worst_cases

if TYPE_CHECKING:
    import pandas as pd

    from qupath_ext.project import Project

__all__ = ["check_output", "index_agreement", "key_figure", "sentence", "summary", "write_results"]

CLASSES_SHOWN = 4
"""With more classes than this, their F1 stand in the table only."""

NOTES_SHOWN = 8
"""Images that are named one by one when they were not compared; the others are counted."""


def check_output(folder: Path) -> None:
    """Refuse a folder that has something in it.

    Raises
    ------
    ProjectExistsError
        If it is no new or empty folder.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ProjectExistsError(
            f"{folder} is there already", expected="a new or empty folder", remedy="choose another --output"
        )


def write_results(folder: Path, project: Project, evaluation: Evaluation) -> None:
    """Write ``figures.csv`` and ``report.html`` into a folder, which is made if it is not there.

    Raises
    ------
    ProjectError
        If a file cannot be written.
    """
    cases, notes = worst_cases(project, evaluation)
    tissue = evaluation.settings.task == "tissue"
    confusion = {pair: value / 1e6 if tissue else value for pair, value in evaluation.confusion.items()}
    report = EvaluationReport(
        title=f"How good is it: {evaluation.settings.task}",
        created=datetime.datetime.now().astimezone().strftime("%Y-%m-%d %H:%M"),
        project=str(project.path),
        sentence=sentence(evaluation),
        key=key_figure(evaluation),
        facts=_facts(evaluation),
        figures=evaluation.table,
        confusion=confusion,
        confusion_unit="mm²" if tissue else "",
        index=index_agreement(evaluation),
        curve=evaluation.curve,
        cases=cases,
        legend=LEGENDS[evaluation.settings.task],
        notes=[*_not_compared(evaluation), *notes],
        method=list(_method(evaluation)),
        settings=_settings(evaluation),
        software={name: version(name) for name in ("qupath-ext", "numpy", "scipy", "shapely")},
    )
    folder.mkdir(parents=True, exist_ok=True)
    evaluation.table.to_csv(folder / "figures.csv", index=False, float_format="%.6g")
    write_evaluation(folder / "report.html", report)


def sentence(evaluation: Evaluation) -> str:
    """Say in one sentence what was compared."""
    settings, images = evaluation.settings, len(evaluation.images)
    region = f"annotations of the class {settings.region or ' or '.join(REGION_CLASSES)}"
    where = "in the whole images"
    if evaluation.limited == images:
        where = f"inside {region}"
    elif evaluation.limited:
        where = f"inside {region} where there are any ({evaluation.limited} images), else in the whole image"
    people = len(evaluation.patients)
    return (
        f"Compared: {evaluation.prediction.words}, with {evaluation.reference.words} as the reference, "
        f"on {_plural(images, 'image')} of {_plural(people, 'patient')}, {where} ({sum(evaluation.areas_mm2):.3g} mm²)."
    )


def _plural(n: int, noun: str) -> str:
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


def key_figure(evaluation: Evaluation) -> tuple[str, str]:
    """Return class and metric of the figure that is named first."""
    if evaluation.settings.task == "cells":
        return ANY, "F1"
    true: dict[str, float] = {}
    for image in evaluation.images:
        for name, sums in image.by_class.items():
            true[name] = true.get(name, 0.0) + sums["true_um2"]
    return max(true, key=lambda name: true[name], default=ANY), "Dice"


def index_agreement(evaluation: Evaluation) -> IndexAgreement | None:
    """Return how the indices of both sides agree, over the images that have one on both; None if there are none."""
    mine = evaluation.table[(evaluation.table["level"] == "image") & (evaluation.table["class"] == ANY)]
    wide = mine.pivot_table(index=["entry_id", "image"], columns="metric", values="value", sort=False)
    both = ["index of the reference", "index of the prediction"]
    if not set(both) <= set(wide.columns):
        return None
    wide = wide.dropna(subset=both)
    if len(wide) == 0:
        return None
    reference, measured = (wide[name].tolist() for name in both)
    names = [str(name) for _, name in wide.index]
    return IndexAgreement(names, reference, measured, agreement(measured, reference))


def _facts(evaluation: Evaluation) -> dict[str, str]:
    """Return the numbers that come after the first, in words."""
    class_name, key = key_figure(evaluation)
    out = {"Images": str(len(evaluation.images)), "Patients": str(len(evaluation.patients))}
    if evaluation.settings.task == "cells":
        sums = [image.by_class[ANY] for image in evaluation.images]
        out["Cells of the reference"] = f"{sum(s['tp'] + s['fn'] for s in sums):,.0f}".replace(",", "\u202f")
        out["Cells of the prediction"] = f"{sum(s['tp'] + s['fp'] for s in sums):,.0f}".replace(",", "\u202f")
    rows = evaluation.table[
        (evaluation.table["level"] == "all")
        & (evaluation.table["statistic"] == "mean of patients")
        & (evaluation.table["class"] == class_name)
    ]
    wanted = {"precision": 3, "recall": 3, "AJI": 3, "PQ": 3, "IoU": 3, "Hausdorff 95 %": 1}
    for metric, value in zip(rows["metric"], rows["value"], strict=True):
        if metric in wanted and metric != key:
            unit = " µm" if metric.startswith("Hausdorff") else ""
            out[str(metric)[0].upper() + str(metric)[1:]] = f"{value:.{wanted[metric]}f}{unit}"
    index = index_agreement(evaluation)
    if evaluation.settings.task == "cells":
        out |= _f1_of_classes(evaluation.table)
    if index is not None:
        bias = f"{index.agreement.bland_altman.bias:+.1f}".replace("-", "−")
        out["Ki-67 index, mean error"] = f"{bias} points"
    return out


def _f1_of_classes(table: pd.DataFrame) -> dict[str, str]:
    """Return the F1 of each class, if they are few."""
    mine = table[(table["statistic"] == "mean of patients") & (table["metric"] == "F1") & (table["class"] != ANY)]
    if not 1 < len(mine) <= CLASSES_SHOWN:
        return {}
    return {f"F1, {name}": f"{value:.3f}" for name, value in zip(mine["class"], mine["value"], strict=True)}


def _not_compared(evaluation: Evaluation) -> list[str]:
    out = [f"{name} failed and is not in the figures: {reason}" for name, reason in evaluation.failed[:NOTES_SHOWN]]
    if len(evaluation.failed) > NOTES_SHOWN:
        out.append(f"{len(evaluation.failed) - NOTES_SHOWN} more images failed.")
    reasons: dict[str, list[str]] = {}
    for name, reason in evaluation.left_out:
        reasons.setdefault(reason, []).append(name)
    for reason, names in reasons.items():
        more = f" and {len(names) - NOTES_SHOWN} more" if len(names) > NOTES_SHOWN else ""
        out.append(f"Not compared, {reason}: {', '.join(names[:NOTES_SHOWN])}{more}.")
    return out


def _method(evaluation: Evaluation) -> Iterator[str]:
    settings = evaluation.settings
    if settings.task == "cells":
        yield (
            "A cell of the prediction and one of the reference are the same if the centroids of their nuclei (or their "
            f"points) are at most {settings.radius_um:g} µm apart; as many pairs as possible are made, one to one, and "
            "among those the closest. A cell counts where its centroid lies."
        )
        yield (
            f"Annotations with an outline are cells up to {settings.largest_cell_um2:g} µm². The figures of a class "
            "take its cells alone; those of any class do not look at classes."
        )
        yield "Chance: the same with the prediction shifted within the compared area, the mean of two to eight shifts."
        yield "AJI and PQ are given for images in which every cell of both sides has an outline."
    else:
        yield "Areas are compared as polygons, without pixels; where two of one side overlap, the later one counts."
        yield "Distances are given for images in which both sides have the class."
    yield "Areas of a class that ends in * (Ignore*) are left out of both sides."
    yield (
        "Where neither side has anything of a class, its figures do not exist and count in no mean; where only one "
        "side has something, they are 0."
    )
    yield (
        "Mean of the patients: the images of a patient are taken together, then each patient counts once. 95 % "
        f"intervals come from drawing patients with replacement {settings.resamples} times; with few patients they are "
        "too narrow."
    )


def _settings(evaluation: Evaluation) -> dict[str, str]:
    settings = evaluation.settings
    out = {"Prediction": evaluation.prediction.key, "Reference": evaluation.reference.key, "Task": settings.task}
    out["Classes"] = ", ".join(settings.classes) or "all"
    if settings.mapping:
        out["Counts as"] = ", ".join(f"{mine} = {theirs}" for mine, theirs in settings.mapping.items())
    if settings.task == "cells":
        out["Radius"] = f"{settings.radius_um:g} µm"
    out["Region"] = settings.region or ", ".join(REGION_CLASSES)
    out["Patient"] = f"metadata {settings.patient_key!r}, else the slide"
    return out


def summary(evaluation: Evaluation, project: Project, folder: Path) -> dict[str, Any]:
    """Return the result as JSON types."""
    whole = evaluation.table[evaluation.table["level"] == "all"]
    wanted = ["class", "metric", "statistic", "value", "low", "high", "n", "chance"]
    index = index_agreement(evaluation)
    return {
        "project": str(project.path),
        "prediction": evaluation.prediction.key,
        "reference": evaluation.reference.key,
        "task": evaluation.settings.task,
        "images": len(evaluation.images),
        "patients": len(evaluation.patients),
        "area_mm2": round(sum(evaluation.areas_mm2), 6),
        "figures": [{key: _json(row[key]) for key in wanted} for row in whole.to_dict("records")],
        "index": None if index is None else _index_summary(index),
        "confusion": [
            {"reference": true, "prediction": found, "value": value}
            for (true, found), value in sorted(evaluation.confusion.items(), key=str)
        ],
        "left_out": [{"image": name, "reason": reason} for name, reason in evaluation.left_out],
        "failed": [{"image": name, "error": error} for name, error in evaluation.failed],
        "report": str(folder / "report.html"),
        "table": str(folder / "figures.csv"),
    }


def _index_summary(index: IndexAgreement) -> dict[str, Any]:
    found = index.agreement
    return {
        "images": len(index.names),
        "bias": _json(found.bland_altman.bias),
        "limits": [_json(found.bland_altman.lower), _json(found.bland_altman.upper)],
        "mean_absolute_error": _json(found.mean_absolute_error),
        "pearson": _json(found.pearson),
        "spearman": _json(found.spearman),
        "lin_concordance": _json(found.lin_concordance),
        "icc_2_1": _json(found.icc_2_1),
    }


def _json(value: Any) -> Any:
    if isinstance(value, float | np.floating):
        return round(float(value), 6) if math.isfinite(value) else None
    return int(value) if isinstance(value, np.integer) else value
