"""The text of a GeoJSON file -> its features as JSON, in blocks that fit the cache where that is possible."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import orjson

from qupath_ext.errors import FormatError
from qupath_ext.exchange.coordinates import KEY, Coordinates, cut
from qupath_ext.exchange.measured import Measured, cut_measurements

__all__ = ["GEOMETRY_TYPES", "Block", "NotSplitError", "split_features", "whole_file"]

GEOMETRY_TYPES = ("Point", "MultiPoint", "LineString", "MultiLineString", "Polygon", "MultiPolygon")
BLOCK = 2_000_000
NESTED = re.compile(rb"\[\]|p|\[p+\]|\[(\[p+\])+\]|\[(\[(\[p+\])+\])+\]")
HEAD = re.compile(rb'\s*(\{\s*"type"\s*:\s*"FeatureCollection"\s*,\s*"features"\s*:\s*)?\[')
COLLECTION_TAIL, ARRAY_TAIL = re.compile(rb"\]\s*\}\s*\Z"), re.compile(rb"\]\s*\Z")
BETWEEN = re.compile(rb'\}\s*,\s*(?=\{\s*"type"\s*:\s*"Feature"\s*,)')


class Block(NamedTuple):
    """Features of the top level in a row, with an index in the place of each array of coordinates.

    Lists of measurements may be cut out too (:mod:`qupath_ext.exchange.measured`).
    """

    features: list[Any]
    coordinates: Coordinates
    measured: Measured | None = None


class NotSplitError(Exception):
    """A file cannot be read in blocks: it is nested, malformed, or has another form."""


def split_features(data: bytes) -> Iterator[Block]:
    """Yield the features of a collection or an array in blocks.

    The text is cut where a feature seems to begin. If the pieces are valid JSON, so is the whole, and its features are
    theirs.

    Raises
    ------
    NotSplitError
        If a piece is no JSON.
    """
    head = HEAD.match(data)
    tail = (COLLECTION_TAIL if head and head[1] else ARRAY_TAIL).search(data, max(0, len(data) - 100))
    if not head or not tail:
        raise NotSplitError
    begin, end = head.end(), tail.start()
    while begin < end:
        gap = BETWEEN.search(data, begin + BLOCK, end)
        block = _block(b"[%b]" % data[begin : gap.start() + 1 if gap else end], measurements=True)
        if block is None:
            raise NotSplitError
        yield block
        begin = gap.end() if gap else end


def _block(text: bytes, *, measurements: bool) -> Block | None:
    parts = cut(text)
    if parts is None:
        return None
    taken = cut_measurements(parts[0]) if measurements else None
    rest, measured = taken or (parts[0], None)
    content = _load(rest)
    coordinates = Coordinates(parts[1])
    if isinstance(content, ValueError) or not all(map(NESTED.fullmatch, set(coordinates.nesting))):
        return None  # the whole text is no JSON, or there are arrays of something else
    return Block(content, coordinates, measured)


def whole_file(data: bytes, source: str) -> Block:
    """Return the features of the top level of a file of any form.

    Raises
    ------
    FormatError
        If it is no JSON, or has no features.
    """
    block = _block(data, measurements=False)
    if block is not None:
        return Block(_top_level(block.features, source), block.coordinates)
    content = _load(data)
    if isinstance(content, ValueError):
        raise FormatError(f"{source} is no JSON ({content})", expected="GeoJSON") from content
    arrays: list[bytes] = []
    _take_coordinates(content, arrays)
    return Block(_top_level(content, source), Coordinates(arrays))


def _load(data: bytes) -> Any:
    """Parse JSON, with bare NaN and Infinity as QuPath 0.2 to 0.4 wrote them; return the error if it is none."""
    try:
        return orjson.loads(data)
    except orjson.JSONDecodeError as error:
        if b"NaN" not in data and b"Infinity" not in data:
            return error
    try:
        return json.loads(data)
    except RecursionError:
        return ValueError("nested too deep")
    except ValueError as error:
        return error


def _take_coordinates(content: Any, arrays: list[bytes]) -> None:
    """Move the coordinates of every geometry into `arrays` and leave its index."""
    key = KEY.decode().strip('"')
    todo = [content]
    while todo:
        item = todo.pop()
        if isinstance(item, dict):
            if key in item and item.get("type") in GEOMETRY_TYPES:
                if isinstance(item[key], list):
                    arrays.append(orjson.dumps(item[key]))
                item[key] = len(arrays) - 1 if isinstance(item[key], list) else None
            todo.extend(item.values())
        elif isinstance(item, list):
            todo.extend(item)


def _top_level(content: Any, source: str) -> list[Any]:
    if isinstance(content, list):
        return content
    if isinstance(content, dict):
        if isinstance(content.get("features"), list):
            return list(content["features"])
        if "root" in content:
            return [content["root"]]
        if content.get("type") in ("Feature", *GEOMETRY_TYPES) or "geometry" in content:
            return [content]
    raise FormatError(f"{source} is JSON but has no features", expected="a GeoJSON feature collection or features")
