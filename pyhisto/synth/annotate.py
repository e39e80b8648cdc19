"""What a pathologist would leave on a training slide."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from typing import Any

import geopandas as gpd
import numpy as np
import shapely
from scipy import ndimage as ndi

from pyhisto.errors import ConfigError
from pyhisto.objects import empty_objects, make_objects
from pyhisto.synth.fields import Array
from pyhisto.synth.settings import SynthTruth

__all__ = ["AnnotationHabits", "annotate_like_a_pathologist"]


@dataclass(frozen=True)
class AnnotationHabits:
    """How much is annotated, and how carefully.

    Parameters
    ----------
    rectangles
        Number of rectangles of class ``Training``.
    rectangle_um
        Their side.
    line_jitter_um
        Standard deviation of a drawn outline about the true one.
    point_jitter_um
        Standard deviation of a clicked point about the nucleus' centroid, in x and in y.
    smallest_hole_um2
        Islands of stroma smaller than this stay inside the tumour outline.
    stroma_areas
        Number of stretches of stroma that are outlined.
    """

    rectangles: int = 4
    rectangle_um: float = 256.0
    line_jitter_um: float = 1.2
    point_jitter_um: float = 0.5
    smallest_hole_um2: float = 900.0
    stroma_areas: int = 6

    def __post_init__(self) -> None:
        """Refuse habits that cannot be drawn."""
        for name in ("rectangles", "line_jitter_um", "point_jitter_um", "smallest_hole_um2", "stroma_areas"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} = {getattr(self, name)}", expected="a number that is not negative")
        if self.rectangle_um <= 0:
            raise ConfigError(f"rectangle_um = {self.rectangle_um}", expected="a side above 0 µm")


def annotate_like_a_pathologist(
    truth: SynthTruth, rng: np.random.Generator, habits: AnnotationHabits | None = None
) -> gpd.GeoDataFrame:
    """Return annotations of a slide as a person would draw them.

    Every nest is outlined (``Tumor``), stretches of the stroma too (``Stroma``). In a few rectangles (``Training``)
    every tumour nucleus whose centroid lies inside is clicked: one point annotation ``Tumor: Positive`` and one
    ``Tumor: Negative`` a rectangle. Nuclei without a click inside a rectangle are something else.

    Parameters
    ----------
    truth
        What is on the slide.
    rng
        Decides where the hand slips; the same generator state gives the same annotations, ids included.
    habits
        How much and how carefully; the defaults if None.

    Returns
    -------
    geopandas.GeoDataFrame
        Path-object table of annotations, level-0 px: polygons and MultiPoints. A slide without tumour gets outlines
        of stroma only.
    """
    habits = habits or AnnotationHabits()
    nests = [_draw_by_hand(nest, rng, habits, truth.mpp) for nest in truth.tumour.geometry]
    tumour = [part for nest in nests for part in _polygons(nest)]
    rows: list[tuple[Any, str, str | None]] = [(part, "Tumor", None) for part in tumour]
    rows += [(part, "Stroma", None) for part in _stroma(truth, tumour, rng, habits)]
    for number, rectangle in enumerate(_choose_rectangles(truth, rng, habits), start=1):
        rows.append((rectangle, "Training", f"Training {number}"))
        for name in ("Tumor: Positive", "Tumor: Negative"):
            points = _click(truth, name, rectangle, rng, habits)
            if len(points):
                rows.append((shapely.multipoints(points), name, f"Training {number}"))
    ids = [str(uuid.UUID(bytes=rng.bytes(16), version=4)) for _ in rows]
    if not rows:
        return empty_objects()
    return make_objects(
        [row[0] for row in rows],
        object_type="annotation",
        classification=[row[1] for row in rows],
        name=[row[2] for row in rows],
        ids=ids,
    )


def _draw_by_hand(nest: shapely.Polygon, rng: np.random.Generator, habits: AnnotationHabits, mpp: float) -> Any:
    """Return a nest's outline without its small holes, drawn by a hand that slips."""
    holes = [ring for ring in nest.interiors if shapely.Polygon(ring).area * mpp**2 >= habits.smallest_hole_um2]
    rings = [_slip(ring, rng, habits, mpp) for ring in (nest.exterior, *holes)]
    drawn: Any = shapely.Polygon(rings[0]).buffer(0)
    for ring in rings[1:]:
        drawn = drawn.difference(shapely.Polygon(ring).buffer(0))
    return drawn


def _slip(ring: Any, rng: np.random.Generator, habits: AnnotationHabits, mpp: float) -> Array:
    """Return points every 3 µm along a ring, moved by noise that is smooth over about 10 µm."""
    n = max(8, round(ring.length * mpp / 3.0))
    place = np.linspace(0.0, 1.0, n, endpoint=False)
    points = shapely.get_coordinates(shapely.line_interpolate_point(ring, place, normalized=True))
    noise = ndi.gaussian_filter1d(rng.standard_normal((n, 2)), 2.0, axis=0, mode="wrap")
    # a Gaussian filter of sigma s leaves 1 / (2 s sqrt(pi)) of the variance of white noise
    noise *= np.sqrt(2.0 * 2.0 * np.sqrt(np.pi)) * habits.line_jitter_um / mpp
    return np.asarray(points + noise)


def _stroma(
    truth: SynthTruth, tumour: list[Any], rng: np.random.Generator, habits: AnnotationHabits
) -> list[shapely.Polygon]:
    """Return stretches of tissue beside the outlined tumour; a narrow strip along it stays without a label."""
    um = 1.0 / truth.mpp
    tissue = shapely.union_all(truth.tissue.geometry.to_numpy())
    free = tissue.buffer(-8.0 * um).difference(shapely.union_all([*tumour, *truth.tumour.geometry]).buffer(3.0 * um))
    free = free.buffer(-5.0 * um).buffer(5.0 * um)
    areas: list[shapely.Polygon] = []
    for _ in range(habits.stroma_areas):
        if free.is_empty:
            break
        centre = shapely.Point(_point_inside(free, rng))
        blob = shapely.Polygon(_slip(centre.buffer(rng.uniform(110.0, 190.0) * um).exterior, rng, habits, truth.mpp))
        stretch = blob.buffer(0).intersection(free)
        areas += [part for part in _polygons(stretch.simplify(0.5 * um)) if part.area > 1500.0 * um**2]
        free = free.difference(blob.buffer(12.0 * um))
    return areas


def _point_inside(geometry: Any, rng: np.random.Generator) -> tuple[float, float]:
    """Return a random point of a geometry with an area."""
    left, top, right, bottom = geometry.bounds
    shapely.prepare(geometry)
    while True:
        x, y = rng.uniform(left, right, 64), rng.uniform(top, bottom, 64)
        inside = np.flatnonzero(shapely.contains_xy(geometry, x, y))
        if len(inside):
            return float(x[inside[0]]), float(y[inside[0]])


def _choose_rectangles(truth: SynthTruth, rng: np.random.Generator, habits: AnnotationHabits) -> list[shapely.Polygon]:
    """Return rectangles on whole pixels that do not overlap: in nests and across their borders by turns."""
    side_px = round(habits.rectangle_um / truth.mpp)
    if not len(truth.tumour) or habits.rectangles == 0:
        return []
    tumour = shapely.union_all(truth.tumour.geometry.to_numpy())
    tissue = shapely.union_all(truth.tissue.geometry.to_numpy())
    left, top, right, bottom = (float(value) for value in tissue.bounds)
    n = 60 * habits.rectangles
    x = np.floor(rng.uniform(left, max(left + 1.0, right - side_px), n))
    y = np.floor(rng.uniform(top, max(top + 1.0, bottom - side_px), n))
    boxes = shapely.box(x, y, x + side_px, y + side_px)
    share = shapely.area(shapely.intersection(boxes, tumour)) / side_px**2
    on_tissue = shapely.area(shapely.intersection(boxes, tissue)) / side_px**2
    chosen: list[shapely.Polygon] = []
    for number in range(habits.rectangles):
        wanted = 0.8 if number % 2 == 0 else 0.45
        free = ~shapely.intersects(boxes, shapely.union_all(chosen)) if chosen else np.ones(n, dtype=bool)
        cost = np.abs(share - wanted) + 0.7 * (1.0 - on_tissue)
        if not (free & (share > 0)).any():
            break
        chosen.append(boxes[int(np.argmin(np.where(free & (share > 0), cost, np.inf)))])
    return chosen


def _click(
    truth: SynthTruth, name: str, rectangle: shapely.Polygon, rng: np.random.Generator, habits: AnnotationHabits
) -> Array:
    """Return one point (x, y) for each nucleus of a class whose centroid lies in the rectangle, inside of it."""
    nuclei = truth.nuclei.geometry.to_numpy()[(truth.nuclei["classification"] == name).to_numpy()]
    centres = shapely.get_coordinates(shapely.centroid(nuclei))
    left, top, right, bottom = rectangle.bounds
    x, y = centres[:, 0], centres[:, 1]
    centres = centres[(x >= left) & (x < right) & (y >= top) & (y < bottom)]
    centres = centres + rng.normal(0.0, habits.point_jitter_um / truth.mpp, centres.shape)
    return np.asarray(np.clip(centres, (left + 0.5, top + 0.5), (right - 0.5, bottom - 0.5)))


def _polygons(geometry: Any) -> list[shapely.Polygon]:
    valid = shapely.make_valid(geometry)
    return [part for part in shapely.get_parts(valid) if part.geom_type == "Polygon" and not part.is_empty]
