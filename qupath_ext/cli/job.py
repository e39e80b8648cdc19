"""``qupath-ext job``."""

from __future__ import annotations

import sys
from pathlib import Path

import click

__all__ = ["job"]


@click.command()
@click.argument("folder", metavar="FOLDER", type=click.Path(path_type=Path))
def job(folder: Path) -> None:
    """Do what a script in QuPath asks for; FOLDER holds the job, and gets the answer.

    This is what the scripts of "qupath-ext install-scripts" call. The exit code is 0 if it was done, 1 if it failed, 2
    if the job is not understood, 3 if it was cancelled.
    """
    from qupath_ext.live.tasks import run_job

    answer = run_job(folder, progress=_show, say=_say)
    _say(answer.message)
    for note in answer.notes:
        _say(f"note: {note}")
    sys.exit(answer.exit_code)


def _show(stage: str, done: int, total: int) -> None:
    _say(f"PROGRESS {done}/{total} {stage}")


def _say(line: str) -> None:
    click.echo(line)
    sys.stdout.flush()
