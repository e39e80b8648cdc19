"""Python's cyclic garbage collector, kept from running while millions of objects are made."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["paused_collector"]


@contextmanager
def paused_collector() -> Iterator[None]:
    """Do not look for reference cycles inside a ``with`` block.

    The collector goes through all objects again and again while their number grows; geometries and tokens that are
    being made are all in use. Making a million polygons takes three times as long with it.
    """
    running = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if running:
            gc.enable()
