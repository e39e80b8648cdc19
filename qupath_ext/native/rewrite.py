"""New values for many records of a scanned run at once: the bytes that hold them are replaced, all others stay.

The bytes of the run are put together anew, with references as they were in the file; what is new and shared (a class,
the names of a measurement list) gets a handle of its own among them. So the run is written, read and changed afterwards
as if it had been parsed like that, and nothing is lost: class probability, the kind of ROI, planes, cached statistics
of shapes that stay.
"""

from __future__ import annotations

import itertools
import struct
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import shapely

from qupath_ext.native.bulk import ABSENT, roi_kinds
from qupath_ext.native.catalog import LISTS, Factory
from qupath_ext.native.gather import Ints, gather_bytes, gather_numbers
from qupath_ext.native.measurementlists import list_names
from qupath_ext.native.parser import Parser
from qupath_ext.native.records import roi_record
from qupath_ext.native.rerun import roi_layout
from qupath_ext.native.roi import check_geometries
from qupath_ext.native.runtable import read_run
from qupath_ext.native.scanner import BOX, LIST_CLASSES, LIST_HEAD, NO_CHILDREN, POLYGON, ScannedRun
from qupath_ext.native.tokens import BASE_HANDLE, ClassDesc, Content
from qupath_ext.native.updates import Update

__all__ = ["fits_record", "rewrite_run", "set_locks"]

CHUNK = 100_000
HEAD_PART, LIST, CHILDREN, LOCK, CLASS, SHAPE, PROBABILITY, NUCLEUS, END = range(9)
"""The parts of a record, one after the other."""
NULL = b"\x70"
Flags = np.ndarray[Any, np.dtype[np.bool_]]


def fits_record(run: ScannedRun, rows: Ints, update: Update) -> Flags:
    """Which objects can have their new values within a record; the others have to become tokens. Shape (n,)."""
    out = np.ones(len(rows), dtype=bool)
    if run.materialised:
        out &= ~np.isin(rows, list(run.materialised))
    for name in ("name", "color", "metadata"):
        if name in update.fixed:
            out &= np.array([value is None for value in update.fixed[name]], dtype=bool)
    if "missing" in update.fixed:
        out &= ~update.fixed["missing"].astype(bool)
    for name in ("geometry", "nucleus"):
        if name in update.fixed:
            out &= np.isin(roi_kinds(update.fixed[name]), (POLYGON, BOX, ABSENT))
    if "nucleus" in update.fixed:
        nucleated = ~shapely.is_missing(update.fixed["nucleus"])
        out[nucleated] &= _are_cells(run, rows[nucleated])
    return out


def _are_cells(run: ScannedRun, rows: Ints) -> Flags:
    handles = gather_numbers(run.buffer, run.starts[rows] + 2, ">i4") - BASE_HANDLE
    cells = [h for h in np.unique(handles).tolist() if _desc(run, h).is_a("qupath.lib.objects.PathCellObject")]
    out: Flags = np.isin(handles, cells)
    return out


def _desc(run: ScannedRun, handle: int) -> ClassDesc:
    token = run.handles[handle]
    if not isinstance(token, ClassDesc):
        raise TypeError(f"handle {handle} is a {type(token).__name__}")
    return token


def rewrite_run(run: ScannedRun, rows: Ints, update: Update, factory: Factory) -> None:
    """Give records of a run their new values.

    Parameters
    ----------
    run
        The run as it was parsed; it is changed.
    rows
        Numbers of n records, int64, ascending; :func:`fits_record` of all of them.
    update
        The values of those n objects.
    factory
        Makes what is new.

    Raises
    ------
    ProjectError
        If an object cannot have such a value.
    """
    plan = _Plan(run, rows, factory)
    fixed = update.fixed
    if update.measurements:
        plan.change_lists(update)
    if "locked" in fixed:
        plan.parts[LOCK] = [plan.ref(factory.boolean(bool(value))) for value in fixed["locked"]]
    if "classification" in fixed:
        names = fixed["classification"].tolist()
        texts = {name: NULL if name is None else plan.ref(factory.path_class(name)) for name in dict.fromkeys(names)}
        plan.parts[CLASS] = [texts[name] for name in names]
    if "class_probability" in fixed:
        values = [float("nan") if value is None else float(value) for value in fixed["class_probability"]]
        plan.parts[PROBABILITY] = [b"\x77\x08" + struct.pack(">d", value) for value in values]
    if "geometry" in fixed or "nucleus" in fixed:
        plan.change_shapes(update)
    plan.carry_out()


def set_locks(run: ScannedRun, rows: Ints, locked: bool, factory: Factory) -> None:
    """Lock or unlock the records of some rows, int64 (n,), in a copy of the run's bytes, which keep their places."""
    reference = _Plan(run, rows, factory).ref(factory.boolean(locked))
    first = int(run.starts[0])
    data = bytearray(run.parser.data[first : int(run.stops[-1])])
    places = run.locks[rows] - first
    new = np.frombuffer(reference, dtype=np.uint8)
    np.frombuffer(data, dtype=np.uint8)[places[:, None] + np.arange(len(new))] = new
    run.parser = Parser(bytes(data), fast=False)
    run.buffer = np.frombuffer(run.parser.data, dtype=np.uint8)
    for name in ("starts", "stops", "lists", "locks", "rois", "tails"):
        setattr(run, name, getattr(run, name) - first)
    run.nuclei = np.where(run.nuclei >= 0, run.nuclei - first, -1)


@dataclass
class _Plan:
    """What the parts of some records become; `parts` has the bytes for each of `rows`, None where they stay."""

    run: ScannedRun
    rows: Ints
    factory: Factory
    parts: dict[int, list[bytes | None]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        run = self.run
        self._handles = {id(token): handle for handle, token in run.handles.items()}
        self._next = max(run.handles, default=-1) + 1
        self.more_handles = np.zeros(run.n_records, dtype=np.int64)
        self.edges = [
            *(run.starts, run.lists, run.locks - len(NO_CHILDREN), run.locks, run.locks + 5),
            *(run.rois, run.tails, run.tails + 10, run.stops - 1, run.stops),
        ]

    def ref(self, token: Content) -> bytes:
        """Return a reference to a shared token, in the numbering of the file as it was read."""
        if id(token) not in self._handles:
            self._handles[id(token)] = self._next
            self.run.handles[self._next] = token
            self._next += 1
        return b"\x71" + struct.pack(">i", BASE_HANDLE + self._handles[id(token)])

    # ------------------------------------------------------------------ measurements
    def change_lists(self, update: Update) -> None:
        """Put new values into the measurement lists; lists of the same names are done together."""
        run, at = self.run, self.run.lists[self.rows]
        self.parts[LIST] = [None] * len(at)
        self._change_lists(np.flatnonzero(run.buffer[at] == NULL[0]), "NumericMeasurementList$FloatList", (), update)
        listed = np.flatnonzero(run.buffer[at] != NULL[0])
        keys = np.column_stack([gather_numbers(run.buffer, at[listed] + offset, ">i4") for offset in (2, 13)])
        unique, group = np.unique(keys, axis=0, return_inverse=True)
        for number, (desc, names) in enumerate((unique.astype(np.int64) - BASE_HANDLE).tolist()):
            chosen = listed[group.reshape(-1) == number]
            kind = _desc(run, desc).name.removeprefix(LISTS)
            self._change_lists(chosen, kind, tuple(list_names(run.handles[names])), update)

    def _change_lists(self, chosen: Ints, kind: str, names: tuple[str, ...], update: Update) -> None:
        """Do that for lists of one kind with the same names."""
        run, size = self.run, LIST_CLASSES[LISTS + kind]
        new = {name: values[chosen] for name, values in update.measurements.items()}
        new = {name: values for name, values in new.items() if not np.isnan(values).all()}
        if len(chosen) == 0 or not new:
            return
        places = run.lists[self.rows[chosen]]
        all_names = tuple(dict.fromkeys((*names, *new)))
        values = np.full((len(chosen), len(all_names)), np.nan)
        if names:
            raw = gather_bytes(run.buffer, places + LIST_HEAD, len(names) * size)
            with np.errstate(invalid="ignore"):  # signalling NaN
                values[:, : len(names)] = np.ascontiguousarray(raw).view(f">f{size}")
        for name, column in new.items():
            given = ~np.isnan(column)
            values[given, all_names.index(name)] = column[given]
        factory = self.factory
        lookup, listed = factory.names(all_names)
        head = b"\x73" + self.ref(factory.desc(LISTS + kind)) + b"\x01" + self.ref(lookup) + self.ref(listed)
        head += b"\x75" + self.ref(factory.desc("[F" if size == 4 else "[D")) + struct.pack(">i", len(all_names))
        with np.errstate(over="ignore", invalid="ignore"):
            raw_values = values.astype(f">f{size}").tobytes()
        step = size * len(all_names)
        for number, row in enumerate(chosen.tolist()):
            self.parts[LIST][row] = head + raw_values[number * step : (number + 1) * step]
        if not names:
            self.more_handles[self.rows[chosen]] += 2

    # ------------------------------------------------------------------ shapes
    def change_shapes(self, update: Update) -> None:
        """Put new ROIs, without cached statistics, where a shape is not what it was; planes stay."""
        run, rows = self.run, self.rows
        before = read_run(run.part(rows))
        _, c, t, z = self._planes()
        if "geometry" in update.fixed:
            self._change_shapes(SHAPE, before.geometry, update.fixed["geometry"], (c, t, z), run.rois[rows], update.ids)
        if "nucleus" in update.fixed:
            cells = _are_cells(run, rows)
            nuclei = np.where(cells, update.fixed["nucleus"], before.nucleus)
            self._change_shapes(NUCLEUS, before.nucleus, nuclei, (c, t, z), run.nuclei[rows], update.ids)

    def _planes(self) -> tuple[Ints, list[bytes], list[bytes], list[bytes]]:
        at = self.run.rois[self.rows]
        kinds, _, _, _ = roi_layout(self.run, at)
        places = (at + 6, at + 10, at + np.where(kinds == BOX, 46, 14))
        c, t, z = ([raw.tobytes() for raw in gather_bytes(self.run.buffer, place, 4)] for place in places)
        return kinds, c, t, z

    def _change_shapes(self, part: int, before: Any, after: Any, planes: Any, at: Ints, ids: Any) -> None:
        same = shapely.equals_exact(before, after, tolerance=0.0)
        same |= shapely.is_missing(before) & shapely.is_missing(after)
        what = "geometry" if part == SHAPE else "nucleus"
        checked = ~same & ((part == SHAPE) | ~shapely.is_missing(after))
        check_geometries(after[checked], ids[checked], areas=False, what=what)
        there = at >= 0
        handles = np.zeros(len(at), dtype=np.int64)
        kinds, stats, _, _ = roi_layout(self.run, at[there])
        handles[there] = np.where(kinds == BOX, 1, 3 + (stats >= 0))
        new_kinds = roi_kinds(after)
        self.parts[part] = [None] * len(at)
        for row in np.flatnonzero(~same).tolist():
            c, t, z = (axis[row] for axis in planes)
            self.parts[part][row], taken = roi_record(
                after[row], int(new_kinds[row]), (c, t, z), self.ref, self.factory
            )
            self.more_handles[self.rows[row]] += taken - handles[row]

    # ------------------------------------------------------------------ bytes
    def carry_out(self) -> None:
        """Put the bytes of the run together and note where everything is in them."""
        run, n = self.run, self.run.n_records
        columns: list[tuple[int, int, list[bytes | None] | None]] = []
        at = HEAD_PART
        for part in sorted(self.parts):
            columns += [(at, part, None)] if part > at else []
            columns.append((part, part + 1, self.parts[part]))
            at = part + 1
        columns.append((at, END + 1, None))
        data = bytearray()
        edges = [np.empty(n, dtype=np.int64) for _ in self.edges]
        for low in range(0, n, CHUNK):
            self._put_together(columns, slice(low, min(low + CHUNK, n)), data, edges)
        counts = np.diff(run.handle_offsets, append=run.n_handles) + self.more_handles
        run.handle_offsets, run.n_handles = np.cumsum(counts) - counts, int(counts.sum())
        run.parser = Parser(bytes(data), fast=False)
        run.buffer = np.frombuffer(run.parser.data, dtype=np.uint8)
        run.starts, run.lists, _, run.locks, _, run.rois, run.tails, nuclei, ends, run.stops = edges
        nucleated = (nuclei < ends) & (run.buffer[nuclei] != NULL[0])
        run.nuclei = np.where(nucleated, nuclei, -1)

    def _put_together(self, columns: Any, part: slice, data: bytearray, edges: list[Ints]) -> None:
        old, source = [edge[part] for edge in self.edges], self.run.parser.data
        first, last = np.searchsorted(self.rows, [part.start, part.stop]).tolist()
        within = (self.rows[first:last] - part.start).tolist()
        pieces, sizes = [], []
        for start, stop, new in columns:
            texts = [source[a:b] for a, b in zip(old[start].tolist(), old[stop].tolist(), strict=True)]
            for at, text in zip(within, () if new is None else new[first:last], strict=new is not None):
                texts[at] = texts[at] if text is None else text
            pieces.append(texts)
            sizes.append(np.fromiter(map(len, texts), dtype=np.int64, count=len(texts)))
        bounds = np.cumsum(np.stack(sizes, axis=1).reshape(-1)).reshape(-1, len(columns)) + len(data)
        data += b"".join(itertools.chain.from_iterable(zip(*pieces, strict=True)))
        for number, (start, stop, _) in enumerate(columns):
            begin = bounds[:, number] - sizes[number]
            for edge in range(start, stop):
                edges[edge][part] = old[edge] - old[start] + begin
        edges[-1][part] = bounds[:, -1]
