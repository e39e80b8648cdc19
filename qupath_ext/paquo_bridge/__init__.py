"""QuPath projects through Paquo and QuPath's own classes; the one package that imports Paquo and JPype."""

from __future__ import annotations

import importlib.resources
import os
import re
import tomllib
from pathlib import Path
from typing import Any

from qupath_ext.errors import ProjectError

__all__ = ["find_qupath"]

SETTINGS_FILE = ".paquo.toml"
CONDA_PLACES = ("opt/QuPath", "bin/QuPath.app", "Library/QuPath")


def find_qupath() -> Path | None:
    """Return the QuPath installation that Paquo would use, as the folder of its jars; None if there is none.

    Paquo's own search decides: ``PAQUO_QUPATH_DIR`` and other ``PAQUO_`` variables, ``.paquo.toml``, conda, and the
    usual folders for programs. Where nothing speaks for an installation, Paquo is not even imported. No JVM is started.

    Raises
    ------
    ProjectError
        If ``qupath_dir`` is set and there is no QuPath in it.
    """
    if not _worth_a_search():
        return None
    from paquo._config import settings, to_kwargs
    from paquo.jpype_backend import find_qupath as search

    options = to_kwargs(settings)
    try:
        found: Path = search(**options).app_dir
    except (OSError, ValueError) as error:
        if options.get("qupath_dir") or options.get("jvm_path_override"):
            raise ProjectError(
                f"no QuPath in {options.get('qupath_dir')} ({error})",
                expected="the folder of a QuPath installation, with its Java",
                remedy="correct PAQUO_QUPATH_DIR or .paquo.toml, or use the native backend",
            ) from error
        return None
    return found


def _worth_a_search() -> bool:
    """Whether something is set or lies where Paquo would look first."""
    if any(name.startswith("PAQUO_") and value for name, value in os.environ.items()):
        return True
    here = Path.cwd()
    if any((folder / place / SETTINGS_FILE).is_file() for folder in (here, *here.parents) for place in ("", "config")):
        return True
    prefix = os.environ.get("CONDA_PREFIX")
    if prefix and any((Path(prefix) / place).exists() for place in CONDA_PLACES):
        return True
    defaults = _defaults()
    is_qupath = re.compile(defaults["qupath_search_dir_regex"]).match
    folders = (Path(folder) for folder in defaults["qupath_search_dirs"])
    return any(is_qupath(place.name) for folder in folders if folder.is_dir() for place in folder.iterdir())


def _defaults() -> dict[str, Any]:
    return tomllib.loads((importlib.resources.files("paquo") / ".paquo.defaults.toml").read_text("utf-8"))
