"""data.qpdata as a whole: reading it, making a new one, and writing it through a check."""

from __future__ import annotations

import hashlib
import json
import struct
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np

from qupath_ext.errors import FormatError, ProjectError
from qupath_ext.native.bulk import NewRun
from qupath_ext.native.catalog import OBJECTS, Factory
from qupath_ext.native.collector import paused_collector
from qupath_ext.native.emitter import Emitter, emit_stream
from qupath_ext.native.files import FileState, Transaction, read_back
from qupath_ext.native.parser import Parser, parse_stream
from qupath_ext.native.pathobjects import NewObject, PathObjectView, make_object, walk
from qupath_ext.native.presentobjects import ScannedObjects
from qupath_ext.native.records import NewAnnotations
from qupath_ext.native.scanner import ScannedRun
from qupath_ext.native.stains import Stains, read_stains, stains_token
from qupath_ext.native.table import read_columns, read_table
from qupath_ext.native.tokens import Block, Content, JEnum, JObject, JString

__all__ = [
    "DataFile",
    "ObjectCounts",
    "count_objects",
    "new_data_file",
    "parse_data_file",
    "read_head",
    "stage_data_file",
]

HIERARCHY = OBJECTS + "hierarchy.PathObjectHierarchy"
IMAGE_TYPE = "qupath.lib.images.ImageData$ImageType"
STAINS = "qupath.lib.color.ColorDeconvolutionStains"
LOCALE = "java.util.Locale"
WORKFLOW = "qupath.lib.plugins.workflow.Workflow"
HEAD_BYTES = 1 << 20
VERSION_MARK = b"Data file version"


@dataclass
class DataFile:
    """The parsed tokens of a data.qpdata."""

    contents: list[Content]
    parser: Parser | None

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the file that was read; empty for a new one."""
        return "" if self.parser is None else hashlib.sha256(self.parser.data).hexdigest()

    # ------------------------------------------------------------------ top-level items
    @property
    def hierarchy(self) -> JObject:
        """The hierarchy's token."""
        found = self._first(HIERARCHY)
        if not isinstance(found, JObject):
            raise FormatError("data file without object hierarchy")
        return found

    @property
    def root(self) -> JObject:
        """The root object's token."""
        root = self.hierarchy.get("rootObject")
        if not isinstance(root, JObject):
            raise FormatError("object hierarchy without root object")
        return root

    @property
    def image_type(self) -> str | None:
        """The image type, such as ``"BRIGHTFIELD_H_DAB"``."""
        found = self._first(IMAGE_TYPE)
        return found.name.text if isinstance(found, JEnum) else None

    @property
    def stains(self) -> Stains | None:
        """The stains."""
        found = self._first(STAINS)
        return read_stains(found) if isinstance(found, JObject) else None

    @property
    def properties(self) -> JObject | None:
        """The map of properties."""
        found = self._first("java.util.HashMap")
        return found if isinstance(found, JObject) else None

    def _first(self, name: str) -> JObject | JEnum | None:
        at = self._place(name)
        token = None if at is None else self.contents[at]
        return token if isinstance(token, (JObject, JEnum)) else None

    def _place(self, name: str) -> int | None:
        return next((at for at, token in enumerate(self.contents) if _class_of(token) == name), None)

    def set_image_type(self, image_type: str, stains: Stains | None, factory: Factory) -> None:
        """Set the image type, and the stains or that there are none."""
        at = self._place(IMAGE_TYPE)
        token = factory.enum(IMAGE_TYPE, image_type)
        if at is None:  # after the locale
            at = next((i + 1 for i, item in enumerate(self.contents) if _class_of(item) == LOCALE), 2)
            self.contents.insert(at, token)
        else:
            self.contents[at] = token
        new = None if stains is None else stains_token(stains, factory)
        place = self._place(STAINS)
        if place is None and self.contents[at + 1] is None:
            place = at + 1
        if place is None:
            self.contents.insert(at + 1, new)
        else:
            self.contents[place] = new

    def set_tma_grid(self, grid: JObject) -> None:
        """Put a TMA grid in the place of the one there is."""
        hierarchy = self.hierarchy
        names = [spec.name for spec in hierarchy.desc.fields]
        hierarchy.parts[-1].values[names.index(b"tmaGrid")] = grid

    def known_tokens(self) -> list[Content]:
        """All tokens that a later part of the file may share."""
        return [] if self.parser is None else list(self.parser.handles.values())

    def read_table(self) -> gpd.GeoDataFrame:
        """Return the hierarchy as a path-object table; see :func:`qupath_ext.native.table.read_table`."""
        return read_table(self.root, lambda: self.digest)

    def read_present(self) -> ScannedObjects:
        """Return the hierarchy for comparing, with few outlines made."""
        with paused_collector():
            return ScannedObjects(*read_columns(self.root, lambda: self.digest, shapes=False))

    def to_bytes(self) -> bytes:
        """Return the file."""
        out = bytearray()
        emit_stream(self.contents, out.extend)
        return bytes(out)


def _class_of(token: Content) -> str | None:
    return token.desc.name if isinstance(token, (JObject, JEnum)) else None


def parse_data_file(data: bytes, *, fast: bool = True) -> DataFile:
    """Parse a data.qpdata of any QuPath version from 0.2 to 0.8.

    Raises
    ------
    FormatError
        If a byte is not understood, or the top-level items are not those of a data file.
    """
    contents, parser = parse_stream(data, fast=fast)
    first, last = (contents[0], contents[-1]) if contents else (None, None)
    if not isinstance(first, Block) or first.raw[2 : 2 + len(VERSION_MARK)] != VERSION_MARK:
        raise FormatError("no QuPath data file", expected="'Data file version' at the start")
    if len(contents) < 2 or not isinstance(contents[1], JString):
        raise FormatError("data file without server description")
    if not isinstance(last, JString) or last.raw != b"EOF":
        raise FormatError("data file without end mark", expected="'EOF' as the last item")
    out = DataFile(contents, parser)
    PathObjectView(out.root)
    return out


def read_head(path: Path) -> tuple[str | None, Stains | None]:
    """Read only the image type and the stains of a data file, which stand before the objects.

    Raises
    ------
    FormatError
        If the beginning of the file is not understood.
    ProjectError
        If it cannot be read.
    """
    try:
        with path.open("rb") as file:
            start = file.read(HEAD_BYTES)
            try:
                found = _head_items(start)
            except FormatError:
                found = _head_items(start + file.read())
    except OSError as error:
        raise ProjectError(f"{path} cannot be read: {error.strerror}") from error
    stains = found.get(STAINS)
    image_type = found.get(IMAGE_TYPE)
    return (
        image_type.name.text if isinstance(image_type, JEnum) else None,
        read_stains(stains) if isinstance(stains, JObject) else None,
    )


def _head_items(data: bytes) -> dict[str, JObject | JEnum]:
    parser = Parser(data, fast=False)
    out: dict[str, JObject | JEnum] = {}
    for token in parser.top_level():
        if isinstance(token, (JObject, JEnum)):
            if token.desc.name == WORKFLOW:
                break
            out[token.desc.name] = token
    return out


def new_data_file(
    *,
    server: dict[str, Any],
    image_type: str,
    stains: Stains | None,
    project_entry: str,
    root_id: str,
    version: str,
    colors: Callable[[str], int | None],
) -> DataFile:
    """Make the data file of an image without objects.

    Parameters
    ----------
    server
        The server builder of the project entry.
    image_type
        One of :data:`qupath_ext.native.stains.IMAGE_TYPES`.
    stains
        Stains, or None.
    project_entry
        ``<path of project.qpproj>::<entry id>``.
    root_id
        UUID of the root object.
    version
        QuPath version to be named in the file.
    colors
        Colour of a path class by name.
    """
    factory = Factory((), colors)
    mark = b"Data file version 3"
    header = {"dataVersion": 3, "qupathVersion": version, "server": server}
    locale: list[bytes | Content] = [struct.pack(">i", -1)]
    locale += [JString.of(text) for text in ("US", "", "en", "", "")]
    root = make_object(NewObject(id=root_id, kind="root", geometry=None), factory)
    contents: list[Content] = [
        Block(struct.pack(">H", len(mark)) + mark),
        JString.of(json.dumps(header, ensure_ascii=False, separators=(",", ":"))),
        factory.obj(LOCALE, locale, extra=[]),
        factory.enum(IMAGE_TYPE, image_type),
        None if stains is None else stains_token(stains, factory),
        factory.external(WORKFLOW, [Block(struct.pack(">ii", 1, 0))]),
        factory.obj(HIERARCHY, [root, None]),
        factory.hash_map([(JString.of("PROJECT_ENTRY_ID"), JString.of(project_entry))]),
        JString.of("EOF"),
    ]
    return DataFile(contents, None)


# ---------------------------------------------------------------------- counting
ObjectCounts = Counter[tuple[str, str | None]]
"""Number of objects by (object type, full class name or None)."""


def count_objects(root: JObject) -> ObjectCounts:
    """Count the objects below the root."""
    from qupath_ext.native.runtable import run_kinds_and_classes

    out: ObjectCounts = Counter()
    names: dict[int, str | None] = {}
    runs: dict[int, list[ScannedRun]] = {}
    for item, _ in walk(root):
        if isinstance(item, PathObjectView):
            token = id(item.class_token)
            if token not in names:
                names[token] = item.classification
            out[item.kind, names[token]] += 1
        elif isinstance(item, ScannedRun):
            key = id(item) if item.materialised else id(item.parser)
            runs.setdefault(key, []).append(item)
        elif isinstance(item, NewAnnotations):
            out.update((new.kind, new.classification) for new in item.objects)
        elif isinstance(item, NewRun):
            columns = item.columns
            codes, counts = np.unique(columns.codes[item.rows.start : item.rows.stop], return_counts=True)
            for code, n in zip(codes.tolist(), counts.tolist(), strict=True):
                out[columns.kind, columns.classes[code] if code >= 0 else None] += n
    for same in runs.values():
        out.update(run_kinds_and_classes(ScannedRun.joined(same)))
    return out


# ---------------------------------------------------------------------- writing
def stage_data_file(data: DataFile, path: Path, before: FileState | None, transaction: Transaction) -> ObjectCounts:
    """Write a data file beside its place, read it again in full and compare.

    Returns
    -------
    ObjectCounts
        What the new file holds.

    Raises
    ------
    FormatError
        If what was written does not read back as what was meant; nothing is replaced then.
    ProjectError
        If it cannot be written.
    """
    with paused_collector():
        return _stage_data_file(data, path, before, transaction)


def _stage_data_file(data: DataFile, path: Path, before: FileState | None, transaction: Transaction) -> ObjectCounts:
    handles: list[int] = []

    def write(file: Any) -> None:
        emitter = Emitter(file.write)
        emitter.stream(data.contents)
        handles.append(emitter.next_handle)

    expected = count_objects(data.root)
    temporary = transaction.stage(path, write, before)
    again = parse_data_file(read_back(temporary))
    found = count_objects(again.root)
    if again.parser is None or again.parser.next_handle != handles[0] or len(again.contents) != len(data.contents):
        raise FormatError(f"{path} would not read back as it was written", remedy="nothing was replaced")
    if found != expected:
        raise FormatError(
            f"{path} would hold {sum(found.values())} objects",
            expected=f"{sum(expected.values())}",
            remedy="nothing was replaced",
        )
    return found
