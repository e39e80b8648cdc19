"""TIFF and OME-TIFF that OpenSlide refuses, read segment by segment through tifffile."""

from __future__ import annotations

import re
import struct
import threading
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pyhisto.errors import SlideError, UnsupportedSlideError

__all__ = ["TiffReader"]

_UM_PER_UNIT = {"µm": 1.0, "μm": 1.0, "um": 1.0, "micron": 1.0, "nm": 1e-3, "mm": 1e3, "cm": 1e4, "m": 1e6}
_UM_PER_RESOLUTION_UNIT = {2: 25400.0, 3: 10000.0}
_RGB, _YCBCR, _MINISBLACK = 2, 6, 1
_DECODED_TO_RGB = {6, 7, 33003, 33004, 33005, 34712}
"""Compressions (JPEG, JPEG 2000) whose decoders turn YCbCr into RGB."""


class TiffReader:
    """Levels and pixels of one image series of a TIFF file.

    Parameters
    ----------
    path
        A TIFF or OME-TIFF with one 8-bit RGB image, with or without a pyramid; samples interleaved (axes YXS), in
        separate planes (SYX), or as three channels (CYX).
    series
        Which image, from 0; any but the first one in an OME-TIFF only, in the order of the OME-XML.

    Raises
    ------
    UnsupportedSlideError
        If the file is no TIFF, has no such image, or none that is 8-bit RGB, or uses a compression that cannot be
        decoded.
    """

    name = "tifffile"

    def __init__(self, path: Path, series: int = 0) -> None:
        import tifffile

        try:
            self._file = tifffile.TiffFile(path)
        except (tifffile.TiffFileError, ValueError, OSError, struct.error) as error:
            raise UnsupportedSlideError(f"tifffile: {error}") from error
        try:
            self._levels = [_Level(level, path.name) for level in _series(self._file, series, path.name).levels]
        except UnsupportedSlideError:
            self._file.close()
            raise
        except (tifffile.TiffFileError, ValueError, OSError, IndexError, KeyError, struct.error) as error:
            self._file.close()
            raise UnsupportedSlideError(f"tifffile: {path.name} has no readable image ({error})") from error
        self._path = path
        self._lock = threading.Lock()
        self.level_dimensions = tuple((level.width, level.height) for level in self._levels)
        self.vendor = "ome-tiff" if self._file.is_ome else "tiff"
        self.bounds: tuple[int, int, int, int] | None = None
        self.mpp, self.magnification = _physical(self._file, series)

    def read(self, level: int, x: int, y: int, width: int, height: int) -> npt.NDArray[np.uint8]:
        """Return RGB uint8 (height, width, 3) of one level; the rectangle lies inside it."""
        try:
            return self._levels[level].read(x, y, width, height, self._lock)
        except (ValueError, RuntimeError, OSError, IndexError) as error:
            raise SlideError(
                f"slide {self._path.name}: pixels of level {level} at ({x}, {y}) cannot be decoded ({error})",
                remedy="the file is damaged or its compression is unknown; copy or convert it again",
            ) from error

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class _Level:
    """One resolution: a contiguous page, a page with separate samples, or three pages, one a channel."""

    def __init__(self, series: Any, name: str) -> None:
        axes, shape = series.axes, series.shape
        if series.dtype != np.uint8 or axes not in {"YXS", "SYX", "CYX"}:
            raise UnsupportedSlideError(f"tifffile: {name} has axes {axes}, shape {shape}, {series.dtype}")
        samples = shape[2] if axes == "YXS" else shape[0]
        if samples not in {3, 4}:
            raise UnsupportedSlideError(f"tifffile: {name} has {samples} channels")
        photometric = int(series.keyframe.photometric)
        fine = {_MINISBLACK} if axes == "CYX" else {_RGB}
        if photometric not in fine | ({_YCBCR} if int(series.keyframe.compression) in _DECODED_TO_RGB else set()):
            raise UnsupportedSlideError(f"tifffile: {name} has colours of the kind {series.keyframe.photometric.name}")
        self.height, self.width = (shape[0], shape[1]) if axes == "YXS" else (shape[1], shape[2])
        self._pages = list(series.pages)[:3] if axes == "CYX" else [series.keyframe]
        if axes == "CYX" and (len(self._pages) < 3 or None in self._pages):
            raise UnsupportedSlideError(f"tifffile: {name} keeps its channels behind {len(self._pages)} page")
        self._keyframe = series.keyframe
        if not _decodable(self._keyframe):
            raise UnsupportedSlideError(f"tifffile: compression {int(self._keyframe.compression)} cannot be decoded")

    def read(self, x: int, y: int, width: int, height: int, lock: threading.Lock) -> npt.NDArray[np.uint8]:
        out = np.zeros((height, width, 3), dtype=np.uint8)
        for number, page in enumerate(self._pages):
            channel = number if len(self._pages) > 1 else None
            self._read_page(page, out, (x, y), channel, lock)
        return out

    def _read_page(
        self, page: Any, out: npt.NDArray[np.uint8], corner: tuple[int, int], channel: int | None, lock: threading.Lock
    ) -> None:
        """Decode the segments (tiles or strips) that touch the rectangle and paste them into `out`.

        Threads take turns at the file, and decode at the same time.
        """
        x, y = corner
        height, width = out.shape[:2]
        for index in self._segments(x, y, width, height):
            with lock:
                offset, count = page.dataoffsets[index], page.databytecounts[index]
                page.parent.filehandle.seek(offset)
                encoded = page.parent.filehandle.read(count)
            if count == 0:
                data, where = None, _position(self._keyframe, index)
            else:
                tables = page.jpegtables if self._keyframe.compression == 7 else None
                data, where, _ = self._keyframe.decode(encoded, index, jpegtables=tables)
            plane, row, column = where[0], where[2], where[3]
            y0, y1 = max(row, y), min(row + _segment_shape(self._keyframe)[0], y + height, self.height)
            x0, x1 = max(column, x), min(column + _segment_shape(self._keyframe)[1], x + width, self.width)
            if y1 <= y0 or x1 <= x0:
                continue
            target = out[y0 - y : y1 - y, x0 - x : x1 - x]
            if data is None:
                target[...] = 255
                continue
            part = data[0, y0 - row : y1 - row, x0 - column : x1 - column, :3]
            if channel is not None:
                target[..., channel] = part[..., 0]
            elif part.shape[-1] == 1:
                if plane < 3:
                    target[..., plane] = part[..., 0]
            else:
                target[...] = part

    def _segments(self, x: int, y: int, width: int, height: int) -> list[int]:
        rows, columns = _segment_shape(self._keyframe)
        across, down = -(-self.width // columns), -(-self.height // rows)
        planes = len(self._keyframe.dataoffsets) // (across * down) or 1
        touched = [
            row * across + column
            for row in range(y // rows, (y + height - 1) // rows + 1)
            for column in range(x // columns, (x + width - 1) // columns + 1)
        ]
        return [plane * across * down + index for plane in range(planes) for index in touched]


def _segment_shape(page: Any) -> tuple[int, int]:
    """Return (height, width) of a tile, or of a strip."""
    if page.is_tiled:
        return page.tilelength, page.tilewidth
    return min(page.rowsperstrip, page.imagelength), page.imagewidth


def _position(page: Any, index: int) -> tuple[int, int, int, int, int]:
    rows, columns = _segment_shape(page)
    across = -(-page.imagewidth // columns)
    down = -(-page.imagelength // rows)
    plane, rest = divmod(index, across * down)
    return plane, 0, rest // across * rows, rest % across * columns, 0


def _decodable(page: Any) -> bool:
    import tifffile

    if page.compression == 1:
        return True
    try:
        tifffile.TIFF.DECOMPRESSORS[page.compression]
    except KeyError:
        return False
    return True


def _series(file: Any, number: int, name: str) -> Any:
    """Return an image of a file; all but the first are only told apart where OME-XML lists them."""
    if number == 0:
        return file.series[0]
    listed = len(_ome_root(file.ome_metadata).findall("{*}Image")) if file.is_ome else 1
    if not 0 < number < listed or len(file.series) != listed:
        found = "no OME-TIFF" if not file.is_ome else f"an OME-TIFF with {len(file.series)} readable images of {listed}"
        raise UnsupportedSlideError(
            f"series {number} of {name}, {found}",
            expected="series 0, or an OME-TIFF that has the series",
        )
    return file.series[number]


def _physical(file: Any, series: int) -> tuple[tuple[float, float] | None, float | None]:
    """Return ((µm/px x, µm/px y) or None, objective power or None) from OME-XML, ImageJ or resolution tags."""
    if file.is_ome:
        return _from_ome(file.ome_metadata, series)
    page = file.series[0].keyframe
    tag_x, tag_y = page.tags.get("XResolution"), page.tags.get("YResolution")
    if tag_x is None or tag_y is None:
        return None, None
    densities = [value[0] / value[1] if value[1] else 0.0 for value in (tag_x.value, tag_y.value)]
    if file.is_imagej:
        unit = str((file.imagej_metadata or {}).get("unit", "")).replace("\\u00B5", "µ")
        per_unit = _UM_PER_UNIT.get(unit)
    else:
        tag_unit = page.tags.get("ResolutionUnit")
        per_unit = _UM_PER_RESOLUTION_UNIT.get(int(tag_unit.value) if tag_unit is not None else 1)
    if per_unit is None or min(densities) <= 0:
        return None, None
    return (per_unit / densities[0], per_unit / densities[1]), None


def _ome_root(xml: str) -> ET.Element:
    """Return the root of OME-XML; an empty element if it cannot be parsed."""
    try:
        return ET.fromstring(re.sub(r"^\s*<\?xml[^>]*\?>", "", xml))
    except ET.ParseError:
        return ET.Element("OME")


def _from_ome(xml: str, series: int) -> tuple[tuple[float, float] | None, float | None]:
    root = _ome_root(xml)
    image = next(iter(root.findall("{*}Image")[series:]), root)
    used = image.find("{*}ObjectiveSettings")
    objectives = root.findall(".//{*}Objective")
    objective = next((o for o in objectives if used is not None and o.get("ID") == used.get("ID")), None)
    if objective is None and objectives:
        objective = objectives[0]
    power = objective.get("NominalMagnification") if objective is not None else None
    pixels = image.find("{*}Pixels")
    sizes = []
    for axis in "XY":
        value = pixels.get(f"PhysicalSize{axis}") if pixels is not None else None
        unit = pixels.get(f"PhysicalSize{axis}Unit", "µm") if pixels is not None else "µm"
        if value is None or unit not in _UM_PER_UNIT:
            return None, float(power) if power else None
        sizes.append(float(value) * _UM_PER_UNIT[unit])
    return (sizes[0], sizes[1]), float(power) if power else None
