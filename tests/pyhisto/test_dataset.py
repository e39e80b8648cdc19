"""What annotations teach: every rule of the label masks, and patches that come out the same every time."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shapely

from pyhisto.dataset import IGNORED, Augmentation, CellTask, PatchDataset, TrainingImage, TumourTask
from pyhisto.dataset.augment import augment
from pyhisto.dataset.tasks import Window
from pyhisto.errors import ConfigError, TrainingError
from pyhisto.objects import make_objects

Pixels = np.ndarray[Any, Any]
NO_CHANGE = Augmentation(scale=0, stain=0, hue=0, brightness=0, blur_px=0)
box = shapely.box


def image_of(*annotations: tuple[str | None, Any], path: Path = Path("none.tif"), **options: Any) -> TrainingImage:
    objects = make_objects(
        [geometry for _, geometry in annotations],
        object_type="annotation",
        classification=[name for name, _ in annotations],
    )
    return TrainingImage(path, objects, **options)


def tumour_labels(*annotations: tuple[str | None, Any], size: int = 10) -> Pixels:
    return TumourTask().label(image_of(*annotations), Window(0, 0, (1.0, 1.0), size), 1.0)


def test_tumour_other_and_not_labelled() -> None:
    labels = tumour_labels(("Tumor", box(0, 0, 3, 2)), ("Stroma", box(5, 0, 7, 2)), (None, box(0, 5, 9, 9)))
    assert labels.dtype == np.uint8
    assert (labels[:2, :3] == 1).all()
    assert (labels[:2, 5:7] == 0).all()
    assert (labels == IGNORED).sum() == 100 - 6 - 4


def test_the_later_polygon_wins() -> None:
    tumour, stroma = ("Tumor", box(0, 0, 6, 1)), ("Stroma", box(4, 0, 9, 1))
    assert tumour_labels(tumour, stroma)[0].tolist() == [1, 1, 1, 1, 0, 0, 0, 0, 0, 255]
    assert tumour_labels(stroma, tumour)[0].tolist() == [1, 1, 1, 1, 1, 1, 0, 0, 0, 255]


@pytest.mark.parametrize("first", [True, False])
def test_a_training_rectangle_makes_the_rest_background(first: bool) -> None:
    pair = [("Training", box(0, 0, 8, 1)), ("Tumor", box(2, 0, 4, 1))]
    assert tumour_labels(*(pair if first else pair[::-1]))[0].tolist() == [0, 0, 1, 1, 0, 0, 0, 0, 255, 255]


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("name", ["Ignore*", "Region*"])
def test_ignore_hides_what_it_covers(first: bool, name: str) -> None:
    pair = [(name, box(1, 0, 3, 1)), ("Tumor", box(0, 0, 4, 1))]
    assert tumour_labels(*(pair if first else pair[::-1]))[0, :5].tolist() == [1, 255, 255, 1, 255]


def test_classes_derived_from_tumour_are_tumour() -> None:
    labels = tumour_labels(("Tumor: Positive", box(0, 0, 2, 1)), ("Tumour bed", box(4, 0, 6, 1)))
    assert labels[0].tolist() == [1, 1, 255, 255, 0, 0, 255, 255, 255, 255]


def test_a_hole_is_not_labelled() -> None:
    labels = tumour_labels(("Tumor", box(0, 0, 5, 5).difference(box(1, 1, 4, 4))))
    assert (labels[1:4, 1:4] == IGNORED).all()


def test_points_and_detections_say_nothing_about_areas() -> None:
    image = image_of(("Tumor", shapely.Point(1, 1)), ("Tumor", box(0, 0, 1, 1)))
    image.objects["object_type"] = ["annotation", "detection"]
    assert (TumourTask().label(image, Window(0, 0, (1.0, 1.0), 4), 1.0) == IGNORED).all()


def test_window_and_pixels_that_are_not_square() -> None:
    window = Window(10, 20, (2.0, 4.0), 5)  # 10..20 across, 20..40 down
    labels = TumourTask().label(image_of(("Tumor", box(12, 28, 18, 32))), window, 1.0)
    expected = np.full((5, 5), IGNORED)
    expected[2, 1:4] = 1
    np.testing.assert_array_equal(labels, expected)
    assert window.box.bounds == (10, 20, 20, 40)


def cell_labels(*annotations: tuple[str | None, Any], size: int = 40, mpp: float = 0.5, scale: float = 2.0) -> Pixels:
    """Label a window of `size` px at `mpp` that starts at (0, 0) of a slide with `mpp` / `scale` µm/px."""
    return CellTask().label(image_of(*annotations), Window(0, 0, (scale, scale), size), mpp)


def distance_to(x: float, y: float, size: int = 40) -> Pixels:
    rows, columns = np.mgrid[0:size, 0:size]
    return np.hypot(columns + 0.5 - x, rows + 0.5 - y)


def test_a_point_is_a_disc_in_a_ring() -> None:
    # at 0.5 µm/px the nucleus has a radius of 5 px and the membrane ends at 9 px; (30, 44) is pixel (15, 22)
    labels = cell_labels(("Tumor: Positive", shapely.Point(30, 44)))
    distance = distance_to(15, 22)
    np.testing.assert_array_equal(labels == 1, distance <= 5)
    np.testing.assert_array_equal(labels == 2, (distance > 5) & (distance < 9))
    np.testing.assert_array_equal(labels == IGNORED, distance >= 9)
    assert (labels == 1).sum() == 80  # lattice points (odd / 2) within 5: pi * 25 = 78.5
    assert labels[22, 15 + 4] == 1
    assert labels[22, 15 + 6] == 2


def test_negative_points_have_their_own_labels() -> None:
    labels = cell_labels(("Tumor: Negative", shapely.MultiPoint([(20, 20), (60, 60)])))
    assert labels[10, 10] == labels[30, 30] == 3
    assert labels[10, 17] == 4
    assert set(np.unique(labels)) == {3, 4, IGNORED}


def test_the_nearest_point_wins() -> None:
    labels = cell_labels(("Tumor: Negative", shapely.Point(24, 40)), ("Tumor: Positive", shapely.Point(36, 40)))
    # pixels (12, 20) and (18, 20): 6 px apart, the border lies at column 15
    near_negative, near_positive = distance_to(12, 20), distance_to(18, 20)
    assert set(np.unique(labels[near_negative < np.minimum(near_positive, 9)])) == {3, 4}
    assert set(np.unique(labels[near_positive < np.minimum(near_negative, 9)])) == {1, 2}
    assert labels[20, 14] == 3
    assert labels[20, 15] == 1


def test_points_outside_the_window_reach_into_it() -> None:
    labels = cell_labels(("Tumor: Positive", shapely.Point(-4, 40)))  # pixel (-2, 20)
    distance = distance_to(-2, 20)
    np.testing.assert_array_equal(labels == 1, distance <= 5)
    np.testing.assert_array_equal(labels == 2, (distance > 5) & (distance < 9))


def test_areas_and_cells() -> None:
    labels = cell_labels(
        ("Training", box(0, 0, 40, 80)),  # columns 0..20
        ("Tumor", box(0, 0, 80, 80)),
        ("Stroma", box(60, 0, 80, 80)),  # columns 30..40
        ("Tumor: Negative", shapely.Point(20, 40)),
    )
    assert labels[20, 10] == 3
    assert labels[0, 0] == 0  # in the rectangle, no point: background
    assert labels[0, 25] == IGNORED  # tumour outside the rectangle: cells without a point
    assert labels[0, 35] == 0


def test_a_polygon_of_a_positive_cell_is_not_background() -> None:
    labels = cell_labels(("Tumor: Positive", box(0, 0, 20, 20)))
    assert (labels == IGNORED).all()


@pytest.mark.parametrize("point", [(20, 20), (70, 70), (900, 900), None])
def test_ignored_areas_hide_points_and_are_always_ignored(point: tuple[float, float] | None) -> None:
    annotations: list[tuple[str | None, Any]] = [("Stroma", box(0, 0, 80, 80)), ("Ignore*", box(0, 0, 40, 40))]
    if point:
        annotations.append(("Tumor: Positive", shapely.Point(point)))
    labels = cell_labels(*annotations)
    assert set(np.unique(labels)) <= {0, 1, 2, IGNORED}
    assert (labels[:20, :20] == IGNORED).all()
    assert ((labels[20:] == 0).sum() < 800) == (point == (70, 70))


def test_radii_shrink_with_the_resolution() -> None:
    fine = cell_labels(("Tumor: Positive", shapely.Point(20, 20)), mpp=0.25, scale=1.0)
    np.testing.assert_array_equal(fine == 1, distance_to(20, 20) <= 10)


def test_class_counts() -> None:
    assert TumourTask().class_count() == 2
    assert CellTask().class_count() == 5


@pytest.fixture(scope="module")
def slide(tmp_path_factory: pytest.TempPathFactory, write_tiff: Callable[..., Path]) -> Path:
    """256 x 256 px, 0.5 µm/px: left half dark blue, right half brown, with glass below row 192."""
    image = np.full((256, 256, 3), (90, 90, 170), dtype=np.uint8)
    image[:, 128:] = (170, 120, 80)
    image[192:] = (248, 248, 248)
    return write_tiff(tmp_path_factory.mktemp("patches") / "two.tif", [image])


def two_sided(slide: Path, **options: Any) -> TrainingImage:
    return image_of(("Tumor", box(128, 0, 256, 192)), ("Stroma", box(0, 0, 128, 192)), path=slide, **options)


def patches(images: Sequence[TrainingImage], **options: Any) -> PatchDataset:
    given = {"mpp": 1.0, "size": 32, "length": 40, "seed": 5, **options}
    return PatchDataset(images, given.pop("task", TumourTask()), **given)


def test_patches_show_what_they_say(slide: Path) -> None:
    data = patches([two_sided(slide)])
    assert len(data) == 40
    seen = set()
    for index in range(len(data)):
        rgb, labels = data[index]
        assert (rgb.shape, rgb.dtype, labels.shape, labels.dtype) == ((32, 32, 3), np.uint8, (32, 32), np.uint8)
        tumour, other = labels == 1, labels == 0
        brown = (rgb[..., 0] > rgb[..., 2]) & (rgb.mean(axis=2) < 200)
        # the filter mixes across the border in one pixel
        assert (brown[tumour]).mean() > 0.93 if tumour.any() else True
        assert (brown[other]).mean() < 0.07 if other.any() else True
        assert np.mean(labels == IGNORED) <= 2 / 32  # where tissue and glass mix in a row or two
        seen |= set(np.unique(labels).tolist())
    assert seen >= {0, 1}  # what is glass or beyond the slide counts as background


def test_glass_counts_as_background_and_other_tissue_does_not(slide: Path) -> None:
    image = image_of(("Tumor", box(128, 150, 256, 192)), ("Stroma", box(0, 150, 100, 192)), path=slide)
    for index in range(20):
        rgb, labels = patches([image])[index]
        glass = rgb.min(axis=2) > 240
        assert (labels[glass] == 0).all()
    unlabelled = [(patches([image])[i][1] == IGNORED).sum() for i in range(20)]
    assert max(unlabelled) > 50


def test_both_classes_are_drawn_alike_and_by_weight(slide: Path) -> None:
    def share(**options: Any) -> float:
        data = patches([two_sided(slide)], size=1, length=400, mpp=0.5, **options)
        return float(np.mean([data[i][1][0, 0] == 1 for i in range(400)]))

    assert share() == pytest.approx(0.5, abs=0.08)
    assert share(weights={"Tumor": 4.0}) == pytest.approx(0.8, abs=0.07)


def test_a_weight_for_an_unknown_class_is_refused(slide: Path) -> None:
    with pytest.raises(ConfigError, match="weight for 'tumor'; expected one of Tumor, background"):
        patches([two_sided(slide)], weights={"tumor": 2.0})


def test_patches_depend_on_seed_and_index_alone(slide: Path) -> None:
    images = [two_sided(slide)]
    first = patches(images, augmentation=Augmentation())
    again = pickle.loads(pickle.dumps(patches(images, augmentation=Augmentation(), length=99)))  # noqa: S301
    for index in (7, 3, 7, 0):  # in any order
        for a, b in zip(first[index], again[index], strict=True):
            np.testing.assert_array_equal(a, b)
    other = patches(images, augmentation=Augmentation(), seed=6)
    assert not np.array_equal(first[3][0], other[3][0])
    assert not np.array_equal(first[3][0], first[4][0])
    with pytest.raises(IndexError):
        first[40]
    with pytest.raises(IndexError):
        first[-1]


def test_an_open_slide_does_not_travel_to_workers(slide: Path) -> None:
    data = patches([two_sided(slide)])
    data[0]
    assert data.__getstate__()["_slides"] == {}
    assert pickle.loads(pickle.dumps(data))[1][0].shape == (32, 32, 3)  # noqa: S301


def test_pixel_size_given_by_the_user_is_used(tmp_path: Path, write_tiff: Callable[..., Path]) -> None:
    image = np.zeros((128, 128, 3), dtype=np.uint8)
    image[:, 64:] = 100
    path = write_tiff(tmp_path / "bare.tif", [image], mpp=None)
    training = image_of(("Tumor", box(64, 0, 128, 128)), ("Stroma", box(0, 0, 64, 128)), path=path, mpp=(0.5, 1.0))
    data = patches([training], size=64, mpp=1.0)
    for index in range(10):
        rgb, labels = data[index]
        inside = rgb.mean(axis=2) == 100
        assert (labels[inside] == 1).all()
        # 2 slide px across but 1 down to a patch pixel: the slide's 128 x 128 px fill 64 x 128 patch px
        assert inside.sum(axis=1).max() <= 32


@pytest.mark.parametrize(
    ("annotations", "missing"),
    [
        ([("Stroma", box(0, 0, 9, 9))], "no annotation of Tumor on 1"),
        ([("Tumor", box(0, 0, 9, 9))], "no annotation of background on 1"),
        ([("Tumor", box(0, 0, 9, 9)), ("Ignore*", box(0, 0, 9, 9))], "no annotation of background"),
        ([(None, box(0, 0, 9, 9))], "no annotation of Tumor"),
    ],
)
def test_a_class_without_annotations_is_an_error(annotations: Any, missing: str) -> None:
    with pytest.raises(TrainingError, match=missing):
        patches([image_of(*annotations)])


def test_cells_need_both_kinds_of_points() -> None:
    image = image_of(("Tumor: Positive", shapely.Point(3, 3)), ("Training", box(0, 0, 9, 9)))
    with pytest.raises(TrainingError, match="no annotation of Tumor: Negative"):
        patches([image], task=CellTask())
    with pytest.raises(TrainingError, match="any class on 0 training images"):
        patches([])


def test_cell_patches_show_their_point(slide: Path) -> None:
    image = image_of(
        ("Tumor: Positive", shapely.MultiPoint([(150, 60), (200, 100)])),
        ("Tumor: Negative", shapely.Point(60, 60)),
        ("Training", box(20, 20, 240, 180)),
        path=slide,
    )
    data = patches([image], task=CellTask(), size=48, mpp=0.5, weights={"background": 0.0})
    for index in range(20):
        assert {1, 3} & set(np.unique(data[index][1]).tolist())


@pytest.mark.parametrize("change", ["shape", "class", "mpp", "size", "seed", "task", "augmentation", "pixel size"])
def test_the_description_tells_data_sets_apart(slide: Path, change: str) -> None:
    base = patches([two_sided(slide)]).describe()
    assert patches([two_sided(slide)], length=77).describe() == base
    options: dict[str, Any] = {
        "mpp": {"mpp": 1.1},
        "size": {"size": 33},
        "seed": {"seed": 1},
        "task": {"task": TumourTask(training="Box")},
        "augmentation": {"augmentation": Augmentation()},
    }.get(change, {})
    image = two_sided(slide, mpp=(0.3, 0.3)) if change == "pixel size" else two_sided(slide)
    if change == "shape":
        image.objects.geometry = image.objects.geometry.translate(1)
    if change == "class":
        image.objects["classification"] = ["Tumor", "Necrosis"]
    assert patches([image], **options).describe() != base


def test_augmentation_without_change_only_turns_and_mirrors() -> None:
    rng = np.random.default_rng(0)
    rgb = rng.integers(1, 256, (9, 9, 3), dtype=np.uint8)
    labels = np.arange(81, dtype=np.uint8).reshape(9, 9)
    seen = set()
    for seed in range(60):
        turned, turned_labels = augment(rgb, labels, NO_CHANGE, np.random.default_rng(seed))
        flat = np.ascontiguousarray(turned_labels)
        seen.add(flat.tobytes())
        rows, columns = flat // 9, flat % 9
        assert np.abs(turned.astype(int) - rgb[rows, columns]).max() <= 1
    assert len(seen) == 8


def test_image_and_labels_stay_together() -> None:
    """A dark patch that is labelled stays where its label is, whatever else changes."""
    rgb = np.full((40, 40, 3), 240, dtype=np.uint8)
    labels = np.zeros((40, 40), dtype=np.uint8)
    rgb[5:12, 20:33], labels[5:12, 20:33] = (70, 60, 120), 1
    for seed in range(30):
        image, mask = augment(rgb, labels, Augmentation(), np.random.default_rng(seed))
        assert image.dtype == np.uint8
        dark = image.mean(axis=2) < 160
        assert (dark != (mask == 1)).sum() <= 10  # corners are blurred


def test_scale_changes_how_much_a_patch_shows(slide: Path) -> None:
    image = image_of(("Tumor", box(128, 60, 144, 76)), ("Stroma", box(0, 0, 128, 192)), path=slide)
    task = TumourTask()

    def areas(scale: float) -> list[int]:
        change = Augmentation(scale=scale, stain=0, brightness=0, blur_px=0)
        data = patches([image], size=96, mpp=0.5, augmentation=change, task=task, weights={"background": 0.0})
        found = [int((data[i][1] == 1).sum()) for i in range(15)]
        return [area for area in found if area > 100]

    assert set(areas(0.0)) == {256}
    scaled = areas(0.3)  # sides between 16 / 1.3 and 16 * 1.3
    assert min(scaled) >= 11 * 11
    assert max(scaled) <= 22 * 22
    assert len(set(scaled)) > 3


def test_stain_change_moves_haematoxylin_and_dab_alone() -> None:
    """A pixel of pure haematoxylin becomes more or less haematoxylin; white stays white."""
    density = 0.5 * np.array([0.65111, 0.70119, 0.29049])
    rgb = np.full((4, 4, 3), 255, dtype=np.uint8)
    rgb[:2] = np.round(255 * 10**-density)
    change = Augmentation(scale=0, stain=0.25, hue=0, brightness=0, blur_px=0)
    gains = []
    for seed in range(20):
        image, _ = augment(rgb, np.zeros((4, 4), dtype=np.uint8), change, np.random.default_rng(seed))
        pixels = image.reshape(-1, 3)
        stained = pixels[pixels.sum(axis=1) < 700][0]
        assert (pixels == 255).all(axis=1).sum() == 8
        ratio = -np.log10(stained / 255) / density
        assert np.ptp(ratio) < 0.03
        gains.append(ratio.mean())
    assert 0.74 < min(gains) < 0.9
    assert 1.1 < max(gains) < 1.26


def test_hue_change_gives_each_stain_another_colour() -> None:
    """Of pure haematoxylin each channel's density changes by itself, by at most a quarter; white stays white."""
    density = 0.5 * np.array([0.65111, 0.70119, 0.29049])
    rgb = np.full((4, 4, 3), 255, dtype=np.uint8)
    rgb[:2] = np.round(255 * 10**-density)
    change = Augmentation(scale=0, stain=0, hue=0.25, brightness=0, blur_px=0)
    ratios = []
    for seed in range(40):
        image, _ = augment(rgb, np.zeros((4, 4), dtype=np.uint8), change, np.random.default_rng(seed))
        pixels = image.reshape(-1, 3)
        assert (pixels == 255).all(axis=1).sum() == 8
        ratios.append(-np.log10(pixels[pixels.sum(axis=1) < 700][0] / 255) / density)
    spread = np.array(ratios)
    assert spread.min() > 0.75 - 0.03
    assert spread.max() < 1.25 + 0.03
    assert np.all(spread.min(axis=0) < 0.85)
    assert np.all(spread.max(axis=0) > 1.15)
    assert abs(np.corrcoef(spread.T)[0, 1]) < 0.4
