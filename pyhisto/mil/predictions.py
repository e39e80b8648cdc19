"""Tables of predictions for slides, and the figures that follow from them.

One row for each slide of each repeat: ``set`` (``out-of-fold``, ``external`` or ``predicted``), ``repeat``, ``fold``,
``slide``, ``patient``, then ``label <task>`` (the true class, empty where not known) and ``p <task>=<class>``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from pyhisto.errors import ConfigError
from pyhisto.metrics.intervals import Interval
from pyhisto.mil.labels import UNKNOWN, LabelTable, Task, row_finder
from pyhisto.mil.metrics import figures

__all__ = ["judge", "prediction_table", "read_predictions", "tasks_of", "with_labels", "write_predictions"]

FIXED = ("set", "repeat", "fold", "slide", "patient")


def prediction_table(
    tasks: Sequence[Task],
    slides: Sequence[str],
    patients: Sequence[str],
    probabilities: Sequence[npt.NDArray[np.floating]],
    *,
    labels: npt.NDArray[np.int64] | None = None,
    kind: str = "predicted",
    repeat: int = 0,
    fold: int = 0,
) -> pd.DataFrame:
    """Make a table.

    Parameters
    ----------
    tasks
        The labels.
    slides, patients
        Of each row.
    probabilities
        Of each label, (slides, classes).
    labels
        int64 (slides, tasks); None where nothing is known.
    kind, repeat, fold
        For the columns ``set``, ``repeat`` and ``fold``.
    """
    data: dict[str, Any] = {"set": kind, "repeat": repeat, "fold": fold, "slide": slides, "patient": patients}
    for number, task in enumerate(tasks):
        known = np.full(len(slides), UNKNOWN) if labels is None else labels[:, number]
        data[f"label {task.name}"] = ["" if value == UNKNOWN else task.classes[value] for value in known]
        for place, name in enumerate(task.classes):
            data[f"p {task.name}={name}"] = probabilities[number][:, place].astype(np.float64)
    return pd.DataFrame(data)


def write_predictions(path: Path, table: pd.DataFrame) -> None:
    """Write a table as CSV, all or nothing.

    Raises
    ------
    ConfigError
        If the file cannot be written.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        table.to_csv(temporary, index=False, float_format="%.6g")
        temporary.replace(path)
    except OSError as error:
        raise ConfigError(f"{path} cannot be written ({error})", expected="a folder that can be written to") from error


def read_predictions(path: Path) -> pd.DataFrame:
    """Read a table that :func:`write_predictions` wrote.

    Raises
    ------
    ConfigError
        If the file is no such table.
    """
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read ({error})", expected="a CSV file of predictions") from error
    missing = [name for name in FIXED if name not in table]
    scores = [name for name in map(str, table) if name.startswith("p ") and "=" in name]
    if missing or not scores:
        raise ConfigError(
            f"{path} has no column {missing[0] if missing else 'p <label>=<class>'!r}",
            expected="predictions that this program wrote",
        )
    try:
        table = table.astype(dict.fromkeys(scores, float) | {"repeat": int, "fold": int})
    except ValueError as error:
        raise ConfigError(f"{path}: {error}", expected="numbers") from error
    for task in tasks_of(table):
        known = {"", *task.classes}
        strange = sorted(set(table.get(f"label {task.name}", [])) - known)
        if f"label {task.name}" not in table or strange:
            raise ConfigError(
                f"{path}: label {task.name!r} is {strange[0]!r}" if strange else f"{path} has no label {task.name!r}",
                expected=f"one of {', '.join(task.classes)}, or nothing",
            )
    return table


def tasks_of(table: pd.DataFrame) -> tuple[Task, ...]:
    """Return the labels that a table has probabilities of."""
    classes: dict[str, list[str]] = {}
    for name in table:
        if str(name).startswith("p "):
            task, _, value = str(name)[2:].partition("=")
            classes.setdefault(task, []).append(value)
    return tuple(Task(name, tuple(values)) for name, values in classes.items())


def with_labels(table: pd.DataFrame, labels: LabelTable) -> pd.DataFrame:
    """Return a table with other true classes and patients; slides are found with or without the ending of their file.

    Raises
    ------
    ConfigError
        If the table has no probabilities of a label, or of other classes.
    """
    known = {task.name: task for task in tasks_of(table)}
    find = row_finder(labels.slides)
    place = [-1 if row is None else row for row in map(find, table["slide"])]
    if max(place, default=-1) < 0:
        raise ConfigError("no slide of the predictions has a label", expected=f"slides such as {labels.slides[0]!r}")
    out = table.copy()
    named = [labels.patients[at] if at >= 0 else "" for at in place]
    out["patient"] = [new or old for new, old in zip(named, table["patient"], strict=True)]
    for number, task in enumerate(labels.tasks):
        if task.name not in known or set(known[task.name].classes) != set(task.classes):
            raise ConfigError(
                f"label {task.name!r} with the classes {', '.join(task.classes)}",
                expected="; ".join(f"{one.name!r} with {', '.join(one.classes)}" for one in known.values()),
            )
        values = [labels.labels[at, number] if at >= 0 else UNKNOWN for at in place]
        out[f"label {task.name}"] = ["" if value == UNKNOWN else task.classes[value] for value in values]
    return out


def judge(table: pd.DataFrame, *, seed: int = 0, resamples: int = 2000) -> list[dict[str, Any]]:
    """Return the figures of each label in each set of a table that has true classes.

    Repeats are judged one by one on all their slides, and their mean is the figure; its interval draws the same
    patients for all of them. Folds are not of one scale, so that the mean of the folds, which needs no common one, is
    given besides.

    Parameters
    ----------
    table
        As :func:`prediction_table` makes it.
    seed, resamples
        Of the intervals.

    Returns
    -------
    list of dict
        ``set``, ``task``, ``slides``, ``patients``, and by its name each figure: ``value``, ``low``, ``high``,
        ``method``, ``by_fold`` (one value a fold of a repeat, NaN as None).

    Raises
    ------
    ConfigError
        If the repeats of a set are not of the same slides.
    """
    out = []
    for task in tasks_of(table):
        truth = table[f"label {task.name}"]
        for kind in table["set"].unique():
            mine = table[(table["set"] == kind) & (truth != "")].sort_values(["repeat", "slide"])
            if mine.empty:
                continue
            repeats = [part for _, part in mine.groupby("repeat")]
            if any(list(part["slide"]) != list(repeats[0]["slide"]) for part in repeats):
                raise ConfigError(f"repeats of {kind} are of different slides", expected="each slide in each repeat")
            labels, patients = _truth(repeats[0], task), repeats[0]["patient"].tolist()
            scores = np.stack([_scores(part, task) for part in repeats])
            found = figures(labels, scores, patients, seed=seed, resamples=resamples)
            folds = [part for _, part in mine.groupby(["repeat", "fold"])]
            by_fold = [
                figures(_truth(part, task), _scores(part, task), part["patient"].tolist(), resamples=1)
                for part in folds
            ]
            row = {"set": kind, "task": task.name, "slides": len(labels), "patients": len(set(patients))}
            out.append(row | {name: _plain(one, [each[name] for each in by_fold]) for name, one in found.items()})
    return out


def _truth(part: pd.DataFrame, task: Task) -> npt.NDArray[np.int64]:
    return np.array([task.classes.index(name) for name in part[f"label {task.name}"]], dtype=np.int64)


def _scores(part: pd.DataFrame, task: Task) -> npt.NDArray[np.float64]:
    return part[[f"p {task.name}={name}" for name in task.classes]].to_numpy(dtype=np.float64)


def _plain(interval: Interval, folds: Sequence[Interval]) -> dict[str, Any]:
    """Return a figure as JSON types, where NaN is None."""
    out = {name: None if value != value else value for name, value in asdict(interval).items()}
    del out["patients"]
    return out | {"by_fold": [None if np.isnan(one.value) else one.value for one in folds]}
