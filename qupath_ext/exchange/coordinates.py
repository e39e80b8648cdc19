"""The coordinates in a GeoJSON file: cut out of the text and read all at once, without a Python list for each vertex.

What is left of the text after the cut is a tenth of the numbers, and is read as ordinary JSON with an index in the
place of each array of coordinates.
"""

from __future__ import annotations

import re
import struct
from itertools import islice
from typing import Any

import numpy as np
import orjson

__all__ = ["Coordinates", "cut"]

KEY = b'"coordinates"'
BLOCK = 20_000
BLANKS = b" \t\r\n"
NUMBERS = b"0123456789.eE+-" + BLANKS
USUAL = b'"type":"Polygon",'
OWNER = re.compile(rb'[{,]\s*"type"\s*:\s*"\w+"\s*,\s*\Z')
AROUND = re.compile(rb"\s*:\s*[,}\s]")
MALFORMED = b"?"
BRACKETS_TO_BLANKS = bytes.maketrans(b"[];", b"   ")
Floats = np.ndarray[Any, np.dtype[np.float64]]


def cut(data: bytes) -> tuple[bytes, list[bytes]] | None:
    """Cut all arrays of coordinates out of a GeoJSON text.

    Parameters
    ----------
    data
        The text, UTF-8.

    Returns
    -------
    tuple or None
        The text with an index for each array, and the arrays. None where the key is used in another way than GeoJSON
        does, so that a cut could go wrong.

    Examples
    --------
    >>> cut(b'{"type":"Point","coordinates":[1,2]}')
    (b'{"type":"Point","coordinates":0}', [b'[1,2]'])
    """
    if b"\\" in data and b"\\" + KEY in data:
        return None
    head, *pieces = data.split(KEY)
    if not all(before.endswith(USUAL) or OWNER.search(before[-100:]) for before in (head, *pieces[:-1])):
        return None  # some of them are not those of a geometry
    ends = [piece.find(b"}") for piece in pieces]
    arrays = [piece[1:end] for piece, end in zip(pieces, ends, strict=True)]
    if [piece[:2] for piece in pieces].count(b":[") < len(pieces) or b'"' in b"".join(arrays):
        # blanks before the array, or other members behind it
        ends = [piece.rfind(b"]", 0, len(piece.partition(b"}")[0].partition(b'"')[0])) + 1 for piece in pieces]
        begins = [piece.find(b"[") for piece in pieces]
        pairs = list(zip(pieces, begins, ends, strict=True))
        if not all(
            0 < begin < end and AROUND.fullmatch(piece[:begin] + piece[end:][:1]) for piece, begin, end in pairs
        ):
            return None
        arrays = [piece[begin:end] for piece, begin, end in pairs]
    rests = [b"%b:%d%b" % (KEY, at, piece[ends[at] :]) for at, piece in enumerate(pieces)]
    return head + b"".join(rests), arrays


class Coordinates:
    """The vertices of many arrays of coordinates.

    Parameters
    ----------
    arrays
        JSON texts of arrays of positions, nested as deep as may be.

    Attributes
    ----------
    xy : numpy.ndarray
        float64, shape (m, 2): the vertices of all arrays; a third coordinate is dropped.
    first : numpy.ndarray
        int, shape (n + 1,): array i has the vertices from ``first[i]`` to ``first[i + 1]``.
    nesting : list of bytes
        For each array what is left when every position is written as ``p``, such as ``[[pppp][pppp]]``; ``[]`` for an
        empty array. What does not look like this, is not made of positions.
    """

    def __init__(self, arrays: list[bytes]) -> None:
        self.nesting: list[bytes] = []
        parts = [np.empty((0, 2))]
        todo = iter(arrays)
        while block := list(islice(todo, BLOCK)):
            read = _read(block, 2)
            if read is None:  # something is odd in one of them
                for array in block:
                    nesting, xy = _read_odd(array)
                    self.nesting.append(nesting)
                    parts.append(xy)
            else:
                self.nesting += read[0]
                parts.append(read[1])
        self.xy = np.concatenate(parts)
        counts = _counts(self.nesting)
        self.first = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])


def _read(arrays: list[bytes], dimensions: int) -> tuple[list[bytes], Floats] | None:
    """Return nesting and vertices of arrays; None if not all of their positions have that many numbers."""
    text = b";,".join(arrays)
    outline = text.translate(None, NUMBERS)
    if b"[]" in outline or b"][" in outline:
        return None
    nesting = outline.replace(b"[%b]" % (b"," * (dimensions - 1)), b"p").translate(None, b",").split(b";")
    try:
        numbers = orjson.loads(b"[%b]" % text.translate(BRACKETS_TO_BLANKS))
        flat = np.frombuffer(struct.pack(f"{len(numbers)}d", *numbers))  # half the time of np.fromiter
        positions = flat.reshape(-1, dimensions)
    except (ValueError, struct.error):
        return None
    if len(nesting) != len(arrays) or len(positions) != sum(_counts(nesting)):
        return None
    return nesting, positions[:, :2]


def _counts(nesting: list[bytes]) -> list[int]:
    """Return the number of positions in each; most of them look like many others."""
    count = {item: item.count(b"p") for item in set(nesting)}
    return [count[item] for item in nesting]


def _read_odd(array: bytes) -> tuple[bytes, Floats]:
    """Return nesting and vertices of one array that may be empty, malformed or of three dimensions."""
    if array.translate(None, BLANKS) == b"[]":
        return b"[]", np.empty((0, 2))
    read = _read([array], 3 if b"[,,]" in array.translate(None, NUMBERS) else 2)
    return (MALFORMED, np.empty((0, 2))) if read is None else (read[0][0], read[1])
