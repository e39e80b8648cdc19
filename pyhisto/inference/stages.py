"""Stages of a pipeline that run at the same time, each in a thread of its own."""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

__all__ = ["in_thread", "mapped_ahead"]

_T = TypeVar("_T")
_U = TypeVar("_U")

PATIENCE_S = 0.1
"""How long a waiting stage takes at most to notice that it is no longer wanted."""

_END = object()


def in_thread(items: Generator[_T, None, None], stop: threading.Event, *, depth: int) -> Generator[_T, None, None]:
    """Yield what a generator gives, which runs in a thread and is at most `depth` items ahead, with the one it makes.

    Parameters
    ----------
    items
        Runs in the thread from its first item to its end; closed there.
    stop
        Set when this generator is closed before its end; shared by the stages of a pipeline, so that all of them end.
    depth
        Items that nobody has taken yet.

    Raises
    ------
    BaseException
        What `items` raises, as it was raised.
    """
    waiting: queue.SimpleQueue[Any] = queue.SimpleQueue()
    room = threading.Semaphore(depth)
    thread = threading.Thread(target=_work, args=(items, waiting, room, stop), daemon=True)
    thread.start()
    over = False
    try:
        while not over:
            try:
                item = waiting.get(timeout=PATIENCE_S)
            except queue.Empty:
                over = stop.is_set()
                continue
            room.release()
            over = item is _END or isinstance(item, _Failure)
            if isinstance(item, _Failure):
                raise item.error
            if not over:
                yield item
    finally:
        if not over:
            stop.set()
        thread.join()


class _Failure:
    """An error on its way from one thread to another."""

    def __init__(self, error: BaseException) -> None:
        self.error = error


def _work(
    items: Generator[Any, None, None],
    waiting: queue.SimpleQueue[Any],
    room: threading.Semaphore,
    stop: threading.Event,
) -> None:
    """Hand items over until they end or nobody wants them; an error is the last one."""
    try:
        while not stop.is_set():
            if room.acquire(timeout=PATIENCE_S):
                item = next(items, _END)
                waiting.put(item)
                if item is _END:
                    return
    except BaseException as error:  # noqa: BLE001 - raised again where the items are taken
        waiting.put(_Failure(error))
    finally:
        items.close()


def mapped_ahead(
    function: Callable[[_T], _U], items: Iterable[_T], *, threads: int, ahead: int
) -> Generator[_U, None, None]:
    """Yield the results of a function in the order of the items; threads work on at most `ahead` of the next ones."""
    with ThreadPoolExecutor(threads) as pool:
        waiting: deque[Future[_U]] = deque()
        try:
            for item in items:
                waiting.append(pool.submit(function, item))
                if len(waiting) > ahead:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
