"""Images that flow through lanes: shared, written one at a time, stopped, killed and gone on with."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fake_models import FakeTissue

from pyhisto.synth import SynthSettings, make_slide
from qupath_ext.errors import ProjectError
from qupath_ext.native.nativeentry import NativeEntry
from qupath_ext.project import Project, create_project, open_project
from qupath_ext.runs.record import Run, list_runs
from qupath_ext.workflows.annotate import AnnotateSettings, annotate_images
from qupath_ext.workflows.images import Lane, Pending, run_images
from qupath_ext.workflows.lanes import Crew, Progress

N_IMAGES = 4
SETTINGS = AnnotateSettings(region="image")
WAIT_S = 30.0


@pytest.fixture(scope="module")
def slides(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("lanes")
    first = folder / "image-0.tif"
    make_slide(first, SynthSettings(width=512, height=512, seed=3))
    return [first, *(Path(shutil.copy(first, folder / f"image-{number}.tif")) for number in range(1, N_IMAGES))]


@pytest.fixture
def project(tmp_path: Path, slides: list[Path]) -> Project:
    project = create_project(tmp_path / "project")
    for slide in slides:
        project.add_image(slide)
    return project


def stroma(project: Project) -> list[int]:
    """Return the number of objects in each image, as they are on disk; each run writes one."""
    return [len(entry.read_objects()) for entry in open_project(project.path).entries]


def run(project: Project, first: Any, *others: Any, **options: Any) -> Iterator[Any]:
    return annotate_images(project, project.entries, first, SETTINGS, others=others, **options)


# ---------------------------------------------------------------------- the crew itself
def test_one_lane_keeps_the_order_and_two_share_the_items() -> None:
    meeting = threading.Barrier(2, timeout=WAIT_S)

    def meet(item: int, progress: Progress) -> str:
        if item < 2:
            meeting.wait()  # passes only where two lanes are at work at the same time
        return threading.current_thread().name

    def square(item: int, progress: Progress) -> int:
        return item * item

    assert list(Crew(range(5), [square])) == [(0, 0), (1, 1), (2, 4), (3, 9), (4, 16)]
    found = dict(Crew(range(20), [meet, meet]))
    assert sorted(found) == list(range(20))
    assert set(found.values()) == {"lane 0", "lane 1"}


def test_lanes_wait_for_whoever_takes_what_they_find() -> None:
    begun: list[int] = []

    def work(item: int, progress: Progress) -> int:
        begun.append(item)
        return item

    with closing(iter(Crew(range(100), [work]))) as found:  # type: ignore[type-var]
        next(found)
        time.sleep(0.5)
        assert len(begun) <= 3  # one taken, one put down, one in hand
    assert len(begun) <= 4


def test_what_a_lane_raises_ends_all_of_them() -> None:
    stopped = threading.Event()

    def work(item: int, progress: Progress) -> None:
        if item == 1:
            raise ZeroDivisionError
        try:
            while True:
                progress("waiting", 0, 1)
                time.sleep(0.01)
        finally:
            stopped.set()

    with pytest.raises(ZeroDivisionError):
        list(Crew(range(2), [work, work]))
    assert stopped.wait(WAIT_S)


def test_progress_comes_in_the_thread_of_the_caller_and_sums_up_lanes() -> None:
    shown: list[tuple[str, int, int]] = []
    both = threading.Barrier(2, timeout=WAIT_S)

    def show(stage: str, done: int, total: int) -> None:
        assert threading.current_thread() is threading.main_thread()
        shown.append((stage, done, total))

    def work(item: int, progress: Progress) -> None:
        progress("tumour", item, 10 * item)
        both.wait()
        time.sleep(0.5)

    list(Crew((2, 3), [work, work], show))
    assert ("2 images, 50 windows", 5, 50) in shown


# ---------------------------------------------------------------------- over a project
def test_two_lanes_write_what_one_writes(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    writers: list[str] = []
    apply = NativeEntry._apply

    def watched(entry: NativeEntry, change: Any) -> Any:
        writers.append(threading.current_thread().name)
        return apply(entry, change)

    monkeypatch.setattr(NativeEntry, "_apply", watched)
    results = list(run(project, FakeTissue(), FakeTissue()))
    assert sorted(result.entry_id for result in results) == ["1", "2", "3", "4"]
    assert all(result.counts == {"Stroma": 1} for result in results)
    assert writers == [threading.main_thread().name] * N_IMAGES
    assert stroma(project) == [1] * N_IMAGES
    (record,) = list_runs(project)
    assert (record.status, record.record["device"]) == ("done", "cpu,cpu")
    assert record.record["models"]["tissue_segmentation"] == {
        "name": "tissue",
        "sha256": "t" * 64,
        "engine": "torch",
        "precision": "float32",
    }


def test_the_next_image_is_analysed_while_the_last_is_written(project: Project) -> None:
    second = threading.Event()

    def analyse(entry: Any, run: Run | None, progress: Progress) -> Pending[str]:
        if entry.id == "2":
            second.set()
        return Pending(entry.id, write)

    def write(run: Run) -> None:
        assert second.wait(WAIT_S)  # image 1 is not written before image 2 is begun

    found = run_images(project, project.entries, "test", {}, [Lane([], analyse)], recorded=lambda entry, run: "")
    assert list(found) == ["1", "2", "3", "4"]


def test_a_slide_that_fails_does_not_stop_the_others(tmp_path: Path, slides: list[Path]) -> None:
    own = [Path(shutil.copy(slide, tmp_path / slide.name)) for slide in slides]
    project = create_project(tmp_path / "project")
    for slide in own:
        project.add_image(slide)
    own[1].unlink()
    outcomes = list(run(project, FakeTissue(), FakeTissue()))
    failed = [outcome for outcome in outcomes if isinstance(outcome, tuple)]
    assert [entry.id for entry, _ in failed] == ["2"]
    assert stroma(project) == [1, 0, 1, 1]
    (record,) = list_runs(project)
    assert record.status == "incomplete"
    assert {key: image["status"] for key, image in record.images.items()} == {
        "1": "done",
        "2": "failed",
        "3": "done",
        "4": "done",
    }
    shutil.copy(slides[1], own[1])
    assert len(list(run(project, FakeTissue()))) == N_IMAGES
    assert stroma(project) == [1] * N_IMAGES


def test_an_image_that_cannot_be_written_does_not_stop_the_others(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    apply = NativeEntry._apply

    def refuse(entry: NativeEntry, change: Any) -> Any:
        if entry.id == "2":
            raise ProjectError("the disk is full")
        return apply(entry, change)

    monkeypatch.setattr(NativeEntry, "_apply", refuse)
    failed = [outcome for outcome in run(project, FakeTissue(), FakeTissue()) if isinstance(outcome, tuple)]
    assert [(entry.id, str(error)) for entry, error in failed] == [("2", "the disk is full")]
    assert stroma(project) == [1, 0, 1, 1]


class Counting(FakeTissue):
    """Calls something once `calls` tiles were asked for."""

    def __init__(self, calls: int, then: Callable[[], None]) -> None:
        self.left, self.then, self.asked = calls, then, 0

    def predict(self, tiles: Any) -> Any:
        self.asked += 1
        self.left -= 1
        if self.left == 0:
            self.then()
        return super().predict(tiles)


@pytest.fixture
def heeded_sigint() -> Iterator[None]:
    """A background job of a shell is born with SIGINT ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


# an interrupt between the opening of a file and its `with` leaves the closing to the collector
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("lanes", [1, 2])
def test_ctrl_c_in_the_middle(project: Project, lanes: int, heeded_sigint: None) -> None:
    probe = Counting(-1, lambda: None)
    list(run(project, probe, dry_run=True))
    each = probe.asked // N_IMAGES
    assert each >= 1

    def interrupt() -> None:
        signal.raise_signal(signal.SIGINT)  # comes in the main thread, whichever lane it is
        time.sleep(0.3)

    model = Counting(2 * each + 1, interrupt)  # counts the tiles of all lanes, to the first of a third image
    done: list[Any] = []
    with pytest.raises(KeyboardInterrupt):
        done.extend(run(project, *[model] * lanes))
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("lane")]
    written = stroma(project)
    assert len(done) <= sum(written) <= 2  # one may be written and not yet told of
    again = list(run(project, FakeTissue()))
    assert sorted(result.entry_id for result in again) == ["1", "2", "3", "4"]
    assert stroma(project) == [1] * N_IMAGES
    (record,) = list_runs(project)
    assert record.status == "done"


KILLED = """
import os, signal, sys
sys.path.insert(0, sys.argv[2])
from fake_models import FakeTissue
from qupath_ext.native.nativeentry import NativeEntry
from qupath_ext.project import open_project
from qupath_ext.workflows.annotate import AnnotateSettings, annotate_images

written = []
apply = NativeEntry._apply
def counted(entry, change):
    counts = apply(entry, change)
    written.append(entry.id)
    if len(written) == 3:  # the image is written, and the run does not know it yet
        os.kill(os.getpid(), signal.SIGKILL)
    return counts
NativeEntry._apply = counted
project = open_project(sys.argv[1])
settings = AnnotateSettings(region="image")
for result in annotate_images(project, project.entries, FakeTissue(), settings, others=[FakeTissue()]):
    print(result.entry_id, flush=True)
"""


def test_killed_and_gone_on_with(project: Project) -> None:
    here = str(Path(__file__).parent)
    child = subprocess.run(
        [sys.executable, "-c", KILLED, str(project.path), here],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "QUPATH_EXT_BACKEND": "native"},
    )
    assert child.returncode == -signal.SIGKILL, child.stderr
    finished = child.stdout.split()
    assert len(finished) == 2
    assert sum(stroma(project)) == 3
    (record,) = list_runs(project)
    times = {key: record.images[key]["finished"] for key in finished}
    assert record.status == "running"
    results = list(run(open_project(project.path), FakeTissue(), FakeTissue()))
    assert sorted(result.entry_id for result in results) == ["1", "2", "3", "4"]
    assert stroma(project) == [1] * N_IMAGES
    (record,) = list_runs(project)
    assert record.status == "done"
    assert {key: record.images[key]["finished"] for key in finished} == times


def test_several_devices_need_the_native_backend() -> None:
    project: Any = SimpleNamespace(backend="paquo")
    lanes = [Lane[str]([], lambda entry, run, progress: Pending("", lambda run: None)) for _ in range(2)]
    with pytest.raises(ProjectError, match=r"2 devices with the project backend paquo.*use --backend native"):
        list(run_images(project, [], "test", {}, lanes, recorded=lambda entry, run: ""))


def test_without_the_native_backend_each_image_is_written_before_the_next(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(type(project), "backend", "paquo")
    events: list[str] = []

    def analyse(entry: Any, run: Run | None, progress: Progress) -> Pending[str]:
        assert threading.current_thread() is threading.main_thread()
        progress("cells", 1, 2)
        events.append(f"analyse {entry.id}")
        return Pending(entry.id, lambda run: events.append(f"write {entry.id}"))

    found = run_images(project, project.entries[:2], "test", {}, [Lane([], analyse)], recorded=lambda entry, run: "")
    assert list(found) == ["1", "2"]
    assert events == ["analyse 1", "write 1", "analyse 2", "write 2"]
