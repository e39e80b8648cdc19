"""The windows that a model is validated on: all that is labelled there, once, the same every time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import shapely

from pyhisto.dataset.areas import labelled_areas
from pyhisto.dataset.boundary import BoundaryWeights
from pyhisto.dataset.cells import CellTask
from pyhisto.dataset.describe import describe_images
from pyhisto.dataset.images import IGNORED, TrainingImage, Window
from pyhisto.dataset.patches import Item, boundary_weights, check_boundary
from pyhisto.dataset.slides import OpenSlides
from pyhisto.dataset.tasks import Task
from pyhisto.labels import rasterise

__all__ = ["ValidationDataset"]

LEAST_SHARE = 1e-3
"""Windows that have less of their area labelled are left out."""


@dataclass(frozen=True)
class _View:
    """One window of one image, and what of it counts, level-0 px."""

    image: int
    window: Window
    counted: Any


class ValidationDataset:
    """Windows that tile the labelled areas of the validation part; not augmented. For torch's DataLoader.

    The validation part is everything that is labelled on slides of that part, and the ``Validation`` rectangles on
    training slides. Each area has its own grid, centred on it; where two windows show the same area, one of them counts
    it. Nuclei that lie in no area are shown by the squares of a grid over the slide.

    Parameters
    ----------
    images
        Slides of all parts.
    task
        What is learnt.
    mpp
        Pixel size of the windows in µm.
    size
        Side of a window in pixels.
    limit
        Most windows to keep: the same number of each image, as far as it has them, spread evenly over its areas.
    boundary
        As for the patches; None for no weights.

    Raises
    ------
    ConfigError
        If boundary weights are wanted without nuclei.
    SlideError
        If a slide has no pixel size.

    Notes
    -----
    The length is 0 where nothing is labelled for validation.
    """

    def __init__(
        self,
        images: Sequence[TrainingImage],
        task: Task,
        *,
        mpp: float,
        size: int,
        limit: int,
        boundary: BoundaryWeights | None = None,
    ) -> None:
        check_boundary(task, boundary)
        self.task = task
        self.mpp = mpp
        self.size = size
        self.boundary = boundary
        used = [image for image in images if image.part != "test"]
        views = [_views(number, image, task, mpp, size) for number, image in enumerate(used)]
        self._views = [views[n][i] for n, kept in enumerate(_spread([len(v) for v in views], limit)) for i in kept]
        shown = sorted({view.image for view in self._views})
        self._checksum = describe_images([used[number] for number in shown])
        self._images = [image.without_objects() for image in used]
        self._slides = OpenSlides(self._images)

    def describe(self) -> dict[str, Any]:
        """Return all that decides the windows, as JSON types."""
        return {
            "images": self._checksum,
            "task": repr(self.task),
            "mpp": self.mpp,
            "size": self.size,
            "boundary": repr(self.boundary),
            "windows": [[view.image, view.window.x, view.window.y] for view in self._views],
        }

    def __len__(self) -> int:
        """Return the number of windows."""
        return len(self._views)

    def __getitem__(self, index: int) -> Item:
        """Return window `index`: RGB, labels and perhaps weights, as :class:`pyhisto.dataset.PatchDataset` does."""
        if not 0 <= index < len(self._views):
            raise IndexError(index)
        view = self._views[index]
        image, slide, window = self._images[view.image], self._slides[view.image], view.window
        mpp = image.seen_mpp(self.mpp)
        rgb = image.seen(slide.read_region(window.x, window.y, window.size, window.size, mpp=mpp))
        labels = self.task.label(image, window, mpp, part="validation")
        shape, origin = labels.shape, (window.x, window.y)
        labels[rasterise([view.counted], [1], shape, origin=origin, scale=window.scale) == 0] = IGNORED
        weights = boundary_weights(self.boundary, self.task, image, window, mpp)
        rgb = np.ascontiguousarray(rgb)
        return (rgb, labels) if weights is None else (rgb, labels, np.ascontiguousarray(weights))

    def close(self) -> None:
        """Close the slides that this process has open."""
        self._slides.close()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_slides": OpenSlides(self._images)}


def _views(number: int, image: TrainingImage, task: Task, mpp: float, size: int) -> list[_View]:
    """Return the windows of one image, row by row in each of its areas."""
    areas = labelled_areas(image, task, "validation")
    loose = np.empty((0, 2))
    if isinstance(task, CellTask):
        centres, _ = task.nuclei(image, "validation")
        covered = shapely.STRtree(areas).query(shapely.points(centres), predicate="intersects")[0]
        loose = np.delete(centres, covered, axis=0)
    if not areas and not len(loose):
        return []
    own, mpp = image.pixel_size(), image.seen_mpp(mpp)
    scale = (mpp / own[0], mpp / own[1])
    side = np.array(scale) * size  # level-0 px
    views = []
    for area in areas:
        x0, y0, x1, y1 = area.bounds
        columns, rows = math.ceil((x1 - x0) / side[0] - 1e-9), math.ceil((y1 - y0) / side[1] - 1e-9)
        left, top = (x0 + x1 - columns * side[0]) / 2, (y0 + y1 - rows * side[1]) / 2
        for row, column in np.ndindex(rows, columns):
            window = Window(float(left + column * side[0]), float(top + row * side[1]), scale, size)
            if shapely.intersection(area, window.box).area > LEAST_SHARE * window.box.area:
                views.append(_View(number, window, area))
    everything = shapely.union_all(areas)
    for column, row in np.unique(np.floor(loose / side).astype(np.int64)[:, ::-1], axis=0)[:, ::-1].tolist():
        window = Window(float(column * side[0]), float(row * side[1]), scale, size)
        views.append(_View(number, window, shapely.difference(window.box, everything)))
    return views


def _spread(counts: Sequence[int], limit: int) -> list[list[int]]:
    """Return which of `counts[i]` windows to keep of each image: at most `limit` in all, the same number of each."""
    kept = np.zeros(len(counts), dtype=int)
    while (open_ := np.flatnonzero(kept < counts)).size and kept.sum() < limit:
        share = max(1, (limit - kept.sum()) // len(open_))
        for number in open_[: limit - kept.sum()]:
            kept[number] = min(counts[number], kept[number] + share)
    return [
        ((np.arange(keep) + 0.5) * count / keep).astype(int).tolist() if keep else []
        for keep, count in zip(kept.tolist(), counts, strict=True)
    ]
