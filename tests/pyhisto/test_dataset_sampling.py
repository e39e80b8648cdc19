"""How often patches are centred on what, by shares that are worked out by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import shapely
from dataset_cases import image_of

from pyhisto.dataset import CellTask, Sampling, TissueTask, TrainingImage
from pyhisto.dataset.sampling import Anchors
from pyhisto.errors import ConfigError

box = shapely.box
P, N = "Tumor: Positive", "Tumor: Negative"


def shares(images: list[TrainingImage], task: Any = None, **settings: Any) -> list[tuple[int, str, float]]:
    """Return image, class and probability of each place, sorted."""
    task = task or TissueTask(("Tumor", "Stroma"))
    anchors = Anchors(images, task, Sampling(**settings))
    assert anchors.probability.sum() == pytest.approx(1)
    names = [task.class_names()[k] for k in anchors.number]
    return sorted(
        (int(i), name, round(float(p), 6)) for i, name, p in zip(anchors.image, names, anchors.probability, strict=True)
    )


def tissue() -> list[TrainingImage]:
    """Areas: Tumor 100 and 300 on the first image, 400 on the second; Stroma 100; background 100."""
    first = image_of(("Tumor", box(0, 0, 10, 10)), ("Tumor", box(20, 0, 50, 10)), ("Stroma", box(0, 20, 10, 30)))
    second = image_of(("Tumor", box(0, 0, 20, 20)), ("Other", box(0, 40, 10, 50)))
    return [first, second]


def test_class_balance() -> None:
    assert shares(tissue()) == [
        (0, "Stroma", round(1 / 3, 6)),
        (0, "Tumor", round(1 / 6 * 1 / 4, 6)),
        (0, "Tumor", round(1 / 6 * 3 / 4, 6)),
        (1, "Tumor", round(1 / 6, 6)),
        (1, "background", round(1 / 3, 6)),
    ]
    weighted = shares(tissue(), class_weights={"Tumor": 2.0, "background": 0.0})
    assert weighted[0] == (0, "Stroma", round(1 / 3, 6))
    assert weighted[3] == (1, "Tumor", round(1 / 3, 6))
    assert weighted[4] == (1, "background", 0.0)


def test_region_balance_draws_each_area_alike() -> None:
    assert [share for *_, share in shares(tissue(), balance="region")] == [0.2] * 5


def test_area_balance_is_by_square_micrometres() -> None:
    images = tissue()
    for image, mpp in zip(images, [(1.0, 1.0), (0.5, 1.0)], strict=True):
        object.__setattr__(image, "mpp", mpp)
    # 100 + 100 + 300 on the first, (400 + 100) / 2 on the second: 750 µm²
    assert shares(images, balance="area") == [
        (0, "Stroma", round(100 / 750, 6)),
        (0, "Tumor", round(100 / 750, 6)),
        (0, "Tumor", round(300 / 750, 6)),
        (1, "Tumor", round(200 / 750, 6)),
        (1, "background", round(50 / 750, 6)),
    ]


def test_what_a_later_area_covers_is_not_drawn() -> None:
    image = image_of(
        ("Training", box(0, 0, 10, 10)), ("Tumor", box(0, 0, 4, 10)), ("Stroma", box(2, 0, 4, 10)), mpp=(1.0, 1.0)
    )
    assert shares([image], balance="area") == [(0, "Stroma", 0.2), (0, "Tumor", 0.2), (0, "background", 0.6)]


def cells() -> TrainingImage:
    """Two rectangles, of 2 positive and 2 negative cells and of none, and one positive cell in neither."""
    return image_of(
        ("Training", box(0, 0, 40, 40)),
        ("Training", box(100, 0, 140, 40)),
        (P, shapely.MultiPoint([(10, 10), (20, 10), (80, 80)])),
        (N, shapely.MultiPoint([(10, 20), (20, 20)])),
        mpp=(0.5, 0.5),
    )


def test_regions_of_cells() -> None:
    # three regions: the first rectangle (three classes), the second (background), the cell outside
    found = shares([cells()], CellTask(), balance="region")
    assert [round(share * 18, 3) for _, name, share in found if name == P] == [1, 1, 6]
    assert [round(share * 18, 3) for _, name, share in found if name == N] == [1, 1]
    assert [round(share * 18, 3) for _, name, share in found if name == "background"] == [2, 6]


def test_area_of_cells() -> None:
    # two rectangles of 400 µm² and the disc and ring of the cell outside, of 4.5 µm around it
    disc = np.pi * 4.5**2
    found = shares([cells()], CellTask(), balance="area")
    assert [round(share * (800 + disc), 2) for *_, share in found if share] == [round(disc, 2), 400, 400]


def test_foreground() -> None:
    found = shares(tissue(), foreground=0.5)
    # half of the patches as the balance says, half without the background
    assert found[-1] == (1, "background", round(1 / 6, 6))
    assert found[0] == (0, "Stroma", round(1 / 6 + 1 / 4, 6))
    assert shares(tissue(), foreground=1.0)[-1] == (1, "background", 0.0)


def test_points_of_an_area_are_drawn_alike() -> None:
    """An L of three squares: a third of the draws in each; and never outside."""
    shape = box(0, 0, 20, 10).union(box(0, 10, 10, 20))
    anchors = Anchors([image_of(("Tumor", shape), ("Stroma", box(50, 50, 60, 60)))], TissueTask(), Sampling())
    rng = np.random.default_rng(0)
    drawn = [anchors.draw(rng) for _ in range(3000)]
    points = np.array([point for _, point, _ in drawn])
    assert all(in_area for *_, in_area in drawn)
    tumour = points[points[:, 0] < 30]
    assert shapely.contains_xy(shape, tumour).all()
    assert len(tumour) == pytest.approx(1500, abs=120)
    assert np.mean(tumour[:, 0] > 10) == pytest.approx(1 / 3, abs=0.04)
    assert np.mean(tumour[:, 1] > 10) == pytest.approx(1 / 3, abs=0.04)


def test_a_thin_area_is_still_found() -> None:
    line = shapely.LineString([(0, 0), (1000, 1000)]).buffer(0.001)
    anchors = Anchors([image_of(("Tumor", line), ("Stroma", box(0, 500, 9, 509)))], TissueTask(), Sampling())
    rng = np.random.default_rng(0)
    points = np.array([anchors.draw(rng)[1] for _ in range(40)])
    assert (np.abs(points[points[:, 0] > 20] @ (1, -1)) < 0.002).all()


def test_an_outline_is_drawn_at_its_middle() -> None:
    image = image_of((P, box(10, 10, 20, 16)), (N, box(30, 30, 40, 44)), ("Stroma", box(60, 0, 80, 20)), mpp=(0.5, 0.5))
    places = CellTask().places(image)
    assert places[P].points.tolist() == [[15, 13]]
    assert places[N].points.tolist() == [[35, 37]]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"class_weights": {"Tumor": -1.0}}, "weight -1 of 'Tumor'; expected 0 or more"),
        ({"class_weights": {"Tumor": float("nan")}}, "weight nan"),
        ({"balance": "slide"}, "balance 'slide'; expected one of class, region, area"),
        ({"foreground": 1.2}, "foreground 1.2; expected a share from 0 to 1"),
        ({"class_weights": {"Tumour": 1.0}}, "weight for 'Tumour'; expected one of Tumor, Stroma, background"),
        ({"class_weights": dict.fromkeys(("Tumor", "Stroma", "background"), 0.0)}, "leave nothing to draw"),
        ({"class_weights": {"Tumor": 0.0, "Stroma": 0.0}, "foreground": 0.5}, "0 for all classes but the background"),
    ],
)
def test_settings_that_mean_nothing_are_refused(settings: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        shares(tissue(), **settings)
