"""``qupath-ext split``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from qupath_ext.cli.common import backend_option

__all__ = ["split"]


@click.command()
@click.argument("projects", metavar="PROJECT...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--output", "-o", type=click.Path(path_type=Path), required=True, help="The split, a JSON file that is not there."
)
@click.option(
    "--patient-key",
    default="",
    help="Entry metadata that names the patient; without it, or on images that lack it, each slide is a patient.",
)
@click.option(
    "--validation", type=click.FloatRange(0, 0.9), default=0.2, show_default=True, help="Share to validate on."
)
@click.option("--test", type=click.FloatRange(0, 0.9), default=0.2, show_default=True, help="Share to test on.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Another seed, another lot.")
@click.option("--stratify", default=None, help="Entry metadata whose values are divided alike, such as a diagnosis.")
@click.option("--part-key", default=None, help="Entry metadata that says the part (train, validation, test); no lot.")
@click.option("--extend", is_flag=True, help="Add the patients that the file does not know; all others stay.")
@backend_option
def split(projects: Sequence[Path], output: Path, backend: str, **options: Any) -> None:
    """Divide the patients of PROJECT... into those to train, validate and test on, once and for all.

    The file is frozen: it is extended (--extend) but never made anew.
    """
    from qupath_ext.cli.common import open_for_command
    from qupath_ext.workflows.splitting import described, split_projects
    from qupath_ext.workflows.trainingdata import gather, patient_of

    if options["stratify"] and options["part_key"]:
        raise click.UsageError("Give either --stratify or --part-key.")
    key = options["patient_key"]
    sources = gather([open_for_command(path, backend) for path in projects])
    made = split_projects(
        sources,
        output,
        patient_key=key,
        fractions={"validation": options["validation"], "test": options["test"]},
        seed=options["seed"],
        stratify=options["stratify"],
        part_key=options["part_key"],
        extend=options["extend"],
    )
    for line in described(made, [patient_of(source.entry, key) for source in sources]):
        click.echo(line)
    click.echo(f"split      {output}")
