"""The exceptions that qupath_ext raises on purpose.

Like those of :mod:`pyhisto.errors` they are one line: what was found, what was expected, what to do::

    PyhistoError
    └── ProjectError               a project or one of its images cannot be used as asked
        ├── ProjectNotFoundError   the folder holds no QuPath project
        ├── ProjectExistsError     a new project would overwrite something
        ├── EntryNotFoundError     the project has no such image, or more than one
        ├── RunNotFoundError       the project has no such run, or more than one
        ├── FormatError            a file is malformed, or written in a grammar that is not known
        └── ChangedOnDiskError     a file changed after it was read; nothing was written
"""

from __future__ import annotations

from pyhisto.errors import PyhistoError

__all__ = [
    "ChangedOnDiskError",
    "EntryNotFoundError",
    "FormatError",
    "ProjectError",
    "ProjectExistsError",
    "ProjectNotFoundError",
    "RunNotFoundError",
]


class ProjectError(PyhistoError):
    """A project or one of its images cannot be used as asked."""


class ProjectNotFoundError(ProjectError):
    """The folder holds no QuPath project."""


class ProjectExistsError(ProjectError):
    """A new project would overwrite something."""


class EntryNotFoundError(ProjectError):
    """The project has no such image, or more than one."""


class RunNotFoundError(ProjectError):
    """The project has no such run, or more than one."""


class FormatError(ProjectError):
    """A file is malformed, or written in a grammar that is not known."""


class ChangedOnDiskError(ProjectError):
    """A file changed after it was read; nothing was written."""
