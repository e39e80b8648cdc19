"""The files that come with the program: settings of studies, and scripts.

In a wheel they lie inside this package (``qupath_ext/studies``, ``qupath_ext/scripts``); in a checkout they are the
top-level folders ``projects`` and ``scripts``.
"""

from __future__ import annotations

from pathlib import Path

from pyhisto.errors import ConfigError

__all__ = ["scripts_folder", "study_file"]

_PACKAGE = Path(__file__).resolve().parent


def study_file(study: str) -> Path:
    """Return the ``study.toml`` of a study that comes with the program, such as ``"ki67"``.

    Raises
    ------
    ConfigError
        If there is no study of this name, or the studies were not installed.
    """
    studies = _folder("studies", "projects")
    names = sorted(file.parent.name for file in studies.glob("*/study.toml"))
    if study not in names:
        raise ConfigError(f"unknown study {study!r}", expected=f"one of {', '.join(names) or '(none installed)'}")
    return studies / study / "study.toml"


def scripts_folder() -> Path:
    """Return the folder with the scripts that come with the program.

    Raises
    ------
    ConfigError
        If the scripts were not installed.
    """
    return _folder("scripts", "scripts")


def _folder(packaged: str, checkout: str) -> Path:
    """Return the folder inside the package, else the one in the checkout around it."""
    candidates = [_PACKAGE / packaged, _PACKAGE.parent / checkout]
    for folder in candidates:
        if folder.is_dir():
            return folder
    raise ConfigError(
        f"{candidates[0]} does not exist",
        expected=f"the {packaged} that come with qupath-ext",
        remedy="install qupath-ext again",
    )
