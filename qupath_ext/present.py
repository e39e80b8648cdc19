"""What an image holds, for comparing: outlines are made only of those objects that are asked for."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any, Literal, TypeAlias

import geopandas as gpd
import numpy as np
import pandas as pd
import shapely

__all__ = ["PresentObjects", "PresentTable", "ShapeColumn", "as_present"]

ShapeColumn: TypeAlias = Literal["geometry", "nucleus"]
Ints: TypeAlias = np.ndarray[Any, np.dtype[np.intp]]
Bools: TypeAlias = np.ndarray[Any, np.dtype[np.bool_]]
Floats: TypeAlias = np.ndarray[Any, np.dtype[np.float64]]
Objects: TypeAlias = np.ndarray[Any, np.dtype[np.object_]]


class PresentObjects(ABC):
    """The objects of an image.

    Attributes
    ----------
    table
        The path-object table without the columns ``geometry`` and ``nucleus``.
    """

    table: pd.DataFrame

    @abstractmethod
    def shapes(self, column: ShapeColumn, rows: Ints) -> Objects:
        """Return the geometries of some rows, object (n,), None where there is none; px of QuPath's frame."""

    @abstractmethod
    def has_shape(self, column: ShapeColumn, rows: Ints) -> Bools:
        """Return which of some rows have a geometry, bool (n,)."""

    @abstractmethod
    def rings(self, column: ShapeColumn, rows: Ints) -> Iterator[tuple[Ints, Floats]]:
        """Yield the vertices of those of some rows that are polygons without holes.

        Yields
        ------
        tuple of numpy.ndarray
            k numbers of places in `rows`, and vertices (k, m, 2), the first one again at the end. Some polygons may be
            left out.
        """

    def take(self, rows: Ints) -> gpd.GeoDataFrame:
        """Return some rows as a path-object table."""
        table = self.table.iloc[rows]
        nucleus = np.empty(len(rows), dtype=object)
        nucleus[:] = self.shapes("nucleus", rows)
        shapes = {
            "geometry": gpd.array.GeometryArray(self.shapes("geometry", rows)),
            "nucleus": pd.Series(nucleus, index=table.index),
        }
        data = {"object_type": table["object_type"], **shapes, **table.drop(columns="object_type")}
        return gpd.GeoDataFrame(data, geometry="geometry", index=table.index, copy=False)


class PresentTable(PresentObjects):
    """Objects whose outlines are there already."""

    def __init__(self, objects: gpd.GeoDataFrame) -> None:
        self.table = pd.DataFrame(objects.drop(columns=["geometry", "nucleus"]))
        self._shapes = {name: objects[name].to_numpy(dtype=object) for name in ("geometry", "nucleus")}

    def shapes(self, column: ShapeColumn, rows: Ints) -> Objects:
        """Return the geometries of some rows."""
        out: Objects = self._shapes[column][rows]
        out[~self.has_shape(column, rows)] = None
        return out

    def has_shape(self, column: ShapeColumn, rows: Ints) -> Bools:
        """Return which of some rows have a geometry."""
        there: Bools = ~np.asarray(pd.isna(self._shapes[column][rows]))
        return there

    def rings(self, column: ShapeColumn, rows: Ints) -> Iterator[tuple[Ints, Floats]]:
        """Yield the vertices of those of some rows that are polygons without holes."""
        shapes = self.shapes(column, rows)
        simple = shapely.get_type_id(shapes) == shapely.GeometryType.POLYGON
        simple &= shapely.get_num_interior_rings(shapes) == 0
        counts = shapely.get_num_coordinates(shapes)
        for n in np.unique(counts[simple & (counts > 0)]).tolist():
            chosen = np.flatnonzero(simple & (counts == n))
            yield chosen, shapely.get_coordinates(shapes[chosen]).reshape(len(chosen), n, 2)


def as_present(objects: gpd.GeoDataFrame | PresentObjects) -> PresentObjects:
    """Return a path-object table as what an image holds."""
    return PresentTable(objects) if isinstance(objects, gpd.GeoDataFrame) else objects
