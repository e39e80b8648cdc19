"""``qupath-ext doctor``."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path

import click

__all__ = ["doctor"]

MARKS = {"ok": "ok  ", "note": "note", "bad": "BAD "}


@click.command()
@click.argument("project", metavar="[PROJECT]", type=click.Path(path_type=Path), required=False)
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")
def doctor(project: Path | None, as_json: bool) -> None:
    """Say whether this machine, and PROJECT if given, are fit for the work, and what to do if not.

    Nothing is changed. The exit code is 1 if something stops the work.
    """
    from qupath_ext.maintenance.doctor import examine, examine_project

    found = []
    for check in (*examine(), *(examine_project(project) if project is not None else ())):
        found.append(check)
        if not as_json:
            click.echo(f"{MARKS[check.state]}  {check.subject}: {check.found}")
            if check.state != "ok" and check.remedy:
                click.echo(f"      {check.remedy}")
    if as_json:
        click.echo(json.dumps([asdict(check) for check in found], indent=2, ensure_ascii=False))
    if any(check.state == "bad" for check in found):
        sys.exit(1)
