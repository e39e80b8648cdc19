"""How long a person waits for the cells of a region: with a warm worker, and with a process of its own for each job.

From the moment at which a script of QuPath hands over its job to the moment at which it has the answer: for the first
region of a slide, of which nothing is known, and for further ones. The detector is the classical one. CPU time is given
as well, since other programs do not change it much.

    python scripts/bench_serve.py --slide slide.svs --mpp 0.5 --repeats 7
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import shapely

from pyhisto.objects import make_objects
from pyhisto.synth import SynthSettings, make_slide
from qupath_ext.entry import ImageEntry
from qupath_ext.exchange.geojson import write_geojson
from qupath_ext.project import Project, create_project
from qupath_ext.serve.client import WorkerClient
from qupath_ext.workflows.slidememory import FOLDER

POLL_S = 0.05
PROGRAM = [sys.executable, "-m", "qupath_ext"]


def write_job(project: Project, entry: ImageEntry, side: int, task: str, number: int = 0) -> Path:
    """Write a job for a square near the middle of the slide, each number another one, and return its folder."""
    folder = Path(tempfile.mkdtemp(dir=project.path.parent))
    width, height = entry.size()
    x, y = (width - side) // 2 + 16 * (number % 8), (height - side) // 2
    square = make_objects([shapely.box(x, y, x + side, y + side)], object_type="annotation")
    write_geojson(folder / "objects.geojson", square)
    job = {
        "version": 1,
        "task": task,
        "project": str(project.path),
        "entry": {"id": entry.id, "name": entry.name},
        "image": {"width": width, "height": height, "mpp": entry.mpp, "type": "BRIGHTFIELD_H_DAB"},
        "objects": "objects.geojson",
        "selected": list(square.index),
    }
    (folder / "job.json").write_text(json.dumps(job), encoding="utf-8")
    return folder


def answer_of(folder: Path) -> str:
    """Return what the answer to a job says; one that failed ends the benchmark."""
    answer = json.loads((folder / "answer.json").read_text("utf-8"))
    if answer["status"] != "done":
        raise SystemExit(answer["message"])
    return str(answer["message"])


def by_process(folder: Path) -> float:
    """Do a job in a process of its own and return its CPU time, s."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([*PROGRAM, "job", str(folder)], check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def by_worker(worker: WorkerClient, folder: Path) -> float:
    """Have a job done by the worker, asked as the scripts ask it, and return its CPU time, s."""
    before = worker.request("GET", "/health")["cpu_s"]
    job = worker.request("POST", "/jobs", {"folder": str(folder)})
    while worker.request("GET", f"/jobs/{job['id']}")["answer"] is None:
        time.sleep(POLL_S)
    return float(worker.request("GET", "/health")["cpu_s"] - before)


def measure(
    name: str, repeats: int, new_job: Callable[[int], Path], do: Callable[[Path], float]
) -> tuple[float, float]:
    """Do jobs, print a line and return the medians of wall and CPU time, s."""
    walls, cpus = [], []
    for number in range(repeats):
        folder = new_job(number)
        begin = time.perf_counter()
        cpus.append(do(folder))
        walls.append(time.perf_counter() - begin)
        message = answer_of(folder)
    wall, cpu = statistics.median(walls), statistics.median(cpus)
    print(f"{name:<16}{wall:8.2f} s ({min(walls):.2f} to {max(walls):.2f})   CPU {cpu:6.2f} s   {message}")
    return wall, cpu


def start_worker(folder: Path) -> subprocess.Popen[str]:
    """Start a worker for the projects of a folder and wait until it is ready."""
    begin = time.perf_counter()
    worker = subprocess.Popen([*PROGRAM, "serve", "--allow", str(folder)], stdout=subprocess.PIPE, text=True)
    if worker.stdout is None or not worker.stdout.readline():
        raise SystemExit("the worker did not start")
    print(f"{'start':<16}{time.perf_counter() - begin:8.2f} s until the worker is ready")
    return worker


def main() -> None:
    """Run the benchmark and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slide", type=Path, help="default: a synthetic one")
    parser.add_argument("--mpp", type=float, help="pixel size, µm, where the slide has none")
    parser.add_argument("--side", type=int, default=1024, help="side of the region, px")
    parser.add_argument("--task", choices=["detect-cells", "ki67-selection"], default="detect-cells")
    parser.add_argument("--repeats", type=int, default=7)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place).resolve()
        slide = arguments.slide
        if slide is None:
            slide = folder / "synthetic.tif"
            make_slide(slide, SynthSettings(width=2048, height=2048, seed=1))
        project = create_project(folder / "project", backend="native")
        entry = project.add_image(slide.resolve(), mpp=arguments.mpp)
        os.environ["XDG_STATE_HOME"] = os.environ["LOCALAPPDATA"] = str(folder / "state")

        def first(number: int) -> Path:
            shutil.rmtree(project.path.parent / FOLDER, ignore_errors=True)
            return write_job(project, entry, arguments.side, arguments.task, number)

        def further(number: int) -> Path:
            return write_job(project, entry, arguments.side, arguments.task, number)

        measure("process, first", arguments.repeats, first, by_process)
        process = measure("process", arguments.repeats, further, by_process)
        started = start_worker(folder)
        try:
            worker = WorkerClient.find()
            if worker is None:
                raise SystemExit("the worker does not answer")
            measure("worker, first", arguments.repeats, first, lambda job: by_worker(worker, job))
            warm = measure("worker", arguments.repeats, further, lambda job: by_worker(worker, job))
        finally:
            subprocess.run([*PROGRAM, "serve", "--stop"], check=True, stdout=subprocess.DEVNULL)
            started.communicate()
    print(f"{'ratio':<16}{process[0] / warm[0]:8.1f}{'':<26}CPU {process[1] / warm[1]:6.1f}")


if __name__ == "__main__":
    main()
