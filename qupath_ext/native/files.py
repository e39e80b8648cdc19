"""Files that are either the old ones or the new ones, whatever happens in between.

A file is written under a temporary name in the same folder, flushed to the disk, checked, and then renamed over the old
one (rename is atomic on one file system); the old one stays as ``<name>.qupath-ext-backup``, a name that QuPath neither
reads nor deletes.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
import stat
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Protocol

from qupath_ext.errors import ChangedOnDiskError, ProjectError

__all__ = ["BACKUP_SUFFIX", "FileState", "Transaction", "Writable", "changed_error", "read_with_state"]

BACKUP_SUFFIX = ".qupath-ext-backup"
TEMPORARY_SUFFIX = ".qupath-ext-tmp"


class Writable(Protocol):
    """Something that bytes can be written to."""

    def write(self, data: bytes, /) -> int:
        """Write bytes."""
        ...


@dataclass(frozen=True)
class FileState:
    """What a file was when it was read."""

    size: int
    mtime_ns: int
    digest: str

    @staticmethod
    def of(path: Path) -> FileState | None:
        """Return the present state of a file, None if there is no such file."""
        return None if not path.exists() else read_with_state(path)[1]


def read_with_state(path: Path) -> tuple[bytes, FileState]:
    """Read a file together with its state.

    Raises
    ------
    ChangedOnDiskError
        If it changes while it is read.
    ProjectError
        If it cannot be read.
    """
    try:
        before = path.stat()
        data = path.read_bytes()
        after = path.stat()
    except OSError as error:
        raise ProjectError(f"{path} cannot be read: {error.strerror}") from error
    if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns) or len(data) != after.st_size:
        raise ChangedOnDiskError(f"{path} changed while it was read", remedy="close the image in QuPath and try again")
    return data, FileState(len(data), after.st_mtime_ns, hashlib.sha256(data).hexdigest())


class _HashingFile:
    """A binary file that takes the SHA-256 of what is written to it."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.sha256 = hashlib.sha256()

    def write(self, data: bytes) -> int:
        self.sha256.update(data)
        return self._file.write(data)


@dataclass
class _Staged:
    path: Path
    temporary: Path
    before: FileState | None
    digest: str = ""


class Transaction:
    """Writes several files, all or none of them (as far as renames go, which follow each other at the end).

    Use as a context manager: what was staged and not committed is removed on leaving.

    Attributes
    ----------
    states
        The states of the files that were put in place.
    """

    def __init__(self) -> None:
        self._staged: list[_Staged] = []
        self._folders: list[Path] = []
        self.states: dict[Path, FileState] = {}

    def __enter__(self) -> Transaction:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for item in self._staged:
            with contextlib.suppress(OSError):
                item.temporary.unlink(missing_ok=True)
        for folder in reversed(self._folders):
            with contextlib.suppress(OSError):
                folder.rmdir()

    def _make_folder(self, folder: Path) -> None:
        missing = [parent for parent in (folder, *folder.parents) if not parent.exists()]
        for parent in reversed(missing):
            parent.mkdir(exist_ok=True)
            self._folders.append(parent)

    def stage(self, path: Path, write: Callable[[Writable], Any], before: FileState | None) -> Path:
        """Write the new contents of `path` beside it.

        Parameters
        ----------
        path
            The file to replace or to make.
        write
            Gets a binary file and writes the contents.
        before
            State of the file when it was read; None if there was none.

        Returns
        -------
        pathlib.Path
            The temporary file, complete and on the disk.

        Raises
        ------
        ProjectError
            If it cannot be written, for example because the disk is full; nothing is left behind.
        """
        temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}{TEMPORARY_SUFFIX}")
        staged = _Staged(path, temporary, before)
        self._staged.append(staged)
        try:
            self._make_folder(path.parent)
            with temporary.open("xb") as file:
                hashing = _HashingFile(file)
                write(hashing)
                file.flush()
                os.fsync(file.fileno())
            staged.digest = hashing.sha256.hexdigest()
            if before is not None:
                temporary.chmod(stat.S_IMODE(path.stat().st_mode))
        except OSError as error:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise _cannot_write(path, error) from error
        return temporary

    def commit(self) -> None:
        """Put all staged files in place.

        Raises
        ------
        ChangedOnDiskError
            If one of the files is not what it was when it was read; none is touched then.
        ProjectError
            If a file cannot be put in place.
        """
        for item in self._staged:
            _check_unchanged(item.path, item.before)
        for item in self._staged:
            if item.before is not None:
                try:
                    _keep_backup(item.path)
                except OSError as error:
                    raise _cannot_write(item.path, error) from error
        for number, item in enumerate(self._staged):
            try:
                os.replace(item.temporary, item.path)  # noqa: PTH105 - says that it is the atomic one
                status = item.path.stat()
            except OSError as error:
                for done in reversed(self._staged[:number]):
                    _put_back(done)
                raise _cannot_write(item.path, error) from error
            self.states[item.path] = FileState(status.st_size, status.st_mtime_ns, item.digest)
        for folder in {item.path.parent: None for item in self._staged} | {f.parent: None for f in self._folders}:
            _sync_folder(folder)
        self._staged.clear()
        self._folders.clear()


def _cannot_write(path: Path, error: OSError) -> ProjectError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return ProjectError(f"no space left to write {path}", remedy="free some space; the project is as it was")
    return ProjectError(f"{path} cannot be written: {error.strerror or error}", remedy="the project is as it was")


def _check_unchanged(path: Path, before: FileState | None) -> None:
    try:
        now = path.stat() if path.exists() else None
    except OSError as error:
        raise ProjectError(f"{path} cannot be read: {error.strerror}") from error
    if before is None and now is None:
        return
    if before is None or now is None:
        what = "appeared" if before is None else "disappeared"
    elif (now.st_size, now.st_mtime_ns) != (before.size, before.mtime_ns) or FileState.of(path) != before:
        what = "changed"
    else:
        return
    raise changed_error(path, what)


def changed_error(path: Path, what: str = "changed") -> ChangedOnDiskError:
    """Build the error for a file that is not what it was when it was read."""
    return ChangedOnDiskError(
        f"{path} {what} after it was read, nothing was written",
        remedy="close the image in QuPath, read it again and repeat",
    )


def _put_back(item: _Staged) -> None:
    """Undo one replacement, as far as that is possible."""
    with contextlib.suppress(OSError):
        if item.before is None:
            item.path.unlink()
        else:
            shutil.copy2(_backup(item.path), item.temporary)
            os.replace(item.temporary, item.path)  # noqa: PTH105


def _backup(path: Path) -> Path:
    return path.with_name(path.name + BACKUP_SUFFIX)


def _keep_backup(path: Path) -> None:
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}{TEMPORARY_SUFFIX}")
    try:
        try:
            os.link(path, temporary)
        except OSError:  # a file system without hard links
            shutil.copy2(path, temporary)
        os.replace(temporary, _backup(path))  # noqa: PTH105
    finally:
        temporary.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    if os.name == "nt":
        return
    with contextlib.suppress(OSError):  # some network file systems cannot; the rename itself is done
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
