"""Ki-67 on projects: what a person drew stays, what an earlier run wrote is replaced, what failed is a row."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from typing import Any

import geopandas as gpd
import pandas as pd
import pytest
import shapely
from click.testing import CliRunner, Result
from PIL import Image

from pyhisto.nuclei import CellDetectionSettings
from pyhisto.objects import concat_objects, make_objects
from pyhisto.slide import Slide
from pyhisto.stain import H_DAB
from pyhisto.synth import SynthSettings, make_slide
from qupath_ext.cli import main
from qupath_ext.errors import ProjectError
from qupath_ext.native.nativeentry import NativeEntry
from qupath_ext.project import ImageEntry, Project, create_project, open_project
from qupath_ext.runs.ownership import read_ownership, write_run
from qupath_ext.runs.record import Run, list_runs, start_run
from qupath_ext.workflows import ki67
from qupath_ext.workflows.ki67 import ImageResult, Ki67Settings, analyse_slide, annotate_project

FIXED = Ki67Settings(automatic=False, stains="default", detection=CellDetectionSettings(threshold=0.15))
TUMOUR = shapely.box(120, 120, 420, 420)
NESTED = shapely.box(200, 200, 260, 260)
IGNORED = shapely.box(300, 300, 500, 500)


@pytest.fixture(scope="session")
def slides(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("ki67-slides")
    paths = [folder / f"slide-{number}.tif" for number in (1, 2)]
    for number, path in enumerate(paths):
        make_slide(path, SynthSettings(width=640, height=640, seed=3 + number))
    return paths


@pytest.fixture(autouse=True)
def no_overlay(monkeypatch: pytest.MonkeyPatch) -> None:
    """The report gets a picture of nothing, which is quick; overlays have their own tests."""
    picture = io.BytesIO()
    Image.new("RGB", (8, 8)).save(picture, "PNG")
    monkeypatch.setattr("qupath_ext.workflows.reporting.overlay_png", lambda *args, **options: picture.getvalue())


def drawn() -> gpd.GeoDataFrame:
    """Return what a pathologist may have left: areas, one inside the other, an area to ignore, a note, points."""
    areas = make_objects(
        [TUMOUR, IGNORED],
        object_type="annotation",
        classification=["Tumor", "Ignore*"],
        name=["nest", None],
        ids=["00000000-0000-4000-8000-000000000001", "00000000-0000-4000-8000-000000000002"],
        metadata=[{"ANNOTATION_DESCRIPTION": "looks odd, ask Ä."}, None],
        color=[-1234, None],
    )
    inner = make_objects(
        [NESTED, shapely.MultiPoint([(150, 150), (160, 170)]), shapely.LineString([(10, 10), (50, 60)])],
        object_type="annotation",
        classification=["Necrosis", "Tumor: Positive", None],
        ids=[f"00000000-0000-4000-8000-00000000000{number}" for number in (3, 4, 5)],
        parent_id=["00000000-0000-4000-8000-000000000001", None, None],
        measurements={"mine": [1.5, 2.5, 3.5]},
    )
    return concat_objects([areas, inner])


@pytest.fixture
def project(tmp_path: Path, slides: list[Path]) -> Project:
    project = create_project(tmp_path / "project")
    entry = project.add_image(slides[0])
    entry.write_objects(add=drawn())
    return project


def again(project: Project) -> Project:
    return open_project(project.path)


def objects_of(project: Project, number: int = 0) -> gpd.GeoDataFrame:
    return again(project).entries[number].read_objects()


def cells_of(project: Project, number: int = 0) -> gpd.GeoDataFrame:
    objects = objects_of(project, number)
    return objects[objects["object_type"] == "cell"]


def annotate(project: Project, settings: Ki67Settings = FIXED, **options: Any) -> list[Any]:
    fresh = again(project)
    return list(annotate_project(fresh, fresh.entries, settings, **options))


def one_result(project: Project, settings: Ki67Settings = FIXED) -> ImageResult:
    (result,) = annotate(project, settings)
    assert isinstance(result, ImageResult), result
    return result


def overlapping(cells: gpd.GeoDataFrame) -> int:
    """Return how many pairs of nuclei share more than half of the smaller one: doubles."""
    shapes = cells["nucleus"].to_numpy()
    first, second = shapely.STRtree(shapes).query(shapes, predicate="intersects")
    first, second = first[first < second], second[first < second]
    shared = shapely.area(shapely.intersection(shapes[first], shapes[second]))
    return int((shared > 0.5 * shapely.area(shapes[first])).sum())


def edit_as_a_person(entry: ImageEntry, id_: str, **changes: Any) -> None:
    """Change an object as QuPath would: the same id with other contents."""
    entry.read_objects()
    with entry.edit() as change:
        change.update(pd.DataFrame({name: pd.Series([value], [id_], dtype=object) for name, value in changes.items()}))


def test_nothing_that_a_person_drew_changes_but_the_lock_of_the_parent(project: Project) -> None:
    before = objects_of(project)
    result = one_result(project)
    after = objects_of(project)
    hand = after.loc[before.index]
    parent = "00000000-0000-4000-8000-000000000001"
    assert dict(hand["locked"]) == {id_: id_ == parent for id_ in before.index}
    assert hand.geometry.geom_equals(before.geometry).all()
    for column in ("classification", "name", "color", "parent_id", "metadata", "plane", "mine"):
        ours, theirs = hand[column].astype(object), before[column].astype(object)
        assert ours.where(ours.notna(), None).tolist() == theirs.where(theirs.notna(), None).tolist(), column
    new = after.drop(index=before.index)
    assert set(new["object_type"]) == {"cell"}
    assert set(new["parent_id"]) == {parent}
    assert len(new) == result.index.total > 20
    assert set(new["classification"]) == {"Tumor: Positive", "Tumor: Negative"}


def test_cells_lie_inside_the_tumour_and_outside_what_is_ignored(project: Project) -> None:
    result = one_result(project)
    centres = shapely.centroid(cells_of(project)["nucleus"].to_numpy())
    assert shapely.contains(shapely.buffer(TUMOUR, 1), centres).all()
    assert not shapely.contains(shapely.buffer(IGNORED, -1), centres).any()
    assert shapely.contains(NESTED, centres).any()  # a hand-drawn annotation inside does not hide its cells
    assert result.region_area_mm2 == pytest.approx((300 * 300 - 120 * 120) * 0.25e-6)


def test_a_second_run_replaces_the_cells_of_the_first(project: Project) -> None:
    first = one_result(project)
    ids = set(cells_of(project).index)
    second = one_result(project)
    assert (second.replaced, second.kept) == (first.index.total, 0)
    cells = cells_of(project)
    assert len(cells) == first.index.total
    assert not ids & set(cells.index)
    assert len(objects_of(project)) == len(drawn()) + len(cells)


@pytest.mark.parametrize("change", [{"classification": "Stroma"}, {"name": "look here"}, {"locked": True}])
def test_a_cell_that_a_person_changed_stays(project: Project, change: dict[str, Any]) -> None:
    first = one_result(project)
    mine = str(cells_of(project).index[5])
    edit_as_a_person(again(project).entries[0], mine, **change)
    second = one_result(project)
    assert (second.kept, second.replaced) == (1, first.index.total - 1)
    assert second.summary()["kept_by_person"] == 1
    # the kept cell stands for the nucleus: no second one on it, and it counts unless it is no tumour cell any more
    assert second.index.total == first.index.total - ("classification" in change)
    cells = cells_of(project)
    nuclei = cells["nucleus"].to_numpy()
    assert shapely.intersects(cells.loc[mine, "nucleus"], shapely.centroid(nuclei)).sum() == 1
    assert all(cells.loc[mine, column] == value for column, value in change.items())
    third = one_result(project)
    assert third.kept == 1
    assert mine in cells_of(project).index


def test_an_annotation_of_this_tool_that_a_person_renamed_stays(tmp_path: Path, slides: list[Path]) -> None:
    project = create_project(tmp_path / "bare")
    entry = project.add_image(slides[0])
    one_result(project)
    areas = entry.read_objects().query("object_type == 'annotation'")
    assert set(areas["classification"]) == {"Tissue"}
    mine = str(areas.index[0])
    edit_as_a_person(entry, mine, name="tissue, checked")
    second = one_result(project)
    assert second.kept == 1
    assert objects_of(project).loc[mine, "name"] == "tissue, checked"


def test_tumour_that_an_earlier_run_found_is_looked_inside_and_kept(tmp_path: Path, slides: list[Path]) -> None:
    project = create_project(tmp_path / "bare")
    entry = project.add_image(slides[0])
    run = start_run(project, "ki67", {"from": "a model"}, {})
    ownership = read_ownership(project, "ki67", entry)
    tumour = make_objects(
        [shapely.box(200, 200, 500, 500)], object_type="annotation", classification="Tumor", locked=True
    )
    write_run(run, entry, tumour, ownership, replace=[])
    run.finish()
    result = one_result(project)
    assert result.replaced == 0
    assert tumour.index[0] in objects_of(project).index
    assert set(cells_of(project)["parent_id"]) == {tumour.index[0]}


def test_a_cell_that_a_person_deleted_is_nobody_s(project: Project) -> None:
    first = one_result(project)
    entry = again(project).entries[0]
    entry.read_objects()
    entry.write_objects(remove=[str(cells_of(project).index[0])])
    second = one_result(project)
    assert (second.replaced, second.kept) == (first.index.total - 1, 0)


def test_an_outline_that_crosses_itself_is_no_obstacle(slides: list[Path]) -> None:
    bow_tie = shapely.Polygon([(150, 150), (450, 450), (450, 150), (150, 450)])
    assert not bow_tie.is_valid
    shapes = [bow_tie, shapely.Polygon([(160, 160), (200, 200), (200, 160), (160, 200)])]
    table = make_objects(shapes, object_type="annotation", classification=["Tumor", "Ignore*"])
    with Slide(slides[0]) as slide:
        result = analyse_slide(slide, FIXED, stains=H_DAB, drawn=table)
    # two triangles of 150 x 300 px; of what is ignored one triangle of 20 x 40 px lies inside
    assert result.region_area_mm2 == pytest.approx((2 * 150 * 300 / 2 - 20 * 40 / 2) * 0.25e-6)
    assert result.index.total > 5


def test_dry_run_of_a_project_writes_nothing(project: Project) -> None:
    def contents() -> dict[Path, bytes]:
        return {path: path.read_bytes() for path in project.path.parent.rglob("*") if path.is_file()}

    before = contents()
    (result,) = annotate(project, dry_run=True)
    assert result.index.total > 20
    assert contents() == before


# ---------------------------------------------------------------------- several images
@pytest.fixture
def three(tmp_path: Path, slides: list[Path]) -> Project:
    """A project of three images, each with its own slide and a drawn tumour."""
    project = create_project(tmp_path / "three")
    for number in range(3):
        slide = tmp_path / f"image-{number}.tif"
        shutil.copy(slides[number % 2], slide)
        entry = project.add_image(slide)
        entry.write_objects(add=make_objects([TUMOUR], object_type="annotation", classification="Tumor"))
    return project


def run_cli(project: Project, *options: str) -> Result:
    command = ["ki67", str(project.path.parent), "--classical", "--no-auto", "--stains", "default", "--json", *options]
    return CliRunner().invoke(main, command)


def test_a_missing_slide_is_a_row_and_the_others_are_done(three: Project, tmp_path: Path) -> None:
    (tmp_path / "image-1.tif").unlink()
    result = run_cli(three)
    assert result.exit_code == 1, result.output
    summary = json.loads(result.stdout)
    assert [image["image"] for image in summary["images"]] == ["image-0.tif", "image-2.tif"]
    assert [image["image"] for image in summary["failed"]] == ["image-1.tif"]
    assert "does not exist" in summary["failed"][0]["error"]
    (run,) = list_runs(three)
    rows = {id_: row["status"] for id_, row in run.record["images"].items()}
    assert rows == {"1": "done", "2": "failed", "3": "done"}
    assert len(cells_of(three, 0)) == summary["images"][0]["cells"]
    assert len(cells_of(three, 1)) == 0


def test_a_slide_that_the_project_calls_h_and_e_gets_a_note(tmp_path: Path, slides: list[Path]) -> None:
    project = create_project(tmp_path / "stained")
    for image_type in ("BRIGHTFIELD_H_E", "BRIGHTFIELD_H_DAB"):
        slide = tmp_path / f"{image_type}.tif"
        shutil.copy(slides[0], slide)
        project.add_image(slide, image_type=image_type)
    first, second = json.loads(run_cli(project, "--region", "image").stdout)["images"]
    assert any("H&E" in note for note in first["notes"])
    assert not any("H&E" in note for note in second["notes"])


def test_only_the_images_that_were_named(three: Project) -> None:
    result = run_cli(three, "--image", "image-2.tif", "--image", "1", "--image", "image-2.tif")
    assert result.exit_code == 0, result.output
    assert [image["entry_id"] for image in json.loads(result.stdout)["images"]] == ["3", "1"]
    assert [len(cells_of(three, number)) > 0 for number in range(3)] == [True, False, True]


def test_an_interrupted_run_goes_on(three: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    analyse = ki67.analyse_slide

    def interrupted(slide: Any, *args: Any, **options: Any) -> Any:
        if slide.path.name == "image-1.tif" and len(done) == 1:
            raise KeyboardInterrupt
        done.append(slide.path.name)
        return analyse(slide, *args, **options)

    monkeypatch.setattr(ki67, "analyse_slide", interrupted)
    result = run_cli(three)
    assert result.exit_code == 130
    assert done == ["image-0.tif"]
    first = set(cells_of(three, 0).index)
    assert len(first) > 20
    monkeypatch.setattr(ki67, "analyse_slide", lambda *a, **o: done.append(a[0].path.name) or analyse(*a, **o))
    result = run_cli(three)
    assert result.exit_code == 0, result.output
    assert done == ["image-0.tif", "image-1.tif", "image-2.tif"]
    assert set(cells_of(three, 0).index) == first
    summary = json.loads(result.stdout)
    assert [image["cells"] for image in summary["images"]] == [len(cells_of(three, number)) for number in range(3)]
    (run,) = list_runs(three)
    assert run.record["status"] == "done"
    page = (three.path.parent / "qupath_ext" / "report.html").read_text("utf-8")
    assert all(f"image-{number}.tif" in page for number in range(3))


@pytest.mark.parametrize(
    ("owner", "name"),
    [pytest.param(NativeEntry, "_apply", id="before"), pytest.param(Run, "finish_image", id="after")],
)
def test_a_crash_around_the_write_leaves_no_doubles(
    project: Project, monkeypatch: pytest.MonkeyPatch, owner: type, name: str
) -> None:
    def crash(*args: Any, **options: Any) -> None:
        raise MemoryError

    for _ in range(2):
        with monkeypatch.context() as patched:
            patched.setattr(owner, name, crash)
            with pytest.raises(MemoryError):
                annotate(project)
    result = one_result(project)
    cells = cells_of(project)
    assert len(cells) == result.index.total
    assert result.kept == 0
    assert overlapping(cells) == 0
    (run,) = list_runs(project)
    assert [path.name for path in run.objects_files("1")] == ["1.parquet"]


# ---------------------------------------------------------------------- where, and with which stains
def test_tumour_that_is_asked_for_and_missing(tmp_path: Path, slides: list[Path]) -> None:
    project = create_project(tmp_path / "bare")
    project.add_image(slides[0])
    ((_, error),) = annotate(project, Ki67Settings(region="tumour"))
    assert isinstance(error, ProjectError)
    assert "no annotation of the class 'Tumor'" in str(error)


def test_project_stains_are_used_as_they_are(project: Project) -> None:
    result = one_result(project, Ki67Settings(stains="project", automatic=False))
    assert result.settings["background"] == [255.0, 255.0, 255.0]
    assert result.settings["detection"]["threshold"] == CellDetectionSettings().threshold


def test_a_cropped_and_turned_image_gets_its_objects_where_it_shows_them(tmp_path: Path, slides: list[Path]) -> None:
    plain = create_project(tmp_path / "plain")
    plain.add_image(slides[0]).write_objects(
        add=make_objects([TUMOUR], object_type="annotation", classification="Tumor")
    )
    turned = create_project(tmp_path / "turned")
    turned.add_image(slides[0])
    content = json.loads(turned.path.read_text("utf-8"))
    inner = content["images"][0]["serverBuilder"]
    content["images"][0]["serverBuilder"] = {"builderType": "rotated", "builder": inner, "rotation": "ROTATE_180"}
    turned.path.write_text(json.dumps(content), "utf-8")
    turned = open_project(turned.path)
    shown = shapely.box(640 - 420, 640 - 420, 640 - 120, 640 - 120)
    turned.entries[0].write_objects(add=make_objects([shown], object_type="annotation", classification="Tumor"))
    first, second = one_result(plain), one_result(turned)
    assert first.index == second.index
    here = shapely.centroid(cells_of(plain)["nucleus"].to_numpy())
    there = shapely.centroid(cells_of(turned)["nucleus"].to_numpy())
    mirrored = shapely.transform(there, lambda xy: 640 - xy)
    distance = [shapely.distance(shapely.MultiPoint(here), point) for point in mirrored]
    assert max(distance) < 0.05
