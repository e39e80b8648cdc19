"""``qupath-ext mil``: models for slide labels."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click

from qupath_ext.cli.bagimport import import_bags_command
from qupath_ext.cli.common import backend_option, device_option, open_for_command, wanted_entries
from qupath_ext.cli.labelsource import label_options, label_source
from qupath_ext.cli.weak import weak

__all__ = ["mil"]

features_argument = click.argument("features", metavar="FEATURES", type=click.Path(path_type=Path))
json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of text.")


@click.group()
def mil() -> None:
    """Learn slide labels from bags of tile features, and show in QuPath where a model looked.

    FEATURES is a folder of feature files, as "qupath-ext features" makes them.
    """


mil.add_command(import_bags_command)
mil.add_command(weak)


@mil.command()
@features_argument
@label_options
@click.option("--output", type=click.Path(path_type=Path), required=True, help="Folder for the model and its figures.")
@click.option("--head", default="abmil", show_default=True, help="Kind of model; an unknown one lists those there are.")
@click.option(
    "--set",
    "options",
    multiple=True,
    metavar="NAME=VALUE",
    help="Setting of the head, such as hidden=512 or prompt.weights=vit.pth; may be repeated.",
)
@click.option("--folds", type=click.IntRange(min=1), default=5, show_default=True, help="1: one model, on everything.")
@click.option("--repeats", type=click.IntRange(min=1), default=1, show_default=True, help="Of the cross-validation.")
@click.option(
    "--validation",
    type=click.FloatRange(0, 0.5),
    default=0.2,
    show_default=True,
    help="Share of the training patients by which training stops; 0: do all epochs.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Of the folds, and of all else that is drawn.")
@click.option("--epochs", type=click.IntRange(min=1), default=100, show_default=True, help="Most passes over the bags.")
@click.option(
    "--patience", type=click.IntRange(min=0), default=15, show_default=True, help="Epochs without a better validation."
)
@click.option("--learning-rate", type=float, default=2e-4, show_default=True, help="Of Adam.")
@click.option("--weight-decay", type=float, default=1e-5, show_default=True, help="Of Adam.")
@click.option("--batch-size", type=click.IntRange(min=1), default=1, show_default=True, help="Bags of a step.")
@click.option(
    "--class-weights",
    type=click.Choice(["balanced", "none"]),
    default="balanced",
    show_default=True,
    help="Whether rare classes count as much as common ones.",
)
@click.option("--instances", type=click.IntRange(min=1), help="Most instances of a bag in a step; default: all.")
@click.option("--scaled/--unscaled", default=True, show_default=True, help="Give each feature mean 0 and deviation 1.")
@click.option(
    "--memory-mb", type=click.IntRange(min=0), default=1024, show_default=True, help="Features kept in memory, MB."
)
@click.option("--threads", type=click.IntRange(min=1), default=2, show_default=True, help="That read feature files.")
@click.option("--external", type=click.Path(path_type=Path), help="Folder of feature files of other patients.")
@click.option("--external-labels", type=click.Path(path_type=Path), help="CSV file with their labels.")
@device_option
@backend_option
@json_option
def train(features: Path, output: Path, as_json: bool, **options: Any) -> None:
    """Train and cross-validate a model by patient.

    Writes OUTPUT/model, OUTPUT/predictions.csv (each slide by models that never saw its patient), metrics.json and a
    learning curve for each fold. Run it again after it was interrupted, and it goes on.
    """
    from pyhisto.config import from_mapping
    from pyhisto.mil.crossval import FoldPlan
    from pyhisto.mil.settings import FitSettings
    from pyhisto.models.mil import HeadSettings
    from qupath_ext.workflows.mil import SlideTraining, described_figures, train_slides

    same = ("head", "scaled", "epochs", "patience", "learning_rate", "weight_decay", "batch_size", "class_weights")
    more = ("instances", "seed", "memory_mb", "threads")
    settings = FitSettings(
        options=from_mapping(HeadSettings, _pairs(options["options"]), "--set"),
        **{name: options[name] for name in (*same, *more)},
    )
    wanted = SlideTraining(
        features,
        label_source(options),
        output,
        FoldPlan(options["folds"], options["repeats"], options["validation"], options["seed"]),
        settings,
        options["external"],
        options["external_labels"],
        options["device"],
    )
    trained = train_slides(wanted, say=lambda line: click.echo(line, err=True))
    if as_json:
        document = {"model": str(trained.bundle.path), "sha256": trained.bundle.sha256}
        click.echo(json.dumps({**document, "figures": trained.figures, "notes": trained.notes}, indent=2))
        return
    for note in trained.notes:
        click.echo(f"note: {note}")
    for line in described_figures(trained.figures):
        click.echo(line)
    click.echo(f"model: {trained.bundle.path}")


@mil.command()
@features_argument
@click.option("--model", type=click.Path(path_type=Path), required=True, help="Folder that 'mil train' wrote.")
@click.option("--project", type=click.Path(path_type=Path), help="QuPath project to write attention and labels into.")
@click.option("--image", "images", multiple=True, help="Name or id of an image of the project; may be repeated.")
@click.option("--top", type=click.IntRange(min=0), default=10, show_default=True, help="Annotated tiles of each slide.")
@click.option("--output", type=click.Path(path_type=Path), help="CSV file for the probabilities of all feature files.")
@device_option
@backend_option
@click.option("--dry-run", is_flag=True, help="Say what would be written, and write nothing.")
@json_option
def predict(features: Path, model: Path, as_json: bool, **options: Any) -> None:
    """Predict slide labels, into a CSV file or a QuPath project.

    A project gets tiles with their attention, annotations around those with the most, and the probabilities as
    metadata of the image; a page with the heatmap of each slide stays with the run. Features of another encoder than
    the model's are refused. Close the project in QuPath first.
    """
    from pyhisto.errors import ConfigError
    from pyhisto.mil.bundle import load_slide_bundle

    if options["project"] is None and options["output"] is None:
        raise ConfigError("nowhere to write to", expected="--project, --output or both")
    if options["project"] is None and options["images"]:
        raise ConfigError("--image without --project", remedy="name the project, or leave it out")
    project = None if options["project"] is None else open_for_command(options["project"], options["backend"])
    bundle = load_slide_bundle(model, device=options["device"])
    document: dict[str, Any] = {"model": {"name": bundle.path.name, "sha256": bundle.sha256}}
    if options["output"] is not None:
        from pyhisto.mil.predictions import write_predictions
        from qupath_ext.workflows.mil import predict_bags

        table = predict_bags(features, bundle)
        if not options["dry_run"]:
            write_predictions(options["output"], table)
        document["predictions"] = str(options["output"])
        if not as_json:
            click.echo(f"{len(table)} slides: {options['output']}{' (not written)' if options['dry_run'] else ''}")
    failed = False
    if project is not None:
        document |= _predict_into(features, bundle, project, as_json, options)
        failed = bool(document["failed"])
    if as_json:
        click.echo(json.dumps(document, indent=2, ensure_ascii=False))
    if failed:
        sys.exit(1)


def _predict_into(features: Path, bundle: Any, project: Any, as_json: bool, options: dict[str, Any]) -> dict[str, Any]:
    """Write into a project, and return what is to be printed as JSON."""
    from pyhisto.features.bags import list_bags
    from qupath_ext.cli.progress import StageProgress
    from qupath_ext.workflows.milpredict import LabelledSlide, label_slides

    entries = wanted_entries(project, options["images"])
    results, failures = [], []
    with StageProgress(enabled=sys.stderr.isatty() or not as_json, unit="slide") as progress:
        for outcome in label_slides(
            project,
            entries,
            list_bags(features),
            bundle,
            top=options["top"],
            dry_run=options["dry_run"],
            progress=progress,
        ):
            if isinstance(outcome, LabelledSlide):
                results.append(outcome)
                if not as_json:
                    _print(outcome)
            else:
                failures.append(outcome)
                click.echo(f"{outcome[0].name}: failed: {outcome[1]}", err=True)
    if not as_json:
        click.echo(f"open in QuPath: {project.path}")
    return {
        "project": str(project.path),
        "images": [result.summary() for result in results],
        "failed": [{"image": entry.name, "error": str(error)} for entry, error in failures],
    }


@mil.command()
@click.argument("predictions", metavar="PREDICTIONS", type=click.Path(path_type=Path))
@label_options
@click.option("--seed", type=int, default=0, show_default=True, help="Of the intervals.")
@backend_option
@json_option
def evaluate(predictions: Path, seed: int, as_json: bool, **options: Any) -> None:
    """Judge PREDICTIONS.csv: AUROC, AUPRC and balanced accuracy with 95 % intervals by patient.

    The true classes are those in the file, or those of --labels or --project.
    """
    from pyhisto.errors import ConfigError
    from qupath_ext.workflows.mil import described_figures, judge_predictions

    given = options["labels"] is not None or options["project"] is not None
    if options["wanted"] and not given:
        raise ConfigError("--label without labels", expected="--labels or --project")
    figures = judge_predictions(predictions, label_source(options) if given else None, seed=seed)
    if as_json:
        click.echo(json.dumps({"figures": figures}, indent=2, ensure_ascii=False))
        return
    for line in described_figures(figures):
        click.echo(line)


def _pairs(texts: tuple[str, ...]) -> dict[str, Any]:
    """Return NAME=VALUE as names with values, and NAME.PART=VALUE as names with such names; what is no JSON is text."""
    from pyhisto.errors import ConfigError

    out: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        *groups, last = name.split(".")
        inner = out
        for group in groups:
            inner = inner.setdefault(group, {})
            if not isinstance(inner, dict):
                raise ConfigError(f"--set {text} beside a value for {group}", expected="one of them")
        if not equals or not last:
            raise ConfigError(f"--set {text}", expected="NAME=VALUE")
        try:
            inner[last] = json.loads(value)
        except ValueError:
            inner[last] = value
    return out


def _print(result: Any) -> None:
    said = "; ".join(
        f"{task}: " + ", ".join(f"{name} {value:.3f}" for name, value in classes.items())
        for task, classes in result.probabilities.items()
    )
    click.echo(f"{result.name}: {said} ({result.tiles} tiles)")
    if result.replaced or result.kept:
        click.echo(f"  {result.replaced} objects of earlier runs replaced, {result.kept} kept as a person left them")
    for page in result.pages[:1]:
        click.echo(f"  {page}, in the folder of the run")
