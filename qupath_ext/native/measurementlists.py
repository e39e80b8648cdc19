"""Measurement lists as tokens: what they say, and how one value is changed."""

from __future__ import annotations

import struct
from collections.abc import Mapping

import numpy as np

from qupath_ext.errors import FormatError
from qupath_ext.native.catalog import LISTS, Factory
from qupath_ext.native.tokens import Block, Content, JArray, JObject, JString, Part

__all__ = ["changed_list", "is_list", "list_items", "list_names", "primitive", "read_measurements"]


def is_list(token: JObject) -> bool:
    """Whether a token is a measurement list, of whatever kind."""
    return token.desc.name.startswith(LISTS)


def primitive(token: JObject, name: str) -> bytes:
    """Return the bytes of a number in a field.

    Raises
    ------
    FormatError
        If the field holds something else.
    """
    value = token.get(name)
    if not isinstance(value, bytes):
        raise FormatError(f"field {name} of {token.desc.name} is no number")
    return value


def read_measurements(token: JObject) -> dict[str, float]:
    """Return the names and values of a measurement list of any kind.

    Raises
    ------
    FormatError
        If the list is of a kind that is not known.
    """
    kind = token.desc.name.removeprefix(LISTS)
    match kind:
        case "NumericMeasurementList$FloatList" | "NumericMeasurementList$DoubleList":
            values = token.get("values")
            if not isinstance(values, JArray) or values.desc.name != ("[F" if kind.endswith("FloatList") else "[D"):
                raise FormatError(f"{token.desc.name} without values")
            numbers = np.frombuffer(values.raw, dtype=">f4" if kind.endswith("FloatList") else ">f8").tolist()
            names = list_names(token.get("names"))
            if len(names) > len(numbers):  # there may be more values, of which QuPath takes the first
                raise FormatError(f"{len(names)} names of measurements", expected=f"at most {len(numbers)}")
            return dict(zip(names, numbers, strict=False))
        case "DefaultMeasurementList":
            out = {}
            for item in list_items(token.get("list")):
                name = item.get("name") if isinstance(item, JObject) else None
                raw = primitive(item, "value") if isinstance(item, JObject) else b""
                if not isinstance(name, JString) or len(raw) not in (4, 8):
                    raise FormatError("a measurement without name or value")
                out[name.text] = float(struct.unpack(">d" if len(raw) == 8 else ">f", raw)[0])
            return out
    raise FormatError(f"measurement list of class {token.desc.name}", expected="a kind that QuPath 0.2 to 0.8 writes")


def list_items(token: bytes | Content) -> list[Content]:
    """Return the elements of a ``java.util`` list (``ArrayList``, an unmodifiable view of one, or ``List.of``).

    Raises
    ------
    FormatError
        If it is another kind of list.
    """
    seen: set[int] = set()
    while isinstance(token, JObject) and token.desc.name.startswith("java.util.Collections$Unmodifiable"):
        if id(token) in seen:
            raise FormatError("a list that is a view of itself")
        seen.add(id(token))
        token = token.get("c")
    if isinstance(token, JObject) and token.desc.name in ("java.util.ArrayList", "java.util.CollSer") and token.parts:
        extra = token.parts[-1].extra or []
        return [item for item in extra if not isinstance(item, Block)]
    kind = token.desc.name if isinstance(token, JObject) else type(token).__name__
    raise FormatError(f"list of class {kind}", expected="an ArrayList, an unmodifiable list or List.of")


def list_names(token: bytes | Content) -> list[str]:
    """Return the strings of a list."""
    items = list_items(token)
    texts = [item.text for item in items if isinstance(item, JString)]
    if len(texts) != len(items):
        raise FormatError("names that are no text")
    return texts


# ---------------------------------------------------------------------- changes
def changed_list(token: JObject | None, values: Mapping[str, float], factory: Factory, *, doubles: bool) -> JObject:
    """Return a measurement list with other values, in the same order; new names are appended.

    Parameters
    ----------
    token
        The list; it is not changed. None for an object without measurements.
    values
        New values by name.
    factory
        Makes what is new.
    doubles
        Whether a list that is made anew holds doubles one by one, as those of annotations do.

    Raises
    ------
    FormatError
        If the list is of a kind that is not known.
    """
    if token is None:
        if doubles:
            return factory.default_list(values)
        with np.errstate(over="ignore"):  # too large for float32: infinite, as in Java
            raw = np.asarray(list(values.values()), dtype=">f4").tobytes()
        return factory.number_list(tuple(values), raw)
    kind = token.desc.name.removeprefix(LISTS)
    if kind == "DefaultMeasurementList":
        return _changed_items(token, values, factory)
    all_values = {**read_measurements(token), **values}
    kind = kind.removeprefix("NumericMeasurementList$")
    with np.errstate(over="ignore"):
        raw = np.asarray(list(all_values.values())).astype(">f4" if kind == "FloatList" else ">f8").tobytes()
    if len(all_values) > len(read_measurements(token)):
        return factory.number_list(tuple(all_values), raw, kind)
    array = token.get("values")
    if not isinstance(array, JArray):
        raise FormatError(f"{token.desc.name} without values")
    out = JObject(token.desc, [Part(list(part.values), part.extra) for part in token.parts])
    out.parts[-1].values = [JArray(array.desc, len(all_values), raw)]
    return out


def _changed_items(token: JObject, values: Mapping[str, float], factory: Factory) -> JObject:
    items = list_items(token.get("list"))
    rest = dict(values)
    out: list[Content] = []
    for item in items:
        name = item.get("name") if isinstance(item, JObject) else None
        text = name.text if isinstance(name, JString) else None
        out.append(item if text not in rest else factory.measurement(text, rest.pop(text)))
    return factory.measurement_list([*out, *(factory.measurement(name, value) for name, value in rest.items())])
