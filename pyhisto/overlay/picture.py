"""Pictures of a slide with its objects drawn on it.

A point (x, y) in level-0 px lies at ((x - x0) / d, (y - y0) / d) in the picture, where d is the downsample and pixel
(column, row) covers [column, column + 1) x [row, row + 1).
"""

from __future__ import annotations

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
import shapely
from PIL import Image

from pyhisto.classes import CLASS_COLORS, Color
from pyhisto.errors import ConfigError
from pyhisto.overlay.field import POSITIVE_CLASSES, nucleus_or_geometry
from pyhisto.overlay.scalebar import add_scale_bar
from pyhisto.overlay.strokes import stroke
from pyhisto.slide import Slide

__all__ = ["View", "draw_overlay", "encode_png", "fit_view", "outline_segments", "overlay_png", "save_png"]

Bounds = tuple[float, float, float, float]
Floats = npt.NDArray[np.float64]

UNCLASSIFIED: Color = (70, 70, 70)
"""Of objects without a class, and of classes that nobody gave a colour."""

WHITE: Color = (255, 255, 255)
"""The casing of outlines, which keeps them apart from brown and blue."""

MAX_ENLARGEMENT = 4.0
"""Picture pixels to one level-0 pixel, at most: more would show nothing new."""

OUTLINE_FROM_PX = 12.0
"""Nuclei are outlined where they are at least this wide in the picture, and dots below."""


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
    cell boundary faint) where the median nucleus is at least :data:`OUTLINE_FROM_PX` wide. Positive cells are drawn
    over the others, annotations over cells. Tiles are not drawn. An object's own colour comes before its class's.

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
        Class name to RGB, before :data:`pyhisto.classes.CLASS_COLORS`. A class without a colour of its own takes that
        of its last part, then of its first.
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
    view = fit_view(bounds or (0.0, 0.0, float(slide.dimensions[0]), float(slide.dimensions[1])), max_size)
    canvas = slide.read_downsampled(view.x0, view.y0, view.width, view.height, view.downsample).astype(np.float32)
    palette = {**CLASS_COLORS, **(colors or {})}
    _draw_cells(canvas, objects[objects["object_type"].isin(["detection", "cell"])], view, palette)
    _draw_annotations(canvas, objects[objects["object_type"].isin(["annotation", "tma_core"])], view, palette)
    rgb = np.floor(canvas + 0.5).clip(0, 255).astype(np.uint8)
    return add_scale_bar(rgb, slide.mpp[0] * view.downsample[0]) if scale_bar and view.width >= 80 else rgb


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


@dataclass(frozen=True)
class View:
    """Where a picture lies on the slide: origin in level-0 px, size in px, level-0 px to one px in x and y."""

    x0: float
    y0: float
    width: int
    height: int
    downsample: tuple[float, float]

    @property
    def unit(self) -> float:
        """Factor for line widths and letters: 1 in a picture of 1200 px, never less than 0.8."""
        return max(0.8, max(self.width, self.height) / 1200)

    def to_picture(self, xy: Floats) -> Floats:
        """Return level-0 px as picture px."""
        return (xy - (self.x0, self.y0)) / self.downsample

    def visible(self, geometry: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
        """Say which geometries come into the picture, with a rim of 16 px."""
        boxes = shapely.bounds(geometry)
        low, high = self.to_picture(boxes[:, :2]), self.to_picture(boxes[:, 2:])
        size = np.array([self.width, self.height])
        inside: npt.NDArray[np.bool_] = np.concatenate([high > -16, low < size + 16], axis=1)
        return np.asarray(inside.all(axis=1))


def fit_view(bounds: Bounds, max_size: tuple[int, int]) -> View:
    """Return the view that fits a region (x0, y0, x1, y1), level-0 px, into a picture of at most `max_size`.

    Raises
    ------
    ConfigError
        If the region is empty or the picture would have no pixel.
    """
    x0, y0, x1, y1 = bounds
    if not (all(map(math.isfinite, bounds)) and x1 > x0 and y1 > y0):
        raise ConfigError(f"region {bounds}", expected="(x0, y0, x1, y1) with x1 > x0 and y1 > y0, level-0 px")
    if min(max_size) < 1:
        raise ConfigError(f"picture of at most {max_size[0]} x {max_size[1]} px", expected="at least 1 x 1")
    downsample = max(1 / MAX_ENLARGEMENT, (x1 - x0) / max_size[0], (y1 - y0) / max_size[1])
    width, height = max(1, round((x1 - x0) / downsample)), max(1, round((y1 - y0) / downsample))
    return View(x0, y0, width, height, ((x1 - x0) / width, (y1 - y0) / height))


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


def _draw_cells(canvas: npt.NDArray[np.float32], cells: gpd.GeoDataFrame, view: View, palette: Any) -> None:
    cells = cells[view.visible(cells["geometry"].to_numpy())]
    if len(cells) == 0:
        return
    shapes = nucleus_or_geometry(cells)
    boxes = shapely.bounds(shapes)
    width = float(np.median((boxes[:, 2:] - boxes[:, :2]).mean(axis=1))) / max(view.downsample)
    small = width < OUTLINE_FROM_PX
    flat = np.logical_or(shapely.area(shapes) == 0, small)
    radius = float(np.clip(0.38 * width, 1.1, 4.6)) if small else 4 * view.unit
    outer, inside = cells["geometry"].to_numpy(), cells["nucleus"].notna().to_numpy()
    for color, chosen in _color_groups(cells, palette):
        outlined, dots = chosen & ~flat, chosen & flat
        stroke(canvas, outline_segments(outer[outlined & inside], view), color, 0.5 * view.unit, opacity=0.4)
        nuclei = outline_segments(shapes[outlined], view)
        stroke(canvas, nuclei, WHITE, 1.5 * view.unit, opacity=0.45)
        stroke(canvas, nuclei, color, 0.85 * view.unit)
        centres = view.to_picture(shapely.get_coordinates(shapely.centroid(shapes[dots])))
        stroke(canvas, np.stack([centres, centres], axis=1), color, radius, opacity=0.9)


def _draw_annotations(canvas: npt.NDArray[np.float32], areas: gpd.GeoDataFrame, view: View, palette: Any) -> None:
    """Outline annotations on a white casing; points are dots."""
    areas = areas[view.visible(areas["geometry"].to_numpy())]
    shapes = areas["geometry"].to_numpy()
    points = shapely.get_dimensions(shapes) == 0
    for color, chosen in _color_groups(areas, palette):
        lines = outline_segments(shapes[chosen & ~points], view)
        dots = view.to_picture(shapely.get_coordinates(shapes[chosen & points]))
        for shade, extra, opacity in ((WHITE, 0.9, 0.75), (color, 0.0, 1.0)):
            stroke(canvas, lines, shade, (1.25 + extra) * view.unit, opacity=opacity)
            stroke(canvas, np.stack([dots, dots], axis=1), shade, (4 + extra) * view.unit, opacity=opacity)


def outline_segments(shapes: npt.NDArray[Any], view: View) -> Floats:
    """Return the outlines, holes included, as segments (n, 2 ends, 2) in picture px, true to 0.1 px."""
    areal = shapely.get_dimensions(shapes) == 2
    lines = shapely.get_parts(np.where(areal, shapely.boundary(shapes), shapes))
    lines = shapely.simplify(lines, 0.1 * min(view.downsample), preserve_topology=False)
    xy, line = shapely.get_coordinates(lines, return_index=True)
    ends = np.flatnonzero(line[1:] == line[:-1])
    xy = view.to_picture(xy)
    return np.stack([xy[ends], xy[ends + 1]], axis=1)
