"""New detections, cells and tiles in bulk: records put together with numpy.

The first record of each sort is written token by token, which puts all that is shared (descriptors, names, classes)
into the stream; of all others every byte but the variable ones is a constant. Memory is bounded by the chunk.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import shapely

from qupath_ext.native.catalog import LISTS, OBJECTS, Factory
from qupath_ext.native.emitter import Emitter
from qupath_ext.native.gather import Bytes, Ints, at_every_byte, gather_bytes
from qupath_ext.native.pathobjects import CLASS_OF_KIND, NewObject, make_object
from qupath_ext.native.roi import MAX_POLYGON_VERTICES, PROXY, ROI
from qupath_ext.native.scanner import BOX, BOX_SIZE, NO_CHILDREN, ONE_STRING, POINTS, POLYGON
from qupath_ext.native.tokens import BASE_HANDLE, Content, Run

__all__ = ["ABSENT", "OTHER", "BulkColumns", "NewRun", "roi_kinds"]

CHUNK = 1 << 15
OTHER, ABSENT = -1, -2
KIND_CODES = POINTS - ABSENT + 1
ROI_NAMES = {POLYGON: "PolygonROI", BOX: "RectangleROI", POINTS: "PointsROI"}
ROI_HANDLES = {POLYGON: 3, BOX: 1, POINTS: 3, ABSENT: 0}
DOUBLE = b"\x77\x08"
PROBABILITY_SIZE = 10

Objects = np.ndarray[Any, np.dtype[np.object_]]
Floats = np.ndarray[Any, np.dtype[np.float64]]


def roi_kinds(geometries: Objects) -> Ints:
    """Return the ROI kind of each geometry, shape (n,): ``POLYGON``, ``BOX``, ``POINTS``, ``OTHER`` or ``ABSENT``."""
    types = shapely.get_type_id(geometries)
    out = np.full(len(geometries), OTHER, dtype=np.int64)
    out[types == -1] = ABSENT
    out[(types == 0) | (types == 4)] = POINTS
    n_points = shapely.get_num_coordinates(geometries)
    simple = (types == 3) & (shapely.get_num_interior_rings(geometries) == 0)
    out[simple & (n_points - 1 <= MAX_POLYGON_VERTICES)] = POLYGON
    four = np.flatnonzero((out == POLYGON) & (n_points == 5))
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
    probability: Floats
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
            probability=self.probability[rows],
            planes=self.planes[rows],
            names=self.names,
            values=[value[rows] for value in self.values],
        )


class NewRun(Run):
    """New leaf objects of one type, to be written in bulk; :meth:`part` gives those of one parent."""

    def __init__(self, columns: BulkColumns, factory: Factory) -> None:
        self.columns = columns
        self.factory = factory
        self.roi_kinds = roi_kinds(columns.geometry)
        self.nucleus_kinds = roi_kinds(columns.nucleus)
        self.rows = range(len(columns.ids))
        self._source = self
        self._writer: _RunWriter | None = None

    def part(self, rows: range) -> NewRun:
        """Return some of the objects, one after the other; all parts share the columns."""
        out = object.__new__(NewRun)
        out.__dict__.update(self.__dict__)
        out.rows = rows
        return out

    def __len__(self) -> int:
        return len(self.rows)

    def emit(self, emitter: Emitter) -> None:
        """Write the objects."""
        source = self._source
        if source._writer is None or source._writer.emitter is not emitter:
            source._writer = _RunWriter(source, emitter)
        source._writer.write(self.rows.start, self.rows.stop)

    def sorts(self) -> Ints:
        """Return a number for each object, int64 (n,), the same for those that share the same tokens."""
        columns = self.columns
        shape = (len(columns.classes) + 1, 2, KIND_CODES, KIND_CODES)
        kinds = (self.roi_kinds - ABSENT, self.nucleus_kinds - ABSENT)
        out, _ = pd.factorize(np.ravel_multi_index((columns.codes + 1, columns.locked, *kinds), shape))
        return out

    # ------------------------------------------------------------------ what is shared
    def shared(self, at: int) -> list[Content]:
        """Return the tokens that the record of an object refers to."""
        factory, columns = self.factory, self.columns
        code = int(columns.codes[at])
        out: list[Content] = [
            factory.desc(CLASS_OF_KIND[columns.kind]),
            *self._id_tokens(),
            factory.boolean(bool(columns.locked[at])),
        ]
        if columns.names:
            out += self._list_tokens()
        if code >= 0:
            out.append(factory.path_class(columns.classes[code]))
        for kind in (int(self.roi_kinds[at]), int(self.nucleus_kinds[at])):
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
        lists = self.factory.desc(LISTS + "NumericMeasurementList$FloatList")
        return [lists, *self.factory.names(self.columns.names), self.factory.desc("[F")]

    def generic(self, at: int) -> Content:
        """Return an object as a token."""
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
            probability=float(columns.probability[at]),
            plane=(c, z, t),
            measurements={name: float(value[at]) for name, value in zip(columns.names, columns.values, strict=True)},
        )
        return make_object(new, self.factory)


class _RunWriter:
    """Writes parts of a run to one stream: records are made many at a time, for the parts that follow as well."""

    def __init__(self, run: NewRun, emitter: Emitter) -> None:
        self.run = run
        self.emitter = emitter
        self.sorts = run.sorts()
        self.known = np.zeros(int(self.sorts.max(initial=-1)) + 1, dtype=bool)
        self.low = self.high = 0
        self.size = 0
        self.buffer: Bytes = np.empty(0, dtype=np.uint8)
        self.starts: Ints = np.zeros(1, dtype=np.int64)
        self.handles: Ints = np.zeros(1, dtype=np.int64)

    def write(self, start: int, stop: int) -> None:
        """Write the objects of some rows; the first of each sort token by token, if it is the first in the stream."""
        while start < stop:
            at = self._first_unknown(start, stop)
            self._copy(start, at)
            start = at
            if at < stop:
                self.known[self.sorts[at]] = True
                if not self._is_shared(at):
                    self.emitter.content(self.run.generic(at))
                    start = at + 1

    def _is_shared(self, at: int) -> bool:
        return all(self.emitter.handle(token) is not None for token in self.run.shared(at))

    def _first_unknown(self, start: int, stop: int) -> int:
        unknown = np.flatnonzero(~self.known[self.sorts[start:stop]])
        return start + int(unknown[0]) if len(unknown) else stop

    def _copy(self, start: int, stop: int) -> None:
        while start < stop:
            if not self.low <= start < self.high:
                self._build(start, stop)
            end = min(stop, self.high)
            a, b = start - self.low, end - self.low
            self.emitter.raw(self.buffer[self.starts[a] : self.starts[b]].tobytes())
            self.emitter.next_handle += int(self.handles[b] - self.handles[a])
            start = end

    def _build(self, start: int, stop: int) -> None:
        """Make records from row `start` on: twice as many each time, as long as they turn out to be used."""
        self.size = max(2 * self.size if start == self.high else 0, stop - start)
        limit = min(start + min(self.size, CHUNK), len(self.sorts))
        self.low, self.high = start, self._first_unknown(start, limit)
        chunk = _Chunk(self.run, slice(self.low, self.high), self.emitter)
        self.buffer, self.starts = chunk.build()
        self.handles = np.concatenate([[0], np.cumsum(chunk.handles())])


class _Chunk:
    """The records of some rows of a run."""

    def __init__(self, run: NewRun, rows: slice, emitter: Emitter) -> None:
        self.run = run
        self.columns = run.columns.take(rows)
        self.roi_kinds = run.roi_kinds[rows]
        self.nucleus_kinds = run.nucleus_kinds[rows]
        self.emitter = emitter

    def _ref(self, token: Content) -> bytes:
        handle = self.emitter.handle(token)
        if handle is None:
            raise LookupError("shared token not written yet")
        return b"\x71" + struct.pack(">i", BASE_HANDLE + handle)

    def build(self) -> tuple[Bytes, Ints]:
        """All records of the chunk as one buffer of bytes, and where each begins in it and the last one ends."""
        columns = self.columns
        n, cell = len(columns.ids), columns.kind == "cell"
        fronts, front_sizes = self._fronts()
        roi_sizes, roi_n = _roi_sizes(columns.geometry, self.roi_kinds)
        nucleus_sizes, nucleus_n = (
            _roi_sizes(columns.nucleus, self.nucleus_kinds) if cell else (np.zeros(n, int), roi_n)
        )
        sizes = front_sizes + roi_sizes + PROBABILITY_SIZE + nucleus_sizes + 1
        starts = np.cumsum(sizes) - sizes
        buffer = np.empty(int(sizes.sum()), dtype=np.uint8)
        for size in np.unique(front_sizes).tolist():
            rows = np.flatnonzero(front_sizes == size)
            _put(buffer, starts[rows], fronts[rows, :size])
        at = starts + front_sizes
        self._put_rois(buffer, at, columns.geometry, self.roi_kinds, roi_n)
        at += roi_sizes
        tail = np.empty(n, dtype=[("mark", f"V{len(DOUBLE)}"), ("value", ">f8")])
        tail["mark"], tail["value"] = np.void(DOUBLE), columns.probability
        _put(buffer, at, tail.view(np.uint8).reshape(n, -1))
        at += PROBABILITY_SIZE
        if cell:
            self._put_rois(buffer, at, columns.nucleus, self.nucleus_kinds, nucleus_n)
        buffer[at + nucleus_sizes] = 0x78
        return buffer, np.append(starts, len(buffer))

    def _fronts(self) -> tuple[Bytes, Ints]:
        """Everything before the ROI, shape (n, longest), and how much of that each record has."""
        columns, factory = self.columns, self.run.factory
        locks = [
            self._ref(factory.boolean(value)) if (columns.locked == value).any() else b"" for value in (False, True)
        ]
        classes = [b"\x70", *(self._ref(factory.path_class(name)) if used else b"" for name, used in self._used())]
        shared = np.array([lock.ljust(5) + name.ljust(5) for lock in locks for name in classes], dtype="V10")
        lists = self._lists()
        size = 84 + lists.shape[1] + len(NO_CHILDREN)
        out = np.empty((len(columns.ids), size + 10), dtype=np.uint8)
        out[:, :84] = self._heads()
        out[:, 84 : 84 + lists.shape[1]] = lists
        out[:, size - len(NO_CHILDREN) : size] = _row(NO_CHILDREN)
        sort = columns.locked * len(classes) + columns.codes + 1
        out[:, size:] = shared[sort].view(np.uint8).reshape(-1, 10)
        return out, size + np.where(columns.codes >= 0, 10, 6)

    def _used(self) -> list[tuple[str, bool]]:
        used = set(np.unique(self.columns.codes).tolist())
        return [(name, code in used) for code, name in enumerate(self.columns.classes)]

    def handles(self) -> Ints:
        """How many handles each record takes, int64 (n,)."""
        out = np.full(len(self.columns.ids), 7 if self.columns.names else 5, dtype=np.int64)
        for kinds in (self.roi_kinds, self.nucleus_kinds) if self.columns.kind == "cell" else (self.roi_kinds,):
            for kind, count in ROI_HANDLES.items():
                out[kinds == kind] += count
        return out

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
        boxes = np.flatnonzero(kinds == BOX)
        if len(boxes):
            self._put_boxes(buffer, at, geometry, boxes)
        for kind in (POLYGON, POINTS):
            rows = np.flatnonzero(kinds == kind)
            if len(rows):
                self._put_outlines(buffer, at, geometry, rows, n, kind)

    def _roi_head(self, kind: int) -> bytes:
        return b"\x73" + self._ref(self.run.factory.desc(ROI + ROI_NAMES[kind] + PROXY))

    def _put_boxes(self, buffer: Bytes, at: Ints, geometry: Objects, rows: Ints) -> None:
        out = np.empty(len(rows), dtype=BOX_ROI)
        out["head"], out["name"] = np.void(self._roi_head(BOX)), 0x70
        out["c"], out["z"], out["t"] = self.columns.planes[rows].T
        out["corners"] = shapely.bounds(geometry[rows])[:, [0, 2, 1, 3]]
        _put(buffer, at[rows], out.view(np.uint8).reshape(len(rows), -1))

    def _put_outlines(self, buffer: Bytes, at: Ints, geometry: Objects, rows: Ints, n: Ints, kind: int) -> None:
        """Write polygons or points, all those of a size at a time."""
        stored = shapely.get_num_coordinates(geometry[rows])
        first = np.cumsum(stored) - stored
        points = shapely.get_coordinates(geometry[rows]).astype(">f4")
        head, nulls = self._roi_head(kind), b"\x70\x70" if kind == POLYGON else b"\x70"
        floats = b"\x75" + self._ref(self.run.factory.desc("[F"))
        sizes = n[rows]
        for size in np.unique(sizes).tolist():
            same = np.flatnonzero(sizes == size)
            out = np.empty(len(same), dtype=_outline(size, len(nulls)))
            out["head"], out["nulls"] = np.void(head), np.void(nulls)
            out["c"], out["z"], out["t"] = self.columns.planes[rows[same]].T
            raw = gather_bytes(points.view(np.uint8).reshape(-1), 8 * first[same], 8 * size)
            vertices = raw.view(">f4").reshape(-1, size, 2)
            for axis, name in enumerate("xy"):
                out[f"{name}_array"], out[f"n_{name}"] = np.void(floats), size
                out[name] = vertices[:, :, axis]
            _put(buffer, at[rows[same]], out.view(np.uint8).reshape(len(same), -1))


BOX_ROI = np.dtype(
    [("head", "V6"), ("c", ">i4"), ("t", ">i4"), ("corners", ">f8", (4,)), ("z", ">i4"), ("name", "u1")], align=False
)


def _outline(size: int, n_nulls: int) -> np.dtype[Any]:
    """Layout of a polygon of `size` vertices (two nulls: no name, no statistics) or of as many points (one null)."""
    plane = [("head", "V6"), ("c", ">i4"), ("t", ">i4"), ("z", ">i4"), ("nulls", f"V{n_nulls}")]
    axes = [(f"{name}_array", "V6") for name in "xy"], [(f"n_{name}", ">i4") for name in "xy"]
    x, y = ((array, number, (name, ">f4", (size,))) for array, number, name in zip(*axes, "xy", strict=True))
    return np.dtype([*plane, *x, *y], align=False)


def _roi_sizes(geometry: Objects, kinds: Ints) -> tuple[Ints, Ints]:
    """Bytes and vertices of each ROI record."""
    n = shapely.get_num_coordinates(geometry).astype(np.int64) - (kinds == POLYGON)
    out = np.ones(len(kinds), dtype=np.int64)
    for kind, fixed, per_vertex in ((POLYGON, 40, 8), (BOX, BOX_SIZE, 0), (POINTS, 39, 8)):
        out[kinds == kind] = fixed + per_vertex * n[kinds == kind]
    return out, n


def _row(data: bytes) -> Bytes:
    return np.frombuffer(data, dtype=np.uint8)


def _put(buffer: Bytes, offsets: Ints, rows: Bytes) -> None:
    """Write n rows of bytes at n offsets."""
    texts = np.ascontiguousarray(rows).view(f"V{rows.shape[1]}").reshape(-1)
    at_every_byte(buffer, texts.dtype)[offsets] = texts
