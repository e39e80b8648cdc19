"""A model for slide labels over the slides of a project: attention becomes tiles, probabilities become metadata."""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import numpy.typing as npt
import shapely
from scipy.stats import rankdata

from pyhisto.errors import ConfigError, PyhistoError
from pyhisto.features.bags import Bag
from pyhisto.mil.bundle import SlideBundle, SlidePrediction
from pyhisto.objects import concat_objects, make_objects
from pyhisto.overlay import encode_png
from pyhisto.overlay.attention import draw_attention
from pyhisto.slide import Slide
from qupath_ext.errors import ProjectError
from qupath_ext.frames import image_area, open_slide, to_entry_frame
from qupath_ext.project import ImageEntry, Project
from qupath_ext.report.slidelabel import LabelView, SlideLabelReport, TopTile, write_slide_page
from qupath_ext.runs.entrymetadata import write_metadata
from qupath_ext.runs.ownership import Ownership, read_ownership, write_run
from qupath_ext.runs.record import Run
from qupath_ext.workflows.images import Lane, Pending, Progress, run_images
from qupath_ext.workflows.regions import cut_to

__all__ = ["LabelledSlide", "bags_of_entries", "label_slides"]

TILE_PX = 224
"""Side of the pictures of single tiles on a page."""


@dataclass(frozen=True)
class LabelledSlide:
    """What was written about an image.

    Attributes
    ----------
    name, entry_id
        Of the image.
    probabilities
        Of each label, class to probability.
    tiles
        How many tiles there are.
    pages
        Page and pictures, as seen from the folder of the run.
    kept, replaced
        Objects of earlier runs that a person changed and that stay; objects that were replaced.
    seconds
        Time taken.
    """

    name: str
    entry_id: str
    probabilities: dict[str, dict[str, float]]
    tiles: int
    pages: tuple[str, ...] = ()
    kept: int = 0
    replaced: int = 0
    seconds: float = 0.0

    def summary(self) -> dict[str, Any]:
        """Return it as JSON types."""
        return {**asdict(self), "pages": list(self.pages)}


def bags_of_entries(entries: Sequence[ImageEntry], bags: Sequence[Bag]) -> dict[str, Bag]:
    """Return the feature file of each image that has one, by entry id.

    A file belongs to the image whose name, or slide's file name, with or without its ending, is the name of the bag.

    Raises
    ------
    ConfigError
        If two files belong to one image, or none to any.
    """
    out: dict[str, Bag] = {}
    for entry in entries:
        names = {entry.name, Path(entry.name).stem}
        with contextlib.suppress(PyhistoError):  # an image from a server has no file
            names |= {entry.stored_slide_path.name, entry.stored_slide_path.stem}
        found = [bag for bag in bags if {bag.name, bag.path.stem, Path(bag.name).stem} & names]
        exact = [bag for bag in found if bag.name == entry.name and bag.entry_id in ("", entry.id)]
        found = exact or found
        if len(found) > 1:
            raise ConfigError(
                f"{found[0].path.name} and {found[1].path.name} both belong to the image {entry.name!r}",
                expected="one feature file for each image",
            )
        if found:
            out[entry.id] = found[0]
    if not out:
        raise ConfigError(
            f"none of {len(bags)} feature files belongs to an image (the first is of {bags[0].name!r})",
            expected=f"names such as {entries[0].name!r}" if entries else "images",
        )
    return out


def label_slides(
    project: Project,
    entries: Sequence[ImageEntry],
    bags: Sequence[Bag],
    bundle: SlideBundle,
    *,
    top: int = 10,
    dry_run: bool = False,
    progress: Progress | None = None,
) -> Iterator[LabelledSlide | tuple[ImageEntry, PyhistoError]]:
    """Write what a model says of slides into a project.

    Each slide gets its tiles with the measurements ``MIL: attention``, ``MIL: attention rank`` (1 for the most) and,
    of heads that judge instances, ``MIL: score <class>``; annotations around the `top` tiles with the most attention,
    named by their rank; and its probabilities as metadata. With several labels their names stand in between. What
    earlier runs for the same labels wrote and nobody touched makes way.

    Parameters
    ----------
    project, entries
        The project and those of its images that are wanted.
    bags
        Feature files; images without one are refused one by one.
    bundle
        The model.
    top
        How many annotations, for each label.
    dry_run
        Write nothing.
    progress
        Called with the stage, what is done and how much there is.

    Yields
    ------
    LabelledSlide or (ImageEntry, PyhistoError)
        The result of each image, or why it has none.

    Raises
    ------
    ConfigError
        If the feature files do not fit the images.
    """
    of_entry = bags_of_entries(entries, bags)
    names = sorted(task.name for task in bundle.spec.tasks)
    analysis = f"mil-{hashlib.sha256(chr(10).join(names).encode()).hexdigest()[:6]}"

    def analyse(entry: ImageEntry, run: Run | None, show: Progress) -> Pending[LabelledSlide]:
        del run
        show(f"labels of {entry.name}", 0, 1)
        bag = of_entry.get(entry.id)
        if bag is None:
            raise ProjectError(f"{entry.name} has no feature file", remedy="make one with 'qupath-ext features'")
        return _found(project, entry, bag, bundle, top, analysis)

    yield from run_images(
        project,
        entries,
        analysis,
        {"top": top, "features": {id_: str(bag.path) for id_, bag in of_entry.items()}},
        [Lane([bundle], analyse)],
        recorded=_recorded,
        dry_run=dry_run,
        progress=progress,
    )


def _found(
    project: Project, entry: ImageEntry, bag: Bag, bundle: SlideBundle, top: int, analysis: str
) -> Pending[LabelledSlide]:
    """Judge a slide; nothing is written yet."""
    begin = time.perf_counter()
    bundle.check(bag)
    sides = _sides(bag)
    with open_slide(entry) as slide:
        corners, area = bag.corners(slide.origin), image_area(entry, slide)
    if corners is None:
        raise ProjectError(f"{bag.path} does not say where its tiles lie", expected="their corners, level-0 px")
    said = bundle.predict(bag.features)
    ownership = read_ownership(project, analysis, entry)
    replace = list(ownership.untouched)
    found = cut_to(_objects(said, corners, sides, top), area)
    result = LabelledSlide(
        name=entry.name,
        entry_id=entry.id,
        probabilities={one.task.name: _by_class(one) for one in said},
        tiles=len(corners),
        pages=_page_names(entry, said),
        kept=len(ownership.theirs),
        replaced=len(replace),
        seconds=time.perf_counter() - begin,
    )

    def write(run: Run) -> None:
        _write_pages(run.folder, project, entry, bag, bundle, corners, said, top)
        _write(run, entry, to_entry_frame(found, entry), ownership, replace, result)

    return Pending(result, write)


def _write(
    run: Run,
    entry: ImageEntry,
    objects: gpd.GeoDataFrame,
    ownership: Ownership,
    replace: Sequence[str],
    result: LabelledSlide,
) -> None:
    values = {
        f"MIL {task}: {name}": f"{value:.4f}"
        for task, classes in result.probabilities.items()
        for name, value in classes.items()
    }
    write_metadata(run, entry, values)
    write_run(run, entry, objects, ownership, replace=replace, result=result.summary())


def _sides(bag: Bag) -> tuple[int, int]:
    """Return width and height of a tile, level-0 px."""
    if bag.patch_size is None:
        raise ProjectError(f"{bag.path} does not say how large a tile is", expected="its size in level-0 px")
    return bag.patch_size, bag.patch_height or bag.patch_size


def _objects(
    said: Sequence[SlidePrediction], corners: npt.NDArray[np.int64], sides: tuple[int, int], top: int
) -> gpd.GeoDataFrame:
    """Return the tiles with measurements, and the annotations, level-0 px."""
    measurements: dict[str, npt.NDArray[np.float64]] = {}
    outlines = shapely.box(corners[:, 0], corners[:, 1], corners[:, 0] + sides[0], corners[:, 1] + sides[1])
    tables = []
    for one in said:
        label = "" if len(said) == 1 else f"{one.task.name}: "
        measurements[f"MIL: {label}attention"] = one.attention.astype(np.float64)
        measurements[f"MIL: {label}attention rank"] = _ranks(one.attention)
        if one.scores is not None:
            for number, name in enumerate(one.task.classes):
                measurements[f"MIL: {label}score {name}"] = one.scores[:, number].astype(np.float64)
        first = _most(one.attention, top)
        tables.append(
            make_objects(
                outlines[first],
                object_type="annotation",
                name=[f"MIL: {label}rank {rank}" for rank in range(1, len(first) + 1)],
                measurements={f"MIL: {label}attention": one.attention[first].astype(np.float64)},
            )
        )
    return concat_objects([make_objects(outlines, object_type="tile", measurements=measurements), *tables])


def _ranks(attention: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """Return 1 for the most, 2 for the next; of equal ones the first in the file comes first."""
    return np.asarray(rankdata(-attention, method="ordinal"), dtype=np.float64)


def _most(attention: npt.NDArray[np.float32], top: int) -> npt.NDArray[np.intp]:
    return np.argsort(-attention, kind="stable")[:top]


def _by_class(one: SlidePrediction) -> dict[str, float]:
    return {name: float(value) for name, value in zip(one.task.classes, one.probabilities, strict=True)}


def _page_names(entry: ImageEntry, said: Sequence[SlidePrediction]) -> tuple[str, ...]:
    return (f"slides/{entry.id}.html", *(f"slides/{entry.id}-{number}.png" for number in range(1, len(said) + 1)))


def _write_pages(
    folder: Path,
    project: Project,
    entry: ImageEntry,
    bag: Bag,
    bundle: SlideBundle,
    corners: npt.NDArray[np.int64],
    said: Sequence[SlidePrediction],
    top: int,
) -> None:
    """Write the page of a slide, and the heatmap of each label."""
    sides = _sides(bag)
    page, *pictures = (folder / name for name in _page_names(entry, said))
    page.parent.mkdir(exist_ok=True)
    views = []
    with open_slide(entry) as slide:
        bounds = image_area(entry, slide).bounds
        for one, path in zip(said, pictures, strict=True):
            picture = encode_png(draw_attention(slide, corners, sides, one.attention, bounds=bounds))
            path.write_bytes(picture)
            tiles = [
                TopTile(rank, float(one.attention[i]), _tile(slide, corners[i], sides))
                for rank, i in enumerate(_most(one.attention, top), start=1)
            ]
            views.append(LabelView(one.task.name, _by_class(one), picture, tiles))
    made_by = {
        "Model": f"{bundle.path.name} ({bundle.spec.head}, {bundle.spec.members} networks)",
        "Weights sha256": bundle.sha256,
        "Features": str(bag.path),
        "Encoder": bag.encoder or "not named",
        "Project": str(project.path),
    }
    created = datetime.datetime.now().astimezone().strftime("%Y-%m-%d %H:%M")
    write_slide_page(page, SlideLabelReport(entry.name, created, views, len(corners), made_by))


def _tile(slide: Slide, corner: npt.NDArray[np.int64], sides: tuple[int, int]) -> bytes:
    downsample = max(1.0, max(sides) / TILE_PX)
    width, height = (max(1, round(side / downsample)) for side in sides)
    x, y = (float(value) for value in corner)
    return encode_png(slide.read_downsampled(x, y, width, height, (sides[0] / width, sides[1] / height)))


def _recorded(entry: ImageEntry, run: Run) -> LabelledSlide:
    """Return the result of an image that this run finished before it was interrupted."""
    record = dict(run.images[entry.id]["result"])
    return LabelledSlide(**{**record, "pages": tuple(record["pages"])})
