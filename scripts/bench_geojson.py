"""GeoJSON of many cells: this package against geopandas (pyogrio), both directions.

    python scripts/bench_geojson.py [CELLS] [REPEATS]

Cells have a boundary of 20 vertices, a nucleus of 12 and 10 measurements. geopandas writes the boundaries and the
measurement columns only, and reads the file that this package wrote. Prints medians of wall-clock seconds; the ways
take turns, so that a busy machine slows them all.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import shapely

from pyhisto.objects import make_objects, measurement_names
from qupath_ext.exchange.geojson import read_geojson, write_geojson

NAMES = ("Area", "Perimeter", "Circularity", "Max caliper", "Min caliper", "Eccentricity", "Hematoxylin OD mean",
         "Hematoxylin OD std dev", "DAB OD mean", "DAB OD std dev")  # fmt: skip


def outlines(centres: Any, vertices: int, radius: float, random: Any) -> Any:
    angle = np.arange(vertices) * 2 * np.pi / vertices
    reach = radius * random.uniform(0.9, 1.1, (len(centres), vertices))
    xy = centres[:, None, :] + reach[..., None] * np.stack([np.cos(angle), np.sin(angle)], axis=-1)
    return shapely.polygons(xy)


def synthetic_cells(n: int) -> gpd.GeoDataFrame:
    random = np.random.default_rng(0)
    centres = random.uniform(0, 50_000, (n, 2))
    return make_objects(
        outlines(centres, 20, 12, random),
        object_type="cell",
        nucleus=outlines(centres, 12, 6, random),
        classification=random.choice(["Tumor: Positive", "Tumor: Negative", "Stroma"], n).tolist(),
        measurements={f"Nucleus: {name}": random.uniform(0, 100, n).astype(np.float32) for name in NAMES},
    )


def seconds(work: Callable[[], Any]) -> float:
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def main() -> None:
    n = int(sys.argv[1]) if len(sys.argv) > 1 else 100_000
    repeats = int(sys.argv[2]) if len(sys.argv) > 2 else 5
    cells = synthetic_cells(n)
    plain = gpd.GeoDataFrame(cells[measurement_names(cells)].reset_index(drop=True), geometry=cells.geometry.to_numpy())
    warnings.filterwarnings("ignore", message="'crs' was not provided")
    with tempfile.TemporaryDirectory() as folder:
        ours, theirs = Path(folder) / "ours.geojson", Path(folder) / "theirs.geojson"
        ways: dict[str, Callable[[], Any]] = {
            "write": lambda: write_geojson(ours, cells),
            "write, geopandas": lambda: plain.to_file(theirs, driver="GeoJSON", engine="pyogrio"),
            "read": lambda: read_geojson(ours),
            "read, geopandas": lambda: gpd.read_file(ours, engine="pyogrio"),
        }
        times: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(repeats):
            for name, work in ways.items():
                times[name].append(seconds(work))
        size = ours.stat().st_size / 1e6
    median = {name: statistics.median(values) for name, values in times.items()}
    print(f"{n} cells, {size:.0f} MB, median of {repeats}\n")
    print("| direction | this package, s | geopandas, s | times faster |\n|---|---|---|---|")
    for direction in ("write", "read"):
        mine, other = median[direction], median[f"{direction}, geopandas"]
        print(f"| {direction} | {mine:.2f} | {other:.2f} | {other / mine:.1f} |")


if __name__ == "__main__":
    main()
