"""Random changes of training patches."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import scipy.ndimage as ndi

__all__ = ["Augmentation", "augment"]

HAEMATOXYLIN_DAB = ((0.65111, 0.70119, 0.29049), (0.26917, 0.56824, 0.77759))


@dataclass(frozen=True)
class Augmentation:
    """Random changes of a patch; each is a half-width around no change.

    Attributes
    ----------
    scale
        Relative change of the µm/px that the patch is read at.
    stain
        Relative change of the optical density of each of haematoxylin and DAB (HED jitter, Tellez 2018).
    hue
        Relative change of what each stain absorbs of red, green and blue, each by itself: another batch of the dye.
    brightness
        Relative change of the white point of each channel.
    blur_px
        Largest sigma of a Gaussian blur.
    """

    scale: float = 0.15
    stain: float = 0.25
    hue: float = 0.25
    brightness: float = 0.06
    blur_px: float = 0.8


def augment(
    rgb: npt.NDArray[np.uint8],
    labels: npt.NDArray[np.uint8],
    settings: Augmentation,
    rng: np.random.Generator,
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    """Turn, mirror, re-stain, re-light and blur a patch.

    Parameters
    ----------
    rgb, labels
        uint8 (size, size, 3) and uint8 (size, size).
    settings
        See :class:`Augmentation`; the scale is applied when the patch is read.
    rng
        Source of randomness.
    """
    turns, mirror = int(rng.integers(4)), bool(rng.integers(2))
    rgb, labels = np.rot90(rgb, turns), np.rot90(labels, turns)
    if mirror:
        rgb, labels = rgb[:, ::-1], labels[:, ::-1]
    density = -np.log10(np.maximum(rgb, 1).astype(np.float32) / 255)
    basis = np.array(HAEMATOXYLIN_DAB, dtype=np.float32)
    basis = np.vstack([basis, np.cross(basis[0], basis[1])])
    basis /= np.linalg.norm(basis, axis=1, keepdims=True)
    gain = (1 + rng.uniform(-settings.stain, settings.stain, 3)).astype(np.float32)
    target = basis.copy()
    target[:2] *= (1 + rng.uniform(-settings.hue, settings.hue, (2, 3))).astype(np.float32)
    matrix = np.linalg.inv(basis) @ np.diag(gain) @ target
    light = (1 + rng.uniform(-settings.brightness, settings.brightness, 3)).astype(np.float32)
    image = 255 * light * 10 ** -(density @ matrix)
    sigma = rng.uniform(0, settings.blur_px)
    if sigma > 0.2:
        image = ndi.gaussian_filter(image, (sigma, sigma, 0))
    return image.clip(0, 255).round().astype(np.uint8), labels
