"""Slide pixels and the frame that QuPath shows; QuPath's stains and pyhisto's."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shapely
import tifffile
from frame_cases import (
    BIO_FORMATS,
    OPENSLIDE,
    affine,
    cropped,
    entry_of,
    flipped,
    random_nest,
    rotated,
    sparse,
    write_scn,
)

from pyhisto.errors import UnsupportedSlideError
from pyhisto.maps import Maps
from pyhisto.objects import make_objects
from pyhisto.stain import H_DAB as PYHISTO_H_DAB
from qupath_ext.errors import FormatError, ProjectError
from qupath_ext.frames import (
    image_area,
    is_default_stains,
    open_slide,
    to_entry_frame,
    to_entry_maps,
    to_slide_frame,
    to_stain_vectors,
    to_stains,
)
from qupath_ext.native.builderframe import builder_size
from qupath_ext.native.builders import file_uri, make_builder
from qupath_ext.project import H_DAB, H_E, ImageEntry, open_project
from qupath_ext.workflows.trainingdata import Source, training_images

WIDTH, HEIGHT = 128, 96


def leaf_of(slide: Path, **changes: Any) -> dict[str, Any]:
    """Return the builder of a slide as this program writes it; None takes a key away."""
    builder = {**make_builder(slide, None)[0], **changes}
    return {key: value for key, value in builder.items() if value is not None}


def cell() -> Any:
    return make_objects(
        [shapely.box(10, 20, 30, 50)], object_type="cell", nucleus=[shapely.box(12, 24, 20, 40)], name="c"
    )


FRAMES = [
    # clockwise by 90°: (x, y) -> (H - y, x)
    pytest.param(lambda leaf: rotated(90, leaf), (46, 10, 76, 30), id="90"),
    pytest.param(lambda leaf: rotated(180, leaf), (98, 46, 118, 76), id="180"),
    # (x, y) -> (y, W - x)
    pytest.param(lambda leaf: rotated(270, leaf), (20, 98, 50, 118), id="270"),
    pytest.param(lambda leaf: flipped("HORIZONTAL", leaf), (98, 20, 118, 50), id="mirrored"),
    pytest.param(lambda leaf: cropped(8, 16, 64, 64, leaf), (2, 4, 22, 34), id="cropped"),
    # first cropped, then turned inside its 64 x 60 px: (x, y) -> (60 - (y - 16), x - 8)
    pytest.param(lambda leaf: rotated(90, cropped(8, 16, 64, 60, leaf)), (26, 2, 56, 22), id="cropped and turned"),
    # (x, y) -> (2 x + 1, 3 y - 2)
    pytest.param(lambda leaf: affine((2, 0, 1, 0, 3, -2), leaf), (21, 58, 61, 148), id="affine"),
]


@pytest.mark.parametrize(("wrap", "bounds"), FRAMES)
def test_there_and_back(tmp_path: Path, gradient_slide: Path, wrap: Any, bounds: tuple[float, ...]) -> None:
    entry = entry_of(tmp_path, wrap(leaf_of(gradient_slide)))
    shown = to_entry_frame(cell(), entry)
    assert shown.geometry.iloc[0].bounds == pytest.approx(bounds)
    assert shown.geometry.iloc[0].covers(shown["nucleus"].iloc[0])
    scale = shown.geometry.iloc[0].area / cell().geometry.iloc[0].area
    assert shown["nucleus"].iloc[0].area == pytest.approx(8 * 16 * scale)
    back = to_slide_frame(shown, entry)
    assert back.geometry.iloc[0].equals_exact(cell().geometry.iloc[0], 1e-9, normalize=True)
    assert back["nucleus"].iloc[0].equals_exact(cell()["nucleus"].iloc[0], 1e-9, normalize=True)
    assert back["name"].iloc[0] == "c"


def test_missing_geometry_stays_missing(tmp_path: Path, gradient_slide: Path) -> None:
    entry = entry_of(tmp_path, rotated(90, leaf_of(gradient_slide)))
    table = cell()
    table["nucleus"] = np.array([None], dtype=object)
    assert to_entry_frame(table, entry)["nucleus"].iloc[0] is None


def test_the_usual_frame_changes_nothing(tmp_path: Path, gradient_slide: Path) -> None:
    entry = entry_of(tmp_path, leaf_of(gradient_slide))
    table = cell()
    assert to_entry_frame(table, entry) is table
    assert to_slide_frame(table, entry).geometry.iloc[0].bounds == (10, 20, 30, 50)
    with open_slide(entry) as slide:
        assert image_area(entry, slide).equals(shapely.box(0, 0, WIDTH, HEIGHT))


def test_an_unknown_frame_is_refused(tmp_path: Path, gradient_slide: Path) -> None:
    entry = entry_of(tmp_path, {"builderType": "tomorrow", "builder": leaf_of(gradient_slide)})
    with pytest.raises(FormatError, match="tomorrow"):
        to_entry_frame(cell(), entry)


# ---------------------------------------------------------------------- against pixels moved by numpy
@pytest.fixture(scope="module")
def unique(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A slide of 75 x 52 px in which no two pixels are alike; its file, and its pixels (H, W, 3)."""
    order = np.random.default_rng(1).permutation(1 << 16)[: 75 * 52].reshape(52, 75)
    pixels = np.stack([order >> 8, order & 255, np.full_like(order, 9)], axis=-1).astype(np.uint8)
    path = tmp_path_factory.mktemp("unique") / "unique.tif"
    tifffile.imwrite(path, pixels, photometric="rgb", rowsperstrip=16, metadata=None)
    return path, pixels


def shown_by(entry: ImageEntry) -> tuple[Any, int]:
    """Put the slide's pixels where the frame says: (H, W, 3), black outside the image's area; and how many they are."""
    a, b, d, e, xoff, yoff = entry.slide_frame()
    with open_slide(entry) as slide:
        area, whole = image_area(entry, slide), slide.read_region(0, 0, *slide.dimensions)
        width, height = (int(side) for side in builder_size(entry.server_builder, lambda: slide.dimensions))
    y, x = np.mgrid[0 : whole.shape[0], 0 : whole.shape[1]]
    inside = shapely.contains_xy(area, x + 0.5, y + 0.5)
    column = np.floor(a * (x + 0.5) + b * (y + 0.5) + xoff).astype(int)[inside]
    row = np.floor(d * (x + 0.5) + e * (y + 0.5) + yoff).astype(int)[inside]
    out = np.zeros((height, width, 3), np.uint8)
    out[row, column] = whole[inside]
    return out, len(row)


@pytest.mark.parametrize("named", [True, False], ids=["size in the builder", "size from the slide"])
@pytest.mark.parametrize("seed", range(40))
def test_pixels_are_where_numpy_puts_them(tmp_path: Path, unique: tuple[Path, Any], seed: int, named: bool) -> None:
    path, pixels = unique
    leaf = leaf_of(path) if named else leaf_of(path, metadata=None)
    builder, expected = random_nest(seed, leaf, pixels, "rfcas")
    found, count = shown_by(entry_of(tmp_path, builder))
    assert count > 20
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("args", [[], ["--no-crop"]], ids=["bounds", "no crop"])
def test_bounds_of_a_turned_slide(tmp_path: Path, unique: tuple[Path, Any], args: list[str]) -> None:
    _, pixels = unique
    path = tmp_path / "bounds.scn"
    write_scn(path, pixels, (200, 150), (31, 17))
    leaf = {"builderType": "uri", "providerClassName": OPENSLIDE, "uri": file_uri(path), "args": args}
    whole = np.full((150, 200, 3), 255, np.uint8)
    whole[17 : 17 + 52, 31 : 31 + 75] = pixels
    shown = whole if args else pixels
    for turns in range(4):
        found, _ = shown_by(entry_of(tmp_path, rotated(90 * turns, leaf)))
        np.testing.assert_array_equal(found, np.rot90(shown, -turns))


def test_one_of_several_images_of_a_file(tmp_path: Path, unique: tuple[Path, Any]) -> None:
    _, pixels = unique
    path = tmp_path / "two.ome.tif"
    second = np.ascontiguousarray(pixels[5:45, 3:60])
    with tifffile.TiffWriter(path, ome=True) as tiff:
        tiff.write(pixels, photometric="rgb", metadata={"PhysicalSizeX": 0.5, "PhysicalSizeY": 0.25})
        tiff.write(second, photometric="rgb", metadata={"PhysicalSizeX": 0.3, "PhysicalSizeY": 0.7})
    leaf = {"builderType": "uri", "providerClassName": BIO_FORMATS, "uri": file_uri(path), "args": ["--series", "1"]}
    entry = entry_of(tmp_path, rotated(90, leaf))
    np.testing.assert_array_equal(shown_by(entry)[0], np.rot90(second, -1))
    with open_slide(entry) as slide:
        assert slide.mpp == pytest.approx((0.3, 0.7))
    project = open_project(tmp_path, backend="native")
    (image,) = training_images([Source(project, project.entries[0])])
    assert image.series == 1
    with pytest.raises(UnsupportedSlideError, match="series 2"):
        open_slide(entry_of(tmp_path, {**leaf, "args": ["--series", "2"]}))


def test_another_slide_in_the_place_of_the_image_is_refused(tmp_path: Path, unique: tuple[Path, Any]) -> None:
    path, pixels = unique
    leaf = leaf_of(path)
    other = tmp_path / "other.tif"
    tifffile.imwrite(other, np.ascontiguousarray(pixels[:50]), photometric="rgb", metadata=None)
    with pytest.raises(ProjectError, match=r"other.tif is 75 x 50 px; expected 75 x 52 px"):
        open_slide(entry_of(tmp_path, {**leaf, "uri": file_uri(other)}))


# ---------------------------------------------------------------------- the area that an image shows
@pytest.mark.parametrize(
    ("wrap", "area"),
    [
        (lambda leaf: rotated(270, leaf), shapely.box(0, 0, 128, 96)),
        (lambda leaf: cropped(8, 16, 64, 60, leaf), shapely.box(8, 16, 72, 76)),
        # 60 x 64 px after the turn; its columns 10 to 40 are the rows 16 + 60 - 40 = 36 to 66 of the slide
        (lambda leaf: cropped(10, 5, 30, 20, rotated(90, cropped(8, 16, 64, 60, leaf))), shapely.box(13, 36, 33, 66)),
        (lambda leaf: cropped(100, 90, 64, 60, leaf), shapely.box(100, 90, 128, 96)),
        # moved left by 20: what is there has no place, and the right is empty
        (lambda leaf: affine((1, 0, -20, 0, 1, 0), leaf), shapely.box(20, 0, 128, 96)),
        (lambda leaf: sparse((500, 600, 100, 50, leaf)), shapely.box(0, 0, 100, 50)),
        # a square turned by 45° about its corner: all right of the new y axis
        (
            lambda leaf: affine((0.5**0.5, -(0.5**0.5), 0, 0.5**0.5, 0.5**0.5, 0), cropped(0, 0, 90, 90, leaf)),
            shapely.Polygon([(0, 0), (90, 0), (90, 90)]),
        ),
    ],
)
def test_area_of_an_image(tmp_path: Path, gradient_slide: Path, wrap: Any, area: Any) -> None:
    entry = entry_of(tmp_path, wrap(leaf_of(gradient_slide)))
    with open_slide(entry) as slide:
        found = image_area(entry, slide)
    assert found.symmetric_difference(area).area < 1e-6 * area.area


def test_an_image_of_nothing_is_refused(tmp_path: Path, gradient_slide: Path) -> None:
    entry = entry_of(tmp_path, cropped(500, 0, 10, 10, leaf_of(gradient_slide)))
    with open_slide(entry) as slide, pytest.raises(ProjectError, match="shows nothing of its slide"):
        image_area(entry, slide)


# ---------------------------------------------------------------------- pixel size
def test_pixel_size_of_option_project_and_file(tmp_path: Path, gradient_slide: Path) -> None:
    plain = entry_of(tmp_path, leaf_of(gradient_slide))
    with open_slide(plain) as slide:
        assert slide.mpp == (0.5, 0.5)
    told = entry_of(tmp_path, make_builder(gradient_slide, (0.3, 0.4))[0])
    with open_slide(told) as slide:
        assert slide.mpp == (0.3, 0.4)
    with open_slide(told, 0.7) as slide:
        assert slide.mpp == (0.7, 0.7)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda leaf: rotated(90, leaf),
        lambda leaf: rotated(180, leaf),
        lambda leaf: flipped("BOTH", leaf),
        lambda leaf: rotated(90, cropped(1, 2, 30, 40, leaf)),
        lambda leaf: affine((3, 0, 0, 0, 2, 0), leaf),
        lambda leaf: affine((0, -2, 200, 2, 0, 0), leaf),
        lambda leaf: affine((1, 0.5, 0, 0, 1, 0), leaf),
    ],
)
def test_pixel_size_of_a_turned_image_is_that_of_the_slide(tmp_path: Path, stretched_slide: Path, wrap: Any) -> None:
    entry = entry_of(tmp_path, wrap(leaf_of(stretched_slide)))
    with open_slide(entry) as slide:
        assert slide.mpp == pytest.approx((0.5, 0.25))


def test_pixel_size_given_to_a_turned_image(tmp_path: Path, stretched_slide: Path) -> None:
    given = make_builder(stretched_slide, (0.3, 0.4))[0]["metadata"]
    entry = entry_of(tmp_path, {**rotated(90, leaf_of(stretched_slide)), "metadata": given})
    assert entry.mpp == (0.3, 0.4)
    with open_slide(entry) as slide:  # along the axes of the slide
        assert slide.mpp == pytest.approx((0.4, 0.3))
    # one pixel down the slide is (0.5, 1) px of the sheared image: 0.15 µm across and 0.4 µm down
    entry = entry_of(tmp_path, {**affine((1, 0.5, 0, 0, 1, 0), leaf_of(stretched_slide)), "metadata": given})
    with open_slide(entry) as slide:
        assert slide.mpp == pytest.approx((0.3, (0.15**2 + 0.4**2) ** 0.5))


def test_stains_there_and_back() -> None:
    vectors = to_stain_vectors(H_DAB)
    again = to_stains(vectors, H_DAB.name)
    assert again.background == H_DAB.background
    np.testing.assert_allclose([again.stain1, again.stain2], [H_DAB.stain1, H_DAB.stain2], atol=1e-5)
    assert vectors.names[:2] == ("Hematoxylin", "DAB")
    np.testing.assert_allclose(vectors.vectors[:2], PYHISTO_H_DAB.vectors[:2], atol=1e-3)


def test_default_stains_are_told_from_adjusted_ones() -> None:
    assert is_default_stains(None)
    assert is_default_stains(H_DAB)
    assert is_default_stains(H_E)
    red, green, blue = H_DAB.stain1
    assert not is_default_stains(dataclasses.replace(H_DAB, stain1=(red + 0.05, green, blue)))
    red, green, blue = H_DAB.background
    assert not is_default_stains(dataclasses.replace(H_DAB, background=(red - 20, green, blue)))


def test_maps_of_an_image_that_is_turned_and_whose_pixels_are_not_square() -> None:
    class Turned:  # by a quarter clockwise: the slide's 30 x 20 px are 20 x 30
        def slide_frame(self) -> tuple[float, ...]:
            return (0.0, -1.0, 1.0, 0.0, 20.0, 0.0)

        def size(self) -> tuple[int, int]:
            return 20, 30

    values = np.arange(12, dtype=np.float32).reshape(1, 4, 3)
    maps = Maps(("a",), values, (0.0, 0.0), (10.0, 5.0), 2.5)  # of 0.25 x 0.5 µm pixels
    turned = to_entry_maps(maps, Turned(), (0.25, 0.5))  # type: ignore[arg-type]
    assert turned.scale == (5.0, 10.0)
    assert turned.values[0].tolist() == np.rot90(values[0], -1).tolist()
