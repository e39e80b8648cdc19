"""The coarse-to-fine path of H2G-Net (Pedersen 2022): a proposal at low magnification, patches at high, a refinement.

The second network of the model proposes places without heat, the first one classifies the patches there, and the second
one segments the region from colours and heat. All that is kept of a slide is a few bytes a patch.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import shapely

from pyhisto.bundle.files import Bundle
from pyhisto.bundle.spec import CascadeSpec
from pyhisto.errors import ConfigError
from pyhisto.heatmap import HeatedSlide, Heatmap
from pyhisto.inference.lens import PLAIN, Lens
from pyhisto.inference.settings import InferenceSettings
from pyhisto.inference.stages import mapped_ahead
from pyhisto.inference.stream import PredictedWindow, Progress, stream_windows
from pyhisto.slide import Slide
from pyhisto.tiling import TileGrid

__all__ = ["detect_heat", "heated", "propose_patches"]

MOST_READERS = 16

Flags: TypeAlias = npt.NDArray[np.bool_]


def heated(
    slide: Slide,
    bundle: Bundle,
    region: Any,
    *,
    lens: Lens = PLAIN,
    settings: InferenceSettings | None = None,
    progress: Progress | None = None,
) -> tuple[HeatedSlide, Bundle, Lens]:
    """Do all of a coarse-to-fine model but the refinement, and return what that is to be done with.

    Parameters
    ----------
    slide
        An open slide with a pixel size.
    bundle
        A model with a first stage.
    region
        shapely Polygon or MultiPolygon, level-0 px. Patches that do not touch it are not read.
    lens
        How the networks see the slide.
    settings
        Threads, batches and windows.
    progress
        Called with the number done and in all, of the windows of the proposal and then of the patches.

    Returns
    -------
    slide : HeatedSlide
        The same slide with the heat of each class beside its colours.
    bundle : Bundle
        The second network, which sees these channels.
    lens : Lens
        The same lens, for them.

    Raises
    ------
    ConfigError
        If the model has no first stage.
    """
    cascade = bundle.spec.cascade
    if cascade is None:
        raise ConfigError(f"{bundle.path} has one network", expected="a coarse-to-fine model")
    settings = settings or InferenceSettings()
    detector, refiner = bundle.stages()
    classes = len(bundle.spec.classes) - 1
    wide = _beside_heat(lens)
    wanted = None
    if cascade.propose:
        blind = HeatedSlide(slide, None, classes=classes)
        plain = dataclasses.replace(settings, flips=False)
        windows = stream_windows(blind, refiner, region, lens=wide, settings=plain, progress=progress)
        wanted = propose_patches(windows, cascade, _patch_grid(slide, detector, region, lens))
    heat = detect_heat(slide, detector, region, lens=lens, settings=settings, wanted=wanted, progress=progress)
    return HeatedSlide(slide, heat, classes=classes), refiner, wide


def _beside_heat(lens: Lens) -> Lens:
    """Return a lens that changes the colours, and not the heat beside them."""
    if lens.colours is None:
        return lens

    def see(pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        return np.concatenate([lens.see(np.ascontiguousarray(pixels[..., :3])), pixels[..., 3:]], axis=2)

    return dataclasses.replace(lens, colours=see)


def propose_patches(windows: Any, cascade: CascadeSpec, grid: TileGrid) -> Flags:
    """Return which patches lie where a low-magnification prediction leaves classes possible, or within the margin.

    Parameters
    ----------
    windows
        Iterable of :class:`pyhisto.inference.PredictedWindow`.
    cascade
        Threshold and margin.
    grid
        The patches.

    Returns
    -------
    numpy.ndarray
        bool, shape of the grid.
    """
    shape = grid.shape
    origin, step = np.array(grid.bounds[:2]), grid.core_size * np.array(grid.downsample)
    margin = cascade.proposal_margin_um / np.array(grid.slide_mpp)
    out = np.zeros(shape, dtype=bool)
    for window in windows:
        places = _possible(window, cascade.proposal_threshold)
        first = np.floor((places - margin - origin) / step).astype(int)
        last = np.floor((places + margin - origin) / step).astype(int)
        for left, top, right, bottom in np.unique(np.hstack([first, last]), axis=0).clip(0).tolist():
            out[top : bottom + 1, left : right + 1] = True
    return out


def _possible(window: PredictedWindow, threshold: float) -> npt.NDArray[np.float64]:
    """Return the centres of the pixels of a window's own part that may be of a class, level-0 px (n, 2)."""
    rows, columns = window.own
    possible = (1 - window.probability[0, rows, columns] > threshold) & window.wanted[rows, columns]
    y, x = np.nonzero(possible)
    frame = window.frame
    corner = np.array([frame.left, frame.top])
    places = np.column_stack([x, y]) + np.array(window.core[:2]) + 0.5
    return np.asarray(corner + places * np.array(frame.downsample))


def detect_heat(
    slide: Slide,
    detector: Bundle,
    region: Any,
    *,
    lens: Lens = PLAIN,
    settings: InferenceSettings | None = None,
    wanted: Flags | None = None,
    progress: Progress | None = None,
) -> Heatmap:
    """Classify the patches of a region, read ahead by several threads.

    Parameters
    ----------
    slide
        An open slide with a pixel size.
    detector
        The first network of a coarse-to-fine model.
    region
        shapely Polygon or MultiPolygon, level-0 px; the patches lie side by side over its bounds.
    lens, settings
        How the network sees the slide; threads and batches.
    wanted
        bool, one a patch: of those that touch the region, only these are read. None for all.
    progress
        Called with the number of patches done and in all.
    """
    settings = settings or InferenceSettings()
    classes = len(detector.spec.classes) - 1
    if region.is_empty:
        return Heatmap((0.0, 0.0), (1.0, 1.0), np.zeros((classes, 0, 0), dtype=np.uint8))
    grid = _patch_grid(slide, detector, region, lens)
    looked_at = _touching(grid, region)
    if wanted is not None:
        looked_at &= wanted
    places = np.argwhere(looked_at).tolist()
    values = np.zeros((classes, *grid.shape), dtype=np.uint8)

    def read(place: list[int]) -> tuple[list[int], npt.NDArray[np.uint8]]:
        tile = grid.tile(*place)
        return place, lens.see(slide.read_tile(tile.x, tile.y, tile_size=grid.tile_size, mpp=grid.mpp))

    size = settings.batch_size or detector.tiles_at_once
    threads = settings.readers or min(os.cpu_count() or 1, MOST_READERS)
    patches = mapped_ahead(read, places, threads=threads, ahead=2 * size)
    done = 0
    while batch := list(itertools.islice(patches, size)):
        found = detector.predict(np.stack([rgb for _, rgb in batch]))[:, 1:, 0, 0]  # (n, classes - 1)
        rows, columns = np.array([place for place, _ in batch]).T
        values[:, rows, columns] = np.rint(255 * found.T)
        done += len(batch)
        if progress is not None:
            progress(done, len(places))
    step = (grid.core_size * grid.downsample[0], grid.core_size * grid.downsample[1])
    return Heatmap((grid.bounds[0], grid.bounds[1]), step, values)


def _patch_grid(slide: Slide, detector: Bundle, region: Any, lens: Lens) -> TileGrid:
    return TileGrid(region.bounds, slide.mpp, detector.spec.mpp * lens.size, detector.spec.tile_size)


def _touching(grid: TileGrid, region: Any) -> Flags:
    """Return which patches touch a region, bool, shape of the grid."""
    shapely.prepare(region)
    rows, columns = grid.shape
    step = grid.core_size * np.array(grid.downsample)
    x, y = (start + np.arange(n + 1) * s for start, n, s in zip(grid.bounds[:2], (columns, rows), step, strict=True))
    boxes = shapely.box(x[np.newaxis, :-1], y[:-1, np.newaxis], x[np.newaxis, 1:], y[1:, np.newaxis])
    return np.asarray(shapely.intersects(region, boxes))
