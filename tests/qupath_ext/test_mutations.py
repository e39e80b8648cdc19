"""Damaged files are read as what they are, or refused with one clear error; nothing else ever happens."""

from __future__ import annotations

import json
import struct
import time
import tracemalloc
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import shapely

from pyhisto.errors import PyhistoError
from pyhisto.objects import OBJECT_TYPES, make_objects
from qupath_ext.errors import FormatError, ProjectError
from qupath_ext.native.classcolors import class_color
from qupath_ext.native.datafile import parse_data_file, read_head
from qupath_ext.native.edit import HierarchyEdit, open_for_edit
from qupath_ext.native.emitter import emit_stream
from qupath_ext.native.nativeproject import NativeProject
from qupath_ext.native.parser import HEADER, MAX_DEPTH, parse_stream
from qupath_ext.native.pathobjects import PathObjectView
from qupath_ext.native.tokens import Block, ClassDesc, JString

GOLDEN = Path(__file__).parents[2] / ".." / "shared" / "golden"
golden = pytest.mark.skipif(
    not GOLDEN.exists(), reason="the projects written by QuPath (../shared/golden) are not here"
)
SMALL = [f"{version}/{kind}" for version in ("v0.3.2", "v0.5.1", "v0.6.0") for kind in ("plain", "tma", "conn")]
SMALL += [f"{version}/real/project" for version in ("v0.5.1", "v0.6.0")]
N, N_SLOW = 2_000, 10_000
SEED = 30
LONGEST_S = 5.0
"""For one file of a few kilobytes, on a machine that is busy with other things; a tenth of a second is usual."""


# ---------------------------------------------------------------------- mutations
def flip(data, rng):
    for _ in range(rng.integers(1, 4)):
        data[rng.integers(len(data))] ^= 1 << int(rng.integers(8))


def set_byte(data, rng):
    tags = [0x00, 0x01, 0x70, 0x71, 0x72, 0x73, 0x74, 0x75, 0x76, 0x77, 0x78, 0x79, 0x7A, 0x7C, 0x7E, 0xFF]
    data[rng.integers(len(data))] = tags[rng.integers(len(tags))]


def set_int(data, rng):
    values = [0, 1, -1, 0x7FFFFFFF, -0x80000000, 0x10000, 0x7E0000 + int(rng.integers(300))]
    at = int(rng.integers(len(data) - 4))
    data[at : at + 4] = struct.pack(">i", values[rng.integers(len(values))])


def redirect(data, rng):
    """Let a reference lead to another object."""
    places = [i for i in range(len(data) - 5) if data[i : i + 3] == b"\x71\x00\x7e"]
    at = places[rng.integers(len(places))]
    data[at + 3 : at + 5] = struct.pack(">H", int(rng.integers(0, 400)))


def _block(data, rng):
    length = int(2 ** rng.uniform(0, 10))
    at = int(rng.integers(len(data)))
    return at, min(at + length, len(data))


def cut(data, rng):
    low, high = _block(data, rng)
    del data[low:high]


def cut_off(data, rng):
    del data[rng.integers(len(data)) :]


def zero(data, rng):
    low, high = _block(data, rng)
    data[low:high] = bytes(high - low)


def double(data, rng):
    low, high = _block(data, rng)
    data[high:high] = data[low:high]


def swap(data, rng):
    (a, b), (c, d) = sorted([_block(data, rng), _block(data, rng)])
    if b <= c:
        data[a:d] = data[c:d] + data[b:c] + data[a:b]


def move(data, rng):
    low, high = _block(data, rng)
    block = data[low:high]
    del data[low:high]
    at = int(rng.integers(len(data) + 1))
    data[at:at] = block


def insert(data, rng):
    at = int(rng.integers(len(data)))
    data[at:at] = rng.bytes(int(rng.integers(1, 40)))


MUTATIONS = [flip, set_byte, set_int, redirect, cut, cut_off, zero, double, swap, move, insert]


# ---------------------------------------------------------------------- what must hold
def check_table(table):
    """The table is one that everything else can work with."""
    assert table.index.is_unique
    assert all(isinstance(i, str) and 0 < len(i) <= 36 for i in table.index)
    assert table["object_type"].isin(OBJECT_TYPES).all()
    assert all(
        g is None or isinstance(g, shapely.Geometry) for column in ("geometry", "nucleus") for g in table[column]
    )
    place = {object_id: row for row, object_id in enumerate(table.index)}
    for row, parent in enumerate(table["parent_id"]):
        assert parent is None or place[parent] < row
    for name in ("classification", "name"):
        assert all(x is None or isinstance(x, str) or x != x for x in table[name])


def check_message(error):
    """One line that says something."""
    assert str(error)
    assert "\n" not in str(error)


def outcome(data, n):
    """Read a file; returns its table, or None if it is refused."""
    start = time.perf_counter()
    try:
        parsed = parse_data_file(data)
        table = parsed.read_table()
    except FormatError as error:
        check_message(error)
        return None
    finally:
        assert time.perf_counter() - start < LONGEST_S
    assert parsed.to_bytes() == data
    assert len(table) == n  # nothing is lost in silence
    check_table(table)
    return table


def check_edit(data, n):
    """What was read can be changed, or the change is refused."""
    try:
        edit = open_for_edit(data, class_color)
        edit.apply(add=make_objects([shapely.box(1, 2, 3, 4)], object_type="annotation", classification="New"))
        changed = edit.data.to_bytes()
    except ProjectError:
        return
    assert len(parse_data_file(changed).read_table()) == n + 1


def small_files():
    return [path.read_bytes() for name in SMALL for path in sorted((GOLDEN / name).glob("data/*/data.qpdata"))]


def file_with_runs():
    """A file of our own whose cells are read as a run."""
    from qupath_ext.native.datafile import new_data_file

    new = new_data_file(
        server={"builderType": "uri", "uri": "file:/a.svs"},
        image_type="OTHER",
        stains=None,
        project_entry="/p/project.qpproj::1",
        root_id="00000000-0000-4000-8000-000000000000",
        version="0.5.1",
        colors=class_color,
    )
    at = np.arange(30)
    cells = make_objects(
        shapely.buffer(shapely.points(at * 9.0, at), 4, quad_segs=2),
        object_type=np.where(at < 20, "cell", "tile"),
        ids=[f"00000000-0000-4000-8000-0000000001{i:02d}" for i in at],
        classification=np.where(at % 2, "Tumor: Positive", "Stroma"),
        measurements={"Area": at / 4, "p": at / 8},
    )
    edit = HierarchyEdit(new, class_color)
    edit.apply(add=cells)
    data = edit.data.to_bytes()
    assert sum(len(run) for run in parse_data_file(data).parser.runs) > 20
    return data


def mutate(files, n, seed, tmp_path):
    originals = [(data, len(parse_data_file(data).read_table())) for data in files]
    rng = np.random.default_rng(seed)
    found = Counter()
    for number in range(n):
        original, n_objects = originals[number % len(originals)]
        change = MUTATIONS[rng.integers(len(MUTATIONS))]
        data = bytearray(original)
        change(data, rng)
        damaged = bytes(data)
        table = outcome(damaged, n_objects)
        found[change.__name__, table is not None] += 1
        if table is not None and number % 5 == 0:
            check_edit(damaged, n_objects)
        if number % 10 == 0:
            path = tmp_path / "data.qpdata"
            path.write_bytes(damaged)
            try:
                read_head(path)
            except FormatError as error:
                check_message(error)
    return found


@golden
@pytest.mark.parametrize(
    ("n", "seed"),
    [(N, SEED), *(pytest.param(N_SLOW, seed, marks=pytest.mark.slow) for seed in (31, 32, 33))],
)
def test_damaged_data_files(tmp_path, n, seed):
    found = mutate([*small_files(), file_with_runs()], n, seed, tmp_path)
    assert {name for name, _ in found} == {change.__name__ for change in MUTATIONS}
    refused = sum(count for (_, read), count in found.items() if not read)
    assert n / 4 < refused < n
    assert found["cut_off", True] == 0
    assert found["insert", True] < n / 100


def test_damaged_files_of_our_own(tmp_path):
    found = mutate([file_with_runs()], 200, SEED, tmp_path)
    assert found["flip", True] > 0
    assert found["cut_off", True] == 0


# ---------------------------------------------------------------------- damage of one kind
def own_file(**columns):
    """One annotation with one cell in it, both with measurements and a class."""
    columns = {"classification": "A: B", "measurements": {"m": [1.0, 2.0]}, **columns}
    table = make_objects([shapely.box(0, 0, 9, 9), shapely.box(1, 1, 5, 5.5).buffer(1)], **TWO, **columns)
    edit = HierarchyEdit(parse_data_file(file_with_runs()), class_color)
    edit.apply(add=table, remove=[str(i) for i in parse_data_file(file_with_runs()).read_table().index])
    return parse_data_file(edit.data.to_bytes(), fast=False)


IDS = [f"00000000-0000-4000-8000-{i:012d}" for i in (1, 2)]
TWO = {"object_type": ["annotation", "cell"], "ids": IDS, "parent_id": [None, IDS[0]]}


def objects_of(parsed):
    views = [PathObjectView(parsed.root)]
    views.append(PathObjectView(views[0].children[0]))
    views.append(PathObjectView(views[1].children[0]))
    return views


def set_count(view, n):
    view.token.contents[view.count_at] = Block(struct.pack(">i", n))


def child_is_parent(root, annotation, cell):
    cell.set_children([annotation.token])


def child_is_itself(root, annotation, cell):
    cell.set_children([cell.token])


def object_twice(root, annotation, cell):
    root.set_children([annotation.token, cell.token])


def class_is_its_own_parent(root, annotation, cell):
    field(annotation.class_token, "parentClass", annotation.class_token)


def class_of_another_kind(root, annotation, cell):
    annotation.token.contents[annotation.class_at] = annotation.roi_token


def class_with_a_lost_name(root, annotation, cell):
    field(annotation.class_token.get("parentClass"), "name", None)


def list_in_itself(root, annotation, cell):
    names = cell.list_token.get("names")
    field(names, "c", names)


def names_that_are_no_text(root, annotation, cell):
    cell.list_token.get("names").get("c").parts[-1].extra[1] = None


def more_names_than_values(root, annotation, cell):
    values = cell.list_token.get("values")
    values.length, values.raw = 0, b""


def values_of_another_type(root, annotation, cell):
    values = cell.list_token.get("values")
    values.desc = cell_array_desc(cell, "[B")
    values.length, values.raw = 3, b"abc"


def measurement_that_is_none(root, annotation, cell):
    annotation.list_token.get("list").parts[-1].extra[1] = None


def name_that_is_no_text(root, annotation, cell):
    annotation.token.contents[0] = annotation.roi_token


def colour_that_is_no_number(root, annotation, cell):
    annotation.token.contents[1] = annotation.metadata_token


def metadata_that_is_no_text(root, annotation, cell):
    annotation.metadata_token.contents[2].items[0] = None


def metadata_without_values(root, annotation, cell):
    del annotation.metadata_token.contents[2]


def root_without_children(root, annotation, cell):
    set_count(root, 0)


def parent_with_fewer_children(root, annotation, cell):
    set_count(annotation, 0)


def children_below_zero(root, annotation, cell):
    set_count(annotation, -1)


def more_after_the_end(root, annotation, cell):
    cell.token.contents.append(None)


def same_id_twice(root, annotation, cell):
    cell.metadata_token.contents[2].items[0] = JString.of(IDS[0])


def ring_that_is_not_finite(root, annotation, cell):
    cell.roi_token.get("x").raw = struct.pack(">f", np.nan) * cell.roi_token.get("x").length


def rectangle_that_is_not_finite(root, annotation, cell):
    field(annotation.roi_token, "x", struct.pack(">d", np.nan))


def vertices_of_another_type(root, annotation, cell):
    for axis in "xy":
        cell.roi_token.get(axis).desc = cell_array_desc(cell, "[B")
        cell.roi_token.get(axis).raw = b"abc"
        cell.roi_token.get(axis).length = 3


def hierarchy_of_another_kind(root, annotation, cell):
    root.token.contents[root.count_at + 1] = root.metadata_token


def cell_array_desc(cell, name):
    desc = cell.roi_token.get("x").desc
    return ClassDesc(name, desc.suid, desc.flags)


def field(token, name, value):
    """Set the value of a field."""
    for desc, part in zip(token.desc.chain(), token.parts, strict=True):
        for at, spec in enumerate(desc.fields):
            if spec.name == name.encode():
                part.values[at] = value


DAMAGES = [
    child_is_parent,
    child_is_itself,
    object_twice,
    class_is_its_own_parent,
    class_of_another_kind,
    class_with_a_lost_name,
    list_in_itself,
    names_that_are_no_text,
    more_names_than_values,
    values_of_another_type,
    measurement_that_is_none,
    name_that_is_no_text,
    colour_that_is_no_number,
    metadata_that_is_no_text,
    metadata_without_values,
    root_without_children,
    parent_with_fewer_children,
    children_below_zero,
    more_after_the_end,
    same_id_twice,
    ring_that_is_not_finite,
    rectangle_that_is_not_finite,
    vertices_of_another_type,
    hierarchy_of_another_kind,
]


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_of_one_kind_is_refused(damage):
    parsed = own_file()
    assert len(parsed.read_table()) == 2
    damage(*objects_of(parsed))
    assert outcome(parsed.to_bytes(), 2) is None


def test_a_run_of_objects_with_the_same_id_is_refused():
    data = file_with_runs()
    id_of = "00000000-0000-4000-8000-0000000001{:02d}".format
    damaged = data.replace(id_of(7).encode(), id_of(9).encode())
    assert len(damaged) == len(data)
    assert outcome(damaged, 30) is None
    with pytest.raises(FormatError, match=r"id 00000000-0000-4000-8000-000000000109.*Refresh object IDs"):
        parse_data_file(damaged).read_table()


def test_vertices_of_a_run_that_are_not_finite_are_refused():
    data = file_with_runs()
    run = parse_data_file(data).parser.runs[0]
    at = int(run.rois[-1]) + 34  # the second x: after the head (20 bytes) and the start of the array (10)
    damaged = data[:at] + struct.pack(">f", np.nan) + data[at + 4 :]
    assert outcome(damaged, 30) is None


def class_desc(name, *, flags=2, fields=b"\x00\x00", annotation=b"\x78", parent=b"\x70", suid=bytes(8)):
    return b"\x72" + struct.pack(">H", len(name)) + name + suid + bytes([flags]) + fields + annotation + parent


STREAMS = {
    "a class that is its own superclass": b"\x73" + class_desc(b"A", parent=b"\x71\x00\x7e\x00\x00"),
    "two classes that are each other's superclass": b"\x73"
    + class_desc(b"A", parent=class_desc(b"B", parent=b"\x71\x00\x7e\x00\x00")),
    "a class name with a zero byte": b"\x73" + class_desc(b"A\x00"),
    "an array longer than the file": b"\x75" + class_desc(b"[F") + b"\x7f\xff\xff\xff",
    "an array of negative length": b"\x75" + class_desc(b"[F") + b"\xff\xff\xff\xff",
    "an array of objects longer than the file": b"\x75" + class_desc(b"[Ljava.lang.Object;") + b"\x7f\xff\xff\xff",
    "a block longer than the file": b"\x7a\x7f\xff\xff\xff",
    "a block of negative length": b"\x7a\xff\xff\xff\xff",
    "a string longer than the file": b"\x7c\x7f\xff\xff\xff\xff\xff\xff\xff",
    "a string of negative length": b"\x7c\xff\xff\xff\xff\xff\xff\xff\xff",
    "more fields than the file has bytes": b"\x73" + class_desc(b"A", fields=b"\xff\xff"),
    "a reset within an object": b"\x73" + class_desc(b"A", flags=12) + b"\x79\x78",
    "an exception": b"\x7b",
    "arrays in arrays": (b"\x75" + class_desc(b"[Ljava.lang.Object;") + b"\x00\x00\x00\x01") * 3_000,
    "classes of classes": b"\x76" * 100_000,
    "superclasses of superclasses": class_desc(b"A", parent=b"") * 3_000,
    "annotations of annotations": b"".join(class_desc(b"A", annotation=b"", parent=b"") for _ in range(3_000)),
    "objects in objects": (b"\x73" + class_desc(b"A", flags=12)) * 3_000,
}


@pytest.mark.parametrize("name", STREAMS)
def test_streams_that_ask_for_too_much_are_refused_at_once(name):
    data = HEADER + STREAMS[name]
    tracemalloc.start()
    start = time.perf_counter()
    with pytest.raises(FormatError) as caught:
        parse_stream(data)
    seconds = time.perf_counter() - start
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert "\n" not in str(caught.value)
    assert seconds < LONGEST_S
    assert peak < 2_000_000


def test_a_file_nested_as_deep_as_is_allowed_is_written_again():
    depth = MAX_DEPTH // 2 - 1
    one = b"\x75" + class_desc(b"[Ljava.lang.Object;") + b"\x00\x00\x00\x01"
    again = b"\x75\x71\x00\x7e\x00\x00\x00\x00\x00\x01"
    data = HEADER + one + again * (depth - 1) + b"\x70"
    contents, _ = parse_stream(data)
    out = bytearray()
    emit_stream(contents, out.extend)
    assert bytes(out) == data


def test_references_that_multiply_do_not_multiply_what_is_kept():
    """Each array holds the one before twice: 2 to the power of 100 leaves for who follows them all."""
    one = b"\x75" + class_desc(b"[Ljava.lang.Object;") + b"\x00\x00\x00\x00"
    data = HEADER + one
    for number in range(1, 100):
        before = b"\x71" + struct.pack(">i", 0x7E0000 + number)
        data += b"\x75\x71\x00\x7e\x00\x00\x00\x00\x00\x02" + before * 2
    contents, _ = parse_stream(data)
    out = bytearray()
    emit_stream(contents, out.extend)
    assert bytes(out) == data


# ---------------------------------------------------------------------- project.qpproj and classes.json
BUILDER = {"builderType": "uri", "uri": "file:/a.svs", "providerClassName": "x", "args": []}
IMAGE = {"serverBuilder": BUILDER, "entryID": 1, "imageName": "a", "metadata": {"k": "v"}}
PROJECT = {"version": "0.5.1", "createTimestamp": 1, "modifyTimestamp": 1, "uri": "file:/p", "lastID": 1}
PROJECT["images"] = [IMAGE, {**IMAGE, "entryID": 2, "imageName": "b"}]
CLASSES = {"pathClasses": [{"name": "Tumor", "color": -3670016}, {"name": "A: B", "color": None}]}
NO_VALUES = [
    None,
    True,
    -1,
    0,
    1.5,
    10**400,
    float("nan"),
    float("inf"),
    "",
    "x",
    "\ud800",
    "ü",
    [],
    [None],
    {},
    {"a": 1},
]


def paths(value, at=()):
    """Return the places of all values in a JSON document."""
    yield at
    for key, item in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from paths(item, (*at, key))


def replaced(document, at, value):
    if not at:
        return value
    out = json.loads(json.dumps(document))
    place = out
    for key in at[:-1]:
        place = place[key]
    if value is DELETED:
        del place[at[-1]]
    else:
        place[at[-1]] = value
    return out


DELETED = object()


def use(path, changes):
    """Do with a project what there is to do; returns whether all went well."""
    try:
        project = NativeProject.open(path)
        for entry in project.entries:
            assert all(isinstance(x, str) for x in (entry.id, entry.name, repr(entry)))
            assert all(isinstance(x, str) for item in entry.metadata.items() for x in item)
            assert entry.description is None or isinstance(entry.description, str)
            assert all(isinstance(x, str) for x in entry.tags)
            attempt(lambda entry=entry: entry.slide_path)
            attempt(lambda entry=entry: entry.mpp)
            attempt(lambda entry=entry: entry.slide_frame())
            attempt(lambda entry=entry: entry.crop_to_bounds)
        assert all(isinstance(name, str) and (c is None or isinstance(c, int)) for name, c in project.classes.items())
        if changes:
            project.add_classes({"New": 7})
            assert NativeProject.open(path).classes["New"] == 7
            for entry in project.entries[:1]:
                entry.update(description="new", metadata={"more": "1"})
                entry.write_objects(make_objects([shapely.box(0, 0, 1, 1)], object_type="annotation"))
            again = NativeProject.open(path)
            assert [entry.id for entry in again.entries] == [entry.id for entry in project.entries]
    except PyhistoError as error:
        check_message(error)
        return False
    return True


def attempt(call):
    try:
        call()
    except PyhistoError as error:
        check_message(error)


def write_project(folder, project, classes):
    folder.mkdir(parents=True, exist_ok=True)
    for path, document in ((folder / "project.qpproj", project), (folder / "classifiers/classes.json", classes)):
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(document if isinstance(document, bytes) else json.dumps(document).encode())
    return folder / "project.qpproj"


@pytest.mark.parametrize("which", ["project", "classes"])
def test_values_of_any_type_in_the_json_files(tmp_path, which):
    """Each value is replaced by each of many others, or left out."""
    document = PROJECT if which == "project" else CLASSES
    found = Counter()
    for number, (at, value) in enumerate((a, v) for a in paths(document) for v in (*NO_VALUES, DELETED)):
        if value is DELETED and not at:
            continue
        changed = replaced(document, at, value)
        both = (changed, CLASSES) if which == "project" else (PROJECT, changed)
        path = write_project(tmp_path / str(number), *both)
        found[use(path, changes=number % 9 == 0)] += 1
    assert found[True] > 10
    assert found[False] > 20


@golden
@pytest.mark.parametrize("which", ["project", "classes"])
def test_damaged_bytes_of_the_json_files(tmp_path, which):
    rng = np.random.default_rng(SEED)
    folder = GOLDEN / "v0.6.0/real/project"
    names = {"project": "project.qpproj", "classes": "classifiers/classes.json"}
    originals = {key: (folder / name).read_bytes() for key, name in names.items()}
    changes = [change for change in MUTATIONS if change is not redirect]
    found = Counter()
    for number in range(400):
        data = bytearray(originals[which])
        changes[rng.integers(len(changes))](data, rng)
        path = write_project(tmp_path / str(number), **{**originals, which: bytes(data)})
        found[use(path, changes=number % 4 == 0)] += 1
    assert found[True] > 20
    assert found[False] > 20


WHOLE = {
    "empty": b"",
    "nothing but zeros": bytes(2000),
    "deep arrays": b"[" * 200_000,
    "deep objects": b'{"a":' * 200_000,
    "UTF-16": json.dumps(PROJECT).encode("utf-16"),
    "Latin-1": json.dumps({**PROJECT, "uri": "file:/ü"}, ensure_ascii=False).encode("latin-1"),
    "two documents": json.dumps(PROJECT).encode() * 2,
    "digits without end": b'{"version": ' + b"9" * 100_000 + b"}",
    "a number": b"5",
    "NaN": b"NaN",
}


@pytest.mark.parametrize("name", WHOLE)
def test_json_files_that_are_something_else(tmp_path, name):
    assert not use(write_project(tmp_path / "a", WHOLE[name], CLASSES), changes=True)
    assert not use(write_project(tmp_path / "b", PROJECT, WHOLE[name]), changes=True)


def test_json_files_that_are_unusual_but_right(tmp_path):
    text = json.dumps(PROJECT)
    twice = text.replace('"lastID": 1', '"lastID": 9, "lastID": 1')
    for number, data in enumerate([b"\xef\xbb\xbf" + text.encode(), twice.encode(), text.encode() + b"\n \n"]):
        assert use(write_project(tmp_path / str(number), data, CLASSES), changes=True)


def test_two_images_with_the_same_id_are_refused(tmp_path):
    path = write_project(tmp_path, {**PROJECT, "images": [IMAGE, IMAGE]}, CLASSES)
    with pytest.raises(FormatError, match="two images with the id 1"):
        NativeProject.open(path)
