"""A training planned from what was annotated and what the machine can do: written rules, in the manner of nnU-Net.

As there (Isensee 2021), what can be known beforehand is decided by rules from a fingerprint of the data, not searched
for. All functions are pure; what is measured (:class:`Facts`, :class:`Machine`, seconds a step) comes in, and every
:class:`Decision` says why. The rules stand in the functions below, in their order:

1. :func:`choose_mpp`: as coarse as the objects allow.
2. :func:`choose_network`: the largest of :data:`NETWORKS` of which enough steps fit into the time.
3. :func:`choose_schedule`: as many steps as the labels are worth, at most those that fit into the time.
4. :func:`choose_labels`, :func:`choose_sampling`, :func:`choose_augmentation`, :func:`choose_loss`,
   :func:`choose_postprocessing`, :func:`choose_validation`: from the sizes and numbers of the objects.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pyhisto.errors import ConfigError, TrainingError
from pyhisto.fingerprint import ClassFacts, Facts, Kind, Machine

__all__ = [
    "NETWORKS",
    "ClassFacts",
    "Decision",
    "Facts",
    "Kind",
    "Machine",
    "Network",
    "choose_augmentation",
    "choose_labels",
    "choose_loss",
    "choose_mpp",
    "choose_network",
    "choose_postprocessing",
    "choose_sampling",
    "choose_schedule",
    "choose_validation",
    "make_plan",
    "with_reading",
]

CELL_MPP = (0.25, 0.5, 1.0)
TISSUE_MPP = (0.5, 1.0, 2.0)
"""Pixel sizes to choose from, µm."""

NUCLEUS_PX = 12
"""Least pixels across the median nucleus."""

REGION_PX = 64
"""Least pixels across the median annotated region."""

USUAL_NUCLEUS_UM = 8.0
"""Diameter of a nucleus where points do not say how large it is."""

ENOUGH_STEPS = 800
"""Steps of which a network should be capable in the time, before a smaller one is taken.

From random weights, many steps on few pixels teach more than few on many (measured: projects/deepliif/README.md).
"""

FEWEST_STEPS, MOST_STEPS = 60, 20000

PASSES = 40
"""How often training should come back to the same place."""

OBJECTS_A_PATCH = 10
"""Objects that a patch is taken to show, to count what they are worth in patches."""

STEP_SHARE = 0.85
"""Share of the time for steps; the rest goes into starting, validation and saving."""

PEAK_RATE = 2e-3
"""Peak of the one-cycle schedule for batches of 8 and random weights."""

FEW_PATIENTS = 5
"""Patients from which on fine-tuning sets one aside for validation."""

START_SHARE = 0.5
"""Share of the weights gone on from in those that come of fine-tuning on so few (projects/deepliif/README.md)."""

PARTS = 2
"""Parts of so few patients, each of which is judged by a training on the others."""

Settings = dict[str, Any]


@dataclass(frozen=True)
class Network:
    """A network with its input: name, decoder, side of a patch in px and patches in a step."""

    architecture: str
    decoder_channels: tuple[int, ...]
    tile_size: int
    batch_size: int

    @property
    def memory_gib(self) -> float:
        """Rough need of memory in training, GiB: some 4 kB a pixel for activations and gradients, and the weights."""
        return self.batch_size * self.tile_size**2 * 4e3 / 2**30 + 0.5


FULL, HALF, QUARTER = (256, 128, 64, 32, 16), (128, 64, 32, 16, 16), (64, 32, 16, 16, 8)

NETWORKS = (
    Network("unet-resnet34", FULL, 512, 8),
    Network("unet-resnet34", FULL, 256, 16),
    Network("unet-resnet34", FULL, 256, 8),
    Network("unet-resnet34", HALF, 256, 8),
    Network("unet-resnet34", HALF, 192, 8),
    Network("unet:resnet10", HALF, 192, 8),
    Network("unet:resnet10", HALF, 128, 8),
    Network("unet:resnet10", HALF, 128, 4),
)
"""Networks to choose from, dearest first; ResNet-10 takes two fifths of the time of ResNet-34 for the same pixels."""


@dataclass(frozen=True)
class Decision:
    """Settings that one rule decided, by ``table.key`` of a study, and why in one line."""

    settings: Settings
    reason: str


def choose_mpp(facts: Facts, wanted: float | None = None) -> Decision:
    """Rule 1: the coarsest pixel size that still shows the objects, and no finer than the coarsest slide.

    Cells: the median nucleus is at least :data:`NUCLEUS_PX` across. Tissue: the median region is at least
    :data:`REGION_PX` across. A tenth more than a slide's own pixel size still counts as its own.
    """
    if wanted is not None:
        return Decision({"model.mpp": wanted}, f"{wanted:g} µm/px, as asked for")
    cells = facts.kind == "cells"
    least = NUCLEUS_PX if cells else REGION_PX
    what = "nucleus" if cells else "region"
    size = facts.size_um or USUAL_NUCLEUS_UM
    known = "" if facts.size_um else " (taken as usual)"
    choices = CELL_MPP if cells else TISSUE_MPP
    fitting = [mpp for mpp in choices if size / mpp >= least]
    mpp = fitting[-1] if fitting else choices[0]
    why = f"the median {what} is {size:.1f} µm{known}, {size / mpp:.0f} px across"
    if mpp * 1.1 < facts.slide_mpp:
        mpp = round(facts.slide_mpp, 4)
        why = f"the coarsest slide has no finer pixels; {why.split(',')[0]}, {size / mpp:.0f} px across"
    return Decision({"model.mpp": mpp}, f"{mpp:g} µm/px: {why}")


def choose_network(
    facts: Facts,
    machine: Machine,
    mpp: float,
    seconds: Callable[[Network], float],
    networks: Sequence[Network] = NETWORKS,
) -> tuple[Network, float, Decision]:
    """Rule 2: the first of `networks` that fits into memory and makes the steps it needs in the time.

    It needs :data:`ENOUGH_STEPS`, or fewer if the labels are not worth as many. Where none does, the last is taken.
    On a CPU, patches of more than 256 px and batches of more than 8 are not worth their time. The overlap is two nuclei
    wide, at most an eighth of the patch.

    Parameters
    ----------
    facts, machine
        What is known.
    mpp
        Pixel size that rule 1 chose, µm.
    seconds
        Measures the seconds that a step of a network takes; asked of one network after the other, until one will do.
    networks
        Networks to choose from, dearest first.

    Returns
    -------
    network : Network
        The network.
    pace : float
        Its seconds a step.
    decision : Decision
        Its settings, and why.
    """
    time = machine.minutes * 60 * STEP_SHARE
    candidates = [n for n in networks if n.memory_gib <= 0.7 * machine.memory_gib]
    if machine.device == "cpu":
        candidates = [n for n in candidates if n.tile_size <= 256 and n.batch_size <= 8]
    candidates = candidates or [networks[-1]]
    pace = math.inf
    network = candidates[-1]
    for network in candidates:
        pace = seconds(network)
        if not 0 < pace < math.inf:
            raise ConfigError(f"a step of {pace} seconds", expected="a time above 0")
        if time / pace >= min(ENOUGH_STEPS, worth_steps(facts, network, mpp)):
            break
    fits = int(time / pace)
    margin = 16 * math.ceil(2 * (facts.size_um or USUAL_NUCLEUS_UM) / mpp / 16) if facts.kind == "cells" else 32
    overlap = min(margin, network.tile_size // 8)
    settings: Settings = {
        "model.architecture": network.architecture,
        "model.decoder_channels": network.decoder_channels,
        "model.tile_size": network.tile_size,
        "model.overlap": overlap,
        "training.batch_size": network.batch_size,
    }
    dearer = candidates.index(network)
    why = f"{pace:.2g} s a step on {machine.device}, {fits} steps fit into {machine.minutes:g} min"
    if dearer:
        why += f"; {'a larger one does' if dearer == 1 else f'{dearer} larger ones do'} not make {ENOUGH_STEPS}"
    text = (
        f"{network.architecture}, decoder {network.decoder_channels[0]}, {network.batch_size} x {network.tile_size} px"
    )
    return network, pace, Decision(settings, f"{text}: {why}")


def with_reading(step: float, reading: float, machine: Machine) -> float:
    """Return the seconds of a step, with `reading` by this core where there is no other that does it meanwhile."""
    helpers = min(4, machine.cores - 1)
    return max(step, reading / helpers) if helpers else step + reading


def worth_steps(facts: Facts, network: Network, mpp: float) -> int:
    """Return the steps that the labels are worth: :data:`PASSES` over the labelled area, or over its objects.

    A pass is as many patches as cover the labelled area once, or as show all objects at :data:`OBJECTS_A_PATCH` each,
    whichever is more.
    """
    patch_mm2 = (network.tile_size * mpp / 1000) ** 2
    patches = max(facts.labelled_mm2 / patch_mm2, facts.objects / OBJECTS_A_PATCH)
    return min(MOST_STEPS, max(FEWEST_STEPS, round(PASSES * patches / network.batch_size)))


def choose_schedule(
    facts: Facts, machine: Machine, network: Network, mpp: float, pace: float, *, init: bool = False
) -> Decision:
    """Rule 3: steps from the labels and the time; the learning rate from the batch and what training starts from.

    The rate goes with the square root of the batch (Krizhevsky 2014); weights that are fine-tuned get a quarter of it,
    and a third of the steps, and keep the statistics of their normalisation layers, which a few slides would bend
    towards themselves. Where they are cross-validated, these trainings share the time.
    """
    worth = worth_steps(facts, network, mpp)
    if init:
        worth = max(FEWEST_STEPS, worth // 3)
    trainings = 1 + judged_parts(facts, init=init)
    fits = int(machine.minutes * 60 * STEP_SHARE / pace / trainings)
    steps = max(FEWEST_STEPS, min(worth, fits))
    rate = PEAK_RATE * math.sqrt(network.batch_size / 8) * (0.25 if init else 1.0)
    limit = "the labels are worth no more" if worth <= fits else f"as many as fit into {machine.minutes:g} min"
    if fits < FEWEST_STEPS:
        limit = f"only {fits} fit into {machine.minutes:g} min, but fewer would teach nothing"
    settings: Settings = {
        "training.steps": steps,
        "training.learning_rate": float(f"{rate:.2g}"),
        "training.checkpoint_every": max(5, min(100, steps // 10)),
        "training.validate_every": max(20, steps // 10),
        "training.workers": min(4, machine.cores - 1),
    }
    if init:
        settings["training.keep_statistics"] = True
    seen = steps * network.batch_size
    text = f"{steps} steps ({seen} patches of {facts.objects} objects on {facts.labelled_mm2:.2g} mm²): {limit}"
    text += f", {trainings} times" if trainings > 1 else ""
    tuned = " for fine-tuning, with the normalisation's statistics kept" if init else ""
    return Decision(settings, f"{text}; peak rate {rate:.2g}{tuned}")


def judged_parts(facts: Facts, *, init: bool) -> int:
    """Return the parts of a cross-validation: of cell models that go on from another on few patients; else 0."""
    few = init and facts.kind == "cells" and 1 < facts.patients < FEW_PATIENTS
    return PARTS if few and not facts.validation_areas else 0


def choose_labels(facts: Facts) -> Decision:
    """Rule 4: discs of points no larger than leaves room between neighbours; borders of a quarter of the nucleus.

    A disc has a radius of 0.3, and a border 0.25 of the usual distance to the next cell, at most 2.5 and 2 µm.
    """
    if facts.kind == "tissue":
        return Decision({}, "polygons as they were drawn")
    gap = facts.spacing_um or math.inf
    radius, border = min(2.5, 0.3 * gap), min(2.0, 0.25 * (facts.size_um or gap))
    settings = {"labels.nucleus_radius_um": round(radius, 2), "labels.membrane_um": round(border, 2)}
    apart = (
        f"cells are {facts.spacing_um:.1f} µm apart" if facts.spacing_um else "too few cells to measure their distance"
    )
    return Decision(settings, f"points become discs of {radius:.2g} µm, borders {border:.2g} µm wide: {apart}")


def choose_sampling(facts: Facts) -> Decision:
    """Rule 5: each class alike often; each region alike, where one class has slides that differ tenfold in area."""
    counts = [c.objects for c in facts.classes if c.objects]
    if len(facts.classes) == 1 and facts.areas_vary > 10:
        why = f"one class, and the labelled areas of the slides differ {facts.areas_vary:.0f} times"
        return Decision({"sampling.balance": "region"}, f"each annotated region alike: {why}")
    ratio = max(counts, default=1) / min(counts, default=1)
    return Decision({"sampling.balance": "class"}, f"each class alike often: their objects differ {ratio:.1f} times")


def choose_augmentation(facts: Facts) -> Decision:
    """Rule 6: the less a lab's slides vary, the more the augmentation must, for slides of another laboratory.

    Fewer than 20 patients, or white points that differ by less than 0.02 in optical density, do not show how slides of
    other laboratories look: stains, hue and scale then vary more.
    """
    narrow = facts.patients < 20 or facts.white_spread < 0.02
    stain, hue, scale = (0.35, 0.25, 0.3) if narrow else (0.25, 0.15, 0.2)
    settings = {"augmentation.stain": stain, "augmentation.hue": hue, "augmentation.scale": scale}
    shown = f"{facts.patients} patients, white differs by {facts.white_spread:.3f} OD"
    why = "which does not show what other laboratories do" if narrow else "which shows some of what slides differ in"
    return Decision(settings, f"stain and scale vary {'widely' if narrow else 'less'}: {shown}, {why}")


def choose_loss(facts: Facts) -> Decision:
    """Rule 7: Dice and cross-entropy; Dice and focal loss where a class has less than a fiftieth of the labels."""
    amounts = [c.area_mm2 if facts.kind == "tissue" else c.objects for c in facts.classes]
    share = min(amounts) / max(sum(amounts), 1e-12)
    if len(amounts) > 1 and share < 0.02:
        return Decision(
            {"training.loss.name": "dice-focal"}, f"Dice + focal: the rarest class has {share:.1%} of the labels"
        )
    text = f"the rarest class has {share:.1%} of the labels" if len(amounts) > 1 else "one class"
    return Decision({"training.loss.name": "dice-ce"}, f"Dice + cross-entropy: {text}")


def choose_postprocessing(facts: Facts, known: Mapping[str, float] | None = None) -> Decision:
    """Rule 8: cells: peaks at least 0.4 of a nucleus apart, and no nucleus larger than the largest annotated.

    A model that is fine-tuned keeps its own, `known`: it was chosen with that network, on more than a few fields.
    """
    if known:
        return Decision(
            {f"postprocessing.{key}": value for key, value in known.items()}, "post-processing as the model had it"
        )
    if facts.kind == "tissue":
        return Decision({}, "as usual")
    size = facts.size_um or USUAL_NUCLEUS_UM
    large = facts.large_um or 1.75 * size
    settings = {
        "postprocessing.min_distance_um": round(min(max(0.4 * size, 1.5), 6.0), 1),
        "postprocessing.reach_um": round(min(max(0.55 * large, 4.0), 15.0), 1),
    }
    measured = "annotated" if facts.size_um else "usual"
    return Decision(settings, f"for {measured} nuclei of {size:.1f} µm, the largest {large:.1f} µm")


def choose_validation(facts: Facts, *, init: bool = False) -> Decision:
    """Rule 9: a fifth of the patients, at least one; with annotated validation areas or one patient, none.

    Fine-tuning on fewer than :data:`FEW_PATIENTS` sets none aside either: one of them would be a third or half of what
    there is to learn from, and its Dice, which is that of drawn discs and rings, preferred the old weights to those
    that class cells better (measured: projects/deepliif/README.md). The mean of the last weights and those
    before is taken (Wortsman 2022), and cells are cross-validated: each part of the patients by a training on the
    others.
    """
    parts = judged_parts(facts, init=init)
    if facts.validation_areas:
        share, why = 0.0, f"{facts.validation_areas} areas are annotated for it"
    elif init and 1 < facts.patients < FEW_PATIENTS:
        share, why = 0.0, f"all {facts.patients} patients are trained on"
        why += f"; {parts} parts of them judge trainings on the others" if parts else ""
    elif facts.patients < 2:
        share, why = 0.0, "one patient only: nothing will say how good the model is on another"
    else:
        share = round(max(0.2, 1 / facts.patients), 3)
        why = f"{max(1, round(share * facts.patients))} of {facts.patients} patients"
    settings: Settings = {"validation": share} | ({"cross_validation": parts} if parts else {})
    if init and not share and not facts.validation_areas:
        settings["start_share"] = START_SHARE
        why += f"; the weights become the mean of those before ({START_SHARE:g}) and after"
    return Decision(settings, f"{share:.0%} of the patients: {why}")


def make_plan(
    facts: Facts,
    machine: Machine,
    seconds: Callable[[Network], float],
    *,
    mpp: float | None = None,
    network: Network | None = None,
    postprocessing: Mapping[str, float] | None = None,
) -> tuple[Decision, ...]:
    """Apply all rules.

    Parameters
    ----------
    facts, machine
        What is known about annotations and machine.
    seconds
        As in :func:`choose_network`.
    mpp
        Pixel size that was asked for, µm; None leaves it to rule 1.
    network
        Network of the model to go on from, whose weights are fine-tuned; None for a new one.
    postprocessing
        Numbers of the model to go on from; None leaves them to rule 8.

    Raises
    ------
    TrainingError
        If a class has no objects, or nothing is labelled.
    """
    _check(facts.classes)
    size = choose_mpp(facts, mpp)
    pixel = float(size.settings["model.mpp"])
    networks = NETWORKS if network is None else (network, dataclasses.replace(network, batch_size=4))
    best, pace, chosen = choose_network(facts, machine, pixel, seconds, networks)
    return (
        size,
        chosen,
        choose_schedule(facts, machine, best, pixel, pace, init=network is not None),
        choose_labels(facts),
        choose_sampling(facts),
        choose_augmentation(facts),
        choose_loss(facts),
        choose_postprocessing(facts, postprocessing),
        choose_validation(facts, init=network is not None),
    )


def _check(classes: Sequence[ClassFacts]) -> None:
    empty = [c.name for c in classes if c.objects == 0]
    if empty or not classes:
        raise TrainingError(
            f"no annotation of the class {empty[0]!r}" if empty else "no annotation of any class",
            expected="some of each class to learn",
            remedy="annotate it in QuPath and save, or leave the class out",
        )
