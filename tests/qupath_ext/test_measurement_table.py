"""Measurement tables: names, order and values as in QuPath."""

import csv
import gzip
import json
import math
import os
import subprocess
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import shapely

from pyhisto.errors import ObjectTableError
from pyhisto.objects import concat_objects, make_objects
from qupath_ext.errors import FormatError
from qupath_ext.exchange.geojson import parse_geojson, write_geojson
from qupath_ext.exchange.measurement_table import image_summary, measurement_table, write_measurements
from qupath_ext.native.roi import ellipse

MPP = (0.5, 0.25)


def cells(classes, *, x=5, **columns):
    """Squares of 2 px in a row, 10 px apart, the first around (x, 5)."""
    at = [x + 10 * i for i in range(len(classes))]
    return make_objects(
        [shapely.box(c - 1, 4, c + 1, 6) for c in at], object_type="cell", classification=classes, **columns
    )


def slide():
    """An annotation with a name around the first four of six cells, one with a class around none, a line and points."""
    annotations = make_objects(
        [shapely.box(0, 0, 40, 10), shapely.box(0, 50, 10, 60), shapely.LineString([(0, 0), (6, 8)]),
         shapely.MultiPoint([(1, 2), (3, 4), (5, 9)])],
        object_type="annotation", classification=[None, "Tumor", None, None], name=["Region 1", None, None, None],
        measurements={"mine": [7, np.nan, np.nan, np.nan]}, metadata=[{"who": "me", "_hidden": "x"}, None, None, None],
    )  # fmt: skip
    six = cells(
        ["Positive", "Negative", "Negative", None, "Positive", "Positive"],
        parent_id=[annotations.index[0]] * 4 + [None] * 2, measurements={"Nucleus: Area": np.arange(6.0)},
    )  # fmt: skip
    return concat_objects([annotations, six])


# ---------------------------------------------------------------------- columns
def test_annotations_as_in_qupath_0_6():
    table = measurement_table(slide(), "annotation", image="a.svs", mpp=MPP)
    assert list(table.columns) == [
        "Image", "Object ID", "Object type", "Name", "Classification", "Parent", "ROI", "Centroid X µm",
        "Centroid Y µm", "Num points", "Area µm^2", "Perimeter µm", "Length µm", "Num Detections", "Num Negative",
        "Num Positive", "Positive %", "Num Positive per mm^2", "who", "mine",
    ]  # fmt: skip
    assert table["Image"].tolist() == ["a.svs"] * 4
    assert table["Object ID"].tolist() == slide_ids(table)
    assert table["Object type"].tolist() == ["Annotation"] * 4
    assert table["Name"].tolist() == ["Region 1", None, None, None]
    assert table["Classification"].tolist() == [None, "Tumor", None, None]
    assert table["Parent"].tolist() == ["Root object (Image)"] * 4
    assert table["ROI"].tolist() == ["Rectangle", "Rectangle", "Line", "Points"]
    assert table["Centroid X µm"].tolist() == [10, 2.5, 1.5, 1.5]
    assert table["Centroid Y µm"].tolist() == [1.25, 13.75, 1, 1.25]
    np.testing.assert_array_equal(table["Num points"], [np.nan, np.nan, np.nan, 3])
    np.testing.assert_allclose(table["Area µm^2"], [50, 12.5, np.nan, np.nan])  # 20 x 2.5 and 5 x 2.5 µm
    np.testing.assert_allclose(table["Perimeter µm"], [45, 15, np.nan, np.nan])
    np.testing.assert_allclose(table["Length µm"], [np.nan, np.nan, math.hypot(3, 2), np.nan])
    assert table["Num Detections"].tolist() == [4, 0, 0, 0]
    assert table["Num Negative"].tolist() == [2, 0, 0, 0]
    assert table["Num Positive"].tolist() == [1, 0, 0, 0]
    np.testing.assert_allclose(table["Positive %"], [100 / 3, np.nan, np.nan, np.nan])
    np.testing.assert_allclose(table["Num Positive per mm^2"], [1 / 50e-6, 0, np.nan, np.nan])
    np.testing.assert_array_equal(table["mine"], [7, np.nan, np.nan, np.nan])


def slide_ids(table):
    assert table["Object ID"].is_unique
    return table["Object ID"].tolist()


def test_annotations_as_in_qupath_0_5():
    table = measurement_table(slide(), "annotation", image="a.svs", layout="0.5")
    assert list(table.columns) == [
        "Image", "Object ID", "Object type", "Name", "Classification", "Parent", "ROI", "Centroid X px",
        "Centroid Y px", "who", "mine", "Num Detections", "Num Negative", "Num Positive", "Positive %",
        "Num Positive per px^2", "Num points", "Area px^2", "Perimeter px", "Length px",
    ]  # fmt: skip
    assert table["Area px^2"].iloc[0] == 400
    assert table["Num Positive per px^2"].iloc[0] == 1 / 400


def test_detections_have_no_live_values():
    objects = concat_objects([slide(), make_objects([shapely.Point(1, 1)], object_type="detection")])
    table = measurement_table(objects, "detection", image="i")
    assert list(table.columns) == [
        "Image", "Object ID", "Object type", "Name", "Classification", "Parent", "ROI", "Centroid X px",
        "Centroid Y px", "Nucleus: Area",
    ]  # fmt: skip
    assert table["Object type"].tolist() == ["Cell"] * 6 + ["Detection"]
    assert table["Parent"].tolist() == ["Region 1"] * 4 + ["Root object (Image)"] * 3
    assert len(measurement_table(objects, "cell", image="i")) == 6
    assert len(measurement_table(objects, "tile", image="i")) == 0


def test_the_whole_image():
    table = measurement_table(slide(), "image", image="i", mpp=MPP)
    assert table.to_dict("records") == [
        {
            "Image": "i", "Object type": "Root object (Image)", "Name": None, "Num Detections": 6, "Num Negative": 2,
            "Num Positive": 3, "Positive %": 60.0,
        }
    ]  # fmt: skip


def test_tma_cores():
    shapes = [ellipse(0, 0, 40, 10), ellipse(100, 0, 140, 10)]
    cores = make_objects(
        shapes, object_type="tma_core", name=["A-1", "A-2"], missing=[False, True], metadata=[{"Case ID": "7"}, None]
    )
    tissue = make_objects([shapely.box(0, 0, 20, 10)], object_type="annotation", parent_id=cores.index[0])
    some = cells(["Positive", "Negative"], x=15, parent_id=tissue.index[0])
    objects = concat_objects([cores, tissue, some])
    table = measurement_table(objects, "tma_core", image="i", mpp=(1, 1))
    assert list(table.columns) == [
        "Image", "Object ID", "Object type", "Name", "Missing core", "Centroid X µm", "Centroid Y µm", "Num Detections",
        "Num Negative", "Num Positive", "Positive %", "Num Positive per mm^2", "Case ID",
    ]  # fmt: skip
    assert table["Missing core"].tolist() == ["false", "true"]
    assert table["Num Detections"].tolist() == [2, 0]
    np.testing.assert_allclose(table["Num Positive per mm^2"], [1 / 200e-6, np.nan])  # area of the one annotation in it
    inside = measurement_table(objects, "cell", image="i")
    assert inside["TMA Core"].tolist() == ["A-1"] * 2
    assert inside["Parent"].tolist() == ["A-1 - Annotation"] * 2
    assert "TMA core" in measurement_table(objects, "cell", image="i", layout="0.5")


def test_planes():
    objects = make_objects([shapely.box(0, 0, 9, 9)] * 2, object_type="annotation", plane=[None, (-1, 3, 0)])
    on_plane = make_objects([shapely.box(1, 1, 2, 2)] * 3, object_type="tile", plane=[None, (-1, 3, 0), (-1, 3, 0)])
    table = measurement_table(concat_objects([objects, on_plane]), "annotation", image="i")
    assert table["Z-slice"].tolist() == [0, 3]
    assert "Timepoint" not in table
    assert table["Num Detections"].tolist() == [1, 2]


def test_roi_names_and_ellipses():
    ring = shapely.box(0, 0, 9, 9).difference(shapely.box(2, 2, 4, 4))
    turned = shapely.Polygon([(0, 1), (1, 0), (2, 1), (1, 2)])
    shapes = [
        *(shapely.box(0, 0, 4, 2), shapely.Polygon([(0, 0), (4, 0), (0, 3)]), ellipse(0, 0, 8, 4), ring),
        *(shapely.MultiPolygon([ring, shapely.box(20, 20, 21, 21)]), shapely.Point(1, 1), turned),
        *(shapely.LineString([(0, 0), (1, 1), (2, 0)]), None),
    ]
    objects = make_objects(shapes, object_type="annotation", allow_missing=True)
    table = measurement_table(objects, "annotation", image="i", mpp=(2, 2))
    assert table["ROI"].tolist() == [
        "Rectangle", "Polygon", "Ellipse", "Geometry", "Geometry", "Points", "Polygon", "Polyline", None,
    ]  # fmt: skip
    assert table["Area µm^2"].iloc[2] == pytest.approx(math.pi * 8 * 4)
    assert table["Perimeter µm"].iloc[2] == pytest.approx(38.754, abs=1e-3)  # half axes 4 and 8: 4 a E(3/4) = 38.7538
    assert table["Area µm^2"].iloc[3] == (81 - 4) * 4
    assert table["Perimeter µm"].iloc[3] == (36 + 8) * 2
    assert table["Centroid X µm"].isna().tolist() == [False] * 8 + [True]


# ---------------------------------------------------------------------- live values
def live(classes):
    return measurement_table(cells(classes), "image", image="i").iloc[0, 3:]


def test_intensity_classes():
    # 1 x 1+, 2 x 2+, 3 x 3+, 4 negative: 60 % positive; H = (1 + 4 + 9) / 10 * 100; mean intensity 14 / 6 = 2.33...
    values = live(["1+"] + ["2+"] * 2 + ["3+"] * 3 + ["Negative"] * 4)
    assert values.to_dict() == {
        "Num Detections": 10, "Num 1+": 1, "Num 2+": 2, "Num 3+": 3, "Num Negative": 4, "Positive %": 60.0,
        "H-score": 140.0, "Allred proportion": 4, "Allred intensity": 2, "Allred score": 6,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("positive", "negative", "proportion", "intensity"),
    [(0, 5, 0, 0), (1, 199, 1, 3), (1, 99, 2, 3), (1, 9, 3, 3), (1, 2, 4, 3), (2, 1, 5, 3)],
)
def test_allred_proportion(positive, negative, proportion, intensity):
    values = live(["3+"] * positive + ["Negative"] * negative + ["Other: 1+"])
    assert (values["Allred proportion"], values["Allred intensity"]) == (proportion, intensity) if positive else True
    assert values["Other: Allred score"] == 6


def test_derived_classes_and_their_base():
    values = live(
        ["Tumor: Positive", "Tumor: Negative", "Tumor: Negative", "Stroma: Positive", "Tumor", "Positive", None]
    )
    assert values.to_dict() == {
        "Num Detections": 7, "Num Stroma (base)": 1, "Num Tumor (base)": 4, "Num Positive": 1,
        "Num Stroma: Positive": 1, "Num Tumor": 1, "Num Tumor: Negative": 2, "Num Tumor: Positive": 1,
        "Tumor: Positive %": pytest.approx(100 / 3), "Stroma: Positive %": 100.0, "Positive %": 100.0,
        " + Stroma + Tumor: Positive %": 60.0,
    }  # fmt: skip


def test_an_image_without_detections():
    objects = slide().iloc[:4]
    assert list(measurement_table(objects, "image", image="i").columns) == ["Image", "Object type", "Name"]
    assert "Num Detections" not in measurement_table(objects, "annotation", image="i")
    empty = measurement_table(objects.iloc[:0], "annotation", image="i")
    assert len(empty) == 0
    assert list(empty.columns)[:3] == ["Image", "Object ID", "Object type"]


def test_what_is_not_known():
    with pytest.raises(ObjectTableError, match="'nuclei' of a table; expected one of annotation, detection"):
        measurement_table(slide(), "nuclei", image="i")
    with pytest.raises(ObjectTableError, match=r"'0\.1' of a table; expected one of 0\.6, 0\.5"):
        measurement_table(slide(), "image", image="i", layout="0.1")


# ---------------------------------------------------------------------- one row for an image
def test_summary_of_an_image():
    tumor = make_objects([shapely.box(0, 50, 15, 60), shapely.box(10, 50, 20, 60)], object_type="annotation",
                         classification="Tumor")  # fmt: skip
    row = image_summary(concat_objects([slide(), tumor]), image="i", mpp=MPP).iloc[0].to_dict()
    assert row == {
        "Image": "i", "Num Annotations": 6, "Num Detections": 6, "Num Negative": 2, "Num Positive": 3,
        "Positive %": 60.0, "Area µm^2: Tumor": 200 * 0.125, "Area µm^2: Unclassified": 400 * 0.125,
    }  # fmt: skip


def test_published_counts_of_qupath(shared_dir):
    """Cells of QuPath 0.5.1 against the published table of 0.3.2, which agree within 1 %."""
    lines = (shared_dir / "data/slides/OS-2-ndpi-results.tsv").read_text().splitlines()
    rows = list(csv.DictReader(lines, delimiter="\t"))
    for threshold in ("0.2", "0.4"):
        path = shared_dir / f"golden/os2_qupath_cells/OS-2-ndpi_threshold{threshold}.json.gz"
        found = json.loads(gzip.decompress(path.read_bytes()))["cells"]
        objects = make_objects(
            [shapely.Polygon(cell["polygon"]) for cell in found], object_type="cell",
            classification=[cell["class"] for cell in found],
        )  # fmt: skip
        row = image_summary(objects, image="OS-2-ndpi").iloc[0]
        published = [r for r in rows if float(r["Detection threshold"]) == float(threshold)]
        assert row["Num Detections"] == pytest.approx(int(published[0]["Num cells"]), rel=0.01)
        assert min(abs(row["Positive %"] - float(r["Positive %"])) for r in published) < 0.3


# ---------------------------------------------------------------------- files
@pytest.mark.parametrize(("ending", "separator"), [(".csv", ","), (".tsv", "\t"), (".txt", "\t")])
def test_a_file_of_two_images(ending, separator, tmp_path):
    first = measurement_table(slide(), "annotation", image='the "first", of two', mpp=MPP)
    second = measurement_table(slide().iloc[:2].assign(other=5.0), "annotation", image="second\tµ")
    path = tmp_path / f"table{ending}"
    write_measurements(path, [first, second])
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter=separator))
    assert [row["Image"] for row in rows] == ['the "first", of two'] * 4 + ["second\tµ"] * 2
    assert list(rows[0]) == list(dict.fromkeys([*first.columns, *second.columns]))
    assert rows[0]["Positive %"] == repr(100 / 3)
    assert rows[1]["Positive %"] == "NaN"
    assert rows[1]["Name"] == ""
    assert rows[4]["Centroid X µm"] == ""
    assert rows[4]["Area px^2"] == "400.0"
    again = pd.read_csv(path, sep=separator)
    assert again["Num Detections"].iloc[:4].tolist() == [4, 0, 0, 0]
    assert list(tmp_path.iterdir()) == [path]


def test_unknown_endings(tmp_path):
    with pytest.raises(FormatError, match=r"file name 'x\.xlsx'; expected an ending among \.csv"):
        write_measurements(tmp_path / "x.xlsx", [])


# ---------------------------------------------------------------------- QuPath's own values
JAVA_PROGRAM = """
import java.awt.image.BufferedImage;
import java.nio.file.*;
import java.util.*;
import qupath.lib.images.ImageData;
import qupath.lib.images.servers.*;
import qupath.lib.io.PathIO;
import qupath.lib.lazy.interfaces.LazyValue;
import qupath.lib.lazy.objects.PathObjectLazyValues;
import qupath.lib.objects.*;
import qupath.lib.objects.classes.PathClass;

class LiveValues {
  public static void main(String[] args) throws Exception {
    var server = new WrappedBufferedImageServer("image", new BufferedImage(100, 100, BufferedImage.TYPE_INT_RGB));
    server.setMetadata(new ImageServerMetadata.Builder(server.getMetadata())
      .pixelSizeMicrons(Double.parseDouble(args[2]), Double.parseDouble(args[3])).build());
    var data = new ImageData<BufferedImage>(server);
    data.getHierarchy().addObjects(PathIO.readObjects(Path.of(args[0])));
    var values = new ArrayList<LazyValue<PathObject, ?>>(List.of(
      PathObjectLazyValues.OBJECT_ID, PathObjectLazyValues.OBJECT_TYPE,
      PathObjectLazyValues.PARENT_DISPLAYED_NAME, PathObjectLazyValues.ROI_TYPE,
      PathObjectLazyValues.createROICentroidX(data), PathObjectLazyValues.createROICentroidY(data),
      PathObjectLazyValues.ROI_NUM_POINTS, PathObjectLazyValues.createROIAreaMeasurement(data),
      PathObjectLazyValues.createROIPerimeterMeasurement(data), PathObjectLazyValues.createROILengthMeasurement(data),
      PathObjectLazyValues.createDetectionCountMeasurement(data)));
    var tumor = PathClass.fromString("Tumor");
    for (var name : args[4].split(","))
      values.add(PathObjectLazyValues.createExactClassCountsMeasurement(data, PathClass.fromString(name)));
    values.add(PathObjectLazyValues.createBaseClassCountsMeasurement(data, tumor));
    var groups = List.of(new PathClass[] {null}, new PathClass[] {tumor}, new PathClass[] {null, tumor});
    for (var group : groups) {
      values.add(PathObjectLazyValues.createPositivePercentageMeasurement(data, group));
      values.add(PathObjectLazyValues.createHScoreMeasurement(data, group));
      values.add(PathObjectLazyValues.createAllredProportionMeasurement(data, () -> 0.0, group));
      values.add(PathObjectLazyValues.createAllredIntensityMeasurement(data, () -> 0.0, group));
      values.add(PathObjectLazyValues.createAllredMeasurement(data, () -> 0.0, group));
    }
    values.add(PathObjectLazyValues.createDetectionClassDensityMeasurement(data, PathClass.fromString("Positive")));
    var lines = new ArrayList<String>();
    lines.add(String.join("\\t", values.stream().map(v -> v.getName()).toList()));
    for (var object : data.getHierarchy().getAnnotationObjects())
      lines.add(String.join("\\t", values.stream().map(v -> "" + v.getValue(object)).toList()));
    Files.write(Path.of(args[1]), lines);
  }
}
"""


@pytest.mark.qupath
def test_values_are_those_of_qupath(tmp_path):
    installation = os.environ.get("PAQUO_QUPATH_DIR")
    if installation is None:
        pytest.skip("PAQUO_QUPATH_DIR is not set")
    java = Path(installation) / "lib/runtime/bin/java"
    if not java.exists():
        java = Path(os.environ.get("JAVA_HOME", "/usr")) / "bin/java"
    classes = ["Positive", "Negative", "1+", "2+", "3+", "Tumor", "Tumor: Positive", "Tumor: Negative", "Tumor: 2+"]
    random = np.random.default_rng(3)
    spots = make_objects(
        [shapely.Point(p).buffer(3, 3) for p in random.uniform(0, 1000, (800, 2))], object_type="detection",
        classification=[None if i == len(classes) else classes[i] for i in random.integers(0, len(classes) + 1, 800)],
    )  # fmt: skip
    blob = shapely.Point(500, 500).buffer(300, 5).difference(shapely.box(400, 400, 550, 500))
    line = shapely.LineString([(0, 0), (9, 8), (40, 1)])
    shapes = [
        *(shapely.box(0, 0, 700, 600), blob, ellipse(100, 100, 500, 350), line),
        *(shapely.MultiPolygon([blob, shapely.box(900, 900, 999, 999)]), shapely.MultiPoint([(1, 2), (3, 5), (9, 9)])),
    ]
    objects = concat_objects([make_objects(shapes, object_type="annotation", name=list("abcdef")), spots])
    write_geojson(tmp_path / "o.geojson", objects)
    objects = parse_geojson((tmp_path / "o.geojson").read_bytes())
    (tmp_path / "LiveValues.java").write_text(JAVA_PROGRAM)
    command = [
        *(str(java), "-cp", str(Path(installation) / "lib/app/*"), str(tmp_path / "LiveValues.java")),
        *(str(tmp_path / "o.geojson"), str(tmp_path / "seen.tsv"), "0.5", "0.25", ",".join(classes)),
    ]
    result = subprocess.run(command, check=False, capture_output=True, text=True)
    if "qupath.lib.lazy" in result.stderr + result.stdout:
        pytest.skip("QuPath 0.5 and older have these values only in their user interface")
    assert result.returncode == 0, result.stderr
    seen = pd.read_csv(tmp_path / "seen.tsv", sep="\t", na_values=["null"]).set_index("Object ID")
    ours = measurement_table(objects, "annotation", image="i", mpp=(0.5, 0.25)).set_index("Object ID")
    assert len(seen.columns) > 35
    assert set(seen.columns) <= set(ours.columns)
    assert [name for name in ours.columns if name in seen.columns][:9] == list(seen.columns)[:9]
    for name in seen.columns:
        expected = seen.loc[ours.index, name]
        if expected.dtype.kind in "fi":
            np.testing.assert_allclose(ours[name].to_numpy(float), expected.to_numpy(float), rtol=2e-5, err_msg=name)
        else:
            assert ours[name].tolist() == expected.tolist()
