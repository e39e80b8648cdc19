"""What a first job would wait for, done before there is one: imports, and machine code of compiled loops."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from qupath_ext.errors import ProjectError
from qupath_ext.live.job import JOB_VERSION
from qupath_ext.live.tasks import run_job

__all__ = ["warm_up"]

SIDE_PX = 256
MPP = 0.5
TASKS = ("detect-cells", "ki67-selection", "undo")


def warm_up() -> None:
    """Do jobs on a small image of some nuclei, in a project that is gone afterwards.

    Raises
    ------
    ProjectError
        If one of them fails: then none would succeed.
    """
    with tempfile.TemporaryDirectory(prefix="qupath-ext-") as place:
        folder = Path(place).resolve()
        job = _job(folder)
        for task in TASKS:
            job_folder = folder / task
            job_folder.mkdir()
            _write_objects(job_folder / "objects.geojson")
            (job_folder / "job.json").write_text(json.dumps({**job, "task": task}), encoding="utf-8")
            answer = run_job(job_folder, say=_say_nothing)
            if answer.status != "done":
                raise ProjectError(f"{task} fails on an image made for it: {answer.message}")


def _job(folder: Path) -> dict[str, object]:
    """Make a project with a slide, and return what is the same in all jobs for it."""
    from qupath_ext.project import create_project

    _write_slide(folder / "nuclei.tif")
    project = create_project(folder / "project", backend="native")
    entry = project.add_image(folder / "nuclei.tif", mpp=MPP)
    return {
        "version": JOB_VERSION,
        "project": str(project.path),
        "entry": {"id": entry.id, "name": entry.name},
        "image": {"width": SIDE_PX, "height": SIDE_PX, "mpp": [MPP, MPP], "type": "BRIGHTFIELD_H_DAB"},
        "objects": "objects.geojson",
        "options": {"region": "image"},
    }


def _write_slide(path: Path) -> None:
    """Write a slide with rows of nuclei of 8 µm, blue and brown in turn, some of which touch."""
    import numpy as np
    import tifffile

    rows, columns = np.mgrid[:SIDE_PX, :SIDE_PX]
    rgb = np.full((SIDE_PX, SIDE_PX, 3), (235, 225, 230), dtype=np.uint8)
    for number, x in enumerate(range(20, SIDE_PX - 16, 24)):
        for y in range(20, SIDE_PX - 16, 24 if number % 3 else 14):
            rgb[np.hypot(columns - x, rows - y) < 8] = (110, 60, 30) if (number + y) % 2 else (90, 90, 160)
    density = 1e4 / MPP
    tifffile.imwrite(
        path,
        rgb,
        tile=(SIDE_PX, SIDE_PX),
        photometric="rgb",
        compression="adobe_deflate",
        resolution=(density, density),
        resolutionunit="CENTIMETER",
        metadata=None,
    )


def _write_objects(path: Path) -> None:
    """Write an annotation as a person would have drawn it."""
    import shapely

    from pyhisto.objects import make_objects
    from qupath_ext.exchange.geojson import write_geojson

    write_geojson(path, make_objects([shapely.box(4, 4, 40, 40)], object_type="annotation", classification="Tumor"))


def _say_nothing(line: str) -> None:
    del line
