"""Where cells are looked for, and which annotation or corrected cell a found cell belongs to."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import geopandas as gpd
import numpy as np
import pandas as pd
import shapely

from pyhisto.objects import empty_objects, make_objects
from pyhisto.slide import Slide
from pyhisto.tissue import TissueSettings, detect_tissue
from qupath_ext.errors import ProjectError

__all__ = [
    "RegionSource",
    "cells_inside",
    "cut_to",
    "inside_selected",
    "labelled_to_search",
    "region_to_search",
    "tissue_to_search",
    "with_parents",
    "without_doubles",
    "without_ignored",
]

RegionSource = Literal["auto", "tumour", "tissue", "image"]

TISSUE_MARGIN_UM = 50.0
"""How far around the tissue is looked for cells, so that none at its edge is cut off."""

FIELD_UM2 = 1e5
"""An image of no more µm² is a field cut out of tissue: what is detected as tissue is at least a fifth of that."""

SLACK_PX = 1.0
"""How far what was cut to a region may stick out of it, px, for having been rounded."""

IGNORE_CLASS = "Ignore*"
"""QuPath's class for areas that are not to be looked at."""


def region_to_search(
    slide: Slide,
    source: RegionSource,
    drawn: gpd.GeoDataFrame,
    tumour_class: str,
    area: Any,
    selected: Sequence[str] = (),
) -> gpd.GeoDataFrame:
    """Return the annotations inside which to look, level-0 px: drawn ones, or new ones around tissue or image.

    `area` is the polygon of the slide that the image shows; new annotations stay inside it. Those with the ids
    `selected`, if there are any, go before `source`.

    Raises
    ------
    ProjectError
        If tumour annotations are asked for and there are none, or those that are selected have no area.
    """
    is_area = shapely.get_dimensions(drawn.geometry.to_numpy()) == 2
    if selected:
        chosen = (drawn["object_type"] == "annotation") & drawn.index.isin(list(selected)) & is_area
        if not chosen.any():
            raise ProjectError(
                f"{slide.path.name}: none of the {len(selected)} selected objects is an annotation with an area",
                remedy="select rectangles, brushed areas or polygons, or nothing",
            )
        return drawn[chosen]
    mine = (drawn["object_type"] == "annotation") & (drawn["classification"] == tumour_class) & is_area
    if source == "tumour" or (source == "auto" and mine.any()):
        if not mine.any():
            raise ProjectError(
                f"{slide.path.name}: no annotation of the class {tumour_class!r}",
                remedy="draw one in QuPath, give a tumour model with --tumour, or use --region tissue",
            )
        return drawn[mine]
    if source == "image":
        return make_objects([area], object_type="annotation")
    return tissue_to_search(slide, area)


def labelled_to_search(slide: Slide, labelled: Any) -> Any:
    """Return where a model that is to be judged looks in what is labelled: tissue, or all of a field cut out of it.

    Both are polygons, level-0 px.
    """
    if math.prod(slide.dimensions) * math.prod(slide.mpp) <= FIELD_UM2:
        return labelled
    return tissue_to_search(slide, labelled).union_all()


def tissue_to_search(slide: Slide, area: Any) -> gpd.GeoDataFrame:
    """Return the tissue inside an area, and a little around it, as annotations; level-0 px."""
    return cut_to(detect_tissue(slide, TissueSettings(margin_um=TISSUE_MARGIN_UM)), area)


def inside_selected(
    objects: gpd.GeoDataFrame, present: gpd.GeoDataFrame, selected: Sequence[str], *, annotations: bool
) -> list[str]:
    """Return the ids of those of some objects that lie in selected annotations, and are none of them.

    Parameters
    ----------
    objects, present
        The objects, out of all that the image has.
    selected
        Ids of annotations in `present`.
    annotations
        Return annotations that are covered; else what is no annotation and has its centroid inside.
    """
    areas = present[present.index.isin(list(selected))]
    region = _joined(areas[shapely.get_dimensions(areas.geometry.to_numpy()) == 2])
    shapely.prepare(region)
    is_annotation = (objects["object_type"] == "annotation").to_numpy()
    shapes = objects.geometry.to_numpy()
    if annotations:
        inside = is_annotation & shapely.covers(shapely.buffer(region, SLACK_PX), shapes)
    else:
        inside = ~is_annotation & shapely.intersects(region, shapely.centroid(shapes))
    return [str(id_) for id_ in objects.index[inside & ~objects.index.isin(list(selected))]]


def cut_to(objects: gpd.GeoDataFrame, area: Any) -> gpd.GeoDataFrame:
    """Return what of some objects an image shows: those that cross the border of its area are cut, others left out.

    Measurements stay those of the whole object. A cell goes with its nucleus.
    """
    shapely.prepare(area)
    crossing = np.flatnonzero(~shapely.covers(area, objects.geometry.to_numpy()))
    if len(crossing) == 0:
        return objects
    out = objects.copy()
    lost = np.zeros(len(objects), dtype=bool)
    for column in ("geometry", "nucleus"):
        shapes = objects[column].to_numpy(copy=True)
        before = ~shapely.is_missing(shapes)
        shapes[crossing] = [_polygons(shape) for shape in shapely.intersection(shapes[crossing], area)]
        lost |= before & shapely.is_missing(shapes)
        out[column] = shapes
    return out[~lost]


def _polygons(shape: Any) -> Any:
    """Return the polygon or polygons of a geometry; None if it has none."""
    parts = shapely.get_parts(shape)
    parts = parts[shapely.area(parts) > 0]
    return None if len(parts) == 0 else parts[0] if len(parts) == 1 else shapely.MultiPolygon(list(parts))


def without_ignored(parents: gpd.GeoDataFrame, drawn: gpd.GeoDataFrame, area: Any) -> Any:
    """Return where cells are looked for: the annotations, as far as the image shows them, without any ``Ignore*``."""
    if len(parents) == 0:
        return shapely.Polygon()
    is_area = shapely.get_dimensions(drawn.geometry.to_numpy()) == 2
    ignored = drawn[(drawn["classification"] == IGNORE_CLASS).to_numpy() & is_area]
    region = shapely.intersection(_joined(parents), area)
    return shapely.difference(region, _joined(ignored)) if len(ignored) else region


def _joined(objects: gpd.GeoDataFrame) -> Any:
    """Return the area of some objects; outlines drawn by hand may cross themselves."""
    return shapely.union_all(shapely.make_valid(objects.geometry.to_numpy()))


def with_parents(cells: gpd.GeoDataFrame, parents: gpd.GeoDataFrame) -> gpd.GeoDataFrame:
    """Give each cell the annotation in which the centroid of its nucleus lies, the nearest one at a border."""
    if len(cells) == 0 or len(parents) == 0:
        return cells
    centres = shapely.centroid(_nuclei(cells))
    which = shapely.STRtree(parents.geometry.to_numpy()).nearest(centres)
    out = cells.copy()
    out["parent_id"] = pd.Series(parents.index.to_numpy()[which], index=cells.index, dtype=object)
    return out


def cells_inside(objects: gpd.GeoDataFrame | None, region: Any) -> gpd.GeoDataFrame:
    """Return the classified cells and detections among some objects whose centroid lies in a region."""
    if objects is None or len(objects) == 0:
        return empty_objects()
    is_cell = objects["object_type"].isin(["cell", "detection"]) & objects["classification"].notna()
    inside = shapely.intersects(region, shapely.centroid(objects.geometry.to_numpy()))
    return objects[is_cell.to_numpy() & inside]


def without_doubles(cells: gpd.GeoDataFrame, corrected: gpd.GeoDataFrame) -> gpd.GeoDataFrame:
    """Leave out cells whose nucleus has its centroid in the nucleus of a cell that a person corrected."""
    if len(cells) == 0 or len(corrected) == 0:
        return cells
    hit, _ = shapely.STRtree(_nuclei(corrected)).query(shapely.centroid(_nuclei(cells)), predicate="intersects")
    return cells.drop(index=cells.index[np.unique(hit)])


def _nuclei(cells: gpd.GeoDataFrame) -> Any:
    """Return the nuclei of cells, and the outline of those that have none; object (n,)."""
    return cells["nucleus"].where(cells["nucleus"].notna(), cells["geometry"]).to_numpy()
