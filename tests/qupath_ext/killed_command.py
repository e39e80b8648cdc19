"""Run a command and kill it, as a power cut would: ``python killed_command.py MODULE NAME CALL ARGUMENTS...``.

The process ends by SIGKILL at the given call of ``MODULE.NAME``, where NAME may be a method, ``Class.method``.
"""

from __future__ import annotations

import importlib
import operator
import os
import signal
import sys
from typing import Any

import pyhisto.device
from qupath_ext.cli import main


def kill_at(module: str, name: str, call: int) -> None:
    owner: Any = importlib.import_module(module)
    if hasattr(owner, "CHECKPOINT_S"):
        owner.CHECKPOINT_S = 0.0
    *classes, last = name.split(".")
    owner = operator.attrgetter(".".join(classes))(owner) if classes else owner
    real = getattr(owner, last)
    calls: list[None] = []

    def counted(*arguments: Any, **options: Any) -> Any:
        calls.append(None)
        if len(calls) == call:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*arguments, **options)

    setattr(owner, last, counted)


if __name__ == "__main__":
    pyhisto.device.has_openvino = lambda: False  # compiling takes seconds
    kill_at(sys.argv[1], sys.argv[2], int(sys.argv[3]))
    main(sys.argv[4:])
