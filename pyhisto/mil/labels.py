"""What is known of slides: one or several labels each, and the patient."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pyhisto.errors import ConfigError

__all__ = [
    "PATIENT_COLUMNS",
    "SLIDE_COLUMNS",
    "UNKNOWN",
    "LabelTable",
    "Task",
    "label_table",
    "read_labels",
    "row_finder",
]

SLIDE_COLUMNS = ("slide", "slide_id", "bag", "bag_id", "image", "name")
"""Columns that may name the slide; the first that is there does."""

PATIENT_COLUMNS = ("patient", "patient_id", "case", "case_id")
"""Columns that may name the patient."""

UNKNOWN = -1
"""In place of a class: the slide has no such label."""


@dataclass(frozen=True)
class Task:
    """One label that slides have.

    Attributes
    ----------
    name
        Such as the name of a gene signature.
    classes
        Its values, at least two, which exclude each other. Of two the second is the positive one.
    """

    name: str
    classes: tuple[str, ...]


@dataclass(frozen=True)
class LabelTable:
    """Labels of slides.

    Attributes
    ----------
    tasks
        What labels there are.
    slides, patients
        Name of each slide, each once, and its patient; empty where none is named.
    labels
        int64 (slides, tasks), the number of the class, :data:`UNKNOWN` where it is not known.
    """

    tasks: tuple[Task, ...]
    slides: tuple[str, ...]
    patients: tuple[str, ...]
    labels: npt.NDArray[np.int64]


def read_labels(path: Path, wanted: Sequence[str] = ()) -> LabelTable:
    """Read labels from a CSV file with a column for the slide, perhaps one for the patient, and columns of labels.

    Parameters
    ----------
    path
        The file; see :data:`SLIDE_COLUMNS` and :data:`PATIENT_COLUMNS`.
    wanted
        As in :func:`label_table`. Empty for the only column that is left, or that named ``label``.

    Raises
    ------
    ConfigError
        If the file cannot be read, has no column for the slide, or :func:`label_table` refuses it.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            rows = list(reader)
            columns = list(reader.fieldnames or [])
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"labels {path} cannot be read ({error})", expected="a CSV file in UTF-8") from error
    slide = _column(columns, SLIDE_COLUMNS)
    if slide is None:
        raise ConfigError(
            f"{path} has the columns {', '.join(columns) or 'none'}", expected=f"one of {', '.join(SLIDE_COLUMNS)}"
        )
    patient = _column(columns, PATIENT_COLUMNS)
    if not wanted:
        left = [name for name in columns if name not in (slide, patient)]
        wanted = ["label"] if "label" in left else left
        if len(wanted) != 1:
            raise ConfigError(
                f"{path} has {len(wanted)} columns that may be labels", expected="one", remedy="name them with --label"
            )
    known = [
        {name: (row.get(name) or "").strip() for name in columns} for row in rows
    ]  # short rows have None where cells are missing
    return label_table(
        [row[slide] for row in known], ["" if patient is None else row[patient] for row in known], known, wanted
    )


def label_table(
    slides: Sequence[str], patients: Sequence[str], values: Sequence[Mapping[str, str]], wanted: Sequence[str]
) -> LabelTable:
    """Make numbers of labels.

    Parameters
    ----------
    slides, patients
        Name and patient of each slide.
    values
        Of each slide, what it has under the name of each label; empty or absent is unknown.
    wanted
        Labels: ``NAME``, whose classes are all its values in order, or ``NAME=a+b,c`` for classes of one or several
        values each (``signature=low+median,high``).

    Raises
    ------
    ConfigError
        If a slide has no name or stands there twice, a label has fewer than two classes or occurs nowhere, or a value
        belongs to none of the named classes.
    """
    doubled = sorted(name for name, rows in Counter(slides).items() if not name or rows > 1)
    if doubled:
        raise ConfigError(f"slide {doubled[0]!r} in several rows", expected="a name in one row for each slide")
    tasks = []
    labels = np.full((len(slides), len(wanted)), UNKNOWN, dtype=np.int64)
    for number, text in enumerate(wanted):
        name, _, listed = text.partition("=")
        found = [row.get(name, "") for row in values]
        if not any(found):
            raise ConfigError(f"no slide has the label {name!r}", expected="a column or metadata of this name")
        groups = [part.split("+") for part in listed.split(",")] if listed else [[v] for v in _ordered(found)]
        class_of = {value.strip(): place for place, group in enumerate(groups) for value in group}
        strange = sorted({value for value in found if value} - set(class_of))
        if strange:
            raise ConfigError(
                f"label {name!r} with the value {strange[0]!r}",
                expected=", ".join(class_of),
                remedy="name a class for it, or leave it empty for slides that are not to count",
            )
        if len(groups) < 2:
            raise ConfigError(f"label {name!r} with the only value {listed or groups[0][0]!r}", expected="two or more")
        tasks.append(Task(name, tuple("+".join(value.strip() for value in group) for group in groups)))
        labels[:, number] = [class_of.get(value, UNKNOWN) for value in found]
    if len({task.name for task in tasks}) < len(tasks):
        raise ConfigError("a label named twice", expected="each once")
    return LabelTable(tuple(tasks), tuple(slides), tuple(patients), labels)


def row_finder(slides: Sequence[str]) -> Callable[[str], int | None]:
    """Return what finds the row of a slide by its name, with or without the ending of its file.

    Names that are equal but for their endings are found with them only.
    """
    rows = {slide: number for number, slide in enumerate(slides)}
    stems = Counter(map(_stem, slides))
    rows = {_stem(slide): number for slide, number in rows.items() if stems[_stem(slide)] == 1} | rows

    def find(name: str) -> int | None:
        return rows.get(name, rows.get(_stem(name)))

    return find


def _stem(name: str) -> str:
    """Return the name of a slide without the ending of a file, if it has a likely one."""
    suffix = Path(name).suffix
    return name[: -len(suffix)] if suffix and suffix[1:].isalnum() and not suffix[1:].isdigit() else name


def _column(columns: Sequence[str], known: Sequence[str]) -> str | None:
    return next((name for wanted in known for name in columns if name.strip().lower() == wanted), None)


def _ordered(values: Sequence[str]) -> list[str]:
    """Return the different values: as numbers if all are numbers, else by the alphabet."""
    different = {value for value in values if value}
    try:
        return sorted(different, key=float)
    except ValueError:
        return sorted(different)
