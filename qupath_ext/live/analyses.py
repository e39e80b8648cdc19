"""The tasks that put objects into the open image, or take them out of it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from pyhisto.errors import ConfigError, PyhistoError
from qupath_ext.live.answer import change_answer
from qupath_ext.live.context import Cancelled, Context
from qupath_ext.live.job import Answer
from qupath_ext.live.liveproject import LiveProject
from qupath_ext.live.options import AnalysisOptions, find_place, read_options

if TYPE_CHECKING:
    from pyhisto.nuclei.adapt import View
    from qupath_ext.entry import ImageEntry
    from qupath_ext.runs.record import Run
    from qupath_ext.runs.undo import ImageUndo
    from qupath_ext.workflows.outcome import ImageOutcome
    from qupath_ext.workflows.prediction import Prediction
    from qupath_ext.workflows.slidememory import SlideMemory

    Outcome = TypeVar("Outcome", bound=ImageOutcome)

__all__ = ["cells_task", "ki67_task", "tumour_task", "undo_task"]


def ki67_task(context: Context) -> Answer:
    """Score Ki-67 in the selection (``ki67-selection``), or in the tumour of the image (``ki67-slide``)."""
    from qupath_ext.workflows.ki67 import Ki67Settings, annotate_project

    whole = context.job.task == "ki67-slide"
    options = read_options(AnalysisOptions, {"region": "auto" if whole else "selection", **context.job.options})
    settings = context.settings()
    project = LiveProject(context.job)
    device = options.device or settings.device
    named = {
        "tumour": (options.tumour or settings.tumour) if whole else options.tumour,
        "cells": None if options.classical else options.cells or settings.cells,
    }
    kinds = {"tumour": "tissue_segmentation", "cells": "cell_detection"}
    models: dict[str, Any] = {
        kind: context.model(folder, (kinds[kind],), device) for kind, folder in named.items() if folder
    }
    place = find_place(options, settings.tumour_class, context.job.selected, project.image.read_objects())
    result = _only(
        project,
        annotate_project(
            project,
            project.entries,
            Ki67Settings(
                region=place.source,
                tumour_class=place.region_class or settings.tumour_class,
                selected=() if "tumour" in models else place.selected,
                stains=options.stains,
                automatic=options.is_automatic(True),
                detection=options.detection_settings(settings),
                view=_view(options),
                prediction=_prediction(options),
            ),
            **models,
            memory=_memory(project),
            progress=context.step,
        ),
    )
    index = result.index
    where = "the tumour that the model found" if "tumour" in models else place.words
    share = "no cells"
    if index.total:
        share = f"{index.percent:.1f} %"
        if math.isfinite(index.low):
            share += f" ({index.low:.1f} to {index.high:.1f})"
        share += f", {index.positive} of {index.total} cells positive"
    counts = {"cells": index.total, "positive": index.positive}
    return _answer(project, f"Ki-67: {share}", where, result, counts)


def tumour_task(context: Context) -> Answer:
    """Segment tumour with the model of the project."""
    from qupath_ext.workflows.annotate import AnnotateSettings, annotate_images

    options = read_options(AnalysisOptions, context.job.options)
    settings = context.settings()
    folder = options.tumour or settings.tumour
    if folder is None:
        raise ConfigError(
            "this project has no model that segments tumour",
            expected='tumour = "folder" in its qupath_ext/settings.toml',
            remedy="train one with Train from annotations, or run qupath-ext install-scripts with --tumour",
        )
    project = LiveProject(context.job)
    model = context.model(folder, ("tissue_segmentation",), options.device or settings.device)
    place = find_place(options, None, context.job.selected, project.image.read_objects())
    result = _only(
        project,
        annotate_images(
            project,
            project.entries,
            model,
            AnnotateSettings(
                region=place.region_class or place.source,
                selected=place.selected,
                stains=options.stains,
                view=_view(options),
                prediction=_prediction(options),
            ),
            memory=_memory(project),
            progress=context.step,
        ),
    )
    found = ", ".join(f"{n} {name}" for name, n in result.counts.items()) or "nothing"
    return _answer(project, f"{model.path.name}: {found}", place.words, result, {})


def cells_task(context: Context) -> Answer:
    """Find cells without a model."""
    from qupath_ext.workflows.cells import CellsSettings, detect_images

    options = read_options(AnalysisOptions, context.job.options)
    settings = context.settings()
    project = LiveProject(context.job)
    place = find_place(options, settings.tumour_class, context.job.selected, project.image.read_objects())
    size = options.nucleus_size_um
    if isinstance(size, str) and size not in ("auto", "none"):
        raise ConfigError(f"nucleus_size_um {size!r}", expected="auto, none or a number of µm")
    result = _only(
        project,
        detect_images(
            project,
            project.entries,
            CellsSettings(
                region=place.source,
                region_class=place.region_class,
                selected=place.selected,
                detection=options.detection_settings(settings),
                nucleus_size_um=None if isinstance(size, str) else size,
                stains=options.stains,
                automatic=options.is_automatic(False),
            ),
            memory=_memory(project),
            progress=context.step,
        ),
    )
    return _answer(project, f"{result.cells} cells", place.words, result, {"cells": result.cells})


def undo_task(context: Context) -> Answer:
    """Take back the newest run of which something is in the open image; what a person changed stays."""
    from qupath_ext.runs.undo import undo_run

    project = LiveProject(context.job)
    run = _run_to_undo(project)
    if run is None:
        return Answer("done", "Nothing to undo: no run of qupath-ext has left anything in this image.")
    context.check()
    [done] = undo_run(project, run)
    parts = [f"{done.removed} objects removed", *([f"{done.restored} earlier ones back"] if done.restored else [])]
    if done.kept:
        parts.append(f"{done.kept} kept as somebody changed them")
    message = f"Undid {run.analysis} of {run.record.get('started', run.id)}: {', '.join(parts)}."
    counts = {"restored": done.restored, "kept": done.kept}
    return change_answer(project, message, run=run.id, counts=counts)


def _run_to_undo(project: LiveProject) -> Run | None:
    """Return the newest run of which something is in the image, or that could bring something back."""
    from qupath_ext.runs.ownership import read_ids
    from qupath_ext.runs.record import list_runs
    from qupath_ext.runs.undo import undo_run

    image = project.image
    present = image.read_objects().index
    for run in reversed(list(list_runs(project))):
        files = run.objects_files(image.id)
        if any(read_ids(path).isin(present).any() for path in files):
            return run
        if files and "undone" not in run.images.get(image.id, {}):
            planned: list[ImageUndo] = list(undo_run(project, run, dry_run=True))
            if any(one.restored or one.unlocked for one in planned):
                return run
    return None


# ---------------------------------------------------------------------- shared
def _only(project: LiveProject, outcomes: Iterator[Outcome | tuple[ImageEntry, PyhistoError]]) -> Outcome:
    """Return the result for the open image, or raise why there is none; no record stays of what came to nothing."""
    from qupath_ext.runs.record import list_runs

    try:
        [outcome] = outcomes
    except Cancelled:
        for run in reversed(list(list_runs(project))):
            if run.status == "running" and run.record.get("scope") == project.scope:
                run.hold()
                run.discard()
        raise
    if isinstance(outcome, tuple):
        raise outcome[1]
    return outcome


def _answer(project: LiveProject, found: str, where: str, result: ImageOutcome, counts: Mapping[str, float]) -> Answer:
    """Return the answer of an analysis."""
    from qupath_ext.runs.record import list_runs

    run = [run for run in list_runs(project) if run.record.get("scope") == project.scope][-1]
    message = f"{found}, in {result.region_area_mm2:.3f} mm² ({where})."
    if result.replaced or result.kept:
        message += f"\n{result.replaced} objects of earlier runs replaced, {result.kept} kept as somebody changed them."
    counts = {**counts, "region_mm2": round(result.region_area_mm2, 6), "kept": result.kept}
    return change_answer(project, message, run=run.id, notes=result.notes, counts=counts)


def _view(options: AnalysisOptions) -> View:
    from pyhisto.nuclei.adapt import View

    return View(options.nucleus_size_um, options.stain_normalisation, options.classify)


def _memory(project: LiveProject) -> SlideMemory:
    from qupath_ext.workflows.slidememory import SlideMemory

    return SlideMemory(project.path.parent)


def _prediction(options: AnalysisOptions) -> Prediction:
    from pyhisto.inference.settings import InferenceSettings
    from qupath_ext.workflows.prediction import Prediction

    return Prediction(InferenceSettings(flips=options.flips), strict=options.strict)
