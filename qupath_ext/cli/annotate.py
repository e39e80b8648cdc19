"""``qupath-ext annotate``."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click

from qupath_ext.cli.common import (
    backend_option,
    mpp_option,
    open_for_command,
    prediction_options,
    prediction_settings,
    stains_option,
    view_options,
    wanted_entries,
)

__all__ = ["annotate"]


@click.command()
@click.argument("target", metavar="PROJECT", type=click.Path(path_type=Path))
@click.option(
    "--model",
    type=click.Path(path_type=Path),
    required=True,
    help="Model folder: a bundle of this program, a MONAI bundle, or a WSInfer model.",
)
@click.option(
    "--model-mpp",
    type=click.FloatRange(0.02, 100),
    default=None,
    help="µm/px of the network's input, for a MONAI bundle, which does not say it.",
)
@click.option(
    "--model-classes",
    default=None,
    metavar="NAME,...",
    help="Names of the classes, for a MONAI bundle without good ones.",
)
@click.option("--image", "images", multiple=True, help="Name or id of an image of the project; may be repeated.")
@click.option(
    "--region",
    default="auto",
    show_default=True,
    metavar="CLASS|auto|tissue|image",
    help="Where to look: inside annotations of a class, in the tissue (auto), or everywhere.",
)
@mpp_option
@stains_option
@click.option(
    "--cell-expansion-um",
    type=click.FloatRange(0, 50),
    default=5.0,
    show_default=True,
    help="Growth of a nucleus to its cell, µm; 0 gives nuclei only.",
)
@view_options
@prediction_options
@backend_option
@click.option("--dry-run", is_flag=True, help="Say what would be written, and write nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of text.")
def annotate(target: Path, model: Path, as_json: bool, **options: Any) -> None:
    """Run a trained model over the images of a QuPath project.

    A tissue model writes annotations, a cell model cells with measurements, a classifier of tiles tiles with the
    probability of each class, in the classes that it was trained for.
    Nothing that a person drew is changed. Close the image in QuPath first, and use File > Reload data afterwards.
    """
    from pyhisto.bundle.anymodel import load_model
    from pyhisto.device import devices
    from pyhisto.nuclei.adapt import View
    from qupath_ext.cli.progress import StageProgress
    from qupath_ext.workflows.annotate import Annotated, AnnotateSettings, annotate_images

    view = View(options["nucleus_size_um"], options["stain_normalisation"], options["classify"])
    settings = AnnotateSettings(
        region=options["region"],
        stains=options["stains"],
        view=view,
        cell_expansion_um=options["cell_expansion_um"],
        mpp=options["mpp"],
        prediction=prediction_settings(options),
    )
    names = [name.strip() for name in (options["model_classes"] or "").split(",") if name.strip()]
    bundle, *others = [
        load_model(
            model,
            device=device,
            precision=options["precision"],
            engine=options["engine"],
            mpp=options["model_mpp"],
            class_names=names,
        )
        for device in devices(options["device"])
    ]
    project = open_for_command(target, options["backend"])
    entries = wanted_entries(project, options["images"])
    results, failures = [], []
    with StageProgress(enabled=sys.stderr.isatty() or not as_json) as progress:
        for outcome in annotate_images(
            project, entries, bundle, settings, others=others, dry_run=options["dry_run"], progress=progress
        ):
            if isinstance(outcome, Annotated):
                results.append(outcome)
                if not as_json:
                    _print(outcome)
            else:
                failures.append(outcome)
                click.echo(f"{outcome[0].name}: failed: {outcome[1]}", err=True)
    if as_json:
        document = {
            "project": str(project.path),
            "model": {"name": bundle.path.name, "kind": bundle.spec.kind, "sha256": bundle.sha256},
            "images": [result.summary() for result in results],
            "failed": [{"image": entry.name, "error": str(error)} for entry, error in failures],
        }
        click.echo(json.dumps(document, indent=2, ensure_ascii=False))
    else:
        click.echo(f"open in QuPath: {project.path}")
    if failures:
        sys.exit(1)


def _print(result: Any) -> None:
    found = ", ".join(f"{n} {name}" for name, n in result.counts.items()) or "nothing"
    click.echo(f"{result.name}: {found}, in {result.region_area_mm2:.3f} mm²")
    if result.replaced or result.kept:
        click.echo(f"  {result.replaced} objects of earlier runs replaced, {result.kept} kept as a person left them")
    for note in result.notes:
        click.echo(f"  note: {note}")
    for path in result.maps:
        click.echo(f"  {path}, in the folder of the run")
