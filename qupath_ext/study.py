"""Studies: all settings of a training, or of the demonstration, in one TOML file."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pyhisto.config import from_mapping
from pyhisto.dataset import Augmentation, BoundaryWeights, CellTask, Sampling, TissueTask
from pyhisto.dataset.cascade import PatchRule
from pyhisto.errors import ConfigError
from pyhisto.models import BACKBONE_PREFIX, MODELS, check_tile_size
from pyhisto.nuclei import CellDetectionSettings
from pyhisto.synth import AnnotationHabits
from pyhisto.train.settings import TrainSettings

__all__ = [
    "POSTPROCESSING",
    "CascadeStudy",
    "Kind",
    "LabelStudy",
    "ModelStudy",
    "SlideStudy",
    "Study",
    "TrainStudy",
    "load_study",
    "load_train_study",
]

Kind = Literal["cells", "tissue"]
"""What is learnt: where the cells of each class are, or which tissue lies where."""

POSTPROCESSING: dict[Kind, dict[str, float]] = {
    "cells": {"threshold": 0.3, "sigma_um": 1.0, "min_distance_um": 3.0, "reach_um": 7.0, "core_um": 1.5},
    "tissue": {
        "threshold": 0.5,
        "sigma_um": 4.0,
        "min_area_um2": 2000.0,
        "min_hole_area_um2": 500.0,
        "simplify_um": 1.0,
    },
}
"""How the output of each kind of model becomes objects, where a study does not say."""


@dataclass(frozen=True)
class SlideStudy:
    """Synthetic slides: how many for training, and their size in px at `mpp` µm/px."""

    training: int = 3
    width: int = 3072
    height: int = 3072
    mpp: float = 0.5


@dataclass(frozen=True)
class ModelStudy:
    """The network and its input.

    Attributes
    ----------
    architecture, decoder_channels
        Network of :data:`pyhisto.models.MODELS` and the channels of its decoder, coarse to fine.
    encoder_weights
        ``"random"``, ``"imagenet"`` or a file.
    mpp, tile_size, overlap
        Tiles: µm/px, side, and margin that is predicted but not used, px.
    regions
        Empty for one softmax output a class. Else one sigmoid output a region, each a list of the classes that it
        covers, a later one inside an earlier (region-based training, Isensee 2021); nuclei go by the name of their
        class, their membranes by that name and ``" membrane"``.
    """

    architecture: str = "unet-resnet34"
    decoder_channels: tuple[int, ...] = (256, 128, 64, 32, 16)
    encoder_weights: str = "random"
    mpp: float = 0.5
    tile_size: int = 256
    overlap: int = 32
    regions: tuple[tuple[str, ...], ...] = ()

    def __post_init__(self) -> None:
        if self.architecture not in MODELS and not self.architecture.startswith(BACKBONE_PREFIX):
            known = f"one of {', '.join(sorted(MODELS))}, or {BACKBONE_PREFIX}<backbone>"
            raise ConfigError(f"unknown model {self.architecture!r}", expected=known)
        if not 0 < self.mpp < math.inf:
            raise ConfigError(f"mpp = {self.mpp} µm/px", expected="a pixel size above 0")
        check_tile_size(self.architecture, self.tile_size, self.decoder_channels)
        if not 0 <= self.overlap < self.tile_size / 2:
            raise ConfigError(f"overlap = {self.overlap} px", expected="from 0 to less than half of tile_size")


@dataclass(frozen=True)
class LabelStudy:
    """What the objects of a project say.

    Attributes
    ----------
    training, validation
        Classes of areas in which everything counts as labelled; what lies in a validation area is never learnt from.
    detections
        Whether detections and cells of the classes that lie in such an area are truth as well. Those that a person
        corrected after an analysis always are.
    tumour
        Cells: class of areas in which cells are not labelled but by objects of their own; areas of other classes hold
        none.
    nucleus_radius_um, membrane_um
        Cells: radius of the disc that a point becomes, and width of the border of a nucleus.
    """

    training: str = "Training"
    validation: str = "Validation"
    detections: bool = False
    tumour: str = "Tumor"
    nucleus_radius_um: float = 2.5
    membrane_um: float = 2.0


@dataclass(frozen=True)
class CascadeStudy:
    """The first stage of a coarse-to-fine tissue model: a network that classifies patches at high magnification.

    Its heatmap goes, with the colours at low magnification, into the network of :class:`ModelStudy`.

    Attributes
    ----------
    detector, channels, encoder_weights
        As in :func:`pyhisto.models.cascade.build_detector`.
    mpp, patch_size
        Patches: µm/px, of which the model's is a whole multiple, and side in px.
    rule
        Which class a patch is of; see :class:`pyhisto.dataset.cascade.PatchRule`.
    hidden
        Share of the second stage's patches whose heat is hidden.
    propose, proposal_threshold, proposal_margin_um
        As in :class:`pyhisto.bundle.spec.CascadeSpec`.
    training
        How the first stage is trained; ``[training]`` says how the second one is.
    """

    detector: str = "efficientnet-b0"
    channels: tuple[int, ...] = ()
    encoder_weights: str = "random"
    mpp: float = 0.5
    patch_size: int = 256
    rule: PatchRule = field(default_factory=PatchRule)
    hidden: float = 0.25
    propose: bool = True
    proposal_threshold: float = 0.1
    proposal_margin_um: float = 100.0
    training: TrainSettings = field(default_factory=TrainSettings)

    def __post_init__(self) -> None:
        if not 0 < self.mpp < math.inf:
            raise ConfigError(f"mpp = {self.mpp} µm/px", expected="a pixel size above 0")
        if self.patch_size < 1 or not all(channels > 0 for channels in self.channels):
            raise ConfigError(f"patch_size = {self.patch_size}, channels = {self.channels}", expected="1 or more")
        if not 0 <= self.hidden < 1 or (self.propose and self.hidden == 0):
            raise ConfigError(f"hidden = {self.hidden}", expected="below 1, and above 0 where propose = true")
        if not 0 < self.proposal_threshold < 1:
            raise ConfigError(f"proposal_threshold = {self.proposal_threshold}", expected="between 0 and 1")
        if not 0 <= self.proposal_margin_um < math.inf:
            raise ConfigError(f"proposal_margin_um = {self.proposal_margin_um}", expected="0 or more")
        if self.training.loss.name == "boundary-cross-entropy":
            raise ConfigError("the loss boundary-cross-entropy for patches", expected="a loss without boundary weights")


@dataclass(frozen=True)
class TrainStudy:
    """Everything about the training of one model.

    Attributes
    ----------
    kind
        ``"cells"`` or ``"tissue"``.
    classes
        QuPath classes to learn; background is not one of them.
    name
        What the model is called in its card.
    patient_key
        Entry metadata that names the patient; an image without it is a patient by its slide.
    validation
        Share of the patients to validate on, where no split is given.
    cross_validation
        Parts that the patients of a cell model to go on from are dealt out to, each judged by a training on the others;
        0 for none. It takes as many trainings more.
    start_share
        Share of the weights to go on from in those of the result, from 0 to less than 1: the mean of both keeps more of
        what the model could do elsewhere (Wortsman 2022). Figures of the validation are those before the mean.
    validation_windows
        Most windows of the validation areas that are looked at each time.
    model, labels, sampling, augmentation, training, boundary
        See :class:`ModelStudy`, :class:`LabelStudy`, :class:`pyhisto.dataset.Sampling`,
        :class:`pyhisto.dataset.Augmentation`, :class:`pyhisto.train.TrainSettings` and
        :class:`pyhisto.dataset.BoundaryWeights`.
    cascade
        Makes it a coarse-to-fine model of tissue; None for a single network.
    postprocessing
        Numbers that turn the output into objects; what is not given is as in :data:`POSTPROCESSING`.
    """

    kind: Kind
    classes: tuple[str, ...]
    name: str = ""
    patient_key: str = "Patient"
    validation: float = 0.2
    cross_validation: int = 0
    start_share: float = 0.0
    validation_windows: int = 24
    model: ModelStudy = field(default_factory=ModelStudy)
    labels: LabelStudy = field(default_factory=LabelStudy)
    sampling: Sampling = field(default_factory=Sampling)
    augmentation: Augmentation = field(default_factory=Augmentation)
    training: TrainSettings = field(default_factory=TrainSettings)
    boundary: BoundaryWeights | None = None
    cascade: CascadeStudy | None = None
    postprocessing: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.classes or len(set(self.classes)) < len(self.classes) or not all(self.classes):
            raise ConfigError(f"classes = {list(self.classes)}", expected="one name or more, each once")
        if not 0 <= self.validation < 1:
            raise ConfigError(f"validation = {self.validation}", expected="a share from 0 to less than 1")
        if not 0 <= self.start_share < 1:
            raise ConfigError(f"start_share = {self.start_share}", expected="a share from 0 to less than 1")
        if self.cross_validation < 0 or self.cross_validation == 1:
            raise ConfigError(f"cross_validation = {self.cross_validation}", expected="0, or 2 parts or more")
        if self.cross_validation and self.kind != "cells":
            raise ConfigError(f"cross_validation of {self.kind}", expected="cells", remedy="cross_validation = 0")
        if self.validation_windows < 1:
            raise ConfigError(f"validation_windows = {self.validation_windows}", expected="1 or more")
        known = POSTPROCESSING[self.kind]
        for key, value in self.postprocessing.items():
            if key not in known:
                raise ConfigError(f"[postprocessing]: unknown key {key!r}", expected=f"one of {', '.join(known)}")
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
                raise ConfigError(f"[postprocessing]: {key} is {value!r}", expected="a number from 0")
        self._check_loss()
        self._check_cascade()
        self.task()

    def _check_loss(self) -> None:
        """Refuse a loss that does not go with the rest."""
        wants = self.training.loss.name == "boundary-cross-entropy"
        if wants and self.boundary is None:
            raise ConfigError(
                "the loss boundary-cross-entropy without boundary weights", remedy="add a table [boundary]"
            )
        if self.boundary is not None and not wants:
            raise ConfigError(
                f"[boundary] with the loss {self.training.loss.name!r}", expected="the loss boundary-cross-entropy"
            )
        if self.boundary is not None and self.kind != "cells":
            raise ConfigError("[boundary] for tissue", expected="cells, whose borders touch")

    def _check_cascade(self) -> None:
        """Refuse a first stage that does not go with the rest."""
        if self.cascade is None:
            return
        if self.kind != "tissue":
            raise ConfigError("[cascade] for cells", expected="tissue")
        ratio = self.model.mpp / self.cascade.mpp
        if ratio < 1 - 1e-6 or abs(ratio - round(ratio)) > 1e-6:
            raise ConfigError(
                f"[model] mpp = {self.model.mpp} and [cascade] mpp = {self.cascade.mpp}",
                expected="the first a whole multiple of the second",
            )

    def task(self) -> CellTask | TissueTask:
        """Return what is learnt from the annotations."""
        labels = self.labels
        if self.kind == "tissue":
            return TissueTask(self.classes, training=labels.training, validation=labels.validation)
        return CellTask(
            self.classes,
            nucleus_radius_um=labels.nucleus_radius_um,
            membrane_um=labels.membrane_um,
            tumour=labels.tumour,
            training=labels.training,
            validation=labels.validation,
        )

    def postprocessing_numbers(self) -> dict[str, float]:
        """Return all numbers of the post-processing."""
        return {**POSTPROCESSING[self.kind], **self.postprocessing}


@dataclass(frozen=True)
class Study:
    """All settings of the Ki-67 demonstration."""

    tumour: TrainStudy
    cells: TrainStudy
    seed: int = 0
    slides: SlideStudy = field(default_factory=SlideStudy)
    annotations: AnnotationHabits = field(default_factory=AnnotationHabits)
    detection: CellDetectionSettings = field(default_factory=CellDetectionSettings)


def load_study(path: Path) -> Study:
    """Read the study of a demonstration.

    Raises
    ------
    ConfigError
        If the file does not exist, is no TOML, or a key is unknown, missing or of another type.
    """
    return from_mapping(Study, _read(path, "projects/ki67/study.toml"), path.name)


def load_train_study(path: Path) -> TrainStudy:
    """Read the study of a training; raises like :func:`load_study`."""
    return from_mapping(TrainStudy, _read(path, "what qupath-ext train --plan writes"), path.name)


def _read(path: Path, example: str) -> dict[str, Any]:
    if not path.is_file():
        raise ConfigError(f"study {path} does not exist", expected=f"a TOML file such as {example}")
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is no TOML ({error})") from error
