"""``qupath-ext ki67``."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from qupath_ext.cli.common import (
    backend_option,
    mpp_option,
    open_for_command,
    prediction_options,
    prediction_settings,
    stains_option,
    view_options,
    wanted_entries,
)
from qupath_ext.errors import ProjectExistsError
from qupath_ext.project import create_project

if TYPE_CHECKING:
    from pyhisto.bundle.files import Bundle
    from pyhisto.errors import PyhistoError
    from qupath_ext.project import ImageEntry, Project
    from qupath_ext.workflows.ki67 import ImageResult, Ki67Settings

__all__ = ["ki67"]

F = TypeVar("F", bound=Callable[..., Any])

DETECTION_OPTIONS: dict[str, tuple[Any, str]] = {
    "detection_image": (
        click.Choice(["Hematoxylin OD", "Optical density sum"]),
        "Image in which nuclei are looked for.",
    ),
    "requested_pixel_size_um": (float, "Resolution of the detection, µm/px."),
    "background_radius_um": (float, "Radius of the background, µm; 0 for none."),
    "median_radius_um": (float, "Radius of the median filter, µm."),
    "sigma_um": (float, "Sigma of the blur, µm."),
    "min_area_um2": (float, "Least area of a nucleus, µm²."),
    "max_area_um2": (float, "Largest area of a nucleus, µm²."),
    "threshold": (float, "Intensity threshold of the detection, OD."),
    "max_background": (float, "Largest background intensity, OD."),
    "cell_expansion_um": (float, "Growth of a nucleus to its cell, µm; 0 gives nuclei only. Also for --cells."),
    "dab_threshold": (float, "Nucleus DAB OD mean from which a cell is positive."),
}
"""QuPath's parameters of the classical detector that are options, with their help."""


def detection_options(command: F) -> F:
    """Add an option for each of :data:`DETECTION_OPTIONS`; those not given are None."""
    for name, (kind, text) in reversed(DETECTION_OPTIONS.items()):
        command = click.option(f"--{name.replace('_', '-')}", name, type=kind, default=None, help=text)(command)
    return command


@click.command()
@click.argument("target", metavar="SLIDE_OR_PROJECT", type=click.Path(path_type=Path))
@click.option("--tumour", type=click.Path(path_type=Path), default=None, help="Model bundle that segments tumour.")
@click.option("--cells", type=click.Path(path_type=Path), default=None, help="Model bundle that finds the cells.")
@click.option("--classical", is_flag=True, help="Find the cells without a model, as QuPath's cell detection does.")
@click.option(
    "--output",
    "-o",
    type=click.Path(path_type=Path),
    default=None,
    help="Folder of the new project, for a slide; default: <slide>-ki67 in the current folder.",
)
@click.option("--image", "images", multiple=True, help="Name or id of an image of the project; may be repeated.")
@click.option(
    "--region",
    type=click.Choice(["auto", "tumour", "tissue", "image"]),
    default="auto",
    show_default=True,
    help="Where to look without --tumour: annotations of the class Tumor, tissue, or all; auto: the first there is.",
)
@mpp_option
@stains_option
@click.option(
    "--auto/--no-auto",
    "automatic",
    default=None,
    help="Derive the classical thresholds from each slide [default: unless --threshold or --dab-threshold is given].",
)
@detection_options
@view_options
@prediction_options
@backend_option
@click.option("--dry-run", is_flag=True, help="Say what would be written, and write nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of text.")
def ki67(target: Path, as_json: bool, **options: Any) -> None:
    """Score Ki-67 on a slide, or on the images of a QuPath project.

    Tumour annotations and cells classed Tumor: Positive and Tumor: Negative go into the project (for a slide: a new
    one). Nothing that a person drew is changed. Close the image in QuPath first, and use File > Reload data afterwards.
    """
    from qupath_ext.cli.progress import StageProgress

    _check_options(target, options)
    settings = _settings(options)
    models = _models(options)
    with StageProgress(enabled=sys.stderr.isatty() or not as_json) as progress:
        job = _Job(settings, models, options["dry_run"], progress)
        project: Project | None
        if _is_project(target):
            project = open_for_command(target, options["backend"])
            results, failures = job.run(project, wanted_entries(project, options["images"]))
            if not job.dry_run:
                _write_report(project, results, job)
        else:
            folder = (options["output"] or Path(f"{target.stem}-ki67")).resolve()
            project, results = _score_slide(target.resolve(), folder, options["mpp"], options["backend"], job)
            failures = []
    _print(results, failures, project, as_json)
    if failures:
        sys.exit(1)


def _is_project(target: Path) -> bool:
    return target.is_dir() or target.suffix.lower() == ".qpproj"


def _check_options(target: Path, options: dict[str, Any]) -> None:
    """Refuse options that contradict each other, before anything is read."""
    if options["classical"] == (options["cells"] is not None):
        raise click.UsageError("Give either --cells BUNDLE or --classical.")
    if _is_project(target) and options["output"] is not None:
        raise click.UsageError("--output is for a slide; the results of a project go into that project.")
    if not _is_project(target) and options["images"]:
        raise click.UsageError("--image is for a project; SLIDE_OR_PROJECT is a slide.")


def _settings(options: dict[str, Any]) -> Ki67Settings:
    from pyhisto.nuclei import CellDetectionSettings
    from pyhisto.nuclei.adapt import View
    from qupath_ext.workflows.ki67 import Ki67Settings

    given = {name: options[name] for name in DETECTION_OPTIONS if options[name] is not None}
    automatic = options["automatic"]
    if automatic is None:
        automatic = not {"threshold", "dab_threshold"} & set(given)
    return Ki67Settings(
        region=options["region"],
        stains=options["stains"],
        automatic=automatic,
        detection=CellDetectionSettings(**given),
        view=View(options["nucleus_size_um"], options["stain_normalisation"], options["classify"]),
        mpp=options["mpp"],
        prediction=prediction_settings(options),
    )


def _models(options: dict[str, Any]) -> list[tuple[Bundle | None, Bundle | None]]:
    """Return the models of tumour and cells, once for each device."""
    from pyhisto.bundle.files import load_bundle
    from pyhisto.device import devices

    def load(path: Path | None, kind: str, device: str) -> Bundle | None:
        if path is None:
            return None
        return load_bundle(path, kind=kind, device=device, precision=options["precision"], engine=options["engine"])

    return [
        (load(options["tumour"], "tissue_segmentation", device), load(options["cells"], "cell_detection", device))
        for device in devices(options["device"])
    ]


@dataclass(frozen=True)
class _Job:
    """All that scoring needs beside the images."""

    settings: Ki67Settings
    models: list[tuple[Bundle | None, Bundle | None]]
    dry_run: bool
    progress: Callable[[str, int, int], None]

    def run(
        self, project: Project, entries: Sequence[ImageEntry]
    ) -> tuple[list[ImageResult], list[tuple[ImageEntry, PyhistoError]]]:
        """Score images; return the results and the images that failed, with the reason."""
        from qupath_ext.workflows.ki67 import ImageResult, annotate_project

        results: list[ImageResult] = []
        failures = []
        (tumour, cells), *others = self.models
        outcomes = annotate_project(
            project,
            entries,
            self.settings,
            tumour=tumour,
            cells=cells,
            others=others,
            dry_run=self.dry_run,
            progress=self.progress,
        )
        for outcome in outcomes:
            if isinstance(outcome, ImageResult):
                results.append(outcome)
            else:
                failures.append(outcome)
        return results, failures


def _score_slide(
    path: Path, folder: Path, mpp: float | None, backend: str, job: _Job
) -> tuple[Project | None, list[ImageResult]]:
    """Make a project for a slide and score it; if that fails, the project is taken away again."""
    from pyhisto.slide import Slide
    from pyhisto.stain import H_DAB
    from qupath_ext.workflows.ki67 import analyse_slide

    with Slide(path, mpp=mpp) as slide:
        slide.read_region(0, 0, 1, 1, mpp=slide.mean_mpp)
        if job.dry_run:
            stains = None if job.settings.stains == "auto" else H_DAB  # a new project has the default stains
            tumour, cells = job.models[0]
            result = analyse_slide(
                slide, job.settings, stains=stains, tumour=tumour, cells=cells, progress=job.progress
            )
            return None, [result]
    missing = [place for place in (folder, *folder.parents) if not place.exists()]
    project = _new_project(folder, backend)
    try:
        entry = project.add_image(path, mpp=mpp)
        results, failures = job.run(project, [entry])
        if failures:
            raise failures[0][1]
        _write_report(project, results, job)
    except BaseException:
        _empty(folder)
        for place in missing:
            place.rmdir()
        raise
    return project, results


def _new_project(folder: Path, backend: str) -> Project:
    """Make a project and say what writes it; where there is one already, say how to go on with it."""
    try:
        project = create_project(folder, backend=backend)
    except ProjectExistsError as error:
        if not any(folder.glob("*.qpproj")):
            raise
        raise ProjectExistsError(
            f"{folder} holds a project already",
            expected="a new or empty folder",
            remedy=f"choose another --output, or score its images: qupath-ext ki67 {folder}",
        ) from error
    click.echo(f"project backend: {project.backend_version}", err=True)
    return project


def _empty(folder: Path) -> None:
    """Remove everything inside a folder that was empty, or not there, before this command."""
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def _write_report(project: Project, results: list[ImageResult], job: _Job) -> None:
    """Write the report into the project's own ``qupath_ext`` folder."""
    from qupath_ext.workflows.reporting import write_ki67_report

    bundles = [bundle for bundle in job.models[0] if bundle is not None]
    models = {f"{bundle.spec.kind} ({bundle.spec.architecture})": bundle.sha256 for bundle in bundles}
    if job.models[0][1] is None:
        models["cells"] = "classical detector"
    folder = project.path.parent / "qupath_ext"
    folder.mkdir(exist_ok=True)
    write_ki67_report(folder, project, results, title="Ki-67", models=models)


def _print(
    results: list[ImageResult],
    failures: list[tuple[ImageEntry, PyhistoError]],
    project: Project | None,
    as_json: bool,
) -> None:
    """Print the results as text or as one JSON object."""
    if as_json:
        document = {
            "project": str(project.path) if project else None,
            "images": [result.summary() for result in results],
            "failed": [{"image": entry.name, "error": str(error)} for entry, error in failures],
        }
        click.echo(json.dumps(document, indent=2, ensure_ascii=False))
        return
    for result in results:
        index = result.index
        where = f"in {result.region_area_mm2:.3f} mm²"
        if index.total:
            interval = f"95 % interval {index.low:.1f} to {index.high:.1f} %"
            found = f"Ki-67 {index.percent:.1f} % ({interval}), {index.total} cells, {index.positive} positive"
        else:
            cells = int((result.objects["object_type"] == "cell").sum())
            found = f"{cells} cells, none of them positive or negative" if cells else "no cells"
        click.echo(f"{result.name}: {found}, {where}")
        if result.replaced or result.kept:
            click.echo(
                f"  {result.replaced} objects of earlier runs replaced, {result.kept} kept as a person left them"
            )
        for note in result.notes:
            click.echo(f"  note: {note}")
        for path in result.maps:
            click.echo(f"  {path}, in the folder of the run")
    for entry, error in failures:
        click.echo(f"{entry.name}: failed: {error}", err=True)
    if project is not None:
        click.echo(f"open in QuPath: {project.path}")
