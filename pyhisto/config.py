"""Settings: frozen dataclasses filled from TOML or command-line options; an unknown key is an error."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

from pyhisto.errors import ConfigError

__all__ = ["from_mapping"]

T = TypeVar("T")


def from_mapping(cls: type[T], data: Mapping[str, Any], where: str) -> T:
    """Fill a settings dataclass from a mapping.

    Parameters
    ----------
    cls
        A dataclass; fields that are dataclasses themselves are filled from nested mappings.
    data
        Names to values; lists become tuples, whole numbers are taken for floats.
    where
        What to call the mapping in a message, such as ``"study.toml [tumour]"``.

    Raises
    ------
    ConfigError
        If a key is unknown, a value is missing or has another type.

    Examples
    --------
    >>> @dataclasses.dataclass(frozen=True)
    ... class Size:
    ...     width: float = 1.0
    >>> from_mapping(Size, {"width": 3}, "size")
    Size(width=3.0)
    """
    types_of = typing.get_type_hints(cls)
    names = [f.name for f in dataclasses.fields(cls)]  # type: ignore[arg-type]
    unknown = sorted(set(data) - set(names))
    if unknown:
        raise ConfigError(f"{where}: unknown key {unknown[0]!r}", expected=f"one of {', '.join(names)}")
    values = {key: _convert(value, types_of[key], f"{where}: {key}") for key, value in data.items()}
    try:
        return cls(**values)
    except TypeError as error:
        raise ConfigError(f"{where}: {error}") from error
    except ConfigError as error:
        raise ConfigError(f"{where}: {error.found}", expected=error.expected, remedy=error.remedy) from error


def _convert(value: Any, wanted: Any, where: str) -> Any:
    """Return `value` as the annotated type `wanted`, or raise ConfigError."""
    origin, arguments = typing.get_origin(wanted), typing.get_args(wanted)
    if origin in {types.UnionType, typing.Union}:
        return _convert_to_one_of(value, arguments, where)
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise ConfigError(f"{where} is {value!r}", expected="a list")
        inner = [arguments[0]] * len(value) if arguments[-1] is Ellipsis else list(arguments)
        if len(inner) != len(value):
            raise ConfigError(f"{where} is {value!r}", expected=f"a list of {len(inner)}")
        return tuple(_convert(item, kind, where) for item, kind in zip(value, inner, strict=True))
    if origin is typing.Literal:
        if value not in arguments:
            raise ConfigError(f"{where} is {value!r}", expected=f"one of {', '.join(map(repr, arguments))}")
        return value
    if isinstance(wanted, type) and dataclasses.is_dataclass(wanted) and isinstance(value, Mapping):
        return from_mapping(wanted, value, where)
    if wanted is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(wanted, type) and (not isinstance(value, wanted) or (wanted is int and isinstance(value, bool))):
        raise ConfigError(f"{where} is {value!r}", expected=f"a value of the type {wanted.__name__}")
    return value


def _convert_to_one_of(value: Any, options: tuple[Any, ...], where: str) -> Any:
    """Return `value` as the first of the types that takes it; the message is that of the first."""
    if value is None and type(None) in options:
        return None
    kinds = [option for option in options if option is not type(None)]
    failures = []
    for kind in kinds:
        try:
            return _convert(value, kind, where)
        except ConfigError as error:
            failures.append(error)
    raise failures[0]
