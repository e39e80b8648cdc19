"""The options that say where labels of slides come from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from qupath_ext.cli.common import open_for_command

if TYPE_CHECKING:
    from qupath_ext.workflows.mil import LabelSource

__all__ = ["label_options", "label_source"]

F = TypeVar("F", bound=Callable[..., Any])


def label_options(command: F) -> F:
    """Add the options that say where labels come from."""
    options = (
        click.option(
            "--labels",
            type=click.Path(path_type=Path),
            help="CSV file with the columns slide, patient (if known) and one for each label.",
        ),
        click.option(
            "--project", type=click.Path(path_type=Path), help="QuPath project; metadata of its images are the labels."
        ),
        click.option(
            "--label",
            "wanted",
            multiple=True,
            metavar="NAME[=A+B,C]",
            help="Column or metadata to learn, with its classes where not each value is one; may be repeated.",
        ),
        click.option(
            "--patient-key", default="Patient", show_default=True, help="Metadata of the project that name the patient."
        ),
    )
    for option in reversed(options):
        command = option(command)
    return command


def label_source(options: Mapping[str, Any]) -> LabelSource:
    """Return what the options of :func:`label_options` and ``--backend`` ask for."""
    from qupath_ext.workflows.mil import LabelSource

    project = None if options["project"] is None else open_for_command(options["project"], options["backend"])
    return LabelSource(options["labels"], project, options["patient_key"], options["wanted"])
