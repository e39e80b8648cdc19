"""Random changes of training patches: what another section, another stainer and another scanner would have made.

Geometry goes through MONAI's grids and is resampled once; colours change in optical density, in the stains' space.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.ndimage as ndi

from pyhisto.errors import ConfigError
from pyhisto.stain import H_DAB, H_E, StainVectors, estimate_stains

__all__ = ["Augmentation", "augment", "read_size"]

LEAST_ANGLE_DEG = 20.0
"""Angle between two stain vectors below which changing them apart would make colours that no stain has."""

ROTATED = 0.5
"""Share of the patches that are rotated and deformed; the rest stays as sharp as the tiles that inference sees."""

NOISY = 0.5
"""Share of the patches that get noise."""

ELASTIC_SPACING_PX = 64
"""Distance of the control points of an elastic deformation."""

LEAST_BLUR_PX = 0.2
"""Sigma below which a blur would change nothing."""

STANDARD = (H_DAB, H_E)

WHITE = (255.0, 255.0, 255.0)
"""White of a slide whose white nobody measured."""

Rgb = npt.NDArray[np.uint8]
Labels = npt.NDArray[np.uint8]
Weights = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Augmentation:
    """Random changes of a patch; each is a half-width around no change, and 0 leaves it out.

    Quarter turns and mirroring always happen. The defaults are wide enough for slides of another laboratory.

    Attributes
    ----------
    scale
        Relative change of the µm/px that the patch is read at: 0.3 is from 1 / 1.3 to 1.3 times.
    rotation
        Largest angle beyond the quarter turns, degrees; 45 and more make every angle possible.
    elastic
        Largest standard deviation of the displacement of control points 64 px apart, pixels (Simard 2003).
    stain
        Relative change of the amount of each of the two stains (alpha of HED jitter, Tellez 2018).
    stain_shift
        Optical density that is added to each stain everywhere (beta of HED jitter, Tellez 2018).
    hue
        Relative change of what each stain absorbs of red, green and blue, each by itself: another batch of the dye.
    macenko
        Share of the patches, 0 to 1, where `stain`, `stain_shift` and `hue` change the slide's own stain vectors: those
        given with it, else estimated from the patch (Macenko 2009). The other patches, and those whose vectors cannot
        be estimated, take the standard ones of hematoxylin with DAB or with eosin, whichever fits them better.
    gamma
        Relative change of all optical densities together.
    contrast
        Relative change of the differences from the mean of the patch.
    brightness
        Relative change of the white point of all channels together, and half as much of each by itself.
    blur_px
        Largest sigma of a Gaussian blur.
    noise
        Largest standard deviation of Gaussian noise, grey levels of 255.

    Raises
    ------
    ConfigError
        If a value is out of range.
    """

    scale: float = 0.3
    rotation: float = 45.0
    elastic: float = 0.0
    stain: float = 0.3
    stain_shift: float = 0.01
    hue: float = 0.15
    macenko: float = 0.5
    gamma: float = 0.2
    contrast: float = 0.1
    brightness: float = 0.08
    blur_px: float = 1.0
    noise: float = 4.0

    def __post_init__(self) -> None:
        highest = {"macenko": 1.0, "rotation": 180.0}
        below_one = {"stain", "hue", "contrast", "brightness"}
        for name in (field.name for field in fields(self)):
            value = getattr(self, name)
            if not 0 <= value < math.inf or value > highest.get(name, math.inf) or (name in below_one and value >= 1):
                wanted = "from 0 to below 1" if name in below_one else f"from 0 to {highest.get(name, 'any')}"
                raise ConfigError(f"augmentation with {name} = {value}", expected=f"a number {wanted}")


def read_size(size: int, augmentation: Augmentation | None) -> int:
    """Return the side of the square to read, px, so that nothing outside of it gets into a patch of `size` px.

    It is even where `size` is even, and odd where `size` is odd, so that both have the same centre. A deformation may
    reach further in one of a thousand patches; what it then shows is ignored by its labels.
    """
    if augmentation is None:
        return size
    angle = math.radians(min(augmentation.rotation, 45.0))
    side = size * (math.cos(angle) + math.sin(angle)) + 2 * 3 * augmentation.elastic
    margin = math.ceil((side - size) / 2 - 1e-9)
    return size + 2 * margin


def augment(
    rgb: Rgb,
    labels: Labels,
    weights: Weights | None,
    settings: Augmentation,
    rng: np.random.Generator,
    size: int,
    *,
    stains: StainVectors | None = None,
) -> tuple[Rgb, Labels, Weights | None]:
    """Turn, mirror, rotate, deform, re-stain, re-light and blur a patch, and cut out its centre.

    Parameters
    ----------
    rgb, labels, weights
        uint8 (side, side, 3), uint8 (side, side) and float32 (side, side) or None; side is :func:`read_size`. Channels
        beside red, green and blue go through the geometry alone.
    settings
        See :class:`Augmentation`; the scale is applied when the patch is read.
    rng
        Source of all randomness: the same state gives the same patch.
    size
        Side of the result, px.
    stains
        Two stain vectors and white of the slide; estimated from the patch, with white 255, where not given.

    Returns
    -------
    rgb : numpy.ndarray
        uint8 (size, size, 3).
    labels : numpy.ndarray
        uint8 (size, size): nearest pixel; 255 where the patch shows what lies outside of what was read.
    weights : numpy.ndarray or None
        float32 (size, size): nearest pixel, 0 outside.

    Raises
    ------
    ConfigError
        If the patch is smaller than `size`.
    """
    if min(rgb.shape[:2]) < size:
        raise ConfigError(f"a patch of {rgb.shape[1]} x {rgb.shape[0]} px", expected=f"at least {size} x {size} px")
    rgb, labels, weights = _turn(rgb, labels, weights, settings, rng, size)
    image = _recolour(rgb[..., :3], settings, rng, stains)
    image = _degrade(image, settings, rng)
    rgb = np.concatenate([np.moveaxis(_as_uint8(image), 0, 2), rgb[..., 3:]], axis=2)
    return np.ascontiguousarray(rgb), labels, weights


def _as_uint8(image: npt.NDArray[np.float32]) -> Rgb:
    return np.asarray(np.rint(image.clip(0, 255)), dtype=np.uint8)


def _turn(
    rgb: Rgb,
    labels: Labels,
    weights: Weights | None,
    settings: Augmentation,
    rng: np.random.Generator,
    size: int,
) -> tuple[Rgb, Labels, Weights | None]:
    """Change the geometry of a patch and cut it to `size`."""
    turns, mirror = int(rng.integers(4)), bool(rng.integers(2))
    if rng.random() < ROTATED and (settings.rotation > 0 or settings.elastic > 0):
        rgb, labels, weights = _resample(rgb, labels, weights, settings, rng, size)
    top, left = (rgb.shape[0] - size) // 2, (rgb.shape[1] - size) // 2

    def turned(array: Any) -> Any:
        array = np.rot90(array[top : top + size, left : left + size], turns)
        return np.ascontiguousarray(array[:, ::-1] if mirror else array)

    return turned(rgb), turned(labels), None if weights is None else turned(weights)


def _resample(
    rgb: Rgb,
    labels: Labels,
    weights: Weights | None,
    settings: Augmentation,
    rng: np.random.Generator,
    size: int,
) -> tuple[Rgb, Labels, Weights | None]:
    """Rotate and deform: the image linearly and mirrored outside, the others to the nearest pixel, or nothing."""
    from monai.transforms import RandAffineGrid, Resample

    rotate = RandAffineGrid(rotate_range=math.radians(settings.rotation))
    rotate.set_random_state(seed=int(rng.integers(2**32)))
    grid = _elastic_grid(size, settings.elastic, rng) if settings.elastic > 0 else None
    grid = rotate(spatial_size=(size, size), grid=grid)
    linear = Resample(mode="bilinear", padding_mode="reflection", dtype=np.float32)
    nearest = Resample(mode="nearest", padding_mode="zeros", dtype=np.float32)
    image = linear(np.moveaxis(rgb, 2, 0).astype(np.float32), grid).numpy()
    # labels one up, modulo 256: the 0 that resampling puts outside is then label 255
    marks = [(labels + np.uint8(1)).astype(np.float32), *([] if weights is None else [weights])]
    mask = nearest(np.stack(marks), grid).numpy()
    return (
        np.moveaxis(_as_uint8(image), 0, 2),
        mask[0].astype(np.uint8) - np.uint8(1),
        None if weights is None else mask[1],
    )


def _elastic_grid(size: int, magnitude: float, rng: np.random.Generator) -> Any:
    """Return where each pixel comes from, as a grid for MONAI's ``Resample``: float32 tensor (3, size, size)."""
    import torch
    from monai.transforms.utils import create_grid

    points = math.ceil(size / ELASTIC_SPACING_PX) + 1
    control = rng.uniform(0, magnitude) * rng.standard_normal((1, 2, points, points), dtype=np.float32)
    fine = torch.nn.functional.interpolate(
        torch.from_numpy(control), size=(size, size), mode="bicubic", align_corners=True
    )
    grid = create_grid((size, size), dtype=torch.float32, backend="torch")
    grid[:2] += fine[0]
    return grid


def _recolour(
    rgb: Rgb, settings: Augmentation, rng: np.random.Generator, stains: StainVectors | None
) -> npt.NDArray[np.float32]:
    """Change stains, white and contrast of a patch; return it as float32 (3, size, size), 0 to 255 and beyond."""
    white = np.array(stains.background if stains is not None else WHITE)
    table = -np.log10(np.maximum(np.arange(256), 1) / white[:, None]).astype(np.float32)  # (3, 256)
    density = np.stack([table[channel].take(rgb[..., channel].ravel()) for channel in range(3)])  # (3, pixels)
    basis = _stain_matrix(rgb, density, stains, own=rng.random() < settings.macenko)
    gain = 1 + rng.uniform(-settings.stain, settings.stain, 2)
    target = basis.copy()
    target[:2] *= 1 + rng.uniform(-settings.hue, settings.hue, (2, 3))
    shift = rng.uniform(-settings.stain_shift, settings.stain_shift, 2) @ target[:2]
    overall = np.exp(rng.uniform(-1, 1) * np.log1p(settings.gamma))
    matrix = (np.linalg.inv(basis) * (overall * np.array([*gain, math.sqrt(gain.prod())]))) @ target
    light = 1 + rng.uniform(-settings.brightness, settings.brightness)
    tint = 1 + rng.uniform(-settings.brightness / 2, settings.brightness / 2, 3)
    contrast = np.float32(1 + rng.uniform(-settings.contrast, settings.contrast))
    out = np.empty_like(density)
    for channel in range(3):  # not by matmul: its threads cost more than they bring
        m = (-math.log(10) * matrix[:, channel]).astype(np.float32)
        out[channel] = m[0] * density[0] + m[1] * density[1] + m[2] * density[2]
    out = np.exp(out) * (white * light * tint * 10**-shift)[:, None].astype(np.float32)
    mean = out.mean()
    changed: npt.NDArray[np.float32] = mean + contrast * (out - mean)
    return changed.reshape(3, *rgb.shape[:2])


def _stain_matrix(
    rgb: Rgb, density: npt.NDArray[np.float32], stains: StainVectors | None, *, own: bool
) -> npt.NDArray[np.float64]:
    """Return two unit stain vectors and their residual as rows: the slide's or patch's own, or the standard ones."""
    sample = density[:, ::7]  # not a divisor of the width: pixels of all columns
    unexplained = [float(np.abs(kind.matrix[2].astype(np.float32) @ sample).mean()) for kind in STANDARD]
    standard = STANDARD[int(np.argmin(unexplained))]
    if not own:
        return standard.matrix
    if stains is None:
        step = max(1, len(rgb) // 64)
        stains = estimate_stains(rgb[::step, ::step], reference=standard, max_angle_deg=25.0, min_pixels=100).stains
    pair = StainVectors(stains.names[:2], stains.vectors[:2]).matrix
    too_near = math.degrees(math.acos(min(1.0, float(pair[0] @ pair[1])))) < LEAST_ANGLE_DEG
    return standard.matrix if too_near else pair


def _degrade(
    image: npt.NDArray[np.float32], settings: Augmentation, rng: np.random.Generator
) -> npt.NDArray[np.float32]:
    """Blur an image, float32 (3, size, size), and add noise."""
    sigma = rng.uniform(0, settings.blur_px)
    if sigma > LEAST_BLUR_PX:  # not with MONAI's GaussianSmooth, which darkens the border
        image = ndi.gaussian_filter(image, (0, sigma, sigma), truncate=3)
    if rng.random() < NOISY and settings.noise > 0:
        deviation = np.float32(rng.uniform(0, settings.noise))
        image = image + deviation * rng.standard_normal(image.shape, dtype=np.float32)
    return image
