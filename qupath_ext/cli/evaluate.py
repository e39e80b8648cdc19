"""``qupath-ext evaluate``."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from qupath_ext.cli.common import backend_option, open_for_command, wanted_entries
from qupath_ext.errors import ProjectError

if TYPE_CHECKING:
    import pandas as pd

    from qupath_ext.entry import ImageEntry
    from qupath_ext.workflows.evaluation.compare import Evaluation

__all__ = ["evaluate"]

SHOWN = ("F1", "precision", "recall", "AJI", "PQ", "Dice", "IoU", "Hausdorff 95 %", "index error")
"""Figures that are printed; all are in ``figures.csv``."""


@click.command()
@click.argument("project", metavar="PROJECT", type=click.Path(path_type=Path))
@click.option(
    "--prediction",
    required=True,
    help="What is judged: run:ID or run:latest (what the run wrote), annotations (what people drew, corrected or "
    "imported), objects (all that is there), project:PATH (images of the same name there), or geojson:FOLDER "
    "(<id or name>.geojson).",
)
@click.option("--reference", required=True, help="What it is judged by; the same choices.")
@click.option(
    "--output", "-o", type=click.Path(path_type=Path), required=True, help="New folder for report.html and figures.csv."
)
@click.option(
    "--task",
    type=click.Choice(["cells", "tissue"]),
    default="cells",
    show_default=True,
    help="Compare cells as points (and outlines), or areas.",
)
@click.option("--class", "classes", multiple=True, help="Compare this class only; may be repeated [default: all].")
@click.option("--map", "mapping", multiple=True, metavar="A=B", help="Let class A of the prediction count as class B.")
@click.option(
    "--radius-um", type=float, default=4.0, show_default=True, help="Cells further apart are not the same, µm."
)
@click.option(
    "--largest-cell-um2",
    type=float,
    default=1000.0,
    show_default=True,
    help="Annotations with an outline are cells up to this area, µm².",
)
@click.option(
    "--region", default=None, help="Compare inside annotations of this class [default: Training, Validation, else all]."
)
@click.option("--split", type=click.Path(path_type=Path), default=None, help="Split of the patients, with --part.")
@click.option(
    "--part", type=click.Choice(["train", "validation", "test"]), default=None, help="Patients of this part only."
)
@click.option(
    "--patient-key",
    default="Patient",
    show_default=True,
    help="Entry metadata with the patient; else the slide is one.",
)
@click.option("--image", "images", multiple=True, help="Name or id of an image; may be repeated.")
@click.option(
    "--mpp", type=click.FloatRange(0.02, 20), default=None, help="Pixel size in µm where the project has none."
)
@click.option(
    "--worst", type=click.IntRange(0), default=6, show_default=True, help="Number of pictures of worst cases."
)
@click.option("--matches", is_flag=True, help="Also write what became of each cell, as matches/<image id>.parquet.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of text.")
@backend_option
def evaluate(project: Path, as_json: bool, **options: Any) -> None:
    """Say how good a prediction is: compare two sources on the images of PROJECT.

    Writes one page with figures, plots and the worst cases, and a table of all figures. Nothing is written into the
    project. Areas whose class ends in * (Ignore*) are left out.
    """
    from qupath_ext.cli.progress import StageProgress
    from qupath_ext.workflows.evaluation.compare import compare_images
    from qupath_ext.workflows.evaluation.settings import EvaluationSettings
    from qupath_ext.workflows.evaluation.sources import parse_source
    from qupath_ext.workflows.evaluation.writing import check_output, summary, write_results

    if (options["split"] is None) != (options["part"] is None):
        raise click.UsageError("Give --split FILE and --part together.")
    output = options["output"]
    check_output(output)
    settings = EvaluationSettings(
        task=options["task"],
        classes=options["classes"],
        mapping=_mapping(options["mapping"]),
        radius_um=options["radius_um"],
        region=options["region"],
        largest_cell_um2=options["largest_cell_um2"],
        patient_key=options["patient_key"],
        mpp=options["mpp"],
        worst=options["worst"],
    )
    opened = open_for_command(project, options["backend"])
    prediction, reference = (
        parse_source(options[side], opened, backend=options["backend"]) for side in ("prediction", "reference")
    )
    entries = _of_part(wanted_entries(opened, options["images"]), options)
    with StageProgress(enabled=sys.stderr.isatty() or not as_json, unit="image") as progress:
        found = compare_images(
            opened,
            entries,
            prediction,
            reference,
            settings,
            progress=progress,
            matched=_matches(output) if options["matches"] else None,
        )
    write_results(output, opened, found)
    if as_json:
        click.echo(json.dumps(summary(found, opened, output), indent=2, ensure_ascii=False))
    else:
        _print(found, output)
    if found.failed:
        sys.exit(1)


def _mapping(pairs: Sequence[str]) -> dict[str, str]:
    out: dict[str, str] = {}
    for pair in pairs:
        mine, equals, theirs = pair.partition("=")
        if not (mine and equals and theirs):
            raise ProjectError(f"--map {pair!r}", expected="A=B, two class names")
        if out.setdefault(mine, theirs) != theirs:
            raise ProjectError(f"--map gives {mine!r} two classes, {out[mine]!r} and {theirs!r}", expected="one")
    return out


def _of_part(entries: list[ImageEntry], options: dict[str, Any]) -> list[ImageEntry]:
    """Return the images whose patients stand in the part that is wanted; all without a split."""
    if options["split"] is None:
        return entries
    from pyhisto.dataset.splits import read_split
    from qupath_ext.workflows.trainingdata import patient_of

    wanted = set(read_split(options["split"]).of_part(options["part"]))
    chosen = [entry for entry in entries if patient_of(entry, options["patient_key"]) in wanted]
    if not chosen:
        raise ProjectError(
            f"no image of the part {options['part']!r} of {options['split']}",
            expected=f"one of its {len(wanted)} patients ({', '.join(sorted(wanted)[:3])})",
            remedy=f"check that --patient-key {options['patient_key']} is that of the split",
        )
    return chosen


def _matches(output: Path) -> Callable[[ImageEntry, pd.DataFrame], None]:
    def write(entry: ImageEntry, table: pd.DataFrame) -> None:
        folder = output / "matches"
        folder.mkdir(parents=True, exist_ok=True)
        table.to_parquet(folder / f"{entry.id}.parquet", index=False)

    return write


def _print(found: Evaluation, output: Path) -> None:
    """Print what was compared and the figures as a table, then where the page is."""
    from qupath_ext.workflows.evaluation.writing import index_agreement, sentence

    click.echo(sentence(found))
    click.echo()
    table = found.table[(found.table["level"] == "all") & found.table["metric"].isin(SHOWN)]
    pooled = table[table["statistic"] == "pooled"].set_index(["class", "metric"])["value"]
    mean = table[table["statistic"] == "mean of patients"]
    width = max((len(str(name)) for name in mean["class"]), default=5)
    click.echo(f"{'class':<{width}}  {'figure':<14}  {'mean of patients':<24}  {'pooled':>7}  {'chance':>7}")
    for row in mean.to_dict("records"):
        whole = pooled.get((row["class"], row["metric"]), math.nan)
        figures = f"{_with_interval(row):<24}  {_number(row, whole):>7}  {_number(row, row['chance']):>7}"
        click.echo(f"{row['class']:<{width}}  {row['metric']:<14}  {figures}")
    index = index_agreement(found)
    if index is not None:
        limits = index.agreement.bland_altman
        click.echo(
            f"\nindex of {len(index.names)} images: bias {_points(limits.bias)}, limits of agreement "
            f"{_points(limits.lower)} to {_points(limits.upper)} points, Pearson {_plain(index.agreement.pearson)}, "
            f"Lin {_plain(index.agreement.lin_concordance)}"
        )
    for name, reason in found.left_out:
        click.echo(f"{name}: not compared, {reason}", err=True)
    for name, reason in found.failed:
        click.echo(f"{name}: failed: {reason}", err=True)
    click.echo(f"\n{output / 'report.html'}")


def _with_interval(row: dict[Any, Any]) -> str:
    value = _number(row, row["value"])
    if not math.isfinite(row["low"]):
        return value
    return f"{value} ({_number(row, row['low'])} to {_number(row, row['high'])})"


def _number(row: dict[Any, Any], value: float) -> str:
    if not math.isfinite(value):
        return "-"
    return f"{value:.1f}" if row["metric"] in ("index error", "Hausdorff 95 %") else f"{value:.3f}"


def _points(value: float) -> str:
    return f"{value:+.1f}" if math.isfinite(value) else "-"


def _plain(value: float) -> str:
    return f"{value:.3f}" if math.isfinite(value) else "-"
