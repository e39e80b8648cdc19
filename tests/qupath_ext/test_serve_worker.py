"""The worker from start to end: its file, its end, the jobs it does, the models it keeps, and other workers."""

from __future__ import annotations

import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import shapely
import tifffile
from click.testing import CliRunner
from live_jobs import make_job

from pyhisto.objects import make_objects
from qupath_ext.cli import main
from qupath_ext.errors import FormatError, ProjectError
from qupath_ext.live.job import Answer
from qupath_ext.project import create_project
from qupath_ext.serve import worker as worker_module
from qupath_ext.serve.client import WorkerClient
from qupath_ext.serve.models import WarmModels
from qupath_ext.serve.warmup import warm_up
from qupath_ext.serve.worker import serve
from qupath_ext.userstate import forget_project, known_projects, remember_project, state_folder, worker_file

COLD = "import qupath_ext.serve.worker as w; w.warm_up = lambda: None; w.serve(idle_s=60)"
"""A worker that is there at once."""


@pytest.fixture(autouse=True)
def own_state(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path / "state"))


@pytest.fixture
def cold(monkeypatch):
    """Leave the warming up to the test that is about it."""
    monkeypatch.setattr(worker_module, "warm_up", lambda: None)


@pytest.fixture
def project(tmp_path):
    folder = tmp_path / "project ü"
    folder.mkdir()
    return folder


def new_job(inside, name="job", task="ping"):
    folder = inside / name
    folder.mkdir()
    (folder / "job.json").write_text(json.dumps({"version": 1, "task": task}), encoding="utf-8")
    return folder


def wait_for(value, seconds=60):
    """Return what a function returns as soon as that is something."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if (found := value()) is not None:
            return found
        time.sleep(0.01)
    raise TimeoutError


def answer_to(client, folder, seconds=120):
    """Have a job done and return its answer."""
    job = client.request("POST", "/jobs", {"folder": str(folder)})["id"]
    return wait_for(lambda: client.request("GET", f"/jobs/{job}")["answer"], seconds)


def beside(talk, **options):
    """Serve in this thread while `talk` asks in another one; return what it returned, once the worker has ended."""
    results = []

    def ask():
        client = wait_for(WorkerClient.find)
        try:
            results.append(talk(client))
        finally:
            client.request("POST", "/shutdown")

    thread = threading.Thread(target=ask)
    thread.start()
    serve(**options)
    thread.join()
    return results[0]


# ---------------------------------------------------------------------- file and end
def test_the_file_says_where_and_only_the_user_can_read_it(cold):
    def look(client):
        content = json.loads(worker_file().read_text("utf-8"))
        return content, worker_file().stat().st_mode, worker_file().parent.stat().st_mode, client

    content, mode, folder_mode, client = beside(look)
    assert set(content) == {"url", "token", "pid", "version"}
    assert (content["url"], content["token"], content["pid"]) == (client.url, client.token, os.getpid())
    assert len(content["token"]) >= 43  # 256 bits in base 64
    if sys.platform != "win32":
        assert (stat.S_IMODE(mode), stat.S_IMODE(folder_mode)) == (0o600, 0o700)
    assert not worker_file().exists()
    assert WorkerClient.find() is None


def test_it_ends_when_nobody_asks_for_anything(cold):
    lines = []
    begin = time.monotonic()
    serve(idle_s=0.3, say=lines.append)
    assert time.monotonic() - begin >= 0.3
    assert lines[0].startswith("ready at http://127.0.0.1:")
    assert not any("token" in line for line in lines)
    assert not worker_file().exists()


def test_each_worker_has_a_token_of_its_own(cold):
    tokens = {beside(lambda client: client.token) for _ in range(2)}
    assert len(tokens) == 2


def test_the_file_of_a_worker_that_was_killed_is_replaced(cold):
    worker_file().parent.mkdir(parents=True)
    worker_file().write_text(json.dumps({"url": "http://127.0.0.1:9", "token": "old", "pid": 1, "version": "0"}))
    worker_file().chmod(0o644)
    assert WorkerClient.find() is None
    token, mode = beside(lambda client: (client.token, worker_file().stat().st_mode))
    assert token != "old"
    if sys.platform != "win32":
        assert stat.S_IMODE(mode) == 0o600


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"url": 1, "token": 2}', '{"url": "nonsense", "token": "x"}'])
def test_a_damaged_file_is_no_worker(text):
    worker_file().parent.mkdir(parents=True)
    worker_file().write_text(text)
    assert WorkerClient.find() is None


# ---------------------------------------------------------------------- jobs
def test_jobs_are_done_one_after_the_other(cold, project):
    answers = beside(lambda client: [answer_to(client, new_job(project, name)) for name in ("a", "b")], allow=[project])
    assert [answer["status"] for answer in answers] == ["done", "done"]
    assert json.loads((project / "a" / "answer.json").read_text("utf-8")) == answers[0]


def test_projects_are_allowed_as_soon_as_they_have_the_scripts(cold, project):
    def talk(client):
        remember_project(project)
        return answer_to(client, new_job(project))

    assert beside(talk)["status"] == "done"


def test_a_running_job_is_cancelled(cold, project, monkeypatch):
    def until_cancelled(folder, *, models, cancelled, progress, say):
        progress("cells", 1, 2)
        say("working")
        while not cancelled():
            time.sleep(0.01)
        return Answer("cancelled", "Stopped.")

    def talk(client):
        job = client.request("POST", "/jobs", {"folder": str(new_job(project))})["id"]
        wait_for(lambda: client.request("GET", f"/jobs/{job}")["progress"])
        client.request("POST", f"/jobs/{job}/cancel")
        return wait_for(lambda: (said := client.request("GET", f"/jobs/{job}"))["answer"] and said)

    monkeypatch.setattr(worker_module, "run_job", until_cancelled)
    said = beside(talk, allow=[project])
    assert (said["state"], said["log"], said["answer"]["status"]) == ("cancelled", ["working"], "cancelled")


def test_the_worker_outlives_jobs_that_go_wrong(cold, project, monkeypatch):
    run_job = worker_module.run_job

    def without_its_folder(folder, **options):
        if folder.name == "gone":
            shutil.rmtree(folder)
        return run_job(folder, **options)

    def talk(client):
        return [answer_to(client, new_job(project, name, task)) for name, task in
                [("gone", "ping"), ("no project", "ki67-selection"), ("right", "ping")]]  # fmt: skip

    monkeypatch.setattr(worker_module, "run_job", without_its_folder)
    gone, without, right = beside(talk, allow=[project])
    assert (gone["status"], "cannot be read" in gone["message"]) == ("failed", True)
    assert (without["status"], "no project is open" in without["message"]) == ("failed", True)
    assert right["status"] == "done"


def test_a_job_that_turned_into_a_link_while_it_waited_is_not_done(cold, project, tmp_path):
    outside = new_job(tmp_path, "outside")

    def talk(client):
        first = new_job(project, "first")
        inside = new_job(project, "inside")
        worker_module_lock.acquire()
        client.request("POST", "/jobs", {"folder": str(first)})
        job = client.request("POST", "/jobs", {"folder": str(inside)})["id"]
        shutil.rmtree(inside)
        inside.symlink_to(outside)
        worker_module_lock.release()
        return wait_for(lambda: client.request("GET", f"/jobs/{job}")["answer"])

    worker_module_lock = threading.Lock()
    run_job = worker_module.run_job

    def held(folder, **options):
        with worker_module_lock:
            return run_job(folder, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(worker_module, "run_job", held)
        answer = beside(talk, allow=[project])
    assert (answer["status"], "leads to" in answer["message"]) == ("failed", True)
    assert not (outside / "answer.json").exists()


# ---------------------------------------------------------------------- several workers, and killed ones
def start(*arguments):
    """Start a worker in a process of its own and wait until it says that it is ready."""
    started = subprocess.Popen([sys.executable, *arguments], stdout=subprocess.PIPE, text=True, env=os.environ.copy())
    assert started.stdout is not None
    assert started.stdout.readline().startswith("ready at http://127.0.0.1:")
    return started


def test_a_second_worker_refuses_to_start_until_the_first_was_killed(cold):
    first = start("-c", COLD)
    try:
        before = worker_file().read_bytes()
        with pytest.raises(ProjectError, match="a worker runs already"):
            serve(idle_s=0.1)
        assert worker_file().read_bytes() == before
        assert WorkerClient.find() is not None
    finally:
        first.kill()
        first.communicate()
    assert worker_file().read_bytes() == before
    assert WorkerClient.find() is None
    serve(idle_s=0.1)
    assert not worker_file().exists()


@pytest.mark.skipif(sys.platform == "win32", reason="no such signal")
def test_being_told_to_end_by_the_system_leaves_no_file():
    worker = start("-c", COLD)
    worker.send_signal(signal.SIGTERM)
    worker.communicate(timeout=30)
    assert not worker_file().exists()


def test_the_command_does_a_real_job_twice_and_ends_when_told(tmp_path):
    rng = np.random.default_rng(0)
    rgb = np.full((300, 400, 3), 235, dtype=np.uint8)
    y, x = np.mgrid[:300, :400]
    for row in range(30, 280, 40):
        for column in range(30, 380, 40):
            rgb[np.hypot(y - row, x - column) < 9] = (95, 85, 160)
    rgb = np.clip(rgb + rng.normal(0, 3, rgb.shape), 0, 255).astype(np.uint8)
    tifffile.imwrite(tmp_path / "slide.tif", rgb, tile=(64, 64), photometric="rgb", metadata=None)
    project = create_project(tmp_path / "project", backend="native")
    entry = project.add_image(tmp_path / "slide.tif", mpp=0.5)
    square = make_objects([shapely.box(9, 9, 211, 291)], object_type="annotation")
    jobs = [
        make_job(tmp_path / "project" / name, project, entry, "detect-cells", selected=list(square.index),
                 objects=square)
        for name in ("first", "second")
    ]  # fmt: skip
    worker = start("-m", "qupath_ext", "serve", "--allow", str(tmp_path / "project"))
    try:
        client = WorkerClient.find()
        assert client is not None
        answers = [answer_to(client, folder) for folder in jobs]
        assert CliRunner().invoke(main, ["serve", "--stop"]).output == "the worker ends\n"
        assert "ended" in worker.communicate(timeout=60)[0]
    finally:
        worker.kill()
        worker.communicate()
    assert worker.returncode == 0
    assert [(answer["status"], answer["counts"]["cells"]) for answer in answers] == [("done", 35)] * 2  # 5 x 7 nuclei
    assert CliRunner().invoke(main, ["serve", "--stop"]).output == "no worker runs\n"


# ---------------------------------------------------------------------- warming up, and models
def test_warming_up_leaves_nothing_behind(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    warm_up()
    assert list(tmp_path.iterdir()) == []


def test_warming_up_says_if_no_job_would_succeed(monkeypatch):
    failed = Answer.failed("no memory")
    monkeypatch.setattr("qupath_ext.serve.warmup.run_job", lambda folder, **options: failed)
    with pytest.raises(ProjectError, match=r"detect-cells fails .*no memory"):
        warm_up()


@pytest.fixture
def loaded(monkeypatch):
    """Return what was loaded, as (folder, device)."""
    calls = []

    def load(folder, *, device):
        calls.append((Path(folder).name, device))
        return object()

    monkeypatch.setattr("pyhisto.bundle.anymodel.load_model", load)
    return calls


def new_model(folder):
    folder.mkdir()
    (folder / "model.pt").write_bytes(b"weights")
    return folder


def test_a_model_is_loaded_once_for_each_device(tmp_path, loaded):
    models = WarmModels()
    model = new_model(tmp_path / "a")
    first = models.get(model, "cpu")
    assert models.get(tmp_path / "a" / ".." / "a", "cpu") is first
    assert models.get(model, "cuda") is not first
    assert models.get(model, "cpu") is first
    assert loaded == [("a", "cpu"), ("a", "cuda")]


def test_a_model_that_changed_is_loaded_again(tmp_path, loaded):
    models = WarmModels()
    model = new_model(tmp_path / "a")
    first = models.get(model, "cpu")
    (model / "model.pt").write_bytes(b"other weights")
    second = models.get(model, "cpu")
    assert second is not first
    assert models.get(model, "cpu") is second
    os.utime(model / "model.pt", ns=(1, 1))
    assert models.get(model, "cpu") is not second
    (model / "metadata.json").touch()
    models.get(model, "cpu")
    assert len(loaded) == 4


def test_the_model_that_was_not_used_for_longest_goes_first(tmp_path, loaded):
    models = WarmModels(most=2)
    a, b, c = (new_model(tmp_path / name) for name in "abc")
    for model in (a, b, a, c, a, b):
        models.get(model, "cpu")
    assert [name for name, _ in loaded] == ["a", "b", "c", "b"]


def test_the_device_of_the_worker_goes_before_that_of_the_job(tmp_path, loaded):
    models = WarmModels("cuda:1")
    model = new_model(tmp_path / "a")
    assert models.get(model, "cpu") is models.get(model, "cuda")
    assert loaded == [("a", "cuda:1")]


# ---------------------------------------------------------------------- projects that have the scripts
def test_projects_are_remembered_and_forgotten(tmp_path, project):
    other = tmp_path / "other"
    other.symlink_to(project)
    assert known_projects() == ()
    remember_project(project)
    remember_project(project)
    assert known_projects() == (project,)
    remember_project(other)
    assert set(known_projects()) == {project, other}
    forget_project(other)
    forget_project(other)
    assert known_projects() == ()


def test_a_damaged_list_of_projects_is_not_overwritten(project):
    path = state_folder() / "projects.json"
    path.parent.mkdir(parents=True)
    for text in ("", "[]", "{}", '{"projects": 1}', '{"projects": [1]}'):
        path.write_text(text)
        for use in (known_projects, lambda: remember_project(project)):
            with pytest.raises(FormatError, match="is not a list of projects"):
                use()
        assert path.read_text() == text


def test_bad_options_are_refused(tmp_path):
    for words in (["--idle-minutes", "0"], ["--allow", str(tmp_path / "nowhere")], ["--device", "toaster"]):
        done = CliRunner().invoke(main, ["serve", *words])
        assert done.exit_code == 2
        assert "Traceback" not in done.output
    assert not worker_file().exists()
