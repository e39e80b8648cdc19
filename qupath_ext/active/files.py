"""The files of a loop: JSON records and tables, each put in place whole."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import geopandas as gpd
from filelock import FileLock, Timeout

from qupath_ext.errors import FormatError, ProjectError

__all__ = ["damaged", "locked", "make_folder", "read_record", "write_table"]


def read_record(path: Path) -> dict[str, Any]:
    """Return what a JSON file holds.

    Raises
    ------
    FormatError
        If it is missing, or holds no object.
    """
    try:
        record = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise damaged(path, error) from error
    if not isinstance(record, dict):
        raise damaged(path, ValueError("no object"))
    return record


def write_table(path: Path, table: gpd.GeoDataFrame) -> None:
    """Write a GeoParquet file, all or nothing.

    Raises
    ------
    ProjectError
        If it cannot be written.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        table.to_parquet(temporary)
        temporary.replace(path)
    except OSError as error:
        raise ProjectError(f"{path} cannot be written: {error.strerror or error}") from error
    finally:
        temporary.unlink(missing_ok=True)


def make_folder(path: Path) -> None:
    """Make a folder, and those above it; it may be there.

    Raises
    ------
    ProjectError
        If it cannot be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ProjectError(f"{path} cannot be made: {error.strerror or error}") from error


@contextmanager
def locked(path: Path, what: str) -> Iterator[None]:
    """Keep other processes away inside a ``with`` block.

    Parameters
    ----------
    path
        The lock file.
    what
        What is worked on, for the message.

    Raises
    ------
    ProjectError
        If another process has the lock, or it cannot be written.
    """
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise ProjectError(f"{what} is being worked on by another process", remedy="wait for it, or stop it") from error
    except OSError as error:
        raise ProjectError(f"{path} cannot be written: {error.strerror or error}") from error
    try:
        yield
    finally:
        lock.release()


def damaged(path: Path, error: Exception) -> FormatError:
    """Return the error about a file of a loop that is missing or damaged."""
    return FormatError(f"{path} is damaged ({error})", remedy="restore it, or remove the loop's folder")
