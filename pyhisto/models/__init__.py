"""Networks by name. Importing this package loads no torch; :func:`build_model` does.

How to add one: write a builder function in a module beside this file and enter it into :data:`MODELS`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from pyhisto.errors import ConfigError

if TYPE_CHECKING:
    from torch import nn

__all__ = ["MODELS", "build_model"]

MODELS = {
    "unet-densenet121": "pyhisto.models.unet:build_unet_densenet121",
    "unet-resnet34": "pyhisto.models.unet:build_unet_resnet34",
}
"""Name of a network to ``module:function`` that builds it."""


def build_model(name: str, **options: Any) -> nn.Module:
    """Build a network by its registered name.

    Parameters
    ----------
    name
        One of :data:`MODELS`.
    **options
        Keyword arguments of the builder function.

    Raises
    ------
    ConfigError
        If the name is not registered or the builder does not take an option or its value.
    """
    if name not in MODELS:
        raise ConfigError(f"unknown model {name!r}", expected=f"one of {', '.join(sorted(MODELS))}")
    module, function = MODELS[name].split(":")
    build = getattr(importlib.import_module(module), function)
    try:
        return build(**options)  # type: ignore[no-any-return]
    except (TypeError, ValueError) as error:
        raise ConfigError(f"model {name!r} cannot be built with {options}: {error}") from error
