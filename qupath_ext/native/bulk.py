"""New detections, cells and tiles in bulk: records put together with numpy.

The first record of each sort is written token by token, which puts all that is shared (descriptors, names, classes)
into the stream; of all others every byte but the variable ones is a constant. Memory is bounded by the chunk.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any

import numpy as np
import shapely

from qupath_ext.native.catalog import OBJECTS, Factory
from qupath_ext.native.emitter import Emitter
from qupath_ext.native.pathobjects import CLASS_OF_KIND, MEASUREMENTS, NewObject, make_object
from qupath_ext.native.roi import PROXY, ROI
from qupath_ext.native.scanner import BOX, BOX_SIZE, NO_CHILDREN, ONE_STRING, POINTS, POLYGON, Bytes, Ints
from qupath_ext.native.tokens import BASE_HANDLE, Content, Run

__all__ = ["ABSENT", "OTHER", "BulkColumns", "NewRun", "roi_kinds"]

CHUNK = 50_000
OTHER, ABSENT = -1, -2
ROI_NAMES = {POLYGON: "PolygonROI", BOX: "RectangleROI", POINTS: "PointsROI"}
ROI_HANDLES = {POLYGON: 3, BOX: 1, POINTS: 3, ABSENT: 0}
NOT_A_NUMBER = b"\x77\x08" + struct.pack(">d", float("nan"))

Objects = np.ndarray[Any, np.dtype[np.object_]]
Floats = np.ndarray[Any, np.dtype[np.float64]]


def roi_kinds(geometries: Objects) -> Ints:
    """Return the ROI kind of each geometry, shape (n,): ``POLYGON``, ``BOX``, ``POINTS``, ``OTHER`` or ``ABSENT``."""
    types = shapely.get_type_id(geometries)
    out = np.full(len(geometries), OTHER, dtype=np.int64)
    out[types == -1] = ABSENT
    out[(types == 0) | (types == 4)] = POINTS
    out[(types == 3) & (shapely.get_num_interior_rings(geometries) == 0)] = POLYGON
    four = np.flatnonzero((out == POLYGON) & (shapely.get_num_coordinates(geometries) == 5))
    ring = shapely.get_coordinates(geometries[four]).reshape(-1, 5, 2)
    step = ring[:, 1:] == ring[:, :-1]
    upright, level = np.array([True, False, True, False]), np.array([False, True, False, True])
    box = np.zeros(len(four), dtype=bool)
    for first, second in ((upright, level), (level, upright)):
        box |= (step[:, :, 0] >= first).all(axis=1) & (step[:, :, 1] >= second).all(axis=1)
    out[four[box]] = BOX
    return out


@dataclass
class BulkColumns:
    """n objects of one type: ids ``S36``, geometries, class codes (-1 unclassified) into `classes`, planes (n, 3)."""

    kind: str
    ids: np.ndarray[Any, np.dtype[np.bytes_]]
    geometry: Objects
    nucleus: Objects
    codes: Ints
    classes: tuple[str, ...]
    locked: np.ndarray[Any, np.dtype[np.bool_]]
    planes: Ints
    names: tuple[str, ...]
    values: list[np.ndarray[Any, np.dtype[np.float32]]]

    def take(self, rows: Any) -> BulkColumns:
        """Return some of the objects."""
        return BulkColumns(
            kind=self.kind,
            ids=self.ids[rows],
            geometry=self.geometry[rows],
            nucleus=self.nucleus[rows],
            codes=self.codes[rows],
            classes=self.classes,
            locked=self.locked[rows],
            planes=self.planes[rows],
            names=self.names,
            values=[value[rows] for value in self.values],
        )


class NewRun(Run):
    """New leaf objects of one type, to be written in bulk."""

    def __init__(self, columns: BulkColumns, factory: Factory) -> None:
        self.columns = columns
        self.factory = factory
        self.roi_kinds = roi_kinds(columns.geometry)
        self.nucleus_kinds = roi_kinds(columns.nucleus)

    def __len__(self) -> int:
        return len(self.columns.ids)

    def emit(self, emitter: Emitter) -> None:
        """Write the objects."""
        columns = self.columns
        sorts = np.column_stack([columns.codes, columns.locked, self.roi_kinds, self.nucleus_kinds])
        unique, first = np.unique(sorts, axis=0, return_index=True)
        start = 0
        for at, sort in sorted(zip(first.tolist(), unique.tolist(), strict=True)):
            if all(emitter.handle(token) is not None for token in self._shared(*sort)):
                continue
            self._emit_chunks(start, at, emitter)
            emitter.content(self._generic(at))
            start = at + 1
        self._emit_chunks(start, len(self), emitter)

    # ------------------------------------------------------------------ what is shared
    def _shared(self, code: int, locked: int, roi_kind: int, nucleus_kind: int) -> list[Content]:
        factory, columns = self.factory, self.columns
        out: list[Content] = [
            factory.desc(CLASS_OF_KIND[columns.kind]),
            *self._id_tokens(),
            factory.boolean(bool(locked)),
        ]
        if columns.names:
            out += self._list_tokens()
        if code >= 0:
            out.append(factory.path_class(columns.classes[code]))
        for kind in (roi_kind, nucleus_kind):
            if kind != ABSENT:
                out.append(factory.desc(ROI + ROI_NAMES[kind] + PROXY))
            if kind in (POLYGON, POINTS):
                out.append(factory.desc("[F"))
        return out

    def _id_tokens(self) -> list[Content]:
        return [
            self.factory.desc(OBJECTS + "MetadataMap"),
            self.factory.one,
            self.factory.desc("[Ljava.lang.Object;"),
            self.factory.object_id,
        ]

    def _list_tokens(self) -> list[Content]:
        lists = self.factory.desc(MEASUREMENTS + "NumericMeasurementList$FloatList")
        return [lists, *self.factory.names(self.columns.names), self.factory.desc("[F")]

    def _generic(self, at: int) -> Content:
        columns = self.columns
        code = int(columns.codes[at])
        c, z, t = columns.planes[at].tolist()
        new = NewObject(
            id=columns.ids[at].decode(),
            kind=columns.kind,
            geometry=columns.geometry[at],
            nucleus=columns.nucleus[at],
            classification=columns.classes[code] if code >= 0 else None,
            locked=bool(columns.locked[at]),
            plane=(c, z, t),
            measurements={name: float(value[at]) for name, value in zip(columns.names, columns.values, strict=True)},
        )
        return make_object(new, self.factory)

    # ------------------------------------------------------------------ records
    def _emit_chunks(self, start: int, stop: int, emitter: Emitter) -> None:
        for low in range(start, stop, CHUNK):
            rows = slice(low, min(low + CHUNK, stop))
            chunk = _Chunk(self, rows, emitter)
            emitter.raw(chunk.build().tobytes())
            emitter.next_handle += chunk.n_handles


class _Chunk:
    """The records of some rows of a run."""

    def __init__(self, run: NewRun, rows: slice, emitter: Emitter) -> None:
        self.run = run
        self.columns = run.columns.take(rows)
        self.roi_kinds = run.roi_kinds[rows]
        self.nucleus_kinds = run.nucleus_kinds[rows]
        self.emitter = emitter
        self.n_handles = 0

    def _ref(self, token: Content) -> bytes:
        handle = self.emitter.handle(token)
        if handle is None:
            raise LookupError("shared token not written yet")
        return b"\x71" + struct.pack(">i", BASE_HANDLE + handle)

    def build(self) -> Bytes:
        """All records of the chunk as one buffer of bytes."""
        columns, factory = self.columns, self.run.factory
        n, cell = len(columns.ids), columns.kind == "cell"
        lists = self._lists()
        classes = [b"\x70", *(self._ref(factory.path_class(name)) if used else b"" for name, used in self._used())]
        class_sizes = np.array([len(text) for text in classes])[columns.codes + 1]
        roi_sizes, roi_n = _roi_sizes(columns.geometry, self.roi_kinds)
        nucleus_sizes, nucleus_n = (
            _roi_sizes(columns.nucleus, self.nucleus_kinds) if cell else (np.zeros(n, int), roi_n)
        )
        list_at = 84
        lock_at = list_at + lists.shape[1] + len(NO_CHILDREN)
        sizes = lock_at + 5 + class_sizes + roi_sizes + len(NOT_A_NUMBER) + nucleus_sizes + 1
        starts = np.cumsum(sizes) - sizes
        buffer = np.zeros(int(sizes.sum()), dtype=np.uint8)
        _put(buffer, starts, self._heads())
        _put(buffer, starts + list_at, lists)
        _put(buffer, starts + lock_at - len(NO_CHILDREN), _row(NO_CHILDREN))
        for value in np.unique(columns.locked).tolist():
            _put(buffer, starts[columns.locked == value] + lock_at, _row(self._ref(factory.boolean(value))))
        for code in np.unique(columns.codes).tolist():
            _put(buffer, starts[columns.codes == code] + lock_at + 5, _row(classes[code + 1]))
        at = starts + lock_at + 5 + class_sizes
        self._put_rois(buffer, at, columns.geometry, self.roi_kinds, roi_n)
        at = at + roi_sizes
        _put(buffer, at, _row(NOT_A_NUMBER))
        at = at + len(NOT_A_NUMBER)
        if cell:
            self._put_rois(buffer, at, columns.nucleus, self.nucleus_kinds, nucleus_n)
        buffer[at + nucleus_sizes] = 0x78
        self._count(n, bool(columns.names), cell)
        return buffer

    def _used(self) -> list[tuple[str, bool]]:
        used = set(np.unique(self.columns.codes).tolist())
        return [(name, code in used) for code, name in enumerate(self.columns.classes)]

    def _count(self, n: int, has_list: bool, cell: bool) -> None:
        self.n_handles = n * (7 if has_list else 5)
        for kinds in (self.roi_kinds, self.nucleus_kinds) if cell else (self.roi_kinds,):
            self.n_handles += sum(count * int((kinds == kind).sum()) for kind, count in ROI_HANDLES.items())

    def _heads(self) -> Bytes:
        metadata, one, array, object_id = (self._ref(token) for token in self.run._id_tokens())
        strings = b"\x75" + array + struct.pack(">i", 1)
        desc = self._ref(self.run.factory.desc(CLASS_OF_KIND[self.columns.kind]))
        head = b"\x73" + desc + b"\x70\x70" + b"\x73" + metadata + one + strings + object_id + strings + ONE_STRING
        rows = np.empty((len(self.columns.ids), 84), dtype=np.uint8)
        rows[:, :47] = _row(head)
        rows[:, 47:83] = np.ascontiguousarray(self.columns.ids).view(np.uint8).reshape(-1, 36)
        rows[:, 83] = 0x78
        return rows

    def _lists(self) -> Bytes:
        columns = self.columns
        if not columns.names:
            return np.full((len(columns.ids), 1), 0x70, dtype=np.uint8)
        lists, lookup, names, floats = (self._ref(token) for token in self.run._list_tokens())
        head = b"\x73" + lists + b"\x01" + lookup + names + b"\x75" + floats + struct.pack(">i", len(columns.names))
        values = np.column_stack(columns.values).astype(">f4")
        return np.concatenate(
            [np.broadcast_to(_row(head), (len(columns.ids), len(head))), values.view(np.uint8)], axis=1
        )

    def _put_rois(self, buffer: Bytes, at: Ints, geometry: Objects, kinds: Ints, n: Ints) -> None:
        buffer[at[kinds == ABSENT]] = 0x70
        for kind in (POLYGON, BOX, POINTS):
            rows = np.flatnonzero(kinds == kind)
            if len(rows) == 0:
                continue
            places = at[rows]
            desc = self.run.factory.desc(ROI + ROI_NAMES[kind] + PROXY)
            _put(buffer, places, _row(b"\x73" + self._ref(desc)))
            c, z, t = (_big(axis, ">i4") for axis in self.columns.planes[rows].T)
            _put(buffer, places + 6, c)
            _put(buffer, places + 10, t)
            if kind == BOX:
                bounds = shapely.bounds(geometry[rows])
                _put(buffer, places + 14, _big(bounds[:, [0, 2, 1, 3]], ">f8"))
                _put(buffer, places + 46, z)
                buffer[places + BOX_SIZE - 1] = 0x70
                continue
            _put(buffer, places + 14, z)
            nulls = 2 if kind == POLYGON else 1
            _put(buffer, places + 18, _row(b"\x70" * nulls))
            self._put_vertices(buffer, places + 18 + nulls, geometry[rows], n[rows])

    def _put_vertices(self, buffer: Bytes, at: Ints, geometry: Objects, n: Ints) -> None:
        floats = _row(b"\x75" + self._ref(self.run.factory.desc("[F")))
        stored = shapely.get_num_coordinates(geometry)
        points = shapely.get_coordinates(geometry)
        within = np.arange(len(points)) - np.repeat(np.cumsum(stored) - stored, stored)
        kept = within < np.repeat(n, stored)  # a ring repeats its first vertex
        points, within = points[kept], within[kept]
        for axis in (0, 1):
            start = at + axis * (10 + 4 * n)
            _put(buffer, start, floats)
            _put(buffer, start + 6, _big(n, ">i4"))
            _put(buffer, np.repeat(start + 10, n) + 4 * within, _big(points[:, axis], ">f4"))


def _roi_sizes(geometry: Objects, kinds: Ints) -> tuple[Ints, Ints]:
    """Bytes and vertices of each ROI record."""
    n = shapely.get_num_coordinates(geometry).astype(np.int64) - (kinds == POLYGON)
    out = np.ones(len(kinds), dtype=np.int64)
    for kind, fixed, per_vertex in ((POLYGON, 40, 8), (BOX, BOX_SIZE, 0), (POINTS, 39, 8)):
        out[kinds == kind] = fixed + per_vertex * n[kinds == kind]
    return out, n


def _row(data: bytes) -> Bytes:
    return np.frombuffer(data, dtype=np.uint8)


def _big(values: np.ndarray[Any, Any], dtype: str) -> Bytes:
    """Big-endian bytes of n rows of numbers, shape (n, bytes of a row)."""
    return np.ascontiguousarray(values.astype(dtype)).view(np.uint8).reshape(len(values), -1)


def _put(buffer: Bytes, offsets: Ints, rows: Bytes) -> None:
    """Write rows of bytes (or one row for all) at n offsets."""
    if len(offsets):
        window = np.lib.stride_tricks.sliding_window_view(buffer, rows.shape[-1], writeable=True)
        window[offsets] = rows
