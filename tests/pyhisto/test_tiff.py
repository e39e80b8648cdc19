"""The tifffile reader against ``tifffile.imread``, for every layout that scanners and converters write."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile

from pyhisto.errors import SlideError, UnsupportedSlideError
from pyhisto.readers.tiff import TiffReader

Pixels = np.ndarray[Any, Any]
WINDOWS = [(0, 0, 75, 53), (0, 0, 1, 1), (13, 7, 40, 31), (31, 15, 2, 2), (74, 52, 1, 1), (16, 16, 16, 16)]


@pytest.fixture(scope="module")
def pixels() -> Pixels:
    """53 x 75 px of noise over a gradient; no two places look alike."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[0:53, 0:75]
    smooth = np.stack([3 * x, 4 * y, x + y], axis=-1)
    return (smooth + rng.integers(0, 20, smooth.shape)).clip(0, 255).astype(np.uint8)


LAYOUTS: dict[str, dict[str, Any]] = {
    "tiles": {"photometric": "rgb", "tile": (16, 32)},
    "tiles, deflate": {"photometric": "rgb", "tile": (16, 16), "compression": "adobe_deflate", "predictor": True},
    "strips": {"photometric": "rgb", "rowsperstrip": 7},
    "strips, lzw": {"photometric": "rgb", "rowsperstrip": 10, "compression": "lzw"},
    "one strip": {"photometric": "rgb", "rowsperstrip": 53},
    "planar tiles": {"photometric": "rgb", "planarconfig": "separate", "tile": (16, 16)},
    "planar strips": {"photometric": "rgb", "planarconfig": "separate", "rowsperstrip": 9, "compression": "deflate"},
    "jpeg": {"photometric": "rgb", "tile": (16, 16), "compression": "jpeg", "compressionargs": {"level": 95}},
    "jpeg, halved chroma": {"photometric": "rgb", "tile": (16, 16), "compression": "jpeg", "subsampling": (2, 2)},
    "jpeg 2000": {"photometric": "rgb", "tile": (16, 16), "compression": "jpeg2000"},
    "zstd": {"photometric": "rgb", "tile": (16, 16), "compression": "zstd"},
}


def as_rgb(array: Pixels) -> Pixels:
    return array if array.shape[-1] in {3, 4} else np.moveaxis(array, 0, -1)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("ome", [False, True])
def test_equals_tifffile(tmp_path: Path, pixels: Pixels, layout: str, ome: bool) -> None:
    path = tmp_path / ("a.ome.tif" if ome else "a.tif")
    options = LAYOUTS[layout]
    stored = np.moveaxis(pixels, -1, 0) if options.get("planarconfig") == "separate" else pixels
    tifffile.imwrite(path, stored, ome=ome, metadata={} if ome else None, **options)
    whole = as_rgb(tifffile.imread(path))
    if "jpeg" not in layout:
        np.testing.assert_array_equal(whole, pixels)
    reader = TiffReader(path)
    try:
        assert reader.level_dimensions == ((75, 53),)
        for x, y, width, height in WINDOWS:
            np.testing.assert_array_equal(reader.read(0, x, y, width, height), whole[y : y + height, x : x + width])
    finally:
        reader.close()


@pytest.mark.parametrize("tile", [None, (16, 16)])
def test_three_channels_as_pages(tmp_path: Path, pixels: Pixels, tile: Any) -> None:
    path = tmp_path / "cyx.ome.tif"
    channels = np.moveaxis(pixels, -1, 0)
    tifffile.imwrite(path, channels, ome=True, photometric="minisblack", metadata={"axes": "CYX"}, tile=tile)
    reader = TiffReader(path)
    for x, y, width, height in WINDOWS:
        np.testing.assert_array_equal(reader.read(0, x, y, width, height), pixels[y : y + height, x : x + width])
    reader.close()


def test_three_channels_behind_one_page_are_never_read_as_grey(tmp_path: Path, pixels: Pixels) -> None:
    path = tmp_path / "truncated.ome.tif"
    tifffile.imwrite(
        path,
        np.moveaxis(pixels, -1, 0),
        imagej=True,
        photometric="minisblack",
        metadata={"axes": "CYX"},
        contiguous=True,
    )
    data = tifffile.imread(path)
    assert data.shape == (3, 53, 75)
    try:
        reader = TiffReader(path)
    except UnsupportedSlideError:
        return
    np.testing.assert_array_equal(reader.read(0, 0, 0, 75, 53), pixels)
    reader.close()


def test_alpha_is_left_out(tmp_path: Path, pixels: Pixels) -> None:
    path = tmp_path / "rgba.tif"
    rgba = np.dstack([pixels, np.full(pixels.shape[:2], 9, dtype=np.uint8)])
    tifffile.imwrite(path, rgba, photometric="rgb", extrasamples=["unassalpha"], tile=(16, 16), metadata=None)
    reader = TiffReader(path)
    np.testing.assert_array_equal(reader.read(0, 3, 4, 50, 40), pixels[4:44, 3:53])
    reader.close()


def test_pyramid_in_subifds(tmp_path: Path, pixels: Pixels) -> None:
    path = tmp_path / "pyramid.ome.tif"
    half = pixels[:52:2, :74:2]
    with tifffile.TiffWriter(path, ome=True) as tiff:
        options: dict[str, Any] = {"photometric": "rgb", "tile": (16, 16)}
        tiff.write(pixels, subifds=1, metadata={"PhysicalSizeX": 0.25, "PhysicalSizeY": 0.5}, **options)
        tiff.write(half, subfiletype=1, **options)
    reader = TiffReader(path)
    assert reader.level_dimensions == ((75, 53), (37, 26))
    assert reader.mpp == (0.25, 0.5)
    assert reader.vendor == "ome-tiff"
    np.testing.assert_array_equal(reader.read(0, 5, 6, 30, 20), pixels[6:26, 5:35])
    np.testing.assert_array_equal(reader.read(1, 5, 6, 30, 20), half[6:26, 5:35])
    reader.close()


@pytest.mark.parametrize(
    ("unit", "value", "mpp"), [("µm", 0.25, 0.25), ("nm", 250.0, 0.25), ("mm", 0.00025, 0.25), ("pixel", 1.0, None)]
)
def test_pixel_size_from_ome(tmp_path: Path, pixels: Pixels, unit: str, value: float, mpp: float | None) -> None:
    path = tmp_path / "a.ome.tif"
    metadata = {"PhysicalSizeX": value, "PhysicalSizeXUnit": unit, "PhysicalSizeY": 2 * value}
    tifffile.imwrite(path, pixels, ome=True, photometric="rgb", metadata={**metadata, "PhysicalSizeYUnit": unit})
    reader = TiffReader(path)
    assert reader.mpp == (None if mpp is None else pytest.approx((mpp, 2 * mpp)))
    reader.close()


def test_no_pixel_size_in_ome(tmp_path: Path, pixels: Pixels) -> None:
    path = tmp_path / "a.ome.tif"
    tifffile.imwrite(path, pixels, ome=True, photometric="rgb", resolution=(40000, 40000), resolutionunit="CENTIMETER")
    reader = TiffReader(path)
    assert reader.mpp is None
    reader.close()


@pytest.mark.parametrize(
    ("resolution", "unit", "mpp"),
    [
        ((40000, 20000), "CENTIMETER", (0.25, 0.5)),
        ((101600, 50800), "INCH", (0.25, 0.5)),
        ((40000, 20000), "NONE", None),
        ((0, 0), "CENTIMETER", None),
    ],
)
def test_pixel_size_from_tags(tmp_path: Path, pixels: Pixels, resolution: Any, unit: str, mpp: Any) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, pixels, photometric="rgb", resolution=resolution, resolutionunit=unit, metadata=None)
    reader = TiffReader(path)
    assert reader.mpp == (None if mpp is None else pytest.approx(mpp))
    reader.close()


@pytest.mark.parametrize(("unit", "mpp"), [("um", (0.25, 0.5)), ("\\u00B5m", (0.25, 0.5)), ("pixel", None)])
def test_pixel_size_from_imagej(tmp_path: Path, pixels: Pixels, unit: str, mpp: Any) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, pixels, imagej=True, resolution=(4.0, 2.0), metadata={"unit": unit})
    reader = TiffReader(path)
    assert reader.mpp == (None if mpp is None else pytest.approx(mpp))
    reader.close()


def test_objective_power(tmp_path: Path, pixels: Pixels) -> None:
    path = tmp_path / "a.ome.tif"
    tifffile.imwrite(path, pixels, ome=True, photometric="rgb")
    xml = tifffile.tiffcomment(path)
    assert isinstance(xml, str)
    start = xml.index("<Image ")
    objective = '<Instrument ID="Instrument:0"><Objective ID="Objective:0" NominalMagnification="20.0"/></Instrument>'
    tifffile.tiffcomment(path, (xml[:start] + objective + xml[start:]).encode())
    reader = TiffReader(path)
    assert reader.magnification == 20.0
    reader.close()


def grey(pixels: Pixels) -> tuple[Pixels, dict[str, Any]]:
    return pixels[..., 0], {"photometric": "minisblack"}


def sixteen_bit(pixels: Pixels) -> tuple[Pixels, dict[str, Any]]:
    return pixels.astype(np.uint16) * 256, {"photometric": "rgb"}


def two_channels(pixels: Pixels) -> tuple[Pixels, dict[str, Any]]:
    return np.moveaxis(pixels[..., :2], -1, 0), {"photometric": "minisblack", "metadata": {"axes": "CYX"}}


def cmyk(pixels: Pixels) -> tuple[Pixels, dict[str, Any]]:
    return np.dstack([pixels, pixels[..., 0]]), {"photometric": "separated"}


def lab(pixels: Pixels) -> tuple[Pixels, dict[str, Any]]:
    return pixels, {"photometric": "cielab"}


def stack(pixels: Pixels) -> tuple[Pixels, dict[str, Any]]:
    return np.stack([pixels, pixels]), {"photometric": "rgb", "metadata": {"axes": "ZYXS"}}


@pytest.mark.parametrize("make", [grey, sixteen_bit, two_channels, cmyk, lab, stack])
def test_what_is_no_8_bit_rgb_is_refused(tmp_path: Path, pixels: Pixels, make: Any) -> None:
    path = tmp_path / "odd.tif"
    data, options = make(pixels)
    tifffile.imwrite(path, data, **options)
    with pytest.raises(UnsupportedSlideError, match="tifffile:"):
        TiffReader(path)


@pytest.mark.parametrize(
    "data", [b"", b"II", b"II*\0\x08\0\0\0", b"II*\0\x08\0\0\0\0\0\0\0\0\0", b"MM\0+" + b"\xff" * 60]
)
def test_files_that_are_hardly_a_tiff(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "stub.tif"
    path.write_bytes(data)
    with pytest.raises(UnsupportedSlideError):
        TiffReader(path)


def test_damaged_tiles_are_a_slide_error(tmp_path: Path, pixels: Pixels) -> None:
    path = tmp_path / "damaged.tif"
    tifffile.imwrite(path, pixels, photometric="rgb", tile=(16, 16), compression="adobe_deflate", metadata=None)
    with tifffile.TiffFile(path) as file:
        offset = file.pages[0].dataoffsets[0]  # type: ignore[union-attr]
    data = bytearray(path.read_bytes())
    data[offset : offset + 8] = b"\xff" * 8
    path.write_bytes(data)
    reader = TiffReader(path)
    with pytest.raises(SlideError, match=r"damaged\.tif: pixels of level 0 at \(3, 2\)"):
        reader.read(0, 3, 2, 5, 5)
    np.testing.assert_array_equal(reader.read(0, 16, 16, 20, 20), pixels[16:36, 16:36])
    reader.close()


def test_tiles_that_were_left_out_are_white(tmp_path: Path) -> None:
    path = tmp_path / "sparse.tif"

    def tiles() -> Any:
        yield np.full((16, 16, 3), 50, dtype=np.uint8)
        yield None

    tifffile.imwrite(path, tiles(), shape=(16, 32, 3), dtype=np.uint8, photometric="rgb", tile=(16, 16), metadata=None)
    reader = TiffReader(path)
    rgb = reader.read(0, 0, 0, 32, 16)
    assert (rgb[:, :16] == 50).all()
    assert (rgb[:, 16:] == 255).all()
    reader.close()


def write_series(path: Path, images: list[Pixels]) -> None:
    """Write an OME-TIFF of several images, the second with a pyramid; pixel sizes of 0.1, 0.2, ... µm."""
    with tifffile.TiffWriter(path, ome=True) as tiff:
        for number, image in enumerate(images):
            size = (number + 1) / 10
            tiff.write(
                image,
                photometric="rgb",
                tile=(16, 16),
                subifds=int(number == 1),
                metadata={"PhysicalSizeX": size, "PhysicalSizeY": size},
            )
            if number == 1:
                tiff.write(image[::2, ::2], photometric="rgb", tile=(16, 16), subfiletype=1, metadata=None)


def test_each_series_of_an_ome_tiff(tmp_path: Path, pixels: Pixels) -> None:
    path = tmp_path / "three.ome.tif"
    images = [pixels, np.ascontiguousarray(pixels[:40, 10:]), np.ascontiguousarray(pixels[9:, :33])]
    write_series(path, images)
    for number, image in enumerate(images):
        reader = TiffReader(path, number)
        height, width = image.shape[:2]
        assert reader.level_dimensions[0] == (width, height)
        assert len(reader.level_dimensions) == 1 + int(number == 1)
        assert reader.mpp == pytest.approx(((number + 1) / 10,) * 2)
        np.testing.assert_array_equal(reader.read(0, 0, 0, width, height), image)
        reader.close()
    with pytest.raises(
        UnsupportedSlideError, match=r"series 3 of three\.ome\.tif, an OME-TIFF with 3 readable images of 3"
    ):
        TiffReader(path, 3)


def test_only_ome_tiff_has_series(tmp_path: Path, pixels: Pixels) -> None:
    path = tmp_path / "pages.tif"
    with tifffile.TiffWriter(path) as tiff:
        tiff.write(pixels, photometric="rgb", metadata=None)
        tiff.write(pixels[:40], photometric="rgb", metadata=None)
    with pytest.raises(UnsupportedSlideError, match=r"series 1 of pages\.tif, no OME-TIFF"):
        TiffReader(path, 1)


def test_threads_decode_at_the_same_time(tmp_path: Path, pixels: Pixels, monkeypatch: pytest.MonkeyPatch) -> None:
    tifffile.imwrite(tmp_path / "a.tif", pixels, photometric="rgb", tile=(16, 16), compression="deflate")
    both = threading.Barrier(2, timeout=20)
    reader = TiffReader(tmp_path / "a.tif")
    page = reader._levels[0]._keyframe
    decode = page.decode

    def waiting(*arguments: Any, **options: Any) -> Any:
        both.wait()
        return decode(*arguments, **options)

    monkeypatch.setattr(page, "decode", waiting)
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda corner: reader.read(0, *corner, 16, 16), [(0, 0), (32, 16)]))
    reader.close()
    np.testing.assert_array_equal(found[0], pixels[:16, :16])
    np.testing.assert_array_equal(found[1], pixels[16:32, 32:48])
