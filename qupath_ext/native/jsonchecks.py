"""What project.qpproj and classes.json must be before anything is made of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from qupath_ext.errors import FormatError

__all__ = ["check_classes", "check_project"]


def check_project(content: Any, path: Path) -> None:
    """Refuse a project file that QuPath would not have written. Keys that are not known may hold anything.

    Raises
    ------
    FormatError
        Names the first value that is not what it should be.
    """
    if not isinstance(content, dict):
        raise FormatError(f"{path} is no project file", expected="a JSON object")
    _check(content, "uri", path, str, "a text")
    _check(content, "lastID", path, int, "a whole number")
    _check(content, "images", path, list, "a list")
    seen = set()
    for image in content.get("images") or []:
        known = isinstance(image, dict) and _is(image.get("entryID"), int)
        if not known or not _is(image.get("serverBuilder"), dict):
            raise FormatError(f"{path} has images that cannot be read", expected="entryID and serverBuilder in each")
        entry_id = image["entryID"]
        where = Path(f"{path}, image {entry_id}")
        if not 0 <= entry_id < 1 << 63:
            raise FormatError(f"an image with the id {str(entry_id)[:40]} in {path}", expected="0 to 2^63 - 1")
        if entry_id in seen:
            raise FormatError(f"two images with the id {entry_id} in {path}", expected="an id of its own for each")
        seen.add(entry_id)
        _check(image["serverBuilder"], "metadata", where, dict, "the image's size, pixel size and channels")
        _check(image["serverBuilder"].get("metadata") or {}, "channels", where, list, "a list")
        _check(image, "imageName", where, str, "a text")
        _check(image, "description", where, str, "a text")
        _check(image, "metadata", where, dict, "texts by name")
        _check(image, "tags", where, list, "a list of texts")
        texts = [*(image.get("metadata") or {}).values(), *(image.get("tags") or [])]
        if not all(isinstance(text, str) for text in texts):
            raise FormatError(f"metadata or tags that are no text in {where}", expected="texts")


def check_classes(content: Any, path: Path) -> None:
    """Refuse a list of classes that QuPath would not have written.

    Raises
    ------
    FormatError
        Names the first value that is not what it should be.
    """
    listed = content.get("pathClasses") if isinstance(content, dict) else None
    if not isinstance(listed, list) or not all(isinstance(c, dict) and _is(c.get("name"), str) for c in listed):
        raise FormatError(f"{path} is no list of classes", expected="pathClasses with names")
    for item in listed:
        _check(item, "color", path, int, "a signed 32-bit packed ARGB")
        if item.get("color") is not None and not -(1 << 31) <= item["color"] < 1 << 31:
            raise FormatError(f"the colour of class {item['name']!r} in {path}", expected="a signed 32-bit packed ARGB")


def _is(value: Any, kind: type) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)


def _check(content: dict[str, Any], key: str, where: Path, kind: type, expected: str) -> None:
    value = content.get(key)
    if value is not None and not _is(value, kind):
        raise FormatError(f"{key} is {str(value)[:40]!r} in {where}", expected=expected)
