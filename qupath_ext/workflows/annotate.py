"""Any model over the images of a project: tissue becomes annotations, cells become cells with measurements."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import geopandas as gpd

from pyhisto.bundle.foreign.models import HoverModel, TileModel
from pyhisto.classes import CLASS_COLORS
from pyhisto.errors import ConfigError, PyhistoError
from pyhisto.inference import predict_tissue
from pyhisto.inference.tileclasses import predict_tile_classes
from pyhisto.nuclei.adapt import Adaptation, View, adapt
from pyhisto.nuclei.hover import predict_hover_cells
from pyhisto.nuclei.survey import expected_stains
from pyhisto.objects import concat_objects, empty_objects
from pyhisto.slide import Slide
from pyhisto.stain import StainVectors
from qupath_ext.errors import ProjectError
from qupath_ext.frames import image_area, open_slide, to_entry_frame, to_slide_frame
from qupath_ext.project import ImageEntry, Project, pack_rgb
from qupath_ext.runs.ownership import read_ownership
from qupath_ext.runs.record import Run
from qupath_ext.workflows.images import Lane, Pending, Progress, run_images
from qupath_ext.workflows.networks import NucleiLike, network_cells
from qupath_ext.workflows.outcome import ImageOutcome, ImageWriter, described_stains
from qupath_ext.workflows.prediction import WINDOWED, Prediction, Watch, WatchedImage, check_tiles, image_maps
from qupath_ext.workflows.regions import (
    cells_inside,
    cut_to,
    inside_selected,
    region_to_search,
    tissue_to_search,
    with_parents,
    without_doubles,
    without_ignored,
)
from qupath_ext.workflows.slidememory import SlideMemory
from qupath_ext.workflows.surveys import StainSource, Surveys, entry_stains

if TYPE_CHECKING:
    from pyhisto.bundle.anymodel import AnyModel

__all__ = ["AnnotateSettings", "Annotated", "annotate_images", "find_objects"]

CELL_KINDS = ("cell_detection", "nucleus_segmentation")
"""Kinds of models that find cells, which are put into annotations."""


@dataclass(frozen=True)
class AnnotateSettings:
    """Settings of ``annotate``.

    Attributes
    ----------
    region
        Where to look: ``"tissue"``, ``"image"``, or the name of a class for its annotations; ``"auto"`` in the tissue.
    selected
        Ids of annotations to look inside, whatever `region` says; only what lies in them is replaced.
    stains
        As in :func:`qupath_ext.workflows.surveys.entry_stains`.
    view
        How the network sees the slides.
    cell_expansion_um
        Growth of nuclei into cells; 0 gives detections.
    mpp
        Pixel size in µm that overrides the project's and the file's.
    prediction
        How the network runs, and what is kept of what it says.
    """

    region: str = "auto"
    selected: tuple[str, ...] = ()
    stains: StainSource = "auto"
    view: View = field(default_factory=View)
    cell_expansion_um: float = 5.0
    mpp: float | None = None
    prediction: Prediction = field(default_factory=Prediction)


@dataclass(frozen=True, kw_only=True)
class Annotated(ImageOutcome):
    """What was written to an image.

    Attributes
    ----------
    counts
        Number of new objects of each class; ``Unclassified`` for those of none.
    """

    counts: dict[str, int]

    def summary(self) -> dict[str, Any]:
        """Return the result as JSON types."""
        return {**super().summary(), "objects": self.counts}


def annotate_images(
    project: Project,
    entries: Sequence[ImageEntry],
    bundle: AnyModel,
    settings: AnnotateSettings,
    *,
    others: Sequence[AnyModel] = (),
    dry_run: bool = False,
    memory: SlideMemory | None = None,
    progress: Progress | None = None,
) -> Iterator[Annotated | tuple[ImageEntry, PyhistoError]]:
    """Run a model over images of a project, and write each result as it comes.

    What earlier runs of a model of the same kind and classes wrote and nobody touched makes way for the new objects.

    Parameters
    ----------
    project, entries
        The project and those of its images that are wanted.
    bundle
        The model.
    settings
        See :class:`AnnotateSettings`.
    others
        The same model on further devices, each of which takes images of its own.
    dry_run
        Write nothing.
    memory
        Knows slides that were looked at before; each is looked at anew if None.
    progress
        Called with the stage, the number of windows done and the number in all.

    Yields
    ------
    Annotated or (ImageEntry, PyhistoError)
        The result of each image, or why it has none.

    Raises
    ------
    ConfigError
        If maps are wanted of a model that says nothing of single pixels, or tiles that it cannot have.
    """
    if settings.prediction.maps and bundle.spec.kind not in WINDOWED:
        raise ConfigError(f"maps of a model for {bundle.spec.kind}", expected=f"one for {' or '.join(WINDOWED)}")
    check_tiles([bundle], settings.prediction)
    sized = bundle.spec.nucleus_diameter_um is not None and settings.view.nucleus_size_um == "auto"
    reference = expected_stains(c.classification for c in bundle.spec.classes)
    surveys = Surveys(entries, settings.stains, settings.mpp, reference=reference, nuclei=sized, memory=memory)
    analysis = _analysis(bundle)

    def lane(own: AnyModel) -> Lane[Annotated]:
        def analyse(entry: ImageEntry, run: Run | None, progress: Progress) -> Pending[Annotated]:
            return _annotate(project, entry, own, settings, surveys, analysis, run, progress)

        return Lane([own], analyse)

    yield from run_images(
        project,
        entries,
        analysis,
        {**asdict(settings), "model": bundle.spec.to_dict()},  # beside the weights: µm/px, classes, numbers
        [lane(own) for own in (bundle, *others)],
        recorded=_recorded,
        dry_run=dry_run,
        progress=progress,
    )


def _analysis(bundle: AnyModel) -> str:
    """Return the name of the analysis, the same for all models of one kind and the same classes."""
    classes = sorted({str(c.classification) for c in bundle.spec.classes if c.classification is not None})
    digest = hashlib.sha256("\n".join(classes).encode()).hexdigest()
    return f"annotate-{bundle.spec.kind.split('_')[0]}-{digest[:6]}"


def _annotate(
    project: Project,
    entry: ImageEntry,
    bundle: AnyModel,
    settings: AnnotateSettings,
    surveys: Surveys,
    analysis: str,
    run: Run | None,
    progress: Progress,
) -> Pending[Annotated]:
    """Find what is on an image; what earlier runs wrote and nobody changed is to be replaced."""
    begin = time.perf_counter()
    ownership = read_ownership(project, analysis, entry)
    replaceable = list(ownership.untouched)
    if settings.selected:
        replaceable = inside_selected(
            ownership.present.loc[replaceable],
            ownership.present,
            settings.selected,
            annotations=bundle.spec.kind == "tissue_segmentation",
        )
    drawn = to_slide_frame(ownership.present.drop(index=replaceable), entry)
    with open_slide(entry, settings.mpp) as slide:
        area = image_area(entry, slide)
        new, parents = _where(slide, settings, drawn, area)
        region = without_ignored(parents, drawn, area)
        found, measured, watched = find_objects(slide, entry, bundle, settings, surveys, region, progress)
        found = cut_to(found, area)
        maps = image_maps(entry, slide.mpp, {"": watched.maps}, settings.prediction)
        size_mm2 = float(region.area * slide.mpp[0] * slide.mpp[1] / 1e6)
    if bundle.spec.kind == "tissue_segmentation":
        found["locked"] = True
        if settings.selected:
            found = with_parents(found, parents)
    elif bundle.spec.kind in CELL_KINDS:
        corrected = cells_inside(drawn.loc[list(ownership.theirs)], region)
        found = with_parents(without_doubles(found, corrected), parents)
        if settings.region == "image" and not settings.selected:  # the image is no annotation
            found["parent_id"] = None
        else:
            found = concat_objects([new, found])
    objects = to_entry_frame(found, entry)
    counts = objects["classification"].astype(object).fillna("Unclassified").value_counts()
    result = Annotated(
        name=entry.name,
        entry_id=entry.id,
        counts={str(name): int(n) for name, n in counts.items()},
        region_area_mm2=size_mm2,
        settings=measured,
        notes=watched.notes,
        seconds=time.perf_counter() - begin,
        kept=len(ownership.theirs),
        replaced=len(replaceable),
        maps=tuple(maps.files) if run is not None else (),
    )
    writer = ImageWriter(
        project=project,
        entry=entry,
        objects=objects,
        ownership=ownership,
        replace=replaceable,
        colors=_colors(bundle, objects),
        maps=maps,
        result=result,
    )
    return Pending(result, writer)


def _where(
    slide: Slide, settings: AnnotateSettings, drawn: gpd.GeoDataFrame, area: Any
) -> tuple[gpd.GeoDataFrame, gpd.GeoDataFrame]:
    """Return (new annotations, annotations to look inside); level-0 px."""
    region = settings.region
    if settings.selected:
        return empty_objects(), region_to_search(slide, "auto", drawn, "", area, settings.selected)
    if region == "image":
        return empty_objects(), region_to_search(slide, "image", drawn, "", area)
    if region in ("auto", "tissue"):
        tissue = tissue_to_search(slide, area)
        tissue["locked"] = True
        return tissue, tissue
    mine = drawn["classification"] == region
    if not mine.any():
        raise ProjectError(
            f"{slide.path.name}: no annotation of the class {region!r}",
            remedy="draw one in QuPath, or use --region tissue",
        )
    return empty_objects(), region_to_search(slide, "tumour", drawn, region, area)


def find_objects(
    slide: Slide,
    entry: ImageEntry,
    bundle: AnyModel,
    settings: AnnotateSettings,
    surveys: Surveys,
    region: Any,
    progress: Progress,
) -> tuple[gpd.GeoDataFrame, dict[str, Any], WatchedImage]:
    """Return what the network finds in a region, what was measured before, and what deserves a look."""
    stains = entry_stains(entry, settings.stains)
    survey = surveys.of(entry, slide, stains)
    adaptation = adapt(bundle.spec, survey, settings.view)
    kind = bundle.spec.kind
    measured = {"mpp": list(slide.mpp), **adaptation.measured, "unlike_training": list(adaptation.foreign)}
    whole = settings.region in ("auto", "tissue", "image") and not settings.selected
    watch = Watch(slide, bundle, region, adaptation, survey, settings.view, settings.prediction, whole)
    stains = stains or survey.stains.stains
    found, decided = empty_objects(), dict[str, Any]()
    if not region.is_empty:
        found, decided = _run(
            slide,
            bundle,
            settings,
            adaptation,
            stains,
            region,
            watch,
            lambda model, lens: surveys.nuclei_like(entry, model, lens),
            lambda done, total: progress(kind.replace("_", " "), done, total),
        )
    if kind in CELL_KINDS:
        decided |= described_stains(stains)
    watched = watch.conclude(found)
    return found, {**measured, **decided, "network": watched.measured}, watched


def _run(  # noqa: PLR0913 - all of it is what is known about one image
    slide: Slide,
    model: AnyModel,
    settings: AnnotateSettings,
    adaptation: Adaptation,
    stains: StainVectors,
    region: Any,
    watch: Watch,
    nuclei_like: NucleiLike,
    progress: Callable[[int, int], None],
) -> tuple[gpd.GeoDataFrame, dict[str, Any]]:
    """Return what a model of any kind finds in a region, and what was decided on the way."""
    inference, lens = settings.prediction.inference, adaptation.lens
    if isinstance(model, TileModel):
        return predict_tile_classes(slide, model, region, settings=inference, lens=lens, progress=progress), {}
    if isinstance(model, HoverModel):
        cells = predict_hover_cells(
            slide,
            model,
            stains=stains,
            region=region,
            lens=lens,
            settings=inference,
            cell_expansion_um=settings.cell_expansion_um,
            progress=progress,
        )
        return cells, {}
    if model.spec.kind == "tissue_segmentation":
        found = predict_tissue(
            slide, model, region, lens=lens, settings=inference, observers=watch.observers, progress=progress
        )
        return found, {}
    return network_cells(
        slide,
        model,
        adaptation,
        settings.view,
        stains=stains,
        region=region,
        cell_expansion_um=settings.cell_expansion_um,
        settings=inference,
        observers=watch.observers,
        nuclei_like=nuclei_like,
        progress=progress,
    )


def _colors(bundle: AnyModel, objects: gpd.GeoDataFrame) -> dict[str, int | None]:
    """Return the packed colour of each class of some objects: the bundle's, else QuPath's own."""
    own = {c.classification: c.color for c in bundle.spec.classes if c.color is not None}
    named = {name: own.get(name) or CLASS_COLORS.get(name) for name in objects["classification"].dropna().unique()}
    return {name: None if color is None else pack_rgb(*color) for name, color in named.items()}


def _recorded(entry: ImageEntry, run: Run) -> Annotated:
    """Return the result of an image that this run finished before it was interrupted."""
    return Annotated(**ImageOutcome.recorded(entry, run), counts=run.images[entry.id]["result"]["objects"])
