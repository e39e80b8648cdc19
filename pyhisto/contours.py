"""Outlines of many labelled regions at once: traced, smoothed, simplified and turned into polygons.

A :class:`Contours` holds n closed outlines as one array of points, and every step is one compiled loop over all of
them. Points are (x, y) in pixels of the label image, pixel (row, column) covering the square from (column, row) to
(column + 1, row + 1).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import shapely

from pyhisto.loops import outlines, shapes, tracing

__all__ = ["Contours", "round_contours", "select_contours", "simplify_contours", "smooth_contours", "trace_labels"]

FloatArray: TypeAlias = npt.NDArray[np.float64]
IntArray: TypeAlias = npt.NDArray[np.intp]


@dataclass(frozen=True)
class Contours:
    """n closed outlines.

    Attributes
    ----------
    xy
        float64 (N, 2), the points of all outlines; the first point of an outline is not repeated at its end.
    offsets
        int (n + 1,); outline i has the points ``offsets[i]`` to ``offsets[i + 1] - 1``.
    """

    xy: FloatArray
    offsets: IntArray

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def counts(self) -> IntArray:
        """Number of points of each outline, int (n,)."""
        return np.diff(self.offsets)

    def areas(self) -> FloatArray:
        """Area inside each outline by the shoelace formula, px², float64 (n,)."""
        return shapes.areas(self.xy, self.offsets)

    def perimeters(self) -> FloatArray:
        """Length of each outline, px, float64 (n,)."""
        return shapes.lengths(self.xy, self.offsets)

    def scaled(self, scale: tuple[float, float], origin: tuple[float, float]) -> Contours:
        """Return the outlines in another frame: ``xy * scale + origin``."""
        return self._placed(scale, np.broadcast_to(np.asarray(origin, dtype=np.float64), (len(self), 2)))

    def moved(self, by: FloatArray) -> Contours:
        """Return the outlines moved by float64 (n, 2), x and y of each."""
        return self._placed((1.0, 1.0), by)

    def _placed(self, scale: tuple[float, float], origin: FloatArray) -> Contours:
        step = np.array(scale, dtype=np.float64)
        return Contours(outlines.placed(self.xy, self.offsets, step, np.ascontiguousarray(origin)), self.offsets)

    def polygons(self) -> npt.NDArray[Any]:
        """Return shapely polygons, object (n,); outlines that touch themselves are repaired, empty ones None.

        Repair may split an outline; its largest part is kept.
        """
        enough = self.counts >= 3
        whole = self if enough.all() else select_contours(self, np.flatnonzero(enough))
        xy, offsets = outlines.closed(whole.xy, whole.offsets)
        each = np.arange(len(whole) + 1)
        rings = shapely.from_ragged_array(shapely.GeometryType.POLYGON, xy, (offsets, each))
        unclear = np.flatnonzero(~shapes.run_around(whole.xy, whole.offsets))
        for i in unclear[~shapely.is_valid(rings[unclear])]:
            parts = [p for p in shapely.get_parts(shapely.make_valid(rings[i])) if p.geom_type == "Polygon"]
            rings[i] = max(parts, key=lambda part: part.area) if parts else None
        out = np.full(len(self), None, dtype=object)
        out[enough] = rings
        return out


def select_contours(contours: Contours, index: IntArray) -> Contours:
    """Return the outlines at `index`, in that order."""
    counts = contours.counts[index]
    offsets = np.concatenate([[0], np.cumsum(counts)])
    source = np.arange(offsets[-1]) + np.repeat(contours.offsets[:-1][index] - offsets[:-1], counts)
    return Contours(contours.xy[source], offsets)


def trace_labels(labels: npt.NDArray[np.integer[Any]], n: int | None = None) -> Contours:
    """Trace the outer outline of every label along the pixel edges.

    Parameters
    ----------
    labels
        int (H, W); 0 is background, regions are 1 to n. Holes are passed over. Of a label in several 4-connected
        parts, the part with the longest outline is traced.
    n
        Number of labels; the maximum by default.

    Returns
    -------
    Contours
        n outlines in the order of the labels, clockwise as seen on screen, a point at every pixel corner (1 px
        apart); an outline without points for a label that does not occur. Each starts where ImageJ's wand starts it:
        at the first corner after the right end of the region's topmost row.
    """
    n = int(labels.max(initial=0)) if n is None else n
    number = np.uint16 if labels.dtype == np.uint16 else np.int32
    return Contours(*tracing.trace(np.ascontiguousarray(labels, dtype=number), n))


def smooth_contours(contours: Contours) -> Contours:
    """Round off traced outlines as QuPath smooths its cells.

    Every second point is replaced by the mean of itself and its two neighbours, where the outline counts as closed by
    a copy of its first point; then points are set at equal chords of 2 px (less for outlines of fewer than 20 points).
    """
    return Contours(*outlines.smooth(contours.xy, contours.offsets))


def round_contours(contours: Contours, every: int = 1) -> Contours:
    """Round off outlines whose points lie at any distance, so that the least change of them stays one.

    Points are set at equal distances of at most 1 px along each outline and averaged twice with their two neighbours,
    by the weights 1, 2 and 1. Coordinates are multiples of 1 / 64 px.

    Parameters
    ----------
    contours
        Outlines, in pixels.
    every
        How many of these points there are to one that is returned.
    """
    return Contours(*outlines.rounded(contours.xy, contours.offsets, every))


def simplify_contours(contours: Contours, altitude: float) -> Contours:
    """Drop points that hardly matter (Visvalingam and Whyatt 1993, with QuPath's stopping rule).

    The point whose triangle with its neighbours is smallest goes first; an outline is finished when the height of
    that triangle exceeds `altitude`, or three points are left.

    Parameters
    ----------
    contours
        Outlines, in pixels of any frame.
    altitude
        Greatest height of a triangle that may be cut off, in the same unit.
    """
    return Contours(*outlines.simplify(contours.xy, contours.offsets, altitude))
