"""Regions that several persons went through, in a training that is no round of their loop."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from qupath_ext.active.annotators import disagreements, disputes_of, latest
from qupath_ext.active.answers import read_answers
from qupath_ext.active.files import read_record
from qupath_ext.active.loop import FOLDER, Loop, find_loop
from qupath_ext.active.truth import amended, disputed
from qupath_ext.errors import ProjectError

if TYPE_CHECKING:
    from pyhisto.dataset import TrainingImage
    from qupath_ext.workflows.trainingdata import Source

__all__ = ["without_disputed"]

Say = Callable[[str], None]
Amend = Callable[["Source", "TrainingImage"], "TrainingImage"]


def without_disputed(sources: Sequence[Source], say: Say) -> Amend | None:
    """Return what takes regions out of images that several persons went through, as the loops of their projects do.

    Where nobody was chosen the region is not learnt from, else only from the one who was. Regions that were not
    collected yet, and those of rounds that were rolled back, are compared as well.

    Parameters
    ----------
    sources
        The images of a training.
    say
        Called with a line about each loop with such regions.

    Returns
    -------
    callable or None
        Takes an image and what its annotations say, and returns the latter without; None where there is nothing.

    Raises
    ------
    FormatError
        If the record of a loop is damaged.
    """
    found = [(loop, disputes) for loop in _loops(sources) if (disputes := _disputes(loop, say))]
    for loop, disputes in found:
        undecided = sum(dispute["chosen"] is None for dispute in disputes)
        say(
            f"loop {loop.name}: several went through {len(disputes)} regions; {undecided} of them are left out "
            "(choose with qupath-ext active collect --prefer), of the others only the one who was chosen counts"
        )
    if not found:
        return None

    def amend(source: Source, image: TrainingImage) -> TrainingImage:
        for loop, disputes in found:
            if source.project.path.resolve() in loop.paths:
                image = amended(image, source, disputed(disputes, source, loop.number_of(source.project)))
        return image

    return amend


def _loops(sources: Sequence[Source]) -> list[Loop]:
    """Return the loops whose state lies in the projects of some images."""
    projects = {source.project.path: source.project for source in sources}
    return [
        find_loop(path, record.parent.name, backend=project.backend)
        for path, project in projects.items()
        for record in sorted((path.parent / FOLDER).glob("*/loop.json"))
    ]


def _disputes(loop: Loop, say: Say) -> list[dict[str, Any]]:
    """Return which regions of a loop several went through, of all rounds."""
    back = [read_record(path) for path in sorted(loop.rounds_folder.glob(".rolled-back-*/[0-9]*/round.json"))]
    found = [dispute for record in (*back, *(one.record for one in loop.rounds())) for dispute in disputes_of(record)]
    one = loop.latest
    if one is not None and one.state == "proposed":
        try:
            found += disagreements(loop, read_answers(loop, one.number), "")
        except ProjectError as error:
            say(f"loop {loop.name}: whether several went through regions of round {one.number} is not known: {error}")
    return latest(found)
