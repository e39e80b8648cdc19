"""The cells that a network finds on one slide, seen as the slide needs it and classed as it is wanted."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeAlias

import geopandas as gpd
import numpy as np
import numpy.typing as npt

from pyhisto.bundle.files import Bundle
from pyhisto.inference import InferenceSettings, Lens, WindowObserver
from pyhisto.nuclei.adapt import Adaptation, View, dab_means, with_classes
from pyhisto.nuclei.network import predict_cells
from pyhisto.objects import empty_objects
from pyhisto.slide import Slide
from pyhisto.stain import StainVectors

__all__ = ["NucleiLike", "network_cells"]

NucleiLike: TypeAlias = Callable[[Bundle, Lens], npt.NDArray[np.float64]]
"""Returns the mean DAB OD of nuclei of slides like the one at hand."""


def network_cells(  # noqa: PLR0913 - all of it is what is known about one slide
    slide: Slide,
    bundle: Bundle,
    adaptation: Adaptation,
    view: View,
    *,
    stains: StainVectors,
    region: Any,
    cell_expansion_um: float,
    settings: InferenceSettings | None = None,
    observers: Iterable[WindowObserver] = (),
    nuclei_like: NucleiLike | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[gpd.GeoDataFrame, dict[str, Any]]:
    """Find the cells of a region.

    Parameters
    ----------
    slide, bundle
        An open slide and the model.
    adaptation, view
        What was found out about the slide, and what is wanted.
    stains, region, cell_expansion_um, settings, observers, progress
        As in :func:`pyhisto.nuclei.network.predict_cells`.
    nuclei_like
        Other slides whose nuclei help to find the DAB cut of a small one.

    Returns
    -------
    objects, measured
        The cells, level-0 px; and what was measured and decided, as JSON types.
    """
    measured = {**adaptation.measured, "unlike_training": list(adaptation.foreign)}
    if region.is_empty:
        return empty_objects(), measured
    found = predict_cells(
        slide,
        bundle,
        stains=stains,
        region=region,
        lens=adaptation.lens,
        settings=settings,
        observers=observers,
        cell_expansion_um=cell_expansion_um,
        progress=progress,
    )
    means = dab_means(found)
    unfamiliar = view.classify == "dab" or (view.classify == "auto" and bool(adaptation.unmended))
    if nuclei_like is not None and unfamiliar:
        means = np.concatenate([means, nuclei_like(bundle, adaptation.lens)])
    found, decision = with_classes(found, bundle.spec, view, adaptation.unmended, means)
    return found, {**measured, **decision}
