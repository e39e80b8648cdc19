import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import shapely
from PIL import Image

from pyhisto.errors import MissingPixelSizeError, PyhistoError, SlideError
from pyhisto.objects import make_objects
from qupath_ext import project as store
from qupath_ext.errors import (
    ChangedOnDiskError,
    EntryNotFoundError,
    FormatError,
    ProjectError,
    ProjectExistsError,
    ProjectNotFoundError,
)
from qupath_ext.project import H_DAB, H_E, Stains, pack_rgb

SHARED = Path(__file__).parents[2] / ".." / "shared"
GOLDEN = SHARED / "golden"
golden = pytest.mark.skipif(
    not GOLDEN.exists(), reason="the projects written by QuPath (../shared/golden) are not here"
)


def create_project(folder, classes=None):
    return store.create_project(folder, classes=classes, backend="native")


def open_project(path, backend="native"):
    return store.open_project(path, backend=backend)


@pytest.fixture
def slide(tmp_path):
    """A plain TIFF of 300 x 200 px without pixel size, at a path with blanks and umlauts."""
    import tifffile

    path = tmp_path / "Schnitt Ä #1 100%.tif"
    rgb = np.full((200, 300, 3), 230, dtype=np.uint8)
    rgb[50:100, 60:120] = (150, 90, 60)
    tifffile.imwrite(path, rgb, photometric="rgb", tile=(64, 64))
    return path


def image_json(n, **more):
    builder = {"builderType": "uri", "uri": f"file:/slides/{n}.svs", "args": [], "new in 2031": [1.5, None]}
    return {"serverBuilder": builder, "entryID": n, "imageName": f"image {n}", "metadata": {}, **more}


def write_project(folder, images, **more):
    folder.mkdir(parents=True, exist_ok=True)
    content = {"version": "0.5.1", "createTimestamp": 1, "modifyTimestamp": 2, "lastID": len(images), "images": images}
    path = folder / "project.qpproj"
    path.write_text(json.dumps({**content, **more}))
    return path


def test_a_new_project(tmp_path, slide):
    folder = tmp_path / "Projekt für #1"
    project = create_project(folder, classes={"Tumor": pack_rgb(200, 0, 0), "Tumor: Positive": None, "Neu": None})
    entry = project.add_image(
        slide, name="Fall 7", mpp=0.25, metadata={"Fall": "7"}, description="erste\nZeile", stains=None
    )
    again = open_project(folder)
    assert [e.name for e in again.entries] == ["Fall 7"]
    found = again.entry("Fall 7")
    assert (found.id, entry.id) == ("1", "1")
    assert found.slide_path == slide
    assert found.mpp == (0.25, 0.25)
    assert found.metadata == {"Fall": "7"}
    assert found.description == "erste\nZeile"
    assert found.image_type == "BRIGHTFIELD_H_DAB"
    assert found.stains == H_DAB
    assert found.slide_frame() == (1, 0, 0, 1, 0, 0)
    assert found.read_objects().empty
    assert again.classes["Tumor"] == -3670016
    assert again.classes["Tumor: Positive"] == pack_rgb(200, 50, 50)
    assert list(again.classes) == ["Tumor", "Tumor: Positive", "Neu"]

    content = json.loads(project.path.read_text())
    assert content["lastID"] == 1
    assert content["uri"].startswith("file:/")
    assert content["uri"].isascii()
    assert list(content["images"][0]) == [
        *("serverBuilder", "entryID", "randomizedName", "imageName", "description", "metadata"),
    ]
    picture = Image.open(io.BytesIO((folder / "data/1/thumbnail.jpg").read_bytes()))
    assert picture.format == "JPEG"
    assert picture.size == (300, 200)
    summary = json.loads((folder / "data/1/summary.json").read_text())
    assert summary["server"] == {"width": 300, "height": 200, "sizeC": 3, "sizeZ": 1, "sizeT": 1}
    assert summary["hierarchy"]["nObjects"] == 1
    files = {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}
    ours = {name for name in files if ".qupath-ext-" in name or name.startswith("qupath_ext/")}
    assert files - ours == {
        *("project.qpproj", "classifiers/classes.json"),
        *("data/1/data.qpdata", "data/1/summary.json", "data/1/thumbnail.jpg"),
    }
    assert "project.qpproj.qupath-ext-backup" in ours


def test_objects_of_an_image(tmp_path, slide):
    project = create_project(tmp_path / "p", classes={"Region of interest": pack_rgb(1, 2, 3)})
    entry = project.add_image(slide, image_type="BRIGHTFIELD_H_E")
    assert entry.stains == H_E
    region = make_objects([shapely.box(0, 0, 100, 90)], object_type="annotation", classification="Region of interest")
    cells = make_objects(
        [shapely.Point(x, 30).buffer(5) for x in range(10, 90, 4)],
        object_type="cell",
        classification="Tumor: Positive",
        parent_id=region.index[0],
        measurements={"Nucleus: DAB OD mean": np.arange(20) / 8},
    )
    with entry.edit() as change:
        change.add(region)
        change.add(cells)
    assert change.counts.added == {"annotation": 1, "cell": 20}
    counts = entry.write_objects(remove=list(cells.index[:5]), lock=list(region.index))
    assert (counts.n_added, counts.removed, counts.locked) == (0, 5, 1)
    table = open_project(project.path).entry(1).read_objects()
    assert list(table.index) == [region.index[0], *cells.index[5:]]
    assert table.loc[region.index[0], "locked"]
    assert (table["parent_id"].iloc[1:] == region.index[0]).all()
    np.testing.assert_array_equal(table["Nucleus: DAB OD mean"].iloc[1:], np.arange(5, 20) / 8)
    summary = json.loads((tmp_path / "p/data/1/summary.json").read_text())["hierarchy"]
    assert summary["objectTypeCounts"] == {"Root objects": 1, "Annotations": 1, "Cells": 15, "Detections": 15}
    assert summary["detectionClassificationCounts"] == {"Tumor: Positive": 15}
    # the project's colour went into the data file
    assert (tmp_path / "p/data/1/data.qpdata").read_bytes().count(
        pack_rgb(1, 2, 3).to_bytes(4, "big", signed=True)
    ) == 1


def test_stains_of_one_s_own(tmp_path, slide):
    own = Stains("own", "H", (0.6, 0.7, 0.3), "D", (0.3, 0.5, 0.8), "R", (0.7, 0.1, 0.7), (241.0, 240.5, 239.0))
    project = create_project(tmp_path / "p")
    assert project.add_image(slide, stains=own).stains == own
    assert project.add_image(slide, image_type="FLUORESCENCE").stains is None
    assert [e.image_type for e in project.entries] == ["BRIGHTFIELD_H_DAB", "FLUORESCENCE"]


def test_a_slide_without_pixel_size_has_none_in_the_project(tmp_path, slide):
    entry = create_project(tmp_path / "p").add_image(slide)
    assert entry.mpp is None
    calibration = entry.server_builder["metadata"]["pixelCalibration"]
    assert calibration["pixelWidth"] == {"value": 1.0, "unit": "px"}


def test_what_cannot_be_added_changes_nothing(tmp_path, slide):
    project = create_project(tmp_path / "p")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(SlideError):
        project.add_image(tmp_path / "missing.svs")
    with pytest.raises(ProjectError, match="image type 'IHC'"):
        project.add_image(slide, image_type="IHC")
    with pytest.raises(ProjectError, match="metadata"):
        project.add_image(slide, metadata={"a": 1})
    with pytest.raises(MissingPixelSizeError):
        project.add_image(slide, mpp=-1)
    assert sorted(tmp_path.rglob("*")) == before
    assert project.entries == []


def test_only_the_project_file_is_read_on_opening(tmp_path):
    path = write_project(tmp_path / "p", [image_json(n) for n in range(1, 1001)])
    (tmp_path / "p/classifiers").mkdir()
    (tmp_path / "p/classifiers/classes.json").write_text("not JSON")
    (tmp_path / "p/data/1").mkdir(parents=True)
    (tmp_path / "p/data/1/data.qpdata").write_bytes(b"not a data file")
    project = open_project(path)
    assert len(project.entries) == 1000
    entry = project.entry("image 1")
    assert entry.crop_to_bounds
    with pytest.raises(FormatError, match=r"classes\.json is not JSON"):
        _ = project.classes
    with pytest.raises(FormatError, match=r"data\.qpdata"):
        _ = entry.image_type
    with pytest.raises(ProjectError, match=r"slide /slides/1\.svs does not exist"):
        _ = entry.slide_path


def test_importing_is_light():
    code = "import sys, qupath_ext.project; print(sorted({'pandas', 'geopandas', 'torch', 'PIL'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True).stdout == b"[]\n"


def test_unknown_keys_are_kept(tmp_path, slide):
    image = image_json(4, tags=["a"], later={"x": 1e-7})
    path = write_project(tmp_path / "p", [image], extra=[1, {"y": None}], uri="file:/old/place/project.qpproj")
    open_project(path).add_image(slide)
    content = json.loads(path.read_text())
    assert content["images"][0] == image
    assert content["extra"] == [1, {"y": None}]
    assert content["uri"] == "file:/old/place/project.qpproj"
    assert content["images"][1]["entryID"] == content["lastID"] == 5
    assert json.loads(path.with_name("project.qpproj.qupath-ext-backup").read_text())["lastID"] == 1


def test_ids_are_not_used_again(tmp_path, slide):
    path = write_project(tmp_path / "p", [image_json(2)], lastID=7)
    (tmp_path / "p/data/8").mkdir(parents=True)  # left by something that was killed
    assert open_project(path).add_image(slide).id == "9"


def test_classes_are_appended_and_never_recoloured(tmp_path):
    project = create_project(tmp_path / "p", classes={"Tumor": pack_rgb(1, 2, 3)})
    file = tmp_path / "p/classifiers/classes.json"
    file.write_text(json.dumps({"pathClasses": [{"name": "Tumor", "color": 5, "note": "x"}, {"name": "A"}], "more": 1}))
    project = open_project(tmp_path / "p")
    assert project.add_classes({"Tumor": pack_rgb(9, 9, 9), "B: C": pack_rgb(4, 5, 6)}) == ["B: C"]
    assert json.loads(file.read_text()) == {
        "pathClasses": [
            {"name": "Tumor", "color": 5, "note": "x"},
            {"name": "A"},
            {"name": "B: C", "color": pack_rgb(4, 5, 6)},
        ],
        "more": 1,
    }
    assert project.classes == {"Tumor": 5, "A": None, "B: C": pack_rgb(4, 5, 6)}
    assert project.add_classes({"Tumor": None}) == []
    for bad in ({"": None}, {"a\nb": None}, {"c": 2**32}):
        with pytest.raises(ProjectError):
            project.add_classes(bad)


def test_project_files_that_changed_are_not_overwritten(tmp_path, slide):
    project = create_project(tmp_path / "p", classes={"A": None})
    other = open_project(tmp_path / "p")
    assert other.classes
    project.add_image(slide)
    project.add_classes({"B": None})
    with pytest.raises(ChangedOnDiskError, match=r"project\.qpproj changed"):
        other.add_image(slide)
    other.add_classes({"C": None})  # what others added since stays
    assert list(open_project(tmp_path / "p").classes) == ["A", "B", "C"]
    assert len(open_project(tmp_path / "p").entries) == 1
    assert not (tmp_path / "p/data/2").exists()


def test_names_and_ids_of_images(tmp_path):
    images = [
        image_json(1),
        image_json(2, imageName="twice"),
        image_json(3, imageName="twice"),
        image_json(4, imageName="2"),
    ]
    project = open_project(write_project(tmp_path / "p", images))
    assert project.entry("image 1").id == "1"
    assert project.entry(2).id == "2"
    assert project.entry("2").id == "4"  # a name goes before an id
    assert project.entry("3").id == "3"
    with pytest.raises(EntryNotFoundError, match="2 images are called 'twice'; use one of the ids 2, 3"):
        project.entry("twice")
    with pytest.raises(EntryNotFoundError, match="no image 'none'"):
        project.entry("none")


@pytest.mark.parametrize(
    ("content", "error"),
    [
        ("[]", "no project file"),
        ("{", "is not JSON"),
        ('{"images": [{"entryID": 1}]}', "images that cannot be read"),
        ('{"images": {}}', r"images is '{}' in .*; expected a list"),
    ],
)
def test_damaged_project_files(tmp_path, content, error):
    (tmp_path / "project.qpproj").write_text(content)
    with pytest.raises(FormatError, match=error):
        open_project(tmp_path)


def test_where_no_project_is(tmp_path):
    for path in (tmp_path, tmp_path / "none", tmp_path / "x.qpproj"):
        with pytest.raises(ProjectNotFoundError):
            open_project(path)
    (tmp_path / "something").touch()
    with pytest.raises(ProjectExistsError, match="not empty"):
        create_project(tmp_path)
    with pytest.raises(ProjectError, match="unknown project backend 'java'; expected one of auto, native, paquo"):
        open_project(tmp_path, backend="java")
    with pytest.raises(ProjectError, match="expected values from 0 to 255"):
        pack_rgb(256, 0, 0)
    assert issubclass(ProjectNotFoundError, PyhistoError)


def test_a_project_file_of_another_name(tmp_path):
    write_project(tmp_path, [image_json(1)]).rename(tmp_path / "study.qpproj")
    assert open_project(tmp_path).path == tmp_path / "study.qpproj"


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="needs a user who may not write everywhere")
def test_a_project_that_may_not_be_written(tmp_path):
    project = create_project(tmp_path / "p")
    (tmp_path / "p").chmod(0o500)
    with pytest.raises(ProjectError, match="cannot be written"):
        project.add_classes({"A": None})
    (tmp_path / "p").chmod(0o700)


@golden
@pytest.mark.parametrize("version", ["v0.5.1", "v0.6.0"])
def test_a_project_of_qupath(version):
    project = open_project(GOLDEN / version / "real/project")
    assert list(project.classes)[-2:] == ["My clàss 名前", "a.b/c"]
    first, second, untouched = project.entries
    assert first.name == "Every object – ünïcode.tiff"
    assert first.description == "line one\nline two <b>html</b> é"
    assert first.metadata == {"patient": "P-001", "grade": "3", "näme": "wért", "empty": ""}
    assert first.mpp == (0.5, 0.5)
    assert second.mpp == (0.499, 0.499)
    assert first.image_type == "BRIGHTFIELD_H_DAB"
    assert first.stains.background == (243, 242, 241)
    assert untouched.image_type is None
    assert untouched.read_objects().empty
    with pytest.raises(ProjectError, match=r"pyr\.tiff does not exist"):
        _ = first.slide_path
