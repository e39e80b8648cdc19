from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import shapely
import tifffile
from PIL import Image

from pyhisto.errors import ConfigError, MissingPixelSizeError
from pyhisto.objects import concat_objects, empty_objects, make_objects
from pyhisto.overlay import densest_field, draw_overlay, overlay_png, save_png
from pyhisto.overlay.scalebar import add_scale_bar, bar_length_um
from pyhisto.overlay.strokes import stroke
from pyhisto.slide import Slide

GREY, GREEN = (200, 200, 200), (40, 160, 90)
TUMOUR, POSITIVE, NEGATIVE = (200, 0, 0), (200, 50, 50), (90, 90, 180)


@pytest.fixture
def slide_path(tmp_path: Path) -> Path:
    """Grey, 400 x 300 px, with a green square at x 60 to 140, y 100 to 180; no pixel size."""
    pixels = np.full((300, 400, 3), GREY, dtype=np.uint8)
    pixels[100:180, 60:140] = GREEN
    path = tmp_path / "square.tif"
    tifffile.imwrite(path, pixels, photometric="rgb")
    return path


def square(**kwargs):
    return make_objects([shapely.box(60, 100, 140, 180)], object_type="annotation", classification="Tumor", **kwargs)


def cell(x, y, name, *, nucleus=8.0, around=12.0):
    centre = shapely.Point(x, y)
    return make_objects(
        [centre.buffer(around)], object_type="cell", nucleus=[centre.buffer(nucleus)], classification=name
    )


def is_colour(picture, colour):
    return (picture == np.array(colour, dtype=np.uint8)).all(axis=2)


def test_outline_lies_on_the_edge_of_what_it_surrounds(slide_path):
    with Slide(slide_path) as slide:
        picture = draw_overlay(slide, square(), max_size=(400, 300), scale_bar=False)
    assert picture.shape == (300, 400, 3)
    # Half a line is 1.25 * 0.8 = 1 px: the two pixels on either side of the edge are covered wholly, the next not.
    red = is_colour(picture, TUMOUR)
    assert np.flatnonzero(red[140]).tolist() == [59, 60, 139, 140]
    assert np.flatnonzero(red[:, 100]).tolist() == [99, 100, 179, 180]
    assert is_colour(picture[103:177, 63:137], GREEN).all()
    assert is_colour(picture[:, :56], GREY).all()
    assert is_colour(picture[:, 144:], GREY).all()


def test_outline_has_a_white_casing(slide_path):
    with Slide(slide_path) as slide:
        picture = draw_overlay(slide, square(), max_size=(400, 300), scale_bar=False)
    # Casing of half-width 2.15 * 0.8 = 1.72 px covers 0.72 of the pixel 1.5 px away, at 0.75: 200 + 0.54 * 55.
    assert picture[140, 58].tolist() == [230, 230, 230]


@pytest.mark.parametrize(("max_size", "scale"), [((100, 100), 0.5), ((200, 200), 1.0), ((800, 800), 4.0)])
def test_outline_keeps_its_place_at_every_scale(slide_path, max_size, scale):
    with Slide(slide_path) as slide:
        picture = draw_overlay(slide, square(), bounds=(20, 60, 220, 260), max_size=max_size, scale_bar=False)
    assert picture.shape == (200 * scale, 200 * scale, 3)
    row = np.flatnonzero(is_colour(picture, TUMOUR)[int(80 * scale)])
    left, right = row[row < 80 * scale] + 0.5, row[row >= 80 * scale] + 0.5
    assert left.mean() == 40 * scale
    assert right.mean() == 120 * scale


def test_picture_is_enlarged_four_times_at_most(slide_path):
    with Slide(slide_path) as slide:
        picture = draw_overlay(slide, empty_objects(), bounds=(0, 0, 50, 25), max_size=(5000, 5000), scale_bar=False)
    assert picture.shape == (100, 200, 3)


def test_holes_are_outlined(slide_path):
    ring = shapely.box(200, 50, 300, 150) - shapely.box(230, 80, 270, 120)
    with Slide(slide_path) as slide:
        picture = draw_overlay(
            slide, make_objects([ring], object_type="annotation"), max_size=(400, 300), scale_bar=False
        )
    dark = np.flatnonzero(is_colour(picture, (70, 70, 70))[100])
    assert dark.tolist() == [199, 200, 229, 230, 269, 270, 299, 300]


def test_cells_are_outlined_where_they_are_large(slide_path):
    with Slide(slide_path) as slide:
        picture = draw_overlay(slide, cell(300, 100, "Tumor: Positive"), max_size=(400, 300), scale_bar=False)
    assert tuple(picture[100, 300]) == GREY
    # Pixel (308, 100) lies 0.515 px off the circle (the line is true to 0.1). Casing: 0.45 of white, 225 in all;
    # line: 0.68 + 0.5 - 0.515 = 0.665.
    assert np.abs(picture[100, 308] - np.array([225 - 0.665 * 25, 225 - 0.665 * 175, 225 - 0.665 * 175])).max() < 18
    boundary = picture[100, 312].astype(int)
    assert boundary[1] < 185
    assert boundary[0] == 200
    assert tuple(picture[100, 304]) == GREY


def test_cells_are_dots_where_they_are_small(slide_path):
    cells = concat_objects([cell(300, 100, "Tumor: Positive"), cell(100, 40, "Tumor: Negative")])
    with Slide(slide_path) as slide:
        picture = draw_overlay(slide, cells, max_size=(100, 75), scale_bar=False)
    for (x, y), colour in (((300, 100), POSITIVE), ((100, 40), NEGATIVE)):
        # Opacity 0.9 over grey: 0.9 * colour + 0.1 * 200.
        assert picture[y // 4, x // 4].tolist() == [round(0.9 * part + 20) for part in colour]
    assert is_colour(picture[15:20, 60:70], GREY).all()


def test_positive_cells_are_drawn_over_negative_ones(slide_path):
    both = [cell(300, 100, "Tumor: Positive"), cell(300, 100, "Tumor: Negative")]
    with Slide(slide_path) as slide:
        one = draw_overlay(slide, concat_objects(both), max_size=(100, 75), scale_bar=False)
        other = draw_overlay(slide, concat_objects(both[::-1]), max_size=(100, 75), scale_bar=False)
    assert np.array_equal(one, other)
    assert one[25, 75, 0] > one[25, 75, 2]


def test_point_detections_and_point_annotations_are_dots(slide_path):
    points = [
        make_objects([shapely.Point(200.5, 50.5)], object_type="detection", classification="Negative"),
        make_objects([shapely.MultiPoint([(250.5, 50.5), (300.5, 50.5)])], object_type="annotation"),
    ]
    with Slide(slide_path) as slide:
        picture = draw_overlay(slide, concat_objects(points), max_size=(400, 300), scale_bar=False)
    assert picture[50, 200].tolist() == [101, 101, 182]
    assert picture[50, 250].tolist() == picture[50, 300].tolist() == [70, 70, 70]


def test_class_colours_can_be_given_and_own_colours_win(slide_path):
    blue = (0xFF << 24 | 0x0000FF) - (1 << 32)
    with Slide(slide_path) as slide:
        given = draw_overlay(slide, square(), max_size=(400, 300), colors={"Tumor": (0, 90, 0)}, scale_bar=False)
        own = draw_overlay(
            slide, square(color=blue), max_size=(400, 300), colors={"Tumor": (0, 90, 0)}, scale_bar=False
        )
    assert given[140, 60].tolist() == [0, 90, 0]
    assert own[140, 60].tolist() == [0, 0, 255]


def test_derived_classes_take_the_colour_of_a_part(slide_path):
    objects = make_objects(
        [shapely.box(200, 50, 250, 100), shapely.box(300, 50, 350, 100), shapely.box(200, 200, 250, 250)],
        object_type="annotation",
        classification=["Stroma: Positive", "Stroma: Strange", "Strange"],
    )
    with Slide(slide_path) as slide:
        picture = draw_overlay(slide, objects, max_size=(400, 300), scale_bar=False)
    assert picture[75, 200].tolist() == [200, 50, 50]
    assert picture[75, 300].tolist() == [150, 200, 150]
    assert picture[225, 200].tolist() == [70, 70, 70]


@pytest.mark.parametrize(
    "objects",
    [
        empty_objects(),
        make_objects([shapely.box(60, 100, 140, 180)], object_type="tile", classification="Tumor"),
        make_objects([shapely.box(300, 200, 320, 220)], object_type="annotation"),
        cell(300, 200, "Tumor: Positive"),
    ],
    ids=["none", "tile", "annotation elsewhere", "cell elsewhere"],
)
def test_nothing_to_draw_leaves_the_slide_as_it_is(slide_path, objects):
    with Slide(slide_path) as slide:
        picture = draw_overlay(slide, objects, bounds=(0, 0, 200, 200), max_size=(200, 200), scale_bar=False)
        assert np.array_equal(picture, slide.read_region(0, 0, 200, 200))


def test_scale_bar_is_as_long_as_it_says(slide_path):
    with Slide(slide_path, mpp=(0.5, 0.25)) as slide:
        picture = draw_overlay(slide, empty_objects(), max_size=(400, 300))
        half = draw_overlay(slide, empty_objects(), max_size=(200, 150))
    # A quarter of 200 µm is 50 µm: 100 px of 0.5 µm, or 50 px of 1 µm.
    assert is_colour(picture, (0, 0, 0)).sum(axis=1).max() == 100
    assert is_colour(half, (0, 0, 0)).sum(axis=1).max() == 50
    assert is_colour(picture[:200, :250], GREY).mean() > 0.8


def test_scale_bar_needs_a_pixel_size(slide_path):
    with Slide(slide_path) as slide, pytest.raises(MissingPixelSizeError, match="--mpp"):
        draw_overlay(slide, empty_objects())


@pytest.mark.parametrize(
    ("longest", "length"), [(1.0, 1.0), (1.99, 1.0), (2.0, 2.0), (49.9, 20.0), (50.0, 50.0), (1400.0, 1000.0)]
)
def test_bar_lengths_are_round(longest, length):
    assert bar_length_um(longest) == pytest.approx(length)


@pytest.mark.parametrize("bounds", [(0, 0, 0, 10), (10, 0, 0, 10), (0, 0, float("nan"), 10), (0, 0, float("inf"), 1)])
def test_empty_regions_are_refused(slide_path, bounds):
    with Slide(slide_path, mpp=0.5) as slide, pytest.raises(ConfigError, match="region"):
        draw_overlay(slide, empty_objects(), bounds=bounds)


def test_pictures_without_pixels_are_refused(slide_path):
    with Slide(slide_path, mpp=0.5) as slide, pytest.raises(ConfigError, match="picture"):
        draw_overlay(slide, empty_objects(), max_size=(0, 100))


@pytest.mark.parametrize("radius", [0.7, 2.0, 5.3])
def test_a_dot_covers_the_area_of_its_circle(radius):
    canvas = np.zeros((40, 40, 3), dtype=np.float32)
    stroke(canvas, np.array([[[20.3, 19.6], [20.3, 19.6]]]), (255, 255, 255), radius)
    # The edge falls over one pixel, which adds a twelfth of a pixel squared: the integral of r + 0.5 - d.
    assert canvas[..., 0].sum() / 255 == pytest.approx(np.pi * (radius**2 + 1 / 12), rel=0.06)
    rows, columns = np.mgrid[:40, :40] + 0.5
    weight = canvas[..., 0] / canvas[..., 0].sum()
    assert (columns * weight).sum() == pytest.approx(20.3, abs=0.03)
    assert (rows * weight).sum() == pytest.approx(19.6, abs=0.03)


def test_a_stroke_covers_its_length_times_its_width_once():
    canvas = np.zeros((60, 60, 3), dtype=np.float32)
    line = np.array([[[10.0, 10.0], [40.0, 50.0]]])  # 50 px long
    stroke(canvas, np.concatenate([line, line[:, ::-1]]), (255, 255, 255), 1.5, opacity=0.5)
    assert canvas[..., 1].sum() / 127.5 == pytest.approx(50 * 3 + np.pi * 1.5**2, rel=0.02)
    assert canvas.max() == pytest.approx(127.5)


def test_strokes_may_leave_the_picture():
    canvas = np.zeros((10, 10, 3), dtype=np.float32)
    stroke(canvas, np.array([[[-1e5, 5.0], [1e5, 5.0]], [[50.0, 50.0], [60.0, 60.0]]]), (255, 255, 255), 1.0)
    assert (canvas[[4, 5]] == 255).all()
    assert not canvas[[0, 1, 2, 7, 8, 9]].any()


def dots(points, classification):
    return make_objects([shapely.Point(p) for p in points], object_type="detection", classification=classification)


def cluster(x, y, n, classes):
    """n points on a diagonal 20 px long, their classes in turn."""
    points = [(x + 20 * i / n, y + 20 * i / n) for i in range(n)]
    return dots(points, [classes[i % len(classes)] for i in range(n)])


def test_densest_field_holds_both_classes():
    objects = concat_objects(
        [
            cluster(100, 100, 60, ["Tumor: Negative"]),
            cluster(500, 700, 40, ["Tumor: Positive", "Tumor: Negative"]),
            cluster(900, 200, 20, ["Tumor: Positive", "Tumor: Negative"]),
            cluster(100, 900, 90, ["Stroma"]),
        ]
    )
    x0, y0, x1, y1 = densest_field(objects, 50.0, 0.5)
    assert (x1 - x0, y1 - y0) == (100.0, 100.0)
    assert x0 <= 500 < 519.5 <= x1
    assert y0 <= 700 < 719.5 <= y1


def test_densest_field_falls_back_to_the_most_cells():
    objects = concat_objects([cluster(100, 100, 60, ["Tumor: Negative"]), cluster(500, 700, 40, ["Tumor: Negative"])])
    x0, y0, x1, y1 = densest_field(objects, 50.0, (0.5, 0.25))
    assert (x1 - x0, y1 - y0) == (100.0, 200.0)
    assert x0 <= 100 < 119.5 <= x1
    assert y0 <= 100 < 119.5 <= y1


def test_densest_field_stays_within_the_cells_and_is_centred_on_few():
    spread = dots([(0, 0), (1000, 1000), (990, 1000), (1000, 990)], "Positive")
    x0, y0, x1, y1 = densest_field(spread, 100.0, 1.0)
    assert (x0, y0) == (900.0, 900.0)
    assert (x1, y1) == (1000.0, 1000.0)
    assert densest_field(dots([(50, 60), (70, 60)], "Negative"), 100.0, 1.0) == (10.0, 10.0, 110.0, 110.0)


def test_densest_field_of_no_cells_is_none():
    assert densest_field(empty_objects(), 100.0, 0.5) is None
    assert densest_field(square(), 100.0, 0.5) is None


@pytest.mark.parametrize(("size_um", "mpp"), [(0.0, 0.5), (100.0, 0.0), (100.0, (0.5, -1.0)), (float("nan"), 0.5)])
def test_densest_field_needs_positive_sizes(size_um, mpp):
    with pytest.raises(ConfigError, match="field"):
        densest_field(square(), size_um, mpp)


def test_png_bytes_and_files_hold_the_picture(slide_path, tmp_path):
    with Slide(slide_path, mpp=0.5) as slide:
        picture = draw_overlay(slide, square(), max_size=(400, 300))
        data = overlay_png(slide, square(), max_size=(400, 300))
    target = tmp_path / "out" / "picture.png"
    target.parent.mkdir()
    target.write_bytes(b"old")
    save_png(target, picture)
    assert np.array_equal(np.asarray(Image.open(target)), picture)
    assert target.read_bytes() == data
    assert [path.name for path in target.parent.iterdir()] == ["picture.png"]


def test_a_file_that_cannot_be_replaced_stays(tmp_path):
    target = tmp_path / "picture.png"
    target.mkdir()
    (target / "kept").write_bytes(b"old")
    with pytest.raises(OSError, match="directory"):
        save_png(target, np.zeros((2, 2, 3), dtype=np.uint8))
    assert [path.name for path in tmp_path.iterdir()] == ["picture.png"]
    assert (target / "kept").read_bytes() == b"old"


@pytest.mark.parametrize("side", [80, 160, 400, 1200])
def test_scale_bar_leaves_a_small_picture_to_be_seen(side):
    grey = np.full((side, side, 3), 200, np.uint8)
    picture = add_scale_bar(grey, 1.0)
    changed = (picture != grey).any(axis=-1)
    assert 0.002 < changed.mean() < 0.12
    black = np.flatnonzero((picture == 0).all(axis=-1).any(axis=1))
    longest = max(len(np.flatnonzero((picture[row] == 0).all(axis=-1))) for row in black)
    assert longest == {80: 20, 160: 20, 400: 100, 1200: 200}[side]  # a quarter of the side, as 1, 2 or 5 times a power
