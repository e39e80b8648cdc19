import gzip
import json
import math
from pathlib import Path

import geopandas as gpd
import numpy as np
import pandas as pd
import pytest
import shapely

from pyhisto.objects import empty_objects, make_objects, validate_objects
from qupath_ext.errors import FormatError
from qupath_ext.native.datafile import parse_data_file, read_head
from qupath_ext.project import open_project

SHARED = Path(__file__).parents[2] / ".." / "shared"
GOLDEN = SHARED / "golden"
pytestmark = pytest.mark.skipif(
    not GOLDEN.exists(), reason="the projects written by QuPath (../shared/golden) are not here"
)


def read(path, fast=True):
    return parse_data_file(path.read_bytes(), fast=fast).read_table()


def dumped(version, kind):
    path = GOLDEN / version / kind / "what_qupath_sees.json"
    text = path.read_bytes() if path.exists() else gzip.decompress(path.with_name(f"{path.name}.gz").read_bytes())
    for image in json.loads(text)["images"]:
        data = GOLDEN / version / kind / "project" / "data" / image["entryID"] / "data.qpdata"
        if data.exists():
            yield image, data


def same_shape(ours, wkt):
    theirs = shapely.from_wkt(wkt)
    if ours.geom_type != theirs.geom_type:
        return False
    near = shapely.hausdorff_distance(ours, theirs) < 0.02
    return near and abs(ours.area - theirs.area) <= 0.01 * theirs.length  # QuPath rounds to 0.01 px


@pytest.mark.parametrize("version", ["v0.5.1", "v0.6.0"])
@pytest.mark.parametrize("kind", ["real", "cells"])
def test_table_says_what_qupath_sees(version, kind):
    for image, path in dumped(version, kind):
        table = read(path)
        validate_objects(table)
        assert list(table.index) == [o["id"] for o in image["objects"]]
        for seen, (_, row) in zip(image["objects"], table.iterrows(), strict=True):
            where = seen["id"]
            assert row["object_type"] == seen["kind"].replace("tmaCore", "tma_core"), where
            assert row["parent_id"] == (None if seen["parent"] == "ROOT" else seen["parent"]), where
            named = seen["pathClass"]["string"] if seen["pathClass"] else None
            assert (row["classification"] if isinstance(row["classification"], str) else None) == named, where
            assert row["name"] == seen["name"], where
            assert row["locked"] == seen["locked"], where
            assert (None if pd.isna(row["color"]) else row["color"]) == (seen["color"] and seen["color"]["int"]), where
            assert (row["metadata"] or {}) == seen["metadata"], where
            plane = tuple(seen["roi"][axis] for axis in "czt")
            assert (row["plane"] or (-1, 0, 0)) == plane, where
            assert same_shape(row["geometry"], seen["roi"]["wkt"]), where
            nucleus = seen.get("nucleusROI")
            assert (row["nucleus"] is None) == (nucleus is None), where
            assert nucleus is None or same_shape(row["nucleus"], nucleus["wkt"]), where
            for name, value in seen["measurements"]:
                assert row[name] == value or (math.isnan(value) and math.isnan(row[name])), (where, name)


@pytest.mark.parametrize("path", sorted(GOLDEN.glob("v*/**/data.qpdata")), ids=lambda p: "-".join(p.parts[-5:-1]))
def test_fast_path_and_slow_path_agree(path):
    fast, slow = read(path), read(path, fast=False)
    pd.testing.assert_frame_equal(
        pd.DataFrame(fast.drop(columns=["geometry", "nucleus"])),
        pd.DataFrame(slow.drop(columns=["geometry", "nucleus"])),
    )
    assert shapely.equals_exact(fast["geometry"].values, slow["geometry"].values).all()
    assert [repr(n) for n in fast["nucleus"]] == [repr(n) for n in slow["nucleus"]]


@pytest.mark.parametrize("version", ["v0.3.2", "v0.5.1", "v0.6.0"])
def test_every_kind_of_roi_of_the_small_project(version):
    # numbers from what_qupath_sees.txt of the same project
    table = read(GOLDEN / version / "plain/data/1/data.qpdata")
    region = table[table["name"] == "Région 1"].iloc[0]
    assert region["geometry"].equals(shapely.box(10, 20, 310, 220))
    assert region["classification"] == "Tumor"
    assert region["locked"]
    assert region["metadata"] == {"ANNOTATION_DESCRIPTION": "descr\nline2"}
    assert region["Score"] == 1.5
    annotations = table[table["object_type"] == "annotation"]
    plane = annotations[annotations["plane"].notna()].iloc[0]
    assert plane["plane"] == (-1, 1, 2)
    assert plane["color"] == -15720400
    assert plane["geometry"].area == pytest.approx(1656.4688, abs=1e-3)
    kinds = [g.geom_type for g in annotations["geometry"]]
    assert kinds == ["Polygon", "Polygon", "Polygon", "LineString", "LineString", "MultiPoint", "Polygon", "Polygon"]
    ellipse, line, polyline, points, geometry, area = annotations["geometry"].iloc[2:]
    assert ellipse.bounds == (5, 6, 12, 14)
    assert ellipse.area == pytest.approx(math.pi * 3.5 * 4, rel=1e-3)
    assert list(line.coords) == [(5, 6), (70, 80)]
    assert len(polyline.coords) == 3
    assert points.bounds == (1.5, 4.25, 2.0, 5.0)
    assert geometry.area == area.area == 2400
    assert len(geometry.interiors) == len(area.interiors) == 1
    cells = table[table["object_type"] == "cell"]
    assert list(cells["Area"]) == [0.5, 1.5, 2.5]
    assert list(cells["Mean"]) == [0.0, 2.0, 4.0]
    assert list(cells["classification"].astype(object).fillna("-")) == ["-", "Tumor: Positive", "-"]
    assert [n is None for n in cells["nucleus"]] == [False, False, True]
    assert set(cells["parent_id"]) == {region.name}
    ellipses = table[(table["object_type"] == "detection") & (table["classification"] == "Stroma")]
    assert list(ellipses["Area"]) == pytest.approx([0.1, 0.2], rel=1e-6)
    assert math.isnan(ellipses["Mean"].iloc[0])
    assert ellipses["Mean"].iloc[1] == 1e10


@pytest.mark.parametrize("version", ["v0.3.2", "v0.5.1", "v0.6.0"])
def test_tma_cores(version):
    table = read(GOLDEN / version / "tma/data/1/data.qpdata")
    cores = table[table["object_type"] == "tma_core"]
    assert len(cores) == 4
    assert cores["parent_id"].isna().all()
    assert (cores["geometry"].area > 0).all()


def test_files_without_ids_get_the_same_ids_every_time():
    path = GOLDEN / "v0.3.2/plain/data/1/data.qpdata"
    first, second, slow = read(path), read(path), read(path, fast=False)
    assert list(first.index) == list(second.index) == list(slow.index)
    assert first.index.is_unique
    assert set(first["parent_id"].dropna()) <= set(first.index)


def test_qupath_0_2_files_are_read():
    folder = SHARED / "data/qupath_projects/v0.2.0_stardist_full_with_images"
    project = open_project(folder)
    summaries = [json.loads((folder / f"data/{entry.id}/summary.json").read_text()) for entry in project.entries]
    for entry, summary in zip(project.entries, summaries, strict=True):
        assert len(entry.read_objects()) == summary["hierarchy"]["nObjects"] - 1


def test_dtypes_are_those_of_the_path_object_table():
    table = read(GOLDEN / "v0.5.1/plain/data/1/data.qpdata")
    built = make_objects([shapely.Point(0, 0)], object_type="annotation", classification="a", color=1)
    for name in empty_objects().columns:
        wanted = built[name].dtype
        assert table[name].dtype == wanted or (isinstance(wanted, pd.CategoricalDtype) and name == "classification")
    assert isinstance(table, gpd.GeoDataFrame)
    assert table.index.name == "id"


def test_head_of_a_file():
    image_type, stains = read_head(GOLDEN / "v0.6.0/real/project/data/1/data.qpdata")
    assert image_type == "BRIGHTFIELD_H_DAB"
    assert stains.name == "golden stains"
    assert (stains.stain1_name, stains.stain2_name, stains.stain3) == ("Hematoxylin", "DAB", None)
    assert np.allclose(stains.stain2, (0.2691668699565374, 0.5682411699082456, 0.7775931898744414), atol=1e-7)
    assert stains.background == (243, 242, 241)


@pytest.mark.parametrize("damage", ["start", "end mark", "object"])
def test_a_damaged_file_is_refused(damage):
    data = (GOLDEN / "v0.5.1/real/project/data/1/data.qpdata").read_bytes()
    if damage == "start":
        data = data.replace(b"Data file version", b"Data  ile version", 1)
    elif damage == "end mark":
        data = data[:-6]
    else:
        at = data.index(b"PathAnnotationObject") + 400
        data = data[:at] + data[at + 1 :]
    with pytest.raises(FormatError):
        parse_data_file(data)
