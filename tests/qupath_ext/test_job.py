"""The folder of a job: what is read, what is refused, what is answered, and what the command says to its caller."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from qupath_ext.cli import main
from qupath_ext.errors import FormatError
from qupath_ext.live.answer import LIBRARY, workflow_step
from qupath_ext.live.job import Answer, read_job, write_answer
from qupath_ext.live.tasks import FUNCTIONS, run_job

PING = {"version": 1, "task": "ping", "project": None}


def job_folder(folder: Path, content: Any) -> Path:
    folder.mkdir()
    text = content if isinstance(content, str) else json.dumps(content)
    (folder / "job.json").write_text(text, encoding="utf-8")
    return folder


def test_a_job_is_read_as_it_was_written(tmp_path: Path) -> None:
    project = tmp_path / "Prostata ä%20" / "project.qpproj"
    content = {
        "version": 1,
        "task": "ki67-selection",
        "project": str(project),
        "qupath": "0.7.0",
        "entry": {"id": "3", "name": "Präparat #1.svs"},
        "server": {"uris": ["file:/a%20b.svs"], "builder": {"builderType": "uri"}},
        "image": {"width": 20.0, "height": 10, "mpp": [0.25, 0.5], "type": "BRIGHTFIELD_H_DAB", "stains": "{}"},
        "objects": "objects.geojson.gz",
        "selected": ["a", "b"],
        "options": {"region": "selection"},
        "something": "newer",
    }
    job = read_job(job_folder(tmp_path / "job", content))
    assert (job.task, job.project, job.entry_id, job.entry_name) == ("ki67-selection", project, "3", "Präparat #1.svs")
    assert (job.size, job.mpp, job.image_type) == ((20, 10), (0.25, 0.5), "BRIGHTFIELD_H_DAB")
    assert job.objects == tmp_path / "job" / "objects.geojson.gz"
    assert job.selected == ("a", "b")
    assert job.options == {"region": "selection"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is damaged"),
        ([], "holds no job"),
        ({**PING, "version": 2}, "version 2 of the job folder; expected 1; run qupath-ext install-scripts"),
        ({**PING, "task": "rm"}, "task 'rm'; expected one of ki67-selection"),
        ({"version": 1}, "task None"),
        ({**PING, "project": "project.qpproj"}, "expected an absolute path"),
        ({**PING, "project": 3}, "project is 3; expected a text"),
        ({**PING, "objects": "../objects.geojson"}, "the name of a file in the folder of the job"),
        ({**PING, "objects": "..\\objects.geojson"}, "the name of a file in the folder of the job"),
        ({**PING, "objects": "/etc/passwd"}, "the name of a file in the folder of the job"),
        ({**PING, "image": {"mpp": [0.25]}}, "expected µm of a pixel in x and y"),
        ({**PING, "image": {"mpp": [0.25, 0]}}, "expected µm of a pixel in x and y"),
        ({**PING, "image": {"mpp": [True, True]}}, "expected µm of a pixel in x and y"),
        ({**PING, "image": {"width": 10}}, "expected width and height above 0"),
        ({**PING, "selected": [1]}, "expected a list of texts"),
        ({**PING, "options": []}, "options is \\[\\]; expected a JSON object"),
    ],
)
def test_what_is_no_job_is_refused_in_plain_words(tmp_path: Path, content: Any, message: str) -> None:
    folder = job_folder(tmp_path / "job", content)
    with pytest.raises(FormatError, match=message):
        read_job(folder)
    result = CliRunner().invoke(main, ["job", str(folder)])
    assert result.exit_code == 2
    assert not (folder / "answer.json").exists()


def test_a_folder_without_a_job_is_refused(tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["job", str(tmp_path / "nowhere")])
    assert result.exit_code == 2
    assert "cannot be read" in result.output


def test_an_answer_is_whole_or_not_there(tmp_path: Path) -> None:
    write_answer(tmp_path, Answer("done", "fünf Zellen", remove=("a",), counts={"Tumor": 5}))
    content = json.loads((tmp_path / "answer.json").read_text("utf-8"))
    assert content["version"] == 1
    assert content["message"] == "fünf Zellen"
    assert (content["remove"], content["add"], content["error"]) == (["a"], None, None)
    assert [path.name for path in tmp_path.iterdir()] == ["answer.json"]


def test_every_task_has_its_function() -> None:
    from qupath_ext.live.job import TASKS

    assert set(FUNCTIONS) == set(TASKS)


def test_ping_answers_with_exit_code_0(tmp_path: Path) -> None:
    folder = job_folder(tmp_path / "job", PING)
    result = CliRunner().invoke(main, ["job", str(folder)])
    assert result.exit_code == 0
    assert "is there" in result.output
    assert json.loads((folder / "answer.json").read_text("utf-8"))["status"] == "done"


def test_a_task_that_needs_a_project_says_so_and_fails(tmp_path: Path) -> None:
    for task in ("detect-cells", "ki67-slide", "undo", "train", "evaluate", "export"):
        folder = job_folder(tmp_path / task, {**PING, "task": task})
        result = CliRunner().invoke(main, ["job", str(folder)])
        assert result.exit_code == 1, task
        assert "no project is open in QuPath" in result.output
        assert json.loads((folder / "answer.json").read_text("utf-8"))["error"]["remedy"]


def test_a_cancelled_job_changes_nothing_and_ends_with_3(tmp_path: Path) -> None:
    folder = job_folder(tmp_path / "job", PING)
    (folder / "cancel").touch()
    assert CliRunner().invoke(main, ["job", str(folder)]).exit_code == 3
    assert json.loads((folder / "answer.json").read_text("utf-8"))["status"] == "cancelled"


def test_a_fault_of_the_program_is_an_answer_with_its_traceback_in_the_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(context: Any) -> Answer:
        raise KeyError("nucleus")

    monkeypatch.setattr("qupath_ext.live.projecttasks.ping_task", broken)
    lines: list[str] = []
    answer = run_job(job_folder(tmp_path / "job", PING), say=lines.append)
    assert (answer.status, answer.exit_code) == ("failed", 1)
    assert "KeyError: 'nucleus'" in answer.message
    assert "Traceback" in lines[0]


def test_a_full_disk_is_said_in_plain_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(context: Any) -> Answer:
        raise OSError(28, "No space left on device", "/data/add.geojson")

    monkeypatch.setattr("qupath_ext.live.projecttasks.ping_task", full)
    answer = run_job(job_folder(tmp_path / "job", PING))
    assert answer.message == "No space left on device: /data/add.geojson"


def test_ping_loads_neither_numpy_nor_networks(tmp_path: Path) -> None:
    folder = job_folder(tmp_path / "job", PING)
    code = (
        "import sys; from qupath_ext.live.tasks import run_job; run_job(sys.argv[1]); "
        "print([name for name in ('numpy', 'torch', 'pandas', 'monai') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_workflow_step_is_groovy_whatever_the_options_hold() -> None:
    options = {"classes": ["Tumor: ä", "it's", "a\\b", '"$x"'], "threshold": 0.2, "strict": False, "name": None}
    step = workflow_step("ki67-selection", options)
    assert step is not None
    assert step["name"] == "Ki-67 on selection"
    assert step["script"] == (
        f"{LIBRARY}.start('ki67-selection', ['classes': ['Tumor: \\u00e4', 'it\\'s', 'a\\\\b', '\"$x\"'], "
        "'threshold': 0.2, 'strict': false, 'name': null])"
    )
    assert workflow_step("detect-cells", {}) == {
        "name": "Detect cells",
        "script": f"{LIBRARY}.start('detect-cells', [:])",
    }
    assert workflow_step("export", {}) is None
