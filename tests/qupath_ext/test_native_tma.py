"""TMA grids, image types, and objects without a ROI."""

import numpy as np
import pandas as pd
import pytest
import shapely
from native_files import GOLDEN, assert_same, cells, golden, new_file, polygon, table_of, tokens_by_id, written

from pyhisto.objects import concat_objects, load_objects, make_objects, save_objects
from qupath_ext.change import TmaGrid
from qupath_ext.errors import FormatError, ProjectError
from qupath_ext.native.classcolors import class_color
from qupath_ext.native.datafile import parse_data_file
from qupath_ext.native.edit import HierarchyEdit
from qupath_ext.native.emitter import emit_stream
from qupath_ext.native.pathobjects import PathObjectView, walk
from qupath_ext.native.stains import H_DAB, H_E, Stains
from qupath_ext.native.tma import read_grid
from qupath_ext.native.tokens import JEnum, JObject


def emitted(token):
    out = bytearray()
    emit_stream([token], out.extend)
    return bytes(out)


# ---------------------------------------------------------------------- TMA
def cores(width=3, height=2, **columns):
    places = [(x, y) for y in range(height) for x in range(width)]
    return make_objects(
        [shapely.Point(100 * x + 50, 100 * y + 50).buffer(40, 25) for x, y in places],
        object_type="tma_core",
        name=[f"{'AB'[y]}-{x + 1}" for x, y in places],
        missing=[place == (1, 1) for place in places],
        metadata=[{"Case ID": f"{x}{y}"} for x, y in places],
        **columns,
    )


def grid_of(table, width=3, height=2):
    return TmaGrid(width, height, tuple(table.index))


def test_a_grid_with_its_cores_and_what_is_in_them():
    table = cores(measurements={"Score": [1 / 3, np.nan, 2, 3, 4, 5]})
    inside = cells(20, parent_id=table.index[2])
    data, counts = written(concat_objects([table, inside]), tma_grid=grid_of(table))
    assert counts.added == {"tma_core": 6, "cell": 20}
    parsed = parse_data_file(data)
    assert read_grid(parsed) == grid_of(table)
    found = table_of(data)
    assert found["missing"].dtype == bool
    assert found.loc[table.index, "missing"].tolist() == [False] * 4 + [True, False]
    assert not found.loc[inside.index, "missing"].any()
    assert found["Score"].iloc[0] == 1 / 3
    assert found.loc[table.index, "name"].tolist() == ["A-1", "A-2", "A-3", "B-1", "B-2", "B-3"]
    assert (found.loc[inside.index, "parent_id"] == table.index[2]).all()
    views = [view for view, _ in walk(parse_data_file(data, fast=False).root) if view.kind == "tma_core"]
    assert {view.roi_token.desc.name for view in views} == {"qupath.lib.roi.EllipseROI$SerializationProxy"}
    # centre (50, 50), radius 40
    np.testing.assert_allclose(found["geometry"].iloc[0].bounds, (10, 10, 90, 90), atol=1e-9)


@golden
@pytest.mark.parametrize("version", ["v0.3.2", "v0.5.1", "v0.6.0"])
def test_the_grid_of_qupath(version):
    data = (GOLDEN / version / "tma/data/1/data.qpdata").read_bytes()
    grid = read_grid(parse_data_file(data))
    table = table_of(data)
    assert (grid.width, grid.height) == (2, 2)
    assert table.loc[list(grid.cores), "name"].tolist() == ["A-0", "A-1", "A-2", "A-3"]
    assert table.loc[list(grid.cores), "missing"].tolist() == [False, False, False, True]
    assert table.loc[list(grid.cores), "metadata"].tolist() == [{"Case ID": f"case{i}"} for i in range(4)]
    plain = (GOLDEN / version / "plain/data/1/data.qpdata").read_bytes()
    assert read_grid(parse_data_file(plain)) is None
    assert "missing" not in table_of(plain)


@golden
def test_cores_of_qupath_get_other_values_but_no_other_shape():
    data = (GOLDEN / "v0.5.1/tma/data/1/data.qpdata").read_bytes()
    core, other = read_grid(parse_data_file(data)).cores[:2]
    values = {"name": ["C-9", "C-8"], "locked": [True, False], "missing": [True, False], "Score": [0.1, np.nan]}
    after, counts = written(data=data, update=[pd.DataFrame(values, index=[core, other])])
    assert counts.updated == 2
    found = table_of(after).loc[core]
    assert (found["name"], found["locked"], found["missing"], found["Score"]) == ("C-9", True, True, 0.1)
    assert found["metadata"] == {"Case ID": "case0"}
    assert read_grid(parse_data_file(after)) == read_grid(parse_data_file(data))
    assert emitted(tokens_by_id(after)[core].roi_token) == emitted(tokens_by_id(data)[core].roi_token)
    with pytest.raises(ProjectError, match="is a TMA core and cannot have another geometry"):
        written(data=data, update=[pd.DataFrame({"geometry": [polygon(5, 5)]}, index=[core])])
    with pytest.raises(ProjectError, match="a core of the TMA grid cannot be removed"):
        written(data=data, remove=[core])
    table = cores()
    with pytest.raises(ProjectError, match="has a TMA grid already"):
        written(table, data=data, tma_grid=grid_of(table))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda table: (table, None), "is a TMA core; expected cores of a TMA grid"),
        (lambda table: (table, TmaGrid(3, 2, tuple(table.index[:5]))), "is a TMA core; expected cores of a TMA grid"),
        (lambda table: (table, TmaGrid(2, 2, tuple(table.index))), "TMA grid of 2 x 2 with 6 different cores"),
        (lambda table: (table, TmaGrid(-3, -2, tuple(table.index))), "TMA grid of -3 x -2"),
        (lambda table: (table, TmaGrid(3, 2, (table.index[0],) * 6)), "is a TMA core"),
        (lambda table: (table[:5], grid_of(table)), "is not added in the same change"),
        (lambda table: (None, grid_of(table)), "is not added in the same change"),
        (lambda table: (table.assign(parent_id=table.index[::-1]), grid_of(table)), "is a TMA core with a parent"),
    ],
)
def test_grids_that_cannot_be_set(change, message):
    table, grid = change(cores())
    with pytest.raises(ProjectError, match=message):
        HierarchyEdit(new_file(), class_color).apply(add=table, tma_grid=grid)


def test_a_core_of_the_grid_is_of_that_type():
    table = make_objects([shapely.box(0, 0, 1, 1)], object_type="annotation")
    with pytest.raises(ProjectError, match="expected a new object of type tma_core"):
        written(table, tma_grid=TmaGrid(1, 1, tuple(table.index)))
    with pytest.raises(ProjectError, match="is missing and no TMA core"):
        written(table.assign(missing=True))


@golden
def test_a_grid_of_an_unknown_class_is_refused():
    data = (GOLDEN / "v0.5.1/tma/data/1/data.qpdata").read_bytes().replace(b"DefaultTMAGrid", b"DefaultTMAGriD")
    with pytest.raises(FormatError, match=r"TMA grid of class .*DefaultTMAGriD"):
        read_grid(parse_data_file(data))
    with pytest.raises(FormatError, match=r"TMA grid of class .*DefaultTMAGriD"):
        written(cells(3), data=data)


# ---------------------------------------------------------------------- image type and stains
OWN = Stains("own", "H", (0.6, 0.7, 0.3), "D", (0.3, 0.5, 0.8), "R", (0.7, 0.1, 0.7), (241.0, 240.5, 239.0))


@golden
@pytest.mark.parametrize("version", ["v0.3.2", "v0.5.1", "v0.6.0"])
@pytest.mark.parametrize(
    ("image_type", "stains", "expected"),
    [
        ("BRIGHTFIELD_H_DAB", None, H_DAB),
        ("BRIGHTFIELD_H_E", None, H_E),
        ("BRIGHTFIELD_H_E", OWN, OWN),
        ("FLUORESCENCE", None, None),
        ("OTHER", None, None),
    ],
)
def test_the_image_type_and_nothing_else(version, image_type, stains, expected):
    before = (GOLDEN / version / "plain/data/1/data.qpdata").read_bytes()
    with_ids, _ = written(data=before)
    after, _ = written(data=with_ids, image_type=image_type, stains=stains)
    old, now = parse_data_file(with_ids), parse_data_file(after)
    assert now.image_type == image_type
    assert now.stains == expected
    special = ("ImageType", "ColorDeconvolutionStains")

    def others(data):
        return [
            emitted(token)
            for token in data.contents
            if token is not None and not (isinstance(token, (JObject, JEnum)) and token.desc.name.endswith(special))
        ]

    assert others(now) == others(old)
    # and back: the very bytes, as long as the file had such stains
    if old.stains is not None and version != "v0.6.0":  # 0.6 writes 32 decimals
        back, _ = written(data=after, image_type=old.image_type, stains=old.stains)
        assert parse_data_file(back).image_type == old.image_type
        assert parse_data_file(back).stains == old.stains


def test_a_file_without_image_type_gets_one_after_the_locale():
    data = new_file()
    del data.contents[3:5]  # type and stains
    edit = HierarchyEdit(data, class_color)
    edit.apply(image_type="BRIGHTFIELD_H_DAB")
    again = parse_data_file(edit.data.to_bytes())
    assert (again.image_type, again.stains) == ("BRIGHTFIELD_H_DAB", H_DAB)
    kinds = [token.desc.name.rpartition(".")[2] for token in again.contents if isinstance(token, (JObject, JEnum))]
    assert kinds == [
        *("Locale", "ImageData$ImageType", "ColorDeconvolutionStains", "Workflow", "PathObjectHierarchy", "HashMap")
    ]


def test_brightfield_other_has_stains_as_in_qupath():
    edit = HierarchyEdit(new_file(), class_color)
    edit.apply(image_type="BRIGHTFIELD_OTHER")
    assert parse_data_file(edit.data.to_bytes()).stains == H_DAB


@pytest.mark.parametrize(
    ("image_type", "stains", "message"),
    [
        ("IHC", None, "unknown image type 'IHC'"),
        # QuPath throws, and shows no objects at all
        ("FLUORESCENCE", H_DAB, "stains for image type FLUORESCENCE"),
        ("UNSET", H_E, "stains for image type UNSET"),
    ],
)
def test_image_types_that_cannot_be(image_type, stains, message):
    with pytest.raises(ProjectError, match=message):
        HierarchyEdit(new_file(), class_color).apply(image_type=image_type, stains=stains)


# ---------------------------------------------------------------------- without ROI
def test_objects_without_roi_or_with_an_empty_one(tmp_path):
    parsed = parse_data_file(written(concat_objects([cells(40), cells(1, seed=2)]))[0], fast=False)
    views = [view for view, _ in walk(parsed.root)]
    views[3].token.contents[views[3].class_at + 1] = None
    data = parsed.to_bytes()
    table = table_of(data)
    assert table["geometry"].iloc[3] is None
    assert table["geometry"].notna().sum() == 40
    table.loc[table.index[4], "geometry"] = shapely.Polygon()
    save_objects(tmp_path / "t.parquet", table)
    again = load_objects(tmp_path / "t.parquet")
    assert again["geometry"].iloc[3] is None
    assert again["geometry"].iloc[4].is_empty
    assert_same(table.drop(index=table.index[3:5]), again.drop(index=table.index[3:5]))
    # changes of such an object, and of others
    after, _ = written(data=data, update=[pd.DataFrame({"classification": "Other"}, index=table.index)])
    assert table_of(after)["geometry"].iloc[3] is None
    with pytest.raises(ProjectError, match="missing or empty"):
        written(table[3:4], data=data, remove=[table.index[3]])


def test_optional_columns_go_through_parquet(tmp_path):
    table = concat_objects([cores(), cells(5, class_probability=0.25)])
    save_objects(tmp_path / "t.parquet", table)
    again = load_objects(tmp_path / "t.parquet")
    assert_same(table, again)
    assert again["missing"].tolist() == [False] * 4 + [True] + [False] * 6
    assert again["class_probability"].isna().tolist() == [True] * 6 + [False] * 5


def test_geometry_collections_say_how_to_split_them():
    both = shapely.GeometryCollection([shapely.Point(1, 2), shapely.box(0, 0, 1, 1)])
    with pytest.raises(ProjectError, match=r"is a GeometryCollection; .*explode"):
        written(make_objects([both], object_type="annotation"))


def test_a_measurement_with_the_name_of_a_column_is_refused():
    parsed = parse_data_file(written(make_objects([polygon(5, 5)], object_type="annotation"))[0], fast=False)
    edit = HierarchyEdit(parsed, class_color)
    view = next(view for view, _ in walk(parsed.root))
    view.set_list(edit._factory.default_list({"geometry": 1.0}), edit._factory)
    assert PathObjectView(view.token).measurements == {"geometry": 1.0}
    with pytest.raises(FormatError, match="measurement called 'geometry'"):
        parse_data_file(parsed.to_bytes()).read_table()
