"""Stages in threads: how far ahead one is, and what becomes of an error and of an early end."""

from __future__ import annotations

import threading
import time
from collections.abc import Generator
from contextlib import closing

import pytest

from pyhisto.inference.stages import in_thread


class Counted:
    """Numbers from 0 on; knows how many were begun, and whether they were closed."""

    def __init__(self, total: int = 10) -> None:
        self.begun, self.closed, self.total = 0, False, total

    def items(self) -> Generator[int, None, None]:
        try:
            for number in range(self.total):
                self.begun = number + 1
                yield number
        finally:
            self.closed = True


@pytest.mark.parametrize("depth", [1, 3])
def test_a_stage_is_no_farther_ahead_than_it_may(depth: int) -> None:
    counted = Counted()
    with closing(in_thread(counted.items(), threading.Event(), depth=depth)) as items:
        for taken, number in enumerate(items, start=1):
            assert number == taken - 1
            time.sleep(0.03)  # for the thread to go on, if it did
            assert counted.begun <= taken + depth
            if taken == 5:
                assert counted.begun == taken + depth  # and not behind either
    assert counted.closed


def test_an_early_end_ends_the_stage() -> None:
    counted, stop = Counted(1000), threading.Event()
    with closing(in_thread(counted.items(), stop, depth=2)) as items:
        assert next(items) == 0
    assert stop.is_set()
    assert counted.closed
    assert counted.begun <= 4


def test_an_error_comes_out_where_the_items_are_taken() -> None:
    def failing() -> Generator[int, None, None]:
        yield 1
        raise OSError("torn")

    taken = []
    with pytest.raises(OSError, match="torn"):
        taken.extend(in_thread(failing(), threading.Event(), depth=1))
    stop = threading.Event()
    items = in_thread(failing(), stop, depth=1)
    assert next(items) == 1
    with pytest.raises(OSError, match="torn"):
        next(items)
    assert not stop.is_set()  # the stages before end by the error itself
