"""Which nuclei a synthetic slide has: where, how large, of which kind and how strongly stained."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
import shapely
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from pyhisto.synth.fields import Array, Float32, at_points, smooth_noise
from pyhisto.synth.layout import STEP_UM, Layout
from pyhisto.synth.settings import SynthSettings
from pyhisto.synth.stains import Appearance

__all__ = ["LYMPHOCYTE", "STROMA", "TUMOUR", "Nuclei", "make_nuclei", "outlines_px"]

TUMOUR, STROMA, LYMPHOCYTE = 0, 1, 2
HARMONICS = 4
_VERTICES = 36


@dataclass(frozen=True, eq=False)
class Nuclei:
    """n nuclei, one value (or row) each.

    Parameters
    ----------
    x_um, y_um
        Centre.
    a_um, b_um
        Semi-axes of the ellipse that the outline strays from.
    angle
        Of the axis `a`, radians, from x towards y.
    wobble
        (n, 4, 2): cosine and sine coefficients of the relative radius for 1 to 4 periods around the nucleus.
    kind
        :data:`TUMOUR`, :data:`STROMA` or :data:`LYMPHOCYTE`.
    positive
        Carries DAB.
    haematoxylin, dab
        Amounts of the two stains.
    soft_um
        Width of the blurred border.
    """

    x_um: Float32
    y_um: Float32
    a_um: Float32
    b_um: Float32
    angle: Float32
    wobble: Float32
    kind: NDArray[np.int8]
    positive: NDArray[np.bool_]
    haematoxylin: Float32
    dab: Float32
    soft_um: Float32

    def __len__(self) -> int:
        """Return the number of nuclei."""
        return len(self.x_um)

    def take(self, which: Array) -> Nuclei:
        """Return the nuclei at these positions or where this mask is true."""
        return Nuclei(**{field.name: getattr(self, field.name)[which] for field in fields(self)})


def make_nuclei(settings: SynthSettings, layout: Layout, look: Appearance) -> Nuclei:
    """Place the nuclei of a slide and draw their size, shape and staining.

    Parameters
    ----------
    settings
        Seed, proliferation and `positive_others` are used.
    layout
        Where tissue and nests are.
    look
        Mean size of the tumour nuclei and the staining strengths.

    Returns
    -------
    Nuclei
        Tumour nuclei first, then stroma, then lymphocytes; of the n tumour nuclei exactly
        ``round(proliferation * n)`` are positive.
    """
    rng = np.random.default_rng((settings.seed, 3))
    x_um, y_um, kind = _place(rng, layout, look)
    size_noise = smooth_noise(rng, layout.nest_um.shape, 45.0 / STEP_UM)
    a_um, b_um = _semi_axes(rng, kind, look, at_points(size_noise, x_um, y_um, STEP_UM))
    x_um, y_um, keep = _separate(x_um, y_um, np.sqrt(a_um * b_um) * np.where(kind == STROMA, 1.15, 1.0))
    nest_um = at_points(layout.nest_um, x_um, y_um, STEP_UM)
    keep &= at_points(layout.tissue_um, x_um, y_um, STEP_UM) > a_um + 1.0
    keep &= np.where(kind == TUMOUR, nest_um > 0.75 * b_um, True) & np.where(kind == STROMA, nest_um < -0.5, True)
    x_um, y_um, kind, a_um, b_um = (values[keep] for values in (x_um, y_um, kind, a_um, b_um))
    positive = _positive(rng, settings, kind, at_points(layout.hotspot, x_um, y_um, STEP_UM))
    haematoxylin, dab = _staining(rng, kind, positive, look)
    n = len(kind)
    scale = np.array([0.035, 0.035, 0.025, 0.015], dtype=np.float32)[:, None]
    soft = rng.lognormal(np.log(0.42), 0.3, n)
    soft = np.where((kind == TUMOUR) & (rng.random(n) < 0.08), 2.2 * soft, soft)
    return Nuclei(
        x_um=x_um.astype(np.float32),
        y_um=y_um.astype(np.float32),
        a_um=a_um.astype(np.float32),
        b_um=b_um.astype(np.float32),
        angle=_angles(rng, layout, x_um, y_um, kind),
        wobble=(rng.standard_normal((n, HARMONICS, 2)) * scale).clip(-0.09, 0.09).astype(np.float32),
        kind=kind.astype(np.int8),
        positive=positive,
        haematoxylin=haematoxylin,
        dab=dab,
        soft_um=soft.clip(0.25, 1.3).astype(np.float32),
    )


def _place(rng: np.random.Generator, layout: Layout, look: Appearance) -> tuple[Array, Array, Array]:
    """Return x, y (µm) and kind of the candidates: a disturbed hexagonal grid in the nests, chance elsewhere."""
    spacing = 1.18 * look.diameter_um + 0.6
    columns = np.arange(0.0, layout.width_um, spacing)
    rows = np.arange(0.0, layout.height_um, spacing * np.sqrt(3) / 2)
    grid_x, grid_y = np.meshgrid(columns, rows)
    grid_x = grid_x + (np.arange(len(rows)) % 2)[:, None] * spacing / 2
    x, y = grid_x.ravel(), grid_y.ravel()
    shape = layout.nest_um.shape
    for values, sigma_um in ((x, 14.0), (y, 14.0)):
        warp = at_points(smooth_noise(rng, shape, sigma_um / STEP_UM), grid_x.ravel(), grid_y.ravel(), STEP_UM)
        values += 3.5 * warp + rng.normal(0.0, 0.17 * spacing, len(values))
    inside = (at_points(layout.nest_um, x, y, STEP_UM) > 2.5) & (rng.random(len(x)) > 0.05)
    parts = [(x[inside], y[inside], TUMOUR)]
    thinning = np.clip(0.9 + 0.35 * smooth_noise(rng, shape, 40.0 / STEP_UM), 0.1, 1.5)
    stroma = np.where(layout.nest_um < -2.0, 1250.0 * thinning, 0.0)
    parts.append((*_scatter(rng, layout, stroma), STROMA))
    immune = np.where(layout.nest_um < -1.0, layout.lymphocytes, 90.0)
    parts.append((*_scatter(rng, layout, immune), LYMPHOCYTE))
    kinds = np.concatenate([np.full(len(part[0]), part[2]) for part in parts])
    return np.concatenate([part[0] for part in parts]), np.concatenate([part[1] for part in parts]), kinds


def _scatter(rng: np.random.Generator, layout: Layout, per_mm2: Array) -> tuple[Array, Array]:
    """Draw points in the tissue with a density given on the layout's grid."""
    highest = float(per_mm2.max())
    n = int(highest * layout.width_um * layout.height_um / 1e6)
    x, y = rng.uniform(0.0, layout.width_um, n), rng.uniform(0.0, layout.height_um, n)
    density = at_points(per_mm2.astype(np.float32), x, y, STEP_UM)
    keep = (rng.random(n) * highest < density) & (at_points(layout.tissue_um, x, y, STEP_UM) > 3.0)
    return x[keep], y[keep]


def _semi_axes(rng: np.random.Generator, kind: Array, look: Appearance, local: Array) -> tuple[Array, Array]:
    n = len(kind)
    diameter = (look.diameter_um * (1.0 + 0.06 * local) * rng.lognormal(0.0, 0.12, n)).clip(7.0, 13.0)
    ratio = rng.uniform(0.66, 1.0, n)
    a, b = 0.5 * diameter / np.sqrt(ratio), 0.5 * diameter * np.sqrt(ratio)
    immune = kind == LYMPHOCYTE
    small, round_ = 0.5 * rng.uniform(5.0, 7.0, n), rng.uniform(0.85, 1.0, n)
    a, b = np.where(immune, small, a), np.where(immune, small * round_, b)
    spindle = kind == STROMA
    plump = rng.random(n) < 0.2
    length, width = rng.uniform(4.5, 8.0, n), np.where(plump, rng.uniform(1.9, 2.8, n), rng.uniform(1.0, 1.8, n))
    return np.where(spindle, length, a), np.where(spindle, width, b)


def _separate(x: Array, y: Array, radius: Array) -> tuple[Array, Array, NDArray[np.bool_]]:
    """Push overlapping nuclei apart; return the new places and which nuclei still have room."""
    keep = np.ones(len(x), dtype=bool)
    if len(x) < 2:
        return x, y, keep
    points = np.stack([x, y], axis=1)
    reach = 2.0 * float(radius.max())
    for _ in range(5):
        first, second, gap, sum_ = _close_pairs(points, radius, reach)
        overlap = np.clip(sum_ - np.linalg.norm(gap, axis=1), 0.0, None)
        push = gap / np.maximum(np.linalg.norm(gap, axis=1), 1e-3)[:, None] * (0.3 * overlap)[:, None]
        for axis in (0, 1):
            points[:, axis] += np.bincount(first, push[:, axis], len(points))
            points[:, axis] -= np.bincount(second, push[:, axis], len(points))
    first, second, gap, sum_ = _close_pairs(points, radius, reach)
    tight = np.linalg.norm(gap, axis=1) < 0.84 * sum_
    first, second = first[tight], second[tight]
    for i, j in zip(first.tolist(), second.tolist(), strict=True):
        if keep[i] and keep[j]:
            keep[j] = False
    return points[:, 0], points[:, 1], keep


def _close_pairs(points: Array, radius: Array, reach: float) -> tuple[Array, Array, Array, Array]:
    pairs = cKDTree(points).query_pairs(reach, output_type="ndarray")
    pairs = pairs[np.lexsort((pairs[:, 1], pairs[:, 0]))]
    first, second = pairs[:, 0], pairs[:, 1]
    return first, second, points[first] - points[second], radius[first] + radius[second]


def _angles(rng: np.random.Generator, layout: Layout, x: Array, y: Array, kind: Array) -> Float32:
    """Return spindles along the fibres, tumour nuclei loosely aligned with their neighbours, lymphocytes at random."""
    down, right = (np.asarray(slope, dtype=np.float32) for slope in np.gradient(layout.flow_um, STEP_UM))
    along = np.arctan2(-at_points(right, x, y, STEP_UM), at_points(down, x, y, STEP_UM))
    grain = smooth_noise(rng, layout.nest_um.shape, 35.0 / STEP_UM)
    local = np.pi * at_points(grain, x, y, STEP_UM)
    n = len(kind)
    angle = np.where(kind == STROMA, along + rng.normal(0.0, 0.22, n), local + rng.normal(0.0, 0.6, n))
    return np.where(kind == LYMPHOCYTE, rng.uniform(0.0, np.pi, n), angle).astype(np.float32)


def _positive(rng: np.random.Generator, settings: SynthSettings, kind: Array, hotspot: Array) -> NDArray[np.bool_]:
    drawn = float(rng.uniform(0.06, 0.55))
    wanted = drawn if settings.proliferation is None else settings.proliferation
    chance = np.select([kind == STROMA, kind == LYMPHOCYTE], [settings.positive_others / 2, settings.positive_others])
    positive = rng.random(len(kind)) < chance
    tumour = np.flatnonzero(kind == TUMOUR)
    # the largest log(u) / weight win: weighted sampling without replacement (Efraimidis and Spirakis, Inf Process
    # Lett 97:181, 2006)
    keys = np.log(rng.random(len(tumour))) / hotspot[tumour]
    positive[tumour] = False
    positive[tumour[np.argsort(-keys, kind="stable")[: round(wanted * len(tumour))]]] = True
    return positive


def _staining(
    rng: np.random.Generator, kind: Array, positive: NDArray[np.bool_], look: Appearance
) -> tuple[Float32, Float32]:
    n = len(kind)
    blue = np.select([kind == LYMPHOCYTE, kind == STROMA], [1.45, 1.2], 1.0) * rng.lognormal(0.0, 0.22, n)
    pale = (kind == TUMOUR) & (rng.random(n) < 0.12)
    haematoxylin = look.haematoxylin * np.where(pale, 0.62, blue).clip(0.5, 2.0)
    weak = rng.random(n) < 0.24
    brown = np.where(weak, rng.uniform(0.21, 0.42, n), rng.uniform(0.5, 1.4, n)) * look.dab
    trace = np.abs(rng.normal(0.0, 0.028, n))
    dab = look.dab_haze + np.where(positive, brown, trace)
    haematoxylin = np.where(positive, haematoxylin * rng.uniform(0.35, 0.8, n), haematoxylin)
    return haematoxylin.astype(np.float32), dab.astype(np.float32)


def outlines_px(nuclei: Nuclei, mpp: float) -> NDArray[np.object_]:
    """Return the outlines as polygons.

    Parameters
    ----------
    nuclei
        n nuclei.
    mpp
        Pixel size, µm.

    Returns
    -------
    (n,) array of shapely.Polygon
        Level-0 px; the drawn border is half transparent on them.
    """
    theta = np.linspace(0.0, 2 * np.pi, _VERTICES, endpoint=False)
    radius = nuclei.a_um[:, None] * nuclei.b_um[:, None]
    radius = radius / np.hypot(nuclei.b_um[:, None] * np.cos(theta), nuclei.a_um[:, None] * np.sin(theta))
    periods = np.arange(1, HARMONICS + 1)[:, None] * theta
    radius = radius * (1.0 + nuclei.wobble[..., 0] @ np.cos(periods) + nuclei.wobble[..., 1] @ np.sin(periods))
    turned = theta + nuclei.angle[:, None]
    x = (nuclei.x_um[:, None] + radius * np.cos(turned)) / mpp
    y = (nuclei.y_um[:, None] + radius * np.sin(turned)) / mpp
    rings = np.stack([x, y], axis=-1).astype(np.float64)
    closed = np.concatenate([rings, rings[:, :1]], axis=1)
    return np.asarray(shapely.polygons(closed), dtype=object)
