"""What a crash left behind in a project: ours is removed, everything else is only named."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path

from qupath_ext.native.files import TEMPORARY_SUFFIX, temporary_target

__all__ = ["LOCK_FILE", "WRITER_FILE", "clear_up", "is_leftover"]

LOCK_FILE = Path("qupath_ext") / "lock"
WRITER_FILE = Path("qupath_ext") / "writer.json"


def is_leftover(path: Path) -> bool:
    """Whether something in a project folder is nothing but what an interrupted making of the project left behind."""
    if path.is_dir() and not path.is_symlink():
        own = (LOCK_FILE.name, WRITER_FILE.name) if path.name == LOCK_FILE.parent.name else ()
        known = path.name in (LOCK_FILE.parent.name, "classifiers")
        return known and all(item.name in own or temporary_target(item) != "" for item in path.iterdir())
    return temporary_target(path) != ""


def clear_up(folder: Path, *, look_for_strays: bool) -> list[str]:
    """Remove temporary files of interrupted writes. Only for the one writer that holds the project's lock.

    Parameters
    ----------
    folder
        The project folder.
    look_for_strays
        Also name data folders that belong to no image of the project. They are worth a word only after an
        interrupted write, because QuPath leaves such folders when an image is taken out of a project.

    Returns
    -------
    list of str
        One line for each thing that was found, and what was done about it.
    """
    out = []
    for place in _places(folder):
        for temporary in sorted(place.glob(f".*{TEMPORARY_SUFFIX}")):
            target = place / temporary_target(temporary)
            with contextlib.suppress(OSError):
                temporary.unlink()
                out.append(f"found an interrupted write of {target}; its file was removed, {target.name} is as it was")
        backup = place / "data.qpdata.bkp"
        if backup.exists():
            out.append(f"found {backup}: QuPath is saving the image or was stopped while saving; left as it is")
    if look_for_strays:
        for place in _strays(folder):
            out.append(f"found {place}, which belongs to no image of the project; left as it is")
    return out


def _places(folder: Path) -> Iterator[Path]:
    """Yield the folders that are written to."""
    yield folder
    yield folder / "classifiers"
    yield from _data_folders(folder)


def _data_folders(folder: Path) -> list[Path]:
    data = folder / "data"
    return sorted(place for place in data.iterdir() if place.is_dir()) if data.is_dir() else []


def _strays(folder: Path) -> list[Path]:
    known: set[str] = set()
    for project in folder.glob("*.qpproj"):
        try:
            images = json.loads(project.read_bytes()).get("images", [])
            known |= {str(image["entryID"]) for image in images}
        except (OSError, ValueError, AttributeError, KeyError, TypeError, RecursionError):
            return []  # whoever reads the project says what is wrong with it
    return [place for place in _data_folders(folder) if place.name not in known]
