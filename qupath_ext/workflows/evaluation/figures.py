"""From the counts of each image to figures: of an image, of a patient, of all, with intervals over patients.

Whatever is measured on an image is kept as sums (cells found, areas in µm², ...), so that a figure of several images is
the figure of their sums. Three figures are given over all images: the mean of the images, the mean of the patients
(each patient's images taken together), and the pooled figure (everything taken together). Their intervals come from
drawing patients with replacement (Efron & Tibshirani 1993, percentile limits).

Where neither side has anything of a class, its figures do not exist: they are NaN and count in no mean. Where only one
side has something they are 0, as in :class:`pyhisto.metrics.Counts`; a distance or an index then does not exist.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from pyhisto.metrics import Interval, bootstrap_interval, ratio_interval

__all__ = ["ANY", "CELL_METRICS", "COLUMNS", "STATISTICS", "TISSUE_METRICS", "ImageSums", "Metric", "figures"]

ANY = "any class"
"""Stands for all classes together, whatever they are called."""

STATISTICS = ("mean of patients", "mean of images", "pooled")
"""The figures over all images."""

COLUMNS = (
    "level", "statistic", "image", "entry_id", "patient", "class", "metric", "value", "low", "high", "n", "chance"
)  # fmt: skip
"""The columns of ``figures.csv``."""

Floats = np.ndarray[Any, np.dtype[np.float64]]
Sums = Mapping[str, Floats]
Formula = Callable[[Sums], Floats]


@dataclass(frozen=True)
class ImageSums:
    """What was counted on one image.

    Attributes
    ----------
    name, entry_id, patient
        The image.
    by_class
        Class (or :data:`ANY`) to name and value of each sum.
    """

    name: str
    entry_id: str
    patient: str
    by_class: dict[str, dict[str, float]] = field(default_factory=dict)


@dataclass(frozen=True)
class Metric:
    """A figure that follows from sums.

    Attributes
    ----------
    name, unit
        As they are shown.
    of
        From the sums (arrays of one shape) to the figure, NaN where it does not exist.
    chance
        The same for predictions that were shifted, where that was measured.
    pooled
        Whether the figure of everything taken together means something.
    """

    name: str
    of: Formula
    chance: Formula | None = None
    unit: str = ""
    pooled: bool = True


def _ratio(part: Floats, whole: Floats, there: Floats | None = None) -> Floats:
    """Return part / whole; without a whole 0 where something is there, and else NaN."""
    with np.errstate(divide="ignore", invalid="ignore"):
        none = np.where((whole if there is None else there) > 0, 0.0, np.nan)
        return np.asarray(np.where(whole > 0, part / whole, none), dtype=np.float64)


def _precision(tp: str, fp: str, fn: str) -> Formula:
    return lambda s: _ratio(s[tp], s[tp] + s[fp], s[tp] + s[fp] + s[fn])


def _f1(tp: str, fp: str, fn: str) -> Formula:
    return lambda s: _ratio(2 * s[tp], 2 * s[tp] + s[fp] + s[fn])


def _pq(part: str, times: float = 1.0) -> Formula:
    return lambda s: _ratio(times * s[part], s["pq_tp"] + (s["pq_fp"] + s["pq_fn"]) / 2)


def _sq(s: Sums) -> Floats:
    return _ratio(s["pq_iou"], s["pq_tp"], s["pq_tp"] + s["pq_fp"] + s["pq_fn"])


def _index(side: str) -> Formula:
    return lambda s: 100 * _ratio(s[f"{side}_positive"], s[f"{side}_counted"])


def _index_error(s: Sums) -> Floats:
    return _index("found")(s) - _index("true")(s)


HITS, CHANCE_HITS = ("tp", "fp", "fn"), ("chance_tp", "chance_fp", "chance_fn")

CELL_METRICS = (
    Metric("F1", _f1(*HITS), _f1(*CHANCE_HITS)),
    Metric("precision", _precision("tp", "fp", "fn"), _precision("chance_tp", "chance_fp", "chance_fn")),
    Metric("recall", _precision("tp", "fn", "fp"), _precision("chance_tp", "chance_fn", "chance_fp")),
    Metric("AJI", lambda s: _ratio(s["aji_common"], s["aji_union"])),
    Metric("PQ", _pq("pq_iou")),
    Metric("DQ", _pq("pq_tp")),
    Metric("SQ", _sq),
    Metric("index of the prediction", _index("found"), unit="%"),
    Metric("index of the reference", _index("true"), unit="%"),
    Metric("index error", _index_error, unit="%"),
)
"""Figures of cells; the index is the share of positive cells, the error is prediction - reference."""

TISSUE_METRICS = (
    Metric("Dice", lambda s: _ratio(2 * s["common_um2"], s["found_um2"] + s["true_um2"])),
    Metric("IoU", lambda s: _ratio(s["common_um2"], s["found_um2"] + s["true_um2"] - s["common_um2"])),
    Metric("Hausdorff 95 %", lambda s: _ratio(s["hausdorff95_um"], s["hausdorff_n"]), unit="µm", pooled=False),
    Metric("Hausdorff", lambda s: _ratio(s["hausdorff_um"], s["hausdorff_n"]), unit="µm", pooled=False),
)
"""Figures of areas; a patient's distance is the mean of those of the images."""


def figures(
    images: Sequence[ImageSums], metrics: Sequence[Metric], *, resamples: int = 2000, seed: int = 0
) -> pd.DataFrame:
    """Return all figures that exist, one a row, with the columns :data:`COLUMNS`.

    Parameters
    ----------
    images
        What was counted.
    metrics
        What is wanted of it.
    resamples, seed
        Of the bootstrap.

    Returns
    -------
    pandas.DataFrame
        ``level`` is ``image``, ``patient`` or ``all``; ``statistic`` is one of :data:`STATISTICS` for the last, else
        ``pooled``. ``n`` is the number of images or patients that the figure rests on. ``low`` and ``high`` are NaN
        with fewer than two patients.
    """
    patients = [image.patient for image in images]
    names, patient = np.unique(patients, return_inverse=True)
    of_images = [{"level": "image", "image": i.name, "entry_id": i.entry_id, "patient": i.patient} for i in images]
    of_patients = [{"level": "patient", "patient": str(name)} for name in names]
    rows: list[dict[str, Any]] = []
    classes = dict.fromkeys(name for image in images for name in image.by_class)
    for class_name in sorted(classes, key=lambda name: (name != ANY, name)):
        sums = _matrix(images, class_name)
        together = _Sums({key: _by_patient(values, patient) for key, values in sums.items()}, len(names))
        for metric in metrics:
            each = _Values(metric, sums, patients)
            own = _Values(metric, together, names.tolist())
            if each.there.any():
                mine = each.rows(of_images, np.ones(len(images)))
                mine += own.rows(of_patients, _by_patient(each.there, patient))
                mine.append(_mean("mean of patients", own, resamples, seed))
                mine.append(_mean("mean of images", each, resamples, seed))
                if metric.pooled:
                    mine.append(_pooled(each, resamples, seed))
                rows += [{"class": class_name, "metric": metric.name, **row} for row in mine]
    return pd.DataFrame(rows, columns=list(COLUMNS))


class _Sums(dict[str, Floats]):
    """Sums by name, float64 (n,) each; one that was taken nowhere is NaN."""

    def __init__(self, sums: Sums, n: int) -> None:
        super().__init__(sums)
        self._n = n

    def __missing__(self, key: str) -> Floats:
        return np.full(self._n, np.nan)


class _Values:
    """A figure of several images or patients."""

    def __init__(self, metric: Metric, sums: _Sums, patients: Sequence[str]) -> None:
        self.metric = metric
        self.sums = sums
        self.patients = np.asarray(patients, dtype=object)
        self.values = metric.of(sums)
        self.there = np.isfinite(self.values)
        self.chance = np.full(self.values.shape, np.nan) if metric.chance is None else metric.chance(sums)

    def rows(self, units: Sequence[dict[str, Any]], n: Floats) -> list[dict[str, Any]]:
        """Return a row for each image or patient that has the figure; `n` of its images have it."""
        return [
            {**units[i], "statistic": "pooled", "value": self.values[i], "n": int(n[i]), "chance": self.chance[i]}
            for i in np.flatnonzero(self.there).tolist()
        ]


def _by_patient(values: np.ndarray[Any, Any], patient: np.ndarray[Any, Any]) -> Floats:
    """Return the sum over the images of each patient."""
    return np.bincount(patient, weights=values).astype(np.float64)


def _matrix(images: Sequence[ImageSums], class_name: str) -> _Sums:
    """Return each sum of a class over the images, 0 where an image has none of it."""
    keys = sorted({key for image in images for key in image.by_class.get(class_name, {})})
    values = {key: np.array([image.by_class.get(class_name, {}).get(key, 0.0) for image in images]) for key in keys}
    return _Sums(values, len(images))


def _mean(statistic: str, of: _Values, resamples: int, seed: int) -> dict[str, Any]:
    values = of.values[of.there]
    found = ratio_interval(values, np.ones(len(values)), of.patients[of.there], seed=seed, resamples=resamples)
    return _row(statistic, found, len(values), float(of.chance[of.there].mean()))


def _pooled(of: _Values, resamples: int, seed: int) -> dict[str, Any]:
    keys = list(of.sums)
    table = np.column_stack([of.sums[key] for key in keys])

    def figure(formula: Formula) -> Callable[[Floats], Floats]:
        return lambda drawn: formula(_Sums(dict(zip(keys, drawn.T, strict=True)), len(drawn)))

    found = bootstrap_interval(table, of.patients, figure(of.metric.of), seed=seed, resamples=resamples)
    whole = table.sum(axis=0, keepdims=True)
    chance = np.nan if of.metric.chance is None else float(figure(of.metric.chance)(whole)[0])
    return _row("pooled", found, int(of.there.sum()), chance)


def _row(statistic: str, found: Interval, n: int, chance: float) -> dict[str, Any]:
    interval = {"value": found.value, "low": found.low, "high": found.high}
    return {"level": "all", "statistic": statistic, **interval, "n": n, "chance": chance}
