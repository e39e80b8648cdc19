"""What QuPath's own classes see in projects that were written without them."""

import json
import math
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import shapely

from pyhisto.objects import concat_objects, make_objects
from qupath_ext.project import Stains, TmaGrid, create_project, open_project, pack_rgb

SHARED = Path(__file__).parents[2] / ".." / "shared"
SLIDE = SHARED / "data/slides/CMU-1-Small-Region.svs"
PROGRAM = SHARED / "tools/QpExport.java"
QUPATH = os.environ.get("PAQUO_QUPATH_DIR")
JAVA = str(Path(os.environ["JAVA_HOME"]) / "bin/java") if "JAVA_HOME" in os.environ else shutil.which("java")

pytestmark = [
    pytest.mark.qupath,
    pytest.mark.skipif(QUPATH is None, reason="PAQUO_QUPATH_DIR is not set"),
    pytest.mark.skipif(JAVA is None, reason="there is no Java"),
    pytest.mark.skipif(not PROGRAM.exists() or not SLIDE.exists(), reason="the dump program or the slide is not here"),
]


def seen_by_qupath(project, out):
    """The dump of every image, by entry id."""
    jars = str(Path(QUPATH) / "lib/app/*")
    command = [JAVA, "-cp", jars, str(PROGRAM), str(project.path), "--no-server", "--out", str(out)]
    result = subprocess.run(command, check=False, capture_output=True, text=True)
    if result.returncode and "class file has wrong version" in result.stderr + result.stdout:
        pytest.skip("this Java is too old for this QuPath; set JAVA_HOME")
    assert result.returncode == 0, result.stderr
    return json.loads(out.read_text())


def assert_seen(table, image):
    assert image["nObjects"] == len(table)
    assert [o["id"] for o in image["objects"]] == list(table.index)
    for seen, (_, row) in zip(image["objects"], table.iterrows(), strict=True):
        assert seen["kind"] == row["object_type"]
        assert (None if seen["parent"] == "ROOT" else seen["parent"]) == row["parent_id"]
        named = seen["pathClass"]["string"] if seen["pathClass"] else None
        assert named == (row["classification"] if isinstance(row["classification"], str) else None)
        assert (seen["name"], seen["locked"]) == (row["name"], row["locked"])
        assert (seen["color"]["int"] if seen["color"] else None) == (None if pd.isna(row["color"]) else row["color"])
        assert repr(seen["classProbability"]) == repr(float(row.get("class_probability", math.nan)))
        assert seen["metadata"] == (row["metadata"] or {})
        shape = shapely.from_wkt(seen["roi"]["wkt"])
        assert seen["roi"]["valid"]
        assert shape.geom_type == row["geometry"].geom_type
        assert shapely.hausdorff_distance(shape, row["geometry"]) < 0.02
        assert (seen.get("nucleusROI") is None) == (row["nucleus"] is None)
        for name, value in seen["measurements"]:
            assert value == row[name] or (math.isnan(value) and math.isnan(row[name]))


@pytest.fixture
def project(tmp_path):
    classes = {"Tumor": pack_rgb(200, 0, 0), "Neu: ü": pack_rgb(1, 2, 3)}
    project = create_project(tmp_path / "Projekt für QuPath", classes=classes, backend="native")
    project.add_image(SLIDE.resolve(), name="Schnitt ä", metadata={"Fall": "7"}, description="zwei\nZeilen")
    return project


def everything(n=60):
    hole = shapely.box(0, 0, 500, 500).difference(shapely.box(100, 100, 200, 200))
    shapes = [
        *(shapely.box(10, 10, 1000, 1000), hole, shapely.MultiPolygon([hole, shapely.box(600, 600, 700, 700)])),
        *(shapely.Point(1.5, 2), shapely.MultiPoint([(1, 2), (3, 4)]), shapely.LineString([(0, 0), (7, 8)])),
        *(shapely.LineString([(0, 0), (7, 8), (9, 1)]), shapely.MultiLineString([[(0, 0), (7, 8)], [(1, 1), (2, 2)]])),
    ]
    m = len(shapes)
    annotations = make_objects(
        shapes,
        object_type="annotation",
        classification=["Tumor", "Neu: ü", *[None] * (m - 2)],
        name=["Ä 😐", *[None] * (m - 1)],
        color=[-65536, *[None] * (m - 1)],
        locked=[True, *[False] * (m - 1)],
        metadata=[{"ANNOTATION_DESCRIPTION": "a\nb"}, *[None] * (m - 1)],
        measurements={"third": [1 / 3, *[np.nan] * (m - 1)]},
    )
    centres = np.random.default_rng(1).integers(20, 980, (n, 2))
    cells = make_objects(
        [shapely.Point(p).buffer(9, 4) for p in centres],
        object_type="cell",
        nucleus=[None if i % 4 == 3 else shapely.Point(p).buffer(4, 3) for i, p in enumerate(centres)],
        classification=[("Tumor: Positive", "Tumor: Negative", None)[i % 3] for i in range(n)],
        parent_id=annotations.index[0],
        measurements={"Nucleus: Area": np.arange(n) / 4, "odd": np.where(np.arange(n) % 2, 1, np.nan)},
    )
    tiles = make_objects([shapely.box(i, 0, i + 8, 8) for i in range(20)], object_type="tile", measurements={"p": 0.5})
    points = make_objects([shapely.Point(i, 3) for i in range(20)], object_type="detection")
    return concat_objects([annotations, cells, tiles, points])


def test_a_new_project(project, tmp_path):
    entry = project.entries[0]
    table = everything()
    entry.write_objects(table)
    seen = seen_by_qupath(project, tmp_path / "seen.json")
    assert [c["string"] for c in seen["project"]["pathClasses"]] == ["Tumor", "Neu: ü"]
    image = seen["images"][0]
    assert image["imageName"] == "Schnitt ä"
    assert image["metadata"] == {"Fall": "7"}
    assert image["description"] == "zwei\nZeilen"
    assert image["imageType"] == "BRIGHTFIELD_H_DAB"
    assert "0.65111 0.70119 0.29049" in image["stains"]["string"]
    assert image["thumbnail"] == [449, 600]
    assert_seen(entry.read_objects(), image)


def test_objects_removed_and_locked(project, tmp_path):
    entry = project.entries[0]
    table = everything()
    entry.write_objects(table)
    cells = table.index[table["object_type"] == "cell"]
    entry.write_objects(remove=[*cells[:20], table.index[1]], lock=[table.index[0], cells[30]])
    image = seen_by_qupath(project, tmp_path / "seen.json")["images"][0]
    assert len(image["objects"]) == len(table) - 21
    assert_seen(entry.read_objects(), image)


@pytest.mark.parametrize("version", ["v0.5.1", "v0.6.0"])
@pytest.mark.parametrize("kind", ["conn", "tma"])
def test_a_changed_project_of_qupath(version, kind, tmp_path):
    project = writable_copy(SHARED / "golden" / version / kind, tmp_path / kind)
    entry = project.entries[0]
    before = seen_by_qupath(project, tmp_path / "before.json")["images"][0]
    entry.write_objects(everything())
    gone = [i for i in entry.read_objects().index if i.startswith("0000000c")]
    entry.write_objects(remove=gone)
    after = seen_by_qupath(project, tmp_path / "after.json")["images"][0]

    def facts(image):
        return {
            o["id"]: repr({k: v for k, v in o.items() if k not in ("index", "nChildren")}) for o in image["objects"]
        }

    def values(properties):
        return {key: (kind, value.split("@")[0]) for key, (kind, value) in properties.items()}

    kept = facts(after)
    for object_id, seen in facts(before).items():
        assert object_id in gone or kept[object_id] == seen  # repr: NaN is not equal to itself
    assert repr(before["workflow"]) == repr(after["workflow"])
    assert values(before["properties"]) == values(after["properties"])
    assert before["tmaGrid"] == after["tmaGrid"]
    assert len(after["objects"]) == len(before["objects"]) + len(everything()) - len(gone)


def writable_copy(source, target):
    shutil.copytree(source, target)
    for path in [target, *target.rglob("*")]:
        path.chmod(0o755)
    return open_project(target, backend="native")


def test_updated_objects(project, tmp_path):
    entry = project.entries[0]
    table = everything()
    table["class_probability"] = np.where(table["object_type"] == "cell", 0.625, np.nan)
    entry.write_objects(table)
    cells = table.index[table["object_type"] == "cell"]
    n = len(cells)
    boxes = [shapely.box(i, i, i + 4, i + 3.5) for i in range(n)]
    columns = pd.DataFrame(index=cells)
    columns["classification"] = ["Stroma" if i % 2 else None for i in range(n)]
    columns["locked"] = np.arange(n) % 5 == 0
    columns["geometry"], columns["nucleus"] = boxes, [None] * n
    columns["new"], columns["odd"] = np.arange(n) / 8, np.where(np.arange(n) % 3, 2.5, np.nan)
    first = pd.DataFrame(index=table.index[:2])
    first["name"], first["color"] = ["neu", None], pd.array([None, -16776961], dtype="Int64")
    first["geometry"] = [shapely.Point(3, 4), shapely.box(0, 0, 7, 7).buffer(1)]
    first["metadata"] = [{"ANNOTATION_DESCRIPTION": "c"}, {"k": "v"}]
    first["class_probability"] = [0.125, np.nan]
    with entry.edit() as change:
        change.update(columns)
        change.update(first)
        change.update(pd.DataFrame({"p": 7.5}, index=table.index[table["object_type"] == "tile"]))
    assert change.counts.updated == n + 2 + 20
    image = seen_by_qupath(project, tmp_path / "seen.json")["images"][0]
    found = entry.read_objects()
    assert_seen(found, image)
    assert set(found.index) == set(table.index)
    seen = {o["id"]: o for o in image["objects"]}
    one, two = seen[cells[1]], seen[table.index[0]]
    assert (one["pathClass"]["string"], one["classProbability"]) == ("Stroma", 0.625)
    assert dict(one["measurements"]) == {"Nucleus: Area": 0.25, "odd": 2.5, "new": 0.125}
    assert (two["name"], two["description"], two["classProbability"]) == ("neu", "c", 0.125)
    assert two["roi"]["wkt"] == "POINT (3 4)"


@pytest.mark.parametrize("version", ["v0.5.1", "v0.6.0"])
def test_thousands_of_cells_of_qupath_updated_at_once(version, tmp_path):
    project = writable_copy(SHARED / "golden" / version / "cells/project", tmp_path / "cells")
    entry = project.entries[0]
    table = entry.read_objects()
    cells = table.index[table["object_type"] == "cell"]
    change = pd.DataFrame({"score": np.arange(len(cells)) / 4, "classification": "Tumor"}, index=cells)
    change["locked"] = True
    with entry.edit() as edit:
        edit.update(change)
    image = seen_by_qupath(project, tmp_path / "seen.json")["images"][0]
    found = entry.read_objects()
    assert list(found.index) == list(table.index)
    assert (found.loc[cells, "score"] == np.arange(len(cells)) / 4).all()
    assert [o["id"] for o in image["objects"]] == list(found.index)
    for seen, (_, row) in zip(image["objects"], found.iterrows(), strict=True):
        if seen["kind"] == "cell":
            assert (seen["pathClass"]["string"], seen["locked"]) == ("Tumor", True)
            assert len(seen["measurements"]) == 42
            assert dict(seen["measurements"])["score"] == row["score"]
            assert dict(seen["measurements"])["Nucleus: Area"] == row["Nucleus: Area"]


def test_a_tma_grid_and_another_image_type(project, tmp_path):
    entry = project.entries[0]
    cores = make_objects(
        [shapely.Point(200 * x + 100, 200 * y + 100).buffer(80, 25) for y in range(2) for x in range(3)],
        object_type="tma_core",
        name=["A-1", "A-2", "A-3", "B-1", "B-2", "B-3"],
        missing=[False] * 5 + [True],
        metadata=[{"Case ID": f"Fall {i}"} for i in range(6)],
        measurements={"Score": np.arange(6) / 3},
    )
    inside = make_objects([shapely.box(90, 90, 110, 110)], object_type="annotation", parent_id=cores.index[0])
    with entry.edit() as change:
        change.add(cores)
        change.add(inside)
        change.set_tma_grid(TmaGrid(3, 2, tuple(cores.index)))
        change.set_image_type("BRIGHTFIELD_H_E", Stains("mine", "H", (0.6, 0.7, 0.3), "E", (0.2, 0.8, 0.5)))
    image = seen_by_qupath(project, tmp_path / "seen.json")["images"][0]
    assert image["tmaGrid"] == {"width": 3, "height": 2, "cores": list(cores["name"])}
    assert image["imageType"] == "BRIGHTFIELD_H_E"
    assert image["stains"]["name"] == "mine"
    # (0.2, 0.8, 0.5) over its length, the root of 0.93
    assert "0.20739 0.82956 0.51848" in image["stains"]["string"]
    seen = [o for o in image["objects"] if o["class"] == "TMACoreObject"]
    assert [o["missing"] for o in seen] == [False] * 5 + [True]
    assert [o["caseID"] for o in seen] == [f"Fall {i}" for i in range(6)]
    assert [dict(o["measurements"])["Score"] for o in seen] == (np.arange(6) / 3).tolist()
    assert {o["roi"]["class"] for o in seen} == {"EllipseROI"}
    assert next(o for o in image["objects"] if o["kind"] == "annotation")["parent"] == cores.index[0]
    with entry.edit() as change:
        change.set_image_type("FLUORESCENCE")
        change.update(pd.DataFrame({"missing": [True], "name": ["X"]}, index=cores.index[:1]))
    image = seen_by_qupath(project, tmp_path / "again.json")["images"][0]
    assert (image["imageType"], image["stains"]) == ("FLUORESCENCE", None)
    assert image["tmaGrid"]["cores"][0] == "X"
    assert len(image["objects"]) == 7


def test_images_updated_and_removed(project, tmp_path):
    gone = project.add_image(SLIDE.resolve(), name="gone")
    last = project.add_image(SLIDE.resolve(), name="last")
    last.update(name="letztes", description=None, metadata={"a": "b"}, tags=["eins", "zwei"], mpp=(0.25, 0.5))
    project.remove_image(gone, delete_data=True)
    seen = seen_by_qupath(project, tmp_path / "seen.json")
    first, second = seen["images"]
    assert (first["imageName"], second["imageName"], second["entryID"]) == ("Schnitt ä", "letztes", "3")
    assert second["metadata"] == {"a": "b"}
    assert second["description"] is None
    assert second["tags"] in (["eins", "zwei"], None)  # QuPath 0.5 has none
    calibration = second["serverBuilder"]["metadata"]["pixelCalibration"]
    assert calibration["pixelWidth"] == {"value": 0.25, "unit": "µm"}
    assert calibration["pixelHeight"] == {"value": 0.5, "unit": "µm"}
    assert second["imageType"] == "BRIGHTFIELD_H_DAB"
    assert second["readError"] is None
