"""Which tiles of a model suit an area: their side, their overlap, and whether they may be cut to measure."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from pyhisto.bundle.files import Bundle
from pyhisto.errors import ConfigError
from pyhisto.inference.settings import InferenceSettings

__all__ = ["Box", "Boxes", "TileShape", "tile_note", "tile_shape"]

RAMP_PX = 8
"""How far beyond its core a tile is blended with its neighbours. What a network says depends on where its tile ends,
the less the farther from there: of an overlap as little as blending needs is used."""

LEAST_ROOM_PX = 64
"""Tiles with less room are not cut to measure."""

Box: TypeAlias = tuple[int, int, int, int]
"""(x0, y0, x1, y1), pixels."""

Boxes: TypeAlias = npt.NDArray[np.int64]


@dataclass(frozen=True)
class TileShape:
    """The tiles of a model.

    Only the inner :attr:`ramp` of a tile's overlap is used, for farther out the network sees too little of what lies
    around.

    Attributes
    ----------
    tile_size
        Side of what the network sees, px; tiles that are cut to measure have no more pixels than such a square.
    overlap
        How far it sees beyond the core of a tile where a neighbour goes on, px.
    stride
        The ends of what it sees are multiples of this, px.
    least
        Smallest side of what it sees, px; None for tiles that are all whole, on a grid.
    """

    tile_size: int
    overlap: int
    stride: int = 1
    least: int | None = None

    def __post_init__(self) -> None:
        if not 0 <= 2 * self.overlap < self.tile_size:
            raise ConfigError(
                f"overlap of {self.overlap} px in tiles of {self.tile_size} px",
                expected=f"0 to {(self.tile_size - 1) // 2}",
            )

    @property
    def core(self) -> int:
        """Width and height of a whole tile without its overlap."""
        return self.tile_size - 2 * self.overlap

    @property
    def room(self) -> int:
        """Side of a square core around which a tile that is cut to measure fits, wherever it lies, px."""
        return self.core - 2 * self.stride

    @property
    def ramp(self) -> int:
        """How far what is used of a tile reaches beyond its core, px."""
        return min(self.overlap - self.overlap // 2, RAMP_PX, self.core // 2)


def tile_shape(bundle: Bundle, settings: InferenceSettings) -> TileShape:
    """Return the tiles of a model.

    Large tiles waste less on overlap, small ones less around a ragged or small region: tiles are cut to measure, of no
    more pixels than the settings or else ``bundle.stream_tile`` say, and no smaller than in training. Networks whose
    tiles may not be larger than in training get whole ones. An overlap that the settings name is rounded up to the
    network's stride, if there is room: on which pixels its coarse maps lie changes what it says.

    Raises
    ------
    ConfigError
        If the tile size of the settings is no multiple of the network's stride, or the overlap leaves no core.
    """
    suiting, overlap = bundle.stream_tile
    stride, trained = bundle.stride, bundle.spec.tile_size
    largest = settings.tile_size or suiting
    if settings.overlap is not None:
        whole = math.ceil(settings.overlap / stride) * stride
        overlap = whole if 2 * whole < largest else settings.overlap
    elif settings.tile_size is not None:
        quarter = math.ceil(settings.tile_size / 4 / stride) * stride
        overlap = min(overlap, max(bundle.spec.overlap, quarter))
    if largest % stride and settings.tile_size is not None:
        raise ConfigError(
            f"tile_size = {settings.tile_size}",
            expected=f"a multiple of {stride}, the stride of {bundle.spec.architecture}",
        )
    shape = TileShape(largest, overlap, stride, trained)
    return shape if trained < min(suiting, largest) and shape.room >= LEAST_ROOM_PX else TileShape(largest, overlap)


def tile_note(bundle: Bundle, settings: InferenceSettings) -> str:
    """Return what to say of tiles that leave traces in what is found; empty for those that suit the model.

    Raises
    ------
    ConfigError
        As :func:`tile_shape` does.
    """
    shape, (suiting, overlap), trained = tile_shape(bundle, settings), bundle.stream_tile, bundle.spec.tile_size
    if shape.overlap < overlap:
        return (
            f"tiles of {shape.tile_size} px reach {shape.overlap} px into each other; with less than {overlap} px "
            "outlines near their ends may lie otherwise than with other tiles"
        )
    if suiting <= trained != shape.tile_size:
        return f"tiles of {shape.tile_size} px for a network that is meant for {trained} px: it may say something else"
    return ""
