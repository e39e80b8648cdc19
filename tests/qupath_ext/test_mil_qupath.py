"""Attention in a project as QuPath's core sees and saves it, and what undo leaves of that."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shapely
import torch
from click.testing import CliRunner

from pyhisto.features.bags import write_bag
from pyhisto.mil.bundle import SlideSpec, save_slide_bundle
from pyhisto.mil.labels import Task
from pyhisto.mil.model import build_slide_model
from pyhisto.models.mil import HeadSettings
from pyhisto.objects import make_objects
from qupath_ext.cli import main
from qupath_ext.project import Project, create_project, open_project

QUPATH = os.environ.get("PAQUO_QUPATH_DIR")
JAVA = str(Path(os.environ["JAVA_HOME"]) / "bin/java") if "JAVA_HOME" in os.environ else shutil.which("java")

pytestmark = [
    pytest.mark.qupath,
    pytest.mark.skipif(QUPATH is None, reason="PAQUO_QUPATH_DIR is not set"),
    pytest.mark.skipif(JAVA is None, reason="there is no Java"),
]

PROGRAM = """
import com.google.gson.GsonBuilder;
import java.awt.image.BufferedImage;
import java.io.File;
import java.util.*;
import qupath.lib.objects.*;
import qupath.lib.objects.classes.PathClass;
import qupath.lib.projects.ProjectIO;
import qupath.lib.regions.ImagePlane;
import qupath.lib.roi.ROIs;
import qupath.lib.scripting.QP;

class Reader {
  public static void main(String[] args) throws Exception {
    QP.getCoreClasses();
    var project = ProjectIO.loadProject(new File(args[0]), BufferedImage.class);
    var entry = project.getImageList().get(0);
    var image = entry.readImageData();
    var hierarchy = image.getHierarchy();
    var seen = new ArrayList<Map<String, Object>>();
    for (var object : hierarchy.getFlattenedObjectList(null)) {
      if (object.isRootObject())
        continue;
      var roi = object.getROI();
      var one = new LinkedHashMap<String, Object>();
      one.put("kind", object.isTile() ? "tile" : object.isAnnotation() ? "annotation" : "detection");
      one.put("name", object.getName());
      one.put("parent", object.getParent().isRootObject() ? null : object.getParent().getID().toString());
      one.put("box", new double[] {roi.getBoundsX(), roi.getBoundsY(), roi.getBoundsWidth(), roi.getBoundsHeight()});
      one.put("measurements", new LinkedHashMap<>(object.getMeasurements()));
      seen.add(one);
    }
    var gson = new GsonBuilder().serializeNulls().create();
    System.out.println("SEEN " + gson.toJson(Map.of("objects", seen, "metadata", entry.getMetadataMap())));
    if (args.length > 1) {
      var plane = ImagePlane.getDefaultPlane();
      var drawn = PathObjects.createAnnotationObject(ROIs.createEllipseROI(10, 10, 30, 20, plane));
      drawn.setName("mine");
      hierarchy.addObject(drawn);
      for (var annotation : hierarchy.getAnnotationObjects())
        if ("MIL: rank 2".equals(annotation.getName()))
          annotation.setPathClass(PathClass.fromString("Tumor"));
      entry.putMetadataValue("Checked by", "me");
    }
    entry.saveImageData(image);
    project.syncChanges();
  }
}
"""


def through_qupath(project: Project, folder: Path, *arguments: str) -> dict[str, Any]:
    """Let QuPath open the image, say what it has, perhaps change it as a person does, and save it."""
    (folder / "Reader.java").write_text(PROGRAM, "utf-8")
    command = [str(JAVA), "-cp", f"{QUPATH}/lib/app/*", str(folder / "Reader.java"), str(project.path), *arguments]
    result = subprocess.run(command, check=False, capture_output=True, text=True, encoding="utf-8")
    if "class file has wrong version" in result.stderr:
        pytest.skip("this Java is too old for this QuPath; set JAVA_HOME")
    assert result.returncode == 0, result.stdout + result.stderr
    (line,) = [line for line in result.stdout.splitlines() if line.startswith("SEEN ")]
    seen: dict[str, Any] = json.loads(line[5:])
    return seen


CORNERS = np.array([(x, y) for y in (0, 32, 64) for x in (0, 32, 64, 96)])
FEATURES = np.zeros((12, 2), np.float32)
FEATURES[:, 0] = [0, 1, 2, 3, 4, 11, 6, 7, 8, 9, 10, 5]
WEIGHTS = np.exp(FEATURES[:, 0].astype(float)) / np.exp(FEATURES[:, 0].astype(float)).sum()
"""Attention of an instance x: the softmax of x[0]. Its scores: -x[0] for low, x[0] for high."""


@pytest.fixture
def written(tmp_path: Path, gradient_slide: Path) -> Project:
    """A project with a detection and an annotation by hand, into which attention was written."""
    model = build_slide_model("attention", 2, [2], scaled=False, hidden=0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        layers: Any = model.heads[0].layers
        value, _, weight = layers.attention
        value.weight[0, 0], weight.weight[0, 0] = 1e-3, 1e3  # tanh is straight there
        layers.myfc.weight[:, 0] = torch.tensor([-1.0, 1.0])
    spec = SlideSpec((Task("sig", ("low", "high")),), "attention", HeadSettings(hidden=0), 2, "e", "ab", scaled=False)
    save_slide_bundle(tmp_path / "model", [model], spec, golden=FEATURES, description="A test.")
    (tmp_path / "features").mkdir()
    said = {"encoder": "e", "encoder_sha256": "ab", "patch_size": 32, "name": "Schnitt ä"}
    write_bag(tmp_path / "features" / "a.h5", FEATURES, CORNERS, said)
    project = create_project(tmp_path / "Projekt für QuPath", backend="native")
    entry = project.add_image(gradient_slide, name="Schnitt ä", metadata={"Patient": "7"})
    drawn = [shapely.box(3, 3, 60, 60), shapely.box(70, 70, 80, 80)]
    with entry.edit() as change:
        change.add(make_objects(drawn, object_type=["annotation", "detection"], name=["region", "spot"]))
    command = ["mil", "predict", tmp_path / "features", "--model", tmp_path / "model", "--project", project.path]
    result = CliRunner().invoke(main, [*map(str, command), "--top", "3"])
    assert result.exit_code == 0, result.output
    return open_project(project.path)


def undo(project: Project) -> None:
    result = CliRunner().invoke(main, ["runs", "undo", str(project.path), "latest"])
    assert result.exit_code == 0, result.output


def named(seen: dict[str, Any], name: str) -> dict[str, Any]:
    (found,) = [one for one in seen["objects"] if one["name"] == name]
    return dict(found)


def test_attention_as_qupath_sees_it(written: Project, tmp_path: Path) -> None:
    seen = through_qupath(written, tmp_path)
    tiles = {tuple(one["box"]): one["measurements"] for one in seen["objects"] if one["kind"] == "tile"}
    assert len(tiles) == 12
    for (x, y), value, weight in zip(CORNERS.tolist(), FEATURES[:, 0].tolist(), WEIGHTS.tolist(), strict=True):
        got = tiles[x, y, 32, 32]
        assert list(got) == ["MIL: attention", "MIL: attention rank", "MIL: score low", "MIL: score high"]
        assert got["MIL: attention"] == pytest.approx(weight, rel=2e-2)
        assert got["MIL: attention rank"] == 12 - value
        assert (got["MIL: score low"], got["MIL: score high"]) == (-value, value)
    for rank, corner in ((1, 5), (2, 10), (3, 9)):
        top = named(seen, f"MIL: rank {rank}")
        assert (top["kind"], top["parent"]) == ("annotation", None)
        assert top["box"] == [*CORNERS[corner].tolist(), 32, 32]
    assert sum(one["kind"] == "annotation" for one in seen["objects"]) == 4
    high = 1 / (1 + np.exp(-2 * float(WEIGHTS @ FEATURES[:, 0])))
    assert float(seen["metadata"]["MIL sig: high"]) == pytest.approx(high, abs=1e-3)
    assert set(seen["metadata"]) == {"Patient", "MIL sig: low", "MIL sig: high"}


def test_undone_after_qupath_saved(written: Project, tmp_path: Path) -> None:
    before = through_qupath(written, tmp_path)
    assert through_qupath(written, tmp_path) == before  # saved once by then
    undo(written)
    after = through_qupath(written, tmp_path)
    assert sorted(one["name"] for one in after["objects"]) == ["region", "spot"]
    assert after["metadata"] == {"Patient": "7"}


def test_what_a_person_did_in_qupath_outlives_undo(written: Project, tmp_path: Path) -> None:
    through_qupath(written, tmp_path, "draw")
    undo(written)
    after = through_qupath(written, tmp_path)
    assert sorted(one["name"] for one in after["objects"]) == ["MIL: rank 2", "mine", "region", "spot"]
    assert after["metadata"] == {"Patient": "7", "Checked by": "me"}
