"""Memory that is used again by the next call of the same loops."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["Scratch"]


class Scratch:
    """Arrays by name; each uses the memory of the last one of that name.

    New memory must be handed out and cleared by the system, page by page, which takes longer than many a loop takes to
    fill it.
    """

    def __init__(self) -> None:
        self._kept: dict[str, npt.NDArray[np.uint8]] = {}

    def array(self, name: str, shape: tuple[int, ...], dtype: Any) -> npt.NDArray[Any]:
        """Return an array with anything in it; the last one of that name is not to be used any more."""
        size = math.prod(shape) * np.dtype(dtype).itemsize
        if name not in self._kept or self._kept[name].size < size:
            self._kept.pop(name, None)
            self._kept[name] = np.empty(size, dtype=np.uint8)
        out: npt.NDArray[Any] = self._kept[name][:size].view(dtype).reshape(shape)
        return out

    def clear(self) -> None:
        """Give the memory back; no array is to be used any more."""
        self._kept.clear()
