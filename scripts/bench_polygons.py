"""Measure polygons from a label mask beside rasterio and OpenCV, and tissue and tiles of a slide; all in one run.

The mask has round blobs, most with a hole. Every tool goes from the pixels to shapely polygons with their holes; for
OpenCV the contours alone are timed as well. Times are CPU seconds of one thread, medians of the repeats.

    pip install rasterio opencv-python-headless
    python scripts/bench_polygons.py
    python scripts/bench_polygons.py --slide slide.svs
"""

from __future__ import annotations

import argparse
import importlib.util
import statistics
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import shapely
import tifffile
from scipy import ndimage

from pyhisto.bands import BandPolygons
from pyhisto.labels import PolygonSettings, label_map_to_polygons, mask_to_polygons, rasterise
from pyhisto.slide import Slide
from pyhisto.tiling import TileGrid
from pyhisto.tissue import detect_tissue

MPP = 0.25
TILE = 256


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=10_000, help="of the mask, pixels")
    parser.add_argument("--blobs", type=int, default=2_000)
    parser.add_argument("--holes", type=int, default=1_400)
    parser.add_argument("--band", type=int, default=512, help="rows of a band")
    parser.add_argument("--slide", type=Path, help="a slide for tissue and tiles; one is made by default")
    parser.add_argument("--slide-side", type=int, default=20_000, help="of the slide that is made, pixels")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    labels = make_labels(options.side, options.blobs, options.holes)
    compare(labels, options.repeats)
    measure_bands(labels > 0, options.band)
    with tempfile.TemporaryDirectory() as folder:
        path = options.slide or make_slide(Path(folder) / "slide.tif", options.slide_side)
        measure_tissue(path, options.repeats)


def make_labels(side: int, blobs: int, holes: int) -> Any:
    """Return a label map, int32 (side, side), with blobs 1, 2, ... of which the first have a hole."""
    across = int(np.ceil(np.sqrt(blobs)))
    step = side / across
    number = np.arange(blobs)
    centre = np.stack([number % across + 0.5, number // across + 0.5], axis=-1)[:, None] * step
    angle = np.linspace(0, 2 * np.pi, 60, endpoint=False)
    phase = np.random.default_rng(0).uniform(0, 2 * np.pi, (2, blobs, 1))
    radius = 0.36 * step * (1 + 0.15 * np.sin(3 * angle + phase[0]) + 0.08 * np.sin(7 * angle + phase[1]))
    around = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=-1)
    shapes = shapely.polygons(centre + around)
    shapes[:holes] = shapely.difference(shapes[:holes], shapely.polygons((centre + 0.35 * around)[:holes]))
    return rasterise(shapes, range(1, blobs + 1), (side, side))


def cpu_seconds(work: Callable[[], Any], repeats: int) -> tuple[float, Any]:
    """Return the median CPU time of some work, and what it returned; the first time, with its imports, counts not."""
    times, result = [], work()
    for _ in range(repeats):
        started = time.process_time()
        result = work()
        times.append(time.process_time() - started)
    return statistics.median(times), result


def compare(labels: Any, repeats: int) -> None:
    mask = labels > 0
    pixels = PolygonSettings(outline="pixels")
    rows: list[tuple[str, Callable[[], Any]]] = [
        ("pyhisto, edges of pixels", lambda: mask_to_polygons(mask, outline="pixels")),
        ("pyhisto, half-way", lambda: mask_to_polygons(mask)),
        ("pyhisto, half-way, simplified to 0.5 px", lambda: mask_to_polygons(mask, tolerance=0.5)),
        ("pyhisto, label map, edges of pixels", lambda: label_map_to_polygons(labels, pixels)[0]),
        *others(labels, mask),
    ]
    print(f"{mask.shape[1]} x {mask.shape[0]} px, {labels.max()} blobs, {np.count_nonzero(mask)} px in them\n")
    print(f"{'':42}{'CPU s':>8}{'polygons':>10}{'holes':>8}{'invalid':>9}{'area ratio':>12}")
    for name, work in rows:
        seconds, shapes = cpu_seconds(work, repeats)
        if shapes is None:
            print(f"{name:42}{seconds:8.2f}")
            continue
        holes = shapely.get_num_interior_rings(shapes).sum()
        invalid = (~shapely.is_valid(shapes)).sum()
        ratio = shapely.area(shapes).sum() / np.count_nonzero(mask)
        print(f"{name:42}{seconds:8.2f}{len(shapes):10}{holes:8}{invalid:9}{ratio:12.4f}")


def others(labels: Any, mask: Any) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Yield what other tools do, as far as they are installed."""
    missing = [name for name in ("rasterio", "cv2") if importlib.util.find_spec(name) is None]
    if missing:
        print(f"NOT COMPARED with {' and '.join(missing)}: pip install rasterio opencv-python-headless\n")
    if "rasterio" not in missing:
        from rasterio.features import shapes as rasterio_shapes

        def by_rasterio(values: Any) -> Any:
            return [shapely.geometry.shape(outline) for outline, _ in rasterio_shapes(values, mask=mask)]

        binary = mask.astype(np.uint8)
        yield "rasterio.features.shapes", lambda: by_rasterio(binary)
        yield "rasterio.features.shapes, label map", lambda: by_rasterio(labels)
    if "cv2" not in missing:
        import cv2

        byte = mask.astype(np.uint8)

        def contours() -> Any:
            return cv2.findContours(byte, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)

        def by_opencv() -> Any:
            lines, tree = contours()
            rings = [line[:, 0] for line in lines]
            holes: dict[int, list[Any]] = {}
            for at, outer in enumerate(tree[0, :, 3]):
                if outer >= 0 and len(rings[at]) > 2:
                    holes.setdefault(int(outer), []).append(rings[at])
            outer_ones = np.flatnonzero(tree[0, :, 3] < 0).tolist()
            return [shapely.Polygon(rings[at], holes.get(at)) for at in outer_ones if len(rings[at]) > 2]

        def contours_alone() -> None:
            contours()

        yield "OpenCV findContours alone", contours_alone
        yield "OpenCV findContours", by_opencv


def measure_bands(mask: Any, rows: int) -> None:
    """Say what memory the polygons of a mask take whole, in bands, and in bands of a mask four times as high."""
    settings = PolygonSettings(outline="pixels", min_area=1e9)  # none is kept: what is left is the work itself
    print(f"\n{'memory beside the mask (nothing kept)':42}{'MiB':>8}")

    def in_bands(times: int) -> None:
        bands = BandPolygons(settings)
        for repeat in range(times):
            for top in range(0, len(mask), rows):
                bands.add(mask[top : top + rows], repeat * len(mask) + top)
        bands.finish()

    def whole() -> None:
        label_map_to_polygons(mask, settings)

    works = (("at once", whole), (f"bands of {rows}", lambda: in_bands(1)), ("four times as high", lambda: in_bands(4)))
    for name, work in works:
        tracemalloc.start()
        work()
        print(f"  {name:40}{tracemalloc.get_traced_memory()[1] / (1 << 20):8.0f}")
        tracemalloc.stop()


def make_slide(path: Path, side: int) -> Path:
    """Write a pyramidal TIFF of a slide with textured tissue on glass, levels 1, 4 and 16."""
    random = np.random.default_rng(0)
    field = ndimage.gaussian_filter(random.normal(size=(200, 200)), 8)
    tissue = field > np.quantile(field, 0.6)
    grain = random.integers(-12, 12, (TILE, TILE, 3), dtype=np.int16)
    colours = [(np.array(colour) + grain).clip(0, 255).astype(np.uint8) for colour in ((240,) * 3, (200, 150, 180))]

    def tiles(size: int) -> Iterator[Any]:
        for y in range(0, size, TILE):
            for x in range(0, size, TILE):
                yield colours[int(tissue[y * 200 // size, x * 200 // size])]

    with tifffile.TiffWriter(path, bigtiff=True) as tiff:
        for downsample in (1, 4, 16):
            size = side // downsample
            resolution = (1e4 / (MPP * downsample),) * 2
            tiff.write(
                tiles(size), shape=(size, size, 3), dtype=np.uint8, tile=(TILE, TILE), photometric="rgb",
                compression="jpeg", subfiletype=int(downsample > 1), resolution=resolution, resolutionunit="CENTIMETER",
            )  # fmt: skip
    return path


def measure_tissue(path: Path, repeats: int) -> None:
    def work() -> tuple[int, int]:
        with Slide(path) as slide:
            found = detect_tissue(slide)
            region = shapely.union_all(found.geometry.to_numpy())
            grid = TileGrid(region.bounds, slide.mpp, 2 * slide.mean_mpp, TILE)
            return len(found), sum(1 for _ in grid.tiles(region))

    seconds, (pieces, tiles) = cpu_seconds(work, repeats)
    with Slide(path) as slide:
        width, height = slide.dimensions
    print(f"\ntissue and tiles of {width} x {height} px: {seconds:.2f} CPU s, {pieces} pieces, {tiles} tiles")


if __name__ == "__main__":
    main()
