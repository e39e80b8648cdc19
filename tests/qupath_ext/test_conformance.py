"""What every backend of the project store does alike: one set of tests for the native one and for Paquo.

The numbers are worked out by hand, or come from the projects that QuPath itself wrote.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import shapely

from pyhisto.errors import PyhistoError, SlideError
from pyhisto.objects import concat_objects, make_objects, measurement_names
from qupath_ext.errors import (
    ChangedOnDiskError,
    EntryNotFoundError,
    FormatError,
    ProjectError,
    ProjectExistsError,
    ProjectNotFoundError,
)
from qupath_ext.paquo_bridge import find_qupath
from qupath_ext.project import H_DAB, H_E, Stains, TmaGrid, create_project, open_project, pack_rgb

GOLDEN = Path(__file__).parents[2] / ".." / "shared" / "golden"
golden = pytest.mark.skipif(
    not GOLDEN.exists(), reason="the projects written by QuPath (../shared/golden) are not here"
)
BACKENDS = ["native", pytest.param("paquo", marks=pytest.mark.qupath)]
ROUNDING = 0.01
"""Pixels: float32 vertices, and the precision of QuPath 0.6 for shapes of several parts."""


@pytest.fixture(params=BACKENDS)
def backend(request):
    return need(request.param)


def need(backend):
    if backend == "paquo" and find_qupath() is None:
        pytest.skip("no QuPath is found; set PAQUO_QUPATH_DIR")
    return backend


@pytest.fixture
def project(tmp_path, backend):
    classes = {"Tumor": pack_rgb(1, 2, 3), "Region of interest": None}
    return create_project(tmp_path / "project", classes=classes, backend=backend)


@pytest.fixture
def entry(project, gradient_slide):
    return project.add_image(gradient_slide, name="slide")


def again(entry, backend):
    """The same image, opened anew."""
    return open_project(entry.data_file.parents[2], backend=backend).entry(entry.id)


def box(x, y, width=10, height=10):
    return shapely.box(x, y, x + width, y + height)


def annotations(*geometry, **columns):
    return make_objects(list(geometry), object_type="annotation", **columns)


def value(table, object_id, column):
    found = table.loc[object_id, column]
    return None if not isinstance(found, (dict, tuple, list)) and pd.isna(found) else found


def assert_same(a, b, *, ordered=True):
    """Two path-object tables say the same."""
    if not ordered:
        a, b = a.sort_index(), b.sort_index()
    assert list(a.index) == list(b.index)
    assert set(a.columns) == set(b.columns)
    assert shapely.equals_exact(a.geometry.to_numpy(), b.geometry.to_numpy(), tolerance=ROUNDING, normalize=True).all()
    for column in ("object_type", "classification", "name", "locked", "color", "parent_id", "plane", "metadata"):
        for object_id in a.index:
            assert value(a, object_id, column) == value(b, object_id, column), (column, object_id)
    for x, y in zip(a["nucleus"], b["nucleus"], strict=True):
        assert (x is None) == (y is None)
        assert x is None or shapely.equals_exact(x, y, tolerance=ROUNDING, normalize=True)
    for name in measurement_names(a):
        np.testing.assert_array_equal(a[name].to_numpy(), b[name].to_numpy())


# ---------------------------------------------------------------------- kinds of objects and shapes
SHAPES = {
    "rectangle": box(10, 20, 100, 50),
    "triangle": shapely.Polygon([(0, 0), (30, 0), (0, 40)]),
    "ring": box(0, 0, 100, 100).difference(box(20, 20, 10, 30)),
    "two parts": shapely.MultiPolygon([box(0, 0, 10, 20), box(50, 50, 30, 10)]),
    "long outline": shapely.Point(200, 200).buffer(100, quad_segs=100),
    "point": shapely.Point(3.5, 4.25),
    "points": shapely.MultiPoint([(1, 2), (3, 4), (5.5, 6)]),
    "line": shapely.LineString([(0, 0), (30, 40)]),
    "polyline": shapely.LineString([(0, 0), (3, 4), (3, 10)]),
    "lines": shapely.MultiLineString([[(0, 0), (7, 8)], [(1, 1), (2, 2), (9, 2)]]),
}
SIZES = {
    "rectangle": 5000,
    "triangle": 600,
    "ring": 9700,
    "two parts": 500,
    "line": 50,
    "polyline": 11,
    "points": 3,
}
"""Area, length, or number of points."""


def test_shapes(entry, backend):
    table = annotations(*SHAPES.values(), name=list(SHAPES))
    counts = entry.write_objects(table)
    assert counts.added == {"annotation": len(SHAPES)}
    found = again(entry, backend).read_objects()
    assert list(found.index) == list(table.index)
    assert list(found["name"]) == list(SHAPES)
    for name, shape in zip(found["name"], found.geometry, strict=True):
        assert shape.geom_type == SHAPES[name].geom_type
        assert shapely.equals_exact(shape, SHAPES[name], tolerance=ROUNDING, normalize=True)
    by_name = found.set_index("name").geometry
    for name, size in SIZES.items():
        shape = by_name[name]
        measured = {"Polygon": shape.area, "MultiPolygon": shape.area, "LineString": shape.length}
        assert measured.get(shape.geom_type, shapely.get_num_geometries(shape)) == pytest.approx(size)


def test_detections_tiles_and_cells_with_and_without_nucleus(entry, backend):
    cells = make_objects(
        [box(0, 0, 20, 20), box(40, 0, 20, 20)],
        object_type="cell",
        nucleus=[box(5, 5, 8, 8), None],
        classification=["Tumor: Positive", "Tumor: Negative"],
    )
    others = make_objects(
        [box(0, 40), shapely.Point(5, 45), box(20, 40, 32, 32)], object_type=["detection", "detection", "tile"]
    )
    counts = entry.write_objects(concat_objects([cells, others]))
    assert counts.added == {"cell": 2, "detection": 2, "tile": 1}
    found = again(entry, backend).read_objects()
    assert sorted(found["object_type"]) == ["cell", "cell", "detection", "detection", "tile"]
    assert found.loc[cells.index[0], "nucleus"].area == 64
    assert found.loc[cells.index[1], "nucleus"] is None
    assert list(found.loc[cells.index, "classification"]) == ["Tumor: Positive", "Tumor: Negative"]
    assert found.loc[others.index[1], "geometry"].equals(shapely.Point(5, 45))
    assert found.loc[others.index[2], "geometry"].area == 1024


@pytest.mark.parametrize("n", [3, 100])  # one by one, and in bulk
def test_measurements_keep_their_order_and_missing_values(entry, backend, n):
    values = {"b: µm²": np.arange(n) / 3, "a": np.where(np.arange(n) % 2, np.nan, 7.5), "c": np.full(n, -2.0)}
    table = make_objects([box(20 * i, 0) for i in range(n)], object_type="detection", measurements=values)
    region = annotations(box(0, 0, 100, 100), measurements={"third": [1 / 3]})
    entry.write_objects(concat_objects([region, table]))
    found = again(entry, backend).read_objects()
    assert measurement_names(found.loc[table.index].dropna(axis=1, how="all")) == ["b: µm²", "a", "c"]
    np.testing.assert_array_equal(found.loc[table.index, "b: µm²"], (np.arange(n) / 3).astype(np.float32))
    np.testing.assert_array_equal(found.loc[table.index, "a"], values["a"])
    assert found.loc[region.index[0], "third"] == 1 / 3  # a double
    assert np.isnan(found.loc[region.index[0], "a"])


def test_names_colours_locks_and_metadata(entry, backend):
    metadata = {"ANNOTATION_DESCRIPTION": "first\nsecond – größer 😐", "Schlüssel": ""}
    table = annotations(
        box(0, 0),
        box(20, 0),
        name=["Ä 名前 😐", None],
        color=[pack_rgb(255, 0, 10), None],
        locked=[True, False],
        metadata=[metadata, None],
    )
    entry.write_objects(table)
    found = again(entry, backend).read_objects()
    first, second = table.index
    assert found.loc[first, "name"] == "Ä 名前 😐"
    assert found.loc[first, "color"] == -65526
    assert found.loc[first, "locked"]
    assert found.loc[first, "metadata"] == metadata
    assert [value(found, second, column) for column in ("name", "color", "metadata")] == [None, None, None]
    assert not found.loc[second, "locked"]


def test_planes(entry, backend):
    planes = [(-1, 2, 0), (1, 0, 3), None]
    table = annotations(box(0, 0), shapely.Point(1, 2), SHAPES["ring"], plane=planes)
    entry.write_objects(table)
    found = again(entry, backend).read_objects()
    assert [value(found, object_id, "plane") for object_id in table.index] == planes


def test_nested_annotations(entry, backend):
    outer = annotations(box(0, 0, 100, 100), name="outer")
    middle = annotations(box(0, 0, 50, 50), name="middle", parent_id=outer.index[0])
    inner = annotations(box(0, 0, 20, 20), name="inner", parent_id=middle.index[0])
    entry.write_objects(concat_objects([inner, outer, middle]))
    cells = make_objects([box(i, 0, 1, 1) for i in range(20)], object_type="cell", parent_id=inner.index[0])
    entry.write_objects(cells)
    found = again(entry, backend).read_objects()
    assert list(found["name"].iloc[:3]) == ["outer", "middle", "inner"]  # parents first
    assert list(found["parent_id"].iloc[:3]) == [None, outer.index[0], middle.index[0]]
    assert list(found.index[3:]) == list(cells.index)
    assert set(found["parent_id"].iloc[3:]) == {inner.index[0]}


# ---------------------------------------------------------------------- classes
def test_derived_classes_and_colours(project, entry, backend):
    names = ["Tumor", "Tumor: Positive", "Neu: ü: drei", None]
    entry.write_objects(annotations(*[box(20 * i, 0) for i in range(4)], classification=names))
    found = again(entry, backend).read_objects()
    assert [value(found, object_id, "classification") for object_id in found.index] == names
    assert open_project(project.path, backend=backend).classes == project.classes
    assert project.classes["Tumor"] == pack_rgb(1, 2, 3)
    # the colour that the project has for the class, and no other, is in the data file
    raw = entry.data_file.read_bytes()
    assert pack_rgb(1, 2, 3).to_bytes(4, "big", signed=True) in raw
    assert pack_rgb(200, 0, 0).to_bytes(4, "big", signed=True) not in raw


def test_classes_are_appended_and_never_recoloured(project, backend):
    assert project.add_classes({"Tumor": pack_rgb(9, 9, 9), "B: C": pack_rgb(4, 5, 6)}) == ["B: C"]
    found = open_project(project.path, backend=backend).classes
    assert list(found) == ["Tumor", "Region of interest", "B: C"]
    assert found["Tumor"] == pack_rgb(1, 2, 3)
    assert found["B: C"] == pack_rgb(4, 5, 6)
    with pytest.raises(ProjectError):
        project.add_classes({"two\nlines": None})


# ---------------------------------------------------------------------- changes
@pytest.fixture
def family(entry):
    """A grandparent, a parent with two children and eight cells."""
    outer = annotations(box(0, 0, 100, 100), name="outer")
    parent = annotations(box(0, 0, 50, 50), name="parent", parent_id=outer.index[0])
    children = annotations(box(0, 0), box(20, 0), name=["one", "two"], parent_id=parent.index[0])
    cells = make_objects(
        [box(i, 30, 1, 1) for i in range(8)],
        object_type="cell",
        parent_id=parent.index[0],
        classification="Tumor",
        measurements={"a": np.arange(8.0), "b": 1.5},
    )
    entry.write_objects(concat_objects([outer, parent, children, cells]))
    return {"outer": outer.index[0], "parent": parent.index[0], "children": [*children.index], "cells": [*cells.index]}


def test_children_of_what_is_removed_move_to_its_parent(entry, backend, family):
    counts = entry.write_objects(remove=[family["parent"], family["cells"][0], family["children"][1]])
    assert (counts.removed, counts.n_added, counts.locked) == (3, 0, 0)
    found = again(entry, backend).read_objects()
    assert set(found.index) == {family["outer"], family["children"][0], *family["cells"][1:]}
    assert set(found["parent_id"].dropna()) == {family["outer"]}
    entry.write_objects(remove=[family["outer"]])
    found = again(entry, backend).read_objects()
    assert len(found) == 8
    assert found["parent_id"].isna().all()


def test_locking_and_unlocking(entry, backend, family):
    assert entry.write_objects(lock=[family["outer"], family["cells"][3]]).locked == 2
    with entry.edit() as change:
        change.lock([family["outer"], family["parent"]])
        change.unlock([family["cells"][3]])
    assert change.counts.locked == 2  # outer was locked already
    found = again(entry, backend).read_objects()
    assert list(found.index[found["locked"]]) == [family["outer"], family["parent"]]


def test_everything_in_one_change(entry, backend, family):
    new = make_objects([box(60, 60)], object_type="cell", parent_id=family["outer"], ids=[family["cells"][0]])
    with entry.edit() as change:
        change.add(new)
        change.remove([family["parent"], *family["cells"]])
        change.lock([family["children"][0]])
        change.update(pd.DataFrame({"name": ["new name"]}, index=[family["outer"]]))
        change.set_image_type("BRIGHTFIELD_H_E")
    counts = change.counts
    assert (dict(counts.added), counts.removed, counts.locked, counts.updated) == ({"cell": 1}, 9, 1, 1)
    reopened = again(entry, backend)
    assert reopened.image_type == "BRIGHTFIELD_H_E"
    found = reopened.read_objects()
    assert set(found.index) == {family["outer"], *family["children"], family["cells"][0]}
    assert found.loc[family["outer"], "name"] == "new name"
    assert found.loc[family["cells"][0], "geometry"].bounds == (60, 60, 70, 70)
    assert set(found["parent_id"].dropna()) == {family["outer"]}


def test_updating(entry, backend, family):
    before = entry.read_objects()
    cell = family["cells"]
    table = pd.DataFrame(
        {
            "classification": ["Stroma", None],
            "name": [None, "second"],
            "color": [None, pack_rgb(0, 0, 255)],
            "locked": [True, False],
            "metadata": [{"k": "v"}, None],
            "geometry": [box(90, 90, 4, 4), before.loc[cell[1], "geometry"]],
            "nucleus": [box(91, 91, 1, 2), None],
            "a": [np.nan, 25.0],
            "new": [0.5, 0.25],
        },
        index=cell[:2],
    )
    with entry.edit() as change:
        change.update(table)
    assert change.counts.updated == 2
    after = again(entry, backend).read_objects()
    assert list(after.index) == list(before.index)
    assert_same(after.drop(index=cell[:2]).drop(columns="new"), before.drop(index=cell[:2]))
    first, second = cell[:2]
    assert value(after, first, "classification") == "Stroma"
    assert value(after, second, "classification") is None
    assert [value(after, i, "name") for i in (first, second)] == [None, "second"]
    assert value(after, second, "color") == -16776961
    assert value(after, first, "metadata") == {"k": "v"}
    assert bool(after.loc[first, "locked"])
    assert after.loc[first, "geometry"].bounds == (90, 90, 94, 94)
    assert after.loc[first, "nucleus"].area == 2
    assert list(after.loc[[first, second], "a"]) == [0.0, 25.0]  # a missing one leaves the old value
    assert list(after.loc[[first, second], "b"]) == [1.5, 1.5]
    assert list(after.loc[[first, second], "new"]) == [0.5, 0.25]
    assert (after.loc[cell, "parent_id"] == family["parent"]).all()


def test_image_type_and_stains(project, entry, gradient_slide, backend):
    assert (entry.image_type, entry.stains) == ("BRIGHTFIELD_H_DAB", H_DAB)
    assert project.add_image(gradient_slide, image_type="BRIGHTFIELD_H_E").stains == H_E
    own = Stains("own", "H", (0.6, 0.7, 0.3), "D", (0.3, 0.5, 0.8), "R", (0.7, 0.1, 0.7), (241.0, 240.5, 239.0))
    assert project.add_image(gradient_slide, stains=own).stains == own
    entry.write_objects(annotations(box(0, 0)))
    with entry.edit() as change:
        change.set_image_type("BRIGHTFIELD_H_DAB", own)
    assert again(entry, backend).stains == own
    with entry.edit() as change:
        change.set_image_type("FLUORESCENCE")
    reopened = again(entry, backend)
    assert (reopened.image_type, reopened.stains) == ("FLUORESCENCE", None)
    assert len(reopened.read_objects()) == 1


def test_a_tma_grid(entry, backend):
    assert entry.read_tma_grid() is None
    centres = [(30, 30), (60, 30), (90, 30), (30, 60), (60, 60), (90, 60)]
    cores = make_objects(
        [shapely.Point(centre).buffer(10) for centre in centres],
        object_type="tma_core",
        name=["A-1", "A-2", "A-3", "B-1", "B-2", "B-3"],
    )
    spot = annotations(box(28, 28, 4, 4), parent_id=cores.index[0])
    with entry.edit() as change:
        change.add(concat_objects([cores, spot]))
        change.set_tma_grid(TmaGrid(3, 2, tuple(cores.index)))
    reopened = again(entry, backend)
    assert reopened.read_tma_grid() == TmaGrid(3, 2, tuple(cores.index))
    found = reopened.read_objects()
    assert list(found.loc[cores.index, "name"]) == ["A-1", "A-2", "A-3", "B-1", "B-2", "B-3"]
    np.testing.assert_allclose(found.loc[cores.index[4], "geometry"].bounds, (50, 50, 70, 70), atol=0.05)
    assert found.loc[spot.index[0], "parent_id"] == cores.index[0]
    unchanged(reopened, ProjectError, "core", remove=[cores.index[1]])
    with pytest.raises(ProjectError, match="grid already"), reopened.edit() as change:
        change.set_tma_grid(TmaGrid(3, 2, tuple(cores.index)))


# ---------------------------------------------------------------------- refusing
def unchanged(entry, error, match, **arguments):
    """Something is refused, and no byte on the disk is another."""
    folder = entry.data_file.parents[2]
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with pytest.raises(error, match=match):
        entry.write_objects(**arguments)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_what_cannot_be_done_changes_nothing(entry, family):
    new = annotations(box(0, 0))
    stranger = new.index[0]
    unchanged(entry, ProjectError, "is in the image already", add=annotations(box(0, 0), ids=[family["outer"]]))
    unchanged(entry, ProjectError, "is in the image already", add=annotations(box(0, 0), ids=[family["cells"][2]]))
    unchanged(entry, ProjectError, f"{stranger} is not in the image", remove=[stranger])
    unchanged(entry, ProjectError, f"{stranger} is not in the image", lock=[stranger])
    unchanged(entry, ProjectError, f"{stranger} is not in the image", add=annotations(box(0, 0), parent_id=stranger))
    below = annotations(box(0, 0), parent_id=family["parent"])
    unchanged(entry, ProjectError, "is removed in the same change", add=below, remove=[family["parent"]])
    unchanged(entry, ProjectError, "locked and removed", lock=[family["parent"]], remove=[family["parent"]])
    bow_tie = shapely.Polygon([(0, 0), (10, 10), (10, 0), (0, 10)])
    unchanged(entry, ProjectError, "invalid", add=annotations(bow_tie))
    with pytest.raises(ProjectError, match="not in the image"), entry.edit() as change:
        change.update(pd.DataFrame({"name": ["x"]}, index=[stranger]))


def test_ids_that_occur_twice_are_refused(entry):
    """QuPath lets them pass; which object a change means would be a guess."""
    table = annotations(box(0, 0), box(20, 0))
    entry.write_objects(table)
    first, second = (object_id.encode() for object_id in table.index)
    entry.data_file.write_bytes(entry.data_file.read_bytes().replace(second, first))
    with pytest.raises(FormatError, match=f"two objects with the id {table.index[0]}"):
        entry.read_objects()


def test_a_block_that_fails_writes_nothing(entry, backend, family):
    before = entry.data_file.read_bytes()
    with pytest.raises(KeyError), entry.edit() as change:
        change.remove({"outer": [family["outer"]]}["something else"])
    assert entry.data_file.read_bytes() == before
    assert len(again(entry, backend).read_objects()) == 12


def test_what_others_changed_is_not_overwritten(entry, backend, family):
    mine, other = again(entry, backend), again(entry, "native")
    mine.read_objects()
    other.write_objects(remove=[family["cells"][0]])
    unchanged(mine, ChangedOnDiskError, "changed", lock=[family["outer"]])
    mine.read_objects()
    assert mine.write_objects(lock=[family["outer"]]).locked == 1
    project = open_project(entry.data_file.parents[2], backend=backend)
    other.update(name="renamed")
    with pytest.raises(ChangedOnDiskError):
        project.entries[0].update(description="mine")
    assert again(entry, backend).name == "renamed"


def test_the_state_before_stays_as_a_backup(entry, backend, family):
    before = entry.data_file.read_bytes()
    entry.write_objects(remove=[family["outer"]])
    backup = entry.data_file.with_name("data.qpdata.qupath-ext-backup")
    assert backup.read_bytes() == before
    assert not list(entry.folder.glob(".*"))


def test_a_slide_that_is_not_there(project, gradient_slide, tmp_path, backend):
    slide = shutil.copy(gradient_slide, tmp_path / "away.tif")
    entry = project.add_image(slide)
    Path(slide).unlink()
    with pytest.raises(ProjectError, match="does not exist"):
        _ = again(entry, backend).slide_path
    found = again(entry, backend)
    found.write_objects(annotations(box(0, 0), classification="Tumor"))
    found.write_objects(lock=list(found.read_objects().index))
    table = again(entry, backend).read_objects()
    assert list(table["classification"]) == ["Tumor"]
    assert list(table["locked"]) == [True]


# ---------------------------------------------------------------------- images and projects
def test_what_the_project_says_of_an_image(project, gradient_slide, backend):
    entry = project.add_image(
        gradient_slide, name="Fall 7", mpp=(0.25, 0.3), metadata={"Fall": "7", "alt": "x"}, description="eins\nzwei ü"
    )
    reopened = again(entry, backend)
    assert (reopened.id, reopened.name, reopened.description) == ("1", "Fall 7", "eins\nzwei ü")
    assert reopened.mpp == pytest.approx((0.25, 0.3))
    assert reopened.metadata == {"Fall": "7", "alt": "x"}
    assert reopened.tags == []
    assert reopened.slide_path == gradient_slide
    assert reopened.slide_frame() == (1, 0, 0, 1, 0, 0)
    reopened.update(
        name="Fall <8> & 'mehr'", description=None, metadata={"alt": None, "neu": "ü"}, tags=["a", "b ü"], mpp=0.5
    )
    found = again(entry, backend)
    assert (found.name, found.description) == ("Fall <8> & 'mehr'", None)
    assert found.metadata == {"Fall": "7", "neu": "ü"}
    assert found.tags == ["a", "b ü"]
    assert found.mpp == (0.5, 0.5)
    with pytest.raises(ProjectError):
        found.update(mpp=-1)


def test_pixels_and_thumbnail_of_an_image(project, gradient_slide):
    entry = project.add_image(gradient_slide)
    metadata = entry.server_builder["metadata"]
    assert (metadata["width"], metadata["height"]) == (128, 96)
    assert [level["downsample"] for level in metadata["levels"]] == [1, 2, 4]
    assert entry.mpp == pytest.approx((0.5, 0.5))
    from PIL import Image

    with Image.open(entry.folder / "thumbnail.jpg") as thumbnail:
        assert thumbnail.size == (128, 96)
        red, green, blue = thumbnail.convert("RGB").getpixel((100, 20))
    assert (red, green, blue) == pytest.approx((200, 40, 7), abs=12)  # JPEG


def test_adding_and_removing_images(project, gradient_slide, backend):
    entries = [project.add_image(gradient_slide, name=name) for name in ("a", "b", "c")]
    assert [entry.id for entry in entries] == ["1", "2", "3"]
    project.remove_image(project.entry("b"), delete_data=True)
    project.remove_image(project.entry("c"))
    assert not entries[1].folder.exists()
    assert entries[2].folder.exists()
    reopened = open_project(project.path, backend=backend)
    assert [entry.name for entry in reopened.entries] == ["a"]
    assert reopened.add_image(gradient_slide).id == "4"  # an id is not given twice
    with pytest.raises(EntryNotFoundError):
        project.remove_image(entries[1])


def test_what_cannot_be_added(project, tmp_path, gradient_slide):
    before = sorted(path for path in project.path.parent.rglob("*") if path.name != "lock")
    (tmp_path / "no slide.svs").write_bytes(b"not an image")
    for slide in (tmp_path / "missing.svs", tmp_path / "no slide.svs"):
        with pytest.raises(SlideError):
            project.add_image(slide)
    with pytest.raises(PyhistoError):
        project.add_image(gradient_slide, mpp=-1)
    with pytest.raises(ProjectError, match="image type"):
        project.add_image(gradient_slide, image_type="IHC")
    with pytest.raises(ProjectError, match="metadata"):
        project.add_image(gradient_slide, metadata={"a": 1})
    assert sorted(path for path in project.path.parent.rglob("*") if path.name not in ("lock", "qupath_ext")) == [
        path for path in before if path.name != "qupath_ext"
    ]
    assert project.entries == []


@pytest.mark.parametrize("name", ["v1.2", "two words", "Präparat", "#3", "50%", "a+b & c", "名前"])
def test_names_of_folders(tmp_path, gradient_slide, backend, name):
    slide = tmp_path / f"slides {name}" / f"slide {name}.tif"
    slide.parent.mkdir()
    shutil.copy(gradient_slide, slide)
    project = create_project(tmp_path / name, classes={"Tumor": None}, backend=backend)
    entry = project.add_image(slide)
    entry.write_objects(annotations(box(1, 2), classification="Tumor"))
    found = open_project(tmp_path / name, backend=backend)
    assert found.path == tmp_path / name / "project.qpproj"
    assert found.entries[0].name == slide.name
    assert found.entries[0].slide_path == slide
    assert list(found.entries[0].read_objects()["classification"]) == ["Tumor"]


def test_where_there_is_no_project_or_something_else(tmp_path, backend):
    with pytest.raises(ProjectNotFoundError):
        open_project(tmp_path, backend=backend)
    (tmp_path / "something").touch()
    with pytest.raises(ProjectExistsError):
        create_project(tmp_path, backend=backend)


def test_a_project_says_what_reads_it(tmp_path, backend):
    with create_project(tmp_path / "p", backend=backend) as project:
        assert project.backend == backend
        assert project.backend_version.startswith(backend)
        assert project.entries == []


# ---------------------------------------------------------------------- one backend reads what the other wrote
@pytest.mark.qupath
@pytest.mark.parametrize(("writer", "reader"), [("native", "paquo"), ("paquo", "native")])
def test_cross_reading(tmp_path, gradient_slide, writer, reader):
    need("paquo")
    project = create_project(tmp_path / "p", classes={"Tumor": pack_rgb(1, 2, 3)}, backend=writer)
    entry = project.add_image(gradient_slide, name="ä", metadata={"k": "v"}, description="d", mpp=0.25)
    shapes = annotations(*SHAPES.values(), name=list(SHAPES), classification="Tumor", plane=[(-1, 1, 0)] * len(SHAPES))
    cells = make_objects(
        [box(i, 0, 5, 5) for i in range(100)],
        object_type="cell",
        nucleus=[None if i % 3 else box(i, 1, 2, 2) for i in range(100)],
        classification=[("Tumor: Positive", "Neu: ü", None)[i % 3] for i in range(100)],
        parent_id=shapes.index[0],
        measurements={"a": np.arange(100) / 7, "b": np.where(np.arange(100) % 2, np.nan, 1.0)},
        locked=[i % 10 == 0 for i in range(100)],
    )
    entry.write_objects(concat_objects([shapes, cells]))
    entry.write_objects(remove=[*cells.index[:10], shapes.index[1]], lock=[shapes.index[0]])
    mine, theirs = (again(entry, name) for name in (writer, reader))
    assert_same(mine.read_objects(), theirs.read_objects())
    assert len(theirs.read_objects()) == len(shapes) + 100 - 11
    for name in ("name", "metadata", "description", "mpp", "image_type", "stains", "server_builder"):
        assert getattr(mine, name) == getattr(theirs, name)
    theirs.write_objects(annotations(box(3, 3), name="theirs"))
    assert_same(again(entry, writer).read_objects(), theirs.read_objects())


def copied(version, kind, tmp_path):
    folder = tmp_path / kind
    shutil.copytree(GOLDEN / version / kind, folder)
    for path in [folder, *folder.rglob("*")]:
        path.chmod(0o755)
    return next(folder.rglob("project.qpproj"))


@golden
@pytest.mark.qupath
@pytest.mark.parametrize("version", ["v0.3.2", "v0.5.1", "v0.6.0"])
@pytest.mark.parametrize("kind", ["plain", "tma", "conn", "real/project", "cells/project"])
def test_projects_of_qupath_are_read_alike(version, kind, tmp_path):
    need("paquo")
    if not (GOLDEN / version / kind).exists():
        pytest.skip("QuPath 0.3.2 wrote no such project")
    path = copied(version, kind, tmp_path)
    native, paquo = (open_project(path, backend=name) for name in ("native", "paquo"))
    assert native.classes == paquo.classes
    for a, b in zip(native.entries, paquo.entries, strict=True):
        assert (a.image_type, a.stains, a.read_tma_grid()) == (b.image_type, b.stains, b.read_tma_grid())
        assert_same(a.read_objects(), b.read_objects())


@golden
@pytest.mark.parametrize("version", ["v0.3.2", "v0.5.1", "v0.6.0"])
@pytest.mark.parametrize("kind", ["plain", "tma", "conn"])
def test_a_change_of_a_project_of_qupath_keeps_the_rest(version, kind, tmp_path, backend):
    path = copied(version, kind, tmp_path)
    entry = open_project(path, backend=backend).entries[0]
    before = entry.read_objects()
    new = annotations(box(5, 5), name="new", classification="Never seen before")
    entry.write_objects(new, lock=[before.index[0]])
    after = again(entry, backend).read_objects()
    assert set(after.index) == {*before.index, new.index[0]}
    assert after.loc[before.index[0], "locked"]
    before.loc[before.index[0], "locked"] = True
    rest = after.drop(index=new.index)
    rest["classification"] = rest["classification"].cat.remove_unused_categories()
    assert_same(rest, before)
    assert again(entry, backend).read_tma_grid() == entry.read_tma_grid()


@golden
@pytest.mark.parametrize("version", ["v0.5.1", "v0.6.0"])
def test_connections_of_removed_objects_go_with_them(version, tmp_path, backend):
    path = copied(version, "conn", tmp_path)
    entry = open_project(path, backend=backend).entries[0]
    table = entry.read_objects()
    cells = [i for i in table.index if i.startswith("0000000c")]
    raw = entry.data_file.read_bytes()
    assert all(raw.count(cell.encode()) == 1 for cell in cells)
    entry.write_objects(remove=cells[:1])
    raw = entry.data_file.read_bytes()
    assert raw.count(cells[0].encode()) == 0
    assert all(raw.count(cell.encode()) == 1 for cell in cells[1:])  # referred to, not written a second time
    assert set(again(entry, backend).read_objects().index) == set(table.index) - {cells[0]}


def test_unknown_parts_of_a_project_file_are_kept(project, gradient_slide, backend):
    content = json.loads(project.path.read_text("utf-8"))
    content["from the future"] = {"x": [1, None]}
    project.path.write_text(json.dumps(content), "utf-8")
    open_project(project.path, backend=backend).add_image(gradient_slide)
    content = json.loads(project.path.read_text("utf-8"))
    assert content["from the future"] == {"x": [1, None]}
    assert len(content["images"]) == 1
