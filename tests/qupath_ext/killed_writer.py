"""Forks writers and kills them; the tests of faults run it as a process of its own.

Everything is imported once, so that a writer begins to write the moment it is forked. Each line on stdin is a JSON
object with ``task`` (a function of this module), ``arguments``, ``writers`` (how many at once) and ``delay`` (kill
after so many seconds, or null); each answer is a JSON object with the exit codes and the seconds that it took.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
import traceback
import uuid
from pathlib import Path

import numpy as np
import PIL.JpegImagePlugin  # noqa: F401 - what a write needs is loaded before it
import shapely

import pyhisto.slide  # noqa: F401
import qupath_ext.native.builders
import qupath_ext.native.edit  # noqa: F401
from pyhisto.objects import concat_objects, make_objects
from qupath_ext.errors import ChangedOnDiskError
from qupath_ext.native.lock import WriterLock
from qupath_ext.project import open_project

N_CELLS = 2000
CLASSES = {"Killed": -65536, "Killed: Twice": None}


def objects(first: int, n: int = N_CELLS):
    """Return one annotation and n cells below it, with ids that follow from `first`."""
    ids = [str(uuid.UUID(int=first + i)) for i in range(n + 1)]
    x, y = np.arange(n) % 50 * 20.0, np.arange(n) // 50 * 20.0
    area = make_objects([shapely.box(0, 0, 1000, 1000)], object_type="annotation", ids=ids[:1])
    cells = make_objects(
        shapely.buffer(shapely.points(x, y), 6, quad_segs=3),
        object_type="cell",
        ids=ids[1:],
        parent_id=ids[0],
        classification=np.where(np.arange(n) % 2, "Tumor", "Stroma"),
        measurements={"Nucleus: Area": np.arange(n) / 4},
    )
    return concat_objects([area, cells])


OLD, NEW = objects(1 << 64), objects(2 << 64)
REMOVED = list(OLD.index[-N_CELLS // 2 :])


def write(project: str, slide: str) -> None:
    """Change the objects of the image ``a``, then the classes, then add the image ``b``."""
    opened = open_project(project, backend="native")
    with opened.entry("a").edit() as change:
        change.add(NEW)
        change.remove(REMOVED)
        change.lock([OLD.index[0]])
    opened.add_classes(CLASSES)
    opened.add_image(slide, name="b")


def write_until(project: str, slide: str, step: str) -> None:
    """Do the same, but end without any cleaning up before the call number `step` that changes something on the disk."""
    calls = [0]

    def ending(call):
        def wrapped(*args, **kwargs):
            calls[0] += 1
            if calls[0] > int(step):
                os._exit(9)
            return call(*args, **kwargs)

        return wrapped

    for owner, name in ((os, "replace"), (os, "fsync"), (os, "link"), (os, "unlink"), (Path, "open"), (Path, "mkdir")):
        setattr(owner, name, ending(getattr(owner, name)))
    write(project, slide)


def append(project: str, times: int) -> None:
    """Add one object again and again; read again whenever another writer was faster."""
    done = 0
    while done < times:
        try:
            open_project(project, backend="native").entry("a").write_objects(
                make_objects([shapely.box(0, 0, 1, 1)], object_type="annotation")
            )
            done += 1
        except ChangedOnDiskError:
            time.sleep(0.001)


def hold(project: str) -> None:
    """Keep the lock of a project until killed."""
    with WriterLock(Path(project)):
        time.sleep(60)


def _run(task: str, arguments: list) -> int:
    """Fork a writer; returns its process id."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            globals()[task](*arguments)
            code = 0
        except BaseException:  # noqa: BLE001 - the process must not go on as a copy of this one
            traceback.print_exc()
        finally:
            os._exit(code)
    return child


def main() -> None:
    """Answer until stdin ends."""
    print("ready", flush=True)
    for line in sys.stdin:
        order = json.loads(line)
        start = time.monotonic()
        children = [_run(order["task"], order["arguments"]) for _ in range(order["writers"])]
        if order["delay"] is not None:
            time.sleep(order["delay"])
            for child in children:
                os.kill(child, signal.SIGKILL)
        codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
        print(json.dumps({"codes": codes, "seconds": time.monotonic() - start}), flush=True)


if __name__ == "__main__":
    main()
