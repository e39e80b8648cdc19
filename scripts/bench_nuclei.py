"""How much CPU time the post-processing of many nuclei takes: peaks, classes, outlines, seams, measurements, objects.

Probabilities and colours are those of a made-up tissue that repeats itself; they are laid out window by window, so that
the slide may be of any size. What is measured is CPU time, user and system, of every stage and of all, without the
making of the windows. The first run compiles the loops and keeps the machine code; that is not measured.

    python scripts/bench_nuclei.py --nuclei 1000000 --density 5000
"""

from __future__ import annotations

import argparse
import math
import resource
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.ndimage as ndi

from pyhisto.contours import Contours
from pyhisto.inference import Frame, PredictedWindow
from pyhisto.nuclei import network
from pyhisto.nuclei.borders import Outlines
from pyhisto.nuclei.network import CellFinder
from pyhisto.stain import H_DAB

MPP = 0.5
PERIOD_PX = 1024
"""Side of the pattern that repeats itself."""

POSTPROCESSING = {"threshold": 0.35, "sigma_um": 1.0, "min_distance_um": 3.0, "reach_um": 7.0, "core_um": 1.5}
EXPANSION_UM = 5.0
CLASSES = ("Tumor: Positive", "Tumor: Negative")
REACH_PX = 16

STAGES: dict[str, tuple[tuple[Any, str], ...]] = {
    "peaks": ((network, "nucleus_probability"), (network, "find_peaks")),
    "nuclei": ((network, "edge_darkness"), (network, "label_peaks")),
    "growth": ((network, "expand_cells"),),
    "outlines": ((network, "nucleus_outlines"), (network, "cell_outlines"), (Outlines, "placed")),
    "measurements": ((network, "cell_measurements"),),
    "classes": ((network.loops, "votes"),),
    "polygons": ((Contours, "polygons"),),
    "table": ((network, "make_objects"),),
}
"""What is done in turn, and the functions that do it; none of them calls another of them."""


def pattern(density: float, seed: int = 0) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.float32], int]:
    """Return colours (H, W, 3), probabilities (5, H, W) and the number of nuclei of a piece that fits to itself.

    Ellipses of 4 to 9 µm on a jittered grid, of which three in ten are brown; `density` is in nuclei per mm².
    """
    rng = np.random.default_rng(seed)
    along = round(math.sqrt(density) * PERIOD_PX * MPP / 1000)
    step = PERIOD_PX / along
    grid = np.stack(np.meshgrid(np.arange(along), np.arange(along)), axis=-1).reshape(-1, 2)
    centres = (grid + 0.5 + rng.uniform(-0.3, 0.3, grid.shape)) * step
    rows, columns = np.mgrid[-REACH_PX : REACH_PX + 1, -REACH_PX : REACH_PX + 1]
    stain = np.full((2, PERIOD_PX, PERIOD_PX), 0.05)
    probability = np.zeros((5, PERIOD_PX, PERIOD_PX), dtype=np.float32)
    for x, y in centres:
        dx, dy = columns - x % 1, rows - y % 1
        where = np.ix_(*((np.arange(-REACH_PX, REACH_PX + 1) + int(c)) % PERIOD_PX for c in (y, x)))
        long, short, turn = rng.uniform(5.5, 9), rng.uniform(0.6, 1), rng.uniform(0, math.pi)
        across = (dx * math.cos(turn) + dy * math.sin(turn), dy * math.cos(turn) - dx * math.sin(turn))
        nucleus = 1 / (1 + np.exp(8 * (np.hypot(across[0] / long, across[1] / (long * short)) - 1)))
        brown = rng.random() < 0.3
        for channel, strength in ((0, 0.45), (1, 0.7 if brown else 0.0)):
            stain[channel][where] = np.maximum(stain[channel][where], strength * nucleus)
        distance = np.hypot(dx, dy)
        for channel, radius, height in ((1, 5, 0.9), (2, 9, 0.8)):
            seen = (height / (1 + np.exp(1.5 * (distance - radius)))).astype(np.float32)
            own = probability[channel + (0 if brown else 2)]
            own[where] = np.maximum(own[where], seen)
    probability /= np.maximum(probability.sum(axis=0), 1)
    probability[0] = 1 - probability[1:].sum(axis=0)
    stain += ndi.gaussian_filter(rng.normal(0, 0.25, stain.shape), (0, 1.2, 1.2), mode="wrap")
    density_of_light = np.tensordot(np.array(H_DAB.vectors[:2]).T, stain.clip(0), axes=1)
    rgb = np.array(H_DAB.background)[:, None, None] * 10**-density_of_light
    return np.moveaxis(rgb.clip(0, 255).round().astype(np.uint8), 0, -1), probability, len(centres)


def windows(
    rgb: npt.NDArray[np.uint8], probability: npt.NDArray[np.float32], columns: int, rows: int, side: int, margin: int
) -> Iterator[PredictedWindow]:
    """Yield the windows of a slide of `columns` x `rows` windows of `side` px, as the streaming inference does."""
    frame = Frame(0.0, 0.0, columns * side, rows * side, (1.0, 1.0), MPP)
    for number in range(columns * rows):
        y0, x0 = (number // columns) * side, (number % columns) * side
        read = (
            max(0, x0 - margin),
            max(0, y0 - margin),
            min(frame.width, x0 + side + margin),
            min(frame.height, y0 + side + margin),
        )
        over = np.arange(read[1], read[3]) % PERIOD_PX
        along = np.arange(read[0], read[2]) % PERIOD_PX
        seen = rgb[over[:, None], along]
        chance = np.stack([channel[over[:, None], along] for channel in probability])
        wanted = np.ones(seen.shape[:2], dtype=bool)
        yield PredictedWindow(number, frame, read, (x0, y0, x0 + side, y0 + side), seen, chance, wanted)


def timed(function: Callable[..., Any], stage: str, spent: Counter[str]) -> Callable[..., Any]:
    """Return a function that adds its CPU time, s, to that of a stage."""

    def measured(*arguments: Any, **options: Any) -> Any:
        begin = time.process_time()
        try:
            return function(*arguments, **options)
        finally:
            spent[stage] += time.process_time() - begin

    return measured


def memory_mb() -> float:
    """Return the greatest memory that this process had so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    """Run the benchmark and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nuclei", type=int, default=1_000_000)
    parser.add_argument("--density", type=float, default=5000, help="nuclei per mm² of tissue")
    parser.add_argument(
        "--window",
        type=int,
        default=network.WINDOW_PX,
        help="side of a window's own part, px; as in inference",
    )
    arguments = parser.parse_args()
    rgb, probability, each = pattern(arguments.density)
    needed = math.sqrt(arguments.nuclei / each) * PERIOD_PX / arguments.window
    columns = max(1, round(needed))
    rows = max(1, math.ceil(needed * needed / columns))
    finder = CellFinder(H_DAB, MPP, POSTPROCESSING, EXPANSION_UM / MPP)
    warm = CellFinder(H_DAB, MPP, POSTPROCESSING, EXPANSION_UM / MPP)
    warm.add(list(windows(rgb, probability, 3, 3, 256, finder.margin))[4])  # compiles, or loads what was compiled
    warm.objects(CLASSES)
    spent: Counter[str] = Counter()
    for stage, functions in STAGES.items():
        for owner, name in functions:
            setattr(owner, name, timed(getattr(owner, name), stage, spent))
    total = 0.0
    for window in windows(rgb, probability, columns, rows, arguments.window, finder.margin):
        begin = time.process_time()
        finder.add(window)
        total += time.process_time() - begin
    before = memory_mb()
    begin = time.process_time()
    n = len(finder.objects(CLASSES))
    total += time.process_time() - begin
    spent["all else"] = total - sum(spent.values())
    print(f"{n:,} cells on {columns * arguments.window} x {rows * arguments.window} px at {MPP} µm/px")
    print(f"peak memory {before:.0f} MB after the windows, {memory_mb():.0f} MB with the objects")
    print(f"{'stage':<14}{'CPU s':>8}{'CPU s for 1,000,000 cells':>28}")
    for stage, seconds in [*spent.items(), ("together", total)]:
        print(f"{stage:<14}{seconds:8.1f}{seconds / n * 1e6:28.1f}")


if __name__ == "__main__":
    main()
