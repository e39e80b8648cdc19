"""Projects without Java: project.qpproj, classes.json and the data folder of each image."""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qupath_ext.errors import FormatError, ProjectError, ProjectExistsError, ProjectNotFoundError
from qupath_ext.native.builders import file_uri, make_builder
from qupath_ext.native.classcolors import class_color
from qupath_ext.native.files import FileState, Transaction
from qupath_ext.native.jsonfiles import json_writer, read_json
from qupath_ext.native.nativeentry import QUPATH_VERSION, NativeEntry
from qupath_ext.native.stains import H_DAB, H_E, IMAGE_TYPES, Stains
from qupath_ext.project import ImageEntry, Project

__all__ = ["NativeProject"]

PROJECT_FILE = "project.qpproj"
DEFAULT_STAINS = {"BRIGHTFIELD_H_DAB": H_DAB, "BRIGHTFIELD_H_E": H_E}


class NativeProject(Project):
    """A project folder, read and written directly."""

    def __init__(self, path: Path, content: dict[str, Any], state: FileState | None) -> None:
        self._path = path
        self._content = content
        self._state = state
        self._entries: dict[str, NativeEntry] = {}
        self._classes: tuple[dict[str, Any], FileState | None] | None = None

    # ------------------------------------------------------------------ opening and making
    @classmethod
    def open(cls, path: Path) -> NativeProject:
        """Open a project; reads the project file only."""
        file = path.absolute()
        if file.is_dir():
            named = file / PROJECT_FILE
            others = sorted(file.glob("*.qpproj"))
            file = named if named.is_file() or len(others) != 1 else others[0]
        if not file.is_file():
            raise ProjectNotFoundError(f"no QuPath project in {path}", expected=f"a folder with {PROJECT_FILE}")
        content, state = read_json(file)
        if not isinstance(content, dict):
            raise FormatError(f"{file} is no project file", expected="a JSON object")
        images = content.get("images", [])
        if not isinstance(images, list) or not all(_is_entry(image) for image in images):
            raise FormatError(f"{file} has images that cannot be read", expected="entryID and serverBuilder in each")
        return cls(file, content, state)

    @classmethod
    def create(cls, folder: Path, classes: Mapping[str, int | None]) -> NativeProject:
        """Make a new project in an empty or new folder."""
        folder = folder.absolute()
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
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
        with Transaction() as transaction:
            project._stage(transaction)
            if classes:
                project._stage_classes(transaction, _new_classes({}, classes))
            transaction.commit()
        project._state, project._classes = transaction.states[path], None
        return project

    def _stage(self, transaction: Transaction) -> None:
        transaction.stage(self._path, json_writer(self._content), self._state)

    # ------------------------------------------------------------------ contents
    @property
    def path(self) -> Path:
        """The project file."""
        return self._path

    @property
    def entries(self) -> list[ImageEntry]:
        """The images, in the project's order."""
        return [self._entry(image) for image in self._content.get("images", [])]

    def _entry(self, image: dict[str, Any]) -> NativeEntry:
        key = str(image["entryID"])
        if key not in self._entries:
            self._entries[key] = NativeEntry(self, image)
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
                listed = content.get("pathClasses") if isinstance(content, dict) else None
                if not isinstance(listed, list) or not all(isinstance(c, dict) and "name" in c for c in listed):
                    raise FormatError(f"{self._classes_file} is no list of classes", expected="pathClasses with names")
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
        content, _ = self._load_classes()
        new = _new_classes(self.classes, classes)
        if new:
            with Transaction() as transaction:
                self._stage_classes(transaction, new)
                transaction.commit()
            content.setdefault("pathClasses", []).extend(new)
            self._classes = content, transaction.states[self._classes_file]
        return [item["name"] for item in new]

    def _stage_classes(self, transaction: Transaction, new: list[dict[str, Any]]) -> None:
        content, state = self._load_classes()
        changed = {**content, "pathClasses": [*content.get("pathClasses", []), *new]}
        transaction.stage(self._classes_file, json_writer(changed), state)

    # ------------------------------------------------------------------ adding images
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
        if image_type not in IMAGE_TYPES:
            raise ProjectError(f"unknown image type {image_type!r}", expected=f"one of {', '.join(IMAGE_TYPES)}")
        texts = dict(metadata or {})
        if not all(isinstance(text, str) for item in texts.items() for text in item):
            raise ProjectError("metadata that is not text", expected="a dict of str")
        path = Path(slide_path).absolute()
        builder, thumbnail = make_builder(path, mpp)
        images = self._content.get("images", [])
        entry_id = max([self._content.get("lastID", 0), *(int(image["entryID"]) for image in images)]) + 1
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
        changed = {**self._content, "lastID": entry_id, "images": [*images, image]}
        changed["modifyTimestamp"] = round(time.time() * 1000)
        entry = NativeEntry(self, image)
        with Transaction() as transaction:
            entry.stage_new(transaction, image_type, stains or DEFAULT_STAINS.get(image_type), thumbnail)
            transaction.stage(self._path, json_writer(changed), self._state)
            transaction.commit()
        self._content, self._state = changed, transaction.states[self._path]
        entry.was_written(transaction)
        self._entries[str(entry_id)] = entry
        return entry


def _is_entry(image: Any) -> bool:
    return (
        isinstance(image, dict)
        and isinstance(image.get("entryID"), int)
        and isinstance(image.get("serverBuilder"), dict)
    )


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
