"""The objects of a scanned run as columns: vertices, values and ids taken from the bytes with numpy."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import product
from threading import Lock
from typing import Any

import numpy as np
import pandas as pd
import shapely

from qupath_ext.native.catalog import full_class_name
from qupath_ext.native.gather import Ints, gather_bytes, gather_numbers
from qupath_ext.native.measurementlists import list_names
from qupath_ext.native.pathobjects import PathObjectView, object_kind
from qupath_ext.native.rerun import roi_layout
from qupath_ext.native.roi import DEFAULT_PLANE, check_finite, ellipse
from qupath_ext.native.scanner import BOX, HEAD, LIST_CLASSES, LIST_HEAD, NULL, POINTS, POLYGON, Flags, ScannedRun
from qupath_ext.native.tokens import BASE_HANDLE, ClassDesc, JObject

__all__ = [
    "ObjectColumns",
    "are_locked",
    "id_keys",
    "read_rings_at",
    "read_rois_at",
    "read_run",
    "run_kinds_and_classes",
]

CHUNK = 1 << 14
THREADS = 2
ID_LENGTH = 36
NO_CLASS = -1
Objects = np.ndarray[Any, np.dtype[np.object_]]
Floats = np.ndarray[Any, np.dtype[np.float64]]


@dataclass
class ObjectColumns:
    """n objects as columns, each of shape (n,); `measurements` by name; numbers are float64, NaN where missing.

    Attributes
    ----------
    keys
        A number for each id, int64: ids with different numbers are different.
    rois, nuclei
        Byte offset of the ROI in the file, for objects of a run; -1 for others, and without nucleus.
    geometry, nucleus
        Left empty where they were not asked for.
    color
        Packed RGB where `has_color`.
    """

    ids: Objects
    keys: Ints
    kinds: Objects
    rois: Ints
    nuclei: Ints
    geometry: Objects
    nucleus: Objects
    classification: Objects
    name: Objects
    locked: Flags
    probability: Floats
    missing: Flags
    color: Ints
    has_color: Flags
    parent: Objects
    plane: Objects
    metadata: Objects
    measurements: dict[str, Floats]

    @classmethod
    def empty(cls, n: int) -> ObjectColumns:
        """Return columns of n objects of which nothing is known."""
        texts = ("ids", "kinds", "geometry", "nucleus", "classification", "name", "parent", "plane", "metadata")
        columns: dict[str, Any] = {name: np.full(n, None, dtype=object) for name in texts}
        columns |= {name: np.full(n, -1, dtype=np.int64) for name in ("rois", "nuclei")}
        columns |= {name: np.zeros(n, dtype=np.int64) for name in ("keys", "color")}
        columns |= {name: np.zeros(n, dtype=bool) for name in ("locked", "missing", "has_color")}
        return cls(**columns, probability=np.full(n, np.nan), measurements={})

    def measurement(self, name: str) -> Floats:
        """Return the column of a measurement, a new one if there is none."""
        if name not in self.measurements:
            self.measurements[name] = np.full(len(self.ids), np.nan)
        return self.measurements[name]


def read_run(
    run: ScannedRun, out: ObjectColumns | None = None, numbers: Ints | None = None, *, shapes: bool = True
) -> ObjectColumns:
    """Read all records of a run; ids are None where the file has none.

    Parameters
    ----------
    run
        n records.
    out, numbers
        Columns to fill, and the row of each record in them, int64 (n,); columns of the run alone by default.
    shapes
        Make the geometries.
    """
    numbers = np.arange(len(run)) if numbers is None else numbers
    out = ObjectColumns.empty(len(run)) if out is None else out
    before = set(out.measurements)
    read = partial(_read_chunk, run, out, numbers, shapes, Lock())
    chunks = [slice(low, low + CHUNK) for low in range(0, len(run), CHUNK)]
    if len(chunks) == 1:
        read(chunks[0])
    else:
        with ThreadPoolExecutor(THREADS) as pool:  # numpy gathers bytes for one while shapely makes objects of another
            names = dict.fromkeys(name for found in pool.map(read, chunks) for name in found)
        out.measurements |= {name: out.measurements.pop(name) for name in names if name not in before}
    return out


def _read_chunk(run: ScannedRun, out: ObjectColumns, numbers: Ints, shapes: bool, lock: Lock, part: slice) -> list[str]:
    """Read some records into their rows of the columns; return the names of their measurements in order."""
    rows, places = run.rows[part], numbers[part]
    at = _slice_or_places(places)
    rois, nuclei, locks = run.rois[rows], run.nuclei[rows], run.locks[rows]
    out.rois[at], out.nuclei[at] = rois, nuclei
    nucleated = np.flatnonzero(nuclei >= 0)
    layout = roi_layout(run, rois)
    if shapes:
        out.geometry[at] = read_rois_at(run, rois, layout)
        out.nucleus[places[nucleated]] = read_rois_at(run, nuclei[nucleated])
    out.ids[at], out.keys[at] = _ids(run, rows)
    out.kinds[at] = _by_token(run, run.starts[rows] + 1, _kind)
    out.classification[at] = _classes(run, locks + 5)
    out.locked[at] = are_locked(run, rows)
    out.probability[at] = gather_numbers(run.buffer, run.tails[rows] + 2, ">f8")
    out.plane[at] = _planes(run, rois, layout[0])
    seen: list[str] = []
    for lists, names, size in _lists(run, rows):
        seen += names
        raw = gather_bytes(run.buffer, run.lists[rows[lists]] + LIST_HEAD, len(names) * size)
        with np.errstate(invalid="ignore"):  # signalling NaN
            values = raw.view(f">f{size}").T.astype(np.float64)
        target = at if len(lists) == len(rows) else places[lists]
        with lock:
            columns = [out.measurement(name) for name in names]
        for column, new in zip(columns, values, strict=True):
            column[target] = new
    return seen


def _slice_or_places(places: Ints) -> Any:
    """Return a slice for places that follow each other: it is filled faster."""
    if len(places) and places[-1] - places[0] == len(places) - 1:
        return slice(int(places[0]), int(places[-1]) + 1)
    return places


def _ids(run: ScannedRun, rows: Ints) -> tuple[Objects, Ints]:
    with_id = np.flatnonzero(run.has_id[rows])
    raw = gather_bytes(run.buffer, run.starts[rows[with_id]] + HEAD, ID_LENGTH)
    text = raw.tobytes().decode("ascii")
    ids, keys = np.full(len(rows), None, dtype=object), np.zeros(len(rows), dtype=np.int64)
    ids[with_id] = [text[at : at + ID_LENGTH] for at in range(0, len(text), ID_LENGTH)]
    keys[with_id] = _keys(raw)
    return ids, keys


def id_keys(ids: Sequence[str]) -> Ints:
    """Return the numbers of n ids, int64 (n,), the same as :func:`read_run` gives."""
    text = b"".join(i.encode()[:ID_LENGTH].ljust(ID_LENGTH, b"\0") for i in ids)
    return _keys(np.frombuffer(text, dtype=np.uint8).reshape(-1, ID_LENGTH))


def _keys(texts: Any) -> Ints:
    """Join the first and the last digits of n ids, uint8 (n, 36): those of random ids hardly ever agree."""
    words = np.ascontiguousarray(texts).view(np.int32)
    keys: Ints = np.ascontiguousarray((words[:, :2] * np.int32(31)) ^ words[:, -2:]).view(np.int64).reshape(-1)
    return keys


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


def _lists(run: ScannedRun, rows: Ints) -> Iterator[tuple[Ints, list[str], int]]:
    """Yield, for each sort of measurement list, whose they are (numbers in `rows`), their names, bytes of a value."""
    lists = run.lists[rows]
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
        yield with_list[sorts == number], names, size


def read_rois_at(run: ScannedRun, at: Ints, layout: tuple[Ints, Ints, Ints, Ints] | None = None) -> Objects:
    """Return the geometries of n ROI records, object (n,); `at` are their byte offsets, `layout` their parts."""
    geometry = np.full(len(at), None, dtype=object)
    kinds, _, first, n = layout or roi_layout(run, at)
    boxes = np.flatnonzero(kinds == BOX)
    geometry[boxes] = _boxes(run, at[boxes])
    points = np.flatnonzero(kinds == POINTS)
    geometry[points] = _points(_vertices(run, first[points], n[points]), n[points])
    for size, rows in _polygon_sizes(kinds, n):
        geometry[rows] = _polygons(_rings(run, first[rows], size))
    return geometry


def _polygon_sizes(kinds: Ints, n: Ints) -> Iterator[tuple[int, Ints]]:
    """Yield each number of vertices with the polygons that have it."""
    polygons = np.flatnonzero(kinds == POLYGON)
    sizes = n[polygons]
    for size in pd.unique(sizes).tolist():
        yield size, polygons[sizes == size]


def read_rings_at(run: ScannedRun, at: Ints) -> Iterator[tuple[Ints, Floats]]:
    """Yield the outlines of those of n ROI records that are plain polygons, as (numbers in `at`, vertices).

    The vertices have the shape (k, m, 2), the first one again at the end; `at` are byte offsets.
    """
    kinds, _, first, n = roi_layout(run, at)
    for size, rows in _polygon_sizes(kinds, n):
        if size > 3:
            rings = _rings(run, first[rows], size)
            open_ = (rings[:, 0] != rings[:, size - 1]).any(axis=1)
            for chosen, m in ((open_, size + 1), (~open_, size)):
                if chosen.any():
                    yield rows[chosen], rings[chosen, :m]


def _rings(run: ScannedRun, first: Ints, size: int) -> Floats:
    """Vertices of n float arrays of the same size, and the first vertex again, shape (n, size + 1, 2)."""
    out = np.empty((len(first), size + 1, 2))
    y = 4 * size + 10
    raw = gather_bytes(run.buffer, first, y + 4 * size)
    with np.errstate(invalid="ignore"):  # signalling NaN
        out[:, :size, 0] = raw[:, : 4 * size].view(">f4")
        out[:, :size, 1] = raw[:, y:].view(">f4")
    check_finite(out[:, :size])
    out[:, size:] = out[:, :1]
    return out


def _planes(run: ScannedRun, at: Ints, kinds: Ints) -> Objects:
    planes = gather_bytes(run.buffer, at + 6, 12).view(">i4")
    boxes = np.flatnonzero(kinds == BOX)
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
