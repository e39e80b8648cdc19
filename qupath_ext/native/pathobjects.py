"""Path objects as tokens: where their parts are, what they say, and how new ones are made."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from shapely.geometry.base import BaseGeometry

from qupath_ext.errors import FormatError
from qupath_ext.native.catalog import OBJECTS, Factory, full_class_name
from qupath_ext.native.measurementlists import is_list, primitive, read_measurements
from qupath_ext.native.roi import is_roi, make_ellipse, make_roi
from qupath_ext.native.tokens import Block, Content, JArray, JObject, JString, Run

__all__ = ["GENERAL_LISTS", "NewObject", "PathObjectView", "make_object", "object_kind", "walk"]

KINDS = {
    OBJECTS + "PathRootObject": "root",
    OBJECTS + "TMACoreObject": "tma_core",
    OBJECTS + "PathAnnotationObject": "annotation",
    OBJECTS + "PathCellObject": "cell",
    OBJECTS + "PathTileObject": "tile",
    OBJECTS + "PathDetectionObject": "detection",
}
CLASS_OF_KIND = {kind: name for name, kind in KINDS.items()}
OLD_KINDS = {"qupath.imagej.detect.cells.SubcellularDetection$SubcellularObject": "detection"}
"""Classes that old versions of QuPath wrote and new ones do not."""
GENERAL_LISTS = ("root", "annotation", "tma_core")
"""Types whose measurements are doubles, one by one; all others have lists of floats."""
PATH_CLASS = OBJECTS + "classes.PathClass"
METADATA_MAP = OBJECTS + "MetadataMap"
OBJECT_ID = "Object ID"


def object_kind(obj: JObject) -> str:
    """Return the object type (``"root"`` or one of those of the path-object table) of a path object.

    Raises
    ------
    FormatError
        If it is of another class, even of one that is derived from a class of path objects.
    """
    kind = KINDS.get(obj.desc.name) or OLD_KINDS.get(obj.desc.name)
    if kind is None:
        raise FormatError(
            f"object {_id_or_unknown(obj)} is of class {obj.desc.name}", expected="a path object of QuPath 0.2 to 0.8"
        )
    return kind


def _id_or_unknown(obj: JObject) -> str:
    """Return the id of an object whose layout may not be known, for messages."""
    for token in obj.contents[2:3]:
        for array in token.contents if isinstance(token, JObject) else ():
            for item in array.items if isinstance(array, JArray) else ():
                if isinstance(item, JString) and _is_id(item.text):
                    return item.text
    return "(without id)"


def _is_id(text: str | None) -> bool:
    return text is not None and len(text) <= 36 and "-" in text


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
        self._all_metadata: dict[str, str] | None = None
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
        where = f"object {_id_or_unknown(self.token)} of class {self.token.desc.name}"
        return FormatError(f"{found} in {where}", expected=expected)

    def _at(self, at: int) -> Content:
        if at >= len(self.token.contents):
            raise self._error("parts missing")
        return self.token.contents[at]

    def _head(self, contents: list[Content]) -> int:
        """Read metadata and measurement list; returns where the number of children is."""
        item = contents[2]
        if isinstance(item, JObject) and item.desc.name == METADATA_MAP:
            self.metadata_token = item
            self._take_field(contents[3])
            return 4
        if isinstance(item, JObject) and item.desc.name == "java.util.UUID":
            values = b"".join(value for part in item.parts for value in part.values if isinstance(value, bytes))
            if len(values) != 16:
                raise self._error("a damaged id")
            least, most = struct.unpack(">QQ", values)
            raw = f"{most << 64 | least:032x}"
            self._uuid = "-".join((raw[:8], raw[8:12], raw[12:16], raw[16:20], raw[20:]))
            block = contents[3]
            if not isinstance(block, Block) or len(block.raw) not in (4, 8):
                raise self._error("no number of fields")
            if len(block.raw) == 8:
                return 3
            at = 4 + int.from_bytes(block.raw, "big")
            for token in contents[4:at]:
                self._take_field(token)
            return at
        self._take_field(item)
        return 3

    def _take_field(self, token: Content) -> None:
        if isinstance(token, JObject) and token.desc.name == METADATA_MAP:
            self.metadata_token = token
        elif isinstance(token, JObject) and is_list(token):
            self.list_token = token
        elif token is not None:
            raise self._error("an unknown part before the children")

    def _tail(self) -> None:
        self.lock_at: int | None = None
        self.probability, self.missing = math.nan, False
        end = self.tail_at
        if self.kind != "root":
            end = self._after_children()
        if end != len(self.token.contents):
            raise self._error("unknown parts at the end")

    def _after_children(self) -> int:
        """Read what follows the children; returns where it ends."""
        at = self.tail_at
        lock = self._at(at)
        if isinstance(lock, JObject) and lock.desc.name == "java.lang.Boolean":
            self.lock_at = at
            at += 1
        self.class_at = at
        self.class_token = self._object_or_null(at)
        if self.class_token is not None and self.class_token.desc.name != PATH_CLASS:
            raise self._error(f"a {self.class_token.desc.name} in place of a class")
        self.roi_token = self._roi_or_null(at + 1)
        block = self._at(at + 2)
        if not isinstance(block, Block) or len(block.raw) != (9 if self.kind == "tma_core" else 8):
            raise self._error("no class probability")
        self.probability = float(struct.unpack(">d", block.raw[:8])[0])
        self.missing = block.raw[8:] == b"\x01"
        self.nucleus_token = self._roi_or_null(at + 3) if self.kind == "cell" else None
        return at + 3 + (self.kind == "cell")

    def _object_or_null(self, at: int) -> JObject | None:
        token = self._at(at)
        if token is not None and not isinstance(token, JObject):
            raise self._error("something unknown after the children")
        return token

    def _roi_or_null(self, at: int) -> JObject | None:
        token = self._object_or_null(at)
        if token is not None and not is_roi(token):
            raise self._error(f"a ROI of class {token.desc.name}")
        return token

    def check(self) -> None:
        """Read everything that the object says, so that nothing is carried along that is not understood.

        Raises
        ------
        FormatError
            If a part is of a kind that is not known.
        """
        _ = self.name, self.color, self.metadata, self.locked, self.classification, self.measurements

    # ------------------------------------------------------------------ values
    @property
    def children(self) -> list[JObject | Run]:
        """The child objects and runs of child objects."""
        return [c for c in self.token.contents[self.count_at + 1 : self.tail_at] if isinstance(c, (JObject, Run))]

    @property
    def name(self) -> str | None:
        """The name."""
        token = self.token.contents[0]
        if token is not None and not isinstance(token, JString):
            raise self._error("a name that is no text")
        return None if token is None else token.text

    @property
    def color(self) -> int | None:
        """The object's own colour, signed packed ARGB."""
        token = self.token.contents[1]
        if token is not None and not isinstance(token, JObject):
            raise self._error("a colour that is no number")
        return None if token is None else int.from_bytes(primitive(token, "value"), "big", signed=True)

    @property
    def all_metadata(self) -> dict[str, str]:
        """The metadata with the object id."""
        if self._all_metadata is None:
            self._all_metadata = self._read_metadata()
        return self._all_metadata

    def _read_metadata(self) -> dict[str, str]:
        if self.metadata_token is None:
            return {}
        contents = self.metadata_token.contents
        keys, values = contents[1:] if len(contents) == 3 else (None, None)
        if not isinstance(keys, JArray) or not isinstance(values, JArray) or len(keys.items) != len(values.items):
            raise self._error("a damaged metadata map")
        out = {}
        for key, value in zip(keys.items, values.items, strict=True):
            if not isinstance(key, JString) or not isinstance(value, JString):
                raise self._error("metadata that are not text")
            out[key.text] = value.text
        return out

    @property
    def id(self) -> str | None:
        """The stored id; files of QuPath 0.2 and 0.3 have none."""
        if self._uuid is not None:
            return self._uuid
        value = self.all_metadata.get(OBJECT_ID)
        return value if _is_id(value) else None

    @property
    def metadata(self) -> dict[str, str] | None:
        """The metadata without the object id; None if there is none."""
        stored_as_entry = self._uuid is None and self.id is not None
        out = {key: text for key, text in self.all_metadata.items() if not (stored_as_entry and key == OBJECT_ID)}
        return out or None

    @property
    def locked(self) -> bool:
        """Whether the object is locked."""
        if self.lock_at is None:
            return False
        token = self.token.contents[self.lock_at]
        return isinstance(token, JObject) and primitive(token, "value") == b"\x01"

    @property
    def classification(self) -> str | None:
        """The full class name."""
        return None if self.class_token is None else full_class_name(self.class_token)

    @property
    def measurements(self) -> dict[str, float]:
        """The measurements in their order."""
        try:
            return {} if self.list_token is None else read_measurements(self.list_token)
        except FormatError as error:
            raise self._error(error.found, expected=error.expected) from error

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
        self._set_head(factory.metadata_map({**self.all_metadata, OBJECT_ID: object_id}), self.list_token)

    def set_metadata(self, entries: Mapping[str, str], factory: Factory) -> None:
        """Replace the metadata, but for the id; the view is out of date afterwards."""
        ids = {} if self.id is None else {OBJECT_ID: self.id}
        self._set_head(factory.metadata_map({**entries, **ids}), self.list_token)

    def set_list(self, token: JObject, factory: Factory) -> None:
        """Replace the measurement list; the view is out of date afterwards."""
        metadata = self.metadata_token
        if self._uuid is not None:
            metadata = factory.metadata_map({**self.all_metadata, OBJECT_ID: self._uuid})
        self._set_head(metadata, token)

    def _set_head(self, metadata: JObject | None, measurements: JObject | None) -> None:
        head: list[Content] = [measurements] if metadata is None else [metadata, measurements]
        block = struct.pack(">i", self.n_children)
        self.token.contents[2 : self.count_at + 1] = [*head, Block(block)]

    def set_name(self, name: str | None) -> None:
        """Set or take away the name."""
        self.token.contents[0] = None if name is None else JString.of(name)

    def set_color(self, color: int | None, factory: Factory) -> None:
        """Set or take away the object's own colour."""
        self.token.contents[1] = None if color is None else factory.integer(color)

    def set_classification(self, name: str | None, factory: Factory) -> None:
        """Set or take away the class."""
        self.token.contents[self.class_at] = None if name is None else factory.path_class(name)

    def set_roi(self, roi: JObject) -> None:
        """Replace the ROI."""
        self.token.contents[self.class_at + 1] = roi

    def set_nucleus(self, roi: JObject | None) -> None:
        """Replace or take away the nucleus of a cell."""
        self.token.contents[self.class_at + 3] = roi

    def set_missing(self, missing: bool) -> None:
        """Set whether a TMA core is missing."""
        block = self.token.contents[self.class_at + 2]
        before = block.raw[:8] if isinstance(block, Block) else b""
        self.token.contents[self.class_at + 2] = Block(before + bytes([missing]))

    def set_probability(self, value: float) -> None:
        """Set the class probability; NaN is none."""
        block = self.token.contents[self.class_at + 2]
        after = block.raw[8:] if isinstance(block, Block) else b""
        self.token.contents[self.class_at + 2] = Block(struct.pack(">d", value) + after)


def walk(root: JObject) -> Iterator[tuple[PathObjectView | Run, JObject | None]]:
    """Every object or run below `root` with its parent's token (None for the top level), parents first, in order."""
    stack: list[tuple[JObject | Run, JObject | None]] = [(c, None) for c in reversed(PathObjectView(root).children)]
    seen = {id(root)}
    while stack:
        token, parent = stack.pop()
        if isinstance(token, Run):
            yield token, parent
            stack.extend(
                (child, owner) for owner in token.changed_members() for child in PathObjectView(owner).children
            )
            continue
        if id(token) in seen:
            raise FormatError("an object that is in the hierarchy twice")
        seen.add(id(token))
        view = PathObjectView(token)
        if view.kind == "root":
            raise FormatError(f"root object {view.id} below another object", expected="one root, at the top")
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
    missing: bool = False
    color: int | None = None
    probability: float = math.nan
    plane: tuple[int, int, int] = (-1, 0, 0)
    metadata: Mapping[str, str] = field(default_factory=dict)
    measurements: Mapping[str, float] = field(default_factory=dict)


def make_object(new: NewObject, factory: Factory) -> JObject:
    """Return a path object without children; annotations and cores get a list of doubles, others one of floats."""
    metadata = factory.metadata_map({**new.metadata, OBJECT_ID: new.id})
    values: JObject | None = None
    if new.kind in GENERAL_LISTS:
        values = factory.default_list(new.measurements) if new.measurements else None
    elif new.measurements:
        with np.errstate(over="ignore"):  # too large for float32: infinite, as in Java
            raw = np.asarray(list(new.measurements.values()), dtype=">f4").tobytes()
        values = factory.number_list(tuple(new.measurements), raw)
    contents: list[Content] = [
        None if new.name is None else JString.of(new.name),
        None if new.color is None else factory.integer(new.color),
        metadata,
        values,
        Block(struct.pack(">i", 0)),
    ]
    if new.kind != "root":
        missing = bytes([new.missing]) if new.kind == "tma_core" else b""
        make = make_ellipse if new.kind == "tma_core" else make_roi
        contents += [
            factory.boolean(new.locked),
            None if new.classification is None else factory.path_class(new.classification),
            None if new.geometry is None else make(new.geometry, new.plane, factory),
            Block(struct.pack(">d", new.probability) + missing),
        ]
    if new.kind == "cell":
        contents.append(None if new.nucleus is None else make_roi(new.nucleus, new.plane, factory))
    return factory.external(CLASS_OF_KIND[new.kind], contents)
