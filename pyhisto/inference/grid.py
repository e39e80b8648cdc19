"""The network's tiles over an area, and how neighbours are blended; pure functions on numbers."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from pyhisto.bundle.files import Bundle
from pyhisto.errors import ConfigError
from pyhisto.inference.settings import InferenceSettings

__all__ = ["Box", "Boxes", "NetworkGrid", "Places", "network_grids", "time_of"]

SIZE_PARTS = 8
"""Sizes of tiles that are tried are the largest in such parts, from a quarter on."""

TILE_COST, TILE_COST_PX = 0.6, 280**2
"""What a tile takes beside the time for its pixels, as a share of that time, but no more than for so many pixels:
the convolutions that are fast on large maps prepare their weights for each tile, and small maps do without them."""

RAMP_PX = 8
"""How far beyond its core a tile is blended with its neighbours. What a network says depends on where its tile ends, the
less the farther from there: of an overlap as little as blending needs is used."""

RIM_PX = 24
"""How far the network sees at least beyond what is wanted of a tile, where no other tile goes on."""

Box: TypeAlias = tuple[int, int, int, int]
"""(x0, y0, x1, y1), pixels."""

Boxes: TypeAlias = npt.NDArray[np.int64]
Places: TypeAlias = npt.NDArray[np.int64]


@dataclass(frozen=True)
class NetworkGrid:
    """Square tiles that cover an area of `width` x `height` px; tile (row, column) has its core at a multiple of it.

    Only the inner :attr:`ramp` of a tile's overlap is used, for farther out the network sees too little of what lies
    around. There the weight rises as a squared sine across the edge of the core, so that those of two neighbours sum
    to 1. Of a tile of which little is wanted, the network sees less: down to `least` px along a side, in steps of
    `stride`.
    """

    width: int
    height: int
    tile_size: int
    overlap: int
    stride: int = 1
    least: int | None = None
    """Smallest side of what the network sees, px; None for no less than the whole tile."""

    def __post_init__(self) -> None:
        if not 0 <= 2 * self.overlap < self.tile_size:
            raise ConfigError(
                f"overlap of {self.overlap} px in tiles of {self.tile_size} px",
                expected=f"0 to {(self.tile_size - 1) // 2}",
            )

    @property
    def core(self) -> int:
        """Width and height of a tile without its overlap; also the distance between tiles."""
        return self.tile_size - 2 * self.overlap

    @property
    def ramp(self) -> int:
        """How far the used part of a tile reaches beyond its core, px."""
        return min(self.overlap - self.overlap // 2, RAMP_PX, self.core // 2)

    @property
    def shape(self) -> tuple[int, int]:
        """Number of rows and columns."""
        return math.ceil(self.height / self.core), math.ceil(self.width / self.core)

    @cached_property
    def _line(self) -> npt.NDArray[np.float64]:
        """Weights along a side of the used part."""
        rise = np.sin(np.pi / 2 * (np.arange(2 * self.ramp) + 0.5) / max(1, 2 * self.ramp)) ** 2
        return np.concatenate([rise, np.ones(self.core - 2 * self.ramp), 1 - rise])

    def weights(self, rows: slice, columns: slice) -> npt.NDArray[np.float32]:
        """Return the weights of some rows and columns of the used part, core + 2 * ramp px wide and high; float32."""
        return np.outer(self._line[rows], self._line[columns]).astype(np.float32)

    def used(self, row: int, column: int) -> Box:
        """Return the part of a tile whose prediction is used; may reach beyond the area."""
        x, y = column * self.core - self.ramp, row * self.core - self.ramp
        return x, y, x + self.core + 2 * self.ramp, y + self.core + 2 * self.ramp

    def cropped(self, places: Places, wanted: Boxes) -> tuple[Boxes, Boxes]:
        """Return what the network sees of tiles of which only a part is wanted, and what of that can be used.

        Where a neighbour goes on, the network sees the whole overlap; around the rest of what is wanted, a rim. Both
        boxes may reach beyond the area.

        Parameters
        ----------
        places
            int64 (n, 2): row and column of each tile.
        wanted
            int64 (n, 4): a box inside its used part.
        """
        least = self.tile_size if self.least is None else min(self.least, self.tile_size)
        outer = self.overlap - self.ramp
        corner = places[:, ::-1] * self.core - self.overlap
        used = np.hstack([corner + outer, corner + self.tile_size - outer])
        area = np.array([-self.ramp, -self.ramp, self.width + self.ramp, self.height + self.ramp])
        goes_on = np.hstack(
            [
                (wanted[:, :2] <= used[:, :2]) & (wanted[:, :2] > area[:2]),
                (wanted[:, 2:] >= used[:, 2:]) & (wanted[:, 2:] < area[2:]),
            ]
        )
        rim = np.where(goes_on, outer, min(outer, RIM_PX))
        low = np.maximum((wanted[:, :2] - corner - rim[:, :2]) // self.stride * self.stride, 0)
        high = -((corner - rim[:, 2:] - wanted[:, 2:]) // self.stride) * self.stride
        high = np.minimum(np.maximum(high, low + least), self.tile_size)
        low = np.minimum(low, high - least)
        seen = np.hstack([corner + low, corner + high])
        sign = np.array([1, 1, -1, -1])
        inner = seen + sign * rim
        usable = np.hstack([np.maximum(inner[:, :2], used[:, :2]), np.minimum(inner[:, 2:], used[:, 2:])])
        return seen, usable

    def alike(self, places: Places, seen: Boxes) -> Boxes:
        """Return boxes of one size in which the network sees all that it sees of some tiles, int64 (n, 4)."""
        corner = places[:, ::-1] * self.core - self.overlap
        size = (seen[:, 2:] - seen[:, :2]).max(axis=0)
        low = np.minimum(seen[:, :2] - corner, self.tile_size - size)
        return np.hstack([corner + low, corner + low + size])

    def using(self, box: Box) -> tuple[slice, slice]:
        """Return the rows and columns of the tiles whose used part meets a box."""
        x0, y0, x1, y1 = box
        rows, columns = self.shape
        first = (max(0, (y0 - self.ramp) // self.core), max(0, (x0 - self.ramp) // self.core))
        after = (min(rows, -(-(y1 + self.ramp) // self.core)), min(columns, -(-(x1 + self.ramp) // self.core)))
        return slice(first[0], after[0]), slice(first[1], after[1])


def time_of(pixels: npt.NDArray[np.int64]) -> float:
    """Return the time that tiles of so many pixels take a network, in that for a pixel of a large one."""
    return float((pixels + np.minimum(TILE_COST * pixels, TILE_COST_PX)).sum())


def network_grids(bundle: Bundle, settings: InferenceSettings, width: int, height: int) -> list[NetworkGrid]:
    """Return the grids of a model that may lie over an area of `width` x `height` px, largest tiles first.

    Large tiles waste less on overlap, small ones less around a ragged or small region: the sizes lie between what the
    network was trained on and ``bundle.stream_tile``, and tiles are cropped to what is wanted of them, but no further
    than to the former. Settings that name a size leave that one, uncropped. An overlap that they name is rounded up to
    the network's stride, if there is room: on which pixels its coarse maps lie changes what it says.

    Raises
    ------
    ConfigError
        If the tile size of the settings is no multiple of the network's stride, or the overlap leaves no core.
    """
    largest, overlap = bundle.stream_tile
    stride = bundle.stride
    if settings.overlap is not None:
        whole = math.ceil(settings.overlap / stride) * stride
        overlap = whole if 2 * whole < (settings.tile_size or largest) else settings.overlap
    if settings.tile_size is not None:
        if settings.tile_size % stride:
            raise ConfigError(
                f"tile_size = {settings.tile_size}",
                expected=f"a multiple of {stride}, the stride of {bundle.spec.architecture}",
            )
        if settings.overlap is None:
            quarter = math.ceil(settings.tile_size / 4 / stride) * stride
            overlap = min(overlap, max(bundle.spec.overlap, quarter))
        return [NetworkGrid(width, height, settings.tile_size, overlap)]
    parts = range(SIZE_PARTS // 4, SIZE_PARTS)
    sizes = {math.ceil(part * largest / SIZE_PARTS / stride) * stride for part in parts} | {bundle.spec.tile_size}
    least = max(bundle.spec.tile_size, 2 * overlap + 1)
    fitting = [largest, *sorted((size for size in sizes if least <= size < largest), reverse=True)]
    return [NetworkGrid(width, height, size, overlap, stride, bundle.spec.tile_size) for size in fitting]
