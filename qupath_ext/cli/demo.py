"""``qupath-ext demo``."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from qupath_ext.cli.common import backend_option

if TYPE_CHECKING:
    from qupath_ext.workflows.demo import DemoResult

__all__ = ["demo"]


@click.command()
@click.argument("folder", metavar="[DIR]", type=click.Path(path_type=Path), default=Path("ki67-demo"))
@click.option(
    "--seed", type=click.IntRange(min=0), default=None, help="Seed of slides and training; default: the study's."
)
@click.option(
    "--study",
    "study_path",
    type=click.Path(path_type=Path),
    default=None,
    help="Settings, a TOML file; default: the shipped projects/ki67/study.toml.",
)
@backend_option
def demo(folder: Path, seed: int | None, study_path: Path | None, backend: str) -> None:
    """Make slides, annotate, train two models and score Ki-67 on a held-out slide, in DIR (default: ki67-demo).

    Everything goes through a QuPath project that QuPath opens. Takes some minutes on two cores; if it is interrupted,
    the same command goes on.
    """
    from qupath_ext.cli.progress import StageProgress
    from qupath_ext.resources import study_file
    from qupath_ext.study import load_study
    from qupath_ext.workflows.demo import run_demo

    begin = time.perf_counter()
    study = load_study(study_path or study_file("ki67"))
    if seed is not None:
        study = dataclasses.replace(study, seed=seed)
    with StageProgress() as progress:
        result = run_demo(folder.resolve(), study, say=_say, progress=progress, backend=backend)
    _report(result, time.perf_counter() - begin)


def _say(line: str) -> None:
    click.echo(f"· {line}", err=True)


def _report(demo_result: DemoResult, seconds: float) -> None:
    index, score = demo_result.result.index, demo_result.score
    click.echo(f"Ki-67 index      {index.percent:5.1f} %   95 % interval {index.low:.1f} to {index.high:.1f} %")
    click.echo(f"truth            {score.index_percent:5.1f} %")
    click.echo(f"cells            {index.total} in tumour, {index.positive} positive")
    click.echo(f"detection F1     positive {score.positive.f1:.3f}, negative {score.negative.f1:.3f}")
    click.echo(f"tumour Dice      {score.tumour_dice:.3f}")
    click.echo(f"time             {seconds / 60:.1f} min")
    click.echo(f"report           {demo_result.report}")
    click.echo(f"overlay          {demo_result.overlay}")
    click.echo(f"open in QuPath   {demo_result.project}")
