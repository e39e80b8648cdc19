"""Finding slides that were moved, and pointing a project to where they are now."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pyhisto.errors import PyhistoError
from qupath_ext.errors import FormatError, ProjectError
from qupath_ext.native.builderframe import builder_size, leaf_builder

if TYPE_CHECKING:
    from qupath_ext.entry import ImageEntry
    from qupath_ext.project import Project

__all__ = ["Move", "find_moves", "index_folder", "relocate"]


@dataclass(frozen=True)
class Move:
    """What was found for one image whose slide is not where the project says.

    Attributes
    ----------
    entry
        The image.
    name
        File name of its slide.
    found
        Where it is now; None if it is nowhere, or in doubt.
    why_not
        Why there is no place; empty if there is one.
    """

    entry: ImageEntry
    name: str
    found: Path | None
    why_not: str = ""


def index_folder(folders: Sequence[Path]) -> dict[str, list[Path]]:
    """Return all files below some folders by name; links are not followed.

    Raises
    ------
    ProjectError
        If one of them is no folder.
    """
    out: dict[str, list[Path]] = {}
    for folder in folders:
        if not folder.is_dir():
            raise ProjectError(f"{folder} is no folder", expected="folders in which to look for slides")
        for place, _, names in os.walk(folder):
            for name in names:
                path = Path(place, name).absolute()
                if path not in out.setdefault(name, []):
                    out[name].append(path)
    return out


def find_moves(
    project: Project, folders: Sequence[Path], progress: Callable[[int, int], None] | None = None
) -> Iterator[Move]:
    """Look for the slides that are not where the project says; nothing is changed.

    A slide is one with the same file name that opens with the same width and height; where several fit that are not
    the same size in bytes, none is taken.

    Parameters
    ----------
    project
        The project.
    folders
        Where to look, with all that is below.
    progress
        Called with the number of images done and in all.

    Yields
    ------
    Move
        For each image whose slide is missing.

    Raises
    ------
    ProjectError
        If a folder does not exist.
    """
    files = index_folder(folders)
    entries = project.entries
    for number, entry in enumerate(entries):
        move = _look(entry, files)
        if progress is not None:
            progress(number + 1, len(entries))
        if move is not None:
            yield move


def _look(entry: ImageEntry, files: dict[str, list[Path]]) -> Move | None:
    try:
        if entry.stored_slide_path.exists():
            return None
    except FormatError as error:
        return Move(entry, "", None, str(error))
    except ProjectError:
        return None  # an image on a server was not moved
    name = entry.stored_slide_path.name
    reasons = []
    fitting = []
    for path in [*_moved_along(entry), *files.get(name, [])]:
        wrong = _difference(entry, path)
        if not wrong:
            fitting.append(path)
        else:
            reasons.append(f"{path} {wrong}")
    if not fitting:
        return Move(entry, name, None, "; ".join(reasons) or "no file of this name")
    if len({path.stat().st_size for path in fitting}) > 1:
        return Move(entry, name, None, f"several different ones: {', '.join(map(str, fitting[:3]))}")
    return Move(entry, name, fitting[0])


def _moved_along(entry: ImageEntry) -> list[Path]:
    """Return the place that has the same position relative to the project as before, if there is a file."""
    try:
        return [entry.slide_path]
    except ProjectError:
        return []


def _difference(entry: ImageEntry, path: Path) -> str:
    """Return in what a file differs from the slide of an image; empty if it can be the same."""
    from pyhisto.slide import Slide

    try:
        with Slide(path, crop_to_bounds=entry.crop_to_bounds, series=entry.slide_series) as slide:
            shown = slide.dimensions
            known = builder_size(leaf_builder(entry.server_builder), lambda: shown)
    except PyhistoError as error:
        return f"cannot be opened ({error.found})"
    if tuple(known) != tuple(shown):
        return f"is {shown[0]} x {shown[1]} px, not {known[0]:g} x {known[1]:g}"
    return ""


def relocate(moves: Sequence[Move]) -> int:
    """Point images to where their slides were found; return how many.

    Raises
    ------
    ChangedOnDiskError, ProjectError
        If the project file changed in between or cannot be written.
    """
    found = [move for move in moves if move.found is not None]
    for move in found:
        if move.found is not None:
            move.entry.update(slide_path=move.found)
    return len(found)
