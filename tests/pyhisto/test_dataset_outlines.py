"""Nuclei drawn as outlines: instances, and the membrane band that keeps them apart."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import shapely
from dataset_cases import Pixels, image_of

from pyhisto.dataset import IGNORED, CellTask, Window
from pyhisto.errors import ConfigError, TrainingError

box = shapely.box
P, N = "Tumor: Positive", "Tumor: Negative"
MPP = (0.5, 0.5)


def window(size: int = 24, x: float = 0, y: float = 0, scale: tuple[float, float] = (1.0, 1.0)) -> Window:
    return Window(x, y, scale, size)


def label(*objects: tuple[str | None, Any], size: int = 24, kind: str = "annotation", **options: Any) -> Pixels:
    """Label a window at (0, 0) of a slide with 0.5 µm/px, at 0.5 µm/px; the band is 2 px to either side."""
    return CellTask(**options).label(image_of(*objects, kind=kind, mpp=MPP), window(size), 0.5)


@pytest.mark.parametrize("kind", ["annotation", "detection", "cell"])
def test_an_outline_is_a_nucleus_with_a_band_at_its_border(kind: str) -> None:
    row = label((P, box(6, 4, 18, 20)), kind=kind)[12].tolist()
    assert row == [255] * 4 + [2] * 4 + [1] * 8 + [2] * 4 + [255] * 4
    column = label((N, box(6, 4, 18, 20)), kind=kind)[:, 12].tolist()
    assert column == [255] * 2 + [4] * 4 + [3] * 12 + [4] * 4 + [255] * 2


def test_the_band_is_round_at_corners() -> None:
    labels = label((P, box(6, 6, 18, 18)))
    # from pixel (4, 4) the corner's pixel is 2.83 px away, more than 2.5; from (5, 4) it is 2.24 px
    assert labels[4, 4] == IGNORED
    assert labels[5, 4] == labels[4, 5] == labels[5, 5] == 2
    # inside, only rows and columns count: pixel (7, 7) is 2 px from the outside, (8, 8) 3 px
    assert labels[7, 7] == 2
    assert labels[8, 8] == 1


def test_of_a_cell_the_nucleus_counts() -> None:
    labels = label((P, (box(1, 1, 23, 23), box(6, 6, 18, 18))), kind="cell")
    np.testing.assert_array_equal(labels, label((P, box(6, 6, 18, 18))))
    without = label((P, (box(6, 6, 18, 18), None)), kind="cell")
    np.testing.assert_array_equal(without, labels)


def test_touching_nuclei_stay_parted() -> None:
    row = label((P, box(2, 4, 12, 20)), (N, box(12, 4, 22, 20)))[12].tolist()
    assert row == [2] * 4 + [1] * 6 + [2] * 2 + [4] * 2 + [3] * 6 + [4] * 4


def test_overlapping_nuclei_of_one_class_stay_parted_and_the_later_one_wins() -> None:
    pair = [(P, box(2, 4, 14, 20)), (P, box(10, 4, 22, 20))]
    # the later one is whole: 10..22; of the first 2..10 is left
    assert label(*pair)[12].tolist() == [2] * 4 + [1] * 4 + [2] * 4 + [1] * 8 + [2] * 4
    assert label(*pair[::-1])[12].tolist() == [2] * 4 + [1] * 8 + [2] * 4 + [1] * 4 + [2] * 4


@pytest.mark.parametrize("mpp", [0.5, 1.0, 2.0, 4.0])
def test_touching_nuclei_stay_parted_however_coarse_the_patch(mpp: float) -> None:
    image = image_of((P, box(0, 0, 24, 48)), (P, box(24, 0, 48, 48)), mpp=MPP)
    scale = mpp / 0.5
    size = int(48 / scale)
    row = CellTask().label(image, window(size, scale=(scale, scale)), mpp)[size // 2]
    middle = size // 2
    assert row[middle - 1] == row[middle] == 2
    assert {1} <= set(row[: middle - 1].tolist())


def test_a_small_nucleus_keeps_its_core() -> None:
    """4 x 4 px is a circle of 2.26 px: the inner half of the band ends at 1.13 px, so one pixel of it is band."""
    labels = label((P, box(10, 10, 14, 14)))
    assert (labels == 1).sum() == 4
    assert (labels[11:13, 11:13] == 1).all()
    speck = label((P, box(10, 10, 11, 11)))
    assert (speck == 1).sum() == 1


def test_a_hole_is_not_nucleus() -> None:
    ring = box(2, 2, 22, 22).difference(box(10, 10, 14, 14))
    row = label((P, ring), membrane_um=1.0)[12].tolist()
    side = [255] + [2] * 2 + [1] * 6 + [2] * 2 + [255]
    assert row == side + side[::-1]
    image = image_of((P, ring), mpp=MPP)
    assert CellTask().instances(image, window(), 0.5)[12].tolist() == [0] * 2 + [1] * 8 + [0] * 4 + [1] * 8 + [0] * 2


def test_areas_and_outlines() -> None:
    labels = label(
        ("Training", box(0, 0, 24, 12)),
        (P, box(6, 4, 18, 20)),
        ("Ignore*", box(0, 0, 12, 24)),
        ("Tumor: Other", box(20, 0, 24, 4)),
    )
    assert (labels[:, :12] == IGNORED).all()
    assert labels[8, 12:].tolist() == [1] * 4 + [2] * 4 + [0] * 4
    assert labels[18, 12:].tolist() == [2] * 8 + [255] * 4
    assert labels[2, 23] == 0  # a cell of a class that is not learnt, where every nucleus is marked


def test_a_class_matches_exactly_and_detections_of_others_say_nothing() -> None:
    task = CellTask(classes=("Lymphocyte", "Tumor"))
    image = image_of(("Lymphocyte: CD8", box(2, 2, 22, 22)), ("Tumor", box(6, 6, 18, 18)), kind="detection", mpp=MPP)
    labels = task.label(image, window(), 0.5)
    assert labels[12, 12] == 3
    assert labels[3, 3] == IGNORED
    assert task.class_count() == 5
    assert task.class_names() == ("Lymphocyte", "Tumor", "background")


def test_a_point_in_an_outline_is_the_same_nucleus() -> None:
    outline = (P, box(6, 6, 18, 18))
    np.testing.assert_array_equal(label(outline, (N, shapely.Point(9, 9))), label(outline))
    beside = label(outline, (N, shapely.Point(40, 12)), size=48)
    assert beside[12, 40] == 3
    assert beside[12, 12] == 1


def test_the_band_of_an_outline_leaves_the_disc_of_a_point_whole() -> None:
    # the disc has 5 px around (24, 12), the outline ends at 18: its band would reach column 19
    labels = label((P, box(6, 6, 18, 18)), (N, shapely.Point(24, 12)), size=40)
    assert labels[12, 17:21].tolist() == [2, 2, 3, 3]


def test_the_same_pixel_has_the_same_label_in_every_window() -> None:
    """Nuclei that are cut by the window's border, or lie beyond it, change nothing in their band."""
    rng = np.random.default_rng(3)
    circles = shapely.buffer(shapely.points(rng.uniform(0, 64, (60, 2))), rng.uniform(3, 9, 60))
    image = image_of(*[(P if i % 2 else N, circle) for i, circle in enumerate(circles)], mpp=MPP)
    whole, numbers = (draw(image, window(64), 0.5) for draw in (CellTask().label, CellTask().instances))
    for x, y in ((0, 0), (13, 29), (40, 40)):
        part = window(24, x, y)
        np.testing.assert_array_equal(CellTask().label(image, part, 0.5), whole[y : y + 24, x : x + 24])
        np.testing.assert_array_equal(CellTask().instances(image, part, 0.5), numbers[y : y + 24, x : x + 24])


def test_instances_against_shapely() -> None:
    """Pixels that are not square on the slide, and a window that starts anywhere."""
    rng = np.random.default_rng(1)
    circles = shapely.buffer(shapely.points(rng.uniform(0, 300, (80, 2))), rng.uniform(5, 25, 80))
    image = image_of(*[(P, circle) for circle in circles], mpp=(0.2, 0.3), kind="detection")
    place = Window(40.3, 70.9, (0.6 / 0.2, 0.6 / 0.3), 50)
    rows, columns = np.mgrid[0:50, 0:50]
    x, y = place.x + (columns + 0.5) * place.scale[0], place.y + (rows + 0.5) * place.scale[1]
    expected = np.zeros((50, 50), dtype=np.int32)
    for number, circle in enumerate(circles, start=1):
        expected[shapely.contains_xy(circle, x, y)] = number
    found = CellTask().instances(image, place, 0.6)
    assert found.dtype == np.int32
    np.testing.assert_array_equal(found, expected)


def test_instances_of_points_are_discs() -> None:
    image = image_of((P, shapely.MultiPoint([(8, 12), (14, 12)])), mpp=MPP)
    found = CellTask().instances(image, window(), 0.5)
    rows, columns = np.mgrid[0:24, 0:24] + 0.5
    first, second = np.hypot(columns - 8, rows - 12), np.hypot(columns - 14, rows - 12)
    assert ((found == 1) == ((first <= 5) & (first < second))).all()
    assert ((found == 2) == ((second <= 5) & (second < first))).all()


def test_an_outline_of_a_region_is_refused() -> None:
    region = (P, box(0, 0, 102, 100))  # 2550 µm²
    message = "none.tif: an outline of the class 'Tumor: Positive' covers 2550 µm²; expected .* at most 2500 µm²"
    with pytest.raises(TrainingError, match=message):
        label((N, box(0, 0, 9, 9)), region)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"classes": ()}, "no class to learn"),
        ({"classes": ("A", "A")}, "class 'A' occurs twice"),
        ({"classes": ("Ignore*",)}, r"class 'Ignore\*' cannot be learnt"),
        ({"classes": ("Training",)}, "class 'Training' cannot be learnt"),
        ({"nucleus_radius_um": 0.0}, "nucleus_radius_um 0; expected more than 0"),
        ({"membrane_um": float("nan")}, "membrane_um nan"),
    ],
)
def test_settings_that_mean_nothing_are_refused(settings: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        CellTask(**settings)
