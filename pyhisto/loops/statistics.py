"""The loops over labels and images behind the intensities of :mod:`pyhisto.measurements`."""

from __future__ import annotations

import math
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from pyhisto.loops.compiled import compiled

__all__ = ["cell_statistics", "statistics"]

Table: TypeAlias = npt.NDArray[np.float64]


@compiled
def statistics(labels: npt.NDArray[Any], images: npt.NDArray[Any], n: int) -> Table:
    """Return mean, sum, standard deviation (n - 1), max, min and range of the pixels of labels 1 to n in k images.

    float64 (k, n, 6); NaN for labels without pixels, and for the deviation of a single one.
    """
    sums = _no_sums(n, len(images))
    ends = np.empty(labels.shape[1], dtype=np.int64)
    for y in range(labels.shape[0] if labels.size else 0):
        _add_row(sums, labels[y], labels[y], images[:, y], ends)
    out = np.empty((len(images), n, 6))
    for k in range(len(images)):
        for i in range(n):
            _describe(sums[i, 0, k], out[k, i])
    return out


@compiled
def cell_statistics(nuclei: npt.NDArray[Any], cells: npt.NDArray[Any], images: npt.NDArray[Any], n: int) -> Table:
    """Return what :func:`statistics` gives for nuclei, for whole cells and for what of a cell is no nucleus.

    float64 (k, 3, n, 6). A nucleus must have the label of its cell.
    """
    sums = _no_sums(n, len(images))
    ends = np.empty(cells.shape[1], dtype=np.int64)
    for y in range(cells.shape[0] if cells.size else 0):
        _add_row(sums, nuclei[y], cells[y], images[:, y], ends)
    out = np.empty((len(images), 3, n, 6))
    for k in range(len(images)):
        for i in range(n):
            nucleus, cytoplasm = sums[i, 0, k], sums[i, 1, k]
            _describe(nucleus, out[k, 0, i])
            _describe(cytoplasm, out[k, 2, i])
            _merge(nucleus, cytoplasm)
            _describe(nucleus, out[k, 1, i])
    return out


@compiled
def _no_sums(n: int, images: int) -> Table:
    """Return sums over the pixels of n nuclei and of the rest of their cells, float64 (n, 2, k, 6).

    Number, first value, sum and squares of differences to it (so that the variance loses no digits), max and min.
    """
    sums = np.zeros((n, 2, images, 6))
    sums[..., 4], sums[..., 5] = -math.inf, math.inf
    return sums


@compiled
def _add_row(
    sums: Table,
    nuclei: npt.NDArray[Any],
    cells: npt.NDArray[Any],
    values: npt.NDArray[Any],
    ends: npt.NDArray[np.int64],
) -> None:
    """Add a row of pixels, with the values of k images (k, W); `ends` is room for W numbers."""
    runs = 0
    for x in range(1, len(cells)):
        ends[runs] = x
        runs += (cells[x] != cells[x - 1]) | ((nuclei[x] > 0) != (nuclei[x - 1] > 0))
    ends[runs] = len(cells)
    begin = 0
    for end in ends[: runs + 1]:
        label = cells[begin]
        if 0 < label <= len(sums):
            for k in range(len(values)):
                _add(sums[label - 1, 0 if nuclei[begin] > 0 else 1, k], values[k, begin:end])
        begin = end


@compiled
def _add(sums: Table, values: npt.NDArray[Any]) -> None:
    """Add a run of pixels."""
    if sums[0] == 0:
        sums[1] = values[0]
    first, total, squares = sums[1], sums[2], sums[3]
    high = low = values[0]
    for value in values:
        difference = value - first
        total += difference
        squares += difference * difference
        high = value if value > high else high
        low = value if value < low else low
    sums[0] += len(values)
    sums[2], sums[3] = total, squares
    sums[4], sums[5] = max(sums[4], high), min(sums[5], low)


@compiled
def _merge(sums: Table, more: Table) -> None:
    """Add the pixels of others."""
    if sums[0] == 0:
        sums[1] = more[1]
    shift = more[1] - sums[1]
    sums[3] += more[3] + 2 * shift * more[2] + more[0] * shift * shift
    sums[2] += more[2] + more[0] * shift
    sums[0] += more[0]
    sums[4] = max(sums[4], more[4])
    sums[5] = min(sums[5], more[5])


@compiled
def _describe(sums: Table, out: Table) -> None:
    """Write mean, sum, standard deviation, max, min and range."""
    count, first, total = sums[0], sums[1], sums[2]
    for i in range(6):
        out[i] = math.nan
    if count > 0:
        out[0] = first + total / count
        out[1] = first * count + total
        if count > 1:
            out[2] = math.sqrt(max(sums[3] - total * total / count, 0.0) / (count - 1))
        out[3], out[4], out[5] = sums[4], sums[5], sums[4] - sums[5]
