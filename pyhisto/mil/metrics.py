"""Figures of slide labels, with intervals over patients."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from pyhisto.errors import ConfigError
from pyhisto.metrics.intervals import Interval, bootstrap_interval
from pyhisto.mil.labels import UNKNOWN

__all__ = ["FIGURES", "figures"]

Floats: TypeAlias = npt.NDArray[np.float64]

FIGURES = ("AUROC", "AUPRC", "balanced accuracy")
"""What is computed of each label."""


def figures(
    labels: npt.NDArray[np.int64],
    probabilities: npt.NDArray[np.floating],
    patients: Sequence[str],
    *,
    seed: int = 0,
    resamples: int = 2000,
) -> dict[str, Interval]:
    """Return how well probabilities tell classes, with 95 % intervals: whole patients are drawn with replacement.

    AUROC is the area under the ROC curve with ties counted half (Hanley & McNeil 1982), AUPRC the average precision
    (sum of the precision at each threshold times the recall that it adds), both of the second class of two, and of
    more the mean over the classes of each against all others; the balanced accuracy is the mean of the classes' recall
    by the most probable class. A figure for which a class is missing is NaN.

    Parameters
    ----------
    labels
        int64 (slides,), the true class; slides of :data:`pyhisto.mil.labels.UNKNOWN` are left out.
    probabilities
        (slides, classes), or of several models on the same slides (models, slides, classes): the figure is then the
        mean over the models.
    patients
        Of each slide.
    seed, resamples
        As in :func:`pyhisto.metrics.intervals.bootstrap_interval`.

    Raises
    ------
    ConfigError
        If the shapes do not fit, or a probability is no number.
    """
    scores = np.asarray(probabilities, dtype=np.float64)
    scores = scores[np.newaxis] if scores.ndim == 2 else scores
    if scores.ndim != 3 or scores.shape[1] != len(labels) or len(patients) != len(labels):
        raise ConfigError(
            f"probabilities of shape {np.shape(probabilities)} for {len(labels)} labels and {len(patients)} patients",
            expected="(slides, classes), a label and a patient for each slide",
        )
    if not np.isfinite(scores).all():
        raise ConfigError("a probability that is no number", expected="finite probabilities")
    known = labels != UNKNOWN
    truth, scores = labels[known], scores[:, known]
    names, place = np.unique([str(p) for p, k in zip(patients, known, strict=True) if k], return_inverse=True)
    out = {}
    for name, figure in zip(FIGURES, (_auroc, _auprc, _balanced_accuracy), strict=True):
        prepared = [figure(truth, each) for each in scores]

        def statistic(draws: Floats, prepared: list[Callable[[Floats], Floats]] = prepared) -> Floats:
            weights = draws[:, place]
            return np.asarray(np.mean([one(weights) for one in prepared], axis=0))

        out[name] = bootstrap_interval(np.eye(len(names)), names, statistic, seed=seed, resamples=resamples)
    return out


def _auroc(truth: npt.NDArray[np.int64], scores: Floats) -> Callable[[Floats], Floats]:
    return _mean_of_classes(truth, scores, _auroc_of)


def _auprc(truth: npt.NDArray[np.int64], scores: Floats) -> Callable[[Floats], Floats]:
    return _mean_of_classes(truth, scores, _auprc_of)


def _balanced_accuracy(truth: npt.NDArray[np.int64], scores: Floats) -> Callable[[Floats], Floats]:
    """Return what computes the mean recall (draws,) from the weights (draws, slides)."""
    right = scores.argmax(axis=1) == truth

    def compute(weights: Floats) -> Floats:
        recalls = []
        for number in range(scores.shape[1]):
            own = truth == number
            recalls.append(_share(weights[:, own & right].sum(axis=1), weights[:, own].sum(axis=1)))
        return np.asarray(np.mean(recalls, axis=0))

    return compute


def _mean_of_classes(
    truth: npt.NDArray[np.int64], scores: Floats, figure: Callable[[Floats, Floats], Floats]
) -> Callable[[Floats], Floats]:
    """Return what computes a figure of two classes, or its mean over each of several against all others."""
    classes = scores.shape[1]

    def compute(weights: Floats) -> Floats:
        values = []
        for number in [1] if classes == 2 else range(classes):
            _, group = np.unique(-scores[:, number], return_inverse=True)  # equal scores are one threshold
            order = np.argsort(group, kind="stable")
            starts = np.flatnonzero(np.diff(group[order], prepend=-1))
            mine = (truth == number)[order]
            sorted_weights = weights[:, order]
            values.append(
                figure(
                    np.add.reduceat(sorted_weights * mine, starts, axis=1),
                    np.add.reduceat(sorted_weights * ~mine, starts, axis=1),
                )
            )
        return np.asarray(np.mean(values, axis=0))

    return compute


def _auroc_of(positive: Floats, negative: Floats) -> Floats:
    """Return the area from the weights (draws, thresholds) of both kinds, highest score first."""
    above = positive.cumsum(axis=1) - positive / 2
    return _share((above * negative).sum(axis=1), positive.sum(axis=1) * negative.sum(axis=1))


def _auprc_of(positive: Floats, negative: Floats) -> Floats:
    found = positive.cumsum(axis=1)
    taken = found + negative.cumsum(axis=1)
    precision = np.divide(found, taken, out=np.zeros_like(found), where=taken > 0)
    return _share((positive * precision).sum(axis=1), positive.sum(axis=1))


def _share(part: Floats, whole: Floats) -> Floats:
    return np.asarray(np.divide(part, whole, out=np.full(len(part), np.nan), where=whole > 0))
