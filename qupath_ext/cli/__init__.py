"""The command line ``qupath-ext``: parses, calls, reports. Commands load what they need when they run."""

from __future__ import annotations

import errno
import importlib
import os
import sys
from typing import NoReturn

import click

import qupath_ext

__all__ = ["Cli", "main"]

COMMANDS = {
    "active": "qupath_ext.cli.active:active",
    "annotate": "qupath_ext.cli.annotate:annotate",
    "calibrate": "qupath_ext.cli.calibrate:calibrate",
    "dataset": "qupath_ext.cli.dataset:dataset",
    "demo": "qupath_ext.cli.demo:demo",
    "doctor": "qupath_ext.cli.doctor:doctor",
    "evaluate": "qupath_ext.cli.evaluate:evaluate",
    "features": "qupath_ext.cli.features:features",
    "job": "qupath_ext.cli.job:job",
    "install-scripts": "qupath_ext.cli.scripts:install_scripts",
    "ki67": "qupath_ext.cli.ki67:ki67",
    "mil": "qupath_ext.cli.mil:mil",
    "project": "qupath_ext.cli.project:project",
    "runs": "qupath_ext.cli.runs:runs",
    "serve": "qupath_ext.cli.serve:serve",
    "split": "qupath_ext.cli.split:split",
    "train": "qupath_ext.cli.train:train",
}
"""Name of each command to ``module:function``."""

BAD_INPUT = 2


class Cli(click.Group):
    """A group whose commands are imported when they are needed, and whose expected errors are one line."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of the commands."""
        del ctx
        return sorted(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a command."""
        del ctx
        if cmd_name not in COMMANDS:
            return None
        module, function = COMMANDS[cmd_name].split(":")
        command: click.Command = getattr(importlib.import_module(module), function)
        return command

    def invoke(self, ctx: click.Context) -> object:
        """Run a command; an error that a user can act on becomes one line and exit code 2, a result without sense 1."""
        from pyhisto.errors import PyhistoError, SanityError
        from pyhisto.heap import share_heap

        share_heap()
        # OpenMP threads that spin while they wait make a training step six times slower (8.4 s instead of 1.5 s on two
        # cores) as soon as anything else wants a core; sleeping costs nothing measurable when nothing does.
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
        try:
            return super().invoke(ctx)
        except PyhistoError as error:
            _fail(str(error), 1 if isinstance(error, SanityError) else BAD_INPUT)
        except OSError as error:
            if isinstance(error, BrokenPipeError):
                raise
            _fail(_explain(error))
        except (RuntimeError, MemoryError) as error:
            if not _memory_is_used_up(error):
                raise
            said = str(error).splitlines() or [type(error).__name__]
            _fail(f"the memory is used up ({said[0]}); end what else uses it, or take another device", 1)
        except KeyboardInterrupt:
            click.echo("qupath-ext: interrupted; run the same command again to go on", err=True)
            sys.exit(130)


def _fail(message: str, code: int = BAD_INPUT) -> NoReturn:
    click.echo(f"qupath-ext: {message}", err=True)
    sys.exit(code)


def _memory_is_used_up(error: BaseException) -> bool:
    """Return whether a network, which torch runs, found the memory of its device too small."""
    if "torch" not in sys.modules:
        return isinstance(error, MemoryError)
    from pyhisto.bundle.engine import out_of_memory

    return out_of_memory(error)


def _explain(error: OSError) -> str:
    """Say in one line which file could not be used, and what helps."""
    where = f" ({error.filename})" if error.filename else ""
    if error.errno in {errno.ENOSPC, errno.EDQUOT}:
        return f"the disk is full{where}; free some space and run the same command again"
    if error.errno in {errno.EACCES, errno.EPERM, errno.EROFS}:
        return f"no permission{where}; choose a folder that you may write to"
    return " ".join(f"{error.strerror or error}{where}".split())


@click.group(cls=Cli, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(qupath_ext.__version__, prog_name="qupath-ext")
def main() -> None:
    """Deep learning for QuPath projects. Research use only."""
