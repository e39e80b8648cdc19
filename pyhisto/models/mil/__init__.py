"""Multiple-instance heads by name: bags of tile features to slide labels. Importing this package loads no torch.

How to add one: write a builder function ``(in_features, classes, settings) -> MilHead`` in a module beside this file
and enter it into :data:`HEADS`, with the settings it takes.
"""

from __future__ import annotations

import dataclasses
import importlib
from typing import TYPE_CHECKING, Any

from pyhisto.config import from_mapping
from pyhisto.errors import ConfigError
from pyhisto.models.mil.settings import HeadSettings, PromptSettings

if TYPE_CHECKING:
    from pyhisto.models.mil.base import MilHead

__all__ = ["HEADS", "HeadSettings", "PromptSettings", "build_head"]

_NETWORK = ("hidden", "attention", "dropout")
_CLAM = (*_NETWORK, "clustered", "bag_weight", "exclusive")

HEADS: dict[str, tuple[str, tuple[str, ...]]] = {
    "abmil": ("pyhisto.models.mil.abmil:build_abmil", _NETWORK),
    "attention": ("pyhisto.models.mil.pooling:build_attention", ("hidden", "dropout")),
    "clam-mb": ("pyhisto.models.mil.clam:build_clam_mb", _CLAM),
    "clam-sb": ("pyhisto.models.mil.clam:build_clam_sb", _CLAM),
    "dsmil": ("pyhisto.models.mil.dsmil:build_dsmil", _NETWORK),
    "max": ("pyhisto.models.mil.pooling:build_max", ("hidden", "dropout")),
    "mean": ("pyhisto.models.mil.pooling:build_mean", ("hidden", "dropout")),
    "prompt-mil": ("pyhisto.models.prompt:build_prompt_mil", (*_CLAM, "prompt")),
    "transmil": ("pyhisto.models.mil.transmil:build_transmil", ("hidden", "dropout")),
}
"""Name of a head to ``module:function`` that builds it, and the fields of :class:`HeadSettings` that it takes."""


def build_head(name: str, in_features: int, classes: int, **options: Any) -> MilHead:
    """Build a multiple-instance head by its name.

    Parameters
    ----------
    name
        One of :data:`HEADS`.
    in_features
        Numbers per instance.
    classes
        Number of bag labels that exclude each other; two for yes and no.
    **options
        Fields of :class:`HeadSettings`.

    Returns
    -------
    MilHead
        With weights drawn from torch's global generator.

    Raises
    ------
    ConfigError
        If there is no such head, or an option is unknown, out of range or nothing that this head takes.
    """
    if name not in HEADS:
        raise ConfigError(f"unknown head {name!r}", expected=f"one of {', '.join(sorted(HEADS))}")
    if in_features < 1 or classes < 2:
        raise ConfigError(
            f"a head for {in_features} features and {classes} classes",
            expected="at least one feature and two classes",
            remedy="count 'no' as a class of its own",
        )
    settings = from_mapping(HeadSettings, options, f"head {name!r}")
    location, taken = HEADS[name]
    for field in dataclasses.fields(HeadSettings):
        if field.name not in taken and getattr(settings, field.name) != getattr(HeadSettings(), field.name):
            raise ConfigError(f"head {name!r} has no setting {field.name!r}", expected=f"one of {', '.join(taken)}")
    module, function = location.split(":")
    head: MilHead = getattr(importlib.import_module(module), function)(in_features, classes, settings)
    return head
