"""Stain vectors, optical densities and colour deconvolution (Ruifrok and Johnston 2001).

An optical density (OD) is ``-log10(value / white)`` of one channel, never negative; a value of 0 counts as 1. Stain
images are the ODs multiplied by the inverse of the matrix of unit stain vectors. Numbers agree with QuPath's.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from pyhisto.errors import ConfigError

__all__ = [
    "H_DAB",
    "H_E",
    "BackgroundEstimate",
    "StainEstimate",
    "StainReference",
    "StainVectors",
    "angle_between",
    "deconvolve",
    "estimate_background",
    "estimate_stains",
    "od_tables",
    "optical_density",
    "optical_density_sum",
    "stain_tables",
]

Rgb: TypeAlias = npt.NDArray[np.uint8]
FloatArray: TypeAlias = npt.NDArray[np.float64]
Vector: TypeAlias = tuple[float, float, float]

WHITE: Vector = (255.0, 255.0, 255.0)
_MIN_ANGLE_BETWEEN_DEG = 5.0

FAINT_OD = 0.2
"""Optical density below which a stain is not seen; QuPath's own limit between negative and positive nuclei."""


@dataclass(frozen=True)
class StainVectors:
    """Two or three stains and the white they were measured against.

    Parameters
    ----------
    names
        Name of each stain, as measurements are named: ``("Hematoxylin", "DAB")``.
    vectors
        OD of red, green and blue of each stain; scaled to unit length here.
    background
        Red, green and blue of empty glass, above 0 and at most 255.

    Raises
    ------
    ConfigError
        If there are not two or three stains, a vector has no length or the vectors are parallel, or white is out of
        range.

    Examples
    --------
    >>> [round(value, 5) for value in H_DAB.vectors[0]]
    [0.65111, 0.70119, 0.29049]
    """

    names: tuple[str, ...]
    vectors: tuple[Vector, ...]
    background: Vector = WHITE

    def __post_init__(self) -> None:
        if (
            len(self.names) != len(self.vectors)
            or len(self.names) not in (2, 3)
            or len(set(self.names)) < len(self.names)
        ):
            raise ConfigError(
                f"stains {list(self.names)} with {len(self.vectors)} vectors",
                expected="two or three different names, one vector each",
            )
        if any(len(v) != 3 or not 0 < np.linalg.norm(v) < math.inf for v in self.vectors):
            raise ConfigError(f"stain vectors {self.vectors}", expected="three numbers each, not all 0")
        if len(self.background) != 3 or not all(0 < value <= 255 for value in self.background):
            raise ConfigError(f"background {self.background}", expected="red, green, blue above 0, at most 255")
        object.__setattr__(self, "vectors", tuple(_unit(v) for v in self.vectors))
        if abs(np.linalg.det(self.matrix)) < 1e-4:
            raise ConfigError(f"stain vectors {self.vectors} are parallel", expected="stains of different colours")

    @property
    def matrix(self) -> FloatArray:
        """Unit stain vectors as rows, float64 (3, 3); a missing third is the unit cross product (the residual)."""
        rows = [np.asarray(v) for v in self.vectors]
        if len(rows) == 2:
            cross = np.cross(rows[0], rows[1])
            length = np.linalg.norm(cross)
            rows.append(cross / length if length > 0 else cross)
        return np.stack(rows).astype(np.float64)

    def with_background(self, background: Vector) -> StainVectors:
        """Return the same stains seen against another white."""
        return replace(self, background=background)

    def index(self, name: str) -> int | None:
        """Return the position of a stain, ignoring case, or None."""
        lower = [own.lower() for own in self.names]
        return lower.index(name.lower()) if name.lower() in lower else None


def _unit(vector: Vector | FloatArray) -> Vector:
    unit = np.asarray(vector, dtype=np.float64)
    length = float(np.linalg.norm(unit))
    if abs(length - 1) > 1e-12:  # a unit vector stays what it is, to the last bit
        unit = unit / length
    return float(unit[0]), float(unit[1]), float(unit[2])


H_DAB = StainVectors(("Hematoxylin", "DAB"), ((0.65, 0.70, 0.29), (0.27, 0.57, 0.78)))
"""QuPath's default for hematoxylin and DAB, white 255 (vectors of Ruifrok and Johnston)."""

H_E = StainVectors(("Hematoxylin", "Eosin"), ((0.65, 0.70, 0.29), (0.2159, 0.8012, 0.5581)))
"""QuPath's default for hematoxylin and eosin, white 255."""


@dataclass(frozen=True)
class StainReference:
    """Two stains and how strong they are, so that other slides can be given the same colours.

    Attributes
    ----------
    stains
        Vectors and white.
    p99
        99th percentile of the OD of each stain over stained pixels.
    """

    stains: StainVectors
    p99: tuple[float, float]

    @property
    def shown(self) -> tuple[bool, bool]:
        """Whether each stain can be seen: colour and strength of traces say nothing."""
        return self.p99[0] >= FAINT_OD, self.p99[1] >= FAINT_OD


@functools.lru_cache(maxsize=64)
def _od_table(white: float) -> FloatArray:
    values = np.maximum(np.arange(256), 1.0)
    return np.maximum(0.0, -np.log10(values / white)) + 0.0


def _check_rgb(rgb: Rgb) -> None:
    if rgb.ndim != 3 or rgb.shape[2] != 3 or rgb.dtype != np.uint8:
        raise ConfigError(f"image of shape {rgb.shape}, {rgb.dtype}", expected="RGB uint8 of shape (H, W, 3)")


def od_tables(background: Vector = WHITE) -> FloatArray:
    """Return the optical density of each value of red, green and blue, float64 (3, 256)."""
    return np.stack([_od_table(float(white)) for white in background])


def stain_tables(stains: StainVectors) -> FloatArray:
    """Return what each value of red, green and blue adds to the OD of every named stain, float64 (k, 3, 256).

    By colour deconvolution (Ruifrok and Johnston 2001).
    """
    every = np.einsum("cv,ci->icv", od_tables(stains.background), np.linalg.inv(stains.matrix))
    return np.ascontiguousarray(every[: len(stains.names)])


def _od64(rgb: Rgb, background: Vector) -> FloatArray:
    _check_rgb(rgb)
    return np.stack([table[rgb[..., c]] for c, table in enumerate(od_tables(background))], axis=-1)


def optical_density(rgb: Rgb, background: Vector = WHITE) -> npt.NDArray[np.float32]:
    """Return the optical density of each channel.

    Parameters
    ----------
    rgb
        uint8 of shape (H, W, 3).
    background
        Red, green and blue of white.

    Returns
    -------
    numpy.ndarray
        float32 (H, W, 3), from 0 (white or brighter) to ``log10(white)``.

    Raises
    ------
    ConfigError
        If the image is not RGB uint8.
    """
    return _od64(rgb, background).astype(np.float32)


def optical_density_sum(rgb: Rgb, background: Vector = WHITE) -> npt.NDArray[np.float32]:
    """Return the sum of the three optical densities, float32 (H, W): QuPath's "Optical density sum"."""
    od = optical_density(rgb, background)
    return np.asarray(od[..., 0] + od[..., 1] + od[..., 2])


def deconvolve(rgb: Rgb, stains: StainVectors) -> npt.NDArray[np.float32]:
    """Separate an image into the amounts of its stains.

    Parameters
    ----------
    rgb
        uint8 of shape (H, W, 3).
    stains
        The stain vectors and white.

    Returns
    -------
    numpy.ndarray
        float32 (H, W, 3): the OD of stain 1, stain 2, and stain 3 or the residual. Can be negative.

    Raises
    ------
    ConfigError
        If the image is not RGB uint8.
    """
    inverse = np.linalg.inv(stains.matrix)
    return np.asarray(_od64(rgb, stains.background) @ inverse, dtype=np.float32)


@dataclass(frozen=True)
class BackgroundEstimate:
    """The white of the glass, and why it is what it is.

    Attributes
    ----------
    background
        Red, green, blue; 255 each where no glass was found.
    glass_fraction
        Share of the pixels that were taken for glass.
    reason
        Empty if glass was found; else why white is 255.
    """

    background: Vector
    glass_fraction: float
    reason: str = ""


def estimate_background(
    rgb: Rgb, *, min_value: int = 150, max_spread: int = 30, min_fraction: float = 0.002
) -> BackgroundEstimate:
    """Estimate the white of the glass from a thumbnail.

    The glass is the brightest thing without colour: of the pixels whose darkest channel is at least `min_value` and
    whose channels differ by at most `max_spread`, pixels of exactly 255 apart (padding), the brightest quarter is
    taken and its median returned.

    Parameters
    ----------
    rgb
        Thumbnail, uint8 (H, W, 3), best 4 to 16 µm/px.
    min_value, max_spread
        What may be glass, in grey levels.
    min_fraction
        Least share of such pixels to trust.

    Returns
    -------
    BackgroundEstimate
        With a `reason` if white had to be taken as 255.

    Raises
    ------
    ConfigError
        If the image is not RGB uint8.
    """
    _check_rgb(rgb)
    pixels = rgb.reshape(-1, 3)
    low, high = pixels.min(axis=1).astype(int), pixels.max(axis=1).astype(int)
    pale = (low >= min_value) & (high - low <= max_spread)
    candidates = pixels[pale & (low < 255)]
    if pale.any() and len(candidates) < min_fraction * len(pixels) <= pale.sum():
        return BackgroundEstimate(WHITE, float(pale.mean()))
    if len(candidates) < max(16, min_fraction * len(pixels)):
        reason = f"only {len(candidates)} of {len(pixels)} pixels look like glass; white taken as 255"
        return BackgroundEstimate(WHITE, len(candidates) / max(1, len(pixels)), reason)
    brightness = candidates.astype(int).sum(axis=1)
    glass = candidates[brightness >= np.percentile(brightness, 75)]
    median = np.median(glass, axis=0)
    return BackgroundEstimate((float(median[0]), float(median[1]), float(median[2])), len(candidates) / len(pixels))


@dataclass(frozen=True)
class StainEstimate:
    """Stain vectors found in an image.

    Attributes
    ----------
    stains
        The vectors to use; those of the reference where the estimate was not plausible.
    angles_deg
        Angle of each estimated vector to the reference; NaN where none could be estimated.
    reason
        Empty if every vector was estimated; else which are the reference's, and why.
    """

    stains: StainVectors
    angles_deg: tuple[float, ...]
    reason: str = ""


def estimate_stains(
    rgb: Rgb,
    *,
    reference: StainVectors = H_DAB,
    background: Vector = WHITE,
    min_od: float = 0.15,
    percentile: float = 1.0,
    max_angle_deg: float = 15.0,
    min_pixels: int = 200,
) -> StainEstimate:
    """Estimate the two stain vectors of an image (Macenko et al. 2009), and say so where that fails.

    The OD of stained pixels is projected onto its plane of greatest variance; the directions at the low and high
    percentile of the angle in that plane are the stains. A stain that is rare (DAB in a slide with few positive
    cells) does not reach the percentile: its direction is then taken from the pixels that are nearest to the
    reference stain, if there are enough of them. What ends further than `max_angle_deg` from the reference is
    rejected, and the reference is kept for that stain.

    Parameters
    ----------
    rgb
        uint8 (H, W, 3); sampled tissue at 0.5 to 2 µm/px.
    reference
        What is expected: names, order and plausible directions. Two stains.
    background
        White.
    min_od
        Least mean OD of the three channels for a pixel to count as stained.
    percentile
        Robust minimum and maximum of the angle, per cent.
    max_angle_deg
        Furthest plausible angle to the reference.
    min_pixels
        Least number of pixels that may define a stain.

    Returns
    -------
    StainEstimate
        Always with usable stains; `reason` is not empty if a part of them is the reference's.

    Raises
    ------
    ConfigError
        If the image is not RGB uint8 or the reference has not two stains.
    """
    if len(reference.names) != 2:
        raise ConfigError(f"reference with {len(reference.names)} stains", expected="two, such as H_DAB")
    od = _od64(rgb, background).reshape(-1, 3)
    dark_limit = math.log10(min(background)) - 0.15  # saturated pixels have no colour
    od = od[(od.mean(axis=1) >= min_od) & (od.max(axis=1) < dark_limit)]
    fallback = reference.with_background(background)
    if len(od) < min_pixels:
        reason = f"only {len(od)} stained pixels; both stain vectors are the defaults"
        return StainEstimate(fallback, (math.nan, math.nan), reason)
    if len(od) > 500_000:
        od = od[:: len(od) // 500_000 + 1]
    directions = _stain_directions(od, reference, percentile=percentile, min_pixels=min_pixels)
    chosen: list[Vector] = []
    angles: list[float] = []
    reasons: list[str] = []
    for name, default, found in zip(reference.names, reference.vectors, directions, strict=True):
        angle = math.nan if found is None else angle_between(found, np.asarray(default))
        angles.append(angle)
        if found is not None and angle <= max_angle_deg and found.min() >= 0:
            chosen.append(_unit(found))
            continue
        chosen.append(default)
        why = "too few pixels of that colour" if found is None else f"estimate {angle:.0f}° away from it"
        reasons.append(f"{name} is the default vector ({why})")
    between = angle_between(np.asarray(chosen[0]), np.asarray(chosen[1]))
    if between < _MIN_ANGLE_BETWEEN_DEG:
        reasons = [f"estimated stains only {between:.1f}° apart; both stain vectors are the defaults"]
        chosen = list(reference.vectors)
    stains = StainVectors(reference.names, tuple(chosen), background)
    return StainEstimate(stains, tuple(angles), "; ".join(reasons))


def _stain_directions(
    od: FloatArray, reference: StainVectors, *, percentile: float, min_pixels: int
) -> list[FloatArray | None]:
    """Return a unit direction for each reference stain, or None where the image does not show it."""
    _, vectors = np.linalg.eigh(np.cov(od, rowvar=False) if len(od) > 3 else np.eye(3))
    plane = vectors[:, [2, 1]]
    plane = plane * np.where(plane.sum(axis=0) < 0, -1, 1)
    projected = od @ plane
    angle = np.arctan2(projected[:, 1], projected[:, 0])
    ends = [plane @ np.array([math.cos(a), math.sin(a)]) for a in np.percentile(angle, [percentile, 100 - percentile])]
    extremes = [np.clip(end, 0, None) / np.linalg.norm(end) for end in ends]
    refs = [np.asarray(v) for v in reference.vectors]
    straight = angle_between(extremes[0], refs[0]) + angle_between(extremes[1], refs[1])
    crossed = angle_between(extremes[1], refs[0]) + angle_between(extremes[0], refs[1])
    ordered = extremes if straight <= crossed else extremes[::-1]
    unit_od = od / np.linalg.norm(od, axis=1, keepdims=True)
    cosine = np.stack([unit_od @ ref for ref in refs])
    found: list[FloatArray | None] = []
    for i, extreme in enumerate(ordered):
        other = ordered[1 - i]
        # the extreme is credible if it leans towards its own reference more than the other extreme does
        if angle_between(extreme, refs[i]) <= angle_between(extreme, refs[1 - i]) and angle_between(extreme, other) > 1:
            found.append(extreme)
            continue
        own = (cosine[i] > cosine[1 - i]) & (cosine[i] > math.cos(math.radians(12)))
        if own.sum() < min_pixels:
            found.append(None)
        else:
            near = np.median(unit_od[own], axis=0)
            found.append(near / np.linalg.norm(near))
    return found


def angle_between(a: FloatArray | Vector, b: FloatArray | Vector) -> float:
    """Return the angle between two vectors, degrees."""
    a, b = np.asarray(a), np.asarray(b)
    cosine = float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))
    return math.degrees(math.acos(max(-1.0, min(1.0, cosine))))
