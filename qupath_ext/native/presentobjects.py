"""What a data file holds, for comparing: the outlines of cells in runs stay bytes until they are asked for."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from qupath_ext.native.runtable import ObjectColumns, read_rings_at, read_rois_at
from qupath_ext.native.scanner import ScannedRun
from qupath_ext.native.table import as_frame
from qupath_ext.present import Bools, Floats, Ints, Objects, PresentObjects, ShapeColumn

__all__ = ["ScannedObjects"]


class ScannedObjects(PresentObjects):
    """The objects of a data file; `run` are the records of those whose geometries `columns` do not have."""

    def __init__(self, columns: ObjectColumns, run: ScannedRun | None) -> None:
        self.table = as_frame(columns)
        self._made = {"geometry": columns.geometry, "nucleus": columns.nucleus}
        self._offsets = {"geometry": columns.rois, "nucleus": columns.nuclei}
        self._run = run

    def shapes(self, column: ShapeColumn, rows: Ints) -> Objects:
        """Return the geometries of some rows."""
        out: Objects = self._made[column][rows]
        at = self._offsets[column][rows]
        stored = np.flatnonzero(at >= 0)
        if self._run is not None and len(stored):
            out[stored] = read_rois_at(self._run, at[stored])
        return out

    def has_shape(self, column: ShapeColumn, rows: Ints) -> Bools:
        """Return which of some rows have a geometry."""
        there: Bools = self._offsets[column][rows] >= 0
        rest = np.flatnonzero(~there)
        there[rest] = [shape is not None for shape in self._made[column][rows[rest]]]
        return there

    def rings(self, column: ShapeColumn, rows: Ints) -> Iterator[tuple[Ints, Floats]]:
        """Yield the vertices of those of some rows that are polygons without holes."""
        at = self._offsets[column][rows]
        stored = np.flatnonzero(at >= 0)
        if self._run is not None:
            for numbers, vertices in read_rings_at(self._run, at[stored]):
                yield stored[numbers], vertices
