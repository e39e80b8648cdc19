"""What a loop would have brought: a project that is annotated already answers for the pathologist.

::

    <folder>/simulation.json            the settings
    <folder>/base/                      the project without annotations on the slides to train on
    <folder>/runs/<strategy>/seed-N/    a copy of it with its loop
    <folder>/simulation.csv, .png, summary.json

A run is a loop of its own through the same functions that propose, collect and train for a person, so that what was
interrupted goes on: runs, rounds and steps that are done are not done again.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pandas as pd
import shapely

from pyhisto.active.strategy import parse_strategy
from pyhisto.dataset import Split, read_split
from pyhisto.errors import ConfigError
from pyhisto.objects import concat_objects, empty_objects, make_objects, new_ids, save_objects
from qupath_ext.active.collect import collect_round
from qupath_ext.active.files import write_table
from qupath_ext.active.loop import Loop, LoopSettings, Target, find_loop, start_loop
from qupath_ext.active.pathologist import Pathologist, complete_truth
from qupath_ext.active.propose import PROPOSAL_COLUMNS, ProposeOptions, propose_round
from qupath_ext.active.simulated import write_results
from qupath_ext.active.slides import loop_slides
from qupath_ext.active.training import TrainOptions, train_round
from qupath_ext.errors import ProjectError
from qupath_ext.project import ImageEntry, Project, create_project, open_project
from qupath_ext.runs.record import write_json
from qupath_ext.study import load_train_study
from qupath_ext.workflows.planning import study_text

__all__ = ["FULL", "SimulationSettings", "simulate"]

FULL = "all labels"
"""What stands for a strategy where everything is labelled at once, and trained on for as long."""

LOOP = "simulated"

Say = Callable[[str], None]


@dataclass(frozen=True)
class SimulationSettings:
    """What is compared.

    Attributes
    ----------
    target, classes, shape, region_um, patient_key
        As in :class:`qupath_ext.active.loop.LoopSettings`.
    strategies
        See :func:`pyhisto.active.strategy.parse_strategy`.
    seeds
        Runs of each strategy: seeds 0 to `seeds` - 1 of the first regions, of the network and of the errors.
    rounds, budget_mm2
        Rounds of a run, and the area that each proposes.
    error_rate
        See :class:`qupath_ext.active.pathologist.Pathologist`.
    study
        Settings of the trainings (TOML); a round trains for as many steps as it says.
    split
        Split of the patients (JSON), the same for all runs.

    Raises
    ------
    ConfigError
        If a number is out of range or a strategy unknown.
    """

    target: Target
    classes: tuple[str, ...]
    strategies: tuple[str, ...]
    study: Path
    split: Path
    seeds: int = 5
    rounds: int = 5
    budget_mm2: float = 0.1
    region_um: float = 128.0
    shape: str = "square"
    error_rate: float = 0.0
    patient_key: str = "Patient"

    def __post_init__(self) -> None:
        if not self.strategies or len(set(self.strategies)) < len(self.strategies):
            raise ConfigError(f"strategies {list(self.strategies)}", expected="one or more, each once")
        for name in self.strategies:
            parse_strategy(name)
        if self.seeds < 1 or self.rounds < 1:
            raise ConfigError(f"{self.seeds} seeds, {self.rounds} rounds", expected="at least 1 each")
        self.loop("diversity", 0)

    def loop(self, strategy: str, seed: int) -> LoopSettings:
        """Return the settings of the loop of a run."""
        values: dict[str, Any] = {
            name: getattr(self, name)
            for name in ("target", "classes", "shape", "region_um", "budget_mm2", "patient_key")
        }
        return LoopSettings(**values, strategy="random" if strategy == FULL else strategy, seed=seed)

    def record(self) -> dict[str, Any]:
        """Return what decides the results, as JSON types; more seeds or rounds go on with what is there."""
        values = dataclasses.asdict(self)
        values |= {"study": self.study.read_text("utf-8"), "split": self.split.read_text("utf-8")}
        for name in ("strategies", "seeds", "rounds"):
            del values[name]
        return dict(json.loads(json.dumps(values)))


def simulate(
    project: Project, settings: SimulationSettings, folder: Path, say: Say, *, device: str = "cpu"
) -> pd.DataFrame:
    """Run all strategies with all seeds, and write the table, the plot and the summary.

    Parameters
    ----------
    project
        Its annotations are complete; it is only read.
    settings
        What is compared.
    folder
        Where everything goes; a folder of the same settings goes on.
    say
        Called with lines about what happens.
    device
        Where networks run.

    Returns
    -------
    pandas.DataFrame
        A row for each run and round; see :func:`qupath_ext.active.simulated.results`.

    Raises
    ------
    ProjectError
        If the folder holds something else, or an image cannot be shown in a new project as in this one.
    ConfigError
        If a setting cannot be used.
    """
    _check_folder(folder, settings)
    base = _base(project, settings, folder)
    study = load_train_study(settings.study)
    for seed in range(settings.seeds):
        for strategy in (FULL, *settings.strategies):
            run = folder / "runs" / strategy.replace(" ", "-") / f"seed-{seed}"
            own = dataclasses.replace(study, training=dataclasses.replace(study.training, seed=seed))
            rounds = 1 if strategy == FULL else settings.rounds
            if strategy == FULL:
                steps = own.training.steps * settings.rounds
                own = dataclasses.replace(own, training=dataclasses.replace(own.training, steps=steps))
                run = run.with_name(f"seed-{seed}-{settings.rounds}-rounds")
            pathologist = Pathologist(project, settings.error_rate, seed)
            loop = _loop(base, run, settings, strategy, seed)
            (run / "study.toml").write_text(study_text(own), "utf-8")
            say(f"{strategy}, seed {seed}")
            _go_through(loop, rounds, strategy, pathologist, TrainOptions(device, study=run / "study.toml"), say)
            write_results(folder, settings.rounds)
    return write_results(folder, settings.rounds)


def _check_folder(folder: Path, settings: SimulationSettings) -> None:
    """Take a new folder, or one that was begun with the same settings."""
    path, record = folder / "simulation.json", settings.record()
    if path.is_file():
        if json.loads(path.read_text("utf-8")) != record:
            raise ProjectError(f"{folder} holds a simulation with other settings", remedy="choose another --output")
        return
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ProjectError(f"{folder} holds something already", remedy="choose a new or empty folder")
    folder.mkdir(parents=True, exist_ok=True)
    write_json(path, record)


def _base(project: Project, settings: SimulationSettings, folder: Path) -> Path:
    """Make the project that the runs copy: no annotation on what is to be labelled, all on what is judged."""
    base = folder / "base"
    if base.is_dir():
        return base
    building = folder / ".base"
    shutil.rmtree(building, ignore_errors=True)
    split = read_split(settings.split)
    copy = create_project(building)
    copy.add_classes(project.classes)
    loop_settings = settings.loop("diversity", 0)
    for entry in project.entries:
        added = copy.add_image(
            entry.slide_path,
            name=entry.name,
            image_type=entry.image_type or "BRIGHTFIELD_H_DAB",
            stains=entry.stains,
            mpp=entry.mpp,
            metadata=entry.metadata,
        )
        if added.size() != entry.size() or added.slide_frame() != entry.slide_frame():
            raise ProjectError(
                f"image {entry.name!r} is not shown as a whole slide", expected="images that are neither cut nor turned"
            )
        if _part(split, entry, settings) != "train":
            added.write_objects(add=_all_of(entry, loop_settings))
    building.rename(base)
    return base


def _part(split: Split, entry: ImageEntry, settings: SimulationSettings) -> str:
    patient = entry.metadata.get(settings.patient_key, "").strip() or entry.stored_slide_path.name
    return split.patients.get(patient, "train")


def _all_of(entry: ImageEntry, settings: LoopSettings) -> gpd.GeoDataFrame:
    """Return all that is true of an image as annotations in an area that says that this is all."""
    truth = complete_truth(entry, settings)
    tables = [make_objects([shapely.box(0, 0, *entry.size())], object_type="annotation", classification="Training")]
    for name, own in truth.groupby("classification"):
        shapes = own.geometry.to_numpy()
        if settings.target == "cells":
            shapes = [shapely.multipoints(shapely.get_coordinates(shapes))]
        tables.append(make_objects(shapes, object_type="annotation", classification=str(name)))
    return concat_objects(tables)


def _loop(base: Path, run: Path, settings: SimulationSettings, strategy: str, seed: int) -> Loop:
    """Return the loop of a run, in its copy of the project; make both if they are not there."""
    if not run.is_dir():
        building = run.with_name(f".{run.name}")
        shutil.rmtree(building, ignore_errors=True)
        shutil.copytree(base, building)
        building.rename(run)
    copy = open_project(run)
    if not (run / "qupath_ext" / "active" / LOOP / "loop.json").is_file():
        return start_loop([copy], LOOP, settings.loop(strategy, seed), split=read_split(settings.split))
    return find_loop(copy.path, LOOP)


def _go_through(
    loop: Loop, rounds: int, strategy: str, pathologist: Pathologist, training: TrainOptions, say: Say
) -> None:
    """Take a loop to the end of its last round."""

    def indented(line: str) -> None:
        say(f"  {line}")

    while True:
        latest = loop.latest
        if latest is None or latest.state in ("begun", "trained"):
            if latest is not None and latest.state == "trained" and latest.number >= rounds:
                return
            if strategy == FULL:
                _propose_all(loop)
            propose_round(loop, ProposeOptions(device=training.device), indented)
        elif latest.state == "proposed":
            pathologist.answer(loop)
            collect_round(loop, indented)
        else:
            train_round(loop, latest.number, training, indented, _unshown)


def _propose_all(loop: Loop) -> None:
    """Begin a round whose regions are whole images."""
    one = loop.latest or loop.begin_round()
    if one.has("proposals"):
        return
    rows: list[Mapping[str, Any]] = []
    for rank, slide in enumerate(loop_slides(loop), start=1):
        entry = slide.first.entry
        width, height = entry.size()
        across, down = entry.mpp or (np.nan, np.nan)
        area = width * across * height * down / 1e6
        rows.append(
            {
                "geometry": shapely.box(0, 0, width, height),
                "project": loop.number_of(slide.first.project),
                "entry_id": entry.id,
                "image": entry.name,
                "slide": slide.key,
                "rank": rank,
                "score": 0.0,
                "reason": FULL,
                "area_mm2": area,
                "parts": "{}",
                "features": [],
            }
        )
    total = sum(row["area_mm2"] for row in rows)
    one.save(
        chosen={
            "strategy": FULL,
            "budget": total,
            "unit": "mm²",
            "area_mm2": total,
            "regions": len(rows),
            "model": None,
        }
    )
    save_objects(one.folder / "predictions.parquet", empty_objects())
    index = pd.Index(new_ids(len(rows)), name="region")
    table = gpd.GeoDataFrame(pd.DataFrame(rows), geometry="geometry").set_index(index)
    write_table(one.folder / "proposals.parquet", table[list(PROPOSAL_COLUMNS)])


def _unshown(stage: str, done: int, total: int) -> None:
    del stage, done, total
