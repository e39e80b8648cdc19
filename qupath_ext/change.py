"""What is to be done to the objects of an image, collected first and written at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import geopandas as gpd
    import pandas as pd

    from qupath_ext.native.stains import Stains

__all__ = ["Change", "ChangeCounts", "TmaGrid"]


@dataclass(frozen=True)
class TmaGrid:
    """The grid of a tissue microarray: number of columns and rows, and the ids of its cores, row by row."""

    width: int
    height: int
    cores: tuple[str, ...]


@dataclass(frozen=True)
class ChangeCounts:
    """What one change did: new objects by type, removed and updated objects, locks set or taken away."""

    added: Mapping[str, int] = field(default_factory=dict)
    removed: int = 0
    locked: int = 0
    updated: int = 0

    @property
    def n_added(self) -> int:
        """Number of new objects of all types."""
        return sum(self.added.values())


@dataclass
class Change:
    """What is to be done to an image; filled inside ``with entry.edit() as change``.

    `counts` says what was done once the block has ended. Done in this order: image type, update, remove, lock and
    unlock, add, TMA grid.
    """

    tables: list[gpd.GeoDataFrame] = field(default_factory=list)
    updates: list[pd.DataFrame] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)
    locked: list[str] = field(default_factory=list)
    unlocked: list[str] = field(default_factory=list)
    image_type: str | None = None
    stains: Stains | None = None
    tma_grid: TmaGrid | None = None
    counts: ChangeCounts = field(default_factory=ChangeCounts)

    def add(self, objects: gpd.GeoDataFrame) -> None:
        """Add the objects of a table; those with a ``parent_id`` under that parent, which may be in it as well."""
        self.tables.append(objects)

    def update(self, objects: pd.DataFrame) -> None:
        """Change objects that are there; everything else about them, and their place, stays.

        Parameters
        ----------
        objects
            Indexed by object id, with any of the columns ``classification``, ``name``, ``color``, ``locked``,
            ``metadata``, ``geometry`` and ``nucleus`` of the path-object table, and measurements. A missing
            classification, name, color or metadata takes it away; a missing measurement leaves the old value, and a
            new one is appended.
        """
        self.updates.append(objects)

    def remove(self, ids: Sequence[str]) -> None:
        """Remove objects; children that stay move up to the parent of what was removed."""
        self.removed += ids

    def lock(self, ids: Sequence[str]) -> None:
        """Lock objects."""
        self.locked += ids

    def unlock(self, ids: Sequence[str]) -> None:
        """Unlock objects."""
        self.unlocked += ids

    def set_image_type(self, image_type: str, stains: Stains | None = None) -> None:
        """Set the image type, and with it the stains: those given, else QuPath's default ones for the type."""
        self.image_type, self.stains = image_type, stains

    def set_tma_grid(self, grid: TmaGrid) -> None:
        """Give the image a TMA grid; its cores are added in the same change as objects of type ``tma_core``."""
        self.tma_grid = grid

    def __bool__(self) -> bool:
        lists = (self.tables, self.updates, self.removed, self.locked, self.unlocked)
        return any(lists) or self.image_type is not None or self.tma_grid is not None
