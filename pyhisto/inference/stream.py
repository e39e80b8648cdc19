"""A slide through a network in bounded memory: reading, predicting and blending at the same time.

The region is cut into tiles that a network predicts soonest. Threads read them ahead of the network, which runs in a
thread of its own on full batches; another thread blends its tiles into windows, while whoever takes the windows works
on the last one. A tile is kept until the last window that needs it is made, so that nothing is predicted twice.
"""

from __future__ import annotations

import itertools
import math
import os
import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import shapely

from pyhisto.bundle.files import Bundle
from pyhisto.heap import heap
from pyhisto.inference.blending import blended_windows, predicted_tiles
from pyhisto.inference.frame import Frame, stream_frame
from pyhisto.inference.grid import Box, tile_shape
from pyhisto.inference.lens import PLAIN, Lens
from pyhisto.inference.plan import TilePlan, tiles_of_mask, tiles_of_region
from pyhisto.inference.settings import InferenceSettings
from pyhisto.inference.stages import in_thread, mapped_ahead
from pyhisto.inference.tilestore import PredictedTile
from pyhisto.labels import rasterise
from pyhisto.slide import Slide

__all__ = [
    "Frame",
    "PredictedWindow",
    "Progress",
    "WindowObserver",
    "predict_probabilities",
    "stream_frame",
    "stream_windows",
]

WINDOW_PX = 1024
"""Width and height of the own part of a window where the settings name none."""

WINDOWS_AHEAD = 1
"""Windows that are made, or finished, while whoever takes them works on the last one."""

MOST_READERS = 16

FEW_WINDOWS = 16
"""Windows that leave hardly any gaps in the memory."""

Rgb: TypeAlias = npt.NDArray[np.uint8]
Progress: TypeAlias = Callable[[int, int], None]


@dataclass(frozen=True)
class PredictedWindow:
    """A part of the slide with what the network says about it.

    Attributes
    ----------
    number
        From 0, in the order in which windows come: row by row, left to right.
    frame
        The grid that the pixels belong to.
    read, core
        (x0, y0, x1, y1) of the pixels that are here, and of those that belong to this window alone; pixels of `frame`.
        The cores of a stream do not overlap and cover the region.
    rgb
        uint8 (H, W, 3), the colours of `read` as the slide has them; white where no tile is.
    probability
        float32 (classes, H, W) of `read`; 1 for class 0 where no tile is.
    wanted
        bool (H, W): the pixel's centre lies in the region.
    variance
        With flips float32 (H, W): variance over the four flips, mean over the classes; 0 where no tile is. Else None.
    """

    number: int
    frame: Frame
    read: Box
    core: Box
    rgb: Rgb
    probability: npt.NDArray[np.float32]
    wanted: npt.NDArray[np.bool_]
    variance: npt.NDArray[np.float32] | None = None

    @property
    def own(self) -> tuple[slice, slice]:
        """Rows and columns of `core` in the arrays."""
        x0, y0, x1, y1 = self.core
        return slice(y0 - self.read[1], y1 - self.read[1]), slice(x0 - self.read[0], x1 - self.read[0])


WindowObserver: TypeAlias = Callable[[PredictedWindow], None]
"""Sees each window of a slide once, in order."""


def stream_windows(
    slide: Slide,
    bundle: Bundle,
    region: Any,
    *,
    settings: InferenceSettings | None = None,
    margin: int = 0,
    lens: Lens = PLAIN,
    progress: Progress | None = None,
) -> Generator[PredictedWindow, None, None]:
    """Predict a region of a slide and yield it window by window.

    Where windows are cut changes no value, and the size of the tiles only what the network itself makes of it. Tiles
    are cut to the region with the margin around it, and read once, with their overlap; beyond the slide's edge its
    pixels are mirrored. The memory depends on the window and the tile, not on the slide.

    Parameters
    ----------
    slide
        An open slide with a pixel size; read in several threads.
    bundle
        The model.
    region
        shapely Polygon or MultiPolygon, level-0 px.
    settings
        See :class:`~pyhisto.inference.settings.InferenceSettings`.
    margin
        Pixels around the own part of a window that it holds too, as far as the frame goes.
    lens
        How the network sees the slide.
    progress
        Called after each window, when the next one is asked for, with the number done and in all.

    Yields
    ------
    PredictedWindow
        Those whose own part touches the region, row by row. When this generator is closed, its threads end.

    Raises
    ------
    ConfigError
        If the settings do not fit the network.
    MissingPixelSizeError
        If the slide's pixel size is not known.
    SlideError
        If its pixels cannot be decoded; while windows are taken.
    """
    settings = settings or InferenceSettings()
    frame = stream_frame(slide, bundle, region, lens=lens)
    if frame is None:
        nothing: tuple[PredictedWindow, ...] = ()
        return (window for window in nothing)
    cuts = _cut(frame, settings.window or WINDOW_PX, margin, region)
    tiles = tiles_of_region(tile_shape(bundle, settings), region, frame, margin)
    plan = TilePlan(tiles, tuple(cut.read for cut in cuts), settings.batch_size or bundle.tiles_at_once)
    reader = _SlideReader(slide, frame, lens)
    return _report(_stream(reader, plan, bundle, settings, cuts, frame, region), len(cuts), progress)


def predict_probabilities(
    rgb: Rgb,
    bundle: Bundle,
    *,
    wanted: npt.NDArray[np.bool_] | None = None,
    settings: InferenceSettings | None = None,
) -> npt.NDArray[np.float32]:
    """Return the class probabilities of an image of any size, as :func:`stream_windows` gives them.

    Parameters
    ----------
    rgb
        uint8, shape (height, width, 3), at the model's µm/px; mirrored beyond its edge.
    bundle
        The model.
    wanted
        bool (height, width): the pixels for which tiles are predicted.
    settings
        Tile size, overlap, flips and batch size.

    Returns
    -------
    numpy.ndarray
        float32, shape (classes, height, width); 1 for class 0 where no tile is.
    """
    settings = settings or InferenceSettings()
    height, width = rgb.shape[:2]
    mask = np.ones((height, width), dtype=bool) if wanted is None else wanted
    found = tiles_of_mask(tile_shape(bundle, settings), mask)
    plan = TilePlan(found, ((0, 0, width, height),), settings.batch_size or bundle.tiles_at_once)

    def tiles() -> Iterator[tuple[Rgb, Rgb]]:
        for _, box in itertools.chain.from_iterable(plan.batches):
            tile = _mirrored(box, plan.reads[0], lambda x0, y0, x1, y1: rgb[y0:y1, x0:x1])
            yield tile, tile

    predicted = predicted_tiles(tiles(), bundle, plan, flips=settings.flips)
    classes = len(bundle.spec.classes)
    ((planes, _),) = blended_windows(predicted, plan, classes + settings.flips)
    return planes[:classes]


@dataclass(frozen=True)
class _Cut:
    """Where a window is: what it holds, what is its own, and whether it lies in the region as a whole."""

    read: Box
    core: Box
    inside: bool


def _cut(frame: Frame, window: int, margin: int, region: Any) -> list[_Cut]:
    """Return the windows whose own part touches the region, row by row."""
    xs, ys = (list(itertools.pairwise(_edges(length, window))) for length in (frame.width, frame.height))
    cores = [(x0, y0, x1, y1) for y0, y1 in ys for x0, x1 in xs]
    reads = [
        (max(0, x0 - margin), max(0, y0 - margin), min(frame.width, x1 + margin), min(frame.height, y1 + margin))
        for x0, y0, x1, y1 in cores
    ]
    shapely.prepare(region)
    touched = shapely.intersects(region, frame.boxes(np.array(cores)))
    inside = shapely.contains_properly(region, frame.boxes(np.array(reads)))
    found = zip(reads, cores, inside.tolist(), touched, strict=True)
    return [_Cut(read, core, within) for read, core, within, touches in found if touches]


def _edges(length: int, size: int) -> list[int]:
    """Return where windows begin and end; a small rest joins the last one."""
    edges = [*range(0, length, size), length]
    if len(edges) > 2 and edges[-1] - edges[-2] < size / 4:
        del edges[-2]
    return edges


class _SlideReader:
    """Reads the pixels of a frame."""

    def __init__(self, slide: Slide, frame: Frame, lens: Lens) -> None:
        self._slide, self._frame, self._lens = slide, frame, lens
        corner = (frame.left, frame.top)
        left, top = (math.floor(at / step + 1e-6) for at, step in zip(corner, frame.downsample, strict=True))
        right, bottom = (
            max(1, math.floor((full - at) / step + 1e-6))  # a slide may be smaller than a pixel
            for full, at, step in zip(slide.dimensions, corner, frame.downsample, strict=True)
        )
        self._inside = (-left, -top, right, bottom)
        """Whole pixels of the grid that lie inside the slide."""

    def read(self, box: Box) -> tuple[Rgb, Rgb]:
        """Return RGB uint8 of a box as the slide has it and as the network sees it; mirrored beyond the slide."""
        pixels = _mirrored(box, self._inside, self._pixels)  # a heated slide has more channels than three
        return pixels[..., :3], self._lens.see(pixels)

    def _pixels(self, x0: int, y0: int, x1: int, y1: int) -> Rgb:
        left, top = self._frame.position(x0, y0)
        return self._slide.read_downsampled(left, top, x1 - x0, y1 - y0, self._frame.downsample)


def _mirrored(box: Box, inside: Box, pixels: Callable[[int, int, int, int], Rgb]) -> Rgb:
    """Return RGB uint8 of a box of which only the pixels of `inside` exist; the others are mirrored at its edge."""
    x0, y0, x1, y1 = (
        *(max(own, limit) for own, limit in zip(box[:2], inside[:2], strict=True)),
        *(min(own, limit) for own, limit in zip(box[2:], inside[2:], strict=True)),
    )
    rgb = pixels(x0, y0, x1, y1)
    if (x0, y0, x1, y1) == box:
        return rgb
    around = ((y0 - box[1], box[3] - y1), (x0 - box[0], box[2] - x1), (0, 0))
    return np.pad(rgb, around, mode="symmetric")


def _stream(
    reader: _SlideReader,
    plan: TilePlan,
    bundle: Bundle,
    settings: InferenceSettings,
    cuts: list[_Cut],
    frame: Frame,
    region: Any,
) -> Generator[PredictedWindow, None, None]:
    """Yield windows; reading, predicting and blending go on in threads of their own."""
    readers = settings.readers or min(MOST_READERS, os.cpu_count() or 1)
    classes = len(bundle.spec.classes)
    stop = threading.Event()

    def predicted() -> Generator[PredictedTile, None, None]:
        boxes = (box for _, box in itertools.chain.from_iterable(plan.batches))
        with closing(mapped_ahead(reader.read, boxes, threads=readers, ahead=readers + plan.batch_size)) as read:
            yield from predicted_tiles(read, bundle, plan, flips=settings.flips)

    def windows() -> Generator[PredictedWindow, None, None]:
        with (
            closing(in_thread(predicted(), stop, depth=plan.batch_size + 1)) as tiles,
            closing(blended_windows(tiles, plan, classes + settings.flips)) as blended,
        ):
            for number, ((planes, rgb), cut) in enumerate(zip(blended, cuts, strict=False)):  # fewer when stopped
                wanted = np.ones(rgb.shape[:2], dtype=bool) if cut.inside else _wanted(region, frame, cut.read)
                variance = planes[classes] if settings.flips else None
                yield PredictedWindow(number, frame, cut.read, cut.core, rgb, planes[:classes], wanted, variance)

    with closing(in_thread(windows(), stop, depth=WINDOWS_AHEAD)) as ready:
        yield from ready


def _wanted(region: Any, frame: Frame, read: Box) -> npt.NDArray[np.bool_]:
    """Return which pixels of a box have their centre in the region."""
    parts = shapely.get_parts(region)
    shape = (read[3] - read[1], read[2] - read[0])
    origin = frame.position(read[0], read[1])
    return rasterise(parts, [1] * len(parts), shape, origin=origin, scale=frame.downsample) > 0


def _report(
    windows: Generator[PredictedWindow, None, None], total: int, progress: Progress | None
) -> Generator[PredictedWindow, None, None]:
    with closing(windows):
        for done, window in enumerate(windows, start=1):
            yield window
            if progress is not None:
                progress(done, total)
    if total > FEW_WINDOWS:
        heap.settle(0.0)  # before objects are made of them
