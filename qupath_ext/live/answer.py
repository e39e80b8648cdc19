"""From what an analysis wants done to the open image to the answer that QuPath's script carries out."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from qupath_ext.live.job import ADD_FILE, Answer
from qupath_ext.live.liveproject import LiveProject

if TYPE_CHECKING:
    import geopandas as gpd

__all__ = ["change_answer", "workflow_step"]


def change_answer(
    project: LiveProject,
    message: str,
    *,
    run: str | None,
    notes: Sequence[str] = (),
    counts: Mapping[str, float] | None = None,
) -> Answer:
    """Write the new objects of the open image and return the answer that hands them over.

    Parameters
    ----------
    project
        With the change in its image.
    message
        For a person.
    run
        Id of the run.
    notes
        What a person should look at.
    counts
        Numbers beside those of objects.
    """
    from pyhisto.objects import concat_objects
    from qupath_ext.exchange.geojson import write_geojson

    change = project.image.change
    tables = [table for table in change.tables if len(table)]
    names = dict.fromkeys(project.used_classes)
    n_new: Counter[str] = Counter()
    if tables:
        objects = _parents_first(concat_objects(tables))
        classes = objects["classification"].astype(object)
        names |= dict.fromkeys(classes.dropna())
        n_new = Counter(classes.fillna("Unclassified"))
        write_geojson(project.job.folder / ADD_FILE, objects, colors={name: project.color_of(name) for name in names})
    removed = tuple(dict.fromkeys(change.removed))
    return Answer(
        status="done",
        message=message,
        run=run,
        add=ADD_FILE if tables else None,
        remove=removed,
        lock=tuple(dict.fromkeys(change.locked)),
        unlock=tuple(dict.fromkeys(change.unlocked)),
        classes=tuple({"name": name, "color": _rgb(project.color_of(name))} for name in names),
        workflow=workflow_step(project.job.task, project.job.options),
        notes=tuple(notes),
        counts={**dict(sorted(n_new.items())), "removed": len(removed), **(counts or {})},
    )


def _rgb(color: int | None) -> list[int] | None:
    return None if color is None else [color >> 16 & 255, color >> 8 & 255, color & 255]


def _parents_first(objects: gpd.GeoDataFrame) -> gpd.GeoDataFrame:
    """Return objects so that each comes after its parent, and otherwise in the order they had."""
    import numpy as np

    rows = objects.index.get_indexer(objects["parent_id"].to_numpy(dtype=object))
    depth = np.zeros(len(objects), dtype=np.intp)
    above = rows.copy()
    while (inside := above >= 0).any():
        depth[inside] += 1
        if depth.max() > len(objects):
            raise ValueError("objects that are their own ancestors")
        above[inside] = rows[above[inside]]
    return objects.iloc[np.argsort(depth, kind="stable")]


STEP_NAMES = {
    "ki67-selection": "Ki-67 on selection",
    "ki67-slide": "Ki-67 on whole slide",
    "tumour": "Segment tumour",
    "detect-cells": "Detect cells",
}
"""Names of the steps in QuPath's workflow; undoing is none: who repeats a workflow wants what is in the end."""

LIBRARY = "evaluate(new File(buildPathInProject('qupath_ext', 'groovy', 'QuPathExt.groovy')))"
"""Loads, in Groovy, what the scripts of a project share."""


def workflow_step(task: str, options: Mapping[str, Any]) -> dict[str, str] | None:
    """Return the step of QuPath's workflow for a task with its options; None for one that changes no image.

    Examples
    --------
    >>> workflow_step("tumour", {"region": "tissue", "flips": True})["script"].removeprefix(LIBRARY)
    ".start('tumour', ['region': 'tissue', 'flips': true])"
    """
    if task not in STEP_NAMES:
        return None
    return {"name": STEP_NAMES[task], "script": f"{LIBRARY}.start({_groovy(task)}, {_groovy(options)})"}


def _groovy(value: Any) -> str:
    """Return a JSON value as Groovy."""
    if isinstance(value, str):
        escaped = json.dumps(value)[1:-1].replace('\\"', '"').replace("'", "\\'")
        return f"'{escaped}'"
    if isinstance(value, Mapping):
        return "[" + (", ".join(f"{_groovy(str(key))}: {_groovy(one)}" for key, one in value.items()) or ":") + "]"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_groovy, value)) + "]"
    return json.dumps(value)
