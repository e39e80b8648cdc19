"""How good a result is: areas, instances, detections, probabilities and indices, with their intervals."""

from __future__ import annotations

from pyhisto.metrics.agreement import (
    Agreement,
    BlandAltman,
    agreement,
    bland_altman,
    icc_2_1,
    lin_concordance,
    mean_absolute_error,
    pearson,
    spearman,
)
from pyhisto.metrics.calibration import (
    Reliability,
    brier_score,
    expected_calibration_error,
    reliability,
)
from pyhisto.metrics.counts import (
    Counts,
)
from pyhisto.metrics.detections import (
    DetectionComparison,
    DetectionScore,
    chance_detections,
    compare_detections,
    match_points,
    score_detections,
    shift_points,
)
from pyhisto.metrics.index import (
    Index,
    ki67_index,
)
from pyhisto.metrics.instances import (
    Overlaps,
    PanopticQuality,
    aggregated_jaccard,
    aji,
    match_instances,
    multiclass_panoptic_quality,
    overlaps_of_labels,
    overlaps_of_polygons,
    panoptic_by_class,
    panoptic_quality,
)
from pyhisto.metrics.intervals import (
    Interval,
    bootstrap_interval,
    jackknife_interval,
    mean_interval,
    ratio_interval,
)
from pyhisto.metrics.segmentation import (
    AreaScore,
    area_scores,
    confusion_matrix,
    dice,
    hausdorff_um,
    polygon_confusion,
    polygon_hausdorff_um,
    polygon_score,
)

__all__ = [
    "Agreement",
    "AreaScore",
    "BlandAltman",
    "Counts",
    "DetectionComparison",
    "DetectionScore",
    "Index",
    "Interval",
    "Overlaps",
    "PanopticQuality",
    "Reliability",
    "aggregated_jaccard",
    "agreement",
    "aji",
    "area_scores",
    "bland_altman",
    "bootstrap_interval",
    "brier_score",
    "chance_detections",
    "compare_detections",
    "confusion_matrix",
    "dice",
    "expected_calibration_error",
    "hausdorff_um",
    "icc_2_1",
    "jackknife_interval",
    "ki67_index",
    "lin_concordance",
    "match_instances",
    "match_points",
    "mean_absolute_error",
    "mean_interval",
    "multiclass_panoptic_quality",
    "overlaps_of_labels",
    "overlaps_of_polygons",
    "panoptic_by_class",
    "panoptic_quality",
    "pearson",
    "polygon_confusion",
    "polygon_hausdorff_um",
    "polygon_score",
    "ratio_interval",
    "reliability",
    "score_detections",
    "shift_points",
    "spearman",
]
