"""Low-resolution maps: what a pixel of them is the mean of, where it lies, and the files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import shapely
import tifffile

from pyhisto.bundle.spec import ModelClass, ModelSpec
from pyhisto.errors import ConfigError, PyhistoError
from pyhisto.inference import Frame, PredictedWindow
from pyhisto.maps import MapBuilder, Maps, map_tiles, read_maps, write_maps, write_ome_tiff

Array = npt.NDArray[Any]
SPEC = ModelSpec("tissue_segmentation", "fake", (ModelClass("background"), ModelClass("tumour", "Tumor")))
MPP = (0.25, 0.25)
"""Of the slide; the network sees 0.5, and 2 µm are 8 px of the slide or 4 of the network."""


def window(
    foreground: Array,
    *,
    corner: tuple[float, float] = (0.0, 0.0),
    read: tuple[int, int, int, int] | None = None,
    core: tuple[int, int, int, int] | None = None,
    wanted: Array | None = None,
    variance: Array | None = None,
) -> PredictedWindow:
    height, width = foreground.shape
    whole = read or (0, 0, width, height)
    return PredictedWindow(
        0,
        Frame(*corner, 1000, 1000, (2.0, 2.0), 0.5),
        whole,
        core or whole,
        np.zeros((height, width, 3), dtype=np.uint8),
        np.stack([1 - foreground, foreground]).astype(np.float32),
        np.ones((height, width), dtype=bool) if wanted is None else wanted,
        variance,
    )


def build(
    *windows: PredictedWindow, bounds: tuple[float, float, float, float] = (0, 0, 16, 16), **options: Any
) -> Maps:
    builder = MapBuilder(SPEC, MPP, (1000, 1000), bounds, um=2.0, **options)
    for one in windows:
        builder(one)
    return builder.maps()


def test_a_map_pixel_is_the_mean_of_what_it_covers() -> None:
    foreground = np.zeros((8, 8))
    foreground[:4, :4] = 0.5
    foreground[0, 0] = 0.9  # 15 of 0.5 and one of 0.9
    foreground[:4, 4:] = np.array([0.1, 0.2, 0.3, 0.4])
    foreground[4:, 4:] = 1.0
    wanted = np.ones((8, 8), dtype=bool)
    wanted[4:, :4] = False
    wanted[4:, 4] = False
    maps = build(window(foreground, wanted=wanted))
    assert maps.layers == ("Tumor probability",)
    assert (maps.origin, maps.scale, maps.um) == ((0.0, 0.0), (8.0, 8.0), 2.0)
    assert maps.layer("Tumor probability") == pytest.approx(np.array([[0.525, 0.25], [np.nan, 1.0]]), nan_ok=True)
    with pytest.raises(ConfigError, match="no map 'Entropy'"):
        maps.layer("Entropy")


def test_the_grid_is_that_of_the_slide_wherever_the_window_lies() -> None:
    # The centres of the pixels lie at 9 + 2 i + 1 = 10, 12, 14 | 16, 18, 20, 22 | 24: cells 1 and 2 and 3 of 8 px.
    foreground = np.tile(np.array([1, 1, 1, 0.5, 0.5, 0.5, 0.5, 0.2]), (8, 1))
    maps = build(window(foreground, corner=(9.0, 9.0)), bounds=(9, 9, 25, 25))
    assert maps.origin == (8.0, 8.0)
    assert maps.values.shape == (1, 3, 3)
    assert maps.layer("Tumor probability") == pytest.approx(np.tile([1.0, 0.5, 0.2], (3, 1)))


def test_what_neighbouring_windows_hold_both_counts_once() -> None:
    foreground = np.tile(np.arange(8) / 8, (4, 1))
    left = window(foreground[:, :6], read=(0, 0, 6, 4), core=(0, 0, 3, 4))
    right = window(foreground[:, 1:], read=(1, 0, 8, 4), core=(3, 0, 8, 4))
    maps = build(left, right, bounds=(0, 0, 16, 8))
    assert maps.layer("Tumor probability") == pytest.approx(np.array([[1.5 / 8, 5.5 / 8]]))


def test_entropy_and_variance_over_flips() -> None:
    foreground = np.full((8, 8), 0.5)
    foreground[4:] = 0.25
    foreground[4:, 4:] = 0.0
    maps = build(window(foreground, variance=np.full((8, 8), 0.01, dtype=np.float32)), uncertainty=True)
    assert maps.layers == ("Tumor probability", "Entropy", "Flip variance")
    # -(0.25 log2 0.25 + 0.75 log2 0.75) = 0.5 + 0.311278
    assert maps.layer("Entropy") == pytest.approx(np.array([[1.0, 1.0], [0.811278, 0.0]]), abs=1e-5)
    assert maps.layer("Flip variance") == pytest.approx(np.full((2, 2), 0.01))
    assert build(window(foreground), uncertainty=True).layers == ("Tumor probability", "Entropy")


def test_the_layers_of_a_cell_model_are_its_channels() -> None:
    names = ("background", "Positive nucleus", "Positive membrane")
    spec = ModelSpec("cell_detection", "fake", tuple(ModelClass(n, "Positive" if "nuc" in n else None) for n in names))
    maps = MapBuilder(spec, MPP, (1000, 1000), (0, 0, 16, 16)).maps()
    assert maps.layers == ("Positive nucleus probability", "Positive membrane probability")
    assert np.isnan(maps.values).all()


def test_a_large_slide_gets_larger_map_pixels() -> None:
    builder = MapBuilder(SPEC, MPP, (4000, 1000), (0, 0, 4000, 1000), um=2.0, most=1000)
    maps = builder.maps()  # 1000 µm x 250 µm in 1000 pixels: 15.81 µm
    assert maps.um == pytest.approx(250**0.5)
    assert maps.values.shape == (1, 16, 64)


def test_maps_of_a_turned_and_cropped_image() -> None:
    values = np.arange(6, dtype=np.float32).reshape(1, 2, 3)
    maps = Maps(("a",), values, (0.0, 0.0), (10.0, 10.0), 2.5)
    # Turned clockwise by a quarter: (u, v) of the 20 x 30 px image lies at (v, 20 - u) of the slide.
    turned = maps.framed((20, 30), (10.0, 10.0), (0.0, 1.0, -1.0, 0.0, 0.0, 20.0))
    assert turned.values[0].tolist() == np.rot90(values[0], -1).tolist() == [[3, 0], [4, 1], [5, 2]]
    cropped = maps.framed((15, 20), (10.0, 10.0), (1.0, 0.0, 0.0, 1.0, 20.0, 0.0))
    assert cropped.values[0] == pytest.approx(np.array([[2, np.nan], [5, np.nan]]), nan_ok=True)
    assert (cropped.origin, cropped.scale, cropped.um) == ((0.0, 0.0), (10.0, 10.0), 2.5)


# ---------------------------------------------------------------------------------------------------- files
@pytest.fixture
def maps() -> Maps:
    values = np.random.default_rng(1).uniform(0, 1, (2, 700, 1201)).astype(np.float32)
    values[:, :100] = np.nan
    return Maps(("Tumor probability", "Entropy"), values, (3.5, 4.0), (32.0, 31.5), 8.0)


def test_npz_comes_back(maps: Maps, tmp_path: Path) -> None:
    write_maps(tmp_path / "maps" / "1.npz", maps)
    back = read_maps(tmp_path / "maps" / "1.npz")
    assert (back.layers, back.origin, back.scale, back.um) == (maps.layers, maps.origin, maps.scale, maps.um)
    assert back.values.dtype == np.float32
    np.testing.assert_allclose(back.values, maps.values, atol=3e-4)  # float16: 11 bits
    assert [path.name for path in (tmp_path / "maps").iterdir()] == ["1.npz"]


@pytest.mark.parametrize("content", [None, b"", b"PK\x03\x04 no archive"])
def test_a_damaged_file(content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "1.npz"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(PyhistoError, match="missing or damaged"):
        read_maps(path)


def test_a_place_that_cannot_be_written(maps: Maps, tmp_path: Path) -> None:
    (tmp_path / "maps").write_text("in the way")
    with pytest.raises(PyhistoError, match="cannot be written"):
        write_maps(tmp_path / "maps" / "1.npz", maps)


def test_ome_tiff_as_tifffile_reads_it(maps: Maps, tmp_path: Path) -> None:
    write_ome_tiff(tmp_path / "1.ome.tif", maps)
    with tifffile.TiffFile(tmp_path / "1.ome.tif") as tiff:
        (series,) = tiff.series
        assert (series.axes, series.shape, series.dtype) == ("CYX", (2, 700, 1201), np.float32)
        assert [level.shape for level in series.levels] == [(2, 700, 1201), (2, 350, 600)]
        pixels = tifffile.xml2dict(tiff.ome_metadata)["OME"]["Image"]["Pixels"]
        full, half = (level.asarray() for level in series.levels)
        page = tiff.pages[0]
        assert page.tile == (256, 256)
    assert [channel["Name"] for channel in pixels["Channel"]] == list(maps.layers)
    assert [pixels[f"PhysicalSize{axis}"] for axis in "XY"] == [8.0, 8.0]
    assert [pixels[f"PhysicalSize{axis}Unit"] for axis in "XY"] == ["µm", "µm"]
    np.testing.assert_array_equal(full, np.nan_to_num(maps.values))
    assert half[0, 60, 7] == pytest.approx(maps.values[0, 120:122, 14:16].mean(), rel=1e-6)
    assert half[:, 49].max() == 0


# ---------------------------------------------------------------------------------------------------- tiles
def test_tiles_cover_what_was_predicted() -> None:
    values = np.full((1, 3, 4), np.nan, dtype=np.float32)
    values[0, :2, :2] = [[0.1, 0.2], [0.3, 0.4]]
    values[0, 2, 3] = 0.7
    maps = Maps(("Tumor probability",), values, (0.0, 0.0), (8.0, 8.0), 2.0)
    tiles = map_tiles(maps, (30, 20), least_um=4.0)  # tiles of 2 x 2 map pixels
    assert set(tiles["object_type"]) == {"tile"}
    assert tiles["classification"].isna().all()
    assert [shape.bounds for shape in tiles.geometry] == [(0, 0, 16, 16), (16, 16, 30, 20)]
    assert tiles["Tumor probability"].tolist() == pytest.approx([0.25, 0.7])


def test_there_are_never_many_tiles() -> None:
    values = np.ones((1, 8, 8), dtype=np.float32)
    maps = Maps(("a",), values, (0.0, 0.0), (10.0, 10.0), 100.0)
    tiles = map_tiles(maps, (80, 80), most=5)
    assert len(tiles) == 4
    assert shapely.union_all(tiles.geometry.to_numpy()).equals(shapely.box(0, 0, 80, 80))
