"""The objects of a scanned run as columns: vertices, values and ids taken from the bytes with numpy."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
import shapely

from qupath_ext.native.catalog import full_class_name
from qupath_ext.native.pathobjects import list_names, object_kind
from qupath_ext.native.rerun import roi_layout
from qupath_ext.native.roi import DEFAULT_PLANE, ellipse
from qupath_ext.native.scanner import (
    BOX,
    HEAD,
    LIST_CLASSES,
    LIST_HEAD,
    POINTS,
    POLYGON,
    Ints,
    ScannedRun,
    gather_bytes,
    gather_numbers,
)
from qupath_ext.native.tokens import BASE_HANDLE, ClassDesc, JObject

__all__ = ["RunColumns", "read_run", "run_kinds_and_classes"]

CHUNK = 100_000
Objects = np.ndarray[Any, np.dtype[np.object_]]
Floats = np.ndarray[Any, np.dtype[np.float64]]


@dataclass
class RunColumns:
    """n objects as columns, each of shape (n,); `measurements` by name, float64, NaN where missing."""

    ids: Objects
    kinds: Objects
    geometry: Objects
    nucleus: Objects
    classification: Objects
    locked: np.ndarray[Any, np.dtype[np.bool_]]
    plane: Objects
    measurements: dict[str, Floats]


def read_run(run: ScannedRun) -> RunColumns:
    """Read all records of a run; ids are None where the file has none."""
    rows = run.rows
    n = len(rows)
    ids = np.full(n, None, dtype=object)
    with_id = run.has_id[rows]
    raw = np.ascontiguousarray(gather_bytes(run.buffer, run.starts[rows][with_id] + HEAD, 36))
    ids[with_id] = raw.view("S36").reshape(-1).astype("U36")
    geometry, plane = _rois(run, run.rois[rows])
    nuclei = run.nuclei[rows]
    nucleus = np.full(n, None, dtype=object)
    nucleus[nuclei >= 0], _ = _rois(run, nuclei[nuclei >= 0])
    locks = run.locks[rows]
    return RunColumns(
        ids=ids,
        kinds=_by_token(run, run.starts[rows] + 1, _kind),
        geometry=geometry,
        nucleus=nucleus,
        classification=_classes(run, locks + 5),
        locked=_by_token(run, locks, _flag).astype(bool),
        plane=plane,
        measurements=_measurements(run, rows),
    )


def run_kinds_and_classes(run: ScannedRun) -> Counter[tuple[str, str | None]]:
    """Return number of records by (object type, full class name or None)."""
    rows = run.rows
    kinds = gather_numbers(run.buffer, run.starts[rows] + 2, ">i4").astype(np.int64)
    at = run.locks[rows] + 5
    classes = np.full(len(rows), -1, dtype=np.int64)
    classed = run.buffer[at] != 0x70
    classes[classed] = gather_numbers(run.buffer, at[classed] + 1, ">i4")
    unique, counts = np.unique(np.column_stack([kinds, classes]), axis=0, return_counts=True)
    out: Counter[tuple[str, str | None]] = Counter()
    for (kind, name), n in zip(unique.tolist(), counts.tolist(), strict=True):
        full = None if name < 0 else _class(run.handles[name - BASE_HANDLE])
        out[_kind(run.handles[kind - BASE_HANDLE]), full] += n
    return out


def _kind(token: object) -> str:
    return object_kind(JObject(token)) if isinstance(token, ClassDesc) else ""


def _flag(token: object) -> bool:
    return isinstance(token, JObject) and token.get("value") == b"\x01"


def _class(token: object) -> str | None:
    return full_class_name(token) if isinstance(token, JObject) else None


def _by_token(run: ScannedRun, references: Ints, read: Any) -> Objects:
    """Return what `read` makes of the token that each reference means, shape (n,)."""
    handles, inverse = np.unique(gather_numbers(run.buffer, references + 1, ">i4"), return_inverse=True)
    values = np.empty(len(handles), dtype=object)
    values[:] = [read(run.handles[handle - BASE_HANDLE]) for handle in handles.tolist()]
    return values[inverse]


def _classes(run: ScannedRun, at: Ints) -> Objects:
    out = np.full(len(at), None, dtype=object)
    classed = run.buffer[at] != 0x70
    out[classed] = _by_token(run, at[classed], _class)
    return out


def _measurements(run: ScannedRun, rows: Ints) -> dict[str, Floats]:
    lists = run.lists[rows]
    out: dict[str, Floats] = {}
    with_list = np.flatnonzero(run.buffer[lists] != 0x70)
    if len(with_list) == 0:
        return out
    at = lists[with_list]
    keys = np.column_stack([gather_numbers(run.buffer, at + offset, ">i4") for offset in (2, 13, 23)])
    unique, inverse = np.unique(keys, axis=0, return_inverse=True)
    for number, (class_handle, names_handle, length) in enumerate(unique.tolist()):
        desc = run.handles[class_handle - BASE_HANDLE]
        size = LIST_CLASSES[desc.name] if isinstance(desc, ClassDesc) else 4
        names = list_names(run.handles[names_handle - BASE_HANDLE])
        chosen = np.flatnonzero(inverse.reshape(-1) == number)
        for low in range(0, len(chosen), CHUNK):
            part = chosen[low : low + CHUNK]
            raw = np.ascontiguousarray(gather_bytes(run.buffer, at[part] + LIST_HEAD, length * size))
            with np.errstate(invalid="ignore"):  # signalling NaN
                values = raw.view(f">f{size}").astype(np.float64).reshape(len(part), length)
            for column, name in enumerate(names[:length]):
                target = out.setdefault(name, np.full(len(rows), np.nan))
                target[with_list[part]] = values[:, column]
    return out


def _rois(run: ScannedRun, at: Ints) -> tuple[Objects, Objects]:
    """Geometries and planes of n ROI records."""
    geometry = np.full(len(at), None, dtype=object)
    plane = np.full(len(at), None, dtype=object)
    for low in range(0, len(at), CHUNK):
        part = slice(low, low + CHUNK)
        places = at[part]
        kinds, _, first, n = roi_layout(run, places)
        out = geometry[part]
        boxes = kinds == BOX
        if boxes.any():
            out[boxes] = _boxes(run, places[boxes])
        for kind, read in ((POLYGON, _polygons), (POINTS, _points)):
            chosen = kinds == kind
            if chosen.any():
                out[chosen] = read(_vertices(run, first[chosen], n[chosen]), n[chosen])
        _planes(run, places, boxes, plane[part])
    return geometry, plane


def _planes(run: ScannedRun, at: Ints, boxes: np.ndarray[Any, np.dtype[np.bool_]], out: Objects) -> None:
    c = gather_numbers(run.buffer, at + 6, ">i4")
    t = gather_numbers(run.buffer, at + 10, ">i4")
    z = gather_numbers(run.buffer, at + np.where(boxes, 46, 14), ">i4")
    planes = np.column_stack([c, z, t])
    for i in np.flatnonzero((planes != DEFAULT_PLANE).any(axis=1)).tolist():
        out[i] = tuple(planes[i].tolist())


def _boxes(run: ScannedRun, at: Ints) -> Objects:
    x, x2, y, y2 = (gather_numbers(run.buffer, at + 14 + 8 * i, ">f8") for i in range(4))
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
        return np.column_stack([gather_numbers(run.buffer, axis, ">f4") for axis in (x, y)]).astype(np.float64)


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


def _polygons(points: Floats, n: Ints) -> Objects:
    """Polygons from open or closed rings; those of fewer than three vertices have no area."""
    out = np.empty(len(n), dtype=object)
    starts = np.cumsum(n) - n
    empty = n == 0
    out[empty] = shapely.Polygon()
    rings = np.flatnonzero(~empty)
    if len(rings) == 0:
        return out
    sizes, starts = n[rings], starts[rings]
    closed = (points[starts] == points[starts + sizes - 1]).all(axis=1)
    closed_sizes = np.maximum(sizes + ~closed, 4)
    within = np.arange(int(closed_sizes.sum())) - np.repeat(np.cumsum(closed_sizes) - closed_sizes, closed_sizes)
    size, start = np.repeat(sizes, closed_sizes), np.repeat(starts, closed_sizes)
    last = np.repeat(closed_sizes, closed_sizes) - 1
    source = np.where(within == last, start, start + np.minimum(within, size - 1))
    ring_offsets = np.concatenate([[0], np.cumsum(closed_sizes)])
    out[rings] = shapely.from_ragged_array(
        shapely.GeometryType.POLYGON, points[source], (ring_offsets, np.arange(len(rings) + 1))
    )
    return out
