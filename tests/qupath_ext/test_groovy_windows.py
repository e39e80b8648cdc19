"""The scripts where there are windows: progress, cancel and messages, on a screen that nobody sees."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shapely
import tifffile
from PIL import Image
from qupath_scripts import GROOVY, JAVA, NEEDS, QUICK, QUPATH, nuclei_image

import qupath_ext
from pyhisto.objects import make_objects
from qupath_ext.project import Project, create_project
from qupath_ext.workflows.scripts import install_scripts

SOURCES = Path(__file__).with_name("pretended_gui")
PLACES = [Path(os.environ.get("PATH_TO_FX", "/nowhere")), Path("/usr/share/openjfx/lib"), Path("/usr/share/java")]
JAVAFX = next((place for place in PLACES if (place / "javafx-controls.jar").is_file()), None)
NATIVE = Path("/usr/lib/x86_64-linux-gnu/jni")
"""Where Debian puts the native part of JavaFX; elsewhere it is inside or beside the jars."""
XVFB = shutil.which("Xvfb")

pytestmark = [
    *NEEDS,
    pytest.mark.skipif(JAVAFX is None, reason="there is no JavaFX; PATH_TO_FX may name its folder"),
    pytest.mark.skipif(XVFB is None, reason="there is no Xvfb"),
    pytest.mark.skipif(JAVA is None or not Path(JAVA).with_name("javac").exists(), reason="there is no javac"),
]

SLOW = """
import os, pathlib, subprocess, sys, time
if sys.argv[3] == "--version":
    print("qupath-ext @VERSION@")
    raise SystemExit
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
pathlib.Path("@PIDS@").write_text(f"{os.getpid()} {child.pid}")
print("PROGRESS 5/20 cells", flush=True)
time.sleep(600)
"""
"""Takes the place of Python: says that a quarter is done, and goes on for ten minutes together with a child."""


@pytest.fixture
def project(tmp_path: Path) -> Project:
    slide = tmp_path / "slide.tif"
    tifffile.imwrite(slide, nuclei_image(), tile=(256, 256), photometric="rgb")
    project = create_project(tmp_path / "Projekt ä", classes={"Tumor": 0}, backend="native")
    with project.add_image(slide, mpp=0.5).edit() as change:
        change.add(
            make_objects(
                [shapely.box(100, 100, 500, 500), shapely.box(600, 100, 700, 200)],
                object_type="annotation",
                classification=["Tumor", "Region*"],
                name=["region", "Round 1 #1 0.9 entropy"],
            )
        )
    install_scripts(project.path)
    return project


@pytest.fixture(scope="module")
def classes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program, compiled; its classes come before those of QuPath."""
    folder = tmp_path_factory.mktemp("classes")
    command = [Path(str(JAVA)).with_name("javac"), "-d", folder, "-cp", class_path(), *sorted(SOURCES.rglob("*.java"))]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    if "class file has wrong version" in done.stderr:
        pytest.skip("this Java is too old for this QuPath; set JAVA_HOME")
    assert done.returncode == 0, done.stderr
    return folder


def class_path(*before: Path) -> str:
    groovy = Path(str(GROOVY)).resolve().parents[1] / "lib/*"
    javafx = sorted(Path(str(JAVAFX)).glob("javafx-*.jar"))
    return os.pathsep.join(map(str, (*before, *javafx, f"{QUPATH}/lib/app/*", groovy)))


@pytest.fixture
def screen() -> Any:
    """The number of a screen that nobody sees."""
    read, write = os.pipe()
    with subprocess.Popen(
        [str(XVFB), "-displayfd", str(write), "-screen", "0", "900x600x24"], pass_fds=[write], stderr=subprocess.DEVNULL
    ) as server:
        os.close(write)
        with os.fdopen(read) as number:
            yield f":{number.readline().strip()}"
        server.terminate()


def show(project: Project, classes: Path, screen: str, script: str, text: str, how: str) -> tuple[dict[str, Any], str]:
    """Run a script; return what was seen, and all that was said."""
    menu = project.path.parent / "scripts/qupath-ext" / f"{script}.groovy"
    picture = project.path.parent / "screen.png"
    command = [JAVA, *QUICK, "-Dprism.order=sw"]
    if NATIVE.is_dir():
        command.append(f"-Djava.library.path={NATIVE}")
    command += ["-cp", class_path(classes), "RunWithWindows", project.path, menu, picture, text, how]
    done = subprocess.run(
        list(map(str, command)),
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=False,
        timeout=400,
        env={**os.environ, "DISPLAY": screen},
    )
    said = done.stdout + done.stderr
    found = [line[5:] for line in done.stdout.splitlines() if line.startswith("SEEN ")]
    assert len(found) == 1, said
    return json.loads(found[0]), said


@pytest.mark.skipif(os.name == "nt", reason="the program that takes the place of Python is a shell script")
@pytest.mark.parametrize("how", ["cancel", "close"])
def test_cancel_ends_python_and_changes_nothing(
    project: Project, classes: Path, screen: str, tmp_path: Path, how: str
) -> None:
    pids = tmp_path / "pids"
    (tmp_path / "slow.py").write_text(
        SLOW.replace("@VERSION@", qupath_ext.__version__).replace("@PIDS@", str(pids)), encoding="utf-8"
    )
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{tmp_path}/slow.py" "$@"\n')
    python.chmod(0o755)
    install_scripts(project.path, python=python)
    seen, said = show(project, classes, screen, "Ki-67 on selection", "cells: 5 of 20", how)
    assert seen["title"] == "Ki-67 on selection"
    assert (seen["modal"], seen["owner"], seen["progress"]) == ("APPLICATION_MODAL", True, 0.25)
    assert (seen["text"], seen["disabled"]) == ("Stopping; nothing will be changed", True)
    assert seen["result"] == "Cancelled", said
    assert seen["windows"] == 1  # QuPath's own
    assert (seen["objects"], seen["changed"]) == (seen["objects_before"], seen["was_changed"])
    assert seen["shown"] == []
    for pid in map(int, pids.read_text().split()):
        assert not runs(pid)
    assert not list((project.path.parent / "qupath_ext/jobs").iterdir())
    screenshot = np.asarray(Image.open(project.path.parent / "screen.png").convert("RGB")).reshape(-1, 3)
    assert len(np.unique(screenshot, axis=0)) > 20  # windows with letters, not a black screen


def runs(pid: int) -> bool:
    """Return whether a process is there and no zombie, which nobody but its parent can take away."""
    for _ in range(50):
        with contextlib.suppress(FileNotFoundError):
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
                time.sleep(0.1)
                continue
        return False
    return True


def test_the_window_goes_with_the_job_and_the_result_is_shown(project: Project, classes: Path, screen: str) -> None:
    seen, said = show(project, classes, screen, "Detect cells", "", "wait")
    assert seen["result"].startswith("16 cells"), said
    assert seen["windows"] == 1
    assert seen["objects"] == seen["objects_before"] + 16
    assert seen["shown"] == [f"notification: {seen['result']}"]


def test_an_error_is_shown_in_a_window(project: Project, classes: Path, screen: str) -> None:
    seen, said = show(project, classes, screen, "Segment tumour", "", "wait")
    assert "this project has no model that segments tumour" in seen["result"], said
    assert seen["shown"] == [f"error: {seen['result'].removeprefix('failed: ')}"]
    assert seen["windows"] == 1


def test_the_next_region_is_in_the_middle_of_the_viewer_and_keys_go_on(
    project: Project, classes: Path, screen: str
) -> None:
    seen, said = show(project, classes, screen, "Next region", "", "keys")
    keys = ". From now on F6 is Next region, F7 is Mark done, F8 is Reject region"
    assert seen["result"] == f"Round 1 #1 0.9 entropy (1 of this image is open){keys}", said
    # 100 px across and down in a viewer of 400 x 200: 0.5 fills it from top to bottom, and a quarter more is shown
    assert seen["viewer"] == [pytest.approx(0.625), pytest.approx(650), pytest.approx(150)]
    assert seen["shown"] == [f"notification: {seen['result']}"]
    assert seen["changed"] == seen["was_changed"]
    assert seen["run"] == ["Mark done.groovy", "Next region.groovy", "Reject region.groovy"]
