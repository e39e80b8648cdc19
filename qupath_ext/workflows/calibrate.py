"""Fitting a cell model to another laboratory without training: thresholds, DAB cut, size of nuclei.

A few dozen labelled cells decide; what they would have decided without each fifth of them says how well it will do.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import geopandas as gpd
import numpy as np
import numpy.typing as npt
import shapely

from pyhisto.bundle.files import Bundle
from pyhisto.bundle.spec import ModelSpec
from pyhisto.inference import Lens, predict_probabilities
from pyhisto.measurements import measure_intensities
from pyhisto.metrics import match_points
from pyhisto.nuclei.adapt import View, adapt
from pyhisto.nuclei.network import label_nuclei, nucleus_probability
from pyhisto.nuclei.segment import stain_channels
from pyhisto.nuclei.survey import Survey, expected_stains
from pyhisto.slide import Slide
from pyhisto.stain import StainVectors, optical_density_sum
from qupath_ext.errors import ProjectError
from qupath_ext.frames import image_area, open_slide, to_slide_frame
from qupath_ext.project import ImageEntry
from qupath_ext.workflows.surveys import Surveys, entry_stains

__all__ = ["Calibration", "calibrate"]

FloatArray: TypeAlias = npt.NDArray[np.float64]

LEAST_CELLS = 20
LEAST_OF_CLASS = 5
LEAST_THRESHOLD = 0.1
FOLDS = 5
RADIUS_UM = 4.0
"""Largest distance of a labelled cell to the detection that is the same, at the scale of the training slides."""

MARGIN_UM = 30.0
"""What is looked at around a labelled cell outside rectangles."""

THRESHOLDS = tuple(np.round(np.arange(LEAST_THRESHOLD, 0.901, 0.05), 2).tolist())


@dataclass(frozen=True)
class _Area:
    """A part of a slide with labelled cells, and what the network finds there; positions in µm.

    `complete` says that every cell inside is labelled.
    """

    complete: bool
    truth: FloatArray
    truth_class: npt.NDArray[np.intp]
    truth_fold: npt.NDArray[np.intp]
    found: FloatArray
    found_fold: npt.NDArray[np.intp]
    height: FloatArray
    network_class: npt.NDArray[np.intp]
    dab: FloatArray


@dataclass(frozen=True)
class _Choice:
    """Detection threshold, DAB cut (None: the network decides), and index of the size factor."""

    threshold: float
    cut: float | None
    size: int


@dataclass(frozen=True)
class Calibration:
    """What was fitted.

    Attributes
    ----------
    spec
        The new description.
    cells
        Number of labelled cells of each class.
    before, after
        Mean F1 of the classes on the labelled cells, with the bundle as it is and with what was fitted to the others:
        each fifth is judged by what the other four give.
    chosen
        What was fitted to all, as JSON types.
    notes
        What deserves a look.
    """

    spec: ModelSpec
    cells: dict[str, int]
    before: float
    after: float
    chosen: dict[str, Any]
    notes: tuple[str, ...] = ()


def calibrate(
    entries: Sequence[ImageEntry], bundle: Bundle, *, training: str = "Training", stains: str = "auto"
) -> Calibration:
    """Fit a cell model to labelled cells.

    Parameters
    ----------
    entries
        Images; those without a labelled cell are left out.
    bundle
        A model of the kind ``cell_detection``.
    training
        Class of rectangles inside which every cell is labelled. Only with one of them the detection threshold and the
        size of the nuclei can be fitted: elsewhere nobody says what is no cell.
    stains
        As in :func:`qupath_ext.workflows.surveys.entry_stains`.

    Raises
    ------
    ProjectError
        If there are fewer than 20 labelled cells in all, or 5 of a class.
    """
    labelled = [(entry, *_labels(entry, bundle.spec, training)) for entry in entries]
    labelled = [row for row in labelled if len(row[1])]
    counts = _counted(labelled, bundle.spec)
    surveys = Surveys([row[0] for row in labelled], stains, reference=expected_stains(bundle.spec.cell_classes))
    seen = []
    for entry, cells, rectangles in labelled:
        with open_slide(entry) as slide:
            own = entry_stains(entry, stains)
            survey = surveys.of(entry, slide, own)
            seen.append((entry, cells, rectangles, survey, own or survey.stains.stains))
    survey = seen[0][3]
    lens = adapt(bundle.spec, survey, View()).lens
    usual = lens.size
    complete = any(len(rectangles) for _, _, rectangles, _, _ in seen)
    factors = sorted({1.0, usual, 0.8 * usual, 1.25 * usual}) if complete else [usual]
    areas = [_look(seen, bundle, factor) for factor in factors]
    start = _Choice(bundle.spec.postprocessing["threshold"], _present_cut(bundle.spec), factors.index(usual))
    pair = _pair(bundle.spec)
    options = list(_options(areas, start, complete, pair is not None))
    paired = {
        (size, threshold): [_paired(area, threshold, RADIUS_UM * usual) for area in areas[size]]
        for size, threshold in {(option.size, option.threshold) for option in options}
    }
    tables = {
        option: _counts(areas[option.size], paired[option.size, option.threshold], option.cut, len(counts), pair)
        for option in options
    }
    chosen = max(options, key=lambda option: (_f1(tables[option].sum(axis=0)), option == start))
    chosen = _in_the_middle(chosen, tables)
    honest = np.zeros_like(tables[start].sum(axis=0))
    for fold in range(FOLDS):
        others = [number for number in range(FOLDS) if number != fold]
        best = max(options, key=lambda o: (_f1(tables[o][others].sum(axis=0)), o == start))
        honest += tables[best][fold]
    before, after = _f1(tables[start].sum(axis=0)), _f1(honest)
    notes: tuple[str, ...] = (
        () if complete else (f"no {training} rectangle: detection threshold and size of nuclei stay as they are",)
    )
    if after <= before:
        chosen = start
        notes += ("nothing that was tried does better on cells that it was not fitted to; all stays as it is",)
    spec = _described(bundle.spec, survey, chosen, factors[chosen.size], recoloured=lens.colours is not None)
    described = {
        "threshold": chosen.threshold,
        "dab_threshold": chosen.cut,
        "network_mpp": round(spec.mpp, 4),
        "nucleus_diameter_um": spec.nucleus_diameter_um,
    }
    return Calibration(spec, counts, before, max(before, after), described, notes)


def _in_the_middle(chosen: _Choice, tables: dict[_Choice, FloatArray]) -> _Choice:
    """Return the choice with its DAB cut in the middle of all cuts that do as well."""
    if chosen.cut is None:
        return chosen
    best = _f1(tables[chosen].sum(axis=0))
    alike = [
        option.cut
        for option, counts in tables.items()
        if dataclasses.replace(option, cut=chosen.cut) == chosen and _f1(counts.sum(axis=0)) == best
    ]
    cuts = [cut for cut in alike if cut is not None]
    return dataclasses.replace(chosen, cut=round((min(cuts) + max(cuts)) / 2, 3))


def _labels(entry: ImageEntry, spec: ModelSpec, training: str) -> tuple[gpd.GeoDataFrame, list[Any]]:
    """Return labelled cells, one point a row with its class number, level-0 px, and the rectangles of an image."""
    objects = to_slide_frame(entry.read_objects(), entry)
    drawn = objects[objects["object_type"] == "annotation"]
    shapes = drawn.geometry.to_numpy()
    rectangles = list(shapes[((drawn["classification"] == training).to_numpy()) & (shapely.area(shapes) > 0)])
    points, classes = [], []
    for number, name in enumerate(spec.cell_classes):
        for shape in shapes[(drawn["classification"] == name).to_numpy()]:
            is_points = shapely.get_dimensions(shape) == 0
            found = shapely.get_parts(shape) if is_points else [shapely.point_on_surface(shape)]
            points += list(found)
            classes += [number] * len(found)
    return gpd.GeoDataFrame({"number": classes}, geometry=points), rectangles


def _counted(labelled: Sequence[tuple[ImageEntry, gpd.GeoDataFrame, list[Any]]], spec: ModelSpec) -> dict[str, int]:
    counts = dict.fromkeys([str(name) for name in spec.cell_classes], 0)
    for _, cells, _ in labelled:
        for number in cells["number"]:
            counts[str(spec.cell_classes[number])] += 1
    total, least = sum(counts.values()), min(counts.values())
    if total < LEAST_CELLS or least < LEAST_OF_CLASS:
        raise ProjectError(
            f"{total} labelled cells ({', '.join(f'{n} {name}' for name, n in counts.items())})",
            expected=f"{LEAST_CELLS} or more, {LEAST_OF_CLASS} of each class",
            remedy="mark more cells with point annotations, best all cells inside a few Training rectangles",
        )
    return counts


def _look(
    seen: Sequence[tuple[ImageEntry, gpd.GeoDataFrame, list[Any], Survey, StainVectors]], bundle: Bundle, factor: float
) -> list[_Area]:
    """Run the network, with a lens of a size, where there are labelled cells."""
    areas = []
    for entry, cells, rectangles, survey, stains in seen:
        lens = dataclasses.replace(adapt(bundle.spec, survey, View()).lens, size=factor)
        with open_slide(entry) as slide:
            shown = image_area(entry, slide)
            points = cells.geometry.to_numpy()
            inside = np.zeros(len(cells), dtype=bool)
            for rectangle in rectangles:
                mine = shapely.intersects(rectangle, points) & ~inside
                inside |= mine
                part = shapely.intersection(rectangle, shown)
                areas.append(_area(slide, bundle, lens, stains, part, cells[mine], complete=True))
            rest = cells[~inside]
            if len(rest):
                around = shapely.union_all(shapely.buffer(rest.geometry.to_numpy(), MARGIN_UM / slide.mean_mpp))
                for part in shapely.get_parts(shapely.intersection(around, shown)):
                    mine = shapely.intersects(part, rest.geometry.to_numpy())
                    areas.append(_area(slide, bundle, lens, stains, part, rest[mine], complete=False))
    return areas


def _area(
    slide: Slide,
    bundle: Bundle,
    lens: Lens,
    stains: StainVectors,
    part: Any,
    cells: gpd.GeoDataFrame,
    *,
    complete: bool,
) -> _Area:
    """Find all candidates in a part of a slide, however weak."""
    spec = bundle.spec
    pixel = spec.mpp * lens.size
    margin = spec.overlap * pixel / np.asarray(slide.mpp)
    left, top = np.floor(np.asarray(part.bounds[:2]) - margin)
    right, bottom = np.ceil(np.asarray(part.bounds[2:]) + margin)
    down = pixel / np.asarray(slide.mpp)
    width, height = int(np.ceil((right - left) / down[0])), int(np.ceil((bottom - top) / down[1]))
    rgb = slide.read_region(float(left), float(top), width, height, mpp=pixel)
    probability = predict_probabilities(lens.see(rgb), bundle)
    numbers = {**spec.postprocessing, "threshold": LEAST_THRESHOLD}
    labels, votes = label_nuclei(probability, optical_density_sum(rgb, stains.background), spec.mpp, numbers)
    n = len(votes)
    heights = nucleus_probability(probability, spec.mpp, numbers)
    channels = {**stain_channels(rgb, stains), "height": heights}
    measured = measure_intensities(labels, channels, n, statistics=("mean", "max"))
    where = np.flatnonzero(labels)
    owner = labels.ravel()[where] - 1
    count = np.maximum(np.bincount(owner, minlength=n), 1)
    x = np.bincount(owner, where % labels.shape[1], n) / count + 0.5
    y = np.bincount(owner, where // labels.shape[1], n) / count + 0.5
    place = np.stack([x, y], axis=1) * down + (left, top)
    inside = shapely.intersects_xy(part, place[:, 0], place[:, 1]) if n else np.zeros(0, dtype=bool)
    truth = shapely.get_coordinates(cells.geometry.to_numpy())
    return _Area(
        complete=complete,
        truth=truth * slide.mpp,
        truth_class=cells["number"].to_numpy(dtype=np.intp),
        truth_fold=_folds(truth, part),
        found=place[inside] * slide.mpp,
        found_fold=_folds(place[inside], part),
        height=measured["height max"][inside],
        network_class=votes.argmax(axis=1)[inside] if n else np.zeros(0, dtype=np.intp),
        dab=measured.get("DAB OD mean", np.full(n, np.nan))[inside],
    )


def _folds(points: FloatArray, part: Any) -> npt.NDArray[np.intp]:
    """Return the fold of each point: stripes across the longer side of the area, so that neighbours stay together."""
    x0, y0, x1, y1 = part.bounds
    along = (points[:, 0] - x0) / (x1 - x0) if x1 - x0 >= y1 - y0 else (points[:, 1] - y0) / (y1 - y0)
    stripes = np.clip((along * FOLDS).astype(np.intp), 0, FOLDS - 1)
    shift = int(abs(x0) + abs(y0)) % FOLDS
    return np.asarray((stripes + shift) % FOLDS, dtype=np.intp)


def _options(areas: Sequence[list[_Area]], start: _Choice, complete: bool, has_pair: bool) -> Any:
    """Yield everything that is tried, the present choice among it."""
    dab = np.concatenate([area.dab for area in areas[start.size]])
    dab = dab[np.isfinite(dab)]
    cuts: list[float | None] = [None, start.cut]
    if has_pair and len(dab):
        spread = [*np.percentile(dab, np.arange(2, 99, 4)), *np.linspace(dab.min(), dab.max(), 25)]
        cuts += sorted({round(float(value), 3) for value in spread})
    thresholds = sorted({*THRESHOLDS, start.threshold}) if complete else [start.threshold]
    sizes = range(len(areas)) if complete else [start.size]
    yield from dict.fromkeys(_Choice(t, c, s) for t, c, s in itertools.product(thresholds, cuts, sizes))


def _paired(area: _Area, threshold: float, radius_um: float) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.int64]]:
    """Return the candidates above a threshold, and the pairs (index into those, index of a labelled cell)."""
    kept = np.flatnonzero(area.height >= threshold)
    return kept, match_points(area.found[kept], area.truth, radius_um)


def _counts(
    areas: Sequence[_Area],
    paired: Sequence[tuple[npt.NDArray[np.intp], npt.NDArray[np.int64]]],
    cut: float | None,
    classes: int,
    pair: tuple[int, int] | None,
) -> FloatArray:
    """Return hits, false alarms and misses, float64 (folds, classes, 3)."""
    out = np.zeros((FOLDS, classes, 3))
    for area, (kept, pairs) in zip(areas, paired, strict=True):
        found_class = area.network_class[kept]
        if cut is not None and pair is not None:
            by_dab = np.where(area.dab[kept] >= cut, pair[0], pair[1])
            found_class = np.where(np.isin(found_class, pair), by_dab, found_class)
        hits = pairs[found_class[pairs[:, 0]] == area.truth_class[pairs[:, 1]]]
        np.add.at(out, (area.truth_fold[hits[:, 1]], area.truth_class[hits[:, 1]], 0), 1)
        missed = np.setdiff1d(np.arange(len(area.truth)), hits[:, 1])
        np.add.at(out, (area.truth_fold[missed], area.truth_class[missed], 2), 1)
        wrong = np.setdiff1d(np.arange(len(kept)), hits[:, 0])
        if not area.complete:  # nobody says that the rest are no cells
            wrong = np.intersect1d(wrong, pairs[:, 0])
        np.add.at(out, (area.found_fold[kept[wrong]], found_class[wrong], 1), 1)
    return out


def _f1(counts: FloatArray) -> float:
    """Return the mean F1 of the classes from their hits, false alarms and misses."""
    return float(np.mean(2 * counts[:, 0] / np.maximum(2 * counts[:, 0] + counts[:, 1] + counts[:, 2], 1)))


def _pair(spec: ModelSpec) -> tuple[int, int] | None:
    """Return the numbers of the positive and the negative class, if there is one of each."""
    ends = [
        [number for number, name in enumerate(spec.cell_classes) if str(name).endswith(end)]
        for end in ("Positive", "Negative")
    ]
    return (ends[0][0], ends[1][0]) if all(len(found) == 1 for found in ends) else None


def _present_cut(spec: ModelSpec) -> float | None:
    return spec.postprocessing.get("dab_threshold")


def _described(spec: ModelSpec, survey: Survey, chosen: _Choice, factor: float, *, recoloured: bool) -> ModelSpec:
    """Return a description in the µm of the slides at hand; in their colours if the network saw them as they are."""
    numbers = {name: value * factor if name.endswith("_um") else value for name, value in spec.postprocessing.items()}
    numbers["threshold"] = chosen.threshold
    numbers.pop("dab_threshold", None)
    if chosen.cut is not None:
        numbers["dab_threshold"] = chosen.cut
    size = survey.size.diameter_um
    return dataclasses.replace(
        spec,
        mpp=spec.mpp * factor,
        postprocessing=numbers,
        nucleus_diameter_um=spec.nucleus_diameter_um if np.isnan(size) else round(size, 3),
        stains=spec.stains if recoloured else survey.stains,
    )
