"""What is held out: Validation rectangles, validation slides, and the windows that show them."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shapely
from dataset_cases import image_of

from pyhisto.dataset import (
    IGNORED,
    BoundaryWeights,
    CellTask,
    PatchDataset,
    TissueTask,
    TrainingImage,
    ValidationDataset,
    Window,
    labelled_areas,
)
from pyhisto.errors import ConfigError, TrainingError

box = shapely.box
ROW = [
    ("Validation", box(4, 0, 8, 1)),
    ("Training", box(0, 0, 6, 1)),
    ("Tumor", box(1, 0, 2, 1)),
    ("Tumor", box(5, 0, 7, 1)),
]


@pytest.mark.parametrize(
    ("slide_part", "part", "expected"),
    [
        ("train", "train", [0, 1, 0, 0, 255, 255, 255, 255, 255, 255]),
        ("train", "validation", [255, 255, 255, 255, 0, 1, 1, 0, 255, 255]),
        ("train", "test", [255] * 10),
        ("validation", "validation", [0, 1, 0, 0, 0, 1, 1, 0, 255, 255]),
        ("validation", "train", [255] * 10),
        ("test", "test", [0, 1, 0, 0, 0, 1, 1, 0, 255, 255]),
        ("test", "validation", [255] * 10),
    ],
)
def test_what_counts_for_which_part(slide_part: Any, part: Any, expected: list[int]) -> None:
    image = image_of(*ROW, part=slide_part)
    assert TissueTask().label(image, Window(0, 0, (1.0, 1.0), 10), 1.0, part=part)[0].tolist() == expected
    counted = shapely.union_all(labelled_areas(image, TissueTask(), part))
    centres = shapely.points(np.arange(10) + 0.5, np.full(10, 0.5))
    assert shapely.intersects(counted, centres).tolist() == [value != 255 for value in expected]


def test_an_ignored_area_is_hidden_in_a_validation_rectangle() -> None:
    image = image_of(*ROW, ("Ignore*", box(5, 0, 6, 1)))
    labels = TissueTask().label(image, Window(0, 0, (1.0, 1.0), 10), 1.0, part="validation")
    assert labels[0, 4:8].tolist() == [0, 255, 1, 0]
    assert sum(area.area for area in labelled_areas(image, TissueTask(), "validation")) == 3


def test_cells_in_a_validation_rectangle_are_held_out() -> None:
    image = image_of(
        ("Training", box(0, 0, 40, 40)),
        ("Validation", box(40, 0, 80, 40)),
        ("Tumor: Positive", shapely.MultiPoint([(20, 20), (60, 20)])),
        ("Tumor: Negative", shapely.MultiPoint([(20, 36), (38, 20)])),
    )
    task, window = CellTask(), Window(0, 0, (1.0, 1.0), 80)
    training, validation = task.label(image, window, 0.5), task.label(image, window, 0.5, part="validation")
    assert training[20, 20] == 1
    assert training[20, 38] == 3
    assert (training[:, 40:] == IGNORED).all()
    assert validation[20, 60] == 1
    assert validation[20, 41] == 3  # the part of the disc that lies inside
    assert (validation[:, :40] == IGNORED).all()
    places = task.places(image)
    assert places["Tumor: Positive"].points.tolist() == [[20, 20]]
    assert places["Tumor: Negative"].points.tolist() == [[20, 36], [38, 20]]
    assert sum(shapely.area(places["background"].polygons)) == 1600


def test_a_self_crossing_annotation_is_no_obstacle() -> None:
    bow = shapely.Polygon([(0, 0), (4, 4), (4, 0), (0, 4)])
    image = image_of(("Tumor", bow), ("Stroma", box(2, 0, 6, 4)))
    assert sum(area.area for area in labelled_areas(image, TissueTask(), "train")) == pytest.approx(4 + 16)
    assert {name: float(shapely.area(p.polygons).sum()) for name, p in TissueTask().places(image).items()} == {
        "Tumor": 4.0,
        "background": 16.0,
    }


@pytest.fixture(scope="module")
def slide(tmp_path_factory: pytest.TempPathFactory, write_tiff: Callable[..., Path]) -> Path:
    """160 x 120 px at 0.5 µm/px: red = x, green = y."""
    y, x = np.mgrid[0:120, 0:160]
    image = np.stack([x, y, np.full_like(x, 9)], axis=-1).astype(np.uint8)
    return write_tiff(tmp_path_factory.mktemp("parts") / "grid.tif", [image])


def held_out(images: list[TrainingImage], **options: Any) -> ValidationDataset:
    given: dict[str, Any] = {"mpp": 0.5, "size": 32, "limit": 99, **options}
    return ValidationDataset(images, given.pop("task", TissueTask()), **given)


def test_windows_show_each_labelled_pixel_once(slide: Path) -> None:
    """64 x 48 px in windows of 32 px are 2 x 2, which reach over by 8 px above and below."""
    image = image_of(
        ("Tumor", box(40, 30, 70, 60)),
        ("Validation", box(20, 20, 84, 68)),
        ("Validation", box(84, 68, 100, 80)),  # shown by windows of its own, touched by a corner
        ("Training", box(100, 20, 150, 100)),
        path=slide,
    )
    data = held_out([image])
    assert len(data) == 5
    seen = np.zeros((120, 160), dtype=int)
    for index in range(len(data)):
        rgb, labels = data[index][:2]
        assert (rgb.shape, rgb.dtype, labels.shape, labels.dtype) == ((32, 32, 3), np.uint8, (32, 32), np.uint8)
        known = labels != IGNORED
        x, y = rgb[known, 0].astype(int), rgb[known, 1].astype(int)
        seen[y, x] += 1
        tumour = (x >= 40) & (x < 70) & (y >= 30) & (y < 60)
        np.testing.assert_array_equal(labels[known] == 1, tumour)
    expected = np.zeros((120, 160), dtype=int)
    expected[20:68, 20:84] = expected[68:80, 84:100] = 1
    np.testing.assert_array_equal(seen, expected)


def test_nuclei_without_an_area_are_shown_too(slide: Path) -> None:
    points = shapely.MultiPoint([(10, 10), (20, 20), (110, 110)])
    image = image_of(("Tumor: Positive", points), path=slide, part="validation")
    data = held_out([image], task=CellTask())
    assert len(data) == 2  # squares (0, 0) and (96, 96) of the grid
    assert [int((data[i][1] == 1).sum()) for i in range(2)] == [160, 80]


def test_windows_are_limited_and_spread(slide: Path) -> None:
    large = image_of(("Validation", box(0, 0, 160, 96)), path=slide)  # 5 x 3 windows
    small = image_of(("Tumor", box(0, 0, 32, 32)), path=slide, part="validation")
    none = image_of(("Tumor", box(0, 0, 99, 99)), path=slide, part="test")
    assert len(held_out([large, small, none])) == 16
    data = held_out([none, large, small], limit=4)
    windows = data.describe()["windows"]
    assert [row[1:] for row in windows] == [[64, 0], [64, 32], [64, 64], [0, 0]]
    assert len(held_out([none])) == 0


def test_validation_windows_are_the_same_every_time_and_cross_to_other_processes(slide: Path) -> None:
    images = [image_of(("Validation", box(0, 0, 64, 64)), ("Tumor", box(9, 9, 40, 40)), path=slide)]
    first, again = held_out(images), pickle.loads(pickle.dumps(held_out(images)))  # noqa: S301
    assert first.describe() == again.describe()
    for index in (3, 0, 3):
        for a, b in zip(first[index], again[index], strict=True):
            np.testing.assert_array_equal(a, b)
    images[0].objects["classification"] = ["Validation", "Stroma"]
    changed = image_of(("Validation", box(0, 0, 64, 64)), ("Stroma", box(9, 9, 40, 40)), path=slide)
    assert held_out([changed]).describe() != first.describe()
    with pytest.raises(IndexError):
        first[4]


def test_validation_windows_with_boundary_weights(slide: Path) -> None:
    cells = [("Tumor: Positive", box(8, 8, 16, 24)), ("Tumor: Positive", box(18, 8, 26, 24))]
    image = image_of(("Validation", box(0, 0, 32, 32)), *cells, path=slide)
    _, labels, weights = held_out([image], task=CellTask(), boundary=BoundaryWeights())[0]  # type: ignore[misc]
    assert weights.dtype == np.float32
    # the gap of 2 px is 1 µm wide: 1 + 10 exp(-1 / (2 * 2.5^2))
    np.testing.assert_allclose(weights[16, 16:18], 1 + 10 * np.exp(-1 / 12.5), rtol=1e-6)
    assert (weights[:, 18:26][labels[:, 18:26] == 1] == 1).all()
    with pytest.raises(ConfigError, match="boundary weights for tissue"):
        held_out([image], boundary=BoundaryWeights())


def test_training_never_sees_what_is_held_out(slide: Path) -> None:
    image = image_of(
        ("Tumor", box(0, 0, 80, 120)),
        ("Stroma", box(80, 0, 160, 120)),
        ("Validation", box(40, 40, 120, 80)),
        path=slide,
    )
    other = image_of(("Tumor", box(0, 0, 9, 9)), path=slide, part="validation")
    data = PatchDataset([other, image], TissueTask(), mpp=0.5, size=48, length=30, seed=0)
    for index in range(30):
        rgb, labels = data[index][:2]
        x, y = rgb[..., 0], rgb[..., 1]
        inside = (x >= 40) & (x < 120) & (y >= 40) & (y < 80) & (rgb[..., 2] == 9)
        assert (labels[inside] == IGNORED).all()
    with pytest.raises(TrainingError, match="no annotation of any class on 0 training images"):
        PatchDataset([other], TissueTask(), mpp=0.5, size=48, length=30, seed=0)


def test_an_unknown_part_is_refused() -> None:
    with pytest.raises(ConfigError, match="part 'dev'; expected one of train, validation, test"):
        image_of(part="dev")
