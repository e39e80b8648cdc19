"""Label masks <-> outlines along the edges of their pixels, which give the mask back exactly."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import shapely

from pyhisto.contours import trace_labels
from qupath_ext.exchange.layouts.truth import Shapes

__all__ = ["connected_parts", "label_outlines"]

Labels = npt.NDArray[np.int32]


def label_outlines(labels: npt.NDArray[np.integer[Any]]) -> tuple[npt.NDArray[Any], Shapes]:
    """Return the outline of every label along its pixels' edges.

    All outlines are traced together; only labels with holes or in several parts are put together one by one.

    Parameters
    ----------
    labels
        Whole numbers, shape (H, W); 0 is background.

    Returns
    -------
    tuple
        The n values that occur, ascending, and n Polygons or (for labels in several parts) MultiPolygons, px. Their
        areas are the labels' numbers of pixels.

    Examples
    --------
    >>> values, shapes = label_outlines(np.array([[0, 7, 7], [0, 7, 7]]))
    >>> values.tolist(), shapes[0].bounds
    ([7], (1.0, 0.0, 3.0, 2.0))
    """
    values, index = np.unique(labels, return_inverse=True)
    index = index.reshape(labels.shape)
    foreground = values != 0
    number = np.cumsum(foreground) * foreground
    compact = number[index].astype(np.int32)
    n = int(foreground.sum())
    shapes = trace_labels(compact, n).polygons()
    pixels = np.bincount(compact.ravel(), minlength=n + 1)[1:]
    odd = np.flatnonzero(shapely.area(shapes) != pixels)
    if len(odd):
        from scipy import ndimage

        places = ndimage.find_objects(compact)
        for at in odd.tolist():
            rows, columns = places[at]
            shapes[at] = _joined(compact[rows, columns] == at + 1, (columns.start, rows.start))
    return values[foreground], np.asarray(shapely.simplify(shapes, 0.0), dtype=object)


def _joined(mask: npt.NDArray[np.bool_], origin: tuple[int, int]) -> Any:
    """Return the union of the pixels of a mask, from their runs along rows."""
    edges = np.diff(np.pad(mask.astype(np.int8), ((0, 0), (1, 1))), axis=1)
    row, start = np.nonzero(edges == 1)
    _, end = np.nonzero(edges == -1)
    x, y = origin
    return shapely.union_all(shapely.box(start + x, row + y, end + x, row + y + 1))


def connected_parts(
    codes: npt.NDArray[np.integer[Any]], border: npt.NDArray[np.bool_] | None = None, reach: float = 0.0
) -> tuple[Labels, npt.NDArray[Any]]:
    """Give numbers to the 4-connected parts of each class.

    Parameters
    ----------
    codes
        Class of each pixel, shape (H, W); 0 is background.
    border
        Pixels of a drawn border between objects, shape (H, W).
    reach
        Give border pixels to the nearest part if it is no farther than this, px.

    Returns
    -------
    tuple
        int32 (H, W), 0 for background and 1 to n for the parts; and the class of each part, (n,).
    """
    from scipy import ndimage
    from skimage.segmentation import expand_labels

    labels = np.zeros(codes.shape, dtype=np.int32)
    of_part: list[int] = []
    for code in np.unique(codes[codes != 0]).tolist():
        found, n = ndimage.label(codes == code)
        inside = found > 0
        labels[inside] = found[inside] + len(of_part)
        of_part += [code] * n
    if border is not None and reach > 0:
        wider = expand_labels(labels, reach)
        labels[border] = wider[border]
    return labels, np.array(of_part, dtype=np.int64)
