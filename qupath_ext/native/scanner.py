"""The fast path of the parser: long rows of like leaf objects, kept as bytes.

QuPath writes a detection, cell or tile without children as a record whose bytes are the same for all of them but for
the id, the measurement values, the class, the vertices and the lock: everything shared (class descriptors, measurement
names, classes) is a reference to its first occurrence. :class:`LeafScanner` learns the references from each leaf object
that was parsed token by token, then steps over the records that follow as long as they fit. What does not fit (a first
occurrence, a name, a colour, children, another kind of ROI) is left to the parser, which then asks again.
"""

from __future__ import annotations

import struct
from array import array
from typing import TYPE_CHECKING, Any

import numpy as np

from qupath_ext.native.tokens import BASE_HANDLE, Content, JArray, JObject, JString, Run

if TYPE_CHECKING:
    from qupath_ext.native.emitter import Emitter
    from qupath_ext.native.parser import Parser

__all__ = ["BOX", "LEAF_CLASSES", "POINTS", "POLYGON", "LeafScanner", "ScannedRun", "gather_bytes", "gather_numbers"]

LEAF_CLASSES = {
    "qupath.lib.objects.PathDetectionObject": "detection",
    "qupath.lib.objects.PathCellObject": "cell",
    "qupath.lib.objects.PathTileObject": "tile",
}
POLYGON, BOX, POINTS = 0, 1, 2
ROI_KINDS = {
    "qupath.lib.roi.PolygonROI$SerializationProxy": POLYGON,
    "qupath.lib.roi.RectangleROI$SerializationProxy": BOX,
    "qupath.lib.roi.EllipseROI$SerializationProxy": BOX,
    "qupath.lib.roi.LineROI$SerializationProxy": BOX,
    "qupath.lib.roi.PointsROI$SerializationProxy": POINTS,
}
LIST_CLASSES = {
    "qupath.lib.measurements.NumericMeasurementList$FloatList": 4,
    "qupath.lib.measurements.NumericMeasurementList$DoubleList": 8,
}
HEAD, HEAD_NO_ID, LIST_HEAD, STATS, BOX_SIZE = 47, 8, 27, 66, 51
NO_CHILDREN = b"\x77\x04\x00\x00\x00\x00"
ONE_STRING = b"\x74\x00\x24"
MIN_RUN = 4
INT = struct.Struct(">i")

Ints = np.ndarray[Any, np.dtype[np.int64]]
Bytes = np.ndarray[Any, np.dtype[np.uint8]]


def gather_bytes(buffer: Bytes, offsets: Ints, size: int) -> Bytes:
    """Bytes ``[offset, offset + size)`` for each of n offsets, shape (n, size)."""
    if len(offsets) == 0 or size == 0:
        return np.empty((len(offsets), size), dtype=np.uint8)
    return np.lib.stride_tricks.sliding_window_view(buffer, size)[offsets]


def gather_numbers(buffer: Bytes, offsets: Ints, dtype: str) -> np.ndarray[Any, Any]:
    """One big-endian number of `dtype` at each of n offsets, shape (n,), native byte order."""
    kind = np.dtype(dtype)
    raw = gather_bytes(buffer, offsets, kind.itemsize)
    with np.errstate(invalid="ignore"):  # signalling NaN
        return np.ascontiguousarray(raw).view(kind).reshape(-1).astype(kind.newbyteorder("="))


def _is_id(raw: bytes) -> bool:
    """Whether QuPath takes the 36 bytes for an object id; other text is left to the token parser."""
    return b"-" in raw and raw.isascii() and b"\x00" not in raw


def _ref(handle: int) -> bytes:
    return b"\x71" + INT.pack(BASE_HANDLE + handle)


class LeafScanner:
    """Learns the shared references of leaf objects and finds the records that use them."""

    def __init__(self, parser: Parser) -> None:
        self.parser = parser
        self.heads: dict[bytes, bool] = {}
        self.heads_no_id: dict[bytes, bool] = {}
        self.lists: dict[bytes, int] = {}
        self.rois: dict[bytes, int] = {}
        self.locks: set[bytes] = set()
        self.classes: set[bytes] = set()
        self.floats = b""
        self.stats = b"\x00"

    # ------------------------------------------------------------------ learning
    def learn(self, obj: JObject) -> bool:
        """Take over what a generically parsed object teaches; whether it was a leaf object at all."""
        kind = LEAF_CLASSES.get(obj.desc.name)
        if kind is None or len(obj.contents) < 8:
            return False
        for token in obj.contents[2:]:
            if isinstance(token, JObject):
                self._learn_part(obj, kind, token)
        return True

    def _learn_part(self, leaf: JObject, kind: str, token: JObject) -> None:
        name = token.desc.name
        if name == "qupath.lib.objects.MetadataMap":
            self._learn_head(leaf, kind, token)
        elif name in LIST_CLASSES:
            self._learn_head_no_id(leaf, kind)
            self._learn_list(token, LIST_CLASSES[name])
        elif name in ROI_KINDS:
            self._learn_roi(token, ROI_KINDS[name])
        elif name == "java.lang.Boolean":
            self.locks.add(self._known(token))
        elif name == "qupath.lib.objects.classes.PathClass":
            self.classes.add(self._known(token))

    def _known(self, token: Content) -> bytes:
        return _ref(self.parser.handle_of[id(token)])

    def _learn_head(self, leaf: JObject, kind: str, metadata: JObject) -> None:
        contents = metadata.contents
        if len(contents) != 3 or not isinstance(keys := contents[1], JArray) or not isinstance(contents[0], JObject):
            return
        if keys.length != 1 or not isinstance(key := keys.items[0], JString) or key.raw != b"Object ID":
            return
        one, strings = self._known(contents[0]), b"\x75" + self._known(keys.desc) + INT.pack(1)
        map_start = b"\x73" + self._known(metadata.desc) + one
        head = b"\x73" + self._known(leaf.desc) + b"\x70\x70" + map_start + strings + self._known(key) + strings
        self.heads[head + ONE_STRING] = kind == "cell"

    def _learn_head_no_id(self, leaf: JObject, kind: str) -> None:
        if not isinstance(leaf.contents[2], JObject) or leaf.contents[2].desc.name in LIST_CLASSES:
            self.heads_no_id[b"\x73" + self._known(leaf.desc) + b"\x70\x70"] = kind == "cell"

    def _learn_list(self, token: JObject, item_size: int) -> None:
        if len(token.parts) != 2 or len(token.parts[0].values) != 3:
            return
        closed, lookup, names = token.parts[0].values
        values = token.parts[1].values[0]
        if closed != b"\x01" or not isinstance(lookup, JObject) or not isinstance(names, JObject):
            return
        if not isinstance(values, JArray):
            return
        key = b"\x73" + self._known(token.desc) + b"\x01" + self._known(lookup) + self._known(names)
        key += b"\x75" + self._known(values.desc) + INT.pack(values.length)
        self.lists[key] = values.length * item_size

    def _learn_roi(self, token: JObject, kind: int) -> None:
        self.rois[b"\x73" + self._known(token.desc)] = kind
        for value in token.parts[0].values:
            if isinstance(value, JArray) and value.desc.name == "[F":
                self.floats = b"\x75" + self._known(value.desc)
            elif isinstance(value, JObject) and value.desc.name == "qupath.lib.roi.ClosedShapeStatistics":
                self.stats = b"\x73" + self._known(value.desc)

    # ------------------------------------------------------------------ scanning
    def scan(self, start: int, first_handle: int) -> ScannedRun | None:
        """Step over the records from byte `start` on; None if there are too few to be worth it."""
        records = _Records()
        pos, handle = start, 0
        while True:
            step = self._record(pos, records)
            if step is None:
                break
            records.start.append(pos)
            records.handle.append(handle)
            pos, taken = step
            handle += taken
        if len(records.start) < MIN_RUN:
            return None
        return ScannedRun(self.parser, records, end=pos, first_handle=first_handle, n_handles=handle)

    def _record(self, pos: int, records: _Records) -> tuple[int, int] | None:
        """Step over one record; returns where it ends and how many handles it takes, None if it does not fit."""
        data = self.parser.data
        is_cell = self.heads.get(data[pos : pos + HEAD])
        if is_cell is not None and data[pos + 83 : pos + 84] == b"\x78" and _is_id(data[pos + HEAD : pos + 83]):
            list_at, handles = pos + 84, 5
        else:
            is_cell = self.heads_no_id.get(data[pos : pos + HEAD_NO_ID])
            list_at, handles = pos + HEAD_NO_ID, 1
        lock_at = -1 if is_cell is None else self._list(list_at)
        if lock_at < 0:
            return None
        roi_at = self._lock_and_class(lock_at)
        step = None if roi_at < 0 else self._roi(roi_at)
        if step is None or data[step[0] : step[0] + 2] != b"\x77\x08":
            return None
        at, handles = step[0] + 10, handles + step[1] + (2 if data[list_at] == 0x73 else 0)
        nucleus_at = -1
        if is_cell:
            if data[at : at + 1] == b"\x70":
                at += 1
            else:
                nucleus_at = at
                step = self._roi(at)
                if step is None:
                    return None
                at, handles = step[0], handles + step[1]
        if data[at : at + 1] != b"\x78":
            return None
        records.list.append(list_at)
        records.lock.append(lock_at)
        records.roi.append(roi_at)
        records.nucleus.append(nucleus_at)
        return at + 1, handles

    def _list(self, at: int) -> int:
        """Step over measurements and the number of children; -1 if they do not fit."""
        data = self.parser.data
        if data[at : at + 1] == b"\x70":
            at += 1
        else:
            size = self.lists.get(data[at : at + LIST_HEAD])
            if size is None:
                return -1
            at += LIST_HEAD + size
        return at + 6 if data[at : at + 6] == NO_CHILDREN else -1

    def _lock_and_class(self, at: int) -> int:
        """Step over lock and class; -1 if they do not fit."""
        data = self.parser.data
        if data[at : at + 5] not in self.locks:
            return -1
        if data[at + 5 : at + 6] == b"\x70":
            return at + 6
        return at + 10 if data[at + 5 : at + 10] in self.classes else -1

    def _roi(self, at: int) -> tuple[int, int] | None:
        data = self.parser.data
        kind = self.rois.get(data[at : at + 6])
        if kind is None or data[at + BOX_SIZE - 1 : at + BOX_SIZE] == b"":
            return None
        if kind == BOX:
            return (at + BOX_SIZE, 1) if data[at + BOX_SIZE - 1] == 0x70 else None
        if data[at + 18] != 0x70:
            return None
        handles = 3
        at += 19
        if kind == POLYGON:
            if data[at] == 0x70:
                at += 1
            elif data[at : at + 6] == self.stats:
                at += STATS
                handles = 4
            else:
                return None
        if data[at : at + 6] != self.floats:
            return None
        n = data[at + 6 : at + 10]
        step = 10 + 4 * int.from_bytes(n, "big")
        at += step
        if data[at : at + 6] != self.floats or data[at + 6 : at + 10] != n:
            return None
        return at + step, handles


class _Records:
    """Byte offsets of the parts of each record, and its first handle within the run."""

    __slots__ = ("handle", "list", "lock", "nucleus", "roi", "start")

    def __init__(self) -> None:
        self.start = array("q")
        self.handle = array("q")
        self.list = array("q")
        self.lock = array("q")
        self.roi = array("q")
        self.nucleus = array("q")


class ScannedRun(Run):
    """The records that one scan found, or some of them.

    Attributes
    ----------
    rows
        Which of the scanned records belong to the run, int64, ascending.
    """

    def __init__(self, parser: Parser, records: _Records, *, end: int, first_handle: int, n_handles: int) -> None:
        self.parser = parser
        self.end = end
        self.first_handle = first_handle
        self.n_handles = n_handles
        self.buffer: Bytes = np.frombuffer(parser.data, dtype=np.uint8)
        self.handles = parser.handles
        self.starts = _column(records.start)
        self.stops = np.append(self.starts[1:], end)
        self.handle_offsets = _column(records.handle)
        self.lists = _column(records.list)
        self.locks = _column(records.lock)
        self.rois = _column(records.roi)
        self.nuclei = _column(records.nucleus)
        self.has_id = self.lists - self.starts != HEAD_NO_ID
        self.materialised: dict[int, JObject] = {}
        self.n_records = len(self.starts)
        self.source = self
        self.rows: Ints = np.arange(self.n_records)

    def part(self, rows: Ints) -> ScannedRun:
        """Return the same run reduced to some of its records."""
        out = object.__new__(ScannedRun)
        out.__dict__.update(self.__dict__)
        out.rows = rows
        return out

    def __len__(self) -> int:
        return len(self.rows)

    def member(self, handle: int) -> int | None:
        """Return the number of the record whose path object has this handle."""
        offset = handle - self.first_handle
        index = int(np.searchsorted(self.handle_offsets, offset))
        found = index < self.n_records and int(self.handle_offsets[index]) == offset
        return index if found else None

    def materialise(self, index: int) -> JObject:
        """One record as tokens; always the same object for the same record."""
        obj = self.materialised.get(index)
        if obj is None:
            obj = self.parser.object_at(int(self.starts[index]), self.handles)
            self.materialised[index] = obj
        return obj

    def changed_members(self) -> list[JObject]:
        """Return the members that have become tokens of their own, in order."""
        rows = sorted(self.materialised)
        return [self.materialised[row] for row in rows if self.rows[np.searchsorted(self.rows, row) % len(self)] == row]

    def ids(self) -> np.ndarray[Any, np.dtype[np.bytes_]]:
        """Return the ids, ``S36``, shape (n,); all rows must have one."""
        raw = np.ascontiguousarray(gather_bytes(self.buffer, self.starts[self.rows] + HEAD, 36))
        return raw.view("S36").reshape(-1)

    def emit(self, emitter: Emitter) -> None:
        """Write the records; implemented in :mod:`qupath_ext.native.rerun`."""
        from qupath_ext.native.rerun import emit_scanned

        emit_scanned(self, emitter)


def _column(values: array[int]) -> Ints:
    return np.frombuffer(values, dtype=np.int64).copy() if len(values) else np.empty(0, dtype=np.int64)
