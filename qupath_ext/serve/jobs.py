"""The jobs that a worker has, had and will have: one at a time, in the order in which they came."""

from __future__ import annotations

import threading
import time
import uuid
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

from qupath_ext.live.job import Answer
from qupath_ext.serve.refused import Refused

__all__ = ["JobQueue", "Ticket"]

MOST_WAITING = 16
MOST_KEPT = 64
"""Finished jobs whose answers can be asked for."""

MOST_LINES = 2000
MOST_CHARACTERS = 2000
"""Of a line of the log."""

State: TypeAlias = Literal["queued", "running", "done", "failed", "cancelled"]


@dataclass
class Ticket:
    """A job of the queue.

    Attributes
    ----------
    id
        Names it in requests.
    folder
        Its folder.
    state
        ``"queued"``, ``"running"``, and then that of its answer.
    stop
        Set if the job is not wanted any more.
    answer
        What came of it; None until it is finished.
    progress
        Stage, number of steps done and number in all; None before the first step.
    """

    id: str
    folder: Path
    state: State = "queued"
    stop: threading.Event = field(default_factory=threading.Event)
    answer: Answer | None = None
    progress: tuple[str, int, int] | None = None
    _lines: deque[str] = field(default_factory=lambda: deque(maxlen=MOST_LINES))
    _n_lines: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def step(self, stage: str, done: int, total: int) -> None:
        """Note how far it is."""
        self.progress = stage, done, total

    def say(self, text: str) -> None:
        """Add lines to the log."""
        with self._lock:
            for line in text.splitlines():
                self._lines.append(line[:MOST_CHARACTERS])
                self._n_lines += 1

    def lines(self, offset: int) -> tuple[list[str], int]:
        """Return the lines of the log from number `offset` on, as far as they are kept, and the number of all."""
        with self._lock:
            first = self._n_lines - len(self._lines)
            return list(self._lines)[max(0, offset - first) :], self._n_lines


class JobQueue:
    """The jobs of a worker; all methods may be called from any thread."""

    def __init__(self) -> None:
        self._tickets: dict[str, Ticket] = {}
        self._waiting: deque[Ticket] = deque()
        self._changed = threading.Condition()
        self._closed = False

    def submit(self, folder: Path) -> Ticket:
        """Put a job at the end.

        Raises
        ------
        Refused
            If the job waits or runs already, too many wait, or the worker ends.
        """
        with self._changed:
            if self._closed:
                raise Refused(503, "the worker ends")
            if any(one.folder == folder and one.answer is None for one in self._tickets.values()):
                raise Refused(409, f"{folder} waits or runs already")
            if len(self._waiting) >= MOST_WAITING:
                raise Refused(503, f"{len(self._waiting)} jobs wait", remedy="try again when some are done")
            ticket = Ticket(uuid.uuid4().hex, folder)
            self._tickets[ticket.id] = ticket
            self._waiting.append(ticket)
            self._changed.notify_all()
            return ticket

    def ticket(self, job_id: str) -> Ticket:
        """Return a job.

        Raises
        ------
        Refused
            If it is not known, any more or at all.
        """
        with self._changed:
            if job_id not in self._tickets:
                raise Refused(404, f"no job {job_id}")
            return self._tickets[job_id]

    def describe(self, job_id: str, offset: int = 0) -> dict[str, Any]:
        """Return what a request is told about a job, with the lines of its log from number `offset` on.

        Raises
        ------
        Refused
            If it is not known, any more or at all.
        """
        ticket = self.ticket(job_id)
        with self._changed:
            answer, state = ticket.answer, ticket.state
            ahead = self._waiting.index(ticket) + self._n_running() if ticket in self._waiting else 0
        lines, n_lines = ticket.lines(offset)
        return {
            "id": ticket.id,
            "state": state,
            "ahead": ahead,
            "progress": ticket.progress and dict(zip(("stage", "done", "total"), ticket.progress, strict=True)),
            "log": lines,
            "offset": n_lines,
            "answer": None if answer is None else answer.to_dict(),
        }

    def cancel(self, job_id: str) -> None:
        """Take a job out of the queue, or stop it if it runs; one that is finished stays as it is.

        Raises
        ------
        Refused
            If it is not known, any more or at all.
        """
        ticket = self.ticket(job_id)
        with self._changed:
            ticket.stop.set()
            if ticket in self._waiting:
                self._waiting.remove(ticket)
                self._finish(ticket, Answer("cancelled", "Stopped. Nothing was changed."))

    def next(self, patience_s: float) -> Ticket | None:
        """Wait for a job and return it as running; None if none came in time, and then none will be taken any more."""
        deadline = time.monotonic() + patience_s
        with self._changed:
            while not self._waiting and not self._closed:
                if not self._changed.wait(max(0.0, deadline - time.monotonic())) and time.monotonic() >= deadline:
                    self._closed = True
            if self._closed:
                return None
            ticket = self._waiting.popleft()
            ticket.state = "running"
            return ticket

    def finish(self, ticket: Ticket, answer: Answer) -> None:
        """Note what came of a job."""
        with self._changed:
            self._finish(ticket, answer)

    def close(self) -> None:
        """Take no more jobs, cancel those that wait and stop the one that runs."""
        with self._changed:
            self._closed = True
            for ticket in [one for one in self._tickets.values() if one.answer is None]:
                ticket.stop.set()
            while self._waiting:
                self._finish(self._waiting.popleft(), Answer("cancelled", "The worker ended. Nothing was changed."))
            self._changed.notify_all()

    def counts(self) -> dict[str, int]:
        """Return the number of jobs that wait, and that run."""
        with self._changed:
            return {"queued": len(self._waiting), "running": self._n_running()}

    def _n_running(self) -> int:
        return sum(one.state == "running" for one in self._tickets.values())

    def _finish(self, ticket: Ticket, answer: Answer) -> None:
        ticket.answer = answer
        ticket.state = answer.status
        finished = [one.id for one in self._tickets.values() if one.answer is not None]
        for old in finished[:-MOST_KEPT]:
            del self._tickets[old]
