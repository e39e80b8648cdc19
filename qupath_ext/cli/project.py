"""``qupath-ext project``: making projects, looking after them, and taking objects out and in."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from qupath_ext.cli.common import backend_option, open_for_command, wanted_entries
from qupath_ext.cli.exchange import export, import_
from qupath_ext.native.stains import IMAGE_TYPES

if TYPE_CHECKING:
    from qupath_ext.entry import ImageEntry

__all__ = ["project"]

project_argument = click.argument("project", metavar="PROJECT", type=click.Path(path_type=Path))
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")
image_type_option = click.option(
    "--image-type",
    type=click.Choice(IMAGE_TYPES, case_sensitive=False),
    default="BRIGHTFIELD_H_DAB",
    show_default=True,
    help="Image type of the new images.",
)
mpp_option = click.option(
    "--mpp",
    type=click.FloatRange(0.02, 20),
    default=None,
    help="Pixel size in µm that overrides the slides' own.",
)
dry_run_option = click.option("--dry-run", is_flag=True, help="Say what would be done, and write nothing.")


@click.group()
def project() -> None:
    """Make QuPath projects, look after them, and take objects out and in."""


@project.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.argument("slides", nargs=-1, type=click.Path(path_type=Path))
@image_type_option
@mpp_option
@dry_run_option
@backend_option
def create(
    folder: Path, slides: Sequence[Path], image_type: str, mpp: float | None, dry_run: bool, backend: str
) -> None:
    """Make a new project in FOLDER, with SLIDES if any are given."""
    from qupath_ext.errors import ProjectExistsError
    from qupath_ext.project import create_project

    if dry_run:
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise ProjectExistsError(f"{folder} is not empty", expected="a new or empty folder")
        click.echo(f"would make a project in {folder}")
        _would_add(slides, mpp)
        return
    made = create_project(folder, backend=backend)
    click.echo(f"project backend: {made.backend_version}", err=True)
    click.echo(made.path)
    _add(made, slides, image_type, mpp)


@project.command()
@project_argument
@click.argument("slides", nargs=-1, required=True, type=click.Path(path_type=Path))
@image_type_option
@mpp_option
@dry_run_option
@backend_option
def add(project: Path, slides: Sequence[Path], image_type: str, mpp: float | None, dry_run: bool, backend: str) -> None:
    """Add SLIDES to PROJECT. A slide that cannot be opened is said, and the others are added."""
    opened = open_for_command(project, backend)
    if dry_run:
        _would_add(slides, mpp)
    else:
        _add(opened, slides, image_type, mpp)


def _would_add(slides: Sequence[Path], mpp: float | None) -> None:
    """Open the slides and say what would be added; exit code 1 if one cannot be opened."""
    from pyhisto.errors import MissingPixelSizeError, PyhistoError
    from pyhisto.slide import Slide

    failed = 0
    for path in slides:
        try:
            with Slide(path, mpp=mpp) as slide:
                size = "x".join(str(side) for side in slide.dimensions)
                try:
                    pixel = f"{slide.mean_mpp:g} µm/px"
                except MissingPixelSizeError:
                    pixel = "no pixel size"
                click.echo(f"would add {path.name}: {size} px, {pixel}")
        except PyhistoError as error:
            failed += 1
            click.echo(f"{path}: failed: {error}", err=True)
    if failed:
        sys.exit(1)


def _add(opened: Any, slides: Sequence[Path], image_type: str, mpp: float | None) -> None:
    from tqdm import tqdm

    from pyhisto.errors import PyhistoError

    failed = 0
    for slide in tqdm(slides, desc="slides", unit="slide", leave=False, disable=len(slides) < 2):
        try:
            entry = opened.add_image(slide, image_type=image_type.upper(), mpp=mpp)
        except PyhistoError as error:
            failed += 1
            tqdm.write(f"{slide}: failed: {error}", file=sys.stderr)
        else:
            tqdm.write(f"{entry.id}  {entry.name}", file=sys.stdout)
    if failed:
        sys.exit(1)


@project.command()
@project_argument
@click.option("--objects", is_flag=True, help="Also count the objects, which reads all images.")
@json_option
@backend_option
def info(project: Path, objects: bool, as_json: bool, backend: str) -> None:
    """List the images of PROJECT: type, size, pixel size, slide, metadata; and its classes and runs."""
    from qupath_ext.runs.record import list_runs

    opened = open_for_command(project, backend)
    images = [_describe(entry, objects) for entry in opened.entries]
    runs = [run.id for run in list_runs(opened)]
    if as_json:
        document = {"project": str(opened.path), "classes": list(opened.classes), "runs": runs, "images": images}
        click.echo(json.dumps(document, indent=2, ensure_ascii=False))
        return
    click.echo(f"{opened.path}: {len(images)} images, {len(runs)} runs")
    click.echo(f"classes: {', '.join(opened.classes) or 'none'}")
    for image in images:
        size = f"{image['width']} x {image['height']} px" if image["width"] else "size unknown"
        mpp = "no pixel size" if image["mpp"] is None else f"{image['mpp'][0]:g} x {image['mpp'][1]:g} µm/px"
        click.echo(f"{image['id']:>4}  {image['name']}: {image['image_type'] or 'no data'}, {size}, {mpp}")
        click.echo(f"      {image['slide']}")
        if objects:
            click.echo(f"      {', '.join(f'{n} {kind}' for kind, n in image['objects'].items()) or 'no objects'}")


def _describe(entry: ImageEntry, objects: bool) -> dict[str, Any]:
    from qupath_ext.errors import ProjectError

    metadata = entry.server_builder.get("metadata") or {}
    try:
        slide = str(entry.slide_path)
    except ProjectError as error:
        slide = str(error)
    out = {
        "id": entry.id,
        "name": entry.name,
        "image_type": entry.image_type,
        "width": metadata.get("width"),
        "height": metadata.get("height"),
        "mpp": entry.mpp,
        "slide": slide,
        "metadata": entry.metadata,
        "tags": entry.tags,
    }
    if objects:
        counts = entry.read_objects()["object_type"].astype(str).value_counts()
        out["objects"] = {str(kind): int(n) for kind, n in counts.items()}
    return out


@project.command()
@project_argument
@click.option("--slides/--no-slides", default=True, show_default=True, help="Also open the slides.")
@json_option
@backend_option
def check(project: Path, slides: bool, as_json: bool, backend: str) -> None:
    """Look for missing slides, wrong sizes, damaged files and bad objects. Changes nothing; exit code 1 on errors."""
    from tqdm import tqdm

    from qupath_ext.maintenance.check import check_project

    opened = open_for_command(project, backend)
    with tqdm(desc="images", unit="image", leave=False, disable=as_json) as bar:

        def progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        findings = list(check_project(opened, slides=slides, progress=progress))
    if as_json:
        click.echo(json.dumps([asdict(finding) for finding in findings], indent=2, ensure_ascii=False))
    else:
        for finding in findings:
            where = f"{finding.image}: " if finding.image else ""
            click.echo(f"{finding.severity}: {where}{finding.what}\n    {finding.remedy}")
        errors = sum(finding.severity == "error" for finding in findings)
        click.echo(f"{len(opened.entries)} images, {errors} errors, {len(findings) - errors} warnings")
    if any(finding.severity == "error" for finding in findings):
        sys.exit(1)


@project.command()
@project_argument
@click.option(
    "--search",
    "folders",
    multiple=True,
    required=True,
    type=click.Path(path_type=Path),
    help="Folder to look in, with all below; may be repeated.",
)
@click.option("--apply", is_flag=True, help="Point the project to what was found; otherwise it is only said.")
@backend_option
def relocate(project: Path, folders: Sequence[Path], apply: bool, backend: str) -> None:
    """Find slides that were moved. Without --apply nothing is changed.

    A slide is taken for the same if its file name, width and height are.
    """
    from qupath_ext.maintenance.relocate import find_moves
    from qupath_ext.maintenance.relocate import relocate as apply_moves

    opened = open_for_command(project, backend)
    moves = list(find_moves(opened, folders))
    for move in moves:
        if move.found is not None:
            click.echo(f"{move.entry.name}: {move.found}")
        else:
            click.echo(f"{move.entry.name}: {move.name} was not found ({move.why_not})", err=True)
    found = sum(move.found is not None for move in moves)
    if apply:
        apply_moves(moves)
        click.echo(f"{found} images point to the new places")
    elif moves:
        click.echo(f"{found} of {len(moves)} were found; repeat with --apply to change the project")
    else:
        click.echo("all slides are where the project says")
    if found < len(moves):
        sys.exit(1)


@project.command()
@project_argument
@click.argument("image")
@click.option("--delete-data", is_flag=True, help="Also delete the image's objects, thumbnail and other data.")
@click.option("--dry-run", is_flag=True, help="Say what would be removed, and change nothing.")
@backend_option
def remove(project: Path, image: str, delete_data: bool, dry_run: bool, backend: str) -> None:
    """Take IMAGE out of PROJECT. The slide file stays, and so does the data unless --delete-data is given."""
    opened = open_for_command(project, backend)
    (entry,) = wanted_entries(opened, [image])
    what = f"{entry.name} (id {entry.id}){' and its data' if delete_data else ''}"
    if dry_run:
        click.echo(f"would remove {what}")
        return
    opened.remove_image(entry, delete_data=delete_data)
    click.echo(f"removed {what}")


project.add_command(export)
project.add_command(import_)
