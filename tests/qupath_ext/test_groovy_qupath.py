"""The scripts of the menu, run by Groovy in QuPath's core on a real project; QuPath says what is there afterwards."""

import csv
import itertools
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import shapely
import tifffile
import torch
from qupath_scripts import (
    N_BLUE,
    N_BROWN,
    NEEDS,
    POSIX,
    QUPATH,
    REGION,
    SAME,
    TUMOR_COLOR,
    by_name,
    counted,
    hand_made,
    nuclei_image,
    objects_of,
    run_scripts,
    trains_quickly,
)

from pyhisto.bundle.files import read_spec, save_bundle
from pyhisto.bundle.spec import ModelClass, ModelSpec
from pyhisto.models import build_model
from pyhisto.objects import make_objects
from qupath_ext.project import create_project, open_project
from qupath_ext.projectsettings import change_settings, read_settings
from qupath_ext.workflows.scripts import install_scripts

pytestmark = NEEDS


@pytest.fixture
def project(tmp_path):
    slide = tmp_path / "Schnitt mit ä.tif"
    tifffile.imwrite(slide, nuclei_image(), tile=(256, 256), photometric="rgb")
    project = create_project(tmp_path / "Projekt für QuPath", classes={"Tumor": TUMOR_COLOR}, backend="native")
    entry = project.add_image(slide, name="Fall 7 ä", mpp=0.5)
    shapes = [shapely.box(*REGION), shapely.box(440, 440, 490, 490), shapely.box(455, 455, 465, 465)]
    objects = make_objects(
        shapes,
        object_type=["annotation", "annotation", "detection"],
        classification=["Tumor", "Stroma", None],
        name=["region", "mine", "drawn by hand"],
    )
    with entry.edit() as change:
        change.add(objects)
    install_scripts(project.path)
    return project


def test_ki67_on_selection_twice_undo_and_workflow(project):
    seen, said = run_scripts(
        project,
        ("Ki-67 on selection", "select=region", *SAME),
        ("Ki-67 on selection", "select=region", *SAME),
        ("workflow",),
        ("Undo last run",),
    )
    first, second, repeated, undone = seen
    wanted = {"Tumor: Negative": N_BLUE, "Tumor: Positive": N_BROWN}
    assert all(counted(one) == wanted for one in seen), said
    region, mine, drawn = (by_name(first, name) for name in ("region", "mine", "drawn by hand"))
    assert region["locked"]
    assert not mine["locked"]
    assert {one["parent"] for one in objects_of(first, "cell")} == {region["id"]}
    assert first["classes"] == {"Tumor": TUMOR_COLOR, "Tumor: Positive": -3657166, "Tumor: Negative": -10855756}
    for later in (second, repeated, undone):
        for before in (mine, drawn):
            assert by_name(later, before["name"]) == before
    ids = [{one["id"] for one in objects_of(one, "cell")} for one in seen]
    assert all(ids[i].isdisjoint(ids[j]) for i, j in itertools.combinations(range(4), 2))
    assert [step for step in second["steps"] if step.startswith("Ki")] == ["Ki-67 on selection"] * 2
    assert all(one["changed"] for one in seen)
    assert not list((project.path.parent / "qupath_ext/jobs").iterdir())


def test_without_a_selection_the_class_and_where_the_arguments_say(project):
    (in_class, in_all), said = run_scripts(
        project, ("Detect cells", *SAME), ("Detect cells", *SAME, "region=image", "cell_expansion_um=0")
    )
    assert (len(objects_of(in_class, "cell")), len(objects_of(in_all, "cell"))) == (N_BLUE + N_BROWN, 0), said
    nuclei = [one for one in objects_of(in_all, "detection") if one.get("name") != "drawn by hand"]
    assert len(nuclei) == N_BLUE + N_BROWN + 3
    # discs of 12 px: 452 px², found within a tenth
    assert all(one["area"] == pytest.approx(452, rel=0.1) for one in nuclei)


def test_errors_are_plain_words_and_change_nothing(project):
    (unknown, unread), said = run_scripts(project, ("Detect cells", "colour=red"), ("Detect cells", "red"))
    assert "colour" in unknown["failed"], said
    assert unread["failed"] == "The argument 'red' is not understood. Write name=value, such as region=tissue."
    install_scripts(project.path, python="/nowhere/python")
    (moved,), said = run_scripts(project, ("Doctor",))
    assert moved["failed"].startswith("Python is not at /nowhere/python: qupath-ext was moved or removed"), said
    assert all(len(one["objects"]) == 3 and "changed" not in one for one in (unknown, unread, moved))
    assert not list((project.path.parent / "qupath_ext/jobs").iterdir())


def test_the_worker_is_asked_while_it_lives(project, tmp_path, monkeypatch):
    for name in ("XDG_STATE_HOME", "LOCALAPPDATA"):
        monkeypatch.setenv(name, str(tmp_path / "state"))
    command = [sys.executable, "-m", "qupath_ext", "serve", "--allow", str(project.path.parent)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as worker:
        try:
            while "ready" not in (line := worker.stdout.readline()):
                assert line, "the worker ended"
            (seen,), said = run_scripts(project, ("Detect cells", "select=region", *SAME))
        finally:
            worker.kill()
    assert "The worker has the job" in said
    assert len(objects_of(seen, "cell")) == N_BLUE + N_BROWN, said
    assert "16 cells" in said
    (seen,), said = run_scripts(project, ("Detect cells", "select=region", *SAME))  # its file is still there
    assert "The worker has the job" not in said
    assert len(objects_of(seen, "cell")) == N_BLUE + N_BROWN, said


CANCELLED = """
import java.util.function.BooleanSupplier
import java.util.function.Consumer
def library = evaluate(new File(buildPathInProject('qupath_ext', 'groovy', 'QuPathExt.groovy')))
def lines = Collections.synchronizedList([])
def folder = new File(args[0])
def code = library.execute([library.PYTHON, '-c', new File(folder, 'program.py').text], folder,
    { lines << it } as Consumer, { !lines.isEmpty() } as BooleanSupplier)
"${lines.join(' ')} ${code}"
"""

SLEEPER = """
import os, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print(os.getpid(), child.pid, flush=True)
time.sleep(600)
"""


def test_cancel_ends_python_and_what_it_started(project, tmp_path):
    (tmp_path / "program.py").write_text(SLEEPER)
    (tmp_path / "Cancelled.groovy").write_text(CANCELLED)
    (seen,), said = run_scripts(project, (tmp_path / "Cancelled.groovy", str(tmp_path)))
    parent, child, code = map(int, seen["result"].split())
    assert code != 0, said
    assert (tmp_path / "cancel").exists()
    for process in (parent, child):
        assert not _runs(process)


def _runs(process):
    """Whether a process is there and no zombie, which nobody but its parent can take away."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


LINES = """
def lines = new org.locationtech.jts.io.WKTReader().read('MULTILINESTRING ((200 200, 300 300), (200 300, 300 200))')
def roi = qupath.lib.roi.GeometryTools.geometryToROI(lines, qupath.lib.regions.ImagePlane.getDefaultPlane())
def both = qupath.lib.objects.PathObjects.createAnnotationObject(roi)
both.name = 'lines'
getCurrentHierarchy().addObject(both)
"""


def test_lines_of_several_parts_are_in_nobodys_way(project, tmp_path):
    (tmp_path / "Lines.groovy").write_text(LINES)
    cells = ("Detect cells", "select=region", *SAME)
    (drawn, first, second), said = run_scripts(project, (tmp_path / "Lines.groovy",), cells, cells)
    assert all(len(objects_of(one, "cell")) == N_BLUE + N_BROWN for one in (first, second)), said
    for one in (first, second):
        lines = by_name(one, "lines")
        assert (lines["id"], lines.get("parent")) == (by_name(drawn, "lines")["id"], None)
        assert lines["centre"] == pytest.approx([250, 250])
    # QuPath's exporter calls itself without an end on such lines, up to 0.6
    version = tuple(int(number) for number in re.findall(r"\d+", Path(QUPATH).name)[:2])
    if version and version < (0, 7):
        assert said.count("that this QuPath cannot hand over") == 2, said


POSTPROCESSING = {
    "threshold": 0.5,
    "sigma_um": 2.0,
    "min_area_um2": 100.0,
    "min_hole_area_um2": 100.0,
    "simplify_um": 1.0,
}


def test_segment_tumour_twice(project, tmp_path):
    spec = ModelSpec(
        "tissue_segmentation",
        "attention-unet",
        (ModelClass("background"), ModelClass("tumour", "Tumor")),
        mpp=1.0,
        tile_size=64,
        overlap=8,
        decoder_channels=(16, 8),
        postprocessing=POSTPROCESSING,
    )
    torch.manual_seed(3)
    model = build_model(spec.architecture, out_channels=2, decoder_channels=spec.decoder_channels)
    tile = np.ascontiguousarray(nuclei_image()[128:256:2, 128:256:2])
    bundle = save_bundle(tmp_path / "Modell ä", model, spec, golden_tile=tile, description="Knows nothing.")
    change_settings(project.path, tumour=str(bundle.path), device="cpu")
    step = ("Segment tumour", "select=region")
    (first, second, undone), said = run_scripts(project, step, step, ("Undo last run",))
    assert "result" in first, said
    assert "result" in second, said
    found = [
        [one for one in objects_of(seen, "annotation") if one.get("name") not in ("region", "mine")]
        for seen in (first, second)
    ]
    assert found[0], said
    count = int(re.search(r"Modell ä: (\d+) Tumor", first["result"])[1])
    region = by_name(first, "region")
    for objects in found:
        assert len(objects) == count
        assert {one["class"] for one in objects} == {"Tumor"}
        assert {one["parent"] for one in objects} == {region["id"]}
    assert sorted(one["area"] for one in found[0]) == sorted(one["area"] for one in found[1])
    assert {one["id"] for one in found[0]}.isdisjoint(one["id"] for one in found[1])
    assert hand_made(first)[1:] == hand_made(second)[1:] == hand_made(undone)[1:]
    assert f"{count} objects of earlier runs replaced" in second["result"]
    # taking back the second brings back the first
    assert sorted(one["area"] for one in objects_of(undone, "annotation")) == sorted(
        one["area"] for one in objects_of(first, "annotation")
    )


@POSIX
def test_train_from_annotations_twice(project, tmp_path):
    trains_quickly(project, tmp_path)
    with project.entries[0].edit() as change:  # what is neither Tumor nor Stroma in it is background
        change.add(make_objects([shapely.box(20, 20, 780, 580)], object_type="annotation", classification="Training"))
    settings = ("task=tissue", "minutes=0.1", 'classes=["Tumor", "Stroma"]')
    seen, said = run_scripts(
        project,
        ("Train from annotations", "name=erstes ä", *settings),
        ("Train from annotations", "name=zweites", *settings),
    )
    for one, name in zip(seen, ("erstes ä", "zweites"), strict=True):
        assert one.get("result", "").startswith(f"Trained {name} "), said
        spec, _ = read_spec(project.path.parent / "qupath_ext/models" / name)
        assert [one.classification for one in spec.classes] == [None, "Tumor", "Stroma"], spec
    assert read_settings(project.path).tumour == "qupath_ext/models/zweites"
    assert seen[0]["objects"] == seen[1]["objects"]
    assert len(seen[0]["objects"]) == 4


def figures(folder):
    """Return precision, recall and F1 of the cells of any class, of each evaluation in its order."""
    tables = []
    for path in sorted(folder.glob("reports/*/figures.csv")):
        with path.open(encoding="utf-8", newline="") as file:
            rows = [row for row in csv.DictReader(file) if (row["level"], row["class"]) == ("image", "any class")]
        tables.append({row["metric"]: float(row["value"]) for row in rows if row["metric"] in WANTED_FIGURES})
    return tables


WANTED_FIGURES = ("precision", "recall", "F1")


def test_the_scripts_for_the_whole_project_twice(project):
    folder = project.path.parent / "qupath_ext"
    whole, evaluate = ("Ki-67 on whole slide", *SAME, "region=tumour"), ("Evaluate against my annotations",)
    (nothing, doctor, second_doctor, first, second, exported, again, unmarked), said = run_scripts(
        project,
        evaluate,
        ("Doctor",),
        ("Doctor",),
        whole,
        whole,
        ("Export for analysis",),
        ("Export for analysis",),
        evaluate,
    )
    assert "nothing to evaluate: no run of qupath-ext has written to this project" in nothing["failed"], said
    assert all("result" in one for one in (doctor, second_doctor)), said
    wanted = {"Tumor: Negative": N_BLUE, "Tumor: Positive": N_BROWN}
    assert counted(first) == counted(second) == wanted, said
    assert hand_made(first) == hand_made(second)
    # two annotations, the detection and 16 cells, in two forms and two tables
    assert exported["result"] == again["result"], said
    assert exported["result"].startswith("19 objects of 1 images in 4 files"), said
    rows = (folder / "export/annotation.csv").read_text("utf-8").splitlines()
    assert len(rows) == 3, rows  # two annotations below the names of the columns
    # so far a person drew one detection and one small annotation, and no cell lies there
    assert unmarked["result"].startswith("Compared: what the run "), said
    assert figures(folder) == [{"precision": 0, "recall": 0, "F1": 0}]

    centres = list(itertools.product((150, 230, 310, 390), (150, 230, 310, 390)))
    points = [shapely.MultiPoint(centres[:N_BROWN]), shapely.MultiPoint(centres[N_BROWN:])]
    names = ["Tumor: Positive", "Tumor: Negative"]
    with open_project(project.path, backend="native").entries[0].edit() as change:
        change.add(make_objects(points, object_type="annotation", classification=names, name=names))
    pages, said = run_scripts(project, evaluate, evaluate)
    assert all("result" in page and len(page["objects"]) == 3 + 16 + 2 for page in pages), said
    # each of the 16 cells has its mark, and nobody found those two: precision 16/16, recall 16/18
    perfect = {"precision": 1, "recall": pytest.approx(16 / 18), "F1": pytest.approx(32 / 34)}
    assert figures(folder)[1:] == [perfect, perfect]
    assert len(list(folder.glob("reports/*/report.html"))) == 3
