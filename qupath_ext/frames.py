"""Between the pixels of a slide file and the frame that QuPath shows, and between QuPath's stains and pyhisto's."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from qupath_ext.project import H_DAB, H_E, ImageEntry, Stains

if TYPE_CHECKING:
    import geopandas as gpd

    from pyhisto.slide import Slide
    from pyhisto.stain import StainVectors

__all__ = [
    "is_default_stains",
    "open_slide",
    "slide_mpp",
    "to_entry_frame",
    "to_slide_frame",
    "to_stain_vectors",
    "to_stains",
]

IDENTITY = (1.0, 0.0, 0.0, 1.0, 0.0, 0.0)


def open_slide(entry: ImageEntry, mpp: float | None = None) -> Slide:
    """Open the slide of an image as the project shows it.

    Parameters
    ----------
    entry
        The image.
    mpp
        Pixel size in µm that overrides the project's, which in turn overrides the file's.

    Raises
    ------
    ProjectError
        If the slide is missing or no local file.
    SlideError
        If it cannot be opened.
    """
    from pyhisto.slide import Slide

    return Slide(entry.slide_path, mpp=slide_mpp(entry) if mpp is None else mpp, crop_to_bounds=entry.crop_to_bounds)


def slide_mpp(entry: ImageEntry) -> tuple[float, float] | None:
    """Return the pixel size (x, y) in µm that the project has for an image, along the axes of its slide."""
    shown = entry.mpp
    if shown is None:
        return None
    quarter_turn = entry.slide_frame()[0] == 0.0
    return shown[::-1] if quarter_turn else shown


def to_entry_frame(objects: gpd.GeoDataFrame, entry: ImageEntry) -> gpd.GeoDataFrame:
    """Return objects of a slide, level-0 px, in the frame that QuPath shows for an image."""
    return _transformed(objects, entry.slide_frame())


def to_slide_frame(objects: gpd.GeoDataFrame, entry: ImageEntry) -> gpd.GeoDataFrame:
    """Return objects of an image in level-0 px of its slide."""
    a, b, d, e, x, y = entry.slide_frame()
    det = a * e - b * d
    inverse = (e / det, -b / det, -d / det, a / det, (b * y - e * x) / det, (d * x - a * y) / det)
    return _transformed(objects, inverse)


def _transformed(objects: gpd.GeoDataFrame, affine: tuple[float, ...]) -> gpd.GeoDataFrame:
    if affine == IDENTITY or len(objects) == 0:
        return objects
    import numpy as np
    import shapely

    a, b, d, e, x, y = affine
    matrix = np.array([[a, d], [b, e]])

    def move(geometry: Any) -> Any:
        return shapely.transform(geometry, lambda xy: xy @ matrix + (x, y))

    out = objects.copy()
    out["geometry"] = move(objects.geometry.to_numpy())
    out["nucleus"] = move(objects["nucleus"].to_numpy())
    return out


def to_stain_vectors(stains: Stains) -> StainVectors:
    """Return QuPath's stains as pyhisto's."""
    from pyhisto.stain import StainVectors

    if stains.stain3 is None or stains.stain3_name is None:
        return StainVectors((stains.stain1_name, stains.stain2_name), (stains.stain1, stains.stain2), stains.background)
    names = (stains.stain1_name, stains.stain2_name, stains.stain3_name)
    return StainVectors(names, (stains.stain1, stains.stain2, stains.stain3), stains.background)


def to_stains(vectors: StainVectors, name: str) -> Stains:
    """Return pyhisto's stains as QuPath's, under a name for the set."""
    three = len(vectors.names) > 2
    return Stains(
        name,
        vectors.names[0],
        vectors.vectors[0],
        vectors.names[1],
        vectors.vectors[1],
        vectors.names[2] if three else None,
        vectors.vectors[2] if three else None,
        vectors.background,
    )


def is_default_stains(stains: Stains | None) -> bool:
    """Return whether an image has no stains, or QuPath's default ones that nobody adjusted."""
    if stains is None:
        return True
    defaults = [(d.stain1, d.stain2, d.background) for d in (H_DAB, H_E)]
    found = (stains.stain1, stains.stain2, stains.background)
    return any(_close(found, default) for default in defaults)


def _close(a: tuple[tuple[float, ...], ...], b: tuple[tuple[float, ...], ...]) -> bool:
    import math

    def unit(v: tuple[float, ...]) -> list[float]:
        length = math.hypot(*v) or 1.0
        return [value / length for value in v]

    pairs = zip(a, b, strict=True)
    return all(math.isclose(x, y, abs_tol=2e-3) for v, w in pairs for x, y in zip(unit(v), unit(w), strict=True))
