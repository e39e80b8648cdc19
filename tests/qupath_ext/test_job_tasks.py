"""What jobs do: the open image comes from the job, the answer goes to QuPath, and what is saved stays as it is."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import geopandas as gpd
import numpy as np
import pandas as pd
import pytest
import shapely
from fake_models import FakeCells, FakeTumour
from frame_cases import cropped, rotated
from live_jobs import accept, make_job
from PIL import Image

from pyhisto.objects import make_objects
from qupath_ext.exchange.geojson import parse_geojson, read_geojson
from qupath_ext.live.job import Answer
from qupath_ext.live.tasks import run_job
from qupath_ext.project import Project, create_project, open_project, pack_rgb
from qupath_ext.projectsettings import change_settings, read_settings
from qupath_ext.runs.compare import compare
from qupath_ext.runs.diff import diff_image
from qupath_ext.runs.ownership import read_ownership
from qupath_ext.runs.record import Run, list_runs
from qupath_ext.runs.undo import undo_run
from qupath_ext.study import LabelStudy
from qupath_ext.workflows.trainingdata import Source, truth_objects

LEFT, RIGHT = "00000000-0000-4000-8000-000000000001", "00000000-0000-4000-8000-000000000002"
INNER = "00000000-0000-4000-8000-000000000003"
CENTRES = ((30, 30), (50, 30), (70, 30), (150, 30), (170, 30))
"""Cells of the pretended detector, slide px: three in the left area, two in the right one."""

Ask = Callable[..., Answer]


def pretended_cells(slide: Any, settings: Any, *, region: Any, progress: Any, **options: Any) -> gpd.GeoDataFrame:
    """Find round cells at the known centres that lie in the region."""
    inside = [shapely.Point(c) for c in CENTRES if region.covers(shapely.Point(c))]
    progress(1, 2)
    progress(2, 2)
    return make_objects(
        [point.buffer(4) for point in inside],
        object_type="cell",
        nucleus=[point.buffer(2) for point in inside],
        measurements={"Nucleus: Area": np.full(len(inside), 12.5)},
    )


@pytest.fixture(autouse=True)
def quick_detector(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qupath_ext.workflows.cells.detect_cells", pretended_cells)


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """A project whose slide has a name that a URI has to encode, with two areas and a note that a person drew."""
    folder = tmp_path / "Fälle 100% #1"
    folder.mkdir()
    slide = folder / "Präparat a%20b.png"
    Image.new("RGB", (200, 100), (240, 240, 240)).save(slide)
    project = create_project(folder / "project", classes={"Tumor": pack_rgb(200, 0, 0)})
    entry = project.add_image(slide, mpp=0.5)
    areas = make_objects(
        [shapely.box(10, 10, 90, 60), shapely.box(110, 10, 190, 60)],
        object_type="annotation",
        classification=["Tumor", None],
        ids=[LEFT, RIGHT],
    )
    note = make_objects(
        [shapely.box(20, 20, 60, 50)], object_type="annotation", name="look here", ids=[INNER], parent_id=LEFT
    )
    entry.write_objects(add=pd.concat([areas, note]))
    return project


@pytest.fixture
def ask(tmp_path: Path, project: Project) -> Ask:
    """Return a function that does a job on the image as it is saved."""
    number = iter(range(100))

    def run(task: str, **options: Any) -> Answer:
        entry = open_project(project.path, backend="native").entries[0]
        passed = {key: options.pop(key) for key in ("models", "cancelled", "progress") if key in options}
        if "shown" in options:
            options["changes"] = {"entry": options.pop("shown")}
        folder = make_job(tmp_path / f"job {next(number)} ü", project, entry, task, **options)
        return run_job(folder, say=lambda line: None, **passed)

    return run


def job_of(tmp_path: Path) -> Path:
    """Return the folder of the newest job."""
    return max(tmp_path.glob("job *"), key=lambda path: int(path.name.split()[1]))


def saved(project: Project, tmp_path: Path) -> Project:
    """Return the project after QuPath did what the newest answer says, and saved."""
    opened = open_project(project.path, backend="native")
    return accept(opened, opened.entries[0], job_of(tmp_path))


def files_of(project: Project) -> dict[str, bytes]:
    """Return all that QuPath writes of a project."""
    folder = project.path.parent
    kept = [path for path in folder.rglob("*") if path.is_file() and folder / "qupath_ext" not in path.parents]
    return {str(path): path.read_bytes() for path in kept}


def runs_of(project: Project) -> list[Run]:
    return list(list_runs(project))


# ---------------------------------------------------------------------- the answer
def test_cells_of_the_selection_are_handed_over_and_nothing_is_written(
    project: Project, ask: Ask, tmp_path: Path
) -> None:
    before = files_of(project)
    answer = ask("detect-cells", selected=[LEFT])
    assert files_of(project) == before
    assert answer.status == "done"
    assert answer.message == "3 cells, in 0.001 mm² (1 selected annotation)."  # 80 x 50 px of 0.5 µm: 0.001 mm²
    assert (answer.remove, answer.lock, answer.unlock) == ((), (LEFT,), ())
    assert answer.counts["cells"] == 3
    assert answer.counts["region_mm2"] == 0.001
    assert answer.workflow is not None
    added = json.loads((job_of(tmp_path) / "add.geojson").read_text("utf-8"))
    assert [feature["properties"]["parentId"] for feature in added["features"]] == [LEFT] * 3
    assert {feature["properties"]["objectType"] for feature in added["features"]} == {"cell"}
    lines = (job_of(tmp_path) / "progress.jsonl").read_text("utf-8").splitlines()
    assert json.loads(lines[-1]) == {"stage": "cells", "done": 2, "total": 2}


def test_without_a_selection_it_is_the_class_and_else_the_tissue(project: Project, ask: Ask) -> None:
    assert ask("detect-cells").message.endswith("(1 annotation of the class Tumor).")
    assert ask("detect-cells", options={"classes": ["Stroma"]}).message == "0 cells, in 0.000 mm² (the tissue)."
    everywhere = ask("detect-cells", selected=[LEFT], options={"region": "image"})
    assert everywhere.message == "5 cells, in 0.005 mm² (the image)."  # 200 x 100 px of 0.5 µm


def test_new_annotations_come_before_their_children(project: Project, ask: Ask, tmp_path: Path) -> None:
    answer = ask("detect-cells", options={"region": "image"})
    added = json.loads((job_of(tmp_path) / "add.geojson").read_text("utf-8"))["features"]
    assert [feature["properties"]["objectType"] for feature in added] == ["annotation", *["cell"] * 5]
    assert added[0]["properties"]["isLocked"] is True
    assert {feature["properties"]["parentId"] for feature in added[1:]} == {added[0]["id"]}
    assert answer.lock == ()


def test_what_is_selected_must_have_an_area(ask: Ask) -> None:
    answer = ask("detect-cells", selected=["00000000-0000-4000-8000-00000000000f"])
    assert answer.status == "failed"
    assert "none of the 1 selected objects is an annotation with an area" in answer.message


def test_an_option_that_does_not_exist_is_an_error(ask: Ask) -> None:
    answer = ask("detect-cells", options={"treshold": 0.2})
    assert answer.status == "failed"
    assert "unknown key 'treshold'" in answer.message


# ---------------------------------------------------------------------- again, and by hand
def test_a_second_run_replaces_what_qupath_gave_back_rounded_and_turned(
    project: Project, ask: Ask, tmp_path: Path
) -> None:
    ask("detect-cells", selected=[LEFT])
    opened = saved(project, tmp_path)
    first = opened.entries[0].read_objects()
    cells = set(first.index[first["object_type"] == "cell"])
    assert bool(first.at[LEFT, "locked"])
    answer = ask("detect-cells", selected=[LEFT], compressed=True)
    assert set(answer.remove) == cells
    opened = saved(project, tmp_path)
    now = opened.entries[0].read_objects()
    assert (now["object_type"] == "cell").sum() == 3
    assert not cells & set(now.index)
    assert now.at[INNER, "name"] == "look here"
    assert now.at[INNER, "parent_id"] == LEFT


def test_what_a_person_changed_stays_and_stands_for_what_is_found_there(
    project: Project, ask: Ask, tmp_path: Path
) -> None:
    ask("detect-cells", selected=[LEFT])
    entry = saved(project, tmp_path).entries[0]
    objects = entry.read_objects()
    first, second, third = objects.index[objects["object_type"] == "cell"]
    with entry.edit() as change:
        change.update(pd.DataFrame({"classification": ["Immune cells"]}, index=[first]))
        change.remove([second])
    answer = ask("detect-cells", selected=[LEFT])
    assert answer.remove == (third,)
    assert answer.counts["cells"] == 2  # the deleted cell is found again, the corrected one stands for itself
    assert "1 kept as somebody changed them" in answer.message


def test_another_selection_leaves_the_first_one_alone(project: Project, ask: Ask, tmp_path: Path) -> None:
    ask("detect-cells", selected=[LEFT])
    saved(project, tmp_path)
    answer = ask("detect-cells", selected=[RIGHT])
    assert answer.remove == ()
    objects = saved(project, tmp_path).entries[0].read_objects()
    assert objects["parent_id"].value_counts()[[LEFT, RIGHT]].tolist() == [4, 2]  # with the note of the person
    assert len(ask("detect-cells", options={"region": "image"}).remove) == 5


def test_what_qupath_exports_of_its_own_projects_does_not_look_changed(shared_dir: Path) -> None:
    for version in ("v0.5.1", "v0.6.0"):
        folder = shared_dir / "golden" / version / "real"
        if not folder.is_dir():
            pytest.skip("needs the projects written by QuPath (../shared/golden)")
        project = open_project(folder / "project", backend="native")
        seen = json.loads((folder / "what_qupath_sees.json").read_text("utf-8"))["images"]
        n = 0
        for image in seen:
            parents = {one["id"]: one["parent"] for one in image["objects"]}
            features = [one for one in image["geojson"] if isinstance(one, dict)]  # it does not export multilines
            for feature in features:
                if parents[feature["id"]] != "ROOT":
                    feature["properties"]["parentId"] = parents[feature["id"]]
            text = json.dumps({"type": "FeatureCollection", "features": features}).encode()
            handed = parse_geojson(text, fix_invalid=True, drop_flat=True)
            written = project.entry(image["imageName"]).read_objects()
            found = compare(written.loc[handed.index], handed)
            assert not found.to_numpy().any(), found
            n += len(handed)
        assert n == 43


# ---------------------------------------------------------------------- records
def test_a_run_says_that_qupath_saves_and_is_not_gone_on_with(project: Project, ask: Ask) -> None:
    answer = ask("detect-cells", selected=[LEFT])
    [run] = runs_of(project)
    assert run.id == answer.run
    assert run.status == "done"
    assert run.record["backend"] == "QuPath 0.5.1"
    assert run.images["1"]["saved_by"] == "QuPath"
    assert run.images["1"]["added"]["cell"] == 3
    assert ask("detect-cells", selected=[LEFT]).run != run.id


def test_objects_that_qupath_never_saved_are_not_taken_for_deleted(project: Project, ask: Ask, tmp_path: Path) -> None:
    ask("detect-cells", selected=[LEFT])
    opened = open_project(project.path, backend="native")
    [run], entry = runs_of(opened), opened.entries[0]
    counts = diff_image(opened, run, entry, entry.read_present()).counts()
    assert (counts["not saved in QuPath"], counts["deleted"], counts["added"]) == (3, 0, 0)
    truth = truth_objects(Source(opened, entry), LabelStudy())
    assert set(truth.objects.index) == {LEFT, RIGHT, INNER}
    [done] = undo_run(opened, run)
    assert (done.unsaved, done.removed, done.restored) == (True, 0, 0)


def test_one_cell_that_was_saved_tells_that_the_others_were_deleted(project: Project, ask: Ask, tmp_path: Path) -> None:
    ask("detect-cells", selected=[LEFT])
    opened = saved(project, tmp_path)
    entry = opened.entries[0]
    objects = entry.read_objects()
    entry.write_objects(remove=list(objects.index[objects["object_type"] == "cell"][:2]))
    counts = diff_image(opened, runs_of(opened)[0], entry, entry.read_present()).counts()
    assert (counts["untouched"], counts["deleted"], counts["not saved in QuPath"]) == (1, 2, 0)


def test_an_unsaved_run_does_not_stand_in_the_way_of_undoing_an_earlier_one(
    project: Project, ask: Ask, tmp_path: Path
) -> None:
    ask("detect-cells", selected=[LEFT])
    saved(project, tmp_path)
    ask("detect-cells", selected=[LEFT])
    saved(project, tmp_path)
    ask("detect-cells", selected=[LEFT])  # and QuPath was closed without saving
    opened = open_project(project.path, backend="native")
    first, second, _ = runs_of(opened)
    [done] = undo_run(opened, second)
    assert (done.removed, done.restored, done.covered_by) == (3, 3, ())
    assert read_ownership(opened, "cells", opened.entries[0]).untouched == tuple(
        read_geojson(tmp_path / "job 0 ü" / "add.geojson").index
    )
    assert diff_image(opened, first, opened.entries[0], opened.entries[0].read_present()).counts()["untouched"] == 3


# ---------------------------------------------------------------------- undo
def test_undo_takes_back_the_newest_run_and_brings_back_what_it_replaced(
    project: Project, ask: Ask, tmp_path: Path
) -> None:
    ask("detect-cells", selected=[LEFT])
    entry = saved(project, tmp_path).entries[0]
    first = {i for i, kind in entry.read_objects()["object_type"].items() if kind == "cell"}
    ask("detect-cells", selected=[LEFT])
    saved(project, tmp_path)
    answer = ask("undo")
    assert (len(answer.remove), answer.counts["restored"], answer.unlock) == (3, 3, ())
    objects = saved(project, tmp_path).entries[0].read_objects()
    assert set(objects.index) == {LEFT, RIGHT, INNER} | first
    answer = ask("undo")
    assert set(answer.remove) == first
    assert answer.unlock == (LEFT,)
    objects = saved(project, tmp_path).entries[0].read_objects()
    assert set(objects.index) == {LEFT, RIGHT, INNER}
    assert not objects["locked"].any()
    assert ask("undo").message.startswith("Nothing to undo")


def test_undo_that_was_not_saved_can_be_done_again(project: Project, ask: Ask, tmp_path: Path) -> None:
    ask("detect-cells", selected=[LEFT])
    saved(project, tmp_path)
    assert len(ask("undo").remove) == 3  # and QuPath was closed without saving
    assert len(ask("undo").remove) == 3
    saved(project, tmp_path)
    assert ask("undo").remove == ()


def test_undo_leaves_what_a_person_changed(project: Project, ask: Ask, tmp_path: Path) -> None:
    ask("detect-cells", selected=[LEFT])
    entry = saved(project, tmp_path).entries[0]
    objects = entry.read_objects()
    mine = objects.index[objects["object_type"] == "cell"][0]
    with entry.edit() as change:
        change.update(pd.DataFrame({"name": ["odd"]}, index=[mine]))
    answer = ask("undo")
    assert len(answer.remove) == 2
    assert mine not in answer.remove
    assert "1 kept as somebody changed them" in answer.message


# ---------------------------------------------------------------------- the image as QuPath has it
def test_the_calibration_of_qupath_goes_before_that_of_the_file_and_the_project(project: Project, ask: Ask) -> None:
    image = {"width": 200, "height": 100, "mpp": [0.25, 0.5], "type": "BRIGHTFIELD_H_DAB", "stains": None}
    answer = ask("detect-cells", selected=[LEFT], image=image)
    assert answer.counts["region_mm2"] == 0.0005  # 80 px of 0.25 µm by 50 px of 0.5 µm
    [run] = runs_of(project)
    assert run.images["1"]["slide"]["mpp"] == [0.25, 0.5]
    assert run.images["1"]["result"]["settings"]["mpp"] == [0.25, 0.5]


def test_the_stains_of_qupath_are_used(project: Project, ask: Ask) -> None:
    stains = (
        '{"Name" : "mine", "Stain 1" : "Hematoxylin", "Values 1" : "0.5 0.7 0.5", '
        '"Stain 2" : "DAB", "Values 2" : "0.3 0.5 0.8", "Background" : " 250 251 252"}'
    )
    image = {"width": 200, "height": 100, "mpp": [0.5, 0.5], "type": "BRIGHTFIELD_H_DAB", "stains": stains}
    ask("detect-cells", selected=[LEFT], image=image)
    [run] = runs_of(project)
    used = run.images["1"]["result"]["settings"]
    length = (0.5**2 + 0.7**2 + 0.5**2) ** 0.5  # they are kept as unit vectors
    assert used["stains"]["Hematoxylin"] == pytest.approx([0.5 / length, 0.7 / length, 0.5 / length])
    assert used["background"] == [250, 251, 252]


def test_objects_of_a_turned_and_cropped_image_are_in_its_frame(project: Project, ask: Ask, tmp_path: Path) -> None:
    leaf = project.entries[0].server_builder
    builder = cropped(30, 10, 70, 180, rotated(90, leaf))
    # A quarter turn clockwise of 200 x 100 px takes (x, y) to (100 - y, x), the crop (30, 10) away from it.
    frame = shapely.box(30, 20, 60, 60)  # slide x 30 to 70, y 10 to 40
    objects = make_objects([frame], object_type="annotation", ids=[LEFT])
    answer = ask(
        "detect-cells",
        objects=objects,
        selected=[LEFT],
        changes={"server": {"uris": [], "builder": builder}},
        image={"width": 70, "height": 180, "mpp": [0.5, 0.5], "type": "BRIGHTFIELD_H_DAB", "stains": None},
    )
    assert answer.status == "done", answer.message
    found = read_geojson(job_of(tmp_path) / "add.geojson")
    centres = sorted((round(p.x), round(p.y)) for p in shapely.centroid(found.geometry.to_numpy()))
    assert centres == [(40, 20), (40, 40), (40, 60)]  # (30, 30) goes to (70, 30) and then to (40, 20)


def test_an_image_of_another_size_is_refused(project: Project, ask: Ask) -> None:
    answer = ask("detect-cells", image={"width": 100, "height": 100, "mpp": None, "type": None, "stains": None})
    assert answer.status == "failed"
    assert "is 100 x 100 px in QuPath; expected 200 x 100 px" in answer.message


def test_an_image_that_was_never_saved_is_analysed_all_the_same(project: Project, ask: Ask) -> None:
    entry = project.entries[0]
    objects = make_objects([shapely.box(10, 10, 90, 60)], object_type="annotation", ids=[LEFT])
    (project.path.parent / "data" / entry.id / "data.qpdata").unlink()
    before = files_of(project)
    answer = ask("detect-cells", objects=objects, selected=[LEFT])
    assert answer.counts["cells"] == 3
    assert files_of(project) == before


def test_an_image_in_no_project_is_said_so(ask: Ask) -> None:
    assert "is in no project" in ask("detect-cells", shown={"id": None, "name": "a.svs"}).message
    assert "has no image with the id 77" in ask("detect-cells", shown={"id": "77", "name": "a.svs"}).message


def test_outlines_that_cross_themselves_or_have_no_area_stop_nothing(
    project: Project, ask: Ask, tmp_path: Path
) -> None:
    objects = project.entries[0].read_objects()
    bow = shapely.Polygon([(120, 70), (140, 90), (140, 70), (120, 90)])
    flat = shapely.Polygon([(120, 70), (140, 70), (130, 70)])
    odd = make_objects([bow], object_type="annotation")
    odd = pd.concat([odd, make_objects([shapely.box(0, 0, 1, 1)], object_type="annotation")])
    odd["geometry"] = gpd.array.from_shapely([bow, flat])
    assert ask("detect-cells", objects=pd.concat([objects, odd]), selected=[LEFT]).counts["cells"] == 3


def test_classes_are_handed_over_in_the_colours_that_they_have(project: Project, ask: Ask, tmp_path: Path) -> None:
    project.add_classes({"Tumor": pack_rgb(1, 2, 3), "Stroma": pack_rgb(4, 5, 6)})
    change_settings(project.path, tumour=str(tmp_path))
    answer = ask("tumour", selected=[LEFT], models=SimpleNamespace(get=lambda path, device: FakeTumour()))
    assert answer.status == "done", answer.message
    for one in answer.classes:
        assert one == {"name": "Tumor", "color": [200, 0, 0]}  # as it was in the project, and not recoloured


# ---------------------------------------------------------------------- models
class DarkTumour(FakeTumour):
    """Finds tumour everywhere."""

    def predict(self, tiles: Any) -> Any:
        shares = np.array([0.1, 0.9, 0.0], dtype=np.float32)
        return np.broadcast_to(shares[None, :, None, None], (len(tiles), 3, *tiles.shape[1:3])).copy()


def test_tumour_is_put_under_the_selected_annotation_with_the_model_that_is_warm(
    project: Project, ask: Ask, tmp_path: Path
) -> None:
    change_settings(project.path, tumour="models/t", device="cuda")
    asked = []

    def get(path: Path, device: str) -> Any:
        asked.append((path, device))
        return DarkTumour()

    answer = ask("tumour", selected=[RIGHT], models=SimpleNamespace(get=get))
    assert answer.status == "done", answer.message
    assert asked == [(project.path.parent / "models" / "t", "cuda")]
    assert answer.lock == (RIGHT,)
    [feature] = json.loads((job_of(tmp_path) / "add.geojson").read_text("utf-8"))["features"]
    assert feature["properties"]["parentId"] == RIGHT
    assert feature["properties"]["classification"]["name"] == "Tumor"
    area = shapely.geometry.shape(feature["geometry"]).intersection(shapely.box(110, 10, 190, 60)).area
    assert area > 0.9 * 4000
    saved(project, tmp_path)
    again = ask("tumour", selected=[RIGHT], models=SimpleNamespace(get=get))
    assert again.remove == (feature["id"],)


def test_a_model_of_another_kind_is_refused(project: Project, ask: Ask) -> None:
    change_settings(project.path, tumour="models/t")
    answer = ask("tumour", models=SimpleNamespace(get=lambda path, device: FakeCells()))
    assert answer.status == "failed"
    assert "is a model for cell detection; expected one for tissue segmentation" in answer.message


def test_without_a_model_the_remedy_is_named(ask: Ask) -> None:
    answer = ask("tumour")
    assert answer.error is not None
    assert "Train from annotations" in answer.error["remedy"]


def test_ki67_counts_and_names_the_classes(project: Project, ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    def classed(slide: Any, settings: Any, *, base_class: str | None, **options: Any) -> gpd.GeoDataFrame:
        cells = pretended_cells(slide, settings, **{key: options[key] for key in ("region", "progress")})
        cells["classification"] = [f"{base_class}: Positive", *[f"{base_class}: Negative"] * (len(cells) - 1)]
        return cells

    monkeypatch.setattr("qupath_ext.workflows.ki67slide.detect_cells", classed)
    options = {"automatic": False, "nucleus_size_um": "none", "stains": "default"}
    answer = ask("ki67-slide", options=options)
    assert answer.status == "done", answer.message
    assert answer.message.startswith("Ki-67: 33.3 % (")  # 1 of 3
    assert "1 of 3 cells positive, in 0.001 mm² (1 annotation of the class Tumor)." in answer.message
    assert answer.counts["Tumor: Negative"] == 2
    assert {one["name"]: one["color"] for one in answer.classes} == {
        "Tumor: Positive": [200, 50, 50],
        "Tumor: Negative": [90, 90, 180],
    }


# ---------------------------------------------------------------------- stopping
def test_a_job_that_is_stopped_between_tiles_leaves_no_trace(project: Project, ask: Ask, tmp_path: Path) -> None:
    before = files_of(project)

    def stop(stage: str, done: int, total: int) -> None:
        (job_of(tmp_path) / "cancel").touch()

    answer = ask("detect-cells", selected=[LEFT], progress=stop)
    assert answer == Answer("cancelled", "Stopped. Nothing was changed.", seconds=answer.seconds)
    assert runs_of(project) == []
    assert not (job_of(tmp_path) / "add.geojson").exists()
    assert files_of(project) == before
    assert ask("detect-cells", selected=[LEFT], cancelled=lambda: True).status == "cancelled"


# ---------------------------------------------------------------------- the saved project
def test_export_writes_beside_the_project_and_again_over_it(project: Project, ask: Ask) -> None:
    for _ in range(2):
        answer = ask("export", options={"formats": ["geojson"], "rows": ["annotation"]})
        folder = project.path.parent / "qupath_ext" / "export"
        assert sorted(path.name for path in folder.iterdir()) == ["1.geojson", "annotation.csv"]
        assert answer.counts == {"objects": 3, "images": 1, "files": 2}
        assert answer.open == str(folder)
    assert "format 'exe'; expected one of geojson" in ask("export", options={"formats": ["exe"]}).message


def test_evaluate_without_a_run_says_what_to_do_first(ask: Ask) -> None:
    answer = ask("evaluate")
    assert answer.error is not None
    assert answer.error["remedy"] == "run Ki-67 or Segment tumour first, and save"


def test_evaluate_compares_the_newest_run_with_what_was_drawn(project: Project, ask: Ask, tmp_path: Path) -> None:
    ask("detect-cells", selected=[LEFT])
    saved(project, tmp_path)
    points = make_objects([shapely.MultiPoint([CENTRES[0], CENTRES[1], (85, 55)])], object_type="annotation")
    open_project(project.path, backend="native").entries[0].write_objects(add=points)
    answer = ask("evaluate")
    assert answer.status == "done", answer.message
    assert answer.open is not None
    page = Path(answer.open)
    assert page.parent.parent == project.path.parent / "qupath_ext" / "reports"
    figures = pd.read_csv(page.with_name("figures.csv"))
    recall = figures[(figures["metric"] == "recall") & (figures["statistic"] == "pooled")]["value"]
    assert recall.iloc[0] == pytest.approx(2 / 6)  # of three points two; areas up to 1000 µm² count as cells, too


def test_a_trained_model_becomes_that_of_the_project(
    project: Project, ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = SimpleNamespace(bundle=SimpleNamespace(spec=FakeTumour.spec), result=SimpleNamespace(validation=[]))
    seen = []

    def train(run: Any, say: Any, progress: Any) -> Any:
        say("step 1")
        progress("train tissue segmentation", 1, 2)
        seen.append((run.output, run.minutes, run.wanted.patient_key, run.wanted.kind))
        return trained

    monkeypatch.setattr("qupath_ext.workflows.trainrun.run_training", train)
    answer = ask("train", options={"name": "Prostata ä", "task": "tissue", "minutes": 3})
    assert answer.status == "done", answer.message
    assert seen == [(project.path.parent / "qupath_ext" / "models" / "Prostata ä", 3.0, "Patient", "tissue")]
    assert read_settings(project.path).tumour == "qupath_ext/models/Prostata ä"
    for name in ("../x", "a/b", ".x", "x.training"):
        assert "expected the name of a folder" in ask("train", options={"name": name}).message


def test_a_training_that_was_interrupted_goes_on(project: Project, ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    (project.path.parent / "qupath_ext" / "models" / "lung.training").mkdir(parents=True)
    names = []

    def train(run: Any, say: Any, progress: Any) -> Any:
        names.append(run.output.name)
        return SimpleNamespace(bundle=SimpleNamespace(spec=FakeCells.spec), result=SimpleNamespace(validation=[]))

    monkeypatch.setattr("qupath_ext.workflows.trainrun.run_training", train)
    ask("train")
    assert names == ["lung"]
    assert read_settings(project.path).cells == "qupath_ext/models/lung"


def test_doctor_finds_a_model_that_is_gone_and_a_slide_that_is_there(project: Project, ask: Ask) -> None:
    assert ask("doctor").counts["bad"] == 0
    change_settings(project.path, cells="models/gone")
    answer = ask("doctor")
    assert answer.counts["bad"] == 1
    assert any("gone is not there" in note for note in answer.notes)
