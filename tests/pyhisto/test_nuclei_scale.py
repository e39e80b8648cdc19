"""The size of nuclei, whatever the declared pixel size: drawn discs, and annotated tiles enlarged and shrunk."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image
from scipy import ndimage

from pyhisto.bundle.spec import ModelClass, ModelSpec
from pyhisto.errors import ConfigError
from pyhisto.nuclei.adapt import View, adapt, with_classes
from pyhisto.nuclei.auto import sample_tiles
from pyhisto.nuclei.scale import nucleus_size, observe_nuclei
from pyhisto.nuclei.survey import Survey, pool_surveys, survey_slide
from pyhisto.objects import make_objects
from pyhisto.slide import Slide
from pyhisto.stain import H_DAB, H_E, StainReference, StainVectors

SPEC = ModelSpec(
    kind="cell_detection",
    architecture="unet-resnet34",
    classes=tuple(
        ModelClass(name, classification)
        for name, classification in (
            ("background", None),
            ("positive", "Tumor: Positive"),
            ("ring", None),
            ("negative", "Tumor: Negative"),
            ("ring 2", None),
        )
    ),
    nucleus_diameter_um=7.0,
    stains=StainReference(H_DAB, (0.6, 0.8)),
)


def field(diameter: float, *, seed: int = 0, brown: float = 0.2) -> Any:
    """Return a field of stained discs, RGB uint8 (400, 400, 3): mottled inside, touching in places, some brown."""
    rng = np.random.default_rng(seed)
    step = int(1.5 * diameter)
    y, x = np.mgrid[0:400, 0:400]
    amounts = np.full((400, 400, 2), 0.03)
    mottle = ndimage.gaussian_filter(rng.normal(0, 1, (400, 400)), 1.2)
    for cx in range(step, 400 - step // 2, step):
        for cy in range(step, 400 - step // 2, step):
            jitter = rng.uniform(-0.25, 0.25, 2) * diameter
            inside = np.hypot(x - cx - jitter[0], y - cy - jitter[1]) < diameter / 2
            amounts[inside] = (0.2, 0.7) if rng.random() < brown else (0.45, 0.0)
    amounts += 0.08 * mottle[..., None] * (amounts.sum(axis=-1, keepdims=True) > 0.2)
    amounts = ndimage.gaussian_filter(amounts, (0.8, 0.8, 0))
    return np.rint(255 * 10.0 ** -(amounts.clip(0) @ H_DAB.matrix[:2])).clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize("diameter", [16, 24, 40])
def test_drawn_discs(diameter: int) -> None:
    size = nucleus_size(observe_nuclei([field(diameter)], pixel_size_um=0.3, stains=H_DAB), pixel_size_um=0.3)
    if diameter < 40:  # a field of 400 px holds few of 40 px
        assert size.nuclei > 50
        assert size.diameter_um == pytest.approx(diameter * 0.3, rel=0.12)
    else:
        assert size.nuclei < 60


def test_noise_has_no_size() -> None:
    rng = np.random.default_rng(0)
    noise = 255 - np.abs(ndimage.gaussian_filter(rng.normal(0, 60, (300, 300, 3)), (1, 1, 0)))
    glass = np.full((200, 200, 3), 250, dtype=np.uint8)
    for tiles in ([noise.astype(np.uint8)], [glass], []):
        observed = observe_nuclei(tiles, pixel_size_um=0.3, stains=H_DAB)
        assert np.isnan(nucleus_size(observed, pixel_size_um=0.3).diameter_um)


def test_a_wrong_pixel_size_shows_in_the_size(tmp_path: Path) -> None:
    path = tmp_path / "field.tif"
    tifffile.imwrite(path, field(24), photometric="rgb")
    found = []
    for mpp in (0.3, 0.5):
        with Slide(path, mpp=mpp) as slide:
            found.append(survey_slide(slide, stains=H_DAB).size.diameter_um)
    assert found[0] == pytest.approx(24 * 0.3, rel=0.12)
    assert found[1] / found[0] == pytest.approx(0.5 / 0.3, rel=0.08)


@pytest.mark.parametrize("factor", [0.6, 1.4])
def test_annotated_tiles_enlarged_and_shrunk(shared_dir: Path, tmp_path: Path, factor: float) -> None:
    surveys = []
    true = []
    for name in ("22_2", "34_3"):
        with Image.open(shared_dir / "data" / "deepliif_ki67" / "test" / f"{name}.png") as panel:
            side = round(512 * factor)
            rgb = np.asarray(panel.convert("RGB").crop((0, 0, 512, 512)).resize((side, side), Image.Resampling.LANCZOS))
        with Image.open(shared_dir / "data" / "deepliif_ki67" / "test_groundtruth" / f"{name}.png") as image:
            mask = np.asarray(image.convert("RGB")).astype(int)
        for on, off in ((0, 2), (2, 0)):
            inside = (mask[..., on] > 128) & (mask[..., off] < 128) & (mask[..., 1] < 128)
            area = np.bincount(ndimage.label(ndimage.binary_dilation(inside))[0].ravel())[1:]  # the border is apart
            true += (2 * np.sqrt(area[area > 40] / np.pi)).tolist()
        tifffile.imwrite(tmp_path / "tile.tif", rgb, photometric="rgb")
        with Slide(tmp_path / "tile.tif", mpp=0.28) as slide:
            surveys.append(survey_slide(slide))
    size = pool_surveys(surveys).size
    assert size.nuclei > 90
    assert size.diameter_um / 0.28 / factor == pytest.approx(np.median(true), rel=0.15)


# ---------------------------------------------------------------------- what follows for a network
def survey(diameter: float, n: int = 40, *, p99: tuple[float, float] = (0.6, 0.8)) -> Survey:
    """Return a survey of n nuclei of one size and a few specks at either end."""
    nuclei = np.column_stack([np.full(n, diameter), np.full(n, diameter), np.ones(n)])
    specks = np.array([[3.5, 3.3, 0.01], [19.0, 18.7, 0.01]])
    return Survey(StainReference(H_DAB, p99), np.concatenate([nuclei, specks]))


def test_the_network_sees_nuclei_in_a_size_it_knows() -> None:
    """14 µm are 2 times, 4.9 µm 0.7 times 7 µm; what is left are the 1.25 times that count as the same size."""
    found = adapt(SPEC, survey(14.0), View())
    assert found.lens.size == pytest.approx(1.6)
    assert adapt(SPEC, survey(4.9), View()).lens.size == pytest.approx(0.875)
    assert found.foreign == ("size of nuclei",)
    assert "14.0 µm wide" in found.notes[0]
    assert "7.0 µm" in found.notes[0]
    assert "--nucleus-size-um none" in found.notes[0]
    assert found.measured["network_mpp"] == 0.8


@pytest.mark.parametrize(
    ("found", "view", "size"),
    [
        (survey(8.5), View(), 1.0),  # 1.21 times: plausible
        (survey(14.0), View("none"), 1.0),
        (survey(14.0, 20), View(), 1.0),  # too few
        (survey(7.0), View(10.5), 1.5),
    ],
)
def test_when_it_does_not(found: Survey, view: View, size: float) -> None:
    assert adapt(SPEC, found, view).lens.size == pytest.approx(size)


def test_slides_that_do_not_agree_are_not_believed() -> None:
    """Quartiles of 10, 10, 14, 16, 16 are 10 and 16, 1.6 times; those of 13, 13.5, 14, 14.5, 15 are 13.5 and 14.5."""
    apart = pool_surveys([survey(size) for size in (10.0, 10.0, 14.0, 16.0, 16.0)])
    found = adapt(SPEC, replace(apart, observed=survey(14.0).observed), View())
    assert found.lens.size == 1.0
    assert "10.0 to 16.0 µm wide on the slides looked at, which do not agree" in found.notes[0]
    alike = pool_surveys([survey(size) for size in (13.0, 13.5, 14.0, 14.5, 15.0)])
    assert adapt(SPEC, replace(alike, observed=survey(14.0).observed), View()).lens.size == pytest.approx(1.6)
    two = pool_surveys([survey(10.0), survey(16.0)])
    assert two.agrees


def test_what_disagrees_is_still_taken_if_somebody_says_it() -> None:
    apart = pool_surveys([survey(size) for size in (5.0, 5.0, 14.0, 16.0, 16.0)])
    assert adapt(SPEC, apart, View(10.5)).lens.size == pytest.approx(1.5)


def test_too_few_nuclei_are_said() -> None:
    (note,) = adapt(SPEC, survey(14.0, 20), View()).notes
    assert "only 20 nuclei" in note


def test_a_model_that_does_not_know_its_slides() -> None:
    bare = replace(SPEC, nucleus_diameter_um=None, stains=None)
    assert adapt(bare, survey(14.0), View()).lens.size == 1.0
    with pytest.raises(ConfigError, match="does not say how large nuclei were"):
        adapt(bare, survey(14.0), View(10.0))
    with pytest.raises(ConfigError, match="does not say how its training slides were stained"):
        adapt(bare, survey(7.0), View(stain_normalisation="macenko"))


@pytest.mark.parametrize("values", [("big", "auto", "auto"), (0.2, "auto", "auto"), ("auto", "x", "auto")])
def test_views_that_are_refused(values: Any) -> None:
    with pytest.raises(ConfigError):
        View(*values)


def test_macenko_gives_the_colours_of_the_training_slides() -> None:
    other = Survey(StainReference(H_E, (0.3, 0.4)), survey(7.0).observed)
    view = View(stain_normalisation="macenko")
    lens = adapt(replace(SPEC, stains=StainReference(H_E, (0.6, 0.8))), other, view).lens
    amounts = np.array([[[0.2, 0.1, 0.0]]])
    rgb = np.rint(255 * 10.0 ** -(amounts @ H_E.matrix)).astype(np.uint8)
    doubled = np.rint(255 * 10.0 ** -(2 * amounts @ H_E.matrix))
    np.testing.assert_allclose(lens.see(rgb), doubled, atol=2)


def test_stains_of_another_laboratory_are_mended_unless_somebody_says_no() -> None:
    """1.2 is twice the 0.6 of the training slides, 0.9 one and a half times: only the former is clearly another."""
    strong = survey(7.0, p99=(1.2, 0.8))
    mended = adapt(SPEC, strong, View())
    assert mended.foreign == ("strength of stains",)
    assert mended.lens.colours is not None
    assert mended.measured["stain_normalisation"] == "macenko"
    assert mended.unmended == ()
    left = adapt(SPEC, strong, View(stain_normalisation="none"))
    assert left.lens.colours is None
    assert left.unmended == ("strength of stains",)
    familiar = adapt(SPEC, survey(7.0, p99=(0.9, 0.8)), View())
    assert familiar.lens.colours is None
    assert familiar.measured["stain_normalisation"] == "none"


def test_other_stains_are_not_given_the_colours_of_the_training_slides() -> None:
    eosin = Survey(StainReference(H_E, (2.0, 2.0)), survey(7.0).observed)
    found = adapt(SPEC, eosin, View())
    assert found.lens.colours is None
    assert "strength of stains" in found.unmended


def test_a_stain_that_does_not_show_is_not_compared() -> None:
    """No DAB on the slide, or little: its vector is that of some other colour, and its strength one of traces."""
    trained = StainVectors(H_DAB.names, ((0.65, 0.70, 0.29), (0.48, 0.61, 0.63)))
    spec = replace(SPEC, stains=StainReference(trained, (0.6, 0.8)))
    bare = Survey(StainReference(H_DAB, (0.6, 0.19)), survey(7.0).observed)
    assert adapt(spec, bare, View()).foreign == ()
    strong = replace(bare, stains=StainReference(H_DAB, (0.6, 1.4)))
    assert adapt(spec, strong, View()).foreign == ("colour of stains", "strength of stains")
    pale = Survey(StainReference(H_DAB, (0.2, 0.1)), survey(7.0).observed)
    colours = adapt(spec, pale, View()).lens.colours
    assert colours is not None
    od = 0.15 * np.array(H_DAB.vectors[0]) + 0.3 * np.array(trained.vectors[1])
    seen = colours(np.rint(255 * 10.0**-od).astype(np.uint8).reshape(1, 1, 3))
    thrice = 0.45 * np.array(trained.vectors[0]) + 0.3 * np.array(trained.vectors[1])  # haematoxylin 0.6 / 0.2
    assert seen.ravel() == pytest.approx(255 * 10.0**-thrice, abs=2.5)


@pytest.mark.parametrize(
    ("dab", "foreign"),
    [(0.1, ()), (0.25, ()), (0.8, ()), (1.2, ()), (1.4, ("strength of stains",))],
)
def test_less_dab_than_on_the_training_slides_may_be_fewer_positive_cells(dab: float, foreign: tuple[str, ...]) -> None:
    """The training slides have 0.6 of haematoxylin and 0.8 of DAB; 1.6 times as much of a stain is foreign."""
    assert adapt(SPEC, survey(7.0, p99=(0.6, dab)), View()).foreign == foreign
    pale = adapt(SPEC, survey(7.0, p99=(0.3, dab)), View()).lens.colours  # haematoxylin twice as weak
    assert pale is not None
    brown = np.rint(255 * 10.0 ** -(0.2 * np.array(H_DAB.vectors[1]))).astype(np.uint8).reshape(1, 1, 3)
    shown = 0.2 * min(1.0, 0.8 / dab)  # more DAB is brought to that of the training slides, less is not
    assert pale(brown).ravel() == pytest.approx(255 * 10.0 ** -(shown * np.array(H_DAB.vectors[1])), abs=1.5)


def test_slides_that_do_not_show_a_stain_say_nothing_about_it() -> None:
    brown = StainVectors(H_DAB.names, ((0.65, 0.70, 0.29), (0.48, 0.61, 0.63)))
    known, unknown = StainReference(brown, (0.6, 0.8)), StainReference(H_DAB, (0.4, 0.1))
    observed = survey(7.0).observed
    pooled = pool_surveys([Survey(unknown, observed), Survey(known, observed), Survey(unknown, observed)]).stains
    assert pooled.shown == (True, True)
    assert pooled.p99 == (0.4, 0.8)
    assert pooled.stains.vectors[1] == pytest.approx(brown.vectors[1])
    nowhere = pool_surveys([Survey(unknown, observed)] * 2).stains
    assert (nowhere.shown, nowhere.p99) == ((True, False), (0.4, 0.1))


def test_pen_marks_are_no_stain(tmp_path: Path) -> None:
    """A slide of haematoxylin-coloured tissue, at 4 µm/px, that is crossed by broad black and blue strokes."""
    rng = np.random.default_rng(0)
    amounts = rng.uniform(0.15, 0.45, (400, 400, 1))
    image = 240 * 10.0 ** -(amounts * np.array(H_DAB.vectors[0]))
    image[:40] = 240
    clean = image.copy()
    image[180:230] = (25, 25, 28)
    image[:, 100:150] = (30, 60, 200)
    found = []
    for name, rgb in (("clean.png", clean), ("marked.png", image)):
        Image.fromarray(np.rint(rgb).astype(np.uint8)).save(tmp_path / name)
        with Slide(tmp_path / name, mpp=4.0) as slide:
            assert all(tile.min() > 70 for tile in sample_tiles(slide, 0.3, most=24))
            found.append(survey_slide(slide, reference=H_DAB, nuclei=False).stains.p99[0])
    assert found[1] == pytest.approx(found[0], rel=0.05)


def test_a_slide_that_is_all_ink_is_looked_at_all_the_same(tmp_path: Path) -> None:
    Image.fromarray(np.full((64, 64, 3), (30, 60, 200), np.uint8)).save(tmp_path / "ink.png")
    with Slide(tmp_path / "ink.png", mpp=4.0) as slide:
        assert len(sample_tiles(slide, 4.0)) == 1


def test_another_size_alone_leaves_the_network_its_word() -> None:
    assert adapt(SPEC, survey(14.0), View()).unmended == ()


def cells(dab: list[float]) -> Any:
    import shapely

    return make_objects(
        [shapely.box(i, 0, i + 1, 1) for i in range(len(dab))],
        object_type="detection",
        classification="Tumor: Negative",
        measurements={"Nucleus: DAB OD mean": dab},
        class_probability=0.7,
    )


def test_dab_decides_on_unfamiliar_slides_only() -> None:
    means = np.r_[np.zeros(60), np.full(40, 0.8)]
    table = cells([0.0, 0.9, 0.1])
    same, decision = with_classes(table, SPEC, View(), (), means)
    assert decision == {"classified_by": "network"}
    assert same["classification"].tolist() == ["Tumor: Negative"] * 3
    found, decision = with_classes(table, SPEC, View(), ("strength of stains",), means)
    assert found["classification"].tolist() == ["Tumor: Negative", "Tumor: Positive", "Tumor: Negative"]
    assert decision == {"classified_by": "DAB", "dab_threshold": 0.4}
    assert found["class_probability"].isna().tolist() == [False, True, False]
    kept, decision = with_classes(table, SPEC, View(), ("strength of stains",), np.zeros(100))  # one group only
    assert decision["classified_by"] == "network"
    assert kept["classification"].tolist() == ["Tumor: Negative"] * 3


def test_a_calibrated_cut_decides_everywhere() -> None:
    spec = replace(SPEC, postprocessing={"dab_threshold": 0.05})
    found, decision = with_classes(cells([0.0, 0.9, 0.1]), spec, View(), (), np.zeros(3))
    assert found["classification"].tolist() == ["Tumor: Negative", "Tumor: Positive", "Tumor: Positive"]
    assert decision == {"classified_by": "calibrated DAB", "dab_threshold": 0.05}
    _, decision = with_classes(cells([0.0]), spec, View(classify="network"), (), np.zeros(3))
    assert decision == {"classified_by": "network"}


def test_a_slide_too_coarse_for_nuclei_has_stains_and_no_size(tmp_path: Path) -> None:
    image = np.full((96, 96, 3), 235, np.uint8)
    image[::4, ::4] = (120, 90, 170)  # blue dots that would pass for nuclei once they are enlarged
    image[1::4, ::4] = (120, 90, 170)
    Image.fromarray(image).save(tmp_path / "coarse.png")
    with Slide(tmp_path / "coarse.png", mpp=4.0) as slide:
        survey = survey_slide(slide, stains=H_DAB)
    assert np.isnan(survey.size.diameter_um)
    assert survey.stains.p99[0] > 0.1
