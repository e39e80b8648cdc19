"""Training: one visible loop (``loop.py``) with the parts it calls beside it.

Settings come without torch; :func:`train` loads it.

On several GPUs of one machine, or as several processes on CPUs, the program is started through torch's launcher::

    torchrun --nproc-per-node 2 -m qupath_ext train PROJECT --study study.toml --output BUNDLE

Each step is then the same as on one device: see :mod:`pyhisto.train.distributed`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pyhisto.train.settings import TrainSettings

if TYPE_CHECKING:
    from pyhisto.train.loop import TrainResult, train

__all__ = ["TrainResult", "TrainSettings", "train"]


def __getattr__(name: str) -> Any:
    if name not in {"TrainResult", "train"}:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from pyhisto.train import loop

    return getattr(loop, name)
