"""The memory that a process has from the system, and gives back."""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path

__all__ = ["SPARE", "Heap", "heap", "share_heap"]

M_ARENA_MAX = -8
"""The number by which mallopt(3) knows the most heaps that a process may have."""

SPARE = 2.0
"""Size that the process may grow to before memory is given back, in what it had then, unless told otherwise."""


class Heap:
    """The heap of this process; for glibc."""

    def __init__(self) -> None:
        self._left = 0
        """What the process had when memory was last given back."""
        libc = ctypes.CDLL(None) if sys.platform == "linux" else None
        self._trim = getattr(libc, "malloc_trim", None)

    def settle(self, spare: float = SPARE) -> bool:
        """Give back what is free if the process has grown by more than is spare; return whether it was.

        Arrays of many sizes leave gaps that others do not fit into, so that a heap grows to several times what is in
        use. To be called between pieces of work that take a tenth of a second or more: it takes some milliseconds, and
        what is needed again must be handed out anew. Does nothing where the system has another allocator.

        Parameters
        ----------
        spare
            Size that the process may grow to before, in what it had then.
        """
        size = _resident() if self._trim is not None else 0
        if self._trim is None or size <= spare * self._left:
            return False
        self._trim(0)
        self._left = _resident()
        return True


def _resident() -> int:
    """Return the memory of this process, bytes."""
    return int(Path("/proc/self/statm").read_text("ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")


heap = Heap()
"""That of this process."""


def share_heap() -> bool:
    """Let the threads of this process take their memory from one heap; return whether that could be set.

    glibc gives each thread a heap of its own, which cannot use what another one has free and is given back to the
    system piece by piece: a network that runs in a thread takes a twentieth more time and up to a third more memory.
    Nothing is done on other systems, or where the environment says how memory is to be handled (``MALLOC_*``,
    ``GLIBC_TUNABLES``). To be called before threads start.
    """
    told = any(name.startswith(("MALLOC_", "GLIBC_TUNABLES")) for name in os.environ)
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" and not told else None
    return mallopt is not None and mallopt(M_ARENA_MAX, 1) == 1
