"""What a run writes into the metadata of an image, and taking it back."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from qupath_ext.errors import FormatError
from qupath_ext.runs.record import Run, list_runs, write_json

if TYPE_CHECKING:
    from qupath_ext.entry import ImageEntry
    from qupath_ext.project import Project

__all__ = ["take_back_metadata", "write_metadata"]


def write_metadata(run: Run, entry: ImageEntry, values: Mapping[str, str]) -> None:
    """Set metadata of an image as part of a run; what was there before is on disk first.

    Raises
    ------
    ProjectError
        If the run or the project cannot be written, or the project changed on disk since it was read.
    """
    kept = _read(run, entry.id)
    present = entry.metadata
    for name, value in values.items():
        before = kept[name]["before"] if name in kept else present.get(name)
        kept[name] = {"before": before, "written": value}
    run.metadata_file(entry.id).parent.mkdir(exist_ok=True)
    write_json(run.metadata_file(entry.id), kept)
    entry.update(metadata=values)


def take_back_metadata(project: Project, run: Run, entry: ImageEntry) -> int:
    """Give metadata that a run wrote, and nobody changed since, the value from before; return how many had it.

    Values of earlier runs of the analysis that were undone underneath this one do not come back: those from before
    them do.

    Raises
    ------
    ProjectError
        If the project cannot be written, or changed on disk since it was read.
    """
    present = entry.metadata
    values = {
        name: kept["before"] for name, kept in _read(run, entry.id).items() if present.get(name) == kept["written"]
    }
    earlier = [other for other in list_runs(project) if other.id < run.id and other.analysis == run.analysis]
    for other in reversed([other for other in earlier if other.objects_files(entry.id)]):
        if not other.images.get(entry.id, {}).get("undone", {}).get("covered_by"):
            break
        for name, kept in _read(other, entry.id).items():
            if name in values and values[name] == kept["written"]:
                values[name] = kept["before"]
    if values:
        entry.update(metadata=values)
    return len(values)


def _read(run: Run, entry_id: str) -> dict[str, dict[str, Any]]:
    path = run.metadata_file(entry_id)
    if not path.is_file():
        return {}
    try:
        kept: dict[str, dict[str, Any]] = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise FormatError(f"{path} is damaged ({error})", remedy="restore its run folder, or remove it") from error
    return kept
