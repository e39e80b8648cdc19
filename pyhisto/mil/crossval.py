"""Cross-validation by patient: every slide is predicted by models that never saw its patient."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from pyhisto.errors import ConfigError
from pyhisto.mil.data import LabelledBags, check_alike
from pyhisto.mil.folds import patient_folds, validation_part
from pyhisto.mil.model import SlideModel
from pyhisto.mil.predictions import prediction_table
from pyhisto.mil.settings import FitSettings
from pyhisto.mil.train import Epoch, Fitted, fit, probabilities

__all__ = ["CrossValidated", "FoldPlan", "cross_validate"]

Report = Callable[[int, int, Epoch], None]


@dataclass(frozen=True)
class FoldPlan:
    """How the patients are divided.

    Attributes
    ----------
    folds
        Each is predicted by a model that was trained on the others; 1 trains one model on everything.
    repeats
        How often that is done, each time with other folds and other first weights.
    validation
        Share of the patients of a training by which it is stopped; 0 to do all epochs.
    seed
        Which lot is drawn.

    Raises
    ------
    ConfigError
        If a number is out of range.
    """

    folds: int = 5
    repeats: int = 1
    validation: float = 0.2
    seed: int = 0

    def __post_init__(self) -> None:
        if self.folds < 1 or self.repeats < 1 or not 0 <= self.validation <= 0.5:
            raise ConfigError(
                f"{self.folds} folds, {self.repeats} repeats, {self.validation:g} for validation",
                expected="one or more of each, and 0 to 0.5",
            )

    def parts(self, bags: LabelledBags) -> Iterator[tuple[int, int, npt.NDArray[np.bool_], npt.NDArray[np.bool_]]]:
        """Yield repeat, fold, and masks (bags,) of what to stop by and of what to predict; the rest is to train on."""
        for repeat in range(self.repeats):
            seed = self.seed + repeat
            where = np.full(len(bags.bags), -1)
            if self.folds > 1:
                where = patient_folds(bags.patients, bags.labels, self.folds, seed)
            for fold in range(self.folds):
                held = where == fold
                rest = np.flatnonzero(~held)
                others = bags.take(rest)
                stop = np.zeros(len(where), dtype=bool)
                stop[rest] = validation_part(others.patients, others.labels, self.validation, seed + 7919 * (fold + 1))
                yield repeat, fold, stop, held


@dataclass(frozen=True)
class CrossValidated:
    """What came of it.

    Attributes
    ----------
    members
        The trained networks, fold by fold of each repeat.
    fitted
        How each was trained.
    predictions
        Out-of-fold predictions, and those for the external set by the mean of all networks.
    """

    members: tuple[SlideModel, ...]
    fitted: tuple[Fitted, ...]
    predictions: pd.DataFrame


def cross_validate(
    bags: LabelledBags,
    plan: FoldPlan,
    settings: FitSettings,
    *,
    folder: Path,
    external: LabelledBags | None = None,
    device: str = "cpu",
    report: Report | None = None,
) -> CrossValidated:
    """Train and judge a network for each fold of each repeat.

    Parameters
    ----------
    bags
        All that may be learnt from.
    plan, settings
        How they are divided, and how each network is trained.
    folder
        For the checkpoints, ``repeat-<r>/fold-<f>``; what was killed goes on from there.
    external
        Bags of other patients, which no network sees.
    device
        Where networks run.
    report
        Called with repeat and fold after each epoch.

    Raises
    ------
    ConfigError
        If the folds are impossible, or external bags are of patients that are learnt from, or of another encoder.
    TrainingError
        As :func:`pyhisto.mil.train.fit`.
    """
    if external is not None:
        _check_external(bags, external)
    fitted: list[Fitted] = []
    tables = []
    outside: list[list[npt.NDArray[np.float32]]] = []
    for repeat, fold, stop, held in plan.parts(bags):

        def tell(row: Epoch, repeat: int = repeat, fold: int = fold) -> None:
            if report is not None:
                report(repeat, fold, row)

        found = fit(
            bags.take(~(stop | held)),
            bags.take(stop) if stop.any() else None,
            replace(settings, seed=plan.seed + repeat),
            folder=folder / f"repeat-{repeat}" / f"fold-{fold}",
            device=device,
            report=tell,
        )
        fitted.append(found)
        if held.any():
            test = bags.take(held)
            values = probabilities(found.model, test, settings, device=device)
            tables.append(_table(test, values, "out-of-fold", repeat, fold))
        if external is not None:
            outside.append(probabilities(found.model, external, settings, device=device))
    if external is not None:
        means = [np.mean(each, axis=0) for each in zip(*outside, strict=True)]
        tables.append(_table(external, means, "external", 0, 0))
    predictions = (
        pd.concat(tables, ignore_index=True) if tables else _table(bags.take(np.array([], int)), None, "", 0, 0)
    )
    return CrossValidated(tuple(one.model for one in fitted), tuple(fitted), predictions)


def _table(
    bags: LabelledBags, values: list[npt.NDArray[np.float32]] | None, kind: str, repeat: int, fold: int
) -> pd.DataFrame:
    if values is None:
        values = [np.empty((0, len(task.classes)), dtype=np.float32) for task in bags.tasks]
    return prediction_table(
        bags.tasks,
        [bag.name for bag in bags.bags],
        bags.patients,
        values,
        labels=bags.labels,
        kind=kind,
        repeat=repeat,
        fold=fold,
    )


def _check_external(bags: LabelledBags, external: LabelledBags) -> None:
    if external.tasks != bags.tasks:
        raise ConfigError(
            "the external slides have other labels or classes", expected="those of the training", remedy="see --label"
        )
    check_alike([bags.bags[0], *external.bags])
    shared = sorted(set(bags.patients) & set(external.patients))
    if shared:
        raise ConfigError(
            f"{len(shared)} patients are in both the training and the external slides, the first is {shared[0]!r}",
            expected="other patients",
        )
