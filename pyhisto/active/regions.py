"""Candidate regions of one slide: squares, or rectangles around what is uncertain. They never overlap."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
import scipy.ndimage as ndi

from pyhisto.active.grid import Box
from pyhisto.errors import ConfigError

__all__ = ["Candidate", "Ground", "RegionSettings", "Shape", "adaptive_boxes", "mean_inside", "square_boxes"]

TRIES = 20
"""Maxima that are looked at for each candidate that is wanted."""

Shape = Literal["square", "adaptive"]

Floats = npt.NDArray[np.float32]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class RegionSettings:
    """What a region may look like.

    Attributes
    ----------
    shape
        ``"square"``, or ``"adaptive"``: rectangles around what is uncertain. Without a model all are squares.
    side_um
        Side of a square, µm.
    min_um, max_um
        Least and greatest side of an adaptive rectangle, µm.
    min_tissue
        Least share of a region that is tissue.
    max_bad
        Greatest share of its tissue that lies under a pen, in a fold or out of focus.
    most
        Candidates of a slide.

    Raises
    ------
    ConfigError
        If a value is out of range.
    """

    shape: Shape = "square"
    side_um: float = 256.0
    min_um: float = 128.0
    max_um: float = 512.0
    min_tissue: float = 0.5
    max_bad: float = 0.2
    most: int = 300

    def __post_init__(self) -> None:
        if self.shape not in get_args(Shape):
            raise ConfigError(f"regions of shape {self.shape!r}", expected=f"one of {', '.join(get_args(Shape))}")
        if not 16 <= self.side_um <= 5000:
            raise ConfigError(f"regions with a side of {self.side_um:g} µm", expected="16 to 5000")
        if not 16 <= self.min_um <= self.max_um <= 5000:
            raise ConfigError(f"regions of {self.min_um:g} to {self.max_um:g} µm", expected="16 to 5000, in this order")
        if not (0 < self.min_tissue <= 1 and 0 <= self.max_bad <= 1):
            raise ConfigError(
                f"min_tissue = {self.min_tissue:g}, max_bad = {self.max_bad:g}", expected="shares between 0 and 1"
            )
        if self.most < 1:
            raise ConfigError(f"{self.most} candidates", expected="at least 1")


@dataclass(frozen=True, eq=False)
class Candidate:
    """A region that could be looked at.

    Attributes
    ----------
    slide
        Which slide it is of.
    polygon
        Its outline, level-0 px.
    area_mm2
        Of the whole region.
    score
        Mean of the score over its tissue; 0 where there is none to go by.
    parts
        Further numbers: ``tissue`` is a share of the region, ``bad`` one of its tissue, as are ``pen``, ``fold`` and
        ``blur``, which say why; ``<class> probability`` is a mean over the good tissue.
    features
        What it looks like, float32 (d,).
    """

    slide: str
    polygon: Any
    area_mm2: float
    score: float
    parts: Mapping[str, float] = field(default_factory=dict)
    features: Floats = field(default_factory=lambda: np.zeros(0, dtype=np.float32))


@dataclass(frozen=True, eq=False)
class Ground:
    """Where regions may lie: three masks (rows, columns) on one grid.

    Attributes
    ----------
    tissue
        Tissue.
    bad
        Tissue that is not worth looking at.
    taken
        What earlier rounds proposed; no region may touch it.
    um
        Side of a grid pixel, µm.
    """

    tissue: Bools
    bad: Bools
    taken: Bools
    um: float

    def allows(self, box: Box, settings: RegionSettings) -> bool:
        """Return whether a region may lie there."""
        top, left, bottom, right = box
        where = np.s_[top:bottom, left:right]
        tissue = int(self.tissue[where].sum())
        bad = int((self.bad[where] & self.tissue[where]).sum())
        enough = tissue > 0 and tissue >= settings.min_tissue * (bottom - top) * (right - left)
        return enough and bad <= settings.max_bad * tissue and not self.taken[where].any()


def mean_inside(values: npt.NDArray[np.floating[Any]], ground: Ground, box: Box) -> float:
    """Return the mean of a map over the good tissue of a region; NaN where nothing is known of it."""
    top, left, bottom, right = box
    where = np.s_[top:bottom, left:right]
    known = values[where][ground.tissue[where] & ~ground.bad[where]]
    known = known[np.isfinite(known)]
    return float(known.mean(dtype=np.float64)) if len(known) else float("nan")


def square_boxes(score: Floats | None, ground: Ground, settings: RegionSettings, rng: np.random.Generator) -> list[Box]:
    """Return squares that do not overlap, the best first: the greatest mean score, and on without what it covers.

    Squares lie a quarter of their side apart (the standard method in Qiu 2023, there a pixel apart).

    Parameters
    ----------
    score
        Float32 (rows, columns), NaN where unknown; None takes squares at random.
    ground
        Where they may lie.
    settings
        Side, least tissue and how many.
    rng
        For the random ones.
    """
    side = max(1, round(settings.side_um / ground.um))
    stride = max(1, side // 4)
    height, width = ground.tissue.shape
    if height < side or width < side:
        return []
    good = ground.tissue & ~ground.bad
    tissue = _sums(ground.tissue, side, stride)
    bad = _sums(ground.tissue & ground.bad, side, stride)
    allowed = (tissue > 0) & (tissue >= settings.min_tissue * side**2) & (bad <= settings.max_bad * tissue)
    allowed &= _sums(ground.taken, side, stride) == 0
    if score is None:
        value = rng.random(allowed.shape)
    else:
        known = good & np.isfinite(score)
        pixels = _sums(known, side, stride)
        allowed &= pixels > 0
        value = _sums(np.where(known, score, 0), side, stride) / np.maximum(pixels, 1)
    value = np.where(allowed, value, -np.inf)
    reach = -(-side // stride)  # windows nearer than this overlap
    boxes: list[Box] = []
    while len(boxes) < settings.most:
        row, column = divmod(int(np.argmax(value)), value.shape[1])
        if value[row, column] == -np.inf:
            break
        top, left = row * stride, column * stride
        boxes.append((top, left, top + side, left + side))
        value[max(0, row - reach + 1) : row + reach, max(0, column - reach + 1) : column + reach] = -np.inf
    return boxes


def _sums(values: npt.NDArray[Any], side: int, stride: int) -> npt.NDArray[np.float64]:
    """Return the sums over squares, `stride` apart, by an integral image (Crow 1984)."""
    integral = np.zeros((values.shape[0] + 1, values.shape[1] + 1))
    np.cumsum(np.cumsum(values, axis=0, dtype=np.float64), axis=1, out=integral[1:, 1:])
    a, b = integral[::stride, ::stride], integral[side::stride, side::stride]
    rows, columns = b.shape
    c, d = integral[:-side:stride, side::stride], integral[side::stride, :-side:stride]
    return np.asarray(a[:rows, :columns] + b - c[:rows, :columns] - d[:rows, :columns])


def adaptive_boxes(score: Floats, ground: Ground, settings: RegionSettings) -> list[Box]:
    """Return rectangles around what is uncertain that do not overlap, by falling maximum (Qiu et al. 2023, MICCAI).

    From the pixel of the greatest score, smoothed over a quarter of the least side, the area around it that is above
    a threshold grows as the threshold falls; the rectangle is the bounding box of the largest that keeps within
    `max_um` and where a region may lie, found by bisection. It is widened to `min_um`. What it covers is taken out,
    and on with the next maximum.

    Parameters
    ----------
    score
        Float32 (rows, columns), NaN where unknown.
    ground
        Where they may lie.
    settings
        Sides, least tissue and how many.
    """
    least = max(1, round(settings.min_um / ground.um))
    most = max(least, int(settings.max_um / ground.um + 1e-9))
    if min(score.shape) < least:
        return []
    open_ = ground.tissue & ~ground.bad & ~ground.taken & np.isfinite(score)
    smooth = np.where(open_, _smoothed(score, open_, least / 4), -np.inf).astype(np.float32)
    ground = Ground(ground.tissue, ground.bad, ground.taken.copy(), ground.um)
    boxes: list[Box] = []
    for _ in range(TRIES * settings.most):
        row, column = divmod(int(np.argmax(smooth)), smooth.shape[1])
        if smooth[row, column] == -np.inf or len(boxes) == settings.most:
            break
        box = _grown(smooth, (row, column), (least, most), ground, settings)
        if box is None:
            box = _widened((row, column, row + 1, column + 1), max(1, least // 4), smooth.shape)
        else:
            boxes.append(box)
            ground.taken[box[0] : box[2], box[1] : box[3]] = True
        smooth[box[0] : box[2], box[1] : box[3]] = -np.inf
    return boxes


def _smoothed(score: Floats, known: Bools, sigma: float) -> Floats:
    """Return a Gaussian mean of what is known (normalised convolution, Knutsson and Westin 1993)."""
    weight = ndi.gaussian_filter(known.astype(np.float32), sigma)
    total = ndi.gaussian_filter(np.where(known, score, 0).astype(np.float32), sigma)
    return np.asarray(total / np.maximum(weight, np.float32(1e-6)))


def _grown(
    smooth: Floats, peak: tuple[int, int], sides: tuple[int, int], ground: Ground, settings: RegionSettings
) -> Box | None:
    """Return the bounding box of the largest area around a maximum that is allowed; None where none is."""
    least, most = sides
    top, left = max(0, peak[0] - most), max(0, peak[1] - most)
    window = smooth[top : peak[0] + most + 1, left : peak[1] + most + 1]
    levels = np.unique(window[np.isfinite(window)])  # rising
    best = None
    low, high = 0, len(levels) - 1
    while low <= high:
        middle = (low + high) // 2
        labels, _ = ndi.label(window >= levels[middle])
        rows, columns = ndi.find_objects(labels)[labels[peak[0] - top, peak[1] - left] - 1]
        found = (top + rows.start, left + columns.start, top + rows.stop, left + columns.stop)
        box = _widened(found, least, smooth.shape)
        if max(box[2] - box[0], box[3] - box[1]) <= most and ground.allows(box, settings):
            best, high = box, middle - 1
        else:
            low = middle + 1
    return best


def _widened(box: Box, least: int, shape: tuple[int, ...]) -> Box:
    """Return a box that is at least so high and wide, about the same centre, inside the grid."""
    out = []
    for begin, end, size in ((box[0], box[2], shape[0]), (box[1], box[3], shape[1])):
        more = max(0, least - (end - begin))
        start = min(max(0, begin - more // 2), max(0, size - (end - begin) - more))
        out.append((start, start + end - begin + more))
    return out[0][0], out[1][0], out[0][1], out[1][1]
