"""A classifier of tiles over the slides of a project: areas become annotations, the slide's probability metadata."""

from __future__ import annotations

import dataclasses
import hashlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import geopandas as gpd
import numpy as np
import numpy.typing as npt

from pyhisto.errors import ConfigError, PyhistoError
from pyhisto.features.bags import Bag
from pyhisto.mil.weak.bundle import WeakBundle
from pyhisto.mil.weak.tumourmap import area_polygons, tile_boxes
from pyhisto.objects import concat_objects, make_objects
from qupath_ext.errors import ProjectError
from qupath_ext.frames import image_area, open_slide, to_entry_frame
from qupath_ext.project import ImageEntry, Project
from qupath_ext.runs.entrymetadata import write_metadata
from qupath_ext.runs.ownership import read_ownership, write_run
from qupath_ext.runs.record import Run
from qupath_ext.workflows.images import Lane, Pending, Progress, run_images
from qupath_ext.workflows.milpredict import bags_of_entries
from qupath_ext.workflows.regions import cut_to
from qupath_ext.workflows.weaktiles import slide_entry_tiles

__all__ = ["MapSettings", "MappedSlide", "map_slides"]


@dataclass(frozen=True)
class MapSettings:
    """What is written about a slide.

    Attributes
    ----------
    classification
        Of the annotations; None for the class that the model looks for.
    threshold
        Probability from which a tile belongs to an area, above 0, at most 1.
    min_area_um2
        Smaller areas are left out.
    tiles
        Write the tiles as well, with the measurement ``MIL: score <class>``.
    region
        Where tiles are taken from, of models that see the pixels of tiles; as for features.
    mpp
        Pixel size in µm that overrides the project's and the file's.

    Raises
    ------
    ConfigError
        If a number is out of range, or the class has no name.
    """

    classification: str | None = None
    threshold: float = 0.5
    min_area_um2: float = 0.0
    tiles: bool = False
    region: str = "tissue"
    mpp: float | None = None

    def __post_init__(self) -> None:
        if not 0 < self.threshold <= 1:
            raise ConfigError(f"threshold {self.threshold:g}", expected="above 0, at most 1")
        if not self.min_area_um2 >= 0:
            raise ConfigError(f"least area of {self.min_area_um2:g} µm²", expected="0 or more")
        if self.classification is not None and not self.classification.strip():
            raise ConfigError("a class without a name", expected="such as Tumor")


@dataclass(frozen=True)
class MappedSlide:
    """What was written about an image.

    Attributes
    ----------
    name, entry_id
        Of the image.
    probability
        Of the slide: the mean over the share alpha of its tiles with the highest ones.
    tiles, areas
        How many there are.
    share
        Share of the tiles that lie in the areas.
    kept, replaced
        Objects of earlier runs that a person changed and that stay; objects that were replaced.
    seconds
        Time taken.
    """

    name: str
    entry_id: str
    probability: float
    tiles: int
    areas: int
    share: float
    kept: int = 0
    replaced: int = 0
    seconds: float = 0.0

    def summary(self) -> dict[str, Any]:
        """Return it as JSON types."""
        return asdict(self)


def map_slides(
    project: Project,
    entries: Sequence[ImageEntry],
    bundle: WeakBundle,
    settings: MapSettings,
    *,
    bags: Sequence[Bag] | None = None,
    dry_run: bool = False,
    progress: Progress | None = None,
) -> Iterator[MappedSlide | tuple[ImageEntry, PyhistoError]]:
    """Write the areas that a classifier of tiles finds into a project.

    Each area is an annotation along the sides of its tiles, with the measurement ``MIL: score <class>`` (the mean over
    its tiles); the probability of the slide is metadata of the image. What earlier runs for the same label and class
    wrote and nobody touched makes way.

    Parameters
    ----------
    project, entries
        The project and those of its images that are wanted.
    bundle
        The model.
    settings
        See :class:`MapSettings`.
    bags
        Feature files; images without one are refused one by one. None for a model that sees the pixels of tiles,
        which are then read from the slides.
    dry_run
        Write nothing.
    progress
        Called with the stage, the number of tiles done and the number in all.

    Yields
    ------
    MappedSlide or (ImageEntry, PyhistoError)
        The result of each image, or why it has none.

    Raises
    ------
    ConfigError
        If a model of features gets none, or the feature files do not fit the images.
    """
    if bags is None and bundle.spec.tiles is None:
        raise ConfigError(
            f"{bundle.path.name} judges features of {bundle.spec.encoder or 'an unnamed encoder'}",
            expected="--features with a folder of them",
        )
    of_entry = None if bags is None else bags_of_entries(entries, bags)
    target = settings.classification or bundle.spec.target
    digest = hashlib.sha256(f"{bundle.spec.task.name}\n{target}".encode()).hexdigest()
    analysis = f"mil-weak-{digest[:6]}"

    def analyse(entry: ImageEntry, run: Run | None, show: Progress) -> Pending[MappedSlide]:
        del run
        begin = time.perf_counter()
        bag = _bag(entry, bundle, settings, of_entry)
        ownership = read_ownership(project, analysis, entry)
        found, result = _found(entry, bag, bundle, settings, target, show)
        replace = list(ownership.untouched)
        result = dataclasses.replace(
            result, kept=len(ownership.theirs), replaced=len(replace), seconds=time.perf_counter() - begin
        )

        def write(run: Run) -> None:
            key = f"MIL {bundle.spec.task.name}: {bundle.spec.target}"
            write_metadata(run, entry, {key: f"{result.probability:.4f}"})
            objects = to_entry_frame(found, entry)
            write_run(run, entry, objects, ownership, replace=replace, result=result.summary())

        return Pending(result, write)

    features = {} if of_entry is None else {id_: str(bag.path) for id_, bag in of_entry.items()}
    yield from run_images(
        project,
        entries,
        analysis,
        {**asdict(settings), "features": features},
        [Lane([bundle], analyse)],
        recorded=lambda entry, run: MappedSlide(**run.images[entry.id]["result"]),
        dry_run=dry_run,
        progress=progress,
    )


def _bag(entry: ImageEntry, bundle: WeakBundle, settings: MapSettings, of_entry: dict[str, Bag] | None) -> Bag:
    """Return the tiles of an image."""
    tiles = bundle.spec.tiles
    if of_entry is None and tiles is not None:
        return slide_entry_tiles(entry, tiles, region=settings.region, mpp=settings.mpp)
    bag = (of_entry or {}).get(entry.id)
    if bag is None:
        raise ProjectError(f"{entry.name} has no feature file", remedy="make one with 'qupath-ext features'")
    return bag


def _found(
    entry: ImageEntry, bag: Bag, bundle: WeakBundle, settings: MapSettings, target: str, show: Progress
) -> tuple[gpd.GeoDataFrame, MappedSlide]:
    """Judge a slide; return the objects, level-0 px, and the result so far."""
    bundle.check(bag)
    stage = f"tiles of {entry.name}"
    show(stage, 0, bag.instances)
    said = bundle.predict(bag, lambda done: show(stage, done, bag.instances))
    with open_slide(entry, settings.mpp) as slide:
        boxes = tile_boxes(bag, slide.origin)
        areas, means = area_polygons(boxes, said, settings.threshold)
        if settings.min_area_um2 > 0:  # of a slide without a pixel size everything can be drawn, but not be measured
            pixel_um2 = slide.mpp[0] * slide.mpp[1]
            large = [number for number, area in enumerate(areas) if area.area * pixel_um2 >= settings.min_area_um2]
            areas, means = [areas[number] for number in large], means[large]
        found = _objects(bundle.spec.target, target, areas, means, (boxes, said) if settings.tiles else None)
        found = cut_to(found, image_area(entry, slide))
    return found, MappedSlide(
        name=entry.name,
        entry_id=entry.id,
        probability=bundle.spec.rule.slide_probability(said),
        tiles=bag.instances,
        areas=int((found["object_type"] == "annotation").sum()),
        share=float((said >= settings.threshold).mean()),
    )


def _objects(
    target: str,
    classification: str,
    areas: Sequence[Any],
    means: npt.NDArray[np.float64],
    tiles: tuple[npt.NDArray[np.object_], npt.NDArray[np.float32]] | None,
) -> gpd.GeoDataFrame:
    """Return the annotations, locked, and the tiles if there are any; level-0 px."""
    score = f"MIL: score {target}"
    found = make_objects(areas, object_type="annotation", classification=classification, measurements={score: means})
    found["locked"] = True
    if tiles is None:
        return found
    boxes, said = tiles
    return concat_objects(
        [found, make_objects(boxes, object_type="tile", measurements={score: said.astype(np.float64)})]
    )
