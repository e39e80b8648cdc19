import uuid

import numpy as np
import pandas as pd
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from native_files import GOLDEN, assert_same, cells, golden, new_file, polygon, table_of, tokens_by_id, written

from pyhisto.objects import concat_objects, make_objects, measurement_names, new_ids
from qupath_ext.errors import FormatError, ProjectError
from qupath_ext.native.classcolors import class_color
from qupath_ext.native.datafile import parse_data_file
from qupath_ext.native.edit import HierarchyEdit
from qupath_ext.native.emitter import emit_stream
from qupath_ext.native.pathobjects import PathObjectView, walk
from qupath_ext.native.tma import grid_cores
from qupath_ext.native.tokens import Block, JArray, JObject


def every_shape():
    hole = shapely.box(0, 0, 50, 50).difference(shapely.box(10, 10, 20, 20))
    return [
        shapely.box(1.5, 2.5, 1000.123456789, 2000.25),
        polygon(100, 100),
        hole,
        shapely.MultiPolygon([hole, shapely.box(60, 60, 70, 70)]),
        shapely.Point(1.5, 2.25),
        shapely.MultiPoint([(1, 2), (3, 4), (5.5, 6)]),
        shapely.LineString([(0.1, 0.2), (7, 8)]),
        shapely.LineString([(0, 0), (7, 8), (9, 1)]),
        shapely.MultiLineString([[(0, 0), (7, 8)], [(1, 1), (2, 2), (3, 1)]]),
    ]


# ---------------------------------------------------------------------- round trips
def test_annotations_of_every_shape():
    shapes = every_shape()
    n = len(shapes)
    table = make_objects(
        shapes,
        object_type="annotation",
        classification=["Tumor", None, "Ignore*", "Immune cells: CD3: CD8", "My clàss 名前", *[None] * (n - 5)],
        name=["Ä 😐", "", *[None] * (n - 2)],
        locked=[i % 2 == 0 for i in range(n)],
        color=[-65536, None, 255, *[None] * (n - 3)],
        plane=[None, (-1, 3, 2), (1, 0, 0), *[None] * (n - 3)],
        metadata=[{"ANNOTATION_DESCRIPTION": "a\nb", "ключ": "ü"}, *[None] * (n - 1)],
        measurements={"third": [1 / 3, np.nan, *range(n - 2)], "inf": [np.inf, -np.inf, *[np.nan] * (n - 2)]},
    )
    data, counts = written(table)
    assert counts.added == {"annotation": n}
    assert_same(table, table_of(data))


def test_the_kind_of_roi_is_the_simplest_that_holds_the_shape():
    data, _ = written(make_objects(every_shape(), object_type="annotation"))
    kinds = [view.roi_token.desc.name.split(".")[-1].split("$")[0] for view, _ in walk(parse_data_file(data).root)]
    assert kinds == [
        *("RectangleROI", "PolygonROI", "GeometryROI", "GeometryROI", "PointsROI"),
        *("PointsROI", "LineROI", "PolylineROI", "GeometryROI"),
    ]


def test_a_ring_is_stored_open_and_without_cached_statistics():
    data, _ = written(make_objects([polygon(100, 100, n=9)], object_type="annotation"))
    roi = next(walk(parse_data_file(data).root))[0].roi_token
    assert isinstance(roi.get("x"), JArray)
    assert roi.get("x").length == 9
    assert roi.get("stats") is None


def test_geometries_of_one_part_are_unwrapped():
    table = make_objects(
        [shapely.MultiPolygon([polygon(5, 5)]), shapely.MultiLineString([[(0, 0), (7, 8)]])], object_type="annotation"
    )
    found = table_of(written(table)[0])
    assert [g.geom_type for g in found["geometry"]] == ["Polygon", "LineString"]


@pytest.mark.parametrize("n", [1, 7, 8, 300])
def test_cells_in_bulk(n):
    parent = make_objects([shapely.box(0, 0, 1e5, 1e5)], object_type="annotation", locked=True)
    table = concat_objects([parent, cells(n, parent_id=parent.index[0])])
    data, counts = written(table)
    assert counts.added == {"annotation": 1, "cell": n}
    assert_same(table, table_of(data))
    if n == 300:
        # all cells but the first of each sort are found by the fast path
        assert sum(len(run) for run in parse_data_file(data).parser.runs) > 280


def test_detections_and_tiles_in_bulk_with_boxes_points_and_planes():
    n = 60
    boxes = [shapely.box(i, i, i + 2.5, i + 3) for i in range(n)]
    points = [shapely.Point(i, 1) if i % 2 else shapely.MultiPoint([(i, 2), (i, 3)]) for i in range(n)]
    tiles = make_objects(
        boxes, object_type="tile", measurements={"p": np.arange(n) / 8}, locked=[i == 7 for i in range(n)]
    )
    counted = make_objects(points, object_type="detection", plane=[(-1, i % 3, 0) if i % 3 else None for i in range(n)])
    shapes = make_objects([polygon(i, i) for i in range(n)], object_type="detection", classification="Other")
    table = concat_objects([tiles, counted, shapes])
    assert_same(table, table_of(written(table)[0]))


def test_measurements_of_one_type_do_not_spread_to_another():
    tiles = make_objects([shapely.box(0, 0, 1, 1)] * 20, object_type="tile", measurements={"p": np.arange(20)})
    data, _ = written(concat_objects([tiles, cells(20)]))
    views = [item for item, _ in walk(parse_data_file(data, fast=False).root)]
    assert {tuple(view.measurements) for view in views if view.kind == "tile"} == {("p",)}
    assert {tuple(view.measurements) for view in views if view.kind == "cell"} == {("Area", "odd")}


def test_cells_with_names_colours_or_children_are_kept_too():
    table = cells(30)
    table.loc[table.index[3], "name"] = "one"
    table.loc[table.index[4], "color"] = -1
    child = make_objects([polygon(3, 3)], object_type="detection", parent_id=table.index[5])
    both = concat_objects([table, child])
    assert_same(both, table_of(written(both)[0]))


def test_objects_are_written_below_parents_of_the_same_call_in_any_order():
    ids = new_ids(3)
    table = make_objects(
        [polygon(5, 5), polygon(6, 6), polygon(7, 7)],
        object_type="annotation",
        ids=ids,
        parent_id=[ids[1], ids[2], None],
    )
    found = table_of(written(table)[0])
    assert list(found.index) == ids[::-1]
    assert_same(table, found)


text = st.text(st.characters(blacklist_categories=["Cs"]), max_size=8)
names = st.text(st.characters(whitelist_categories=["L", "N"]), min_size=1, max_size=6)
number = st.floats(width=32, allow_nan=True)
shape = st.one_of(
    st.builds(polygon, st.integers(0, 90_000), st.integers(0, 90_000), st.integers(2, 50), st.integers(3, 12)),
    st.builds(lambda x, y, w, h: shapely.box(x, y, x + w, y + h), *[st.integers(0, 99)] * 2, *[st.integers(1, 50)] * 2),
)


@st.composite
def objects(draw):
    n = draw(st.integers(1, 40))
    kinds = draw(st.lists(st.sampled_from(["annotation", "detection", "cell", "tile"]), min_size=n, max_size=n))
    pick = lambda values: draw(st.lists(values, min_size=n, max_size=n))  # noqa: E731
    ids = new_ids(n)
    parents = [draw(st.none() | st.sampled_from(ids[:i])) if i else None for i in range(n)]
    plain = draw(st.booleans())
    return make_objects(
        pick(shape),
        object_type=kinds,
        ids=ids,
        nucleus=[draw(st.none() | shape) if kind == "cell" else None for kind in kinds],
        classification=pick(st.none() | st.sampled_from(["A", "A: B", "Ignore*"])),
        name=[None] * n if plain else pick(st.none() | text),
        color=[None] * n if plain else pick(st.none() | st.integers(-(2**31), 2**31 - 1)),
        locked=pick(st.booleans()),
        metadata=[None] * n if plain else pick(st.none() | st.dictionaries(names, text, min_size=1, max_size=3)),
        plane=pick(st.none() | st.just((-1, 1, 2))),
        parent_id=[None] * n if plain else parents,
        measurements={name: pick(number) for name in draw(st.lists(names, unique=True, max_size=3))},
    )


@settings(max_examples=30, deadline=None)
@given(objects())
def test_round_trip(table):
    data, counts = written(table)
    assert sum(counts.added.values()) == len(table)
    assert_same(table, table_of(data))
    again = parse_data_file(data)
    assert again.to_bytes() == data


# ---------------------------------------------------------------------- changes of existing files
def emitted(token):
    out = bytearray()
    emit_stream([token], out.extend)
    return bytes(out)


@golden
@pytest.mark.parametrize("version", ["v0.3.2", "v0.5.1", "v0.6.0"])
@pytest.mark.parametrize("kind", ["plain", "tma", "conn"])
def test_adding_changes_nothing_else(version, kind):
    before = (GOLDEN / version / kind / "data/1/data.qpdata").read_bytes()
    new = cells(40)
    after, counts = written(new, data=before)
    assert counts.n_added == 40
    old, now = parse_data_file(before, fast=False), parse_data_file(after, fast=False)
    assert len(old.contents) == len(now.contents)
    for ours, theirs in zip(old.contents, now.contents, strict=True):
        if not (isinstance(ours, JObject) and ours.desc.name.endswith(("PathObjectHierarchy", "HashMap"))):
            assert emitted(ours) == emitted(theirs)
    table = table_of(after)
    was = parse_data_file(before).read_table()
    assert list(table.index[: len(was)]) == list(was.index)
    assert_same(was, table[: len(was)])
    assert_same(new, table[len(was) :])
    if version != "v0.3.2":  # those get their ids stored
        kept = tokens_by_id(before)
        for object_id, view in tokens_by_id(after).items():
            if object_id in kept:
                assert emitted(view.token) == emitted(kept[object_id].token)
        # bytes before the hierarchy are the same, too
        assert after[: before.index(b"PathObjectHierarchy")] == before[: before.index(b"PathObjectHierarchy")]


@golden
def test_adding_and_removing_again_gives_the_same_bytes():
    before = (GOLDEN / "v0.5.1/cells/project/data/1/data.qpdata").read_bytes()
    new = cells(100)
    added, _ = written(new, data=before)
    removed, counts = written(data=added, remove=list(new.index))
    assert counts.removed == 100
    assert removed == before


@golden
@pytest.mark.parametrize("version", ["v0.5.1", "v0.6.0"])
def test_removing_cells_that_hold_what_others_share(version):
    before = (GOLDEN / version / "cells/project/data/1/data.qpdata").read_bytes()
    was = table_of(before)
    gone = [*was.index[:3], *was.index[100:2000:7]]  # with the parent annotation and the first cells of all
    after, counts = written(data=before, remove=gone)
    assert counts.removed == len(gone)
    kept = was.drop(index=gone)
    kept["parent_id"] = None  # children of a removed parent move up
    found = table_of(after)
    assert list(found.index) == list(kept.index)
    for name in measurement_names(kept):
        np.testing.assert_array_equal(found[name], kept[name])
    assert shapely.equals_exact(found["geometry"].values, kept["geometry"].values).all()


@golden
def test_cells_of_a_run_can_be_locked_and_be_parents():
    before = (GOLDEN / "v0.5.1/cells/project/data/1/data.qpdata").read_bytes()
    was = table_of(before)
    chosen = list(was.index[[10, 500, 501]])
    child = make_objects([polygon(9, 9)], object_type="detection", parent_id=chosen[1])
    after, counts = written(child, data=before, lock=chosen)
    assert counts.locked == 3
    found = table_of(after)
    assert list(found.index[found["locked"] & ~found.index.isin(was.index[was["locked"]])]) == chosen
    assert found.loc[child.index[0], "parent_id"] == chosen[1]
    assert [i for i in found.index if i in was.index] == list(was.index)
    unlocked, counts = written(data=after, unlock=chosen, remove=list(child.index))
    assert counts.locked == 3
    assert (
        parse_data_file(unlocked)
        .read_table()
        .drop(columns=["geometry", "nucleus"])
        .equals(was.drop(columns=["geometry", "nucleus"]))
    )


@golden
def test_locking_counts_only_what_changes():
    before = (GOLDEN / "v0.5.1/plain/data/1/data.qpdata").read_bytes()
    was = table_of(before)
    annotations = was.index[was["object_type"] == "annotation"]
    _, counts = written(data=before, lock=list(annotations))
    assert counts.locked == len(annotations) - int(was.loc[annotations, "locked"].sum())


@golden
@pytest.mark.parametrize("version", ["v0.5.1", "v0.6.0"])
def test_connections_that_mention_a_removed_cell_are_dropped(version):
    before = (GOLDEN / version / "conn/data/1/data.qpdata").read_bytes()
    connected, alone = "0000000a-0000-4000-8000-00000000000a", "0000000c-0000-4000-8000-00000000000c"

    def n_groups(data):
        groups = [
            token
            for token in parse_data_file(data, fast=False).parser.handles.values()
            if isinstance(token, JObject) and token.desc.name.endswith("DefaultPathObjectConnectionGroup")
        ]
        return len(groups)

    assert n_groups(before) == 1
    assert n_groups(written(data=before, remove=[alone])[0]) == 1
    after, _ = written(data=before, remove=[connected])
    assert n_groups(after) == 0
    assert connected.encode() not in after


@golden
def test_connections_follow_their_cells_when_these_are_part_of_a_run():
    # the connected cells of the golden file, among hundreds of others that the fast path takes
    before = (GOLDEN / "v0.5.1/conn/data/1/data.qpdata").read_bytes()
    new = cells(300, parent_id="00000002-0000-4000-8000-000000000002")
    added, _ = written(new, data=before)
    parsed = parse_data_file(added)
    run = max(parsed.parser.runs, key=len)
    from qupath_ext.native.tokens import RunMember

    connector = next(
        t for t in parsed.parser.handles.values() if isinstance(t, JObject) and t.desc.name.endswith("$ObjectConnector")
    )
    at = next(i for i, t in enumerate(connector.contents) if isinstance(t, JObject))
    connector.contents[at] = RunMember(run, 200)
    target = run.ids()[200].decode()
    data = parsed.to_bytes()

    def target_of(data):
        for token in parse_data_file(data, fast=False).parser.handles.values():
            if isinstance(token, JObject) and token.desc.name.endswith("$ObjectConnector"):
                owner = next(t for t in token.contents if isinstance(t, JObject))
                yield PathObjectView(owner).id

    assert target in target_of(data)
    fewer, _ = written(data=data, remove=[i.decode() for i in run.ids()[:150]])
    assert target in target_of(fewer)
    assert list(target_of(written(data=data, remove=[target])[0])) == []
    locked, _ = written(data=data, lock=[target])
    assert target in target_of(locked)


@golden
def test_the_tma_grid_is_kept_and_its_cores_cannot_be_removed():
    before = (GOLDEN / "v0.5.1/tma/data/1/data.qpdata").read_bytes()
    core = next(i for i, view in tokens_by_id(before).items() if view.kind == "tma_core")
    after, _ = written(cells(20), data=before)
    assert len(grid_cores(parse_data_file(after))) == len(grid_cores(parse_data_file(before))) == 4
    with pytest.raises(ProjectError, match="TMA grid"):
        written(data=before, remove=[core])


@golden
def test_ids_that_reading_showed_are_stored_in_files_without_ids():
    before = (GOLDEN / "v0.3.2/plain/data/1/data.qpdata").read_bytes()
    was = table_of(before)
    after, _ = written(data=before, remove=[was.index[-1]])
    assert list(table_of(after).index) == list(was.index[:-1])


# ---------------------------------------------------------------------- what is refused
def one(geometry=None, **columns):
    columns.setdefault("object_type", "annotation")
    return make_objects([polygon(5, 5) if geometry is None else geometry], **columns)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (lambda: one(shapely.Polygon([(0, 0), (2, 2), (2, 0), (0, 2)])), "is invalid .Self-intersection"),
        (lambda: one(shapely.Point(1, 2), object_type="cell"), "is a Point; expected a polygon"),
        (lambda: one(shapely.GeometryCollection([shapely.Point(1, 2)])), "is a GeometryCollection"),
        (lambda: one(shapely.Point(np.inf, 2)), "is not finite"),
        (lambda: one(object_type="cell", nucleus=[shapely.LineString([(0, 0), (1, 1)])]), "nucleus of object"),
        (lambda: one(object_type="tma_core"), "is a TMA core"),
        (lambda: one(ids=["no-uuid"]), "object id 'no-uuid'"),
        (lambda: one(ids=["A" * 36]), "lower-case UUID"),
        (lambda: one(classification="A:B"), "class name 'A:B'"),
        (lambda: one(classification="A: "), "class name 'A: '"),
        (lambda: one(metadata=[{"a": 1}]), "has other metadata"),
        (lambda: one(metadata=[{"Object ID": "x"}]), "metadata key 'Object ID'"),
        (lambda: one(plane=[(0, 0)]), "plane"),
        (lambda: one(parent_id=str(uuid.UUID(int=5))), "not in the image"),
    ],
)
def test_objects_that_cannot_be_stored(table, message):
    with pytest.raises(ProjectError, match=message):
        written(table())


@pytest.mark.parametrize("kind", ["annotation", "detection", "cell"])
@pytest.mark.parametrize("geometry", [None, shapely.Polygon()])
def test_new_objects_need_a_geometry(kind, geometry):
    table = one(object_type=kind)
    table.loc[table.index[0], "geometry"] = geometry
    with pytest.raises(ProjectError, match=r"geometry of object .* is missing or empty"):
        HierarchyEdit(new_file(), class_color).apply(add=table)


def test_parents_in_a_circle_are_refused():
    ids = new_ids(2)
    table = make_objects([polygon(5, 5), polygon(6, 6)], object_type="annotation", ids=ids, parent_id=ids[::-1])
    with pytest.raises(ProjectError, match="its own parent"):
        written(table)


def test_ids_that_are_there_or_not_there():
    table = cells(20)
    data, _ = written(table)
    with pytest.raises(ProjectError, match="in the image already"):
        written(table[5:6], data=data)
    with pytest.raises(ProjectError, match="not in the image"):
        written(data=data, remove=[str(uuid.UUID(int=5))])
    with pytest.raises(ProjectError, match="locked and removed"):
        written(data=data, remove=[table.index[0]], lock=[table.index[0]])
    replaced, counts = written(table, data=data, remove=list(table.index))
    assert counts.removed == counts.n_added == 20
    assert_same(table, table_of(replaced))


def test_parent_that_is_removed_in_the_same_change():
    parent = one()
    data, _ = written(parent)
    with pytest.raises(ProjectError, match="removed in the same change"):
        written(one(parent_id=parent.index[0]), data=data, remove=list(parent.index))


@golden
def test_a_class_of_another_version_is_refused():
    parsed = parse_data_file((GOLDEN / "v0.5.1/plain/data/1/data.qpdata").read_bytes())
    desc = next(t for t in parsed.parser.handles.values() if getattr(t, "name", "") == "[F")
    desc.suid = bytes(8)
    with pytest.raises(FormatError, match="another version"):
        HierarchyEdit(parsed, class_color).apply(add=one())


def test_a_wrong_number_of_children_is_refused():
    parsed = parse_data_file(written(one())[0])
    contents = parsed.root.contents
    at = next(i for i, token in enumerate(contents) if isinstance(token, Block))
    contents[at] = Block((2).to_bytes(4, "big"))
    with pytest.raises(FormatError, match="parts missing"):
        parse_data_file(parsed.to_bytes())


# ---------------------------------------------------------------------- damaged and unusual files
def test_a_part_of_a_cell_that_something_else_shares():
    parsed = parse_data_file(written(cells(60))[0], fast=False)
    views = [view for view, _ in walk(parsed.root)]
    at = views[50].token.contents.index(views[50].roi_token)
    views[50].token.contents[at] = views[40].roi_token
    data = parsed.to_bytes()
    assert parse_data_file(data).to_bytes() == data
    table = table_of(data)
    assert table["geometry"].iloc[50].equals(table["geometry"].iloc[40])


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_damaged_files_are_refused_or_read_alike_by_both_paths(data):
    intact = DAMAGED[0]
    at = data.draw(st.integers(0, len(intact) - 1))
    value = data.draw(st.sampled_from([0x00, 0x01, 0x70, 0x71, 0x73, 0x75, 0x77, 0x78]))
    damaged = intact[:at] + bytes([value]) + intact[at + 1 :]

    def outcome(fast):
        try:
            return parse_data_file(damaged, fast=fast).read_table().drop(columns=["geometry", "nucleus"])
        except FormatError:
            return None

    fast, slow = outcome(True), outcome(False)
    assert (fast is None) == (slow is None)
    if fast is not None:
        pd.testing.assert_frame_equal(pd.DataFrame(fast), pd.DataFrame(slow))


DAMAGED = [written(cells(30))[0]]


@pytest.mark.parametrize(("vertices", "kind"), [(100, "PolygonROI"), (101, "GeometryROI")])
def test_a_long_outline_becomes_a_geometry_roi(vertices: int, kind: str) -> None:
    # QuPath 0.6 loses parts of long PolygonROIs when it needs their geometry
    angle = np.linspace(0, 2 * np.pi, vertices, endpoint=False)
    circle = shapely.Polygon(np.column_stack([500 + 400 * np.cos(angle), 500 + 400 * np.sin(angle)]))
    data, _ = written(make_objects([circle], object_type="annotation"))
    assert f"qupath.lib.roi.{kind}".encode() in data
    assert (b"PolygonROI" in data) != (b"GeometryROI" in data)
    found = table_of(data).geometry.iloc[0]
    assert shapely.equals_exact(found, circle, tolerance=1e-3, normalize=True)


@pytest.mark.parametrize(("vertices", "kind"), [(100, "PolygonROI"), (101, "GeometryROI")])
def test_long_outlines_of_many_cells_become_geometry_rois_too(vertices: int, kind: str) -> None:
    angle = np.linspace(0, 2 * np.pi, vertices, endpoint=False)
    ring = np.round(np.column_stack([500 + 400 * np.cos(angle), 500 + 400 * np.sin(angle)]) * 8) / 8
    table = make_objects([shapely.Polygon(ring + i) for i in range(20)], object_type="cell")
    data, _ = written(table)
    assert f"qupath.lib.roi.{kind}".encode() in data
    assert (b"PolygonROI" in data) != (b"GeometryROI" in data)
    assert_same(table, table_of(data))


OLD_PROJECT = GOLDEN.parent / "data/qupath_projects/v0.2.0_stardist_full_with_images"


@pytest.mark.skipif(not OLD_PROJECT.exists(), reason="the project of QuPath 0.2 (../shared/data) is not here")
def test_a_file_of_qupath_0_2_keeps_its_header():
    before = (OLD_PROJECT / "data/1/data.qpdata").read_bytes()
    was = table_of(before)
    change = pd.DataFrame({"classification": ["Tumor"]}, index=was.index[:1])
    after, _ = written(cells(12), data=before, update=[change])
    old, now = parse_data_file(before), parse_data_file(after)
    assert now.contents[0].raw == old.contents[0].raw == b"\x00\x13Data file version 2"
    assert now.contents[1].text == old.contents[1].text
    assert now.contents[1].text.startswith("Image path: ")
    found = table_of(after)
    assert list(found.index[:19]) == list(was.index)
    assert_same(was[1:], found[1:19])
    assert found["classification"].iloc[0] == "Tumor"
