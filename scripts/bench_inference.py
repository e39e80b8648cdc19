"""Measure inference on whole slides: speed against the bare network and MONAI's sliding window, memory by slide size.

The slides are made by mirroring a real one (or noise) into a tiled JPEG pyramid in a temporary folder. All speeds are
ratios of runs that alternate in one process, in wall time and in CPU time (which other work on the machine touches
less); medians of the repeats. "Bare" is the network alone on as many tiles of the same size, in the same batches and
precision, from memory.

    python scripts/bench_inference.py --slide CMU-1-Small-Region.svs
    python scripts/bench_inference.py --model models/tumour --device cuda --parts speed
    python scripts/bench_inference.py --parts memory --sizes 5000 10000 20000 40000
"""

from __future__ import annotations

import argparse
import functools
import gc
import itertools
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import shapely
import tifffile
import torch
from monai.inferers import SlidingWindowInferer

from pyhisto.bundle.files import ModelClass, ModelSpec, load_bundle, save_bundle
from pyhisto.heap import share_heap
from pyhisto.inference import InferenceSettings, predict_tissue
from pyhisto.models import build_model
from pyhisto.slide import Slide
from pyhisto.tissue import TissueSettings, detect_tissue

TILE, LEVELS = 256, 4
SOURCE_SIDE = TILE << (LEVELS - 1)
POSTPROCESSING = {
    "threshold": 0.5,
    "sigma_um": 8.0,
    "min_area_um2": 5000.0,
    "min_hole_area_um2": 5000.0,
    "simplify_um": 2.0,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slide", type=Path, help="real slide that is mirrored; smooth noise by default")
    parser.add_argument("--model", type=Path, help="bundle of a tissue model; one with random weights by default")
    parser.add_argument("--architecture", default="unet-resnet34", help="of the random one")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--engine", default="auto")
    parser.add_argument("--tile-size", type=int)
    parser.add_argument("--batch-size", type=int)
    parser.add_argument("--readers", type=int)
    parser.add_argument("--parts", nargs="+", default=["speed", "whole", "memory"], help="speed, whole, memory")
    parser.add_argument("--side", type=int, default=1536, help="of the tissue for the speed, model px")
    parser.add_argument("--whole", type=int, default=4096, help="width of the whole slide for the speed, px")
    parser.add_argument("--sizes", type=int, nargs="+", default=[5_000, 10_000, 20_000, 40_000])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, help="of torch")
    parser.add_argument("--folder", type=Path, help="where to write; a temporary folder by default")
    parser.add_argument("--peak", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    share_heap()  # as the command line does
    if options.threads:
        torch.set_num_threads(options.threads)
    if options.peak:
        print(json.dumps(measure_peak(options)))
        return
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        options.folder = Path(name)
        if {"speed", "whole"} & set(options.parts):
            bundle, plain = models(options)
            if "speed" in options.parts:
                bench_speed(options, bundle, plain)
            if "whole" in options.parts:
                bench_whole(options, bundle, plain)
        if "memory" in options.parts:
            bench_memory(options)


# ---------------------------------------------------------------------- slides and models
@functools.cache
def source(path: Path | None) -> np.ndarray[Any, Any]:
    """Return RGB uint8 (2048, 2048, 3) from the middle of a slide, mirrored where it is smaller."""
    if path is None:
        coarse = np.random.default_rng(0).integers(90, 256, (SOURCE_SIDE // 16, SOURCE_SIDE // 16, 3), dtype=np.uint8)
        return np.repeat(np.repeat(coarse, 16, axis=0), 16, axis=1)
    with Slide(path) as slide:
        width, height = (min(SOURCE_SIDE, length) for length in slide.dimensions)
        left, top = ((full - own) // 2 for full, own in zip(slide.dimensions, (width, height), strict=True))
        rgb = slide.read_downsampled(left, top, width, height, (1.0, 1.0))
    return np.pad(rgb, ((0, SOURCE_SIDE - height), (0, SOURCE_SIDE - width), (0, 0)), mode="symmetric")


def write_slide(path: Path, size: int, slide: Path | None) -> Path:
    """Write the source, mirrored again and again, as a pyramid of size x size px at 0.5 µm/px that OpenSlide reads."""
    image = source(slide)
    with tifffile.TiffWriter(path, bigtiff=True) as tiff:
        for level in range(LEVELS):
            side, shrink = size >> level, 1 << level
            level_image = image.reshape(SOURCE_SIDE // shrink, shrink, SOURCE_SIDE // shrink, shrink, 3).mean(
                axis=(1, 3)
            )
            tiff.write(
                jpeg_tiles(np.round(level_image).astype(np.uint8), side),
                shape=(side, side, 3),
                dtype=np.uint8,
                tile=(TILE, TILE),
                photometric="ycbcr",
                subsampling=(1, 1),
                compression="jpeg",
                resolution=(1e4 / (0.5 * shrink),) * 2,
                resolutionunit="CENTIMETER",
                subfiletype=int(level > 0),
                metadata=None,
            )
    return path


def jpeg_tiles(image: np.ndarray[Any, Any], side: int) -> Iterator[bytes]:
    """Yield the encoded tiles of the mirrored image; those of one period are encoded once."""
    across = len(image) // TILE

    @functools.cache
    def encoded(row: int, column: int) -> bytes:
        part = image
        for axis, number in enumerate((row, column)):
            flipped = number >= across
            start = (2 * across - 1 - number if flipped else number) * TILE
            part = np.take(part, range(start, start + TILE), axis=axis)
            part = np.flip(part, axis) if flipped else part
        return bytes(
            imagecodecs.jpeg8_encode(np.ascontiguousarray(part), level=85, colorspace="RGB", subsampling="444")
        )

    tiles = -(-side // TILE)
    for row, column in itertools.product(range(tiles), repeat=2):
        yield encoded(row % (2 * across), column % (2 * across))


def models(options: argparse.Namespace) -> tuple[Any, Any]:
    """Return the bundle, and its network as MONAI would run it: float32, not folded."""
    folder = options.model
    if folder is None:
        folder = options.folder / "model"
        classes = (ModelClass("background"), ModelClass("tumour", "Tumor"), ModelClass("stroma", "Stroma"))
        spec = ModelSpec("tissue_segmentation", options.architecture, classes, postprocessing=POSTPROCESSING)
        torch.manual_seed(0)
        model = build_model(spec.architecture, out_channels=3, decoder_channels=spec.decoder_channels)
        head = [module for module in model.modules() if isinstance(module, torch.nn.Conv2d)][-1]
        with torch.no_grad():
            head.weight.mul_(30)  # so that the output varies over a tile
        golden = source(options.slide)[: spec.tile_size, : spec.tile_size]
        save_bundle(folder, model, spec, golden_tile=golden, description="Random weights.")
    engine = {"precision": options.precision, "engine": options.engine}
    bundle = load_bundle(folder, kind="tissue_segmentation", device=options.device, **engine)
    spec = bundle.spec
    plain = build_model(spec.architecture, out_channels=spec.out_channels, decoder_channels=spec.decoder_channels)
    plain.load_state_dict(torch.load(folder / "models" / "model.pt", map_location="cpu", weights_only=True))
    threads = f"{torch.get_num_threads()} threads"
    print(f"{spec.architecture} on {options.device}, {threads}; {bundle.engine}, {bundle.precision}")
    print(f"tile and overlap {bundle.stream_tile}, tiles at once {bundle.tiles_at_once}")
    for note in bundle.notes:
        print(f"note: {note}")
    return bundle, plain.to(options.device).eval()


class Counted:
    """A bundle that counts its tiles and keeps the shape of its batches."""

    def __init__(self, bundle: Any) -> None:
        self._bundle = bundle
        self.shapes: list[tuple[int, ...]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._bundle, name)

    def predict(self, tiles: Any) -> Any:
        """Predict, and remember the shape."""
        self.shapes.append(tiles.shape)
        return self._bundle.predict(tiles)


# ---------------------------------------------------------------------- measuring
Times = tuple[float, float]


def timed(work: Callable[[], Any]) -> Times:
    gc.collect()
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - wall, time.process_time() - cpu


def alternating(works: dict[str, Callable[[], Any]], repeats: int) -> dict[str, list[Times]]:
    out: dict[str, list[Times]] = {name: [] for name in works}
    for _ in range(repeats):
        for name, work in works.items():
            out[name].append(timed(work))
    return out


def say_ratio(what: str, over: list[Times], under: list[Times]) -> None:
    wall, cpu = (statistics.median(a[clock] / b[clock] for a, b in zip(over, under, strict=True)) for clock in range(2))
    print(f"{what:<66} wall {wall:6.2f}   CPU {cpu:6.2f}")


def say_times(what: str, times: list[Times]) -> None:
    wall, cpu = (statistics.median(one[clock] for one in times) for clock in range(2))
    print(f"{what:<66} wall {wall:6.2f} s CPU {cpu:6.2f} s")


def settings_of(options: argparse.Namespace) -> InferenceSettings:
    return InferenceSettings(tile_size=options.tile_size, batch_size=options.batch_size, readers=options.readers)


def monai_window(slide: Slide, plain: Any, spec: ModelSpec, box: tuple[int, int, int, int], device: str) -> Any:
    """Read a box and predict it with MONAI's sliding window: float32, tiles and overlap as in training."""
    x0, y0, x1, y1 = box
    scale = slide.mpp[0] / spec.mpp
    rgb = slide.read_region(x0, y0, round((x1 - x0) * scale), round((y1 - y0) * scale), mpp=spec.mpp)
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (spec.channel_mean, spec.channel_std))
    image = (torch.from_numpy(rgb).permute(2, 0, 1)[None].float() / 255 - mean) / std
    inferer = SlidingWindowInferer(
        spec.tile_size, sw_batch_size=4, overlap=2 * spec.overlap / spec.tile_size, mode="gaussian", sw_device=device
    )
    with torch.inference_mode():
        return inferer(image, plain).softmax(dim=1)


def bench_speed(options: argparse.Namespace, bundle: Any, plain: Any) -> None:
    """Compare a square of tissue with the bare network and with MONAI's sliding window."""
    spec = bundle.spec
    path = write_slide(options.folder / "square.tif", options.side + 1024, options.slide)
    counted = Counted(bundle)
    with Slide(path) as slide:
        side = round(options.side * spec.mpp / slide.mpp[0])
        box = (512, 512, 512 + side, 512 + side)
        region = shapely.box(*box)

        def ours() -> None:
            counted.shapes.clear()
            predict_tissue(slide, counted, region, settings=settings_of(options))  # type: ignore[arg-type]

        ours()
        batches = [np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8) for shape in counted.shapes]
        bare = {"bare": lambda: [bundle.predict(batch) for batch in batches], "ours": ours}
        alone = alternating(bare, options.repeats)  # without MONAI, which leaves the process with other memory
        monai = {"MONAI": lambda: monai_window(slide, plain, spec, box, options.device), "ours": ours}
        beside = alternating(monai, options.repeats)
    tiles = sum(len(batch) for batch in batches)
    print(f"\n{options.side} x {options.side} model px of tissue, {tiles} tiles of {batches[0].shape[1]} px")
    say_times("end to end", alone["ours"])
    say_ratio("end to end, of the bare throughput (goal 0.9)", alone["bare"], alone["ours"])
    say_ratio("MONAI's sliding window fp32 / end to end (goal 2.5)", beside["MONAI"], beside["ours"])


def bench_whole(options: argparse.Namespace, bundle: Any, plain: Any) -> None:
    """Compare finding and predicting the tissue of a slide with MONAI's sliding window over all of it."""
    path = write_slide(options.folder / "whole.tif", options.whole, options.slide)
    with Slide(path) as slide:
        share = []

        def ours() -> None:
            tissue = shapely.union_all(detect_tissue(slide, TissueSettings()).geometry.to_numpy())
            share.append(tissue.area / options.whole**2)
            predict_tissue(slide, bundle, tissue, settings=settings_of(options))

        whole = (0, 0, options.whole, options.whole)
        works = {"ours": ours, "MONAI": lambda: monai_window(slide, plain, bundle.spec, whole, options.device)}
        times = alternating(works, max(1, options.repeats - 2))
    print(f"\nwhole slide of {options.whole} x {options.whole} px, {share[0]:.0%} tissue")
    say_times("end to end", times["ours"])
    say_ratio("MONAI's sliding window fp32 / end to end (goal 3)", times["MONAI"], times["ours"])


# ---------------------------------------------------------------------- memory
class Thin:
    """A network of one 1 x 1 convolution, so that large slides take minutes; all else is as with any other."""

    stride, stream_tile, tiles_at_once, device = 32, (512, 32), 4, "cpu"
    path = Path("thin")
    spec = ModelSpec(
        "tissue_segmentation",
        "thin",
        (ModelClass("background"), ModelClass("tumour", "Tumor"), ModelClass("stroma", "Stroma")),
        postprocessing=POSTPROCESSING,
    )

    def __init__(self) -> None:
        self._model = torch.nn.Conv2d(3, 3, 1)
        with torch.no_grad():
            weight = torch.tensor([[15.0, 15.0, 15.0], [-30.0, 0.0, 30.0], [30.0, 0.0, -30.0]])  # bright, blue, red
            self._model.weight.copy_(weight[..., None, None])
            self._model.bias = torch.nn.Parameter(torch.tensor([-33.0, 0.0, 0.0]))

    def predict(self, tiles: Any) -> Any:
        """Return probabilities as a bundle does."""
        with torch.inference_mode():
            x = torch.from_numpy(tiles).permute(0, 3, 1, 2).float() / 255
            return self._model(x).softmax(dim=1).numpy()


def bench_memory(options: argparse.Namespace) -> None:
    """Peak memory of a process that segments the whole slide, by its size."""
    print("\nwhole slides through a thin network; peak of the process, curve of its memory over the time")
    peaks = []
    for size in options.sizes:
        path = write_slide(options.folder / f"{size}.tif", size, options.slide)
        command = [sys.executable, __file__, "--peak", str(path)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        found = json.loads(done.stdout.splitlines()[-1])
        peaks.append(found["peak_mib"])
        curve = " ".join(f"{value:.0f}" for value in found["curve_mib"])
        print(
            f"{size:>6}² px {path.stat().st_size / 2**20:6.0f} MiB file {found['seconds']:7.1f} s"
            f"   before {found['before_mib']:5.0f} MiB   peak {peaks[-1]:5.0f} MiB ({peaks[-1] / peaks[0]:.2f} x)"
            f"   {found['annotations']} annotations, {found['vertices']} vertices   [{curve}]"
        )
        path.unlink()


def measure_peak(options: argparse.Namespace) -> dict[str, Any]:
    bundle = Thin()
    bundle.predict(np.zeros((1, 512, 512, 3), dtype=np.uint8))
    before = resident_mib()
    samples: list[float] = []
    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.5):
            samples.append(resident_mib())

    watcher = threading.Thread(target=watch)
    watcher.start()
    start = time.perf_counter()
    with Slide(options.peak) as slide:
        found = predict_tissue(slide, bundle, shapely.box(0, 0, *slide.dimensions), settings=settings_of(options))  # type: ignore[arg-type]
    seconds = time.perf_counter() - start
    over.set()
    watcher.join()
    chosen = samples[:: max(1, len(samples) // 12)]
    return {
        "seconds": seconds,
        "before_mib": before,
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "curve_mib": chosen,
        "annotations": len(found),
        "vertices": int(shapely.get_num_coordinates(found.geometry.to_numpy()).sum()),
    }


def resident_mib() -> float:
    pages = int(Path("/proc/self/statm").read_text("ascii").split()[1])
    return pages * resource.getpagesize() / 2**20


if __name__ == "__main__":
    main()
