"""What QuPath's own classes see in projects that were written without them."""

import json
import math
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import shapely

from pyhisto.objects import concat_objects, make_objects
from qupath_ext.project import create_project, open_project, pack_rgb

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
    project = create_project(tmp_path / "Projekt für QuPath", classes=classes)
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
    folder = tmp_path / kind
    shutil.copytree(SHARED / "golden" / version / kind, folder)
    for path in [folder, *folder.rglob("*")]:
        path.chmod(0o755)
    project = open_project(folder)
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
