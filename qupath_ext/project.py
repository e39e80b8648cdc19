"""What a QuPath project is, whatever reads it: images, their objects, classes.

``open_project`` and ``create_project`` give a :class:`Project`; its :class:`ImageEntry` objects read lazily, and
``with entry.edit() as change`` writes (:mod:`qupath_ext.change`). Coordinates are full-resolution pixels of the frame
that QuPath shows (x right, y down).
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from qupath_ext.change import Change, ChangeCounts, TmaGrid
from qupath_ext.entry import UNSET, ImageEntry, Unset
from qupath_ext.errors import EntryNotFoundError, ProjectError
from qupath_ext.native.stains import H_DAB, H_E, IMAGE_TYPES, Stains

__all__ = [
    "BACKENDS",
    "H_DAB",
    "H_E",
    "IMAGE_TYPES",
    "UNSET",
    "Change",
    "ChangeCounts",
    "ImageEntry",
    "Project",
    "Stains",
    "TmaGrid",
    "Unset",
    "create_project",
    "open_project",
    "pack_rgb",
    "resolve_backend",
]

BACKENDS = ("auto", "native", "paquo")
"""What reads and writes a project: this program alone, QuPath's own classes through Paquo, or whichever is there."""


def pack_rgb(red: int, green: int, blue: int) -> int:
    """Return a colour as QuPath stores it: opaque ARGB packed into a signed 32-bit integer.

    >>> pack_rgb(200, 0, 0)
    -3670016

    Raises
    ------
    ProjectError
        If a value is not 0 to 255.
    """
    if not all(0 <= value <= 255 for value in (red, green, blue)):
        raise ProjectError(f"colour ({red}, {green}, {blue})", expected="values from 0 to 255")
    return (0xFF << 24 | red << 16 | green << 8 | blue) - (1 << 32)


class Project(ABC):
    """A QuPath project."""

    @property
    @abstractmethod
    def backend(self) -> str:
        """``"native"`` or ``"paquo"``."""

    @property
    @abstractmethod
    def backend_version(self) -> str:
        """What reads and writes, for people and run records: ``"native"`` or ``"paquo 0.9.0 with QuPath 0.6.0"``."""

    @property
    def scope(self) -> str:
        """What of the project this is, empty for all of it: runs of one scope do not go on with those of another."""
        return ""

    @property
    @abstractmethod
    def path(self) -> Path:
        """The project file (``project.qpproj``)."""

    @property
    @abstractmethod
    def entries(self) -> list[ImageEntry]:
        """The images, in the project's order."""

    @property
    @abstractmethod
    def classes(self) -> dict[str, int | None]:
        """The project's classes by full name, with their colour (signed packed ARGB) or None."""

    @abstractmethod
    def add_classes(self, classes: Mapping[str, int | None]) -> list[str]:
        """Append classes that the project does not have; those it has keep their colour.

        Returns
        -------
        list of str
            The names that were new.

        Raises
        ------
        ProjectError
            If a name or colour cannot be stored.
        """

    @abstractmethod
    def add_image(
        self,
        slide_path: str | Path,
        *,
        name: str | None = None,
        image_type: str = "BRIGHTFIELD_H_DAB",
        stains: Stains | None = None,
        mpp: float | tuple[float, float] | None = None,
        metadata: Mapping[str, str] | None = None,
        description: str | None = None,
    ) -> ImageEntry:
        """Add a slide, with its thumbnail and an empty data file.

        Parameters
        ----------
        slide_path
            The slide; anything that :class:`pyhisto.slide.Slide` opens.
        name
            Name to show; the file's name by default.
        image_type
            One of :data:`IMAGE_TYPES`.
        stains
            Stains; QuPath's default vectors for the two named brightfield types.
        mpp
            Pixel size in µm, (x, y) or one for both; overrides what the slide says.
        metadata
            Entry metadata.
        description
            Entry description.

        Raises
        ------
        ProjectError
            If the project cannot be written or changed on disk.
        SlideError
            If the slide cannot be opened.
        """

    @abstractmethod
    def remove_image(self, entry: ImageEntry, *, delete_data: bool = False) -> None:
        """Take an image out of the project.

        Parameters
        ----------
        entry
            One of :attr:`entries`; not to be used afterwards.
        delete_data
            Also delete the image's data folder with its objects; it stays otherwise, as in QuPath by default.

        Raises
        ------
        EntryNotFoundError
            If the image is not in the project.
        ChangedOnDiskError, ProjectError
            If the project file changed since it was read, or cannot be written.
        """

    def close(self) -> None:  # noqa: B027 - only a backend that holds something has to do something
        """Let go of what the backend holds. Nothing is written; every change was when it was made."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def entry(self, name_or_id: str | int) -> ImageEntry:
        """Return the image with this name, or else with this id.

        Raises
        ------
        EntryNotFoundError
            If there is none, or several have the name.
        """
        text = str(name_or_id)
        named = [entry for entry in self.entries if entry.name == text] if isinstance(name_or_id, str) else []
        if len(named) > 1:
            ids = ", ".join(entry.id for entry in named)
            raise EntryNotFoundError(f"{len(named)} images are called {text!r}", remedy=f"use one of the ids {ids}")
        found = named or [entry for entry in self.entries if entry.id == text]
        if not found:
            names = ", ".join(repr(entry.name) for entry in self.entries[:5]) or "no images"
            raise EntryNotFoundError(f"no image {text!r} in {self.path}", expected=f"one of its images ({names})")
        return found[0]

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self.path)!r})"


def open_project(path: str | Path, backend: str = "auto") -> Project:
    """Open a QuPath project.

    Parameters
    ----------
    path
        The project folder or its ``.qpproj`` file.
    backend
        One of :data:`BACKENDS`: ``"native"`` needs no Java; ``"paquo"`` goes through QuPath's own classes;
        ``"auto"`` is paquo where a QuPath installation is found, and native otherwise.

    Raises
    ------
    ProjectNotFoundError
        If there is no project.
    FormatError
        If the project file is malformed.
    ProjectError
        If the backend is not known, or is paquo and no QuPath is found.
    """
    if resolve_backend(backend) == "paquo":
        from qupath_ext.paquo_bridge.project import PaquoProject

        return PaquoProject.open(Path(path))
    from qupath_ext.native.nativeproject import NativeProject

    return NativeProject.open(Path(path))


def create_project(
    folder: str | Path, *, classes: Mapping[str, int | None] | None = None, backend: str = "auto"
) -> Project:
    """Make a new, empty project.

    Parameters
    ----------
    folder
        A folder that does not exist or is empty.
    classes
        Classes with their colours.
    backend
        As in :func:`open_project`.

    Raises
    ------
    ProjectExistsError
        If the folder has something in it.
    ProjectError
        If it cannot be written.
    """
    if resolve_backend(backend) == "paquo":
        from qupath_ext.paquo_bridge.project import PaquoProject

        return PaquoProject.create(Path(folder), classes or {})
    from qupath_ext.native.nativeproject import NativeProject

    return NativeProject.create(Path(folder), classes or {})


def resolve_backend(backend: str) -> str:
    """Return ``"native"`` or ``"paquo"`` for one of :data:`BACKENDS`; starts no JVM.

    The environment variable ``QUPATH_EXT_BACKEND`` says what ``"auto"`` means.

    Raises
    ------
    ProjectError
        If the name is not known, or Paquo is told to use a QuPath that is not there.
    """
    if backend == "auto":
        backend = os.environ.get("QUPATH_EXT_BACKEND") or backend
    if backend not in BACKENDS:
        raise ProjectError(f"unknown project backend {backend!r}", expected=f"one of {', '.join(BACKENDS)}")
    if backend != "auto":
        return backend
    from qupath_ext.paquo_bridge import find_qupath

    return "native" if find_qupath() is None else "paquo"
