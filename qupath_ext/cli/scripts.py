"""``qupath-ext install-scripts``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from qupath_ext.workflows.scripts import InstalledScripts

__all__ = ["install_scripts"]


@click.command("install-scripts")
@click.argument("project", type=click.Path(path_type=Path))
@click.option(
    "--tumour", type=click.Path(exists=True, path_type=Path), default=None, help="Model that segments tumour here."
)
@click.option(
    "--cells", type=click.Path(exists=True, path_type=Path), default=None, help="Model that finds cells here."
)
@click.option("--remove", is_flag=True, help="Take the scripts out again; models, settings and runs stay.")
@click.option("--force", is_flag=True, help="Overwrite, or remove, scripts that somebody edited as well.")
def install_scripts(project: Path, tumour: Path | None, cells: Path | None, remove: bool, force: bool) -> None:
    """Put scripts into a QuPath project, which QuPath shows under Automate > Project scripts > qupath-ext.

    They call the Python that runs this command. Run it again after qupath-ext was updated or moved: scripts that
    nobody edited are brought up to date, all others stay.
    """
    from qupath_ext.projectsettings import change_settings
    from qupath_ext.userstate import forget_project, remember_project
    from qupath_ext.workflows.scripts import install_scripts as install
    from qupath_ext.workflows.scripts import remove_scripts

    models = {"tumour": tumour, "cells": cells}
    given = {kind: str(path.resolve()) for kind, path in models.items() if path is not None}
    if remove and given:
        raise click.UsageError("--remove takes scripts out; --tumour and --cells are for putting them in")
    if remove:
        result = remove_scripts(project, force=force)
        forget_project(result.folder)
        _report(result)
        return
    _check_models(given)
    result = install(project, force=force)
    remember_project(result.folder)
    if given:
        change_settings(result.folder, **given)
    _report(result)
    for kind, path in given.items():
        click.echo(f"{kind}: {path}")
    click.echo("In QuPath: Automate > Project scripts > qupath-ext")


def _check_models(models: dict[str, str]) -> None:
    """Say now, not in QuPath, that a folder holds no model."""
    if models:
        from pyhisto.bundle.anymodel import load_model

        for path in models.values():
            load_model(path)


def _report(result: InstalledScripts) -> None:
    """Say what was done."""
    for count, word in ((result.written, "written"), (result.unchanged, "up to date"), (result.removed, "removed")):
        if count:
            click.echo(f"{len(count)} files {word}")
    for path in result.kept:
        click.echo(f"kept, because somebody edited or made it: {path}", err=True)
