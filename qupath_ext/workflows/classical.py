"""Settings of the classical detector for one slide: the size of its nuclei, its stains and its thresholds."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from pyhisto.nuclei import AutoSettings, CellDetectionSettings
from pyhisto.nuclei.adapt import View
from pyhisto.nuclei.settings import NOMINAL_DIAMETER_UM, for_nucleus_size
from pyhisto.nuclei.survey import Survey
from pyhisto.slide import Slide
from pyhisto.stain import StainVectors
from qupath_ext.workflows.slidememory import SlideMemory

__all__ = ["estimated_settings", "sized_settings"]

UNUSUAL_RATIO = 1.5
"""Nuclei that differ by more from those that the detector's defaults fit get settings of their own."""


def sized_settings(
    detection: CellDetectionSettings, view: View, survey: Survey | None
) -> tuple[CellDetectionSettings, tuple[str, ...]]:
    """Return the settings for the nuclei of a slide, and what deserves a look.

    A nucleus size in µm is followed as it is; a measured one if it is far from what the defaults fit.
    """
    if not isinstance(view.nucleus_size_um, str):
        return for_nucleus_size(detection, view.nucleus_size_um), ()
    found = np.nan if survey is None else survey.size.diameter_um
    if np.isnan(found) or 1 / UNUSUAL_RATIO <= found / NOMINAL_DIAMETER_UM <= UNUSUAL_RATIO:
        return detection, ()
    note = f"nuclei are {found:.1f} µm wide at the declared µm/px; the detector follows them (check --mpp)"
    return for_nucleus_size(detection, float(found)), (note,)


def estimated_settings(
    slide: Slide,
    detection: CellDetectionSettings,
    automatic: bool,
    stains: StainVectors | None,
    region: Any,
    memory: SlideMemory,
) -> AutoSettings:
    """Derive stains and thresholds from a slide, where either is wanted; thresholds are those of the stains in use."""
    if stains is not None and not automatic:
        return AutoSettings(detection, stains)
    found = memory.settings(slide, base=detection, stains=stains, region=None if region.is_empty else region)
    return found if automatic else dataclasses.replace(found, settings=detection)
