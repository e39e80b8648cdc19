"""Nuclei from a network: where they are, how far they reach, and of which class."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import geopandas as gpd
import numpy as np
import numpy.typing as npt
import scipy.ndimage as ndi
from skimage.feature import peak_local_max
from skimage.segmentation import watershed

from pyhisto.bundle import Bundle
from pyhisto.contours import smooth_contours, trace_labels
from pyhisto.errors import ConfigError
from pyhisto.inference import PLAIN, Lens, predict_probabilities
from pyhisto.nuclei.segment import Nuclei, stain_channels
from pyhisto.nuclei.tiles import TileSettings, collect_cells
from pyhisto.objects import empty_objects, make_objects
from pyhisto.slide import Slide
from pyhisto.stain import StainVectors, optical_density_sum

__all__ = ["find_nuclei", "label_nuclei", "nucleus_probability", "predict_cells"]

TILE_SIZE_PX = 1024


def predict_cells(
    slide: Slide,
    bundle: Bundle,
    *,
    stains: StainVectors,
    region: Any | None = None,
    lens: Lens = PLAIN,
    cell_expansion_um: float = 5.0,
    progress: Callable[[int, int], None] | None = None,
) -> gpd.GeoDataFrame:
    """Find the cells of a slide with a network, grow them and measure them.

    Parameters
    ----------
    slide
        An open slide with a pixel size.
    bundle
        A model of the kind ``cell_detection``; see :func:`label_nuclei` for its post-processing.
    stains
        Stain vectors and white, for the outlines and the measurements.
    region
        Polygon or MultiPolygon, level-0 px; a cell counts if the centroid of its nucleus lies inside.
    lens
        How the network sees the slide. Measurements are those of the slide as it is, at its declared pixel size; the
        lengths of the post-processing are those of the training slides.
    cell_expansion_um
        How far a nucleus grows to make its cell.
    progress
        Called after each tile with the number of tiles done and in all.

    Returns
    -------
    geopandas.GeoDataFrame
        Cells with their nucleus, level-0 px, with the classes of the bundle, the probability of that class
        (``class_probability``), and measurements under QuPath's names.

    Raises
    ------
    ConfigError
        If the bundle is of another kind.
    """
    spec = bundle.spec
    if spec.kind != "cell_detection":
        raise ConfigError(f"model of the kind {spec.kind}", expected="cell_detection")

    def find(rgb: npt.NDArray[np.uint8], mask: npt.NDArray[np.bool_] | None) -> Nuclei:
        return find_nuclei(rgb, bundle, stains=stains, lens=lens, mask=mask)

    pixel = spec.mpp * lens.size
    settings = TileSettings(
        pixel_size_um=pixel,
        exact=True,
        reach_um=spec.overlap * pixel,
        expansion_um=cell_expansion_um,
        tile_size=TILE_SIZE_PX,
    )
    cells = collect_cells(slide, find, settings, region=region, progress=progress)
    if cells is None or cells.votes is None:
        return empty_objects()
    names = spec.cell_classes
    return make_objects(
        cells.geometry,
        object_type="cell" if cell_expansion_um > 0 else "detection",
        nucleus=cells.nucleus if cell_expansion_um > 0 else None,
        classification=[names[k] for k in cells.votes.argmax(axis=1)],
        measurements={str(name): cells.table[name].to_numpy() for name in cells.table},
        class_probability=cells.votes.max(axis=1),
    )


def find_nuclei(
    rgb: npt.NDArray[np.uint8],
    bundle: Bundle,
    *,
    stains: StainVectors,
    lens: Lens = PLAIN,
    mask: npt.NDArray[np.bool_] | None = None,
) -> Nuclei:
    """Find the nuclei of one image, RGB uint8 (H, W, 3) at ``bundle.spec.mpp * lens.size`` µm/px."""
    spec = bundle.spec
    probability = predict_probabilities(lens.see(rgb), bundle, wanted=mask)
    darkness = optical_density_sum(rgb, stains.background)
    labels, votes = label_nuclei(probability, darkness, spec.mpp, spec.postprocessing, mask)
    return Nuclei(labels, smooth_contours(trace_labels(labels)), stain_channels(rgb, stains), votes)


def label_nuclei(
    probability: npt.NDArray[np.float32],
    darkness: npt.NDArray[np.float32],
    pixel_size_um: float,
    postprocessing: Any,
    mask: npt.NDArray[np.bool_] | None = None,
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float64]]:
    """Turn class probabilities into labelled nuclei.

    The nuclei classes give the positions: peaks of their blurred sum. The territory of a nucleus is its watershed basin
    (Meyer 1991) within ``reach_um``, and its outline runs where the stain falls half-way from its core to the ground
    around it, because points teach a network where nuclei are, but not how large. Its class is the one with the
    greatest sum of probabilities, nucleus and membrane, over its pixels.

    Parameters
    ----------
    probability
        float32, shape (1 + 2k, H, W): background, then nucleus and membrane of each of the k cell classes.
    darkness
        Sum of the optical densities, float32 (H, W).
    pixel_size_um
        µm/px of both.
    postprocessing
        Mapping with ``threshold`` (least blurred nucleus probability of a peak), ``sigma_um`` (blur),
        ``min_distance_um`` (between peaks), ``reach_um`` (radius of the largest nucleus), ``core_um`` (radius that
        always belongs to the nucleus).
    mask
        bool (H, W); a nucleus counts if its peak lies inside.

    Returns
    -------
    labels : numpy.ndarray
        int32 (H, W); 0 is background, nuclei are 1 to n, each connected and without holes.
    votes : numpy.ndarray
        float64 (n, k), the share of each class in a nucleus; rows sum to 1.
    """
    nucleus = nucleus_probability(probability, pixel_size_um, postprocessing)
    distance = max(1, round(postprocessing["min_distance_um"] / pixel_size_um))
    peaks = peak_local_max(
        nucleus, min_distance=distance, threshold_abs=postprocessing["threshold"], exclude_border=False
    )
    if mask is not None:
        peaks = peaks[mask[peaks[:, 0], peaks[:, 1]]]
    n = len(peaks)
    if n == 0:
        return np.zeros(nucleus.shape, dtype=np.int32), np.zeros((0, len(probability) // 2))
    seeds = np.zeros(nucleus.shape, dtype=np.int32)
    seeds[peaks[:, 0], peaks[:, 1]] = np.arange(1, n + 1)
    to_seed = ndi.distance_transform_edt(seeds == 0) * pixel_size_um
    territory = watershed(-nucleus, seeds, mask=to_seed <= postprocessing["reach_um"])
    core = np.where(to_seed <= postprocessing["core_um"], territory, 0)
    labels = _grow_to_edge(territory, core, darkness, n)
    return labels, _votes(probability, labels, n)


def nucleus_probability(
    probability: npt.NDArray[np.float32], pixel_size_um: float, postprocessing: Any
) -> npt.NDArray[np.float32]:
    """Return the blurred sum of the nucleus classes, float32 (H, W), whose peaks are compared with the threshold."""
    return np.asarray(ndi.gaussian_filter(probability[1::2].sum(axis=0), postprocessing["sigma_um"] / pixel_size_um))


def _votes(probability: npt.NDArray[np.float32], labels: npt.NDArray[np.int32], n: int) -> npt.NDArray[np.float64]:
    """Return the share of each class in each nucleus, float64 (n, classes), by its summed probabilities."""
    inside = labels > 0
    owner = labels[inside] - 1
    of_class = probability[1::2] + probability[2::2]
    sums = np.stack([np.bincount(owner, channel[inside], n) for channel in of_class], axis=1)
    total = sums.sum(axis=1, keepdims=True)
    return np.asarray(np.divide(sums, total, out=np.full_like(sums, 1 / sums.shape[1]), where=total > 0))


def _grow_to_edge(
    territory: npt.NDArray[np.integer[Any]],
    core: npt.NDArray[np.integer[Any]],
    darkness: npt.NDArray[np.float32],
    n: int,
) -> npt.NDArray[np.int32]:
    """Return the part of each territory that is as dark as its core, connected to it, without holes."""
    smooth = ndi.gaussian_filter(darkness, 0.7)
    index = np.arange(1, n + 1)
    dark = np.asarray(ndi.mean(smooth, core, index))
    outside = (territory == 0).astype(np.float32)
    ground = ndi.gaussian_filter(smooth * outside, 16) / np.maximum(ndi.gaussian_filter(outside, 16), 1e-3)
    level = np.concatenate([[np.inf], (dark + np.asarray(ndi.mean(ground, core, index))) / 2])
    stained = (smooth > level[territory]) & (territory > 0)
    labels = np.where(stained | (core > 0), territory, 0)
    labels = np.where(_opened(labels) | (core > 0), labels, 0)
    return _largest_parts(labels, core, n)


def _opened(labels: npt.NDArray[np.integer[Any]]) -> npt.NDArray[np.bool_]:
    """Return where a label survives an opening with a 3 x 3 cross, each label for itself."""
    cross = ndi.generate_binary_structure(2, 1)
    same = ndi.minimum_filter(labels, footprint=cross) == ndi.maximum_filter(labels, footprint=cross)
    eroded = same & (labels > 0)
    return np.asarray(ndi.binary_dilation(eroded, cross))


def _largest_parts(
    labels: npt.NDArray[np.integer[Any]], core: npt.NDArray[np.integer[Any]], n: int
) -> npt.NDArray[np.int32]:
    """Keep of each label the part that holds its core, and fill its holes."""
    out = np.zeros(labels.shape, dtype=np.int32)
    windows: list[Any] = list(ndi.find_objects(labels, max_label=n))
    for number, window in enumerate(windows, start=1):
        if window is None:
            continue
        parts, _ = ndi.label(labels[window] == number)
        kept = np.unique(parts[core[window] == number])
        whole = ndi.binary_fill_holes(np.isin(parts, kept[kept > 0]))
        out[window][whole & (out[window] == 0)] = number
    return out
