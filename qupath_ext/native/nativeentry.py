"""One image of a native project: its part of the project file and its data folder."""

from __future__ import annotations

import copy
import io
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qupath_ext.change import Change, ChangeCounts, TmaGrid
from qupath_ext.entry import UNSET, ImageEntry, Unset
from qupath_ext.errors import FormatError, ProjectError
from qupath_ext.native.entryjson import changed_image, check_image_type
from qupath_ext.native.files import FileState, Transaction, changed_error, read_with_state
from qupath_ext.native.jsonfiles import json_writer
from qupath_ext.native.stains import Stains

if TYPE_CHECKING:
    import geopandas as gpd

    from qupath_ext.native.datafile import DataFile, ObjectCounts
    from qupath_ext.native.edit import HierarchyEdit
    from qupath_ext.native.nativeproject import NativeProject
    from qupath_ext.present import PresentObjects

__all__ = ["QUPATH_VERSION", "NativeEntry"]

QUPATH_VERSION = "0.5.1"
"""Named in new projects and data files; what is written opens in QuPath 0.3 to 0.8."""
COUNT_NAMES = {
    "annotation": "Annotations",
    "tma_core": "TMA cores",
    "detection": "Detections",
    "cell": "Cells",
    "tile": "Tiles",
}


class NativeEntry(ImageEntry):
    """One image of a :class:`NativeProject`."""

    def __init__(self, project: NativeProject, image: dict[str, Any]) -> None:
        self._project = project
        self._image = image
        self._seen: FileState | None = None
        self._was_read = False
        self._head: tuple[tuple[int, int], str | None, Stains | None] | None = None

    # ------------------------------------------------------------------ from the project file
    @property
    def id(self) -> str:
        """The entry id."""
        return str(self._image["entryID"])

    @property
    def name(self) -> str:
        """The name that QuPath shows."""
        return str(self._image.get("imageName") or self.id)

    @property
    def description(self) -> str | None:
        """The description."""
        text = self._image.get("description")
        return None if text is None else str(text)

    @property
    def metadata(self) -> dict[str, str]:
        """The metadata of the entry."""
        return dict(self._image.get("metadata") or {})

    @property
    def tags(self) -> list[str]:
        """The tags of the entry."""
        return [str(tag) for tag in self._image.get("tags") or ()]

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
        """Change what the project says about the image; see :meth:`qupath_ext.entry.ImageEntry.update`."""
        image = changed_image(
            self._image,
            name=name,
            description=description,
            metadata=metadata,
            tags=tags,
            mpp=mpp,
            slide=lambda: self.slide_path,
            moved_to=None if slide_path is None else Path(slide_path).absolute(),
        )
        if image != self._image:
            self._project.replace_image(self, image)
            self._image = image

    @property
    def server_builder(self) -> dict[str, Any]:
        """How QuPath opens the image."""
        builder: dict[str, Any] = copy.deepcopy(self._image["serverBuilder"])
        return builder

    @property
    def _moved_from(self) -> tuple[str | None, Path]:
        return self._project._content.get("uri"), self._project.path.parent

    @property
    def folder(self) -> Path:
        """The image's data folder."""
        return self._project.path.parent / "data" / self.id

    @property
    def data_file(self) -> Path:
        """The image's data.qpdata; need not exist."""
        return self.folder / "data.qpdata"

    # ------------------------------------------------------------------ from the data file
    def _load(self) -> tuple[bytes, FileState] | None:
        """Read the data file and remember its state; None if there is none."""
        path = self.data_file
        if not path.exists():
            self._seen, self._was_read = None, True
            if path.with_name("data.qpdata.bkp").exists():
                raise ProjectError(
                    f"{path} is missing and data.qpdata.bkp is there: QuPath stopped while saving",
                    remedy="open and save the image in QuPath",
                )
            return None
        data, state = read_with_state(path)
        self._seen, self._was_read = state, True
        return data, state

    def _read_head(self) -> tuple[str | None, Stains | None]:
        from qupath_ext.native.datafile import read_head

        if not self.data_file.exists():
            return None, None
        status = self.data_file.stat()
        key = status.st_size, status.st_mtime_ns
        if self._head is None or self._head[0] != key:
            with self._named():
                self._head = key, *read_head(self.data_file)
        return self._head[1], self._head[2]

    @property
    def image_type(self) -> str | None:
        """The image type; None if the image has no data yet."""
        return self._read_head()[0]

    @property
    def stains(self) -> Stains | None:
        """The stains."""
        return self._read_head()[1]

    def read_tma_grid(self) -> TmaGrid | None:
        """Read the TMA grid; None if the image has none."""
        from qupath_ext.native.tma import read_grid

        with self._named():
            data = self._read_data()
            return None if data is None else read_grid(data)

    def read_objects(self) -> gpd.GeoDataFrame:
        """Read all objects; see :meth:`qupath_ext.project.ImageEntry.read_objects`."""
        from pyhisto.objects import empty_objects

        with self._named():
            data = self._read_data()
            return empty_objects() if data is None else data.read_table()

    def read_present(self) -> PresentObjects:
        """Read all objects for comparing; see :meth:`qupath_ext.entry.ImageEntry.read_present`."""
        with self._named():
            data = self._read_data()
            return super().read_present() if data is None else data.read_present()

    def _read_data(self) -> DataFile | None:
        """Read the data file; None if there is none."""
        from qupath_ext.native.datafile import parse_data_file

        loaded = self._load()
        return None if loaded is None else parse_data_file(loaded[0])

    def _named(self) -> _Named:
        return _Named(self.data_file)

    # ------------------------------------------------------------------ writing
    def _begin(self) -> None:
        if not self._was_read:
            self._seen, self._was_read = FileState.of(self.data_file), True

    def _apply(self, change: Change) -> ChangeCounts:
        from pyhisto.objects import concat_objects

        seen = self._seen
        if not change:
            return ChangeCounts()
        if change.image_type is not None:
            check_image_type(change.image_type, self.server_builder)
        with Transaction(self._project.lock) as transaction:
            loaded = self._load()
            state = None if loaded is None else loaded[1]
            if state != seen:
                self._seen = seen
                raise changed_error(self.data_file)
            with self._named():
                edit = self._open_for_edit(None if loaded is None else loaded[0])
                counts = edit.apply(
                    add=concat_objects(change.tables) if len(change.tables) > 1 else next(iter(change.tables), None),
                    update=change.updates,
                    remove=change.removed,
                    lock=change.locked,
                    unlock=change.unlocked,
                    image_type=change.image_type,
                    stains=change.stains,
                    tma_grid=change.tma_grid,
                )
            self._stage(transaction, edit.data, state)
            transaction.commit()
        self.was_written(transaction)
        return counts

    def _open_for_edit(self, data: bytes | None) -> HierarchyEdit:
        """Return the image's data file, a new one if there is none, ready to be changed."""
        from qupath_ext.native.edit import HierarchyEdit, open_for_edit

        if data is None:
            return HierarchyEdit(self._new_data("UNSET", None), self._project.color_of)
        return open_for_edit(data, self._project.color_of)

    def _new_data(self, image_type: str, stains: Stains | None) -> DataFile:
        from qupath_ext.native.datafile import new_data_file

        return new_data_file(
            server=self.server_builder,
            image_type=image_type,
            stains=stains,
            project_entry=f"{self._project.path}::{self.id}",
            root_id=str(uuid.uuid4()),
            version=QUPATH_VERSION,
            colors=self._project.color_of,
        )

    def stage_new(self, transaction: Transaction, image_type: str, stains: Stains | None, thumbnail: Any) -> None:
        """Write the data folder of a new image as part of a transaction."""
        from PIL import Image

        self._stage(transaction, self._new_data(image_type, stains), None)
        picture = io.BytesIO()
        Image.fromarray(thumbnail).save(picture, format="JPEG", quality=90)
        transaction.stage(self.folder / "thumbnail.jpg", lambda file: file.write(picture.getvalue()), None)

    def was_written(self, transaction: Transaction) -> None:
        """Take over the state of the data file that a transaction put in place."""
        self._seen, self._was_read = transaction.states[self.data_file], True

    def _stage(self, transaction: Transaction, data: DataFile, before: FileState | None) -> None:
        from qupath_ext.native.datafile import stage_data_file

        counts = stage_data_file(data, self.data_file, before, transaction)
        summary = self.folder / "summary.json"
        content = self._summary(data.image_type, counts)
        transaction.stage(summary, json_writer(content, indent=None), FileState.of(summary), backup=False)

    def _summary(self, image_type: str | None, counts: ObjectCounts) -> dict[str, Any]:
        metadata = self.server_builder.get("metadata") or {}
        types = {"Root objects": 1}
        classes: dict[str, dict[str, int]] = {"annotation": {}, "detection": {}}
        for (kind, name), n in counts.items():
            types[COUNT_NAMES[kind]] = types.get(COUNT_NAMES[kind], 0) + n
            if kind in ("cell", "tile"):
                types["Detections"] = types.get("Detections", 0) + n
            group = classes.get("detection" if kind in ("cell", "tile") else kind, {})
            group[name or "Unclassified"] = group.get(name or "Unclassified", 0) + n
        server = {
            "width": metadata.get("width"),
            "height": metadata.get("height"),
            "sizeC": len(metadata.get("channels") or ()),
            "sizeZ": metadata.get("sizeZ"),
            "sizeT": metadata.get("sizeT"),
        }
        return {
            "timestamp": round(time.time() * 1000),
            "imageType": image_type,
            "server": {key: value for key, value in server.items() if value},
            "hierarchy": {
                "nObjects": 1 + sum(counts.values()),
                "objectTypeCounts": types,
                "annotationClassificationCounts": classes["annotation"],
                "detectionClassificationCounts": classes["detection"],
            },
        }


class _Named:
    """Puts the file's name in front of what a parser says."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, FormatError):
            raise FormatError(f"{self.path}: {error.found}", expected=error.expected, remedy=error.remedy) from error
