"""Objects that are there get new values, and everything else about them stays."""

import re
import uuid

import numpy as np
import pandas as pd
import pytest
import shapely
from native_files import GOLDEN, assert_same, cells, golden, polygon, table_of, tokens_by_id, written

from pyhisto.objects import concat_objects, make_objects
from qupath_ext.errors import FormatError, ProjectError
from qupath_ext.native import edit as edit_module
from qupath_ext.native.catalog import Factory
from qupath_ext.native.datafile import new_data_file, parse_data_file
from qupath_ext.native.edit import open_for_edit
from qupath_ext.native.emitter import emit_stream
from qupath_ext.native.pathobjects import NewObject, PathObjectView, make_object, walk
from qupath_ext.native.tokens import JArray, JObject

N = 300


def emitted(token):
    out = bytearray()
    emit_stream([token], out.extend)
    return bytes(out)


def updated(data, table):
    after, counts = written(data=data, update=[table])
    assert counts.updated == len(table)
    return after


@pytest.fixture(scope="module")
def file_of_cells():
    """An annotation with 300 cells below it, and their table."""
    parent = make_objects([shapely.box(0, 0, 1e5, 1e5)], object_type="annotation")
    table = concat_objects([parent, cells(N, parent_id=parent.index[0])])
    return written(table)[0], table


@pytest.fixture(params=["one by one", "at once"])
def way(request, monkeypatch):
    """Both ways in which the members of a run are changed."""
    monkeypatch.setattr(edit_module, "MIN_REWRITE", 10**9 if request.param == "one by one" else 1)


# ---------------------------------------------------------------------- the members of runs
def test_classes_and_locks_of_cells(file_of_cells, way):
    data, table = file_of_cells
    chosen = table.index[1::2]
    names = ["Stroma" if i % 3 else None for i in range(len(chosen))]
    change = pd.DataFrame({"classification": names, "locked": [i % 2 == 0 for i in range(len(chosen))]}, index=chosen)
    found = table_of(updated(data, change[::-1]))
    assert list(found.index) == list(table.index)
    wanted = table.copy()
    wanted["classification"] = table["classification"].astype(object)
    wanted.loc[chosen, "classification"] = names
    wanted.loc[chosen, "locked"] = change["locked"]
    assert_same(wanted, found)


def test_measurements_of_cells(file_of_cells, way):
    data, table = file_of_cells
    change = pd.DataFrame({"Area": [7.5, np.nan, 9.25], "new": [np.nan, 1.5, 0.1]}, index=table.index[[5, 6, 250]])
    found = table_of(updated(data, change))
    # cells() gives number i the area i / 4
    assert found["Area"].iloc[[5, 6, 250, 7]].tolist() == [7.5, 1.25, 9.25, 1.5]
    assert found["new"].iloc[[5, 6, 250]].tolist()[1:] == [1.5, float(np.float32(0.1))]
    assert found["new"].notna().sum() == 2
    assert list(found.columns[-3:]) == ["Area", "odd", "new"]
    wanted = table.drop(columns="Area")
    assert_same(wanted, found)


def test_a_measurement_for_every_cell_and_other_cells_without_list(way):
    bare = make_objects([polygon(i, i) for i in range(40)], object_type="detection")
    table = concat_objects([bare, cells(40)])
    data, _ = written(table)
    change = pd.DataFrame({"score": np.arange(80) / 8}, index=table.index)
    found = table_of(updated(data, change))
    np.testing.assert_array_equal(found.loc[table.index, "score"], np.arange(80) / 8)
    assert_same(table, found)


def test_shapes_of_cells(file_of_cells, way):
    data, table = file_of_cells
    chosen = table.index[10:60]
    shapes = [shapely.box(i, 0, i + 2.5, 3) if i % 2 else polygon(i, i, 5, 11) for i in range(50)]
    shapes[7] = shapely.box(0, 0, 50, 50).difference(shapely.box(10, 10, 20, 20))  # a ROI that no run holds
    nuclei = [polygon(i, 2, 1, 5) if i % 3 else None for i in range(50)]
    geometry = gpd_column(shapes, chosen)
    change = pd.DataFrame({"geometry": geometry, "nucleus": gpd_column(nuclei, chosen)})
    found = table_of(updated(data, change))
    wanted = table.copy()
    wanted.loc[chosen, "geometry"] = shapes
    wanted["nucleus"] = [*table["nucleus"][:10], *nuclei, *table["nucleus"][60:]]
    assert_same(wanted, found)


def gpd_column(shapes, index):
    values = np.empty(len(shapes), dtype=object)
    values[:] = shapes
    return pd.Series(values, index=index, dtype=object)


def test_names_colours_and_metadata_of_cells(file_of_cells, way):
    data, table = file_of_cells
    chosen = table.index[20:60]
    change = pd.DataFrame(
        {
            "name": ["a", None, "ü", *[None] * 37],
            "color": pd.array([None, -65536, *[None] * 38], dtype="Int64"),
            "metadata": [None, None, {"k": "v"}, *[None] * 37],
            "classification": "Other",
        },
        index=chosen,
    )
    found = table_of(updated(data, change))
    assert found.loc[chosen[:4], "name"].tolist() == ["a", None, "ü", None]
    assert found.loc[chosen[1], "color"] == -65536
    assert found.loc[chosen[2], "metadata"] == {"k": "v"}
    assert (found.loc[chosen, "classification"] == "Other").all()
    assert list(found.index) == list(table.index)
    assert_same(table.drop(index=chosen), found.drop(index=chosen))


def test_class_probabilities(way):
    table = cells(60)
    table["class_probability"] = np.where(np.arange(60) % 4, np.arange(60) / 64, np.nan)
    data, _ = written(table)
    assert_same(table, table_of(data))
    change = pd.DataFrame({"classification": "Tumor"}, index=table.index)
    found = table_of(updated(data, change))
    np.testing.assert_array_equal(found["class_probability"], table["class_probability"])  # 1/64 is exact
    change = pd.DataFrame({"class_probability": [0.7, np.nan]}, index=table.index[[0, 1]])
    found = table_of(updated(data, change))
    assert found["class_probability"].iloc[:3].tolist()[::2] == [0.7, 2 / 64]
    assert np.isnan(found["class_probability"].iloc[1])


def test_nothing_is_lost_from_read_to_remove_to_add():
    table = concat_objects(
        [cells(30), make_objects([shapely.box(0, 0, 1, 1)], object_type="annotation", class_probability=1 / 3)]
    )
    table["class_probability"] = table["class_probability"].fillna(1 / 7)
    data, _ = written(table)
    before = parse_data_file(data).read_table()
    again, _ = written(before, data=data, remove=list(before.index))
    assert_same(before, table_of(again))


def test_several_updates_then_removed_and_locked(file_of_cells, way):
    data, table = file_of_cells
    first = pd.DataFrame({"Area": 1.0}, index=table.index[1:200])
    second = pd.DataFrame({"classification": "Stroma", "more": 2.0}, index=table.index[100:300])
    after, counts = written(
        data=data, update=[first, second], remove=list(table.index[150:160]), lock=list(table.index[[120, 290]])
    )
    assert (counts.updated, counts.removed, counts.locked) == (299, 10, 2)
    found = table_of(after)
    assert len(found) == len(table) - 10
    assert (found.loc[table.index[1:150], "Area"] == 1).all()
    assert found.loc[table.index[250], "Area"] == 249 / 4
    assert (found.loc[table.index[160:300], "classification"] == "Stroma").all()
    assert found["more"].notna().sum() == 190
    assert found.index[found["locked"]].tolist() == table.index[[120, 290]].tolist()


@golden
@pytest.mark.parametrize("version", ["v0.5.1", "v0.6.0"])
def test_cells_of_qupath_keep_their_bytes(version):
    before = (GOLDEN / version / "cells/project/data/1/data.qpdata").read_bytes()
    was = parse_data_file(before).read_table()
    cells_of = was.index[was["object_type"] == "cell"]
    changed, same = cells_of[::2], cells_of[1::2]
    change = pd.DataFrame({"classification": "Tumor: Positive", "score": 0.5}, index=changed)
    after = updated(before, change)
    found = parse_data_file(after).read_table()
    assert list(found.index) == list(was.index)
    assert (found.loc[changed, "classification"] == "Tumor: Positive").all()
    assert (found.loc[changed, "score"] == 0.5).all()
    assert found.loc[same, "score"].isna().all()
    old, now = tokens_by_id(before), tokens_by_id(after)
    for object_id in same[::37]:
        assert emitted(now[object_id].token) == emitted(old[object_id].token)
    for object_id in changed[::37]:
        # shapes with their cached statistics; lists with another name at their end
        assert emitted(now[object_id].roi_token) == emitted(old[object_id].roi_token)
        assert emitted(now[object_id].nucleus_token) == emitted(old[object_id].nucleus_token)
        assert list(now[object_id].measurements.items())[:-1] == list(old[object_id].measurements.items())
    changed_back = pd.DataFrame({"classification": was["classification"]}, index=was.index)
    again = parse_data_file(updated(after, changed_back)).read_table()
    assert again["classification"].astype(object).equals(was["classification"].astype(object))


def test_measurements_as_doubles_stay_doubles(way):
    # QuPath has lists of doubles for detections, too; 1/3 is no float32
    data, _ = written(cells(40))
    parsed = parse_data_file(data, fast=False)
    factory = edit_module.HierarchyEdit(parsed, lambda name: None)._factory
    ids = []
    for view, _ in walk(parsed.root):
        raw = np.array([1 / 3, len(ids)]).astype(">f8").tobytes()
        view.set_list(factory.number_list(("third", "n"), raw, "DoubleList"), factory)
        ids.append(view.id)
    data = parsed.to_bytes()
    found = table_of(updated(data, pd.DataFrame({"new": 1 / 7, "n": 5.0}, index=ids[:30])))
    assert (found["third"] == 1 / 3).all()
    assert (found["new"].iloc[:30] == 1 / 7).all()
    assert found["n"].tolist() == [5.0] * 30 + list(range(30, 40))


# ---------------------------------------------------------------------- annotations and others
def test_everything_of_an_annotation():
    child = make_objects([polygon(9, 9)], object_type="detection")
    table = make_objects(
        [polygon(5, 5), shapely.Point(1, 2)],
        object_type="annotation",
        classification="Tumor",
        name="old",
        color=-1,
        locked=True,
        metadata=[{"ANNOTATION_DESCRIPTION": "text", "k": "v"}, None],
        plane=[(-1, 2, 0), None],
        measurements={"a": [1 / 3, 2.0]},
    )
    child["parent_id"] = table.index[0]
    data, _ = written(concat_objects([table, child]))
    shape = shapely.box(0, 0, 5, 7)
    change = pd.DataFrame(
        {
            "classification": ["Stroma: ü", None],
            "name": [None, "new"],
            "color": [None, -65536],
            "locked": [False, True],
            "geometry": [shape, shapely.LineString([(0, 0), (3, 4)])],
            "b": [0.1, np.nan],
        },
        index=table.index,
    )
    found = table_of(updated(data, change))
    first, second = found.loc[table.index[0]], found.loc[table.index[1]]
    assert (first["classification"], first["name"], first["locked"]) == ("Stroma: ü", None, False)
    assert pd.isna(first["color"])
    assert first["metadata"] == {"ANNOTATION_DESCRIPTION": "text", "k": "v"}
    assert first["plane"] == (-1, 2, 0)
    assert first["geometry"].equals(shape)
    assert (first["a"], first["b"]) == (1 / 3, 0.1)  # annotations have doubles
    assert pd.isna(second["classification"])
    assert (second["name"], second["color"], second["a"]) == ("new", -65536, 2.0)
    assert second["geometry"].length == 5
    assert np.isnan(second["b"])
    assert found.loc[child.index[0], "parent_id"] == table.index[0]
    # metadata only if the column is given
    found = table_of(updated(data, pd.DataFrame({"metadata": [{"only": "this"}, None]}, index=table.index)))
    assert found.loc[table.index[0], "metadata"] == {"only": "this"}
    assert found.loc[table.index[0], "name"] == "old"


@golden
@pytest.mark.parametrize("version", ["v0.3.2", "v0.5.1", "v0.6.0"])
@pytest.mark.parametrize("kind", ["plain", "tma"])
def test_what_reading_showed_changes_nothing(version, kind):
    before = (GOLDEN / version / kind / "data/1/data.qpdata").read_bytes()
    was = table_of(before)
    with_ids, _ = written(data=before, lock=[])
    names = ["classification", "name", "color", "locked", "metadata", "geometry", "nucleus", "class_probability"]
    table = pd.DataFrame(was.drop(columns=["object_type", "parent_id", "plane"]))
    assert set(names) - {"class_probability"} <= set(table)
    assert updated(before, table) == with_ids  # even ellipses stay ellipses


@golden
def test_cached_statistics_go_with_the_vertices_only():
    before = (GOLDEN / "v0.5.1/cells/project/data/1/data.qpdata").read_bytes()
    was = parse_data_file(before).read_table()
    one = was.index[was["object_type"] == "cell"][3]
    assert before.count(b"ClosedShapeStatistics") > 0
    change = pd.DataFrame({"geometry": [polygon(50, 50, 8, 9)]}, index=[one])
    view = tokens_by_id(updated(before, change))[one]
    assert view.roi_token.get("stats") is None
    assert isinstance(view.roi_token.get("x"), JArray)
    assert view.roi_token.get("x").length == 9
    assert view.nucleus_token.get("stats") is not None


@golden
def test_connections_still_mean_the_same_cells_after_an_update():
    before = (GOLDEN / "v0.5.1/conn/data/1/data.qpdata").read_bytes()

    def connected(data):
        owners = [
            PathObjectView(next(t for t in token.contents if isinstance(t, JObject))).id
            for token in parse_data_file(data, fast=False).parser.handles.values()
            if isinstance(token, JObject) and token.desc.name.endswith("$ObjectConnector")
        ]
        return sorted(owners)

    was = table_of(before)
    after = updated(before, pd.DataFrame({"classification": "Other", "new": 1.0}, index=was.index))
    assert connected(after) == connected(before) != []


@golden
def test_objects_of_a_file_without_ids_are_found_by_those_that_reading_showed():
    before = (GOLDEN / "v0.3.2/plain/data/1/data.qpdata").read_bytes()
    was = table_of(before)
    found = table_of(updated(before, pd.DataFrame({"name": ["x"]}, index=[was.index[4]])))
    assert found.index[found["name"] == "x"].tolist() == [was.index[4]]
    assert list(found.index) == list(was.index)


# ---------------------------------------------------------------------- what is refused
@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"object_type": ["tile"]}, "column 'object_type' in an update"),
        ({"parent_id": [None]}, "column 'parent_id' in an update"),
        ({"plane": [None]}, "column 'plane' in an update"),
        ({5: [1.0]}, "column 5 in an update"),
        ({"text": ["x"]}, "measurement 'text' is not numeric"),
        ({"locked": [None]}, "locked is None for object"),
        ({"name": [5]}, "name 5 of object"),
        ({"classification": [5]}, "class 5 of object"),
        ({"classification": ["A:B"]}, "class name 'A:B'"),
        ({"color": [2**40]}, "colour 1099511627776 of object"),
        ({"metadata": ["x"]}, "has other metadata"),
        ({"metadata": [{"Object ID": "x"}]}, "metadata key 'Object ID'"),
        ({"geometry": [None]}, "geometry of object .* is missing"),
        ({"geometry": [shapely.Polygon()]}, "geometry of object .* is missing or empty"),
        ({"geometry": [shapely.Point(1, 2)]}, "is a Point; expected a polygon"),
        ({"geometry": [shapely.Polygon([(0, 0), (2, 2), (2, 0), (0, 2)])]}, "is invalid"),
        ({"nucleus": [shapely.Point(1, 2)]}, "nucleus of object .* is a Point"),
        ({"missing": [True]}, "of type cell is missing"),
        ({"class_probability": ["x"]}, "class probability 'x'"),
    ],
)
def test_values_that_cannot_be_stored(file_of_cells, columns, message):
    data, table = file_of_cells
    with pytest.raises(ProjectError, match=message):
        written(data=data, update=[pd.DataFrame(columns, index=[table.index[5]])])


def test_objects_that_cannot_be_updated(file_of_cells, way):
    data, table = file_of_cells
    with pytest.raises(ProjectError, match="is not in the image"):
        written(data=data, update=[pd.DataFrame({"a": [1.0, 2.0]}, index=[table.index[5], str(uuid.UUID(int=5))])])
    twice = pd.DataFrame({"a": [1.0, 2.0]}, index=table.index[[5, 5]])
    with pytest.raises(ProjectError, match="occurs twice"):
        written(data=data, update=[twice])
    nuclei = pd.DataFrame({"nucleus": [polygon(1, 1)]}, index=[table.index[0]])
    with pytest.raises(ProjectError, match="has a nucleus"):
        written(data=data, update=[nuclei])


def test_an_empty_update_changes_nothing(file_of_cells):
    data, _ = file_of_cells
    after, counts = written(data=data, update=[pd.DataFrame({"a": []}, index=[])])
    assert counts.updated == 0
    assert after == data


# ---------------------------------------------------------------------- what is not understood
@golden
@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"qupath.lib.objects.PathTileObject", b"qupath.lib.objects.PathTileObjecT"),
        (b"qupath.lib.objects.PathAnnotationObject", b"qupath.lib.objects.PathAnnotatiOnObject"),
        (b"qupath.lib.roi.EllipseROI$", b"qupath.lib.roi.EllipsEROI$"),
        (b"NumericMeasurementList$FloatList", b"NumericMeasurementList$FlOatList"),
        (b"qupath.lib.objects.classes.PathClass", b"qupath.lib.objects.classes.PathClasS"),
    ],
)
def test_an_unknown_class_in_the_objects_is_refused_and_named(old, new):
    intact = (GOLDEN / "v0.5.1/plain/data/1/data.qpdata").read_bytes()
    assert intact.count(old) == 1
    data = intact.replace(old, new)
    for action in (lambda: parse_data_file(data).read_table(), lambda: written(cells(5), data=data)):
        with pytest.raises(FormatError, match=new.decode().rpartition(".")[2].replace("$", r"\$")) as caught:
            action()
        assert re.search("object [0-9a-f-]{36}", caught.value.found)


@golden
def test_parts_at_the_end_of_an_object_that_are_not_known():
    parsed = parse_data_file((GOLDEN / "v0.5.1/plain/data/1/data.qpdata").read_bytes(), fast=False)
    view = next(view for view, _ in walk(parsed.root) if view.kind == "annotation")
    view.token.contents.append(view.token.contents[-1])
    with pytest.raises(FormatError, match=f"unknown parts at the end in object {view.id}"):
        parse_data_file(parsed.to_bytes()).read_table()


def test_a_root_below_the_root_is_refused():
    ids = [f"10000000-0000-4000-8000-{number:012d}" for number in range(2)]
    data = new_data_file(
        server={},
        image_type="OTHER",
        stains=None,
        project_entry="project::1",
        root_id=ids[0],
        version="0.5.1",
        colors=lambda name: None,
    )
    second = make_object(NewObject(id=ids[1], kind="root", geometry=None), Factory((), lambda name: None))
    PathObjectView(data.root).set_children([second])
    damaged = data.to_bytes()
    with pytest.raises(FormatError, match=f"root object {ids[1]} below another object"):
        parse_data_file(damaged).read_table()
    with pytest.raises(FormatError, match="below another object"):
        open_for_edit(damaged, lambda name: None)
