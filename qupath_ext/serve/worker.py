"""The worker from start to end."""

from __future__ import annotations

import json
import os
import secrets
import signal
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from types import FrameType
from typing import NoReturn

import filelock

import qupath_ext
from pyhisto.errors import PyhistoError
from qupath_ext.errors import ProjectError
from qupath_ext.live.job import Answer
from qupath_ext.live.tasks import run_job
from qupath_ext.serve.folders import AllowedFolders
from qupath_ext.serve.jobs import JobQueue, Ticket
from qupath_ext.serve.models import WarmModels
from qupath_ext.serve.server import WorkerServer
from qupath_ext.serve.warmup import warm_up
from qupath_ext.userstate import state_folder, worker_file, write_private

__all__ = ["serve"]


def serve(
    allow: Iterable[Path] = (),
    *,
    idle_s: float = 1800.0,
    device: str | None = None,
    say: Callable[[str], None] = print,
) -> None:
    """Do jobs until nobody asks for any; the only worker of the user.

    Jobs are done in the calling thread, requests answered in others. It also ends when it is interrupted, or told to
    by the system; a job that it does then has no answer.

    Parameters
    ----------
    allow
        Folders of projects, beside those that have the scripts.
    idle_s
        The worker ends when there was no job for this long.
    device
        Where networks run; as each job or its project says if None.
    say
        Called with lines for whoever watches the worker.

    Raises
    ------
    ProjectError
        If there is a worker already, or its files cannot be written.
    """
    path = worker_file()
    try:
        state_folder().mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = filelock.FileLock(path.with_suffix(".lock"), timeout=0)
        with lock:
            path.unlink(missing_ok=True)  # of a worker that was killed
            _serve(path, AllowedFolders(allow), idle_s, WarmModels(device), say)
    except filelock.Timeout as error:
        raise ProjectError(
            f"a worker runs already, as {path} says",
            expected="none",
            remedy="use that one, or end it with qupath-ext serve --stop",
        ) from error


def _serve(path: Path, allowed: AllowedFolders, idle_s: float, models: WarmModels, say: Callable[[str], None]) -> None:
    begin = time.perf_counter()
    warm_up()
    queue = JobQueue()
    token = secrets.token_urlsafe(32)
    with WorkerServer(token, queue, allowed) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.1}, daemon=True).start()
        before = signal.signal(signal.SIGTERM, _interrupt)
        try:
            content = {"url": server.url, "token": token, "pid": os.getpid(), "version": qupath_ext.__version__}
            write_private(path, json.dumps(content))
            say(f"ready at {server.url} after {time.perf_counter() - begin:.1f} s")
            while (ticket := queue.next(idle_s)) is not None:
                answer = _answer(ticket, allowed, models)
                queue.finish(ticket, answer)
                say(f"{answer.status} in {answer.seconds:.2f} s: {answer.message.partition(chr(10))[0]}")
        except KeyboardInterrupt:
            say("interrupted")
        finally:
            path.unlink(missing_ok=True)
            queue.close()
            server.shutdown()
            signal.signal(signal.SIGTERM, before)


def _answer(ticket: Ticket, allowed: AllowedFolders, models: WarmModels) -> Answer:
    """Do a job; whatever happens, the worker goes on."""
    try:
        folder = allowed.admit(str(ticket.folder))
        return run_job(folder, models=models, cancelled=ticket.stop.is_set, progress=ticket.step, say=ticket.say)
    except PyhistoError as error:
        return Answer.failed(error)
    except OSError as error:  # the folder went away while the job was done
        return Answer.failed(f"{ticket.folder}: {error.strerror or error}")


def _interrupt(number: int, frame: FrameType | None) -> NoReturn:
    """End as if somebody had pressed Ctrl-C."""
    del number, frame
    raise KeyboardInterrupt
