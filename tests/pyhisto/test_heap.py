"""The heap of a process of its own: memory is used again, and what is far too much goes back."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or platform.libc_ver()[0] != "glibc", reason="only glibc's allocator is told what to do"
)

FAULTS = """
import resource, sys
from pyhisto.heap import keep_freed_memory
kept = keep_freed_memory() if sys.argv[1] == "kept" else None
b"x" * (80 << 20)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    b"x" * (80 << 20)
print(kept, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""

GAPS = """
import sys
from pathlib import Path
from pyhisto.heap import heap, keep_freed_memory

def pages():
    return int(Path("/proc/self/statm").read_text().split()[1])

print(heap.settle())
keep_freed_memory()
blocks = [b"x" * (1 << 20) for _ in range(300)]
if sys.argv[1] == "seen":
    print(heap.settle())
last = blocks[-1]
del blocks
before = pages()
print(heap.settle(), (before - pages()) * 4096 >> 20, len(last))
"""


def run(script: str, *arguments: str, **settings: str) -> list[str]:
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("MALLOC_", "GLIBC_"))}
    command = [sys.executable, "-c", script, *arguments]
    done = subprocess.run(command, env=environment | settings, capture_output=True, text=True, check=True)
    return done.stdout.split()


def test_freed_memory_is_used_again() -> None:
    """Five times 80 MiB are 102,400 pages of 4 KiB; used again, not even the pages of one of them are new."""
    kept, few = run(FAULTS, "kept")
    assert kept == "True"
    assert int(few) < 20_000
    assert int(few) < int(run(FAULTS, "as it is")[1]) / 4


def test_who_says_how_memory_is_handled_is_left_alone() -> None:
    assert run(FAULTS, "kept", MALLOC_ARENA_MAX="4")[0] == "False"


def test_what_is_far_more_than_was_ever_in_use_goes_back() -> None:
    """299 of 300 MiB are free, and the last block lies behind them."""
    unkept, settled, gone, _ = run(GAPS, "not seen")
    assert (unkept, settled) == ("False", "True")
    assert 280 <= int(gone) <= 310


def test_what_was_in_use_may_stay() -> None:
    unkept, in_use, settled, gone, _ = run(GAPS, "seen")
    assert (unkept, in_use, settled) == ("False", "False", "False")
    assert int(gone) < 20
