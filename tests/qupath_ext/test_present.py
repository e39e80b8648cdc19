"""What an image holds, read without making all outlines, is what reading everything gives."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import shapely
import tifffile
from geopandas.testing import assert_geodataframe_equal

from pyhisto.objects import concat_objects, make_objects
from qupath_ext.native.datafile import parse_data_file
from qupath_ext.present import PresentTable, as_present
from qupath_ext.project import create_project

DIAMOND = np.array([(4.0, 0.0), (8.0, 4.0), (4.0, 8.0), (0.0, 4.0)])
"""Area 32; no rectangle along the axes, which QuPath stores otherwise."""


@pytest.fixture
def entry(tmp_path):
    tifffile.imwrite(tmp_path / "slide.tif", np.zeros((64, 64, 3), dtype=np.uint8), photometric="rgb", tile=(64, 64))
    return create_project(tmp_path / "p", backend="native").add_image(tmp_path / "slide.tif", mpp=0.5)


def some_objects():
    """Two annotations, one with a hole; 40 cells below the first, every fourth without nucleus; ten tiles."""
    outer = make_objects(
        [shapely.box(0, 0, 50, 50), shapely.Polygon(DIAMOND, [DIAMOND[::-1] / 4 + 3])],
        object_type="annotation",
        classification=["Tumor", None],
    )
    shifts = 10.0 * np.arange(40)[:, None, None]
    cells = make_objects(
        shapely.polygons(DIAMOND + shifts),
        object_type="cell",
        nucleus=np.where(np.arange(40) % 4 == 0, None, shapely.polygons(DIAMOND / 2 + shifts)),
        classification="Tumor: Positive",
        measurements={"Area": np.arange(40.0)},
    )
    cells["parent_id"] = pd.Series([outer.index[0]] * 40, index=cells.index, dtype=object)
    tiles = make_objects([shapely.box(i, 0, i + 3, 3) for i in range(10)], object_type="tile")
    return concat_objects([outer, cells, tiles])


def test_all_rows_are_the_table_that_the_slow_parser_reads(entry):
    objects = some_objects()
    entry.write_objects(objects)
    present = entry.read_present()
    slow = parse_data_file(entry.data_file.read_bytes(), fast=False).read_table()
    assert_geodataframe_equal(present.take(np.arange(len(present.table))), slow)
    assert len(slow) == 52


def test_some_rows_and_their_outlines(entry):
    objects = some_objects()
    entry.write_objects(objects)
    present = entry.read_present()
    ids = objects.index[[45, 1, 20, 2]]  # a tile, the holed annotation, cell 18 with, and cell 0 without nucleus
    rows = present.table.index.get_indexer(ids)
    assert present.take(rows).index.tolist() == ids.tolist()
    assert shapely.area(present.shapes("geometry", rows)).tolist() == [9.0, 30.0, 32.0, 32.0]
    assert present.has_shape("geometry", rows).all()
    assert present.has_shape("nucleus", rows).tolist() == [False, False, True, False]
    nuclei = present.shapes("nucleus", rows)
    assert nuclei[2].equals(shapely.Polygon([(182, 180), (184, 182), (182, 184), (180, 182)]))
    assert [nuclei[i] for i in (0, 1, 3)] == [None, None, None]


@pytest.mark.parametrize("read", ["scanned", "table"])
def test_rings_have_the_first_vertex_at_their_end(entry, read):
    objects = some_objects()
    entry.write_objects(objects)
    present = entry.read_present() if read == "scanned" else PresentTable(entry.read_objects())
    rows = present.table.index.get_indexer(objects.index[[7, 1, 41]])  # cell 5, the holed annotation, cell 39
    found = {}
    for numbers, vertices in present.rings("geometry", rows):
        assert vertices.shape[1:] == (5, 2)
        found |= dict(zip(numbers.tolist(), vertices.tolist(), strict=True))
    assert sorted(found) == [0, 2]  # what has a hole is left out
    assert found[0] == [[54, 50], [58, 54], [54, 58], [50, 54], [54, 50]]
    assert found[2] == [[394, 390], [398, 394], [394, 398], [390, 394], [394, 390]]


def test_an_image_without_data_holds_nothing(entry):
    entry.data_file.unlink()
    assert len(entry.read_present().table) == 0


def test_what_holds_something_already_is_kept(entry):
    present = entry.read_present()
    assert as_present(present) is present
