"""Outlines of nuclei and of the cells that grow from them, which run between the pixels.

The edges of the pixels of a label jump by a whole pixel where the least change of an image makes a pixel come or go.
Here the place where a nucleus ends is interpolated between the pixels on both sides of such an edge, and a cell ends at
a distance from that place, so that an outline moves by as little as the image changes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pyhisto.contours import Contours, round_contours, simplify_contours, trace_labels
from pyhisto.inference.frame import Frame
from pyhisto.loops import borders
from pyhisto.nuclei.labelling import Nuclei

__all__ = ["Outlines", "cell_outlines", "nucleus_outlines"]

Labels = npt.NDArray[np.integer[Any]]

_ALTITUDE = 0.35
"""Greatest height of a triangle that is cut off where outlines are simplified, model px.

QuPath's cells have 0.5, which lets outlines that hardly differ end up twice as far from each other.
"""


@dataclass(frozen=True)
class Outlines:
    """Smooth outlines of labels 1 to n, in pixels of the label image.

    Attributes
    ----------
    smooth
        n outlines, each relative to its corner, so that no digit depends on where it lies.
    corners
        (x, y), float64 (n, 2).
    """

    smooth: Contours
    corners: npt.NDArray[np.float64]

    def first(self, n: int) -> Outlines:
        """Return the first n."""
        offsets = self.smooth.offsets[: n + 1]
        return Outlines(Contours(self.smooth.xy[: offsets[-1]], offsets), self.corners[:n])

    def placed(self, frame: Frame, corner: tuple[int, int]) -> Contours:
        """Return them simplified, level-0 px, where the label image has its corner (x, y) at a pixel of the frame."""
        step = np.asarray(frame.downsample)
        altitude = _ALTITUDE * math.sqrt(step.prod())
        simple = simplify_contours(self.smooth.scaled(frame.downsample, (0.0, 0.0)), altitude)
        return simple.moved((self.corners + corner) * step + (frame.left, frame.top))


def nucleus_outlines(labels: Labels, nuclei: Nuclei, corner: tuple[int, int]) -> Outlines:
    """Return where nuclei end: half-way down from core to ground, or where they touch another one.

    Between the pixels on both sides of an edge of a label the darkness, opened as the labels are, is taken as linear;
    where two nuclei touch, they end at the vertex of the parabola through their probabilities.

    Parameters
    ----------
    labels
        int (H, W), 1 to n as in `nuclei`, which may be of a part of them.
    nuclei
        As :func:`pyhisto.nuclei.labelling.label_peaks` returns them; its own labels are not looked at.
    corner
        (row, column) of the labels in the images of `nuclei`.
    """
    traced = trace_labels(labels, len(nuclei.peaks))
    places, corners = borders.stain_borders(
        traced.xy, traced.offsets, labels, corner, nuclei.darkness, nuclei.compact, nuclei.peaks, nuclei.radii
    )
    return Outlines(round_contours(Contours(places, traced.offsets)), corners)


def cell_outlines(cells: Labels, nuclei: Labels, outlines: Outlines, reach: float, growth: float, n: int) -> Outlines:
    """Return where cells 1 to n end: at a distance from their nucleus, or half a pixel before a neighbour's is as near.

    Parameters
    ----------
    cells, nuclei
        int (H, W), the nuclei and what :func:`pyhisto.measurements.expand_cells` made of them.
    outlines
        Those of the nuclei, and not only of the first n.
    reach
        How far nuclei reach from their peak at most, px.
    growth
        How far they grew, px.
    """
    traced = trace_labels(cells, n)
    places, corners = borders.grown_borders(
        traced.xy,
        traced.offsets,
        cells,
        nuclei,
        outlines.smooth.xy,
        outlines.smooth.offsets,
        outlines.corners,
        (reach, growth),
    )
    return Outlines(round_contours(Contours(places, traced.offsets), every=2), corners)
