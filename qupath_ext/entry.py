"""What an image of a QuPath project is, whatever reads it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from qupath_ext.change import Change, ChangeCounts, TmaGrid
from qupath_ext.errors import FormatError
from qupath_ext.native.builderframe import Affine, builder_frame, builder_mpp, builder_series, builder_size
from qupath_ext.native.builders import builder_crops_to_bounds, builder_file, builder_stored_file
from qupath_ext.native.stains import Stains

if TYPE_CHECKING:
    import geopandas as gpd

    from qupath_ext.present import PresentObjects

__all__ = ["UNSET", "ImageEntry", "Unset"]


class Unset(Enum):
    """Marks a value that is not to be changed, where None means that it is to be taken away."""

    UNSET = "unset"


UNSET: Final = Unset.UNSET


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

    @property
    @abstractmethod
    def tags(self) -> list[str]:
        """The tags of the entry (a copy); QuPath 0.5 and older lose them when they save the project."""

    @abstractmethod
    def update(
        self,
        *,
        name: str | None = None,
        description: str | Unset | None = UNSET,
        metadata: Mapping[str, str | None] | None = None,
        tags: Sequence[str] | None = None,
        mpp: float | tuple[float, float] | None = None,
        slide_path: str | Path | None = None,
    ) -> None:
        """Change what the project says about the image; what is not given stays.

        Parameters
        ----------
        name
            New name.
        description
            New description; None takes it away.
        metadata
            Entries to set; a value of None takes the entry away. Others stay.
        tags
            The new tags, in place of those there are.
        mpp
            Pixel size (x, y) in µm, or one for both, as QuPath's "Set pixel size" stores it: in the server builder's
            metadata. Objects are not moved, nor measurements scaled.
        slide_path
            Where the slide file is now, if it was moved; it is not looked at.

        Raises
        ------
        ChangedOnDiskError
            If the project file changed since it was read; nothing was written.
        ProjectError
            If a value cannot be stored.
        """

    @abstractmethod
    def read_tma_grid(self) -> TmaGrid | None:
        """Read the TMA grid; None if the image has none."""

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

    def read_present(self) -> PresentObjects:
        """Read all objects for comparing them with others: outlines are made when they are asked for.

        Raises
        ------
        FormatError
            If the data file is malformed or has parts that are not known.
        """
        from qupath_ext.present import PresentTable

        return PresentTable(self.read_objects())

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
    def saved_by(self) -> str:
        """Who saves what is written here: empty for this program, else whoever it is handed to."""
        return ""

    @property
    def slide_path(self) -> Path:
        """The slide file.

        Raises
        ------
        ProjectError
            If the image is not one local file, or the file is missing.
        """
        with self._reading_builder():
            return builder_file(self.server_builder, *self._moved_from)

    @property
    def mpp(self) -> tuple[float, float] | None:
        """The pixel size (x, y) in µm that the project has for the image; None if it has none."""
        with self._reading_builder():
            return builder_mpp(self.server_builder)

    @property
    def crop_to_bounds(self) -> bool:
        """Whether QuPath crops the slide to its ``openslide.bounds-*``."""
        with self._reading_builder():
            return builder_crops_to_bounds(self.server_builder)

    @property
    def stored_slide_path(self) -> Path:
        """The slide file that the project names, whether it is there or not.

        Raises
        ------
        ProjectError
            If the image is not one local file.
        """
        return builder_stored_file(self.server_builder)

    def size(self) -> tuple[int, int]:
        """Return width and height of the image as QuPath shows it, px.

        Raises
        ------
        FormatError
            If the image is opened in a way whose geometry is not known.
        ProjectError, SlideError
            If the project does not name the size, and the slide cannot be opened.
        """
        with self._reading_builder():
            width, height = builder_size(self.server_builder, self._slide_size)
        return round(width), round(height)

    @property
    def slide_series(self) -> int:
        """Which image of the file it is, from 0; only OME-TIFF has more than one.

        Raises
        ------
        FormatError
            If the image is opened with options that are not known.
        """
        with self._reading_builder():
            return builder_series(self.server_builder)

    def slide_frame(self) -> Affine:
        """Return the transform from slide pixels to the frame that QuPath shows.

        Returns
        -------
        tuple of float
            ``(a, b, d, e, xoff, yoff)`` as in :func:`shapely.affinity.affine_transform`: x' = a x + b y + xoff,
            y' = d x + e y + yoff. Slide pixels are level-0 px of ``pyhisto.slide.Slide`` with the entry's
            `crop_to_bounds` and `slide_series`.

        Raises
        ------
        FormatError
            If the image is opened in a way whose geometry is not known.
        ProjectError, SlideError
            If the slide's size matters, the project does not name it, and the slide cannot be opened.
        """
        with self._reading_builder():
            return builder_frame(self.server_builder, self._slide_size)

    @contextmanager
    def _reading_builder(self) -> Iterator[None]:
        """Turn what goes wrong with values of wrong types in a server builder into an error that says so."""
        try:
            yield
        except (KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError) as error:
            raise FormatError(
                f"how image {self.name!r} is opened cannot be understood ({type(error).__name__}: {error})",
                expected="a server builder as QuPath writes it",
            ) from error

    def _slide_size(self) -> tuple[int, int]:
        from pyhisto.slide import Slide

        with Slide(self.slide_path, crop_to_bounds=self.crop_to_bounds, series=self.slide_series) as slide:
            return slide.dimensions

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
