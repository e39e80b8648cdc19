"""New annotations, written record by record: all that they share is referred to, so that no tokens are needed."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

import numpy as np
import shapely

from qupath_ext.native.bulk import ABSENT, DOUBLE, OTHER, roi_kinds
from qupath_ext.native.catalog import LISTS, OBJECTS, Factory
from qupath_ext.native.emitter import Emitter
from qupath_ext.native.pathobjects import CLASS_OF_KIND, NewObject, make_object
from qupath_ext.native.roi import PROXY, ROI, WKB, to_wkb
from qupath_ext.native.scanner import BOX, NO_CHILDREN, NULL, OBJECT, ONE_STRING, REFERENCE
from qupath_ext.native.tokens import BASE_HANDLE, Content, Run, encode_utf

__all__ = ["NewAnnotations", "roi_record"]

NOTHING, NEW, END = bytes([NULL]), bytes([OBJECT]), b"\x78"
STRING, ARRAY = b"\x74", b"\x75"
INT, DOUBLE_VALUE = struct.Struct(">i"), struct.Struct(">d")
MAX_NAME = 0xFFFF
Ref = Callable[[Content], bytes]


def roi_record(
    shape: Any, kind: int, plane: tuple[bytes, bytes, bytes], ref: Ref, factory: Factory
) -> tuple[bytes, int]:
    """Return the bytes of a ROI, and how many handles it takes.

    Parameters
    ----------
    shape
        A polygon without holes; None if `kind` is ``ABSENT``.
    kind
        ``POLYGON``, ``BOX`` or ``ABSENT``.
    plane
        Channel, time point and z, as they are in the file.
    ref
        Returns a reference to a token that the file has already.
    factory
        Knows the descriptors.
    """
    c, t, z = plane
    if kind == ABSENT:
        return NOTHING, 0
    if kind == BOX:
        x, y, x2, y2 = shape.bounds
        desc = ref(factory.desc(ROI + "RectangleROI" + PROXY))
        return NEW + desc + c + t + struct.pack(">4d", x, x2, y, y2) + z + NOTHING, 1
    points = shapely.get_coordinates(shape)[:-1].astype(">f4")
    floats = ARRAY + ref(factory.desc("[F")) + INT.pack(len(points))
    desc = ref(factory.desc(ROI + "PolygonROI" + PROXY))
    x_axis, y_axis = (floats + points[:, axis].tobytes() for axis in (0, 1))
    return NEW + desc + c + t + z + NOTHING + NOTHING + x_axis + y_axis, 3


class NewAnnotations(Run):
    """New annotations of areas in a row, without children, colour and metadata.

    Attributes
    ----------
    objects
        The annotations, in order.
    """

    def __init__(self, factory: Factory) -> None:
        self.factory = factory
        self.objects: list[NewObject] = []

    def __len__(self) -> int:
        return len(self.objects)

    def append(self, new: NewObject) -> None:
        """Append an annotation.

        Raises
        ------
        ProjectError
            If it cannot be stored.
        FormatError
            If the file describes a class otherwise than the catalogue.
        """
        if not self.objects:
            make_object(new, self.factory)
        elif new.classification is not None:
            self.factory.path_class(new.classification)
        self.objects.append(new)

    def emit(self, emitter: Emitter) -> None:
        """Write the annotations; one that needs something shared that is not there yet is written token by token."""
        shapes = np.full(len(self), None, dtype=object)
        shapes[:] = [new.geometry for new in self.objects]
        kinds = roi_kinds(shapes)
        shapes[kinds != OTHER] = None
        writer = _Writer(self.factory, emitter)
        for new, kind, wkb in zip(self.objects, kinds.tolist(), to_wkb(shapes).tolist(), strict=True):
            try:
                record, n_handles = writer.record(new, kind, wkb)
            except _NotThereError:
                emitter.content(make_object(new, self.factory))
            else:
                emitter.raw(record)
                emitter.next_handle += n_handles


class _NotThereError(LookupError):
    """The stream does not have a token yet that a record would refer to."""


class _Writer:
    """Makes the records of one stream."""

    def __init__(self, factory: Factory, emitter: Emitter) -> None:
        self.factory = factory
        self.emitter = emitter
        self._head = b""
        self._refs: dict[int, bytes] = {}

    def _ref(self, token: Content) -> bytes:
        known = self._refs.get(id(token))
        if known is None:
            handle = self.emitter.handle(token)
            if handle is None:
                raise _NotThereError
            known = self._refs[id(token)] = bytes([REFERENCE]) + INT.pack(BASE_HANDLE + handle)
        return known

    def record(self, new: NewObject, roi_kind: int, wkb: bytes) -> tuple[bytes, int]:
        """Return the bytes of an annotation, and how many handles it takes; `wkb` is for a ROI of kind ``OTHER``."""
        factory, ref = self.factory, self._ref
        if not self._head:
            self._head = self._map_head()
        name = None if new.name is None else encode_utf(new.name)
        if name is not None and len(name) > MAX_NAME:
            raise _NotThereError
        items, n_items = self._measurements(new)
        c, z, t = map(INT.pack, new.plane)
        if roi_kind == OTHER:
            head = NEW + ref(factory.desc(WKB)) + c + t + z + NOTHING
            roi, n_roi = head + ARRAY + ref(factory.desc("[B")) + INT.pack(len(wkb)) + wkb, 2
        else:
            roi, n_roi = roi_record(new.geometry, roi_kind, (c, t, z), ref, factory)
        parts = (
            NEW + ref(factory.desc(CLASS_OF_KIND[new.kind])),
            NOTHING if name is None else STRING + len(name).to_bytes(2, "big") + name,
            NOTHING + self._head + new.id.encode() + END,
            items + NO_CHILDREN,
            ref(factory.boolean(new.locked)),
            NOTHING if new.classification is None else ref(factory.path_class(new.classification)),
            roi,
            DOUBLE + DOUBLE_VALUE.pack(new.probability) + END,
        )
        return b"".join(parts), 5 + (name is not None) + n_items + n_roi

    def _map_head(self) -> bytes:
        factory, ref = self.factory, self._ref
        strings = ARRAY + ref(factory.desc("[Ljava.lang.Object;")) + INT.pack(1)
        head = NEW + ref(factory.desc(OBJECTS + "MetadataMap")) + ref(factory.one)
        return head + strings + ref(factory.object_id) + strings + ONE_STRING

    def _measurements(self, new: NewObject) -> tuple[bytes, int]:
        if not new.measurements:
            return NOTHING, 0
        factory, ref = self.factory, self._ref
        item = NEW + ref(factory.desc(LISTS + "DoubleMeasurement"))
        n = len(new.measurements)
        size = INT.pack(n)
        head = NEW + ref(factory.desc(LISTS + "DefaultMeasurementList"))
        head += NEW + ref(factory.desc("java.util.ArrayList")) + size + b"\x77\x04" + size
        values = [item + DOUBLE_VALUE.pack(x) + ref(factory.text(name)) for name, x in new.measurements.items()]
        return head + b"".join(values) + END, 2 + n
