"""What a QuPath project is, whatever reads it: images, their objects, classes.

``open_project`` and ``create_project`` give a :class:`Project`; its :class:`ImageEntry` objects read lazily.
Coordinates are full-resolution pixels of the frame that QuPath shows (x right, y down).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qupath_ext.errors import EntryNotFoundError, ProjectError
from qupath_ext.native.builders import (
    Affine,
    builder_crops_to_bounds,
    builder_file,
    builder_frame,
    builder_mpp,
)
from qupath_ext.native.stains import H_DAB, H_E, IMAGE_TYPES, Stains

if TYPE_CHECKING:
    import geopandas as gpd

__all__ = [
    "BACKENDS",
    "H_DAB",
    "H_E",
    "IMAGE_TYPES",
    "Change",
    "ChangeCounts",
    "ImageEntry",
    "Project",
    "Stains",
    "create_project",
    "open_project",
    "pack_rgb",
]

BACKENDS = ("native",)


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


@dataclass(frozen=True)
class ChangeCounts:
    """What one change did: new objects by type, removed objects, locks set or taken away."""

    added: Mapping[str, int] = field(default_factory=dict)
    removed: int = 0
    locked: int = 0

    @property
    def n_added(self) -> int:
        """Number of new objects of all types."""
        return sum(self.added.values())


@dataclass
class Change:
    """What is to be done to the objects of an image; filled inside ``with entry.edit() as change``.

    `counts` says what was done once the block has ended.
    """

    tables: list[gpd.GeoDataFrame] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)
    locked: list[str] = field(default_factory=list)
    unlocked: list[str] = field(default_factory=list)
    counts: ChangeCounts = field(default_factory=ChangeCounts)

    def add(self, objects: gpd.GeoDataFrame) -> None:
        """Add the objects of a table; those with a ``parent_id`` under that parent, which may be in it as well."""
        self.tables.append(objects)

    def remove(self, ids: Sequence[str]) -> None:
        """Remove objects; children that stay move up to the parent of what was removed."""
        self.removed += ids

    def lock(self, ids: Sequence[str]) -> None:
        """Lock objects."""
        self.locked += ids

    def unlock(self, ids: Sequence[str]) -> None:
        """Unlock objects."""
        self.unlocked += ids


class ImageEntry(ABC):
    """One image of a project. Nothing but the project file is read until it is asked for."""

    # ------------------------------------------------------------------ what a backend provides
    @property
    @abstractmethod
    def id(self) -> str:
        """The entry id, a whole number as text; also the name of its data folder."""

    @property
    @abstractmethod
    def name(self) -> str:
        """The name that QuPath shows."""

    @property
    @abstractmethod
    def description(self) -> str | None:
        """The description."""

    @property
    @abstractmethod
    def metadata(self) -> dict[str, str]:
        """The metadata of the entry (a copy)."""

    @property
    @abstractmethod
    def server_builder(self) -> dict[str, Any]:
        """How QuPath opens the image, as JSON (a copy)."""

    @property
    @abstractmethod
    def image_type(self) -> str | None:
        """One of :data:`IMAGE_TYPES`; None if the image has no data yet."""

    @property
    @abstractmethod
    def stains(self) -> Stains | None:
        """The stains of a brightfield image."""

    @abstractmethod
    def read_objects(self) -> gpd.GeoDataFrame:
        """Read all objects of the image.

        Returns
        -------
        geopandas.GeoDataFrame
            The path-object table (:mod:`pyhisto.objects`), parents before children; pixels of the QuPath frame.
            The geometry of an object without ROI is missing.

        Raises
        ------
        FormatError
            If the data file is malformed or has parts that are not known.
        """

    @abstractmethod
    def _apply(self, change: Change) -> ChangeCounts:
        """Do what `change` says, all or nothing."""

    @abstractmethod
    def _begin(self) -> None:
        """Take note of the state of the data, which must be the same when the change is written."""

    @property
    @abstractmethod
    def _moved_from(self) -> tuple[str | None, Path]:
        """The project's previous URI and its present folder, to find slides that moved with it."""

    # ------------------------------------------------------------------ the same for all
    @property
    def slide_path(self) -> Path:
        """The slide file.

        Raises
        ------
        ProjectError
            If the image is not one local file, or the file is missing.
        """
        return builder_file(self.server_builder, *self._moved_from)

    @property
    def mpp(self) -> tuple[float, float] | None:
        """The pixel size (x, y) in µm that the project has for the image; None if it has none."""
        return builder_mpp(self.server_builder)

    @property
    def crop_to_bounds(self) -> bool:
        """Whether QuPath crops the slide to its ``openslide.bounds-*``."""
        return builder_crops_to_bounds(self.server_builder)

    def slide_frame(self) -> Affine:
        """Return the transform from slide pixels to the frame that QuPath shows.

        Returns
        -------
        tuple of float
            ``(a, b, d, e, xoff, yoff)`` as in :func:`shapely.affinity.affine_transform`: x' = a x + b y + xoff,
            y' = d x + e y + yoff. Slide pixels are those of ``pyhisto.slide.Slide(path, crop_to_bounds=...)``, level 0.

        Raises
        ------
        FormatError
            If the image is opened in a way whose geometry is not known.
        """
        return builder_frame(self.server_builder)

    @contextmanager
    def edit(self) -> Iterator[Change]:
        """Collect changes in a ``with`` block; they are written, all or none, when it ends without an exception.

        Yields
        ------
        Change
            Takes the changes; has the counts afterwards.

        Raises
        ------
        ChangedOnDiskError
            If the data file changed since it was read last; nothing was written.
        ProjectError
            If a change cannot be made, or the file cannot be written.
        """
        self._begin()
        change = Change()
        yield change
        change.counts = self._apply(change)

    def write_objects(
        self, add: gpd.GeoDataFrame | None = None, remove: Sequence[str] = (), lock: Sequence[str] = ()
    ) -> ChangeCounts:
        """Remove, lock and add objects in one go; see :meth:`edit`.

        Parameters
        ----------
        add
            New objects.
        remove
            Ids of objects to remove.
        lock
            Ids of objects to lock.

        Returns
        -------
        ChangeCounts
            What was done.

        Raises
        ------
        ChangedOnDiskError, ProjectError
            As in :meth:`edit`.
        """
        with self.edit() as change:
            if add is not None:
                change.add(add)
            change.remove(remove)
            change.lock(lock)
        return change.counts

    def __repr__(self) -> str:
        return f"{type(self).__name__}(id={self.id!r}, name={self.name!r})"


class Project(ABC):
    """A QuPath project."""

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


def open_project(path: str | Path, backend: str = "native") -> Project:
    """Open a QuPath project.

    Parameters
    ----------
    path
        The project folder or its ``.qpproj`` file.
    backend
        What reads and writes it; ``"native"`` (no Java) is what there is.

    Raises
    ------
    ProjectNotFoundError
        If there is no project.
    FormatError
        If the project file is malformed.
    ProjectError
        If the backend is not known.
    """
    _check_backend(backend)
    from qupath_ext.native.nativeproject import NativeProject

    return NativeProject.open(Path(path))


def create_project(
    folder: str | Path, *, classes: Mapping[str, int | None] | None = None, backend: str = "native"
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
    _check_backend(backend)
    from qupath_ext.native.nativeproject import NativeProject

    return NativeProject.create(Path(folder), classes or {})


def _check_backend(backend: str) -> None:
    if backend not in BACKENDS:
        raise ProjectError(f"unknown project backend {backend!r}", expected=f"one of {', '.join(BACKENDS)}")
