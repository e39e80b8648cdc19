"""Windows and whole slides, with a 'network' whose answer is known at every pixel."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shapely

from pyhisto.bundle.files import ModelClass, ModelSpec
from pyhisto.errors import PyhistoError
from pyhisto.inference import InferenceSettings, Lens, PredictedWindow, predict_probabilities, predict_tissue
from pyhisto.inference.grid import tile_note, tile_shape
from pyhisto.slide import Slide

Pixels = np.ndarray[Any, Any]
SPEC = ModelSpec(
    kind="tissue_segmentation",
    architecture="unet-resnet34",
    classes=(ModelClass("background"), ModelClass("tumour", "Tumor")),
    mpp=1.0,
    tile_size=32,
    overlap=4,
    postprocessing={
        "threshold": 0.5,
        "sigma_um": 0.0,
        "min_area_um2": 100.0,
        "min_hole_area_um2": 100.0,
        "simplify_um": 0.0,
    },
)


class ByColour:
    """Stands in for a bundle: probability of channel 1 is red / 255; wrong, on purpose, at the rim of each tile."""

    def __init__(self, spec: ModelSpec = SPEC) -> None:
        self.spec = spec
        self.path = Path("by-colour")
        self.stream_tile = (spec.tile_size, spec.overlap)
        self.stride = 1
        self.tiles_at_once = 8
        self.tiles: list[Pixels] = []

    def predict(self, tiles: Pixels) -> Pixels:
        self.tiles.extend(tiles)
        red = tiles[..., 0].astype(np.float32) / 255
        margin = self.spec.overlap // 2
        if margin:
            spoiled = np.full_like(red, 0.123)
            spoiled[:, margin:-margin, margin:-margin] = red[:, margin:-margin, margin:-margin]
            red = spoiled
        return np.stack([1 - red, red], axis=1)


def noise(height: int, width: int) -> Pixels:
    return np.random.default_rng(1).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("size", [(24, 24), (48, 72), (50, 61), (5, 100), (1, 1), (23, 25)])
@pytest.mark.parametrize("overlap", [0, 4])
def test_an_image_of_any_size(size: tuple[int, int], overlap: int) -> None:
    rgb = noise(*size)
    settings = InferenceSettings(batch_size=3)
    found = predict_probabilities(rgb, ByColour(replace(SPEC, overlap=overlap)), settings=settings)  # type: ignore[arg-type]
    assert found.dtype == np.float32
    assert found.shape == (2, *size)
    np.testing.assert_allclose(found[1], rgb[..., 0] / 255, atol=3e-7)
    np.testing.assert_allclose(found.sum(axis=0), 1.0, atol=1e-6)


def test_the_network_sees_what_lies_around() -> None:
    rgb = noise(48, 48)
    bundle = ByColour()
    predict_probabilities(rgb, bundle, settings=InferenceSettings(tile_size=32))  # type: ignore[arg-type]
    assert [tile.shape for tile in bundle.tiles] == [(32, 32, 3)] * 4
    first, last = bundle.tiles[0], bundle.tiles[3]
    np.testing.assert_array_equal(first[4:, 4:], rgb[:28, :28])
    np.testing.assert_array_equal(last[:28, :28], rgb[20:, 20:])
    np.testing.assert_array_equal(first[:4, 4:], rgb[3::-1, :28])  # mirrored beyond the edge
    np.testing.assert_array_equal(last[28:, :28], rgb[:43:-1, 20:])


def test_tiles_that_nobody_wants_are_left_out() -> None:
    rgb = noise(48, 72)
    wanted = np.zeros((48, 72), dtype=bool)
    wanted[30, 50] = True  # row 1, column 2 of cores of 24
    bundle = ByColour()
    found = predict_probabilities(rgb, bundle, wanted=wanted)  # type: ignore[arg-type]
    assert len(bundle.tiles) == 1
    np.testing.assert_allclose(found[1, 24:, 48:], rgb[24:, 48:, 0] / 255, atol=3e-7)
    assert (found[1, :22] == 0).all()  # a tile is used as far as 2 px around its core
    assert (found[1, :, :46] == 0).all()
    assert (found[0, :22] == 1).all()


def test_tiles_of_an_image_are_cropped_to_what_is_wanted() -> None:
    rgb = noise(280, 280)
    wanted = np.zeros((280, 280), dtype=bool)
    wanted[100:130, 30:230] = True
    bundle = ByColour(replace(SPEC, tile_size=64, overlap=8))
    bundle.stream_tile = (160, 8)
    settings = InferenceSettings(batch_size=1)
    found = predict_probabilities(rgb, bundle, wanted=wanted, settings=settings)  # type: ignore[arg-type]
    np.testing.assert_allclose(found[1][wanted], rgb[wanted][:, 0] / 255, atol=3e-7)
    # cells of 8 px from 24 to 232 and from 96 to 136, and 4 px around them; 64 px at least, 160² of them at most
    assert [tile.shape[:2] for tile in bundle.tiles] == [(64, 208 + 2 * 4)]


@pytest.mark.parametrize(
    ("tile_size", "overlap", "expected"),
    [
        (None, None, (2976, 224)),
        (None, 40, (2976, 64)),  # the network's coarse maps have 32 px
        (128, None, (128, 32)),  # a quarter of the tile
        (544, None, (544, 160)),  # 136, and the next multiple of the stride
        (1088, None, (1088, 224)),
        (288, 96, (288, 96)),
        (192, 72, (192, 72)),  # 96 would leave nothing
    ],
)
def test_the_overlap_of_tiles(tile_size: int | None, overlap: int | None, expected: tuple[int, int]) -> None:
    bundle = ByColour(replace(SPEC, tile_size=128, overlap=16))
    bundle.stream_tile, bundle.stride = (2976, 224), 32
    settings = InferenceSettings(tile_size=tile_size, overlap=overlap)
    shape = tile_shape(bundle, settings)  # type: ignore[arg-type]
    assert (shape.tile_size, shape.overlap) == expected
    # no tile is smaller than in training, and those that leave no room for a cut are whole
    assert shape.least == (None if tile_size in (128, 192, 288) else 128)


@pytest.mark.parametrize(
    ("tile_size", "overlap", "expected"),
    [
        (None, None, ""),
        (1088, None, ""),
        (None, 320, ""),
        (None, 200, ""),  # rounded up to 224
        (544, None, "tiles of 544 px reach 160 px into each other; with less than 224 px"),
        (None, 128, "tiles of 2976 px reach 128 px into each other; with less than 224 px"),
        (448, 216, "tiles of 448 px reach 216 px into each other; with less than 224 px"),
    ],
)
def test_tiles_that_leave_traces_are_named(tile_size: int | None, overlap: int | None, expected: str) -> None:
    bundle = ByColour(replace(SPEC, tile_size=128, overlap=16))
    bundle.stream_tile, bundle.stride = (2976, 224), 32
    said = tile_note(bundle, InferenceSettings(tile_size=tile_size, overlap=overlap))  # type: ignore[arg-type]
    assert said.startswith(expected)
    assert bool(said) == bool(expected)


def test_other_tiles_for_a_network_that_looks_at_all_of_a_tile_are_named() -> None:
    bundle = ByColour(replace(SPEC, tile_size=128, overlap=16))
    bundle.stream_tile = (128, 16)
    assert tile_note(bundle, InferenceSettings()) == ""  # type: ignore[arg-type]
    assert tile_note(bundle, InferenceSettings(tile_size=128)) == ""  # type: ignore[arg-type]
    said = tile_note(bundle, InferenceSettings(tile_size=256))  # type: ignore[arg-type]
    assert said == "tiles of 256 px for a network that is meant for 128 px: it may say something else"


def test_a_window_of_a_slide_costs_no_tile_more_than_its_cores(nests: Path) -> None:
    bundle = ByColour()
    with Slide(nests) as slide:
        predict_tissue(slide, bundle, shapely.box(0, 0, 192, 240))  # type: ignore[arg-type]  # 96 x 96 model px
    assert len(bundle.tiles) == 16


def test_nothing_wanted_asks_the_network_nothing() -> None:
    bundle = ByColour()
    found = predict_probabilities(noise(30, 30), bundle, wanted=np.zeros((30, 30), dtype=bool))  # type: ignore[arg-type]
    assert bundle.tiles == []
    assert (found[0] == 1).all()


MPP = (0.5, 0.4)
"""µm/px of the slide: a model pixel of 1 µm is 2 slide pixels across and 2.5 down."""

NEST = shapely.Point(420, 460).buffer(150).difference(shapely.Point(430, 470).buffer(50))
SECOND = shapely.box(700, 100, 860, 220)
TRUTH = shapely.union_all([NEST, SECOND])


@pytest.fixture(scope="module")
def nests(tmp_path_factory: pytest.TempPathFactory, write_tiff: Callable[..., Path]) -> Path:
    """960 x 896 px; red is 255 inside two nests, one of them with a hole, and 0 outside."""
    rows, columns = np.mgrid[0:896, 0:960]
    image = np.zeros((896, 960, 3), dtype=np.uint8)
    image[..., 0] = 255 * shapely.contains_xy(TRUTH, columns + 0.5, rows + 0.5)
    image[..., 2] = 90
    return write_tiff(tmp_path_factory.mktemp("nests") / "nests.tif", [image], mpp=MPP)


def overlap_share(found: Any, truth: Any) -> float:
    return float(found.intersection(truth).area / found.union(truth).area)


@pytest.mark.parametrize("region", [shapely.box(0, 0, 960, 896), shapely.box(13.3, 7.9, 940.2, 880.1)])
def test_tumour_is_where_it_is(nests: Path, region: Any) -> None:
    steps: list[tuple[int, int]] = []
    with Slide(nests) as slide:
        found = predict_tissue(
            slide,
            ByColour(),  # type: ignore[arg-type]
            region,
            settings=InferenceSettings(window=96),
            progress=lambda *done: steps.append(done),
        )
    assert len(found) == 2
    assert (found["object_type"] == "annotation").all()
    assert found["classification"].tolist() == ["Tumor", "Tumor"]
    assert found.geometry.is_valid.all()
    assert overlap_share(found.geometry.iloc[0], NEST) > 0.95
    assert overlap_share(found.geometry.iloc[1], SECOND) > 0.93  # sides snap to the map, 8 x 10 slide px
    assert overlap_share(shapely.union_all(found.geometry.to_numpy()), TRUTH) > 0.955
    # A shift by half a pixel of the map (4 and 5 slide px) would show in the centres of mass; the straight sides of the
    # second nest snap to the map's pixels, the round one's average out.
    for polygon, truth, tolerance in zip(found.geometry, (NEST, SECOND), (0.8, 3.1), strict=True):
        assert polygon.centroid.x == pytest.approx(truth.centroid.x, abs=tolerance)
        assert polygon.centroid.y == pytest.approx(truth.centroid.y, abs=tolerance)
    assert (found["Tumor probability"] > 0.9).all()
    assert steps == [(i + 1, len(steps)) for i in range(len(steps))]
    assert len(steps) > 4


@pytest.mark.parametrize(("threshold", "radius"), [(0.5, 300.0), (0.75, 290.0), (0.2, 312.0)])
def test_outlines_run_between_the_pixels_of_the_map(
    tmp_path: Path, write_tiff: Callable[..., Path], threshold: float, radius: float
) -> None:
    """Red falls linearly over 40 px around a circle of 300 px; a pixel of the map is 8 px wide and 10 px high."""
    rows, columns = np.mgrid[0:896, 0:960] + 0.5
    image = np.zeros((896, 960, 3), dtype=np.uint8)
    image[..., 0] = np.round(255 * np.clip(0.5 + (300 - np.hypot(columns - 480, rows - 448)) / 40, 0, 1))
    spec = replace(SPEC, postprocessing={**SPEC.postprocessing, "threshold": threshold})
    with Slide(write_tiff(tmp_path / "disc.tif", [image], mpp=MPP)) as slide:
        found = predict_tissue(slide, ByColour(spec), shapely.box(0, 0, 960, 896)).geometry  # type: ignore[arg-type]
    assert len(found) == 1
    x, y = shapely.get_coordinates(shapely.segmentize(found.iloc[0], 1.0)).T
    assert np.abs(np.hypot(x - 480, y - 448) - radius).max() < 0.5
    assert found.iloc[0].area == pytest.approx(np.pi * radius**2, rel=1e-3)


def test_a_coarse_model_keeps_its_own_pixels(nests: Path) -> None:
    """At 4 µm/px the second nest spans 87.5 to 107.5 pixels across and 10 to 22 down; its map is no coarser."""
    numbers = {**SPEC.postprocessing, "min_area_um2": 0.0}
    bundle = ByColour(replace(SPEC, mpp=4.0, postprocessing=numbers))
    with Slide(nests) as slide:
        found = predict_tissue(slide, bundle, shapely.box(0, 0, 960, 896))  # type: ignore[arg-type]
    sides = np.abs(np.array(found.geometry.iloc[1].bounds) - SECOND.bounds) * np.array([*MPP, *MPP])
    assert (sides <= 2.0 + 1e-6).all()  # half a pixel


def test_nothing_is_found_outside_the_region(nests: Path) -> None:
    region = shapely.box(400, 300, 960, 896)
    with Slide(nests) as slide:
        found = predict_tissue(slide, ByColour(), region)  # type: ignore[arg-type]
    area = shapely.union_all(found.geometry.to_numpy())
    assert area.difference(region.buffer(8.0)).area == 0
    assert overlap_share(area, TRUTH.intersection(region)) > 0.94


def test_the_threshold_the_area_and_the_hole_are_those_of_the_bundle(nests: Path) -> None:
    def found_with(**changes: float) -> Any:
        spec = replace(SPEC, postprocessing={**SPEC.postprocessing, **changes})
        with Slide(nests) as slide:
            return predict_tissue(slide, ByColour(spec), shapely.box(0, 0, 960, 896))  # type: ignore[arg-type]

    small_um2 = SECOND.area * MPP[0] * MPP[1]
    assert len(found_with(min_area_um2=1.1 * small_um2)) == 1
    assert len(found_with(min_area_um2=0.9 * small_um2)) == 2
    hole_um2 = np.pi * 50**2 * MPP[0] * MPP[1]
    assert len(found_with(min_hole_area_um2=1.15 * hole_um2).geometry.iloc[0].interiors) == 0
    assert len(found_with(min_hole_area_um2=0.85 * hole_um2).geometry.iloc[0].interiors) == 1
    wide = found_with(threshold=0.2, sigma_um=6.0).geometry.area.sum()
    tight = found_with(threshold=0.8, sigma_um=6.0).geometry.area.sum()
    assert wide > TRUTH.area > tight
    rough = found_with(simplify_um=6.0).geometry.iloc[0]
    assert len(rough.exterior.coords) < 30
    exact = found_with().geometry.iloc[0]
    # 6 µm are 12 px across and 15 down; points are left out of lines, so that no place of them moves farther
    assert shapely.hausdorff_distance(rough.boundary, exact.boundary, densify=0.01) <= 15.0
    assert overlap_share(exact, NEST) > 0.95


def test_no_tumour_and_no_region(nests: Path) -> None:
    with Slide(nests) as slide:
        bundle = ByColour()
        assert len(predict_tissue(slide, bundle, shapely.box(20, 700, 100, 800))) == 0  # type: ignore[arg-type]
        assert bundle.tiles
        bundle = ByColour()
        assert len(predict_tissue(slide, bundle, shapely.Polygon())) == 0  # type: ignore[arg-type]
        assert bundle.tiles == []


def test_only_the_region_is_looked_at(nests: Path) -> None:
    with Slide(nests) as slide:
        bundle = ByColour()
        region = shapely.MultiPolygon([shapely.box(0, 0, 20, 20), shapely.box(900, 840, 959, 895)])
        predict_tissue(slide, bundle, region)  # type: ignore[arg-type]
    assert 2 <= len(bundle.tiles) <= 12  # of more than 300


def test_a_model_of_another_kind_is_refused(nests: Path) -> None:
    with Slide(nests) as slide, pytest.raises(PyhistoError, match="cell_detection; expected tissue_segmentation"):
        predict_tissue(slide, ByColour(replace(SPEC, kind="cell_detection")), TRUTH)  # type: ignore[arg-type]


def test_a_missing_number_is_named(nests: Path) -> None:
    numbers = {key: value for key, value in SPEC.postprocessing.items() if key != "sigma_um"}
    with Slide(nests) as slide, pytest.raises(PyhistoError, match="sigma_um"):
        predict_tissue(slide, ByColour(replace(SPEC, postprocessing=numbers)), TRUTH)  # type: ignore[arg-type]


class ByThreeColours(ByColour):
    """Stands in for a bundle of two tissue classes: their probabilities are red / 255 and blue / 255."""

    def predict(self, tiles: Pixels) -> Pixels:
        self.tiles.extend(tiles)
        red, blue = tiles[..., 0].astype(np.float32) / 255, tiles[..., 2].astype(np.float32) / 255
        return np.stack([1 - red - blue, red, blue], axis=1)


def test_every_class_gets_its_annotations(nests: Path) -> None:
    names = (ModelClass("background"), ModelClass("tumour", "Tumor"), ModelClass("stroma", "Stroma"))
    spec = replace(SPEC, classes=names, postprocessing={**SPEC.postprocessing, "threshold": 0.3})
    with Slide(nests) as slide:
        found = predict_tissue(slide, ByThreeColours(spec), shapely.box(0, 0, 960, 896))  # type: ignore[arg-type]
    tumour, stroma = (found[found["classification"] == name] for name in ("Tumor", "Stroma"))
    assert overlap_share(shapely.union_all(tumour.geometry.to_numpy()), TRUTH) > 0.95
    # blue is 90 everywhere: more than the threshold, but less than red in the nests
    outside = shapely.union_all(stroma.geometry.to_numpy())
    assert outside.intersection(TRUTH.buffer(-12)).area == 0
    assert outside.area == pytest.approx(960 * 896 - TRUTH.area, rel=0.05)
    assert stroma["Stroma probability"].iloc[0] == pytest.approx(90 / 255, abs=0.02)


def test_a_lens_changes_what_is_seen_and_not_where_it_is(nests: Path) -> None:
    whole = shapely.box(0, 0, 960, 896)
    plain, doubled = ByColour(), ByColour()
    with Slide(nests) as slide:
        predict_tissue(slide, plain, whole)  # type: ignore[arg-type]
        found = predict_tissue(slide, doubled, whole, lens=Lens(2.0))  # type: ignore[arg-type]
        swapped = predict_tissue(slide, ByColour(), whole, lens=Lens(1.0, lambda rgb: rgb[..., ::-1].copy()))  # type: ignore[arg-type]
    assert len(doubled.tiles) < len(plain.tiles) / 3
    assert overlap_share(shapely.union_all(found.geometry.to_numpy()), TRUTH) > 0.9
    assert len(swapped) == 0  # blue is 90 everywhere, below the threshold of 0.5


def test_how_the_slide_is_cut_changes_no_annotation(nests: Path) -> None:
    region = shapely.box(13.3, 7.9, 940.2, 880.1)
    found = []
    with Slide(nests) as slide:
        for settings in [
            InferenceSettings(),
            InferenceSettings(window=65),
            InferenceSettings(window=128, tile_size=32, overlap=8, batch_size=2),
        ]:
            spec = replace(SPEC, postprocessing={**SPEC.postprocessing, "sigma_um": 6.0})
            found.append(predict_tissue(slide, ByColour(spec), region, settings=settings))  # type: ignore[arg-type]
    whole, windows, tiles = found
    assert [one.equals(two) for one, two in zip(whole.geometry, windows.geometry, strict=True)] == [True, True]
    assert windows["Tumor probability"].tolist() == whole["Tumor probability"].tolist()
    # other tiles are summed in another order, so that a value at the threshold may be rounded to its other side
    assert all(overlap_share(one, two) > 0.995 for one, two in zip(whole.geometry, tiles.geometry, strict=True))
    np.testing.assert_allclose(tiles["Tumor probability"], whole["Tumor probability"], rtol=1e-3)


def test_maps_are_worked_on_in_bands(nests: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = replace(SPEC, postprocessing={**SPEC.postprocessing, "sigma_um": 6.0})
    found = []
    with Slide(nests) as slide:
        for pixels in (1 << 19, 700):  # the maps are 120 px wide
            monkeypatch.setattr("pyhisto.inference.heat.BAND_PIXELS", pixels)
            found.append(predict_tissue(slide, ByColour(spec), shapely.box(0, 0, 960, 896)))  # type: ignore[arg-type]
    assert [one.equals(two) for one, two in zip(found[0].geometry, found[1].geometry, strict=True)] == [True, True]
    np.testing.assert_allclose(found[0]["Tumor probability"], found[1]["Tumor probability"], rtol=1e-6)


def test_the_probability_is_the_mean_over_the_annotation(nests: Path) -> None:
    """The nests are as red as 200 / 255, so that is the mean wherever the map holds nothing else."""

    class Fainter(ByColour):
        def predict(self, tiles: Pixels) -> Pixels:
            red = tiles[..., 0].astype(np.float32) / 255 * np.float32(200 / 255)
            return np.stack([1 - red, red], axis=1)

    with Slide(nests) as slide:
        found = predict_tissue(slide, Fainter(), shapely.box(0, 0, 960, 896))  # type: ignore[arg-type]
    # pixels of the map at the rim are partly outside; a square of 80 x 48 µm has 20 x 12 of them
    assert 0.72 < found["Tumor probability"].iloc[1] <= 200 / 255


def test_observers_see_every_window_once_in_order(nests: Path) -> None:
    seen: list[PredictedWindow] = []
    again: list[int] = []
    with Slide(nests) as slide:
        predict_tissue(
            slide,
            ByColour(),  # type: ignore[arg-type]
            shapely.box(0, 0, 960, 896),
            settings=InferenceSettings(window=128),
            observers=[seen.append, lambda window: again.append(window.number)],
        )
    assert again == [window.number for window in seen] == list(range(len(seen)))
    assert [window.core for window in seen[:5]] == [
        (0, 0, 128, 128),
        (128, 0, 256, 128),
        (256, 0, 384, 128),
        (384, 0, 480, 128),
        (0, 128, 128, 256),
    ]
