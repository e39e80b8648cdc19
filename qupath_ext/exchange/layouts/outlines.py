"""Label masks <-> outlines along the edges of their pixels, which give the mask back exactly."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from pyhisto.labels import PolygonSettings, label_map_to_polygons
from qupath_ext.exchange.layouts.truth import Shapes

__all__ = ["connected_parts", "label_outlines"]

Labels = npt.NDArray[np.int32]


def label_outlines(labels: npt.NDArray[np.integer[Any]]) -> tuple[npt.NDArray[Any], Shapes]:
    """Return the outline of every label along its pixels' edges.

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
    shapes, values = label_map_to_polygons(labels, PolygonSettings(outline="pixels"), join=True)
    out = np.empty(len(shapes), dtype=object)
    out[:] = shapes
    return values, out


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
