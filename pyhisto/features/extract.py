"""From a slide to its feature file: which tiles, read ahead by threads, encoded a batch at a time."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import shapely

from pyhisto.errors import BundleError, ConfigError, SlideError
from pyhisto.features.bags import Bag, new_bag, read_bag
from pyhisto.features.encoders import Encoder
from pyhisto.inference.lens import PLAIN, Lens
from pyhisto.inference.stages import mapped_ahead
from pyhisto.slide import Slide
from pyhisto.tiling import TileGrid

__all__ = ["ExtractSettings", "extract_features", "tile_corners", "tile_side"]

BATCHES, GPU_BATCH = {"cpu": 8, "mps": 32}, 128
"""Tiles at once, by the device, and on other GPUs; halved where the memory is too small."""

MOST_READERS = 16
HALF_MOST = float(np.finfo(np.float16).max)


@dataclass(frozen=True)
class ExtractSettings:
    """How features are made.

    Attributes
    ----------
    min_tissue
        Least share of a tile that lies in the region, above 0, at most 1.
    half
        Store float16: half of the space, three digits of each number.
    batch_size
        Tiles at once; None takes what suits the device.
    readers
        Threads that read the slide; None takes one a processor, at most 16.

    Raises
    ------
    ConfigError
        If a number is out of range.
    """

    min_tissue: float = 0.5
    half: bool = False
    batch_size: int | None = None
    readers: int | None = None

    def __post_init__(self) -> None:
        if not 0 < self.min_tissue <= 1:
            raise ConfigError(f"min_tissue = {self.min_tissue:g}", expected="above 0, at most 1")
        for name in ("batch_size", "readers"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name} = {value}", expected="1 or more")


def tile_side(slide: Slide, tile_size: int, mpp: float) -> tuple[int, int]:
    """Return width and height of a tile in whole level-0 px.

    Raises
    ------
    ConfigError
        If the slide is so coarse that a tile has no pixel.
    MissingPixelSizeError
        If the slide's pixel size is not known.
    """
    extent_um = tile_size * mpp
    side = round(extent_um / slide.mpp[0]), round(extent_um / slide.mpp[1])
    if min(side) < 1:
        raise ConfigError(f"tiles of {extent_um:g} µm on a slide with {slide.mean_mpp:g} µm/px", expected="larger ones")
    return side


def tile_corners(region: Any, side: tuple[int, int], min_share: float) -> npt.NDArray[np.int64]:
    """Return the tiles of a region: they lie edge to edge from its top left, row by row.

    Parameters
    ----------
    region
        shapely Polygon or MultiPolygon, level-0 px.
    side
        Width and height of a tile, level-0 px.
    min_share
        Least share of a tile that lies in the region.

    Returns
    -------
    numpy.ndarray
        Top left corners (x, y), int64 (n, 2), level-0 px.
    """
    if region.is_empty:
        return np.empty((0, 2), dtype=np.int64)
    left, top = math.floor(region.bounds[0]), math.floor(region.bounds[1])
    grid = TileGrid((left, top, *region.bounds[2:]), (1 / side[0], 1 / side[1]), 1.0, 1, 0)
    touched = np.array([(tile.column, tile.row) for tile in grid.tiles(region)], dtype=np.int64).reshape(-1, 2)
    corners: npt.NDArray[np.int64] = touched * side + (left, top)
    boxes = shapely.box(corners[:, 0], corners[:, 1], corners[:, 0] + side[0], corners[:, 1] + side[1])
    kept = shapely.covers(region, boxes)
    border = np.flatnonzero(~kept)
    for row in np.unique(touched[border, 1]):  # a row of the region has few corners, which makes each tile cheap
        own = border[touched[border, 1] == row]
        y = corners[own[0], 1]
        strip = shapely.make_valid(shapely.clip_by_rect(region, region.bounds[0], y, region.bounds[2], y + side[1]))
        area = shapely.area(shapely.intersection(strip, boxes[own]))
        kept[own] = area >= min_share * side[0] * side[1] * (1 - 1e-9)
    return corners[np.flatnonzero(kept)]


def extract_features(
    slide: Slide,
    encoder: Encoder,
    region: Any,
    path: str | Path,
    *,
    lens: Lens = PLAIN,
    settings: ExtractSettings | None = None,
    attributes: Mapping[str, Any] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Bag:
    """Encode the tiles of a region of a slide into a feature file, which appears whole or not at all.

    Parameters
    ----------
    slide
        An open slide with a pixel size.
    encoder
        What makes the features.
    region
        shapely Polygon or MultiPolygon, level-0 px; usually the tissue.
    path
        The feature file.
    lens
        Changes the colours of tiles before they are encoded.
    settings
        See :class:`ExtractSettings`.
    attributes
        What else the file is to say, such as ``name`` and ``patient``; see :mod:`pyhisto.features.bags`.
    progress
        Called after each batch with the number of tiles done and in all.

    Raises
    ------
    ConfigError
        If the slide is so coarse that a tile has no pixel, or another process writes the file.
    MissingPixelSizeError
        If the slide's pixel size is not known.
    SlideError
        If the region holds no tile, or pixels cannot be decoded.
    BundleError
        If the memory is too small for one tile, or features are no finite numbers, or too large for float16.
    """
    settings = settings or ExtractSettings()
    spec = encoder.spec
    side = tile_side(slide, spec.tile_size, spec.mpp)
    corners = tile_corners(region, side, settings.min_tissue)
    if len(corners) == 0:
        raise SlideError(
            f"slide {slide.path.name}: no tile of {spec.tile_size * spec.mpp:g} µm lies in the region",
            expected=f"{settings.min_tissue:g} of a tile or more",
            remedy="accept tiles with less tissue, or look somewhere else",
        )
    said = {**(attributes or {}), **_described(slide, encoder, side, settings)}
    dtype = np.float16 if settings.half else np.float32
    with new_bag(path, (len(corners), encoder.width), corners, said, dtype=dtype) as data:
        done = 0
        for batch in _batches(slide, encoder, corners, side, lens, settings):
            features = encoder.encode(batch)
            if settings.half and np.abs(features).max() > HALF_MOST:
                raise BundleError(f"encoder {spec.name} gives {np.abs(features).max():g}", remedy="store float32")
            data[done : done + len(batch)] = features
            done += len(batch)
            if progress is not None:
                progress(done, len(corners))
    return read_bag(path)


def _described(slide: Slide, encoder: Encoder, side: tuple[int, int], settings: ExtractSettings) -> dict[str, Any]:
    """Return what a feature file says of its tiles, under the names that CLAM and TRIDENT have for it."""
    spec = encoder.spec
    return {
        "slide": slide.path.name,
        "frame": "file",
        "origin": slide.origin,
        "patch_size": side[0],
        "patch_level": 0,
        "patch_size_level0": side[0],
        "patch_height": side[1],
        "overlap": 0,
        "tile_size_px": spec.tile_size,
        "mpp": spec.mpp,
        "min_tissue": settings.min_tissue,
        "encoder": spec.name,
        "encoder_sha256": spec.sha256,
    }


def _batches(
    slide: Slide,
    encoder: Encoder,
    corners: npt.NDArray[np.int64],
    side: tuple[int, int],
    lens: Lens,
    settings: ExtractSettings,
) -> Iterator[npt.NDArray[np.uint8]]:
    """Yield the tiles in order, RGB uint8 (n, tile_size, tile_size, 3); threads read ahead."""
    pixels = encoder.spec.tile_size
    downsample = side[0] / pixels, side[1] / pixels

    def read(corner: tuple[int, int]) -> npt.NDArray[np.uint8]:
        return lens.see(slide.read_downsampled(*corner, pixels, pixels, downsample))

    threads = settings.readers or min(MOST_READERS, os.cpu_count() or 1)
    size = settings.batch_size or BATCHES.get(encoder.device, GPU_BATCH)
    wanted = [(int(x), int(y)) for x, y in corners]
    with closing(mapped_ahead(read, wanted, threads=threads, ahead=threads + size)) as tiles:
        waiting: list[npt.NDArray[np.uint8]] = []
        for tile in tiles:
            waiting.append(tile)
            if len(waiting) == size:
                yield np.stack(waiting)
                waiting = []
        if waiting:
            yield np.stack(waiting)
