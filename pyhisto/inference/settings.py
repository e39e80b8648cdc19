"""How a slide is cut into network tiles and windows."""

from __future__ import annotations

from dataclasses import dataclass

from pyhisto.errors import ConfigError

__all__ = ["InferenceSettings"]

LEAST_WINDOW_PX = 64


@dataclass(frozen=True)
class InferenceSettings:
    """Settings of whole-slide inference: speed, memory, and how much what is found depends on the tiles.

    Attributes
    ----------
    tile_size
        Side of a square that has as many pixels as the network sees at once at most, model px, a multiple of the
        network's stride; tiles are cut to the region. None takes ``bundle.stream_tile``.
    overlap
        Margin on each side of a tile that the neighbours see too, model px; None takes that of ``bundle.stream_tile``,
        but of a given tile size no more than a quarter, rounded up to the stride, or what the model was trained with.
        Neighbours are blended over the inner 8 px of it, the rest is not used. As wide as a network sees, tiles change
        nothing.
    window
        Width and height of the own part of a window, model px; what bounds the memory. None takes 1024 for tissue, and
        2048 for cells, whose windows overlap.
    flips
        Predict each tile also flipped left to right, upside down and both, and take the mean.
    readers
        Threads that read the slide; None takes one a processor, at most 16.
    batch_size
        Tiles in one call of the network; None takes ``bundle.tiles_at_once``.
    finders
        Threads that find cells in predicted windows; None takes one where a CPU computes the network, else one for two
        processors, at most 8.

    Raises
    ------
    ConfigError
        If a number is out of range.
    """

    tile_size: int | None = None
    overlap: int | None = None
    window: int | None = None
    flips: bool = False
    readers: int | None = None
    batch_size: int | None = None
    finders: int | None = None

    def __post_init__(self) -> None:
        least = {"tile_size": 1, "overlap": 0, "window": LEAST_WINDOW_PX, "readers": 1, "batch_size": 1, "finders": 1}
        for name, lowest in least.items():
            value = getattr(self, name)
            if value is not None and value < lowest:
                raise ConfigError(f"{name} = {value}", expected=f"{lowest} or more")
