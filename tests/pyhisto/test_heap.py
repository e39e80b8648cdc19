"""The heap of a process of its own: what is far too much goes back, what is wanted again does not."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or platform.libc_ver()[0] != "glibc", reason="only glibc's allocator gives memory back"
)

START = """
from pathlib import Path
from pyhisto.heap import heap

def pages():
    return int(Path("/proc/self/statm").read_text().split()[1])

def mib(number):
    return [b"x" * (32 << 10) for _ in range(32 * number)]  # so small that they are not mapped by themselves
"""

GAPS = """
print(heap.settle())  # what a process has at first is left alone
blocks = mib(300)
last = blocks[-1]
del blocks
before = pages()
print(heap.settle(), (before - pages()) * 4096 >> 20)
"""

TILES = """
heap.settle()
for _ in range(4):
    blocks = mib(200)
    last = blocks[-1]
    del blocks
    blocks = mib(150)
    print(heap.settle())
    del blocks, last
"""


def run(script: str) -> list[str]:
    command = [sys.executable, "-c", START + script]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()


def test_gaps_go_back() -> None:
    """Nearly all of 300 MiB is free; the last block lies behind it."""
    first, settled, gone = run(GAPS)
    assert (first, settled) == ("False", "True")
    assert 280 <= int(gone) <= 310


def test_what_is_wanted_again_at_once_may_stay() -> None:
    """150 of a network's 200 MiB for each tile are in use; the others go back once."""
    assert run(TILES)[1:] == ["False", "False", "False"]
