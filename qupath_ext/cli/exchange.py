"""``qupath-ext project export`` and ``import``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from qupath_ext.cli.common import backend_option, open_for_command, wanted_entries

if TYPE_CHECKING:
    from qupath_ext.entry import ImageEntry
    from qupath_ext.project import Project

__all__ = ["export", "import_"]

FORMATS = ("geojson", "geojson.gz", "parquet", "png", "ome.tif", "csv", "tsv")
TYPES = ("annotation", "detection", "cell", "tile", "tma_core")
ROWS = (*TYPES, "image", "summary")


@click.command()
@click.argument("project", metavar="PROJECT", type=click.Path(path_type=Path))
@click.argument("output", metavar="OUTPUT", type=click.Path(path_type=Path))
@click.option(
    "--format",
    "form",
    type=click.Choice(FORMATS),
    default="geojson",
    show_default=True,
    help="QuPath's GeoJSON, GeoParquet, label masks, or the measurement table.",
)
@click.option("--image", "images", multiple=True, help="Name or id of an image; may be repeated.")
@click.option(
    "--type", "types", multiple=True, type=click.Choice(TYPES), help="Objects of this type only; may be repeated."
)
@click.option("--class", "classes", multiple=True, help="Objects of this class only; may be repeated.")
@click.option(
    "--rows",
    type=click.Choice(ROWS),
    default="annotation",
    show_default=True,
    help="What is a row of a csv or tsv; summary: one row an image with counts and areas by class.",
)
@click.option("--nested", is_flag=True, help="GeoJSON with children inside their parents (QuPath 0.4 and newer).")
@click.option("--mpp", type=click.FloatRange(0.02, 1000), default=None, help="Pixel size of masks, µm.")
@click.option("--downsample", type=click.FloatRange(min=0.01), default=1.0, help="Downsample of masks, if no --mpp.")
@click.option("--instances", is_flag=True, help="Masks with a value for each object instead of each class.")
@click.option("--nuclei", is_flag=True, help="Masks of the nuclei of cells instead of their boundaries.")
@click.option("--overwrite", is_flag=True, help="Replace files that are there.")
@backend_option
def export(project: Path, output: Path, form: str, images: Sequence[str], backend: str, **options: Any) -> None:
    """Write the objects of PROJECT to OUTPUT: a folder with one file an image, or one csv or tsv for all.

    Measurement tables have the columns of QuPath's own, with its live values (Num Positive, Positive %, ...).
    """
    opened = open_for_command(project, backend)
    entries = wanted_entries(opened, images)
    if form in ("csv", "tsv"):
        _export_table(entries, output, form, options["rows"], options["overwrite"])
    else:
        _export_images(opened, entries, output, form, options)


def _export_table(entries: list[ImageEntry], output: Path, form: str, rows: str, overwrite: bool) -> None:
    from tqdm import tqdm

    from qupath_ext.workflows.exchange import export_table

    path = output if output.suffix else output / f"{rows}.{form}"
    with tqdm(total=len(entries), desc="images", unit="image", leave=False) as bar:

        def progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        n = export_table(entries, path, rows, overwrite=overwrite, progress=progress)
    click.echo(f"{path}: {n} rows")


def _export_images(
    opened: Project, entries: list[ImageEntry], output: Path, form: str, options: dict[str, Any]
) -> None:
    from tqdm import tqdm

    from qupath_ext.exchange.masks import MaskConfig
    from qupath_ext.workflows.exchange import MASKS, ExportSettings, export_images

    mask = None
    if form in MASKS:
        mask = MaskConfig(
            kind="instance" if options["instances"] else "class",
            classes=options["classes"] or None,
            object_types=options["types"] or (("cell",) if options["nuclei"] else ("annotation",)),
            nuclei=options["nuclei"],
            downsample=options["downsample"],
            mask_mpp=options["mpp"],
        )
    settings = ExportSettings(options["types"], options["classes"], options["nested"], mask, options["overwrite"])
    written = export_images(opened, entries, output, form, settings)
    for entry, path, n in tqdm(written, total=len(entries), desc="images", unit="image", leave=False):
        tqdm.write(f"{path}: {n} objects of {entry.name}")


@click.command("import")
@click.argument("project", metavar="PROJECT", type=click.Path(path_type=Path))
@click.argument("files", metavar="FILES", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--image",
    default=None,
    help="Name or id of the image; default: the id in the name of the file (7.geojson).",
)
@click.option("--new-ids", "fresh_ids", is_flag=True, help="Give all objects new ids.")
@click.option("--fix-invalid", is_flag=True, help="Repair outlines that cross themselves instead of refusing them.")
@click.option("--dry-run", is_flag=True, help="Read and check the files, and write nothing.")
@backend_option
def import_(
    project: Path,
    files: Sequence[Path],
    image: str | None,
    fresh_ids: bool,
    fix_invalid: bool,
    dry_run: bool,
    backend: str,
) -> None:
    """Add the objects of FILES (GeoJSON, GeoParquet, label masks) to PROJECT.

    What is there stays. The import is a run: "qupath-ext runs undo" takes it back.
    """
    from qupath_ext.workflows.exchange import import_files

    opened = open_for_command(project, backend)
    pairs = [(opened.entry(image or path.name.split(".")[0]), path) for path in files]
    done = import_files(opened, pairs, fresh_ids=fresh_ids, fix_invalid=fix_invalid, dry_run=dry_run)
    for result in done:
        orphans = f", {result.orphans} at the top level as their parents are not there" if result.orphans else ""
        cores = f", {result.cores} TMA cores left out as files have no TMA grid" if result.cores else ""
        click.echo(f"{result.entry.name}: {result.objects} objects{orphans}{cores}")
    if dry_run:
        click.echo("dry run, nothing was written")
