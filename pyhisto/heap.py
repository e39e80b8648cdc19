"""The memory that a process has from the system, and gives back."""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path

__all__ = ["Heap", "heap", "share_heap"]

M_ARENA_MAX = -8
"""The number by which mallopt(3) knows the most heaps that a process may have."""

SPARE = 1.2
"""Size that the process may grow to, in what it had when memory was last given back."""

REGAINED = 0.6
"""Share of what was given back that shows, if the process asks for it anew at once, that it was in use."""


class Heap:
    """The heap of this process, and how far it may grow before memory is given back; for glibc."""

    def __init__(self) -> None:
        self._before = self._left = 0
        self._allowed = 0
        self._just_settled = False
        libc = ctypes.CDLL(None) if sys.platform == "linux" else None
        self._trim = getattr(libc, "malloc_trim", None)

    def settle(self) -> bool:
        """Give back what is free if the process has grown by much since it last did; return whether it was.

        Arrays of many sizes leave gaps that others do not fit into, so that a heap grows to several times what is in
        use. Where most of what was given back is wanted again by the next call, as by a network for its next tile, it
        is left alone from then on. To be called from time to time, in the midst of the work; does nothing where the
        system has another allocator.
        """
        if self._trim is None:
            return False
        size = _resident()
        self._allowed = self._allowed or round(SPARE * size)
        if self._just_settled and size - self._left >= REGAINED * (self._before - self._left):
            self._allowed = self._before
        self._just_settled = size > self._allowed
        if self._just_settled:
            self._trim(0)
            self._before, self._left = size, _resident()
            self._allowed = round(SPARE * self._left)
        return self._just_settled


def _resident() -> int:
    """Return the memory of this process, bytes."""
    return int(Path("/proc/self/statm").read_text("ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")


heap = Heap()
"""That of this process."""


def share_heap() -> bool:
    """Let the threads of this process take their memory from one heap; return whether that could be set.

    glibc gives each thread a heap of its own, which cannot use what another one has free and is given back to the
    system piece by piece: a network that runs in a thread takes a twentieth more time and a third more memory. Nothing
    is done on other systems, or where the environment says how memory is to be handled (``MALLOC_*``,
    ``GLIBC_TUNABLES``). To be called before threads start.
    """
    told = any(name.startswith(("MALLOC_", "GLIBC_TUNABLES")) for name in os.environ)
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" and not told else None
    return mallopt is not None and mallopt(M_ARENA_MAX, 1) == 1
