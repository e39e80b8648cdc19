"""From layout, nuclei and stains to pixels, band by band."""

from __future__ import annotations

import numpy as np
import shapely
from numpy.typing import NDArray
from scipy import ndimage as ndi

from pyhisto.synth.fields import Array, Float32, resample, sigmoid, smooth_noise
from pyhisto.synth.layout import STEP_UM, Layout
from pyhisto.synth.nuclei import HARMONICS, LYMPHOCYTE, STROMA, TUMOUR, Nuclei
from pyhisto.synth.settings import SynthSettings
from pyhisto.synth.stains import Appearance
from pyhisto.synth.tissue_texture import TEXTURE_UM, draw_tissue

__all__ = ["draw_slide"]

_BAND = 512
_HALO = 16
_TILE = 512
_CHUNK_PX = 400_000


def draw_slide(settings: SynthSettings, layout: Layout, nuclei: Nuclei, look: Appearance) -> NDArray[np.uint8]:
    """Draw level 0.

    Light passes the stains by Beer and Lambert's law, ``I = white * 10 ** -(amounts @ vectors)``; optics, gamma,
    sharpening and noise follow.

    Parameters
    ----------
    settings, layout, nuclei, look
        What to draw.

    Returns
    -------
    (height, width, 3) uint8, RGB
    """
    tissue = draw_tissue(settings, layout, nuclei, look)
    rng = np.random.default_rng((settings.seed, 5))
    grain_px = 0.55 / settings.mpp
    chromatin = smooth_noise(rng, (_TILE, _TILE), max(grain_px, 0.6), periodic=True)
    clumps = smooth_noise(rng, (_TILE, _TILE), max(2.0 * grain_px, 0.8), periodic=True)
    chromatin = np.clip(0.6 * chromatin + 0.8 * clumps, -2.0, 2.0)
    light = 1.0 + look.uneven * smooth_noise(rng, layout.nest_um.shape, 0.22 * layout.nest_um.shape[0])
    ink = _ink(rng, settings, layout)
    specks = _specks(rng, settings, layout)
    image = np.empty((settings.height, settings.width, 3), dtype=np.uint8)
    x_um = ((np.arange(settings.width) + 0.5) * settings.mpp).astype(np.float32)
    for top in range(0, settings.height, _BAND):
        rows = np.arange(top - _HALO, min(top + _BAND, settings.height) + _HALO)
        y_um = ((rows + 0.5) * settings.mpp).astype(np.float32)
        amounts = np.empty((4, len(rows), settings.width), dtype=np.float32)
        for plane in range(3):
            amounts[plane] = resample(tissue[plane], y_um, x_um, TEXTURE_UM)
        amounts[3] = resample(ink, y_um, x_um, STEP_UM)
        fine = chromatin[np.ix_(rows % _TILE, np.arange(settings.width) % _TILE)]
        amounts[2] *= 1.0 + 0.10 * fine
        _draw_nuclei(amounts[:3], nuclei, chromatin, int(rows[0]), settings.mpp)
        _draw_specks(amounts, specks, int(rows[0]))
        lamp = resample(light.astype(np.float32), y_um, x_um, STEP_UM)
        band = _camera(amounts, lamp, look, settings.mpp)
        image[top : top + _BAND] = _digitise(band[_HALO:-_HALO], look, (settings.seed, 6, top))
    return image


def _draw_nuclei(amounts: Float32, nuclei: Nuclei, chromatin: Float32, top: int, mpp: float) -> None:
    """Draw the nuclei that touch a band into its planes of haematoxylin, DAB and protein."""
    reach = nuclei.a_um * 1.25 + 3.0 * nuclei.soft_um
    middle = nuclei.y_um - top * mpp
    touching = np.flatnonzero((middle + reach > 0) & (middle - reach < amounts.shape[1] * mpp))
    half = np.ceil(reach[touching] / mpp).astype(np.intp) + 1
    sizes = -(-half // 6) * 6
    for size in np.unique(sizes):
        same = touching[sizes == size]
        per_chunk = max(1, _CHUNK_PX // (2 * int(size)) ** 2)
        for begin in range(0, len(same), per_chunk):
            which = same[begin : begin + per_chunk]
            _draw_patches(amounts, nuclei.take(which), which, int(size), chromatin, (top, mpp))


def _draw_patches(
    amounts: Float32, nuclei: Nuclei, number: Array, half: int, chromatin: Float32, frame: tuple[int, float]
) -> None:
    top, mpp = frame
    left_px = np.floor(nuclei.x_um / mpp).astype(np.intp) - half
    top_px = np.floor(nuclei.y_um / mpp).astype(np.intp) - half
    steps = np.arange(2 * half) + 0.5
    dx = ((left_px[:, None, None] + steps) * mpp - nuclei.x_um[:, None, None]).astype(np.float32)
    dy = ((top_px[:, None, None] + steps[:, None]) * mpp - nuclei.y_um[:, None, None]).astype(np.float32)
    cover, depth = _shape(nuclei, dx, dy)
    shift = (number * 7919) % (_TILE * _TILE)
    rows = (shift // _TILE)[:, None, None] + np.arange(2 * half)[:, None]
    columns = (shift % _TILE)[:, None, None] + np.arange(2 * half)
    stains = _chromatin(nuclei, number, depth, chromatin[rows % _TILE, columns % _TILE], (dx, dy))
    stains *= cover
    cover *= 0.8
    height, width = amounts.shape[1:]
    for i in range(len(number)):
        y0, x0 = int(top_px[i]) - top, int(left_px[i])
        ya, yb, xa, xb = max(y0, 0), min(y0 + 2 * half, height), max(x0, 0), min(x0 + 2 * half, width)
        if ya >= yb or xa >= xb:
            continue
        inner = (slice(ya - y0, yb - y0), slice(xa - x0, xb - x0))
        window = amounts[:, ya:yb, xa:xb]
        window *= 1.0 - cover[i][inner]
        window[:2] += stains[:, i][(slice(None), *inner)]


def _shape(nuclei: Nuclei, dx: Float32, dy: Float32) -> tuple[Float32, Float32]:
    """Return the cover (0 to 1; 0.5 on the outline) and the radius relative to the outline, (n, p, p) each."""
    cos, sin = np.cos(nuclei.angle)[:, None, None], np.sin(nuclei.angle)[:, None, None]
    u, v = dx * cos + dy * sin, dy * cos - dx * sin
    radius = np.maximum(np.sqrt(u * u + v * v), np.float32(1e-3))
    u /= radius
    v /= radius
    a, b = nuclei.a_um[:, None, None], nuclei.b_um[:, None, None]
    factor = np.ones_like(radius)
    cos_k, sin_k = u.copy(), v.copy()
    for k in range(HARMONICS):
        factor += nuclei.wobble[:, k, 0, None, None] * cos_k + nuclei.wobble[:, k, 1, None, None] * sin_k
        cos_k, sin_k = cos_k * u - sin_k * v, sin_k * u + cos_k * v
    outline = factor * (a * b) / np.sqrt((b * u) ** 2 + (a * v) ** 2)
    # the distance to the outline along the ray is longer than the distance itself where the outline is oblique
    steepness = outline / np.sqrt(a * b)
    cover = sigmoid((outline - radius) * (2.2 / nuclei.soft_um[:, None, None]) / np.maximum(steepness, 1.0))
    return cover, radius / outline


def _chromatin(
    nuclei: Nuclei, number: Array, depth: Float32, texture: Float32, offsets: tuple[Float32, Float32]
) -> Float32:
    """Return the amounts of haematoxylin and DAB inside the nuclei, (2, n, p, p)."""
    tumour, spindle = nuclei.kind == TUMOUR, nuclei.kind == STROMA
    immune = nuclei.kind == LYMPHOCYTE
    base = np.select([tumour, immune], [0.74, 0.98], 0.95).astype(np.float32)[:, None, None]
    membrane = np.select([tumour, immune], [0.42, 0.08], 0.05).astype(np.float32)[:, None, None]
    coarse = np.select([tumour, spindle], [0.17, 0.09], 0.17).astype(np.float32)[:, None, None]
    rim = np.exp(-(((depth - 0.88) / 0.15) ** 2))
    density = base + membrane * rim + coarse * texture
    for k in range(2):  # up to two nucleoli, in tumour nuclei only
        turn = (number * (0.731 + 0.317 * k) % 1.0) * 2 * np.pi
        away = (0.15 + 0.3 * (number * (0.577 + 0.2 * k) % 1.0)) * nuclei.b_um
        weight = np.where(tumour & (number * 0.391 % 1.0 > 0.4 * k + 0.1), 0.75, 0.0).astype(np.float32)
        x = (away * np.cos(turn)).astype(np.float32)[:, None, None]
        y = (away * np.sin(turn)).astype(np.float32)[:, None, None]
        distance2 = (offsets[0] - x) ** 2 + (offsets[1] - y) ** 2
        density += weight[:, None, None] * np.exp(-distance2 / 0.75)
    np.clip(density, 0.25, None, out=density)
    blotches = np.clip(0.98 + 0.30 * texture + 0.08 * rim, 0.3, None)
    haematoxylin = nuclei.haematoxylin[:, None, None] * density
    dab = nuclei.dab[:, None, None] * np.where(nuclei.positive[:, None, None], blotches, 1.0)
    return np.stack([haematoxylin, dab])


def _ink(rng: np.random.Generator, settings: SynthSettings, layout: Layout) -> Float32:
    """Return the amount of pen ink on the layout's grid: uneven, streaky, darker at the rim."""
    shape = layout.nest_um.shape
    ink = np.zeros(shape, dtype=np.float32)
    if not layout.pen:
        return ink
    stroke = shapely.union_all(layout.pen)
    left, top, right, bottom = (int(side * settings.mpp / STEP_UM) for side in stroke.bounds)
    rows = np.arange(max(top - 3, 0), min(bottom + 4, shape[0]))
    columns = np.arange(max(left - 3, 0), min(right + 4, shape[1]))
    x, y = np.meshgrid((columns + 0.5) * STEP_UM / settings.mpp, (rows + 0.5) * STEP_UM / settings.mpp)
    inside = shapely.contains_xy(stroke, x, y)
    near = ndi.binary_dilation(inside, iterations=3) & ~ndi.binary_erosion(inside, iterations=3)
    depth_um = np.where(inside, 20.0, -20.0)
    border_um = shapely.distance(shapely.points(x[near], y[near]), stroke.boundary) * settings.mpp
    depth_um[near] = np.where(inside[near], border_um, -border_um)
    ink[np.ix_(rows, columns)] = np.clip(depth_um / 6.0 + 0.5, 0.0, 1.0)
    rim = ink - ndi.gaussian_filter(ink, 2.5)
    streaks = 0.85 + 0.16 * smooth_noise(rng, shape, 6.0) + 0.05 * smooth_noise(rng, shape, 1.0)
    return np.asarray(ink * np.clip(streaks + 0.35 * np.clip(rim, 0.0, None), 0.35, None), dtype=np.float32)


def _specks(rng: np.random.Generator, settings: SynthSettings, layout: Layout) -> Array:
    """Return dust and brown precipitate: rows of x px, y px, radius px, plane and amount."""
    area_mm2 = layout.width_um * layout.height_um / 1e6
    n_dust, n_brown = rng.poisson(9.0 * area_mm2), rng.poisson(14.0 * area_mm2)
    n = n_dust + n_brown
    plane = np.where(np.arange(n) < n_dust, 2.0, 1.0)
    radius_um = np.where(plane == 2.0, rng.lognormal(0.3, 0.6, n), rng.uniform(0.5, 1.3, n)).clip(0.4, 6.0)
    amount = np.where(plane == 2.0, rng.uniform(0.1, 0.7, n), rng.uniform(0.4, 1.2, n))
    x, y = rng.uniform(0, settings.width, n), rng.uniform(0, settings.height, n)
    return np.stack([x, y, radius_um / settings.mpp, plane, amount], axis=1)


def _draw_specks(amounts: Float32, specks: Array, top: int) -> None:
    height, width = amounts.shape[1:]
    for x, y, radius, plane, amount in specks.tolist():
        half = int(3 * radius) + 2
        y0, x0 = int(y) - top, int(x)
        rows = np.arange(max(y0 - half, 0), min(y0 + half, height))
        columns = np.arange(max(x0 - half, 0), min(x0 + half, width))
        if len(rows) == 0 or len(columns) == 0:
            continue
        distance = np.hypot((rows[:, None] + top + 0.5 - y) * 1.3, columns + 0.5 - x)
        amounts[int(plane), rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] += amount * sigmoid(
            ((radius - distance) * 2.5).astype(np.float32)
        )


def _camera(amounts: Float32, lamp: Float32, look: Appearance, mpp: float) -> Float32:
    """Return the intensity behind the optics, (rows, width, 3), 0 to 1, without noise."""
    out = np.empty((*lamp.shape, 3), dtype=np.float32)
    sigma = look.blur_um / mpp
    for channel in range(3):
        weights = (look.vectors[:, channel] * -np.log(10.0)).astype(np.float32)
        density = np.tensordot(weights, amounts, axes=1)
        np.multiply(density, look.gamma, out=density)
        intensity = np.exp(density)
        intensity *= look.white[channel]
        if sigma > 0.15:
            intensity = ndi.gaussian_filter(intensity, sigma, truncate=3.0)
        if look.sharpen > 0:
            intensity += look.sharpen * (intensity - ndi.gaussian_filter(intensity, 1.0, truncate=2.5))
        intensity *= lamp
        out[..., channel] = (intensity - look.white[channel]) * look.contrast + look.white[channel]
    return out


def _digitise(band: Float32, look: Appearance, seed: tuple[int, ...]) -> NDArray[np.uint8]:
    """Add photon and read-out noise and round to 8 bits."""
    rng = np.random.default_rng(seed)
    np.clip(band, 0.004, 1.0, out=band)
    noise = rng.standard_normal(band.shape, dtype=np.float32)
    noise *= np.sqrt(band) * look.noise
    band += noise
    band *= 255.0
    band += 0.5
    return np.clip(band, 0.0, 255.0).astype(np.uint8)
