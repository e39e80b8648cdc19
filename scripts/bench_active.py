"""How long it takes to propose regions on large slides from stored maps.

    python scripts/bench_active.py [--slides 3] [--side 40000] [--mpp 0.5] [--regions 20]

The maps (two classes, entropy) and the overviews are made up: smooth noise in one blot of tissue. Maps are read
from the files that a run keeps, the overview is an array. CPU seconds are user and system time of all threads, a slide
where a step is one of a slide: reading maps, quality and candidates (with features), then choosing over all slides.
"""

from __future__ import annotations

import argparse
import math
import tempfile
import time
from pathlib import Path

import numpy as np
import scipy.ndimage as ndi
import shapely

from pyhisto.active.candidates import SlideView, candidates
from pyhisto.active.grid import MOST_PIXELS, OVERVIEW_UM, Grid, Overview
from pyhisto.active.regions import RegionSettings
from pyhisto.active.scores import class_frequencies
from pyhisto.active.select import select
from pyhisto.active.strategy import parse_strategy
from pyhisto.maps import DEFAULT_UM, Maps, read_maps, write_maps
from pyhisto.maps import MOST_PIXELS as MOST_MAP_PIXELS

STRATEGIES = ("entropy+diversity", "entropy+rarity+diversity", "diversity", "random")


def smooth(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    """Return smooth noise with values from 0 to 1, float32."""
    coarse = rng.random((shape[0] // 16 + 2, shape[1] // 16 + 2)).astype(np.float32)
    return ndi.zoom(coarse, 16, order=1)[: shape[0], : shape[1]]


def made_up_maps(rng: np.random.Generator, side_um: float, mpp: float) -> Maps:
    """Return maps of a slide: two classes and the entropy."""
    um = max(DEFAULT_UM, side_um / math.sqrt(MOST_MAP_PIXELS))
    side = math.ceil(side_um / um)
    tumour = smooth(rng, (side, side))
    values = np.stack([tumour * 0.9, (1 - tumour) * 0.1, 4 * tumour * (1 - tumour)])
    layers = ("Tumor probability", "Stroma probability", "Entropy")
    return Maps(layers, values.astype(np.float32), (0.0, 0.0), (um / mpp, um / mpp), um)


def made_up_overview(rng: np.random.Generator, side_um: float, mpp: float) -> Overview:
    """Return an overview whose tissue is purple noise."""
    um = max(OVERVIEW_UM, side_um / math.sqrt(MOST_PIXELS))
    side = math.floor(side_um / um)
    noise = rng.normal(0, 12, (side, side)).astype(np.float32) + 60 * smooth(rng, (side, side))
    rgb = np.stack([200 - noise, 160 - noise, 210 - noise], axis=-1).clip(0, 255).astype(np.uint8)
    rgb[: side // 20] = 242
    return Overview(rgb, Grid((0.0, 0.0), (um / mpp, um / mpp), um, (side, side)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slides", type=int, default=3, help="how many slides compete for the budget")
    parser.add_argument("--side", type=int, default=40_000, help="width and height of a slide, px")
    parser.add_argument("--mpp", type=float, default=0.5, help="pixel size, µm")
    parser.add_argument("--regions", type=int, default=20, help="regions that the budget suffices for")
    options = parser.parse_args()
    rng = np.random.default_rng(0)
    side_um = options.side * options.mpp
    tissue = [shapely.Point(options.side / 2, options.side / 2).buffer(options.side * 0.42)]
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / "maps" / f"{number}.npz" for number in range(options.slides)]
        for file in files:
            write_maps(file, made_up_maps(rng, side_um, options.mpp))
        overviews = [made_up_overview(rng, side_um, options.mpp) for _ in files]
        print(f"{options.slides} slides of {options.side}² px at {options.mpp:g} µm/px")
        for name in STRATEGIES:
            for shape in ("square", "adaptive") if "entropy" in name else ("square",):
                propose(name, RegionSettings(shape=shape), files, overviews, tissue, options.regions)


def propose(
    name: str,
    settings: RegionSettings,
    files: list[Path],
    overviews: list[Overview],
    tissue: list[shapely.Polygon],
    regions: int,
) -> None:
    """Propose by one strategy, and print what it took."""
    strategy = parse_strategy(name)
    begin = time.process_time()
    views = [
        SlideView(file.stem, overview, tissue, (read_maps(file),) if strategy.informed else ())
        for file, overview in zip(files, overviews, strict=True)
    ]
    frequencies = None
    if strategy.rarity:
        frequencies = class_frequencies((v.maps[0], Grid.of(v.maps[0]).inside(tissue)) for v in views)
    read = time.process_time()
    found = [
        c for n, view in enumerate(views) for c in candidates(view, strategy, settings, frequencies=frequencies, seed=n)
    ]
    looked = time.process_time()
    chosen = select(found, budget=regions * settings.side_um**2 / 1e6, strategy=strategy)
    end = time.process_time()
    per_slide = [(later - earlier) / len(files) for earlier, later in ((begin, read), (read, looked))]
    print(
        f"{name:26} {settings.shape:9} reading {per_slide[0]:5.2f} s, candidates {per_slide[1]:5.2f} s a slide; "
        f"choosing {len(chosen)} of {len(found)} {end - looked:5.2f} s; "
        f"one slide alone {sum(per_slide) + end - looked:5.2f} s"
    )


if __name__ == "__main__":
    main()
