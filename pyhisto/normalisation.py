"""Stain normalisation: an image in the stain colours and strengths of others."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from pyhisto.errors import ConfigError
from pyhisto.stain import H_E, StainVectors, deconvolve, estimate_background, estimate_stains

__all__ = ["MACENKO_P99", "normalise_macenko"]

Rgb: TypeAlias = npt.NDArray[np.uint8]

MACENKO_P99 = (0.856, 0.448)
"""99th percentiles of hematoxylin and eosin, in OD, of the reference slide of Macenko's published code."""


def normalise_macenko(
    rgb: Rgb,
    *,
    source: StainVectors | None = None,
    target: StainVectors = H_E,
    target_p99: tuple[float, float] = MACENKO_P99,
    source_p99: tuple[float, float] | None = None,
) -> Rgb:
    """Give an image the stain colours and strengths of a reference (Macenko et al. 2009).

    Parameters
    ----------
    rgb
        uint8 (H, W, 3).
    source
        Stains of this image; estimated from it (with `target` as reference) by default. For tiles of one slide,
        estimate once from the slide and pass them.
    target
        Stains to render with; two. White becomes the target's white.
    target_p99
        99th percentile of each stain's OD in the reference.
    source_p99
        The same of this image; measured on it by default. Pass the slide's for tiles.

    Returns
    -------
    numpy.ndarray
        uint8 (H, W, 3).

    Raises
    ------
    ConfigError
        If the image is not RGB uint8, or source or target have not two stains.
    """
    if source is None:
        source = estimate_stains(rgb, reference=target, background=estimate_background(rgb).background).stains
    if len(source.names) != 2 or len(target.names) != 2:
        raise ConfigError("normalisation with other than two stains", expected="two stains in source and target")
    amounts = np.clip(deconvolve(rgb, source)[..., :2].astype(np.float64), 0, None)
    if source_p99 is None:
        stained = amounts.sum(axis=-1) > 0.15
        values = amounts[stained] if stained.any() else amounts.reshape(-1, 2)
        high = np.percentile(values, 99, axis=0)
        source_p99 = (float(high[0]), float(high[1]))
    gain = [t / s if s > 1e-3 else 1.0 for t, s in zip(target_p99, source_p99, strict=True)]
    od = (amounts * gain) @ target.matrix[:2]
    return np.rint(np.clip(np.asarray(target.background) * 10.0**-od, 0, 255)).astype(np.uint8)
