"""A project through Paquo: QuPath opens it, reads its slides and holds its objects."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from pyhisto.errors import SlideError
from qupath_ext.errors import ProjectError
from qupath_ext.native.builders import file_uri
from qupath_ext.native.entryjson import pixel_size
from qupath_ext.native.files import Transaction
from qupath_ext.native.nativeproject import NativeProject
from qupath_ext.paquo_bridge.entry import PaquoEntry
from qupath_ext.paquo_bridge.jvm import QUPATH, TO_NATIVE, java_class, java_errors, qupath_version, start_qupath

__all__ = ["PaquoProject"]

SERVERS = QUPATH + "images.servers."


class PaquoProject(NativeProject):
    """A project that QuPath's own classes open.

    Project files are written by the native backend, since QuPath's own way leaves a moment without a project file,
    drops keys that it does not know (QuPath 0.5 the tags of 0.6) and overwrites what others changed; but QuPath must
    open what was written, and see the same images, before it replaces anything. Paquo's wrapper is only used to read
    (mode ``r``): in other modes it saves on leaving, even after an error, and skips images whose slide is not there.
    """

    _entry_class: ClassVar = PaquoEntry

    @classmethod
    def open(cls, path: Path) -> PaquoProject:
        """Open a project; QuPath must be able to open it, too."""
        start_qupath()
        project = super().open(path)
        _check_opens(project.path, project._content)
        return project

    @classmethod
    def create(cls, folder: Path, classes: Mapping[str, int | None]) -> PaquoProject:
        """Make a new project in an empty or new folder."""
        start_qupath()
        return super().create(folder, classes)

    @property
    def backend(self) -> str:
        """``"paquo"``."""
        return "paquo"

    @property
    def backend_version(self) -> str:
        """Versions of Paquo and QuPath."""
        return qupath_version()

    def _stage(self, transaction: Transaction, content: dict[str, Any]) -> Path:
        temporary = super()._stage(transaction, content)
        _check_opens(temporary, content)
        return temporary

    def _open_slide(self, path: Path, mpp: float | tuple[float, float] | None) -> tuple[dict[str, Any], Any]:
        """Return QuPath's own builder of a slide and its thumbnail, RGB uint8 (H, W, 3)."""
        if not path.exists():
            raise SlideError(f"slide {path} does not exist", remedy="check the path")
        size = None if mpp is None else pixel_size(mpp)
        try:
            with java_errors("open the slide"):
                return _read_slide(path, size)
        except ProjectError as error:
            raise SlideError(
                f"{path}: {error.found}", expected="a slide that QuPath opens", remedy=TO_NATIVE
            ) from error


def _check_opens(path: Path, content: Mapping[str, Any]) -> None:
    """Let QuPath open a project file and compare what it sees with what stands in it.

    Raises
    ------
    ProjectError
        If QuPath does not open the project, or sees other images.
    """
    image_class = java_class("java.awt.image.BufferedImage")
    with java_errors(f"open the project {path.name}"):
        project = java_class(QUPATH + "projects.ProjectIO").loadProject(
            java_class("java.io.File")(str(path)), image_class
        )
        seen = [(str(entry.getID()), str(entry.getImageName())) for entry in project.getImageList()]
    written = [(str(image["entryID"]), image.get("imageName")) for image in content.get("images") or []]
    if len(seen) != len(written) or any(
        a[0] != b[0] or (b[1] is not None and a[1] != b[1]) for a, b in zip(seen, written, strict=True)
    ):
        raise ProjectError(
            f"QuPath sees {len(seen)} images in {path.name}, other ones than stand in it",
            expected=f"the {len(written)} images",
            remedy=TO_NATIVE,
        )


def _read_slide(path: Path, mpp: tuple[float, float] | None) -> tuple[dict[str, Any], np.ndarray[Any, Any]]:
    from paquo.java import ProjectImportImagesCommand_getThumbnailRGB as thumbnail_of

    provider = java_class(SERVERS + "ImageServerProvider")
    support = provider.getPreferredUriImageSupport(java_class("java.awt.image.BufferedImage"), file_uri(path))
    if support is None or support.getBuilders().isEmpty():
        raise ProjectError("QuPath has no reader for it")
    server = support.getBuilders().get(0).build()
    try:
        if mpp is not None:
            metadata = java_class(SERVERS + "ImageServerMetadata$Builder")(server.getMetadata())
            server.setMetadata(metadata.pixelSizeMicrons(*mpp).build())
        gson = java_class(QUPATH + "io.GsonTools").getInstance()
        kind = java_class(SERVERS + "ImageServerBuilder$ServerBuilder").class_
        builder: dict[str, Any] = json.loads(str(gson.toJson(server.getBuilder(), kind)))
        picture = thumbnail_of(server, None)
        width, height = picture.getWidth(), picture.getHeight()
        packed = np.array(picture.getRGB(0, 0, width, height, None, 0, width), dtype=np.int32)
    finally:
        server.close()
    channels = [(packed >> shift & 0xFF).astype(np.uint8) for shift in (16, 8, 0)]
    return builder, np.stack(channels, axis=-1).reshape(height, width, 3)
