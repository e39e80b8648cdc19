"""Low-resolution maps of what a network says of a slide: class probabilities, entropy, variance over flips."""

from __future__ import annotations

import math
import uuid
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import geopandas as gpd
import numpy as np
import numpy.typing as npt
import shapely

from pyhisto.bundle.spec import ModelSpec
from pyhisto.errors import ConfigError, PyhistoError
from pyhisto.objects import make_objects

if TYPE_CHECKING:
    from pyhisto.inference.stream import PredictedWindow

__all__ = ["DEFAULT_UM", "MapBuilder", "Maps", "map_tiles", "read_maps", "write_maps", "write_ome_tiff"]

DEFAULT_UM = 8.0
"""Side of a map pixel, µm."""

MOST_PIXELS = 4_000_000
"""A map that would have more pixels gets larger ones."""

MOST_TILES = 50_000
"""Tile objects of one map; of more, four are made one."""

TILE_UM = 64.0
"""Least side of a tile object, µm."""

ENTROPY = "Entropy"
FLIP_VARIANCE = "Flip variance"

_OME_TILE = 256
_SMALLEST = 256

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Maps:
    """Several maps of one image on the same grid.

    Attributes
    ----------
    layers
        What each map shows: ``<class> probability`` of each class but background, ``Entropy``, ``Flip variance``.
    values
        float32 (layers, height, width); means over what a map pixel covers, NaN where nothing was predicted.
    origin
        (x, y) of the top left corner, px of the image.
    scale
        Image pixels that a map pixel is wide and high.
    um
        Side of a map pixel, µm.
    """

    layers: tuple[str, ...]
    values: Floats
    origin: tuple[float, float]
    scale: tuple[float, float]
    um: float

    def layer(self, name: str) -> Floats:
        """Return one map, float32 (height, width).

        Raises
        ------
        ConfigError
            If there is none of this name.
        """
        if name not in self.layers:
            raise ConfigError(f"no map {name!r}", expected=f"one of {', '.join(self.layers)}")
        return np.asarray(self.values[self.layers.index(name)])

    def framed(
        self,
        size: tuple[float, float],
        scale: tuple[float, float],
        to_here: tuple[float, float, float, float, float, float],
    ) -> Maps:
        """Return the maps on a grid over a whole other image, each pixel the nearest of this grid.

        Parameters
        ----------
        size
            Width and height of the other image, px.
        scale
            Pixels of the other image that a map pixel is wide and high there.
        to_here
            (a, b, d, e, x, y): a point (u, v) of the other image lies here at (a u + b v + x, d u + e v + y).
        """
        width, height = (max(1, math.ceil(side / step - 1e-9)) for side, step in zip(size, scale, strict=True))
        a, b, d, e, x, y = to_here
        u = (np.arange(width) + 0.5) * scale[0]
        out = np.full((len(self.layers), height, width), np.nan, dtype=np.float32)
        for row in range(height):
            v = (row + 0.5) * scale[1]
            columns = np.floor((a * u + b * v + x - self.origin[0]) / self.scale[0]).astype(int)
            rows = np.floor((d * u + e * v + y - self.origin[1]) / self.scale[1]).astype(int)
            there = (columns >= 0) & (columns < self.values.shape[2]) & (rows >= 0) & (rows < self.values.shape[1])
            out[:, row, there] = self.values[:, rows[there], columns[there]]
        return Maps(self.layers, out, (0.0, 0.0), scale, self.um)


class MapBuilder:
    """Collects maps from the windows of a prediction; give it to one as an observer.

    The grid is that of the slide: its corner is level-0 px (0, 0), whatever region is looked at. A pixel of a window
    counts for the map pixel in which its centre lies.

    Parameters
    ----------
    spec
        The model's description.
    slide_mpp
        Pixel size of the slide at level 0, µm, (x, y).
    slide_size
        Width and height of the slide, level-0 px.
    bounds
        (x0, y0, x1, y1) of the region that is looked at, level-0 px.
    um
        Side of a map pixel, µm; larger where the slide would have more than `most` of them.
    uncertainty
        Also the entropy, in shares of the greatest there is for so many classes (0 is certain, 1 is a guess; the mean
        of the entropies of all pixels, not that of the mean), and the variance over flips where the prediction has it.
    most
        Greatest number of map pixels.
    """

    def __init__(
        self,
        spec: ModelSpec,
        slide_mpp: tuple[float, float],
        slide_size: tuple[int, int],
        bounds: tuple[float, float, float, float],
        *,
        um: float = DEFAULT_UM,
        uncertainty: bool = False,
        most: int = MOST_PIXELS,
    ) -> None:
        area_um2 = slide_size[0] * slide_mpp[0] * slide_size[1] * slide_mpp[1]
        self._um = max(um, math.sqrt(area_um2 / most))
        self._scale = (self._um / slide_mpp[0], self._um / slide_mpp[1])
        first = [math.floor(low / step) for low, step in zip(bounds[:2], self._scale, strict=True)]
        last = [math.ceil(high / step) for high, step in zip(bounds[2:], self._scale, strict=True)]
        self._first = (first[0], first[1])
        self._shape = (max(1, last[1] - first[1]), max(1, last[0] - first[0]))
        self._names = [_name(spec, number) for number in range(1, len(spec.classes))]
        self._uncertainty = uncertainty
        self._greatest = math.log(len(spec.classes))
        self._flips = False
        layers = len(self._names) + (2 if uncertainty else 0)
        self._sums = np.zeros((layers, *self._shape), dtype=np.float32)
        self._pixels = np.zeros(self._shape, dtype=np.float32)

    def __call__(self, window: PredictedWindow) -> None:
        """Take in a window."""
        (x0, y0, x1, y1), frame, inside = window.core, window.frame, window.own
        weight = window.wanted[inside].astype(np.float32)
        if not weight.any():
            return
        probability = window.probability[:, *inside]
        layers = list(probability[1:])
        if self._uncertainty:
            layers.append(_entropy(probability) / np.float32(self._greatest))
            if window.variance is not None:
                self._flips = True
                layers.append(window.variance[inside])
        columns = self._bins(frame.left, x0, x1, frame.downsample[0], 0)
        rows = self._bins(frame.top, y0, y1, frame.downsample[1], 1)
        where = (slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1))
        self._pixels[where] += _sums(weight, rows, columns)
        for number, layer in enumerate(layers):
            self._sums[number][where] += _sums(layer * weight, rows, columns)

    def _bins(self, corner: float, begin: int, end: int, downsample: float, axis: int) -> npt.NDArray[np.int_]:
        """Return the row or column of the map for each row or column of a core; those outside have no weight."""
        centres = corner + (np.arange(begin, end) + 0.5) * downsample
        bins = np.floor(centres / self._scale[axis]).astype(int) - self._first[axis]
        return np.asarray(bins.clip(0, self._shape[1 - axis] - 1))

    def maps(self) -> Maps:
        """Return what was collected, in the frame of the slide."""
        names = list(self._names)
        if self._uncertainty:
            names += [ENTROPY, FLIP_VARIANCE] if self._flips else [ENTROPY]
        with np.errstate(invalid="ignore"):
            values = self._sums[: len(names)] / np.where(self._pixels > 0, self._pixels, np.nan)
        origin = (self._first[0] * self._scale[0], self._first[1] * self._scale[1])
        return Maps(tuple(names), values.astype(np.float32), origin, self._scale, self._um)


def _name(spec: ModelSpec, number: int) -> str:
    """Return the name of a class's map: that of the measurement of tissue models, else the class's own."""
    own = spec.classes[number]
    tissue = spec.kind != "cell_detection" and own.classification is not None
    return f"{own.classification if tissue else own.name} probability"


def _entropy(probability: Floats) -> Floats:
    """Return the entropy of probabilities (classes, H, W) in nats, float32 (H, W)."""
    out = np.zeros(probability.shape[1:], dtype=np.float32)
    for channel in probability:
        out -= channel * np.log(np.maximum(channel, np.float32(1e-12)))
    return out


def _sums(values: Floats, rows: npt.NDArray[np.int_], columns: npt.NDArray[np.int_]) -> Floats:
    """Return the sums of an array (H, W) over equal row and column numbers; neither ever falls."""
    full = np.zeros((rows[-1] - rows[0] + 1, columns[-1] - columns[0] + 1), dtype=np.float32)
    row_starts, column_starts = (np.flatnonzero(np.diff(bins, prepend=bins[0] - 1)) for bins in (rows, columns))
    blocks = np.add.reduceat(np.add.reduceat(values, row_starts, axis=0), column_starts, axis=1)
    full[np.ix_(rows[row_starts] - rows[0], columns[column_starts] - columns[0])] = blocks
    return full


# ---------------------------------------------------------------------------------------------------- files
def write_maps(path: Path, maps: Maps) -> None:
    """Write maps as ``.npz``, all or nothing; probabilities are kept as float16.

    Raises
    ------
    PyhistoError
        If the file cannot be written.
    """

    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:
            np.savez_compressed(
                file,
                layers=np.array(maps.layers),
                values=maps.values.astype(np.float16),
                origin=np.array(maps.origin),
                scale=np.array(maps.scale),
                um=np.array(maps.um),
            )

    _put(path, write)


def read_maps(path: str | Path) -> Maps:
    """Read what :func:`write_maps` wrote.

    Raises
    ------
    PyhistoError
        If there is no such file, or it is damaged.
    """
    path = Path(path)
    try:
        with path.open("rb") as file, np.load(file) as data:
            x, y = data["origin"].tolist()
            across, down = data["scale"].tolist()
            layers = tuple(str(name) for name in data["layers"])
            return Maps(layers, data["values"].astype(np.float32), (x, y), (across, down), float(data["um"]))
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise PyhistoError(f"maps {path} are missing or damaged ({error})", remedy="run the analysis again") from error


def write_ome_tiff(path: Path, maps: Maps) -> None:
    """Write maps as a pyramidal OME-TIFF, one float32 channel a layer, with the pixel size in µm; all or nothing.

    What was not predicted is 0 there. Maps of a whole image (:meth:`Maps.framed`) lie over it, in µm, when both are
    opened.

    Raises
    ------
    PyhistoError
        If the file cannot be written.
    """
    import tifffile

    levels = [maps.values]
    while min(levels[-1].shape[1:]) >= 2 * _SMALLEST:
        levels.append(_halved(levels[-1]))
    options: dict[str, Any] = {
        "tile": (_OME_TILE, _OME_TILE),
        "compression": "adobe_deflate",
        "photometric": "minisblack",
    }

    def write(temporary: Path) -> None:
        with tifffile.TiffWriter(temporary, ome=True) as tiff:
            metadata = {
                "axes": "CYX",
                "Channel": {"Name": list(maps.layers)},
                "PhysicalSizeX": maps.um,
                "PhysicalSizeXUnit": "µm",
                "PhysicalSizeY": maps.um,
                "PhysicalSizeYUnit": "µm",
            }
            for number, level in enumerate(levels):
                per_cm = 1e4 / (maps.um * 2**number)
                tiff.write(
                    np.nan_to_num(level),
                    resolution=(per_cm, per_cm),
                    resolutionunit="CENTIMETER",
                    subifds=len(levels) - 1 if number == 0 else None,
                    subfiletype=int(number > 0),
                    metadata=metadata if number == 0 else None,
                    **options,
                )

    _put(path, write)


def _halved(values: Floats) -> Floats:
    """Return means over 2 x 2 pixels of what is not NaN, float32 (layers, H // 2, W // 2)."""
    rows, columns = values.shape[1] // 2, values.shape[2] // 2
    blocks = values[:, : 2 * rows, : 2 * columns].reshape(len(values), rows, 2, columns, 2)
    return _means(blocks)


def _means(blocks: Floats) -> Floats:
    """Return means of blocks, float32 (layers, rows, h, columns, w), over h and w; NaN where there is nothing."""
    known = np.isfinite(blocks)
    count = known.sum(axis=(2, 4))
    total = np.where(known, blocks, 0).sum(axis=(2, 4), dtype=np.float32)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan).astype(np.float32)


def _put(path: Path, write: Any) -> None:
    """Write a file under a temporary name and put it in place."""
    temporary = path.with_name(f".{uuid.uuid4().hex[:8]}.tmp")
    try:
        path.parent.mkdir(exist_ok=True)
        try:
            write(temporary)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise PyhistoError(
            f"{path} cannot be written: {error.strerror or error}", remedy="free some space, or change the permissions"
        ) from error


# ---------------------------------------------------------------------------------------------------- QuPath's tiles
def map_tiles(maps: Maps, size: tuple[float, float], *, least_um: float = TILE_UM, most: int = MOST_TILES) -> Any:
    """Return maps as tile objects whose measurements are the layers.

    Parameters
    ----------
    maps
        Maps of a whole image.
    size
        Width and height of the image, px; tiles end there.
    least_um
        Least side of a tile, µm.
    most
        Greatest number of tiles; their sides are doubled until there are no more.

    Returns
    -------
    geopandas.GeoDataFrame
        Path-object table of tiles, px of the image, where something was predicted.
    """
    factor = max(1, math.ceil(least_um / maps.um - 1e-9))
    coarse = _coarsened(maps.values, factor)
    while int(np.isfinite(coarse[0]).sum()) > most:
        factor *= 2
        coarse = _coarsened(maps.values, factor)
    rows, columns = np.nonzero(np.isfinite(coarse[0]))
    across, down = (step * factor for step in maps.scale)
    left, top = maps.origin[0] + columns * across, maps.origin[1] + rows * down
    right, bottom = np.minimum(left + across, size[0]), np.minimum(top + down, size[1])
    boxes = shapely.box(left, top, right, bottom)
    measurements = {name: coarse[number, rows, columns] for number, name in enumerate(maps.layers)}
    table: gpd.GeoDataFrame = make_objects(boxes, object_type="tile", measurements=measurements)
    return table


def _coarsened(values: Floats, factor: int) -> Floats:
    """Return means over `factor` x `factor` pixels; the last row and column may hold fewer."""
    layers, height, width = values.shape
    rows, columns = math.ceil(height / factor), math.ceil(width / factor)
    padded = np.full((layers, rows * factor, columns * factor), np.nan, dtype=np.float32)
    padded[:, :height, :width] = values
    return _means(padded.reshape(layers, rows, factor, columns, factor))
