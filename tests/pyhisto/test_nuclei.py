from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import shapely
import tifffile
from scipy import ndimage

from pyhisto.errors import ConfigError
from pyhisto.nuclei import (
    CellDetectionSettings,
    auto_settings_from_tiles,
    derive_dab_threshold,
    detect_cells,
    detect_nuclei,
)
from pyhisto.nuclei.watershed import disk, distance_split, fill_outlines, gaussian_blur, intensity_basins, laplacian
from pyhisto.objects import measurement_names, validate_objects
from pyhisto.slide import Slide
from pyhisto.stain import H_DAB, H_E

SIZE = 600
SETTINGS = CellDetectionSettings(
    detection_image="Optical density sum", background_radius_um=0, threshold=0.25, cell_expansion_um=0
)


def scene(size: int = SIZE, spacing: int = 30) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Nuclei of about 8 µm at 0.5 µm/px on a jittered grid, every fourth brown: image, centres (x, y), brown."""
    rng = np.random.default_rng(11)
    grid = np.arange(spacing, size - spacing + 1, spacing)
    centres = np.stack(np.meshgrid(grid, grid), axis=-1).reshape(-1, 2) + rng.uniform(-4, 4, (len(grid) ** 2, 2))
    brown = np.arange(len(centres)) % 4 == 0
    y, x = np.mgrid[:size, :size] + 0.5
    amounts = np.zeros((size, size, 2))
    for (cx, cy), is_brown in zip(centres, brown, strict=True):
        x0, y0 = int(cx) - 14, int(cy) - 14
        part = np.s_[max(0, y0) : y0 + 28, max(0, x0) : x0 + 28]
        inside = np.hypot(x[part] - cx, y[part] - cy) < 7.5
        amounts[part][inside] = (0.15, 0.6) if is_brown else (0.4, 0.0)
    amounts = ndimage.gaussian_filter(amounts, (1.0, 1.0, 0)) + rng.normal(0, 0.01, amounts.shape)
    od = amounts.clip(0) @ H_DAB.matrix[:2]
    return np.rint(255 * 10.0**-od).clip(0, 255).astype(np.uint8), centres, brown


@pytest.fixture(scope="module")
def slide(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slide]:
    path = tmp_path_factory.mktemp("nuclei") / "scene.tif"
    tifffile.imwrite(path, scene()[0], photometric="rgb", tile=(128, 128))
    with Slide(path, mpp=0.5) as opened:
        yield opened


def test_every_nucleus_is_found_once_with_its_class(slide: Slide) -> None:
    _, centres, brown = scene()
    table = detect_cells(slide, SETTINGS, stains=H_DAB, base_class="Tumor")
    validate_objects(table)
    assert set(table["object_type"]) == {"detection"}
    assert table["nucleus"].isna().all()
    assert len(table) == len(centres)
    found = shapely.get_coordinates(shapely.centroid(table.geometry.to_numpy()))
    distance = np.linalg.norm(found[:, None] - centres[None], axis=2)
    assert distance.min(axis=1).max() < 0.5
    nearest = distance.argmin(axis=1)
    assert len(set(nearest)) == len(centres)
    assert (table["classification"] == "Tumor: Positive").to_numpy().tolist() == brown[nearest].tolist()
    assert len(measurement_names(table)) == 18
    area = table["Nucleus: Area"].to_numpy()
    assert area.mean() == pytest.approx(np.pi * 7.5**2 * 0.25, rel=0.1)


@pytest.mark.parametrize("tile_size", [170, 290])
def test_tiles_leave_no_seam(slide: Slide, tile_size: int) -> None:
    whole = detect_cells(slide, replace(SETTINGS, cell_expansion_um=3), stains=H_DAB)
    tiled = detect_cells(slide, replace(SETTINGS, cell_expansion_um=3), stains=H_DAB, tile_size=tile_size)
    assert len(tiled) == len(whole)
    by_wkb = {geometry.wkb for geometry in shapely.normalize(shapely.set_precision(whole["nucleus"].to_numpy(), 0.01))}
    same = [g.wkb in by_wkb for g in shapely.normalize(shapely.set_precision(tiled["nucleus"].to_numpy(), 0.01))]
    assert np.mean(same) > 0.98


def test_cells_hold_their_nuclei_and_stay_apart(slide: Slide) -> None:
    table = detect_cells(slide, replace(SETTINGS, cell_expansion_um=5), stains=H_DAB)
    assert set(table["object_type"]) == {"cell"}
    cells, nuclei = table.geometry.to_numpy(), table["nucleus"].to_numpy()
    assert (shapely.area(shapely.intersection(cells, nuclei)) > 0.97 * shapely.area(nuclei)).all()
    total, union = shapely.area(cells).sum(), shapely.union_all(cells).area
    assert total - union < 0.01 * total
    assert len(measurement_names(table)) == 41
    without = detect_cells(slide, replace(SETTINGS, include_nuclei=False, cell_expansion_um=5), stains=H_DAB)
    assert without["nucleus"].isna().all()
    assert not any(name.startswith("Nucleus") for name in measurement_names(without))
    assert (without["classification"] == "Positive").sum() == (table["classification"] == "Positive").sum()


def test_only_the_region_is_searched(slide: Slide) -> None:
    region = shapely.Point(300, 300).buffer(150).difference(shapely.Point(300, 300).buffer(60))
    table = detect_cells(slide, SETTINGS, stains=H_DAB, region=region, tile_size=128)
    disks = shapely.buffer(shapely.points(scene()[1]), 7.5)
    # nuclei are cut at the border of the region, as QuPath cuts them; slivers are dropped
    assert shapely.covers(region, disks).sum() < len(table) < shapely.intersects(region, disks).sum()
    assert shapely.covers(region.buffer(1.5), table.geometry.to_numpy()).all()
    assert len(detect_cells(slide, SETTINGS, stains=H_DAB, region=shapely.box(-90, -90, -10, -10))) == 0
    assert len(detect_cells(slide, SETTINGS, stains=H_DAB, region=shapely.Polygon())) == 0


def test_progress_counts_tiles(slide: Slide) -> None:
    seen: list[tuple[int, int]] = []
    detect_cells(slide, SETTINGS, stains=H_DAB, tile_size=300, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_a_coarser_request_gives_the_same_nuclei(slide: Slide) -> None:
    table = detect_cells(slide, replace(SETTINGS, requested_pixel_size_um=0.8), stains=H_DAB)
    assert len(table) == len(scene()[1])
    assert table["Nucleus: Area"].mean() == pytest.approx(np.pi * 7.5**2 * 0.25, rel=0.15)


def test_background_subtraction_finds_nuclei_on_dark_ground() -> None:
    rgb = np.rint(scene(300)[0] * 10.0**-0.2).astype(np.uint8)  # OD sum 0.6 everywhere
    plain = detect_nuclei(rgb, pixel_size_um=0.5, settings=SETTINGS, stains=H_DAB)
    for reconstruct in (True, False):
        subtract = replace(SETTINGS, background_radius_um=8, background_by_reconstruction=reconstruct)
        assert detect_nuclei(rgb, pixel_size_um=0.5, settings=subtract, stains=H_DAB).labels.max() == len(scene(300)[1])
    too_dark = replace(SETTINGS, background_radius_um=8, max_background=0.3)
    assert detect_nuclei(rgb, pixel_size_um=0.5, settings=too_dark, stains=H_DAB).labels.max() == 0
    assert plain.labels.max() >= len(scene(300)[1])


def test_hematoxylin_misses_what_the_density_sum_finds() -> None:
    rgb, centres, brown = scene(300)
    blue = detect_nuclei(
        rgb, pixel_size_um=0.5, settings=replace(SETTINGS, detection_image="Hematoxylin OD"), stains=H_DAB
    )
    assert blue.labels.max() == (~brown).sum() < len(centres)


def test_area_limits_drop_nuclei() -> None:
    rgb = scene(200)[0]
    for limits in ({"min_area_um2": 80.0}, {"max_area_um2": 20.0}):
        found = detect_nuclei(rgb, pixel_size_um=0.5, settings=replace(SETTINGS, **limits), stains=H_DAB)
        assert found.labels.max() == 0
        assert len(found.contours) == 0


def test_empty_glass_has_no_nuclei(tmp_path: Path) -> None:
    path = tmp_path / "glass.tif"
    tifffile.imwrite(path, np.full((200, 300, 3), 245, dtype=np.uint8), photometric="rgb")
    with Slide(path, mpp=0.5) as glass:
        assert len(detect_cells(glass, CellDetectionSettings(), stains=H_E)) == 0


def test_without_dab_objects_have_the_base_class(slide: Slide) -> None:
    table = detect_cells(slide, SETTINGS, stains=H_E, region=shapely.box(0, 0, 150, 150), base_class="Stroma")
    assert set(table["classification"]) == {"Stroma"}
    assert "Nucleus: Eosin OD mean" in table


def test_settings_are_checked() -> None:
    with pytest.raises(ConfigError, match="detection_image"):
        CellDetectionSettings(detection_image="Red")
    with pytest.raises(ConfigError, match="sigma_um"):
        CellDetectionSettings(sigma_um=-1)
    with pytest.raises(ConfigError, match="max_area_um2"):
        CellDetectionSettings(min_area_um2=50, max_area_um2=40)
    with pytest.raises(ConfigError, match="finite"):
        CellDetectionSettings(threshold=float("nan"))


def test_blur_keeps_the_sum_and_the_width() -> None:
    image = np.zeros((81, 81), dtype=np.float32)
    image[40, 40] = 1
    blurred = gaussian_blur(image, 4.0)
    assert blurred.sum() == pytest.approx(1, abs=1e-4)
    x = np.arange(81) - 40
    assert (blurred.sum(axis=0) * x**2).sum() == pytest.approx(16, rel=0.01)
    np.testing.assert_allclose(gaussian_blur(np.full((9, 9), 3, dtype=np.float32), 2.0), 3, rtol=1e-6)


def test_laplacian_by_hand() -> None:
    image = np.zeros((5, 5), dtype=np.float32)
    image[2, 2] = 1
    assert laplacian(image)[2].tolist() == [0, -1, 4, -1, 0]


def test_rank_disk_has_imagejs_sizes() -> None:
    # numbers of pixels that ImageJ lists under Process > Filters > Show Circular Masks
    assert [int(disk(r).sum()) for r in (0.5, 1, 1.5, 2, 2.5, 3)] == [5, 9, 13, 21, 29, 37]


def test_basins_of_two_peaks_are_parted_by_a_line() -> None:
    y, x = np.mgrid[:40, :60]
    image = (
        np.exp(-((x - 20) ** 2 + (y - 20) ** 2) / 60) + np.exp(-((x - 38) ** 2 + (y - 20) ** 2) / 60) - 0.05
    ).astype(np.float32)
    labels, n = fill_outlines(intensity_basins(image))
    assert n == 2
    assert labels[20, 20] != labels[20, 38]
    assert not labels[:, 29].any()


def test_touching_disks_are_cut_at_the_waist_and_single_ones_are_not() -> None:
    y, x = np.mgrid[:60, :90]
    pair = ((x - 30) ** 2 + (y - 30) ** 2 < 196) | ((x - 54) ** 2 + (y - 30) ** 2 < 196)
    labels, n = ndimage.label(distance_split(pair))
    assert n == 2
    sizes = np.bincount(labels.ravel())[1:]
    assert abs(int(sizes[0]) - int(sizes[1])) < 0.03 * sizes[0]
    assert pair.sum() - sizes.sum() < 40
    one = (x - 40) ** 2 / 4 + (y - 30) ** 2 < 150
    assert (distance_split(one) == one).all()
    assert not distance_split(np.zeros((5, 5), dtype=bool)).any()


def test_filling_fills_holes_of_connected_regions_only() -> None:
    ring = np.zeros((9, 9), dtype=bool)
    ring[2:7, 2:7] = True
    ring[4, 4] = False
    labels, n = fill_outlines(ring)
    assert n == 1
    assert labels[4, 4] == 1
    diagonal = np.array([[0, 1, 0], [1, 0, 1], [0, 1, 0]], dtype=bool)  # four regions around a pixel: no hole
    labels, n = fill_outlines(np.pad(diagonal, 1))
    assert n == 4
    assert labels[2, 2] == 0


def test_auto_settings_scale_with_the_staining() -> None:
    rgb, _, brown = scene(400)
    pale = np.rint(255.0 * (rgb / 255.0) ** 0.5).astype(np.uint8)  # half of every density
    shares = []
    for image in (rgb, pale):
        auto = auto_settings_from_tiles([image], pixel_size_um=0.5)
        found = detect_nuclei(image, pixel_size_um=0.5, settings=auto.settings, stains=auto.stains)
        dab = ndimage.mean(found.channels["DAB OD"], found.labels, np.arange(1, found.labels.max() + 1))
        shares.append((np.asarray(dab) >= auto.settings.dab_threshold).mean())
        assert auto.settings.detection_image == "Optical density sum"
        assert auto.measured["nuclei sampled"] == pytest.approx(len(brown), rel=0.05)
    assert shares[0] == pytest.approx(brown.mean(), abs=0.02)
    assert shares[1] == pytest.approx(shares[0], abs=0.02)


def test_auto_settings_of_glass_say_what_they_could_not_do() -> None:
    auto = auto_settings_from_tiles([np.full((128, 128, 3), 244, dtype=np.uint8)], pixel_size_um=0.5)
    assert auto.stains.vectors == H_DAB.vectors
    assert auto.settings.dab_threshold == 0.2
    assert len(auto.notes) >= 3
    with pytest.raises(ConfigError, match="no sample tiles"):
        auto_settings_from_tiles([], pixel_size_um=0.5)


def test_dab_threshold_needs_two_groups() -> None:
    rng = np.random.default_rng(0)
    single = rng.normal(0.1, 0.1, 2000)
    cut, reason = derive_dab_threshold(single)
    assert cut == 0.2
    assert "do not fall" in reason
    cut, reason = derive_dab_threshold(np.r_[rng.normal(0, 0.03, 990), rng.normal(0.8, 0.1, 10)])
    assert reason == ""
    assert 0.15 < cut < 0.7
    assert "only 3" in derive_dab_threshold(np.array([0.1, 0.5, 0.9]))[1]
    assert "same DAB" in derive_dab_threshold(np.full(100, 0.05))[1]
