"""How little a model knows about each pixel of its maps, 0 (certain) to 1."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

from pyhisto.active.strategy import Strategy
from pyhisto.errors import ConfigError
from pyhisto.maps import ENTROPY, FLIP_VARIANCE, Maps

__all__ = ["bald", "class_frequencies", "class_probabilities", "entropy", "flips", "margin", "rarity", "score_map"]

RAREST = 0.01
"""Classes rarer than this count as this rare."""

_PROBABILITY = " probability"

Floats = npt.NDArray[np.float32]


def class_probabilities(maps: Maps) -> Floats:
    """Return the probabilities of all classes, background first, float32 (classes, H, W); NaN where none are known."""
    rows = [number for number, name in enumerate(maps.layers) if name.endswith(_PROBABILITY)]
    if not rows:
        raise ConfigError(f"maps of {', '.join(maps.layers)}", expected="probabilities of classes")
    foreground = maps.values[rows]
    background = np.clip(1 - foreground.sum(axis=0), 0, 1)
    return np.concatenate([background[None], foreground]).astype(np.float32)


def _entropy_of(probability: Floats) -> Floats:
    """Return the entropy in shares of the greatest there is for so many classes."""
    safe = np.maximum(probability, np.float32(1e-12))
    return np.asarray(-(probability * np.log(safe)).sum(axis=0) / np.float32(math.log(len(probability))))


def _mean(members: Sequence[Maps]) -> Floats:
    first = members[0]
    if any(m.layers != first.layers or m.values.shape != first.values.shape for m in members):
        raise ConfigError("maps of different classes or grids", expected="maps of one image, by models of one kind")
    return np.asarray(np.mean([class_probabilities(m) for m in members], axis=0, dtype=np.float32))


def entropy(members: Sequence[Maps]) -> Floats:
    """Return the entropy of the mean prediction (Shannon 1948; Settles 2009, section 3.1), float32 (H, W).

    One member with a layer ``Entropy`` gives that: the mean of the entropies of all pixels, which knows more than the
    entropy of the mean of a map pixel.
    """
    if len(members) == 1 and ENTROPY in members[0].layers:
        return members[0].layer(ENTROPY)
    return _entropy_of(_mean(members))


def margin(members: Sequence[Maps]) -> Floats:
    """Return 1 - (the greatest probability - the second) (Scheffer 2001), float32 (H, W)."""
    ordered = np.sort(_mean(members), axis=0)
    return np.asarray(1 - (ordered[-1] - ordered[-2]))


def bald(members: Sequence[Maps]) -> Floats:
    """Return the mutual information between prediction and model, float32 (H, W).

    H(mean of p) - mean of H(p) (Houlsby 2011), where the members are passes with dropout (Gal 2017) or the models of
    an ensemble (Beluch 2018); in shares of the greatest entropy.

    Raises
    ------
    ConfigError
        If there are fewer than two members, or they do not fit each other.
    """
    if len(members) < 2:
        raise ConfigError("BALD of one prediction", expected="several: an ensemble, or passes with dropout")
    expected = np.mean([_entropy_of(class_probabilities(m)) for m in members], axis=0)
    return np.asarray((_entropy_of(_mean(members)) - expected).clip(0), dtype=np.float32)


def flips(members: Sequence[Maps]) -> Floats:
    """Return the variance over flips and turns of the tile (Wang 2019), 1 for half 0 and half 1, float32 (H, W).

    Raises
    ------
    ConfigError
        If the maps were made without flips.
    """
    return np.asarray(np.mean([m.layer(FLIP_VARIANCE) for m in members], axis=0, dtype=np.float32) * 4)


def class_frequencies(seen: Iterable[tuple[Maps, npt.NDArray[np.bool_]]]) -> npt.NDArray[np.float64]:
    """Return the share of each class in what was predicted on some slides, background first, float64 (classes,).

    Parameters
    ----------
    seen
        Maps of one model on several slides, and which pixels of them are tissue.

    Raises
    ------
    ConfigError
        If nothing was predicted on any tissue.
    """
    total, pixels = np.zeros(1), 0
    for maps, tissue in seen:
        probability = class_probabilities(maps)[:, tissue]
        probability = probability[:, np.isfinite(probability[0])]
        total = total + probability.sum(axis=1, dtype=np.float64)
        pixels += probability.shape[1]
    if pixels == 0:
        raise ConfigError("maps without any tissue", remedy="check the tissue of the slides")
    return np.asarray(total / total.sum())


def rarity(members: Sequence[Maps], frequencies: npt.NDArray[np.float64]) -> Floats:
    """Return by how much a pixel weighs more for the rare classes it may be of, float32 (H, W).

    The mean over classes of probability / frequency: 1 on average over the pixels that the frequencies are of (the
    inverse-frequency weighting of King and Zeng 2001, by what is predicted).
    """
    probability = _mean(members)
    if len(frequencies) != len(probability):
        raise ConfigError(f"frequencies of {len(frequencies)} classes", expected=f"{len(probability)}, as in the maps")
    weights = (1 / np.maximum(frequencies, RAREST) / len(frequencies)).astype(np.float32)
    return np.asarray(np.tensordot(weights, probability, axes=1))


_SCORES = {"entropy": entropy, "margin": margin, "bald": bald, "flips": flips}


def score_map(
    members: Sequence[Maps], strategy: Strategy, frequencies: npt.NDArray[np.float64] | None = None
) -> Floats:
    """Return how informative each pixel of the maps is, float32 (H, W), NaN where nothing was predicted.

    Parameters
    ----------
    members
        Maps of one slide: of one model, or of several on the same grid.
    strategy
        One that is informed.
    frequencies
        Of the classes, for rarity.

    Raises
    ------
    ConfigError
        If the maps do not hold what the score needs, or the frequencies are missing.
    """
    if not members or strategy.score not in _SCORES:
        raise ConfigError(f"a map of {strategy.name} from {len(members)} predictions", expected="a score and maps")
    score = _SCORES[strategy.score](members)
    if not strategy.rarity:
        return score
    if frequencies is None:
        raise ConfigError("rarity without frequencies of the classes", remedy="compute them over all slides")
    return np.asarray(score * rarity(members, frequencies))
