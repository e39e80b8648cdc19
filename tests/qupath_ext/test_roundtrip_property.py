"""Whatever can be stored is read back as it was stored, and nothing else changes."""

from __future__ import annotations

import math
import uuid

import numpy as np
import pytest
import shapely
from hypothesis import HealthCheck, Phase, assume, given, settings
from hypothesis import strategies as st
from native_files import GOLDEN, assert_same, golden, table_of, written

from pyhisto.objects import OPTIONAL_COLUMNS, concat_objects, make_objects
from qupath_ext.errors import ProjectError
from qupath_ext.native.datafile import parse_data_file
from qupath_ext.native.emitter import emit_stream
from qupath_ext.native.pathobjects import PathObjectView, walk
from qupath_ext.native.tokens import JObject

KINDS = ("annotation", "detection", "cell", "tile")
FILES = [f"{version}/{kind}" for version in ("v0.5.1", "v0.6.0") for kind in ("plain", "tma", "conn", "real/project")]
slow_data = settings(
    deadline=None,
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
)


def examples(n):
    return settings(slow_data, max_examples=n)


# ---------------------------------------------------------------------- strategies
coordinate = st.floats(0, 200_000, allow_subnormal=False)
size = st.floats(0.5, 3_000)
text = st.text(st.characters(exclude_categories=["Cs"]), max_size=9)
line = st.text(
    st.characters(exclude_categories=["Cs", "Cc", "Zl", "Zp"], exclude_characters=":"), min_size=1, max_size=7
)
word = line.map(str.strip).filter(bool)
class_name = st.lists(word, min_size=1, max_size=3).map(": ".join)
value = st.one_of(
    st.floats(),  # NaN, infinities and the smallest included
    st.floats(width=32),
    st.sampled_from([math.nan, math.inf, -math.inf, 5e-324, 1e-45, 3.5e38, 1.7e308, -0.0, 1 / 3, 2.0**24 + 1]),
)


@st.composite
def polygons(draw):
    """Star-shaped, so that they are valid; up to 150 vertices, which is more than a PolygonROI is given."""
    n = draw(st.integers(3, 12) | st.integers(98, 150))
    radius = draw(size) * np.random.default_rng(draw(st.integers(0, 99))).uniform(0.5, 1, n)
    angle = 2 * np.pi * np.arange(n) / n
    return shapely.Polygon(
        np.column_stack([draw(coordinate) + radius * np.cos(angle), draw(coordinate) + radius * np.sin(angle)])
    )


boxes = st.builds(lambda x, y, w, h: shapely.box(x, y, x + w, y + h), coordinate, coordinate, size, size)


@st.composite
def with_holes(draw):
    outer = draw(boxes)
    x0, y0, x1, y1 = outer.bounds
    inner = [
        shapely.box(x0 + (x1 - x0) * a, y0 + (y1 - y0) * a, x1 - (x1 - x0) / 2, y1 - (y1 - y0) / 3) for a in (0.1,)
    ]
    return shapely.Polygon(outer.exterior, [shape.exterior for shape in inner])


@st.composite
def several(draw):
    """Two to four parts beside each other, with or without holes."""
    parts = draw(st.lists(boxes | polygons() | with_holes(), min_size=2, max_size=4))
    moved = [shapely.transform(part, lambda xy, i=i: np.add(xy, [i * 300_000.0, 0.0])) for i, part in enumerate(parts)]
    return shapely.MultiPolygon(moved)


points = st.tuples(coordinate, coordinate)
lines = st.lists(points, min_size=2, max_size=6, unique=True).map(shapely.LineString)
areas = st.one_of(boxes, polygons(), with_holes(), several())
shapes = st.one_of(
    areas,
    points.map(shapely.Point),
    st.lists(points, min_size=2, max_size=6).map(shapely.MultiPoint),
    lines,
    st.lists(lines, min_size=2, max_size=3).map(shapely.MultiLineString),
)


@st.composite
def tables(draw, max_size=20):
    n = draw(st.integers(1, max_size))
    kinds = draw(st.lists(st.sampled_from(KINDS), min_size=n, max_size=n))
    plain = draw(st.booleans())  # plain detections are written in bulk

    def column(values):
        return draw(st.lists(st.none() | values, min_size=n, max_size=n))

    ids = [str(uuid.UUID(int=draw(st.integers(0, 2**128 - 1)))) for _ in range(n)]
    assume(len(set(ids)) == n)
    order = draw(st.permutations(range(n)))  # parents need not come first
    parents = [None] * n
    for at in range(1, n):
        parents[order[at]] = None if plain else draw(st.none() | st.sampled_from([ids[i] for i in order[:at]]))
    table = make_objects(
        [draw(areas if kind == "cell" else shapes) for kind in kinds],
        object_type=kinds,
        ids=ids,
        nucleus=[draw(st.none() | areas) if kind == "cell" else None for kind in kinds],
        classification=column(class_name),
        name=[None] * n if plain else column(text),
        color=[None] * n if plain else column(st.integers(-(2**31), 2**31 - 1)),
        locked=draw(st.lists(st.booleans(), min_size=n, max_size=n)),
        metadata=[None] * n if plain else column(st.dictionaries(word, text, min_size=1, max_size=3)),
        plane=column(st.tuples(st.integers(-1, 3), st.integers(0, 9), st.integers(0, 9))),
        parent_id=parents,
        measurements={
            name: draw(st.lists(value, min_size=n, max_size=n))
            for name in draw(st.lists(word.filter(lambda name: name not in RESERVED), unique=True, max_size=3))
        },
    )
    assume(all(rounds_to_the_same(shape) for name in ("geometry", "nucleus") for shape in table[name]))
    return table


RESERVED = ("geometry", "nucleus", "name", "color", "locked", "plane", "metadata", "missing")


def rounds_to_the_same(shape):
    """Whether float32 leaves a shape what it is: no vertices fall together."""
    return shape is None or len(set(map(tuple, single(shape)))) == len(set(map(tuple, shapely.get_coordinates(shape))))


def single(shape):
    return shapely.get_coordinates(shape).astype(np.float32).astype(np.float64)


# ---------------------------------------------------------------------- what is stored, by the facts of the format
def is_rectangle(shape):
    return shape.geom_type == "Polygon" and len(shape.exterior.coords) == 5 and shape.equals(shapely.box(*shape.bounds))


def stored(shape):
    """A shape as its kind of ROI keeps it: rectangles, lines and WKB as doubles, vertices as floats."""
    if shape is None or is_rectangle(shape):
        return shape
    n = len(shapely.get_coordinates(shape))
    floats = (
        (shape.geom_type == "Polygon" and len(shape.interiors) == 0 and n <= 101)
        or (shape.geom_type == "LineString" and n > 2)
        or shape.geom_type in ("Point", "MultiPoint")
    )
    return shapely.set_coordinates(shapely.from_wkb(shape.wkb), single(shape)) if floats else shape


def as_stored(table):
    out = table.copy()
    out["geometry"] = [stored(shape) for shape in table["geometry"]]
    out["nucleus"] = [stored(shape) for shape in table["nucleus"]]
    annotations = (table["object_type"] == "annotation").to_numpy()
    fixed = list(make_objects([shapely.Point(0, 0)], object_type="annotation").columns)
    for name in table.columns.difference(fixed):
        values = table[name].to_numpy()
        with np.errstate(over="ignore", under="ignore"):
            out[name] = np.where(annotations, values, values.astype(np.float32).astype(np.float64))
    default = [plane if plane != (-1, 0, 0) else None for plane in table["plane"]]
    out["plane"] = np.array([*default, None], dtype=object)[:-1]
    return out


def same_shape(ours, theirs):
    """Compare vertex by vertex; rectangles and rings may begin at another corner."""
    if ours is None or theirs is None:
        return ours is theirs
    return ours.geom_type == theirs.geom_type and shapely.equals_exact(ours, theirs, tolerance=0, normalize=True)


def check(table, found):
    wanted = as_stored(table)
    assert_same(wanted, found)
    for name in ("geometry", "nucleus"):
        for ours, theirs in zip(wanted[name], found.loc[wanted.index, name], strict=True):
            assert same_shape(ours, theirs), (ours, theirs)


# ---------------------------------------------------------------------- round trips
@examples(40)
@given(tables())
def test_a_new_file_holds_what_was_written(table):
    data, counts = written(table)
    assert sum(counts.added.values()) == len(table)
    check(table, table_of(data))
    assert parse_data_file(data).to_bytes() == data


@examples(3)
@given(st.data(), st.integers(100, 190))
def test_deep_nesting(data, depth):
    ids = [str(uuid.UUID(int=i + 1)) for i in range(depth)]
    table = make_objects([data.draw(boxes)] * depth, object_type="annotation", ids=ids, parent_id=[None, *ids[:-1]])
    check(table, table_of(written(table)[0]))


def test_coordinates_that_float32_cannot_hold_are_refused():
    with pytest.raises(ProjectError, match="not finite"):
        written(make_objects([shapely.LineString([(0, 0), (1e39, 0), (0, 1)])], object_type="annotation"))


def own_bytes(data):
    """Bytes of each object without its children, by id, and of each top-level item but the hierarchy."""
    parsed = parse_data_file(data, fast=False)
    views = {view.id: view for view, _ in walk(parsed.root)}
    views["root"] = PathObjectView(parsed.root)
    top = [emitted(token) for token in parsed.contents if not is_hierarchy(token)]
    for view in views.values():
        view.set_children([])
    return {name: emitted(view.token) for name, view in views.items()}, top


def is_hierarchy(token):
    return isinstance(token, JObject) and token.desc.name.endswith("PathObjectHierarchy")


def emitted(token):
    out = bytearray()
    emit_stream([token], out.extend)
    return bytes(out)


def golden_file(name):
    return (GOLDEN / name / "data/1/data.qpdata").read_bytes()


@golden
@pytest.mark.parametrize("name", FILES)
@examples(4)
@given(table=tables(max_size=12), data=st.data())
def test_a_file_of_qupath_keeps_all_that_was_in_it(name, table, data):
    before = golden_file(name)
    was = table_of(before)
    parents = [i for i, kind in zip(was.index, was["object_type"], strict=True) if kind == "annotation"]
    top = table["parent_id"].isna().to_numpy()
    table.loc[top, "parent_id"] = [data.draw(st.none() | st.sampled_from(parents)) for _ in range(top.sum())]
    after, _ = written(table, data=before)
    found = table_of(after)
    assert len(found) == len(was) + len(table)
    check(table, found.loc[table.index].drop(columns=[*OPTIONAL_COLUMNS], errors="ignore"))
    (old, old_top), (new, new_top) = own_bytes(before), own_bytes(after)
    assert new_top == old_top
    assert {name: new[name] for name in old} == old
    kept = [i for i in found.index if i in set(was.index)]
    assert list(found.loc[kept, "parent_id"].fillna("")) == list(was.loc[kept, "parent_id"].fillna(""))


# ---------------------------------------------------------------------- sequences of changes
@golden
@pytest.mark.parametrize("name", ["v0.5.1/plain", "v0.6.0/tma", "v0.6.0/real/project", "own"])
@examples(5)
@given(data=st.data())
def test_any_sequence_of_changes_leaves_all_else_alone(name, data):
    """A model of the ids, parents and locks follows the changes; bytes of all other objects stay."""
    now = written(concat_objects([many_cells()]))[0] if name == "own" else golden_file(name)
    table = table_of(now)
    parent = dict(zip(table.index, table["parent_id"], strict=True))
    locked = dict(zip(table.index, table["locked"].tolist(), strict=True))
    cores = set(table.index[table["object_type"] == "tma_core"])
    original, _ = own_bytes(now)
    lock_changed: set[str] = set()
    for _ in range(data.draw(st.integers(1, 5))):
        ids = sorted(parent)
        removable = [i for i in ids if i not in cores]
        removed = data.draw(st.lists(st.sampled_from(removable), unique=True, max_size=4)) if removable else []
        rest = [i for i in ids if i not in removed]
        chosen = data.draw(st.lists(st.sampled_from(rest), unique=True, max_size=4)) if rest else []
        new = data.draw(st.none() | tables(max_size=4))
        if new is not None and set(new.index) & set(ids):
            new = None
        lock, unlock = chosen[::2], chosen[1::2]
        now, counts = written(*([] if new is None else [new]), data=now, remove=removed, lock=lock, unlock=unlock)
        assert counts.removed == len(removed)
        assert counts.locked == sum(not locked[i] for i in lock) + sum(locked[i] for i in unlock)
        lock_changed |= {i for i in lock if not locked[i]} | {i for i in unlock if locked[i]}
        locked.update({**dict.fromkeys(lock, True), **dict.fromkeys(unlock, False)})
        for gone in removed:
            parent.update({child: parent[gone] for child, of in parent.items() if of == gone})
            del parent[gone], locked[gone]
        if new is not None:
            parent.update(zip(new.index, new["parent_id"], strict=True))
            locked.update(zip(new.index, new["locked"].tolist(), strict=True))
    found = table_of(now)
    assert dict(zip(found.index, found["locked"].tolist(), strict=True)) == locked
    assert dict(zip(found.index, found["parent_id"], strict=True)) == parent
    final, _ = own_bytes(now)
    untouched = (original.keys() & final.keys()) - lock_changed
    assert {i: final[i] for i in untouched} == {i: original[i] for i in untouched}


def many_cells():
    at = np.arange(40)
    return make_objects(
        shapely.buffer(shapely.points(at * 9.0, at), 4, quad_segs=2),
        object_type="cell",
        ids=[str(uuid.UUID(int=i + 1)) for i in at.tolist()],
        classification=np.where(at % 2, "Tumor: Positive", "Stroma"),
        measurements={"Area": at / 4},
    )
