"""What makes the store fast must not change what it reads, writes and refuses."""

import gc
import uuid

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from pyhisto.objects import concat_objects, make_objects
from qupath_ext.errors import FormatError
from qupath_ext.native.classcolors import class_color
from qupath_ext.native.collector import paused_collector
from qupath_ext.native.datafile import new_data_file, parse_data_file
from qupath_ext.native.edit import HierarchyEdit
from qupath_ext.native.emitter import emit_stream
from qupath_ext.native.parser import HEADER, parse_stream
from qupath_ext.native.validity import are_valid


def outline(x, y, n, radius):
    angle = 2 * np.pi * np.arange(n) / n
    return shapely.Polygon(np.round(np.column_stack([x + radius * np.cos(angle), y + radius * np.sin(angle)]) * 8) / 8)


def many_kinds(n=60):
    """Cells with and without nucleus, boxes, points and tiles, in a mixture of sizes, classes and locks."""
    shapes = [outline(100 * i, 50, 5 + i % 9, 8) for i in range(n)]
    shapes[3::7] = [shapely.box(i, i, i + 4, i + 3) for i in range(len(shapes[3::7]))]
    kinds = ["cell"] * (n // 2) + ["detection", "tile"] * (n // 4)
    for i in range(n // 2, n, 5):
        shapes[i] = shapely.MultiPoint([(i, 1), (i, 2), (i + 1, 3)])
    return make_objects(
        shapes,
        object_type=kinds,
        nucleus=[outline(100 * i, 50, 4 + i % 3, 3) if i < n // 2 and i % 4 else None for i in range(n)],
        classification=[(None, "Tumor", "Tumor: Positive")[i % 3] for i in range(n)],
        locked=[i % 5 == 0 for i in range(n)],
        plane=[(-1, i % 2, 0) for i in range(n)],
        measurements={"Area": np.arange(n) / 4, "Mean": np.where(np.arange(n) % 2, 1.5, np.nan)},
    )


def file_with(table):
    data = new_data_file(
        server={"builderType": "uri", "uri": "file:/a.svs"},
        image_type="OTHER",
        stains=None,
        project_entry="/p/project.qpproj::1",
        root_id=str(uuid.UUID(int=1 << 64)),
        version="0.5.1",
        colors=class_color,
    )
    edit = HierarchyEdit(data, class_color)
    edit.apply(add=table)
    return edit.data.to_bytes()


TABLE = many_kinds()
FILE = file_with(TABLE)


def emitted(contents):
    out = bytearray()
    emit_stream(contents, out.extend)
    return bytes(out)


def test_a_mixture_of_all_kinds_of_records_is_read_as_it_was_written():
    contents, parser = parse_stream(FILE)
    assert sum(len(run) for run in parser.runs) > 40
    assert emitted(contents) == FILE
    found = parse_data_file(FILE).read_table().loc[TABLE.index]
    for column in ("geometry", "nucleus"):
        ours, theirs = TABLE[column].to_numpy(), found[column].to_numpy()
        assert (
            shapely.equals_exact(ours, theirs, normalize=True) | (shapely.is_missing(ours) & shapely.is_missing(theirs))
        ).all()
    assert found["object_type"].tolist() == TABLE["object_type"].tolist()
    assert found["locked"].tolist() == TABLE["locked"].tolist()
    assert [plane or (-1, 0, 0) for plane in found["plane"]] == TABLE["plane"].tolist()
    np.testing.assert_array_equal(found["Mean"], TABLE["Mean"])


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(st.integers(0, len(FILE) - 1), st.integers(0, 255)), min_size=1, max_size=3))
def test_damage_is_taken_alike_with_and_without_the_fast_path(changes):
    data = bytearray(FILE)
    for at, value in changes:
        data[at] = value
    data = bytes(data)
    outcomes = []
    for fast in (True, False):
        try:
            contents, parser = parse_stream(data, fast=fast)
        except FormatError:
            outcomes.append("refused")
        else:
            outcomes.append((emitted(contents) == data, parser.next_handle))
    assert outcomes[0] == outcomes[1]


@pytest.mark.parametrize("size", range(len(FILE) - 700, len(FILE), 23))
def test_a_file_cut_within_a_record_is_refused(size):
    with pytest.raises(FormatError):
        parse_data_file(FILE[:size])


def test_bytes_of_a_record_inside_a_record_do_no_harm():
    # measurements whose bytes are the first ones of the records themselves
    run = parse_stream(FILE)[1].runs[0]
    head = FILE[int(run.starts[0]) :][:8]
    values = np.frombuffer(head, dtype=">f4").astype(np.float64)
    n = 40
    table = make_objects(
        [outline(50 * i, 50, 8, 8) for i in range(n)],
        object_type="cell",
        measurements={"a": np.full(n, values[0]), "b": np.full(n, values[1])},
    )
    data = file_with(table)
    assert data.count(head) >= 2 * n - 2
    contents, parser = parse_stream(data)
    assert emitted(contents) == data
    assert parser.next_handle == parse_stream(data, fast=False)[1].next_handle
    assert sum(len(run) for run in parser.runs) == n - 1


def test_a_class_that_is_its_own_superclass_is_refused():
    desc = bytes.fromhex("72 0001 41 0000000000000001 02 0000 78 71 007E0000")
    with pytest.raises(FormatError, match="its own superclass"):
        parse_stream(HEADER + b"\x73" + desc)


@settings(max_examples=200, deadline=None)
@given(
    arrays.arrays(np.float64, st.tuples(st.integers(1, 20), st.integers(3, 9), st.just(2)), elements=st.integers(0, 5)),
    st.sampled_from([0.0, 1e5, 1e8]),
)
def test_validity_is_that_of_shapely(points, offset):
    polygons = shapely.polygons(points + offset)
    np.testing.assert_array_equal(are_valid(polygons), shapely.is_valid(polygons))


def test_validity_of_other_shapes():
    around_twice = [outline(0, 0, 8, 5).exterior.coords[i % 8] for i in range(16)]
    shapes = np.array(
        [
            outline(1e6, 1e6, 30, 8),
            shapely.Polygon([(0, 0), (4, 4), (4, 0), (0, 4)]),
            shapely.Polygon(around_twice),
            shapely.box(0, 0, 9, 9).difference(shapely.box(2, 2, 3, 3)),
            shapely.Polygon([(0, 0), (9, 0), (9, 9), (8, 9), (8, 1), (0, 1)]),
            shapely.MultiPoint([(0, 0), (1, 1)]),
            shapely.Polygon(),
        ]
    )
    assert are_valid(shapes).tolist() == [True, False, False, True, True, True, True]


def test_the_collector_runs_again_afterwards():
    @paused_collector()
    def fail():
        assert not gc.isenabled()
        raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert gc.isenabled()


def test_locks_of_many_records_are_changed_and_nothing_else():
    big = file_with(many_kinds(400))
    before = parse_data_file(big).read_table()
    wanted = before.index[np.arange(len(before)) % 9 > 0].tolist()
    edit = HierarchyEdit(parse_data_file(big), class_color)
    counts = edit.apply(lock=wanted)
    assert counts.locked == int((~before.loc[wanted, "locked"]).sum())
    data = edit.data.to_bytes()
    assert len(data) == len(big)
    contents, _ = parse_stream(data)
    assert emitted(contents) == data
    after = parse_data_file(data).read_table()
    assert after.loc[wanted, "locked"].all()
    others = ~after.index.isin(wanted)
    assert after["locked"][others].tolist() == before["locked"][others].tolist()
    assert after.drop(columns="locked").equals(before.drop(columns="locked"))


@pytest.mark.parametrize("order", [1, -1])
def test_cells_of_many_parents_go_to_their_own(order):
    n, each = 40, 7
    parents = make_objects([shapely.box(i, 0, i + 0.5, 1) for i in range(n)], object_type="annotation")
    cells = make_objects(
        [outline(10 * i, 50, 5 + i % 9, 3) for i in range(n * each)],
        object_type="cell",
        classification=[(None, "Tumor")[i // 100 % 2] for i in range(n * each)],
        measurements={"place": np.arange(n * each)},
        parent_id=np.repeat(parents.index.to_numpy(dtype=object)[::order], each).tolist(),
    )
    data = file_with(concat_objects([parents, cells]))
    slow, fast = (parse_stream(data, fast=fast) for fast in (False, True))
    assert emitted(slow[0]) == emitted(fast[0]) == data
    assert slow[1].next_handle == fast[1].next_handle
    found = parse_data_file(data, fast=False).read_table()
    assert found.loc[cells.index, "parent_id"].tolist() == cells["parent_id"].tolist()
    assert found.loc[cells.index, "place"].tolist() == list(range(n * each))
    assert found.loc[cells.index, "classification"].isna().tolist() == cells["classification"].isna().tolist()


def test_annotations_with_and_without_everything_are_read_as_they_were_written():
    ring = shapely.box(0, 0, 9, 9).difference(shapely.box(2, 2, 3, 3))
    shapes = [ring, outline(50, 50, 12, 8), shapely.box(1, 2, 3, 4), shapely.LineString([(0, 0), (5, 5)])] * 12
    n = len(shapes)
    table = make_objects(
        shapes,
        object_type="annotation",
        name=[(None, "region", "ring \u00e9\x00\U0001f610")[i % 3] for i in range(n)],
        classification=[(None, "Tumor", "Tumor: Positive")[i // 2 % 3] for i in range(n)],
        locked=[i % 5 == 0 for i in range(n)],
        plane=[(-1, i % 2, 3) for i in range(n)],
        measurements={"a": np.where(np.arange(n) % 2, np.arange(n) / 3, np.nan), "b": np.arange(n) * 1e-9},
    )
    data = file_with(table)
    found = parse_data_file(data, fast=False).read_table()
    assert emitted(parse_stream(data)[0]) == data
    assert found.index.tolist() == table.index.tolist()
    assert shapely.equals_exact(table.geometry.to_numpy(), found.geometry.to_numpy(), normalize=True).all()
    for column in ("name", "classification", "plane"):
        assert found[column].astype(object).where(found[column].notna(), None).tolist() == (
            table[column].astype(object).where(table[column].notna(), None).tolist()
        )
    assert found["locked"].tolist() == table["locked"].tolist()
    for name in "ab":
        np.testing.assert_array_equal(found[name], table[name])
