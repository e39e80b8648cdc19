"""Bags that are tiles of a slide, read when they are needed."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from pyhisto.errors import ConfigError, SlideError
from pyhisto.features.bags import Bag
from pyhisto.features.encoders import PIXELS
from pyhisto.features.extract import tile_corners, tile_side
from pyhisto.slide import Slide

__all__ = ["SlideTiles", "TileSettings", "slide_tiles"]


@dataclass(frozen=True)
class TileSettings:
    """Which tiles of a slide are its instances.

    Attributes
    ----------
    tile_size, mpp
        Side in px, and µm/px.
    min_tissue
        Least share of a tile that lies in the region, above 0, at most 1.

    Raises
    ------
    ConfigError
        If a number is out of range.
    """

    tile_size: int = 224
    mpp: float = 0.5
    min_tissue: float = 0.5

    def __post_init__(self) -> None:
        if not (1 <= self.tile_size <= 8192 and 0.02 <= self.mpp <= 100 and 0 < self.min_tissue <= 1):
            raise ConfigError(
                f"tiles of {self.tile_size} px at {self.mpp:g} µm/px with {self.min_tissue:g} of tissue",
                expected="1 to 8192 px at 0.02 to 100 µm/px, above 0 to 1",
            )


@dataclass(frozen=True, eq=False)
class SlideTiles(Bag):
    """The tiles of one slide as a bag, whose features are their pixels.

    Attributes
    ----------
    opened
        Opens the slide.
    places
        Top left corners (x, y), int64 (n, 2), level-0 px.
    tile_size
        Side of what is read, px.
    """

    opened: Callable[[], Slide] = field(kw_only=True)
    places: npt.NDArray[np.int64] = field(kw_only=True)
    tile_size: int = field(kw_only=True)

    @property
    def coords(self) -> npt.NDArray[np.int64]:
        """Top left corners, int64 (n, 2), level-0 px."""
        return self.places

    @property
    def features(self) -> npt.NDArray[np.float32]:
        """All pixels, float32 (n, width), read now."""
        return self.rows(np.arange(self.instances)).astype(np.float32)

    def rows(self, which: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
        """Return some tiles, uint8 (m, 3 * tile_size * tile_size), channels first, read now."""
        size, (width, height) = self.tile_size, (self.patch_size or 1, self.patch_height or 1)
        out = np.empty((len(which), 3, size, size), dtype=np.uint8)
        with self.opened() as slide:
            for number, (x, y) in enumerate(self.places[which].tolist()):
                rgb = slide.read_downsampled(x, y, size, size, (width / size, height / size))
                out[number] = rgb.transpose(2, 0, 1)
        return out.reshape(len(which), -1)


def slide_tiles(
    opened: Callable[[], Slide],
    region: Any,
    settings: TileSettings,
    *,
    name: str,
    patient: str = "",
    entry_id: str = "",
) -> SlideTiles:
    """Return the tiles of a region of a slide, edge to edge from its top left.

    Parameters
    ----------
    opened
        Opens the slide; called in several threads.
    region
        shapely Polygon or MultiPolygon, level-0 px; usually the tissue.
    settings
        See :class:`TileSettings`.
    name, patient, entry_id
        As of :class:`pyhisto.features.bags.Bag`.

    Raises
    ------
    SlideError
        If no tile lies in the region, or the slide cannot be opened or has no pixel size.
    ConfigError
        If the slide is so coarse that a tile has no pixel.
    """
    with opened() as slide:
        side = tile_side(slide, settings.tile_size, settings.mpp)
        path, origin = slide.path, slide.origin
    corners = tile_corners(region, side, settings.min_tissue)
    if len(corners) == 0:
        raise SlideError(
            f"slide {path.name}: no tile of {settings.tile_size * settings.mpp:g} µm lies in the region",
            expected=f"{settings.min_tissue:g} of a tile or more",
        )
    return SlideTiles(
        path=path,
        name=name,
        patient=patient,
        instances=len(corners),
        width=3 * settings.tile_size**2,
        patch_size=side[0],
        patch_height=side[1],
        encoder=PIXELS,
        encoder_sha256=hashlib.sha256(PIXELS.encode()).hexdigest(),
        entry_id=entry_id,
        attributes={
            "tile_size_px": settings.tile_size,
            "mpp": settings.mpp,
            "min_tissue": settings.min_tissue,
            "origin": origin,
        },
        opened=opened,
        places=corners,
        tile_size=settings.tile_size,
    )
