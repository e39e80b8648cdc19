"""Projects without Java: project.qpproj, classes.json and the data folder of each image."""

from __future__ import annotations

import shutil
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

from qupath_ext.entry import ImageEntry
from qupath_ext.errors import (
    EntryNotFoundError,
    ProjectError,
    ProjectExistsError,
    ProjectNotFoundError,
)
from qupath_ext.native.builders import file_uri, make_builder
from qupath_ext.native.classcolors import class_color
from qupath_ext.native.files import FileState, Transaction
from qupath_ext.native.jsonchecks import check_classes, check_project
from qupath_ext.native.jsonfiles import json_writer, read_json
from qupath_ext.native.leftovers import is_leftover
from qupath_ext.native.lock import WriterLock
from qupath_ext.native.nativeentry import QUPATH_VERSION, NativeEntry
from qupath_ext.native.stains import Stains, check_stains
from qupath_ext.project import Project

__all__ = ["NativeProject"]

PROJECT_FILE = "project.qpproj"


class NativeProject(Project):
    """A project folder, read and written directly."""

    _entry_class: ClassVar[type[NativeEntry]] = NativeEntry

    def __init__(self, path: Path, content: dict[str, Any], state: FileState | None) -> None:
        self._path = path
        self._content = content
        self._state = state
        self.lock = WriterLock(path.parent)
        self._entries: dict[str, NativeEntry] = {}
        self._classes: tuple[dict[str, Any], FileState | None] | None = None

    # ------------------------------------------------------------------ opening and making
    @classmethod
    def open(cls, path: Path) -> Self:
        """Open a project; reads the project file only."""
        file = path.absolute()
        if file.is_dir():
            named = file / PROJECT_FILE
            others = sorted(file.glob("*.qpproj"))
            file = named if named.is_file() or len(others) != 1 else others[0]
        if not file.is_file():
            backup = file.with_name(f"{file.name}.backup")
            remedy = f"QuPath was stopped while saving; rename {backup.name} to {file.name}" if backup.is_file() else ""
            raise ProjectNotFoundError(
                f"no QuPath project in {path}", expected=f"a folder with {PROJECT_FILE}", remedy=remedy
            )
        content, state = read_json(file)
        check_project(content, file)
        return cls(file, content, state)

    @classmethod
    def create(cls, folder: Path, classes: Mapping[str, int | None]) -> Self:
        """Make a new project in an empty or new folder."""
        folder = folder.absolute()
        if folder.exists() and (not folder.is_dir() or not all(is_leftover(path) for path in folder.iterdir())):
            raise ProjectExistsError(f"{folder} is not empty", expected="a new or empty folder")
        now = round(time.time() * 1000)
        path = folder / PROJECT_FILE
        content = {
            "version": QUPATH_VERSION,
            "createTimestamp": now,
            "modifyTimestamp": now,
            "uri": file_uri(path),
            "lastID": 0,
            "images": [],
        }
        project = cls(path, content, None)
        with Transaction(project.lock) as transaction:
            if classes:
                project._stage_classes(transaction, _new_classes({}, classes))
            project._stage(transaction, content)  # last: with it, the project is there
            transaction.commit()
        project._state, project._classes = transaction.states[path], None
        return project

    def _stage(self, transaction: Transaction, content: dict[str, Any]) -> Path:
        return transaction.stage(self._path, json_writer(content), self._state)

    def _changed(self, **changes: Any) -> dict[str, Any]:
        return {**self._content, **changes, "modifyTimestamp": round(time.time() * 1000)}

    def _save(self, content: dict[str, Any]) -> None:
        """Put a changed project file in place."""
        with Transaction(self.lock) as transaction:
            self._stage(transaction, content)
            transaction.commit()
        self._content, self._state = content, transaction.states[self._path]

    # ------------------------------------------------------------------ contents
    @property
    def backend(self) -> str:
        """``"native"``."""
        return "native"

    @property
    def backend_version(self) -> str:
        """``"native"``."""
        return "native"

    @property
    def path(self) -> Path:
        """The project file."""
        return self._path

    @property
    def entries(self) -> list[ImageEntry]:
        """The images, in the project's order."""
        return [self._entry(image) for image in self._images]

    @property
    def _images(self) -> list[dict[str, Any]]:
        return self._content.get("images") or []

    @property
    def _last_id(self) -> int:
        """The highest entry id ever given, as far as the file tells."""
        return max([int(self._content.get("lastID") or 0), *(int(image["entryID"]) for image in self._images)])

    def _entry(self, image: dict[str, Any]) -> NativeEntry:
        key = str(image["entryID"])
        if key not in self._entries:
            self._entries[key] = self._entry_class(self, image)
        return self._entries[key]

    @property
    def _classes_file(self) -> Path:
        return self._path.parent / "classifiers" / "classes.json"

    def _load_classes(self) -> tuple[dict[str, Any], FileState | None]:
        if self._classes is None:
            if not self._classes_file.exists():
                self._classes = {}, None
            else:
                content, state = read_json(self._classes_file)
                check_classes(content, self._classes_file)
                self._classes = content, state
        return self._classes

    @property
    def classes(self) -> dict[str, int | None]:
        """The project's classes with their colours."""
        content, _ = self._load_classes()
        return {item["name"]: item.get("color") for item in content.get("pathClasses", [])}

    def color_of(self, name: str) -> int | None:
        """Return the colour of a class: the project's, else QuPath's own, else one that follows from the name."""
        known = self.classes
        return known[name] if name in known else class_color(name)

    def add_classes(self, classes: Mapping[str, int | None]) -> list[str]:
        """Append classes that the project does not have yet."""
        if not _new_classes(self.classes, classes):
            return []
        with Transaction(self.lock) as transaction:
            self._classes = None  # another writer may have added some
            content, _ = self._load_classes()
            new = _new_classes(self.classes, classes)
            if new:
                self._stage_classes(transaction, new)
                transaction.commit()
        if new:
            content.setdefault("pathClasses", []).extend(new)
            self._classes = content, transaction.states[self._classes_file]
        return [item["name"] for item in new]

    def _stage_classes(self, transaction: Transaction, new: list[dict[str, Any]]) -> None:
        content, state = self._load_classes()
        changed = {**content, "pathClasses": [*content.get("pathClasses", []), *new]}
        transaction.stage(self._classes_file, json_writer(changed), state)

    # ------------------------------------------------------------------ changing images
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
    ) -> NativeEntry:
        """Add a slide; see :meth:`qupath_ext.project.Project.add_image`."""
        stains = check_stains(image_type, stains)
        texts = dict(metadata or {})
        if not all(isinstance(text, str) for item in texts.items() for text in item):
            raise ProjectError("metadata that is not text", expected="a dict of str")
        path = Path(slide_path).absolute()
        builder, thumbnail = self._open_slide(path, mpp)
        entry_id = self._last_id + 1
        while (self._path.parent / "data" / str(entry_id)).exists():  # left behind by something that was killed
            entry_id += 1
        image: dict[str, Any] = {
            "serverBuilder": builder,
            "entryID": entry_id,
            "randomizedName": str(uuid.uuid4()),
            "imageName": name or path.name,
        }
        if description is not None:
            image["description"] = description
        image["metadata"] = texts
        changed = self._changed(lastID=entry_id, images=[*self._images, image])
        entry = self._entry_class(self, image)
        with Transaction(self.lock) as transaction:
            entry.stage_new(transaction, image_type, stains, thumbnail)
            self._stage(transaction, changed)
            transaction.commit()
        self._content, self._state = changed, transaction.states[self._path]
        entry.was_written(transaction)
        self._entries[str(entry_id)] = entry
        return entry

    def _open_slide(self, path: Path, mpp: float | tuple[float, float] | None) -> tuple[dict[str, Any], Any]:
        """Return the builder of a slide and its thumbnail, RGB uint8 (H, W, 3)."""
        return make_builder(path, mpp)

    def remove_image(self, entry: ImageEntry, *, delete_data: bool = False) -> None:
        """Take an image out of the project; see :meth:`qupath_ext.project.Project.remove_image`."""
        place = self._place(entry)
        images = self._images
        # the id of the image must not be given to another one, whose data its folder would become
        self._save(self._changed(lastID=self._last_id, images=[*images[:place], *images[place + 1 :]]))
        del self._entries[entry.id]
        folder = self._path.parent / "data" / entry.id
        if delete_data and folder.exists():
            try:
                shutil.rmtree(folder)
            except OSError as error:
                raise ProjectError(
                    f"the image is out of the project, but {folder} cannot be deleted: {error.strerror}",
                    remedy="delete the folder yourself",
                ) from error

    def replace_image(self, entry: NativeEntry, image: dict[str, Any]) -> None:
        """Write the project file with another description of an image.

        Raises
        ------
        EntryNotFoundError, ChangedOnDiskError, ProjectError
            If the image is not in the project any more, or the file changed or cannot be written.
        """
        place = self._place(entry)
        images = self._images
        self._save(self._changed(images=[*images[:place], image, *images[place + 1 :]]))

    def _place(self, entry: ImageEntry) -> int:
        """Return the number of an image in the list of images."""
        for place, image in enumerate(self._images):
            if self._entries.get(str(image["entryID"])) is entry:
                return place
        raise EntryNotFoundError(f"image {entry.name!r} is not in {self._path}", expected="one of its entries")


def _new_classes(known: Mapping[str, int | None], classes: Mapping[str, int | None]) -> list[dict[str, Any]]:
    out = []
    for name, color in classes.items():
        if not name.strip() or "\n" in name:
            raise ProjectError(f"class name {name!r}", expected="a name in one line")
        if color is not None and not -(1 << 31) <= color < 1 << 31:
            raise ProjectError(f"colour {color} of class {name!r}", expected="a signed 32-bit packed ARGB")
        if name not in known:
            out.append({"name": name, "color": class_color(name) if color is None else int(color)})
    return out
