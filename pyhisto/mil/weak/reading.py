"""Reading instances of bags ahead of who needs them, some of them kept in memory."""

from __future__ import annotations

import threading
from collections.abc import Generator, Sequence
from contextlib import closing
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from pyhisto.errors import ConfigError
from pyhisto.features.bags import Bag
from pyhisto.inference.stages import mapped_ahead
from pyhisto.mil.weak.tiles import SlideTiles

__all__ = ["Draw", "InstanceReader"]

Draw: TypeAlias = tuple[int, npt.NDArray[np.int64]]
"""Number of a bag, and which of its instances, ascending."""


class InstanceReader:
    """Reads some instances of bags in threads, and keeps whole bags as long as they fit into some memory.

    Parameters
    ----------
    bags
        Feature files, or tiles of slides.
    memory
        Bytes to keep; bags that are read first stay.
    threads
        How many read.
    """

    def __init__(self, bags: Sequence[Bag], *, memory: int, threads: int) -> None:
        self._bags = bags
        self._threads = threads
        self._room = memory
        self._kept: dict[int, npt.NDArray[Any]] = {}
        self._lock = threading.Lock()

    def read(self, draws: Sequence[Draw]) -> Generator[npt.NDArray[Any], None, None]:
        """Yield the instances of each draw in order, float32 or uint8 (n, width).

        Raises
        ------
        ConfigError
            If a file cannot be read, or has a feature that is no finite number.
        SlideError
            If a slide cannot be read.
        """
        if all(number in self._kept for number, _ in draws):  # threads would only be in the way
            yield from (self._kept[number][which] for number, which in draws)
            return
        with closing(mapped_ahead(self._read, draws, threads=self._threads, ahead=self._threads)) as read:
            yield from read

    def _read(self, draw: Draw) -> npt.NDArray[Any]:
        number, which = draw
        bag = self._bags[number]
        kept = self._kept.get(number)
        if kept is None and self._reserve(bag):
            kept = _checked(bag, bag.rows(np.arange(bag.instances)))
            with self._lock:
                self._kept[number] = kept
        return _checked(bag, bag.rows(which)) if kept is None else kept[which]

    def _reserve(self, bag: Bag) -> bool:
        """Return whether a bag fits into the memory that is left, which is then its own."""
        size = bag.instances * bag.width * (1 if isinstance(bag, SlideTiles) else 4)
        with self._lock:
            fits = size <= self._room
            self._room -= size if fits else 0
        return fits


def _checked(bag: Bag, rows: npt.NDArray[Any]) -> npt.NDArray[Any]:
    if not np.isfinite(rows).all():
        raise ConfigError(f"{bag.path} has a feature that is no finite number", remedy="make the file again")
    return rows
