"""Running an analysis over the images of a project: lanes find what is on the slides, and one writer puts it away.

A lane is a thread with models of its own, so that each GPU gets one; all of them take images from one list. Nothing
is written but in the thread of whoever takes the results, one image at a time, while the lanes go on with the next.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, NoReturn, TypeAlias, TypeVar

from pyhisto.errors import PyhistoError
from qupath_ext.errors import ProjectError
from qupath_ext.project import ImageEntry, Project
from qupath_ext.runs.record import Run, start_run
from qupath_ext.workflows.lanes import Crew, Progress

if TYPE_CHECKING:
    from pyhisto.bundle.anymodel import AnyModel
    from pyhisto.mil.bundle import SlideBundle
    from pyhisto.mil.weak.bundle import WeakBundle

__all__ = ["Lane", "Pending", "Progress", "run_images"]

Result = TypeVar("Result")


@dataclass(frozen=True)
class Pending(Generic[Result]):
    """What was found on an image and is not written yet.

    Attributes
    ----------
    result
        The result.
    write
        Writes it as part of a run.
    """

    result: Result
    write: Callable[[Run], None]


@dataclass(frozen=True)
class Lane(Generic[Result]):
    """One that analyses images, beside others.

    Attributes
    ----------
    bundles
        The models that it uses; no other lane uses these objects.
    analyse
        Finds what is on an image and changes nothing in the project. It gets the run, None where nothing is to be
        written, and calls the given progress often: that is where it is stopped.
    """

    bundles: Sequence[AnyModel | SlideBundle | WeakBundle]
    analyse: Callable[[ImageEntry, Run | None, Progress], Pending[Result]]


_Settle: TypeAlias = Callable[[], Result]
"""Returns the result of an image once it is written, or raises why it has none; called in the caller's thread."""


def run_images(
    project: Project,
    entries: Sequence[ImageEntry],
    analysis: str,
    config: Mapping[str, Any],
    lanes: Sequence[Lane[Result]],
    *,
    recorded: Callable[[ImageEntry, Run], Result],
    dry_run: bool = False,
    progress: Progress | None = None,
) -> Iterator[Result | tuple[ImageEntry, PyhistoError]]:
    """Analyse images as one run; what an interrupted run finished is not done again.

    Through QuPath's own classes nothing happens at the same time: each image is written before the next begins.

    Parameters
    ----------
    project, entries
        The project and those of its images that are wanted.
    analysis, config
        Name of the analysis, and all its settings as JSON types.
    lanes
        Those that share the images, at least one, with the same models.
    recorded
        Returns the result of an image that the run finished before it was interrupted.
    dry_run
        Write nothing, and make no run.
    progress
        Called in the caller's thread.

    Yields
    ------
    Result or (ImageEntry, PyhistoError)
        The result of each image once it is written, or why it has none: with one lane in order, with several as they
        are finished.

    Raises
    ------
    ProjectError
        If several lanes are to work on a project that QuPath's own classes read.
    """
    if len(lanes) > 1 and project.backend != "native":
        raise ProjectError(
            f"{len(lanes)} devices with the project backend {project.backend}",
            expected="one device",
            remedy="use --backend native for several",
        )
    run = None if dry_run else start_run(project, analysis, config, _models(lanes), device=_devices(lanes))
    works = [partial(_attempt, lane, run, recorded) for lane in lanes]
    try:
        with closing(_attended(project, entries, works, progress)) as attended:
            for entry, settle in attended:
                try:
                    result = settle()
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


def _attended(
    project: Project,
    entries: Sequence[ImageEntry],
    works: Sequence[Callable[[ImageEntry, Progress], _Settle[Result]]],
    progress: Progress | None,
) -> Generator[tuple[ImageEntry, _Settle[Result]]]:
    """Yield the images as they are finished."""
    if project.backend == "native":
        yield from Crew(entries, works, progress)
        return
    for entry in entries:
        yield entry, works[0](entry, progress or _show_nothing)


def _attempt(
    lane: Lane[Result],
    run: Run | None,
    recorded: Callable[[ImageEntry, Run], Result],
    entry: ImageEntry,
    progress: Progress,
) -> _Settle[Result]:
    """Find what is on an image, unless the run did so before."""
    if run is not None and run.is_done(entry.id):
        return partial(recorded, entry, run)
    try:
        return partial(_written, lane.analyse(entry, run, progress), run)
    except PyhistoError as error:
        return partial(_refused, error)


def _models(lanes: Sequence[Lane[Any]]) -> dict[str, dict[str, str]]:
    """Return what a run records of its models, by their kinds."""
    return {
        bundle.spec.kind: {
            "name": bundle.path.name,
            "sha256": bundle.sha256,
            "engine": bundle.engine,
            "precision": bundle.precision,
        }
        for bundle in lanes[0].bundles
    }


def _devices(lanes: Sequence[Lane[Any]]) -> str:
    return ",".join(lane.bundles[0].device if lane.bundles else "cpu" for lane in lanes)


def _written(found: Pending[Result], run: Run | None) -> Result:
    if run is not None:
        found.write(run)
    return found.result


def _refused(error: PyhistoError) -> NoReturn:
    raise error


def _show_nothing(stage: str, done: int, total: int) -> None:
    del stage, done, total
