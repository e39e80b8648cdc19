"""The tokens of a Java object serialisation stream (protocol 2).

Tokens keep every byte that matters and no knowledge of the classes they belong to: primitives stay raw bytes, object
identity in the stream is object identity here. So a stream can be taken apart, changed in one place and put together
again without losing what is not understood. The grammar is that of the "Java Object Serialization Specification",
chapter 6.
"""

from __future__ import annotations

import struct
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

from qupath_ext.errors import FormatError

if TYPE_CHECKING:
    from qupath_ext.native.emitter import Emitter

__all__ = [
    "BASE_HANDLE",
    "ENUM",
    "EXTERNALIZABLE",
    "PRIMITIVE_SIZES",
    "RESET",
    "SERIALIZABLE",
    "SERIALIZABLE_WITH_DATA",
    "Block",
    "ClassDesc",
    "Content",
    "Field",
    "JArray",
    "JClass",
    "JEnum",
    "JObject",
    "JString",
    "Part",
    "Reset",
    "Run",
    "RunMember",
    "decode_utf",
    "encode_utf",
]

BASE_HANDLE = 0x7E0000
SERIALIZABLE = 0x02
SERIALIZABLE_WITH_DATA = 0x03
EXTERNALIZABLE = 0x0C
ENUM = 0x12
PRIMITIVE_SIZES = {"B": 1, "C": 2, "D": 8, "F": 4, "I": 4, "J": 8, "S": 2, "Z": 1}


def decode_utf(raw: bytes) -> str:
    """Decode Java's modified UTF-8 (U+0000 as C0 80, surrogate pairs as two 3-byte sequences).

    Raises
    ------
    UnicodeDecodeError
        If the bytes are not modified UTF-8.
    """
    if raw.isascii():
        return raw.decode("ascii")
    text = raw.replace(b"\xc0\x80", b"\x00").decode("utf-8", "surrogatepass")
    return text.encode("utf-16-be", "surrogatepass").decode("utf-16-be", "surrogatepass")


def encode_utf(text: str) -> bytes:
    r"""Encode text as Java's modified UTF-8.

    >>> encode_utf("a\x00é😐").hex(" ")
    '61 c0 80 c3 a9 ed a0 bd ed b8 90'
    """
    if text.isascii() and "\0" not in text:
        return text.encode("ascii")
    units = text.encode("utf-16-be", "surrogatepass")
    wide = "".join(chr(unit) for (unit,) in struct.iter_unpack(">H", units))
    return wide.encode("utf-8", "surrogatepass").replace(b"\x00", b"\xc0\x80")


@dataclass(slots=True, eq=False)
class JString:
    """A string: its modified UTF-8 and whether it is written with a 64-bit length."""

    raw: bytes
    long: bool = False

    @classmethod
    def of(cls, text: str) -> JString:
        """Make a string token from text."""
        raw = encode_utf(text)
        return cls(raw, len(raw) > 0xFFFF)

    @property
    def text(self) -> str:
        """The decoded text."""
        return decode_utf(self.raw)


@dataclass(slots=True, eq=False)
class Field:
    """One field of a class: type code (``B C D F I J S Z L [``), name, and for ``L`` and ``[`` the type string."""

    code: str
    name: bytes
    signature: JString | None = None


@dataclass(slots=True, eq=False)
class ClassDesc:
    """A class descriptor."""

    name: str
    suid: bytes
    flags: int
    fields: list[Field] = field(default_factory=list)
    annotation: list[Content] = field(default_factory=list)
    parent: ClassDesc | None = None
    places: dict[str, tuple[int, int]] = field(default_factory=dict, repr=False)
    """Part and number of fields that were asked for, by name."""

    def place(self, name: str) -> tuple[int, int]:
        """Return the part and the number of a field; FormatError if there is none."""
        if name not in self.places:
            wanted = name.encode()
            found = (
                (i, k) for i, desc in enumerate(self.chain()) for k, x in enumerate(desc.fields) if x.name == wanted
            )
            place = next(found, None)
            if place is None:
                raise FormatError(f"object of class {self.name} without field {name!r}")
            self.places[name] = place
        return self.places[name]

    def chain(self) -> list[ClassDesc]:
        """Return the class and its serialisable superclasses, topmost first."""
        out: list[ClassDesc] = []
        desc: ClassDesc | None = self
        while desc is not None:
            out.append(desc)
            desc = desc.parent
        return out[::-1]

    def is_a(self, name: str) -> bool:
        """Whether the class, or a superclass, has this name."""
        desc: ClassDesc | None = self
        while desc is not None:
            if desc.name == name:
                return True
            desc = desc.parent
        return False


@dataclass(slots=True, eq=False)
class Part:
    """What one class of the chain wrote: field values in descriptor order, and what its ``writeObject`` added."""

    values: list[bytes | Content]
    extra: list[Content] | None = None


@dataclass(slots=True, eq=False)
class JObject:
    """An object: `parts` (topmost class first) if it is serialisable, `contents` if it is externalizable."""

    desc: ClassDesc
    parts: list[Part] = field(default_factory=list)
    contents: list[Content] = field(default_factory=list)

    def get(self, name: str) -> bytes | Content:
        """Return the value of a field of a serialisable object, by name; FormatError if there is none."""
        part, at = self.desc.places.get(name) or self.desc.place(name)
        if part < len(self.parts) and at < len(self.parts[part].values):
            return self.parts[part].values[at]
        raise FormatError(f"object of class {self.desc.name} without field {name!r}")


@dataclass(slots=True, eq=False)
class JArray:
    """An array of `length` elements: raw big-endian bytes if primitive, else tokens."""

    desc: ClassDesc
    length: int
    raw: bytes = b""
    items: list[Content] = field(default_factory=list)


@dataclass(slots=True, eq=False)
class JEnum:
    """An enum constant."""

    desc: ClassDesc
    name: JString


@dataclass(slots=True, eq=False)
class JClass:
    """A ``java.lang.Class`` object."""

    desc: ClassDesc


@dataclass(slots=True, eq=False)
class Block:
    """Raw block data and whether it is written with a 32-bit length."""

    raw: bytes
    long: bool = False


class Reset:
    """The reset mark; only between top-level objects."""

    __slots__ = ()


RESET = Reset()


class Run(ABC):
    """Many leaf path objects in a row, kept as bytes or arrays instead of one token each."""

    @abstractmethod
    def __len__(self) -> int:
        """Return the number of objects."""

    def changed_members(self) -> list[JObject]:
        """Return the members that have become tokens of their own, and may have children now."""
        return []

    @abstractmethod
    def emit(self, emitter: Emitter) -> None:
        """Write the objects to an emitter."""


@dataclass(frozen=True, slots=True)
class RunMember:
    """A reference to the object number `index` of a run as it was parsed."""

    source: object
    index: int


Content: TypeAlias = "JString | JObject | JArray | JEnum | JClass | ClassDesc | Block | Reset | Run | RunMember | None"
