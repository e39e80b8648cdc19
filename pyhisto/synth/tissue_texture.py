"""The tissue between the nuclei: fibres, epithelial cytoplasm with cell borders, clefts."""

from __future__ import annotations

import numpy as np
from scipy import ndimage as ndi
from scipy.spatial import cKDTree

from pyhisto.synth.fields import Float32, resample, sigmoid, smooth_noise
from pyhisto.synth.layout import STEP_UM, Layout
from pyhisto.synth.nuclei import STROMA, Nuclei
from pyhisto.synth.settings import SynthSettings
from pyhisto.synth.stains import Appearance

__all__ = ["TEXTURE_UM", "draw_tissue"]

TEXTURE_UM = 1.0
"""Step of the grid on which the tissue is drawn."""

_TILE = 512


def draw_tissue(settings: SynthSettings, layout: Layout, nuclei: Nuclei, look: Appearance) -> Float32:
    """Draw the amounts of haematoxylin, DAB and protein between the nuclei, of the whole slide.

    Parameters
    ----------
    settings
        The seed is used.
    layout
        Where tissue and nests are.
    nuclei
        The cell borders run midway between their centres.
    look
        Staining strengths.

    Returns
    -------
    (3, rows, columns) float32
        On a grid of :data:`TEXTURE_UM`.
    """
    rng = np.random.default_rng((settings.seed, 4))
    y = (np.arange(int(np.ceil(layout.height_um / TEXTURE_UM)) + 1, dtype=np.float32) + 0.5) * TEXTURE_UM
    x = (np.arange(int(np.ceil(layout.width_um / TEXTURE_UM)) + 1, dtype=np.float32) + 0.5) * TEXTURE_UM

    def fine(field: Float32) -> Float32:
        return resample(field, y, x, STEP_UM)

    tissue_um, nest_um = fine(layout.tissue_um), fine(layout.nest_um)
    rough = _tiled(smooth_noise(rng, (_TILE, _TILE), 2.2, periodic=True), tissue_um.shape)
    tissue = sigmoid(np.asarray((tissue_um + 1.5 * rough) / 1.2, dtype=np.float32))
    nest = sigmoid(np.asarray((nest_um + 0.8 * rough) / 1.1, dtype=np.float32))
    fibres = _stroma(rng, fine(layout.flow_um), fine(layout.along_um))
    grain = _tiled(smooth_noise(rng, (_TILE, _TILE), 1.0, periodic=True), tissue_um.shape)
    cytoplasm = 1.0 + 0.16 * grain + 0.10 * rough
    cytoplasm -= _cell_borders(nuclei, y, x, nest_um) * 0.55
    patchy = fine(1.0 + 0.14 * smooth_noise(rng, layout.nest_um.shape, 60.0 / STEP_UM))
    protein = look.protein * tissue * patchy * (fibres + nest * (cytoplasm - fibres))
    protein += 0.35 * look.protein * np.exp(-(((tissue_um - 1.0) / 1.8) ** 2))
    cleft = sigmoid((fine(smooth_noise(rng, layout.nest_um.shape, 22.0 / STEP_UM)) - 0.75) / 0.12)
    protein *= 1.0 - 0.85 * cleft * np.exp(-(((nest_um + 2.6) / 2.0) ** 2))
    np.clip(protein, 0.0, None, out=protein)
    haze = fine(np.clip(1.0 + 0.35 * smooth_noise(rng, layout.nest_um.shape, 80.0 / STEP_UM), 0.2, None))
    solid = protein / look.protein
    haematoxylin = look.haematoxylin * solid * (0.06 + 0.07 * nest)
    dab = look.dab_haze * solid * haze
    return np.stack([haematoxylin, dab, protein]).astype(np.float32)


def _tiled(tile: Float32, shape: tuple[int, ...]) -> Float32:
    rows, columns = (-(-side // _TILE) for side in shape)
    return np.tile(tile, (rows, columns))[: shape[0], : shape[1]]


def _stroma(rng: np.random.Generator, flow_um: Float32, along_um: Float32) -> Float32:
    """Return the relative density of wavy fibres with clear gaps between the bundles; mean about 0.9."""
    thin = smooth_noise(rng, (_TILE, _TILE), (0.8, 7.0), periodic=True)
    bundles = smooth_noise(rng, (_TILE, _TILE), (3.0, 14.0), periodic=True)
    frayed = _tiled(smooth_noise(rng, (_TILE, _TILE), 5.0, periodic=True), flow_um.shape)
    fluff = _tiled(smooth_noise(rng, (_TILE, _TILE), 1.3, periodic=True), flow_um.shape)
    where = np.stack([flow_um + 2.2 * frayed, along_um])
    thin = ndi.map_coordinates(thin, where, order=1, mode="grid-wrap")
    bundles = ndi.map_coordinates(bundles, 0.83 * where, order=1, mode="grid-wrap")
    density = 0.95 + 0.19 * thin + 0.15 * bundles + 0.09 * fluff + 0.06 * frayed
    return np.asarray(np.clip(density, 0.10, None) * sigmoid((bundles + 1.9) / 0.16), dtype=np.float32)


def _cell_borders(nuclei: Nuclei, y_um: Float32, x_um: Float32, nest_um: Float32) -> Float32:
    """Return 1 on the borders of the cells in the nests and 0 elsewhere."""
    borders = np.zeros(nest_um.shape, dtype=np.float32)
    cells = nuclei.kind != STROMA
    if int(cells.sum()) < 2:
        return borders
    rows, columns = np.nonzero(nest_um > -1.0)
    tree = cKDTree(np.stack([nuclei.y_um[cells], nuclei.x_um[cells]], axis=1))
    distance, _ = tree.query(np.stack([y_um[rows], x_um[columns]], axis=1), k=2)
    distance = np.asarray(distance)
    gap = (distance[:, 1] - distance[:, 0]).astype(np.float32)
    borders[rows, columns] = np.exp(-((gap / 1.1) ** 2))
    return borders
