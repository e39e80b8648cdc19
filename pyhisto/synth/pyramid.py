"""Writes a pyramid that OpenSlide opens as ``generic-tiff``."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tifffile
from numpy.typing import NDArray

__all__ = ["write_pyramid"]

_TILE_PX = 256
_SMALLEST_PX = 256
_JPEG_QUALITY = 90


def write_pyramid(
    path: Path, image: NDArray[np.uint8], mpp: float, *, compression: Literal["jpeg", "deflate"] = "jpeg"
) -> None:
    """Write an image and its reductions by 2, 4, 8, ... as one tiled TIFF, in place at once.

    Parameters
    ----------
    path
        The file; replaced if it exists, and left as it was if anything fails.
    image
        (height, width, 3) uint8, RGB.
    mpp
        Pixel size of level 0 in µm, stored in the resolution tags.
    compression
        JPEG of quality 90, or lossless deflate.

    Raises
    ------
    OSError
        If the file cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        _write(temporary, image, mpp, compression)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _write(path: Path, image: NDArray[np.uint8], mpp: float, compression: str) -> None:
    options: dict[str, Any] = {"tile": (_TILE_PX, _TILE_PX), "metadata": None, "software": "pyhisto"}
    if compression == "jpeg":
        options |= {"compression": "jpeg", "compressionargs": {"level": _JPEG_QUALITY}, "photometric": "rgb"}
        options |= {"subsampling": (1, 1)}  # tifffile turns RGB into YCbCr here
    else:
        options |= {"compression": "adobe_deflate", "predictor": True, "photometric": "rgb"}
    with tifffile.TiffWriter(path, bigtiff=image.nbytes > 2**31) as tiff:
        level = image
        per_cm = 1e4 / mpp
        while True:
            tiff.write(
                level,
                resolution=(per_cm, per_cm),
                resolutionunit="CENTIMETER",
                subfiletype=int(level is not image),
                **options,
            )
            if min(level.shape[:2]) < 2 * _SMALLEST_PX:
                return
            level = _halve(level)
            per_cm /= 2


def _halve(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Average blocks of 2 x 2 pixels; an odd last row or column is left out."""
    rows, columns = image.shape[0] // 2 * 2, image.shape[1] // 2 * 2
    even = image[:rows, :columns].astype(np.uint16)
    total = even[0::2, 0::2] + even[0::2, 1::2] + even[1::2, 0::2] + even[1::2, 1::2]
    return ((total + 2) // 4).astype(np.uint8)
