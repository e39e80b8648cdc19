"""JSON files of a project."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from qupath_ext.errors import FormatError
from qupath_ext.native.files import FileState, Writable, read_with_state

__all__ = ["json_writer", "read_json"]

MAX_DEPTH = 100
"""Far more than QuPath writes, and less than Python's stack holds."""


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
        content = json.loads(data.decode("utf-8-sig"))
    except ValueError as error:
        raise FormatError(f"{path} is not JSON: {error}") from error
    except RecursionError as error:
        raise _too_deep(path) from error
    if _depth(content) > MAX_DEPTH:
        raise _too_deep(path)
    return content, state


def _too_deep(path: Path) -> FormatError:
    return FormatError(f"{path} is nested too deep", expected=f"at most {MAX_DEPTH} levels")


def _depth(content: Any) -> int:
    depth, level = 0, [content]
    while level and depth <= MAX_DEPTH:
        depth += 1
        level = [child for value in level if isinstance(value, (dict, list)) for child in _children(value)]
    return depth


def _children(value: dict[str, Any] | list[Any]) -> Iterable[Any]:
    return value.values() if isinstance(value, dict) else value


def json_writer(value: Any, *, indent: int | None = 2) -> Callable[[Writable], int]:
    """Return a function that writes a value to a file as JSON, pretty-printed unless `indent` is None."""
    separators = (",", ":") if indent is None else None
    text = json.dumps(value, ensure_ascii=False, indent=indent, separators=separators)
    try:
        data = text.encode()
    except UnicodeEncodeError:  # half of a surrogate pair, which JSON can hold and UTF-8 cannot
        data = json.dumps(value, indent=indent, separators=separators).encode()
    return lambda file: file.write(data)
