"""Java serialisation stream -> tokens. Knows the grammar and no class; refuses what the grammar does not say."""

from __future__ import annotations

import bisect
import struct
from collections.abc import Callable, Iterator
from typing import TypeAlias

from qupath_ext.errors import FormatError
from qupath_ext.native.collector import paused_collector
from qupath_ext.native.scanner import LeafScanner, ScannedRun
from qupath_ext.native.tokens import (
    BASE_HANDLE,
    ENUM,
    EXTERNALIZABLE,
    PRIMITIVE_SIZES,
    RESET,
    SERIALIZABLE,
    SERIALIZABLE_WITH_DATA,
    Block,
    ClassDesc,
    Content,
    Field,
    JArray,
    JClass,
    JEnum,
    JObject,
    JString,
    Part,
    RunMember,
    decode_utf,
    encode_utf,
)

__all__ = ["HEADER", "Parser", "parse_stream"]

HEADER = bytes.fromhex("ACED0005")
MAX_DEPTH = 200
"""Nesting of objects; QuPath's own files stay far below, and Python's stack is not asked for more."""
Layout: TypeAlias = list[tuple[list[int], bool]]
KNOWN_FLAGS = (0, SERIALIZABLE, SERIALIZABLE_WITH_DATA, EXTERNALIZABLE, ENUM)
INT = struct.Struct(">i")
SHORT = struct.Struct(">H")
LONG = struct.Struct(">q")


def parse_stream(data: bytes, *, fast: bool = True) -> tuple[list[Content], Parser]:
    """Parse a whole stream.

    Parameters
    ----------
    data
        The file.
    fast
        Keep long rows of like cells, detections and tiles as runs (:mod:`qupath_ext.native.scanner`) instead of
        one token each. The meaning is the same.

    Returns
    -------
    tuple
        The top-level contents and the parser, which knows all handles.

    Raises
    ------
    FormatError
        If any byte is not explained by the grammar; the offset is named.
    """
    with paused_collector():
        if fast:
            parser = Parser(data, fast=True)
            try:
                return parser.stream(), parser
            except _PartOfRunError:
                pass  # something shares a part of a cell, such as cached ROI statistics; rare
        parser = Parser(data, fast=False)
        return parser.stream(), parser


class _PartOfRunError(Exception):
    """A reference means something inside a record that is kept as bytes."""


class Parser:
    """Recursive descent over one stream; see :func:`parse_stream`."""

    def __init__(self, data: bytes, *, fast: bool) -> None:
        self.data = data
        self.pos = 0
        self._size = len(data)
        self.handles: dict[int, Content] = {}
        self.handle_of: dict[int, int] = {}
        self.next_handle = 0
        self._complete: dict[int, ClassDesc] = {}
        self._layouts: dict[int, Layout] = {}
        self._item_sizes: dict[int, int] = {}
        self.runs: list[ScannedRun] = []
        self._scope_runs: list[ScannedRun] = []
        self._scanner = LeafScanner(self) if fast else None
        self._depth = 0
        self._readers: dict[int, Callable[[], Content]] = {
            0x72: self._new_class_desc,
            0x73: self._object,
            0x74: self._string,
            0x75: self._array,
            0x76: self._class,
            0x77: self._block,
            0x7A: self._long_block,
            0x7C: self._long_string,
            0x7E: self._enum,
        }

    # ------------------------------------------------------------------ whole stream
    def stream(self) -> list[Content]:
        """Parse header and top-level contents up to the end of the data."""
        return list(self.top_level())

    def top_level(self) -> Iterator[Content]:
        """Parse header and top-level contents one by one."""
        if self.data[:4] != HEADER:
            raise self.error("no Java serialisation header", 0, expected="AC ED 00 05")
        self.pos = 4
        while self.pos < len(self.data):
            if self.data[self.pos] == 0x79:
                self.pos += 1
                self._forget()
                yield RESET
            else:
                yield self.content()

    def object_at(self, offset: int, handles: dict[int, Content]) -> JObject:
        """Parse one object again whose shared parts are all in `handles`; what it defines itself is not kept."""
        saved = self.pos, self.next_handle, self._scanner, self._depth, self.handles, self.handle_of
        own = 1 << 40
        self.pos, self.next_handle, self._scanner, self._depth = offset, own, None, 0
        self.handles, self.handle_of = handles, {}
        obj = self.content()
        for handle in range(own, self.next_handle):
            del handles[handle]
        self.pos, self.next_handle, self._scanner, self._depth, self.handles, self.handle_of = saved
        if not isinstance(obj, JObject):
            raise self.error("no object", offset, expected="a path object")
        return obj

    def error(self, found: str, offset: int | None = None, *, expected: str = "") -> FormatError:
        """Build the error for something met at `offset` (default: here)."""
        where = self.pos if offset is None else offset
        return FormatError(f"{found} at byte {where} of {len(self.data)}", expected=expected)

    def _forget(self) -> None:
        self.handles = {}
        self.handle_of = {}
        self.next_handle = 0
        self._scope_runs = []
        if self._scanner is not None:
            self._scanner = LeafScanner(self)

    def _assign(self, token: Content) -> None:
        self.handles[self.next_handle] = token
        self.handle_of[id(token)] = self.next_handle
        self.next_handle += 1

    # ------------------------------------------------------------------ bytes
    def _take(self, n: int) -> bytes:
        start = self.pos
        stop = start + n
        if n < 0 or stop > self._size:
            raise self.error(f"{n} bytes announced, {self._size - start} left")
        self.pos = stop
        return self.data[start:stop]

    def _int(self) -> int:
        return int(INT.unpack(self._take(4))[0])

    def _utf(self) -> bytes:
        return self._take(SHORT.unpack(self._take(2))[0])

    # ------------------------------------------------------------------ contents
    def content(self) -> Content:
        """Parse one token."""
        start = self.pos
        if start >= self._size:
            raise self.error("1 bytes announced, 0 left")
        tag = self.data[start]
        self.pos = start + 1
        if tag == 0x71:
            if start + 5 <= self._size:
                known = self.handles.get(INT.unpack_from(self.data, start + 1)[0] - BASE_HANDLE)
                if known is not None:
                    self.pos = start + 5
                    return known
            return self._reference()
        if tag == 0x70:
            return None
        reader = self._readers.get(tag)
        if reader is None:
            raise self.error(f"unknown tag {tag:02X}", start)
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise self.error(f"objects nested deeper than {MAX_DEPTH}", start)
        token = reader()
        self._depth -= 1
        return token

    def _until_end(self) -> list[Content]:
        out: list[Content] = []
        data, size, scanner = self.data, self._size, self._scanner
        while True:
            if self.pos >= size:
                raise self.error("end of file", expected="the end of an object")
            tag = data[self.pos]
            if tag == 0x78:
                self.pos += 1
                return out
            token = self.content()
            out.append(token)
            if tag == 0x73 and scanner is not None and isinstance(token, JObject) and scanner.learn(token):
                run = scanner.scan(self.pos, self.next_handle)
                if run is not None:
                    out.append(run)
                    self.runs.append(run)
                    self._scope_runs.append(run)
                    self.pos = run.end
                    self.next_handle += run.n_handles

    def _reference(self) -> Content:
        """Find what is not a token of its own: a member of a run."""
        start = self.pos - 1
        handle = self._int() - BASE_HANDLE
        at = bisect.bisect_right(self._scope_runs, handle, key=lambda run: run.first_handle) - 1
        index = self._scope_runs[at].member(handle) if at >= 0 else None
        if at >= 0 and index is None and handle < self._scope_runs[at].first_handle + self._scope_runs[at].n_handles:
            raise _PartOfRunError
        if index is None:
            raise self.error(f"reference to unknown handle {handle}", start)
        return RunMember(self._scope_runs[at], index)

    def _string(self) -> JString:
        start = self.pos
        if start + 2 > self._size:
            self._take(2)
        self.pos = start + 2
        token = JString(self._take(SHORT.unpack_from(self.data, start)[0]))
        self._check_utf(token.raw)
        self._assign(token)
        return token

    def _long_string(self) -> JString:
        token = JString(self._take(int(LONG.unpack(self._take(8))[0])), True)
        self._check_utf(token.raw)
        self._assign(token)
        return token

    def _check_utf(self, raw: bytes) -> None:
        if not raw.isascii():
            try:
                decode_utf(raw)
            except UnicodeDecodeError as error:
                raise self.error("a string that is not modified UTF-8", self.pos - len(raw)) from error

    def _block(self) -> Block:
        return Block(self._take(self._take(1)[0]))

    def _long_block(self) -> Block:
        return Block(self._take(self._int()), True)

    # ------------------------------------------------------------------ classes
    def _class_desc(self) -> ClassDesc | None:
        start = self.pos
        token = self.content()
        if token is not None and not isinstance(token, ClassDesc):
            raise self.error("no class descriptor", start, expected="tag 70, 71 or 72")
        return token

    def _some_class_desc(self) -> ClassDesc:
        start = self.pos
        token = self.content()
        if isinstance(token, ClassDesc):
            return token
        raise self._no_class(token, start)

    def _no_class(self, token: Content, start: int) -> FormatError:
        what = "object without class" if token is None else "no class descriptor"
        return self.error(what, start, expected="tag 71 or 72")

    def _new_class_desc(self) -> ClassDesc:
        start = self.pos - 1
        name = self._utf()
        self._check_utf(name)
        if encode_utf(decode_utf(name)) != name:
            raise self.error("a class name that is not modified UTF-8", start)
        desc = ClassDesc(decode_utf(name), self._take(8), 0)
        self._assign(desc)
        desc.flags = self._take(1)[0]
        if desc.flags not in KNOWN_FLAGS:
            raise self.error(f"class {desc.name} with unknown flags {desc.flags:02X}", start)
        for _ in range(SHORT.unpack(self._take(2))[0]):
            desc.fields.append(self._field())
        desc.annotation = self._until_end()
        parent = self._class_desc()
        if parent is not None and desc in parent.chain():
            raise self.error(f"class {desc.name} that is its own superclass", start)
        desc.parent = parent
        if parent is None or id(parent) in self._complete:
            self._complete[id(desc)] = desc
        return desc

    def _field(self) -> Field:
        start = self.pos
        code = chr(self._take(1)[0])
        name = self._utf()
        self._check_utf(name)
        if code in PRIMITIVE_SIZES:
            return Field(code, name)
        if code not in "L[":
            raise self.error(f"field with unknown type {code!r}", start)
        signature = self.content()
        if not isinstance(signature, JString):
            raise self.error("field without type string", start)
        return Field(code, name, signature)

    def _class(self) -> JClass:
        token = JClass(self._some_class_desc())
        self._assign(token)
        return token

    # ------------------------------------------------------------------ objects
    def _object(self) -> JObject:
        start = self.pos - 1
        desc = self.content()
        if not isinstance(desc, ClassDesc):
            raise self._no_class(desc, start + 1)
        obj = JObject(desc, [], [])
        self._assign(obj)
        if desc.flags == EXTERNALIZABLE:
            obj.contents = self._until_end()
            return obj
        for sizes, with_data in self._layouts.get(id(desc)) or self._layout(desc, start):
            values: list[bytes | Content] = []
            for size in sizes:
                if size:
                    values.append(self._take(size))
                else:
                    at = self.pos
                    token = self.content()
                    if token.__class__ is Block:
                        raise self.error("block data in place of a field", at)
                    values.append(token)
            obj.parts.append(Part(values, self._until_end() if with_data else None))
        return obj

    def _layout(self, desc: ClassDesc, start: int) -> Layout:
        """Sizes of the fields (0: an object) of a class and its superclasses, and whether more follows."""
        out = []
        for cls in desc.chain():
            if cls.flags not in (SERIALIZABLE, SERIALIZABLE_WITH_DATA):
                raise self.error(f"object of class {cls.name} with flags {cls.flags:02X}", start)
            sizes = [PRIMITIVE_SIZES.get(spec.code, 0) for spec in cls.fields]
            out.append((sizes, cls.flags == SERIALIZABLE_WITH_DATA))
        if id(desc) in self._complete:
            self._layouts[id(desc)] = out
        return out

    def _field_content(self) -> Content:
        start = self.pos
        token = self.content()
        if isinstance(token, Block):
            raise self.error("block data in place of a field", start)
        return token

    def _array(self) -> JArray:
        start = self.pos - 1
        desc = self.content()
        if not isinstance(desc, ClassDesc):
            raise self._no_class(desc, start + 1)
        size = self._item_sizes.get(id(desc))
        if size is None:
            size = self._item_size(desc, start)
            if id(desc) in self._complete:
                self._item_sizes[id(desc)] = size
        array = JArray(desc, 0, b"", [])
        self._assign(array)
        array.length = INT.unpack(self._take(4))[0]
        if size:
            array.raw = self._take(array.length * size)
            return array
        if array.length < 0 or array.length > len(self.data) - self.pos:
            raise self.error(f"array of {array.length} elements", start)
        array.items = [self._field_content() for _ in range(array.length)]
        return array

    def _item_size(self, desc: ClassDesc, start: int) -> int:
        """Bytes of an element of an array class; 0 for tokens."""
        code = desc.name[1:2]
        if desc.name[:1] != "[" or not (code in PRIMITIVE_SIZES or code in ("L", "[")):
            raise self.error(f"array of class {desc.name!r}", start)
        return PRIMITIVE_SIZES.get(code, 0)

    def _enum(self) -> JEnum:
        start = self.pos - 1
        desc = self._some_class_desc()
        if desc.flags != ENUM:
            raise self.error(f"enum constant of class {desc.name} with flags {desc.flags:02X}", start)
        token = JEnum(desc, JString(b""))
        self._assign(token)
        name = self.content()
        if not isinstance(name, JString):
            raise self.error("enum constant without name", start)
        token.name = name
        return token
