"""Runs the scripts of the menu by Groovy in QuPath's core, on images whose nuclei are known, for the tests."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from qupath_ext.project import pack_rgb
from qupath_ext.projectsettings import change_settings
from qupath_ext.workflows.scripts import install_scripts

PROGRAM = Path(__file__).with_name("RunScript.java")
QUPATH = os.environ.get("PAQUO_QUPATH_DIR")
JAVA = str(Path(os.environ["JAVA_HOME"]) / "bin/java") if "JAVA_HOME" in os.environ else shutil.which("java")
GROOVY = shutil.which("groovy")
QUICK = ["-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC"]
"""For programs of seconds: less time goes into compiling what runs hardly longer than that."""

NEEDS = [
    pytest.mark.qupath,
    pytest.mark.skipif(QUPATH is None, reason="PAQUO_QUPATH_DIR is not set"),
    pytest.mark.skipif(JAVA is None, reason="there is no Java"),
    pytest.mark.skipif(GROOVY is None, reason="there is no groovy"),
]

WHITE, BLUE, BROWN = (255, 255, 255), (104, 97, 171), (85, 47, 47)
"""Blue is 0.6 of QuPath's standard hematoxylin, brown 0.4 of it and 0.8 of its DAB: OD = 0.4 (0.65, 0.70, 0.29) +
0.8 (0.27, 0.57, 0.78) = (0.476, 0.735, 0.738), and 255 / 10^OD = (85, 47, 47)."""
REGION = (100, 100, 500, 500)
N_BLUE, N_BROWN = 12, 4
TUMOR_COLOR = pack_rgb(1, 2, 3)


def nuclei_image():
    """Nuclei of 12 µm across at 0.5 µm/px: 12 blue and 4 brown ones inside REGION, 3 blue ones beside it."""
    image = np.full((600, 800, 3), WHITE, np.uint8)
    y, x = np.mgrid[:600, :800]
    inside = itertools.product((150, 230, 310, 390), (150, 230, 310, 390))
    for number, (left, top) in enumerate([*inside, (600, 200), (600, 300), (700, 400)]):
        disc = (x - left) ** 2 + (y - top) ** 2 <= 12**2
        image[disc] = BROWN if number < N_BROWN else BLUE
    return image


def run_scripts(project, *steps):
    """Run scripts of the menu one after the other, each for all images; a step is a name with its arguments.

    Returns what QuPath saw after each of them, of the first image, then of the second and so on; and what was said.
    """
    menu = project.path.parent / "scripts/qupath-ext"
    words = []
    for name, *arguments in steps:
        script = name if name == "workflow" else str(name if isinstance(name, Path) else menu / f"{name}.groovy")
        words += ["--", script, *arguments]
    groovy = Path(GROOVY).resolve().parents[1] / "lib/*"
    command = [
        JAVA,
        *QUICK,
        "-cp",
        f"{QUPATH}/lib/app/*{os.pathsep}{groovy}",
        str(PROGRAM),
        str(project.path),
        *words[1:],
    ]
    result = subprocess.run(command, check=False, capture_output=True, text=True, encoding="utf-8")
    if "class file has wrong version" in result.stderr:
        pytest.skip("this Java is too old for this QuPath; set JAVA_HOME")
    assert result.returncode == 0, result.stdout + result.stderr
    seen = [json.loads(line[5:]) for line in result.stdout.splitlines() if line.startswith("SEEN ")]
    assert len(seen) == len(steps) * len(project.entries), result.stdout + result.stderr
    return seen, result.stdout


def objects_of(seen, kind):
    return [one for one in seen["objects"] if one["kind"] == kind]


def by_name(seen, name):
    (found,) = [one for one in seen["objects"] if one.get("name") == name]
    return found


def counted(seen):
    classes = [one.get("class") for one in objects_of(seen, "cell")]
    return {name: classes.count(name) for name in set(classes)}


SAME = ("automatic=false", "stains=project")
"""The detector's standard thresholds and QuPath's stains, whatever the image shows."""


def hand_made(seen):
    """Return what QuPath saw of objects that a person drew."""
    return [by_name(seen, name) for name in ("region", "mine", "drawn by hand")]


POSIX = pytest.mark.skipif(os.name == "nt", reason="the program that takes the place of Python is a shell script")

FEW_STEPS = """
import sys
import pyhisto.plan
import qupath_ext.workflows.planning as planning
from qupath_ext.cli import main

if __name__ == "__main__":
    pyhisto.plan.FEWEST_STEPS = pyhisto.plan.MOST_STEPS = 3
    planning._timed_on = lambda device: lambda network, classes: 1e6  # the smallest network
    main(sys.argv[3:], prog_name="qupath-ext")
"""


def trains_quickly(project, folder):
    """Install the scripts with a Python in place of this one whose trainings take three steps."""
    (folder / "few_steps.py").write_text(FEW_STEPS)
    python = folder / "python"
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{folder}/few_steps.py" "$@"\n')
    python.chmod(0o755)
    install_scripts(project.path, python=python)
    change_settings(project.path, device="cpu")
