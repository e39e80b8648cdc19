"""The saved path-object table is GeoParquet that other programs read."""

import json

import geopandas as gpd
import pandas as pd
import pyarrow.parquet as pq
import pytest
import shapely

from pyhisto.objects import make_objects, save_objects


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "objects.parquet"
    cells = make_objects(
        [shapely.box(0, 0, 4, 3), shapely.box(4, 0, 8, 3), shapely.box(8, 0, 9, 3)], object_type="cell",
        nucleus=[shapely.box(1, 1, 2, 2), None, shapely.box(8, 1, 9, 2)], ids=["a", "b", "c"],
        classification=["Tumor: Positive", "Tumor: Negative", "Tumor: Positive"],
        measurements={"Nucleus: Area": [1, 2, 3.5]}, metadata=[{"k": "v"}, None, None],
    )  # fmt: skip
    save_objects(path, cells)
    return path


def test_geopandas(saved):
    table = gpd.read_parquet(saved)
    assert table.index.tolist() == ["a", "b", "c"]
    assert table.geometry.area.tolist() == [12, 12, 3]
    assert gpd.GeoSeries(table["nucleus"]).dropna().area.tolist() == [1, 1]
    assert json.loads(table["metadata"].iloc[0]) == {"k": "v"}


def test_pyarrow_and_pandas(saved):
    schema = json.loads(pq.read_schema(saved).metadata[b"geo"])
    assert schema["primary_column"] == "geometry"
    assert {name: column["encoding"] for name, column in schema["columns"].items()} == {
        "geometry": "WKB", "nucleus": "WKB",
    }  # fmt: skip
    table = pd.read_parquet(saved)
    assert table["Nucleus: Area"].tolist() == [1, 2, 3.5]
    assert table["classification"].value_counts().to_dict() == {"Tumor: Positive": 2, "Tumor: Negative": 1}
    assert shapely.from_wkb(table["geometry"].iloc[2]).bounds == (8, 0, 9, 3)


def test_duckdb(saved):
    duckdb = pytest.importorskip("duckdb", reason="duckdb is not installed")
    query = """select classification, count(*), sum("Nucleus: Area") from read_parquet(?) group by 1 order by 1"""
    with duckdb.connect() as connection:
        rows = connection.execute(query, [str(saved)]).fetchall()
        columns = [
            row[0] for row in connection.execute("describe select * from read_parquet(?)", [str(saved)]).fetchall()
        ]
    assert rows == [("Tumor: Negative", 1, 2.0), ("Tumor: Positive", 2, 4.5)]
    assert {"geometry", "nucleus", "object_type", "id"} <= set(columns)
