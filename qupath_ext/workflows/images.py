"""Running an analysis over the images of a project: one after the other, each written before the next begins."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from pyhisto.bundle import Bundle
from pyhisto.errors import PyhistoError
from qupath_ext.project import ImageEntry, Project
from qupath_ext.runs.record import Run, start_run

__all__ = ["Progress", "run_images"]

Result = TypeVar("Result")
Progress = Callable[[str, int, int], None]
"""Called with the stage, the number of windows done and the number in all."""


def run_images(
    project: Project,
    entries: Sequence[ImageEntry],
    analysis: str,
    config: Mapping[str, Any],
    bundles: Sequence[Bundle],
    *,
    analyse: Callable[[ImageEntry, Run | None], Result],
    recorded: Callable[[ImageEntry, Run], Result],
    dry_run: bool = False,
) -> Iterator[Result | tuple[ImageEntry, PyhistoError]]:
    """Analyse images one after the other as one run; what an interrupted run finished is not done again.

    Parameters
    ----------
    project, entries
        The project and those of its images that are wanted.
    analysis, config
        Name of the analysis, and all its settings as JSON types.
    bundles
        The models that it uses.
    analyse
        Analyses an image and writes it as part of the run; without a run nothing is to be written.
    recorded
        Returns the result of an image that the run finished before it was interrupted.
    dry_run
        Write nothing, and make no run.

    Yields
    ------
    Result or (ImageEntry, PyhistoError)
        The result of each image, or why it has none.
    """
    models = {bundle.spec.kind: {"name": bundle.path.name, "sha256": bundle.sha256} for bundle in bundles}
    device = bundles[0].device if bundles else "cpu"
    run = None if dry_run else start_run(project, analysis, config, models, device=device)
    try:
        for entry in entries:
            try:
                done = run is not None and run.is_done(entry.id)
                result = recorded(entry, run) if run is not None and done else analyse(entry, run)
            except PyhistoError as error:
                if run is not None:
                    run.fail_image(entry, analysis, str(error))
                yield entry, error
            else:
                yield result
        if run is not None:
            run.finish()
    finally:
        if run is not None:
            run.release()
