"""The classical detector on a whole slide."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import geopandas as gpd
import numpy as np
import numpy.typing as npt
import pandas as pd

from pyhisto.nuclei.segment import Nuclei, detect_nuclei
from pyhisto.nuclei.settings import CellDetectionSettings
from pyhisto.nuclei.tiles import TILE_SIZE_PX, Cells, TileSettings, collect_cells
from pyhisto.objects import empty_objects, make_objects
from pyhisto.slide import Slide
from pyhisto.stain import StainVectors

__all__ = ["detect_cells"]


def detect_cells(
    slide: Slide,
    settings: CellDetectionSettings,
    *,
    stains: StainVectors,
    region: Any | None = None,
    base_class: str | None = None,
    tile_size: int = TILE_SIZE_PX,
    progress: Callable[[int, int], None] | None = None,
) -> gpd.GeoDataFrame:
    """Detect nuclei in a slide, grow them into cells, measure and classify them.

    The slide is read in overlapping tiles. A nucleus belongs to the tile in whose own part its centroid lies; near
    the seams, where two tiles may see a nucleus differently, both are kept at first and the better one is chosen, so
    that none is cut, lost or counted twice.

    Parameters
    ----------
    slide
        An open slide with a pixel size.
    settings
        The detector's settings.
    stains
        Stain vectors and white.
    region
        Polygon or MultiPolygon, level-0 px; the whole slide by default.
    base_class
        ``"Tumor"`` makes the classes ``"Tumor: Positive"`` and ``"Tumor: Negative"``; they are ``"Positive"`` and
        ``"Negative"`` by default. Without a DAB stain all objects have the base class.
    tile_size
        Width and height of a tile without its overlap, in pixels of the detection.
    progress
        Called after each tile with the number of tiles done and in all.

    Returns
    -------
    geopandas.GeoDataFrame
        Objects of type "cell" with their nucleus, or, without expansion, objects of type "detection" whose geometry
        is the nucleus, as QuPath makes them; level-0 px; measurements under QuPath's names.

    Raises
    ------
    MissingPixelSizeError
        If the slide's pixel size is not known.
    SlideError
        If its pixels cannot be decoded.
    ConfigError
        If settings and stains do not fit.
    """
    pixel = max(settings.requested_pixel_size_um, slide.mean_mpp)
    tiles = TileSettings(
        pixel_size_um=pixel,
        exact=False,
        reach_um=2 * settings.background_radius_um + 4 * settings.sigma_um,
        expansion_um=settings.cell_expansion_um,
        smooth=settings.smooth_boundaries,
        tile_size=tile_size,
    )

    def find(rgb: npt.NDArray[np.uint8], mask: npt.NDArray[np.bool_] | None) -> Nuclei:
        return detect_nuclei(rgb, pixel_size_um=pixel, settings=settings, stains=stains, mask=mask)

    cells = collect_cells(slide, find, tiles, region=region, progress=progress)
    return empty_objects() if cells is None else _as_objects(cells, settings, stains, base_class)


def _as_objects(
    cells: Cells, settings: CellDetectionSettings, stains: StainVectors, base_class: str | None
) -> gpd.GeoDataFrame:
    expanded = settings.cell_expansion_um > 0
    with_nucleus = expanded and settings.include_nuclei
    table = cells.table
    if expanded and not settings.include_nuclei:
        table = table[[name for name in table.columns if name.startswith(("Cell: ", "Cytoplasm: "))]]
    return make_objects(
        cells.geometry,
        object_type="cell" if expanded else "detection",
        nucleus=cells.nucleus if with_nucleus else None,
        classification=_classes(cells.table, settings, stains, base_class),
        measurements={str(name): table[name].to_numpy() for name in table} if settings.make_measurements else None,
    )


def _classes(
    table: pd.DataFrame, settings: CellDetectionSettings, stains: StainVectors, base_class: str | None
) -> list[str | None]:
    index = stains.index("DAB")
    if index is None:
        return [base_class] * len(table)
    prefix = f"{base_class}: " if base_class else ""
    positive = table[f"Nucleus: {stains.names[index]} OD mean"].to_numpy() >= settings.dab_threshold
    return [f"{prefix}Positive" if is_positive else f"{prefix}Negative" for is_positive in positive]
