"""From probabilities of tiles to areas, and how well these agree with true areas."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import shapely

from pyhisto.errors import ConfigError
from pyhisto.features.bags import Bag
from pyhisto.metrics.segmentation import AreaScore
from pyhisto.mil.weak.rule import weighted_auroc

__all__ = ["JudgedTiles", "TileScore", "area_polygons", "judge_tiles", "score_tiles", "tile_boxes"]

Floats = npt.NDArray[np.float64]


def tile_boxes(bag: Bag, origin: tuple[int, int]) -> npt.NDArray[np.object_]:
    """Return the tiles of a bag as shapely Polygons (n,), level-0 px of the slide's frame.

    Parameters
    ----------
    bag
        Feature file, or tiles of a slide.
    origin
        Where the slide's frame begins in its file, level-0 px, for feature files that do not say it.

    Raises
    ------
    ConfigError
        If the feature file does not say where its tiles lie and how large they are.
    """
    corners = bag.corners(origin)
    if corners is None or bag.patch_size is None:
        raise ConfigError(f"{bag.path} does not say where its tiles lie", expected="corners and size, level-0 px")
    width, height = bag.patch_size, bag.patch_height or bag.patch_size
    boxes = shapely.box(corners[:, 0], corners[:, 1], corners[:, 0] + width, corners[:, 1] + height)
    return np.asarray(boxes, dtype=np.object_)


def area_polygons(
    boxes: npt.NDArray[np.object_], probabilities: npt.NDArray[np.floating[Any]], threshold: float
) -> tuple[list[Any], Floats]:
    """Join tiles that are probable enough to areas.

    Parameters
    ----------
    boxes
        shapely Polygons (n,), level-0 px.
    probabilities
        float (n,).
    threshold
        Tiles of this probability and above count.

    Returns
    -------
    areas : list of shapely.Polygon
        Valid, level-0 px, largest first; tiles that share a side are one area.
    means : numpy.ndarray
        float64: the mean probability of the tiles of each.
    """
    chosen = probabilities >= threshold
    parts = shapely.get_parts(shapely.union_all(boxes[chosen]))
    areas = sorted((part for part in parts if part.area > 0), key=lambda part: (-part.area, *part.bounds[:2]))
    tree = shapely.STRtree(shapely.centroid(boxes[chosen]))
    values = probabilities[chosen]
    means = [float(values[tree.query(area, predicate="intersects")].mean(dtype=np.float64)) for area in areas]
    return areas, np.array(means, dtype=np.float64)


@dataclass(frozen=True)
class JudgedTiles:
    """What is said of the tiles of a slide, and how much of each is true.

    Attributes
    ----------
    probabilities
        float (n,).
    inside, outside
        How much of each tile lies in the true area and out of it, level-0 px squared, float64 (n,).
    """

    probabilities: npt.NDArray[np.floating[Any]]
    inside: Floats
    outside: Floats


def judge_tiles(
    boxes: npt.NDArray[np.object_], probabilities: npt.NDArray[np.floating[Any]], truth: Any
) -> JudgedTiles:
    """Compare tiles with a true area: a shapely Polygon or MultiPolygon, level-0 px, perhaps empty; exactly."""
    shapely.prepare(truth)
    inside = shapely.area(shapely.intersection(boxes, truth))
    return JudgedTiles(probabilities, inside, shapely.area(boxes) - inside)


@dataclass(frozen=True)
class TileScore:
    """How well tiles agree with true areas; every pixel has the probability of its tile.

    Attributes
    ----------
    auc
        Area under the ROC curve of pixels, 0 to 1.
    area
        Pixels rightly found, wrongly found and missed at the threshold.
    """

    auc: float
    area: AreaScore


def score_tiles(slides: Sequence[JudgedTiles], threshold: float) -> TileScore:
    """Score the pixels of the tiles of some slides together; what lies in no tile does not count.

    Parameters
    ----------
    slides
        One or more, of one pixel size.
    threshold
        Tiles of this probability and above count as found.

    Examples
    --------
    >>> tiles = JudgedTiles(np.array([0.9, 0.2]), np.array([3.0, 1.0]), np.array([1.0, 3.0]))
    >>> score = score_tiles([tiles], 0.5)
    >>> score.auc, score.area.recall, score.area.precision
    (0.75, 0.75, 0.75)
    """
    said = np.concatenate([one.probabilities for one in slides])
    inside = np.concatenate([one.inside for one in slides])
    outside = np.concatenate([one.outside for one in slides])
    found = said >= threshold
    area = AreaScore(float(inside[found].sum()), float(outside[found].sum()), float(inside[~found].sum()))
    return TileScore(weighted_auroc(said, inside, outside), area)
