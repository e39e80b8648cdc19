"""One class for each tile of a region: patch classifiers over a slide."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import TYPE_CHECKING, Any

import geopandas as gpd
import numpy as np
import numpy.typing as npt
import shapely

from pyhisto.errors import ConfigError
from pyhisto.inference.lens import PLAIN, Lens
from pyhisto.inference.settings import InferenceSettings
from pyhisto.inference.stages import mapped_ahead
from pyhisto.objects import empty_objects, make_objects
from pyhisto.slide import Slide
from pyhisto.tiling import Tile, TileGrid

if TYPE_CHECKING:
    from pyhisto.bundle.foreign.models import TileModel

__all__ = ["predict_tile_classes"]

BATCH = 32
MOST_READERS = 16
POSITIVE = 0.5
"""Probability from which a tile is of the only class of a model."""


def predict_tile_classes(
    slide: Slide,
    model: TileModel,
    region: Any,
    *,
    settings: InferenceSettings | None = None,
    lens: Lens = PLAIN,
    progress: Callable[[int, int], None] | None = None,
) -> gpd.GeoDataFrame:
    """Classify the tiles of a region.

    Tiles are as large as the patches that the model was trained on, rounded to whole level-0 pixels as WSInfer does;
    they lie edge to edge from the top left of the region, and each that touches it is classified, as by QuPath's
    WSInfer extension. A tile is read from the coarsest level that is as fine as the network's input, and resized once.

    Parameters
    ----------
    slide
        An open slide with a pixel size.
    model
        A model of the kind ``tile_classification``.
    region
        shapely Polygon or MultiPolygon to look in, level-0 px.
    settings
        ``batch_size`` and ``readers`` are used.
    lens
        How the network sees the slide.
    progress
        Called after each batch with the number of tiles done and in all.

    Returns
    -------
    geopandas.GeoDataFrame
        Path-object table of tiles, level-0 px, in rows from the top. The probability of each class is the measurement
        of its name, and the most probable one the class of the tile, as QuPath's WSInfer extension has them; with one
        class only, tiles below 0.5 have none.

    Raises
    ------
    ConfigError
        If the model is of another kind, or the slide is so coarse that a tile has no pixel.
    MissingPixelSizeError
        If the slide's pixel size is not known.
    """
    if model.spec.kind != "tile_classification":
        raise ConfigError(f"model of the kind {model.spec.kind}", expected="tile_classification")
    if region.is_empty:
        return empty_objects()
    settings = settings or InferenceSettings()
    side = _side(slide, model, lens)
    corner = (math.floor(region.bounds[0]), math.floor(region.bounds[1]))
    grid = TileGrid((*corner, *region.bounds[2:]), (1 / side[0], 1 / side[1]), 1.0, 1, 0)
    tiles = [_whole(tile, corner, side) for tile in grid.tiles(region)]
    probability = np.empty((len(tiles), len(model.spec.classes)), dtype=np.float32)
    done = 0
    for planes in _batches(slide, model, tiles, side, lens, settings):
        probability[done : done + len(planes)] = model.classify(planes)
        done += len(planes)
        if progress is not None:
            progress(done, len(tiles))
    names = [c.classification for c in model.spec.classes]
    best = probability.argmax(axis=1)
    decided = probability.max(axis=1) >= POSITIVE if len(names) == 1 else np.ones(len(tiles), dtype=bool)
    outlines = [shapely.box(x, y, x + side[0], y + side[1]) for x, y in tiles]
    return make_objects(
        outlines,
        object_type="tile",
        classification=[names[k] if sure else None for k, sure in zip(best, decided, strict=True)],
        measurements={c.name: probability[:, k].astype(np.float64) for k, c in enumerate(model.spec.classes)},
    )


def _side(slide: Slide, model: TileModel, lens: Lens) -> tuple[int, int]:
    """Return width and height of a tile, level-0 px."""
    extent_um = model.spec.tile_size * model.spec.mpp * lens.size
    side = round(extent_um / slide.mpp[0]), round(extent_um / slide.mpp[1])
    if min(side) < 1:
        raise ConfigError(f"tiles of {extent_um:g} µm on a slide with {slide.mean_mpp:g} µm/px", expected="larger ones")
    return side


def _whole(tile: Tile, corner: tuple[int, int], side: tuple[int, int]) -> tuple[int, int]:
    """Return the top left corner of a tile, level-0 px."""
    return corner[0] + tile.column * side[0], corner[1] + tile.row * side[1]


def _batches(
    slide: Slide,
    model: TileModel,
    tiles: list[tuple[int, int]],
    side: tuple[int, int],
    lens: Lens,
    settings: InferenceSettings,
) -> Iterator[npt.NDArray[np.float32]]:
    """Yield the network's input, float32 (n, 3, h, w), for the tiles in order; threads read ahead."""
    fitting = [d for d in slide.level_downsamples if d <= min(side) / model.input_size * 1.01]
    downsample = max(fitting, default=1.0)
    width, height = (max(1, round(length / downsample)) for length in side)

    def read(tile: tuple[int, int]) -> npt.NDArray[np.float32]:
        rgb = slide.read_downsampled(*tile, width, height, (side[0] / width, side[1] / height))
        return model.pixels(lens.see(rgb))

    threads = settings.readers or min(MOST_READERS, os.cpu_count() or 1)
    size = settings.batch_size or BATCH
    with closing(mapped_ahead(read, tiles, threads=threads, ahead=threads + size)) as planes:
        batch: list[npt.NDArray[np.float32]] = []
        for plane in planes:
            batch.append(plane)
            if len(batch) == size:
                yield np.stack(batch)
                batch = []
        if batch:
            yield np.stack(batch)
