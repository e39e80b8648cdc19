"""Nuclei from a network: where they are on a slide, how far they reach, and of which class."""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Generator, Iterable
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import geopandas as gpd
import numpy as np
import numpy.typing as npt
import pandas as pd
import shapely

from pyhisto.bundle.files import Bundle
from pyhisto.errors import ConfigError
from pyhisto.inference import PLAIN, InferenceSettings, Lens, PredictedWindow, WindowObserver, stream_windows
from pyhisto.inference.stages import mapped_ahead
from pyhisto.inference.stream import Progress
from pyhisto.loops import nuclei as loops
from pyhisto.loops import regions
from pyhisto.loops.scratch import Scratch
from pyhisto.measurements import Colours, cell_measurements, expand_cells
from pyhisto.nuclei.borders import cell_outlines, nucleus_outlines
from pyhisto.nuclei.labelling import (
    Nuclei,
    edge_darkness,
    find_peaks,
    influence_px,
    label_nuclei,
    label_peaks,
    nucleus_probability,
)
from pyhisto.objects import empty_objects, make_objects
from pyhisto.slide import Slide
from pyhisto.stain import StainVectors, stain_tables

__all__ = ["CellFinder", "label_nuclei", "nucleus_probability", "predict_cells"]

WINDOW_PX = 2048
"""Width and height of the own part of a window where the settings name none: of smaller ones, more is margin."""

MOST_FINDERS = 8
"""Windows that are worked on at once, at most; each takes the memory of a window and of what is made of it."""

Box: TypeAlias = tuple[int, int, int, int]
Place: TypeAlias = tuple[slice, slice]


def predict_cells(  # noqa: PLR0913 - all of it is what is known about one slide
    slide: Slide,
    bundle: Bundle,
    *,
    stains: StainVectors,
    region: Any | None = None,
    lens: Lens = PLAIN,
    settings: InferenceSettings | None = None,
    observers: Iterable[WindowObserver] = (),
    cell_expansion_um: float = 5.0,
    progress: Progress | None = None,
) -> gpd.GeoDataFrame:
    """Find the cells of a slide with a network, grow them and measure them.

    While the network predicts the next windows, threads work on the last ones. Only tiles that touch the region are
    read. Where the slide is cut into windows changes nothing: a window holds all that its cells depend on.

    Parameters
    ----------
    slide
        An open slide with a pixel size.
    bundle
        A model of the kind ``cell_detection``; see :func:`pyhisto.nuclei.labelling.label_nuclei` for its
        post-processing.
    stains
        Stain vectors and white, for the outlines and the measurements.
    region
        Polygon or MultiPolygon, level-0 px; a cell counts if the peak of its nucleus lies inside. The whole slide by
        default.
    lens
        How the network sees the slide. Measurements are those of the slide as it is, at its declared pixel size; the
        lengths of the post-processing are those of the training slides.
    settings
        How the slide is cut; see :class:`~pyhisto.inference.settings.InferenceSettings`.
    observers
        Each is shown every window once, in order.
    cell_expansion_um
        How far a nucleus grows to make its cell.
    progress
        Called after each window with the number done and in all.

    Returns
    -------
    geopandas.GeoDataFrame
        Cells with their nucleus, level-0 px, with the classes of the bundle, the probability of that class
        (``class_probability``), and measurements under QuPath's names.

    Raises
    ------
    ConfigError
        If the bundle is of another kind, or the settings do not fit it.
    MissingPixelSizeError
        If the slide's pixel size is not known.
    SlideError
        If its pixels cannot be decoded.
    """
    spec = bundle.spec
    if spec.kind != "cell_detection":
        raise ConfigError(f"model of the kind {spec.kind}", expected="cell_detection")
    region = shapely.box(0, 0, *slide.dimensions) if region is None else region
    settings = settings or InferenceSettings()
    settings = replace(settings, window=settings.window or WINDOW_PX)
    finder = CellFinder(
        stains,
        spec.mpp,
        spec.postprocessing,
        expansion_px=cell_expansion_um / (spec.mpp * lens.size),
    )
    windows = stream_windows(
        slide, bundle, region, settings=settings, margin=finder.margin, lens=lens, progress=progress
    )
    threads = settings.finders or _finders(bundle.device)
    with (
        closing(_seen(windows, tuple(observers))) as seen,
        closing(mapped_ahead(finder.find, seen, threads=threads, ahead=threads)) as found,
    ):
        for cells in found:
            finder.keep(cells)
    return finder.objects(spec.cell_classes)


def _finders(device: str) -> int:
    """Return how many windows are worked on at once: where a CPU computes the network, it has no time for more."""
    return 1 if device == "cpu" else max(1, min(MOST_FINDERS, (os.cpu_count() or 1) // 2))


def _seen(
    windows: Generator[PredictedWindow, None, None], observers: tuple[WindowObserver, ...]
) -> Generator[PredictedWindow, None, None]:
    """Yield windows that all observers were shown."""
    with closing(windows):
        for window in windows:
            for observer in observers:
                observer(window)
            yield window


@dataclass
class CellFinder:
    """Makes cells of predicted windows, one after the other.

    Attributes
    ----------
    stains
        Stain vectors and white.
    pixel_size_um
        µm/px that the numbers of the post-processing refer to.
    postprocessing
        See :func:`pyhisto.nuclei.labelling.label_nuclei`.
    expansion_px
        How far a nucleus grows to make its cell, px; 0 makes no cells.
    """

    stains: StainVectors
    pixel_size_um: float
    postprocessing: Any
    expansion_px: float
    _found: list[_Found] = field(default_factory=list)
    _own: threading.local = field(default_factory=threading.local)

    @property
    def _extent(self) -> int:
        """How far a cell can reach from the peak of its nucleus, px."""
        return math.ceil(float(self.postprocessing["reach_um"]) / self.pixel_size_um + self.expansion_px) + 1

    @property
    def _grown(self) -> int:
        """How far around its own part the cells of a window can reach, and the whole of the nuclei beside them, px."""
        reach = float(self.postprocessing["reach_um"]) / self.pixel_size_um
        return 2 * self._extent + math.ceil(reach) + 4

    @property
    def _outlined(self) -> int:
        """How far around its own part nuclei must be outlined, so that none of those is cut, px."""
        return self._grown + math.ceil(float(self.postprocessing["reach_um"]) / self.pixel_size_um)

    @property
    def margin(self) -> int:
        """How much a window must hold around its own part, so that nothing depends on where it was cut, px."""
        return 2 * self._extent + influence_px(self.pixel_size_um, self.postprocessing)

    @property
    def _scratch(self) -> Scratch:
        """Memory of the thread that asks."""
        if not hasattr(self._own, "scratch"):
            self._own.scratch = Scratch()
        scratch: Scratch = self._own.scratch
        return scratch

    def add(self, window: PredictedWindow) -> None:
        """Find and keep the cells whose nucleus has its peak in the own part of a window."""
        self.keep(self.find(window))

    def keep(self, found: _Found | None) -> None:
        """Keep cells that :meth:`find` found; they come out in this order."""
        if found is not None:
            self._found.append(found)

    def find(self, window: PredictedWindow) -> _Found | None:
        """Return the cells whose nucleus has its peak in the own part of a window, None without any.

        Several threads may do so at once.
        """
        nucleus = nucleus_probability(
            window.probability, self.pixel_size_um, self.postprocessing, scratch=self._scratch
        )
        peaks = find_peaks(nucleus, self.pixel_size_um, self.postprocessing, window.wanted)
        rows, columns = window.own
        own = _within(peaks, (rows, columns))
        if not own.any():
            return None
        outlined = _around((rows, columns), self._outlined, nucleus.shape)
        part = _around((rows, columns), self._grown, nucleus.shape)
        found = label_peaks(
            nucleus,
            peaks,
            edge_darkness(window.rgb, self.stains, scratch=self._scratch),
            self.pixel_size_um,
            self.postprocessing,
            corner=(window.read[1], window.read[0]),
            part=outlined,
            scratch=self._scratch,
        )
        return self._measured(window, part, found, own)

    def _measured(self, window: PredictedWindow, part: Place, found: Nuclei, own: npt.NDArray[np.bool_]) -> _Found:
        """Return the cells of a part of a window; only those whose label is its own."""
        frame = window.frame
        top, left = found.corner
        labels = found.labels[part[0].start - top : part[0].stop - top, part[1].start - left : part[1].stop - left]
        n = int(np.count_nonzero(own))
        # of two bytes where that is enough: less memory to look through
        number = np.zeros(len(own) + 1, dtype=np.uint16 if len(own) < 1 << 16 else np.int32)
        number[1:][own] = np.arange(1, n + 1)
        number[1:][~own] = np.arange(n + 1, len(own) + 1)
        nuclei = self._scratch.array("nuclei", labels.shape, number.dtype)
        regions.renumbered(labels, number, nuclei)  # own ones are 1 to n, and the only ones that are looked at
        cells = None if self.expansion_px <= 0 else expand_cells(nuclei, self.expansion_px, scratch=self._scratch)
        every = nucleus_outlines(
            nuclei,
            replace(found, peaks=np.concatenate([found.peaks[own], found.peaks[~own]])),
            (part[0].start, part[1].start),
        )
        nucleus, cell = every.first(n), None
        if cells is not None:
            cell = cell_outlines(cells, nuclei, every, found.radii[1], self.expansion_px, n)
        corner = (window.read[0] + part[1].start, window.read[1] + part[0].start)
        drawn = nucleus.placed(frame, corner)
        outline = None if cell is None else cell.placed(frame, corner)
        table = cell_measurements(
            nuclei,
            [f"{name} OD" for name in self.stains.names],
            Colours(window.rgb[part], stain_tables(self.stains)),
            pixel_size_um=frame.mpp,
            nucleus_contours=nucleus.smooth,
            cells=None if cells is None or cell is None else (cells, cell.smooth),
            drawn=None if outline is None else (drawn, outline),
        )
        votes = loops.votes(window.probability[:, part[0], part[1]], nuclei, n)
        inner = drawn.polygons()
        outer = inner if outline is None else outline.polygons()
        whole = ~shapely.is_missing(inner) & ~shapely.is_missing(outer)
        cells_found = _Found(inner, outer, np.array(list(table.values())), tuple(table), votes)
        return cells_found if whole.all() else cells_found.take(whole)

    def objects(self, classes: tuple[str | None, ...]) -> gpd.GeoDataFrame:
        """Return all cells as a path-object table; `classes` names them in the order of the model."""
        self._own = threading.local()  # without its memory
        if not self._found:
            return empty_objects()
        nucleus = np.concatenate([found.nucleus for found in self._found])
        outline = np.concatenate([found.outline for found in self._found])
        table = np.concatenate([found.table for found in self._found], axis=1)
        votes = np.concatenate([found.votes for found in self._found])
        names = np.array(classes, dtype=object)
        grown = self.expansion_px > 0
        return make_objects(
            outline,
            object_type="cell" if grown else "detection",
            nucleus=nucleus if grown else None,
            classification=names[votes.argmax(axis=1)],
            measurements=pd.DataFrame(table.T, columns=list(self._found[0].columns), copy=False),
            class_probability=votes.max(axis=1),
        )


@dataclass(frozen=True)
class _Found:
    """The cells of one window: polygons in level-0 px, measurements (columns, n) and the share of each class (n, k).

    Where nuclei do not grow, their outlines are those of the objects.
    """

    nucleus: npt.NDArray[Any]
    outline: npt.NDArray[Any]
    table: npt.NDArray[np.float64]
    columns: tuple[str, ...]
    votes: npt.NDArray[np.float64]

    def take(self, index: npt.NDArray[np.bool_]) -> _Found:
        """Return some of them."""
        return _Found(self.nucleus[index], self.outline[index], self.table[:, index], self.columns, self.votes[index])


def _within(peaks: npt.NDArray[np.int64], part: Place) -> npt.NDArray[np.bool_]:
    """Return which peaks, (row, column), lie in a part of the image."""
    inside = np.ones(len(peaks), dtype=bool)
    for axis, along in enumerate(part):
        inside &= (peaks[:, axis] >= along.start) & (peaks[:, axis] < along.stop)
    return inside


def _around(part: Place, margin: int, shape: tuple[int, ...]) -> Place:
    """Return a part of an image with a margin, as far as the image goes."""
    rows, columns = (
        slice(max(0, along.start - margin), min(length, along.stop + margin))
        for along, length in zip(part, shape, strict=True)
    )
    return rows, columns
