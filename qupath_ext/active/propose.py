"""Choosing the regions of a round and putting them into the images.

``round.json`` says under ``chosen``, and again under ``proposed``: ``when``, ``strategy``, ``budget``, ``unit``
(``mm²`` or ``minutes``), ``area_mm2``, ``regions`` (how many), ``model`` (``name``, ``path`` and ``sha256``, or null),
``left_out`` (images that could not be read; see :attr:`qupath_ext.active.slides.LeftOut.records`); under ``proposed``
also ``runs`` (the id of the run of each project, or null).
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import geopandas as gpd
import numpy as np
import pandas as pd

from pyhisto.active.regions import Candidate, RegionSettings
from pyhisto.active.select import Proposal, select
from pyhisto.active.strategy import Strategy, parse_strategy
from pyhisto.objects import concat_objects, empty_objects, make_objects, new_ids, save_objects
from qupath_ext.active.cost import loop_cost
from qupath_ext.active.files import write_table
from qupath_ext.active.models import current_models
from qupath_ext.active.predict import editable
from qupath_ext.active.slides import LeftOut, LoopSlide, loop_slides, unless_read
from qupath_ext.active.tiles import slide_bags
from qupath_ext.active.view import SEEN, Viewer
from qupath_ext.active.write import write_round
from qupath_ext.errors import ProjectError
from qupath_ext.frames import open_slide, to_entry_frame
from qupath_ext.workflows.images import Progress

if TYPE_CHECKING:
    from qupath_ext.active.loop import Loop, Round

__all__ = ["PROPOSAL_COLUMNS", "ProposeOptions", "propose_round"]

PROPOSAL_COLUMNS = (
    "geometry", "project", "entry_id", "image", "slide", "rank", "score", "reason", "area_mm2", "parts", "features",
)  # fmt: skip
"""Columns of ``proposals.parquet``, indexed by the id of the region's annotation: its outline (px of the image as
QuPath shows it), the number of its project in :attr:`Loop.paths`, id and name of the image, key of the slide (equal in
two projects that hold the same one), rank from 1 and score, why it was chosen, mm², the parts of the score as JSON, and
what it looks like, float32 (d,)."""

COLD = Strategy(None)
"""How regions are chosen while there is no model."""

Say = Callable[[str], None]


@dataclass(frozen=True)
class ProposeOptions:
    """How a round is proposed.

    Attributes
    ----------
    budget_mm2
        Area to propose; the loop's own if None.
    budget_minutes
        A person's minutes instead, by what earlier rounds took.
    strategy
        Instead of the loop's own.
    features
        Folder with a feature file of each slide, by which regions are told from each other; else by their colours.
    device
        Where networks run.
    """

    budget_mm2: float | None = None
    budget_minutes: float | None = None
    strategy: str | None = None
    features: Path | None = None
    device: str = "cpu"


def propose_round(loop: Loop, options: ProposeOptions, say: Say, progress: Progress | None = None) -> Round:
    """Begin a round, choose its regions, and put them into the images with what the model says inside; or go on.

    Each step is on disk before the next begins: what the model says of the slides, ``predictions.parquet`` and
    ``proposals.parquet``, then an ordinary run for each project (:attr:`Loop.analysis`), then ``round.json``. What was
    interrupted goes on with the regions that were chosen. A round whose regions are in the images is returned as it is
    until it was collected and trained.

    A slide that cannot be read is left out, with a line and in the record; the budget goes to the others.

    A slide that several projects hold gets the same regions in each of them, for one person each.

    Parameters
    ----------
    loop
        The loop; only images of its training part are looked at.
    options
        How.
    say
        Called with lines about what happens.
    progress
        Called with the stage, the number of tiles done and the number in all.

    Raises
    ------
    ProjectError
        If the last round was collected and not trained, no slide can be read, nothing is left to propose, or an image
        cannot be written.
    ConfigError
        If the strategy or the budget cannot be used.
    """
    latest = loop.latest
    if latest is not None and latest.state == "proposed":
        say(f"round {latest.number} is in the images already: correct its regions, then qupath-ext active collect")
        return latest
    if latest is not None and latest.state == "collected":
        raise ProjectError(
            f"round {latest.number} was collected and is not trained", remedy="qupath-ext active train, then propose"
        )
    strategy = parse_strategy(options.strategy or loop.settings.strategy)
    one = loop.begin_round() if latest is None or latest.state == "trained" else latest
    if not one.has("proposals"):
        _choose(loop, one, strategy, options, say, progress)
    chosen = one.record["chosen"]
    runs = write_round(loop, one)
    one.save(proposed={**chosen, "runs": runs})
    shutil.rmtree(one.folder / SEEN, ignore_errors=True)
    say(f"round {one.number}: {chosen['regions']} regions, {chosen['area_mm2']:.3f} mm², by {chosen['strategy']}")
    return one


def _choose(
    loop: Loop, one: Round, strategy: Strategy, options: ProposeOptions, say: Say, progress: Progress | None
) -> None:
    """Choose regions, fill them, and keep both with the round."""
    models = current_models(loop, one.number, options.device, several=strategy.score == "bald")
    if strategy.informed and not any(model.trained for model in models):
        strategy = COLD
        say(f"  no round trained a model yet: regions are chosen by {strategy.name}")
    elif strategy.score == "bald" and len(models) == 1:
        strategy = dataclasses.replace(strategy, score="entropy")
        say(f"  one model cannot disagree: regions of this round are chosen by {strategy.name}")
    left_out = LeftOut(loop, say)
    slides = {slide.key: slide for slide in loop_slides(loop, left_out)}
    budget, unit, cost = _budget(loop, options)
    bags = {} if options.features is None else slide_bags(options.features, list(slides.values()))
    viewer = Viewer(loop, one, models, strategy, bags, say, left_out, progress)
    found, labelled = viewer.candidates(list(slides.values()), _region_settings(loop))
    known = labelled if len(labelled) else None

    def choose(candidates: Sequence[Candidate]) -> list[Proposal]:
        return select(candidates, budget=budget, cost=cost, strategy=strategy, labelled=known)

    chosen, filled = _chosen_and_filled(loop, slides, found, choose, viewer, left_out)
    if left_out.records and all(left_out.has(slide.first) for slide in slides.values()):
        raise left_out.nothing_left("to propose regions of")
    if not chosen:
        raise ProjectError(
            f"none of {len(found)} regions on {len(slides)} slides fits the budget of {budget:g} {unit}",
            expected="tissue that was not proposed yet, and a budget for a region",
            remedy="raise the budget, or add slides",
        )
    one.save(
        chosen={
            "strategy": strategy.name,
            "budget": budget,
            "unit": unit,
            "area_mm2": round(sum(proposal.area_mm2 for proposal in chosen), 6),
            "regions": len(chosen),
            "model": models[0].record(one.folder) if models else None,
            "left_out": left_out.records,
        }
    )
    save_objects(one.folder / "predictions.parquet", concat_objects([inside for _, inside in filled]))
    regions = pd.concat([regions for regions, _ in filled])
    write_table(one.folder / "proposals.parquet", gpd.GeoDataFrame(regions, geometry="geometry"))


def _chosen_and_filled(
    loop: Loop,
    slides: Mapping[str, LoopSlide],
    found: Sequence[Candidate],
    choose: Callable[[Sequence[Candidate]], list[Proposal]],
    viewer: Viewer,
    left_out: LeftOut,
) -> tuple[list[Proposal], list[tuple[gpd.GeoDataFrame, gpd.GeoDataFrame]]]:
    """Return the chosen ones of some candidates, and what fills them; what a slide costs that fails goes to others."""
    chosen = choose(found)
    filled = []
    unread = set()
    for key, slide in slides.items():
        own = [proposal for proposal in chosen if proposal.slide == key]
        if own:
            unread.add(key)
            with unless_read(left_out, *slide.sources):
                filled.append(_filled(loop, slide, own, viewer))
                unread.remove(key)
    if unread:
        others = [candidate for candidate in found if candidate.slide not in unread]
        return _chosen_and_filled(loop, slides, others, choose, viewer, left_out)
    return chosen, filled


def _region_settings(loop: Loop) -> RegionSettings:
    """Return what regions look like; the sides of adaptive ones lie between half and twice the loop's."""
    side = loop.settings.region_um
    return RegionSettings(loop.settings.shape, side, min_um=side / 2, max_um=side * 2)


def _budget(loop: Loop, options: ProposeOptions) -> tuple[float, str, Callable[[float], float] | None]:
    """Return the budget, its unit, and what a region of an area in mm² costs (None: its area)."""
    if options.budget_minutes is None:
        return options.budget_mm2 or loop.settings.budget_mm2, "mm²", None
    return options.budget_minutes, "minutes", loop_cost(loop).minutes


def _filled(
    loop: Loop, slide: LoopSlide, chosen: Sequence[Proposal], viewer: Viewer
) -> tuple[gpd.GeoDataFrame, gpd.GeoDataFrame]:
    """Return the proposals of a slide and what is found inside them, for each of its images, in QuPath's frame."""
    found = viewer.found(slide, [proposal.polygon for proposal in chosen])
    with open_slide(slide.first.entry) as opened:
        mpp = opened.mean_mpp
    regions, predictions = [], [empty_objects()]
    for source in slide.sources:
        ids = new_ids(len(chosen))
        outlines = make_objects([p.polygon for p in chosen], object_type="annotation", ids=ids)
        shown = to_entry_frame(outlines, source.entry)
        regions.append(
            gpd.GeoDataFrame(
                {
                    "geometry": shown.geometry.to_numpy(),
                    "project": loop.number_of(source.project),
                    "entry_id": source.entry.id,
                    "image": source.entry.name,
                    "slide": slide.key,
                    "rank": [p.rank for p in chosen],
                    "score": [float(p.score) for p in chosen],
                    "reason": [p.reason for p in chosen],
                    "area_mm2": [float(p.area_mm2) for p in chosen],
                    "parts": [json.dumps(dict(p.parts)) for p in chosen],
                    "features": [np.asarray(p.features, dtype=np.float32).tolist() for p in chosen],
                },
                geometry="geometry",
                index=pd.Index(ids, name="region"),
            )[list(PROPOSAL_COLUMNS)]
        )
        for id_, proposal in zip(ids, chosen, strict=True):
            inside = editable(found, proposal.polygon, id_, loop.settings, mpp)
            predictions.append(to_entry_frame(inside, source.entry))
    return pd.concat(regions), concat_objects(predictions)
