"""Ids of many objects, searched by a number made of each; what is found is compared in full."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np

__all__ = ["ID_SIZE", "IdColumn"]

ID_SIZE = 36
FACTORS = np.cumprod(np.full(ID_SIZE // 4, 0x9E3779B97F4A7C15, dtype=np.uint64))
"""Odd, so that no bit of a word is lost (Knuth, The Art of Computer Programming 3, 6.4)."""
Ids = np.ndarray[Any, np.dtype[np.bytes_]]
Ints = np.ndarray[Any, np.dtype[np.int64]]


class IdColumn:
    """The ids of n objects, ``S36``, shape (n,)."""

    def __init__(self, ids: Ids) -> None:
        self.ids = ids

    @cached_property
    def _keys(self) -> np.ndarray[Any, np.dtype[np.uint64]]:
        words = np.ascontiguousarray(self.ids).view(np.uint32).reshape(len(self.ids), -1)
        out = np.zeros(len(words), dtype=np.uint64)
        for factor, word in zip(FACTORS, words.T, strict=True):
            out += factor * word
        return out

    def find(self, wanted: IdColumn) -> tuple[Ints, Ints]:
        """Return which of the objects are among some others, and which of those they are.

        Parameters
        ----------
        wanted
            Other ids, all different; those of no object may be empty.

        Returns
        -------
        tuple
            Two int64 arrays of shape (m,): positions here, ascending, and positions in `wanted`.
        """
        rows = np.flatnonzero(np.isin(self._keys, wanted._keys))
        place_of = {found: place for place, found in enumerate(wanted.ids.tolist())}
        places = np.array([place_of.get(found, -1) for found in self.ids[rows].tolist()], dtype=np.int64)
        return rows[places >= 0], places[places >= 0]
