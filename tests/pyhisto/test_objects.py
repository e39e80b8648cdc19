"""The path-object table keeps its own rules."""

from __future__ import annotations

import uuid
from typing import Any

import numpy as np
import pandas as pd
import pytest
import shapely
from geopandas.testing import assert_geodataframe_equal

from pyhisto.errors import ObjectTableError
from pyhisto.objects import (
    COLUMNS,
    concat_objects,
    empty_objects,
    make_objects,
    measurement_names,
    new_ids,
    validate_objects,
)

BOXES = [shapely.box(0, 0, 4, 3), shapely.box(1, 1, 2, 2)]


def test_columns_and_index() -> None:
    table = make_objects(BOXES, object_type="annotation", classification=["Tumor", None], measurements={"a": [1, 2]})
    assert list(table.columns) == [*COLUMNS, "a"]
    assert table.index.name == "id"
    assert all(uuid.UUID(i).version == 4 for i in table.index)
    assert table["classification"].tolist()[0] == "Tumor"
    assert pd.isna(table["classification"].iloc[1])
    assert table["a"].dtype == np.float64
    assert table["locked"].tolist() == [False, False]
    assert table["color"].isna().all()


def test_one_value_for_all_and_one_for_each() -> None:
    table = make_objects(
        BOXES, object_type=["cell", "tile"], nucleus=[BOXES[1], None], name="n", locked=[True, False], color=-16777216
    )
    assert table["object_type"].tolist() == ["cell", "tile"]
    assert table["name"].tolist() == ["n", "n"]
    assert table["locked"].tolist() == [True, False]
    assert table["color"].tolist() == [-16777216, -16777216]


def test_arrays_that_are_changed_later_change_no_table() -> None:
    boxes, inner = np.array(BOXES, dtype=object), np.array(BOXES[::-1], dtype=object)
    classes, names = np.array(["Tumor", None], dtype=object), np.array(["a", "b"], dtype=object)
    numbers, chances = np.array([[1.0, 2.0], [3.0, 4.0]]), np.array([0.5, 0.25])
    table = make_objects(
        boxes,
        object_type="cell",
        nucleus=inner,
        classification=classes,
        measurements={"m": numbers[0], "n": numbers[1]},
        name=names,
        class_probability=chances,
    )
    for array in (boxes, inner, classes, names):
        array[:] = None
    numbers[:], chances[:] = 0, 0
    assert table["geometry"].tolist() == BOXES
    assert table["nucleus"].tolist() == BOXES[::-1]
    assert table["classification"].iloc[0] == "Tumor"
    assert table["name"].tolist() == ["a", "b"]
    assert table[["m", "n"]].to_numpy().tolist() == [[1, 3], [2, 4]]
    assert table["class_probability"].tolist() == [0.5, 0.25]


def test_planes_are_tuples() -> None:
    one = make_objects(BOXES, object_type="tile", plane=(-1, 2, 0))
    each = make_objects(BOXES, object_type="tile", plane=[(-1, 2, 0), (0, 0, 1)])
    assert one["plane"].tolist() == [(-1, 2, 0), (-1, 2, 0)]
    assert each["plane"].tolist() == [(-1, 2, 0), (0, 0, 1)]


def test_a_tuple_of_classes_is_one_for_each() -> None:
    table = make_objects(BOXES, object_type=("annotation", "tile"), classification=("Tumor", "Stroma"))
    assert table["classification"].tolist() == ["Tumor", "Stroma"]
    assert table["object_type"].tolist() == ["annotation", "tile"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"object_type": "blob"}, "object type .blob."),
        ({"object_type": "tile", "colour": 1}, "unknown object column 'colour'"),
        ({"object_type": "tile", "classification": ["Tumor"]}, "1 values of classification for 2 objects"),
        ({"object_type": "tile", "ids": ["a"]}, "1 ids for 2 objects"),
        ({"object_type": "tile", "ids": ["a", "a"]}, "occurs twice"),
        ({"object_type": "tile", "nucleus": BOXES}, "has a nucleus"),
        ({"object_type": "tile", "measurements": {"a": [1, 2, 3]}}, "3 values of 'a' for 2 objects"),
        ({"object_type": "tile", "measurements": {"name": [1, 2]}}, "measurement 'name'"),
    ],
)
def test_what_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ObjectTableError, match=message):
        make_objects(BOXES, **options)


@pytest.mark.parametrize("geometry", [None, shapely.Polygon()])
def test_an_object_needs_a_geometry(geometry: Any) -> None:
    with pytest.raises(ObjectTableError, match="no geometry"):
        make_objects([BOXES[0], geometry], object_type="tile")


def test_validate_finds_what_was_broken_later() -> None:
    table = make_objects(BOXES, object_type="tile", measurements={"a": [1, 2]})
    with pytest.raises(ObjectTableError, match="without column 'locked'"):
        validate_objects(table.drop(columns="locked"))
    with pytest.raises(ObjectTableError, match="'a' is not numeric"):
        validate_objects(table.assign(a=["x", "y"]))


def test_empty_table_has_all_columns() -> None:
    assert list(empty_objects().columns) == list(COLUMNS)
    assert len(empty_objects()) == 0


def test_a_table_of_measurements_is_not_copied() -> None:
    numbers = np.array([[1.0, 2.0], [3.0, 4.0]])
    block = pd.DataFrame(numbers.T, columns=["m", "n"], copy=False)
    table = make_objects(BOXES, object_type="tile", measurements=block, class_probability=[0.5, 0.6])
    columns = {"m": numbers[0], "n": numbers[1]}
    alike = make_objects(
        BOXES, object_type="tile", measurements=columns, class_probability=[0.5, 0.6], ids=list(table.index)
    )
    assert_geodataframe_equal(table, alike)
    assert np.shares_memory(table["n"].to_numpy(), numbers)
    with pytest.raises(ObjectTableError, match="1 values of 'm' for 2 objects"):
        make_objects(BOXES, object_type="tile", measurements=block.iloc[:1])


def test_concat_aligns_measurements_and_classes() -> None:
    a = make_objects([BOXES[0]], object_type="annotation", classification="Tumor", measurements={"a": 1, "b": 2})
    b = make_objects(
        [BOXES[1]], object_type="cell", classification="Stroma", nucleus=[BOXES[1]], measurements={"b": 3, "c": 4}
    )
    table = concat_objects([a, empty_objects(), b])
    assert measurement_names(table) == ["a", "b", "c"]
    assert table["classification"].tolist() == ["Tumor", "Stroma"]
    assert list(table.index) == [*a.index, *b.index]
    np.testing.assert_array_equal(table[["a", "b", "c"]].to_numpy(), [[1, 2, np.nan], [np.nan, 3, 4]])
    assert table["nucleus"].iloc[1].equals(BOXES[1])
    assert table["locked"].dtype == bool


def test_concat_refuses_the_same_object_twice() -> None:
    table = make_objects(BOXES, object_type="tile")
    with pytest.raises(ObjectTableError, match="occurs twice"):
        concat_objects([table, table])


def test_concat_of_nothing_is_empty() -> None:
    assert len(concat_objects([])) == 0
    assert len(concat_objects([empty_objects(), empty_objects()])) == 0


def test_survives_geoparquet(tmp_path: Any) -> None:
    import geopandas as gpd

    table = make_objects(BOXES, object_type="annotation", classification="Tumor", measurements={"a": [1, 2]})
    table.to_parquet(tmp_path / "t.parquet")
    back = gpd.read_parquet(tmp_path / "t.parquet")
    assert list(back.index) == list(table.index)
    assert back.geometry.geom_equals(table.geometry).all()
    assert back["a"].tolist() == [1.0, 2.0]


def test_new_ids_are_all_different() -> None:
    ids = new_ids(1000)
    assert len(set(ids)) == 1000
    parsed = [uuid.UUID(i) for i in ids]
    assert [str(i) for i in parsed] == ids
    assert {(i.version, i.variant) for i in parsed} == {(4, uuid.RFC_4122)}
