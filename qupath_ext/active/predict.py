"""What a model, or the classical detector, says of slides, as objects that a person can edit in QuPath."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import geopandas as gpd
import numpy as np
import shapely

from pyhisto.errors import ConfigError
from pyhisto.inference import InferenceSettings
from pyhisto.maps import Maps
from pyhisto.nuclei import CellDetectionSettings, detect_cells
from pyhisto.nuclei.adapt import View
from pyhisto.nuclei.survey import expected_stains
from pyhisto.objects import concat_objects, empty_objects, make_objects
from pyhisto.slide import Slide
from qupath_ext.project import ImageEntry
from qupath_ext.workflows.annotate import AnnotateSettings, find_objects
from qupath_ext.workflows.classical import sized_settings
from qupath_ext.workflows.images import Progress
from qupath_ext.workflows.prediction import Prediction
from qupath_ext.workflows.slidememory import SlideMemory
from qupath_ext.workflows.surveys import Surveys, entry_stains
from qupath_ext.workflows.trainingdata import REGION

if TYPE_CHECKING:
    from pyhisto.bundle.files import Bundle
    from qupath_ext.active.loop import LoopSettings
    from qupath_ext.project import Project

__all__ = ["Looker", "class_of", "editable"]

LEAST_UM2 = 50.0
"""Pieces of tissue that a region's border leaves of an outline and that are smaller are not shown."""

Say = Callable[[str], None]


class Looker:
    """Looks at the images of a project, with a model or without.

    Parameters
    ----------
    settings
        Of the loop.
    project
        The project.
    bundle
        The model; None for the classical detector of cells, which finds no tissue.
    progress
        Called with the stage, the number of tiles done and the number in all.
    """

    def __init__(
        self, settings: LoopSettings, project: Project, bundle: Bundle | None, progress: Progress | None = None
    ) -> None:
        self._settings = settings
        self._progress = progress or _unshown
        self._bundle = bundle
        classes = settings.classes if bundle is None else [c.classification for c in bundle.spec.classes]
        nuclei = bundle is None or bundle.spec.nucleus_diameter_um is not None
        memory, reference = SlideMemory(project.path.parent), expected_stains(classes)
        self._surveys = Surveys(project.entries, "auto", reference=reference, nuclei=nuclei, memory=memory)

    def maps(self, entry: ImageEntry, slide: Slide, region: Any, *, flips: bool) -> tuple[gpd.GeoDataFrame, Maps]:
        """Return what the model finds in a region that is not empty, and maps of what it says there; level-0 px.

        Raises
        ------
        ConfigError
            If there is no model, or the region is empty.
        """
        found, maps = self._asked(entry, slide, region, Prediction(InferenceSettings(flips=flips), uncertainty=True))
        if maps is None:
            raise ConfigError(f"maps of an empty region of {entry.name!r}", expected="one with tissue")
        return found, maps

    def found(self, entry: ImageEntry, slide: Slide, region: Any, tissue: Any) -> gpd.GeoDataFrame:
        """Return what is found in a region; level-0 px.

        Without a model it is cells in the classes of the loop, or nothing where tissue is wanted; the thresholds of the
        detector follow the tissue of the whole slide.
        """
        if self._bundle is not None:
            return self._asked(entry, slide, region, Prediction())[0]
        return self._detected(entry, slide, region, tissue) if self._settings.target == "cells" else empty_objects()

    def _asked(
        self, entry: ImageEntry, slide: Slide, region: Any, prediction: Prediction
    ) -> tuple[gpd.GeoDataFrame, Maps | None]:
        """Return what the model finds in a region, and maps of what it says there if they are wanted."""
        if self._bundle is None:
            raise ConfigError("maps without a model", expected="a round that was trained")
        settings = AnnotateSettings(region=REGION, cell_expansion_um=0.0, prediction=prediction)
        found, _, watched = find_objects(slide, entry, self._bundle, settings, self._surveys, region, self._progress)
        return found, watched.maps

    def _detected(self, entry: ImageEntry, slide: Slide, region: Any, tissue: Any) -> gpd.GeoDataFrame:
        """Return the cells that the classical detector finds in a region, in the classes of the loop."""
        stains = entry_stains(entry, "auto")
        survey = self._surveys.of(entry, slide, stains)
        sized, _ = sized_settings(CellDetectionSettings(cell_expansion_um=0.0), View(), survey)
        stains = stains or survey.stains.stains
        automatic = self._surveys.memory.settings(slide, base=sized, stains=stains, region=tissue)
        found = detect_cells(
            slide,
            automatic.settings,
            stains=stains,
            region=region,
            progress=lambda done, total: self._progress("cell detection", done, total),
        )
        names = found["classification"].astype(object).map(lambda name: class_of(name, self._settings.classes))
        found["classification"] = names.astype("category")
        return found


def class_of(name: object, classes: Sequence[str]) -> str:
    """Return which class of a loop a cell is that the classical detector found.

    The first that ends in the ``Positive`` or ``Negative`` of the detector; the first of all for a cell without (None
    or NaN), as those on H&E are.
    """
    fitting = [own for own in classes if isinstance(name, str) and own.endswith(name)]
    return fitting[0] if fitting else classes[0]


def editable(
    found: gpd.GeoDataFrame, region: Any, parent_id: str, settings: LoopSettings, mpp: float
) -> gpd.GeoDataFrame:
    """Return what was found inside a region as annotations that a person can edit.

    Parameters
    ----------
    found
        Objects, in one frame with the region.
    region
        Polygon.
    parent_id
        Id of the region's annotation.
    settings
        Of the loop: other classes are left out.
    mpp
        Pixel size, µm.

    Returns
    -------
    geopandas.GeoDataFrame
        Cells as one annotation of points a class, tissue as one annotation a polygon, cut at the region.
    """
    tables = [empty_objects()]
    near = found.iloc[np.sort(found.sindex.query(region))]  # the index is made once for all regions of a slide
    for name, shapes in _by_class(near, settings.classes):
        if settings.target == "cells":
            points = shapely.centroid(shapes)
            points = points[shapely.contains_properly(region, points)]
            drawn = [shapely.MultiPoint(list(points))] if len(points) else []
        else:
            inside = shapely.intersection(shapely.union_all(shapely.make_valid(shapes)), region)
            parts = shapely.get_parts(inside)
            drawn = [part for part in parts if part.geom_type == "Polygon" and part.area * mpp**2 >= LEAST_UM2]
        if drawn:
            tables.append(make_objects(drawn, object_type="annotation", classification=name, parent_id=parent_id))
    return concat_objects(tables)


def _by_class(
    found: gpd.GeoDataFrame, classes: Sequence[str]
) -> Iterator[tuple[str, np.ndarray[Any, np.dtype[np.object_]]]]:
    """Yield the outlines of each class that was found; those of cells by their nucleus."""
    shapes = found["nucleus"].where(found["nucleus"].notna(), found["geometry"]).to_numpy(dtype=object)
    names = found["classification"].astype(object).to_numpy()
    for name in classes:
        rows = names == name
        if rows.any():
            yield name, shapes[rows]


def _unshown(stage: str, done: int, total: int) -> None:
    del stage, done, total
