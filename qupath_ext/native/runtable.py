"""The objects of a scanned run as columns: vertices, values and ids taken from the bytes with numpy."""

from __future__ import annotations

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from functools import partial
from itertools import product
from typing import Any

import numpy as np
import pandas as pd
import shapely

from qupath_ext.native.catalog import full_class_name
from qupath_ext.native.measurementlists import list_names
from qupath_ext.native.pathobjects import PathObjectView, object_kind
from qupath_ext.native.rerun import roi_layout
from qupath_ext.native.roi import DEFAULT_PLANE, check_finite, ellipse
from qupath_ext.native.scanner import (
    BOX,
    HEAD,
    LIST_CLASSES,
    LIST_HEAD,
    NULL,
    POINTS,
    POLYGON,
    Ints,
    ScannedRun,
    gather_bytes,
    gather_numbers,
)
from qupath_ext.native.tokens import BASE_HANDLE, ClassDesc, JObject

__all__ = ["RunColumns", "are_locked", "read_run", "run_kinds_and_classes"]

CHUNK = 1 << 15
THREADS = 2
NO_CLASS = -1
Objects = np.ndarray[Any, np.dtype[np.object_]]
Floats = np.ndarray[Any, np.dtype[np.float64]]


@dataclass
class RunColumns:
    """n objects as columns, each of shape (n,); `measurements` by name; numbers are float64, NaN where missing."""

    ids: Objects
    kinds: Objects
    geometry: Objects
    nucleus: Objects
    classification: Objects
    locked: np.ndarray[Any, np.dtype[np.bool_]]
    probability: Floats
    plane: Objects
    measurements: dict[str, Floats]


def read_run(run: ScannedRun) -> RunColumns:
    """Read all records of a run; ids are None where the file has none."""
    chunks = [run.rows[low : low + CHUNK] for low in range(0, len(run), CHUNK)]
    if len(chunks) == 1:
        parts = [_read_chunk(run, chunks[0])]
    else:
        with ThreadPoolExecutor(THREADS) as pool:  # numpy gathers bytes for one while shapely makes objects of another
            parts = list(pool.map(partial(_read_chunk, run), chunks))
    lengths = [len(part.ids) for part in parts]
    names = dict.fromkeys(name for part in parts for name in part.measurements)
    measurements = {name: np.full(len(run), np.nan) for name in names}
    for part, stop in zip(parts, np.cumsum(lengths).tolist(), strict=True):
        for name, values in part.measurements.items():
            measurements[name][stop - len(values) : stop] = values
    columns = {
        field.name: np.concatenate([getattr(part, field.name) for part in parts])
        for field in fields(RunColumns)
        if field.name != "measurements"
    }
    return RunColumns(**columns, measurements=measurements)


def _read_chunk(run: ScannedRun, rows: Ints) -> RunColumns:
    nuclei = run.nuclei[rows]
    nucleated = np.flatnonzero(nuclei >= 0)
    nucleus = np.full(len(rows), None, dtype=object)
    geometry, plane = _rois(run, run.rois[rows])
    nucleus[nucleated], _ = _rois(run, nuclei[nucleated])
    locks = run.locks[rows]
    return RunColumns(
        ids=_ids(run, rows),
        kinds=_by_token(run, run.starts[rows] + 1, _kind),
        geometry=geometry,
        nucleus=nucleus,
        classification=_classes(run, locks + 5),
        locked=are_locked(run, rows),
        probability=gather_numbers(run.buffer, run.tails[rows] + 2, ">f8"),
        plane=plane,
        measurements=_measurements(run, rows),
    )


def _ids(run: ScannedRun, rows: Ints) -> Objects:
    with_id = np.flatnonzero(run.has_id[rows])
    text = gather_bytes(run.buffer, run.starts[rows[with_id]] + HEAD, 36).tobytes().decode("ascii")
    out = np.full(len(rows), None, dtype=object)
    out[with_id] = [text[at : at + 36] for at in range(0, len(text), 36)]
    return out


def run_kinds_and_classes(run: ScannedRun) -> Counter[tuple[str, str | None]]:
    """Return number of objects by (object type, full class name or None)."""
    out = Counter((view.kind, view.classification) for view in map(PathObjectView, run.changed_members()))
    rows = run.rows[~np.isin(run.rows, list(run.materialised))] if run.materialised else run.rows
    at = run.locks[rows] + 5
    kinds, kind_handles = pd.factorize(gather_numbers(run.buffer, run.starts[rows] + 2, ">i4"))
    classes = np.full(len(rows), NO_CLASS, dtype=np.int32)
    classed = np.flatnonzero(run.buffer[at] != NULL)
    classes[classed] = gather_numbers(run.buffer, at[classed] + 1, ">i4")
    names, class_handles = pd.factorize(classes)
    counts = np.bincount(kinds * len(class_handles) + names, minlength=len(kind_handles) * len(class_handles))
    for n, (kind, name) in zip(counts.tolist(), product(kind_handles.tolist(), class_handles.tolist()), strict=True):
        if n:
            full = None if name == NO_CLASS else _class(run.handles[name - BASE_HANDLE])
            out[_kind(run.handles[kind - BASE_HANDLE]), full] += n
    return out


def _kind(token: object) -> str:
    return object_kind(JObject(token)) if isinstance(token, ClassDesc) else ""


def _flag(token: object) -> bool:
    return isinstance(token, JObject) and token.get("value") == b"\x01"


def are_locked(run: ScannedRun, rows: Ints) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Which records of a run are locked, shape (n,); `rows` are the numbers of n records."""
    out: np.ndarray[Any, np.dtype[np.bool_]] = _by_token(run, run.locks[rows], _flag).astype(bool)
    return out


def _class(token: object) -> str | None:
    return full_class_name(token) if isinstance(token, JObject) else None


def _by_token(run: ScannedRun, references: Ints, read: Any) -> Objects:
    """Return what `read` makes of the token that each reference means, shape (n,)."""
    codes, handles = pd.factorize(gather_numbers(run.buffer, references + 1, ">i4"))
    values = np.empty(len(handles), dtype=object)
    values[:] = [read(run.handles[handle - BASE_HANDLE]) for handle in handles.tolist()]
    return values[codes]


def _classes(run: ScannedRun, at: Ints) -> Objects:
    out = np.full(len(at), None, dtype=object)
    classed = np.flatnonzero(run.buffer[at] != NULL)
    out[classed] = _by_token(run, at[classed], _class)
    return out


def _measurements(run: ScannedRun, rows: Ints) -> dict[str, Floats]:
    lists = run.lists[rows]
    out: dict[str, Floats] = {}
    with_list = np.flatnonzero(run.buffer[lists] != NULL)
    at = lists[with_list]
    keys = [pd.factorize(gather_numbers(run.buffer, at + offset, ">i4")) for offset in (2, 13, 23)]
    shape = tuple(len(unique) for _, unique in keys)
    sorts, unique_sorts = pd.factorize(np.ravel_multi_index(tuple(codes for codes, _ in keys), shape))
    for number, sort in enumerate(unique_sorts.tolist()):
        places = np.unravel_index(sort, shape)
        class_handle, names_handle, length = (int(unique[at]) for (_, unique), at in zip(keys, places, strict=True))
        desc = run.handles[class_handle - BASE_HANDLE]
        size = LIST_CLASSES[desc.name] if isinstance(desc, ClassDesc) else 4
        names = list_names(run.handles[names_handle - BASE_HANDLE])[:length]
        targets = [out.setdefault(name, np.full(len(rows), np.nan)) for name in names]
        chosen = np.flatnonzero(sorts == number)
        raw = gather_bytes(run.buffer, at[chosen] + LIST_HEAD, length * size)
        with np.errstate(invalid="ignore"):  # signalling NaN
            values = raw.view(f">f{size}").T.astype(np.float64)
        for target, column in zip(targets, values, strict=False):
            target[with_list[chosen]] = column
    return out


def _rois(run: ScannedRun, at: Ints) -> tuple[Objects, Objects]:
    """Geometries and planes of n ROI records."""
    geometry = np.full(len(at), None, dtype=object)
    kinds, _, first, n = roi_layout(run, at)
    boxes = np.flatnonzero(kinds == BOX)
    geometry[boxes] = _boxes(run, at[boxes])
    points = np.flatnonzero(kinds == POINTS)
    geometry[points] = _points(_vertices(run, first[points], n[points]), n[points])
    polygons = np.flatnonzero(kinds == POLYGON)
    sizes = n[polygons]
    for size in pd.unique(sizes).tolist():
        rows = polygons[sizes == size]
        geometry[rows] = _polygons(_rings(run, first[rows], size))
    return geometry, _planes(run, at, boxes)


def _rings(run: ScannedRun, first: Ints, size: int) -> Floats:
    """Vertices of n float arrays of the same size, and the first vertex again, shape (n, size + 1, 2)."""
    out = np.empty((len(first), size + 1, 2))
    with np.errstate(invalid="ignore"):  # signalling NaN
        for axis in (0, 1):
            raw = gather_bytes(run.buffer, first + axis * (4 * size + 10), 4 * size)
            out[:, :size, axis] = raw.view(">f4")
    check_finite(out[:, :size])
    out[:, size:] = out[:, :1]
    return out


def _planes(run: ScannedRun, at: Ints, boxes: Ints) -> Objects:
    planes = gather_bytes(run.buffer, at + 6, 12).view(">i4")
    planes[boxes, 2] = gather_numbers(run.buffer, at[boxes] + 46, ">i4")
    c, t, z = planes.T
    out = np.full(len(at), None, dtype=object)
    for i in np.flatnonzero((c != DEFAULT_PLANE[0]) | (z != DEFAULT_PLANE[1]) | (t != DEFAULT_PLANE[2])).tolist():
        out[i] = (int(c[i]), int(z[i]), int(t[i]))
    return out


def _boxes(run: ScannedRun, at: Ints) -> Objects:
    x, x2, y, y2 = (gather_numbers(run.buffer, at + 14 + 8 * i, ">f8") for i in range(4))
    check_finite(np.stack([x, x2, y, y2]))
    out = np.empty(len(at), dtype=object)
    names = _by_token(run, at + 1, lambda token: token.name.split(".")[-1].split("$")[0])
    for name in set(names.tolist()):
        i = np.flatnonzero(names == name)
        if name == "LineROI":
            corners = np.stack([np.column_stack([x[i], y[i]]), np.column_stack([x2[i], y2[i]])], axis=1)
            out[i] = shapely.linestrings(corners)
        elif name == "EllipseROI":
            out[i] = [ellipse(*box) for box in np.column_stack([x[i], y[i], x2[i], y2[i]]).tolist()]
        else:
            xs, ys = np.column_stack([x[i], x2[i], x2[i], x[i]]), np.column_stack([y[i], y[i], y2[i], y2[i]])
            out[i] = shapely.polygons(np.stack([xs, ys], axis=2))
    return out


def _vertices(run: ScannedRun, first: Ints, n: Ints) -> Floats:
    """All vertices of some float arrays, one after the other, shape (sum of n, 2)."""
    within = np.arange(int(n.sum())) - np.repeat(np.cumsum(n) - n, n)
    x = np.repeat(first, n) + 4 * within
    y = x + np.repeat(4 * n + 10, n)
    with np.errstate(invalid="ignore"):  # signalling NaN
        points = np.column_stack([gather_numbers(run.buffer, axis, ">f4") for axis in (x, y)]).astype(np.float64)
    check_finite(points)
    return points


def _points(points: Floats, n: Ints) -> Objects:
    owner = np.repeat(np.arange(len(n)), n)
    out = np.empty(len(n), dtype=object)
    out[:] = shapely.multipoints(np.empty((len(n), 0, 2)))
    if len(owner):
        filled: Any = shapely.multipoints(shapely.points(points), indices=owner)  # type: ignore[arg-type]
        out[: len(filled)] = filled
    out[n == 0] = shapely.MultiPoint()
    single = n == 1
    out[single] = shapely.get_geometry(out[single], 0)
    return out


def _polygons(rings: Floats) -> Objects:
    """Polygons from n rings of m vertices and the first one again, shape (n, m + 1, 2).

    The m vertices may be closed already. Those with fewer than three have no area.
    """
    n, m = len(rings), rings.shape[1] - 1
    out = np.empty(n, dtype=object)
    if m == 0:
        out[:] = shapely.Polygon()
        return out
    if m < 3:
        rings = rings[:, np.minimum(np.arange(4), m - 1) * (np.arange(4) < 3)]
    closed = (rings[:, 0] == rings[:, m - 1]).all(axis=1) if m > 3 else np.zeros(n, dtype=bool)
    for rows, chosen in ((~closed, rings), (closed, rings[:, :m])):
        part = chosen if rows.all() else chosen[rows]
        offsets = np.arange(len(part) + 1)
        out[rows] = shapely.from_ragged_array(
            shapely.GeometryType.POLYGON, part.reshape(-1, 2), (offsets * part.shape[1], offsets)
        )
    return out
