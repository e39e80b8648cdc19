"""What is compared, and how."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from pyhisto.errors import ConfigError

__all__ = ["UNCLASSIFIED", "EvaluationSettings", "Task"]

Task = Literal["cells", "tissue"]

UNCLASSIFIED = "Unclassified"
"""Name of what has no class."""


@dataclass(frozen=True)
class EvaluationSettings:
    """Settings of a comparison.

    Attributes
    ----------
    task
        ``"cells"`` compares objects reduced to points, and their outlines where both sides have them; ``"tissue"``
        compares areas.
    classes
        Classes that are compared; all that either side has if empty. For tissue those derived from it (``"Tumor: x"``)
        belong to a class.
    mapping
        Class of the prediction to the class of the reference that it counts as.
    radius_um
        Cells further apart than this are not the same, µm.
    region
        Class of the annotations inside which things are compared; by default :data:`.areas.REGION_CLASSES`, and the
        whole image where there is none of them.
    largest_cell_um2
        An annotation with an outline is a cell up to this area, µm²; larger ones are tissue.
    patient_key
        Entry metadata that names the patient; without it each slide is a patient.
    mpp
        Pixel size in µm of images for which the project has none.
    worst
        Number of pictures of what went wrong.
    resamples, seed
        Of the bootstrap over patients.
    """

    task: Task = "cells"
    classes: tuple[str, ...] = ()
    mapping: Mapping[str, str] = field(default_factory=dict)
    radius_um: float = 4.0
    region: str | None = None
    largest_cell_um2: float = 1000.0
    patient_key: str = "Patient"
    mpp: float | None = None
    worst: int = 6
    resamples: int = 2000
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse what cannot be.

        Raises
        ------
        ConfigError
            If a setting is out of its range.
        """
        if self.task not in ("cells", "tissue"):
            raise ConfigError(f"task {self.task!r}", expected="cells or tissue")
        for name in ("radius_um", "largest_cell_um2"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ConfigError(f"{name} of {getattr(self, name)}", expected="a size above 0")
