import json
from pathlib import Path

import pytest
import shapely
from shapely.affinity import affine_transform

from qupath_ext.errors import FormatError, ProjectError
from qupath_ext.native.builders import (
    builder_crops_to_bounds,
    builder_file,
    builder_frame,
    builder_mpp,
    file_uri,
    make_builder,
    uri_path,
)

SHARED = Path(__file__).parents[2] / ".." / "shared"
SLIDES = SHARED / "data/slides"
with_data = pytest.mark.skipif(not SLIDES.exists(), reason="the slides (../shared/data) are not here")

URI = {
    "builderType": "uri",
    "providerClassName": "qupath.lib.images.servers.openslide.OpenslideServerBuilder",
    "uri": "file:/a.svs",
    "args": [],
    "metadata": {
        "width": 30,
        "height": 20,
        "pixelCalibration": {
            "pixelWidth": {"value": 0.25, "unit": "µm"},
            "pixelHeight": {"value": 0.5, "unit": "µm"},
        },
    },
}


def rotated(rotation, builder=URI):
    return {"builderType": "rotated", "builder": builder, "rotation": rotation}


def moved(builder, x, y):
    point = affine_transform(shapely.Point(x, y), builder_frame(builder))
    return point.x, point.y


@pytest.mark.parametrize(
    "name", ["plain.svs", "two words.svs", "a#b%c?d.svs", "Ärger ünïcode.svs", "(4)+_&.tif", "名前.svs"]
)
def test_uris_of_files_come_back(name):
    path = Path("/data/some folder") / name
    uri = file_uri(path)
    assert uri.startswith("file:/data/some%20folder/")
    assert uri.isascii()
    assert not set(" #?") & set(uri)
    assert uri_path(uri) == path


@pytest.mark.parametrize(
    ("uri", "path"),
    [
        ("file:///data/a.svs", "/data/a.svs"),
        ("file:/data/Edu+_RFP+_(3).tif", "/data/Edu+_RFP+_(3).tif"),
        ("file:/data/Ä.svs", "/data/Ä.svs"),
        ("https://server/a.svs", None),
        ("file://server/share/a.svs", None),
    ],
)
def test_uris_that_others_wrote(uri, path):
    assert uri_path(uri) == (Path(path) if path else None)


@pytest.mark.parametrize(
    # where QuPath 0.5.1 and 0.6.0 show the pixel (3, 5) of an image of 30 x 20 px
    ("rotation", "pixel"),
    [("ROTATE_NONE", (3, 5)), ("ROTATE_90", (14, 3)), ("ROTATE_180", (26, 14)), ("ROTATE_270", (5, 26))],
)
def test_rotations_are_those_of_qupath(rotation, pixel):
    x, y = moved(rotated(rotation), 3.5, 5.5)  # the middle of the pixel
    assert (x - 0.5, y - 0.5) == pixel


def test_frames_of_builders_in_builders():
    cropped = {
        "builderType": "cropped",
        "builder": URI,
        "region": {"x": 2, "y": 3, "width": 10, "height": 6, "z": 0, "t": 0},
    }
    assert builder_frame(URI) == (1, 0, 0, 1, 0, 0)
    assert moved(cropped, 2, 3) == (0, 0)
    # the cropped image is 10 x 6; its corner (0, 0) is at the top right after a quarter turn
    assert moved(rotated("ROTATE_90", cropped), 2, 3) == (6, 0)
    # two quarter turns are a half turn
    twice = rotated("ROTATE_90", rotated("ROTATE_90"))
    assert builder_frame(twice) == builder_frame(rotated("ROTATE_180"))
    for kind in ("channels", "color_deconvolved", "pyramidize", "swapRedBlue", "typeConvert"):
        assert builder_frame({"builderType": kind, "builder": cropped}) == builder_frame(cropped)


@pytest.mark.parametrize(
    "builder",
    [
        {"builderType": "affine", "builder": URI, "transform": {}},
        {"builderType": "sparse", "regions": []},
        {"builderType": "tomorrow", "builder": URI},
        {},
        rotated("ROTATE_45"),
        rotated("ROTATE_90", {**URI, "metadata": {}}),
        {**URI, "args": ["--series", "2"]},
    ],
)
def test_what_is_not_known_is_refused(builder):
    with pytest.raises(FormatError):
        builder_frame(builder)


def test_pixel_size():
    assert builder_mpp(URI) == (0.25, 0.5)
    assert builder_mpp(rotated("ROTATE_180")) == (0.25, 0.5)
    assert builder_mpp(rotated("ROTATE_90")) == (0.5, 0.25)
    assert builder_mpp({"builderType": "uri", "uri": "file:/a"}) is None
    pixels = {"pixelWidth": {"value": 1.0, "unit": "px"}, "pixelHeight": {"value": 1.0, "unit": "px"}}
    assert builder_mpp({**URI, "metadata": {"pixelCalibration": pixels}}) is None


def test_cropping_to_bounds():
    assert builder_crops_to_bounds(URI)
    assert builder_crops_to_bounds(rotated("ROTATE_90"))
    assert not builder_crops_to_bounds({**URI, "args": ["--no-crop"]})
    bio_formats = "qupath.lib.images.servers.bioformats.BioFormatsServerBuilder"
    assert not builder_crops_to_bounds({**URI, "providerClassName": bio_formats})


def test_slide_file_and_moved_projects(tmp_path):
    here = tmp_path / "study" / "images" / "ä b.svs"
    here.parent.mkdir(parents=True)
    here.touch()
    assert builder_file({**URI, "uri": file_uri(here)}, None, tmp_path) == here
    # project and images were in /old/study before
    before = {**URI, "uri": "file:///old/study/images/%C3%A4%20b.svs"}
    found = builder_file(before, "file:/old/study/project/project.qpproj", tmp_path / "study" / "project")
    assert found == here
    with pytest.raises(ProjectError, match=r"/old/study/images/ä b\.svs does not exist"):
        builder_file(before, None, tmp_path)
    with pytest.raises(ProjectError, match="not a local file"):
        builder_file({**URI, "uri": "https://host/1"}, None, tmp_path)
    with pytest.raises(FormatError, match="'sparse'"):
        builder_file({"builderType": "sparse"}, None, tmp_path)


@with_data
@pytest.mark.parametrize("name", ["CMU-1-Small-Region.svs", "pyr.tiff"])
def test_new_builders_say_what_qupath_says(name):
    project = json.loads((SHARED / "golden/v0.5.1/real/project/project.qpproj").read_text())
    theirs = next(i["serverBuilder"] for i in project["images"] if i["serverBuilder"]["uri"].endswith(name))
    ours, thumbnail = make_builder((SLIDES / name).resolve(), None)
    assert {**ours, "uri": ""} == {**theirs, "uri": ""}
    assert thumbnail.shape[0] == 600
    assert thumbnail.dtype.name == "uint8"


@with_data
def test_builder_of_an_ome_tiff():
    builder, _ = make_builder((SLIDES / "OS-2-ndpi.ome.tif").resolve(), None)
    assert builder["providerClassName"].endswith("BioFormatsServerBuilder")
    assert builder["args"] == ["--series", "0"]
    assert builder_mpp(builder) == pytest.approx((0.2271, 0.2271), abs=1e-4)
    assert builder["metadata"]["isRGB"]
    assert builder["metadata"]["pixelCalibration"]["pixelWidth"]["unit"] == "\u00b5m"


@with_data
def test_pixel_size_can_be_given():
    builder, _ = make_builder((SLIDES / "pyr.tiff").resolve(), (0.3, 0.4))
    assert builder_mpp(builder) == (0.3, 0.4)
