"""Data sets of points: tables or JSON with a position and a class for each nucleus."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import shapely

from qupath_ext.errors import FormatError
from qupath_ext.exchange.layouts.classmap import ClassMap
from qupath_ext.exchange.layouts.truth import Frame, Shapes, Truth, clip_truth

__all__ = ["PointFiles", "PointTable", "Row", "read_rows"]

Row = tuple[str, float, float, str]
"""Image, x and y in px, and class."""


@dataclass(frozen=True)
class PointFiles:
    """One file of points for each image.

    Attributes
    ----------
    files
        CSV or JSON of each image.
    classes
        Class by value; words stand for themselves if it is empty.
    columns
        Names of the columns of x, y and class; the class may be missing. A CSV without header has its columns in this
        order.
    """

    files: Mapping[str, Path]
    classes: ClassMap
    columns: Sequence[str] = ("x", "y", "class")

    @property
    def keys(self) -> Set[str]:
        """Names of the images with a file."""
        return self.files.keys()

    def read(self, key: str, frame: Frame) -> Truth:
        """Read the labels of an image."""
        path = self.files[key]
        return _as_truth(read_rows(path, self.columns), self.classes, frame, path.name)


class PointTable:
    """One file of points for all images.

    Parameters
    ----------
    path
        CSV or JSON.
    classes, columns
        As in :class:`PointFiles`.
    image_column
        Name of the column that names the image; the first one of a CSV without header.
    key_of
        Gives the name of an image for what the column says.
    """

    def __init__(
        self,
        path: Path,
        classes: ClassMap,
        columns: Sequence[str],
        image_column: str,
        key_of: Callable[[str], str],
    ) -> None:
        self._path = path
        self._classes = classes
        self._rows: dict[str, list[Row]] = {}
        for row in read_rows(path, columns, image_column):
            self._rows.setdefault(key_of(row[0]), []).append(row)

    @property
    def keys(self) -> Set[str]:
        """Names of the images with points."""
        return self._rows.keys()

    def read(self, key: str, frame: Frame) -> Truth:
        """Read the labels of an image."""
        return _as_truth(self._rows[key], self._classes, frame, f"{self._path.name}, image {key}")


def _as_truth(rows: Sequence[Row], classes: ClassMap, frame: Frame, where: str) -> Truth:
    xy = np.array([[x, y] for _, x, y, _ in rows], dtype=np.float64).reshape(-1, 2)
    shapes: Shapes = np.asarray(shapely.points(xy), dtype=object)
    return clip_truth(shapes, classes.classes_of(name for *_, name in rows), frame, where)


def read_rows(path: Path, columns: Sequence[str], image_column: str = "") -> list[Row]:
    """Read points from CSV (comma, semicolon or tab) or JSON.

    JSON is a list of objects with the columns as keys, a list of lists in the order of the columns, or an object with
    a list of positions for each class. A class of null, or one that is missing, is an empty text.

    Raises
    ------
    FormatError
        If the file cannot be read, lacks a column, or a position is no finite number.
    """
    if not 2 <= len(columns) <= 3:
        raise FormatError(f"columns {','.join(columns)}", expected="names of x, y and, if there is one, the class")
    wanted = [*([image_column] if image_column else []), *columns]
    try:
        text = path.read_text(encoding="utf-8-sig")
        records = _json_records(text, wanted) if path.suffix.lower() == ".json" else _csv_records(text, wanted)
    except (OSError, ValueError, csv.Error) as error:
        raise FormatError(
            f"{path} cannot be read ({error})", expected=f"CSV or JSON with {', '.join(wanted)}"
        ) from error
    rows: list[Row] = []
    for number, record in enumerate(records, start=1):
        try:
            image = str(record[0]) if image_column else ""
            x, y, *rest = record[1:] if image_column else record
            row = (image, float(x), float(y), str(rest[0]).strip() if rest and rest[0] is not None else "")
        except (TypeError, ValueError, IndexError) as error:
            raise FormatError(f"{path.name}: point {number} is {record}", expected=", ".join(wanted)) from error
        if not (math.isfinite(row[1]) and math.isfinite(row[2])):
            raise FormatError(f"{path.name}: point {number} is at ({x}, {y})", expected="numbers")
        rows.append(row)
    return rows


def _csv_records(text: str, wanted: Sequence[str]) -> list[list[Any]]:
    first = text.splitlines()[0] if text.strip() else ""
    delimiter = max(",;\t", key=first.count)
    rows = [row for row in csv.reader(text.splitlines(), delimiter=delimiter) if any(cell.strip() for cell in row)]
    if not rows:
        return []
    header = [cell.strip() for cell in rows[0]]
    if any(_is_number(cell) for cell in header):  # values, no names: the columns are in the order of the option
        return [[cell.strip() for cell in row[: len(wanted)]] for row in rows]
    places = _places(wanted, header)
    return [[row[at].strip() if at < len(row) else None for at in places] for row in rows[1:]]


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _places(wanted: Sequence[str], header: Sequence[str]) -> list[int]:
    missing = [name for name in wanted if name not in header]
    if missing:
        raise ValueError(f"no column {missing[0]!r} among {', '.join(header)}; give --columns")
    return [header.index(name) for name in wanted]


def _json_records(text: str, wanted: Sequence[str]) -> Iterable[list[Any]]:
    content = json.loads(text)
    if isinstance(content, dict):
        if not all(isinstance(positions, list) for positions in content.values()):
            raise ValueError("an object without lists of positions")
        return [[*position, name] for name, positions in content.items() for position in positions]
    if not isinstance(content, list):
        raise ValueError("neither a list nor an object")
    if all(isinstance(item, dict) for item in content):
        lacking = [name for item in content for name in wanted[:-1] if name not in item]
        if lacking:
            raise ValueError(f"a point without {lacking[0]!r}; give --columns")
        return [[item.get(name) for name in wanted] for item in content]
    if all(isinstance(item, list) for item in content):
        return content
    raise ValueError("a list of neither objects nor lists")
