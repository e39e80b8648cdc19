"""What is kept for a user, outside all projects: where the worker listens, and which projects have the scripts."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import filelock
import platformdirs

from qupath_ext.errors import FormatError, ProjectError

__all__ = ["forget_project", "known_projects", "remember_project", "state_folder", "worker_file", "write_private"]


def state_folder() -> Path:
    """Return the folder; need not exist.

    ``$XDG_STATE_HOME/qupath-ext`` or ``~/.local/state/qupath-ext``, ``qupath-ext`` in ``%LOCALAPPDATA%`` on Windows,
    ``~/Library/Application Support/qupath-ext`` on macOS.
    """
    return platformdirs.user_state_path("qupath-ext", appauthor=False)


def worker_file() -> Path:
    """Return the file in which a worker says where it listens; it is there as long as the worker."""
    return state_folder() / "worker.json"


def known_projects() -> tuple[Path, ...]:
    """Return the folders of the projects that have the scripts.

    Raises
    ------
    FormatError
        If the list is damaged.
    """
    path = _projects_file()
    try:
        folders = json.loads(path.read_text("utf-8"))["projects"]
        return tuple(Path(folder) for folder in folders)
    except FileNotFoundError:
        return ()
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise FormatError(
            f"{path} is not a list of projects ({error})",
            expected="what qupath-ext install-scripts wrote",
            remedy="remove it, and run install-scripts for the projects again",
        ) from error


def remember_project(folder: Path) -> None:
    """Add a project to the list of those that have the scripts, under the name given and under the one without links.

    Raises
    ------
    FormatError
        If the list is damaged.
    ProjectError
        If it cannot be written.
    """
    _change(lambda known: {*known, *_names(folder)})


def forget_project(folder: Path) -> None:
    """Take a project off the list; see :func:`remember_project`."""
    _change(lambda known: known - _names(folder))


def _names(folder: Path) -> set[Path]:
    return {folder.absolute(), folder.resolve()}


def _projects_file() -> Path:
    return state_folder() / "projects.json"


def _change(change: Callable[[set[Path]], set[Path]]) -> None:
    path = _projects_file()
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with filelock.FileLock(path.with_suffix(".lock"), timeout=10):
            before = set(known_projects())
            after = change(before)
            if after != before:
                write_private(path, json.dumps({"projects": sorted(map(str, after))}, indent=2, ensure_ascii=False))
    except (OSError, filelock.Timeout) as error:
        raise ProjectError(f"{path} cannot be written ({error})") from error


def write_private(path: Path, text: str) -> None:
    """Write a file that only this user can read, all or nothing; on Windows the rights are those of its folder.

    Raises
    ------
    OSError
        If it cannot be written.
    """
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.unlink(missing_ok=True)
    try:
        with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
            file.write(text)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
