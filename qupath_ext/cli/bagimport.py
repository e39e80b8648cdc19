"""``qupath-ext mil import``."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import click

__all__ = ["import_bags_command"]


@click.command("import")
@click.argument("source", type=click.Path(path_type=Path, dir_okay=False))
@click.option(
    "--output",
    type=click.Path(path_type=Path, file_okay=False),
    required=True,
    help="New folder for the feature files.",
)
@click.option(
    "--bag-column", metavar="NAME|NUMBER", default=None, help="Column of the bag; default: bag, or the first."
)
@click.option(
    "--label-column", metavar="NAME|NUMBER", default=None, help="Column of the label; default: label, or the second."
)
@click.option("--patient-column", metavar="NAME|NUMBER", default=None, help="Column of the patient, if there is one.")
@click.option(
    "--ignore-column", "ignored", metavar="NAME|NUMBER", multiple=True, help="Column of no feature; may be repeated."
)
@click.option(
    "--encoder-name", default="plain", show_default=True, help="What made the features; models refuse those of another."
)
def import_bags_command(source: Path, output: Path, encoder_name: str, **options: Any) -> None:
    """Make feature files and labels.csv of bags from elsewhere.

    SOURCE is a table with one instance a row (bag, label, features; CSV or separated by blanks, with or without a
    header), an npz or HDF5 file with features (n, d), bags (n,) or offsets, and labels, or a file of the classical
    benchmarks: .svm (instance:bag:label number:value) or .mat (features, bag_ids, labels; PRTools).
    """
    from pyhisto.features.plainbags import LABELS_FILE, PlainColumns, import_bags, read_plain_bags

    columns = PlainColumns(
        options["bag_column"], options["label_column"], options["patient_column"], tuple(options["ignored"])
    )
    bags = read_plain_bags(source, columns)
    import_bags(bags, output, encoder=encoder_name)
    counts = ", ".join(f"{n} of {label}" for label, n in sorted(Counter(bag.label for bag in bags).items()))
    sizes = [len(bag.features) for bag in bags]
    click.echo(
        f"{len(bags)} bags ({counts}) of {min(sizes)} to {max(sizes)} instances with {bags[0].features.shape[1]} "
        f"features: {output}; labels: {output / LABELS_FILE}"
    )
