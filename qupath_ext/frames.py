"""Between the pixels of a slide file and the frame that QuPath shows, and between QuPath's stains and pyhisto's."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from qupath_ext.errors import ProjectError
from qupath_ext.native.builderframe import (
    IDENTITY,
    Affine,
    builder_frame,
    builder_layers,
    builder_size,
    invert,
    leaf_builder,
    unit_mpp,
)
from qupath_ext.project import H_DAB, H_E, ImageEntry, Stains

if TYPE_CHECKING:
    import geopandas as gpd
    import shapely

    from pyhisto.maps import Maps
    from pyhisto.slide import Slide
    from pyhisto.stain import StainVectors

__all__ = [
    "image_area",
    "is_default_stains",
    "open_slide",
    "slide_mpp",
    "to_entry_frame",
    "to_entry_maps",
    "to_slide_frame",
    "to_stain_vectors",
    "to_stains",
]


def open_slide(entry: ImageEntry, mpp: float | None = None) -> Slide:
    """Open the slide of an image: its pixels are those of the file, :func:`image_area` of them belong to the image.

    Parameters
    ----------
    entry
        The image.
    mpp
        Pixel size in µm that overrides the project's, which in turn overrides the file's.

    Raises
    ------
    ProjectError
        If the slide is missing, no local file, or of another size than the project says.
    SlideError
        If it cannot be opened.
    """
    from pyhisto.slide import Slide

    slide = Slide(
        entry.slide_path,
        mpp=slide_mpp(entry) if mpp is None else mpp,
        crop_to_bounds=entry.crop_to_bounds,
        series=entry.slide_series,
    )
    size = slide.dimensions
    known = builder_size(leaf_builder(entry.server_builder), lambda: size)
    if known != tuple(map(float, size)):
        slide.close()
        raise ProjectError(
            f"{entry.name}: {slide.path.name} is {size[0]} x {size[1]} px",
            expected=f"{known[0]:g} x {known[1]:g} px, as the project has it",
            remedy="bring back the slide that the image was made from, or add this one as a new image",
        )
    return slide


def image_area(entry: ImageEntry, slide: Slide) -> shapely.Polygon:
    """Return the part of a slide that an image shows.

    Parameters
    ----------
    entry
        The image; it may be cropped, turned, mirrored, or moved by an affine transform.
    slide
        Its open slide.

    Returns
    -------
    shapely.Polygon
        Level-0 px of the slide; convex, the whole slide for most images.

    Raises
    ------
    FormatError
        If the image is opened in a way whose geometry is not known.
    ProjectError
        If the image shows nothing of the slide.
    """
    import shapely

    def size() -> tuple[int, int]:
        return slide.dimensions

    area = shapely.box(0, 0, *slide.dimensions)
    for layer in builder_layers(entry.server_builder):
        shown = shapely.box(0, 0, *builder_size(layer, size))
        area = area.intersection(_moved(shown, invert(builder_frame(layer, size))))
    if not isinstance(area, shapely.Polygon) or area.is_empty:
        raise ProjectError(
            f"image {entry.name!r} shows nothing of its slide",
            expected="a crop or transform that leaves some of it",
        )
    return area


def slide_mpp(entry: ImageEntry) -> tuple[float, float] | None:
    """Return the pixel size (x, y) in µm that the project has for an image, along the axes of its slide."""
    shown = entry.mpp
    return None if shown is None else unit_mpp(shown, entry.slide_frame())


def to_entry_frame(objects: gpd.GeoDataFrame, entry: ImageEntry) -> gpd.GeoDataFrame:
    """Return objects of a slide, level-0 px, in the frame that QuPath shows for an image."""
    return _transformed(objects, entry.slide_frame())


def to_slide_frame(objects: gpd.GeoDataFrame, entry: ImageEntry) -> gpd.GeoDataFrame:
    """Return objects of an image in level-0 px of its slide."""
    return _transformed(objects, invert(entry.slide_frame()))


def to_entry_maps(maps: Maps, entry: ImageEntry, mpp: tuple[float, float]) -> Maps:
    """Return maps of a slide with the pixel size `mpp` as maps of the whole image that QuPath shows."""
    import math

    to_slide = invert(entry.slide_frame())
    a, b, d, e = to_slide[:4]
    across, down = math.hypot(a * mpp[0], d * mpp[1]), math.hypot(b * mpp[0], e * mpp[1])  # µm of a pixel of the image
    return maps.framed(entry.size(), (maps.um / across, maps.um / down), to_slide)


def _transformed(objects: gpd.GeoDataFrame, frame: Affine) -> gpd.GeoDataFrame:
    if frame == IDENTITY or len(objects) == 0:
        return objects
    out = objects.copy()
    out["geometry"] = _moved(objects.geometry.to_numpy(), frame)
    out["nucleus"] = _moved(objects["nucleus"].to_numpy(), frame)
    return out


def _moved(geometry: Any, frame: Affine) -> Any:
    """Transform one geometry or an array of them; missing ones stay missing."""
    import numpy as np
    import shapely

    a, b, d, e, x, y = frame
    matrix = np.array([[a, d], [b, e]])
    return shapely.transform(geometry, lambda xy: xy @ matrix + (x, y))


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
