"""Outlines between the pixels: discs whose edges are known to fractions of a pixel."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import scipy.ndimage as ndi
import shapely
from scipy.special import expit

from pyhisto.contours import trace_labels
from pyhisto.inference import Frame
from pyhisto.measurements import expand_cells
from pyhisto.nuclei.borders import Outlines, cell_outlines, nucleus_outlines
from pyhisto.nuclei.labelling import Nuclei, find_peaks, label_peaks, nucleus_probability

SHAPE = (96, 128)
EDGE = 0.6
Disc = tuple[float, float, float]  # x, y and radius, px, as outlines count: the middle of the first pixel is (0.5, 0.5)


def distances(x: float, y: float) -> Any:
    rows, columns = np.indices(SHAPE)
    return np.hypot(columns + 0.5 - x, rows + 0.5 - y)


def discs(*all_discs: Disc) -> Nuclei:
    """Return discs whose darkness falls by 0.1 a px, through that of the edge at their radius."""
    inside = np.array([radius - distances(x, y) for x, y, radius in all_discs])
    return Nuclei(
        labels=np.where(inside.max(axis=0) > 0, inside.argmax(axis=0) + 1, 0).astype(np.int32),
        corner=(0, 0),
        darkness=(EDGE + 0.1 * inside.max(axis=0)).astype(np.float32),
        compact=np.exp(0.1 * inside.max(axis=0)).astype(np.float32),
        peaks=np.array([(y - 0.5, x - 0.5, EDGE) for x, y, _ in all_discs]),
        radii=(2.0, 30.0),
    )


def outlines(nuclei: Nuclei) -> Outlines:
    return nucleus_outlines(nuclei.labels, nuclei, nuclei.corner)


def polygons(found: Outlines) -> Any:
    return found.smooth.moved(found.corners).polygons()


def grown(nuclei: Nuclei, by: float) -> Any:
    cells = expand_cells(nuclei.labels, by)
    n = len(nuclei.peaks)
    return polygons(cell_outlines(cells, nuclei.labels, outlines(nuclei), nuclei.radii[1], by, n))


@pytest.mark.parametrize(("x", "y", "radius"), [(40.0, 40.0, 8.0), (40.3, 39.6, 8.37), (51.55, 60.9, 12.5)])
def test_a_disc_ends_where_its_edge_is_between_the_pixels(x: float, y: float, radius: float) -> None:
    (found,) = polygons(outlines(discs((x, y, radius))))
    away = np.hypot(*(shapely.get_coordinates(found) - (x, y)).T)
    # averaging over neighbours takes 0.5 / radius px off a circle, 0.06 for the smallest, and opening as much in places
    assert np.abs(away - radius + 0.5 / radius).max() < 0.08
    assert shapely.distance(shapely.centroid(found), shapely.Point(x, y)) < 0.02


def test_an_outline_moves_by_as_little_as_its_image() -> None:
    one, other = discs((40.5, 40.5, 7.9999)), discs((40.5, 40.5, 8.0001))
    here, there = polygons(outlines(one))[0], polygons(outlines(other))[0]
    assert (one.labels != other.labels).sum() == 4  # pixels whose middle is 8 px away
    assert shapely.hausdorff_distance(*trace_labels(one.labels).polygons(), *trace_labels(other.labels).polygons()) == 1
    assert shapely.hausdorff_distance(here, there) < 0.05
    assert shapely.hausdorff_distance(grown(one, 9.0)[0], grown(other, 9.0)[0]) < 0.1


def test_a_cell_ends_at_a_distance_from_its_nucleus() -> None:
    x, y, radius = 50.3, 45.8, 8.37
    (found,) = grown(discs((x, y, radius)), 10.0)
    away = np.hypot(*(shapely.get_coordinates(found) - (x, y)).T)
    assert np.abs(away - (radius + 10)).max() < 0.2
    assert shapely.distance(shapely.centroid(found), shapely.Point(x, y)) < 0.02


def test_cells_that_meet_end_half_a_pixel_before_the_middle() -> None:
    left, right = grown(discs((40.0, 40.0, 8.0), (61.4, 40.0, 8.0)), 10.0)  # 5.4 px between the two nuclei
    middle = 50.7
    along = shapely.LineString([(0, 40), (128, 40)])
    assert shapely.intersection(left, along).bounds[2] == pytest.approx(middle - 0.5, abs=0.1)
    assert shapely.intersection(right, along).bounds[0] == pytest.approx(middle + 0.5, abs=0.1)
    assert shapely.area(shapely.intersection(left, right)) == 0
    assert left.bounds[0] == pytest.approx(40 - 18, abs=0.15)
    assert right.bounds[2] == pytest.approx(61.4 + 18, abs=0.15)


@pytest.mark.parametrize("middle", [50.1, 50.5, 50.9])
def test_touching_nuclei_end_where_the_probability_is_least(middle: float) -> None:
    found = discs((middle - 8, 40.0, 10.0), (middle + 8, 40.0, 10.0))
    columns = np.arange(SHAPE[1]) + 0.5
    valley = np.broadcast_to(0.2 + 0.01 * (columns - middle) ** 2, SHAPE).astype(np.float32)
    left, right = polygons(outlines(Nuclei(**{**vars(found), "compact": valley})))
    along = shapely.LineString([(0, 40), (128, 40)])
    assert shapely.intersection(left, along).bounds[2] == pytest.approx(middle, abs=0.05)
    assert shapely.intersection(right, along).bounds[0] == pytest.approx(middle, abs=0.05)


def test_what_an_opening_takes_from_the_label_is_not_drawn() -> None:
    found = discs((40.0, 40.0, 8.0))
    found.darkness[40, 48:56] = 2.0  # a line of one pixel's width, which the label does not have
    assert polygons(outlines(found))[0].bounds[2] < 48.6


@pytest.mark.parametrize(
    ("disc", "bounds"),
    [
        ((2.0, 40.0, 8.0), (0, 32, 10, 48)),
        ((126.0, 40.0, 8.0), (118, 32, 128, 48)),
        ((40.0, 2.0, 8.0), (32, 0, 48, 10)),
        ((40.0, 94.0, 8.0), (32, 86, 48, 96)),
    ],
)
def test_nuclei_and_cells_end_at_the_edge_of_the_image(disc: Disc, bounds: tuple[float, ...]) -> None:
    nuclei = discs(disc)
    nuclei.compact[[0, -1]] = nuclei.compact[:, [0, -1]] = 0.9  # what is read beyond the edge would be lower
    (found,), (cell,) = polygons(outlines(nuclei)), grown(nuclei, 5.0)
    assert found.bounds == pytest.approx(bounds, abs=0.15)
    expected = np.clip(np.add(bounds, (-5, -5, 5, 5)), 0, (SHAPE[1], SHAPE[0]) * 2)
    assert cell.bounds == pytest.approx(expected, abs=0.3)
    assert cell.contains(found.buffer(-0.3))


def test_an_image_of_one_row_is_no_place_for_neighbours() -> None:
    labels = np.zeros((1, 9), dtype=np.int32)
    labels[0, 3:6] = 1
    images = np.where(labels, 1.0, 0.2).astype(np.float32)
    nuclei = Nuclei(labels, (0, 0), images, images, np.array([(0.0, 4.0, 0.6)]), (1.0, 5.0))
    assert grown(nuclei, 2.0)[0].bounds == pytest.approx((2, 0, 7, 1), abs=0.6)  # grown by less than 2 px


def test_a_label_without_pixels_has_no_outline() -> None:
    found = discs((40.0, 40.0, 8.0), (43.0, 40.0, 3.0))  # the second one lies in the first
    first, second = polygons(outlines(found))
    assert first.area == pytest.approx(math.pi * 64, rel=0.03)
    assert second is None
    assert list(shapely.is_missing(grown(found, 5.0))) == [False, True]


def test_no_digit_depends_on_where_an_outline_lies() -> None:
    found = discs((40.3, 40.0, 8.0), (60.4, 45.3, 9.0))
    rows, columns = 1000, 37

    def moved(image: Any) -> Any:
        return np.pad(image, ((rows, 0), (columns, 0)), mode="edge")

    away = Nuclei(
        np.pad(found.labels, ((rows, 0), (columns, 0))),
        (0, 0),
        moved(found.darkness),
        moved(found.compact),
        found.peaks + np.array([rows, columns, 0]),
        found.radii,
    )
    here, there = outlines(found), outlines(away)
    np.testing.assert_array_equal(here.smooth.xy, there.smooth.xy)
    np.testing.assert_array_equal(there.corners - here.corners, np.broadcast_to((columns, rows), (2, 2)))
    np.testing.assert_array_equal(here.first(1).smooth.xy, here.smooth.xy[: here.smooth.offsets[1]])


def test_placed_outlines_are_simplified_in_the_frame_of_the_slide() -> None:
    found = outlines(discs((40.3, 40.0, 12.0)))
    frame = Frame(100.0, 200.0, 640, 640, (2.0, 2.0), 0.5)
    (placed,) = found.placed(frame, (10, 20)).polygons()
    (fine,) = found.smooth.moved(found.corners).polygons()
    expected = shapely.transform(fine, lambda xy: xy * 2 + np.array([120, 240]))
    assert shapely.get_num_coordinates(placed) < shapely.get_num_coordinates(fine) / 2
    assert shapely.hausdorff_distance(placed, expected) < 2 * 0.5
    assert placed.area == pytest.approx(4 * math.pi * 144, rel=0.03)


def test_rounding_moves_no_outline_by_more_than_a_pixel() -> None:
    # nuclei on noisy stain whose probabilities come with errors of half a thousandth, smooth as those of networks are
    rng = np.random.default_rng(4)
    shape, mpp = (400, 400), 0.5
    numbers = {"threshold": 0.35, "sigma_um": 1.0, "min_distance_um": 3.0, "reach_um": 7.0, "core_um": 1.5}
    rows, columns = np.indices(shape)
    probability, darkness = np.zeros((5, *shape), dtype=np.float32), np.full(shape, 0.1)
    grid = np.stack(np.meshgrid(np.arange(12, 390, 21), np.arange(12, 390, 21)), axis=-1).reshape(-1, 2)
    for x, y in grid + rng.uniform(-4, 4, grid.shape):
        away = np.hypot(columns - x, rows - y)
        probability[1] = np.maximum(probability[1], 0.9 * expit(1.2 * (5 - away)))
        darkness = np.maximum(darkness, 0.1 + 0.9 * expit(1.5 * (rng.uniform(6, 9) - away)))
    darkness += ndi.gaussian_filter(rng.normal(0, 0.35, shape), 0.8)

    def found(probability: Any) -> tuple[Any, Any]:
        nucleus = nucleus_probability(probability, mpp, numbers).copy()
        peaks = find_peaks(nucleus, mpp, numbers)
        labelled = label_peaks(nucleus, peaks, darkness.astype(np.float32), mpp, numbers)
        inner = outlines(labelled)
        cells = expand_cells(labelled.labels, 10.0)
        outer = cell_outlines(cells, labelled.labels, inner, labelled.radii[1], 10.0, len(peaks))
        frame = Frame(0.0, 0.0, 400, 400, (1.0, 1.0), mpp)
        return inner.placed(frame, (0, 0)).polygons(), outer.placed(frame, (0, 0)).polygons()

    first = found(probability)
    changed = 0
    for _ in range(5):
        noise = ndi.gaussian_filter(rng.standard_normal(shape), 2)
        second = found(probability + (0.0005 * noise / np.abs(noise).max()).astype(np.float32))
        for one, other in zip(first, second, strict=True):
            assert len(one) == len(other) > 300
            nearest = shapely.STRtree(other).query_nearest(shapely.centroid(one), all_matches=False)[1]
            apart = shapely.hausdorff_distance(one, other[nearest])
            assert len(set(nearest)) == len(one)
            assert apart.max() <= 1
            changed += np.count_nonzero(apart > 0)
    assert changed > 100
