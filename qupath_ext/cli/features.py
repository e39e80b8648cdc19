"""``qupath-ext features``."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click

from qupath_ext.cli.common import backend_option, mpp_option, open_for_command, wanted_entries

__all__ = ["features"]


@click.command()
@click.argument("target", metavar="PROJECT", type=click.Path(path_type=Path))
@click.option(
    "--output",
    type=click.Path(path_type=Path, file_okay=False),
    required=True,
    help="Folder for the files, one an image.",
)
@click.option(
    "--encoder",
    required=True,
    metavar="NAME|BUNDLE|FILE.pt",
    help="resnet50-block3, densenet121, timm:<name>, pixels, a bundle's folder, or TorchScript with a .json beside it.",
)
@click.option(
    "--encoder-weights",
    metavar="FILE|random",
    default=None,
    help="State dict for an encoder by name; random gives features that mean nothing; for timm also pretrained.",
)
@click.option("--encoder-sha256", default=None, help="Refuse weights that have another sha256.")
@click.option("--tile-mpp", type=float, default=None, help="µm/px of the tiles; default: as the encoder says, or 0.5.")
@click.option(
    "--tile-size", type=int, default=None, help="Side of the tiles, px; default: as the encoder says, or 256."
)
@click.option("--image", "images", multiple=True, help="Name or id of an image of the project; may be repeated.")
@click.option(
    "--region",
    default="tissue",
    show_default=True,
    metavar="CLASS|tissue|image",
    help="Where tiles are taken from: annotations of a class, the tissue, or everywhere.",
)
@click.option(
    "--min-tissue",
    type=click.FloatRange(0, 1, min_open=True),
    default=0.5,
    show_default=True,
    help="Least share of a tile that lies there.",
)
@click.option(
    "--normalise",
    type=click.Choice(["none", "macenko"]),
    default="none",
    show_default=True,
    help="Give tiles the colours of a reference H&E slide first.",
)
@click.option("--half", is_flag=True, help="Store float16: half of the space.")
@click.option("--patient-key", default="Patient", show_default=True, help="Entry metadata that names the patient.")
@mpp_option
@click.option(
    "--device",
    metavar="cpu|cuda|cuda:N|xpu|mps[,...]",
    default="cpu",
    show_default=True,
    help="Where the encoder runs; several with commas, each of which takes images of its own.",
)
@click.option("--batch-size", type=click.IntRange(min=1), help="Tiles at once; default: what suits the device.")
@backend_option
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of text.")
def features(target: Path, output: Path, encoder: str, as_json: bool, **options: Any) -> None:
    """Encode the tissue tiles of the images of a QuPath project, one HDF5 file an image.

    The files are read by CLAM and TRIDENT as well. Those that are there already are not made again, and an image that
    fails does not stop the others. Nothing is written to the project.
    """
    from pyhisto.device import devices, has_openvino
    from pyhisto.features.encoders import EncoderOptions, load_encoder
    from pyhisto.features.extract import ExtractSettings
    from qupath_ext.cli.progress import StageProgress
    from qupath_ext.workflows.features import Extracted, FeatureSettings, extract_images

    settings = FeatureSettings(
        options["region"],
        options["normalise"],
        options["mpp"],
        options["patient_key"],
        ExtractSettings(options["min_tissue"], options["half"], options["batch_size"]),
    )
    wanted = EncoderOptions(
        options["encoder_weights"], options["encoder_sha256"], options["tile_mpp"], options["tile_size"]
    )
    project = open_for_command(target, options["backend"])
    entries = wanted_entries(project, options["images"])
    encoders = [load_encoder(encoder, wanted, device=device) for device in devices(options["device"])]
    notes = [encoders[0].compile()] if encoders[0].device == "cpu" and has_openvino() else []
    for note in filter(None, notes):
        click.echo(f"note: {note}", err=True)
    results, failures = [], []
    with StageProgress(enabled=sys.stderr.isatty() or not as_json, unit="tile") as progress:
        for outcome in extract_images(project, entries, encoders, output, settings, progress=progress):
            if isinstance(outcome, Extracted):
                results.append(outcome)
                if not as_json:
                    how = "there already" if outcome.existed else f"{outcome.seconds:.1f} s"
                    click.echo(f"{outcome.name}: {outcome.bag.instances} tiles, {how}: {outcome.bag.path}")
            else:
                failures.append(outcome)
                click.echo(f"{outcome[0].name}: failed: {outcome[1]}", err=True)
    if as_json:
        spec = encoders[0].spec
        document = {
            "output": str(output),
            "encoder": {
                "name": spec.name,
                "sha256": spec.sha256,
                "features": encoders[0].width,
                "engine": encoders[0].engine,
            },
            "images": [result.summary() for result in results],
            "failed": [{"image": entry.name, "error": str(error)} for entry, error in failures],
        }
        click.echo(json.dumps(document, indent=2, ensure_ascii=False))
    if failures:
        sys.exit(1)
