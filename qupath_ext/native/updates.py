"""Changes of objects that are there: a table of new values, checked, and what it does to one object."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import shapely

from pyhisto.objects import COLUMNS
from qupath_ext.errors import ProjectError
from qupath_ext.native.catalog import Factory
from qupath_ext.native.columncheck import (
    Objects,
    check_colors,
    check_flags,
    check_metadata,
    check_names,
    check_probabilities,
    missing_as_none,
)
from qupath_ext.native.measurementlists import changed_list
from qupath_ext.native.pathobjects import GENERAL_LISTS, PathObjectView
from qupath_ext.native.roi import DEFAULT_PLANE, check_geometries, make_roi, read_plane, read_roi, unwrap
from qupath_ext.native.tokens import JObject

__all__ = ["Update", "check_update", "update_object", "updated_ids"]

FIXED = (
    *("classification", "name", "color", "locked", "metadata", "geometry", "nucleus"),
    *("class_probability", "missing"),
)
"""The fixed columns that can be changed."""
Floats = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True)
class Update:
    """New values of n objects.

    Attributes
    ----------
    ids
        The objects, shape (n,), all different.
    fixed
        Fixed columns by name, shape (n,) each; None where a value is taken away.
    measurements
        Measurements by name, float64 (n,) each; NaN leaves what is there.
    """

    ids: Objects
    fixed: dict[str, Objects]
    measurements: dict[str, Floats]

    def take(self, rows: Any) -> Update:
        """Return some of the objects."""
        fixed = {name: values[rows] for name, values in self.fixed.items()}
        return Update(self.ids[rows], fixed, {name: values[rows] for name, values in self.measurements.items()})


def check_update(table: pd.DataFrame) -> Update:
    """Take a table of changes apart.

    Raises
    ------
    ProjectError
        If an id or column stands there twice, a column cannot be changed or is not numeric, or a value cannot be
        stored.
    """
    if not table.index.is_unique or not table.columns.is_unique:
        axis, what = (table.index, "object") if not table.index.is_unique else (table.columns, "column")
        raise ProjectError(f"{what} {axis[axis.duplicated()][0]!r} occurs twice in an update", expected="each once")
    ids: Objects = table.index.to_numpy(dtype=object)
    fixed: dict[str, Objects] = {}
    measurements: dict[str, Floats] = {}
    for name in table.columns:
        if name in FIXED:
            fixed[name] = missing_as_none(pd.Series(table[name]))
        elif not isinstance(name, str) or name in COLUMNS:
            raise ProjectError(
                f"column {name!r} in an update",
                expected=f"measurements or some of {', '.join(FIXED)}",
                remedy="to change it, remove the object and add another",
            )
        elif not pd.api.types.is_numeric_dtype(table[name]):
            raise ProjectError(f"measurement {name!r} is not numeric", expected="numbers; text goes into metadata")
        else:
            measurements[name] = table[name].to_numpy(dtype=np.float64, na_value=np.nan)
    _check_fixed(fixed, ids)
    return Update(ids, fixed, measurements)


def _check_fixed(fixed: dict[str, Objects], ids: Objects) -> None:
    checks: dict[str, Callable[[Objects, Objects], None]] = {
        "name": partial(check_names, what="name"),
        "classification": partial(check_names, what="class"),
        "color": check_colors,
        "metadata": check_metadata,
        "locked": partial(check_flags, what="locked"),
        "missing": partial(check_flags, what="missing"),
        "class_probability": check_probabilities,
    }
    for name, check in checks.items():
        if name in fixed:
            check(fixed[name], ids)
    for name in ("geometry", "nucleus"):
        if name in fixed:
            fixed[name] = unwrap(fixed[name])


# ---------------------------------------------------------------------- one object
def update_object(token: JObject, update: Update, row: int, factory: Factory) -> None:
    """Give one object its new values; everything else about it stays.

    Raises
    ------
    ProjectError
        If the object cannot have such a value.
    FormatError
        If its contents do not follow the layout of a path object.
    """
    values = {name: column[row] for name, column in update.fixed.items()}
    view = PathObjectView(token)
    _refuse(view, values)
    if "name" in values:
        view.set_name(values["name"])
    if "color" in values:
        view.set_color(None if values["color"] is None else int(values["color"]), factory)
    if "locked" in values and view.set_locked(bool(values["locked"]), factory):
        view = PathObjectView(token)
    if "classification" in values and values["classification"] != view.classification:
        view.set_classification(values["classification"], factory)
    _set_shapes(view, values, factory)
    if "class_probability" in values:
        value = values["class_probability"]
        view.set_probability(float("nan") if value is None else float(value))
    if values.get("missing", view.missing) != view.missing:
        view.set_missing(bool(values["missing"]))
    if "metadata" in values and (values["metadata"] or {}) != (view.metadata or {}):
        view.set_metadata(values["metadata"] or {}, factory)
    _set_measurements(PathObjectView(token), update, row, factory)


def _refuse(view: PathObjectView, values: dict[str, Any]) -> None:
    found = expected = ""
    if values.get("nucleus") is not None and view.kind != "cell":
        found, expected = "has a nucleus", "nuclei on cells only"
    elif values.get("missing") and view.kind != "tma_core":
        found, expected = f"of type {view.kind} is missing", "missing TMA cores only"
    elif "geometry" in values and view.kind == "tma_core" and not _same(view.roi_token, values["geometry"]):
        found, expected = "is a TMA core and cannot have another geometry", "that of the grid"
    if found:
        raise ProjectError(f"object {view.id} {found}", expected=expected)


def _set_shapes(view: PathObjectView, values: dict[str, Any], factory: Factory) -> None:
    plane = DEFAULT_PLANE if view.roi_token is None else read_plane(view.roi_token)
    if "geometry" in values and not _same(view.roi_token, values["geometry"]):
        _check(values["geometry"], view, what="geometry")
        view.set_roi(make_roi(values["geometry"], plane, factory))
    if "nucleus" in values and view.kind == "cell" and not _same(view.nucleus_token, values["nucleus"]):
        nucleus = values["nucleus"]
        if nucleus is not None:
            _check(nucleus, view, what="nucleus")
        view.set_nucleus(None if nucleus is None else make_roi(nucleus, plane, factory))


def _check(geometry: Any, view: PathObjectView, *, what: str) -> None:
    both: Objects = np.array([geometry, view.id], dtype=object)
    check_geometries(both[:1], both[1:], areas=view.kind == "cell", what=what)


def _same(roi: JObject | None, geometry: Any) -> bool:
    """Whether a ROI is the geometry already, so that its kind and its cached statistics can stay."""
    if roi is None or geometry is None:
        return roi is None and geometry is None
    return bool(shapely.equals_exact(read_roi(roi), geometry, tolerance=0.0))


def _set_measurements(view: PathObjectView, update: Update, row: int, factory: Factory) -> None:
    new = {name: float(column[row]) for name, column in update.measurements.items() if not np.isnan(column[row])}
    old = view.measurements
    if any(name not in old or old[name] != value for name, value in new.items()):
        doubles = view.kind in GENERAL_LISTS
        view.set_list(changed_list(view.list_token, new, factory, doubles=doubles), factory)


def updated_ids(updates: Sequence[Update]) -> set[str]:
    """Return the ids of all objects that some updates name."""
    return set().union(*(update.ids.tolist() for update in updates))
