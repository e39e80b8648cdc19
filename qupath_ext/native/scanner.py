"""The fast path of the parser: long rows of like leaf objects, kept as bytes.

QuPath writes a detection, cell or tile without children as a record whose bytes are the same for all of them but for
the id, the measurement values, the class, the vertices and the lock: everything shared (class descriptors, measurement
names, classes) is a reference to its first occurrence. :class:`LeafScanner` learns the references from each leaf object
that was parsed token by token, and takes the records that follow as long as they fit. What does not fit (a first
occurrence, a name, a colour, children, another kind of ROI) is left to the parser, which then asks again.

Records are found with numpy, a stretch of bytes at a time: wherever the first bytes of a record stand, the layout is
followed from there, and a run is a chain of records each of which ends where the next one begins. So bytes that look
like a record by chance, inside of one, do no harm.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from qupath_ext.native.gather import Bytes, Ints, gather_bytes
from qupath_ext.native.tokens import BASE_HANDLE, Content, JArray, JObject, JString, Run

if TYPE_CHECKING:
    from qupath_ext.native.emitter import Emitter
    from qupath_ext.native.parser import Parser

__all__ = [
    "BOX",
    "LEAF_CLASSES",
    "POINTS",
    "POLYGON",
    "LeafScanner",
    "ScannedRun",
]

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
NULL, REFERENCE, OBJECT, END = 0x70, 0x71, 0x73, 0x78
NO_CHILDREN = b"\x77\x04\x00\x00\x00\x00"
ONE_STRING = b"\x74\x00\x24"
MIN_RUN = 4
FIRST_STRETCH, LAST_STRETCH = 1 << 15, 1 << 23
SHARED_STRETCH = 1 << 19
"""Bytes from which on two threads share a stretch."""
INT = struct.Struct(">i")

FRONT = np.dtype([("head", f"V{HEAD}"), ("id", "u1", (36,)), ("end", "u1")])
MIDDLE = np.dtype(
    [("children", "V6"), ("lock_tag", "u1"), ("lock", ">i4"), ("class_tag", "u1"), ("class", ">i4")], align=False
)
ROI_HEAD = np.dtype(
    {
        "names": ["object", "desc", "name", "stats_tag", "stats", "box_name"],
        "formats": ["V2", ">i4", "u1", "u1", "V6", "u1"],
        "offsets": [0, 2, 18, 19, 19, BOX_SIZE - 1],
        "itemsize": BOX_SIZE,
    }
)
AXIS = np.dtype([("array", "V6"), ("n", ">u4")])
DOUBLE_MARK = np.void(b"\x77\x08")

Flags = np.ndarray[Any, np.dtype[np.bool_]]


def _are_ids(texts: Bytes) -> Flags:
    """Whether QuPath takes n texts of 36 bytes, shape (n, 36), for object ids; others are left to the parser."""
    words = np.ascontiguousarray(texts).view(np.uint32)
    odd = (words | ((words - np.uint32(0x01010101)) & ~words)) & np.uint32(0x80808080)  # not ASCII, or zero
    out: Flags = (odd == 0).all(axis=1)
    undashed = np.flatnonzero(texts[:, 8] != ord("-"))
    out[undashed] &= (texts[undashed] == ord("-")).any(axis=1)
    return out


class LeafScanner:
    """Learns the shared references of leaf objects and finds the records that use them."""

    def __init__(self, parser: Parser) -> None:
        self.parser = parser
        self.buffer: Bytes = np.frombuffer(parser.data, dtype=np.uint8)
        self.heads: dict[bytes, bool] = {}
        self.heads_no_id: dict[bytes, bool] = {}
        self.lists: dict[bytes, int] = {}
        self.rois: dict[int, int] = {}
        self.locks: set[int] = set()
        self.classes: set[int] = set()
        self.floats = b"\x00" * 6
        self.stats = b"\x00" * 6
        self._stretch: _Stretch | None = None
        self._reach = FIRST_STRETCH

    # ------------------------------------------------------------------ learning
    def learn(self, obj: JObject) -> bool:
        """Take over what a generically parsed object teaches; whether it was a leaf object at all."""
        kind = LEAF_CLASSES.get(obj.desc.name)
        if kind is None or len(obj.contents) < 8:
            return False
        before = self._n_known()
        for token in obj.contents[2:]:
            if isinstance(token, JObject):
                self._learn_part(obj, kind, token)
        if self._n_known() != before:
            self._stretch, self._reach = None, FIRST_STRETCH
        return True

    def _n_known(self) -> tuple[int | bytes, ...]:
        sets = (self.heads, self.heads_no_id, self.lists, self.rois, self.locks, self.classes)
        return *(len(known) for known in sets), self.floats, self.stats

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
            self.locks.add(self._handle(token))
        elif name == "qupath.lib.objects.classes.PathClass":
            self.classes.add(self._handle(token))

    def _handle(self, token: Content) -> int:
        return BASE_HANDLE + self.parser.handle_of[id(token)]

    def _known(self, token: Content) -> bytes:
        return b"\x71" + INT.pack(self._handle(token))

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
        self.rois[self._handle(token.desc)] = kind
        for value in token.parts[0].values:
            if isinstance(value, JArray) and value.desc.name == "[F":
                self.floats = b"\x75" + self._known(value.desc)
            elif isinstance(value, JObject) and value.desc.name == "qupath.lib.roi.ClosedShapeStatistics":
                self.stats = b"\x73" + self._known(value.desc)

    # ------------------------------------------------------------------ scanning
    def scan(self, start: int, first_handle: int) -> ScannedRun | None:
        """Take the records from byte `start` on; None if there are too few to be worth it."""
        found: list[_Records] = []
        pos = start
        while True:
            stretch = self._stretch
            if stretch is None or not stretch.low <= pos < stretch.high:
                stretch = self._stretch = self._look(pos, self._reach)
                self._reach = min(4 * self._reach, LAST_STRETCH)
            records = stretch.chain(pos)
            if records is None:
                break
            found.append(records)
            pos = int(records.stops[-1])
        if sum(len(records.starts) for records in found) < MIN_RUN:
            return None
        return ScannedRun(self.parser, _Records.joined(found), first_handle=first_handle)

    def _look(self, low: int, size: int) -> _Stretch:
        """Follow the layout from everywhere in a stretch of bytes where a record may begin."""
        high = min(low + size, len(self.buffer) - FRONT.itemsize)
        if high - low < SHARED_STRETCH:
            return _Stretch(low, max(high, low + 1), self._found(low, high))
        middle = (low + high) // 2
        with ThreadPoolExecutor(2) as pool:
            parts = list(pool.map(self._found, (low, middle), (middle, high)))
        return _Stretch(low, high, _Records.joined(parts))

    def _found(self, low: int, high: int) -> _Records:
        """Return the records that begin in the bytes [low, high)."""
        candidates = np.flatnonzero(self.buffer[low:high] == OBJECT) + low
        found = gather_bytes(self.buffer, candidates, HEAD_NO_ID).view(np.uint64).reshape(-1)
        begins = np.zeros(len(candidates), dtype=bool)
        for text in {head[:HEAD_NO_ID] for head in (*self.heads, *self.heads_no_id)}:
            begins |= found == np.frombuffer(text, dtype=np.uint64)
        records, fits = self._records(candidates[begins])
        return records.take(fits)

    def _rows(self, at: Ints, dtype: np.dtype[Any]) -> np.ndarray[Any, Any]:
        """Bytes at n offsets, taken apart; beyond the end of the file they are wrong, and so is the record's end."""
        inside = np.minimum(at, len(self.buffer) - dtype.itemsize)
        return gather_bytes(self.buffer, inside, dtype.itemsize).view(dtype).reshape(-1)

    def _records(self, at: Ints) -> tuple[_Records, Flags]:
        """Follow the layout of n records; which of them fit, shape (n,)."""
        has_id, cell, fits = self._fronts(at)
        list_at = at + np.where(has_id, 84, HEAD_NO_ID)
        list_size, good = self._lists(list_at)
        fits &= good
        lock_at = list_at + list_size + len(NO_CHILDREN)
        middle = self._rows(lock_at - len(NO_CHILDREN), MIDDLE)
        classed = middle["class_tag"] == REFERENCE
        fits &= (middle["children"] == np.void(NO_CHILDREN)) & (middle["lock_tag"] == REFERENCE)
        fits &= np.isin(middle["lock"], list(self.locks))
        fits &= (middle["class_tag"] == NULL) | (classed & np.isin(middle["class"], list(self.classes)))
        roi_at = lock_at + np.where(classed, 10, 6)
        roi_size, handles, good = self._rois(roi_at)
        fits &= good
        tail_at = roi_at + roi_size
        fits &= self._rows(tail_at, DOUBLE_MARK.dtype) == DOUBLE_MARK
        end = tail_at + 10
        nucleated = cell & (self._bytes(end) != NULL)
        nucleus_at = np.where(nucleated, end, -1)
        rows = np.flatnonzero(nucleated)
        nucleus_size, nucleus_handles, good = self._rois(end[rows])
        fits[rows] &= good
        handles[rows] += nucleus_handles
        end += cell
        end[rows] += nucleus_size - 1
        fits &= (self._bytes(end) == END) & (end < len(self.buffer))
        handles += np.where(has_id, 5, 1) + np.where(list_size > 1, 2, 0)
        return _Records(at, end + 1, list_at, lock_at, roi_at, tail_at, nucleus_at, handles), fits

    def _bytes(self, at: Ints) -> Bytes:
        return self.buffer[np.minimum(at, len(self.buffer) - 1)]

    def _fronts(self, at: Ints) -> tuple[Flags, Flags, Flags]:
        """Whether n records have an id, are cells, and begin as known."""
        rows = self._rows(at, FRONT)
        has_id, cell, known = (np.zeros(len(at), dtype=bool) for _ in range(3))
        for head, is_cell in self.heads.items():
            same = rows["head"] == np.void(head)
            has_id |= same
            cell |= same & is_cell
        has_id &= (rows["end"] == END) & _are_ids(rows["id"])
        short = gather_bytes(self.buffer, at, HEAD_NO_ID).view(f"V{HEAD_NO_ID}").reshape(-1)
        for head, is_cell in self.heads_no_id.items():
            same = (short == np.void(head)) & ~has_id
            known |= same
            cell = np.where(same, is_cell, cell)
        return has_id, cell, known | has_id

    def _lists(self, at: Ints) -> tuple[Ints, Flags]:
        """Sizes of n measurement lists, 1 without; which of them fit."""
        keys = gather_bytes(self.buffer, np.minimum(at, len(self.buffer) - LIST_HEAD), LIST_HEAD)
        sizes = np.where(keys[:, 0] == NULL, 1, 0)
        texts = keys.view(f"V{LIST_HEAD}").reshape(-1)
        for key, size in self.lists.items():
            open_rows = np.flatnonzero(sizes == 0)
            if len(open_rows) == 0:
                break
            sizes[open_rows[texts[open_rows] == np.void(key)]] = LIST_HEAD + size
        return sizes, sizes > 0

    def _rois(self, at: Ints) -> tuple[Ints, Ints, Flags]:
        """Sizes of n ROIs and how many handles they take; which of them fit."""
        rows = self._rows(at, ROI_HEAD)
        kinds = np.full(len(at), -1)
        for handle, kind in self.rois.items():
            kinds[rows["desc"] == handle] = kind
        fits = (rows["object"] == np.void(b"\x73\x71")) & (kinds >= 0)
        box, polygon = kinds == BOX, kinds == POLYGON
        with_stats = polygon & (rows["stats"] == np.void(self.stats))
        fits &= np.where(box, rows["box_name"], rows["name"]) == NULL
        fits &= ~polygon | with_stats | (rows["stats_tag"] == NULL)
        x = at + 19 + np.where(with_stats, STATS, polygon)
        axis = self._rows(x, AXIS)
        step = 10 + 4 * axis["n"].astype(np.int64)
        second = self._rows(x + step, AXIS)
        floats = np.void(self.floats)
        fits &= box | ((axis["array"] == floats) & (second["array"] == floats) & (axis["n"] == second["n"]))
        size = np.where(box, BOX_SIZE, x - at + 2 * step)
        return size, np.where(box, 1, 3 + with_stats), fits


@dataclass
class _Records:
    """n records: byte offsets of their parts, and how many handles each takes; int64, (n,).

    `tails` are the blocks with the class probability; `nuclei` are -1 without.
    """

    starts: Ints
    stops: Ints
    lists: Ints
    locks: Ints
    rois: Ints
    tails: Ints
    nuclei: Ints
    handles: Ints

    def take(self, rows: Any) -> _Records:
        return _Records(*(column[rows] for column in vars(self).values()))

    @classmethod
    def joined(cls, parts: list[_Records]) -> _Records:
        columns = zip(*(vars(part).values() for part in parts), strict=True)
        return cls(*(np.concatenate(column) for column in columns))


class _Stretch:
    """The records that begin in the bytes [low, high)."""

    def __init__(self, low: int, high: int, records: _Records) -> None:
        self.low, self.high, self.records = low, high, records
        self.breaks = np.flatnonzero(records.stops[:-1] != records.starts[1:])

    def chain(self, pos: int) -> _Records | None:
        """Return the records from byte `pos` on that follow each other without a gap; None if there is none."""
        records = self.records
        first = int(np.searchsorted(records.starts, pos))
        if first == len(records.starts) or int(records.starts[first]) != pos:
            return None
        at = int(np.searchsorted(self.breaks, first))
        last = int(self.breaks[at]) if at < len(self.breaks) else len(records.starts) - 1
        return records.take(slice(first, last + 1))


class ScannedRun(Run):
    """The records that one scan found, or some of them.

    Attributes
    ----------
    rows
        Which of the scanned records belong to the run, int64, ascending.
    """

    def __init__(self, parser: Parser, records: _Records, *, first_handle: int) -> None:
        self.parser = parser
        self.end = int(records.stops[-1])
        self.first_handle = first_handle
        self.n_handles = int(records.handles.sum())
        self.buffer: Bytes = np.frombuffer(parser.data, dtype=np.uint8)
        self.handles = parser.handles
        self.starts = records.starts
        self.stops = records.stops
        self.handle_offsets = np.cumsum(records.handles) - records.handles
        self.lists = records.lists
        self.locks = records.locks
        self.rois = records.rois
        self.tails = records.tails
        self.nuclei = records.nuclei
        self.has_id = self.lists - self.starts != HEAD_NO_ID
        self.materialised: dict[int, JObject] = {}
        self.n_records = len(self.starts)
        self.source = self
        self.rows: Ints = np.arange(self.n_records)

    @classmethod
    def joined(cls, runs: Sequence[ScannedRun]) -> ScannedRun:
        """Return the records of several runs of one hierarchy as one, for reading only."""
        if len(runs) == 1:
            return runs[0]
        out = object.__new__(cls)
        out.__dict__.update(runs[0].__dict__)
        for name in ("starts", "stops", "lists", "locks", "rois", "tails", "nuclei", "has_id"):
            setattr(out, name, np.concatenate([getattr(run, name)[run.rows] for run in runs]))
        out.rows = np.arange(len(out.starts))
        return out

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
