"""Data files made in the tests, and tables to put into them."""

import uuid
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import shapely

from pyhisto.objects import concat_objects, make_objects, measurement_names
from qupath_ext.native.classcolors import class_color
from qupath_ext.native.datafile import new_data_file, parse_data_file
from qupath_ext.native.edit import HierarchyEdit, open_for_edit
from qupath_ext.native.pathobjects import walk

SHARED = Path(__file__).parents[2] / ".." / "shared"
GOLDEN = SHARED / "golden"
golden = pytest.mark.skipif(
    not GOLDEN.exists(), reason="the projects written by QuPath (../shared/golden) are not here"
)


def new_file():
    return new_data_file(
        server={"builderType": "uri", "uri": "file:/a.svs"},
        image_type="OTHER",
        stains=None,
        project_entry="/p/project.qpproj::1",
        root_id=str(uuid.uuid4()),
        version="0.5.1",
        colors=class_color,
    )


def written(*tables, data=None, **changes):
    """Bytes of a file after a change, from scratch or from the bytes of another file."""
    edit = HierarchyEdit(new_file(), class_color) if data is None else open_for_edit(data, class_color)
    counts = edit.apply(add=concat_objects(tables) if tables else None, **changes)
    return edit.data.to_bytes(), counts


def table_of(data):
    fast, slow = parse_data_file(data).read_table(), parse_data_file(data, fast=False).read_table()
    pd.testing.assert_frame_equal(
        pd.DataFrame(fast.drop(columns="nucleus")), pd.DataFrame(slow.drop(columns="nucleus"))
    )
    return fast


def assert_same(wanted, found):
    assert set(wanted.index) == set(found.index)
    found = found.loc[wanted.index]
    for name in ("object_type", "classification", "name", "locked", "color", "parent_id", "plane", "metadata"):
        ours, theirs = wanted[name].astype(object), found[name].astype(object)
        assert [None if x is None or x is pd.NA or x != x else x for x in ours] == [
            None if x is None or x is pd.NA or x != x else x for x in theirs
        ], name
    for name in ("geometry", "nucleus"):
        for ours, theirs in zip(wanted[name], found[name], strict=True):
            assert (ours is None and theirs is None) or shapely.equals(ours, theirs), (name, ours, theirs)
    for name, default in (("class_probability", np.nan), ("missing", False)):
        ours, theirs = (t[name] if name in t else np.full(len(wanted), default) for t in (wanted, found))
        np.testing.assert_array_equal(ours, theirs, err_msg=name)
    for name in measurement_names(wanted):
        if wanted[name].notna().any():
            np.testing.assert_array_equal(wanted[name].to_numpy(), found[name].to_numpy(), err_msg=name)


def polygon(x, y, r=8.0, n=9):
    angle = 2 * np.pi * np.arange(n) / n
    return shapely.Polygon(np.round(np.column_stack([x + r * np.cos(angle), y + r * np.sin(angle)]) * 8) / 8)


def cells(n, seed=0, **columns):
    at = np.random.default_rng(seed).integers(0, 100_000, (n, 2))
    nucleus = [None if i % 5 == 4 else polygon(x, y, 4, 5 + i % 3) for i, (x, y) in enumerate(at)]
    return make_objects(
        [polygon(x, y, n=6 + i % 7) for i, (x, y) in enumerate(at)],
        object_type="cell",
        nucleus=nucleus,
        classification=[("Tumor: Positive", "Tumor: Negative", None)[i % 3] for i in range(n)],
        measurements={"Area": np.arange(n) / 4, "odd": np.where(np.arange(n) % 2, 1.5, np.nan)},
        **columns,
    )


def tokens_by_id(data):
    """Views of all objects by id, every one parsed token by token."""
    return {view.id: view for view, _ in walk(parse_data_file(data, fast=False).root)}
