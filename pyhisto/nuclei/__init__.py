"""The classical nucleus detector: no training, QuPath's settings, and QuPath's results."""

from pyhisto.nuclei.auto import AutoSettings, auto_settings, auto_settings_from_tiles, derive_dab_threshold
from pyhisto.nuclei.detect import detect_cells
from pyhisto.nuclei.segment import Nuclei, detect_nuclei
from pyhisto.nuclei.settings import CellDetectionSettings

__all__ = [
    "AutoSettings",
    "CellDetectionSettings",
    "Nuclei",
    "auto_settings",
    "auto_settings_from_tiles",
    "derive_dab_threshold",
    "detect_cells",
    "detect_nuclei",
]
