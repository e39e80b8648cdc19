"""Lists of measurements with the same names in the same order, cut out of GeoJSON text and read all at once.

A file of cells has ten or a hundred objects ``{"name": ..., "value": ...}`` for each cell. Made into a dictionary each,
they take longer than all the rest.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple

import numpy as np
import orjson

__all__ = ["PLACE", "Measured", "cut_measurements"]

KEY = b'"measurements":'
PLACE = "\x01"
"""The key that stands for measurements that were cut out; its value is their row in :attr:`Measured.values`."""
PLACE_KEY = orjson.dumps(PLACE)


class Measured(NamedTuple):
    """Measurements that were cut out: `names`, and `values`, float64, shape (n, names)."""

    names: tuple[str, ...]
    values: np.ndarray[Any, np.dtype[np.float64]]


def cut_measurements(text: bytes) -> tuple[bytes, Measured] | None:
    r"""Cut out the lists of measurements that have the names of the first one.

    Parameters
    ----------
    text
        GeoJSON without superfluous blanks.

    Returns
    -------
    tuple or None
        The text with ``"\u0001":row`` in the place of each such list, and the lists. None if there is no list to
        start from, or a number is malformed. Lists with other names stay where they are.

    Examples
    --------
    >>> text = b'[{"measurements":[{"name":"a","value":1.5}]},{"measurements":[{"name":"a","value":2}]}]'
    >>> rest, measured = cut_measurements(text)
    >>> rest.decode(), measured.names, measured.values.tolist()
    ('[{"\\u0001":0},{"\\u0001":1}]', ('a',), [[1.5], [2.0]])
    """
    names = _first_names(text)
    if names is None or PLACE_KEY in text:
        return None
    items = [rb'\{"name":%b,"value":([-+.\deE]+)\}' % re.escape(orjson.dumps(name)) for name in names]
    parts = re.split(KEY + rb"\[%b\]" % b",".join(items), text)
    step = len(names) + 1
    rest = parts[::step]
    numbers = b",".join([number for column in range(1, step) for number in parts[column::step]])
    try:
        values = np.array(orjson.loads(b"[%b]" % numbers), dtype=np.float64)
    except orjson.JSONDecodeError:
        return None
    pieces = [rest[0]]
    for row, piece in enumerate(rest[1:]):
        pieces += (b"%b:%d" % (PLACE_KEY, row), piece)
    return b"".join(pieces), Measured(names, np.ascontiguousarray(values.reshape(len(names), -1).T))


def _first_names(text: bytes) -> tuple[str, ...] | None:
    """Return the names in the first list of measurements; None if there is none."""
    begin = text.find(KEY + b"[{")
    end = text.find(b"}]", begin)
    if begin < 0 or end < 0:
        return None
    try:
        items = orjson.loads(text[begin + len(KEY) : end + 2])
    except orjson.JSONDecodeError:
        return None
    if not all(isinstance(item, dict) and list(item) == ["name", "value"] for item in items):
        return None
    names: list[Any] = [item["name"] for item in items]
    return tuple(names) if all(isinstance(name, str) for name in names) else None
