"""The Paquo backend: which QuPath is found, and what its JVM must not do to projects and output."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import shapely

from pyhisto.objects import concat_objects, make_objects
from qupath_ext import paquo_bridge
from qupath_ext.errors import ProjectError
from qupath_ext.native.tokens import SERIALIZABLE, ClassDesc, JObject, Part
from qupath_ext.paquo_bridge import find_qupath
from qupath_ext.paquo_bridge.jvm import deserialise, java_errors, start_qupath
from qupath_ext.project import create_project, open_project, pack_rgb, resolve_backend

GOLDEN = Path(__file__).parents[2] / ".." / "shared" / "golden"


def box(x, y, width=10, height=10):
    return shapely.box(x, y, x + width, y + height)


# ---------------------------------------------------------------------- which QuPath, without a JVM
def python(code, folder, **variables):
    """Run code where nothing but some variables speaks for a QuPath; returns the finished process."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PAQUO_", "CONDA_", "QUPATH_EXT_"))}
    environment = {**kept, "PYTHONPATH": str(Path(__file__).parents[2]), **variables}
    return subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env=environment, capture_output=True, text=True, timeout=120
    )


BACKEND = "from qupath_ext.project import resolve_backend; print(resolve_backend('auto'))"
IS_STARTED = "; import jpype; print(jpype.isJVMStarted())"


@pytest.mark.skipif(sys.platform != "linux", reason="the folders of an installation are those of Linux")
def test_auto_is_paquo_where_qupath_is_found(tmp_path):
    for name in ("lib/app/qupath.jar", "lib/runtime/lib/server/libjvm.so"):
        (tmp_path / "QuPath" / name).parent.mkdir(parents=True)
        (tmp_path / "QuPath" / name).touch()
    found = python(BACKEND + IS_STARTED, tmp_path, PAQUO_QUPATH_DIR=str(tmp_path / "QuPath"))
    assert found.stdout.split() == ["paquo", "False"], found.stderr
    (tmp_path / ".paquo.toml").write_text(f'qupath_dir = "{tmp_path / "QuPath"}"')
    found = python(BACKEND + IS_STARTED, tmp_path)
    assert found.stdout.split() == ["paquo", "False"], found.stderr


def test_a_qupath_that_was_named_and_is_not_there_is_an_error(tmp_path):
    found = python(BACKEND, tmp_path, PAQUO_QUPATH_DIR=str(tmp_path / "QuPath"))
    assert found.returncode == 1
    assert "ProjectError: no QuPath in" in found.stderr.splitlines()[-1]
    assert "PAQUO_QUPATH_DIR" in found.stderr.splitlines()[-1]


def test_where_nothing_speaks_for_qupath_nothing_is_searched(tmp_path, monkeypatch):
    for name in [name for name in os.environ if name.startswith(("PAQUO_", "CONDA_"))]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    usual = {"qupath_search_dirs": [str(tmp_path), str(tmp_path / "none")], "qupath_search_dir_regex": "(?i)qupath.*"}
    monkeypatch.setattr(paquo_bridge, "_defaults", lambda: usual)
    (tmp_path / "something").mkdir()
    assert not paquo_bridge._worth_a_search()
    assert find_qupath() is None
    (tmp_path / "QuPath-0.6.0").mkdir()
    assert paquo_bridge._worth_a_search()


def test_the_usual_folders_are_those_of_paquo():
    assert "/opt" in paquo_bridge._defaults()["qupath_search_dirs"]
    assert paquo_bridge._defaults()["qupath_search_dir_regex"] == "(?i)qupath.*"


def test_a_variable_says_what_auto_means(monkeypatch):
    monkeypatch.setenv("QUPATH_EXT_BACKEND", "paquo")
    assert resolve_backend("auto") == "paquo"
    assert resolve_backend("native") == "native"
    monkeypatch.setenv("QUPATH_EXT_BACKEND", "qupath")
    with pytest.raises(ProjectError, match="unknown project backend 'qupath'"):
        resolve_backend("auto")


# ---------------------------------------------------------------------- with QuPath
@pytest.fixture
def needs_qupath():
    if find_qupath() is None:
        pytest.skip("no QuPath is found; set PAQUO_QUPATH_DIR")


@pytest.mark.qupath
@pytest.mark.usefixtures("needs_qupath")
class TestQuPath:
    def test_standard_output_is_left_alone(self, tmp_path, gradient_slide):
        command = [sys.executable, "-c", "from qupath_ext.cli import main; main()"]
        place = str(tmp_path / "p")
        backend = ["--backend", "paquo"]

        def run(*arguments):
            return subprocess.run([*command, *arguments, *backend], capture_output=True, text=True, timeout=300)

        made = run("project", "create", place, str(gradient_slide))
        assert made.returncode == 0, made.stderr
        assert made.stdout.splitlines() == [str(tmp_path / "p/project.qpproj"), f"1  {gradient_slide.name}"]
        told = run("project", "info", place, "--json")
        assert json.loads(told.stdout)["images"][0]["name"] == gradient_slide.name
        assert "project backend: paquo 0.9.0 with QuPath 0." in told.stderr

    def test_paquo_itself_reads_what_was_written(self, tmp_path, gradient_slide):
        project = create_project(tmp_path / "p", classes={"Tumor": pack_rgb(1, 2, 3)}, backend="paquo")
        entry = project.add_image(gradient_slide, name="ä", metadata={"k": "v"}, description="d")
        region = make_objects([box(0, 0, 90, 90)], object_type="annotation", classification="Tumor", name="region")
        cells = make_objects(
            [box(i, 0, 5, 5) for i in range(50)],
            object_type="cell",
            parent_id=region.index[0],
            measurements={"m": np.arange(50) / 2},
        )
        entry.write_objects(concat_objects([region, cells]))
        from paquo.projects import QuPathProject

        opened = QuPathProject(project.path, mode="r")
        image = opened.images[0]
        assert (image.image_name, image.description, dict(image.metadata)) == ("ä", "d", {"k": "v"})
        assert (image.width, image.height) == (128, 96)
        assert str(image.image_type.name) == "BRIGHTFIELD_H_DAB"
        assert [a.name for a in image.hierarchy.annotations] == ["region"]
        assert image.hierarchy.annotations[0].path_class.id == "Tumor"
        seen = {str(cell.java_object.getID()): cell for cell in image.hierarchy.detections}
        assert set(seen) == set(cells.index)
        assert [seen[i].measurements["m"] for i in cells.index] == [i / 2 for i in range(50)]
        assert {str(cell.java_object.getParent().getID()) for cell in seen.values()} == {region.index[0]}

    def test_colours_of_one_project_do_not_reach_another(self, tmp_path, gradient_slide):
        colors = {"a": pack_rgb(1, 2, 3), "b": pack_rgb(4, 5, 6)}
        entries = {}
        for name, color in colors.items():
            project = create_project(tmp_path / name, classes={"Own class": color}, backend="paquo")
            entries[name] = project.add_image(gradient_slide)
        for _ in range(2):
            for entry in entries.values():
                entry.write_objects(make_objects([box(0, 0)], object_type="annotation", classification="Own class"))
        for name, entry in entries.items():
            raw = entry.data_file.read_bytes()
            other = colors["b" if name == "a" else "a"]
            assert colors[name].to_bytes(4, "big", signed=True) in raw
            assert other.to_bytes(4, "big", signed=True) not in raw

    def test_what_qupath_refuses_is_one_line(self, tmp_path, gradient_slide):
        path = create_project(tmp_path / "p", backend="native").path
        open_project(path, backend="native").add_image(gradient_slide)
        content = json.loads(path.read_text("utf-8"))
        content["images"][0]["serverBuilder"]["builderType"] = "from the future"
        path.write_text(json.dumps(content), "utf-8")
        with pytest.raises(ProjectError, match=r"QuPath could not open the project project\.qpproj") as caught:
            open_project(path, backend="paquo")
        assert "\n" not in str(caught.value)
        assert "--backend native" in str(caught.value)

    def test_no_class_of_others_is_made_from_a_file(self):
        start_qupath()
        foreign = JObject(ClassDesc("java.sql.Timestamp", bytes(8), SERIALIZABLE), [Part([])])
        rejected = pytest.raises(ProjectError, match=r"could not read it: java\.io\.InvalidClassException.*REJECTED")
        with rejected, java_errors("read it"):
            deserialise([foreign], 1)

    @pytest.mark.skipif(not GOLDEN.exists(), reason="the projects written by QuPath (../shared/golden) are not here")
    @pytest.mark.parametrize("version", ["v0.3.2", "v0.5.1", "v0.6.0"])
    def test_all_but_the_objects_stays_byte_for_byte(self, version, tmp_path):
        folder = tmp_path / "p"
        shutil.copytree(GOLDEN / version / "plain", folder)
        for path in [folder, *folder.rglob("*")]:
            path.chmod(0o755)
        entry = open_project(folder, backend="paquo").entries[0]
        before = entry.data_file.read_bytes()
        ids = list(entry.read_objects().index)
        entry.write_objects(make_objects([box(0, 0)], object_type="annotation"), lock=ids[:1])
        after = entry.data_file.read_bytes()
        hierarchy = before.index(b"PathObjectHierarchy")  # header, server, image type, stains and workflow come first
        assert hierarchy > 1000
        assert after[:hierarchy] == before[:hierarchy]
        assert list(entry.read_objects().index)[: len(ids)] == ids  # also where the file had none
