"""From slides to tissue annotations and to class probabilities, window by window."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeAlias

import geopandas as gpd
import numpy as np
import numpy.typing as npt
import scipy.ndimage as ndi

from pyhisto.bundle import Bundle
from pyhisto.errors import ConfigError
from pyhisto.labels import mask_to_polygons, rasterise
from pyhisto.objects import concat_objects, empty_objects, make_objects
from pyhisto.slide import Slide
from pyhisto.tiling import Tile, TileGrid

__all__ = ["PLAIN", "Lens", "predict_probabilities", "predict_tissue", "read_ahead"]

WINDOW_TILES = 4
"""Network tiles along a side of the window that is read at once."""

HEAT_FACTOR = 4
"""Model pixels along a side of one pixel of the class maps; the maps are all that grow with the slide."""

TISSUE_NUMBERS = ("threshold", "sigma_um", "min_area_um2", "min_hole_area_um2", "simplify_um")
"""What the post-processing of a tissue model must say."""

Progress = Callable[[int, int], None]
Rgb: TypeAlias = npt.NDArray[np.uint8]


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


@dataclass(frozen=True)
class Lens:
    """How a slide is shown to a network that was trained on other slides; what is measured stays as it is.

    Attributes
    ----------
    size
        Nucleus size of this slide divided by that of the training slides, at the declared pixel sizes: the network
        sees tiles of ``spec.mpp * size`` µm/px, in which nuclei are as large as it knows them.
    colours
        Gives RGB uint8 (H, W, 3) the stain colours of the training slides; None leaves them.
    """

    size: float = 1.0
    colours: Callable[[Rgb], Rgb] | None = None

    def see(self, rgb: Rgb) -> Rgb:
        """Return a tile in the colours that the network sees."""
        return rgb if self.colours is None else self.colours(rgb)


PLAIN = Lens()
"""Shows a slide as it is."""


def predict_tissue(
    slide: Slide, bundle: Bundle, region: Any, *, lens: Lens = PLAIN, progress: Progress | None = None
) -> gpd.GeoDataFrame:
    """Segment the tissue classes of a model inside a region of a slide.

    A pixel is of a class where the class is more probable than the threshold and than any other class but background.

    Parameters
    ----------
    slide
        An open slide with a pixel size.
    bundle
        A model of the kind ``tissue_segmentation``. Its post-processing names ``threshold``, ``sigma_um``,
        ``min_area_um2``, ``min_hole_area_um2`` and ``simplify_um``.
    region
        shapely Polygon or MultiPolygon to look in, level-0 px; usually the tissue.
    lens
        How the network sees the slide.
    progress
        Called after each window with the number done and the number in all.

    Returns
    -------
    geopandas.GeoDataFrame
        Path-object table of annotations, level-0 px, of each class that the bundle names, with the measurement
        ``<class> probability`` (mean over the annotation).

    Raises
    ------
    ConfigError
        If the bundle is of another kind or lacks a number for the post-processing.
    """
    spec = bundle.spec
    if spec.kind != "tissue_segmentation":
        raise ConfigError(f"model of the kind {spec.kind}", expected="tissue_segmentation")
    missing = sorted(set(TISSUE_NUMBERS) - set(spec.postprocessing))
    if missing:
        raise ConfigError(f"{bundle.path}: post-processing without {missing[0]}", expected=", ".join(TISSUE_NUMBERS))
    if region.is_empty:
        return empty_objects()
    core = WINDOW_TILES * (spec.tile_size - 2 * spec.overlap) // HEAT_FACTOR * HEAT_FACTOR
    grid = TileGrid(region.bounds, slide.mpp, spec.mpp * lens.size, core + 2 * spec.overlap, spec.overlap)
    tiles = list(grid.tiles(region))
    rows, columns = grid.shape
    side = core // HEAT_FACTOR
    heat = np.zeros((len(spec.classes) - 1, rows * side, columns * side), dtype=np.uint8)
    for done, (tile, rgb) in enumerate(read_ahead(slide, grid, tiles), start=1):
        wanted = rasterise([region], [1], (core, core), origin=tile.core[:2], scale=grid.downsample) > 0
        probability = predict_probabilities(lens.see(rgb), bundle, wanted=wanted, context=spec.overlap)[1:]
        probability[:, ~wanted] = 0
        coarse = probability.reshape(-1, side, HEAT_FACTOR, side, HEAT_FACTOR).mean(axis=(2, 4))
        y, x = tile.row * side, tile.column * side
        heat[:, y : y + side, x : x + side] = np.round(coarse * 255)
        if progress is not None:
            progress(done, len(tiles))
    return _tissue_objects(heat, bundle, grid)


def _tissue_objects(heat: npt.NDArray[np.uint8], bundle: Bundle, grid: TileGrid) -> gpd.GeoDataFrame:
    """Turn the maps of class probabilities, uint8 (classes, H, W), 255 is certain, into annotations."""
    wanted = bundle.spec.postprocessing
    pixel_um = grid.mpp * HEAT_FACTOR
    scale = (grid.downsample[0] * HEAT_FACTOR, grid.downsample[1] * HEAT_FACTOR)
    origin = (grid.bounds[0], grid.bounds[1])
    sigma = wanted["sigma_um"] / pixel_um
    smooth = np.stack([ndi.gaussian_filter(channel.astype(np.float32) / 255, sigma) for channel in heat])
    best = smooth.argmax(axis=0)
    tables = []
    for number, tissue in enumerate(bundle.spec.classes[1:]):
        if tissue.classification is None:
            continue
        polygons = mask_to_polygons(
            (smooth[number] > wanted["threshold"]) & (best == number),
            origin=origin,
            scale=scale,
            min_area=wanted["min_area_um2"] / pixel_um**2,
            min_hole_area=wanted["min_hole_area_um2"] / pixel_um**2,
            tolerance=wanted["simplify_um"] / pixel_um,
        )
        if polygons:
            certainty = [_mean_inside(smooth[number], polygon, origin, scale) for polygon in polygons]
            table = make_objects(
                polygons,
                object_type="annotation",
                classification=tissue.classification,
                measurements={f"{tissue.classification} probability": certainty},
            )
            tables.append(table)
    return concat_objects(tables)


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
