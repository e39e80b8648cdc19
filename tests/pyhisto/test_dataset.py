"""What annotations teach: every rule of the label masks, and patches that come out the same every time."""

from __future__ import annotations

import multiprocessing
import pickle
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shapely
from dataset_cases import Pixels, image_of

from pyhisto.dataset import (
    IGNORED,
    Augmentation,
    BoundaryWeights,
    CellTask,
    PatchDataset,
    Sampling,
    TissueTask,
    TrainingImage,
    ValidationDataset,
    Window,
)
from pyhisto.dataset.images import Part
from pyhisto.dataset.shapes import Shapes
from pyhisto.dataset.slides import OpenSlides
from pyhisto.errors import ConfigError, TrainingError
from pyhisto.inference import Lens
from pyhisto.stain import H_DAB

NO_CHANGE = Augmentation(**dict.fromkeys((field.name for field in fields(Augmentation)), 0.0))
box = shapely.box


def tumour_labels(*annotations: tuple[str | None, Any], size: int = 10) -> Pixels:
    return TissueTask().label(image_of(*annotations), Window(0, 0, (1.0, 1.0), size), 1.0)


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
    assert (TissueTask().label(image, Window(0, 0, (1.0, 1.0), 4), 1.0) == IGNORED).all()


def test_window_and_pixels_that_are_not_square() -> None:
    window = Window(10, 20, (2.0, 4.0), 5)  # 10..20 across, 20..40 down
    labels = TissueTask().label(image_of(("Tumor", box(12, 28, 18, 32))), window, 1.0)
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
    assert TissueTask().class_count() == 2
    assert CellTask().class_count() == 5


def test_several_classes_of_tissue_and_the_longest_name_that_fits() -> None:
    task = TissueTask(("Tumor", "Stroma", "Tumor: Necrosis"))
    names = ("Tumor: Positive", "Stroma", "Tumor: Necrosis: old", "Tumor: Necrosis", "Fat")
    image = image_of(*[(name, box(x, 0, x + 1, 1)) for x, name in enumerate(names)])
    assert task.label(image, Window(0, 0, (1.0, 1.0), 6), 1.0)[0].tolist() == [1, 2, 3, 3, 0, IGNORED]
    assert task.class_names() == ("Tumor", "Stroma", "Tumor: Necrosis", "background")
    assert task.class_count() == 4
    with pytest.raises(ConfigError, match="class 'background' cannot be learnt"):
        TissueTask(("background",))


def test_only_polygons_that_touch_a_window_are_looked_at() -> None:
    rng = np.random.default_rng(0)
    corner, side = rng.uniform(0, 1000, (500, 2)), rng.uniform(1, 60, (500, 2))
    boxes = shapely.box(*corner.T, *(corner + side).T)
    shapes = Shapes(boxes, np.arange(500))
    for x, y in rng.uniform(-50, 1000, (30, 2)):
        window = Window(x, y, (1.5, 2.0), 32)
        touching = np.flatnonzero(shapely.relate_pattern(boxes, window.box, "T********"))
        np.testing.assert_array_equal(shapes.near(window), touching)
    assert len(Shapes(boxes[:0], np.empty(0)).near(window)) == 0


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
    return PatchDataset(images, given.pop("task", TissueTask()), **given)


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
    assert seen >= {0, 1}  # what is glass counts as background


def test_patches_stay_within_a_small_image(tmp_path: Path, write_tiff: Callable[..., Path]) -> None:
    """An image hardly larger than a patch: half of what nuclei at its corners are centred on would be nothing."""
    path = write_tiff(tmp_path / "small.tif", [np.full((40, 48, 3), 100, dtype=np.uint8)])
    corners = [shapely.Point(x, y) for x in (1, 47) for y in (1, 39)]
    image = image_of(("Training", box(0, 0, 48, 40)), *(("Tumor: Positive", corner) for corner in corners), path=path)
    task = CellTask(("Tumor: Positive",), nucleus_radius_um=0.5, membrane_um=0.5)

    def least(size: int, augmentation: Augmentation | None = None) -> float:
        data = patches([image], task=task, size=size, mpp=0.5, augmentation=augmentation)
        return min(float((rgb < 200).all(axis=2).mean()) for rgb, _ in (data[i][:2] for i in range(40)))

    assert least(32) == 1.0
    assert least(40) == 1.0
    assert least(44) == pytest.approx(40 / 44, abs=0.02)  # all of its height, in the middle
    # by 45 degrees, 16 px from two sides: two corners of (22.6 - 16)^2 px each of 32^2 are beyond
    assert least(32, replace(NO_CHANGE, rotation=45.0)) == pytest.approx(1 - 2 * 6.63**2 / 32**2, abs=0.03)


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
    assert share(sampling=Sampling({"Tumor": 4.0})) == pytest.approx(0.8, abs=0.07)


def test_a_weight_for_an_unknown_class_is_refused(slide: Path) -> None:
    with pytest.raises(ConfigError, match="weight for 'tumor'; expected one of Tumor, background"):
        patches([two_sided(slide)], sampling=Sampling({"tumor": 2.0}))


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
    assert len(data.__getstate__()["_slides"]) == 0
    assert pickle.loads(pickle.dumps(data))[1][0].shape == (32, 32, 3)  # noqa: S301


def test_a_forked_process_opens_slides_of_its_own(slide: Path) -> None:
    slides = OpenSlides([two_sided(slide)])
    ours = slides[0]
    context = multiprocessing.get_context("fork")
    receive, send = context.Pipe(duplex=False)
    child = context.Process(target=lambda: send.send((len(slides), slides[0] is ours, slides[0].dimensions)))
    child.start()
    assert receive.recv() == (1, False, (256, 256))
    child.join()
    assert slides[0] is ours


def test_few_slides_are_open_at_a_time(slide: Path) -> None:
    slides = OpenSlides([two_sided(slide) for _ in range(5)], limit=2)
    first = slides[0]
    slides[1], slides[0], slides[2]  # 1 was not used for longest
    assert len(slides) == 2
    assert slides[0] is first
    slides[3], slides[4]
    assert slides[0] is not first
    slides.close()
    assert len(slides) == 0
    assert slides[1].dimensions == (256, 256)


def test_worker_processes_do_not_get_the_objects(slide: Path) -> None:
    """What crosses to them are the arrays that labels are drawn from."""
    rng = np.random.default_rng(0)
    circles = shapely.buffer(shapely.points(rng.uniform(0, 256, (2000, 2))), 3)
    classes = ["Tumor: Positive", "Tumor: Negative"] * 1000
    image = image_of(("Stroma", box(0, 0, 9, 9)), *zip(classes, circles, strict=True), path=slide)
    for number in range(40):
        image.objects[f"measurement {number}"] = 1.0
    data = patches([image], task=CellTask(), size=32)
    assert len(pickle.dumps(data)) < 2 * 2001 * 33 * 2 * 4  # twice the coordinates of 33 vertices as float32
    again = pickle.loads(pickle.dumps(data))  # noqa: S301
    np.testing.assert_array_equal(again[5][1], data[5][1])
    assert data.describe() == again.describe()


def test_glass_under_an_ignored_area_stays_ignored(slide: Path) -> None:
    hidden = ("Ignore*", box(0, 200, 256, 256))
    image = image_of(("Tumor", box(128, 150, 256, 192)), ("Stroma", box(0, 150, 100, 192)), hidden, path=slide)
    data = patches([image])
    labels = [labels[(rgb == 248).all(axis=2)] for rgb, labels in (data[i][:2] for i in range(20))]
    assert set(np.concatenate(labels).tolist()) == {0, IGNORED}  # glass above it, and in it


def test_glass_is_told_by_the_white_of_the_slide(slide: Path) -> None:
    """A white of 130 makes glass of what is brighter than 130 * 10^-0.04 = 118.6: brown (123), but not blue (117)."""
    areas = [("Tumor", box(128, 150, 256, 192)), ("Stroma", box(0, 150, 128, 192))]

    colours = {(90, 90, 170), (170, 120, 80)}

    def unlabelled(**options: Any) -> set[tuple[int, ...]]:
        data = patches([image_of(*areas, path=slide, **options)], mpp=0.5)
        seen = [rgb[labels == IGNORED].tolist() for rgb, labels in (data[i][:2] for i in range(40))]
        return {tuple(pixel) for pixels in seen for pixel in pixels} & colours

    assert unlabelled() == colours
    assert unlabelled(white=(130.0, 130.0, 130.0)) == {(90, 90, 170)}


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


@pytest.mark.parametrize("part", ["train", "validation"])
def test_patches_are_seen_through_the_lens(tmp_path: Path, write_tiff: Callable[..., Path], part: Part) -> None:
    """Stripes of 16 px of 0.5 µm; at 0.5 µm/px through a lens of size 2 they are 8 px wide, in its colours."""
    stripes = (np.arange(256) // 16 % 2).astype(bool)
    image = np.where(stripes[None, :, None], (150, 60, 40), (60, 80, 150)).astype(np.uint8).repeat(256, axis=0)
    path = write_tiff(tmp_path / "stripes.tif", [image])
    areas = [("Tumor" if stripes[x] else "Stroma", box(x, 0, x + 16, 256)) for x in range(0, 256, 16)]
    training = image_of(*areas, path=path, lens=Lens(2.0, lambda rgb: 255 - rgb), part=part)
    frame: dict[str, Any] = {"mpp": 0.5, "size": 64}
    windows = ValidationDataset([training], TissueTask(), **frame, limit=9) if part == "validation" else None
    data = patches([training], **frame) if windows is None else windows
    for index in range(4):
        rgb, labels = data[index][:2]
        runs = np.diff(np.flatnonzero(np.diff(labels[0])))
        if windows is None:  # a window counts one area each
            assert runs.tolist() == [8] * len(runs)
            assert len(runs) >= 6
        tumour = rgb[labels == 1]
        assert np.mean(np.abs(tumour.astype(int) - (105, 195, 215)).max(axis=1) <= 2) > 0.7


@pytest.mark.parametrize(
    ("annotations", "missing"),
    [
        ([("Stroma", box(0, 0, 9, 9))], "no annotation of Tumor on 1"),
        ([("Tumor", box(0, 0, 9, 9))], "no annotation of background on 1"),
        ([("Tumor", box(0, 0, 9, 9)), ("Ignore*", box(0, 0, 9, 9))], "no annotation of Tumor"),
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
    data = patches([image], task=CellTask(), size=48, mpp=0.5, sampling=Sampling({"background": 0.0}))
    for index in range(20):
        assert {1, 3} & set(np.unique(data[index][1]).tolist())


@pytest.mark.parametrize(
    "change",
    [
        "shape",
        "class",
        "mpp",
        "size",
        "seed",
        "task",
        "augmentation",
        "sampling",
        "pixel size",
        "white",
        "stains",
        "lens",
    ],
)
def test_the_description_tells_data_sets_apart(slide: Path, change: str) -> None:
    base = patches([two_sided(slide)]).describe()
    assert patches([two_sided(slide)], length=77).describe() == base
    options: dict[str, Any] = {
        "mpp": {"mpp": 1.1},
        "size": {"size": 33},
        "seed": {"seed": 1},
        "task": {"task": TissueTask(training="Box")},
        "augmentation": {"augmentation": Augmentation()},
        "sampling": {"sampling": Sampling(balance="region")},
    }.get(change, {})
    of_image: dict[str, Any] = {
        "pixel size": {"mpp": (0.3, 0.3)},
        "white": {"white": (250.0, 250.0, 250.0)},
        "stains": {"stains": H_DAB},
        "lens": {"lens": Lens(1.2)},
    }.get(change, {})
    image = two_sided(slide, **of_image)
    if change == "shape":
        image.objects.geometry = image.objects.geometry.translate(1)
    if change == "class":
        image.objects["classification"] = ["Tumor", "Necrosis"]
    assert patches([image], **options).describe() != base


def test_the_description_tells_nuclei_apart(slide: Path) -> None:
    """Two cells with the same outline, but another nucleus; and boundary weights or none."""

    def describe(nucleus: Any, **options: Any) -> dict[str, Any]:
        outer = box(40, 40, 60, 60)
        cells = [("Tumor: Positive", (outer, nucleus)), ("Tumor: Negative", (outer, nucleus))]
        image = image_of(*cells, kind="cell", path=slide)
        area = image_of(("Stroma", box(0, 0, 40, 40)), path=slide)
        return patches([image, area], task=CellTask(), **options).describe()

    base = describe(box(44, 44, 56, 56))
    assert describe(box(44, 44, 56, 56)) == base
    assert describe(box(45, 44, 56, 56)) != base
    assert describe(box(44, 44, 56, 56), boundary=BoundaryWeights()) != base


def test_patches_with_boundary_weights(slide: Path) -> None:
    cells = [("Tumor: Positive", box(100, 100, 116, 130)), ("Tumor: Negative", box(118, 100, 134, 130))]
    image = image_of(*cells, ("Training", box(0, 0, 180, 180)), path=slide)
    data = patches([image], task=CellTask(), mpp=0.5, size=64, boundary=BoundaryWeights())
    near: dict[str, Any] = {"sampling": Sampling({"background": 0.0}), "augmentation": NO_CHANGE}
    turned = patches([image], task=CellTask(), mpp=0.5, size=64, boundary=BoundaryWeights(), **near)
    most = 1 + 10 * np.exp(-1 / 12.5)  # the gap of 2 px is 1 µm wide
    for source in (data, turned):
        for index in range(6):
            rgb, labels, weights = source[index]
            assert (rgb.shape, labels.shape, weights.shape) == ((64, 64, 3), (64, 64), (64, 64))
            assert weights.dtype == np.float32
            assert (weights[np.isin(labels, (1, 3))] == 1).all()
            assert weights.max() <= most + 1e-5
    assert max(turned[index][2].max() for index in range(6)) == pytest.approx(most)
    with pytest.raises(ConfigError, match="boundary weights for tissue"):
        patches([two_sided(slide)], boundary=BoundaryWeights())


def test_scale_changes_how_much_a_patch_shows(slide: Path) -> None:
    image = image_of(("Tumor", box(128, 60, 144, 76)), ("Stroma", box(0, 0, 128, 192)), path=slide)
    task = TissueTask()

    def areas(scale: float) -> list[int]:
        change = replace(NO_CHANGE, scale=scale)
        data = patches(
            [image], size=96, mpp=0.5, augmentation=change, task=task, sampling=Sampling({"background": 0.0})
        )
        found = [int((data[i][1] == 1).sum()) for i in range(15)]
        return [area for area in found if area > 100]

    assert set(areas(0.0)) == {256}
    scaled = areas(0.3)  # sides between 16 / 1.3 and 16 * 1.3
    assert min(scaled) >= 11 * 11
    assert max(scaled) <= 22 * 22
    assert len(set(scaled)) > 3
