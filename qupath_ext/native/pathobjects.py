"""Path objects as tokens: where their parts are, what they say, and how new ones are made."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from shapely.geometry.base import BaseGeometry

from qupath_ext.errors import FormatError
from qupath_ext.native.catalog import OBJECTS, Factory, full_class_name
from qupath_ext.native.roi import make_roi
from qupath_ext.native.tokens import Block, Content, JArray, JObject, JString, Run

__all__ = ["NewObject", "PathObjectView", "make_object", "object_kind", "walk"]

KINDS = {
    OBJECTS + "PathRootObject": "root",
    OBJECTS + "TMACoreObject": "tma_core",
    OBJECTS + "PathAnnotationObject": "annotation",
    OBJECTS + "PathCellObject": "cell",
    OBJECTS + "PathTileObject": "tile",
    OBJECTS + "PathDetectionObject": "detection",
}
CLASS_OF_KIND = {kind: name for name, kind in KINDS.items()}
MEASUREMENTS = "qupath.lib.measurements."
OBJECT_ID = "Object ID"


def object_kind(obj: JObject) -> str:
    """Return the object type (``"root"`` or one of those of the path-object table) of a path object.

    Raises
    ------
    FormatError
        If it is no path object.
    """
    for name, kind in KINDS.items():
        if obj.desc.is_a(name):
            return kind
    raise FormatError(f"object of class {obj.desc.name} in the hierarchy", expected="a path object")


class PathObjectView:
    """What a path object says; a thin view, changes go into the token itself.

    Raises
    ------
    FormatError
        If the contents do not follow the layout of a path object.
    """

    def __init__(self, token: JObject) -> None:
        self.token = token
        self.kind = object_kind(token)
        contents = token.contents
        if len(contents) < 4:
            raise self._error("too few parts")
        self.metadata_token: JObject | None = None
        self.list_token: JObject | None = None
        self._uuid: str | None = None
        at = self._head(contents)
        block = self._at(at)
        if not isinstance(block, Block) or len(block.raw) < 4:
            raise self._error("no number of children")
        self.count_at = at
        self.n_children = int.from_bytes(block.raw[-4:], "big", signed=True)
        seen, at = 0, at + 1
        while seen < self.n_children:
            child = self._at(at)
            if isinstance(child, Run):
                seen += len(child)
            elif isinstance(child, JObject):
                seen += 1
            else:
                raise self._error("something else than a child")
            at += 1
        if seen != self.n_children:
            raise self._error(f"{seen} children", expected=f"{self.n_children}")
        self.tail_at = at
        self._tail()

    def _error(self, found: str, *, expected: str = "the layout of QuPath 0.2 to 0.8") -> FormatError:
        return FormatError(f"{found} in an object of class {self.token.desc.name}", expected=expected)

    def _at(self, at: int) -> Content:
        if at >= len(self.token.contents):
            raise self._error("parts missing")
        return self.token.contents[at]

    def _head(self, contents: list[Content]) -> int:
        """Read metadata and measurement list; returns where the number of children is."""
        item = contents[2]
        if isinstance(item, JObject) and item.desc.name == "java.util.UUID":
            values = b"".join(value for part in item.parts for value in part.values if isinstance(value, bytes))
            least, most = struct.unpack(">QQ", values)
            raw = f"{most << 64 | least:032x}"
            self._uuid = "-".join((raw[:8], raw[8:12], raw[12:16], raw[16:20], raw[20:]))
            block = contents[3]
            if not isinstance(block, Block) or len(block.raw) not in (4, 8):
                raise self._error("no number of fields")
            if len(block.raw) == 8:
                return 3
            at = 4 + int.from_bytes(block.raw, "big", signed=True)
            for token in contents[4:at]:
                self._take_field(token)
            return at
        if isinstance(item, JObject) and item.desc.name == OBJECTS + "MetadataMap":
            self._take_field(item)
            self._take_field(contents[3])
            return 4
        self._take_field(item)
        return 3

    def _take_field(self, token: Content) -> None:
        if isinstance(token, JObject) and token.desc.name == OBJECTS + "MetadataMap":
            self.metadata_token = token
        elif isinstance(token, JObject) and token.desc.name.startswith(MEASUREMENTS):
            self.list_token = token
        elif token is not None:
            raise self._error("an unknown part before the children")

    def _tail(self) -> None:
        self.lock_at: int | None = None
        if self.kind == "root":
            return
        at = self.tail_at
        lock = self._at(at)
        if isinstance(lock, JObject) and lock.desc.name == "java.lang.Boolean":
            self.lock_at = at
            at += 1
        self.class_token = self._object_or_null(at)
        self.roi_token = self._object_or_null(at + 1)
        block = self._at(at + 2)
        if not isinstance(block, Block) or len(block.raw) not in (8, 9):
            raise self._error("no class probability")
        self.nucleus_token = self._object_or_null(at + 3) if self.kind == "cell" else None

    def _object_or_null(self, at: int) -> JObject | None:
        token = self._at(at)
        if token is not None and not isinstance(token, JObject):
            raise self._error("something unknown after the children")
        return token

    # ------------------------------------------------------------------ values
    @property
    def children(self) -> list[JObject | Run]:
        """The child objects and runs of child objects."""
        return [c for c in self.token.contents[self.count_at + 1 : self.tail_at] if isinstance(c, (JObject, Run))]

    @property
    def name(self) -> str | None:
        """The name."""
        token = self.token.contents[0]
        return token.text if isinstance(token, JString) else None

    @property
    def color(self) -> int | None:
        """The object's own colour, signed packed ARGB."""
        token = self.token.contents[1]
        return int.from_bytes(_primitive(token, "value"), "big", signed=True) if isinstance(token, JObject) else None

    @property
    def all_metadata(self) -> dict[str, str]:
        """The metadata with the object id."""
        if self.metadata_token is None:
            return {}
        contents = self.metadata_token.contents
        keys, values = contents[1:] if len(contents) == 3 else (None, None)
        if not isinstance(keys, JArray) or not isinstance(values, JArray) or keys.length != values.length:
            raise self._error("a damaged metadata map")
        out = {}
        for key, value in zip(keys.items, values.items, strict=True):
            if isinstance(key, JString) and isinstance(value, JString):
                out[key.text] = value.text
        return out

    @property
    def id(self) -> str | None:
        """The stored id; files of QuPath 0.2 and 0.3 have none."""
        if self._uuid is not None:
            return self._uuid
        value = self.all_metadata.get(OBJECT_ID)
        return value if value is not None and len(value) <= 36 and "-" in value else None

    @property
    def metadata(self) -> dict[str, str] | None:
        """The metadata without the object id; None if there is none."""
        out = self.all_metadata
        if self.id is not None and self._uuid is None:
            del out[OBJECT_ID]
        return out or None

    @property
    def locked(self) -> bool:
        """Whether the object is locked."""
        if self.lock_at is None:
            return False
        token = self.token.contents[self.lock_at]
        return isinstance(token, JObject) and _primitive(token, "value") == b"\x01"

    @property
    def classification(self) -> str | None:
        """The full class name."""
        return None if self.class_token is None else full_class_name(self.class_token)

    @property
    def measurements(self) -> dict[str, float]:
        """The measurements in their order."""
        return {} if self.list_token is None else read_measurements(self.list_token)

    # ------------------------------------------------------------------ changes
    def set_children(self, children: Sequence[JObject | Run]) -> None:
        """Replace the children; the view is out of date afterwards."""
        n = sum(len(child) if isinstance(child, Run) else 1 for child in children)
        contents = self.token.contents
        block = contents[self.count_at]
        before = block.raw[:-4] if isinstance(block, Block) else b""
        contents[self.count_at : self.tail_at] = [Block(before + struct.pack(">i", n)), *children]

    def set_locked(self, locked: bool, factory: Factory) -> bool:
        """Set the lock; whether that changed anything."""
        if self.locked == locked:
            return False
        if self.lock_at is None:
            self.token.contents.insert(self.tail_at, factory.boolean(locked))
        else:
            self.token.contents[self.lock_at] = factory.boolean(locked)
        return True

    def set_id(self, object_id: str, factory: Factory) -> None:
        """Store an id in an object that has none; the view is out of date afterwards."""
        token = factory.metadata_map({**self.all_metadata, OBJECT_ID: object_id})
        if self.metadata_token is None:
            self.token.contents.insert(2, token)
        else:
            self.token.contents[self.token.contents.index(self.metadata_token)] = token


def _primitive(token: JObject, name: str) -> bytes:
    value = token.get(name)
    if not isinstance(value, bytes):
        raise FormatError(f"field {name} of {token.desc.name} is no number")
    return value


# ---------------------------------------------------------------------- measurements
def read_measurements(token: JObject) -> dict[str, float]:
    """Return the names and values of a measurement list of any kind.

    Raises
    ------
    FormatError
        If the list is of a kind that is not known.
    """
    kind = token.desc.name.removeprefix(MEASUREMENTS)
    match kind:
        case "NumericMeasurementList$FloatList" | "NumericMeasurementList$DoubleList":
            values = token.get("values")
            if not isinstance(values, JArray):
                raise FormatError(f"{token.desc.name} without values")
            numbers = np.frombuffer(values.raw, dtype=">f4" if kind.endswith("FloatList") else ">f8").tolist()
            return dict(zip(list_names(token.get("names")), numbers, strict=False))
        case "DefaultMeasurementList":
            out = {}
            for item in list_items(token.get("list")):
                if isinstance(item, JObject) and isinstance(name := item.get("name"), JString):
                    raw = _primitive(item, "value")
                    out[name.text] = float(struct.unpack(">d" if len(raw) == 8 else ">f", raw)[0])
            return out
    raise FormatError(f"measurement list of class {token.desc.name}", expected="a kind that QuPath 0.2 to 0.8 writes")


def list_items(token: bytes | Content) -> list[Content]:
    """Return the elements of a ``java.util`` list (``ArrayList``, an unmodifiable view of one, or ``List.of``).

    Raises
    ------
    FormatError
        If it is another kind of list.
    """
    if isinstance(token, JObject):
        if token.desc.name.startswith("java.util.Collections$Unmodifiable"):
            return list_items(token.get("c"))
        if token.desc.name in ("java.util.ArrayList", "java.util.CollSer"):
            extra = token.parts[-1].extra or []
            return [item for item in extra if not isinstance(item, Block)]
    kind = token.desc.name if isinstance(token, JObject) else type(token).__name__
    raise FormatError(f"list of class {kind}", expected="an ArrayList, an unmodifiable list or List.of")


def list_names(token: bytes | Content) -> list[str]:
    """Return the strings of a list."""
    return [item.text for item in list_items(token) if isinstance(item, JString)]


def walk(root: JObject) -> Iterator[tuple[PathObjectView | Run, JObject | None]]:
    """Every object or run below `root` with its parent's token (None for the top level), parents first, in order."""
    stack: list[tuple[JObject | Run, JObject | None]] = [(c, None) for c in reversed(PathObjectView(root).children)]
    while stack:
        token, parent = stack.pop()
        if isinstance(token, Run):
            yield token, parent
            stack.extend(
                (child, owner) for owner in token.changed_members() for child in PathObjectView(owner).children
            )
            continue
        view = PathObjectView(token)
        yield view, parent
        stack.extend((child, token) for child in reversed(view.children))


# ---------------------------------------------------------------------- new objects
@dataclass
class NewObject:
    """One path object to be written token by token."""

    id: str
    kind: str
    geometry: BaseGeometry | None
    nucleus: BaseGeometry | None = None
    classification: str | None = None
    name: str | None = None
    locked: bool = False
    color: int | None = None
    plane: tuple[int, int, int] = (-1, 0, 0)
    metadata: Mapping[str, str] = field(default_factory=dict)
    measurements: Mapping[str, float] = field(default_factory=dict)


def make_object(new: NewObject, factory: Factory) -> JObject:
    """Return a path object without children; annotations get a list of doubles, all others one of floats."""
    metadata = factory.metadata_map({**new.metadata, OBJECT_ID: new.id})
    values: JObject | None = None
    if new.kind in ("annotation", "root"):
        values = factory.default_list(new.measurements) if new.measurements else None
    elif new.measurements:
        raw = np.asarray(list(new.measurements.values()), dtype=">f4").tobytes()
        values = factory.float_list(tuple(new.measurements), raw)
    contents: list[Content] = [
        None if new.name is None else JString.of(new.name),
        None if new.color is None else factory.integer(new.color),
        metadata,
        values,
        Block(struct.pack(">i", 0)),
    ]
    if new.kind != "root":
        contents += [
            factory.boolean(new.locked),
            None if new.classification is None else factory.path_class(new.classification),
            None if new.geometry is None else make_roi(new.geometry, new.plane, factory),
            Block(struct.pack(">d", float("nan"))),
        ]
    if new.kind == "cell":
        contents.append(None if new.nucleus is None else make_roi(new.nucleus, new.plane, factory))
    return factory.external(CLASS_OF_KIND[new.kind], contents)
