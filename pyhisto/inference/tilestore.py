"""Predicted tiles that windows still need: the latest in memory, the rest in a temporary file."""

from __future__ import annotations

import tempfile
from collections import OrderedDict
from types import TracebackType
from typing import IO, Self, TypeAlias

import numpy as np
import numpy.typing as npt

__all__ = ["PredictedTile", "TileStore"]

PredictedTile: TypeAlias = tuple[npt.NDArray[np.float32], npt.NDArray[np.uint8]]
"""Planes float32 (n, H, W) and RGB uint8 (H, W, 3) of the used part of a tile."""

RESIDENT_BYTES = 32 << 20
"""Memory for tiles; what is beyond it, the rims of a wide slide, goes to the file."""


class TileStore:
    """Tiles by their numbers; the least recently used ones leave the memory first.

    Parameters
    ----------
    planes, size
        Number of planes, and the greatest width and height of a tile, px.
    resident_bytes
        Memory that the tiles may take; at least one stays.
    """

    def __init__(self, planes: int, size: int, resident_bytes: int = RESIDENT_BYTES) -> None:
        self._planes = planes
        self._slot_bytes = _bytes(planes, size, size)
        self._most = max(1, resident_bytes // self._slot_bytes)
        self._resident: OrderedDict[int, PredictedTile] = OrderedDict()
        self._slots: dict[int, tuple[int, int, int]] = {}
        """Place in the file, height and width."""
        self._free: list[int] = []
        self._file: IO[bytes] | None = None

    def __len__(self) -> int:
        return len(self._resident.keys() | self._slots.keys())

    def __contains__(self, key: int) -> bool:
        return key in self._resident or key in self._slots

    @property
    def resident(self) -> int:
        """Number of tiles in memory."""
        return len(self._resident)

    def put(self, key: int, tile: PredictedTile) -> None:
        """Keep a tile."""
        self._resident[key] = tile
        self._resident.move_to_end(key)
        while len(self._resident) > self._most:
            oldest, evicted = self._resident.popitem(last=False)
            if oldest not in self._slots:
                self._write(oldest, evicted)

    def get(self, key: int) -> PredictedTile:
        """Return a tile that was put here."""
        tile = self._resident.get(key)
        if tile is None:
            tile = self._read(key)
        self.put(key, tile)
        return tile

    def drop(self, key: int) -> None:
        """Forget a tile."""
        self._resident.pop(key, None)
        slot = self._slots.pop(key, None)
        if slot is not None:
            self._free.append(slot[0])

    def close(self) -> None:
        """Delete the file and forget all tiles."""
        self._resident.clear()
        self._slots.clear()
        if self._file is not None:
            self._file.close()
            self._file = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _write(self, key: int, tile: PredictedTile) -> None:
        if self._file is None:
            self._file = tempfile.TemporaryFile(prefix="qupath-ext-tiles-")  # noqa: SIM115 - closed by close()
        slot = self._free.pop() if self._free else len(self._slots)
        height, width = tile[1].shape[:2]
        self._slots[key] = slot, height, width
        self._file.seek(slot * self._slot_bytes)
        self._file.write(np.ascontiguousarray(tile[0]).data)
        self._file.write(np.ascontiguousarray(tile[1]).data)

    def _read(self, key: int) -> PredictedTile:
        if self._file is None or key not in self._slots:
            raise KeyError(key)
        slot, height, width = self._slots[key]
        self._file.seek(slot * self._slot_bytes)
        raw = self._file.read(_bytes(self._planes, height, width))
        size = height * width
        planes = np.frombuffer(raw, dtype=np.float32, count=self._planes * size)
        rgb = np.frombuffer(raw, dtype=np.uint8, offset=planes.nbytes)
        return planes.reshape(self._planes, height, width), rgb.reshape(height, width, 3)


def _bytes(planes: int, height: int, width: int) -> int:
    """Return what a tile takes in the file."""
    return (4 * planes + 3) * height * width
