"""Doing what a job asks for, whatever happens: there is an answer in the end."""

from __future__ import annotations

import dataclasses
import importlib
import time
import traceback
from collections.abc import Callable
from pathlib import Path

from pyhisto.errors import PyhistoError
from qupath_ext.live.context import Cancelled, Context, FreshModels, Models, Progress
from qupath_ext.live.job import Answer, read_job, write_answer

__all__ = ["run_job"]

PACKAGE = "qupath_ext.live"

FUNCTIONS = {
    "ki67-selection": "analyses:ki67_task",
    "ki67-slide": "analyses:ki67_task",
    "tumour": "analyses:tumour_task",
    "detect-cells": "analyses:cells_task",
    "train": "projecttasks:train_task",
    "evaluate": "projecttasks:evaluate_task",
    "export": "projecttasks:export_task",
    "undo": "analyses:undo_task",
    "doctor": "projecttasks:doctor_task",
    "ping": "projecttasks:ping_task",
}
"""Name of each task to ``module:function``, which is imported when it is needed."""


def run_job(
    folder: str | Path,
    *,
    models: Models | None = None,
    cancelled: Callable[[], bool] | None = None,
    progress: Progress | None = None,
    say: Callable[[str], None] = print,
) -> Answer:
    """Do what the job of a folder asks for, and write its answer.

    Parameters
    ----------
    folder
        The folder; see :mod:`qupath_ext.live.job`.
    models
        Where loaded models come from; each is loaded when it is needed by default.
    cancelled
        Whether the job is to be stopped, asked between tiles; a file ``cancel`` in the folder says so, too.
    progress
        Called with the stage, the number of steps done and the number in all.
    say
        Called with lines for the log.

    Returns
    -------
    Answer
        What stands in ``answer.json``. Expected errors, and faults of this program, are answers that say ``failed``.

    Raises
    ------
    FormatError
        If the job itself is not understood; there is no answer then.
    ProjectError
        If the answer cannot be written.
    """
    begin = time.perf_counter()
    job = read_job(folder)
    context = Context(job, models or FreshModels(), cancelled or _never, progress, say)
    module, function = FUNCTIONS[job.task].split(":")
    try:
        context.check()
        answer: Answer = getattr(importlib.import_module(f"{PACKAGE}.{module}"), function)(context)
    except Cancelled:
        answer = Answer("cancelled", "Stopped. Nothing was changed.")
    except PyhistoError as error:
        answer = Answer.failed(error)
    except OSError as error:
        where = f": {error.filename}" if error.filename else ""
        answer = Answer.failed(f"{error.strerror or error}{where}")
    except Exception as error:  # noqa: BLE001 - whoever waits in QuPath has to be told
        say(traceback.format_exc())
        answer = Answer.failed(f"a fault of this program: {type(error).__name__}: {error}")
    answer = dataclasses.replace(answer, seconds=round(time.perf_counter() - begin, 3))
    write_answer(job.folder, answer)
    return answer


def _never() -> bool:
    return False
