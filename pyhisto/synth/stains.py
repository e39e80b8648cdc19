"""Stain vectors, staining strength and camera of one synthetic slide."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pyhisto.synth.fields import Array, Float32
from pyhisto.synth.settings import SynthSettings

__all__ = ["Appearance", "draw_appearance"]

# Optical density (base 10) in R, G, B. Haematoxylin and DAB lie between QuPath's default vectors (Ruifrok and Johnston,
# Anal Quant Cytol Histol 23:291, 2001) and the bluer haematoxylin and the redder DAB of real Ki-67 slides; the third
# one is the grey-lilac of unstained protein.
_HAEMATOXYLIN = (np.array([0.650, 0.700, 0.290]), np.array([0.860, 0.470, 0.180]))
_DAB = (np.array([0.270, 0.570, 0.780]), np.array([0.360, 0.580, 0.730]))
_PROTEIN = (np.array([0.510, 0.640, 0.575]), np.array([0.700, 0.570, 0.430]))
_PENS = (np.array([0.95, 0.60, 0.12]), np.array([0.90, 0.30, 0.75]), np.array([0.80, 0.80, 0.75]))


@dataclass(frozen=True, eq=False)
class Appearance:
    """Colours and optics of one slide.

    Parameters
    ----------
    vectors
        (4, 3) float32: optical density in R, G, B of one unit of haematoxylin, DAB, protein and pen ink.
    haematoxylin, dab, protein
        Amounts in a middling negative nucleus, a strongly positive nucleus and the stroma.
    dab_haze
        Amount of DAB all over the tissue.
    diameter_um
        Mean diameter of the tumour nuclei.
    white
        (3,) float32 intensity of glass, 0 to 1.
    gamma, contrast
        Of the camera: ``white * (I / white) ** gamma``, then stretched about 0.5.
    blur_um
        Standard deviation of the optics' point spread.
    sharpen
        Strength of the scanner's unsharp mask.
    uneven
        Standard deviation of the uneven light, fraction.
    noise
        Standard deviation on white, fraction of the full scale.
    """

    vectors: Float32
    haematoxylin: float
    dab: float
    protein: float
    dab_haze: float
    diameter_um: float
    white: Float32
    gamma: float
    contrast: float
    blur_um: float
    sharpen: float
    uneven: float
    noise: float


def draw_appearance(settings: SynthSettings) -> Appearance:
    """Draw what this slide's laboratory and scanner do to its colours.

    Parameters
    ----------
    settings
        Seed and the two strengths of variation are used.

    Returns
    -------
    Appearance
    """
    rng = np.random.default_rng((settings.seed, 2))
    stain, scanner = settings.stain_variation, settings.scanner_variation
    vectors = [_between(rng, *pair, stain) for pair in (_HAEMATOXYLIN, _DAB, _PROTEIN)]
    ink = _PENS[int(rng.integers(len(_PENS)))]

    def spread(middle: float, half_range: float, strength: float) -> float:
        return middle + strength * half_range * float(rng.uniform(-1.0, 1.0))

    return Appearance(
        vectors=np.array([*vectors, ink], dtype=np.float32),
        haematoxylin=spread(0.46, 0.10, stain),
        dab=spread(1.0, 0.32, stain),
        protein=spread(0.125, 0.03, stain),
        dab_haze=max(0.0, spread(0.055, 0.055, stain)),
        diameter_um=spread(9.4, 0.7, stain),
        white=np.array([spread(middle, 0.017, scanner) for middle in (0.925, 0.922, 0.930)], dtype=np.float32),
        gamma=spread(1.0, 0.12, scanner),
        contrast=spread(1.0, 0.05, scanner),
        blur_um=spread(0.26, 0.10, scanner),
        sharpen=max(0.0, spread(0.35, 0.35, scanner)),
        uneven=0.008 * scanner,
        noise=settings.noise,
    )


def _between(rng: np.random.Generator, first: Array, second: Array, strength: float) -> Array:
    """Return a unit vector between two (beyond them for a strength above 1), with a little jitter."""
    place = 0.5 + strength * rng.uniform(-0.5, 0.5)
    mixed = first + place * (second - first) + strength * rng.normal(0.0, 0.012, 3)
    mixed = np.clip(mixed, 0.02, None)
    return np.asarray(mixed / np.linalg.norm(mixed))
