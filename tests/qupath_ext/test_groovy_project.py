"""Run > Run for project: every script over the images of a project, saved by QuPath, and what both then read."""

import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import shapely
import tifffile
import torch
from qupath_scripts import (
    NEEDS,
    POSIX,
    SAME,
    TUMOR_COLOR,
    by_name,
    counted,
    nuclei_image,
    objects_of,
    run_scripts,
    trains_quickly,
)

from pyhisto.bundle.files import save_bundle
from pyhisto.bundle.spec import ModelClass, ModelSpec
from pyhisto.models import build_model
from pyhisto.objects import make_objects
from qupath_ext.project import create_project, open_project
from qupath_ext.projectsettings import change_settings, read_settings
from qupath_ext.runs.record import list_runs
from qupath_ext.workflows.scripts import install_scripts

pytestmark = NEEDS

REGIONS = {"Fall 1 ä": (100, 100, 500, 500), "Fall 2": (100, 100, 270, 500), "Fall 3": (550, 150, 750, 450)}
"""Around all nuclei of the square, around its left half, and around the three beside it."""

CELLS = {
    "Fall 1 ä": {"Tumor: Negative": 12, "Tumor: Positive": 4},
    "Fall 2": {"Tumor: Negative": 4, "Tumor: Positive": 4},
    "Fall 3": {"Tumor: Negative": 3},
}
MARKS = {"Fall 1 ä": (440, 440), "Fall 2": (110, 400), "Fall 3": (700, 200)}
"""Where a person drew an annotation of 20 px inside the region; no nucleus is there."""


@pytest.fixture
def project(tmp_path):
    slide = tmp_path / "Schnitt mit ä.tif"
    tifffile.imwrite(slide, nuclei_image(), tile=(256, 256), photometric="rgb")
    project = create_project(tmp_path / "Projekt für QuPath", classes={"Tumor": TUMOR_COLOR}, backend="native")
    for name, region in REGIONS.items():
        x, y = MARKS[name]
        drawn = make_objects(
            [shapely.box(*region), shapely.box(x, y, x + 20, y + 20), shapely.box(10, 10, 40, 40)],
            object_type="annotation",
            classification=["Tumor", "Stroma", None],
            name=["region", "mine", "locked by hand"],
            locked=[False, False, True],
        )
        with project.add_image(slide, name=name, mpp=0.5).edit() as change:
            change.add(drawn)
    install_scripts(project.path)
    return project


@pytest.fixture
def worker(project, tmp_path, monkeypatch):
    """Do the jobs without starting a Python for each."""
    for name in ("XDG_STATE_HOME", "LOCALAPPDATA"):
        monkeypatch.setenv(name, str(tmp_path / "state"))
    command = [sys.executable, "-m", "qupath_ext", "serve", "--allow", str(project.path.parent)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as started:
        try:
            while "ready" not in (line := started.stdout.readline()):
                assert line, "the worker ended"
            yield started
        finally:
            started.kill()


def by_image(seen):
    """Return what was seen of each image, in the order of the scripts."""
    return {name: [one for one in seen if one["image"] == name] for name in REGIONS}


def assert_hand_made(seen):
    """What a person drew is there as it was; the region may be locked, as it is where cells are put into it."""
    for one in seen:
        _, mine, locked = (by_name(one, name) for name in ("region", "mine", "locked by hand"))
        assert (mine["locked"], locked["locked"]) == (False, True)
        x, y = MARKS[one["image"]]
        assert mine["centre"] == pytest.approx([x + 10, y + 10])
        assert (mine["class"], mine["area"]) == ("Stroma", pytest.approx(400))


def known(seen):
    """Return what is the same before and after QuPath wrote an image and read it again; outlines are rounded."""
    return {one["id"]: (one["kind"], one.get("class"), one["locked"], one.get("parent")) for one in seen["objects"]}


LOOK = "null\n"


def test_cells_are_found_in_each_image_saved_and_read_again(project, tmp_path, worker):
    look = tmp_path / "Look.groovy"
    look.write_text(LOOK)
    ki67, whole = ("Ki-67 on selection", *SAME), ("Ki-67 on whole slide", *SAME, "region=tumour")
    seen, said = run_scripts(project, ki67, whole, (look,), ("Undo last run",), ("Detect cells", *SAME), (look,))
    assert said.count("The worker has the job") == 12, said
    for name, steps in by_image(seen).items():
        first, second, read, undone, detected, read_last = steps
        for one in (first, second, read):
            assert counted(one) == CELLS[name], said
        assert_hand_made(steps)
        assert all(by_name(one, "region")["locked"] for one in steps)
        assert {one["parent"] for one in objects_of(read, "cell")} == {by_name(read, "region")["id"]}
        # the second run took the place of the first; undoing it brings that back
        ids = [{one["id"] for one in objects_of(one, "cell")} for one in (first, second, undone)]
        assert ids[0].isdisjoint(ids[1])
        assert counted(undone) == CELLS[name]
        assert len(objects_of(detected, "cell")) == 2 * sum(CELLS[name].values())  # another analysis: both stay
        assert known(read_last) == known(detected)
    saved = open_project(project.path, backend="native")
    assert saved.classes["Tumor"] == TUMOR_COLOR
    assert {"Tumor: Positive", "Tumor: Negative"} <= set(saved.classes)
    for entry in saved.entries:
        objects = entry.read_objects()
        cells = objects[objects["object_type"] == "cell"]
        assert cells["classification"].astype(object).value_counts().to_dict() == CELLS[entry.name]
        assert cells["classification"].isna().sum() == sum(CELLS[entry.name].values())
        assert set(cells["parent_id"]) == set(objects.index[objects["name"] == "region"])
        locked = objects.set_index("name")["locked"]
        assert locked[["region", "mine", "locked by hand"]].tolist() == [True, False, True]
    records = [(run.analysis, set(run.images), run.status) for run in list_runs(saved)]
    ids = [entry.id for entry in saved.entries]
    wanted = [("ki67", {id_}, "done") for id_ in ids] + [("ki67", {id_}, "undone") for id_ in ids]
    assert records == wanted + [("cells", {id_}, "done") for id_ in ids]


POSTPROCESSING = {
    "threshold": 0.5,
    "sigma_um": 2.0,
    "min_area_um2": 100.0,
    "min_hole_area_um2": 100.0,
    "simplify_um": 1.0,
}


def test_tumour_is_segmented_in_each_image(project, tmp_path, worker):
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
    bundle = save_bundle(tmp_path / "Modell", model, spec, golden_tile=tile, description="Knows nothing.")
    change_settings(project.path, tumour=str(bundle.path), device="cpu")
    step = ("Segment tumour", "select=region")
    seen, said = run_scripts(project, step, step)
    for first, second in by_image(seen).values():
        found = [
            sorted(one["area"] for one in objects_of(step, "annotation") if not one.get("name"))
            for step in (first, second)
        ]
        assert found[0], said
        assert found[0] == found[1]
        assert_hand_made([first, second])


def test_what_looks_at_the_whole_project_is_done_once_with_the_last_image(project, worker):
    seen, said = run_scripts(
        project,
        ("Ki-67 on selection", *SAME),
        ("Export for analysis",),
        ("Evaluate against my annotations",),
    )
    steps = by_image(seen)
    for name in ("Fall 1 ä", "Fall 2"):
        assert all("failed" not in one and one.get("result") is None for one in steps[name][1:]), said
    _, exported, evaluated = steps["Fall 3"]
    objects = sum(sum(found.values()) + 3 for found in CELLS.values())
    assert exported["result"].startswith(f"{objects} objects of 3 images in 8 files"), said
    assert evaluated["result"].startswith("Compared: what the run "), said
    folder = project.path.parent / "qupath_ext"
    assert len(list(folder.glob("reports/*/report.html"))) == 1
    assert not list((folder / "jobs").iterdir())


@POSIX
def test_training_is_done_once_on_all_images(project, tmp_path):
    trains_quickly(project, tmp_path)
    with project.entries[0].edit() as change:
        change.add(make_objects([shapely.box(0, 0, 800, 600)], object_type="annotation", classification="Training"))
    settings = ("name=Modell", "task=tissue", "minutes=0.1", 'classes=["Tumor", "Stroma"]')
    seen, said = run_scripts(project, ("Train from annotations", *settings))
    assert [one.get("result", "")[:15] for one in seen] == ["", "", "Trained Modell "], said
    assert read_settings(project.path).tumour == "qupath_ext/models/Modell"
    assert [len(one["objects"]) for one in seen] == [4, 3, 3]


def test_a_script_that_fails_leaves_each_image_as_it_was(project):
    """Run for project saves an image also after a script that failed."""
    before = [entry.read_objects() for entry in project.entries]
    seen, said = run_scripts(project, ("Detect cells", "threshold=-"))
    assert all("threshold" in one["failed"] for one in seen), said
    for objects, entry in zip(before, open_project(project.path, backend="native").entries, strict=True):
        pd.testing.assert_frame_equal(objects, entry.read_objects(), check_like=True)


def test_the_doctor_looks_at_each_image(project, worker):
    seen, said = run_scripts(project, ("Doctor",))
    assert all("failed" not in one for one in seen), said
    assert [len(one["objects"]) for one in seen] == [3, 3, 3]
