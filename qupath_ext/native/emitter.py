"""Tokens -> Java serialisation stream: handles are numbered anew, in the order in which Java would number them."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from qupath_ext.native.parser import HEADER
from qupath_ext.native.tokens import (
    BASE_HANDLE,
    EXTERNALIZABLE,
    PRIMITIVE_SIZES,
    Block,
    ClassDesc,
    Content,
    JArray,
    JClass,
    JEnum,
    JObject,
    JString,
    Reset,
    Run,
    RunMember,
)

__all__ = ["Emitter", "emit_stream"]

FLUSH_BYTES = 1 << 22
INT = struct.Struct(">i")
SHORT = struct.Struct(">H")
LONG = struct.Struct(">q")


def emit_stream(contents: Iterable[Content], write: Callable[[bytes], Any]) -> int:
    """Write a whole stream through `write` and return the number of bytes.

    An object met for the first time is written in full, and by reference afterwards. So contents that were parsed and
    not changed come out byte for byte as they were.
    """
    emitter = Emitter(write)
    emitter.stream(contents)
    return emitter.n_bytes


class Emitter:
    """Writes tokens and hands out handles; see :func:`emit_stream`."""

    def __init__(self, write: Callable[[bytes], Any]) -> None:
        self._write = write
        self._buffer = bytearray()
        self._handles: dict[int, int] = {}
        self._alive: list[Content] = []
        self._member_handles: dict[int, np.ndarray[Any, np.dtype[np.int64]]] = {}
        self.next_handle = 0
        self.n_bytes = 0
        self._writers: dict[type, Callable[[Any], None]] = {
            JObject: self._object,
            JString: self._string,
            JArray: self._array,
            ClassDesc: self._class_desc,
            Block: self._block,
            JEnum: self._enum,
            JClass: self._class,
            RunMember: self._member,
            Reset: self._reset,
        }

    def stream(self, contents: Iterable[Content]) -> None:
        """Write a whole stream; see :func:`emit_stream`."""
        self.raw(HEADER)
        for token in contents:
            self.content(token)
        self.flush()

    # ------------------------------------------------------------------ bytes and handles
    def raw(self, data: bytes | bytearray | memoryview) -> None:
        """Append bytes as they are."""
        if len(data) > FLUSH_BYTES:
            self.flush()
            self.n_bytes += len(data)
            self._write(bytes(data))
            return
        self._buffer += data
        if len(self._buffer) > FLUSH_BYTES:
            self.flush()

    def flush(self) -> None:
        """Hand everything over to the writer."""
        self.n_bytes += len(self._buffer)
        self._write(bytes(self._buffer))
        self._buffer = bytearray()

    def handle(self, token: Content) -> int | None:
        """Return the handle of a token that was written already, else None."""
        return self._handles.get(id(token))

    def member_handles(self, source: object, n: int) -> np.ndarray[Any, np.dtype[np.int64]]:
        """Return the handles of the members of a parsed run, int64 (n,), -1 where not written; the run fills them."""
        if id(source) not in self._member_handles:
            self._member_handles[id(source)] = np.full(n, -1, dtype=np.int64)
        return self._member_handles[id(source)]

    def _assign(self, token: Content) -> None:
        self._handles[id(token)] = self.next_handle
        self._alive.append(token)  # ids stay unique while the token lives
        self.next_handle += 1

    def _reference(self, handle: int) -> None:
        self._buffer += b"\x71" + INT.pack(BASE_HANDLE + handle)

    # ------------------------------------------------------------------ tokens
    def content(self, token: Content) -> None:
        """Write one token, by reference if it was written before."""
        if token is None:
            self._buffer += b"\x70"
            return
        handle = self._handles.get(id(token))
        if handle is not None:
            self._reference(handle)
            return
        writer = self._writers.get(type(token))
        if writer is not None:
            writer(token)
        elif isinstance(token, Run):
            token.emit(self)
        else:
            raise TypeError(f"{type(token).__name__} in a stream")

    def _enum(self, token: JEnum) -> None:
        self.raw(b"\x7e")
        self.content(token.desc)
        self._assign(token)
        self.content(token.name)

    def _class(self, token: JClass) -> None:
        self.raw(b"\x76")
        self.content(token.desc)
        self._assign(token)

    def _reset(self, _: Reset) -> None:
        self.raw(b"\x79")
        self._handles.clear()
        self._alive.clear()
        self._member_handles.clear()
        self.next_handle = 0

    def _member(self, member: RunMember) -> None:
        from qupath_ext.native.scanner import ScannedRun

        source = member.source
        if not isinstance(source, ScannedRun):
            raise TypeError(f"member of a {type(source).__name__}")
        handle = int(self.member_handles(source, source.n_records)[member.index])
        if handle >= 0:
            self._reference(handle)
        else:
            self.content(source.materialise(member.index))

    def _string(self, token: JString) -> None:
        self._assign(token)
        if token.long:
            self.raw(b"\x7c" + LONG.pack(len(token.raw)) + token.raw)
        else:
            self.raw(b"\x74" + SHORT.pack(len(token.raw)) + token.raw)

    def _block(self, token: Block) -> None:
        if token.long:
            self.raw(b"\x7a" + INT.pack(len(token.raw)) + token.raw)
        else:
            self.raw(b"\x77" + bytes([len(token.raw)]) + token.raw)

    def _utf(self, raw: bytes) -> None:
        self.raw(SHORT.pack(len(raw)) + raw)

    def _class_desc(self, desc: ClassDesc) -> None:
        self.raw(b"\x72")
        self._utf(JString.of(desc.name).raw)
        self.raw(desc.suid)
        self._assign(desc)
        self.raw(bytes([desc.flags]) + SHORT.pack(len(desc.fields)))
        for spec in desc.fields:
            self.raw(spec.code.encode())
            self._utf(spec.name)
            if spec.signature is not None:
                self.content(spec.signature)
        self._contents(desc.annotation)
        self.content(desc.parent)

    def _contents(self, contents: Iterable[Content]) -> None:
        for token in contents:
            self.content(token)
        self.raw(b"\x78")

    def _object(self, obj: JObject) -> None:
        self.raw(b"\x73")
        self.content(obj.desc)
        self._assign(obj)
        if obj.desc.flags == EXTERNALIZABLE:
            self._contents(obj.contents)
            return
        for part in obj.parts:
            for value in part.values:
                if isinstance(value, bytes):
                    self.raw(value)
                else:
                    self.content(value)
            if part.extra is not None:
                self._contents(part.extra)

    def _array(self, array: JArray) -> None:
        self.raw(b"\x75")
        self.content(array.desc)
        self._assign(array)
        self.raw(INT.pack(array.length))
        if array.desc.name[1:2] in PRIMITIVE_SIZES:
            self.raw(array.raw)
        else:
            for item in array.items:
                self.content(item)
