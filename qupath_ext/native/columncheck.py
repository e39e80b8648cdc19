"""Columns of a path-object table that QuPath can store: checked before anything is made of them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd

from qupath_ext.errors import ProjectError

__all__ = [
    "Objects",
    "check_colors",
    "check_flags",
    "check_metadata",
    "check_names",
    "check_probabilities",
    "missing_as_none",
]

Objects = np.ndarray[Any, np.dtype[np.object_]]


def missing_as_none(column: pd.Series[Any]) -> Objects:
    """Return the values of a column with None for all that is missing, shape (n,)."""
    out: Objects = column.astype(object).to_numpy()
    missing = column.isna().to_numpy(dtype=bool)
    if missing.any():
        out = out.copy()
        out[missing] = None
    return out


def _present(values: Objects, ids: Objects) -> Iterator[tuple[Any, Any]]:
    """Yield the values that are there, with the ids of their objects."""
    rows = np.flatnonzero(pd.notna(values))
    yield from zip(values[rows].tolist(), ids[rows].tolist(), strict=True)


def check_names(names: Objects, ids: Objects, what: str) -> None:
    """Refuse names, or classes, that are no text.

    Raises
    ------
    ProjectError
        Names the first such object.
    """
    for name, object_id in _present(names, ids):
        if not isinstance(name, str):
            raise ProjectError(f"{what} {name!r} of object {object_id}", expected="a text, or nothing")


def check_colors(colors: Objects, ids: Objects) -> None:
    """Refuse colours that are no signed 32-bit whole numbers.

    Raises
    ------
    ProjectError
        Names the first such object.
    """
    for color, object_id in _present(colors, ids):
        whole = isinstance(color, (int, np.integer)) or (isinstance(color, float) and color.is_integer())
        if not (whole and -(1 << 31) <= color < 1 << 31):
            raise ProjectError(f"colour {color!r} of object {object_id}", expected="a signed 32-bit packed ARGB")


def check_metadata(metadata: Objects, ids: Objects) -> None:
    """Refuse metadata that are not text, or that have the key under which QuPath keeps the id.

    Raises
    ------
    ProjectError
        Names the first such object.
    """
    for entries, object_id in _present(metadata, ids):
        if not isinstance(entries, dict) or not all(isinstance(x, str) for item in entries.items() for x in item):
            raise ProjectError(f"object {object_id} has other metadata", expected="a dict of str")
        if "Object ID" in entries:
            raise ProjectError(f"object {object_id} has the metadata key 'Object ID'", expected="another key")


def check_flags(flags: Objects, ids: Objects, what: str) -> None:
    """Refuse what is neither True nor False.

    Raises
    ------
    ProjectError
        Names the first such object.
    """
    for flag, object_id in zip(flags.tolist(), ids.tolist(), strict=True):
        if not isinstance(flag, (bool, np.bool_)):
            raise ProjectError(f"{what} is {flag!r} for object {object_id}", expected="True or False")


def check_probabilities(values: Objects, ids: Objects) -> None:
    """Refuse class probabilities that are no numbers.

    Raises
    ------
    ProjectError
        Names the first such object.
    """
    for value, object_id in zip(values.tolist(), ids.tolist(), strict=True):
        if value is not None and not isinstance(value, (int, float, np.number)):
            raise ProjectError(f"class probability {value!r} of object {object_id}", expected="a number, or nothing")
