"""From slides to tumour annotations and to class probabilities, window by window."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import geopandas as gpd
import numpy as np
import numpy.typing as npt
import scipy.ndimage as ndi

from pyhisto.bundle import Bundle
from pyhisto.errors import ConfigError
from pyhisto.labels import mask_to_polygons, rasterise
from pyhisto.objects import empty_objects, make_objects
from pyhisto.slide import Slide
from pyhisto.tiling import Tile, TileGrid

__all__ = ["predict_probabilities", "predict_tumour", "read_ahead"]

WINDOW_TILES = 4
"""Network tiles along a side of the window that is read at once."""

HEAT_FACTOR = 4
"""Model pixels along a side of one pixel of the tumour map; the map is all that grows with the slide."""

TUMOUR_NUMBERS = ("threshold", "sigma_um", "min_area_um2", "min_hole_area_um2", "simplify_um")
"""What the post-processing of a tumour model must say."""

Progress = Callable[[int, int], None]


def predict_probabilities(
    rgb: npt.NDArray[np.uint8],
    bundle: Bundle,
    *,
    wanted: npt.NDArray[np.bool_] | None = None,
    context: int = 0,
    batch_size: int = 8,
) -> npt.NDArray[np.float32]:
    """Return the class probabilities of a window of any size.

    The window is cut into tiles of the model's size; of each only the part inside the model's overlap is used, but at
    the window's own edge. What lies beyond the edge is mirrored.

    Parameters
    ----------
    rgb
        uint8, shape (height, width, 3), at the model's µm/px.
    bundle
        The model.
    wanted
        bool, shape of the result; tiles without a wanted pixel are left out and get probability 1 of channel 0.
    context
        Pixels on each side of `rgb` that the network sees but that are not predicted, 0 to the model's overlap.
    batch_size
        Tiles in one call of the network.

    Returns
    -------
    numpy.ndarray
        float32, shape (classes, height - 2 * context, width - 2 * context).
    """
    spec = bundle.spec
    height, width = rgb.shape[0] - 2 * context, rgb.shape[1] - 2 * context
    margin = spec.overlap - context  # what is missing around the window
    grid = TileGrid((0, 0, width, height), (1.0, 1.0), 1.0, spec.tile_size, spec.overlap)
    rows, columns = grid.shape
    bottom, right = rows * grid.core_size + margin - height, columns * grid.core_size + margin - width
    padded = np.pad(rgb, ((margin, bottom), (margin, right), (0, 0)), mode="symmetric")
    out = np.zeros((len(spec.classes), rows * grid.core_size, columns * grid.core_size), dtype=np.float32)
    out[0] = 1.0
    corners = [
        (row * grid.core_size, column * grid.core_size)
        for row in range(rows)
        for column in range(columns)
        if wanted is None or _core(wanted, row, column, grid.core_size).any()
    ]
    inner = slice(spec.overlap, spec.overlap + grid.core_size)
    for start in range(0, len(corners), batch_size):
        part = corners[start : start + batch_size]
        tiles = np.stack([padded[y : y + spec.tile_size, x : x + spec.tile_size] for y, x in part])
        for (y, x), probability in zip(part, bundle.predict(tiles), strict=True):
            out[:, y : y + grid.core_size, x : x + grid.core_size] = probability[:, inner, inner]
    return out[:, :height, :width]


def _core(wanted: npt.NDArray[np.bool_], row: int, column: int, size: int) -> npt.NDArray[np.bool_]:
    return wanted[row * size : (row + 1) * size, column * size : (column + 1) * size]


def read_ahead(slide: Slide, grid: TileGrid, tiles: list[Tile]) -> Iterator[tuple[Tile, npt.NDArray[np.uint8]]]:
    """Yield tiles with their pixels, RGB uint8 (tile_size, tile_size, 3); the next is read while one is worked on."""

    def read(tile: Tile) -> npt.NDArray[np.uint8]:
        return slide.read_tile(tile.x, tile.y, tile_size=grid.tile_size, mpp=grid.mpp)

    with ThreadPoolExecutor(max_workers=1) as pool:
        waiting = [pool.submit(read, tile) for tile in tiles[:1]]
        for number, tile in enumerate(tiles):
            rgb = waiting.pop().result()
            waiting.extend(pool.submit(read, following) for following in tiles[number + 1 : number + 2])
            yield tile, rgb


def predict_tumour(slide: Slide, bundle: Bundle, region: Any, *, progress: Progress | None = None) -> gpd.GeoDataFrame:
    """Segment the tumour inside a region of a slide.

    Parameters
    ----------
    slide
        An open slide with a pixel size.
    bundle
        A model of the kind ``tumour_segmentation``; channel 1 is tumour. Its post-processing names ``threshold``,
        ``sigma_um``, ``min_area_um2``, ``min_hole_area_um2`` and ``simplify_um``.
    region
        shapely Polygon or MultiPolygon to look in, level-0 px; usually the tissue.
    progress
        Called after each window with the number done and the number in all.

    Returns
    -------
    geopandas.GeoDataFrame
        Path-object table of annotations, level-0 px, with the measurement ``Tumor probability`` (mean over the
        annotation).

    Raises
    ------
    ConfigError
        If the bundle is of another kind or lacks a number for the post-processing.
    """
    spec = bundle.spec
    if spec.kind != "tumour_segmentation":
        raise ConfigError(f"model of the kind {spec.kind}", expected="tumour_segmentation")
    missing = sorted(set(TUMOUR_NUMBERS) - set(spec.postprocessing))
    if missing:
        raise ConfigError(f"{bundle.path}: post-processing without {missing[0]}", expected=", ".join(TUMOUR_NUMBERS))
    if region.is_empty:
        return empty_objects()
    core = WINDOW_TILES * (spec.tile_size - 2 * spec.overlap) // HEAT_FACTOR * HEAT_FACTOR
    grid = TileGrid(region.bounds, slide.mpp, spec.mpp, core + 2 * spec.overlap, spec.overlap)
    tiles = list(grid.tiles(region))
    rows, columns = grid.shape
    side = core // HEAT_FACTOR
    heat = np.zeros((rows * side, columns * side), dtype=np.uint8)
    for done, (tile, rgb) in enumerate(read_ahead(slide, grid, tiles), start=1):
        wanted = rasterise([region], [1], (core, core), origin=tile.core[:2], scale=grid.downsample) > 0
        probability = predict_probabilities(rgb, bundle, wanted=wanted, context=spec.overlap)[1]
        probability[~wanted] = 0
        coarse = probability.reshape(side, HEAT_FACTOR, side, HEAT_FACTOR).mean(axis=(1, 3))
        y, x = tile.row * side, tile.column * side
        heat[y : y + side, x : x + side] = np.round(coarse * 255)
        if progress is not None:
            progress(done, len(tiles))
    return _tumour_objects(heat, bundle, grid)


def _tumour_objects(heat: npt.NDArray[np.uint8], bundle: Bundle, grid: TileGrid) -> gpd.GeoDataFrame:
    """Turn the map of tumour probability (uint8, 255 is certain) into annotations."""
    wanted = bundle.spec.postprocessing
    pixel_um = grid.mpp * HEAT_FACTOR
    smooth = ndi.gaussian_filter(heat.astype(np.float32) / 255, wanted["sigma_um"] / pixel_um)
    scale = (grid.downsample[0] * HEAT_FACTOR, grid.downsample[1] * HEAT_FACTOR)
    origin = (grid.bounds[0], grid.bounds[1])
    polygons = mask_to_polygons(
        smooth > wanted["threshold"],
        origin=origin,
        scale=scale,
        min_area=wanted["min_area_um2"] / pixel_um**2,
        min_hole_area=wanted["min_hole_area_um2"] / pixel_um**2,
        tolerance=wanted["simplify_um"] / pixel_um,
    )
    if not polygons:
        return empty_objects()
    certainty = [_mean_inside(smooth, polygon, origin, scale) for polygon in polygons]
    return make_objects(
        polygons,
        object_type="annotation",
        classification=bundle.spec.classes[1].classification,
        measurements={"Tumor probability": certainty},
    )


def _mean_inside(
    values: npt.NDArray[np.floating[Any]], polygon: Any, origin: tuple[float, float], scale: tuple[float, float]
) -> float:
    """Return the mean of the pixels whose centre lies in a polygon; NaN if there is none."""
    x0, y0, x1, y1 = (np.array(polygon.bounds) - (*origin, *origin)) / (*scale, *scale)
    left, top = int(max(0, np.floor(x0))), int(max(0, np.floor(y0)))
    window = values[top : int(np.ceil(y1)), left : int(np.ceil(x1))]
    corner = (origin[0] + left * scale[0], origin[1] + top * scale[1])
    inside = rasterise([polygon], [1], window.shape, origin=corner, scale=scale) > 0
    return float(window[inside].mean()) if inside.any() else float("nan")
