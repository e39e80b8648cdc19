"""What several commands share: opening a project and choosing its images."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from qupath_ext.project import BACKENDS, open_project

if TYPE_CHECKING:
    from qupath_ext.entry import ImageEntry
    from qupath_ext.project import Project
    from qupath_ext.workflows.prediction import Prediction

__all__ = [
    "backend_option",
    "device_option",
    "mpp_option",
    "open_for_command",
    "prediction_options",
    "prediction_settings",
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
    "--device", metavar="cpu|cuda|cuda:N|xpu|mps", default="cpu", show_default=True, help="Where networks run."
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


def prediction_options(command: F) -> F:
    """Add the options that say how networks run over slides, and what is kept of what they say."""
    options = (
        click.option(
            "--device",
            metavar="cpu|cuda|cuda:N|xpu|mps[,...]",
            default="cpu",
            show_default=True,
            help="Where networks run; several with commas, each of which takes images of its own.",
        ),
        click.option(
            "--precision",
            type=click.Choice(["auto", "float32", "bfloat16", "float16"]),
            default="auto",
            show_default=True,
            help="Of the networks; auto: the fastest that gives what the model gave when it was saved.",
        ),
        click.option(
            "--engine",
            type=click.Choice(["auto", "torch", "openvino"]),
            default="auto",
            show_default=True,
            help="What runs the networks; auto: the fastest that is installed and agrees.",
        ),
        click.option("--flips", is_flag=True, help="Mean over each tile and its three mirror images; 4 times slower."),
        click.option("--tile-size", type=click.IntRange(min=1), help="Side of what a network sees at once, its px."),
        click.option("--overlap", type=click.IntRange(min=0), help="How far tiles reach into each other, px."),
        click.option("--batch-size", type=click.IntRange(min=1), help="Tiles at once; default: what fits."),
        click.option(
            "--strict", is_flag=True, help="Write nothing to an image of which a network says what makes no sense."
        ),
        click.option(
            "--uncertainty",
            is_flag=True,
            help="Keep low-resolution maps of probabilities, entropy and (with --flips) variance with the run.",
        ),
        click.option(
            "--probability-maps",
            type=click.Choice(["none", "ome.tif", "tiles"]),
            default="none",
            show_default=True,
            help="Keep the maps as OME-TIFF with the run, or add them to the image as tiles with measurements.",
        ),
        click.option(
            "--map-um",
            type=click.FloatRange(0.5, 1000),
            default=8.0,
            show_default=True,
            help="Side of a map pixel, µm.",
        ),
    )
    for option in reversed(options):
        command = option(command)
    return command


def prediction_settings(options: Mapping[str, Any]) -> Prediction:
    """Return what the options of :func:`prediction_options` ask for."""
    from pyhisto.inference.settings import InferenceSettings
    from qupath_ext.workflows.prediction import Prediction

    inference = InferenceSettings(
        tile_size=options["tile_size"],
        overlap=options["overlap"],
        flips=options["flips"],
        batch_size=options["batch_size"],
    )
    kept = ("precision", "engine", "strict", "uncertainty", "probability_maps", "map_um")
    return Prediction(inference, **{name: options[name] for name in kept})


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
