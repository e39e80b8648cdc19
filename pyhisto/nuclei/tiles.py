"""The cells of a whole slide, tile by tile, whatever finds the nuclei of one tile."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pandas as pd
import shapely

from pyhisto.contours import Contours, simplify_contours, smooth_contours, trace_labels
from pyhisto.errors import ConfigError
from pyhisto.labels import rasterise
from pyhisto.measurements import expand_cells, measure_cells
from pyhisto.nuclei.segment import Nuclei
from pyhisto.slide import Slide

__all__ = ["TILE_SIZE_PX", "Cells", "Find", "TileSettings", "collect_cells"]

Polygons: TypeAlias = npt.NDArray[Any]

TILE_SIZE_PX = 2048
"""Width and height of a tile's own part, in pixels of the detection; also what bounds the memory."""

_OVERLAP_UM = 40.0
_SEAM_MARGIN_UM = 5.0
_SAME_NUCLEUS_OVERLAP = 0.25


@dataclass(frozen=True)
class _Frame:
    """The pixel grid of the detection over a rectangle of the slide."""

    left: float
    top: float
    width: int
    height: int
    downsample: tuple[float, float]
    pixel_size_um: float

    def position(self, column: float, row: float) -> tuple[float, float]:
        return self.left + column * self.downsample[0], self.top + row * self.downsample[1]


@dataclass(frozen=True)
class _Window:
    """One tile in pixels of the frame: what is read, and the part that is its own (x0, y0, x1, y1)."""

    number: int
    read: tuple[int, int, int, int]
    core: tuple[int, int, int, int]


@dataclass(frozen=True)
class Cells:
    """Cells of one or more tiles. Of two that lie over each other the one with the greater rank is kept.

    Attributes
    ----------
    geometry, nucleus
        shapely polygons, object (n,), level-0 px.
    table
        Measurements, one row a cell.
    window, at_seam, rank
        Tile that found the cell, whether that was near another tile's part, and how deep inside its own part, px.
    votes
        float64 (n, classes), if the detector itself classifies.
    """

    geometry: Polygons
    nucleus: Polygons
    table: pd.DataFrame
    window: npt.NDArray[np.intp]
    at_seam: npt.NDArray[np.bool_]
    rank: npt.NDArray[np.float64]
    votes: npt.NDArray[np.float64] | None = None

    def take(self, index: npt.NDArray[Any]) -> Cells:
        """Return the cells at `index` (numbers or a mask)."""
        return Cells(
            self.geometry[index],
            self.nucleus[index],
            self.table.iloc[index] if index.dtype != bool else self.table[index],
            self.window[index],
            self.at_seam[index],
            self.rank[index],
            None if self.votes is None else self.votes[index],
        )


Find: TypeAlias = Callable[[npt.NDArray[np.uint8], npt.NDArray[np.bool_] | None], Nuclei]
"""Finds the nuclei of one tile: RGB uint8 (H, W, 3) and where they are wanted, bool (H, W) or None for everywhere."""


@dataclass(frozen=True)
class TileSettings:
    """How a slide is cut into tiles, and what is made of the nuclei.

    Attributes
    ----------
    pixel_size_um
        Resolution of the tiles, µm/px.
    exact
        Take exactly this pixel size; else one that fits a whole number of pixels where QuPath does so.
    reach_um
        How far around a place the detector looks.
    expansion_um, smooth
        Growth of nuclei into cells, and whether outlines are rounded off.
    tile_size
        Width and height of a tile's own part, px.
    """

    pixel_size_um: float
    exact: bool
    reach_um: float
    expansion_um: float
    smooth: bool = True
    tile_size: int = TILE_SIZE_PX

    def __post_init__(self) -> None:
        if self.tile_size < 64:
            raise ConfigError(f"tile_size = {self.tile_size}", expected="64 or more")


def collect_cells(
    slide: Slide,
    find: Find,
    settings: TileSettings,
    *,
    region: Any | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Cells | None:
    """Find the nuclei of a slide tile by tile, grow them into cells and measure them.

    A nucleus belongs to the tile in whose own part its centroid lies; near the seams, where two tiles may see a nucleus
    differently, both are kept at first and the better one is chosen, so that none is cut, lost or counted twice.

    Parameters
    ----------
    slide
        An open slide with a pixel size.
    find
        Finds the nuclei of one tile.
    settings
        See :class:`TileSettings`.
    region
        Polygon or MultiPolygon, level-0 px; the whole slide by default.
    progress
        Called after each tile with the number of tiles done and in all.

    Returns
    -------
    Cells or None
        None if there are none.

    Raises
    ------
    MissingPixelSizeError
        If the slide's pixel size is not known.
    SlideError
        If its pixels cannot be decoded.
    """
    frame = _frame(slide, settings, region)
    if frame is None:
        return None
    windows = list(_windows(frame, settings, region))
    found: list[Cells] = []
    for done, (window, rgb) in enumerate(_read_ahead(slide, frame, windows), start=1):
        cells = _cells_of_tile(rgb, window, frame, settings, find=find, region=region)
        if len(cells.geometry):
            found.append(cells)
        if progress is not None:
            progress(done, len(windows))
    if not found:
        return None
    classified = [c.votes for c in found if c.votes is not None]
    merged = Cells(
        np.concatenate([c.geometry for c in found]),
        np.concatenate([c.nucleus for c in found]),
        pd.concat([c.table for c in found], ignore_index=True),
        np.concatenate([c.window for c in found]),
        np.concatenate([c.at_seam for c in found]),
        np.concatenate([c.rank for c in found]),
        np.concatenate(classified) if classified else None,
    )
    return _resolve_seams(merged)


def _frame(slide: Slide, settings: TileSettings, region: Any | None) -> _Frame | None:
    """Lay square pixels over the region's bounds; None if it lies outside the slide.

    QuPath samples the slides it reads through OpenSlide at exactly the requested pixel size, and fits others to a
    whole number of pixels; so does this.
    """
    width, height = slide.dimensions
    x0, y0, x1, y1 = (0.0, 0.0, float(width), float(height))
    if region is not None:
        if region.is_empty:
            return None
        rx0, ry0, rx1, ry1 = region.bounds
        x0, y0 = max(x0, math.floor(rx0)), max(y0, math.floor(ry0))
        x1, y1 = min(x1, math.ceil(rx1)), min(y1, math.ceil(ry1))
    if x1 <= x0 or y1 <= y0:
        return None
    mpp = slide.mpp
    pixel = settings.pixel_size_um
    columns = max(1, round((x1 - x0) * mpp[0] / pixel))
    rows = max(1, round((y1 - y0) * mpp[1] / pixel))
    downsample = (pixel / mpp[0], pixel / mpp[1])
    if not settings.exact and slide.reader != "openslide":
        downsample = ((x1 - x0) / columns, (y1 - y0) / rows)
    return _Frame(x0, y0, columns, rows, downsample, pixel)


def _windows(frame: _Frame, settings: TileSettings, region: Any | None) -> Iterator[_Window]:
    """Yield the tiles that touch the region; a frame that is little larger than a tile stays in one piece."""
    overlap = math.ceil((_OVERLAP_UM + settings.expansion_um + settings.reach_um) / frame.pixel_size_um)
    if region is not None:
        shapely.prepare(region)
    number = 0
    for y0, y1 in _pieces(frame.height, settings.tile_size):
        for x0, x1 in _pieces(frame.width, settings.tile_size):
            box = shapely.box(*frame.position(x0, y0), *frame.position(x1, y1))
            if region is None or region.intersects(box):
                read = (
                    max(0, x0 - overlap),
                    max(0, y0 - overlap),
                    min(frame.width, x1 + overlap),
                    min(frame.height, y1 + overlap),
                )
                yield _Window(number, read, (x0, y0, x1, y1))
                number += 1


def _pieces(length: int, size: int) -> Iterator[tuple[int, int]]:
    count = max(1, math.ceil(length / size - 0.25))
    edges = [round(i * length / count) for i in range(count + 1)]
    return itertools.pairwise(edges)


def _read_ahead(slide: Slide, frame: _Frame, windows: list[_Window]) -> Iterator[tuple[_Window, npt.NDArray[np.uint8]]]:
    """Yield tiles with their pixels; the next one is read while the last one is worked on."""

    def read(window: _Window) -> npt.NDArray[np.uint8]:
        x0, y0, x1, y1 = window.read
        left, top = frame.position(x0, y0)
        return slide.read_downsampled(left, top, x1 - x0, y1 - y0, frame.downsample)

    with ThreadPoolExecutor(max_workers=1) as pool:
        waiting = [pool.submit(read, window) for window in windows[:1]]
        for i, window in enumerate(windows):
            rgb = waiting.pop().result()
            waiting.extend(pool.submit(read, following) for following in windows[i + 1 : i + 2])
            yield window, rgb


def _cells_of_tile(
    rgb: npt.NDArray[np.uint8],
    window: _Window,
    frame: _Frame,
    settings: TileSettings,
    *,
    find: Find,
    region: Any | None,
) -> Cells:
    """Detect, grow and measure the cells of one tile; keep those in its own part and a little around it."""
    corner = frame.position(window.read[0], window.read[1])
    mask = None
    if region is not None:
        mask = rasterise([region], [1], rgb.shape[:2], origin=corner, scale=frame.downsample) > 0
    nuclei = find(rgb, mask)
    n = len(nuclei.contours)
    rank, at_seam, keep = _ownership(nuclei.labels, n, window, frame)
    altitude = math.sqrt(sum(frame.downsample) / 2) / 2 if settings.smooth else 0.0
    cells = cell_contours = None
    if settings.expansion_um > 0:
        cells = expand_cells(nuclei.labels, settings.expansion_um / frame.pixel_size_um)
        cell_contours = trace_labels(cells, n)
        if settings.smooth:
            cell_contours = smooth_contours(cell_contours)

    def placed(contours: Contours) -> Contours:
        return simplify_contours(contours.scaled(frame.downsample, corner), altitude)

    drawn = placed(nuclei.contours)
    drawn_cells = drawn if cell_contours is None else placed(cell_contours)
    table = measure_cells(
        nuclei.labels,
        nuclei.channels,
        pixel_size_um=frame.pixel_size_um,
        cells=cells,
        nucleus_contours=nuclei.contours,
        cell_contours=cell_contours,
        drawn=(drawn, drawn_cells),
    )
    nucleus = drawn.polygons()
    outline = nucleus if cell_contours is None else drawn_cells.polygons()
    keep &= ~shapely.is_missing(nucleus) & ~shapely.is_missing(outline)
    number = np.full(n, window.number, dtype=np.intp)
    return Cells(outline, nucleus, table, number, at_seam, rank, nuclei.votes).take(keep)


def _ownership(
    labels: npt.NDArray[np.int32], n: int, window: _Window, frame: _Frame
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """Return each nucleus' rank, whether it is near a seam, and whether this tile reports it.

    The rank is the distance of its centroid into the tile's own part, in pixels; below 0 it lies in a neighbour's.
    """
    where = np.flatnonzero(labels)
    owner = labels.ravel()[where] - 1
    count = np.bincount(owner, minlength=n)
    x = np.bincount(owner, where % labels.shape[1], n) / count + 0.5 + window.read[0]
    y = np.bincount(owner, where // labels.shape[1], n) / count + 0.5 + window.read[1]
    x0, y0, x1, y1 = window.core
    far = np.full(n, np.inf)
    sides = (
        x - x0 if x0 > 0 else far,
        y - y0 if y0 > 0 else far,
        x1 - x if x1 < frame.width else far,
        y1 - y if y1 < frame.height else far,
    )
    rank = np.minimum.reduce(sides)
    margin = _SEAM_MARGIN_UM / frame.pixel_size_um
    # as wide as two nuclei: the rival may be larger than this one
    return rank, rank < 8 * margin, rank > -margin


def _resolve_seams(cells: Cells) -> Cells:
    """Of nuclei from different tiles that cover each other, keep the one that lies deeper in its own tile."""
    seam = np.flatnonzero(cells.at_seam)
    if len(np.unique(cells.window[seam])) < 2:
        return cells
    shapes = cells.nucleus[seam]
    first, second = shapely.STRtree(shapes).query(shapes, predicate="intersects")
    different = cells.window[seam[first]] < cells.window[seam[second]]
    first, second = first[different], second[different]
    shared = shapely.area(shapely.intersection(shapes[first], shapes[second]))
    smaller = np.minimum(shapely.area(shapes[first]), shapely.area(shapes[second]))
    rivals = shared > _SAME_NUCLEUS_OVERLAP * smaller
    first, second = first[rivals], second[rivals]
    strength = cells.rank[seam]
    neighbours: dict[int, list[int]] = {}
    for a, b in zip(first.tolist(), second.tolist(), strict=True):
        neighbours.setdefault(a, []).append(b)
        neighbours.setdefault(b, []).append(a)
    dropped: set[int] = set()
    for i in sorted(neighbours, key=lambda j: -strength[j]):
        if i not in dropped:
            dropped.update(neighbours[i])
    keep = np.ones(len(cells.geometry), dtype=bool)
    keep[seam[list(dropped)]] = False
    return cells.take(keep)
