"""PNG and JPEG images as slides of one level, decoded when the first pixel is asked for, through Pillow."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile

from pyhisto.errors import SlideError, UnsupportedSlideError

__all__ = ["MAX_PIXELS", "PngJpegReader", "is_png_or_jpeg"]

MAX_PIXELS = 100_000_000
"""Largest image that is read: it is in memory as a whole, 3 bytes a pixel."""

_PNG, _JPEG = b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"
_BIT_DEPTH_AT = 24
"""Where a PNG says how many bits a sample has: in its first chunk, IHDR (PNG specification, 11.2.2)."""


def is_png_or_jpeg(path: Path) -> bool:
    """Whether a file begins as a PNG or JPEG does."""
    with path.open("rb") as file:
        return file.read(len(_PNG)).startswith((_PNG, _JPEG))


class PngJpegReader:
    """Pixels of a PNG or JPEG file.

    Neither says how large a pixel is in a way that can be trusted (their densities are those of printers), so `mpp` is
    None. Transparency is dropped, as QuPath drops it.

    Parameters
    ----------
    path
        An 8-bit RGB image, with or without transparency.

    Raises
    ------
    UnsupportedSlideError
        If it is no 8-bit RGB image, has more than :data:`MAX_PIXELS`, or its header is damaged.
    """

    name = "pillow"
    magnification: float | None = None
    mpp: tuple[float, float] | None = None
    bounds: tuple[int, int, int, int] | None = None

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._pixels: npt.NDArray[np.uint8] | None = None
        with path.open("rb") as file:
            head = file.read(_BIT_DEPTH_AT + 1)
        is_png = head.startswith(_PNG)
        self.vendor = "png" if is_png else "jpeg"
        try:
            # the classes themselves: Image.open warns of large images before their size can be asked for
            self._image = PngImageFile(path) if is_png else JpegImageFile(path)
        except (OSError, SyntaxError, ValueError, IndexError) as error:
            raise UnsupportedSlideError(f"Pillow: {error}") from error
        width, height = self._image.size
        self.level_dimensions: tuple[tuple[int, int], ...] = ((width, height),)
        if (what := self._refused(head if is_png else b"")) is not None:
            self._image.close()
            raise UnsupportedSlideError(what[0], expected=what[1], remedy=what[2])

    def _refused(self, head: bytes) -> tuple[str, str, str] | None:
        """Return what is wrong with the image, what it should be and what helps; None if nothing is."""
        width, height = self._image.size
        if width * height > MAX_PIXELS:
            found = f"{self.vendor.upper()} of {width} x {height} px, which cannot be read in parts"
            return found, f"at most {MAX_PIXELS // 1_000_000} million px", "convert it to a pyramidal TIFF"
        mode = f"{self._image.mode} with 16 bits" if head[_BIT_DEPTH_AT:] == b"\x10" else self._image.mode
        if mode not in {"RGB", "RGBA"}:
            return f"{self.vendor.upper()} with pixels of the kind {mode}", "8-bit RGB", "convert it to RGB"
        return None

    def read(self, level: int, x: int, y: int, width: int, height: int) -> npt.NDArray[np.uint8]:
        """Return RGB uint8 (height, width, 3); the rectangle lies inside the image, `level` is 0."""
        del level
        with self._lock:
            if self._pixels is None:
                self._pixels = self._decoded()
        return self._pixels[y : y + height, x : x + width].copy()

    def _decoded(self) -> npt.NDArray[np.uint8]:
        try:
            return np.array(self._image, dtype=np.uint8)[..., :3]
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise SlideError(
                f"slide {self._path.name}: pixels cannot be decoded ({error})",
                remedy="the file is damaged; copy it again",
            ) from error

    def close(self) -> None:
        """Close the file and forget its pixels."""
        self._image.close()
        self._pixels = None
