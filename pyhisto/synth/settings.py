"""What a synthetic slide looks like, and what is known about it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import geopandas as gpd

from pyhisto.errors import ConfigError

__all__ = ["NUCLEUS_CLASSES", "SynthSettings", "SynthTruth"]

NUCLEUS_CLASSES = ("Tumor: Negative", "Tumor: Positive", "Stroma", "Immune cells")
"""The classes of the nuclei in :attr:`SynthTruth.nuclei`."""

_MIN_SIDE_UM = 240.0
_RANGES = {
    "proliferation": 1.0,
    "tumour_fraction": 1.0,
    "positive_others": 1.0,
    "stain_variation": 2.0,
    "scanner_variation": 2.0,
    "noise": 0.1,
}


@dataclass(frozen=True)
class SynthSettings:
    """Settings of one synthetic slide. The same settings give the same pixels and the same truth.

    Parameters
    ----------
    width, height
        Size of level 0, px.
    mpp
        Pixel size, µm; between 0.1 and 1.
    seed
        Not negative.
    proliferation
        Fraction of the tumour nuclei that are positive, 0 to 1; None draws it between 0.06 and 0.55.
    tumour_fraction
        Fraction of the tissue that is tumour nests, before small pieces are dropped; None draws it between 0.28 and
        0.48.
    stain_variation
        How far stain vectors, stain strength and background staining stray from slide to slide; 0 is none, 1 what
        laboratories show.
    scanner_variation
        The same for white point, gamma, contrast, sharpness and uneven light.
    noise
        Standard deviation of the camera's noise on white, as a fraction of the full scale.
    positive_others
        Fraction of the lymphocytes that carry DAB (half of it for stromal nuclei). They do not count for the index.
    pen_mark
        Draw a stroke of a felt pen beside the tissue, touching its edge.
    compression
        Of the tiles in the file.
    """

    width: int = 4096
    height: int = 4096
    mpp: float = 0.5
    seed: int = 0
    proliferation: float | None = None
    tumour_fraction: float | None = None
    stain_variation: float = 1.0
    scanner_variation: float = 1.0
    noise: float = 0.008
    positive_others: float = 0.06
    pen_mark: bool = True
    compression: Literal["jpeg", "deflate"] = "jpeg"

    def __post_init__(self) -> None:
        """Refuse settings that cannot be drawn."""
        if not 0.1 <= self.mpp <= 1.0:
            raise ConfigError(f"mpp = {self.mpp} µm", expected="a pixel size between 0.1 and 1 µm")
        for name in ("width", "height"):
            side_px = getattr(self, name)
            if side_px * self.mpp < _MIN_SIDE_UM:
                raise ConfigError(
                    f"{name} = {side_px} px ({side_px * self.mpp:g} µm)", expected=f"at least {_MIN_SIDE_UM:g} µm"
                )
        if self.seed < 0:
            raise ConfigError(f"seed = {self.seed}", expected="a seed that is not negative")
        for name, highest in _RANGES.items():
            value = getattr(self, name)
            if value is not None and not 0.0 <= value <= highest:
                raise ConfigError(f"{name} = {value}", expected=f"a number between 0 and {highest:g}")
        if self.compression not in ("jpeg", "deflate"):
            raise ConfigError(f"compression = {self.compression!r}", expected="jpeg or deflate")


@dataclass(frozen=True, eq=False)
class SynthTruth:
    """What is known about a synthetic slide. Geometry in level-0 px: pixel (ix, iy) has its centre at +0.5, +0.5.

    Parameters
    ----------
    tissue
        Path-object table, annotations without a class: the outline of the tissue.
    tumour
        Path-object table, annotations of class ``Tumor``: the nests, with their holes.
    nuclei
        Path-object table, one detection a nucleus, its polygon and one of :data:`NUCLEUS_CLASSES`; the measurement
        ``Truth: DAB OD`` is the amount of DAB that it was drawn with, background included.
    pen
        Path-object table, annotations of class ``Ignore*``: the pen mark.
    ki67_index
        Positive tumour nuclei / all tumour nuclei, 0 to 1; NaN on a slide without tumour nuclei.
    mpp
        Pixel size, µm.
    """

    tissue: gpd.GeoDataFrame
    tumour: gpd.GeoDataFrame
    nuclei: gpd.GeoDataFrame
    pen: gpd.GeoDataFrame
    ki67_index: float
    mpp: float

    def save(self, folder: Path, stem: str) -> list[Path]:
        """Write the tables as GeoParquet: ``<stem>.tissue.parquet`` and so on.

        Parameters
        ----------
        folder
            An existing folder.
        stem
            Begin of the file names, usually the slide's name without its ending.

        Returns
        -------
        list of Path
            What was written: tissue, tumour, nuclei, pen.
        """
        written = []
        for kind in ("tissue", "tumour", "nuclei", "pen"):
            path = folder / f"{stem}.{kind}.parquet"
            getattr(self, kind).to_parquet(path)
            written.append(path)
        return written
