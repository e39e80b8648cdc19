"""The classes that a writer needs, as they stand in every file from QuPath 0.2 to 0.8, and makers of small objects.

Only facts of the format are here: class name, serialVersionUID, flags, fields in descriptor order, superclass.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Mapping, Sequence

from qupath_ext.errors import FormatError, ProjectError
from qupath_ext.native.tokens import (
    ENUM,
    EXTERNALIZABLE,
    SERIALIZABLE,
    SERIALIZABLE_WITH_DATA,
    Block,
    ClassDesc,
    Content,
    Field,
    JArray,
    JEnum,
    JObject,
    JString,
    Part,
)

__all__ = ["Factory", "full_class_name"]

STRING = "Ljava/lang/String;"
STATS = "Lqupath/lib/roi/ClosedShapeStatistics;"
PLANE = ("I c", "I t", "I z")
CORNERS = ("I c", "I t", "D x", "D x2", "D y", "D y2", "I z", f"L name {STRING}")
OBJECTS = "qupath.lib.objects."
LISTS = "qupath.lib.measurements."

CLASSES: dict[str, tuple[int, int, tuple[str, ...], str | None]] = {
    "java.util.Locale": (
        9149081749638150636,
        SERIALIZABLE_WITH_DATA,
        ("I hashcode", *(f"L {name} {STRING}" for name in ("country", "extensions", "language", "script", "variant"))),
        None,
    ),
    "java.lang.Enum": (0, ENUM, (), None),
    "java.lang.Number": (-8742448824652078965, SERIALIZABLE, (), None),
    "java.lang.Integer": (1360826667806852920, SERIALIZABLE, ("I value",), "java.lang.Number"),
    "java.lang.Boolean": (-3665804199014368530, SERIALIZABLE, ("Z value",), None),
    "java.util.HashMap": (362498820763181265, SERIALIZABLE_WITH_DATA, ("F loadFactor", "I threshold"), None),
    "java.util.ArrayList": (8683452581122892189, SERIALIZABLE_WITH_DATA, ("I size",), None),
    "java.util.Collections$UnmodifiableCollection": (
        1820017752578914078,
        SERIALIZABLE,
        ("L c Ljava/util/Collection;",),
        None,
    ),
    "java.util.Collections$UnmodifiableList": (
        -283967356065247728,
        SERIALIZABLE,
        ("L list Ljava/util/List;",),
        "java.util.Collections$UnmodifiableCollection",
    ),
    "[Ljava.lang.Object;": (-8012369246846506644, SERIALIZABLE, (), None),
    "[F": (836686056779680834, SERIALIZABLE, (), None),
    "[D": (4514449696888150558, SERIALIZABLE, (), None),
    "[B": (-5984413125824719648, SERIALIZABLE, (), None),
    "qupath.lib.images.ImageData$ImageType": (0, ENUM, (), "java.lang.Enum"),
    "qupath.lib.color.ColorDeconvolutionStains": (1, EXTERNALIZABLE, (), None),
    "qupath.lib.plugins.workflow.Workflow": (1, EXTERNALIZABLE, (), None),
    OBJECTS + "hierarchy.PathObjectHierarchy": (
        1,
        SERIALIZABLE,
        ("L rootObject Lqupath/lib/objects/PathObject;", "L tmaGrid Lqupath/lib/objects/hierarchy/TMAGrid;"),
        None,
    ),
    OBJECTS + "hierarchy.DefaultTMAGrid": (
        1,
        SERIALIZABLE,
        ("I gridHeight", "I gridWidth", "L cores Ljava/util/List;"),
        None,
    ),
    OBJECTS + "PathObject": (1, EXTERNALIZABLE, (), None),
    OBJECTS + "PathRootObject": (1, EXTERNALIZABLE, (), OBJECTS + "PathObject"),
    OBJECTS + "PathROIObject": (1, EXTERNALIZABLE, (), OBJECTS + "PathObject"),
    OBJECTS + "PathAnnotationObject": (1, EXTERNALIZABLE, (), OBJECTS + "PathROIObject"),
    OBJECTS + "PathDetectionObject": (1, EXTERNALIZABLE, (), OBJECTS + "PathROIObject"),
    OBJECTS + "PathTileObject": (1, EXTERNALIZABLE, (), OBJECTS + "PathDetectionObject"),
    OBJECTS + "TMACoreObject": (1, EXTERNALIZABLE, (), OBJECTS + "PathROIObject"),
    OBJECTS + "PathCellObject": (1, EXTERNALIZABLE, (), OBJECTS + "PathDetectionObject"),
    OBJECTS + "MetadataMap": (1, EXTERNALIZABLE, (), None),
    OBJECTS + "classes.PathClass": (
        1,
        SERIALIZABLE,
        (
            "L colorRGB Ljava/lang/Integer;",
            f"L name {STRING}",
            "L parentClass Lqupath/lib/objects/classes/PathClass;",
        ),
        None,
    ),
    LISTS + "NumericMeasurementList$AbstractNumericMeasurementList": (
        1,
        SERIALIZABLE,
        ("Z isClosed", "L map Ljava/util/Map;", "L names Ljava/util/List;"),
        None,
    ),
    LISTS + "NumericMeasurementList$FloatList": (
        1,
        SERIALIZABLE,
        ("[ values [F",),
        LISTS + "NumericMeasurementList$AbstractNumericMeasurementList",
    ),
    LISTS + "NumericMeasurementList$DoubleList": (
        1,
        SERIALIZABLE,
        ("[ values [D",),
        LISTS + "NumericMeasurementList$AbstractNumericMeasurementList",
    ),
    LISTS + "DefaultMeasurementList": (1, SERIALIZABLE, ("L list Ljava/util/ArrayList;",), None),
    LISTS + "DoubleMeasurement": (1, SERIALIZABLE, ("D value", f"L name {STRING}"), None),
    "qupath.lib.roi.RectangleROI$SerializationProxy": (1, SERIALIZABLE, CORNERS, None),
    "qupath.lib.roi.EllipseROI$SerializationProxy": (1, SERIALIZABLE, CORNERS, None),
    "qupath.lib.roi.LineROI$SerializationProxy": (1, SERIALIZABLE, CORNERS, None),
    "qupath.lib.roi.PolygonROI$SerializationProxy": (
        1,
        SERIALIZABLE,
        (*PLANE, f"L name {STRING}", f"L stats {STATS}", "[ x [F", "[ y [F"),
        None,
    ),
    "qupath.lib.roi.PolylineROI$SerializationProxy": (1, SERIALIZABLE, (*PLANE, "[ x [F", "[ y [F"), None),
    "qupath.lib.roi.PointsROI$SerializationProxy": (
        1,
        SERIALIZABLE,
        (*PLANE, f"L name {STRING}", "[ x [F", "[ y [F"),
        None,
    ),
    "qupath.lib.roi.GeometryROI$WKBSerializationProxy": (
        1,
        SERIALIZABLE,
        (*PLANE, "L stats Lqupath/lib/roi/GeometryROI$GeometryStats;", "[ wkb [B"),
        None,
    ),
}


def full_class_name(token: JObject) -> str | None:
    """Return the full name of a ``PathClass`` token, ``"Tumor: Positive"``; None for the null class.

    Raises
    ------
    FormatError
        If it is no path class, or its parents are none.
    """
    parts: list[str] = []
    seen: set[int] = set()
    current: bytes | Content = token
    while current is not None:
        known = isinstance(current, JObject) and current.desc.name == OBJECTS + "classes.PathClass"
        if not isinstance(current, JObject) or not known or id(current) in seen:
            raise FormatError("a class of objects that is damaged")
        seen.add(id(current))
        name, parent = current.get("name"), current.get("parentClass")
        if name is None and parent is None and not parts:
            return None
        if not isinstance(name, JString):
            raise FormatError("a class of objects without name")
        parts.append(name.text)
        current = parent
    return ": ".join(reversed(parts))


class Factory:
    """Makes tokens, using what the file has already (descriptors, TRUE and FALSE, path classes).

    Parameters
    ----------
    known
        Tokens of the file that may be shared.
    colors
        Colour (signed packed ARGB) of a path class by its full name, asked for classes that the file does not have.
    """

    def __init__(self, known: Iterable[Content], colors: Callable[[str], int | None]) -> None:
        self._descs: dict[str, ClassDesc] = {}
        self._booleans: dict[bool, JObject] = {}
        self._checked: dict[str, ClassDesc] = {}
        self._classes: dict[str, JObject] = {}
        self._signatures: dict[bytes, JString] = {}
        self._texts: dict[str, JString] = {}
        self._colors = colors
        self._one: JObject | None = None
        self._object_id: JString | None = None
        self._names: dict[tuple[str, ...], tuple[JObject, JObject]] = {}
        for token in known:
            self._remember(token)

    def _remember(self, token: Content) -> None:
        if isinstance(token, JString):
            if token.raw == b"Object ID" and self._object_id is None:
                self._object_id = token
        elif isinstance(token, ClassDesc):
            self._descs.setdefault(token.name, token)
            for spec in token.fields:
                if spec.signature is not None:
                    self._signatures.setdefault(spec.signature.raw, spec.signature)
        elif isinstance(token, JObject):
            if token.desc.name == "java.lang.Boolean":
                self._booleans.setdefault(token.get("value") == b"\x01", token)
            elif token.desc.name == OBJECTS + "classes.PathClass":
                name = full_class_name(token)
                if name is not None:
                    self._classes.setdefault(name, token)

    # ------------------------------------------------------------------ classes and objects
    def desc(self, name: str) -> ClassDesc:
        """Return the descriptor of a class of this catalogue.

        Raises
        ------
        FormatError
            If the file describes the class otherwise.
        """
        checked = self._checked.get(name)
        if checked is None:
            checked = self._checked[name] = self._described(name)
        return checked

    def _described(self, name: str) -> ClassDesc:
        suid, flags, fields, parent = CLASSES[name]
        found = self._descs.get(name)
        if found is None:
            found = ClassDesc(name, struct.pack(">q", suid), flags)
            self._descs[name] = found
            found.fields = [self._field(spec) for spec in fields]
            found.parent = None if parent is None else self.desc(parent)
            return found
        names = tuple(spec.split(" ")[1].encode() for spec in fields)
        if (found.suid, found.flags) != (struct.pack(">q", suid), flags) or tuple(
            f.name for f in found.fields
        ) != names:
            raise FormatError(f"class {name} of another version", expected="that of QuPath 0.2 to 0.8")
        return found

    def _field(self, spec: str) -> Field:
        code, name, *rest = spec.split(" ")
        if not rest:
            return Field(code, name.encode())
        raw = rest[0].encode()
        return Field(code, name.encode(), self._signatures.setdefault(raw, JString(raw)))

    def obj(self, name: str, *parts: Sequence[bytes | Content], extra: list[Content] | None = None) -> JObject:
        """Return a serialisable object from the field values of each class of its chain, topmost first."""
        out = JObject(self.desc(name), [Part(list(values)) for values in parts])
        if extra is not None:
            out.parts[-1].extra = extra
        return out

    def external(self, name: str, contents: list[Content]) -> JObject:
        """Return an externalizable object."""
        return JObject(self.desc(name), contents=contents)

    # ------------------------------------------------------------------ small values
    def boolean(self, value: bool) -> JObject:
        """Return the shared TRUE or FALSE."""
        if value not in self._booleans:
            self._booleans[value] = self.obj("java.lang.Boolean", [bytes([value])])
        return self._booleans[value]

    @property
    def one(self) -> JObject:
        """The shared Integer that is the version of metadata maps."""
        if self._one is None:
            self._one = self.integer(1)
        return self._one

    @property
    def object_id(self) -> JString:
        """The shared string ``Object ID``."""
        if self._object_id is None:
            self._object_id = JString.of("Object ID")
        return self._object_id

    def text(self, text: str) -> JString:
        """Return the shared string that is the name of a measurement."""
        if text not in self._texts:
            self._texts[text] = JString.of(text)
        return self._texts[text]

    def integer(self, value: int) -> JObject:
        """Return a new ``java.lang.Integer``."""
        return self.obj("java.lang.Integer", [], [struct.pack(">i", value)])

    def enum(self, name: str, constant: str) -> JEnum:
        """Return an enum constant."""
        return JEnum(self.desc(name), JString.of(constant))

    def floats(self, values: bytes) -> JArray:
        """Return a float array from big-endian bytes."""
        return JArray(self.desc("[F"), len(values) // 4, values)

    def array_list(self, items: Sequence[Content]) -> JObject:
        """Return a ``java.util.ArrayList``."""
        size = struct.pack(">i", len(items))
        return self.obj("java.util.ArrayList", [size], extra=[Block(size), *items])

    def hash_map(self, items: Sequence[tuple[JString, Content]]) -> JObject:
        """Return a ``java.util.HashMap`` with string keys."""
        buckets = 16
        while buckets * 3 // 4 < len(items):
            buckets *= 2
        values = [struct.pack(">f", 0.75), struct.pack(">i", buckets * 3 // 4)]
        extra: list[Content] = [Block(struct.pack(">ii", buckets, len(items)))]
        for key, value in items:
            extra += [key, value]
        return self.obj("java.util.HashMap", values, extra=extra)

    # ------------------------------------------------------------------ QuPath's
    def metadata_map(self, entries: Mapping[str, str]) -> JObject:
        """Return a ``MetadataMap``; the key ``Object ID`` is one shared string."""
        object_id, desc = self.object_id, self.desc("[Ljava.lang.Object;")
        keys: list[Content] = [object_id if key == "Object ID" else JString.of(key) for key in entries]
        values: list[Content] = [JString.of(value) for value in entries.values()]
        arrays = [JArray(desc, len(items), items=items) for items in (keys, values)]
        return self.external(OBJECTS + "MetadataMap", [self.one, *arrays])

    def path_class(self, name: str) -> JObject:
        """Return the path class with this full name; one object for each name.

        Raises
        ------
        ProjectError
            If a part of the name is blank or the name has a line break or a stray colon.
        """
        if name not in self._classes:
            parent, _, last = name.rpartition(": ")
            if not last.strip() or ":" in last or "\n" in name or name.startswith(": "):
                raise ProjectError(f"class name {name!r}", expected="words without line break, parts separated by ': '")
            color = self._colors(name)
            values: list[bytes | Content] = [
                None if color is None else self.integer(color),
                JString.of(last),
                self.path_class(parent) if parent else None,
            ]
            self._classes[name] = self.obj(OBJECTS + "classes.PathClass", values)
        return self._classes[name]

    def names(self, names: tuple[str, ...]) -> tuple[JObject, JObject]:
        """Return the shared index map and name list of measurement lists with these names."""
        if names not in self._names:
            texts = [JString.of(name) for name in names]
            lookup = self.hash_map([(text, self.integer(i)) for i, text in enumerate(texts)])
            items = self.array_list(texts)
            listed = self.obj("java.util.Collections$UnmodifiableList", [items], [items])
            self._names[names] = lookup, listed
        return self._names[names]

    def number_list(self, names: tuple[str, ...], values: bytes, kind: str = "FloatList") -> JObject:
        """Return a closed ``FloatList`` (or ``DoubleList``) from big-endian float32 (float64) values."""
        size, array = (4, "[F") if kind == "FloatList" else (8, "[D")
        numbers = JArray(self.desc(array), len(values) // size, values)
        return self.obj(f"{LISTS}NumericMeasurementList${kind}", [b"\x01", *self.names(names)], [numbers])

    def default_list(self, values: Mapping[str, float]) -> JObject:
        """Return a ``DefaultMeasurementList`` of doubles, the kind that annotations have."""
        return self.measurement_list([self.measurement(name, value) for name, value in values.items()])

    def measurement(self, name: str, value: float) -> JObject:
        """Return one measurement of a ``DefaultMeasurementList``."""
        return self.obj(LISTS + "DoubleMeasurement", [struct.pack(">d", value), self.text(name)])

    def measurement_list(self, items: Sequence[Content]) -> JObject:
        """Return a ``DefaultMeasurementList`` of such measurements."""
        return self.obj(LISTS + "DefaultMeasurementList", [self.array_list(items)])
