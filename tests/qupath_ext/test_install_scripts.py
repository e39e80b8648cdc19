"""The scripts that QuPath shows in a menu: put into a project, brought up to date, taken away."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from click.testing import CliRunner

import qupath_ext
from qupath_ext.cli import main
from qupath_ext.project import create_project
from qupath_ext.projectsettings import read_settings
from qupath_ext.workflows.scripts import install_scripts, remove_scripts

MENU = [
    "Detect cells.groovy",
    "Doctor.groovy",
    "Evaluate against my annotations.groovy",
    "Export for analysis.groovy",
    "Ki-67 on selection.groovy",
    "Ki-67 on whole slide.groovy",
    "Mark done.groovy",
    "Next region.groovy",
    "Reject region.groovy",
    "Segment tumour.groovy",
    "Train from annotations.groovy",
    "Undo last run.groovy",
]
LIBRARY = [
    "Objects.groovy",
    "ProgressWindow.groovy",
    "QuPathExt.groovy",
    "Regions.groovy",
    "Windows.groovy",
    "Worker.groovy",
]
N = len(MENU) + len(LIBRARY)
GROOVY = shutil.which("groovy")
JAVA_HOME = os.environ.get("JAVA_HOME")
if JAVA_HOME is None and shutil.which("java"):
    JAVA_HOME = str(Path(shutil.which("java")).resolve().parents[1])


@pytest.fixture
def project(tmp_path):
    return create_project(tmp_path / "Projekt ü", backend="native").path.parent


@pytest.fixture(autouse=True)
def own_state(tmp_path, monkeypatch):
    for name in ("XDG_STATE_HOME", "LOCALAPPDATA", "HOME"):
        monkeypatch.setenv(name, str(tmp_path / "state"))


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def run(*words):
    return CliRunner().invoke(main, ["install-scripts", *map(str, words)])


def test_all_files_in_ascii_with_python_and_version(project):
    done = install_scripts(project, python="/opt/Prüfung 'a'/𝛼/python")
    assert names(project / "scripts/qupath-ext") == MENU
    assert names(project / "qupath_ext/groovy") == LIBRARY
    assert len(done.written) == N
    text = (project / "qupath_ext/groovy/QuPathExt.groovy").read_bytes().decode("ascii")
    assert r"PYTHON = '/opt/Pr\u00fcfung \'a\'/\ud835\udefc/python'" in text
    assert f"VERSION = '{qupath_ext.__version__}'" in text
    assert "@PYTHON@" not in text
    for path in done.written:
        path.read_bytes().decode("ascii")


def test_again_changes_nothing_and_an_update_replaces_what_nobody_edited(project, monkeypatch):
    install_scripts(project)
    again = install_scripts(project / "project.qpproj")
    assert (len(again.written), len(again.unchanged), again.kept) == (0, N, ())
    edited = project / "scripts/qupath-ext/Detect cells.groovy"
    edited.write_text(edited.read_text().replace("threshold        : null", "threshold        : 0.2"))
    saved_on_windows = project / "scripts/qupath-ext/Doctor.groovy"
    saved_on_windows.write_bytes(saved_on_windows.read_bytes().replace(b"\n", b"\r\n"))
    mine = project / "scripts/qupath-ext/Mine.groovy"
    mine.write_text("print 'mine'")
    monkeypatch.setattr(qupath_ext, "__version__", "9.9.9")
    update = install_scripts(project)
    assert (len(update.written), update.kept) == (N - 1, (edited,))
    assert "threshold        : 0.2" in edited.read_text()
    assert saved_on_windows.read_bytes().startswith(b"// qupath-ext 9.9.9, sha256 ")
    forced = install_scripts(project, force=True)
    assert forced.written == (edited,)
    assert "threshold        : null" in edited.read_text()
    assert mine.read_text() == "print 'mine'"


def test_remove_takes_only_what_was_put_there(project):
    install_scripts(project)
    edited = project / "scripts/qupath-ext/Doctor.groovy"
    edited.write_text(edited.read_text() + "\n// mine\n")
    mine = project / "scripts/qupath-ext/Mine.groovy"
    mine.write_text("print 'mine'")
    other = project / "scripts/other.groovy"
    other.write_text("print 'other'")
    done = remove_scripts(project)
    assert (len(done.removed), set(done.kept)) == (N - 1, {edited, mine})
    assert names(project / "scripts/qupath-ext") == ["Doctor.groovy", "Mine.groovy"]
    assert not (project / "qupath_ext/groovy").exists()
    assert remove_scripts(project, force=True).removed == (edited,)
    assert mine.exists()
    assert other.exists()
    mine.unlink()
    install_scripts(project)
    remove_scripts(project)
    assert not (project / "scripts/qupath-ext").exists()


def test_the_command_remembers_the_project_for_the_worker(project, tmp_path):
    done = run(project)
    assert (done.exit_code, done.stdout.splitlines()[0]) == (0, f"{N} files written")
    assert "Automate > Project scripts > qupath-ext" in done.stdout
    (known,) = tmp_path.glob("state/**/projects.json")
    assert json.loads(known.read_text("utf-8"))["projects"] == [str(project)]
    assert run(project).stdout.splitlines()[0] == f"{N} files up to date"
    assert run(project, "--remove").stdout == f"{N} files removed\n"
    assert json.loads(known.read_text("utf-8"))["projects"] == []


def test_bad_input_writes_nothing(project, tmp_path):
    (tmp_path / "empty").mkdir()
    for words in (
        [tmp_path / "empty"],
        [tmp_path / "nowhere"],
        [project, "--cells", tmp_path / "empty"],
        [project, "--cells", tmp_path / "nowhere"],
        [project, "--remove", "--cells", tmp_path / "empty"],
    ):
        done = run(*words)
        assert done.exit_code == 2, words
        assert not (project / "scripts").exists()
        assert not (project / "qupath_ext/groovy").exists()
    assert read_settings(project).cells is None


def test_a_file_in_the_way_is_an_error_in_plain_words(project):
    (project / "scripts").write_text("no folder")
    done = run(project)
    assert done.exit_code == 2
    assert "scripts" in done.stderr
    assert "move what is in the way" in done.stderr


PARSE = """
args.each { name ->
    def unit = new org.codehaus.groovy.control.CompilationUnit()
    unit.addSource(new File(name))
    unit.compile(org.codehaus.groovy.control.Phases.CONVERSION)
    def constant = new File(name).getText('US-ASCII').readLines().find { it.contains('String PYTHON = ') }
    if (constant != null)
        println(evaluate(constant.substring(constant.indexOf('=') + 1)).codePoints().toArray().join(' '))
}
"""


@pytest.mark.skipif(GROOVY is None, reason="there is no groovy")
@pytest.mark.skipif(JAVA_HOME is None, reason="there is no Java")
def test_groovy_understands_every_script(project, tmp_path):
    python = "/opt/Prüfung 'a\\b' $x/𝛼/python"
    files = [str(path) for path in install_scripts(project, python=python).written]
    program = tmp_path / "Parse.groovy"
    program.write_text(PARSE)
    result = subprocess.run(
        [GROOVY, str(program), *files],
        check=False,
        capture_output=True,
        text=True,
        env={**os.environ, "JAVA_HOME": JAVA_HOME},
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.split() == [str(ord(letter)) for letter in python]
