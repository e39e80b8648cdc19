"""Any model over the images of a project: tissue becomes annotations, cells become cells with measurements."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import geopandas as gpd

from pyhisto.bundle import Bundle
from pyhisto.classes import CLASS_COLORS
from pyhisto.errors import PyhistoError
from pyhisto.inference import predict_tissue
from pyhisto.nuclei.adapt import View, adapt
from pyhisto.nuclei.survey import expected_stains
from pyhisto.objects import concat_objects, empty_objects
from pyhisto.slide import Slide
from pyhisto.tissue import TissueSettings, detect_tissue
from qupath_ext.errors import ProjectError
from qupath_ext.frames import image_area, open_slide, to_entry_frame, to_slide_frame
from qupath_ext.project import ImageEntry, Project, pack_rgb
from qupath_ext.runs.ownership import read_ownership, write_run
from qupath_ext.runs.record import Run
from qupath_ext.workflows.images import Progress, run_images
from qupath_ext.workflows.networks import network_cells
from qupath_ext.workflows.regions import (
    TISSUE_MARGIN_UM,
    cells_inside,
    cut_to,
    region_to_search,
    with_parents,
    without_doubles,
    without_ignored,
)
from qupath_ext.workflows.surveys import StainSource, Surveys, entry_stains

__all__ = ["AnnotateSettings", "Annotated", "annotate_images"]


@dataclass(frozen=True)
class AnnotateSettings:
    """Settings of ``annotate``.

    Attributes
    ----------
    region
        Where to look: ``"tissue"``, ``"image"``, or the name of a class for its annotations; ``"auto"`` in the tissue.
    stains
        As in :func:`qupath_ext.workflows.surveys.entry_stains`.
    view
        How the network sees the slides.
    cell_expansion_um
        Growth of nuclei into cells; 0 gives detections.
    mpp
        Pixel size in µm that overrides the project's and the file's.
    """

    region: str = "auto"
    stains: StainSource = "auto"
    view: View = field(default_factory=View)
    cell_expansion_um: float = 5.0
    mpp: float | None = None


@dataclass(frozen=True)
class Annotated:
    """What was written to an image.

    Attributes
    ----------
    name, entry_id
        Of the image.
    counts
        Number of new objects of each class; ``Unclassified`` for those of none.
    region_area_mm2
        Area that was looked at.
    settings, notes
        What was measured on the slide, and what deserves a look.
    seconds, kept, replaced
        Time taken; objects of earlier runs that a person changed and that stay; objects that were replaced.
    """

    name: str
    entry_id: str
    counts: dict[str, int]
    region_area_mm2: float
    settings: dict[str, Any]
    notes: tuple[str, ...] = ()
    seconds: float = 0.0
    kept: int = 0
    replaced: int = 0

    def summary(self) -> dict[str, Any]:
        """Return the result as JSON types."""
        return {
            "image": self.name,
            "entry_id": self.entry_id,
            "objects": self.counts,
            "region_area_mm2": round(self.region_area_mm2, 6),
            "kept_by_person": self.kept,
            "replaced": self.replaced,
            "settings": self.settings,
            "notes": list(self.notes),
            "seconds": round(self.seconds, 2),
        }


def annotate_images(
    project: Project,
    entries: Sequence[ImageEntry],
    bundle: Bundle,
    settings: AnnotateSettings,
    *,
    dry_run: bool = False,
    progress: Progress | None = None,
) -> Iterator[Annotated | tuple[ImageEntry, PyhistoError]]:
    """Run a model over images of a project, and write each result before the next begins.

    What earlier runs of a model of the same kind and classes wrote and nobody touched makes way for the new objects.

    Parameters
    ----------
    project, entries
        The project and those of its images that are wanted.
    bundle
        The model.
    settings
        See :class:`AnnotateSettings`.
    dry_run
        Write nothing.
    progress
        Called with the stage, the number of windows done and the number in all.

    Yields
    ------
    Annotated or (ImageEntry, PyhistoError)
        The result of each image, or why it has none.
    """
    sized = bundle.spec.nucleus_diameter_um is not None and settings.view.nucleus_size_um == "auto"
    reference = expected_stains(c.classification for c in bundle.spec.classes)
    surveys = Surveys(entries, settings.stains, settings.mpp, reference=reference, nuclei=sized)
    analysis = _analysis(bundle)

    def analyse(entry: ImageEntry, run: Run | None) -> Annotated:
        return _annotate(project, entry, bundle, settings, surveys, analysis, run, progress)

    yield from run_images(
        project, entries, analysis, asdict(settings), [bundle], analyse=analyse, recorded=_recorded, dry_run=dry_run
    )


def _analysis(bundle: Bundle) -> str:
    """Return the name of the analysis, the same for all models of one kind and the same classes."""
    classes = sorted({str(c.classification) for c in bundle.spec.classes if c.classification is not None})
    digest = hashlib.sha256("\n".join(classes).encode()).hexdigest()
    return f"annotate-{bundle.spec.kind.split('_')[0]}-{digest[:6]}"


def _annotate(
    project: Project,
    entry: ImageEntry,
    bundle: Bundle,
    settings: AnnotateSettings,
    surveys: Surveys,
    analysis: str,
    run: Run | None,
    progress: Progress | None,
) -> Annotated:
    """Annotate one image and write the result, replacing what earlier runs wrote and nobody changed."""
    begin = time.perf_counter()
    ownership = read_ownership(project, analysis, entry)
    drawn = to_slide_frame(ownership.present.drop(index=list(ownership.untouched)), entry)
    with open_slide(entry, settings.mpp) as slide:
        area = image_area(entry, slide)
        new, parents = _where(slide, settings.region, drawn, area)
        region = without_ignored(parents, drawn, area)
        found, measured, notes = _found(slide, entry, bundle, settings, surveys, region, progress)
        found = cut_to(found, area)
        size_mm2 = float(region.area * slide.mpp[0] * slide.mpp[1] / 1e6)
    if bundle.spec.kind == "cell_detection":
        corrected = cells_inside(drawn.loc[list(ownership.theirs)], region)
        found = with_parents(without_doubles(found, corrected), parents)
        if settings.region == "image":  # the image is no annotation
            found["parent_id"] = None
        else:
            found = concat_objects([new, found])
    else:
        found["locked"] = True
    objects = to_entry_frame(found, entry)
    counts = objects["classification"].astype(object).fillna("Unclassified").value_counts()
    result = Annotated(
        name=entry.name,
        entry_id=entry.id,
        counts={str(name): int(n) for name, n in counts.items()},
        region_area_mm2=size_mm2,
        settings=measured,
        notes=notes,
        seconds=time.perf_counter() - begin,
        kept=len(ownership.theirs),
        replaced=len(ownership.untouched),
    )
    if run is not None:
        project.add_classes(_colors(bundle, objects))
        lock = sorted(set(objects["parent_id"].dropna()) - set(objects.index))
        write_run(run, entry, objects, ownership, replace=ownership.untouched, lock=lock, result=result.summary())
    return result


def _where(slide: Slide, region: str, drawn: gpd.GeoDataFrame, area: Any) -> tuple[gpd.GeoDataFrame, gpd.GeoDataFrame]:
    """Return (new annotations, annotations to look inside); level-0 px."""
    if region == "image":
        return empty_objects(), region_to_search(slide, "image", drawn, "", area)
    if region in ("auto", "tissue"):
        tissue = cut_to(detect_tissue(slide, TissueSettings(margin_um=TISSUE_MARGIN_UM)), area)
        tissue["locked"] = True
        return tissue, tissue
    mine = drawn["classification"] == region
    if not mine.any():
        raise ProjectError(
            f"{slide.path.name}: no annotation of the class {region!r}",
            remedy="draw one in QuPath, or use --region tissue",
        )
    return empty_objects(), region_to_search(slide, "tumour", drawn, region, area)


def _found(
    slide: Slide,
    entry: ImageEntry,
    bundle: Bundle,
    settings: AnnotateSettings,
    surveys: Surveys,
    region: Any,
    progress: Progress | None,
) -> tuple[gpd.GeoDataFrame, dict[str, Any], tuple[str, ...]]:
    """Return what the network finds in a region, what was measured before, and what deserves a look."""
    stains = entry_stains(entry, settings.stains)
    survey = surveys.of(entry, slide, stains)
    adaptation = adapt(bundle.spec, survey, settings.view)
    measured = {"mpp": list(slide.mpp), **adaptation.measured, "unlike_training": list(adaptation.foreign)}
    if region.is_empty:
        return empty_objects(), measured, adaptation.notes
    report = _reporter(progress, bundle.spec.kind)
    if bundle.spec.kind == "tissue_segmentation":
        found = predict_tissue(slide, bundle, region, lens=adaptation.lens, progress=report)
        return found, measured, adaptation.notes
    stains = stains or survey.stains.stains
    found, decided = network_cells(
        slide,
        bundle,
        adaptation,
        settings.view,
        stains=stains,
        region=region,
        cell_expansion_um=settings.cell_expansion_um,
        nuclei_like=lambda model, lens: surveys.nuclei_like(entry, model, lens),
        progress=report,
    )
    described = {name: list(vector) for name, vector in zip(stains.names, stains.vectors, strict=True)}
    return found, {**measured, **decided, "stains": described, "background": list(stains.background)}, adaptation.notes


def _reporter(progress: Progress | None, stage: str) -> Callable[[int, int], None] | None:
    return None if progress is None else lambda done, total: progress(stage.replace("_", " "), done, total)


def _colors(bundle: Bundle, objects: gpd.GeoDataFrame) -> dict[str, int | None]:
    """Return the packed colour of each class of some objects: the bundle's, else QuPath's own."""
    own = {c.classification: c.color for c in bundle.spec.classes if c.color is not None}
    named = {name: own.get(name) or CLASS_COLORS.get(name) for name in objects["classification"].dropna().unique()}
    return {name: None if color is None else pack_rgb(*color) for name, color in named.items()}


def _recorded(entry: ImageEntry, run: Run) -> Annotated:
    """Return the result of an image that this run finished before it was interrupted."""
    record = run.images[entry.id]["result"]
    return Annotated(
        name=entry.name,
        entry_id=entry.id,
        counts=record["objects"],
        region_area_mm2=record["region_area_mm2"],
        settings=record["settings"],
        notes=tuple(record["notes"]),
        seconds=record["seconds"],
        kept=record["kept_by_person"],
        replaced=record["replaced"],
    )
