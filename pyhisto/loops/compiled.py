"""Loops over pixels and outlines, compiled by Numba at their first call and kept on disk for the next start.

For what numpy can only do with many passes over memory. Compiled loops leave the interpreter's lock, so that a thread
that works on one window runs beside the network that predicts the next.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar, cast

import numba

__all__ = ["compiled"]

F = TypeVar("F", bound=Callable[..., object])


def compiled(function: F) -> F:
    """Compile a function on numbers and arrays; indices are not checked.

    What it calls must be compiled too and stand in the same module: the machine code on disk is renewed when that
    file changes. Of numpy it should call little but ``empty`` and ``zeros``: to compile ``diff``, ``sort`` or
    ``unique`` takes longer than all of a loop.
    """
    options = {"nogil": True, "error_model": "numpy", "no_cfunc_wrapper": True}
    try:
        return cast("F", numba.njit(cache=True, **options)(function))
    except RuntimeError:  # no folder to keep machine code in
        return cast("F", numba.njit(**options)(function))
