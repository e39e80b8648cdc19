"""The image that is open in QuPath as an image of its project: objects come from the job, changes go into the answer.

What stands on disk about the project is read (name, metadata, classes, runs) and never written, but for the records of
runs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from qupath_ext.change import Change, ChangeCounts, TmaGrid
from qupath_ext.entry import UNSET, ImageEntry, Unset
from qupath_ext.errors import EntryNotFoundError, ProjectError
from qupath_ext.live.job import Job
from qupath_ext.native.nativeproject import NativeProject
from qupath_ext.native.stains import IMAGE_TYPES, Stains, parse_stains
from qupath_ext.project import Project

if TYPE_CHECKING:
    import geopandas as gpd

__all__ = ["LiveEntry", "LiveProject"]


class LiveProject(Project):
    """The project that is open in QuPath, with the open image as its only one.

    Parameters
    ----------
    job
        What QuPath's script handed over.

    Attributes
    ----------
    image
        The open image.
    used_classes
        Classes that the answer needs, with their colours (signed packed ARGB) or None.

    Raises
    ------
    ProjectError
        If no project is open in QuPath, it cannot be read, or the image is not in it.
    """

    def __init__(self, job: Job) -> None:
        if job.project is None:
            raise ProjectError(
                "no project is open in QuPath",
                expected="an image of a project",
                remedy="make one with File > Project > Create project, add the image, and open it there",
            )
        self.job = job
        self.saved = NativeProject.open(job.project)
        self.image = LiveEntry(job, self._saved_entry(job))
        self.used_classes: dict[str, int | None] = {}

    def _saved_entry(self, job: Job) -> ImageEntry:
        if not job.entry_id:
            raise ProjectError(
                f"the image {job.entry_name!r} that is open in QuPath is in no project",
                remedy="add it to the project with File > Add images, and open it from there",
            )
        for entry in self.saved.entries:
            if entry.id == job.entry_id:
                return entry
        raise EntryNotFoundError(
            f"{self.saved.path} has no image with the id {job.entry_id}",
            expected=f"the open image {job.entry_name!r}",
            remedy="save the project in QuPath, and try again",
        )

    @property
    def backend(self) -> str:
        """``"qupath"``."""
        return "qupath"

    @property
    def backend_version(self) -> str:
        """Version of the QuPath that holds the image."""
        return f"QuPath {self.job.qupath}".strip()

    @property
    def scope(self) -> str:
        """The open image, handed over by QuPath."""
        return f"QuPath {self.image.id}"

    @property
    def path(self) -> Path:
        """The project file."""
        return self.saved.path

    @property
    def entries(self) -> list[ImageEntry]:
        """The open image."""
        return [self.image]

    @property
    def classes(self) -> dict[str, int | None]:
        """The project's classes as they were saved last."""
        return self.saved.classes

    def color_of(self, name: str) -> int | None:
        """Return the colour of a class: the one it has in the image or the project, else the standard one."""
        live = self.image.class_colors.get(name)
        saved = self.classes.get(name)
        new = self.used_classes.get(name)
        return next((color for color in (live, saved, new) if color is not None), self.saved.color_of(name))

    def add_classes(self, classes: Mapping[str, int | None]) -> list[str]:
        """Note classes for the answer; QuPath appends those that it does not have."""
        new = [name for name in classes if name not in self.classes and name not in self.used_classes]
        self.used_classes.update({name: color for name, color in classes.items() if name not in self.used_classes})
        return new

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
        """Refused: QuPath has the project open."""
        del name, image_type, stains, mpp, metadata, description
        _refuse(f"adding {slide_path} to a project that is open in QuPath")

    def remove_image(self, entry: ImageEntry, *, delete_data: bool = False) -> None:
        """Refused: QuPath has the project open."""
        del delete_data
        _refuse(f"removing {entry.name!r} from a project that is open in QuPath")


class LiveEntry(ImageEntry):
    """The image that is open in QuPath.

    Parameters
    ----------
    job
        What QuPath's script handed over.
    saved
        The image as the project file has it.

    Attributes
    ----------
    change
        What is to be done to the image; empty until something is.
    class_colors
        Colours of the classes of its objects in QuPath, signed packed ARGB; known once the objects were read.
    """

    def __init__(self, job: Job, saved: ImageEntry) -> None:
        self.job = job
        self._saved = saved
        self._objects: gpd.GeoDataFrame | None = None
        self.change = Change()
        self.class_colors: Mapping[str, int] = {}
        self._stains = None if job.stains is None else parse_stains(job.stains)
        if job.image_type is not None and job.image_type not in IMAGE_TYPES:
            raise ProjectError(f"image type {job.image_type!r}", expected=f"one of {', '.join(IMAGE_TYPES)}")
        if job.size is not None and job.size != self.size():
            raise ProjectError(
                f"{self.name!r} is {job.size[0]} x {job.size[1]} px in QuPath",
                expected="{} x {} px, as its server builder says".format(*self.size()),
                remedy="save the project in QuPath, and try again",
            )

    @property
    def id(self) -> str:
        """The entry id."""
        return self._saved.id

    @property
    def name(self) -> str:
        """The name that QuPath shows."""
        return self.job.entry_name or self._saved.name

    @property
    def description(self) -> str | None:
        """The description."""
        return self._saved.description

    @property
    def metadata(self) -> dict[str, str]:
        """The metadata of the entry."""
        return self._saved.metadata

    @property
    def tags(self) -> list[str]:
        """The tags of the entry."""
        return self._saved.tags

    @property
    def server_builder(self) -> dict[str, Any]:
        """How QuPath opens the image: as it has it open, else as the project file says."""
        return self._saved.server_builder if self.job.builder is None else dict(self.job.builder)

    @property
    def mpp(self) -> tuple[float, float] | None:
        """The pixel size (x, y) in µm as QuPath has calibrated the image, whatever the file says."""
        return self.job.mpp

    @property
    def image_type(self) -> str | None:
        """The image type as set in QuPath."""
        return self.job.image_type

    @property
    def stains(self) -> Stains | None:
        """The stains as set in QuPath."""
        return self._stains

    @property
    def saved_by(self) -> str:
        """``"QuPath"``."""
        return "QuPath"

    @property
    def _moved_from(self) -> tuple[str | None, Path]:
        return self._saved._moved_from

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
        """Refused: QuPath has the project open."""
        del name, description, metadata, tags, mpp, slide_path
        _refuse(f"changing what the project says about {self.name!r}")

    def read_tma_grid(self) -> TmaGrid | None:
        """Read the TMA grid that was saved last."""
        return self._saved.read_tma_grid()

    def read_objects(self) -> gpd.GeoDataFrame:
        """Read the objects that QuPath handed over; see :meth:`qupath_ext.entry.ImageEntry.read_objects`.

        Outlines that cross themselves are repaired, and those without area are missing: neither is handed back.
        """
        from qupath_ext.exchange.geojson import read_geojson

        if self._objects is None:
            if self.job.objects is None:
                raise ProjectError(f"job {self.job.folder} without objects", expected="a file objects.geojson")
            self._objects = read_geojson(self.job.objects, fix_invalid=True, drop_flat=True)
            self.class_colors = self._objects.attrs.get("class_colors", {})
        return self._objects.copy()

    def _begin(self) -> None:
        """Nothing can change underneath: the objects are those of the job."""

    def _apply(self, change: Change) -> ChangeCounts:
        """Take over a change for the answer.

        Raises
        ------
        ProjectError
            If it does not fit the objects, is of a kind that no answer has, or is the second one.
        """
        if not change:
            return ChangeCounts()
        if change.updates or change.image_type is not None or change.tma_grid is not None or self.change:
            _refuse("changing objects in place, image type or TMA grid, or two changes at once,")
        present = self.read_objects()
        new = [object_id for table in change.tables for object_id in table.index]
        removed = list(dict.fromkeys(change.removed))
        staying = set(present.index).difference(removed)
        _check(removed, set(present.index), "in the image")
        _check([*change.locked, *change.unlocked], staying, "in the image after the change")
        for table in change.tables:
            _check(table["parent_id"].dropna(), staying.union(new), "there to be a parent")
        if present.index.isin(new).any() or len(set(new)) < len(new):
            raise ProjectError("an object that is in the image already", expected="new ids")
        self.change = change
        types = [kind for table in change.tables for kind in table["object_type"].astype(str)]
        return ChangeCounts(
            added={kind: types.count(kind) for kind in dict.fromkeys(types)},
            removed=len(removed),
            locked=int((~present.loc[list(dict.fromkeys(change.locked)), "locked"].astype(bool)).sum())
            + int(present.loc[list(dict.fromkeys(change.unlocked)), "locked"].astype(bool).sum()),
        )


def _check(ids: Any, known: set[str], where: str) -> None:
    for object_id in ids:
        if object_id not in known:
            raise ProjectError(f"object {object_id} is not {where}", expected="an object of the job")


def _refuse(what: str) -> NoReturn:
    raise ProjectError(f"{what} is nothing that an answer to QuPath can say", remedy="do it in QuPath")
