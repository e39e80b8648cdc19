"""``qupath-ext mil weak``: tumour maps from labels of slides."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from qupath_ext.cli.common import backend_option, device_option, mpp_option, open_for_command, wanted_entries
from qupath_ext.cli.labelsource import label_options

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pyhisto.features.bags import Bag
    from qupath_ext.cli.progress import StageProgress
    from qupath_ext.project import Project

__all__ = ["weak"]

json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of text.")
region_option = click.option(
    "--region",
    default="tissue",
    show_default=True,
    metavar="CLASS|tissue|image",
    help="Where tiles of slides are taken from: annotations of a class, the tissue, or everywhere.",
)


@click.group()
def weak() -> None:
    """Learn from labels of slides which of their tiles are tumour, and draw it in QuPath.

    Of each positive slide the alpha share of tiles with the highest probabilities counts as positive and the beta share
    with the lowest as negative; of negative slides all tiles are negative (Lerousseau et al. 2020).
    """


@weak.command()
@click.argument("source", metavar="FEATURES|PROJECT", type=click.Path(path_type=Path))
@label_options
@click.option("--output", type=click.Path(path_type=Path), required=True, help="Folder for the models and the table.")
@click.option("--alpha", type=float, default=0.2, show_default=True, help="Least positive share of a positive slide.")
@click.option("--beta", type=float, default=0.2, show_default=True, help="Least negative share of a positive slide.")
@click.option("--all-pairs", is_flag=True, help="Train all fifteen pairs in steps of 0.2 instead.")
@click.option(
    "--network",
    default=None,
    help="mlp for features (default); for slides cnn (default) or an encoder such as resnet34-imagenet, densenet121.",
)
@click.option("--hidden", type=int, default=256, show_default=True, help="Width of mlp's hidden layer; 0: linear.")
@click.option("--dropout", type=float, default=0.25, show_default=True, help="Share of that layer that is dropped.")
@click.option(
    "--encoder-weights", default="random", show_default=True, help="File or imagenet, where an encoder begins."
)
@click.option("--tile-size", type=int, default=224, show_default=True, help="Side of the tiles of slides, px.")
@click.option("--tile-mpp", type=float, default=0.5, show_default=True, help="µm/px of the tiles of slides.")
@click.option("--min-tissue", type=float, default=0.5, show_default=True, help="Least share of a tile in the region.")
@region_option
@mpp_option
@click.option("--truth", metavar="CLASS", help="Class of annotations of the project that are truly positive.")
@click.option("--validation", type=float, default=0.2, show_default=True, help="Share of patients to stop by; 0: none.")
@click.option("--test", type=float, default=0.2, show_default=True, help="Share of patients for the table; 0: none.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of all that is drawn.")
@click.option("--epochs", type=int, default=100, show_default=True, help="Most passes over the slides.")
@click.option("--patience", type=int, default=20, show_default=True, help="Epochs without a better validation.")
@click.option("--learning-rate", type=float, default=1e-3, show_default=True, help="Of Adam.")
@click.option("--weight-decay", type=float, default=1e-4, show_default=True, help="Of Adam.")
@click.option("--batch-size", type=int, default=4, show_default=True, help="Slides of a step.")
@click.option("--instances", type=int, default=150, show_default=True, help="Most tiles of a slide in a step.")
@click.option(
    "--class-weights",
    type=click.Choice(["balanced", "none"]),
    default="balanced",
    show_default=True,
    help="Whether the rarer kind of slide counts as much as the other.",
)
@click.option("--memory-mb", type=int, default=1024, show_default=True, help="Features or tiles kept in memory, MB.")
@click.option("--threads", type=int, default=2, show_default=True, help="That read ahead.")
@device_option
@backend_option
@json_option
def train(source: Path, output: Path, as_json: bool, **options: Any) -> None:
    """Train a classifier of tiles on labels of slides, for one pair of alpha and beta or all fifteen.

    Tiles come from a folder of feature files, as "qupath-ext features" makes them, or straight from the slides of a
    QuPath project. Of the two classes of the label the second is looked for: --label tumour=no,yes.

    Writes for each pair OUTPUT/alpha-<a>-beta-<b>/model, its curve and predictions, and over all of them pairs.csv and
    pairs.png. Run it again after it was interrupted, and it goes on.
    """
    from pyhisto.features.bags import list_bags
    from pyhisto.mil.weak.rule import FIFTEEN_PAIRS, ProxyRule
    from qupath_ext.cli.progress import StageProgress
    from qupath_ext.workflows.mil import LabelSource
    from qupath_ext.workflows.weak import Truth, WeakTraining, train_pairs

    rules = FIFTEEN_PAIRS if options["all_pairs"] else (ProxyRule(options["alpha"], options["beta"]),)
    from_slides = (source / "project.qpproj").is_file() or source.suffix == ".qpproj"
    settings = _settings(options, from_slides)
    where = source if from_slides else options["project"]
    project = None if where is None else open_for_command(where, options["backend"])
    table = options["labels"]
    labels = LabelSource(table, None if table else project, options["patient_key"], options["wanted"])
    notes: list[str] = []
    with StageProgress(enabled=sys.stderr.isatty() or not as_json, unit="epoch") as progress:
        bags: Sequence[Bag] = (
            list_bags(source) if not from_slides else _tiles(_needed(project), options, progress, notes)
        )
        truth = None if options["truth"] is None else Truth(_needed(project), options["truth"])
        wanted = WeakTraining(
            bags, labels, output, rules, settings, options["validation"], options["test"], truth, options["device"]
        )
        rows = []
        for row in train_pairs(wanted, say=notes.append, progress=progress):
            rows.append(row)
            if not as_json:
                _print_notes(notes)
                click.echo(_described(row))
    if as_json:
        click.echo(json.dumps({"output": str(output), "pairs": rows, "notes": notes}, indent=2, ensure_ascii=False))
        return
    click.echo(f"models and table: {output}")


def _settings(options: dict[str, Any], from_slides: bool) -> Any:
    from pyhisto.mil.weak.settings import MLP, NetworkSettings, WeakSettings

    name = options["network"] or ("cnn" if from_slides else MLP)
    network = NetworkSettings(name, options["hidden"], options["dropout"], encoder_weights=options["encoder_weights"])
    same = ("epochs", "patience", "learning_rate", "weight_decay", "batch_size", "instances", "class_weights", "seed")
    return WeakSettings(network, **{name: options[name] for name in (*same, "memory_mb", "threads")})


def _tiles(project: Project, options: dict[str, Any], progress: StageProgress, notes: list[str]) -> Sequence[Bag]:
    """Return the tiles of a project's slides, and note which slides have none."""
    from pyhisto.mil.weak.tiles import TileSettings
    from qupath_ext.workflows.weaktiles import project_tiles

    found, more = project_tiles(
        project.entries,
        TileSettings(options["tile_size"], options["tile_mpp"], options["min_tissue"]),
        region=options["region"],
        mpp=options["mpp"],
        patient_key=options["patient_key"],
        progress=progress,
    )
    notes += more
    return found


def _needed(project: Project | None) -> Project:
    """Return the project, which the true areas need."""
    from pyhisto.errors import ConfigError

    if project is None:
        raise ConfigError("--truth without a project", expected="--project, or a project in place of features")
    return project


@weak.command()
@click.argument("target", metavar="PROJECT", type=click.Path(path_type=Path))
@click.option("--model", type=click.Path(path_type=Path), required=True, help="Folder that 'mil weak train' wrote.")
@click.option(
    "--features", type=click.Path(path_type=Path), help="Feature files, for a model that was trained on such."
)
@click.option("--image", "images", multiple=True, help="Name or id of an image of the project; may be repeated.")
@click.option("--class", "classification", help="Class of the annotations; default: the one that the model looks for.")
@click.option("--threshold", type=float, default=0.5, show_default=True, help="Least probability of a tile in an area.")
@click.option("--min-area-um2", type=float, default=0.0, show_default=True, help="Smaller areas are left out.")
@click.option("--tiles", is_flag=True, help="Write the tiles with their probabilities as well.")
@region_option
@mpp_option
@device_option
@backend_option
@click.option("--dry-run", is_flag=True, help="Say what would be written, and write nothing.")
@json_option
def predict(target: Path, model: Path, as_json: bool, **options: Any) -> None:
    """Draw what a classifier of tiles finds on the images of a QuPath project as annotations.

    The slide's probability becomes metadata of the image. A second run replaces what the first wrote and nobody
    touched. Close the project in QuPath first.
    """
    from pyhisto.features.bags import list_bags
    from pyhisto.mil.weak.bundle import load_weak_bundle
    from qupath_ext.cli.progress import StageProgress
    from qupath_ext.workflows.weakpredict import MappedSlide, MapSettings, map_slides

    same = ("classification", "threshold", "min_area_um2", "tiles", "region", "mpp")
    settings = MapSettings(**{name: options[name] for name in same})
    bundle = load_weak_bundle(model, device=options["device"])
    bags = None if options["features"] is None else list_bags(options["features"])
    project = open_for_command(target, options["backend"])
    entries = wanted_entries(project, options["images"])
    results, failures = [], []
    with StageProgress(enabled=sys.stderr.isatty() or not as_json, unit="tile") as progress:
        for outcome in map_slides(
            project, entries, bundle, settings, bags=bags, dry_run=options["dry_run"], progress=progress
        ):
            if isinstance(outcome, MappedSlide):
                results.append(outcome)
                if not as_json:
                    _print_slide(outcome, bundle.spec.target)
            else:
                failures.append(outcome)
                click.echo(f"{outcome[0].name}: failed: {outcome[1]}", err=True)
    if as_json:
        document = {
            "project": str(project.path),
            "model": {"name": bundle.path.name, "sha256": bundle.sha256},
            "images": [result.summary() for result in results],
            "failed": [{"image": entry.name, "error": str(error)} for entry, error in failures],
        }
        click.echo(json.dumps(document, indent=2, ensure_ascii=False))
    else:
        click.echo(f"open in QuPath: {project.path}")
    if failures:
        sys.exit(1)


def _print_slide(result: Any, target: str) -> None:
    click.echo(
        f"{result.name}: {target} {result.probability:.3f}, {result.areas} areas with {result.share:.1%} of "
        f"{result.tiles} tiles"
    )
    if result.replaced or result.kept:
        click.echo(f"  {result.replaced} objects of earlier runs replaced, {result.kept} kept as a person left them")


def _print_notes(notes: list[str]) -> None:
    """Print notes and forget them."""
    for note in notes:
        click.echo(f"note: {note}")
    notes.clear()


def _described(row: dict[str, Any]) -> str:
    named = {"slide AUROC": "slide_auroc", "pixel AUC": "pixel_auc", "recall": "recall", "precision": "precision"}
    figures = [f"{name} {row[key]:.3f}" for name, key in named.items() if row[key] is not None]
    on = f"{row['slides']} {row['judged_on']} slides"
    return f"alpha {row['alpha']:g}, beta {row['beta']:g}: {', '.join(figures) or 'no figures'} on {on}"
