"""Which patients a model is trained and judged on: stratified folds."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from functools import partial

import numpy as np
import numpy.typing as npt

from pyhisto.errors import ConfigError
from pyhisto.mil.labels import UNKNOWN

__all__ = ["patient_folds", "validation_part"]


def patient_folds(
    patients: Sequence[str], labels: npt.NDArray[np.int64], folds: int, seed: int
) -> npt.NDArray[np.int64]:
    """Deal slides out to folds: all slides of a patient to one, each class of each label as evenly as can be.

    Iterative stratification (Sechidis, Tsoumakas, Vlahavas 2011, "On the Stratification of Multi-Label Data", ECML
    PKDD, algorithm 1) of patients, where a patient has a class if one of its slides does: the class that the fewest
    undealt patients have is dealt out next, each of its patients to the fold that lacks most of the class, then to
    the one that lacks most patients; ties are decided by the SHA-256 of seed and name.

    Parameters
    ----------
    patients
        Of each slide.
    labels
        int64 (slides, tasks), :data:`pyhisto.mil.labels.UNKNOWN` where not known.
    folds
        Number of folds.
    seed
        Another seed draws another lot.

    Returns
    -------
    numpy.ndarray
        int64 (slides,), the fold of each.

    Raises
    ------
    ConfigError
        If there are fewer than two folds, or fewer patients than folds.
    """
    holds: dict[str, set[tuple[int, int]]] = defaultdict(set)
    for patient, row in zip(patients, labels.tolist(), strict=True):
        holds[patient].update((task, value) for task, value in enumerate(row) if value != UNKNOWN)
    if not 2 <= folds <= len(holds):
        raise ConfigError(f"{folds} folds of {len(holds)} patients", expected="two or more, and a patient for each")
    wanted = {mark: np.full(folds, _count(holds, mark) / folds) for marks in holds.values() for mark in marks}
    room = np.full(folds, len(holds) / folds)
    left = sorted(holds, key=lambda name: _lot(seed, name))
    dealt: dict[str, int] = {}
    while left:
        counts = {mark: n for mark in sorted(wanted) if (n := sum(mark in holds[name] for name in left))}
        rarest = min(counts, key=lambda mark: counts[mark]) if counts else None
        for name in [name for name in left if rarest is None or rarest in holds[name]]:
            lack = (room if rarest is None else wanted[rarest]).round(9).tolist()
            least = room.round(9).tolist()
            best = max(range(folds), key=partial(_claim, lack, least, seed, name))
            dealt[name] = best
            room[best] -= 1
            for mark in holds[name]:
                wanted[mark][best] -= 1
        left = [name for name in left if name not in dealt]
    return np.array([dealt[patient] for patient in patients], dtype=np.int64)


def validation_part(
    patients: Sequence[str], labels: npt.NDArray[np.int64], share: float, seed: int
) -> npt.NDArray[np.bool_]:
    """Return which slides of a training are kept for early stopping: about a share of the patients, stratified.

    Parameters
    ----------
    patients, labels, seed
        As in :func:`patient_folds`.
    share
        Of the patients, 0 to 0.5; 0 for none.

    Returns
    -------
    numpy.ndarray
        bool (slides,).

    Raises
    ------
    ConfigError
        If the share is out of range, or there are not two patients.
    """
    if not 0 <= share <= 0.5:
        raise ConfigError(f"a share of {share:g} of the patients for validation", expected="0 to 0.5")
    if share == 0:
        return np.zeros(len(patients), dtype=bool)
    parts = min(round(1 / share), len(set(patients)))
    return np.asarray(patient_folds(patients, labels, parts, seed) == 0)


def _count(holds: dict[str, set[tuple[int, int]]], mark: tuple[int, int]) -> int:
    return sum(mark in marks for marks in holds.values())


def _claim(lack: list[float], room: list[float], seed: int, name: str, fold: int) -> tuple[float, float, str]:
    """Return how much a fold wants a patient."""
    return lack[fold], room[fold], _lot(seed, f"{name} {fold}")


def _lot(seed: int, name: str) -> str:
    return hashlib.sha256(f"{seed} {name}".encode()).hexdigest()
