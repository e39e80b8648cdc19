"""Synthetic slides: what is drawn is what the truth says, and the file is one that OpenSlide reads."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import openslide
import pytest
import shapely
import tifffile
from scipy import ndimage as ndi
from scipy.spatial import cKDTree

from pyhisto.errors import ConfigError
from pyhisto.objects import validate_objects
from pyhisto.synth import (
    NUCLEUS_CLASSES,
    AnnotationHabits,
    SynthSettings,
    SynthTruth,
    annotate_like_a_pathologist,
    make_slide,
)

SMALL = SynthSettings(width=1280, height=1152, seed=5, compression="deflate")


@dataclass(frozen=True)
class Drawn:
    path: Path
    truth: SynthTruth
    pixels: np.ndarray[Any, Any]


def draw(path: Path, settings: SynthSettings) -> Drawn:
    truth = make_slide(path, settings)
    return Drawn(path, truth, tifffile.imread(path))


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Drawn:
    return draw(tmp_path_factory.mktemp("synth") / "small.tif", SMALL)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Drawn:
    """A slide from the middling scanner, without noise, every tumour nucleus positive."""
    settings = SynthSettings(
        width=800,
        height=800,
        seed=3,
        proliferation=1.0,
        stain_variation=0,
        scanner_variation=0,
        noise=0,
        pen_mark=False,
        compression="deflate",
    )
    return draw(tmp_path_factory.mktemp("synth") / "plain.tif", settings)


def nuclei_of(truth: SynthTruth, prefix: str) -> np.ndarray[Any, Any]:
    which = truth.nuclei["classification"].astype(str).str.startswith(prefix)
    return truth.nuclei.geometry.to_numpy()[which.to_numpy()]


def centres(geometry: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return shapely.get_coordinates(shapely.centroid(geometry))


def mask_of(polygons: np.ndarray[Any, Any], shape: tuple[int, int]) -> np.ndarray[Any, Any]:
    """Pixels whose centres (ix + 0.5, iy + 0.5) lie in one of the polygons."""
    mask = np.zeros(shape, dtype=bool)
    for polygon in polygons:
        left, top, right, bottom = (int(v) for v in polygon.bounds)
        x, y = np.meshgrid(np.arange(left, right + 1), np.arange(top, bottom + 1))
        mask[top : bottom + 1, left : right + 1] |= shapely.contains_xy(polygon, x + 0.5, y + 0.5)
    return mask


@pytest.mark.parametrize(("compression", "mpp"), [("jpeg", 0.5), ("deflate", 0.25)])
def test_openslide_reads_the_pyramid(tmp_path: Path, compression: Any, mpp: float) -> None:
    path = tmp_path / "slide.tif"
    make_slide(path, SynthSettings(width=1101, height=1030, mpp=mpp, seed=1, compression=compression))
    with openslide.OpenSlide(path) as slide:
        assert slide.properties["openslide.vendor"] == "generic-tiff"
        assert slide.level_dimensions == ((1101, 1030), (550, 515), (275, 257))
        assert float(slide.properties["openslide.mpp-x"]) == pytest.approx(mpp)
        assert float(slide.properties["openslide.mpp-y"]) == pytest.approx(mpp)
        assert slide.properties["openslide.level[0].tile-width"] == "256"
        base = np.asarray(slide.read_region((0, 0), 0, (1100, 1028)))[..., :3].astype(float)
        second = np.asarray(slide.read_region((0, 0), 2, (275, 257)))[..., :3].astype(float)
    misfit = {step: np.abs(_quarter(np.roll(base, step, axis=(0, 1))) - second) for step in (-1, 0, 1)}
    assert misfit[0].mean() < 0.75 * min(misfit[-1].mean(), misfit[1].mean())
    if compression == "deflate":  # two halvings, each rounded half up: at most one grey level
        assert misfit[0].max() <= 1.0


def _quarter(image: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    rows, columns = image.shape[0] // 4, image.shape[1] // 4
    return image.reshape(rows, 4, columns, 4, 3).mean(axis=(1, 3))


def test_jpeg_keeps_the_colours(tmp_path: Path) -> None:
    lossless = draw(tmp_path / "a.tif", SynthSettings(width=640, height=640, seed=2, compression="deflate"))
    make_slide(tmp_path / "b.tif", SynthSettings(width=640, height=640, seed=2, compression="jpeg"))
    with openslide.OpenSlide(tmp_path / "b.tif") as slide:
        lossy = np.asarray(slide.read_region((0, 0), 0, (640, 640)))[..., :3]
    difference = lossy.astype(float) - lossless.pixels.astype(float)
    assert np.abs(difference.mean(axis=(0, 1))).max() < 1.0
    assert np.abs(difference).mean() < 4.0


def test_same_settings_same_slide(tmp_path: Path, small: Drawn) -> None:
    again = draw(tmp_path / "again.tif", SMALL)
    assert np.array_equal(again.pixels, small.pixels)
    for name in ("tissue", "tumour", "nuclei", "pen"):
        one, two = getattr(small.truth, name), getattr(again.truth, name)
        assert one.index.equals(two.index)
        assert shapely.to_wkb(one.geometry.to_numpy()).tolist() == shapely.to_wkb(two.geometry.to_numpy()).tolist()
    assert again.truth.nuclei["classification"].equals(small.truth.nuclei["classification"])


def test_another_seed_another_slide(tmp_path: Path) -> None:
    one = draw(tmp_path / "1.tif", SynthSettings(width=500, height=500, seed=1))
    two = draw(tmp_path / "2.tif", SynthSettings(width=500, height=500, seed=2))
    assert not np.array_equal(one.pixels, two.pixels)


@pytest.mark.parametrize("wanted", [0.0, 0.37])
def test_index_is_what_was_asked_for(tmp_path: Path, wanted: float) -> None:
    truth = make_slide(tmp_path / "s.tif", SynthSettings(width=700, height=700, seed=8, proliferation=wanted))
    positive, tumour = len(nuclei_of(truth, "Tumor: Positive")), len(nuclei_of(truth, "Tumor"))
    assert positive == round(wanted * tumour)
    assert truth.ki67_index == positive / tumour


def test_tables_keep_the_rules(small: Drawn) -> None:
    for table in (small.truth.tissue, small.truth.tumour, small.truth.nuclei, small.truth.pen):
        validate_objects(table)
        assert table.geometry.is_valid.all()
    assert set(small.truth.nuclei["classification"]) == set(NUCLEUS_CLASSES)
    assert set(small.truth.tumour["classification"]) == {"Tumor"}


def test_layout_is_that_of_a_tumour(small: Drawn) -> None:
    truth = small.truth
    tissue = shapely.union_all(truth.tissue.geometry.to_numpy())
    tumour = shapely.union_all(truth.tumour.geometry.to_numpy())
    left, top, right, bottom = tissue.bounds
    assert min(left, top, SMALL.width - right, SMALL.height - bottom) > 20
    assert 0.2 < tumour.area / tissue.area < 0.5
    assert tissue.contains(tumour)
    assert shapely.contains(tissue, shapely.centroid(truth.nuclei.geometry.to_numpy())).all()
    assert shapely.contains(tumour, shapely.centroid(nuclei_of(truth, "Tumor"))).mean() > 0.995
    assert not shapely.contains(tumour, shapely.centroid(nuclei_of(truth, "Stroma"))).any()


def test_nuclei_have_the_sizes_of_their_kinds(small: Drawn) -> None:
    def diameter_um(prefix: str) -> np.ndarray[Any, Any]:
        return 2 * np.sqrt(shapely.area(nuclei_of(small.truth, prefix)) / np.pi) * SMALL.mpp

    tumour, immune = diameter_um("Tumor"), diameter_um("Immune")
    assert tumour.min() > 6.3
    assert tumour.max() < 14.0
    assert immune.min() > 4.2
    assert immune.max() < 7.5
    assert np.median(tumour) > 1.3 * np.median(immune)
    box = shapely.minimum_rotated_rectangle(nuclei_of(small.truth, "Stroma"))
    corners = shapely.get_coordinates(box).reshape(-1, 5, 2)
    sides = np.sort(np.linalg.norm(np.diff(corners[:, :3], axis=1), axis=2), axis=1)
    assert np.median(sides[:, 1] / sides[:, 0]) > 2.5


def test_tumour_nuclei_are_packed_but_hardly_overlap(small: Drawn) -> None:
    tumour = nuclei_of(small.truth, "Tumor")
    nearest, _ = cKDTree(centres(tumour) * SMALL.mpp).query(centres(tumour) * SMALL.mpp, k=2)
    assert 8.0 < np.median(nearest[:, 1]) < 12.0
    everything = small.truth.nuclei.geometry.to_numpy()
    shared = shapely.area(everything).sum() - shapely.area(shapely.union_all(everything))
    assert shared / shapely.area(everything).sum() < 0.03


def test_truth_lies_on_the_pixels(plain: Drawn) -> None:
    """The darkness correlates best with the outlines where they are, to a fraction of a pixel."""
    mask = mask_of(nuclei_of(plain.truth, "Tumor"), plain.pixels.shape[:2]).astype(float)
    dark = 255.0 - plain.pixels.mean(axis=2)
    for axis in (0, 1):
        scores = [float((np.roll(mask, step, axis) * dark).sum()) for step in (-2, -1, 0, 1, 2)]
        assert int(np.argmax(scores)) == 2
        curve = scores[1] - 2 * scores[2] + scores[3]
        assert abs(0.5 * (scores[1] - scores[3]) / curve) < 0.1


def test_outline_is_where_the_stain_ends(plain: Drawn) -> None:
    """Just inside the outlines it is dark, just outside it is not."""
    nuclei = nuclei_of(plain.truth, "Tumor")
    inside = mask_of(shapely.buffer(nuclei, -1.0), plain.pixels.shape[:2])
    near = mask_of(shapely.buffer(nuclei, 3.0), plain.pixels.shape[:2])
    outside = near & ~mask_of(shapely.buffer(plain.truth.nuclei.geometry.to_numpy(), 2.0), plain.pixels.shape[:2])
    grey = plain.pixels.mean(axis=2)
    assert grey[inside].mean() + 80 < grey[outside].mean()
    assert np.percentile(grey[inside], 90) < np.percentile(grey[outside], 10)


def test_glass_of_the_middling_scanner(plain: Drawn) -> None:
    # white = (0.925, 0.922, 0.930) of 255: 235.9, 235.1, 237.2
    assert np.median(plain.pixels[:30].reshape(-1, 3), axis=0).tolist() == [236, 235, 237]


def test_positive_nuclei_are_brown_and_others_blue(small: Drawn) -> None:
    for prefix, brown in (("Tumor: Positive", True), ("Tumor: Negative", False)):
        pixels = small.pixels[mask_of(nuclei_of(small.truth, prefix), small.pixels.shape[:2])].astype(float)
        assert (pixels[:, 0].mean() > pixels[:, 2].mean() + 5) == brown
        assert (pixels[:, 2].mean() > pixels[:, 0].mean() + 20) == (not brown)


def test_mean_colour_does_not_tell_nest_from_stroma(small: Drawn) -> None:
    shape = small.pixels.shape[:2]
    tumour = mask_of(small.truth.tumour.geometry.to_numpy(), shape)
    free = mask_of(small.truth.tissue.geometry.buffer(-16).to_numpy(), shape)
    free &= ~mask_of(small.truth.nuclei.geometry.buffer(3).to_numpy(), shape)
    nest, stroma = small.pixels[free & tumour].mean(axis=0), small.pixels[free & ~tumour].mean(axis=0)
    assert np.abs(nest - stroma).max() < 12


def test_pen_mark(tmp_path: Path, small: Drawn) -> None:
    pen = mask_of(small.truth.pen.geometry.buffer(-10).to_numpy(), small.pixels.shape[:2])
    assert pen.sum() > 2000
    assert small.pixels[pen].min(axis=1).mean() < 80
    without = make_slide(tmp_path / "s.tif", SynthSettings(width=500, height=500, pen_mark=False))
    assert len(without.pen) == 0


@pytest.mark.parametrize("threshold", [0.1, 0.2, 0.3, 0.4])
def test_a_fixed_threshold_over_the_tissue_fails(small: Drawn, threshold: float) -> None:
    """Dark blobs, positive above a DAB threshold, with QuPath's default vectors: off by more than 5 points."""
    haematoxylin, dab = np.array([0.65111, 0.70119, 0.29049]), np.array([0.26917, 0.56824, 0.77759])
    third = np.cross(haematoxylin, dab)
    vectors = np.stack([haematoxylin, dab, third / np.linalg.norm(third)])
    density = -np.log10(np.maximum(small.pixels, 1) / 255.0)
    brown = (density @ np.linalg.inv(vectors))[..., 1]
    labels, _ = ndi.label(ndi.gaussian_filter(density.sum(axis=2), 1.5) > 0.6)
    area = np.bincount(labels.ravel())
    blobs = np.flatnonzero((area > 40) & (area < 2500))
    blobs = blobs[blobs > 0]
    assert len(blobs) > 100
    index = float((ndi.mean(brown, labels, blobs) > threshold).mean())
    assert abs(index - small.truth.ki67_index) > 0.05


def test_slide_without_tumour(tmp_path: Path) -> None:
    truth = make_slide(tmp_path / "s.tif", SynthSettings(width=600, height=600, seed=4, tumour_fraction=0.0))
    assert len(truth.tumour) == 0
    assert len(nuclei_of(truth, "Tumor")) == 0
    assert np.isnan(truth.ki67_index)
    annotations = annotate_like_a_pathologist(truth, np.random.default_rng(0))
    assert set(annotations["classification"]) == {"Stroma"}


def test_saved_truth_reads_back(tmp_path: Path, small: Drawn) -> None:
    names = [path.name for path in small.truth.save(tmp_path, "small")]
    assert names == ["small.tissue.parquet", "small.tumour.parquet", "small.nuclei.parquet", "small.pen.parquet"]
    nuclei = gpd.read_parquet(tmp_path / "small.nuclei.parquet")
    assert nuclei.index.tolist() == small.truth.nuclei.index.tolist()
    assert nuclei.geometry.geom_equals(small.truth.nuclei.geometry).all()
    assert nuclei["classification"].astype(str).tolist() == small.truth.nuclei["classification"].astype(str).tolist()


def test_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "slide.tif"
    path.write_bytes(b"old")

    def full(*args: Any, **kwargs: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tifffile.TiffWriter, "write", full)
    with pytest.raises(OSError, match="No space left"):
        make_slide(path, SynthSettings(width=500, height=500))
    assert [child.name for child in tmp_path.iterdir()] == ["slide.tif"]
    assert path.read_bytes() == b"old"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mpp": 0.0}, "mpp = 0"),
        ({"width": 200}, "width = 200 px"),
        ({"height": 479}, r"height = 479 px \(239.5 µm\)"),
        ({"seed": -1}, "seed = -1"),
        ({"proliferation": 1.2}, "proliferation = 1.2"),
        ({"stain_variation": 3.0}, "stain_variation = 3"),
        ({"noise": float("nan")}, "noise = nan"),
        ({"compression": "lzw"}, "compression = 'lzw'"),
    ],
)
def test_impossible_settings_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        SynthSettings(**change)


def test_annotations_cover_every_tumour_nucleus_of_a_rectangle(small: Drawn) -> None:
    habits = AnnotationHabits(rectangles=3, rectangle_um=120.0)
    table = annotate_like_a_pathologist(small.truth, np.random.default_rng(1), habits)
    validate_objects(table)
    rectangles = table[table["classification"] == "Training"]
    assert len(rectangles) == 3
    assert (rectangles.geometry.area == 240.0**2).all()
    assert shapely.area(shapely.union_all(rectangles.geometry.to_numpy())) == 3 * 240.0**2
    for name, rectangle in zip(rectangles["name"], rectangles.geometry, strict=True):
        for kind in ("Tumor: Positive", "Tumor: Negative"):
            true = centres(nuclei_of(small.truth, kind))
            true = true[shapely.contains_xy(rectangle, true[:, 0], true[:, 1])]
            drawn = table[(table["name"] == name) & (table["classification"] == kind)].geometry
            clicks = shapely.get_coordinates(drawn.to_numpy())
            assert len(clicks) == len(true) > 0
            distance, _ = cKDTree(true).query(clicks)
            # two axes of 0.5 µm = 1 px each: the mean distance is sqrt(pi / 2) = 1.25 px
            assert distance.max() < 5.0
            assert 0.5 < distance.mean() < 2.0


def test_outlines_are_sloppy_but_right(small: Drawn) -> None:
    table = annotate_like_a_pathologist(small.truth, np.random.default_rng(1))
    true = shapely.union_all(small.truth.tumour.geometry.to_numpy())
    drawn = shapely.union_all(table.geometry[table["classification"] == "Tumor"].to_numpy())
    overlap = drawn.intersection(true).area / drawn.union(true).area
    assert 0.85 < overlap < 0.995
    stroma = shapely.union_all(table.geometry[table["classification"] == "Stroma"].to_numpy())
    assert stroma.area > 0.15 * true.area
    assert stroma.intersection(true).area < 1e-6 * true.area


def test_careful_hand_draws_the_truth(small: Drawn) -> None:
    habits = AnnotationHabits(rectangles=1, line_jitter_um=0.0, point_jitter_um=0.0, smallest_hole_um2=0.0)
    table = annotate_like_a_pathologist(small.truth, np.random.default_rng(1), habits)
    true = shapely.union_all(small.truth.tumour.geometry.to_numpy())
    drawn = shapely.union_all(table.geometry[table["classification"] == "Tumor"].to_numpy())
    assert drawn.intersection(true).area / drawn.union(true).area > 0.985
    clicks = shapely.get_coordinates(table.geometry[table["classification"] == "Tumor: Positive"].to_numpy())
    distance, _ = cKDTree(centres(nuclei_of(small.truth, "Tumor: Positive"))).query(clicks)
    assert distance.max() < 0.51


def test_same_generator_same_annotations(small: Drawn) -> None:
    one, two = (annotate_like_a_pathologist(small.truth, np.random.default_rng(9)) for _ in range(2))
    assert one.index.equals(two.index)
    assert one.geometry.geom_equals_exact(two.geometry, 0.0).all()


def test_impossible_habits_are_refused() -> None:
    with pytest.raises(ConfigError, match="rectangles = -1"):
        AnnotationHabits(rectangles=-1)
    with pytest.raises(ConfigError, match="rectangle_um = 0"):
        AnnotationHabits(rectangle_um=0.0)
