"""Which tiles are cut, what the network sees of them, and how they are weighted."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import shapely

from pyhisto.inference import Frame
from pyhisto.inference.grid import TileShape
from pyhisto.inference.partition import (
    CELL_PX,
    TILE_COST,
    TILE_COST_PX,
    Tiles,
    cells_of_mask,
    cells_of_region,
    cut_tiles,
    whole_tiles,
)
from pyhisto.inference.plan import TilePlan, tiles_of_mask, tiles_of_region
from pyhisto.loops.cuts import cheapest_cuts

SHAPE = TileShape(tile_size=1024, overlap=96, stride=32, least=128)
NEAR, FAR = 24, 96
"""What is seen beyond the end of what is wanted, and where a neighbour goes on, px."""


def cells(width: int, height: int, *boxes: tuple[int, int, int, int]) -> np.ndarray[Any, Any]:
    out = np.zeros((height // CELL_PX, width // CELL_PX), dtype=np.uint8)
    for box in boxes:
        x0, y0, x1, y1 = (at // CELL_PX for at in box)
        out[y0:y1, x0:x1] = 1
    return out


def test_one_tile_with_a_rim() -> None:
    tiles = cut_tiles(SHAPE, cells(800, 800, (200, 320, 456, 600)), (800, 800))
    assert tiles.cores.tolist() == tiles.parts.tolist() == [[200, 320, 456, 600]]
    # 24 px more, 176 to 480 and 296 to 624, outwards to multiples of 32
    assert tiles.seen.tolist() == [[160, 288, 480, 640]]


def test_no_less_is_seen_than_in_training() -> None:
    tiles = cut_tiles(SHAPE, cells(800, 800, (200, 320, 208, 328)), (800, 800))
    assert tiles.seen.tolist() == [[160, 288, 288, 416]]
    odd = TileShape(tile_size=1024, overlap=96, stride=32, least=100)
    assert cut_tiles(odd, cells(800, 800, (200, 320, 208, 328)), (800, 800)).seen.tolist() == [[160, 288, 288, 416]]


def test_two_parts_far_from_each_other_get_a_tile_each() -> None:
    tiles = cut_tiles(SHAPE, cells(1600, 800, (0, 0, 160, 160), (1440, 600, 1600, 800)), (1595, 800))
    assert tiles.cores.tolist() == [[0, 0, 160, 160], [1440, 600, 1595, 800]]  # the last cell ends beyond the area
    assert tiles.parts.tolist() == tiles.cores.tolist()
    assert tiles.seen.tolist() == [[-32, -32, 192, 192], [1408, 576, 1632, 832]]


def test_what_is_too_large_is_cut_in_the_middle_and_seen_far_beyond() -> None:
    tiles = cut_tiles(SHAPE, cells(1536, 768, (0, 0, 1536, 768)), (1536, 768))
    assert tiles.cores.tolist() == [[0, 0, 768, 768], [768, 0, 1536, 768]]
    assert tiles.parts.tolist() == [[0, 0, 776, 768], [760, 0, 1536, 768]]
    assert tiles.seen.tolist() == [[-32, -32, 864, 800], [672, -32, 1568, 800]]


def test_an_arm_is_cut_off_if_that_saves_more_than_the_overlap() -> None:
    """An L of 768 px: one tile around it has 832² px, two have less."""
    tiles = cut_tiles(SHAPE, cells(768, 768, (0, 0, 128, 768), (0, 640, 768, 768)), (768, 768))
    assert len(tiles) == 2
    (upper,) = (row for row, core in enumerate(tiles.cores.tolist()) if core[1] == 0)
    x0, y0, x1, y1 = tiles.cores[upper].tolist()
    assert (x0, y0, x1) == (0, 0, 128)
    assert y1 in range(512, 769)


def covered(tiles: Tiles, shape: tuple[int, int]) -> np.ndarray[Any, Any]:
    out = np.zeros(shape, dtype=np.int64)
    for x0, y0, x1, y1 in tiles.cores.tolist():
        out[y0:y1, x0:x1] += 1
    return out


def cost(tiles: Tiles) -> float:
    pixels = (tiles.seen[:, 2:] - tiles.seen[:, :2]).prod(axis=1)
    return float((pixels + np.minimum(TILE_COST * pixels, TILE_COST_PX)).sum())


@pytest.mark.parametrize("seed", range(6))
def test_each_wanted_pixel_is_in_one_core_and_well_inside_what_is_seen(seed: int) -> None:
    rng = np.random.default_rng(seed)
    width, height = rng.integers(900, 5000, 2).tolist()
    mask = np.zeros((height, width), dtype=bool)
    for _ in range(int(rng.integers(1, 9))):
        x, y = rng.integers(0, (width, height))
        w, h = rng.integers(1, 1200, 2)
        mask[y : y + h, x : x + w] = True
    tiles = tiles_of_mask(SHAPE, mask)
    assert (covered(tiles, mask.shape)[mask] == 1).all()
    assert covered(tiles, mask.shape).max() == 1
    side = tiles.seen[:, 2:] - tiles.seen[:, :2]
    assert side.min() >= 128
    assert side.prod(axis=1).max() <= 1024**2
    assert (tiles.seen % 32 == 0).all()
    for core, part, seen in zip(tiles.cores.tolist(), tiles.parts.tolist(), tiles.seen.tolist(), strict=True):
        beside = (
            mask[core[1] : core[3], max(0, core[0] - 1) : core[0]],
            mask[max(0, core[1] - 1) : core[1], core[0] : core[2]],
            mask[core[1] : core[3], core[2] : core[2] + 1],
            mask[core[3] : core[3] + 1, core[0] : core[2]],
        )
        for side, (pixels, outwards) in enumerate(zip(beside, (-1, -1, 1, 1), strict=True)):
            assert (seen[side] - core[side]) * outwards >= (FAR if pixels.any() else NEAR)
            # something may be wanted of the cell beside it, if not of the pixels
            assert (part[side] - core[side]) * outwards in ((8,) if pixels.any() else (0, 8))
    whole = TileShape(1024, 96, 1, None)
    assert cost(tiles) <= cost(tiles_of_mask(whole, mask))


def test_many_small_tiles() -> None:
    mask = np.ones((4000, 3000), dtype=bool)
    mask[:, 1000:1304] = False
    tiles = tiles_of_mask(TileShape(tile_size=256, overlap=32, stride=32, least=64), mask)
    assert len(tiles) > 400
    np.testing.assert_array_equal(covered(tiles, mask.shape), mask)
    assert (tiles.seen[:, 2:] - tiles.seen[:, :2]).prod(axis=1).max() <= 256**2


def by_trying(occupied: np.ndarray[Any, Any], lines: list[int], rows: list[int]) -> float:
    """The least cost of all guillotine partitions, by recursion over masks."""
    ys, xs = np.nonzero(occupied[rows[0] : rows[-1], lines[0] : lines[-1]])
    if len(ys) == 0:
        return 0.0
    x0, x1, y0, y1 = xs.min() + lines[0], xs.max() + lines[0] + 1, ys.min() + rows[0], ys.max() + rows[0] + 1
    beyond = np.pad(occupied, 1)
    flags = (
        beyond[y0 + 1 : y1 + 1, x0].any(),
        beyond[y0, x0 + 1 : x1 + 1].any(),
        beyond[y0 + 1 : y1 + 1, x1 + 1].any(),
        beyond[y1 + 1, x0 + 1 : x1 + 1].any(),
    )
    left, top, right, bottom = ((60 if flag else 20) for flag in flags)
    wide = math.ceil((x1 * 8 + right) / 16) * 16 - math.floor((x0 * 8 - left) / 16) * 16
    high = math.ceil((y1 * 8 + bottom) / 16) * 16 - math.floor((y0 * 8 - top) / 16) * 16
    found = []
    pixels = max(wide, 64) * max(high, 64)
    if pixels <= 320**2:
        found.append(pixels + min(0.5 * pixels, 9000.0))
    found += [
        by_trying(occupied, lines[: k + 1], rows) + by_trying(occupied, lines[k:], rows)
        for k in range(1, len(lines) - 1)
    ]
    found += [
        by_trying(occupied, lines, rows[: k + 1]) + by_trying(occupied, lines, rows[k:])
        for k in range(1, len(rows) - 1)
    ]
    return min(found)


@pytest.mark.parametrize("seed", range(4))
def test_no_partition_costs_less(seed: int) -> None:
    rng = np.random.default_rng(seed)
    occupied = np.zeros((40, 44), dtype=np.uint8)
    for x, y, w, h in zip(*rng.integers(0, (40, 40, 20, 20), (5, 4)).T, strict=True):
        occupied[y : y + h, x : x + w] = 1
    rows, lines = [3, 10, 20, 30, 39], [0, 12, 22, 30, 41]
    found = cheapest_cuts(occupied, np.array(rows), np.array(lines), 8, (20, 60), (64, 320**2, 16), (0.5, 9000.0))
    reach = np.where(found[:, 4:], 60, 20)
    low = (found[:, :2] * 8 - reach[:, :2]) // 16 * 16
    high = -((-found[:, 2:4] * 8 - reach[:, 2:]) // 16) * 16
    pixels = np.maximum(high - low, 64).prod(axis=1)
    assert (pixels + np.minimum(0.5 * pixels, 9000)).sum() == by_trying(occupied, lines, rows)


@pytest.mark.parametrize("seed", range(20))
def test_no_cell_that_a_region_touches_is_missed(seed: int) -> None:
    rng = np.random.default_rng(seed)
    width, height = rng.integers(20, 400, 2).tolist()
    downsample = (float(rng.uniform(0.3, 5)), float(rng.uniform(0.3, 5)))
    frame = Frame(*rng.uniform(-50, 50, 2), width, height, downsample, 1.0)
    line = shapely.LineString([frame.position(*(rng.uniform(-0.2, 1.2, 2) * (width, height))) for _ in range(4)])
    disk = shapely.Point(frame.position(width * rng.random(), height * rng.random())).buffer(rng.uniform(0.1, 90))
    region = disk.symmetric_difference(line.buffer(rng.uniform(0.01, 6)))
    found = cells_of_region(region, frame, 0)
    y, x = np.indices(found.shape).reshape(2, -1) * CELL_PX
    boxes = frame.boxes(np.column_stack([x, y, x + CELL_PX, y + CELL_PX]))
    touched = (shapely.area(shapely.intersection(boxes, region)) > 1e-9).reshape(found.shape)
    assert found[touched].all()
    near = shapely.intersects(boxes, region.buffer(1.5 * CELL_PX * max(downsample))).reshape(found.shape)
    assert not found[~near].any()


def test_the_margin_around_a_region() -> None:
    frame = Frame(100.0, 200.0, 160, 120, (2.0, 2.0), 1.0)
    region = shapely.box(100 + 2 * 60, 200 + 2 * 50, 100 + 2 * 63, 200 + 2 * 53)  # 60 to 63 and 50 to 53 px
    assert np.argwhere(cells_of_region(region, frame, 0)).tolist() == [[6, 7]]
    found = cells_of_region(region, frame, 9)  # two cells
    assert np.argwhere(found).min(axis=0).tolist() == [4, 5]
    assert np.argwhere(found).max(axis=0).tolist() == [8, 9]
    assert found.sum() == 25


def test_cells_of_a_mask() -> None:
    mask = np.zeros((17, 9), dtype=bool)
    mask[16, 8] = mask[0, 7] = True
    assert cells_of_mask(mask).tolist() == [[1, 0], [0, 0], [0, 1]]


def test_whole_tiles_lie_on_a_grid() -> None:
    shape = TileShape(tile_size=240, overlap=40)
    assert (shape.core, shape.ramp) == (160, 8)
    asked: list[list[int]] = []

    def is_wanted(boxes: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        asked.extend(boxes.tolist())
        return np.asarray(boxes[:, 0] >= 160)

    tiles = whole_tiles(shape, (300, 200), is_wanted)
    assert asked == [[0, 0, 160, 160], [160, 0, 300, 160], [0, 160, 160, 200], [160, 160, 300, 200]]
    assert tiles.cores.tolist() == [[160, 0, 320, 160], [160, 160, 320, 320]]
    assert tiles.parts[0].tolist() == [152, -8, 328, 168]
    assert tiles.seen[0].tolist() == [120, -40, 360, 200]


def test_weights_of_neighbours_sum_to_one() -> None:
    tiles = cut_tiles(SHAPE, cells(1536, 768, (0, 0, 1536, 768)), (1536, 768))
    plan = TilePlan(tiles, ((0, 0, 1536, 768),), 1)
    (down, left), (_, right) = plan.weights(0, (0, 0, 776, 768)), plan.weights(1, (760, 0, 1536, 768))
    assert (down == 1).all()  # none is above or below
    assert (left[:760] == 1).all()
    np.testing.assert_allclose(left[760:] + right[:16], 1, atol=1e-12)
    assert right[0] == pytest.approx(np.sin(np.pi / 64) ** 2)  # the middle of the first of 16 pixels
    np.testing.assert_array_equal(plan.weights(1, (765, 3, 770, 5))[1], right[5:10])


def tiles(*seen: tuple[int, int, int, int]) -> Tiles:
    boxes = np.array(seen, dtype=np.int64)
    return Tiles(boxes, boxes, boxes)


def test_tiles_of_a_batch_are_of_one_size() -> None:
    plan = TilePlan(tiles((0, 0, 100, 90), (100, 0, 210, 80), (210, 0, 300, 300)), ((0, 0, 300, 300),), 4)
    # the first two have 110 x 90 px with little that is not theirs; the third one would make them three times as high
    assert plan.batches == [[(0, (0, 0, 110, 90)), (1, (100, 0, 210, 90))], [(2, (210, 0, 300, 300))]]
    assert [len(batch) for batch in TilePlan(plan.tiles, plan.reads, 1).batches] == [1, 1, 1]


def test_tiles_come_in_the_order_of_the_windows() -> None:
    boxes = [(0, 0, 100, 300), (100, 0, 200, 100), (100, 100, 200, 300)]
    plan = TilePlan(tiles(*boxes), ((0, 200, 200, 300), (0, 0, 200, 100), (100, 0, 200, 100)), 1)
    assert list(plan.order()) == [0, 2, 1]
    assert [plan.needed(read) for read in plan.reads] == [[0, 2], [0, 1], [1]]  # who shares an edge is not needed
    assert plan.uses().tolist() == [2, 2, 1]
    assert plan.most_pixels == 30_000


def test_a_small_region_of_a_large_slide() -> None:
    frame = Frame(0.0, 0.0, 30_000, 20_000, (1.0, 1.0), 0.5)
    region = shapely.MultiPolygon([shapely.box(10, 10, 200, 200), shapely.box(29_000, 19_000, 29_900, 19_800)])
    found = tiles_of_region(SHAPE, region, frame, 0)
    assert len(found) in (2, 3)  # a line between two blocks of tiles may cut one
    x0, y0, x1, y1 = found.cores.T
    assert (x0.min(), y0.min(), x1.max(), y1.max()) == (
        8,
        8,
        29_904,
        19_808,
    )  # the outline runs along the edge of a cell
