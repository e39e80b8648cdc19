"""The objects of an image inside the JVM: what QuPath's own classes hold, and changes of it through them.

What Paquo's wrappers do to a hierarchy is avoided here: their item views move an edited object to the top level, their
``add_*`` cannot nest, and each object costs a call. New objects cross the border as one stream instead, and QuPath puts
them below their parents. Likewise avoided in QuPath itself: ``removeObjects(..., keepChildren=True)`` sends children
to the top level, not to the parent of what was removed; ``setROI`` clears measurements and ``setPathClass`` takes the
object's own colour away, so that values are changed in the serialised form that QuPath then reads; path classes are
one object for the whole JVM, so that another project's colours would come along if they were not set.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from qupath_ext.change import ChangeCounts, TmaGrid
from qupath_ext.errors import FormatError, ProjectError
from qupath_ext.native.additions import Additions, build_additions
from qupath_ext.native.catalog import OBJECTS, Factory, full_class_name
from qupath_ext.native.datafile import DataFile, count_objects
from qupath_ext.native.edit import CONNECTIONS, HierarchyEdit
from qupath_ext.native.parser import parse_stream
from qupath_ext.native.pathobjects import PathObjectView, object_kind
from qupath_ext.native.tma import grid_cores
from qupath_ext.native.tokens import Block, Content, JObject, Run
from qupath_ext.paquo_bridge.jvm import QUPATH, deserialise, java_class, java_errors, java_texts, serialise

if TYPE_CHECKING:
    import geopandas as gpd
    import pandas as pd

    from qupath_ext.native.stains import Stains

__all__ = ["JavaHierarchy", "QuPathEdit"]

PATH_CLASS = OBJECTS + "classes.PathClass"
Colors = Callable[[str], int | None]


class JavaHierarchy:
    """The hierarchy of a data file as QuPath's objects.

    Parameters
    ----------
    data
        The data file; :meth:`store` puts what QuPath holds back into it.
    colors
        Colour of a path class by its full name, for classes that the file does not have.

    Raises
    ------
    ProjectError
        If QuPath cannot read the objects.
    """

    def __init__(self, data: DataFile, colors: Colors) -> None:
        self._data = data
        self._colors = colors
        self._class_colors = _class_colors(data)
        tokens: list[Content] = [data.hierarchy]
        if _has_connections(data):  # they refer to objects of the hierarchy
            tokens.append(data.properties)
        with java_errors("read the objects"):
            found, *properties = deserialise(tokens, len(tokens))
            self.properties = properties[0] if properties else None
            self.java = java_class(QUPATH + "objects.hierarchy.PathObjectHierarchy")()
            self.java.setHierarchy(found)  # one that was deserialised lacks what is transient
            self.root = self.java.getRootObject()

    def find(self, ids: Iterable[str]) -> dict[str, Any]:
        """Return objects by id.

        Raises
        ------
        ProjectError
            If one is not there.
        """
        wanted = list(dict.fromkeys(ids))
        if not wanted:
            return {}
        found = self._look_up(wanted)
        out = {object_id: found.get(object_id) for object_id in wanted}
        for object_id, item in out.items():
            if item is None:
                raise ProjectError(
                    f"object {object_id} is not in the image",
                    remedy="read the objects again; it may have been deleted",
                )
        return out

    def refuse(self, ids: Sequence[str]) -> None:
        """Raise ProjectError if one of some new ids is in the image already."""
        found = java_class("java.util.ArrayList")(self._look_up(ids).values())
        found.removeAll(java_class("java.util.Collections").singleton(None))
        if not found.isEmpty():
            raise ProjectError(f"object {found.get(0).getID()} is in the image already", expected="new ids")

    def _look_up(self, ids: Sequence[str]) -> Any:
        """Return a Java map of ids to objects, or to null."""
        with java_errors("look up objects by id"):
            tools = java_class(OBJECTS + "PathObjectTools")
            return tools.findByStringID(java_texts(ids), self.java.getAllObjects(False))

    def store(self) -> None:
        """Put what QuPath holds, as QuPath writes it, into the data file.

        Raises
        ------
        ProjectError
            If QuPath cannot write the objects.
        FormatError
            If what it writes is not understood.
        """
        objects = [self.java] if self.properties is None else [self.java, self.properties]
        with java_errors("write the objects"):
            written = serialise(objects)
        tokens, parser = parse_stream(written)
        self._set_colors(parser.handles.values())
        contents = self._data.contents
        for before, after in zip([self._data.hierarchy, self._data.properties], tokens, strict=False):
            contents[next(at for at, token in enumerate(contents) if token is before)] = after
        PathObjectView(self._data.root)

    def _set_colors(self, tokens: Iterable[Content]) -> None:
        """Give each class the colour that it has in the file, or else in the project."""
        known = list(tokens)
        factory = Factory(known, self._colors)
        for token, name in _path_classes(known):
            color = self._class_colors[name] if name in self._class_colors else self._colors(name)
            token.parts[-1].values[0] = None if color is None else factory.integer(color)


def _path_classes(tokens: Iterable[Content]) -> list[tuple[JObject, str]]:
    """Return the tokens of path classes with their full names."""
    found = [t for t in tokens if isinstance(t, JObject) and t.desc.name == PATH_CLASS]
    return [(token, name) for token in found if (name := full_class_name(token)) is not None]


def _class_colors(data: DataFile) -> dict[str, int | None]:
    colors = {}
    for token, name in _path_classes(data.known_tokens()):
        color = token.get("colorRGB")
        value = color.get("value") if isinstance(color, JObject) else None
        colors[name] = int.from_bytes(value, "big", signed=True) if isinstance(value, bytes) else None
    return colors


def _has_connections(data: DataFile) -> bool:
    extra = data.properties.parts[-1].extra if data.properties is not None else None
    return any(isinstance(value, JObject) and value.desc.name == CONNECTIONS for value in extra or ())


class QuPathEdit(HierarchyEdit):
    """Changes a data file through QuPath's own classes.

    Image type, stains and values of objects are changed in the serialised form, which QuPath then reads; objects are
    removed, locked and added in QuPath.
    """

    def __init__(self, data: DataFile, colors: Colors) -> None:
        super().__init__(data, colors)
        self._colors = colors

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
        """Do what :meth:`HierarchyEdit.apply` does, to QuPath's own objects.

        Raises
        ------
        ProjectError
            As there, and if QuPath refuses something.
        """
        counts = super().apply(update=update, image_type=image_type, stains=stains)
        before = sum(count_objects(self.data.root).values())
        hierarchy = JavaHierarchy(self.data, self._colors)
        factory = Factory(self.data.known_tokens(), self._colors)
        cores = frozenset() if tma_grid is None else frozenset(tma_grid.cores)
        additions = None if add is None or len(add) == 0 else build_additions(add, factory, cores)
        removed = list(dict.fromkeys(remove))
        parents = _parents(additions, removed)
        found = hierarchy.find([*removed, *lock, *unlock, *parents])
        self._refuse_cores(removed)
        with java_errors("change the objects"):
            _remove(hierarchy, [found[object_id] for object_id in removed])
            n_locked = sum(_set_lock(found, ids, locked, removed) for ids, locked in ((lock, True), (unlock, False)))
        if additions is not None:
            hierarchy.refuse(additions.ids.tolist())
            _add(hierarchy, additions, found, factory)
        if tma_grid is not None:
            _set_grid(hierarchy, tma_grid, {} if additions is None else additions.tokens)
        hierarchy.store()
        n_added = 0 if additions is None else len(additions.ids)
        after = sum(count_objects(self.data.root).values())
        if after != before - len(removed) + n_added:
            raise FormatError(
                f"QuPath holds {after} objects after the change",
                expected=f"{before - len(removed) + n_added}",
                remedy="nothing was written",
            )
        return ChangeCounts(
            added={} if additions is None else dict(additions.counts),
            removed=len(removed),
            locked=n_locked,
            updated=counts.updated,
        )

    def _refuse_cores(self, removed: Sequence[str]) -> None:
        cores = {PathObjectView(core).id for core in grid_cores(self.data)}
        if not cores.isdisjoint(removed):
            raise ProjectError("a core of the TMA grid cannot be removed", remedy="remove it in QuPath")


def _parents(additions: Additions | None, removed: Sequence[str]) -> list[str]:
    """Return the ids of the objects there that get new children."""
    if additions is None:
        return []
    new, gone = set(additions.ids.tolist()), set(removed)
    parents = [parent for parent in additions.children if parent is not None and parent not in new]
    for parent in parents:
        if parent in gone:
            raise ProjectError(f"parent {parent} is removed in the same change", expected="a parent that stays")
    return parents


def _remove(hierarchy: JavaHierarchy, objects: Sequence[Any]) -> None:
    """Remove objects; children that stay move to the parent of what was removed, from below."""
    if not objects:
        return
    listed = java_class("java.util.ArrayList")(objects)
    if hierarchy.properties is not None:
        _drop_connections(hierarchy.properties, listed)
    leaves = java_class("java.util.ArrayList")([item for item in objects if not item.hasChildObjects()])
    hierarchy.java.removeObjects(leaves, False)
    for item in objects:
        if item.getParent() is not None:
            hierarchy.java.removeObjectWithoutUpdate(item, True)


def _drop_connections(properties: Any, removed: Any) -> None:
    """Drop the groups of connections that mention a removed object: QuPath would bring it back as a lone copy."""
    connections = properties.get("OBJECT_CONNECTIONS")
    gone = java_class("java.util.HashSet")(removed)
    for group in list(connections.getConnectionGroups()):
        if not java_class("java.util.Collections").disjoint(gone, group.getPathObjects()):
            connections.removeGroup(group)


def _set_lock(found: Mapping[str, Any], ids: Sequence[str], locked: bool, removed: Sequence[str]) -> int:
    gone = set(removed)
    n = 0
    for object_id in dict.fromkeys(ids):
        if object_id in gone:
            raise ProjectError(f"object {object_id} is locked and removed in the same change")
        if found[object_id].isLocked() != locked:
            found[object_id].setLocked(locked)
            n += 1
    return n


def _add(hierarchy: JavaHierarchy, additions: Additions, found: Mapping[str, Any], factory: Factory) -> None:
    """Put new objects below their parents: one list for each parent that is there, new children inside new parents."""
    lists: dict[str | None, JObject] = {}
    for parent, tokens in additions.children.items():
        if parent is not None and parent in additions.tokens:
            PathObjectView(additions.tokens[parent]).set_children(tokens)
        else:
            lists[parent] = _object_list(tokens, factory)
    with java_errors("read the new objects"):
        for parent, objects in zip(lists, deserialise(lists.values(), len(lists)), strict=True):
            (hierarchy.root if parent is None else found[parent]).addChildObjects(objects)


def _object_list(tokens: Sequence[JObject | Run], factory: Factory) -> JObject:
    """Return a ``java.util.ArrayList`` of path objects."""
    n = sum(len(token) if isinstance(token, Run) else 1 for token in tokens)
    size = struct.pack(">i", n)
    return factory.obj("java.util.ArrayList", [size], extra=[Block(size), *tokens])


def _set_grid(hierarchy: JavaHierarchy, grid: TmaGrid, new: Mapping[str, JObject]) -> None:
    """Give the image a TMA grid whose cores are all new.

    There must be none: QuPath would remove the old cores with all that lies in them.
    """
    if hierarchy.java.getTMAGrid() is not None:
        raise ProjectError("the image has a TMA grid already", remedy="remove it in QuPath first")
    if min(grid.width, grid.height) < 1 or len(set(grid.cores)) != grid.width * grid.height:
        raise ProjectError(
            f"TMA grid of {grid.width} x {grid.height} with {len(set(grid.cores))} different cores",
            expected="one core for each place",
        )
    for core in grid.cores:
        if core not in new or object_kind(new[core]) != "tma_core":
            raise ProjectError(
                f"core {core} of the TMA grid is not added in the same change", expected="a new object of type tma_core"
            )
    found = hierarchy.find(grid.cores)
    cores = java_class("java.util.ArrayList")([found[core] for core in grid.cores])
    with java_errors("set the TMA grid"):
        made = java_class(OBJECTS + "hierarchy.DefaultTMAGrid").create(cores, grid.width)
        hierarchy.java.setTMAGrid(made)
