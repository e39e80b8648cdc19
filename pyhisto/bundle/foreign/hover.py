"""From the output of a HoVer-Net to labelled nuclei and their types, by MONAI's own transforms."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.ndimage as ndi

from pyhisto.bundle.foreign.models import HoverModel

__all__ = ["hover_instances", "predict_branches"]

BATCH = 8


def predict_branches(
    rgb: npt.NDArray[np.uint8],
    model: HoverModel,
    *,
    wanted: npt.NDArray[np.bool_] | None = None,
    batch_size: int = BATCH,
) -> dict[str, npt.NDArray[np.float32]]:
    """Return the branches of a HoVer-Net for a window of any size.

    Tiles lie side by side with the middle parts for which the network gives an output, as in the paper; what lies
    beyond the window is mirrored.

    Parameters
    ----------
    rgb
        uint8, shape (height, width, 3), at the model's µm/px.
    model
        The network.
    wanted
        bool (height, width); tiles that neither hold a wanted pixel nor see one are left out and are background.
    batch_size
        Tiles in one call of the network.

    Returns
    -------
    dict
        As of :meth:`HoverModel.predict`, float32 (channels, height, width).
    """
    height, width = rgb.shape[:2]
    side, margin = model.output_size, model.spec.overlap
    corners = [
        (y, x)
        for y in range(0, height, side)
        for x in range(0, width, side)
        if wanted is None
        or wanted[max(0, y - margin) : y + side + margin, max(0, x - margin) : x + side + margin].any()
    ]
    rows, columns = -(-height // side) * side, -(-width // side) * side
    edges = ((margin, rows - height + margin), (margin, columns - width + margin), (0, 0))
    padded = np.pad(rgb, edges, mode="symmetric")
    out = {name: np.zeros((n, rows, columns), dtype=np.float32) for name, n in model.branches.items()}
    size = side + 2 * margin
    for start in range(0, len(corners), batch_size):
        part = corners[start : start + batch_size]
        found = model.predict(np.stack([padded[y : y + size, x : x + size] for y, x in part]))
        for name, values in found.items():
            for (y, x), value in zip(part, values, strict=True):
                out[name][:, y : y + side, x : x + side] = value
    return {name: values[:, :height, :width] for name, values in out.items()}


def hover_instances(
    branches: Mapping[str, npt.NDArray[np.float32]], numbers: Mapping[str, float]
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64]]:
    """Turn the branches of a HoVer-Net into labelled nuclei.

    The steps of MONAI's ``HoVerNetInstanceMapPostProcessing``: the pixels that are more probably nucleus, the border
    of nuclei where the distances to their centres change most, markers inside these borders, and the watershed from
    them (Graham 2019, section 3.2). The border is scaled by the least and greatest change in the window, as there.

    Parameters
    ----------
    branches
        Logits of ``"nucleus_prediction"`` (2, H, W), ``"horizontal_vertical"`` (2, H, W), and perhaps logits of
        ``"type_prediction"`` (types, H, W); float32.
    numbers
        ``min_object_size`` and ``marker_radius`` in px, ``sobel_kernel_size``, ``marker_threshold``.

    Returns
    -------
    labels : numpy.ndarray
        int32 (H, W); 0 is background, nuclei are 1 to n, each connected and without holes.
    types : numpy.ndarray
        int64 (n, types): pixels of each type in each nucleus; (n, 0) without such a branch.
    """
    from monai.apps.pathology.transforms.post.array import (
        GenerateDistanceMap,
        GenerateInstanceBorder,
        GenerateWatershedMarkers,
        Watershed,
    )

    nucleus, hover = branches["nucleus_prediction"], branches["horizontal_vertical"]
    kinds, least = len(branches.get("type_prediction", ())), int(numbers["min_object_size"])
    mask = (_without_small(ndi.label(nucleus[1] > nucleus[0])[0], least) > 0).astype(np.uint8)[None]
    if not mask.any():
        return np.zeros(mask.shape[1:], dtype=np.int32), np.zeros((0, kinds), dtype=np.int64)
    border = GenerateInstanceBorder(kernel_size=int(numbers["sobel_kernel_size"]))(mask, hover)
    distance = GenerateDistanceMap()(mask, border)
    # Small objects are dropped here, for MONAI's way of doing it warns with newer versions of scikit-image.
    make_markers = GenerateWatershedMarkers(
        threshold=numbers["marker_threshold"], radius=int(numbers["marker_radius"]), min_object_size=0
    )
    markers = _without_small(np.asarray(make_markers(mask, border)), least)
    labels = _whole(np.asarray(Watershed()(distance, mask, markers))[0])
    return labels, _type_counts(branches.get("type_prediction"), labels)


def _without_small(labels: npt.NDArray[Any], least: int) -> npt.NDArray[Any]:
    """Return labels without those of fewer than `least` pixels."""
    kept = np.bincount(labels.ravel()) >= least
    kept[0] = False
    return np.where(kept[labels], labels, 0)


def _whole(found: npt.NDArray[Any]) -> npt.NDArray[np.int32]:
    """Return the labels numbered from 1 to n without gap, with their holes filled."""
    present, inverse = np.unique(found, return_inverse=True)
    labels = (inverse.reshape(found.shape) + (present[0] > 0)).astype(np.int32)
    for number, window in enumerate(ndi.find_objects(labels), start=1):
        inside = labels[window] == number
        labels[window][ndi.binary_fill_holes(inside) & (labels[window] == 0)] = number
    return np.asarray(labels, dtype=np.int32)


def _type_counts(logits: npt.NDArray[np.float32] | None, labels: npt.NDArray[np.int32]) -> npt.NDArray[np.int64]:
    """Return how many pixels of each nucleus are of each type, int64 (n, types)."""
    n = int(labels.max())
    if logits is None:
        return np.zeros((n, 0), dtype=np.int64)
    inside = labels > 0
    types = logits.argmax(axis=0)[inside]
    pairs = (labels[inside].astype(np.int64) - 1) * len(logits) + types
    return np.bincount(pairs, minlength=n * len(logits)).reshape(n, len(logits))
