"""Files that are either the old ones or the new ones, whatever happens in between.

A file is written under a temporary name in the same folder, flushed to the disk, checked, and then renamed over the old
one (rename is atomic on one file system). Two older states stay, under names that QuPath neither reads nor deletes:

``<name>.qupath-ext-backup``
    the state before the last write, whoever made it;
``<name>.qupath-ext-original``
    the state as QuPath left it, before the first write since; what a person had before this program began.

Which states are this program's own is known by their SHA-256, in ``<name>.qupath-ext-written``.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
import stat
import threading
import uuid
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Protocol

from qupath_ext.errors import ChangedOnDiskError, ProjectError

__all__ = [
    "BACKUP_SUFFIX",
    "ORIGINAL_SUFFIX",
    "TEMPORARY_SUFFIX",
    "FileState",
    "Transaction",
    "Writable",
    "cannot_write",
    "changed_error",
    "read_back",
    "read_with_state",
    "temporary_target",
]

BACKUP_SUFFIX = ".qupath-ext-backup"
ORIGINAL_SUFFIX = ".qupath-ext-original"
WRITTEN_SUFFIX = ".qupath-ext-written"
HASHED_ASIDE = 1 << 22
"""Bytes from which on a thread is worth its start."""
TEMPORARY_SUFFIX = ".qupath-ext-tmp"


class Writable(Protocol):
    """Something that bytes can be written to."""

    def write(self, data: bytes, /) -> int:
        """Write bytes."""
        ...


class _Digest(threading.Thread):
    """Takes the SHA-256 of bytes beside whatever else is done with them; hashlib leaves the interpreter free."""

    def __init__(self, data: bytes) -> None:
        super().__init__(daemon=True)
        self._data = data
        self._found = ""
        if len(data) > HASHED_ASIDE:
            self.start()
        else:
            self.run()

    def run(self) -> None:
        self._found = hashlib.sha256(self._data).hexdigest()
        self._data = b""

    def result(self) -> str:
        """Return it in hexadecimal; waits for it."""
        if self.ident is not None:
            self.join()
        return self._found


class FileState:
    """What a file was when it was read: size, time of the last change in ns, SHA-256.

    Parameters
    ----------
    size, mtime_ns
        As the file system has them.
    digest
        The SHA-256 in hexadecimal, or what will have it.
    """

    def __init__(self, size: int, mtime_ns: int, digest: str | _Digest) -> None:
        self.size = size
        self.mtime_ns = mtime_ns
        self._digest = digest

    @property
    def digest(self) -> str:
        """SHA-256 in hexadecimal."""
        return self._digest if isinstance(self._digest, str) else self._digest.result()

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, FileState):
            return NotImplemented
        same = (self.size, self.mtime_ns) == (other.size, other.mtime_ns)
        return same and self.digest == other.digest

    def __hash__(self) -> int:
        return hash((self.size, self.mtime_ns))

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
    return data, FileState(len(data), after.st_mtime_ns, _Digest(data))


def read_back(temporary: Path) -> bytes:
    """Read what was staged.

    Raises
    ------
    ProjectError
        If it cannot be read.
    """
    try:
        return temporary.read_bytes()
    except OSError as error:
        raise cannot_write(temporary.with_name(temporary_target(temporary)), error) from error


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
    target: Path  # the file itself where `path` is a link to it
    temporary: Path
    before: FileState | None
    backup: bool
    digest: str = ""


class Transaction:
    """Writes several files, all or none of them (as far as renames go, which follow each other at the end).

    Use as a context manager: what was staged and not committed is removed on leaving. Files are put in place in the
    order in which they were staged, so what refers to others comes last.

    Parameters
    ----------
    lock
        Entered and left with the transaction; keeps other writers out
        (:class:`qupath_ext.native.lock.WriterLock`).

    Attributes
    ----------
    states
        The states of the files that were put in place.
    """

    def __init__(self, lock: AbstractContextManager[Any] | None = None) -> None:
        self._lock = lock or nullcontext()
        self._staged: list[_Staged] = []
        self._folders: list[Path] = []
        self.states: dict[Path, FileState] = {}

    def __enter__(self) -> Transaction:
        self._lock.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            for item in self._staged:
                with contextlib.suppress(OSError):
                    item.temporary.unlink(missing_ok=True)
            for folder in reversed(self._folders):
                with contextlib.suppress(OSError):
                    folder.rmdir()
        finally:
            self._lock.__exit__(kind, error, trace)

    def _make_folder(self, folder: Path) -> None:
        missing = [parent for parent in (folder, *folder.parents) if not parent.exists()]
        for parent in reversed(missing):
            parent.mkdir(exist_ok=True)
            self._folders.append(parent)

    def stage(
        self, path: Path, write: Callable[[Writable], Any], before: FileState | None, *, backup: bool = True
    ) -> Path:
        """Write the new contents of `path` beside it.

        Parameters
        ----------
        path
            The file to replace or to make; where it is a symbolic link, the file that it leads to.
        write
            Gets a binary file and writes the contents.
        before
            State of the file when it was read; None if there was none.
        backup
            Keep the older states of the file.

        Returns
        -------
        pathlib.Path
            The temporary file, complete and on the disk.

        Raises
        ------
        ProjectError
            If it cannot be written, for example because the disk is full; nothing is left behind.
        """
        target = path.resolve() if path.is_symlink() else path
        staged = _Staged(path, target, _temporary(target), before, backup)
        self._staged.append(staged)
        try:
            self._make_folder(target.parent)
            with staged.temporary.open("xb") as file:
                hashing = _HashingFile(file)
                write(hashing)
                file.flush()
                os.fsync(file.fileno())
            staged.digest = hashing.sha256.hexdigest()
            if before is not None:
                staged.temporary.chmod(stat.S_IMODE(target.stat().st_mode))
        except OSError as error:
            with contextlib.suppress(OSError):
                staged.temporary.unlink(missing_ok=True)
            raise cannot_write(path, error) from error
        return staged.temporary

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
            try:
                if item.backup and item.before is not None:
                    _keep_older_states(item.target, item.before.digest, item.digest)
            except OSError as error:
                raise cannot_write(item.path, error) from error
        for number, item in enumerate(self._staged):
            if number and item.target.parent != self._staged[number - 1].target.parent:
                self._sync_folders()  # what is referred to is on the disk before what refers to it
            try:
                status = item.temporary.stat()
                os.replace(item.temporary, item.target)  # noqa: PTH105 - says that it is the atomic one
            except BaseException as error:
                for done in reversed(self._staged[:number]):
                    _put_back(done)
                if isinstance(error, OSError):
                    raise cannot_write(item.path, error) from error
                raise
            self.states[item.path] = FileState(status.st_size, status.st_mtime_ns, item.digest)
        self._sync_folders()
        self._staged.clear()
        self._folders.clear()

    def _sync_folders(self) -> None:
        folders = {item.target.parent: None for item in self._staged} | {f.parent: None for f in self._folders}
        for folder in folders:
            _sync_folder(folder)


def cannot_write(path: Path, error: Exception) -> ProjectError:
    """Build the error for a file that the operating system would not write."""
    code = error.errno if isinstance(error, OSError) else errno.ENOSYS
    if code in (errno.ENOSPC, errno.EDQUOT):
        return ProjectError(f"no space left to write {path}", remedy="free some space; the project is as it was")
    if code in (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP):
        return ProjectError(
            f"the file system of {path} has no file locks, so that nothing is written there",
            remedy="mount it with locks, or work on a copy of the project on a local disk",
        )
    reason = error.strerror if isinstance(error, OSError) else None
    return ProjectError(f"{path} cannot be written: {reason or error}", remedy="the project is as it was")


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
            item.target.unlink()
        elif item.backup:
            shutil.copy2(_beside(item.target, BACKUP_SUFFIX), item.temporary)
            os.replace(item.temporary, item.target)  # noqa: PTH105


# ---------------------------------------------------------------------- names and older states
def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}{TEMPORARY_SUFFIX}")


def temporary_target(temporary: Path) -> str:
    """Return the name of the file that a temporary file would have become; empty if it is no temporary file of ours."""
    if not temporary.name.startswith(".") or not temporary.name.endswith(TEMPORARY_SUFFIX):
        return ""
    return temporary.name.removeprefix(".").removesuffix(TEMPORARY_SUFFIX).rpartition(".")[0]


def _beside(path: Path, suffix: str) -> Path:
    return path.with_name(path.name + suffix)


def _keep_older_states(path: Path, old: str, new: str) -> None:
    """Keep the present state of a file, and note the SHA-256 of what will replace it."""
    record = _beside(path, WRITTEN_SUFFIX)
    own = record.read_text(encoding="ascii", errors="replace").split() if record.exists() else []
    if old not in own:
        _keep(path, _beside(path, ORIGINAL_SUFFIX))
    _keep(path, _beside(path, BACKUP_SUFFIX))
    lines = [digest for digest in own if digest == old] + [new]  # the old one is still there if this is interrupted
    temporary = _temporary(path)
    try:
        with temporary.open("xb") as file:
            file.write("".join(line + "\n" for line in lines).encode())
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, record)  # noqa: PTH105
    finally:
        temporary.unlink(missing_ok=True)


def _keep(path: Path, copy: Path) -> None:
    temporary = _temporary(path)
    try:
        try:
            os.link(path, temporary)
        except OSError:  # a file system without hard links
            shutil.copyfile(path, temporary)
            _sync_file(temporary)
            shutil.copystat(path, temporary)
        os.replace(temporary, copy)  # noqa: PTH105
    finally:
        temporary.unlink(missing_ok=True)


def _sync_file(path: Path) -> None:
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    if os.name == "nt":
        return
    with contextlib.suppress(OSError):  # some network file systems cannot; the rename itself is done
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
