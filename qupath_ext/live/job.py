"""The folder of a job: what QuPath's script asks for, and what it gets back.

::

    job.json         written last by the script: what is asked for, and the open image as QuPath has it
    objects.geojson  the objects of the image, as QuPath's own exporter writes them (or .geojson.gz)
    progress.jsonl   written by this program, a line for each step: {"stage": ..., "done": ..., "total": ...}
    cancel           made by the script to stop this program; it is looked for between tiles
    add.geojson      the new objects, parents before children, each with its ``parentId``
    answer.json      written last by this program: what the script is to do
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

from pyhisto.errors import PyhistoError
from qupath_ext.errors import FormatError, ProjectError

__all__ = ["ADD_FILE", "JOB_VERSION", "TASKS", "Answer", "Job", "Status", "read_job", "write_answer"]

JOB_VERSION = 1
"""Version of the layout of a job folder."""

ADD_FILE = "add.geojson"
"""Name of the file with the new objects."""

TASKS = (
    "ki67-selection",
    "ki67-slide",
    "tumour",
    "detect-cells",
    "train",
    "evaluate",
    "export",
    "undo",
    "doctor",
    "ping",
)
"""What can be asked for."""

IMAGELESS = ("doctor", "ping")
"""Tasks that need neither project nor image."""

Status: TypeAlias = Literal["done", "failed", "cancelled"]


@dataclass(frozen=True)
class Job:
    """What a script in QuPath asks for.

    Attributes
    ----------
    folder
        Where the files of the job are.
    task
        One of :data:`TASKS`.
    project
        The project file; None if QuPath has no project open.
    qupath
        QuPath's version.
    entry_id, entry_name
        The image in the project; empty if there is none.
    uris
        What QuPath's server names as the files of the image.
    builder
        The server builder as QuPath's JSON; None if the script has none, and the project's is taken.
    size
        Width and height as QuPath shows the image, px; None if not given.
    mpp
        Pixel size (x, y) in µm as calibrated in QuPath; None if it is not calibrated.
    image_type
        One of :data:`qupath_ext.project.IMAGE_TYPES`.
    stains
        QuPath's JSON of the colour deconvolution stains; None if it has none.
    objects
        File with the objects of the image; None if not given.
    selected
        Ids of the selected annotations.
    options
        Of the task.
    """

    folder: Path
    task: str
    project: Path | None = None
    qupath: str = ""
    entry_id: str = ""
    entry_name: str = ""
    uris: tuple[str, ...] = ()
    builder: Mapping[str, Any] | None = None
    size: tuple[int, int] | None = None
    mpp: tuple[float, float] | None = None
    image_type: str | None = None
    stains: str | None = None
    objects: Path | None = None
    selected: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_cancelled(self) -> bool:
        """Whether the script wants it stopped."""
        return (self.folder / "cancel").exists()


@dataclass(frozen=True)
class Answer:
    """What a script in QuPath is to do, and to say.

    Attributes
    ----------
    status
        ``"done"``, ``"failed"`` or ``"cancelled"``; the latter two change nothing.
    message
        One or two plain lines for a person.
    error
        ``found``, ``expected`` and ``remedy``, if it failed.
    run
        Id of the run.
    add
        Name of the file with the new objects, in the folder of the job.
    remove, lock, unlock
        Ids of objects.
    classes
        Classes for the project's list, ``name`` and ``color`` (red, green, blue), those that it lacks.
    metadata
        Entries to set in the metadata of the image.
    workflow
        ``name`` and ``script`` of the step for QuPath's workflow.
    open
        A file or page to show.
    notes
        What a person should look at.
    seconds
        Time taken.
    counts
        Number of new objects by class, of those removed, and whatever else was counted.
    """

    status: Status
    message: str
    error: Mapping[str, str] | None = None
    run: str | None = None
    add: str | None = None
    remove: tuple[str, ...] = ()
    lock: tuple[str, ...] = ()
    unlock: tuple[str, ...] = ()
    classes: tuple[Mapping[str, Any], ...] = ()
    metadata: Mapping[str, str] = field(default_factory=dict)
    workflow: Mapping[str, str] | None = None
    open: str | None = None
    notes: tuple[str, ...] = ()
    seconds: float = 0.0
    counts: Mapping[str, float] = field(default_factory=dict)

    @property
    def exit_code(self) -> int:
        """Exit code of the process that gives this answer: 0 done, 1 failed, 3 cancelled."""
        return {"done": 0, "failed": 1, "cancelled": 3}[self.status]

    @classmethod
    def failed(cls, error: PyhistoError | str, *, seconds: float = 0.0) -> Answer:
        """Return the answer to a job that failed."""
        known = isinstance(error, PyhistoError)
        parts = (error.found, error.expected, error.remedy) if known else (error, "", "")  # type: ignore[union-attr]
        words = dict(zip(("found", "expected", "remedy"), map(str, parts), strict=True))
        return cls("failed", str(error), error=words, seconds=seconds)

    def to_dict(self) -> dict[str, Any]:
        """Return what ``answer.json`` holds."""
        return {"version": JOB_VERSION, **asdict(self)}


def read_job(folder: str | Path) -> Job:
    """Read the job of a folder; objects are not read.

    Raises
    ------
    FormatError
        If there is none, or it is not understood.
    """
    folder = Path(folder).absolute()
    path = folder / "job.json"
    try:
        content = json.loads(path.read_text("utf-8-sig"))
    except OSError as error:
        raise FormatError(f"{path} cannot be read ({error.strerror})", expected="the job of a script") from error
    except ValueError as error:
        raise FormatError(f"{path} is damaged ({error})", expected="JSON in UTF-8") from error
    if not isinstance(content, dict):
        raise FormatError(f"{path} holds no job", expected="a JSON object")
    version = content.get("version")
    if version != JOB_VERSION:
        raise FormatError(
            f"{path}: version {version!r} of the job folder",
            expected=str(JOB_VERSION),
            remedy="run qupath-ext install-scripts again: scripts and program are of different versions",
        )
    try:
        return _job(folder, content)
    except FormatError as error:
        raise FormatError(f"{path}: {error.found}", expected=error.expected, remedy=error.remedy) from error


def _job(folder: Path, content: Mapping[str, Any]) -> Job:
    task = _typed(content, "task", str)
    if task not in TASKS:
        raise FormatError(f"task {task!r}", expected=f"one of {', '.join(TASKS)}")
    entry = _typed(content, "entry", dict) or {}
    server = _typed(content, "server", dict) or {}
    image = _typed(content, "image", dict) or {}
    project = _typed(content, "project", str)
    if project and not Path(project).is_absolute():
        raise FormatError(f"project {project!r}", expected="an absolute path")
    objects = _typed(content, "objects", str)
    return Job(
        folder=folder,
        task=task,
        project=Path(project) if project else None,
        qupath=_typed(content, "qupath", str) or "",
        entry_id=_typed(entry, "id", str) or "",
        entry_name=_typed(entry, "name", str) or "",
        uris=_texts(server, "uris"),
        builder=_typed(server, "builder", dict),
        size=_size(image),
        mpp=_mpp(image),
        image_type=_typed(image, "type", str),
        stains=_typed(image, "stains", str),
        objects=_inside(folder, objects) if objects else None,
        selected=_texts(content, "selected"),
        options=_typed(content, "options", dict) or {},
    )


def _typed(content: Mapping[str, Any], key: str, kind: type) -> Any:
    """Return a value; None if it is missing or null."""
    value = content.get(key)
    if value is not None and not isinstance(value, kind):
        words = {"str": "a text", "dict": "a JSON object", "list": "a list"}
        raise FormatError(f"{key} is {value!r:.80}", expected=words[kind.__name__])
    return value


def _texts(content: Mapping[str, Any], key: str) -> tuple[str, ...]:
    values = _typed(content, key, list) or []
    if not all(isinstance(value, str) for value in values):
        raise FormatError(f"{key} is {values!r:.80}", expected="a list of texts")
    return tuple(values)


def _inside(folder: Path, name: str) -> Path:
    """Return a file of the job folder."""
    if Path(name).name != name or "\\" in name or name in (".", ".."):
        raise FormatError(f"objects is {name!r}", expected="the name of a file in the folder of the job")
    return folder / name


def _numbers(value: Any, n: int) -> tuple[float, ...] | None:
    """Return n numbers above 0; None if the value is something else."""
    if not isinstance(value, list) or len(value) != n:
        return None
    right = [isinstance(one, int | float) and not isinstance(one, bool) and 0 < one < math.inf for one in value]
    return tuple(float(one) for one in value) if all(right) else None


def _size(image: Mapping[str, Any]) -> tuple[int, int] | None:
    value = [image.get("width"), image.get("height")]
    if value == [None, None]:
        return None
    size = _numbers(value, 2)
    if size is None:
        raise FormatError(f"image of {value[0]!r} x {value[1]!r} px", expected="width and height above 0")
    return round(size[0]), round(size[1])


def _mpp(image: Mapping[str, Any]) -> tuple[float, float] | None:
    value = image.get("mpp")
    if value is None:
        return None
    size = _numbers(value, 2)
    if size is None:
        raise FormatError(f"mpp is {value!r:.80}", expected="µm of a pixel in x and y, or null")
    return size[0], size[1]


def write_answer(folder: str | Path, answer: Answer) -> Path:
    """Write ``answer.json``, all or nothing; the last thing that is done for a job.

    Raises
    ------
    ProjectError
        If it cannot be written.
    """
    path = Path(folder) / "answer.json"
    temporary = path.with_name(f".{path.name}.tmp")
    text = json.dumps(answer.to_dict(), indent=2, ensure_ascii=False)
    try:
        temporary.write_text(text + "\n", encoding="utf-8")
        temporary.replace(path)
    except OSError as error:
        raise ProjectError(f"{path} cannot be written: {error.strerror or error}") from error
    return path
