"""``qupath-ext runs``: what was written, what a person changed since, and taking it back."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from qupath_ext.cli.common import backend_option, open_for_command, wanted_entries

if TYPE_CHECKING:
    from qupath_ext.project import Project
    from qupath_ext.runs.diff import ImageDiff
    from qupath_ext.runs.record import Run

__all__ = ["runs"]

project_argument = click.argument("project", metavar="PROJECT", type=click.Path(path_type=Path))
run_argument = click.argument("run_id", metavar="RUN", default="latest")
image_option = click.option("--image", "images", multiple=True, help="Name or id of an image; may be repeated.")
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")


@click.group()
def runs() -> None:
    """Say what was written to a project, what a person changed since, and take it back.

    RUN is a run's id, an unmistakable part of it, or "latest".
    """


@runs.command("list")
@project_argument
@json_option
@backend_option
def list_(project: Path, as_json: bool, backend: str) -> None:
    """List the runs of PROJECT, oldest first."""
    from qupath_ext.runs.record import list_runs

    found = list(list_runs(open_for_command(project, backend)))
    if as_json:
        _print_json([_overview(run) for run in found])
        return
    if not found:
        click.echo("no runs")
    for run in found:
        done = sum(image.get("status") == "done" for image in run.images.values())
        failed = sum(image.get("status") == "failed" for image in run.images.values())
        added = sum(sum(image.get("added", {}).values()) for image in run.images.values())
        failures = f", {failed} failed" if failed else ""
        click.echo(f"{run.id}  {run.status:<10}  {done} images{failures}, {added} objects")


def _overview(run: Run) -> dict[str, Any]:
    keys = ("analysis", "status", "started", "finished", "backend", "device", "models", "command")
    return {"id": run.id, **{key: run.record.get(key) for key in keys}, "images": run.images}


@runs.command()
@project_argument
@run_argument
@backend_option
def show(project: Path, run_id: str, backend: str) -> None:
    """Print the record of a run as JSON."""
    from qupath_ext.runs.record import find_run

    _print_json(find_run(open_for_command(project, backend), run_id).record)


@runs.command()
@project_argument
@run_argument
@image_option
@json_option
@click.option("--objects", "each", is_flag=True, help="Name each object that is no longer as it was written.")
@click.option(
    "--geojson",
    type=click.Path(path_type=Path, file_okay=False),
    default=None,
    help="Folder for one GeoJSON file an image, with what was changed and what was added.",
)
@backend_option
def diff(
    project: Path,
    run_id: str,
    images: Sequence[str],
    as_json: bool,
    each: bool,
    geojson: Path | None,
    backend: str,
) -> None:
    """Say what has become of each object of a run, and what a person added since."""
    from qupath_ext.runs.diff import diff_run
    from qupath_ext.runs.record import find_run

    opened = open_for_command(project, backend)
    run = find_run(opened, run_id)
    found = list(diff_run(opened, run, wanted_entries(opened, images)))
    if geojson is not None:
        _write_geojson(opened, geojson, found)
    if as_json:
        _print_json({"run": run.id, "images": [_diff_document(image) for image in found]})
        return
    click.echo(f"run {run.id} ({run.status})")
    for image in found:
        counts = ", ".join(f"{n} {name}" for name, n in image.counts().items() if n)
        click.echo(f"{image.name}: {counts or 'nothing written'}")
        if each:
            for line in _lines(image):
                click.echo(f"  {line}")


def _diff_document(image: ImageDiff) -> dict[str, Any]:
    rows = image.objects[image.objects["status"] != "untouched"]
    added = image.added
    return {
        "entry_id": image.entry_id,
        "image": image.name,
        "counts": image.counts(),
        "objects": [{"id": str(id_), **row} for id_, row in zip(rows.index, rows.to_dict("records"), strict=True)],
        "added": [
            {"id": str(id_), "object_type": str(kind), "classification": None if name != name else name}
            for id_, kind, name in zip(
                added.index, added["object_type"], added["classification"].astype(object), strict=True
            )
        ],
    }


def _lines(image: ImageDiff) -> Iterator[str]:
    rows = image.objects[image.objects["status"] != "untouched"]
    for id_, row in zip(rows.index, rows.to_dict("records"), strict=True):
        what = f"{row['status']}: {row['changes']}" if row["changes"] else row["status"]
        classes = f" ({row['before']} -> {row['now']})" if "reclassified" in row["changes"] else ""
        yield f"{id_}  {row['object_type']}  {what}{classes}"
    for id_, kind in zip(image.added.index, image.added["object_type"], strict=True):
        yield f"{id_}  {kind}  added by a person"


def _write_geojson(project: Project, folder: Path, found: Sequence[ImageDiff]) -> None:
    from pyhisto.objects import concat_objects
    from qupath_ext.exchange.geojson import write_geojson

    folder.mkdir(parents=True, exist_ok=True)
    for image in found:
        table = concat_objects([image.changed, image.added])
        known = {**dict.fromkeys(image.added.index, "added"), **image.objects["changes"].to_dict()}
        table["metadata"] = [
            {**(metadata or {}), "qupath_ext diff": known[id_]}
            for id_, metadata in zip(table.index, table["metadata"], strict=True)
        ]
        write_geojson(folder / f"{image.entry_id}.geojson", table, colors=project.classes)


@runs.command()
@project_argument
@run_argument
@image_option
@click.option("--force", is_flag=True, help="Also remove objects of the run that a person changed.")
@click.option("--dry-run", is_flag=True, help="Say what would be removed and restored, and write nothing.")
@json_option
@backend_option
def undo(
    project: Path, run_id: str, images: Sequence[str], force: bool, dry_run: bool, as_json: bool, backend: str
) -> None:
    """Remove a run's objects that nobody touched, and bring back what the run had replaced.

    Objects that a person changed stay, and what a person drew inside removed annotations moves up.
    """
    from dataclasses import asdict

    from qupath_ext.cli.progress import StageProgress
    from qupath_ext.runs.record import find_run
    from qupath_ext.runs.undo import undo_run

    opened = open_for_command(project, backend)
    run = find_run(opened, run_id)
    wanted = wanted_entries(opened, images)
    done = []
    with StageProgress(enabled=not as_json) as progress:
        for result in undo_run(opened, run, wanted, force=force, dry_run=dry_run):
            done.append(result)
            progress("images", len(done), len(run.entry_ids()))
    if as_json:
        _print_json({"run": run.id, "dry_run": dry_run, "images": [asdict(result) for result in done]})
        return
    click.echo(f"run {run.id}{' (dry run, nothing was written)' if dry_run else ''}")
    for result in done:
        kept = f", {result.kept} kept as a person changed them" if result.kept else ""
        unlocked = f", {result.unlocked} unlocked" if result.unlocked else ""
        click.echo(f"{result.name}: {result.removed} removed, {result.restored} restored{kept}{unlocked}")
        if result.unsaved:
            click.echo("  nothing of it is in the image: it was handed to QuPath, and not saved there")
        if result.covered_by:
            click.echo(f"  a later run wrote here; undo {result.covered_by[-1]} to get back what this one had replaced")


def _print_json(value: Any) -> None:
    click.echo(json.dumps(value, indent=2, ensure_ascii=False, default=str))
