"""Writing the records of a scanned run again, with the handles of the new stream."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from qupath_ext.native.gather import Bytes, Ints, gather_numbers
from qupath_ext.native.scanner import BOX, POINTS, POLYGON, ROI_KINDS, ScannedRun
from qupath_ext.native.tokens import BASE_HANDLE, ClassDesc

if TYPE_CHECKING:
    from qupath_ext.native.emitter import Emitter

__all__ = ["emit_scanned", "roi_layout"]

CHUNK = 100_000
HEAD_REFERENCES = (1, 9, 14, 20, 29, 35)
LIST_REFERENCES = (1, 7, 12, 18)


def emit_scanned(run: ScannedRun, emitter: Emitter) -> None:
    """Write the records of a run.

    A record that needs something shared which the new stream has not seen yet (its first occurrence was removed) is
    written token by token, which puts it there; all others are copied and their references renumbered.
    """
    first_needing = _first_needing(run, emitter)
    start = 0
    for at in [*sorted(first_needing), len(run)]:
        for low in range(start, at, CHUNK):
            _emit_chunk(run, run.rows[low : min(low + CHUNK, at)], emitter)
        if at < len(run):
            _emit_generic(run, int(run.rows[at]), emitter)
        start = at + 1


def _first_needing(run: ScannedRun, emitter: Emitter) -> set[int]:
    """Positions in the run of the first record that uses each shared token not written yet."""
    out: set[int] = (
        {at for at, row in enumerate(run.rows.tolist()) if row in run.materialised} if run.materialised else set()
    )
    first: dict[int, int] = {}
    tokens = list(run.materialised)  # may have changed, and not need any more what their record refers to
    for low in range(0, len(run), CHUNK):
        rows = run.rows[low : low + CHUNK]
        copied = np.flatnonzero(~np.isin(rows, tokens))
        for places, owner in references(run, rows[copied]):
            handles = gather_numbers(run.buffer, places + 1, ">i4")
            unique, index = np.unique(handles, return_index=True)
            for handle, at in zip(unique.tolist(), index.tolist(), strict=True):
                position = low + int(copied[owner[at]])
                first[handle] = min(first.get(handle, position), position)
    for handle, position in first.items():
        if emitter.handle(run.handles[handle - BASE_HANDLE]) is None:
            out.add(position)
    return out


def references(run: ScannedRun, rows: Ints) -> list[tuple[Ints, Ints]]:
    """Where the references (tag 71) of some records are.

    Returns
    -------
    list of tuple
        For each kind of reference: absolute byte offsets of the tags, and the position in `rows` they belong to.
    """
    every = np.arange(len(rows))
    starts = run.starts[rows]
    with_id = every[run.has_id[rows]]
    out = [(starts + 1, every)]
    out += [(starts[with_id] + at, with_id) for at in HEAD_REFERENCES[1:]]
    lists = run.lists[rows]
    with_list = every[run.buffer[lists] != 0x70]
    out += [(lists[with_list] + at, with_list) for at in LIST_REFERENCES]
    locks = run.locks[rows]
    out.append((locks, every))
    classed = every[run.buffer[locks + 5] != 0x70]
    out.append((locks[classed] + 5, classed))
    out += _roi_references(run, run.rois[rows], every)
    nuclei = run.nuclei[rows]
    with_nucleus = every[nuclei >= 0]
    return out + _roi_references(run, nuclei[with_nucleus], with_nucleus)


def _roi_references(run: ScannedRun, at: Ints, owner: Ints) -> list[tuple[Ints, Ints]]:
    out = [(at + 1, owner)]
    _, stats, first, n = roi_layout(run, at)
    has_stats, has_arrays = stats >= 0, first >= 0
    out.append((stats[has_stats] + 1, owner[has_stats]))
    x = first[has_arrays] - 10
    out.append((x + 1, owner[has_arrays]))
    out.append((x + 10 + 4 * n[has_arrays] + 1, owner[has_arrays]))
    return out


def roi_layout(run: ScannedRun, at: Ints) -> tuple[Ints, Ints, Ints, Ints]:
    """Take ROI records apart.

    Parameters
    ----------
    run
        The run.
    at
        Absolute byte offsets of n ROI records.

    Returns
    -------
    tuple
        Four int64 arrays of shape (n,): kind (``POLYGON``, ``BOX`` or ``POINTS``), offset of the cached statistics
        (-1 without), offset of the first x value (-1 for boxes), number of vertices (0 for boxes). The y values begin
        10 bytes after the last x value.
    """
    codes, handles = pd.factorize(gather_numbers(run.buffer, at + 2, ">i4"))
    descs = [run.handles[handle - BASE_HANDLE] for handle in handles.tolist()]
    kinds = np.array([ROI_KINDS[desc.name] for desc in descs if isinstance(desc, ClassDesc)], dtype=np.int64)[codes]
    polygon = kinds == POLYGON
    stats = np.where(polygon & (run.buffer[at + 19] == 0x73), at + 19, -1)
    x = np.where(kinds == POINTS, at + 19, np.where(stats >= 0, at + 19 + 66, at + 20))
    arrays = kinds != BOX
    first = np.where(arrays, x + 10, -1)
    n = np.zeros(len(at), dtype=np.int64)
    n[arrays] = gather_numbers(run.buffer, x[arrays] + 6, ">i4")
    return kinds, stats, first, n


def _emit_generic(run: ScannedRun, row: int, emitter: Emitter) -> None:
    member_handles = emitter.member_handles(run.source, run.n_records)
    member = run.materialise(row)
    emitter.content(member)
    member_handles[row] = emitter.handle(member) or 0


def _emit_chunk(run: ScannedRun, rows: Ints, emitter: Emitter) -> None:
    if len(rows) == 0:
        return
    buffer, new_starts = _copy(run, rows)
    shift = new_starts - run.starts[rows]
    for places, owner in references(run, rows):
        old = gather_numbers(run.buffer, places + 1, ">i4")
        new = _renumbered(run, old, emitter)
        changed = np.flatnonzero(new != old)
        if len(changed):
            target = (places + 1 + shift[owner])[changed]
            buffer[target[:, None] + np.arange(4)] = new[changed].astype(">i4").view(np.uint8).reshape(-1, 4)
    last = int(rows[-1])
    ends = np.append(run.handle_offsets[1:], run.n_handles)
    counts = ends[rows] - run.handle_offsets[rows]
    member_handles = emitter.member_handles(run.source, run.n_records)
    member_handles[rows] = emitter.next_handle + np.cumsum(counts) - counts
    if last >= run.n_records:
        raise IndexError(f"record {last} of {run.n_records}")
    emitter.next_handle += int(counts.sum())
    emitter.raw(buffer.tobytes())


def _renumbered(run: ScannedRun, old: np.ndarray[Any, Any], emitter: Emitter) -> np.ndarray[Any, Any]:
    unique, inverse = np.unique(old, return_inverse=True)
    new = np.empty_like(unique)
    for i, handle in enumerate(unique.tolist()):
        known = emitter.handle(run.handles[handle - BASE_HANDLE])
        if known is None:
            raise LookupError(f"shared token {handle - BASE_HANDLE} not written yet")
        new[i] = known + BASE_HANDLE
    return new[inverse]


def _copy(run: ScannedRun, rows: Ints) -> tuple[Bytes, Ints]:
    """Copy the bytes of some records; returns them and where each record begins in them."""
    starts, stops = run.starts[rows], run.stops[rows]
    lengths = stops - starts
    new_starts = np.cumsum(lengths) - lengths
    breaks = np.flatnonzero(starts[1:] != stops[:-1]) + 1
    firsts = starts[np.concatenate([[0], breaks])].tolist()
    lasts = stops[np.concatenate([breaks - 1, [len(rows) - 1]])].tolist()
    data = run.parser.data
    joined = bytearray().join([data[a:b] for a, b in zip(firsts, lasts, strict=True)])
    return np.frombuffer(joined, dtype=np.uint8), new_starts
