"""One image of a project whose objects QuPath's own classes read, hold and write."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qupath_ext.native.nativeentry import NativeEntry

if TYPE_CHECKING:
    from qupath_ext.native.datafile import DataFile
    from qupath_ext.paquo_bridge.hierarchy import QuPathEdit

__all__ = ["PaquoEntry"]


class PaquoEntry(NativeEntry):
    """One image of a :class:`PaquoProject`.

    The data file is read and replaced as by the native backend: all or nothing, with a backup, and only if nobody else
    changed it. Its objects pass through QuPath; all else (workflow, display settings, properties) stays byte for byte.
    So the slide need not be there, which QuPath up to 0.5 wants before it shows an image's objects, and for want of
    which Paquo skips saving without an error.
    """

    def _read_data(self) -> DataFile | None:
        """Read the data file as QuPath holds it; None if there is none."""
        from qupath_ext.native.edit import open_for_edit
        from qupath_ext.paquo_bridge.hierarchy import JavaHierarchy

        loaded = self._load()
        if loaded is None:
            return None
        data = open_for_edit(loaded[0], self._project.color_of).data
        JavaHierarchy(data, self._project.color_of).store()
        return data

    def _open_for_edit(self, data: bytes | None) -> QuPathEdit:
        from qupath_ext.paquo_bridge.hierarchy import QuPathEdit

        return QuPathEdit(super()._open_for_edit(data).data, self._project.color_of)
