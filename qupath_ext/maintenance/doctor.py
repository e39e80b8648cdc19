"""Whether this machine has what the work needs, and what to do where it has not."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

__all__ = ["CheckUp", "examine", "examine_project"]

NEEDED = ("numpy", "shapely", "geopandas", "openslide-python", "tifffile", "torch", "monai")
PAQUO_SECONDS = 120
FREE_GB = 5

PAQUO_TRIAL = """
import sys, tempfile
from pathlib import Path
import shapely
from pyhisto.objects import make_objects
from qupath_ext.project import create_project, open_project
with tempfile.TemporaryDirectory() as folder:
    project = create_project(Path(folder) / "trial", classes={"Tumor": None}, backend="paquo")
    again = open_project(project.path, backend="paquo")
    print(again.backend_version if "Tumor" in again.classes else "its classes are lost")
"""


@dataclass(frozen=True)
class CheckUp:
    """One thing that was looked at: its state, what was found, and what to do unless all is well."""

    subject: str
    state: Literal["ok", "note", "bad"]
    found: str
    remedy: str = ""


def examine(*, quick: bool = False) -> Iterator[CheckUp]:
    """Look at Python, the libraries, devices, OpenSlide, QuPath, Java, Paquo and the disk.

    Parameters
    ----------
    quick
        Leave out what takes long: devices, for which torch is loaded, and QuPath with Java and Paquo.

    Yields
    ------
    CheckUp
        ``bad`` is what stops the work; ``note`` is what only some of it needs.
    """
    yield _python()
    yield from map(_library, NEEDED)
    for look in (_openslide, _disk) if quick else (_devices, _openslide, _qupath, _disk):
        yield from _guarded(look)


def _guarded(look: Callable[[], Iterator[CheckUp]]) -> Iterator[CheckUp]:
    """Say it if an examination itself fails: a doctor must not."""
    try:
        yield from look()
    except Exception as error:  # noqa: BLE001 - whatever a broken library raises
        name = look.__name__.strip("_")
        yield CheckUp(name, "bad", f"{type(error).__name__}: {error}".splitlines()[0], f"reinstall what {name} needs")


def _python() -> CheckUp:
    return CheckUp("Python", "ok", f"{platform.python_version()} on {platform.platform(terse=True)}")


def _library(name: str) -> CheckUp:
    try:
        return CheckUp(name, "ok", importlib.metadata.version(name))
    except importlib.metadata.PackageNotFoundError:
        return CheckUp(name, "bad", "is not installed", f"pip install -c constraints.txt {name}")


def _devices() -> Iterator[CheckUp]:
    from pyhisto.device import available_devices, fast_bfloat16

    for device, name in available_devices():
        reduced = ", bfloat16" if fast_bfloat16(device) else ""
        yield CheckUp(f"device {device}", "ok", f"{name}{reduced}")


def _openslide() -> Iterator[CheckUp]:
    import openslide

    yield CheckUp("OpenSlide", "ok", str(openslide.__library_version__))


def _qupath() -> Iterator[CheckUp]:
    from qupath_ext.errors import ProjectError
    from qupath_ext.paquo_bridge import find_qupath

    try:
        place = find_qupath()
    except ProjectError as error:
        yield CheckUp("QuPath", "bad", str(error.found), str(error.remedy))
        return
    if place is None:
        remedy = "none is needed; set PAQUO_QUPATH_DIR to its folder to write through QuPath's own classes"
        yield CheckUp("QuPath", "note", "not found: projects are written natively, without Java", remedy)
        yield _java()
        return
    yield CheckUp("QuPath", "ok", str(place))
    yield _paquo()


def _java() -> CheckUp:
    path = shutil.which("java")
    if path is None:
        return CheckUp("Java", "note", "not found", "none is needed without QuPath, which brings its own")
    answer = subprocess.run([path, "-version"], capture_output=True, text=True, timeout=60, check=False)
    return CheckUp("Java", "ok", (answer.stderr or answer.stdout).splitlines()[0])


def _paquo() -> CheckUp:
    """Try Paquo in a process of its own: a JVM that does not start can take its process with it."""
    remedy = "see PAQUO_QUPATH_DIR and PAQUO_JAVA_OPTS, or use --backend native"
    try:
        trial = subprocess.run(
            [sys.executable, "-c", PAQUO_TRIAL], capture_output=True, text=True, timeout=PAQUO_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        return CheckUp("Paquo", "bad", f"did not answer within {PAQUO_SECONDS} s", remedy)
    if trial.returncode:
        lines = trial.stderr.strip().splitlines() or [f"exit code {trial.returncode}"]
        return CheckUp("Paquo", "bad", lines[-1], remedy)
    return CheckUp("Paquo", "ok", f"made and opened a project with {trial.stdout.strip()}")


def _disk() -> Iterator[CheckUp]:
    free = shutil.disk_usage(Path.cwd()).free / 1e9
    found = f"{free:.0f} GB free in {Path.cwd()}"
    yield CheckUp("disk", "ok", found) if free > FREE_GB else CheckUp("disk", "note", found, "free some space")


def examine_project(path: Path) -> Iterator[CheckUp]:
    """Look whether a project can be read and written.

    Parameters
    ----------
    path
        The project folder or file.
    """
    from pyhisto.errors import PyhistoError
    from qupath_ext.maintenance.check import check_project
    from qupath_ext.project import open_project

    try:
        project = open_project(path, backend="native")
    except PyhistoError as error:
        yield CheckUp("project", "bad", str(error), "look at it with QuPath, or restore project.qpproj.backup")
        return
    yield CheckUp("project", "ok", f"{len(project.entries)} images in {project.path}")
    folder = project.path.parent
    if not os.access(folder, os.W_OK):
        yield CheckUp("project folder", "bad", f"{folder} is read-only", "change its permissions, or copy the project")
    for finding in check_project(project):
        where = finding.image or "project"
        state: Literal["bad", "note"] = "bad" if finding.severity == "error" else "note"
        yield CheckUp(where, state, finding.what, finding.remedy)
