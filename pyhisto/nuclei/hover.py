"""Nuclei from a HoVer-Net over a slide: outlines, types and measurements."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import geopandas as gpd
import numpy as np
import numpy.typing as npt
import scipy.ndimage as ndi

from pyhisto.bundle.foreign.hover import BATCH, hover_instances, predict_branches
from pyhisto.contours import smooth_contours, trace_labels
from pyhisto.errors import ConfigError
from pyhisto.inference.lens import PLAIN, Lens
from pyhisto.inference.settings import InferenceSettings
from pyhisto.nuclei.segment import Nuclei, stain_channels
from pyhisto.nuclei.tiles import TileSettings, collect_cells
from pyhisto.objects import empty_objects, make_objects
from pyhisto.slide import Slide
from pyhisto.stain import StainVectors

if TYPE_CHECKING:
    from pyhisto.bundle.foreign.models import HoverModel

__all__ = ["find_hover_nuclei", "predict_hover_cells"]

WINDOW_PX = 2048
"""Side of a window's own part, px; what bounds the memory."""


def predict_hover_cells(
    slide: Slide,
    model: HoverModel,
    *,
    stains: StainVectors,
    region: Any | None = None,
    lens: Lens = PLAIN,
    settings: InferenceSettings | None = None,
    cell_expansion_um: float = 5.0,
    progress: Callable[[int, int], None] | None = None,
) -> gpd.GeoDataFrame:
    """Find the nuclei of a slide with a HoVer-Net, grow them to cells and measure them.

    Parameters
    ----------
    slide
        An open slide with a pixel size.
    model
        A model of the kind ``nucleus_segmentation``.
    stains
        Stain vectors and white, for the measurements.
    region
        Polygon or MultiPolygon, level-0 px; a nucleus counts if its centroid lies inside.
    lens
        How the network sees the slide.
    settings
        ``batch_size`` is used.
    cell_expansion_um
        How far a nucleus grows to make its cell; 0 gives nuclei only, as detections.
    progress
        Called after each window with the number done and in all.

    Returns
    -------
    geopandas.GeoDataFrame
        As of :func:`pyhisto.nuclei.network.predict_cells`: cells with their nucleus, level-0 px, the type of the
        nucleus as class, the share of its pixels that are of that type (``class_probability``), and measurements under
        QuPath's names. A nucleus none of whose pixels has a type, or of a network without types, is unclassified.

    Raises
    ------
    ConfigError
        If the model is of another kind.
    """
    spec = model.spec
    if spec.kind != "nucleus_segmentation":
        raise ConfigError(f"model of the kind {spec.kind}", expected="nucleus_segmentation")
    batch_size = (settings.batch_size if settings else None) or BATCH

    def find(rgb: npt.NDArray[np.uint8], mask: npt.NDArray[np.bool_] | None) -> Nuclei:
        return find_hover_nuclei(rgb, model, stains=stains, lens=lens, mask=mask, batch_size=batch_size)

    pixel = spec.mpp * lens.size
    tiles = TileSettings(
        pixel_size_um=pixel,
        exact=True,
        reach_um=spec.overlap * pixel,
        expansion_um=cell_expansion_um,
        tile_size=WINDOW_PX,
    )
    cells = collect_cells(slide, find, tiles, region=region, progress=progress)
    if cells is None or cells.votes is None:
        return empty_objects()
    names = [c.classification for c in spec.classes]
    best = cells.votes[:, 1:].argmax(axis=1) + 1
    share = np.take_along_axis(cells.votes, best[:, None], axis=1)[:, 0]
    best[share == 0] = 0
    return make_objects(
        cells.geometry,
        object_type="cell" if cell_expansion_um > 0 else "detection",
        nucleus=cells.nucleus if cell_expansion_um > 0 else None,
        classification=[names[k] for k in best],
        measurements={str(name): cells.table[name].to_numpy() for name in cells.table},
        class_probability=np.where(best > 0, share, np.nan),
    )


def find_hover_nuclei(
    rgb: npt.NDArray[np.uint8],
    model: HoverModel,
    *,
    stains: StainVectors,
    lens: Lens = PLAIN,
    mask: npt.NDArray[np.bool_] | None = None,
    batch_size: int = BATCH,
) -> Nuclei:
    """Find the nuclei of one image, RGB uint8 (H, W, 3) at ``model.spec.mpp * lens.size`` µm/px.

    The votes are the shares of the classes, background included, in the pixels of each nucleus.
    """
    branches = predict_branches(lens.see(rgb), model, wanted=mask, batch_size=batch_size)
    labels, types = hover_instances(branches, model.spec.postprocessing)
    if not model.typed:
        types = np.tile(np.array([0, 1], dtype=np.int64), (int(labels.max()), 1))
    if mask is not None and len(types):
        centres = np.array(ndi.center_of_mass(labels > 0, labels, np.arange(1, len(types) + 1))).reshape(-1, 2)
        rows, columns = np.floor(centres + 0.5).astype(np.intp).T
        inside = mask[rows, columns]
        labels = np.concatenate([[0], np.cumsum(inside) * inside])[labels].astype(np.int32)
        types = types[inside]
    votes = types / np.maximum(types.sum(axis=1, keepdims=True), 1)
    return Nuclei(labels, smooth_contours(trace_labels(labels)), stain_channels(rgb, stains), votes)
