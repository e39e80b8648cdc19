"""GeoJSON: QuPath's own exports read like its projects, and what is written is what QuPath reads."""

import gzip
import json
import os
import subprocess
import zipfile
from pathlib import Path

import numpy as np
import pytest
import shapely

from pyhisto.errors import ObjectTableError
from pyhisto.objects import concat_objects, load_objects, make_objects, measurement_names, save_objects
from qupath_ext.errors import FormatError
from qupath_ext.exchange import geojson_text
from qupath_ext.exchange.coordinates import Coordinates, cut
from qupath_ext.exchange.geojson import geojson_bytes, parse_geojson, read_geojson, write_geojson
from qupath_ext.exchange.measured import cut_measurements
from qupath_ext.project import open_project, pack_rgb

SQUARE = [[0, 0], [4, 0], [4, 3], [0, 3], [0, 0]]
BOW_TIE = [[0, 0], [2, 2], [2, 0], [0, 2], [0, 0]]
ID = "0f0e0d0c-0b0a-4908-8706-050403020100"


def feature(**properties):
    """A square with these properties; those that begin with an underscore are members of the feature."""
    members = {key[1:]: properties.pop(key) for key in list(properties) if key.startswith("_")}
    return {"type": "Feature", "geometry": polygon(), "properties": properties, **members}


def polygon(*rings, **members):
    return {"type": "Polygon", "coordinates": [*rings] or [SQUARE], **members}


def parse(content, **options):
    return parse_geojson(content if isinstance(content, bytes) else json.dumps(content).encode(), **options)


def assert_same(ours, theirs, *, tolerance, ids=True, metadata=True):
    """The same objects in the same order; outlines equal as point sets, wherever they begin and turn."""
    assert len(ours) == len(theirs)
    assert list(ours["object_type"].astype(str)) == list(theirs["object_type"].astype(str))
    if ids:
        assert list(ours.index) == list(theirs.index)
    for column in ("classification", "name", "locked", "color", "plane", *(["metadata"] if metadata else [])):
        mine, others = (table[column].astype(object).where(table[column].notna(), None) for table in (ours, theirs))
        assert mine.tolist() == others.tolist(), column
    for column in ("geometry", "nucleus"):
        for mine, other in zip(ours[column], theirs[column], strict=True):
            assert (mine is None) == (other is None)
            if mine is not None:
                assert mine.geom_type == other.geom_type
                assert shapely.hausdorff_distance(mine, other) <= tolerance
    assert sorted(measurement_names(ours)) == sorted(measurement_names(theirs))
    for name in measurement_names(theirs):
        np.testing.assert_array_equal(ours[name].to_numpy(), theirs[name].to_numpy())


def everything():
    """Objects of all types and shapes, nested two levels deep."""
    hole = shapely.box(0, 0, 500, 500).difference(shapely.box(100, 100, 200, 200))
    shapes = [
        *(shapely.box(10, 10, 1000, 1000), hole, shapely.MultiPolygon([hole, shapely.box(600, 600, 700, 700)])),
        *(shapely.Point(1.5, 2), shapely.MultiPoint([(1, 2), (3, 4)]), shapely.LineString([(0, 0), (7, 8)])),
        *(shapely.LineString([(0, 0), (7, 8), (9, 1)]), shapely.MultiLineString([[(0, 0), (7, 8)], [(1, 1), (2, 2)]])),
    ]
    m = len(shapes)
    annotations = make_objects(
        shapes,
        object_type="annotation",
        classification=["Tumor", 'Neu: "ü"', *[None] * (m - 2)],
        name=["Ä 😐", *[None] * (m - 1)],
        color=[-65536, *[None] * (m - 1)],
        locked=[True, *[False] * (m - 1)],
        plane=[None, (-1, 1, 2), *[None] * (m - 2)],
        metadata=[{"ANNOTATION_DESCRIPTION": "a\nb"}, *[None] * (m - 1)],
        measurements={"third %": [1 / 3, *[np.nan] * (m - 1)]},
    )
    centres = np.random.default_rng(1).uniform(20, 980, (60, 2))
    cells = make_objects(
        [shapely.Point(p).buffer(9, 4) for p in centres],
        object_type="cell",
        nucleus=[None if i % 4 == 3 else shapely.Point(p).buffer(4, 3) for i, p in enumerate(centres)],
        classification=[("Tumor: Positive", "Tumor: Negative", None)[i % 3] for i in range(60)],
        parent_id=annotations.index[0],
        measurements={"Nucleus: Area": np.arange(60) / 4, "odd": np.where(np.arange(60) % 2, 1, np.nan)},
    )
    spots = make_objects([shapely.Point(i, 3) for i in range(5)], object_type="detection", parent_id=cells.index[7])
    cores = make_objects(
        [shapely.Point(50, 60).buffer(30, 25)], object_type="tma_core", name="A-1", missing=[True],
        metadata=[{"Case ID": "c1"}],
    )  # fmt: skip
    tiles = make_objects([shapely.box(i, 0, i + 8, 8) for i in range(9)], object_type="tile", measurements={"p": 0.5})
    return concat_objects([annotations, cells, spots, cores, tiles])


# ---------------------------------------------------------------------- QuPath's own exports
@pytest.mark.parametrize("version", ["v0.3.2", "v0.5.1", "v0.6.0"])
@pytest.mark.parametrize("kind", ["plain", "tma", "conn"])
@pytest.mark.parametrize("name", ["objects", "hier"])
def test_exports_of_qupath_are_read_like_the_project(version, kind, name, shared_dir):
    folder = shared_dir / "golden" / version / kind
    if not (folder / f"{name}.geojson").exists():
        pytest.skip("QuPath 0.3 exports no hierarchy")
    ours = read_geojson(folder / f"{name}.geojson")
    theirs = open_project(folder, backend="native").entries[0].read_objects()
    old = version == "v0.3.2"  # no ids; metadata of TMA cores only
    assert_same(ours, theirs, tolerance=0.01, ids=not old, metadata=not old)
    if name == "hier":
        assert list(ours["parent_id"]) == list(theirs["parent_id"])
    if kind == "tma":
        assert ours["missing"].tolist() == theirs["missing"].tolist()


def test_class_colours_of_an_export(shared_dir):
    table = read_geojson(shared_dir / "golden/v0.5.1/plain/objects.geojson")
    assert table.attrs["class_colors"] == {
        "Tumor": pack_rgb(48, 208, 169), "Tumor: Positive": pack_rgb(200, 50, 50), "Stroma": pack_rgb(122, 143, 23),
    }  # fmt: skip
    old = read_geojson(shared_dir / "golden/v0.3.2/plain/objects.geojson")
    assert old.attrs["class_colors"]["Tumor: Positive"] == -3657166


# ---------------------------------------------------------------------- what is written
def test_the_form_of_a_cell():
    cell = make_objects(
        [shapely.Polygon(SQUARE)], object_type="cell", nucleus=[shapely.Polygon([(1, 1), (2, 1.126), (1, 2)])],
        classification="Tumor: Positive", ids=[ID], name="n", color=[pack_rgb(1, 2, 3)], locked=True, plane=(-1, 2, 0),
        metadata={"key": "text"}, measurements={"a": [0.5], "left out": [np.nan], "b": [-2]},
    )  # fmt: skip
    plane = {"c": -1, "z": 2, "t": 0}
    assert json.loads(geojson_bytes(cell)) == {
        "type": "FeatureCollection",
        "features": [{
            "type": "Feature",
            "id": ID,
            "geometry": {"type": "Polygon", "coordinates": [SQUARE], "plane": plane},
            "nucleusGeometry": {"type": "Polygon", "plane": plane,
                                "coordinates": [[[1, 1], [2, 1.13], [1, 2], [1, 1]]]},
            "properties": {
                "objectType": "cell", "object_type": "cell",
                "classification": {"name": "Tumor: Positive", "color": [200, 50, 50]},
                "isLocked": True, "name": "n", "color": [1, 2, 3], "metadata": {"key": "text"},
                "measurements": [{"name": "a", "value": 0.5}, {"name": "b", "value": -2}],
            },
        }],
    }  # fmt: skip


def test_types_colours_and_missing_cores():
    core = make_objects([shapely.box(0, 0, 2, 2)], object_type="tma_core", classification="Mine", missing=[True])
    written = json.loads(geojson_bytes(core, colors={"Mine": pack_rgb(9, 8, 7)}))["features"][0]["properties"]
    assert written == {
        "objectType": "tmaCore", "object_type": "tma_core", "isMissing": True,
        "classification": {"name": "Mine", "color": [9, 8, 7]},
    }  # fmt: skip
    assert json.loads(geojson_bytes(core.iloc[:0])) == {"type": "FeatureCollection", "features": []}


def test_objects_without_geometry():
    shapes = [shapely.box(0, 0, 1, 1), None, shapely.Polygon()]
    table = make_objects(
        shapes, object_type="tile", ids=["a", "b", "c"], parent_id=["b", None, None], allow_missing=True
    )
    with pytest.raises(
        ObjectTableError, match=r"object b has no geometry; .* leave such objects out with skip_missing"
    ):
        geojson_bytes(table)
    for nested in (False, True):
        features = json.loads(geojson_bytes(table, nested=nested, skip_missing=True))["features"]
        assert [one["id"] for one in features] == ["a"]


def test_nested_children_stand_in_their_parent():
    table = everything()
    features = json.loads(geojson_bytes(table, nested=True))["features"]
    assert len(features) == 8 + 1 + 9
    children = features[0]["properties"]["childObjects"]
    assert len(children) == 60
    assert len(children[7]["properties"]["childObjects"]) == 5
    loop = make_objects([shapely.box(0, 0, 1, 1)] * 2, object_type="tile", ids=["a", "b"], parent_id=["b", "a"])
    with pytest.raises(ObjectTableError, match="object a is its own ancestor"):
        geojson_bytes(loop, nested=True)


@pytest.mark.parametrize("ending", [".geojson", ".json", ".geojson.gz", ".json.gz", ".zip", ".geojson.zip"])
@pytest.mark.parametrize("nested", [False, True])
def test_round_trip(ending, nested, tmp_path):
    table = everything()
    write_geojson(tmp_path / f"objects{ending}", table, nested=nested)
    again = read_geojson(tmp_path / f"objects{ending}")
    if nested:
        assert set(again.index) == set(table.index)
        table = table.loc[again.index]
        assert list(again["parent_id"]) == [None if p is None or p != p else p for p in table["parent_id"]]
    assert_same(again, table, tolerance=0.0072)  # 0.005 in x and in y
    assert again["missing"].tolist() == table["missing"].tolist()
    assert [path.name for path in tmp_path.iterdir()] == [f"objects{ending}"]


def test_more_decimals():
    point = make_objects([shapely.Point(1 / 3, 2)], object_type="detection")
    assert parse(geojson_bytes(point)).geometry.iloc[0].x == 0.33
    assert parse(geojson_bytes(point, decimals=6)).geometry.iloc[0].x == 0.333333


def test_compressed_files_hold_the_same_text(tmp_path):
    table = everything()
    for ending in (".geojson", ".geojson.gz", ".zip"):
        write_geojson(tmp_path / f"x{ending}", table)
    text = (tmp_path / "x.geojson").read_bytes()
    assert gzip.decompress((tmp_path / "x.geojson.gz").read_bytes()) == text
    with zipfile.ZipFile(tmp_path / "x.zip") as archive:
        assert archive.namelist() == ["x.geojson"]
        assert archive.read("x.geojson") == text


def test_infinite_measurements_and_names_with_quotes():
    table = make_objects(
        [shapely.box(0, 0, 1, 1)] * 2, object_type="tile", measurements={'a "b" %b}]': [np.inf, 1], "c": [2, -np.inf]}
    )
    again = parse(geojson_bytes(table))
    assert again[['a "b" %b}]', "c"]].to_numpy().tolist() == [[np.inf, 2], [1, -np.inf]]


def test_an_ellipse_stays_one():
    ellipse = parse([feature(), {**feature(), "geometry": polygon(isEllipse=True)}]).geometry
    assert shapely.get_num_coordinates(ellipse.to_numpy()).tolist() == [5, 101]
    assert ellipse.iloc[1].area == pytest.approx(np.pi * 2 * 1.5, rel=1e-3)
    written = json.loads(geojson_bytes(make_objects(ellipse.to_numpy(), object_type="annotation")))["features"]
    assert [f["geometry"].get("isEllipse") for f in written] == [None, True]
    circle = make_objects([shapely.Point(0, 0).buffer(5, 25)], object_type="annotation")  # as many vertices, but drawn
    assert "isEllipse" not in json.loads(geojson_bytes(circle))["features"][0]["geometry"]


# ---------------------------------------------------------------------- what is refused when writing
def test_an_invalid_polygon_is_refused_and_the_old_file_stays(tmp_path):
    path = tmp_path / "x.geojson"
    path.write_text("old")
    shapes = [shapely.box(0, 0, 1, 1), shapely.Polygon(BOW_TIE), shapely.Polygon(BOW_TIE)]
    table = make_objects(shapes, object_type="annotation", ids=["a", "b", "c"])
    with pytest.raises(
        ObjectTableError, match=r"geometry of object b \(and of 1 more\) is invalid \(Self-intersection"
    ):
        write_geojson(path, table)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        (shapely.GeometryCollection([shapely.Point(0, 0)]), "of a kind that QuPath does not read"),
        (shapely.Point(np.inf, 0), "not finite"),
        (shapely.Polygon([(0, 0), (0.001, 0), (0, 0.001)]), "lost by rounding"),
    ],
)
def test_geometries_that_cannot_be_written(shape, message):
    table = make_objects([shapely.box(0, 0, 1, 1), shape], object_type="annotation", ids=["a", "b"])
    with pytest.raises(ObjectTableError, match=f"geometry of object b is {message}"):
        geojson_bytes(table)


def test_rounding_does_not_make_a_valid_polygon_invalid():
    # rounded to two decimals the tip at (5, 0.004) would lie on the edge below it
    shape = shapely.Polygon([(0, 0), (10, 0), (10, 10), (5, 0.004), (0, 10)])
    table = make_objects([shapely.box(0, 0, 1, 1), shape], object_type="annotation")
    again = parse(geojson_bytes(table)).geometry
    assert again.is_valid.all()
    assert again.iloc[0].equals(shapely.box(0, 0, 1, 1))
    assert again.iloc[1].area == pytest.approx(shape.area, abs=0.05)


def test_unknown_endings(tmp_path):
    with pytest.raises(FormatError, match=r"file name 'x\.shp'; expected an ending among \.geojson"):
        write_geojson(tmp_path / "x.shp", everything())
    assert not list(tmp_path.iterdir())


# ---------------------------------------------------------------------- the forms that are read
@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({"type": "FeatureCollection", "features": [feature(), feature()]}, 2),
        ({"features": [feature()], "type": "FeatureCollection", "bbox": [0, 0, 1, 1]}, 1),
        ([feature(), feature()], 2),
        (feature(), 1),
        (polygon(), 1),
        ([polygon(), {"type": "Point", "coordinates": [1, 2]}], 2),
        (
            {
                "root": {
                    "type": "Feature",
                    "geometry": {},
                    "properties": {"objectType": "root", "childObjects": [feature()]},
                }
            },
            1,
        ),
        ([], 0),
        ({"type": "FeatureCollection", "features": []}, 0),
    ],
)
def test_forms_of_a_file(content, expected):
    table = parse(content)
    assert len(table) == expected
    assert set(table["object_type"]) <= {"annotation"}
    pretty = parse(json.dumps(content, indent=2).encode())
    assert [g.wkt for g in pretty.geometry] == [g.wkt for g in table.geometry]


@pytest.mark.parametrize(
    ("members", "expected"),
    [
        ({"objectType": "cell"}, "cell"),
        ({"object_type": "tma_core"}, "tma_core"),
        ({"objectType": "tmaCore", "object_type": "tile"}, "tma_core"),
        ({"type": "tile"}, "tile"),
        ({"_id": "PathDetectionObject"}, "detection"),
        ({"_id": "PathDetectionObject", "objectType": "tile"}, "tile"),
        ({"objectType": "something new"}, "annotation"),
        ({}, "annotation"),
    ],
)
def test_types(members, expected):
    assert parse([feature(**members)])["object_type"].tolist() == [expected]


@pytest.mark.parametrize(
    ("classification", "name", "color"),
    [
        ("Tumor: Positive", "Tumor: Positive", None),
        ({"name": "Tumor: Positive", "color": [1, 2, 3]}, "Tumor: Positive", pack_rgb(1, 2, 3)),
        ({"name": "Tumor", "color": [1, 2, 3, 255]}, "Tumor", pack_rgb(1, 2, 3)),
        ({"names": ["Tumor", "Positive"], "color": -3657166}, "Tumor: Positive", -3657166),
        ({"name": "Tumor", "colorRGB": -3670016}, "Tumor", -3670016),
        ({"parentClass": {"name": "Tumor", "colorRGB": -1}, "name": "Positive", "colorRGB": -2}, "Tumor: Positive", -2),
        ({"name": "Tumor", "color": None}, "Tumor", None),
        (None, None, None),
        ("", None, None),
    ],
)
def test_classifications(classification, name, color):
    table = parse([feature(classification=classification)])
    assert table["classification"].astype(object).replace({np.nan: None}).tolist() == [name]
    assert table.attrs["class_colors"] == ({} if color is None else {name: color})


@pytest.mark.parametrize(
    ("measurements", "expected"),
    [
        (b'{"a": 1, "b": 2.5}', [1, 2.5]),
        (b'[{"name": "a", "value": 1}, {"name": "b", "value": 2.5}]', [1, 2.5]),
        (b'{"b": 2.5, "a": 1}', [1, 2.5]),
        (b'{"a": NaN, "b": -Infinity}', [np.nan, -np.inf]),
        (b'{"a": "NaN", "b": "Infinity"}', [np.nan, np.inf]),
        (b'{"a": "inf", "b": "12.5"}', [np.inf, 12.5]),
        (b'{"a": null, "b": 0}', [np.nan, 0]),
        (b'{"a": 7, "a": 1, "b": 2}', [1, 2]),
    ],
)
def test_measurements(measurements, expected):
    text = json.dumps([feature(measurements=0), feature(measurements={"c": 1})]).encode()
    table = parse(text.replace(b'"measurements": 0', b'"measurements": ' + measurements))
    np.testing.assert_array_equal(table[["a", "b"]].iloc[0], expected)
    np.testing.assert_array_equal(table["c"], [np.nan, 1])


def test_other_properties():
    table = parse([
        feature(color=-3670016, name=7, isLocked=True, isMissing=True, objectType="tmaCore", unknown={"a": [1]}),
        feature(color=[200, 0, 0], metadata={"a": "b", "n": 3, "yes": True, "list": [1]}, isLocked="no"),
        {"type": "Feature", "geometry": None, "properties": None},
        {"type": "Feature", "geometry": {}},
    ])  # fmt: skip
    assert table["color"].iloc[:2].tolist() == [pack_rgb(200, 0, 0)] * 2
    assert table["name"].iloc[0] == "7"
    assert table["locked"].tolist() == [True, False, False, False]
    assert table["missing"].tolist() == [True, False, False, False]
    assert table["metadata"].iloc[1] == {"a": "b", "n": "3", "yes": "true"}
    assert [g is None for g in table.geometry] == [False, False, True, True]


def test_ids():
    table = parse([feature(_id=ID.upper()), feature(_id="17"), feature(_id=5), feature()])
    assert table.index[0] == ID
    assert table.index.is_unique
    with pytest.raises(FormatError, match=f"feature 3: its id {ID} is that of feature 1; .*; take one of the two"):
        parse([feature(_id=ID), feature(), feature(_id=ID)])


@pytest.mark.parametrize("key", ["childObjects", "children"])
def test_children(key):
    inner = feature(_id=ID, **{key: [feature(), feature()]})
    table = parse([feature(), feature(**{key: [inner]}), feature()])
    assert len(table) == 6
    assert table["parent_id"].tolist() == [None, None, table.index[1], ID, ID, None]


def test_planes_and_third_coordinates():
    shapes = [
        polygon(plane={"c": 0, "z": 3, "t": 1}), polygon(plane={"c": -1, "z": 0, "t": 0}),
        {"type": "LineString", "coordinates": [[0, 1, 5], [2, 3, 5]], "plane": {"z": 1}},
        {"type": "Point", "coordinates": [1, 2]},
    ]  # fmt: skip
    table = parse([{"type": "Feature", "geometry": shape, "properties": {}} for shape in shapes])
    assert table["plane"].tolist() == [(0, 3, 1), None, (-1, 1, 0), None]
    assert table.geometry.iloc[2].wkt == "LINESTRING (0 1, 2 3)"


def test_shapes_by_hand():
    inner = [[1, 1], [1, 2], [2, 2], [1, 1]]
    far = [[9, 9], [9, 12], [12, 12], [12, 9], [9, 9]]
    multi = {
        "type": "MultiPolygon",
        "coordinates": [[SQUARE, inner], [far], [[[20, 20], [21, 20], [20, 21], [20, 20]]]],
    }
    lines = {"type": "MultiLineString", "coordinates": [[[0, 0], [1, 1]], [[2, 2], [3, 3], [4, 2]]]}
    points = {"type": "MultiPoint", "coordinates": [[1, 2], [3, 4]]}
    table = parse([multi, polygon(SQUARE, inner), lines, points, {"type": "Polygon", "coordinates": []}])
    assert table.geometry.iloc[0].area == 12 - 0.5 + 9 + 0.5
    assert [len(part.interiors) for part in table.geometry.iloc[0].geoms] == [1, 0, 0]
    assert table.geometry.iloc[1].area == 11.5
    assert [g.geom_type for g in table.geometry.iloc[2:4]] == ["MultiLineString", "MultiPoint"]
    assert table.geometry.iloc[2].length == pytest.approx(3 * 2**0.5)
    assert table.geometry.iloc[4] is None


def test_words_of_the_format_in_text():
    odd = 'x\\"coordinates":[[1,2]]},{"type":"Feature","coordinates": "measurements"'
    content = [feature(name=odd, metadata={"coordinates": "5", odd: odd}, coordinates=5), feature(name="]")]
    table = parse(content)
    assert table["name"].tolist() == [odd, "]"]
    assert table["metadata"].iloc[0] == {"coordinates": "5", odd: odd}
    assert [g.area for g in table.geometry] == [12, 12]
    assert parse([feature(measurements={"coordinates": 3})])["coordinates"].tolist() == [3]
    with pytest.raises(FormatError, match=r"feature 1: the measurement value \[1, 2\]"):
        parse([feature(measurements={"coordinates": [1, 2]})])


def test_large_files_are_read_in_blocks(monkeypatch):
    table = everything()
    flat, nested = geojson_bytes(table), geojson_bytes(table, nested=True)
    whole = [parse(text) for text in (flat, nested)]
    blocks = []
    monkeypatch.setattr(geojson_text, "BLOCK", 2000)
    block = geojson_text._block
    monkeypatch.setattr(geojson_text, "_block", lambda *args, **kwargs: blocks.append(1) or block(*args, **kwargs))
    for text, expected in zip((flat, nested), whole, strict=True):
        again = parse(text)
        assert_same(again, expected, tolerance=0)
        assert list(again["parent_id"]) == list(expected["parent_id"])
    assert len(blocks) > 10
    broken = flat.replace(b'"Point"', b'"Pount"')
    with pytest.raises(FormatError, match="feature 4, geometry: type 'Pount'"):
        parse(broken)


# ---------------------------------------------------------------------- what is refused when reading
@pytest.mark.parametrize(
    ("second", "message"),
    [
        (5, "feature 2: a JSON int; expected a GeoJSON feature"),
        ({"type": "Topology"}, "feature 2: type 'Topology'"),
        (feature(classification=5), "feature 2: the classification 5"),
        (feature(classification={"names": [1]}), "feature 2: the classification names"),
        (feature(color=[1, 2]), r"feature 2: the colour \[1, 2\]"),
        (feature(color=[1, 2, 300]), "feature 2: the colour"),
        (feature(name=["a"]), "feature 2: the name is no text"),
        (feature(measurements={"a": "many"}), "feature 2: the measurement value 'many'"),
        (feature(measurements={"a": True}), "feature 2: the measurement value True"),
        (feature(measurements=[{"name": "a"}]), "feature 2: measurements that are no names with values"),
        (feature(measurements=3), "feature 2: measurements that are no names with values"),
        (feature(metadata="x"), "feature 2: metadata that are no JSON object"),
        (feature(childObjects={"a": 1}), "feature 2: childObjects that are no array"),
        (feature(childObjects=[feature(), feature(color="x")]), "feature 2, child 2: the colour 'x'"),
        (feature(_geometry=5), "feature 2, geometry: no JSON object"),
        (feature(_geometry={"type": "Polygon"}), "feature 2, geometry: no array of coordinates"),
        (feature(_geometry={"type": "Polygon", "coordinates": 0}), "feature 2, geometry: no array of coordinates"),
        (feature(_geometry={"type": "Polygon", "coordinates": "x"}), "feature 2, geometry: no array of coordinates"),
        (feature(_geometry={"type": "Polygon", "coordinates": [0, 1]}), "feature 2, geometry: coordinates that are"),
        (feature(_geometry={"type": "Polygon", "coordinates": [[["a", 1]]]}), "feature 2, geometry: coordinates"),
        (feature(_geometry={"type": "LineString", "coordinates": [[0, 1]]}), "feature 2, geometry: coordinates"),
        (feature(_geometry={"type": "GeometryCollection", "geometries": []}), "geometry: type 'GeometryCollection'"),
        (feature(_geometry=polygon(plane={"z": "1"})), "feature 2, geometry: the plane"),
        (feature(_geometry=polygon(BOW_TIE)), r"feature 2, geometry: an invalid polygon \(Self-intersection"),
        (feature(_geometry=polygon(SQUARE[:4])), r"an invalid polygon \(a ring that is not closed"),
        (feature(_geometry=polygon(SQUARE[:2])), r"an invalid polygon \(a ring of 2 positions"),
        (feature(objectType="cell", _nucleusGeometry=polygon(BOW_TIE)), "feature 2, nucleus: an invalid polygon"),
    ],
)  # fmt: skip
def test_malformed_features_are_named(second, message):
    with pytest.raises(FormatError, match=f"^a file, {message}" if message.startswith("feature") else message) as error:
        parse([feature(), second], source="a file")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is no JSON"),
        (b"[{]", "is no JSON"),
        (b'{"a": NaN', "is no JSON"),
        (b"\xff\xfe[]", "is no JSON"),
        (b'[{"type":"Feature","geometry":{},"nucleusGeometry":{"type":"Point","coordinates":[1,]}}]', "is no JSON"),
        (b'[{"type":"Feature","geometry":{},"nucleusGeometry":{"type":"Point","coordinates":[[1,2]}}]', "is no JSON"),
        (b'{"a": 1}', "is JSON but has no features"),
        (b"17", "is JSON but has no features"),
        (b"\x1f\x8b\x08broken", "is damaged"),
        (b"PK\x03\x04broken", "is damaged"),
    ],
)
def test_what_is_no_geojson(data, message, tmp_path):
    (tmp_path / "x.geojson").write_bytes(data)
    with pytest.raises(FormatError, match=rf"x\.geojson {message}"):
        read_geojson(tmp_path / "x.geojson")


def test_files_that_are_missing_or_many(tmp_path):
    with pytest.raises(FormatError, match="cannot be read"):
        read_geojson(tmp_path / "none.geojson")
    with zipfile.ZipFile(tmp_path / "two.zip", "w") as archive:
        archive.writestr("a.geojson", "[]")
        archive.writestr("b.geojson", "[]")
    with pytest.raises(FormatError, match="has 2 files in it"):
        read_geojson(tmp_path / "two.zip")


def test_a_byte_order_mark_is_skipped():
    assert len(parse(b"\xef\xbb\xbf" + json.dumps([feature()]).encode())) == 1


def test_invalid_polygons_are_repaired_when_asked_to():
    spike = [*SQUARE[:2], [9, 0], *SQUARE[1:]]  # a line of no area out of the square
    table = parse(
        [
            feature(_geometry=polygon(BOW_TIE)), feature(_geometry=polygon(SQUARE[:4])),
            feature(_geometry=polygon(spike)), feature(_geometry=polygon(SQUARE, SQUARE[:2])), feature(),
            feature(_geometry={"type": "MultiPolygon", "coordinates": [[SQUARE], [SQUARE[:2]]]}),
        ],
        fix_invalid=True,
    )  # fmt: skip
    assert [g.geom_type for g in table.geometry] == ["MultiPolygon", *["Polygon"] * 5]
    assert table.geometry.area.tolist() == [2, 12, 12, 12, 12, 12]
    assert table.geometry.is_valid.all()
    with pytest.raises(FormatError, match="feature 1, geometry: a polygon without area"):
        parse([polygon([[0, 0], [1, 1], [2, 2], [0, 0]])], fix_invalid=True)


@pytest.mark.parametrize(
    ("array", "nesting"),
    [
        (b"[1,2]", b"p"),
        (b"[ 1.5e0 , -2 ]", b"p"),
        (b"[[1,2],[3,4]]", b"[pp]"),
        (b"[[1,2,3],[3,4,5]]", b"[pp]"),
        (b"[]", b"[]"),
        (b"[1]", b"?"),
        (b"[[1,2],[3]]", b"?"),
        (b"[[1,2],[3,4,5]]", b"?"),
        (b"[[1,],[2,3]]", b"?"),
        (b"[[1,][2,3],4]", b"?"),
        (b"[[1,2],3,4]", b"?"),
        (b"[[1,2];[3,4]]", b"?"),
        (b"[p]", b"?"),
        (b"[1,NaN]", b"?"),
        (b"[1,null]", b"?"),
    ],
)
def test_arrays_of_coordinates(array, nesting):
    read = Coordinates([b"[[5,6],[7,8]]", array, b"[9,9]"])
    assert read.nesting[0] == b"[pp]"
    assert read.nesting[2] == b"p"
    assert read.nesting[1] == nesting
    assert read.xy[[0, 1, -1]].tolist() == [[5, 6], [7, 8], [9, 9]]
    assert read.first[-1] == len(read.xy)


def test_cutting_leaves_an_index():
    text = b'[{"type":"Point","coordinates" : [1, 2] , "plane":{"c":1}},{"type": "LineString" ,"coordinates":[[3,4]]}]'
    assert cut(text) == (
        b'[{"type":"Point","coordinates":0 , "plane":{"c":1}},{"type": "LineString" ,"coordinates":1}]',
        [b"[1, 2]", b"[[3,4]]"],
    )
    assert cut(b'{"type":"Point","coordinates":"x"}') is None
    assert cut(b'{"type":"Point","coordinates":[1,2]7,"plane":{"c":1}}') is None
    assert cut(b'{"coordinates":[1,2],"type":"Point"}') is None
    assert parse(b'{"coordinates":[1,2],"type":"Point"}').geometry.iloc[0].wkt == "POINT (1 2)"


def compact(*features):
    return json.dumps({"type": "FeatureCollection", "features": features}, separators=(",", ":")).encode()


def test_measurements_are_cut_out_of_the_text():
    def row(**values):
        return feature(measurements=[{"name": name, "value": value} for name, value in values.items()])

    text = compact(row(a=1, b=2e-3), row(a=-4, b=5), row(b=6), row(a="NaN", b=7), feature(), row(c=8, a=9))
    rest, measured = cut_measurements(text)
    assert measured.names == ("a", "b")
    assert measured.values.tolist() == [[1, 0.002], [-4, 5]]
    assert rest.count(b'"measurements"') == 3
    nan = np.nan
    table = parse(text)
    np.testing.assert_array_equal(table["a"], [1, -4, nan, nan, nan, 9])
    np.testing.assert_array_equal(table["b"], [0.002, 5, 6, 7, nan, nan])
    np.testing.assert_array_equal(table["c"], [nan, nan, nan, nan, nan, 8])


def test_odd_measurements_are_left_in_the_text():
    one = {"name": "a", "value": 1}
    turned, brackets = [{"value": 1, "name": "a"}], [{"name": "}]", "value": 1}]
    for odd in (turned, brackets, [{"name": 5, "value": 1}], [[one]], [{"a": 1}]):
        assert cut_measurements(compact(feature(measurements=odd))) is None
    assert parse(compact(feature(measurements=brackets)))["}]"].tolist() == [1]
    assert parse(compact(feature(measurements=turned)))["a"].tolist() == [1]
    assert cut_measurements(compact(feature(measurements=[one], **{"\x01": 3}))) is None
    bad = compact(feature(measurements=[one]), feature(measurements=[one])).replace(b'"value":1}', b'"value":1.2.3}', 1)
    assert cut_measurements(bad) is None
    with pytest.raises(FormatError, match="is no JSON"):
        parse(bad)
    twice = compact(feature(measurements=[one])).replace(b"}]}", b'}],"measurements":[{"name":"b","value":2}]}')
    table = parse(twice)
    assert measurement_names(table) == ["b"]


def test_what_was_read_can_be_saved(tmp_path):
    table = parse([feature(classification={"name": "Tumor", "color": [1, 2, 3]}), feature(measurements={"a": 1})])
    save_objects(tmp_path / "x.parquet", table)
    again = load_objects(tmp_path / "x.parquet")
    assert_same(again, table, tolerance=0)
    assert len(concat_objects([table, again.rename(index=lambda i: f"other {i}")])) == 4


# ---------------------------------------------------------------------- QuPath reads it
JAVA_PROGRAM = """
import java.nio.file.*;
import java.util.stream.Collectors;
import qupath.lib.io.PathIO;
import qupath.lib.objects.*;

class ReadObjects {
  static void show(PathObject p, PathObject parent, StringBuilder out) {
    var c = p.getPathClass();
    var roi = p.getROI();
    var nucleus = p instanceof PathCellObject cell ? cell.getNucleusROI() : null;
    out.append(String.join("\\t", p.getID().toString(), p.getClass().getSimpleName(), String.valueOf(c),
      c == null ? "" : c.getColor().toString(), String.valueOf(p.getName()), p.isLocked() + "",
      roi == null ? "" : roi.getGeometry().toText(), nucleus == null ? "" : nucleus.getGeometry().toText(),
      roi == null ? "" : roi.getC() + "," + roi.getZ() + "," + roi.getT(), roi == null ? "" : roi.getRoiName(),
      parent == null ? "" : parent.getID().toString(),
      p.getMeasurements().entrySet().stream().map(e -> e.getKey() + "=" + e.getValue())
        .collect(Collectors.joining(";"))));
    out.append("\\n");
    for (var child : p.getChildObjects()) show(child, p, out);
  }
  public static void main(String[] args) throws Exception {
    var out = new StringBuilder();
    for (var p : PathIO.readObjects(Path.of(args[0]))) show(p, null, out);
    Files.writeString(Path.of(args[1]), out.toString());
  }
}
"""
CLASSES = {
    "annotation": "PathAnnotationObject", "cell": "PathCellObject", "detection": "PathDetectionObject",
    "tile": "PathTileObject", "tma_core": "TMACoreObject",
}  # fmt: skip


def seen_by_qupath(path, folder):
    installation = os.environ.get("PAQUO_QUPATH_DIR")
    if installation is None:
        pytest.skip("PAQUO_QUPATH_DIR is not set")
    java = Path(installation) / "lib/runtime/bin/java"
    if not java.exists():
        java = Path(os.environ.get("JAVA_HOME", "/usr")) / "bin/java"
    program = folder / "ReadObjects.java"
    program.write_text(JAVA_PROGRAM)
    command = [
        str(java),
        "-cp",
        str(Path(installation) / "lib/app/*"),
        str(program),
        str(path),
        str(folder / "seen.tsv"),
    ]
    result = subprocess.run(command, check=False, capture_output=True, text=True)
    if "method getID()" in result.stderr:
        pytest.skip("objects of QuPath 0.3 have no ids to compare by")
    assert result.returncode == 0, result.stderr
    return [line.split("\t") for line in (folder / "seen.tsv").read_text().splitlines()]


@pytest.mark.qupath
@pytest.mark.parametrize("ending", [".geojson", ".geojson.gz", ".zip"])
@pytest.mark.parametrize("nested", [False, True])
def test_qupath_reads_the_same_objects(ending, nested, tmp_path):
    table = everything()
    ellipse = parse([{**feature(), "geometry": polygon(isEllipse=True)}])
    table = concat_objects([table, ellipse])
    path = tmp_path / f"objects{ending}"
    write_geojson(path, table, nested=nested, colors={"Tumor": pack_rgb(1, 2, 3)})
    seen = {row[0]: row for row in seen_by_qupath(path, tmp_path)}
    assert set(seen) == set(table.index)
    for object_id, row in table.iterrows():
        _, kind, class_name, color, name, locked, wkt, nucleus, plane, _, parent, measurements = seen[object_id]
        assert kind == CLASSES[row["object_type"]]
        assert class_name == (row["classification"] if isinstance(row["classification"], str) else "null")
        assert color == (str(pack_rgb(1, 2, 3)) if class_name == "Tumor" else color)
        assert name == (row["name"] if isinstance(row["name"], str) else "null")
        assert locked == str(row["locked"]).lower()
        assert parent == (row["parent_id"] if nested and isinstance(row["parent_id"], str) else "")
        assert shapely.hausdorff_distance(shapely.from_wkt(wkt), row["geometry"]) < 0.02
        assert plane == ("-1,1,2" if row["plane"] else "-1,0,0")
        assert (nucleus != "") == (row["nucleus"] is not None)
        values = dict(pair.split("=") for pair in measurements.split(";") if pair)
        finite = {name: row[name] for name in measurement_names(table) if row[name] == row[name]}
        assert {name: float(value) for name, value in values.items()} == pytest.approx(finite, rel=1e-6)
    assert seen[ellipse.index[0]][9] == "Ellipse"
