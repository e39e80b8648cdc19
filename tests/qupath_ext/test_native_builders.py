import json
import math
from pathlib import Path, PurePosixPath, PureWindowsPath

import pytest
import shapely
from frame_cases import BIO_FORMATS, affine, cropped, flipped, rotated, sparse
from shapely.affinity import affine_transform

from qupath_ext.errors import FormatError, ProjectError
from qupath_ext.native.builderframe import builder_frame, builder_mpp, builder_series, builder_size
from qupath_ext.native.builders import (
    builder_crops_to_bounds,
    builder_file,
    file_uri,
    local_name,
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
    ("uri", "windows", "elsewhere"),
    [
        ("file:/C:/data/a%20b.svs", r"C:\data\a b.svs", "/C:/data/a b.svs"),
        ("file:///d:/data/%C3%A4%23.svs", r"d:\data\ä#.svs", "/d:/data/ä#.svs"),
        ("file://server/share/a.svs", r"\\server\share\a.svs", None),
        ("file:////server/share/a.svs", r"\\server\share\a.svs", "//server/share/a.svs"),
        ("file://localhost/C:/a.svs", r"C:\a.svs", "/C:/a.svs"),
        ("http://server/share/a.svs", None, None),
    ],
)
def test_uris_of_windows(uri, windows, elsewhere):
    name = local_name(uri, windows=True)
    assert (name and PureWindowsPath(name)) == (windows and PureWindowsPath(windows))
    name = local_name(uri, windows=False)
    assert (name and PurePosixPath(name)) == (elsewhere and PurePosixPath(elsewhere))


@pytest.mark.parametrize(
    ("path", "uri"),
    [
        (r"C:\data\two words#1.svs", "file:/C:/data/two%20words%231.svs"),
        (r"\\server\share\ä.svs", "file://server/share/%C3%A4.svs"),
    ],
)
def test_windows_files_as_uris(path, uri):
    assert file_uri(PureWindowsPath(path)) == uri
    assert PureWindowsPath(local_name(uri, windows=True)) == PureWindowsPath(path)


@pytest.mark.parametrize(
    # where QuPath 0.5.1, 0.6.0 and 0.7.0 show the pixel (3, 5) of an image of 30 x 20 px
    ("builder", "pixel"),
    [
        (rotated(0, URI), (3, 5)),
        (rotated(90, URI), (14, 3)),
        (rotated(180, URI), (26, 14)),
        (rotated(270, URI), (5, 26)),
        (flipped("NONE", URI), (3, 5)),
        (flipped("HORIZONTAL", URI), (26, 5)),
        (flipped("VERTICAL", URI), (3, 14)),
        (flipped("BOTH", URI), (26, 14)),
        (affine((1, 0, -2, 0, 1, 7), URI), (1, 12)),
        (affine((0, -1, 20, 1, 0, 0), URI), (14, 3)),
        (sparse((100, 200, 30, 20, URI)), (3, 5)),
    ],
)
def test_frames_are_those_of_qupath(builder, pixel):
    x, y = moved(builder, 3.5, 5.5)  # the middle of the pixel
    assert (x - 0.5, y - 0.5) == pixel


def test_frames_of_builders_in_builders():
    crop = cropped(2, 3, 10, 6, URI)
    assert builder_frame(URI) == (1, 0, 0, 1, 0, 0)
    assert moved(crop, 2, 3) == (0, 0)
    # the cropped image is 10 x 6; its corner (0, 0) is at the top right after a quarter turn
    assert moved(rotated(90, crop), 2, 3) == (6, 0)
    # ... and at the bottom right when that is flipped: 6 x 10 px
    assert moved(flipped("VERTICAL", rotated(90, crop)), 2, 3) == (6, 10)
    # two quarter turns are a half turn
    assert builder_frame(rotated(90, rotated(90, URI))) == builder_frame(rotated(180, URI))
    for kind in ("channels", "color_deconvolved", "pyramidize", "swapRedBlue", "typeConvert"):
        assert builder_frame({"builderType": kind, "builder": crop}) == builder_frame(crop)


def test_sizes_of_builders_in_builders():
    assert builder_size(URI) == (30, 20)
    assert builder_size(rotated(270, cropped(2, 3, 10, 6, URI))) == (6, 10)
    assert builder_size(flipped("HORIZONTAL", URI)) == (30, 20)
    assert builder_size(sparse((100, 200, 25, 15, URI))) == (25, 15)
    # 30 cos 30° + 20 sin 30° = 35.98, 30 sin 30° + 20 cos 30° = 32.32, rounded up
    c, s = math.cos(math.pi / 6), math.sin(math.pi / 6)
    assert builder_size(affine((c, -s, 10, s, c, 0), URI)) == (36, 33)
    # what QuPath says of itself in the metadata of a wrapper does not matter
    assert builder_size({**rotated(90, URI), "metadata": {"width": 1, "height": 1}}) == (20, 30)


def test_size_of_the_slide_where_the_builder_has_none():
    bare = {**URI, "metadata": None}
    for builder in (rotated(90, bare), flipped("BOTH", bare)):
        with pytest.raises(FormatError, match="unknown size"):
            builder_frame(builder)
    assert builder_frame(rotated(90, bare), lambda: (30, 20)) == builder_frame(rotated(90, URI))
    assert builder_frame(flipped("VERTICAL", bare), lambda: (30, 20)) == builder_frame(flipped("VERTICAL", URI))
    # no size is needed where nothing is turned
    assert builder_frame(cropped(1, 2, 3, 4, bare)) == (1, 0, 0, 1, -1, -2)
    assert builder_frame(rotated(0, bare)) == (1, 0, 0, 1, 0, 0)


@pytest.mark.parametrize(
    ("builder", "reason"),
    [
        (affine((0, 0, 0, 0, 0, 0), URI), "affine transform that can be inverted"),
        (affine((1, 2, 0, 2, 4, 0), URI), "affine transform that can be inverted"),
        (affine((float("nan"), 0, 0, 0, 1, 0), URI), "affine transform that can be inverted"),
        (affine(("a", 0, 0, 0, 1, 0), URI), "six numbers"),
        ({"builderType": "affine", "builder": URI, "transform": [1, 0]}, "six numbers"),
        (sparse(), "0 parts"),
        (sparse((0, 0, 30, 20, URI), (30, 0, 30, 20, URI)), "2 parts"),
        ({"builderType": "z_concatenated", "builders": [URI, URI]}, "several slides"),
        ({"builderType": "tomorrow", "builder": URI}, "'tomorrow'"),
        ({}, "None"),
        (rotated(45, URI), "ROTATE_45"),
        (flipped("DIAGONAL", URI), "DIAGONAL"),
        ({"builderType": "flipped", "builder": URI}, "flipped None"),
        ({"builderType": "cropped", "builder": URI, "region": {"x": 1}}, "x, y, width and height"),
        (rotated(90, {"builderType": "rotated", "rotation": "ROTATE_90"}), "'rotated'"),
        (rotated(90, {**URI, "providerClassName": BIO_FORMATS, "args": ["--name", "overview"]}), "--name"),
    ],
)
def test_what_is_not_known_is_refused(builder, reason):
    with pytest.raises(FormatError, match=reason):
        builder_frame(builder)


def test_a_part_at_another_resolution_is_refused():
    builder = sparse((0, 0, 30, 20, URI))
    builder["regions"][0]["resolutions"][0]["downsample"] = 4.0
    with pytest.raises(FormatError, match="another resolution"):
        builder_frame(builder)


@pytest.mark.parametrize(
    ("args", "uri", "series"),
    [
        ([], "file:/a.ome.tif", 0),
        (["--series", "2"], "file:/a.ome.tif", 2),
        (["-s", "2"], "file:/a.ome.tif", 2),
        (["--series=2"], "file:/a.ome.tif", 2),
        (["--dims", "XYCZT", "--series", "1"], "file:/a.ome.tif", 1),
        (["--order", "BGR"], "file:/a.ome.tif", 0),
        ([], "file:/a.ome.tif#3", 3),
        ([], "file:/a.ome.tif?series=3", 3),
    ],
)
def test_series_of_a_file(args, uri, series):
    builder = {"builderType": "uri", "providerClassName": BIO_FORMATS, "uri": uri, "args": args}
    assert builder_series(cropped(0, 0, 5, 5, builder)) == series


@pytest.mark.parametrize(
    "args",
    [
        ["--series", "-1"],
        ["--series"],
        ["--name", "overview"],
        ["--dims", "YXCZT"],
        ["--bfOptions", "zeissczi.autostitch=false"],
        ["--bfOptions=zeissczi.autostitch=false"],
        ["--rotate", "ROTATE_90"],
    ],
)
def test_options_that_might_move_pixels_are_refused(args):
    builder = {"builderType": "uri", "providerClassName": BIO_FORMATS, "uri": "file:/a.ome.tif", "args": args}
    with pytest.raises(FormatError):
        builder_frame(builder)


def test_openslide_knows_one_series_only():
    assert builder_series({**URI, "args": ["--series", "2"]}) == 0
    assert builder_series({**URI, "args": ["--no-crop"]}) == 0


def test_pixel_size():
    assert builder_mpp(URI) == (0.25, 0.5)
    assert builder_mpp(cropped(1, 2, 3, 4, URI)) == (0.25, 0.5)
    assert builder_mpp({"builderType": "uri", "uri": "file:/a"}) is None
    pixels = {"pixelWidth": {"value": 1.0, "unit": "px"}, "pixelHeight": {"value": 1.0, "unit": "px"}}
    assert builder_mpp({**URI, "metadata": {"pixelCalibration": pixels}}) is None


def test_pixel_size_of_turned_images():
    # QuPath takes the file's own pixel size here, not what a person gave the image inside
    for builder in (rotated(90, URI), flipped("VERTICAL", URI), rotated(180, flipped("NONE", URI))):
        assert builder_mpp(builder) is None
        assert builder_mpp({**builder, "metadata": URI["metadata"]}) == (0.25, 0.5)
    # a crop hands on what it was given
    crop = cropped(1, 2, 3, 4, URI)
    assert builder_mpp(rotated(180, crop)) == (0.25, 0.5)
    assert builder_mpp(rotated(90, crop)) == (0.5, 0.25)


def test_pixel_size_after_an_affine_transform():
    assert builder_mpp(affine((2, 0, 0, 0, 5, 0), URI)) == pytest.approx((0.125, 0.1))
    assert builder_mpp(affine((-2, 0, 30, 0, 2, 0), URI)) == pytest.approx((0.125, 0.25))
    assert builder_mpp(affine((0, -2, 40, 2, 0, 0), URI)) == pytest.approx((0.25, 0.125))
    c, s = math.cos(0.5), math.sin(0.5)
    turned = affine((2 * c, -2 * s, 40, 2 * s, 2 * c, 0), URI)
    assert builder_mpp(turned) is None  # pixels that are not square would be no rectangles any more
    calibration = {axis: {"value": 0.5, "unit": "µm"} for axis in ("pixelWidth", "pixelHeight")}
    square = {**URI, "metadata": {"pixelCalibration": calibration}}
    assert builder_mpp({**turned, "builder": square}) == pytest.approx((0.25, 0.25))
    assert builder_mpp(affine((1, 0.5, 0, 0, 1, 0), square)) is None


def test_cropping_to_bounds():
    assert builder_crops_to_bounds(URI)
    assert builder_crops_to_bounds(rotated(90, URI))
    assert not builder_crops_to_bounds({**URI, "args": ["--no-crop"]})
    assert not builder_crops_to_bounds({**URI, "providerClassName": BIO_FORMATS})


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
    with pytest.raises(FormatError, match="0 parts"):
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
