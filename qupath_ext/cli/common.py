"""What several commands share: opening a project and choosing its images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from qupath_ext.project import BACKENDS, open_project

if TYPE_CHECKING:
    from qupath_ext.entry import ImageEntry
    from qupath_ext.project import Project

__all__ = [
    "backend_option",
    "device_option",
    "mpp_option",
    "open_for_command",
    "stains_option",
    "view_options",
    "wanted_entries",
]

F = TypeVar("F", bound=Callable[..., Any])


backend_option = click.option(
    "--backend",
    type=click.Choice(BACKENDS),
    default="auto",
    show_default=True,
    help="QuPath's own classes (paquo), no Java (native), or paquo where QuPath is found (auto).",
)
device_option = click.option(
    "--device", type=click.Choice(["cpu", "cuda", "mps"]), default="cpu", show_default=True, help="Where networks run."
)
mpp_option = click.option(
    "--mpp",
    type=click.FloatRange(0.02, 20),
    default=None,
    help="Pixel size in µm, where the slide has none or a wrong one.",
)
stains_option = click.option(
    "--stains",
    type=click.Choice(["auto", "project", "default"]),
    default="auto",
    show_default=True,
    help="Stain vectors: estimated unless adjusted in QuPath, as in the project, or QuPath's default H-DAB.",
)


def _nucleus_size(ctx: click.Context, param: click.Parameter, value: str) -> float | str:
    """Return ``auto``, ``none`` or a number of µm."""
    del ctx, param
    if value in ("auto", "none"):
        return value
    try:
        return float(value)
    except ValueError as error:
        raise click.BadParameter(f"{value!r} is not auto, none or a number of µm") from error


def view_options(command: F) -> F:
    """Add the options that say how a network sees slides of another laboratory."""
    options = (
        click.option(
            "--nucleus-size-um",
            callback=_nucleus_size,
            default="auto",
            metavar="auto|none|µm",
            show_default=True,
            help="Median nucleus diameter of the slides, to which networks are adapted; auto: where clearly another.",
        ),
        click.option(
            "--stain-normalisation",
            type=click.Choice(["auto", "none", "macenko"]),
            default="auto",
            show_default=True,
            help="Give networks the stain colours they were trained on; auto: where they are clearly others.",
        ),
        click.option(
            "--classify",
            type=click.Choice(["auto", "network", "dab"]),
            default="auto",
            show_default=True,
            help="Positive or negative by the network or by the DAB of the nucleus; auto: DAB if calibrated.",
        ),
    )
    for option in reversed(options):
        command = option(command)
    return command


def open_for_command(path: Path, backend: str) -> Project:
    """Open a project and say on stderr what reads and writes it.

    Raises
    ------
    ProjectError
        If it cannot be opened.
    """
    project = open_project(path, backend=backend)
    click.echo(f"project backend: {project.backend_version}", err=True)
    return project


def wanted_entries(project: Project, images: Sequence[str]) -> list[ImageEntry]:
    """Return the images that were named, each once; all if none was.

    Raises
    ------
    EntryNotFoundError
        If the project has no such image.
    """
    return list(dict.fromkeys(project.entry(name) for name in images)) or project.entries
