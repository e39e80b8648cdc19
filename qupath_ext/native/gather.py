"""Bytes and numbers at many places of a file at once."""

from __future__ import annotations

from typing import Any

import numpy as np

__all__ = ["Bytes", "Ints", "at_every_byte", "gather_bytes", "gather_numbers"]

Ints = np.ndarray[Any, np.dtype[np.int64]]
Bytes = np.ndarray[Any, np.dtype[np.uint8]]


def at_every_byte(buffer: Bytes, dtype: np.dtype[Any]) -> np.ndarray[Any, Any]:
    """Return a view of a buffer that has one element of `dtype` at every byte."""
    return np.ndarray(len(buffer) - dtype.itemsize + 1, dtype, buffer, strides=(1,))


def gather_bytes(buffer: Bytes, offsets: Ints, size: int) -> Bytes:
    """Bytes ``[offset, offset + size)`` for each of n offsets, shape (n, size)."""
    if len(offsets) == 0 or size == 0:
        return np.empty((len(offsets), size), dtype=np.uint8)
    return at_every_byte(buffer, np.dtype(f"V{size}"))[offsets].view(np.uint8).reshape(-1, size)


def gather_numbers(buffer: Bytes, offsets: Ints, dtype: str) -> np.ndarray[Any, Any]:
    """One big-endian number of `dtype` at each of n offsets, shape (n,), native byte order."""
    kind = np.dtype(dtype)
    if len(offsets) == 0:
        return np.empty(0, dtype=kind.newbyteorder("="))
    with np.errstate(invalid="ignore"):  # signalling NaN
        return at_every_byte(buffer, kind)[offsets].astype(kind.newbyteorder("="))
