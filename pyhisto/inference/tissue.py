"""From slides to tissue annotations."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import geopandas as gpd
import numpy as np

from pyhisto.bands import BandPolygons
from pyhisto.bundle.files import Bundle
from pyhisto.errors import ConfigError
from pyhisto.inference.cascade import heated
from pyhisto.inference.heat import HeatMaps, heat_factor
from pyhisto.inference.lens import PLAIN, Lens
from pyhisto.inference.settings import InferenceSettings
from pyhisto.inference.stream import WINDOW_PX, Frame, Progress, WindowObserver, stream_frame, stream_windows
from pyhisto.labels import PolygonSettings
from pyhisto.objects import concat_objects, empty_objects, make_objects
from pyhisto.slide import Slide

__all__ = ["predict_tissue"]

TISSUE_NUMBERS = ("threshold", "sigma_um", "min_area_um2", "min_hole_area_um2", "simplify_um")
"""What the post-processing of a tissue model must say."""


def predict_tissue(
    slide: Slide,
    bundle: Bundle,
    region: Any,
    *,
    lens: Lens = PLAIN,
    settings: InferenceSettings | None = None,
    observers: Iterable[WindowObserver] = (),
    progress: Progress | None = None,
) -> gpd.GeoDataFrame:
    """Segment the tissue classes of a model inside a region of a slide.

    A pixel is of a class where the class is more probable than the threshold and than any other class but background.

    Parameters
    ----------
    slide
        An open slide with a pixel size.
    bundle
        A model of the kind ``tissue_segmentation``. Its post-processing names ``threshold``, ``sigma_um``,
        ``min_area_um2``, ``min_hole_area_um2`` and ``simplify_um``.
    region
        shapely Polygon or MultiPolygon to look in, level-0 px; usually the tissue.
    lens
        How the network sees the slide.
    settings
        How the slide is cut; see :class:`~pyhisto.inference.settings.InferenceSettings`.
    observers
        Each is shown every window once, in order.
    progress
        Called after each window with the number done and the number in all.

    Returns
    -------
    geopandas.GeoDataFrame
        Path-object table of annotations, level-0 px, of each class that the bundle names, with the measurement
        ``<class> probability``: the mean over the annotation, as it is before points are left out of its outline.

    Raises
    ------
    ConfigError
        If the bundle is of another kind or lacks a number for the post-processing, or the settings do not fit it.
    SlideError
        If the slide's pixels cannot be decoded.
    """
    spec = bundle.spec
    if spec.kind != "tissue_segmentation":
        raise ConfigError(f"model of the kind {spec.kind}", expected="tissue_segmentation")
    missing = sorted(set(TISSUE_NUMBERS) - set(spec.postprocessing))
    if missing:
        raise ConfigError(f"{bundle.path}: post-processing without {missing[0]}", expected=", ".join(TISSUE_NUMBERS))
    frame = stream_frame(slide, bundle, region, lens=lens)
    if frame is None:
        return empty_objects()
    settings = settings or InferenceSettings()
    if spec.cascade is not None:
        slide, bundle, lens = heated(slide, bundle, region, lens=lens, settings=settings, progress=progress)
    factor = heat_factor(frame.mpp)
    settings = replace(settings, window=-(-(settings.window or WINDOW_PX) // factor) * factor)
    watching = tuple(observers)
    with HeatMaps(len(spec.classes) - 1, frame.width, frame.height, factor) as heat:
        for window in stream_windows(slide, bundle, region, settings=settings, lens=lens, progress=progress):
            heat.add(window)
            for observer in watching:
                observer(window)
        return _tissue_objects(heat, bundle, frame)


def _tissue_objects(heat: HeatMaps, bundle: Bundle, frame: Frame) -> gpd.GeoDataFrame:
    """Turn the maps of class probabilities into annotations."""
    numbers = bundle.spec.postprocessing
    pixel_um = frame.mpp * heat.factor
    sigma = numbers["sigma_um"] / pixel_um
    names = {number: c.classification for number, c in enumerate(bundle.spec.classes[1:]) if c.classification}
    cut = PolygonSettings(
        origin=(frame.left, frame.top),
        scale=(frame.downsample[0] * heat.factor, frame.downsample[1] * heat.factor),
        min_area=numbers["min_area_um2"] / pixel_um**2,
        min_hole_area=numbers["min_hole_area_um2"] / pixel_um**2,
        tolerance=numbers["simplify_um"] / pixel_um,
    )
    outlines = {number: BandPolygons(cut) for number in names}
    for y, smooth in heat.smooth(sigma):
        for number, outline in outlines.items():
            others = np.delete(smooth, number, axis=0).max(axis=0, initial=numbers["threshold"])
            outline.add_level(smooth[number] - others, y, smooth[number])
    tables = []
    for number, name in names.items():
        polygons, certainty = outlines[number].finish()
        if polygons:
            own = {f"{name} probability": certainty}
            tables.append(make_objects(polygons, object_type="annotation", classification=name, measurements=own))
    return concat_objects(tables)
