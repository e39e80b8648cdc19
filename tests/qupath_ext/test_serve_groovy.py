"""The scripts' own client, run by Groovy with QuPath's core, and a worker."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

import qupath_ext
from qupath_ext.resources import scripts_folder
from qupath_ext.userstate import worker_file

GROOVY = shutil.which("groovy")
QUPATH = Path(os.environ.get("PAQUO_QUPATH_DIR", ""))
JAVA = QUPATH / "lib/runtime/bin/java"

pytestmark = [
    pytest.mark.qupath,
    pytest.mark.skipif("PAQUO_QUPATH_DIR" not in os.environ, reason="PAQUO_QUPATH_DIR is not set"),
    pytest.mark.skipif(GROOVY is None, reason="there is no groovy"),
]

ASK = """
def worker = evaluate(new File(args[0]))
def lines = []
def window = [show: { lines << it; true }, isCancelled: { args[3] == 'cancel' }, close: { }]
def answer = worker.ask(new File(args[1]), args[2], window)
println 'SEEN ' + groovy.json.JsonOutput.toJson([status: answer?.status, message: answer?.message, lines: lines])
"""
SERVE = """
import sys, time, qupath_ext.serve.worker as w
w.warm_up = lambda: None
def job(folder, *, models, cancelled, progress, say):
    if folder.name == "crash":
        import os
        os._exit(9)
    for n in range(1, 201):
        if cancelled():
            return w.Answer("cancelled", "Stopped.")
        if n % 50 == 0:
            say(f"n = {n} \\u00fc")
        progress("cells", n, 200)
        time.sleep(0.01)
    return w.Answer("done", "35 cells")
w.run_job = job
w.serve([w.Path(sys.argv[1])], idle_s=100)
"""


@pytest.fixture
def ask(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    (tmp_path / "ask.groovy").write_text(ASK, encoding="utf-8")
    lib = Path(GROOVY or "").resolve().parents[1] / "lib/*"
    client = scripts_folder() / "qupath" / "lib" / "Worker.groovy"

    def run(name, version=qupath_ext.__version__, how="wait"):
        folder = tmp_path / "project ü" / name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "job.json").write_text(json.dumps({"version": 1, "task": "ping"}), encoding="utf-8")
        command = [JAVA, "-Dfile.encoding=UTF-8", "-cp", f"{QUPATH}/lib/app/*{os.pathsep}{lib}", "groovy.ui.GroovyMain"]
        command += [tmp_path / "ask.groovy", client, folder, version, how]
        done = subprocess.run(list(map(str, command)), capture_output=True, timeout=120)
        text = done.stdout.decode("utf-8", "replace")
        assert done.returncode == 0, text + done.stderr.decode("utf-8", "replace")
        return json.loads(next(line[5:] for line in text.splitlines() if line.startswith("SEEN ")))

    return run


@pytest.fixture
def worker(tmp_path, ask):
    (tmp_path / "project ü").mkdir()
    started = subprocess.Popen(
        [sys.executable, "-c", SERVE, str(tmp_path / "project ü")], stdout=subprocess.PIPE, text=True
    )
    assert started.stdout is not None
    assert started.stdout.readline().startswith("ready")
    yield started
    started.kill()
    started.communicate()


NOTHING = {"status": None, "message": None, "lines": []}


def test_a_job_with_its_log_and_progress(ask, worker):
    seen = ask("job")
    assert (seen["status"], seen["message"]) == ("done", "35 cells")
    log = [line for line in seen["lines"] if not line.startswith("PROGRESS")]
    assert log == ["n = 50 ü", "n = 100 ü", "n = 150 ü", "n = 200 ü"]
    assert "PROGRESS 200/200 cells" in seen["lines"]


def test_a_job_that_is_cancelled(ask, worker):
    assert ask("job", how="cancel")["status"] == "cancelled"


def test_no_worker_another_version_and_a_job_it_does_not_take_are_left_to_a_process(ask, worker, tmp_path):
    assert ask("job", version="0.0.0") == NOTHING
    assert ask("../outside") == NOTHING
    assert worker.poll() is None
    worker.kill()
    worker.wait()
    assert worker_file().exists()
    assert ask("job") == NOTHING


def test_a_worker_that_dies_with_the_job_is_noticed(ask, worker):
    seen = ask("crash")
    assert (seen["status"], seen["message"]) == (None, None)
    assert worker.wait(timeout=10) == 9


class GoesAway(BaseHTTPRequestHandler):
    """Says that it is well, and closes the connection when it is given a job."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()

    def do_POST(self) -> None:
        self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:
        pass


def test_a_worker_that_dies_before_it_answers_is_left_for_a_process(ask):
    with HTTPServer(("127.0.0.1", 0), GoesAway) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        content = {"url": f"http://127.0.0.1:{server.server_port}", "token": "t", "version": qupath_ext.__version__}
        worker_file().parent.mkdir(parents=True, exist_ok=True)
        worker_file().write_text(json.dumps(content), encoding="utf-8")
        assert ask("job") == NOTHING
        server.shutdown()
