"""JSON files of a project."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from qupath_ext.errors import FormatError
from qupath_ext.native.files import FileState, Writable, read_with_state

__all__ = ["json_writer", "read_json"]


def read_json(path: Path) -> tuple[Any, FileState]:
    """Read a JSON file and its state.

    Raises
    ------
    FormatError
        If it is not JSON.
    ProjectError
        If it cannot be read.
    """
    data, state = read_with_state(path)
    try:
        return json.loads(data.decode("utf-8-sig")), state
    except ValueError as error:
        raise FormatError(f"{path} is not JSON: {error}") from error


def json_writer(value: Any, *, indent: int | None = 2) -> Callable[[Writable], int]:
    """Return a function that writes a value to a file as JSON, pretty-printed unless `indent` is None."""
    separators = (",", ":") if indent is None else None
    text = json.dumps(value, ensure_ascii=False, indent=indent, separators=separators)
    return lambda file: file.write(text.encode())
