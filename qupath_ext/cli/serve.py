"""``qupath-ext serve``."""

from __future__ import annotations

from pathlib import Path

import click

__all__ = ["serve"]


@click.command()
@click.option(
    "--idle-minutes",
    type=click.FloatRange(min=0, min_open=True),
    default=30.0,
    show_default=True,
    help="End when there was nothing to do for this long.",
)
@click.option(
    "--allow",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    multiple=True,
    metavar="FOLDER",
    help="Take jobs of projects in this folder, too; repeat for several. Those with the scripts are allowed anyway.",
)
@click.option("--device", metavar="cpu|cuda|cuda:N|xpu|mps", help="Where networks run, whatever the projects say.")
@click.option("--stop", is_flag=True, help="End the worker that runs, after the job that it does was cancelled.")
def serve(idle_minutes: float, allow: tuple[Path, ...], device: str | None, stop: bool) -> None:
    """Do the jobs of the scripts in QuPath faster: keeps loaded what they need, until nobody needs it any more.

    Only programs on this computer that can read a file of yours can use it. Without it the scripts work as well.
    """
    from qupath_ext.serve.client import WorkerClient

    if stop:
        worker = WorkerClient.find()
        if worker is None:
            click.echo("no worker runs")
        else:
            worker.request("POST", "/shutdown")
            click.echo("the worker ends")
        return
    from qupath_ext.serve.worker import serve as work

    if device is not None:
        from pyhisto.device import check_device

        check_device(device)
    work(allow, idle_s=idle_minutes * 60, device=device, say=click.echo)
    click.echo("ended")
