"""One-to-one assignment on a sparse table of possible pairs."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.optimize
import scipy.sparse
import scipy.sparse.csgraph

__all__ = ["one_to_one"]

DENSE_CELLS = 200_000
"""Largest table of one group that is solved as a full matrix; larger ones are solved sparsely."""


def one_to_one(
    rows: npt.NDArray[np.integer[Any]], columns: npt.NDArray[np.integer[Any]], cost: npt.NDArray[np.float64]
) -> npt.NDArray[np.int64]:
    """Choose pairs so that no row and no column is used twice: as many as possible, then the least total cost.

    Parameters
    ----------
    rows, columns
        Possible pairs, integer (n,), each pair once.
    cost
        Cost of each, float (n,), finite and not negative.

    Returns
    -------
    numpy.ndarray
        int64 (chosen,): which of the possible pairs, ascending; empty without possible pairs.

    Notes
    -----
    Pairs without a rival are taken at once; each group of pairs that compete is an assignment problem of its own
    (Crouse 2016, doi:10.1109/TAES.2016.140952; large groups: Jonker & Volgenant 1987 on the sparse table). Leaving a
    row alone costs more than all pairs of its group together, so that the number of pairs comes first.
    """
    if len(rows) == 0:
        return np.empty(0, dtype=np.int64)
    left, i = np.unique(rows, return_inverse=True)
    right, j = np.unique(columns, return_inverse=True)
    edges = (np.ones(len(rows)), (i, j + len(left)))
    graph = scipy.sparse.coo_matrix(edges, shape=(len(left) + len(right),) * 2)
    groups, group = scipy.sparse.csgraph.connected_components(graph, directed=False)
    row_place, n_rows = _places(group[: len(left)], groups)
    column_place, n_columns = _places(group[len(left) :], groups)
    of_pair = group[i]
    order = np.argsort(of_pair, kind="stable")
    alone = (n_rows == 1) & (n_columns == 1)
    chosen = [np.flatnonzero(alone[of_pair])]
    for number, pairs in enumerate(np.split(order, np.cumsum(np.bincount(of_pair))[:-1])):
        if not alone[number]:
            shape = int(n_rows[number]), int(n_columns[number])
            chosen.append(pairs[_assign(row_place[i[pairs]], column_place[j[pairs]], cost[pairs], shape)])
    return np.sort(np.concatenate(chosen)).astype(np.int64)


def _places(group: npt.NDArray[Any], groups: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return the place of each node within its group, from 0, and the sizes of the groups."""
    sizes = np.bincount(group, minlength=groups)
    places = np.empty(len(group), dtype=np.int64)
    places[np.argsort(group, kind="stable")] = np.arange(len(group)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    return places, sizes


def _assign(
    i: npt.NDArray[np.int64], j: npt.NDArray[np.int64], cost: npt.NDArray[np.float64], shape: tuple[int, int]
) -> npt.NDArray[np.int64]:
    """Solve one group of competing pairs (i, j) in a table of `shape`; return which of them are chosen."""
    n, m = shape
    none = (float(cost.max()) + 1.0) * (min(n, m) + 1)
    a: npt.NDArray[Any]
    b: npt.NDArray[Any]
    if n * m <= DENSE_CELLS:
        table = np.full(shape, none)
        table[i, j] = cost
        a, b = scipy.optimize.linear_sum_assignment(table)
        possible = table[a, b] < none
    else:
        # Each row may also stay alone, in a column of its own; + 1, for a cost of 0 would count as no entry.
        entries = np.concatenate([cost, np.full(n, none)]) + 1.0
        places = (np.concatenate([i, np.arange(n)]), np.concatenate([j, m + np.arange(n)]))
        sparse = scipy.sparse.csr_matrix((entries, places), shape=(n, m + n))
        a, b = scipy.sparse.csgraph.min_weight_full_bipartite_matching(sparse)
        possible = b < m
    key = i * m + j
    order = np.argsort(key)
    return order[np.searchsorted(key[order], a[possible] * m + b[possible])]
