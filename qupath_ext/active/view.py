"""What is seen of the slides of a loop before regions of them are chosen, and what is found in those that were."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import geopandas as gpd
import numpy as np
import numpy.typing as npt
import shapely

from pyhisto.active.candidates import SlideView, candidates, describe
from pyhisto.active.grid import Box, Grid, read_overview
from pyhisto.active.regions import Candidate, RegionSettings
from pyhisto.active.scores import class_frequencies
from pyhisto.active.strategy import Strategy
from pyhisto.maps import Maps, read_maps, write_maps
from pyhisto.objects import COLUMNS, load_objects, save_objects
from pyhisto.stain import H_DAB
from qupath_ext.active.predict import Looker
from qupath_ext.active.slides import unless_read
from qupath_ext.active.tiles import tiles_of
from qupath_ext.frames import open_slide
from qupath_ext.workflows.images import Progress
from qupath_ext.workflows.surveys import entry_stains

if TYPE_CHECKING:
    from pyhisto.features.bags import Bag
    from qupath_ext.active.loop import Loop, Round
    from qupath_ext.active.models import LoopModel
    from qupath_ext.active.slides import LeftOut, LoopSlide

__all__ = ["SEEN", "Viewer"]

SEEN = "seen"
"""Folder of a round with what models said of whole slides, until the regions are in the images."""

Say = Callable[[str], None]


class Viewer:
    """Looks at slides for a round; what a model said of one is kept on disk, so that it is asked once.

    Parameters
    ----------
    loop, one
        The loop and the round.
    models
        The models to ask, the current one first; none for the classical detector.
    strategy
        How regions are chosen.
    bags
        The feature file of each slide, by its key; colours and texture stand in for features if there are none.
    say
        Called with a line about each slide.
    left_out
        Takes the slides that cannot be read.
    progress
        Called with the stage, the number of tiles done and the number in all.
    """

    def __init__(
        self,
        loop: Loop,
        one: Round,
        models: Sequence[LoopModel],
        strategy: Strategy,
        bags: Mapping[str, Bag],
        say: Say,
        left_out: LeftOut,
        progress: Progress | None = None,
    ) -> None:
        self._loop = loop
        self._round = one
        self._models = models
        self._strategy = strategy
        self._bags = bags
        self._say = say
        self._left_out = left_out
        self._progress = progress
        self._lookers: dict[tuple[int, int], Looker] = {}
        self._tissues: dict[str, list[Any]] = {}

    def candidates(
        self, slides: Sequence[LoopSlide], settings: RegionSettings
    ) -> tuple[list[Candidate], npt.NDArray[np.float32]]:
        """Return the candidates of all slides, and the features of what is labelled on them, float32 (n, d)."""
        filled = [slide for slide in slides if self._look_at(slide)]
        frequencies = class_frequencies(map(self._seen, filled)) if self._strategy.rarity else None
        found: list[Candidate] = []
        known: list[npt.NDArray[np.float32]] = []
        for slide in filled:
            with unless_read(self._left_out, *slide.sources):
                view, labelled = self._view(slide)
                seed = zlib.crc32(f"{self._loop.settings.seed}:{self._round.number}:{slide.key}".encode())
                found += candidates(view, self._strategy, settings, frequencies=frequencies, seed=seed)
                if labelled:
                    known.append(describe(view, labelled))
                self._say(f"  {slide.first.title}: looked at")
        return found, np.concatenate(known) if known else np.zeros((0, 0), dtype=np.float32)

    def _look_at(self, slide: LoopSlide) -> bool:
        """Look for the tissue of a slide and ask the models about it; return whether it can be read and has any."""
        with unless_read(self._left_out, *slide.sources):
            if self._tissue(slide):
                if self._strategy.informed:
                    self._maps(slide)
                return True
            self._say(f"  {slide.first.title}: no tissue")
        return False

    def found(self, slide: LoopSlide, regions: Sequence[Any]) -> gpd.GeoDataFrame:
        """Return what is found in some regions of a slide; both level-0 px."""
        if self._strategy.informed:
            return load_objects(self._file(slide, 0, ".parquet"))
        entry = slide.first.entry
        tissue, region = shapely.union_all(self._tissue(slide)), shapely.union_all(list(regions))
        with open_slide(entry) as opened:
            return self._looker(slide, 0).found(entry, opened, region, tissue)

    def _tissue(self, slide: LoopSlide) -> list[Any]:
        """Return polygons of the tissue of a slide, level-0 px; looked for once."""
        if slide.key not in self._tissues:
            with open_slide(slide.first.entry) as opened:
                self._tissues[slide.key] = slide.tissue(opened)
        return self._tissues[slide.key]

    def _view(self, slide: LoopSlide) -> tuple[SlideView, list[Any]]:
        """Return what is known of a slide, and the areas in which everything is labelled."""
        labelled, taken = slide.areas(self._loop, self._round.number)
        with open_slide(slide.first.entry) as opened:
            overview = read_overview(opened)
            taken += slide.unshown(opened)
            quality = slide.memory.quality(opened, overview, self._tissue(slide))
            tiles = tiles_of(self._bags[slide.key], opened) if self._bags else None
        view = SlideView(
            slide.key,
            overview,
            self._tissue(slide),
            maps=self._maps(slide) if self._strategy.informed else (),
            stains=entry_stains(slide.first.entry, "auto") or H_DAB,
            taken=taken,
            tiles=tiles,
            quality=quality,
        )
        return view, [polygon for polygon in labelled if _has_pixels(overview.grid.box(polygon))]

    def _seen(self, slide: LoopSlide) -> tuple[Maps, npt.NDArray[np.bool_]]:
        """Return the maps of a slide by the current model, and which pixels of them are tissue."""
        maps = self._maps(slide)[0]
        return maps, Grid.of(maps).inside(self._tissue(slide))

    def _maps(self, slide: LoopSlide) -> tuple[Maps, ...]:
        """Return what each model says of the tissue of a slide; asked once, and kept with the objects it finds."""
        return tuple(self._maps_by(slide, number) for number in range(len(self._models)))

    def _maps_by(self, slide: LoopSlide, number: int) -> Maps:
        path = self._file(slide, number, ".npz")
        if not path.is_file():
            path.parent.mkdir(exist_ok=True)
            entry = slide.first.entry
            tissue = shapely.union_all(self._tissue(slide))
            with open_slide(entry) as opened:
                looker = self._looker(slide, number)
                found, maps = looker.maps(entry, opened, tissue, flips=self._strategy.score == "flips")
            save_objects(self._file(slide, number, ".parquet"), found[list(COLUMNS)])
            write_maps(path, maps)
        return read_maps(path)

    def _file(self, slide: LoopSlide, number: int, suffix: str) -> Any:
        parts = (slide.key, self._models[number].bundle.sha256, self._strategy.score)
        digest = hashlib.sha256(repr(parts).encode()).hexdigest()
        return self._round.folder / SEEN / f"{digest[:16]}{suffix}"

    def _looker(self, slide: LoopSlide, number: int) -> Looker:
        project = slide.first.project
        key = (self._loop.number_of(project), number)
        if key not in self._lookers:
            bundle = self._models[number].bundle if self._models else None
            self._lookers[key] = Looker(self._loop.settings, project, bundle, self._progress)
        return self._lookers[key]


def _has_pixels(box: Box) -> bool:
    top, left, bottom, right = box
    return bottom > top and right > left
