"""The settings of the classical nucleus detector, with QuPath's names and defaults."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace

from pyhisto.errors import ConfigError

__all__ = ["DETECTION_IMAGES", "NOMINAL_DIAMETER_UM", "CellDetectionSettings", "for_nucleus_size"]

DETECTION_IMAGES = ("Hematoxylin OD", "Optical density sum")
"""What nuclei may be sought in."""


@dataclass(frozen=True)
class CellDetectionSettings:
    """Settings of one run; the defaults are QuPath's.

    Parameters
    ----------
    detection_image
        ``"Hematoxylin OD"``, or ``"Optical density sum"``, which also finds nuclei that are all brown.
    requested_pixel_size_um
        Resolution of the detection; a coarser slide is used as it is.
    background_radius_um
        Radius of the opening that estimates the background, larger than a nucleus; 0 turns it off.
    background_by_reconstruction
        Opening by reconstruction rather than a plain opening.
    median_radius_um
        Radius of a median filter before the detection; 0 turns it off.
    sigma_um
        Gaussian blur; more keeps nuclei in one piece, less follows their outlines better.
    min_area_um2, max_area_um2
        Nuclei outside this range are dropped; 0 turns a limit off.
    threshold
        Least mean of a nucleus in the detection image, background subtracted.
    max_background
        No nuclei near places whose background is darker; needs a background radius.
    watershed_post_process
        Cut touching nuclei apart.
    exclude_dab
        Look only where there is more hematoxylin than DAB (for membrane stains).
    cell_expansion_um
        How far a nucleus grows to make its cell; 0 gives nuclei only, as detections.
    include_nuclei
        Keep the nucleus of each cell.
    smooth_boundaries
        Round off the outlines.
    make_measurements
        Add shape and stain measurements.
    dab_threshold
        Mean DAB OD of the nucleus from which a cell is positive.

    Raises
    ------
    ConfigError
        If a value is unknown or out of range.
    """

    detection_image: str = "Hematoxylin OD"
    requested_pixel_size_um: float = 0.5
    background_radius_um: float = 8.0
    background_by_reconstruction: bool = True
    median_radius_um: float = 0.0
    sigma_um: float = 1.5
    min_area_um2: float = 10.0
    max_area_um2: float = 400.0
    threshold: float = 0.1
    max_background: float = 2.0
    watershed_post_process: bool = True
    exclude_dab: bool = False
    cell_expansion_um: float = 5.0
    include_nuclei: bool = True
    smooth_boundaries: bool = True
    make_measurements: bool = True
    dab_threshold: float = 0.2

    def __post_init__(self) -> None:
        if self.detection_image not in DETECTION_IMAGES:
            raise ConfigError(
                f"detection_image = {self.detection_image!r}", expected=" or ".join(map(repr, DETECTION_IMAGES))
            )
        for field in fields(self):
            value = getattr(self, field.name)
            if field.type == "float" and not math.isfinite(value):
                raise ConfigError(f"{field.name} = {value}", expected="a finite number")
            if field.name.endswith(("_um", "_um2")) and value < 0:
                raise ConfigError(f"{field.name} = {value}", expected="0 or more")
        if self.requested_pixel_size_um <= 0:
            raise ConfigError("requested_pixel_size_um = 0", expected="a positive number of µm")
        if 0 < self.max_area_um2 <= self.min_area_um2:
            raise ConfigError(
                f"max_area_um2 = {self.max_area_um2}", expected=f"more than min_area_um2 = {self.min_area_um2}"
            )


NOMINAL_DIAMETER_UM = 8.0
"""Diameter of the nuclei that QuPath's default blur and area limits fit."""


def for_nucleus_size(settings: CellDetectionSettings, diameter_um: float) -> CellDetectionSettings:
    """Return settings for nuclei of another size: blur, area limits and pixel size in proportion.

    Values that are not QuPath's defaults were chosen by somebody, and stay.

    Parameters
    ----------
    settings
        The settings as they are.
    diameter_um
        Median diameter of the nuclei, µm.

    Examples
    --------
    >>> for_nucleus_size(CellDetectionSettings(sigma_um=2.0), 16.0).max_area_um2
    1600.0
    """
    factor = diameter_um / NOMINAL_DIAMETER_UM
    default = CellDetectionSettings()
    power = {
        "requested_pixel_size_um": 1,
        "sigma_um": 1,
        "background_radius_um": 1,
        "min_area_um2": 2,
        "max_area_um2": 2,
    }
    scaled = {
        name: getattr(settings, name) * factor**exponent
        for name, exponent in power.items()
        if getattr(settings, name) == getattr(default, name)
    }
    return replace(settings, **scaled)
