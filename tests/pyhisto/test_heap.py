"""The heap of a process of its own: what is free in it goes back, and threads share it."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or platform.libc_ver()[0] != "glibc", reason="only glibc's allocator gives memory back"
)

START = """
import sys
from pathlib import Path
from pyhisto.heap import heap

def pages():
    return int(Path("/proc/self/statm").read_text().split()[1])

def mib(number):
    return [b"x" * (32 << 10) for _ in range(32 * number)]  # so small that they are not mapped by themselves
"""

GAPS = """
heap.settle()
blocks = mib(300)
last = blocks[-1]
del blocks
before = pages()
print(heap.settle(float(sys.argv[1])), (before - pages()) * 4096 >> 20)
"""


def run(script: str, *arguments: str, **settings: str) -> list[str]:
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("MALLOC_", "GLIBC_"))}
    command = [sys.executable, "-c", START + script, *arguments]
    done = subprocess.run(command, env=environment | settings, capture_output=True, text=True, check=True)
    return done.stdout.split()


def test_gaps_go_back() -> None:
    """Nearly all of 300 MiB is free; the last block lies behind it."""
    settled, gone = run(GAPS, "1")
    assert settled == "True"
    assert 280 <= int(gone) <= 310


def test_what_has_not_grown_by_much_is_left_alone() -> None:
    """A small process has grown to many times what it had, and not to a thousand times."""
    settled, gone = run(GAPS, "1000")
    assert settled == "False"
    assert int(gone) < 20


HEAPS = """
import ctypes, threading
from pyhisto.heap import share_heap
print(share_heap() if sys.argv[1] == "shared" else None)
threads = [threading.Thread(target=mib, args=(4,)) for _ in range(4)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
sys.stdout.flush()
libc = ctypes.CDLL(None)
libc.fdopen.restype = ctypes.c_void_p
out = ctypes.c_void_p(libc.fdopen(1, b"w"))
libc.malloc_info(0, out)
libc.fflush(out)
"""


def heaps(how: str, **settings: str) -> tuple[str, int]:
    """Return what was said of sharing, and how many heaps four threads made together with the first one."""
    told = run(HEAPS, how, **settings)
    return told[0], sum(word.startswith("nr=") for word in told)


def test_threads_share_one_heap() -> None:
    assert heaps("shared") == ("True", 1)
    assert heaps("as it is")[1] > 1


def test_who_says_how_memory_is_handled_is_left_alone() -> None:
    said, number = heaps("shared", MALLOC_ARENA_MAX="4")
    assert said == "False"
    assert number > 1
