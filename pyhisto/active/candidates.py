"""The candidate regions of one slide, from what is seen of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pyhisto.active.features import pooled_features, stain_features
from pyhisto.active.grid import Grid, Overview
from pyhisto.active.quality import Quality, overview_quality
from pyhisto.active.regions import (
    Candidate,
    Ground,
    RegionSettings,
    adaptive_boxes,
    mean_inside,
    square_boxes,
)
from pyhisto.active.scores import class_probabilities, score_map
from pyhisto.active.strategy import Strategy
from pyhisto.maps import Maps
from pyhisto.stain import H_DAB, StainVectors

__all__ = ["SlideView", "candidates", "describe"]

COLD_UM = 8.0
"""Grid pixel on slides without maps, µm."""


@dataclass(frozen=True, eq=False)
class SlideView:
    """What is known of a slide. All in the same frame, level-0 px.

    Attributes
    ----------
    slide
        Its name in proposals.
    overview
        The slide from afar.
    tissue
        Polygons of its tissue.
    maps
        What a model says of it; several of an ensemble or of passes with dropout; none before the first model.
    stains
        Its two stains.
    taken
        Regions of earlier rounds.
    tiles
        Centres (n, 2) and features (n, d) of tiles by an encoder; colours and texture stand in for them if None.
    quality
        Where the overview is bad; looked for if None.
    """

    slide: str
    overview: Overview
    tissue: Sequence[Any]
    maps: tuple[Maps, ...] = ()
    stains: StainVectors = H_DAB
    taken: Sequence[Any] = ()
    tiles: tuple[npt.NDArray[Any], npt.NDArray[Any]] | None = None
    quality: Quality | None = None


def describe(view: SlideView, polygons: Sequence[Any]) -> npt.NDArray[np.float32]:
    """Return the features of regions, float32 (regions, d), as candidates of this slide have them.

    Raises
    ------
    ConfigError
        If a region does not lie on the slide.
    """
    if view.tiles is not None:
        return pooled_features(*view.tiles, polygons)
    rows = [stain_features(view.overview, polygon, view.stains) for polygon in polygons]
    return np.stack(rows) if rows else np.zeros((0, 0), dtype=np.float32)


def candidates(
    view: SlideView,
    strategy: Strategy,
    settings: RegionSettings | None = None,
    *,
    frequencies: npt.NDArray[np.float64] | None = None,
    seed: int = 0,
) -> list[Candidate]:
    """Return regions of a slide that could be looked at; they overlap neither each other nor those taken.

    Parameters
    ----------
    view
        What is known of the slide.
    strategy
        By what they are chosen.
    settings
        What they look like.
    frequencies
        Of the classes over all slides, for rarity (:func:`pyhisto.active.scores.class_frequencies`).
    seed
        For random ones; give each slide and each round its own.

    Raises
    ------
    ConfigError
        If the strategy needs what the view does not have.
    """
    settings = settings or RegionSettings()
    rng = np.random.default_rng(seed)
    grid = Grid.of(view.maps[0]) if view.maps else view.overview.grid.coarser(COLD_UM)
    found = view.quality or overview_quality(view.overview, view.tissue)
    reasons = {"pen": found.pen, "fold": found.fold, "blur": found.blur, "bad": found.bad}
    flaws = {name: grid.sample(mask, found.grid, outside=False) for name, mask in reasons.items()}
    ground = Ground(grid.inside(view.tissue), flaws["bad"], grid.touched(view.taken), grid.um)
    score = score_map(view.maps, strategy, frequencies) if strategy.informed else None
    if score is not None and settings.shape == "adaptive":
        boxes = adaptive_boxes(score, ground, settings)
    else:
        boxes = square_boxes(score, ground, settings, rng)
    polygons = [grid.polygon(box) for box in boxes]
    classes = (
        {} if not view.maps else dict(zip(view.maps[0].layers, class_probabilities(view.maps[0])[1:], strict=False))
    )
    features = describe(view, polygons)
    out = []
    for box, polygon, row in zip(boxes, polygons, features, strict=True):
        top, left, bottom, right = box
        there = ground.tissue[top:bottom, left:right]
        parts = {"tissue": float(there.mean())}
        parts |= {name: float(mask[top:bottom, left:right][there].mean()) for name, mask in flaws.items()}
        parts |= {name: mean_inside(values, ground, box) for name, values in classes.items()}
        value = float(rng.random()) if strategy.score == "random" else 0.0
        if score is not None:
            value = mean_inside(score, ground, box)
        area = (bottom - top) * (right - left) * grid.um**2 / 1e6
        out.append(Candidate(view.slide, polygon, area, value, parts, row))
    return out
