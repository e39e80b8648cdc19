"""The state of a loop on disk: settings, frozen split, rounds."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, get_args

import geopandas as gpd

from pyhisto.active.strategy import parse_strategy
from pyhisto.config import from_mapping
from pyhisto.dataset import Split, make_split
from pyhisto.dataset.images import Part
from pyhisto.errors import ConfigError
from qupath_ext.active.files import damaged, locked, make_folder, read_record
from qupath_ext.errors import FormatError, ProjectError, ProjectNotFoundError
from qupath_ext.project import Project, open_project
from qupath_ext.runs.record import now, write_json
from qupath_ext.workflows.trainingdata import Source, gather, patient_of

__all__ = ["TRAINING", "Loop", "LoopSettings", "Round", "Target", "find_loop", "start_loop"]

FOLDER = Path("qupath_ext") / "active"
VERSION = 1
TRAINING = "training.json"
"""File of a round with what its training found, and the model that came of it."""

Target = Literal["cells", "tissue"]


@dataclass(frozen=True)
class LoopSettings:
    """What a loop learns and how it chooses; the first part of ``loop.json``.

    Attributes
    ----------
    target
        ``"cells"`` or ``"tissue"``.
    classes
        QuPath classes to learn.
    strategy
        How regions are chosen once there is a model; see :func:`pyhisto.active.strategy.parse_strategy`.
    shape
        ``"square"`` or ``"adaptive"`` regions.
    region_um
        Side of a square region, µm; those of an adaptive one lie between half and twice of it.
    budget_mm2
        Area that a round proposes.
    correction_weight
        What a corrected pixel weighs in the training; a confirmed one weighs 1.
    match_um
        Farthest that a moved point may be from where the model had it, µm.
    patient_key
        Entry metadata that names the patient; an image without it is a patient by its slide.
    init
        Bundle that fills the regions of the first round; empty for none.
    seed
        Of everything that is drawn by lot.

    Raises
    ------
    ConfigError
        If a value is out of range.
    """

    target: Target
    classes: tuple[str, ...]
    strategy: str = "entropy+diversity"
    shape: Literal["square", "adaptive"] = "square"
    region_um: float = 250.0
    budget_mm2: float = 0.5
    correction_weight: float = 3.0
    match_um: float = 8.0
    patient_key: str = "Patient"
    init: str = ""
    seed: int = 0

    def __post_init__(self) -> None:
        if self.target not in get_args(Target):
            raise ConfigError(f"target {self.target!r}", expected=f"one of {', '.join(get_args(Target))}")
        if not self.classes or len(set(self.classes)) < len(self.classes) or not all(self.classes):
            raise ConfigError(f"classes {list(self.classes)}", expected="one name or more, each once")
        if any(name.endswith("*") for name in self.classes):
            raise ConfigError(f"classes {list(self.classes)}", expected="names that do not end in an asterisk")
        parse_strategy(self.strategy)
        if not 32 <= self.region_um <= 2500:
            raise ConfigError(f"regions of {self.region_um:g} µm", expected="32 to 2500")
        if not 0 < self.budget_mm2 <= 10_000:
            raise ConfigError(f"a budget of {self.budget_mm2:g} mm²", expected="more than 0")
        if not 1 <= self.correction_weight <= 100:
            raise ConfigError(f"a correction weight of {self.correction_weight:g}", expected="1 to 100")
        if not 0 < self.match_um <= 100:
            raise ConfigError(f"points matched within {self.match_um:g} µm", expected="more than 0, at most 100")


@dataclass(frozen=True)
class Round:
    """One round of a loop.

    Attributes
    ----------
    folder
        ``rounds/NN``.
    record
        What ``round.json`` holds: ``number``, and one object for each of the steps ``proposed`` and ``collected`` that
        was done, each with ``when``; see :mod:`.propose` and :mod:`.collect`.
    """

    folder: Path
    record: dict[str, Any] = field(default_factory=dict)

    @property
    def number(self) -> int:
        """Its number, from 1."""
        return int(self.folder.name)

    @property
    def state(self) -> Literal["begun", "proposed", "collected", "trained"]:
        """The last step that was done."""
        if (self.folder / TRAINING).is_file():
            return "trained"
        return "collected" if "collected" in self.record else "proposed" if "proposed" in self.record else "begun"

    @property
    def training(self) -> dict[str, Any] | None:
        """What its training found, see :func:`qupath_ext.active.training.train_round`; None if it is not trained.

        Raises
        ------
        FormatError
            If the record is damaged.
        """
        return read_record(self.folder / TRAINING) if (self.folder / TRAINING).is_file() else None

    @property
    def model(self) -> Path | None:
        """The folder of the bundle that this round trained, if it trained one; raises as :attr:`training` does."""
        try:
            model = None if self.training is None else self.training["model"]
            return None if model is None else self.folder / str(model["path"])
        except (KeyError, TypeError) as error:
            raise damaged(self.folder / TRAINING, error) from error

    def save(self, **steps: Mapping[str, Any]) -> None:
        """Note steps in ``round.json``, all or nothing; each gets the time as ``when`` unless it has one.

        Raises
        ------
        ProjectError
            If it cannot be written.
        """
        self.record.update({name: {"when": now(), **value} for name, value in steps.items()})
        write_json(self.folder / "round.json", self.record)

    def table(self, name: str) -> gpd.GeoDataFrame:
        """Return ``proposals``, ``predictions`` or ``corrections``.

        Raises
        ------
        FormatError
            If the file is missing or damaged.
        """
        path = self.folder / f"{name}.parquet"
        try:
            return gpd.read_parquet(path)
        except (OSError, ValueError) as error:
            raise FormatError(f"{path} is missing or damaged ({error})", remedy="restore it, or roll back") from error

    def has(self, name: str) -> bool:
        """Return whether a table is there."""
        return (self.folder / f"{name}.parquet").is_file()


@dataclass(frozen=True)
class Loop:
    """A loop over one or many projects; made by :func:`start_loop`, found by :func:`find_loop`.

    Attributes
    ----------
    folder
        Where its state lies.
    settings
        What it learns and how it chooses.
    split
        The part of each patient; never changed for those that it knows.
    paths
        The project files; images are named by the number of their project in this list and their entry id.
    backend
        What reads and writes the projects.
    """

    folder: Path
    settings: LoopSettings
    split: Split
    paths: tuple[Path, ...]
    backend: str = "auto"

    @property
    def name(self) -> str:
        """Its name."""
        return self.folder.name

    @property
    def analysis(self) -> str:
        """Name of the analysis of its runs."""
        return f"active-{self.name}"

    @cached_property
    def projects(self) -> list[Project]:
        """The projects, opened once, in the order of :attr:`paths`.

        Raises
        ------
        ProjectError
            If one cannot be opened.
        """
        return [self._opened(path) for path in self.paths]

    def _opened(self, path: Path) -> Project:
        try:
            return open_project(path, backend=self.backend)
        except ProjectNotFoundError as error:
            raise ProjectError(
                f"no project {path} of the loop {self.name!r}",
                remedy=f"bring it back, or correct its path under projects in {self.folder / 'loop.json'}",
            ) from error

    @property
    def rounds_folder(self) -> Path:
        """Where the rounds lie."""
        return self.folder / "rounds"

    def rounds(self) -> list[Round]:
        """Return the rounds, oldest first.

        Raises
        ------
        FormatError
            If a record is damaged.
        """
        folders = sorted(self.rounds_folder.glob("[0-9][0-9]*"), key=lambda folder: int(folder.name))
        return [
            Round(folder, read_record(folder / "round.json")) for folder in folders if (folder / "round.json").is_file()
        ]

    def round(self, number: int) -> Round:
        """Return a round by its number.

        Raises
        ------
        ProjectError
            If there is none.
        """
        known = {one.number: one for one in self.rounds()}
        if number not in known:
            raise ProjectError(
                f"no round {number} in the loop {self.name!r}",
                expected=f"one of {', '.join(map(str, known))}" if known else "a loop with rounds",
                remedy="begin one with qupath-ext active propose",
            )
        return known[number]

    @property
    def latest(self) -> Round | None:
        """The last round; None if there is none yet."""
        rounds = self.rounds()
        return rounds[-1] if rounds else None

    def begin_round(self) -> Round:
        """Make the folder of the next round with a record that says nothing but its number.

        Raises
        ------
        ProjectError
            If it cannot be written.
        """
        latest = self.latest
        number = 1 if latest is None else latest.number + 1
        folder = self.rounds_folder / f"{number:02d}"
        make_folder(folder)
        found = Round(folder, {"number": number, "begun": now()})
        found.save()
        return found

    def model(self, before: int | None = None) -> Path | None:
        """Return the bundle of the last round that trained one (of rounds below `before`); None if none did."""
        trained = [one.model for one in self.rounds() if before is None or one.number < before]
        return next((path for path in reversed(trained) if path is not None), None)

    def sources(self, part: Part | None = None) -> list[Source]:
        """Return the images of all projects, or those whose patient is in a part of the frozen split.

        A patient who came later is for training; those to validate and test on stay as they were drawn.
        """
        found = gather(self.projects)
        return found if part is None else [source for source in found if self.part_of(source) == part]

    def part_of(self, source: Source) -> Part:
        """Return the part of an image's patient; ``"train"`` for one who came later."""
        return self.split.patients.get(patient_of(source.entry, self.settings.patient_key), "train")

    def number_of(self, project: Project) -> int:
        """Return the number of a project in :attr:`paths`.

        Raises
        ------
        ProjectError
            If the loop does not have it.
        """
        resolved = project.path.resolve()
        for number, path in enumerate(self.paths):
            if path.resolve() == resolved:
                return number
        raise ProjectError(f"{project.path} is not in the loop {self.name!r}", expected=f"one of {len(self.paths)}")

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep other processes from going on with the loop, inside a ``with`` block.

        Raises
        ------
        ProjectError
            If another process is at work on it, or the folder cannot be written.
        """
        with locked(self.folder / "lock", f"the loop {self.name!r}"):
            yield

    def save(self) -> None:
        """Write ``loop.json``, all or nothing.

        Raises
        ------
        ProjectError
            If it cannot be written.
        """
        document = {
            "version": VERSION,
            "settings": {**asdict(self.settings), "classes": list(self.settings.classes)},
            "projects": [os.path.relpath(path, self.folder) for path in self.paths],
            "split": {
                "patients": dict(sorted(self.split.patients.items())),
                "seed": self.split.seed,
                "fractions": dict(self.split.fractions),
            },
        }
        write_json(self.folder / "loop.json", document)


def start_loop(
    projects: Sequence[Project],
    name: str,
    settings: LoopSettings,
    *,
    split: Split | None = None,
    fractions: Mapping[Part, float] | None = None,
) -> Loop:
    """Make a loop; nothing is proposed yet.

    Parameters
    ----------
    projects
        Its projects; the state lies in the first.
    name
        Name of the loop: letters, digits, hyphens and underscores.
    settings
        What it learns and how it chooses.
    split
        The part of each patient; drawn by lot if None, and frozen either way.
    fractions
        Share of the patients for ``"validation"`` and ``"test"`` where `split` is None; 0.2 each by default.

    Raises
    ------
    ConfigError
        If the name is no name of a folder, a fraction is no share, or the split knows a patient twice.
    ProjectError
        If there is such a loop, no image, or a folder cannot be made.
    """
    if not name or not all(c.isalnum() or c in "-_" for c in name):
        raise ConfigError(f"loop {name!r}", expected="letters, digits, hyphens and underscores")
    folder = projects[0].path.parent / FOLDER / name
    if (folder / "loop.json").exists():
        raise ProjectError(
            f"the loop {name!r} exists already in {projects[0].path.parent}", remedy="choose another --name"
        )
    patients = {patient_of(source.entry, settings.patient_key) for source in gather(projects)}
    if split is None:
        split = make_split(patients, fractions=fractions or {"validation": 0.2, "test": 0.2}, seed=settings.seed)
    if not patients & set(split.of_part("train")):
        raise ConfigError("no patient of the projects is to train on", expected="at least one", remedy="change --split")
    make_folder(folder)
    loop = Loop(folder, settings, split, tuple(p.path.resolve() for p in projects), projects[0].backend)
    loop.save()
    return loop


def find_loop(project: Path, name: str = "", *, backend: str = "auto") -> Loop:
    """Return a loop of a project, its first one; the only one if no name is given.

    Parameters
    ----------
    project
        The project file or its folder.
    name
        Name of the loop; may be empty if there is only one.
    backend
        What reads and writes the projects.

    Raises
    ------
    ProjectError
        If there is none of the name, or several and no name.
    FormatError
        If its record is damaged.
    """
    folder = project if project.is_dir() else project.parent
    known = sorted(path.parent.name for path in (folder / FOLDER).glob("*/loop.json"))
    if not known or (name and name not in known):
        raise ProjectError(
            f"no loop{f' {name!r}' if name else ''} in {folder}",
            expected=f"one of {', '.join(known)}" if known else "a project with a loop",
            remedy="begin one with qupath-ext active start",
        )
    if not name and len(known) > 1:
        raise ProjectError(f"{len(known)} loops in {folder}", expected="one", remedy=f"say --loop {known[0]}")
    path = folder / FOLDER / (name or known[0])
    record = read_record(path / "loop.json")
    try:
        if record["version"] != VERSION:
            raise FormatError(f"loop {path} of version {record['version']}", expected=f"version {VERSION}")
        kept = record["split"]
        return Loop(
            path,
            from_mapping(LoopSettings, record["settings"], "loop.json"),
            Split(kept["patients"], kept["seed"], kept["fractions"]),
            tuple((path / project).resolve() for project in record["projects"]),
            backend,
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise damaged(path / "loop.json", error) from error
