"""Which regions are proposed: scores, shapes, quality, features, and the choice within a budget."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.ndimage as ndi
import shapely
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from pyhisto.active.candidates import SlideView, candidates, describe
from pyhisto.active.features import pooled_features, stain_features
from pyhisto.active.grid import Grid, Overview, read_overview
from pyhisto.active.quality import overview_quality
from pyhisto.active.regions import Candidate, Ground, RegionSettings, adaptive_boxes, mean_inside, square_boxes
from pyhisto.active.scores import bald, class_frequencies, entropy, flips, margin, rarity, score_map
from pyhisto.active.select import k_center, select
from pyhisto.active.strategy import Strategy, parse_strategy
from pyhisto.errors import ConfigError
from pyhisto.maps import Maps
from pyhisto.slide import Slide
from pyhisto.stain import H_DAB, H_E

TWO = ("Tumor probability", "Stroma probability")


def maps_of(*layers: np.ndarray, names: tuple[str, ...] = TWO, um: float = 8.0) -> Maps:
    return Maps(names, np.stack(layers).astype(np.float32), (0.0, 0.0), (um * 2, um * 2), um)


def pixel(*probabilities: float) -> Maps:
    return maps_of(*(np.full((1, 1), p) for p in probabilities), names=TWO[: len(probabilities)])


# ------------------------------------------------------------------------------------------------ strategy
@pytest.mark.parametrize(
    "name", ["entropy", "margin+diversity", "bald+rarity+diversity", "flips+rarity", "random", "diversity"]
)
def test_a_strategy_is_read_back_from_its_name(name: str) -> None:
    assert parse_strategy(name).name == name


@pytest.mark.parametrize("name", ["", "entrpy", "entropy+margin", "entropy+entropy", "rarity+random", "rarity"])
def test_a_strategy_that_makes_no_sense_is_refused(name: str) -> None:
    with pytest.raises(ConfigError):
        parse_strategy(name)


# ------------------------------------------------------------------------------------------------ scores
def test_scores_of_one_pixel() -> None:
    # probabilities: background 0.2, tumour 0.5, stroma 0.3
    one = pixel(0.5, 0.3)
    by_hand = -(0.2 * math.log(0.2) + 0.5 * math.log(0.5) + 0.3 * math.log(0.3)) / math.log(3)
    assert entropy([one])[0, 0] == pytest.approx(by_hand, rel=1e-6)
    assert margin([one])[0, 0] == pytest.approx(1 - (0.5 - 0.3), rel=1e-6)


def test_the_entropy_of_pixels_is_taken_where_the_maps_have_it() -> None:
    maps = maps_of(np.full((1, 1), 0.5), np.full((1, 1), 0.123), names=("Tumor probability", "Entropy"))
    assert entropy([maps])[0, 0] == pytest.approx(0.123)
    other = maps_of(np.full((1, 1), 0.5), np.full((1, 1), 0.9), names=("Tumor probability", "Entropy"))
    assert entropy([maps, other])[0, 0] == pytest.approx(1.0)  # of the mean prediction: half and half


def test_bald_is_high_where_members_disagree_and_zero_where_all_are_unsure() -> None:
    # two sure members that contradict each other: H(mean) = log 2, mean of H = 0
    assert bald([pixel(1.0), pixel(0.0)])[0, 0] == pytest.approx(1.0, abs=1e-5)
    assert bald([pixel(0.5), pixel(0.5)])[0, 0] == pytest.approx(0.0, abs=1e-6)

    def h(p: float) -> float:
        return -(p * math.log2(p) + (1 - p) * math.log2(1 - p))

    assert bald([pixel(0.9), pixel(0.3)])[0, 0] == pytest.approx(h(0.6) - (h(0.9) + h(0.3)) / 2, rel=1e-5)
    with pytest.raises(ConfigError, match="BALD of one prediction"):
        bald([pixel(0.5)])


def test_flips_are_shares_of_the_greatest_variance() -> None:
    maps = maps_of(np.full((1, 1), 0.5), np.full((1, 1), 0.25), names=("Tumor probability", "Flip variance"))
    assert flips([maps])[0, 0] == pytest.approx(1.0)
    with pytest.raises(ConfigError, match="Flip variance"):
        flips([pixel(0.5)])


def test_rare_classes_weigh_by_their_inverse_frequency() -> None:
    tumour = np.array([[1.0, 0.0, 0.0, 0.0]])
    stroma = np.array([[0.0, 1.0, 0.0, 0.0]])  # background on the other two
    maps = maps_of(tumour, stroma)
    frequencies = class_frequencies([(maps, np.ones((1, 4), bool))])
    np.testing.assert_allclose(frequencies, [0.5, 0.25, 0.25])
    np.testing.assert_allclose(rarity([maps], frequencies), [[4 / 3, 4 / 3, 2 / 3, 2 / 3]], rtol=1e-6)
    # pixels off the tissue do not count
    np.testing.assert_allclose(class_frequencies([(maps, np.array([[True, False, False, False]]))]), [0, 1, 0])


def test_rarity_without_frequencies_is_refused() -> None:
    with pytest.raises(ConfigError, match="frequencies"):
        score_map([pixel(0.5)], parse_strategy("entropy+rarity"))


# ------------------------------------------------------------------------------------------------ regions
def ground(shape: tuple[int, int], um: float = 8.0, **masks: np.ndarray) -> Ground:
    full = {"tissue": np.ones(shape, bool), "bad": np.zeros(shape, bool), "taken": np.zeros(shape, bool)}
    return Ground(**(full | masks), um=um)


SQUARES = RegionSettings(side_um=64, most=10)  # 8 pixels of 8 µm


def test_the_best_square_lies_on_the_best_area_and_the_next_beside_it() -> None:
    score = np.zeros((32, 32), np.float32)
    score[8:16, 16:24] = 1
    boxes = square_boxes(score, ground((32, 32)), SQUARES, np.random.default_rng(0))
    assert boxes[0] == (8, 16, 16, 24)
    assert mean_inside(score, ground((32, 32)), boxes[0]) == 1


def test_squares_keep_off_glass_bad_tissue_and_what_is_taken() -> None:
    tissue = np.ones((32, 32), bool)
    tissue[:, 16:] = False
    bad = np.zeros((32, 32), bool)
    bad[:8] = True
    taken = np.zeros((32, 32), bool)
    taken[31, 0] = True
    there = ground((32, 32), tissue=tissue, bad=bad, taken=taken)
    boxes = square_boxes(None, there, SQUARES, np.random.default_rng(1))
    assert boxes
    for top, left, bottom, right in boxes:
        assert tissue[top:bottom, left:right].mean() >= 0.5
        inside = tissue[top:bottom, left:right]
        assert bad[top:bottom, left:right][inside].mean() <= 0.2
        assert not taken[top:bottom, left:right].any()


def test_a_score_counts_on_good_tissue_alone() -> None:
    score = np.full((8, 8), np.nan, np.float32)
    score[:4], score[4:] = 0.2, 0.9
    tissue = np.ones((8, 8), bool)
    tissue[4:] = False  # the high half is glass
    assert mean_inside(score, ground((8, 8), tissue=tissue), (0, 0, 8, 8)) == pytest.approx(0.2)


def test_an_image_smaller_than_a_region_gives_none() -> None:
    assert square_boxes(None, ground((4, 40)), SQUARES, np.random.default_rng(0)) == []
    assert adaptive_boxes(np.ones((4, 40), np.float32), ground((4, 40)), RegionSettings(min_um=64)) == []


def test_an_adaptive_region_has_the_shape_of_what_is_uncertain() -> None:
    score = np.zeros((60, 60), np.float32)
    score[20:28, 10:40] = 1  # 64 x 240 µm
    settings = RegionSettings(shape="adaptive", min_um=32, max_um=320, most=1)
    ((top, left, bottom, right),) = adaptive_boxes(score, ground((60, 60)), settings)
    # smoothing over a quarter of the least side, 1 pixel, lets the area grow by a few pixels
    assert (top, left, bottom, right) == pytest.approx((20, 10, 28, 40), abs=5)
    assert right - left > 2 * (bottom - top)


def test_adaptive_regions_keep_within_their_sides() -> None:
    rng = np.random.default_rng(2)
    score = ndi.gaussian_filter(rng.random((80, 80)), 4).astype(np.float32)
    settings = RegionSettings(shape="adaptive", min_um=64, max_um=160, most=12)
    boxes = adaptive_boxes(score, ground((80, 80)), settings)
    assert len(boxes) == 12
    for top, left, bottom, right in boxes:
        assert 8 <= bottom - top <= 20
        assert 8 <= right - left <= 20


def test_a_single_peak_becomes_a_region_of_the_least_size() -> None:
    score = np.zeros((40, 40), np.float32)
    score[0, 0] = 1
    tissue = np.zeros((40, 40), bool)
    tissue[:8, :8] = True
    settings = RegionSettings(shape="adaptive", min_um=64, max_um=80, most=3)
    assert adaptive_boxes(score, ground((40, 40), tissue=tissue), settings)[0][:2] == (0, 0)


@hypothesis_settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from(["square", "adaptive"]))
def test_regions_never_overlap_and_never_leave_the_tissue(seed: int, shape: str) -> None:
    rng = np.random.default_rng(seed)
    score = ndi.gaussian_filter(rng.random((48, 56)), 2).astype(np.float32)
    score[rng.random(score.shape) < 0.1] = np.nan
    there = ground(
        (48, 56),
        tissue=ndi.gaussian_filter(rng.random((48, 56)), 4) > 0.49,
        bad=ndi.gaussian_filter(rng.random((48, 56)), 3) > 0.54,
        taken=rng.random((48, 56)) > 0.998,
    )
    settings = RegionSettings(shape=shape, side_um=48, min_um=32, max_um=96, most=20)
    boxes = square_boxes(score, there, settings, rng) if shape == "square" else adaptive_boxes(score, there, settings)
    covered = np.zeros((48, 56), int)
    for top, left, bottom, right in boxes:
        assert 0 <= top < bottom <= 48
        assert 0 <= left < right <= 56
        covered[top:bottom, left:right] += 1
        inside = there.tissue[top:bottom, left:right]
        assert inside.mean() >= 0.5
        assert there.bad[top:bottom, left:right][inside].mean() <= 0.2
    assert covered.max(initial=0) <= 1
    assert not (there.taken & (covered > 0)).any()


# ------------------------------------------------------------------------------------------------ grid
GRID = Grid((100.0, 200.0), (16.0, 8.0), 4.0, (10, 20))


def test_a_box_and_its_polygon() -> None:
    polygon = GRID.polygon((2, 3, 5, 7))
    assert polygon.bounds == (148, 216, 212, 240)
    assert GRID.box(polygon) == (2, 3, 5, 7)
    assert GRID.box(shapely.box(-1000, -1000, 5000, 5000)) == (0, 0, 10, 20)


def test_what_touches_a_pixel_takes_it() -> None:
    exact = GRID.touched([GRID.polygon((2, 3, 5, 7))])
    assert np.argwhere(exact).min(axis=0).tolist() == [2, 3]
    assert exact.sum() == 3 * 4
    moved = GRID.touched([shapely.box(149, 217, 211, 239)])  # ends a little inside of the same pixels
    np.testing.assert_array_equal(moved, exact)


def test_another_grid_is_sampled_at_the_centres() -> None:
    fine = Grid((100.0, 200.0), (8.0, 4.0), 2.0, (4, 4))
    coarse = Grid((100.0, 200.0), (16.0, 8.0), 4.0, (3, 3))
    values = np.arange(16).reshape(4, 4)
    found = coarse.sample(values, fine, outside=-1)
    # the centre of the first pixel is the corner between four; the one to the lower right counts
    np.testing.assert_array_equal(found, [[5, 7, -1], [13, 15, -1], [-1, -1, -1]])


# ------------------------------------------------------------------------------------------------ quality
def tissue_overview(side: int = 160, um: float = 4.0, *, grey: bool = False) -> Overview:
    """Return rough tissue on glass; grains are coloured, or of all colours alike."""
    rng = np.random.default_rng(3)
    rgb = np.full((side, side, 3), 240.0)
    grains = rng.normal(0, 52 if grey else 90, (side - 40, side - 40, 1 if grey else 3))
    noise = ndi.gaussian_filter(grains, (0.8, 0.8, 0))
    rgb[20:-20, 20:-20] = np.array([190.0, 150.0, 200.0]) + noise
    return Overview(rgb.clip(0, 255).astype(np.uint8), Grid((0.0, 0.0), (um, um), um, (side, side)))


TISSUE = [shapely.box(80, 80, 560, 560)]


def test_sound_tissue_is_good() -> None:
    found = overview_quality(tissue_overview(), TISSUE)
    assert found.grid.um == 8
    assert found.bad[found.grid.inside(TISSUE)].mean() < 0.02


def test_blurred_tissue_is_found_and_only_there() -> None:
    overview = tissue_overview()
    rgb = overview.rgb.copy()
    soft = np.stack([ndi.gaussian_filter(rgb[..., c].astype(float), 4) for c in range(3)], axis=-1)
    rgb[20:140, 20:84] = soft[20:140, 20:84]
    # blocks of 128 µm, 16 pixels of the quality grid
    found = overview_quality(Overview(rgb, overview.grid), TISSUE)
    assert found.blur[16:64, 12:32].mean() > 0.95
    assert found.blur[:, 48:].mean() < 0.02
    assert not found.fold.any()


def test_a_fold_is_found_where_tissue_lies_double() -> None:
    overview = tissue_overview(grey=True)
    rgb = overview.rgb.astype(float)
    rgb[60:80, 20:140] = rgb[60:80, 20:140].clip(max=240) ** 3 / 240**2  # a pleat: three layers
    found = overview_quality(Overview(rgb.round().astype(np.uint8), overview.grid), TISSUE)
    assert found.fold[31:39, 12:68].mean() > 0.9
    assert found.fold[44:].mean() < 0.02


def two_tissues() -> Overview:
    """Return dense tissue on the left and, from 1.2 mm on, pale tissue, a quarter as dense; 2.3 mm wide."""
    overview = tissue_overview(580, grey=True)
    rgb = overview.rgb.astype(float)
    rgb[:, 300:] = 240 * (rgb[:, 300:] / 240) ** 0.25
    return Overview(rgb.clip(0, 255).round().astype(np.uint8), overview.grid)


WIDE = [shapely.box(80, 80, 2240, 2240)]


@pytest.mark.parametrize("layers", [2, 3])
def test_a_fold_in_pale_tissue_is_found_beside_dense_tissue(layers: int) -> None:
    """It is paler than the dense tissue, which is no fold; 80 µm wide."""
    overview = two_tissues()
    rgb = overview.rgb.astype(float)
    rgb[280:300, 430:540] = 240 * (rgb[280:300, 430:540] / 240) ** layers
    found = overview_quality(Overview(rgb.round().astype(np.uint8), overview.grid), WIDE)
    assert rgb[280:300, 430:540].mean() > rgb[280:300, 30:290].mean()
    assert found.fold[141:149, 216:269].mean() > 0.75
    assert found.fold[138:152].sum() == found.fold.sum()
    assert found.fold[:, :210].sum() == 0


def test_dense_structures_of_another_colour_are_no_folds() -> None:
    """Nuclei lie dense: red light is taken away three and a half times as much, the others twice."""
    overview = two_tissues()
    rgb = overview.rgb.astype(float)
    rgb[270:310, 450:510] = 240 * (rgb[270:310, 450:510] / 240) ** [3.5, 2, 2]
    found = overview_quality(Overview(rgb.round().astype(np.uint8), overview.grid), WIDE)
    assert not found.fold.any()


def test_pen_is_found() -> None:
    overview = tissue_overview()
    rgb = overview.rgb.copy()
    rgb[40:60, 30:130] = (60, 60, 200)
    found = overview_quality(Overview(rgb, overview.grid), TISSUE)
    assert found.pen[21:29, 17:63].mean() > 0.9


# ------------------------------------------------------------------------------------------------ features
def test_features_tell_colours_and_textures_apart() -> None:
    grid = Grid((0.0, 0.0), (4.0, 4.0), 4.0, (64, 192))
    rng = np.random.default_rng(4)
    rgb = np.full((64, 192, 3), 200, np.uint8)
    rgb[:, 64:128] = (150, 110, 80)  # brown
    rgb[:, 128:] = (200 + rng.normal(0, 25, (64, 64, 1))).clip(0, 255).astype(np.uint8)
    overview = Overview(rgb, grid)
    plain, brown, rough = (stain_features(overview, shapely.box(x, 0, x + 256, 256), H_DAB) for x in (0, 256, 512))
    dab, spread = 6, 1  # mean DAB; standard deviation of the first stain
    assert brown[dab] > plain[dab] + 0.1
    assert plain[spread] < 1e-3 < rough[spread]  # one colour has none
    assert plain.shape == (12,)
    with pytest.raises(ConfigError, match="on the slide"):
        stain_features(overview, shapely.box(-500, -500, -400, -400), H_DAB)


def test_features_of_tiles_are_averaged_in_each_region() -> None:
    centres = np.array([[10.0, 10.0], [20.0, 10.0], [110.0, 10.0]])
    features = np.array([[1.0, 0.0], [3.0, 0.0], [9.0, 5.0]])
    regions = [shapely.box(0, 0, 50, 50), shapely.box(100, 0, 120, 50), shapely.box(200, 0, 250, 50)]
    np.testing.assert_allclose(pooled_features(centres, features, regions), [[2, 0], [9, 5], [9, 5]])


# ------------------------------------------------------------------------------------------------ choice
def candidate(score: float, features: tuple[float, ...] = (0.0,), *, x: float = 0, slide: str = "a") -> Candidate:
    return Candidate(slide, shapely.box(x, 0, x + 1, 1), 0.5, score, features=np.asarray(features, dtype=np.float32))


def test_the_best_of_all_slides_come_first_within_the_budget() -> None:
    found = [candidate(0.1, x=0), candidate(0.9, x=1), candidate(0.5, slide="b"), candidate(0.7, x=2)]
    chosen = select(found, budget=1.5, strategy=parse_strategy("entropy"))
    assert [(p.score, p.slide, p.rank) for p in chosen] == [(0.9, "a", 1), (0.7, "a", 2), (0.5, "b", 3)]
    assert {p.reason for p in chosen} == {"entropy"}
    assert sum(p.cost for p in chosen) == 1.5


def test_a_budget_of_minutes_goes_by_the_cost_model() -> None:
    found = [candidate(0.9, x=0), candidate(0.8, x=1), candidate(0.7, x=2)]
    chosen = select(found, budget=8, cost=lambda area_mm2: 2 + 4 * area_mm2, strategy=parse_strategy("entropy"))
    assert [p.cost for p in chosen] == [4, 4]  # 2 + 4 * 0.5 each


def test_regions_that_overlap_are_never_both_chosen() -> None:
    found = [candidate(0.9, x=0), candidate(0.8, x=0.5), candidate(0.7, x=1), candidate(0.6, x=0.5, slide="b")]
    chosen = select(found, budget=10, strategy=parse_strategy("entropy"))
    assert [p.score for p in chosen] == [0.9, 0.7, 0.6]  # touching is not overlapping, another slide another place


def test_diversity_takes_what_looks_different_among_the_best() -> None:
    # three pairs of twins; two regions fit, six are the pool
    looks = [(0.0, 0.0), (0.1, 0.0), (5.0, 0.0), (5.1, 0.0), (0.0, 5.0), (0.0, 5.1)]
    found = [candidate(1 - n / 10, look, x=n) for n, look in enumerate(looks)]
    plain = select(found, budget=1.5, strategy=parse_strategy("entropy"))
    assert [p.polygon.bounds[0] for p in plain] == [0, 1, 2]
    chosen = select(found, budget=1.5, strategy=parse_strategy("entropy+diversity"))
    assert sorted(int(p.polygon.bounds[0]) // 2 for p in chosen) == [0, 1, 2]
    assert chosen[0].score == 1.0


def test_diversity_looks_no_further_than_the_best() -> None:
    found = [candidate(0.9, (0.0,), x=0), candidate(0.8, (1.0,), x=1), candidate(0.7, (2.0,), x=2)]
    found += [candidate(0.1 - n / 100, (100.0 + n,), x=3 + n) for n in range(6)]
    chosen = select(found, budget=0.5, strategy=parse_strategy("entropy+diversity"))
    assert [p.score for p in chosen] == [0.9]
    two = select(found[:4], budget=1.0, strategy=parse_strategy("entropy+diversity"))
    assert [p.score for p in two] == [0.9, 0.1]  # a pool of three budgets holds all four


def test_diversity_keeps_away_from_what_is_labelled() -> None:
    found = [candidate(0.0, (0.0, 0.0), x=0), candidate(0.0, (4.0, 0.0), x=1), candidate(0.0, (0.0, 3.0), x=2)]
    cold = parse_strategy("diversity")
    labelled = np.array([[4.0, 0.1]], dtype=np.float32)
    chosen = select(found, budget=1.0, strategy=cold, labelled=labelled)
    assert [p.polygon.bounds[0] for p in chosen] == [2, 0]
    # without anything labelled the one in the middle is the first
    assert select(found, budget=0.5, strategy=cold)[0].polygon.bounds[0] == 0


def test_k_center_is_at_most_twice_as_far_as_the_best_choice() -> None:
    rng = np.random.default_rng(5)
    points = rng.random((12, 2))
    order = list(k_center(points))
    assert sorted(order) == list(range(12))

    def radius(centres: list[int]) -> float:
        return float(np.linalg.norm(points[:, None] - points[centres], axis=2).min(axis=1).max())

    from itertools import combinations

    for k in (2, 3, 4):
        best = min(radius(list(centres)) for centres in combinations(range(12), k))
        assert radius(order[:k]) <= 2 * best + 1e-9


def test_a_choice_that_cannot_be_made_is_refused() -> None:
    with pytest.raises(ConfigError, match="budget"):
        select([candidate(1)], budget=0)
    with pytest.raises(ConfigError, match="costs"):
        select([candidate(1)], budget=1, cost=lambda area: 0)
    with pytest.raises(ConfigError, match="one length"):
        select([candidate(1), candidate(1, (1, 2), x=1)], budget=1)
    assert select([], budget=1) == []


# ------------------------------------------------------------------------------------------------ a slide
def view(**more: object) -> SlideView:
    overview = tissue_overview()
    rng = np.random.default_rng(6)
    tumour = ndi.gaussian_filter(rng.random((80, 80)), 3).astype(np.float32)
    maps = maps_of(tumour, 4 * tumour * (1 - tumour), names=("Tumor probability", "Entropy"))
    maps = Maps(maps.layers, maps.values, (0.0, 0.0), (8.0, 8.0), 8.0)
    values = {"slide": "s", "overview": overview, "tissue": TISSUE, "maps": (maps,), "stains": H_E, **more}
    return SlideView(**values)  # type: ignore[arg-type]


def test_candidates_of_a_slide_carry_score_parts_and_features() -> None:
    seen = view()
    found = candidates(seen, parse_strategy("entropy+diversity"), RegionSettings(side_um=128))
    assert len(found) >= 6
    assert [c.score for c in found] == sorted((c.score for c in found), reverse=True)
    for one in found:
        assert one.area_mm2 == pytest.approx(0.128**2)
        assert set(one.parts) == {"tissue", "pen", "fold", "blur", "bad", "Tumor probability"}
        assert one.features.shape == (12,)
        rows, columns = np.mgrid[0:80, 0:80]
        mask = shapely.contains_xy(one.polygon, columns * 8 + 4, rows * 8 + 4) & Grid.of(seen.maps[0]).inside(TISSUE)
        assert one.score == pytest.approx(float(seen.maps[0].layer("Entropy")[mask].mean()), rel=1e-5)
    np.testing.assert_array_equal(describe(seen, [found[0].polygon])[0], found[0].features)


def test_candidates_without_a_model_are_squares_by_the_seed() -> None:
    cold = view(maps=())
    first, again, other = (
        candidates(cold, parse_strategy("diversity"), RegionSettings(shape="adaptive", side_um=128), seed=seed)
        for seed in (1, 1, 2)
    )
    assert [c.polygon.bounds for c in first] == [c.polygon.bounds for c in again]
    assert [c.polygon.bounds for c in first] != [c.polygon.bounds for c in other]
    assert {c.score for c in first} == {0.0}
    with pytest.raises(ConfigError):
        candidates(cold, parse_strategy("entropy"))


def test_candidates_keep_off_earlier_regions() -> None:
    settings = RegionSettings(side_um=128)
    first = candidates(view(), parse_strategy("entropy"), settings)
    taken = [c.polygon for c in first[:3]]
    later = candidates(view(taken=taken), parse_strategy("entropy"), settings)
    assert later
    assert all(one.polygon.intersection(old).area == 0 for one in later for old in taken)


def test_random_candidates_have_random_scores() -> None:
    found = candidates(view(), Strategy("random", diversity=False), RegionSettings(side_um=128), seed=3)
    scores = [c.score for c in found]
    assert len(set(scores)) == len(scores)
    assert all(0 <= score < 1 for score in scores)


def test_an_overview_of_a_file_keeps_its_frame(tmp_path) -> None:
    from PIL import Image

    rgb = np.zeros((400, 600, 3), np.uint8)
    rgb[200:, 300:] = 255
    Image.fromarray(rgb).save(tmp_path / "slide.png")
    overview = read_overview(Slide(tmp_path / "slide.png", mpp=0.5), um=4.0)
    assert overview.grid == Grid((0.0, 0.0), (8.0, 8.0), 4.0, (50, 75))
    assert overview.rgb[26, 39].tolist() == [255, 255, 255]
    assert overview.rgb[23, 39].tolist() == [0, 0, 0]
    small = read_overview(Slide(tmp_path / "slide.png", mpp=0.5), um=4.0, most=600)
    assert small.rgb.shape[0] * small.rgb.shape[1] <= 600
