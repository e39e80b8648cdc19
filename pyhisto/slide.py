"""A slide: RGB pixels at a given µm/px from a whole-slide image.

OpenSlide is asked first; of what it refuses, a PNG or JPEG is read with Pillow, any other file with tifffile. All
positions are level-0 pixels of the frame that QuPath shows (x right, y down): the slide cropped to its
``openslide.bounds-*``, where it has them.
"""

from __future__ import annotations

import math
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

import numpy as np
import numpy.typing as npt
from PIL import Image

from pyhisto.errors import MissingPixelSizeError, SlideError, UnsupportedSlideError
from pyhisto.loops.resampling import resample

__all__ = ["Slide"]

MPP_RANGE = (0.02, 20.0)
"""Pixel sizes in µm that a slide scan can have; a 72 dpi tag says 352.8 and means nothing."""

_SUBPIXELS = 1 << 16
"""Into how many parts a pixel is divided where it is resampled."""

_BLOCK_PX = 256
"""Side of the squares in which OpenSlide's coarse levels are read."""


class _Reader(Protocol):
    """What a file format gives: levels, a pixel size if it knows one, and pixels of one level."""

    name: str
    level_dimensions: tuple[tuple[int, int], ...]
    mpp: tuple[float, float] | None
    magnification: float | None
    vendor: str
    bounds: tuple[int, int, int, int] | None

    def read(self, level: int, x: int, y: int, width: int, height: int) -> npt.NDArray[np.uint8]: ...

    def close(self) -> None: ...


class Slide:
    """A whole-slide image, opened for reading; use it as a context manager.

    Parameters
    ----------
    path
        The file.
    mpp
        Pixel size of level 0 in µm, one number or (x, y); overrides what the file says.
    crop_to_bounds
        Take the slide's ``openslide.bounds-*`` rectangle as the whole slide, as QuPath does unless its server
        arguments say ``--no-crop``.
    series
        Which image of the file, from 0, in the order of the OME-XML; OpenSlide knows one only.

    Raises
    ------
    SlideError
        If the file does not exist or is damaged.
    UnsupportedSlideError
        If no reader reads it as 8-bit RGB, it is a PNG or JPEG too large for memory, or it has no such series.

    Attributes
    ----------
    dimensions : tuple of int
        Width and height at level 0, pixels.
    level_dimensions : tuple of tuple of int
        Width and height of each level, as stored, level 0 first.
    level_downsamples : tuple of float
        Level-0 pixels to one pixel of each level.
    magnification : float or None
        Objective power, where the file names it.
    series : int
        Which image of the file.
    reader : str
        ``"openslide"``, ``"tifffile"`` or ``"pillow"``.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        mpp: float | tuple[float, float] | None = None,
        crop_to_bounds: bool = True,
        series: int = 0,
    ) -> None:
        self.path = Path(path)
        if not self.path.is_file():
            raise SlideError(f"slide {self.path} does not exist", remedy="check the path")
        self.series = series
        self._reader = _open_reader(self.path, series)
        self.reader = self._reader.name
        self.vendor = self._reader.vendor
        self.magnification = self._reader.magnification
        self.level_dimensions = self._reader.level_dimensions
        width, height = self.level_dimensions[0]
        self.level_downsamples = tuple((width / w + height / h) / 2 for w, h in self.level_dimensions)
        self._origin = (0, 0)
        self.dimensions = (width, height)
        if crop_to_bounds and self._reader.bounds is not None:
            self._origin = self._reader.bounds[:2]
            self.dimensions = self._reader.bounds[2:]
        self.mpp_override = _as_pair(mpp)
        self.mpp_source = "option" if self.mpp_override else "file"

    @property
    def mpp(self) -> tuple[float, float]:
        """Pixel size of level 0 in µm, (x, y).

        Raises
        ------
        MissingPixelSizeError
            If the file has none, or one that no scanner produces, and none was given.
        """
        if self.mpp_override is not None:
            return self.mpp_override
        found = self._reader.mpp
        if found is None:
            raise MissingPixelSizeError(
                f"slide {self.path.name} has no pixel size",
                expected="µm per pixel in the file",
                remedy="give it with --mpp",
            )
        if not all(MPP_RANGE[0] <= value <= MPP_RANGE[1] for value in found):
            raise MissingPixelSizeError(
                f"slide {self.path.name} says {found[0]:g} x {found[1]:g} µm/px",
                expected=f"between {MPP_RANGE[0]} and {MPP_RANGE[1]:g}",
                remedy="give the true value with --mpp",
            )
        return found

    @property
    def origin(self) -> tuple[int, int]:
        """Where the slide's own frame begins in its file, (x, y), level-0 px; (0, 0) unless it is cropped to bounds."""
        return self._origin

    @property
    def mean_mpp(self) -> float:
        """Mean of the two pixel sizes in µm, as QuPath averages them."""
        return (self.mpp[0] + self.mpp[1]) / 2

    def read_region(
        self, x: float, y: float, width: int, height: int, *, mpp: float | None = None
    ) -> npt.NDArray[np.uint8]:
        """Read a rectangle at a given resolution.

        Parameters
        ----------
        x, y
            Top left corner, level-0 px; may lie outside the slide.
        width, height
            Size of the result in pixels at `mpp`.
        mpp
            Pixel size of the result in µm; None reads level 0 as it is.

        Returns
        -------
        numpy.ndarray
            RGB uint8, shape (height, width, 3). Pixels outside the slide are white. The nearest finer level is read
            and resampled with a triangle filter as wide as two pixels of the result, as Pillow's antialiased bilinear
            one, whose pixels depend on the box they are read in.

        Raises
        ------
        MissingPixelSizeError
            If `mpp` is given and the slide's own pixel size is not known.
        SlideError
            If the pixels cannot be decoded.
        """
        if mpp is None:
            return self.read_downsampled(x, y, width, height, (1.0, 1.0))
        own = self.mpp
        return self.read_downsampled(x, y, width, height, (mpp / own[0], mpp / own[1]))

    def read_tile(self, x: float, y: float, *, tile_size: int, mpp: float) -> npt.NDArray[np.uint8]:
        """Read a square tile: RGB uint8 (tile_size, tile_size, 3) at `mpp` µm/px from level-0 px (x, y)."""
        return self.read_region(x, y, tile_size, tile_size, mpp=mpp)

    def read_downsampled(
        self, x: float, y: float, width: int, height: int, downsample: tuple[float, float]
    ) -> npt.NDArray[np.uint8]:
        """Read a rectangle with given downsamples in x and y; see :meth:`read_region`."""
        if width < 1 or height < 1:
            raise SlideError(f"region of {width} x {height} px", expected="at least 1 x 1 px")
        level = self._level_for(min(downsample))
        scale = [full / own for full, own in zip(self.level_dimensions[0], self.level_dimensions[level], strict=True)]
        left, top = (x + self._origin[0]) / scale[0], (y + self._origin[1]) / scale[1]
        step = (downsample[0] / scale[0], downsample[1] / scale[1])
        if all(abs(s - 1) < 1e-9 for s in step) and all(abs(at - round(at)) < 0.5 / _SUBPIXELS for at in (left, top)):
            return self._read_level(level, round(left), round(top), width, height)
        inside = self._level_bounds(level)
        columns, across = _triangles(left, step[0], width, inside[::2])
        rows, down = _triangles(top, step[1], height, inside[1::2])
        x0, y0 = int(columns.min()), int(rows.min())
        x1, y1 = int(columns.max()) + across.shape[1], int(rows.max()) + down.shape[1]
        pixels = self._read_level(level, x0, y0, x1 - x0, y1 - y0)
        out = np.empty((height, width, 3), dtype=np.uint8)
        resample(np.ascontiguousarray(pixels), (rows - y0, down), (columns - x0, across), out)
        return out

    def thumbnail(self, max_size: tuple[int, int] = (1000, 600)) -> npt.NDArray[np.uint8]:
        """Return the whole slide, RGB uint8 (H, W, 3), fitted into `max_size` (width, height) without enlarging."""
        width, height = self.dimensions
        downsample = max(1.0, width / max_size[0], height / max_size[1])
        size = max(1, round(width / downsample)), max(1, round(height / downsample))
        return self.read_downsampled(0, 0, *size, (width / size[0], height / size[1]))

    def close(self) -> None:
        """Close the file."""
        self._reader.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Slide({self.path.name!r}, {self.dimensions[0]} x {self.dimensions[1]} px, {self.reader})"

    def _level_for(self, downsample: float) -> int:
        """Return the coarsest level that is not coarser than asked for (1 % of tolerance)."""
        fitting = [i for i, own in enumerate(self.level_downsamples) if own <= downsample * 1.01]
        return max(fitting, key=lambda i: self.level_downsamples[i], default=0)

    def _level_bounds(self, level: int) -> tuple[int, int, int, int]:
        """Return (x0, y0, x1, y1) of the slide in pixels of a level."""
        width, height = self.level_dimensions[level]
        across, down = self.level_dimensions[0][0] / width, self.level_dimensions[0][1] / height
        x0, y0 = round(self._origin[0] / across), round(self._origin[1] / down)
        x1 = min(width, round((self._origin[0] + self.dimensions[0]) / across))
        y1 = min(height, round((self._origin[1] + self.dimensions[1]) / down))
        return x0, y0, x1, y1

    def _read_level(self, level: int, x: int, y: int, width: int, height: int) -> npt.NDArray[np.uint8]:
        """Read pixels of one level; white where the slide (or its bounds) ends."""
        left, top, right, bottom = self._level_bounds(level)
        x0, y0 = max(x, left), max(y, top)
        x1, y1 = min(x + width, right), min(y + height, bottom)
        if (x0, y0, x1, y1) == (x, y, x + width, y + height):
            return self._reader.read(level, x, y, width, height)
        out = np.full((height, width, 3), 255, dtype=np.uint8)
        if x1 > x0 and y1 > y0:
            out[y0 - y : y1 - y, x0 - x : x1 - x] = self._reader.read(level, x0, y0, x1 - x0, y1 - y0)
        return out


def _triangles(
    start: float, step: float, n: int, inside: tuple[int, int]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """Return the first source pixel of each of `n` means, int64 (n,), and the weights, float32 (n, k), along one axis.

    Weights fall linearly from the centre of a mean, which is `step` px wide, to a distance of that (1 px at least).
    Centres are whole fractions of a pixel, so that no weight depends on where the first mean begins.

    Parameters
    ----------
    start
        Where the first mean begins, px.
    step, n
        Width and number of the means.
    inside
        Where the slide begins and ends. White from beyond is only mixed into what lies there in part.
    """
    centre = np.round((start + (np.arange(n) + 0.5) * step) * _SUBPIXELS) / _SUBPIXELS
    reach = max(step, 1.0)
    first = np.floor(centre - reach + 0.5).astype(np.int64)
    pixel = first[:, None] + np.arange(math.ceil(2 * reach) + 1)
    weights = np.maximum(1 - np.abs(pixel + 0.5 - centre[:, None]) / reach, 0)
    border = 1 / _SUBPIXELS
    within = (centre - step / 2 >= inside[0] - border) & (centre + step / 2 <= inside[1] + border)
    weights[within[:, None] & ((pixel < inside[0]) | (pixel >= inside[1]))] = 0
    return first, (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)


def _as_pair(mpp: float | tuple[float, float] | None) -> tuple[float, float] | None:
    if mpp is None:
        return None
    pair = (float(mpp[0]), float(mpp[1])) if isinstance(mpp, tuple) else (float(mpp), float(mpp))
    if not all(MPP_RANGE[0] <= value <= MPP_RANGE[1] for value in pair):
        raise MissingPixelSizeError(
            f"pixel size {pair[0]:g} x {pair[1]:g} µm",
            expected=f"between {MPP_RANGE[0]} and {MPP_RANGE[1]:g} µm",
            remedy="correct --mpp",
        )
    return pair


def _open_reader(path: Path, series: int) -> _Reader:
    """Open with OpenSlide, else with the reader of its kind; say what both found if neither can."""
    import openslide

    from pyhisto.readers.pngjpeg import PngJpegReader, is_png_or_jpeg
    from pyhisto.readers.tiff import TiffReader

    if series != 0:
        return TiffReader(path, series)
    try:
        return _OpenSlideReader(path)
    except openslide.OpenSlideUnsupportedFormatError:
        reason = "OpenSlide does not know its format"
    except openslide.OpenSlideError as error:
        reason = f"OpenSlide: {error}"
    try:
        return PngJpegReader(path) if is_png_or_jpeg(path) else TiffReader(path)
    except UnsupportedSlideError as error:
        raise UnsupportedSlideError(
            f"slide {path.name} cannot be read ({reason}; {error.found})",
            expected=error.expected or "a format of OpenSlide, or an 8-bit RGB TIFF, OME-TIFF, PNG or JPEG",
            remedy=error.remedy or "convert it to a pyramidal TIFF",
        ) from error


class _OpenSlideReader:
    name = "openslide"

    def __init__(self, path: Path) -> None:
        import openslide

        self._slide = openslide.OpenSlide(path)
        self._error = openslide.OpenSlideError
        properties = self._slide.properties
        self._path = path
        self.level_dimensions = tuple(self._slide.level_dimensions)
        self.vendor = properties.get(openslide.PROPERTY_NAME_VENDOR, "")
        self.mpp = _numbers(properties, openslide.PROPERTY_NAME_MPP_X, openslide.PROPERTY_NAME_MPP_Y)
        power = _numbers(properties, openslide.PROPERTY_NAME_OBJECTIVE_POWER)
        self.magnification = power[0] if power else None
        bounds = _numbers(properties, *(f"openslide.bounds-{key}" for key in ("x", "y", "width", "height")))
        self.bounds = (int(bounds[0]), int(bounds[1]), int(bounds[2]), int(bounds[3])) if bounds else None

    def read(self, level: int, x: int, y: int, width: int, height: int) -> npt.NDArray[np.uint8]:
        step = self._slide.level_downsamples[level]
        if step == int(step):
            return self._read(level, (x * int(step), y * int(step)), width, height)
        # OpenSlide is asked for a pixel of level 0. Where none lies at the corner of the pixel that is meant, it moves
        # the image by less than a pixel: it must do so alike for whatever is read of a place.
        out = np.empty((height, width, 3), dtype=np.uint8)
        for top in range(y // _BLOCK_PX * _BLOCK_PX, y + height, _BLOCK_PX):
            for left in range(x // _BLOCK_PX * _BLOCK_PX, x + width, _BLOCK_PX):
                y0, x0 = max(y, top), max(x, left)
                y1, x1 = min(y + height, top + _BLOCK_PX), min(x + width, left + _BLOCK_PX)
                block = self._read(level, (round(left * step), round(top * step)), x1 - left, y1 - top)
                out[y0 - y : y1 - y, x0 - x : x1 - x] = block[y0 - top :, x0 - left :]
        return out

    def _read(self, level: int, location: tuple[int, int], width: int, height: int) -> npt.NDArray[np.uint8]:
        """Return RGB uint8 (height, width, 3) from a pixel (x, y) of level 0 on."""
        try:
            image = self._slide.read_region(location, level, (width, height))
        except self._error as error:
            raise SlideError(
                f"slide {self._path.name}: pixels at level 0 {location} cannot be decoded ({error})",
                remedy="the file is damaged; copy it again from the scanner",
            ) from error
        rgba = np.asarray(image)
        alpha = rgba[..., 3]
        if alpha.min() == 255:
            return np.ascontiguousarray(rgba[..., :3])
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        return np.asarray(Image.alpha_composite(white, image).convert("RGB"))

    def close(self) -> None:
        self._slide.close()


def _numbers(properties: Any, *keys: str) -> Any:
    """Return the properties as a tuple of floats, or None if one is missing or no number."""
    try:
        return tuple(float(properties[key]) for key in keys)
    except (KeyError, ValueError):
        return None
