"""Single values in the properties of a GeoJSON feature, in all the forms that QuPath has written."""

from __future__ import annotations

import json
import re
import uuid
from typing import Any

import numpy as np

from qupath_ext.errors import FormatError

__all__ = [
    "Malformed",
    "class_and_color",
    "color",
    "identifier",
    "measurement",
    "metadata",
    "object_type",
    "text",
]

OBJECT_TYPES = {
    **dict.fromkeys(("annotation", "PathAnnotationObject"), "annotation"),
    **dict.fromkeys(("detection", "PathDetectionObject"), "detection"),
    **dict.fromkeys(("cell", "PathCellObject"), "cell"),
    **dict.fromkeys(("tile", "PathTileObject"), "tile"),
    **dict.fromkeys(("tmaCore", "tma_core", "TMACoreObject"), "tma_core"),
    **dict.fromkeys(("root", "PathRootObject"), "root"),
}
UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}", re.IGNORECASE)
NUMBER_WORDS = {"nan": np.nan, "inf": np.inf, "infinity": np.inf, "-inf": -np.inf, "-infinity": -np.inf}


class Malformed(Exception):
    """What is wrong with a feature; the reader puts the names of file and feature in front."""

    def __init__(self, found: str, expected: str, remedy: str = "") -> None:
        self.error = FormatError(found, expected=expected, remedy=remedy)
        super().__init__(str(self.error))

    def named(self, label: str) -> FormatError:
        """Return the error with the name of the feature in front."""
        return FormatError(f"{label}: {self.error.found}", expected=self.error.expected, remedy=self.error.remedy)


def object_type(feature: dict[str, Any], properties: dict[str, Any]) -> str:
    """Return the type of an object; like QuPath, an annotation if it is not said or not known.

    >>> object_type({"id": "PathTileObject"}, {}), object_type({}, {"objectType": "tmaCore"})
    ('tile', 'tma_core')
    """
    for key in ("objectType", "object_type", "type"):
        if key in properties:
            name = properties[key]
            break
    else:
        name = feature.get("id")
    return OBJECT_TYPES.get(name, "annotation") if isinstance(name, str) else "annotation"


def identifier(value: Any) -> str:
    """Return the id if it is a UUID; a new random one otherwise."""
    return value.lower() if isinstance(value, str) and UUID.fullmatch(value) else str(uuid.uuid4())


def text(value: Any) -> str | None:
    """Return a name."""
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, int | float):
        return str(value)
    raise Malformed("the name is no text", "text")


def color(value: Any) -> int | None:
    """Return a packed signed ARGB from such an integer or from [r, g, b] or [r, g, b, a].

    >>> color([200, 0, 0]), color(-3670016)
    (-3670016, -3670016)
    """
    if value is None:
        return None
    if isinstance(value, int) and not isinstance(value, bool) and -(1 << 31) <= value < 1 << 32:
        return value - (1 << 32) if value >= 1 << 31 else value
    if (
        isinstance(value, list)
        and len(value) in (3, 4)
        and all(type(part) is int and 0 <= part <= 255 for part in value)
    ):
        red, green, blue, alpha = (*value, 255)[:4]
        packed: int = alpha << 24 | red << 16 | green << 8 | blue
        return packed - (1 << 32) if packed >= 1 << 31 else packed
    raise Malformed(f"the colour {value!r}", "an integer or [red, green, blue] from 0 to 255")


def class_and_color(value: Any) -> tuple[str | None, int | None]:
    """Return the full name and the colour of a classification.

    >>> class_and_color({"names": ["Tumor", "Positive"], "color": [200, 50, 50]})
    ('Tumor: Positive', -3657166)
    """
    if value is None or isinstance(value, str):
        return value or None, None
    if not isinstance(value, dict):
        raise Malformed(f"the classification {value!r}", "a name, or an object with name and color")
    own = value.get("color")
    return _class_name(value), color(value.get("colorRGB") if own is None else own)


def _class_name(value: dict[str, Any]) -> str | None:
    """Return the full name from a name or a list of names, with the parents as QuPath 0.2 and 0.3 wrote them."""
    names = value.get("names")
    if not isinstance(names, list):
        names = []
        part: Any = value
        while isinstance(part, dict):
            names.insert(0, part.get("name"))
            part = part.get("parentClass")
        if names == [None]:
            return None
    if not all(isinstance(name, str) for name in names):
        raise Malformed(f"the classification names {names!r}", "text")
    return ": ".join(names) or None


def metadata(value: Any) -> dict[str, str] | None:
    """Return text by key; like QuPath, what is neither text nor number nor truth value is left out."""
    if value is None:
        return None
    if not isinstance(value, dict):
        raise Malformed("metadata that are no JSON object", "text with keys")
    texts = {
        key: item if isinstance(item, str) else json.dumps(item)
        for key, item in value.items()
        if isinstance(item, str | int | float)
    }
    return texts or None


def measurement(value: Any) -> float:
    """Return a number; null and "NaN" are NaN.

    >>> measurement("-Infinity"), measurement(3)
    (-inf, 3.0)
    """
    if value is None:
        return float("nan")
    if isinstance(value, str | int | float) and not isinstance(value, bool):
        try:
            return float(NUMBER_WORDS.get(value.lower(), value) if isinstance(value, str) else value)
        except ValueError:
            pass
    raise Malformed(f"the measurement value {value!r}", "a number")
