"""One writer at a time in a project.

The lock is one of the operating system's on ``<project>/qupath_ext/lock``: it ends with the process that holds it,
however that ends, so that nothing is ever stuck. Who holds it stands beside it in ``writer.json``, which is removed
with the lock; found by the next writer, it says that the last one was interrupted. Reading takes no lock.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
import time
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from types import TracebackType

from filelock import FileLock, Timeout

from qupath_ext.errors import ProjectError
from qupath_ext.native.files import cannot_write
from qupath_ext.native.leftovers import LOCK_FILE, WRITER_FILE, clear_up

__all__ = ["WAIT_S", "Writer", "WriterLock"]

WAIT_S = 120.0
"""How long a writer waits for another; writing a million cells takes a fraction of it."""
LOCK_MODE = 0o666  # the file is empty; colleagues who share a project must be able to open it for writing
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Writer:
    """Who writes into a project: process id, host, and when it began (ISO 8601, with time zone)."""

    pid: int
    host: str
    since: str

    @classmethod
    def me(cls) -> Writer:
        """Return this process, from now on."""
        return cls(os.getpid(), socket.gethostname(), datetime.now().astimezone().isoformat(timespec="seconds"))

    @classmethod
    def read(cls, path: Path) -> Writer | None:
        """Return who is named in a file; None if there is no such file. What cannot be read is an unknown writer."""
        try:
            content = json.loads(path.read_bytes())
            return cls(int(content["pid"]), str(content["host"]), str(content["since"]))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return cls(0, "an unknown host", "an unknown time")

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}, since {self.since}"


class WriterLock:
    """The right to write into one project; use as a context manager around reading, checking and writing.

    Parameters
    ----------
    folder
        The project folder.
    wait_s
        How long to wait for another writer, seconds.

    Raises
    ------
    ProjectError
        On entering, if another writer does not finish in time, or nothing can be written in the folder.
    """

    def __init__(self, folder: Path, *, wait_s: float = WAIT_S) -> None:
        self._folder = folder
        self._wait_s = wait_s
        # where there are no such locks, a mere file would be one that a killed writer leaves behind: refused
        self._lock = FileLock(folder / LOCK_FILE, mode=LOCK_MODE, fallback_to_soft=False)
        self._searched = False
        self._made: list[Path] = []

    def __enter__(self) -> WriterLock:
        path = self._folder / LOCK_FILE
        self._made = [folder for folder in path.parents if not folder.exists()]
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._acquire()
        except (OSError, NotImplementedError) as error:
            self._remove_folders()
            raise cannot_write(path, error) from error
        try:
            self._begin()
        except BaseException as error:
            self._end(failed=True)
            if isinstance(error, OSError):
                raise cannot_write(self._folder / WRITER_FILE, error) from error
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.suppress(OSError):
            (self._folder / WRITER_FILE).unlink(missing_ok=True)
        self._end(failed=error is not None)

    def _end(self, *, failed: bool) -> None:
        """Release the lock; where nothing was written, the folders that were made for it go as well."""
        try:
            if failed and self._made:
                with contextlib.suppress(OSError):  # whoever waits for it notices that it is gone, and makes a new one
                    (self._folder / LOCK_FILE).unlink(missing_ok=True)
        finally:
            self._lock.release()
        if failed:
            self._remove_folders()

    def _remove_folders(self) -> None:
        with contextlib.suppress(OSError):
            for folder in self._made:
                folder.rmdir()

    def _acquire(self) -> None:
        try:
            self._lock.acquire(timeout=0)
            return
        except Timeout:
            logger.warning("waiting up to %.0f s for %s", self._wait_s, self._holder())
        start = time.monotonic()
        try:
            self._lock.acquire(timeout=self._wait_s)
        except Timeout as error:
            waited = time.monotonic() - start
            raise ProjectError(
                f"{self._holder()}, still after {waited:.0f} s of waiting; nothing was written",
                expected="one writer at a time",
                remedy="let it finish or end it, then run the same command again",
            ) from error

    def _holder(self) -> str:
        writer = Writer.read(self._folder / WRITER_FILE)
        return f"another writer of {self._folder}" + ("" if writer is None else f" ({writer})")

    def _begin(self) -> None:
        """Clear up after a writer that was interrupted, and say who is writing now."""
        path = self._folder / WRITER_FILE
        interrupted = Writer.read(path)
        if interrupted is not None:
            logger.warning("the last writer of %s (%s) was interrupted", self._folder, interrupted)
        if interrupted is not None or not self._searched:
            for message in clear_up(self._folder, look_for_strays=interrupted is not None):
                logger.warning(message)
            self._searched = True
        try:
            path.write_text(json.dumps(asdict(Writer.me())) + "\n", encoding="utf-8")
        except OSError:
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)
            raise
