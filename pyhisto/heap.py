"""The memory that a process has from the system: kept when it is freed, but not without bound. For glibc."""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path

__all__ = ["Heap", "heap", "keep_freed_memory"]

HEAP_BYTES = 1 << 30
"""Arrays up to this size come from the heap, and so much that is free stays at its end."""

MALLOPT = {"M_ARENA_MAX": (-8, 1), "M_MMAP_THRESHOLD": (-3, HEAP_BYTES), "M_TRIM_THRESHOLD": (-1, HEAP_BYTES)}
"""Number and value of each setting, mallopt(3)."""

LARGEST = 1.5
"""Size that the heap may have, in what was in use at once."""

GROWN = 0.3
"""What the process must have grown by since memory was last given back, in the same."""


class _Mallinfo(ctypes.Structure):
    """What mallinfo2(3) returns."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            "arena",
            "ordblks",
            "smblks",
            "hblks",
            "hblkhd",
            "usmblks",
            "fsmblks",
            "uordblks",
            "fordblks",
            "keep",
        )
    ]


class Heap:
    """The heap of this process, and the most of it that was seen in use."""

    def __init__(self) -> None:
        self.kept = False
        self._most = 0
        self._left = 0
        """What the process had when memory was last given back."""
        self._libc = ctypes.CDLL(None) if sys.platform == "linux" else None

    def keep(self) -> bool:
        """Use freed memory again rather than give it back; return whether that could be set."""
        wanted = ("mallopt", "mallinfo2", "malloc_trim")
        if self._libc is not None and all(hasattr(self._libc, name) for name in wanted):
            self._libc.mallinfo2.restype = _Mallinfo
            self.kept = all(self._libc.mallopt(*setting) == 1 for setting in MALLOPT.values())
        return self.kept

    def settle(self) -> bool:
        """Give back what is free where the heap is much larger than what was ever in use; return whether it was.

        Arrays of many sizes leave gaps that others do not fit into, so that a heap grows to several times that.
        """
        if self._libc is None or not self.kept:
            return False
        found = self._libc.mallinfo2()
        self._most = max(self._most, found.uordblks)
        if found.arena <= LARGEST * self._most or _resident() - self._left < GROWN * self._most:
            return False
        self._libc.malloc_trim(0)
        self._left = _resident()
        return True


def _resident() -> int:
    """Return the memory of this process, bytes."""
    return int(Path("/proc/self/statm").read_text("ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")


heap = Heap()
"""That of this process."""


def keep_freed_memory() -> bool:
    """Let this process use the memory again that it freed, rather than give it back and ask for it anew; return if so.

    glibc maps every array of some megabytes by itself, and gives it back when it is freed: the maps of features that a
    network makes of each tile were the same gigabyte of new pages every time, which takes a tenth of the time of a
    prediction on a CPU. Threads share one heap, so that what is free in it does not add up over threads.

    Nothing is done on other systems, or where the environment already says how memory is to be handled (``MALLOC_*``,
    ``GLIBC_TUNABLES``).
    """
    told = any(name.startswith(("MALLOC_", "GLIBC_TUNABLES")) for name in os.environ)
    return not told and heap.keep()
