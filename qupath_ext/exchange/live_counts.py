"""What QuPath computes live from the classes of detections: counts, Positive %, H-score, Allred score, density."""

from __future__ import annotations

from typing import Any

import geopandas as gpd
import numpy as np
import shapely

from qupath_ext.native.roi import DEFAULT_PLANE

__all__ = ["ClassCounts", "live_columns"]

DETECTIONS = ("detection", "cell", "tile")
GRADES = ("1+", "2+", "3+")
POSITIVE = ("Positive", *GRADES)
Columns = dict[str, Any]
Ints = np.ndarray[Any, np.dtype[np.int64]]


class ClassCounts:
    """Counts detections by class, in the whole image or inside other objects.

    Parameters
    ----------
    objects
        All objects of an image.

    Attributes
    ----------
    classes : list
        The full names of the classes of detections in the order of their first one; None is unclassified. One column
        of the counts for each.
    """

    def __init__(self, objects: gpd.GeoDataFrame) -> None:
        self._objects = objects
        self._detections = np.flatnonzero(objects["object_type"].isin(DETECTIONS))
        names = objects["classification"].astype(object).iloc[self._detections]
        names = names.where(names.notna(), None)
        self.classes: list[str | None] = list(dict.fromkeys(names))
        column = {name: at for at, name in enumerate(self.classes)}
        self._codes: Ints = np.array([column[name] for name in names], dtype=np.int64)

    def of_all(self) -> Ints:
        """Return the counts of the whole image, shape (1, classes)."""
        return np.bincount(self._codes, minlength=len(self.classes))[None]

    def inside(self, rows: Any) -> Ints:
        """Return the counts inside objects of the table, shape (rows, classes).

        As in QuPath, a detection is inside an area if its centroid is, on the same plane; whose child it is, does not
        matter.
        """
        out = np.zeros((len(rows), len(self.classes)), dtype=np.int64)
        shapes = np.asarray(self._objects["geometry"], dtype=object)
        areas = shapes[rows]
        areas[shapely.get_dimensions(areas) != 2] = None
        tree = shapely.STRtree(shapely.centroid(shapes[self._detections]))
        shapely.prepare(areas)
        area, detection = tree.query(areas, predicate="intersects")
        planes = self._planes()
        same = (planes[rows][area] == planes[self._detections][detection]).all(axis=1)
        same &= rows[area] != self._detections[detection]
        np.add.at(out, (area[same], self._codes[detection[same]]), 1)
        return out

    def _planes(self) -> Ints:
        """Return z and t of every object, shape (n, 2)."""
        planes = [DEFAULT_PLANE if plane is None else plane for plane in self._objects["plane"]]
        return np.array(planes, dtype=np.int64).reshape(-1, 3)[:, 1:]


def live_columns(counts: Ints, classes: list[str | None], *, areas: Any, mpp: tuple[float, float] | None) -> Columns:
    """Return the live columns in QuPath's order.

    Parameters
    ----------
    counts
        int, shape (n, classes): detections by class, for each row.
    classes
        The full names of the classes; None is unclassified.
    areas
        float64, shape (n,): the area in which each row counts, µm² or px², NaN where it has none; None for no
        densities.
    mpp
        The pixel size, which says whether densities are per mm² or per px².

    Returns
    -------
    dict
        Values by name; empty if there are no detections at all.
    """
    if not classes:
        return {}
    out: Columns = {"Num Detections": counts.sum(axis=1)}
    named = [(name, at) for at, name in enumerate(classes) if name is not None]
    graded = dict.fromkeys(_parent(name) for name, _ in named if _last(name) in GRADES)
    judged = dict.fromkeys(_parent(name) for name, _ in named if _last(name) in (*POSITIVE, "Negative"))
    groups = _Groups(counts, [name for name, _ in named], [at for _, at in named])
    for parent in sorted(parent for parent in judged if parent is not None):
        out[f"Num {parent} (base)"] = groups.below(parent)
    for name, at in sorted(named):
        out[f"Num {name}"] = counts[:, at]
    for parents in _one_by_one_and_together(list(judged)):
        out.setdefault(_named("Positive %", parents), _positive_percent(groups, parents))
    for parents in _one_by_one_and_together(list(graded)):
        out.setdefault(_named("H-score", parents), _h_score(groups, parents))
        proportion, intensity = _allred(groups, parents)
        out.setdefault(_named("Allred proportion", parents), proportion)
        out.setdefault(_named("Allred intensity", parents), intensity)
        out.setdefault(_named("Allred score", parents), proportion + intensity)
    if areas is not None and "Positive" in classes:
        unit, per = ("px^2", 1.0) if mpp is None else ("mm^2", 1e6)
        out[f"Num Positive per {unit}"] = groups.below("Positive") / areas * per
    return out


def _last(name: str) -> str:
    return name.rpartition(": ")[2]


def _parent(name: str) -> str | None:
    return name.rpartition(": ")[0] or None


def _one_by_one_and_together(parents: list[str | None]) -> list[list[str | None]]:
    return [[parent] for parent in parents] + ([parents] if len(parents) > 1 else [])


def _named(measurement: str, parents: list[str | None]) -> str:
    """Put the base class in front, or all of several."""
    if len(parents) == 1:
        return measurement if parents[0] is None else f"{parents[0].partition(': ')[0]}: {measurement}"
    return " + ".join(sorted("" if parent is None else _last(parent) for parent in parents)) + f": {measurement}"


class _Groups:
    """Sums of counts over classes that belong together."""

    def __init__(self, counts: Ints, names: list[str], columns: list[int]) -> None:
        self._counts = counts[:, columns]
        self._names = names

    def below(self, ancestor: str) -> Ints:
        """Return the count of a class and all that are derived from it, shape (n,)."""
        return self._sum([name == ancestor or name.startswith(f"{ancestor}: ") for name in self._names])

    def of(self, lasts: tuple[str, ...], parents: list[str | None]) -> Ints:
        """Return the count of classes with one of these last parts under each of `parents`, shape (n,)."""
        total = np.zeros(len(self._counts), dtype=np.int64)
        for parent in parents:
            total += self._sum([
                _last(name) in lasts
                and (_parent(name) is None if parent is None else name == parent or name.startswith(f"{parent}: "))
                for name in self._names
            ])  # fmt: skip
        return total

    def _sum(self, chosen: list[bool]) -> Ints:
        total: Ints = self._counts[:, np.array(chosen, dtype=bool)].sum(axis=1)
        return total


def _positive_percent(groups: _Groups, parents: list[str | None]) -> Any:
    positive, negative = groups.of(POSITIVE, parents), groups.of(("Negative",), parents)
    return _divided(100 * positive, positive + negative)


def _h_score(groups: _Groups, parents: list[str | None]) -> Any:
    one, two, three = (groups.of((grade,), parents) for grade in GRADES)
    return _divided(100 * (one + 2 * two + 3 * three), one + two + three + groups.of(("Negative",), parents))


def _allred(groups: _Groups, parents: list[str | None]) -> tuple[Any, Any]:
    """Return Allred's proportion score (0 to 5) and intensity score (0 to 3)."""
    fraction = np.nan_to_num(_positive_percent(groups, parents) / 100)
    proportion = (fraction > 0).astype(np.int64)
    for limit in (0.01, 0.1, 1 / 3, 2 / 3):
        proportion += fraction >= limit
    one, two, three = (groups.of((grade,), parents) for grade in GRADES)
    mean = np.nan_to_num(_divided(one + 2 * two + 3 * three, groups.of(POSITIVE, parents)))
    intensity = np.where(proportion > 0, 1 + (mean > 5 / 3) + (mean > 7 / 3), 0)
    return proportion, intensity


def _divided(numerator: Any, denominator: Any) -> Any:
    with np.errstate(invalid="ignore", divide="ignore"):
        return numerator / denominator
