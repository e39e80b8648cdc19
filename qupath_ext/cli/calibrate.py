"""``qupath-ext calibrate``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from qupath_ext.cli.common import backend_option, device_option, open_for_command, stains_option, wanted_entries

__all__ = ["calibrate"]


@click.command()
@click.argument("model", metavar="BUNDLE", type=click.Path(path_type=Path))
@click.argument("target", metavar="PROJECT", type=click.Path(path_type=Path))
@click.option("--output", "-o", type=click.Path(path_type=Path), required=True, help="Folder of the new bundle.")
@click.option("--image", "images", multiple=True, help="Name or id of an image with labelled cells; may be repeated.")
@click.option(
    "--training-class",
    default="Training",
    show_default=True,
    help="Class of rectangles in which every cell is labelled.",
)
@stains_option
@device_option
@backend_option
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of text.")
def calibrate(model: Path, target: Path, output: Path, as_json: bool, **options: Any) -> None:
    """Fit a cell model to the slides of another laboratory, without training.

    A few dozen cells in the classes of the model, marked by points or outlines, best all cells inside a few rectangles
    of the class Training, decide about detection threshold, DAB cut and size of nuclei. The project is not changed.
    """
    from pyhisto.bundle.files import load_bundle, resave_bundle
    from pyhisto.errors import BundleError
    from qupath_ext.workflows import calibrate as workflow

    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise BundleError(f"{output} exists already", remedy="choose another folder or remove it")
    bundle = load_bundle(model, kind="cell_detection", device=options["device"])
    project = open_for_command(target, options["backend"])
    entries = wanted_entries(project, options["images"])
    result = workflow.calibrate(entries, bundle, training=options["training_class"], stains=options["stains"])
    about = {
        "calibrated on": f"{sum(result.cells.values())} cells of {project.path.parent.name}",
        "calibrated F1": f"{result.before:.3f} before, {result.after:.3f} after (cross-validated)",
    }
    resave_bundle(bundle, output, result.spec, about)
    if as_json:
        document = {
            "bundle": str(output),
            "cells": result.cells,
            "f1_before": round(result.before, 4),
            "f1_after": round(result.after, 4),
            "chosen": result.chosen,
            "notes": list(result.notes),
        }
        click.echo(json.dumps(document, indent=2, ensure_ascii=False))
        return
    click.echo(f"labelled cells: {', '.join(f'{n} {name}' for name, n in result.cells.items())}")
    click.echo(f"mean F1 of the classes: {result.before:.3f} before, {result.after:.3f} after (cross-validated)")
    click.echo(", ".join(f"{name} {value}" for name, value in result.chosen.items() if value is not None))
    for note in result.notes:
        click.echo(f"note: {note}")
    click.echo(f"new bundle: {output}")
