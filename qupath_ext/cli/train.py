"""``qupath-ext train``."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pyhisto.errors import ConfigError, PyhistoError
from qupath_ext.cli.common import backend_option, device_option, open_for_command

if TYPE_CHECKING:
    from qupath_ext.workflows.trainrun import TrainRun

__all__ = ["train"]

PLANNING = {
    "task": "--task",
    "classes": "--class",
    "mpp": "--mpp",
    "minutes": "--minutes",
    "patient_key": "--patient-key",
}
"""Options that a plan takes, and a study has already."""

MINUTES = 20.0


@click.command()
@click.argument("projects", metavar="PROJECT...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--output",
    "-o",
    type=click.Path(path_type=Path),
    required=True,
    help="Folder of the new model bundle; with --plan, the study.toml to write.",
)
@click.option(
    "--plan", is_flag=True, help="Only plan: read the annotations, say what is decided and why, train nothing."
)
@click.option("--study", type=click.Path(path_type=Path), default=None, help="Settings (TOML); planned if not given.")
@click.option(
    "--split",
    type=click.Path(path_type=Path),
    default=None,
    help="Split of the patients; without one, some are set aside for validation, and kept in the work folder.",
)
@click.option(
    "--init", type=click.Path(path_type=Path), default=None, help="Model bundle to go on from; its input is kept."
)
@click.option("--image", "images", multiple=True, help="Name or id of an image; may be repeated.")
@click.option(
    "--work", type=click.Path(path_type=Path), default=None, help="Folder for checkpoints [default: OUTPUT.training]."
)
@click.option("--task", type=click.Choice(["cells", "tissue"]), default=None, help="Plan: what is to be learnt.")
@click.option("--class", "classes", multiple=True, help="Plan: a class to learn; may be repeated.")
@click.option("--mpp", type=click.FloatRange(0.05, 20), default=None, help="Plan: pixel size to work at, µm.")
@click.option(
    "--minutes", type=click.FloatRange(0.5), default=None, help=f"Plan: time for the training [default: {MINUTES:g}]."
)
@click.option(
    "--patient-key",
    default=None,
    help="Plan: entry metadata that names the patient [default: Patient, else the slide].",
)
@device_option
@backend_option
def train(projects: Sequence[Path], output: Path, plan: bool, backend: str, **options: Any) -> None:
    """Train a model on the annotations of PROJECT... and save it as a bundle.

    If it is interrupted, the same command goes on. The bundle's docs folder has study, split, learning curves and log.
    """
    _check(plan, output, options)
    try:
        run = _run(projects, output, backend, options)
        if plan:
            _plan(run, output)
        else:
            _train(run)
    except PyhistoError:
        if _is_first():
            raise
        sys.exit(2)


def _is_first() -> bool:
    """Return whether this process speaks for all that torchrun started."""
    return int(os.environ.get("RANK", "0")) == 0


def _check(plan: bool, output: Path, options: dict[str, Any]) -> None:
    """Refuse options that contradict each other, before anything is read."""
    given = [name for key, name in PLANNING.items() if options[key] not in (None, ())]
    if options["study"] is not None and (plan or given):
        what = "--plan" if plan else given[0]
        raise click.UsageError(f"Give either --study or {what}; the study has all settings.")
    if plan and options["work"] is not None:
        raise click.UsageError("--work is for a training, not for --plan.")
    if plan and output.exists():
        raise ConfigError(f"{output} exists already", expected="a new file", remedy="choose another --output")


def _run(projects: Sequence[Path], output: Path, backend: str, options: dict[str, Any]) -> TrainRun:
    from pyhisto.bundle.files import load_bundle
    from qupath_ext.active.disputes import without_disputed
    from qupath_ext.workflows.planning import Wanted
    from qupath_ext.workflows.trainingdata import gather
    from qupath_ext.workflows.trainrun import TrainRun

    wanted = Wanted(
        kind=options["task"],
        classes=options["classes"],
        mpp=options["mpp"],
        name=output.stem if options["study"] is None else "",
        patient_key=Wanted.patient_key if options["patient_key"] is None else options["patient_key"],
    )
    sources = gather([open_for_command(path, backend) for path in projects], options["images"])
    return TrainRun(
        sources=sources,
        output=output,
        work=options["work"],
        study=options["study"],
        split=options["split"],
        init=None if options["init"] is None else load_bundle(options["init"]),
        device=options["device"],
        wanted=wanted,
        minutes=options["minutes"] or MINUTES,
        amend=without_disputed(sources, _say if _is_first() else _unsaid),
    )


def _unsaid(line: str) -> None:
    del line


def _plan(run: TrainRun, path: Path) -> None:
    from qupath_ext.workflows.planning import write_study
    from qupath_ext.workflows.trainrun import plan_run

    planned = plan_run(run, _say)
    write_study(path, planned.text())
    facts = planned.facts
    counts = ", ".join(f"{c.objects} {c.name}" for c in facts.classes)
    click.echo(f"{facts.kind}: {counts} on {facts.slides} slides of {facts.patients} patients")
    for decision in planned.decisions:
        click.echo(f"· {decision.reason}")
    click.echo(f"study {path}")


def _say(line: str) -> None:
    click.echo(line, err=True)


def _train(run: TrainRun) -> None:
    from qupath_ext.workflows.trainrun import run_training

    trained = run_training(run, _say)
    if trained.bundle is None:
        return
    result = trained.result
    best = next((row for row in result.validation if row.step == result.best_step), None)
    if best is not None:
        classes = ", ".join(f"{name} {value:.3f}" for name, value in best.dice.items())
        click.echo(f"validation Dice {best.mean_dice:.3f} ({classes}) after {best.step} steps")
    click.echo(f"loss            {sum(result.losses[-10:]) / len(result.losses[-10:]):.3f} at the end")
    click.echo(f"bundle          {run.output}")
