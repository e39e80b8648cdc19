"""Tissue on synthetic slides with known truth, and what must not be taken for tissue."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shapely

from pyhisto.errors import MissingPixelSizeError
from pyhisto.metrics import dice
from pyhisto.slide import Slide
from pyhisto.synth import SynthSettings, make_slide
from pyhisto.tissue import TissueSettings, detect_tissue, glass_white, pen_mask

PENS = {"black": (35, 35, 40), "blue": (30, 60, 190), "green": (20, 120, 60), "red": (225, 40, 50)}


@pytest.mark.parametrize("seed", [0, 3, 8])
def test_synthetic_slide(tmp_path: Path, seed: int) -> None:
    truth = make_slide(tmp_path / "s.tif", SynthSettings(width=2048, height=1792, mpp=0.5, seed=seed, pen_mark=True))
    with Slide(tmp_path / "s.tif") as slide:
        found = detect_tissue(slide)
    assert (found["object_type"] == "annotation").all()
    assert (found["classification"] == "Tissue").all()
    assert found.geometry.is_valid.all()
    area = shapely.union_all(found.geometry.to_numpy())
    tissue, pen = (shapely.union_all(table.geometry.to_numpy()) for table in (truth.tissue, truth.pen))
    assert dice(area, tissue) > 0.95
    ink = pen.difference(tissue.buffer(20.0))
    assert area.intersection(ink).area < 0.05 * pen.area


def painted(
    path: Path, write: Callable[..., Path], mpp: tuple[float, float], shapes: list[tuple[Any, tuple[int, int, int]]]
) -> Path:
    """Write a slide of 512 x 512 px with a slightly yellow glass and rectangles (rows, columns) of a colour."""
    image = np.full((512, 512, 3), (243, 243, 240), dtype=np.uint8)
    for place, colour in shapes:
        image[place] = colour
    return write(path, [image], mpp=mpp)


BROWN = (190, 150, 120)


def test_tissue_lies_where_it_is_with_pixels_that_are_not_square(
    tmp_path: Path, write_tiff: Callable[..., Path]
) -> None:
    block = (slice(100, 400), slice(60, 200)), BROWN  # rows 100..400, columns 60..200
    path = painted(tmp_path / "a.tif", write_tiff, (4.0, 2.0), [block])
    with Slide(path) as slide:
        found = detect_tissue(slide)
    assert len(found) == 1
    assert dice(found.geometry.iloc[0], shapely.box(60, 100, 200, 400)) > 0.95


@pytest.mark.parametrize("pen", PENS)
def test_every_pen_is_left_out(tmp_path: Path, write_tiff: Callable[..., Path], pen: str) -> None:
    tissue = (slice(200, 450), slice(50, 300)), BROWN
    stroke = (slice(60, 110), slice(50, 460)), PENS[pen]
    path = painted(tmp_path / "a.tif", write_tiff, (4.0, 4.0), [tissue, stroke])
    with Slide(path) as slide:
        found = detect_tissue(slide)
    area = shapely.union_all(found.geometry.to_numpy())
    assert dice(area, shapely.box(50, 200, 300, 450)) > 0.95
    assert area.intersection(shapely.box(50, 60, 460, 110)).area == 0


@pytest.mark.parametrize("colour", [(90, 60, 140), (120, 75, 40), (230, 160, 190), (60, 40, 110), (70, 40, 20)])
def test_stains_are_no_ink(colour: tuple[int, int, int]) -> None:
    """Haematoxylin, DAB and eosin, pale and dense."""
    density = -np.log10(np.full((60, 60, 3), colour, dtype=np.float32) / 255)
    assert not pen_mask(density).any()


def test_nothing_on_white_glass(tmp_path: Path, write_tiff: Callable[..., Path]) -> None:
    for value in (255, 244):
        path = write_tiff(tmp_path / f"{value}.tif", [np.full((256, 256, 3), value, dtype=np.uint8)], mpp=(4.0, 4.0))
        with Slide(path) as slide:
            found = detect_tissue(slide)
        assert len(found) == 0
        assert "classification" in found.columns


def test_camera_noise_on_glass_is_no_tissue(tmp_path: Path, write_tiff: Callable[..., Path]) -> None:
    noise = np.random.default_rng(0).normal(240, 4, (256, 256, 3)).clip(0, 255).astype(np.uint8)
    path = write_tiff(tmp_path / "noise.tif", [noise], mpp=(4.0, 4.0))
    with Slide(path) as slide:
        assert len(detect_tissue(slide)) == 0


def test_small_pieces_are_dropped_and_small_holes_filled(tmp_path: Path, write_tiff: Callable[..., Path]) -> None:
    glass = (243, 243, 240)
    shapes = [
        ((slice(50, 300), slice(50, 300)), BROWN),
        ((slice(100, 150), slice(100, 150)), glass),  # 200 x 200 µm
        ((slice(200, 212), slice(200, 212)), glass),  # 48 x 48 µm
        ((slice(400, 425), slice(400, 425)), BROWN),  # 100 x 100 µm
    ]
    path = painted(tmp_path / "a.tif", write_tiff, (4.0, 4.0), shapes)
    with Slide(path) as slide:
        (one,) = detect_tissue(slide).geometry
        (largest, smallest) = detect_tissue(slide, TissueSettings(min_area_um2=1000.0)).geometry
    assert len(one.interiors) == 1
    assert shapely.Polygon(one.interiors[0]).area == pytest.approx(50 * 50, rel=0.2)
    assert largest.area > smallest.area
    assert smallest.centroid.distance(shapely.Point(412.5, 412.5)) < 1.0


def test_tissue_ends_where_the_slide_ends(tmp_path: Path, write_tiff: Callable[..., Path]) -> None:
    path = painted(tmp_path / "a.tif", write_tiff, (3.7, 3.7), [((slice(0, 512), slice(100, 512)), BROWN)])
    with Slide(path) as slide:
        (found,) = detect_tissue(slide).geometry
    x0, y0, x1, y1 = found.bounds
    assert (y0, x1, y1) == pytest.approx((0, 512, 512), abs=3.0)
    assert x1 <= 512
    assert y1 <= 512
    assert x0 == pytest.approx(100, abs=5.0)


def test_a_given_threshold_is_used(tmp_path: Path, write_tiff: Callable[..., Path]) -> None:
    path = painted(tmp_path / "a.tif", write_tiff, (4.0, 4.0), [((slice(100, 300), slice(100, 300)), (215, 215, 212))])
    with Slide(path) as slide:
        assert len(detect_tissue(slide, TissueSettings(threshold=0.04))) == 1  # mean density log10(243 / 215) = 0.053
        assert len(detect_tissue(slide, TissueSettings(threshold=0.07))) == 0


def test_pixel_size_is_needed(tmp_path: Path, write_tiff: Callable[..., Path]) -> None:
    path = write_tiff(tmp_path / "a.tif", [np.zeros((64, 64, 3), dtype=np.uint8)], mpp=None)
    with Slide(path) as slide, pytest.raises(MissingPixelSizeError):
        detect_tissue(slide)


def test_glass_white() -> None:
    image = np.full((40, 40, 3), (120, 90, 80), dtype=np.uint8)
    image[:10] = (245, 243, 238)
    assert glass_white(image).tolist() == [245.0, 243.0, 238.0]
    assert glass_white(np.full((9, 9, 3), 100, dtype=np.uint8)).tolist() == [235.0, 235.0, 235.0]


def test_smoothing_has_the_sigma_that_it_says() -> None:
    """The documented sigma is the one that is applied: an edge is blurred by `sigma_um`."""
    from scipy import ndimage as ndi

    from pyhisto.tissue import tissue_mask

    image = np.full((80, 200, 3), 240, dtype=np.uint8)
    image[:, 100:] = (150, 150, 145)
    settings = TissueSettings(sigma_um=16.0, threshold=0.05)
    density = np.log10(240 / image.astype(float)).clip(0).mean(axis=2)
    smooth = ndi.gaussian_filter(density, 16.0 / 4.0)
    found = tissue_mask(image, 4.0, settings)
    assert found[40].argmax() == pytest.approx((smooth[40] > 0.05).argmax(), abs=1)


def test_specks_and_threads_are_no_tissue() -> None:
    """Opening by the four neighbours, up to the border of the overview, as scipy does it."""
    from scipy import ndimage as ndi

    from pyhisto.tissue import tissue_mask

    dark = np.random.default_rng(4).random((60, 70)) < 0.7
    image = np.where(dark[..., None], np.array([190, 150, 120]), 240).astype(np.uint8)
    found = tissue_mask(image, 4.0, TissueSettings(sigma_um=1e-3, threshold=0.05))
    np.testing.assert_array_equal(found, ndi.binary_opening(dark))
    assert 0 < found.sum() < dark.sum()
