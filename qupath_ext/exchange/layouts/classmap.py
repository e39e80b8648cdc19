"""Which class a value, word or colour of a data set is."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from qupath_ext.errors import FormatError

__all__ = ["REST", "ClassMap", "parse_colour", "read_class_map"]

REST = "*"
"""Stands for all values that are not named."""


@dataclass(frozen=True)
class ClassMap:
    """Values of a data set to QuPath's class names.

    Attributes
    ----------
    names
        Class by value; an empty name leaves the value out, :data:`REST` stands for all others. Values are text; whole
        numbers are written without decimals.

    Examples
    --------
    >>> ClassMap({"1": "Tumor", "2": ""}).classes_of(["1", "2.0"])
    ['Tumor', None]
    """

    names: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def parse(cls, pairs: Iterable[str], base: Mapping[str, str] | None = None) -> ClassMap:
        """Make a map of texts ``VALUE=NAME``, on top of another.

        Raises
        ------
        FormatError
            If a text has another form.
        """
        names = {canonical(value): name for value, name in (base or {}).items()}
        for pair in pairs:
            value, sign, name = pair.partition("=")
            if not sign or not value.strip():
                raise FormatError(f"class {pair!r}", expected="VALUE=NAME, such as 1=Tumor or '#ff0000=Positive'")
            names[canonical(value)] = name.strip()
        return cls(names)

    def classes_of(self, values: Iterable[str]) -> list[str | None]:
        """Return the class of each value; None for those that are left out.

        Words stand for themselves if no class was named at all.

        Raises
        ------
        FormatError
            If a value has no class.
        """
        known: dict[str, str | None] = {}
        out = []
        for value in values:
            if value not in known:
                known[value] = self._class_of(canonical(value)) or None
            out.append(known[value])
        return out

    def _class_of(self, value: str) -> str:
        if value in self.names:
            return self.names[value]
        if REST in self.names:
            return self.names[REST]
        if not self.names and not value.removeprefix("-").isdecimal() and value:
            return value
        raise FormatError(
            f"label value {value!r} has no class" if value else "labels without classes",
            expected=f"one of {', '.join(self.names)}" if self.names else "a name for each value",
            remedy=f"give --class {value or REST}=NAME, or --class {value or REST}= to leave it out",
        )

    def colours(self) -> dict[tuple[int, int, int], str]:
        """Return the values that are colours, by RGB."""
        parsed = {parse_colour(value): value for value in self.names if value != REST}
        return {rgb: value for rgb, value in parsed.items() if rgb is not None}


def canonical(value: str) -> str:
    """Return a value as it is looked up: stripped, whole numbers without decimals.

    >>> canonical(" 2.0 "), canonical("#FF0000"), canonical("Tumor")
    ('2', '#ff0000', 'Tumor')
    """
    value = str(value).strip()
    if value.startswith("#"):
        return value.lower()
    try:
        number = float(value)
    except ValueError:
        return value
    return str(int(number)) if number.is_integer() else value


def parse_colour(text: str) -> tuple[int, int, int] | None:
    """Return the RGB of ``#rrggbb``, ``r,g,b`` or a colour name of HTML; None if it is none.

    >>> parse_colour("#ff0000"), parse_colour("0,0,255"), parse_colour("lime"), parse_colour("7")
    ((255, 0, 0), (0, 0, 255), (0, 255, 0), None)
    """
    from PIL import ImageColor

    try:
        red, green, blue = ImageColor.getrgb(f"rgb({text})" if text.count(",") == 2 else text)[:3]
    except ValueError:
        return None
    return red, green, blue


def read_class_map(path: Path) -> dict[str, str]:
    """Read a file that says which class a value is: JSON ``{"1": "Tumor"}``, or CSV with rows ``value,name``.

    Raises
    ------
    FormatError
        If it is neither.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
        if path.suffix.lower() == ".json":
            content = json.loads(text)
            rows = [[str(value), name] for value, name in content.items()]
        else:
            rows = [row for row in csv.reader(text.splitlines()) if row]
    except (OSError, ValueError, AttributeError) as error:
        raise FormatError(f"{path} cannot be read ({error})", expected="JSON or CSV of values and classes") from error
    if not rows or not all(len(row) == 2 and isinstance(row[1], str) for row in rows):
        raise FormatError(
            f"{path} does not say which class a value is", expected='JSON {"1": "Tumor", ...} or CSV rows value,name'
        )
    return {canonical(value): name.strip() for value, name in rows}
