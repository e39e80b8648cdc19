"""Measure the native project store: times, memory, and the same with Paquo where QuPath is found.

Times stand beside the bare limit, measured in the same run on the same machine: writing is ``ndarray.tofile`` of as
many bytes with fsync plus ``shapely.to_ragged_array`` of all outlines, reading is ``np.fromfile`` of the file plus
``shapely.from_ragged_array`` of all outlines. Medians of the repeats; the ratio is the median of the repeats' ratios.

    python scripts/bench_store.py --cells 1000000 --repeats 3
    PAQUO_QUPATH_DIR=/opt/QuPath python scripts/bench_store.py
"""

from __future__ import annotations

import argparse
import copy
import gc
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import shapely
import tifffile

from pyhisto.objects import concat_objects, make_objects
from qupath_ext.entry import ImageEntry
from qupath_ext.project import create_project, open_project
from qupath_ext.runs.diff import diff_run
from qupath_ext.runs.ownership import read_ownership, write_run
from qupath_ext.runs.record import start_run

CLASSES = ("Tumor", "Stroma", "Immune cells", "Necrosis")
PARENTS = (3_000, 30)
"""Annotations with cells of their own, and cells in each."""
MIB = float(1 << 20)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=int, default=1_000_000)
    parser.add_argument("--vertices", type=int, default=20, help="of a cell's boundary")
    parser.add_argument("--nucleus-vertices", type=int, default=12)
    parser.add_argument("--measurements", type=int, default=10)
    parser.add_argument("--annotations", type=int, default=10_000, help="with a hole each")
    parser.add_argument("--images", type=int, default=1_000, help="of the project that is listed")
    parser.add_argument("--paquo-cells", type=int, default=100_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="where to write; a temporary folder by default")
    parser.add_argument("--peak", choices=("write", "read"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peak:
        print(json.dumps(measure_peak(options)))
        return
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        options.folder = Path(name)
        bench_cells(options)
        bench_memory(options)
        bench_diff(options)
        bench_nested(options)
        bench_annotations(options)
        bench_images(options)
        bench_paquo(options)


# ---------------------------------------------------------------------- what is stored
def outlines(n: int, n_vertices: int, radius: float, rng: np.random.Generator) -> np.ndarray[Any, Any]:
    """Coordinates of n rounded outlines, shape (n, n_vertices, 2); the centres are those of a grid."""
    angle = 2 * np.pi * np.arange(n_vertices) / n_vertices
    size = radius * rng.uniform(0.8, 1.2, (n, n_vertices))
    side = int(np.ceil(np.sqrt(n)))
    centre = np.column_stack([np.arange(n) % side, np.arange(n) // side]) * 25.0 + 20
    points = np.stack([size * np.cos(angle), size * np.sin(angle)], axis=2) + centre[:, None]
    return np.round(points * 64) / 64


def cell_table(options: argparse.Namespace, n: int) -> gpd.GeoDataFrame:
    rng = np.random.default_rng(0)
    return make_objects(
        shapely.polygons(outlines(n, options.vertices, 9.0, rng)),
        object_type="cell",
        nucleus=shapely.polygons(outlines(n, options.nucleus_vertices, 5.0, rng)),
        classification=np.array(CLASSES, dtype=object)[rng.integers(0, len(CLASSES), n)],
        measurements={f"Cell: feature {i}": rng.normal(size=n) for i in range(options.measurements)},
    )


def new_project(options: argparse.Namespace, name: str) -> tuple[Path, ImageEntry]:
    slide = options.folder / "slide.tif"
    if not slide.exists():
        tifffile.imwrite(slide, np.zeros((64, 64, 3), dtype=np.uint8), photometric="rgb", tile=(64, 64))
    folder = options.folder / name
    project = create_project(folder, classes=dict.fromkeys(CLASSES), backend="native")
    return folder, project.add_image(slide, mpp=0.5)


# ---------------------------------------------------------------------- measuring
def timed(work: Callable[[], Any], clock: Callable[[], float] = time.perf_counter) -> tuple[float, Any]:
    gc.collect()
    start = clock()
    out = work()
    return clock() - start, out


def say(what: str, seconds: Sequence[float], bare: Sequence[float] | None = None, note: str = "") -> None:
    text = f"{what:<58} {statistics.median(seconds):9.3f} s"
    if bare is not None:
        ratio = statistics.median(a / b for a, b in zip(seconds, bare, strict=True))
        text += f"   {ratio:7.2f} x bare {statistics.median(bare):7.3f} s"
    print(text + (f"   {note}" if note else ""), flush=True)


def bare_write(table: gpd.GeoDataFrame, data: np.ndarray[Any, Any], path: Path) -> None:
    for column in ("geometry", "nucleus"):
        shapely.to_ragged_array(table[column].to_numpy())
    with path.open("wb") as file:
        data.tofile(file)
        os.fsync(file.fileno())


def bare_read(ragged: Sequence[tuple[Any, ...]], path: Path) -> list[Any]:
    return [np.fromfile(path, dtype=np.uint8), *(shapely.from_ragged_array(*parts) for parts in ragged)]


# ---------------------------------------------------------------------- the parts
def bench_cells(options: argparse.Namespace) -> None:
    table = cell_table(options, options.cells)
    plain = options.folder / "plain"
    writes, reads, bare_writes, bare_reads = [], [], [], []
    size = 0
    for repeat in range(options.repeats):
        folder, entry = new_project(options, f"cells{repeat}")
        writes.append(timed(lambda entry=entry: entry.write_objects(table))[0])
        data = np.fromfile(entry.data_file, dtype=np.uint8)
        size = len(data)
        bare_writes.append(timed(lambda data=data: bare_write(table, data, plain))[0])
        del data
        ragged = [shapely.to_ragged_array(table[column].to_numpy()) for column in ("geometry", "nucleus")]
        bare_reads.append(timed(lambda ragged=ragged: bare_read(ragged, plain))[0])
        del ragged
        seconds, found = timed(lambda folder=folder: open_project(folder, backend="native").entries[0].read_objects())
        reads.append(seconds)
        check(table, found)
        del found
        plain.unlink()
        if repeat + 1 < options.repeats:
            entry.data_file.unlink()
    print(f"{options.cells} cells, {size / MIB:.0f} MiB, {options.repeats} repeats")
    say("  write", writes, bare_writes)
    say("  read", reads, bare_reads)


def check(table: gpd.GeoDataFrame, found: gpd.GeoDataFrame) -> None:
    same = shapely.equals_exact(table.geometry.to_numpy(), found.geometry.to_numpy(), normalize=True).all()
    if not same or not (table.index == found.index).all():
        raise SystemExit("what was read is not what was written")


def bench_memory(options: argparse.Namespace) -> None:
    """Peak memory of fresh processes, above the table that is written or that comes out."""
    for what in ("write", "read"):
        command = [sys.executable, __file__, "--peak", what, "--folder", str(options.folder)]
        for name in ("cells", "vertices", "nucleus_vertices", "measurements"):
            command += [f"--{name.replace('_', '-')}", str(getattr(options, name))]
        found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        print(
            f"  {what + ': peak memory above the table':<56} {found['above'] / MIB:9.0f} MiB"
            f" {found['above'] / found['file']:7.2f} x the file; the table takes {found['table'] / MIB:.0f} MiB",
            flush=True,
        )


def measure_peak(options: argparse.Namespace) -> dict[str, int]:
    if options.peak == "write":
        start = resident()
        table = cell_table(options, options.cells)
        _, entry = new_project(options, "peak")
        gc.collect()
        before = resident()
        reset_peak()
        entry.write_objects(table)
        return {"above": resident("VmHWM") - before, "table": before - start, "file": entry.data_file.stat().st_size}
    entry = open_project(options.folder / "peak", backend="native").entries[0]
    before = resident()
    table = entry.read_objects()
    gc.collect()
    after = resident()
    return {"above": resident("VmHWM") - after, "table": after - before, "file": entry.data_file.stat().st_size}


def resident(kind: str = "VmRSS") -> int:
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(kind):
            return int(line.split()[1]) * 1024
    raise SystemExit(f"no {kind} in /proc/self/status")


def reset_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def bench_diff(options: argparse.Namespace) -> None:
    """CPU time, user and system, of comparing a run with what the image holds now."""
    table = cell_table(options, options.cells)
    folder, entry = new_project(options, "diff")
    project = open_project(folder, backend="native")
    entry = project.entry(entry.id)
    run = start_run(project, "bench", {}, {})
    write_run(run, entry, table, read_ownership(project, "bench", entry), replace=())
    run.finish()
    run.release()
    del table
    seconds = []
    for _ in range(options.repeats):
        needed, (found,) = timed(lambda: [image.counts() for image in diff_run(project, run)], time.process_time)
        seconds.append(needed)
        if found["untouched"] != options.cells:
            raise SystemExit(f"{found['untouched']} of {options.cells} cells are untouched")
    say(f"runs diff of {options.cells} cells, CPU", seconds)
    entry.data_file.unlink()


def bench_nested(options: argparse.Namespace) -> None:
    """Many annotations with a few cells each."""
    n, each = PARENTS
    side = int(np.ceil(np.sqrt(n)))
    corners = np.column_stack([np.arange(n) % side, np.arange(n) // side]) * 100.0
    parents = make_objects(shapely.box(*corners.T, *(corners.T + 90)), object_type="annotation")
    cells = cell_table(options, n * each)
    cells["parent_id"] = np.repeat(parents.index.to_numpy(dtype=object), each)
    both(options, f"{n} annotations with {each} cells each", concat_objects([parents, cells]))


def bench_annotations(options: argparse.Namespace) -> None:
    rng = np.random.default_rng(1)
    holes = outlines(options.annotations, 12, 4.0, rng)[:, None]
    table = make_objects(
        shapely.polygons(shapely.linearrings(outlines(options.annotations, 40, 11.0, rng)), shapely.linearrings(holes)),
        object_type="annotation",
        classification="Stroma",
        measurements={"Area": rng.normal(size=options.annotations)},
    )
    both(options, f"{options.annotations} annotations with a hole each", table)


def both(options: argparse.Namespace, what: str, table: gpd.GeoDataFrame) -> None:
    """CPU time of writing and reading a table."""
    writes, reads = [], []
    for repeat in range(options.repeats):
        folder, entry = new_project(options, f"{len(table)}-{repeat}")
        writes.append(timed(lambda entry=entry: entry.write_objects(table), time.process_time)[0])
        fresh = open_project(folder, backend="native").entries[0]
        seconds, found = timed(fresh.read_objects, time.process_time)
        reads.append(seconds)
        check(table.loc[found.index], found)
    print(what)
    say("  write, CPU", writes)
    say("  read, CPU", reads)


def bench_images(options: argparse.Namespace) -> None:
    folder, _ = new_project(options, "images")
    file = folder / "project.qpproj"
    content = json.loads(file.read_text(encoding="utf-8"))
    first = content["images"][0]
    content["images"] = []
    for number in range(1, options.images + 1):
        slide = options.folder / f"slide {number}.tif"
        slide.touch()
        image = copy.deepcopy(first)
        image |= {"entryID": number, "imageName": slide.name, "metadata": {"case": str(number)}}
        image["serverBuilder"]["uri"] = slide.as_uri()
        content["images"].append(image)
    content["lastID"] = options.images
    file.write_text(json.dumps(content), encoding="utf-8")

    def listed() -> int:
        project = open_project(folder, backend="native")
        return len([(e.id, e.name, e.metadata, e.slide_path, e.mpp) for e in project.entries])

    print(f"a project of {options.images} images")
    say("  open and list, CPU", [timed(listed, time.process_time)[0] for _ in range(options.repeats)])


# ---------------------------------------------------------------------- Paquo
def bench_paquo(options: argparse.Namespace) -> None:
    if not os.environ.get("PAQUO_QUPATH_DIR") or importlib.util.find_spec("paquo") is None:
        print("Paquo: no QuPath found (set PAQUO_QUPATH_DIR, install paquo)")
        return
    from paquo.java import LogManager, qupath_version

    LogManager.setWarn()
    table = cell_table(options, options.paquo_cells)
    ours: dict[str, list[float]] = {"write": [], "read": []}
    theirs: dict[str, list[float]] = {"write": [], "read": []}
    for repeat in range(options.repeats):
        folder, entry = new_project(options, f"ours{repeat}")
        ours["write"].append(timed(lambda entry=entry: entry.write_objects(table))[0])
        fresh = open_project(folder, backend="native").entries[0]
        ours["read"].append(timed(fresh.read_objects)[0])
        folder = options.folder / f"paquo{repeat}"
        theirs["write"].append(timed(lambda folder=folder: paquo_write(folder, options.folder / "slide.tif", table))[0])
        seconds, n = timed(lambda folder=folder: paquo_read(folder))
        theirs["read"].append(seconds)
        if n != len(table):
            raise SystemExit(f"Paquo read {n} objects")
    print(f"Paquo with QuPath {qupath_version}: {options.paquo_cells} cells, native against Paquo")
    for what, seconds in ours.items():
        ratio = statistics.median(a / b for a, b in zip(theirs[what], seconds, strict=True))
        say(f"  {what}", seconds, note=f"Paquo {statistics.median(theirs[what]):.1f} s, {ratio:.0f} times as long")


def paquo_write(folder: Path, slide: Path, table: gpd.GeoDataFrame) -> None:
    from paquo.classes import QuPathPathClass
    from paquo.images import QuPathImageType
    from paquo.projects import QuPathProject

    names = [name for name in table.columns if name.startswith("Cell: ")]
    with QuPathProject(folder, mode="x") as project:
        classes = {name: QuPathPathClass(name) for name in CLASSES}
        project.path_classes = classes.values()
        entry = project.add_image(slide, image_type=QuPathImageType.BRIGHTFIELD_H_DAB)
        with entry.hierarchy.no_autoflush():
            for roi, nucleus, name, *values in table[["geometry", "nucleus", "classification", *names]].itertuples(
                index=False
            ):
                measurements = dict(zip(names, values, strict=True))
                entry.hierarchy.add_cell(roi, classes[name], measurements, nucleus_roi=nucleus)


def paquo_read(folder: Path) -> int:
    from paquo.projects import QuPathProject

    with QuPathProject(folder / "project.qpproj", mode="r") as project:
        found = [
            (cell.roi, cell.nucleus_roi, cell.path_class, dict(cell.measurements))
            for cell in project.images[0].hierarchy.cells
        ]
    return len(found)


if __name__ == "__main__":
    main()
