"""Pictures of a slide with marks on it: outlines, points, rings, crosses, squares, shaded areas."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import shapely

from pyhisto.classes import Color
from pyhisto.labels import rasterise
from pyhisto.overlay.picture import Bounds, View, fit_view, outline_segments
from pyhisto.overlay.scalebar import add_scale_bar
from pyhisto.overlay.strokes import stroke
from pyhisto.slide import Slide

__all__ = ["Marks", "draw_marks"]

CASING: Color = (20, 24, 32)
"""Around lines and signs, which keeps pale colours apart from pale tissue."""

SIGN_PX = 11.0
"""From the middle of a ring, cross or square to its border, in a picture of 1200 px or less."""

SHADE = 0.4
"""Opacity of shaded areas."""

Style = Literal["outline", "ring", "cross", "square", "shade"]


@dataclass(frozen=True)
class Marks:
    """Some geometries and how they are shown.

    Attributes
    ----------
    shapes
        Polygons or points, level-0 px, object (n,).
    color
        RGB.
    style
        ``"outline"``: the outline, and a dot for a point; ``"ring"``, ``"cross"``, ``"square"``: a sign at the
        centroid; ``"shade"``: the area, see-through.
    """

    shapes: npt.NDArray[Any]
    color: Color
    style: Style


def draw_marks(
    slide: Slide, marks: Sequence[Marks], *, bounds: Bounds, max_size: tuple[int, int] = (600, 600)
) -> npt.NDArray[np.uint8]:
    """Draw marks on a region of a slide, in the order given, with a scale bar in pictures of at least 80 px.

    Parameters
    ----------
    slide
        The slide, with a pixel size.
    marks
        What to draw.
    bounds
        Region (x0, y0, x1, y1), level-0 px. What lies outside the slide is white.
    max_size
        Largest width and height of the picture, px; the region is fitted into it.

    Returns
    -------
    numpy.ndarray
        RGB uint8, shape (H, W, 3).

    Raises
    ------
    ConfigError
        If the region is empty.
    MissingPixelSizeError, SlideError
        If the slide has no pixel size, or its pixels cannot be decoded.
    """
    view = fit_view(bounds, max_size)
    canvas = slide.read_downsampled(view.x0, view.y0, view.width, view.height, view.downsample).astype(np.float32)
    for group in marks:
        shapes = group.shapes[view.visible(group.shapes)]
        if group.style == "shade":
            _shade(canvas, shapes, group.color, view)
        else:
            _lines(canvas, shapes, group, view)
    rgb = np.floor(canvas + 0.5).clip(0, 255).astype(np.uint8)
    return add_scale_bar(rgb, slide.mpp[0] * view.downsample[0]) if view.width >= 80 else rgb


def _shade(canvas: npt.NDArray[np.float32], shapes: npt.NDArray[Any], color: Color, view: View) -> None:
    inside = rasterise(
        shapes, [1] * len(shapes), (view.height, view.width), origin=(view.x0, view.y0), scale=view.downsample
    )
    canvas[inside > 0] += SHADE * (np.asarray(color, dtype=np.float32) - canvas[inside > 0])


def _lines(canvas: npt.NDArray[np.float32], shapes: npt.NDArray[Any], group: Marks, view: View) -> None:
    is_area = shapely.get_dimensions(shapes) == 2
    centres = view.to_picture(shapely.get_coordinates(shapely.centroid(shapes)))
    if group.style == "outline":
        dots = np.stack([centres[~is_area]] * 2, axis=1)
        pieces = [(outline_segments(shapes[is_area], view), 1.0 * view.unit), (dots, 3.2 * view.unit)]
    else:
        pieces = [(_sign(group.style, centres, SIGN_PX * view.unit), 1.5 * view.unit)]
    for segments, radius in pieces:
        for color, extra, opacity in ((CASING, 0.7 * view.unit, 0.55), (group.color, 0.0, 1.0)):
            stroke(canvas, segments, color, radius + extra, opacity=opacity)


def _sign(style: Style, centres: npt.NDArray[np.float64], reach: float) -> npt.NDArray[np.float64]:
    """Return the strokes of a sign at each centre, (n, 2 ends, 2), picture px."""
    if style == "cross":
        ends = np.array([[[-1, -1], [1, 1]], [[-1, 1], [1, -1]]]) * 0.75
    else:
        corners = 4 if style == "square" else 24
        angle = 2 * np.pi * (np.arange(corners) + 0.5) / corners
        ring = np.column_stack([np.cos(angle), np.sin(angle)]) * (1.3 if style == "square" else 1.0)
        ends = np.stack([ring, np.roll(ring, -1, axis=0)], axis=1)
    return np.asarray((centres[:, None, None] + reach * ends).reshape(-1, 2, 2), dtype=np.float64)
