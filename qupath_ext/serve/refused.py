"""Why a request is refused."""

from __future__ import annotations

from pyhisto.errors import PyhistoError

__all__ = ["Refused"]


class Refused(PyhistoError):
    """A request that is not granted.

    Parameters
    ----------
    status
        The status of the HTTP response.
    found, expected, remedy
        As for every :class:`pyhisto.errors.PyhistoError`.
    """

    def __init__(self, status: int, found: str, *, expected: str = "", remedy: str = "") -> None:
        super().__init__(found, expected=expected, remedy=remedy)
        self.status = status
