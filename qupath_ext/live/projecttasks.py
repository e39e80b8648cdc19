"""The tasks that look at the project as it was saved last, and write beside it; and those that write nothing."""

from __future__ import annotations

import datetime
from collections.abc import Iterator
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from pyhisto.errors import ConfigError, PyhistoError
from qupath_ext.errors import ProjectError, RunNotFoundError
from qupath_ext.live.context import Context
from qupath_ext.live.job import Answer
from qupath_ext.live.options import EvaluateOptions, ExportOptions, TrainOptions, read_options
from qupath_ext.projectsettings import change_settings, model_folder

if TYPE_CHECKING:
    from qupath_ext.entry import ImageEntry
    from qupath_ext.maintenance.doctor import CheckUp
    from qupath_ext.project import Project
    from qupath_ext.runs.record import Run

__all__ = ["doctor_task", "evaluate_task", "export_task", "ping_task", "train_task"]

FOLDER = "qupath_ext"
"""Folder of this program in a project."""

UNFINISHED = ".training"
"""Ending of the folder of a training that was not finished."""

SETTING_OF_KIND = {"tissue_segmentation": "tumour", "cell_detection": "cells"}
"""Setting of a project that names its model of a kind."""

MARKS = {"ok": "ok  ", "note": "note", "bad": "BAD "}


def _open(context: Context) -> Project:
    """Open the project as it was saved last."""
    from qupath_ext.project import open_project

    if context.job.project is None:
        raise ProjectError(
            "no project is open in QuPath",
            expected="a project with saved images",
            remedy="open one with File > Project > Open project",
        )
    return open_project(context.job.project, backend="native")


def _entries(project: Project, images: tuple[str, ...]) -> list[ImageEntry]:
    return list(dict.fromkeys(project.entry(name) for name in images)) or project.entries


# ---------------------------------------------------------------------- train
def train_task(context: Context) -> Answer:
    """Train a model on the annotations of the project; it becomes the model that the project uses."""
    from pyhisto.bundle.files import load_bundle
    from qupath_ext.active.disputes import without_disputed
    from qupath_ext.workflows.planning import Wanted
    from qupath_ext.workflows.trainingdata import gather
    from qupath_ext.workflows.trainrun import TrainRun, run_training

    options = read_options(TrainOptions, context.job.options)
    settings = context.settings()
    project = _open(context)
    models = project.path.parent / FOLDER / "models"
    name = options.name or _unfinished(models) or f"model-{datetime.datetime.now():%Y%m%d-%H%M%S}"
    if Path(name).name != name or name.endswith(UNFINISHED) or name.startswith("."):
        raise ConfigError(f"name {name!r} of a model", expected="the name of a folder, without / and \\")
    models.mkdir(parents=True, exist_ok=True)
    init = None if options.init is None else load_bundle(model_folder(project.path, options.init))

    def say(line: str) -> None:
        context.check()
        context.say(line)

    sources = gather([project], options.images)
    trained = run_training(
        TrainRun(
            sources=sources,
            output=models / name,
            init=init,
            device=options.device or settings.device,
            wanted=Wanted(
                kind=options.task,
                classes=options.classes,
                mpp=options.mpp,
                name=name,
                patient_key=settings.patient_key,
            ),
            minutes=options.minutes or settings.training_minutes,
            amend=without_disputed(sources, say),
        ),
        say,
        context.step,
    )
    if trained.bundle is None:
        raise ProjectError("this process is not the first of its training", expected="one process for a job")
    setting = SETTING_OF_KIND[trained.bundle.spec.kind]
    change_settings(project.path, **{setting: f"{FOLDER}/models/{name}"})
    best = next((row for row in trained.result.validation if row.step == trained.result.best_step), None)
    how = "no validation: too few annotations for one" if best is None else f"validation Dice {best.mean_dice:.3f}"
    return Answer(
        "done",
        f"Trained {name} ({how}).\nThe project uses it from now on: {setting} in qupath_ext/settings.toml.",
        counts={} if best is None else {"dice": best.mean_dice, "steps": best.step},
    )


def _unfinished(models: Path) -> str | None:
    """Return the name of the newest training that was interrupted."""
    found = sorted(models.glob(f"*{UNFINISHED}"), key=lambda path: path.stat().st_mtime)
    return found[-1].name.removesuffix(UNFINISHED) if found else None


# ---------------------------------------------------------------------- evaluate
def evaluate_task(context: Context) -> Answer:
    """Compare what the newest run wrote with what people drew."""
    from qupath_ext.workflows.evaluation.compare import compare_images
    from qupath_ext.workflows.evaluation.settings import EvaluationSettings
    from qupath_ext.workflows.evaluation.sources import parse_source
    from qupath_ext.workflows.evaluation.writing import sentence, write_results

    options = read_options(EvaluateOptions, context.job.options)
    settings = context.settings()
    project = _open(context)
    run = None if options.prediction else _newest_analysis(project)
    prediction = options.prediction or f"run:{run.id if run else ''}"
    tissue = run is not None and run.analysis.startswith("annotate-tissue")
    found = compare_images(
        project,
        _entries(project, options.images),
        parse_source(prediction, project, backend="native"),
        parse_source(options.reference, project, backend="native"),
        EvaluationSettings(
            task=options.task or ("tissue" if tissue else "cells"),
            classes=options.classes,
            radius_um=options.radius_um,
            region=options.region,
            patient_key=settings.patient_key,
        ),
        progress=context.step,
    )
    folder = project.path.parent / FOLDER / "reports" / f"{datetime.datetime.now():%Y%m%d-%H%M%S-%f}"
    write_results(folder, project, found)
    left_out = [f"{name}: not compared, {reason}" for name, reason in (*found.left_out, *found.failed)]
    page = folder / "report.html"
    return Answer("done", f"{sentence(found)}\n{page}", open=str(page), notes=tuple(left_out))


def _newest_analysis(project: Project) -> Run:
    """Return the newest run that looked for something, and was not undone."""
    from qupath_ext.runs.record import list_runs
    from qupath_ext.workflows.trainingdata import IMPORTS

    for run in reversed(list(list_runs(project))):
        if run.analysis != IMPORTS and any(run.is_done(entry_id) for entry_id in run.entry_ids()):
            return run
    raise RunNotFoundError(
        "nothing to evaluate: no run of qupath-ext has written to this project",
        remedy="run Ki-67 or Segment tumour first, and save",
    )


# ---------------------------------------------------------------------- export
def export_task(context: Context) -> Answer:
    """Write all objects and tables of the project for other programs, in place of those of last time."""
    from qupath_ext.workflows.exchange import FORMATS, MASKS, ExportSettings, export_images, export_table

    options = read_options(ExportOptions, context.job.options)
    allowed = [form for form in FORMATS if form not in MASKS]
    for form in options.formats:
        if form not in allowed:
            raise ConfigError(f"format {form!r}", expected=f"one of {', '.join(allowed)}")
    project = _open(context)
    entries = _entries(project, options.images)
    folder = project.path.parent / FOLDER / "export"
    n_files = n_objects = 0
    for form in options.formats:
        done = export_images(project, entries, folder, form, ExportSettings(overwrite=True))
        for number, (_, _, n) in enumerate(done, start=1):
            context.step(form, number, len(entries))
            n_files, n_objects = n_files + 1, max(n_objects, 0) + n
    for rows in options.rows:
        path = folder / f"{rows}.csv"
        export_table(entries, path, rows, overwrite=True, progress=partial(context.step, rows))
        n_files += 1
    objects = n_objects // max(1, len(options.formats))
    return Answer(
        "done",
        f"{objects} objects of {len(entries)} images in {n_files} files:\n{folder}",
        open=str(folder),
        counts={"objects": objects, "images": len(entries), "files": n_files},
    )


# ---------------------------------------------------------------------- doctor and ping
def doctor_task(context: Context) -> Answer:
    """Say whether machine, project and open image are fit for the work."""
    from qupath_ext.maintenance.doctor import examine, examine_project

    found = list(examine(quick=True))
    if context.job.project is not None:
        found += examine_project(context.job.project)
        found += _settings_check(context)
        found += _image_check(context)
    for check in found:
        context.say(f"{MARKS[check.state]}  {check.subject}: {check.found}")
        if check.state != "ok" and check.remedy:
            context.say(f"      {check.remedy}")
    wrong = [check for check in found if check.state != "ok"]
    bad = sum(check.state == "bad" for check in wrong)
    message = "All is well."
    if wrong:
        message = f"{bad} things stop the work, {len(wrong) - bad} deserve a look:"
    lines = [f"{check.subject}: {check.found}" + (f" ({check.remedy})" if check.remedy else "") for check in wrong]
    return Answer("done", message, notes=tuple(lines), counts={"bad": bad, "notes": len(wrong) - bad})


def _settings_check(context: Context) -> Iterator[CheckUp]:
    """Look whether the models that the settings name are there."""
    from qupath_ext.maintenance.doctor import CheckUp

    project = context.job.project
    try:
        settings = context.settings()
    except PyhistoError as error:
        yield CheckUp("settings", "bad", str(error.found), str(error.remedy or error.expected))
        return
    for name, model in (("tumour", settings.tumour), ("cells", settings.cells)):
        if model is None or project is None:
            continue
        folder = model_folder(project, model)
        if folder.is_dir():
            yield CheckUp(f"model for {name}", "ok", str(folder))
        else:
            yield CheckUp(f"model for {name}", "bad", f"{folder} is not there", "bring it back, or name another one")


def _image_check(context: Context) -> Iterator[CheckUp]:
    """Look whether the slide of the open image can be read here, and has a pixel size."""
    from qupath_ext.frames import open_slide
    from qupath_ext.live.liveproject import LiveProject
    from qupath_ext.maintenance.doctor import CheckUp

    try:
        image = LiveProject(context.job).image
        with open_slide(image) as slide:
            x, y = slide.mpp
            found = f"{slide.path.name}, {slide.dimensions[0]} x {slide.dimensions[1]} px of {x:.4g} x {y:.4g} µm"
    except PyhistoError as error:
        yield CheckUp("open image", "bad", str(error.found), str(error.remedy or error.expected))
        return
    yield CheckUp("open image", "ok", found)
    if image.image_type in (None, "UNSET"):
        yield CheckUp("image type", "note", "is not set", "set it in the Image tab: stains depend on it")


def ping_task(context: Context) -> Answer:
    """Say that this program is there, and its version."""
    del context
    return Answer("done", f"qupath-ext {version('qupath-ext')} is there.")
