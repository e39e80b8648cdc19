"""Threads that work through one list of images, each with models of its own."""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Generic, TypeAlias, TypeVar

__all__ = ["Crew", "Progress", "Work"]

Item = TypeVar("Item")
Found = TypeVar("Found")
Progress: TypeAlias = Callable[[str, int, int], None]
"""Called with the stage, the number of windows done and the number in all."""

Work: TypeAlias = Callable[[Item, Progress], Found]
"""Works on one item. It calls the progress often: that is where it is stopped."""

TICK_S = 0.1
"""How often progress is shown while nothing is finished."""

STOP_S = 10.0
"""How long lanes get to notice that they are to stop; they write nothing, so that one that does not may be left."""


class Crew(Generic[Item, Found]):
    """Lanes that take items from one list.

    Parameters
    ----------
    items
        What is to be done.
    lanes
        What each lane does with an item.
    show
        Progress, called in the thread of whoever takes what is found.
    """

    def __init__(self, items: Iterable[Item], lanes: Iterable[Work[Item, Found]], show: Progress | None = None) -> None:
        self._waiting = deque(items)
        self._lanes = list(lanes)
        self._finished: queue.Queue[tuple[Item, Found] | BaseException | None] = queue.Queue(len(self._lanes))
        self._stop = threading.Event()
        self._board = _Board(self._stop, show)

    def __iter__(self) -> Iterator[tuple[Item, Found]]:
        """Yield items as lanes finish them; each lane may be one item ahead of whoever takes them.

        What a lane raises is raised here, and ends all lanes; so does whoever takes no more.
        """
        threads = [
            threading.Thread(target=self._attend, args=(number, work), name=f"lane {number}", daemon=True)
            for number, work in enumerate(self._lanes)
        ]
        for thread in threads:
            thread.start()
        try:
            yield from self._take(len(threads))
        finally:
            self._stop.set()
            deadline = time.monotonic() + STOP_S
            for thread in threads:
                thread.join(max(0.0, deadline - time.monotonic()))

    def _take(self, running: int) -> Iterator[tuple[Item, Found]]:
        while running:
            self._board.show()
            try:
                found = self._finished.get(timeout=TICK_S)
            except queue.Empty:
                continue
            if isinstance(found, BaseException):
                raise found
            if found is None:
                running -= 1
            else:
                self._board.show()
                yield found

    def _attend(self, number: int, work: Work[Item, Found]) -> None:
        """Work through the list; the body of a lane's thread."""
        try:
            while self._waiting and not self._stop.is_set():
                try:
                    item = self._waiting.popleft()
                except IndexError:  # another lane took the last one
                    break
                found = work(item, partial(self._board.note, number))
                self._board.leave(number)
                self._put((item, found))
            self._put(None)
        except BaseException as error:  # noqa: BLE001 - raised again in the thread of whoever takes
            self._put(error)

    def _put(self, found: tuple[Item, Found] | BaseException | None) -> None:
        while not self._stop.is_set():
            with contextlib.suppress(queue.Full):
                self._finished.put(found, timeout=TICK_S)
                return


class _Stopped(BaseException):
    """Ends the work of a lane whose result is not wanted any more."""


class _Board:
    """Where lanes note how far they are, and notice that they are to stop."""

    def __init__(self, stop: threading.Event, show: Progress | None) -> None:
        self._stop = stop
        self._show = show
        self._notes: dict[int, tuple[str, int, int]] = {}
        self._lock = threading.Lock()
        self._shown: tuple[str, int, int] | None = None

    def note(self, number: int, stage: str, done: int, total: int) -> None:
        """Note how far a lane is."""
        if self._stop.is_set():
            raise _Stopped
        with self._lock:
            self._notes[number] = stage, done, total

    def leave(self, number: int) -> None:
        """Note that a lane is done with an item."""
        with self._lock:
            self._notes.pop(number, None)

    def show(self) -> None:
        """Show what changed: the stage of the only lane at work, or what several have before them together."""
        with self._lock:
            notes = list(self._notes.values())
        if not notes or self._show is None:
            return
        now = notes[0]
        if len(notes) > 1:
            total = sum(note[2] for note in notes)
            now = f"{len(notes)} images, {total} windows", sum(note[1] for note in notes), total
        if now != self._shown:
            self._shown = now
            self._show(*now)
