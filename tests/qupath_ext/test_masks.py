"""Label masks: drawn pixel by pixel as worked out by hand, and the way back."""

import json

import numpy as np
import pytest
import shapely
import tifffile
from PIL import Image

from pyhisto.objects import concat_objects, make_objects
from qupath_ext.errors import FormatError
from qupath_ext.exchange import masks
from qupath_ext.exchange.masks import MaskConfig, MaskInfo, read_mask, write_mask


def three():
    """A square with a hole, a bar over it and something unclassified."""
    square = shapely.box(0, 0, 6, 6).difference(shapely.box(2, 2, 4, 4))
    return make_objects(
        [square, shapely.box(4, 0, 8, 2), shapely.box(0, 7, 2, 8), shapely.LineString([(0, 0), (8, 8)])],
        object_type="annotation", classification=["Tumor", "Stroma", None, "Tumor"], ids=["a", "b", "c", "d"],
    )  # fmt: skip


BY_HAND = np.array([
    [2, 2, 2, 2, 1, 1, 1, 1],
    [2, 2, 2, 2, 1, 1, 1, 1],
    [2, 2, 0, 0, 2, 2, 0, 0],
    [2, 2, 0, 0, 2, 2, 0, 0],
    [2, 2, 2, 2, 2, 2, 0, 0],
    [2, 2, 2, 2, 2, 2, 0, 0],
    [0, 0, 0, 0, 0, 0, 0, 0],
    [0, 0, 0, 0, 0, 0, 0, 0],
])  # fmt: skip


def pixels(path):
    return np.asarray(Image.open(path)) if path.suffix == ".png" else tifffile.imread(path)


@pytest.mark.parametrize("name", ["m.png", "m.ome.tif", "m.tiff"])
def test_classes_by_hand(name, tmp_path):
    info = write_mask(tmp_path / name, three(), (8, 8), mpp=(0.5, 0.25))
    np.testing.assert_array_equal(pixels(tmp_path / name), BY_HAND)
    assert info.values == {"Stroma": 1, "Tumor": 2}
    assert json.loads((tmp_path / f"{name}.json").read_text()) == {
        "kind": "class", "size": [8, 8], "origin": [0, 0], "downsample": [1, 1], "mpp": [0.5, 0.25],
        "values": {"Stroma": 1, "Tumor": 2}, "classes": {},
    }  # fmt: skip
    assert sorted(path.name for path in tmp_path.iterdir()) == [name, f"{name}.json"]


def test_chosen_classes_keep_their_values(tmp_path):
    path = tmp_path / "m.png"
    info = write_mask(path, three(), (8, 8), MaskConfig(classes=("Necrosis", "Tumor")))
    assert info.values == {"Necrosis": 1, "Tumor": 2}
    square = BY_HAND.copy()
    square[:2, 4:6], square[:2, 6:] = 2, 0
    np.testing.assert_array_equal(pixels(path), square)


def test_instances_by_hand(tmp_path):
    path = tmp_path / "m.png"
    info = write_mask(path, three(), (8, 8), MaskConfig(kind="instance"))
    expected = np.array([0, 2, 1])[BY_HAND]
    expected[7, :2] = 3
    np.testing.assert_array_equal(pixels(path), expected)
    assert info.values == {"a": 1, "b": 2, "c": 3}
    assert info.classes == {"a": "Tumor", "b": "Stroma", "c": None}


def test_pixel_size_region_and_downsample(tmp_path):
    path = tmp_path / "m.png"
    info = write_mask(path, three(), (8, 8), MaskConfig(mask_mpp=1.0), mpp=(0.5, 0.25))
    assert info.size == (4, 2)
    assert info.downsample == (2, 4)
    np.testing.assert_array_equal(pixels(path), BY_HAND[2::4, 1::2])  # the centres (1, 2), (3, 2), ... (1, 6), ...
    write_mask(path, three(), (4, 3), origin=(4, 1))
    np.testing.assert_array_equal(pixels(path), BY_HAND[1:4, 4:])


def test_nuclei_and_types(tmp_path):
    cells = make_objects(
        [shapely.box(0, 0, 4, 4), shapely.box(4, 0, 8, 4)], object_type="cell", classification="Tumor",
        nucleus=[shapely.box(1, 1, 3, 3), None],
    )  # fmt: skip
    objects = concat_objects([three(), cells])
    path = tmp_path / "m.png"
    write_mask(path, objects, (8, 4), MaskConfig(object_types=("cell",)))
    assert pixels(path).sum() == 32
    write_mask(path, objects, (8, 4), MaskConfig(object_types=("cell",), nuclei=True))
    assert pixels(path).sum() == 4
    assert pixels(path)[1:3, 1:3].sum() == 4


@pytest.fixture
def small_tiles(monkeypatch):
    monkeypatch.setattr(masks, "TILE", 64)
    monkeypatch.setattr(masks, "SMALLEST_LEVEL", 100)


def test_a_pyramid_is_drawn_tile_by_tile(small_tiles, monkeypatch, tmp_path):
    random = np.random.default_rng(5)
    spots = [shapely.Point(x, y).buffer(r) for x, y, r in random.uniform((0, 0, 3), (500, 500, 30), (300, 3))]
    objects = make_objects(spots, object_type="annotation", classification=list(random.choice(["a", "b", "c"], 300)))
    drawn = []
    window = masks._Painter.window
    monkeypatch.setattr(masks._Painter, "window", lambda self, *args: drawn.append(args) or window(self, *args))
    write_mask(tmp_path / "m.ome.tif", objects, (500, 333), mpp=(0.5, 0.5))
    assert max(args[2] * args[3] for args in drawn) == 64 * 64
    write_mask(tmp_path / "m.png", objects, (500, 333), mpp=(0.5, 0.5))
    with tifffile.TiffFile(tmp_path / "m.ome.tif") as tiff:
        levels = tiff.series[0].levels
        assert [level.shape for level in levels] == [(333, 500), (167, 250), (84, 125), (42, 63)]
        assert 'PhysicalSizeX="0.5"' in tiff.ome_metadata
        assert 'PhysicalSizeXUnit="µm"' in tiff.ome_metadata
        whole = pixels(tmp_path / "m.png")
        np.testing.assert_array_equal(levels[0].asarray(), whole)
        by_centre = np.zeros((333, 500), dtype=np.uint8)  # every pixel asked of shapely, object by object
        y, x = np.mgrid[:333, :500] + 0.5
        for spot, name in zip(spots, objects["classification"], strict=True):
            by_centre[shapely.contains_xy(spot, x, y)] = "abc".index(name) + 1
        assert (by_centre != whole).mean() < 1e-4
        for number in (1, 2, 3):
            np.testing.assert_array_equal(levels[number].asarray(), whole[:: 2**number, :: 2**number])
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "m.ome.tif", "m.ome.tif.json", "m.png", "m.png.json",
    ]  # fmt: skip


def test_many_instances(tmp_path):
    boxes = [shapely.box(x, y, x + 1, y + 1) for y in range(0, 20) for x in range(0, 20)]
    objects = make_objects(boxes, object_type="tile", ids=[str(i) for i in range(400)])
    write_mask(tmp_path / "m.png", objects, (20, 20), MaskConfig(kind="instance", object_types=("tile",)))
    np.testing.assert_array_equal(pixels(tmp_path / "m.png"), np.arange(1, 401).reshape(20, 20))
    assert read_mask(tmp_path / "m.png", object_type="tile").index.tolist() == [str(i) for i in range(400)]


def test_nothing_to_draw(tmp_path):
    write_mask(tmp_path / "m.png", three().iloc[:0], (5, 3))
    assert pixels(tmp_path / "m.png").tolist() == [[0] * 5] * 3
    assert len(read_mask(tmp_path / "m.png")) == 0


# ---------------------------------------------------------------------- the way back
@pytest.mark.parametrize("name", ["m.png", "m.ome.tif"])
@pytest.mark.parametrize("kind", ["class", "instance"])
def test_round_trip(name, kind, tmp_path):
    ring = shapely.Point(300, 300).buffer(200).difference(shapely.Point(300, 300).buffer(80))
    two = shapely.MultiPolygon([shapely.Point(700, 200).buffer(90), shapely.Point(900, 500).buffer(60)])
    objects = make_objects([ring, two], object_type="annotation", classification=["Tumor", "Stroma"], ids=["r", "t"])
    write_mask(tmp_path / name, objects, (1000, 600), MaskConfig(kind=kind, downsample=(2, 4)), origin=(10, 20))
    again = read_mask(tmp_path / name)
    if kind == "instance":
        assert again.index.tolist() == ["r", "t"]
    else:
        assert sorted(again["classification"]) == ["Stroma", "Stroma", "Tumor"]
    for shape, class_name in ((ring, "Tumor"), (two, "Stroma")):
        visible = shape.intersection(shapely.box(10, 20, 1010, 620))
        found = shapely.union_all(again.geometry[again["classification"] == class_name].to_numpy())
        assert found.intersection(visible).area / found.union(visible).area > 0.98


def test_instances_with_holes_and_in_parts_come_back_each_as_one(tmp_path):
    values = np.zeros((12, 12), dtype=np.uint16)
    values[1:6, 1:6] = 300
    values[3, 3] = 2
    values[8:10, 1:3] = values[8:10, 5:8] = 70
    Image.fromarray(values).save(tmp_path / "x.png")
    info = MaskInfo("instance", (12, 12), (10.0, 0.0), (2.0, 1.0), None, {"a": 300, "b": 70, "c": 2}, {"a": "Tumor"})
    table = read_mask(tmp_path / "x.png", info=info)
    assert table.index.tolist() == ["c", "b", "a"]  # in the order of the values
    spot, parts, ring = table.geometry
    assert [shape.geom_type for shape in (spot, parts, ring)] == ["Polygon", "MultiPolygon", "Polygon"]
    # an eighth of a pixel is missing at every corner; a mask pixel is 2 level-0 px
    assert [shape.area for shape in (spot, parts, ring)] == [2 * 0.5, 2 * (4 + 6 - 1), 2 * (25 - 0.5 - 0.5)]
    assert ring.bounds == (12, 1, 22, 6)
    assert len(ring.interiors) == 1
    assert len(read_mask(tmp_path / "x.png", info=info, min_area=5)) == 2  # one of the parts has 5.5


def test_single_pixels_and_cells_of_a_foreign_mask(tmp_path):
    values = np.zeros((6, 6), dtype=np.uint16)
    values[1:5, 1:5] = 700
    Image.fromarray(values).save(tmp_path / "x.png")
    info = MaskInfo("class", (6, 6), (100.0, 50.0), (2.0, 2.0), None, {"Tumor": 700})
    table = read_mask(tmp_path / "x.png", info=info, object_type="cell")
    assert table["classification"].tolist() == ["Tumor"]
    assert table["object_type"].tolist() == ["cell"]
    assert table.geometry.iloc[0].bounds == (102, 52, 110, 60)
    assert table.geometry.iloc[0].area == 4 * 15.5  # 16 pixels less four corners of an eighth
    assert len(read_mask(tmp_path / "x.png", info=info, min_area=16)) == 0


# ---------------------------------------------------------------------- refusals
@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("m.jpg", {}, "file name 'm.jpg'"),
        ("m.png", {"kind": "both"}, "a mask of kind 'both'"),
        ("m.png", {"mask_mpp": 1.0}, "a mask in µm of an image without pixel size"),
        ("m.png", {"downsample": 0}, "downsample"),
        ("m.png", {"downsample": 1e-4}, "a PNG of 80000 x 80000 pixels"),
    ],
)
def test_what_cannot_be_written(name, options, message, tmp_path):
    with pytest.raises(FormatError, match=message):
        write_mask(tmp_path / name, three(), (8, 8), MaskConfig(**options))
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_read(tmp_path):
    path = tmp_path / "m.png"
    with pytest.raises(FormatError, match="does not say what the mask means"):
        read_mask(path)
    info = write_mask(path, three(), (8, 8))
    with pytest.raises(FormatError, match="mask value 2 without a meaning"):
        read_mask(path, info=MaskInfo("class", (8, 8), (0, 0), (1, 1), None, {"Stroma": 1}))
    with pytest.raises(FormatError, match="8 x 8 pixels; expected 9 x 8"):
        read_mask(path, info=MaskInfo("class", (9, 8), (0, 0), (1, 1), None, {}))
    Image.new("RGB", (8, 8)).save(path)
    with pytest.raises(FormatError, match="one channel of integers"):
        read_mask(path, info=info)
    path.write_bytes(b"nothing")
    with pytest.raises(FormatError, match="cannot be read as a mask"):
        read_mask(path)
    (tmp_path / "m.tif").write_bytes(b"nothing")
    with pytest.raises(FormatError, match="cannot be read as a mask"):
        read_mask(tmp_path / "m.tif", info=info)
