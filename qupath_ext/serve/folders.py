"""The folders in which the worker may read and write jobs."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from qupath_ext.errors import FormatError
from qupath_ext.live.job import read_job
from qupath_ext.serve.refused import Refused
from qupath_ext.userstate import known_projects

__all__ = ["AllowedFolders"]

REMEDY = "run qupath-ext install-scripts for the project, or start the worker with --allow"


class AllowedFolders:
    """The folders given, and the projects into which the scripts were put, whenever that was.

    Parameters
    ----------
    given
        Folders; projects inside them are allowed as well.
    """

    def __init__(self, given: Iterable[Path] = ()) -> None:
        self._given = tuple(name for folder in given for name in (folder.absolute(), folder.resolve()))

    @property
    def roots(self) -> tuple[Path, ...]:
        """What is allowed now."""
        return self._given + known_projects()

    def admit(self, folder: object) -> Path:
        """Return the folder of a job without links in its path.

        Parameters
        ----------
        folder
            What the request names.

        Raises
        ------
        Refused
            If it is no path of a folder, is not inside what is allowed, or holds links; or if the job is not
            understood, or its project is not inside what is allowed.
        """
        if not isinstance(folder, str):
            raise Refused(400, f"folder {folder!r:.80}", expected="the path of the folder of a job")
        inside = self._inside(Path(folder))
        if not inside.is_dir():
            raise Refused(404, f"{inside} is no folder", expected="the folder of a job")
        links = [one.name for one in inside.iterdir() if one.is_symlink()]
        if links:
            raise Refused(403, f"{inside} holds links ({', '.join(links[:3])})", expected="files")
        try:
            job = read_job(inside)
        except FormatError as error:
            raise Refused(422, error.found, expected=error.expected, remedy=error.remedy) from error
        if job.project is not None:
            self._inside(job.project)
        return inside

    def _inside(self, path: Path) -> Path:
        """Return a path that is there and inside what is allowed.

        It has to look so before the disk is asked: on Windows, a mere look at the share of a server tells that server
        who is asking.
        """
        roots = self.roots
        if not path.is_absolute() or ".." in path.parts or not any(path.is_relative_to(root) for root in roots):
            raise Refused(403, f"{path} is outside of what the worker may touch", remedy=REMEDY)
        try:
            real = path.resolve(strict=True)
        except (OSError, RuntimeError, ValueError) as error:  # names no file can have; up to Python 3.12 also loops
            raise Refused(404, f"{path} is not there") from error
        if not any(real.is_relative_to(root.resolve()) for root in roots):
            raise Refused(403, f"{path} leads to {real}, outside of what the worker may touch", remedy=REMEDY)
        return real
