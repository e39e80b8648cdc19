"""What the gate finds in windows made up for it, and what it lets pass."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import shapely

from pyhisto.bundle.spec import ModelClass, ModelSpec
from pyhisto.inference import Frame, Lens, PredictedWindow
from pyhisto.nuclei.adapt import Adaptation
from pyhisto.objects import make_objects
from pyhisto.sanity import ALL_POSITIVE, CONSTANT, GLASS, NOT_FINITE, SCALE, STAIN, SanityGate, unexplained_density
from pyhisto.stain import H_DAB, H_E, StainReference, StainVectors

SIDE = 160
Array = npt.NDArray[Any]


def tissue(*names: str, **options: Any) -> ModelSpec:
    classes = (ModelClass("background"), *(ModelClass(name.lower(), name) for name in names))
    return ModelSpec("tissue_segmentation", "fake", classes, postprocessing={"threshold": 0.5}, **options)


def cells(**options: Any) -> ModelSpec:
    names = ("background", "positive nucleus", "positive membrane", "negative nucleus", "negative membrane")
    classes = tuple(
        ModelClass(name, name.split()[0].capitalize() if name.endswith("nucleus") else None) for name in names
    )
    return ModelSpec("cell_detection", "fake", classes, postprocessing={"threshold": 0.5}, **options)


def stained(amounts: Array, stains: StainVectors = H_DAB) -> Array:
    """Return pixels of two stains: uint8 (H, W, 3) of amounts (H, W, 2)."""
    density = amounts @ np.array(stains.vectors[:2])
    return np.round(255 * 10**-density).astype(np.uint8)


def texture(stains: StainVectors = H_DAB, side: int = SIDE) -> Array:
    """Return an image whose two stains change from place to place, none of it glass."""
    return stained(np.random.default_rng(1).uniform(0.2, 0.8, (side, side, 2)), stains)


def shares(foreground: Array) -> Array:
    """Return the probabilities of background and one class."""
    return np.stack([1 - foreground, foreground]).astype(np.float32)


def varied(low: float, high: float) -> Array:
    return np.random.default_rng(2).uniform(low, high, (SIDE, SIDE))


def window(rgb: Array, probability: Array, *, mpp: float = 0.5, wanted: Array | None = None) -> PredictedWindow:
    height, width = rgb.shape[:2]
    inside = np.ones((height, width), dtype=bool) if wanted is None else wanted
    frame = Frame(0.0, 0.0, width, height, (1.0, 1.0), mpp)
    whole = (0, 0, width, height)
    return PredictedWindow(0, frame, whole, whole, rgb, probability.astype(np.float32), inside)


def found(gate: SanityGate, *windows: PredictedWindow, objects: Any = None) -> dict[str, str]:
    for one in windows:
        gate(one)
    return {finding.code: finding.sentence for finding in gate.verdict(objects)}


def test_a_sane_result_passes() -> None:
    foreground = varied(0.01, 0.4)
    foreground[:, :70] += 0.55
    assert found(SanityGate(tissue("Tumor")), window(texture(), shares(foreground), mpp=8.0)) == {}


def test_no_windows_no_findings() -> None:
    assert found(SanityGate(tissue("Tumor"))) == {}


# ---------------------------------------------------------------------------------------------------- constant
@pytest.mark.parametrize("value", [0.9, 0.001, 0.0])
def test_a_network_that_says_the_same_everywhere(value: float) -> None:
    sentences = found(SanityGate(tissue("Tumor")), window(texture(), shares(np.full((SIDE, SIDE), value))))
    assert list(sentences) == [CONSTANT]
    assert "96% of the tissue" in sentences[CONSTANT]


def test_an_image_without_anything_in_it_may_well_get_the_same_everywhere() -> None:
    flat = np.full((SIDE, SIDE, 3), 180, dtype=np.uint8)
    assert found(SanityGate(tissue("Tumor")), window(flat, shares(np.full((SIDE, SIDE), 0.3)))) == {}


def test_a_slide_without_tumour_is_not_constant() -> None:
    # Probabilities of 1e-6 to 1e-4 differ by less than float32 keeps of 1 - p, but their logits by 4.6.
    foreground = 10.0 ** -np.random.default_rng(3).uniform(4, 6, (SIDE, SIDE))
    assert found(SanityGate(tissue("Tumor")), window(texture(), shares(foreground))) == {}


def test_one_percent_that_differs_does_not_make_it_less_constant() -> None:
    foreground = np.full((SIDE, SIDE), 0.2)
    foreground[:, :2] = 0.9  # 2 of 160 columns; of those looked at, 1 of 40, 1.25 % on either side
    foreground[: SIDE // 2, :2] = 0.01
    assert list(found(SanityGate(tissue("Tumor")), window(texture(), shares(foreground)))) == [CONSTANT]


def test_output_that_is_no_number() -> None:
    foreground = varied(0.1, 0.9)
    foreground[:40] = np.nan  # a quarter of the rows
    sentences = found(SanityGate(tissue("Tumor")), window(texture(), shares(foreground)))
    assert list(sentences) == [NOT_FINITE]
    assert "25.0%" in sentences[NOT_FINITE]


# ---------------------------------------------------------------------------------------------------- all positive
def test_all_of_the_tissue_is_tumour() -> None:
    gate = SanityGate(tissue("Tumor"))
    sentences = found(gate, window(texture(), shares(varied(0.6, 0.99)), mpp=8.0))
    assert list(sentences) == [ALL_POSITIVE]
    assert "100.0% of 1.64 mm² of tissue are Tumor" in sentences[ALL_POSITIVE]  # (160 * 8 µm)² = 1.6384 mm²
    assert gate.measured()["predicted_share"] == {"Tumor": 1.0}
    assert gate.measured()["tissue_mm2"] == 1.6384


@pytest.mark.parametrize(
    ("spec", "mpp", "whole"),
    [
        (tissue("Tumor"), 0.5, True),  # 0.0064 mm²: a field may be all tumour
        (tissue("Tumor"), 8.0, False),  # what a person outlined as tumour may be all tumour
        (tissue("Tissue"), 8.0, True),  # all of the tissue is tissue
    ],
)
def test_what_may_be_all_of_one_class(spec: ModelSpec, mpp: float, whole: bool) -> None:
    assert found(SanityGate(spec, whole=whole), window(texture(), shares(varied(0.6, 0.99)), mpp=mpp)) == {}


def test_a_slide_may_be_all_stroma_beside_which_there_could_be_tumour() -> None:
    stroma = varied(0.6, 0.9)
    probability = np.stack([0.5 - stroma / 2, 0.5 - stroma / 2, stroma])
    assert found(SanityGate(tissue("Tumor", "Stroma")), window(texture(), probability, mpp=8.0)) == {}
    swapped = found(SanityGate(tissue("Stroma", "Tumor")), window(texture(), probability, mpp=8.0))
    assert list(swapped) == [ALL_POSITIVE]


def test_nearly_all_of_the_tissue_is_nuclei() -> None:
    nucleus = varied(0.6, 0.9)
    rest = (1 - nucleus) / 4
    probability = np.stack([rest, nucleus, rest, rest, rest])
    sentences = found(SanityGate(cells(), whole=False), window(texture(), probability))  # not in any field
    assert list(sentences) == [ALL_POSITIVE]
    assert "nuclei" in sentences[ALL_POSITIVE]


# ---------------------------------------------------------------------------------------------------- glass
def half_on_glass() -> tuple[Array, Array]:
    rgb = texture()
    rgb[:80] = 250  # optical density 0.009
    foreground = varied(0.01, 0.3)
    foreground[:, :80] += 0.6  # half of what is predicted lies on glass
    return rgb, shares(foreground)


def test_glass_that_is_called_tumour() -> None:
    gate = SanityGate(tissue("Tumor"))
    sentences = found(gate, window(*half_on_glass()))
    assert sentences == {GLASS: "50% of what is called Tumor is empty glass"}
    assert gate.measured()["on_glass"] == {"Tumor": 0.5}


def test_fat_is_empty_by_right() -> None:
    assert found(SanityGate(tissue("Adipose tissue")), window(*half_on_glass())) == {}


def test_the_white_of_the_slide_says_what_is_glass() -> None:
    rgb, probability = half_on_glass()
    rgb[:80] = 210  # optical density 0.084 against 255, 0.009 against 214
    assert found(SanityGate(tissue("Tumor")), window(rgb, probability)) == {}
    dim = SanityGate(tissue("Tumor"), white=(214.0, 214.0, 214.0))
    assert list(found(dim, window(rgb, probability))) == [GLASS]


def test_what_is_not_wanted_is_not_looked_at() -> None:
    rgb, probability = half_on_glass()
    wanted = np.zeros((SIDE, SIDE), dtype=bool)
    wanted[80:] = True
    gate = SanityGate(tissue("Tumor"))
    assert found(gate, window(rgb, probability, wanted=wanted)) == {}
    assert gate.measured()["predicted_share"] == {"Tumor": 0.5}


# ---------------------------------------------------------------------------------------------------- scale
def discs(diameter_px: float, n: int = 100) -> Any:
    circle = shapely.Point(0, 0).buffer(diameter_px / 2, quad_segs=64)
    return make_objects([circle] * n, object_type="cell", nucleus=[circle] * n)


@pytest.mark.parametrize(
    ("slide_mpp", "words"),
    [
        ((0.01, 0.01), "0.01 x 0.01 µm"),
        ((0.5, 0.25), "0.5 x 0.25 µm"),
        ((2.0, 2.0), "2 µm wide, the network was trained on 0.5 µm"),
    ],
)
def test_a_pixel_size_that_cannot_be_right(slide_mpp: tuple[float, float], words: str) -> None:
    sentences = found(SanityGate(cells(mpp=0.5), slide_mpp=slide_mpp))
    assert list(sentences) == [SCALE]
    assert words in sentences[SCALE]


@pytest.mark.parametrize("slide_mpp", [(0.25, 0.25), (0.5, 0.499), (1.0, 1.0)])
def test_usual_pixel_sizes(slide_mpp: tuple[float, float]) -> None:
    assert found(SanityGate(cells(mpp=0.5), slide_mpp=slide_mpp)) == {}


def test_nuclei_of_the_slide_that_are_twice_as_large_as_in_training() -> None:
    spec = cells(nucleus_diameter_um=7.8)
    seen = Adaptation(measured={"nucleus_diameter_um": 15.6})
    sentences = found(SanityGate(spec, adaptation=seen))
    assert list(sentences) == [SCALE]
    assert "15.6 µm wide at the declared pixel size, 7.8 µm" in sentences[SCALE]
    assert found(SanityGate(spec, adaptation=seen, size_known=True)) == {}
    assert found(SanityGate(spec, adaptation=Adaptation(measured={"nucleus_diameter_um": 10.9}))) == {}


def test_nuclei_that_were_found_of_another_size() -> None:
    spec = cells(nucleus_diameter_um=8.0)
    half = (0.5, 0.5)
    assert found(SanityGate(spec, slide_mpp=half), objects=discs(16)) == {}  # 16 px of 0.5 µm
    sentences = found(SanityGate(spec, slide_mpp=half), objects=discs(8))
    assert sentences == {SCALE: "the nuclei that were found are 4.0 µm wide, expected 8.0 µm; is --mpp right?"}
    assert found(SanityGate(spec, slide_mpp=half), objects=discs(8, n=99)) == {}
    shown = Adaptation(Lens(0.5))  # the network saw them twice as large
    assert found(SanityGate(spec, adaptation=shown, slide_mpp=half), objects=discs(8)) == {}


def test_what_no_nuclei_are_without_knowing_the_training_slides() -> None:
    half = (0.5, 0.5)
    assert found(SanityGate(cells(), slide_mpp=half), objects=discs(16)) == {}
    assert list(found(SanityGate(cells(), slide_mpp=half), objects=discs(4))) == [SCALE]


# ---------------------------------------------------------------------------------------------------- stain
def trained(stains: StainVectors) -> ModelSpec:
    return tissue("Tumor", stains=StainReference(stains, (1.0, 1.0)))


@pytest.mark.parametrize(("reference", "slide"), [(H_DAB, H_E), (H_E, H_DAB)])
def test_another_stain(reference: StainVectors, slide: StainVectors) -> None:
    foreground = varied(0.1, 0.9)
    sentences = found(SanityGate(trained(reference)), window(texture(slide), shares(foreground)))
    assert list(sentences) == [STAIN]
    assert slide.names[1].lower() in sentences[STAIN].lower()
    assert found(SanityGate(trained(slide)), window(texture(slide), shares(foreground))) == {}


def test_haematoxylin_alone_says_nothing_about_the_other_stain() -> None:
    blue = stained(np.stack([np.random.default_rng(4).uniform(0.2, 0.8, (SIDE, SIDE)), np.zeros((SIDE, SIDE))], -1))
    for reference in (H_DAB, H_E):
        assert found(SanityGate(trained(reference)), window(blue, shares(varied(0.1, 0.9)))) == {}


def test_colours_that_the_network_sees_as_they_are() -> None:
    far = {"stain_angle_deg": 25.0, "stain_strength_ratio": 1.0}
    unmended = Adaptation(foreign=("colour of stains",), measured=far)
    assert list(found(SanityGate(trained(H_DAB), adaptation=unmended))) == [STAIN]
    mended = Adaptation(Lens(1.0, lambda rgb: rgb), ("colour of stains",), far)
    assert found(SanityGate(trained(H_DAB), adaptation=mended)) == {}
    near = Adaptation(foreign=("colour of stains",), measured={**far, "stain_angle_deg": 12.0})
    assert found(SanityGate(trained(H_DAB), adaptation=near)) == {}


def test_density_that_two_stains_cannot_have_made() -> None:
    axes = StainVectors(("a", "b"), ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0)))
    density = np.array([[3.0, 4.0, 0.0], [0.0, 0.0, 2.0], [3.0, 0.0, 4.0], [-3.0, 0.0, 4.0], [-3.0, 4.0, 0.0]])
    assert unexplained_density(density, axes) == pytest.approx([0.0, 1.0, 0.8, 1.0, 0.6])


def test_many_windows_keep_few_colours() -> None:
    gate = SanityGate(trained(H_E))
    wide = texture(H_DAB, 1024)
    foreground = np.random.default_rng(5).uniform(0.1, 0.9, (1024, 1024))
    one = window(wide, shares(foreground))
    for _ in range(8):
        gate(one)
    assert len(gate._colours) <= 100_000
    assert [finding.code for finding in gate.verdict()] == [STAIN]
