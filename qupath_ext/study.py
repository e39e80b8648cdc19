"""A study: all settings of the demonstration in one TOML file, ``projects/<study>/study.toml``."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pyhisto.config import from_mapping
from pyhisto.dataset import Augmentation, CellTask, TumourTask
from pyhisto.errors import ConfigError
from pyhisto.nuclei import CellDetectionSettings
from pyhisto.synth import AnnotationHabits
from pyhisto.train import TrainSettings

__all__ = ["ModelStudy", "SlideStudy", "Study", "load_study"]


@dataclass(frozen=True)
class SlideStudy:
    """Synthetic slides: how many for training, and their size in px at `mpp` µm/px."""

    training: int = 3
    width: int = 3072
    height: int = 3072
    mpp: float = 0.5


@dataclass(frozen=True)
class ModelStudy:
    """One model: its network, its input, how it is trained, and how its output becomes objects.

    Attributes
    ----------
    architecture, decoder_channels
        Network of :data:`pyhisto.models.MODELS` and the channels of its decoder.
    encoder_weights
        ``"random"``, ``"imagenet"`` or a file.
    mpp, tile_size, overlap
        Tiles: µm/px, side, and margin that is predicted but not used, px.
    training, augmentation, postprocessing
        See :class:`pyhisto.train.TrainSettings`, :class:`pyhisto.dataset.Augmentation` and
        :class:`pyhisto.bundle.ModelSpec`.
    """

    architecture: str
    postprocessing: Mapping[str, float]
    decoder_channels: tuple[int, ...] = (256, 128, 64, 32, 16)
    encoder_weights: str = "random"
    mpp: float = 0.5
    tile_size: int = 256
    overlap: int = 32
    training: TrainSettings = field(default_factory=TrainSettings)
    augmentation: Augmentation = field(default_factory=Augmentation)


@dataclass(frozen=True)
class Study:
    """All settings of the Ki-67 demonstration."""

    tumour: ModelStudy
    cells: ModelStudy
    seed: int = 0
    slides: SlideStudy = field(default_factory=SlideStudy)
    annotations: AnnotationHabits = field(default_factory=AnnotationHabits)
    tumour_task: TumourTask = field(default_factory=TumourTask)
    cell_task: CellTask = field(default_factory=CellTask)
    detection: CellDetectionSettings = field(default_factory=CellDetectionSettings)


def load_study(path: Path) -> Study:
    """Read a study.

    Raises
    ------
    ConfigError
        If the file does not exist, is no TOML, or a key is unknown, missing or of another type.
    """
    if not path.is_file():
        raise ConfigError(f"study {path} does not exist", expected="a TOML file such as projects/ki67/study.toml")
    try:
        data = tomllib.loads(path.read_text("utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is no TOML ({error})") from error
    return from_mapping(Study, data, path.name)
