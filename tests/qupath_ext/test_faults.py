"""What the native store does when something goes wrong in the middle of a write."""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import shapely
from killed_writer import CLASSES, NEW, OLD, REMOVED

from pyhisto.objects import make_objects
from qupath_ext.errors import ChangedOnDiskError, ProjectError, ProjectExistsError, ProjectNotFoundError
from qupath_ext.native import files
from qupath_ext.native.files import FileState, Transaction
from qupath_ext.native.leftovers import clear_up
from qupath_ext.native.lock import WriterLock
from qupath_ext.native.nativeproject import NativeProject

KILLS = 40
MANY_KILLS = 300
LOGGER = "qupath_ext.native.lock"


def annotation(n=1, **columns):
    return make_objects([shapely.box(i, 0, i + 3, 4) for i in range(n)], object_type="annotation", **columns)


def new_project(folder):
    """A project with one image without data, and no slide needed."""
    project = NativeProject.create(folder, {})
    content = json.loads(project.path.read_text())
    builder = {"builderType": "uri", "uri": "file:/a.svs"}
    content["images"] = [{"serverBuilder": builder, "entryID": 1, "imageName": "a", "metadata": {}}]
    project.path.write_text(json.dumps({**content, "lastID": 1}))
    return NativeProject.open(project.path)


def contents(folder):
    """Return the bytes of all files but the lock's."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "lock"
    }


def temporaries(folder):
    return sorted(folder.rglob("*.qupath-ext-tmp"))


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    """A project whose image ``a`` has one annotation with 2,000 cells."""
    project = new_project(tmp_path_factory.mktemp("template") / "project")
    project.entry("a").write_objects(OLD)
    return project.path.parent


@pytest.fixture
def copy_of_template(template, tmp_path):
    return Path(shutil.copytree(template, tmp_path / "project"))


# ---------------------------------------------------------------------- killed
class Killer:
    """The process that forks and kills writers."""

    def __init__(self):
        script = Path(__file__).with_name("killed_writer.py")
        self.process = subprocess.Popen([sys.executable, script], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self.process.stdout.readline() == b"ready\n"

    def __call__(self, task, *arguments, writers=1, delay=None):
        order = {"task": task, "arguments": [*map(str, arguments)] if task != "append" else list(arguments)}
        self.process.stdin.write(json.dumps({**order, "writers": writers, "delay": delay}).encode() + b"\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def close(self):
        self.process.stdin.close()
        self.process.wait(timeout=60)
        self.process.stdout.close()


@pytest.fixture(scope="module")
def killer():
    if not hasattr(os, "fork"):
        pytest.skip("needs fork")
    server = Killer()
    yield server
    server.close()


def state_of(folder):
    """Check that a project is whole; returns which of the three writes it has."""
    project = NativeProject.open(folder)
    ids = set(project.entry("a").read_objects().index)
    old, new = set(OLD.index), (set(OLD.index) - set(REMOVED)) | set(NEW.index)
    assert ids in (old, new)
    classes = set(project.classes)
    assert classes in (set(), set(CLASSES))
    names = [entry.name for entry in project.entries]
    assert names in (["a"], ["a", "b"])
    for entry in project.entries[1:]:
        assert entry.id == "2"
        assert entry.read_objects().empty
        assert entry.image_type == "BRIGHTFIELD_H_DAB"
        assert (entry.folder / "thumbnail.jpg").read_bytes()[-2:] == b"\xff\xd9"
    return ids == new, bool(classes), len(names) == 2


def check_after_kill(folder, caplog):
    """Check what a killed writer left, and that the next one says so and works; returns the state it found."""
    state = state_of(folder)
    assert list(state) == sorted(state, reverse=True)  # the writes follow each other
    left, interrupted = temporaries(folder), (folder / "qupath_ext/writer.json").exists()
    stray = sorted(path.name for path in (folder / "data").iterdir())[1:] if not state[2] else []
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        assert NativeProject.open(folder).entry("a").write_objects(annotation()).n_added == 1
    said = [record.getMessage() for record in caplog.records if record.name == LOGGER]
    assert len(said) == interrupted + len(left) + len(stray)
    assert sum("its file was removed" in line for line in said) == len(left)
    assert sum("belongs to no image" in line for line in said) == len(stray)
    assert not left or interrupted
    assert not stray or interrupted
    assert temporaries(folder) == []
    assert not (folder / "qupath_ext/writer.json").exists()
    assert all((folder / "data" / name).is_dir() for name in stray)
    caplog.clear()
    NativeProject.open(folder).entry("a").write_objects(annotation())
    assert caplog.messages == []
    return state, interrupted


@pytest.mark.parametrize("kills", [KILLS, pytest.param(MANY_KILLS, marks=pytest.mark.slow)])
def test_killed_at_any_moment_the_project_is_old_or_new(template, tmp_path, gradient_slide, killer, caplog, kills):
    folder = tmp_path / "project"
    shutil.copytree(template, folder)
    whole = killer("write", folder, gradient_slide)
    assert whole["codes"] == [0]
    assert state_of(folder) == (True, True, True)
    found = Counter()
    for delay in np.random.default_rng(20).uniform(0, 1.1 * whole["seconds"], kills):
        shutil.rmtree(folder)
        shutil.copytree(template, folder)
        assert killer("write", folder, gradient_slide, delay=float(delay))["codes"][0] in (-9, 0)
        found[check_after_kill(folder, caplog)] += 1
    assert sum(n for (_, interrupted), n in found.items() if interrupted) > kills / 4  # most hit a write
    assert len({state for state, _ in found}) >= 2


@pytest.mark.parametrize("stride", [5, pytest.param(1, marks=pytest.mark.slow)])
def test_killed_before_a_call_the_project_is_old_or_new(template, tmp_path, gradient_slide, killer, caplog, stride):
    folder = tmp_path / "project"
    states = []
    for step in range(0, 300, stride):
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(template, folder)
        code = killer("write_until", folder, gradient_slide, step)["codes"][0]
        if code == 0:
            break
        assert code == 9
        states.append(check_after_kill(folder, caplog)[0])
    assert states == sorted(states)  # once there, a write stays
    assert len(set(states)) == 4
    assert code == 0
    assert len(states) > 40 / stride


def test_a_project_whose_making_was_killed_can_be_made_again(tmp_path, monkeypatch):
    replace = os.replace

    def killed(source, target):
        if Path(target).name == "project.qpproj":
            raise SystemExit  # nothing is cleared up after it, as after SIGKILL
        replace(source, target)

    monkeypatch.setattr(files.os, "replace", killed)
    monkeypatch.setattr(Transaction, "__exit__", lambda *args: None)
    monkeypatch.setattr(files, "_put_back", lambda item: None)
    with pytest.raises(SystemExit):
        NativeProject.create(tmp_path / "p", {})
    monkeypatch.undo()
    assert [path.name for path in (tmp_path / "p").iterdir() if path.is_file()] != []
    assert NativeProject.create(tmp_path / "p", {}).entries == []
    assert temporaries(tmp_path) == []


def test_a_folder_with_anything_else_is_no_place_for_a_project(tmp_path):
    (tmp_path / "p/qupath_ext").mkdir(parents=True)
    (tmp_path / "p/qupath_ext/lock").touch()
    (tmp_path / "p/qupath_ext/notes.txt").write_text("mine")
    with pytest.raises(ProjectExistsError):
        NativeProject.create(tmp_path / "p", {})
    (tmp_path / "p/qupath_ext/notes.txt").unlink()
    (tmp_path / "p/empty").mkdir()
    with pytest.raises(ProjectExistsError):
        NativeProject.create(tmp_path / "p", {})


def test_what_a_killed_qupath_left_is_named_and_kept(copy_of_template, caplog):
    kept = copy_of_template / "data/1/data.qpdata.bkp"
    kept.write_bytes(b"QuPath's")
    (copy_of_template / "data/7").mkdir()
    NativeProject.open(copy_of_template).entry("a").write_objects(annotation())
    assert caplog.messages == [f"found {kept}: QuPath is saving the image or was stopped while saving; left as it is"]
    assert kept.read_bytes() == b"QuPath's"
    assert clear_up(copy_of_template, look_for_strays=True)[-1] == (
        f"found {copy_of_template / 'data/7'}, which belongs to no image of the project; left as it is"
    )


def test_a_qupath_that_was_killed_while_it_saved_the_project_is_named(copy_of_template):
    project = copy_of_template / "project.qpproj"
    project.rename(project.with_name("project.qpproj.backup"))  # between the two renames of QuPath
    with pytest.raises(ProjectNotFoundError, match=r"QuPath was stopped while saving; rename project\.qpproj\.backup"):
        NativeProject.open(copy_of_template)


def test_files_of_others_that_look_like_ours_stay(copy_of_template, caplog):
    others = [copy_of_template / name for name in ("notes.qupath-ext-tmp", ".hidden", "data/1/x.qupath-ext-tmp")]
    for path in others:
        path.write_text("mine")
    NativeProject.open(copy_of_template).entry("a").write_objects(annotation())
    assert caplog.messages == []
    assert all(path.read_text() == "mine" for path in others)


# ---------------------------------------------------------------------- the lock
def test_a_writer_gives_up_after_the_stated_time_and_says_who_writes(tmp_path, caplog):
    with WriterLock(tmp_path):
        start = time.monotonic()
        with (
            pytest.raises(ProjectError, match="one writer at a time; let it finish") as caught,
            WriterLock(tmp_path, wait_s=0.3),
        ):
            pass
        assert 0.3 <= time.monotonic() - start < 3
    holder = f"process {os.getpid()} on {os.uname().nodename}, since 20"
    assert holder in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caplog.messages[0].startswith("waiting up to 0 s for another writer of")
    assert holder in caplog.messages[0]
    with WriterLock(tmp_path):
        pass


def test_a_waiting_writer_goes_on_as_soon_as_it_can(tmp_path, caplog):
    order = []

    def second():
        with WriterLock(tmp_path, wait_s=20):
            order.append("second")

    thread = threading.Thread(target=second)
    with WriterLock(tmp_path):
        thread.start()
        while not caplog.messages:
            time.sleep(0.01)
        order.append("first")
    thread.join(10)
    assert order == ["first", "second"]


def test_the_lock_of_a_killed_writer_is_free_at_once(tmp_path, killer, caplog):
    assert killer("hold", tmp_path, delay=0.5)["codes"] == [-9]
    writer = json.loads((tmp_path / "qupath_ext/writer.json").read_text())
    with WriterLock(tmp_path, wait_s=0):
        pass
    assert caplog.messages == [
        f"the last writer of {tmp_path} (process {writer['pid']} on {writer['host']}, since {writer['since']}) "
        "was interrupted"
    ]
    assert [path.name for path in (tmp_path / "qupath_ext").iterdir()] == ["lock"]


def test_a_damaged_note_about_the_last_writer_does_not_matter(tmp_path, caplog):
    (tmp_path / "qupath_ext").mkdir()
    for damage in (b"", b"[]", b"\xff", b"[" * 100_000, b'{"pid": "x"}'):
        (tmp_path / "qupath_ext/writer.json").write_bytes(damage)
        with WriterLock(tmp_path):
            pass
    assert len(caplog.messages) == 5
    assert all("process 0 on an unknown host" in line for line in caplog.messages)


def test_many_writers_lose_nothing(tmp_path, killer):
    project = new_project(tmp_path / "p")
    project.entry("a").write_objects(annotation())
    assert killer("append", str(project.path), 5, writers=4)["codes"] == [0] * 4
    assert len(NativeProject.open(project.path).entry("a").read_objects()) == 21


def test_two_runs_that_add_classes_keep_those_of_each_other(tmp_path):
    first = new_project(tmp_path / "p")
    second = NativeProject.open(first.path)
    assert first.classes == second.classes == {}
    assert first.add_classes({"A": 1}) == ["A"]
    assert second.add_classes({"A": 2, "B": 3}) == ["B"]
    assert NativeProject.open(first.path).classes == {"A": 1, "B": 3}


def test_reading_takes_no_lock_and_writes_nothing(copy_of_template):
    before = sorted(copy_of_template.rglob("*"))
    with WriterLock(copy_of_template):
        project = NativeProject.open(copy_of_template)
        assert len(project.entry("a").read_objects()) == len(OLD)
    shutil.rmtree(copy_of_template / "qupath_ext")
    project = NativeProject.open(copy_of_template)
    assert len(project.entry("a").read_objects()) == len(OLD)
    assert project.entry("a").image_type == "UNSET"
    assert sorted(copy_of_template.rglob("*")) == [p for p in before if "qupath_ext" not in p.parts[-2:]]


def test_without_file_locks_nothing_is_written(copy_of_template, monkeypatch):
    import fcntl

    def no_locks(*args):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    before = contents(copy_of_template)
    with pytest.raises(ProjectError, match="has no file locks, so that nothing is written there; mount it with locks"):
        NativeProject.open(copy_of_template).entry("a").write_objects(annotation())
    monkeypatch.undo()
    assert contents(copy_of_template) == before


# ---------------------------------------------------------------------- disk full and other errors
def change(folder):
    """All kinds of writes, one after the other."""
    project = NativeProject.open(folder)
    with project.entry("a").edit() as edit:
        edit.add(annotation(3))
        edit.remove(REMOVED[:100])
    project.add_classes({"One": 1})


def expect_old_or_new(folder, before):
    """Check that no file is half written, and that the next write works."""
    now = {name: data for name, data in contents(folder).items() if ".qupath-ext-" not in name}
    was = {name: data for name, data in before.items() if ".qupath-ext-" not in name}
    if now["data/1/data.qpdata"] == was["data/1/data.qpdata"]:
        assert now == was
    else:  # the second write failed
        n = len(NativeProject.open(folder).entry("a").read_objects())
        assert n == len(OLD) + 3 - 100
        assert "classifiers/classes.json" not in now
    assert temporaries(folder) == []
    assert not (folder / "qupath_ext/writer.json").exists()
    assert NativeProject.open(folder).entry("a").write_objects(annotation()).n_added == 1


def test_a_disk_that_is_full_after_any_number_of_bytes(template, tmp_path, monkeypatch):
    written = []
    write = files._HashingFile.write
    monkeypatch.setattr(files._HashingFile, "write", lambda self, data: written.append(len(data)) or write(self, data))
    folder = tmp_path / "project"
    shutil.copytree(template, folder)
    change(folder)
    total = sum(written)
    assert total > 400_000
    for room in np.random.default_rng(21).integers(0, total, 15).tolist():
        shutil.rmtree(folder)
        shutil.copytree(template, folder)
        before, left = contents(folder), [room]

        def full(self, data, left=left):
            part = data[: left[0]]
            left[0] -= len(part)
            write(self, part)
            if len(part) < len(data):
                raise OSError(errno.ENOSPC, "No space left on device")
            return len(data)

        monkeypatch.setattr(files._HashingFile, "write", full)
        with pytest.raises(ProjectError, match=r"no space left to write .*; free some space; the project is as it was"):
            change(folder)
        monkeypatch.setattr(files._HashingFile, "write", write)
        expect_old_or_new(folder, before)


CALLS = [(os, "replace"), (os, "link"), (os, "fsync"), (os, "open"), (Path, "open"), (Path, "mkdir"), (Path, "chmod")]


def test_an_error_of_any_single_call(template, tmp_path, monkeypatch):
    """Each call of the operating system fails once."""
    folder = tmp_path / "project"
    failed = Counter()
    for step in range(200):
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(template, folder)
        before = contents(folder)
        with monkeypatch.context() as patch:
            count = [0]
            for owner, name in CALLS:
                patch.setattr(owner, name, failing(getattr(owner, name), count, step, (name, failed)))
            try:
                change(folder)
                outcome = "written"
            except ProjectError as error:
                outcome = str(error)
        assert "\n" not in outcome
        if count[0] <= step:
            break
        if outcome == "written":  # an error that does not matter
            assert NativeProject.open(folder).classes == {"One": 1}
        else:
            assert "Input/output error" in outcome
            expect_old_or_new(folder, before)
    assert count[0] <= step  # all of them were tried
    assert failed.keys() == {name for _, name in CALLS}


def failing(call, count, step, log):
    def wrapped(*args, **kwargs):
        count[0] += 1
        if count[0] == step + 1:
            log[1][log[0]] += 1
            raise OSError(errno.EIO, "Input/output error")
        return call(*args, **kwargs)

    return wrapped


def test_a_file_that_may_not_grow(copy_of_template):
    """EFBIG from the operating system itself."""
    before = contents(copy_of_template)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
        with pytest.raises(ProjectError, match=r"data\.qpdata cannot be written: File too large"):
            change(copy_of_template)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    expect_old_or_new(copy_of_template, before)


@pytest.mark.parametrize("room", [0, 100_000])
def test_a_small_file_system_that_is_full(template, tmp_path, room):
    """ENOSPC from the operating system itself."""
    size = sum(len(data) for data in contents(template).values())
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size + 900_000}", "tmpfs", tmp_path], check=False, capture_output=True
    )
    if mounted.returncode != 0:
        pytest.skip("needs the right to mount a small file system")
    try:
        folder = Path(shutil.copytree(template, tmp_path / "project"))
        filler = tmp_path / "filler"
        with contextlib.suppress(OSError), filler.open("wb") as file:
            for _ in range(10_000):
                file.write(bytes(4096))
                file.flush()
        os.truncate(filler, filler.stat().st_size - room)
        before = contents(folder)
        with pytest.raises(ProjectError, match="no space left to write"):
            change(folder)
        filler.unlink()
        expect_old_or_new(folder, before)
    finally:
        subprocess.run(["umount", tmp_path], check=True)


# ---------------------------------------------------------------------- folders that may not be written to
@contextlib.contextmanager
def read_only(folder):
    """Take away the right to write, from root as well, by being somebody else for a while."""
    for path in [folder, *folder.rglob("*")]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)
        for path in [folder, *folder.rglob("*")]:
            path.chmod(0o755 if path.is_dir() else 0o644)


def test_a_read_only_project_can_be_read_and_says_that_it_cannot_be_written(template):
    with tempfile.TemporaryDirectory() as place:
        Path(place).chmod(0o755)
        folder = Path(shutil.copytree(template, Path(place) / "project"))
        before = contents(folder)
        with read_only(folder):
            project = NativeProject.open(folder)
            assert len(project.entry("a").read_objects()) == len(OLD)
            with pytest.raises(ProjectError, match="cannot be written: Permission denied; the project is as it was"):
                project.entry("a").write_objects(annotation())
            with pytest.raises(ProjectError, match="cannot be written: Permission denied"):
                project.add_classes({"A": 1})
            with pytest.raises(ProjectError, match="cannot be written: Permission denied"):
                NativeProject.create(folder / "new", {})
        assert contents(folder) == before


# ---------------------------------------------------------------------- changed underneath
def test_a_file_that_changes_between_staging_and_putting_in_place(tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    first.write_bytes(b"1")
    second.write_bytes(b"2")
    with Transaction() as transaction:
        for path in (first, second):
            transaction.stage(path, lambda file: file.write(b"new"), FileState.of(path))
        second.write_bytes(b"QuPath's")
        with pytest.raises(ChangedOnDiskError, match="close the image in QuPath"):
            transaction.commit()
    assert contents(tmp_path) == {"first": b"1", "second": b"QuPath's"}


def test_a_project_file_that_qupath_saved_meanwhile_is_not_overwritten(copy_of_template, gradient_slide):
    project = NativeProject.open(copy_of_template)
    content = json.loads(project.path.read_text())
    project.path.write_text(json.dumps({**content, "modifyTimestamp": 1}))
    before = contents(copy_of_template)
    with pytest.raises(ChangedOnDiskError, match=r"project\.qpproj changed"):
        project.add_image(gradient_slide)
    assert contents(copy_of_template) == before
    assert not (copy_of_template / "data/2").exists()


def test_an_interruption_while_files_are_put_in_place_puts_them_back(copy_of_template, gradient_slide, monkeypatch):
    replace = os.replace

    def interrupted(source, target):
        if Path(target).name == "project.qpproj":
            raise KeyboardInterrupt
        replace(source, target)

    before = contents(copy_of_template)
    monkeypatch.setattr(files.os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        NativeProject.open(copy_of_template).add_image(gradient_slide)
    monkeypatch.undo()
    now = {name: data for name, data in contents(copy_of_template).items() if not name.startswith("project.qpproj.")}
    assert now == before
    assert not (copy_of_template / "data/2").exists()


# ---------------------------------------------------------------------- backups
def test_the_state_that_qupath_left_outlives_any_number_of_our_writes(copy_of_template):
    data = copy_of_template / "data/1/data.qpdata"
    original, backup = (data.with_name(f"data.qpdata.qupath-ext-{name}") for name in ("original", "backup"))
    qupath = data.read_bytes()
    for _ in range(3):
        last = data.read_bytes()
        NativeProject.open(copy_of_template).entry("a").write_objects(annotation())
        assert original.read_bytes() == qupath
        assert backup.read_bytes() == last
    data.write_bytes(saved := qupath)  # QuPath saves, or a person takes the backup back
    NativeProject.open(copy_of_template).entry("a").write_objects(annotation())
    NativeProject.open(copy_of_template).entry("a").write_objects(annotation())
    assert original.read_bytes() == saved
    assert sorted(path.name for path in data.parent.iterdir()) == [
        "data.qpdata",
        "data.qpdata.qupath-ext-backup",
        "data.qpdata.qupath-ext-original",
        "data.qpdata.qupath-ext-written",
        "summary.json",
    ]


def test_a_write_that_is_interrupted_before_it_is_in_place_does_not_lose_the_original(copy_of_template, monkeypatch):
    data = copy_of_template / "data/1/data.qpdata"
    qupath = data.read_bytes()
    entry = NativeProject.open(copy_of_template).entry("a")
    entry.write_objects(annotation())
    replace = os.replace

    def failing_replace(source, target):
        if target == data:
            raise OSError(errno.EIO, "Input/output error")
        replace(source, target)

    monkeypatch.setattr(files.os, "replace", failing_replace)
    with pytest.raises(ProjectError):
        entry.write_objects(annotation())
    monkeypatch.undo()
    NativeProject.open(copy_of_template).entry("a").write_objects(annotation())
    assert data.with_name("data.qpdata.qupath-ext-original").read_bytes() == qupath


# ---------------------------------------------------------------------- places
NAMES = ["my slides", "a#b?c", "100%25 %", "Übersicht ñ 名前", "v1.2.d", "." + "x" * 200, "-rf", "a'b\"c\\d"]


@pytest.mark.parametrize("name", NAMES)
def test_folders_of_any_name(tmp_path, gradient_slide, name):
    folder = tmp_path / name
    folder.mkdir()
    slide = Path(shutil.copy(gradient_slide, folder / f"{name[:60]}.tif"))
    project = NativeProject.create(folder / name, {"Tumor": None})
    project.add_image(slide).write_objects(annotation(2))
    again = NativeProject.open(folder / name)
    assert again.entries[0].slide_path == slide
    assert len(again.entries[0].read_objects()) == 2
    assert list(again.classes) == ["Tumor"]
    assert temporaries(tmp_path) == []


def test_a_project_file_whose_name_leaves_no_room_for_ours(tmp_path, gradient_slide):
    project = new_project(tmp_path / "p")
    path = project.path.rename(project.path.with_name("x" * 240 + ".qpproj"))
    before = contents(tmp_path)
    with pytest.raises(ProjectError, match="cannot be written: File name too long; the project is as it was"):
        NativeProject.open(path).add_image(gradient_slide)
    assert contents(tmp_path) == before


def test_a_project_behind_a_symbolic_link(copy_of_template, tmp_path):
    link = tmp_path / "link"
    link.symlink_to(copy_of_template, target_is_directory=True)
    NativeProject.open(link).entry("a").write_objects(annotation())
    assert len(NativeProject.open(copy_of_template).entry("a").read_objects()) == len(OLD) + 1
    with WriterLock(link), pytest.raises(ProjectError, match="another writer"), WriterLock(copy_of_template, wait_s=0):
        pass


def test_a_data_file_that_is_a_symbolic_link_stays_one(copy_of_template, tmp_path):
    data = copy_of_template / "data/1/data.qpdata"
    elsewhere = tmp_path / "store"
    elsewhere.mkdir()
    real = data.rename(elsewhere / "real.bin")
    data.symlink_to(real)
    NativeProject.open(copy_of_template).entry("a").write_objects(annotation())
    assert data.is_symlink()
    assert len(NativeProject.open(copy_of_template).entry("a").read_objects()) == len(OLD) + 1
    assert (elsewhere / "real.bin.qupath-ext-backup").exists()


def test_without_hard_links_backups_are_copies(copy_of_template, monkeypatch):
    def no_links(source, target):
        raise OSError(errno.EPERM, "no links here")

    monkeypatch.setattr(files.os, "link", no_links)
    data = copy_of_template / "data/1/data.qpdata"
    qupath = data.read_bytes()
    data.chmod(0o640)
    for _ in range(2):
        NativeProject.open(copy_of_template).entry("a").write_objects(annotation())
    assert data.with_name("data.qpdata.qupath-ext-original").read_bytes() == qupath
    assert data.stat().st_mode & 0o777 == 0o640


def test_a_project_that_could_not_be_made_leaves_no_folder(tmp_path, monkeypatch):
    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files._HashingFile, "write", full)
    with pytest.raises(ProjectError, match="no space left"):
        NativeProject.create(tmp_path / "new" / "project", {"Tumor": None})
    assert list(tmp_path.iterdir()) == []
