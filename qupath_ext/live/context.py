"""What a task has beside its job: models, a place to say how far it is, and whether it is to stop."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeAlias

from pyhisto.errors import BundleError
from qupath_ext.live.job import Job
from qupath_ext.projectsettings import ProjectSettings, model_folder, read_settings

if TYPE_CHECKING:
    from pyhisto.bundle.anymodel import AnyModel

__all__ = ["Cancelled", "Context", "FreshModels", "Models", "Progress"]

Progress: TypeAlias = Callable[[str, int, int], None]
"""Called with the stage, the number of steps done and the number in all."""

LEAST_S = 0.1
"""Time between two lines about the same stage."""


class Cancelled(Exception):
    """Ends a task that is not wanted any more."""


class Models(Protocol):
    """Where loaded models come from."""

    def get(self, path: Path, device: str) -> AnyModel:
        """Return the model of a folder on a device, loaded now or before."""


class FreshModels:
    """Loads each model when it is asked for."""

    def get(self, path: Path, device: str) -> AnyModel:
        """Return the model of a folder on a device."""
        from pyhisto.bundle.anymodel import load_model

        return load_model(path, device=device)


@dataclass
class Context:
    """What a task works with.

    Attributes
    ----------
    job
        What is asked for.
    models
        Where loaded models come from.
    cancelled
        Whether whoever runs the job wants it stopped; the script says so with a file.
    progress
        Called when a step is done.
    say
        Called with lines for the log.
    """

    job: Job
    models: Models = field(default_factory=FreshModels)
    cancelled: Callable[[], bool] = lambda: False
    progress: Progress | None = None
    say: Callable[[str], None] = print
    _last: tuple[str, float] = ("", 0.0)

    def step(self, stage: str, done: int, total: int) -> None:
        """Say that a step is done; this is where a task is stopped.

        Raises
        ------
        Cancelled
            If the task is not wanted any more.
        """
        self.check()
        now = time.monotonic()
        if stage == self._last[0] and done < total and now - self._last[1] < LEAST_S:
            return
        self._last = stage, now
        line = json.dumps({"stage": stage, "done": done, "total": total}, ensure_ascii=False)
        with (self.job.folder / "progress.jsonl").open("a", encoding="utf-8") as file:
            file.write(line + "\n")
        if self.progress is not None:
            self.progress(stage, done, total)

    def check(self) -> None:
        """Stop here if the task is not wanted any more; see :meth:`step`."""
        if self.job.is_cancelled or self.cancelled():
            raise Cancelled

    def settings(self) -> ProjectSettings:
        """Return the settings of the project; the defaults without one."""
        return ProjectSettings() if self.job.project is None else read_settings(self.job.project)

    def model(self, folder: str, kinds: tuple[str, ...], device: str) -> AnyModel:
        """Return a model of one of some kinds; a folder that is no absolute path is seen from that of the project.

        Raises
        ------
        BundleError
            If it is of another kind, or cannot be loaded.
        """
        path = Path(folder) if self.job.project is None else model_folder(self.job.project, folder)
        model = self.models.get(path, device)
        if model.spec.kind not in kinds:
            raise BundleError(
                f"{path} is a model for {model.spec.kind.replace('_', ' ')}",
                expected=f"one for {' or '.join(kind.replace('_', ' ') for kind in kinds)}",
                remedy="name another in qupath_ext/settings.toml of the project",
            )
        return model
