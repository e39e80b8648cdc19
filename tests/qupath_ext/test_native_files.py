import errno
import hashlib
import json
import os
from pathlib import Path

import pytest
import shapely

from pyhisto.objects import make_objects
from qupath_ext.errors import ChangedOnDiskError, FormatError, ProjectError
from qupath_ext.native import datafile, files
from qupath_ext.native.files import FileState, Transaction
from qupath_ext.project import create_project, open_project


def annotation(n=1, **columns):
    return make_objects([shapely.box(i, 0, i + 3, 4) for i in range(n)], object_type="annotation", **columns)


@pytest.fixture
def project(tmp_path):
    """A project with one image without data, and no slide needed."""
    project = create_project(tmp_path / "Ki-67 ünï #1")
    content = json.loads(project.path.read_text())
    builder = {"builderType": "uri", "uri": "file:/a.svs"}
    content["images"] = [{"serverBuilder": builder, "entryID": 1, "imageName": "a", "metadata": {}}]
    project.path.write_text(json.dumps({**content, "lastID": 1}))
    return open_project(project.path)


def everything(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def older_states(name, old, new):
    """The files that a write leaves beside the one that it replaces."""
    return {
        Path(f"{name}.qupath-ext-backup"): old,
        Path(f"{name}.qupath-ext-original"): old,
        Path(f"{name}.qupath-ext-written"): hashlib.sha256(new).hexdigest().encode() + b"\n",
    }


def test_several_files_change_together(tmp_path):
    old, new = tmp_path / "a", tmp_path / "sub" / "b"
    old.write_bytes(b"1")
    before = FileState.of(old)
    with Transaction() as transaction:
        transaction.stage(old, lambda file: file.write(b"2"), before)
        transaction.stage(new, lambda file: file.write(b"3"), None)
        assert old.read_bytes() == b"1"
        assert not new.exists()
        transaction.commit()
    assert everything(tmp_path) == {Path("a"): b"2", Path("sub/b"): b"3", **older_states("a", b"1", b"2")}
    assert transaction.states[old] == FileState.of(old)


def test_nothing_is_left_of_a_transaction_that_ends_early(tmp_path):
    def interrupted():
        with Transaction() as transaction:
            transaction.stage(tmp_path / "x" / "y" / "b", lambda file: file.write(b"3"), None)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert list(tmp_path.iterdir()) == []


def test_a_failing_rename_puts_back_what_was_renamed(tmp_path, monkeypatch):
    first, second = tmp_path / "first", tmp_path / "second"
    first.write_bytes(b"old")
    replace = os.replace

    def failing(source, target):
        if target == second:
            raise OSError(errno.EIO, "broken")
        replace(source, target)

    monkeypatch.setattr(files.os, "replace", failing)
    with Transaction() as transaction:
        transaction.stage(first, lambda file: file.write(b"new"), FileState.of(first))
        transaction.stage(second, lambda file: file.write(b"new"), None)
        with pytest.raises(ProjectError, match="broken"):
            transaction.commit()
    assert everything(tmp_path) == {Path("first"): b"old", **older_states("first", b"old", b"new")}


def test_backups_do_not_need_hard_links(tmp_path, monkeypatch):
    def no_links(source, target):
        raise OSError(errno.EPERM, "no links here")

    monkeypatch.setattr(files.os, "link", no_links)
    path = tmp_path / "a"
    path.write_bytes(b"1")
    with Transaction() as transaction:
        transaction.stage(path, lambda file: file.write(b"2"), FileState.of(path))
        transaction.commit()
    assert everything(tmp_path) == {Path("a"): b"2", **older_states("a", b"1", b"2")}


@pytest.mark.parametrize("where", ["write", "flush"])
def test_a_full_disk_leaves_the_old_state_and_one_clear_line(project, monkeypatch, where):
    entry = project.entry("a")
    entry.write_objects(annotation(3))
    before = everything(project.path.parent)

    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    if where == "write":
        monkeypatch.setattr(files._HashingFile, "write", full)
    else:
        monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(ProjectError, match=r"no space left to write .*data\.qpdata; free some space") as caught:
        entry.write_objects(annotation(3))
    assert "\n" not in str(caught.value)
    monkeypatch.undo()
    assert everything(project.path.parent) == before
    assert len(entry.read_objects()) == 3


def test_a_full_disk_while_the_first_data_file_is_made_leaves_no_folder(project, monkeypatch):
    monkeypatch.setattr(files._HashingFile, "write", lambda *args: (_ for _ in ()).throw(OSError(errno.ENOSPC, "full")))
    with pytest.raises(ProjectError, match="no space left"):
        project.entry("a").write_objects(annotation())
    assert not (project.path.parent / "data").exists()


def test_a_file_that_changed_after_reading_is_not_written(project):
    entry = project.entry("a")
    entry.write_objects(annotation(2))
    mine = open_project(project.path).entry("a")
    mine.read_objects()
    entry.write_objects(annotation(2))  # somebody else
    before = everything(project.path.parent)
    with pytest.raises(ChangedOnDiskError, match="close the image in QuPath"):
        mine.write_objects(annotation())
    assert everything(project.path.parent) == before
    assert len(mine.read_objects()) == 4  # reading again makes it good
    assert mine.write_objects(annotation()).n_added == 1


def test_a_file_that_changes_while_it_is_edited_is_not_written(project):
    entry = project.entry("a")
    entry.write_objects(annotation(2))
    data_file = project.path.parent / "data/1/data.qpdata"
    status = data_file.stat()

    def edit_while_another_writes():
        with entry.edit() as change:
            change.add(annotation())
            content = data_file.read_bytes()
            data_file.write_bytes(content[:-1] + b"X")  # same size
            os.utime(data_file, ns=(status.st_atime_ns, status.st_mtime_ns))  # same time

    with pytest.raises(ChangedOnDiskError):
        edit_while_another_writes()
    assert data_file.read_bytes()[-1:] == b"X"


def test_a_file_that_appears_meanwhile_is_not_overwritten(project):
    entry = project.entry("a")
    assert len(entry.read_objects()) == 0
    other = open_project(project.path).entry("a")
    other.write_objects(annotation())
    with pytest.raises(ChangedOnDiskError):
        entry.write_objects(annotation())


def test_a_block_that_raises_writes_nothing(project):
    entry = project.entry("a")

    def stumble():
        with entry.edit() as change:
            change.add(annotation())
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        stumble()
    assert entry.read_objects().empty


def test_what_does_not_read_back_is_not_put_in_place(project, monkeypatch):
    entry = project.entry("a")
    entry.write_objects(annotation(2))
    before = everything(project.path.parent)
    count = datafile.count_objects
    monkeypatch.setattr(datafile, "count_objects", lambda root: count(root) | {("cell", None): id(root)})
    with pytest.raises(FormatError, match="nothing was replaced"):
        entry.write_objects(annotation())
    assert everything(project.path.parent) == before


def test_the_own_backup_is_the_state_before(project):
    entry = project.entry("a")
    entry.write_objects(annotation(2))
    data_file = project.path.parent / "data/1/data.qpdata"
    before = data_file.read_bytes()
    entry.write_objects(annotation(1))
    assert data_file.with_name("data.qpdata.qupath-ext-backup").read_bytes() == before


def test_a_save_of_qupath_that_was_interrupted_is_not_taken_for_an_empty_image(project):
    entry = project.entry("a")
    entry.write_objects(annotation(2))
    data_file = project.path.parent / "data/1/data.qpdata"
    data_file.rename(data_file.with_name("data.qpdata.bkp"))
    with pytest.raises(ProjectError, match="stopped while saving"):
        entry.read_objects()
    with pytest.raises(ProjectError, match="stopped while saving"):
        open_project(project.path).entry("a").write_objects(annotation())


def test_a_damaged_data_file_is_named_and_not_overwritten(project):
    entry = project.entry("a")
    entry.write_objects(annotation(2))
    data_file = project.path.parent / "data/1/data.qpdata"
    data_file.write_bytes(data_file.read_bytes()[:-30])
    before = everything(project.path.parent)
    entry = open_project(project.path).entry("a")
    with pytest.raises(FormatError, match=r"data\.qpdata: "):
        entry.read_objects()
    with pytest.raises(FormatError, match=r"data\.qpdata: "):
        entry.write_objects(annotation())
    assert everything(project.path.parent) == before
