"""Many polygons of one image, found by window and drawn at once."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import shapely

from pyhisto.dataset.images import Window
from pyhisto.errors import TrainingError
from pyhisto.labels import paint, polygon_rings

__all__ = ["Shapes"]

MOST_IN_WINDOW = 65535
"""Polygons that the numbers of one window can tell apart."""


class Shapes:
    """Polygons as flat arrays, in drawing order, sorted by their left edge for the search.

    Arrays cross to worker processes without a copy of each object, and a window looks only at polygons whose bounding
    box touches it.

    Parameters
    ----------
    geometries
        shapely polygons (n,), level-0 px; the later one wins where they overlap.
    values
        Integer label of each (n,).
    dtype
        Of the stored coordinates; float32 keeps 1/100 px on a slide of 100 000 px, and is what QuPath stores.
    """

    def __init__(self, geometries: npt.NDArray[np.object_], values: npt.NDArray[Any], *, dtype: Any = np.float64):
        self.values = np.asarray(values)
        self.bounds = shapely.bounds(geometries).reshape(-1, 4)  # (n, 4) x0, y0, x1, y1
        xy, owner = polygon_rings(geometries)
        self._xy = xy.astype(dtype)
        self._first = np.searchsorted(owner, np.arange(len(geometries) + 1))
        self._by_left = np.argsort(self.bounds[:, 0], kind="stable")
        self._sorted = self.bounds[self._by_left].T.copy()  # (4, n)
        self._widest = float((self.bounds[:, 2] - self.bounds[:, 0]).max(initial=0.0))

    def __len__(self) -> int:
        """Return the number of polygons."""
        return len(self.values)

    def near(self, window: Window) -> npt.NDArray[np.intp]:
        """Return the numbers of the polygons whose bounding box touches a window, in drawing order."""
        right, bottom = window.x + window.size * window.scale[0], window.y + window.size * window.scale[1]
        low, high = np.searchsorted(self._sorted[0], (window.x - self._widest, right))
        _, y0, x1, y1 = self._sorted[:, low:high]
        touching = (x1 > window.x) & (y0 < bottom) & (y1 > window.y)
        return np.sort(self._by_left[low:high][touching])

    def draw(self, mask: npt.NDArray[Any], window: Window) -> None:
        """Draw the values of the polygons into the mask of a window (size, size)."""
        self._paint(mask, window, found := self.near(window), self.values[found])

    def number(self, window: Window) -> tuple[npt.NDArray[np.uint16], npt.NDArray[np.intp]]:
        """Return which polygon each pixel of a window shows.

        Returns
        -------
        place : numpy.ndarray
            uint16 (size, size): 0 for none, else 1 + the place in `found`.
        found : numpy.ndarray
            intp (k,): numbers of the polygons whose bounding box touches the window.

        Raises
        ------
        TrainingError
            If there are more than 65535.
        """
        found = self.near(window)
        if len(found) > MOST_IN_WINDOW:
            raise TrainingError(
                f"{len(found)} objects in one patch",
                expected=f"at most {MOST_IN_WINDOW}",
                remedy="take smaller patches",
            )
        place = np.zeros((window.size, window.size), dtype=np.uint16)
        self._paint(place, window, found, np.arange(1, 1 + len(found)))
        return place, found

    def _paint(
        self, mask: npt.NDArray[Any], window: Window, found: npt.NDArray[np.intp], values: npt.NDArray[Any]
    ) -> None:
        if len(found) == 0:
            return
        first, after = self._first[found], self._first[found + 1]
        rings = [self._xy[start:stop] for start, stop in zip(first.tolist(), after.tolist(), strict=True)]
        local = (np.concatenate(rings) - (window.x, window.y)) / window.scale
        paint(mask, local, np.repeat(np.arange(len(found)), after - first), values)
