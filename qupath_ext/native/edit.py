"""Changes of a hierarchy: objects added, removed, locked; everything else stays as it is."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import geopandas as gpd
import numpy as np
import pandas as pd

from qupath_ext.change import ChangeCounts, TmaGrid
from qupath_ext.errors import FormatError, ProjectError
from qupath_ext.native.additions import Additions, build_additions
from qupath_ext.native.catalog import Factory
from qupath_ext.native.collector import paused_collector
from qupath_ext.native.datafile import DataFile, parse_data_file
from qupath_ext.native.idsearch import ID_SIZE, IdColumn
from qupath_ext.native.pathobjects import PathObjectView, object_kind, walk
from qupath_ext.native.rewrite import fits_record, rewrite_run, set_locks
from qupath_ext.native.runtable import are_locked
from qupath_ext.native.scanner import ScannedRun
from qupath_ext.native.stains import Stains, check_stains
from qupath_ext.native.table import derived_id
from qupath_ext.native.tma import grid_cores, grid_token
from qupath_ext.native.tokens import Block, Content, JArray, JObject, Run, RunMember
from qupath_ext.native.updates import Update, check_update, update_object, updated_ids

__all__ = ["HierarchyEdit", "open_for_edit"]

CONNECTIONS = "qupath.lib.objects.PathObjectConnections"
MIN_REWRITE = 32
"""From so many records of a run on, they are changed at once."""
GROUP_LIST = "java.util.ArrayList"


def open_for_edit(data: bytes, colors: Callable[[str], int | None]) -> HierarchyEdit:
    """Parse a data file in order to change it.

    Objects without id (files of QuPath 0.2 and 0.3) get the one that reading shows for them, so that it stays.
    """
    with paused_collector():
        return _open_for_edit(data, colors)


def _open_for_edit(data: bytes, colors: Callable[[str], int | None]) -> HierarchyEdit:
    parsed = parse_data_file(data)
    items = [item for item, _ in walk(parsed.root)]
    if any(map(_lacks_id, items)):
        parsed = parse_data_file(data, fast=False)
        factory = Factory(parsed.known_tokens(), colors)
        views = [item for item, _ in walk(parsed.root) if isinstance(item, PathObjectView)]
        for number, view in enumerate(views):
            if view.id is None:
                view.set_id(derived_id(parsed.digest, number), factory)
        return HierarchyEdit(parsed, colors)
    return HierarchyEdit(parsed, colors, items)


def _lacks_id(item: PathObjectView | Run) -> bool:
    if isinstance(item, ScannedRun):
        return not item.has_id.all()
    return isinstance(item, PathObjectView) and item.id is None


class HierarchyEdit:
    """Collects changes and applies them to the tokens of one data file.

    Parameters
    ----------
    data
        The data file; its tokens are changed by :meth:`apply`.
    colors
        Colour of a path class by its full name, asked for classes that the file does not have.
    items
        All objects and runs of the file, if they are known already.
    """

    def __init__(
        self,
        data: DataFile,
        colors: Callable[[str], int | None],
        items: Sequence[PathObjectView | Run] | None = None,
    ) -> None:
        self.data = data
        self._factory = Factory(data.known_tokens(), colors)
        self._objects: dict[str, JObject] = {}
        self._runs: list[ScannedRun] = []
        for item in [item for item, _ in walk(data.root)] if items is None else items:
            if isinstance(item, PathObjectView):
                item.check()
                object_id = item.id or ""
                if object_id in self._objects:
                    raise FormatError(f"two objects with the id {object_id}", expected="an id of its own for each")
                self._objects[object_id] = item.token
            elif isinstance(item, ScannedRun):
                self._runs.append(item)
        self._run_ids = [IdColumn(run.ids()) for run in self._runs]

    def apply(
        self,
        *,
        add: gpd.GeoDataFrame | None = None,
        update: Sequence[pd.DataFrame] = (),
        remove: Sequence[str] = (),
        lock: Sequence[str] = (),
        unlock: Sequence[str] = (),
        image_type: str | None = None,
        stains: Stains | None = None,
        tma_grid: TmaGrid | None = None,
    ) -> ChangeCounts:
        """Set the image type, update objects, set locks, remove and add objects, add the TMA grid, in this order.

        Children of a removed object that stay move up to its parent. Groups of object connections that mention a
        removed object are dropped.

        Raises
        ------
        ProjectError
            If an id is not in the image, a new id is there already, a parent does not exist, a TMA core would be
            removed, or an object cannot be stored.
        """
        if image_type is not None:
            self.data.set_image_type(image_type, check_stains(image_type, stains), self._factory)
        updates = [check_update(table) for table in update if len(table)]
        for checked in updates:
            self._update(checked)
        removed = set(remove)
        members = self._find([*removed, *lock, *unlock])
        new_cores = frozenset() if tma_grid is None else frozenset(tma_grid.cores)
        additions = None if add is None or len(add) == 0 else build_additions(add, self._factory, new_cores)
        if additions is not None:
            self._check_new(additions, removed)
        cores = {id(core) for core in grid_cores(self.data)}
        if any(id(self._objects.get(i)) in cores for i in removed):
            raise ProjectError("a core of the TMA grid cannot be removed", remedy="remove it in QuPath")
        n_locked = self._lock(lock, True, removed, members) + self._lock(unlock, False, removed, members)
        if removed:
            self._drop_connections(removed, members)
            self._remove(self.data.root, _Removed.of(removed, members))
        if additions is not None:
            self._add(additions)
        if tma_grid is not None:
            self._set_grid(tma_grid, {} if additions is None else additions.tokens)
        counts = {} if additions is None else dict(additions.counts)
        n_updated = len(updated_ids(updates))
        return ChangeCounts(added=counts, removed=len(removed), locked=n_locked, updated=n_updated)

    # ------------------------------------------------------------------ updating
    def _update(self, update: Update) -> None:
        """Give objects new values: records of runs at once where they are many, all others one by one."""
        ids = _id_column(update.ids.tolist())
        left = np.ones(len(update.ids), dtype=bool)
        for run, run_ids in zip(self._runs, self._run_ids, strict=True):
            records, chosen = run_ids.find(ids)
            rows = run.rows[records]
            if len(rows) >= MIN_REWRITE:
                fits = fits_record(run, rows, update.take(chosen))
                rewrite_run(run, rows[fits], update.take(chosen[fits]), self._factory)
                left[chosen[fits]] = False
                chosen, rows = chosen[~fits], rows[~fits]
            for at, row in zip(chosen.tolist(), rows.tolist(), strict=True):
                update_object(run.materialise(row), update, at, self._factory)
            left[chosen] = False
        for at in np.flatnonzero(left).tolist():
            token = self._objects.get(update.ids[at])
            if token is None:
                raise _missing_error(update.ids[at])
            update_object(token, update, at, self._factory)

    # ------------------------------------------------------------------ finding
    def _find(self, ids: Iterable[str]) -> dict[str, tuple[ScannedRun, int]]:
        """Where ids that are not tokens of their own are: run and record number.

        Raises
        ------
        ProjectError
            If an id is nowhere.
        """
        wanted = [i for i in dict.fromkeys(ids) if i not in self._objects]
        out: dict[str, tuple[ScannedRun, int]] = {}
        if wanted:
            keys = _id_column(wanted)
            for run, run_ids in zip(self._runs, self._run_ids, strict=True):
                rows, places = run_ids.find(keys)
                for row, place in zip(run.rows[rows].tolist(), places.tolist(), strict=True):
                    out[wanted[place]] = (run, row)
        missing = [i for i in wanted if i not in out]
        if missing:
            raise _missing_error(missing[0])
        return out

    def _check_new(self, additions: Additions, removed: set[str]) -> None:
        new = set(additions.ids.tolist())
        there = [i for i in new if i in self._objects and i not in removed]
        keys = IdColumn(additions.ids.astype("S36"))
        for run_ids in self._run_ids:
            _, places = run_ids.find(keys)
            there += [i for i in additions.ids[places].tolist() if i not in removed]
        if there:
            raise ProjectError(f"object {there[0]} is in the image already", expected="new ids")
        parents = [parent for parent in additions.children if parent is not None and parent not in new]
        for parent in parents:
            if parent in removed:
                raise ProjectError(f"parent {parent} is removed in the same change", expected="a parent that stays")
        self._find(parents)

    def _token(self, object_id: str, members: dict[str, tuple[ScannedRun, int]]) -> JObject:
        if object_id in self._objects:
            return self._objects[object_id]
        run, row = members[object_id]
        return run.materialise(row)

    # ------------------------------------------------------------------ removing and locking
    def _remove(self, token: JObject, removed: _Removed) -> None:
        view = PathObjectView(token)
        before = view.children
        after = self._kept(before, removed)
        if len(after) != len(before) or any(a is not b for a, b in zip(after, before, strict=False)):
            view.set_children(after)

    def _kept(self, children: list[JObject | Run], removed: _Removed) -> list[JObject | Run]:
        out: list[JObject | Run] = []
        for child in children:
            if isinstance(child, ScannedRun):
                rows = removed.rows.get(id(child))
                kept = child.rows if rows is None else child.rows[~np.isin(child.rows, rows)]
                if len(kept) == len(child):
                    out.append(child)
                elif len(kept):
                    out.append(child.part(kept))
            elif isinstance(child, JObject):
                view = PathObjectView(child)
                if view.id in removed.ids:
                    out += self._kept(view.children, removed)
                else:
                    self._remove(child, removed)
                    out.append(child)
        return out

    def _lock(
        self, ids: Sequence[str], locked: bool, removed: set[str], members: dict[str, tuple[ScannedRun, int]]
    ) -> int:
        """Lock or unlock objects; returns how many were not before. Many of one run are done at once."""
        n = 0
        rows: dict[int, list[int]] = {}
        for object_id in dict.fromkeys(ids):
            if object_id in removed:
                raise ProjectError(f"object {object_id} is locked and removed in the same change")
            if object_id in members:
                run, row = members[object_id]
                rows.setdefault(id(run), []).append(row)
            else:
                n += PathObjectView(self._objects[object_id]).set_locked(locked, self._factory)
        return n + sum(self._lock_rows(run, rows[id(run)], locked) for run in self._runs if id(run) in rows)

    def _lock_rows(self, run: ScannedRun, wanted: list[int], locked: bool) -> int:
        tokens = [row for row in wanted if len(wanted) < MIN_REWRITE or row in run.materialised]
        n = sum(PathObjectView(run.materialise(row)).set_locked(locked, self._factory) for row in tokens)
        rows = np.array(sorted(set(wanted).difference(tokens)), dtype=np.int64)
        rows = rows[are_locked(run, rows) != locked]
        if len(rows):
            set_locks(run, rows, locked, self._factory)
        return n + len(rows)

    # ------------------------------------------------------------------ adding
    def _add(self, additions: Additions) -> None:
        parents = [p for p in additions.children if p is not None and p not in additions.tokens]
        members = self._find(parents)
        for parent, tokens in additions.children.items():
            if parent is None:
                token = self.data.root
            elif parent in additions.tokens:
                token = additions.tokens[parent]
            else:
                token = self._token(parent, members)
            view = PathObjectView(token)
            view.set_children([*view.children, *tokens])

    def _set_grid(self, grid: TmaGrid, new: Mapping[str, JObject]) -> None:
        """Give the image a TMA grid whose cores are all new."""
        if self.data.hierarchy.get("tmaGrid") is not None:
            raise ProjectError("the image has a TMA grid already", remedy="remove it in QuPath first")
        if min(grid.width, grid.height) < 1 or len(set(grid.cores)) != grid.width * grid.height:
            raise ProjectError(
                f"TMA grid of {grid.width} x {grid.height} with {len(set(grid.cores))} different cores",
                expected="one core for each place",
            )
        cores = []
        for core in grid.cores:
            token = new.get(core)
            if token is None or object_kind(token) != "tma_core":
                raise ProjectError(
                    f"core {core} of the TMA grid is not added in the same change",
                    expected="a new object of type tma_core",
                )
            cores.append(token)
        self.data.set_tma_grid(grid_token(grid.width, grid.height, cores, self._factory))

    # ------------------------------------------------------------------ connections
    def _drop_connections(self, removed: set[str], members: dict[str, tuple[ScannedRun, int]]) -> None:
        properties = self.data.properties
        gone_tokens = {id(self._objects[i]) for i in removed if i in self._objects}
        gone_members = {(id(run.source), row) for i, (run, row) in members.items() if i in removed}
        extra = properties.parts[-1].extra if properties is not None else None
        for value in extra or ():
            if not isinstance(value, JObject) or value.desc.name != CONNECTIONS:
                continue
            groups = next((t for t in value.contents if isinstance(t, JObject) and t.desc.name == GROUP_LIST), None)
            if groups is None or groups.parts[-1].extra is None:
                raise FormatError("object connections without a list of groups")
            items = [item for item in groups.parts[-1].extra if not isinstance(item, Block)]
            kept = [item for item in items if not _mentions(item, gone_tokens, gone_members)]
            if len(kept) < len(items):
                size = struct.pack(">i", len(kept))
                groups.parts[-1].values = [size]
                groups.parts[-1].extra = [Block(size), *kept]


def _id_column(ids: Sequence[object]) -> IdColumn:
    """Return ids that somebody asked for; what cannot be the id of a record is as good as empty."""
    texts = [i if isinstance(i, str) and len(i) == ID_SIZE and i.isascii() else "" for i in ids]
    return IdColumn(np.array([text.encode() for text in texts], dtype=f"S{ID_SIZE}"))


def _missing_error(object_id: str) -> ProjectError:
    return ProjectError(
        f"object {object_id} is not in the image", remedy="read the objects again; it may have been deleted"
    )


@dataclass(frozen=True)
class _Removed:
    """Removed ids, and the numbers of removed records by ``id()`` of their run."""

    ids: set[str]
    rows: dict[int, list[int]]

    @classmethod
    def of(cls, ids: set[str], members: dict[str, tuple[ScannedRun, int]]) -> _Removed:
        rows: dict[int, list[int]] = {}
        for object_id, (run, row) in members.items():
            if object_id in ids:
                rows.setdefault(id(run), []).append(row)
        return cls(ids, rows)


def _mentions(token: Content, gone: set[int], gone_members: set[tuple[int, int]]) -> bool:
    """Whether something refers to a removed object, without looking into the path objects themselves."""
    stack: list[Content] = [token]
    seen: set[int] = set()
    while stack:
        item = stack.pop()
        if isinstance(item, RunMember):
            if (id(item.source), item.index) in gone_members:
                return True
        elif isinstance(item, JArray):
            stack += item.items
        elif isinstance(item, JObject) and id(item) not in seen:
            seen.add(id(item))
            if id(item) in gone:
                return True
            if not item.desc.is_a("qupath.lib.objects.PathObject"):
                stack += item.contents
                for part in item.parts:
                    stack += [value for value in part.values if not isinstance(value, bytes)]
                    stack += part.extra or []
    return False
