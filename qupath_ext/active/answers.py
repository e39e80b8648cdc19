"""What persons made of the regions that were proposed to them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import geopandas as gpd
import numpy as np
import pandas as pd
import shapely

from qupath_ext.active.slides import LeftOut, unless_read
from qupath_ext.frames import open_slide
from qupath_ext.workflows.trainingdata import DONE, REGION, REJECTED, Source

if TYPE_CHECKING:
    from qupath_ext.active.loop import Loop, Round
    from qupath_ext.present import PresentObjects

__all__ = ["ANNOTATOR", "Answer", "AnsweredImage", "read_answers", "removed_regions", "settled_regions", "shown_mpp"]

ANNOTATOR = "annotator"
"""Metadata of a region, or of an object in it, that names the person who went through it."""

SAME_REGION = 0.5
"""Least overlap, intersection over union, of two regions that two persons went through alike."""

Verdict = Literal["done", "rejected", "open", "gone"]
VERDICTS: dict[str, Verdict] = {DONE: "done", REJECTED: "rejected"}


@dataclass(frozen=True, eq=False)
class AnsweredImage:
    """An image with regions, as a person left it.

    Attributes
    ----------
    number
        Of its project in :attr:`Loop.paths`.
    source
        The image.
    present
        Its objects, QuPath's frame.
    """

    number: int
    source: Source
    present: PresentObjects

    @cached_property
    def mpp(self) -> np.ndarray[Any, np.dtype[np.float64]]:
        """Pixel size as QuPath shows it, µm; see :func:`shown_mpp`."""
        return shown_mpp(self.source)

    @cached_property
    def annotations(self) -> gpd.GeoDataFrame:
        """Its annotations that have a shape."""
        found = self.present.take(np.flatnonzero(self.present.table["object_type"] == "annotation"))
        shapes = found.geometry.to_numpy()
        return found[~shapely.is_missing(shapes) & ~shapely.is_empty(shapes)]


@dataclass(frozen=True, eq=False)
class Answer:
    """What became of a region.

    Attributes
    ----------
    region
        Id of its annotation.
    round, rank, slide
        The round that proposed it, its rank there, and the key of its slide.
    image
        Where it is.
    answer
        ``done``, ``rejected``, ``open``, or ``gone`` if a person deleted it.
    annotator
        Who went through it: what its metadata says, which may be nothing.
    polygon
        Its outline as it is now, QuPath's frame; as it was proposed if it is gone.
    """

    region: str
    round: int
    rank: int
    slide: str
    image: AnsweredImage
    answer: Verdict
    annotator: str
    polygon: Any

    @property
    def area_mm2(self) -> float:
        """Its area, mm²."""
        return float(self.polygon.area * np.prod(self.image.mpp) / 1e6)

    @property
    def misnamed(self) -> str:
        """What is wrong with the class of a region that is open for it; empty if nothing is."""
        if self.answer != "open":
            return ""
        name = self.image.annotations.at[self.region, "classification"]
        if pd.isna(name):
            return "it has no class"
        return "" if name == REGION else f"its class is {str(name)!r}"

    @property
    def marked(self) -> str:
        """When a script in QuPath gave the answer, as it wrote it; empty if none did."""
        present = self.image.present.table
        metadata: Any = present.at[self.region, "metadata"] if self.region in present.index else None
        return str((metadata or {}).get(f"qupath-ext: {self.answer} at", ""))


def shown_mpp(source: Source) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Return the pixel size of an image as QuPath shows it, µm, float64 (2,).

    Raises
    ------
    MissingPixelSizeError
        If neither the project nor the slide has one.
    """
    shown = source.entry.mpp
    if shown is None:
        with open_slide(source.entry) as slide:
            shown = slide.mpp
    return np.array(shown, dtype=np.float64)


def settled_regions(loop: Loop, before: int) -> set[str]:
    """Return the ids of the regions that rounds below `before` collected with an answer."""
    return {
        id_
        for one in loop.rounds()
        if one.number < before
        for id_, region in one.record.get("collected", {}).get("regions", {}).items()
        if region["answer"] != "open"
    }


def read_answers(loop: Loop, number: int, left_out: LeftOut | None = None) -> list[Answer]:
    """Return what became of all regions of the rounds up to a number, but those that earlier rounds settled.

    A region that was settled is read again beside one at the same place that was not: another person's, who is later.

    Parameters
    ----------
    loop
        The loop.
    number
        Of the last round.
    left_out
        Takes the images whose objects cannot be read: their regions wait.

    Raises
    ------
    ProjectError
        If an image cannot be read, and nothing takes it.
    """
    images: dict[tuple[int, str], AnsweredImage | None] = {}
    out: list[Answer] = []
    for one, proposals in _unsettled(loop, number):
        table = one.table("proposals")
        places = set(zip(proposals["rank"], proposals["slide"], strict=True))
        wanted = [place in places for place in zip(table["rank"], table["slide"], strict=True)]
        for id_, row in table[wanted].iterrows():
            key = (int(row["project"]), str(row["entry_id"]))
            if key not in images:
                images[key] = _image(loop, *key, left_out)
            image = images[key]
            if image is not None:
                out += _answers(image, str(id_), one.number, row)
    return out


def _image(loop: Loop, project: int, entry_id: str, left_out: LeftOut | None) -> AnsweredImage | None:
    """Return an image as it is now; None if it is not in its project any more, or cannot be read and is left out."""
    source = _source(loop, project, entry_id)
    if source is not None:
        with unless_read(left_out, source):
            return AnsweredImage(project, source, source.entry.read_present())
    return None


def removed_regions(loop: Loop, number: int) -> dict[str, dict[str, Any]]:
    """Return what ``round.json`` says of the regions of these rounds whose image is not in its project any more."""
    return {
        str(id_): {
            "round": one.number,
            "rank": int(row["rank"]),
            "project": int(row["project"]),
            "entry_id": str(row["entry_id"]),
            "answer": "gone",
            "annotator": "",
            "marked": "",
            "area_mm2": round(float(row["area_mm2"]), 6),
            "counts": {},
        }
        for one, proposals in _unsettled(loop, number)
        for id_, row in proposals.iterrows()
        if _source(loop, int(row["project"]), str(row["entry_id"])) is None
    }


def _unsettled(loop: Loop, number: int) -> Iterator[tuple[Round, gpd.GeoDataFrame]]:
    """Yield the rounds up to a number with those of their proposals that no earlier round settled."""
    settled = settled_regions(loop, number)
    for one in loop.rounds():
        if one.number <= number and one.has("proposals"):
            proposals = one.table("proposals")
            yield one, proposals[~proposals.index.isin(settled)]


def _source(loop: Loop, project: int, entry_id: str) -> Source | None:
    """Return an image; None if it is not in its project any more."""
    owner = loop.projects[project]
    return next((Source(owner, entry) for entry in owner.entries if entry.id == entry_id), None)


def _answers(image: AnsweredImage, id_: str, number: int, row: Any) -> list[Answer]:
    """Return the answer to a proposed region, and those of others who went through the same place of the image."""

    def answer(region: str, verdict: Verdict, annotator: str, polygon: Any) -> Answer:
        return Answer(region, number, int(row["rank"]), str(row["slide"]), image, verdict, annotator, polygon)

    annotations = image.annotations
    if id_ not in annotations.index:
        return [answer(id_, "gone", "", row["geometry"])]
    own = annotations.loc[id_]
    verdict = VERDICTS.get(str(own["classification"]), "open")
    out = [answer(id_, verdict, annotator_of(own["metadata"]), own["geometry"])]
    others = annotations[(annotations["classification"] == DONE) & (annotations.index != id_)]
    for other, polygon, metadata in zip(others.index, others.geometry, others["metadata"], strict=True):
        same = polygon.intersection(own["geometry"]).area >= SAME_REGION * polygon.union(own["geometry"]).area
        if same and annotator_of(metadata):
            out.append(answer(str(other), "done", annotator_of(metadata), polygon))
    return out


def annotator_of(metadata: dict[str, str] | None) -> str:
    """Return who the metadata of an object names; nothing if it does not."""
    return (metadata or {}).get(ANNOTATOR, "").strip()
