"""Pictures of a slide with its objects drawn on it, and the field that is worth a closer look.

Lines and dots are drawn by their exact distance to each pixel's centre, so they are antialiased and sit on the slide to
a fraction of a pixel. A point (x, y) in level-0 px lies at ((x - x0) / d, (y - y0) / d) in the picture, where d is the
downsample and pixel (column, row) covers [column, column + 1) x [row, row + 1).
"""

from __future__ import annotations

import functools
import io
import math
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import numpy.typing as npt
import pandas as pd
import shapely
from PIL import Image, ImageDraw, ImageFont

from pyhisto.errors import ConfigError
from pyhisto.slide import Slide

__all__ = ["CLASS_COLORS", "densest_field", "draw_overlay", "encode_png", "overlay_png", "save_png"]

Bounds = tuple[float, float, float, float]
Color = tuple[int, int, int]
Floats = npt.NDArray[np.float64]

CLASS_COLORS: dict[str, Color] = {
    "Tumor": (200, 0, 0),
    "Tumor: Positive": (200, 50, 50),
    "Tumor: Negative": (90, 90, 180),
    "Stroma": (150, 200, 150),
    "Immune cells": (160, 90, 160),
    "Necrosis": (50, 50, 50),
    "Other": (255, 200, 0),
    "Region*": (0, 0, 180),
    "Ignore*": (180, 180, 180),
    "Positive": (200, 50, 50),
    "Negative": (90, 90, 180),
}
"""QuPath's colours. A class that is not listed takes the colour of its last part, then of its first."""

UNCLASSIFIED: Color = (70, 70, 70)
"""Of objects without a class, and of classes that nobody gave a colour."""

POSITIVE_CLASSES = ("Positive", "1+", "2+", "3+")
"""Last parts of QuPath's intensity classes that count as positive."""

MAX_ENLARGEMENT = 4.0
"""Picture pixels to one level-0 pixel, at most: more would show nothing new."""

OUTLINE_FROM_PX = 8.0
"""Nuclei are outlined where they are at least this wide in the picture, and dots below."""

_REFERENCE_PX = 1200.0
_PIECE_PX = 3.0
_CHUNK = 1 << 16


def draw_overlay(
    slide: Slide,
    objects: gpd.GeoDataFrame,
    *,
    bounds: Bounds | None = None,
    max_size: tuple[int, int] = (1600, 1600),
    colors: Mapping[str, Color] | None = None,
    scale_bar: bool = True,
) -> npt.NDArray[np.uint8]:
    """Draw path objects on a region of a slide.

    Annotations and TMA cores are outlined, holes included. Detections and cells are dots, or outlines (nucleus in full,
    cell boundary faint) where the median one is at least :data:`OUTLINE_FROM_PX` wide. Positive cells are drawn over the
    others, annotations over cells. Tiles are not drawn. An object's own colour comes before that of its class.

    Parameters
    ----------
    slide
        The slide; it must have a pixel size for the scale bar.
    objects
        Path-object table, level-0 px.
    bounds
        Region (x0, y0, x1, y1), level-0 px; the whole slide by default. What lies outside the slide is white.
    max_size
        Largest width and height of the picture, px. The region is fitted into it, and enlarged at most
        :data:`MAX_ENLARGEMENT` times.
    colors
        Class name to RGB, before :data:`CLASS_COLORS`.
    scale_bar
        Draw a bar with its length in µm; left out in pictures less than 80 px wide.

    Returns
    -------
    numpy.ndarray
        RGB uint8, shape (H, W, 3).

    Raises
    ------
    ConfigError
        If the region is empty or the picture would have no pixel.
    MissingPixelSizeError
        If the scale bar is asked for and the slide has no pixel size.
    SlideError
        If the pixels cannot be decoded.
    """
    view = _fit(bounds or (0.0, 0.0, *map(float, slide.dimensions)), max_size)
    canvas = slide.read_downsampled(view.x0, view.y0, view.width, view.height, view.downsample).astype(np.float32)
    palette = {**CLASS_COLORS, **(colors or {})}
    _draw_cells(canvas, objects[objects["object_type"].isin(["detection", "cell"])], view, palette)
    _draw_annotations(canvas, objects[objects["object_type"].isin(["annotation", "tma_core"])], view, palette)
    rgb = np.floor(canvas + 0.5).clip(0, 255).astype(np.uint8)
    return _add_scale_bar(rgb, slide.mpp[0] * view.downsample[0]) if scale_bar and view.width >= 80 else rgb


def overlay_png(
    slide: Slide,
    objects: gpd.GeoDataFrame,
    *,
    bounds: Bounds | None = None,
    max_size: tuple[int, int] = (1600, 1600),
    colors: Mapping[str, Color] | None = None,
) -> bytes:
    """Return the picture of :func:`draw_overlay` as a PNG file's bytes."""
    return encode_png(draw_overlay(slide, objects, bounds=bounds, max_size=max_size, colors=colors))


def encode_png(rgb: npt.NDArray[np.uint8]) -> bytes:
    """Return RGB uint8 (H, W, 3) as a PNG file's bytes.

    >>> encode_png(np.zeros((1, 1, 3), dtype=np.uint8))[1:4]
    b'PNG'
    """
    stream = io.BytesIO()
    Image.fromarray(rgb).save(stream, format="PNG")
    return stream.getvalue()


def save_png(path: Path, rgb: npt.NDArray[np.uint8]) -> None:
    """Write RGB uint8 (H, W, 3) as a PNG file: under a temporary name first, then put in place.

    Raises
    ------
    OSError
        If the file cannot be written; one that was there before stays.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        temporary.write_bytes(encode_png(rgb))
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def densest_field(objects: gpd.GeoDataFrame, size_um: float, mpp: float | tuple[float, float]) -> Bounds | None:
    """Return the square field with the most positive and negative cells that holds both.

    Parameters
    ----------
    objects
        Path-object table, level-0 px. Detections and cells count if the last part of their class is ``Positive``,
        ``Negative``, ``1+``, ``2+`` or ``3+``; all of them count if none has such a class.
    size_um
        Side of the field, µm.
    mpp
        Pixel size of level 0, µm: one number or (x, y).

    Returns
    -------
    tuple of float or None
        (x0, y0, x1, y1), level-0 px, x1 - x0 = size_um / mpp. It is found to an eighth of its side, lies within the
        extent of the cells where that is larger, and is centred on them where it is smaller. Where no field holds both
        classes, the one with the most cells. None without cells.

    Raises
    ------
    ConfigError
        If a size is not positive.
    """
    sides = np.array([size_um, size_um]) / np.asarray(mpp, dtype=np.float64)
    if not (np.isfinite(sides).all() and (sides > 0).all()):
        raise ConfigError(f"field of {size_um} µm at {mpp} µm/px", expected="positive sizes")
    cells = objects[objects["object_type"].isin(["detection", "cell"])]
    points = shapely.get_coordinates(shapely.centroid(_shapes(cells)))
    last = cells["classification"].astype(object).map(lambda name: str(name).rpartition(": ")[2]).to_numpy()
    positive, negative = np.isin(last, POSITIVE_CLASSES), last == "Negative"
    if (positive | negative).any():
        counted = positive | negative
        points, positive = points[counted], positive[counted]
    if len(points) == 0:
        return None
    step = sides / 8
    low, extent = points.min(axis=0), np.ptp(points, axis=0)
    places = np.floor(np.maximum(extent - sides, 0) / step).astype(int) + 1
    bins = np.floor((points - low) / step).astype(int)
    both = np.array([_window_counts(bins[positive], places), _window_counts(bins[~positive], places)])
    total = both.sum(axis=0) * np.where(both.min(axis=0) > 0, len(points) + 1, 1)
    best = np.array(np.unravel_index(np.argmax(total), total.shape))
    x0, y0 = np.where(extent < sides, low + (extent - sides) / 2, low + best * step)
    return float(x0), float(y0), float(x0 + sides[0]), float(y0 + sides[1])


def _window_counts(bins: npt.NDArray[np.int_], places: npt.NDArray[np.int_]) -> npt.NDArray[np.int_]:
    """Count points in windows of 8 x 8 bins that begin at bin (0..places - 1): int, shape `places`."""
    grid = np.zeros(places + 8, dtype=np.int64)
    inside = (bins < places + 7).all(axis=1)
    np.add.at(grid, tuple(bins[inside].T + 1), 1)
    sums = grid.cumsum(axis=0).cumsum(axis=1)
    result: npt.NDArray[np.int_] = sums[8:, 8:] - sums[:-8, 8:] - sums[8:, :-8] + sums[:-8, :-8]
    return result


@dataclass(frozen=True)
class _View:
    """Where a picture lies on the slide: origin in level-0 px, size in px, level-0 px to one px in x and y."""

    x0: float
    y0: float
    width: int
    height: int
    downsample: tuple[float, float]

    @property
    def unit(self) -> float:
        """Factor for line widths and letters: 1 in a picture of 1200 px, never less than 0.8."""
        return max(0.8, max(self.width, self.height) / _REFERENCE_PX)

    def to_picture(self, xy: Floats) -> Floats:
        """Return level-0 px as picture px."""
        return (xy - (self.x0, self.y0)) / self.downsample

    def visible(self, geometry: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
        """Say which geometries come into the picture, with a rim of 16 px."""
        boxes = shapely.bounds(geometry)
        low, high = self.to_picture(boxes[:, :2]), self.to_picture(boxes[:, 2:])
        size = np.array([self.width, self.height])
        seen: npt.NDArray[np.bool_] = ((high > -16) & (low < size + 16)).all(axis=1)
        return seen


def _fit(bounds: Bounds, max_size: tuple[int, int]) -> _View:
    x0, y0, x1, y1 = bounds
    if not (all(map(math.isfinite, bounds)) and x1 > x0 and y1 > y0):
        raise ConfigError(f"region {bounds}", expected="(x0, y0, x1, y1) with x1 > x0 and y1 > y0, level-0 px")
    if min(max_size) < 1:
        raise ConfigError(f"picture of at most {max_size[0]} x {max_size[1]} px", expected="at least 1 x 1")
    downsample = max(1 / MAX_ENLARGEMENT, (x1 - x0) / max_size[0], (y1 - y0) / max_size[1])
    width, height = max(1, round((x1 - x0) / downsample)), max(1, round((y1 - y0) / downsample))
    return _View(x0, y0, width, height, ((x1 - x0) / width, (y1 - y0) / height))


def _shapes(objects: gpd.GeoDataFrame) -> npt.NDArray[Any]:
    """Return the nuclei, and the geometry of objects that have none."""
    nucleus, geometry = objects["nucleus"].to_numpy(dtype=object), objects["geometry"].to_numpy()
    result: npt.NDArray[Any] = np.where(pd.isna(nucleus), geometry, nucleus)
    return result


def _color_groups(objects: gpd.GeoDataFrame, palette: Mapping[str, Color]) -> list[tuple[Color, npt.NDArray[np.bool_]]]:
    """Split objects by class and own colour; positive cells come last, so that they are drawn over the others."""
    names = objects["classification"].astype(object)
    packed = objects["color"].to_numpy(dtype="float64", na_value=np.nan)
    groups = []
    for name in sorted(names.dropna().unique(), key=_draw_order):
        groups.append((_class_color(name, palette), (names == name).to_numpy() & np.isnan(packed)))
    groups.insert(0, (UNCLASSIFIED, names.isna().to_numpy() & np.isnan(packed)))
    for value in np.unique(packed[~np.isnan(packed)]):
        argb = int(value) & 0xFFFFFF
        groups.append(((argb >> 16, argb >> 8 & 255, argb & 255), packed == value))
    return groups


def _draw_order(name: str) -> tuple[bool, bool, str]:
    last = name.rpartition(": ")[2]
    return last in POSITIVE_CLASSES, last == "Negative", name


def _class_color(name: str, palette: Mapping[str, Color]) -> Color:
    parts = (name, name.rpartition(": ")[2], name.partition(": ")[0])
    return next((palette[part] for part in parts if part in palette), UNCLASSIFIED)


def _draw_cells(canvas: npt.NDArray[np.float32], cells: gpd.GeoDataFrame, view: _View, palette: Any) -> None:
    cells = cells[view.visible(cells["geometry"].to_numpy())]
    if len(cells) == 0:
        return
    shapes = _shapes(cells)
    boxes = shapely.bounds(shapes)
    width = float(np.median((boxes[:, 2:] - boxes[:, :2]).mean(axis=1))) / max(view.downsample)
    flat = shapely.area(shapes) == 0
    if width < OUTLINE_FROM_PX:
        flat[:] = True
    radius = float(np.clip(0.3 * width, 1.1, 3.0)) * view.unit if width < OUTLINE_FROM_PX else 4 * view.unit
    outer = cells["geometry"].to_numpy()
    for color, chosen in _color_groups(cells, palette):
        outlined, dots = chosen & ~flat, chosen & flat
        around = outlined & (outer != shapes)
        _stroke(canvas, _segments(outer[around], view), color, 0.5 * view.unit, opacity=0.5)
        _stroke(canvas, _segments(shapes[outlined], view), color, 0.85 * view.unit)
        centres = view.to_picture(shapely.get_coordinates(shapely.centroid(shapes[dots])))
        _stroke(canvas, np.stack([centres, centres], axis=1), color, radius, opacity=0.9)


def _draw_annotations(canvas: npt.NDArray[np.float32], areas: gpd.GeoDataFrame, view: _View, palette: Any) -> None:
    """Outline annotations in their colour on a white casing, which keeps them apart from brown and blue."""
    areas = areas[view.visible(areas["geometry"].to_numpy())]
    shapes = areas["geometry"].to_numpy()
    points = shapely.get_dimensions(shapes) == 0
    for color, chosen in _color_groups(areas, palette):
        lines = _segments(shapes[chosen & ~points], view)
        dots = view.to_picture(shapely.get_coordinates(shapes[chosen & points]))
        for shade, extra, opacity in (((255, 255, 255), 0.9, 0.75), (color, 0.0, 1.0)):
            _stroke(canvas, lines, shade, (1.25 + extra) * view.unit, opacity=opacity)
            _stroke(canvas, np.stack([dots, dots], axis=1), shade, (4 + extra) * view.unit, opacity=opacity)


def _segments(shapes: npt.NDArray[Any], view: _View) -> Floats:
    """Return the outlines, holes included, as segments (n, 2 ends, 2) in picture px, true to 0.1 px."""
    areal = shapely.get_dimensions(shapes) == 2
    lines = shapely.get_parts(np.where(areal, shapely.boundary(shapes), shapes))
    lines = shapely.simplify(lines, 0.1 * min(view.downsample), preserve_topology=False)
    xy, line = shapely.get_coordinates(lines, return_index=True)
    ends = np.flatnonzero(line[1:] == line[:-1])
    xy = view.to_picture(xy)
    return np.stack([xy[ends], xy[ends + 1]], axis=1)


def _stroke(
    canvas: npt.NDArray[np.float32], segments: Floats, color: Color, radius: float, *, opacity: float = 1.0
) -> None:
    """Blend round-ended strokes of one colour into RGB float32 (H, W, 3); where they cross, they count once."""
    height, width = canvas.shape[:2]
    alpha = np.zeros(height * width, dtype=np.float32)
    pieces = _split(_in_reach(segments, width, height, radius))
    pieces = _in_reach(pieces, width, height, radius)
    for begin in range(0, len(pieces), _CHUNK):
        _cover(alpha, pieces[begin : begin + _CHUNK], radius, width, height)
    touched = np.flatnonzero(alpha)
    share = (opacity * alpha[touched])[:, None]
    pixels = canvas.reshape(-1, 3)
    pixels[touched] += share * (np.asarray(color, dtype=np.float32) - pixels[touched])


def _in_reach(segments: Floats, width: int, height: int, radius: float) -> Floats:
    rim = radius + 1
    low, high = segments.min(axis=1), segments.max(axis=1)
    return segments[((high > -rim) & (low < np.array([width, height]) + rim)).all(axis=1)]


def _split(segments: Floats) -> Floats:
    """Cut segments into equal pieces of at most :data:`_PIECE_PX`."""
    delta = segments[:, 1] - segments[:, 0]
    count = np.maximum(1, np.ceil(np.hypot(delta[:, 0], delta[:, 1]) / _PIECE_PX)).astype(np.int64)
    owner = np.repeat(np.arange(len(segments)), count)
    place = (np.arange(len(owner)) - np.repeat(count.cumsum() - count, count))[:, None]
    step = (delta / count[:, None])[owner]
    begin = segments[owner, 0] + place * step
    return np.stack([begin, begin + step], axis=1)


def _cover(alpha: npt.NDArray[np.float32], pieces: Floats, radius: float, width: int, height: int) -> None:
    """Raise `alpha` (flat, H * W) to the coverage by short pieces: 1 inside, falling to 0 over one pixel."""
    reach = radius + 0.5
    corner = np.floor(pieces.min(axis=1) - reach)
    side = math.ceil(_PIECE_PX * (pieces[:, 0] != pieces[:, 1]).any() + 2 * reach) + 1
    offset = np.arange(side)
    start = (pieces[:, 0] - corner - 0.5).astype(np.float32)
    delta = (pieces[:, 1] - pieces[:, 0]).astype(np.float32)
    px = offset.astype(np.float32)[None, None, :] - start[:, 0, None, None]
    py = offset.astype(np.float32)[None, :, None] - start[:, 1, None, None]
    dx, dy = delta[:, 0, None, None], delta[:, 1, None, None]
    along = ((px * dx + py * dy) / np.maximum(dx * dx + dy * dy, 1e-9)).clip(0, 1)
    coverage = (reach - np.hypot(px - along * dx, py - along * dy)).clip(0, 1)
    column = (corner[:, 0].astype(np.int64)[:, None, None] + offset[None, None, :]) + np.zeros_like(coverage, np.int64)
    row = (corner[:, 1].astype(np.int64)[:, None, None] + offset[None, :, None]) + np.zeros_like(coverage, np.int64)
    seen = (coverage > 0) & (column >= 0) & (column < width) & (row >= 0) & (row < height)
    np.maximum.at(alpha, row[seen] * width + column[seen], coverage[seen])


@functools.cache
def _font(size: int) -> Any:
    """Return DejaVu Sans, which comes with matplotlib and, unlike Pillow's own font, has a µ."""
    import matplotlib

    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"), size)


def _bar_length_um(longest_um: float) -> float:
    """Return the largest of 1, 2, 5, 10, 20, 50, ... µm that is not longer than asked for.

    >>> _bar_length_um(180.0), _bar_length_um(4.9)
    (100.0, 2.0)
    """
    power = 10.0 ** math.floor(math.log10(longest_um))
    return float(max(factor * power for factor in (1, 2, 5) if factor * power <= longest_um * (1 + 1e-9)))


def _add_scale_bar(rgb: npt.NDArray[np.uint8], um_per_px: float) -> npt.NDArray[np.uint8]:
    """Draw a bar at the bottom right: black on a light box, with its length above."""
    height, width = rgb.shape[:2]
    length_um = _bar_length_um(um_per_px * width / 4)
    length = max(1, round(length_um / um_per_px))
    label = f"{length_um / 1000:g} mm" if length_um >= 1000 else f"{length_um:g} µm"
    unit = max(1.0, max(width, height) / _REFERENCE_PX)
    font, pad, thick = _font(round(min(20 * unit, width / 8))), round(8 * unit), round(5 * unit)
    left, top, right, bottom = font.getbbox(label)
    box_width, box_height = max(length, right - left) + 2 * pad, bottom - top + thick + 3 * pad
    x0, y0 = width - box_width - pad, height - box_height - pad
    picture = Image.fromarray(rgb).convert("RGBA")
    layer = Image.new("RGBA", picture.size, (255, 255, 255, 0))
    draw = ImageDraw.Draw(layer)
    draw.rounded_rectangle((x0, y0, x0 + box_width - 1, y0 + box_height - 1), pad, fill=(255, 255, 255, 225))
    draw.text((x0 + (box_width - (right - left)) / 2 - left, y0 + pad - top), label, font=font, fill=(0, 0, 0, 255))
    bar_x, bar_y = x0 + (box_width - length) // 2, y0 + box_height - pad - thick
    draw.rectangle((bar_x, bar_y, bar_x + length - 1, bar_y + thick - 1), fill=(0, 0, 0, 255))
    return np.asarray(Image.alpha_composite(picture, layer).convert("RGB"))
