"""Slides: every pixel from where it says it is, at every level and resolution."""

from __future__ import annotations

import contextlib
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
import tifffile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from pyhisto.errors import MissingPixelSizeError, PyhistoError, SlideError, UnsupportedSlideError
from pyhisto.slide import Slide

Pixels = np.ndarray[Any, Any]
WIDTH, HEIGHT = 128, 96


def expected(x: float, y: float, width: int, height: int, step: tuple[float, float]) -> tuple[Pixels, Pixels]:
    """Red and green that a gradient slide has at the centres of the pixels asked for: 2 x - 1 and 2 y - 1."""
    across = x + (np.arange(width) + 0.5) * step[0]
    down = y + (np.arange(height) + 0.5) * step[1]
    return np.broadcast_to(2 * across - 1, (height, width)), np.broadcast_to((2 * down - 1)[:, None], (height, width))


def assert_gradient(rgb: Pixels, x: float, y: float, step: tuple[float, float], tolerance: float = 0.501) -> None:
    red, green = expected(x, y, rgb.shape[1], rgb.shape[0], step)
    # half a grey level for the rounding of the result; a shift of half a slide pixel would be a whole grey level
    assert np.abs(rgb[..., 0] - red).max() <= tolerance
    assert np.abs(rgb[..., 1] - green).max() <= tolerance
    assert (rgb[..., 2] == 7).all()


def test_what_is_known(gradient_slide: Path) -> None:
    with Slide(gradient_slide) as slide:
        assert slide.dimensions == (128, 96)
        assert slide.level_dimensions == ((128, 96), (64, 48), (32, 24))
        assert slide.level_downsamples == (1.0, 2.0, 4.0)
        assert slide.mpp == pytest.approx((0.5, 0.5))
        assert (slide.reader, slide.vendor, slide.mpp_source) == ("openslide", "generic-tiff", "file")
        assert slide.magnification is None
        assert repr(slide) == "Slide('gradient.tif', 128 x 96 px, openslide)"


def test_level_0_as_it_is(gradient_slide: Path) -> None:
    with Slide(gradient_slide) as slide:
        rgb = slide.read_region(13, 29, 40, 21)
    assert rgb.dtype == np.uint8
    assert rgb.shape == (21, 40, 3)
    np.testing.assert_array_equal(rgb, tifffile.imread(gradient_slide)[29:50, 13:53])


@pytest.mark.parametrize("level", [1, 2])
def test_every_level_exactly(gradient_slide: Path, level: int) -> None:
    stored = tifffile.imread(gradient_slide, key=level)
    step = 2**level
    with Slide(gradient_slide) as slide:
        whole = slide.read_region(0, 0, WIDTH // step, HEIGHT // step, mpp=0.5 * step)
        part = slide.read_region(5 * step, 3 * step, 7, 4, mpp=0.5 * step)
    np.testing.assert_array_equal(whole, stored)
    np.testing.assert_array_equal(part, stored[3:7, 5:12])


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    mpp=st.floats(0.2, 3.0),
    x=st.floats(20, 60, allow_nan=False),
    y=st.floats(20, 40, allow_nan=False),
    width=st.integers(1, 12),
    height=st.integers(1, 9),
)
def test_any_place_at_any_resolution(
    gradient_slide: Path, mpp: float, x: float, y: float, width: int, height: int
) -> None:
    step = mpp / 0.5
    # a triangle filter reaches one target pixel beyond the region; keep it inside the slide
    if x + (width + 1) * step > WIDTH - 8 or y + (height + 1) * step > HEIGHT - 8 or min(x, y) < 2 * step:
        return
    with Slide(gradient_slide) as slide:
        rgb = slide.read_region(x, y, width, height, mpp=mpp)
    assert rgb.shape == (height, width, 3)
    # A triangle filter that is sampled at whole pixels is off by up to 0.087 pixels of the level that is read.
    level = 4 if step * 1.01 >= 4 else 2 if step * 1.01 >= 2 else 1
    assert_gradient(rgb, x, y, (step, step), tolerance=0.501 + 0.18 * level)


def test_pixels_that_are_not_square(stretched_slide: Path) -> None:
    with Slide(stretched_slide) as slide:
        assert slide.mpp == pytest.approx((0.5, 0.25))
        assert slide.mean_mpp == pytest.approx(0.375)
        rgb = slide.read_region(20, 16, 10, 12, mpp=1.0)  # 2 slide px across and 4 down to a pixel
    assert_gradient(rgb, 20, 16, (2.0, 4.0))
    # red of the first pixel: mean of columns 20 and 21 is 41; green: mean of rows 16 to 19 is 35 (both linear)
    assert rgb[0, 0].tolist() == [41, 35, 7]
    assert (rgb[0, 1] - rgb[0, 0]).tolist() == [4, 0, 0]
    assert (rgb[1, 0] - rgb[0, 0]).tolist() == [0, 8, 0]


def test_tile_is_a_square_region(gradient_slide: Path) -> None:
    with Slide(gradient_slide) as slide:
        tile = slide.read_tile(20.5, 16.25, tile_size=12, mpp=1.5)
        np.testing.assert_array_equal(tile, slide.read_region(20.5, 16.25, 12, 12, mpp=1.5))
    assert_gradient(tile, 20.5, 16.25, (3.0, 3.0))


@pytest.mark.parametrize(
    ("mpp", "level"), [(0.25, 0), (0.5, 0), (0.995, 1), (0.98, 0), (1.0, 1), (1.9, 1), (1.99, 2), (2.0, 2), (8.0, 2)]
)
def test_the_coarsest_level_that_is_fine_enough(coloured_levels_slide: Path, mpp: float, level: int) -> None:
    with Slide(coloured_levels_slide) as slide:
        rgb = slide.read_region(40, 40, 4, 4, mpp=mpp)
    colour = [0, 0, 0]
    colour[level] = 200
    assert rgb[1, 1].tolist() == colour
    assert (rgb == rgb[0, 0]).all() or mpp == 8.0


def test_the_finer_axis_chooses_the_level(coloured_levels_slide: Path) -> None:
    with Slide(coloured_levels_slide, mpp=(0.5, 1.0)) as slide:
        rgb = slide.read_region(40, 40, 4, 4, mpp=2.0)  # downsample 4 across, 2 down
    assert rgb[0, 0].tolist() == [0, 200, 0]


def test_outside_is_white(gradient_slide: Path) -> None:
    with Slide(gradient_slide) as slide:
        rgb = slide.read_region(-3, -2, 8, 6)
        far = slide.read_region(1000, -500, 5, 4, mpp=1.0)
        corner = slide.read_region(WIDTH - 4, HEIGHT - 6, 4, 6, mpp=1.0)
    assert (rgb[:2] == 255).all()
    assert (rgb[:, :3] == 255).all()
    assert rgb[2, 3].tolist() == [0, 0, 7]
    assert rgb[5, 7].tolist() == [8, 6, 7]
    assert far.shape == (4, 5, 3)
    assert (far == 255).all()
    assert (corner[:3, :2, 2] == 7).all()
    assert (corner[3:] == 255).all()
    assert (corner[:, 2:] == 255).all()


def test_the_border_of_the_slide_stays_clean_when_shrunk(gradient_slide: Path) -> None:
    with Slide(gradient_slide) as slide:
        rgb = slide.read_region(0, 0, 42, 32, mpp=1.5)  # 126 x 96 slide px
    assert (rgb[..., 2] == 7).all()  # white would show


def test_thumbnail(gradient_slide: Path) -> None:
    with Slide(gradient_slide) as slide:
        assert slide.thumbnail((64, 100)).shape == (48, 64, 3)
        assert slide.thumbnail((1000, 24)).shape == (24, 32, 3)
        np.testing.assert_array_equal(slide.thumbnail((1000, 1000)), tifffile.imread(gradient_slide))
        np.testing.assert_array_equal(slide.thumbnail((32, 24)), tifffile.imread(gradient_slide, key=2))


def test_levels_whose_size_was_rounded(tmp_path: Path, write_tiff: Callable[..., Path]) -> None:
    """Level 1 of an odd size is not exactly half; OpenSlide counts with its mean downsample."""
    y, x = np.mgrid[0:91, 0:125]
    full = np.stack([2 * x, 2 * y, np.full_like(x, 7)], axis=-1).astype(np.uint8)
    half = full[:90:2, :124:2] + np.array([1, 1, 0], dtype=np.uint8)
    path = write_tiff(tmp_path / "odd.tif", [full, half])
    with Slide(path) as slide:
        rgb = slide._read_level(1, 40, 30, 20, 14)
    # half a level-0 pixel (half a grey level at 2 levels a pixel) at most, and the rounding
    assert np.abs(rgb[..., 0].astype(int) - half[30:44, 40:60, 0]).max() <= 1
    assert np.abs(rgb[..., 1].astype(int) - half[30:44, 40:60, 1]).max() <= 1


@pytest.mark.parametrize(
    ("size", "levels"),
    [((331, 287), 1), ((331, 287), 2), ((1031, 1287), 3), ((640, 640), 2)],
    ids=["flat", "odd", "odd, three levels", "even"],
)
@pytest.mark.parametrize("mpp", [0.3, 0.5, 0.5003, 0.7, 1.0, 1.0009, 1.1, 2.0, 3.7])
def test_a_pixel_is_the_same_whatever_else_is_read(
    tmp_path: Path, write_tiff: Callable[..., Path], size: tuple[int, int], levels: int, mpp: float
) -> None:
    """A network's tiles are cut anywhere; what they see of a place must not depend on where."""
    noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    stored = [
        np.ascontiguousarray(noise[: size[1] // 2**k * 2**k : 2**k, : size[0] // 2**k * 2**k : 2**k])
        for k in range(levels)
    ]
    step = mpp / 0.5
    width, height = int(size[0] / step), int(size[1] / step)
    with Slide(write_tiff(tmp_path / "noise.tif", stored)) as slide:
        whole = slide.read_downsampled(0, 0, width, height, (step, step))
        assert whole.std() > 5
        for x, y in ((1, 2), (width // 3, height // 4), (width // 2 + 1, height // 2), (width - 9, height - 7)):
            part = slide.read_downsampled(x * step, y * step, width - x, height - y, (step, step))
            np.testing.assert_array_equal(part, whole[y:, x:])
            part = slide.read_downsampled(x * step, y * step, 5, 4, (step, step))
            np.testing.assert_array_equal(part, whole[y : y + 4, x : x + 5])


@pytest.mark.parametrize("step", [0.4, 0.8, 1.002, 1.5, 2.2017, 3.0, 7.3])
def test_resampled_as_pillow_does(tmp_path: Path, write_tiff: Callable[..., Path], step: float) -> None:
    noise = np.random.default_rng(1).integers(0, 256, (120, 150, 3), dtype=np.uint8)
    width, height = int(100 / step), int(80 / step)
    box = (20.3, 17.6, 20.3 + width * step, 17.6 + height * step)
    theirs = Image.fromarray(noise).resize((width, height), Image.Resampling.BILINEAR, box=box)
    with Slide(write_tiff(tmp_path / "noise.tif", [noise])) as slide:
        ours = slide.read_downsampled(20.3, 17.6, width, height, (step, step))
    # Pillow rounds twice, ours once
    assert np.abs(ours.astype(int) - np.asarray(theirs)).max() <= 1


def test_missing_pixel_size_names_the_option(tmp_path: Path, write_tiff: Callable[..., Path]) -> None:
    path = write_tiff(tmp_path / "bare.tif", [np.zeros((32, 48, 3), dtype=np.uint8)], mpp=None)
    with Slide(path) as slide:
        for use in (lambda: slide.mpp, lambda: slide.mean_mpp, lambda: slide.read_region(0, 0, 2, 2, mpp=0.5)):
            with pytest.raises(MissingPixelSizeError, match=r"bare\.tif has no pixel size.*--mpp"):
                use()
        assert slide.read_region(0, 0, 2, 2).shape == (2, 2, 3)  # level 0 as it is needs none


def test_screen_resolution_is_no_pixel_size(tmp_path: Path, write_tiff: Callable[..., Path]) -> None:
    path = write_tiff(tmp_path / "72.tif", [np.zeros((32, 48, 3), dtype=np.uint8)], mpp=(352.8, 352.8))
    with Slide(path) as slide, pytest.raises(MissingPixelSizeError, match=r"says 352\.8 x 352\.8 µm/px.*--mpp"):
        _ = slide.mpp
    with Slide(path, mpp=0.25) as slide:
        assert slide.mpp == (0.25, 0.25)
        assert slide.mpp_source == "option"


def test_override_decides_how_pixels_are_read(gradient_slide: Path) -> None:
    with Slide(gradient_slide, mpp=(1.0, 2.0)) as slide:
        assert slide.mpp == (1.0, 2.0)
        rgb = slide.read_region(20, 16, 6, 5, mpp=4.0)
    assert_gradient(rgb, 20, 16, (4.0, 2.0))


@pytest.mark.parametrize("mpp", [0.0, -0.5, 352.8, float("nan"), (0.5, 0.0)])
def test_impossible_override_is_refused(gradient_slide: Path, mpp: Any) -> None:
    with pytest.raises(MissingPixelSizeError, match="--mpp"):
        Slide(gradient_slide, mpp=mpp)


@pytest.mark.parametrize("size", [(0, 5), (5, -1)])
def test_empty_regions_are_refused(gradient_slide: Path, size: tuple[int, int]) -> None:
    with Slide(gradient_slide) as slide, pytest.raises(SlideError, match="at least 1 x 1"):
        slide.read_region(0, 0, *size)


@pytest.fixture
def bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make OpenSlide report ``openslide.bounds-*`` (8, 12) to (88, 72) for every slide."""
    import openslide

    read = openslide.OpenSlide.properties.fget  # type: ignore[attr-defined]
    own = {"x": "8", "y": "12", "width": "80", "height": "60"}

    def properties(slide: Any) -> dict[str, str]:
        return {**read(slide), **{f"openslide.bounds-{key}": value for key, value in own.items()}}

    monkeypatch.setattr(openslide.OpenSlide, "properties", property(properties))


@pytest.mark.usefixtures("bounded")
def test_bounds_are_the_slide(gradient_slide: Path) -> None:
    with Slide(gradient_slide) as slide:
        assert slide.dimensions == (80, 60)
        assert slide.level_dimensions[0] == (128, 96)
        rgb = slide.read_region(3, 5, 6, 4)
        border = slide.read_region(-2, -1, 84, 63)
        coarse = slide.read_region(4, 8, 6, 5, mpp=2.0)
        shrunk = slide.read_region(8, 8, 6, 5, mpp=1.5)
    assert_gradient(rgb, 3 + 8, 5 + 12, (1.0, 1.0))
    assert (border[0] == 255).all()
    assert (border[:, :2] == 255).all()
    assert (border[:, 82:] == 255).all()
    assert (border[61:] == 255).all()
    assert (border[1:61, 2:82, 2] == 7).all()
    assert_gradient(coarse, 4 + 8, 8 + 12, (4.0, 4.0))
    assert_gradient(shrunk, 8 + 8, 8 + 12, (3.0, 3.0))


@pytest.mark.usefixtures("bounded")
def test_without_cropping_the_whole_scan_is_the_slide(gradient_slide: Path) -> None:
    with Slide(gradient_slide, crop_to_bounds=False) as slide:
        assert slide.dimensions == (128, 96)
        assert_gradient(slide.read_region(3, 5, 6, 4), 3, 5, (1.0, 1.0))


def test_no_such_file(tmp_path: Path) -> None:
    with pytest.raises(SlideError, match="does not exist"):
        Slide(tmp_path / "no.svs")
    with pytest.raises(SlideError, match="does not exist"):
        Slide(tmp_path)


def test_a_text_file_is_no_slide(tmp_path: Path) -> None:
    path = tmp_path / "notes.svs"
    path.write_text("no pixels\n" * 100)
    with pytest.raises(UnsupportedSlideError, match=r"notes\.svs cannot be read"):
        Slide(path)


@pytest.mark.parametrize("share", [0.001, 0.01, 0.05, 0.2, 0.4, 0.6, 0.8, 0.95])
def test_a_truncated_slide_fails_or_gives_the_right_pixels(gradient_slide: Path, tmp_path: Path, share: float) -> None:
    data = gradient_slide.read_bytes()
    path = tmp_path / "cut.tif"
    path.write_bytes(data[: int(len(data) * share)])
    if share < 0.5:  # level 0 lies in the first part of the file
        with pytest.raises(SlideError, match=r"cut\.tif"), Slide(path) as slide:
            slide.read_region(0, 0, WIDTH, HEIGHT)
        return
    with contextlib.suppress(SlideError), Slide(path) as slide:
        np.testing.assert_array_equal(slide.read_region(0, 0, WIDTH, HEIGHT), tifffile.imread(gradient_slide))


@pytest.mark.parametrize(
    "name",
    [
        "boxes-no-icc.png",
        "boxes.png",
        "unopenable.tiff",
        "unreadable.svs",
        "small.svs",
        "boxes.tiff",
        "😐.svs",
        "😐.png",
    ],
)
def test_odd_files_read_or_fail_in_one_line(shared_dir: Path, name: str) -> None:
    path = shared_dir / "data" / "broken" / name
    readable = {"small.svs", "boxes.tiff", "😐.svs"}
    if name in readable:
        with Slide(path) as slide:
            rgb = slide.read_region(0, 0, *slide.dimensions)
        assert rgb.shape == (slide.dimensions[1], slide.dimensions[0], 3)
        return
    with pytest.raises(SlideError) as caught, Slide(path) as slide:
        slide.read_region(0, 0, *slide.dimensions)
    assert isinstance(caught.value, PyhistoError)
    assert "\n" not in str(caught.value)
    assert name in str(caught.value)
    assert isinstance(caught.value, UnsupportedSlideError) == (name != "unreadable.svs")


@pytest.mark.parametrize("name", ["OS-2-ndpi.ome.tif", "OS-2-vsi.ome.tif"])
def test_real_ome_tiff_equals_tifffile(shared_dir: Path, name: str) -> None:
    path = shared_dir / "data" / "slides" / name
    with tifffile.TiffFile(path) as file:
        whole = file.series[0].asarray()
        if file.series[0].axes != "YXS":
            whole = np.moveaxis(whole, 0, -1)
    with Slide(path) as slide:
        assert slide.reader == "tifffile"
        assert slide.dimensions == (whole.shape[1], whole.shape[0])
        assert 0.2 < slide.mpp[0] < 0.4
        np.testing.assert_array_equal(slide.read_region(0, 0, *slide.dimensions), whole[..., :3])
        np.testing.assert_array_equal(slide.read_region(301, 207, 333, 222), whole[207:429, 301:634, :3])


def test_the_same_crop_as_pyramid_and_as_ome_tiff(shared_dir: Path) -> None:
    slides = shared_dir / "data" / "slides"
    with Slide(slides / "OS-2_Ki67_ndpi_crop_mpp0.227.tif") as a, Slide(slides / "OS-2-ndpi.ome.tif") as b:
        assert (a.reader, b.reader) == ("openslide", "tifffile")
        assert a.mpp == pytest.approx(b.mpp, rel=0.01)
        width, height = min(a.dimensions[0], b.dimensions[0]), min(a.dimensions[1], b.dimensions[1])
        first = a.read_region(0, 0, width, height).astype(int)
        second = b.read_region(0, 0, width, height).astype(int)
    # the pyramid is a JPEG with halved chroma
    assert np.abs(first - second).mean() < 0.5
    assert np.abs(first[:, 1:] - second[:, :-1]).mean() > 2.0
    assert np.abs(first[1:] - second[:-1]).mean() > 2.0


def test_aperio(shared_dir: Path) -> None:
    with Slide(shared_dir / "data" / "slides" / "CMU-1-Small-Region.svs") as slide:
        assert slide.dimensions == (2220, 2967)
        assert slide.mpp == pytest.approx((0.499, 0.499))
        assert slide.magnification == 20.0
        assert slide.vendor == "aperio"


def test_a_region_across_the_border_is_exact_inside(gradient_slide: Path) -> None:
    with Slide(gradient_slide) as slide:
        rgb = slide.read_region(-9.5, -12.25, 20, 18, mpp=1.5)  # 3 slide px to a pixel
    assert (rgb[:3] == 255).all()
    assert (rgb[:, :2] == 255).all()
    assert_gradient(rgb[6:, 6:], -9.5 + 18, -12.25 + 18, (3.0, 3.0), tolerance=0.501 + 0.18 * 2)


# ---------------------------------------------------------------------- PNG and JPEG
def noise(*shape: int) -> Pixels:
    return np.random.default_rng(3).integers(0, 256, shape, dtype=np.uint8)


@pytest.mark.parametrize("channels", [3, 4])
def test_png_pixels_as_stored_without_their_transparency(tmp_path: Path, channels: int) -> None:
    pixels = noise(31, 45, channels)
    Image.fromarray(pixels).save(tmp_path / "a.png", dpi=(72, 72))
    with Slide(tmp_path / "a.png", mpp=0.5) as slide:
        assert (slide.reader, slide.vendor, slide.dimensions) == ("pillow", "png", (45, 31))
        np.testing.assert_array_equal(slide.read_region(0, 0, 45, 31), pixels[..., :3])
        part = slide.read_region(-2, 3, 10, 5)
        np.testing.assert_array_equal(part[:, 2:], pixels[3:8, :8, :3])
        assert (part[:, :2] == 255).all()
        half = slide.read_region(4, 4, 8, 8, mpp=1.0)
    # a triangle filter twice as wide: weights 1 3 3 1 of eighths, in both directions
    weights = np.array([1, 3, 3, 1]) / 8
    window = pixels[9:13, 11:15, :3].astype(float)
    np.testing.assert_allclose(half[3, 4], np.einsum("i,j,ijc->c", weights, weights, window), atol=0.51)


def test_jpeg_pixels_are_those_of_its_decoder(tmp_path: Path) -> None:
    Image.fromarray(noise(40, 30, 3)).save(tmp_path / "a.jpg", quality=90)
    with Slide(tmp_path / "a.jpg", mpp=0.25) as slide:
        assert (slide.reader, slide.vendor, slide.mpp) == ("pillow", "jpeg", (0.25, 0.25))
        np.testing.assert_array_equal(slide.read_region(0, 0, 30, 40), np.asarray(Image.open(tmp_path / "a.jpg")))


def test_a_png_does_not_say_how_large_its_pixels_are(tmp_path: Path) -> None:
    Image.fromarray(noise(8, 8, 3)).save(tmp_path / "a.png", dpi=(50800, 50800))
    with Slide(tmp_path / "a.png") as slide, pytest.raises(MissingPixelSizeError, match="give it with --mpp"):
        _ = slide.mpp


def test_a_png_is_decoded_when_it_is_read(tmp_path: Path) -> None:
    whole = tmp_path / "a.png"
    Image.fromarray(noise(200, 200, 3)).save(whole)
    (tmp_path / "cut.png").write_bytes(whole.read_bytes()[:50_000])
    with Slide(tmp_path / "cut.png") as slide:
        assert slide.dimensions == (200, 200)
        with pytest.raises(SlideError, match=r"cut\.png: pixels cannot be decoded"):
            slide.read_region(0, 0, 10, 10)


def png_of_size(path: Path, width: int, height: int) -> None:
    """Write the header of a PNG, which is all that is read of one that is too large."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunk = b"IHDR" + header
    crc = struct.pack(">I", zlib.crc32(chunk))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + crc + struct.pack(">I", 0) + b"IDAT")


def test_a_png_too_large_for_memory_is_refused(tmp_path: Path) -> None:
    png_of_size(tmp_path / "a.png", 40_000, 40_000)
    with pytest.raises(UnsupportedSlideError, match=r"40000 x 40000 px.*at most 100 million px; convert"):
        Slide(tmp_path / "a.png")


@pytest.mark.parametrize(
    ("name", "mode", "kind"),
    [("a.png", "L", "L"), ("a.png", "P", "P"), ("a.png", "1", "1"), ("a.jpg", "L", "L"), ("a.jpg", "CMYK", "CMYK")],
)
def test_only_rgb_is_read(tmp_path: Path, name: str, mode: str, kind: str) -> None:
    Image.fromarray(noise(8, 8, 3)).convert(mode).save(tmp_path / name)
    with pytest.raises(UnsupportedSlideError, match=f"pixels of the kind {kind}; expected 8-bit RGB|{kind}.*8-bit RGB"):
        Slide(tmp_path / name)


def test_rgb_of_16_bits_is_not_cut_to_8(tmp_path: Path) -> None:
    png = imagecodecs.png_encode(noise(8, 8, 3).astype(np.uint16) * 257)
    (tmp_path / "a.png").write_bytes(png)
    with pytest.raises(UnsupportedSlideError, match="RGB with 16 bits"):
        Slide(tmp_path / "a.png")


@pytest.mark.parametrize("start", [b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"])
@given(rest=st.binary(max_size=200))
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_damaged_png_or_jpeg_is_an_error_of_ours(tmp_path: Path, start: bytes, rest: bytes) -> None:
    (tmp_path / "a.png").write_bytes(start + rest)
    with contextlib.suppress(PyhistoError), Slide(tmp_path / "a.png") as slide:
        slide.read_region(0, 0, 4, 4)
