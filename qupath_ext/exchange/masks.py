"""Objects <-> label masks: PNG for small ones, tiled pyramidal OME-TIFF for large ones, written window by window.

A mask pixel (column, row) covers ``downsample`` level-0 pixels from ``origin + (column, row) * downsample`` on; it
belongs to an object if its centre lies inside. Beside the mask stands ``<mask>.json``, which says what the values mean
and where the pixels are.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import shapely

from pyhisto.labels import PolygonSettings, label_map_to_polygons, paint, polygon_rings
from pyhisto.objects import make_objects
from pyhisto.sides import find_sides
from qupath_ext.errors import FormatError

__all__ = ["KINDS", "MaskConfig", "MaskInfo", "read_mask", "write_mask"]

KINDS = ("class", "instance")
PNG_PIXELS = 80_000_000
READ_PIXELS = 200_000_000
TILE = 512
SMALLEST_LEVEL = 1024
TIFF_ENDINGS = (".ome.tif", ".ome.tiff", ".tif", ".tiff")
Pixels = np.ndarray[Any, Any]
Window = Callable[[int, int, int, int], Pixels]
"""Gives the pixels from (column, row) on, of this width and height."""


@dataclass(frozen=True)
class MaskInfo:
    """What a mask means; written beside it as JSON.

    Attributes
    ----------
    kind
        ``"class"`` or ``"instance"``.
    size
        (width, height) of the mask.
    origin
        Level-0 px of its top left corner, (x, y).
    downsample
        Level-0 px to one mask pixel, (x, y).
    mpp
        µm to one mask pixel, (x, y); None if that is not known.
    values
        Value by class, or by object id. 0 is the background.
    classes
        Class by object id; empty for masks of classes.
    """

    kind: str
    size: tuple[int, int]
    origin: tuple[float, float]
    downsample: tuple[float, float]
    mpp: tuple[float, float] | None
    values: dict[str, int]
    classes: dict[str, str | None] = field(default_factory=dict)


@dataclass(frozen=True)
class MaskConfig:
    """What is drawn into a mask, and how.

    Attributes
    ----------
    kind
        ``"class"``: one value for each class; ``"instance"``: one for each object, in the order of the table.
    classes
        The classes to draw, which get the values 1, 2, ... in this order, whether there are such objects or not. None:
        the classes that there are, by name; for instances all objects, those without class too.
    object_types
        The types to draw.
    nuclei
        Draw the nuclei of cells instead of their boundaries; cells without one are left out.
    downsample
        Level-0 px to one mask pixel, one number or (x, y).
    mask_mpp
        µm to one mask pixel, in the place of `downsample`.
    """

    kind: str = "class"
    classes: tuple[str, ...] | None = None
    object_types: tuple[str, ...] = ("annotation",)
    nuclei: bool = False
    downsample: float | tuple[float, float] = 1.0
    mask_mpp: float | None = None

    def scale(self, mpp: tuple[float, float] | None) -> tuple[float, float]:
        """Return level-0 px to one mask pixel, (x, y), for an image with this pixel size."""
        step = self.downsample
        if self.mask_mpp is not None:
            if mpp is None:
                raise FormatError("a mask in µm of an image without pixel size", remedy="give mpp, or a downsample")
            step = (self.mask_mpp / mpp[0], self.mask_mpp / mpp[1])
        x, y = (step, step) if isinstance(step, int | float) else step
        if not all(np.isfinite(side) and side > 0 for side in (x, y)):
            raise FormatError(f"downsample {step}", expected="numbers above 0")
        return float(x), float(y)


def write_mask(
    path: str | Path,
    objects: gpd.GeoDataFrame,
    size: tuple[int, int],
    config: MaskConfig | None = None,
    *,
    mpp: tuple[float, float] | None = None,
    origin: tuple[float, float] = (0.0, 0.0),
) -> MaskInfo:
    """Draw objects into a label mask, all or nothing.

    Where objects overlap, the one later in the table wins, as in QuPath; holes stay open; points and lines have no area
    and are left out. Memory does not grow with the size of an OME-TIFF: it is drawn tile by tile, and the levels of its
    pyramid, which have every second pixel of the one before, go through a temporary file beside it.

    Parameters
    ----------
    path
        File ending in ``.png`` or in one of ``.ome.tif``, ``.ome.tiff``, ``.tif``, ``.tiff``.
    objects
        The table, level-0 px.
    size
        (width, height) of the region to draw, level-0 px: that of the image for all of it.
    config
        What to draw; all annotations with a class at full resolution by default.
    mpp
        µm to one level-0 px, (x, y).
    origin
        Top left corner of the region, level-0 px.

    Returns
    -------
    MaskInfo
        What was written beside the mask.

    Raises
    ------
    FormatError
        If the ending or kind is not known, the pixel size is missing, or a PNG would be too large or has too many
        values.
    """
    path = Path(path)
    config = config or MaskConfig()
    if config.kind not in KINDS:
        raise FormatError(f"a mask of kind {config.kind!r}", expected=f"one of {', '.join(KINDS)}")
    scale = config.scale(mpp)
    width, height = (max(1, round(side / step)) for side, step in zip(size, scale, strict=True))
    drawn, values, info_classes, shapes = _choose(objects, config)
    info = MaskInfo(
        kind=config.kind,
        size=(width, height),
        origin=(float(origin[0]), float(origin[1])),
        downsample=scale,
        mpp=None if mpp is None else (mpp[0] * scale[0], mpp[1] * scale[1]),
        values=values,
        classes=info_classes,
    )
    highest = max(values.values(), default=0)
    dtype = np.uint8 if highest < 1 << 8 else np.uint16 if highest < 1 << 16 else np.uint32
    painter = _Painter(shapes, drawn, info, np.dtype(dtype))
    name = path.name.lower()
    if name.endswith(".png"):
        if width * height > PNG_PIXELS or highest >= 1 << 16:
            raise FormatError(
                f"a PNG of {width} x {height} pixels and {highest} values",
                expected=f"at most {PNG_PIXELS} pixels and 65535 values",
                remedy="write an .ome.tif, or a larger downsample",
            )
        _put(path, info, lambda temporary: _write_png(temporary, painter))
    elif name.endswith(TIFF_ENDINGS):
        _put(path, info, lambda temporary: _write_tiff(temporary, painter))
    else:
        raise FormatError(f"file name {path.name!r}", expected=f"an ending among .png, {', '.join(TIFF_ENDINGS)}")
    return info


def _choose(
    objects: gpd.GeoDataFrame, config: MaskConfig
) -> tuple[list[int], dict[str, int], dict[str, str | None], Pixels]:
    """Return the value of each object to draw, what the values mean, the classes of instances, and the outlines."""
    shapes = np.asarray(objects["nucleus" if config.nuclei else "geometry"], dtype=object)
    names = objects["classification"].astype(object).where(objects["classification"].notna(), None)
    drawn = objects["object_type"].isin(config.object_types).to_numpy() & (shapely.get_dimensions(shapes) == 2)
    drawn &= ~shapely.is_empty(shapes)
    if config.classes is not None:
        drawn &= names.isin(config.classes).to_numpy()
    elif config.kind == "class":
        drawn &= names.notna().to_numpy()
    rows = np.flatnonzero(drawn)
    picked = names.iloc[rows]
    if config.kind == "class":
        order = sorted(set(picked)) if config.classes is None else dict.fromkeys(config.classes)
        values = {name: at for at, name in enumerate(order, start=1)}
        return [values[name] for name in picked], values, {}, shapes[rows]
    values = {str(object_id): at for at, object_id in enumerate(objects.index[rows], start=1)}
    return list(values.values()), values, dict(zip(values, picked, strict=True)), shapes[rows]


class _Painter:
    """Draws any window of a mask."""

    def __init__(self, shapes: Pixels, values: list[int], info: MaskInfo, dtype: np.dtype[Any]) -> None:
        self.info = info
        self.dtype = dtype
        self._shapes = shapes
        self._values = np.array(values, dtype=dtype)
        self._tree = shapely.STRtree(shapes)

    def window(self, column: int, row: int, width: int, height: int) -> Pixels:
        """Return the pixels of a window, shape (height, width)."""
        step = np.array(self.info.downsample)
        corner = np.array(self.info.origin) + np.array([column, row]) * step
        out = np.zeros((height, width), dtype=self.dtype)
        box = shapely.box(*corner, *(corner + np.array([width, height]) * step))
        near = np.sort(self._tree.query(box))
        xy, owner = polygon_rings(self._shapes[near])
        paint(out, (xy - corner) / step, owner, self._values[near])
        return out


# ---------------------------------------------------------------------- files
def _put(path: Path, info: MaskInfo, write: Any) -> None:
    """Write mask and description under temporary names, then put both in place."""
    about = path.with_name(f"{path.name}.json")
    temporary, temporary_about = (file.with_name(f".{file.name}.tmp") for file in (path, about))
    try:
        write(temporary)
        temporary_about.write_text(json.dumps(asdict(info), ensure_ascii=False, indent=2), encoding="utf-8")
        temporary.replace(path)
        temporary_about.replace(about)
    finally:
        temporary.unlink(missing_ok=True)
        temporary_about.unlink(missing_ok=True)


def _write_png(path: Path, painter: _Painter) -> None:
    from PIL import Image

    width, height = painter.info.size
    Image.fromarray(painter.window(0, 0, width, height)).save(path, format="PNG")


def _write_tiff(path: Path, painter: _Painter) -> None:
    import tifffile

    sizes = [painter.info.size]
    while max(sizes[-1]) > SMALLEST_LEVEL:
        width, height = sizes[-1]
        sizes.append((-(-width // 2), -(-height // 2)))
    metadata: dict[str, Any] = {"axes": "YX"}
    if painter.info.mpp is not None:
        metadata |= {"PhysicalSizeX": painter.info.mpp[0], "PhysicalSizeXUnit": "µm"}
        metadata |= {"PhysicalSizeY": painter.info.mpp[1], "PhysicalSizeYUnit": "µm"}
    with (
        tempfile.TemporaryDirectory(dir=path.parent) as folder,
        tifffile.TiffWriter(path, bigtiff=True, ome=True) as tiff,
    ):
        window: Window = painter.window
        for level, (width, height) in enumerate(sizes):
            smaller = None
            if level + 1 < len(sizes):  # every second pixel goes into a file on disk: the level may not fit into memory
                shape = sizes[level + 1][::-1]
                smaller = np.memmap(Path(folder) / str(level), dtype=painter.dtype, mode="w+", shape=shape)
            tiff.write(
                _tiles(window, (width, height), smaller),
                shape=(height, width),
                dtype=painter.dtype,
                tile=(TILE, TILE),
                compression="zlib",
                photometric="minisblack",
                subifds=len(sizes) - 1 if level == 0 else None,
                subfiletype=int(level > 0),
                metadata=metadata if level == 0 else None,
            )
            if smaller is not None:
                window = _window_of(smaller)


def _window_of(pixels: Pixels) -> Window:
    def window(column: int, row: int, width: int, height: int) -> Pixels:
        part = pixels[row : row + height, column : column + width]
        return np.pad(part, ((0, height - part.shape[0]), (0, width - part.shape[1])))

    return window


def _tiles(window: Window, size: tuple[int, int], smaller: Pixels | None) -> Iterator[Pixels]:
    """Yield the tiles of a level, row by row; every second pixel goes into `smaller`."""
    for row in range(0, size[1], TILE):
        for column in range(0, size[0], TILE):
            tile = window(column, row, TILE, TILE)
            if smaller is not None:
                room = smaller[row // 2 : (row + TILE) // 2, column // 2 : (column + TILE) // 2]
                room[:] = tile[::2, ::2][: room.shape[0], : room.shape[1]]
            yield tile


# ---------------------------------------------------------------------- the way back
def read_mask(
    path: str | Path,
    *,
    info: MaskInfo | None = None,
    object_type: str = "annotation",
    min_area: float = 0.0,
    tolerance: float = 0.0,
) -> gpd.GeoDataFrame:
    """Turn a mask into objects: one for each connected part of a class, or for each instance.

    Outlines run half-way between pixel centres, which takes an eighth of a pixel off every corner. All pixels of the
    mask are in memory at once.

    Parameters
    ----------
    path
        PNG or TIFF with one channel of whole numbers.
    info
        What the mask means; by default that is read from ``<path>.json``.
    object_type
        The type of the objects.
    min_area
        Smaller parts are left out; mask pixels squared.
    tolerance
        Simplification of the outlines, mask pixels.

    Returns
    -------
    geopandas.GeoDataFrame
        The path-object table, level-0 px, in the order of the values. Objects of an instance mask have the ids and
        classes that are written beside it.

    Raises
    ------
    FormatError
        If the mask or its description cannot be read, they do not fit together, or the mask is too large.
    """
    path = Path(path)
    info = _read_info(path) if info is None else info
    pixels = _read_pixels(path)
    if pixels.shape != (info.size[1], info.size[0]):
        raise FormatError(
            f"{path} has {pixels.shape[1]} x {pixels.shape[0]} pixels", expected=f"{info.size[0]} x {info.size[1]}"
        )
    names = _names(pixels, info)
    settings = PolygonSettings(info.origin, info.downsample, min_area=min_area, tolerance=tolerance)
    shapes, values = label_map_to_polygons(pixels, settings, join=info.kind == "instance")
    keys = [names[value] for value in values.tolist()]
    if info.kind == "class":
        return make_objects(shapes, object_type=object_type, classification=keys)
    return make_objects(shapes, object_type=object_type, ids=keys, classification=[info.classes.get(k) for k in keys])


def _names(pixels: Pixels, info: MaskInfo) -> dict[int, str]:
    """Return the class or object id of each value; those that occur must have one."""
    names = {value: key for key, value in info.values.items()}
    for value in np.unique(find_sides(pixels).start_labels).tolist():
        if value not in names:
            raise FormatError(f"mask value {value} without a meaning", expected=f"one of {sorted(names)[:10]}")
    return names


def _read_info(path: Path) -> MaskInfo:
    about = path.with_name(f"{path.name}.json")
    try:
        content: dict[str, Any] = json.loads(about.read_text(encoding="utf-8"))
        pairs = {key: tuple(value) for key, value in content.items() if isinstance(value, list)}
        return MaskInfo(**(content | pairs))
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise FormatError(
            f"{about} does not say what the mask means ({error})",
            expected="JSON as write_mask writes it",
            remedy="give info",
        ) from error


def _read_pixels(path: Path) -> Pixels:
    import tifffile
    from PIL import Image

    pixels: Pixels
    try:
        if path.suffix.lower() in (".tif", ".tiff"):
            with tifffile.TiffFile(path) as tiff:
                _check_size(path, tiff.series[0].shape)
                pixels = tiff.series[0].asarray()
        else:
            with Image.open(path) as image:
                _check_size(path, (image.height, image.width))
                pixels = np.asarray(image)
    except (OSError, ValueError, SyntaxError, IndexError, Image.DecompressionBombError) as error:
        raise FormatError(f"{path} cannot be read as a mask ({error})", expected="PNG or TIFF") from error
    if pixels.ndim != 2 or pixels.dtype.kind not in "ui":
        raise FormatError(
            f"{path} has shape {pixels.shape} and type {pixels.dtype}", expected="one channel of integers"
        )
    return pixels


def _check_size(path: Path, shape: tuple[int, ...]) -> None:
    if int(np.prod(shape)) > READ_PIXELS:
        raise FormatError(
            f"{path} has {' x '.join(map(str, shape))} pixels", expected=f"at most {READ_PIXELS}",
            remedy="write it with a larger downsample",
        )  # fmt: skip
