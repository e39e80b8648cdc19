"""Works on devices with a memory of their own (``separate_device.cpp``); run as a process of its own.

A device of another kind than the CPU changes what torch says of this machine, and whoever touches its memory crashes:
tests talk to a process. Each line on stdin is a JSON object with ``task`` (a function of this module) and its
``arguments``; each answer is a line with the JSON object that the function returns.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import traceback
import types
from pathlib import Path
from typing import Any

SOURCE = Path(__file__).with_suffix(".cpp")
NAME = "separate"
MEMORY = 1 << 30
"""Bytes of a device, unless a test says so."""


# -------------------------------------------------------------------------------------------------- for the tests
def why_not() -> str:
    """Return why the device cannot be built here; empty where it can."""
    if sys.platform != "linux":
        return "needs Linux"
    if shutil.which("c++") is None:
        return "needs a C++ compiler"
    return "" if Path(sysconfig.get_path("include"), "Python.h").is_file() else "needs Python's C headers"


def build(folder: Path) -> Path:
    """Compile the device, which takes 20 seconds; return the library."""
    from torch.utils.cpp_extension import include_paths, library_paths

    out = folder / "separate_device.so"
    command = ["c++", "-shared", "-fPIC", "-std=c++20", "-O1", "-DTORCH_EXTENSION_NAME=separate_device", str(SOURCE)]
    command += [part for path in (*include_paths(), sysconfig.get_path("include")) for part in ("-isystem", path)]
    command += [part for path in library_paths() for part in (f"-L{path}", f"-Wl,-rpath,{path}")]
    command += ["-lc10", "-ltorch_cpu", "-ltorch", "-ltorch_python", "-o", str(out)]
    subprocess.run(command, check=True)
    return out


class Worker:
    """The process, for a test."""

    def __init__(self, library: Path) -> None:
        environment = {**os.environ, "QUPATH_EXT_BACKEND": "native", "OMP_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            [sys.executable, __file__, str(library)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )

    def ask(self, task: str, **arguments: Any) -> Any:
        """Return what a function of this module says there."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps({"task": task, "arguments": arguments}) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        assert line, f"the process ended with {self._process.wait()}: it touched the device's memory, or was killed"
        answer = json.loads(line)
        assert "error" not in answer, answer["error"]
        return answer["found"]

    def close(self) -> None:
        """End the process."""
        self._process.communicate()


# --------------------------------------------------------------------------------------------------- in the process
def register(library: str) -> Any:
    """Make the device known to torch; return the module of the library."""
    import torch

    spec = importlib.util.spec_from_file_location("separate_device", library)
    assert spec is not None
    assert spec.loader is not None
    built = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(built)
    module = types.ModuleType(f"torch.{NAME}")

    def memory(device: str) -> tuple[int, int]:
        return built.limit() - built.used(torch.device(device).index or 0), built.limit()

    told = {
        "is_available": lambda: True,
        "is_initialized": lambda: True,
        "device_count": lambda: 2,
        "current_device": built.current_device,
        "get_device_name": lambda number: f"memory {number}",
        "mem_get_info": memory,
        "empty_cache": lambda: None,
        "manual_seed_all": lambda seed: None,
        "_is_in_bad_fork": lambda: False,
    }
    vars(module).update(told)
    torch.utils.rename_privateuse1_backend(NAME)
    torch._register_device_module(NAME, module)  # type: ignore[no-untyped-call]
    built.set_limit(MEMORY)
    return built


def refusals() -> list[str]:
    """Return what torch says of two operations on tensors of different devices."""
    import torch

    here = torch.ones(2, 3)
    said = []
    for first, second in ((here, here.to(f"{NAME}:1")), (here.to(f"{NAME}:0"), here.to(f"{NAME}:1"))):
        try:
            torch.nn.functional.linear(first, second)
        except RuntimeError as error:
            said.append(str(error))
    return said


def command(arguments: list[str], limit: int = MEMORY) -> dict[str, Any]:
    """Run qupath-ext where each device has `limit` bytes; return how it ended and what each device did."""
    from click.testing import CliRunner

    from qupath_ext.cli import main

    before = [library.operations(number) for number in range(2)]
    library.set_limit(limit)
    result = CliRunner().invoke(main, arguments)
    library.set_limit(MEMORY)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    operations = [library.operations(number) - before[number] for number in range(2)]
    return {"code": result.exit_code, "stdout": result.stdout, "stderr": result.stderr, "operations": operations}


def differences(folder: str, mpp: float | None, precision: str, shape: list[int]) -> dict[str, float]:
    """Return how far what a model says on a device is from what it says on the CPU, and how far that is spread."""
    import numpy as np

    from pyhisto.bundle.anymodel import load_model

    tiles = np.random.default_rng(3).integers(0, 256, (3, *shape, 3), dtype=np.uint8)
    models = (load_model(folder, device=device, mpp=mpp, precision=precision) for device in ("cpu", f"{NAME}:1"))
    mine, theirs = (_said(model, tiles) for model in models)
    return {"most": float(np.abs(mine - theirs).max()), "spread": float(np.ptp(mine))}


def _said(model: Any, tiles: Any) -> Any:
    """Return all that a model of any kind says of RGB tiles, uint8 (n, h, w, 3), in a row."""
    import numpy as np

    if model.spec.kind == "tile_classification":
        return model.classify(np.stack([model.pixels(tile) for tile in tiles])).ravel()
    found = model.predict(tiles)
    parts = found.values() if isinstance(found, dict) else [found]
    return np.concatenate([part.ravel() for part in parts])


def narrow(folder: str, mpp: float | None, shape: list[int], limit: int) -> dict[str, Any]:
    """Return how far a model is from itself where only `limit` bytes are left for its tiles, and the calls it takes.

    With a hundred bytes it is refused; what is said then stands there, too.
    """
    import numpy as np

    from pyhisto.bundle.anymodel import load_model
    from pyhisto.errors import BundleError

    model = load_model(folder, device=f"{NAME}:1", mpp=mpp)
    tiles = np.random.default_rng(3).integers(0, 256, (8, *shape, 3), dtype=np.uint8)
    operations, said = [], []
    for bytes_left in (MEMORY, library.used(1) + limit):
        library.set_limit(bytes_left)
        before = library.operations(1)
        said.append(_said(model, tiles))
        operations.append(library.operations(1) - before)
    library.set_limit(library.used(1) + 100)
    try:
        refused = str(_said(model, tiles))
    except BundleError as error:
        refused = str(error)
    library.set_limit(MEMORY)
    return {"most": float(np.abs(said[0] - said[1]).max()), "operations": operations, "refused": refused}


if __name__ == "__main__":
    out, sys.stdout = sys.stdout, sys.stderr
    library = register(sys.argv[1])
    for line in sys.stdin:
        asked = json.loads(line)
        try:
            answer = {"found": globals()[asked["task"]](**asked["arguments"])}
        except Exception:  # noqa: BLE001 - the test shows it
            answer = {"error": traceback.format_exc()}
        print(json.dumps(answer), file=out, flush=True)
