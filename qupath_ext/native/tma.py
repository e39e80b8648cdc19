"""The grid of a tissue microarray: its token and what it says."""

from __future__ import annotations

import struct

from qupath_ext.change import TmaGrid
from qupath_ext.errors import FormatError
from qupath_ext.native.catalog import OBJECTS, Factory
from qupath_ext.native.datafile import DataFile
from qupath_ext.native.measurementlists import list_items
from qupath_ext.native.pathobjects import PathObjectView, walk
from qupath_ext.native.table import derived_id
from qupath_ext.native.tokens import JObject

__all__ = ["grid_cores", "grid_token", "read_grid"]

GRID = OBJECTS + "hierarchy.DefaultTMAGrid"


def grid_cores(data: DataFile) -> list[JObject]:
    """Return the tokens of the grid's cores, row by row; none if there is no grid.

    Raises
    ------
    FormatError
        If the grid is of a kind that is not known.
    """
    grid = data.hierarchy.get("tmaGrid")
    if grid is None:
        return []
    if not isinstance(grid, JObject) or grid.desc.name != GRID:
        name = grid.desc.name if isinstance(grid, JObject) else type(grid).__name__
        raise FormatError(f"TMA grid of class {name}", expected=GRID)
    cores = list_items(grid.get("cores"))
    found = [core for core in cores if isinstance(core, JObject)]
    if len(found) < len(cores):
        raise FormatError("TMA grid with something else than cores")
    return found


def read_grid(data: DataFile) -> TmaGrid | None:
    """Return the TMA grid of a data file, None if there is none.

    Raises
    ------
    FormatError
        If the grid is of a kind that is not known, or its cores are not objects of the image.
    """
    cores = grid_cores(data)
    grid = data.hierarchy.get("tmaGrid")
    if not isinstance(grid, JObject):
        return None
    ids: dict[int, str] = {}
    number = 0
    for item, _ in walk(data.root):
        if isinstance(item, PathObjectView):
            ids[id(item.token)] = item.id or derived_id(data.digest, number)
            number += 1
        else:
            number += len(item)
    if any(id(core) not in ids for core in cores):
        raise FormatError("TMA grid with a core that is no object of the image")
    height, width = (_number(grid, name) for name in ("gridHeight", "gridWidth"))
    return TmaGrid(width, height, tuple(ids[id(core)] for core in cores))


def _number(grid: JObject, name: str) -> int:
    value = grid.get(name)
    if not isinstance(value, bytes):
        raise FormatError(f"TMA grid whose {name} is no number")
    return int.from_bytes(value, "big", signed=True)


def grid_token(width: int, height: int, cores: list[JObject], factory: Factory) -> JObject:
    """Return the token of a new grid; the cores' tokens stand in the hierarchy as well."""
    sizes = [struct.pack(">i", size) for size in (height, width)]
    return factory.obj(GRID, [*sizes, factory.array_list(cores)])
