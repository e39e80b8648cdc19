"""Models that stay loaded from job to job."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from pyhisto.bundle.anymodel import AnyModel

__all__ = ["WarmModels"]

MOST_LOADED = 4

_Stamp: TypeAlias = frozenset[tuple[str, int, int]]


class WarmModels:
    """Loads a model when it is first asked for, and again when its files changed.

    Parameters
    ----------
    device
        Where all models run; as each job says if None.
    most
        How many are kept; the one that was not used for longest goes first.
    """

    def __init__(self, device: str | None = None, *, most: int = MOST_LOADED) -> None:
        self._device = device
        self._most = most
        self._loaded: OrderedDict[tuple[Path, str], tuple[_Stamp, AnyModel]] = OrderedDict()

    def get(self, path: Path, device: str) -> AnyModel:
        """Return the model of a folder on a device.

        Raises
        ------
        BundleError
            If it cannot be loaded.
        """
        from pyhisto.bundle.anymodel import load_model

        key = path.resolve(), self._device or device
        stamp = _stamp(key[0])
        known = self._loaded.pop(key, None)
        if known is None or known[0] != stamp:
            del known  # its memory may be needed for the new one
            while len(self._loaded) >= self._most:
                self._loaded.popitem(last=False)
            known = stamp, load_model(path, device=key[1])
        self._loaded[key] = known
        return known[1]


def _stamp(folder: Path) -> _Stamp:
    """Return what changes when a file of a folder does: names, times and sizes."""
    files = [(path, path.stat()) for path in folder.rglob("*") if path.is_file()]
    return frozenset((str(path), state.st_mtime_ns, state.st_size) for path, state in files)
