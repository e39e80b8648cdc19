"""The settings of a project: what the scripts in QuPath use unless they are told otherwise.

They stand in ``<project>/qupath_ext/settings.toml``::

    tumour = "models/tumour-v3"   # folder of a model, absolute or as seen from the folder of the project
    cells = "/data/models/ki67"
    device = "cuda"
    cell_expansion_um = 3.0
"""

from __future__ import annotations

import math
import tomllib
from dataclasses import dataclass
from pathlib import Path

from pyhisto.config import from_mapping
from pyhisto.errors import ConfigError
from qupath_ext.errors import ProjectError

__all__ = ["ProjectSettings", "change_settings", "model_folder", "read_settings", "settings_file"]


@dataclass(frozen=True)
class ProjectSettings:
    """Settings of a project.

    Attributes
    ----------
    tumour
        Folder of the model that segments tumour; None if there is none.
    cells
        Folder of the model that finds cells; None for the classical detector.
    device
        Where networks run: ``"cpu"``, ``"cuda"``, ``"cuda:1"`` or ``"mps"``.
    tumour_class
        Class of the annotations in which cells are looked for.
    cell_expansion_um
        Growth of a nucleus to its cell, µm; 0 gives nuclei only.
    training_minutes
        Time for a training.
    patient_key
        Entry metadata that names the patient; without it the slide is one.

    Raises
    ------
    ConfigError
        If a number is out of range.
    """

    tumour: str | None = None
    cells: str | None = None
    device: str = "cpu"
    tumour_class: str = "Tumor"
    cell_expansion_um: float = 5.0
    training_minutes: float = 20.0
    patient_key: str = "Patient"

    def __post_init__(self) -> None:
        if not 0 <= self.cell_expansion_um <= 50:
            raise ConfigError(f"cell_expansion_um = {self.cell_expansion_um}", expected="0 to 50 µm")
        if not 0.5 <= self.training_minutes < math.inf:
            raise ConfigError(f"training_minutes = {self.training_minutes}", expected="at least half a minute")


def settings_file(project: str | Path) -> Path:
    """Return where the settings of a project stand, given its folder or file; need not exist."""
    path = Path(project)
    folder = path.parent if path.suffix == ".qpproj" else path
    return folder / "qupath_ext" / "settings.toml"


def read_settings(project: str | Path) -> ProjectSettings:
    """Return the settings of a project, given its folder or file; the defaults if it has none.

    Raises
    ------
    ConfigError
        If the file cannot be read, a key is unknown or a value is wrong.
    """
    path = settings_file(project)
    return from_mapping(ProjectSettings, tomllib.loads(_text(path)), str(path))


def _text(path: Path) -> str:
    """Return the text of a settings file that is TOML; nothing if there is no file."""
    if not path.exists():
        return ""
    try:
        text = path.read_text("utf-8-sig")
        tomllib.loads(text)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read ({error.strerror})") from error
    except ValueError as error:  # what tomllib raises for TOML, and Python for text that is no UTF-8
        raise ConfigError(f"{path}: {error}", expected="TOML in UTF-8", remedy="mend or remove the file") from error
    return text


def change_settings(project: str | Path, **changes: str | float | None) -> ProjectSettings:
    """Change settings of a project; others and the comments in the file stay.

    Parameters
    ----------
    project
        Its folder or file.
    **changes
        Fields of :class:`ProjectSettings`; None takes one away.

    Returns
    -------
    ProjectSettings
        What is in force now.

    Raises
    ------
    ConfigError
        If a setting is unknown or wrong; nothing was written.
    ProjectError
        If the file cannot be written.
    """
    import tomlkit

    path = settings_file(project)
    document = tomlkit.parse(_text(path))
    for name, value in changes.items():
        if value is None:
            document.pop(name, None)
        else:
            document[name] = value
    settings = from_mapping(ProjectSettings, document.unwrap(), str(path))
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(tomlkit.dumps(document), encoding="utf-8")
        temporary.replace(path)
    except OSError as error:
        raise ProjectError(f"{path} cannot be written: {error.strerror or error}") from error
    return settings


def model_folder(project: str | Path, model: str) -> Path:
    """Return the folder of a model that settings name: absolute, or as seen from the folder of the project."""
    return settings_file(project).parent.parent.joinpath(Path(model).expanduser())
