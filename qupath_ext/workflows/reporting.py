"""The report of a Ki-67 analysis: one HTML page and one overlay picture, beside the project."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pyhisto.overlay import densest_field, overlay_png
from qupath_ext.frames import image_area, open_slide
from qupath_ext.project import Project
from qupath_ext.report import Ki67Report, SlideReport, TruthReport, write_report
from qupath_ext.workflows.ki67 import ImageResult

__all__ = ["write_ki67_report"]

DETAIL_UM = 300.0
"""Side of the field that is shown enlarged."""


def write_ki67_report(
    folder: Path,
    project: Project,
    results: Sequence[ImageResult],
    *,
    title: str,
    models: Mapping[str, str],
    curves: Mapping[str, Sequence[float]] | None = None,
    truth: TruthReport | None = None,
) -> tuple[Path, Path]:
    """Write ``report.html`` and ``overlay.png`` (of the first image) into a folder.

    Parameters
    ----------
    folder
        An existing folder.
    project
        The project that holds the results.
    results
        What was found, one an image.
    title
        Of the page.
    models
        Name of each model, or of the classical detector, to its sha256 or settings.
    curves
        Training losses by model.
    truth
        How the first result compares with the truth, where that is known.

    Returns
    -------
    tuple of Path
        The page and the picture.
    """
    slides = []
    for number, result in enumerate(results):
        entry = project.entry(int(result.entry_id))
        with open_slide(entry) as slide:
            overview = overlay_png(slide, result.objects, bounds=image_area(entry, slide).bounds)
            bounds = densest_field(result.objects, DETAIL_UM, slide.mpp)
            detail = None
            if bounds is not None:
                detail = overlay_png(slide, result.objects, bounds=bounds, max_size=(1200, 1200))
        slides.append(_slide_report(result, overview, detail, truth if number == 0 else None))
    report = Ki67Report(
        title=title,
        created=datetime.datetime.now().astimezone().strftime("%Y-%m-%d %H:%M"),
        software={name: version(name) for name in ("qupath-ext", "torch", "monai", "openslide-python", "tifffile")},
        models=models,
        project=str(project.path),
        curves=curves or {},
        slides=tuple(slides),
    )
    page, picture = folder / "report.html", folder / "overlay.png"
    write_report(page, report)
    if slides:
        temporary = picture.with_suffix(".tmp")
        try:
            temporary.write_bytes(slides[0].overview_png)
            temporary.replace(picture)
        finally:
            temporary.unlink(missing_ok=True)
    return page, picture


def _slide_report(result: ImageResult, overview: bytes, detail: bytes | None, truth: TruthReport | None) -> SlideReport:
    area = result.region_area_mm2
    networks = [value for name, value in result.settings.items() if name.startswith("network")]
    warnings = [f"{code}: {words}" for network in networks for code, words in network["findings"].items()]
    return SlideReport(
        name=result.name,
        index=result.index,
        tumour_area_mm2=area,
        cells_per_mm2=result.index.total / area if area else float("nan"),
        overview_png=overview,
        detail_png=detail,
        stains={name: _text(value) for name, value in result.settings["stains"].items()},
        settings={name: _text(value) for name, value in result.settings.items() if name != "stains"},
        notes=tuple(note for note in result.notes if note not in warnings),
        warnings=tuple(warnings),
        truth=truth,
    )


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list | tuple):
        return ", ".join(_text(item) for item in value)
    if isinstance(value, Mapping):
        return "; ".join(f"{name}: {_text(item)}" for name, item in value.items())
    return str(value)
