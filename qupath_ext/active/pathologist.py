"""A complete project that plays the pathologist: it answers regions of a copy, with errors at a given rate."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import geopandas as gpd
import numpy as np
import pandas as pd
import shapely
from shapely import affinity

from pyhisto.metrics import match_points
from pyhisto.objects import concat_objects, empty_objects, make_objects
from qupath_ext.errors import ProjectError
from qupath_ext.workflows.trainingdata import DONE, REGION

if TYPE_CHECKING:
    from qupath_ext.active.loop import Loop, LoopSettings
    from qupath_ext.project import ImageEntry, Project

__all__ = ["Pathologist", "complete_truth"]

GOOD_IOU = 0.95
"""Outlines that agree so well with the truth are left as they are."""

SAME_CELL_UM = 3.0
"""A point that is nearer to a true one of its class is left where it is."""

SLIP_UM = 8.0
"""How far an error shifts a cell; tissue is shifted by a tenth of its size."""

SLACK_PX = 1.0
"""How far what was cut to a region may stick out of it for having been rounded, px."""


@dataclass(frozen=True)
class Pathologist:
    """Answers regions by what another project says.

    Attributes
    ----------
    truth
        A project with the same images, by name, whose annotations are complete.
    error_rate
        Share of the true objects of a region that are got wrong: dropped, shifted or given another class, a third each
        (with one class: dropped or shifted).
    seed
        Of the errors; each region has its own.

    Raises
    ------
    ProjectError
        If the rate is no share.
    """

    truth: Project
    error_rate: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.error_rate <= 1:
            raise ProjectError(f"an error rate of {self.error_rate:g}", expected="0 to 1")

    def answer(self, loop: Loop) -> int:
        """Correct what is in the open regions of a loop, and mark them as done; return how many there were."""
        regions = 0
        for source in loop.sources("train"):
            entry = source.entry
            present = source.entry.read_objects()
            open_ = present[present["classification"] == REGION]
            if len(open_) == 0:
                continue
            known = complete_truth(self.truth.entry(entry.name), loop.settings)
            remove: list[str] = []
            add = [empty_objects()]
            for region in open_.geometry:
                rng = np.random.default_rng((self.seed, zlib.crc32(f"{entry.name}:{region.bounds}".encode())))
                gone, new = self._corrected(present, known, region, loop.settings, _mpp(entry), rng)
                remove += gone
                add.append(new)
            answers = pd.DataFrame({"classification": [DONE] * len(open_)}, index=open_.index)
            with entry.edit() as change:
                change.update(answers)
                change.remove(remove)
                change.add(concat_objects(add))
            regions += len(open_)
        return regions

    def _corrected(
        self,
        present: gpd.GeoDataFrame,
        known: gpd.GeoDataFrame,
        region: Any,
        settings: LoopSettings,
        mpp: tuple[float, float],
        rng: np.random.Generator,
    ) -> tuple[list[str], gpd.GeoDataFrame]:
        """Return which objects of a region go, and what is drawn instead."""
        own = present["classification"].isin(settings.classes) & (present["object_type"] == "annotation")
        inside = present[own & shapely.covers(region.buffer(SLACK_PX), present.geometry.to_numpy())]
        objects = list(_erring(_cut(known, region), region, settings.classes, self.error_rate, mpp, rng))
        tables = [empty_objects()]
        remove: list[str] = []
        for name in settings.classes:
            before = inside[inside["classification"] == name]
            wanted = [shape for shape, other in objects if other == name]
            if settings.target == "cells":
                shapes = _points(before.geometry.to_numpy(), wanted, mpp)
                same = False
            else:
                shapes = list(shapely.get_parts(shapely.union_all(wanted)))
                same = _iou(before.geometry.to_numpy(), wanted) >= GOOD_IOU
            if same:
                continue
            remove += before.index.tolist()
            if shapes:
                tables.append(make_objects(shapes, object_type="annotation", classification=name))
        return remove, concat_objects(tables)


def complete_truth(entry: ImageEntry, settings: LoopSettings) -> gpd.GeoDataFrame:
    """Return what is true of an image, QuPath's frame: points of cells, or polygons, one row each; their classes.

    Objects of any type count that have one of the classes: this project is complete.
    """
    objects = entry.read_objects()
    objects = objects[objects["classification"].isin(settings.classes)]
    shapes = objects.geometry.to_numpy()
    names = objects["classification"].to_numpy(dtype=object)
    if settings.target == "cells":
        flat = shapely.get_dimensions(shapes) == 2
        shapes = np.where(flat, shapely.centroid(shapes), shapes)
    else:
        keep = shapely.get_dimensions(shapes) == 2
        shapes, names = shapely.make_valid(shapes[keep]), names[keep]
    parts, owner = shapely.get_parts(shapes, return_index=True)
    return gpd.GeoDataFrame({"classification": names[owner]}, geometry=list(parts))


def _mpp(entry: ImageEntry) -> tuple[float, float]:
    if entry.mpp is None:
        raise ProjectError(f"image {entry.name!r} has no pixel size", remedy="set it in QuPath")
    return entry.mpp


def _cut(known: gpd.GeoDataFrame, region: Any) -> list[tuple[Any, str]]:
    """Return the true objects of a region: cells whose point lies inside, tissue cut at its border."""
    out = []
    for shape, name in zip(known.geometry, known["classification"], strict=True):
        if shape.geom_type == "Point":
            if region.contains(shape):
                out.append((shape, str(name)))
        else:
            parts = shapely.get_parts(shape.intersection(region))
            out += [(part, str(name)) for part in parts if part.geom_type == "Polygon" and part.area > 0]
    return out


def _erring(
    objects: list[tuple[Any, str]],
    region: Any,
    classes: tuple[str, ...],
    rate: float,
    mpp: tuple[float, float],
    rng: np.random.Generator,
) -> Iterator[tuple[Any, str]]:
    """Yield objects as somebody draws them who errs at a rate."""
    kinds = ["drop", "shift", "relabel"][: 3 if len(classes) > 1 else 2]
    for shape, name in objects:
        kind = str(rng.choice(kinds)) if rng.random() < rate else "none"
        if kind == "relabel":
            yield shape, str(rng.choice([other for other in classes if other != name]))
        elif kind == "shift":
            angle = rng.uniform(0, 2 * np.pi)
            if shape.geom_type == "Point":
                by = SLIP_UM / mpp[0], SLIP_UM / mpp[1]
            else:
                by = (0.1 * float(np.sqrt(shape.area)),) * 2
            moved = affinity.translate(shape, by[0] * np.cos(angle), by[1] * np.sin(angle)).intersection(region)
            for part in shapely.get_parts(moved):
                if part.geom_type == shape.geom_type and not part.is_empty:
                    yield part, name
        elif kind == "none":
            yield shape, name


def _iou(before: Any, wanted: list[Any]) -> float:
    """Return how well outlines agree, intersection over union; 1 where there are none."""
    old, new = shapely.union_all(shapely.make_valid(before)), shapely.union_all(wanted)
    union = old.union(new).area
    return 1.0 if union == 0 else float(old.intersection(new).area / union)


def _points(before: Any, wanted: list[Any], mpp: tuple[float, float]) -> list[Any]:
    """Return the points of a class as one MultiPoint: true ones, each where it was shown if that was near enough."""
    if not wanted:
        return []
    now = shapely.get_coordinates(wanted)
    old = shapely.get_coordinates(before)
    if len(old):
        pairs = match_points(old * mpp, now * mpp, SAME_CELL_UM)
        now[pairs[:, 1]] = old[pairs[:, 0]]
    return [shapely.multipoints(now)]
