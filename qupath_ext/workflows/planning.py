"""A study made from what was annotated: fingerprint of the projects, rules, and a study.toml that says why."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.spatial
import shapely

from pyhisto.config import from_mapping
from pyhisto.dataset import Augmentation, PatchDataset, TrainingImage, labelled_areas
from pyhisto.dataset.images import is_of, labelled_objects
from pyhisto.device import memory_gib
from pyhisto.errors import ConfigError, TrainingError
from pyhisto.nuclei.survey import training_references
from pyhisto.plan import ClassFacts, Decision, Facts, Kind, Machine, Network, make_plan, with_reading
from qupath_ext.study import LabelStudy, TrainStudy

__all__ = ["Planned", "Wanted", "fingerprint", "machine", "plan_study", "study_text", "write_study"]

CELL_UM = 30.0
"""Areas whose median diameter is less are taken for cells."""

WHITE = (255.0, 255.0, 255.0)

READ, READ_PX = 9, 128
"""Patches that are read to see how long one takes, and their side."""


@dataclass(frozen=True)
class Planned:
    """A study, the facts it rests on, and the decisions that led to it."""

    study: TrainStudy
    facts: Facts
    decisions: tuple[Decision, ...]

    def text(self) -> str:
        """Return the study as TOML with the reasons as comments."""
        return study_text(self.study, {key: d.reason for d in self.decisions for key in list(d.settings)[:1]})


@dataclass(frozen=True)
class Wanted:
    """What is decided before a plan is made.

    Attributes
    ----------
    kind, classes
        What is to be learnt; None and none for what the annotations suggest.
    mpp
        Pixel size to work at, µm; None leaves it to the rules.
    network
        Network of the model to go on from; None for a new one.
    postprocessing
        Its numbers; None leaves them to the rules.
    name, patient_key, labels
        As in :class:`qupath_ext.study.TrainStudy`.
    """

    kind: Kind | None = None
    classes: tuple[str, ...] = ()
    mpp: float | None = None
    network: Network | None = None
    postprocessing: Mapping[str, float] | None = None
    name: str = ""
    patient_key: str = "Patient"
    labels: LabelStudy = dataclasses.field(default_factory=LabelStudy)


@dataclass
class _Found:
    """Objects of one class: number, area in mm², diameters of outlines in µm; (image number, centres in µm)."""

    objects: int = 0
    area_mm2: float = 0.0
    diameters: list[npt.NDArray[np.float64]] = dataclasses.field(default_factory=list)
    centres: list[tuple[int, npt.NDArray[np.float64]]] = dataclasses.field(default_factory=list)

    @property
    def diameter_um(self) -> float | None:
        """Median diameter of the outlines; None without any."""
        return float(np.median(np.concatenate(self.diameters))) if self.diameters else None

    @property
    def is_cells(self) -> bool:
        """Whether the objects are points, or as small as cells."""
        size = self.diameter_um
        return size is None or size < CELL_UM


def plan_study(
    images: Sequence[TrainingImage],
    here: Machine,
    wanted: Wanted,
    seconds: Callable[[Network, int], float] | None = None,
) -> Planned:
    """Plan a training.

    Parameters
    ----------
    images
        Annotated slides, as :func:`qupath_ext.workflows.trainingdata.training_images` gives them.
    here
        The machine.
    wanted
        What is decided already.
    seconds
        Measures the seconds of a step of a network with a number of classes; timed on this machine by default.

    Raises
    ------
    TrainingError
        If there is nothing to learn, or a class has no objects.
    """
    labels = wanted.labels
    found = _objects(images, labels)
    kind, names = _what(found, wanted.kind, wanted.classes)
    study = {"kind": kind, "classes": list(names), "name": wanted.name, "patient_key": wanted.patient_key}
    task = from_mapping(TrainStudy, {**study, "labels": dataclasses.asdict(labels)}, "plan").task()
    facts = fingerprint(images, kind, names, found, [labelled_areas(i, task, i.part) for i in images], labels)
    count = task.class_count()

    # refuses what cannot be trained on
    patches = PatchDataset(
        images, task, mpp=facts.slide_mpp, size=READ_PX, length=READ, seed=0, augmentation=Augmentation()
    )
    reading = _reading_time(patches) / READ_PX**2

    def measure(network: Network) -> float:
        step = (seconds or _timed_on(here.device))(network, count)
        return with_reading(step, reading * network.tile_size**2 * network.batch_size, here)

    decisions = make_plan(
        facts, here, measure, mpp=wanted.mpp, network=wanted.network, postprocessing=wanted.postprocessing
    )
    nested = _nested({key: value for decision in decisions for key, value in decision.settings.items()})
    nested["labels"] = {**dataclasses.asdict(labels), **nested.get("labels", {})}
    return Planned(from_mapping(TrainStudy, {**study, **nested}, "plan"), facts, decisions)


def machine(device: str, minutes: float) -> Machine:
    """Return what this machine has: the cores that this process may use, and the memory of the device."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return Machine(device, cores, memory_gib(device), minutes)


def _reading_time(patches: PatchDataset) -> float:
    """Return the seconds that reading and augmenting a patch takes, with its slide open; the median of some."""
    taken = []
    for number in range(READ):
        begin = time.perf_counter()
        patches[number]
        taken.append(time.perf_counter() - begin)
    patches.close()
    return float(np.median(taken))


def _timed_on(device: str) -> Callable[[Network, int], float]:
    from pyhisto.train.pace import time_step

    def seconds(network: Network, classes: int) -> float:
        return time_step(
            network.architecture,
            decoder_channels=network.decoder_channels,
            size=network.tile_size,
            batch_size=network.batch_size,
            classes=classes,
            device=device,
        )

    return seconds


def _objects(images: Sequence[TrainingImage], labels: LabelStudy) -> dict[str, _Found]:
    """Return what there is of each class that could be learnt."""
    out: dict[str, _Found] = {}
    for number, image in enumerate(images):
        table = labelled_objects(image)
        pixel = np.array(image.pixel_size())
        names = table.name.astype(str)
        for name in dict.fromkeys(names.tolist()):
            if name.endswith("*") or name in {labels.training, labels.validation}:
                continue
            rows = names == name
            nuclei = [n if n is not None else g for n, g in zip(table.nucleus[rows], table.geometry[rows], strict=True)]
            _add(out.setdefault(name, _Found()), np.array(nuclei, dtype=object), number, pixel)
    return out


def _add(found: _Found, shapes: npt.NDArray[np.object_], number: int, pixel: npt.NDArray[np.float64]) -> None:
    """Count the shapes of image `number`, level-0 px of `pixel` µm (x, y)."""
    areas = shapely.area(shapes) * pixel.prod()  # µm²
    polygons = areas > 0
    points = shapely.get_coordinates(shapes[shapely.get_dimensions(shapes) == 0])
    centres = np.concatenate([points, shapely.get_coordinates(shapely.centroid(shapes[polygons]))])
    found.objects += len(centres)
    found.area_mm2 += float(areas.sum()) / 1e6
    found.centres.append((number, centres * pixel))
    if polygons.any():
        found.diameters.append(2 * np.sqrt(areas[polygons] / np.pi))


def _what(found: Mapping[str, _Found], kind: Kind | None, classes: Sequence[str]) -> tuple[Kind, tuple[str, ...]]:
    """Return what is to be learnt: as asked for, else cells where there are some, else tissue."""
    if not found:
        raise TrainingError("no annotation with a class", remedy="annotate some in QuPath, give each a class, and save")
    unknown = [name for name in classes if not any(is_of(other, name) for other in found)]
    if unknown:
        raise TrainingError(f"no annotation of the class {unknown[0]!r}", expected=f"one of {', '.join(found)}")
    cells = [name for name, objects in found.items() if objects.is_cells]
    if kind is None:
        kind = "cells" if any(name in cells for name in classes or found) else "tissue"
    suggested = cells if kind == "cells" else [name for name in found if name not in cells]
    names = tuple(dict.fromkeys(classes or suggested))
    if not names:
        raise TrainingError(f"no annotation of {kind}", expected=f"some beside {', '.join(found)}")
    return kind, names


def fingerprint(
    images: Sequence[TrainingImage],
    kind: Kind,
    classes: Sequence[str],
    found: Mapping[str, _Found],
    areas: Sequence[Sequence[Any]],
    labels: LabelStudy,
) -> Facts:
    """Return the facts that the rules go by; `areas` are the labelled areas of each image, level-0 px."""
    mm2 = [float(np.prod(i.pixel_size())) / 1e6 for i in images]
    labelled = [sum(area.area for area in own) * px for own, px in zip(areas, mm2, strict=True)]
    mine = {name: _together([o for n, o in found.items() if _belongs(n, name, kind)]) for name in classes}
    diameters = [d for objects in mine.values() for d in objects.diameters]
    whites = -np.log10(np.array([image.white or WHITE for image in images]) / 255)
    with_labels = [area for area in labelled if area > 0]
    slides = [_size(image) for image in images]
    disc_mm2 = np.pi * (labels.nucleus_radius_um + labels.membrane_um) ** 2 / 1e6
    dots = disc_mm2 * sum(o.objects for o in mine.values()) if kind == "cells" else 0.0
    measured_um = training_references(images)[0] if kind == "cells" and not diameters else None
    return Facts(
        kind=kind,
        classes=tuple(ClassFacts(name, o.objects, o.area_mm2) for name, o in mine.items()),
        slides=len(images),
        patients=len({image.patient or image.title for image in images}),
        slide_mpp=max(max(image.pixel_size()) for image in images),
        labelled_mm2=max(sum(labelled), dots),
        slide_mm2=sum(width * height * px for (width, height), px in zip(slides, mm2, strict=True)),
        size_um=float(np.median(np.concatenate(diameters))) if diameters else measured_um,
        large_um=float(np.percentile(np.concatenate(diameters), 99)) if diameters else None,
        spacing_um=_spacing(list(mine.values())) if kind == "cells" else None,
        white_spread=float(whites.std(axis=0).mean()),
        areas_vary=max(with_labels) / min(with_labels) if with_labels else 1.0,
        validation_areas=sum(int((labelled_objects(i).areas.name == labels.validation).sum()) for i in images),
    )


def _belongs(name: str, wanted: str, kind: Kind) -> bool:
    return name == wanted if kind == "cells" else is_of(name, wanted)


def _together(parts: Sequence[_Found]) -> _Found:
    return _Found(
        sum(p.objects for p in parts),
        sum(p.area_mm2 for p in parts),
        [d for p in parts for d in p.diameters],
        [c for p in parts for c in p.centres],
    )


def _size(image: TrainingImage) -> tuple[int, int]:
    with image.open() as slide:
        return slide.dimensions


def _spacing(found: Sequence[_Found]) -> float | None:
    """Return the median distance from a cell to the nearest other one of its image, µm."""
    by_image: dict[int, list[npt.NDArray[np.float64]]] = {}
    for number, centres in (pair for objects in found for pair in objects.centres):
        by_image.setdefault(number, []).append(centres)
    together = [np.concatenate(parts) for parts in by_image.values()]
    nearest = [np.asarray(scipy.spatial.cKDTree(c).query(c, k=2)[0])[:, 1] for c in together if len(c) > 1]
    return float(np.median(np.concatenate(nearest))) if nearest else None


def _nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings by ``table.key`` as nested tables."""
    out: dict[str, Any] = {}
    for path, value in flat.items():
        *tables, key = path.split(".")
        place = out
        for table in tables:
            place = place.setdefault(table, {})
        place[key] = value
    return out


def study_text(study: TrainStudy, reasons: Mapping[str, str] | None = None) -> str:
    """Return a study as TOML, every key written out; reasons by ``table.key`` become comments above the keys."""
    lines = ["# Settings of a training: qupath-ext train PROJECT... --study THIS --output BUNDLE"]
    lines += ["# Every value may be changed; an unknown name is an error.", ""]
    values = dataclasses.asdict(study)
    values["postprocessing"] = study.postprocessing_numbers()
    _emit(lines, values, "", dict(reasons or {}))
    return "\n".join(lines) + "\n"


def _emit(lines: list[str], values: Mapping[str, Any], prefix: str, reasons: Mapping[str, str]) -> None:
    for key, value in values.items():
        if isinstance(value, Mapping) or value is None:
            continue
        reason = reasons.get(f"{prefix}{key}")
        if reason:
            lines += [f"# {reason}"]
        lines.append(f"{_name(key)} = {_toml(value)}")
    for key, value in values.items():
        if isinstance(value, Mapping):
            lines += ["", f"[{prefix}{_name(key)}]"]
            _emit(lines, value, f"{prefix}{key}.", reasons)


def _name(key: str) -> str:
    return key if re.fullmatch(r"[\w-]+", key, re.ASCII) else json.dumps(key, ensure_ascii=False)


def _toml(value: Any) -> str:
    """Return a string, number, truth value or list as TOML."""
    if isinstance(value, list | tuple):
        return f"[{', '.join(_toml(item) for item in value)}]"
    return json.dumps(value, ensure_ascii=False)


def write_study(path: Path, text: str) -> None:
    """Write a study.

    Raises
    ------
    ConfigError
        If the file exists; it stays as it is.
    """
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError as error:
        raise ConfigError(f"{path} exists already", expected="a new file", remedy="choose another --output") from error
