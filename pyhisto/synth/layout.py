"""Where tissue, tumour nests and the pen mark lie on a synthetic slide."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray
from scipy import ndimage as ndi
from skimage import measure

from pyhisto.synth.fields import Float32, signed_distance, smooth_noise
from pyhisto.synth.settings import SynthSettings

__all__ = ["STEP_UM", "Layout", "make_layout"]

STEP_UM = 4.0
"""Step of the grid on which the layout is drawn."""


@dataclass(frozen=True, eq=False)
class Layout:
    """Fields on a grid of :data:`STEP_UM` and the outlines that follow from them.

    Parameters
    ----------
    width_um, height_um
        Size of the slide.
    tissue_um, nest_um
        Signed distance to the outline of the tissue and of the nests, µm, positive inside.
    flow_um
        Its level lines are the fibres of the stroma; the value grows by about 1 per µm across them.
    along_um
        Coordinate along the fibres, µm.
    lymphocytes
        Density of the lymphocytes in the stroma, per mm².
    hotspot
        Relative chance of a tumour nucleus to be positive.
    tissue, nests, pen
        Polygons in level-0 px, the largest first; `pen` may be empty.
    """

    width_um: float
    height_um: float
    tissue_um: Float32
    nest_um: Float32
    flow_um: Float32
    along_um: Float32
    lymphocytes: Float32
    hotspot: Float32
    tissue: list[shapely.Polygon]
    nests: list[shapely.Polygon]
    pen: list[shapely.Polygon]


def make_layout(settings: SynthSettings) -> Layout:
    """Draw the layout of a slide.

    Parameters
    ----------
    settings
        Size, pixel size, seed, tumour fraction and pen mark are used.

    Returns
    -------
    Layout
    """
    rng = np.random.default_rng((settings.seed, 1))
    width_um, height_um = settings.width * settings.mpp, settings.height * settings.mpp
    shape = (int(np.ceil(height_um / STEP_UM)) + 1, int(np.ceil(width_um / STEP_UM)) + 1)
    size_um = min(width_um, height_um)
    tissue_um = signed_distance(_tissue_mask(rng, shape, (width_um, height_um)), STEP_UM)
    fraction = settings.tumour_fraction
    drawn = float(rng.uniform(0.28, 0.48))
    nest_um = signed_distance(_nest_mask(rng, tissue_um, size_um, drawn if fraction is None else fraction), STEP_UM)
    flow_um, along_um = _fibres(rng, nest_um)
    clusters = smooth_noise(rng, shape, 26.0 / STEP_UM)
    border = np.exp(-(((nest_um + 14.0) / 12.0) ** 2)) * (smooth_noise(rng, shape, 50.0 / STEP_UM) > 0.1)
    lymphocytes = 160.0 + 10000.0 * np.clip(clusters - 1.05, 0.0, 0.9) + 1800.0 * border
    hotspot = np.clip(1.0 + 0.55 * smooth_noise(rng, shape, 55.0 / STEP_UM), 0.15, None)
    tissue = _polygons(tissue_um, settings.mpp)
    return Layout(
        width_um=width_um,
        height_um=height_um,
        tissue_um=tissue_um,
        nest_um=nest_um,
        flow_um=flow_um,
        along_um=along_um,
        lymphocytes=lymphocytes.astype(np.float32),
        hotspot=hotspot.astype(np.float32),
        tissue=tissue,
        nests=_polygons(nest_um, settings.mpp),
        pen=_pen_stroke(rng, tissue, settings) if settings.pen_mark else [],
    )


def _centres(shape: tuple[int, int]) -> tuple[Float32, Float32]:
    """Return y (n, 1) and x (1, m) of the grid's samples, µm."""
    y = ((np.arange(shape[0], dtype=np.float32) + 0.5) * STEP_UM)[:, None]
    x = ((np.arange(shape[1], dtype=np.float32) + 0.5) * STEP_UM)[None, :]
    return y, x


def _tissue_mask(rng: np.random.Generator, shape: tuple[int, int], extent_um: tuple[float, float]) -> NDArray[np.bool_]:
    width_um, height_um = extent_um
    size_um = min(extent_um)
    y, x = _centres(shape)
    cx, cy = rng.uniform(0.46, 0.54) * width_um, rng.uniform(0.46, 0.54) * height_um
    rx, ry = rng.uniform(0.38, 0.44) * width_um, rng.uniform(0.38, 0.44) * height_um
    radius = np.sqrt(((x - cx) / rx) ** 2 + ((y - cy) / ry) ** 2)
    wide = smooth_noise(rng, shape, 0.11 * size_um / STEP_UM)
    fine = smooth_noise(rng, shape, 0.025 * size_um / STEP_UM)
    margin_um = 0.045 * size_um
    edge_um = np.minimum(np.minimum(x, width_um - x), np.minimum(y, height_um - y))
    near_edge = np.clip(2.2 - edge_um / (2.0 * margin_um), 0.0, None)
    inside = (1.0 - radius + 0.15 * wide + 0.03 * fine - 0.25 * near_edge**2 > 0) & (edge_um > margin_um)
    inside = ndi.binary_opening(inside, iterations=2)
    return _keep(inside, smallest=0.06 * float(inside.sum()))


def _nest_mask(rng: np.random.Generator, tissue_um: Float32, size_um: float, fraction: float) -> NDArray[np.bool_]:
    scale_um = min(42.0, size_um / 14.0)
    texture = (
        smooth_noise(rng, tissue_um.shape, scale_um / STEP_UM)
        + 0.38 * smooth_noise(rng, tissue_um.shape, 0.4 * scale_um / STEP_UM)
        + 0.35 * smooth_noise(rng, tissue_um.shape, 3.0 * scale_um / STEP_UM)
    )
    island = smooth_noise(rng, tissue_um.shape, 0.32 * scale_um / STEP_UM) > 2.0
    room = tissue_um > min(22.0, size_um / 30.0)
    if fraction == 0.0 or not room.any():
        return np.zeros(tissue_um.shape, dtype=bool)
    wanted = min(1.0, fraction * float((tissue_um > 0).sum()) / float(room.sum()))
    mask = room & (texture >= np.quantile(texture[room], 1.0 - wanted)) & ~island
    mask = ndi.binary_opening(mask, iterations=2)
    mask = ~_keep(~mask, smallest=500.0 / STEP_UM**2)
    return _keep(mask, smallest=min(4000.0, scale_um**2) / STEP_UM**2)


def _keep(mask: NDArray[np.bool_], smallest: float) -> NDArray[np.bool_]:
    """Keep the pieces of at least `smallest` samples, and the largest piece in any case."""
    labels, n = ndi.label(mask)
    if n == 0:
        return mask
    areas = np.bincount(labels.ravel())
    areas[0] = 0
    keep = areas >= min(smallest, float(areas.max()))
    keep[0] = False
    return np.asarray(keep[labels], dtype=bool)


def _fibres(rng: np.random.Generator, nest_um: Float32) -> tuple[Float32, Float32]:
    y, x = _centres((nest_um.shape[0], nest_um.shape[1]))
    angle = rng.uniform(0.0, np.pi)
    around = 0.45 * np.clip(-nest_um, -20.0, 70.0)
    flow = np.cos(angle) * x + np.sin(angle) * y + 30.0 * smooth_noise(rng, nest_um.shape, 60.0 / STEP_UM) + around
    along = np.cos(angle) * y - np.sin(angle) * x + 30.0 * smooth_noise(rng, nest_um.shape, 70.0 / STEP_UM)
    return flow.astype(np.float32), along.astype(np.float32)


def _polygons(distance_um: Float32, mpp: float) -> list[shapely.Polygon]:
    """Return the outlines at distance 0 as polygons in level-0 px, the largest first."""
    padded = np.pad(distance_um, 1, constant_values=-STEP_UM)
    rings = measure.find_contours(padded, 0.0)
    # index -> µm -> px; the padding shifts by one sample, the sample's centre by half of one
    lines = [shapely.LineString((ring[:, ::-1] - 0.5) * STEP_UM / mpp) for ring in rings if len(ring) > 3]
    area = shapely.build_area(shapely.GeometryCollection(lines))
    return _parts(shapely.make_valid(shapely.simplify(area, 0.4 / mpp)))


def _parts(geometry: Any) -> list[shapely.Polygon]:
    parts = [part for part in shapely.get_parts(geometry) if part.geom_type == "Polygon" and part.area > 0]
    return sorted(parts, key=lambda part: float(part.area), reverse=True)


def _pen_stroke(
    rng: np.random.Generator, tissue: list[shapely.Polygon], settings: SynthSettings
) -> list[shapely.Polygon]:
    """Return an arc beside the tissue, drawn by a quick hand, that touches the tissue's edge here and there."""
    size_px = min(settings.width, settings.height)
    pen_px = rng.uniform(0.022, 0.032) * size_px
    centre = shapely.union_all(tissue).centroid
    ring = shapely.union_all(tissue).convex_hull.buffer(0.35 * pen_px)
    start, length = rng.uniform(0.0, 1.0), rng.uniform(0.16, 0.24)
    place = (start + np.linspace(0.0, length, 60)) % 1.0
    points = shapely.get_coordinates(shapely.line_interpolate_point(ring.exterior, place, normalized=True))
    away = points - (centre.x, centre.y)
    away /= np.linalg.norm(away, axis=1, keepdims=True)
    wobble = np.cumsum(rng.normal(0.0, 0.05 * pen_px, 60))
    lift = np.linspace(-1.0, 1.0, 60) ** 2 * rng.uniform(0.3, 1.2) * pen_px
    stroke = shapely.LineString(points + away * (wobble + lift)[:, None]).simplify(1.0)
    shape = stroke.buffer(pen_px / 2).intersection(shapely.box(0, 0, settings.width, settings.height))
    return _parts(shape)
