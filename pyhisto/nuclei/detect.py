"""Cells of a whole slide, tile by tile, as a table of path objects."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeAlias

import geopandas as gpd
import numpy as np
import numpy.typing as npt
import pandas as pd
import shapely

from pyhisto.contours import Contours, simplify_contours, smooth_contours, trace_labels
from pyhisto.errors import ConfigError
from pyhisto.labels import rasterise
from pyhisto.measurements import expand_cells, measure_cells
from pyhisto.nuclei.segment import detect_nuclei
from pyhisto.nuclei.settings import CellDetectionSettings
from pyhisto.objects import empty_objects, make_objects
from pyhisto.slide import Slide
from pyhisto.stain import StainVectors

__all__ = ["detect_cells"]

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
class _Cells:
    """Cells of one or more tiles. Of two that lie over each other the one with the greater rank is kept."""

    geometry: Polygons
    nucleus: Polygons
    table: pd.DataFrame
    window: npt.NDArray[np.intp]
    at_seam: npt.NDArray[np.bool_]
    rank: npt.NDArray[np.float64]

    def take(self, index: npt.NDArray[Any]) -> _Cells:
        return _Cells(
            self.geometry[index],
            self.nucleus[index],
            self.table.iloc[index] if index.dtype != bool else self.table[index],
            self.window[index],
            self.at_seam[index],
            self.rank[index],
        )


def detect_cells(
    slide: Slide,
    settings: CellDetectionSettings,
    *,
    stains: StainVectors,
    region: Any | None = None,
    base_class: str | None = None,
    tile_size: int = TILE_SIZE_PX,
    progress: Callable[[int, int], None] | None = None,
) -> gpd.GeoDataFrame:
    """Detect nuclei in a slide, grow them into cells, measure and classify them.

    The slide is read in overlapping tiles. A nucleus belongs to the tile in whose own part its centroid lies; near
    the seams, where two tiles may see a nucleus differently, both are kept at first and the better one is chosen, so
    that none is cut, lost or counted twice.

    Parameters
    ----------
    slide
        An open slide with a pixel size.
    settings
        The detector's settings.
    stains
        Stain vectors and white.
    region
        Polygon or MultiPolygon, level-0 px; the whole slide by default.
    base_class
        ``"Tumor"`` makes the classes ``"Tumor: Positive"`` and ``"Tumor: Negative"``; they are ``"Positive"`` and
        ``"Negative"`` by default. Without a DAB stain all objects have the base class.
    tile_size
        Width and height of a tile without its overlap, in pixels of the detection.
    progress
        Called after each tile with the number of tiles done and in all.

    Returns
    -------
    geopandas.GeoDataFrame
        Objects of type "cell" with their nucleus, or, without expansion, objects of type "detection" whose geometry
        is the nucleus, as QuPath makes them; level-0 px; measurements under QuPath's names.

    Raises
    ------
    MissingPixelSizeError
        If the slide's pixel size is not known.
    SlideError
        If its pixels cannot be decoded.
    ConfigError
        If settings and stains do not fit.
    """
    if tile_size < 64:
        raise ConfigError(f"tile_size = {tile_size}", expected="64 or more")
    frame = _frame(slide, settings, region)
    windows = [] if frame is None else list(_windows(frame, settings, tile_size, region))
    found: list[_Cells] = []
    if frame is not None:
        for done, (window, rgb) in enumerate(_read_ahead(slide, frame, windows), start=1):
            cells = _cells_of_tile(rgb, window, frame, settings, stains=stains, region=region)
            if len(cells.geometry):
                found.append(cells)
            if progress is not None:
                progress(done, len(windows))
    if not found:
        return empty_objects()
    merged = _Cells(
        np.concatenate([c.geometry for c in found]),
        np.concatenate([c.nucleus for c in found]),
        pd.concat([c.table for c in found], ignore_index=True),
        np.concatenate([c.window for c in found]),
        np.concatenate([c.at_seam for c in found]),
        np.concatenate([c.rank for c in found]),
    )
    return _as_objects(_resolve_seams(merged), settings, stains, base_class)


def _frame(slide: Slide, settings: CellDetectionSettings, region: Any | None) -> _Frame | None:
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
    pixel = max(settings.requested_pixel_size_um, (mpp[0] + mpp[1]) / 2)
    columns = max(1, round((x1 - x0) * mpp[0] / pixel))
    rows = max(1, round((y1 - y0) * mpp[1] / pixel))
    downsample = (pixel / mpp[0], pixel / mpp[1])
    if slide.reader != "openslide":
        downsample = ((x1 - x0) / columns, (y1 - y0) / rows)
    return _Frame(x0, y0, columns, rows, downsample, pixel)


def _windows(frame: _Frame, settings: CellDetectionSettings, tile_size: int, region: Any | None) -> Iterator[_Window]:
    """Yield the tiles that touch the region; a frame that is little larger than a tile stays in one piece."""
    reach_um = _OVERLAP_UM + settings.cell_expansion_um + 2 * settings.background_radius_um + 4 * settings.sigma_um
    overlap = math.ceil(reach_um / frame.pixel_size_um)
    if region is not None:
        shapely.prepare(region)
    number = 0
    for y0, y1 in _pieces(frame.height, tile_size):
        for x0, x1 in _pieces(frame.width, tile_size):
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
    settings: CellDetectionSettings,
    *,
    stains: StainVectors,
    region: Any | None,
) -> _Cells:
    """Detect, grow and measure the cells of one tile; keep those in its own part and a little around it."""
    corner = frame.position(window.read[0], window.read[1])
    mask = None
    if region is not None:
        mask = rasterise([region], [1], rgb.shape[:2], origin=corner, scale=frame.downsample) > 0
    nuclei = detect_nuclei(rgb, pixel_size_um=frame.pixel_size_um, settings=settings, stains=stains, mask=mask)
    n = len(nuclei.contours)
    rank, at_seam, keep = _ownership(nuclei.labels, n, window, frame)
    altitude = math.sqrt(sum(frame.downsample) / 2) / 2 if settings.smooth_boundaries else 0.0
    cells = cell_contours = None
    if settings.cell_expansion_um > 0:
        cells = expand_cells(nuclei.labels, settings.cell_expansion_um / frame.pixel_size_um)
        cell_contours = trace_labels(cells, n)
        if settings.smooth_boundaries:
            cell_contours = smooth_contours(cell_contours)
    table = measure_cells(
        nuclei.labels,
        nuclei.channels,
        pixel_size_um=frame.pixel_size_um,
        cells=cells,
        nucleus_contours=nuclei.contours,
        cell_contours=cell_contours,
    )

    def placed(contours: Contours) -> Polygons:
        return simplify_contours(contours.scaled(frame.downsample, corner), altitude).polygons()

    nucleus = placed(nuclei.contours)
    outline = nucleus if cell_contours is None else placed(cell_contours)
    keep &= ~shapely.is_missing(nucleus) & ~shapely.is_missing(outline)
    number = np.full(n, window.number, dtype=np.intp)
    return _Cells(outline, nucleus, table, number, at_seam, rank).take(keep)


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


def _resolve_seams(cells: _Cells) -> _Cells:
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


def _as_objects(
    cells: _Cells, settings: CellDetectionSettings, stains: StainVectors, base_class: str | None
) -> gpd.GeoDataFrame:
    expanded = settings.cell_expansion_um > 0
    with_nucleus = expanded and settings.include_nuclei
    table = cells.table
    if expanded and not settings.include_nuclei:
        table = table[[name for name in table.columns if name.startswith(("Cell: ", "Cytoplasm: "))]]
    return make_objects(
        cells.geometry,
        object_type="cell" if expanded else "detection",
        nucleus=cells.nucleus if with_nucleus else None,
        classification=_classes(cells.table, settings, stains, base_class),
        measurements={str(name): table[name].to_numpy() for name in table} if settings.make_measurements else None,
    )


def _classes(
    table: pd.DataFrame, settings: CellDetectionSettings, stains: StainVectors, base_class: str | None
) -> list[str | None]:
    index = stains.index("DAB")
    if index is None:
        return [base_class] * len(table)
    prefix = f"{base_class}: " if base_class else ""
    positive = table[f"Nucleus: {stains.names[index]} OD mean"].to_numpy() >= settings.dab_threshold
    return [f"{prefix}Positive" if is_positive else f"{prefix}Negative" for is_positive in positive]
