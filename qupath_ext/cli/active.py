"""``qupath-ext active``: the loop of proposing regions, correcting them in QuPath, and learning from that."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from qupath_ext.cli.common import backend_option, device_option, open_for_command

if TYPE_CHECKING:
    from pyhisto.dataset.images import Part
    from qupath_ext.active.loop import Loop

__all__ = ["active"]

F = TypeVar("F", bound=Callable[..., Any])

project_argument = click.argument("project", metavar="PROJECT", type=click.Path(path_type=Path))
loop_option = click.option("--loop", "name", default="", help="Name of the loop, where PROJECT has several.")


def proposing(command: F) -> F:
    """Add the options of proposing."""
    options = (
        click.option(
            "--budget-mm2", type=click.FloatRange(0, min_open=True), default=None, help="Area to propose, mm²."
        ),
        click.option(
            "--budget-minutes",
            type=click.FloatRange(0, min_open=True),
            default=None,
            help="Minutes of a person to propose for, by what earlier rounds took.",
        ),
        click.option("--strategy", default=None, help="How regions are chosen, in place of the loop's."),
        click.option(
            "--features",
            type=click.Path(path_type=Path),
            default=None,
            help="Folder of qupath-ext features: regions that look alike to that encoder are not proposed twice.",
        ),
    )
    for option in reversed(options):
        command = option(command)
    return command


def collecting(command: F) -> F:
    """Add the options of collecting."""
    options = (
        click.option(
            "--minutes",
            type=click.FloatRange(0, min_open=True),
            default=None,
            help="How long the regions took a person; later budgets in minutes go by it.",
        ),
        click.option(
            "--prefer", default="", help="Project or annotator that counts where two went through the same region."
        ),
    )
    for option in reversed(options):
        command = option(command)
    return command


def training(command: F) -> F:
    """Add the options of training."""
    options = (
        click.option("--study", type=click.Path(path_type=Path), default=None, help="Settings (TOML) of the training."),
        click.option(
            "--training-minutes",
            type=click.FloatRange(0.5),
            default=20.0,
            show_default=True,
            help="Time for a training that is planned.",
        ),
    )
    for option in reversed(options):
        command = option(command)
    return command


@click.group()
def active() -> None:
    """Get the most model out of a person's time: propose regions, correct them in QuPath, learn, again."""


@active.command()
@click.argument("projects", metavar="PROJECT...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--name", default="loop", show_default=True, help="Name of the loop.")
@click.option("--target", type=click.Choice(["cells", "tissue"]), required=True, help="What is learnt.")
@click.option("--class", "classes", multiple=True, required=True, help="A class to learn; may be repeated.")
@click.option("--strategy", default="entropy+diversity", show_default=True, help="How regions are chosen.")
@click.option(
    "--shape",
    type=click.Choice(["square", "adaptive"]),
    default="square",
    show_default=True,
    help="Squares, or rectangles around what a model is uncertain of.",
)
@click.option(
    "--region-um", type=click.FloatRange(32, 2500), default=250.0, show_default=True, help="Side of a region, µm."
)
@click.option(
    "--budget-mm2",
    type=click.FloatRange(0, min_open=True),
    default=0.5,
    show_default=True,
    help="Area that a round proposes, mm².",
)
@click.option(
    "--correction-weight",
    type=click.FloatRange(1, 100),
    default=3.0,
    show_default=True,
    help="What a corrected pixel weighs in the training; a confirmed one weighs 1.",
)
@click.option(
    "--match-um",
    type=click.FloatRange(0, 100, min_open=True),
    default=8.0,
    show_default=True,
    help="Farthest that a point may be from where it was to be called moved, µm.",
)
@click.option("--init", type=click.Path(path_type=Path), default=None, help="Model that fills the first regions.")
@click.option("--split", type=click.Path(path_type=Path), default=None, help="Split of the patients; else by lot.")
@click.option(
    "--validation", type=click.FloatRange(0, 0.9), default=0.2, show_default=True, help="Share to validate on."
)
@click.option("--test", type=click.FloatRange(0, 0.9), default=0.2, show_default=True, help="Share to test on.")
@click.option("--patient-key", default="Patient", show_default=True, help="Entry metadata that names the patient.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Another seed, another lot.")
@backend_option
def start(projects: Sequence[Path], name: str, backend: str, **options: Any) -> None:
    """Begin a loop over PROJECT...; its state lies in the first of them.

    The patients are divided once, into those to train, validate and test on; regions are proposed on slides to train
    on alone.
    """
    from pyhisto.bundle.files import load_bundle
    from pyhisto.dataset import read_split
    from qupath_ext.active.loop import LoopSettings, start_loop
    from qupath_ext.active.models import KINDS
    from qupath_ext.active.status import UNJUDGED
    from qupath_ext.workflows.splitting import described
    from qupath_ext.workflows.trainingdata import patient_of

    init, split = options.pop("init"), options.pop("split")
    fractions: dict[Part, float] = {"validation": options.pop("validation"), "test": options.pop("test")}
    if init is not None:
        load_bundle(init, kind=KINDS[options["target"]])
    settings = LoopSettings(**options, init="" if init is None else str(init.resolve()))
    opened = [open_for_command(path, backend) for path in projects]
    loop = start_loop(opened, name, settings, split=None if split is None else read_split(split), fractions=fractions)
    for line in described(loop.split, [patient_of(s.entry, settings.patient_key) for s in loop.sources()]):
        click.echo(line)
    if not loop.split.of_part("validation"):
        click.echo(UNJUDGED)
    click.echo(f"loop       {loop.folder}")


@active.command()
@project_argument
@loop_option
@proposing
@device_option
@backend_option
def propose(project: Path, name: str, backend: str, **options: Any) -> None:
    """Choose the regions of the next round, and put them into the images with what the model says inside.

    In QuPath each is a locked annotation of the class Region*. Correct what is inside, then set the class of the region
    to Done* or Rejected*. Close the images in QuPath first, and use File > Reload data afterwards.
    """
    loop = _found(project, name, backend)
    with loop.held():
        _propose(loop, options)


@active.command()
@project_argument
@loop_option
@collecting
@backend_option
def collect(project: Path, name: str, backend: str, **options: Any) -> None:
    """Read what a person did in the regions that are Done* or Rejected*."""
    loop = _found(project, name, backend)
    with loop.held():
        _collect(loop, options)


@active.command()
@project_argument
@loop_option
@training
@device_option
@backend_option
def train(project: Path, name: str, backend: str, **options: Any) -> None:
    """Train on what was collected, from the last round's model on."""
    loop = _found(project, name, backend)
    with loop.held():
        _train(loop, options)


@active.command()
@project_argument
@loop_option
@collecting
@training
@proposing
@device_option
@backend_option
def step(project: Path, name: str, backend: str, **options: Any) -> None:
    """Collect, train and propose in one go; what is done already is not done again."""
    loop = _found(project, name, backend)
    with loop.held():
        latest = loop.latest
        if latest is not None and latest.state == "proposed":
            _collect(loop, options)
        if latest is not None and latest.state in ("proposed", "collected"):
            _train(loop, options)
        _propose(loop, options)


@active.command()
@project_argument
@loop_option
@click.option("--page", type=click.Path(path_type=Path), default=None, help="Write a self-contained HTML page as well.")
@backend_option
def status(project: Path, name: str, backend: str, page: Path | None) -> None:
    """Say what the rounds brought, what the next one should bring, and whether to go on."""
    from qupath_ext.active.status import status_lines

    loop = _found(project, name, backend)
    for line in status_lines(loop):
        click.echo(line)
    if page is not None:
        from qupath_ext.active.page import write_status_page

        write_status_page(loop, page)
        click.echo(f"page {page}")


@active.command()
@project_argument
@click.argument("number", metavar="N", type=click.IntRange(min=0))
@loop_option
@backend_option
def rollback(project: Path, number: int, name: str, backend: str) -> None:
    """Go back to the end of round N; 0 takes all rounds back.

    Regions that are open and predictions that nobody touched are taken out of the images. What a person changed or
    drew, and what is in regions that are Done*, stays. The later rounds are kept aside.
    """
    from qupath_ext.active.rollback import rollback as go_back

    loop = _found(project, name, backend)
    with loop.held():
        go_back(loop, number, click.echo)


@active.command()
@project_argument
@click.option("--output", "-o", type=click.Path(path_type=Path), required=True, help="Folder for table, plot and runs.")
@click.option("--target", type=click.Choice(["cells", "tissue"]), required=True, help="What is learnt.")
@click.option("--class", "classes", multiple=True, required=True, help="A class to learn; may be repeated.")
@click.option("--strategy", "strategies", multiple=True, required=True, help="A strategy to compare; may be repeated.")
@click.option("--seeds", type=click.IntRange(min=1), default=5, show_default=True, help="Runs of each strategy.")
@click.option("--rounds", type=click.IntRange(min=1), default=5, show_default=True, help="Rounds of a run.")
@click.option(
    "--budget-mm2",
    type=click.FloatRange(0, min_open=True),
    default=0.1,
    show_default=True,
    help="Area that a round proposes, mm².",
)
@click.option(
    "--region-um", type=click.FloatRange(32, 2500), default=128.0, show_default=True, help="Side of a region, µm."
)
@click.option(
    "--shape",
    type=click.Choice(["square", "adaptive"]),
    default="square",
    show_default=True,
    help="Squares, or rectangles around what a model is uncertain of.",
)
@click.option(
    "--error-rate", type=click.FloatRange(0, 1), default=0.0, show_default=True, help="Share of wrong answers."
)
@click.option("--study", type=click.Path(path_type=Path), required=True, help="Settings (TOML) of the trainings.")
@click.option("--split", type=click.Path(path_type=Path), required=True, help="Split of the patients.")
@click.option("--patient-key", default="Patient", show_default=True, help="Entry metadata that names the patient.")
@device_option
@backend_option
def simulate(project: Path, output: Path, device: str, backend: str, **options: Any) -> None:
    """Let the annotations of PROJECT, which are complete, answer for a person, with each strategy and seed.

    The project is only read. What was interrupted goes on; more seeds or rounds are added to those that are there.
    """
    from qupath_ext.active.simulate import SimulationSettings, simulate
    from qupath_ext.active.simulated import in_words, summary

    settings = SimulationSettings(**options)
    table = simulate(open_for_command(project, backend), settings, output, click.echo, device=device)
    click.echo(f"medians of {table['seed'].nunique()} seeds, with 95 % intervals:")
    for line in in_words(summary(table)):
        click.echo(f"  {line}")
    for name in ("simulation.csv", "summary.json", "simulation.png"):
        click.echo(f"{output / name}")


def _found(project: Path, name: str, backend: str) -> Loop:
    from qupath_ext.active.loop import find_loop

    loop = find_loop(project, name, backend=backend)
    click.echo(f"project backend: {loop.projects[0].backend_version}", err=True)
    return loop


def _propose(loop: Loop, options: dict[str, Any]) -> None:
    from tqdm import tqdm

    from qupath_ext.active.propose import ProposeOptions, propose_round
    from qupath_ext.cli.progress import StageProgress

    if options["budget_mm2"] is not None and options["budget_minutes"] is not None:
        raise click.UsageError("Give either --budget-mm2 or --budget-minutes.")
    keys = ("budget_mm2", "budget_minutes", "strategy", "features", "device")
    with StageProgress() as progress:
        propose_round(loop, ProposeOptions(**{key: options[key] for key in keys}), tqdm.write, progress)


def _collect(loop: Loop, options: dict[str, Any]) -> None:
    from qupath_ext.active.collect import collect_round

    collect_round(loop, click.echo, minutes=options["minutes"], prefer=options["prefer"])


def _train(loop: Loop, options: dict[str, Any]) -> None:
    from qupath_ext.active.training import TrainOptions, train_round
    from qupath_ext.errors import ProjectError

    latest = loop.latest
    if latest is None:
        raise ProjectError(f"no round in the loop {loop.name!r}", remedy="begin one with qupath-ext active propose")
    wanted = TrainOptions(options["device"], options["training_minutes"], options["study"])
    train_round(loop, latest.number, wanted, click.echo)
