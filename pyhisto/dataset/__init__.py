"""Training data: annotations become label masks, and patches are read straight from the slides."""

from pyhisto.dataset.areas import labelled_areas
from pyhisto.dataset.augment import Augmentation
from pyhisto.dataset.boundary import BoundaryWeights
from pyhisto.dataset.cells import CellTask
from pyhisto.dataset.images import IGNORED, TrainingImage, WeightedArea, Window
from pyhisto.dataset.patches import PatchDataset
from pyhisto.dataset.sampling import Sampling
from pyhisto.dataset.splits import Split, check_leakage, extend_split, make_split, read_split, write_split
from pyhisto.dataset.tasks import Task, TissueTask
from pyhisto.dataset.validation import ValidationDataset

__all__ = [
    "IGNORED",
    "Augmentation",
    "BoundaryWeights",
    "CellTask",
    "PatchDataset",
    "Sampling",
    "Split",
    "Task",
    "TissueTask",
    "TrainingImage",
    "ValidationDataset",
    "WeightedArea",
    "Window",
    "check_leakage",
    "extend_split",
    "labelled_areas",
    "make_split",
    "read_split",
    "write_split",
]
