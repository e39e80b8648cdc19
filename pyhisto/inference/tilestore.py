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

_Block: TypeAlias = npt.NDArray[np.uint8]

RESIDENT_BYTES, RESIDENT_TILES = 32 << 20, 4
"""Memory for tiles, but enough for so many; what is beyond it, the rims of a wide slide, goes to the file.

A window of the size of a tile is made of four. Each takes as much memory as the largest."""


class TileStore:
    """Tiles by their numbers; the least recently used ones leave the memory first.

    Tiles are copied into a few blocks of memory that are used again and again: kept one by one, for as long as they are
    needed, they would lie scattered over the memory that shorter-lived arrays leave, which the process could then not
    give back.

    Parameters
    ----------
    planes, pixels
        Number of planes, and pixels of the largest tile.
    resident_bytes, resident_tiles
        Memory that the tiles may take, and how many may stay even if they take more.
    """

    def __init__(
        self, planes: int, pixels: int, resident_bytes: int = RESIDENT_BYTES, resident_tiles: int = RESIDENT_TILES
    ) -> None:
        self._planes = planes
        self._slot_bytes = (4 * planes + 3) * max(1, pixels)
        self._most = max(resident_tiles, resident_bytes // self._slot_bytes)
        self._shapes: dict[int, tuple[int, int]] = {}
        self._resident: OrderedDict[int, _Block] = OrderedDict()
        self._blocks: list[_Block] = []
        """Those that no tile is in."""
        self._slots: dict[int, int] = {}
        """Places in the file."""
        self._free: list[int] = []
        self._file: IO[bytes] | None = None

    def __len__(self) -> int:
        return len(self._shapes)

    def __contains__(self, key: int) -> bool:
        return key in self._shapes

    @property
    def resident(self) -> int:
        """Number of tiles in memory."""
        return len(self._resident)

    def put(self, key: int, tile: PredictedTile) -> None:
        """Keep a copy of a tile."""
        self.drop(key)
        planes, rgb = tile
        self._shapes[key] = rgb.shape[0], rgb.shape[1]
        self._resident[key] = self._block()
        kept = self._tile(key)
        kept[0][...], kept[1][...] = planes, rgb

    def get(self, key: int) -> PredictedTile:
        """Return a tile that was put here; to be used before the next call."""
        if key not in self._resident:
            self._read(key)
        self._resident.move_to_end(key)
        return self._tile(key)

    def drop(self, key: int) -> None:
        """Forget a tile."""
        self._shapes.pop(key, None)
        block, slot = self._resident.pop(key, None), self._slots.pop(key, None)
        if block is not None:
            self._blocks.append(block)
        if slot is not None:
            self._free.append(slot)

    def close(self) -> None:
        """Delete the file and forget all tiles."""
        self._shapes.clear()
        self._resident.clear()
        self._blocks.clear()
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

    def _tile(self, key: int) -> PredictedTile:
        """Return the arrays of a tile in memory."""
        height, width = self._shapes[key]
        raw = self._resident[key][: self._bytes(key)]
        planes, rgb = raw[: 4 * self._planes * height * width], raw[4 * self._planes * height * width :]
        return planes.view(np.float32).reshape(self._planes, height, width), rgb.reshape(height, width, 3)

    def _bytes(self, key: int) -> int:
        """Return the bytes of a tile."""
        height, width = self._shapes[key]
        return (4 * self._planes + 3) * height * width

    def _block(self) -> _Block:
        """Return memory for a tile: the least recently used one is written into the file where there is none left."""
        if self._blocks:
            return self._blocks.pop()
        if len(self._resident) < self._most:
            return np.empty(self._slot_bytes, dtype=np.uint8)
        oldest, block = self._resident.popitem(last=False)
        if oldest not in self._slots:
            self._write(oldest, block)
        return block

    def _write(self, key: int, block: _Block) -> None:
        if self._file is None:
            self._file = tempfile.TemporaryFile(prefix="qupath-ext-tiles-")  # noqa: SIM115 - closed by close()
        self._slots[key] = self._free.pop() if self._free else len(self._slots)
        self._file.seek(self._slots[key] * self._slot_bytes)
        self._file.write(block[: self._bytes(key)].data)

    def _read(self, key: int) -> None:
        if self._file is None or key not in self._slots:
            raise KeyError(key)
        block = self._block()
        self._file.seek(self._slots[key] * self._slot_bytes)
        self._file.readinto(block[: self._bytes(key)].data)  # type: ignore[attr-defined]
        self._resident[key] = block
