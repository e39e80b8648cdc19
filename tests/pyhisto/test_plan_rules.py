"""The rules of the plan, each on facts whose outcome was worked out by hand."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest

from pyhisto import plan
from pyhisto.errors import ConfigError, TrainingError
from pyhisto.plan import NETWORKS, ClassFacts, Facts, Machine, Network

CELLS = Facts(
    kind="cells",
    classes=(ClassFacts("Tumor: Positive", 1000, 0.05), ClassFacts("Tumor: Negative", 2000, 0.1)),
    slides=20,
    patients=10,
    slide_mpp=0.25,
    labelled_mm2=2.048,  # twenty tiles of 640 px at 0.5 µm
    slide_mm2=2.048,
    size_um=8.0,
    large_um=14.0,
    spacing_um=10.0,
)
TISSUE = dataclasses.replace(
    CELLS, kind="tissue", classes=(ClassFacts("Tumor", 30, 2.0),), size_um=200.0, spacing_um=None
)
LAPTOP = Machine("cpu", 2, 8.0, 10.0)


def with_(facts: Facts, **changes: object) -> Facts:
    return dataclasses.replace(facts, **changes)  # type: ignore[arg-type]


def by_pixels(seconds_a_megapixel: float) -> Callable[[Network], float]:
    """Return a clock by which a step takes time for its pixels alone."""
    return lambda network: seconds_a_megapixel * network.batch_size * network.tile_size**2 / 2**20


@pytest.mark.parametrize(
    ("size", "slide", "expected"),
    [
        (8.0, 0.25, 0.5),  # 16 px at 0.5, 8 px at 1
        (12.0, 0.25, 1.0),  # 12 px at 1
        (5.0, 0.25, 0.25),  # 10 px at 0.5 are too few
        (2.0, 0.25, 0.25),  # nothing is fine enough: the finest
        (5.0, 0.5, 0.5),  # the slide has no finer pixels
        (8.0, 0.52, 0.5),  # a tenth more is no matter
        (None, 0.25, 0.5),  # only points: 8 µm
    ],
)
def test_cells_are_twelve_pixels_across(size: float | None, slide: float, expected: float) -> None:
    assert plan.choose_mpp(with_(CELLS, size_um=size, slide_mpp=slide)).settings == {"model.mpp": expected}


@pytest.mark.parametrize(("size", "expected"), [(40.0, 0.5), (100.0, 1.0), (200.0, 2.0), (10.0, 0.5)])
def test_regions_are_64_pixels_across(size: float, expected: float) -> None:
    assert plan.choose_mpp(with_(TISSUE, size_um=size)).settings == {"model.mpp": expected}


def test_a_pixel_size_that_was_asked_for_is_taken() -> None:
    assert plan.choose_mpp(CELLS, 0.3).settings == {"model.mpp": 0.3}


def test_worth_of_labels() -> None:
    """A patch of 256 px at 0.5 µm is 0.016384 mm²: 125 of them; 3000 objects are worth 300; 40 passes of 8: 1500."""
    network = NETWORKS[2]
    assert (network.tile_size, network.batch_size) == (256, 8)
    assert plan.worth_steps(CELLS, network, 0.5) == 1500
    few = with_(CELLS, classes=(ClassFacts("a", 10, 0.0),))
    assert plan.worth_steps(few, network, 0.5) == 625
    assert plan.worth_steps(with_(few, labelled_mm2=0.001), network, 0.5) == 60


def test_a_fast_machine_takes_a_large_network_and_a_slow_one_a_small_one() -> None:
    """510 s for 800 steps, 0.6375 s each: 1.275 s/Mpx for 8 x 256, 2.26 for 8 x 192, 5.1 for 8 x 128."""
    resnet34, resnet10 = "unet-resnet34", "unet:resnet10"
    cases = [
        (1.2, (resnet34, 256, 8)),
        (2.2, (resnet34, 192, 8)),
        (5.0, (resnet10, 128, 8)),
        (99.0, (resnet10, 128, 4)),
    ]
    for pace, expected in cases:
        network, seconds, decision = plan.choose_network(CELLS, LAPTOP, 0.5, by_pixels(pace))
        assert (network.architecture, network.tile_size, network.batch_size) == expected
        assert seconds == pytest.approx(pace * expected[1] ** 2 * expected[2] / 2**20)
        assert decision.settings["model.tile_size"] == expected[1]
    _, _, decision = plan.choose_network(CELLS, LAPTOP, 0.5, by_pixels(1.2))
    assert decision.settings["model.overlap"] == 32  # two nuclei of 16 px
    assert "0.6 s a step on cpu, 850 steps fit into 10 min" in decision.reason


def test_a_gpu_takes_what_fits_into_its_memory() -> None:
    """8 x 512² px at 4 kB are 8 GiB, 16 x 256² are 4 GiB; 70 % of the memory may be used."""
    for memory, expected in [(16.0, (512, 8)), (8.0, (256, 16)), (4.0, (256, 8))]:
        network, _, _ = plan.choose_network(CELLS, Machine("cuda", 8, memory, 30.0), 0.5, by_pixels(0.01))
        assert (network.tile_size, network.batch_size) == expected


def test_one_core_reads_and_computes_by_turns() -> None:
    """0.5 s for the network, 0.3 s for reading; five cores leave four to read, who need 0.6 s for 2.4 s of work."""
    assert plan.with_reading(0.5, 0.3, dataclasses.replace(LAPTOP, cores=1)) == pytest.approx(0.8)
    assert plan.with_reading(0.5, 0.3, LAPTOP) == 0.5
    assert plan.with_reading(0.5, 2.4, dataclasses.replace(LAPTOP, cores=5)) == pytest.approx(0.6)


def test_a_clock_that_says_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match="a step of 0 seconds"):
        plan.choose_network(CELLS, LAPTOP, 0.5, lambda network: 0)


@pytest.mark.parametrize(
    ("pace", "minutes", "init", "steps", "reason"),
    [
        (0.1, 10, False, 1500, "the labels are worth no more"),
        (1.0, 10, False, 510, "as many as fit into 10 min"),
        (0.1, 10, True, 500, "for fine-tuning"),
        (100.0, 10, False, 60, "only 5 fit into 10 min"),
    ],
)
def test_steps(pace: float, minutes: float, init: bool, steps: int, reason: str) -> None:
    machine = dataclasses.replace(LAPTOP, minutes=minutes)
    decision = plan.choose_schedule(CELLS, machine, NETWORKS[2], 0.5, pace, init=init)
    assert decision.settings["training.steps"] == steps
    assert decision.settings["training.learning_rate"] == (5e-4 if init else 2e-3)
    assert reason in decision.reason


def test_the_rate_goes_with_the_root_of_the_batch() -> None:
    decision = plan.choose_schedule(CELLS, LAPTOP, dataclasses.replace(NETWORKS[2], batch_size=2), 0.5, 1.0)
    assert decision.settings["training.learning_rate"] == 1e-3
    assert (
        plan.choose_schedule(CELLS, dataclasses.replace(LAPTOP, cores=1), NETWORKS[2], 0.5, 1.0).settings[
            "training.workers"
        ]
        == 0
    )


@pytest.mark.parametrize(
    ("size", "spacing", "expected"),
    [(8.0, 10.0, (2.5, 2.0)), (6.0, 6.0, (1.8, 1.5)), (None, 6.0, (1.8, 1.5)), (None, None, (2.5, 2.0))],
)
def test_discs_and_borders_leave_room(size: float | None, spacing: float | None, expected: tuple[float, float]) -> None:
    settings = plan.choose_labels(with_(CELLS, size_um=size, spacing_um=spacing)).settings
    assert (settings["labels.nucleus_radius_um"], settings["labels.membrane_um"]) == expected


def test_sampling() -> None:
    assert plan.choose_sampling(CELLS).settings == {"sampling.balance": "class"}
    assert plan.choose_sampling(with_(TISSUE, areas_vary=20.0)).settings == {"sampling.balance": "region"}
    assert plan.choose_sampling(with_(TISSUE, areas_vary=5.0)).settings == {"sampling.balance": "class"}


def test_few_patients_or_one_white_need_wide_augmentation() -> None:
    many = with_(CELLS, patients=40, white_spread=0.03)
    assert plan.choose_augmentation(many).settings["augmentation.stain"] == 0.25
    for narrow in (with_(many, patients=19), with_(many, white_spread=0.01)):
        assert plan.choose_augmentation(narrow).settings["augmentation.stain"] == 0.35


def test_a_rare_class_gets_a_focal_loss() -> None:
    rare = with_(CELLS, classes=(ClassFacts("a", 10, 1.0), ClassFacts("b", 990, 1.0)))
    assert plan.choose_loss(rare).settings == {"training.loss.name": "dice-focal"}
    assert plan.choose_loss(with_(rare, kind="tissue")).settings == {"training.loss.name": "dice-ce"}
    assert plan.choose_loss(CELLS).settings == {"training.loss.name": "dice-ce"}


def test_post_processing_goes_with_the_size_of_nuclei() -> None:
    """0.4 of 8 µm; 0.55 of 14 µm."""
    expected = {"postprocessing.min_distance_um": 3.2, "postprocessing.reach_um": 7.7}
    assert plan.choose_postprocessing(CELLS).settings == expected
    assert plan.choose_postprocessing(TISSUE).settings == {}


def test_a_model_that_is_fine_tuned_keeps_its_post_processing() -> None:
    kept = {"threshold": 0.35, "min_distance_um": 2.2}
    for facts in (CELLS, TISSUE):
        decision = plan.choose_postprocessing(facts, kept)
        assert decision.settings == {"postprocessing.threshold": 0.35, "postprocessing.min_distance_um": 2.2}


@pytest.mark.parametrize(
    ("patients", "areas", "expected"), [(10, 0, 0.2), (3, 0, 0.333), (2, 0, 0.5), (1, 0, 0.0), (10, 4, 0.0)]
)
def test_validation(patients: int, areas: int, expected: float) -> None:
    facts = with_(CELLS, patients=patients, validation_areas=areas)
    assert plan.choose_validation(facts).settings == {"validation": expected}


@pytest.mark.parametrize(("patients", "expected"), [(2, 0.0), (4, 0.0), (5, 0.2), (10, 0.2)])
def test_fine_tuning_on_few_patients_trains_on_all_of_them(patients: int, expected: float) -> None:
    settings = plan.choose_validation(with_(CELLS, patients=patients), init=True).settings
    judged: dict[str, float] = {"cross_validation": 2, "start_share": 0.5} if expected == 0 else {}
    assert settings == {"validation": expected, **judged}
    tissue = plan.choose_validation(with_(TISSUE, patients=3), init=True).settings
    assert tissue == {"validation": 0.0, "start_share": 0.5}


def test_trainings_that_judge_share_the_time() -> None:
    """Of 2 min, 0.85 * 120 s are for steps of 0.5 s: 204, or 68 for each of three trainings."""
    machine, network = dataclasses.replace(LAPTOP, minutes=2.0), Network("unet", (8,), 128, 4)
    facts = with_(CELLS, patients=3, labelled_mm2=50.0)
    alone = plan.choose_schedule(with_(facts, patients=9), machine, network, 0.5, 0.5, init=True).settings
    judged = plan.choose_schedule(facts, machine, network, 0.5, 0.5, init=True).settings
    assert (alone["training.steps"], judged["training.steps"]) == (204, 68)
    assert judged["training.keep_statistics"]
    assert "training.keep_statistics" not in plan.choose_schedule(facts, machine, network, 0.5, 0.5).settings


def test_a_whole_plan_says_why_in_one_line_each() -> None:
    decisions = plan.make_plan(CELLS, LAPTOP, by_pixels(4.0))
    keys = [key for decision in decisions for key in decision.settings]
    assert len(keys) == len(set(keys))
    assert all(decision.reason and "\n" not in decision.reason for decision in decisions)


def test_going_on_keeps_the_network() -> None:
    own = Network("unet-densenet121", (8, 8, 8, 8, 8), 96, 8)
    settings = {
        k: v for d in plan.make_plan(CELLS, LAPTOP, by_pixels(4.0), mpp=0.4, network=own) for k, v in d.settings.items()
    }
    assert (settings["model.architecture"], settings["model.tile_size"], settings["model.mpp"]) == (
        "unet-densenet121",
        96,
        0.4,
    )
    assert settings["training.learning_rate"] == 5e-4
    few = plan.make_plan(
        with_(CELLS, patients=3), LAPTOP, by_pixels(4.0), network=own, postprocessing={"threshold": 0.4}
    )
    settings = {k: v for d in few for k, v in d.settings.items()}
    assert (settings["validation"], settings["postprocessing.threshold"]) == (0.0, 0.4)
    assert "postprocessing.min_distance_um" not in settings


def test_a_class_without_objects_is_an_error() -> None:
    with pytest.raises(TrainingError, match="no annotation of the class 'b'"):
        plan.make_plan(with_(CELLS, classes=(ClassFacts("a", 1, 0.0), ClassFacts("b", 0, 0.0))), LAPTOP, by_pixels(1.0))
    with pytest.raises(TrainingError, match="no annotation of any class"):
        plan.make_plan(with_(CELLS, classes=()), LAPTOP, by_pixels(1.0))
