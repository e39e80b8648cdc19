"""Outlines where a level passes through 0: by hand, and against skimage's marching squares."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import shapely
import skimage.measure
from scipy import ndimage

import pyhisto.bands
from pyhisto.bands import BandPolygons
from pyhisto.crossings import MOST
from pyhisto.labels import PolygonSettings

Level = np.ndarray[Any, Any]


def level_noise(seed: int, sigma: float, shape: tuple[int, int] = (61, 83)) -> Level:
    """Noise that is blurred and 0 on the average, negative at its border."""
    values = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=shape), sigma)
    out = np.full(shape, -float(np.abs(values).max()))
    out[1:-1, 1:-1] = values[1:-1, 1:-1]
    return out


def polygons_of(level: Level, *rows: int, **settings: Any) -> tuple[list[Any], Level]:
    """Polygons of a level that comes in bands of some rows, again and again, and the means of the level over them."""
    bands, y = BandPolygons(PolygonSettings(**settings)), 0
    while y < len(level):
        for height in rows or (len(level),):
            bands.add_level(level[y : y + height], y, level[y : y + height])
            y += len(level[y : y + height])
    return bands.finish()


def test_a_pixel_by_hand() -> None:
    level = np.array([[-1.0, -3.0, -1], [-1, 1, -1.0], [-1.0, -0.6, -9.0]])
    ((pixel,), (mean,)) = polygons_of(level)
    # from the centre at (1.5, 1.5) a quarter of the way up, half-way to the sides, 1 / 1.6 down
    assert pixel.equals_exact(shapely.Polygon([(1.5, 1.25), (2, 1.5), (1.5, 2.125), (1, 1.5)]), 3e-4, normalize=True)
    assert mean == 1.0
    assert polygons_of(level, 1)[0][0].equals(pixel)


def test_at_the_border_of_the_image_the_side_itself() -> None:
    (half,), _ = polygons_of(np.array([[3.0, -1.0], [3.0, -1.0]]))
    assert half.equals(shapely.Polygon([(0.5, 0), (1.25, 0.5), (1.25, 1.5), (0.5, 2), (0, 1.5), (0, 0.5)]))


def test_edges_of_pixels_have_no_level() -> None:
    with pytest.raises(ValueError, match="kind pixels"):
        polygons_of(np.ones((2, 2)), outline="pixels")


def test_no_outline_reaches_the_centre_of_a_pixel() -> None:
    ((pixel,), _) = polygons_of(np.array([[-9.0, -9.0, -9.0], [-9.0, 1e-9, -9.0], [-9.0, -9.0, -9.0]]))
    assert pixel.bounds == pytest.approx((1.45, 1.45, 1.55, 1.55), abs=3e-4)


@pytest.mark.parametrize("sigma", [0.7, 1.5, 4.0])
@pytest.mark.parametrize("seed", range(4))
def test_the_points_are_those_of_marching_squares(seed: int, sigma: float) -> None:
    level = level_noise(seed, sigma)
    found = shapely.get_coordinates([ring for p in polygons_of(level)[0] for ring in (p.exterior, *p.interiors)])
    lines = skimage.measure.find_contours(level, 0.0, fully_connected="low")
    theirs = shapely.points(np.concatenate([line[:, ::-1] + 0.5 for line in lines]))
    assert len(found) == len(theirs) > 100  # with the first point of each once more at the end
    distance = shapely.STRtree(theirs).query_nearest(shapely.points(found), return_distance=True, all_matches=False)[1]
    assert distance.max() <= 0.5 - MOST + 3e-4
    assert np.quantile(distance, 0.8) < 3e-4  # the others are held off a centre


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("sigma", [0.0, 0.6, 2.0])
def test_all_are_valid_and_bands_change_nothing(seed: int, sigma: float, monkeypatch: pytest.MonkeyPatch) -> None:
    level = level_noise(seed, sigma) if sigma else np.random.default_rng(seed).normal(size=(61, 83))
    polygons, means = polygons_of(level)
    assert len(polygons) > 1
    assert shapely.is_valid(polygons).all()
    assert (means > 0).all()
    # neither meets another: their area together is that of all
    assert shapely.union_all(polygons).area == pytest.approx(shapely.area(polygons).sum())
    monkeypatch.setattr(pyhisto.bands, "SIDES_AT_ONCE", 20)
    for rows in [(1,), (7, 2), (30,)]:
        again, again_means = polygons_of(level, *rows)
        assert [shapely.to_wkb(p) for p in again] == [shapely.to_wkb(p) for p in polygons]
        np.testing.assert_allclose(again_means, means)


def test_what_lies_above_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pyhisto.bands, "SIDES_AT_ONCE", 20)
    bands, kept = BandPolygons(), []
    level = np.full((10, 40), -1.0)
    level[2:8, ::2] = 1.0
    for y in range(0, 400, 10):
        bands.add_level(level, y)
        assert bands._crossings is not None
        bands._crossings._upright._join()
        kept.append(len(bands._crossings._upright._places))
    assert max(kept) == kept[2] < 1000
    assert len(bands.finish()[0]) == 20 * 40
