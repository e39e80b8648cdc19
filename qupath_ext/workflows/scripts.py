"""The scripts that QuPath shows under Automate > Project scripts: put into a project, brought up to date, taken away.

The scripts lie in ``<project>/scripts/qupath-ext``, which QuPath shows as a submenu, and what they share in
``<project>/qupath_ext/groovy``. Each begins with a line that names the version and the hash of the rest: a file whose
hash is another one was edited by a person.
"""

from __future__ import annotations

import hashlib
import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path

import qupath_ext
from qupath_ext.errors import ProjectError
from qupath_ext.project import open_project
from qupath_ext.resources import scripts_folder

__all__ = ["LIBRARY_FOLDER", "MENU_FOLDER", "InstalledScripts", "install_scripts", "remove_scripts"]

MENU_FOLDER = Path("scripts") / "qupath-ext"
"""Where the scripts of the menu lie in the folder of a project."""

LIBRARY_FOLDER = Path("qupath_ext") / "groovy"
"""Where what they share lies."""

FIRST_LINE = re.compile(r"// qupath-ext (?P<version>\S+), sha256 (?P<hash>[0-9a-f]{64})\n")


@dataclass(frozen=True)
class InstalledScripts:
    """What was done to the scripts of a project.

    Attributes
    ----------
    folder
        The folder of the project.
    written
        Files that are new or have another content now.
    unchanged
        Files that were as they are to be.
    kept
        Files that a person edited or made, which were left alone.
    removed
        Files that were taken away.
    """

    folder: Path
    written: tuple[Path, ...] = ()
    unchanged: tuple[Path, ...] = ()
    kept: tuple[Path, ...] = ()
    removed: tuple[Path, ...] = ()


def install_scripts(
    project: str | Path, *, python: str | Path = sys.executable, force: bool = False
) -> InstalledScripts:
    """Put the scripts into a project, or bring them up to date.

    Parameters
    ----------
    project
        The project folder or file.
    python
        The Python that the scripts call; qupath-ext must be installed there.
    force
        Overwrite files that a person edited as well.

    Raises
    ------
    ProjectError
        If there is no such project, it has another folder or file in the way, or cannot be written.
    """
    folder = open_project(project, backend="native").path.parent
    written, unchanged, kept = [], [], []
    for path, text in _texts(folder, Path(python).absolute()).items():
        found = _read(path)
        if found == text:
            unchanged.append(path)
        elif found is not None and not _is_ours(found) and not force:
            kept.append(path)
        else:
            _write(path, text)
            written.append(path)
    return InstalledScripts(folder, tuple(written), tuple(unchanged), tuple(kept))


def remove_scripts(project: str | Path, *, force: bool = False) -> InstalledScripts:
    """Take the scripts out of a project; what a person made or edited stays, as do settings, models and runs.

    Parameters
    ----------
    project
        The project folder or file.
    force
        Remove scripts that a person edited as well.

    Raises
    ------
    ProjectError
        If there is no such project, or it cannot be written.
    """
    folder = open_project(project, backend="native").path.parent
    names = set(_texts(folder, Path(sys.executable)))
    removed, kept = [], []
    for place in (folder / MENU_FOLDER, folder / LIBRARY_FOLDER):
        for path in sorted(place.glob("*.groovy")):
            text = _read(path)
            if text is not None and (_is_ours(text) or (force and path in names)):
                _remove(path)
                removed.append(path)
            else:
                kept.append(path)
        if place.is_dir() and not any(place.iterdir()):
            place.rmdir()
    return InstalledScripts(folder, kept=tuple(kept), removed=tuple(removed))


def _texts(folder: Path, python: Path) -> dict[Path, str]:
    """Return the file of each script in a project, with its content."""
    source = scripts_folder() / "qupath"
    places = {path: folder / MENU_FOLDER / path.name for path in sorted(source.glob("*.groovy"))}
    places |= {path: folder / LIBRARY_FOLDER / path.name for path in sorted((source / "lib").glob("*.groovy"))}
    constants = {"@PYTHON@": _groovy(python.as_posix()), "@VERSION@": _groovy(qupath_ext.__version__)}
    texts = {}
    for path, place in places.items():
        text = path.read_text("utf-8")
        for name, value in constants.items():
            text = text.replace(name, value)
        texts[place] = f"// qupath-ext {qupath_ext.__version__}, sha256 {_sha256(text)}\n{text}"
    return texts


def _groovy(text: str) -> str:
    """Return a text as it stands between single quotes in Groovy, in ASCII: not every Groovy reads files as UTF-8."""
    quoted = text.replace("\\", "\\\\").replace("'", "\\'")
    units = quoted.encode("utf-16-be")
    codes = [int.from_bytes(units[i : i + 2], "big") for i in range(0, len(units), 2)]
    return "".join(chr(code) if code < 128 else f"\\u{code:04x}" for code in codes)


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _is_ours(text: str) -> bool:
    """Return whether nobody changed a script since it was written."""
    first = FIRST_LINE.match(text)
    return first is not None and first["hash"] == _sha256(text[first.end() :])


def _read(path: Path) -> str | None:
    """Return the text of a script, with the line ends of any editor as line feeds; None if there is none."""
    try:
        return path.read_text("utf-8")
    except FileNotFoundError:
        return None
    except UnicodeDecodeError:
        return ""
    except OSError as error:
        raise _refused(path, error) from error


def _write(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(text.encode())
        temporary.replace(path)
    except OSError as error:
        raise _refused(path, error) from error


def _remove(path: Path) -> None:
    try:
        path.unlink()
    except OSError as error:
        raise _refused(path, error) from error


def _refused(path: Path, error: OSError) -> ProjectError:
    return ProjectError(
        f"{path}: {error.strerror or error}",
        expected="a project whose folder you may write to",
        remedy="change its permissions, or move what is in the way",
    )
