"""Going back to an earlier round without losing anything that a person drew."""

from __future__ import annotations

import datetime
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyhisto.objects import load_objects
from qupath_ext.errors import ProjectError
from qupath_ext.runs.diff import diff_run
from qupath_ext.runs.record import Run, list_runs, now, write_json
from qupath_ext.runs.undo import undo_run
from qupath_ext.workflows.trainingdata import DONE

if TYPE_CHECKING:
    from qupath_ext.active.loop import Loop, Round
    from qupath_ext.project import Project

__all__ = ["rollback"]

Say = Callable[[str], None]


def rollback(loop: Loop, number: int, say: Say) -> Path | None:
    """Return the projects and the state of a loop to the end of a round.

    The runs of later rounds are undone: regions that are open and predictions that nobody touched go. What a person
    changed or drew stays, and so does all that is in a ``Done*`` region, which would say something else without it; it
    goes on to count for the training. The folders of later rounds are moved to ``rounds/.rolled-back-<time>/``, where
    ``rollback.json`` names what stayed.

    Parameters
    ----------
    loop
        The loop.
    number
        The last round that stays; 0 to take all back.
    say
        Called with lines about what is done.

    Returns
    -------
    pathlib.Path or None
        Where the later rounds are now; None if there are none.

    Raises
    ------
    ProjectError
        If there is no such round, or an image or the state of the loop cannot be written.
    """
    if number != 0:
        loop.round(number)
    later = [one for one in loop.rounds() if one.number > number]
    if not later:
        say(f"round {number} is the last one of the loop {loop.name!r}")
        return None
    stayed: list[dict[str, Any]] = []
    for one in reversed(later):
        predictions = one.folder / "predictions.parquet"
        parents = load_objects(predictions)["parent_id"] if predictions.is_file() else {}
        for project in loop.projects:
            for run in _runs_of(loop, one, project):
                stayed += _undone(project, run, dict(parents), one.number, say)
    stamp = f"{datetime.datetime.now(datetime.UTC):%Y%m%d-%H%M%S-%f}"
    target = loop.rounds_folder / f".rolled-back-{stamp}"
    try:
        target.mkdir()
        write_json(target / "rollback.json", {"when": now(), "to": number, "stayed": stayed})
        for one in reversed(later):
            one.folder.rename(target / one.folder.name)
    except OSError as error:
        raise ProjectError(f"{target} cannot be written: {error.strerror or error}") from error
    say(f"back at round {number}; {len(later)} later rounds are in {target}")
    return target


def _runs_of(loop: Loop, one: Round, project: Project) -> list[Run]:
    """Return the runs of a round in a project, also one that was interrupted."""
    own = [run for run in list_runs(project) if run.analysis == loop.analysis]
    regions = set(one.table("proposals").index) if one.has("proposals") else set()
    return [run for run in own if regions & set(run.record["config"].get("regions", ()))]


def _undone(project: Project, run: Run, parents: dict[str, str], number: int, say: Say) -> list[dict[str, Any]]:
    """Undo a run but for what is in regions that are done; return what stayed of each image."""
    stayed, keep = [], set[str]()
    for image in diff_run(project, run):
        found = image.objects
        there = found["status"].isin(["untouched", "changed"])
        done = set(found.index[there & (found["now"] == DONE)])
        inside = {str(id_) for id_ in found.index[there] if parents.get(str(id_)) in done}
        changed = [str(id_) for id_ in found.index[found["status"] == "changed"]]
        keep |= inside
        stayed.append(
            {
                "round": number,
                "project": str(project.path),
                "entry_id": image.entry_id,
                "changed": changed,
                "in_done_regions": sorted(inside - set(changed)),
                "added": [str(id_) for id_ in image.added.index],
            }
        )
    if run.status != "undone":
        for done_image in undo_run(project, run, keep=keep):
            say(
                f"  round {number}, {done_image.name}: {done_image.removed} objects removed, "
                f"{done_image.kept} kept as a person left them"
            )
    return stayed
