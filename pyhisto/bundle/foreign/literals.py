"""What a MONAI configuration says in plain values: references are followed, expressions are refused, nothing is run."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

from pyhisto.errors import BundleError

__all__ = ["Config", "literal", "read_json"]

Config: TypeAlias = Mapping[str, Any]

REFERENCE = re.compile(r"@\w+(?:(?:::|#)\w+)*")
"""A reference to another entry, such as ``@network_def`` or ``@inferer::roi_size`` (``#`` in older bundles)."""


def read_json(path: Path) -> dict[str, Any]:
    """Return a JSON file that holds an object.

    Raises
    ------
    BundleError
        If it is missing or does not.
    """
    try:
        found = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise BundleError(f"{path} cannot be read ({error})", remedy="copy the model folder again") from error
    if not isinstance(found, dict):
        raise BundleError(f"{path} holds a {type(found).__name__}", expected="a JSON object")
    return found


def literal(config: Config, value: Any, *, where: str) -> Any:
    """Return a value of a configuration with its references replaced by what they refer to.

    Parameters
    ----------
    config
        The whole configuration.
    value
        The part that is wanted.
    where
        Its name, for errors.

    Raises
    ------
    BundleError
        If an expression (``$``) or a macro (``%``) is met, or a reference leads nowhere or in a circle.
    """
    return _literal(config, value, where, ())


def _literal(config: Config, value: Any, where: str, followed: tuple[str, ...]) -> Any:
    if isinstance(value, list):
        return [_literal(config, item, where, followed) for item in value]
    if isinstance(value, Mapping):
        return {key: _literal(config, item, where, followed) for key, item in value.items()}
    if not isinstance(value, str):
        return value
    if value.startswith(("$", "%")):
        raise BundleError(
            f"{where} of the MONAI configuration holds the expression {value!r}, which is not executed",
            expected="plain values there",
        )
    if not REFERENCE.fullmatch(value):
        return value
    if value in followed:
        raise BundleError(f"{where} of the MONAI configuration refers to itself by {value}")
    target: Any = config
    for key in re.split("::|#", value[1:]):
        try:
            target = target[int(key)] if isinstance(target, list) else target[key]
        except (KeyError, IndexError, ValueError, TypeError) as error:
            raise BundleError(f"{where} of the MONAI configuration refers to {value}, which is not there") from error
    return _literal(config, target, where, (*followed, value))
