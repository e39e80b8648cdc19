"""Tile grids: cores partition the region, and the overlap is where it should be."""

from __future__ import annotations

from itertools import pairwise

import pytest
import shapely
from hypothesis import given
from hypothesis import strategies as st

from pyhisto.errors import ConfigError
from pyhisto.tiling import TileGrid


def test_worked_out_by_hand() -> None:
    # 0.25 µm/px slide, tiles at 0.5 µm/px: one tile pixel is 2 slide pixels. Core 256 - 2 * 32 = 192 -> 384 slide px.
    grid = TileGrid((100, 50, 1100, 550), slide_mpp=(0.25, 0.25), mpp=0.5, tile_size=256, overlap=32)
    assert grid.downsample == (2.0, 2.0)
    assert grid.core_size == 192
    assert grid.shape == (2, 3)  # ceil(500 / 384), ceil(1000 / 384)
    tile = grid.tile(1, 2)
    assert (tile.row, tile.column) == (1, 2)
    assert tile.core == (868.0, 434.0, 1252.0, 818.0)  # 100 + 2 * 384, 50 + 384
    assert (tile.x, tile.y) == (804.0, 370.0)  # 32 * 2 before the core


def test_pixels_that_are_not_square() -> None:
    # mpp_x = 0.5, mpp_y = 0.25: a tile pixel of 1 µm is 2 slide pixels across and 4 down.
    grid = TileGrid((0, 0, 60, 60), slide_mpp=(0.5, 0.25), mpp=1.0, tile_size=12, overlap=1)
    assert grid.downsample == (2.0, 4.0)
    assert grid.shape == (2, 3)  # rows ceil(60 / 40), columns ceil(60 / 20)
    tile = grid.tile(1, 1)
    assert tile.core == (20.0, 40.0, 40.0, 80.0)
    assert (tile.x, tile.y) == (18.0, 36.0)


def test_a_region_of_whole_cores_gets_no_extra_tile() -> None:
    assert TileGrid((0, 0, 0.3 * 7, 0.3 * 5), (0.5, 0.5), 0.15, tile_size=1).shape == (5, 7)


def test_order_is_row_by_row() -> None:
    grid = TileGrid((0, 0, 20, 20), (1, 1), 1, tile_size=10)
    assert [(tile.row, tile.column) for tile in grid.tiles()] == [(0, 0), (0, 1), (1, 0), (1, 1)]


def test_only_tiles_whose_core_touches_the_region() -> None:
    grid = TileGrid((0, 0, 30, 20), (1, 1), 1, tile_size=14, overlap=2)  # cores of 10
    region = shapely.MultiPolygon([shapely.box(21, 1, 22, 2), shapely.box(8, 12, 11, 13)])
    assert [(tile.row, tile.column) for tile in grid.tiles(region)] == [(0, 2), (1, 0), (1, 1)]


numbers = st.floats(-1e5, 1e5, allow_nan=False)


@given(
    x0=numbers,
    y0=numbers,
    width=st.floats(1, 3000),
    height=st.floats(1, 3000),
    slide_mpp=st.tuples(st.floats(0.1, 1), st.floats(0.1, 1)),
    mpp=st.floats(0.2, 4),
    tile_size=st.integers(64, 512),
    share=st.floats(0, 0.45),
)
def test_cores_partition_the_region_exactly(
    x0: float,
    y0: float,
    width: float,
    height: float,
    slide_mpp: tuple[float, float],
    mpp: float,
    tile_size: int,
    share: float,
) -> None:
    grid = TileGrid((x0, y0, x0 + width, y0 + height), slide_mpp, mpp, tile_size, int(share * tile_size))
    rows, columns = grid.shape
    for row in (0, rows - 1):
        tiles = [grid.tile(row, column) for column in range(columns)]
        assert tiles[0].core[0] == x0
        assert all(a.core[2] == b.core[0] for a, b in pairwise(tiles))
        assert all(tile.core[0] < tile.core[2] for tile in tiles)
        assert tiles[-1].core[2] >= x0 + width - 1e-6
        assert tiles[-1].core[0] < x0 + width  # the last tile is needed
    column_of = [grid.tile(row, 0) for row in range(rows)]
    assert column_of[0].core[1] == y0
    assert all(a.core[3] == b.core[1] for a, b in pairwise(column_of))
    assert column_of[-1].core[3] >= y0 + height - 1e-6
    assert column_of[-1].core[1] < y0 + height


@pytest.mark.parametrize(
    "options",
    [
        {"mpp": 0.0},
        {"mpp": -1.0},
        {"tile_size": 0},
        {"overlap": -1},
        {"tile_size": 8, "overlap": 4},
        {"slide_mpp": (0.5, 0.0)},
    ],
)
def test_what_is_refused(options: dict[str, float]) -> None:
    settings = {"bounds": (0, 0, 9, 9), "slide_mpp": (1.0, 1.0), "mpp": 1.0, "tile_size": 8, "overlap": 0}
    with pytest.raises(ConfigError):
        TileGrid(**{**settings, **options})  # type: ignore[arg-type]


def test_the_largest_overlap_leaves_a_core() -> None:
    assert TileGrid((0, 0, 9, 9), (1, 1), 1, tile_size=8, overlap=3).core_size == 2
