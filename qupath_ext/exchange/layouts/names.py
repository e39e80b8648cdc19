"""The names of layouts; and which labels belong to which image, by the names of their files."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from qupath_ext.errors import ProjectError

__all__ = ["LAYOUTS", "key_of", "keyed"]

LAYOUTS = ("instances", "points", "masks", "coco", "deepliif", "nucls")


def key_of(name: str, pattern: str, option: str = "--match") -> str:
    r"""Return what a pattern finds in the name of a file without folder and ending; all of it without a pattern.

    >>> key_of("masks/a1_mask.png", "(.+)_mask"), key_of("a1.png", "")
    ('a1', 'a1')

    Raises
    ------
    ProjectError
        If the pattern is no regular expression with a group, or does not fit.
    """
    stem = Path(name.replace("\\", "/")).stem
    if not pattern:
        return stem
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise ProjectError(f"{option} {pattern!r} ({error})", expected="a regular expression") from error
    if not compiled.groups:
        raise ProjectError(f"{option} {pattern!r} has no group", expected="a part in parentheses", remedy="add one")
    found = compiled.search(stem)
    if found is None or not found[1]:
        raise ProjectError(f"{option} {pattern!r} does not fit {stem!r}", expected="a pattern that fits all names")
    return found[1]


def keyed(paths: Sequence[Path], pattern: str, what: str) -> dict[str, Path]:
    """Return files by the part of their names that tells which image they are of.

    Raises
    ------
    ProjectError
        If there are none, or two have the same.
    """
    if not paths:
        raise ProjectError(f"no {what} found", expected="a glob that finds files", remedy="put it in quotes")
    out: dict[str, Path] = {}
    for path in sorted(paths):
        key = key_of(path.name, pattern)
        if key in out:
            raise ProjectError(
                f"{what} {out[key]} and {path} are both called {key!r}",
                expected="different names",
                remedy="give --match, or import them into projects of their own",
            )
        out[key] = path
    return out
